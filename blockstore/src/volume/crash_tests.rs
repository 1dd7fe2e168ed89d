//! Volumes on the local store on a simulated disk, crashed at a drawn moment and opened again, over and over.
//!
//! The model: per sector, the values that it may have after a crash. A write adds one; a flush that began after a write's
//! completion removes everything older. After a crash each sector must hold one of its own values, whole: an old volume's,
//! a neighbour's or a torn one is a failure. Two volumes and a clone share the store, so extents change hands.
//! `KARRI_SIM_SEEDS` says how many seeds, `KARRI_SIM_SEED` replays one.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use karri_bulk::BulkStore;
use karri_bulk::local::{LocalStore, Options};
use karri_engine::buf::Buf;
use karri_engine::disk::Dir;
use karri_engine::disk::sim::{Faults, SimDisk};
use karri_engine::sim::{self, Rng, Sim};
use karri_meta::memory::MemoryStore;

use super::conformance::transfer;
use super::{ExtentVolume, SECTOR_BYTES, Volume};
use crate::map::Entry;
use crate::store::record::Source;
use crate::store::{Catalog, NewVolume};

const SECTORS: u64 = 5000; // not whole blocks, not whole extents
const WRITERS: u64 = 3;
const ROUNDS: usize = 4;

type Store = LocalStore<SimDisk>;

/// What one sector may hold: values in the order of their writes, the first of them durable.
type Sector = Vec<u64>;

struct Model {
    sectors: RefCell<Vec<Sector>>,
}

impl Model {
    fn new(value: impl Fn(u64) -> u64) -> Rc<Self> {
        Rc::new(Self { sectors: RefCell::new((0..SECTORS).map(|s| vec![value(s)]).collect()) })
    }
    fn push(&self, sector: u64, value: u64) {
        self.sectors.borrow_mut()[sector as usize].push(value);
    }
}

struct Writer {
    volume: ExtentVolume<Store>,
    model: Rc<Model>,
    /// Its own sectors; the borders lie inside blocks.
    from: u64,
    to: u64,
    next: Rc<Cell<u64>>,
    rng: Rng,
}

impl Writer {
    fn draw(&mut self) -> (u64, u64) {
        let at = self.rng.range(self.from..self.to);
        let longest = *self.rng.pick(&[1, 8, 64, 2500]);
        let len = 1 + self.rng.below(longest);
        let (at, len) = if self.rng.ppm(500_000) { (at & !7, (len + 7) & !7) } else { (at, len) };
        let at = at.max(self.from);
        (at, len.min(self.to - at))
    }

    /// Works until the power goes.
    async fn work(mut self) {
        loop {
            let outcome = match self.rng.below(20) {
                0..=2 => self.flush().await,
                3 => self.unmap(false).await,
                4 => self.unmap(true).await,
                _ => self.write().await,
            };
            if outcome.is_none() {
                return;
            }
        }
    }

    async fn write(&mut self) -> Option<()> {
        let (at, len) = self.draw();
        let mut buf = Buf::zeroed((len * SECTOR_BYTES) as usize);
        for i in 0..len {
            let value = self.next.get() + 1;
            self.next.set(value);
            self.model.push(at + i, value);
            let bytes = &mut buf.bytes_mut()[(i * SECTOR_BYTES) as usize..][..SECTOR_BYTES as usize];
            bytes.chunks_exact_mut(8).for_each(|c| c.copy_from_slice(&value.to_le_bytes()));
        }
        let fua = self.rng.ppm(50_000);
        let done = match fua {
            true => self.volume.write(at * SECTOR_BYTES, buf, true).await,
            // As a queue does, which begins the simple ones without a future.
            false => transfer(&self.volume, Dir::Write, at * SECTOR_BYTES, buf).await,
        };
        done.0.ok()?;
        if fua {
            for sector in &mut self.model.sectors.borrow_mut()[at as usize..(at + len) as usize] {
                sector.drain(..sector.len() - 1);
            }
        }
        Some(())
    }

    async fn unmap(&mut self, all: bool) -> Option<()> {
        let (mut at, mut len) = self.draw();
        if all {
            for sector in at..at + len {
                self.model.push(sector, 0);
            }
            return self.volume.write_zeroes(at * SECTOR_BYTES, len * SECTOR_BYTES).await.ok();
        }
        // Sometimes all of its own sectors, so that whole extents go.
        if self.rng.ppm(300_000) {
            (at, len) = (self.from, self.to - self.from);
        }
        let end = if at + len == SECTORS { at + len } else { (at + len) & !7 };
        for sector in at.next_multiple_of(8)..end {
            self.model.push(sector, 0);
        }
        self.volume.discard(at * SECTOR_BYTES, len * SECTOR_BYTES).await.ok()
    }

    async fn flush(&mut self) -> Option<()> {
        // Own sectors have no write under way: this writer does one thing at a time.
        self.volume.flush().await.ok()?;
        for sector in &mut self.model.sectors.borrow_mut()[self.from as usize..self.to as usize] {
            sector.drain(..sector.len() - 1);
        }
        Some(())
    }
}

