//! A volume on the extents of a bulk store, thin and in place, through a map in the metadata store.
//!
//! ```text
//! write   mapped block        -> in place, nothing else
//!         not mapped          -> (new) extent, bytes written, then the block's bit set in memory: the entry is dirty
//! flush   dirty entries' bits as they are now -> data synced -> one commit -> old extents freed
//! extents kept (owned for good) some at a time ahead of use, given back at close
//!         either way          -> changed entries are noted in the journal before the answer (kill -9; [`super::journal`])
//! read    plan over own map, then parents' -> extents and zeros
//! ```
//!
//! Promises, and what keeps them:
//! - **Nobody's old bytes show.** A bit is set after its block's write completed, committed after the data was synced,
//!   and an extent is given back after the commit that unmaps it and after the last read that began before. So at any
//!   moment a durable bit stands for synced bytes of this volume.
//! - **Old or new.** Mapped blocks are overwritten in place; an unmapped block is its old self until the commit.
//! - **No delta, no commit; nothing written, no sync.** Flushes that wait for a running one share the next.
//! - Writes that do not cover whole 4 KiB blocks read the rest, alone on those blocks ([`super::order`]).
//!
//! After a failed data sync nobody knows what the disk holds, so the volume stops until it is opened again. A failed
//! commit leaves the entries dirty and the next flush tries again.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use futures_util::future::join_all;
use karri_bulk::{BulkError, BulkStore, EXTENT_BYTES, ExtentId};
use karri_engine::buf::Buf;
use karri_engine::disk::Dir;
use karri_engine::landing::Landings;
use karri_meta::{Batch, MetaStore, Scan};

use super::journal::Journal;
use super::order::{Changed, Guard, Ranges, Readers};
use super::{Done, SECTOR_BYTES, Volume, check_bounds};
use crate::error::Error;
use crate::map::{BLOCK_BYTES, Bits, Entry, Map, Piece, Source, plan, record};

/// A discard commits by itself once it would leave so many extents waiting for the next flush.
const FREEING_MAX: usize = 64;
/// Extents taken from the store at a time: one durable record for all of them.
const SPARE: usize = 16;
/// Map records loaded at a time.
const LOAD_BATCH: usize = 4096;

/// A volume's counters, readable from any thread.
#[derive(Debug, Default)]
pub struct Stats {
    /// Completed reads.
    pub reads: AtomicU64,
    /// Bytes read.
    pub read_bytes: AtomicU64,
    /// Completed writes.
    pub writes: AtomicU64,
    /// Bytes written.
    pub write_bytes: AtomicU64,
    /// Flushes that synced or committed something.
    pub flushes: AtomicU64,
    /// Requests that failed.
    pub errors: AtomicU64,
    /// Bytes of extents that the volume owns.
    pub allocated_bytes: AtomicU64,
}

/// A volume on a bulk store's extents. Clones share it; it belongs to the core that opened it.
#[derive(Clone)]
pub struct ExtentVolume<B: BulkStore>(pub(super) Rc<Inner<B>>);

pub(super) struct Inner<B> {
    name: String,
    serial: u64,
    size: u64,
    bulk: B,
    meta: Arc<dyn MetaStore>,
    below: Vec<Arc<Map>>,
    state: RefCell<State>,
    ranges: Rc<Ranges>,
    readers: Readers,
    flush: FlushTurn,
    journal: OnceCell<Journal>,
    refilling: Cell<bool>,
    refilled: Changed,
    stats: Arc<Stats>,
}

struct State {
    map: Map,
    /// Entries that differ from their records.
    dirty: BTreeSet<u32>,
    /// Those of them that the journal had no room for: whoever relies on one flushes before it answers.
    unnoted: BTreeSet<u32>,
    /// Extents that are ours for good and that no entry names yet.
    spare: Vec<ExtentId>,
    /// Extents that the map no longer names, to be freed after the commit that says so.
    freeing: Vec<ExtentId>,
    /// Writes completed, and how many of them a sync covers.
    written: u64,
    synced: u64,
    stopped: Option<String>,
}

