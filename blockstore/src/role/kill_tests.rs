//! kill -9 of a process that serves a volume, under a guest that writes, flushes now and then, and never forgets what was
//! answered. The process is this test binary, started again for the `child` test.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use karri_engine::sim::Rng;
use karri_meta::rocks::{Options as RocksOptions, RocksStore};

use super::{ExportOptions, export};
use crate::driver::{Driver, Options, T_FLUSH, T_OUT};

const CHILD: &str = "KARRI_TEST_SERVE_IN";
const BYTES: u64 = 16 << 20;
const BLOCKS: u64 = BYTES / 4096;

/// Not a test of its own: what the parent starts.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let dir = Path::new(&dir);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let meta = RocksStore::open(dir.join("meta"), &RocksOptions::default()).expect("records");
        let options = ExportOptions {
            store: dir.join("store"),
            store_bytes: Some(96 << 20),
            volume: "vol-kill".into(),
            size: BYTES,
            vhost_user: dir.join("k.sock"),
            queues: 1,
            pin_memory: false,
            read_only: false,
        };
        let mut registry = karri_base::observe::registry("storage");
        let _exported = export(options, Arc::new(meta), &mut registry).await.expect("export");
        std::future::pending::<()>().await;
    });
}

fn spawn(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["role::kill_tests::child", "--exact", "--nocapture"])
        .env(CHILD, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("this binary again")
}

fn until<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < end, "{what} did not happen in a minute");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// A guest's view: what each block holds, and what is under way.
struct Guest {
    driver: Driver,
    rng: Rng,
    stamp: u64,
    holds: HashMap<u64, u64>,
    /// By slot: block and stamp; a flush has none.
    under_way: HashMap<u16, Option<(u64, u64)>>,
}

impl Guest {
    fn submit(&mut self, slot: u16) {
        if self.rng.ppm(10_000) {
            self.driver.submit(0, slot, T_FLUSH, 0, 0);
            self.under_way.insert(slot, None);
            return;
        }
        // No two writes of one block at once: their order would be anyone's.
        let busy: Vec<u64> = self.under_way.values().flatten().map(|(block, _)| *block).collect();
        let block = loop {
            let block = self.rng.below(BLOCKS);
            if !busy.contains(&block) {
                break block;
            }
        };
        self.stamp += 1;
        let at = self.driver.buffer_at(0, slot);
        self.driver.memory.write(at, &self.stamp.to_le_bytes().repeat(512)).unwrap();
        self.driver.submit(0, slot, T_OUT, block * 8, 4096);
        self.under_way.insert(slot, Some((block, self.stamp)));
    }

    fn reap(&mut self) {
        while let Some((slot, _)) = self.driver.poll(0) {
            assert_eq!(self.driver.status(0, slot), 0);
            let done = self.under_way.remove(&slot).expect("answered once");
            self.holds.extend(done);
        }
    }

    fn verify(&mut self) {
        for mib in 0..BYTES >> 20 {
            let bytes = self.driver.read(mib << 20, 1 << 20).expect("read");
            for (i, block) in bytes.chunks_exact(4096).enumerate() {
                let index = (mib << 8) + i as u64;
                let want = self.holds.get(&index).copied().unwrap_or(0).to_le_bytes();
                let got = block.chunks_exact(8).all(|c| c == want);
                assert!(got, "block {index} is not what was answered: {:?}, not {want:?}", &block[..8]);
            }
        }
    }
}

#[test]
fn what_was_answered_outlives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("k.sock");
    let mut process = spawn(dir.path());
    let options = Options { size: 16, ..Options::default() };
    let driver = until("the first start", || Driver::connect(&socket, options.clone()).ok());
    let mut guest = Guest { driver, rng: Rng::new(42), stamp: 0, holds: HashMap::new(), under_way: HashMap::new() };
    for _round in 0..5 {
        let end = Instant::now() + Duration::from_millis(30 + guest.rng.below(200));
        while Instant::now() < end {
            guest.reap();
            for slot in 0..16 {
                if !guest.under_way.contains_key(&slot) {
                    guest.submit(slot);
                }
            }
            guest.driver.publish(0);
            guest.driver.wait(0, Duration::from_millis(5));
        }
        process.kill().expect("SIGKILL");
        process.wait().expect("it is dead");
        guest.reap();
        process = spawn(dir.path());
        until("the next start", || guest.driver.reconnect().ok());
        until("the replay", || {
            guest.driver.wait(0, Duration::from_millis(20));
            guest.reap();
            guest.under_way.is_empty().then_some(())
        });
        guest.verify();
    }
    assert!(guest.stamp > 200, "the guest wrote: {}", guest.stamp);
    process.kill().expect("SIGKILL");
    process.wait().expect("it is dead");
}
