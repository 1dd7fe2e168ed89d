//! A file or block device on this core's ring, past the page cache.
//!
//! - Opened with O_DIRECT. Where the file system has none (tmpfs) it is buffered and says so once in the log; flushes are
//!   then what makes data durable, as always.
//! - An owned buffer, and foreign memory aligned as the device asks, is read and written in place: one SQE, no copy, no
//!   allocation. Segments inside one piece of registered memory use the registration. Whatever O_DIRECT refuses (odd
//!   addresses, or 512-byte requests on a 4 KiB device) goes through a bounce buffer; a write smaller than the device's
//!   block reads the block first, serialised with other bounced writes of this disk.
//! - Short transfers are carried on; an end of file inside the disk is an error.
//! - `flush` is fdatasync. `fua` is RWF_DSYNC.
//! - The fd and the buffer belong to the operation until its completion; the disk may be dropped at any time.
//!
//! A [`UringDisk`] belongs to the core that opened it. Several cores open the same file each for itself.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use io_uring::{opcode, squeue, types};

use super::{Dir, Disk, DiskError, Done};
use crate::buf::{ALIGN, Buf, Segment};
use crate::error::EngineError;
use crate::landing::Landings;
use crate::ring::{self, Cqe, Fd, Keep, OnDrop, Ring};
use crate::sync;

/// What one READ or WRITE may carry (MAX_RW_COUNT, less a page).
const TRANSFER_MAX: usize = 1 << 30;
/// What one READV or WRITEV may carry.
const SEGMENTS_MAX: usize = 1024;

/// How to open a disk.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Makes the file if it is not there, and grows it to `size` (never shrinks; sparse, or with space allocated when
    /// `allocate`). For block devices the size must fit.
    pub create: bool,
    /// The size in bytes, a multiple of 4096; None takes the file's own.
    pub size: Option<u64>,
    /// Allocates all space at creation, so that later writes cannot meet ENOSPC.
    pub allocate: bool,
    /// Refuses writes.
    pub read_only: bool,
    /// Takes an exclusive lock (flock): a second opener with `lock`, in any process, is refused.
    pub lock: bool,
    /// Through the page cache, for comparisons.
    pub buffered: bool,
}

struct Inner {
    fd: Fd,
    ring: Rc<Ring>,
    path: PathBuf,
    size: u64,
    /// What the device asks of addresses, and of offsets and lengths, in bytes.
    mem_align: usize,
    offset_align: u64,
    /// What any device takes here: the file system's block where it is larger.
    bounce_align: u64,
    /// Fallocate said no to punching or zeroing: write zeros instead.
    no_punch: Cell<bool>,
    no_zero_range: Cell<bool>,
    /// Bounced writes that read first go one by one.
    merging: sync::Mutex<()>,
    direct: bool,
}

/// See the module.
#[derive(Clone)]
pub struct UringDisk(Rc<Inner>);

impl std::fmt::Debug for UringDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UringDisk")
            .field("path", &self.0.path)
            .field("size", &self.0.size)
            .field("direct", &self.0.direct)
            .finish_non_exhaustive()
    }
}

impl UringDisk {
    /// Opens `path` on this core. The call blocks shortly; open at start, or reopen rarely.
    ///
    /// # Errors
    /// What cannot be a disk, is locked by another, or cannot be opened, in words that name it.
    ///
    /// # Panics
    /// Outside a core.
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self, EngineError> {
        let path = path.as_ref();
        let ring = ring::current();
        let opened = Opened::new(path, options)?;
        let fd = Fd::registered(opened.fd, &ring);
        Ok(Self(Rc::new(Inner {
            fd,
            ring,
            path: path.to_owned(),
            size: opened.size,
            mem_align: opened.mem_align,
            offset_align: opened.offset_align,
            bounce_align: if opened.direct { opened.offset_align } else { 1 },
            no_punch: Cell::new(false),
            no_zero_range: Cell::new(false),
            merging: sync::Mutex::new(()),
            direct: opened.direct,
        })))
    }

