//! What a role is to the process that runs it: a service crate starts one, the binary gives it listeners.

use std::collections::BTreeMap;

use tonic::transport::Channel;

/// Lazily connected mutual-TLS channels to the other roles, made by the binary from `[peers]`.
#[derive(Debug, Clone, Default)]
pub struct PeerChannels {
    /// The cloud.
    pub cloud: Option<Channel>,
    /// The zone's cluster.
    pub cluster: Option<Channel>,
    /// This host's node.
    pub node: Option<Channel>,
    /// This host's storage.
    pub storage: Option<Channel>,
    /// Walrus.
    pub walrus: Option<Channel>,
}

/// A role's own view of its health; the binary adds name, version, pid and uptime.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// Why it is not healthy; `None` when it is.
    pub trouble: Option<String>,
    /// Capacity figures by name, such as `store_bytes_total`.
    pub capacity: BTreeMap<String, u64>,
}

/// A started role.
#[tonic::async_trait]
pub trait Running: Send + Sync + 'static {
    /// The role's gRPC services, served by the binary with mutual TLS. Called once.
    fn routes(&self) -> tonic::service::Routes;
    /// Its health now; must answer at once.
    fn health(&self) -> Health;
    /// Stops it cleanly: what was acknowledged is durable, what was begun is finished or undone.
    async fn shutdown(&self);
}
