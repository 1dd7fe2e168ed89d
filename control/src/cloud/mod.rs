//! The cloud role: the EC2, IAM and STS APIs, and the flows behind them.
//!
//! ```text
//!  aws cli --HTTP--> http -> api -> store (records, desired state) <--+
//!                                     | kick                          | commits each step
//!                                     v                               |
//!                                   flow --gRPC--> cluster, storage --+
//!  walrus --gRPC--> crate::identity watch --gRPC--> reports: begins flows where they differ
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`http`] | the listener: limits, signatures, routing |
//! | [`api`] | the actions, one file per family |
//! | [`records`], [`store`] | what is kept, and how it changes |
//! | [`flow`] | steps with undo, resumable |
//! | [`watch`] | the reconciler |
//! | [`peers`], [`objects`] | whom it calls |
//! | [`identity`] | the accounts and keys that it starts with; identities themselves are `crate::identity` |
//!
//! Promises: what was acknowledged survives kill -9; a restart goes on where each flow stood. Leaves placement to the
//! cluster, VMs to nodes and data to storage and Walrus.

pub mod api;
pub mod error;
pub mod flow;
pub mod http;
pub mod identity;
pub mod instance_types;
pub mod metrics;
pub mod network;
pub mod objects;
pub mod peers;
pub mod records;
pub mod store;
pub mod watch;

#[cfg(test)]
pub(crate) mod fakes;
#[cfg(test)]
mod http_tests;
#[cfg(test)]
mod tenant_tests;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod watch_tests;
#[cfg(test)]
mod zone_tests;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use karri_base::aws::verify::Verifier;
use karri_base::clock::{Clock, SystemClock};
use karri_base::config::{Config, Credentials};
use karri_base::proto::identity_server::IdentityServer;
use karri_base::role::{Health, PeerChannels, Running};
use karri_meta::MetaStore;
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::audit::Trail;
use crate::identity::Directory;
use crate::identity::state::StateError;
use crate::identity::told::IdentityService;
use crate::wire::generated::ec2::{InstanceStateName, VolumeState};
use flow::Flows;
use metrics::Metrics;
use peers::{Absent, Cluster, GrpcCluster, GrpcStorage, Objects, Storage};
use records::{Image, Instance, Volume};
use store::{Store, StoreError};
use watch::Watch;

