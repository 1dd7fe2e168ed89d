//! What is in a bucket is counted by whatever changes it, and held to quotas.

use std::collections::HashMap;

use karri_bulk::BulkStore;
use karri_objectstore::config::simple::Quota;
use karri_objectstore::keys::{self, BucketId, DataId};
use karri_objectstore::operator::Operator;
use karri_objectstore::record::{Object, Part};
use karri_objectstore::usage::Amount;

use crate::client::{ACCOUNT, Walrus};
use crate::{data, run};

/// What all records of the store add up to, by bucket; parts are those of open uploads.
pub fn recount<B: BulkStore>(walrus: &Walrus<B>) -> HashMap<u64, Amount> {
    let dump = walrus.meta.dump();
    let mut found: HashMap<u64, Amount> = HashMap::new();
    let bucket = |key: &[u8]| u64::from_be_bytes(key[1..9].try_into().unwrap());
    let mut uploads = HashMap::new();
    for (key, value) in &dump {
        match key[0] {
            b'O' | b'V' => *found.entry(bucket(key)).or_default() += Amount::of(&Object::decode(value).unwrap()),
            b'U' => drop(uploads.insert(keys::upload_parts(key).unwrap().1, bucket(key))),
            _ => {}
        }
    }
    for (key, value) in &dump {
        let open = (key[0] == b'P').then(|| uploads.get(&DataId(key[1..17].try_into().unwrap()))).flatten();
        if let Some(bucket) = open {
            *found.entry(*bucket).or_default() += Amount::bytes(Part::decode(value).unwrap().size);
        }
    }
    found.retain(|_, amount| *amount != Amount::default());
    found
}

/// What the slots say.
pub fn counted<B: BulkStore>(walrus: &Walrus<B>) -> HashMap<u64, Amount> {
    let mut found: HashMap<u64, Amount> = HashMap::new();
    for (key, value) in walrus.meta.dump().iter().filter(|(key, _)| key[0] == b'N') {
        *found.entry(u64::from_be_bytes(key[1..9].try_into().unwrap())).or_default() += Amount::decode(value).unwrap();
    }
    found.retain(|_, amount| *amount != Amount::default());
    found
}

async fn is<B: BulkStore>(w: &Walrus<B>, objects: i64, bytes: i64) {
    w.reclaim().await;
    let answer = w.get("/bucket?usage").await.ok();
    assert_eq!((answer.one("Objects"), answer.one("Bytes")), (objects.to_string(), bytes.to_string()));
    assert_eq!(counted(w), recount(w));
    for (id, amount) in counted(w) {
        assert_eq!(w.core.meter(BucketId(id)).await.unwrap().total(), amount);
    }
}

#[test]
fn every_change_is_counted() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        is(&w, 0, 0).await;
        w.put("/bucket/a", data(100)).await.ok();
        w.put("/bucket/b", data(100_000)).await.ok();
        is(&w, 2, 100_100).await;
        w.put("/bucket/a", data(50)).await.ok();
        is(&w, 2, 100_050).await;
        w.req("PUT", "/bucket/c").header("x-amz-copy-source", "/bucket/b").send().await.ok();
        is(&w, 3, 200_050).await;
        w.req("PUT", "/bucket/c?renameObject").header("x-amz-rename-source", "/bucket/a").send().await.ok();
        is(&w, 2, 100_050).await;
        w.req("DELETE", "/bucket/c").send().await.ok();
        w.req("DELETE", "/bucket/c").send().await.ok();
        is(&w, 1, 100_000).await;

        // Uploads count as they come; what becomes no object goes.
        let id = w.req("POST", "/bucket/m?uploads").send().await.ok().one("UploadId");
        let part = async |n: u32, len| {
            w.put(&format!("/bucket/m?partNumber={n}&uploadId={id}"), data(len)).await.ok().header("etag").to_owned()
        };
        part(1, 10).await;
        let etag = part(1, 70_000).await;
        part(2, 30).await;
        is(&w, 1, 170_030).await;
        let complete = format!(
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
        );
        w.req("POST", &format!("/bucket/m?uploadId={id}")).body(complete).send().await.ok();
        // Not twice, before the part that it does not have is cleaned away.
        assert_eq!(w.get("/bucket?usage").await.ok().one("Bytes"), "170030");
        is(&w, 2, 170_000).await;
        let id = w.req("POST", "/bucket/m?uploads").send().await.ok().one("UploadId");
        w.put(&format!("/bucket/m?partNumber=1&uploadId={id}"), data(500)).await.ok();
        w.req("DELETE", &format!("/bucket/m?uploadId={id}")).send().await.ok();
        is(&w, 2, 170_000).await;

        let on = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
        w.put("/bucket?versioning", on).await.ok();
        w.put("/bucket/b", data(7)).await.ok();
        let marker = w.req("DELETE", "/bucket/b").send().await.ok().header("x-amz-version-id").to_owned();
        is(&w, 3, 170_007).await;
        w.req("DELETE", &format!("/bucket/b?versionId={marker}")).send().await.ok();
        is(&w, 3, 170_007).await;
        w.req("DELETE", "/bucket/b?versionId=null").send().await.ok();
        is(&w, 2, 70_007).await;

        let all = w.get("/?usage").await.ok();
        assert_eq!((all.all("Name"), all.all("Bytes")), (vec!["bucket".into()], vec!["70007".into(), "70007".into()]));
        w.req("GET", "/?usage").anonymous().send().await.is(403, "AccessDenied");
        w.req("GET", "/bucket?usage").by("AK2").send().await.is(403, "AccessDenied");
    });
}