/// One flush at a time; those who come meanwhile share the next.
#[derive(Default)]
struct FlushTurn {
    running: Cell<bool>,
    begun: Cell<u64>,
    good: Cell<u64>,
    changed: Changed,
}

impl<B: BulkStore> ExtentVolume<B> {
    /// Opens a volume: its own map is loaded from `meta`, `below` are its parents' maps, nearest first.
    ///
    /// # Errors
    /// `Meta` or `Corrupt` when the map cannot be read.
    pub async fn open(
        name: &str,
        serial: u64,
        size: u64,
        bulk: B,
        meta: Arc<dyn MetaStore>,
        below: Vec<Arc<Map>>,
    ) -> Result<Self, Error> {
        let map = load_map(&*meta, serial, size).await?;
        let stats = Arc::new(Stats::default());
        stats.allocated_bytes.store(map.allocated_bytes(), Relaxed);
        let state = State {
            map,
            dirty: BTreeSet::new(),
            unnoted: BTreeSet::new(),
            spare: Vec::new(),
            freeing: Vec::new(),
            written: 0,
            synced: 0,
            stopped: None,
        };
        Ok(Self(Rc::new(Inner {
            name: name.to_owned(),
            serial,
            size,
            bulk,
            meta,
            below,
            state: RefCell::new(state),
            ranges: Rc::default(),
            readers: Readers::default(),
            flush: FlushTurn::default(),
            journal: OnceCell::new(),
            refilling: Cell::new(false),
            refilled: Changed::default(),
            stats,
        })))
    }

    /// From now on answered requests survive this process. Once, before the first request.
    pub fn set_journal(&self, journal: Journal) {
        // A second one would be a bug of the opener; the first holds.
        let _ = self.0.journal.set(journal);
    }

    /// Its counters.
    pub fn stats(&self) -> Arc<Stats> {
        self.0.stats.clone()
    }

    /// Flushes and gives back what was allocated for writes that never completed. No request may be under way.
    ///
    /// # Errors
    /// As `flush`.
    pub async fn close(&self) -> Result<(), Error> {
        self.0.flush().await?;
        let unused: Vec<_> = {
            let state = &mut *self.0.state.borrow_mut();
            let mut unused = std::mem::take(&mut state.spare);
            let failed = |e: &Entry| matches!(e, Entry::Partial(p) if p.extent.is_some() && p.data == Bits::EMPTY);
            let empty: Vec<u32> = state.map.entries().filter(|(_, e)| failed(e)).map(|(index, _)| index).collect();
            for index in empty {
                let mut parts = state.map.get(index).parts();
                unused.extend(parts.extent.take());
                state.map.set(index, parts.settle());
            }
            unused
        };
        if unused.is_empty() {
            return Ok(());
        }
        self.0.bulk.free_extents(unused).await.map_err(|e| self.0.bulk_error("free", e))
    }

    /// A copy of its map as it is now, for sealing a base.
    pub fn map(&self) -> Map {
        self.0.state.borrow().map.clone()
    }
}

/// The stored map of the volume with this serial.
///
/// # Errors
/// `Meta` or `Corrupt`.
pub async fn load_map(meta: &dyn MetaStore, serial: u64, size: u64) -> Result<Map, Error> {
    let mut map = Map::new(size.next_multiple_of(BLOCK_BYTES));
    let mut range = record::keys_of(serial);
    loop {
        let scan = Scan { range: range.clone(), limit: LOAD_BATCH, reverse: false };
        let pairs = meta.scan(scan).await.map_err(|source| Error::Meta {
            what: format!("map of volume serial {serial}"),
            op: "load",
            source,
        })?;
        for (key, value) in &pairs {
            let index = record::parse_key(key).map(|(_, index)| index).filter(|i| *i < map.extents());
            let Some(index) = index else {
                let what = format!("map record {}", key.escape_ascii());
                return Err(Error::Corrupt { what, why: format!("it lies outside a volume of {size} bytes") });
            };
            map.set(index, record::decode(key, value)?);
        }
        match pairs.last() {
            Some((last, _)) if pairs.len() == LOAD_BATCH => {
                range.start = [last, &b"\0"[..]].concat().into();
            }
            _ => return Ok(map),
        }
    }
}

