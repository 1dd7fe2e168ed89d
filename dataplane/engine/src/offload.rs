//! Work that blocks (metadata commits, hashing large bodies, librados): a bounded pool of threads off the pinned cores.
//!
//! The pool is made at the first use, for the whole process, by [`Pool::global`]. Whoever starts its threads, a pinned core
//! too, they may run where the process's main thread may. A call costs
//! one allocation for the closure, one for the answer and two wakes of threads: worth it from about 20 us of work.
//!
//! Bounds: `threads` jobs run, `queue` wait; [`offload`] then waits for room (its caller holds back), and
//! [`try_offload`] refuses. In the simulation the closure runs on the executor's own thread, after a drawn virtual delay.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::exec;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: usize,
    room: VecDeque<Waker>,
    closed: bool,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    threads_max: usize,
    queue_max: usize,
}

/// A pool of threads. Threads start as they are needed and end with the pool, which lets queued jobs run first.
pub struct Pool(Arc<Shared>);

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads_max", &self.0.threads_max).finish_non_exhaustive()
    }
}

/// The pool's queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too much work waits for a thread")]
pub struct Full;

impl Pool {
    /// A pool of at most `threads` threads and `queue` waiting jobs.
    pub fn new(threads: usize, queue: usize) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            threads_max: threads.max(1),
            queue_max: queue.max(1),
        }))
    }

    /// The process's pool: four threads per CPU (at least 8), 1,024 waiting jobs.
    pub fn global() -> &'static Self {
        static POOL: OnceLock<Pool> = OnceLock::new();
        POOL.get_or_init(|| {
            let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            Self::new((4 * cpus).max(8), 1024)
        })
    }

    /// Jobs waiting and threads alive.
    pub fn load(&self) -> (usize, usize) {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.jobs.len(), state.threads)
    }

    /// Runs `work` on a thread of the pool; waits for room while the queue is full. Dropping the future does not stop
    /// work that has begun or is queued. A panic in `work` goes on in the caller.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        if let Some(delay) = simulated() {
            crate::sleep(delay).await;
            return work();
        }
        let (job, answer) = job(work);
        let mut job = Some(job);
        std::future::poll_fn(|cx| match self.push(job.take().expect("pushed once"), Some(cx.waker())) {
            Ok(()) => Poll::Ready(()),
            Err(back) => {
                job = Some(back);
                Poll::Pending
            }
        })
        .await;
        answer.await
    }

    /// [`run`](Self::run), but refuses when the queue is full.
    ///
    /// # Errors
    /// [`Full`].
    pub async fn try_run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Full> {
        if let Some(delay) = simulated() {
            crate::sleep(delay).await;
            return Ok(work());
        }
        let (job, answer) = job(work);
        self.push(job, None).map_err(|_| Full)?;
        Ok(answer.await)
    }

    fn push(&self, job: Job, waker: Option<&Waker>) -> Result<(), Job> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.jobs.len() >= self.0.queue_max {
            state.room.extend(waker.cloned());
            return Err(job);
        }
        state.jobs.push_back(job);
        if state.idle > 0 {
            self.0.work.notify_one();
        } else if state.threads < self.0.threads_max {
            state.threads += 1;
            let shared = self.0.clone();
            let started = std::thread::Builder::new().name("offload".into()).spawn(move || work_on(&shared));
            if let Err(error) = started {
                state.threads -= 1;
                // With a thread alive the job is only later; without one it would never be done.
                assert!(state.threads > 0, "cannot start a thread for blocking work: {error}");
                tracing::warn!(%error, "cannot start another thread for blocking work");
            }
        }
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.0.work.notify_all();
    }
}

fn simulated() -> Option<Duration> {
    exec::try_with(|e| e.sim.as_ref().map(|rng| Duration::from_nanos(rng.borrow_mut().range(1_000..200_000)))).flatten()
}

