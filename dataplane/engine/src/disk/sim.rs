//! A seeded disk in memory: the twin of `uring` for tests, and the machine that crashes.
//!
//! The model, stated:
//! - An operation takes effect at a random moment between its submission and its completion ([`Faults::latency`]), so
//!   concurrent ones overtake each other. With [`Faults::split_ppm`] a transfer takes effect in two pieces (short I/O
//!   carried on below the seam). A write whose future is dropped still happens, later: as with a real ring.
//! - Foreign memory is read or filled at that moment, not before.
//! - A write's effect is seen by reads at once, but is not durable: it stands in a log until a flush that began after
//!   it completes, or is durable with its own completion (`fua`).
//! - [`SimDisk::crash`] takes what is durable and lets each logged or in-flight write, by lot, be whole, lost or torn
//!   (any subset of its 512-byte sectors). `fua` writes and flushes that were not acknowledged count as such writes.
//! - [`SimDisk::crash_after`] cuts the power at the n-th write, flush, discard or zeroing: that one is not acknowledged,
//!   may have happened, and everything after it fails. So a test can crash at every point of a workload.
//! - A flush that fails (see [`SimDisk::fail_flushes`]) loses, by lot, writes that it covered: reads show them, no later
//!   flush makes them durable. That is what kernels do.
//! - [`SimDisk::fail`] and [`SimDisk::rot`] give EIO, ENOSPC and flipped bits in ranges.
//!
//! With [`Faults::none`] every operation is done at its first poll and no executor is needed: the fast memory disk.
//! Space is used as it is written (4 KiB pages).

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::{Dir, Disk, DiskError, Done};
use crate::buf::{ALIGN, Buf};
use crate::landing::{Landed, Landings};
use crate::sim::Rng;
use crate::{detach, sleep, sync};

const PAGE: u64 = ALIGN as u64;
const SECTOR: u64 = 512;
const EIO: i32 = 5;

/// How a simulated disk behaves. `Default` is [`Faults::none`].
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Virtual time from submission to effect, and again to completion. An empty range: at once, without an executor.
    pub latency: Range<Duration>,
    /// Transfers in a million that take effect in two pieces.
    pub split_ppm: u32,
    /// Reads in a million that fail with EIO.
    pub read_error_ppm: u32,
    /// Writes in a million that fail with EIO, having happened wholly, partly or not.
    pub write_error_ppm: u32,
}

impl Faults {
    /// At once and never failing; crashes still lose and tear.
    pub fn none() -> Self {
        Self::default()
    }

    /// Reordering and split transfers, no errors: what a healthy disk does.
    pub fn reordering() -> Self {
        Self { latency: Duration::from_micros(5)..Duration::from_micros(500), split_ppm: 50_000, ..Self::default() }
    }
}

/// An injected error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Reads of the range fail with EIO.
    ReadEio,
    /// Writes, zeroing and discards in the range fail with EIO and change nothing.
    WriteEio,
    /// Writes and zeroing in the range fail with ENOSPC and change nothing.
    NoSpace,
}

/// Operations accepted so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Reads.
    pub reads: u64,
    /// Writes, `fua` ones included.
    pub writes: u64,
    /// Writes with `fua`.
    pub fuas: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
    /// Zeroings.
    pub zeroes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
}

type Image = HashMap<u64, Box<[u8; ALIGN]>>;

#[derive(Clone)]
enum Data {
    Bytes(Rc<[u8]>),
    Zeroes(u64),
}

impl Data {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(b) => b.len() as u64,
            Self::Zeroes(n) => *n,
        }
    }
}

/// A change that took effect and is not durable yet; `sure` ones (acknowledged `fua`) wait only for their turn.
struct Entry {
    at: u64,
    data: Data,
    sure: bool,
}

/// A submitted change.
struct Change {
    name: &'static str,
    at: u64,
    len: u64,
    op: u64,
    fua: bool,
}

struct Rule {
    range: Range<u64>,
    fault: Fault,
    times: Option<u32>,
}

struct State {
    size: u64,
    faults: Faults,
    rng: Rng,
    current: Image,
    durable: Image,
    /// By number, in order of effect.
    log: BTreeMap<u64, Entry>,
    next_entry: u64,
    /// Submitted, without effect yet: what a power loss may half do.
    in_flight: HashMap<u64, (u64, Data)>,
    next_op: u64,
    countdown: Option<u64>,
    dead: bool,
    rules: Vec<Rule>,
    failing_flushes: u32,
    stats: Stats,
}

