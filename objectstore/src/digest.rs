//! MD5 and the checksums of the S3 protocol: computed while data passes, compared, combined over parts.
//!
//! Pure and `Send`: a hasher travels to the offload pool with the bytes of a large body.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use crc_fast::CrcAlgorithm;
use md5::Digest as _;

use crate::md5_lanes::Md5;

/// A checksum algorithm of the S3 protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// CRC-32 (ISO-HDLC).
    Crc32,
    /// CRC-32C (Castagnoli).
    Crc32c,
    /// CRC-64/NVME: what S3 takes when nobody asks for another.
    Crc64Nvme,
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Crc32, Self::Crc32c, Self::Crc64Nvme, Self::Sha1, Self::Sha256];

    /// The number in records.
    pub fn code(self) -> u8 {
        match self {
            Self::Crc32 => 1,
            Self::Crc32c => 2,
            Self::Crc64Nvme => 3,
            Self::Sha1 => 4,
            Self::Sha256 => 5,
        }
    }
    /// The algorithm with this number in records.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.code() == code)
    }
    /// As in `x-amz-checksum-algorithm`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "CRC32",
            Self::Crc32c => "CRC32C",
            Self::Crc64Nvme => "CRC64NVME",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
        }
    }
    /// The algorithm of this name, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.name().eq_ignore_ascii_case(name))
    }
    /// The header or trailer that carries the value.
    pub fn header(self) -> &'static str {
        match self {
            Self::Crc32 => "x-amz-checksum-crc32",
            Self::Crc32c => "x-amz-checksum-crc32c",
            Self::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Self::Sha1 => "x-amz-checksum-sha1",
            Self::Sha256 => "x-amz-checksum-sha256",
        }
    }
    /// Bytes of a value.
    #[allow(clippy::len_without_is_empty, reason = "the length of a value, not of a container")]
    pub fn len(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme => 8,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }
    fn crc(self) -> Option<CrcAlgorithm> {
        match self {
            Self::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
            Self::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
            Self::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
            Self::Sha1 | Self::Sha256 => None,
        }
    }
}

/// How an object's checksum comes from its parts'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChecksumType {
    /// That of the whole data.
    FullObject,
    /// That of the parts' checksums, one after another.
    Composite,
}

impl ChecksumType {
    /// The number in records.
    pub fn code(self) -> u8 {
        match self {
            Self::FullObject => 0,
            Self::Composite => 1,
        }
    }
    /// The type with this number in records.
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::FullObject, Self::Composite].into_iter().find(|t| t.code() == code)
    }
    /// As in `x-amz-checksum-type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::FullObject => "FULL_OBJECT",
            Self::Composite => "COMPOSITE",
        }
    }
}

/// An object's or part's checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksum {
    /// Which.
    pub algorithm: Algorithm,
    /// Of what.
    pub kind: ChecksumType,
    /// How many parts, when composite: the value's `-N`.
    pub parts: u32,
    /// [`Algorithm::len`] bytes, most significant first.
    pub value: Vec<u8>,
}

impl Checksum {
    /// As in its header: Base64, with `-N` when composite.
    pub fn text(&self) -> String {
        let value = BASE64.encode(&self.value);
        match self.kind {
            ChecksumType::FullObject => value,
            ChecksumType::Composite => format!("{value}-{}", self.parts),
        }
    }
}

/// A value as a client sent it; `None` when it is not Base64 of the right length.
pub fn parse_value(algorithm: Algorithm, text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text.trim()).ok().filter(|v| v.len() == algorithm.len())
}

/// A Content-MD5; `None` when it is not Base64 of 16 bytes.
pub fn parse_md5(text: &str) -> Option<[u8; 16]> {
    BASE64.decode(text.trim()).ok()?.try_into().ok()
}

/// Base64 of any length.
pub fn parse_base64(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text.trim()).ok()
}

/// MD5 of bytes at hand.
pub fn md5(bytes: &[u8]) -> [u8; 16] {
    md5::Md5::digest(bytes).into()
}

