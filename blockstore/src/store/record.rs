//! The records' bytes (`docs/records.md`): `version u8 | JSON | crc32c u32 LE` over key, version and JSON.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The version written. Readers take every version up to it.
pub const VERSION: u8 = 1;

/// What may be stored.
pub trait Record: Serialize + DeserializeOwned {}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its number: what its map's keys begin with.
    pub serial: u64,
    /// Bytes.
    pub size: u64,
    /// The owner's account.
    pub account: String,
    /// The image that was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source: Option<Source>,
    /// What it reads through, nearest first.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub parents: Vec<Parent>,
}

/// A map that a volume reads through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Its number.
    pub serial: u64,
    /// Bytes; zeros follow.
    pub size: u64,
}

/// An image object in Walrus.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Source {
    /// Its bucket.
    pub bucket: String,
    /// Its key.
    pub key: String,
    /// Its ETag without quotes; in a volume's record as it was asked for, possibly empty.
    pub etag: String,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.key)
    }
}

/// An image's local copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Bytes, rounded up to a sector.
    pub size: u64,
    /// The object.
    pub source: Source,
    /// Complete, and never written again.
    pub sealed: bool,
}

/// A volume's last export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// The attachment's generation: older ones are refused.
    pub generation: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Whether it is exported now; the generation outlives the export.
    pub active: bool,
}

/// A number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serial {
    /// The last one given, or the one named.
    pub last: u64,
}

impl Record for Volume {}
impl Record for Base {}
impl Record for Export {}
impl Record for Serial {}

/// `vol/NAME`.
pub fn volume_key(name: &str) -> Bytes {
    format!("vol/{name}").into()
}
/// `export/NAME`.
pub fn export_key(name: &str) -> Bytes {
    format!("export/{name}").into()
}
/// `base/` and the number, big-endian.
pub fn base_key(serial: u64) -> Bytes {
    [&b"base/"[..], &serial.to_be_bytes()].concat().into()
}
/// `clone/` and both numbers, big-endian.
pub fn clone_key(base: u64, volume: u64) -> Bytes {
    [&b"clone/"[..], &base.to_be_bytes(), &volume.to_be_bytes()].concat().into()
}
/// `image/BUCKET\0KEY\0ETAG`. None of them holds a zero byte: HTTP headers and S3 names cannot.
pub fn image_key(source: &Source) -> Bytes {
    format!("image/{}\0{}\0{}", source.bucket, source.key, source.etag).into()
}
/// The name in a key after its prefix.
pub fn name_of(key: &[u8], prefix: &str) -> String {
    String::from_utf8_lossy(&key[prefix.len()..]).into_owned()
}
/// The number in a `base/` key.
pub fn parse_base_key(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.strip_prefix(b"base/")?.try_into().ok()?))
}
/// The numbers in a `clone/` key: the image's and the volume's.
pub fn parse_clone_key(key: &[u8]) -> Option<(u64, u64)> {
    let (base, volume) = key.strip_prefix(b"clone/")?.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*base), u64::from_be_bytes(volume.try_into().ok()?)))
}

/// A record's value under `key`.
///
/// # Panics
/// Never: these structures are JSON.
pub fn encode<T: Record>(key: &[u8], record: &T) -> Bytes {
    let mut value = BytesMut::new();
    value.put_u8(VERSION);
    value.put_slice(&serde_json::to_vec(record).expect("plain structures are JSON"));
    let crc = crc32c::crc32c_append(crc32c::crc32c(key), &value);
    value.put_u32_le(crc);
    value.freeze()
}

/// The record of a stored value.
///
/// # Errors
/// `Corrupt`.
pub fn decode<T: Record>(key: &[u8], value: &[u8]) -> Result<T, Error> {
    let bad = |why: String| Error::Corrupt { what: format!("record {}", key.escape_ascii()), why };
    let Some((body, crc)) = value.split_last_chunk::<4>() else {
        return Err(bad(format!("{} bytes are too short", value.len())));
    };
    if crc32c::crc32c_append(crc32c::crc32c(key), body) != u32::from_le_bytes(*crc) {
        return Err(bad("its checksum does not match".into()));
    }
    match body.split_first() {
        Some((&VERSION, json)) => serde_json::from_slice(json).map_err(|e| bad(e.to_string())),
        other => {
            let version = other.map(|(v, _)| *v);
            Err(bad(format!("version {version:?} is not known, only {VERSION} is; use a newer karri")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> (Bytes, Volume) {
        let source = Source { bucket: "images".into(), key: "debian.img".into(), etag: String::new() };
        let parents = vec![Parent { serial: 3, size: 1 << 30 }];
        let volume = Volume { serial: 4, size: 2 << 30, account: "123456789012".into(), source: Some(source), parents };
        (volume_key("vol-0123456789abcdef0"), volume)
    }

    #[test]
    fn the_format_page_is_true() {
        let page = include_str!("../../docs/records.md");
        let (key, volume) = example();
        let value = encode(&key, &volume);
        let json = std::str::from_utf8(&value[1..value.len() - 4]).unwrap();
        assert!(page.contains(json), "the page shows another JSON than {json}");
        let crc = value[value.len() - 4..].iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ");
        assert!(page.contains(&format!("01 | JSON | {crc}")), "the page shows another checksum than {crc}");
    }

    #[test]
    fn records_survive_and_damage_is_found() {
        let (key, volume) = example();
        let value = encode(&key, &volume);
        assert_eq!(decode::<Volume>(&key, &value).unwrap(), volume);
        assert!(decode::<Volume>(&volume_key("vol-b"), &value).is_err());
        for bit in 0..value.len() * 8 {
            let mut bad = value.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<Volume>(&key, &bad).is_err());
        }
        assert_eq!(parse_clone_key(&clone_key(1, u64::MAX)), Some((1, u64::MAX)));
        assert_eq!(parse_base_key(&base_key(9)), Some(9));
        assert_eq!(name_of(&key, "vol/"), "vol-0123456789abcdef0");
    }
}
