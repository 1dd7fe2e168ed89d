use crate::client::{ACCOUNT, Mode, OTHER, Walrus, crc32_base64};
use crate::run;

const ALL: &str = "http://acs.amazonaws.com/groups/global/AllUsers";

fn grants(owner: &str, grants: &[(&str, &str)]) -> String {
    let grants: String = grants
        .iter()
        .map(|(who, what)| {
            let (kind, element) = if who.starts_with("http") { ("Group", "URI") } else { ("CanonicalUser", "ID") };
            format!(
                "<Grant><Grantee xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xsi:type=\"{kind}\"><{element}>{who}</{element}></Grantee><Permission>{what}</Permission></Grant>"
            )
        })
        .collect();
    format!(
        "<AccessControlPolicy xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Owner><ID>{owner}</ID></Owner><AccessControlList>{grants}</AccessControlList></AccessControlPolicy>"
    )
}

/// What SDKs without credentials send over TLS.
#[test]
fn chunks_that_nobody_signed_are_taken_apart() {
    run(|| async {
        let w = Walrus::new().await;
        w.req("PUT", "/bucket").header("x-amz-acl", "public-read-write").send().await.ok();
        let put = |length: &str, body: &'static str| {
            let put = w.req("PUT", "/bucket/k").anonymous().body(body).header("content-encoding", "gzip,aws-chunked");
            put.header("x-amz-decoded-content-length", length)
        };
        let plain = "5\r\nhello\r\n0\r\n\r\n";
        put("4", plain).send().await.is(400, "IncompleteBody");
        put("6", plain).send().await.is(400, "IncompleteBody");
        put("five", plain).send().await.is(411, "MissingContentLength");
        put("5", "5\r\nhello!\r\n0\r\n\r\n").send().await.is(400, "InvalidRequest");
        w.get("/bucket/k").await.is(404, "NoSuchKey");
        put("5", plain).send().await.ok();
        let got = w.get("/bucket/k").await.ok();
        assert_eq!((&*got.text(), got.header("content-encoding")), ("hello", "gzip"));
        let told = |body| {
            put("5", body)
                .header("x-amz-trailer", "x-amz-checksum-crc32")
                .header("x-amz-sdk-checksum-algorithm", "CRC32")
        };
        told("2\r\nhe\r\n3\r\nllo\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n").send().await.is(400, "BadDigest");
        told(plain).send().await.is(400, "InvalidRequest");
        told("2\r\nhe\r\n3\r\nllo\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n").send().await.ok();
        let got = w.req("GET", "/bucket/k").header("x-amz-checksum-mode", "ENABLED").send().await.ok();
        assert_eq!((&*got.text(), got.header("x-amz-checksum-crc32")), ("hello", "NhCmhg=="));
        put("5", "5\r\nhello\r\n").send().await.is(400, "IncompleteBody");
        let large = crate::data(300_000);
        let framed = [b"30d40\r\n", &large[..200_000], b"\r\n186a0\r\n", &large[200_000..], b"\r\n0\r\n"].concat();
        let framed = [framed, format!("x-amz-checksum-crc32:{}\r\n\r\n", crc32_base64(&large)).into_bytes()].concat();
        let put_large =
            w.req("PUT", "/bucket/large").anonymous().body(framed).header("content-encoding", "aws-chunked");
        let put_large = put_large.header("x-amz-decoded-content-length", "300000");
        put_large.header("x-amz-trailer", "x-amz-checksum-crc32").send().await.ok();
        assert!(w.get("/bucket/large").await.ok().body == large);
        // A payload that is told to be a stream is one.
        let stream = put("5", plain).header("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER");
        stream.send().await.ok();
        assert_eq!(w.get("/bucket/k").await.ok().text(), "hello");
    });
}

