//! Guest memory: the one module of this crate with `unsafe`.
//!
//! A [`GuestMemory`] is an immutable list of mapped regions; a change of the table makes a new one. Whatever points into it
//! ([`View`], [`GuestBytes`], [`Status`], a `Buf` made of them) holds an `Arc` of it, so a region stays mapped until the
//! last I/O on it has ended, also when the front end took it away meanwhile.
//!
//! Promises: no address outside a region is ever touched; no Rust reference to guest bytes is ever made (they change under
//! us): access is by raw copies and atomics. Leaves to others: what the bytes mean.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use karri_engine::buf::{Buf, Segment};
use karri_engine::ring::{Pinned, REGION_BYTES_MAX, pin_memory};
use smallvec::SmallVec;

/// Why memory cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The region cannot be mapped.
    #[error("region of {len} bytes at guest address {guest:#x}: {why}")]
    Map {
        /// Guest address.
        guest: u64,
        /// Length in bytes.
        len: u64,
        /// Why.
        why: String,
    },
    /// Two regions overlap.
    #[error("regions at guest addresses {a:#x} and {b:#x} overlap")]
    Overlap {
        /// One.
        a: u64,
        /// The other.
        b: u64,
    },
    /// Not all of it is inside one region, or it is misaligned.
    #[error("{len} bytes at guest address {at:#x} are outside guest memory or misaligned")]
    Outside {
        /// Guest address.
        at: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// A mapping of ours, unmapped at drop.
struct Mapping {
    ptr: *mut u8,
    len: usize,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by mmap with this address and length, unmapped once.
        unsafe { libc::munmap(self.ptr.cast(), self.len) };
    }
}

/// One mapped region.
pub struct Region {
    /// Guest-physical address.
    pub guest: u64,
    /// Address in the front end, which ring addresses are given in.
    pub user: u64,
    /// Bytes.
    pub len: u64,
    /// Where the region begins inside the mapping.
    host: *mut u8,
    _mapping: Mapping,
}

// SAFETY: the region is plain shared memory, accessed by raw copies and atomics only; the mapping is immutable.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Region({:#x}, {} bytes)", self.guest, self.len)
    }
}

