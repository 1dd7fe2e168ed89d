//! Both stores pass the same suite.

use std::sync::Arc;

use karri_meta::conformance::{self, block_on};
use karri_meta::memory::MemoryStore;
use karri_meta::rocks::{Options, RocksStore};
use karri_meta::{Batch, MetaStore, Scan, prefix_end};

#[test]
fn memory() {
    conformance::check(|| Arc::new(MemoryStore::new()));
    conformance::check(|| Arc::new(MemoryStore::seeded(7)));
}

/// A store that goes away with its folder.
fn scratch(options: &Options) -> (tempfile::TempDir, RocksStore) {
    let dir = tempfile::tempdir().expect("a folder");
    let store = RocksStore::open(dir.path().join("meta"), options).expect("opens");
    (dir, store)
}

#[test]
fn rocks() {
    let dir = tempfile::tempdir().expect("a folder");
    let made = std::cell::Cell::new(0);
    conformance::check(|| {
        made.set(made.get() + 1);
        Arc::new(RocksStore::open(dir.path().join(made.get().to_string()), &Options::default()).expect("opens"))
    });
}

/// Small buffers: tables, compactions and reads that miss the cache happen within the workload.
#[test]
fn rocks_against_a_model_with_little_memory() {
    let options = Options { cache_bytes: 64 << 10, write_buffer_bytes: 64 << 10, ..Options::default() };
    let (_dir, store) = scratch(&options);
    // Ballast pushes the workload's keys out of memory.
    for round in 0..20u8 {
        let ballast = (0..64u8).fold(Batch::new(), |batch, i| batch.put(vec![b'z', i, round], vec![i ^ round; 4096]));
        block_on(store.commit(ballast)).expect("commits");
        conformance::against_model(&store, u64::from(round), 10);
        block_on(store.commit(Batch::new().del_range("a".into().."z".into()))).expect("commits");
    }
    let ballast = block_on(store.scan(Scan::prefix("z", usize::MAX))).expect("scans");
    assert_eq!(ballast.len(), 20 * 64);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 8, ..Default::default() })]
    /// The same seeded workload, closed and opened again half-way.
    #[test]
    fn rocks_against_a_model_over_a_restart(seed: u64) {
        let dir = tempfile::tempdir().expect("a folder");
        let twin = MemoryStore::new();
        for half in 0..2 {
            let rocks = RocksStore::open(dir.path(), &Options::default()).expect("opens");
            let everything = || Scan::new("".into()..prefix_end(b""), usize::MAX);
            proptest::prop_assert_eq!(block_on(rocks.scan(everything())), block_on(twin.scan(everything())));
            for store in [&rocks as &dyn MetaStore, &twin] {
                block_on(store.commit(Batch::new().del_range("".into()..prefix_end(b"")))).expect("commits");
                conformance::against_model(store, seed ^ half, 30);
            }
        }
    }
}
