//! Replication between buckets of one Walrus: configurations, what is sent on and what not, replicas as their versions are.

use karri_base::clock::{Clock, UnixMicros};
use karri_bulk::memory::MemoryBulk;
use karri_meta::memory::MemoryStore;
use karri_objectstore::replicate::{self, ATTEMPTS};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::client::{Answer, Walrus};
use crate::{data, run, usage};

const ON: &str = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
const ROLE: &str = "arn:aws:iam::000000000001:role/replicator";

fn rules(rules: &str) -> String {
    format!("<ReplicationConfiguration><Role>{ROLE}</Role>{rules}</ReplicationConfiguration>")
}

/// A rule of version 2 to a bucket.
fn rule(id: &str, filter: &str, markers: &str, to: &str) -> String {
    format!(
        "<Rule><ID>{id}</ID><Priority>{}</Priority><Status>Enabled</Status><Filter>{filter}</Filter><DeleteMarkerReplication><Status>{markers}</Status></DeleteMarkerReplication><Destination>{to}</Destination></Rule>",
        id.len()
    )
}

fn bucket(name: &str) -> String {
    format!("<Bucket>arn:aws:s3:::{name}</Bucket>")
}

/// A Walrus with buckets that keep versions.
async fn walrus(buckets: &[&str]) -> Walrus {
    let w = Walrus::new().await;
    for bucket in buckets {
        w.put(&format!("/{bucket}"), "").await.ok();
        w.put(&format!("/{bucket}?versioning"), ON).await.ok();
    }
    w
}

async fn replicated(w: &Walrus) {
    assert_eq!(replicate::round(&w.core).await.unwrap(), []);
    w.reclaim().await;
}

fn waiting(w: &Walrus) -> usize {
    w.meta.dump().iter().filter(|(key, _)| key[0] == b'R').count()
}

async fn status(w: &Walrus, target: &str) -> String {
    w.req("HEAD", target).send().await.ok().header("x-amz-replication-status").to_owned()
}

/// Both sides of an object answer alike, but for the status.
async fn assert_equal(w: &Walrus, key: &str, from: &str, to: &str) {
    let get = |bucket: &str| w.req("GET", &format!("/{bucket}/{key}")).header("x-amz-checksum-mode", "ENABLED").send();
    let (a, b): (Answer, Answer) = (get(from).await.ok(), get(to).await.ok());
    assert!(a.body == b.body, "{key}: the bytes differ");
    for (name, value) in &a.headers {
        if !["x-amz-replication-status", "x-amz-request-id", "x-amz-id-2", "date"].contains(&name.as_str()) {
            assert_eq!(b.headers.get(name), Some(value), "{key}: {name}");
        }
    }
    assert_eq!(b.header("x-amz-replication-status"), "REPLICA", "{key}");
}

#[test]
fn configurations_are_checked() {
    run(|| async {
        let w = walrus(&["source", "target"]).await;
        w.put("/plain", "").await.ok();
        w.req("PUT", "/theirs").by("AK2").send().await.ok();
        w.req("PUT", "/theirs?versioning").by("AK2").body(ON).send().await.ok();
        let put = |document: String| w.put("/source?replication", document);
        let to = |name: &str| rules(&rule("r", "", "Disabled", &bucket(name)));
        w.get("/source?replication").await.is(404, "ReplicationConfigurationNotFoundError");
        w.put("/plain?replication", to("target")).await.is(400, "InvalidRequest");
        put(to("absent")).await.is(400, "InvalidRequest");
        put(to("plain")).await.is(400, "InvalidRequest");
        put(to("source")).await.is(400, "InvalidRequest");
        put(to("theirs")).await.is(403, "AccessDenied");
        put(to("target").replace("000000000001", "000000000002")).await.is(400, "InvalidArgument");
        put(to("target").replace(ROLE, "someone")).await.is(400, "InvalidArgument");
        put("<ReplicationConfiguration/>".into()).await.is(400, "MalformedXML");
        put(rules(&rule("r", "", "Disabled", "<Bucket>arn:karri:s3:nowhere::target</Bucket>")))
            .await
            .is(400, "InvalidRequest");
        put(to("target")).await.ok();
        let got = w.get("/source?replication").await.ok();
        assert_eq!((got.one("Role").as_str(), got.one("Bucket").as_str()), (ROLE, "arn:aws:s3:::target"));
        let off = ON.replace("Enabled", "Suspended");
        w.put("/source?versioning", off.clone()).await.is(409, "InvalidBucketState");
        w.req("DELETE", "/source?replication").send().await.is(204, "");
        w.get("/source?replication").await.is(404, "ReplicationConfigurationNotFoundError");
        w.put("/source?versioning", off).await.ok();
    });
}

