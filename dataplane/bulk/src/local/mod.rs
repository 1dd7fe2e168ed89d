//! `LocalStore`: bulk data on one file or block device, over [`Disk`]. `docs/local-store.md` is its format page.
//!
//! | module | holds |
//! |---|---|
//! | [`mod@format`] | superblock, log groups, sizes: what lies where |
//! | [`record`] | the log's records |
//! | [`space`] | which units are free (pure) |
//! | `pool` | space and record room, shared by the cores, and claims on them |
//! | `slots` | one atomic word for each extent slot |
//! | `log` | group commit and compaction |
//! | `flush` | one flush at a time, shared |
//! | `blob` | the writer and verified reads |
//! | `recover` | making and opening a store |
//! | `file` | opening a file or block device |
//!
//! One store, several cores: [`LocalStore`] is one core's handle, with that core's disk; [`Sharer`] takes it to another.
//! What is shared stands behind short locks that are never held over an await; reads and writes of extents take none.
//!
//! What it promises beyond the seam: an error on the log makes it refuse changes until it is opened again; a damaged
//! superblock is replaced by the other copy; a damaged log is refused, but for damage of the very last group after a
//! crash, which looks like a torn write. It needs an executor of `karri-engine` (a core or the simulation).

mod blob;
mod file;
mod flush;
pub mod format;
mod log;
mod pool;
pub mod record;
mod recover;
mod slots;
pub mod space;

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use karri_engine::buf::Buf;
use karri_engine::disk::{Dir, Disk, DiskError};
use karri_engine::landing::Landings;

pub use blob::LocalWriter;
pub use file::{open_again, open_file};

use crate::{BlobId, BulkError, BulkStore, EXTENT_BYTES, ExtentId, Usage, check_extent_range};
use blob::{Blob, Yard};
use flush::Flushes;
use format::{Geometry, SLOT_UNITS, Superblock};
use log::{Effect, LogState, Op};
use pool::Pool;
use record::{DELETE_BYTES, Record, Run, extents_max};
use recover::Found;
use slots::{Access, Slots};
use space::Space;

/// Bits of a blob id below the epoch: 2^40 blobs in one opening, 2^24 openings.
const EPOCH_SHIFT: u32 = 40;

/// How a store is made.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Bytes of one log area; `None`: a 256th of the disk, at least 1 MiB.
    pub log_bytes: Option<u64>,
    /// `None`: random.
    pub uuid: Option<[u8; 16]>,
}

/// What all cores share.
#[derive(Debug)]
struct Shared {
    name: String,
    uuid: [u8; 16],
    geometry: Geometry,
    pool: Arc<Pool>,
    slots: Slots,
    blobs: RwLock<BTreeMap<BlobId, Arc<Blob>>>,
    next_blob: AtomicU64,
    flushes: Flushes,
    log: Mutex<LogState>,
}

impl Shared {
    fn blobs(&self) -> RwLockReadGuard<'_, BTreeMap<BlobId, Arc<Blob>>> {
        self.blobs.read().expect("no panic under this lock")
    }

    fn blobs_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<BlobId, Arc<Blob>>> {
        self.blobs.write().expect("no panic under this lock")
    }

    fn next_id(&self) -> BlobId {
        BlobId(self.next_blob.fetch_add(1, Ordering::Relaxed))
    }

    /// A sparse file's device that is full is no room to the caller.
    fn no_space_below(&self, e: BulkError, wanted: u64) -> BulkError {
        match e {
            BulkError::Disk(DiskError::NoSpace { len, .. }) => {
                let total = self.pool.usage().total;
                BulkError::NoSpace { wanted: wanted.max(len), free: 0, total }
            }
            other => other,
        }
    }

    fn access(&self, extent: ExtentId) -> Result<Access<'_>, BulkError> {
        self.slots.access(extent).map_err(|released| {
            self.release(released);
            not_found(extent)
        })
    }

    fn release(&self, slot: Option<u32>) {
        if let Some(slot) = slot {
            self.pool.free_slot(slot);
        }
    }
}

fn not_found(extent: ExtentId) -> BulkError {
    BulkError::NotFound { what: extent.to_string() }
}

