//! Encryption of stored data: AES-256-GCM in chunks, so that any range can be read, and wrapped keys. Pure.
//!
//! ```text
//! plain:   | 64 KiB        | 64 KiB        | rest    |
//! sealed:  | 64 KiB  | tag | 64 KiB  | tag | rest | tag |        tag: 16 bytes
//! ```
//!
//! Every stored body has a key of its own, made from the object's key and the body's salt, and used once: so the chunk's
//! number serves as the nonce, and a chunk that was moved, cut or changed does not open. Format: `docs/encryption.md`.

use hmac::{Hmac, KeyInit, Mac};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

/// Plain bytes of one chunk.
pub const CHUNK: u64 = 64 << 10;
/// What sealing adds to a chunk.
pub const TAG: u64 = 16;
/// A wrapped key: nonce, sealed key, tag.
pub const WRAPPED: usize = 12 + 32 + 16;

/// A secret key. Never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// Told apart by nothing: it does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it does not open with this key: another key, or damage")]
pub struct Closed;

impl Secret {
    /// A fresh one.
    #[allow(clippy::new_without_default, reason = "each one differs")]
    pub fn new() -> Self {
        Self(rand::random())
    }

    fn key(&self) -> LessSafeKey {
        // 32 bytes are what AES-256 takes.
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &self.0).expect("a key of 32 bytes"))
    }

    /// `inner`, sealed with this key; `about` says for what, and must be the same when it is opened.
    pub fn wrap(&self, inner: &Secret, about: &[u8]) -> [u8; WRAPPED] {
        let nonce: [u8; 12] = rand::random();
        self.wrap_with(inner, about, nonce)
    }

    fn wrap_with(&self, inner: &Secret, about: &[u8], nonce: [u8; 12]) -> [u8; WRAPPED] {
        let mut out = [0; WRAPPED];
        out[..12].copy_from_slice(&nonce);
        out[12..44].copy_from_slice(&inner.0);
        let sealed = self.key().seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(about),
            &mut out[12..44],
        );
        out[44..].copy_from_slice(sealed.expect("32 bytes are not too long").as_ref());
        out
    }

    /// The key in what [`wrap`](Self::wrap) made.
    pub fn unwrap(&self, wrapped: &[u8; WRAPPED], about: &[u8]) -> Result<Secret, Closed> {
        let mut nonce = [0; 12];
        nonce.copy_from_slice(&wrapped[..12]);
        let mut sealed = wrapped[12..].to_vec();
        let opened = self.key().open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(about), &mut sealed);
        opened.ok().and_then(|plain| plain[..].try_into().ok()).map(Secret).ok_or(Closed)
    }

    /// Any bytes, sealed with this key: nonce, sealed bytes, tag. `about` as in [`wrap`](Self::wrap).
    pub fn seal(&self, plain: &[u8], about: &[u8]) -> Vec<u8> {
        let nonce: [u8; 12] = rand::random();
        let mut sealed = plain.to_vec();
        let done =
            self.key().seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(about), &mut sealed);
        done.expect("far below AES-GCM's limit of 64 GiB");
        [&nonce[..], &sealed].concat()
    }

    /// What [`seal`](Self::seal) sealed.
    pub fn open(&self, sealed: &[u8], about: &[u8]) -> Result<Vec<u8>, Closed> {
        let (nonce, rest) = sealed.split_first_chunk::<12>().ok_or(Closed)?;
        let mut plain = rest.to_vec();
        let opened = self.key().open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(about), &mut plain);
        let len = opened.map_err(|_| Closed)?.len();
        plain.truncate(len);
        Ok(plain)
    }

    /// The cipher of the body with this salt.
    pub fn body(&self, salt: &[u8; 16]) -> Cipher {
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(b"karri body");
        mac.update(salt);
        Cipher(Secret(mac.finalize().into_bytes().into()).key())
    }
}

/// Seals or opens the chunks of one body.
pub struct Cipher(LessSafeKey);

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cipher")
    }
}