#[test]
fn replicas_are_as_their_versions() {
    run(|| async {
        let w = walrus(&["source", "target"]).await;
        w.put("/source/before", "not sent").await.ok();
        w.put("/source?replication", rules(&rule("r", "", "Disabled", &bucket("target")))).await.ok();
        for (key, len) in [("empty", 0), ("small", 5_000), ("large", 3 << 20)] {
            let put = w.req("PUT", &format!("/source/{key}")).body(data(len));
            let put = put
                .header("content-type", "text/x")
                .header("x-amz-meta-colour", "red")
                .header("x-amz-tagging", "a=b")
                .header("cache-control", "no-cache");
            put.send().await.ok();
            assert_eq!(status(&w, &format!("/source/{key}")).await, "PENDING");
        }
        w.req("PUT", "/source/sealed")
            .header("x-amz-server-side-encryption", "AES256")
            .body(data(200_000))
            .send()
            .await
            .ok();
        let customer = [
            ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
            ("x-amz-server-side-encryption-customer-key", "pO3upElrwuEXSoFwCfnZPdSsmt/xWeFa0N9KgDijwVs="),
            ("x-amz-server-side-encryption-customer-key-md5", "DWygnHRtgiJ77HCm+1rvHw=="),
        ];
        let put = customer.iter().fold(w.req("PUT", "/source/secret").body("x"), |r, (n, v)| r.header(n, *v));
        put.send().await.ok();
        w.req("PUT", "/source/kms").header("x-amz-server-side-encryption", "aws:kms").body("x").send().await.ok();
        let id = w.req("POST", "/source/parts?uploads").header("x-amz-checksum-algorithm", "SHA256").send().await.ok();
        let id = id.one("UploadId");
        let mut parts = String::new();
        for (n, len) in [(1, 5 << 20), (3, 5 << 20), (7, 1234)] {
            let target = format!("/source/parts?partNumber={n}&uploadId={id}");
            let put = w
                .req("PUT", &target)
                .header("x-amz-checksum-sha256", sha(&data(len)))
                .body(data(len))
                .send()
                .await
                .ok();
            let (etag, sum) = (put.header("etag"), put.header("x-amz-checksum-sha256"));
            parts += &format!(
                "<Part><PartNumber>{n}</PartNumber><ETag>{etag}</ETag><ChecksumSHA256>{sum}</ChecksumSHA256></Part>"
            );
        }
        let complete = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
        w.req("POST", &format!("/source/parts?uploadId={id}")).body(complete).send().await.ok();

        replicated(&w).await;
        assert_eq!(waiting(&w), 0);
        for key in ["empty", "small", "large", "sealed", "parts"] {
            assert_equal(&w, key, "source", "target").await;
            assert_eq!(status(&w, &format!("/source/{key}")).await, "COMPLETED", "{key}");
        }
        assert_equal(&w, "parts?partNumber=2", "source", "target").await;
        assert_eq!(w.get("/target").await.ok().all("Key").len(), 5, "neither older ones nor others' keys");
        assert_eq!(status(&w, "/source/kms").await, "", "no rule means it");
        assert_eq!(w.get("/target/small?tagging").await.ok().all("Value"), ["b"]);
        assert_eq!(usage::counted(&w), usage::recount(&w));

        // Tags follow, and whoever does not change anything sends nothing.
        let tags = "<Tagging><TagSet><Tag><Key>c</Key><Value>d</Value></Tag></TagSet></Tagging>";
        w.put("/source/small?tagging", tags).await.ok();
        assert_eq!(status(&w, "/source/small").await, "PENDING");
        w.req("PUT", "/source/small?acl").header("x-amz-acl", "public-read").send().await.ok();
        assert_eq!(waiting(&w), 1, "one entry for both");
        replicated(&w).await;
        assert_equal(&w, "small", "source", "target").await;
        assert_eq!(w.get("/target/small?tagging").await.ok().all("Value"), ["d"]);
        w.req("GET", "/target/small").anonymous().send().await.ok();
        // A replica's own changes stay where they are.
        w.put("/target/small?tagging", tags.replace('d', "e")).await.ok();
        assert_eq!(waiting(&w), 0);
    });
}

