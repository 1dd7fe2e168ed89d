//! TLS on a [`Stream`]: rustls between the socket's bytes and hyper.
//!
//! Ciphertext goes straight between the socket and rustls's own buffers; plaintext is copied once each way. Bounds:
//! rustls holds one record in and at most [`BUFFER`] bytes out for a connection; a handshake is bounded by its caller
//! ([`crate::timeout`]).

use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::rt::ReadBufCursor;
use rustls::{ProtocolVersion, ServerConfig, ServerConnection};

use crate::net::Stream;

/// A record's largest plaintext: more is not read at once, so that no more is initialised for it.
const RECORD: usize = 16 << 10;
/// Bytes to be sent that a connection holds.
const BUFFER: usize = 64 << 10;

/// The server's end of a TLS connection whose handshake is over.
pub struct TlsStream {
    stream: Stream,
    tls: ServerConnection,
    /// The other end said that it is done, or is gone.
    ended: bool,
}

impl std::fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TlsStream").field(&self.stream).finish()
    }
}

/// A socket as rustls's blocking reads and writes see it: `WouldBlock` where the task is to be woken later.
struct Blocking<'a, 'c, 'd> {
    stream: &'a mut Stream,
    cx: &'c mut Context<'d>,
}

fn blocking<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl Read for Blocking<'_, '_, '_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        blocking(self.stream.poll_fill(self.cx, to))
    }
}

impl Write for Blocking<'_, '_, '_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(from)])
    }
    fn write_vectored(&mut self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        blocking(self.stream.poll_write_vectored(self.cx, from))
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn is_would_block(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::WouldBlock
}

impl TlsStream {
    /// Shakes hands.
    ///
    /// # Errors
    /// What the other end sent is no TLS or none that the configuration takes, or it went away. An alert says so where
    /// it can still be sent.
    pub async fn accept(stream: Stream, config: Arc<ServerConfig>) -> io::Result<Self> {
        let mut tls = ServerConnection::new(config).map_err(io::Error::other)?;
        tls.set_buffer_limit(Some(BUFFER));
        let mut this = Self { stream, tls, ended: false };
        std::future::poll_fn(|cx| this.poll_handshake(cx)).await?;
        Ok(this)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            // Also what follows the handshake: tickets, with which a client comes back faster.
            ready!(self.poll_send(cx))?;
            if !self.tls.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if ready!(self.poll_receive(cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// What was agreed on by ALPN.
    pub fn protocol(&self) -> Option<&[u8]> {
        self.tls.alpn_protocol()
    }

    /// The socket below.
    pub(crate) fn socket(&self) -> &Stream {
        &self.stream
    }

    /// The version of TLS that was agreed on.
    pub fn version(&self) -> Option<ProtocolVersion> {
        self.tls.protocol_version()
    }

    /// Receives some ciphertext; how much, 0 at the end.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let n = match self.tls.read_tls(&mut Blocking { stream: &mut self.stream, cx }) {
            Err(e) if is_would_block(&e) => return Poll::Pending,
            other => other?,
        };
        if let Err(e) = self.tls.process_new_packets() {
            // The alert, as far as the socket takes it now.
            let _ = self.poll_send(cx);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, e)));
        }
        Poll::Ready(Ok(n))
    }

    /// Sends all ciphertext that there is.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Blocking { stream: &mut self.stream, cx }) {
                Err(e) if is_would_block(&e) => return Poll::Pending,
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                other => drop(other?),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads plaintext; how much, 0 at the end.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<usize>> {
        loop {
            // SAFETY: what is written to it is written as initialised bytes, and only those are claimed below.
            let to = unsafe { buf.as_mut() };
            let len = to.len().min(RECORD);
            let to = &mut to[..len];
            to.fill(std::mem::MaybeUninit::new(0));
            // SAFETY: filled just now.
            let to = unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast::<u8>(), to.len()) };
            match self.tls.reader().read(to) {
                Ok(n) => {
                    // SAFETY: all of it is initialised.
                    unsafe { buf.advance(n) };
                    return Poll::Ready(Ok(n));
                }
                Err(e) if is_would_block(&e) => {}
                // Ended without saying so: for HTTP, whose bodies know their ends, that is an end like others.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Poll::Ready(Ok(0)),
                Err(e) => return Poll::Ready(Err(e)),
            }
            if self.ended {
                return Poll::Ready(Ok(0));
            }
            if ready!(self.poll_receive(cx))? == 0 {
                self.ended = true;
            }
        }
    }

    /// Takes plaintext to be sent, at least a byte.
    pub(crate) fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if slices.iter().all(|slice| slice.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        loop {
            let n = self.tls.writer().write_vectored(slices)?;
            let sent = self.poll_send(cx);
            if let Poll::Ready(Err(e)) = sent {
                return Poll::Ready(Err(e));
            }
            if n > 0 {
                return Poll::Ready(Ok(n));
            }
            // Full: what is held goes first.
            ready!(sent)?;
        }
    }

    /// Sends what is held.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx)
    }

    /// Says that nothing more comes, and ends our direction.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tls.send_close_notify();
        ready!(self.poll_send(cx))?;
        Poll::Ready(self.stream.shutdown())
    }
}
