//! Key pairs: made here (the private half is handed out once and forgotten) or imported.
//!
//! Fingerprints follow EC2: a made RSA pair has the SHA-1 of the private key's PKCS #8 form, an imported one the MD5 of
//! the public key's DER form, both as colon-separated hexadecimal digits; ed25519 has the base64 SHA-256 that OpenSSH shows.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use karri_base::id::KeyPairId;
use md5::Md5;
use rsa::pkcs1::{DecodeRsaPublicKey, EncodeRsaPrivateKey, LineEnding};
use rsa::pkcs8::{DecodePublicKey, EncodePrivateKey, EncodePublicKey};
use rsa::traits::PublicKeyParts;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::public::{KeyData, RsaPublicKey as SshRsa};

use crate::wire::Timestamp;
use crate::wire::generated::ec2;

use super::super::error::{ApiError, ApiResult, Code};
use super::super::records::{KeyPair, Record};
use super::filter::{Filters, one};
use super::{Call, specified_tags, tag_set};

const RSA_BITS: usize = 2048;

/// A fresh pair: what is kept, and the private key's text.
struct Made {
    public: String,
    private: String,
    fingerprint: String,
}

fn colons(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":")
}

/// The line that goes into authorized_keys.
fn line(public: &ssh_key::PublicKey) -> Result<String, String> {
    public.to_openssh().map_err(|e| e.to_string())
}

fn ed25519_fingerprint(public: &ssh_key::PublicKey) -> Result<String, String> {
    let wire = public.to_bytes().map_err(|e| e.to_string())?;
    Ok(STANDARD.encode(Sha256::digest(wire)))
}

fn make_rsa(name: &str) -> Result<Made, String> {
    let private = rsa::RsaPrivateKey::new(&mut Os, RSA_BITS).map_err(|e| e.to_string())?;
    let pkcs8 = private.to_pkcs8_der().map_err(|e| e.to_string())?;
    let pem = private.to_pkcs1_pem(LineEnding::LF).map_err(|e| e.to_string())?;
    let public = ssh_rsa(&private.to_public_key(), name)?;
    Ok(Made { public: line(&public)?, private: pem.to_string(), fingerprint: colons(&Sha1::digest(pkcs8.as_bytes())) })
}

fn make_ed25519(name: &str) -> Result<Made, String> {
    let seed: [u8; 32] = rand::random();
    let pair = KeypairData::from(Ed25519Keypair::from_seed(&seed));
    let private = ssh_key::PrivateKey::new(pair, name).map_err(|e| e.to_string())?;
    let text = private.to_openssh(ssh_key::LineEnding::LF).map_err(|e| e.to_string())?;
    let public = private.public_key();
    Ok(Made { public: line(public)?, private: text.to_string(), fingerprint: ed25519_fingerprint(public)? })
}

fn ssh_rsa(key: &rsa::RsaPublicKey, comment: &str) -> Result<ssh_key::PublicKey, String> {
    let number = |n: &rsa::BigUint| ssh_key::Mpint::from_positive_bytes(&n.to_bytes_be()).map_err(|e| e.to_string());
    let data = SshRsa { e: number(key.e())?, n: number(key.n())? };
    Ok(ssh_key::PublicKey::new(KeyData::Rsa(data), comment))
}

/// The operating system's random numbers in the form that the `rsa` crate wants.
struct Os;

impl rsa::rand_core::RngCore for Os {
    fn next_u32(&mut self) -> u32 {
        rand::random()
    }
    fn next_u64(&mut self) -> u64 {
        rand::random()
    }
    fn fill_bytes(&mut self, out: &mut [u8]) {
        rand::fill(out);
    }
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), rsa::rand_core::Error> {
        rand::fill(out);
        Ok(())
    }
}
// `rand`'s thread generator is a cryptographic one, seeded by the operating system.
impl rsa::rand_core::CryptoRng for Os {}