fn apply(image: &mut Image, at: u64, data: &Data) {
    let end = at + data.len();
    let mut pos = at;
    while pos < end {
        let page = pos / PAGE;
        let from = (pos % PAGE) as usize;
        let n = ((end - pos) as usize).min(ALIGN - from);
        match data {
            Data::Zeroes(_) if n == ALIGN => {
                image.remove(&page);
            }
            Data::Zeroes(_) => {
                if let Some(p) = image.get_mut(&page) {
                    p[from..from + n].fill(0);
                }
            }
            Data::Bytes(bytes) => {
                let p = image.entry(page).or_insert_with(|| Box::new([0; ALIGN]));
                let done = (pos - at) as usize;
                p[from..from + n].copy_from_slice(&bytes[done..done + n]);
            }
        }
        pos += n as u64;
    }
}

impl State {
    fn io_error(&self, op: &'static str, at: u64, len: u64, why: &str) -> DiskError {
        DiskError::Io { op, at, len, why: why.to_owned() }
    }

    fn power(&self, op: &'static str, at: u64, len: u64) -> Result<(), DiskError> {
        if self.dead { Err(self.io_error(op, at, len, "simulated power loss")) } else { Ok(()) }
    }

    /// Counts a changing operation; the countdown's last one takes the power with it.
    fn tick(&mut self) {
        let Some(n) = &mut self.countdown else { return };
        *n = n.saturating_sub(1);
        if *n == 0 {
            self.dead = true;
            self.countdown = None;
        }
    }

    fn rule(&mut self, op: &'static str, at: u64, len: u64, of: &[Fault]) -> Result<(), DiskError> {
        let hit = self.rules.iter_mut().find(|r| {
            of.contains(&r.fault) && r.range.start < at + len && at < r.range.end && r.times.is_none_or(|n| n > 0)
        });
        let Some(rule) = hit else { return Ok(()) };
        if let Some(n) = &mut rule.times {
            *n -= 1;
        }
        match rule.fault {
            Fault::NoSpace => Err(DiskError::NoSpace { at, len }),
            _ => Err(self.io_error(op, at, len, "injected EIO")),
        }
    }

    /// The change shows to reads and waits for a flush.
    fn effect(&mut self, at: u64, data: Data) -> u64 {
        apply(&mut self.current, at, &data);
        let number = self.next_entry;
        self.next_entry += 1;
        self.log.insert(number, Entry { at, data, sure: false });
        number
    }

    /// Moves what needs no flush any more to the durable image: the log's leading sure entries.
    fn settle(&mut self) {
        while let Some(first) = self.log.first_entry() {
            if !first.get().sure {
                return;
            }
            let entry = first.remove();
            apply(&mut self.durable, entry.at, &entry.data);
        }
    }

    fn read_into(&self, at: u64, buf: &mut Buf) {
        let end = at + buf.len() as u64;
        let mut pos = at;
        while pos < end {
            let from = (pos % PAGE) as usize;
            let n = ((end - pos) as usize).min(ALIGN - from);
            let to = (pos - at) as usize;
            match self.current.get(&(pos / PAGE)) {
                Some(page) => buf.copy_from(to, &page[from..from + n]),
                None => buf.zero(to, n),
            }
            pos += n as u64;
        }
    }

    /// By lot whole, lost or torn at sectors.
    fn fate(rng: &mut Rng, image: &mut Image, at: u64, data: &Data) {
        let mode = rng.below(4);
        if mode == 0 {
            return;
        }
        if mode == 1 {
            return apply(image, at, data);
        }
        let sectors = data.len().div_ceil(SECTOR);
        let prefix = rng.below(sectors + 1);
        for s in 0..sectors {
            let keep = if mode == 2 { s < prefix } else { rng.below(2) == 0 };
            if keep {
                let from = s * SECTOR;
                let to = (from + SECTOR).min(data.len());
                let piece = match data {
                    Data::Bytes(b) => Data::Bytes(b[from as usize..to as usize].into()),
                    Data::Zeroes(_) => Data::Zeroes(to - from),
                };
                apply(image, at + from, &piece);
            }
        }
    }
}

/// See the module. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk(Rc<RefCell<State>>);

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let s = self.0.borrow();
        f.debug_struct("SimDisk").field("size", &s.size).field("dead", &s.dead).field("stats", &s.stats).finish()
    }
}

impl SimDisk {
    /// An empty (zero) disk of `size` bytes.
    ///
    /// # Panics
    /// When the size is not a multiple of [`ALIGN`].
    pub fn new(size: u64, rng: Rng, faults: Faults) -> Self {
        assert!(size.is_multiple_of(PAGE), "a disk of {size} bytes is not a multiple of {PAGE}");
        Self::with(size, rng, faults, Image::new())
    }