#[test]
fn canned_lists_open_buckets_and_objects() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        w.put("/bucket/k", "x").await.ok();
        let acl = w.get("/bucket?acl").await.ok();
        assert_eq!(acl.all("ID"), [ACCOUNT, ACCOUNT]);
        assert_eq!(acl.all("Permission"), ["FULL_CONTROL"]);
        w.req("GET", "/bucket").anonymous().send().await.is(403, "AccessDenied");
        w.req("GET", "/bucket/k").anonymous().send().await.is(403, "AccessDenied");
        w.req("PUT", "/bucket?acl").header("x-amz-acl", "public-read").send().await.ok();
        assert_eq!(w.req("GET", "/bucket").anonymous().send().await.ok().all("Key"), ["k"]);
        w.req("GET", "/bucket/k").anonymous().send().await.is(403, "AccessDenied");
        w.req("GET", "/bucket/absent").anonymous().send().await.is(404, "NoSuchKey");
        w.req("PUT", "/bucket/new").anonymous().body("y").send().await.is(403, "AccessDenied");
        w.req("PUT", "/bucket/k?acl").header("x-amz-acl", "public-read").send().await.ok();
        assert_eq!(w.req("GET", "/bucket/k").anonymous().send().await.ok().text(), "x");
        w.req("PUT", "/bucket/k").header("x-amz-acl", "authenticated-read").body("z").send().await.ok();
        w.req("GET", "/bucket/k").anonymous().send().await.is(403, "AccessDenied");
        assert_eq!(w.req("GET", "/bucket/k").by("AK2").send().await.ok().text(), "z");
        w.req("GET", "/bucket/k?acl").by("AK2").send().await.is(403, "AccessDenied");
        w.req("PUT", "/bucket?acl").header("x-amz-acl", "public-read-write").send().await.ok();
        w.req("PUT", "/bucket/new").anonymous().body("y").send().await.ok();
        assert_eq!(w.get("/bucket/new").await.ok().text(), "y", "nobody's object is the bucket owner's");
        w.req("PUT", "/bucket/theirs").by("AK2").body("t").send().await.ok();
        w.get("/bucket/theirs").await.is(403, "AccessDenied");
        assert_eq!(w.req("GET", "/bucket/theirs").by("AK2").send().await.ok().text(), "t");
        w.req("PUT", "/bucket/ours")
            .by("AK2")
            .header("x-amz-acl", "bucket-owner-full-control")
            .body("o")
            .send()
            .await
            .ok();
        assert_eq!(w.get("/bucket/ours").await.ok().text(), "o");
        assert_eq!(w.get("/bucket/ours?acl").await.ok().all("ID"), [OTHER, OTHER, ACCOUNT]);
        w.req("DELETE", "/bucket/theirs").send().await.ok();
        w.req("PUT", "/bucket?acl").header("x-amz-acl", "private").send().await.ok();
        w.req("GET", "/bucket").by("AK2").send().await.is(403, "AccessDenied");
        w.req("PUT", "/bucket?acl").header("x-amz-acl", "secret").send().await.is(400, "InvalidArgument");
        w.req("PUT", "/bucket?acl").send().await.is(400, "MissingSecurityHeader");
        w.req("GET", "/").anonymous().send().await.ok();
    });
}

#[test]
fn grants_by_header_and_document() {
    run(|| async {
        let w = Walrus::new().await;
        w.req("PUT", "/bucket").header("x-amz-grant-read", format!("id={OTHER}")).send().await.ok();
        w.req("GET", "/bucket").by("AK2").send().await.ok();
        w.req("GET", "/bucket?acl").by("AK2").send().await.is(403, "AccessDenied");
        w.req("PUT", "/bucket?acl").body(grants(ACCOUNT, &[(OTHER, "READ_ACP"), (ALL, "READ")])).send().await.ok();
        let acl = w.req("GET", "/bucket?acl").by("AK2").send().await.ok();
        assert_eq!(acl.all("Permission"), ["READ", "READ_ACP"]);
        assert_eq!(acl.all("URI"), [ALL]);
        w.req("PUT", "/bucket?acl").by("AK2").body(grants(ACCOUNT, &[])).send().await.is(403, "AccessDenied");
        w.req("PUT", "/bucket?acl").body(grants(OTHER, &[])).send().await.is(403, "AccessDenied");
        w.req("PUT", "/bucket?acl")
            .body(grants(ACCOUNT, &[("nobody", "READ")]))
            .send()
            .await
            .is(400, "InvalidArgument");
        w.req("PUT", "/bucket?acl").body("<x/>").send().await.is(400, "MalformedACLError");
        w.req("PUT", "/bucket?acl")
            .header("x-amz-acl", "private")
            .body(grants(ACCOUNT, &[]))
            .send()
            .await
            .is(400, "UnexpectedContent");
        w.put("/bucket/k", "x").await.ok();
        w.req("PUT", "/bucket/k?acl").body(grants(ACCOUNT, &[(OTHER, "FULL_CONTROL")])).send().await.ok();
        assert_eq!(w.req("GET", "/bucket/k").by("AK2").send().await.ok().text(), "x");
        w.req("PUT", "/bucket/k?acl").by("AK2").body(grants(ACCOUNT, &[(OTHER, "READ_ACP")])).send().await.ok();
        assert_eq!(w.req("GET", "/bucket/k?acl").by("AK2").send().await.ok().one("ID"), ACCOUNT);
        w.req("GET", "/bucket/k").by("AK2").send().await.is(403, "AccessDenied");
    });
}

