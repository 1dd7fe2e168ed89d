//! Who may touch which bytes at once, on one core: writes side by side, read-modify-writes and discards alone.
//!
//! The common case is a push and a removal in a small slab; ranges are compared only while an exclusive one is held or
//! waiting. Waiting is in order of arrival, so a stream of writes cannot starve a discard.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::ops::Range;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Wakes everyone who waits for a condition; waiters look again.
#[derive(Debug, Default)]
pub(crate) struct Changed(RefCell<Vec<Waker>>);

impl Changed {
    /// Wakes all.
    pub(crate) fn notify(&self) {
        if !self.0.borrow().is_empty() {
            self.0.take().into_iter().for_each(Waker::wake);
        }
    }
    /// Resolves once `ready` is true; it is looked at now and after each [`notify`](Self::notify).
    pub(crate) async fn until(&self, mut ready: impl FnMut() -> bool) {
        poll_fn(|cx| {
            if ready() {
                return Poll::Ready(());
            }
            let mut waiting = self.0.borrow_mut();
            if !waiting.iter().any(|w| w.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

#[derive(Debug, Clone)]
struct Held {
    range: Range<u64>,
    exclusive: bool,
    ticket: u64,
}

/// The ranges under change of one volume.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    held: RefCell<Vec<Held>>,
    exclusives: Cell<usize>,
    tickets: Cell<u64>,
    changed: Changed,
}

/// A range held; dropped, it is free.
#[derive(Debug)]
pub(crate) struct Guard {
    ranges: Rc<Ranges>,
    ticket: u64,
}

impl Ranges {
    /// Takes `range`: `exclusive` waits for every earlier holder that overlaps, otherwise only for exclusive ones.
    pub(crate) async fn take(self: &Rc<Self>, range: Range<u64>, exclusive: bool) -> Guard {
        let ticket = self.tickets.get();
        self.tickets.set(ticket + 1);
        self.held.borrow_mut().push(Held { range: range.clone(), exclusive, ticket });
        if exclusive {
            self.exclusives.set(self.exclusives.get() + 1);
        }
        let guard = Guard { ranges: self.clone(), ticket };
        if self.exclusives.get() > 0 {
            self.changed.until(|| !self.blocked(&range, exclusive, ticket)).await;
        }
        guard
    }

    /// [`take`](Self::take), not exclusive, if that is to be had at once.
    pub(crate) fn try_take(self: &Rc<Self>, range: Range<u64>) -> Option<Guard> {
        if self.exclusives.get() > 0 {
            return None;
        }
        let ticket = self.tickets.get();
        self.tickets.set(ticket + 1);
        self.held.borrow_mut().push(Held { range, exclusive: false, ticket });
        Some(Guard { ranges: self.clone(), ticket })
    }

    fn blocked(&self, range: &Range<u64>, exclusive: bool, ticket: u64) -> bool {
        self.held.borrow().iter().any(|h| {
            h.ticket < ticket && (exclusive || h.exclusive) && h.range.start < range.end && range.start < h.range.end
        })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut held = self.ranges.held.borrow_mut();
        // From the end: what began last is among the last.
        if let Some(at) = held.iter().rposition(|h| h.ticket == self.ticket) {
            let gone = held.swap_remove(at);
            drop(held);
            if gone.exclusive {
                self.ranges.exclusives.set(self.ranges.exclusives.get() - 1);
            }
            self.ranges.changed.notify();
        }
    }
}

/// Counts reads so that an extent is given back only after every read that may be looking at it has ended.
#[derive(Debug, Default)]
pub(crate) struct Readers {
    now: Cell<usize>,
    count: [Cell<usize>; 2],
    changed: Changed,
}

/// A read under way.
#[derive(Debug)]
pub(crate) struct Reading<'a> {
    readers: &'a Readers,
    side: usize,
}

impl Readers {
    /// Begins a read.
    pub(crate) fn enter(&self) -> Reading<'_> {
        Reading { readers: self, side: self.begin() }
    }
    /// Begins a read that is ended by [`end`](Self::end) with what this answers, once.
    pub(crate) fn begin(&self) -> usize {
        let side = self.now.get();
        self.count[side].set(self.count[side].get() + 1);
        side
    }
    /// Ends a read.
    pub(crate) fn end(&self, side: usize) {
        let count = &self.count[side];
        count.set(count.get() - 1);
        if count.get() == 0 {
            self.changed.notify();
        }
    }
    /// Waits for the reads begun before now. One caller at a time.
    pub(crate) async fn drain(&self) {
        let old = self.now.get();
        self.now.set(1 - old);
        self.changed.until(|| self.count[old].get() == 0).await;
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.readers.end(self.side);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn exclusives_wait_for_what_came_before_and_hold_up_what_comes_after() {
        let ranges = Rc::new(Ranges::default());
        let a = ranges.take(0..8, false).now_or_never().expect("free");
        let b = ranges.take(0..8, false).now_or_never().expect("writes go side by side");
        let mut alone = Box::pin(ranges.take(4..12, true));
        assert!((&mut alone).now_or_never().is_none());
        let mut late = Box::pin(ranges.take(10..11, false));
        assert!((&mut late).now_or_never().is_none(), "behind the waiting exclusive");
        assert!(ranges.take(12..13, false).now_or_never().is_some(), "elsewhere");
        assert!(ranges.try_take(12..13).is_none(), "nothing at once while someone waits");
        drop(a);
        assert!((&mut alone).now_or_never().is_none());
        drop(b);
        let held = (&mut alone).now_or_never().expect("alone now");
        assert!((&mut late).now_or_never().is_none());
        drop(held);
        assert!(late.now_or_never().is_some());
        assert!(ranges.try_take(0..8).is_some());
        assert_eq!((ranges.exclusives.get(), ranges.held.borrow().len()), (0, 0));
    }

    #[test]
    fn a_dropped_waiter_leaves_nothing_behind() {
        let ranges = Rc::new(Ranges::default());
        let a = ranges.take(0..8, true).now_or_never().expect("free");
        let mut b = Box::pin(ranges.take(0..8, true));
        assert!((&mut b).now_or_never().is_none());
        drop(b);
        drop(a);
        assert!(ranges.take(0..8, true).now_or_never().is_some());
        assert_eq!((ranges.exclusives.get(), ranges.held.borrow().len()), (0, 0));
    }

    #[test]
    fn draining_waits_only_for_earlier_reads() {
        let readers = Readers::default();
        let early = readers.enter();
        let mut drain = Box::pin(readers.drain());
        assert!((&mut drain).now_or_never().is_none());
        let late = readers.enter();
        drop(early);
        assert!(drain.now_or_never().is_some());
        drop(late);
    }
}