impl Region {
    /// Maps `len` bytes of `file` from `offset`.
    ///
    /// # Errors
    /// `Map` when the file is shorter than that (an access would then be a SIGBUS) or the system refuses.
    pub fn map(file: &File, offset: u64, guest: u64, user: u64, len: u64) -> Result<Self, MemoryError> {
        let bad = |why: String| MemoryError::Map { guest, len, why };
        let end = offset.checked_add(len).filter(|end| len > 0 && isize::try_from(*end).is_ok());
        let end = end.ok_or_else(|| bad("its length or offset makes no sense".into()))?;
        if guest.checked_add(len).is_none() || user.checked_add(len).is_none() {
            return Err(bad("its addresses wrap around".into()));
        }
        let held = file.metadata().map_err(|e| bad(e.to_string()))?.len();
        if held < end {
            return Err(bad(format!("its file has {held} bytes, not {end}")));
        }
        // From the file's start: huge pages want offsets aligned to their size.
        // SAFETY: a fresh shared mapping at an address of the kernel's choice.
        let ptr = unsafe {
            libc::mmap(
                ptr::null_mut(),
                end as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        if ptr == libc::MAP_FAILED {
            return Err(bad(format!("mmap: {}", std::io::Error::last_os_error())));
        }
        let mapping = Mapping { ptr: ptr.cast(), len: end as usize };
        // SAFETY: offset < end, the mapping's length.
        let host = unsafe { mapping.ptr.add(offset as usize) };
        Ok(Self { guest, user, len, host, _mapping: mapping })
    }

    /// Zeroed memory of our own, for tests and fuzzing.
    ///
    /// # Errors
    /// `Map` when the system refuses.
    pub fn anonymous(guest: u64, len: u64) -> Result<Self, MemoryError> {
        // SAFETY: a fresh private mapping at an address of the kernel's choice.
        let ptr = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if ptr == libc::MAP_FAILED {
            return Err(MemoryError::Map { guest, len, why: std::io::Error::last_os_error().to_string() });
        }
        let mapping = Mapping { ptr: ptr.cast(), len: len as usize };
        Ok(Self { guest, user: guest, len, host: mapping.ptr, _mapping: mapping })
    }
}

impl Region {
    /// Pins its pages, in pieces that a ring takes, each handed to `each` when it is done. Blocks, for seconds where they
    /// were never touched. The front end must never replace a page of it (no balloon, no hole punched in its file).
    ///
    /// # Errors
    /// What the system says: past RLIMIT_MEMLOCK, or memory that cannot be pinned. Then go on without.
    pub fn pin(self: &Arc<Self>, mut each: impl FnMut(Arc<Pinned>) -> bool) -> std::io::Result<()> {
        let mut at = 0;
        while at < self.len {
            let n = (self.len - at).min(REGION_BYTES_MAX as u64);
            // SAFETY: inside the region, which `self` keeps mapped; that pages stay is the front end's promise.
            let pinned = unsafe { pin_memory(self.host.add(at as usize), n as usize, self.clone()) }?;
            if !each(pinned) {
                return Ok(());
            }
            at += n;
        }
        Ok(())
    }
}

/// A file in memory of `len` bytes that can be handed to another process and not be shrunk under us.
///
/// # Errors
/// What the system says.
pub fn memfd(name: &std::ffi::CStr, len: u64) -> std::io::Result<File> {
    // SAFETY: a valid C string and flags; the answer is a fresh descriptor or -1.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: just made, ours alone.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len)?;
    // SAFETY: plain fcntl on our descriptor.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(file)
}

/// Whether the file can never become shorter. What is mapped of one that can is a SIGBUS in waiting.
pub fn sealed(file: &File) -> bool {
    // SAFETY: plain fcntl on a descriptor that lives through the call; files without seals answer -1.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    seals >= 0 && seals & libc::F_SEAL_SHRINK != 0
}

/// All memory of a guest that the front end shares with us.
#[derive(Debug, Default)]
pub struct GuestMemory {
    /// Ascending by guest address.
    regions: Vec<Arc<Region>>,
}

impl GuestMemory {
    /// A table of these regions.
    ///
    /// # Errors
    /// `Overlap`.
    pub fn new(mut regions: Vec<Arc<Region>>) -> Result<Arc<Self>, MemoryError> {
        regions.sort_by_key(|r| r.guest);
        for pair in regions.windows(2) {
            if pair[0].guest + pair[0].len > pair[1].guest {
                return Err(MemoryError::Overlap { a: pair[0].guest, b: pair[1].guest });
            }
        }
        Ok(Arc::new(Self { regions }))
    }

    /// The regions.
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// Host address and bytes that follow in the region that holds guest address `at`.
    fn find(&self, at: u64) -> Option<(*mut u8, u64)> {
        let r = match self.regions.as_slice() {
            [one] => one,
            many => &many[many.partition_point(|r| r.guest <= at).checked_sub(1)?],
        };
        let skip = at.checked_sub(r.guest).filter(|skip| *skip < r.len)?;
        // SAFETY: skip is inside the region.
        Some((unsafe { r.host.add(skip as usize) }, r.len - skip))
    }

    /// The guest address of a front end's address.
    pub fn guest_of_user(&self, user: u64) -> Option<u64> {
        self.regions.iter().find_map(|r| user.checked_sub(r.user).filter(|skip| *skip < r.len).map(|s| r.guest + s))
    }

    /// A table at a guest address, all in one region and aligned to `align` in our address space.
    ///
    /// # Errors
    /// `Outside`.
    pub fn view(self: &Arc<Self>, at: u64, len: usize, align: usize) -> Result<View, MemoryError> {
        match self.find(at) {
            Some((ptr, left)) if left >= len as u64 && (ptr as usize).is_multiple_of(align) => {
                Ok(View { ptr, len, _keep: Keep::Guest { _memory: self.clone() } })
            }
            _ => Err(MemoryError::Outside { at, len: len as u64 }),
        }
    }

    /// Copies into guest memory; for tests, the fuzzer and the front-end driver.
    ///
    /// # Errors
    /// `Outside`.
    pub fn write(self: &Arc<Self>, at: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let mut to = GuestBytes::new(self.clone());
        to.push(at, bytes.len() as u64)?;
        to.copy_from(0, bytes);
        Ok(())
    }

    /// Copies out of guest memory.
    ///
    /// # Errors
    /// `Outside`.
    pub fn read(self: &Arc<Self>, at: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        let mut from = GuestBytes::new(self.clone());
        from.push(at, bytes.len() as u64)?;
        from.copy_to(0, bytes);
        Ok(())
    }
}

enum Keep {
    Guest { _memory: Arc<GuestMemory> },
    Own { _mapping: Mapping },
}

/// A piece of shared memory that is read and written field by field: a ring's table, the in-flight region.
/// Offsets past its end are our bug and panic; everything the guest says is checked before it becomes an offset.
pub struct View {
    ptr: *mut u8,
    len: usize,
    _keep: Keep,
}

// SAFETY: as Region; the view keeps its memory mapped.
unsafe impl Send for View {}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "View({} bytes)", self.len)
    }
}