/// What a transfer under way holds: its extent, and its turn (a read keeps extents from being freed, a write keeps
/// discards away). Dropped, it gives the turn back; the extent's access stays counted, as the disk may still write.
pub struct Begun<B: BulkStore> {
    volume: Rc<Inner<B>>,
    bulk: Option<B::Begun>,
    len: u64,
    turn: Turn,
}

enum Turn {
    Read(usize),
    Write { _range: Guard },
}

impl<B: BulkStore> Drop for Begun<B> {
    fn drop(&mut self) {
        if let Turn::Read(side) = self.turn {
            self.volume.readers.end(side);
        }
    }
}

impl<B: BulkStore> Volume for ExtentVolume<B> {
    type Begun = Begun<B>;

    fn name(&self) -> &str {
        &self.0.name
    }
    fn size(&self) -> u64 {
        self.0.size
    }
    async fn read(&self, at: u64, buf: Buf) -> Done {
        let len = buf.len() as u64;
        let done = match check_bounds("read", &self.0.name, at, len, self.0.size) {
            Ok(()) => self.0.read(at, buf).await,
            Err(e) => (Err(e), buf),
        };
        self.0.count(&done.0, &self.0.stats.reads, &self.0.stats.read_bytes, len);
        done
    }
    async fn write(&self, at: u64, buf: Buf, fua: bool) -> Done {
        let len = buf.len() as u64;
        let mut done = match self.0.check_change("write", at, len) {
            Ok(()) => self.0.write(at, buf).await,
            Err(e) => (Err(e), buf),
        };
        if fua && done.0.is_ok() {
            done.0 = Box::pin(self.0.flush()).await;
        }
        self.0.count(&done.0, &self.0.stats.writes, &self.0.stats.write_bytes, len);
        done
    }
    fn begin(&self, dir: Dir, at: u64, buf: Buf, to: &Landings, token: u64) -> Result<Begun<B>, Buf> {
        self.0.begin(dir, at, buf, to, token)
    }
    fn end(&self, mut begun: Begun<B>, done: bool) {
        if let Some(bulk) = begun.bulk.take() {
            self.0.bulk.end(bulk);
        }
        if !done {
            return;
        }
        let (stats, len) = (&self.0.stats, begun.len);
        match begun.turn {
            Turn::Read(_) => self.0.count(&Ok(()), &stats.reads, &stats.read_bytes, len),
            Turn::Write { .. } => {
                self.0.state.borrow_mut().written += 1;
                self.0.count(&Ok(()), &stats.writes, &stats.write_bytes, len);
            }
        }
    }
    async fn flush(&self) -> Result<(), Error> {
        Box::pin(self.0.flush()).await
    }
    async fn discard(&self, at: u64, len: u64) -> Result<(), Error> {
        self.0.check_change("discard", at, len)?;
        self.0.unmap(at, len).await
    }
    async fn write_zeroes(&self, at: u64, len: u64) -> Result<(), Error> {
        self.0.check_change("write zeroes", at, len)?;
        // The ends that do not fill a block are written; the blocks between are unmapped.
        let end = at + len;
        let first = at.next_multiple_of(BLOCK_BYTES).min(end);
        let last = if end == self.0.size { end } else { (end - end % BLOCK_BYTES).max(first) };
        for (from, to) in [(at, first), (last, end)] {
            if from < to {
                self.0.write(from, Buf::zeroed((to - from) as usize)).await.0?;
            }
        }
        self.0.unmap(first, last - first).await
    }
}

