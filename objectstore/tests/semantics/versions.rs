//! Versions, delete markers, the null version, their listing, object lock and tags.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use karri_bulk::BulkStore;
use karri_engine::sim::Rng;
use karri_meta::memory::MemoryStore;
use karri_meta::{Batch, MetaError, MetaStore, Pair, Scan};
use karri_objectstore::core::Core;
use karri_objectstore::keys;
use karri_objectstore::versions::Which;

use crate::client::{Answer, Walrus};
use crate::{data, run};

async fn versioning<B: BulkStore>(w: &Walrus<B>, bucket: &str, status: &str) -> Answer {
    let xml = format!("<VersioningConfiguration><Status>{status}</Status></VersioningConfiguration>");
    w.put(&format!("/{bucket}?versioning"), xml).await
}

async fn put<B: BulkStore>(w: &Walrus<B>, key: &str, body: impl Into<bytes::Bytes>) -> String {
    w.put(&format!("/bucket/{key}"), body).await.ok().header("x-amz-version-id").to_owned()
}

async fn delete<B: BulkStore>(w: &Walrus<B>, target: &str) -> Answer {
    w.req("DELETE", &format!("/bucket/{target}")).send().await
}

#[test]
fn versions_stay_until_they_are_deleted_by_id() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        assert_eq!(put(&w, "k", "plain").await, "");
        assert_eq!(w.get("/bucket?versioning").await.ok().all("Status"), Vec::<String>::new());
        versioning(&w, "bucket", "Enabled").await.ok();
        assert_eq!(w.get("/bucket?versioning").await.ok().all("Status"), ["Enabled"]);
        versioning(&w, "bucket", "Paused").await.is(400, "MalformedXML");

        let got = w.get("/bucket/k").await.ok();
        assert_eq!(got.header("x-amz-version-id"), "null");
        let large = data(200_000);
        let (v1, v2) = (put(&w, "k", large.clone()).await, put(&w, "k", "two").await);
        assert_ne!(v1, v2);
        for (version, want) in [(v1.as_str(), &large[..]), (&v2, b"two"), ("null", b"plain")] {
            let got = w.get(&format!("/bucket/k?versionId={version}")).await.ok();
            assert!(got.body == want, "{version}");
            assert_eq!(got.header("x-amz-version-id"), version);
            assert_eq!(w.req("HEAD", &format!("/bucket/k?versionId={version}")).send().await.ok().status, 200);
        }
        w.get("/bucket/k?versionId=nonsense").await.is(400, "InvalidArgument");
        w.get(&format!("/bucket/k?versionId={}", "0".repeat(32))).await.is(404, "NoSuchVersion");
        w.get(&format!("/bucket/other?versionId={v1}")).await.is(404, "NoSuchVersion");

        // A delete marker hides what is there.
        let marker = delete(&w, "k").await.ok();
        assert_eq!(marker.header("x-amz-delete-marker"), "true");
        let m = marker.header("x-amz-version-id").to_owned();
        let got = w.get("/bucket/k").await.is(404, "NoSuchKey");
        assert_eq!((got.header("x-amz-delete-marker"), got.header("x-amz-version-id")), ("true", m.as_str()));
        let got = w.get(&format!("/bucket/k?versionId={m}")).await.is(405, "MethodNotAllowed");
        assert_eq!(got.header("x-amz-delete-marker"), "true");
        assert_eq!(w.get("/bucket").await.ok().all("Key"), Vec::<String>::new());
        assert_eq!(w.get("/bucket?list-type=2").await.ok().one("KeyCount"), "0");
        let listed = w.get("/bucket?versions").await.ok();
        // Delete markers stand before versions in the document.
        assert_eq!(listed.all("VersionId"), [m.as_str(), &v2, &v1, "null"]);
        assert_eq!(listed.all("IsLatest"), ["true", "false", "false", "false"]);
        w.req("DELETE", "/bucket").send().await.is(409, "BucketNotEmpty");

        // Without its marker it is there again.
        let gone = delete(&w, &format!("k?versionId={m}")).await.ok();
        assert_eq!((gone.header("x-amz-delete-marker"), gone.header("x-amz-version-id")), ("true", m.as_str()));
        assert_eq!(w.get("/bucket/k").await.ok().body, "two");
        // The current one goes: the one before it is current, and it may be the null version.
        delete(&w, &format!("k?versionId={v2}")).await.ok();
        assert!(w.get("/bucket/k").await.ok().body == large);
        delete(&w, &format!("k?versionId={v1}")).await.ok();
        assert_eq!(w.get("/bucket/k").await.ok().header("x-amz-version-id"), "null");
        // Again is no error.
        delete(&w, &format!("k?versionId={v1}")).await.ok();
        delete(&w, "k?versionId=null").await.ok();
        w.get("/bucket/k").await.is(404, "NoSuchKey");
        w.reclaim().await;
        assert_eq!(w.bulk.usage().used, 0);
        assert!(
            w.meta.dump().iter().all(|(k, _)| matches!(k[0], b'A' | b'B' | b'C' | b'N')),
            "no record is left behind"
        );
        w.req("DELETE", "/bucket").send().await.ok();
    });
}

