//! Memory that an I/O operation owns until its last completion.
//!
//! io_uring writes into a buffer long after the future that asked for it may be gone, so a [`Buf`] moves into the
//! operation and comes back with the completion. It is one concrete type, not a trait: either karri's own aligned
//! memory, or foreign segments (guest memory, hyper's slices) with the keeper that holds them mapped.
//!
//! Owned memory is pooled per thread, in sizes of powers of two from 4 KiB to 4 MiB: a 1 MiB buffer costs neither a
//! mapping nor page faults after its first use. At most [`POOL_BYTES`] wait in a thread's pool; the rest is freed.
//! [`Buf::for_read`] also saves the zeroing.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::any::Any;
use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::Arc;

/// What O_DIRECT wants of addresses, offsets and lengths.
pub const ALIGN: usize = 4096;

/// Bytes that may wait in one thread's pool.
pub const POOL_BYTES: usize = 64 << 20;

/// One contiguous piece of memory: address and length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Address.
    pub ptr: *mut u8,
    /// Length in bytes.
    pub len: usize,
}

/// A list of segments and what keeps them alive. `len()` is their sum.
#[derive(Debug)]
pub struct Buf {
    inner: Inner,
    len: usize,
}

#[derive(Debug)]
enum Inner {
    Owned(Aligned),
    One { segment: Segment, keeper: Arc<dyn Any + Send + Sync> },
    Foreign { segments: Vec<Segment>, keeper: Arc<dyn Any + Send + Sync> },
}

// SAFETY: an owned buffer is plain memory; foreign segments are valid as long as the keeper lives (promised to
// `Buf::foreign`), and the keeper is Send.
unsafe impl Send for Buf {}

impl Buf {
    /// Zeroed memory of `len` bytes at an address aligned to [`ALIGN`].
    pub fn zeroed(len: usize) -> Self {
        Self { inner: Inner::Owned(Aligned::zeroed(len)), len }
    }

    /// Memory of `len` bytes to be read into, aligned to [`ALIGN`]: its bytes are old ones or zeros. Never show what a
    /// read has not filled: it may be another tenant's.
    pub fn for_read(len: usize) -> Self {
        Self { inner: Inner::Owned(Aligned::pooled(len).0), len }
    }

    /// An aligned copy of `bytes`, padded with zeros to a multiple of [`ALIGN`].
    pub fn copy_padded(bytes: &[u8]) -> Self {
        let mut buf = Self::for_read(bytes.len().next_multiple_of(ALIGN));
        let (data, padding) = buf.bytes_mut().split_at_mut(bytes.len());
        data.copy_from_slice(bytes);
        padding.fill(0);
        buf
    }

    /// Memory that is not ours, such as a guest's.
    ///
    /// # Safety
    /// Every segment must stay mapped, readable and writable until `keeper` is dropped. Others may change the bytes
    /// meanwhile (a guest does); nobody may hold a Rust reference to them.
    pub unsafe fn foreign(segments: Vec<Segment>, keeper: Arc<dyn Any + Send + Sync>) -> Self {
        let len = segments.iter().map(|s| s.len).sum();
        Self { inner: Inner::Foreign { segments, keeper }, len }
    }

    /// [`foreign`](Self::foreign) in one piece: nothing is allocated.
    ///
    /// # Safety
    /// As [`foreign`](Self::foreign).
    pub unsafe fn foreign_one(segment: Segment, keeper: Arc<dyn Any + Send + Sync>) -> Self {
        Self { inner: Inner::One { segment, keeper }, len: segment.len }
    }