impl<B: BulkStore> Inner<B> {
    fn count(&self, outcome: &Result<(), Error>, ops: &AtomicU64, bytes: &AtomicU64, len: u64) {
        match outcome {
            Ok(()) => {
                ops.fetch_add(1, Relaxed);
                bytes.fetch_add(len, Relaxed);
            }
            Err(_) => drop(self.stats.errors.fetch_add(1, Relaxed)),
        }
    }

    fn check_change(&self, op: &'static str, at: u64, len: u64) -> Result<(), Error> {
        check_bounds(op, &self.name, at, len, self.size)?;
        self.check_running()
    }

    fn check_running(&self) -> Result<(), Error> {
        match &self.state.borrow().stopped {
            None => Ok(()),
            Some(why) => Err(Error::Stopped { volume: self.name.clone(), why: why.clone() }),
        }
    }

    fn bulk_error(&self, op: &'static str, source: BulkError) -> Error {
        let volume = self.name.clone();
        match source {
            BulkError::NoSpace { .. } => Error::NoSpace { volume, source },
            _ => Error::Bulk { volume, op, source },
        }
    }

    // ---- both ways, the common case ----

    /// Whole blocks inside one extent of our own that all hold data: what is written there changes no map entry.
    fn begin(self: &Rc<Self>, dir: Dir, at: u64, buf: Buf, to: &Landings, token: u64) -> Result<Begun<B>, Buf> {
        let len = buf.len() as u64;
        let (index, inside) = ((at / EXTENT_BYTES) as u32, at % EXTENT_BYTES);
        let whole = len > 0 && at.is_multiple_of(BLOCK_BYTES) && len.is_multiple_of(BLOCK_BYTES);
        if !whole || inside + len > EXTENT_BYTES || at.checked_add(len).is_none_or(|end| end > self.size) {
            return Err(buf);
        }
        let extent = {
            let state = self.state.borrow();
            match state.map.get(index) {
                _ if dir == Dir::Write && (state.stopped.is_some() || state.unnoted.contains(&index)) => None,
                Entry::Full(x) => Some(*x),
                Entry::Partial(p) => {
                    let blocks = Bits::range((inside / BLOCK_BYTES) as usize, ((inside + len) / BLOCK_BYTES) as usize);
                    p.extent.filter(|_| p.data.has_all(blocks))
                }
                _ => None,
            }
        };
        let Some(extent) = extent else { return Err(buf) };
        let turn = match dir {
            Dir::Read => Turn::Read(self.readers.begin()),
            Dir::Write => match self.ranges.try_take(at..at + len) {
                Some(range) => Turn::Write { _range: range },
                None => return Err(buf),
            },
        };
        let mut begun = Begun { volume: self.clone(), bulk: None, len, turn };
        begun.bulk = Some(self.bulk.begin(dir, extent, inside, buf, to, token)?);
        Ok(begun)
    }

    // ---- reading ----

    async fn read(&self, at: u64, buf: Buf) -> Done {
        let _reading = self.readers.enter();
        let len = buf.len() as u64;
        if len == 0 {
            return (Ok(()), buf);
        }
        if !at.is_multiple_of(BLOCK_BYTES) || !len.is_multiple_of(BLOCK_BYTES) {
            return Box::pin(self.read_unaligned(at, buf)).await;
        }
        // The common case first: all in one extent.
        let (index, inside) = ((at / EXTENT_BYTES) as u32, at % EXTENT_BYTES);
        let full = match self.state.borrow().map.get(index) {
            Entry::Full(x) if inside + len <= EXTENT_BYTES => Some(*x),
            _ => None,
        };
        match full {
            Some(x) => {
                let (outcome, buf) = self.bulk.read_extent(x, inside, buf).await;
                (outcome.map_err(|e| self.bulk_error("read", e)), buf)
            }
            None => Box::pin(self.read_pieces(at, buf)).await,
        }
    }

