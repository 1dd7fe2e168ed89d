//! Range and If-Range: RFC 9110 sections 14.2 and 13.1.5.

use crate::client::{Mode, Walrus};
use crate::{data, run};

#[test]
fn what_is_no_range_is_not_there() {
    run(|| async {
        let w = Walrus::new().await;
        w.req("PUT", "/bucket").header("x-amz-acl", "public-read").send().await.ok();
        let body = data(1_000);
        w.req("PUT", "/bucket/a b").header("x-amz-acl", "public-read").body(body.clone()).send().await.ok();
        w.put("/bucket/private", "x").await.ok();
        for range in ["bytes=0-1,5-6", "bytes=9-3", "chars=0-5", "bytes=x", "bytes=", "nonsense"] {
            for mode in [Mode::Signed, Mode::Presigned(60)] {
                let got = w.req("GET", "/bucket/a b").mode(mode).header("range", range).send().await;
                assert!(got.status == 200 && got.body == body, "{mode:?} {range}: {} {}", got.status, got.text());
                assert_eq!(got.header("content-range"), "");
            }
            let anonymous = w.req("GET", "/bucket/a b").anonymous().header("range", range).send().await;
            assert!(anonymous.status == 200 && anonymous.body == body, "{range}");
            let hosted = w.req("GET", "/a b").host("bucket.localhost").header("range", range).send().await;
            assert!(hosted.status == 200 && hosted.body == body, "{range}");
            let head = w.req("HEAD", "/bucket/a b").header("range", range).send().await.ok();
            assert_eq!((head.status, head.header("content-length")), (200, "1000"), "{range}");
            // It opens nothing, and other conditions count.
            w.req("GET", "/bucket/private").anonymous().header("range", range).send().await.is(403, "AccessDenied");
            w.req("GET", "/bucket/private").by("AK2").header("range", range).send().await.is(403, "AccessDenied");
            w.req("GET", "/bucket/none").header("range", range).send().await.is(404, "NoSuchKey");
            let forged = w.req("GET", "/bucket/private").header("range", range).send_with(|r| {
                r.headers_mut().insert("range", "bytes=7-6".parse().unwrap());
            });
            forged.await.is(403, "SignatureDoesNotMatch");
            let unmet = w.req("GET", "/bucket/a b").header("range", range).header("if-match", "\"x\"").send();
            unmet.await.is(412, "PreconditionFailed");
            let stranger = w.req("GET", "/bucket/a b").header("range", range);
            stranger.header("x-amz-expected-bucket-owner", "000000000009").send().await.is(403, "AccessDenied");
            let part = w.req("GET", "/bucket/a b").query("partNumber", "1").header("range", range).send().await.ok();
            assert!(part.body == body);
            // Other operations never had a range.
            w.req("GET", "/bucket/a b?tagging").header("range", range).send().await.ok();
            w.req("GET", "/bucket/a b?acl").header("range", range).send().await.ok();
        }
        for (range, want) in
            [("BYTES=1-2", 1..3), ("bytes=990-99999999999999999999", 990..1000), ("bytes=-3", 997..1000)]
        {
            let got = w.req("GET", "/bucket/a b").header("range", range).send().await.ok();
            assert!(got.status == 206 && got.body == body[want], "{range}");
        }
        for range in ["bytes=1000-", "bytes=99999999999999999999-", "bytes=-0"] {
            w.req("GET", "/bucket/a b").header("range", range).send().await.is(416, "InvalidRange");
        }
    });
}

#[test]
fn a_range_may_be_of_one_representation_only() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        let etag = w.put("/bucket/k", "0123456789").await.ok().header("etag").to_owned();
        let date = w.get("/bucket/k").await.ok().header("last-modified").to_owned();
        let read = |method: &'static str, condition: &str| {
            w.req(method, "/bucket/k").header("range", "bytes=2-3").header("if-range", condition).send()
        };
        for condition in [etag.as_str(), date.as_str()] {
            let got = read("GET", condition).await.ok();
            assert_eq!((got.status, got.text().as_str()), (206, "23"), "{condition}");
            assert_eq!(read("HEAD", condition).await.ok().status, 206);
        }
        let weak = format!("W/{etag}");
        for condition in ["\"other\"", weak.as_str(), "Thu, 01 Dec 1994 16:00:00 GMT", "rubbish", ""] {
            let got = read("GET", condition).await.ok();
            assert_eq!((got.status, got.text().as_str()), (200, "0123456789"), "{condition}");
            let head = read("HEAD", condition).await.ok();
            assert_eq!((head.status, head.header("content-length")), (200, "10"), "{condition}");
        }
        // Not satisfiable, of another representation: all of this one.
        let beyond = w.req("GET", "/bucket/k").header("range", "bytes=10-");
        beyond.header("if-range", "\"other\"").send().await.ok();
        // Without a range it says nothing.
        assert_eq!(w.req("GET", "/bucket/k").header("if-range", "\"other\"").send().await.ok().text(), "0123456789");
    });
}
