//! The other side: a vhost-user front end with a virtio-blk driver in it, as a virtual machine has them. Tests and benches
//! use it against ours and against other back ends; nothing else does.
//!
//! A queue of `n` descriptors has `n` slots: slot *s* is head *s*, an indirect table of header, data and status, and a data
//! buffer of its own. The guest's memory, the rings in it and the in-flight region outlive a connection, so that a
//! [`Driver`] can [`reconnect`](Driver::reconnect) to a restarted back end as QEMU does.

pub mod load;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::virtio::block::{CONFIG_BYTES, feature};
use crate::virtio::memory::{GuestMemory, Region, View, memfd};

/// A read.
pub const T_IN: u32 = 0;
/// A write.
pub const T_OUT: u32 = 1;
/// A flush.
pub const T_FLUSH: u32 = 4;
/// The serial number.
pub const T_GET_ID: u32 = 8;
/// A discard.
pub const T_DISCARD: u32 = 11;
/// Write-zeroes.
pub const T_WRITE_ZEROES: u32 = 13;

/// Where the guest's memory begins, for it.
const GUEST: u64 = 0x10_0000;
/// Where it begins, for the front end; any number that is not the same.
const USER: u64 = 0x7e00_0000_0000;

const SLOT_AREA: u64 = 128; // header 16, table 48, status 1
const AT_TABLE: u64 = 16;
const AT_STATUS: u64 = 64;

/// How a driver is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Virtqueues.
    pub queues: u16,
    /// Descriptors, and so slots, of each.
    pub size: u16,
    /// Bytes of each slot's buffer.
    pub buffer: u64,
    /// Takes EVENT_IDX where offered.
    pub event_idx: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { queues: 1, size: 128, buffer: 1 << 20, event_idx: true }
    }
}

/// A guest with a disk.
pub struct Driver {
    path: PathBuf,
    options: Options,
    frontend: Option<Frontend>,
    file: File,
    /// The guest's memory as the guest sees it.
    pub memory: Arc<GuestMemory>,
    bytes: u64,
    queues: Vec<Queue>,
    inflight: Option<(VhostUserInflight, File)>,
    features: u64,
    config: [u8; CONFIG_BYTES],
}

struct Queue {
    desc_at: u64,
    avail_at: u64,
    used_at: u64,
    slots_at: u64,
    buffers_at: u64,
    avail: View,
    used: View,
    slots: View,
    next_avail: u16,
    published: u16,
    next_used: u16,
    kick: EventFd,
    call: EventFd,
    epoll: Epoll,
    event_idx: bool,
}

fn other(e: impl std::fmt::Display) -> io::Error {
    io::Error::other(e.to_string())
}

impl Driver {
    /// Makes a guest and connects its disk to the back end on `path`.
    ///
    /// # Errors
    /// What the back end or the system refuses.
    pub fn connect(path: &Path, options: Options) -> io::Result<Self> {
        let n = u64::from(options.size);
        let ring_bytes = (16 * n + 4 + 2 * n + 2 + 4 + 8 * n + 2 + 64).next_multiple_of(4096);
        let slot_bytes = (SLOT_AREA * n).next_multiple_of(4096);
        let per_queue = ring_bytes + slot_bytes + options.buffer.next_multiple_of(4096) * n;
        let bytes = per_queue * u64::from(options.queues);
        let file = memfd(c"karri-driver", bytes)?;
        let region = Region::map(&file, 0, GUEST, USER, bytes).map_err(other)?;
        let memory = GuestMemory::new(vec![Arc::new(region)]).map_err(other)?;
        let queue = |q: u16| -> io::Result<Queue> {
            let desc_at = GUEST + per_queue * u64::from(q);
            let avail_at = desc_at + 16 * n;
            let used_at = (avail_at + 4 + 2 * n + 2).next_multiple_of(16);
            let slots_at = desc_at + ring_bytes;
            let (kick, call) = (EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?);
            let epoll = Epoll::new()?;
            epoll.ctl(ControlOperation::Add, call.as_raw_fd(), EpollEvent::new(EventSet::IN, 0))?;
            Ok(Queue {
                desc_at,
                avail_at,
                used_at,
                slots_at,
                buffers_at: slots_at + slot_bytes,
                avail: memory.view(avail_at, (4 + 2 * n + 2) as usize, 2).map_err(other)?,
                used: memory.view(used_at, (4 + 8 * n + 2) as usize, 2).map_err(other)?,
                slots: memory.view(slots_at, slot_bytes as usize, 2).map_err(other)?,
                next_avail: 0,
                published: 0,
                next_used: 0,
                kick,
                call,
                epoll,
                event_idx: false,
            })
        };
        let queues = (0..options.queues).map(queue).collect::<io::Result<Vec<_>>>()?;
        let mut driver = Self {
            path: path.to_owned(),
            options,
            frontend: None,
            file,
            memory,
            bytes,
            queues,
            inflight: None,
            features: 0,
            config: [0; CONFIG_BYTES],
        };
        driver.attach()?;
        Ok(driver)
    }

