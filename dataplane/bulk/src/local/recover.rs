//! Making a store and opening one: superblocks, replay of the log, the check of its last group, and a fresh log.

use std::collections::{BTreeMap, HashMap};

use karri_engine::buf::Buf;
use karri_engine::disk::Disk;

use super::format::{Geometry, GroupHeader, SUPERBLOCK_AT, Superblock, SuperblockError, UNIT, VERSION};
use super::log::write_superblock;
use super::record::{Record, Seal};
use crate::{BlobId, BulkError, ExtentId};

/// What the log says.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Sealed blobs.
    pub blobs: BTreeMap<BlobId, Seal>,
    /// Owned extents: incarnation by slot.
    pub extents: HashMap<u32, u32>,
    /// No incarnation above this was given out.
    pub ceiling: u32,
    /// Blobs of the last group whose data was perhaps lost.
    pub unproven: Vec<BlobId>,
}

impl Replayed {
    fn apply(&mut self, record: Record) {
        match record {
            Record::Seal(seal) => {
                self.blobs.insert(seal.id, seal);
            }
            Record::Delete(id) => {
                self.blobs.remove(&id);
            }
            Record::Keep(extents) => self.extents.extend(extents.iter().map(|e| (e.slot, e.incarnation))),
            Record::Free(extents) => {
                for ExtentId { slot, incarnation } in extents {
                    if self.extents.get(&slot) == Some(&incarnation) {
                        self.extents.remove(&slot);
                    }
                }
            }
        }
    }
}

/// What is at the superblocks' places.
pub enum Found {
    /// Zeros in both: never formatted.
    Blank,
    /// The newer valid one.
    Store(Box<Superblock>),
}

/// Reads both superblocks.
///
/// # Errors
/// `Open` when neither is usable, and when the disk is smaller than the store.
pub async fn superblock<D: Disk>(disk: &D, name: &str) -> Result<Found, BulkError> {
    let open = |why: String| BulkError::Open { what: name.to_owned(), why };
    if disk.size() < SUPERBLOCK_AT[1] + UNIT {
        return Err(open(format!("{} bytes are too few for a store; was it cut short?", disk.size())));
    }
    let mut copies = Vec::new();
    for at in SUPERBLOCK_AT {
        let (result, buf) = disk.read(at, Buf::zeroed(UNIT as usize)).await;
        copies.push(match result {
            Ok(()) => Superblock::decode(buf.bytes()),
            Err(e) => Err(SuperblockError::Damaged(e.to_string())),
        });
    }
    if let Some(newest) = copies.iter().flatten().max_by_key(|s| s.generation) {
        for (copy, at) in copies.iter().zip(SUPERBLOCK_AT) {
            if let Err(e) = copy {
                tracing::warn!(store = %name, at, error = ?e, "a superblock is damaged; the other one is used");
            }
        }
        if disk.size() < newest.geometry.disk_bytes {
            let (has, wants) = (disk.size(), newest.geometry.disk_bytes);
            return Err(open(format!("it has {has} bytes and was made with {wants}: it was cut short")));
        }
        return Ok(Found::Store(Box::new(*newest)));
    }
    let mut errors = copies.into_iter().filter_map(Result::err);
    let (first, second) = (errors.next(), errors.next());
    let (Some(first), Some(second)) = (first, second) else { return Err(open("unreadable".into())) };
    match (&first, &second) {
        (SuperblockError::Blank, SuperblockError::Blank) => Ok(Found::Blank),
        (SuperblockError::Version(v), _) | (_, SuperblockError::Version(v)) => Err(open(format!(
            "it is of version {v} and this karri reads version {VERSION}; use the karri that made it"
        ))),
        (SuperblockError::Damaged(a), SuperblockError::Damaged(b)) => {
            Err(open(format!("both superblocks are damaged (first: {a}; second: {b}); restore it from a copy")))
        }
        (SuperblockError::Damaged(a), _) | (_, SuperblockError::Damaged(a)) => Err(open(format!(
            "one superblock is damaged ({a}) and the other is not there; restore it from a copy, or clear its first \
             MiB if its making was interrupted"
        ))),
        _ => Err(open(
            "it has no karri magic; was it made by karri? An empty store must begin with a MiB of zeros".into(),
        )),
    }
}