/// A store, as one core sees it.
#[derive(Clone)]
pub struct LocalStore<D: Disk> {
    disk: D,
    shared: Arc<Shared>,
    yard: Yard,
}

impl<D: Disk> std::fmt::Debug for LocalStore<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalStore").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

/// A store on its way to another core.
#[derive(Debug, Clone)]
pub struct Sharer(Arc<Shared>);

impl Sharer {
    /// The store as a core sees it whose `disk` is the same file or device, opened there.
    pub fn attach<D: Disk>(&self, disk: D) -> LocalStore<D> {
        LocalStore { disk, shared: self.0.clone(), yard: Yard::default() }
    }
}

impl<D: Disk> LocalStore<D> {
    /// Makes an empty store on a disk that begins with zeros. `name` is what errors call it, such as a path.
    ///
    /// # Errors
    /// `Open` when there is something already or too little space.
    pub async fn format(disk: &D, name: &str, options: Options) -> Result<(), BulkError> {
        let uuid = options.uuid.unwrap_or_else(rand::random);
        recover::format(disk, name, uuid, options.log_bytes).await
    }

    /// Opens a store, recovering it as needed. At most one opening at a time: the caller holds the file's lock.
    ///
    /// # Errors
    /// `Open` with the reason and what to try; `Disk`.
    pub async fn open(disk: D, name: &str) -> Result<Self, BulkError> {
        match recover::superblock(&disk, name).await? {
            Found::Store(superblock) => Self::recover(disk, name, *superblock).await,
            Found::Blank => Err(BulkError::Open {
                what: name.to_owned(),
                why: "it has no karri magic, only zeros; was it ever formatted?".into(),
            }),
        }
    }

    /// Opens a store, making it first where the disk begins with zeros.
    ///
    /// # Errors
    /// As [`format`](Self::format) and [`open`](Self::open).
    pub async fn open_or_format(disk: D, name: &str, options: Options) -> Result<Self, BulkError> {
        if let Found::Blank = recover::superblock(&disk, name).await? {
            Self::format(&disk, name, options).await?;
        }
        Self::open(disk, name).await
    }

    async fn recover(disk: D, name: &str, mut superblock: Superblock) -> Result<Self, BulkError> {
        let replayed = recover::replay(&disk, name, &superblock).await?;
        let geometry = superblock.geometry;
        let damaged = |why: String| BulkError::Open { what: name.to_owned(), why };

        let mut space = Space::new(geometry.slots);
        for (&slot, &incarnation) in &replayed.extents {
            let run = Run { start: u64::from(slot) * u64::from(SLOT_UNITS), units: SLOT_UNITS };
            if !space.mark(run) {
                let extent = ExtentId { slot, incarnation };
                return Err(damaged(format!("{extent} is outside the store or in use twice")));
            }
        }
        for seal in replayed.blobs.values() {
            if !seal.runs.iter().all(|run| space.mark(*run)) {
                return Err(damaged(format!("{} is outside the store or shares space with another", seal.id)));
            }
        }

        superblock.epoch += 1;
        superblock.clean = false;
        superblock.incarnation_ceiling = replayed.ceiling.saturating_add(slots::AHEAD);
        if u64::from(superblock.epoch) >> (64 - EPOCH_SHIFT) != 0 {
            return Err(damaged("it was opened 2^24 times; copy it into a new store".into()));
        }
        let slots = Slots::new(geometry.slots, replayed.ceiling, superblock.incarnation_ceiling);
        let pool = Arc::new(Pool::new(space, &geometry));
        for (slot, incarnation) in replayed.extents {
            slots.restore(ExtentId { slot, incarnation });
            pool.restore_slot();
        }
        let restore = |seal: record::Seal| {
            let blob = Blob::new(seal.id, seal.len, pool.restore(seal.runs), seal.crcs);
            (seal.id, Arc::new(blob))
        };
        let blobs = replayed.blobs.into_values().map(restore).collect();
        let store = Self {
            disk,
            yard: Yard::default(),
            shared: Arc::new(Shared {
                name: name.to_owned(),
                uuid: superblock.uuid,
                geometry,
                slots,
                pool,
                blobs: RwLock::new(blobs),
                next_blob: AtomicU64::new(u64::from(superblock.epoch) << EPOCH_SHIFT | 1),
                flushes: Flushes::default(),
                log: Mutex::new(LogState::reopened(superblock)),
            }),
        };
        store.drop_unwritten(&replayed.unproven).await;
        // Ids and groups of this opening are told from all earlier ones before the first of them is written.
        store.begin_epoch().await?;
        Ok(store)
    }