    async fn read_pieces(&self, at: u64, mut buf: Buf) -> Done {
        let mut pieces = Vec::new();
        plan(&self.state.borrow().map, &self.below, at, buf.len() as u64, &mut pieces);
        if let [Piece { source: Source::Extent(x, from), .. }] = pieces[..] {
            let (outcome, buf) = self.bulk.read_extent(x, from, buf).await;
            return (outcome.map_err(|e| self.bulk_error("read", e)), buf);
        }
        let mut reads = Vec::new();
        let mut here = 0;
        for piece in pieces {
            let len = piece.len as usize;
            match piece.source {
                Source::Zero => buf.zero(here, len),
                Source::Extent(x, from) => {
                    let part = if buf.is_owned() { Buf::zeroed(len) } else { buf.slice_foreign(here, len) };
                    reads.push(async move { (here, self.bulk.read_extent(x, from, part).await) });
                }
            }
            here += len;
        }
        let mut outcome = Ok(());
        for (here, (read, part)) in join_all(reads).await {
            match read {
                Ok(()) if part.is_owned() => buf.copy_from(here, part.bytes()),
                Ok(()) => {}
                Err(e) => outcome = Err(self.bulk_error("read", e)),
            }
        }
        (outcome, buf)
    }

    /// Reads whole blocks around the request and copies out of them.
    async fn read_unaligned(&self, at: u64, mut buf: Buf) -> Done {
        let from = at - at % BLOCK_BYTES;
        let to = (at + buf.len() as u64).next_multiple_of(BLOCK_BYTES);
        let (outcome, whole) = self.read_pieces(from, Buf::zeroed((to - from) as usize)).await;
        if outcome.is_ok() {
            let skip = (at - from) as usize;
            buf.copy_from(0, &whole.bytes()[skip..skip + buf.len()]);
        }
        (outcome, buf)
    }

    // ---- writing ----

    async fn write(&self, at: u64, buf: Buf) -> Done {
        let end = at + buf.len() as u64;
        if buf.is_empty() {
            return (Ok(()), buf);
        }
        if at.is_multiple_of(BLOCK_BYTES) && end.is_multiple_of(BLOCK_BYTES) {
            let _guard = self.ranges.take(at..end, false).await;
            return self.write_blocks(at, buf).await;
        }
        Box::pin(self.write_unaligned(at, buf)).await
    }

    /// Reads the blocks around the request, alone on them, and writes them as they become.
    async fn write_unaligned(&self, at: u64, buf: Buf) -> Done {
        let end = at + buf.len() as u64;
        let (from, to) = (at - at % BLOCK_BYTES, end.next_multiple_of(BLOCK_BYTES));
        let _guard = self.ranges.take(from..to, true).await;
        let (read, mut whole) = self.read(from, Buf::zeroed((to - from) as usize)).await;
        if read.is_err() {
            return (read, buf);
        }
        let skip = (at - from) as usize;
        let len = buf.len();
        buf.copy_to(0, &mut whole.bytes_mut()[skip..skip + len]);
        let (outcome, _) = self.write_blocks(from, whole).await;
        (outcome, buf)
    }

    /// Writes whole blocks. The caller holds their range.
    async fn write_blocks(&self, at: u64, buf: Buf) -> Done {
        let len = buf.len() as u64;
        let inside = at % EXTENT_BYTES;
        if inside + len <= EXTENT_BYTES {
            let index = (at / EXTENT_BYTES) as u32;
            let held = self.state.borrow().map.get(index).extent();
            let target = match held {
                Some(x) => x,
                None => match Box::pin(self.target(index)).await {
                    Ok(x) => x,
                    Err(e) => return (Err(e), buf),
                },
            };
            let (outcome, buf) = self.bulk.write_extent(target, inside, buf).await;
            let noted = outcome.is_err() || self.written(index, inside, len);
            let outcome = outcome.map_err(|e| self.bulk_error("write", e));
            return (if noted { outcome } else { Box::pin(self.flush()).await }, buf);
        }
        Box::pin(self.write_pieces(at, buf)).await
    }