fn sha(data: &[u8]) -> String {
    use sha2::Digest;
    karri_objectstore::digest::base64(&sha2::Sha256::digest(data))
}

#[test]
fn rules_say_what_is_sent() {
    run(|| async {
        let w = walrus(&["source", "one", "two"]).await;
        let tagged = "<Tag><Key>send</Key><Value>yes</Value></Tag>";
        let all = rule(
            "a",
            "<Prefix>logs/</Prefix>",
            "Enabled",
            &format!("{}<StorageClass>STANDARD_IA</StorageClass>", bucket("one")),
        ) + &rule("bb", tagged, "Disabled", &bucket("two"));
        w.put("/source?replication", rules(&all)).await.ok();
        w.put("/source/other", "x").await.ok();
        w.put("/source/logs/1", "x").await.ok();
        w.req("PUT", "/source/logs/2").header("x-amz-tagging", "send=yes").body("x").send().await.ok();
        w.req("DELETE", "/source/other").send().await.ok();
        w.req("DELETE", "/source/logs/1").send().await.ok();
        replicated(&w).await;
        assert_eq!(w.get("/one").await.ok().all("Key"), ["logs/2"], "the marker came too");
        assert_eq!(w.get("/one?versions").await.ok().all("IsLatest").len(), 3);
        assert_eq!(w.get("/two").await.ok().all("Key"), ["logs/2"]);
        assert_eq!(w.req("HEAD", "/one/logs/2").send().await.ok().header("x-amz-storage-class"), "STANDARD_IA");
        // Deletions of versions are never sent on.
        let ids = w.get("/source?versions&prefix=logs/2").await.ok().all("VersionId");
        w.req("DELETE", &format!("/source/logs/2?versionId={}", ids[0])).send().await.ok();
        replicated(&w).await;
        w.get("/one/logs/2").await.ok();
        // In version 1 delete markers are always sent.
        let old = format!("<Rule><Prefix/><Status>Enabled</Status><Destination>{}</Destination></Rule>", bucket("two"));
        w.put("/source?replication", rules(&old)).await.ok();
        w.put("/source/k", "x").await.ok();
        w.req("DELETE", "/source/k").send().await.ok();
        replicated(&w).await;
        w.get("/two/k").await.is(404, "NoSuchKey");
        assert_eq!(w.get("/two?versions&prefix=k").await.ok().all("VersionId").len(), 2);
    });
}

#[test]
fn two_buckets_replicate_each_other() {
    run(|| async {
        let w = walrus(&["here", "there"]).await;
        for (from, to) in [("here", "there"), ("there", "here")] {
            w.put(&format!("/{from}?replication"), rules(&rule("r", "", "Enabled", &bucket(to)))).await.ok();
        }
        // Versions of one key, written on both sides before anything is carried: both end with the same history.
        w.put("/here/k", "1").await.ok();
        w.put("/there/k", "2").await.ok();
        w.put("/here/k", "3").await.ok();
        w.req("DELETE", "/there/k").send().await.ok();
        w.put("/here/k", "4").await.ok();
        replicated(&w).await;
        assert_eq!(waiting(&w), 0, "replicas are not sent back");
        let history = |bucket: &str| {
            let target = format!("/{bucket}?versions");
            let w = &w;
            async move { w.get(&target).await.ok().all("VersionId") }
        };
        assert_eq!(history("here").await, history("there").await);
        assert_eq!(history("here").await.len(), 5);
        for bucket in ["here", "there"] {
            assert_eq!(w.get(&format!("/{bucket}/k")).await.ok().text(), "4");
        }
        assert_eq!(usage::counted(&w), usage::recount(&w));
        // Carrying it all again, as after a crash, changes nothing.
        let before = history("there").await;
        w.put("/here/k", "5").await.ok();
        let entries: Vec<_> = w.meta.dump().into_iter().filter(|(key, _)| key[0] == b'R').collect();
        replicated(&w).await;
        let mut batch = karri_meta::Batch::new();
        batch.puts = entries;
        w.core.commit(batch).await.unwrap();
        replicated(&w).await;
        assert_eq!(history("there").await.len(), before.len() + 1);
        assert_eq!(status(&w, "/here/k").await, "COMPLETED");
    });
}

