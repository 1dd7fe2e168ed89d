//! Foreign memory (a guest's) registered with a ring: I/O on it skips finding and pinning its pages each time, which is
//! half of the CPU of a 1 MiB read (110 to 58 us where it was measured) and little of that of a 4 KiB one.
//!
//! Registering pins every page, and makes those that were never touched: seconds for a large guest. So there are two
//! ways: [`register_memory`] at once on the core, for little; and [`pin_memory`] on any thread, with a small ring of its
//! own, from which a core then [borrows](Pinned::lend) the pinned pages without touching them (Linux 6.13;
//! IORING_REGISTER_CLONE_BUFFERS with offsets).
//!
//! What must hold, and why it does:
//! - An address is looked up only among registrations whose memory is still mapped there: a registration holds the
//!   memory's keeper, and leaves the ring's list before it lets go of it.
//! - The kernel holds pinned pages by their own: after an unregistration operations in flight go on. Those that are not
//!   yet handed over are handed over before it.
//! - Whoever replaces pages under the mapping (a balloon, a hole punched in the memfd) makes mapping and registration two
//!   different things: only memory that nobody does that to may be registered.

use std::any::Any;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;

use io_uring::IoUring;

use super::{Ring, Wait, current};
use crate::buf::Segment;

/// Bytes of one registration at most.
pub const REGION_BYTES_MAX: usize = 1 << 30;

pub(super) struct Region {
    start: usize,
    len: usize,
    index: u16,
}

impl Ring {
    /// The registered region that holds all of `ptr..ptr + len`.
    pub(crate) fn region_of(&self, ptr: *const u8, len: usize) -> Option<u16> {
        let regions = self.regions.borrow();
        let at = ptr as usize;
        // Ascending; they may overlap only if someone registers memory twice, and then either will do.
        let before = regions.partition_point(|r| r.start <= at);
        let r = &regions[before.checked_sub(1)?];
        (at - r.start <= r.len && len <= r.len - (at - r.start)).then_some(r.index)
    }

    /// The registered region that holds all of the segments.
    pub(crate) fn region_of_all(&self, segments: &[Segment]) -> Option<u16> {
        let (first, rest) = segments.split_first()?;
        let index = self.region_of(first.ptr, first.len)?;
        rest.iter().all(|s| self.region_of(s.ptr, s.len) == Some(index)).then_some(index)
    }

    /// Whether the kernel has READV_FIXED and WRITEV_FIXED.
    pub(crate) fn fixed_vectors(&self) -> bool {
        self.features.fixed_vectors
    }

    fn add_region(&self, start: usize, len: usize, fill: impl FnOnce(u16) -> io::Result<()>) -> io::Result<u16> {
        let index = self.regions_free.borrow_mut().pop().ok_or_else(|| {
            io::Error::other("the core's table of registered memory is full; raise RingOptions::regions")
        })?;
        if let Err(e) = fill(index) {
            self.regions_free.borrow_mut().push(index);
            return Err(e);
        }
        let mut regions = self.regions.borrow_mut();
        let place = regions.partition_point(|r| r.start <= start);
        regions.insert(place, Region { start, len, index });
        Ok(index)
    }

    fn remove_region(&self, index: u16) {
        self.regions.borrow_mut().retain(|r| r.index != index);
        if self.unsubmitted() > 0 {
            // What was prepared with it must find it.
            self.enter(Wait::Submit);
        }
        let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        // SAFETY: an empty entry points to nothing; operations in flight hold their own reference.
        let done =
            unsafe { self.uring.borrow().submitter().register_buffers_update(u32::from(index), &[none], Some(&[0])) };
        if done.is_ok() {
            self.regions_free.borrow_mut().push(index);
        }
    }

