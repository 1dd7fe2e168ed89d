//! HTTP/1.1 on a core: hyper over [`net::Stream`](crate::net::Stream), without copies of bodies on the way out; and over
//! TLS ([`serve_tls`]) HTTP/1.1 and HTTP/2, whichever the client agrees on.
//!
//! hyper's own slices go to the kernel in one sendmsg: the head and what there is of the body leave together. Services
//! and bodies need not be `Send`: a connection lives on its core.
//!
//! ```no_run
//! # use karri_engine::{drain::Drain, http, net::Listener};
//! # use http_body_util::Full;
//! # async fn example() -> Result<(), karri_engine::EngineError> {
//! let listener = Listener::bind("127.0.0.1:9000".parse().unwrap())?;
//! let drain = Drain::new();
//! let make = |_peer: http::Peer| hyper::service::service_fn(|_request| async {
//!     Ok::<_, std::convert::Infallible>(hyper::Response::new(Full::new(bytes::Bytes::from("hello"))))
//! });
//! http::serve(listener, make, http::Limits::default(), drain).await;
//! # Ok(()) }
//! ```
//!
//! Bounds of one `serve`: `connections` at once (more wait in the kernel's backlog of 1,024, then their SYNs); a request's
//! head must be complete `header_read` after its first byte; a connection on which no byte moves for `idle` is closed,
//! unless a service is at work on it; one whose client takes its answers below `slowest` is closed. A service that waits for a slow client's body bounds that itself
//! ([`crate::timeout`] around a frame). Each connection's time-outs are one timer, whatever the number of requests. A TLS
//! handshake has `header_read`, too.
//!
//! Over HTTP/2 [`STREAMS`] requests go on at once, a head has at most 64 KiB, and heads share the `idle` time. There only
//! bytes of answers keep a connection without a request open: PING and what else costs a client nothing do not. An answer
//! of which the client takes nothing for `idle`, or less than `slowest`, ends with a reset of its stream; behind others
//! that fill the socket, after eight times `idle`.
//!
//! What a client takes of its answers is what its kernel has acknowledged, not what ours holds for it: ours takes megabytes
//! at once, and then nothing until a third of them are gone, which a slow client needs minutes for. While the socket is
//! full of answers, `slowest` alone is what the client is held to, and nobody of an HTTP/2 connection's streams is waited for.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::rt::ReadBufCursor;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Response};
use rustls::{ProtocolVersion, ServerConfig};

use crate::drain::Drain;
use crate::http2::{self, Frames};
use crate::net::{Listener, Stream, Taken};
use crate::pace::{Pace, Rate};
use crate::sync::Semaphore;
use crate::tls::TlsStream;
use crate::{detach, now, sleep, timeout};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Requests that one HTTP/2 connection makes at once.
pub const STREAMS: u32 = 16;
/// Bytes of one request's body that an HTTP/2 client may send before they are read, and of all of a connection's.
const WINDOWS: (u32, u32) = (512 << 10, 2 << 20);
/// Bytes of answers held for one HTTP/2 stream whose client does not read.
const SEND_BUFFER: usize = 256 << 10;
/// Bytes of an HTTP/2 request's head.
const HEAD_MAX: u32 = 64 << 10;

/// What a server allows.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once, on this core.
    pub connections: u64,
    /// From a request's first byte to the end of its head.
    pub header_read: Duration,
    /// Without a byte either way while no service is at work.
    pub idle: Duration,
    /// How slowly a client may take its answers; the time that it is waited for counts.
    pub slowest: Rate,
    /// For what is open when draining begins; then it is cut off.
    pub drain: Duration,
    /// A request head's bytes, and what hyper reads ahead of a body.
    pub buffer: usize,
    /// Header lines in a request.
    pub headers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            header_read: Duration::from_secs(30),
            idle: Duration::from_secs(75),
            slowest: Rate::default(),
            drain: Duration::from_secs(30),
            buffer: 256 << 10,
            headers: 128,
        }
    }
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Its address; unknown when it was gone before we looked, or on a Unix socket.
    pub address: Option<SocketAddr>,
    /// True over TLS.
    pub secure: bool,
}

/// Among the extensions of a request that came over TLS: the version that was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlsVersion(pub ProtocolVersion);

/// What a server did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Served {
    /// Connections accepted.
    pub connections: u64,
    /// Connections still open at the drain's limit, cut off.
    pub cut_off: u64,
}

