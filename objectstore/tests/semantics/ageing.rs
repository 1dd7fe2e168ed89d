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
use karri_meta::{Batch, MetaStore};
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

/// The rules of one life; what is `None` is not asked.
struct Rules {
    /// Current versions of these go.
    expire: Filter,
    /// Older versions of these go, but so many newest stay.
    old: Filter,
    newer: usize,
    /// Delete markers with nothing behind them go.
    markers: bool,
}

/// Which versions a rule means.
struct Filter {
    prefix: &'static str,
    tag: Option<&'static str>,
    greater: Option<u64>,
    less: Option<u64>,
}

impl Filter {
    fn random(prefix: &'static str, rng: &mut Rng) -> Self {
        let tag = rng.ppm(300_000).then_some("yes");
        let greater = rng.ppm(300_000).then(|| rng.below(50));
        Self { prefix, tag, greater, less: rng.ppm(300_000).then(|| 52 + rng.below(48)) }
    }

    fn document(&self) -> String {
        let mut text = format!("<Prefix>{}</Prefix>", self.prefix);
        if let Some(tag) = self.tag {
            text += &format!("<Tag><Key>old</Key><Value>{tag}</Value></Tag>");
        }
        for (name, size) in [("Greater", self.greater), ("Less", self.less)] {
            text += &size.map_or(String::new(), |n| format!("<ObjectSize{name}Than>{n}</ObjectSize{name}Than>"));
        }
        format!("<Filter><And>{text}</And></Filter>")
    }

    fn means(&self, key: &[u8], object: &Object) -> bool {
        let tagged = |value: &str| object.tags.0.iter().any(|(k, v)| k == "old" && v == value);
        key.starts_with(self.prefix.as_bytes())
            && self.tag.is_none_or(tagged)
            && self.greater.is_none_or(|n| object.size > n)
            && self.less.is_none_or(|n| object.size < n)
    }
}

impl Rules {
    fn random(rng: &mut Rng) -> Self {
        let (expire, old) = (Filter::random("a", rng), Filter::random("", rng));
        Self { expire, old, newer: rng.below(3) as usize, markers: rng.ppm(500_000) }
    }

    fn document(&self) -> String {
        let rule = |id: &str, filter: &str, action: String| {
            format!("<Rule><ID>{id}</ID><Status>Enabled</Status>{filter}{action}</Rule>")
        };
        let kept = match self.newer {
            0 => String::new(),
            n => format!("<NewerNoncurrentVersions>{n}</NewerNoncurrentVersions>"),
        };
        let older = format!("<NoncurrentDays>{OLD}</NoncurrentDays>{kept}");
        let abort = format!("<DaysAfterInitiation>{ABORT}</DaysAfterInitiation>");
        let mut rules = rule("e", &self.expire.document(), format!("<Expiration><Days>{EXPIRE}</Days></Expiration>"))
            + &rule(
                "n",
                &self.old.document(),
                format!("<NoncurrentVersionExpiration>{older}</NoncurrentVersionExpiration>"),
            )
            + &rule(
                "u",
                "<Filter><Prefix>a</Prefix></Filter>",
                format!("<AbortIncompleteMultipartUpload>{abort}</AbortIncompleteMultipartUpload>"),
            );
        if self.markers {
            let gone = "<Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>";
            rules += &rule("m", "<Filter><Prefix></Prefix></Filter>", gone.into());
        }
        format!("<LifecycleConfiguration>{rules}</LifecycleConfiguration>")
    }
}

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
    let rules = Rules::random(&mut rng);
    w.put("/bucket?lifecycle", rules.document()).await.ok();
    history(&w, &clock, &mut rng).await;

    let now = clock.now().secs();
    let (stays, goes) = expected(&w, &rules, now);
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
            0..5 => {
                let put = w.req("PUT", &format!("/bucket/{key}")).body(vec![1; rng.below(100) as usize]);
                let tag = if rng.ppm(500_000) { "old=yes" } else { "old=no" };
                put.header("x-amz-tagging", tag).send().await.ok();
            }
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
fn expected(w: &W, rules: &Rules, now: u64) -> (Vec<Bytes>, Vec<Bytes>) {
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
                let newer: Vec<UnixMicros> = dump
                    .iter()
                    .filter(|(k, _)| k[0] == b'V' && k[1..9] == key[1..9])
                    .filter_map(|(k, _)| keys::version_parts(k))
                    .filter(|(n, t)| *n == name && *t > time)
                    .map(|(_, t)| t)
                    .collect();
                let current = Object::decode(&current.1).unwrap();
                let since = newer.iter().min().copied().unwrap_or(current.modified);
                let means = rules.old.means(&name, &Object::decode(raw).unwrap());
                // A current version that expires makes room for one more noncurrent version.
                match (means, newer.len()) {
                    (true, n) if n >= rules.newer => judge(key, since.secs(), OLD),
                    (true, n) if n + 1 >= rules.newer && !current.marker && rules.expire.means(&name, &current) => {}
                    _ => judge(key, u64::MAX / 2, 0),
                }
            }
            b'O' => {
                let object = Object::decode(raw).unwrap();
                let name = &key[keys::OBJECT_PREFIX..];
                let versioned = object.version.is_some();
                let behind = dump.iter().any(|(k, _)| {
                    k[0] == b'V' && k[1..9] == key[1..9] && keys::version_parts(k).is_some_and(|(n, _)| n == name)
                });
                if !object.marker && !rules.expire.means(name, &object) {
                    judge(key, u64::MAX / 2, 0);
                } else if !object.marker && !versioned {
                    judge(key, object.modified.secs(), EXPIRE);
                } else if object.marker && !behind && rules.markers {
                    judge(key, 0, 0);
                }
                // A versioned one of the rule gets a marker, and that goes when nothing is behind it.
            }
            _ => {}
        }
    }
    (stays, goes)
}

