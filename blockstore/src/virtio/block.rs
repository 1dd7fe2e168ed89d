//! virtio-blk (virtio 1.2, 5.2): features, configuration space, and one request on a [`Volume`].
//!
//! Promises: a request of any shape ends in a status byte (or, without room for one, in nothing written), touches only its
//! own bytes and the volume, and holds at most [`BOUNCE_BYTES`] of memory. Reads and writes go between guest memory and
//! the store without a copy, unless a piece is not aligned to 512 bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use karri_engine::buf::Buf;
use karri_engine::disk::Dir;

use super::memory::{GuestBytes, Status};
use super::ring::{Chain, SIZE_MAX};
use crate::error::Error;
use crate::volume::{SECTOR_BYTES, Volume};

/// Requests of more bytes go in steps of so many: bounds what one request has in flight.
const STEP_BYTES: u64 = 4 << 20;
/// The most memory that a request with unaligned pieces holds.
pub const BOUNCE_BYTES: u64 = 256 << 10;
/// The most pieces of one I/O (IOV_MAX).
const PIECES_MAX: usize = 1024;
/// Pieces of a request as told to the driver, two less than a queue of 256.
const SEG_MAX: u32 = 254;
/// Segments of one discard or write-zeroes request.
const UNMAP_SEGMENTS_MAX: u32 = 32;
/// Sectors of one such segment: 1 GiB.
const UNMAP_SECTORS_MAX: u32 = 1 << 21;

const HEADER_BYTES: usize = 16;
const ID_BYTES: usize = 20;

/// Bytes of the configuration space that we fill.
pub const CONFIG_BYTES: usize = 60;

/// Feature bits (virtio 1.2, 5.2.3 and 6).
pub mod feature {
    /// `seg_max` is valid.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The device is read-only.
    pub const RO: u64 = 1 << 5;
    /// `blk_size` is valid.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// FLUSH works.
    pub const FLUSH: u64 = 1 << 9;
    /// `topology` is valid.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// More than one queue.
    pub const MQ: u64 = 1 << 12;
    /// DISCARD works.
    pub const DISCARD: u64 = 1 << 13;
    /// WRITE_ZEROES works.
    pub const WRITE_ZEROES: u64 = 1 << 14;
    /// Indirect descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Event indexes.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Not a legacy device.
    pub const VERSION_1: u64 = 1 << 32;
}

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

/// The request succeeded.
pub const S_OK: u8 = 0;
/// It failed.
pub const S_IOERR: u8 = 1;
/// It is not something we do.
pub const S_UNSUPP: u8 = 2;

/// What a device is, apart from its volume: shared by its queues and its control connection.
#[derive(Debug)]
pub struct Device {
    size: u64,
    queues: u16,
    read_only: bool,
    trusting: bool,
    pins: bool,
    /// What the driver acknowledged.
    acked: AtomicU64,
    failures: AtomicU64,
}

impl Device {
    /// A device of `size` bytes with so many queues, for a front end that nobody has reason to trust.
    pub fn new(size: u64, queues: u16, read_only: bool) -> Arc<Self> {
        Self::with(size, queues, read_only, false, false)
    }

    /// The same, for a front end that may give memory which could shrink under us (a file of /dev/shm or of hugetlbfs): its
    /// shrinking ends this process, so the process must be its alone.
    /// With `pins`, which asks even more trust, the memory's pages are pinned and registered for I/O: the front end must
    /// never replace one (no balloon, no free page reporting, no hole punched in its file).
    pub fn trusting(size: u64, queues: u16, read_only: bool, pins: bool) -> Arc<Self> {
        Self::with(size, queues, read_only, true, pins)
    }