    /// Drops blobs whose record was written but whose data was lost with the power: they were never acknowledged.
    async fn drop_unwritten(&self, unproven: &[BlobId]) {
        for id in unproven {
            let Some(blob) = self.blob(*id) else { continue };
            // A disk that cannot read is not a proof: the blob stays, and says so when it is read.
            if let Err(BulkError::Corrupt { why, .. }) = self.check_blob(&blob).await {
                tracing::warn!(store = %self.shared.name, blob = %id, error = %why, "a blob was not wholly written before the crash");
                self.shared.blobs_mut().remove(id);
            }
        }
    }

    /// Handles for other cores.
    pub fn sharer(&self) -> Sharer {
        Sharer(self.shared.clone())
    }

    /// Made at format.
    pub fn uuid(&self) -> [u8; 16] {
        self.shared.uuid
    }

    /// Ends all changes and marks the store as closed in order. Callers have finished; open writers cannot seal any more.
    ///
    /// # Errors
    /// When the last group or the superblock cannot be written; the store is then recovered at the next open.
    pub async fn close(&self) -> Result<(), BulkError> {
        self.yard.settle().await;
        self.commit(Op::new(Vec::new(), Effect::Close, None)).await
    }

    /// Reads every byte of a blob and verifies it.
    ///
    /// # Errors
    /// `Corrupt`, `NotFound`, `Disk`.
    pub async fn scrub(&self, blob: BlobId) -> Result<(), BulkError> {
        match self.blob(blob) {
            Some(blob) => self.check_blob(&blob).await,
            None => Err(BulkError::NotFound { what: blob.to_string() }),
        }
    }

    fn blob(&self, id: BlobId) -> Option<Arc<Blob>> {
        self.shared.blobs().get(&id).cloned()
    }

    fn extent_at(&self, extent: ExtentId, at: u64) -> u64 {
        self.shared.geometry.slot_at(extent.slot) + at
    }
}

/// A read's access: ended when the read is over or nobody waits for it any more.
struct Reading<'a>(&'a Shared, Option<Access<'a>>);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.release(self.1.take().and_then(Access::end));
    }
}

/// A counted access of a transfer under way. Lost, it is never ended: the disk may still write to the slot.
#[derive(Debug)]
pub struct Begun(u32);

impl<D: Disk> BulkStore for LocalStore<D> {
    type Writer = LocalWriter<D>;
    type Begun = Begun;

    async fn create(&self, len: Option<u64>) -> Result<LocalWriter<D>, BulkError> {
        self.begin_blob(len).await
    }

    async fn read_blob(&self, blob: BlobId, at: u64, buf: Buf) -> (Result<(), BulkError>, Buf) {
        match self.blob(blob) {
            Some(blob) => self.read_range(&blob, at, buf).await,
            None => (Err(BulkError::NotFound { what: blob.to_string() }), buf),
        }
    }

    fn blob_len(&self, blob: BlobId) -> Option<u64> {
        self.shared.blobs().get(&blob).map(|b| b.len)
    }

    async fn delete(&self, mut blobs: Vec<BlobId>) -> Result<(), BulkError> {
        {
            // Whatever is not in the map is gone durably already, or was never sealed.
            let known = self.shared.blobs();
            blobs.retain(|id| known.contains_key(id));
        }
        let each = self.shared.geometry.record_max() / DELETE_BYTES;
        let commits = blobs.chunks(each).map(|ids| {
            let mut records = Vec::with_capacity(ids.len() * DELETE_BYTES);
            ids.iter().for_each(|id| Record::Delete(*id).encode(&mut records));
            self.commit(Op::new(records, Effect::Delete(ids.to_vec()), None))
        });
        futures_util::future::join_all(commits).await.into_iter().collect()
    }

    fn list(&self, after: BlobId, limit: usize) -> Vec<BlobId> {
        self.shared.blobs().range((Excluded(after), Unbounded)).map(|(id, _)| *id).take(limit).collect()
    }

