//! The queues of one device on their core: kicks in, requests out, completions back in batches.
//!
//! One turn of a queue's task publishes what has completed (one used index, at most one call), then takes everything that
//! is available (each noted in the in-flight region before it is started), and sleeps until a completion, a kick or a
//! command. It does not watch the ring for more before it sleeps: tried for 4, 12 and 32 us on a busy machine, that
//! gave no more IOPS and mostly cost more CPU per I/O (a driver needs longer than that to answer, a disk much longer).
//!
//! # What one 4 KiB read or write costs, the engine's turn included
//!
//! | | depth 1 | depth 32 |
//! |---|---|---|
//! | system calls | 2 `io_uring_enter` (wait for the kick; submit and wait for the disk), 1 `write` (call) | these, shared by a batch: a turn's submissions go four to an enter |
//! | wake-ups of the thread | 2 | one a batch of kicks or completions |
//! | task polls | 2, of the queue's task (kick; completion) | a share of the batch's |
//! | copies of data | none | none |
//! | allocations | none; one where the data lies in several pieces | none |
//! | pages pinned by the kernel | those of the data; none where guest memory is pinned for good | the same |
//!
//! That is what [`Volume::begin`] takes: whole blocks that are mapped, inside one extent. A request has no task and no
//! future then; what it holds lies in a slot by its head, and its end comes to the queue's [`Landings`]. Other requests,
//! and transfers that fall short or fail, are carried out by a task each (some 2 KiB and several polls), which also finds
//! the words for what went wrong.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::SyncSender;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_channel::mpsc;
use futures_util::StreamExt;
use karri_engine::buf::Buf;
use karri_engine::landing::{Landed, Landings};
use karri_engine::ring::{Fd, Pinned, Polls, Registered, polls};

use crate::virtio::block::{Device, Order, Plan, Request, other, plan, transfer};
use crate::virtio::inflight::Inflight;
use crate::virtio::memory::{GuestMemory, Region};
use crate::virtio::ring::{Addresses, Ring, RingError};
use crate::volume::Volume;

/// Turns without a pause after which a queue lets others have the core.
const TURNS: u32 = 8;

/// A queue whose task panicked waits so long before it goes on.
const AFTER_A_PANIC: Duration = Duration::from_millis(1);

/// Counters of a device's queues, readable from any thread.
#[derive(Debug, Default)]
pub struct QueueStats {
    /// Requests taken.
    pub requests: AtomicU64,
    /// Turns that took or published something.
    pub turns: AtomicU64,
    /// Kicks seen.
    pub kicks: AtomicU64,
    /// Calls made.
    pub calls: AtomicU64,
    /// Requests that an earlier process left in flight.
    pub replayed: AtomicU64,
    /// Pieces of pinned guest memory that were registered with the core's ring.
    pub registered: AtomicU64,
    /// Requests whose chain was broken.
    pub broken: AtomicU64,
}

/// What a queue starts with.
pub(super) struct Setup {
    pub(super) size: u32,
    pub(super) at: Addresses,
    pub(super) base: u16,
    pub(super) event_idx: bool,
    pub(super) indirect: bool,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) kick: File,
    pub(super) call: Option<File>,
    pub(super) err: Option<File>,
    pub(super) inflight: Option<Inflight>,
}

/// What the control thread asks for.
pub(super) enum Command {
    /// Memory changed: running queues go on in the new table.
    Memory { memory: Arc<GuestMemory>, reply: SyncSender<()> },
    /// A piece of a region is pinned: I/O on it may go faster, as long as it is in the table.
    Lend { region: Arc<Region>, pinned: Arc<Pinned> },
    /// Starts a queue that does not run.
    Start { index: usize, setup: Box<Setup>, reply: SyncSender<Result<(), RingError>> },
    /// Another way to call the driver.
    Call { index: usize, call: Option<File>, reply: SyncSender<()> },
    /// Ends a queue after its last request; answers its next available index.
    Stop { index: usize, reply: SyncSender<u16> },
}

