//! Through the socket, as a guest: real I/O, reconnects, replays, hostile rings, and memory that changes under I/O.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use karri_bulk::local::{LocalStore, Options as StoreOptions};
use karri_engine::buf::Buf;
use karri_engine::cores::{CoreOptions, Cores};
use karri_engine::disk::Dir;
use karri_engine::disk::uring::{OpenOptions, UringDisk};
use karri_engine::landing::{Landed, Landings};
use karri_meta::MetaStore;
use karri_meta::memory::MemoryStore;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use vhost::vhost_user::VhostUserFrontend;

use super::Server;
use crate::driver::{Driver, Options, T_DISCARD, T_FLUSH, T_GET_ID, T_IN, T_OUT, T_WRITE_ZEROES};
use crate::error::Error;
use crate::role::core_local::CoreLocal;
use crate::store::{Catalog, NewVolume};
use crate::virtio::block::Device;
use crate::virtio::memory::GuestMemory;
use crate::volume::{Done, ExtentVolume, Volume};

const MIB: u64 = 1 << 20;

type Local = ExtentVolume<LocalStore<UringDisk>>;

/// A store on a real file and a core; what a process is.
struct Process {
    cores: Cores,
    held: CoreLocal<Local>,
}

struct Bed {
    dir: tempfile::TempDir,
    meta: Arc<dyn MetaStore>,
}

impl Bed {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a folder"), meta: Arc::new(MemoryStore::new()) }
    }
    fn path(&self) -> PathBuf {
        self.dir.path().join("a.sock")
    }
    /// Opens everything as after a start.
    fn start(&self, size: u64) -> Process {
        let cores = Cores::start(1, &CoreOptions::default()).expect("io_uring");
        let (path, held, catalog) = (self.dir.path().join("store"), CoreLocal::new(), Catalog::new(self.meta.clone()));
        let job = move || async move {
            let open = OpenOptions { create: true, size: Some(64 * MIB), lock: true, ..OpenOptions::default() };
            let disk = UringDisk::open(&path, &open).expect("disk");
            let store = LocalStore::open_or_format(disk, "test", StoreOptions::default()).await.expect("store");
            catalog.collect(&store).await.expect("collect");
            let new = NewVolume { name: "vol-a".into(), size, account: "1".into(), source: None };
            catalog.create(&new, None).await.expect("create");
            held.set(catalog.open("vol-a", store).await.expect("open"));
        };
        cores.handle(0).run_blocking(job).expect("the core runs");
        Process { cores, held }
    }
}

impl Process {
    fn serve(&self, path: &Path, size: u64, queues: u16, read_only: bool) -> Server {
        let held = self.held;
        start(&self.cores, path, Device::new(size, queues, read_only), move || (*held.get()).clone())
    }
    /// kill -9, as far as the front end and the store can tell: nothing in flight is answered, nothing is flushed.
    fn kill(self) {
        let held = self.held;
        let _ = self.cores.handle(0).run_blocking(move || async move { drop(held.take()) });
        self.cores.shutdown();
    }
}

fn start<V: Volume>(
    cores: &Cores,
    path: &Path,
    device: Arc<Device>,
    make: impl FnOnce() -> V + Send + 'static,
) -> Server {
    let started = Server::start(path, device, cores.handle(0), make);
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(started).expect("serve")
}

fn small() -> Options {
    Options { queues: 1, size: 16, buffer: 2 << 20, event_idx: true }
}