/// A clock that goes on when it is told.
struct Later(AtomicU64);

impl Clock for Later {
    fn now(&self) -> UnixMicros {
        UnixMicros(karri_base::clock::SystemClock.now().0 + self.0.load(Ordering::Relaxed))
    }
}

#[test]
fn what_is_refused_is_put_back_and_holds_up_nothing() {
    run(|| async {
        let clock = Arc::new(Later(AtomicU64::new(0)));
        let w = Walrus::at(MemoryStore::new(), MemoryBulk::new(4 << 30), clock.clone()).await;
        for bucket in ["source", "target", "shut"] {
            w.put(&format!("/{bucket}"), "").await.ok();
            w.put(&format!("/{bucket}?versioning"), ON).await.ok();
        }
        let all = rule("a", "", "Disabled", &bucket("shut")) + &rule("bb", "", "Disabled", &bucket("target"));
        w.put("/source?replication", rules(&all)).await.ok();
        let deny = format!(
            "{{\"Version\":\"2012-10-17\",\"Statement\":[{{\"Effect\":\"Deny\",\"Principal\":{{\"AWS\":\"{ROLE}\"}},\"Action\":\"s3:ReplicateObject\",\"Resource\":\"arn:aws:s3:::shut/*\"}}]}}"
        );
        w.put("/shut?policy", deny).await.ok();
        w.put("/source/k", "x").await.ok();
        w.put("/source/gone", "x").await.ok();
        replicated(&w).await;
        w.get("/target/k").await.ok();
        assert_eq!((waiting(&w), status(&w, "/source/k").await.as_str()), (2, "PENDING"));
        replicated(&w).await;
        assert_eq!(waiting(&w), 2, "not due yet");
        // What is open again in time arrives.
        w.req("DELETE", "/shut?policy").send().await.ok();
        clock.0.fetch_add(10_000_000, Ordering::Relaxed);
        replicated(&w).await;
        assert_eq!((waiting(&w), status(&w, "/source/k").await.as_str()), (0, "COMPLETED"));
        w.get("/shut/k").await.ok();
        // What is refused again and again has failed.
        w.put("/shut?versioning", ON.replace("Enabled", "Suspended")).await.ok();
        w.put("/source/k", "y").await.ok();
        for attempt in 0..ATTEMPTS {
            assert_eq!(status(&w, "/source/k").await, "PENDING", "{attempt}");
            replicated(&w).await;
            clock.0.fetch_add(3_600_000_000, Ordering::Relaxed);
        }
        assert_eq!((waiting(&w), status(&w, "/source/k").await.as_str()), (0, "FAILED"));
        // A version that went before it was carried, and a bucket that did.
        w.put("/source?replication", rules(&rule("a", "", "Disabled", &bucket("target")))).await.ok();
        let put = w.put("/source/brief", "x").await.ok();
        w.req("DELETE", &format!("/source/brief?versionId={}", put.header("x-amz-version-id"))).send().await.ok();
        replicated(&w).await;
        assert_eq!(waiting(&w), 0);
    });
}

