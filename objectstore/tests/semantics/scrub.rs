//! What is corrupt is found and never served; what the records tell how to mend is mended; nothing else is touched.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use karri_base::clock::{ManualClock, UnixMicros};
use karri_bulk::local::{LocalStore, Options};
use karri_bulk::{BlobId, BlobWriter, BulkStore};
use karri_engine::buf::Buf;
use karri_engine::disk::sim::{Faults, SimDisk};
use karri_engine::sim;
use karri_meta::memory::MemoryStore;
use karri_meta::{Batch, MetaStore};
use karri_objectstore::keys::{self, BucketId, DataId};
use karri_objectstore::record::{self, Data, Manifest, Part};
use karri_objectstore::scrub::quiet::Scope;
use karri_objectstore::scrub::report::{Fate, Pass, Phase};
use karri_objectstore::scrub::{self, Ask, Pace};
use karri_objectstore::usage::Amount;

use crate::client::{ACCOUNT, Walrus};
use crate::{data, run, usage};

const DISK: u64 = 64 << 20;

async fn on_disk() -> (Walrus<LocalStore<SimDisk>>, SimDisk) {
    let disk = SimDisk::new(DISK, sim::Rng::new(7), Faults::none());
    let store = LocalStore::open_or_format(disk.clone(), "sim", Options::default()).await.unwrap();
    (Walrus::over(MemoryStore::seeded(1), store).await, disk)
}

/// Where these bytes lie on a disk.
fn find(disk: &SimDisk, wanted: &[u8]) -> u64 {
    let all = disk.peek(0, DISK as usize);
    let at = all.chunks(4096).position(|block| block == wanted).expect("the bytes are on the disk");
    at as u64 * 4096
}

fn buffer(len: usize) -> Buf {
    let mut buf = Buf::zeroed(len);
    buf.copy_from(0, &data(len));
    buf
}

async fn check<B: BulkStore>(walrus: &Walrus<B>) -> Pass {
    scrub::now(&walrus.core, Ask::Check).await.unwrap()
}

fn found(pass: &Pass, fate: Fate) -> Vec<String> {
    let mut all: Vec<String> = pass
        .findings
        .iter()
        .filter(|f| f.fate == fate)
        .map(|f| format!("{}/{} {}: {}", f.place.bucket, f.place.key, f.what.split(' ').next().unwrap(), f.why))
        .collect();
    all.sort();
    all
}

async fn fill<B: BulkStore>(walrus: &Walrus<B>) {
    walrus.put("/bkt", "").await.ok();
    for (key, len) in [("empty", 0), ("small", 100), ("edge", 32_768), ("big", 3 << 20)] {
        walrus.put(&format!("/bkt/{key}"), data(len)).await.ok();
    }
    walrus.put("/ver", "").await.ok();
    let on = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    walrus.put("/ver?versioning", on).await.ok();
    for len in [10, 200_000, 20] {
        walrus.put("/ver/k", data(len)).await.ok();
    }
    walrus.req("DELETE", "/ver/k").send().await.ok();
    let id = walrus.req("POST", "/bkt/parts?uploads").send().await.ok().one("UploadId");
    for (n, len) in [(1, 100), (2, 300_000)] {
        walrus.put(&format!("/bkt/parts?partNumber={n}&uploadId={id}"), data(len)).await.ok();
    }
}

#[test]
fn a_commit_is_noted_before_it_is_quiet() {
    run(|| async {
        let walrus = Walrus::new().await;
        let bucket = BucketId(7);
        let is_quiet = || walrus.core.shared.quiet.stamp(Scope::Bucket(bucket), walrus.core.now()).is_some();
        assert!(is_quiet());
        let batch = Batch::new().put(keys::object(bucket, b"k"), "");
        walrus.core.commit_and(batch, |outcome| assert!(outcome.is_ok() && !is_quiet())).await.unwrap();
        assert!(is_quiet());
    });
}

#[test]
fn a_sound_store_is_found_sound() {
    run(|| async {
        let walrus = Walrus::new().await;
        fill(&walrus).await;
        let pass = check(&walrus).await;
        assert_eq!((pass.left, pass.repaired, pass.freed, pass.undecided), (0, 0, 0, 0), "{:?}", pass.findings);
        // 4 objects; a marker and 3 versions; 2 parts.
        assert_eq!((pass.objects, pass.phase), (10, Phase::Usage));
        assert!(pass.bytes > (3 << 20) + 32_768 + 200_000 + 300_000, "{}", pass.bytes);
        assert!(pass.ended.is_some() && pass.asked);
    });
}