    /// An empty disk that answers at once and never fails: memory behind the seam.
    pub fn memory(size: u64) -> Self {
        Self::new(size, Rng::new(0), Faults::none())
    }

    fn with(size: u64, rng: Rng, faults: Faults, image: Image) -> Self {
        Self(Rc::new(RefCell::new(State {
            size,
            faults,
            rng,
            current: image.clone(),
            durable: image,
            log: BTreeMap::new(),
            next_entry: 0,
            in_flight: HashMap::new(),
            next_op: 0,
            countdown: None,
            dead: false,
            rules: Vec::new(),
            failing_flushes: 0,
            stats: Stats::default(),
        })))
    }

    /// Cuts the power and returns the disk as it comes back: one possible image after the crash, without countdown,
    /// rules or open operations, zero statistics, the same [`Faults`]. This handle and its clones fail from now on.
    pub fn crash(&self) -> SimDisk {
        let mut s = self.0.borrow_mut();
        let s = &mut *s;
        s.dead = true;
        s.countdown = None;
        let mut rng = s.rng.fork();
        let mut image = std::mem::take(&mut s.durable);
        for entry in std::mem::take(&mut s.log).into_values() {
            if entry.sure {
                apply(&mut image, entry.at, &entry.data);
            } else {
                State::fate(&mut rng, &mut image, entry.at, &entry.data);
            }
        }
        let mut open: Vec<_> = std::mem::take(&mut s.in_flight).into_iter().collect();
        open.sort_by_key(|(op, _)| *op);
        while !open.is_empty() {
            let (_, (at, data)) = open.swap_remove(rng.below(open.len() as u64) as usize);
            State::fate(&mut rng, &mut image, at, &data);
        }
        s.current = Image::new();
        Self::with(s.size, rng, s.faults.clone(), image)
    }

    /// Cuts the power at the `n`-th write, flush, discard or zeroing from now (1: the next). 0 takes a countdown back.
    pub fn crash_after(&self, n: u64) {
        self.0.borrow_mut().countdown = (n > 0).then_some(n);
    }

    /// True once the power is off.
    pub fn is_dead(&self) -> bool {
        self.0.borrow().dead
    }

    /// Cuts the power now; [`crash`](Self::crash) gives the disk that comes back.
    pub fn cut_power(&self) {
        self.0.borrow_mut().dead = true;
    }

    /// Operations touching `range` fail, `times` often or always.
    pub fn fail(&self, range: Range<u64>, fault: Fault, times: Option<u32>) {
        self.0.borrow_mut().rules.push(Rule { range, fault, times });
    }

    /// The next `times` flushes fail.
    pub fn fail_flushes(&self, times: u32) {
        self.0.borrow_mut().failing_flushes = times;
    }

    /// Takes back what [`fail`](Self::fail) and [`fail_flushes`](Self::fail_flushes) set.
    pub fn heal(&self) {
        let mut s = self.0.borrow_mut();
        s.rules.clear();
        s.failing_flushes = 0;
    }

    /// Flips one bit by lot in each of `count` bytes by lot in `range`, for reads and for good.
    pub fn rot(&self, range: Range<u64>, count: u32) {
        let mut s = self.0.borrow_mut();
        let s = &mut *s;
        for _ in 0..count {
            let at = s.rng.range(range.clone());
            let bit = 1u8 << s.rng.below(8);
            for image in [&mut s.current, &mut s.durable] {
                image.entry(at / PAGE).or_insert_with(|| Box::new([0; ALIGN]))[(at % PAGE) as usize] ^= bit;
            }
        }
    }

    /// Changes latency and error rates for operations to come.
    pub fn set_faults(&self, faults: Faults) {
        self.0.borrow_mut().faults = faults;
    }

    /// Operations accepted so far.
    pub fn stats(&self) -> Stats {
        self.0.borrow().stats
    }

    /// Writes that a crash could now lose.
    pub fn unsynced(&self) -> usize {
        let s = self.0.borrow();
        s.log.values().filter(|e| !e.sure).count() + s.in_flight.len()
    }

    /// Bytes as reads would see them, without counting or failing.
    pub fn peek(&self, at: u64, len: usize) -> Vec<u8> {
        let mut buf = Buf::zeroed(len);
        self.0.borrow().read_into(at, &mut buf);
        buf.bytes().to_vec()
    }