#[test]
fn a_bucket_s_quota_holds() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        let quota = |limits: &str| w.put("/bucket?quota", format!("<QuotaConfiguration>{limits}</QuotaConfiguration>"));
        w.put("/bucket/a", data(600)).await.ok();
        quota("<MaxBytes>1000</MaxBytes><MaxObjects>2</MaxObjects>").await.ok();
        w.put("/bucket/b", data(401)).await.is(403, "QuotaExceeded");
        w.put("/bucket/b", data(400)).await.ok();
        w.put("/bucket/c", "").await.is(403, "QuotaExceeded");
        w.put("/bucket/b", data(399)).await.ok();
        w.put("/bucket/a", data(601)).await.ok();
        w.put("/bucket/a", data(602)).await.is(403, "QuotaExceeded");
        w.req("PUT", "/bucket/b").header("x-amz-copy-source", "/bucket/a").send().await.is(403, "QuotaExceeded");
        let usage = w.get("/bucket?usage").await.ok();
        assert_eq!((usage.one("MaxBytes"), usage.one("Bytes")), ("1000".into(), "1000".into()));
        let id = w.req("POST", "/bucket/m?uploads").send().await.ok().one("UploadId");
        let part = format!("/bucket/m?partNumber=1&uploadId={id}");
        w.put(&part, "x").await.is(403, "QuotaExceeded");
        // What shrinks may always be done, above a quota too.
        quota("<MaxBytes>10</MaxBytes>").await.ok();
        w.put("/bucket/a", data(100)).await.ok();
        w.req("DELETE", "/bucket/b").send().await.ok();
        w.put(&part, "x").await.is(403, "QuotaExceeded");
        quota("<MaxBytes>105</MaxBytes><MaxObjects>2</MaxObjects>").await.ok();
        let etag = w.put(&part, "12345").await.ok().header("etag").to_owned();
        w.put("/bucket/a", data(101)).await.is(403, "QuotaExceeded");
        let complete = format!(
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
        );
        w.req("POST", &format!("/bucket/m?uploadId={id}")).body(complete).send().await.ok();
        quota("").await.ok();
        w.put("/bucket/c", data(1 << 20)).await.ok();
        w.put("/bucket?quota", "<QuotaConfiguration><MaxBytes>-1</MaxBytes></QuotaConfiguration>")
            .await
            .is(400, "MalformedXML");
        is(&w, 3, (1 << 20) + 105).await;
    });
}

#[test]
fn an_account_s_quota_holds_over_all_its_buckets() {
    run(|| async {
        let w = Walrus::new().await;
        let quota = Quota { bytes: Some(1000), objects: None };
        let operator = Operator { quotas: [(ACCOUNT.to_owned(), quota)].into(), ..Operator::default() };
        assert!(w.core.shared.operator.set(operator).is_ok());
        w.put("/bucket", "").await.ok();
        w.put("/bucket/a", data(600)).await.ok();
        w.put("/bucket2", "").await.ok();
        w.put("/bucket2/a", data(401)).await.is(403, "QuotaExceeded");
        w.put("/bucket2/a", data(400)).await.ok();
        w.req("DELETE", "/bucket/a").send().await.ok();
        w.put("/bucket2/b", data(600)).await.ok();
        w.put("/bucket/a", data(1)).await.is(403, "QuotaExceeded");
        w.req("PUT", "/theirs").by("AK2").send().await.ok();
        w.req("PUT", "/theirs/a").by("AK2").body(data(5000)).send().await.ok();
        assert_eq!(w.get("/?usage").await.ok().one("MaxBytes"), "1000");
    });
}