/// An imported public key: type, line, fingerprint. OpenSSH lines, SSH2 files (RFC 4716), and PEM or DER of RSA.
fn read_public(material: &[u8]) -> Option<(&'static str, String, String)> {
    let text = std::str::from_utf8(material).unwrap_or_default().trim();
    let public = if text.starts_with("ssh-") {
        ssh_key::PublicKey::from_openssh(text.lines().next()?).ok()?
    } else if let Some(body) = text.strip_prefix("---- BEGIN SSH2 PUBLIC KEY ----") {
        let body = body.split("---- END").next()?;
        let packed: String = body.lines().filter(|l| !l.contains(':')).map(str::trim).collect();
        ssh_key::PublicKey::from_bytes(&STANDARD.decode(packed).ok()?).ok()?
    } else {
        let der = match text.starts_with("-----BEGIN") {
            true => {
                let inner: String = text.lines().filter(|l| !l.starts_with("-----")).map(str::trim).collect();
                STANDARD.decode(inner).ok()?
            }
            false => match STANDARD.decode(text.split_whitespace().collect::<String>()) {
                Ok(der) if !text.is_empty() => der,
                _ => material.to_vec(),
            },
        };
        let key = rsa::RsaPublicKey::from_public_key_der(&der).or_else(|_| rsa::RsaPublicKey::from_pkcs1_der(&der));
        ssh_rsa(&key.ok()?, "").ok()?
    };
    match public.key_data() {
        KeyData::Rsa(data) => {
            let number = |m: &ssh_key::Mpint| m.as_positive_bytes().map(rsa::BigUint::from_bytes_be);
            let (n, e) = (number(&data.n)?, number(&data.e)?);
            let bits = n.bits();
            let key = rsa::RsaPublicKey::new_with_max_size(n, e, 16384).ok()?;
            let der = key.to_public_key_der().ok()?;
            (1024..=16384).contains(&bits).then_some(())?;
            Some(("rsa", line(&public).ok()?, colons(&Md5::digest(der.as_bytes()))))
        }
        KeyData::Ed25519(_) => Some(("ed25519", line(&public).ok()?, ed25519_fingerprint(&public).ok()?)),
        _ => None,
    }
}

fn check_name(name: &str) -> ApiResult<()> {
    let fits = name.len() <= 255 && name.is_ascii() && !name.trim().is_empty();
    if fits { Ok(()) } else { Err(ApiError::value("keyName", name, "It must be 1 to 255 ASCII characters.")) }
}

async fn keep(call: &Call<'_>, pair: KeyPair) -> ApiResult<()> {
    call.cloud
        .store
        .change(|txn| {
            if txn.get::<KeyPair>(&pair.id()).is_some() {
                let message = format!("The keypair already exists: {}", pair.name);
                return Err(ApiError::new(Code::InvalidKeyPairDuplicate, message));
            }
            txn.put(pair.clone());
            Ok(())
        })
        .await
}

/// CreateKeyPair.
pub async fn create(call: &Call<'_>, request: ec2::CreateKeyPairRequest) -> ApiResult<ec2::KeyPair> {
    check_name(&request.key_name)?;
    if request.key_format == Some(ec2::KeyFormat::Ppk) {
        return Err(ApiError::unsupported("KeyFormat ppk"));
    }
    let of_pairs = ec2::ResourceType::KeyPair;
    let tags = specified_tags(&request.tag_specifications, of_pairs, &[of_pairs])?;
    if call.cloud.store.get::<KeyPair>(&KeyPair::key(call.account(), &request.key_name)).is_some() {
        let message = format!("The keypair already exists: {}", request.key_name);
        return Err(ApiError::new(Code::InvalidKeyPairDuplicate, message));
    }
    let name = request.key_name.clone();
    let kind = request.key_type.unwrap_or(ec2::KeyType::Rsa);
    let made = tokio::task::spawn_blocking(move || match kind {
        ec2::KeyType::Rsa => make_rsa(&name),
        ec2::KeyType::Ed25519 => make_ed25519(&name),
    });
    let made = made.await.map_err(|e| e.to_string()).and_then(|made| made).map_err(|why| {
        tracing::error!(request_id = %call.request_id, error = %why, "a key pair could not be made");
        ApiError::new(Code::InternalError, "An internal error has occurred")
    })?;
    let pair = KeyPair {
        account: call.account().clone(),
        name: request.key_name,
        id: KeyPairId::random(),
        fingerprint: made.fingerprint,
        key_type: kind.to_string(),
        public_key: made.public,
        created_us: call.now_us(),
        tags,
    };
    keep(call, pair.clone()).await?;
    Ok(ec2::KeyPair {
        key_name: Some(pair.name),
        key_pair_id: Some(pair.id.to_string()),
        key_fingerprint: Some(pair.fingerprint),
        key_material: Some(made.private),
        tags: tag_set(&pair.tags).unwrap_or_default(),
    })
}

/// ImportKeyPair.
pub async fn import(call: &Call<'_>, request: ec2::ImportKeyPairRequest) -> ApiResult<ec2::ImportKeyPairResult> {
    check_name(&request.key_name)?;
    let of_pairs = ec2::ResourceType::KeyPair;
    let tags = specified_tags(&request.tag_specifications, of_pairs, &[of_pairs])?;
    let (key_type, public_key, fingerprint) = read_public(&request.public_key_material.0)
        .ok_or_else(|| ApiError::new(Code::InvalidKeyFormat, "Key is not in valid OpenSSH public key format"))?;
    let pair = KeyPair {
        account: call.account().clone(),
        name: request.key_name,
        id: KeyPairId::random(),
        fingerprint,
        key_type: key_type.into(),
        public_key,
        created_us: call.now_us(),
        tags,
    };
    keep(call, pair.clone()).await?;
    Ok(ec2::ImportKeyPairResult {
        key_name: Some(pair.name),
        key_pair_id: Some(pair.id.to_string()),
        key_fingerprint: Some(pair.fingerprint),
        tags: tag_set(&pair.tags).unwrap_or_default(),
    })
}

