//! Where transfers land that no future waits for: a task begins any number of them ([`Disk::begin`](crate::disk::Disk::begin)),
//! sleeps, and takes what has come since, in one go. A transfer so begun costs no task, no future and no allocation; the
//! token says which one it was.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::buf::Buf;

/// A transfer's end.
#[derive(Debug)]
pub struct Landed {
    /// As given when it was begun.
    pub token: u64,
    /// Bytes transferred, perhaps fewer than asked for, or errno.
    pub result: Result<u32, i32>,
    /// The memory, which the kernel no longer touches.
    pub buf: Buf,
}

/// Ends of transfers, collected for one task. Clones are the same one.
#[derive(Clone, Default)]
pub struct Landings(Rc<Inner>);

#[derive(Default)]
struct Inner {
    landed: RefCell<Vec<Landed>>,
    waker: Cell<Option<Waker>>,
}

impl std::fmt::Debug for Landings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Landings").field("landed", &self.0.landed.borrow().len()).finish()
    }
}

impl Landings {
    /// Without any.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one and wakes who waits; for disks.
    pub fn push(&self, landed: Landed) {
        self.0.landed.borrow_mut().push(landed);
        if let Some(waker) = self.0.waker.take() {
            waker.wake();
        }
    }

    /// Moves all that landed to `to`, which must be empty and whose memory is used for what lands next.
    pub fn take(&self, to: &mut Vec<Landed>) {
        debug_assert!(to.is_empty());
        std::mem::swap(&mut *self.0.landed.borrow_mut(), to);
    }

    /// Ready when something has landed; else the task is woken at the next. One task at a time.
    pub fn poll_any(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.0.landed.borrow().is_empty() {
            return Poll::Ready(());
        }
        let mut waker = self.0.waker.take();
        match &mut waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        self.0.waker.set(waker);
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lands_wakes_once_and_is_taken_in_order() {
        crate::sim::run(1, |_| async {
            let landings = Landings::new();
            let from = landings.clone();
            crate::detach(async move {
                for token in 0..3 {
                    from.push(Landed { token, result: Ok(4096), buf: Buf::zeroed(0) });
                }
            });
            let mut landed = Vec::new();
            std::future::poll_fn(|cx| landings.poll_any(cx)).await;
            landings.take(&mut landed);
            assert_eq!(landed.drain(..).map(|l| l.token).collect::<Vec<_>>(), [0, 1, 2]);
            landings.take(&mut landed);
            assert!(landed.is_empty());
        });
    }
}
