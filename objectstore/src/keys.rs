//! Where each record lives in the metadata store's one ordered key space. Layout and reasons: `docs/records.md`.
//!
//! ```text
//! B name                        bucket            A account name               bucket of an account (for listing)
//! O bucket key                  current object    V bucket key' !time          older version, newest first
//! I data-id                     small object's or part's bytes
//! U bucket key' upload-id       open upload       P upload-id part-number      part of an open upload
//! M upload-id                   manifest          D blob-id                    a blob that some record names
//! G blob-id                     blob to reclaim   X upload-id                  parts to clean away
//! K name                        a key of the key service C name                     the store's own settings
//! N bucket slot                 what is in a bucket L destination 0 time random   an event to deliver
//! R destination 0 time random   a change to replicate
//! ```
//!
//! `bucket` is the bucket's random 64-bit id, so a bucket made anew under an old name shares nothing with the old
//! one. An object key comes last in `O` and is stored raw; in `U` and `V` it is escaped and terminated ([`escape`]).

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use karri_base::clock::UnixMicros;
use karri_bulk::BlobId;

/// A bucket's number, random, never reused in practice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BucketId(pub u64);

/// Names an upload, a manifest or a small object's bytes: time in microseconds, then 64 random bits. Ids of one
/// process sort by the time they were made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DataId(pub [u8; 16]);

impl DataId {
    /// A fresh id.
    pub fn new(now: UnixMicros, random: u64) -> Self {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&now.0.to_be_bytes());
        id[8..].copy_from_slice(&random.to_be_bytes());
        Self(id)
    }
    /// The id of a microsecond before, with the same random bits.
    pub fn earlier(self) -> Self {
        let mut id = self;
        id.0[..8].copy_from_slice(&self.time().0.saturating_sub(1).to_be_bytes());
        id
    }
    /// When it was made.
    pub fn time(self) -> UnixMicros {
        let mut time = [0; 8];
        time.copy_from_slice(&self.0[..8]);
        UnixMicros(u64::from_be_bytes(time))
    }
    /// Its random bits.
    pub fn random(self) -> u64 {
        let mut random = [0; 8];
        random.copy_from_slice(&self.0[8..]);
        u64::from_be_bytes(random)
    }
    /// 32 lower-case hexadecimal digits: an upload or version id as clients see it.
    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }
    /// The id that `text` spells.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut id = [0; 16];
        hex::decode_to_slice(text, &mut id).ok()?;
        // One spelling only, so that ids compare as texts.
        (hex::encode(id) == text).then_some(Self(id))
    }
}

impl std::fmt::Debug for DataId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.to_hex())
    }
}

fn key(kind: u8, parts: &[&[u8]]) -> Bytes {
    let mut key = BytesMut::with_capacity(1 + parts.iter().map(|p| p.len()).sum::<usize>());
    key.put_u8(kind);
    for part in parts {
        key.put_slice(part);
    }
    key.freeze()
}