/// Serves a device's commands until the control thread is gone.
pub(super) async fn run<V: Volume>(
    volume: V,
    device: Arc<Device>,
    stats: Arc<QueueStats>,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let mut queues: Vec<Option<Rc<Queue<V>>>> = (0..device.queues()).map(|_| None).collect();
    // What is registered of the table's regions; it goes when the region does.
    let (mut table, mut lent) = (Arc::new(GuestMemory::default()), Vec::<(Arc<Region>, Registered)>::new());
    while let Some(command) = commands.next().await {
        // A reply that nobody waits for any more is no error.
        match command {
            Command::Memory { memory, reply } => {
                let there = |region: &Arc<Region>| memory.regions().iter().any(|r| Arc::ptr_eq(r, region));
                lent.retain(|(region, _)| there(region));
                table = memory.clone();
                queues.iter().flatten().for_each(|q| q.remap(&memory));
                let _ = reply.send(());
            }
            Command::Lend { region, pinned } => {
                if !table.regions().iter().any(|r| Arc::ptr_eq(r, &region)) {
                    continue;
                }
                match pinned.lend() {
                    Ok(registered) => {
                        lent.push((region, registered));
                        stats.registered.fetch_add(1, Relaxed);
                    }
                    Err(e) => tracing::warn!(volume = volume.name(), error = %e, "guest memory is not registered"),
                }
            }
            Command::Start { index, setup, reply } => {
                let started = Queue::start(volume.clone(), device.clone(), stats.clone(), *setup);
                let _ = reply.send(started.map(|queue| queues[index] = Some(queue)));
            }
            Command::Call { index, call, reply } => {
                if let Some(queue) = &queues[index] {
                    *queue.call.borrow_mut() = call;
                    // What completed while there was no way to say so.
                    queue.call_driver();
                }
                let _ = reply.send(());
            }
            Command::Stop { index, reply } => {
                let base = match queues[index].take() {
                    Some(queue) => queue.stop().await,
                    None => 0,
                };
                let _ = reply.send(base);
            }
        }
    }
    for queue in queues.into_iter().flatten() {
        queue.stop().await;
    }
}

struct Queue<V: Volume> {
    volume: V,
    device: Arc<Device>,
    stats: Arc<QueueStats>,
    at: Addresses,
    call: RefCell<Option<File>>,
    err: Option<File>,
    state: RefCell<State<V>>,
    /// Where transfers come back that have no task, by head; and the list that they are taken out with.
    landings: Landings,
    landed: Cell<Vec<Landed>>,
    /// What an earlier process took and did not answer.
    replay: RefCell<VecDeque<u16>>,
    kicks: RefCell<Option<Polls>>,
    /// The task's waker while it sleeps.
    sleeper: Cell<Option<Waker>>,
    kicked: Cell<bool>,
    stopping: Cell<bool>,
    ended: Cell<bool>,
    /// How often its task panicked.
    failed: Cell<usize>,
    end: karri_engine::sync::Notify,
}

struct State<V: Volume> {
    memory: Arc<GuestMemory>,
    ring: Ring,
    inflight: Option<Inflight>,
    /// By head: taken and not yet completed. A head offered twice is a broken ring.
    taken: Vec<bool>,
    running: usize,
    /// By head: transfers under way that have no task.
    flights: Vec<Option<Flight<V>>>,
    /// Completed and not yet published.
    done: Vec<(u16, u32)>,
    /// The ring is broken: nothing more is taken.
    broken: bool,
}

struct Flight<V: Volume> {
    begun: V::Begun,
    order: Order,
}

