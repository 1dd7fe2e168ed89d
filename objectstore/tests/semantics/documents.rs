//! XML bodies are what their digests say, or nothing happens.

use bytes::Bytes;
use http_body_util::Full;
use karri_objectstore::digest;

use crate::client::{Mode, Walrus, crc32_base64};
use crate::run;

fn md5(text: &str) -> String {
    digest::base64(&digest::md5(text.as_bytes()))
}

#[test]
fn swapped_documents_do_nothing() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        for key in ["a", "b"] {
            w.put(&format!("/bucket/{key}"), key).await.ok();
        }
        let delete = |key: &str| format!("<Delete><Object><Key>{key}</Key></Object></Delete>");
        // Nothing but the digest protects this body.
        let post = || w.req("POST", "/bucket?delete").mode(Mode::Unsigned).body(delete("a"));
        let swap = |request: &mut http::Request<Full<Bytes>>| *request.body_mut() = Full::new(delete("b").into());
        post().send().await.is(400, "InvalidRequest");
        post().mode(Mode::Trailer).send().await.is(400, "InvalidRequest");
        post().header("content-md5", md5(&delete("a"))).send_with(swap).await.is(400, "BadDigest");
        let crc = || post().header("x-amz-checksum-crc32", crc32_base64(delete("a").as_bytes()));
        crc().send_with(swap).await.is(400, "BadDigest");
        post().header("content-md5", "AAAA").send().await.is(400, "InvalidDigest");
        assert_eq!(w.get("/bucket").await.ok().all("Key"), ["a", "b"]);
        crc().send().await.ok();
        assert_eq!(w.get("/bucket").await.ok().all("Key"), ["b"]);

        let tags = "<Tagging><TagSet><Tag><Key>k</Key><Value>v</Value></Tag></TagSet></Tagging>";
        let enabled = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
        let sealed = "<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>AES256</SSEAlgorithm></ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>";
        for (target, document) in
            [("/bucket/b?tagging", tags), ("/bucket?versioning", enabled), ("/bucket?encryption", sealed), ("/new", "")]
        {
            let put = || w.req("PUT", target).body(document);
            put().header("content-md5", md5("another")).send().await.is(400, "BadDigest");
            put().header("x-amz-checksum-crc32", crc32_base64(b"another")).send().await.is(400, "BadDigest");
            put().header("content-md5", md5(document)).send().await.ok();
            // SDKs announce the algorithm, too.
            let announced = put().header("x-amz-sdk-checksum-algorithm", "CRC32");
            announced.header("x-amz-checksum-crc32", crc32_base64(document.as_bytes())).send().await.ok();
        }

        // A checksum of CompleteMultipartUpload is the object's, its MD5 the document's.
        let id = w.req("POST", "/bucket/m?uploads").send().await.ok().one("UploadId");
        let part = w.put(&format!("/bucket/m?partNumber=1&uploadId={id}"), "part").await.ok();
        let list = format!(
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{}</ETag></Part></CompleteMultipartUpload>",
            part.header("etag").replace('"', "&quot;")
        );
        let complete = || w.req("POST", &format!("/bucket/m?uploadId={id}")).body(list.clone());
        complete().header("content-md5", md5("another")).send().await.is(400, "BadDigest");
        complete().header("content-md5", md5(&list)).send().await.ok();
        assert_eq!(w.get("/bucket/m").await.ok().text(), "part");
    });
}
