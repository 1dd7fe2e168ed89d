//! SSE-S3, SSE-KMS and SSE-C: what comes back, to whom, and that nothing lies in the clear.

use crate::client::{Req, Walrus};
use crate::{data, run};

const KEY: &str = "pO3upElrwuEXSoFwCfnZPdSsmt/xWeFa0N9KgDijwVs=";
const MD5: &str = "DWygnHRtgiJ77HCm+1rvHw==";
const OTHER_KEY: &str = "6b+WOZ1T3cqZMxgThRcXAQBrS5mXKdDUphvpxptl9/4=";
const OTHER_MD5: &str = "arxBvwY2V4SiOne6yppVPQ==";

fn customer<'w>(req: Req<'w>, of: &str, key: &str, md5: &str) -> Req<'w> {
    let name = |rest: &str| format!("x-amz-{of}server-side-encryption-customer-{rest}");
    req.header(&name("algorithm"), "AES256").header(&name("key"), key).header(&name("key-md5"), md5)
}

/// True when any stored byte run shows this text.
fn shows(w: &Walrus, text: &[u8]) -> bool {
    w.meta.dump().iter().any(|(_, v)| v.windows(text.len()).any(|b| b == text))
}

#[test]
fn encrypted_objects_come_back() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        for (kind, id) in [("AES256", None), ("aws:kms", Some("a-key")), ("aws:kms", None)] {
            for len in [0usize, 1, 32_768, 32_769, 65_535, 65_536, 65_537, 262_144, 262_145, 700_001] {
                let body = data(len);
                let mut put = w.req("PUT", "/bucket/k").header("x-amz-server-side-encryption", kind).body(body.clone());
                if let Some(id) = id {
                    put = put.header("x-amz-server-side-encryption-aws-kms-key-id", id);
                }
                let put = put.send().await.ok();
                assert_eq!(put.header("x-amz-server-side-encryption"), kind);
                let got = w.get("/bucket/k").await.ok();
                assert!(got.body == body, "{kind} {len}");
                assert_eq!(got.header("x-amz-server-side-encryption"), kind);
                if kind == "aws:kms" {
                    let shown = got.header("x-amz-server-side-encryption-aws-kms-key-id");
                    assert_eq!(shown, id.unwrap_or("alias/aws/s3"));
                }
                assert_eq!(got.header("content-length"), len.to_string());
                for (from, to) in [(0, 0), (65_530, 65_540), (65_536, 65_536), (262_143, 262_144), (100, 600_000)] {
                    if to < len {
                        let got = w.req("GET", "/bucket/k").header("range", format!("bytes={from}-{to}")).send().await;
                        assert_eq!(got.status, 206);
                        assert!(got.body == body[from..=to], "{from}-{to} of {len}");
                    }
                }
            }
        }
        w.req("PUT", "/bucket/s")
            .header("x-amz-server-side-encryption", "AES256")
            .body("plain and secret")
            .send()
            .await
            .ok();
        assert!(!shows(&w, b"plain and secret"));
        w.put("/bucket/p", "plain and secret").await.ok();
        assert!(shows(&w, b"plain and secret"), "the check above would find it");
        let wrong = w.req("GET", "/bucket/s").header("x-amz-server-side-encryption", "AES256");
        wrong.send().await.is(400, "InvalidArgument");
    });
}

#[test]
fn a_customer_s_key_is_asked_for_again() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        let body = data(300_000);
        let put = w.req("PUT", "/bucket/k").body(body.clone());
        let put = customer(put, "", KEY, MD5).send().await.ok();
        assert_eq!(put.header("x-amz-server-side-encryption-customer-key-md5"), MD5);
        for method in ["GET", "HEAD"] {
            assert_eq!(w.req(method, "/bucket/k").send().await.status, 400);
            assert_eq!(customer(w.req(method, "/bucket/k"), "", OTHER_KEY, OTHER_MD5).send().await.status, 400);
            assert_eq!(customer(w.req(method, "/bucket/k"), "", KEY, OTHER_MD5).send().await.status, 400);
        }
        let got = customer(w.req("GET", "/bucket/k"), "", KEY, MD5).send().await.ok();
        assert!(got.body == body);
        w.put("/bucket/plain", "x").await.ok();
        customer(w.req("GET", "/bucket/plain"), "", KEY, MD5).send().await.is(400, "InvalidRequest");
        // Copies: from one key to another, to none, and not without the source's.
        let copy = || w.req("PUT", "/bucket/copy").header("x-amz-copy-source", "/bucket/k");
        copy().send().await.is(400, "InvalidRequest");
        customer(copy(), "copy-source-", KEY, MD5).send().await.ok();
        assert!(w.get("/bucket/copy").await.ok().body == body);
        customer(customer(copy(), "copy-source-", KEY, MD5), "", OTHER_KEY, OTHER_MD5).send().await.ok();
        assert!(customer(w.req("GET", "/bucket/copy"), "", OTHER_KEY, OTHER_MD5).send().await.ok().body == body);
    });
}

