//! The certificate authority and the certificates of roles, made at first start.
//!
//! Every gRPC listener asks for a certificate of this authority and shows one; the DNS name is the role's. Keys are
//! ECDSA P-256, files have mode 0600. `admin` is the identity of the command line and the supervisor.
//!
//! A certificate is good for two years. Each start issues anew those that are missing, that the authority did not sign,
//! or that have less than a year left, so a karri may run for a year between two starts. The authority's own certificate
//! is signed anew, with the same key, at every start.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use karri_base::clock::UnixMicros;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use time::OffsetDateTime;

use crate::layout::write_private;

const DAY: Duration = Duration::from_secs(86_400);
/// Clocks that lag so far still take a fresh certificate for valid.
const SKEW: Duration = DAY;
/// How long a role's certificate is good for.
const LIFE: Duration = Duration::from_secs(2 * 365 * DAY.as_secs());
/// One with less time left is issued anew.
const RENEWAL: Duration = Duration::from_secs(365 * DAY.as_secs());
/// How long the authority's is.
const AUTHORITY_LIFE: Duration = Duration::from_secs(20 * 365 * DAY.as_secs());

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

/// Makes the authority where it is missing, and a certificate for each name that has no good one.
pub fn ensure(dir: &Path, names: &[&str], now: UnixMicros) -> Result<()> {
    let (cert, key) = (dir.join("ca.pem"), dir.join("ca.key"));
    let params = authority(now);
    let authority_key = if key.exists() {
        let pem = fs::read_to_string(&key).with_context(|| format!("reading {}", key.display()))?;
        KeyPair::from_pem(&pem).with_context(|| format!("{} is not a private key", key.display()))?
    } else {
        let made = KeyPair::generate().context("making the authority's key")?;
        write_private(&key, made.serialize_pem().as_bytes())?;
        made
    };
    let signed = params.self_signed(&authority_key).context("making the authority's certificate")?;
    write_private(&cert, signed.pem().as_bytes())?;
    let mut roots = RootCertStore::empty();
    roots.add(signed.der().clone()).context("the authority's certificate")?;
    let issuer = Issuer::new(params, authority_key);
    for name in names {
        let files = files(dir, name);
        if files.key.exists() && is_good(&files.cert, name, &roots, now) {
            continue;
        }
        let key = KeyPair::generate().with_context(|| format!("making {name}'s key"))?;
        let signed =
            identity(name, now)?.signed_by(&key, &issuer).with_context(|| format!("making {name}'s certificate"))?;
        // Between the two writes they do not match; with no certificate the next start makes both.
        let _ = fs::remove_file(&files.cert);
        write_private(&files.key, key.serialize_pem().as_bytes())?;
        write_private(&files.cert, signed.pem().as_bytes())?;
    }
    Ok(())
}

/// True for a certificate of this name and authority that is valid from now until its renewal, and not for ever.
fn is_good(path: &Path, name: &str, roots: &RootCertStore, now: UnixMicros) -> bool {
    let Ok(der) = CertificateDer::from_pem_file(path) else { return false };
    let Ok(parsed) = ParsedCertificate::try_from(&der) else { return false };
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
    let valid_in = |later: Duration| {
        let then = UnixTime::since_unix_epoch(Duration::from_micros(now.0) + later);
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, &[], then, algorithms).is_ok()
    };
    let is_named = ServerName::try_from(name).is_ok_and(|name| verify_server_name(&parsed, &name).is_ok());
    is_named && valid_in(Duration::ZERO) && valid_in(RENEWAL) && !valid_in(LIFE + SKEW)
}

fn set_life(params: &mut CertificateParams, now: UnixMicros, life: Duration) {
    let now: OffsetDateTime = now.system().into();
    params.not_before = now - SKEW;
    params.not_after = now + life;
}

fn authority(now: UnixMicros) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("karri authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_life(&mut params, now, AUTHORITY_LIFE);
    params
}

fn identity(name: &str, now: UnixMicros) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.distinguished_name = named(name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    set_life(&mut params, now, LIFE);
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

    const NOW: UnixMicros = UnixMicros(1_767_225_600_000_000);

    fn later(days: u64) -> UnixMicros {
        UnixMicros(NOW.0 + days * DAY.as_micros() as u64)
    }

    fn cert(dir: &Path, name: &str) -> Vec<u8> {
        fs::read(files(dir, name).cert).unwrap()
    }

    #[test]
    fn certificates_are_made_once_and_keys_are_private() {
        let dir = tempfile::tempdir().unwrap();
        ensure(dir.path(), &["cloud", ADMIN], NOW).unwrap();
        let first = cert(dir.path(), "cloud");
        ensure(dir.path(), &["cloud", "node", ADMIN], NOW).unwrap();
        assert_eq!(first, cert(dir.path(), "cloud"));
        for name in ["ca", "cloud", "node", ADMIN] {
            let mode = fs::metadata(dir.path().join(format!("{name}.key"))).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn a_new_authority_renews_every_certificate() {
        let dir = tempfile::tempdir().unwrap();
        ensure(dir.path(), &["cloud"], NOW).unwrap();
        let first = cert(dir.path(), "cloud");
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        ensure(dir.path(), &["cloud"], NOW).unwrap();
        assert_ne!(first, cert(dir.path(), "cloud"));
    }

    #[test]
    fn a_certificate_is_renewed_when_a_year_is_left() {
        let dir = tempfile::tempdir().unwrap();
        ensure(dir.path(), &["cloud"], NOW).unwrap();
        let first = cert(dir.path(), "cloud");
        ensure(dir.path(), &["cloud"], later(364)).unwrap();
        assert_eq!(first, cert(dir.path(), "cloud"));
        ensure(dir.path(), &["cloud"], later(366)).unwrap();
        let second = cert(dir.path(), "cloud");
        assert_ne!(first, second);
        // Long after everything has run out, and with a clock that was set back before it was issued.
        ensure(dir.path(), &["cloud"], later(365 * 30)).unwrap();
        let third = cert(dir.path(), "cloud");
        assert_ne!(second, third);
        ensure(dir.path(), &["cloud"], NOW).unwrap();
        assert_ne!(third, cert(dir.path(), "cloud"));
    }

    #[test]
    fn what_is_no_good_certificate_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        ensure(dir.path(), &["cloud", "node"], NOW).unwrap();
        let issuer = Issuer::new(
            authority(NOW),
            KeyPair::from_pem(&fs::read_to_string(dir.path().join("ca.key")).unwrap()).unwrap(),
        );
        let key = KeyPair::generate().unwrap();
        // As the first versions issued them: until the year 4096.
        let mut for_ever = identity("cloud", NOW).unwrap();
        for_ever.not_after = rcgen::date_time_ymd(4096, 1, 1);
        let for_ever = for_ever.signed_by(&key, &issuer).unwrap().pem().into_bytes();
        let of_node = cert(dir.path(), "node");
        for bad in [for_ever, of_node, b"-----BEGIN CERTIFICATE-----\n".to_vec(), Vec::new()] {
            fs::write(files(dir.path(), "cloud").cert, &bad).unwrap();
            ensure(dir.path(), &["cloud"], NOW).unwrap();
            assert_ne!(bad, cert(dir.path(), "cloud"));
        }
    }
}
