//! Buckets that are named by the request's host.

use karri_objectstore::api::Peer;
use karri_objectstore::operator::Operator;
use karri_objectstore::place::Domains;

use crate::client::{Mode, Walrus, sign_v2};
use crate::{data, run};

const HOST: &str = "bucket.localhost:9000";

#[test]
fn a_bucket_in_the_host_is_the_bucket() {
    run(|| async {
        let w = Walrus::new().await;
        let at = |method: &str, target: &str| w.req(method, target).host(HOST);
        at("PUT", "/").send().await.ok();
        assert_eq!(w.get("/").await.ok().all("Name"), ["bucket"]);
        for mode in Mode::ALL {
            let body = data(100_000);
            at("PUT", "/a b/c").mode(mode).body(body.clone()).send().await.ok();
            assert!(w.get("/bucket/a b/c").await.ok().body == body, "{mode:?}");
            w.put("/bucket/d", body.clone()).await.ok();
            if !matches!(mode, Mode::Chunks(_) | Mode::Trailer | Mode::ChunksTrailer(_)) {
                assert!(at("GET", "/d").mode(mode).send().await.ok().body == body, "{mode:?}");
            }
        }
        assert_eq!(at("GET", "/").query("list-type", "2").send().await.ok().all("Key"), ["a b/c", "d"]);
        // What would be another bucket in the path is a key.
        w.put("/photos", "").await.ok();
        at("PUT", "/photos").body("x").send().await.ok();
        at("DELETE", "/photos").send().await.ok();
        w.req("HEAD", "/photos").send().await.ok();
        w.get("/bucket/photos").await.is(404, "NoSuchKey");
        at("PUT", "/photos/k").body("x").send().await.ok();
        assert_eq!(w.get("/bucket/photos/k").await.ok().text(), "x");
        w.get("/photos/k").await.is(404, "NoSuchKey");
        // Walrus's own routes, of the bucket and of objects.
        at("PUT", "/?tagging")
            .body("<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>")
            .send()
            .await
            .ok();
        assert_eq!(w.get("/bucket?tagging").await.ok().one("Value"), "b");
        assert_eq!(at("GET", "/?usage").send().await.ok().one("Objects"), "3");
        assert_eq!(at("GET", "/d?acl").send().await.ok().one("Permission"), "FULL_CONTROL");
        at("PUT", "/e?renameObject").header("x-amz-rename-source", "d").send().await.ok();
        w.get("/bucket/e").await.ok();
        // Any case, a final dot; another port is another signed host, and the same bucket.
        for host in ["BUCKET.LocalHost:9000", "bucket.localhost.", "bucket.localhost", "bucket.s3.localhost:1"] {
            w.req("GET", "/e").host(host).send().await.ok();
        }
        w.put("/a.b-c", "").await.ok();
        w.put("/a.b-c/k", "dots").await.ok();
        assert_eq!(w.req("GET", "/k").host("a.b-c.localhost").send().await.ok().text(), "dots");
        // Of addresses and strangers the path counts.
        for host in ["127.0.0.1:9000", "[::1]:9000", "other.example.org", "s3.localhost", "localhost."] {
            w.req("GET", "/bucket/e").host(host).send().await.ok();
        }
        w.req("GET", "/k").host("b_.localhost").send().await.is(400, "InvalidBucketName");
    });
}

#[test]
fn a_host_is_signed_and_gives_nobody_more() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        w.put("/bucket/own", "secret").await.ok();
        w.put("/bucket/own/k", "secret").await.ok();
        w.req("PUT", "/own").by("AK2").send().await.ok();
        w.req("PUT", "/own/k").by("AK2").body("mine").send().await.ok();
        // What AK2 may do at /own, and may not in `bucket`, whoever reads the path in which way.
        for (method, target) in [
            ("GET", "/own"),
            ("GET", "/own/k"),
            ("HEAD", "/own/k"),
            ("PUT", "/own/k"),
            ("DELETE", "/own/k"),
            ("DELETE", "/own"),
            ("POST", "/own/k?uploads"),
            ("GET", "/own/k?acl"),
            ("PUT", "/own/k?acl"),
            ("GET", "/own/k?tagging"),
            ("PUT", "/own/k?renameObject"),
            ("GET", "/own?policy"),
            ("PUT", "/own?policy"),
            ("DELETE", "/own?policy"),
            ("GET", "/own?attributes"),
        ] {
            let there =
                || w.req(method, target).by("AK2").header("x-amz-rename-source", "own").header("x-amz-acl", "private");
            let answer = there().host(HOST).send().await;
            assert!([403, 405].contains(&answer.status), "{method} {target}: {}", answer.status);
        }
        for target in ["/", "/?policy", "/?acl", "/?versioning", "/?uploads", "/?usage", "/?scrub", "/?buckets"] {
            let answer = w.req("GET", target).by("AK2").host(HOST).send().await;
            assert!([403, 405, 501].contains(&answer.status), "{target}: {}", answer.status);
        }
        assert_eq!(w.get("/bucket/own/k").await.ok().text(), "secret");
        assert_eq!(w.req("GET", "/own/k").by("AK2").send().await.ok().text(), "mine");
        // Another host than the signed one, in a header or as HTTP/2 has it.
        let swapped = |to: &'static str| {
            w.req("GET", "/k").by("AK2").host("own.localhost").send_with(move |r| {
                r.headers_mut().insert("host", to.parse().unwrap());
            })
        };
        swapped(HOST).await.is(403, "SignatureDoesNotMatch");
        swapped("localhost").await.is(400, "InvalidBucketName");
        let two = w.req("GET", "/k").by("AK2").host("own.localhost").send_with(|r| {
            r.headers_mut().append("host", HOST.parse().unwrap());
        });
        two.await.is(400, "InvalidRequest");
        let asked = |authority: &'static str, keep: bool| {
            w.req("GET", "/k").by("AK2").host("own.localhost").send_with(move |r| {
                at_authority(r, authority);
                if !keep {
                    r.headers_mut().remove("host");
                }
            })
        };
        assert_eq!(asked("own.localhost", true).await.ok().text(), "mine");
        assert_eq!(asked("own.localhost", false).await.ok().text(), "mine");
        asked(HOST, true).await.is(400, "InvalidRequest");
        asked(HOST, false).await.is(403, "SignatureDoesNotMatch");
    });
}