    /// True when it goes past the page cache.
    pub fn is_direct(&self) -> bool {
        self.0.direct
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    fn check(&self, op: &'static str, at: u64, len: u64) -> Result<(), DiskError> {
        let aligned = (at | len).is_multiple_of(512);
        if !aligned || at.checked_add(len).is_none_or(|end| end > self.0.size) {
            return Err(DiskError::Bounds { op, at, len, size: self.0.size });
        }
        Ok(())
    }

    fn error(&self, op: &'static str, at: u64, len: u64, errno: i32) -> DiskError {
        match errno {
            libc::ENOSPC | libc::EDQUOT => DiskError::NoSpace { at, len },
            libc::ECANCELED => DiskError::Closed,
            _ => DiskError::Io { op, at, len, why: io::Error::from_raw_os_error(errno).to_string() },
        }
    }

    /// True when the device takes this memory and range as they are.
    fn fits(&self, at: u64, buf: &Buf) -> bool {
        let (mem, offset) = (self.0.mem_align, self.0.offset_align);
        if mem <= 1 && offset <= 1 {
            return true;
        }
        let range = (at | buf.len() as u64).is_multiple_of(offset);
        let memory = |s: &Segment| (s.ptr as usize).is_multiple_of(mem) && (s.len as u64).is_multiple_of(offset);
        range && buf.segments().as_slice().iter().all(memory)
    }

    /// One SQE for what is left of a transfer from `done`, and what must live as long besides the buffer.
    fn entry(&self, dir: Dir, at: u64, buf: &Buf, done: usize, fua: bool) -> (squeue::Entry, Option<Box<[Segment]>>) {
        let at = at + done as u64;
        let all = buf.segments();
        let all = all.as_slice();
        if let [one] = all {
            // SAFETY: done is below the segment's length.
            let ptr = unsafe { one.ptr.add(done) };
            let len = (one.len - done).min(TRANSFER_MAX);
            return (self.single(dir, at, ptr, len as u32, fua), None);
        }
        if done == 0 && all.len() <= SEGMENTS_MAX {
            // The buffer's own list lies on the heap and lives with it in the slot.
            return (self.vectored(dir, at, all, fua), None);
        }
        let mut skip = done;
        let mut rest = Vec::new();
        for s in all {
            if rest.len() == SEGMENTS_MAX {
                break;
            }
            if skip >= s.len {
                skip -= s.len;
                continue;
            }
            // SAFETY: skip is below the segment's length.
            rest.push(Segment { ptr: unsafe { s.ptr.add(skip) }, len: s.len - skip });
            skip = 0;
        }
        let rest = rest.into_boxed_slice();
        (self.vectored(dir, at, &rest, fua), Some(rest))
    }

    fn single(&self, dir: Dir, at: u64, ptr: *mut u8, len: u32, fua: bool) -> squeue::Entry {
        let flags = if fua { libc::RWF_DSYNC } else { 0 };
        let region = self.0.ring.region_of(ptr, len as usize);
        macro_rules! build {
            ($fd:expr) => {
                match (dir, region) {
                    (Dir::Read, None) => opcode::Read::new($fd, ptr, len).offset(at).build(),
                    (Dir::Write, None) => opcode::Write::new($fd, ptr, len).offset(at).rw_flags(flags).build(),
                    (Dir::Read, Some(n)) => opcode::ReadFixed::new($fd, ptr, len, n).offset(at).build(),
                    (Dir::Write, Some(n)) => {
                        opcode::WriteFixed::new($fd, ptr, len, n).offset(at).rw_flags(flags).build()
                    }
                }
            };
        }
        match self.0.fd.slot() {
            Some(fixed) => build!(fixed),
            None => build!(types::Fd(self.0.fd.as_raw_fd())),
        }
    }

    fn vectored(&self, dir: Dir, at: u64, segments: &[Segment], fua: bool) -> squeue::Entry {
        let flags = if fua { libc::RWF_DSYNC } else { 0 };
        // Segment is laid out as iovec.
        let (iov, n) = (segments.as_ptr().cast::<libc::iovec>(), segments.len() as u32);
        let region = if self.0.ring.fixed_vectors() { self.0.ring.region_of_all(segments) } else { None };
        macro_rules! build {
            ($fd:expr) => {
                match (dir, region) {
                    (Dir::Read, None) => opcode::Readv::new($fd, iov, n).offset(at).build(),
                    (Dir::Write, None) => opcode::Writev::new($fd, iov, n).offset(at).rw_flags(flags).build(),
                    (Dir::Read, Some(r)) => opcode::ReadvFixed::new($fd, iov, n, r).offset(at).build(),
                    (Dir::Write, Some(r)) => {
                        opcode::WritevFixed::new($fd, iov, n, r).offset(at).rw_flags(flags).build()
                    }
                }
            };
        }
        match self.0.fd.slot() {
            Some(fixed) => build!(fixed),
            None => build!(types::Fd(self.0.fd.as_raw_fd())),
        }
    }

    /// The whole of an accepted transfer.
    async fn transfer(&self, dir: Dir, at: u64, mut buf: Buf, fua: bool) -> (Result<(), Failed>, Buf) {
        let len = buf.len();
        let mut done = 0;
        while done < len {
            let (entry, rest) = self.entry(dir, at, &buf, done, fua);
            let (cqe, back) = self.submit(entry, Carried { buf, _rest: rest }).await;
            buf = back;
            match -cqe.res {
                0 => return (Err(Failed::EndsAt(at + done as u64)), buf),
                negative if negative < 0 => done += cqe.res as usize,
                libc::EINTR | libc::EAGAIN => {}
                errno => return (Err(Failed::Errno(errno)), buf),
            }
        }
        (Ok(()), buf)
    }

    async fn submit(&self, entry: squeue::Entry, carried: Carried) -> (Cqe, Buf) {
        let keep = match carried._rest {
            None => Keep::Buf(carried.buf),
            Some(_) => Keep::Other(Box::new(carried)),
        };
        // SAFETY: the slot keeps the buffer and the segment list, neither of which moves its memory, and the fd.
        let op = unsafe { self.0.ring.submit(entry, keep, Some(self.0.fd.clone()), OnDrop::Leave) };
        let (cqe, keep) = op.await;
        let buf = match keep {
            Keep::Buf(buf) => buf,
            Keep::Other(any) => any.downcast::<Carried>().expect("what was given").buf,
            _ => unreachable!("the buffer comes back"),
        };
        (cqe, buf)
    }

    /// A transfer that O_DIRECT would refuse, through memory that it takes.
    async fn bounced(&self, dir: Dir, at: u64, mut buf: Buf, fua: bool) -> (Result<(), Failed>, Buf) {
        let align = self.0.bounce_align;
        let len = buf.len();
        let (start, end) = (at - at % align, (at + len as u64).next_multiple_of(align));
        let inside = (at - start) as usize;
        let bounce = Buf::zeroed((end - start) as usize);
        if dir == Dir::Read {
            let (result, bounce) = self.transfer(Dir::Read, start, bounce, false).await;
            if result.is_ok() {
                buf.copy_from(0, &bounce.bytes()[inside..inside + len]);
            }
            return (result, buf);
        }
        let merged = bounce.len() != len;
        // Two guests' sectors in one block must not undo each other.
        let _one_by_one = if merged { Some(self.0.merging.lock().await) } else { None };
        let mut bounce = bounce;
        if merged {
            let (result, back) = self.transfer(Dir::Read, start, bounce, false).await;
            if result.is_err() {
                return (result, buf);
            }
            bounce = back;
        }
        buf.copy_to(0, &mut bounce.bytes_mut()[inside..inside + len]);
        let (result, _) = self.transfer(Dir::Write, start, bounce, fua).await;
        (result, buf)
    }

    async fn run(&self, dir: Dir, at: u64, buf: Buf, fua: bool) -> Done {
        if let Err(e) = self.check(dir.name(), at, buf.len() as u64) {
            return (Err(e), buf);
        }
        if buf.is_empty() {
            return (Ok(()), buf);
        }
        let len = buf.len() as u64;
        let (mut result, mut buf) = match self.fits(at, &buf) {
            true => self.transfer(dir, at, buf, fua).await,
            false => (Err(Failed::Errno(libc::EINVAL)), buf),
        };
        // What the device refuses, by its own word or by what it said when it was opened.
        if result == Err(Failed::Errno(libc::EINVAL)) && self.0.direct {
            (result, buf) = Box::pin(self.bounced(dir, at, buf, fua)).await;
        }
        let result = result.map_err(|failed| match failed {
            Failed::Errno(errno) => self.error(dir.name(), at, len, errno),
            Failed::EndsAt(end) => {
                let why = format!("{} ends early, at {end}; was it cut short?", self.0.path.display());
                DiskError::Io { op: dir.name(), at, len, why }
            }
        });
        (result, buf)
    }

    async fn plain(&self, entry: squeue::Entry) -> Cqe {
        // SAFETY: the entry has no address; the slot keeps the fd.
        let op = unsafe { self.0.ring.submit(entry, Keep::Nothing, Some(self.0.fd.clone()), OnDrop::Leave) };
        op.await.0
    }

    /// Fallocate; `Ok(false)` where the file system or device has no such mode.
    async fn fallocate(&self, op: &'static str, mode: i32, at: u64, len: u64) -> Result<bool, DiskError> {
        loop {
            let entry = opcode::Fallocate::new(types::Fd(self.0.fd.as_raw_fd()), len).offset(at).mode(mode).build();
            match self.plain(entry).await.result() {
                Ok(_) => return Ok(true),
                Err(e) => match e.raw_os_error() {
                    Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV) => return Ok(false),
                    Some(libc::EINTR | libc::EAGAIN) => {}
                    errno => return Err(self.error(op, at, len, errno.unwrap_or(libc::EIO))),
                },
            }
        }
    }

