//! Temporary credentials that carry themselves: what a session is travels sealed in its token, and its secret follows
//! from its access key's id, so that every role that has the [`SessionKey`] believes a session the moment it is made and
//! nothing has to be kept or told.
//!
//! ```text
//! access key id  ASIA + 16 letters and digits, random
//! secret         base64(HMAC-SHA256(key, "karri secret" id)[..30])
//! token          base64(0x01, 12 random bytes, AES-256-GCM(key, JSON of Session; id as associated data))
//! ```
//! Promises: a token made with another key, for another access key id or changed anywhere is refused. Leaves expiry to
//! whoever knows the time, and what a principal may do to the policies known there.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::clock::UnixMicros;

/// How ids of temporary access keys begin.
pub const PREFIX: &str = "ASIA";
/// The longest token that is looked at, in bytes.
const TOKEN_MAX: usize = 64 << 10;
const VERSION: u8 = 1;

/// Who a session is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Of {
    /// The principal itself (GetSessionToken): a user by id, an account's root by number.
    Oneself {
        /// `AIDA...` or an account number.
        id: String,
    },
    /// Somebody in a role.
    Role {
        /// `AROA...`.
        id: String,
        /// The session's name.
        name: String,
    },
    /// Somebody whom a principal let in (GetFederationToken).
    Federated {
        /// `AIDA...` or an account number, of who let in.
        by: String,
        /// The federated user's name.
        name: String,
    },
}

/// A session, as its token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Who.
    pub of: Of,
    /// When it began, in microseconds since 1970.
    pub issued_us: u64,
    /// When it ends.
    pub expires_us: u64,
    /// Session policies as texts; none where none were passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policies: Option<Vec<String>>,
    /// Session tags.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// More condition keys of its requests.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<String, String>,
}

/// A token that was not made here, or not for this access key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the security token included in the request is invalid")]
pub struct BadToken;

/// What seals tokens. Never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionKey([u8; 32]);

impl std::fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionKey(hidden)")
    }
}

impl SessionKey {
    /// A key of these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
    /// A key of these bytes, if there are 32.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
    /// Its bytes, for whoever may seal too.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
    /// The secret of a temporary access key: 40 characters.
    pub fn secret(&self, access_key_id: &str) -> String {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.0).unwrap_or_else(|_| unreachable!("any length"));
        mac.update(b"karri secret");
        mac.update(access_key_id.as_bytes());
        STANDARD.encode(&mac.finalize().into_bytes()[..30])
    }
    /// The token of a session; `nonce` is random and never used twice.
    pub fn seal(&self, access_key_id: &str, session: &Session, nonce: [u8; NONCE_LEN]) -> String {
        let mut sealed = vec![VERSION];
        sealed.extend(nonce);
        // Sessions are plain data.
        let mut body = serde_json::to_vec(session).unwrap_or_default();
        let aad = Aad::from(access_key_id.as_bytes());
        let done = self.cipher().seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut body);
        done.unwrap_or_else(|_| unreachable!("a session is far below the cipher's limit"));
        sealed.extend(body);
        STANDARD.encode(sealed)
    }
    /// The session that a token carries.
    ///
    /// # Errors
    /// It was not made with this key for this access key id.
    pub fn open(&self, access_key_id: &str, token: &str) -> Result<Session, BadToken> {
        if token.len() > TOKEN_MAX {
            return Err(BadToken);
        }
        let bytes = STANDARD.decode(token).map_err(|_| BadToken)?;
        let (version, rest) = bytes.split_first().ok_or(BadToken)?;
        let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>().ok_or(BadToken)?;
        if *version != VERSION {
            return Err(BadToken);
        }
        let (mut body, aad) = (body.to_vec(), Aad::from(access_key_id.as_bytes()));
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = self.cipher().open_in_place(nonce, aad, &mut body).map_err(|_| BadToken)?;
        serde_json::from_slice(plain).map_err(|_| BadToken)
    }

    fn cipher(&self) -> LessSafeKey {
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &self.0).unwrap_or_else(|_| unreachable!("32 bytes")))
    }
}

impl Session {
    /// True when it is over.
    pub fn is_over(&self, now: UnixMicros) -> bool {
        now.0 >= self.expires_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_believed_as_they_were_made_only() {
        let key = SessionKey::new([7; 32]);
        let session = Session {
            of: Of::Role { id: "AROA1".into(), name: "s".into() },
            issued_us: 1,
            expires_us: 2,
            policies: Some(vec!["{}".into()]),
            tags: [("a".to_owned(), "b".to_owned())].into(),
            keys: BTreeMap::new(),
        };
        let token = key.seal("ASIA1", &session, [3; 12]);
        assert_eq!(key.open("ASIA1", &token).as_ref(), Ok(&session));
        assert_eq!(key.open("ASIA2", &token), Err(BadToken), "another access key");
        assert_eq!(SessionKey::new([8; 32]).open("ASIA1", &token), Err(BadToken), "another key");
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).expect("ASCII");
            assert_eq!(key.open("ASIA1", &changed), Err(BadToken), "byte {at}");
        }
        for short in ["", "AQ==", &token[..16], &"A".repeat(TOKEN_MAX + 4)] {
            assert_eq!(key.open("ASIA1", short), Err(BadToken));
        }
        assert_eq!(key.secret("ASIA1").len(), 40);
        assert_ne!(key.secret("ASIA1"), key.secret("ASIA2"));
        assert!(!session.is_over(UnixMicros(1)) && session.is_over(UnixMicros(2)));
    }
}