/// Serves HTTP/1.1 on `listener` until `drain` begins: then it stops accepting, lets requests in progress end (their
/// responses say `connection: close`), closes idle connections, and returns when none is left or the limit is over.
///
/// `make` gives each connection its service.
pub async fn serve<S, B>(listener: Listener, make: impl Fn(Peer) -> S, limits: Limits, drain: Drain) -> Served
where
    S: Service<Request<Incoming>, Response = Response<B>> + 'static,
    S::Error: Into<BoxError>,
    S::Future: 'static,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    accept(listener, limits, drain, |stream, held, limits, drain| {
        let service = make(Peer { address: stream.peer_addr().ok(), secure: false });
        crate::spawn(async move {
            let _held = held;
            connection(stream, service, &limits, drain).await;
        })
    })
    .await
}

/// As [`serve`], over TLS: HTTP/2 with clients that agree on `h2` by ALPN, HTTP/1.1 with all others.
pub async fn serve_tls<S, B>(
    listener: Listener,
    make: impl Fn(Peer) -> S,
    limits: Limits,
    drain: Drain,
    config: Arc<ServerConfig>,
) -> Served
where
    S: Service<Request<Incoming>, Response = Response<B>> + 'static,
    S::Error: Into<BoxError>,
    S::Future: 'static,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    accept(listener, limits, drain, |stream, held, limits, drain| {
        let service = make(Peer { address: stream.peer_addr().ok(), secure: true });
        let config = config.clone();
        crate::spawn(async move {
            let _held = held;
            tls_connection(stream, service, &limits, drain, config).await;
        })
    })
    .await
}

/// Kept as long as a connection is open.
type Held = (crate::sync::Permit, crate::drain::Guard, Gone);

async fn accept(
    mut listener: Listener,
    limits: Limits,
    drain: Drain,
    begin: impl Fn(Stream, Held, Limits, Drain) -> crate::JoinHandle<()>,
) -> Served {
    let room = Semaphore::new(limits.connections);
    let mut served = Served::default();
    let tasks = Rc::new(std::cell::RefCell::new(slab::Slab::new()));
    while let Some(permit) = drain.or(room.acquire(1)).await {
        let stream = match drain.or(listener.accept()).await {
            None => break,
            Some(Ok(stream)) => stream,
            Some(Err(e)) if e.raw_os_error() == Some(libc::ECANCELED) => break,
            Some(Err(error)) => {
                // Out of descriptors or memory: others must end first.
                tracing::warn!(%error, "cannot accept a connection; trying again");
                drop(permit);
                drain.or(sleep(Duration::from_millis(50))).await;
                continue;
            }
        };
        served.connections += 1;
        let key = tasks.borrow_mut().insert(None);
        let gone = Gone { tasks: tasks.clone(), key };
        let task = begin(stream, (permit, drain.guard(), gone), limits.clone(), drain.clone());
        if let Some(entry) = tasks.borrow_mut().get_mut(key) {
            *entry = Some(task);
        }
    }
    drop(listener);
    if timeout(limits.drain, room.acquire(limits.connections)).await.is_err() {
        let left: Vec<_> = tasks.borrow_mut().iter_mut().filter_map(|(_, task)| task.take()).collect();
        served.cut_off = left.len() as u64;
        for task in left {
            task.abort();
        }
    }
    served
}

type Tasks = Rc<std::cell::RefCell<slab::Slab<Option<crate::JoinHandle<()>>>>>;

/// Takes a connection's task off the list when it ends.
struct Gone {
    tasks: Tasks,
    key: usize,
}

impl Drop for Gone {
    fn drop(&mut self) {
        let task = self.tasks.borrow_mut().try_remove(self.key);
        drop(task);
    }
}

/// Serves one connection, whoever accepted it, to its end.
pub async fn connection<S, B>(stream: Stream, service: S, limits: &Limits, drain: Drain)
where
    S: Service<Request<Incoming>, Response = Response<B>> + 'static,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    http1_connection(stream, service, limits, drain).await;
}

