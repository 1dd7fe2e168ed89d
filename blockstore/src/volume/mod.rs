//! `Volume`: the seam between whatever speaks a block protocol and whatever stores blocks.
//!
//! Implementations: [`ExtentVolume`] (thin extents of a bulk store through a map in the metadata store) and
//! [`MemoryVolume`] (twin). Both pass [`conformance`]. A volume belongs to the core that opened it; clones share it.
//!
//! What a caller may rely on:
//! - Offsets and lengths are multiples of 512; anything else, or past the end, is `Bounds` and nothing happened.
//! - A buffer comes back with its completion, also on errors.
//! - What was never written, was discarded or had zeroes written reads as zeros.
//! - An answered request survives the death of the process (kill -9), flushed or not, where the volume has a journal.
//! - `flush` that began after a write's completion makes that write durable; `write` with `fua` is durable at its
//!   completion. A crash may keep, lose or tear (at 512-byte sectors) any other write, discard or write-zeroes: each sector
//!   is then the old or the new one, never anything else.
//! - A request is polled to its completion: dropped half-way, its I/O may still land, so only the end of the process may
//!   drop one.
//! - Requests may overlap. Where they do, sectors come from either; sectors that only one of them names are its own.

pub mod conformance;
#[cfg(test)]
mod crash_tests;
mod extent;
#[cfg(test)]
mod extent_tests;
pub mod journal;
mod limited;
mod memory;
mod order;

use std::future::Future;

use karri_engine::buf::Buf;
use karri_engine::disk::Dir;
use karri_engine::landing::Landings;

pub use extent::{ExtentVolume, Stats, load_map};
pub use limited::{Limited, Limits};
pub use memory::MemoryVolume;

use crate::error::Error;

/// virtio's sector, in bytes: every offset and length is a multiple.
pub const SECTOR_BYTES: u64 = karri_base::units::SECTOR_BYTES;

/// A transfer's outcome, and its buffer.
pub type Done = (Result<(), Error>, Buf);

/// A block device of a fixed size.
pub trait Volume: Clone + 'static {
    /// What a transfer that was [begun](Self::begin) holds.
    type Begun: 'static;

    /// Its name, for logs and GET_ID.
    fn name(&self) -> &str;
    /// Bytes, a multiple of 512.
    fn size(&self) -> u64;
    /// Fills `buf` from `at`.
    fn read(&self, at: u64, buf: Buf) -> impl Future<Output = Done>;
    /// Writes `buf` at `at`; durable at completion when `fua`.
    fn write(&self, at: u64, buf: Buf, fua: bool) -> impl Future<Output = Done>;
    /// Begins a transfer in place whose end comes to `to` under `token`, without a future or an allocation: the common case
    /// of whole blocks that are mapped, in one piece. The caller hands what this answers to [`end`](Self::end) when it
    /// has landed; until then the request is under way. The default refuses all.
    ///
    /// # Errors
    /// The buffer, and nothing was begun: `read` and `write` can do it, or say why not.
    fn begin(&self, dir: Dir, at: u64, buf: Buf, to: &Landings, token: u64) -> Result<Self::Begun, Buf> {
        let _ = (dir, at, to, token);
        Err(buf)
    }
    /// A transfer that was begun is over: `done` when all bytes went. Otherwise the caller does it again by `read` or
    /// `write`, which then answer why not.
    fn end(&self, begun: Self::Begun, done: bool) {
        let _ = (begun, done);
    }
    /// Makes every completed change durable.
    fn flush(&self) -> impl Future<Output = Result<(), Error>>;
    /// Gives whole extents of the range back; whole 4 KiB blocks of it then read as zeros.
    fn discard(&self, at: u64, len: u64) -> impl Future<Output = Result<(), Error>>;
    /// Makes all of the range read as zeros, giving space back.
    fn write_zeroes(&self, at: u64, len: u64) -> impl Future<Output = Result<(), Error>>;
}

/// Refuses what does not lie in whole sectors inside a volume of `size` bytes.
fn check_bounds(op: &'static str, volume: &str, at: u64, len: u64, size: u64) -> Result<(), Error> {
    let inside = at.checked_add(len).is_some_and(|end| end <= size);
    if inside && at.is_multiple_of(SECTOR_BYTES) && len.is_multiple_of(SECTOR_BYTES) {
        return Ok(());
    }
    Err(Error::Bounds { op, volume: volume.to_owned(), at, len, size })
}