/// DescribeKeyPairs.
pub fn describe(call: &Call<'_>, request: ec2::DescribeKeyPairsRequest) -> ApiResult<ec2::DescribeKeyPairsResult> {
    let filters = Filters::new(request.filters, &["key-pair-id", "fingerprint", "key-name"], true)?;
    let mut pairs = call.cloud.store.list_under::<KeyPair>(&format!("{}/", call.account()));
    if let Some(name) = request.key_names.iter().find(|n| !pairs.iter().any(|p| p.name == **n)) {
        let message = format!("The key pair '{name}' does not exist");
        return Err(ApiError::new(Code::InvalidKeyPairNotFound, message));
    }
    if let Some(id) = request.key_pair_ids.iter().find(|i| !pairs.iter().any(|p| p.id.as_str() == **i)) {
        let message = format!("The key pair ID '{id}' does not exist");
        return Err(ApiError::new(Code::InvalidKeyPairNotFound, message));
    }
    pairs.retain(|p| {
        (request.key_names.is_empty() || request.key_names.contains(&p.name))
            && (request.key_pair_ids.is_empty() || request.key_pair_ids.iter().any(|i| i == p.id.as_str()))
            && filters.keep(&p.tags, |f| {
                one(match f {
                    "key-pair-id" => Some(p.id.as_str()),
                    "fingerprint" => Some(p.fingerprint.as_str()),
                    "key-name" => Some(p.name.as_str()),
                    _ => None,
                })
            })
    });
    let with_public = request.include_public_key == Some(true);
    let shown = pairs.iter().map(|p| ec2::KeyPairInfo {
        key_pair_id: Some(p.id.to_string()),
        key_fingerprint: Some(p.fingerprint.clone()),
        key_name: Some(p.name.clone()),
        key_type: ec2::KeyType::parse(&p.key_type),
        tags: tag_set(&p.tags),
        public_key: with_public.then(|| p.public_key.clone()),
        create_time: Some(Timestamp(p.created_us)),
    });
    Ok(ec2::DescribeKeyPairsResult { key_pairs: shown.collect() })
}

/// DeleteKeyPair: a name that is not there is no error, as in EC2.
pub async fn delete(call: &Call<'_>, request: ec2::DeleteKeyPairRequest) -> ApiResult<ec2::DeleteKeyPairResult> {
    if request.key_name.is_none() && request.key_pair_id.is_none() {
        return Err(ApiError::missing("KeyName"));
    }
    let gone = call
        .cloud
        .store
        .change(|txn| {
            let pairs = txn.list::<KeyPair>();
            let found = pairs.iter().find(|p| {
                p.account == *call.account()
                    && request.key_name.as_ref().is_none_or(|n| *n == p.name)
                    && request.key_pair_id.as_ref().is_none_or(|i| i == p.id.as_str())
            });
            match found {
                Some(pair) => {
                    txn.del::<KeyPair>(&pair.id());
                    Ok::<_, ApiError>(Some(pair.id.to_string()))
                }
                None => Ok(None),
            }
        })
        .await?;
    Ok(ec2::DeleteKeyPairResult { r#return: Some(true), key_pair_id: gone })
}

#[cfg(test)]
mod tests {
    use super::*;

    // `ssh-keygen -t rsa -b 2048`, and `openssl` for its digests.
    #[test]
    fn made_pairs_can_be_imported_and_keep_their_type() {
        let made = make_rsa("me").unwrap();
        assert!(made.private.starts_with("-----BEGIN RSA PRIVATE KEY-----"));
        assert_eq!(made.fingerprint.len(), 59);
        let (kind, line, fingerprint) = read_public(made.public.as_bytes()).unwrap();
        assert_eq!((kind, line.as_str(), fingerprint.len()), ("rsa", made.public.as_str(), 47));
        let made = make_ed25519("me").unwrap();
        assert!(made.private.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----"));
        let (kind, _, fingerprint) = read_public(made.public.as_bytes()).unwrap();
        assert_eq!((kind, fingerprint), ("ed25519", made.fingerprint));
        for bad in ["", "ssh-rsa AAAA", "ssh-dss AAAAB3NzaC1kc3M=", "hello", "-----BEGIN PUBLIC KEY-----\nAA\n-----END"]
        {
            assert!(read_public(bad.as_bytes()).is_none(), "{bad}");
        }
    }
}
