//! `MemoryBulk`: the store's twin in memory, for tests of everything above the seam.
//!
//! It runs on any executor (no future waits), from any thread, and takes the contract at its word: a fresh extent holds
//! junk, a stale handle is refused, and [`MemoryBulk::crash`] forgets whatever was not made durable. Switches make the next calls
//! fail ([`MemoryBulk::fail_after`]) or a stored bit flip ([`MemoryBulk::rot_blob`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use karri_engine::buf::Buf;
use karri_engine::disk::DiskError;

use crate::{BlobId, BlobWriter, BulkError, BulkStore, EXTENT_BYTES, ExtentId, Usage, check_extent_range};

/// What an extent holds before it is written: not zeros, so that nobody relies on zeros.
const JUNK: u8 = 0xd5;
/// A blob's space is counted in these.
const UNIT: u64 = 4096;
const PAGE: usize = 4096;

/// A bulk store in memory. Clones share it.
#[derive(Debug, Clone)]
pub struct MemoryBulk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Clone, Default)]
struct State {
    total: u64,
    used: u64,
    next_blob: u64,
    blobs: BTreeMap<BlobId, Blob>,
    extents: HashMap<u32, Extent>,
    /// The last incarnation given out, by slot.
    incarnations: Vec<u32>,
    free_slots: Vec<u32>,
    /// Calls that still succeed; `None` is no limit.
    calls_left: Option<u64>,
    /// Counts crashes: a writer from before one may not seal after it.
    life: u64,
}

#[derive(Debug, Clone)]
struct Blob {
    data: Arc<Vec<u8>>,
    crc: u32,
}

#[derive(Debug, Clone)]
struct Extent {
    incarnation: u32,
    kept: bool,
    data: Vec<u8>,
    /// Pages as they were at the last flush, for those written since.
    undo: BTreeMap<usize, Vec<u8>>,
}