async fn http1_connection<T, S, B>(stream: T, service: S, limits: &Limits, drain: Drain)
where
    T: Transport,
    S: Service<Request<Incoming>, Response = Response<B>> + 'static,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    let taken = Rc::new(stream.socket().taken());
    let watch = Watch::new(true, limits.slowest, Rc::downgrade(&taken));
    let service = Watched { service, watch: watch.clone(), tls: stream.tls() };
    let mut builder = http1::Builder::new();
    builder.header_read_timeout(None).max_buf_size(limits.buffer.max(8192)).max_headers(limits.headers).writev(true);
    let connection = pin!(builder.serve_connection(Io::new(stream, &watch, taken), service));
    watched(connection, http1::Connection::graceful_shutdown, &watch, limits, &drain).await;
}

async fn http2_connection<T, S, B>(stream: T, service: S, limits: &Limits, drain: Drain)
where
    T: Transport,
    S: Service<Request<Incoming>, Response = Response<B>> + 'static,
    S::Error: Into<BoxError>,
    S::Future: 'static,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    let taken = Rc::new(stream.socket().taken());
    let watch = Watch::new(false, limits.slowest, Rc::downgrade(&taken));
    let watched_service = Watched { service, watch: watch.clone(), tls: stream.tls() };
    let (streams, service) = http2::bounded(watched_service, limits.idle, limits.slowest, watch.full.clone());
    let mut builder = hyper::server::conn::http2::Builder::new(streams);
    builder
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(HEAD_MAX);
    let connection = pin!(builder.serve_connection(Io::new(stream, &watch, taken), service));
    watched(connection, hyper::server::conn::http2::Connection::graceful_shutdown, &watch, limits, &drain).await;
}

/// Serves one connection over TLS.
async fn tls_connection<S, B>(stream: Stream, service: S, limits: &Limits, drain: Drain, config: Arc<ServerConfig>)
where
    S: Service<Request<Incoming>, Response = Response<B>> + 'static,
    S::Error: Into<BoxError>,
    S::Future: 'static,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    let shaking = timeout(limits.header_read.min(limits.idle), TlsStream::accept(stream, config));
    let stream = match drain.or(shaking).await {
        Some(Ok(Ok(stream))) => stream,
        Some(Ok(Err(error))) => {
            tracing::debug!(%error, "a TLS handshake failed");
            return;
        }
        Some(Err(_)) => {
            tracing::debug!("a TLS handshake took too long");
            return;
        }
        None => return,
    };
    if stream.protocol() == Some(b"h2") {
        // Boxed, so that connections of the other kind do not hold the room for it.
        Box::pin(http2_connection(stream, service, limits, drain)).await;
    } else {
        Box::pin(http1_connection(stream, service, limits, drain)).await;
    }
}

/// Polls a connection to its end, with its time-outs, and ends it in order when draining begins.
async fn watched<C, E>(
    mut connection: Pin<&mut C>,
    shut_down: impl Fn(Pin<&mut C>),
    watch: &Watch,
    limits: &Limits,
    drain: &Drain,
) where
    C: Future<Output = Result<(), E>>,
    E: std::fmt::Display,
{
    let mut timer = pin!(sleep(limits.header_read.min(limits.idle)));
    let mut drained = pin!(drain.began());
    let mut draining = false;
    let result = std::future::poll_fn(|cx| {
        if !draining && drained.as_mut().poll(cx).is_ready() {
            draining = true;
            shut_down(connection.as_mut());
        }
        if let Poll::Ready(result) = connection.as_mut().poll(cx) {
            return Poll::Ready(result.map_err(|e| e.to_string()));
        }
        while timer.as_mut().poll(cx).is_ready() {
            watch.look();
            match watch.deadline(limits) {
                Some(at) if at <= now() => return Poll::Ready(Err("time-out".to_owned())),
                Some(at) => timer.reset(at),
                None => timer.reset(now() + limits.idle),
            }
        }
        Poll::Pending
    })
    .await;
    if let Err(error) = result {
        // Clients go away and send rubbish as they please.
        tracing::debug!(%error, "a connection ended early");
    }
}

/// What the time-outs go by.
struct Watch {
    /// Services at work.
    busy: Cell<u32>,
    /// First byte received since the last answer.
    head_since: Cell<Option<Duration>>,
    /// The last byte either way; over HTTP/2 the last one of an answer.
    last: Cell<Duration>,
    /// True where bytes that no service is at work on are a head: not so for HTTP/2, whose frames may be anything.
    heads: bool,
    /// How fast the client takes what is for it.
    pace: RefCell<Pace>,
    /// Since when the client is waited for to take more, and that wait is not judged.
    full_since: Cell<Option<Duration>>,
    /// How long the client was waited for.
    full: Rc<Full>,
    /// What the client has taken, and had when its pace was judged last; gone with the connection.
    taken: Weak<Taken>,
    judged: Cell<u64>,
    /// Bytes that were sent when the last one of an answer was.
    answered: Cell<u64>,
    /// It was too slow.
    slow: Cell<bool>,
}