#[test]
fn a_suspended_bucket_has_one_null_version_of_a_key() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        versioning(&w, "bucket", "Enabled").await.ok();
        let v1 = put(&w, "k", data(100_000)).await;
        versioning(&w, "bucket", "Suspended").await.ok();
        assert_eq!(put(&w, "k", data(90_000)).await, "");
        assert_eq!(put(&w, "k", "null 2").await, "");
        assert_eq!(w.get("/bucket?versions").await.ok().all("VersionId"), ["null", v1.as_str()]);
        // The marker is the null version too, and takes the other one's place.
        assert_eq!(delete(&w, "k").await.ok().header("x-amz-version-id"), "null");
        assert_eq!(delete(&w, "k").await.ok().header("x-amz-version-id"), "null");
        let listed = w.get("/bucket?versions").await.ok();
        assert_eq!((listed.all("Version").len(), listed.all("DeleteMarker").len()), (1, 1));
        // An older null version is replaced as well.
        versioning(&w, "bucket", "Enabled").await.ok();
        let v2 = put(&w, "k", "v2").await;
        versioning(&w, "bucket", "Suspended").await.ok();
        assert_eq!(put(&w, "k", "null 3").await, "");
        assert_eq!(w.get("/bucket?versions").await.ok().all("VersionId"), ["null", v2.as_str(), &v1]);
        assert_eq!(w.get("/bucket/k?versionId=null").await.ok().body, "null 3");
        for v in ["null", &v2, &v1] {
            delete(&w, &format!("k?versionId={v}")).await.ok();
        }
        w.reclaim().await;
        assert_eq!(w.bulk.usage().used, 0);
        w.req("DELETE", "/bucket").send().await.ok();
    });
}

#[test]
fn copies_parts_and_completions_know_versions() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        versioning(&w, "bucket", "Enabled").await.ok();
        let (v1, _) = (put(&w, "k", "one").await, put(&w, "k", "two").await);
        let from = format!("/bucket/k?versionId={v1}");
        let copied = w.req("PUT", "/bucket/k").header("x-amz-copy-source", &from).send().await.ok();
        assert_eq!(copied.header("x-amz-copy-source-version-id"), v1);
        let v3 = copied.header("x-amz-version-id").to_owned();
        assert_eq!(w.get("/bucket/k").await.ok().header("x-amz-version-id"), v3);
        assert_eq!(w.get("/bucket/k").await.ok().body, "one");
        delete(&w, "k").await.ok();
        w.req("PUT", "/bucket/l").header("x-amz-copy-source", "/bucket/k").send().await.is(404, "NoSuchKey");

        let id = w.req("POST", "/bucket/m?uploads").send().await.ok().one("UploadId");
        let part = w.req("PUT", &format!("/bucket/m?partNumber=1&uploadId={id}"));
        part.header("x-amz-copy-source", &from).send().await.ok();
        let etag = w.get(&format!("/bucket/m?uploadId={id}")).await.ok().one("ETag");
        let xml = format!(
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
        );
        let first = put(&w, "m", "before").await;
        let done = w.req("POST", &format!("/bucket/m?uploadId={id}")).body(xml).send().await.ok();
        let v = done.header("x-amz-version-id").to_owned();
        assert_eq!(w.get("/bucket/m").await.ok().body, "one");
        assert_eq!(w.get("/bucket?versions&prefix=m").await.ok().all("VersionId"), [v.as_str(), &first]);
    });
}

