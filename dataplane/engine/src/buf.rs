//! Memory that an I/O operation owns until its last completion.
//!
//! io_uring writes into a buffer long after the future that asked for it may be gone, so a [`Buf`] moves into the
//! operation and comes back with the completion. It is one concrete type, not a trait: either karri's own aligned
//! memory, or foreign segments (guest memory, hyper's slices) with the keeper that holds them mapped.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;

/// What O_DIRECT wants of addresses, offsets and lengths.
pub const ALIGN: usize = 4096;

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
    Foreign { segments: Vec<Segment>, keeper: Option<Arc<dyn Any + Send + Sync>> },
}

// SAFETY: an owned buffer is plain memory; foreign segments are valid as long as the keeper lives (promised to
// `Buf::foreign`), and the keeper is Send.
unsafe impl Send for Buf {}

impl Buf {
    /// Zeroed memory of `len` bytes at an address aligned to [`ALIGN`].
    pub fn zeroed(len: usize) -> Self {
        Self { inner: Inner::Owned(Aligned::zeroed(len)), len }
    }

    /// An aligned copy of `bytes`, padded with zeros to a multiple of [`ALIGN`].
    pub fn copy_padded(bytes: &[u8]) -> Self {
        let mut buf = Self::zeroed(bytes.len().next_multiple_of(ALIGN));
        buf.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        buf
    }

    /// Memory that is not ours, such as a guest's.
    ///
    /// # Safety
    /// Every segment must stay mapped, readable and writable until `keeper` is dropped. Others may change the bytes
    /// meanwhile (a guest does); nobody may hold a Rust reference to them.
    pub unsafe fn foreign(segments: Vec<Segment>, keeper: Arc<dyn Any + Send + Sync>) -> Self {
        let len = segments.iter().map(|s| s.len).sum();
        Self { inner: Inner::Foreign { segments, keeper: Some(keeper) }, len }
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
            Inner::Foreign { .. } => panic!("bytes() of foreign memory"),
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
            Inner::Foreign { .. } => panic!("bytes_mut() of foreign memory"),
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
            Inner::Owned(a) => a.layout.size(),
            Inner::Foreign { .. } => self.len,
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
        let Inner::Foreign { keeper, .. } = &self.inner else { panic!("slice_foreign() of owned memory") };
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
    /// Owned memory.
    One(Segment),
    /// Foreign memory.
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

#[derive(Debug)]
struct Aligned {
    ptr: NonNull<u8>,
    layout: Layout,
}

impl Aligned {
    fn zeroed(len: usize) -> Self {
        let layout = Layout::from_size_align(len, ALIGN).expect("length fits isize");
        if len == 0 {
            return Self { ptr: NonNull::dangling(), layout };
        }
        // SAFETY: the layout has a size above 0.
        let ptr = unsafe { alloc_zeroed(layout) };
        Self { ptr: NonNull::new(ptr).unwrap_or_else(|| handle_alloc_error(layout)), layout }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        if self.layout.size() > 0 {
            // SAFETY: made by alloc_zeroed with this layout, freed once.
            unsafe { dealloc(self.ptr.as_ptr(), self.layout) }
        }
    }
}