/// Bytes as Base64.
pub fn base64(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

/// One running checksum.
enum State {
    Crc(crc_fast::Digest),
    Sha1(sha1::Sha1),
    Sha256(sha2::Sha256),
}

impl State {
    fn new(algorithm: Algorithm) -> Self {
        match (algorithm, algorithm.crc()) {
            (_, Some(crc)) => Self::Crc(crc_fast::Digest::new(crc)),
            (Algorithm::Sha1, _) => Self::Sha1(sha1::Sha1::default()),
            _ => Self::Sha256(sha2::Sha256::default()),
        }
    }
    fn update(&mut self, data: &[u8]) {
        match self {
            Self::Crc(d) => d.update(data),
            Self::Sha1(d) => d.update(data),
            Self::Sha256(d) => d.update(data),
        }
    }
    fn finish(self, algorithm: Algorithm) -> Vec<u8> {
        match self {
            Self::Crc(d) => d.finalize().to_be_bytes()[8 - algorithm.len()..].to_vec(),
            Self::Sha1(d) => d.finalize().to_vec(),
            Self::Sha256(d) => d.finalize().to_vec(),
        }
    }
}

/// Bytes of each of several bodies that are taken through all digests before the next: of sixteen, half a MiB.
const PIECE: usize = 32 << 10;

/// Everything that is computed over a body as it passes.
pub struct Hasher {
    md5: Md5,
    sums: Vec<(Algorithm, State)>,
    len: u64,
}

impl Hasher {
    /// MD5 and these checksums (duplicates count once).
    pub fn new(algorithms: &[Algorithm]) -> Self {
        let mut sums: Vec<(Algorithm, State)> = Vec::new();
        for &a in algorithms {
            if sums.iter().all(|(b, _)| a != *b) {
                sums.push((a, State::new(a)));
            }
        }
        Self { md5: Md5::default(), sums, len: 0 }
    }
    /// The next bytes.
    pub fn update(&mut self, data: &[u8]) {
        self.md5.update(data);
        self.update_sums(data);
    }
    /// The next bytes of several bodies; their MD5s are computed together ([`Md5::update_all`]). Piece by piece, so that
    /// the checksums find in the cache what MD5 has read.
    pub fn update_all(bodies: &mut [(&mut Self, &[u8])]) {
        while bodies.iter().any(|(_, data)| !data.is_empty()) {
            let mut pieces: Vec<(&mut Self, &[u8])> = Vec::with_capacity(bodies.len());
            for (hasher, data) in bodies.iter_mut() {
                let (piece, rest) = data.split_at(data.len().min(PIECE));
                *data = rest;
                pieces.push((hasher, piece));
            }
            let mut streams: Vec<_> = pieces.iter_mut().map(|(hasher, piece)| (&mut hasher.md5, *piece)).collect();
            Md5::update_all(&mut streams);
            for (hasher, piece) in pieces {
                hasher.update_sums(piece);
            }
        }
    }
    fn update_sums(&mut self, data: &[u8]) {
        self.len += data.len() as u64;
        for (_, sum) in &mut self.sums {
            sum.update(data);
        }
    }
    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.len
    }
    /// True before the first byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// The results.
    pub fn finish(self) -> Digests {
        Digests {
            md5: self.md5.finish(),
            sums: self.sums.into_iter().map(|(a, s)| (a, s.finish(a))).collect(),
            len: self.len,
        }
    }
}

/// What a [`Hasher`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    /// MD5.
    pub md5: [u8; 16],
    /// The checksums that were asked for.
    pub sums: Vec<(Algorithm, Vec<u8>)>,
    /// Bytes in all.
    pub len: u64,
}

impl Digests {
    /// The value of one that was asked for.
    pub fn get(&self, algorithm: Algorithm) -> Option<&[u8]> {
        self.sums.iter().find(|(a, _)| *a == algorithm).map(|(_, v)| v.as_slice())
    }
    /// As a full-object checksum.
    pub fn checksum(&self, algorithm: Algorithm) -> Option<Checksum> {
        let value = self.get(algorithm)?.to_vec();
        Some(Checksum { algorithm, kind: ChecksumType::FullObject, parts: 0, value })
    }
}