impl View {
    /// Maps `len` bytes of a file from its byte `offset`, a multiple of the page size.
    ///
    /// # Errors
    /// `Map` when the file is shorter or the system refuses.
    pub fn of_file(file: &File, offset: u64, len: usize) -> Result<Self, MemoryError> {
        let region = Region::map(file, offset, 0, 0, len as u64)?;
        Ok(Self { ptr: region.host, len, _keep: Keep::Own { _mapping: region._mapping } })
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn at<const N: usize>(&self, at: usize) -> *mut u8 {
        assert!(at.checked_add(N).is_some_and(|end| end <= self.len), "{N} bytes at {at} of {}", self.len);
        // SAFETY: just checked.
        unsafe { self.ptr.add(at) }
    }

    fn u16_at(&self, at: usize) -> &AtomicU16 {
        let ptr = self.at::<2>(at);
        assert!((ptr as usize).is_multiple_of(2));
        // SAFETY: in bounds, aligned, mapped as long as self; atomics may be shared with the guest.
        unsafe { AtomicU16::from_ptr(ptr.cast()) }
    }

    /// A little-endian u16, and everything the other side wrote before it.
    pub fn load_u16(&self, at: usize) -> u16 {
        u16::from_le(self.u16_at(at).load(Ordering::Acquire))
    }
    /// Sets a u16 after everything that we wrote before.
    pub fn store_u16(&self, at: usize, value: u16) {
        self.u16_at(at).store(value.to_le(), Ordering::Release);
    }
    /// Copies `N` bytes out; each is read once.
    pub fn read<const N: usize>(&self, at: usize) -> [u8; N] {
        // SAFETY: in bounds; a volatile read of bytes that others may change.
        unsafe { ptr::read_volatile(self.at::<N>(at).cast::<[u8; N]>()) }
    }
    /// Copies `N` bytes in.
    pub fn write<const N: usize>(&self, at: usize, bytes: [u8; N]) {
        // SAFETY: in bounds; a volatile write of bytes that others may look at.
        unsafe { ptr::write_volatile(self.at::<N>(at).cast::<[u8; N]>(), bytes) }
    }
    /// Keeps the compiler from moving writes over it: enough against the death of this process.
    pub fn compiler_fence() {
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
    }
    /// Orders everything before against everything after, both ways.
    pub fn full_fence() {
        fence(Ordering::SeqCst);
    }
}

/// A request's bytes in guest memory, scattered.
#[derive(Debug)]
pub struct GuestBytes {
    memory: Arc<GuestMemory>,
    /// Two stay in place: a header or a status beside data in one piece.
    segments: SmallVec<[Segment; 2]>,
    len: u64,
}

impl GuestBytes {
    /// Nothing yet.
    pub fn new(memory: Arc<GuestMemory>) -> Self {
        Self { memory, segments: SmallVec::new(), len: 0 }
    }