    /// Takes over the one buffer of another ring.
    fn clone_buffer(&self, from: &IoUring, index: u16) -> io::Result<()> {
        /// `struct io_uring_clone_buffers`.
        #[repr(C)]
        struct CloneBuffers {
            src_fd: u32,
            flags: u32,
            src_off: u32,
            dst_off: u32,
            nr: u32,
            pad: [u32; 3],
        }
        const REGISTER_CLONE_BUFFERS: libc::c_uint = 30;
        const DST_REPLACE: u32 = 2;
        let src_fd = from.as_raw_fd() as u32;
        let arg = CloneBuffers { src_fd, flags: DST_REPLACE, src_off: 0, dst_off: index.into(), nr: 1, pad: [0; 3] };
        let fd = self.uring.borrow().as_raw_fd();
        // SAFETY: io_uring_register with one io_uring_clone_buffers, laid out as the kernel has it, alive here. The pages
        // are the source's, which keeps their memory mapped, as does whoever asked for the clone.
        let answer = unsafe {
            libc::syscall(libc::SYS_io_uring_register, fd, REGISTER_CLONE_BUFFERS, &raw const arg, 1 as libc::c_uint)
        };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Memory registered with this core's ring until dropped. Optional: unregistered memory works the same, slower.
pub struct Registered {
    ring: Rc<Ring>,
    index: u16,
    _keeper: Arc<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for Registered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registered").field("index", &self.index).finish_non_exhaustive()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.ring.remove_region(self.index);
    }
}

/// Registers `len` bytes at `ptr` with this core's ring until the answer is dropped.
///
/// # Errors
/// ENOMEM past RLIMIT_MEMLOCK, EFAULT and EOPNOTSUPP for memory that cannot be pinned (some file mappings), or a full
/// table. All of them mean: go on without.
///
/// # Safety
/// The memory must stay mapped until `keeper` is dropped, and nobody may replace its pages meanwhile.
///
/// # Panics
/// Outside a core.
pub unsafe fn register_memory(ptr: *mut u8, len: usize, keeper: Arc<dyn Any + Send + Sync>) -> io::Result<Registered> {
    let ring = current();
    let iovec = libc::iovec { iov_base: ptr.cast(), iov_len: len };
    let index = ring.add_region(ptr as usize, len, |index| {
        // SAFETY: `Registered` keeps the memory mapped until it has unregistered it; the kernel pins the pages.
        unsafe { ring.uring.borrow().submitter().register_buffers_update(u32::from(index), &[iovec], Some(&[0])) }
    })?;
    Ok(Registered { ring, index, _keeper: keeper })
}

/// Memory whose pages are pinned until this and all that borrow from it are dropped.
pub struct Pinned {
    ring: IoUring,
    start: usize,
    len: usize,
    /// After the ring: the pages are let go of before the mapping.
    _keeper: Arc<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for Pinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pinned").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Pins `len` bytes at `ptr`, at most [`REGION_BYTES_MAX`]. Blocks as long as that takes: not on a core.
///
/// # Errors
/// As [`register_memory`].
///
/// # Safety
/// As [`register_memory`].
pub unsafe fn pin_memory(ptr: *mut u8, len: usize, keeper: Arc<dyn Any + Send + Sync>) -> io::Result<Arc<Pinned>> {
    let ring = IoUring::new(1)?;
    let iovec = libc::iovec { iov_base: ptr.cast(), iov_len: len };
    // SAFETY: `Pinned` keeps the memory mapped until the ring is gone.
    unsafe { ring.submitter().register_buffers(&[iovec]) }?;
    Ok(Arc::new(Pinned { ring, start: ptr as usize, len, _keeper: keeper }))
}

impl Pinned {
    /// Registers it with this core's ring, too, until the answer is dropped. Takes microseconds.
    ///
    /// # Errors
    /// EINVAL before Linux 6.13, or a full table: go on without.
    ///
    /// # Panics
    /// Outside a core.
    pub fn lend(self: &Arc<Self>) -> io::Result<Registered> {
        let ring = current();
        let index = ring.add_region(self.start, self.len, |index| ring.clone_buffer(&self.ring, index))?;
        Ok(Registered { ring, index, _keeper: self.clone() })
    }
}
