//! Stream sockets on this core's ring: listeners with SO_REUSEPORT, accepted by one multishot operation; streams that
//! receive into the core's lent buffers and send from the caller's slices.
//!
//! Costs. Receiving: one multishot operation per connection, so a small request costs no SQE and no system call of its
//! own, and an idle connection holds no buffer; the bytes are copied once, from the lent buffer to the reader's. A
//! connection whose buffers come full (an upload) leaves the multishot and receives straight into the reader's memory,
//! one system call each, until it runs dry. Sending: one non-blocking sendmsg straight from the caller's slices, so
//! that head and body leave together (TCP_NODELAY is set) and no body is copied by us; when the socket is full, one
//! POLL_ADD.
//!
//! Bounds. A connection that does not read stops receiving after [`ring::MULTI_MAX`](crate::ring) or so buffers (the
//! multishot is cancelled and begins again when they are consumed); then TCP's own window holds the sender. A core lends
//! at most [`RingOptions::recv_buffers`](crate::ring::RingOptions); when none is left connections wait for one.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use io_uring::{opcode, squeue, types};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::error::EngineError;
use crate::ring::bufs::{GROUP, Lent};
use crate::ring::{self, Fd, Keep, MultiOp, OnDrop, Op, Ring};

/// Connections that the kernel holds for us to accept.
const BACKLOG: i32 = 1024;

/// A listening socket of one core. Several cores listen on one address: the kernel spreads connections over them.
pub struct Listener {
    fd: Fd,
    ring: Rc<Ring>,
    accepting: Option<MultiOp>,
    tcp: bool,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Listener").field(&self.fd).finish()
    }
}

impl Listener {
    /// Listens on `address` with SO_REUSEPORT; port 0 takes a free one ([`local_addr`](Self::local_addr) tells).
    ///
    /// # Errors
    /// The address is in use by another, not ours, or not allowed.
    ///
    /// # Panics
    /// Outside a core.
    pub fn bind(address: SocketAddr) -> Result<Self, EngineError> {
        let make = || {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(socket)
        };
        let socket = make().map_err(EngineError::io(format!("listen on {address} (is another program using it?)")))?;
        Ok(Self::from_fd(socket.into(), true))
    }

    /// A listening socket made elsewhere (a Unix socket, one handed over by systemd).
    ///
    /// # Panics
    /// Outside a core.
    pub fn from_fd(fd: OwnedFd, tcp: bool) -> Self {
        Self { fd: fd.into(), ring: ring::current(), accepting: None, tcp }
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let address = socket2::SockRef::from(&self.fd).local_addr()?;
        address.as_socket().ok_or_else(|| io::Error::other("not an internet address"))
    }

    /// The next connection, with TCP_NODELAY.
    ///
    /// # Errors
    /// Passing ones (EMFILE, ECONNABORTED, ENOBUFS): wait a little and call again. ECANCELED: the core is stopping.
    pub async fn accept(&mut self) -> io::Result<Stream> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// [`accept`](Self::accept) for hand-written futures.
    ///
    /// # Errors
    /// As there.
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        loop {
            let accepting = self.accepting.get_or_insert_with(|| {
                let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
                let entry = opcode::AcceptMulti::new(types::Fd(self.fd.as_raw_fd())).flags(flags).build();
                // SAFETY: the entry has no address; the slot keeps the fd.
                unsafe { self.ring.submit_multi(entry, Keep::ResultFd, Some(self.fd.clone())) }
            });
            let Some(cqe) = ready!(accepting.poll_next(cx)) else {
                self.accepting = None;
                continue;
            };
            let fd = cqe.result()?;
            // SAFETY: the kernel gave us this fd, and only us.
            let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
            if self.tcp {
                socket2::SockRef::from(&fd).set_tcp_nodelay(true)?;
            }
            return Poll::Ready(Ok(Stream::new(fd, self.ring.clone())));
        }
    }
}

/// A connected stream socket. Reading and writing may go on at once; each by one task at a time.
pub struct Stream {
    fd: Fd,
    ring: Rc<Ring>,
    receiving: Option<MultiOp>,
    /// Received and not yet read.
    lent: Option<Lent>,
    /// Buffers come full: receive straight into the reader's memory.
    bulk: bool,
    ended: bool,
    writable: Option<Op>,
    moved: Moved,
}

/// Bytes that went through a stream.
#[derive(Debug, Clone, Default)]
pub struct Moved(Rc<MovedCells>);

#[derive(Debug, Default)]
struct MovedCells {
    received: Cell<u64>,
    sent: Cell<u64>,
}

