//! The five roles by name.

use std::fmt;

/// A role process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// AWS APIs but S3, identity, scheduling.
    Cloud,
    /// One availability zone.
    Cluster,
    /// One host's virtual machines.
    Node,
    /// One host's volumes.
    Storage,
    /// S3.
    Walrus,
}

impl Role {
    /// All of them, in the order that `karri status` shows.
    pub const ALL: [Self; 5] = [Self::Cloud, Self::Cluster, Self::Node, Self::Storage, Self::Walrus];

    /// Its name: the subcommand, the certificate's DNS name, the label of logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Cluster => "cluster",
            Self::Node => "node",
            Self::Storage => "storage",
            Self::Walrus => "walrus",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
