use crate::client::{Mode, Walrus, sign_v2};
use crate::{data, run};

#[test]
fn every_signature_form_carries_a_body() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        for mode in Mode::ALL {
            for len in [0, 1, 4096, 32_768, 32_769, 65_536, 65_537, 300_000] {
                let body = data(len);
                w.req("PUT", "/bucket/k").mode(mode).body(body.clone()).send().await.ok();
                let got = w.get("/bucket/k").await.ok();
                assert!(got.body == body, "{mode:?} {len}");
                assert_eq!(got.header("content-encoding"), "", "{mode:?}");
                if matches!(mode, Mode::Presigned(_)) {
                    assert!(w.req("GET", "/bucket/k").mode(mode).send().await.ok().body == body);
                }
            }
        }
    });
}

#[test]
fn keys_signatures_and_clocks() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        w.put("/bucket/k", "x").await.ok();
        w.req("GET", "/bucket/k").anonymous().send().await.is(403, "AccessDenied");
        w.req("GET", "/bucket/k").by("AK404").send().await.is(403, "InvalidAccessKeyId");
        let wordless = w.get("/ab").await.is(400, "InvalidBucketName");
        assert_eq!(wordless.one("Message"), "The specified bucket is not valid.");
        assert_eq!(wordless.one("RequestId"), wordless.header("x-amz-request-id"));
        let forged = w.req("GET", "/bucket/k").send_with(|r| *r.uri_mut() = "/bucket/other".parse().unwrap());
        forged.await.is(403, "SignatureDoesNotMatch");
        let dropped = w.req("GET", "/bucket/k").header("x-amz-meta-a", "1").send_with(|r| {
            r.headers_mut().remove("x-amz-meta-a");
        });
        dropped.await.is(403, "SignatureDoesNotMatch");
        let added = w.req("GET", "/bucket/k").send_with(|r| {
            r.headers_mut().insert("x-amz-meta-a", "1".parse().unwrap());
        });
        added.await.is(403, "AccessDenied");
        for age in ["960", "-960"] {
            w.req("GET", "/bucket/k").header("test-age", age).send().await.is(403, "RequestTimeTooSkewed");
        }
        w.req("GET", "/bucket/k").mode(Mode::Presigned(604_801)).send().await.is(403, "AccessDenied");
        w.req("GET", "/bucket/k")
            .mode(Mode::Presigned(60))
            .header("test-age", "70")
            .send()
            .await
            .is(403, "AccessDenied");
        w.req("GET", "/bucket/k").mode(Mode::Presigned(60)).header("test-age", "50").send().await.ok();
    });
}

#[test]
fn a_body_that_is_not_what_was_signed_leaves_nothing() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        for len in [1_000, 200_000] {
            for mode in [Mode::Signed, Mode::Chunks(16_384), Mode::ChunksTrailer(16_384), Mode::Trailer] {
                let mut body = data(len);
                let put = w.req("PUT", "/bucket/k").mode(mode).body(body.clone());
                let answer = put
                    .send_with(|r| {
                        // One byte of the data changes on its way.
                        let sent = std::mem::take(r.body_mut());
                        let mut bytes = futures_util::FutureExt::now_or_never(http_body_util::BodyExt::collect(sent))
                            .unwrap()
                            .unwrap()
                            .to_bytes()
                            .to_vec();
                        let at = bytes.len() / 2;
                        bytes[at] ^= 1;
                        *r.body_mut() = http_body_util::Full::new(bytes.into());
                    })
                    .await;
                body.clear();
                let code = match mode {
                    Mode::Signed => "XAmzContentSHA256Mismatch",
                    Mode::Trailer => "BadDigest",
                    _ => "SignatureDoesNotMatch",
                };
                assert_eq!(answer.one("Code"), code, "{mode:?} {len}");
                w.get("/bucket/k").await.is(404, "NoSuchKey");
            }
        }
        w.reclaim().await;
        assert_eq!(karri_bulk::BulkStore::usage(&w.bulk).used, 0, "space of refused bodies is back");
    });
}

#[test]
fn accounts_are_apart_and_the_system_may_read() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        w.put("/bucket/k", "x").await.ok();
        for (method, target) in [
            ("GET", "/bucket/k"),
            ("HEAD", "/bucket/k"),
            ("GET", "/bucket"),
            ("GET", "/bucket?uploads"),
            ("PUT", "/bucket/k"),
            ("DELETE", "/bucket/k"),
            ("DELETE", "/bucket"),
            ("HEAD", "/bucket"),
            ("POST", "/bucket/k?uploads"),
        ] {
            let answer = w.req(method, target).by("AK2").send().await;
            assert_eq!(answer.status, 403, "{method} {target}");
        }
        w.req("PUT", "/bucket").by("AK2").send().await.is(409, "BucketAlreadyExists");
        assert_eq!(w.req("GET", "/").by("AK2").send().await.ok().all("Name"), Vec::<String>::new());
        assert_eq!(w.req("GET", "/bucket/k").by("AKS").send().await.ok().text(), "x");
        w.req("GET", "/bucket").by("AKS").send().await.ok();
        w.req("PUT", "/bucket/k").by("AKS").send().await.is(403, "AccessDenied");
        w.req("GET", "/bucket/k")
            .header("x-amz-expected-bucket-owner", "000000000002")
            .send()
            .await
            .is(403, "AccessDenied");
        w.req("GET", "/bucket/k").header("x-amz-expected-bucket-owner", "000000000001").send().await.ok();
    });
}

