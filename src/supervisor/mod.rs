//! `karri up`: all five roles on one machine.
//!
//! ```text
//! lock STATE, settle ports, make credentials and certificates (first start), write STATE/etc/ROLE.toml
//!   -> a process per role; a line per role when it is healthy; then `ready`
//!   -> a role that dies is started again
//!   -> SIGTERM, SIGINT: cloud, cluster, the instances (unless --keep-instances), node, storage, walrus
//! ```
//! Roles notice the supervisor's own death by a pipe and stop; instances then go on and are adopted at the next start.

mod child;
mod metrics;
mod ports;
mod settings;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::stream::{FuturesUnordered, StreamExt};
use karri_base::clock::{Clock as _, SystemClock};
use karri_base::config::{Cloud, Config, Node, Peers, Role as RoleConfig, Storage, Tls, Walrus};
use karri_base::id::AccountId;
use karri_base::observe;
use karri_base::proto::StopAllRequest;
use karri_base::proto::node_client::NodeClient;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use self::child::Supervised;
use self::settings::Settings;
use crate::ask::print;
use crate::cli::Up;
use crate::layout::{self, Layout, Runtime};
use crate::peers::Credentials;
use crate::pki;
use crate::role::Role;

/// Stopping order: who acts on others before whom it acts on.
const STOP_ORDER: [Role; 5] = [Role::Cloud, Role::Cluster, Role::Node, Role::Storage, Role::Walrus];
/// What an instance gets between its power button and the pulled plug.
const INSTANCE_GRACE_SECS: u32 = 5;
/// How long stopping all of them may take.
const INSTANCES_STOP_DEADLINE: Duration = Duration::from_secs(60);

/// Runs until told to stop.
pub fn up(flags: &Up) -> Result<ExitCode> {
    observe::init_logs();
    let settings = Settings::resolve(flags)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(&settings))
}

async fn run(settings: &Settings) -> Result<ExitCode> {
    // From here on a signal is answered by an orderly stop.
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let layout = Layout::find(settings.state.as_deref())?;
    layout.create()?;
    let _lock = layout.lock()?;
    let addresses = Addresses::settle(settings, layout.has_runtime()).await?;
    let (credentials, first_start) = layout.ensure_credentials(settings.account_id.clone())?;
    let names = Role::ALL.iter().map(|role| role.name()).chain([pki::ADMIN]).collect::<Vec<_>>();
    pki::ensure(&layout.tls(), &names, SystemClock.now())?;
    for role in Role::ALL {
        let config = role_config(role, settings, &layout, &addresses, &credentials.account_id)?;
        layout::write_private(&layout.role_config(role), toml::to_string(&config)?.as_bytes())?;
    }
    layout.write_runtime(&addresses.runtime(&settings.region))?;
    if first_start {
        print(&format!(
            "first start: account {}, admin's keys in {}, certificates in {}\n",
            credentials.account_id,
            layout.credentials().display(),
            layout.tls().display()
        ));
    }

    if Layout::find(None).ok().is_none_or(|usual| usual.root() != layout.root()) {
        print(&format!("for `karri env` and the other commands: export KARRI_STATE={}\n", layout.root().display()));
    }

    let admin = Credentials::read(&pki::files(&layout.tls(), pki::ADMIN))?;
    let counters = metrics::Counters::default();
    let listener =
        TcpListener::bind(addresses.metrics).await.with_context(|| format!("listening on {}", addresses.metrics))?;
    let scraped = addresses.roles.iter().map(|(role, at)| (*role, at.metrics)).collect();
    tokio::spawn(metrics::serve(listener, scraped, counters.clone()));

    let mut roles = BTreeMap::new();
    let mut starting = FuturesUnordered::new();
    for role in Role::ALL {
        let channel = admin.channel(role, addresses.of(role).grpc)?;
        let (supervised, ready) = Supervised::start(role, layout.role_config(role), channel, counters.clone())?;
        roles.insert(role, supervised);
        starting.push(async move { (role, ready.await) });
    }
    let outcome = loop {
        tokio::select! {
            _ = term.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            Some((role, started)) = starting.next() => {
                match started.context("its keeper ended").and_then(|ready| ready) {
                    Ok(()) => print(&format!("{role:<8} ready  {}\n", addresses.line(role))),
                    Err(failure) => break Err(failure),
                }
                if starting.is_empty() {
                    print("ready\n");
                }
            }
        }
    };

    info!(role = "up", "stopping");
    for role in STOP_ORDER {
        if role == Role::Node && !settings.keep_instances && outcome.is_ok() {
            let node = admin.channel(Role::Node, addresses.of(Role::Node).grpc)?;
            let stopped = tokio::time::timeout(INSTANCES_STOP_DEADLINE, stop_instances(node)).await;
            if let Err(failure) = stopped.context("it took too long").and_then(|stopped| stopped) {
                warn!(role = "node", error = %format!("{failure:#}"), "instances could not be stopped");
            }
        }
        if let Some(supervised) = roles.remove(&role) {
            supervised.stop().await;
        }
    }
    layout.remove_runtime();
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Shuts every instance of this host down, all at once.
async fn stop_instances(node: tonic::transport::Channel) -> Result<()> {
    let request =
        StopAllRequest { grace_secs: INSTANCE_GRACE_SECS, reason: "Server.ScheduledStop: host shutdown".into() };
    let mut client = NodeClient::new(node);
    client.stop_all(request).await.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
    Ok(())
}

/// How URLs of listeners begin.
pub fn scheme(tls: bool) -> &'static str {
    if tls { "https" } else { "http" }
}

