//! The executor: tasks of one thread, their wakers and timers. It runs on a core's ring (`core`) or on the seeded
//! scheduler of [`crate::sim`]; a task cannot tell which.
//!
//! - Futures need not be `Send`: a task never leaves its thread. State shared between tasks lives in `Rc`/`Cell`/`RefCell`
//!   with no borrow held over an `.await`, or behind [`crate::sync`].
//! - Wakers are `Send + Sync` and may be called from any thread. A wake on the task's own thread is a push on a local
//!   queue; from elsewhere it takes a short lock and, only when the thread sleeps, writes an eventfd.
//! - A spawned task costs two allocations (its future and its join cell), a detached one a single allocation; wakers are
//!   reused with their slot.
//! - A panic in a task ends that task: its [`JoinHandle`] says so, and an unwatched one is logged. In the simulation it
//!   ends the run.
//!
//! ```text
//! spawn -> ready queue -> poll -+-> Ready: result to the join cell, future dropped, slot free
//!            ^                  +-> Pending: sleeps until a waker pushes it on the ready queue again
//!            +-- wake (local queue | foreign: locked queue + eventfd) --+
//! ```

mod join;
mod time;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

pub use join::{JoinError, JoinHandle, detach, spawn};
pub use time::{Elapsed, Sleep, Timeout, sleep, sleep_until, timeout};

use crate::sim::Rng;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Exec>>> = const { RefCell::new(None) };
    /// The current executor's id, 0 for none: what wakers compare without touching the Rc.
    static CURRENT_ID: Cell<u64> = const { Cell::new(0) };
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Runs `f` with this thread's executor.
///
/// # Panics
/// Outside an executor.
pub(crate) fn with<R>(f: impl FnOnce(&Rc<Exec>) -> R) -> R {
    try_with(f).expect("not on an engine core: call this from a task of karri-engine")
}

/// Runs `f` with this thread's executor, if there is one.
pub(crate) fn try_with<R>(f: impl FnOnce(&Rc<Exec>) -> R) -> Option<R> {
    CURRENT.try_with(|c| c.borrow().as_ref().map(f)).ok()?
}

/// True on a thread that runs an executor (a core or a simulation).
pub fn on_executor() -> bool {
    CURRENT_ID.try_with(Cell::get).is_ok_and(|id| id != 0)
}

/// Monotonic time since this executor began (virtual in the simulation).
pub fn now() -> Duration {
    with(|e| e.now())
}

/// Lets every other ready task run once.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Awaits `fut`, whose wake comes from another thread (RocksDB, a pool). On a core this is `fut` itself; in the
/// simulation virtual time stands still and the idle scheduler waits for real while such a future is pending.
pub async fn foreign<F: Future>(fut: F) -> F::Output {
    struct Held(Rc<Exec>);
    impl Drop for Held {
        fn drop(&mut self) {
            self.0.held.set(self.0.held.get() - 1);
        }
    }
    let _held = with(|e| {
        e.held.set(e.held.get() + 1);
        Held(e.clone())
    });
    fut.await
}

pub(crate) enum TimeSource {
    Real(Instant),
    Virtual(Cell<u64>),
}

/// How a foreign waker gets a sleeping executor up.
pub(crate) enum Alarm {
    /// The eventfd that the ring reads.
    EventFd(std::os::fd::OwnedFd),
    /// The simulation's idle wait.
    Condvar(Condvar),
}

/// The part of an executor that other threads may touch.
pub(crate) struct Remote {
    id: u64,
    queue: Mutex<Vec<u32>>,
    any: AtomicBool,
    sleeping: AtomicBool,
    alarm: Alarm,
    pub(crate) wakes: AtomicU64,
}

impl Remote {
    fn push(&self, index: u32) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.push(index);
        self.any.store(true, Ordering::SeqCst);
        if let Alarm::Condvar(c) = &self.alarm {
            c.notify_all();
        }
        drop(queue);
        self.ring_if_asleep();
    }

    /// Lets the executor's thread look around, though no task woke.
    pub(crate) fn knock(&self) {
        self.any.store(true, Ordering::SeqCst);
        self.ring_if_asleep();
    }

    /// Gets the executor out of its sleep, or keeps it from the one it is about to begin.
    fn ring_if_asleep(&self) {
        if self.sleeping.swap(false, Ordering::SeqCst)
            && let Alarm::EventFd(fd) = &self.alarm
        {
            self.wakes.fetch_add(1, Ordering::Relaxed);
            let one = 1u64.to_ne_bytes();
            // SAFETY: an eventfd of ours, open as long as `self`; eight bytes of our own. A full counter (EAGAIN) means
            // that a wake is already pending.
            unsafe { libc::write(std::os::fd::AsRawFd::as_raw_fd(fd), one.as_ptr().cast(), 8) };
        }
    }
}