/// As HTTP/2 has it.
fn at_authority<T>(request: &mut http::Request<T>, authority: &str) {
    let target = request.uri().path_and_query().unwrap().to_string();
    *request.uri_mut() = format!("http://{authority}{target}").parse().unwrap();
}

#[test]
fn a_default_port_is_the_same_host() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        w.put("/bucket/k", "x").await.ok();
        let ask = |secure: bool, host: &'static str, authority: &'static str| {
            w.req("GET", "/k").host(host).send_with(move |r| {
                at_authority(r, authority);
                r.extensions_mut().insert(Peer { secure, ..Peer::default() });
            })
        };
        for (secure, port, other) in [
            (false, "bucket.localhost:80", "bucket.localhost:443"),
            (true, "bucket.localhost:443", "bucket.localhost:80"),
        ] {
            // The signature is over the header as it was sent.
            assert_eq!(ask(secure, port, "bucket.localhost").await.ok().text(), "x");
            assert_eq!(ask(secure, "bucket.localhost", port).await.ok().text(), "x");
            assert_eq!(ask(secure, "Bucket.Localhost", port).await.ok().text(), "x");
            ask(secure, other, "bucket.localhost").await.is(400, "InvalidRequest");
            ask(secure, "bucket.localhost", other).await.is(400, "InvalidRequest");
            ask(secure, port, other).await.is(400, "InvalidRequest");
            ask(secure, "other.localhost:80", "bucket.localhost").await.is(400, "InvalidRequest");
        }
        let unsigned = w.req("GET", "/k").host("bucket.localhost").send_with(|r| {
            at_authority(r, "bucket.localhost");
            r.headers_mut().insert("host", "bucket.localhost:80".parse().unwrap());
        });
        unsigned.await.is(403, "SignatureDoesNotMatch");
    });
}

#[test]
fn version_2_signs_the_bucket_of_the_host() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        w.put("/bucket/k", "x").await.ok();
        let now = time::OffsetDateTime::now_utc();
        let date = now.format(&time::format_description::well_known::Rfc2822).unwrap();
        let ask = |target: &'static str, resource: &'static str, host: &'static str| {
            let signature = sign_v2(&format!("GET\n\n\n{date}\n{resource}"));
            let request = w.req("GET", target).anonymous().host(host).header("date", date.clone());
            request.header("authorization", format!("AWS AK1:{signature}")).send()
        };
        assert_eq!(ask("/k", "/bucket/k", HOST).await.ok().text(), "x");
        assert_eq!(ask("/", "/bucket/", HOST).await.ok().all("Key"), ["k"]);
        assert_eq!(ask("/?location", "/bucket/?location", HOST).await.ok().status, 200);
        assert_eq!(ask("/bucket/k", "/bucket/k", "localhost:9000").await.ok().text(), "x");
        // Where one stands for the other.
        ask("/k", "/k", HOST).await.is(403, "SignatureDoesNotMatch");
        ask("/k", "/bucket/k", "other.localhost").await.is(403, "SignatureDoesNotMatch");
        ask("/bucket/k", "/bucket/k", HOST).await.is(403, "SignatureDoesNotMatch");
        let expires = now.unix_timestamp() + 60;
        let signature = sign_v2(&format!("GET\n\n\n{expires}\n/bucket/k"));
        let presigned = w.req("GET", "/k").anonymous().host(HOST).query("AWSAccessKeyId", "AK1");
        let presigned = presigned.query("Expires", &expires.to_string()).query("Signature", &signature);
        assert_eq!(presigned.send().await.ok().text(), "x");
    });
}

