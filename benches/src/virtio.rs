//! The load on a vhost-user-blk server: a front end with one split virtqueue in a memfd, driven as a guest would drive it
//! (event indexes, one kick per batch, sleeping on the call eventfd). The same for every server.
//!
//! ```text
//! guest memory:  0x0     descriptors   128 x 16: header, data, status of each slot
//!                0x2000  avail ring    0x4000  used ring
//!                0x10000 slots x 32    16 bytes of request header, status byte at 16
//!                1 MiB   slots x 1 MiB data
//! ```

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use vhost::vhost_user::message::{
    VHOST_USER_CONFIG_OFFSET, VhostUserConfigFlags, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::table::{Sample, percentile};

const QUEUE: u16 = 128;
const SLOTS_MAX: u16 = 32;
const DESCRIPTORS: u64 = 0;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x4000;
const HEADERS: u64 = 0x10000;
const DATA: u64 = 1 << 20;
const DATA_STRIDE: u64 = 1 << 20;
const DATA_BYTES: usize = (SLOTS_MAX as u64 * DATA_STRIDE) as usize;

const F_VERSION_1: u64 = 1 << 32;
const F_EVENT_IDX: u64 = 1 << 29;
/// Without it a device that keeps the standard syncs every write (virtio 1.2, 5.2.6.2); guests take it.
const F_FLUSH: u64 = 1 << 9;
const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const USED_NO_NOTIFY: u16 = 1;

/// virtio 1.2, 5.2.6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// VIRTIO_BLK_T_IN.
    Read = 0,
    /// VIRTIO_BLK_T_OUT.
    Write = 1,
}

/// What to do.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    /// Read or write.
    pub kind: Kind,
    /// Bytes of each, at most 1 MiB.
    pub bytes: u32,
    /// How many at once, at most 32.
    pub depth: u16,
}

/// The memory that data is read to and written from. All devices share it: how its pages lie in physical memory, and so
/// how many pieces the kernel makes of a large transfer, is then the same for all.
pub struct DataMemory(File);

impl DataMemory {
    /// Fresh memory.
    ///
    /// # Errors
    /// The system's words.
    pub fn new() -> Result<Self, String> {
        memfd(DATA_BYTES as u64).map(Self)
    }
}

fn memfd(bytes: u64) -> Result<File, String> {
    let memfd = rustix::fs::memfd_create("karri-bench", rustix::fs::MemfdFlags::CLOEXEC).map_err(|e| e.to_string())?;
    let memfd = File::from(memfd);
    memfd.set_len(bytes).map_err(|e| e.to_string())?;
    Ok(memfd)
}

/// A connected block device.
pub struct Device {
    // Kept: the connection is the device's life.
    _frontend: Frontend,
    memory: GuestMemoryMmap,
    kick: EventFd,
    call: EventFd,
    /// Waits for `call`.
    called: Epoll,
    event_idx: bool,
    capacity: u64,
    avail: u16,
    used: u16,
}

impl Device {
    /// Connects to a server's socket.
    ///
    /// # Errors
    /// A sentence naming the step that failed.
    pub fn connect(socket: &Path, data: &DataMemory) -> Result<Self, String> {
        let step = |what: &'static str| move |e: vhost::Error| format!("vhost-user {what}: {e}");
        let ranges = [
            (GuestAddress(0), DATA as usize, Some(FileOffset::new(memfd(DATA)?, 0))),
            (GuestAddress(DATA), DATA_BYTES, Some(FileOffset::new(data.0.try_clone().map_err(|e| e.to_string())?, 0))),
        ];
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges).map_err(|e| format!("guest memory: {e}"))?;
        let regions = memory.iter().map(VhostUserMemoryRegionInfo::from_guest_region);
        let regions = regions.collect::<Result<Vec<_>, _>>().map_err(step("memory"))?;
        let rings = regions.first().ok_or("guest memory has no region")?.userspace_addr;

