//! Mutual-TLS channels between roles: they connect when first used, and again by themselves.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use karri_base::config::Config;
use karri_base::role::PeerChannels;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, ServerTlsConfig};

use crate::pki;
use crate::role::Role;

/// One identity and the authority that it trusts.
#[derive(Clone)]
pub struct Credentials {
    ca: Certificate,
    identity: Identity,
}

impl Credentials {
    /// Reads the PEM files.
    pub fn read(files: &pki::Files) -> Result<Self> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
        Ok(Self {
            ca: Certificate::from_pem(read(&files.ca)?),
            identity: Identity::from_pem(read(&files.cert)?, read(&files.key)?),
        })
    }

    /// What a listener asks and shows.
    pub fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new().identity(self.identity.clone()).client_ca_root(self.ca.clone())
    }

    /// A channel to the role that listens at `addr`.
    pub fn channel(&self, role: Role, addr: SocketAddr) -> Result<Channel> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(self.ca.clone())
            .identity(self.identity.clone())
            .domain_name(role.name());
        let endpoint = Endpoint::from_shared(format!("https://{addr}"))
            .and_then(|endpoint| endpoint.tls_config(tls))
            .with_context(|| format!("a channel to {role} at {addr}"))?;
        // A peer that died without a word is noticed by the pings; calls themselves may take long.
        Ok(endpoint
            .connect_timeout(Duration::from_secs(2))
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .connect_lazy())
    }
}

/// Channels to every peer that the configuration names.
pub fn channels(config: &Config, credentials: &Credentials) -> Result<PeerChannels> {
    let to = |role, addr: Option<SocketAddr>| addr.map(|addr| credentials.channel(role, addr)).transpose();
    Ok(PeerChannels {
        cloud: to(Role::Cloud, config.peers.cloud)?,
        cluster: to(Role::Cluster, config.peers.cluster)?,
        node: to(Role::Node, config.peers.node)?,
        storage: to(Role::Storage, config.peers.storage)?,
        walrus: to(Role::Walrus, config.peers.walrus)?,
    })
}
