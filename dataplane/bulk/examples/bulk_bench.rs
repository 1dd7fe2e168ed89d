//! What the local store costs on a real file, beside the bare disk in the same run: blob PUTs of 1 MiB at depth 1 and 32,
//! extent writes and reads of 4 KiB at depth 32, with syncs and CPU time for each operation.
//!
//! `cargo run --release -p karri-bulk --example bulk_bench [FILE [SECONDS]]`; FILE is made, 2 GiB, and removed.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use karri_bulk::conformance::{owned, pattern};
use karri_bulk::local::{LocalStore, Options, open_file};
use karri_bulk::{BlobWriter, BulkStore, EXTENT_BYTES};
use karri_engine::buf::Buf;
use karri_engine::cores::{CoreOptions, block_on};
use karri_engine::disk::{Disk, DiskError, Done};

/// A disk that counts.
#[derive(Clone)]
struct Counted<D> {
    disk: D,
    syncs: Rc<Cell<u64>>,
}

impl<D: Disk> Disk for Counted<D> {
    fn size(&self) -> u64 {
        self.disk.size()
    }
    async fn read(&self, at: u64, buf: Buf) -> Done {
        self.disk.read(at, buf).await
    }
    async fn write(&self, at: u64, buf: Buf, fua: bool) -> Done {
        self.syncs.set(self.syncs.get() + u64::from(fua));
        self.disk.write(at, buf, fua).await
    }
    async fn flush(&self) -> Result<(), DiskError> {
        self.syncs.set(self.syncs.get() + 1);
        self.disk.flush().await
    }
    async fn discard(&self, at: u64, len: u64) -> Result<(), DiskError> {
        self.disk.discard(at, len).await
    }
    async fn write_zeroes(&self, at: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        self.disk.write_zeroes(at, len, unmap).await
    }
}

/// This thread's time on a CPU, in kernel and user space.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0))
}

struct Bench {
    span: Duration,
    syncs: Rc<Cell<u64>>,
}

impl Bench {
    /// Runs `op(worker, n)` over and over, `depth` at a time.
    async fn run(&self, name: &str, depth: u64, op: impl AsyncFn(u64, u64)) {
        let (began, cpu_before, syncs_before) = (Instant::now(), cpu(), self.syncs.get());
        let until = began + self.span;
        let worker = |w: u64| {
            let op = &op;
            async move {
                let mut n = 0;
                while Instant::now() < until {
                    op(w, n).await;
                    n += 1;
                }
                n
            }
        };
        let done: u64 = futures_util::future::join_all((0..depth).map(worker)).await.into_iter().sum();
        let took = began.elapsed().as_secs_f64();
        let per = |x: f64| x / done.max(1) as f64;
        println!(
            "{name:<34} depth {depth:>2}: {:>9.0}/s  {:>7.1} us CPU/op  {:>5.2} syncs/op",
            done as f64 / took,
            per((cpu() - cpu_before).as_secs_f64() * 1e6),
            per((self.syncs.get() - syncs_before) as f64)
        );
    }
}

fn scattered(worker: u64, n: u64) -> u64 {
    (worker * 1_000_003 + n).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
}

async fn bench(path: std::path::PathBuf, span: Duration) {
    let syncs = Rc::new(Cell::new(0));
    let bare = open_file(&path, Some(2 << 30)).expect("the file opens");
    let disk = Counted { disk: bare.clone(), syncs: syncs.clone() };
    let store = LocalStore::open_or_format(disk, "bench", Options::default()).await.expect("the store opens");
    let bench = Bench { span, syncs: syncs.clone() };
    let data = pattern(1, 1 << 20);

    // All of the file's blocks exist before anything is measured.
    let mut extents = Vec::new();
    while let Ok(e) = store.alloc_extent() {
        store.write_extent(e, 0, owned(&data)).await.0.expect("a write");
        extents.push(e);
    }
    let used = extents.split_off(256);
    store.free_extents(used).await.expect("a free");
    store.keep_extents(extents.clone()).await.expect("a keep");

    let put = async |delete: bool| {
        let mut writer = store.create(Some(1 << 20)).await.expect("room");
        let id = writer.id();
        writer.append(owned(&data)).await.expect("an append");
        writer.seal().await.expect("a seal");
        if delete {
            store.delete(vec![id]).await.expect("a delete");
        }
        id
    };
    for depth in [1, 32] {
        bench
            .run("bare: write 1 MiB, flush", depth, async |w, _| {
                let at = store.usage().total - (w + 1) * EXTENT_BYTES;
                bare.write(at, owned(&data), false).await.0.expect("a write");
                bare.flush().await.expect("a flush");
                syncs.set(syncs.get() + 1);
            })
            .await;
        bench
            .run("blob: create, append 1 MiB, seal, delete", depth, async |_, _| {
                put(true).await;
            })
            .await;
    }
    let mut ids = Vec::new();
    for _ in 0..64 {
        ids.push(put(false).await);
    }
    bench
        .run("blob: read 1 MiB, verified", 8, async |w, n| {
            let id = ids[(scattered(w, n) % ids.len() as u64) as usize];
            store.read_blob(id, 0, Buf::zeroed(1 << 20)).await.0.expect("a read");
        })
        .await;
    for write in [true, false] {
        let name = if write { "write" } else { "read" };
        let pick = |w, n| {
            let x = scattered(w, n);
            (extents[(x % extents.len() as u64) as usize], (x >> 9) % 256 * 4096)
        };
        let first = store.usage().total - 256 * EXTENT_BYTES;
        bench
            .run(&format!("bare: {name} 4 KiB"), 32, async |w, n| {
                let at = first + scattered(w, n) % (256 * 256) * 4096;
                let buf = Buf::zeroed(4096);
                if write { bare.write(at, buf, false).await } else { bare.read(at, buf).await }.0.expect("an I/O");
            })
            .await;
        bench
            .run(&format!("extent: {name} 4 KiB"), 32, async |w, n| {
                let (e, at) = pick(w, n);
                let buf = Buf::zeroed(4096);
                if write { store.write_extent(e, at, buf).await } else { store.read_extent(e, at, buf).await }
                    .0
                    .expect("an I/O");
            })
            .await;
    }
    store.close().await.expect("it closes");
}

fn main() {
    let mut args = std::env::args_os().skip(1);
    let path: std::path::PathBuf = args.next().unwrap_or_else(|| "bulk-bench.store".into()).into();
    let seconds = args.next().and_then(|s| s.to_str()?.parse().ok()).unwrap_or(2.0);
    let file = path.clone();
    block_on(&CoreOptions::default(), move || bench(file, Duration::from_secs_f64(seconds)))
        .expect("the engine starts");
    std::fs::remove_file(path).expect("the file was made here");
}
