//! What every role process has around the role.
//!
//! ```text
//! karri ROLE --config FILE
//!   read FILE, lock the role's folder, open its records (RocksDB in STATE/meta)
//!   start the role (its crate), then listen: gRPC with mutual TLS for those who may call it, metrics
//!   until SIGTERM, SIGINT, or the supervisor is gone: Running::shutdown within its deadline, end
//! ```
//!
//! A start that fails ends the process with a message and [`START_FAILED`]; nothing listens before the role has started.

pub mod http;

pub use self::http::OPENMETRICS;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use karri_base::config::Config;
use karri_base::observe;
use karri_base::proto::role_server::{Role as RoleService, RoleServer};
use karri_base::proto::{StatusReply, StatusRequest};
use karri_base::role::{PeerChannels, Running};
use karri_meta::MetaStore;
use karri_meta::rocks::{Options, RocksStore};
use karri_objectstore::tls::{API_PROTOCOLS, Certificate};
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::TcpListenerStream;
use tracing::{error, info};

use crate::callers;
use crate::layout::{self, Lock};
use crate::peers;
use crate::pki;
use crate::role::Role;

/// Exit status of a role that could not start: the configuration or something that it names must change first.
pub const START_FAILED: u8 = 78;

/// Set by the supervisor: standard input is a pipe that closes when the supervisor is gone.
pub const SUPERVISED: &str = "KARRI_SUPERVISED";

/// How long a role may take to stop. The supervisor waits a little longer, then kills.
pub const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(25);

/// Runs a role until it is told to stop.
pub fn run(role: Role, config: &Path) -> Result<ExitCode> {
    observe::init_logs();
    // tokio's own set-up fails only where the machine is out of threads.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let code = runtime.block_on(async {
        let stop = stop_requested()?;
        match Process::start(role, config).await {
            Ok(process) => process.serve(stop).await,
            Err(failure) => {
                eprintln!("karri {role}: {failure:#}");
                Ok(ExitCode::from(START_FAILED))
            }
        }
    });
    // Tasks let go of the store before the process ends: RocksDB's own threads must not outlive its static objects.
    runtime.shutdown_timeout(Duration::from_secs(5));
    code
}

/// A role that has started and is about to listen.
struct Process {
    role: Role,
    running: Arc<dyn Running>,
    registry: Registry,
    grpc: TcpListener,
    metrics: TcpListener,
    tls: tonic::transport::ServerTlsConfig,
    began: Instant,
    _lock: Lock,
}

impl Process {
    async fn start(role: Role, path: &Path) -> Result<Self> {
        let config: Config = layout::read_toml(path)?;
        check(role, &config).with_context(|| format!("{} does not suit the {role} role", path.display()))?;
        let state = &config.role.state;
        layout::private_dir(state)?;
        let lock = lock(role, state).await?;

        let files =
            pki::Files { ca: config.tls.ca.clone(), cert: config.tls.cert.clone(), key: config.tls.key.clone() };
        let credentials = peers::Credentials::read(&files)?;
        let channels = peers::channels(&config, &credentials)?;
        let bind = async |what: &str, addr| {
            TcpListener::bind(addr).await.with_context(|| format!("listening on {addr} for {what}"))
        };
        let grpc = bind("gRPC ([role] grpc)", config.role.grpc).await?;
        let metrics = bind("metrics ([role] metrics)", config.role.metrics).await?;

        let mut registry = observe::registry(role.name());
        let meta = records(&state.join("meta"), &mut registry).await?;
        let running = start_role(role, &config, channels, meta, &mut registry).await?;
        info!(role = role.name(), grpc = %config.role.grpc, metrics = %config.role.metrics, "started");
        Ok(Self {
            role,
            running,
            registry,
            grpc,
            metrics,
            tls: credentials.server(),
            began: Instant::now(),
            _lock: lock,
        })
    }

    async fn serve(self, stop: impl Future<Output = ()>) -> Result<ExitCode> {
        let status = Status { role: self.role, running: self.running.clone(), began: self.began };
        let routes = callers::guarded(self.running.routes().add_service(RoleServer::new(status)));
        let grpc = tonic::transport::Server::builder()
            .tls_config(self.tls)?
            .tcp_nodelay(true)
            .http2_keepalive_interval(Some(Duration::from_secs(10)))
            .add_routes(routes)
            .serve_with_incoming(TcpListenerStream::new(self.grpc));
        let running = self.running.clone();
        let metrics = http::serve(self.metrics, move || running.health().trouble, Arc::new(self.registry));
        let code = tokio::select! {
            // Listeners go on answering until the role has stopped: others see it drain, not vanish.
            code = async { stop.await; stop_role(self.role.name(), self.running.as_ref()).await } => code,
            ended = grpc => {
                error!(role = self.role.name(), error = ?ended.err(), "the gRPC listener ended");
                ExitCode::FAILURE
            }
            ended = metrics => {
                error!(role = self.role.name(), error = ?ended.err(), "the metrics listener ended");
                ExitCode::FAILURE
            }
        };
        Ok(code)
    }
}

