//! Inventory: configurations, and reports as S3 lays them out.

use std::io::Read as _;

use karri_objectstore::config::lifecycle::Calendar;
use karri_objectstore::inventory::{self, Reporter};

use crate::client::Walrus;
use crate::run;

fn document(id: &str, versions: &str, more: &str) -> String {
    format!(
        "<InventoryConfiguration><Destination><S3BucketDestination><AccountId>000000000001</AccountId><Bucket>arn:aws:s3:::reports</Bucket><Format>CSV</Format><Prefix>inv</Prefix></S3BucketDestination></Destination><IsEnabled>true</IsEnabled><Id>{id}</Id><IncludedObjectVersions>{versions}</IncludedObjectVersions><Schedule><Frequency>Daily</Frequency></Schedule>{more}</InventoryConfiguration>"
    )
}

const POLICY: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"s3.amazonaws.com"},"Action":"s3:PutObject","Resource":"arn:aws:s3:::reports/*","Condition":{"ArnLike":{"aws:SourceArn":"arn:aws:s3:::bucket"},"StringEquals":{"aws:SourceAccount":"000000000001"}}}]}"#;

async fn walrus() -> Walrus {
    let w = Walrus::new().await;
    w.put("/bucket", "").await.ok();
    w.put("/reports", "").await.ok();
    w
}

#[test]
fn configurations() {
    run(|| async {
        let w = walrus().await;
        let put =
            |id: &str, document: String| w.req("PUT", &format!("/bucket?inventory&id={id}")).body(document).send();
        w.get("/bucket?inventory&id=a").await.is(404, "NoSuchConfiguration");
        put("a", document("b", "All", "")).await.is(400, "InvalidArgument");
        put("a", document("a", "All", "").replace("CSV", "Parquet")).await.is(501, "NotImplemented");
        put("a", "<InventoryConfiguration/>".into()).await.is(400, "MalformedXML");
        w.put("/bucket?inventory", document("a", "All", "")).await.is(400, "InvalidArgument");
        for n in 0..103 {
            put(&format!("c{n:03}"), document(&format!("c{n:03}"), "Current", "")).await.ok();
        }
        let page = w.get("/bucket?inventory").await.ok();
        assert_eq!((page.all("Id").len(), page.one("IsTruncated").as_str()), (100, "true"));
        let next = page.one("NextContinuationToken");
        let page = w.get(&format!("/bucket?inventory&continuation-token={next}")).await.ok();
        assert_eq!(
            (page.all("Id"), page.one("IsTruncated").as_str()),
            (vec!["c100".into(), "c101".into(), "c102".into()], "false")
        );
        assert_eq!(w.get("/bucket?inventory&id=c007").await.ok().one("Id"), "c007");
        w.req("DELETE", "/bucket?inventory&id=c007").send().await.is(204, "");
        w.req("DELETE", "/bucket?inventory&id=c007").send().await.is(404, "NoSuchConfiguration");
        w.req("GET", "/bucket?inventory").by("AK2").send().await.is(403, "AccessDenied");
    });
}

