//! The seeded simulation: the executor's free functions on virtual time and a scheduler that draws lots.
//!
//! One seed decides the order in which ready tasks run, how long each poll takes (0.1 to 1 us of virtual time) and every
//! draw from [`Sim::rng`]; idle time is skipped. So a whole store on [`crate::disk::sim::SimDisk`] runs, crashes and
//! replays by its seed. A panic in any task ends the run; the seed and the way to replay it are printed.
//!
//! ```
//! use std::time::Duration;
//! use karri_engine::{now, sim, sleep, spawn};
//! let hours = sim::run(7, |_sim| async {
//!     let other = spawn(async { sleep(Duration::from_secs(7200)).await; 2 });
//!     let hours = other.await.unwrap();
//!     assert!(now() >= Duration::from_secs(7200));
//!     hours
//! });
//! assert_eq!(hours, 2);
//! ```

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Condvar;
use std::time::Duration;

use crate::exec::{self, Alarm, Exec};

/// A small generator (xoshiro256++) whose sequence never changes, so that a seed stays a regression test.
#[derive(Debug, Clone)]
pub struct Rng([u64; 4]);

impl Rng {
    /// A generator by its seed.
    pub fn new(seed: u64) -> Self {
        // splitmix64, as xoshiro's authors advise for seeding.
        let mut x = seed;
        Self(std::array::from_fn(|_| {
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.0;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// A number below `n`; 0 for 0.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// A number in `range`; its start when it is empty.
    pub fn range(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + self.below(range.end.saturating_sub(range.start))
    }

    /// True `n` times in a million.
    pub fn ppm(&mut self, n: u32) -> bool {
        self.below(1_000_000) < u64::from(n)
    }

    /// One of `items`.
    ///
    /// # Panics
    /// When there is none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// Random bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }

    /// A generator of its own, drawn from this one.
    pub fn fork(&mut self) -> Self {
        Self::new(self.next_u64())
    }
}

/// How a simulation runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Everything follows from it.
    pub seed: u64,
    /// Real time that an idle run with no timer waits for a wake from another thread before it calls it a deadlock.
    /// Zero by default: nothing but tasks and timers. Where foreign answers race with timers, wrap them in
    /// [`crate::foreign`], which holds virtual time (and then waits 30 s at least). Such runs do not replay exactly.
    pub foreign_wait: Duration,
    /// Polls after which the run is called a livelock.
    pub polls_max: u64,
}

impl Options {
    /// The defaults with this seed.
    pub fn seed(seed: u64) -> Self {
        Self { seed, foreign_wait: Duration::ZERO, polls_max: 200_000_000 }
    }
}

/// The running simulation.
#[derive(Clone)]
pub struct Sim {
    exec: Rc<Exec>,
    seed: u64,
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sim").field("seed", &self.seed).finish_non_exhaustive()
    }
}

impl Sim {
    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// A generator of its own, by the seed.
    pub fn rng(&self) -> Rng {
        self.draw(Rng::fork)
    }

    fn draw<R>(&self, f: impl FnOnce(&mut Rng) -> R) -> R {
        f(&mut self.exec.sim.as_ref().map(RefCell::borrow_mut).expect("a simulation has randomness"))
    }

    /// The process dies: every task but the calling one is dropped where it stands. Call it with
    /// [`SimDisk::crash`](crate::disk::sim::SimDisk::crash).
    pub fn kill_tasks(&self) {
        self.exec.abort_others();
    }

    /// Tasks alive, the caller included.
    pub fn tasks(&self) -> usize {
        self.exec.tasks()
    }
}

/// Runs `main`'s future, and what it spawns, to the future's end; other tasks are then dropped.
///
/// # Panics
/// With the seed, when a task panics, when nothing can ever run again (deadlock), or past `polls_max`.
pub fn run<F: Future + 'static>(seed: u64, main: impl FnOnce(Sim) -> F) -> F::Output {
    run_with(Options::seed(seed), main)
}

/// [`run`] with options.
///
/// # Panics
/// As [`run`].
pub fn run_with<F: Future + 'static>(options: Options, main: impl FnOnce(Sim) -> F) -> F::Output {
    let exec = Exec::new(Alarm::Condvar(Condvar::new()), Some(Rng::new(options.seed)));
    let entered = exec.enter();
    let guard = Guard { exec: exec.clone(), seed: options.seed };
    let mut root = exec::spawn(main(Sim { exec: exec.clone(), seed: options.seed }));
    let result = loop {
        exec.drain_remote();
        let next_timer = exec.fire_timers();
        if let Some(index) = exec.random_ready() {
            exec.poll(index);
            if let Some(result) = root.try_take() {
                break result;
            }
            let took = exec.sim.as_ref().map_or(0, |r| r.borrow_mut().range(100..1_000));
            exec.advance_to(exec.now() + Duration::from_nanos(took));
            assert!(exec.polls.get() < options.polls_max, "livelock: {} polls at {:?}", exec.polls.get(), exec.now());
        } else if exec.held.get() > 0 {
            let limit = options.foreign_wait.max(Duration::from_secs(30));
            assert!(exec.wait_remote(limit), "no foreign wake within {limit:?}");
        } else if let Some(next) = next_timer {
            exec.advance_to(next);
        } else {
            let woken = exec.wait_remote(options.foreign_wait);
            assert!(woken, "deadlock: {} tasks wait at {:?} and no timer runs", exec.tasks(), exec.now());
        }
    };
    drop(guard);
    drop(entered);
    match result {
        Ok(value) => value,
        Err(why) => panic!("the simulation's main task ended early: {why}"),
    }
}

struct Guard {
    exec: Rc<Exec>,
    seed: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Tasks are left as they are: their drops could panic again and hide the first one.
            std::mem::forget(self.exec.clone());
            eprintln!("simulation failed with seed {0}; KARRI_SIM_SEED={0} replays this one", self.seed);
        } else {
            self.exec.clear();
        }
    }
}

/// The seeds a simulation test runs: `KARRI_SIM_SEED` alone, else `KARRI_SIM_SEEDS` many, else `default_count`, from 1.
pub fn seeds(default_count: u64) -> impl Iterator<Item = u64> {
    let read = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    match read("KARRI_SIM_SEED") {
        Some(one) => one..=one,
        None => 1..=read("KARRI_SIM_SEEDS").unwrap_or(default_count),
    }
}