#[test]
fn ownership_controls_and_public_access_blocks() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        w.get("/bucket?ownershipControls").await.is(404, "OwnershipControlsNotFoundError");
        w.req("PUT", "/bucket?acl").header("x-amz-acl", "public-read-write").send().await.ok();
        let controls = |o: &str| {
            format!("<OwnershipControls><Rule><ObjectOwnership>{o}</ObjectOwnership></Rule></OwnershipControls>")
        };
        let set = |o: &'static str| w.put("/bucket?ownershipControls", controls(o));
        set("BucketOwnerEnforced").await.is(400, "InvalidBucketAclWithObjectOwnership");
        set("BucketOwnerPreferred").await.ok();
        let put = |acl: &'static str| w.req("PUT", "/bucket/k").by("AK2").header("x-amz-acl", acl).body("x").send();
        put("bucket-owner-full-control").await.ok();
        assert_eq!(w.get("/bucket/k?acl").await.ok().all("ID"), [ACCOUNT, ACCOUNT]);
        w.req("PUT", "/bucket?acl").header("x-amz-acl", "private").send().await.ok();
        set("BucketOwnerEnforced").await.ok();
        assert_eq!(w.get("/bucket?ownershipControls").await.ok().one("ObjectOwnership"), "BucketOwnerEnforced");
        w.req("PUT", "/bucket?acl")
            .header("x-amz-acl", "public-read")
            .send()
            .await
            .is(400, "AccessControlListNotSupported");
        w.req("PUT", "/bucket/k")
            .header("x-amz-acl", "public-read")
            .body("x")
            .send()
            .await
            .is(400, "AccessControlListNotSupported");
        w.req("DELETE", "/bucket?ownershipControls").send().await.ok();

        w.req("PUT", "/bucket?acl").header("x-amz-acl", "public-read").send().await.ok();
        w.req("GET", "/bucket").anonymous().send().await.ok();
        let block = |what: &str| {
            format!("<PublicAccessBlockConfiguration><{what}>true</{what}></PublicAccessBlockConfiguration>")
        };
        w.put("/bucket?publicAccessBlock", block("IgnorePublicAcls")).await.ok();
        w.req("GET", "/bucket").anonymous().send().await.is(403, "AccessDenied");
        w.put("/bucket?publicAccessBlock", block("BlockPublicAcls")).await.ok();
        w.req("PUT", "/bucket?acl").header("x-amz-acl", "public-read").send().await.is(403, "AccessDenied");
        w.req("PUT", "/bucket/k").header("x-amz-acl", "public-read").body("x").send().await.is(403, "AccessDenied");
        w.put("/bucket?publicAccessBlock", block("BlockPublicPolicy")).await.ok();
        let public = policy(r#""*""#, "s3:GetObject", "arn:aws:s3:::bucket/*");
        w.put("/bucket?policy", public.clone()).await.is(403, "AccessDenied");
        w.req("DELETE", "/bucket?publicAccessBlock").send().await.ok();
        w.get("/bucket?publicAccessBlock").await.is(404, "NoSuchPublicAccessBlockConfiguration");
        w.put("/bucket?policy", public).await.ok();
        w.req("GET", "/bucket/k").anonymous().send().await.ok();
        w.put("/bucket?publicAccessBlock", block("RestrictPublicBuckets")).await.ok();
        w.req("GET", "/bucket/k").anonymous().send().await.is(403, "AccessDenied");
        w.get("/bucket/k").await.ok();
    });
}

