//! `ExtentVolume` on the twins of both stores: the suite, clones, and what is left after a crash.

use std::sync::Arc;

use futures_util::FutureExt;
use karri_bulk::memory::MemoryBulk;
use karri_bulk::{BulkStore, EXTENT_BYTES};
use karri_engine::buf::Buf;
use karri_meta::MetaStore;
use karri_meta::memory::MemoryStore;

use super::{ExtentVolume, Volume, conformance, extent, journal};
use crate::error::Error;
use crate::map::Map;

const MIB: u64 = EXTENT_BYTES;

struct Bed {
    bulk: MemoryBulk,
    meta: Arc<dyn MetaStore>,
}

impl Bed {
    fn new(extents: u64) -> Self {
        Self { bulk: MemoryBulk::new(extents * MIB), meta: Arc::new(MemoryStore::new()) }
    }
    fn open(&self, serial: u64, size: u64, below: Vec<Arc<Map>>) -> ExtentVolume<MemoryBulk> {
        let name = format!("vol-{serial:017x}");
        ExtentVolume::open(&name, serial, size, self.bulk.clone(), self.meta.clone(), below)
            .now_or_never()
            .expect("memory is ready")
            .expect("open")
    }
    fn free(&self) -> u64 {
        let usage = self.bulk.usage();
        (usage.total - usage.used) / MIB
    }
}

fn run<F: Future>(f: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(f)
}

async fn put(v: &ExtentVolume<MemoryBulk>, at: u64, byte: u8, len: usize) -> Result<(), Error> {
    let mut buf = Buf::zeroed(len);
    buf.bytes_mut().fill(byte);
    v.write(at, buf, false).await.0
}

async fn get(v: &ExtentVolume<MemoryBulk>, at: u64, len: usize) -> Vec<u8> {
    let (outcome, buf) = v.read(at, Buf::zeroed(len)).await;
    outcome.expect("read");
    buf.bytes().to_vec()
}

#[test]
fn passes_the_suite() {
    let bed = Bed::new(200);
    let serial = std::cell::Cell::new(0);
    run(conformance::run(async |size| {
        serial.set(serial.get() + 1);
        bed.open(serial.get(), size, Vec::new())
    }));
}

#[test]
fn a_clone_of_a_full_image_passes_the_suite_after_a_discard() {
    // Everything below is 0xBB; discarded, it must read as zeros although the image is still there.
    let bed = Bed::new(200);
    run(async {
        let base = bed.open(1, 8 * MIB, Vec::new());
        put(&base, 0, 0xBB, 8 << 20).await.unwrap();
        base.close().await.unwrap();
        let map = Arc::new(base.map());
        let serial = std::cell::Cell::new(1);
        conformance::run(async |size| {
            serial.set(serial.get() + 1);
            let v = bed.open(serial.get(), size, vec![map.clone()]);
            v.discard(0, size).await.unwrap();
            v
        })
        .await;
        assert_eq!(get(&base, 0, 8 << 20).await, vec![0xBB; 8 << 20]);
    });
}

#[test]
fn the_memory_twin_passes_the_suite() {
    run(conformance::run(async |size| super::MemoryVolume::new("vol-twin", size)));
}

#[test]
fn clones_share_the_image_and_keep_their_changes() {
    let bed = Bed::new(16);
    run(async {
        let base = bed.open(1, 3 * MIB, Vec::new());
        put(&base, MIB, 7, 2 << 20).await.unwrap();
        base.close().await.unwrap();
        let map = Arc::new(base.map());
        let (a, b) = (bed.open(2, 4 * MIB, vec![map.clone()]), bed.open(3, 4 * MIB, vec![map.clone()]));
        let free = bed.free();
        assert_eq!(get(&a, MIB - 512, 1024).await, [vec![0; 512], vec![7; 512]].concat());
        assert_eq!(get(&a, 3 * MIB - 512, 1024).await, [vec![7; 512], vec![0; 512]].concat());
        // A sector: the rest of its block is read from the image, the rest of the extent stays below.
        put(&a, MIB + 512, 9, 512).await.unwrap();
        assert_eq!(a.map().allocated_bytes(), MIB, "one extent was taken");
        let want = [vec![7; 512], vec![9; 512], vec![7; 8192]].concat();
        assert_eq!(get(&a, MIB, 9216).await, want);
        assert_eq!(get(&b, MIB, 9216).await, vec![7; 9216]);
        a.close().await.unwrap();
        drop(a);
        assert_eq!(free - bed.free(), 1, "spare extents went back");
        let a = bed.open(2, 4 * MIB, vec![map]);
        assert_eq!(get(&a, MIB, 9216).await, want);
        // Zeroes hide the image, whole extents and parts.
        a.write_zeroes(MIB, 2 * MIB - 4096).await.unwrap();
        a.flush().await.unwrap();
        assert_eq!(free, bed.free(), "the clone's extent came back");
        assert_eq!(get(&a, 3 * MIB - 8192, 8192).await, [vec![0; 4096], vec![7; 4096]].concat());
    });
}

