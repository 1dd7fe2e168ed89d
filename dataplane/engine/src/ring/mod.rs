//! One io_uring per core, and the slab that owns every operation until its last completion.
//!
//! ```text
//! future ---- submit ----> slot (buffer, fd, waker) ----> SQE ... enter ... CQE(s) ----> slot: Done ----> waker
//!    |                        |                                                            |
//!    +-- dropped early -----> orphan: keeps buffer and fd, wakes nobody, freed at its last CQE
//! no future: the slot names the `Landings` that its CQE and buffer go to
//! ```
//!
//! Why it is safe: the kernel may write into a buffer until the operation's last CQE, so buffer and fd belong to the slot,
//! not to the future. A slot is freed only by its last CQE. When the core ends, `Ring::close` refuses new operations,
//! cancels all, and reaps until no slot is left; slots that will not finish are leaked with their memory, never freed.
//! The number in `user_data` carries the slot's generation, so that a late cancel cannot hit a slot's next tenant.
//!
//! Costs per operation: a quarter of an `io_uring_enter` at most (one per `submit_batch` submissions, and one per turn for
//! the rest and for completions), no allocation (slots are reused), no copy, one push and one wake on local queues.
//!
//! # The wait loop, and why a bare ring had 0.8 of fio's IOPS
//!
//! The suspect was a sleep and a wake per completion. It is not that: at depth 32 such a ring sleeps only 0.09 times per
//! I/O and makes 0.09 enters, because a wake finds some eleven completions. That is the trouble: all eleven successors are
//! then prepared and submitted in one enter, the device idles meanwhile and gets them as one plugged burst, so they
//! complete together again (a convoy). fio hands over each I/O as it is made, for more CPU. We hand over every
//! `submit_batch` submissions within the turn. 4 KiB O_DIRECT randread of a 1 GiB ext4 file, depth 32, two busy virtual
//! CPUs, five interleaved rounds of `examples/randread.rs`, medians (virtio disk, Linux 6.18, so only ratios mean much):
//!
//! | | IOPS / fio | CPU us/IO | enters/IO |
//! |---|---|---|---|
//! | fio (fixedbufs, registerfiles) | 1 (33.2k) | 7.4 | 1 |
//! | one hand-over per turn (`submit_batch` 0) | 1.03 | 5.8 | 0.09 |
//! | `submit_batch` 4 (the default) | 1.13 | 5.6 | 0.28 |
//! | `submit_batch` 8 | 1.11 | 5.9 | 0.17 |
//!
//! Watching the completion ring before sleeping (`CoreOptions::spin`) won nothing at depth 32 on that machine and doubles
//! the CPU at depth 1 (27 to 50 us/IO, device latency 80 us), so it is off by default.
//!
//! Settings: SINGLE_ISSUER and DEFER_TASKRUN (completions are posted only inside our own enter, so every enter asks for
//! GETEVENTS), TASKRUN_FLAG (a busy core sees in shared memory whether an enter is worth it), SUBMIT_ALL, NO_IOWAIT where
//! the kernel has it (6.15), a CQ of four times the SQ, the ring's own fd registered, io-wq workers capped. No SQPOLL, no
//! IOPOLL.

pub(crate) mod bufs;
mod fd;
mod memory;
mod probe;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use io_uring::{EnterFlags, IoUring, opcode, squeue, types};
use slab::Slab;

pub use fd::{Fd, Polls, poll, polls, read_eventfd};
pub use memory::{Pinned, REGION_BYTES_MAX, Registered, pin_memory, register_memory};
use probe::Features;

use crate::buf::Buf;
use crate::error::EngineError;
use crate::landing::{Landed, Landings};
use bufs::Bufs;

/// Completions of these are nobody's.
const IGNORE: u64 = u64::MAX;
/// The armed read of the wake-up eventfd.
const ALARM: u64 = u64::MAX - 1;

/// Completions that a multishot operation may have waiting for its reader; then it is cancelled, to be begun again when
/// they are consumed. The kernel may post some more before the cancel counts.
pub const MULTI_MAX: usize = 8;

