//! Walrus on the machine: engine cores, each with a listener, a view of the store and a service of its own.
//!
//! ```text
//! core 0: open and lock the store -> list its blobs -> keep it until the end; sweep orphans, work off leftovers
//! core i: attach to the store, listen (SO_REUSEPORT) -> serve until told to stop -> drain -> last reclaiming
//! stop:   every core drains, then core 0 closes the store, then the cores end
//! ```

use std::net::SocketAddr;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use futures_channel::oneshot;
use karri_base::aws::keys::{Key, KeyRing};
use karri_base::clock::{Clock, SystemClock};
use karri_bulk::local::{LocalStore, Options, Sharer};
use karri_bulk::{BlobId, BulkError, BulkStore, Usage};
use karri_engine::cores::{CoreOptions, Cores, RunError};
use karri_engine::disk::uring::{OpenOptions, UringDisk};
use karri_engine::drain::Drain;
use karri_engine::net::Listener;
use karri_engine::{EngineError, http};
use karri_meta::rocks::{self, RocksStore};
use karri_meta::{MetaError, MetaStore};
use rustls::ServerConfig;

use crate::accesslog;
use crate::ageing;
use crate::audit::Audit;
use crate::config::lifecycle::Calendar;
use crate::core::{Core, CoreRef, Shared};
use crate::courier::{Bag, Courier};
use crate::crypt::Secret;
use crate::delivery;
use crate::front::Front;
use crate::inventory;
use crate::metrics::Metrics;
use crate::operator::Operator;
use crate::outbound::{self, Outbound};
use crate::reclaim;
use crate::replicate;
use crate::scrub;
use crate::vault::Vault;

/// How long requests may still take once Walrus is told to stop.
const DRAIN: Duration = Duration::from_secs(20);
/// A pause before reclaiming is tried again.
const REST: Duration = Duration::from_millis(500);
/// How often access logs are looked at.
const LOGS_EVERY: Duration = Duration::from_millis(500);
/// How often the metrics of buckets are brought up to date.
const SHOW_EVERY: Duration = Duration::from_secs(60);
/// How often the store's usage is looked at.
const USAGE_EVERY: Duration = Duration::from_secs(1);

