//! `MemoryStore`: the twin in memory, with fault switches, for tests and the simulation.
//!
//! It stands for a store whose commits are durable when answered. Clones share one "disk". [`MemoryStore::crash`] kills
//! every handle that exists and hands out a new one over what the disk then holds: all that was answered, and of the
//! commits in flight, those that the seed chose to apply before their answer.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::future::{BoxFuture, poll_fn};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::{Batch, MetaError, MetaStore, Pair, Scan};

/// See the [module](self).
#[derive(Clone)]
pub struct MemoryStore {
    disk: Arc<Mutex<Disk>>,
    /// The incarnation this handle belongs to; a crash ends it.
    epoch: u64,
}

struct Disk {
    pairs: BTreeMap<Bytes, Bytes>,
    epoch: u64,
    /// Where present, commits take two polls and may be in flight at a crash.
    rng: Option<StdRng>,
    fail_next: u32,
    conflict_next: u32,
    full: bool,
    commits: u64,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store. Every call is ready at its first poll.
    pub fn new() -> Self {
        Self::with(None)
    }

    /// An empty store whose commits take two polls, applied at the first or at the second as `seed` says: a caller that
    /// stops polling in between (a crash) finds the commit whole or not at all.
    pub fn seeded(seed: u64) -> Self {
        Self::with(Some(StdRng::seed_from_u64(seed)))
    }

    fn with(rng: Option<StdRng>) -> Self {
        let disk =
            Disk { pairs: BTreeMap::new(), epoch: 0, rng, fail_next: 0, conflict_next: 0, full: false, commits: 0 };
        Self { disk: Arc::new(Mutex::new(disk)), epoch: 0 }
    }

    /// The next `n` calls of any kind answer `Failed`; commits among them do not happen.
    pub fn fail_next(&self, n: u32) {
        self.lock().fail_next = n;
    }

    /// The next `n` commits that carry a check answer `Conflict` on their first check, as if another writer had been
    /// faster, and do not happen.
    pub fn conflict_next(&self, n: u32) {
        self.lock().conflict_next = n;
    }

    /// While set, commits that put anything answer `NoSpace`.
    pub fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// How many commits have happened.
    pub fn commits(&self) -> u64 {
        self.lock().commits
    }