#[test]
fn parts_and_a_bucket_s_default() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        w.get("/bucket?encryption").await.is(404, "ServerSideEncryptionConfigurationNotFoundError");
        let xml = "<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>aws:kms</SSEAlgorithm><KMSMasterKeyID>k1</KMSMasterKeyID></ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>";
        w.put("/bucket?encryption", xml).await.ok();
        assert_eq!(w.get("/bucket?encryption").await.ok().one("KMSMasterKeyID"), "k1");
        let put = w.put("/bucket/k", "x").await.ok();
        assert_eq!(put.header("x-amz-server-side-encryption-aws-kms-key-id"), "k1");

        for customers in [false, true] {
            let with = |req| if customers { customer(req, "", KEY, MD5) } else { req };
            let id = with(w.req("POST", "/bucket/m?uploads")).send().await.ok().one("UploadId");
            let (one, two) = (data((5 << 20) + 1), data(70_000));
            let mut xml = String::new();
            for (n, body) in [(1, &one), (2, &two)] {
                let target = format!("/bucket/m?partNumber={n}&uploadId={id}");
                let put = with(w.req("PUT", &target)).body(body.clone()).send().await.ok();
                xml += &format!("<Part><PartNumber>{n}</PartNumber><ETag>{}</ETag></Part>", put.header("etag"));
                if customers {
                    customer(w.req("PUT", &target), "", OTHER_KEY, OTHER_MD5)
                        .body("x")
                        .send()
                        .await
                        .is(400, "InvalidRequest");
                }
            }
            let xml = format!("<CompleteMultipartUpload>{xml}</CompleteMultipartUpload>");
            let target = format!("/bucket/m?uploadId={id}");
            if customers {
                w.req("POST", &target).body(xml.clone()).send().await.is(400, "InvalidRequest");
            }
            let done = with(w.req("POST", &target)).body(xml).send().await.ok();
            let shown = done.header("x-amz-server-side-encryption-customer-key-md5");
            assert_eq!(shown, if customers { MD5 } else { "" });
            // A part that is not there, said before the missing key.
            w.req("GET", "/bucket/m?partNumber=3").send().await.is(400, "InvalidPart");
            if customers {
                w.req("GET", "/bucket/m?partNumber=2").send().await.is(400, "InvalidRequest");
            }
            let whole = [one.clone(), two].concat();
            assert!(with(w.req("GET", "/bucket/m")).send().await.ok().body == whole);
            let from = one.len() - 3;
            let got = with(w.req("GET", "/bucket/m")).header("range", format!("bytes={from}-{}", from + 70_000));
            assert!(got.send().await.body == whole[from..=from + 70_000]);
            assert_eq!(with(w.req("GET", "/bucket/m?partNumber=2")).send().await.body.len(), 70_000);
        }
        w.req("DELETE", "/bucket?encryption").send().await.ok();
        assert_eq!(w.put("/bucket/k", "x").await.ok().header("x-amz-server-side-encryption"), "");
    });
}

#[test]
fn bucket_keys_are_remembered() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        let put = |key: &str| {
            let kind = "<ApplyServerSideEncryptionByDefault><SSEAlgorithm>aws:kms</SSEAlgorithm></ApplyServerSideEncryptionByDefault>";
            let rule = format!("<Rule>{kind}{key}</Rule>");
            w.put(
                "/bucket?encryption",
                format!("<ServerSideEncryptionConfiguration>{rule}</ServerSideEncryptionConfiguration>"),
            )
        };
        let shown = async || w.get("/bucket?encryption").await.ok().one("BucketKeyEnabled");
        put("<BucketKeyEnabled>true</BucketKeyEnabled>").await.ok();
        assert_eq!(shown().await, "true");
        put("").await.ok();
        assert_eq!(shown().await, "false");
        put("<BucketKeyEnabled>true</BucketKeyEnabled>").await.ok();
        w.req("DELETE", "/bucket?encryption").send().await.ok();
        put("<BucketKeyEnabled>false</BucketKeyEnabled>").await.ok();
        assert_eq!(shown().await, "false");
        let context = w.req("PUT", "/bucket/k").header("x-amz-server-side-encryption-context", "e30=");
        context.send().await.is(501, "NotImplemented");
    });
}