impl<V: Volume> Queue<V> {
    fn start(volume: V, device: Arc<Device>, stats: Arc<QueueStats>, setup: Setup) -> Result<Rc<Self>, RingError> {
        let Setup { size, at, base, event_idx, indirect, memory, kick, call, err, mut inflight } = setup;
        let mut ring = Ring::new(&memory, size, at, base, event_idx, indirect)?;
        let replay = inflight.as_mut().map(|i| i.recover(ring.next_used())).unwrap_or_default();
        if inflight.is_some() {
            // What was taken and not answered comes first; new work begins after it.
            let base = ring.next_used().wrapping_add(replay.len() as u16);
            ring = Ring::new(&memory, size, at, base, event_idx, indirect)?;
        }
        let taken = vec![false; size as usize];
        let flights = (0..size).map(|_| None).collect();
        let state = State { memory, ring, inflight, taken, running: 0, flights, done: Vec::new(), broken: false };
        let queue = Rc::new(Self {
            volume,
            device,
            stats,
            at,
            call: RefCell::new(call),
            err,
            state: RefCell::new(state),
            landings: Landings::new(),
            landed: Cell::default(),
            replay: RefCell::default(),
            // The eventfd is watched and never read: a kick is one completion.
            kicks: RefCell::new(Some(polls(Fd::from(OwnedFd::from(kick)), libc::POLLIN))),
            sleeper: Cell::new(None),
            kicked: Cell::new(true),
            stopping: Cell::new(false),
            ended: Cell::new(false),
            failed: Cell::new(0),
            end: karri_engine::sync::Notify::new(),
        });
        queue.stats.replayed.fetch_add(replay.len() as u64, Relaxed);
        queue.replay.replace(replay.into());
        let task = queue.clone();
        karri_engine::detach(async move {
            let ending = Ending(task);
            ending.0.serve().await;
        });
        Ok(queue)
    }

    /// Nothing of it runs any more.
    fn finish(&self) {
        *self.kicks.borrow_mut() = None;
        self.ended.set(true);
        self.end.notify_all();
    }

    /// Ends after the last request; the next available index.
    async fn stop(&self) -> u16 {
        self.stopping.set(true);
        self.wake();
        self.end.wait_until(|| self.ended.get()).await;
        self.state.borrow().ring.next_avail()
    }

