use std::cell::Cell;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::buf::{ALIGN, Buf, Segment};
use crate::cores::{CoreOptions, Cores, RunError, block_on};
use crate::disk::uring::{OpenOptions, UringDisk};
use crate::disk::{Dir, Disk, DiskError, conformance};
use crate::landing::Landings;
use crate::ring::{Fd, pin_memory, poll, read_eventfd, register_memory};
use crate::{now, sleep, spawn, timeout};

fn options() -> CoreOptions {
    CoreOptions::default()
}

fn file(dir: &tempfile::TempDir, size: u64) -> UringDisk {
    let open = OpenOptions { create: true, size: Some(size), ..OpenOptions::default() };
    UringDisk::open(dir.path().join("disk"), &open).unwrap()
}

/// A directory whose file system has O_DIRECT, where the machine gives one.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).or_else(|_| tempfile::tempdir()).unwrap()
}

#[test]
fn the_uring_disk_conforms() {
    block_on(&options(), || async {
        let dir = directory();
        conformance::all(&file(&dir, conformance::SIZE)).await;
    })
    .unwrap();
}

#[test]
fn the_buffered_disk_conforms() {
    block_on(&options(), || async {
        let dir = tempfile::tempdir().unwrap();
        let open =
            OpenOptions { create: true, size: Some(conformance::SIZE), buffered: true, ..OpenOptions::default() };
        conformance::all(&UringDisk::open(dir.path().join("disk"), &open).unwrap()).await;
    })
    .unwrap();
}

#[test]
fn a_small_ring_takes_many_operations() {
    let mut options = options();
    options.ring.entries = 4;
    block_on(&options, || async {
        let dir = directory();
        conformance::all(&file(&dir, conformance::SIZE)).await;
    })
    .unwrap();
}

#[test]
fn disks_are_refused_in_words() {
    block_on(&options(), || async {
        let dir = directory();
        let refused = |name: &str, open: &OpenOptions| match UringDisk::open(dir.path().join(name), open) {
            Err(e) => e.to_string(),
            Ok(disk) => panic!("{disk:?} was opened"),
        };
        assert!(refused("none", &OpenOptions::default()).contains("none"));
        let odd = OpenOptions { create: true, size: Some(5000), ..OpenOptions::default() };
        assert!(refused("odd", &odd).contains("multiple of 4096"));
        let held = OpenOptions { create: true, size: Some(1 << 20), lock: true, ..OpenOptions::default() };
        let _first = UringDisk::open(dir.path().join("held"), &held).unwrap();
        assert!(refused("held", &held).contains("lock"));
        let larger = OpenOptions { size: Some(2 << 20), ..OpenOptions::default() };
        assert!(refused("held", &larger).contains("cut short"));
    })
    .unwrap();
}

#[test]
fn a_file_cut_short_is_an_error() {
    block_on(&options(), || async {
        let dir = directory();
        let disk = file(&dir, 1 << 20);
        std::fs::OpenOptions::new().write(true).open(disk.path()).unwrap().set_len(64 << 10).unwrap();
        let (result, buf) = disk.read(32 << 10, Buf::zeroed(64 << 10)).await;
        assert!(matches!(&result, Err(DiskError::Io { why, .. }) if why.contains("ends early")), "{result:?}");
        assert_eq!(buf.len(), 64 << 10);
    })
    .unwrap();
}