async fn stop_role(name: &str, running: &dyn Running) -> ExitCode {
    info!(role = name, "stopping");
    match tokio::time::timeout(SHUTDOWN_DEADLINE, running.shutdown()).await {
        Ok(()) => {
            info!(role = name, "stopped");
            ExitCode::SUCCESS
        }
        Err(_) => {
            error!(role = name, seconds = SHUTDOWN_DEADLINE.as_secs(), "did not stop in time; ending anyway");
            ExitCode::FAILURE
        }
    }
}

/// What a role needs of its file beyond the common parts.
fn check(role: Role, config: &Config) -> Result<()> {
    let there = match role {
        Role::Cloud => config.cloud.is_some(),
        Role::Cluster => true,
        Role::Node => config.node.is_some(),
        Role::Storage => config.storage.is_some(),
        Role::Walrus => config.walrus.is_some(),
    };
    if !there {
        bail!("it has no [{role}] section");
    }
    Ok(())
}

/// A role that was just killed, or whose supervisor was, may need a moment to end.
async fn lock(role: Role, state: &Path) -> Result<Lock> {
    let path = state.join("lock");
    let patience = Instant::now() + Duration::from_secs(10);
    loop {
        match Lock::take(&path)? {
            Ok(lock) => return Ok(lock),
            Err(holder) if Instant::now() > patience => {
                bail!("another {role} role{holder} runs on {}; stop it first", state.display())
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// A role's records.
pub async fn records(path: &Path, registry: &mut Registry) -> Result<Arc<dyn MetaStore>> {
    let path = path.to_owned();
    let store = tokio::task::spawn_blocking(move || RocksStore::open(path, &Options::default())).await??;
    store.register(registry);
    Ok(Arc::new(store))
}

async fn start_role(
    role: Role,
    config: &Config,
    peers: PeerChannels,
    meta: Arc<dyn MetaStore>,
    registry: &mut Registry,
) -> Result<Arc<dyn Running>> {
    match role {
        Role::Cloud => {
            let tls =
                config.cloud.as_ref().map(|c| api_tls(c.tls_cert.as_deref(), c.tls_key.as_deref())).transpose()?;
            Ok(karri_control::cloud::start(config, peers, meta, registry, tls.flatten()).await?)
        }
        Role::Cluster => Ok(karri_control::cluster::start(config, peers, meta, registry).await?),
        Role::Node => Ok(karri_control::node::start(config, peers, meta, registry).await?),
        Role::Storage => Ok(karri_blockstore::role::start(config, peers, meta, registry).await?),
        Role::Walrus => Ok(karri_objectstore::role::start(config, peers, meta, registry).await?),
    }
}

/// What the APIs' listener shows over TLS: the files' certificate, renewed as they are.
fn api_tls(cert: Option<&Path>, key: Option<&Path>) -> Result<Option<Arc<ServerConfig>>> {
    let (cert, key) = match (cert, key) {
        (Some(cert), Some(key)) => (cert, key),
        (None, None) => return Ok(None),
        _ => bail!("tls_cert and tls_key in [cloud] go together"),
    };
    let certificate = Certificate::open(cert, key)?;
    let config = certificate.server(API_PROTOCOLS)?;
    tokio::spawn(certificate.watch());
    Ok(Some(config))
}

/// Resolves at SIGTERM, SIGINT, or when the supervisor is gone.
pub fn stop_requested() -> Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (orphaned, orphan) = tokio::sync::oneshot::channel();
    if std::env::var_os(SUPERVISED).is_some() {
        // Its own thread: tokio's standard input would hold the runtime back at its end.
        std::thread::Builder::new().name("supervisor".into()).spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            let _ = orphaned.send(());
        })?;
    } else {
        std::mem::forget(orphaned);
    }
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
            _ = orphan => info!("the supervisor is gone"),
        }
    })
}

/// What `karri status` asks.
struct Status {
    role: Role,
    running: Arc<dyn Running>,
    began: Instant,
}

#[tonic::async_trait]
impl RoleService for Status {
    async fn status(&self, _: tonic::Request<StatusRequest>) -> Result<tonic::Response<StatusReply>, tonic::Status> {
        let health = self.running.health();
        Ok(tonic::Response::new(StatusReply {
            role: self.role.name().into(),
            version: env!("CARGO_PKG_VERSION").into(),
            healthy: health.trouble.is_none(),
            message: health.trouble.unwrap_or_default(),
            capacity: health.capacity.into_iter().collect(),
            pid: std::process::id().into(),
            uptime_secs: self.began.elapsed().as_secs(),
        }))
    }
}

#[cfg(test)]
mod tests;
