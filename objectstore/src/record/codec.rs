//! The frame that every record shares: kind, version, checksum, then tagged fields. See `docs/records.md`.
//!
//! ```text
//! 0      1        2         4        8
//! | kind | version | 0 0    | CRC32C | tag, length (LEB128), bytes | tag, length, bytes | ...
//! ```
//!
//! Numbers are little-endian. A reader refuses a version above its own and an unknown tag below 0x80; tags from 0x80 on
//! may be skipped, which is how a newer writer adds what an older reader may ignore.

use bytes::{BufMut, Bytes, BytesMut};
use crc_fast::CrcAlgorithm;

/// Length of the header.
pub const HEADER: usize = 8;
/// The version this build writes.
pub const VERSION: u8 = 1;

/// Why bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Shorter than a header, or a field runs past the end.
    #[error("it is cut short at byte {at}")]
    Short {
        /// Where.
        at: usize,
    },
    /// Another kind of record.
    #[error("its kind is {found:?}, not {wanted:?}")]
    Kind {
        /// As stored.
        found: char,
        /// As the key promised.
        wanted: char,
    },
    /// Written by a newer karri.
    #[error("its version {found} is newer than this karri's {VERSION}; run the newer karri")]
    Version {
        /// As stored.
        found: u8,
    },
    /// The checksum does not match.
    #[error("its checksum does not match")]
    Checksum,
    /// A field that must be understood and is not.
    #[error("field {tag} {why}")]
    Field {
        /// The field's tag.
        tag: u8,
        /// What about it.
        why: &'static str,
    },
}

/// Writes one record.
pub struct Writer(BytesMut);

impl Writer {
    /// Begins a record of a kind (the first letter of its key).
    pub fn new(kind: u8) -> Self {
        let mut out = BytesMut::with_capacity(192);
        out.put_slice(&[kind, VERSION, 0, 0, 0, 0, 0, 0]);
        Self(out)
    }
    /// Adds a field.
    pub fn field(&mut self, tag: u8, bytes: &[u8]) {
        self.0.put_u8(tag);
        let mut len = bytes.len();
        while len >= 0x80 {
            self.0.put_u8(len as u8 | 0x80);
            len >>= 7;
        }
        self.0.put_u8(len as u8);
        self.0.put_slice(bytes);
    }
    /// Adds a number.
    pub fn number(&mut self, tag: u8, value: u64) {
        self.field(tag, &value.to_le_bytes());
    }
    /// Adds a text if there is one.
    pub fn text(&mut self, tag: u8, value: Option<&str>) {
        if let Some(value) = value {
            self.field(tag, value.as_bytes());
        }
    }
    /// The record's bytes.
    pub fn finish(mut self) -> Bytes {
        let crc = checksum(&self.0);
        self.0[4..8].copy_from_slice(&crc.to_le_bytes());
        self.0.freeze()
    }
}

/// CRC32C of a record with its checksum taken as zero.
fn checksum(record: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(&record[..4]);
    digest.update(&[0; 4]);
    digest.update(&record[HEADER..]);
    digest.finalize() as u32
}

/// A record's fields, in order.
pub struct Fields<'a> {
    record: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// Checks the frame.
    pub fn open(kind: u8, record: &'a [u8]) -> Result<Self, Damage> {
        if record.len() < HEADER {
            return Err(Damage::Short { at: record.len() });
        }
        if record[0] != kind {
            return Err(Damage::Kind { found: record[0] as char, wanted: kind as char });
        }
        // The checksum before the version: damage is not to be taken for a newer karri.
        if checksum(record).to_le_bytes() != record[4..8] {
            return Err(Damage::Checksum);
        }
        if record[1] > VERSION {
            return Err(Damage::Version { found: record[1] });
        }
        Ok(Self { record, at: HEADER })
    }

    /// The next field.
    pub fn pull(&mut self) -> Result<Option<(u8, &'a [u8])>, Damage> {
        let Some(&tag) = self.record.get(self.at) else { return Ok(None) };
        let (mut len, mut shift, mut at) = (0usize, 0u32, self.at + 1);
        loop {
            let byte = *self.record.get(at).ok_or(Damage::Short { at })?;
            at += 1;
            if shift > 28 {
                return Err(Damage::Field { tag, why: "has an impossible length" });
            }
            len |= usize::from(byte & 0x7F) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let bytes = self.record.get(at..at + len).ok_or(Damage::Short { at })?;
        self.at = at + len;
        Ok(Some((tag, bytes)))
    }
}

/// What to do with a tag that the reader does not know.
pub fn unknown(tag: u8) -> Result<(), Damage> {
    if tag >= 0x80 { Ok(()) } else { Err(Damage::Field { tag, why: "is not known to this karri" }) }
}

/// A field's number.
pub fn number(tag: u8, bytes: &[u8]) -> Result<u64, Damage> {
    Ok(u64::from_le_bytes(array(tag, bytes)?))
}

/// A field's text.
pub fn text(tag: u8, bytes: &[u8]) -> Result<String, Damage> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Damage::Field { tag, why: "is not UTF-8" })
}

/// A field of fixed length.
pub fn array<const N: usize>(tag: u8, bytes: &[u8]) -> Result<[u8; N], Damage> {
    bytes.try_into().map_err(|_| Damage::Field { tag, why: "has the wrong length" })
}

/// A field that must be there.
pub fn wanted<T>(tag: u8, value: Option<T>) -> Result<T, Damage> {
    value.ok_or(Damage::Field { tag, why: "is missing" })
}
