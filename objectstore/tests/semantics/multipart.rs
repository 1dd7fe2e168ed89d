use karri_bulk::BulkStore;

use crate::client::{Walrus, crc32_base64};
use crate::{data, run};

const MIB: usize = 1 << 20;

fn xml(parts: &[(u16, String)]) -> String {
    let lines: String =
        parts.iter().map(|(n, e)| format!("<Part><PartNumber>{n}</PartNumber><ETag>{e}</ETag></Part>")).collect();
    format!("<CompleteMultipartUpload>{lines}</CompleteMultipartUpload>")
}

async fn part(w: &Walrus, id: &str, n: u16, body: Vec<u8>) -> (u16, String) {
    (n, w.put(&format!("/bucket/k?partNumber={n}&uploadId={id}"), body).await.ok().header("etag").to_owned())
}

#[test]
fn parts_become_an_object() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        w.put("/bucket/k", data(100_000)).await.ok();
        let create = w.req("POST", "/bucket/k?uploads").header("x-amz-meta-a", "1").header("content-type", "text/x");
        let id = create.send().await.ok().one("UploadId");
        let (a, b, c) = (data(5 * MIB), data(5 * MIB + 7), data(9));
        // Out of order, one of them twice, one never listed.
        let three = part(&w, &id, 30, c.clone()).await;
        part(&w, &id, 2, data(70_000)).await;
        let one = part(&w, &id, 1, a.clone()).await;
        let two = part(&w, &id, 2, b.clone()).await;
        part(&w, &id, 31, data(80_000)).await;
        let listed = w.get(&format!("/bucket/k?uploadId={id}")).await.ok();
        assert_eq!(listed.all("PartNumber"), ["1", "2", "30", "31"]);
        let page = w.get(&format!("/bucket/k?uploadId={id}&max-parts=2&part-number-marker=1")).await.ok();
        assert_eq!(page.all("PartNumber"), ["2", "30"]);
        assert_eq!((page.one("NextPartNumberMarker"), page.one("IsTruncated")), ("30".into(), "true".into()));
        assert_eq!(w.get("/bucket?uploads").await.ok().all("UploadId"), std::slice::from_ref(&id));
        assert_eq!(w.get("/bucket/k").await.ok().body.len(), 100_000, "nothing shows before Complete");

        let done =
            w.req("POST", &format!("/bucket/k?uploadId={id}")).body(xml(&[one.clone(), two, three])).send().await.ok();
        assert!(done.one("ETag").ends_with("-3\""), "{}", done.text());
        let whole: Vec<u8> = [a.clone(), b.clone(), c].concat();
        let got = w.get("/bucket/k").await.ok();
        assert!(got.body == whole);
        assert_eq!(
            (got.header("etag"), got.header("x-amz-meta-a"), got.header("content-type")),
            (done.one("ETag").as_str(), "1", "text/x")
        );
        for (from, to) in [(0, 1), (5 * MIB - 2, 5 * MIB + 2), (5 * MIB, 10 * MIB + 16), (10 * MIB + 6, 10 * MIB + 8)] {
            let range = format!("bytes={from}-{}", to - 1);
            let got = w.req("GET", "/bucket/k").header("range", range).send().await;
            assert!(got.body == whole[from..to], "{from}..{to}");
        }
        let second = w.get("/bucket/k?partNumber=2").await;
        assert_eq!((second.status, second.header("x-amz-mp-parts-count")), (206, "3"));
        assert!(second.body == b);
        w.get("/bucket/k?partNumber=4").await.is(400, "InvalidPart");

        // Once more after a lost answer: the same.
        let again = w.req("POST", &format!("/bucket/k?uploadId={id}")).body(xml(&[one])).send().await.ok();
        assert_eq!(again.one("ETag"), done.one("ETag"));
        w.put(&format!("/bucket/k?partNumber=1&uploadId={id}"), "x").await.is(404, "NoSuchUpload");
        assert!(w.get("/bucket?uploads").await.ok().all("UploadId").is_empty());
        w.reclaim().await;
        assert_eq!(w.bulk.list(karri_bulk::BlobId(0), 100).len(), 2, "the two large parts of the object, nothing else");
        assert!(w.meta.dump().iter().all(|(k, _)| !matches!(k[0], b'P' | b'U' | b'X' | b'G')));
        // A copy of it, then it goes.
        w.req("PUT", "/bucket/copy").header("x-amz-copy-source", "bucket/k").send().await.ok();
        assert!(w.get("/bucket/copy").await.ok().body == whole);
        w.req("DELETE", "/bucket/k").send().await.ok();
        w.req("DELETE", "/bucket/copy").send().await.ok();
        w.reclaim().await;
        assert_eq!(w.bulk.usage().used, 0);
        assert!(
            w.meta.dump().iter().all(|(k, _)| matches!(k[0], b'A' | b'B' | b'C' | b'N')),
            "no record is left behind"
        );
    });
}