    /// Appends guest bytes; they may cross from one region into the next.
    ///
    /// # Errors
    /// `Outside`; nothing is appended.
    pub fn push(&mut self, at: u64, len: u64) -> Result<(), MemoryError> {
        let outside = MemoryError::Outside { at, len };
        let (mut here, mut left) = (at, len);
        let before = (self.segments.len(), self.segments.last().copied());
        while left > 0 {
            let Some((ptr, room)) = self.memory.find(here) else {
                self.segments.truncate(before.0);
                if let (Some(last), Some(was)) = (self.segments.last_mut(), before.1) {
                    *last = was;
                }
                return Err(outside);
            };
            let n = left.min(room);
            match self.segments.last_mut() {
                // SAFETY: one past the end of a mapped segment may be computed.
                Some(last) if unsafe { last.ptr.add(last.len) } == ptr => last.len += n as usize,
                _ => self.segments.push(Segment { ptr, len: n as usize }),
            }
            left -= n;
            // Cannot wrap: find() found `here` in a region, whose end is representable.
            here += n;
        }
        self.len += len;
        Ok(())
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }
    /// True without any byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// How many pieces.
    pub fn pieces(&self) -> usize {
        self.segments.len()
    }
    /// Whether every piece begins and ends at a multiple of 512 in memory, as O_DIRECT wants at least.
    pub fn is_aligned(&self) -> bool {
        self.segments.iter().all(|s| (s.ptr as usize | s.len).is_multiple_of(512))
    }

    fn each(&self, mut at: u64, mut len: u64, mut f: impl FnMut(*mut u8, usize)) {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len), "{len} bytes at {at} of {}", self.len);
        for s in &self.segments {
            if len == 0 {
                return;
            }
            let size = s.len as u64;
            if at >= size {
                at -= size;
                continue;
            }
            let n = len.min(size - at);
            // SAFETY: at < the segment's length.
            f(unsafe { s.ptr.add(at as usize) }, n as usize);
            len -= n;
            at = 0;
        }
    }

    /// Copies out `to.len()` bytes from `at`.
    ///
    /// # Panics
    /// Past the end.
    pub fn copy_to(&self, at: u64, to: &mut [u8]) {
        let mut done = 0;
        self.each(at, to.len() as u64, |ptr, n| {
            // SAFETY: each() yields mapped ranges of ours; `to` is exclusive and has room for all of them.
            unsafe { ptr::copy_nonoverlapping(ptr, to.as_mut_ptr().add(done), n) };
            done += n;
        });
    }

    /// Copies `from` in at `at`.
    ///
    /// # Panics
    /// Past the end.
    pub fn copy_from(&self, at: u64, from: &[u8]) {
        let mut done = 0;
        self.each(at, from.len() as u64, |ptr, n| {
            // SAFETY: as in copy_to, the other way round.
            unsafe { ptr::copy_nonoverlapping(from.as_ptr().add(done), ptr, n) };
            done += n;
        });
    }

    /// Takes the first `N` bytes off.
    pub fn take_front<const N: usize>(&mut self) -> Option<[u8; N]> {
        if self.len < N as u64 {
            return None;
        }
        let mut head = [0; N];
        self.copy_to(0, &mut head);
        let (mut gone, mut left) = (0, N);
        for s in &mut self.segments {
            let n = left.min(s.len);
            // SAFETY: n is at most the segment's length.
            s.ptr = unsafe { s.ptr.add(n) };
            s.len -= n;
            left -= n;
            gone += usize::from(s.len == 0);
            if left == 0 {
                break;
            }
        }
        self.segments.drain(..gone);
        self.len -= N as u64;
        Some(head)
    }

    /// Takes the last byte off: a block request's status.
    pub fn take_status(&mut self) -> Option<Status> {
        let last = self.segments.last_mut()?;
        last.len -= 1;
        // SAFETY: the last byte of a segment of at least one byte (push adds no empty ones).
        let ptr = unsafe { last.ptr.add(last.len) };
        if last.len == 0 {
            self.segments.pop();
        }
        self.len -= 1;
        Some(Status { ptr, _memory: self.memory.clone() })
    }

    /// All of it as a buffer for I/O, which keeps the memory mapped.
    pub fn into_buf(self) -> Buf {
        match self.segments.as_slice() {
            // SAFETY: the segment lies in a region that `memory` keeps mapped; no reference to it exists.
            [one] => unsafe { Buf::foreign_one(*one, self.memory) },
            // SAFETY: as above.
            _ => unsafe { Buf::foreign(self.segments.into_vec(), self.memory) },
        }
    }

    /// A part as a buffer for I/O.
    ///
    /// # Panics
    /// Past the end.
    pub fn part(&self, at: u64, len: u64) -> Buf {
        let mut segments = Vec::new();
        self.each(at, len, |ptr, len| segments.push(Segment { ptr, len }));
        // SAFETY: as in into_buf.
        unsafe { Buf::foreign(segments, self.memory.clone()) }
    }
}

