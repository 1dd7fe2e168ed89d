//! The storage role: the volumes of one host, exported to its virtual machines.
//!
//! ```text
//! gRPC (service) -> Host: one lock a volume, records first -> cores: volumes open, sockets served
//!                     `-> images: objects of Walrus, copied once, read through by clones
//! ```
//!
//! Every command is idempotent: what it promises is a durable record, and a repeat finds it. At start, in this order:
//! the store is opened (a killed predecessor's last I/O has ended by then: it held the file's lock), image copies that
//! were not finished and extents that nobody names are freed, and every active export listens again on its path.

pub mod core_local;
mod host;
mod images;
#[cfg(test)]
mod kill_tests;
mod metrics;
mod service;
mod standalone;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use karri_base::config::{self, Config};
use karri_base::role::{Health, PeerChannels, Running};
use karri_bulk::local::{LocalStore, Options};
use karri_engine::cores::{CoreOptions, Cores};
use karri_engine::disk::uring::{OpenOptions, UringDisk};
use karri_meta::MetaStore;
use prometheus_client::registry::Registry;

use crate::error::Error;
use crate::store::Catalog;
use host::{Host, Shelf};
use images::Images;

pub use standalone::{ExportOptions, Exported, export};

/// The store that the role's volumes are on.
pub type Bulk = LocalStore<UringDisk>;

/// How long a killed predecessor's lock on the store is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);

/// A running storage role.
pub struct StorageRole {
    host: Arc<Host>,
}

/// Starts the storage role.
///
/// # Errors
/// When the store cannot be opened or the records not be read: the words say what to try.
pub async fn start(
    config: &Config,
    _peers: PeerChannels,
    meta: Arc<dyn MetaStore>,
    registry: &mut Registry,
) -> Result<Arc<dyn Running>, Error> {
    let invalid = |why: String| Error::Invalid { what: "configuration".into(), why };
    let storage = config.storage.as_ref().ok_or_else(|| invalid("it has no [storage] section".into()))?;
    private_folder(&storage.sockets)?;
    if let Some(parent) = storage.store.parent() {
        std::fs::create_dir_all(parent).map_err(|e| invalid(format!("folder {}: {e}", parent.display())))?;
    }
    let images = match &config.peers.s3 {
        Some(endpoint) => Some(Images::new(endpoint, &storage.credentials, &config.role.region)?),
        None => None,
    };
    let (cores, shelf) = open_store(&storage.store, Some(storage.store_bytes), storage.cores).await?;
    let journals = config.role.state.join("journals");
    let host = Host::new(Catalog::new(meta), cores, shelf, storage.sockets.clone(), journals, images);
    host.recover().await?;
    host.watch_usage();
    metrics::register(registry, &host);
    Ok(Arc::new(StorageRole { host }))
}

#[tonic::async_trait]
impl Running for StorageRole {
    fn routes(&self) -> tonic::service::Routes {
        tonic::service::Routes::new(service::Service::server(self.host.clone()))
    }
    fn health(&self) -> Health {
        self.host.health()
    }
    async fn shutdown(&self) {
        self.host.shutdown().await;
    }
}

/// Opens the store on `count` cores, making its file if it is not there.
async fn open_store(
    path: &Path,
    bytes: Option<u64>,
    count: usize,
) -> Result<(Cores, core_local::CoreLocal<Shelf>), Error> {
    let failed = |why: String| Error::Invalid { what: format!("store {}", path.display()), why };
    let options = CoreOptions { name: "storage".into(), ..CoreOptions::default() };
    let cores = tokio::task::spawn_blocking(move || Cores::start(count.max(1), &options));
    let cores = cores.await.map_err(|_| Error::Closed)?.map_err(|e| failed(e.to_string()))?;
    let shelf = core_local::CoreLocal::new();

    let began = std::time::Instant::now();
    let sharer = loop {
        let (to_open, name) = (path.to_owned(), path.display().to_string());
        let opened = cores.handle(0).run(move || async move {
            let size = bytes.map(|b| b.next_multiple_of(4096));
            let disk = OpenOptions { create: bytes.is_some(), size, lock: true, ..OpenOptions::default() };
            let disk = UringDisk::open(&to_open, &disk).map_err(|e| e.to_string())?;
            let store = LocalStore::open_or_format(disk, &name, Options::default()).await.map_err(|e| e.to_string())?;
            let sharer = store.sharer();
            shelf.set(Shelf::new(store));
            Ok::<_, String>(sharer)
        });
        match opened.await.map_err(|_| Error::Closed)? {
            Ok(sharer) => break sharer,
            Err(why) if locked(&why) && began.elapsed() < LOCK_PATIENCE => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(why) => return Err(failed(why)),
        }
    };
    for core in &cores.handles()[1..] {
        let (to_open, sharer) = (path.to_owned(), sharer.clone());
        let opened = core.run(move || async move {
            let disk = UringDisk::open(&to_open, &OpenOptions::default()).map_err(|e| e.to_string())?;
            shelf.set(Shelf::new(sharer.attach(disk)));
            Ok::<_, String>(())
        });
        opened.await.map_err(|_| Error::Closed)?.map_err(failed)?;
    }
    Ok((cores, shelf))
}

/// Whether opening failed because another process holds the store.
fn locked(why: &str) -> bool {
    why.contains("lock")
}

/// Makes the sockets' folder, mode 0700.
fn private_folder(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let bad = |e: std::io::Error| Error::Socket { path: path.display().to_string(), why: e.to_string() };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(bad)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(bad)
}

/// The system key, for reading images.
fn system_key(path: &Path) -> Result<config::AccessKey, Error> {
    let bad = |why: String| Error::Invalid { what: format!("credentials {}", path.display()), why };
    let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
    let credentials: config::Credentials = toml::from_str(&text).map_err(|e| bad(e.message().to_owned()))?;
    Ok(credentials.system)
}