impl MemoryBulk {
    /// A store with room for `total` bytes.
    pub fn new(total: u64) -> Self {
        let state = State { total, next_blob: 1, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Lets `calls` more calls succeed; those after them fail as a broken disk does. `None` heals it.
    pub fn fail_after(&self, calls: Option<u64>) {
        self.lock().calls_left = calls;
    }

    /// Changes the room; less than is used is allowed.
    pub fn set_total(&self, total: u64) {
        self.lock().total = total;
    }

    /// Power loss: unsealed blobs, extents that were not kept and unflushed writes are gone, and writers from before
    /// cannot seal. Handles stay usable, as if opened again.
    pub fn crash(&self) {
        let mut state = self.lock();
        state.life += 1;
        state.calls_left = None;
        let mut free = Vec::new();
        state.extents.retain(|slot, e| {
            for (page, old) in std::mem::take(&mut e.undo) {
                e.data[page * PAGE..(page + 1) * PAGE].copy_from_slice(&old);
            }
            if !e.kept {
                free.push(*slot);
            }
            e.kept
        });
        free.sort_unstable();
        state.free_slots.extend(free);
        state.used = state.blobs.values().map(|b| space_of(b.data.len() as u64)).sum::<u64>()
            + state.extents.len() as u64 * EXTENT_BYTES;
    }

    /// Flips the lowest bit of the blob's byte `at`. False when there is no such byte.
    pub fn rot_blob(&self, blob: BlobId, at: u64) -> bool {
        let mut state = self.lock();
        let Some(b) = state.blobs.get_mut(&blob) else { return false };
        let Some(byte) = Arc::make_mut(&mut b.data).get_mut(at as usize) else { return false };
        *byte ^= 1;
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }
}

impl State {
    fn call(&mut self, op: &'static str, at: u64, len: u64) -> Result<(), BulkError> {
        match &mut self.calls_left {
            Some(0) => Err(DiskError::Io { op, at, len, why: "a test switched failure on".into() }.into()),
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn reserve(&mut self, wanted: u64) -> Result<(), BulkError> {
        let free = self.total.saturating_sub(self.used);
        if wanted > free {
            return Err(BulkError::NoSpace { wanted, free, total: self.total });
        }
        self.used += wanted;
        Ok(())
    }

    fn extent(&mut self, id: ExtentId) -> Result<&mut Extent, BulkError> {
        self.extents
            .get_mut(&id.slot)
            .filter(|e| e.incarnation == id.incarnation)
            .ok_or_else(|| BulkError::NotFound { what: id.to_string() })
    }
}

fn space_of(len: u64) -> u64 {
    len.next_multiple_of(UNIT).max(UNIT)
}

impl BulkStore for MemoryBulk {
    type Writer = MemoryWriter;
    type Begun = std::convert::Infallible;

    async fn create(&self, len: Option<u64>) -> Result<MemoryWriter, BulkError> {
        let mut state = self.lock();
        state.call("write", 0, 0)?;
        let reserved = space_of(len.unwrap_or(0));
        state.reserve(reserved)?;
        let id = BlobId(state.next_blob);
        state.next_blob += 1;
        Ok(MemoryWriter { store: self.clone(), id, data: Vec::new(), reserved, life: state.life, failed: None })
    }

    async fn read_blob(&self, blob: BlobId, at: u64, mut buf: Buf) -> (Result<(), BulkError>, Buf) {
        let mut state = self.lock();
        if let Err(e) = state.call("read", at, buf.len() as u64) {
            return (Err(e), buf);
        }
        let Some(b) = state.blobs.get(&blob).cloned() else {
            return (Err(BulkError::NotFound { what: blob.to_string() }), buf);
        };
        drop(state);
        let end = at.saturating_add(buf.len() as u64);
        if end > b.data.len() as u64 {
            return (Err(BulkError::NotFound { what: format!("{blob} up to byte {end}") }), buf);
        }
        if crc32c::crc32c(&b.data) != b.crc {
            let why = "its bytes do not match their checksum".to_owned();
            return (Err(BulkError::Corrupt { what: blob.to_string(), why }), buf);
        }
        buf.copy_from(0, &b.data[at as usize..end as usize]);
        (Ok(()), buf)
    }

    fn blob_len(&self, blob: BlobId) -> Option<u64> {
        self.lock().blobs.get(&blob).map(|b| b.data.len() as u64)
    }

    async fn delete(&self, blobs: Vec<BlobId>) -> Result<(), BulkError> {
        let mut state = self.lock();
        state.call("write", 0, 0)?;
        for id in blobs {
            if let Some(b) = state.blobs.remove(&id) {
                state.used -= space_of(b.data.len() as u64);
            }
        }
        Ok(())
    }

    fn list(&self, after: BlobId, limit: usize) -> Vec<BlobId> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.lock().blobs.range((Excluded(after), Unbounded)).map(|(id, _)| *id).take(limit).collect()
    }

    fn alloc_extent(&self) -> Result<ExtentId, BulkError> {
        let mut state = self.lock();
        state.reserve(EXTENT_BYTES)?;
        let slot = state.free_slots.pop().unwrap_or_else(|| {
            state.incarnations.push(0);
            state.incarnations.len() as u32 - 1
        });
        state.incarnations[slot as usize] += 1;
        let incarnation = state.incarnations[slot as usize];
        let data = vec![JUNK; EXTENT_BYTES as usize];
        state.extents.insert(slot, Extent { incarnation, kept: false, data, undo: BTreeMap::new() });
        Ok(ExtentId { slot, incarnation })
    }

    async fn keep_extents(&self, extents: Vec<ExtentId>) -> Result<(), BulkError> {
        let mut state = self.lock();
        state.call("write", 0, 0)?;
        for id in &extents {
            state.extent(*id)?;
        }
        for id in extents {
            let e = state.extent(id)?;
            e.kept = true;
            e.undo.clear();
        }
        Ok(())
    }

    async fn free_extents(&self, extents: Vec<ExtentId>) -> Result<(), BulkError> {
        let mut state = self.lock();
        state.call("write", 0, 0)?;
        for id in extents {
            if state.extent(id).is_ok() {
                state.extents.remove(&id.slot);
                state.free_slots.push(id.slot);
                state.used -= EXTENT_BYTES;
            }
        }
        Ok(())
    }

    fn kept_extents(&self) -> Vec<ExtentId> {
        let state = self.lock();
        let kept = state.extents.iter().filter(|(_, e)| e.kept);
        let mut ids: Vec<_> = kept.map(|(&slot, e)| ExtentId { slot, incarnation: e.incarnation }).collect();
        ids.sort_unstable();
        ids
    }

    async fn read_extent(&self, extent: ExtentId, at: u64, mut buf: Buf) -> (Result<(), BulkError>, Buf) {
        let mut state = self.lock();
        let result = check_extent_range("read", at, buf.len())
            .and_then(|()| state.call("read", at, buf.len() as u64))
            .and_then(|()| state.extent(extent))
            .map(|e| buf.copy_from(0, &e.data[at as usize..at as usize + buf.len()]));
        (result, buf)
    }

    async fn write_extent(&self, extent: ExtentId, at: u64, buf: Buf) -> (Result<(), BulkError>, Buf) {
        let mut state = self.lock();
        let result = check_extent_range("write", at, buf.len())
            .and_then(|()| state.call("write", at, buf.len() as u64))
            .and_then(|()| state.extent(extent))
            .map(|e| {
                let (at, end) = (at as usize, at as usize + buf.len());
                for page in at / PAGE..end.div_ceil(PAGE) {
                    let old = &e.data[page * PAGE..(page + 1) * PAGE];
                    e.undo.entry(page).or_insert_with(|| old.to_vec());
                }
                buf.copy_to(0, &mut e.data[at..end]);
            });
        (result, buf)
    }

    async fn flush(&self) -> Result<(), BulkError> {
        let mut state = self.lock();
        state.call("flush", 0, 0)?;
        for e in state.extents.values_mut() {
            e.undo.clear();
        }
        Ok(())
    }

    fn usage(&self) -> Usage {
        let state = self.lock();
        Usage { total: state.total, used: state.used }
    }
}

/// A blob being written to a [`MemoryBulk`].
#[derive(Debug)]
pub struct MemoryWriter {
    store: MemoryBulk,
    id: BlobId,
    data: Vec<u8>,
    reserved: u64,
    life: u64,
    failed: Option<BulkError>,
}

impl BlobWriter for MemoryWriter {
    fn id(&self) -> BlobId {
        self.id
    }

    async fn append(&mut self, buf: Buf) -> Result<(), BulkError> {
        if let Some(e) = &self.failed {
            return Err(e.clone());
        }
        let result = self.take(&buf);
        self.failed = result.clone().err();
        result
    }

    async fn seal(mut self) -> Result<u64, BulkError> {
        if let Some(e) = self.failed.take() {
            return Err(e);
        }
        let len = self.data.len() as u64;
        let mut state = self.store.lock();
        state.call("write", 0, len)?;
        if state.life != self.life {
            return Err(DiskError::Closed.into());
        }
        let data = std::mem::take(&mut self.data);
        state.used = state.used - self.reserved + space_of(len);
        let crc = crc32c::crc32c(&data);
        state.blobs.insert(self.id, Blob { data: Arc::new(data), crc });
        drop(state);
        self.reserved = 0;
        Ok(len)
    }
}

impl MemoryWriter {
    fn take(&mut self, buf: &Buf) -> Result<(), BulkError> {
        let mut state = self.store.lock();
        let (at, len) = (self.data.len(), self.data.len() + buf.len());
        state.call("write", at as u64, buf.len() as u64)?;
        let more = space_of(len as u64).saturating_sub(self.reserved);
        state.reserve(more)?;
        self.reserved += more;
        drop(state);
        self.data.resize(len, 0);
        buf.copy_to(0, &mut self.data[at..]);
        Ok(())
    }
}

impl Drop for MemoryWriter {
    fn drop(&mut self) {
        let mut state = self.store.lock();
        // A crash already gave this writer's space back.
        if state.life == self.life {
            state.used -= self.reserved;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::conformance::{self, get, owned, put};

    fn now<T>(future: impl Future<Output = T>) -> T {
        future.now_or_never().expect("memory never waits")
    }

    #[test]
    fn memory_conforms() {
        now(conformance::all(async |total| MemoryBulk::new(total)));
    }

    #[test]
    fn a_crash_keeps_what_was_made_durable_and_nothing_else() {
        now(async {
            let store = MemoryBulk::new(16 << 20);
            let sealed = put(&store, b"sealed", 6, None).await.unwrap();
            let mut writer = store.create(None).await.unwrap();
            writer.append(owned(b"not sealed")).await.unwrap();
            let (kept, lost) = (store.alloc_extent().unwrap(), store.alloc_extent().unwrap());
            store.write_extent(kept, 0, owned(&[1; 4096])).await.0.unwrap();
            store.keep_extents(vec![kept]).await.unwrap();
            store.write_extent(kept, 0, owned(&[2; 4096])).await.0.unwrap();
            store.crash();
            assert!(writer.seal().await.is_err());
            assert_eq!(store.list(BlobId(0), 9), [sealed]);
            assert_eq!(get(&store, sealed, 0, 6).await.unwrap(), b"sealed");
            assert_eq!(store.kept_extents(), [kept]);
            assert_eq!(store.read_extent(kept, 0, Buf::zeroed(4096)).await.1.bytes(), [1; 4096]);
            assert!(store.read_extent(lost, 0, Buf::zeroed(4096)).await.0.is_err());
            assert_eq!(store.usage().used, 4096 + EXTENT_BYTES);
        });
    }

    #[test]
    fn switches_make_it_fail() {
        now(async {
            let store = MemoryBulk::new(16 << 20);
            let id = put(&store, &[7; 5000], 5000, None).await.unwrap();
            store.fail_after(Some(1));
            assert!(get(&store, id, 0, 1).await.is_ok());
            assert!(matches!(get(&store, id, 0, 1).await, Err(BulkError::Disk(_))));
            assert!(matches!(store.delete(vec![id]).await, Err(BulkError::Disk(_))));
            store.fail_after(None);
            assert!(store.rot_blob(id, 4999));
            assert!(matches!(get(&store, id, 0, 1).await, Err(BulkError::Corrupt { .. })));
        });
    }
}