        let mut frontend = Frontend::connect(socket, 1).map_err(|e| format!("{}: {e}", socket.display()))?;
        frontend.set_owner().map_err(step("SET_OWNER"))?;
        let offered = frontend.get_features().map_err(step("GET_FEATURES"))?;
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let features = offered & (F_VERSION_1 | F_EVENT_IDX | F_FLUSH | protocol);
        let mut config = [0; 60];
        if offered & protocol != 0 {
            let offered = frontend.get_protocol_features().map_err(|e| format!("GET_PROTOCOL_FEATURES: {e}"))?;
            let wanted = VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ;
            frontend.set_protocol_features(offered & wanted).map_err(|e| format!("SET_PROTOCOL_FEATURES: {e}"))?;
            let flags = VhostUserConfigFlags::empty();
            let (_, bytes) = frontend
                .get_config(0, config.len() as u32, flags, &config)
                .or_else(|_| frontend.get_config(VHOST_USER_CONFIG_OFFSET, config.len() as u32, flags, &config))
                .map_err(|e| format!("GET_CONFIG: {e}"))?;
            config.copy_from_slice(&bytes[..60]);
        }
        frontend.set_features(features).map_err(step("SET_FEATURES"))?;
        frontend.set_mem_table(&regions).map_err(step("SET_MEM_TABLE"))?;
        let (kick, call) = (eventfd()?, eventfd()?);
        let called = Epoll::new().map_err(|e| format!("epoll: {e}"))?;
        let readable = EpollEvent::new(EventSet::IN, 0);
        called.ctl(ControlOperation::Add, call.as_raw_fd(), readable).map_err(|e| format!("epoll: {e}"))?;
        let at = |offset: u64| rings + offset;
        frontend.set_vring_num(0, QUEUE).map_err(step("SET_VRING_NUM"))?;
        let addresses = VringConfigData {
            queue_max_size: QUEUE,
            queue_size: QUEUE,
            flags: 0,
            desc_table_addr: at(DESCRIPTORS),
            used_ring_addr: at(USED),
            avail_ring_addr: at(AVAIL),
            log_addr: None,
        };
        frontend.set_vring_base(0, 0).map_err(step("SET_VRING_BASE"))?;
        frontend.set_vring_addr(0, &addresses).map_err(step("SET_VRING_ADDR"))?;
        frontend.set_vring_call(0, &call).map_err(step("SET_VRING_CALL"))?;
        frontend.set_vring_kick(0, &kick).map_err(step("SET_VRING_KICK"))?;
        if offered & protocol != 0 {
            frontend.set_vring_enable(0, true).map_err(|e| format!("SET_VRING_ENABLE: {e}"))?;
        }
        let sectors = u64::from_le_bytes(config[..8].try_into().unwrap_or_default());
        let event_idx = features & F_EVENT_IDX != 0;
        let capacity = sectors * 512;
        Ok(Self { _frontend: frontend, memory, kick, call, called, event_idx, capacity, avail: 0, used: 0 })
    }

    /// The device's size in bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Writes all of the device in order, every block with bytes that do not compress.
    ///
    /// # Errors
    /// See [`Device::run`].
    pub fn fill(&mut self, bytes: u64) -> Result<(), String> {
        let work = Workload { kind: Kind::Write, bytes: 1 << 20, depth: 8 };
        let mut rng = SmallRng::seed_from_u64(1);
        let mut noise = vec![0u8; DATA_BYTES];
        rng.fill_bytes(&mut noise);
        self.memory.write_slice(&noise, GuestAddress(DATA)).map_err(|e| e.to_string())?;
        let mut next = (0..bytes.min(self.capacity) >> 20).map(|mib| mib << 11);
        self.drive(work, |_| next.next()).map(drop)
    }

    /// Runs random requests for `time`; answers the rate and latencies.
    ///
    /// # Errors
    /// A sentence, where a request fails or the server does not answer for 30 seconds.
    pub fn run(&mut self, work: Workload, time: Duration, seed: u64) -> Result<Sample, String> {
        let places = self.capacity / u64::from(work.bytes);
        let sectors = u64::from(work.bytes / 512);
        let mut rng = SmallRng::seed_from_u64(seed);
        let began = Instant::now();
        let mut latencies =
            self.drive(work, |now| (now - began < time).then(|| rng.random_range(0..places) * sectors))?;
        let rate = latencies.len() as f64 / began.elapsed().as_secs_f64();
        let (p50_us, p99_us) = (percentile(&mut latencies, 0.5), percentile(&mut latencies, 0.99));
        Ok(Sample { operations: latencies.len(), rate, cpu_us: 0.0, p50_us, p99_us })
    }

    /// Keeps `depth` requests in flight at the sectors that `next` names, until it names none; their latencies in us.
    fn drive(&mut self, work: Workload, mut next: impl FnMut(Instant) -> Option<u64>) -> Result<Vec<u32>, String> {
        let mut latencies = Vec::with_capacity(1 << 20);
        let mut started = [Instant::now(); SLOTS_MAX as usize];
        (0..work.depth).try_for_each(|slot| self.prepare(slot, work)).map_err(|e| e.to_string())?;
        let mut free: Vec<u16> = (0..work.depth).collect();
        let mut more = true;
        loop {
            let before = self.avail;
            let now = Instant::now();
            while more && let Some(slot) = free.pop() {
                match next(now) {
                    Some(sector) => {
                        started[usize::from(slot)] = now;
                        self.offer(slot, sector).map_err(|e| e.to_string())?;
                    }
                    None => {
                        free.push(slot);
                        more = false;
                    }
                }
            }
            if self.avail != before {
                self.publish(before).map_err(|e| e.to_string())?;
            }
            if free.len() == usize::from(work.depth) {
                return Ok(latencies);
            }
            if self.used_index()? == self.used {
                self.sleep()?;
            }
            let now = Instant::now();
            while self.used != self.used_index()? {
                let slot = self.reap(work)?;
                latencies.push((now - started[usize::from(slot)]).as_micros() as u32);
                free.push(slot);
            }
        }
    }

    /// Writes a slot's three descriptors and the constant part of its header.
    fn prepare(&self, slot: u16, work: Workload) -> Result<(), vm_memory::GuestMemoryError> {
        let (first, header) = (slot * 3, HEADERS + u64::from(slot) * 32);
        let data = DATA + u64::from(slot) * DATA_STRIDE;
        let direction = if work.kind == Kind::Read { DESC_WRITE } else { 0 };
        for (i, address, length, flags) in
            [(0, header, 16, DESC_NEXT), (1, data, work.bytes, DESC_NEXT | direction), (2, header + 16, 1, DESC_WRITE)]
        {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&address.to_le_bytes());
            bytes[8..12].copy_from_slice(&u32::to_le_bytes(length));
            bytes[12..14].copy_from_slice(&u16::to_le_bytes(flags));
            bytes[14..].copy_from_slice(&(first + i + 1).to_le_bytes());
            self.memory.write_slice(&bytes, GuestAddress(DESCRIPTORS + 16 * u64::from(first + i)))?;
        }
        self.memory.write_obj(u64::from(work.kind as u32).to_le(), GuestAddress(header))
    }

    /// Puts a slot's request for `sector` into the avail ring, not yet published.
    fn offer(&mut self, slot: u16, sector: u64) -> Result<(), vm_memory::GuestMemoryError> {
        let header = HEADERS + u64::from(slot) * 32;
        self.memory.write_obj(sector.to_le(), GuestAddress(header + 8))?;
        self.memory.write_obj(0xFFu8, GuestAddress(header + 16))?;
        let entry = AVAIL + 4 + 2 * u64::from(self.avail % QUEUE);
        self.memory.write_obj((slot * 3).to_le(), GuestAddress(entry))?;
        self.avail = self.avail.wrapping_add(1);
        Ok(())
    }

    /// Publishes what was offered since `before`; kicks where the server asks for it (virtio 1.2, 2.7.10).
    fn publish(&self, before: u16) -> Result<(), vm_memory::GuestMemoryError> {
        self.memory.store(self.avail.to_le(), GuestAddress(AVAIL + 2), Ordering::Release)?;
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let place = GuestAddress(USED + 4 + 8 * u64::from(QUEUE));
            let event = u16::from_le(self.memory.load(place, Ordering::Acquire)?);
            self.avail.wrapping_sub(event).wrapping_sub(1) < self.avail.wrapping_sub(before)
        } else {
            u16::from_le(self.memory.load(GuestAddress(USED), Ordering::Acquire)?) & USED_NO_NOTIFY == 0
        };
        if wanted {
            let _ = self.kick.write(1);
        }
        Ok(())
    }

    fn used_index(&self) -> Result<u16, String> {
        let index: u16 = self.memory.load(GuestAddress(USED + 2), Ordering::Acquire).map_err(|e| e.to_string())?;
        Ok(u16::from_le(index))
    }

    /// Asks for a call and sleeps until it comes.
    fn sleep(&self) -> Result<(), String> {
        let place = GuestAddress(AVAIL + 4 + 2 * u64::from(QUEUE));
        self.memory.store(self.used.to_le(), place, Ordering::Release).map_err(|e| e.to_string())?;
        fence(Ordering::SeqCst);
        while self.used_index()? == self.used {
            if self.called.wait(30_000, &mut [EpollEvent::default()]).is_ok_and(|ready| ready == 0) {
                return Err("the server has not answered for 30 s".into());
            }
            let _ = self.call.read();
        }
        Ok(())
    }

    /// Takes one completion: the slot.
    fn reap(&mut self, work: Workload) -> Result<u16, String> {
        let entry = GuestAddress(USED + 4 + 8 * u64::from(self.used % QUEUE));
        let id: u32 = self.memory.read_obj(entry).map_err(|e| e.to_string())?;
        let slot = (u32::from_le(id) / 3) as u16;
        if slot >= work.depth {
            return Err(format!("the server completed descriptor {id}, which was not offered"));
        }
        let place = GuestAddress(HEADERS + u64::from(slot) * 32 + 16);
        let status: u8 = self.memory.read_obj(place).map_err(|e| e.to_string())?;
        if status != 0 {
            return Err(format!("a request of kind {:?} ended with status {status}", work.kind));
        }
        self.used = self.used.wrapping_add(1);
        Ok(slot)
    }
}

fn eventfd() -> Result<EventFd, String> {
    EventFd::new(EFD_NONBLOCK).map_err(|e| format!("eventfd: {e}"))
}