    fn with(size: u64, queues: u16, read_only: bool, trusting: bool, pins: bool) -> Arc<Self> {
        let (acked, failures) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { size, queues, read_only, trusting, pins, acked, failures })
    }

    /// Whether guest memory is pinned.
    pub fn pins(&self) -> bool {
        self.pins
    }

    /// Whether memory that could shrink is taken.
    pub fn trusts(&self) -> bool {
        self.trusting
    }

    /// How many queues.
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// What we offer. Not `CONFIG_WCE`: front ends do not tell the cache mode again when they come back, and a device that
    /// forgot that its driver chose write-through would lose what completed.
    pub fn features(&self) -> u64 {
        use feature::*;
        let mut features = VERSION_1 | EVENT_IDX | INDIRECT_DESC | FLUSH | BLK_SIZE | TOPOLOGY | SEG_MAX;
        features |= if self.read_only { RO } else { DISCARD | WRITE_ZEROES };
        if self.queues > 1 {
            features |= MQ;
        }
        features
    }

    /// The driver took these.
    pub fn acknowledge(&self, features: u64) {
        self.acked.store(features, Relaxed);
    }

    /// Whether the driver took it.
    pub fn has(&self, feature: u64) -> bool {
        self.acked.load(Relaxed) & feature != 0
    }

    /// Back to the state before the driver came.
    pub fn reset(&self) {
        self.acked.store(0, Relaxed);
    }

    /// Whether a completed write must be durable (5.2.5.2): the driver knows no FLUSH.
    fn write_through(&self) -> bool {
        self.acked.load(Relaxed) & feature::FLUSH == 0
    }

    /// The configuration space (5.2.4).
    pub fn config(&self) -> [u8; CONFIG_BYTES] {
        let mut c = [0; CONFIG_BYTES];
        c[0..8].copy_from_slice(&(self.size / SECTOR_BYTES).to_le_bytes());
        c[12..16].copy_from_slice(&SEG_MAX.to_le_bytes());
        c[20..24].copy_from_slice(&(SECTOR_BYTES as u32).to_le_bytes());
        c[24] = 3; // physical_block_exp: 8 sectors, the 4 KiB block that a write should cover
        c[26..28].copy_from_slice(&8u16.to_le_bytes()); // min_io_size, in logical blocks
        c[32] = 1; // writeback, for drivers that look although it cannot be switched
        c[34..36].copy_from_slice(&self.queues.to_le_bytes());
        c[36..40].copy_from_slice(&UNMAP_SECTORS_MAX.to_le_bytes());
        c[40..44].copy_from_slice(&UNMAP_SEGMENTS_MAX.to_le_bytes());
        c[44..48].copy_from_slice(&8u32.to_le_bytes()); // discard_sector_alignment
        c[48..52].copy_from_slice(&UNMAP_SECTORS_MAX.to_le_bytes());
        c[52..56].copy_from_slice(&UNMAP_SEGMENTS_MAX.to_le_bytes());
        c[56] = 1; // write_zeroes_may_unmap
        c
    }

    /// Logs a failed request: the first ones, then fewer and fewer, since a guest can cause them at will.
    fn log_failure(&self, volume: &str, error: &Error) {
        let n = self.failures.fetch_add(1, Relaxed) + 1;
        if n.is_power_of_two() {
            tracing::warn!(volume, error = error.chain(), failures = n, "a guest's request failed");
        }
    }
}

/// What a chain asks for.
#[derive(Debug)]
pub enum Plan {
    /// Nothing that could be done: answered, with so many bytes written.
    Answered(u32),
    /// A read or write between the volume and guest memory that needs no bounce, inside the volume and of bounded length.
    Transfer(Order, Buf),
    /// Anything else, good or bad.
    Other(Request),
}

/// A transfer, without its memory.
#[derive(Debug)]
pub struct Order {
    /// Which way.
    pub dir: Dir,
    /// Offset in the volume in bytes.
    pub at: u64,
    /// Length in bytes.
    pub len: u32,
    /// A write that must be durable at its completion.
    pub durable: bool,
    status: Status,
}

impl Order {
    /// Says to the driver how it went; how many bytes were written into the chain.
    pub fn answer(self, ok: bool) -> u32 {
        self.status.set(if ok { S_OK } else { S_IOERR });
        if ok && self.dir == Dir::Read { self.len + 1 } else { 1 }
    }
}

/// A request as it came.
#[derive(Debug)]
pub struct Request {
    kind: u32,
    sector: u64,
    status: Status,
    readable: GuestBytes,
    writable: GuestBytes,
}

