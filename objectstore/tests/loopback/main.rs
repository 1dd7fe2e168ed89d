//! Walrus whole: engine cores, sockets, io_uring store, RocksDB; from outside over loopback.

mod client;
mod kill;
mod operations;
mod remote;
mod tls;
mod told;
mod tools;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use client::{ACCESS, Client, SECRET};
use http::Method;
use karri_objectstore::{Handle, ServeOptions, StartError};

/// A free port of this machine.
pub fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// A Walrus in this process, or the reason why there can be none here.
pub fn walrus(dir: &Path) -> Option<Handle> {
    match karri_objectstore::standalone(dir, anywhere(), ACCESS, SECRET, "us-east-1") {
        Ok(handle) => Some(handle),
        Err(StartError::Engine(e)) if e.to_string().contains("io_uring") => {
            eprintln!("SKIPPED: io_uring cannot be used here: {e}");
            None
        }
        Err(e) => panic!("{e}: {:?}", std::error::Error::source(&e).map(ToString::to_string)),
    }
}

/// Bytes that differ from place to place and from seed to seed.
pub fn data(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend(x.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Waits for a condition, at most half a minute.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let (_keep, never) = std::sync::mpsc::channel::<()>();
    for _ in 0..600 {
        if condition() {
            return;
        }
        let _ = never.recv_timeout(std::time::Duration::from_millis(50));
    }
    panic!("not within 30 s: {what}");
}

#[test]
fn sizes_ranges_and_parts_over_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let Some(walrus) = walrus(dir.path()) else { return };
    let mut c = Client::connect(walrus.local_addr()).unwrap();
    c.put("bucket", b"").unwrap().ok();
    for len in [0, 1, 4_095, 4_096, 4_097, 32_767, 32_768, 32_769, 65_535, 65_536, 65_537, 1 << 20, (5 << 20) + 11] {
        let body = data(len as u64, len);
        let put = c.put("bucket/k", &body).unwrap().ok();
        let got = c.get("bucket/k").unwrap().ok();
        assert!(got.body == body, "{len}");
        assert_eq!(put.header("etag"), got.header("etag"));
        assert_eq!(got.header("x-amz-request-id").len(), 16);
        assert!(!got.header("date").is_empty());
        let head = c.send(Method::HEAD, "bucket/k", &[], b"").unwrap().ok();
        assert_eq!(head.header("content-length"), len.to_string());
        if len > 10 {
            let range = format!("bytes={}-{}", len / 3, len - 2);
            let got = c.send(Method::GET, "bucket/k", &[("range", &range)], b"").unwrap().ok();
            assert!(got.status == 206 && got.body == body[len / 3..len - 1], "{range} of {len}");
        }
        // Once more the same condition, answered without a body.
        let got = c.send(Method::GET, "bucket/k", &[("if-none-match", put.header("etag"))], b"").unwrap();
        assert_eq!((got.status, got.body.len()), (304, 0));
    }
    let id = c.send(Method::POST, "bucket/big?uploads", &[], b"").unwrap().ok().all("UploadId")[0].clone();
    let parts: Vec<Vec<u8>> = (0..3).map(|i| data(i, (5 << 20) + i as usize)).collect();
    let mut xml = String::new();
    for (i, part) in parts.iter().enumerate() {
        let n = i + 1;
        let put = c.put(&format!("bucket/big?partNumber={n}&uploadId={id}"), part).unwrap().ok();
        xml += &format!("<Part><PartNumber>{n}</PartNumber><ETag>{}</ETag></Part>", put.header("etag"));
    }
    let xml = format!("<CompleteMultipartUpload>{xml}</CompleteMultipartUpload>");
    c.send(Method::POST, &format!("bucket/big?uploadId={id}"), &[], xml.as_bytes()).unwrap().ok();
    assert!(c.get("bucket/big").unwrap().ok().body == parts.concat());
    assert!(walrus.usage().total > 0);
    walrus.shutdown();

    // All of it is there after a restart; once deleted, its space is too.
    let walrus = self::walrus(dir.path()).unwrap();
    let mut c = Client::connect(walrus.local_addr()).unwrap();
    assert!(c.get("bucket/big").unwrap().ok().body == parts.concat());
    c.delete("bucket/big").unwrap().ok();
    c.delete("bucket/k").unwrap().ok();
    c.delete("bucket").unwrap().ok();
    walrus.shutdown();
    let walrus = self::walrus(dir.path()).unwrap();
    until("the space of what was deleted is back", || walrus.usage().used < 1 << 20);
}

