//! Crashes Walrus at any point of a random workload and looks what is left.
//!
//! Clients own their keys, so what each key may hold is known: what was last acknowledged, or what was being done when the
//! power went. After every crash the stores are opened again, leftovers are worked off, and every key is read and listed;
//! at the end all is deleted and no space and no record may be left.

mod objects;
mod replication;
mod versions;

use std::num::NonZero;
use std::rc::Rc;
use std::sync::Mutex;
use std::time::Duration;

use karri_bulk::local::{LocalStore, Options};
use karri_bulk::{BlobId, BulkStore as _};
use karri_engine::disk::sim::{Faults, SimDisk};
use karri_engine::sim::{self, Rng, Sim};
use karri_engine::{exec, spawn};
use karri_meta::memory::MemoryStore;
use karri_objectstore::reclaim;

use crate::client::Walrus;
use crate::usage;

const ROUNDS: usize = 3;
const DISK: u64 = 48 << 20;

type Store = LocalStore<SimDisk>;
/// A bucket's: subresource and document.
type Settings = &'static [(&'static str, &'static str)];

/// What clients do, and what may be found after the power went under them.
trait Workload: Default + 'static {
    const CLIENTS: usize;
    const KEYS: usize;

    /// One client's work on its keys, without end or until something fails.
    async fn work(self: Rc<Self>, walrus: Rc<Walrus<Store>>, rng: Rng, client: usize);

    /// Every key holds what it may hold, and listings say the same. What is found is from then on what is known.
    async fn check(&self, walrus: &Walrus<Store>);

    /// Deletes all objects.
    async fn clear(&self, walrus: &Walrus<Store>);

    /// The clients' keys.
    fn keys() -> Vec<String> {
        (0..Self::CLIENTS).flat_map(|client| (0..Self::KEYS).map(move |key| format!("c{client}/k{key}"))).collect()
    }
}

/// Lives of a workload on a bucket with these settings, one per seed.
fn simulate<W: Workload>(settings: Settings) {
    // A seed takes half a second: every CPU takes the next one.
    let seeds = Mutex::new(sim::seeds(8));
    let next = || seeds.lock().expect("no panic in next()").next();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                while let Some(seed) = next() {
                    sim::run(seed, |sim| async move { life::<W>(sim, settings).await });
                }
            });
        }
    });
}

async fn life<W: Workload>(sim: Sim, settings: Settings) {
    let mut rng = sim.rng();
    let mut disk = SimDisk::new(DISK, rng.fork(), Faults::reordering());
    let mut meta = MemoryStore::seeded(rng.next_u64());
    let workload = Rc::new(W::default());
    for round in 0..=ROUNDS {
        let walrus = Rc::new(Walrus::over(meta.clone(), open(&disk).await).await);
        if round == 0 {
            walrus.put("/bucket", "").await.ok();
            for (subresource, document) in settings {
                walrus.put(&format!("/bucket?{subresource}"), *document).await.ok();
            }
        }
        recover(&walrus).await;
        workload.check(&walrus).await;
        // Everything is cleaned away: what was counted is what is there.
        assert_eq!(usage::counted(&walrus), usage::recount(&walrus), "usage was counted wrong");
        if round == ROUNDS {
            workload.clear(&walrus).await;
            nothing_is_left(&walrus).await;
            return;
        }
        let core = walrus.core.clone();
        drop(spawn(async move { reclaim::run(core, || exec::sleep(Duration::from_millis(1))).await }));
        let clients: Vec<_> =
            (0..W::CLIENTS).map(|client| spawn(workload.clone().work(walrus.clone(), rng.fork(), client))).collect();
        // The power goes at a write of the disk or at a moment.
        if rng.ppm(500_000) {
            disk.crash_after(1 + rng.below(100));
        }
        exec::sleep(Duration::from_micros(rng.range(100..12_000))).await;
        sim.kill_tasks();
        drop(clients);
        disk = disk.crash();
        meta = meta.crash();
    }
}

async fn open(disk: &SimDisk) -> Store {
    let options = Options { log_bytes: Some(256 << 10), uuid: Some([7; 16]) };
    LocalStore::open_or_format(disk.clone(), "disk", options).await.expect("a store opens after a crash")
}

/// What a start does before and beside serving.
async fn recover(walrus: &Walrus<Store>) {
    let candidates = reclaim::sealed_blobs(&walrus.bulk);
    walrus.core.sweep_orphans(&candidates).await.unwrap();
    walrus.core.queue_leftovers().await.unwrap();
    walrus.reclaim().await;
}

/// The bucket goes; nothing may stay behind.
async fn nothing_is_left(walrus: &Walrus<Store>) {
    walrus.req("DELETE", "/bucket").send().await.ok();
    for _ in 0..20 {
        walrus.reclaim().await;
        exec::sleep(Duration::from_millis(5)).await;
    }
    // An account's key stays.
    let left = walrus.meta.dump().iter().map(|(k, _)| k[0] as char).filter(|kind| *kind != 'K').collect::<Vec<_>>();
    assert_eq!(left, ['C'], "records are left behind");
    assert_eq!(walrus.bulk.list(BlobId(0), 10), [], "blobs are left behind");
    assert_eq!(walrus.bulk.usage().used, 0, "space leaked");
}

fn bytes(rng: &mut Rng, max: u64) -> Vec<u8> {
    let mut bytes = vec![0; rng.below(max) as usize];
    rng.fill(&mut bytes);
    bytes
}

/// The body that completes an upload of one part.
fn one_part(etag: &str) -> String {
    format!(
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
    )
}