/// Every listener of this machine.
struct Addresses {
    api: SocketAddr,
    s3: SocketAddr,
    /// Both speak TLS.
    tls: bool,
    /// The API without TLS, for this machine.
    api_inner: SocketAddr,
    /// S3 without TLS, for this machine.
    inner: SocketAddr,
    console: SocketAddr,
    metrics: SocketAddr,
    roles: BTreeMap<Role, RoleAddresses>,
}

struct RoleAddresses {
    grpc: SocketAddr,
    metrics: SocketAddr,
}

impl Addresses {
    async fn settle(settings: &Settings, unclean: bool) -> Result<Self> {
        let patience = if unclean { Duration::from_secs(10) } else { Duration::ZERO };
        let taken = &mut Vec::new();
        let api = ports::settle(settings.api, "--api", taken, patience).await?;
        let s3 = ports::settle(settings.s3, "--s3", taken, patience).await?;
        let tls = settings.tls.is_some();
        let api_inner = if tls { ports::private(taken)? } else { api };
        let inner = if tls { ports::private(taken)? } else { s3 };
        let console = ports::settle(settings.console, "--console", taken, patience).await?;
        let _iscsi = ports::settle(settings.iscsi, "--iscsi", taken, patience).await?;
        let metrics = ports::settle(settings.metrics, "--metrics", taken, patience).await?;
        let mut roles = BTreeMap::new();
        for role in Role::ALL {
            roles.insert(role, RoleAddresses { grpc: ports::private(taken)?, metrics: ports::private(taken)? });
        }
        Ok(Self { api, s3, tls, api_inner, inner, console, metrics, roles })
    }

    fn of(&self, role: Role) -> &RoleAddresses {
        &self.roles[&role]
    }

    /// What a user may want to know of a role that is ready.
    fn line(&self, role: Role) -> String {
        match role {
            Role::Cloud => format!("EC2, IAM, STS at {}://{}", scheme(self.tls), self.api),
            Role::Walrus => format!("S3 at {}://{}", scheme(self.tls), self.s3),
            _ => format!("gRPC at {}", self.of(role).grpc),
        }
    }

    fn runtime(&self, region: &str) -> Runtime {
        Runtime {
            pid: std::process::id(),
            region: region.to_owned(),
            api: self.api,
            s3: self.s3,
            tls: self.tls,
            api_inner: Some(self.api_inner),
            s3_inner: self.inner,
            console: self.console,
            metrics: self.metrics,
            grpc: self.roles.iter().map(|(role, at)| (role.name().to_owned(), at.grpc)).collect(),
        }
    }
}

/// A role's whole file.
fn role_config(
    role: Role,
    settings: &Settings,
    layout: &Layout,
    addresses: &Addresses,
    account_id: &AccountId,
) -> Result<Config> {
    let files = pki::files(&layout.tls(), role.name());
    let grpc = |role| Some(addresses.of(role).grpc);
    let store = |role, given: &settings::Store| -> Result<_> {
        let path = given.path.clone().unwrap_or_else(|| layout.role_state(role).join("store"));
        let bytes = settings::store_bytes(given.size, &path, layout.root())?;
        Ok((path, bytes, given.cores.unwrap_or(1)))
    };
    let mut config = Config {
        role: RoleConfig {
            state: layout.role_state(role),
            region: settings.region.clone(),
            zone: settings.zone.clone(),
            account_id: account_id.clone(),
            grpc: addresses.of(role).grpc,
            metrics: addresses.of(role).metrics,
        },
        tls: Tls { ca: files.ca, cert: files.cert, key: files.key },
        peers: Peers {
            cloud: grpc(Role::Cloud),
            cluster: grpc(Role::Cluster),
            node: grpc(Role::Node),
            storage: grpc(Role::Storage),
            walrus: grpc(Role::Walrus),
            s3: Some(format!("http://{}", addresses.inner)),
        },
        cloud: None,
        node: None,
        storage: None,
        walrus: None,
    };
    let credentials = layout.credentials();
    match role {
        Role::Cloud => {
            let (tls_cert, tls_key) = settings.tls.clone().unzip();
            let inner = addresses.tls.then_some(addresses.api_inner);
            config.cloud = Some(Cloud { api: addresses.api, tls_cert, tls_key, inner, credentials });
        }
        Role::Cluster => {}
        Role::Node => {
            config.node = Some(Node { hypervisor: settings.hypervisor, network: settings.network, credentials });
        }
        Role::Storage => {
            let (store, store_bytes, cores) = store(role, &settings.storage)?;
            config.storage = Some(Storage { store, store_bytes, sockets: layout.sockets(), cores, credentials });
        }
        Role::Walrus => {
            let (store, store_bytes, cores) = store(role, &settings.walrus)?;
            let operator = settings.walrus_settings.clone();
            let (tls_cert, tls_key) = settings.tls.clone().unzip();
            let inner = addresses.tls.then_some(addresses.inner);
            let listen = addresses.s3;
            config.walrus =
                Some(Walrus { listen, store, store_bytes, cores, tls_cert, tls_key, inner, settings: operator });
        }
    }
    Ok(config)
}