#[test]
fn registered_memory_is_read_and_written() {
    block_on(&options(), || async {
        struct Memory(Buf);
        // SAFETY: touched by one foreign buffer at a time here.
        unsafe impl Sync for Memory {}
        let dir = directory();
        let disk = file(&dir, 1 << 20);
        let memory = Arc::new(Memory(Buf::zeroed(1 << 20)));
        let base = memory.0.segments().as_slice()[0].ptr;
        // SAFETY: the memory lives in its keeper.
        let registered = unsafe { register_memory(base, 1 << 20, memory.clone()) }.unwrap();
        let buf = |at: usize, len: usize| {
            // SAFETY: inside the memory, which lives in its keeper.
            unsafe { Buf::foreign(vec![Segment { ptr: base.add(at), len }], memory.clone()) }
        };
        let mut from = buf(0, 8192);
        from.copy_from(0, &[7; 8192]);
        disk.write(4096, from, true).await.0.unwrap();
        let (result, to) = disk.read(4096, buf(65536, 8192)).await;
        result.unwrap();
        let mut bytes = [0; 8192];
        to.copy_to(0, &mut bytes);
        assert_eq!(bytes, [7; 8192]);
        drop(registered);
        disk.read(4096, buf(0, 4096)).await.0.unwrap();
        // Pinned elsewhere and borrowed; in one piece and scattered; given back with reads under way.
        let pin = |at: usize, len: usize| {
            // SAFETY: inside the memory, which lives in its keeper.
            unsafe { pin_memory(base.add(at), len, memory.clone()) }
        };
        let halves = [pin(0, 512 << 10).unwrap(), pin(512 << 10, 512 << 10).unwrap()];
        let lent = match (halves[0].lend(), halves[1].lend()) {
            (Ok(a), Ok(b)) => [a, b],
            (Err(e), _) | (_, Err(e)) => return println!("SKIPPED borrowing pinned memory: {e}"),
        };
        let ring = crate::ring::current();
        // SAFETY: inside the memory.
        let at = |at: usize| unsafe { base.add(at) };
        let (low, high) = (ring.region_of(at(0), 512 << 10), ring.region_of(at(512 << 10), 512 << 10));
        assert!(low.is_some() && high.is_some() && low != high);
        assert_eq!((ring.region_of(at(0), (512 << 10) + 1), ring.region_of(at(1 << 20), 1)), (None, None));
        let scattered = |places: &[usize]| {
            let segments = places.iter().map(|p| Segment { ptr: at(*p), len: 4096 }).collect();
            // SAFETY: inside the memory, which lives in its keeper.
            unsafe { Buf::foreign(segments, memory.clone()) }
        };
        // Inside one half, and across both.
        for places in [[131072, 65536], [131072, 786432]] {
            let mut buf = scattered(&places);
            buf.zero(0, 8192);
            let (result, back) = disk.read(4096, buf).await;
            result.unwrap();
            back.copy_to(0, &mut bytes);
            assert_eq!(bytes, [7; 8192]);
            disk.write(16384, back, false).await.0.unwrap();
        }
        let landings = Landings::new();
        for token in 0..8 {
            let one = Segment { ptr: at(token * 8192), len: 4096 };
            // SAFETY: inside the memory, which lives in its keeper.
            let buf = unsafe { Buf::foreign_one(one, memory.clone()) };
            disk.begin(Dir::Read, 4096, buf, &landings, token as u64).expect("simple");
        }
        drop((lent, halves));
        assert_eq!(ring.region_of(at(0), 1), None);
        let (mut all, mut some) = (0, Vec::new());
        while all < 8 {
            std::future::poll_fn(|cx| landings.poll_any(cx)).await;
            landings.take(&mut some);
            for landed in some.drain(..) {
                assert_eq!(landed.result, Ok(4096), "token {}", landed.token);
                landed.buf.copy_to(0, &mut bytes[..4096]);
                assert_eq!(bytes[..4096], [7; 4096]);
                all += 1;
            }
        }
    })
    .unwrap();
}

#[test]
fn cores_run_jobs_and_stop() {
    let cores = Cores::start(2, &options()).unwrap();
    let sum: usize = (0..2).map(|i| cores.handle(i).run_blocking(move || async move { i + 1 }).unwrap()).sum();
    assert_eq!(sum, 3);
    // From one core to the other and back.
    let other = cores.handle(1).clone();
    let there = cores
        .handle(0)
        .run_blocking(move || async move {
            other.run(|| async { std::thread::current().name().unwrap_or("").to_owned() }).await.unwrap()
        })
        .unwrap();
    assert_eq!(there, "core-1");
    let panicked = cores.handle(0).run_blocking(|| async { panic!("told you") });
    assert_eq!(panicked, Err::<(), _>(RunError::Closed));
    assert_eq!(cores.handle(0).run_blocking(|| async { 4 }), Ok(4), "a panic ends its task alone");
    let handle = cores.handle(0).clone();
    let waiting = std::thread::spawn(move || handle.run_blocking(std::future::pending::<()>));
    while cores.handle(0).stats().tasks == 0 {
        cores.handle(0).run_blocking(|| async {}).unwrap();
    }
    cores.shutdown();
    assert_eq!(waiting.join().unwrap(), Err(RunError::Closed), "a job that cannot end is told so");
    assert_eq!(cores.handle(0).run_blocking(|| async {}), Err(RunError::Closed));
}

