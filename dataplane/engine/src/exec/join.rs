//! Spawning tasks and waiting for their results.

use std::any::Any;
use std::cell::Cell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::{try_with, with};

/// Why a task has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// It was aborted, or its executor ended.
    #[error("the task was aborted")]
    Aborted,
    /// It panicked with these words.
    #[error("the task panicked: {0}")]
    Panicked(String),
}

struct Join<T> {
    result: Cell<Option<Result<T, JoinError>>>,
    waiter: Cell<Option<Waker>>,
}

/// A task's result to come. Dropping the handle lets the task run on, unwatched.
pub struct JoinHandle<T> {
    cell: Rc<Join<T>>,
    index: u32,
    id: u64,
}

impl<T> std::fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinHandle").field("task", &self.id).finish_non_exhaustive()
    }
}

impl<T> JoinHandle<T> {
    /// Drops the task's future: now, or at the end of its poll when it aborts itself. A finished task keeps its result.
    /// I/O that the task had in flight goes on in the kernel and keeps its buffers.
    pub fn abort(&self) {
        try_with(|e| e.abort(self.index, self.id));
    }

    /// True once a result (or an error) is there.
    pub fn is_finished(&self) -> bool {
        let result = self.cell.result.take();
        let finished = result.is_some();
        self.cell.result.set(result);
        finished || Rc::strong_count(&self.cell) == 1
    }

    /// The result, if it is there.
    pub(crate) fn try_take(&mut self) -> Option<Result<T, JoinError>> {
        self.cell.result.take()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(result) = self.cell.result.take() {
            return Poll::Ready(result);
        }
        if Rc::strong_count(&self.cell) == 1 {
            return Poll::Ready(Err(JoinError::Aborted));
        }
        self.cell.waiter.set(Some(cx.waker().clone()));
        Poll::Pending
    }
}

struct Joined<F: Future> {
    future: F,
    cell: Rc<Join<F::Output>>,
}

impl<F: Future> Future for Joined<F> {
    type Output = ();
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // SAFETY: `future` is pinned with `self` and never moved out; `cell` is not pinned.
        let this = unsafe { self.get_unchecked_mut() };
        // SAFETY: as above.
        let future = unsafe { Pin::new_unchecked(&mut this.future) };
        let result = match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(value)) => Ok(value),
            Err(payload) => Err(JoinError::Panicked(caught(payload, Rc::strong_count(&this.cell) == 1))),
        };
        this.cell.result.set(Some(result));
        Poll::Ready(())
    }
}

impl<F: Future> Drop for Joined<F> {
    fn drop(&mut self) {
        let result = self.cell.result.take().or(Some(Err(JoinError::Aborted)));
        // A handle that already took the result finds nobody to tell.
        if Rc::strong_count(&self.cell) > 1 {
            self.cell.result.set(result);
        }
        if let Some(waiter) = self.cell.waiter.take() {
            waiter.wake();
        }
    }
}

/// A panic's words. In the simulation it goes on unwinding; unwatched on a core, it is logged here.
fn caught(payload: Box<dyn Any + Send>, unwatched: bool) -> String {
    if try_with(|e| e.sim.is_some()).unwrap_or(false) {
        resume_unwind(payload);
    }
    let words = payload
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    if unwatched {
        tracing::error!(error = %words, "a task panicked");
    }
    words
}

/// Starts a task on this thread's executor.
///
/// # Panics
/// Outside an executor.
pub fn spawn<F: Future + 'static>(future: F) -> JoinHandle<F::Output> {
    let cell = Rc::new(Join { result: Cell::new(None), waiter: Cell::new(None) });
    let (index, id) = with(|e| e.add(Box::pin(Joined { future, cell: cell.clone() })));
    JoinHandle { cell, index, id }
}

/// Starts a task that nobody waits for: one allocation less than [`spawn`]. A panic in it is logged.
///
/// # Panics
/// Outside an executor.
pub fn detach<F: Future<Output = ()> + 'static>(future: F) {
    with(|e| e.add(Box::pin(Detached(future))));
}

struct Detached<F>(F);

impl<F: Future<Output = ()>> Future for Detached<F> {
    type Output = ();
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // SAFETY: the field is pinned with `self` and never moved out.
        let future = unsafe { self.map_unchecked_mut(|s| &mut s.0) };
        match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
            Ok(poll) => poll,
            Err(payload) => {
                caught(payload, true);
                Poll::Ready(())
            }
        }
    }
}