    /// Connects, with the same memory, rings and in-flight region as before.
    fn attach(&mut self) -> io::Result<()> {
        use VhostUserProtocolFeatures as P;
        let mut fe = Frontend::connect(&self.path, u64::from(self.options.queues)).map_err(other)?;
        fe.set_owner().map_err(other)?;
        let offered = fe.get_features().map_err(other)?;
        let mut wanted = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
            | feature::VERSION_1
            | feature::INDIRECT_DESC
            | feature::FLUSH
            | feature::DISCARD
            | feature::WRITE_ZEROES
            | feature::MQ
            | feature::RO;
        if self.options.event_idx {
            wanted |= feature::EVENT_IDX;
        }
        let protocol = fe.get_protocol_features().map_err(other)?;
        let protocol = protocol
            & (P::MQ | P::CONFIG | P::REPLY_ACK | P::INFLIGHT_SHMFD | P::CONFIGURE_MEM_SLOTS | P::RESET_DEVICE);
        fe.set_protocol_features(protocol).map_err(other)?;
        if protocol.contains(P::REPLY_ACK) {
            fe.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        self.features = offered & wanted;
        fe.set_features(self.features).map_err(other)?;
        if protocol.contains(P::CONFIG) {
            let zeros = [0; CONFIG_BYTES];
            let (_, config) =
                fe.get_config(0, CONFIG_BYTES as u32, VhostUserConfigFlags::empty(), &zeros).map_err(other)?;
            self.config.copy_from_slice(&config);
        }
        if protocol.contains(P::INFLIGHT_SHMFD) {
            match &self.inflight {
                Some((region, file)) => fe.set_inflight_fd(region, file.as_raw_fd()).map_err(other)?,
                None => {
                    let wanted = VhostUserInflight::new(0, 0, self.options.queues, self.options.size);
                    let (region, file) = fe.get_inflight_fd(&wanted).map_err(other)?;
                    fe.set_inflight_fd(&region, file.as_raw_fd()).map_err(other)?;
                    self.inflight = Some((region, file));
                }
            }
        }
        fe.set_mem_table(&[self.region_info()]).map_err(other)?;
        for (index, q) in self.queues.iter_mut().enumerate() {
            q.event_idx = self.features & feature::EVENT_IDX != 0;
            fe.set_vring_num(index, self.options.size).map_err(other)?;
            // As QEMU after a lost connection: what was used is what is known.
            fe.set_vring_base(index, q.used.load_u16(2)).map_err(other)?;
            let user = |at: u64| at - GUEST + USER;
            let at = VringConfigData {
                queue_max_size: self.options.size,
                queue_size: self.options.size,
                flags: 0,
                desc_table_addr: user(q.desc_at),
                used_ring_addr: user(q.used_at),
                avail_ring_addr: user(q.avail_at),
                log_addr: None,
            };
            fe.set_vring_addr(index, &at).map_err(other)?;
            fe.set_vring_call(index, &q.call).map_err(other)?;
            fe.set_vring_kick(index, &q.kick).map_err(other)?;
            fe.set_vring_enable(index, true).map_err(other)?;
        }
        self.frontend = Some(fe);
        Ok(())
    }

    fn region_info(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST,
            memory_size: self.bytes,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// Drops the connection, as when the back end dies or the monitor does.
    pub fn disconnect(&mut self) {
        self.frontend = None;
    }

    /// Connects again to the same path; what was in flight is the back end's to finish.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn reconnect(&mut self) -> io::Result<()> {
        self.frontend = None;
        self.attach()
    }

    /// The connection, for protocol messages beyond the usual ones.
    ///
    /// # Panics
    /// When disconnected.
    pub fn frontend(&mut self) -> &mut Frontend {
        self.frontend.as_mut().expect("connected")
    }

    /// Sends the memory table anew, with I/O in flight or not.
    ///
    /// # Errors
    /// What the back end refuses.
    pub fn resend_memory(&mut self) -> io::Result<()> {
        let info = self.region_info();
        self.frontend().set_mem_table(&[info]).map(drop).map_err(other)
    }

    /// Ends a queue; its next available index as the back end says.
    ///
    /// # Errors
    /// What the back end refuses.
    pub fn stop_queue(&mut self, queue: usize) -> io::Result<u32> {
        self.frontend().get_vring_base(queue).map_err(other)
    }

    /// The volume's size in bytes, from the configuration space.
    pub fn capacity(&self) -> u64 {
        u64::from_le_bytes(self.config[..8].try_into().expect("8 bytes")) * 512
    }

    /// The configuration space.
    pub fn config(&self) -> &[u8; CONFIG_BYTES] {
        &self.config
    }

    /// Slots of a queue.
    pub fn slots(&self) -> u16 {
        self.options.size
    }

    /// Guest address of the queue's available ring, for who offers heads without this driver.
    pub fn avail_at(&self, queue: usize) -> u64 {
        self.queues[queue].avail_at
    }

    /// Guest address of a slot's buffer.
    pub fn buffer_at(&self, queue: usize, slot: u16) -> u64 {
        self.queues[queue].buffers_at + self.options.buffer.next_multiple_of(4096) * u64::from(slot)
    }

    /// Puts a request in a slot and on the available ring; the device sees it at [`publish`](Self::publish). `len` bytes
    /// of the slot's buffer are its data, written by the device for reads and GET_ID.
    ///
    /// # Panics
    /// Past the slot's buffer.
    pub fn submit(&mut self, queue: usize, slot: u16, kind: u32, sector: u64, len: u32) {
        assert!(u64::from(len) <= self.options.buffer && slot < self.options.size);
        let data = self.buffer_at(queue, slot);
        let q = &mut self.queues[queue];
        let at = SLOT_AREA * u64::from(slot);
        let base = q.slots_at + at;
        let at = at as usize;
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        q.slots.write(at, header);
        q.slots.write(at + AT_STATUS as usize, [0xFFu8]);
        let table = at + AT_TABLE as usize;
        let to_device = matches!(kind, T_OUT | T_DISCARD | T_WRITE_ZEROES);
        let mut n = 0;
        let mut push = |addr: u64, len: u32, flags: u16| {
            q.slots.write(table + 16 * n, descriptor(addr, len, flags, n as u16 + 1));
            n += 1;
        };
        push(base, 16, 1);
        if len > 0 {
            push(data, len, if to_device { 1 } else { 3 });
        }
        push(base + AT_STATUS, 1, 2);
        self.memory
            .write(q.desc_at + 16 * u64::from(slot), &descriptor(base + AT_TABLE, 16 * n as u32, 4, 0))
            .expect("the ring is in memory");
        self.offer(queue, slot);
    }

    /// Puts any head on the available ring, broken or not.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let size = self.options.size;
        let q = &mut self.queues[queue];
        q.avail.write(4 + 2 * usize::from(q.next_avail % size), head.to_le_bytes());
        q.next_avail = q.next_avail.wrapping_add(1);
    }

