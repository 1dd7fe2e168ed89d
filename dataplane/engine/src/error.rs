//! The engine's error: what kept a core, a disk or a socket from starting. Running I/O reports `DiskError` and
//! `std::io::Error`.

use std::io;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// This machine or container does not let us use io_uring as we need it.
    #[error("io_uring is not usable here: {why}. To fix it: {fix}")]
    Unsupported {
        /// What is missing.
        why: String,
        /// What to change.
        fix: String,
        /// The system's answer, where there was one.
        #[source]
        source: Option<io::Error>,
    },
    /// A system call failed while something was being set up.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was to be done, on what.
        action: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Neither a file nor a block device, of no whole number of pages, ...
    #[error("{what} cannot be a disk: {why}")]
    NotADisk {
        /// Its path.
        what: String,
        /// Why not and what to try.
        why: String,
    },
    /// The core is stopping or gone.
    #[error("the core is stopping")]
    Closed,
}

impl EngineError {
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}
