//! Receive buffers lent to the kernel (a provided buffer ring): it takes one only when data is there, so ten thousand
//! idle connections hold none.
//!
//! Every buffer is either the kernel's or in the hands of one [`Lent`], whose drop gives it back. When the kernel finds
//! none it ends a multishot receive with ENOBUFS; the stream then waits for its own turn again, so memory is bounded by
//! `count * size` per core whatever clients do.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::task::Waker;

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use super::{Cqe, Ring};
use crate::buf::Buf;
use crate::error::EngineError;

/// The group number in SQEs.
pub(crate) const GROUP: u16 = 1;

/// See the module.
pub(crate) struct Bufs {
    /// The ring of entries, shared with the kernel: page aligned.
    entries: Buf,
    memory: Buf,
    count: u16,
    size: u32,
    tail: Cell<u16>,
    free: Cell<u16>,
    waiting: RefCell<Vec<Waker>>,
}

impl Bufs {
    pub(super) fn register(uring: &IoUring, (count, size): (u16, u32)) -> Result<Self, EngineError> {
        assert!(count.is_power_of_two() && count <= 1 << 15, "a power of two of receive buffers, at most 32768");
        let bufs = Self {
            entries: Buf::zeroed(usize::from(count) * size_of::<BufRingEntry>()),
            memory: Buf::zeroed(usize::from(count) * size as usize),
            count,
            size,
            tail: Cell::new(0),
            free: Cell::new(0),
            waiting: RefCell::default(),
        };
        let address = bufs.base() as u64;
        // SAFETY: the entries' memory is page aligned, `count` entries long, and outlives the ring (see Ring's drop).
        unsafe { uring.submitter().register_buf_ring_with_flags(address, count, GROUP, 0) }
            .map_err(EngineError::io("register the receive buffers (Linux 5.19)"))?;
        for id in 0..count {
            bufs.give_back(id);
        }
        Ok(bufs)
    }

    fn base(&self) -> *mut BufRingEntry {
        self.entries.segments().as_slice()[0].ptr.cast()
    }

    fn address(&self, id: u16) -> *mut u8 {
        assert!(id < self.count, "receive buffer {id} of {}", self.count);
        // SAFETY: inside `memory`, by the assertion.
        unsafe { self.memory.segments().as_slice()[0].ptr.add(usize::from(id) * self.size as usize) }
    }

    fn give_back(&self, id: u16) {
        let tail = self.tail.get();
        // SAFETY: the slot at the tail is ours until the tail moves past it; there are as many slots as buffers.
        let entry = unsafe { &mut *self.base().add(usize::from(tail & (self.count - 1))) };
        entry.set_addr(self.address(id) as u64);
        entry.set_len(self.size);
        entry.set_bid(id);
        self.tail.set(tail.wrapping_add(1));
        // SAFETY: the ring's tail is the first entry's reserved field; the kernel reads it with acquire.
        let shared = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.base()).cast_mut()) };
        shared.store(self.tail.get(), Ordering::Release);
        self.free.set(self.free.get() + 1);
        if !self.waiting.borrow().is_empty() {
            let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    /// Gives back the buffer that a completion nobody wants carries.
    pub(super) fn give_back_of(&self, cqe: Cqe) {
        if let Some(id) = io_uring::cqueue::buffer_select(cqe.flags) {
            self.free.set(self.free.get() - 1);
            self.give_back(id);
        }
    }

    /// Bytes in each.
    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// Wakes when a buffer comes back. True: some are free now, no need to wait.
    pub(crate) fn wait_free(&self, waker: &Waker) -> bool {
        // Some slack: the kernel may have taken buffers whose completions are not reaped yet.
        if self.free.get() > self.count / 8 {
            return true;
        }
        self.waiting.borrow_mut().push(waker.clone());
        false
    }

    /// Buffers not lent out, as far as completions have told.
    #[cfg(test)]
    pub(crate) fn free(&self) -> u16 {
        self.free.get()
    }
}

/// Received bytes in one of the core's buffers; dropping gives the buffer back.
pub(crate) struct Lent {
    ring: Rc<Ring>,
    id: u16,
    from: u32,
    to: u32,
}

impl Lent {
    /// The buffer of a completion with data.
    pub(crate) fn take(ring: &Rc<Ring>, cqe: Cqe) -> Option<Self> {
        let id = io_uring::cqueue::buffer_select(cqe.flags)?;
        ring.bufs.free.set(ring.bufs.free.get() - 1);
        Some(Self { ring: ring.clone(), id, from: 0, to: cqe.res.max(0) as u32 })
    }

    /// What is not consumed yet.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the buffer is ours until given back, and the kernel wrote its first `to` bytes (all were zeroed).
        unsafe {
            std::slice::from_raw_parts(
                self.ring.bufs.address(self.id).add(self.from as usize),
                (self.to - self.from) as usize,
            )
        }
    }

    /// Consumes the first `n` bytes; true when none are left.
    pub(crate) fn advance(&mut self, n: usize) -> bool {
        self.from = (self.from + n as u32).min(self.to);
        self.from == self.to
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.ring.bufs.give_back(self.id);
    }
}