/// A ring's size and habits.
#[derive(Debug, Clone)]
pub struct RingOptions {
    /// Submission queue entries, a power of two; the completion queue has four times as many. More operations than
    /// that may be in flight; a full submission queue is submitted early.
    pub entries: u32,
    /// Submissions collected before they are handed over in the middle of a turn; 0: only at its end. A device that works
    /// on the first while we prepare the next is busier than one that gets all at once (see the module's notes on
    /// the wait loop).
    pub submit_batch: u32,
    /// Kernel worker threads at most: for bounded work (files) and unbounded work (sockets). Per core.
    pub workers: [u32; 2],
    /// Slots for registered files (disks).
    pub files: u32,
    /// Slots for registered memory regions (guests).
    pub regions: u32,
    /// Receive buffers lent to the kernel per core, a power of two, and the size of each in bytes.
    pub recv_buffers: (u16, u32),
}

impl Default for RingOptions {
    fn default() -> Self {
        Self { entries: 256, submit_batch: 4, workers: [8, 8], files: 64, regions: 256, recv_buffers: (512, 16 << 10) }
    }
}

/// One completion: bytes or errno (negative), and flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cqe {
    pub(crate) res: i32,
    pub(crate) flags: u32,
}

impl Cqe {
    pub(crate) fn result(self) -> io::Result<u32> {
        u32::try_from(self.res).map_err(|_| io::Error::from_raw_os_error(-self.res))
    }
}

/// What an operation keeps alive for the kernel.
pub(crate) enum Keep {
    Nothing,
    Buf(Buf),
    /// Whatever else: messages, boxed structures.
    Other(#[allow(dead_code, reason = "held for its memory")] Box<dyn Any>),
    /// The result is a new fd, to be closed if nobody takes it.
    ResultFd,
}

enum State {
    Waiting(Option<Waker>),
    Done(Cqe),
    /// Its future is gone.
    Orphan,
    /// It never had one: its end goes there, under that token.
    Landing(Landings, u64),
    /// Several completions; `over` after the one without F_MORE.
    Multi {
        queue: VecDeque<Cqe>,
        waker: Option<Waker>,
        over: bool,
    },
}

struct Slot {
    generation: u32,
    state: State,
    keep: Keep,
    _fd: Option<Fd>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    fn user_data(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }
}

/// What a ring did since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RingStats {
    /// Operations submitted.
    pub ops: u64,
    /// `io_uring_enter` calls.
    pub enters: u64,
    /// Those that could sleep.
    pub sleeps: u64,
    /// Completions.
    pub completions: u64,
    /// Operations in flight now.
    pub in_flight: u64,
}

/// See the module.
pub(crate) struct Ring {
    uring: ManuallyDrop<RefCell<IoUring>>,
    slots: ManuallyDrop<RefCell<Slab<Slot>>>,
    bufs: ManuallyDrop<Bufs>,
    generation: Cell<u32>,
    submit_batch: usize,
    enter_fd: RawFd,
    enter_flags: u32,
    features: Features,
    closing: Cell<bool>,
    /// The wake-up eventfd's read side and the eight bytes it is read into; armed while a read is in flight.
    alarm: std::os::fd::OwnedFd,
    alarm_word: ManuallyDrop<Box<Cell<u64>>>,
    alarm_armed: Cell<bool>,
    files_free: RefCell<Vec<u32>>,
    regions: RefCell<Vec<memory::Region>>,
    regions_free: RefCell<Vec<u16>>,
    ops: Cell<u64>,
    enters: Cell<u64>,
    sleeps: Cell<u64>,
    completions: Cell<u64>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Ring>>> = const { RefCell::new(None) };
}

/// This core's ring.
///
/// # Panics
/// Outside a core (also in the simulation, which has no ring).
pub(crate) fn current() -> Rc<Ring> {
    try_current().expect("not on an engine core: disks and sockets are opened by a task of the core that uses them")
}

pub(crate) fn try_current() -> Option<Rc<Ring>> {
    CURRENT.try_with(|c| c.borrow().clone()).ok()?
}

/// Puts the ring on this thread until dropped.
pub(crate) struct Entered(());

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.with(|c| c.borrow_mut().take());
    }
}

pub(crate) fn enter(ring: &Rc<Ring>) -> Entered {
    CURRENT.with(|c| *c.borrow_mut() = Some(ring.clone()));
    Entered(())
}

