//! The local store on a simulated disk: the suite, errors at open, damage.

use karri_engine::disk::sim::{Faults, SimDisk};
use karri_engine::sim;

use super::format::SUPERBLOCK_AT;
use super::*;
use crate::conformance;

fn options() -> Options {
    Options { log_bytes: Some(128 << 10), uuid: Some([7; 16]) }
}

/// A disk for a store with so many bytes of room.
fn disk_bytes(room: u64) -> u64 {
    room + (2 << 20)
}

#[test]
fn local_conforms_on_a_memory_disk() {
    sim::run(1, |_| {
        conformance::all(async |room| {
            LocalStore::open_or_format(SimDisk::memory(disk_bytes(room)), "disk", options()).await.unwrap()
        })
    });
}

#[test]
fn local_conforms_on_a_reordering_disk() {
    for seed in sim::seeds(5) {
        sim::run(seed, |sim| async move {
            let rng = std::cell::RefCell::new(sim.rng());
            conformance::all(async |room| {
                let disk = SimDisk::new(disk_bytes(room), rng.borrow_mut().fork(), Faults::reordering());
                LocalStore::open_or_format(disk, "disk", options()).await.unwrap()
            })
            .await;
        });
    }
}

async fn fresh(disk: &SimDisk) -> LocalStore<SimDisk> {
    LocalStore::open_or_format(disk.clone(), "disk", options()).await.unwrap()
}