struct TaskWaker {
    index: u32,
    /// True while queued, and for ever once the task is over: then a wake is a no-op.
    scheduled: AtomicBool,
    remote: Arc<Remote>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        if self.scheduled.swap(true, Ordering::AcqRel) {
            return;
        }
        if CURRENT_ID.try_with(Cell::get).is_ok_and(|id| id == self.remote.id) {
            with(|e| e.ready.borrow_mut().push_back(self.index));
        } else {
            self.remote.push(self.index);
        }
    }
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    waker: Waker,
}

struct Slot {
    /// None while free or being polled.
    task: Option<Task>,
    wake: Arc<TaskWaker>,
    /// Unique over the executor's life; 0 when free.
    id: u64,
    aborted: bool,
}

#[derive(Default)]
struct Slots {
    all: Vec<Slot>,
    free: Vec<u32>,
    next_id: u64,
}

/// One thread's executor.
pub(crate) struct Exec {
    slots: RefCell<Slots>,
    ready: RefCell<VecDeque<u32>>,
    pub(crate) remote: Arc<Remote>,
    timers: RefCell<time::Timers>,
    source: TimeSource,
    /// Pending `foreign` futures.
    pub(crate) held: Cell<usize>,
    /// The simulation's randomness; None on a core.
    pub(crate) sim: Option<RefCell<Rng>>,
    /// Polls since the start.
    pub(crate) polls: Cell<u64>,
}

/// Puts an executor on this thread until dropped.
pub(crate) struct Entered(());

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT_ID.with(|c| c.set(0));
        CURRENT.with(|c| c.borrow_mut().take());
    }
}

impl Exec {
    pub(crate) fn new(alarm: Alarm, sim: Option<Rng>) -> Rc<Self> {
        let source = match sim {
            Some(_) => TimeSource::Virtual(Cell::new(0)),
            None => TimeSource::Real(Instant::now()),
        };
        Rc::new(Self {
            slots: RefCell::default(),
            ready: RefCell::default(),
            remote: Arc::new(Remote {
                id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
                queue: Mutex::default(),
                any: AtomicBool::new(false),
                sleeping: AtomicBool::new(false),
                alarm,
                wakes: AtomicU64::new(0),
            }),
            timers: RefCell::default(),
            source,
            held: Cell::new(0),
            sim: sim.map(RefCell::new),
            polls: Cell::new(0),
        })
    }

    /// # Panics
    /// When this thread already runs an executor.
    pub(crate) fn enter(self: &Rc<Self>) -> Entered {
        assert!(!on_executor(), "this thread already runs an executor");
        CURRENT.with(|c| *c.borrow_mut() = Some(self.clone()));
        CURRENT_ID.with(|c| c.set(self.remote.id));
        Entered(())
    }

    pub(crate) fn now(&self) -> Duration {
        match &self.source {
            TimeSource::Real(start) => start.elapsed(),
            TimeSource::Virtual(ns) => Duration::from_nanos(ns.get()),
        }
    }

    pub(crate) fn advance_to(&self, at: Duration) {
        let TimeSource::Virtual(ns) = &self.source else { return };
        ns.set(ns.get().max(at.as_nanos() as u64));
    }

    /// Adds a task; it is polled on a later turn.
    fn add(&self, future: Pin<Box<dyn Future<Output = ()>>>) -> (u32, u64) {
        let mut slots = self.slots.borrow_mut();
        slots.next_id += 1;
        let id = slots.next_id;
        let index = match slots.free.pop() {
            Some(index) => {
                let slot = &mut slots.all[index as usize];
                if Arc::strong_count(&slot.wake) == 1 {
                    slot.wake.scheduled.store(true, Ordering::Relaxed);
                } else {
                    slot.wake = self.waker(index);
                }
                index
            }
            None => {
                let index = u32::try_from(slots.all.len()).expect("fewer than 2^32 tasks");
                let wake = self.waker(index);
                slots.all.push(Slot { task: None, wake, id: 0, aborted: false });
                index
            }
        };
        let slot = &mut slots.all[index as usize];
        slot.task = Some(Task { future, waker: Waker::from(slot.wake.clone()) });
        slot.id = id;
        slot.aborted = false;
        drop(slots);
        self.ready.borrow_mut().push_back(index);
        (index, id)
    }

    fn waker(&self, index: u32) -> Arc<TaskWaker> {
        Arc::new(TaskWaker { index, scheduled: AtomicBool::new(true), remote: self.remote.clone() })
    }

    /// Ends a task: drops its future now, or after its poll when it is running.
    fn abort(&self, index: u32, id: u64) {
        let task = {
            let mut slots = self.slots.borrow_mut();
            let slot = &mut slots.all[index as usize];
            if slot.id != id {
                return;
            }
            match slot.task.take() {
                Some(task) => {
                    Self::free(&mut slots, index);
                    task
                }
                None => {
                    slot.aborted = true;
                    return;
                }
            }
        };
        drop(task);
    }

