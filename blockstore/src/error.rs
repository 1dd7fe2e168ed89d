//! What can go wrong with volumes, and its words at each edge: virtio status and gRPC code.

use karri_bulk::BulkError;
use karri_meta::MetaError;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The request goes past the volume's end or is not in whole sectors.
    #[error("{op} of {len} bytes at {at} is past the end of volume {volume} ({size} bytes) or not in whole sectors")]
    Bounds {
        /// `read`, `write`, ...
        op: &'static str,
        /// The volume.
        volume: String,
        /// Offset in bytes.
        at: u64,
        /// Length in bytes.
        len: u64,
        /// The volume's size in bytes.
        size: u64,
    },
    /// The store has no room.
    #[error("volume {volume}: the store has no room")]
    NoSpace {
        /// The volume.
        volume: String,
        /// The store's words.
        source: BulkError,
    },
    /// The bulk store failed.
    #[error("volume {volume}: {op} failed in the bulk store")]
    Bulk {
        /// The volume.
        volume: String,
        /// `read`, `write`, `flush`, ...
        op: &'static str,
        /// Why.
        source: BulkError,
    },
    /// The metadata store failed.
    #[error("{what}: {op} failed in the metadata store")]
    Meta {
        /// The volume or record.
        what: String,
        /// `load`, `commit`, ...
        op: &'static str,
        /// Why.
        source: MetaError,
    },
    /// An earlier flush failed, so what it should have made durable may be lost: nothing more is accepted.
    #[error("volume {volume} stopped after a failed flush; export it again: {why}")]
    Stopped {
        /// The volume.
        volume: String,
        /// The first failure.
        why: String,
    },
    /// Stored bytes are not what was written.
    #[error("{what} is damaged: {why}")]
    Corrupt {
        /// Which.
        what: String,
        /// What did not match.
        why: String,
    },
    /// No such volume or image.
    #[error("{what} does not exist")]
    NotFound {
        /// Which.
        what: String,
    },
    /// It exists with other parameters.
    #[error("volume {volume} exists already with {why}")]
    Exists {
        /// The volume.
        volume: String,
        /// What differs.
        why: String,
    },
    /// It is in use.
    #[error("volume {volume} is in use: {why}")]
    InUse {
        /// The volume.
        volume: String,
        /// By what.
        why: String,
    },
    /// The caller's attachment was replaced by a newer one.
    #[error("volume {volume} is exported with generation {current}; {asked} is older")]
    Fenced {
        /// The volume.
        volume: String,
        /// The generation asked for.
        asked: u64,
        /// The one that holds.
        current: u64,
    },
    /// A parameter makes no sense.
    #[error("{what}: {why}")]
    Invalid {
        /// Which.
        what: String,
        /// Why, and what to try.
        why: String,
    },
    /// An image could not be read from Walrus.
    #[error("image {what}: {why}")]
    Image {
        /// Bucket and key.
        what: String,
        /// Why, and what to try.
        why: String,
        /// Whether trying again may help.
        transient: bool,
    },
    /// A socket could not be served.
    #[error("socket {path}: {why}")]
    Socket {
        /// Its path.
        path: String,
        /// Why, and what to try.
        why: String,
    },
    /// The role is stopping.
    #[error("storage is shutting down")]
    Closed,
}

impl Error {
    /// The gRPC answer: the one table from kind to code.
    pub fn status(&self) -> tonic::Status {
        use tonic::Code;
        let code = match self {
            Self::Bounds { .. } | Self::Invalid { .. } => Code::InvalidArgument,
            Self::NoSpace { .. } => Code::ResourceExhausted,
            Self::NotFound { .. } => Code::NotFound,
            Self::Exists { .. } => Code::AlreadyExists,
            Self::InUse { .. } | Self::Fenced { .. } => Code::FailedPrecondition,
            Self::Corrupt { .. } => Code::DataLoss,
            Self::Image { transient: true, .. } | Self::Closed => Code::Unavailable,
            Self::Image { .. } => Code::FailedPrecondition,
            Self::Bulk { .. } | Self::Meta { .. } | Self::Stopped { .. } | Self::Socket { .. } => Code::Internal,
        };
        tonic::Status::new(code, self.chain())
    }

    /// The message with its causes.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(e) = source {
            text.push_str(": ");
            text.push_str(&e.to_string());
            source = e.source();
        }
        text
    }
}
