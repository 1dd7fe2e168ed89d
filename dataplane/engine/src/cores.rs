//! Cores: threads that each run one executor on one ring, and the handles by which others give them work.
//!
//! A turn of a core's loop:
//!
//! ```text
//! take in foreign wakes and jobs -> fire timers -> poll ready tasks (at most BUDGET)
//!   -> more to do?  one enter that does not wait, only if there is something to submit or to collect
//!   -> nothing to do?  one enter that submits all and waits for a completion, the next timer or the eventfd
//!   -> reap
//! ```
//!
//! Every fourth submission is handed over at once (see [`crate::ring`] for why), the rest with the turn's enter. A core
//! with nothing to do sleeps in the kernel.
//! With `spin` set, a core whose last wait was short first watches the completion ring in memory.
//!
//! Another thread reaches a core through [`CoreHandle::run`] (a bounded queue of jobs) or by waking a task; both write the
//! core's eventfd only when it sleeps.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::os::fd::{FromRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::error::EngineError;
use crate::exec::{self, Alarm, Exec, Remote};
use crate::ring::{self, Ring, RingOptions, Wait};

/// Tasks polled in one turn at most, so that completions are not kept waiting.
const BUDGET: usize = 256;

/// Where cores run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Pinning {
    /// One CPU each where this process may use at least as many as there are cores and more than one; else nowhere in
    /// particular.
    #[default]
    Auto,
    /// Wherever the kernel likes.
    Never,
    /// These CPUs, core by core, over again when there are more cores.
    Cpus(Vec<usize>),
}

/// How cores run.
#[derive(Debug, Clone)]
pub struct CoreOptions {
    /// The threads' names: `NAME-0`, ... At most 11 bytes count.
    pub name: String,
    /// Where they run.
    pub pin: Pinning,
    /// Their rings.
    pub ring: RingOptions,
    /// How long a busy core watches its completion ring before it sleeps. Zero: sleep at once.
    pub spin: Duration,
    /// Jobs that may wait for a core; [`CoreHandle::run`] waits while it is full, `try_run` refuses.
    pub inbox: usize,
    /// How long a stopping core waits for the kernel to let go of its buffers before it leaks them.
    pub close_limit: Duration,
}

impl Default for CoreOptions {
    fn default() -> Self {
        Self {
            name: "core".into(),
            pin: Pinning::default(),
            ring: RingOptions::default(),
            spin: Duration::ZERO,
            inbox: 1024,
            close_limit: Duration::from_secs(10),
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

struct Inbox {
    jobs: VecDeque<Job>,
    room: Vec<Waker>,
    closed: bool,
}

/// What other threads see of a core.
struct Shared {
    index: usize,
    remote: Arc<Remote>,
    inbox: Mutex<Inbox>,
    bound: usize,
    stop: AtomicBool,
    gauges: Gauges,
}

#[derive(Default)]
struct Gauges {
    ops: AtomicU64,
    enters: AtomicU64,
    sleeps: AtomicU64,
    completions: AtomicU64,
    in_flight: AtomicU64,
    polls: AtomicU64,
    tasks: AtomicU64,
}

/// A core's counters, as of its last sleep or its last 256 turns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CoreStats {
    /// Operations given to the ring.
    pub ops: u64,
    /// `io_uring_enter` calls.
    pub enters: u64,
    /// Those that could sleep.
    pub sleeps: u64,
    /// Completions.
    pub completions: u64,
    /// Operations in flight.
    pub in_flight: u64,
    /// Task polls.
    pub polls: u64,
    /// Tasks alive.
    pub tasks: u64,
    /// Times that another thread had to wake the sleeping core.
    pub wakes: u64,
    /// Jobs waiting in the inbox.
    pub inbox: u64,
}

/// Every core's counters on a registry: `engine_ops_total{core="0"}`, `engine_enters_total`, `engine_sleeps_total`,
/// `engine_completions_total`, `engine_polls_total`, `engine_wakes_total`, and the gauges `engine_in_flight`,
/// `engine_tasks` and `engine_inbox`.
pub fn register_metrics(registry: &mut Registry, handles: &[CoreHandle]) {
    registry.register_collector(Box::new(Metrics(handles.to_vec())));
}

#[derive(Debug)]
struct Metrics(Vec<CoreHandle>);

type Reading = fn(&CoreStats) -> u64;

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let stats: Vec<_> = self.0.iter().map(|h| (h.index().to_string(), h.stats())).collect();
        let counters: [(&str, &str, Reading); 6] = [
            ("engine_ops", "Operations given to the ring", |s| s.ops),
            ("engine_enters", "io_uring_enter calls", |s| s.enters),
            ("engine_sleeps", "io_uring_enter calls that could sleep", |s| s.sleeps),
            ("engine_completions", "Completions", |s| s.completions),
            ("engine_polls", "Task polls", |s| s.polls),
            ("engine_wakes", "Times that another thread woke the sleeping core", |s| s.wakes),
        ];
        for (name, help, read) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (core, stats) in &stats {
                ConstCounter::new(read(stats)).encode(family.encode_family(&[("core", core.as_str())])?)?;
            }
        }
        let gauges: [(&str, &str, Reading); 3] = [
            ("engine_in_flight", "Operations in flight", |s| s.in_flight),
            ("engine_tasks", "Tasks alive", |s| s.tasks),
            ("engine_inbox", "Jobs waiting for the core", |s| s.inbox),
        ];
        for (name, help, read) in gauges {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (core, stats) in &stats {
                ConstGauge::new(read(stats) as i64).encode(family.encode_family(&[("core", core.as_str())])?)?;
            }
        }
        Ok(())
    }
}

