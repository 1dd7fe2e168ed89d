//! Replication to another Walrus over sockets: what arrives is as it was sent; dead remotes and kill -9 lose nothing.

use std::io::{BufRead, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use http::Method;
use karri_base::aws::s3::S3;
use karri_base::config::AccessKey;
use karri_objectstore::operator::Operator;
use karri_objectstore::outbound::Endpoint;
use karri_objectstore::replicate::remote::Remote;
use karri_objectstore::{Handle, StartError, serve};

use crate::client::{ACCESS, Client, SECRET};
use crate::{anywhere, data, until};

const DIR: &str = "KARRI_TEST_REPLICATOR_DIR";
const REMOTE: &str = "KARRI_TEST_REPLICATOR_REMOTE";
const ON: &[u8] = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";

fn operator(remotes: &[(&str, SocketAddr)]) -> Operator {
    let mut operator = Operator::default();
    for (name, address) in remotes {
        let url = format!("http://{address}");
        let key = AccessKey { access_key_id: ACCESS.into(), secret_access_key: SECRET.into() };
        let s3 = S3::new(&url, key, "us-east-1").unwrap();
        let endpoint = Endpoint::new(&url.parse().unwrap(), None).unwrap();
        let remote = Remote::new(s3, endpoint, vec!["000000000000".into()]);
        operator.remotes.insert((*name).into(), Arc::new(remote));
    }
    operator
}

fn start(dir: &Path, remotes: &[(&str, SocketAddr)]) -> Option<Handle> {
    let key = serve::root_key(ACCESS, SECRET).unwrap();
    match serve::alone(dir, anywhere(), [key], "us-east-1", operator(remotes)) {
        Ok(handle) => Some(handle),
        Err(StartError::Engine(e)) if e.to_string().contains("io_uring") => {
            eprintln!("SKIPPED: io_uring cannot be used here: {e}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

fn make(c: &mut Client, bucket: &str) {
    c.put(bucket, b"").unwrap().ok();
    c.put(&format!("{bucket}?versioning"), ON).unwrap().ok();
}

/// Rules that send keys under `NAME/` to the remote of that name, and delete markers with them.
fn rules(c: &mut Client, bucket: &str, remotes: &[&str]) {
    let rule = |name: &&str| {
        format!(
            "<Rule><ID>{name}</ID><Prefix>{name}/</Prefix><Status>Enabled</Status><Destination><Bucket>arn:karri:s3:{name}::{bucket}</Bucket></Destination></Rule>"
        )
    };
    let rules: String = remotes.iter().map(rule).collect();
    let role = "<Role>arn:aws:iam::000000000000:role/r</Role>";
    let document = format!("<ReplicationConfiguration>{role}{rules}</ReplicationConfiguration>");
    c.put(&format!("{bucket}?replication"), document.as_bytes()).unwrap().ok();
}

fn status(c: &mut Client, target: &str) -> String {
    c.send(Method::HEAD, target, &[], b"").unwrap().ok().header("x-amz-replication-status").to_owned()
}

/// What an object's answer says, but for its status and what is each answer's own.
fn shown(c: &mut Client, target: &str) -> (Vec<(String, String)>, Vec<u8>) {
    let answer = c.send(Method::GET, target, &[("x-amz-checksum-mode", "ENABLED")], b"").unwrap().ok();
    let own = ["date", "x-amz-request-id", "x-amz-id-2", "x-amz-replication-status"];
    let mut headers = answer.headers.clone();
    headers.retain(|(name, _)| !own.contains(&name.as_str()));
    headers.sort();
    (headers, answer.body)
}

#[test]
fn objects_arrive_at_another_walrus_past_a_dead_one() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(far) = start(there.path(), &[]) else { return };
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let near = start(here.path(), &[("far", far.local_addr()), ("dead", nowhere)]).unwrap();
    let mut c = Client::connect(near.local_addr()).unwrap();
    let mut f = Client::connect(far.local_addr()).unwrap();
    make(&mut c, "bucket");
    make(&mut f, "bucket");
    rules(&mut c, "bucket", &["far", "dead"]);
    // A newer object of the same key there: what comes goes below it, for it is older.
    c.put("bucket/dead/k", b"waits").unwrap().ok();
    c.put("bucket/far/twice", b"older").unwrap().ok();
    c.put("bucket/far/twice", b"newer").unwrap().ok();
    let headers =
        [("content-type", "text/x"), ("x-amz-meta-colour", "=?UTF-8?B?Z3LDvG4=?="), ("x-amz-tagging", "a=b%20c")];
    for (key, len) in [("far/empty", 0), ("far/a b+c/\u{e4}", 5_000), ("far/large", (9 << 20) + 7)] {
        c.send(Method::PUT, &format!("bucket/{key}"), &headers, &data(len as u64, len)).unwrap().ok();
    }
    let id = c.send(Method::POST, "bucket/far/parts?uploads", &headers, b"").unwrap().ok().all("UploadId")[0].clone();
    let mut xml = String::new();
    for (n, len) in [(2, 5 << 20), (5, 5 << 20), (9, 77)] {
        let put = c.put(&format!("bucket/far/parts?partNumber={n}&uploadId={id}"), &data(n, len)).unwrap().ok();
        xml += &format!("<Part><PartNumber>{n}</PartNumber><ETag>{}</ETag></Part>", put.header("etag"));
    }
    let xml = format!("<CompleteMultipartUpload>{xml}</CompleteMultipartUpload>");
    c.send(Method::POST, &format!("bucket/far/parts?uploadId={id}"), &[], xml.as_bytes()).unwrap().ok();
    c.put("bucket/far/deleted", b"x").unwrap().ok();
    c.delete("bucket/far/deleted").unwrap().ok();

    let keys = ["far/empty", "far/a b+c/\u{e4}", "far/large", "far/parts", "far/twice"];
    for key in keys {
        let target = format!("bucket/{key}");
        until("it is replicated", || status(&mut c, &target) == "COMPLETED");
        assert!(shown(&mut c, &target) == shown(&mut f, &target), "{key} differs");
        assert_eq!(status(&mut f, &target), "REPLICA");
    }
    until("the marker is there", || f.get("bucket/far/deleted").unwrap().status == 404);
    let versions = |c: &mut Client| c.get("bucket?versions&prefix=far/").unwrap().ok().all("VersionId");
    assert_eq!(versions(&mut c), versions(&mut f));
    // Tags go after it.
    let tags = "<Tagging><TagSet><Tag><Key>k</Key><Value>v</Value></Tag></TagSet></Tagging>";
    c.put("bucket/far/large?tagging", tags.as_bytes()).unwrap().ok();
    until("the tags are there", || f.get("bucket/far/large?tagging").unwrap().ok().all("Value") == ["v"]);
    assert_eq!(status(&mut c, "bucket/dead/k"), "PENDING");
    near.shutdown();

    // Under its new address the dead one gets what waited, over the restart.
    let near = start(here.path(), &[("far", far.local_addr()), ("dead", far.local_addr())]).unwrap();
    let mut c = Client::connect(near.local_addr()).unwrap();
    until("the dead one lives", || status(&mut c, "bucket/dead/k") == "COMPLETED");
    assert_eq!(f.get("bucket/dead/k").unwrap().ok().body, b"waits");
    near.shutdown();
    far.shutdown();
}

/// Not a test: the process that is killed.
#[test]
fn child() {
    let (Ok(dir), Ok(remote)) = (std::env::var(DIR), std::env::var(REMOTE)) else { return };
    match start(Path::new(&dir), &[("far", remote.parse().unwrap())]) {
        Some(handle) => {
            println!("\nlistening {}", handle.local_addr());
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        }
        None => println!("\nrefused"),
    }
}

#[allow(clippy::zombie_processes, reason = "who gets the child waits for it")]
fn spawn(dir: &Path, remote: SocketAddr) -> (Child, SocketAddr) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "remote::child", "--nocapture"])
        .env(DIR, dir)
        .env(REMOTE, remote.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in lines.map_while(Result::ok) {
        if let Some(address) = line.strip_prefix("listening ") {
            return (child, address.parse().unwrap());
        }
        assert!(!line.starts_with("refused"), "{line}");
    }
    panic!("the child ended without a word");
}

#[test]
fn nothing_is_lost_by_kill_9_and_nothing_is_there_twice() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(far) = start(there.path(), &[]) else { return };
    let mut f = Client::connect(far.local_addr()).unwrap();
    make(&mut f, "bucket");
    let mut put = 0;
    for round in 0..3 {
        let (mut child, address) = spawn(here.path(), far.local_addr());
        let mut c = Client::connect(address).unwrap();
        if round == 0 {
            make(&mut c, "bucket");
            rules(&mut c, "bucket", &["far"]);
        }
        for _ in 0..30 {
            c.put(&format!("bucket/far/{put}"), &data(put, [100, 70_000, 400_000][(put % 3) as usize])).unwrap().ok();
            put += 1;
        }
        let there = |f: &mut Client| f.get("bucket").unwrap().ok().all("Key").len();
        let before = there(&mut f);
        until("some are on their way", || there(&mut f) > before || there(&mut f) == put as usize);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let (mut child, address) = spawn(here.path(), far.local_addr());
    let mut c = Client::connect(address).unwrap();
    for n in 0..put {
        let target = format!("bucket/far/{n}");
        until("it is replicated", || status(&mut c, &target) == "COMPLETED");
        assert!(shown(&mut c, &target) == shown(&mut f, &target), "{n} differs");
    }
    assert_eq!(f.get("bucket?versions").unwrap().ok().all("VersionId").len(), put as usize);
    child.kill().unwrap();
    child.wait().unwrap();
    far.shutdown();
}

/// A server that says this of its bucket's versioning, and to all else 403, without reading the body, ever; and the requests
/// that it got.
fn stub(versioning: &'static str) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind(anywhere()).unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let requests = seen.clone();
    std::thread::spawn(move || {
        let held = Arc::new(Mutex::new(Vec::new()));
        for stream in listener.incoming().map_while(Result::ok) {
            let (requests, held) = (requests.clone(), held.clone());
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                loop {
                    let (mut request, mut line) = (String::new(), String::new());
                    if reader.read_line(&mut request).unwrap_or(0) == 0 {
                        return;
                    }
                    while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                        line.clear();
                    }
                    let asks = request.contains("?versioning");
                    requests.lock().unwrap().push(request);
                    let (status, body) = match asks {
                        true => (200, versioning),
                        false => (403, "<Error><Code>AccessDenied</Code></Error>"),
                    };
                    let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    if reader.get_mut().write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                    if !asks {
                        held.lock().unwrap().push(reader);
                        return;
                    }
                }
            });
        }
    });
    (address, seen)
}