/// Where a block request's status byte goes.
#[derive(Debug)]
pub struct Status {
    ptr: *mut u8,
    _memory: Arc<GuestMemory>,
}

impl Status {
    /// Writes it.
    pub fn set(self, status: u8) {
        // SAFETY: one byte of memory that we keep mapped.
        unsafe { ptr::write_volatile(self.ptr, status) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_regions() -> Arc<GuestMemory> {
        let a = Region::anonymous(0x1000, 0x2000).unwrap();
        let b = Region::anonymous(0x3000, 0x1000).unwrap();
        GuestMemory::new(vec![Arc::new(b), Arc::new(a)]).unwrap()
    }

    #[test]
    fn nothing_outside_is_reachable() {
        let m = two_regions();
        for (at, len) in
            [(0xfff, 1), (0xfff, 2), (0x4000, 1), (0x3fff, 2), (u64::MAX, 1), (0x1000, u64::MAX), (0, 0x5000)]
        {
            let mut bytes = GuestBytes::new(m.clone());
            assert!(bytes.push(at, len).is_err(), "{at:#x} {len}");
            assert_eq!((bytes.len(), bytes.pieces()), (0, 0));
        }
        assert!(m.view(0x2ff0, 32, 1).is_err(), "a table does not cross regions");
        assert!(m.view(0x2ff0, 16, 16).is_ok());
        assert!(m.view(0x2ff1, 8, 2).is_err());
        let overlapping = [Region::anonymous(0, 0x2000).unwrap(), Region::anonymous(0x1000, 0x1000).unwrap()];
        assert!(GuestMemory::new(overlapping.into_iter().map(Arc::new).collect()).is_err());
    }

    #[test]
    fn scattered_bytes_are_one_run() {
        let m = two_regions();
        let all: Vec<u8> = (0..0x3000u32).map(|i| (i % 251) as u8).collect();
        m.write(0x1000, &all).unwrap();
        let mut bytes = GuestBytes::new(m.clone());
        bytes.push(0x2ff8, 16).unwrap();
        bytes.push(0x1000, 5).unwrap();
        bytes.push(0x1005, 5).unwrap();
        assert!(bytes.push(0x1005, 1 << 40).is_err());
        assert_eq!((bytes.len(), bytes.pieces() <= 3), (26, true));
        let mut out = [0; 26];
        bytes.copy_to(0, &mut out);
        assert_eq!(out, [&all[0x1ff8..0x2008], &all[..10]].concat()[..]);
        assert_eq!(bytes.take_front::<18>().unwrap(), out[..18]);
        bytes.take_status().unwrap().set(0xAA);
        let mut rest = [0; 7];
        bytes.copy_to(0, &mut rest);
        assert_eq!(rest, out[18..25]);
        let mut byte = [0];
        m.read(0x1009, &mut byte).unwrap();
        assert_eq!(byte, [0xAA]);
        assert!(bytes.take_front::<8>().is_none());
        for _ in 0..7 {
            bytes.take_status().unwrap();
        }
        assert!(bytes.take_status().is_none() && bytes.is_empty());
    }

    #[test]
    fn a_short_file_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        assert!(Region::map(&file, 0, 0, 0, 8192).is_ok());
        assert!(Region::map(&file, 4096, 0, 0, 8192).is_err());
        assert!(Region::map(&file, 0, u64::MAX - 5, 0, 4096).is_err());
        assert!(Region::map(&file, u64::MAX, 0, 0, 4096).is_err());
        assert!(Region::map(&file, 0, 0, 0, 0).is_err());
    }
}