#[test]
fn conditions_look_at_the_current_version() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        versioning(&w, "bucket", "Enabled").await.ok();
        let one = w.put("/bucket/k", "one").await.ok().header("etag").to_owned();
        let two = w.put("/bucket/k", "two").await.ok();
        let conditional = |name: &str, value: &str| w.req("PUT", "/bucket/k").header(name, value).body("new").send();
        conditional("if-none-match", "*").await.is(412, "PreconditionFailed");
        conditional("if-none-match", two.header("etag")).await.is(412, "PreconditionFailed");
        conditional("if-match", &one).await.is(412, "PreconditionFailed");
        let put = conditional("if-none-match", &one).await.ok();
        let v = put.header("x-amz-version-id").to_owned();
        // A DELETE of a version looks at that version.
        let stale = w.req("DELETE", &format!("/bucket/k?versionId={v}")).header("if-match", &one);
        stale.send().await.is(412, "PreconditionFailed");
        w.req("DELETE", "/bucket/k").header("if-match", &one).send().await.is(412, "PreconditionFailed");
        w.req("DELETE", "/bucket/k").header("if-match", put.header("etag")).send().await.ok();
        // Deleted is not there.
        conditional("if-match", "*").await.is(404, "NoSuchKey");
        conditional("if-none-match", "*").await.ok();
        let delete = w.req("POST", "/bucket?delete");
        let xml = format!(
            "<Delete><Object><Key>k</Key></Object><Object><Key>k</Key><VersionId>{v}</VersionId></Object></Delete>"
        );
        let md5 = karri_objectstore::digest::base64(&<md5::Md5 as md5::Digest>::digest(&xml));
        let answer = delete.header("content-md5", md5).body(xml).send().await.ok();
        assert_eq!(answer.all("DeleteMarker"), ["true"]);
        assert_eq!(answer.all("VersionId"), [v.as_str()]);
        assert_eq!(answer.all("DeleteMarkerVersionId").len(), 1);
    });
}

/// What `?versions` should say: key, version, latest, marker.
type Said = Vec<(String, String, bool, bool)>;

async fn listed<B: BulkStore>(w: &Walrus<B>, query: &str, max: usize) -> (Said, Vec<String>) {
    let (mut said, mut prefixes, mut markers) = (Vec::new(), Vec::new(), String::new());
    for _ in 0..500 {
        let page = w.get(&format!("/bucket?versions&max-keys={max}{query}{markers}")).await.ok();
        let text = page.text();
        let field = |s: &str, name: &str| {
            s.split(&format!("<{name}>")).nth(1).and_then(|t| t.split('<').next()).unwrap_or_default().to_owned()
        };
        let mut lines: Vec<(String, String, bool, bool)> = Vec::new();
        for (element, marker) in [("Version", false), ("DeleteMarker", true)] {
            for line in text.split(&format!("<{element}>")).skip(1) {
                let line = line.split(&format!("</{element}>")).next().unwrap();
                lines.push((field(line, "Key"), field(line, "VersionId"), field(line, "IsLatest") == "true", marker));
            }
        }
        let more: Vec<String> = page.all("CommonPrefixes").iter().map(|p| field(p, "Prefix")).collect();
        assert!(lines.len() + more.len() <= max);
        assert!(lines.len() + more.len() == max || page.one("IsTruncated") == "false");
        said.extend(lines);
        prefixes.extend(more);
        if page.one("IsTruncated") == "false" {
            return (said, prefixes);
        }
        markers = format!("&key-marker={}", page.one("NextKeyMarker"));
        let version = page.one("NextVersionIdMarker");
        if !version.is_empty() {
            markers += &format!("&version-id-marker={version}");
        }
    }
    panic!("the listing does not end");
}

