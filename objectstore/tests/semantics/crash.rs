//! Crashes Walrus at any point of a random workload and looks what is left.
//!
//! Clients own their keys, so what each key may hold is known: what was last acknowledged, or what was being done when the
//! power went. After every crash the stores are opened again, leftovers are worked off, and every key is read and listed;
//! at the end all is deleted and no space and no record may be left.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use karri_bulk::local::{LocalStore, Options};
use karri_bulk::{BlobId, BulkStore};
use karri_engine::disk::sim::{Faults, SimDisk};
use karri_engine::sim::{self, Rng, Sim};
use karri_engine::{exec, spawn};
use karri_meta::memory::MemoryStore;
use karri_objectstore::reclaim;

use crate::client::Walrus;
use crate::usage;

const CLIENTS: usize = 4;
const KEYS: usize = 4;
const ROUNDS: usize = 3;
pub const DISK: u64 = 48 << 20;

pub type Store = LocalStore<SimDisk>;
type Body = Option<Vec<u8>>;

/// What a key may hold.
#[derive(Default, Clone, Debug)]
struct Key {
    acknowledged: Body,
    /// Set while an operation is under way.
    attempted: Option<Body>,
}

impl Key {
    fn allows(&self, found: &Body) -> bool {
        *found == self.acknowledged || self.attempted.as_ref() == Some(found)
    }
}

type Model = Rc<RefCell<BTreeMap<String, Key>>>;

#[test]
fn nothing_acknowledged_is_lost_and_nothing_else_shows() {
    for seed in sim::seeds(8) {
        sim::run(seed, |sim| async move { life(sim).await });
    }
}