/// Makes an empty store on a blank disk.
///
/// # Errors
/// `Open` when the disk is not blank or too small.
pub async fn format<D: Disk>(disk: &D, name: &str, uuid: [u8; 16], log_bytes: Option<u64>) -> Result<(), BulkError> {
    let open = |why: String| BulkError::Open { what: name.to_owned(), why };
    if let Found::Store(_) = superblock(disk, name).await? {
        return Err(open("it already is a karri store".into()));
    }
    let geometry = Geometry::new(disk.size(), log_bytes).map_err(open)?;
    // Zeroed and allocated: the log never finds a sparse file's device full.
    disk.write_zeroes(geometry.log_at(0), 2 * geometry.log_bytes, false).await?;
    disk.flush().await?;
    let superblock = Superblock {
        uuid,
        generation: 1,
        geometry,
        log_id: 0,
        log_durable: 0,
        log_area: 0,
        clean: true,
        epoch: 0,
        incarnation_ceiling: 0,
    };
    Ok(write_superblock(disk, &superblock).await?)
}

/// A window over the log.
struct LogReader<'a, D> {
    disk: &'a D,
    start: u64,
    end: u64,
    window: Buf,
    window_at: u64,
}

impl<D: Disk> LogReader<'_, D> {
    /// `len` bytes at `at` (counted in the area), or what is left of the area.
    async fn bytes(&mut self, at: u64, len: u64) -> Result<&[u8], BulkError> {
        let to = (at + len).min(self.end - self.start);
        if at < self.window_at || to > self.window_at + self.window.len() as u64 {
            let n = len.max(1 << 20).next_multiple_of(UNIT).min(self.end - self.start - at);
            let (result, buf) = self.disk.read(self.start + at, Buf::zeroed(n as usize)).await;
            result?;
            (self.window, self.window_at) = (buf, at);
        }
        Ok(&self.window.bytes()[(at - self.window_at) as usize..(to - self.window_at) as usize])
    }
}

/// Replays the log that the superblock names.
///
/// # Errors
/// `Open` when a group that was durable is damaged.
pub async fn replay<D: Disk>(disk: &D, name: &str, superblock: &Superblock) -> Result<Replayed, BulkError> {
    let geometry = &superblock.geometry;
    let start = geometry.log_at(superblock.log_area.into());
    let end = start + geometry.log_bytes;
    let mut reader = LogReader { disk, start, end, window: Buf::zeroed(0), window_at: 0 };
    let damaged = |at: u64, why: &str| BulkError::Open {
        what: name.to_owned(),
        why: format!("its record log is damaged at byte {}: {why}; restore it from a copy", start + at),
    };
    let mut replayed = Replayed { ceiling: superblock.incarnation_ceiling, ..Replayed::default() };
    let (mut at, mut seq) = (0, 0);
    while at < geometry.log_bytes {
        let Some(header) = header(reader.bytes(at, UNIT).await?, superblock, geometry) else { break };
        if header.seq != seq || at + header.group_len() > geometry.log_bytes {
            break;
        }
        let Some(payload) = header.payload(reader.bytes(at, header.group_len()).await?) else { break };
        let records = Record::decode_all(payload).map_err(|why| damaged(at, &why))?;
        replayed.ceiling = replayed.ceiling.max(header.incarnation_ceiling);
        replayed.unproven.clear();
        for record in records {
            if let Record::Seal(seal) = &record
                && header.unproven
                && at >= superblock.log_durable
            {
                replayed.unproven.push(seal.id);
            }
            replayed.apply(record);
        }
        at += header.group_len();
        seq += 1;
    }
    if at < superblock.log_durable {
        return Err(damaged(at, "the superblock says that more was durable"));
    }
    // A group is written only after the one before it was durable: a later one means that this one is no torn tail.
    let search_end = (at + geometry.group_max() as u64 + UNIT).min(geometry.log_bytes);
    let mut ahead = at + UNIT;
    while ahead < search_end {
        if header(reader.bytes(ahead, UNIT).await?, superblock, geometry).is_some_and(|h| h.seq > seq) {
            return Err(damaged(at, "a later group is whole"));
        }
        ahead += UNIT;
    }
    Ok(replayed)
}

fn header(block: &[u8], superblock: &Superblock, geometry: &Geometry) -> Option<GroupHeader> {
    let header = GroupHeader::decode(block)?;
    let ours = header.uuid == superblock.uuid && header.log_id == superblock.log_id;
    (ours && header.group_len() <= geometry.group_max() as u64).then_some(header)
}
