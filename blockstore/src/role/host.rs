//! One host's volumes: what the gRPC service does, without gRPC.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use karri_base::role::Health;
use karri_bulk::{BulkStore, EXTENT_BYTES, Usage};
use karri_engine::cores::{CoreHandle, Cores};

use super::Bulk;
use super::core_local::CoreLocal;
use super::images::Images;
use crate::error::Error;
use crate::map;
use crate::store::record::{Export, Source, Volume as VolumeRecord};
use crate::store::{Catalog, NewVolume};
use crate::vhost::Server;
use crate::virtio::block::Device;
use crate::volume::journal::{self, Journal};
use crate::volume::{ExtentVolume, Stats};

/// What lives on one core.
pub(super) struct Shelf {
    store: Bulk,
    open: RefCell<HashMap<String, ExtentVolume<Bulk>>>,
}

impl Shelf {
    pub(super) fn new(store: Bulk) -> Self {
        Self { store, open: RefCell::default() }
    }
}

/// An export at work.
pub(super) struct Open {
    pub(super) export: Export,
    pub(super) server: Arc<Server>,
    pub(super) stats: Arc<Stats>,
    core: usize,
}

/// What an export answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exported {
    pub(super) socket: PathBuf,
    pub(super) generation: u64,
}

pub(super) struct Host {
    pub(super) catalog: Catalog,
    cores: Cores,
    shelf: CoreLocal<Shelf>,
    sockets: PathBuf,
    /// Folder of the journals of open volumes.
    journals: PathBuf,
    images: Option<Images>,
    /// Exports at work, by volume.
    pub(super) open: Mutex<BTreeMap<String, Open>>,
    /// One lock a volume or image: commands on the same one go one after the other.
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Clones are made, and image copies dropped, by one at a time: a copy does not go between look-up and use.
    pub(super) clones: tokio::sync::RwLock<()>,
    /// What did not start again, by volume.
    troubles: Mutex<BTreeMap<String, String>>,
    usage: Mutex<Usage>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    pub(super) fn new(
        catalog: Catalog,
        cores: Cores,
        shelf: CoreLocal<Shelf>,
        sockets: PathBuf,
        journals: PathBuf,
        images: Option<Images>,
    ) -> Arc<Self> {
        Arc::new(Self {
            catalog,
            cores,
            shelf,
            sockets,
            journals,
            images,
            open: Mutex::default(),
            locks: Mutex::default(),
            clones: tokio::sync::RwLock::new(()),
            troubles: Mutex::default(),
            usage: Mutex::default(),
        })
    }

