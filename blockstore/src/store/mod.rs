//! Which volumes and images there are, durably: records in the metadata store, and the few operations that touch both
//! stores. The data path is [`crate::volume`]'s.
//!
//! | key | value |
//! |---|---|
//! | `serial` | the last number given to a volume or image; numbers are never used twice |
//! | `vol/NAME` | a volume: number, size, owner, the image it came from |
//! | `base/SERIAL` | an image's local copy: sealed or being filled |
//! | `image/BUCKET\0KEY\0ETAG` | the number of the local copy of that object |
//! | `clone/BASE CLONE` | this volume reads through that image |
//! | `export/NAME` | generation and mode of a volume's last export |
//! | `map/SERIAL EXTENT` | where data is: [`crate::map::record`] |
//!
//! A record's value is a version byte, JSON, and the CRC32C of key and both (`docs/records.md`).

pub mod record;

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use karri_bulk::{BulkStore, ExtentId};
use karri_meta::{Batch, MetaError, MetaStore, Pair, Scan};

use crate::error::Error;
use crate::map::{Entry, Map, VOLUME_BYTES_MAX, record as map_record};
use crate::volume::{ExtentVolume, SECTOR_BYTES, load_map};
use record::{Base, Export, Parent, Source, Volume};

const SCAN_BATCH: usize = 1024;

/// The records. Clones share the store. Changes of the same volume are serialised by the caller; the commits are checked,
/// so that a mistake there is a conflict and not a lost update.
#[derive(Clone)]
pub struct Catalog {
    meta: Arc<dyn MetaStore>,
}

/// What a new volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    /// `vol-...`.
    pub name: String,
    /// Bytes, whole sectors.
    pub size: u64,
    /// The owner's account.
    pub account: String,
    /// The image asked for.
    pub source: Option<Source>,
}

impl Catalog {
    /// The records in `meta`.
    pub fn new(meta: Arc<dyn MetaStore>) -> Self {
        Self { meta }
    }

    /// The store they are in.
    pub fn meta(&self) -> &Arc<dyn MetaStore> {
        &self.meta
    }

    fn failed(op: &'static str) -> impl Fn(MetaError) -> Error {
        move |source| Error::Meta { what: "volume records".into(), op, source }
    }

    async fn get<T: record::Record>(&self, key: Bytes) -> Result<Option<(T, Bytes)>, Error> {
        match self.meta.get(key.clone()).await.map_err(Self::failed("get"))? {
            Some(value) => Ok(Some((record::decode(&key, &value)?, value))),
            None => Ok(None),
        }
    }

    async fn all(&self, prefix: &'static str) -> Result<Vec<Pair>, Error> {
        let mut range = Bytes::from_static(prefix.as_bytes())..karri_meta::prefix_end(prefix.as_bytes());
        let mut pairs = Vec::new();
        loop {
            let scan = Scan { range: range.clone(), limit: SCAN_BATCH, reverse: false };
            let more = self.meta.scan(scan).await.map_err(Self::failed("scan"))?;
            let full = more.len() == SCAN_BATCH;
            pairs.extend(more);
            match pairs.last() {
                Some((last, _)) if full => range.start = [last, &b"\0"[..]].concat().into(),
                _ => return Ok(pairs),
            }
        }
    }

    async fn commit(&self, batch: Batch) -> Result<(), Error> {
        self.meta.commit(batch).await.map_err(Self::failed("commit"))
    }

    /// A number that nothing had before.
    async fn next_serial(&self) -> Result<u64, Error> {
        loop {
            let key = Bytes::from_static(b"serial");
            let held = self.meta.get(key.clone()).await.map_err(Self::failed("get"))?;
            let next = match &held {
                Some(value) => record::decode::<record::Serial>(&key, value)?.last + 1,
                None => 1,
            };
            let value = record::encode(&key, &record::Serial { last: next });
            match self.meta.commit(Batch::new().check(key.clone(), held).put(key, value)).await {
                Ok(()) => return Ok(next),
                Err(MetaError::Conflict { .. }) => {}
                Err(e) => return Err(Self::failed("commit")(e)),
            }
        }
    }

    // ---- volumes ----

    /// The volume's record.
    ///
    /// # Errors
    /// `Meta`, `Corrupt`.
    pub async fn find(&self, name: &str) -> Result<Option<Volume>, Error> {
        Ok(self.get(record::volume_key(name)).await?.map(|(volume, _)| volume))
    }