    /// Bytes in all segments.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there is nothing to transfer.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The segments, in order, for iovecs. At most 1,024 (IOV_MAX) may be handed to one operation.
    pub fn segments(&self) -> Segments<'_> {
        match &self.inner {
            Inner::Owned(a) => Segments::One(Segment { ptr: a.ptr.as_ptr(), len: self.len }),
            Inner::One { segment, .. } => Segments::One(*segment),
            Inner::Foreign { segments, .. } => Segments::Many(segments),
        }
    }

    /// True for memory of our own, which [`bytes`](Self::bytes) may look at.
    pub fn is_owned(&self) -> bool {
        matches!(self.inner, Inner::Owned(_))
    }

    /// The bytes of an owned buffer.
    ///
    /// # Panics
    /// On foreign memory: another party may change it under a reference.
    pub fn bytes(&self) -> &[u8] {
        match &self.inner {
            // SAFETY: we own `len` initialised bytes and hold them behind &self.
            Inner::Owned(a) => unsafe { std::slice::from_raw_parts(a.ptr.as_ptr(), self.len) },
            Inner::One { .. } | Inner::Foreign { .. } => panic!("bytes() of foreign memory"),
        }
    }

    /// The bytes of an owned buffer, to change.
    ///
    /// # Panics
    /// On foreign memory.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.inner {
            // SAFETY: as in `bytes`, and `&mut self` makes it exclusive.
            Inner::Owned(a) => unsafe { std::slice::from_raw_parts_mut(a.ptr.as_ptr(), self.len) },
            Inner::One { .. } | Inner::Foreign { .. } => panic!("bytes_mut() of foreign memory"),
        }
    }

    /// Makes an owned buffer's visible length `len`, at most its capacity.
    ///
    /// # Panics
    /// On foreign memory or past the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "{len} is past the capacity of {}", self.capacity());
        self.len = len;
    }

    /// The length that an owned buffer was made with; a foreign one's length.
    pub fn capacity(&self) -> usize {
        match &self.inner {
            Inner::Owned(a) => a.asked,
            Inner::One { .. } | Inner::Foreign { .. } => self.len,
        }
    }

    /// Copies out `to.len()` bytes from `at`, whatever kind of memory this is.
    ///
    /// # Panics
    /// Past the end.
    pub fn copy_to(&self, at: usize, to: &mut [u8]) {
        assert!(at + to.len() <= self.len);
        let mut done = 0;
        self.each_piece(at, to.len(), |ptr, n| {
            // SAFETY: each_piece yields valid ranges of our segments; `to` is exclusive to us.
            unsafe { std::ptr::copy_nonoverlapping(ptr, to.as_mut_ptr().add(done), n) };
            done += n;
        });
    }

    /// Copies `from` in at `at`, whatever kind of memory this is.
    ///
    /// # Panics
    /// Past the end.
    pub fn copy_from(&mut self, at: usize, from: &[u8]) {
        assert!(at + from.len() <= self.len);
        let mut done = 0;
        self.each_piece(at, from.len(), |ptr, n| {
            // SAFETY: as in copy_to, the other way round.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr().add(done), ptr, n) };
            done += n;
        });
    }

    /// Fills `len` bytes from `at` with zeros.
    ///
    /// # Panics
    /// Past the end.
    pub fn zero(&mut self, at: usize, len: usize) {
        assert!(at + len <= self.len);
        // SAFETY: each_piece yields valid ranges of our segments.
        self.each_piece(at, len, |ptr, n| unsafe { std::ptr::write_bytes(ptr, 0, n) });
    }

    /// A view of `len` bytes from `at`, as a buffer of its own that keeps this memory alive.
    /// Only for foreign memory: an owned buffer is split by making two.
    ///
    /// # Panics
    /// On owned memory, or past the end.
    pub fn slice_foreign(&self, at: usize, len: usize) -> Buf {
        assert!(at + len <= self.len);
        let (Inner::Foreign { keeper, .. } | Inner::One { keeper, .. }) = &self.inner else {
            panic!("slice_foreign() of owned memory")
        };
        let mut segments = Vec::new();
        self.each_piece(at, len, |ptr, n| segments.push(Segment { ptr, len: n }));
        Buf { inner: Inner::Foreign { segments, keeper: keeper.clone() }, len }
    }

    fn each_piece(&self, mut at: usize, mut len: usize, mut f: impl FnMut(*mut u8, usize)) {
        for s in self.segments().as_slice() {
            if len == 0 {
                return;
            }
            if at >= s.len {
                at -= s.len;
                continue;
            }
            let n = len.min(s.len - at);
            // SAFETY: at < s.len, so the address stays inside the segment.
            f(unsafe { s.ptr.add(at) }, n);
            len -= n;
            at = 0;
        }
    }
}

/// A buffer's segments without an allocation for the common single one.
#[derive(Debug)]
pub enum Segments<'a> {
    /// One piece.
    One(Segment),
    /// Scattered foreign memory.
    Many(&'a [Segment]),
}

impl Segments<'_> {
    /// As a slice.
    pub fn as_slice(&self) -> &[Segment] {
        match self {
            Self::One(s) => std::slice::from_ref(s),
            Self::Many(s) => s,
        }
    }
}