    fn free(slots: &mut Slots, index: u32) {
        let slot = &mut slots.all[index as usize];
        slot.id = 0;
        slot.wake.scheduled.store(true, Ordering::Relaxed);
        slots.free.push(index);
    }

    /// Aborts every task but the one being polled.
    pub(crate) fn abort_others(&self) {
        loop {
            let found = {
                let slots = self.slots.borrow();
                slots.all.iter().enumerate().find(|(_, s)| s.task.is_some()).map(|(i, s)| (i as u32, s.id))
            };
            let Some((index, id)) = found else { return };
            self.abort(index, id);
        }
    }

    /// Tasks alive.
    pub(crate) fn tasks(&self) -> usize {
        let slots = self.slots.borrow();
        slots.all.len() - slots.free.len()
    }

    pub(crate) fn ready_len(&self) -> usize {
        self.ready.borrow().len()
    }

    /// The next task in order.
    pub(crate) fn next_ready(&self) -> Option<u32> {
        self.ready.borrow_mut().pop_front()
    }

    /// A task by lot.
    pub(crate) fn random_ready(&self) -> Option<u32> {
        let mut ready = self.ready.borrow_mut();
        if ready.is_empty() {
            return None;
        }
        let sim = self.sim.as_ref().expect("only the simulation draws lots");
        let at = sim.borrow_mut().below(ready.len() as u64) as usize;
        ready.swap_remove_back(at)
    }

    pub(crate) fn poll(&self, index: u32) {
        let Some(mut task) = self.slots.borrow_mut().all[index as usize].task.take().inspect(|_| {
            self.polls.set(self.polls.get() + 1);
        }) else {
            return;
        };
        {
            let slots = self.slots.borrow();
            // Cleared before the poll: a wake during it queues the task again.
            slots.all[index as usize].wake.scheduled.store(false, Ordering::Release);
        }
        let done = task.future.as_mut().poll(&mut Context::from_waker(&task.waker)).is_ready();
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots.all[index as usize];
        if !done && !slot.aborted {
            slot.task = Some(task);
            return;
        }
        drop(slots);
        // The future's drop may spawn, wake and abort: no borrow is held over it, and the slot is freed after it.
        drop(task);
        Self::free(&mut self.slots.borrow_mut(), index);
    }

    /// Takes in what other threads woke.
    pub(crate) fn drain_remote(&self) {
        // A plain load first: the swap takes the cache line for itself.
        if !self.remote.any.load(Ordering::Acquire) || !self.remote.any.swap(false, Ordering::SeqCst) {
            return;
        }
        let mut queue = self.remote.queue.lock().unwrap_or_else(PoisonError::into_inner);
        self.ready.borrow_mut().extend(queue.drain(..));
    }

    /// Waits on the condition variable for a foreign wake; false after `limit`.
    pub(crate) fn wait_remote(&self, limit: Duration) -> bool {
        let Alarm::Condvar(condvar) = &self.remote.alarm else { return false };
        let queue = self.remote.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let (queue, _) =
            condvar.wait_timeout_while(queue, limit, |q| q.is_empty()).unwrap_or_else(PoisonError::into_inner);
        !queue.is_empty()
    }

    /// True when another thread woke something.
    pub(crate) fn has_remote(&self) -> bool {
        self.remote.any.load(Ordering::Acquire)
    }

    /// Declares that the thread is about to sleep. False: something came in, do not.
    pub(crate) fn begin_sleep(&self) -> bool {
        self.remote.sleeping.store(true, Ordering::SeqCst);
        if self.remote.any.load(Ordering::SeqCst) {
            self.end_sleep();
            return false;
        }
        true
    }

    pub(crate) fn end_sleep(&self) {
        self.remote.sleeping.store(false, Ordering::SeqCst);
    }

    /// Wakes what is due; the time of the next timer, if any.
    pub(crate) fn fire_timers(&self) -> Option<Duration> {
        if self.timers.borrow().is_empty() {
            return None;
        }
        let now = self.now();
        loop {
            // The waker runs outside the borrow.
            let waker = match self.timers.borrow_mut().pop_due(now) {
                Ok(waker) => waker,
                Err(next) => return next,
            };
            waker.wake();
        }
    }

    /// When the next timer is due.
    pub(crate) fn next_timer(&self) -> Option<Duration> {
        self.timers.borrow().first()
    }

    /// Drops every task. Their drops may use the executor, so it must still be entered.
    pub(crate) fn clear(&self) {
        self.abort_others();
        self.ready.borrow_mut().clear();
    }
}

#[cfg(test)]
mod tests;