    /// The volume's record, which must be there.
    ///
    /// # Errors
    /// `NotFound`, `Meta`, `Corrupt`.
    pub async fn volume(&self, name: &str) -> Result<Volume, Error> {
        self.find(name).await?.ok_or_else(|| Error::NotFound { what: format!("volume {name}") })
    }

    /// All volumes by name.
    ///
    /// # Errors
    /// `Meta`, `Corrupt`.
    pub async fn volumes(&self) -> Result<Vec<(String, Volume)>, Error> {
        let pairs = self.all("vol/").await?;
        pairs.iter().map(|(k, v)| Ok((record::name_of(k, "vol/"), record::decode(k, v)?))).collect()
    }

    /// Refuses sizes that no volume can have.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn check_size(name: &str, size: u64) -> Result<(), Error> {
        if size == 0 || !size.is_multiple_of(SECTOR_BYTES) || size > VOLUME_BYTES_MAX {
            let why = format!("{size} bytes are no size; want whole 512-byte sectors, up to {VOLUME_BYTES_MAX} bytes");
            return Err(Error::Invalid { what: format!("volume {name}"), why });
        }
        Ok(())
    }

    /// Makes a volume, or finds that it is there already with the same parameters.
    ///
    /// # Errors
    /// `Exists` with other parameters; `Invalid`, `Meta`, `Corrupt`.
    pub async fn create(&self, new: &NewVolume, base: Option<(u64, &Base)>) -> Result<Volume, Error> {
        Self::check_size(&new.name, new.size)?;
        if let Some(held) = self.find(&new.name).await? {
            return same(new, held);
        }
        let serial = self.next_serial().await?;
        let parents = base.iter().map(|(serial, b)| Parent { serial: *serial, size: b.size }).collect();
        let volume =
            Volume { serial, size: new.size, account: new.account.clone(), source: new.source.clone(), parents };
        let key = record::volume_key(&new.name);
        let mut batch = Batch::new().check(key.clone(), None).put(key.clone(), record::encode(&key, &volume));
        if let Some((base_serial, base)) = base {
            // The image must still be there, unchanged, at the moment of the commit.
            let base_key = record::base_key(base_serial);
            batch = batch
                .check(base_key.clone(), Some(record::encode(&base_key, base)))
                .put(record::clone_key(base_serial, serial), Bytes::new());
        }
        match self.meta.commit(batch).await {
            Ok(()) => Ok(volume),
            Err(MetaError::Conflict { .. }) => match self.find(&new.name).await? {
                Some(held) => same(new, held),
                None => Err(Error::NotFound { what: format!("the image of volume {}", new.name) }),
            },
            Err(e) => Err(Self::failed("commit")(e)),
        }
    }

    /// Removes a volume's records; its extents then belong to nobody and are freed. An absent volume is no error.
    ///
    /// # Errors
    /// `Meta`, `Corrupt`, `Bulk`.
    pub async fn delete<B: BulkStore>(&self, name: &str, bulk: &B) -> Result<(), Error> {
        let Some(volume) = self.find(name).await? else { return Ok(()) };
        let map = load_map(&*self.meta, volume.serial, volume.size).await?;
        let mut batch = Batch::new()
            .del(record::volume_key(name))
            .del(record::export_key(name))
            .del_range(map_record::keys_of(volume.serial));
        for parent in &volume.parents {
            batch = batch.del(record::clone_key(parent.serial, volume.serial));
        }
        self.commit(batch).await?;
        free(bulk, name, &map).await
    }

    /// Opens a volume on the calling core.
    ///
    /// # Errors
    /// `NotFound`, `Meta`, `Corrupt`.
    pub async fn open<B: BulkStore>(&self, name: &str, bulk: B) -> Result<ExtentVolume<B>, Error> {
        let volume = self.volume(name).await?;
        let mut below = Vec::new();
        for parent in &volume.parents {
            below.push(Arc::new(load_map(&*self.meta, parent.serial, parent.size).await?));
        }
        ExtentVolume::open(name, volume.serial, volume.size, bulk, self.meta.clone(), below).await
    }

    // ---- images ----

    /// The sealed local copy of an image object.
    ///
    /// # Errors
    /// `Meta`, `Corrupt`.
    pub async fn image(&self, source: &Source) -> Result<Option<(u64, Base)>, Error> {
        let Some((held, _)) = self.get::<record::Serial>(record::image_key(source)).await? else { return Ok(None) };
        let base = self.get::<Base>(record::base_key(held.last)).await?;
        Ok(base.map(|(base, _)| (held.last, base)))
    }

    /// Begins a local copy of `size` bytes, to be written and then sealed. Until then a restart forgets it.
    ///
    /// # Errors
    /// `Meta`, `Invalid`.
    pub async fn begin_image<B: BulkStore>(
        &self,
        source: &Source,
        size: u64,
        bulk: B,
    ) -> Result<(u64, ExtentVolume<B>), Error> {
        let size = size.next_multiple_of(SECTOR_BYTES);
        Self::check_size(&source.to_string(), size)?;
        let serial = self.next_serial().await?;
        let base = Base { size, source: source.clone(), sealed: false };
        let key = record::base_key(serial);
        self.commit(Batch::new().check(key.clone(), None).put(key.clone(), record::encode(&key, &base))).await?;
        let name = format!("image-{serial}");
        Ok((serial, ExtentVolume::open(&name, serial, size, bulk, self.meta.clone(), Vec::new()).await?))
    }

    /// Seals a copy whose volume was closed: from now on clones read it and nobody writes it.
    ///
    /// # Errors
    /// `Meta`, `NotFound`.
    pub async fn seal_image(&self, serial: u64) -> Result<Base, Error> {
        let key = record::base_key(serial);
        let Some((mut base, held)) = self.get::<Base>(key.clone()).await? else {
            return Err(Error::NotFound { what: format!("image copy {serial}") });
        };
        base.sealed = true;
        let image = record::image_key(&base.source);
        let number = record::encode(&image, &record::Serial { last: serial });
        let batch = Batch::new()
            .check(key.clone(), Some(held))
            .put(key.clone(), record::encode(&key, &base))
            .put(image, number);
        self.commit(batch).await?;
        Ok(base)
    }

    /// Removes local copies that no volume reads: all that were never sealed, and sealed ones for which `idle` says so.
    ///
    /// # Errors
    /// `Meta`, `Corrupt`, `Bulk`.
    pub async fn drop_images<B: BulkStore>(&self, bulk: &B, idle: impl Fn(u64, &Base) -> bool) -> Result<u64, Error> {
        let clones: HashSet<u64> =
            self.all("clone/").await?.iter().filter_map(|(k, _)| record::parse_clone_key(k)).map(|(b, _)| b).collect();
        let mut dropped = 0;
        for (key, value) in self.all("base/").await? {
            let Some(serial) = record::parse_base_key(&key) else { continue };
            let base: Base = record::decode(&key, &value)?;
            if clones.contains(&serial) || !idle(serial, &base) {
                continue;
            }
            let map = load_map(&*self.meta, serial, base.size).await?;
            let image = record::image_key(&base.source);
            let mut batch =
                Batch::new().check(key.clone(), Some(value)).del(key.clone()).del_range(map_record::keys_of(serial));
            // A newer copy of the same object may own the name.
            if self.get::<record::Serial>(image.clone()).await?.is_some_and(|(held, _)| held.last == serial) {
                batch = batch.del(image);
            }
            self.commit(batch).await?;
            free(bulk, &base.source.to_string(), &map).await?;
            dropped += 1;
        }
        Ok(dropped)
    }

    // ---- exports ----

    /// A volume's last export.
    ///
    /// # Errors
    /// `Meta`, `Corrupt`.
    pub async fn export(&self, name: &str) -> Result<Option<Export>, Error> {
        Ok(self.get(record::export_key(name)).await?.map(|(export, _)| export))
    }

    /// All exports by volume.
    ///
    /// # Errors
    /// `Meta`, `Corrupt`.
    pub async fn exports(&self) -> Result<Vec<(String, Export)>, Error> {
        let pairs = self.all("export/").await?;
        pairs.iter().map(|(k, v)| Ok((record::name_of(k, "export/"), record::decode(k, v)?))).collect()
    }

    /// Records an export of a volume that exists.
    ///
    /// # Errors
    /// `Meta`.
    pub async fn set_export(&self, name: &str, export: &Export) -> Result<(), Error> {
        let key = record::export_key(name);
        self.commit(Batch::new().put(key.clone(), record::encode(&key, export))).await
    }

    // ---- start ----

    /// Commits what a killed process noted of a volume and did not commit ([`crate::volume::journal`]). Answers how many
    /// entries. Before [`collect`](Self::collect) and before the volume is opened.
    ///
    /// # Errors
    /// `Bulk`, `Meta`; `Corrupt` when a note names what the store does not hold.
    pub async fn replay<B: BulkStore>(
        &self,
        name: &str,
        serial: u64,
        size: u64,
        entries: &[(u32, Entry)],
        bulk: &B,
    ) -> Result<usize, Error> {
        let kept: HashSet<ExtentId> = bulk.kept_extents().into_iter().collect();
        let extents = Map::new(size).extents();
        let mut batch = Batch::new();
        for (index, entry) in entries {
            let mut parts = entry.parts();
            if parts.data == crate::map::Bits::EMPTY {
                parts.extent = None;
            }
            if *index >= extents || parts.extent.is_some_and(|x| !kept.contains(&x)) {
                let why = format!("its note of extent {index} names what the store does not hold");
                return Err(Error::Corrupt { what: format!("journal of volume {name}"), why });
            }
            let key = map_record::key(serial, *index);
            match map_record::encode(&key, &parts.settle()) {
                Some(value) => batch.puts.push((key, value)),
                None => batch.dels.push(key),
            }
        }
        if !entries.is_empty() {
            bulk.flush().await.map_err(|source| Error::Bulk { volume: name.to_owned(), op: "flush", source })?;
            self.commit(batch).await?;
        }
        Ok(entries.len())
    }

    /// Frees every kept extent that no map names: what a crash left between a commit and the other store. Call it before
    /// any volume is opened.
    ///
    /// # Errors
    /// `Meta`, `Corrupt`, `Bulk`.
    pub async fn collect<B: BulkStore>(&self, bulk: &B) -> Result<usize, Error> {
        let mut named: HashSet<ExtentId> = HashSet::new();
        let mut range = map_record::all_keys();
        loop {
            let scan = Scan { range: range.clone(), limit: SCAN_BATCH, reverse: false };
            let pairs = self.meta.scan(scan).await.map_err(Self::failed("scan"))?;
            for (key, value) in &pairs {
                named.extend(map_record::decode(key, value)?.extent());
            }
            match pairs.last() {
                Some((last, _)) if pairs.len() == SCAN_BATCH => range.start = [last, &b"\0"[..]].concat().into(),
                _ => break,
            }
        }
        let orphans: Vec<ExtentId> = bulk.kept_extents().into_iter().filter(|x| !named.contains(x)).collect();
        let n = orphans.len();
        if n > 0 {
            tracing::info!(extents = n, "freeing extents that no volume names");
            let volume = "of nobody".to_owned();
            bulk.free_extents(orphans).await.map_err(|source| Error::Bulk { volume, op: "free", source })?;
        }
        Ok(n)
    }
}