impl Ring {
    /// A ring of this thread, which alone may use it.
    pub(crate) fn new(options: &RingOptions, alarm: std::os::fd::OwnedFd) -> Result<Rc<Self>, EngineError> {
        let uring = probe::build(options)?;
        let features = probe::check(&uring)?;
        let submitter = uring.submitter();
        let mut workers = options.workers;
        submitter.register_iowq_max_workers(&mut workers).map_err(EngineError::io("cap the ring's workers"))?;
        submitter.register_files_sparse(options.files).map_err(EngineError::io("register the ring's file table"))?;
        submitter
            .register_buffers_sparse(options.regions)
            .map_err(EngineError::io("register the ring's memory table"))?;
        let (enter_fd, enter_flags) = match probe::register_ring_fd(uring.as_raw_fd()) {
            Ok(index) => (index, EnterFlags::REGISTERED_RING.bits()),
            Err(_) => (uring.as_raw_fd(), 0),
        };
        let bufs = Bufs::register(&uring, options.recv_buffers)?;
        let ring = Rc::new(Self {
            uring: ManuallyDrop::new(RefCell::new(uring)),
            slots: ManuallyDrop::new(RefCell::new(Slab::with_capacity(options.entries as usize))),
            bufs: ManuallyDrop::new(bufs),
            generation: Cell::new(0),
            submit_batch: options.submit_batch as usize,
            enter_fd,
            enter_flags,
            features,
            closing: Cell::new(false),
            alarm,
            alarm_word: ManuallyDrop::new(Box::new(Cell::new(0))),
            alarm_armed: Cell::new(false),
            files_free: RefCell::new((0..options.files).rev().collect()),
            regions: RefCell::default(),
            regions_free: RefCell::new((0..options.regions as u16).rev().collect()),
            ops: Cell::new(0),
            enters: Cell::new(0),
            sleeps: Cell::new(0),
            completions: Cell::new(0),
        });
        ring.arm_alarm();
        Ok(ring)
    }