fn policy(principal: &str, action: &str, resource: &str) -> String {
    statement(&format!(r#"{{"Effect":"Allow","Principal":{principal},"Action":"{action}","Resource":"{resource}"}}"#))
}

fn statement(statements: &str) -> String {
    format!(r#"{{"Version":"2012-10-17","Statement":[{statements}]}}"#)
}

#[test]
fn policies_allow_and_deny() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        w.put("/bucket/a/k", "x").await.ok();
        w.get("/bucket?policy").await.is(404, "NoSuchBucketPolicy");
        let text = policy(&format!(r#"{{"AWS":"{OTHER}"}}"#), "s3:GetObject", "arn:aws:s3:::bucket/a/*");
        w.put("/bucket?policy", text.clone()).await.ok();
        assert_eq!(w.get("/bucket?policy").await.ok().text(), text);
        assert_eq!(w.get("/bucket?policyStatus").await.ok().one("IsPublic"), "false");
        assert_eq!(w.req("GET", "/bucket/a/k").by("AK2").send().await.ok().text(), "x");
        w.req("GET", "/bucket/a/absent").by("AK2").send().await.is(403, "AccessDenied");
        w.req("GET", "/bucket/b").by("AK2").send().await.is(403, "AccessDenied");
        w.req("GET", "/bucket/a/k").anonymous().send().await.is(403, "AccessDenied");
        w.req("PUT", "/bucket/a/k").by("AK2").body("y").send().await.is(403, "AccessDenied");
        w.req("GET", "/bucket?policy").by("AK2").send().await.is(403, "AccessDenied");

        let text = statement(
            r#"{"Effect":"Allow","Principal":"*","Action":"s3:ListBucket","Resource":"arn:aws:s3:::bucket","Condition":{"StringEquals":{"s3:prefix":"a/"}}},
               {"Effect":"Allow","Principal":"*","Action":"s3:PutObject","Resource":"arn:aws:s3:::bucket/*"},
               {"Effect":"Deny","Principal":"*","Action":"s3:PutObject","Resource":"arn:aws:s3:::bucket/*","Condition":{"StringLike":{"s3:x-amz-acl":"public*"}}}"#,
        );
        w.put("/bucket?policy", text).await.ok();
        assert_eq!(w.get("/bucket?policyStatus").await.ok().one("IsPublic"), "true");
        w.req("GET", "/bucket").anonymous().query("prefix", "a/").send().await.ok();
        w.req("GET", "/bucket").anonymous().query("prefix", "b/").send().await.is(403, "AccessDenied");
        w.req("PUT", "/bucket/n").by("AK2").body("x").send().await.ok();
        w.req("PUT", "/bucket/n")
            .by("AK2")
            .header("x-amz-acl", "public-read")
            .body("x")
            .send()
            .await
            .is(403, "AccessDenied");
        let deny = statement(
            r#"{"Effect":"Deny","Principal":"*","Action":"s3:DeleteObject","Resource":"arn:aws:s3:::bucket/a/*"}"#,
        );
        w.put("/bucket?policy", deny).await.ok();
        w.req("DELETE", "/bucket/a/k").send().await.is(403, "AccessDenied");
        let keys = "<Delete><Object><Key>a/k</Key></Object><Object><Key>n</Key></Object></Delete>";
        let both = w.req("POST", "/bucket?delete").body(keys).send().await.ok();
        assert_eq!(both.all("Code"), ["AccessDenied"]);
        assert!(both.text().contains("<Deleted><Key>n</Key>"), "{}", both.text());
        assert_eq!(w.req("DELETE", "/bucket?policy").send().await.ok().status, 204);
        w.req("DELETE", "/bucket/a/k").send().await.ok();

        for (text, code) in [
            ("{}".to_owned(), "MalformedPolicy"),
            ("x".into(), "MalformedPolicy"),
            (policy(r#""*""#, "s3:GetObject", "arn:aws:s3:::other/*"), "MalformedPolicy"),
            (
                format!("{}{}", policy(r#""*""#, "s3:GetObject", "arn:aws:s3:::bucket/*"), " ".repeat(21_000)),
                "PolicyTooLarge",
            ),
        ] {
            w.put("/bucket?policy", text).await.is(400, code);
        }
    });
}

#[test]
fn copies_need_both_sides() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/source", "").await.ok();
        w.put("/source/k", "x").await.ok();
        w.req("PUT", "/target").by("AK2").send().await.ok();
        let copy = || w.req("PUT", "/target/c").by("AK2").header("x-amz-copy-source", "/source/k").send();
        copy().await.is(403, "AccessDenied");
        w.req("PUT", "/source/k?acl").header("x-amz-acl", "public-read").send().await.ok();
        copy().await.ok();
        assert_eq!(w.req("GET", "/target/c").by("AK2").send().await.ok().text(), "x");
        w.req("PUT", "/target/c").header("x-amz-copy-source", "/source/k").send().await.is(403, "AccessDenied");
    });
}

#[test]
fn configuration_is_kept_and_answered() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        for (name, absent, document) in [
            (
                "cors",
                "NoSuchCORSConfiguration",
                "<CORSConfiguration><CORSRule><AllowedOrigin>*</AllowedOrigin><AllowedMethod>GET</AllowedMethod></CORSRule></CORSConfiguration>",
            ),
            (
                "lifecycle",
                "NoSuchLifecycleConfiguration",
                "<LifecycleConfiguration><Rule><ID>r</ID><Prefix>p</Prefix><Status>Enabled</Status><Expiration><Days>1</Days></Expiration></Rule></LifecycleConfiguration>",
            ),
            ("tagging", "NoSuchTagSet", "<Tagging><TagSet><Tag><Key>k</Key><Value>v</Value></Tag></TagSet></Tagging>"),
            (
                "website",
                "NoSuchWebsiteConfiguration",
                "<WebsiteConfiguration><IndexDocument><Suffix>i.html</Suffix></IndexDocument></WebsiteConfiguration>",
            ),
        ] {
            let target = format!("/bucket?{name}");
            w.get(&target).await.is(404, absent);
            assert_eq!(w.req("DELETE", &target).send().await.ok().status, 204);
            w.put(&target, "<Nonsense/>").await.is(400, "MalformedXML");
            w.put(&target, "<").await.is(400, "MalformedXML");
            w.req("PUT", &target).mode(Mode::Chunks(8192)).body(document).send().await.ok();
            let strip = |text: &str| text.split_once('>').map_or(String::new(), |(_, rest)| rest.to_owned());
            let got = w.get(&target).await.ok().text();
            let first = document.split(['<', '>']).nth(1).unwrap();
            assert!(got.contains(&format!("<{first} xmlns=")), "{got}");
            assert!(!strip(&got).is_empty());
            assert_eq!(w.req("DELETE", &target).send().await.ok().status, 204);
            w.get(&target).await.is(404, absent);
        }
        for (name, want) in [
            ("logging", "BucketLoggingStatus"),
            ("notification", "NotificationConfiguration"),
            ("requestPayment", "BucketOwner"),
            ("accelerate", "AccelerateConfiguration"),
        ] {
            assert!(w.get(&format!("/bucket?{name}")).await.ok().text().contains(want));
        }
        w.req("PUT", "/bucket?cors")
            .header("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==")
            .body("<x/>")
            .send()
            .await
            .is(400, "BadDigest");
        w.put("/bucket?cors", "x".repeat(2 << 20)).await.is(400, "MaxMessageLengthExceeded");
        w.req("POST", "/bucket?cors").send().await.is(405, "MethodNotAllowed");
        w.get("/absent?cors").await.is(404, "NoSuchBucket");
    });
}