#[test]
fn what_was_flushed_survives_and_what_was_not_is_the_old() {
    let bed = Bed::new(16);
    run(async {
        let v = bed.open(1, 4 * MIB, Vec::new());
        put(&v, 0, 1, 8192).await.unwrap();
        v.flush().await.unwrap();
        put(&v, 8192, 2, 4096).await.unwrap(); // an unmapped block of a kept extent
        put(&v, 2 * MIB, 3, 4096).await.unwrap(); // a fresh extent
        v.discard(0, 4096).await.unwrap();
        drop(v);
        bed.bulk.crash();
        let v = bed.open(1, 4 * MIB, Vec::new());
        assert_eq!(get(&v, 0, 12288).await, [vec![1; 8192], vec![0; 4096]].concat());
        assert_eq!(get(&v, 2 * MIB, 4096).await, [0; 4096]);
    });
}

#[test]
fn flushes_do_only_what_there_is_to_do() {
    let bed = Bed::new(4);
    run(async {
        let v = bed.open(1, 4 * MIB, Vec::new());
        let flushes = || v.stats().flushes.load(std::sync::atomic::Ordering::Relaxed);
        v.flush().await.unwrap();
        assert_eq!(flushes(), 0, "nothing to do");
        put(&v, 0, 1, 1 << 20).await.unwrap();
        v.flush().await.unwrap();
        v.flush().await.unwrap();
        assert_eq!(flushes(), 1);
        put(&v, 0, 2, 4096).await.unwrap();
        assert!(v.0.snapshot().deltas.puts.is_empty(), "a mapped block needs no commit");
        put(&v, 0, 2, 4096).await.unwrap();
        v.flush().await.unwrap();
        assert_eq!(flushes(), 2);
    });
}

#[test]
fn a_full_store_refuses_and_discards_make_room() {
    let bed = Bed::new(2);
    run(async {
        let v = bed.open(1, 8 * MIB, Vec::new());
        put(&v, 0, 1, 2 << 20).await.unwrap();
        let e = put(&v, 4 * MIB, 2, 4096).await.unwrap_err();
        assert!(matches!(e, Error::NoSpace { .. }), "{e:?}");
        put(&v, 0, 3, 4096).await.expect("mapped blocks are rewritten");
        let e = put(&v, 2 * MIB - 4096, 3, 8192).await.unwrap_err();
        assert!(matches!(e, Error::NoSpace { .. }));
        assert_eq!(get(&v, 2 * MIB - 4096, 8192).await, [vec![1; 4096], vec![0; 4096]].concat(), "nothing was written");
        v.discard(MIB, MIB).await.unwrap();
        put(&v, 4 * MIB, 2, 4096).await.expect("the discarded extent was used");
        assert_eq!(get(&v, MIB, 4096).await, [0; 4096]);
        assert_eq!(get(&v, 4 * MIB, 8192).await, [vec![2; 4096], vec![0; 4096]].concat(), "not the old owner's bytes");
    });
}

#[test]
fn a_failed_sync_stops_the_volume() {
    let bed = Bed::new(4);
    run(async {
        let v = bed.open(1, 4 * MIB, Vec::new());
        put(&v, 0, 1, 4096).await.unwrap();
        bed.bulk.fail_after(Some(0));
        assert!(matches!(v.flush().await, Err(Error::Bulk { .. })));
        bed.bulk.fail_after(None);
        assert!(matches!(v.flush().await, Err(Error::Stopped { .. })));
        assert!(matches!(put(&v, 0, 1, 4096).await, Err(Error::Stopped { .. })));
        assert_eq!(get(&v, 0, 4096).await, [1; 4096]);
    });
}