/// Takes a chain apart.
pub fn plan<V: Volume>(volume: &V, device: &Device, chain: Chain) -> Plan {
    let Chain { mut readable, mut writable } = chain;
    let Some(status) = writable.take_status() else {
        // Nowhere to say anything.
        return Plan::Answered(0);
    };
    let Some(header) = readable.take_front::<HEADER_BYTES>() else {
        status.set(S_IOERR);
        return Plan::Answered(1);
    };
    let [t0, t1, t2, t3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
    let kind = u32::from_le_bytes([t0, t1, t2, t3]);
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let (dir, data) = match kind {
        T_IN => (Dir::Read, &writable),
        T_OUT if !device.read_only => (Dir::Write, &readable),
        _ => return Plan::Other(Request { kind, sector, status, readable, writable }),
    };
    let at = sector.checked_mul(SECTOR_BYTES).filter(|at| check_transfer(volume, *at, data).is_ok());
    let Some(at) = at.filter(|_| data.len() <= STEP_BYTES && direct(data)) else {
        return Plan::Other(Request { kind, sector, status, readable, writable });
    };
    let (len, durable) = (data.len() as u32, dir == Dir::Write && device.write_through());
    let data = if dir == Dir::Read { writable } else { readable };
    Plan::Transfer(Order { dir, at, len, durable, status }, data.into_buf())
}

/// Serves one request and answers how many bytes were written into the chain.
pub async fn serve<V: Volume>(volume: &V, device: &Device, chain: Chain) -> u32 {
    match plan(volume, device, chain) {
        Plan::Answered(written) => written,
        Plan::Transfer(order, buf) => transfer(volume, device, order, buf).await,
        Plan::Other(request) => other(volume, device, request).await,
    }
}

/// Carries a transfer out; answers as [`serve`].
pub async fn transfer<V: Volume>(volume: &V, device: &Device, order: Order, buf: Buf) -> u32 {
    let (outcome, _) = match order.dir {
        Dir::Read => volume.read(order.at, buf).await,
        Dir::Write => volume.write(order.at, buf, order.durable).await,
    };
    if let Err(error) = &outcome {
        device.log_failure(volume.name(), error);
    }
    order.answer(outcome.is_ok())
}

/// Carries any other request out; answers as [`serve`].
pub async fn other<V: Volume>(volume: &V, device: &Device, request: Request) -> u32 {
    let Request { kind, sector, status, readable, writable } = request;
    let in_bytes = writable.len();
    let outcome = act(volume, device, kind, sector, readable, writable).await;
    let (code, written) = match outcome {
        Ok(()) => (S_OK, in_bytes as u32 + 1),
        Err(Refusal::Unsupported) => (S_UNSUPP, 1),
        Err(Refusal::Malformed) => (S_IOERR, 1),
        Err(Refusal::Failed(error)) => {
            device.log_failure(volume.name(), &error);
            (S_IOERR, 1)
        }
    };
    status.set(code);
    written
}

enum Refusal {
    Unsupported,
    Malformed,
    Failed(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

async fn act<V: Volume>(
    volume: &V,
    device: &Device,
    kind: u32,
    sector: u64,
    readable: GuestBytes,
    writable: GuestBytes,
) -> Result<(), Refusal> {
    match kind {
        T_IN => read_in_steps(volume, at(sector)?, writable).await,
        T_OUT if device.read_only => Err(Refusal::Malformed),
        T_OUT => write_in_steps(volume, at(sector)?, readable, device.write_through()).await,
        T_FLUSH if device.read_only => Ok(()),
        T_FLUSH => Ok(volume.flush().await?),
        T_GET_ID => get_id(volume.name(), &writable),
        T_DISCARD | T_WRITE_ZEROES if device.read_only => Err(Refusal::Malformed),
        T_DISCARD | T_WRITE_ZEROES => Box::pin(unmap(volume, device, kind, &readable)).await,
        _ => Err(Refusal::Unsupported),
    }
}

fn at(sector: u64) -> Result<u64, Refusal> {
    sector.checked_mul(SECTOR_BYTES).ok_or(Refusal::Malformed)
}

async fn read_in_steps<V: Volume>(volume: &V, at: u64, to: GuestBytes) -> Result<(), Refusal> {
    let len = check_transfer(volume, at, &to)?;
    if direct(&to) {
        for (from, n) in steps(len, STEP_BYTES) {
            volume.read(at + from, to.part(from, n)).await.0?;
        }
        return Ok(());
    }
    let mut bounce = Buf::zeroed(len.min(BOUNCE_BYTES) as usize);
    for (from, n) in steps(len, BOUNCE_BYTES) {
        bounce.set_len(n as usize);
        let (outcome, back) = volume.read(at + from, bounce).await;
        outcome?;
        bounce = back;
        to.copy_from(from, bounce.bytes());
    }
    Ok(())
}

async fn write_in_steps<V: Volume>(volume: &V, at: u64, from: GuestBytes, durable: bool) -> Result<(), Refusal> {
    let len = check_transfer(volume, at, &from)?;
    if direct(&from) {
        for (here, n) in steps(len, STEP_BYTES) {
            volume.write(at + here, from.part(here, n), durable).await.0?;
        }
        return Ok(());
    }
    let mut bounce = Buf::zeroed(len.min(BOUNCE_BYTES) as usize);
    for (here, n) in steps(len, BOUNCE_BYTES) {
        bounce.set_len(n as usize);
        from.copy_to(here, bounce.bytes_mut());
        let (outcome, back) = volume.write(at + here, bounce, durable).await;
        outcome?;
        bounce = back;
    }
    Ok(())
}

/// The transfer's length, if it lies in the volume: checked before a step of it is done.
fn check_transfer<V: Volume>(volume: &V, at: u64, bytes: &GuestBytes) -> Result<u64, Refusal> {
    let len = bytes.len();
    let inside = at.checked_add(len).is_some_and(|end| end <= volume.size());
    if inside && len.is_multiple_of(SECTOR_BYTES) { Ok(len) } else { Err(Refusal::Malformed) }
}

fn direct(bytes: &GuestBytes) -> bool {
    bytes.pieces() <= PIECES_MAX && bytes.is_aligned()
}

fn steps(len: u64, step: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..len.div_ceil(step)).map(move |i| (i * step, step.min(len - i * step)))
}

/// AWS shows a volume's id without its dash as the serial number; 20 bytes are all there is.
fn get_id(name: &str, to: &GuestBytes) -> Result<(), Refusal> {
    let mut id = [0; ID_BYTES];
    for (to, from) in id.iter_mut().zip(name.bytes().filter(|b| *b != b'-')) {
        *to = from;
    }
    let n = to.len().min(ID_BYTES as u64);
    to.copy_from(0, &id[..n as usize]);
    Ok(())
}

async fn unmap<V: Volume>(volume: &V, device: &Device, kind: u32, segments: &GuestBytes) -> Result<(), Refusal> {
    const SEGMENT_BYTES: u64 = 16;
    let n = segments.len() / SEGMENT_BYTES;
    if n == 0 || !segments.len().is_multiple_of(SEGMENT_BYTES) || n > u64::from(UNMAP_SEGMENTS_MAX) {
        return Err(Refusal::Malformed);
    }
    let mut ranges = [(0, 0); UNMAP_SEGMENTS_MAX as usize];
    let ranges = &mut ranges[..n as usize];
    for (i, range) in ranges.iter_mut().enumerate() {
        let mut raw = [0; SEGMENT_BYTES as usize];
        segments.copy_to(i as u64 * SEGMENT_BYTES, &mut raw);
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = raw;
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        // Bit 0 allows write-zeroes to unmap, which we always do; discard has no flags.
        if flags & !u32::from(kind == T_WRITE_ZEROES) != 0 {
            return Err(Refusal::Unsupported);
        }
        let start = at(u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]))?;
        let len = u64::from(sectors) * SECTOR_BYTES;
        let inside = start.checked_add(len).is_some_and(|end| end <= volume.size());
        if !inside || sectors > UNMAP_SECTORS_MAX {
            return Err(Refusal::Malformed);
        }
        *range = (start, len);
    }
    for (start, len) in ranges.iter().copied() {
        match kind {
            T_DISCARD => volume.discard(start, len).await?,
            _ => volume.write_zeroes(start, len).await?,
        }
    }
    if device.write_through() {
        volume.flush().await?;
    }
    Ok(())
}