    fn check(&self, op: &'static str, at: u64, len: u64) -> Result<(), DiskError> {
        let s = self.0.borrow();
        let aligned = at.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR);
        if !aligned || at.checked_add(len).is_none_or(|end| end > s.size) {
            return Err(DiskError::Bounds { op, at, len, size: s.size });
        }
        Ok(())
    }

    fn delay(&self) -> Option<Duration> {
        let mut s = self.0.borrow_mut();
        let latency = s.faults.latency.clone();
        if latency.is_empty() {
            return None;
        }
        let ns = s.rng.range(latency.start.as_nanos() as u64..latency.end.as_nanos() as u64);
        Some(Duration::from_nanos(ns))
    }

    /// Runs an operation to its end whatever becomes of the asking future; at once when there is no latency.
    async fn detached<T: 'static>(&self, op: impl Future<Output = T> + 'static) -> T {
        if self.0.borrow().faults.latency.is_empty() {
            return op.await;
        }
        let (tx, rx) = sync::oneshot();
        detach(async move {
            // Nobody may wait any more.
            let _ = tx.send(op.await);
        });
        match rx.await {
            Some(outcome) => outcome,
            // The task was killed with the process: whoever is still polled (from another task's drop) waits for ever.
            None => std::future::pending().await,
        }
    }

    async fn pause(&self) {
        if let Some(time) = self.delay() {
            sleep(time).await;
        }
    }

    /// Cuts a transfer in two, at a sector, by lot.
    fn pieces(&self, len: u64) -> Vec<Range<u64>> {
        let mut s = self.0.borrow_mut();
        let split = s.faults.split_ppm;
        let sectors = len / SECTOR;
        if sectors < 2 || split == 0 || !s.rng.ppm(split) {
            return std::iter::once(0..len).collect();
        }
        let cut = s.rng.range(1..sectors) * SECTOR;
        vec![0..cut, cut..len]
    }

    async fn do_read(self, at: u64, mut buf: Buf) -> Done {
        let len = buf.len() as u64;
        self.pause().await;
        let pieces = self.pieces(len);
        for piece in &pieces {
            {
                let s = self.0.borrow();
                if let Err(e) = s.power("read", at, len) {
                    return (Err(e), buf);
                }
                let n = (piece.end - piece.start) as usize;
                if n as u64 == len {
                    s.read_into(at, &mut buf);
                } else {
                    let mut part = Buf::zeroed(n);
                    s.read_into(at + piece.start, &mut part);
                    buf.copy_from(piece.start as usize, part.bytes());
                }
            }
            if pieces.len() > 1 {
                self.pause().await;
            }
        }
        self.pause().await;
        let mut s = self.0.borrow_mut();
        let bad = s.faults.read_error_ppm;
        if bad > 0 && s.rng.ppm(bad) {
            return (Err(s.io_error("read", at, len, "simulated EIO")), buf);
        }
        (s.power("read", at, len), buf)
    }

    /// Submits and counts a change: what a power loss from now on may half do. Its source is read again at the effect.
    fn submit(&self, at: u64, data: impl FnOnce() -> Data) -> u64 {
        let mut s = self.0.borrow_mut();
        let op = s.next_op;
        s.next_op += 1;
        // Nothing comes between submission and effect of a disk that answers at once, but the countdown.
        if s.countdown.is_some() || !s.faults.latency.is_empty() {
            s.in_flight.insert(op, (at, data()));
        }
        s.tick();
        op
    }

    async fn do_change(self, change: Change, data: impl Fn() -> Data) -> Result<(), DiskError> {
        let Change { name, at, len, op, fua } = change;
        self.pause().await;
        let pieces = self.pieces(len);
        let mut entries = Vec::new();
        for piece in &pieces {
            {
                let mut s = self.0.borrow_mut();
                s.power(name, at, len)?;
                let part = match data() {
                    whole if pieces.len() == 1 => whole,
                    Data::Bytes(b) => Data::Bytes(b[piece.start as usize..piece.end as usize].into()),
                    Data::Zeroes(_) => Data::Zeroes(piece.end - piece.start),
                };
                let bad = s.faults.write_error_ppm;
                if bad > 0 && s.rng.ppm(bad) {
                    s.in_flight.remove(&op);
                    return Err(s.io_error(name, at, len, "simulated EIO"));
                }
                entries.push(s.effect(at + piece.start, part));
            }
            if pieces.len() > 1 {
                self.pause().await;
            }
        }
        // From here on the log stands for it.
        self.0.borrow_mut().in_flight.remove(&op);
        self.pause().await;
        let mut s = self.0.borrow_mut();
        s.power(name, at, len)?;
        if fua {
            for number in entries {
                if let Some(entry) = s.log.get_mut(&number) {
                    entry.sure = true;
                }
            }
            s.settle();
        }
        Ok(())
    }

    async fn do_flush(self) -> Result<(), DiskError> {
        let covers = self.0.borrow().next_entry;
        self.pause().await;
        self.pause().await;
        let mut s = self.0.borrow_mut();
        s.power("flush", 0, 0)?;
        if s.failing_flushes > 0 {
            s.failing_flushes -= 1;
            let s = &mut *s;
            let rng = &mut s.rng;
            s.log.retain(|n, e| *n >= covers || e.sure || rng.below(2) == 0);
            return Err(s.io_error("flush", 0, 0, "injected EIO"));
        }
        for (_, entry) in s.log.range_mut(..covers) {
            entry.sure = true;
        }
        s.settle();
        Ok(())
    }
}