#[test]
fn counters_show_on_a_registry() {
    let cores = Cores::start(1, &options()).unwrap();
    cores.handle(0).run_blocking(|| async { sleep(Duration::from_millis(1)).await }).unwrap();
    let mut registry = prometheus_client::registry::Registry::default();
    crate::cores::register_metrics(&mut registry, cores.handles());
    let text = karri_base::observe::render(&registry);
    assert!(text.contains("engine_enters_total{core=\"0\"}"), "{text}");
    assert!(text.contains("engine_inbox{core=\"0\"} 0"), "{text}");
}

#[test]
fn a_full_inbox_refuses_or_waits() {
    let cores = Cores::start(1, &CoreOptions { inbox: 2, ..options() }).unwrap();
    let core = cores.handle(0);
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let began = Arc::new(AtomicBool::new(false));
    let b = began.clone();
    let _blocked = core
        .try_run(move || async move {
            b.store(true, Ordering::SeqCst);
            held.recv().unwrap();
        })
        .unwrap();
    while !began.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    let replies: Vec<_> = (0..2).map(|i| core.try_run(move || async move { i }).unwrap()).collect();
    assert_eq!(core.try_run(|| async {}).err(), Some(RunError::Full));
    let waiting = std::thread::spawn({
        let core = core.clone();
        move || core.run_blocking(|| async { 9 })
    });
    hold.send(()).unwrap();
    assert_eq!(waiting.join().unwrap(), Ok(9));
    drop(replies);
}

#[test]
fn timers_and_foreign_wakes_end_a_sleep() {
    block_on(&options(), || async {
        let began = now();
        sleep(Duration::from_millis(20)).await;
        let took = now() - began;
        assert!(took >= Duration::from_millis(20) && took < Duration::from_secs(2), "{took:?}");
        let (tx, rx) = std::sync::mpsc::channel();
        let shared = Arc::new(AtomicU8::new(0));
        let theirs = shared.clone();
        let thread = std::thread::spawn(move || {
            let waker: std::task::Waker = rx.recv().unwrap();
            std::thread::park_timeout(Duration::from_millis(20));
            theirs.store(5, Ordering::SeqCst);
            waker.wake();
        });
        let mut tx = Some(tx);
        let got = std::future::poll_fn(|cx| {
            if let Some(tx) = tx.take() {
                tx.send(cx.waker().clone()).unwrap();
            }
            match shared.load(Ordering::SeqCst) {
                0 => std::task::Poll::Pending,
                n => std::task::Poll::Ready(n),
            }
        });
        assert_eq!(timeout(Duration::from_secs(20), got).await, Ok(5));
        thread.join().unwrap();
    })
    .unwrap();
}

fn eventfd(flags: i32) -> OwnedFd {
    // SAFETY: eventfd makes a new fd.
    unsafe {
        let fd = libc::eventfd(0, flags);
        assert!(fd >= 0);
        OwnedFd::from_raw_fd(fd)
    }
}

#[test]
fn doorbells_ring() {
    block_on(&options(), || async {
        for flags in [0, libc::EFD_NONBLOCK] {
            let fd = eventfd(flags);
            let ringer = fd.try_clone().unwrap();
            let fd = Fd::from(fd);
            let waiting = {
                let fd = fd.clone();
                spawn(async move {
                    (poll(&fd, libc::POLLIN).await.unwrap() & libc::POLLIN, read_eventfd(&fd).await.unwrap())
                })
            };
            sleep(Duration::from_millis(5)).await;
            let three = 3u64.to_ne_bytes();
            // SAFETY: eight bytes of ours.
            assert_eq!(unsafe { libc::write(ringer.as_raw_fd(), three.as_ptr().cast(), 8) }, 8);
            assert_eq!(waiting.await.unwrap(), (libc::POLLIN, 3));
        }
        // A dropped wait is cancelled: the descriptor is closed, and the core ends at once.
        let fd = Fd::from(eventfd(0));
        assert!(timeout(Duration::from_millis(5), poll(&fd, libc::POLLIN)).await.is_err());
    })
    .unwrap();
}