#[test]
fn flipped_bytes_are_an_error_and_never_served() {
    run(|| async {
        let (walrus, disk) = on_disk().await;
        walrus.put("/bkt", "").await.ok();
        let body = data(3 << 20);
        walrus.put("/bkt/big", body.clone()).await.ok();
        walrus.put("/bkt/other", data(100_000)).await.ok();
        // The pattern comes again after 2 MiB.
        let at = find(&disk, &body[1 << 20..(1 << 20) + 4096]);
        disk.rot(at + 100..at + 101, 1);

        // What does not touch it is served, what does is not.
        let range =
            |from: usize, to: usize| walrus.req("GET", "/bkt/big").header("range", format!("bytes={from}-{to}")).send();
        assert_eq!(range(0, 99_999).await.ok().body, body[..100_000]);
        let refused = range(1 << 20, (1 << 20) + 10).await.is(500, "InternalError");
        assert!(refused.one("Message").contains("damaged"), "{}", refused.text());
        assert_eq!(walrus.core.shared.metrics.corrupt_found("read"), 1);
        walrus.get("/bkt/other").await.ok();

        let pass = check(&walrus).await;
        assert_eq!((pass.left, pass.repaired), (1, 0), "{:?}", pass.findings);
        let finding = &pass.findings[0];
        assert_eq!((finding.place.bucket.as_str(), finding.place.key.as_str()), ("bkt", "big"));
        assert_eq!(finding.place.version, "null");
        assert!(finding.what.starts_with("blob ") && finding.why.contains("1048576"), "{finding:?}");
        assert_eq!(walrus.core.shared.metrics.corrupt_found("scrub"), 1);

        // Once it is written anew, nothing is left.
        walrus.put("/bkt/big", body.clone()).await.ok();
        walrus.reclaim().await;
        assert_eq!(check(&walrus).await.left, 0);
        assert_eq!(walrus.get("/bkt/big").await.ok().body, body);
    });
}

#[test]
fn a_body_that_has_begun_is_cut_off() {
    use http_body_util::BodyExt;
    run(|| async {
        let (walrus, disk) = on_disk().await;
        walrus.put("/bkt", "").await.ok();
        walrus.req("PUT", "/bkt?acl").header("x-amz-acl", "private").send().await.ok();
        let body = data(3 << 20);
        walrus.put("/bkt/big", body.clone()).await.ok();
        let at = find(&disk, &body[(3 << 20) - 4096..]);
        disk.rot(at..at + 1, 1);
        let (head, mut sent) = walrus.req("GET", "/bkt/big").respond().await.into_parts();
        assert_eq!(head.status, 200);
        let mut got = Vec::new();
        let cut = loop {
            match sent.frame().await.expect("it does not end well") {
                Ok(frame) => got.extend_from_slice(&frame.into_data().unwrap()),
                Err(e) => break e,
            }
        };
        assert!(got.len() < body.len() && got == body[..got.len()], "{cut}");
        assert_eq!(walrus.core.shared.metrics.corrupt_found("read"), 1);
        let report = walrus.req("GET", "/?scrub").by("AKS").send().await.ok();
        assert_eq!(
            (report.one("Key"), report.one("FoundBy"), report.one("Fate")),
            ("big".into(), "read".into(), "left".into())
        );
    });
}

/// Changes the bytes of the records whose keys begin so.
async fn tamper(meta: &MemoryStore, kind: u8, change: impl Fn(&mut Vec<u8>)) {
    for (key, value) in meta.dump() {
        if key[0] == kind {
            let mut value = value.to_vec();
            change(&mut value);
            meta.commit(Batch::new().put(Bytes::copy_from_slice(&key), value)).await.unwrap();
        }
    }
}