fn nonce(chunk: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&chunk.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

impl Cipher {
    /// The sealed bytes of whole chunks (the body's last one may be shorter), of which `first` is the first.
    pub fn seal(&self, first: u64, plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(sealed_len(plain.len() as u64) as usize);
        for (i, chunk) in plain.chunks(CHUNK as usize).enumerate() {
            let at = out.len();
            out.extend_from_slice(chunk);
            let tag = self.0.seal_in_place_separate_tag(nonce(first + i as u64), Aad::empty(), &mut out[at..]);
            out.extend_from_slice(tag.expect("a chunk is not too long").as_ref());
        }
        out
    }

    /// The plain bytes of whole sealed chunks, of which `first` is the first, in place: they move to the front.
    pub fn open<'b>(&self, first: u64, sealed: &'b mut [u8]) -> Result<&'b [u8], Closed> {
        let (mut from, mut to) = (0, 0);
        let mut chunk = first;
        while from < sealed.len() {
            let end = (from + (CHUNK + TAG) as usize).min(sealed.len());
            let plain = self.0.open_in_place(nonce(chunk), Aad::empty(), &mut sealed[from..end]).map_err(|_| Closed)?;
            let len = plain.len();
            sealed.copy_within(from..from + len, to);
            (from, to, chunk) = (end, to + len, chunk + 1);
        }
        Ok(&sealed[..to])
    }
}

/// How long so many plain bytes are when sealed.
pub fn sealed_len(plain: u64) -> u64 {
    plain + plain.div_ceil(CHUNK) * TAG
}

/// Where the sealed chunks are that hold the plain bytes `from..from + len` of a body of `size`: the first one's number, the
/// sealed offset, the sealed length.
pub fn sealed_span(size: u64, from: u64, len: u64) -> (u64, u64, u64) {
    let (first, end) = (from / CHUNK, (from + len).div_ceil(CHUNK));
    let at = first * (CHUNK + TAG);
    let until = (end * (CHUNK + TAG)).min(sealed_len(size));
    (first, at, until - at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn wrapped_keys() {
        let (outer, inner) = (Secret([1; 32]), Secret([2; 32]));
        let wrapped = outer.wrap(&inner, b"test");
        assert_eq!(outer.unwrap(&wrapped, b"test"), Ok(inner.clone()));
        assert_eq!(outer.unwrap(&wrapped, b"other"), Err(Closed));
        assert_eq!(Secret([3; 32]).unwrap(&wrapped, b"test"), Err(Closed));
        for at in 0..WRAPPED {
            let mut bad = wrapped;
            bad[at] ^= 1;
            assert_eq!(outer.unwrap(&bad, b"test"), Err(Closed), "byte {at}");
        }
        assert_ne!(outer.wrap(&inner, b"test"), wrapped, "a nonce is never used again");
        assert!(!format!("{outer:?}").contains('1'));
    }

    #[test]
    fn the_page_s_example_is_what_the_code_writes() {
        let page = include_str!("../docs/encryption.md");
        let block = page.split("```hex\n").nth(1).and_then(|b| b.split("```").next()).expect("a hex block");
        let lines: Vec<String> =
            block.lines().map(|l| l.split('|').next().unwrap_or_default().split_whitespace().collect()).collect();
        let key = Secret([1; 32]);
        assert_eq!(lines[0], hex::encode(key.body(&[2; 16]).seal(0, b"hello")));
        assert_eq!(lines[1], hex::encode(Secret([3; 32]).wrap_with(&key, b"SSE-S3", [4; 12])));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_range_opens(len in 0usize..300_000, from in 0usize..300_000, take in 1usize..200_000) {
            let plain: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
            let cipher = Secret([9; 32]).body(&[8; 16]);
            // Sealed piece by piece, as a body arrives.
            let sealed: Vec<u8> =
                plain.chunks(4 * CHUNK as usize).enumerate().flat_map(|(i, p)| cipher.seal(i as u64 * 4, p)).collect();
            prop_assert_eq!(sealed.len() as u64, sealed_len(len as u64));
            let from = from.min(len);
            let take = take.min(len - from);
            if take > 0 {
                let (first, at, n) = sealed_span(len as u64, from as u64, take as u64);
                let mut part = sealed[at as usize..(at + n) as usize].to_vec();
                let opened = cipher.open(first, &mut part).unwrap();
                let skip = from - (first * CHUNK) as usize;
                prop_assert_eq!(&opened[skip..skip + take], &plain[from..from + take]);
                let mut part = sealed[at as usize..(at + n) as usize].to_vec();
                part[0] ^= 1;
                prop_assert_eq!(cipher.open(first, &mut part), Err(Closed));
                let mut part = sealed[at as usize..(at + n) as usize].to_vec();
                prop_assert_eq!(cipher.open(first + 1, &mut part), Err(Closed));
            }
        }
    }
}