/// The time in which a connection's socket took nothing more.
#[derive(Debug, Default)]
pub(crate) struct Full {
    since: Cell<Option<Duration>>,
    before: Cell<Duration>,
}

impl Full {
    fn begin(&self) {
        if self.since.get().is_none() {
            self.since.set(Some(now()));
        }
    }

    fn end(&self) {
        self.before.set(self.so_far());
        self.since.set(None);
    }

    /// All of it up to now.
    pub(crate) fn so_far(&self) -> Duration {
        self.before.get() + self.since.get().map_or(Duration::ZERO, |since| now().saturating_sub(since))
    }
}

impl Watch {
    fn new(heads: bool, slowest: Rate, taken: Weak<Taken>) -> Rc<Self> {
        Rc::new(Self {
            busy: Cell::new(0),
            head_since: Cell::new(None),
            last: Cell::new(now()),
            heads,
            pace: RefCell::new(Pace::new(slowest)),
            full_since: Cell::new(None),
            full: Rc::default(),
            taken,
            judged: Cell::new(0),
            answered: Cell::new(0),
            slow: Cell::new(false),
        })
    }

    /// The socket takes nothing now.
    fn filled(&self) {
        if self.full_since.get().is_none() {
            self.full_since.set(Some(now()));
            self.full.begin();
        }
    }

    /// The socket took something.
    fn wrote(&self) {
        if let Some(since) = self.full_since.take() {
            self.full.end();
            self.waited(now().saturating_sub(since));
        }
    }

    /// Judges a wait that goes on.
    fn look(&self) {
        let Some(since) = self.full_since.get() else { return };
        let waited = now().saturating_sub(since);
        if waited >= self.pace.borrow().left() {
            self.full_since.set(Some(now()));
            self.waited(waited);
        }
    }

    fn waited(&self, waited: Duration) {
        let mut pace = self.pace.borrow_mut();
        let taken = || {
            let taken = self.taken();
            taken.saturating_sub(self.judged.replace(taken))
        };
        let bytes = if pace.ends(waited) { taken() } else { 0 };
        if !pace.moved(bytes, waited) {
            self.slow.set(true);
        }
    }

    fn taken(&self) -> u64 {
        self.taken.upgrade().map_or(0, |taken| taken.bytes())
    }

    fn received(&self) {
        if !self.heads {
            return;
        }
        let now = now();
        self.last.set(now);
        if self.busy.get() == 0 && self.head_since.get().is_none() {
            self.head_since.set(Some(now));
        }
    }

    /// Some of an answer was sent; so much was sent in all.
    fn sent(&self, all: u64) {
        self.last.set(now());
        self.head_since.set(None);
        self.answered.set(all);
    }

    fn deadline(&self, limits: &Limits) -> Option<Duration> {
        if self.slow.get() {
            return Some(Duration::ZERO);
        }
        let judged = self.full_since.get().map(|since| since + self.pace.borrow().left());
        // An answer that the client still takes is no idleness.
        if self.busy.get() > 0 || judged.is_some() && self.taken() < self.answered.get() {
            return judged;
        }
        let idle = self.last.get() + limits.idle;
        let idle = self.head_since.get().map_or(idle, |since| idle.min(since + limits.header_read));
        Some(judged.map_or(idle, |at| at.min(idle)))
    }
}

/// A service that tells when it is at work, and is told what its requests came over.
struct Watched<S> {
    service: S,
    watch: Rc<Watch>,
    tls: Option<TlsVersion>,
}

impl<S: Service<Request<Incoming>>> Service<Request<Incoming>> for Watched<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = AtWork<S::Future>;
    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        if let Some(tls) = self.tls {
            request.extensions_mut().insert(tls);
        }
        self.watch.busy.set(self.watch.busy.get() + 1);
        self.watch.head_since.set(None);
        AtWork { future: self.service.call(request), watch: self.watch.clone() }
    }
}

struct AtWork<F> {
    future: F,
    watch: Rc<Watch>,
}