#[test]
fn reports() {
    run(|| async {
        let w = walrus().await;
        let on = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
        w.put("/bucket?versioning", on).await.ok();
        w.put("/bucket/in/a b", "hello").await.ok();
        w.put("/bucket/in/twice", "1").await.ok();
        let twice = w.put("/bucket/in/twice", "22").await.ok();
        w.put("/bucket/in/gone", "x").await.ok();
        w.req("DELETE", "/bucket/in/gone").send().await.ok();
        w.put("/bucket/out", "x").await.ok();
        for n in 0..1_200 {
            w.put(&format!("/bucket/in/z{n:04}"), "").await.ok();
        }
        let more = "<Filter><Prefix>in/</Prefix></Filter><OptionalFields><Field>Size</Field><Field>ETag</Field><Field>IsMultipartUploaded</Field></OptionalFields>";
        w.put("/bucket?inventory&id=now", document("now", "Current", more)).await.ok();
        w.put("/bucket?inventory&id=all", document("all", "All", more)).await.ok();
        // Not without the bucket's word; what could not be written then is tried when the next one is due.
        let day = Calendar { day_seconds: 1 };
        let mut reporter = Reporter::default();
        assert_eq!(inventory::round(&w.core, day, &mut reporter).await.unwrap(), 0);
        assert!(w.get("/reports").await.ok().all("Key").is_empty());
        w.put("/reports?policy", POLICY).await.ok();
        assert_eq!(inventory::round(&w.core, Calendar::default(), &mut reporter).await.unwrap(), 0, "not due");
        let later = Calendar { day_seconds: 0 };
        assert_eq!(inventory::round(&w.core, later, &mut reporter).await.unwrap(), 2);
        let keys = w.get("/reports").await.ok().all("Key");
        assert_eq!(keys.len(), 8, "{keys:?}");
        for (id, schema, lines) in [
            ("all", "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, ETag, IsMultipartUploaded", 1_205),
            ("now", "Bucket, Key, Size, ETag, IsMultipartUploaded", 1_202),
        ] {
            let base = format!("inv/bucket/{id}/");
            let of = |end: &str| keys.iter().find(|k| k.starts_with(&base) && k.ends_with(end)).unwrap();
            let text = w.get(&format!("/reports/{}", of("manifest.json"))).await.ok().text();
            let sum = w.get(&format!("/reports/{}", of("manifest.checksum"))).await.ok().text();
            assert_eq!(sum, hex::encode(karri_objectstore::digest::md5(text.as_bytes())));
            let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!((&manifest["fileSchema"], &manifest["sourceBucket"]), (&schema.into(), &"bucket".into()));
            let file = &manifest["files"][0];
            assert_eq!(file["key"], of(".csv.gz").as_str());
            let links = w.get(&format!("/reports/{}", of("symlink.txt"))).await.ok().text();
            assert_eq!(links, format!("s3://reports/{}\n", of(".csv.gz")));
            let packed = w.get(&format!("/reports/{}", of(".csv.gz"))).await.ok();
            assert_eq!(file["size"], packed.body.len());
            assert_eq!(packed.header("etag").trim_matches('"'), file["MD5checksum"].as_str().unwrap());
            let mut csv = String::new();
            flate2::read::GzDecoder::new(&packed.body[..]).read_to_string(&mut csv).unwrap();
            assert_eq!(csv.lines().count(), lines, "{id}");
            assert!(!csv.contains("\"out\""));
            if id == "now" {
                assert!(
                    csv.starts_with("\"bucket\",\"in/a%20b\",\"5\",\"5d41402abc4b2a76b9719d911017c592\",\"false\"\n"),
                    "{csv:.200}"
                );
                assert!(!csv.contains("in/gone"));
            } else {
                let version = twice.header("x-amz-version-id");
                assert!(csv.contains(&format!("\"in/twice\",\"{version}\",\"true\",\"false\",\"2\"")), "{csv:.900}");
                assert!(csv.contains("\"true\",\"true\",\"\",\"\",\"\""), "the delete marker");
            }
        }
    });
}

/// The lines of the report of this id, file by file in the manifest's order.
async fn lines(w: &Walrus, id: &str) -> Vec<Vec<String>> {
    let keys = w.get("/reports").await.ok().all("Key");
    let base = format!("inv/bucket/{id}/");
    let manifest = keys.iter().rfind(|k| k.starts_with(&base) && k.ends_with("manifest.json")).unwrap();
    let manifest = w.get(&format!("/reports/{manifest}")).await.ok().text();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    let mut files = Vec::new();
    for file in manifest["files"].as_array().unwrap() {
        let packed = w.get(&format!("/reports/{}", file["key"].as_str().unwrap())).await.ok();
        let mut csv = String::new();
        flate2::read::GzDecoder::new(&packed.body[..]).read_to_string(&mut csv).unwrap();
        files.push(csv.lines().map(str::to_owned).collect());
    }
    files
}

const LATER: Calendar = Calendar { day_seconds: 0 };