/// `B name`.
pub fn bucket(name: &str) -> Bytes {
    key(b'B', &[name.as_bytes()])
}
/// `A account name`; an account has 12 digits.
pub fn account_bucket(account: &str, name: &str) -> Bytes {
    key(b'A', &[account.as_bytes(), name.as_bytes()])
}
/// `O bucket key`.
pub fn object(bucket: BucketId, object_key: &[u8]) -> Bytes {
    key(b'O', &[&bucket.0.to_be_bytes(), object_key])
}
/// `V bucket key' !time`: an older version, by when it was written; the complement puts the newest first.
pub fn version(bucket: BucketId, object_key: &[u8], modified: UnixMicros) -> Bytes {
    key(b'V', &[&bucket.0.to_be_bytes(), &escape(object_key), &(!modified.0).to_be_bytes()])
}
/// Length of what precedes the object key in `O`.
pub const OBJECT_PREFIX: usize = 9;
/// `I data-id`.
pub fn inline(id: DataId) -> Bytes {
    key(b'I', &[&id.0])
}
/// `U bucket key' upload-id`.
pub fn upload(bucket: BucketId, object_key: &[u8], id: DataId) -> Bytes {
    key(b'U', &[&bucket.0.to_be_bytes(), &escape(object_key), &id.0])
}
/// `P upload-id part-number`.
pub fn part(upload: DataId, number: u16) -> Bytes {
    key(b'P', &[&upload.0, &number.to_be_bytes()])
}
/// `M upload-id`.
pub fn manifest(id: DataId) -> Bytes {
    key(b'M', &[&id.0])
}
/// `D blob-id`.
pub fn blob(id: BlobId) -> Bytes {
    key(b'D', &[&id.0.to_be_bytes()])
}
/// `G blob-id`.
pub fn garbage(id: BlobId) -> Bytes {
    key(b'G', &[&id.0.to_be_bytes()])
}
/// `X upload-id`.
pub fn cleanup(id: DataId) -> Bytes {
    key(b'X', &[&id.0])
}
/// `L destination 0 time random`: an event; a destination's name has no zero byte.
pub fn event(destination: &str, at: UnixMicros, random: u64) -> Bytes {
    key(b'L', &[destination.as_bytes(), &[0], &at.0.to_be_bytes(), &random.to_be_bytes()])
}
/// All events of a destination, oldest first.
pub fn events_of(destination: &str) -> Range<Bytes> {
    prefixed(key(b'L', &[destination.as_bytes(), &[0]]))
}
/// The destination and the time in an `L` or `R` key.
pub fn event_parts(key: &[u8]) -> Option<(String, UnixMicros)> {
    let (name, _) = key.get(1..)?.split_last_chunk::<8>()?;
    let (name, time) = name.split_last_chunk::<8>()?;
    let name = std::str::from_utf8(name.strip_suffix(&[0])?).ok()?;
    Some((name.to_owned(), UnixMicros(u64::from_be_bytes(*time))))
}
/// `R destination 0 time random`: a change to replicate, due at this time; a destination's name has no zero byte.
pub fn replication(destination: &str, due: UnixMicros, random: u64) -> Bytes {
    key(b'R', &[destination.as_bytes(), &[0], &due.0.to_be_bytes(), &random.to_be_bytes()])
}
/// All changes that wait for a destination, soonest due first.
pub fn replications_of(destination: &str) -> Range<Bytes> {
    prefixed(key(b'R', &[destination.as_bytes(), &[0]]))
}
/// `N bucket slot`.
pub fn usage(bucket: BucketId, slot: u32) -> Bytes {
    key(b'N', &[&bucket.0.to_be_bytes(), &slot.to_be_bytes()])
}
/// `K name`.
pub fn vault(name: &str) -> Bytes {
    key(b'K', &[name.as_bytes()])
}
/// `C name`.
pub fn setting(name: &str) -> Bytes {
    key(b'C', &[name.as_bytes()])
}

/// The number in a `P` key.
pub fn part_number(key: &[u8]) -> Option<u16> {
    let n: [u8; 2] = key.get(17..)?.try_into().ok()?;
    Some(u16::from_be_bytes(n))
}
/// The slot in an `N` key.
pub fn usage_slot(key: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(key.get(OBJECT_PREFIX..)?.try_into().ok()?))
}
/// The blob in a `D` or `G` key.
pub fn blob_id(key: &[u8]) -> Option<BlobId> {
    Some(BlobId(u64::from_be_bytes(key.get(1..)?.try_into().ok()?)))
}
/// The id in an `X` key.
pub fn cleanup_id(key: &[u8]) -> Option<DataId> {
    Some(DataId(key.get(1..)?.try_into().ok()?))
}
/// The object key and upload id in a `U` key.
pub fn upload_parts(key: &[u8]) -> Option<(Vec<u8>, DataId)> {
    let (escaped, id) = key.get(OBJECT_PREFIX..)?.split_last_chunk::<16>()?;
    Some((unescape(escaped)?, DataId(*id)))
}