    async fn write_pieces(&self, at: u64, buf: Buf) -> Done {
        let end = at + buf.len() as u64;
        // All extents first: without room nothing is written.
        let mut pieces = Vec::new();
        let mut from = at;
        while from < end {
            let index = (from / EXTENT_BYTES) as u32;
            let to = end.min((u64::from(index) + 1) * EXTENT_BYTES);
            match self.target(index).await {
                Ok(x) => pieces.push((index, x, from, to)),
                Err(e) => return (Err(e), buf),
            }
            from = to;
        }
        let writes = pieces.into_iter().map(|(index, x, from, to)| {
            let (here, len) = ((from - at) as usize, (to - from) as usize);
            let part = if buf.is_owned() {
                let mut part = Buf::zeroed(len);
                part.bytes_mut().copy_from_slice(&buf.bytes()[here..here + len]);
                part
            } else {
                buf.slice_foreign(here, len)
            };
            async move {
                let (outcome, _) = self.bulk.write_extent(x, from % EXTENT_BYTES, part).await;
                outcome.map(|()| self.written(index, from % EXTENT_BYTES, len as u64))
            }
        });
        let outcomes = join_all(writes).await.into_iter().collect::<Result<Vec<bool>, _>>();
        let outcome = match outcomes {
            Ok(noted) if noted.iter().all(|n| *n) => Ok(()),
            Ok(_) => self.flush().await,
            Err(e) => Err(self.bulk_error("write", e)),
        };
        (outcome, buf)
    }

    /// The extent that writes to entry `index` go to, a spare one if it has none.
    async fn target(&self, index: u32) -> Result<ExtentId, Error> {
        loop {
            {
                let state = &mut *self.state.borrow_mut();
                if let Some(x) = state.map.get(index).extent() {
                    return Ok(x);
                }
                if let Some(x) = state.spare.pop() {
                    let mut parts = state.map.get(index).parts();
                    parts.extent = Some(x);
                    state.map.set(index, parts.settle());
                    self.stats.allocated_bytes.fetch_add(EXTENT_BYTES, Relaxed);
                    return Ok(x);
                }
            }
            if self.refilling.replace(true) {
                self.refilled.until(|| !self.refilling.get()).await;
                continue;
            }
            let refilling = Refilling(self);
            let mut outcome = self.refill().await;
            if matches!(outcome, Err(Error::NoSpace { .. })) && !self.state.borrow().freeing.is_empty() {
                // What discards unmapped becomes free by a flush.
                self.flush().await?;
                outcome = self.refill().await;
            }
            drop(refilling);
            outcome?;
        }
    }

    /// Takes some extents from the store, for good.
    async fn refill(&self) -> Result<(), Error> {
        // A small volume hoards no more than it could ever use.
        let most = SPARE.min(self.size.div_ceil(EXTENT_BYTES) as usize);
        let mut taken = Vec::new();
        while taken.len() < most {
            match self.bulk.alloc_extent() {
                Ok(x) => taken.push(x),
                Err(_) if !taken.is_empty() => break,
                Err(e) => return Err(self.bulk_error("allocate", e)),
            }
        }
        let kept = self.bulk.keep_extents(taken.clone()).await;
        kept.map_err(|e| self.bulk_error("keep", e))?;
        // Used lowest first: what is written in order lies in order.
        taken.sort_unstable_by_key(|x| std::cmp::Reverse(x.slot));
        self.state.borrow_mut().spare.extend(taken);
        Ok(())
    }

