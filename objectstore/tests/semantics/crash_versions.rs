//! Crashes Walrus at any point of a random workload on a bucket with versions, overwritten by multipart uploads too.
//!
//! Every acknowledged version is there after a crash with its bytes, in its order, until its removal by id was asked for;
//! what was being done may have happened or not; nothing else shows. At the end nothing may be left behind.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use karri_bulk::BlobId;
use karri_bulk::BulkStore as _;
use karri_engine::disk::sim::{Faults, SimDisk};
use karri_engine::sim::{self, Rng, Sim};
use karri_engine::{exec, spawn};
use karri_meta::memory::MemoryStore;
use karri_objectstore::reclaim;

use crate::client::Walrus;
use crate::crash::{DISK, Store, bytes, open, recover};
use crate::usage;

const CLIENTS: usize = 3;
const KEYS: usize = 2;
const ROUNDS: usize = 3;

/// A version's bytes; `None` for a delete marker.
type Body = Option<Vec<u8>>;

enum Attempt {
    Put(Body),
    Remove(String),
}

#[derive(Default)]
struct Key {
    /// Acknowledged, newest first.
    versions: Vec<(String, Body)>,
    /// Under way.
    attempt: Option<Attempt>,
}

type Model = Rc<RefCell<BTreeMap<String, Key>>>;

#[test]
fn versions_survive() {
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
        let walrus = Rc::new(Walrus::over(meta.clone(), open(&disk).await).await);
        if round == 0 {
            walrus.put("/bucket", "").await.ok();
            let on = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
            walrus.put("/bucket?versioning", on).await.ok();
        }
        recover(&walrus).await;
        check(&walrus, &model).await;
        if round == ROUNDS {
            finish(&walrus, &model).await;
            return;
        }
        let core = walrus.core.clone();
        drop(spawn(async move { reclaim::run(core, || exec::sleep(Duration::from_millis(1))).await }));
        let clients: Vec<_> =
            (0..CLIENTS).map(|client| spawn(work(walrus.clone(), model.clone(), rng.fork(), client))).collect();
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

/// A client's work on its keys, until something fails.
async fn work(walrus: Rc<Walrus<Store>>, model: Model, mut rng: Rng, client: usize) {
    loop {
        let key = format!("c{client}/k{}", rng.below(KEYS as u64));
        let target = format!("/bucket/{key}");
        let attempt = |attempt| model.borrow_mut().get_mut(&key).unwrap().attempt = Some(attempt);
        let there = model.borrow()[&key].versions.len() as u64;
        let (answer, done) = match rng.below(10) {
            0..2 => {
                attempt(Attempt::Put(None));
                (walrus.req("DELETE", &target).send().await, Some(None))
            }
            2..4 if there > 0 => {
                let id = model.borrow()[&key].versions[rng.below(there) as usize].0.clone();
                attempt(Attempt::Remove(id.clone()));
                (walrus.req("DELETE", &format!("{target}?versionId={id}")).send().await, None)
            }
            4..5 => {
                let created = walrus.req("POST", &format!("{target}?uploads")).send().await;
                let id = created.one("UploadId");
                let body = bytes(&mut rng, 150_000);
                let put = walrus.put(&format!("{target}?partNumber=1&uploadId={id}"), body.clone()).await;
                if created.status != 200 || put.status != 200 {
                    return;
                }
                let etag = put.header("etag");
                let xml = format!(
                    "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
                );
                attempt(Attempt::Put(Some(body.clone())));
                let complete = walrus.req("POST", &format!("{target}?uploadId={id}")).body(xml);
                (complete.send().await, Some(Some(body)))
            }
            n => {
                let body = bytes(&mut rng, if n < 7 { 3_000 } else { 200_000 });
                attempt(Attempt::Put(Some(body.clone())));
                (walrus.put(&target, body.clone()).await, Some(Some(body)))
            }
        };
        if answer.status >= 300 {
            return;
        }
        let mut model = model.borrow_mut();
        let key = model.get_mut(&key).unwrap();
        let version = answer.header("x-amz-version-id").to_owned();
        match done {
            Some(body) => key.versions.insert(0, (version, body)),
            None => key.versions.retain(|(v, _)| *v != version),
        }
        key.attempt = None;
    }
}

/// Every key has the versions that it may have, with their bytes.
async fn check(walrus: &Walrus<Store>, model: &Model) {
    let keys: Vec<String> = model.borrow().keys().cloned().collect();
    let mut current = Vec::new();
    for key in keys {
        let listed = walrus.get(&format!("/bucket?versions&prefix={key}")).await.ok();
        let mut found: Vec<(String, Body)> = Vec::new();
        // The ids begin with the time: newest first is their order backwards.
        let mut ids = listed.all("VersionId");
        ids.sort_by(|a, b| b.cmp(a));
        for id in ids {
            let got = walrus.get(&format!("/bucket/{key}?versionId={id}")).await;
            match got.status {
                200 => found.push((id, Some(got.body.to_vec()))),
                405 => found.push((id, None)),
                status => panic!("{key} {id}: {status} {}", got.text()),
            }
        }
        let got = walrus.get(&format!("/bucket/{key}")).await;
        let body = (got.status == 200).then(|| got.body.to_vec());
        assert_eq!(
            body,
            found.first().and_then(|(_, b)| b.clone()),
            "{key}: the newest version is not the current one"
        );
        if body.is_some() {
            current.push(key.clone());
        }
        let mut model = model.borrow_mut();
        let entry = model.get_mut(&key).unwrap();
        let happened = match &entry.attempt {
            None => false,
            Some(Attempt::Put(body)) => {
                found.first().is_some_and(|(_, b)| b == body) && found[1..] == entry.versions[..]
            }
            Some(Attempt::Remove(id)) => {
                let left: Vec<_> = entry.versions.iter().filter(|(v, _)| v != id).cloned().collect();
                found == left
            }
        };
        let lens =
            |v: &[(String, Body)]| v.iter().map(|(v, b)| (v.clone(), b.as_ref().map(Vec::len))).collect::<Vec<_>>();
        assert!(
            happened || found == entry.versions,
            "{key} has {:?}; acknowledged {:?}",
            lens(&found),
            lens(&entry.versions)
        );
        *entry = Key { versions: found, attempt: None };
    }
    assert_eq!(walrus.get("/bucket").await.ok().all("Key"), current);
    assert_eq!(usage::counted(walrus), usage::recount(walrus), "usage was counted wrong");
}

/// Everything goes; nothing may stay behind.
async fn finish(walrus: &Walrus<Store>, model: &Model) {
    let all: Vec<(String, String)> = model
        .borrow()
        .iter()
        .flat_map(|(key, k)| k.versions.iter().map(|(v, _)| (key.clone(), v.clone())).collect::<Vec<_>>())
        .collect();
    for (key, version) in all {
        walrus.req("DELETE", &format!("/bucket/{key}?versionId={version}")).send().await.ok();
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
