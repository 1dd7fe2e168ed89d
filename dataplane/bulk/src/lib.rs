//! `BulkStore`: the seam of every large piece of data. Two kinds, one space:
//!
//! - a **blob** is written once, front to back, sealed with checksums and never changed: an S3 object's or part's data;
//! - an **extent** is 1 MiB that is rewritten in place: a volume's data. The volume's map (in MetaStore) says what in it
//!   is valid.
//!
//! Implementations: the local O_DIRECT store over `Disk`, and memory (twin); Ceph RADOS comes later. All pass
//! `conformance`. A store handle belongs to one core; handles of the same store share its space.
//!
//! What a caller may rely on:
//! - Space is reserved before the first byte is written: `NoSpace` comes before anything is half-written.
//! - `seal` answers when the blob's data and record survive power loss. A blob that was not sealed does not exist after a
//!   restart and its space is free. A sealed blob stays until `delete`, also when no metadata names it: the owner lists
//!   and collects orphans.
//! - Every byte that `read_blob` gives was checked against its checksum; a mismatch is `Corrupt`, never wrong bytes.
//! - Ids are never used twice in the life of a store.

#![forbid(unsafe_code)]

pub mod conformance;
pub mod fuzz;
pub mod local;
pub mod memory;

use std::fmt;
use std::future::Future;

use karri_engine::buf::Buf;
use karri_engine::disk::{Dir, DiskError};
use karri_engine::landing::Landings;

/// An extent's length in bytes.
pub const EXTENT_BYTES: u64 = 1 << 20;

/// A sealed, or being written, immutable piece of data. 0 is never used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlobId(pub u64);

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blob {:x}", self.0)
    }
}

/// A mutable extent: where it is (`slot`) and how often that slot was given out (`incarnation`), so that a stale handle
/// is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExtentId {
    /// Position in the store.
    pub slot: u32,
    /// Counts the slot's owners.
    pub incarnation: u32,
}

impl fmt::Display for ExtentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "extent {}.{}", self.slot, self.incarnation)
    }
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BulkError {
    /// No room; nothing was written.
    #[error("no room for {wanted} bytes: {free} of {total} are free")]
    NoSpace {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes free.
        free: u64,
        /// The store's size.
        total: u64,
    },
    /// No such blob or extent.
    #[error("{what} does not exist in this store")]
    NotFound {
        /// Which.
        what: String,
    },
    /// Stored bytes do not match their checksum.
    #[error("{what} is damaged: {why}")]
    Corrupt {
        /// Which.
        what: String,
        /// What did not match.
        why: String,
    },
    /// The store cannot be opened: wrong magic, version, size.
    #[error("{what} cannot be opened: {why}")]
    Open {
        /// The store.
        what: String,
        /// Why, and what to try.
        why: String,
    },
    /// The disk failed.
    #[error("the bulk store's disk failed")]
    Disk(#[from] DiskError),
}

/// Space, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// All that data may use.
    pub total: u64,
    /// Given out or reserved.
    pub used: u64,
}

/// Bulk data of one store, as one core sees it.
pub trait BulkStore: Clone + 'static {
    /// A blob being written. Dropping it unsealed frees its space.
    type Writer: BlobWriter;
    /// What a transfer that was [begun](Self::begin) holds.
    type Begun: 'static;

    /// Starts a blob. `len` reserves that much; `None` reserves as it grows (`NoSpace` may then come later, with nothing
    /// of the blob left behind).
    fn create(&self, len: Option<u64>) -> impl Future<Output = Result<Self::Writer, BulkError>>;
    /// Fills `buf` (owned, any length) from the blob's byte `at`; past the end is `Corrupt`'s sibling `NotFound`.
    /// `at` and the length need no alignment.
    fn read_blob(&self, blob: BlobId, at: u64, buf: Buf) -> impl Future<Output = (Result<(), BulkError>, Buf)>;
    /// The sealed blob's length in bytes.
    fn blob_len(&self, blob: BlobId) -> Option<u64>;
    /// Removes sealed blobs, durably; absent ones are no error. Space in use by a read under way is freed after it.
    fn delete(&self, blobs: Vec<BlobId>) -> impl Future<Output = Result<(), BulkError>>;
    /// Up to `limit` sealed blobs with ids above `after`, ascending.
    fn list(&self, after: BlobId, limit: usize) -> Vec<BlobId>;

    /// Reserves an extent. Its contents are undefined (old bytes of anyone): the caller masks what it has not written.
    /// It is owned for good only after `keep_extents`; until then a crash frees it.
    fn alloc_extent(&self) -> Result<ExtentId, BulkError>;
    /// Makes ownership of the extents durable (with the data written to them so far, as `flush`).
    fn keep_extents(&self, extents: Vec<ExtentId>) -> impl Future<Output = Result<(), BulkError>>;
    /// Frees extents, durably.
    fn free_extents(&self, extents: Vec<ExtentId>) -> impl Future<Output = Result<(), BulkError>>;
    /// All kept extents, for finding those that no map names.
    fn kept_extents(&self) -> Vec<ExtentId>;
    /// Reads in place; `at + buf.len() <= EXTENT_BYTES`, multiples of 512. No checksum at this level.
    fn read_extent(&self, extent: ExtentId, at: u64, buf: Buf) -> impl Future<Output = (Result<(), BulkError>, Buf)>;
    /// Writes in place.
    fn write_extent(&self, extent: ExtentId, at: u64, buf: Buf) -> impl Future<Output = (Result<(), BulkError>, Buf)>;
    /// Begins an in-place transfer whose end comes to `to` under `token`, as [`karri_engine::disk::Disk::begin`]; after which
    /// the caller calls [`end`](Self::end), however it ended. The default refuses all.
    ///
    /// # Errors
    /// The buffer, and nothing was begun: `read_extent` and `write_extent` can do it, or say why not.
    fn begin(
        &self,
        dir: Dir,
        extent: ExtentId,
        at: u64,
        buf: Buf,
        to: &Landings,
        token: u64,
    ) -> Result<Self::Begun, Buf> {
        let _ = (dir, extent, at, to, token);
        Err(buf)
    }
    /// A transfer that was begun is over.
    fn end(&self, begun: Self::Begun) {
        drop(begun);
    }
    /// Makes every completed `write_extent` durable.
    fn flush(&self) -> impl Future<Output = Result<(), BulkError>>;

    /// Space.
    fn usage(&self) -> Usage;
}

/// A blob being written, front to back.
pub trait BlobWriter: 'static {
    /// Its id, known from the start.
    fn id(&self) -> BlobId;
    /// Appends an owned buffer of any length (whole multiples of 64 KiB avoid a copy). Back-pressure: resolves when the
    /// writer can take more, not when the bytes are on disk.
    fn append(&mut self, buf: Buf) -> impl Future<Output = Result<(), BulkError>>;
    /// Waits for all data, writes the record and makes both durable. Answers the length.
    fn seal(self) -> impl Future<Output = Result<u64, BulkError>>;
}

/// Refuses an extent access that is not whole sectors inside the extent.
fn check_extent_range(op: &'static str, at: u64, len: usize) -> Result<(), BulkError> {
    const SECTOR: u64 = karri_base::units::SECTOR_BYTES;
    let len = len as u64;
    if (at | len).is_multiple_of(SECTOR) && len <= EXTENT_BYTES && at <= EXTENT_BYTES - len {
        return Ok(());
    }
    Err(DiskError::Bounds { op, at, len, size: EXTENT_BYTES }.into())
}