fn same(new: &NewVolume, held: Volume) -> Result<Volume, Error> {
    let differs = |why: String| Err(Error::Exists { volume: new.name.clone(), why });
    if held.size != new.size {
        return differs(format!("{} bytes, not {}", held.size, new.size));
    }
    if held.account != new.account {
        return differs("another owner".into());
    }
    if held.source != new.source {
        return differs("another image".into());
    }
    Ok(held)
}

async fn free<B: BulkStore>(bulk: &B, name: &str, map: &Map) -> Result<(), Error> {
    let extents: Vec<ExtentId> = map.entries().filter_map(|(_, e)| e.extent()).collect();
    if extents.is_empty() {
        return Ok(());
    }
    bulk.free_extents(extents).await.map_err(|source| Error::Bulk { volume: name.to_owned(), op: "free", source })
}

#[cfg(test)]
mod tests {
    use karri_bulk::memory::MemoryBulk;
    use karri_engine::buf::Buf;
    use karri_meta::memory::MemoryStore;

    use super::*;
    use crate::volume::Volume as _;

    const MIB: u64 = 1 << 20;

    fn run<F: Future>(f: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(f)
    }

    fn new(name: &str, size: u64) -> NewVolume {
        NewVolume { name: name.into(), size, account: "123456789012".into(), source: None }
    }