#[test]
fn a_map_record_outside_the_volume_or_damaged_is_told() {
    let bed = Bed::new(4);
    run(async {
        let v = bed.open(1, 4 * MIB, Vec::new());
        put(&v, 3 * MIB, 1, 4096).await.unwrap();
        v.flush().await.unwrap();
        let outcome = extent::load_map(&*bed.meta, 1, 2 * MIB).await;
        assert!(matches!(outcome, Err(Error::Corrupt { .. })));
        let key = crate::map::record::key(1, 3);
        let batch = karri_meta::Batch::new().put(key, &b"nonsense"[..]);
        bed.meta.commit(batch).await.unwrap();
        let outcome = extent::load_map(&*bed.meta, 1, 4 * MIB).await;
        assert!(matches!(outcome, Err(Error::Corrupt { .. })));
    });
}

#[test]
fn what_the_journal_had_no_room_for_is_not_answered_before_it_is_committed() {
    let meta = Arc::new(MemoryStore::new());
    let bed = Bed { bulk: MemoryBulk::new(64 * MIB), meta: meta.clone() };
    let dir = tempfile::tempdir().unwrap();
    let boot = journal::boot_id().unwrap();
    run(async {
        let v = bed.open(1, 8 * MIB, Vec::new());
        v.set_journal(journal::Journal::with(&dir.path().join("a.journal"), 1, &boot, 4).unwrap());
        put(&v, 0, 1, 4096).await.unwrap();
        put(&v, 4096, 1, 4096).await.unwrap();
        meta.set_full(true);
        let mut failed = 0;
        for i in 2..8u64 {
            failed += u64::from(put(&v, i * 4096, 2, 4096).await.is_err());
        }
        assert!((1..6).contains(&failed), "{failed}");
        // Its block holds data by now, but no record and no note says so.
        put(&v, 7 * 4096, 3, 4096).await.unwrap_err();
        v.discard(7 * 4096, 4096).await.unwrap_err();
        v.discard(7 * 4096, 4096).await.unwrap_err();
        meta.set_full(false);
        put(&v, 7 * 4096, 4, 4096).await.unwrap();
        let want = get(&v, 7 * 4096, 4096).await;
        std::mem::forget(v);
        let v = bed.open(1, 8 * MIB, Vec::new());
        assert!(get(&v, 7 * 4096, 4096).await == want);
    });
}

#[test]
fn answered_requests_survive_the_process_through_the_journal() {
    let bed = Bed::new(64);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.journal");
    let boot = journal::boot_id().unwrap();
    run(async {
        let v = bed.open(1, 8 * MIB, Vec::new());
        put(&v, 5 * MIB, 4, 1 << 20).await.unwrap();
        v.flush().await.unwrap();
        v.set_journal(journal::Journal::create(&path, 1, &boot).unwrap());
        put(&v, 0, 1, 8192).await.unwrap();
        put(&v, 512, 2, 512).await.unwrap();
        put(&v, 2 * MIB, 3, 2 << 20).await.unwrap();
        v.write_zeroes(5 * MIB, 8192).await.unwrap();
        // Far more changes than the journal holds: some are flushed on the way.
        for i in 0..10_000u64 {
            let at = 6 * MIB + i % 256 * 4096;
            put(&v, at, 5, 4096).await.unwrap();
            v.discard(at, 4096).await.unwrap();
        }
        put(&v, 7 * MIB + 4096, 6, 4096).await.unwrap();
        let want = get(&v, 0, 8 << 20).await;
        // The process dies; extents and data are where they are, the notes are in the page cache.
        std::mem::forget(v);
        let v = bed.open(1, 8 * MIB, Vec::new());
        assert!(get(&v, 0, 8 << 20).await != want, "the map alone does not know");
        drop(v);
        let catalog = crate::store::Catalog::new(bed.meta.clone());
        let (serial, entries) = journal::read(&std::fs::read(&path).unwrap(), &boot).unwrap().expect("a journal");
        assert_eq!(catalog.replay("vol-1", serial, 8 * MIB, &entries, &bed.bulk).await.unwrap(), entries.len());
        let v = bed.open(1, 8 * MIB, Vec::new());
        assert!(get(&v, 0, 8 << 20).await == want);
    });
}
