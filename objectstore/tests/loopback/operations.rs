//! What an operator relies on: corruption in a real file is told and never served, a stop lets requests end.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use http::Method;

use crate::client::Client;
use crate::{data, until, walrus};

#[test]
fn flipped_bytes_in_the_file_are_never_served() {
    let dir = tempfile::tempdir().unwrap();
    let Some(walrus) = walrus(dir.path()) else { return };
    let mut c = Client::connect(walrus.local_addr()).unwrap();
    c.put("bucket", b"").unwrap().ok();
    let body = data(7, 2 << 20);
    c.put("bucket/hurt", &body).unwrap().ok();
    c.put("bucket/sound", &data(8, 300_000)).unwrap().ok();

    // The middle of the object, wherever it lies in the file.
    let wanted = &body[1 << 20..(1 << 20) + 4096];
    let path = dir.path().join("objects");
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut block = vec![0; 4 << 20];
    let (mut at, mut found) = (0, None);
    while found.is_none() {
        let n = file.read_at(&mut block, at).unwrap();
        assert!(n > 0 && at < 1 << 30, "the bytes are in the file");
        found = block[..n].chunks(4096).position(|b| b == wanted).map(|i| at + i as u64 * 4096);
        at += n as u64;
    }
    let at = found.unwrap();
    file.write_at(&[!wanted[9]], at + 9).unwrap();
    file.sync_all().unwrap();

    let range = |from: usize, to: usize| format!("bytes={from}-{to}");
    let ask = |c: &mut Client, range: &str| c.send(Method::GET, "bucket/hurt", &[("range", range)], b"");
    let fresh = || Client::connect(walrus.local_addr()).unwrap();
    assert!(ask(&mut fresh(), &range(0, 99_999)).unwrap().ok().body == body[..100_000]);
    let refused = ask(&mut fresh(), &range(1 << 20, (1 << 20) + 99)).unwrap();
    assert_eq!((refused.status, refused.all("Code")), (500, vec!["InternalError".to_owned()]));
    // The whole of it: the connection ends before the body does.
    assert!(fresh().get("bucket/hurt").is_err());
    assert!(fresh().get("bucket/sound").unwrap().ok().body == data(8, 300_000));

    // A pass that is asked for finds it, and only it.
    let mut c = fresh();
    let number = c.put("?scrub", b"").unwrap().ok().all("Number")[0].clone();
    let mut report = String::new();
    until("the pass is over", || {
        report = fresh().get("?scrub").unwrap().ok().text();
        report.split("<Checked>").nth(1).is_some_and(|r| r.contains(&format!("<Number>{number}</Number>")))
    });
    let checked = report.split("<Checked>").nth(1).unwrap();
    assert!(checked.contains("<Left>1</Left>") && checked.contains("<Key>hurt</Key>"), "{report}");
    walrus.shutdown();

    // The report outlives a restart.
    let walrus = crate::walrus(dir.path()).unwrap();
    let mut c = Client::connect(walrus.local_addr()).unwrap();
    until("the report is read", || c.get("?scrub").unwrap().ok().text().contains("<Key>hurt</Key>"));
}

#[test]
fn a_stop_lets_requests_end_and_takes_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let Some(walrus) = walrus(dir.path()) else { return };
    let address = walrus.local_addr();
    let mut c = Client::connect(address).unwrap();
    c.put("bucket", b"").unwrap().ok();
    let body = data(3, 8 << 20);
    c.put("bucket/read", &body).unwrap().ok();

    // An upload in its middle, and a download that nobody has read yet.
    let mut upload = Client::connect(address).unwrap();
    upload.write(Method::PUT, "bucket/written", &[], &body, &body[..1 << 20]).unwrap();
    let mut download = Client::connect(address).unwrap();
    download.write(Method::GET, "bucket/read", &[], b"", b"").unwrap();
    let mut idle = Client::connect(address).unwrap();
    idle.get("bucket").unwrap().ok();
    // Both have been heard.
    assert_eq!(download.peek(), b'H');

    let stopping = std::thread::spawn(move || walrus.shutdown());
    until("nobody new is let in", || std::net::TcpStream::connect(address).is_err());
    assert!(!stopping.is_finished(), "it waits for what is under way");
    upload.push(&body[1 << 20..]).unwrap();
    let put = upload.read(false).unwrap().ok();
    assert_eq!(put.header("connection"), "close");
    assert!(download.read(false).unwrap().ok().body == body);
    stopping.join().unwrap();
    assert!(idle.get("bucket").is_err(), "an idle connection is closed");

    let walrus = crate::walrus(dir.path()).unwrap();
    let mut c = Client::connect(walrus.local_addr()).unwrap();
    assert!(c.get("bucket/written").unwrap().ok().body == body);
}

#[test]
fn a_stop_does_not_wait_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let Some(walrus) = walrus(dir.path()) else { return };
    let mut c = Client::connect(walrus.local_addr()).unwrap();
    c.put("bucket", b"").unwrap().ok();
    let body = data(3, 1 << 20);
    c.write(Method::PUT, "bucket/k", &[], &body, &body[..1000]).unwrap();
    let began = std::time::Instant::now();
    walrus.shutdown();
    assert!(began.elapsed() < Duration::from_secs(40), "an upload that stands still is cut off");
}

#[test]
fn each_request_is_a_line_of_the_audit_log() {
    use karri_objectstore::StartError;
    use karri_objectstore::operator::Operator;
    use karri_objectstore::serve::{alone, root_key};

    use crate::client::{ACCESS, SECRET};

    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("audit.log");
    let operator = Operator { audit_log: Some(log.clone()), ..Operator::default() };
    let key = root_key(ACCESS, SECRET).unwrap();
    let walrus = match alone(&dir.path().join("store"), crate::anywhere(), [key], "us-east-1", operator) {
        Ok(walrus) => walrus,
        Err(StartError::Engine(e)) => return eprintln!("SKIPPED: io_uring cannot be used here: {e}"),
        Err(e) => panic!("{e}"),
    };
    let mut c = Client::connect(walrus.local_addr()).unwrap();
    c.put("bucket", b"").unwrap().ok();
    c.put("bucket/a key", b"body").unwrap().ok();
    assert_eq!(c.get("bucket/none").unwrap().status, 404);
    assert_eq!(c.send(Method::HEAD, "other/k", &[], b"").unwrap().status, 404);
    walrus.shutdown();
    let text = std::fs::read_to_string(&log).unwrap();
    let has = |words: &[&str]| text.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(has(&["\"CreateBucket\"", "\"arn:aws:s3:::bucket\"", "\"allow\"", "\"error\":null", ":root"]), "{text}");
    assert!(has(&["\"PutObject\"", "\"arn:aws:s3:::bucket/a key\"", "\"key\":\"AKIATEST", "127.0.0.1"]), "{text}");
    assert!(has(&["\"GetObject\"", "\"NoSuchKey\""]) && has(&["\"HeadObject\"", "\"NoSuchBucket\""]), "{text}");
    assert!(!text.contains(SECRET), "no secrets");
}