    fn source() -> Source {
        Source { bucket: "images".into(), key: "debian.img".into(), etag: "abc".into() }
    }

    async fn put(v: &ExtentVolume<MemoryBulk>, at: u64, byte: u8) {
        let mut buf = Buf::zeroed(4096);
        buf.bytes_mut().fill(byte);
        v.write(at, buf, false).await.0.expect("write");
    }

    #[test]
    fn making_a_volume_twice_is_making_it_once() {
        run(async {
            let (catalog, bulk) = (Catalog::new(Arc::new(MemoryStore::new())), MemoryBulk::new(8 * MIB));
            let first = catalog.create(&new("vol-a", MIB), None).await.unwrap();
            assert_eq!(catalog.create(&new("vol-a", MIB), None).await.unwrap(), first);
            let e = catalog.create(&new("vol-a", 2 * MIB), None).await.unwrap_err();
            assert!(matches!(e, Error::Exists { .. }));
            for size in [0, 513, VOLUME_BYTES_MAX + 512] {
                assert!(matches!(catalog.create(&new("vol-b", size), None).await, Err(Error::Invalid { .. })));
            }
            let v = catalog.open("vol-a", bulk.clone()).await.unwrap();
            put(&v, 0, 1).await;
            v.close().await.unwrap();
            drop(v);
            catalog.delete("vol-a", &bulk).await.unwrap();
            catalog.delete("vol-a", &bulk).await.unwrap();
            assert!(matches!(catalog.open("vol-a", bulk.clone()).await, Err(Error::NotFound { .. })));
            assert_eq!((bulk.usage().used, bulk.kept_extents().len()), (0, 0));
            // The same name again is another volume: empty.
            let again = catalog.create(&new("vol-a", MIB), None).await.unwrap();
            assert_ne!(again.serial, first.serial);
            assert_eq!(catalog.volumes().await.unwrap(), [("vol-a".to_owned(), again)]);
        });
    }