#[test]
fn other_origins_are_told() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        let asks = |origin: &str, method: &str| {
            w.req("OPTIONS", "/bucket/k")
                .anonymous()
                .header("origin", origin)
                .header("access-control-request-method", method)
                .send()
        };
        asks("http://a.x", "GET").await.is(403, "AccessForbidden");
        w.put("/bucket?cors", "<CORSConfiguration><CORSRule><AllowedOrigin>http://*.x</AllowedOrigin><AllowedMethod>GET</AllowedMethod><AllowedMethod>PUT</AllowedMethod><MaxAgeSeconds>5</MaxAgeSeconds></CORSRule></CORSConfiguration>").await.ok();
        let yes = asks("http://a.x", "PUT").await.ok();
        assert_eq!(yes.header("access-control-allow-origin"), "http://a.x");
        assert_eq!(yes.header("access-control-allow-methods"), "GET, PUT");
        asks("http://a.y", "GET").await.is(403, "AccessForbidden");
        w.req("OPTIONS", "/bucket/k").anonymous().send().await.is(400, "BadRequest");
        let denied = w.req("GET", "/bucket/k").anonymous().header("origin", "http://b.x").send().await;
        assert_eq!((denied.status, denied.header("access-control-allow-origin")), (403, "http://b.x"));
        assert_eq!(w.get("/bucket").await.ok().header("access-control-allow-origin"), "");
    });
}