    /// The parts of a range that are whole blocks of the device, and the ragged ends.
    fn whole_blocks(&self, at: u64, len: u64) -> Option<(u64, u64)> {
        let align = self.0.offset_align.max(512);
        let (start, end) = (at.next_multiple_of(align), (at + len) / align * align);
        (start < end).then(|| (start, end - start))
    }

    async fn write_zero_bytes(&self, at: u64, len: u64) -> Result<(), DiskError> {
        const PIECE: u64 = 1 << 20;
        let mut zeros = Buf::zeroed(PIECE.min(len) as usize);
        let mut done = 0;
        while done < len {
            let n = (len - done).min(PIECE);
            zeros.set_len(n as usize);
            let (result, back) = self.run(Dir::Write, at + done, zeros, false).await;
            zeros = back;
            result?;
            done += n;
        }
        Ok(())
    }
}

/// Why a transfer stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failed {
    Errno(i32),
    EndsAt(u64),
}

struct Carried {
    buf: Buf,
    _rest: Option<Box<[Segment]>>,
}

// Segment lists are handed to the kernel as iovecs.
const _: () =
    assert!(size_of::<Segment>() == size_of::<libc::iovec>() && align_of::<Segment>() == align_of::<libc::iovec>());

impl Disk for UringDisk {
    fn size(&self) -> u64 {
        self.0.size
    }