#[test]
fn small_data_manifests_and_records_are_looked_at_too() {
    run(|| async {
        let walrus = Walrus::new().await;
        walrus.put("/bkt", "").await.ok();
        walrus.put("/bkt/small", data(100)).await.ok();
        tamper(&walrus.meta, b'I', |value| *value.last_mut().unwrap() ^= 1).await;
        walrus.get("/bkt/small").await.is(500, "InternalError");
        let id = walrus.req("POST", "/bkt/multi?uploads").send().await.ok().one("UploadId");
        let part = walrus.put(&format!("/bkt/multi?partNumber=1&uploadId={id}"), data(100_000)).await.ok();
        let done = format!(
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{}</ETag></Part></CompleteMultipartUpload>",
            part.header("etag")
        );
        walrus.req("POST", &format!("/bkt/multi?uploadId={id}")).body(done).send().await.ok();
        walrus.reclaim().await;
        tamper(&walrus.meta, b'M', |value| value[12] ^= 1).await;
        walrus.put("/bkt/gone", data(50)).await.ok();
        let gone = walrus.core.object(bucket(&walrus).await, "gone").await.unwrap().unwrap().value.data;
        let Data::Inline(gone) = gone else { panic!("it is small") };
        walrus.meta.commit(Batch::new().del(keys::inline(gone))).await.unwrap();
        let pass = check(&walrus).await;
        assert_eq!(
            found(&pass, Fate::Left),
            [
                "bkt/gone small: it is missing",
                "bkt/multi manifest: its checksum does not match",
                "bkt/small small: it does not match its checksum",
            ]
        );
        // A record that cannot be read may name anything: nothing is given up.
        assert_eq!((pass.freed, pass.repaired), (0, 0), "{:?}", pass.findings);
        assert!(pass.undecided > 0);
    });
}

async fn bucket<B: BulkStore>(walrus: &Walrus<B>) -> BucketId {
    walrus.core.known("bkt").await.unwrap().bucket().id
}

#[test]
fn records_are_mended() {
    run(|| async {
        let walrus = Walrus::new().await;
        fill(&walrus).await;
        let sound = walrus.meta.dump();
        let used = walrus.bulk.usage().used;
        let id = bucket(&walrus).await;

        let object = walrus.core.object(id, "big").await.unwrap().unwrap().value;
        let Data::Blob(big) = object.data else { panic!("it is large") };
        let mut stray = walrus.bulk.create(None).await.unwrap();
        stray.append(buffer(5_000)).await.unwrap();
        let stray_id = stray.id();
        stray.seal().await.unwrap();
        let part = Part {
            number: 1,
            size: 3,
            modified: object.modified,
            md5: [0; 16],
            data: Data::Inline(DataId([9; 16])),
            checksum: None,
            salt: None,
        };
        let manifest = Manifest { parts: vec![Part { data: Data::Blob(BlobId(999)), ..part.clone() }] };
        let slot = keys::usage(id, 0);
        let counted = Amount::decode(&walrus.meta.get(slot.clone()).await.unwrap().unwrap()).unwrap();
        let batch = Batch::new()
            // The index of buckets: one line missing, one too many.
            .del(keys::account_bucket(ACCOUNT, "bkt"))
            .put(keys::account_bucket(ACCOUNT, "ghost"), record::marker(b'A'))
            // A blob in use that the next start would delete.
            .del(keys::blob(big))
            .put(keys::garbage(big), record::marker(b'G'))
            // What nothing refers to.
            .put(keys::blob(BlobId(998)), record::marker(b'D'))
            .put(keys::blob(BlobId(999)), record::marker(b'D'))
            .put(keys::inline(DataId([8; 16])), vec![0; 20])
            .put(keys::manifest(DataId([7; 16])), manifest.encode())
            .put(keys::part(DataId([6; 16]), 1), part.encode())
            .put(keys::inline(DataId([9; 16])), vec![0; 7])
            // A counter.
            .put(slot, (counted + Amount { objects: 5, bytes: -7 }).encode());
        walrus.meta.commit(batch).await.unwrap();

        // As after a restart: nothing is in memory.
        let walrus = Walrus::over(walrus.meta.clone(), walrus.bulk.clone()).await;
        let pass = check(&walrus).await;
        assert_eq!((pass.left, pass.undecided), (0, 0), "{:?}", pass.findings);
        let mended = found(&pass, Fate::Repaired).join("\n");
        for part in [
            "bkt/ the: it was not among",
            "ghost/ the: account",
            "bkt/big blob: it was not marked",
            "/ blob: nothing refers",
            "/ blob: no record knows",
            "/ small: nothing refers",
            "/ manifest: nothing refers",
            "/ parts: no upload",
            "bkt/ the: ",
        ] {
            assert!(mended.contains(part), "{part}:\n{mended}");
        }
        walrus.reclaim().await;
        assert!(walrus.bulk.blob_len(stray_id).is_none());
        assert_eq!(walrus.bulk.usage().used, used);
        assert_eq!(usage::counted(&walrus), usage::recount(&walrus));
        let pass = check(&walrus).await;
        assert_eq!((pass.left, pass.repaired, pass.freed), (0, 0, 0), "{:?}", pass.findings);
        let mut left = walrus.meta.dump();
        left.retain(|(key, _)| key[0] != b'C' && key[0] != b'N');
        let mut want = sound;
        want.retain(|(key, _)| key[0] != b'C' && key[0] != b'N');
        assert_eq!(left, want);
    });
}

