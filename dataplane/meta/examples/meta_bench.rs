//! Commits per second at depths 1, 16 and 64, and the latency of a get and a small scan:
//! `cargo run --release -p karri-meta --example meta_bench [DIR]`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use karri_meta::conformance::block_on;
use karri_meta::rocks::{Options, RocksStore};
use karri_meta::{Batch, MetaStore, Scan};

const ROUND: Duration = Duration::from_secs(2);

fn main() {
    let scratch = tempfile::tempdir().expect("a folder");
    let dir = std::env::args().nth(1).map_or(scratch.path().to_owned(), Into::into);
    let store = RocksStore::open(dir.join("meta-bench"), &Options::default()).expect("opens");
    for value in [200, 4096] {
        for depth in [1, 16, 64] {
            commits(&store, depth, value);
        }
    }
    gets(&store, "memtable and cache");
    drop(store);
    let store = RocksStore::open(dir.join("meta-bench"), &Options::default()).expect("opens");
    gets(&store, "after a restart");
    let _ = std::fs::remove_dir_all(dir.join("meta-bench"));
}

fn commits(store: &RocksStore, depth: u64, value: usize) {
    let done = AtomicU64::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for who in 0..depth {
            let done = &done;
            scope.spawn(move || {
                while began.elapsed() < ROUND {
                    let n = done.fetch_add(1, Ordering::Relaxed);
                    let key = format!("object/{value}-{depth}/{n:010}/{who}");
                    let batch = Batch::new().check(key.clone(), None).put(key, vec![n as u8; value]);
                    block_on(store.commit(batch)).expect("commits");
                }
            });
        }
    });
    let rate = done.into_inner() as f64 / began.elapsed().as_secs_f64();
    println!(
        "commit, {value:>4} B values, depth {depth:>2}: {rate:>7.0}/s, {:>6.0} us each",
        depth as f64 * 1e6 / rate
    );
}

fn gets(store: &RocksStore, state: &str) {
    let keys = block_on(store.scan(Scan::prefix("object/", 20_000))).expect("scans");
    for pass in 1..=2 {
        let began = Instant::now();
        for (key, _) in &keys {
            block_on(store.get(key.clone())).expect("reads");
        }
        let get = began.elapsed().as_secs_f64() * 1e6 / keys.len() as f64;
        let began = Instant::now();
        for (key, _) in keys.iter().step_by(100) {
            let range = key.clone()..karri_meta::prefix_end(b"object/");
            block_on(store.scan(Scan::new(range, 20))).expect("scans");
        }
        let scan = began.elapsed().as_secs_f64() * 1e6 / keys.len().div_ceil(100) as f64;
        println!("{state}, pass {pass}, {} keys: get {get:.1} us, scan of 20 {scan:.1} us", keys.len());
    }
}
