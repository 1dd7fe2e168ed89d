//! The stored form of a map: one record an entry. The page is `docs/volume-map.md`; a test here builds its example.
//!
//! ```text
//! key    "map/" serial:u64be extent:u32be
//! value  version:u8=1 kind:u8 zero:u16 slot:u32le incarnation:u32le [ data:32 zero:32 ] crc32c:u32le
//! ```
//! The checksum covers the key and everything before it, so a record under another key is found out.

use bytes::{BufMut, Bytes, BytesMut};
use karri_bulk::ExtentId;

use super::{Bits, Entry, Partial};
use crate::error::Error;

/// The version written. Readers take every version up to it.
pub const VERSION: u8 = 1;

const FULL: u8 = 1;
const PARTIAL: u8 = 2;
const ZERO: u8 = 3;
/// `slot` of a partial entry that has no extent.
const NO_SLOT: u32 = u32::MAX;

const HEAD: usize = 12;
const BITMAPS: usize = 64;
const CRC: usize = 4;
const PREFIX: &[u8] = b"map/";

/// The key of an entry.
pub fn key(serial: u64, extent: u32) -> Bytes {
    let mut key = BytesMut::with_capacity(PREFIX.len() + 12);
    key.put_slice(PREFIX);
    key.put_u64(serial);
    key.put_u32(extent);
    key.freeze()
}

/// All keys of one volume's entries.
pub fn keys_of(serial: u64) -> std::ops::Range<Bytes> {
    key(serial, 0)..key(serial + 1, 0)
}

/// All keys of all maps.
pub fn all_keys() -> std::ops::Range<Bytes> {
    Bytes::from_static(PREFIX)..Bytes::from_static(b"map0")
}

/// Serial and extent of a key.
pub fn parse_key(key: &[u8]) -> Option<(u64, u32)> {
    let rest = key.strip_prefix(PREFIX)?;
    let (serial, extent) = rest.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*serial), u32::from_be_bytes(extent.try_into().ok()?)))
}

/// An entry's value; `None` for `Absent`, whose record does not exist.
pub fn encode(key: &[u8], entry: &Entry) -> Option<Bytes> {
    let parts = entry.parts();
    let kind = match entry {
        Entry::Absent => return None,
        Entry::Zero => ZERO,
        Entry::Full(_) => FULL,
        Entry::Partial(_) => PARTIAL,
    };
    let none = ExtentId { slot: if kind == PARTIAL { NO_SLOT } else { 0 }, incarnation: 0 };
    let extent = parts.extent.unwrap_or(none);
    let mut value = BytesMut::with_capacity(HEAD + BITMAPS + CRC);
    value.put_u8(VERSION);
    value.put_u8(kind);
    value.put_u16_le(0);
    value.put_u32_le(extent.slot);
    value.put_u32_le(extent.incarnation);
    if kind == PARTIAL {
        parts.data.0.iter().chain(&parts.zero.0).for_each(|word| value.put_u64_le(*word));
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(key), &value);
    value.put_u32_le(crc);
    Some(value.freeze())
}

/// The entry of a stored value.
///
/// # Errors
/// `Corrupt` when anything about it is not as [`encode`] writes it.
pub fn decode(key: &[u8], value: &[u8]) -> Result<Entry, Error> {
    let bad = |why: String| Error::Corrupt { what: format!("map record {}", key.escape_ascii()), why };
    let Some((body, crc)) = value.split_last_chunk::<CRC>() else {
        return Err(bad(format!("{} bytes are too short", value.len())));
    };
    if crc32c::crc32c_append(crc32c::crc32c(key), body) != u32::from_le_bytes(*crc) {
        return Err(bad("its checksum does not match".into()));
    }
    if body.first() != Some(&VERSION) {
        return Err(bad(format!("version {:?} is not known, only {VERSION} is; use a newer karri", body.first())));
    }
    let kind = body.get(1).copied().unwrap_or(0);
    let want = if kind == PARTIAL { HEAD + BITMAPS } else { HEAD };
    if body.len() != want {
        return Err(bad(format!("kind {kind} has {want} bytes and a checksum, not {}", value.len())));
    }
    let u32_at = |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().expect("4 bytes"));
    let extent = ExtentId { slot: u32_at(4), incarnation: u32_at(8) };
    match kind {
        FULL => Ok(Entry::Full(extent)),
        ZERO => Ok(Entry::Zero),
        PARTIAL => {
            let u64_at = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().expect("8 bytes"));
            let data = Bits(std::array::from_fn(|i| u64_at(HEAD + 8 * i)));
            let zero = Bits(std::array::from_fn(|i| u64_at(HEAD + 32 + 8 * i)));
            let extent = (extent.slot != NO_SLOT).then_some(extent);
            if data.minus(zero) != data || (extent.is_none() && data != Bits::EMPTY) {
                return Err(bad("its bitmaps contradict each other".into()));
            }
            Ok(Partial { extent, data, zero }.settle())
        }
        other => Err(bad(format!("kind {other} is not known"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex_after(page: &str, title: &str) -> Vec<u8> {
        let at = page.find(title).unwrap_or_else(|| panic!("the page has no {title:?}"));
        let block = page[at..].split("```").nth(1).expect("a code block follows");
        let digits: String = block
            .lines()
            .skip(1)
            .flat_map(|l| l.split('|').next())
            .flat_map(str::chars)
            .filter(|c| !c.is_whitespace())
            .collect();
        (0..digits.len() / 2).map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).expect("hex")).collect()
    }

    /// The page's examples are exactly what is written.
    #[test]
    fn the_format_page_is_true() {
        let page = include_str!("../../docs/volume-map.md");
        let extent = ExtentId { slot: 7, incarnation: 3 };
        let k = key(5, 258);
        assert_eq!(hex_after(page, "### Key"), &k[..]);
        assert_eq!(hex_after(page, "### Full"), &encode(&k, &Entry::Full(extent)).unwrap()[..]);
        assert_eq!(hex_after(page, "### Zero"), &encode(&k, &Entry::Zero).unwrap()[..]);
        let partial = Partial { extent: Some(extent), data: Bits::range(0, 3), zero: Bits::range(255, 256) };
        assert_eq!(hex_after(page, "### Partial"), &encode(&k, &partial.settle()).unwrap()[..]);
    }

    #[test]
    fn every_entry_survives_and_every_flipped_bit_is_found() {
        let extent = ExtentId { slot: 70_000, incarnation: 9 };
        let partial = Partial { extent: Some(extent), data: Bits::range(9, 77), zero: Bits::range(100, 120) };
        let masked = Partial { extent: None, data: Bits::EMPTY, zero: Bits::range(1, 2) };
        let k = key(1 << 40, 12);
        assert_eq!(parse_key(&k), Some((1 << 40, 12)));
        for entry in [Entry::Zero, Entry::Full(extent), partial.settle(), masked.settle()] {
            let value = encode(&k, &entry).unwrap();
            assert_eq!(decode(&k, &value).unwrap(), entry);
            assert!(decode(&key(1 << 40, 13), &value).is_err(), "under another key");
            for bit in 0..value.len() * 8 {
                let mut bad = value.to_vec();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(decode(&k, &bad).is_err(), "{entry:?} bit {bit}");
            }
            for len in 0..value.len() {
                assert!(decode(&k, &value[..len]).is_err());
            }
        }
        assert_eq!(encode(&k, &Entry::Absent), None);
        assert!(keys_of(5).contains(&key(5, u32::MAX)) && !keys_of(5).contains(&key(6, 0)));
        assert!(all_keys().contains(&key(u64::MAX, u32::MAX)));
    }
}