#[test]
fn a_guest_reads_what_it_wrote() {
    let bed = Bed::new();
    let process = bed.start(8 * MIB);
    let server = process.serve(&bed.path(), 8 * MIB, 2, false);
    for event_idx in [true, false] {
        let mut d = Driver::connect(&bed.path(), Options { event_idx, queues: 2, ..small() }).expect("connect");
        assert_eq!(d.capacity(), 8 * MIB);
        let data: Vec<u8> = (0..2 * MIB).map(|i| (i * 31 % 251) as u8).collect();
        d.write(MIB - 4096, &data).expect("across extents");
        assert_eq!(d.read(MIB - 4096, data.len()).unwrap(), data);
        d.write(512, &[7; 1024]).expect("sectors");
        assert_eq!(d.read(0, 2048).unwrap(), [vec![0; 512], vec![7; 1024], vec![0; 512]].concat());
        d.flush().unwrap();
        d.unmap(T_DISCARD, MIB, MIB).unwrap();
        d.unmap(T_WRITE_ZEROES, 512, 512).unwrap();
        assert_eq!(d.read(MIB, 4096).unwrap(), [0; 4096]);
        assert_eq!(d.read(0, 2048).unwrap(), [vec![0; 1024], vec![7; 512], vec![0; 512]].concat());
        d.unmap(T_DISCARD, 0, 8 * MIB).unwrap();
        assert_eq!(d.request(T_GET_ID, 0, 20).unwrap(), 0);
        assert_eq!(d.request(99, 0, 0).unwrap(), 2);
        assert_eq!(d.request(T_IN, 8 * MIB / 512, 512).unwrap(), 1);
        // The second queue works too, and many at once.
        for slot in 0..16 {
            d.submit(1, slot, T_OUT, u64::from(slot) * 8, 4096);
        }
        d.publish(1);
        for _ in 0..16 {
            let (slot, _) = d.next(1, Duration::from_secs(10)).expect("a completion");
            assert_eq!(d.status(1, slot), 0);
        }
        d.unmap(T_DISCARD, 0, 8 * MIB).unwrap();
        assert_eq!(d.stop_queue(0).unwrap(), u32::from(d.offered(0)));
    }
    server.stop();
    assert!(!bed.path().exists());
}

#[test]
fn a_read_only_device_refuses_changes() {
    let bed = Bed::new();
    let process = bed.start(2 * MIB);
    let server = process.serve(&bed.path(), 2 * MIB, 1, true);
    let mut d = Driver::connect(&bed.path(), small()).expect("connect");
    assert!(d.write(0, &[1; 512]).is_err());
    assert_eq!(d.read(0, 512).unwrap(), [0; 512]);
    d.flush().unwrap();
    server.stop();
}

/// A volume whose requests stay where they are until it is told to let them go.
#[derive(Clone)]
struct Stuck<V> {
    inner: V,
    stuck: Arc<Mutex<bool>>,
}

