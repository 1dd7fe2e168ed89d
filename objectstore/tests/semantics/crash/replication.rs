//! Two buckets that replicate each other, written on both sides while changes are carried, with the power cut at any point:
//! in the end both have the same versions, each once, and nothing is left over.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use karri_base::clock::{Clock, SystemClock, UnixMicros};
use karri_bulk::BulkStore as _;
use karri_engine::disk::sim::{Faults, SimDisk};
use karri_engine::sim::{self, Rng, Sim};
use karri_engine::{exec, spawn};
use karri_meta::memory::MemoryStore;
use karri_objectstore::{reclaim, replicate};

use super::{DISK, ROUNDS, Store, bytes, one_part, open, recover};
use crate::client::Walrus;
use crate::usage;

const BUCKETS: [&str; 2] = ["here", "there"];
const KEYS: u64 = 4;

#[test]
fn both_sides_end_alike() {
    for seed in sim::seeds(8) {
        sim::run(seed, |sim| async move { life(sim).await });
    }
}

/// A clock that goes on when it is told.
struct Later(AtomicU64);

impl Clock for Later {
    fn now(&self) -> UnixMicros {
        UnixMicros(SystemClock.now().0 + self.0.load(Ordering::Relaxed))
    }
}

async fn settle(walrus: &Walrus<Store>) {
    let on = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    for bucket in BUCKETS {
        walrus.put(&format!("/{bucket}"), "").await.ok();
        walrus.put(&format!("/{bucket}?versioning"), on).await.ok();
    }
    for (from, to) in [("here", "there"), ("there", "here")] {
        let rule = format!(
            "<ReplicationConfiguration><Role>arn:aws:iam::000000000001:role/r</Role><Rule><Prefix/><Status>Enabled</Status><Destination><Bucket>arn:aws:s3:::{to}</Bucket></Destination></Rule></ReplicationConfiguration>"
        );
        walrus.put(&format!("/{from}?replication"), rule).await.ok();
    }
}

async fn work(walrus: Rc<Walrus<Store>>, mut rng: Rng, bucket: &'static str) {
    loop {
        let target = format!("/{bucket}/k{}", rng.below(KEYS));
        let max = if rng.ppm(300_000) { 150_000 } else { 900 };
        let body = bytes(&mut rng, max);
        let answer = match rng.below(6) {
            0 => walrus.req("DELETE", &target).send().await,
            1 => {
                let begun = walrus.req("POST", &format!("{target}?uploads")).send().await;
                let upload = format!("{target}?uploadId={}", begun.one("UploadId"));
                let part = walrus.put(&format!("{upload}&partNumber=1"), body).await;
                walrus.req("POST", &upload).body(one_part(part.header("etag"))).send().await
            }
            2 => {
                let tags = "<Tagging><TagSet><Tag><Key>k</Key><Value>v</Value></Tag></TagSet></Tagging>";
                walrus.put(&format!("{target}?tagging"), tags).await
            }
            _ => walrus.put(&target, body).await,
        };
        if answer.status >= 500 {
            return;
        }
    }
}

async fn life(sim: Sim) {
    let mut rng = sim.rng();
    let mut disk = SimDisk::new(DISK, rng.fork(), Faults::reordering());
    let mut meta = MemoryStore::seeded(rng.next_u64());
    let clock = Arc::new(Later(AtomicU64::new(0)));
    for round in 0..=ROUNDS {
        let walrus = Rc::new(Walrus::at(meta.clone(), open(&disk).await, clock.clone()).await);
        if round == 0 {
            settle(&walrus).await;
        }
        recover(&walrus).await;
        if round == ROUNDS {
            check(&walrus, &clock).await;
            return;
        }
        let core = walrus.core.clone();
        drop(spawn(async move { reclaim::run(core, || exec::sleep(Duration::from_millis(1))).await }));
        let core = walrus.core.clone();
        drop(spawn(async move { replicate::run(&core).await }));
        for bucket in BUCKETS {
            drop(spawn(work(walrus.clone(), rng.fork(), bucket)));
        }
        if rng.ppm(500_000) {
            disk.crash_after(1 + rng.below(100));
        }
        exec::sleep(Duration::from_micros(rng.range(100..12_000))).await;
        sim.kill_tasks();
        disk = disk.crash();
        meta = meta.crash();
    }
}

async fn check(walrus: &Walrus<Store>, clock: &Later) {
    for _ in 0..10 {
        assert_eq!(replicate::round(&walrus.core).await.unwrap(), []);
        // What failed with the disk was put back.
        clock.0.fetch_add(3_600_000_000, Ordering::Relaxed);
    }
    assert!(!walrus.meta.dump().iter().any(|(key, _)| key[0] == b'R'), "something waits for ever");
    let shown = async |bucket: &str| {
        let mut all = Vec::new();
        let listed = walrus.get(&format!("/{bucket}?versions")).await.ok();
        for (key, id) in listed.all("Key").into_iter().zip(listed.all("VersionId")) {
            let answer = walrus.get(&format!("/{bucket}/{key}?versionId={id}")).await;
            let status = answer.header("x-amz-replication-status").to_owned();
            assert!(answer.status == 405 || ["COMPLETED", "REPLICA"].contains(&&*status), "{key} {id}: {status}");
            // What is said of a delete marker is each answer's own.
            let body = if answer.status == 200 { answer.body.clone() } else { bytes::Bytes::new() };
            all.push((key, id, answer.status, answer.header("etag").to_owned(), body));
        }
        all
    };
    let (here, there) = (shown("here").await, shown("there").await);
    // By what they hold: where both sides wrote in one microsecond, the versions have other ids there.
    let held = |all: &[(String, String, u16, String, bytes::Bytes)]| {
        let mut held: Vec<_> =
            all.iter().map(|(key, _, status, tag, body)| (key.clone(), *status, tag.clone(), body.clone())).collect();
        held.sort();
        held
    };
    assert!(held(&here) == held(&there), "the sides differ: {} and {} versions", here.len(), there.len());
    walrus.reclaim().await;
    assert_eq!(usage::counted(walrus), usage::recount(walrus), "usage was counted wrong");
    for (bucket, all) in [("here", here), ("there", there)] {
        for (key, id, ..) in all {
            walrus.req("DELETE", &format!("/{bucket}/{key}?versionId={id}")).send().await.ok();
        }
        let open = walrus.get(&format!("/{bucket}?uploads")).await.ok();
        for (key, id) in open.all("Key").into_iter().zip(open.all("UploadId")) {
            walrus.req("DELETE", &format!("/{bucket}/{key}?uploadId={id}")).send().await.ok();
        }
        walrus.req("DELETE", &format!("/{bucket}")).send().await.ok();
    }
    for _ in 0..20 {
        walrus.reclaim().await;
        exec::sleep(Duration::from_millis(5)).await;
    }
    let left: Vec<_> = walrus.meta.dump().iter().map(|(key, _)| key[0] as char).filter(|kind| *kind != 'K').collect();
    assert_eq!(left, ['C'], "records are left behind");
    assert_eq!(walrus.bulk.usage().used, 0, "space leaked");
}