/// The MD5 of the parts' MD5s: a multipart object's ETag before its `-N`.
pub fn md5_of_md5s<'a>(parts: impl IntoIterator<Item = &'a [u8; 16]>) -> [u8; 16] {
    let mut md5 = md5::Md5::default();
    for part in parts {
        md5.update(part);
    }
    md5.finalize().into()
}

/// The checksum of checksums.
pub fn composite<'a>(algorithm: Algorithm, parts: impl IntoIterator<Item = &'a [u8]>) -> Checksum {
    let mut state = State::new(algorithm);
    let mut count = 0;
    for part in parts {
        state.update(part);
        count += 1;
    }
    Checksum { algorithm, kind: ChecksumType::Composite, parts: count, value: state.finish(algorithm) }
}

/// A CRC of the whole from the parts' CRCs and lengths; `None` for algorithms that cannot be combined.
pub fn combine<'a>(algorithm: Algorithm, parts: impl IntoIterator<Item = (&'a [u8], u64)>) -> Option<Checksum> {
    let crc = algorithm.crc()?;
    let number = |value: &[u8]| value.iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
    let mut whole: Option<u64> = None;
    for (value, len) in parts {
        let part = number(value);
        whole = Some(match whole {
            None => part,
            Some(before) => crc_fast::checksum_combine(crc, before, part, len),
        });
    }
    let whole = whole.unwrap_or_else(|| crc_fast::Digest::new(crc).finalize());
    let value = whole.to_be_bytes()[8 - algorithm.len()..].to_vec();
    Some(Checksum { algorithm, kind: ChecksumType::FullObject, parts: 0, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        let mut h = Hasher::new(&Algorithm::ALL);
        h.update(b"hel");
        h.update(b"lo");
        let d = h.finish();
        assert_eq!(hex::encode(d.md5), "5d41402abc4b2a76b9719d911017c592");
        let check = |a, want: &str| assert_eq!(d.checksum(a).unwrap().text(), want);
        check(Algorithm::Crc32, "NhCmhg==");
        check(Algorithm::Crc32c, "mnG7TA==");
        check(Algorithm::Sha1, "qvTGHdzF6KLavt4PO0gs2a6pQ00=");
        check(Algorithm::Sha256, "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=");
        // CRC-64/NVME's check value, for "123456789".
        let mut h = Hasher::new(&[Algorithm::Crc64Nvme]);
        h.update(b"123456789");
        assert_eq!(h.finish().get(Algorithm::Crc64Nvme).unwrap(), 0xAE8B_1486_0A79_9888_u64.to_be_bytes());
    }

    #[test]
    fn parts_combine_to_the_whole() {
        let data: Vec<u8> = (0..100_000u32).map(|i| (i * 7 % 251) as u8).collect();
        for a in [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64Nvme] {
            let sum = |data: &[u8]| {
                let mut h = Hasher::new(&[a]);
                h.update(data);
                h.finish().checksum(a).unwrap()
            };
            let parts: Vec<_> = data.chunks(33_333).map(|c| (sum(c).value, c.len() as u64)).collect();
            let whole = combine(a, parts.iter().map(|(v, l)| (v.as_slice(), *l))).unwrap();
            assert_eq!(whole, sum(&data), "{a:?}");
            assert_eq!(combine(a, []).unwrap(), sum(b""), "{a:?}");
        }
        assert_eq!(combine(Algorithm::Sha1, []), None);
    }

    #[test]
    fn values_are_parsed_strictly() {
        assert!(parse_value(Algorithm::Crc32, "NhCmhg==").is_some());
        for bad in ["", "NhCmhg", "NhCmhgAA", "!!!!", "qvTGHdzF6KLavt4PO0gs2a6pQ00="] {
            assert!(parse_value(Algorithm::Crc32, bad).is_none(), "{bad}");
        }
    }
}
