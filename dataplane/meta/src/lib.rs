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
    /// The store is full; nothing happened.
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