    /// The available index that the next [`publish`](Self::publish) shows.
    pub fn offered(&self, queue: usize) -> u16 {
        self.queues[queue].next_avail
    }

    /// Writes a descriptor of the ring itself, for chains that [`submit`](Self::submit) does not make.
    pub fn write_descriptor(&mut self, queue: usize, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = self.queues[queue].desc_at + 16 * u64::from(index);
        self.memory.write(at, &descriptor(addr, len, flags, next)).expect("the ring is in memory");
    }

    /// Writes the available index to the ring as it is, right or wrong.
    pub fn set_avail_index(&mut self, queue: usize, index: u16) {
        self.queues[queue].avail.store_u16(2, index);
    }

    /// Shows the device what was submitted, and kicks it if it asked for that. Whether it was kicked.
    pub fn publish(&mut self, queue: usize) -> bool {
        let size = usize::from(self.options.size);
        let q = &mut self.queues[queue];
        let old = std::mem::replace(&mut q.published, q.next_avail);
        if old == q.next_avail {
            return false;
        }
        q.avail.store_u16(2, q.next_avail);
        View::full_fence();
        let wanted = if q.event_idx {
            let event = q.used.load_u16(4 + 8 * size);
            q.next_avail.wrapping_sub(event).wrapping_sub(1) < q.next_avail.wrapping_sub(old)
        } else {
            q.used.load_u16(0) & 1 == 0
        };
        if wanted {
            self.kick(queue);
        }
        wanted
    }

