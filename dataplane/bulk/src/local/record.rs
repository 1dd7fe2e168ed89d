//! The records of the log: what happened to blobs and extents. Pure: bytes in, values out.
//!
//! A record is `kind: u8, 0: u8, body_len: u16` and its body, all little-endian, packed without padding. Replayed in
//! order onto an empty state they give the store's contents; every record may be replayed onto a state that already has
//! it (a checkpoint's image is taken while the store goes on).

use super::format::{CHUNK, INLINE_CHUNKS, chunks, data_units, put32, put64, table_units};
use crate::{BlobId, ExtentId};

const SEAL: u8 = 1;
const DELETE: u8 = 2;
const KEEP: u8 = 3;
const FREE: u8 = 4;

/// Bytes before a record's body.
pub const RECORD_HEADER: usize = 4;
const SEAL_FIXED: usize = RECORD_HEADER + 24;
const RUN_BYTES: usize = 12;
/// Bytes of a delete record.
pub const DELETE_BYTES: usize = RECORD_HEADER + 8;
/// Bytes of one extent in a keep or free record.
pub const EXTENT_ITEM: usize = 8;

/// Contiguous units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// The first, counted from slot 0's beginning.
    pub start: u64,
    /// How many; above 0.
    pub units: u32,
}

/// A sealed blob: where it is and what its checksums are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// Its id.
    pub id: BlobId,
    /// Its length in bytes.
    pub len: u64,
    /// Its units in order: data, then the checksum table if it has one.
    pub runs: Vec<Run>,
    /// Of each chunk.
    pub crcs: Crcs,
}

/// A blob's CRC32Cs, one for each 64 KiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Crcs {
    /// In the record: one a chunk.
    Inline(Vec<u32>),
    /// In a table after the data, little-endian; this is the CRC32C of the table's bytes.
    Table(u32),
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A blob is whole.
    Seal(Seal),
    /// A blob is gone.
    Delete(BlobId),
    /// Extents are owned.
    Keep(Vec<ExtentId>),
    /// Extents are free.
    Free(Vec<ExtentId>),
}

/// The bytes of a seal record.
pub fn seal_bytes(runs: usize, len: u64) -> usize {
    let inline = if chunks(len) <= INLINE_CHUNKS { chunks(len) as usize } else { 0 };
    SEAL_FIXED + runs * RUN_BYTES + inline * 4
}

/// How many runs a seal record of at most `record_max` bytes may name.
pub fn runs_max(record_max: usize) -> usize {
    (record_max - SEAL_FIXED - INLINE_CHUNKS as usize * 4) / RUN_BYTES
}

/// How many extents a keep or free record of at most `record_max` bytes may name.
pub fn extents_max(record_max: usize) -> usize {
    (record_max - RECORD_HEADER) / EXTENT_ITEM
}

impl Record {
    /// Appends the record to `to`.
    pub fn encode(&self, to: &mut Vec<u8>) {
        let at = to.len();
        to.extend_from_slice(&[0; RECORD_HEADER]);
        to[at] = match self {
            Self::Seal(seal) => {
                put64(to, seal.id.0);
                put64(to, seal.len);
                let (crcs, table): (&[u32], u32) = match &seal.crcs {
                    Crcs::Inline(crcs) => (crcs, 0),
                    Crcs::Table(crc) => (&[], *crc),
                };
                put32(to, table);
                put32(to, seal.runs.len() as u32);
                for run in &seal.runs {
                    put64(to, run.start);
                    put32(to, run.units);
                }
                crcs.iter().for_each(|crc| put32(to, *crc));
                SEAL
            }
            Self::Delete(id) => {
                put64(to, id.0);
                DELETE
            }
            Self::Keep(extents) => {
                put_extents(to, extents);
                KEEP
            }
            Self::Free(extents) => {
                put_extents(to, extents);
                FREE
            }
        };
        let len = u16::try_from(to.len() - at - RECORD_HEADER).expect("records are below 64 KiB");
        to[at + 2..at + 4].copy_from_slice(&len.to_le_bytes());
    }

    /// All records of a group.
    ///
    /// # Errors
    /// What is wrong, with the offset. The checksum matched, so this is another version's work or our bug.
    pub fn decode_all(payload: &[u8]) -> Result<Vec<Self>, String> {
        let mut records = Vec::new();
        let mut r = Reader::new(payload);
        while !r.rest.is_empty() {
            let at = payload.len() - r.rest.len();
            records.push(Self::decode_one(&mut r).map_err(|why| format!("record at byte {at}: {why}"))?);
        }
        Ok(records)
    }