    async fn read(&self, at: u64, buf: Buf) -> Done {
        self.run(Dir::Read, at, buf, false).await
    }

    async fn write(&self, at: u64, buf: Buf, fua: bool) -> Done {
        self.run(Dir::Write, at, buf, fua).await
    }

    fn begin(&self, dir: Dir, at: u64, buf: Buf, to: &Landings, token: u64) -> Result<(), Buf> {
        let pieces = buf.segments().as_slice().len();
        let simple = pieces <= SEGMENTS_MAX && buf.len() <= TRANSFER_MAX && !buf.is_empty();
        if !simple || !self.fits(at, &buf) || self.check(dir.name(), at, buf.len() as u64).is_err() {
            return Err(buf);
        }
        let (entry, _) = self.entry(dir, at, &buf, 0, false);
        // SAFETY: the slot keeps the buffer, whose segments and their list (of several) do not move with it, and the fd.
        unsafe { self.0.ring.submit_landing(entry, buf, self.0.fd.clone(), to, token) };
        Ok(())
    }

    async fn flush(&self) -> Result<(), DiskError> {
        let entry = match self.0.fd.slot() {
            Some(fixed) => opcode::Fsync::new(fixed).flags(types::FsyncFlags::DATASYNC).build(),
            None => {
                let fd = types::Fd(self.0.fd.as_raw_fd());
                opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build()
            }
        };
        match self.plain(entry).await.result() {
            Ok(_) => Ok(()),
            Err(e) => Err(self.error("flush", 0, 0, e.raw_os_error().unwrap_or(libc::EIO))),
        }
    }