#[test]
fn replicas_belong_to_whom_the_rule_says() {
    run(|| async {
        let w = walrus(&["source"]).await;
        w.req("PUT", "/theirs").by("AK2").send().await.ok();
        w.req("PUT", "/theirs?versioning").by("AK2").body(ON).send().await.ok();
        let allow = format!(
            "{{\"Version\":\"2012-10-17\",\"Statement\":[{{\"Effect\":\"Allow\",\"Principal\":{{\"AWS\":\"{ROLE}\"}},\"Action\":\"s3:ReplicateObject\",\"Resource\":\"arn:aws:s3:::theirs/*\"}}]}}"
        );
        w.req("PUT", "/theirs?policy").by("AK2").body(allow).send().await.ok();
        let document = rules(&rule("r", "", "Disabled", &bucket("theirs")));
        w.put("/source?replication", document.clone()).await.ok();
        w.put("/source/ours", "x").await.ok();
        replicated(&w).await;
        w.req("GET", "/theirs/ours").by("AK2").send().await.is(403, "AccessDenied");
        let change = "<Account>000000000002</Account><AccessControlTranslation><Owner>Destination</Owner></AccessControlTranslation></Destination>";
        w.put("/source?replication", document.replace("</Destination>", change)).await.ok();
        w.put("/source/given", "x").await.ok();
        replicated(&w).await;
        w.req("GET", "/theirs/given").by("AK2").send().await.ok();
    });
}

#[test]
fn who_says_that_it_is_a_replica_must_be_allowed_to() {
    run(|| async {
        let w = walrus(&["target"]).await;
        let now = karri_base::clock::SystemClock.now();
        let id = |at: u64| format!("{at:016x}{:016x}", 7);
        let put = |id: String| w.req("PUT", "/target/k").header("x-amz-karri-replica", id).body("x").send();
        put(id(u64::MAX)).await.is(400, "InvalidArgument");
        put("nonsense".into()).await.is(400, "InvalidArgument");
        put(id(now.0)).await.ok();
        let shown = w.req("HEAD", "/target/k").send().await.ok();
        assert_eq!(shown.header("x-amz-version-id"), id(now.0));
        assert_eq!(shown.header("x-amz-replication-status"), "REPLICA");
        // Again: nothing more. Older: below.
        put(id(now.0)).await.ok();
        put(id(now.0 - 5)).await.ok();
        assert_eq!(w.get("/target?versions").await.ok().all("VersionId"), [id(now.0), id(now.0 - 5)]);
        assert_eq!(usage::counted(&w), usage::recount(&w));
        let allow = "{\"Version\":\"2012-10-17\",\"Statement\":[{\"Effect\":\"Allow\",\"Principal\":{\"AWS\":\"000000000002\"},\"Action\":\"s3:PutObject\",\"Resource\":\"arn:aws:s3:::target/*\"}]}";
        w.put("/target?policy", allow).await.ok();
        w.req("PUT", "/target/k").by("AK2").body("x").send().await.ok();
        let put = w.req("PUT", "/target/k").by("AK2").header("x-amz-karri-replica", id(now.0 - 9)).body("x");
        put.send().await.is(403, "AccessDenied");
    });
}

const TAGGING: &str = "<Tagging><TagSet><Tag><Key>n</Key><Value>0</Value></Tag></TagSet></Tagging>";

fn tags(n: usize) -> String {
    TAGGING.replace('0', &n.to_string())
}

#[test]
fn what_waits_grows_with_the_versions_and_not_with_the_requests() {
    run(|| async {
        let w = walrus(&["source", "target"]).await;
        w.put("/source?replication", rules(&rule("r", "", "Enabled", &bucket("target")))).await.ok();
        w.put("/source/k", "x").await.ok();
        for n in 0..50 {
            w.put("/source/k?tagging", tags(n)).await.ok();
        }
        assert_eq!(waiting(&w), 2, "the version and its settings");
        replicated(&w).await;
        assert_eq!((waiting(&w), status(&w, "/source/k").await.as_str()), (0, "COMPLETED"));
        assert_eq!(w.get("/target/k?tagging").await.ok().all("Value"), ["49"]);
        // Versions that go before they were sent leave nothing behind.
        for _ in 0..20 {
            let put = w.put("/source/brief", "x").await.ok();
            w.put("/source/brief?tagging", tags(1)).await.ok();
            let marker = w.req("DELETE", "/source/brief").send().await.ok();
            for id in [put.header("x-amz-version-id"), marker.header("x-amz-version-id")] {
                w.req("DELETE", &format!("/source/brief?versionId={id}")).send().await.ok();
            }
        }
        assert_eq!(waiting(&w), 0);
        replicated(&w).await;
        assert_eq!(w.get("/target?versions").await.ok().all("VersionId").len(), 1);
    });
}