#[test]
fn a_remote_that_keeps_no_versions_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (far, seen) = stub("<VersioningConfiguration/>");
    let Some(near) = start(dir.path(), &[("far", far)]) else { return };
    let mut c = Client::connect(near.local_addr()).unwrap();
    make(&mut c, "bucket");
    rules(&mut c, "bucket", &["far"]);
    c.put("bucket/far/k", b"x").unwrap().ok();
    c.delete("bucket/far/k").unwrap().ok();
    until("it is asked, and asked again", || seen.lock().unwrap().len() >= 4);
    let seen = seen.lock().unwrap().clone();
    assert!(seen.iter().all(|line| line.starts_with("GET /bucket?versioning")), "{seen:?}");
    near.shutdown();
}

#[test]
fn a_remote_that_answers_before_it_has_read_holds_up_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (far, seen) = stub("<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>");
    let Some(near) = start(dir.path(), &[("far", far)]) else { return };
    let mut c = Client::connect(near.local_addr()).unwrap();
    make(&mut c, "bucket");
    rules(&mut c, "bucket", &["far"]);
    let was_put =
        |key: &str| seen.lock().unwrap().iter().any(|line| line.starts_with(&format!("PUT /bucket/far/{key} ")));
    c.put("bucket/far/large", &data(1, 16 << 20)).unwrap().ok();
    until("the large one is on its way", || was_put("large"));
    c.put("bucket/far/small", b"x").unwrap().ok();
    until("the small one goes after it", || was_put("small"));
    near.shutdown();
}
