//! Continuation tokens: opaque to clients, authenticated, so that a made-up one is refused instead of obeyed.
//!
//! `base64url(HMAC-SHA256(key, scope, 0, payload)[..16] payload)`; the scope says what the token continues.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use subtle::ConstantTimeEq;

fn tag(key: &[u8; 32], scope: &[u8], payload: &[u8]) -> [u8; 16] {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(scope);
    mac.update(&[0]);
    mac.update(payload);
    let full = mac.finalize().into_bytes();
    let mut tag = [0; 16];
    tag.copy_from_slice(&full[..16]);
    tag
}

/// A token for this payload.
pub fn seal(key: &[u8; 32], scope: &[u8], payload: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode([&tag(key, scope, payload), payload].concat())
}

/// The payload of a token that [`seal`] made with the same key and scope.
pub fn open(key: &[u8; 32], scope: &[u8], token: &str) -> Option<Vec<u8>> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (found, payload) = bytes.split_first_chunk::<16>()?;
    bool::from(tag(key, scope, payload).ct_eq(found)).then(|| payload.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_tokens_open() {
        let token = seal(&[1; 32], b"objects 7", b"some/key");
        assert_eq!(open(&[1; 32], b"objects 7", &token).as_deref(), Some(&b"some/key"[..]));
        assert_eq!(open(&[2; 32], b"objects 7", &token), None);
        assert_eq!(open(&[1; 32], b"objects 8", &token), None);
        assert_eq!(open(&[1; 32], b"objects 7", ""), None);
        for at in 0..token.len() {
            let mut bad = token.clone().into_bytes();
            bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
            let bad = String::from_utf8(bad).unwrap();
            // The last character's spare bits may change nothing.
            assert!(open(&[1; 32], b"objects 7", &bad).is_none_or(|p| p == b"some/key"), "{at}");
        }
    }
}