    /// A write of these bytes of entry `index` completed. False when the journal does not have the entry: flush before
    /// answering.
    fn written(&self, index: u32, inside: u64, len: u64) -> bool {
        let state = &mut *self.state.borrow_mut();
        state.written += 1;
        let safe = !state.unnoted.contains(&index);
        let Entry::Partial(p) = state.map.get(index) else { return safe };
        let blocks = Bits::range((inside / BLOCK_BYTES) as usize, ((inside + len) / BLOCK_BYTES) as usize);
        if p.data.has_all(blocks) {
            return safe;
        }
        let mut p = **p;
        p.data = p.data.or(blocks);
        p.zero = p.zero.minus(blocks);
        self.change(state, index, p.settle())
    }

    /// Changes an entry. False when the journal has no room for it.
    fn change(&self, state: &mut State, index: u32, entry: Entry) -> bool {
        let noted = self.journal.get().is_none_or(|journal| journal.note(index, &entry));
        state.map.set(index, entry);
        state.dirty.insert(index);
        match noted {
            true => state.unnoted.remove(&index),
            false => state.unnoted.insert(index),
        };
        noted
    }

    // ---- unmapping ----

    /// Makes the whole blocks of the range read as zeros and lets go of extents left without data.
    async fn unmap(&self, at: u64, len: u64) -> Result<(), Error> {
        let from = at.next_multiple_of(BLOCK_BYTES);
        let end = if at + len == self.size { self.size.next_multiple_of(BLOCK_BYTES) } else { at + len };
        let to = end - end % BLOCK_BYTES;
        if from >= to {
            return Ok(());
        }
        // Alone on whole extents: no write into them may be under way when they are let go.
        let alone = from - from % EXTENT_BYTES..to.next_multiple_of(EXTENT_BYTES);
        let guard = self.ranges.take(alone, true).await;
        let last = to.div_ceil(EXTENT_BYTES) as u32;
        let mut next = (from / EXTENT_BYTES) as u32;
        let mut noted = true;
        while let Some(index) = self.next_to_unmap(next, last) {
            let start = u64::from(index) * EXTENT_BYTES;
            let first_block = from.saturating_sub(start) / BLOCK_BYTES;
            let last_block = (to - start).min(EXTENT_BYTES) / BLOCK_BYTES;
            noted &= self.unmap_blocks(index, Bits::range(first_block as usize, last_block as usize));
            next = index + 1;
        }
        drop(guard);
        if !noted || self.state.borrow().freeing.len() >= FREEING_MAX {
            self.flush().await?;
        }
        Ok(())
    }

    fn next_to_unmap(&self, from: u32, end: u32) -> Option<u32> {
        let own = self.state.borrow().map.next_present(from, end);
        self.below.iter().filter_map(|m| m.next_present(from, end)).chain(own).min()
    }

    fn unmap_blocks(&self, index: u32, blocks: Bits) -> bool {
        let state = &mut *self.state.borrow_mut();
        let before = state.map.get(index);
        let hides = self.below.iter().any(|m| *m.get(index) != Entry::Absent);
        let mut p = before.parts();
        p.data = p.data.minus(blocks);
        p.zero = if hides { p.zero.or(blocks) } else { Bits::EMPTY };
        if p.data == Bits::EMPTY
            && let Some(x) = p.extent.take()
        {
            state.freeing.push(x);
            self.stats.allocated_bytes.fetch_sub(EXTENT_BYTES, Relaxed);
        }
        let after = p.settle();
        if after == *before { !state.unnoted.contains(&index) } else { self.change(state, index, after) }
    }

    // ---- flushing ----

    async fn flush(&self) -> Result<(), Error> {
        self.check_running()?;
        let turn = &self.flush;
        let want = turn.begun.get() + 1;
        // Whoever finds nobody running goes on within the same poll: only one does.
        turn.changed.until(|| !turn.running.get()).await;
        if turn.good.get() >= want {
            return Ok(());
        }
        self.check_running()?;
        if self.clean() {
            return Ok(());
        }
        turn.running.set(true);
        let mine = turn.begun.get() + 1;
        turn.begun.set(mine);
        let running = Running(turn);
        let outcome = self.flush_once().await;
        if outcome.is_ok() {
            turn.good.set(mine);
        }
        drop(running);
        outcome
    }