async fn life(sim: Sim) {
    let mut rng = sim.rng();
    let mut disk = SimDisk::new(DISK, rng.fork(), Faults::reordering());
    let mut meta = MemoryStore::seeded(rng.next_u64());
    let model: Model = Rc::default();
    for client in 0..CLIENTS {
        for key in 0..KEYS {
            model.borrow_mut().insert(format!("c{client}/k{key}"), Key::default());
        }
    }
    for round in 0..=ROUNDS {
        let store = open(&disk).await;
        let walrus = Rc::new(Walrus::over(meta.clone(), store).await);
        if round == 0 {
            walrus.put("/bucket", "").await.ok();
        }
        recover(&walrus).await;
        check(&walrus, &model).await;
        let core = walrus.core.clone();
        drop(spawn(async move { reclaim::run(core, || exec::sleep(Duration::from_millis(1))).await }));
        let clients: Vec<_> =
            (0..CLIENTS).map(|client| spawn(work(walrus.clone(), model.clone(), rng.fork(), client))).collect();
        if round == ROUNDS {
            for client in clients {
                client.abort();
            }
            finish(&walrus, &model).await;
            return;
        }
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

pub async fn open(disk: &SimDisk) -> Store {
    let options = Options { log_bytes: Some(256 << 10), uuid: Some([7; 16]) };
    LocalStore::open_or_format(disk.clone(), "disk", options).await.expect("a store opens after a crash")
}

/// What a start does before and beside serving.
pub async fn recover(walrus: &Walrus<Store>) {
    let candidates = reclaim::sealed_blobs(&walrus.bulk);
    walrus.core.sweep_orphans(&candidates).await.unwrap();
    walrus.core.queue_leftovers().await.unwrap();
    walrus.reclaim().await;
}

/// A client's endless work on its keys.
async fn work(walrus: Rc<Walrus<Store>>, model: Model, mut rng: Rng, client: usize) {
    loop {
        let key = format!("c{client}/k{}", rng.below(KEYS as u64));
        let target = format!("/bucket/{key}");
        let body: Body = match rng.below(10) {
            0..2 => None,
            2..5 => Some(bytes(&mut rng, 3_000)),
            5..9 => Some(bytes(&mut rng, 200_000)),
            _ => {
                multipart(&walrus, &model, &mut rng, &key).await;
                continue;
            }
        };
        model.borrow_mut().get_mut(&key).unwrap().attempted = Some(body.clone());
        let answer = match &body {
            None => walrus.req("DELETE", &target).send().await,
            Some(bytes) => walrus.put(&target, bytes.clone()).await,
        };
        settle(&model, &key, answer.status, body);
        let found = walrus.get(&target).await;
        // A disk that lost its power answers errors; what it does answer must be right.
        if found.status == 200 || found.status == 404 {
            let found = (found.status == 200).then(|| found.body.to_vec());
            assert!(model.borrow()[&key].allows(&found), "{key} read back wrong");
        }
    }
}

async fn multipart(walrus: &Walrus<Store>, model: &Model, rng: &mut Rng, key: &str) {
    let target = format!("/bucket/{key}");
    let created = walrus.req("POST", &format!("{target}?uploads")).send().await;
    let id = created.one("UploadId");
    if created.status != 200 {
        return;
    }
    let body = bytes(rng, 150_000);
    let mut etag = String::new();
    for _ in 0..=rng.below(2) {
        let put = walrus.put(&format!("{target}?partNumber=1&uploadId={id}"), body.clone()).await;
        if put.status != 200 {
            return;
        }
        etag = put.header("etag").to_owned();
    }
    if rng.below(4) == 0 {
        walrus.req("DELETE", &format!("{target}?uploadId={id}")).send().await;
        return;
    }
    model.borrow_mut().get_mut(key).unwrap().attempted = Some(Some(body.clone()));
    let xml = format!(
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
    );
    let done = walrus.req("POST", &format!("{target}?uploadId={id}")).body(xml).send().await;
    settle(model, key, done.status, Some(body));
}

fn settle(model: &Model, key: &str, status: u16, body: Body) {
    let mut model = model.borrow_mut();
    let key = model.get_mut(key).unwrap();
    if status < 300 {
        *key = Key { acknowledged: body, attempted: None };
    }
    // On an error it may or may not have happened: the attempt stays possible.
}

pub fn bytes(rng: &mut Rng, max: u64) -> Vec<u8> {
    let mut bytes = vec![0; rng.below(max) as usize];
    rng.fill(&mut bytes);
    bytes
}

/// After a crash every key holds what it may hold, and the listing says the same.
async fn check(walrus: &Walrus<Store>, model: &Model) {
    let keys: Vec<String> = model.borrow().keys().cloned().collect();
    let mut there = Vec::new();
    for key in keys {
        let got = walrus.get(&format!("/bucket/{key}")).await;
        let found = match got.status {
            200 => Some(got.body.to_vec()),
            404 => None,
            status => panic!("{key}: {status} {}", got.text()),
        };
        let mut model = model.borrow_mut();
        let entry = model.get_mut(&key).unwrap();
        assert!(
            entry.allows(&found),
            "{key} holds {:?} bytes; acknowledged {:?}, attempted {:?}",
            found.as_ref().map(Vec::len),
            entry.acknowledged.as_ref().map(Vec::len),
            entry.attempted.as_ref().map(|a| a.as_ref().map(Vec::len))
        );
        if found.is_some() {
            there.push(key);
        }
        *entry = Key { acknowledged: found, attempted: None };
    }
    assert_eq!(walrus.get("/bucket").await.ok().all("Key"), there);
    // Everything is cleaned away: what was counted is what is there.
    assert_eq!(usage::counted(walrus), usage::recount(walrus), "usage was counted wrong");
}

/// Everything goes; nothing may stay behind.
async fn finish(walrus: &Walrus<Store>, model: &Model) {
    let keys: Vec<String> = model.borrow().keys().cloned().collect();
    for key in keys {
        walrus.req("DELETE", &format!("/bucket/{key}")).send().await.ok();
    }
    walrus.req("DELETE", "/bucket").send().await.ok();
    for _ in 0..20 {
        walrus.reclaim().await;
        exec::sleep(Duration::from_millis(5)).await;
    }
    let left: Vec<char> = walrus.meta.dump().iter().map(|(k, _)| k[0] as char).collect();
    assert_eq!(left, ['C'], "records are left behind");
    assert_eq!(walrus.bulk.list(BlobId(0), 10), [], "blobs are left behind");
    assert_eq!(walrus.bulk.usage().used, 0, "space leaked");
}