#[test]
fn all_versions_are_told_of_also_under_null_ones_and_in_several_files() {
    run(|| async {
        let w = walrus().await;
        w.put("/reports?policy", POLICY).await.ok();
        let versioning =
            |status: &str| format!("<VersioningConfiguration><Status>{status}</Status></VersioningConfiguration>");
        w.put("/bucket?versioning", versioning("Enabled")).await.ok();
        w.put("/bucket/a", "1").await.ok();
        // More versions of one key than are read in one go, and more than go into one file.
        for n in 0..1_100 {
            w.put("/bucket/many", n.to_string()).await.ok();
        }
        w.put("/bucket/under", "1").await.ok();
        w.put("/bucket/under", "2").await.ok();
        w.put("/bucket?versioning", versioning("Suspended")).await.ok();
        w.put("/bucket/under", "null").await.ok();
        w.put("/bucket/z", "null").await.ok();
        w.put("/bucket?inventory&id=all", document("all", "All", "")).await.ok();
        let mut reporter = Reporter::new(600);
        assert_eq!(inventory::round(&w.core, LATER, &mut reporter).await.unwrap(), 1);
        let files = lines(&w, "all").await;
        assert!(
            files.len() > 1 && files.iter().all(|f| f.len() <= 600 + 500),
            "{:?}",
            files.iter().map(Vec::len).collect::<Vec<_>>()
        );
        let told: Vec<String> = files.concat();
        let key = |line: &String| line.split('"').nth(3).unwrap().to_owned();
        let of = |name: &str| told.iter().filter(|line| key(line) == name).count();
        assert_eq!((of("a"), of("many"), of("under"), of("z"), told.len()), (1, 1_100, 3, 1, 1_105));
        let mut once = told.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), told.len(), "a version is told of once");
        assert_eq!(told.iter().filter(|line| line.contains("\"true\"")).count(), 4, "one of each key is the latest");
    });
}

#[test]
fn a_bucket_whose_report_fails_holds_up_no_other() {
    run(|| async {
        let w = walrus().await;
        w.put("/reports?policy", POLICY.replace("arn:aws:s3:::bucket\"", "arn:aws:s3:::*\"")).await.ok();
        // Listed before the other: one of its records is damaged.
        w.put("/a-broken", "").await.ok();
        w.put("/a-broken/k", "x").await.ok();
        let (key, raw) = w.meta.dump().into_iter().find(|(key, _)| key[0] == b'O').unwrap();
        let damaged = [&raw[..raw.len() - 1], &[!raw[raw.len() - 1]]].concat();
        w.core.commit(karri_meta::Batch::new().put(key, damaged)).await.unwrap();
        for bucket in ["a-broken", "bucket"] {
            w.put(&format!("/{bucket}?inventory&id=i"), document("i", "Current", "")).await.ok();
        }
        w.put("/bucket/k", "x").await.ok();
        let mut reporter = Reporter::default();
        assert_eq!(inventory::round(&w.core, LATER, &mut reporter).await.unwrap(), 1);
        assert_eq!(lines(&w, "i").await.concat().len(), 1);
        // Tried again, and not for ever: see how often it is noted as tried.
        let noted = || w.meta.dump().iter().filter(|(key, _)| key.starts_with(b"Cinventory/")).count();
        assert_eq!(noted(), 1);
        inventory::round(&w.core, LATER, &mut reporter).await.unwrap();
        assert_eq!(noted(), 1);
        inventory::round(&w.core, LATER, &mut reporter).await.unwrap();
        assert_eq!(noted(), 2);
        // Nor do a damaged bucket and damaged notes; these are written anew.
        let mut batch = karri_meta::Batch::new().put("B0damaged", "x");
        for (key, _) in w.meta.dump().into_iter().filter(|(key, _)| key.starts_with(b"Cinventory/")) {
            batch = batch.put(key, "x");
        }
        w.core.commit(batch).await.unwrap();
        assert_eq!(inventory::round(&w.core, LATER, &mut reporter).await.unwrap(), 1);
        assert_eq!(inventory::round(&w.core, Calendar::default(), &mut reporter).await.unwrap(), 0, "it is noted");
    });
}