/// The object key and the time in a `V` key.
pub fn version_parts(key: &[u8]) -> Option<(Vec<u8>, UnixMicros)> {
    let (escaped, time) = key.get(OBJECT_PREFIX..)?.split_last_chunk::<8>()?;
    Some((unescape(escaped)?, UnixMicros(!u64::from_be_bytes(*time))))
}

/// All keys that begin with `prefix`.
pub fn prefixed(prefix: Bytes) -> Range<Bytes> {
    let end = successor(&prefix).unwrap_or_default();
    prefix..end
}
/// All keys of a kind.
pub fn all(kind: u8) -> Range<Bytes> {
    prefixed(Bytes::copy_from_slice(&[kind]))
}
/// All objects of a bucket.
pub fn objects_of(id: BucketId) -> Range<Bytes> {
    prefixed(object(id, b""))
}
/// The older versions of all of a bucket's objects.
pub fn versions_of(id: BucketId) -> Range<Bytes> {
    prefixed(key(b'V', &[&id.0.to_be_bytes()]))
}
/// The older versions of an object, newest first.
pub fn versions_of_key(id: BucketId, object_key: &[u8]) -> Range<Bytes> {
    prefixed(key(b'V', &[&id.0.to_be_bytes(), &escape(object_key)]))
}
/// All uploads of a bucket.
pub fn uploads_of(id: BucketId) -> Range<Bytes> {
    prefixed(key(b'U', &[&id.0.to_be_bytes()]))
}
/// All slots that a bucket's usage is kept in.
pub fn usage_of(id: BucketId) -> Range<Bytes> {
    prefixed(key(b'N', &[&id.0.to_be_bytes()]))
}
/// All parts of an upload.
pub fn parts_of(upload: DataId) -> Range<Bytes> {
    prefixed(key(b'P', &[&upload.0]))
}

/// The smallest key above everything that begins with `prefix`; `None` where there is none (all 0xFF).
pub fn successor(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|b| *b != 0xFF)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

/// The smallest key above `key`.
pub fn after(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

/// An object key that something follows: 0x00 becomes 0x00 0xFF, and 0x00 0x01 ends it. Keeps the order of keys.
pub fn escape(object_key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(object_key.len() + 2);
    for &b in object_key {
        out.push(b);
        if b == 0 {
            out.push(0xFF);
        }
    }
    out.extend([0, 1]);
    out
}

/// What [`escape`] made, back; `None` if it did not make this.
pub fn unescape(escaped: &[u8]) -> Option<Vec<u8>> {
    let body = escaped.strip_suffix(&[0, 1])?;
    let mut out = Vec::with_capacity(body.len());
    let mut bytes = body.iter();
    while let Some(&b) = bytes.next() {
        if b == 0 && bytes.next() != Some(&0xFF) {
            return None;
        }
        out.push(b);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn successor_carries() {
        assert_eq!(successor(b"ab").unwrap(), "ac");
        assert_eq!(successor(b"a\xFF").unwrap(), "b");
        assert_eq!(successor(b"\xFF\xFF"), None);
    }

    #[test]
    fn upload_ids_have_one_spelling() {
        let id = DataId([0xAB; 16]);
        assert_eq!(DataId::from_hex(&id.to_hex()), Some(id));
        for bad in ["", "AB", &id.to_hex().to_uppercase(), &format!("{}00", id.to_hex())] {
            assert_eq!(DataId::from_hex(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn escaping_keeps_order_and_comes_back(a: Vec<u8>, b: Vec<u8>) {
            prop_assert_eq!(unescape(&escape(&a)), Some(a.clone()));
            prop_assert_eq!(a.cmp(&b), escape(&a).cmp(&escape(&b)));
            let id = DataId([7; 16]);
            prop_assert_eq!(upload_parts(&upload(BucketId(1), &a, id)), Some((a.clone(), id)));
            let at = UnixMicros(id.0[0].into());
            prop_assert_eq!(version_parts(&version(BucketId(1), &a, at)), Some((a.clone(), at)));
            prop_assert!(version(BucketId(1), &a, at) > version(BucketId(1), &a, UnixMicros(at.0 + 1)));
        }
    }
}