const _: () = assert!(SEG_MAX as usize + 2 <= SIZE_MAX as usize);

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::super::memory::{GuestMemory, Region};
    use super::*;
    use crate::volume::MemoryVolume;

    struct Bed {
        memory: Arc<GuestMemory>,
        volume: MemoryVolume,
        device: Arc<Device>,
    }

    const DATA: u64 = 0x4000;
    const STATUS: u64 = 0x2000;

    impl Bed {
        fn new(read_only: bool) -> Self {
            let memory = GuestMemory::new(vec![Arc::new(Region::anonymous(0, 0x100000).unwrap())]).unwrap();
            let volume = MemoryVolume::new("vol-0123456789abcdef0", 1 << 20);
            let device = Device::new(1 << 20, 1, read_only);
            device.acknowledge(device.features());
            Self { memory, volume, device }
        }
        /// Runs a request with these data pieces; answers status and used length.
        fn run(&self, kind: u32, sector: u64, out: &[(u64, u64)], into: &[(u64, u64)]) -> (u8, u32) {
            let mut header = [0; 16];
            header[..4].copy_from_slice(&kind.to_le_bytes());
            header[8..].copy_from_slice(&sector.to_le_bytes());
            self.memory.write(0x1000, &header).unwrap();
            self.memory.write(STATUS, &[0xFF]).unwrap();
            let mut readable = GuestBytes::new(self.memory.clone());
            readable.push(0x1000, 16).unwrap();
            out.iter().for_each(|(at, len)| readable.push(*at, *len).unwrap());
            let mut writable = GuestBytes::new(self.memory.clone());
            into.iter().for_each(|(at, len)| writable.push(*at, *len).unwrap());
            writable.push(STATUS, 1).unwrap();
            let used = serve(&self.volume, &self.device, Chain { readable, writable })
                .now_or_never()
                .expect("memory is ready");
            let mut status = [0];
            self.memory.read(STATUS, &mut status).unwrap();
            (status[0], used)
        }
        fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
            let mut b = vec![0; len];
            self.memory.read(at, &mut b).unwrap();
            b
        }
        fn segment(&self, sector: u64, sectors: u32, flags: u32) -> [(u64, u64); 1] {
            let raw = [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat();
            self.memory.write(DATA, &raw).unwrap();
            [(DATA, 16)]
        }
    }

    #[test]
    fn data_goes_both_ways_however_it_is_scattered() {
        let bed = Bed::new(false);
        let data: Vec<u8> = (0..8192u32).map(|i| (i * 7 % 253) as u8).collect();
        bed.memory.write(DATA, &data).unwrap();
        assert_eq!(bed.run(T_OUT, 3, &[(DATA, 8192)], &[]), (S_OK, 1));
        assert_eq!(bed.run(T_IN, 3, &[], &[(0x10000, 4096), (0x20000, 4096)]), (S_OK, 8193));
        assert_eq!([bed.bytes(0x10000, 4096), bed.bytes(0x20000, 4096)].concat(), data);
        // Odd pieces are bounced.
        assert_eq!(bed.run(T_OUT, 100, &[(DATA + 1, 511), (DATA + 1000, 513)], &[]), (S_OK, 1));
        assert_eq!(bed.run(T_IN, 100, &[], &[(0x30003, 700), (0x31001, 324)]), (S_OK, 1025));
        let want = [&data[1..512], &data[1000..1513]].concat();
        assert_eq!([bed.bytes(0x30003, 700), bed.bytes(0x31001, 324)].concat(), want);
        assert_eq!(bed.run(T_FLUSH, 0, &[], &[]), (S_OK, 1));
        assert_eq!(bed.run(T_GET_ID, 0, &[], &[(DATA, 20)]), (S_OK, 21));
        assert_eq!(bed.bytes(DATA, 20), b"vol0123456789abcdef0");
        assert_eq!(bed.run(T_GET_ID, 0, &[], &[(DATA, 3)]), (S_OK, 4));
    }

    #[test]
    fn discard_and_write_zeroes_make_zeros() {
        let bed = Bed::new(false);
        bed.memory.write(DATA, &[7; 16384]).unwrap();
        assert_eq!(bed.run(T_OUT, 0, &[(DATA, 16384)], &[]).0, S_OK);
        assert_eq!(bed.run(T_DISCARD, 0, &bed.segment(8, 8, 0), &[]).0, S_OK);
        assert_eq!(bed.run(T_WRITE_ZEROES, 0, &bed.segment(20, 2, 1), &[]).0, S_OK);
        assert_eq!(bed.run(T_IN, 0, &[], &[(DATA, 16384)]).0, S_OK);
        let got = bed.bytes(DATA, 16384);
        for (i, byte) in got.iter().enumerate() {
            let zero = (4096..8192).contains(&i) || (10240..11264).contains(&i);
            assert_eq!(*byte, if zero { 0 } else { 7 }, "byte {i}");
        }
    }

    #[test]
    fn nonsense_gets_a_status() {
        let bed = Bed::new(false);
        assert_eq!(bed.run(99, 0, &[], &[]), (S_UNSUPP, 1));
        assert_eq!(bed.run(T_IN, 2048, &[], &[(DATA, 512)]), (S_IOERR, 1));
        assert_eq!(bed.run(T_IN, u64::MAX, &[], &[(DATA, 512)]), (S_IOERR, 1));
        assert_eq!(bed.run(T_IN, u64::MAX / 512, &[], &[(DATA, 512)]), (S_IOERR, 1));
        assert_eq!(bed.run(T_OUT, 0, &[(DATA, 511)], &[]), (S_IOERR, 1));
        assert_eq!(bed.run(T_DISCARD, 0, &[(DATA, 15)], &[]), (S_IOERR, 1));
        assert_eq!(bed.run(T_DISCARD, 0, &[], &[]), (S_IOERR, 1));
        assert_eq!(bed.run(T_DISCARD, 0, &[(DATA, 16 * 33)], &[]), (S_IOERR, 1));
        assert_eq!(bed.run(T_DISCARD, 0, &bed.segment(0, 8, 1), &[]), (S_UNSUPP, 1));
        assert_eq!(bed.run(T_WRITE_ZEROES, 0, &bed.segment(0, 8, 2), &[]), (S_UNSUPP, 1));
        assert_eq!(bed.run(T_DISCARD, 0, &bed.segment(u64::MAX, 8, 0), &[]), (S_IOERR, 1));
        assert_eq!(bed.run(T_DISCARD, 0, &bed.segment(2047, 2, 0), &[]), (S_IOERR, 1));
        assert_eq!(bed.run(T_IN, 0, &[], &[]), (S_OK, 1), "nothing is read well");
        // No status byte, and a header that is too short.
        let empty = || GuestBytes::new(bed.memory.clone());
        let chain = Chain { readable: empty(), writable: empty() };
        assert_eq!(serve(&bed.volume, &bed.device, chain).now_or_never(), Some(0));
        let mut writable = empty();
        writable.push(STATUS, 1).unwrap();
        let mut readable = empty();
        readable.push(DATA, 15).unwrap();
        assert_eq!(serve(&bed.volume, &bed.device, Chain { readable, writable }).now_or_never(), Some(1));
        bed.volume.fail(true);
        assert_eq!(bed.run(T_IN, 0, &[], &[(DATA, 512)]), (S_IOERR, 1));
        assert_eq!(bed.run(T_FLUSH, 0, &[], &[]), (S_IOERR, 1));
        let ro = Bed::new(true);
        assert_eq!(ro.run(T_OUT, 0, &[(DATA, 512)], &[]), (S_IOERR, 1));
        assert_eq!(ro.run(T_DISCARD, 0, &ro.segment(0, 8, 0), &[]), (S_IOERR, 1));
        assert_eq!((ro.run(T_FLUSH, 0, &[], &[]).0, ro.run(T_IN, 0, &[], &[(DATA, 512)]).0), (S_OK, S_OK));
    }

    #[test]
    fn the_cache_mode_follows_the_driver() {
        let device = Device::new(1 << 20, 2, false);
        assert!(device.write_through(), "a driver without FLUSH must not lose what completed");
        device.acknowledge(device.features());
        assert!(!device.write_through());
        assert_eq!(device.config()[32], 1);
        device.reset();
        assert!(device.write_through());
        assert_eq!(device.config()[..8], 2048u64.to_le_bytes());
        assert_eq!(device.config()[34..36], [2, 0]);
    }
}