fn work_on(shared: &Shared) {
    unpin();
    let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if let Some(job) = state.jobs.pop_front() {
            let waiting = state.room.pop_front();
            drop(state);
            if let Some(waker) = waiting {
                waker.wake();
            }
            job();
            state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        } else if state.closed {
            return;
        } else {
            state.idle += 1;
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

/// A thread inherits its maker's affinity, and a pinned core's is one CPU. The main thread is never pinned by us: what it
/// may use is what the process was given (taskset, a cpuset), no more.
fn unpin() {
    // SAFETY: a zeroed cpu_set_t is a valid empty one, filled by the first call; its size is given.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let size = size_of::<libc::cpu_set_t>();
        if libc::sched_getaffinity(libc::getpid(), size, &raw mut set) == 0 {
            libc::sched_setaffinity(0, size, &raw const set);
        }
    }
}

struct Answer<T> {
    value: Option<std::thread::Result<T>>,
    waker: Option<Waker>,
}

struct AnswerTo<T>(Arc<Mutex<Answer<T>>>);

impl<T> Future for AnswerTo<T> {
    type Output = T;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut answer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match answer.value.take() {
            Some(Ok(value)) => Poll::Ready(value),
            Some(Err(panic)) => {
                drop(answer);
                resume_unwind(panic)
            }
            None => {
                answer.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

fn job<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> (Job, AnswerTo<T>) {
    let shared = Arc::new(Mutex::new(Answer { value: None, waker: None }));
    let theirs = shared.clone();
    let job = Box::new(move || {
        let value = catch_unwind(AssertUnwindSafe(work));
        let mut answer = theirs.lock().unwrap_or_else(PoisonError::into_inner);
        answer.value = Some(value);
        let waker = answer.waker.take();
        drop(answer);
        if let Some(waker) = waker {
            waker.wake();
        }
    });
    (job, AnswerTo(shared))
}

/// [`Pool::run`] on the process's pool.
pub async fn offload<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    Pool::global().run(work).await
}

/// [`Pool::try_run`] on the process's pool.
///
/// # Errors
/// [`Full`].
pub async fn try_offload<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Full> {
    Pool::global().try_run(work).await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::cores::{CoreOptions, block_on};
    use crate::{sim, spawn, yield_now};

    #[test]
    fn work_comes_back_to_its_core() {
        block_on(&CoreOptions::default(), || async {
            let here = std::thread::current().id();
            let tasks: Vec<_> =
                (0..200u64).map(|n| spawn(offload(move || (n * n, std::thread::current().id())))).collect();
            for (n, task) in tasks.into_iter().enumerate() {
                let (square, there) = task.await.unwrap();
                assert_eq!(square, (n * n) as u64);
                assert_ne!(there, here);
            }
            let panicked = spawn(offload(|| panic!("in the pool"))).await;
            assert_eq!(panicked, Err::<(), _>(crate::JoinError::Panicked("in the pool".into())));
        })
        .unwrap();
    }

    #[test]
    fn the_bounds_hold() {
        block_on(&CoreOptions::default(), || async {
            let pool = std::rc::Rc::new(Pool::new(2, 2));
            let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let (open, gate) = std::sync::mpsc::channel::<()>();
            let gate = Arc::new(Mutex::new(gate));
            let tasks: Vec<_> = (0..8)
                .map(|_| {
                    let (pool, running, most, gate) = (pool.clone(), running.clone(), most.clone(), gate.clone());
                    spawn(async move {
                        pool.run(move || {
                            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            gate.lock().unwrap().recv().unwrap();
                            running.fetch_sub(1, Ordering::SeqCst);
                        })
                        .await;
                    })
                })
                .collect();
            while pool.load().0 < 2 {
                yield_now().await;
            }
            assert_eq!(pool.try_run(|| ()).await, Err(Full));
            for _ in 0..8 {
                open.send(()).unwrap();
            }
            for task in tasks {
                task.await.unwrap();
            }
            assert!(most.load(Ordering::SeqCst) <= 2);
        })
        .unwrap();
    }

    /// The CPUs that a thread may use; 0 is this one.
    fn cpus(thread: i32) -> Vec<usize> {
        // SAFETY: a zeroed cpu_set_t is valid and filled by the call.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            assert_eq!(libc::sched_getaffinity(thread, size_of_val(&set), &raw mut set), 0);
            (0..libc::CPU_SETSIZE as usize).filter(|cpu| libc::CPU_ISSET(*cpu, &set)).collect()
        }
    }

    fn set_cpus(thread: i32, cpus: &[usize]) {
        // SAFETY: a zeroed cpu_set_t is valid; the call only reads it.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            cpus.iter().for_each(|cpu| libc::CPU_SET(*cpu, &mut set));
            assert_eq!(libc::sched_setaffinity(thread, size_of_val(&set), &raw const set), 0);
        }
    }

    #[test]
    fn threads_run_where_the_process_may_and_nowhere_else() {
        // SAFETY: getpid cannot fail.
        let main = unsafe { libc::getpid() };
        let all = cpus(main);
        if all.len() < 2 {
            println!("SKIPPED threads_run_where_the_process_may_and_nowhere_else: there is only one CPU");
            return;
        }
        // Where a pool's thread runs, made by a thread kept to `caller` in a process kept to `process`. Narrowing the main
        // thread hurts nobody: it only waits for tests.
        let there = |process: &[usize], caller: &[usize]| {
            std::thread::scope(|scope| {
                let asking = scope.spawn(|| {
                    set_cpus(0, caller);
                    set_cpus(main, process);
                    let found = block_on(&CoreOptions::default(), || async { Pool::new(1, 1).run(|| cpus(0)).await });
                    set_cpus(main, &all);
                    found.unwrap()
                });
                asking.join().unwrap()
            })
        };
        assert_eq!(there(&all, &all[..1]), all, "a pinned core's pool is not pinned");
        assert_eq!(there(&all[..1], &all), all[..1], "what taskset took away stays away");
    }

    #[test]
    fn the_simulation_needs_no_threads() {
        let here = std::thread::current().id();
        sim::run(1, move |_| async move {
            assert_eq!(offload(|| std::thread::current().id()).await, here);
            assert!(crate::now() > Duration::ZERO);
        });
    }
}
