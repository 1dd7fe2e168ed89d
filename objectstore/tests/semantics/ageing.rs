//! Lifecycle rules over random histories, with the power cut in between: what is due goes, what is not stays.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use karri_base::clock::{Clock, SystemClock, UnixMicros};
use karri_bulk::memory::MemoryBulk;
use karri_engine::sim::{self, Rng, Sim};
use karri_engine::{exec, spawn};
use karri_meta::memory::MemoryStore;
use karri_objectstore::ageing::{self, Aged};
use karri_objectstore::config::lifecycle::Calendar;
use karri_objectstore::keys;
use karri_objectstore::record::{Object, Upload};

use crate::client::Walrus;
use crate::usage;

const SECOND: Calendar = Calendar { day_seconds: 1 };
/// Days, here seconds, of the rules.
const EXPIRE: u64 = 20;
const OLD: u64 = 10;
const ABORT: u64 = 5;

/// The machine's clock, put forward.
#[derive(Debug)]
struct Later(AtomicU64);

impl Clock for Later {
    fn now(&self) -> UnixMicros {
        UnixMicros(SystemClock.now().0 + self.0.load(Ordering::Relaxed) * 1_000_000)
    }
}

#[test]
fn what_is_due_goes_and_nothing_else() {
    for seed in sim::seeds(6) {
        sim::run(seed, |sim| async move { life(sim).await });
    }
}

type W = Walrus<MemoryBulk>;

async fn life(sim: Sim) {
    let mut rng = sim.rng();
    let clock = Arc::new(Later(AtomicU64::new(0)));
    let mut meta = MemoryStore::seeded(rng.next_u64());
    let bulk = MemoryBulk::new(1 << 30);
    let w = Rc::new(Walrus::at(meta.clone(), bulk.clone(), clock.clone()).await);
    w.put("/bucket", "").await.ok();
    if rng.ppm(600_000) {
        let on = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
        w.put("/bucket?versioning", on).await.ok();
    }
    let days = |name: &str, days: u64| format!("<{name}>{days}</{name}>");
    let rule = |id: &str, prefix: &str, action: String| {
        format!("<Rule><ID>{id}</ID><Status>Enabled</Status><Filter><Prefix>{prefix}</Prefix></Filter>{action}</Rule>")
    };
    let rules = rule("e", "a", format!("<Expiration>{}</Expiration>", days("Days", EXPIRE)))
        + &rule(
            "n",
            "",
            format!("<NoncurrentVersionExpiration>{}</NoncurrentVersionExpiration>", days("NoncurrentDays", OLD)),
        )
        + &rule(
            "u",
            "a",
            format!(
                "<AbortIncompleteMultipartUpload>{}</AbortIncompleteMultipartUpload>",
                days("DaysAfterInitiation", ABORT)
            ),
        );
    w.put("/bucket?lifecycle", format!("<LifecycleConfiguration>{rules}</LifecycleConfiguration>")).await.ok();
    history(&w, &clock, &mut rng).await;

    let now = clock.now().secs();
    let (stays, goes) = expected(&w, now);
    // Rounds, some of them cut off by the power, until one has nothing to do.
    let mut walrus = w;
    for round in 0.. {
        assert!(round < 50, "rounds never end");
        if round < 4 && rng.ppm(700_000) {
            let core = walrus.core.clone();
            drop(spawn(async move { ageing::round(&core, SECOND).await.map(drop) }));
            exec::sleep(Duration::from_micros(rng.range(1..8_000))).await;
            sim.kill_tasks();
            meta = meta.crash();
            walrus = Rc::new(Walrus::at(meta.clone(), bulk.clone(), clock.clone()).await);
            walrus.core.queue_leftovers().await.unwrap();
            continue;
        }
        if ageing::round(&walrus.core, SECOND).await.unwrap() == Aged::default() {
            break;
        }
    }
    walrus.reclaim().await;
    let left = records(&walrus);
    for key in &stays {
        assert!(left.contains(key), "gone before its time: {}", key.escape_ascii());
    }
    for key in &goes {
        assert!(!left.contains(key), "still there: {}", key.escape_ascii());
    }
    assert_eq!(usage::counted(&walrus), usage::recount(&walrus), "usage was counted wrong");
}

async fn history(w: &W, clock: &Later, rng: &mut Rng) {
    for _ in 0..rng.range(20..60) {
        let key = format!("{}{}", if rng.ppm(500_000) { "a" } else { "b" }, rng.below(4));
        match rng.below(10) {
            0..5 => drop(w.put(&format!("/bucket/{key}"), vec![1; rng.below(100) as usize]).await.ok()),
            5..7 => drop(w.req("DELETE", &format!("/bucket/{key}")).send().await.ok()),
            7 => {
                let id = w.req("POST", &format!("/bucket/{key}?uploads")).send().await.ok().one("UploadId");
                w.put(&format!("/bucket/{key}?partNumber=1&uploadId={id}"), "part").await.ok();
            }
            _ => drop(clock.0.fetch_add(rng.below(8), Ordering::Relaxed)),
        }
    }
}

fn records(w: &W) -> BTreeSet<Bytes> {
    w.meta.dump().into_iter().map(|(key, _)| key).filter(|key| matches!(key[0], b'O' | b'V' | b'U')).collect()
}

/// Which records stay and which go, judged from the records alone and with a margin for the seconds that the test takes;
/// what is in the margin may do either.
fn expected(w: &W, now: u64) -> (Vec<Bytes>, Vec<Bytes>) {
    const MARGIN: u64 = 3;
    let dump = w.meta.dump();
    let (mut stays, mut goes) = (Vec::new(), Vec::new());
    let mut judge = |key: &Bytes, at: u64, days: u64| match at + days {
        due if due <= now => goes.push(key.clone()),
        due if due > now + MARGIN => stays.push(key.clone()),
        _ => {}
    };
    for (key, raw) in &dump {
        match key[0] {
            b'U' => {
                let (name, _) = keys::upload_parts(key).unwrap();
                let days = if name.starts_with(b"a") { ABORT } else { u64::MAX / 2 };
                judge(key, Upload::decode(raw).unwrap().initiated.secs(), days);
            }
            b'V' => {
                // Noncurrent since the next newer one came.
                let (name, time) = keys::version_parts(key).unwrap();
                let bucket = keys::BucketId(u64::from_be_bytes(key[1..9].try_into().unwrap()));
                let current = dump.iter().find(|(k, _)| *k == keys::object(bucket, &name)).unwrap();
                let newer = dump
                    .iter()
                    .filter(|(k, _)| k[0] == b'V' && k[1..9] == key[1..9])
                    .filter_map(|(k, _)| keys::version_parts(k))
                    .filter(|(n, t)| *n == name && *t > time)
                    .map(|(_, t)| t)
                    .min();
                let since = newer.unwrap_or(Object::decode(&current.1).unwrap().modified);
                judge(key, since.secs(), OLD);
            }
            b'O' => {
                let object = Object::decode(raw).unwrap();
                let name = &key[keys::OBJECT_PREFIX..];
                let versioned = object.version.is_some();
                if name.starts_with(b"b") && !object.marker {
                    judge(key, u64::MAX / 2, 0);
                } else if name.starts_with(b"a") && !versioned {
                    judge(key, object.modified.secs(), EXPIRE);
                }
                // A versioned one of the rule gets a marker, and that goes when nothing is behind it.
            }
            _ => {}
        }
    }
    (stays, goes)
}
