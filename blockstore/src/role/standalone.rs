//! `karri storage export`: one volume on a socket, without a cloud.

use std::path::PathBuf;
use std::sync::Arc;

use karri_base::role::{Health, Running};
use karri_meta::MetaStore;
use prometheus_client::registry::Registry;

use super::host::Host;
use super::{metrics, open_store};
use crate::error::Error;
use crate::store::{Catalog, NewVolume};
use crate::vhost::Server;

/// What to export.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// The store's file or block device.
    pub store: PathBuf,
    /// Its size in bytes where the file is made or grown; `None` takes the file's own.
    pub store_bytes: Option<u64>,
    /// The volume's name; it is made if it is not there.
    pub volume: String,
    /// Its size in bytes.
    pub size: u64,
    /// The socket to listen on.
    pub vhost_user: PathBuf,
    /// Virtqueues offered, 1 to 64.
    pub queues: u16,
    /// Refuses writes.
    pub read_only: bool,
    /// Pins the front end's memory and registers it for I/O; its pages must then never be replaced (no balloon).
    pub pin_memory: bool,
}

/// An exported volume. It is `Running`, without gRPC services.
pub struct Exported {
    host: Arc<Host>,
    server: Arc<Server>,
    volume: String,
}

impl Exported {
    /// The socket's path.
    pub fn socket(&self) -> &std::path::Path {
        self.server.path()
    }
}

/// Opens (or makes) the store and the volume, and listens. `meta` holds the records; by custom the folder `STORE.meta`.
///
/// # Errors
/// What cannot be opened, made or listened on, and what to try.
pub async fn export(
    options: ExportOptions,
    meta: Arc<dyn MetaStore>,
    registry: &mut Registry,
) -> Result<Arc<Exported>, Error> {
    if !(1..=64).contains(&options.queues) {
        let why = format!("{} is not between 1 and 64", options.queues);
        return Err(Error::Invalid { what: "number of queues".into(), why });
    }
    if options.store_bytes.is_none() && !options.store.exists() {
        let why = "it is not there; to make it, say its size: FILE:SIZE, such as disk.img:20G".into();
        return Err(Error::Invalid { what: format!("store {}", options.store.display()), why });
    }
    let (cores, shelf) = open_store(&options.store, options.store_bytes, 1).await?;
    let mut journals = options.store.clone().into_os_string();
    journals.push(".journals");
    let host = Host::new(Catalog::new(meta), cores, shelf, PathBuf::new(), journals.into(), None);
    host.recover().await?;
    host.watch_usage();
    let new = NewVolume { name: options.volume.clone(), size: options.size, account: String::new(), source: None };
    host.create(new).await?;
    let (read_only, pin_memory) = (options.read_only, options.pin_memory);
    let serve = host.serve_at(&options.volume, &options.vhost_user, options.queues, read_only, pin_memory);
    let server = serve.await?;
    metrics::register(registry, &host);
    Ok(Arc::new(Exported { host, server, volume: options.volume }))
}

#[tonic::async_trait]
impl Running for Exported {
    fn routes(&self) -> tonic::service::Routes {
        tonic::service::Routes::default()
    }
    fn health(&self) -> Health {
        self.host.health()
    }
    async fn shutdown(&self) {
        tracing::info!(volume = self.volume, "closing");
        self.host.shutdown().await;
    }
}
