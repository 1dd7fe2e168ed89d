//! Events and access logs over sockets: delivered to a webhook and a queue folder, again after a failure and a restart;
//! logs written at a graceful stop.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use karri_base::aws::keys::Key;
use karri_objectstore::notify::{Destination, Place};
use karri_objectstore::operator::Operator;
use karri_objectstore::outbound::Endpoint;
use karri_objectstore::{Handle, StartError, serve};

use crate::client::{ACCESS, Client, SECRET};
use crate::{anywhere, until};

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

/// Answers each POST with the next of these statuses, then 200; keeps the bodies of those that it took. Over TLS, if it is
/// told how.
fn hook(
    at: SocketAddr,
    mut statuses: Vec<u16>,
    tls: Option<Arc<rustls::ServerConfig>>,
) -> (SocketAddr, Arc<Mutex<Vec<serde_json::Value>>>) {
    let listener = TcpListener::bind(at).unwrap();
    let address = listener.local_addr().unwrap();
    let taken = Arc::new(Mutex::new(Vec::new()));
    let seen = taken.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let stream: Box<dyn Stream> = match &tls {
                None => Box::new(stream),
                Some(config) => {
                    let connection = rustls::ServerConnection::new(config.clone()).unwrap();
                    Box::new(rustls::StreamOwned::new(connection, stream))
                }
            };
            let mut reader = BufReader::new(stream);
            loop {
                let (mut length, mut token) = (0, false);
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                    let lower = line.to_ascii_lowercase();
                    if let Some(n) = lower.strip_prefix("content-length: ") {
                        length = n.trim().parse().unwrap();
                    }
                    token |= line.trim() == "authorization: Bearer secret";
                    line.clear();
                }
                let mut body = vec![0; length];
                if length == 0 || reader.read_exact(&mut body).is_err() {
                    break;
                }
                assert!(token, "the token is sent");
                let status = if statuses.is_empty() { 200 } else { statuses.remove(0) };
                if status == 200 {
                    seen.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
                }
                let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
                if reader.get_mut().write_all(answer.as_bytes()).is_err() {
                    break;
                }
            }
        }
    });
    (address, taken)
}

fn start(dir: &Path, queue: PathBuf, hook: SocketAddr) -> Option<Handle> {
    start_with(dir, queue, &format!("http://{hook}/events"), None)
}

fn start_with(dir: &Path, queue: PathBuf, url: &str, ca: Option<&Path>) -> Option<Handle> {
    let url: http::Uri = url.parse().unwrap();
    let endpoint = Endpoint::new(&url, ca).unwrap().into();
    let mut operator = Operator::default();
    for to in [
        Destination::new("jobs", Place::Queue(queue), vec![]),
        Destination::new("hook", Place::Webhook { url, token: Some("secret".into()), endpoint }, vec![]),
    ] {
        operator.destinations.insert(to.id(), to.into());
    }
    let key: Key = serve::root_key(ACCESS, SECRET).unwrap();
    match serve::alone(dir, anywhere(), [key], "us-east-1", operator) {
        Ok(handle) => Some(handle),
        Err(StartError::Engine(e)) if e.to_string().contains("io_uring") => {
            eprintln!("SKIPPED: io_uring cannot be used here: {e}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

fn messages(folder: &Path) -> Vec<serde_json::Value> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "json"));
    files.sort();
    let read = |path: PathBuf| serde_json::from_slice::<serde_json::Value>(&std::fs::read(path).unwrap()).unwrap();
    let body = |message: serde_json::Value| serde_json::from_str(message["Body"].as_str().unwrap()).unwrap();
    files.into_iter().map(read).map(body).collect()
}

fn keys(records: &[serde_json::Value]) -> Vec<String> {
    let of = |v: &serde_json::Value| v["Records"][0]["s3"]["object"]["key"].as_str().unwrap_or("test").to_owned();
    records.iter().map(of).collect()
}

#[test]
fn events_arrive_also_after_failures_and_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let queue = dir.path().join("queue");
    std::fs::create_dir(&queue).unwrap();
    let (url, taken) = hook(anywhere(), vec![500, 404], None);
    let Some(walrus) = start(dir.path(), queue.clone(), url) else { return };
    let mut c = Client::connect(walrus.local_addr()).unwrap();
    c.put("bucket", b"").unwrap().ok();
    let one = |element: &str, target: &str, arn: &str| {
        format!("<{element}><{target}>{arn}</{target}><Event>s3:ObjectCreated:*</Event></{element}>")
    };
    let document = one("QueueConfiguration", "Queue", "arn:aws:sqs:us-east-1::jobs");
    let set = |c: &mut Client, document: &str| {
        let text = format!("<NotificationConfiguration>{document}</NotificationConfiguration>");
        c.put("bucket?notification", text.as_bytes()).unwrap().ok();
    };
    set(&mut c, &document);
    for i in 0..3 {
        c.put(&format!("bucket/q{i}"), b"x").unwrap().ok();
    }
    until("the queue has all", || messages(&queue).len() == 4);
    assert_eq!(keys(&messages(&queue)), ["test", "q0", "q1", "q2"]);
    set(&mut c, &one("TopicConfiguration", "Topic", "arn:aws:sns:us-east-1::hook"));
    for i in 0..3 {
        c.put(&format!("bucket/w{i}"), b"x").unwrap().ok();
    }
    until("the webhook has all", || taken.lock().unwrap().len() >= 4);
    // What it refused (404) came again, and held up nothing.
    let mut taken_keys = keys(&taken.lock().unwrap());
    taken_keys.sort();
    assert_eq!(taken_keys, ["test", "w0", "w1", "w2"]);
    walrus.shutdown();

    // Nobody listens there: events wait, over a restart too.
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let walrus = start(dir.path(), queue.clone(), nowhere).unwrap();
    let mut c = Client::connect(walrus.local_addr()).unwrap();
    c.put("bucket/late", b"x").unwrap().ok();
    walrus.shutdown();
    let (url, taken) = hook(anywhere(), vec![], None);
    let walrus = start(dir.path(), queue, url).unwrap();
    until("the late one is there", || !taken.lock().unwrap().is_empty());
    assert_eq!(keys(&taken.lock().unwrap()), ["late"]);
    walrus.shutdown();
}