    /// True when the core is ending.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.get()
    }

    pub(crate) fn bufs(&self) -> &Bufs {
        &self.bufs
    }

    pub(crate) fn stats(&self) -> RingStats {
        RingStats {
            ops: self.ops.get(),
            enters: self.enters.get(),
            sleeps: self.sleeps.get(),
            completions: self.completions.get(),
            in_flight: self.slots.borrow().len() as u64,
        }
    }

    fn arm_alarm(&self) {
        let entry = opcode::Read::new(types::Fd(self.alarm.as_raw_fd()), self.alarm_word.as_ptr().cast(), 8);
        // SAFETY: the word is boxed and freed only when nothing is in flight; the fd lives as long as the ring.
        unsafe { self.push(&entry.build().user_data(ALARM)) };
        self.alarm_armed.set(true);
    }

    /// # Safety
    /// What the entry points to must live until its last completion.
    unsafe fn push(&self, entry: &squeue::Entry) {
        loop {
            // SAFETY: promised by the caller.
            if unsafe { self.uring.borrow_mut().submission().push(entry) }.is_ok() {
                return;
            }
            // Full: hand over what is there.
            self.enter(Wait::No);
        }
    }

    /// Starts an operation. On a closing ring it is done at once with ECANCELED.
    ///
    /// # Safety
    /// Every address in the entry must stay valid until the last completion, by `keep` or `fd` or for ever; moving
    /// `keep` must not move what the entry points to.
    pub(crate) unsafe fn submit(
        self: &Rc<Self>,
        entry: squeue::Entry,
        keep: Keep,
        fd: Option<Fd>,
        on_drop: OnDrop,
    ) -> Op {
        // SAFETY: promised by the caller.
        let key = unsafe { self.start(entry, keep, fd, State::Waiting(None)) };
        Op { ring: self.clone(), key: Some(key), on_drop }
    }

    /// Starts a multishot operation.
    ///
    /// # Safety
    /// As [`submit`](Self::submit).
    pub(crate) unsafe fn submit_multi(self: &Rc<Self>, entry: squeue::Entry, keep: Keep, fd: Option<Fd>) -> MultiOp {
        let state = State::Multi { queue: VecDeque::new(), waker: None, over: false };
        // SAFETY: promised by the caller.
        let key = unsafe { self.start(entry, keep, fd, state) };
        MultiOp { ring: self.clone(), key: Some(key) }
    }

    /// Starts an operation without a future: its end, with the buffer, comes to `to`.
    ///
    /// # Safety
    /// As [`submit`](Self::submit), with the buffer as what is kept.
    pub(crate) unsafe fn submit_landing(&self, entry: squeue::Entry, buf: Buf, fd: Fd, to: &Landings, token: u64) {
        if self.closing.get() {
            return to.push(Landed { token, result: Err(libc::ECANCELED), buf });
        }
        // SAFETY: promised by the caller.
        unsafe { self.start(entry, Keep::Buf(buf), Some(fd), State::Landing(to.clone(), token)) };
    }

    unsafe fn start(&self, entry: squeue::Entry, keep: Keep, fd: Option<Fd>, mut state: State) -> Key {
        let refused = self.closing.get();
        if refused {
            let cqe = Cqe { res: -libc::ECANCELED, flags: 0 };
            match &mut state {
                State::Multi { queue, over, .. } => {
                    queue.push_back(cqe);
                    *over = true;
                }
                other => *other = State::Done(cqe),
            }
        }
        let generation = self.generation.get().wrapping_add(1) & 0x7fff_ffff;
        self.generation.set(generation);
        let index = self.slots.borrow_mut().insert(Slot { generation, state, keep, _fd: fd }) as u32;
        let key = Key { index, generation };
        if !refused {
            self.ops.set(self.ops.get() + 1);
            // SAFETY: the slot keeps what the entry points to, as the caller promised.
            unsafe { self.push(&entry.user_data(key.user_data())) };
            if self.submit_batch > 0 && self.unsubmitted() >= self.submit_batch {
                self.enter(Wait::Submit);
            }
        }
        key
    }

    /// Asks the kernel to end an operation early; its completion tells how it ended.
    fn cancel(&self, key: Key) {
        if !self.closing.get() {
            let entry = opcode::AsyncCancel::new(key.user_data()).build().user_data(IGNORE);
            // SAFETY: the entry points to nothing.
            unsafe { self.push(&entry) };
        }
    }

    /// SQEs not yet handed to the kernel.
    pub(crate) fn unsubmitted(&self) -> usize {
        self.uring.borrow_mut().submission().len()
    }

    /// True when an enter would find completions that the kernel has not posted yet, or some are posted.
    pub(crate) fn has_completions(&self) -> bool {
        let mut uring = self.uring.borrow_mut();
        let pending = uring.submission().taskrun();
        pending || !uring.completion().is_empty()
    }

    /// Hands over all SQEs, lets the kernel post completions, and waits as told. It does not reap.
    pub(crate) fn enter(&self, wait: Wait) {
        let to_submit = self.unsubmitted() as u32;
        let mut flags = self.enter_flags;
        if !matches!(wait, Wait::Submit) {
            flags |= EnterFlags::GETEVENTS.bits();
        }
        let timespec;
        let mut args = types::SubmitArgs::new();
        let want = match wait {
            Wait::No | Wait::Submit => 0,
            Wait::For(limit) => {
                self.sleeps.set(self.sleeps.get() + 1);
                if self.features.no_iowait {
                    flags |= EnterFlags::NO_IOWAIT.bits();
                }
                if let Some(limit) = limit {
                    flags |= EnterFlags::EXT_ARG.bits();
                    timespec = types::Timespec::from(limit);
                    args = types::SubmitArgs::new().timespec(&timespec);
                }
                1
            }
        };
        let extended = flags & EnterFlags::EXT_ARG.bits() != 0;
        let (arg, size) = match extended {
            true => (std::ptr::from_ref(&args).cast::<libc::c_void>(), size_of::<types::SubmitArgs<'_, '_>>()),
            false => (std::ptr::null(), 0),
        };
        self.enters.set(self.enters.get() + 1);
        // SAFETY: our own ring's fd (or its registered index, with the flag that says so); `arg` is null or points to
        // a getevents argument (SubmitArgs holds nothing else) and its timespec, both alive here.
        let answer =
            unsafe { libc::syscall(libc::SYS_io_uring_enter, self.enter_fd, to_submit, want, flags, arg, size) };
        if answer < 0 {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                // Time is up, a signal came, or completions must be reaped before more is taken.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                _ => panic!("io_uring_enter failed: {error}"),
            }
        }
    }

    /// Takes in completions and wakes their tasks; how many.
    pub(crate) fn reap(&self) -> usize {
        let mut all = 0;
        loop {
            let mut some = [const { None }; 64];
            let mut n = 0;
            {
                let mut uring = self.uring.borrow_mut();
                for (to, cqe) in some.iter_mut().zip(&mut uring.completion()) {
                    *to = Some((cqe.user_data(), Cqe { res: cqe.result(), flags: cqe.flags() }));
                    n += 1;
                }
            }
            for (user_data, cqe) in some.into_iter().flatten() {
                self.complete(user_data, cqe);
            }
            all += n;
            if n < 64 {
                self.completions.set(self.completions.get() + all as u64);
                return all;
            }
        }
    }

    fn complete(&self, user_data: u64, cqe: Cqe) {
        if user_data == IGNORE {
            return;
        }
        if user_data == ALARM {
            self.alarm_armed.set(false);
            if !self.closing.get() {
                self.arm_alarm();
            }
            return;
        }
        let key = Key { index: user_data as u32, generation: (user_data >> 32) as u32 };
        let more = io_uring::cqueue::more(cqe.flags);
        let mut slots = self.slots.borrow_mut();
        let slot = slots.get_mut(key.index as usize).filter(|s| s.generation == key.generation);
        let slot = slot.expect("a completion belongs to a slot");
        let waker = match &mut slot.state {
            State::Landing(..) => {
                let slot = slots.remove(key.index as usize);
                drop(slots);
                if let (State::Landing(to, token), Keep::Buf(buf)) = (slot.state, slot.keep) {
                    to.push(Landed { token, result: u32::try_from(cqe.res).map_err(|_| -cqe.res), buf });
                }
                return;
            }
            State::Waiting(waker) => {
                let waker = waker.take();
                slot.state = State::Done(cqe);
                waker
            }
            State::Multi { queue, waker, over } => {
                queue.push_back(cqe);
                *over = !more;
                let too_many = more && queue.len() == MULTI_MAX && matches!(slot.keep, Keep::Nothing);
                let waker = waker.take();
                drop(slots);
                if too_many {
                    self.cancel(key);
                }
                if let Some(waker) = waker {
                    waker.wake();
                }
                return;
            }
            State::Orphan => {
                if matches!(slot.keep, Keep::ResultFd) {
                    close_result(cqe);
                }
                self.bufs.give_back_of(cqe);
                // The slot, its buffer and its fd are dropped outside the borrow.
                let gone = (!more).then(|| slots.remove(key.index as usize));
                drop(slots);
                drop(gone);
                return;
            }
            State::Done(_) => unreachable!("a second last completion"),
        };
        drop(slots);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Operations whose last completion is out, the alarm included.
    fn in_flight(&self) -> usize {
        let slots = self.slots.borrow();
        let open = slots.iter().filter(|(_, s)| match &s.state {
            State::Waiting(_) | State::Orphan | State::Landing(..) => true,
            State::Done(_) => false,
            State::Multi { over, .. } => !over,
        });
        open.count() + usize::from(self.alarm_armed.get())
    }

    /// Refuses new operations, cancels all, and reaps until nothing is in flight or `limit` is over. True: nothing is,
    /// all memory may go. False: the ring's drop will leak what the kernel may still write to.
    pub(crate) fn close(&self, limit: Duration) -> bool {
        self.closing.set(true);
        let began = Instant::now();
        let mut next_cancel = Duration::ZERO;
        loop {
            self.reap();
            if self.in_flight() == 0 {
                return true;
            }
            let passed = began.elapsed();
            if passed >= limit {
                tracing::error!(operations = self.in_flight(), "operations would not end; their memory is leaked");
                return false;
            }
            // Again and again: an operation may have been past cancelling, or not yet started, the first time.
            if passed >= next_cancel {
                next_cancel = passed + Duration::from_millis(20);
                let entry = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build().user_data(IGNORE);
                // SAFETY: the entry points to nothing.
                unsafe { self.push(&entry) };
            }
            self.enter(Wait::For(Some(Duration::from_millis(10).min(limit - passed))));
        }
    }

    /// A slot in the table of registered files for `fd`, if one is free.
    fn register_file(&self, fd: RawFd) -> Option<u32> {
        let slot = self.files_free.borrow_mut().pop()?;
        match self.uring.borrow().submitter().register_files_update(slot, &[fd]) {
            Ok(_) => Some(slot),
            Err(_) => {
                self.files_free.borrow_mut().push(slot);
                None
            }
        }
    }

    fn unregister_file(&self, slot: u32) {
        if self.uring.borrow().submitter().register_files_update(slot, &[-1]).is_ok() {
            self.files_free.borrow_mut().push(slot);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.in_flight() > 0 {
            // The kernel may still write: fd, buffers and slots stay for ever.
            return;
        }
        // SAFETY: each is dropped once, here, and not touched again. Nothing is in flight, so no one else holds their
        // memory; the ring goes before the memory that is registered with it.
        unsafe {
            ManuallyDrop::drop(&mut self.uring);
            ManuallyDrop::drop(&mut self.bufs);
            ManuallyDrop::drop(&mut self.slots);
            ManuallyDrop::drop(&mut self.alarm_word);
        }
    }
}

fn close_result(cqe: Cqe) {
    if cqe.res >= 0 {
        // SAFETY: the kernel gave us this fd and nobody else has it.
        drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(cqe.res) });
    }
}

