//! Server access logs: set up as S3 sets them up, and written.

use std::time::Duration;

use karri_objectstore::delivery;

use crate::client::{ACCOUNT, Mode, OTHER, Walrus};
use crate::run;

fn status(inner: &str) -> String {
    format!("<BucketLoggingStatus><LoggingEnabled>{inner}</LoggingEnabled></BucketLoggingStatus>")
}

fn target(bucket: &str, prefix: &str) -> String {
    format!("<TargetBucket>{bucket}</TargetBucket><TargetPrefix>{prefix}</TargetPrefix>")
}

fn policy(resource: &str, account: &str) -> String {
    format!(
        r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Principal":{{"Service":"logging.s3.amazonaws.com"}},"Action":"s3:PutObject","Resource":"arn:aws:s3:::{resource}","Condition":{{"ArnLike":{{"aws:SourceArn":"arn:aws:s3:::bucket"}},"StringEquals":{{"aws:SourceAccount":"{account}"}}}}}}]}}"#
    )
}

#[test]
fn targets_are_checked() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        w.put("/logs", "").await.ok();
        w.req("PUT", "/theirs").by("AK2").send().await.ok();
        let set = |inner: String| w.put("/bucket?logging", status(&inner));
        set(target("absent", "")).await.is(400, "InvalidTargetBucketForLogging");
        set(target("theirs", "")).await.is(400, "InvalidTargetBucketForLogging");
        set(target("logs", "l/")).await.is(403, "AccessDenied");
        for (resource, account, fits) in [
            ("logs/other*", ACCOUNT, false),
            ("logs/l/*", OTHER, false),
            ("logs/l/*", ACCOUNT, true),
            ("logs/l/", ACCOUNT, true),
            ("logs/*", ACCOUNT, true),
        ] {
            w.put("/logs?policy", policy(resource, account)).await.ok();
            let answer = set(target("logs", "l/")).await;
            assert_eq!(answer.status == 200, fits, "{resource} {account}: {}", answer.text());
        }
        assert_eq!(w.get("/bucket?logging").await.ok().one("TargetPrefix"), "l/");
        let everybody = policy("logs/*", ACCOUNT).replace(r#"{"Service":"logging.s3.amazonaws.com"}"#, r#""*""#);
        w.put("/logs?policy", everybody).await.ok();
        set(target("logs", "l/")).await.is(403, "AccessDenied");
        w.req("DELETE", "/logs?policy").send().await.ok();
        set(target("logs", "l/")).await.is(403, "AccessDenied");
        w.req("PUT", "/logs?acl").header("x-amz-acl", "log-delivery-write").send().await.ok();
        set(target("logs", &"x".repeat(900))).await.is(400, "InvalidArgument");
        let grants = |who: &str| {
            let grantee =
                "<Grantee xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xsi:type=\"CanonicalUser\">";
            let grant = format!("<Grant>{grantee}<ID>{who}</ID></Grantee><Permission>READ</Permission></Grant>");
            target("logs", "l/") + &format!("<TargetGrants>{grant}</TargetGrants>")
        };
        set(grants("nobody")).await.is(400, "InvalidArgument");
        let group = "<Grantee xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xsi:type=\"Group\"><URI>http://acs.amazonaws.com/groups/global/AllUsers</URI></Grantee>";
        let public = format!("<TargetGrants><Grant>{group}<Permission>READ</Permission></Grant></TargetGrants>");
        let block =
            "<PublicAccessBlockConfiguration><BlockPublicAcls>true</BlockPublicAcls></PublicAccessBlockConfiguration>";
        set(target("logs", "l/") + &public).await.ok();
        w.put("/logs?publicAccessBlock", block).await.ok();
        set(target("logs", "l/") + &public).await.is(403, "AccessDenied");
        // Put before: the logs come, the public does not get them.
        w.get("/bucket").await.ok();
        delivery::deliver(&w.core, Duration::ZERO).await;
        let log = format!("/logs/{}", w.get("/logs").await.ok().one("Key"));
        assert!(log.starts_with("/logs/l/"), "{log}");
        w.req("GET", &log).anonymous().send().await.is(403, "AccessDenied");
        w.req("DELETE", "/logs?publicAccessBlock").send().await.ok();
        set(grants(OTHER)).await.ok();
        assert!(w.get("/bucket?logging").await.ok().text().contains("xsi:type=\"CanonicalUser\""));
        let controls = "<OwnershipControls><Rule><ObjectOwnership>BucketOwnerEnforced</ObjectOwnership></Rule></OwnershipControls>";
        w.req("PUT", "/logs?acl").header("x-amz-acl", "private").send().await.ok();
        w.put("/logs?policy", policy("logs/*", ACCOUNT)).await.ok();
        w.put("/logs?ownershipControls", controls).await.ok();
        set(grants(OTHER)).await.is(400, "InvalidBucketAclWithObjectOwnership");
        set(target("logs", "l/")).await.ok();
        w.put("/bucket?logging", "<BucketLoggingStatus/>").await.ok();
        assert!(!w.get("/bucket?logging").await.ok().text().contains("LoggingEnabled"));
    });
}

