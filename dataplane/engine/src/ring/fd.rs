//! File descriptors as operations hold them, and the few operations that need nothing else.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

use io_uring::{opcode, types};

use super::{Keep, MultiOp, OnDrop, Ring, current};

/// A descriptor that closes when its last user is gone, operations in flight included. Clones are the same one.
#[derive(Clone)]
pub struct Fd(Rc<Inner>);

struct Inner {
    fd: OwnedFd,
    /// Its place in a ring's file table.
    slot: Option<(Weak<Ring>, u32)>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some((ring, slot)) = self.slot.take()
            && let Some(ring) = ring.upgrade()
        {
            ring.unregister_file(slot);
        }
    }
}

impl std::fmt::Debug for Fd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Fd").field(&self.as_raw_fd()).finish()
    }
}

impl From<OwnedFd> for Fd {
    fn from(fd: OwnedFd) -> Self {
        Self(Rc::new(Inner { fd, slot: None }))
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.fd.as_raw_fd()
    }
}

impl Fd {
    /// Registered with this core's ring where a slot is free: each operation saves the kernel a look-up.
    pub(crate) fn registered(fd: OwnedFd, ring: &Rc<Ring>) -> Self {
        let slot = ring.register_file(fd.as_raw_fd()).map(|slot| (Rc::downgrade(ring), slot));
        Self(Rc::new(Inner { fd, slot }))
    }

    pub(crate) fn slot(&self) -> Option<types::Fixed> {
        self.0.slot.as_ref().map(|(_, slot)| types::Fixed(*slot))
    }
}

/// Waits until `fd` is ready for one of `events` (`libc::POLLIN`, ...); what it is ready for. Errors and hang-ups
/// (`POLLERR`, `POLLHUP`) always count. Dropping the future cancels the wait.
///
/// # Errors
/// ECANCELED when the core is stopping; EBADF and the like.
///
/// # Panics
/// Outside a core.
pub async fn poll(fd: &Fd, events: i16) -> io::Result<i16> {
    let entry = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), events as u16 as u32).build();
    // SAFETY: the entry has no address; the slot keeps the fd.
    let op = unsafe { current().submit(entry, Keep::Nothing, Some(fd.clone()), OnDrop::Cancel) };
    op.await.0.result().map(|n| n as i16)
}

/// A standing poll: one submission for any number of events.
pub struct Polls {
    fd: Fd,
    events: i16,
    op: Option<MultiOp>,
}

impl std::fmt::Debug for Polls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Polls").field("fd", &self.fd).finish_non_exhaustive()
    }
}

/// Watches `fd` for `events` until dropped. It tells of each time that something happened, not of a state: an eventfd
/// that is watched like this need never be read. Belongs to the core that polls it first.
pub fn polls(fd: Fd, events: i16) -> Polls {
    Polls { fd, events, op: None }
}

impl Polls {
    /// Resolves when something happened since the last answer; several times may become one, and one may be spurious.
    ///
    /// # Errors
    /// ECANCELED when the core is stopping; EBADF and the like.
    ///
    /// # Panics
    /// Outside a core.
    pub async fn next(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`next`](Self::next), for a task that waits for other things, too.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    ///
    /// # Panics
    /// Outside a core.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut happened = false;
        loop {
            let (fd, events) = (&self.fd, self.events);
            let op = self.op.get_or_insert_with(|| {
                let entry = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), events as u16 as u32);
                // SAFETY: the entry has no address; the slot keeps the fd.
                unsafe { current().submit_multi(entry.multi(true).build(), Keep::Nothing, Some(fd.clone())) }
            });
            match op.poll_next(cx) {
                Poll::Ready(Some(cqe)) => match cqe.result() {
                    Ok(_) => happened = true,
                    // The ring ended it, so many answers were unread: it is begun anew.
                    Err(e) if e.raw_os_error() == Some(libc::ECANCELED) && !current().is_closing() => happened = true,
                    Err(e) => return Poll::Ready(Err(e)),
                },
                // The kernel ended it (a full completion queue): begun anew.
                Poll::Ready(None) => self.op = None,
                Poll::Pending if happened => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// Waits for and takes an eventfd's counter, as a virtqueue's kick or any other doorbell. The eventfd may be blocking or
/// not. Dropping the future cancels the read; a count taken meanwhile is lost, so keep one reader and do not drop it
/// while its counts matter.
///
/// # Errors
/// ECANCELED when the core is stopping; EBADF and the like.
///
/// # Panics
/// Outside a core.
pub async fn read_eventfd(fd: &Fd) -> io::Result<u64> {
    loop {
        let mut word = Box::new(0u64);
        let ptr = (&raw mut *word).cast();
        let entry = opcode::Read::new(types::Fd(fd.as_raw_fd()), ptr, 8).build();
        // SAFETY: the slot keeps the box, whose memory does not move with it, and the fd.
        let op = unsafe { current().submit(entry, Keep::Other(word), Some(fd.clone()), OnDrop::Cancel) };
        let (cqe, keep) = op.await;
        match cqe.result() {
            Ok(8) => {
                let Keep::Other(word) = keep else { unreachable!("the word comes back") };
                return Ok(*word.downcast::<u64>().expect("what was given"));
            }
            Ok(n) => return Err(io::Error::other(format!("{n} bytes from an eventfd"))),
            // A non-blocking one without a count.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                poll(fd, libc::POLLIN).await?;
            }
            Err(e) => return Err(e),
        }
    }
}