    /// Kicks the device whether it wants that or not.
    pub fn kick(&self, queue: usize) {
        // A full counter is a kick that is pending.
        let _ = self.queues[queue].kick.write(1);
    }

    /// The next completed slot and the bytes written into it.
    pub fn poll(&mut self, queue: usize) -> Option<(u16, u32)> {
        let size = self.options.size;
        let q = &mut self.queues[queue];
        if q.used.load_u16(2) == q.next_used {
            return None;
        }
        let element: [u8; 8] = q.used.read(4 + 8 * usize::from(q.next_used % size));
        q.next_used = q.next_used.wrapping_add(1);
        let [a, b, c, d, e, f, g, h] = element;
        Some((u32::from_le_bytes([a, b, c, d]) as u16, u32::from_le_bytes([e, f, g, h])))
    }

    /// A slot's status byte.
    pub fn status(&self, queue: usize, slot: u16) -> u8 {
        let [status] = self.queues[queue].slots.read(SLOT_AREA as usize * usize::from(slot) + AT_STATUS as usize);
        status
    }

    /// Sleeps until the device calls, or `limit` is over. Whether something is there.
    pub fn wait(&mut self, queue: usize, limit: Duration) -> bool {
        let size = usize::from(self.options.size);
        let q = &mut self.queues[queue];
        if q.event_idx {
            q.avail.store_u16(4 + 2 * size, q.next_used);
        }
        View::full_fence();
        if q.used.load_u16(2) != q.next_used {
            return true;
        }
        let mut events = [EpollEvent::default()];
        let n = q.epoll.wait(limit.as_millis() as i32, &mut events).unwrap_or(0);
        if n > 0 {
            let _ = q.call.read();
        }
        q.used.load_u16(2) != q.next_used
    }

    /// Does one request to its end, in slot 0 of queue 0. Its status.
    ///
    /// # Errors
    /// When it does not complete in ten seconds.
    pub fn request(&mut self, kind: u32, sector: u64, len: u32) -> io::Result<u8> {
        self.submit(0, 0, kind, sector, len);
        self.publish(0);
        let (slot, _) = self.next(0, Duration::from_secs(10))?;
        Ok(self.status(0, slot))
    }

    /// The next completion, waited for.
    ///
    /// # Errors
    /// `TimedOut` after `limit`.
    pub fn next(&mut self, queue: usize, limit: Duration) -> io::Result<(u16, u32)> {
        let end = Instant::now() + limit;
        loop {
            if let Some(done) = self.poll(queue) {
                return Ok(done);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.wait(queue, left);
        }
    }

    fn checked(&mut self, kind: u32, at: u64, len: usize) -> io::Result<()> {
        match self.request(kind, at / 512, len as u32)? {
            0 => Ok(()),
            status => Err(other(format!("status {status} for type {kind} at {at}"))),
        }
    }

    /// Reads.
    ///
    /// # Errors
    /// A status other than OK.
    pub fn read(&mut self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        self.checked(T_IN, at, len)?;
        let mut bytes = vec![0; len];
        self.memory.read(self.buffer_at(0, 0), &mut bytes).map_err(other)?;
        Ok(bytes)
    }

    /// Writes.
    ///
    /// # Errors
    /// A status other than OK.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.memory.write(self.buffer_at(0, 0), bytes).map_err(other)?;
        self.checked(T_OUT, at, bytes.len())
    }

    /// Flushes.
    ///
    /// # Errors
    /// A status other than OK.
    pub fn flush(&mut self) -> io::Result<()> {
        self.checked(T_FLUSH, 0, 0)
    }

    /// Discards, or writes zeroes.
    ///
    /// # Errors
    /// A status other than OK.
    pub fn unmap(&mut self, kind: u32, at: u64, len: u64) -> io::Result<()> {
        let segment = [&(at / 512).to_le_bytes()[..], &((len / 512) as u32).to_le_bytes(), &[0; 4]].concat();
        self.memory.write(self.buffer_at(0, 0), &segment).map_err(other)?;
        self.checked(kind, 0, segment.len())
    }
}

fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut d = [0; 16];
    d[..8].copy_from_slice(&addr.to_le_bytes());
    d[8..12].copy_from_slice(&len.to_le_bytes());
    d[12..14].copy_from_slice(&flags.to_le_bytes());
    d[14..].copy_from_slice(&next.to_le_bytes());
    d
}