/// One core, for other threads (and other cores).
#[derive(Clone)]
pub struct CoreHandle(Arc<Shared>);

impl std::fmt::Debug for CoreHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CoreHandle").field("core", &self.0.index).finish_non_exhaustive()
    }
}

/// A job was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// As many jobs wait as the inbox allows.
    #[error("the core's inbox is full")]
    Full,
    /// The core is stopping or gone, or its job panicked.
    #[error("the core is stopping, or the job panicked")]
    Closed,
}

impl CoreHandle {
    /// The core's number.
    pub fn index(&self) -> usize {
        self.0.index
    }

    /// Runs `make()`'s future as a task of the core and gives back its value; waits while the inbox is full. The job
    /// begins once this future is polled; dropping it afterwards lets the job run on.
    ///
    /// # Errors
    /// [`RunError::Closed`] when the core stops before the job has ended, or when it panics.
    pub async fn run<T, F>(&self, make: impl FnOnce() -> F + Send + 'static) -> Result<T, RunError>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (job, reply) = job(make);
        let mut job = Some(job);
        std::future::poll_fn(|cx| self.push(&mut job, Some(cx.waker()))).await?;
        reply.await
    }

    /// [`run`](Self::run), but refuses a full inbox at once. The job begins without the answer being polled.
    ///
    /// # Errors
    /// [`RunError::Full`] or [`RunError::Closed`].
    pub fn try_run<T, F>(&self, make: impl FnOnce() -> F + Send + 'static) -> Result<Reply<T>, RunError>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (job, reply) = job(make);
        match self.push(&mut Some(job), None) {
            Poll::Ready(Ok(())) => Ok(reply),
            Poll::Ready(Err(e)) => Err(e),
            Poll::Pending => Err(RunError::Full),
        }
    }

    /// [`run`](Self::run) for plain threads: blocks until the value is there. Not from an engine core or a tokio worker.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_blocking<T, F>(&self, make: impl FnOnce() -> F + Send + 'static) -> Result<T, RunError>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        assert!(!exec::on_executor(), "run_blocking on a core would stop it");
        block_on_thread(self.run(make))
    }

    fn push(&self, job: &mut Option<Job>, waker: Option<&Waker>) -> Poll<Result<(), RunError>> {
        let mut inbox = self.0.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        if inbox.closed {
            return Poll::Ready(Err(RunError::Closed));
        }
        if inbox.jobs.len() >= self.0.bound {
            inbox.room.extend(waker.cloned());
            return Poll::Pending;
        }
        inbox.jobs.push_back(job.take().expect("pushed once"));
        drop(inbox);
        self.0.remote.knock();
        Poll::Ready(Ok(()))
    }

    /// The core's counters.
    pub fn stats(&self) -> CoreStats {
        let g = &self.0.gauges;
        CoreStats {
            ops: g.ops.load(Ordering::Relaxed),
            enters: g.enters.load(Ordering::Relaxed),
            sleeps: g.sleeps.load(Ordering::Relaxed),
            completions: g.completions.load(Ordering::Relaxed),
            in_flight: g.in_flight.load(Ordering::Relaxed),
            polls: g.polls.load(Ordering::Relaxed),
            tasks: g.tasks.load(Ordering::Relaxed),
            wakes: self.0.remote.wakes.load(Ordering::Relaxed),
            inbox: self.0.inbox.lock().unwrap_or_else(PoisonError::into_inner).jobs.len() as u64,
        }
    }

    fn stop(&self) {
        self.0.stop.store(true, Ordering::SeqCst);
        self.0.remote.knock();
    }
}