impl<F: Future> Future for AtWork<F> {
    type Output = F::Output;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // SAFETY: the field is pinned with `self` and never moved out.
        unsafe { self.map_unchecked_mut(|s| &mut s.future) }.poll(cx)
    }
}

impl<F> Drop for AtWork<F> {
    fn drop(&mut self) {
        self.watch.busy.set(self.watch.busy.get() - 1);
        self.watch.last.set(now());
    }
}

/// What carries a connection's bytes.
trait Transport: Unpin {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<usize>>;
    fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>>;
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn socket(&self) -> &Stream;
    fn tls(&self) -> Option<TlsVersion> {
        None
    }
}

impl Transport for Stream {
    #[inline]
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<usize>> {
        read_into(self, cx, buf)
    }
    #[inline]
    fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, slices)
    }
    #[inline]
    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    #[inline]
    fn poll_shutdown(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.shutdown())
    }
    #[inline]
    fn socket(&self) -> &Stream {
        self
    }
}

impl Transport for TlsStream {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<usize>> {
        TlsStream::poll_read(self, cx, buf)
    }
    fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, slices)
    }
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        TlsStream::poll_flush(self, cx)
    }
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        TlsStream::poll_shutdown(self, cx)
    }
    fn socket(&self) -> &Stream {
        TlsStream::socket(self)
    }
    fn tls(&self) -> Option<TlsVersion> {
        self.version().map(TlsVersion)
    }
}

/// hyper's view of a watched stream.
struct Io<T> {
    stream: T,
    watch: Rc<Watch>,
    /// For the watch.
    _taken: Rc<Taken>,
    /// What TLS holds waits for the socket.
    flushing: bool,
    /// Over HTTP/2.
    frames: Option<Frames>,
}

impl<T> Io<T> {
    fn new(stream: T, watch: &Rc<Watch>, taken: Rc<Taken>) -> Self {
        Self {
            stream,
            watch: watch.clone(),
            _taken: taken,
            flushing: false,
            frames: (!watch.heads).then(Frames::default),
        }
    }
}

impl<T: Transport> hyper::rt::Read for Io<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let n = ready!(self.stream.poll_read(cx, buf))?;
        if n > 0 {
            self.watch.received();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: Transport> hyper::rt::Write for Io<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream.poll_write(cx, slices);
        let Poll::Ready(written) = written else {
            self.watch.filled();
            return Poll::Pending;
        };
        let n = written?;
        self.watch.wrote();
        if self.frames.as_mut().is_none_or(|frames| frames.wrote(slices, n)) {
            self.watch.sent(self.stream.socket().sent());
        }
        Poll::Ready(Ok(n))
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.stream.poll_flush(cx);
        if flushed.is_pending() {
            self.flushing = true;
            self.watch.filled();
        } else if std::mem::take(&mut self.flushing) {
            self.watch.wrote();
        }
        flushed
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_shutdown(cx)
    }
}

fn read_into(stream: &mut Stream, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<usize>> {
    // SAFETY: the slice is only written to, and only with initialised bytes.
    let n = ready!(stream.poll_read(cx, unsafe { buf.as_mut() }))?;
    // SAFETY: poll_read has initialised the first `n` bytes.
    unsafe { buf.advance(n) };
    Poll::Ready(Ok(n))
}

/// A stream as hyper's client (or another of its parts) takes it, without time-outs.
impl hyper::rt::Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        read_into(&mut self, cx, buf).map_ok(drop)
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Stream::poll_write_vectored(&mut self, cx, &[IoSlice::new(bytes)])
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Stream::poll_write_vectored(&mut self, cx, slices)
    }
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.shutdown())
    }
}

/// hyper's executor: tasks of this core.
#[derive(Debug, Clone, Copy, Default)]
pub struct Executor;

impl<F: Future + 'static> hyper::rt::Executor<F> for Executor {
    fn execute(&self, future: F) {
        detach(async move {
            future.await;
        });
    }
}

/// hyper's timer: this core's. Its sleeps must stay on the core, as hyper's tasks do here.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timer;

struct TimerSleep(send_wrapper::SendWrapper<crate::Sleep>);

impl Future for TimerSleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut *self.0).poll(cx)
    }
}

impl hyper::rt::Sleep for TimerSleep {}

impl hyper::rt::Timer for Timer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(TimerSleep(send_wrapper::SendWrapper::new(sleep(duration))))
    }
    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep(deadline.saturating_duration_since(std::time::Instant::now()))
    }
}
