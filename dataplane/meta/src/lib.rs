//! `MetaStore`: the seam of every record that karri keeps. One ordered key space, one atomic commit.
//!
//! Implementations: RocksDB (embedded) and memory (twin); PostgreSQL wire comes later. All pass `conformance`.
//! Calls are runtime-agnostic futures: blocking work runs on the store's own threads and wakes the caller, so
//! pinned engine cores and tokio use the same store. A `get` that memory can answer is ready at its first poll.
//!
//! What a caller may rely on:
//! - `commit` is atomic and durable (survives kill -9 and power loss) when it answers `Ok`. When the process dies before
//!   the answer, it happened whole or not at all.
//! - Only `checks` are conflict-detected: the batch happens only if each checked key has exactly the expected value at that
//!   moment; otherwise `Conflict` and nothing happened. Guard a range with a key.
//! - Reads see every commit that was answered before they began.
//! - A future does nothing before its first poll. A commit whose future is dropped later may still happen.
//! - Keys and values are any bytes. A range whose end is not after its start is empty.

#![forbid(unsafe_code)]

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod fuzz;
pub mod memory;
pub mod rocks;

use std::ops::Range;

use bytes::Bytes;
use futures_util::future::BoxFuture;

/// A key and its value.
pub type Pair = (Bytes, Bytes);

/// Which keys, how many, which way.
#[derive(Debug, Clone)]
pub struct Scan {
    /// From `start` (included) to `end` (excluded).
    pub range: Range<Bytes>,
    /// At most so many pairs.
    pub limit: usize,
    /// From the end backwards.
    pub reverse: bool,
}

impl Scan {
    /// The first `limit` pairs of `range`, in the order of their keys.
    pub fn new(range: Range<Bytes>, limit: usize) -> Self {
        Self { range, limit, reverse: false }
    }
    /// The last `limit` pairs of `range`, from the end backwards.
    pub fn backwards(range: Range<Bytes>, limit: usize) -> Self {
        Self { range, limit, reverse: true }
    }
    /// All keys that begin with `prefix`, at most `limit` of them.
    pub fn prefix(prefix: impl Into<Bytes>, limit: usize) -> Self {
        let start = prefix.into();
        let end = prefix_end(&start);
        Self::new(start..end, limit)
    }
}

/// The first key after all keys that begin with `prefix`. A prefix of nothing but 0xFF bytes has no such key: the answer
/// is then longer than any key with up to 1,024 more bytes of 0xFF.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|&b| b != 0xFF) {
        Some(at) => {
            let mut end = prefix[..=at].to_vec();
            end[at] += 1;
            end.into()
        }
        None => {
            let mut end = prefix.to_vec();
            end.resize(prefix.len() + 1024, 0xFF);
            end.into()
        }
    }
}

/// Changes that happen together.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Key and the value it must have now (`None`: it must not exist).
    pub checks: Vec<(Bytes, Option<Bytes>)>,
    /// Keys to set. Applied after deletes: a key in both ends up set.
    pub puts: Vec<Pair>,
    /// Keys to remove; removing an absent key is no error.
    pub dels: Vec<Bytes>,
    /// Ranges to remove.
    pub del_ranges: Vec<Range<Bytes>>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }
    /// Adds a check.
    pub fn check(mut self, key: impl Into<Bytes>, expected: Option<Bytes>) -> Self {
        self.checks.push((key.into(), expected));
        self
    }
    /// Adds a put.
    pub fn put(mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.puts.push((key.into(), value.into()));
        self
    }
    /// Adds a delete.
    pub fn del(mut self, key: impl Into<Bytes>) -> Self {
        self.dels.push(key.into());
        self
    }
    /// About how many bytes the batch carries.
    pub fn bytes(&self) -> usize {
        let checks = self.checks.iter().map(|(k, v)| k.len() + v.as_ref().map_or(0, Bytes::len));
        let puts = self.puts.iter().map(|(k, v)| k.len() + v.len());
        let ranges = self.del_ranges.iter().map(|r| r.start.len() + r.end.len());
        checks.chain(puts).chain(self.dels.iter().map(Bytes::len)).chain(ranges).sum()
    }
    /// Adds a range delete.
    pub fn del_range(mut self, range: Range<Bytes>) -> Self {
        self.del_ranges.push(range);
        self
    }
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// A checked key had another value; nothing happened.
    #[error("conflict on key {}", key.escape_ascii())]
    Conflict {
        /// The first such key.
        key: Bytes,
    },
    /// The store is full; nothing happened. Removing records still works for a while.
    #[error("the metadata store is full: {why}")]
    NoSpace {
        /// The system's words.
        why: String,
    },
    /// The store failed; a commit may or may not have happened.
    #[error("the metadata store failed in {op}: {why}")]
    Failed {
        /// `open`, `get`, `scan`, `commit`, ...
        op: &'static str,
        /// The engine's words.
        why: String,
    },
}

/// One ordered transactional key space. Used as `Arc<dyn MetaStore>`.
pub trait MetaStore: Send + Sync + 'static {
    /// The value under `key`.
    fn get(&self, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>, MetaError>>;
    /// The values under `keys`, in their order, all of one moment.
    fn multi_get(&self, keys: Vec<Bytes>) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, MetaError>>;
    /// The pairs of a range, all of one moment.
    fn scan(&self, scan: Scan) -> BoxFuture<'_, Result<Vec<Pair>, MetaError>>;
    /// Applies a batch, durably.
    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<(), MetaError>>;
    /// Writes a consistent copy into the folder `to`, which must not exist.
    fn checkpoint(&self, to: std::path::PathBuf) -> BoxFuture<'_, Result<(), MetaError>>;
}