    #[test]
    fn an_image_lives_as_long_as_its_clones() {
        run(async {
            let (catalog, bulk) = (Catalog::new(Arc::new(MemoryStore::new())), MemoryBulk::new(8 * MIB));
            assert!(catalog.image(&source()).await.unwrap().is_none());
            let (serial, copy) = catalog.begin_image(&source(), MIB + 5, bulk.clone()).await.unwrap();
            put(&copy, 0, 7).await;
            copy.close().await.unwrap();
            assert!(catalog.image(&source()).await.unwrap().is_none(), "not before it is sealed");
            catalog.seal_image(serial).await.unwrap();
            let (serial, base) = catalog.image(&source()).await.unwrap().expect("sealed");
            let clone = NewVolume { source: Some(source()), ..new("vol-c", 2 * MIB) };
            catalog.create(&clone, Some((serial, &base))).await.unwrap();
            let v = catalog.open("vol-c", bulk.clone()).await.unwrap();
            let (outcome, buf) = v.read(0, Buf::zeroed(8192)).await;
            outcome.unwrap();
            assert!(buf.bytes()[..4096] == [7; 4096] && buf.bytes()[4096..] == [0; 4096]);
            put(&v, 4096, 8).await;
            v.close().await.unwrap();
            drop(v);
            assert_eq!(catalog.drop_images(&bulk, |_, _| true).await.unwrap(), 0, "it is in use");
            assert_eq!(catalog.collect(&bulk).await.unwrap(), 0);
            catalog.delete("vol-c", &bulk).await.unwrap();
            assert_eq!(catalog.drop_images(&bulk, |_, _| false).await.unwrap(), 0);
            assert_eq!(catalog.drop_images(&bulk, |_, _| true).await.unwrap(), 1);
            assert!(catalog.image(&source()).await.unwrap().is_none());
            assert_eq!(bulk.usage().used, 0);
            // A clone of an image that went meanwhile is refused, not made empty.
            let e = catalog.create(&clone, Some((serial, &base))).await.unwrap_err();
            assert!(matches!(e, Error::NotFound { .. }), "{e:?}");
        });
    }

    #[test]
    fn a_start_collects_what_a_crash_left() {
        run(async {
            let (catalog, bulk) = (Catalog::new(Arc::new(MemoryStore::new())), MemoryBulk::new(8 * MIB));
            let orphan = bulk.alloc_extent().unwrap();
            bulk.keep_extents(vec![orphan]).await.unwrap();
            catalog.create(&new("vol-a", MIB), None).await.unwrap();
            let v = catalog.open("vol-a", bulk.clone()).await.unwrap();
            put(&v, 0, 1).await;
            v.close().await.unwrap();
            let (_, copy) = catalog.begin_image(&source(), MIB, bulk.clone()).await.unwrap();
            put(&copy, 0, 7).await;
            copy.close().await.unwrap();
            assert_eq!(catalog.drop_images(&bulk, |_, base| !base.sealed).await.unwrap(), 1);
            assert_eq!(catalog.collect(&bulk).await.unwrap(), 1);
            assert_eq!(bulk.kept_extents().len(), 1);
        });
    }
}
