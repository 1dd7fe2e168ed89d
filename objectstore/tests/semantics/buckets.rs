use crate::client::Walrus;
use crate::run;

#[test]
fn life_of_a_bucket() {
    run(|| async {
        let w = Walrus::new().await;
        w.get("/bucket").await.is(404, "NoSuchBucket");
        assert_eq!(w.req("HEAD", "/bucket").send().await.status, 404);
        assert_eq!(w.put("/bucket", "").await.ok().header("location"), "/bucket");
        // In the first region one's own bucket is made again without complaint.
        w.put("/bucket", "").await.ok();
        assert_eq!(w.req("HEAD", "/bucket").send().await.ok().header("x-amz-bucket-region"), "us-east-1");
        w.put("/zebra", "").await.ok();
        w.put("/apple", "").await.ok();
        assert_eq!(w.get("/").await.ok().all("Name"), ["apple", "bucket", "zebra"]);
        assert!(w.get("/bucket?location").await.ok().text().contains("LocationConstraint"));
        assert!(!w.get("/bucket?versioning").await.ok().text().contains("Enabled"));
        w.put("/bucket/k", "x").await.ok();
        w.req("DELETE", "/bucket").send().await.is(409, "BucketNotEmpty");
        assert_eq!(w.get("/bucket/k").await.ok().text(), "x");
        w.req("DELETE", "/bucket/k").send().await.ok();
        let upload = w.req("POST", "/bucket/k?uploads").send().await.ok().one("UploadId");
        w.put(&format!("/bucket/k?partNumber=1&uploadId={upload}"), crate::data(100_000)).await.ok();
        assert_eq!(w.req("DELETE", "/bucket").send().await.ok().status, 204);
        w.get("/bucket").await.is(404, "NoSuchBucket");
        w.put("/bucket/k", "x").await.is(404, "NoSuchBucket");
        assert_eq!(w.get("/").await.ok().all("Name"), ["apple", "zebra"]);
        w.reclaim().await;
        assert_eq!(karri_bulk::BulkStore::usage(&w.bulk).used, 0);
        // Only two buckets and the token key are left of it all.
        let left: Vec<char> =
            karri_meta::memory::MemoryStore::dump(&w.meta).iter().map(|(k, _)| k[0] as char).collect();
        assert_eq!(left, ['A', 'A', 'B', 'B', 'C']);
        w.put("/bucket", "").await.ok();
        assert_eq!(w.get("/bucket").await.ok().all("Key"), Vec::<String>::new());
    });
}

#[test]
fn names_and_places() {
    run(|| async {
        let w = Walrus::new().await;
        for bad in [
            "/ab",
            "/UPPER",
            "/a..b",
            "/-ab",
            "/ab-",
            "/192.168.1.1",
            "/under_score",
            "/xn--ab",
            "/name-s3alias",
            "/a.-b",
        ] {
            let answer = w.put(bad, "").await;
            assert_eq!(answer.one("Code"), "InvalidBucketName", "{bad}");
        }
        let place = |p: &str| {
            format!(
                "<CreateBucketConfiguration><LocationConstraint>{p}</LocationConstraint></CreateBucketConfiguration>"
            )
        };
        w.put("/bucket", place("mars-1")).await.is(400, "InvalidLocationConstraint");
        w.put("/bucket", place("us-east-1")).await.ok();
        w.put("/bucket2", "<Create").await.is(400, "MalformedXML");
    });
}

#[test]
fn buckets_are_listed_in_pages() {
    run(|| async {
        let w = Walrus::new().await;
        for i in 0..5 {
            w.put(&format!("/bucket-{i}"), "").await.ok();
        }
        let first = w.get("/?max-buckets=2").await.ok();
        assert_eq!(first.all("Name"), ["bucket-0", "bucket-1"]);
        let token = first.one("ContinuationToken");
        let second = w.get("/?max-buckets=3").await.ok();
        assert_eq!(second.all("Name").len(), 3);
        let second = w.req("GET", "/").query("continuation-token", &token).send().await.ok();
        assert_eq!(second.all("Name"), ["bucket-2", "bucket-3", "bucket-4"]);
        assert_eq!(w.req("GET", "/").query("prefix", "bucket-3").send().await.ok().all("Name"), ["bucket-3"]);
        w.req("GET", "/").query("continuation-token", "made-up").send().await.is(400, "InvalidArgument");
    });
}