/// Why the role cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file lacks a section.
    #[error("the configuration has no [cloud] section; `karri cloud` needs one with `api` and `credentials`")]
    NoSection,
    /// The credentials cannot be read.
    #[error("credentials file {}: {why}; want account_id, [admin] and [system] with access_key_id and secret_access_key", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The records cannot be read.
    #[error("the cloud's records cannot be read")]
    Store(#[from] StoreError),
    /// Identities cannot be read.
    #[error("the records of identities cannot be read")]
    Identities(#[from] StateError),
    /// The key that seals secrets cannot be read or made.
    #[error("identity key {}: {why}; it must have 32 bytes, and without it the secrets kept cannot be opened", path.display())]
    IdentityKey {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Calls cannot be told to the audit log.
    #[error("audit log {}: {source}", path.display())]
    Audit {
        /// The file.
        path: PathBuf,
        /// The system's.
        source: std::io::Error,
    },
    /// The listener is taken.
    #[error("cannot listen on {addr} ([cloud] api): is another karri running there?")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The system's words.
        source: std::io::Error,
    },
    /// The S3 endpoint is none.
    #[error("[peers] s3: {0}")]
    Endpoint(String),
}

/// Everything that requests work with.
pub struct Cloud {
    /// Of all answers.
    pub region: String,
    /// The one availability zone.
    pub zone: String,
    /// Records.
    pub store: Store,
    /// Accounts, users, roles, policies, keys.
    pub directory: Arc<Directory>,
    /// Where calls are told.
    pub trail: Option<Trail>,
    /// The work on them.
    pub flows: Flows,
    /// The zone.
    pub cluster: Arc<dyn Cluster>,
    /// Its volumes.
    pub storage: Arc<dyn Storage>,
    /// Image objects.
    pub objects: Arc<dyn Objects>,
    /// Wall time.
    pub clock: Arc<dyn Clock>,
    /// What the last report said.
    pub watch: Watch,
    /// Checks signatures.
    pub verifier: Verifier,
    /// Counters.
    pub metrics: Metrics,
    /// Where the next search for a free address begins.
    pub next_address: AtomicU32,
}

/// What a cloud is put together from; the real things in [`start`], fakes in tests.
pub struct Parts {
    /// Of all answers.
    pub region: String,
    /// The one availability zone.
    pub zone: String,
    /// Account and keys.
    pub credentials: Credentials,
    /// What seals secrets and sessions.
    pub identity_key: [u8; 32],
    /// Keys of OpenID Connect providers.
    pub oidc: PathBuf,
    /// The audit log.
    pub trail: Option<Trail>,
    /// The store of records.
    pub meta: Arc<dyn MetaStore>,
    /// The zone.
    pub cluster: Arc<dyn Cluster>,
    /// Its volumes.
    pub storage: Arc<dyn Storage>,
    /// Image objects.
    pub objects: Arc<dyn Objects>,
    /// Wall time.
    pub clock: Arc<dyn Clock>,
    /// How patient flows are.
    pub flow_settings: flow::Settings,
    /// How often the reconciler looks.
    pub watch_settings: watch::Settings,
}

/// Resolves when the role is told to stop, or is gone.
pub(crate) async fn stopped(stop: &mut tokio::sync::watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The role as it runs.
pub struct CloudRole {
    cloud: Arc<Cloud>,
    addr: SocketAddr,
    stop: tokio::sync::watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// Where the APIs are served.
#[derive(Debug, Clone)]
pub struct Listen {
    /// For clients; port 0 picks one.
    pub api: SocketAddr,
    /// What is spoken there; `None`: plain HTTP.
    pub tls: Option<Arc<ServerConfig>>,
    /// Plain HTTP, beside TLS.
    pub inner: Option<SocketAddr>,
}

impl From<SocketAddr> for Listen {
    fn from(api: SocketAddr) -> Self {
        Self { api, tls: None, inner: None }
    }
}

async fn bind(addr: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(addr).await.map_err(|source| StartError::Listen { addr, source })
}

/// Starts the role; over TLS where it is configured, as `tls` says.
///
/// # Errors
/// See [`StartError`].
pub async fn start(
    config: &Config,
    peers: PeerChannels,
    meta: Arc<dyn MetaStore>,
    registry: &mut Registry,
    tls: Option<Arc<ServerConfig>>,
) -> Result<Arc<dyn Running>, StartError> {
    let section = config.cloud.as_ref().ok_or(StartError::NoSection)?;
    let credentials = identity::read_credentials(&section.credentials)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let cluster: Arc<dyn Cluster> = match peers.cluster {
        Some(channel) => Arc::new(GrpcCluster::new(channel)),
        None => Arc::new(Absent("cluster")),
    };
    let storage: Arc<dyn Storage> = match peers.storage {
        Some(channel) => Arc::new(GrpcStorage::new(channel)),
        None => Arc::new(Absent("storage")),
    };
    let objects: Arc<dyn Objects> = match &config.peers.s3 {
        Some(endpoint) => {
            let (key, region) = (credentials.system.clone(), &config.role.region);
            Arc::new(objects::WalrusObjects::new(endpoint, key, region, clock.clone()).map_err(StartError::Endpoint)?)
        }
        None => Arc::new(objects::NoObjects),
    };
    let parts = Parts {
        region: config.role.region.clone(),
        zone: config.role.zone.clone(),
        credentials,
        identity_key: crate::identity::secrets::key_file(&config.role.state.join("identity.key"))
            .map_err(|(path, why)| StartError::IdentityKey { path, why })?,
        oidc: config.role.state.join("oidc"),
        trail: Some(trail(&config.role.state.join("audit.log"))?),
        meta,
        cluster,
        storage,
        objects,
        clock,
        flow_settings: flow::Settings::default(),
        watch_settings: watch::Settings::default(),
    };
    let listen = Listen { api: section.api, inner: section.inner.filter(|_| tls.is_some()), tls };
    Ok(Arc::new(CloudRole::start(parts, listen, registry).await?))
}

fn trail(path: &Path) -> Result<Trail, StartError> {
    Trail::open(path).map_err(|source| StartError::Audit { path: path.to_owned(), source })
}

impl CloudRole {
    /// Starts a cloud of these parts, its API where `listen` says.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(parts: Parts, listen: impl Into<Listen>, registry: &mut Registry) -> Result<Self, StartError> {
        let Listen { api, tls, inner } = listen.into();
        let listener = bind(api).await?;
        let addr = listener.local_addr().map_err(|source| StartError::Listen { addr: api, source })?;
        let inner = match inner {
            Some(inner) => Some(bind(inner).await?),
            None => None,
        };
        let meta = parts.meta.clone();
        let store = Store::open(parts.meta).await?;
        let directory = Directory::open(meta, parts.identity_key, parts.clock.clone()).await?.with_oidc(parts.oidc);
        identity::import(&store, &directory, &parts.credentials).await?;
        let ring = directory.ring().clone();
        let flows = Flows::new(
            store.clone(),
            parts.cluster.clone(),
            parts.storage.clone(),
            parts.clock.clone(),
            parts.flow_settings,
        );
        let cloud = Arc::new(Cloud {
            region: parts.region,
            zone: parts.zone,
            flows,
            cluster: parts.cluster,
            storage: parts.storage,
            objects: parts.objects,
            clock: parts.clock,
            watch: Watch::default(),
            verifier: Verifier::new(ring),
            metrics: Metrics::new(registry),
            next_address: AtomicU32::new(0),
            directory: Arc::new(directory),
            trail: parts.trail,
            store,
        });
        let stop = tokio::sync::watch::Sender::new(false);
        let mut tasks = Vec::new();
        let secure = tls.is_some();
        tasks.push(tokio::spawn(http::serve(tls, listener, cloud.clone(), stop.subscribe())));
        if let Some(inner) = inner {
            tasks.push(tokio::spawn(http::serve(None, inner, cloud.clone(), stop.subscribe())));
        }
        tasks.push(tokio::spawn({
            let (cloud, mut stop) = (cloud.clone(), stop.subscribe());
            async move {
                tokio::select! {
                    () = watch::run(&cloud, parts.watch_settings) => {}
                    () = stopped(&mut stop) => {}
                }
            }
        }));
        tasks.push(tokio::spawn({
            let (directory, stop) = (cloud.directory.clone(), stop.subscribe());
            async move { directory.keep_uses_hourly(stop).await }
        }));
        cloud.flows.resume(Duration::ZERO);
        tracing::info!(role = "cloud", api = %addr, tls = secure, zone = %cloud.zone, "the APIs are served");
        Ok(Self { cloud, addr, stop, tasks: Mutex::new(tasks) })
    }

    /// Where the APIs listen.
    pub fn api_addr(&self) -> SocketAddr {
        self.addr
    }

    /// What requests work with.
    pub fn cloud(&self) -> &Arc<Cloud> {
        &self.cloud
    }
}

#[tonic::async_trait]
impl Running for CloudRole {
    fn routes(&self) -> tonic::service::Routes {
        let service = IdentityService::new(self.cloud.directory.clone(), self.stop.subscribe());
        tonic::service::Routes::new(IdentityServer::new(service))
    }

    fn health(&self) -> Health {
        let store = &self.cloud.store;
        let figure = |name: &str, n: usize| (name.to_owned(), n as u64);
        // What is over is described for a while, and counts no more.
        let (instances, volumes) = (store.list::<Instance>().into_iter(), store.list::<Volume>().into_iter());
        Health {
            trouble: None,
            capacity: [
                figure("images", store.list::<Image>().len()),
                figure("instances", instances.filter(|i| i.state != InstanceStateName::Terminated).count()),
                figure("volumes", volumes.filter(|v| v.state != VolumeState::Deleted).count()),
                figure("flows", self.cloud.flows.busy()),
            ]
            .into(),
        }
    }

    async fn shutdown(&self) {
        self.stop.send_replace(true);
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            let _ = task.await;
        }
        self.cloud.flows.shutdown().await;
    }
}