    /// Waits for the volume's or image's turn.
    pub(super) async fn turn(&self, name: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut locks = lock(&self.locks);
            // Those that nobody holds or waits for go, now and then.
            if locks.len() > 1024 {
                locks.retain(|_, l| Arc::strong_count(l) > 1);
            }
            locks.entry(name.to_owned()).or_default().clone()
        };
        turn.lock_owned().await
    }

    fn core_of(&self, serial: u64) -> usize {
        (serial % self.cores.len() as u64) as usize
    }

    pub(super) fn core(&self, index: usize) -> &CoreHandle {
        self.cores.handle(index)
    }

    /// Runs a job with the store on a core.
    pub(super) async fn with_store<T, F>(
        &self,
        core: usize,
        make: impl FnOnce(Bulk) -> F + Send + 'static,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + 'static,
    {
        let shelf = self.shelf;
        let done = self.cores.handle(core).run(move || make(shelf.get().store.clone())).await;
        done.map_err(|_| Error::Closed)?
    }

    /// Space, as of now.
    pub(super) async fn usage(&self) -> Result<Usage, Error> {
        let usage = self.with_store(0, |store| async move { Ok(store.usage()) }).await?;
        *lock(&self.usage) = usage;
        Ok(usage)
    }

    /// Keeps the figures of [`health`](Self::health) fresh while the host lives.
    pub(super) fn watch_usage(self: &Arc<Self>) {
        let host = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(2)).await;
                let Some(host) = host.upgrade() else { return };
                if host.usage().await.is_err() {
                    return;
                }
            }
        });
    }

    // ---- commands ----

    pub(super) async fn create(&self, new: NewVolume) -> Result<VolumeRecord, Error> {
        check_name(&new.name)?;
        Catalog::check_size(&new.name, new.size)?;
        let _turn = self.turn(&new.name).await;
        if self.catalog.find(&new.name).await?.is_some() {
            return self.catalog.create(&new, None).await;
        }
        let usage = self.usage().await?;
        if new.size > usage.total {
            let source = karri_bulk::BulkError::NoSpace {
                wanted: new.size,
                free: usage.total - usage.used.min(usage.total),
                total: usage.total,
            };
            return Err(Error::NoSpace { volume: new.name, source });
        }
        let Some(source) = &new.source else { return self.catalog.create(&new, None).await };
        let Some(images) = &self.images else {
            let why = "this role was started without an S3 endpoint ([peers] s3)".into();
            return Err(Error::Image { what: source.to_string(), why, transient: false });
        };
        for _ in 0..3 {
            let (serial, base) = images.local_copy(self, source).await?;
            if new.size < base.size {
                let why = format!("{} bytes are less than its image's {}", new.size, base.size);
                return Err(Error::Invalid { what: format!("volume {}", new.name), why });
            }
            let _held = self.clones.read().await;
            match self.catalog.create(&new, Some((serial, &base))).await {
                // The copy was dropped for room in between: copy it again.
                Err(Error::NotFound { .. }) => {}
                other => return other,
            }
        }
        let why = "its local copy was dropped for room again and again; the store is too small".into();
        Err(Error::Image { what: source.to_string(), why, transient: true })
    }

    pub(super) async fn delete(&self, name: &str) -> Result<(), Error> {
        check_name(name)?;
        let _turn = self.turn(name).await;
        if let Some(open) = lock(&self.open).get(name) {
            let why = format!("it is exported with generation {}; unexport it first", open.export.generation);
            return Err(Error::InUse { volume: name.into(), why });
        }
        if let Some(export) = self.catalog.export(name).await?
            && export.active
        {
            let why = format!("it is exported with generation {}; unexport it first", export.generation);
            return Err(Error::InUse { volume: name.into(), why });
        }
        let (catalog, volume) = (self.catalog.clone(), name.to_owned());
        self.with_store(0, move |store| async move { catalog.delete(&volume, &store).await }).await?;
        self.usage().await.map(drop)
    }

    /// Volumes by name, all of them without names; absent ones are left out.
    pub(super) async fn describe(&self, names: &[String]) -> Result<Vec<(String, VolumeRecord)>, Error> {
        if names.is_empty() {
            return self.catalog.volumes().await;
        }
        let mut found = Vec::new();
        for name in names {
            if let Some(volume) = self.catalog.find(name).await? {
                found.push((name.clone(), volume));
            }
        }
        Ok(found)
    }

    /// Bytes of the extents that a volume owns.
    pub(super) async fn allocated(&self, name: &str, volume: &VolumeRecord) -> Result<u64, Error> {
        if let Some(open) = lock(&self.open).get(name) {
            return Ok(open.stats.allocated_bytes.load(std::sync::atomic::Ordering::Relaxed));
        }
        let map = crate::volume::load_map(&**self.catalog.meta(), volume.serial, volume.size).await?;
        Ok(map.allocated_bytes())
    }

    /// The export at work of a volume.
    pub(super) fn exported(&self, name: &str) -> Option<Exported> {
        let open = lock(&self.open);
        let open = open.get(name)?;
        Some(Exported { socket: open.server.path().to_owned(), generation: open.export.generation })
    }

    pub(super) async fn export(&self, name: &str, generation: u64, read_only: bool) -> Result<Exported, Error> {
        check_name(name)?;
        let _turn = self.turn(name).await;
        let volume = self.catalog.volume(name).await?;
        if let Some(held) = self.catalog.export(name).await? {
            fence(name, generation, &held)?;
            if held.active && held.generation == generation && held.read_only != read_only {
                let why = format!("generation {generation} exports it with read_only = {}", held.read_only);
                return Err(Error::InUse { volume: name.into(), why });
            }
        }
        let wanted = Export { generation, read_only, active: true };
        let running = lock(&self.open).get(name).map(|o| o.export.clone());
        match running {
            Some(export) if export == wanted => {}
            running => {
                // The record first: a restart in between listens for the new generation, never again for the old.
                self.catalog.set_export(name, &wanted).await?;
                if running.is_some() {
                    self.close(name).await?;
                }
                self.listen(name, &volume, wanted).await?;
            }
        }
        self.exported(name).ok_or(Error::Closed)
    }

    pub(super) async fn unexport(&self, name: &str, generation: u64) -> Result<(), Error> {
        check_name(name)?;
        let _turn = self.turn(name).await;
        let Some(held) = self.catalog.export(name).await? else { return Ok(()) };
        fence(name, generation, &held)?;
        if held.active || held.generation != generation {
            self.catalog.set_export(name, &Export { generation, active: false, ..held }).await?;
        }
        lock(&self.troubles).remove(name);
        self.close(name).await
    }

    // ---- exports at work ----

    fn journal_of(&self, name: &str) -> PathBuf {
        self.journals.join(format!("{name}.journal"))
    }

    /// Commits what a killed predecessor (or a close that failed) noted of a volume.
    async fn replay_journal(&self, name: &str, volume: &VolumeRecord) -> Result<(), Error> {
        let path = self.journal_of(name);
        let broken =
            |e: std::io::Error| Error::Invalid { what: format!("journal {}", path.display()), why: e.to_string() };
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(broken(e)),
        };
        let boot = journal::boot_id().map_err(broken)?;
        if let Some((serial, entries)) = journal::read(&bytes, &boot)?
            && serial == volume.serial
        {
            let (catalog, to, size) = (self.catalog.clone(), name.to_owned(), volume.size);
            let replayed = self
                .with_store(0, move |store| async move { catalog.replay(&to, serial, size, &entries, &store).await });
            let entries = replayed.await?;
            tracing::info!(volume = name, entries, "replayed a journal");
        }
        std::fs::remove_file(&path).map_err(broken)
    }

    fn socket_of(&self, name: &str, generation: u64) -> PathBuf {
        // The generation is part of the path: a fenced-off front end that tries again finds nothing there.
        self.sockets.join(format!("{name}-{generation}.sock"))
    }

    async fn listen(&self, name: &str, volume: &VolumeRecord, export: Export) -> Result<(), Error> {
        let path = self.socket_of(name, export.generation);
        let device = Device::new(volume.size, 1, export.read_only);
        self.serve(name, volume, &path, device, export).await.map(drop)
    }

    /// Serves a volume on a path of the caller's choice, for this process's life.
    pub(super) async fn serve_at(
        &self,
        name: &str,
        path: &Path,
        queues: u16,
        read_only: bool,
        pin_memory: bool,
    ) -> Result<Arc<Server>, Error> {
        let volume = self.catalog.volume(name).await?;
        // Whoever started this process chose its only front end.
        let device = Device::trusting(volume.size, queues, read_only, pin_memory);
        self.serve(name, &volume, path, device, Export { generation: 0, read_only, active: true }).await
    }

    async fn serve(
        &self,
        name: &str,
        volume: &VolumeRecord,
        path: &Path,
        device: Arc<Device>,
        export: Export,
    ) -> Result<Arc<Server>, Error> {
        let core = self.core_of(volume.serial);
        self.replay_journal(name, volume).await?;
        let stats = self.open_on(core, name).await?;
        let (shelf, key) = (self.shelf, name.to_owned());
        let make = move || shelf.get().open.borrow().get(&key).cloned().expect("opened before it is served");
        match Server::start(path, device, self.core(core), make).await {
            Ok(server) => {
                let server = Arc::new(server);
                lock(&self.open).insert(name.to_owned(), Open { export, server: server.clone(), stats, core });
                lock(&self.troubles).remove(name);
                Ok(server)
            }
            Err(e) => {
                self.close_on(core, name).await?;
                Err(e)
            }
        }
    }

    async fn open_on(&self, core: usize, name: &str) -> Result<Arc<Stats>, Error> {
        let (catalog, name, shelf) = (self.catalog.clone(), name.to_owned(), self.shelf);
        let path = self.journal_of(&name);
        self.with_store(core, move |store| async move {
            let serial = catalog.volume(&name).await?.serial;
            let volume = catalog.open(&name, store).await?;
            let journal = journal::boot_id().and_then(|boot| Journal::create(&path, serial, &boot));
            volume.set_journal(
                journal
                    .map_err(|e| Error::Invalid { what: format!("journal {}", path.display()), why: e.to_string() })?,
            );
            let stats = volume.stats();
            shelf.get().open.borrow_mut().insert(name, volume);
            Ok(stats)
        })
        .await
    }

    async fn close_on(&self, core: usize, name: &str) -> Result<(), Error> {
        let (name, shelf, path) = (name.to_owned(), self.shelf, self.journal_of(name));
        self.with_store(core, move |_| async move {
            let volume = shelf.get().open.borrow_mut().remove(&name);
            let Some(volume) = volume else { return Ok(()) };
            match volume.close().await {
                // All of it is committed.
                Ok(()) => drop(std::fs::remove_file(path)),
                // The journal stays: the next start commits what it holds.
                Err(e) => tracing::error!(volume = name, error = e.chain(), "a volume's last flush failed"),
            }
            Ok(())
        })
        .await
    }

    /// Ends an export's listener and closes its volume.
    async fn close(&self, name: &str) -> Result<(), Error> {
        let Some(open) = lock(&self.open).remove(name) else { return Ok(()) };
        let server = open.server.clone();
        tokio::task::spawn_blocking(move || server.stop()).await.map_err(|_| Error::Closed)?;
        self.close_on(open.core, name).await
    }

    // ---- start and end ----

    /// Brings everything back to what the records say.
    pub(super) async fn recover(&self) -> Result<(), Error> {
        super::private_folder(&self.journals)?;
        let mut all_replayed = true;
        for (name, volume) in self.catalog.volumes().await? {
            if let Err(e) = self.replay_journal(&name, &volume).await {
                tracing::error!(volume = name, error = e.chain(), "a journal could not be replayed");
                lock(&self.troubles).insert(name, e.chain());
                all_replayed = false;
            }
        }
        let catalog = self.catalog.clone();
        self.with_store(0, move |store| async move {
            let unfinished = catalog.drop_images(&store, |_, base| !base.sealed).await?;
            // What a journal names that was not replayed is not an orphan.
            let orphans = if all_replayed { catalog.collect(&store).await? } else { 0 };
            if unfinished > 0 || orphans > 0 {
                tracing::info!(unfinished_images = unfinished, orphaned_extents = orphans, "cleaned up");
            }
            Ok(())
        })
        .await?;
        let exports: Vec<_> = self.catalog.exports().await?.into_iter().filter(|(_, e)| e.active).collect();
        let paths: HashSet<PathBuf> = exports.iter().map(|(name, e)| self.socket_of(name, e.generation)).collect();
        remove_stale(&self.sockets, &paths);
        for (name, export) in exports {
            let outcome = match self.catalog.volume(&name).await {
                Ok(volume) => self.listen(&name, &volume, export).await,
                Err(e) => Err(e),
            };
            // One volume that does not open must not keep the others from their guests.
            if let Err(e) = outcome {
                tracing::error!(volume = name, error = e.chain(), "an export could not be taken up again");
                lock(&self.troubles).insert(name, e.chain());
            }
        }
        self.usage().await.map(drop)
    }

    pub(super) fn health(&self) -> Health {
        let troubles = lock(&self.troubles);
        let trouble = troubles.iter().next().map(|(name, why)| {
            let more = troubles.len() - 1;
            let others = if more > 0 { format!(" (and {more} more)") } else { String::new() };
            format!("volume {name} is not exported{others}: {why}")
        });
        let usage = *lock(&self.usage);
        let capacity = BTreeMap::from([
            ("store_bytes_total".to_owned(), usage.total),
            ("store_bytes_used".to_owned(), usage.used),
            ("exports".to_owned(), lock(&self.open).len() as u64),
            ("extent_bytes".to_owned(), EXTENT_BYTES),
            ("block_bytes".to_owned(), map::BLOCK_BYTES),
        ]);
        Health { trouble, capacity }
    }

    pub(super) async fn shutdown(&self) {
        let names: Vec<String> = lock(&self.open).keys().cloned().collect();
        for name in names {
            if let Err(e) = self.close(&name).await {
                tracing::error!(volume = name, error = e.chain(), "a volume did not close");
            }
        }
        let closed = self.with_store(0, |store| async move {
            store.close().await.map_err(|source| Error::Bulk { volume: "of all".into(), op: "close", source })
        });
        if let Err(e) = closed.await {
            tracing::error!(error = e.chain(), "the store did not close; it is recovered at the next start");
        }
        // The store's handles go before the cores' rings do.
        for core in self.cores.handles() {
            let shelf = self.shelf;
            let _ = core.run(move || async move { drop(shelf.take()) }).await;
        }
        tokio::task::block_in_place(|| self.cores.shutdown());
    }

    /// Frees image copies that no volume reads. Whether there were any.
    pub(super) async fn make_room(&self, keep: Option<&Source>) -> Result<bool, Error> {
        let _alone = self.clones.write().await;
        let (catalog, keep) = (self.catalog.clone(), keep.cloned());
        let idle = move |base: &crate::store::record::Base| base.sealed && Some(&base.source) != keep.as_ref();
        let dropped =
            self.with_store(0, move |store| async move { catalog.drop_images(&store, |_, base| idle(base)).await });
        Ok(dropped.await? > 0)
    }
}

fn fence(name: &str, asked: u64, held: &Export) -> Result<(), Error> {
    if asked < held.generation {
        return Err(Error::Fenced { volume: name.into(), asked, current: held.generation });
    }
    Ok(())
}

/// Names become file names and keys.
fn check_name(name: &str) -> Result<(), Error> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.';
    if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.bytes().all(plain) {
        let why = "want 1 to 64 letters, digits, dashes, dots and underscores".to_owned();
        return Err(Error::Invalid { what: format!("volume name {name:?}"), why });
    }
    Ok(())
}

/// Removes sockets in our folder that no export listens on.
fn remove_stale(folder: &Path, wanted: &HashSet<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let ours = path.extension().is_some_and(|e| e == "sock" || e == "new");
        if ours && !wanted.contains(&path) {
            tracing::info!(socket = %path.display(), "removing a stale socket");
            let _ = std::fs::remove_file(&path);
        }
    }
}