#[test]
fn browsers_ask_the_bucket_of_the_host() {
    run(|| async {
        let w = Walrus::new().await;
        w.req("PUT", "/bucket").header("x-amz-acl", "public-read-write").send().await.ok();
        w.put("/k", "").await.is(400, "InvalidBucketName");
        let rule = "<CORSRule><AllowedOrigin>http://a.x</AllowedOrigin><AllowedMethod>GET</AllowedMethod></CORSRule>";
        w.put("/bucket?cors", format!("<CORSConfiguration>{rule}</CORSConfiguration>")).await.ok();
        let from = |method: &str, host: &str| {
            let request = w.req(method, "/k").anonymous().host(host).header("origin", "http://a.x");
            request.header("access-control-request-method", "GET").send()
        };
        let allowed = from("OPTIONS", HOST).await.ok();
        assert_eq!(allowed.header("access-control-allow-origin"), "http://a.x");
        assert_eq!(from("GET", HOST).await.is(404, "NoSuchKey").header("access-control-allow-origin"), "http://a.x");
        assert_eq!(from("OPTIONS", "localhost").await.status, 403);

        let body = "--B\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\nfrom form\r\n--B\r\nContent-Disposition: form-data; name=\"success_action_status\"\r\n\r\n201\r\n--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\nhello\r\n--B--\r\n";
        let form = |target: &str| {
            let request = w.req("POST", target).anonymous().host(HOST);
            request.header("content-type", "multipart/form-data; boundary=B").body(body).send()
        };
        let done = form("/").await.ok();
        assert_eq!(done.header("location"), "http://bucket.localhost:9000/from%20form");
        assert_eq!((done.one("Bucket"), done.one("Key")), ("bucket".into(), "from form".into()));
        assert_eq!(w.get("/bucket/from form").await.ok().text(), "hello");
        form("/bucket").await.is(405, "MethodNotAllowed");
    });
}

#[test]
fn a_website_has_a_name_of_its_own() {
    run(|| async {
        let w = Walrus::new().await;
        let domains = Domains::new(&["s3.example.org".into()], &["example.org".into()]).unwrap();
        assert!(w.core.shared.operator.set(Operator { domains, ..Operator::default() }).is_ok());
        let bucket = "www.example.org";
        w.put(&format!("/{bucket}"), "").await.ok();
        w.put(&format!("/{bucket}/index.html"), "home").await.ok();
        let policy = format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::{bucket}/*"}}]}}"#
        );
        w.put(&format!("/{bucket}?policy"), policy).await.ok();
        let visit = |host: &str| w.req("GET", "/").anonymous().host(host).send();
        assert_eq!(visit(bucket).await.status, 404, "no website yet");
        let site =
            "<WebsiteConfiguration><IndexDocument><Suffix>index.html</Suffix></IndexDocument></WebsiteConfiguration>";
        w.put(&format!("/{bucket}?website"), site).await.ok();
        assert_eq!(visit("WWW.example.org:8080").await.ok().text(), "home");
        assert_eq!(visit("other.example.org").await.status, 404);
        // The service's own names stay its own.
        let service = |answer: crate::client::Answer| assert!(answer.text().contains("<ListAllMyBucketsResult"));
        service(visit("s3.example.org").await);
        assert_eq!(w.req("GET", "/index.html").host("www.example.org.s3.example.org").send().await.ok().text(), "home");
        service(visit("www.example.com").await);
    });
}

#[test]
fn nobody_chooses_headers_of_answers() {
    run(|| async {
        let w = Walrus::new().await;
        w.req("PUT", "/bucket").header("x-amz-acl", "public-read").send().await.ok();
        w.req("PUT", "/bucket/k").header("x-amz-acl", "public-read").body("x").send().await.ok();
        w.req("GET", "/bucket/k").anonymous().send().await.ok();
        for name in
            ["content-type", "content-language", "expires", "cache-control", "content-disposition", "content-encoding"]
        {
            let value = if name == "expires" { "Thu, 01 Dec 2033 16:00:00 GMT" } else { "text/html" };
            let read = |method| w.req(method, "/bucket/k").query(&format!("response-{name}"), value);
            read("GET").anonymous().send().await.is(400, "InvalidRequest");
            assert_eq!(read("HEAD").anonymous().send().await.status, 400);
            read("GET").anonymous().header("range", "bytes=0-1,2-3").send().await.is(400, "InvalidRequest");
            let there = w.req("GET", "/k").anonymous().host(HOST).query(&format!("response-{name}"), value);
            there.send().await.is(400, "InvalidRequest");
            for mode in [Mode::Signed, Mode::Presigned(60)] {
                assert_eq!(read("GET").mode(mode).send().await.ok().header(name), value, "{mode:?}");
            }
        }
    });
}