    /// The rings are where they were in guest addresses, in a new mapping. What is in flight keeps the old one.
    fn remap(&self, memory: &Arc<GuestMemory>) {
        let state = &mut *self.state.borrow_mut();
        match state.ring.remapped(memory, self.at) {
            Ok(ring) => {
                state.ring = ring;
                state.memory = memory.clone();
            }
            Err(e) => self.break_off(state, &e),
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.sleeper.take() {
            waker.wake();
        }
    }

    /// Notes a kick if there was one, and asks to be woken by the next.
    fn poll_kicks(&self, cx: &mut Context<'_>) {
        let mut kicks = self.kicks.borrow_mut();
        while let Some(polls) = &mut *kicks {
            match polls.poll_next(cx) {
                Poll::Pending => return,
                Poll::Ready(Ok(())) => {
                    self.stats.kicks.fetch_add(1, Relaxed);
                    self.kicked.set(true);
                }
                Poll::Ready(Err(e)) => {
                    tracing::debug!(volume = self.volume.name(), error = %e, "no more kicks");
                    *kicks = None;
                }
            }
        }
    }

    async fn serve(self: &Rc<Self>) {
        let replayed = || self.replay.borrow_mut().pop_front();
        while let Some(head) = replayed() {
            self.begin(head);
        }
        let mut turns = 0;
        loop {
            let worked = self.turn();
            if !worked && self.stopping.get() && self.state.borrow().running == 0 {
                return;
            }
            if worked || self.rearm() {
                // A driver that always has more, answered at once, must not keep the core from everyone else.
                turns = (turns + 1) % TURNS;
                if turns == 0 {
                    karri_engine::yield_now().await;
                }
            } else {
                turns = 0;
                self.sleep().await;
            }
        }
    }

    /// Publishes and takes all there is. True when there was something.
    fn turn(self: &Rc<Self>) -> bool {
        self.land();
        let worked = self.publish() | self.take();
        if worked {
            self.stats.turns.fetch_add(1, Relaxed);
        }
        worked
    }

    /// Resolves at a completion, a kick or a stop.
    async fn sleep(&self) {
        let stopping = self.stopping.get();
        std::future::poll_fn(|cx| {
            self.poll_kicks(cx);
            let due = self.landings.poll_any(cx).is_ready() | self.kicked.replace(false)
                || !self.state.borrow().done.is_empty()
                || self.stopping.get() != stopping
                || (stopping && self.state.borrow().running == 0);
            if due {
                self.sleeper.take();
                return Poll::Ready(());
            }
            self.sleeper.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// Asks for kicks. True when something came meanwhile.
    fn rearm(&self) -> bool {
        let state = &mut *self.state.borrow_mut();
        !state.broken && !self.stopping.get() && state.ring.enable_kicks()
    }

    /// Takes all that is available. True when there was something.
    fn take(self: &Rc<Self>) -> bool {
        if self.stopping.get() {
            return false;
        }
        let mut any = false;
        loop {
            let head = {
                let state = &mut *self.state.borrow_mut();
                if state.broken {
                    return any;
                }
                match state.ring.pop() {
                    Ok(Some(head)) if state.taken[usize::from(head)] => {
                        self.break_off(state, &format!("head {head} is offered again before it was answered"));
                        return any;
                    }
                    Ok(Some(head)) => {
                        if let Some(inflight) = &mut state.inflight {
                            inflight.taken(head);
                        }
                        head
                    }
                    Ok(None) => return any,
                    Err(e) => {
                        self.break_off(state, &e);
                        return any;
                    }
                }
            };
            any = true;
            self.begin(head);
        }
    }

    /// Starts the request at `head`, or answers it at once when its chain is broken.
    fn begin(self: &Rc<Self>, head: u16) {
        self.stats.requests.fetch_add(1, Relaxed);
        {
            let state = &mut *self.state.borrow_mut();
            state.taken[usize::from(head)] = true;
            state.running += 1;
        }
        let ours = Unanswered(self);
        let chain = {
            let state = &mut *self.state.borrow_mut();
            state.ring.chain(&state.memory, head)
        };
        match chain {
            Ok(chain) => match plan(&self.volume, &self.device, chain) {
                Plan::Answered(written) => self.complete(head, written),
                Plan::Transfer(order, buf) => self.fly(head, order, buf),
                Plan::Other(request) => karri_engine::detach(self.clone().request(head, request)),
            },
            Err(e) => {
                let n = self.stats.broken.fetch_add(1, Relaxed) + 1;
                if n.is_power_of_two() {
                    let volume = self.volume.name();
                    tracing::warn!(volume, error = %e, broken = n, "a guest's descriptor chain is broken");
                }
                self.complete(head, 0);
            }
        }
        std::mem::forget(ours);
    }

    /// Starts a transfer without a task where it is simple enough, else with one.
    fn fly(self: &Rc<Self>, head: u16, order: Order, buf: Buf) {
        let begun = match order.durable {
            true => Err(buf),
            false => self.volume.begin(order.dir, order.at, buf, &self.landings, u64::from(head)),
        };
        match begun {
            Ok(begun) => self.state.borrow_mut().flights[usize::from(head)] = Some(Flight { begun, order }),
            Err(buf) => karri_engine::detach(self.clone().transfer(head, order, buf)),
        }
    }

    /// Takes in what landed. What did not go as it should is done again by a task, which also says why not.
    fn land(self: &Rc<Self>) {
        let mut landed = self.landed.take();
        // Not empty only after a panic: what was left then comes first.
        if landed.is_empty() {
            self.landings.take(&mut landed);
            landed.reverse();
        }
        let mut rest = Rest { landed, to: &self.landed };
        while let Some(Landed { token, result, buf }) = rest.landed.pop() {
            let flight = self.state.borrow_mut().flights[token as usize].take();
            let Some(Flight { begun, order }) = flight else { continue };
            let done = result == Ok(order.len);
            let ours = Unanswered(self);
            self.volume.end(begun, done);
            std::mem::forget(ours);
            if done {
                let head = token as u16;
                let written = order.answer(true);
                let state = &mut *self.state.borrow_mut();
                state.done.push((head, written));
                state.running -= 1;
            } else {
                karri_engine::detach(self.clone().transfer(token as u16, order, buf));
            }
        }
    }

    async fn transfer(self: Rc<Self>, head: u16, order: Order, buf: Buf) {
        let ours = Unanswered(&self);
        let written = transfer(&self.volume, &self.device, order, buf).await;
        std::mem::forget(ours);
        self.complete(head, written);
    }

    async fn request(self: Rc<Self>, head: u16, request: Request) {
        let ours = Unanswered(&self);
        let written = other(&self.volume, &self.device, request).await;
        std::mem::forget(ours);
        self.complete(head, written);
    }

    fn complete(&self, head: u16, written: u32) {
        let state = &mut *self.state.borrow_mut();
        state.done.push((head, written));
        state.running -= 1;
        if state.done.len() == 1 {
            self.wake();
        }
    }

    /// Shows the driver what has completed, and calls it if it wants that. True when there was something.
    fn publish(&self) -> bool {
        let state = &mut *self.state.borrow_mut();
        if state.done.is_empty() {
            return false;
        }
        for (head, written) in state.done.drain(..) {
            state.taken[usize::from(head)] = false;
            if let Some(inflight) = &mut state.inflight {
                inflight.answered(head);
            }
            state.ring.push_used(head, written);
        }
        state.ring.publish();
        if let Some(inflight) = &mut state.inflight {
            inflight.published(state.ring.next_used());
        }
        if state.ring.wants_call() {
            self.call_driver();
        }
        true
    }

    fn call_driver(&self) {
        if let Some(call) = &*self.call.borrow() {
            self.stats.calls.fetch_add(1, Relaxed);
            signal(call);
        }
    }

    /// The guest broke its ring: nothing more is taken from it until the driver resets it.
    fn break_off(&self, state: &mut State<V>, why: &dyn std::fmt::Display) {
        if std::mem::replace(&mut state.broken, true) {
            return;
        }
        tracing::warn!(volume = self.volume.name(), error = %why, "a guest broke its ring: the queue stops");
        if let Some(err) = &self.err {
            signal(err);
        }
    }
}

/// A request that somebody works on. Where that ends in a panic nobody knows what became of it: it is never answered (the
/// status byte may say anything), the ring counts as broken, and the queue can still be stopped. The head stays in flight,
/// so that the next back end does the request again. Pieces of it that the disk had been given may still land after the
/// stop: in memory that is still mapped, though the guest may use it for something else by then.
struct Unanswered<'a, V: Volume>(&'a Queue<V>);

impl<V: Volume> Drop for Unanswered<'_, V> {
    fn drop(&mut self) {
        // Else the core ends, and everything on it with it.
        if !std::thread::panicking() {
            return;
        }
        let state = &mut *self.0.state.borrow_mut();
        state.running -= 1;
        self.0.break_off(
            state,
            &"a request failed inside (see the panic's message): reset the device or restart the guest",
        );
        self.0.wake();
    }
}

/// Puts what landed and was not looked at back, where its end is found after a panic.
struct Rest<'a> {
    landed: Vec<Landed>,
    to: &'a Cell<Vec<Landed>>,
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        self.to.set(std::mem::take(&mut self.landed));
    }
}