    async fn discard(&self, at: u64, len: u64) -> Result<(), DiskError> {
        self.check("discard", at, len)?;
        let Some((at, len)) = self.whole_blocks(at, len) else { return Ok(()) };
        if self.0.no_punch.get() {
            return Ok(());
        }
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        if !self.fallocate("discard", mode, at, len).await? {
            // Nothing to give back here; "as before" is allowed.
            self.0.no_punch.set(true);
        }
        Ok(())
    }

    async fn write_zeroes(&self, at: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        self.check("write_zeroes", at, len)?;
        if len == 0 {
            return Ok(());
        }
        let Some((start, whole)) = self.whole_blocks(at, len) else { return self.write_zero_bytes(at, len).await };
        let mut done = false;
        if unmap && !self.0.no_punch.get() {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            done = self.fallocate("write_zeroes", mode, start, whole).await?;
            self.0.no_punch.set(!done);
        }
        if !done && !self.0.no_zero_range.get() {
            let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
            done = self.fallocate("write_zeroes", mode, start, whole).await?;
            self.0.no_zero_range.set(!done);
        }
        if !done {
            return self.write_zero_bytes(at, len).await;
        }
        if start > at {
            self.write_zero_bytes(at, start - at).await?;
        }
        let (end, whole_end) = (at + len, start + whole);
        if end > whole_end { self.write_zero_bytes(whole_end, end - whole_end).await } else { Ok(()) }
    }
}

/// An opened and measured file.
struct Opened {
    fd: OwnedFd,
    size: u64,
    mem_align: usize,
    offset_align: u64,
    direct: bool,
}

