//! What the cores of a store share about space: the allocator and the room for records, behind one short lock, and the
//! claims that give both back when they are dropped.

use std::sync::{Arc, Mutex, MutexGuard};

use super::format::{CHUNK, Geometry, INLINE_CHUNKS, SLOT, UNIT};
use super::record::{EXTENT_ITEM, Run, runs_max, seal_bytes};
use super::space::Space;
use crate::{BulkError, Usage};

/// Bytes of record set aside for each extent: its item and a share of the record's header.
const EXTENT_RECORD: u64 = EXTENT_ITEM as u64 + 4;

/// Space and record room of one store.
#[derive(Debug)]
pub struct Pool {
    inner: Mutex<Inner>,
    record_max: usize,
}

#[derive(Debug)]
struct Inner {
    space: Space,
    /// Bytes that records of everything alive take, now or when sealed.
    live: u64,
    live_max: u64,
}

impl Inner {
    fn no_space(&self, units: u64) -> BulkError {
        let free = (self.space.total() - self.space.used()) * UNIT;
        BulkError::NoSpace { wanted: units * UNIT, free, total: self.space.total() * UNIT }
    }

    fn has_record_room(&self, bytes: u64) -> bool {
        self.live + bytes <= self.live_max
    }
}

impl Pool {
    /// Around an allocator that recovery filled in.
    pub fn new(space: Space, geometry: &Geometry) -> Self {
        let inner = Inner { space, live: 0, live_max: geometry.live_max() };
        Self { inner: Mutex::new(inner), record_max: geometry.record_max() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic under this lock")
    }

    /// Takes units for a blob, and room for its record.
    ///
    /// # Errors
    /// `NoSpace`.
    pub fn claim(self: &Arc<Self>, units: u64) -> Result<Claim, BulkError> {
        let mut claim = Claim { pool: self.clone(), runs: Vec::new(), units: 0, record: 0 };
        claim.grow(units)?;
        Ok(claim)
    }

    /// Recovery: a blob that exists, whose runs are marked already.
    pub fn restore(self: &Arc<Self>, runs: Vec<Run>) -> Claim {
        let units = runs.iter().map(|r| u64::from(r.units)).sum();
        let record = record_room(runs.len(), units);
        self.lock().live += record;
        Claim { pool: self.clone(), runs, units, record }
    }

    /// Recovery: an extent that exists, whose slot is marked already.
    pub fn restore_slot(&self) {
        self.lock().live += EXTENT_RECORD;
    }

    /// Takes a whole slot.
    ///
    /// # Errors
    /// `NoSpace`.
    pub fn take_slot(&self) -> Result<u32, BulkError> {
        let mut inner = self.lock();
        if !inner.has_record_room(EXTENT_RECORD) {
            return Err(inner.no_space(SLOT / UNIT));
        }
        let slot = inner.space.alloc_slot().ok_or_else(|| inner.no_space(SLOT / UNIT))?;
        inner.live += EXTENT_RECORD;
        Ok(slot)
    }

    /// Gives a slot back.
    pub fn free_slot(&self, slot: u32) {
        let mut inner = self.lock();
        inner.space.free_slot(slot);
        inner.live -= EXTENT_RECORD;
    }

    /// Space, in bytes.
    pub fn usage(&self) -> Usage {
        let inner = self.lock();
        Usage { total: inner.space.total() * UNIT, used: inner.space.used() * UNIT }
    }
}

/// What the record of a blob of so many runs and units may take.
fn record_room(runs: usize, units: u64) -> u64 {
    // A longer blob's checksums lie beside its data.
    seal_bytes(runs, (units * UNIT).min(INLINE_CHUNKS * CHUNK)) as u64
}

/// Units that one blob has. They go back when this is dropped.
#[derive(Debug)]
pub struct Claim {
    pool: Arc<Pool>,
    runs: Vec<Run>,
    units: u64,
    record: u64,
}

impl Claim {
    /// In the blob's order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// How many units there are.
    pub fn units(&self) -> u64 {
        self.units
    }

    /// Takes `more` units, behind those there are.
    ///
    /// # Errors
    /// `NoSpace`, and nothing changed.
    pub fn grow(&mut self, more: u64) -> Result<(), BulkError> {
        let mut inner = self.pool.lock();
        let runs_left = runs_max(self.pool.record_max).saturating_sub(self.runs.len());
        let runs = inner.space.alloc(more, runs_left).ok_or_else(|| inner.no_space(more))?;
        let record = record_room(self.runs.len() + runs.len(), self.units + more);
        if !inner.has_record_room(record - self.record) {
            runs.into_iter().for_each(|run| inner.space.free(run));
            return Err(inner.no_space(more));
        }
        for run in runs {
            match self.runs.last_mut() {
                Some(last)
                    if last.start + u64::from(last.units) == run.start
                        && last.units.checked_add(run.units).is_some() =>
                {
                    last.units += run.units;
                }
                _ => self.runs.push(run),
            }
        }
        self.units += more;
        let record = record_room(self.runs.len(), self.units);
        inner.live = inner.live + record - self.record;
        self.record = record;
        Ok(())
    }