#[test]
fn requests_become_lines() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        w.put("/logs", "").await.ok();
        w.put("/bucket/quiet", "not logged").await.ok();
        w.req("PUT", "/logs?acl").header("x-amz-acl", "log-delivery-write").send().await.ok();
        let grantee = "<Grantee><ID>000000000002</ID></Grantee>";
        let grants = format!("<TargetGrants><Grant>{grantee}<Permission>READ</Permission></Grant></TargetGrants>");
        w.put("/bucket?logging", status(&(target("logs", "l/") + &grants))).await.ok();

        let put = w.req("PUT", "/bucket/a b").header("user-agent", "x \"y\"").body(vec![7; 70_000]).send().await.ok();
        w.req("GET", "/bucket/a b").header("range", "bytes=10-19").send().await.ok();
        w.req("GET", "/bucket/a b").send().await.ok();
        w.get("/bucket/absent").await.is(404, "NoSuchKey");
        w.req("GET", "/bucket/a b").anonymous().send().await.is(403, "AccessDenied");
        w.req("GET", "/bucket/a b").by("AK2").send().await.is(403, "AccessDenied");
        w.req("GET", "/bucket/a b").mode(Mode::Presigned(60)).send().await.ok();
        w.req("PUT", "/bucket/a b?acl").header("x-amz-acl", "public-read").send().await.ok();
        w.req("GET", "/bucket/a b").anonymous().send().await.ok();
        w.req("DELETE", "/bucket/a b").send().await.ok();
        w.get("/logs").await.ok();

        delivery::deliver(&w.core, Duration::from_secs(3600)).await;
        assert_eq!(w.get("/logs").await.ok().all("Key"), [""; 0], "not yet");
        delivery::deliver(&w.core, Duration::ZERO).await;
        let keys = w.get("/logs").await.ok().all("Key");
        assert!(keys.len() == 1 && keys[0].starts_with("l/20"), "{keys:?}");
        let log = format!("/logs/{}", keys[0]);
        assert_eq!(w.req("GET", &log).by("AK2").send().await.ok().header("content-type"), "text/plain");
        let text = w.get(&log).await.ok().text();
        let lines: Vec<&str> = text.lines().collect();
        let after_time = |line: &str| line.split_once("] ").unwrap().1.to_owned();
        let want = [
            ("REST.PUT.OBJECT a%20b", " 200 - - 70000 "),
            ("REST.GET.OBJECT a%20b", " 206 - 10 70000 "),
            ("REST.GET.OBJECT a%20b", " 200 - 70000 70000 "),
            ("REST.GET.OBJECT absent", " 404 NoSuchKey "),
            ("REST.GET.OBJECT a%20b", " 403 AccessDenied "),
            ("REST.GET.OBJECT a%20b", " 403 AccessDenied "),
            ("REST.GET.OBJECT a%20b", " 200 - 70000 70000 "),
            ("REST.PUT.ACL a%20b", " 200 - "),
            ("REST.GET.OBJECT a%20b", " 200 - 70000 70000 "),
            ("REST.DELETE.OBJECT a%20b", " 204 - "),
        ];
        assert_eq!(lines.len(), want.len(), "{text}");
        for (line, (operation, outcome)) in lines.iter().zip(want) {
            assert!(line.starts_with(&format!("{ACCOUNT} bucket [")), "{line}");
            assert!(
                line.contains(&format!(" {operation} \"")) && line.contains(outcome),
                "{line}\n{operation}{outcome}"
            );
        }
        assert!(after_time(lines[0]).contains(put.header("x-amz-request-id")), "{}", lines[0]);
        assert!(lines[0].contains(" \"x %22y%22\" ") && lines[0].contains(" \"PUT /bucket/a%20b HTTP/1.1\" "));
        assert!(lines[0].contains("arn:aws:iam::000000000001:user/admin") && lines[0].contains(" SigV4 - AuthHeader "));
        assert!(after_time(lines[4]).starts_with("- - "), "nobody: {}", lines[4]);
        assert!(lines[5].contains("arn:aws:iam::000000000002:user/admin"), "known though refused: {}", lines[5]);
        assert!(lines[6].contains(" SigV4 - QueryString "), "{}", lines[6]);
        assert!(lines[8].ends_with(" - - Yes") && lines[2].ends_with(" - - -"), "{}", lines[8]);

        // A target that may not be written any more loses its lines and nothing else.
        w.req("PUT", "/logs?acl").header("x-amz-acl", "private").send().await.ok();
        w.get("/bucket/quiet").await.ok();
        delivery::deliver(&w.core, Duration::ZERO).await;
        assert_eq!(w.get("/logs").await.ok().all("Key").len(), 1);
    });
}