#[test]
fn reclaiming_says_how_much() {
    run(|| async {
        let walrus = Walrus::new().await;
        walrus.put("/bkt", "").await.ok();
        walrus.put("/bkt/big", data(100_000)).await.ok();
        walrus.req("DELETE", "/bkt/big").send().await.ok();
        let mut stray = walrus.bulk.create(None).await.unwrap();
        stray.append(buffer(5_000)).await.unwrap();
        stray.seal().await.unwrap();
        let pass = scrub::now(&walrus.core, Ask::Reclaim).await.unwrap();
        assert_eq!((pass.freed, pass.freed_bytes), (2, 105_000));
        walrus.reclaim().await;
        assert_eq!(walrus.bulk.usage().used, 0);
        assert_eq!(scrub::now(&walrus.core, Ask::Reclaim).await.unwrap().freed, 0);
    });
}

#[test]
fn a_pass_beside_all_requests_finds_nothing_wrong() {
    for seed in sim::seeds(6) {
        sim::run(seed, |sim| async move {
            let mut rng = sim.rng();
            let disk = SimDisk::new(DISK, rng.fork(), Faults::none());
            let store = LocalStore::open_or_format(disk, "sim", Options::default()).await.unwrap();
            let walrus = Rc::new(Walrus::over(MemoryStore::seeded(rng.next_u64()), store).await);
            walrus.put("/bkt", "").await.ok();
            walrus.put("/ver", "").await.ok();
            let on = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
            walrus.put("/ver?versioning", on).await.ok();
            let clients = (0..4).map(|client| {
                let (walrus, mut rng) = (walrus.clone(), rng.fork());
                karri_engine::spawn(async move {
                    for _ in 0..60 {
                        let bucket = ["bkt", "ver"][rng.below(2) as usize];
                        let (key, other) = (rng.below(6), rng.below(6));
                        let len = [0, 50, 70_000, 300_000][rng.below(4) as usize];
                        let target = format!("/{bucket}/k{key}");
                        match rng.below(7) {
                            0..3 => drop(walrus.put(&target, data(len)).await),
                            3 => drop(walrus.req("DELETE", &target).send().await),
                            4 => {
                                let listed = walrus.get(&format!("/ver?versions&prefix=k{key}")).await;
                                if let Some(id) = listed.all("VersionId").into_iter().next() {
                                    drop(walrus.req("DELETE", &format!("/ver/k{key}?versionId={id}")).send().await);
                                }
                            }
                            5 => {
                                let rename = walrus.req("PUT", &format!("/bkt/k{other}?renameObject"));
                                drop(rename.header("x-amz-rename-source", format!("/bkt/k{key}")).send().await);
                            }
                            _ => {
                                let begun = walrus.req("POST", &format!("{target}?uploads")).send().await.ok();
                                let id = begun.one("UploadId");
                                let put = walrus.put(&format!("{target}?partNumber=1&uploadId={id}"), data(len)).await;
                                let done = format!(
                                    "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{}</ETag></Part></CompleteMultipartUpload>",
                                    put.header("etag")
                                );
                                if rng.below(2) == 0 {
                                    drop(walrus.req("POST", &format!("{target}?uploadId={id}")).body(done).send().await);
                                } else {
                                    drop(walrus.req("DELETE", &format!("{target}?uploadId={id}")).send().await);
                                }
                            }
                        }
                    }
                    client
                })
            });
            let clients: Vec<_> = clients.collect();
            let rest = || karri_engine::sleep(Duration::from_millis(500));
            let reclaimer = karri_engine::spawn(karri_objectstore::reclaim::run(walrus.core.clone(), rest));
            let over = Rc::new(Cell::new(false));
            let scrubbing = {
                let (walrus, over) = (walrus.clone(), over.clone());
                karri_engine::spawn(async move {
                    while !over.get() {
                        let pass = check(&walrus).await;
                        assert_eq!((pass.left, pass.repaired, pass.freed), (0, 0, 0), "{:?}", pass.findings);
                    }
                })
            };
            for client in clients {
                client.await.unwrap();
            }
            // Both end of themselves: a commit that is cut off would rightly leave a pass in doubt.
            over.set(true);
            scrubbing.await.unwrap();
            walrus.core.reclaim.close();
            reclaimer.await.unwrap();
            walrus.reclaim().await;
            let pass = check(&walrus).await;
            assert_eq!((pass.left, pass.repaired, pass.freed, pass.undecided), (0, 0, 0, 0), "{:?}", pass.findings);
            assert_eq!(usage::counted(&walrus), usage::recount(&walrus));
        });
    }
}