/// A bucket whose objects are due in a second's days.
async fn due_bucket(w: &W, name: &str) {
    w.put(&format!("/{name}"), "").await.ok();
    let action = format!("<Expiration><Days>{EXPIRE}</Days></Expiration>");
    let rule = format!("<Rule><ID>e</ID><Status>Enabled</Status><Filter><Prefix></Prefix></Filter>{action}</Rule>");
    w.put(&format!("/{name}?lifecycle"), format!("<LifecycleConfiguration>{rule}</LifecycleConfiguration>")).await.ok();
}

async fn late() -> (W, Arc<Later>) {
    let clock = Arc::new(Later(AtomicU64::new(0)));
    (Walrus::at(MemoryStore::seeded(1), MemoryBulk::new(1 << 30), clock.clone()).await, clock)
}

#[test]
fn damage_keeps_nothing_else_from_ageing() {
    crate::run(|| async {
        let (w, clock) = late().await;
        for name in ["aaa", "bbb", "ccc"] {
            due_bucket(&w, name).await;
            for key in ["k1", "k2", "k3"] {
                w.put(&format!("/{name}/{key}"), "x").await.ok();
            }
        }
        let store: Arc<dyn MetaStore> = Arc::new(w.meta.clone());
        let damage = async |key: Bytes| store.commit(Batch::new().put(key, "damaged")).await.unwrap();
        damage(keys::bucket("aaa")).await;
        let id = w.core.known("bbb").await.unwrap().bucket().id;
        damage(keys::object(id, b"k2")).await;
        clock.0.fetch_add(2 * EXPIRE, Ordering::Relaxed);
        let aged = ageing::round(&w.core, SECOND).await.unwrap();
        assert_eq!(aged.versions, 5);
        assert_eq!(w.get("/ccc").await.ok().all("Key"), Vec::<String>::new());
        let left: Vec<_> = records(&w).into_iter().filter(|k| k.starts_with(&keys::objects_of(id).start)).collect();
        assert_eq!(left, [keys::object(id, b"k2")]);
    });
}

#[test]
fn rules_that_were_taken_back_do_no_more() {
    crate::run(|| async {
        let (w, clock) = late().await;
        due_bucket(&w, "bucket").await;
        for at in 0..520 {
            w.put(&format!("/bucket/{at:03}"), "").await.ok();
        }
        clock.0.fetch_add(2 * EXPIRE, Ordering::Relaxed);
        let core = w.core.clone();
        let round = spawn(async move { ageing::round(&core, SECOND).await });
        while records(&w).len() == 520 {
            exec::yield_now().await;
        }
        w.req("DELETE", "/bucket?lifecycle").send().await.ok();
        let aged = round.await.unwrap().unwrap();
        assert_eq!((aged.versions, records(&w).len()), (500, 20));
    });
}

#[test]
fn the_newest_of_many_versions_stay() {
    crate::run(|| async {
        let (w, clock) = late().await;
        w.put("/bucket", "").await.ok();
        let on = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
        w.put("/bucket?versioning", on).await.ok();
        let older =
            format!("<NoncurrentDays>{OLD}</NoncurrentDays><NewerNoncurrentVersions>3</NewerNoncurrentVersions>");
        let action = format!("<NoncurrentVersionExpiration>{older}</NoncurrentVersionExpiration>");
        let rule = format!("<Rule><ID>n</ID><Status>Enabled</Status><Filter><Prefix></Prefix></Filter>{action}</Rule>");
        w.put("/bucket?lifecycle", format!("<LifecycleConfiguration>{rule}</LifecycleConfiguration>")).await.ok();
        for at in 0..1_010 {
            w.put("/bucket/k", at.to_string()).await.ok();
        }
        let before = w.get("/bucket?versions&max-keys=4").await.ok().all("VersionId");
        clock.0.fetch_add(2 * OLD, Ordering::Relaxed);
        let aged = ageing::round(&w.core, SECOND).await.unwrap();
        assert_eq!((aged.versions, records(&w).len()), (1_006, 4));
        assert_eq!(w.get("/bucket?versions").await.ok().all("VersionId"), before);
    });
}