#[test]
fn bad_completions() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        let id = w.req("POST", "/bucket/k?uploads").send().await.ok().one("UploadId");
        let one = part(&w, &id, 1, data(100)).await;
        let two = part(&w, &id, 2, data(200)).await;
        let complete = |body: String| w.req("POST", &format!("/bucket/k?uploadId={id}")).body(body);
        complete(xml(&[one.clone(), two.clone()])).send().await.is(400, "EntityTooSmall");
        complete(xml(&[two.clone(), one.clone()])).send().await.is(400, "InvalidPartOrder");
        complete(xml(&[(1, two.1.clone())])).send().await.is(400, "InvalidPart");
        complete(xml(&[(3, one.1.clone())])).send().await.is(400, "InvalidPart");
        complete(xml(&[])).send().await.is(400, "MalformedXML");
        complete("<Complete".into()).send().await.is(400, "MalformedXML");
        let sized = complete(xml(std::slice::from_ref(&one))).header("x-amz-mp-object-size", "99").send().await;
        sized.is(400, "InvalidRequest");
        for n in ["0", "10001", "x"] {
            let answer = w.put(&format!("/bucket/k?partNumber={n}&uploadId={id}"), "x").await;
            assert_eq!(answer.one("Code"), "InvalidArgument", "{n}");
        }
        for bad in ["", "zz", &"0".repeat(32)] {
            let answer = w.put(&format!("/bucket/k?partNumber=1&uploadId={bad}"), "x").await;
            assert_eq!(answer.one("Code"), "NoSuchUpload", "{bad:?}");
        }
        w.put(&format!("/bucket/other?partNumber=1&uploadId={id}"), "x").await.is(404, "NoSuchUpload");
        complete(xml(std::slice::from_ref(&one))).header("if-none-match", "*").send().await.ok();
        assert_eq!(w.get("/bucket/k").await.ok().body.len(), 100);
    });
}

#[test]
fn aborting_gives_everything_back() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        let id = w.req("POST", "/bucket/k?uploads").send().await.ok().one("UploadId");
        part(&w, &id, 1, data(100)).await;
        part(&w, &id, 2, data(200_000)).await;
        assert_eq!(w.req("DELETE", &format!("/bucket/k?uploadId={id}")).send().await.ok().status, 204);
        w.req("DELETE", &format!("/bucket/k?uploadId={id}")).send().await.is(404, "NoSuchUpload");
        w.get(&format!("/bucket/k?uploadId={id}")).await.is(404, "NoSuchUpload");
        w.reclaim().await;
        assert_eq!(w.bulk.usage().used, 0);
        assert!(w.meta.dump().iter().all(|(k, _)| matches!(k[0], b'A' | b'B' | b'C' | b'N')));
    });
}

#[test]
fn parts_are_copied() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        let source = data(6 * MIB);
        w.put("/bucket/from", source.clone()).await.ok();
        let id = w.req("POST", "/bucket/k?uploads").send().await.ok().one("UploadId");
        let copy = |n: u16| {
            w.req("PUT", &format!("/bucket/k?partNumber={n}&uploadId={id}")).header("x-amz-copy-source", "bucket/from")
        };
        let one = (1, copy(1).send().await.ok().one("ETag"));
        let two = (2, copy(2).header("x-amz-copy-source-range", "bytes=5-104").send().await.ok().one("ETag"));
        copy(3).header("x-amz-copy-source-range", "bytes=5-99999999").send().await.is(416, "InvalidRange");
        copy(3).header("x-amz-copy-source-range", "bytes=5-").send().await.is(400, "InvalidArgument");
        w.req("POST", &format!("/bucket/k?uploadId={id}")).body(xml(&[one, two])).send().await.ok();
        assert!(w.get("/bucket/k").await.ok().body == [&source[..], &source[5..105]].concat());
    });
}