#[test]
fn what_is_not_there_says_so() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        for (method, target) in [
            ("GET", "/bucket?analytics"),
            ("PUT", "/bucket?fancy"),
            ("GET", "/bucket/k?torrent"),
            ("POST", "/bucket/k?select&select-type=2"),
        ] {
            let answer = w.req(method, target).body("<x/>").send().await;
            assert_eq!(answer.status, 501, "{method} {target}: {}", answer.text());
        }
    });
}

#[test]
fn presigned_names_in_disguise_are_checked_too() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        w.put("/bucket/secret", "the secret").await.ok();
        // What the owner hands out: a PUT and a GET of /bucket/drop. The holder adds a header that is not signed.
        let smuggle = |r: &mut http::Request<http_body_util::Full<bytes::Bytes>>| {
            let uri = r.uri().to_string().replace("X-Amz-", "X-Am%7A-");
            *r.uri_mut() = uri.parse().unwrap();
            r.headers_mut().insert("x-amz-copy-source", "/bucket/secret".parse().unwrap());
        };
        let a = w.req("PUT", "/bucket/drop").mode(Mode::Presigned(60)).send_with(smuggle).await;
        let long = w
            .req("GET", "/bucket/secret")
            .mode(Mode::Presigned(60_480_000))
            .send_with(|r| {
                let uri = r.uri().to_string().replace("X-Amz-", "X-Am%7A-");
                *r.uri_mut() = uri.parse().unwrap();
            })
            .await;
        assert_eq!((a.status, long.status), (403, 403));
    });
}

#[test]
fn dates_of_both_versions() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        w.put("/bucket/k", "x").await.ok();
        assert_eq!(w.req("GET", "/bucket/k").header("date", "now").send().await.ok().text(), "x");
        let old = w.req("GET", "/bucket/k").header("date", "then").header("test-age", "960");
        old.send().await.is(403, "RequestTimeTooSkewed");
        // Version 2: the date is judged before the signature, which would be good for ever without.
        for (name, date, code) in [
            ("x-amz-date", "Tue, 07 Jul 2010 21:53:04 GMT", "RequestTimeTooSkewed"),
            ("date", "Tue, 07 Jul 2010 21:53:04 GMT", "RequestTimeTooSkewed"),
            ("x-amz-date", "Bad Date", "AccessDenied"),
            ("x-amz-meta-none", "", "AccessDenied"),
        ] {
            let request = w.req("GET", "/bucket/k").anonymous().header("authorization", "AWS AK1:c2lnbmF0dXJl");
            request.header(name, date).send().await.is(403, code);
        }
    });
}

#[test]
fn version_2_does_what_was_signed() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        w.put("/bucket/k", "x").await.ok();
        let send = async |method: &str, signed: &str, added: &str, body: &'static str| {
            let signature = sign_v2(&format!("{method}\n\n\n4102444800\n/bucket/k{signed}"));
            let signature = signature.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
            let all = format!("AWSAccessKeyId=AK1&Expires=4102444800&Signature={signature}");
            let signed = signed.replace('?', "&");
            let target = format!("/bucket/k?{all}{signed}{added}");
            let request = w.req(method, "/bucket/k").anonymous().body(body);
            request.send_with(|r| *r.uri_mut() = target.parse().unwrap()).await
        };
        assert_eq!(send("GET", "", "", "").await.ok().text(), "x");
        assert_eq!(send("GET", "?response-content-language=x", "&harmless=1", "").await.ok().text(), "x");
        assert!(send("GET", "?acl", "", "").await.ok().text().contains("AccessControlPolicy"));
        // What nobody signed: another operation, another payer, and two of which `s3s` signs neither.
        for added in ["&attributes", "&retention", "&%61cl&acl", "&x-amz-request-payer=requester"] {
            send("GET", "", added, "").await.is(403, "AccessDenied");
        }
        send("PUT", "", "&legal-hold", "<LegalHold><Status>ON</Status></LegalHold>").await.is(403, "AccessDenied");
        send("GET", "", "&acl", "").await.is(403, "SignatureDoesNotMatch");
        assert_eq!(w.get("/bucket/k").await.ok().text(), "x");
    });
}

#[test]
fn an_empty_content_md5_is_none() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        w.req("PUT", "/bucket/k").header("content-md5", "").body("x").send().await.is(400, "InvalidDigest");
    });
}