#[test]
fn forms_are_puts() {
    run(|| async {
        let w = Walrus::new().await;
        w.req("PUT", "/bucket").header("x-amz-acl", "public-read-write").send().await.ok();
        let form = |fields: &[(&str, &str)], file: &str| {
            let mut body: String = fields
                .iter()
                .map(|(n, v)| format!("--B\r\nContent-Disposition: form-data; name=\"{n}\"\r\n\r\n{v}\r\n"))
                .collect();
            body += &format!(
                "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f.txt\"\r\n\r\n{file}\r\n--B--\r\n"
            );
            w.req("POST", "/bucket")
                .anonymous()
                .header("content-type", "multipart/form-data; boundary=B")
                .body(body)
                .send()
        };
        let big = "y".repeat(200_000);
        for (key, file) in [("a b", "bar"), ("${filename}", big.as_str()), ("empty", "")] {
            let answer = form(&[("key", key), ("Content-Type", "text/x"), ("x-amz-meta-m", "1")], file).await.ok();
            assert_eq!(answer.status, 204);
            let path = format!("/bucket/{}", key.replace("${filename}", "f.txt"));
            let got = w.get(&path).await.ok();
            assert_eq!(
                (got.text().as_str(), got.header("content-type"), got.header("x-amz-meta-m")),
                (file, "text/x", "1")
            );
            assert_eq!(got.header("etag"), answer.header("etag"));
        }
        let created = form(&[("key", "k"), ("success_action_status", "201")], "x").await.ok();
        assert_eq!((created.status, created.one("Key").as_str(), created.one("Bucket").as_str()), (201, "k", "bucket"));
        let moved = form(&[("key", "k"), ("success_action_redirect", "http://h/p")], "x").await;
        assert_eq!(moved.status, 303);
        assert!(
            moved.header("location").starts_with("http://h/p?bucket=bucket&key=k&etag=%22"),
            "{}",
            moved.header("location")
        );
        form(&[], "x").await.is(400, "InvalidArgument");
        form(&[("key", "k"), ("policy", "e30=")], "x").await.is(400, "InvalidArgument");
        w.req("PUT", "/bucket?acl").header("x-amz-acl", "private").send().await.ok();
        form(&[("key", "k")], "x").await.is(403, "AccessDenied");
        let headless = w
            .req("POST", "/bucket")
            .anonymous()
            .header("content-type", "multipart/form-data; boundary=B")
            .body("--B")
            .send();
        headless.await.is(400, "MalformedPOSTRequest");
    });
}

#[test]
fn websites_are_shown() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        let visit =
            |method: &str, path: &str| w.req(method, path).anonymous().host("bucket.s3-website.local:9000").send();
        let none = visit("GET", "/").await;
        assert_eq!((none.status, none.header("content-type")), (404, "text/html; charset=utf-8"));
        for (key, text) in [("index.html", "home"), ("docs/index.html", "docs"), ("oops.html", "oops"), ("a.txt", "a")]
        {
            w.put(&format!("/bucket/{key}"), text).await.ok();
        }
        w.put("/bucket?policy", policy(r#""*""#, "s3:GetObject", "arn:aws:s3:::bucket/*")).await.ok();
        let site = "<WebsiteConfiguration><IndexDocument><Suffix>index.html</Suffix></IndexDocument><ErrorDocument><Key>oops.html</Key></ErrorDocument><RoutingRules><RoutingRule><Condition><KeyPrefixEquals>old/</KeyPrefixEquals></Condition><Redirect><ReplaceKeyPrefixWith>docs/</ReplaceKeyPrefixWith></Redirect></RoutingRule></RoutingRules></WebsiteConfiguration>";
        w.put("/bucket?website", site).await.ok();
        for (path, want) in [("/", "home"), ("/docs/", "docs"), ("/a.txt", "a")] {
            assert_eq!(visit("GET", path).await.ok().text(), want, "{path}");
        }
        let moved = visit("GET", "/docs").await;
        assert_eq!((moved.status, moved.header("location")), (302, "/docs/"));
        let moved = visit("GET", "/old/x").await;
        assert_eq!((moved.status, moved.header("location")), (301, "/docs/x"));
        let absent = visit("GET", "/absent").await;
        assert_eq!((absent.status, absent.text().as_str()), (403, "oops"));
        assert_eq!(visit("PUT", "/a.txt").await.status, 405);
        assert_eq!(visit("HEAD", "/a.txt").await.status, 200);
    });
}