#[test]
fn the_background_goes_on_where_it_was() {
    run(|| async {
        let clock = std::sync::Arc::new(ManualClock::at(UnixMicros(1 << 50)));
        let walrus = Walrus::at(MemoryStore::new(), karri_bulk::memory::MemoryBulk::new(1 << 30), clock.clone()).await;
        walrus.put("/bkt", "").await.ok();
        for i in 0..100 {
            walrus.put(&format!("/bkt/{i:03}"), data(10_000)).await.ok();
        }
        let pace = Pace { bytes_per_second: 50_000, days: 7 };
        let report = |walrus: &Walrus| walrus.core.shared.scrub.document(0);
        // Not at once, and not at all where it is turned off.
        let _ = karri_engine::timeout(Duration::from_secs(2), scrub::run(&walrus.core, pace)).await;
        assert!(!report(&walrus).contains("<Running>"));
        clock.advance(Duration::from_secs(3_601));
        let off = Pace { bytes_per_second: 0, ..pace };
        let _ = karri_engine::timeout(Duration::from_secs(2), scrub::run(&walrus.core, off)).await;
        assert!(!report(&walrus).contains("<Running>"));
        // A megabyte at this pace takes 20 s.
        let _ = karri_engine::timeout(Duration::from_secs(15), scrub::run(&walrus.core, pace)).await;
        let text = report(&walrus);
        assert!(text.contains("<Running>") && text.contains("<Phase>objects</Phase>"), "{text}");

        let again = Walrus::at(walrus.meta.clone(), walrus.bulk.clone(), clock.clone()).await;
        let _ = karri_engine::timeout(Duration::from_secs(60), scrub::run(&again.core, pace)).await;
        let pass = again.core.shared.scrub.checked().expect("it is complete");
        assert_eq!((pass.number, pass.asked, pass.left), (1, false, 0));
        assert!((100..200).contains(&pass.objects), "{}", pass.objects);
        // The next one is due after a week.
        let _ = karri_engine::timeout(Duration::from_secs(5), scrub::run(&again.core, pace)).await;
        assert!(!report(&again).contains("<Running>"));
        clock.advance(Duration::from_secs(7 * 86_400));
        let _ = karri_engine::timeout(Duration::from_secs(1), scrub::run(&again.core, pace)).await;
        assert!(report(&again).contains("<Running>"));
    });
}

#[test]
fn only_the_operator_may_ask() {
    run(|| async {
        let walrus = Walrus::new().await;
        walrus.put("/bkt", "").await.ok();
        for (method, target) in [("PUT", "/?scrub"), ("PUT", "/?reclaim"), ("GET", "/?scrub"), ("GET", "/?buckets")] {
            walrus.req(method, target).send().await.is(403, "AccessDenied");
            walrus.req(method, target).anonymous().send().await.is(403, "AccessDenied");
            walrus.req(method, target).by("AKS").send().await.ok();
        }
        let listed = walrus.req("GET", "/?buckets").by("AKS").send().await.ok();
        assert_eq!((listed.one("Name"), listed.one("Owner")), ("bkt".into(), ACCOUNT.into()));
        walrus.req("DELETE", "/?scrub").by("AKS").send().await.is(405, "MethodNotAllowed");
        // Whoever asks twice waits for one.
        let number = walrus.req("PUT", "/?scrub").by("AKS").send().await.ok().one("Number");
        assert_eq!(walrus.req("PUT", "/?scrub").by("AKS").send().await.ok().one("Number"), number);
    });
}
