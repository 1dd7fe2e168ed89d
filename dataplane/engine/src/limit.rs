//! Rates: a token bucket on the executor's time. (Counts and memory: [`crate::sync::Semaphore`].)

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use crate::sync::Mutex;
use crate::{now, sleep};

struct Inner {
    /// Tokens a second; 0: no limit.
    rate: Cell<f64>,
    burst: Cell<f64>,
    level: Cell<f64>,
    filled: Cell<Duration>,
    /// Waiters take turns.
    turn: Mutex<()>,
}

/// So many tokens (requests, bytes) a second, with a burst. Clones are the same bucket; it belongs to one core.
///
/// A request larger than the burst is let through when the bucket is full and leaves it in debt, so that the rate holds
/// and nothing waits for ever.
#[derive(Clone)]
pub struct TokenBucket(Rc<Inner>);

impl std::fmt::Debug for TokenBucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenBucket").field("rate", &self.0.rate).field("level", &self.0.level).finish_non_exhaustive()
    }
}

impl TokenBucket {
    /// A full bucket of `burst` tokens that gains `rate` a second. A rate of 0 is no limit.
    ///
    /// # Panics
    /// Outside an executor.
    pub fn new(rate: u64, burst: u64) -> Self {
        let burst = burst.max(1) as f64;
        Self(Rc::new(Inner {
            rate: Cell::new(rate as f64),
            burst: Cell::new(burst),
            level: Cell::new(burst),
            filled: Cell::new(now()),
            turn: Mutex::new(()),
        }))
    }

    /// Changes rate and burst from now on.
    pub fn set(&self, rate: u64, burst: u64) {
        self.fill();
        self.0.rate.set(rate as f64);
        self.0.burst.set(burst.max(1) as f64);
        self.0.level.set(self.0.level.get().min(self.0.burst.get()));
    }

    fn fill(&self) {
        let (now, b) = (now(), &self.0);
        let gained = (now - b.filled.get()).as_secs_f64() * b.rate.get();
        b.filled.set(now);
        b.level.set((b.level.get() + gained).min(b.burst.get()));
    }

    /// How long until `n` can be taken; zero: now.
    fn wait_for(&self, n: u64) -> Duration {
        let b = &self.0;
        if b.rate.get() == 0.0 {
            return Duration::ZERO;
        }
        self.fill();
        let missing = (n as f64).min(b.burst.get()) - b.level.get();
        if missing <= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(missing / b.rate.get()) }
    }

    /// Takes `n` tokens now, or none. It does not overtake those who wait.
    pub fn try_acquire(&self, n: u64) -> bool {
        if self.0.turn.try_lock().is_none() || !self.wait_for(n).is_zero() {
            return false;
        }
        self.0.level.set(self.0.level.get() - n as f64);
        true
    }

    /// Waits for `n` tokens, first come, first served.
    pub async fn acquire(&self, n: u64) {
        let _turn = self.0.turn.lock().await;
        loop {
            let wait = self.wait_for(n);
            if wait.is_zero() {
                break;
            }
            // A timer's grain: never a zero wait in a loop.
            sleep(wait.max(Duration::from_micros(1))).await;
        }
        self.0.level.set(self.0.level.get() - n as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{sim, spawn};

    #[test]
    fn the_rate_holds() {
        sim::run(1, |_| async {
            let bucket = TokenBucket::new(100, 10);
            assert!(bucket.try_acquire(10) && !bucket.try_acquire(1));
            let began = now();
            let tasks: Vec<_> = (0..50)
                .map(|_| {
                    let bucket = bucket.clone();
                    spawn(async move { bucket.acquire(2).await })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            let took = (now() - began).as_secs_f64();
            assert!((0.99..1.02).contains(&took), "100 tokens at 100 a second took {took} s");
            // Larger than the burst: paid back afterwards.
            let began = now();
            bucket.acquire(100).await;
            bucket.acquire(1).await;
            let took = (now() - began).as_secs_f64();
            assert!((1.0..1.1).contains(&took), "{took} s");
            let unlimited = TokenBucket::new(0, 1);
            assert!((0..1000).all(|_| unlimited.try_acquire(1_000_000)));
        });
    }
}