    fn clean(&self) -> bool {
        let state = self.state.borrow();
        state.written == state.synced && state.dirty.is_empty() && state.freeing.is_empty()
    }

    async fn flush_once(&self) -> Result<(), Error> {
        self.stats.flushes.fetch_add(1, Relaxed);
        let snap = self.snapshot();
        let synced = if snap.unsynced { self.bulk.flush().await } else { Ok(()) };
        if let Err(source) = synced {
            let why = source.to_string();
            self.put_back(snap);
            if !matches!(source, BulkError::NoSpace { .. }) {
                tracing::error!(volume = self.name, error = why, "a flush failed: the volume stops");
                self.state.borrow_mut().stopped.get_or_insert(why);
            }
            return Err(self.bulk_error("flush", source));
        }
        {
            let state = &mut *self.state.borrow_mut();
            state.synced = state.synced.max(snap.written);
        }
        let changed = !snap.deltas.puts.is_empty() || !snap.deltas.dels.is_empty();
        if changed && let Err(source) = self.meta.commit(snap.deltas.clone()).await {
            self.put_back(snap);
            return Err(Error::Meta { what: format!("volume {}", self.name), op: "commit", source });
        }
        if let Some(journal) = self.journal.get() {
            journal.committed(snap.noted);
            // What has not changed since is committed as it is.
            let state = &mut *self.state.borrow_mut();
            let State { dirty, unnoted, .. } = state;
            unnoted.retain(|index| dirty.contains(index) || !snap.dirty.contains(index));
        }
        if !snap.freeing.is_empty() {
            self.readers.drain().await;
            if let Err(e) = self.bulk.free_extents(snap.freeing).await {
                // They stay allocated and unnamed: the next start collects them.
                tracing::warn!(volume = self.name, error = %e, "extents could not be freed");
            }
        }
        Ok(())
    }

    /// What a flush that begins now makes durable.
    pub(super) fn snapshot(&self) -> Snapshot {
        let state = &mut *self.state.borrow_mut();
        let dirty = std::mem::take(&mut state.dirty);
        let freeing = std::mem::take(&mut state.freeing);
        let mut deltas = Batch::new();
        for &index in &dirty {
            let mut parts = state.map.get(index).parts();
            if parts.data == Bits::EMPTY {
                // An extent whose first write has not completed is not named yet.
                parts.extent = None;
            }
            let key = record::key(self.serial, index);
            match record::encode(&key, &parts.settle()) {
                Some(value) => deltas.puts.push((key, value)),
                None => deltas.dels.push(key),
            }
        }
        let unsynced = state.written != state.synced;
        let noted = self.journal.get().map_or(0, Journal::last);
        Snapshot { written: state.written, unsynced, noted, dirty, deltas, freeing }
    }

    fn put_back(&self, snap: Snapshot) {
        let state = &mut *self.state.borrow_mut();
        state.dirty.extend(snap.dirty);
        state.freeing.extend(snap.freeing);
    }
}

pub(super) struct Snapshot {
    written: u64,
    unsynced: bool,
    noted: u64,
    dirty: BTreeSet<u32>,
    pub(super) deltas: Batch,
    freeing: Vec<ExtentId>,
}

/// Ends a flush's turn, also when its future is dropped.
struct Running<'a>(&'a FlushTurn);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.set(false);
        self.0.changed.notify();
    }
}

/// Ends a refill, also when its future is dropped.
struct Refilling<'a, B>(&'a Inner<B>);

impl<B> Drop for Refilling<'_, B> {
    fn drop(&mut self) {
        self.0.refilling.set(false);
        self.0.refilled.notify();
    }
}

const _: () = assert!(EXTENT_BYTES.is_multiple_of(BLOCK_BYTES) && BLOCK_BYTES.is_multiple_of(SECTOR_BYTES));
