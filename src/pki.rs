//! The certificate authority and the certificates of roles, made at first start.
//!
//! Every gRPC listener asks for a certificate of this authority and shows one; the DNS name is the role's. Keys are
//! ECDSA P-256, files have mode 0600. `admin` is the identity of the command line and the supervisor. A certificate is
//! issued only where its file is missing, so removing one and starting again renews it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::layout::write_private;

/// The identity of the command line and the supervisor.
pub const ADMIN: &str = "admin";

/// The files of one identity.
#[derive(Debug, Clone)]
pub struct Files {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// The identity's certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The files of `name` in the folder `dir`, there or not.
pub fn files(dir: &Path, name: &str) -> Files {
    Files { ca: dir.join("ca.pem"), cert: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) }
}

/// Makes the authority and a certificate for each name, where they are missing.
pub fn ensure(dir: &Path, names: &[&str]) -> Result<()> {
    let (cert, key) = (dir.join("ca.pem"), dir.join("ca.key"));
    let params = authority();
    let authority_key = if cert.exists() && key.exists() {
        let pem = fs::read_to_string(&key).with_context(|| format!("reading {}", key.display()))?;
        KeyPair::from_pem(&pem).with_context(|| format!("{} is not a private key", key.display()))?
    } else {
        let made = KeyPair::generate().context("making the authority's key")?;
        let signed = params.self_signed(&made).context("making the authority's certificate")?;
        // What an earlier authority signed would be refused.
        for name in names {
            let _ = fs::remove_file(files(dir, name).cert);
        }
        write_private(&key, made.serialize_pem().as_bytes())?;
        write_private(&cert, signed.pem().as_bytes())?;
        made
    };
    let issuer = Issuer::new(params, authority_key);
    for name in names {
        let files = files(dir, name);
        if files.cert.exists() && files.key.exists() {
            continue;
        }
        let key = KeyPair::generate().with_context(|| format!("making {name}'s key"))?;
        let signed =
            identity(name)?.signed_by(&key, &issuer).with_context(|| format!("making {name}'s certificate"))?;
        write_private(&files.key, key.serialize_pem().as_bytes())?;
        write_private(&files.cert, signed.pem().as_bytes())?;
    }
    Ok(())
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("karri authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn identity(name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.distinguished_name = named(name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn named(name: &str) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    dn.push(DnType::OrganizationName, "karri");
    dn.push(DnType::CommonName, name);
    dn
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn certificates_are_made_once_and_keys_are_private() {
        let dir = tempfile::tempdir().unwrap();
        ensure(dir.path(), &["cloud", ADMIN]).unwrap();
        let first = fs::read(files(dir.path(), "cloud").cert).unwrap();
        ensure(dir.path(), &["cloud", "node", ADMIN]).unwrap();
        assert_eq!(first, fs::read(files(dir.path(), "cloud").cert).unwrap());
        for name in ["ca", "cloud", "node", ADMIN] {
            let mode = fs::metadata(dir.path().join(format!("{name}.key"))).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn a_new_authority_renews_every_certificate() {
        let dir = tempfile::tempdir().unwrap();
        ensure(dir.path(), &["cloud"]).unwrap();
        let first = fs::read(files(dir.path(), "cloud").cert).unwrap();
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        ensure(dir.path(), &["cloud"]).unwrap();
        assert_ne!(first, fs::read(files(dir.path(), "cloud").cert).unwrap());
    }
}