impl<V: Volume> Stuck<V> {
    async fn pass(&self) {
        while *self.stuck.lock().unwrap() {
            karri_engine::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl<V: Volume> Volume for Stuck<V> {
    type Begun = std::convert::Infallible;

    fn name(&self) -> &str {
        self.inner.name()
    }
    fn size(&self) -> u64 {
        self.inner.size()
    }
    async fn read(&self, at: u64, buf: Buf) -> Done {
        self.pass().await;
        self.inner.read(at, buf).await
    }
    async fn write(&self, at: u64, buf: Buf, fua: bool) -> Done {
        self.pass().await;
        self.inner.write(at, buf, fua).await
    }
    async fn flush(&self) -> Result<(), Error> {
        self.inner.flush().await
    }
    async fn discard(&self, at: u64, len: u64) -> Result<(), Error> {
        self.inner.discard(at, len).await
    }
    async fn write_zeroes(&self, at: u64, len: u64) -> Result<(), Error> {
        self.inner.write_zeroes(at, len).await
    }
}

#[test]
fn what_a_killed_back_end_left_is_done_by_the_next() {
    let bed = Bed::new();
    let first = bed.start(8 * MIB);
    let stuck = Arc::new(Mutex::new(false));
    let (held, flag) = (first.held, stuck.clone());
    let device = Device::new(8 * MIB, 1, false);
    let server = start(&first.cores, &bed.path(), device, move || Stuck { inner: (*held.get()).clone(), stuck: flag });
    let mut d = Driver::connect(&bed.path(), small()).expect("connect");
    d.write(0, &[1; 4096]).unwrap();
    d.flush().unwrap();
    // Five writes are taken and not answered; two more are offered and not even taken.
    *stuck.lock().unwrap() = true;
    for slot in 0..5u16 {
        let at = d.buffer_at(0, slot);
        d.memory.write(at, &[0x10 + slot as u8; 4096]).unwrap();
        d.submit(0, slot, T_OUT, u64::from(slot) * 8, 4096);
    }
    d.publish(0);
    while server.stats().requests.load(Relaxed) < 7 {
        std::thread::yield_now();
    }
    first.kill();
    drop(server);
    d.disconnect();
    for slot in 5..7u16 {
        let at = d.buffer_at(0, slot);
        d.memory.write(at, &[0x10 + slot as u8; 4096]).unwrap();
        d.submit(0, slot, T_OUT, u64::from(slot) * 8, 4096);
    }
    d.publish(0);
    assert!(d.poll(0).is_none(), "nothing was answered");

    let second = bed.start(8 * MIB);
    let _ = std::fs::remove_file(bed.path());
    let server = second.serve(&bed.path(), 8 * MIB, 1, false);
    d.reconnect().expect("reconnect");
    let mut seen = [false; 7];
    for _ in 0..7 {
        let (slot, _) = d.next(0, Duration::from_secs(10)).expect("replayed");
        assert_eq!(d.status(0, slot), 0);
        assert!(!std::mem::replace(&mut seen[usize::from(slot)], true), "slot {slot} was answered twice");
    }
    assert_eq!(server.stats().replayed.load(Relaxed), 5);
    for slot in 0..7 {
        assert_eq!(d.read(slot * 4096, 4096).unwrap(), [0x10 + slot as u8; 4096], "slot {slot}");
    }
    // A lost connection without a death: the same, with nothing to replay.
    d.reconnect().expect("reconnect");
    assert_eq!(d.read(0, 4096).unwrap(), [0x10; 4096]);
    assert_eq!(server.stats().replayed.load(Relaxed), 5);
    server.stop();
}

#[test]
fn memory_that_could_shrink_is_refused_from_strangers() {
    use std::os::fd::AsRawFd;
    use vhost::VhostBackend;
    let bed = Bed::new();
    let process = bed.start(8 * MIB);
    let server = process.serve(&bed.path(), 8 * MIB, 1, false);
    let file = tempfile::tempfile().unwrap();
    file.set_len(MIB).unwrap();
    let region = vhost::VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: MIB,
        userspace_addr: 1 << 40,
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    };
    let mut d = Driver::connect(&bed.path(), small()).expect("connect");
    assert!(d.frontend().set_mem_table(&[region]).is_err());
    d.disconnect();
    let mut d = Driver::connect(&bed.path(), small()).expect("connect");
    d.write(0, &[1; 4096]).unwrap();
    d.disconnect();
    server.stop();

    let (held, device) = (process.held, Device::trusting(8 * MIB, 1, false, false));
    let server = start(&process.cores, &bed.path(), device, move || (*held.get()).clone());
    let mut d = Driver::connect(&bed.path(), small()).expect("connect");
    d.frontend().set_mem_table(&[region]).expect("its own front end");
    d.disconnect();
    server.stop();
}

#[test]
fn memory_may_change_while_requests_run() {
    for pins in [false, true] {
        memory_changes(pins);
    }
}

fn memory_changes(pins: bool) {
    let bed = Bed::new();
    let process = bed.start(8 * MIB);
    let (held, device) = (process.held, Device::trusting(8 * MIB, 1, false, pins));
    let server = start(&process.cores, &bed.path(), device, move || (*held.get()).clone());
    let mut d = Driver::connect(&bed.path(), small()).expect("connect");
    // What is mapped is read and written without tasks.
    for mib in 0..4 {
        d.write(mib * MIB, &vec![mib as u8; MIB as usize]).unwrap();
    }
    if pins {
        let begun = std::time::Instant::now();
        while server.stats().registered.load(Relaxed) == 0 && begun.elapsed() < Duration::from_secs(20) {
            d.read(0, 4096).unwrap();
        }
        if server.stats().registered.load(Relaxed) == 0 {
            println!("SKIPPED memory_may_change_while_requests_run (pinned): this system pins or lends no memory");
            return;
        }
        for mib in 0..4 {
            assert_eq!(d.read(mib * MIB, MIB as usize).unwrap(), vec![mib as u8; MIB as usize]);
        }
    }
    for round in 0..50u64 {
        for slot in 0..16u16 {
            let kind = if (round + u64::from(slot)).is_multiple_of(2) { T_OUT } else { T_IN };
            d.submit(0, slot, kind, u64::from(slot) * 256, 65536);
        }
        d.publish(0);
        d.resend_memory().expect("the table again");
        for _ in 0..16 {
            let (slot, _) = d.next(0, Duration::from_secs(10)).expect("a completion");
            assert_eq!(d.status(0, slot), 0);
        }
    }
    d.write(MIB, &[0x5A; 65536]).unwrap();
    assert_eq!(d.read(MIB, 65536).unwrap(), [0x5A; 65536]);
    // Taken away altogether: the queue stops, nothing else does.
    d.frontend().reset_device().expect("reset");
    d.reconnect().expect("reconnect");
    d.write(0, &[3; 512]).unwrap();
    server.stop();
}

#[test]
fn hostile_rings_hurt_nobody() {
    let bed = Bed::new();
    let process = bed.start(8 * MIB);
    let server = process.serve(&bed.path(), 8 * MIB, 1, false);
    let mut rng = StdRng::seed_from_u64(7);
    let addresses = [0u64, 0x10_0000, 0x10_0100, 0x10_8000, 0x10_8fff, 0x20_0000, u64::MAX - 15, 0x7e00_0000_0000];
    let lens = [0u32, 1, 15, 16, 17, 48, 512, 4096, 4097, 1 << 20, u32::MAX];
    for round in 0..60 {
        let mut d = Driver::connect(&bed.path(), small()).expect("the server goes on");
        for i in 0..16 {
            let (addr, len) = (addresses[rng.random_range(0..8)], lens[rng.random_range(0..11)]);
            d.write_descriptor(0, i, addr, len, rng.random_range(0..8), rng.random_range(0..20));
        }
        for _ in 0..rng.random_range(1..16) {
            d.offer(0, rng.random_range(0..17));
        }
        if round % 3 == 0 {
            d.set_avail_index(0, rng.next_u32() as u16);
        }
        d.publish(0);
        d.kick(0);
        // The control connection still answers; so the core does.
        d.stop_queue(0).expect("it stops");
    }
    let mut d = Driver::connect(&bed.path(), small()).expect("connect");
    d.write(0, &[9; 4096]).expect("a decent guest is served");
    assert_eq!(d.read(0, 4096).unwrap(), [9; 4096]);
    server.stop();
}

/// A volume that has no disk: transfers land at once, and the hook sees each end and each flush.
#[derive(Clone)]
struct Hooked(Arc<dyn Fn(&str) + Send + Sync>);

impl Volume for Hooked {
    type Begun = ();

    fn name(&self) -> &str {
        "hooked"
    }
    fn size(&self) -> u64 {
        8 * MIB
    }
    async fn read(&self, _: u64, buf: Buf) -> Done {
        (Ok(()), buf)
    }
    async fn write(&self, _: u64, buf: Buf, _: bool) -> Done {
        (Ok(()), buf)
    }
    fn begin(&self, _: Dir, _: u64, buf: Buf, to: &Landings, token: u64) -> Result<(), Buf> {
        (self.0)("begin");
        to.push(Landed { token, result: Ok(buf.len() as u32), buf });
        Ok(())
    }
    fn end(&self, (): (), _: bool) {
        (self.0)("end");
    }
    async fn flush(&self) -> Result<(), Error> {
        (self.0)("flush");
        Ok(())
    }
    async fn discard(&self, _: u64, _: u64) -> Result<(), Error> {
        Ok(())
    }
    async fn write_zeroes(&self, _: u64, _: u64) -> Result<(), Error> {
        Ok(())
    }
}

fn hooked(bed: &Bed, cores: &Cores, hook: impl Fn(&str) + Send + Sync + 'static) -> Server {
    let volume = Hooked(Arc::new(hook));
    start(cores, &bed.path(), Device::new(8 * MIB, 1, false), move || volume)
}

#[test]
fn a_queue_whose_request_panics_can_be_stopped() {
    for at in ["begin", "end", "flush"] {
        let bed = Bed::new();
        let cores = Cores::start(1, &CoreOptions::default()).expect("io_uring");
        let server = hooked(&bed, &cores, move |what| assert_ne!(what, at, "as the test asked"));
        let mut d = Driver::connect(&bed.path(), small()).expect("connect");
        for slot in 0..4 {
            d.submit(0, slot, T_IN, 0, 4096);
        }
        d.submit(0, 4, T_FLUSH, 0, 0);
        d.publish(0);
        // The stop waits for what runs; what panicked is never answered.
        d.stop_queue(0).expect("it stops");
        let answered: Vec<u16> = std::iter::from_fn(|| d.poll(0)).map(|(slot, _)| slot).collect();
        assert!(!answered.contains(&if at == "flush" { 4 } else { 0 }), "{at}: {answered:?}");
        d.disconnect();
        // Another guest finds the server well.
        let mut d = Driver::connect(&bed.path(), small()).expect("connect");
        let (kind, len) = if at == "flush" { (T_IN, 4096) } else { (T_FLUSH, 0) };
        assert_eq!(d.request(kind, 0, len).unwrap(), 0);
        server.stop();
        cores.shutdown();
    }
}

/// Where a guest's available ring is, and how many heads it has offered.
type Guest = (Arc<GuestMemory>, u64, u16);

#[test]
fn a_guest_that_always_has_more_leaves_the_core_to_others() {
    let bed = Bed::new();
    let cores = Cores::start(1, &CoreOptions::default()).expect("io_uring");
    let guest: Arc<Mutex<Option<Guest>>> = Arc::default();
    let busy = guest.clone();
    // At each answer the guest offers the other of its two heads, so that every turn finds work.
    let server = hooked(&bed, &cores, move |what| {
        if what == "end"
            && let Some((memory, avail_at, index)) = &mut *busy.lock().unwrap()
        {
            let slot = avail_at.wrapping_add(4 + 2 * u64::from(*index % 16));
            memory.write(slot, &(*index % 2).to_le_bytes()).unwrap();
            *index = index.wrapping_add(1);
            memory.write(*avail_at + 2, &index.to_le_bytes()).unwrap();
        }
    });
    let mut d = Driver::connect(&bed.path(), Options { event_idx: false, ..small() }).expect("connect");
    for slot in 0..2 {
        d.submit(0, slot, T_IN, 0, 4096);
        d.publish(0);
        d.next(0, Duration::from_secs(10)).expect("an answer");
    }
    *guest.lock().unwrap() = Some((d.memory.clone(), d.avail_at(0), 3));
    d.submit(0, 0, T_IN, 0, 4096);
    d.publish(0);
    let (done, ran) = std::sync::mpsc::channel();
    let handle = cores.handle(0).clone();
    std::thread::spawn(move || done.send(handle.run_blocking(|| async {})));
    let ran = ran.recv_timeout(Duration::from_secs(20)).is_ok();
    let turns = server.stats().turns.load(Relaxed);
    *guest.lock().unwrap() = None;
    assert!(ran, "nothing else ran on the core in {turns} turns of the queue");
    d.disconnect();
    server.stop();
    cores.shutdown();
}