/// A queue's task. However it ends, a stop gets its answer, and no transfer that the queue knows of is under way then.
struct Ending<V: Volume>(Rc<Queue<V>>);

impl<V: Volume> Drop for Ending<V> {
    fn drop(&mut self) {
        let queue = &self.0;
        let failing = std::thread::panicking() && karri_engine::on_executor();
        let lost = {
            let state = queue.state.borrow();
            queue.failed.get() > state.taken.len() && state.flights.iter().all(Option::is_none)
        };
        // It goes on to land what is under way, though not for ever where each turn fails.
        if !failing || lost {
            return queue.finish();
        }
        queue.failed.set(queue.failed.get() + 1);
        queue.break_off(&mut queue.state.borrow_mut(), &"its task failed (see the panic's message): reset the device");
        let again = Self(queue.clone());
        karri_engine::detach(async move {
            let ending = again;
            karri_engine::sleep(AFTER_A_PANIC).await;
            ending.0.serve().await;
        });
    }
}

/// Adds one to an eventfd. A full counter (EAGAIN) means that a signal is pending anyway.
fn signal(mut fd: &File) {
    let _ = fd.write(&1u64.to_ne_bytes());
}

#[cfg(test)]
mod queue_tests {
    use super::*;
    use crate::role::Bulk;
    use crate::volume::ExtentVolume;

    #[test]
    fn a_request_is_cheap_to_start() {
        fn bytes<A, F: Future>(_: impl Fn(A) -> F) -> usize {
            size_of::<F>()
        }
        type Started = (Rc<Queue<ExtentVolume<Bulk>>>, u16, Order, Buf);
        let task = bytes(|(queue, head, order, buf): Started| queue.transfer(head, order, buf));
        // It is moved into its allocation; what is rare is boxed where it happens.
        assert!(task <= 2400, "a request's task has {task} bytes");
    }
}
