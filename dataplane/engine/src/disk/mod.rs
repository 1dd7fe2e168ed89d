//! `Disk`: the seam under every store. A disk is a flat run of bytes that forgets unflushed writes at a crash.
//!
//! Twins: `uring` (a file or block device, O_DIRECT, on this core's ring) and `sim` (seeded: reordering, latency, short
//! I/O, torn and lost unsynced writes, bit rot, EIO and ENOSPC, crash at any point).
//!
//! What a caller may rely on:
//! - A completion is all bytes or an error: a short transfer is carried on or reported, never passed over.
//! - A buffer comes back with its completion, also on errors; dropping the future does not free it early.
//! - `flush` that began after a write's completion makes that write durable. `write` with `fua` is durable at its
//!   completion. Without either, a crash may keep, lose or tear (at 512-byte sectors) any such write, in any order.
//! - Offsets, lengths and addresses of owned memory are multiples of [`crate::buf::ALIGN`]; foreign memory may be aligned
//!   to 512 bytes where the device allows it (`uring` bounces what O_DIRECT refuses).

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod sim;
#[cfg(test)]
mod sim_tests;
pub mod uring;

use std::future::Future;

use crate::buf::Buf;
use crate::landing::Landings;

/// Which way a transfer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dir {
    /// From the disk.
    Read,
    /// To it.
    Write,
}

impl Dir {
    /// `read` or `write`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// A transfer's outcome, and its buffer.
pub type Done = (Result<(), DiskError>, Buf);

/// What went wrong on a disk, as far as a caller can act on it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// The device reported an error (EIO and others).
    #[error("{op} of {len} bytes at {at} failed: {why}")]
    Io {
        /// `read`, `write`, `flush`, ...
        op: &'static str,
        /// Offset in bytes.
        at: u64,
        /// Length in bytes.
        len: u64,
        /// The system's words.
        why: String,
    },
    /// No space under a sparse file (ENOSPC, EDQUOT).
    #[error("no space on the device for {len} bytes at {at}")]
    NoSpace {
        /// Offset in bytes.
        at: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The request goes past the end or is misaligned: our bug, or a damaged record.
    #[error("{op} of {len} bytes at {at} is outside the disk of {size} bytes or misaligned")]
    Bounds {
        /// `read`, `write`, ...
        op: &'static str,
        /// Offset in bytes.
        at: u64,
        /// Length in bytes.
        len: u64,
        /// The disk's size in bytes.
        size: u64,
    },
    /// The disk is being closed.
    #[error("the disk is closed")]
    Closed,
}

/// A disk, used on the core that opened it.
pub trait Disk: Clone + 'static {
    /// Bytes; fixed while open.
    fn size(&self) -> u64;
    /// Fills `buf` from `at`.
    fn read(&self, at: u64, buf: Buf) -> impl Future<Output = Done>;
    /// Writes `buf` at `at`; durable at completion when `fua`.
    fn write(&self, at: u64, buf: Buf, fua: bool) -> impl Future<Output = Done>;
    /// Begins a plain transfer (not `fua`) whose end comes to `to` under `token`, without a future: what came of it is for
    /// the caller to judge, who does it again by `read` or `write` if it was short or failed. What is not as simple as one
    /// operation is refused: the buffer comes back, and nothing was begun.
    ///
    /// # Errors
    /// The buffer.
    fn begin(&self, dir: Dir, at: u64, buf: Buf, to: &Landings, token: u64) -> Result<(), Buf> {
        let _ = (dir, at, to, token);
        Err(buf)
    }
    /// Makes every completed write durable.
    fn flush(&self) -> impl Future<Output = Result<(), DiskError>>;
    /// Gives the range's space back; it reads as zeros or as before until written.
    fn discard(&self, at: u64, len: u64) -> impl Future<Output = Result<(), DiskError>>;
    /// Makes the range read as zeros (durable after a flush), giving space back where `unmap`.
    fn write_zeroes(&self, at: u64, len: u64, unmap: bool) -> impl Future<Output = Result<(), DiskError>>;
}