impl Disk for SimDisk {
    fn size(&self) -> u64 {
        self.0.borrow().size
    }

    async fn read(&self, at: u64, buf: Buf) -> Done {
        let len = buf.len() as u64;
        let accepted = self.check("read", at, len).and_then(|()| {
            let mut s = self.0.borrow_mut();
            s.power("read", at, len)?;
            s.stats.reads += 1;
            s.stats.read_bytes += len;
            s.rule("read", at, len, &[Fault::ReadEio])
        });
        match accepted {
            Ok(()) => self.detached(self.clone().do_read(at, buf)).await,
            Err(e) => (Err(e), buf),
        }
    }

    /// As the real one where there is an executor: a failure is an errno, whatever it was.
    fn begin(&self, dir: Dir, at: u64, buf: Buf, to: &Landings, token: u64) -> Result<(), Buf> {
        if !crate::on_executor() {
            return Err(buf);
        }
        let (this, to) = (self.clone(), to.clone());
        detach(async move {
            let len = buf.len() as u32;
            let (result, buf) = match dir {
                Dir::Read => this.read(at, buf).await,
                Dir::Write => this.write(at, buf, false).await,
            };
            to.push(Landed { token, result: result.map(|()| len).map_err(|_| EIO), buf });
        });
        Ok(())
    }

    async fn write(&self, at: u64, buf: Buf, fua: bool) -> Done {
        let len = buf.len() as u64;
        let accepted = self.check("write", at, len).and_then(|()| {
            let mut s = self.0.borrow_mut();
            s.power("write", at, len)?;
            s.stats.writes += 1;
            s.stats.fuas += u64::from(fua);
            s.stats.written_bytes += len;
            s.rule("write", at, len, &[Fault::WriteEio, Fault::NoSpace])
        });
        if let Err(e) = accepted {
            return (Err(e), buf);
        }
        let bytes = |buf: &Buf| {
            let mut bytes = vec![0; buf.len()];
            buf.copy_to(0, &mut bytes);
            Data::Bytes(bytes.into())
        };
        let op = self.submit(at, || bytes(&buf));
        let this = self.clone();
        self.detached(async move {
            let result = this.do_change(Change { name: "write", at, len, op, fua }, || bytes(&buf)).await;
            (result, buf)
        })
        .await
    }

    async fn flush(&self) -> Result<(), DiskError> {
        {
            let mut s = self.0.borrow_mut();
            s.power("flush", 0, 0)?;
            s.stats.flushes += 1;
            s.tick();
        }
        self.detached(self.clone().do_flush()).await
    }

    async fn discard(&self, at: u64, len: u64) -> Result<(), DiskError> {
        self.check("discard", at, len)?;
        {
            let mut s = self.0.borrow_mut();
            s.power("discard", at, len)?;
            s.stats.discards += 1;
            s.rule("discard", at, len, &[Fault::WriteEio])?;
        }
        // Zeros or as before, by lot where the disk is a faulty one.
        let keeps = {
            let mut s = self.0.borrow_mut();
            !s.faults.latency.is_empty() && s.rng.below(4) == 0
        };
        if keeps {
            let mut s = self.0.borrow_mut();
            s.tick();
            return s.power("discard", at, len);
        }
        let op = self.submit(at, || Data::Zeroes(len));
        let change = Change { name: "discard", at, len, op, fua: false };
        self.detached(self.clone().do_change(change, move || Data::Zeroes(len))).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, _unmap: bool) -> Result<(), DiskError> {
        self.check("write_zeroes", at, len)?;
        {
            let mut s = self.0.borrow_mut();
            s.power("write_zeroes", at, len)?;
            s.stats.zeroes += 1;
            s.rule("write_zeroes", at, len, &[Fault::WriteEio, Fault::NoSpace])?;
        }
        let op = self.submit(at, || Data::Zeroes(len));
        let change = Change { name: "write_zeroes", at, len, op, fua: false };
        self.detached(self.clone().do_change(change, move || Data::Zeroes(len))).await
    }
}