#[test]
fn listings_page_as_they_should() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        let mut rng = Rng::new(7);
        // Newest first; id, marker.
        let mut model: std::collections::BTreeMap<String, Vec<(String, bool)>> = Default::default();
        let mut status = "Never";
        for step in 0..400 {
            if step % 80 == 40 {
                status = if status == "Enabled" { "Suspended" } else { "Enabled" };
                versioning(&w, "bucket", status).await.ok();
            }
            let key = ["a", "a/b", "a/c", "b\u{1}", "b", "c/d/e", "c/d", "d"][rng.below(8) as usize];
            let versions = model.entry(key.to_owned()).or_default();
            match rng.below(10) {
                0..6 => {
                    let id = put(&w, key, "x").await;
                    if status != "Enabled" {
                        versions.retain(|(v, _)| v != "null");
                    }
                    versions.insert(0, (if id.is_empty() { "null".into() } else { id }, false));
                }
                6..8 => {
                    let id = delete(&w, key).await.ok().header("x-amz-version-id").to_owned();
                    if status != "Enabled" {
                        versions.retain(|(v, _)| v != "null");
                    }
                    if status != "Never" {
                        versions.insert(0, (id, true));
                    }
                }
                _ if !versions.is_empty() => {
                    let (id, _) = versions.remove(rng.below(versions.len() as u64) as usize);
                    delete(&w, &format!("{key}?versionId={id}")).await.ok();
                }
                _ => {}
            }
        }
        let expected = |prefix: &str, delimiter: &str| {
            let (mut said, mut prefixes) = (Said::new(), Vec::<String>::new());
            for (key, versions) in &model {
                let Some(rest) = key.strip_prefix(prefix) else { continue };
                match rest.split_once(delimiter).filter(|_| !delimiter.is_empty()) {
                    Some((head, _)) if !versions.is_empty() => {
                        let p = format!("{prefix}{head}{delimiter}");
                        if prefixes.last() != Some(&p) {
                            prefixes.push(p);
                        }
                    }
                    Some(_) => {}
                    None => {
                        let lines = versions.iter().enumerate();
                        said.extend(lines.map(|(i, (v, marker))| (key.clone(), v.clone(), i == 0, *marker)));
                    }
                }
            }
            (said, prefixes)
        };
        // Versions come before delete markers in the answer: order within each.
        let sorted = |(mut said, prefixes): (Said, Vec<String>)| {
            said.sort_by(|a, b| a.0.cmp(&b.0));
            (
                said.iter().filter(|l| !l.3).cloned().collect::<Vec<_>>(),
                said.into_iter().filter(|l| l.3).collect::<Vec<_>>(),
                prefixes,
            )
        };
        for max in [1, 2, 3, 7, 1_000] {
            for (prefix, delimiter) in [("", ""), ("", "/"), ("a", ""), ("a/", "/"), ("c/", "/"), ("zz", "")] {
                let query = format!("&prefix={prefix}&delimiter={delimiter}");
                let found = listed(&w, &query, max).await;
                assert_eq!(sorted(found), sorted(expected(prefix, delimiter)), "{prefix:?} {delimiter:?} by {max}");
            }
        }
        let current: Vec<String> =
            model.iter().filter(|(_, v)| v.first().is_some_and(|(_, m)| !m)).map(|(k, _)| k.clone()).collect();
        let mut keys = w.get("/bucket?encoding-type=url").await.ok().all("Key");
        keys.iter_mut().for_each(|k| *k = k.replace("%01", "\u{1}"));
        assert_eq!(keys, current);
        w.get("/bucket?versions&version-id-marker=null").await.is(400, "InvalidArgument");
        assert_eq!(w.get("/bucket?versions&max-keys=0").await.ok().one("IsTruncated"), "false");
    });
}