impl Opened {
    fn new(path: &Path, options: &OpenOptions) -> Result<Self, EngineError> {
        let shown = path.display().to_string();
        let not = |why: String| EngineError::NotADisk { what: shown.clone(), why };
        if options.size.is_some_and(|s| !s.is_multiple_of(ALIGN as u64) || s == 0) {
            return Err(not(format!("its size must be a multiple of {ALIGN} bytes above 0")));
        }
        let (file, direct) = open_direct(path, options).map_err(EngineError::io(format!("open {shown}")))?;
        let meta = file.metadata().map_err(EngineError::io(format!("stat {shown}")))?;
        let kind = meta.file_type();
        let block_device = kind.is_block_device();
        if !block_device && !kind.is_file() {
            return Err(not("it is neither a file nor a block device".into()));
        }
        let fd = OwnedFd::from(file);
        if options.lock {
            // SAFETY: flock on our fd.
            if unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
                let source = io::Error::last_os_error();
                let action = format!("lock {shown} (is another karri using it?)");
                return Err(EngineError::Io { action, source });
            }
        }
        let mut size = if block_device {
            device_size(fd.as_raw_fd()).map_err(EngineError::io(format!("ask {shown} for its size")))?
        } else {
            meta.len()
        };
        if let Some(wanted) = options.size {
            if wanted > size && block_device {
                return Err(not(format!("the device has {size} bytes, {wanted} are asked for")));
            }
            if wanted > size && !options.create {
                return Err(not(format!("it has {size} bytes, {wanted} are expected; was it cut short?")));
            }
            if wanted > size {
                // SAFETY: ftruncate on our fd.
                if unsafe { libc::ftruncate(fd.as_raw_fd(), wanted as libc::off_t) } != 0 {
                    let action = format!("grow {shown} to {wanted} bytes");
                    return Err(EngineError::Io { action, source: io::Error::last_os_error() });
                }
            }
            if options.create && options.allocate && !block_device {
                // SAFETY: fallocate on our fd.
                if unsafe { libc::fallocate(fd.as_raw_fd(), 0, 0, wanted as libc::off_t) } != 0 {
                    let source = io::Error::last_os_error();
                    if source.raw_os_error() != Some(libc::EOPNOTSUPP) {
                        let action = format!("allocate {wanted} bytes for {shown}");
                        return Err(EngineError::Io { action, source });
                    }
                }
            }
            size = wanted;
        }
        size -= size % ALIGN as u64;
        if size == 0 {
            return Err(not("it is empty; give a size and let it be created".into()));
        }
        let (mem_align, offset_align) = if direct { alignment(fd.as_raw_fd()) } else { (1, 1) };
        Ok(Self { fd, size, mem_align, offset_align, direct })
    }
}

/// Opens past the page cache, or through it where that is refused; which of the two.
fn open_direct(path: &Path, options: &OpenOptions) -> io::Result<(std::fs::File, bool)> {
    let mut open = std::fs::OpenOptions::new();
    open.read(true).write(!options.read_only).create(options.create && !options.read_only).mode(0o600);
    if options.buffered {
        return open.open(path).map(|f| (f, false));
    }
    match open.custom_flags(libc::O_DIRECT).open(path) {
        Ok(file) => Ok((file, true)),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            tracing::warn!(
                path = %path.display(),
                "this file system has no O_DIRECT: I/O goes through the page cache (correct, slower; use ext4 or XFS)"
            );
            open.custom_flags(0).open(path).map(|f| (f, false))
        }
        Err(e) => Err(e),
    }
}

fn device_size(fd: RawFd) -> io::Result<u64> {
    const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
    let mut size = 0u64;
    // SAFETY: BLKGETSIZE64 writes one u64.
    if unsafe { libc::ioctl(fd, BLKGETSIZE64 as _, &raw mut size) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(size)
}

/// What direct I/O asks of memory addresses, and of offsets and lengths: statx where the kernel tells (Linux 6.1), else
/// a page of either.
fn alignment(fd: RawFd) -> (usize, u64) {
    const STATX_DIOALIGN: libc::c_uint = 0x2000;
    // SAFETY: an empty path with AT_EMPTY_PATH names the fd; a zeroed statx is valid and filled by the call.
    let stat = unsafe {
        let mut stat: libc::statx = std::mem::zeroed();
        let done = libc::statx(fd, c"".as_ptr(), libc::AT_EMPTY_PATH, STATX_DIOALIGN, &raw mut stat);
        if done != 0 || stat.stx_mask & STATX_DIOALIGN == 0 {
            return (ALIGN, ALIGN as u64);
        }
        stat
    };
    match (stat.stx_dio_mem_align, stat.stx_dio_offset_align) {
        (0, _) | (_, 0) => (ALIGN, ALIGN as u64),
        (mem, offset) => (mem as usize, u64::from(offset)),
    }
}