    fn alloc_extent(&self) -> Result<ExtentId, BulkError> {
        self.shared.alive()?;
        let slot = self.shared.pool.take_slot()?;
        self.shared.slots.allocate(slot).ok_or_else(|| {
            self.shared.pool.free_slot(slot);
            let Usage { total, used } = self.usage();
            BulkError::NoSpace { wanted: EXTENT_BYTES, free: total - used, total }
        })
    }

    async fn keep_extents(&self, extents: Vec<ExtentId>) -> Result<(), BulkError> {
        let live = |ids: &[ExtentId]| match ids.iter().find(|id| !self.shared.slots.is_live(**id)) {
            Some(id) => Err(not_found(*id)),
            None => Ok(()),
        };
        live(&extents)?;
        let each = extents_max(self.shared.geometry.record_max());
        let commits = extents.chunks(each).map(|ids| {
            let mut records = Vec::new();
            Record::Keep(ids.to_vec()).encode(&mut records);
            let op = Op::new(records, Effect::Keep(ids.to_vec()), None);
            // Asked where the order of keeps and frees is decided.
            self.commit_checked(op, move || live(ids))
        });
        futures_util::future::join_all(commits).await.into_iter().collect()
    }

    async fn free_extents(&self, extents: Vec<ExtentId>) -> Result<(), BulkError> {
        let each = extents_max(self.shared.geometry.record_max());
        let commits = extents.chunks(each).map(|ids| {
            let mut records = Vec::new();
            Record::Free(ids.to_vec()).encode(&mut records);
            let op = Op::new(records, Effect::Free(ids.to_vec()), None);
            self.commit_checked(op, move || {
                for id in ids {
                    // A stale id is no error: whose extent it was freed it.
                    let _ = self.shared.slots.doom(*id);
                }
                Ok(())
            })
        });
        futures_util::future::join_all(commits).await.into_iter().collect()
    }

    fn kept_extents(&self) -> Vec<ExtentId> {
        self.shared.slots.kept(0).collect()
    }

    async fn read_extent(&self, extent: ExtentId, at: u64, buf: Buf) -> (Result<(), BulkError>, Buf) {
        let access = check_extent_range("read", at, buf.len()).and_then(|()| self.shared.access(extent));
        let access = match access {
            Ok(access) => Reading(&self.shared, Some(access)),
            Err(e) => return (Err(e), buf),
        };
        let (result, buf) = self.disk.read(self.extent_at(extent, at), buf).await;
        drop(access);
        (result.map_err(BulkError::from), buf)
    }

    async fn write_extent(&self, extent: ExtentId, at: u64, buf: Buf) -> (Result<(), BulkError>, Buf) {
        let access = check_extent_range("write", at, buf.len()).and_then(|()| self.shared.access(extent));
        let access = match access {
            Ok(access) => access,
            Err(e) => return (Err(e), buf),
        };
        // Should this future be dropped here, the access is never ended: the disk may still write to the slot.
        let (result, buf) = self.disk.write(self.extent_at(extent, at), buf, false).await;
        self.shared.release(access.end());
        (result.map_err(|e| self.shared.no_space_below(e.into(), 0)), buf)
    }

    fn begin(&self, dir: Dir, extent: ExtentId, at: u64, buf: Buf, to: &Landings, token: u64) -> Result<Begun, Buf> {
        let access = check_extent_range(dir.name(), at, buf.len()).and_then(|()| self.shared.access(extent));
        let Ok(access) = access else { return Err(buf) };
        match self.disk.begin(dir, self.extent_at(extent, at), buf, to, token) {
            Ok(()) => Ok(Begun(access.keep())),
            Err(buf) => {
                self.shared.release(access.end());
                Err(buf)
            }
        }
    }

    fn end(&self, begun: Begun) {
        self.shared.release(self.shared.slots.end(begun.0));
    }

    async fn flush(&self) -> Result<(), BulkError> {
        self.yard.sweep();
        Ok(flush::flush(&self.shared, &self.disk).await?)
    }

    fn usage(&self) -> Usage {
        self.yard.sweep();
        self.shared.pool.usage()
    }
}

#[cfg(test)]
mod tests;