    /// All pairs, for a test's comparison.
    pub fn dump(&self) -> Vec<Pair> {
        self.lock().pairs.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    /// Ends this and every other handle, whose calls then answer `Failed`; answers the handle of the next incarnation.
    pub fn crash(&self) -> Self {
        let mut disk = self.lock();
        disk.epoch += 1;
        (disk.fail_next, disk.conflict_next) = (0, 0);
        Self { disk: self.disk.clone(), epoch: disk.epoch }
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The disk, unless this handle has crashed or a failure is due.
    fn enter(&self, op: &'static str) -> Result<MutexGuard<'_, Disk>, MetaError> {
        let mut disk = self.lock();
        if disk.epoch != self.epoch {
            return Err(MetaError::Failed { op, why: "this incarnation has crashed".into() });
        }
        if disk.fail_next > 0 {
            disk.fail_next -= 1;
            return Err(MetaError::Failed { op, why: "injected failure".into() });
        }
        Ok(disk)
    }
}

impl Disk {
    fn apply(&mut self, batch: &Batch) -> Result<(), MetaError> {
        if self.conflict_next > 0
            && let Some((key, _)) = batch.checks.first()
        {
            self.conflict_next -= 1;
            return Err(MetaError::Conflict { key: key.clone() });
        }
        for (key, expected) in &batch.checks {
            if self.pairs.get(key) != expected.as_ref() {
                return Err(MetaError::Conflict { key: key.clone() });
            }
        }
        if self.full && !batch.puts.is_empty() {
            return Err(MetaError::NoSpace { why: "injected".into() });
        }
        for range in batch.del_ranges.iter().filter(|r| r.start < r.end) {
            let keys: Vec<Bytes> = self.pairs.range::<Bytes, _>(range.clone()).map(|(k, _)| k.clone()).collect();
            for key in keys {
                self.pairs.remove(&key);
            }
        }
        for key in &batch.dels {
            self.pairs.remove(key);
        }
        for (key, value) in &batch.puts {
            self.pairs.insert(key.clone(), value.clone());
        }
        self.commits += 1;
        Ok(())
    }
}

/// Lets other tasks of the executor run once.
async fn yield_once() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

impl MetaStore for MemoryStore {
    fn get(&self, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>, MetaError>> {
        Box::pin(async move { Ok(self.enter("get")?.pairs.get(&key).cloned()) })
    }

    fn multi_get(&self, keys: Vec<Bytes>) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, MetaError>> {
        Box::pin(async move {
            let disk = self.enter("multi_get")?;
            Ok(keys.iter().map(|key| disk.pairs.get(key).cloned()).collect())
        })
    }

    fn scan(&self, scan: Scan) -> BoxFuture<'_, Result<Vec<Pair>, MetaError>> {
        Box::pin(async move {
            let disk = self.enter("scan")?;
            let Scan { range, limit, reverse } = scan;
            if range.start >= range.end {
                return Ok(Vec::new());
            }
            let pairs = disk.pairs.range::<Bytes, _>((Bound::Included(&range.start), Bound::Excluded(&range.end)));
            let owned = |(k, v): (&Bytes, &Bytes)| (k.clone(), v.clone());
            Ok(match reverse {
                false => pairs.take(limit).map(owned).collect(),
                true => pairs.rev().take(limit).map(owned).collect(),
            })
        })
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<(), MetaError>> {
        Box::pin(async move {
            let early = {
                let mut disk = self.enter("commit")?;
                let Some(rng) = &mut disk.rng else { return disk.apply(&batch) };
                if rng.random() { Some(disk.apply(&batch)) } else { None }
            };
            yield_once().await;
            match early {
                // Applied, but answered only if the process still lives.
                Some(answer) if self.lock().epoch == self.epoch => answer,
                Some(_) => Err(MetaError::Failed { op: "commit", why: "this incarnation has crashed".into() }),
                None => self.enter("commit")?.apply(&batch),
            }
        })
    }

    /// Writes `pairs`: each key and value with its length (u32, little endian) before it.
    fn checkpoint(&self, to: PathBuf) -> BoxFuture<'_, Result<(), MetaError>> {
        Box::pin(async move {
            let failed =
                |e: std::io::Error| MetaError::Failed { op: "checkpoint", why: format!("{}: {e}", to.display()) };
            let mut bytes = Vec::new();
            for (key, value) in &self.enter("checkpoint")?.pairs {
                for part in [key, value] {
                    bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
                    bytes.extend_from_slice(part);
                }
            }
            std::fs::create_dir(&to).map_err(failed)?;
            std::fs::write(to.join("pairs"), bytes).map_err(failed)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::conformance::block_on;

    #[test]
    fn switches_fail_once_and_change_nothing() {
        let store = MemoryStore::new();
        store.fail_next(1);
        assert!(matches!(block_on(store.commit(Batch::new().put("a", "1"))), Err(MetaError::Failed { .. })));
        store.conflict_next(1);
        let checked = || Batch::new().check("a", None).put("a", "1");
        assert_eq!(block_on(store.commit(checked())), Err(MetaError::Conflict { key: "a".into() }));
        store.set_full(true);
        assert!(matches!(block_on(store.commit(checked())), Err(MetaError::NoSpace { .. })));
        assert_eq!(block_on(store.commit(Batch::new().del("b"))), Ok(()), "removing works when full");
        store.set_full(false);
        assert!(store.dump().is_empty());
        assert_eq!(block_on(store.commit(checked())), Ok(()));
    }

    #[test]
    fn a_commit_in_flight_at_a_crash_is_there_whole_or_not_at_all() {
        let (mut there, mut absent) = (0, 0);
        for seed in 0..40 {
            let store = MemoryStore::seeded(seed);
            block_on(store.commit(Batch::new().put("answered", "1"))).expect("commits");
            let mut in_flight = store.commit(Batch::new().put("x", "1").put("y", "1"));
            assert!(matches!(in_flight.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending));
            let next = store.crash();
            assert!(block_on(in_flight).is_err(), "a dead process answers nothing");
            assert!(block_on(store.get("answered".into())).is_err());
            assert_eq!(block_on(next.get("answered".into())), Ok(Some("1".into())));
            match &block_on(next.multi_get(vec!["x".into(), "y".into()])).expect("reads")[..] {
                [Some(_), Some(_)] => there += 1,
                [None, None] => absent += 1,
                torn => panic!("seed {seed}: torn commit {torn:?}"),
            }
        }
        assert!(there > 0 && absent > 0, "both outcomes occur: {there} {absent}");
    }
}
