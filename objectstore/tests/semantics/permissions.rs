//! What a user may who may not do everything: permissions that headers and bodies ask for, and condition keys.

use crate::client::{ACCOUNT, Answer, Mode, OTHER, Walrus, sign_v2};
use crate::run;
use karri_objectstore::access::Facts;
use karri_objectstore::api::Peer;
use karri_objectstore::core::Caller;
use karri_objectstore::digest::base64;
use karri_objectstore::error::Kind;
use karri_objectstore::ops::condition::ReadConditions;
use karri_objectstore::ops::get::{Selection, Wanted, find};
use karri_objectstore::ops::{lock, object_acl, rename, tagging};
use karri_objectstore::route::Asked;
use karri_objectstore::versions::Which;
use s3s::dto::{ObjectLockLegalHold, ObjectLockLegalHoldStatus, ObjectLockRetention, Tagging};

fn allow(actions: &str) -> String {
    format!(r#"{{"Effect":"Allow","Action":[{actions}],"Resource":"*"}}"#)
}

fn deny(action: &str, condition: &str) -> String {
    let condition = if condition.is_empty() { String::new() } else { format!(r#","Condition":{{{condition}}}"#) };
    format!(r#"{{"Effect":"Deny","Action":"{action}","Resource":"*"{condition}}}"#)
}

fn all_but(action: &str, condition: &str) -> String {
    format!("{},{}", allow(r#""s3:*""#), deny(action, condition))
}

#[test]
fn retention_is_overridden_with_its_own_permission() {
    run(|| async {
        let w = Walrus::new().await;
        w.req("PUT", "/bucket").header("x-amz-bucket-object-lock-enabled", "true").send().await.ok();
        let upload = w.req("PUT", "/bucket/k").header("x-amz-object-lock-mode", "GOVERNANCE");
        let kept = upload.header("x-amz-object-lock-retain-until-date", "2140-01-01T00:00:00Z").body("x").send();
        let version = kept.await.ok().header("x-amz-version-id").to_owned();
        let shorter =
            "<Retention><Mode>GOVERNANCE</Mode><RetainUntilDate>2139-01-01T00:00:00Z</RetainUntilDate></Retention>";
        let retain = |document: &'static str| {
            let put = w.req("PUT", &format!("/bucket/k?retention&versionId={version}")).by("AK3").body(document);
            put.header("x-amz-bypass-governance-retention", "true").send()
        };
        let delete = || {
            let delete = w.req("DELETE", &format!("/bucket/k?versionId={version}")).by("AK3");
            delete.header("x-amz-bypass-governance-retention", "true").send()
        };
        let rights = r#""s3:PutObject","s3:GetObject","s3:PutObjectRetention","s3:DeleteObjectVersion""#;
        for policy in [allow(rights), all_but("s3:BypassGovernanceRetention", "")] {
            w.limit(&policy, None);
            retain("<Retention></Retention>").await.is(403, "AccessDenied");
            retain(shorter).await.is(403, "AccessDenied");
            delete().await.is(403, "AccessDenied");
        }
        assert_eq!(w.get("/bucket/k?retention").await.ok().one("RetainUntilDate"), "2140-01-01T00:00:00.000Z");
        w.limit(&allow(&format!(r#"{rights},"s3:BypassGovernanceRetention""#)), None);
        retain(shorter).await.ok();
        retain("<Retention></Retention>").await.ok();
        delete().await.ok();
    });
}

#[test]
fn headers_of_uploads_need_their_own_permissions() {
    run(|| async {
        let w = Walrus::new().await;
        w.req("PUT", "/bucket").header("x-amz-bucket-object-lock-enabled", "true").send().await.ok();
        w.put("/bucket/source", "x").await.ok();
        let form = |field: &str, value: &str| {
            let mut body = String::new();
            for (name, value) in [("key", "form"), (field, value)] {
                body += &format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
            }
            body += "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\nx\r\n--B--\r\n";
            let post = w.req("POST", "/bucket").anonymous().body(body);
            post.header("content-type", "multipart/form-data; boundary=B").send()
        };
        let (mode, until) = ("x-amz-object-lock-mode", "x-amz-object-lock-retain-until-date");
        for (action, headers) in [
            ("s3:PutObjectAcl", &[("x-amz-acl", "public-read")][..]),
            ("s3:PutObjectAcl", &[("x-amz-grant-read", "uri=\"http://acs.amazonaws.com/groups/global/AllUsers\"")]),
            ("s3:PutObjectTagging", &[("x-amz-tagging", "a=b")]),
            ("s3:PutObjectRetention", &[(mode, "COMPLIANCE"), (until, "2140-01-01T00:00:00Z")]),
            ("s3:PutObjectLegalHold", &[("x-amz-object-lock-legal-hold", "ON")]),
        ] {
            let uploads = async |code: &str| {
                let check = |answer: Answer| {
                    if code.is_empty() {
                        answer.ok()
                    } else {
                        answer.is(403, code)
                    };
                };
                let with = |method: &str, target: &str| {
                    let put = w.req(method, target).by("AK3");
                    headers.iter().fold(put, |put, (name, value)| put.header(name, *value))
                };
                check(with("PUT", "/bucket/k").body("x").send().await);
                check(with("PUT", "/bucket/c").header("x-amz-copy-source", "/bucket/source").send().await);
                check(with("POST", "/bucket/m?uploads").send().await);
            };
            let put = r#""s3:PutObject","s3:GetObject""#;
            w.limit(&all_but(action, ""), None);
            uploads("AccessDenied").await;
            w.limit(&allow(put), None);
            uploads("AccessDenied").await;
            w.req("PUT", "/bucket/plain").by("AK3").body("x").send().await.ok();
            w.limit(&allow(&format!(r#"{put},"{action}""#)), None);
            uploads("").await;
            // A boundary limits as ever.
            w.limit(&allow(r#""s3:*""#), Some(&allow(put)));
            uploads("AccessDenied").await;
        }
        // Forms: nobody may what the policy lets everybody put, but no more.
        let document = |actions: &str| {
            format!(
                r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Principal":"*","Action":[{actions}],"Resource":"arn:aws:s3:::bucket/*"}}]}}"#
            )
        };
        w.put("/bucket?policy", document(r#""s3:PutObject""#)).await.ok();
        let tagging = "<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>";
        form("x-ignore-x", "").await.ok();
        form("acl", "public-read").await.is(403, "AccessDenied");
        form("tagging", tagging).await.is(403, "AccessDenied");
        w.put("/bucket?policy", document(r#""s3:PutObject","s3:PutObjectAcl","s3:PutObjectTagging""#)).await.ok();
        form("acl", "public-read").await.ok();
        form("tagging", tagging).await.ok();
        // Whoever may write by the bucket's policy says for himself whose his objects' lists are, as far as his own
        // policies let him; their tags are the bucket owner's to allow.
        w.put("/bucket?policy", document(r#""s3:PutObject""#)).await.ok();
        let theirs = |name: &str, value: &str| w.req("PUT", "/bucket/t").by("AK4").header(name, value).body("x").send();
        w.limit(&allow(r#""s3:*""#), None);
        theirs("x-amz-acl", "bucket-owner-full-control").await.ok();
        theirs("x-amz-tagging", "a=b").await.is(403, "AccessDenied");
        w.limit(&all_but("s3:PutObjectAcl", ""), None);
        theirs("x-amz-acl", "bucket-owner-full-control").await.is(403, "AccessDenied");
        // By a list that lets write.
        w.req("DELETE", "/bucket?policy").send().await.ok();
        w.req("PUT", "/bucket?acl").header("x-amz-acl", "public-read-write").send().await.ok();
        form("acl", "public-read").await.ok();
        theirs("x-amz-acl", "public-read").await.is(403, "AccessDenied");
        w.limit(&allow(r#""s3:*""#), None);
        theirs("x-amz-acl", "public-read").await.ok();
        theirs("x-amz-tagging", "a=b").await.ok();
    });
}

#[test]
fn headers_of_new_buckets_need_their_own_permissions() {
    run(|| async {
        let w = Walrus::new().await;
        for (name, value, actions) in [
            ("x-amz-acl", "public-read", &["s3:PutBucketAcl"][..]),
            ("x-amz-grant-read", "uri=\"http://acs.amazonaws.com/groups/global/AllUsers\"", &["s3:PutBucketAcl"]),
            ("x-amz-object-ownership", "BucketOwnerEnforced", &["s3:PutBucketOwnershipControls"]),
            (
                "x-amz-bucket-object-lock-enabled",
                "true",
                &["s3:PutBucketObjectLockConfiguration", "s3:PutBucketVersioning"],
            ),
        ] {
            let create = || w.req("PUT", "/bucket").by("AK3").header(name, value).send();
            w.limit(&allow(r#""s3:CreateBucket""#), None);
            create().await.is(403, "AccessDenied");
            for action in actions {
                w.limit(&all_but(action, ""), None);
                create().await.is(403, "AccessDenied");
            }
            let actions: String = actions.iter().map(|a| format!(r#","{a}""#)).collect();
            w.limit(&allow(&format!(r#""s3:CreateBucket","s3:DeleteBucket"{actions}"#)), None);
            create().await.ok();
            w.req("DELETE", "/bucket").by("AK3").send().await.ok();
        }
        w.limit(&allow(r#""s3:CreateBucket""#), None);
        let plain = w.req("PUT", "/bucket").by("AK3").header("x-amz-acl", "private");
        plain.header("x-amz-object-ownership", "ObjectWriter").send().await.ok();
    });
}

#[test]
fn tags_count_in_all_policies() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        for (key, tag) in [("open", "class=open"), ("secret", "class=secret")] {
            w.req("PUT", &format!("/bucket/{key}")).header("x-amz-tagging", tag).body("x").send().await.ok();
        }
        let get = |key: &str| w.req("GET", &format!("/bucket/{key}")).by("AK3").send();
        let secret = r#""StringEquals":{"s3:ExistingObjectTag/class":"secret"}"#;
        let open = r#""StringEquals":{"s3:ExistingObjectTag/class":"open"}"#;
        let everything = allow(r#""s3:*""#);
        let allow_open =
            format!(r#"{{"Effect":"Allow","Action":"s3:GetObject","Resource":"*","Condition":{{{open}}}}}"#);
        for (policy, boundary) in [
            (all_but("s3:GetObject", secret), None),
            (allow_open.clone(), None),
            (everything.clone(), Some(all_but("s3:GetObject", secret))),
            (everything, Some(allow_open)),
        ] {
            w.limit(&policy, boundary.as_deref());
            get("open").await.ok();
            get("secret").await.is(403, "AccessDenied");
        }
    });
}

#[test]
fn bodies_say_condition_keys_too() {
    run(|| async {
        let w = Walrus::new().await;
        w.req("PUT", "/bucket").header("x-amz-bucket-object-lock-enabled", "true").send().await.ok();
        w.put("/bucket/k", "x").await.ok();
        let put =
            |what: &str, document: String| w.req("PUT", &format!("/bucket/k?{what}")).by("AK3").body(document).send();
        let tags = |class: &str| {
            put(
                "tagging",
                format!("<Tagging><TagSet><Tag><Key>class</Key><Value>{class}</Value></Tag></TagSet></Tagging>"),
            )
        };
        let by_value = r#""StringEquals":{"s3:RequestObjectTag/class":"secret"}"#;
        let by_key = r#""ForAnyValue:StringEquals":{"s3:RequestObjectTagKeys":"class"}"#;
        w.limit(&all_but("s3:PutObjectTagging", by_value), None);
        tags("open").await.ok();
        tags("secret").await.is(403, "AccessDenied");
        w.req("PUT", "/bucket/n")
            .by("AK3")
            .header("x-amz-tagging", "class=secret")
            .send()
            .await
            .is(403, "AccessDenied");
        w.limit(&all_but("s3:PutObjectTagging", by_key), None);
        tags("open").await.is(403, "AccessDenied");
        w.limit(
            r#"{"Effect":"Allow","Action":"s3:PutObjectTagging","Resource":"*","Condition":{"StringEquals":{"s3:RequestObjectTag/class":"open"}}}"#,
            None,
        );
        tags("open").await.ok();
        tags("secret").await.is(403, "AccessDenied");
        assert_eq!(w.get("/bucket/k?tagging").await.ok().one("Value"), "open");
        // The body says what is done, not a header that is ignored.
        let document = "<Tagging><TagSet><Tag><Key>owner</Key><Value>root</Value></Tag></TagSet></Tagging>";
        let lying = w.req("PUT", "/bucket/k?tagging").by("AK3").header("x-amz-tagging", "class=open").body(document);
        lying.send().await.is(403, "AccessDenied");
        assert_eq!(w.get("/bucket/k?tagging").await.ok().one("Value"), "open");
        // What waits for its body is judged all the same.
        w.limit(&format!("{},{}", allow(r#""s3:GetObject""#), deny("s3:PutObjectTagging", by_value)), None);
        tags("open").await.is(403, "AccessDenied");
        w.req("PUT", "/bucket/k?tagging").by("AK3").body("<").send().await.is(400, "MalformedXML");
        let bucket_policy = format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Deny","Principal":"*","Action":"s3:PutObjectTagging","Resource":"arn:aws:s3:::bucket/*","Condition":{{{by_value}}}}}]}}"#
        );
        w.put("/bucket?policy", bucket_policy).await.ok();
        w.limit(&allow(r#""s3:*""#), None);
        tags("secret").await.is(403, "AccessDenied");
        tags("open").await.ok();
        w.req("DELETE", "/bucket?policy").send().await.ok();

        let retain = |mode: &str, days: u64| {
            let until = time::OffsetDateTime::from(std::time::UNIX_EPOCH + crate::client::now());
            let until = until + time::Duration::days(days as i64);
            let until = until.format(&time::format_description::well_known::Rfc3339).unwrap();
            put(
                "retention",
                format!("<Retention><Mode>{mode}</Mode><RetainUntilDate>{until}</RetainUntilDate></Retention>"),
            )
        };
        let long = r#""NumericGreaterThan":{"s3:object-lock-remaining-retention-days":"10"}"#;
        w.limit(&all_but("s3:PutObjectRetention", long), None);
        retain("GOVERNANCE", 11).await.is(403, "AccessDenied");
        retain("GOVERNANCE", 9).await.ok();
        w.limit(&all_but("s3:PutObjectRetention", r#""StringEquals":{"s3:object-lock-mode":"COMPLIANCE"}"#), None);
        retain("COMPLIANCE", 20).await.is(403, "AccessDenied");
        retain("GOVERNANCE", 20).await.ok();
        let governed = r#""StringEquals":{"s3:object-lock-mode":"GOVERNANCE"}"#;
        let put_retention = format!(
            r#"{{"Effect":"Allow","Action":"s3:PutObjectRetention","Resource":"*","Condition":{{{governed}}}}}"#
        );
        w.limit(&put_retention, None);
        w.put("/bucket/free", "x").await.ok();
        let none = w.req("PUT", "/bucket/free?retention").by("AK3").header("x-amz-object-lock-mode", "GOVERNANCE");
        let none = none.header("x-amz-object-lock-retain-until-date", "2140-01-01T00:00:00Z");
        none.body("<Retention></Retention>").send().await.is(403, "AccessDenied");
        let hold = |status: &str| put("legal-hold", format!("<LegalHold><Status>{status}</Status></LegalHold>"));
        w.limit(&all_but("s3:PutObjectLegalHold", r#""StringEquals":{"s3:object-lock-legal-hold":"OFF"}"#), None);
        hold("ON").await.ok();
        hold("OFF").await.is(403, "AccessDenied");

        let place =
            "<CreateBucketConfiguration><LocationConstraint>us-east-1</LocationConstraint></CreateBucketConfiguration>";
        let create = |document: &'static str| w.req("PUT", "/placed").by("AK3").body(document).send();
        w.limit(&all_but("s3:CreateBucket", r#""StringNotEquals":{"s3:LocationConstraint":"us-east-1"}"#), None);
        create("").await.is(403, "AccessDenied");
        create(place).await.ok();
        w.req("DELETE", "/placed").send().await.ok();
        w.limit(&all_but("s3:CreateBucket", r#""StringEquals":{"s3:LocationConstraint":"us-east-1"}"#), None);
        create(place).await.is(403, "AccessDenied");
        create("").await.ok();
    });
}

#[test]
fn copies_of_tags_are_reading_and_writing_them() {
    run(|| async {
        let w = Walrus::new().await;
        for bucket in ["/source", "/target"] {
            w.put(bucket, "").await.ok();
        }
        for (key, tags) in [("secret", "class=secret"), ("public", "class=public"), ("plain", "")] {
            let upload = w.req("PUT", &format!("/source/{key}")).header("x-amz-acl", "public-read").body("x");
            upload.header("x-amz-tagging", tags).send().await.ok();
        }
        let copy = |by: &'static str, key: &str| {
            let bucket = if by == "AK3" { "/target" } else { "/theirs" };
            w.req("PUT", &format!("{bucket}/{key}")).by(by).header("x-amz-copy-source", format!("/source/{key}"))
        };
        let replaced = |by, key| copy(by, key).header("x-amz-tagging-directive", "REPLACE");
        w.req("PUT", "/theirs").by("AK2").send().await.ok();
        // Another account's object may be read, its tags may not.
        copy("AK2", "plain").send().await.ok();
        replaced("AK2", "secret").send().await.ok();
        copy("AK2", "secret").send().await.is(403, "AccessDenied");
        let reads = format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Principal":{{"AWS":"{OTHER}"}},"Action":"s3:GetObjectTagging","Resource":"arn:aws:s3:::source/secret"}}]}}"#
        );
        w.put("/source?policy", reads).await.ok();
        copy("AK2", "secret").send().await.ok();
        copy("AK2", "public").send().await.is(403, "AccessDenied");
        assert_eq!(w.req("GET", "/theirs/secret?tagging").by("AK2").send().await.ok().one("Value"), "secret");
        w.req("DELETE", "/source?policy").send().await.ok();

        w.limit(&all_but("s3:PutObjectTagging", ""), None);
        copy("AK3", "plain").send().await.ok();
        replaced("AK3", "secret").send().await.ok();
        copy("AK3", "secret").send().await.is(403, "AccessDenied");
        w.limit(&all_but("s3:GetObjectTagging", ""), None);
        copy("AK3", "secret").send().await.is(403, "AccessDenied");
        for action in ["s3:PutObjectTagging", "s3:PutObject"] {
            let secret = r#""StringEquals":{"s3:RequestObjectTag/class":"secret"}"#;
            w.limit(&all_but(action, secret), None);
            copy("AK3", "public").send().await.ok();
            copy("AK3", "secret").send().await.is(403, "AccessDenied");
            copy("AK3", "secret").header("x-amz-tagging", "class=public").send().await.is(403, "AccessDenied");
            replaced("AK3", "secret").header("x-amz-tagging", "class=public").send().await.ok();
            replaced("AK3", "public").header("x-amz-tagging", "class=secret").send().await.is(403, "AccessDenied");
        }
        let public = r#"{"Effect":"Allow","Action":"s3:PutObjectTagging","Resource":"*","Condition":{"StringEquals":{"s3:RequestObjectTag/class":"public"}}}"#;
        w.limit(&format!("{},{public}", allow(r#""s3:Get*","s3:PutObject""#)), None);
        copy("AK3", "public").send().await.ok();
        copy("AK3", "secret").header("x-amz-tagging", "class=public").send().await.is(403, "AccessDenied");
        assert_eq!(w.get("/target/public?tagging").await.ok().one("Value"), "public");
    });
}

#[test]
fn what_is_read_is_what_was_judged() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        let (conditions, selection) = (ReadConditions::default(), Selection::Whole);
        let facts = || Facts {
            operation: "GetObject",
            bucket: Some("bucket".into()),
            key: Some("k".into()),
            ..Facts::default()
        };
        let read = |caller: Caller| {
            let (core, conditions, selection) = (&w.core, &conditions, &selection);
            async move {
                let (bucket, key, which) = ("bucket", "k", Which::Current);
                let wanted =
                    Wanted { bucket, key, which, owner: None, conditions, selection, copying: false, customer: None };
                find(core, &caller, &wanted).await.map(drop).map_err(|e| e.kind)
            }
        };
        let open = r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::bucket/*","Condition":{"StringEquals":{"s3:ExistingObjectTag/class":"open"}}}"#;
        let list = r#"{"Effect":"Allow","Principal":"*","Action":"s3:ListBucket","Resource":"arn:aws:s3:::bucket"}"#;
        w.put("/bucket?policy", format!(r#"{{"Version":"2012-10-17","Statement":[{open},{list}]}}"#)).await.ok();
        // Absent, then there; open, then secret.
        let absent = w.core.admit(facts()).await.unwrap();
        assert_eq!(read(absent.clone()).await, Err(Kind::NoSuchKey));
        let put = |class: &str| w.req("PUT", "/bucket/k").header("x-amz-tagging", format!("class={class}")).body("x");
        put("secret").send().await.ok();
        assert_eq!(read(absent).await, Err(Kind::AccessDenied));
        put("open").send().await.ok();
        let admitted = w.core.admit(facts()).await.unwrap();
        assert_eq!(read(admitted.clone()).await, Ok(()));
        put("secret").send().await.ok();
        assert_eq!(read(admitted).await, Err(Kind::AccessDenied));
    });
}

#[test]
fn what_is_told_and_changed_is_what_was_judged() {
    const OPERATIONS: [&str; 9] = [
        "GetObjectTagging",
        "PutObjectTagging",
        "DeleteObjectTagging",
        "GetObjectAcl",
        "PutObjectAcl",
        "GetObjectRetention",
        "PutObjectRetention",
        "GetObjectLegalHold",
        "PutObjectLegalHold",
    ];
    run(|| async {
        let w = Walrus::new().await;
        w.req("PUT", "/bucket").header("x-amz-bucket-object-lock-enabled", "true").send().await.ok();
        let open = |tag: &str, more: &str| {
            format!(
                r#"{{"Effect":"Allow","Principal":"*","Action":"s3:*","Resource":"arn:aws:s3:::bucket/*","Condition":{{"StringEquals":{{"s3:ExistingObjectTag/class":"{tag}"}}{more}}}}}"#
            )
        };
        let put = |class: &str| {
            let put = w.req("PUT", "/bucket/k").header("x-amz-tagging", format!("class={class}")).body("x");
            put.header("x-amz-object-lock-legal-hold", "OFF")
        };
        let admit = |operation: &'static str| {
            let (bucket, key) = (Some("bucket".to_owned()), Some("k".to_owned()));
            w.core.admit(Facts { operation, bucket, key, ..Facts::default() })
        };
        // A policy on what only the body says: judged when that is read, and by the record, too.
        let bodies = r#","StringNotEquals":{"s3:RequestObjectTag/class":"secret","s3:object-lock-mode":"COMPLIANCE","s3:object-lock-legal-hold":"x"}"#;
        for more in ["", bodies] {
            let policy = format!(r#"{{"Version":"2012-10-17","Statement":[{}]}}"#, open("open", more));
            w.put("/bucket?policy", policy).await.ok();
            for operation in OPERATIONS {
                put("open").send().await.ok();
                let caller = admit(operation).await.unwrap();
                let done = carry_out(&w, operation, &caller).await;
                assert_ne!(done, Err(Kind::AccessDenied), "{operation}");
                put("open").send().await.ok();
                let caller = admit(operation).await.unwrap();
                put("secret").send().await.ok();
                let done = carry_out(&w, operation, &caller).await;
                assert_eq!(done, Err(Kind::AccessDenied), "{operation}");
            }
        }
    });
}

#[test]
fn what_is_renamed_is_what_was_judged() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/plain", "").await.ok();
        let policy = r#"{"Version":"2012-10-17","Statement":[
            {"Effect":"Allow","Principal":"*","Action":"s3:PutObject","Resource":"arn:aws:s3:::plain/to"},
            {"Effect":"Allow","Principal":"*","Action":"s3:DeleteObject","Resource":"arn:aws:s3:::plain/k"},
            {"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::plain/k","Condition":
                {"StringEquals":{"s3:ExistingObjectTag/class":"open"}}}]}"#;
        w.put("/plain?policy", policy).await.ok();
        let headers = http::HeaderMap::from_iter([("x-amz-rename-source".parse().unwrap(), "k".parse().unwrap())]);
        let asked = rename::Rename::parse("plain", "to", &headers).unwrap();
        for (class, want) in [("secret", Err(Kind::AccessDenied)), ("open", Ok(()))] {
            let (bucket, key) = (Some("plain".to_owned()), Some("to".to_owned()));
            let facts = Facts { operation: "RenameObject", bucket, key, ..Facts::default() };
            let caller = w.core.admit(facts).await.unwrap();
            w.req("PUT", "/plain/k").header("x-amz-tagging", format!("class={class}")).body("x").send().await.ok();
            let done = rename::rename_object(&w.core, &caller, &asked).await;
            assert_eq!(done.map_err(|e| e.kind), want, "{class}");
        }
    });
}

#[test]
fn strangers_learn_nothing_of_locks() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/plain", "").await.ok();
        w.req("PUT", "/locked").header("x-amz-bucket-object-lock-enabled", "true").send().await.ok();
        for bucket in ["plain", "locked"] {
            let policy = format!(
                r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Deny","Principal":"*","Action":"s3:*","Resource":"arn:aws:s3:::{bucket}/*",
                    "Condition":{{"StringEquals":{{"s3:object-lock-mode":"COMPLIANCE","s3:object-lock-legal-hold":"ON"}}}}}}]}}"#
            );
            w.put(&format!("/{bucket}?policy"), policy).await.ok();
            for (what, body) in [
                ("legal-hold", "<LegalHold><Status>ON</Status></LegalHold>"),
                (
                    "retention",
                    "<Retention><Mode>GOVERNANCE</Mode><RetainUntilDate>2140-01-01T00:00:00Z</RetainUntilDate></Retention>",
                ),
            ] {
                let asked = w.req("PUT", &format!("/{bucket}/k?{what}")).anonymous().body(body);
                asked.send().await.is(403, "AccessDenied");
            }
        }
    });
}

/// An operation on `/bucket/k`, let in before.
async fn carry_out(w: &Walrus, operation: &str, caller: &Caller) -> Result<(), Kind> {
    macro_rules! call {
        ($f:path, $input:ident $(, $set:ident($value:expr))*) => {{
            let input = s3s::dto::$input::builder().bucket("bucket".into()).key("k".into());
            $f(&w.core, caller, input$(.$set($value))*.build().unwrap()).await.map(drop)
        }};
    }
    let headers = http::HeaderMap::from_iter([("x-amz-acl".parse().unwrap(), "private".parse().unwrap())]);
    let document = bytes::Bytes::new();
    let asked = Asked {
        core: &w.core,
        caller,
        bucket: "bucket",
        key: "k",
        version: None,
        headers: &headers,
        document: &document,
    };
    let hold = ObjectLockLegalHold { status: Some(ObjectLockLegalHoldStatus::from_static("ON")) };
    let done = match operation {
        "GetObjectTagging" => call!(tagging::get_object_tagging, GetObjectTaggingInput),
        "PutObjectTagging" => {
            call!(tagging::put_object_tagging, PutObjectTaggingInput, tagging(Tagging { tag_set: vec![] }))
        }
        "DeleteObjectTagging" => call!(tagging::delete_object_tagging, DeleteObjectTaggingInput),
        "GetObjectAcl" => object_acl::get(&asked).await.map(drop),
        "PutObjectAcl" => object_acl::put(&asked).await.map(drop),
        "GetObjectRetention" => call!(lock::get_object_retention, GetObjectRetentionInput),
        "PutObjectRetention" => {
            let none = ObjectLockRetention { mode: None, retain_until_date: None };
            call!(lock::put_object_retention, PutObjectRetentionInput, retention(Some(none)))
        }
        "GetObjectLegalHold" => call!(lock::get_object_legal_hold, GetObjectLegalHoldInput),
        "PutObjectLegalHold" => call!(lock::put_object_legal_hold, PutObjectLegalHoldInput, legal_hold(Some(hold))),
        _ => panic!("{operation}"),
    };
    done.map_err(|e| e.kind)
}

#[test]
fn requests_have_a_region_and_an_age() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        let get = || w.req("GET", "/bucket").by("AK3");
        w.limit(&all_but("*", r#""StringNotEquals":{"aws:RequestedRegion":"us-east-1"}"#), None);
        get().send().await.ok();
        w.limit(&all_but("*", r#""StringNotEquals":{"aws:RequestedRegion":"eu-west-1"}"#), None);
        get().send().await.is(403, "AccessDenied");
        w.limit(&all_but("*", r#""NumericGreaterThan":{"s3:signatureAge":"100000"}"#), None);
        get().send().await.ok();
        get().header("test-age", "200").send().await.is(403, "AccessDenied");
        let presigned = || get().mode(Mode::Presigned(600));
        presigned().send().await.ok();
        presigned().header("test-age", "200").send().await.is(403, "AccessDenied");
        assert_eq!(w.get("/bucket?acl").await.ok().all("ID"), [ACCOUNT, ACCOUNT]);
    });
}

#[test]
fn the_version_of_tls_is_a_condition() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        w.put("/bucket/k", "x").await.ok();
        let get = |tls: Option<&'static str>| {
            w.req("GET", "/bucket/k").by("AK3").send_with(move |r| {
                r.extensions_mut().insert(Peer { secure: tls.is_some(), tls, ..Peer::default() });
            })
        };
        w.limit(&all_but("*", r#""NumericLessThan":{"s3:TlsVersion":"1.3"}"#), None);
        get(Some("1.2")).await.is(403, "AccessDenied");
        get(Some("1.3")).await.ok();
        get(None).await.ok();
        w.limit(&all_but("*", r#""NumericLessThanIfExists":{"s3:TlsVersion":"1.2"}"#), None);
        get(Some("1.2")).await.ok();
        get(None).await.is(403, "AccessDenied");
    });
}

/// The fields of a form whose policy, signed by AK1, allows files of so many bytes.
fn signed_policy(max: u64) -> String {
    let policy = format!(
        r#"{{"expiration":"2140-01-01T00:00:00Z","conditions":[{{"bucket":"bucket"}},["starts-with","$key",""],["content-length-range",0,{max}]]}}"#
    );
    let policy = base64(policy.as_bytes());
    let signature = sign_v2(&policy);
    let field =
        |name: &str, value: &str| format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
    field("AWSAccessKeyId", "AK1") + &field("policy", &policy) + &field("signature", &signature)
}

#[test]
fn usage_is_a_condition() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        w.put("/other", "").await.ok();
        let put = |key: &str, len: usize| w.req("PUT", &format!("/bucket/{key}")).by("AK3").body(vec![1; len]).send();
        let above =
            |key: &str, n: u32| all_but("s3:PutObject", &format!(r#""NumericGreaterThan":{{"karri:{key}":"{n}"}}"#));
        w.limit(&above("BucketBytes", 100), None);
        put("a", 101).await.is(403, "AccessDenied");
        put("a", 100).await.ok();
        put("b", 1).await.is(403, "AccessDenied");
        // What it replaces is given back.
        put("a", 90).await.ok();
        put("b", 10).await.ok();
        // Lengths that nobody holds the body to do not count, and no length is no small one; of a chunked body the decoded
        // length is enough, and held to.
        let upload = |n: usize| w.req("PUT", "/bucket/b").by("AK3").body(vec![1; n]);
        upload(11).header("x-amz-decoded-content-length", "0").send().await.is(403, "AccessDenied");
        let unsaid = |request: &mut http::Request<_>| drop(request.headers_mut().remove("content-length"));
        upload(5).mode(Mode::Unsigned).send_with(unsaid).await.is(403, "AccessDenied");
        for mode in [Mode::Chunks(8192), Mode::Trailer, Mode::ChunksTrailer(8192)] {
            upload(11).mode(mode).send_with(unsaid).await.is(403, "AccessDenied");
            upload(10).mode(mode).send_with(unsaid).await.ok();
            upload(10)
                .mode(mode)
                .send_with(|request| {
                    unsaid(request);
                    request.headers_mut().insert("x-amz-decoded-content-length", "9".parse().unwrap());
                })
                .await
                .is(403, "SignatureDoesNotMatch");
        }
        upload(11).mode(Mode::Chunks(8192)).send().await.is(403, "AccessDenied");
        upload(10).mode(Mode::Chunks(8192)).send().await.ok();
        let id = w.req("POST", "/bucket/m?uploads").by("AK3").send().await.ok().one("UploadId");
        let part = w.req("PUT", &format!("/bucket/m?partNumber=1&uploadId={id}")).by("AK3").body("part");
        part.send().await.is(403, "AccessDenied");
        w.limit(&above("BucketObjects", 2), None);
        put("c", 0).await.is(403, "AccessDenied");
        put("b", 1_000).await.ok();
        w.put("/other/x", vec![1; 1_000]).await.ok();
        w.limit(&above("AccountBytes", 2_100), None);
        put("c", 11).await.is(403, "AccessDenied");
        put("c", 10).await.ok();
        w.limit(&above("AccountObjects", 4), None);
        put("d", 0).await.is(403, "AccessDenied");
        put("c", 0).await.ok();
        // A bucket's policy binds strangers, too; other operations have no such keys.
        let deny = r#"{"Effect":"Deny","Principal":"*","Action":"s3:*","Resource":"arn:aws:s3:::bucket/*","Condition":{"NumericGreaterThan":{"karri:BucketBytes":"0"}}}"#;
        w.put("/bucket?policy", format!(r#"{{"Version":"2012-10-17","Statement":[{deny}]}}"#)).await.ok();
        w.put("/bucket/e", "x").await.is(403, "AccessDenied");
        w.req("PUT", "/bucket?acl").header("x-amz-acl", "public-read-write").send().await.ok();
        // A file is no longer than its form, nor than the form's policy allows; one with neither may be of any length.
        let form = |said: bool, more: &str| {
            let form = format!(
                "--B\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\ne\r\n{more}--B\r\nContent-Disposition: \
                 form-data; name=\"file\"\r\n\r\nx\r\n--B--\r\n"
            );
            let post = w.req("POST", "/bucket").anonymous();
            let post = post.header("content-type", "multipart/form-data; boundary=B").body(form);
            post.send_with(move |request| {
                if !said {
                    unsaid(request);
                }
            })
        };
        form(true, "").await.is(403, "AccessDenied");
        let limit = |n: u64| {
            let deny = deny.replace(r#":"0""#, &format!(r#":"{n}""#));
            w.put("/bucket?policy", format!(r#"{{"Version":"2012-10-17","Statement":[{deny}]}}"#))
        };
        let there: u64 = w.get("/bucket?usage").await.ok().one("Bytes").parse().unwrap();
        // The file and the boundary after it are ten bytes.
        limit(there + 9).await.ok();
        form(true, "").await.is(403, "AccessDenied");
        limit(there + 10).await.ok();
        form(true, "").await.ok();
        limit(1 << 40).await.ok();
        form(false, "").await.is(403, "AccessDenied");
        form(false, &signed_policy(100)).await.ok();
        limit(i64::MAX as u64).await.ok();
        form(false, "").await.ok();
        w.get("/bucket/a").await.ok();
    });
}
