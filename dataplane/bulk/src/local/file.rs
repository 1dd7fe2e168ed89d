//! Stores on a real file or block device: opening it once with the lock, and again for each other core.

use std::path::Path;

use karri_engine::disk::uring::{OpenOptions, UringDisk};

use super::{LocalStore, Options};
use crate::BulkError;

/// Opens `path` on this core and locks it against every other opener. A file that is not there, or empty, is made, sparse
/// and of `size` bytes; otherwise, and for block devices, the size is what it is.
///
/// # Errors
/// `Open`: locked by another process, no such folder, no disk, no size given for a new file.
///
/// # Panics
/// Outside an engine core.
pub fn open_file(path: impl AsRef<Path>, size: Option<u64>) -> Result<UringDisk, BulkError> {
    let path = path.as_ref();
    let new = std::fs::metadata(path).map_or(true, |m| m.is_file() && m.len() == 0);
    let size = if new { size } else { None };
    if new && size.is_none() {
        let why = "it is not there (or empty) and no size was given to make it".to_owned();
        return Err(BulkError::Open { what: path.display().to_string(), why });
    }
    open(path, &OpenOptions { create: new, size, lock: true, ..OpenOptions::default() })
}

/// Opens on this core what another core of this process has opened with [`open_file`].
///
/// # Errors
/// `Open`.
///
/// # Panics
/// Outside an engine core.
pub fn open_again(path: impl AsRef<Path>) -> Result<UringDisk, BulkError> {
    open(path.as_ref(), &OpenOptions::default())
}

fn open(path: &Path, options: &OpenOptions) -> Result<UringDisk, BulkError> {
    let failed =
        |e: karri_engine::EngineError| BulkError::Open { what: path.display().to_string(), why: e.to_string() };
    UringDisk::open(path, options).map_err(failed)
}

impl LocalStore<UringDisk> {
    /// Opens the store at `path`, making file and store as needed: [`open_file`] and
    /// [`open_or_format`](Self::open_or_format).
    ///
    /// # Errors
    /// As theirs.
    ///
    /// # Panics
    /// Outside an engine core.
    pub async fn at(path: impl AsRef<Path>, size: Option<u64>) -> Result<Self, BulkError> {
        let path = path.as_ref();
        let disk = open_file(path, size)?;
        Self::open_or_format(disk, &path.display().to_string(), Options::default()).await
    }
}