#[test]
fn a_change_while_another_one_is_carried_is_carried_too() {
    run(|| async {
        let w = walrus(&["source", "target"]).await;
        w.put("/source?replication", rules(&rule("r", "", "Enabled", &bucket("target")))).await.ok();
        w.put("/source/k", data(70_000)).await.ok();
        let change = async {
            for n in 0..200 {
                w.put("/source/k?tagging", tags(n)).await.ok();
            }
        };
        let carry = async {
            for _ in 0..50 {
                assert_eq!(replicate::round(&w.core).await.unwrap(), []);
                karri_engine::sleep(std::time::Duration::from_micros(50)).await;
            }
        };
        futures_util::future::join(change, carry).await;
        replicated(&w).await;
        assert_eq!((waiting(&w), status(&w, "/source/k").await.as_str()), (0, "COMPLETED"));
        assert_eq!(w.get("/target/k?tagging").await.ok().all("Value"), ["199"]);
    });
}

#[test]
fn replicas_go_only_where_versions_are_kept() {
    run(|| async {
        let w = walrus(&["suspended"]).await;
        w.put("/suspended?versioning", ON.replace("Enabled", "Suspended")).await.ok();
        w.put("/never", "").await.ok();
        let now = karri_base::clock::SystemClock.now();
        let id = format!("{:016x}{:016x}", now.0, 7);
        for bucket in ["suspended", "never"] {
            let target = format!("/{bucket}/k");
            w.put(&target, "theirs").await.ok();
            for (method, target) in [("PUT", &target), ("DELETE", &target), ("POST", &format!("{target}?uploads"))] {
                let asked = w.req(method, target).header("x-amz-karri-replica", &id);
                let asked = if method == "PUT" { asked.body("replica") } else { asked };
                asked.send().await.is(400, "InvalidRequest");
            }
            assert_eq!(w.get(&target).await.ok().text(), "theirs");
        }
        // An upload that was begun before versions were no longer kept.
        w.put("/suspended?versioning", ON).await.ok();
        let begun = w.req("POST", "/suspended/k?uploads").header("x-amz-karri-replica", &id).send().await.ok();
        let upload = format!("/suspended/k?uploadId={}", begun.one("UploadId"));
        let part = w.put(&format!("{upload}&partNumber=1"), "replica").await.ok();
        w.put("/suspended?versioning", ON.replace("Enabled", "Suspended")).await.ok();
        let complete = format!(
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{}</ETag></Part></CompleteMultipartUpload>",
            part.header("etag")
        );
        w.req("POST", &upload).body(complete).send().await.is(400, "InvalidRequest");
        assert_eq!(w.get("/suspended/k").await.ok().text(), "theirs");
    });
}

#[test]
fn a_replica_is_retained_from_when_it_comes() {
    run(|| async {
        let w = Walrus::new().await;
        w.req("PUT", "/target").header("x-amz-bucket-object-lock-enabled", "true").send().await.ok();
        let lock = "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention><Mode>GOVERNANCE</Mode><Days>10</Days></DefaultRetention></Rule></ObjectLockConfiguration>";
        w.put("/target?object-lock", lock).await.ok();
        let now = karri_base::clock::SystemClock.now();
        let day = 86_400_000_000;
        // The second one goes below the first.
        for age in [100, 200] {
            let id = format!("{:016x}{:016x}", now.0 - age * day, 7);
            w.req("PUT", "/target/k").header("x-amz-karri-replica", &id).body("x").send().await.ok();
            let head = w.req("HEAD", &format!("/target/k?versionId={id}")).send().await.ok();
            let until = head.header("x-amz-object-lock-retain-until-date");
            let until = time::OffsetDateTime::parse(until, &time::format_description::well_known::Rfc3339).unwrap();
            let left = until.unix_timestamp() - now.secs() as i64;
            assert!((9 * 86_400..=11 * 86_400).contains(&left), "{until}");
        }
    });
}