    fn decode_one(r: &mut Reader<'_>) -> Result<Self, String> {
        let short = || "it is cut short".to_owned();
        let head = r.take(RECORD_HEADER).ok_or_else(short)?;
        let len = u16::from_le_bytes([head[2], head[3]]);
        let mut body = Reader::new(r.take(len.into()).ok_or_else(short)?);
        let record = match head[0] {
            SEAL => Self::Seal(decode_seal(&mut body)?),
            DELETE => Self::Delete(BlobId(body.u64().ok_or_else(short)?)),
            KEEP => Self::Keep(take_extents(&mut body).ok_or_else(short)?),
            FREE => Self::Free(take_extents(&mut body).ok_or_else(short)?),
            kind => return Err(format!("kind {kind} is not known")),
        };
        if !body.rest.is_empty() {
            return Err(format!("{} bytes are left over", body.rest.len()));
        }
        Ok(record)
    }
}

fn decode_seal(r: &mut Reader<'_>) -> Result<Seal, String> {
    let short = || "it is cut short".to_owned();
    let id = BlobId(r.u64().ok_or_else(short)?);
    let len = r.u64().ok_or_else(short)?;
    let table = r.u32().ok_or_else(short)?;
    let count = r.u32().ok_or_else(short)? as usize;
    if count * RUN_BYTES > r.rest.len() {
        return Err(short());
    }
    let mut runs = Vec::with_capacity(count);
    let mut units = 0u64;
    for _ in 0..count {
        let run = Run { start: r.u64().ok_or_else(short)?, units: r.u32().ok_or_else(short)? };
        units += u64::from(run.units);
        if run.units == 0 {
            return Err("a run is empty".into());
        }
        runs.push(run);
    }
    if len > u64::MAX - CHUNK || units != data_units(len) + table_units(len) {
        return Err(format!("{units} units are not what {len} bytes take"));
    }
    let crcs = if chunks(len) <= INLINE_CHUNKS {
        Crcs::Inline((0..chunks(len)).map(|_| r.u32()).collect::<Option<_>>().ok_or_else(short)?)
    } else {
        Crcs::Table(table)
    };
    Ok(Seal { id, len, runs, crcs })
}

fn put_extents(to: &mut Vec<u8>, extents: &[ExtentId]) {
    for e in extents {
        put32(to, e.slot);
        put32(to, e.incarnation);
    }
}

fn take_extents(r: &mut Reader<'_>) -> Option<Vec<ExtentId>> {
    let mut extents = Vec::with_capacity(r.rest.len() / EXTENT_ITEM);
    while !r.rest.is_empty() {
        extents.push(ExtentId { slot: r.u32()?, incarnation: r.u32()? });
    }
    Some(extents)
}

/// Little-endian numbers off the front of a slice.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub(super) fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(head)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_kinds() -> Vec<Record> {
        let e = |slot| ExtentId { slot, incarnation: slot + 1 };
        vec![
            Record::Seal(Seal { id: BlobId(9), len: 0, runs: vec![], crcs: Crcs::Inline(vec![]) }),
            Record::Seal(Seal {
                id: BlobId(10),
                len: 70_000,
                runs: vec![Run { start: 5, units: 10 }, Run { start: 1 << 40, units: 8 }],
                crcs: Crcs::Inline(vec![1, 2]),
            }),
            Record::Seal(Seal {
                id: BlobId(11),
                len: 17 * CHUNK,
                runs: vec![Run { start: 0, units: 17 * 16 + 1 }],
                crcs: Crcs::Table(77),
            }),
            Record::Delete(BlobId(u64::MAX)),
            Record::Keep(vec![e(1), e(2)]),
            Record::Free(vec![e(3)]),
            Record::Free(vec![]),
        ]
    }

    #[test]
    fn records_round_trip() {
        let mut bytes = Vec::new();
        all_kinds().iter().for_each(|r| r.encode(&mut bytes));
        assert_eq!(Record::decode_all(&bytes).unwrap(), all_kinds());
        let sizes = [(0, 0), (2, 70_000), (1, 17 * CHUNK)];
        for (record, (runs, len)) in all_kinds().iter().zip(sizes) {
            let mut one = Vec::new();
            record.encode(&mut one);
            assert_eq!(one.len(), seal_bytes(runs, len));
        }
    }

    #[test]
    fn nothing_hostile_gets_through() {
        let mut bytes = Vec::new();
        all_kinds().iter().for_each(|r| r.encode(&mut bytes));
        for cut in 0..bytes.len() {
            // A cut may fall between records: then there are fewer. It never panics.
            let _ = Record::decode_all(&bytes[..cut]);
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = bytes.clone();
                bad[at] = value;
                let _ = Record::decode_all(&bad);
            }
        }
        assert!(Record::decode_all(&[9, 0, 0, 0]).unwrap_err().contains("kind 9"));
        // A run count far beyond the bytes.
        let mut bad = Vec::new();
        all_kinds()[1].encode(&mut bad);
        bad[24..28].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Record::decode_all(&bad).is_err());
    }
}