/// Why Walrus did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("Walrus cannot listen on {address}; is another server running there?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
    /// The engine cannot run, or cannot open the store's file.
    #[error("Walrus's engine did not start")]
    Engine(#[from] EngineError),
    /// The bulk store cannot be opened.
    #[error("Walrus's store did not open")]
    Bulk(#[from] BulkError),
    /// The metadata store cannot be opened or read.
    #[error("Walrus's metadata did not open")]
    Meta(#[from] MetaError),
    /// A core ended while it was being set up.
    #[error("an engine core ended during the start")]
    Core(#[from] RunError),
    /// Something in the configuration.
    #[error("{what}")]
    Config {
        /// What, and what to do.
        what: String,
    },
}

/// How to serve.
pub struct ServeOptions {
    /// Where to listen; port 0 picks a free one.
    pub listen: SocketAddr,
    /// The bulk store's file or block device; made if it is not there.
    pub store: PathBuf,
    /// The file's size in bytes where it is made anew, or grown to; sparse. 0: as it is, or what the file system has free.
    pub store_bytes: u64,
    /// Engine cores; 0: one per CPU.
    pub cores: usize,
    /// Records.
    pub meta: Arc<dyn MetaStore>,
    /// Who may sign in.
    pub keys: KeyRing,
    /// The region that answers are given for.
    pub region: String,
    /// Wraps the keys that encrypted objects' keys are wrapped with.
    pub master: Secret,
    /// Counters.
    pub metrics: Metrics,
    /// Wall-clock time.
    pub clock: Arc<dyn Clock>,
    /// How long a day of lifecycle rules is.
    pub calendar: Calendar,
    /// What only the operator may set.
    pub operator: Operator,
    /// TLS on the listener; plain HTTP without.
    pub tls: Option<Arc<ServerConfig>>,
    /// Where plain HTTP is listened for besides, such as by other roles of this machine.
    pub inner: Option<SocketAddr>,
}

impl ServeOptions {
    /// One core, region us-east-1, counters of its own, the machine's clock.
    pub fn new(listen: SocketAddr, store: PathBuf, meta: Arc<dyn MetaStore>, keys: KeyRing, master: Secret) -> Self {
        Self {
            listen,
            store,
            store_bytes: 0,
            cores: 1,
            meta,
            keys,
            master,
            region: "us-east-1".into(),
            metrics: Metrics::default(),
            clock: Arc::new(SystemClock),
            calendar: Calendar::default(),
            operator: Operator::default(),
            tls: None,
            inner: None,
        }
    }
}

type Store = LocalStore<UringDisk>;

/// A running Walrus. Dropping it stops it as [`shutdown`](Self::shutdown) does.
pub struct Handle {
    local: SocketAddr,
    usage: Arc<SharedUsage>,
    cores: Cores,
    ends: Mutex<Ends>,
    courier: Mutex<Option<Courier>>,
    shared: Arc<Shared>,
}

/// How to stop the jobs that run on the cores: serving ones first, the store's keeper last.
#[derive(Default)]
struct Ends {
    sites: Vec<End>,
    keeper: Option<End>,
}

/// A job on a core, from outside.
struct End {
    stop: oneshot::Sender<()>,
    /// Closes when the job is over.
    over: mpsc::Receiver<()>,
}

/// A job on a core, from inside.
struct Life {
    stopped: oneshot::Receiver<()>,
    /// Dropped when the job is over.
    _over: mpsc::Sender<()>,
}

impl End {
    fn new() -> (Self, Life) {
        let (stop, stopped) = oneshot::channel();
        let (tell, over) = mpsc::channel();
        (Self { stop, over }, Life { stopped, _over: tell })
    }
    fn wait(over: &mpsc::Receiver<()>) {
        // Nothing is ever sent: this returns when the job, and with it the sender, is gone.
        let _ = over.recv();
    }
}

#[derive(Default)]
struct SharedUsage {
    total: AtomicU64,
    used: AtomicU64,
}

impl SharedUsage {
    fn set(&self, usage: Usage) {
        self.total.store(usage.total, Ordering::Relaxed);
        self.used.store(usage.used, Ordering::Relaxed);
    }
}

impl Handle {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The bulk store's space, at most a second old.
    pub fn usage(&self) -> Usage {
        Usage { total: self.usage.total.load(Ordering::Relaxed), used: self.usage.used.load(Ordering::Relaxed) }
    }

    /// Why it cannot do all that it is asked; `None` where it can.
    pub fn trouble(&self) -> Option<String> {
        let usage = self.usage();
        (usage.used >= usage.total).then(|| "the store is full".to_owned())
    }

    /// Stops: no new connections, requests in progress end (at most 20 s), the store is closed in order. Blocks; not
    /// from an engine core. A second call does nothing.
    pub fn shutdown(&self) {
        let ends = std::mem::take(&mut *self.ends.lock().unwrap_or_else(PoisonError::into_inner));
        let (stops, overs): (Vec<_>, Vec<_>) = ends.sites.into_iter().map(|end| (end.stop, end.over)).unzip();
        for stop in stops {
            // A site that is gone needs no telling.
            let _ = stop.send(());
        }
        overs.iter().for_each(End::wait);
        if let Some(audit) = self.shared.audit.get() {
            audit.close();
        }
        drop(self.courier.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(End { stop, over }) = ends.keeper {
            let _ = stop.send(());
            End::wait(&over);
        }
        self.cores.shutdown();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// S3 without a cloud: records and data in the folder `dir`, one key, account 000000000000.
pub fn standalone(
    dir: &Path,
    listen: SocketAddr,
    access_key: &str,
    secret_key: &str,
    region: &str,
) -> Result<Handle, StartError> {
    alone(dir, listen, [root_key(access_key, secret_key)?], region, Operator::default())
}

/// A key of account 000000000000's root.
pub fn root_key(access_key: &str, secret_key: &str) -> Result<Key, StartError> {
    let account = "000000000000";
    Ok(Key {
        access_key_id: access_key.to_owned(),
        secret: secret_key.to_owned(),
        account: account.parse().map_err(|e| StartError::Config { what: format!("{e}") })?,
        arn: format!("arn:aws:iam::{account}:root"),
    })
}

/// S3 without a cloud, to these keys.
pub fn alone(
    dir: &Path,
    listen: SocketAddr,
    keys: impl IntoIterator<Item = Key>,
    region: &str,
    operator: Operator,
) -> Result<Handle, StartError> {
    alone_with(dir, listen, KeyRing::new(keys), region, operator, None)
}

/// S3 without a cloud, to whom this ring knows now and later; over TLS where it is configured.
pub fn alone_with(
    dir: &Path,
    listen: SocketAddr,
    keys: KeyRing,
    region: &str,
    operator: Operator,
    tls: Option<Arc<ServerConfig>>,
) -> Result<Handle, StartError> {
    std::fs::create_dir_all(dir)
        .map_err(|e| StartError::Config { what: format!("the folder {} cannot be made: {e}", dir.display()) })?;
    let meta = Arc::new(RocksStore::open(dir.join("meta"), &rocks::Options::default())?);
    let options = alone_options(dir, listen, keys, meta)?;
    serve(ServeOptions { region: region.to_owned(), operator, tls, ..options })
}

/// How to serve S3 without a cloud from a folder that is there.
pub fn alone_options(
    dir: &Path,
    listen: SocketAddr,
    keys: KeyRing,
    meta: Arc<dyn MetaStore>,
) -> Result<ServeOptions, StartError> {
    let options = ServeOptions::new(listen, dir.join("objects"), meta, keys, master_key(dir)?);
    Ok(ServeOptions { calendar: calendar()?, ..options })
}

/// `KARRI_LIFECYCLE_DAY_SECONDS`: how long a day is to lifecycle rules, for the conformance suite.
fn calendar() -> Result<Calendar, StartError> {
    let Ok(text) = std::env::var("KARRI_LIFECYCLE_DAY_SECONDS") else { return Ok(Calendar::default()) };
    match text.parse() {
        Ok(day_seconds @ 1..) => Ok(Calendar { day_seconds }),
        _ => Err(StartError::Config {
            what: format!("KARRI_LIFECYCLE_DAY_SECONDS is {text:?}; want a number of seconds, or unset it"),
        }),
    }
}

/// The master key of the key service, kept in this folder; made at the first start.
pub fn master_key(dir: &Path) -> Result<Secret, StartError> {
    let path = dir.join("master.key");
    Vault::master_in(&path)
        .map_err(|e| StartError::Config { what: format!("the master key {} cannot be used: {e}", path.display()) })
}

/// Starts Walrus. Blocks until it listens; not from an engine core.
pub fn serve(options: ServeOptions) -> Result<Handle, StartError> {
    check_free(options.listen)?;
    options.inner.map_or(Ok(()), check_free)?;
    let store_bytes = store_bytes(&options)?;
    let cores = Cores::start(options.cores, &CoreOptions { name: "walrus".into(), ..CoreOptions::default() })?;
    let usage = Arc::new(SharedUsage::default());
    let ServeOptions {
        listen, store, meta, keys, region, metrics, clock, master, calendar, operator, tls, inner, ..
    } = options;
    let destinations = operator.destinations.clone();
    let (outbound, calls) = outbound::channel();
    let sends = !destinations.is_empty() || !operator.remotes.is_empty();
    let settings = Settings { clock, region, metrics, master, operator, outbound };

    // Core 0 opens the store and keeps it.
    let (ready, is_ready) = mpsc::channel();
    let (end, life) = End::new();
    {
        let (store, meta, usage) = (store.clone(), meta.clone(), usage.clone());
        // The channels tell what becomes of it.
        drop(cores.handle(0).try_run(move || keep(store, store_bytes, meta, settings, usage, ready, life))?);
    }
    let mut ends = Ends { sites: vec![], keeper: Some(end) };
    let opened = is_ready.recv().unwrap_or(Err(StartError::Core(RunError::Closed)));
    let Opened { sharer, shared, candidates } = match opened {
        Ok(opened) => opened,
        Err(e) => {
            cores.shutdown();
            return Err(e);
        }
    };

    let mut local = listen;
    let mut candidates = Some(candidates);
    // Of this thread, which is not kept to one as the cores are.
    let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
    let hashers = cpus.saturating_sub(cores.len()) / cores.len().max(1);
    for core in cores.handles() {
        let (ready, is_ready) = mpsc::channel();
        let (end, life) = End::new();
        let site = Site {
            listen: local,
            tls: tls.clone(),
            inner,
            store: store.clone(),
            sharer: sharer.clone(),
            meta: meta.clone(),
            keys: keys.clone(),
            shared: shared.clone(),
            candidates: candidates.take(),
            calendar,
            hashers,
        };
        drop(core.try_run(move || site.run(ready, life))?);
        ends.sites.push(end);
        match is_ready.recv().unwrap_or(Err(StartError::Core(RunError::Closed))) {
            Ok(address) => local = address,
            Err(e) => {
                drop(Handle { local, usage, cores, ends: Mutex::new(ends), courier: Mutex::default(), shared });
                return Err(e);
            }
        }
    }
    let secure = tls.is_some();
    tracing::info!(listen = %local, tls = secure, store = %store.display(), cores = cores.len(), "Walrus serves");
    let handle =
        Handle { local, usage, cores, ends: Mutex::new(ends), courier: Mutex::default(), shared: shared.clone() };
    if sends {
        let bag = Bag { meta, clock: shared.clock.clone(), metrics: shared.metrics.clone() };
        let courier = Courier::start(bag, destinations, calls)
            .map_err(|e| StartError::Config { what: format!("the courier's thread cannot start: {e}") })?;
        *handle.courier.lock().unwrap_or_else(PoisonError::into_inner) = Some(courier);
    }
    Ok(handle)
}

/// Listeners that share a port would share it with a stranger of the same user too: a plain one finds out.
fn check_free(address: SocketAddr) -> Result<(), StartError> {
    std::net::TcpListener::bind(address).map(drop).map_err(|source| StartError::Listen { address, source })
}

/// The size to make or grow the store to; `None` takes it as it is.
fn store_bytes(options: &ServeOptions) -> Result<Option<u64>, StartError> {
    const UNIT: u64 = 1 << 20;
    let there = std::fs::metadata(&options.store);
    if options.store_bytes > 0 {
        return Ok(Some(options.store_bytes / UNIT * UNIT));
    }
    if there.is_ok_and(|m| m.len() > 0 || !m.is_file()) {
        return Ok(None);
    }
    let dir = options.store.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let fs = rustix::fs::statvfs(dir)
        .map_err(|e| StartError::Config { what: format!("the folder {} cannot be used: {e}", dir.display()) })?;
    let free = fs.f_bavail.saturating_mul(fs.f_frsize);
    // A sixteenth stays for the metadata.
    Ok(Some(((free - free / 16) / UNIT * UNIT).max(64 * UNIT)))
}

/// How long a start waits for the store's lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);

/// What core 0 tells about the opened store.
struct Opened {
    sharer: Sharer,
    shared: Arc<Shared>,
    candidates: Vec<BlobId>,
}

/// What all cores share, on its way to core 0.
struct Settings {
    clock: Arc<dyn Clock>,
    region: String,
    metrics: Metrics,
    master: Secret,
    operator: Operator,
    outbound: Outbound,
}

/// Core 0's first job: open the store, keep it, close it at the end.
#[allow(clippy::too_many_arguments, reason = "one call, and a struct would only repeat the names")]
async fn keep(
    path: PathBuf,
    bytes: Option<u64>,
    meta: Arc<dyn MetaStore>,
    settings: Settings,
    usage: Arc<SharedUsage>,
    ready: mpsc::Sender<Result<Opened, StartError>>,
    mut life: Life,
) {
    let opening = async {
        let open = OpenOptions { create: true, size: bytes, lock: true, ..OpenOptions::default() };
        let began = karri_engine::now();
        let disk = loop {
            match UringDisk::open(&path, &open) {
                // A killed predecessor's last I/O may hold it for a moment.
                Err(e) if e.to_string().contains("lock") && karri_engine::now() - began < LOCK_PATIENCE => {
                    karri_engine::sleep(Duration::from_millis(50)).await;
                }
                opened => break opened?,
            }
        };
        let store = LocalStore::open_or_format(disk, &path.display().to_string(), Options::default()).await?;
        let Settings { clock, region, metrics, master, operator, outbound } = settings;
        let shared = Shared::open(&meta, clock, region, metrics, master).await?;
        let fits = shared.vault.fits(&*meta).await;
        if !fits.map_err(|e| StartError::Config { what: format!("a key of the key service cannot be read: {e}") })? {
            // Before anything is written that only the wrong one opens.
            let what = "the keys of the key service do not open with this master key: put back the file master.key that \
                        this store was made with (if there was none, the one there was made just now)";
            return Err(StartError::Config { what: what.into() });
        }
        if let Some(path) = operator.audit_file() {
            let audit = Audit::open(path, shared.metrics.clone())
                .map_err(|e| StartError::Config { what: format!("audit_log {}: {e}", path.display()) })?;
            let _ = shared.audit.set(audit);
        }
        if let Some(bytes) = operator.cache {
            shared.hot.set_room(bytes);
        }
        // Set once: this is the one opening.
        let _ = shared.operator.set(operator);
        let _ = shared.outbound.set(outbound);
        // Before anything is served: whatever of these no record names belongs to nobody.
        let candidates = reclaim::sealed_blobs(&store);
        Ok((store, shared, candidates))
    };
    let store: Store = match opening.await {
        Ok((store, shared, candidates)) => {
            usage.set(store.usage());
            // The starter waits for it.
            let _ = ready.send(Ok(Opened { sharer: store.sharer(), shared, candidates }));
            store
        }
        Err(e) => {
            let _ = ready.send(Err(e));
            return;
        }
    };
    while karri_engine::timeout(USAGE_EVERY, &mut life.stopped).await.is_err() {
        usage.set(store.usage());
    }
    if let Err(error) = store.close().await {
        tracing::warn!(error = %error, "the store was not closed in order; the next start recovers it");
    }
}

/// One core's Walrus, on its way to the core.
struct Site {
    listen: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    inner: Option<SocketAddr>,
    store: PathBuf,
    sharer: Sharer,
    meta: Arc<dyn MetaStore>,
    keys: KeyRing,
    shared: Arc<Shared>,
    /// For one core: what the last life of the store may have left.
    candidates: Option<Vec<BlobId>>,
    calendar: Calendar,
    /// CPUs for hashing.
    hashers: usize,
}

impl Site {
    async fn run(self, ready: mpsc::Sender<Result<SocketAddr, StartError>>, mut life: Life) {
        let (listener, inner, store) = match self.open() {
            Ok((listener, inner, store, address)) => {
                // The starter waits for it.
                let _ = ready.send(Ok(address));
                (listener, inner, store)
            }
            Err(e) => {
                let _ = ready.send(Err(e));
                return;
            }
        };
        let core = Core::new(self.meta, store, self.shared);
        core.hashing.widen(self.hashers);
        let front = Rc::new(Front::new(&core, &self.keys));
        let drain = Drain::new();
        let reclaimer = karri_engine::spawn(reclaim::run(core.clone(), || karri_engine::sleep(REST)));
        let calendar = self.calendar;
        let leftovers = self.candidates.map(|candidates| {
            let core = core.clone();
            karri_engine::spawn(async move {
                tidy(&core, &candidates).await;
                let roll = core.shared.operator.get().and_then(|o| o.log_roll).unwrap_or(accesslog::ROLL);
                let pace = core.shared.operator.get().map(|o| o.scrub).unwrap_or_default();
                let beside = futures_util::future::join4(
                    write_logs(&core, roll),
                    scrub::run(&core, pace),
                    replicate::run(&core),
                    inventory::run(&core, calendar),
                );
                futures_util::future::join3(age(&core, calendar), show_usage(&core), beside).await;
            })
        });
        let make = |peer: http::Peer| {
            let front = front.clone();
            let peer = crate::api::Peer { source: peer.address.map(|a| a.ip()), secure: peer.secure, tls: None };
            hyper::service::service_fn(move |mut request: hyper::Request<_>| {
                let front = front.clone();
                let tls = request.extensions().get::<http::TlsVersion>().and_then(crate::tls::version);
                request.extensions_mut().insert(crate::api::Peer { tls, ..peer });
                async move { Ok::<_, std::convert::Infallible>(front.answer(request).await) }
            })
        };
        let limits = http::Limits { drain: DRAIN, ..http::Limits::default() };
        let serving = async {
            let inner = async {
                match inner {
                    Some(listener) => http::serve(listener, make, limits.clone(), drain.clone()).await,
                    None => http::Served::default(),
                }
            };
            match self.tls {
                None => http::serve(listener, make, limits.clone(), drain.clone()).await,
                Some(tls) => {
                    let outer = http::serve_tls(listener, make, limits.clone(), drain.clone(), tls);
                    let (outer, inner) = futures_util::future::join(outer, inner).await;
                    http::Served {
                        connections: outer.connections + inner.connections,
                        cut_off: outer.cut_off + inner.cut_off,
                    }
                }
            }
        };
        let stopping = async {
            // A handle that is gone without a word means the same.
            let _ = (&mut life.stopped).await;
            drain.begin();
        };
        let (served, ()) = futures_util::future::join(serving, stopping).await;
        if served.cut_off > 0 {
            tracing::warn!(connections = served.cut_off, "connections were cut off at the end");
        }
        if let Some(leftovers) = leftovers {
            leftovers.abort();
        }
        delivery::deliver(&core, Duration::ZERO).await;
        core.reclaim.close();
        if reclaimer.await.is_err() {
            tracing::error!("the reclaimer panicked");
        }
    }

    fn open(&self) -> Result<(Listener, Option<Listener>, Store, SocketAddr), StartError> {
        let listener = Listener::bind(self.listen)?;
        let address = listener.local_addr().map_err(|source| StartError::Listen { address: self.listen, source })?;
        let inner = self.inner.filter(|_| self.tls.is_some()).map(Listener::bind).transpose()?;
        let disk = UringDisk::open(&self.store, &OpenOptions::default())?;
        Ok((listener, inner, self.sharer.attach(disk), address))
    }
}

/// Carries out lifecycle rules, for ever.
async fn age<B: BulkStore>(core: &CoreRef<B>, calendar: Calendar) {
    loop {
        karri_engine::sleep(ageing::rest(calendar)).await;
        match ageing::round(core, calendar).await {
            Ok(aged) if aged == ageing::Aged::default() => {}
            Ok(aged) => {
                let ageing::Aged { versions, uploads, moved } = aged;
                tracing::info!(versions, uploads, moved, "lifecycle rules were carried out")
            }
            Err(error) => {
                tracing::warn!(error = %error, "lifecycle rules could not be carried out; the next round tries again")
            }
        }
    }
}

/// Shows in the metrics what is in the buckets, for ever.
async fn show_usage<B: BulkStore>(core: &CoreRef<B>) {
    loop {
        if let Err(error) = core.show_usage().await {
            tracing::warn!(error = %error, "the buckets' usage could not be read");
        }
        karri_engine::sleep(SHOW_EVERY).await;
    }
}

/// Writes access logs, for ever.
async fn write_logs<B: BulkStore>(core: &CoreRef<B>, roll: Duration) {
    loop {
        karri_engine::sleep(LOGS_EVERY).await;
        delivery::deliver(core, roll).await;
    }
}

/// Works off what the last life left: space that nobody names, deletions that were begun.
async fn tidy<B: BulkStore>(core: &Core<B>, candidates: &[BlobId]) {
    if let Err(error) = core.queue_leftovers().await {
        tracing::warn!(error = %error, "leftovers could not be read; the next start tries again");
    }
    match core.sweep_orphans(candidates).await {
        Ok(0) => {}
        Ok(swept) => tracing::info!(blobs = swept, "blobs of unfinished uploads are being deleted"),
        Err(error) => tracing::warn!(error = %error, "orphans could not be swept; the next start tries again"),
    }
}
