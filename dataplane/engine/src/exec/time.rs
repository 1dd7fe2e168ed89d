//! Timers: an ordered map, so that a dropped timer leaves nothing behind.

use std::collections::BTreeMap;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::{now, try_with, with};

type Key = (Duration, u64);

#[derive(Default)]
pub(super) struct Timers {
    map: BTreeMap<Key, Waker>,
    next: u64,
}

impl Timers {
    pub(super) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    pub(super) fn first(&self) -> Option<Duration> {
        self.map.first_key_value().map(|(key, _)| key.0)
    }

    /// A due timer's waker, or when the next one is due.
    pub(super) fn pop_due(&mut self, now: Duration) -> Result<Waker, Option<Duration>> {
        match self.map.first_entry() {
            Some(first) if first.key().0 <= now => Ok(first.remove()),
            Some(first) => Err(Some(first.key().0)),
            None => Err(None),
        }
    }
}

/// Ends at a moment. Belongs to the executor that polls it first.
#[derive(Debug)]
pub struct Sleep {
    at: Duration,
    key: Option<Key>,
    _here: PhantomData<*const ()>,
}

impl Sleep {
    /// The moment, as [`now`] counts.
    pub fn deadline(&self) -> Duration {
        self.at
    }

    /// Moves the moment.
    pub fn reset(&mut self, at: Duration) {
        self.forget();
        self.at = at;
    }

    fn forget(&mut self) {
        if let Some(key) = self.key.take() {
            // The waker is dropped outside the borrow.
            drop(try_with(|e| e.timers.borrow_mut().map.remove(&key)));
        }
    }
}

impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        with(|e| {
            if e.now() >= self.at {
                self.forget();
                return Poll::Ready(());
            }
            let mut timers = e.timers.borrow_mut();
            if let Some(key) = self.key
                && let Some(waker) = timers.map.get_mut(&key)
            {
                waker.clone_from(cx.waker());
                return Poll::Pending;
            }
            let key = (self.at, timers.next);
            timers.next += 1;
            timers.map.insert(key, cx.waker().clone());
            self.key = Some(key);
            Poll::Pending
        })
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.forget();
    }
}

/// Ends after `time`. On a core it is at most about a millisecond late when the core is idle.
pub fn sleep(time: Duration) -> Sleep {
    sleep_until(now().saturating_add(time))
}

/// Ends at `at`, as [`now`] counts.
pub fn sleep_until(at: Duration) -> Sleep {
    Sleep { at, key: None, _here: PhantomData }
}

/// The time was up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the time was up")]
pub struct Elapsed;

/// See [`timeout`].
#[derive(Debug)]
pub struct Timeout<F> {
    future: F,
    sleep: Sleep,
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: `future` is pinned with `self` and never moved; `sleep` is Unpin.
        let this = unsafe { self.get_unchecked_mut() };
        // SAFETY: as above.
        if let Poll::Ready(value) = unsafe { Pin::new_unchecked(&mut this.future) }.poll(cx) {
            return Poll::Ready(Ok(value));
        }
        Pin::new(&mut this.sleep).poll(cx).map(|()| Err(Elapsed))
    }
}

/// `future`'s value, or [`Elapsed`] after `time`; the future is dropped with the `Timeout`.
pub fn timeout<F: Future>(time: Duration, future: F) -> Timeout<F> {
    Timeout { future, sleep: sleep(time) }
}