#[test]
fn webhooks_over_tls_are_told_by_whom_the_settings_trust() {
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    let dir = tempfile::tempdir().unwrap();
    let queue = dir.path().join("queue");
    std::fs::create_dir(&queue).unwrap();
    let made = |name: &str| {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, made.cert.pem()).unwrap();
        (made, path)
    };
    let ((server, ca), (_, strange)) = (made("ca.pem"), made("strange.pem"));
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(server.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![server.cert.der().clone()], key).unwrap();
    let (address, taken) = hook(anywhere(), vec![], Some(config.into()));
    let url = format!("https://localhost:{}/events", address.port());

    // A certificate of somebody else's is not taken: the event waits.
    let Some(walrus) = start_with(dir.path(), queue.clone(), &url, Some(&strange)) else { return };
    let mut c = Client::connect(walrus.local_addr()).unwrap();
    c.put("bucket", b"").unwrap().ok();
    let document = "<NotificationConfiguration><TopicConfiguration><Topic>arn:aws:sns:us-east-1::hook</Topic><Event>s3:ObjectCreated:*</Event></TopicConfiguration></NotificationConfiguration>";
    c.put("bucket?notification", document.as_bytes()).unwrap().ok();
    c.put("bucket/k", b"x").unwrap().ok();
    walrus.shutdown();
    assert!(taken.lock().unwrap().is_empty());

    let walrus = start_with(dir.path(), queue, &url, Some(&ca)).unwrap();
    until("the webhook has all", || taken.lock().unwrap().len() == 2);
    assert_eq!(keys(&taken.lock().unwrap()), ["test", "k"]);
    walrus.shutdown();
}

#[test]
fn logs_are_written_at_a_graceful_stop() {
    let dir = tempfile::tempdir().unwrap();
    let Some(walrus) = crate::walrus(dir.path()) else { return };
    let mut c = Client::connect(walrus.local_addr()).unwrap();
    c.put("bucket", b"").unwrap().ok();
    c.put("logs", b"").unwrap().ok();
    c.send(http::Method::PUT, "logs?acl", &[("x-amz-acl", "log-delivery-write")], b"").unwrap().ok();
    let document = "<BucketLoggingStatus><LoggingEnabled><TargetBucket>logs</TargetBucket><TargetPrefix>l/</TargetPrefix></LoggingEnabled></BucketLoggingStatus>";
    c.put("bucket?logging", document.as_bytes()).unwrap().ok();
    c.put("bucket/k", &crate::data(1, 300_000)).unwrap().ok();
    c.get("bucket/k").unwrap().ok();
    drop(c);
    walrus.shutdown();
    let walrus = crate::walrus(dir.path()).unwrap();
    let mut c = Client::connect(walrus.local_addr()).unwrap();
    let keys = c.get("logs").unwrap().ok().all("Key");
    assert_eq!(keys.len(), 1);
    let text = c.get(&format!("logs/{}", keys[0])).unwrap().ok().text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].contains(" 127.0.0.1 000000000000 ") && lines[0].contains(" REST.PUT.OBJECT k "), "{text}");
    assert!(lines[1].contains(" REST.GET.OBJECT k ") && lines[1].contains(" 200 - 300000 300000 "), "{text}");
    walrus.shutdown();
}