#[test]
fn object_lock() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/plain", "").await.ok();
        let lock = |days: u32| {
            format!(
                "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention><Mode>GOVERNANCE</Mode><Days>{days}</Days></DefaultRetention></Rule></ObjectLockConfiguration>"
            )
        };
        w.put("/plain?object-lock", lock(1)).await.is(409, "InvalidBucketState");
        w.get("/plain?object-lock").await.is(404, "ObjectLockConfigurationNotFoundError");
        w.req("PUT", "/bucket").header("x-amz-bucket-object-lock-enabled", "true").send().await.ok();
        versioning(&w, "bucket", "Suspended").await.is(409, "InvalidBucketState");
        w.put("/bucket?object-lock", lock(0)).await.is(400, "InvalidRetentionPeriod");
        w.put("/bucket?object-lock", lock(1)).await.ok();
        assert_eq!(w.get("/bucket?object-lock").await.ok().one("Days"), "1");

        let v = put(&w, "k", "x").await;
        let head = w.req("HEAD", "/bucket/k").send().await.ok();
        assert_eq!(head.header("x-amz-object-lock-mode"), "GOVERNANCE");
        assert!(head.header("x-amz-object-lock-retain-until-date").ends_with('Z'));
        // A marker may be put on it, the version itself stays.
        delete(&w, "k").await.ok();
        delete(&w, &format!("k?versionId={v}")).await.is(403, "AccessDenied");
        let bypass =
            || w.req("DELETE", &format!("/bucket/k?versionId={v}")).header("x-amz-bypass-governance-retention", "true");
        w.put(&format!("/bucket/k?legal-hold&versionId={v}"), "<LegalHold><Status>ON</Status></LegalHold>").await.ok();
        bypass().send().await.is(403, "AccessDenied");
        w.put(&format!("/bucket/k?legal-hold&versionId={v}"), "<LegalHold><Status>OFF</Status></LegalHold>").await.ok();
        assert_eq!(w.get(&format!("/bucket/k?legal-hold&versionId={v}")).await.ok().one("Status"), "OFF");
        bypass().send().await.ok();

        let retention = |mode: &str, year: u32| {
            format!(
                "<Retention><Mode>{mode}</Mode><RetainUntilDate>{year}-01-01T00:00:00Z</RetainUntilDate></Retention>"
            )
        };
        put(&w, "c", "x").await;
        w.put("/bucket/c?retention", retention("COMPLIANCE", 2140)).await.is(403, "AccessDenied");
        let forced = w.req("PUT", "/bucket/c?retention").header("x-amz-bypass-governance-retention", "true");
        forced.body(retention("COMPLIANCE", 2140)).send().await.ok();
        assert_eq!(w.get("/bucket/c?retention").await.ok().one("Mode"), "COMPLIANCE");
        let forced = w.req("PUT", "/bucket/c?retention").header("x-amz-bypass-governance-retention", "true");
        forced.body(retention("COMPLIANCE", 2139)).send().await.is(403, "AccessDenied");
        w.put("/bucket/c?retention", retention("COMPLIANCE", 2141)).await.ok();
        w.put("/bucket/c?retention", retention("compliance", 2142)).await.is(400, "MalformedXML");
        w.put("/plain/c", "x").await.ok();
        w.put("/plain/c?retention", retention("COMPLIANCE", 2140)).await.is(400, "InvalidRequest");
        w.get("/plain/c?retention").await.is(400, "InvalidRequest");
        w.req("PUT", "/plain/c").header("x-amz-object-lock-legal-hold", "ON").send().await.is(400, "InvalidRequest");
        w.req("PUT", "/bucket/d")
            .header("x-amz-object-lock-mode", "GOVERNANCE")
            .send()
            .await
            .is(400, "InvalidArgument");
    });
}

