//! Graceful ends: begin once, refuse what is new, wait for what is under way.
//!
//! A [`Drain`] belongs to one core; to drain several, begin each on its core (`handle.run(...)`).

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use crate::sync::Notify;

#[derive(Default)]
struct Inner {
    began: Cell<bool>,
    guards: Cell<usize>,
    changed: Notify,
}

/// See the module. Clones are the same one.
#[derive(Clone, Default)]
pub struct Drain(Rc<Inner>);

impl std::fmt::Debug for Drain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drain").field("began", &self.is_draining()).field("guards", &self.0.guards.get()).finish()
    }
}

/// Something under way; dropping it is its end.
pub struct Guard(Rc<Inner>);

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guard")
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.guards.set(self.0.guards.get() - 1);
        if self.0.guards.get() == 0 {
            self.0.changed.notify_all();
        }
    }
}

impl Drain {
    /// Not draining.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins it; a second time does nothing.
    pub fn begin(&self) {
        if !self.0.began.replace(true) {
            self.0.changed.notify_all();
        }
    }

    /// True once begun.
    pub fn is_draining(&self) -> bool {
        self.0.began.get()
    }

    /// Marks something as under way.
    pub fn guard(&self) -> Guard {
        self.0.guards.set(self.0.guards.get() + 1);
        Guard(self.0.clone())
    }

    /// Ends when draining begins.
    pub async fn began(&self) {
        self.0.changed.wait_until(|| self.0.began.get()).await;
    }

    /// Ends when draining has begun and nothing is under way. Wrap it in [`crate::timeout`].
    pub async fn finished(&self) {
        self.0.changed.wait_until(|| self.0.began.get() && self.0.guards.get() == 0).await;
    }

    /// `future`'s value, or None as soon as draining begins (or has begun).
    pub async fn or<F: Future>(&self, future: F) -> Option<F::Output> {
        let (mut future, mut began) = (pin!(future), pin!(self.began()));
        poll_fn(|cx| {
            if began.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            future.as_mut().poll(cx).map(Some)
        })
        .await
    }
}