/// Whether an enter may sleep.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wait {
    No,
    /// It hands over and returns, posting no completions.
    Submit,
    /// For a completion, at most so long.
    For(Option<Duration>),
}

/// What a dropped future does to its operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnDrop {
    /// It goes on (disk I/O ends by itself).
    Leave,
    /// It is cancelled (it might never end).
    Cancel,
}

/// An operation with one completion.
pub(crate) struct Op {
    ring: Rc<Ring>,
    key: Option<Key>,
    on_drop: OnDrop,
}

impl Future for Op {
    type Output = (Cqe, Keep);
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let key = self.key.expect("polled after its end");
        let mut slots = self.ring.slots.borrow_mut();
        let slot = &mut slots[key.index as usize];
        match &mut slot.state {
            State::Done(cqe) => {
                let cqe = *cqe;
                let slot = slots.remove(key.index as usize);
                drop(slots);
                self.key = None;
                Poll::Ready((cqe, slot.keep))
            }
            State::Waiting(Some(waker)) => {
                waker.clone_from(cx.waker());
                Poll::Pending
            }
            State::Waiting(none) => {
                *none = Some(cx.waker().clone());
                Poll::Pending
            }
            State::Orphan | State::Landing(..) | State::Multi { .. } => unreachable!("another kind of operation"),
        }
    }
}

