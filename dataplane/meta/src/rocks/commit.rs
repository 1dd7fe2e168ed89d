//! The committer: one thread that turns queued batches into groups, one synced write each.
//!
//! ```text
//! callers -> Queue -> group -> space left? -> checks, in order -> one WriteBatch, one fdatasync -> answers
//!                                   |               |
//!                                NoSpace         Conflict
//! ```
//! It is the only writer, so what it reads cannot change under it. Batches of a group see each other through
//! [`Overlay`]; a group that fails, fails whole. While one group syncs, the next one gathers in the queue.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use futures_channel::oneshot;
use rocksdb::{DB, DBRawIterator, ReadOptions, WriteBatch, WriteOptions};

use super::metrics::Metrics;
use super::queue::{Bound, Queue};
use crate::{Batch, MetaError};

/// One caller's commit.
pub(super) struct Job {
    pub(super) batch: Batch,
    pub(super) done: oneshot::Sender<Result<(), MetaError>>,
}

/// At most so much goes into one synced write: 4 MiB take a few milliseconds, as the sync does.
const GROUP: Bound = Bound { items: 1024, weight: 4 << 20 };

/// A range with up to so many keys is removed key by key: range tombstones make later reads slower.
const RANGE_KEYS_MAX: usize = 64;

/// Below `bytes` free on the file system, puts are refused; below half of it, removals too.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reserve {
    pub(super) bytes: u64,
}

/// Once a write has failed, its parts may or may not be in the log, and RocksDB's Debian build aborts the process when
/// that log is written again: no further commit is tried until the store is opened anew.
type Broken = Option<MetaError>;

pub(super) fn run(db: &DB, dir: &Path, reserve: Reserve, queue: &Queue<Job>, metrics: &Metrics) {
    let mut broken: Broken = None;
    while let Some(group) = queue.take(GROUP) {
        match &broken {
            None => broken = commit(db, dir, reserve, group, metrics).err(),
            Some(error) => group.into_iter().for_each(|job| drop(job.done.send(Err(error.clone())))),
        }
    }
}

/// Commits a group; fails where the store did.
fn commit(db: &DB, dir: &Path, reserve: Reserve, group: Vec<Job>, metrics: &Metrics) -> Result<(), MetaError> {
    let free = free_bytes(dir);
    let alone = group.len() == 1;
    let mut overlay = Overlay::default();
    let mut write = WriteBatch::default();
    let mut accepted = Vec::with_capacity(group.len());
    for Job { batch, done } in group {
        let staged = room(&batch, free, reserve, dir).and_then(|()| verify(db, &overlay, &batch)).map(|()| {
            stage(db, &overlay, &batch, &mut write);
            if !alone {
                overlay.add(batch);
            }
        });
        match staged {
            Ok(()) => accepted.push(done),
            Err(error) => {
                metrics.refused(&error);
                let _ = done.send(Err(error));
            }
        }
    }
    let answer = if write.is_empty() { Ok(()) } else { metrics.timed(accepted.len(), || sync(db, write)) };
    let answer = answer.map_err(|e| {
        let why = format!("{}: {e}; no more commits until this role is started anew", dir.display());
        tracing::error!(error = why, commits = accepted.len(), "metadata commit failed");
        MetaError::Failed { op: "commit", why }
    });
    for done in accepted {
        let _ = done.send(answer.clone());
    }
    answer
}

fn sync(db: &DB, write: WriteBatch) -> Result<(), rocksdb::Error> {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    // A failed write is `Failed` even for ENOSPC: parts of it may be in the log, so it may have happened.
    db.write_opt(write, &options)
}

fn free_bytes(dir: &Path) -> u64 {
    // Where the question itself fails, the write will tell.
    rustix::fs::statvfs(dir).map_or(u64::MAX, |fs| fs.f_bavail.saturating_mul(fs.f_frsize))
}

/// Refuses a batch for which there is no room before anything is written.
fn room(batch: &Batch, free: u64, reserve: Reserve, dir: &Path) -> Result<(), MetaError> {
    // The log, the table that it becomes, and a compaction of it.
    let need = 3 * batch.bytes() as u64;
    let keep = if batch.puts.is_empty() { reserve.bytes / 2 } else { reserve.bytes };
    if free >= keep.saturating_add(need) {
        return Ok(());
    }
    let why = format!(
        "{} has {} MiB free and {} MiB are kept in reserve; free some space there",
        dir.display(),
        free >> 20,
        keep >> 20
    );
    Err(MetaError::NoSpace { why })
}

fn verify(db: &DB, overlay: &Overlay, batch: &Batch) -> Result<(), MetaError> {
    for (key, expected) in &batch.checks {
        let same = match overlay.get(key) {
            Some(value) => value == expected.as_ref(),
            None => db.get_pinned(key).map_err(|e| super::failed("check", e))?.as_deref() == expected.as_deref(),
        };
        if !same {
            return Err(MetaError::Conflict { key: key.clone() });
        }
    }
    Ok(())
}

fn stage(db: &DB, overlay: &Overlay, batch: &Batch, write: &mut WriteBatch) {
    for range in batch.del_ranges.iter().filter(|r| r.start < r.end) {
        match few_keys(db, range) {
            Some(keys) => keys.iter().for_each(|key| write.delete(key)),
            None => write.delete_range(&range.start, &range.end),
        }
        overlay.keys(range).for_each(|key| write.delete(key));
    }
    for key in &batch.dels {
        write.delete(key);
    }
    for (key, value) in &batch.puts {
        write.put(key, value);
    }
}

/// The keys of a range, where they are few and memory knows them all.
fn few_keys(db: &DB, range: &Range<Bytes>) -> Option<Vec<Bytes>> {
    let mut options = ReadOptions::default();
    super::memory_only(&mut options);
    options.set_max_skippable_internal_keys(16 * RANGE_KEYS_MAX as u64);
    options.set_iterate_upper_bound(&range.end[..]);
    let mut at: DBRawIterator<'_> = db.raw_iterator_opt(options);
    at.seek(&range.start);
    let mut keys = Vec::new();
    while let Some(key) = at.key() {
        if keys.len() == RANGE_KEYS_MAX {
            return None;
        }
        keys.push(Bytes::copy_from_slice(key));
        at.next();
    }
    at.status().is_ok().then_some(keys)
}

/// What the accepted batches of a group change, before the store has it.
#[derive(Default)]
struct Overlay {
    pairs: BTreeMap<Bytes, Option<Bytes>>,
    removed: Vec<Range<Bytes>>,
}

impl Overlay {
    /// The value after the group so far; nothing where the group does not touch the key.
    fn get(&self, key: &Bytes) -> Option<Option<&Bytes>> {
        match self.pairs.get(key) {
            Some(value) => Some(value.as_ref()),
            None => self.removed.iter().any(|r| r.contains(key)).then_some(None),
        }
    }

    /// The keys of `range` that the group has put.
    fn keys(&self, range: &Range<Bytes>) -> impl Iterator<Item = &Bytes> {
        self.pairs.range(range.clone()).filter(|(_, value)| value.is_some()).map(|(key, _)| key)
    }

    fn add(&mut self, batch: Batch) {
        for range in batch.del_ranges.into_iter().filter(|r| r.start < r.end) {
            self.pairs.range_mut(range.clone()).for_each(|(_, value)| *value = None);
            self.removed.push(range);
        }
        self.pairs.extend(batch.dels.into_iter().map(|key| (key, None)));
        self.pairs.extend(batch.puts.into_iter().map(|(key, value)| (key, Some(value))));
    }
}