#[test]
fn two_cores_serve_one_store() {
    use karri_base::aws::keys::{Key, KeyRing};
    let dir = tempfile::tempdir().unwrap();
    let account = "000000000001".parse().unwrap();
    let key = Key { access_key_id: ACCESS.into(), secret: SECRET.into(), account, arn: "arn:aws:iam::1:root".into() };
    let meta = karri_meta::rocks::RocksStore::open(dir.path().join("meta"), &karri_meta::rocks::Options::default());
    let options = ServeOptions::new(
        anywhere(),
        dir.path().join("objects"),
        Arc::new(meta.unwrap()),
        KeyRing::new([key]),
        karri_objectstore::crypt::Secret([5; 32]),
    );
    let walrus = match karri_objectstore::serve(ServeOptions { cores: 2, store_bytes: 1 << 30, ..options }) {
        Ok(walrus) => walrus,
        Err(StartError::Engine(e)) => return eprintln!("SKIPPED: io_uring cannot be used here: {e}"),
        Err(e) => panic!("{e}"),
    };
    Client::connect(walrus.local_addr()).unwrap().put("bucket", b"").unwrap().ok();
    let address = walrus.local_addr();
    // Connections fall on either core; every one overwrites and reads what others wrote.
    std::thread::scope(|s| {
        for client in 0..12u64 {
            s.spawn(move || {
                let mut c = Client::connect(address).unwrap();
                for n in 0..25u64 {
                    let len = [10, 5_000, 70_000, 200_000][((client + n) % 4) as usize];
                    c.put(&format!("bucket/k{}", n % 5), &data(client << 32 | len, len as usize)).unwrap().ok();
                    let got = c.get(&format!("bucket/k{}", (n + client) % 5)).unwrap();
                    if got.status == 200 {
                        let whole = (0..12).any(|w| got.body == data(w << 32 | got.body.len() as u64, got.body.len()));
                        assert!(whole, "a mixture of two writers' bytes");
                    }
                }
            });
        }
    });
    let mut c = Client::connect(address).unwrap();
    for n in 0..5 {
        c.delete(&format!("bucket/k{n}")).unwrap().ok();
    }
    c.delete("bucket").unwrap().ok();
    walrus.shutdown();
}

#[test]
fn a_client_that_leaves_in_mid_body_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(walrus) = walrus(dir.path()) else { return };
    let mut c = Client::connect(walrus.local_addr()).unwrap();
    c.put("bucket", b"").unwrap().ok();
    let body = data(1, 3 << 20);
    for sent in [0, 100, 1 << 20, body.len() - 1] {
        let mut leaving = Client::connect(walrus.local_addr()).unwrap();
        leaving.write(Method::PUT, "bucket/k", &[], &body, &body[..sent]).unwrap();
    }
    c.put("bucket/other", b"x").unwrap().ok();
    assert_eq!(c.get("bucket").unwrap().ok().all("Key"), ["other"]);
    assert_eq!(c.get("bucket/k").unwrap().status, 404);
}

#[test]
fn hostile_requests_are_answered_or_cut_off_and_do_no_harm() {
    use std::io::{Read, Write};
    let dir = tempfile::tempdir().unwrap();
    let Some(walrus) = walrus(dir.path()) else { return };
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(3_000));
    let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "x-a: b\r\n".repeat(5_000));
    for request in [
        "nonsense\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET /%zz HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET /%ff%fe HTTP/1.1\r\nhost: x\r\n\r\n",
        "PUT /b/k HTTP/1.1\r\nhost: x\r\ncontent-length: 18446744073709551615\r\n\r\n",
        "PUT /b/k HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        "GET / HTTP/1.1\r\nhost: x\r\nauthorization: AWS4-HMAC-SHA256 Credential=/////,SignedHeaders=,Signature=\r\n\r\n",
        "GET /?X-Amz-Signature=&X-Amz-Credential= HTTP/1.1\r\nhost: x\r\n\r\n",
        "POST /b?delete HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        &long,
        &many,
    ] {
        let mut stream = std::net::TcpStream::connect(walrus.local_addr()).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        // It may hang up before it has read all.
        let _ = stream.write_all(request.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 50"),
            "{request:.60}: {answer}"
        );
    }
    let mut c = Client::connect(walrus.local_addr()).unwrap();
    c.put("bucket", b"").unwrap().ok();
}

#[test]
fn a_start_that_cannot_be_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let Some(first) = walrus(dir.path()) else { return };
    let other = tempfile::tempdir().unwrap();
    let start =
        |dir: &Path, at| karri_objectstore::standalone(dir, at, ACCESS, SECRET, "us-east-1").err().expect("no start");
    let e = start(other.path(), first.local_addr());
    assert!(e.to_string().contains("another server"), "{e}");
    let e = start(dir.path(), anywhere());
    assert!(matches!(e, StartError::Meta(_)), "{e}");
    let strange = tempfile::tempdir().unwrap();
    std::fs::write(strange.path().join("objects"), vec![b'x'; 64 << 20]).unwrap();
    let e = start(strange.path(), anywhere());
    assert!(matches!(e, StartError::Bulk(_)), "{e}");
}

/// A client that waits to be asked for its body and is refused instead: whatever it sends next is not taken for the body.
#[test]
fn who_is_refused_before_the_body_is_disconnected() {
    use std::io::{Read, Write};
    let dir = tempfile::tempdir().unwrap();
    let Some(walrus) = walrus(dir.path()) else { return };
    let mut stream = std::net::TcpStream::connect(walrus.local_addr()).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let put = "PUT /none/k HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n";
    stream.write_all(put.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 404 ") && answer.contains("\r\nconnection: close\r\n"), "{answer}");
    walrus.shutdown();
}