    /// Gives back all but the first `units`.
    pub fn trim(&mut self, units: u64) {
        let mut inner = self.pool.lock();
        while self.units > units {
            let last = self.runs.last_mut().expect("the runs add up to the units");
            let cut = u64::from(last.units).min(self.units - units) as u32;
            last.units -= cut;
            inner.space.free(Run { start: last.start + u64::from(last.units), units: cut });
            if last.units == 0 {
                self.runs.pop();
            }
            self.units -= u64::from(cut);
        }
        let record = record_room(self.runs.len(), self.units);
        inner.live = inner.live + record - self.record;
        self.record = record;
    }

    /// Where the blob's bytes `at..at + len` are: runs of disk bytes from slot 0's beginning, in order.
    pub fn pieces(&self, at: u64, len: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let end = at + len;
        let mut begin = 0;
        self.runs.iter().filter_map(move |run| {
            let run_begin = begin;
            begin += u64::from(run.units) * UNIT;
            let (from, to) = (at.max(run_begin), end.min(begin));
            (from < to).then(|| (run.start * UNIT + (from - run_begin), to - from))
        })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut inner = self.pool.lock();
        self.runs.drain(..).for_each(|run| inner.space.free(run));
        inner.live -= self.record;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(slots: u32) -> Arc<Pool> {
        let geometry = Geometry::new(64 << 20, Some(128 << 10)).unwrap();
        Arc::new(Pool::new(Space::new(slots), &geometry))
    }

    #[test]
    fn claims_grow_trim_and_give_back() {
        let pool = pool(2);
        let mut claim = pool.claim(10).unwrap();
        claim.grow(300).unwrap();
        assert_eq!((claim.units(), pool.usage().used), (310, 310 * UNIT));
        assert!(matches!(claim.grow(203), Err(BulkError::NoSpace { .. })));
        claim.trim(5);
        assert_eq!((claim.units(), pool.usage().used), (5, 5 * UNIT));
        drop(claim);
        assert_eq!(pool.usage().used, 0);
        assert_eq!(pool.lock().live, 0);
    }

    #[test]
    fn pieces_follow_the_runs() {
        let pool = pool(2);
        let runs = vec![Run { start: 100, units: 2 }, Run { start: 7, units: 1 }, Run { start: 50, units: 4 }];
        let mut inner = pool.lock();
        assert!(runs.iter().all(|r| inner.space.mark(*r)));
        drop(inner);
        let claim = pool.restore(runs);
        let pieces = |at, len| claim.pieces(at, len).collect::<Vec<_>>();
        assert_eq!(pieces(0, 8192), [(100 * UNIT, 8192)]);
        assert_eq!(pieces(4096, 12288), [(101 * UNIT, 4096), (7 * UNIT, 4096), (50 * UNIT, 4096)]);
        assert_eq!(pieces(12288, 4096), [(50 * UNIT, 4096)]);
        assert_eq!(pieces(5, 0), []);
    }

    #[test]
    fn a_disk_full_of_blobs_of_33_kib_has_room_for_their_records() {
        let geometry = Geometry::new(4 << 30, None).unwrap();
        let pool = Arc::new(Pool::new(Space::new(geometry.slots), &geometry));
        let mut held = Vec::new();
        // Written as SDKs over TLS do, without a length: ahead, and cut to size at the end.
        while let Ok(mut claim) = pool.claim(1) {
            if claim.grow(255).is_err() && claim.grow(8).is_err() {
                break;
            }
            claim.trim(9);
            held.push(claim);
        }
        let usage = pool.usage();
        assert!(usage.used > usage.total / 100 * 95, "{usage:?}");
        drop(held);
        assert_eq!(pool.lock().live, 0);
    }

    #[test]
    fn room_for_records_runs_out_before_the_log_does() {
        let pool = pool(32);
        let mut held = Vec::new();
        while let Ok(claim) = pool.claim(1) {
            held.push(claim);
        }
        assert!(held.len() as u64 * record_room(1, 1) <= pool.lock().live_max);
        assert!(held.len() < 32 * 256);
        while pool.take_slot().is_ok() {}
        held.pop();
        assert!(pool.claim(1).is_ok());
    }
}