#[test]
fn tags() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        w.req("PUT", "/bucket/k").header("x-amz-tagging", "a=1&b%20c=2").send().await.ok();
        let tags = w.get("/bucket/k?tagging").await.ok();
        assert_eq!(
            (tags.all("Key"), tags.all("Value")),
            (vec!["a".into(), "b c".into()], vec!["1".into(), "2".into()])
        );
        assert_eq!(w.get("/bucket/k").await.ok().header("x-amz-tagging-count"), "2");
        assert_eq!(w.req("HEAD", "/bucket/k").send().await.ok().header("x-amz-tagging-count"), "2");
        let set = |n: usize| {
            let tags: String = (0..n).map(|i| format!("<Tag><Key>k{i}</Key><Value>v</Value></Tag>")).collect();
            format!("<Tagging><TagSet>{tags}</TagSet></Tagging>")
        };
        w.put("/bucket/k?tagging", set(11)).await.is(400, "InvalidTag");
        w.put("/bucket/k?tagging", set(10)).await.ok();
        assert_eq!(w.get("/bucket/k?tagging").await.ok().all("Tag").len(), 10);
        let copy = |to: &str| w.req("PUT", &format!("/bucket/{to}")).header("x-amz-copy-source", "/bucket/k");
        copy("l").send().await.ok();
        assert_eq!(w.get("/bucket/l?tagging").await.ok().all("Tag").len(), 10);
        copy("m").header("x-amz-tagging-directive", "REPLACE").header("x-amz-tagging", "z=1").send().await.ok();
        assert_eq!(w.get("/bucket/m?tagging").await.ok().all("Key"), ["z"]);
        assert_eq!(w.req("DELETE", "/bucket/k?tagging").send().await.ok().status, 204);
        assert_eq!(w.get("/bucket/k?tagging").await.ok().all("Tag").len(), 0);
        w.get("/bucket/none?tagging").await.is(404, "NoSuchKey");
        let attributes = w.req("GET", "/bucket/k?attributes").header("x-amz-object-attributes", "ETag,ObjectSize");
        let attributes = attributes.send().await.ok();
        assert_eq!(attributes.one("ObjectSize"), "0");
        assert_eq!(attributes.one("ETag"), "d41d8cd98f00b204e9800998ecf8427e");
        assert_eq!(attributes.all("StorageClass"), Vec::<String>::new());
    });
}

/// Records that change right before the first look at an older version.
struct Meanwhile {
    inner: MemoryStore,
    change: Mutex<Option<Batch>>,
}

impl MetaStore for Meanwhile {
    fn get(&self, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>, MetaError>> {
        Box::pin(async move {
            let change = if key.starts_with(b"V") { self.change.lock().unwrap().take() } else { None };
            if let Some(change) = change {
                self.inner.commit(change).await?;
            }
            self.inner.get(key).await
        })
    }
    fn multi_get(&self, keys: Vec<Bytes>) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, MetaError>> {
        self.inner.multi_get(keys)
    }
    fn scan(&self, scan: Scan) -> BoxFuture<'_, Result<Vec<Pair>, MetaError>> {
        self.inner.scan(scan)
    }
    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<(), MetaError>> {
        self.inner.commit(batch)
    }
    fn checkpoint(&self, to: std::path::PathBuf) -> BoxFuture<'_, Result<(), MetaError>> {
        self.inner.checkpoint(to)
    }
}

/// It moves when what is above it is deleted: between two looks it was found nowhere, so that its DELETE did nothing.
#[test]
fn a_version_that_becomes_the_current_one_is_found() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        versioning(&w, "bucket", "Enabled").await.ok();
        let (older, newer) = (put(&w, "k", "older").await, put(&w, "k", "newer").await);
        let id = w.core.known("bucket").await.unwrap().bucket().id;
        let records = async || {
            let mut all = w.meta.scan(Scan::new(keys::objects_of(id), 10)).await.unwrap();
            all.extend(w.meta.scan(Scan::new(keys::versions_of(id), 10)).await.unwrap());
            all
        };
        let turn = |from: &[Pair], to: &[Pair]| Batch {
            dels: from.iter().map(|(key, _)| key.clone()).collect(),
            puts: to.to_vec(),
            ..Batch::new()
        };
        let before = records().await;
        delete(&w, &format!("k?versionId={newer}")).await.ok();
        let after = records().await;
        assert_eq!((before.len(), after.len()), (2, 1));
        w.meta.commit(turn(&after, &before)).await.unwrap();
        let meta = Meanwhile { inner: w.meta.clone(), change: Mutex::new(Some(turn(&before, &after))) };
        let core = Core::new(Arc::new(meta), w.bulk.clone(), w.core.shared.clone());
        let found = core.version(id, "k", Which::new(Some(&older)).unwrap()).await.unwrap().expect("it is there");
        assert_eq!((found.seen.value.version_text(), found.current.is_none()), (older, true));
        let gone = core.version(id, "k", Which::new(Some(&newer)).unwrap()).await.unwrap();
        assert!(gone.is_none());
    });
}