impl Drop for Op {
    fn drop(&mut self) {
        let Some(key) = self.key.take() else { return };
        let mut slots = self.ring.slots.borrow_mut();
        let slot = &mut slots[key.index as usize];
        if let State::Done(cqe) = slot.state {
            if matches!(slot.keep, Keep::ResultFd) {
                close_result(cqe);
            }
            self.ring.bufs.give_back_of(cqe);
            let gone = slots.remove(key.index as usize);
            drop(slots);
            drop(gone);
            return;
        }
        let waker = std::mem::replace(&mut slot.state, State::Orphan);
        drop(slots);
        drop(waker);
        if self.on_drop == OnDrop::Cancel {
            self.ring.cancel(key);
        }
    }
}

/// An operation with many completions.
pub(crate) struct MultiOp {
    ring: Rc<Ring>,
    key: Option<Key>,
}

impl MultiOp {
    /// Asks for its end; what is under way still comes, then a last completion.
    pub(crate) fn cancel(&self) {
        if let Some(key) = self.key {
            self.ring.cancel(key);
        }
    }

    /// The next completion; None after the last.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Cqe>> {
        let Some(key) = self.key else { return Poll::Ready(None) };
        let mut slots = self.ring.slots.borrow_mut();
        let State::Multi { queue, waker, over } = &mut slots[key.index as usize].state else {
            unreachable!("another kind of operation")
        };
        if let Some(cqe) = queue.pop_front() {
            return Poll::Ready(Some(cqe));
        }
        if *over {
            let gone = slots.remove(key.index as usize);
            drop(slots);
            drop(gone);
            self.key = None;
            return Poll::Ready(None);
        }
        match waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for MultiOp {
    fn drop(&mut self) {
        let Some(key) = self.key.take() else { return };
        let mut slots = self.ring.slots.borrow_mut();
        let slot = &mut slots[key.index as usize];
        let State::Multi { queue, over, .. } = std::mem::replace(&mut slot.state, State::Orphan) else {
            unreachable!("another kind of operation")
        };
        for cqe in queue {
            if matches!(slot.keep, Keep::ResultFd) {
                close_result(cqe);
            }
            self.ring.bufs.give_back_of(cqe);
        }
        let gone = over.then(|| slots.remove(key.index as usize));
        drop(slots);
        drop(gone);
        if !over {
            self.ring.cancel(key);
        }
    }
}