impl Moved {
    /// Bytes handed to the reader.
    pub fn received(&self) -> u64 {
        self.0.received.get()
    }
    /// Bytes taken by the kernel.
    pub fn sent(&self) -> u64 {
        self.0.sent.get()
    }
}

/// What the other end of a stream has taken.
#[derive(Debug)]
pub struct Taken {
    fd: Fd,
    moved: Moved,
}

impl Taken {
    /// Bytes that were sent and that its kernel has acknowledged: what waits in ours is not counted. A system call.
    pub fn bytes(&self) -> u64 {
        let mut queued: libc::c_int = 0;
        // SAFETY: TIOCOUTQ writes an int, and the socket is open as long as `self` is.
        let told = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) } == 0;
        let queued = if told { u64::try_from(queued).unwrap_or(0) } else { 0 };
        self.moved.sent().saturating_sub(queued)
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Stream").field(&self.fd).finish()
    }
}

fn is_would_block(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::WouldBlock
}

impl Stream {
    fn new(fd: OwnedFd, ring: Rc<Ring>) -> Self {
        Self {
            fd: fd.into(),
            ring,
            receiving: None,
            lent: None,
            bulk: false,
            ended: false,
            writable: None,
            moved: Moved::default(),
        }
    }

    /// A connected stream socket made elsewhere.
    ///
    /// # Panics
    /// Outside a core.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self::new(fd, ring::current())
    }

    /// Connects to `address`, with TCP_NODELAY. Dropping the future gives up.
    ///
    /// # Errors
    /// Refused, unreachable, and the like. There is no time limit but the kernel's: wrap it in [`crate::timeout`].
    ///
    /// # Panics
    /// Outside a core.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let ring = ring::current();
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        let fd = Fd::from(OwnedFd::from(socket));
        let address = Box::new(SockAddr::from(address));
        let entry = opcode::Connect::new(types::Fd(fd.as_raw_fd()), address.as_ptr().cast(), address.len()).build();
        // SAFETY: the slot keeps the boxed address and the fd.
        let op = unsafe { ring.submit(entry, Keep::Other(address), Some(fd.clone()), OnDrop::Cancel) };
        op.await.0.result()?;
        let fd = std::os::fd::AsFd::as_fd(&fd).try_clone_to_owned()?;
        Ok(Self::new(fd, ring))
    }

    /// The other end's address.
    ///
    /// # Errors
    /// The system's, or it is no internet address.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        let address = socket2::SockRef::from(&self.fd).peer_addr()?;
        address.as_socket().ok_or_else(|| io::Error::other("not an internet address"))
    }

    /// The socket, for options.
    pub fn fd(&self) -> &Fd {
        &self.fd
    }

    /// What the other end has taken; keeps the socket open.
    pub fn taken(&self) -> Taken {
        Taken { fd: self.fd.clone(), moved: self.moved() }
    }

    /// Bytes that the kernel has taken.
    pub(crate) fn sent(&self) -> u64 {
        self.moved.sent()
    }

    /// Counters that outlive the stream.
    pub fn moved(&self) -> Moved {
        self.moved.clone()
    }

    /// Reads what is there into `to`, at least one byte unless it is empty; 0 at the other end's end.
    ///
    /// # Errors
    /// ECONNRESET and the like; ECANCELED when the core is stopping.
    pub async fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_fill(cx, to)).await
    }

    /// Fills `to`.
    ///
    /// # Errors
    /// As [`read`](Self::read), and `UnexpectedEof`.
    pub async fn read_exact(&mut self, to: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < to.len() {
            match self.read(&mut to[done..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => done += n,
            }
        }
        Ok(())
    }

    /// Sends all of `from`.
    ///
    /// # Errors
    /// EPIPE, ECONNRESET and the like.
    pub async fn write_all(&mut self, from: &[u8]) -> io::Result<()> {
        self.write_all_vectored(&mut [IoSlice::new(from)]).await
    }

    /// Sends all slices, in as few segments as the kernel can.
    ///
    /// # Errors
    /// As [`write_all`](Self::write_all).
    pub async fn write_all_vectored(&mut self, mut from: &mut [IoSlice<'_>]) -> io::Result<()> {
        IoSlice::advance_slices(&mut from, 0);
        while !from.is_empty() {
            let n = poll_fn(|cx| self.poll_write_vectored(cx, from)).await?;
            IoSlice::advance_slices(&mut from, n);
        }
        Ok(())
    }

    /// Ends our direction; the other may still send.
    ///
    /// # Errors
    /// The system's.
    pub fn shutdown(&self) -> io::Result<()> {
        match socket2::SockRef::from(&self.fd).shutdown(std::net::Shutdown::Write) {
            Err(e) if e.kind() != io::ErrorKind::NotConnected => Err(e),
            _ => Ok(()),
        }
    }

    /// Reads into `to` what is there; how many bytes, 0 at the end. Those bytes are initialised.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn poll_read(&mut self, cx: &mut Context<'_>, to: &mut [MaybeUninit<u8>]) -> Poll<io::Result<usize>> {
        if to.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            if let Some(lent) = &mut self.lent {
                let bytes = lent.bytes();
                let n = bytes.len().min(to.len());
                to[..n].write_copy_of_slice(&bytes[..n]);
                if lent.advance(n) {
                    self.lent = None;
                }
                self.moved.0.received.set(self.moved.0.received.get() + n as u64);
                return Poll::Ready(Ok(n));
            }
            if self.ended {
                return Poll::Ready(Ok(0));
            }
            if self.receiving.is_none() && self.bulk {
                match self.receive_now(to) {
                    Err(e) if is_would_block(&e) => self.bulk = false,
                    other => return Poll::Ready(other),
                }
            }
            ready!(self.poll_receive(cx))?;
        }
    }

    /// As [`poll_read`](Self::poll_read), into initialised bytes.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<usize>> {
        // SAFETY: initialised bytes are a subset of maybe initialised ones, and poll_read only writes initialised ones.
        let to = unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast::<MaybeUninit<u8>>(), to.len()) };
        self.poll_read(cx, to)
    }

    /// Receives the next lent buffer, or notes the end.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let Some(receiving) = &mut self.receiving else {
                if self.bulk {
                    return Poll::Ready(Ok(()));
                }
                if !self.ring.bufs().wait_free(cx.waker()) {
                    return Poll::Pending;
                }
                let entry = opcode::RecvMulti::new(types::Fd(self.fd.as_raw_fd()), GROUP).build();
                let entry = entry.flags(squeue::Flags::BUFFER_SELECT);
                // SAFETY: the entry has no address (the buffers are the ring's); the slot keeps the fd.
                self.receiving = Some(unsafe { self.ring.submit_multi(entry, Keep::Nothing, Some(self.fd.clone())) });
                continue;
            };
            let Some(cqe) = ready!(receiving.poll_next(cx)) else {
                self.receiving = None;
                continue;
            };
            match cqe.res {
                0 => {
                    self.ended = true;
                    self.receiving = None;
                    return Poll::Ready(Ok(()));
                }
                n if n > 0 => {
                    self.lent = Lent::take(&self.ring, cqe);
                    if n as u32 == self.ring.bufs().size() && !self.bulk {
                        self.bulk = true;
                        receiving.cancel();
                    }
                    return Poll::Ready(Ok(()));
                }
                // Cancelled by us, or no buffer was free: begin again when it is time.
                _ if -cqe.res == libc::ENOBUFS => {}
                _ if -cqe.res == libc::ECANCELED && !self.ring.is_closing() => {}
                _ => {
                    self.receiving = None;
                    return Poll::Ready(cqe.result().map(drop));
                }
            }
        }
    }

    fn receive_now(&mut self, to: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        let n = socket2::SockRef::from(&self.fd).recv_with_flags(to, libc::MSG_DONTWAIT)?;
        if n == 0 {
            self.ended = true;
        }
        self.moved.0.received.set(self.moved.0.received.get() + n as u64);
        Ok(n)
    }

    /// Sends from `slices` what the socket takes now.
    ///
    /// # Errors
    /// As [`write_all`](Self::write_all).
    pub fn poll_write_vectored(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            if let Some(waiting) = &mut self.writable {
                let (cqe, _) = ready!(Pin::new(waiting).poll(cx));
                self.writable = None;
                cqe.result()?;
            }
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            match socket2::SockRef::from(&self.fd).send_vectored_with_flags(slices, flags) {
                Err(e) if is_would_block(&e) => {
                    let entry = opcode::PollAdd::new(types::Fd(self.fd.as_raw_fd()), libc::POLLOUT as u32).build();
                    // SAFETY: the entry has no address; the slot keeps the fd.
                    let op = unsafe { self.ring.submit(entry, Keep::Nothing, Some(self.fd.clone()), OnDrop::Cancel) };
                    self.writable = Some(op);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(n) => {
                    self.moved.0.sent.set(self.moved.0.sent.get() + n as u64);
                    return Poll::Ready(Ok(n));
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// True when the other end has closed or reset, as far as is known without reading.
    pub fn is_ended(&self) -> bool {
        self.ended
    }
}