struct ReplyCell<T> {
    value: Option<Result<T, RunError>>,
    waker: Option<Waker>,
}

/// A job's value to come; may be awaited on any executor.
pub struct Reply<T>(Arc<Mutex<ReplyCell<T>>>);

impl<T> std::fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply").finish_non_exhaustive()
    }
}

impl<T> Future for Reply<T> {
    type Output = Result<T, RunError>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut cell = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match cell.value.take() {
            Some(value) => Poll::Ready(value),
            None => {
                cell.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// Answers once: with a value, or with `Closed` when it is dropped before.
struct Answer<T>(Arc<Mutex<ReplyCell<T>>>);

impl<T> Answer<T> {
    fn give(&self, value: Result<T, RunError>) {
        let mut cell = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cell.value.is_none() {
            cell.value = Some(value);
        }
        let waker = cell.waker.take();
        drop(cell);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        // Taken or given already when the job ended well: the reply is gone or holds it.
        self.give(Err(RunError::Closed));
    }
}

fn job<T, F>(make: impl FnOnce() -> F + Send + 'static) -> (Job, Reply<T>)
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
{
    let cell = Arc::new(Mutex::new(ReplyCell { value: None, waker: None }));
    let answer = Answer(cell.clone());
    let job = Box::new(move || exec::detach(async move { answer.give(Ok(make().await)) }));
    (job, Reply(cell))
}

/// Drives a future on a plain thread.
pub(crate) fn block_on_thread<F: Future>(future: F) -> F::Output {
    struct Parker(std::thread::Thread);
    impl std::task::Wake for Parker {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Parker(std::thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        std::thread::park();
    }
}

/// A running set of cores.
#[derive(Debug)]
pub struct Cores {
    handles: Vec<CoreHandle>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Cores {
    /// Starts `count` cores (0: as many as this process may use CPUs). They run until [`shutdown`](Self::shutdown) or
    /// the drop.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] with what to change, when io_uring cannot be used; the cores started before are
    /// stopped.
    pub fn start(count: usize, options: &CoreOptions) -> Result<Self, EngineError> {
        let cpus = allowed_cpus();
        let count = if count == 0 { cpus.len().max(1) } else { count };
        let pins = match &options.pin {
            Pinning::Never => None,
            Pinning::Auto if cpus.len() < count || cpus.len() < 2 => None,
            Pinning::Auto => Some(cpus),
            Pinning::Cpus(list) if list.is_empty() => None,
            Pinning::Cpus(list) => Some(list.clone()),
        };
        let mut cores = Self { handles: Vec::new(), threads: Mutex::default() };
        for index in 0..count {
            let (tell, told) = mpsc::channel();
            let cpu = pins.as_ref().map(|p| p[index % p.len()]);
            let options = options.clone();
            let thread = std::thread::Builder::new()
                .name(format!("{}-{index}", options.name))
                .spawn(move || {
                    if let Some(cpu) = cpu {
                        pin_to(cpu);
                    }
                    match Core::new(index, &options) {
                        Ok(core) => {
                            // The starter waits for it.
                            let _ = tell.send(Ok(core.handle()));
                            core.run::<()>(None);
                        }
                        Err(e) => {
                            let _ = tell.send(Err(e));
                        }
                    }
                })
                .map_err(EngineError::io("start a core's thread"))?;
            cores.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
            cores.handles.push(told.recv().map_err(|_| EngineError::Closed)??);
        }
        Ok(cores)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.handles.len()
    }

    /// Never true: there is at least one.
    pub fn is_empty(&self) -> bool {
        self.handles.is_empty()
    }

    /// Core `index`.
    ///
    /// # Panics
    /// When there is none.
    pub fn handle(&self, index: usize) -> &CoreHandle {
        &self.handles[index]
    }

    /// All of them.
    pub fn handles(&self) -> &[CoreHandle] {
        &self.handles
    }

    /// Stops them: no more jobs, tasks dropped where they stand, I/O in flight cancelled and waited for (at most
    /// `close_limit`). Blocks; drain what should end well first. Calling it again does nothing.
    pub fn shutdown(&self) {
        self.handles.iter().for_each(CoreHandle::stop);
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a core's thread panicked");
            }
        }
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Runs `main()`'s future on a core made of this thread, to its end. For tests, benches and tools.
///
/// # Errors
/// As [`Cores::start`].
///
/// # Panics
/// When the main task panics, or on a thread that runs an executor.
pub fn block_on<F: Future + 'static>(
    options: &CoreOptions,
    main: impl FnOnce() -> F,
) -> Result<F::Output, EngineError> {
    let core = Core::new(0, options)?;
    let entered = core.enter();
    let handle = exec::spawn(main());
    drop(entered);
    let result = core.run(Some(handle)).expect("a main task's result");
    match result {
        Ok(value) => Ok(value),
        Err(why) => panic!("the main task ended early: {why}"),
    }
}

/// The handle of the core that this task runs on; None in the simulation and outside.
pub fn current() -> Option<CoreHandle> {
    HANDLE.try_with(|h| h.borrow().clone()).ok()?
}

thread_local! {
    static HANDLE: RefCell<Option<CoreHandle>> = const { RefCell::new(None) };
}

struct Core {
    exec: Rc<Exec>,
    ring: Rc<Ring>,
    shared: Arc<Shared>,
    spin: Duration,
    close_limit: Duration,
}

struct EnteredCore {
    _exec: exec::Entered,
    _ring: ring::Entered,
}

impl Drop for EnteredCore {
    fn drop(&mut self) {
        HANDLE.with(|h| h.borrow_mut().take());
    }
}

impl Core {
    fn new(index: usize, options: &CoreOptions) -> Result<Self, EngineError> {
        // SAFETY: eventfd makes a new fd, which becomes ours.
        let alarm = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC);
            if fd < 0 {
                return Err(EngineError::io("make an eventfd")(std::io::Error::last_os_error()));
            }
            OwnedFd::from_raw_fd(fd)
        };
        let ours = alarm.try_clone().map_err(EngineError::io("copy an eventfd"))?;
        let exec = Exec::new(Alarm::EventFd(alarm), None);
        let ring = Ring::new(&options.ring, ours)?;
        let shared = Arc::new(Shared {
            index,
            remote: exec.remote.clone(),
            inbox: Mutex::new(Inbox { jobs: VecDeque::new(), room: Vec::new(), closed: false }),
            bound: options.inbox.max(1),
            stop: AtomicBool::new(false),
            gauges: Gauges::default(),
        });
        Ok(Self { exec, ring, shared, spin: options.spin, close_limit: options.close_limit })
    }

    fn handle(&self) -> CoreHandle {
        CoreHandle(self.shared.clone())
    }

    fn enter(&self) -> EnteredCore {
        let entered = EnteredCore { _exec: self.exec.enter(), _ring: ring::enter(&self.ring) };
        HANDLE.with(|h| *h.borrow_mut() = Some(self.handle()));
        entered
    }

    /// Turns until told to stop, or until `main` has its result; then ends everything.
    fn run<T>(self, mut main: Option<exec::JoinHandle<T>>) -> Option<Result<T, exec::JoinError>> {
        let entered = self.enter();
        let mut busy = false;
        let mut turns = 0u32;
        let result = loop {
            if self.exec.has_remote() {
                self.exec.drain_remote();
                self.take_jobs();
                if self.shared.stop.load(Ordering::Acquire) {
                    break None;
                }
            }
            self.exec.fire_timers();
            for _ in 0..self.exec.ready_len().min(BUDGET) {
                let Some(task) = self.exec.next_ready() else { break };
                self.exec.poll(task);
            }
            if let Some(result) = main.as_mut().and_then(exec::JoinHandle::try_take) {
                break Some(result);
            }
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(256) {
                self.publish();
            }
            if self.exec.ready_len() > 0 || self.exec.has_remote() {
                if self.ring.unsubmitted() > 0 || self.ring.has_completions() {
                    self.ring.enter(Wait::No);
                    self.ring.reap();
                }
                continue;
            }
            busy = self.wait(busy);
        };
        drop(main);
        self.exec.clear();
        self.refuse_jobs();
        self.ring.close(self.close_limit);
        self.publish();
        drop(entered);
        result
    }

    /// Submits, and sleeps until something comes. True: it came soon.
    fn wait(&self, busy: bool) -> bool {
        let spin = busy && !self.spin.is_zero();
        if spin {
            if self.ring.unsubmitted() > 0 {
                self.ring.enter(Wait::No);
            }
            let began = Instant::now();
            while began.elapsed() < self.spin {
                if self.ring.has_completions() || self.exec.has_remote() {
                    self.ring.enter(Wait::No);
                    if self.ring.reap() > 0 || self.exec.has_remote() {
                        return true;
                    }
                }
                for _ in 0..32 {
                    std::hint::spin_loop();
                }
            }
        }
        let limit = match self.exec.next_timer() {
            Some(at) => match at.checked_sub(self.exec.now()) {
                Some(left) if !left.is_zero() => Some(left),
                // Due: no sleep.
                _ => {
                    self.ring.enter(Wait::No);
                    self.ring.reap();
                    return busy;
                }
            },
            None => None,
        };
        if !self.exec.begin_sleep() {
            self.ring.enter(Wait::No);
            self.ring.reap();
            return busy;
        }
        self.publish();
        if self.spin.is_zero() {
            self.ring.enter(Wait::For(limit));
            self.exec.end_sleep();
            self.ring.reap();
            return false;
        }
        let began = Instant::now();
        self.ring.enter(Wait::For(limit));
        self.exec.end_sleep();
        self.ring.reap();
        began.elapsed() < self.spin * 2
    }

    fn take_jobs(&self) {
        let (jobs, room) = {
            let mut inbox = self.shared.inbox.lock().unwrap_or_else(PoisonError::into_inner);
            (std::mem::take(&mut inbox.jobs), std::mem::take(&mut inbox.room))
        };
        room.into_iter().for_each(Waker::wake);
        jobs.into_iter().for_each(|job| job());
    }

    fn refuse_jobs(&self) {
        let (jobs, room) = {
            let mut inbox = self.shared.inbox.lock().unwrap_or_else(PoisonError::into_inner);
            inbox.closed = true;
            (std::mem::take(&mut inbox.jobs), std::mem::take(&mut inbox.room))
        };
        // Their replies say Closed.
        drop(jobs);
        room.into_iter().for_each(Waker::wake);
    }

    fn publish(&self) {
        let stats = self.ring.stats();
        let g = &self.shared.gauges;
        for (gauge, value) in [
            (&g.ops, stats.ops),
            (&g.enters, stats.enters),
            (&g.sleeps, stats.sleeps),
            (&g.completions, stats.completions),
            (&g.in_flight, stats.in_flight),
            (&g.polls, self.exec.polls.get()),
            (&g.tasks, self.exec.tasks() as u64),
        ] {
            gauge.store(value, Ordering::Relaxed);
        }
    }
}

/// The CPUs that this process may use.
fn allowed_cpus() -> Vec<usize> {
    // SAFETY: a zeroed cpu_set_t is a valid empty one, filled by the call; its size is given.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) != 0 {
            return Vec::new();
        }
        (0..libc::CPU_SETSIZE as usize).filter(|cpu| libc::CPU_ISSET(*cpu, &set)).collect()
    }
}

fn pin_to(cpu: usize) {
    // SAFETY: as in `allowed_cpus`; pid 0 is this thread.
    let done = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if done != 0 {
        let error = std::io::Error::last_os_error();
        tracing::warn!(cpu, %error, "cannot pin a core to its CPU; it runs anywhere");
    }
}
