//! kill -9 under load: what was acknowledged is there and equal, nothing half is listed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use crate::client::{ACCESS, Client, SECRET};
use crate::{anywhere, data};

const CLIENTS: u64 = 16;
const KEYS: u64 = 12;
const DIR: &str = "KARRI_TEST_WALRUS_DIR";

/// Not a test: the process that is killed.
#[test]
fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    match karri_objectstore::standalone(Path::new(&dir), anywhere(), ACCESS, SECRET, "us-east-1") {
        Ok(handle) => {
            println!("\nlistening {}", handle.local_addr());
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        }
        Err(e) => println!("\nrefused {e} {:?}", std::error::Error::source(&e).map(ToString::to_string)),
    }
}

#[allow(clippy::zombie_processes, reason = "who gets the child waits for it")]
fn start(dir: &Path) -> Option<(Child, SocketAddr)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::child", "--nocapture"])
        .env(DIR, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in lines.map_while(Result::ok) {
        if let Some(address) = line.strip_prefix("listening ") {
            return Some((child, address.parse().unwrap()));
        }
        if line.starts_with("refused ") {
            let _ = child.wait();
            assert!(line.contains("io_uring"), "{line}");
            eprintln!("SKIPPED: io_uring cannot be used here: {line}");
            return None;
        }
    }
    panic!("the child ended without a word");
}

/// What a key may hold, as seeds of [`body`]; `None`: nothing.
#[derive(Clone, Default)]
struct Key {
    acknowledged: Option<u64>,
    attempted: Option<u64>,
}

fn body(seed: u64) -> Vec<u8> {
    let len = [100, 4_096, 20_000, 65_536, 70_000, 300_000][(seed % 6) as usize];
    data(seed, len)
}

type Model = BTreeMap<String, Key>;

/// Puts until the server is gone; counts what was acknowledged.
fn work(address: SocketAddr, model: &mut Model, client: u64, round: u64, count: &(Mutex<usize>, Condvar)) {
    let Ok(mut c) = Client::connect(address) else { return };
    for n in 0.. {
        let key = format!("c{client:02}/k{:02}", n % KEYS);
        let seed = round << 48 | client << 40 | n;
        let entry = model.entry(key.clone()).or_default();
        entry.attempted = Some(seed);
        match c.put(&format!("bucket/{key}"), &body(seed)) {
            Ok(answer) if answer.status == 200 => *entry = Key { acknowledged: Some(seed), attempted: None },
            Ok(answer) => panic!("{}: {}", answer.status, answer.text()),
            Err(_) => return,
        }
        *count.0.lock().unwrap() += 1;
        count.1.notify_all();
    }
}

#[test]
fn everything_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut models: Vec<Model> = vec![Model::new(); CLIENTS as usize];
    for round in 0..3 {
        let Some((mut child, address)) = start(dir.path()) else { return };
        let mut c = Client::connect(address).unwrap();
        c.put("bucket", b"").unwrap().ok();
        check(&mut c, &mut models);
        let count = Arc::new((Mutex::new(0), Condvar::new()));
        let ended = AtomicUsize::new(0);
        std::thread::scope(|s| {
            for (client, model) in models.iter_mut().enumerate() {
                let (count, ended) = (count.clone(), &ended);
                s.spawn(move || {
                    work(address, model, client as u64, round, &count);
                    ended.fetch_add(1, Ordering::SeqCst);
                });
            }
            let enough = 300 + 150 * round as usize;
            let got = count.0.lock().unwrap();
            drop(count.1.wait_while(got, |got| *got < enough).unwrap());
            assert_eq!(ended.load(Ordering::SeqCst), 0, "nobody stops before the kill");
            child.kill().unwrap();
        });
        child.wait().unwrap();
    }
    let Some((mut child, address)) = start(dir.path()) else { return };
    check(&mut Client::connect(address).unwrap(), &mut models);
    child.kill().unwrap();
    child.wait().unwrap();
}

fn check(c: &mut Client, models: &mut [Model]) {
    let mut expected = Vec::new();
    for (key, entry) in models.iter_mut().flatten() {
        let got = c.get(&format!("bucket/{key}")).unwrap();
        let held = [entry.acknowledged, entry.attempted].into_iter().flatten().find(|seed| got.body == body(*seed));
        match (got.status, held, entry.acknowledged) {
            (200, Some(seed), _) => {
                *entry = Key { acknowledged: Some(seed), attempted: None };
                expected.push(key.clone());
            }
            (404, _, None) => entry.attempted = None,
            (status, ..) => panic!("{key}: {status}, {} bytes, not what was put", got.body.len()),
        }
    }
    expected.sort();
    assert_eq!(c.get("bucket").unwrap().ok().all("Key"), expected);
}