#[test]
fn keys_of_delete_objects_and_sources_of_copies_have_lines_of_their_own() {
    run(|| async {
        let w = Walrus::new().await;
        for bucket in ["/bucket", "/quiet", "/logs"] {
            w.put(bucket, "").await.ok();
        }
        w.req("PUT", "/logs?acl").header("x-amz-acl", "log-delivery-write").send().await.ok();
        for key in ["a b", "c"] {
            w.put(&format!("/bucket/{key}"), "hello").await.ok();
        }
        w.put("/bucket?logging", status(&target("logs", "l/"))).await.ok();
        let copy = |target: &str, from: &str| w.req("PUT", target).header("x-amz-copy-source", from).send();
        copy("/quiet/k", "/bucket/a%20b").await.ok();
        copy("/bucket/d", "/bucket/c").await.ok();
        copy("/quiet/k", "/bucket/absent").await.is(404, "NoSuchKey");
        copy("/bucket/e", "/quiet/k").await.ok();
        let id = w.req("POST", "/quiet/m?uploads").send().await.ok().one("UploadId");
        copy(&format!("/quiet/m?partNumber=1&uploadId={id}"), "/bucket/c").await.ok();
        let long = "k".repeat(1_025);
        let keys = ["a b", "c", "absent", &long].map(|key| format!("<Object><Key>{key}</Key></Object>")).concat();
        let named = |key: &str, id: &str| format!("<Object><Key>{key}</Key><VersionId>{id}</VersionId></Object>");
        let keys = keys + &named("v1", "null") + &named("v2", "0 1 - Yes");
        let document = format!("<Delete><Quiet>true</Quiet>{keys}</Delete>");
        let sum = karri_objectstore::digest::base64(&karri_objectstore::digest::md5(document.as_bytes()));
        let delete = || {
            let request = w.req("POST", "/bucket?delete").header("content-md5", sum.as_str()).body(document.clone());
            request.header("referer", "from").header("user-agent", "agent")
        };
        delete().send().await.ok();
        // Let in as far as each key goes, and then refused each: one line.
        delete().anonymous().send().await;
        delivery::deliver(&w.core, Duration::ZERO).await;
        let key = w.get("/logs").await.ok().one("Key");
        let text = w.get(&format!("/logs/{key}")).await.ok().text();
        let mut lines: Vec<&str> = text.lines().collect();
        let mut is_there = |parts: &[&str]| {
            let at = lines.iter().position(|line| parts.iter().all(|part| line.contains(part)));
            assert!(
                lines
                    .remove(at.unwrap_or_else(|| panic!("{parts:?}\n{text}")))
                    .starts_with(&format!("{ACCOUNT} bucket ["))
            );
        };
        is_there(&[" REST.COPY.OBJECT_GET a%20b \"GET /bucket/a%20b HTTP/1.1\" 200 - - 5 "]);
        is_there(&[" REST.COPY.OBJECT_GET c ", " 200 - - 5 "]);
        is_there(&[" REST.COPY.OBJECT d ", " 200 "]);
        is_there(&[" REST.COPY.OBJECT_GET absent ", " 404 NoSuchKey - - "]);
        is_there(&[" REST.COPY.OBJECT e ", " 200 "]);
        is_there(&[" REST.COPY.PART_GET c ", " 200 - - 5 "]);
        is_there(&[" REST.POST.MULTI_OBJECT_DELETE - ", ":user/admin ", " \"from\" \"agent\" "]);
        is_there(&[" REST.POST.MULTI_OBJECT_DELETE - ", " \"from\" \"agent\" "]);
        is_there(&[" BATCH.DELETE.OBJECT v1 \"-\" 204 - - - ", " \"-\" \"-\" null "]);
        is_there(&[" BATCH.DELETE.OBJECT v2 \"-\" 400 InvalidArgument - - ", " \"-\" \"-\" - "]);
        for key in ["a%20b", "c", "absent"] {
            is_there(&[
                &format!(" BATCH.DELETE.OBJECT {key} \"-\" 204 - - - "),
                "arn:aws:iam::000000000001:user/admin",
            ]);
        }
        is_there(&[" BATCH.DELETE.OBJECT kkk", " 400 KeyTooLongError "]);
        assert!(lines.is_empty(), "{lines:?}");
    });
}