#[test]
fn checksums_over_parts() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        let (a, b) = (data(5 * MIB), data(1_000));
        let whole = [&a[..], &b[..]].concat();
        for (kind, want) in [
            ("FULL_OBJECT", crc32_base64(&whole)),
            ("COMPOSITE", {
                let crc = |d: &[u8]| (crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, d) as u32).to_be_bytes();
                format!("{}-2", crc32_base64(&[crc(&a), crc(&b)].concat()))
            }),
        ] {
            let create = w
                .req("POST", "/bucket/k?uploads")
                .header("x-amz-checksum-algorithm", "CRC32")
                .header("x-amz-checksum-type", kind);
            let created = create.send().await.ok();
            assert_eq!(created.header("x-amz-checksum-type"), kind);
            let id = created.one("UploadId");
            let mut parts = Vec::new();
            for (n, body) in [(1, &a), (2, &b)] {
                let put = w.req("PUT", &format!("/bucket/k?partNumber={n}&uploadId={id}")).body(body.clone());
                let got = put.header("x-amz-checksum-crc32", crc32_base64(body)).send().await.ok();
                assert_eq!(got.header("x-amz-checksum-crc32"), crc32_base64(body));
                parts.push((n, got.header("etag").to_owned()));
            }
            let wrong = w.req("PUT", &format!("/bucket/k?partNumber=1&uploadId={id}")).body("x");
            wrong.header("x-amz-checksum-sha1", "qvTGHdzF6KLavt4PO0gs2a6pQ00=").send().await.is(400, "InvalidRequest");
            let bad = w.req("POST", &format!("/bucket/k?uploadId={id}")).body(xml(&parts));
            bad.header("x-amz-checksum-crc32", "AAAAAA==").send().await.is(400, "BadDigest");
            let done = w.req("POST", &format!("/bucket/k?uploadId={id}")).body(xml(&parts)).send().await.ok();
            assert_eq!((done.one("ChecksumCRC32"), done.one("ChecksumType")), (want.clone(), kind.to_owned()));
            let got = w.req("HEAD", "/bucket/k").header("x-amz-checksum-mode", "ENABLED").send().await.ok();
            assert_eq!((got.header("x-amz-checksum-crc32"), got.header("x-amz-checksum-type")), (want.as_str(), kind));
        }
        let bad = w
            .req("POST", "/bucket/k?uploads")
            .header("x-amz-checksum-algorithm", "SHA256")
            .header("x-amz-checksum-type", "FULL_OBJECT");
        bad.send().await.is(400, "InvalidRequest");
    });
}

#[test]
fn uploads_are_listed_by_key_and_age() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        let mut all = Vec::new();
        for key in ["a/1", "a/1", "a/2", "b", "b", "b", "c/x"] {
            let id = w.req("POST", &format!("/bucket/{key}?uploads")).send().await.ok().one("UploadId");
            all.push((key.to_owned(), id));
        }
        all.sort();
        for max in 1..=8 {
            let (mut got, mut marker, mut id_marker) = (Vec::new(), String::new(), String::new());
            loop {
                let req = w.req("GET", &format!("/bucket?uploads&max-uploads={max}"));
                let page = req.query("key-marker", &marker).query("upload-id-marker", &id_marker).send().await.ok();
                got.extend(page.all("Key").into_iter().zip(page.all("UploadId")));
                if page.one("IsTruncated") == "false" {
                    break;
                }
                (marker, id_marker) = (page.one("NextKeyMarker"), page.one("NextUploadIdMarker"));
            }
            assert_eq!(got, all, "pages of {max}");
        }
        let folded = w.get("/bucket?uploads&delimiter=/").await.ok();
        assert_eq!((folded.all("UploadId").len(), folded.all("CommonPrefixes").len()), (3, 2));
        let page = w.get("/bucket?uploads&delimiter=/&max-uploads=1").await.ok();
        assert_eq!((page.one("NextKeyMarker"), page.one("IsTruncated")), ("a/".into(), "true".into()));
        let next = w.get("/bucket?uploads&delimiter=/&key-marker=a/").await.ok();
        assert_eq!((next.all("UploadId").len(), next.all("CommonPrefixes").len()), (3, 1));
        assert_eq!(w.get("/bucket?uploads&prefix=b").await.ok().all("UploadId").len(), 3);
        assert_eq!(w.get("/bucket?uploads&key-marker=b").await.ok().all("Key"), ["c/x"]);
    });
}