fn hex(disk: &SimDisk, at: u64, len: usize) -> String {
    let lines = disk.peek(at, len);
    let lines = lines.chunks(16).enumerate().filter(|(_, line)| line.iter().any(|b| *b != 0));
    let line = |(n, line): (usize, &[u8])| {
        let bytes: Vec<_> = line.iter().map(|b| format!("{b:02x}")).collect();
        format!("{:06x}  {}", at + n as u64 * 16, bytes.join(" "))
    };
    lines.map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_documented_example_is_byte_exact() {
    let disk = sim::run(1, |_| async {
        let disk = SimDisk::memory(8 << 20);
        let options = Options { uuid: Some(*b"0123456789abcdef"), ..options() };
        let store = LocalStore::open_or_format(disk.clone(), "disk", options).await.unwrap();
        conformance::put(&store, b"karri", 5, Some(5)).await.unwrap();
        disk
    });
    assert_eq!(disk.peek(SUPERBLOCK_AT[0], 4096), disk.peek(SUPERBLOCK_AT[1], 4096));
    assert_eq!(hex(&disk, 0x10_0000, 128 << 10), "");
    let page = include_str!("../../docs/local-store.md");
    for (at, len) in [(0, 4096), (0x12_0000, 128 << 10), (0x20_0000, 6 << 20)] {
        let dump = hex(&disk, at, len);
        assert!(page.contains(&format!("```\n{dump}\n```")), "docs/local-store.md lacks\n{dump}");
    }
}

/// The page's bytes are also the fixture of version 1: a store that every later version opens.
#[test]
fn the_documented_example_opens() {
    let page = include_str!("../../docs/local-store.md");
    let mut image = vec![0; 8 << 20];
    for line in page.lines() {
        let Some((at, bytes)) = line.split_once("  ") else { continue };
        let bytes: Option<Vec<u8>> = bytes.split(' ').map(|b| u8::from_str_radix(b, 16).ok()).collect();
        if let (Ok(at), Some(bytes), 6) = (usize::from_str_radix(at, 16), bytes, at.len()) {
            image[at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }
    image.copy_within(0..4096, SUPERBLOCK_AT[1] as usize);
    sim::run(1, |_| async move {
        let disk = SimDisk::memory(8 << 20);
        disk.write(0, Buf::copy_padded(&image), true).await.0.unwrap();
        let store = LocalStore::open(disk, "the example").await.unwrap();
        let id = BlobId(1 << EPOCH_SHIFT | 1);
        assert_eq!(store.list(BlobId(0), 9), [id]);
        assert_eq!(conformance::get(&store, id, 0, 5).await.unwrap(), b"karri");
        assert_eq!(store.uuid(), *b"0123456789abcdef");
    });
}

#[test]
fn what_cannot_be_opened_says_why() {
    sim::run(1, |_| async {
        let check = async |disk: &SimDisk, want: &str| {
            let refused = LocalStore::open_or_format(disk.clone(), "/srv/k", options()).await.unwrap_err();
            let BulkError::Open { what, why } = &refused else { panic!("{refused:?}") };
            assert!(what == "/srv/k" && why.contains(want), "{why:?} does not say {want:?}");
        };
        let made = async |bytes: &[(u64, &[u8])]| {
            let disk = SimDisk::memory(8 << 20);
            fresh(&disk).await.close().await.unwrap();
            for (at, patch) in bytes {
                let mut page = disk.peek(*at - *at % 4096, 4096);
                page[(*at % 4096) as usize..][..patch.len()].copy_from_slice(patch);
                disk.write(*at - *at % 4096, Buf::copy_padded(&page), true).await.0.unwrap();
            }
            disk
        };
        let [a, b] = SUPERBLOCK_AT;
        check(&SimDisk::memory(512 << 10), "too few").await;
        check(&SimDisk::memory(2 << 20), "too few").await;
        check(&made(&[(a, b"ext4 or so"), (b, b"something ")]).await, "no karri magic; was it made by karri?").await;
        check(&made(&[(a + 8, &[2]), (b + 8, &[2])]).await, "version 2 and this karri reads version 1").await;
        check(&made(&[(a + 40, &[1]), (b + 60, &[1])]).await, "both superblocks are damaged").await;
        check(&made(&[(a + 40, &[1]), (b, &[0; 512])]).await, "one superblock is damaged").await;
        // One damaged copy is no obstacle, and is made whole.
        for patch in [(a + 40, &[1][..]), (b + 60, &[1]), (a, &[0; 512]), (b, b"garbage"), (a + 8, &[9])] {
            let disk = made(&[patch]).await;
            fresh(&disk).await;
            assert_eq!(disk.peek(a, 4096), disk.peek(b, 4096));
        }
        // Cut short.
        let disk = made(&[]).await;
        let short = SimDisk::memory(7 << 20);
        for at in (0..7 << 20).step_by(1 << 20) {
            short.write(at, Buf::copy_padded(&disk.peek(at, 1 << 20)), true).await.0.unwrap();
        }
        check(&short, "cut short").await;
        // Not made twice, and not opened unmade.
        assert!(LocalStore::format(&disk, "x", options()).await.unwrap_err().to_string().contains("already is"));
        let blank = LocalStore::open(SimDisk::memory(8 << 20), "x").await.unwrap_err();
        assert!(blank.to_string().contains("formatted?"), "{blank}");
    });
}

#[test]
fn rotten_data_is_never_given() {
    sim::run(1, |_| async {
        let disk = SimDisk::memory(16 << 20);
        let store = fresh(&disk).await;
        let data_at = store.shared.geometry.data_at;
        // 20 chunks, so that there is a table: 320 units of data, then the table's.
        let data = conformance::pattern(1, 20 << 16);
        let id = conformance::put(&store, &data, 1 << 20, Some(data.len() as u64)).await.unwrap();
        disk.rot(data_at + (3 << 16)..data_at + (4 << 16), 1);
        let read = async |at: u64, len: usize| conformance::get(&store, id, at, len).await;
        assert!(read(0, 3 << 16).await.unwrap() == data[..3 << 16]);
        assert!(read(4 << 16, 16 << 16).await.unwrap() == data[4 << 16..]);
        for (at, len) in [(0, 20 << 16), (3 << 16, 1 << 16), ((3 << 16) + 7, 1), ((4 << 16) - 1, 2)] {
            let refused = read(at, len).await;
            assert!(matches!(refused, Err(BulkError::Corrupt { .. })), "{len} at {at}: {refused:?}");
        }
        assert!(matches!(store.scrub(id).await, Err(BulkError::Corrupt { .. })));
        store.close().await.unwrap();
        // The table itself, seen once it must be read again. The blob stays, and says so.
        disk.rot(data_at + 320 * 4096..data_at + 320 * 4096 + 80, 1);
        let store = fresh(&disk).await;
        assert_eq!(store.list(BlobId(0), 9), [id]);
        let refused = conformance::get(&store, id, 0, 1).await;
        assert!(matches!(&refused, Err(BulkError::Corrupt { why, .. }) if why.contains("table")), "{refused:?}");
    });
}

/// Every group of a log, damaged: the store refuses, or what it gives is right and all that was acknowledged.
#[test]
fn a_rotten_log_is_refused() {
    for (clean, seed) in [(true, 1), (false, 2), (true, 3), (false, 4)] {
        sim::run(seed, |_| async move {
            let groups = 9;
            for rotten in 0..groups {
                let disk = SimDisk::memory(16 << 20);
                let store = fresh(&disk).await;
                for n in 0..groups {
                    conformance::put(&store, &conformance::pattern(n, 5000), 5000, None).await.unwrap();
                }
                if clean {
                    store.close().await.unwrap();
                }
                // The first log began in area 1; each group is one unit, of which about 110 bytes count.
                let at = store.shared.geometry.log_at(1) + rotten * 4096;
                disk.rot(at..at + 100, 1);
                let opened = LocalStore::open(disk.clone(), "disk").await;
                if clean || rotten + 1 < groups {
                    let why = opened.unwrap_err().to_string();
                    assert!(why.contains("log is damaged"), "group {rotten}, clean {clean}: {why}");
                } else {
                    // As good as torn: the last one after a crash.
                    assert_eq!(opened.unwrap().list(BlobId(0), 99).len() as u64, groups - 1);
                }
            }
        });
    }
}

#[test]
fn commits_share_flushes() {
    sim::run(1, |sim| async move {
        let disk = SimDisk::new(32 << 20, sim.rng(), Faults::reordering());
        let store = fresh(&disk).await;
        let before = disk.stats();
        conformance::put(&store, &[1; 4096], 4096, Some(4096)).await.unwrap();
        let after = disk.stats();
        let syncs = after.flushes + after.fuas - before.flushes - before.fuas;
        assert_eq!((syncs, after.writes - before.writes), (1, 2), "one blob: data, record, one flush");
        let before = disk.stats();
        let puts = (0..64).map(|_| conformance::put(&store, &[1; 4096], 4096, Some(4096)));
        assert!(futures_util::future::join_all(puts).await.iter().all(Result::is_ok));
        let after = disk.stats();
        assert!(after.flushes - before.flushes <= 16, "{} flushes for 64 blobs", after.flushes - before.flushes);
        let before = disk.stats();
        store.delete(store.list(BlobId(0), 64)).await.unwrap();
        let after = disk.stats();
        assert_eq!(after.flushes - before.flushes, 0);
        assert!(after.fuas - before.fuas <= 2, "deletes need no flush, only their record");
    });
}

#[test]
fn a_read_under_way_keeps_a_deleted_blob_in_place() {
    for seed in sim::seeds(20) {
        sim::run(seed, |sim| async move {
            let disk = SimDisk::new(4 << 20, sim.rng(), Faults::reordering());
            let store = fresh(&disk).await;
            let all = store.usage().total as usize;
            let data = conformance::pattern(1, all / 2);
            let id = conformance::put(&store, &data, 1 << 20, Some(data.len() as u64)).await.unwrap();
            let reader = karri_engine::spawn({
                let store = store.clone();
                async move { conformance::get(&store, id, 0, all / 2).await }
            });
            karri_engine::yield_now().await;
            store.delete(vec![id]).await.unwrap();
            // As much as there is: it must wait for the reader's space, or do without it.
            let other = conformance::pattern(2, all / 2);
            for _ in 0..3 {
                let put = conformance::put(&store, &other, 1 << 20, Some(other.len() as u64)).await;
                assert!(matches!(put, Ok(_) | Err(BulkError::NoSpace { .. })), "{put:?}");
            }
            match reader.await.unwrap() {
                Ok(bytes) => assert!(bytes == data),
                Err(e) => assert!(matches!(e, BulkError::NotFound { .. }), "{e:?}"),
            }
        });
    }
}

#[test]
fn a_write_that_nobody_waits_for_lands_in_no_other_owners_extent() {
    for seed in sim::seeds(20) {
        sim::run(seed, |sim| async move {
            let disk = SimDisk::new(4 << 20, sim.rng(), Faults::reordering());
            let store = fresh(&disk).await;
            let mut mine = Vec::new();
            while let Ok(e) = store.alloc_extent() {
                mine.push(e);
            }
            let gone = mine[0];
            let write = store.write_extent(gone, 0, conformance::owned(&[9; 4096]));
            let left = karri_engine::timeout(std::time::Duration::from_micros(1), write).await;
            store.free_extents(vec![gone]).await.unwrap();
            if left.is_err() {
                assert!(store.alloc_extent().is_err(), "the slot waits for the next opening");
            }
            store.free_extents(mine).await.unwrap();
            drop(store);
            let store = fresh(&disk).await;
            assert_eq!(store.usage().used, 0);
        });
    }
}

#[test]
fn a_device_that_is_full_below_a_sparse_file_is_no_space() {
    sim::run(1, |_| async {
        let disk = SimDisk::memory(16 << 20);
        let store = fresh(&disk).await;
        let data_at = store.shared.geometry.data_at;
        disk.fail(data_at..16 << 20, karri_engine::disk::sim::Fault::NoSpace, None);
        let put = conformance::put(&store, &[1; 100_000], 65536, Some(100_000)).await;
        assert!(matches!(put, Err(BulkError::NoSpace { .. })), "{put:?}");
        assert_eq!(store.usage().used, 0);
        disk.heal();
        conformance::put(&store, &[1; 100_000], 65536, Some(100_000)).await.unwrap();
    });
}

mod on_files {
    use karri_engine::cores::{CoreOptions, Cores, Pinning, block_on};

    use super::*;

    fn options() -> CoreOptions {
        CoreOptions { pin: Pinning::Never, ..CoreOptions::default() }
    }

    #[test]
    fn local_conforms_on_a_file() {
        let folder = tempfile::tempdir().unwrap();
        block_on(&options(), move || async move {
            let made = std::cell::Cell::new(0);
            conformance::all(async |room| {
                made.set(made.get() + 1);
                let path = folder.path().join(made.get().to_string());
                LocalStore::at(path, Some(room + (3 << 20))).await.unwrap()
            })
            .await;
        })
        .unwrap();
    }

    #[test]
    fn files_are_locked_made_and_found_again() {
        let folder = tempfile::tempdir().unwrap();
        block_on(&options(), move || async move {
            let path = folder.path().join("store");
            let none = LocalStore::at(&path, None).await.unwrap_err();
            assert!(none.to_string().contains("no size was given"), "{none}");
            let store = LocalStore::at(&path, Some(16 << 20)).await.unwrap();
            let id = conformance::put(&store, b"karri", 5, None).await.unwrap();
            let second = LocalStore::at(&path, None).await.unwrap_err();
            assert!(matches!(&second, BulkError::Open { why, .. } if why.contains("lock")), "{second:?}");
            store.close().await.unwrap();
            drop(store);
            let store = LocalStore::at(&path, Some(99 << 20)).await.unwrap();
            assert_eq!(conformance::get(&store, id, 0, 5).await.unwrap(), b"karri");
        })
        .unwrap();
    }

    #[test]
    fn cores_share_a_store() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let cores = Cores::start(3, &options()).unwrap();
        let sharer = {
            let path = path.clone();
            let opened = cores.handle(0).run_blocking(move || async move {
                let store = LocalStore::at(path, Some(64 << 20)).await.unwrap();
                // The file stays open (and locked) on this core.
                let sharer = store.sharer();
                karri_engine::detach(async move {
                    std::future::pending::<()>().await;
                    drop(store);
                });
                sharer
            });
            opened.unwrap()
        };
        let work = |core: u64| {
            let (sharer, path) = (sharer.clone(), path.clone());
            move || async move {
                let store = sharer.attach(open_again(path).unwrap());
                let one = |n: u64| {
                    let store = store.clone();
                    async move {
                        let data = conformance::pattern(core * 1000 + n, 30_000 + n as usize * 999);
                        let id = conformance::put(&store, &data, 20_000, None).await.unwrap();
                        assert!(conformance::get(&store, id, 0, data.len()).await.unwrap() == data);
                        let e = store.alloc_extent().unwrap();
                        store.write_extent(e, 0, conformance::owned(&data[..4096])).await.0.unwrap();
                        store.keep_extents(vec![e]).await.unwrap();
                        store.flush().await.unwrap();
                        let (result, buf) = store.read_extent(e, 0, Buf::zeroed(4096)).await;
                        result.unwrap();
                        assert!(buf.bytes() == &data[..4096]);
                        store.free_extents(vec![e]).await.unwrap();
                        if n.is_multiple_of(2) {
                            store.delete(vec![id]).await.unwrap()
                        }
                    }
                };
                for round in 0..5 {
                    futures_util::future::join_all((0..8).map(|n| one(round * 8 + n))).await;
                }
            }
        };
        let replies: Vec<_> = (0..3).map(|c| cores.handle(c).try_run(work(c as u64)).unwrap()).collect();
        // Each core waits for its own; the last one closes.
        for reply in replies {
            cores.handle(0).run_blocking(move || async move { reply.await.unwrap() }).unwrap();
        }
        let left = cores.handle(1).run_blocking(move || async move {
            let store = sharer.attach(open_again(path).unwrap());
            let left = store.list(BlobId(0), 1000).len();
            store.close().await.unwrap();
            (left, store.kept_extents().len())
        });
        assert_eq!(left.unwrap(), (60, 0));
        cores.shutdown();
    }
}
