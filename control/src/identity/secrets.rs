//! Secrets at rest: access keys' secrets sealed with AES-256-GCM under the state folder's identity key, passwords as
//! salted PBKDF2 hashes; and what is random in names.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::num::NonZeroU32;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use karri_base::aws::session::SessionKey;
use rand::RngExt;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;

const ROUNDS: NonZeroU32 = NonZeroU32::new(100_000).expect("not zero");

/// Seals and opens secrets.
pub struct Sealer {
    cipher: LessSafeKey,
    sessions: SessionKey,
}

impl Sealer {
    /// With this key; what seals secrets and what seals sessions are derived from it.
    pub fn new(key: [u8; 32]) -> Self {
        let derive = |what: &[u8]| -> [u8; 32] {
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), what);
            tag.as_ref().try_into().expect("SHA-256 has 32 bytes")
        };
        let cipher = UnboundKey::new(&AES_256_GCM, &derive(b"karri secrets")).expect("32 bytes");
        Self { cipher: LessSafeKey::new(cipher), sessions: SessionKey::new(derive(b"karri sessions")) }
    }
    /// What seals session tokens.
    pub fn sessions(&self) -> &SessionKey {
        &self.sessions
    }
    /// A text sealed for `name`, in hexadecimal.
    pub fn seal(&self, name: &str, text: &str) -> String {
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut body = text.as_bytes().to_vec();
        let aad = Aad::from(name.as_bytes());
        let sealed = self.cipher.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut body);
        sealed.expect("a secret is short");
        hex::encode([&nonce[..], &body].concat())
    }
    /// What was sealed for `name`; none where it was not, or with another key.
    pub fn open(&self, name: &str, sealed: &str) -> Option<String> {
        let bytes = hex::decode(sealed).ok()?;
        let (nonce, body) = bytes.split_first_chunk::<NONCE_LEN>()?;
        let mut body = body.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = self.cipher.open_in_place(nonce, Aad::from(name.as_bytes()), &mut body).ok()?;
        String::from_utf8(plain.to_vec()).ok()
    }
}

/// The 32 bytes in this file, made (mode 0600) where it is not there.
///
/// # Errors
/// The file, and what is wrong with it.
pub fn key_file(path: &Path) -> Result<[u8; 32], (PathBuf, String)> {
    let bad = |why: String| (path.to_owned(), why);
    match std::fs::read(path) {
        Ok(bytes) => bytes.try_into().map_err(|b: Vec<u8>| bad(format!("it has {} bytes", b.len()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let key: [u8; 32] = rand::random();
            let write = || -> std::io::Result<()> {
                // Whole or not at all: half a key would lock everyone out.
                let beside = path.with_extension("new");
                let _ = std::fs::remove_file(&beside);
                let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
                file.write_all(&key)?;
                file.sync_all()?;
                std::fs::rename(&beside, path)?;
                File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
            };
            write().map_err(|e| bad(e.to_string()))?;
            Ok(key)
        }
        Err(e) => Err(bad(e.to_string())),
    }
}

/// A password's hash and its salt, in hexadecimal.
pub fn hash_password(password: &str) -> (String, String) {
    let salt: [u8; 16] = rand::random();
    let mut hash = [0; 32];
    ring::pbkdf2::derive(ring::pbkdf2::PBKDF2_HMAC_SHA256, ROUNDS, &salt, password.as_bytes(), &mut hash);
    (hex::encode(hash), hex::encode(salt))
}

/// True where the password has this hash.
pub fn is_password(password: &str, hash: &str, salt: &str) -> bool {
    let (Ok(hash), Ok(salt)) = (hex::decode(hash), hex::decode(salt)) else { return false };
    ring::pbkdf2::verify(ring::pbkdf2::PBKDF2_HMAC_SHA256, ROUNDS, &salt, password.as_bytes(), &hash).is_ok()
}

fn pick(set: &[u8], n: usize) -> String {
    let mut rng = rand::rng();
    (0..n).map(|_| char::from(set[rng.random_range(0..set.len())])).collect()
}

/// `AIDA` and 17 of A-Z and 2-7, and so on.
pub fn unique_id(prefix: &str) -> String {
    format!("{prefix}{}", pick(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 17))
}

/// An access key's id: `AKIA` or `ASIA` and 16 of A-Z and 2-7.
pub fn access_key_id(prefix: &str) -> String {
    format!("{prefix}{}", pick(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16))
}

/// A secret of 40 characters.
pub fn secret() -> String {
    pick(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", 40)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_open_under_their_own_name_and_key_only() {
        let sealer = Sealer::new([1; 32]);
        let sealed = sealer.seal("AKIA1", "secret");
        assert!(!sealed.contains(&hex::encode("secret")));
        assert_eq!(sealer.open("AKIA1", &sealed).as_deref(), Some("secret"));
        assert_eq!(sealer.open("AKIA2", &sealed), None);
        assert_eq!(Sealer::new([2; 32]).open("AKIA1", &sealed), None);
        assert_ne!(sealed, sealer.seal("AKIA1", "secret"), "a fresh nonce each time");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity.key");
        let made = key_file(&path).unwrap();
        assert_eq!(key_file(&path).unwrap(), made);
        std::fs::write(&path, b"short").unwrap();
        assert!(key_file(&path).unwrap_err().1.contains("5 bytes"));
        let (hash, salt) = hash_password("pass");
        assert!(is_password("pass", &hash, &salt) && !is_password("Pass", &hash, &salt));
    }
}