/// The bytes of an owned buffer, so that `Bytes::from_owner(buf)` hands it to hyper without a copy.
///
/// # Panics
/// On foreign memory, as [`Buf::bytes`].
impl AsRef<[u8]> for Buf {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

#[derive(Debug)]
struct Aligned {
    ptr: NonNull<u8>,
    layout: Layout,
    /// What it was made for: at most the layout's size.
    asked: usize,
}

const POOLED_MIN: usize = ALIGN;
const POOLED_MAX: usize = 4 << 20;
const CLASSES: usize = (POOLED_MAX / POOLED_MIN).ilog2() as usize + 1;

#[derive(Default)]
struct Pool {
    free: [Vec<NonNull<u8>>; CLASSES],
    bytes: usize,
}

impl Drop for Pool {
    fn drop(&mut self) {
        for (class, free) in self.free.iter_mut().enumerate() {
            for ptr in free.drain(..) {
                // SAFETY: every pointer of this class was allocated with its layout and is in no one's hands.
                unsafe { dealloc(ptr.as_ptr(), class_layout(class)) }
            }
        }
    }
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

fn class_layout(class: usize) -> Layout {
    Layout::from_size_align(POOLED_MIN << class, ALIGN).expect("a small power of two")
}

fn class_of(len: usize) -> Option<usize> {
    let size = len.next_power_of_two().max(POOLED_MIN);
    (len > 0 && len <= POOLED_MAX).then(|| (size / POOLED_MIN).ilog2() as usize)
}

impl Aligned {
    fn zeroed(len: usize) -> Self {
        let (memory, used) = Self::pooled(len);
        if used {
            // SAFETY: `len` bytes of our own.
            unsafe { memory.ptr.write_bytes(0, len) };
        }
        memory
    }

    /// Memory that is initialised, and whether it was used before (else it is zero).
    fn pooled(len: usize) -> (Self, bool) {
        let class = class_of(len);
        let layout = match class {
            Some(class) => class_layout(class),
            None => Layout::from_size_align(len, ALIGN).expect("length fits isize"),
        };
        if len == 0 {
            return (Self { ptr: NonNull::dangling(), layout, asked: 0 }, false);
        }
        let used = class.and_then(|class| {
            let take = |pool: &RefCell<Pool>| {
                let mut pool = pool.borrow_mut();
                let ptr = pool.free[class].pop()?;
                pool.bytes -= layout.size();
                Some(ptr)
            };
            POOL.try_with(take).ok()?
        });
        if let Some(ptr) = used {
            return (Self { ptr, layout, asked: len }, true);
        }
        // SAFETY: the layout has a size above 0.
        let ptr = unsafe { alloc_zeroed(layout) };
        let ptr = NonNull::new(ptr).unwrap_or_else(|| handle_alloc_error(layout));
        (Self { ptr, layout, asked: len }, false)
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        if self.layout.size() == 0 {
            return;
        }
        let kept = class_of(self.asked).is_some_and(|class| {
            let keep = |pool: &RefCell<Pool>| {
                let mut pool = pool.borrow_mut();
                let room = pool.bytes + self.layout.size() <= POOL_BYTES;
                if room {
                    pool.bytes += self.layout.size();
                    pool.free[class].push(self.ptr);
                }
                room
            };
            // A thread that is ending has no pool any more.
            POOL.try_with(keep).unwrap_or(false)
        });
        if !kept {
            // SAFETY: made by alloc_zeroed with this layout, freed once: the pool did not take it.
            unsafe { dealloc(self.ptr.as_ptr(), self.layout) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_gives_memory_again_and_zeroes_it_when_asked() {
        for len in [1, 512, ALIGN, ALIGN + 1, 100_000, POOLED_MAX, POOLED_MAX + 1] {
            let mut first = Buf::zeroed(len);
            assert_eq!((first.len(), first.capacity()), (len, len));
            assert!(first.bytes().iter().all(|b| *b == 0));
            let address = first.bytes().as_ptr();
            assert!(address.addr().is_multiple_of(ALIGN));
            first.bytes_mut().fill(7);
            drop(first);
            let again = Buf::for_read(len);
            if len <= POOLED_MAX {
                assert_eq!(again.bytes().as_ptr(), address, "{len} bytes are reused");
            }
            drop(again);
            assert!(Buf::zeroed(len).bytes().iter().all(|b| *b == 0), "{len} zeroed bytes");
        }
        let padded = Buf::copy_padded(&[3; 100]);
        assert!(padded.len() == ALIGN && padded.bytes()[100..].iter().all(|b| *b == 0));
    }

    #[test]
    fn the_pool_is_bounded_and_crosses_threads() {
        let many: Vec<_> = (0..(POOL_BYTES >> 20) + 8).map(|_| Buf::zeroed(1 << 20)).collect();
        let there = std::thread::spawn(move || {
            drop(many);
            POOL.with_borrow(|pool| pool.bytes)
        });
        assert_eq!(there.join().unwrap(), POOL_BYTES);
    }
}