/// Trap 1 of the notes: the core ends while reads are in flight. Every buffer's memory is watched: after the core has
/// freed it, nobody may write to it. Foreign memory stays mapped here, so a late write shows as a changed stamp.
#[test]
fn nothing_is_written_after_the_core_has_ended() {
    const BUFS: usize = 64;
    const LEN: usize = 64 << 10;
    struct Memory {
        _buf: Buf,
        alive: Arc<AtomicBool>,
    }
    // SAFETY: the test touches the memory by pointer alone.
    unsafe impl Sync for Memory {}
    impl Drop for Memory {
        fn drop(&mut self) {
            self.alive.store(false, Ordering::SeqCst);
        }
    }
    let dir = directory();
    block_on(&options(), {
        let path = dir.path().to_owned();
        move || async move {
            let open = OpenOptions { create: true, size: Some((BUFS * LEN) as u64), ..OpenOptions::default() };
            let disk = UringDisk::open(path.join("disk"), &open).unwrap();
            for n in 0..BUFS {
                let mut buf = Buf::zeroed(LEN);
                buf.bytes_mut().fill(0xAA);
                disk.write((n * LEN) as u64, buf, false).await.0.unwrap();
            }
            disk.flush().await.unwrap();
        }
    })
    .unwrap();
    let began = Instant::now();
    let mut in_flight = 0;
    for round in 0..30 {
        // Pages that outlive everything: what a freed buffer's memory would become for its next owner.
        let arena = Buf::zeroed(BUFS * LEN);
        let base = arena.segments().as_slice()[0].ptr as usize;
        let alive: Vec<_> = (0..BUFS).map(|_| Arc::new(AtomicBool::new(true))).collect();
        let keepers = alive.clone();
        let path = dir.path().join("disk");
        let submitted = block_on(&options(), move || async move {
            let disk = UringDisk::open(path, &OpenOptions::default()).unwrap();
            let submitted = Rc::new(Cell::new(0));
            for (n, alive) in keepers.into_iter().enumerate() {
                let (disk, submitted) = (disk.clone(), submitted.clone());
                spawn(async move {
                    let keeper = Arc::new(Memory { _buf: Buf::zeroed(0), alive });
                    let segment = Segment { ptr: (base + n * LEN) as *mut u8, len: LEN };
                    // SAFETY: the arena outlives the core; the keeper tells when the engine lets go.
                    let buf = unsafe { Buf::foreign(vec![segment], keeper) };
                    submitted.set(submitted.get() + 1);
                    disk.read((n * LEN) as u64, buf).await.0.unwrap();
                });
            }
            for _ in 0..=round % 3 {
                crate::yield_now().await;
            }
            submitted.get()
            // The core ends here, with reads in flight.
        })
        .unwrap();
        in_flight += submitted;
        assert!(alive.iter().all(|a| !a.load(Ordering::SeqCst)), "every buffer was let go, none leaked");
        // Stamp what "the next owner" got, and see whether anybody writes over it.
        // SAFETY: our arena; volatile, since the suspect is the kernel.
        unsafe {
            for at in (0..BUFS * LEN).step_by(512) {
                std::ptr::write_volatile((base + at) as *mut u8, 0x55);
            }
            let until = Instant::now() + Duration::from_millis(3);
            while Instant::now() < until {
                for at in (0..BUFS * LEN).step_by(ALIGN) {
                    assert_eq!(std::ptr::read_volatile((base + at) as *const u8), 0x55, "written after its end");
                }
            }
        }
    }
    assert!(in_flight > 0 && began.elapsed() < Duration::from_secs(60));
}