/// The value of each sector; every sector must be one value throughout.
async fn read_all(v: &ExtentVolume<Store>) -> Vec<u64> {
    let mut values = Vec::new();
    for at in (0..SECTORS).step_by(1000) {
        let len = (SECTORS - at).min(1000) * SECTOR_BYTES;
        let (outcome, buf) = v.read(at * SECTOR_BYTES, Buf::zeroed(len as usize)).await;
        outcome.expect("read");
        for (i, sector) in buf.bytes().chunks_exact(SECTOR_BYTES as usize).enumerate() {
            let value = u64::from_le_bytes(sector[..8].try_into().unwrap());
            let whole = sector.chunks_exact(8).all(|c| c == value.to_le_bytes());
            assert!(whole, "sector {} of {} is torn or foreign", at + i as u64, v.name());
            values.push(value);
        }
    }
    values
}

async fn open_store(disk: SimDisk) -> Store {
    LocalStore::open_or_format(disk, "sim", Options { log_bytes: Some(1 << 20), uuid: Some([7; 16]) })
        .await
        .expect("open")
}

const NAMES: [&str; 3] = ["vol-a", "vol-b", "vol-clone"];

fn image(sector: u64) -> u64 {
    if sector < 3000 { 1 + sector } else { 0 }
}

async fn make_volumes(catalog: &Catalog, store: &Store) {
    let source = Source { bucket: "b".into(), key: "k".into(), etag: "e".into() };
    let (serial, copy) = catalog.begin_image(&source, 3000 * SECTOR_BYTES, store.clone()).await.expect("image");
    let mut buf = Buf::zeroed((3000 * SECTOR_BYTES) as usize);
    for (s, bytes) in buf.bytes_mut().chunks_exact_mut(SECTOR_BYTES as usize).enumerate() {
        bytes.chunks_exact_mut(8).for_each(|c| c.copy_from_slice(&image(s as u64).to_le_bytes()));
    }
    copy.write(0, buf, false).await.0.expect("fill the image");
    copy.close().await.expect("close");
    let base = catalog.seal_image(serial).await.expect("seal");
    for name in NAMES {
        let source = (name == "vol-clone").then(|| source.clone());
        let new = NewVolume { name: name.into(), size: SECTORS * SECTOR_BYTES, account: "1".into(), source };
        let parent = new.source.is_some().then_some((serial, &base));
        catalog.create(&new, parent).await.expect("create");
    }
}

async fn scenario(sim: Sim) {
    let mut rng = sim.rng();
    let mut disk = SimDisk::new(128 << 20, rng.fork(), Faults::reordering());
    let mut meta = MemoryStore::seeded(rng.next_u64());
    let next = Rc::new(Cell::new(10_000));
    let models: Vec<Rc<Model>> =
        NAMES.iter().map(|name| Model::new(|s| if *name == "vol-clone" { image(s) } else { 0 })).collect();
    let mut first = true;
    for _round in 0..ROUNDS {
        let store = open_store(disk.clone()).await;
        let catalog = Catalog::new(Arc::new(meta.clone()));
        catalog.collect(&store).await.expect("collect");
        if std::mem::replace(&mut first, false) {
            make_volumes(&catalog, &store).await;
        }
        let mut tasks = Vec::new();
        let mut extents = 0;
        let mut volumes = Vec::new();
        for (name, model) in NAMES.iter().zip(&models) {
            let v = catalog.open(name, store.clone()).await.expect("open");
            let values = read_all(&v).await;
            for (s, value) in values.iter().enumerate() {
                let allowed = &mut model.sectors.borrow_mut()[s];
                assert!(allowed.contains(value), "{name} sector {s} holds {value}, allowed {allowed:?}");
                *allowed = vec![*value];
            }
            extents += v.map().entries().filter(|(_, e)| e.extent().is_some()).count();
            assert!(v.map().entries().all(|(_, e)| *e != Entry::Absent));
            volumes.push((v, model));
        }
        let image_extents = 2; // 3000 sectors
        assert_eq!(store.kept_extents().len(), extents + image_extents, "no extent leaks");
        disk.crash_after(1 + rng.below(150));
        for (v, model) in volumes {
            for w in 0..WRITERS {
                let border = |w: u64| if w == WRITERS { SECTORS } else { w * SECTORS / WRITERS };
                let writer = Writer {
                    volume: v.clone(),
                    model: model.clone(),
                    from: border(w),
                    to: border(w + 1),
                    next: next.clone(),
                    rng: rng.fork(),
                };
                tasks.push(karri_engine::spawn(writer.work()));
            }
        }
        for task in tasks {
            task.await.expect("no panic");
        }
        sim.kill_tasks();
        disk = disk.crash();
        meta = meta.crash();
    }
}

#[test]
fn flushed_data_survives_and_nothing_foreign_shows() {
    for seed in sim::seeds(25) {
        sim::run(seed, scenario);
    }
}
