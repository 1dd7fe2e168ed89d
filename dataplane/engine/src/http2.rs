//! HTTP/2's streams held to the rules of HTTP/1's connections: what costs the client nothing (PING, SETTINGS,
//! WINDOW_UPDATE) keeps nothing alive, and an answer that its client does not take ends, alone.
//!
//! Three parts around hyper, which shows none of this:
//! - [`Frames`] follows what is written and tells the bytes of answers from all others: the connection's idle time goes by
//!   it.
//! - [`Pieces`] hands an answer's body over in small pieces and notes when the last one was taken: hyper asks for the next
//!   one once the client's window and a bounded buffer have had room for it.
//! - [`Streams`], hyper's executor, runs each stream's task with that note at hand, and drops a task whose piece nobody took
//!   for the idle time, or whose pieces are taken below the least rate. Dropped, h2 resets the stream; others on the connection go on.
//!
//! Left to the connection: what h2 has been given whole (at most `SEND_BUFFER` bytes a stream) and the client does not take.
//! Left to the service: requests' bodies that do not come.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io::IoSlice;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper::{Request, Response};

use crate::http::Full;
use crate::pace::{Pace, Rate};
use crate::{detach, now, sleep};

/// A piece's bytes: HTTP/2's smallest largest frame.
const PIECE: usize = 16 << 10;

/// A piece may wait behind other streams' for so many idle times: they share the connection by turns.
const BEHIND: u32 = 8;

/// How an answer goes out.
struct Flow {
    /// Since when, by [`Flow::clock`] and by the core's, a piece waits to be taken; `None` while the service is at work.
    waits_since: Cell<Option<(Duration, Duration)>>,
    /// Time in which the whole connection's client is waited for, and held to its rate: that is no stream's own.
    full: Rc<Full>,
    pace: RefCell<Pace>,
    /// The client was too slow.
    slow: Cell<bool>,
}

impl Flow {
    fn new(slowest: Rate, full: Rc<Full>) -> Self {
        Self { waits_since: Cell::default(), full, pace: RefCell::new(Pace::new(slowest)), slow: Cell::default() }
    }

    /// Time that stands still while the socket takes nothing more.
    fn clock(&self) -> Duration {
        now().saturating_sub(self.full.so_far())
    }

    /// The last piece, of so many bytes, was taken.
    fn taken(&self, bytes: u64) {
        let Some((since, _)) = self.waits_since.take() else { return };
        if !self.pace.borrow_mut().moved(bytes, self.clock().saturating_sub(since)) {
            self.slow.set(true);
        }
    }
}

/// A stream whose task has not begun.
#[derive(Clone, Default)]
struct Next(Rc<Cell<Option<Rc<Flow>>>>);

/// hyper's executor and service for one connection.
pub(crate) fn bounded<S>(service: S, idle: Duration, slowest: Rate, full: Rc<Full>) -> (Streams, Streamed<S>) {
    let next = Next::default();
    (Streams { next: next.clone(), idle }, Streamed { service, next, slowest, full })
}

/// Runs streams' tasks.
#[derive(Clone)]
pub(crate) struct Streams {
    next: Next,
    idle: Duration,
}

impl<F: Future + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, future: F) {
        // hyper calls the service and hands over the stream's task in one go.
        let flow = self.next.0.take();
        let idle = self.idle;
        detach(async move {
            match flow {
                Some(flow) => until_stalled(future, &flow, idle).await,
                None => drop(future.await),
            }
        });
    }
}

async fn until_stalled(future: impl Future, flow: &Flow, idle: Duration) {
    let mut future = pin!(future);
    let mut timer = pin!(sleep(idle));
    poll_fn(|cx| {
        if future.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if flow.slow.get() {
            tracing::debug!("a stream's client takes too little");
            return Poll::Ready(());
        }
        while timer.as_mut().poll(cx).is_ready() {
            let (now_there, now_here) = (flow.clock(), now());
            let (there, here) = flow.waits_since.get().unwrap_or((now_there, now_here));
            let left = (there + idle).saturating_sub(now_there).min((here + idle * BEHIND).saturating_sub(now_here));
            if left.is_zero() {
                tracing::debug!("a stream's client takes nothing");
                return Poll::Ready(());
            }
            // The clock may stand still: then what is left stays as little as it is.
            timer.reset(now_here + left.max(idle / 64));
        }
        Poll::Pending
    })
    .await;
}

/// A service whose answers go out in [`Pieces`].
pub(crate) struct Streamed<S> {
    service: S,
    next: Next,
    slowest: Rate,
    full: Rc<Full>,
}

impl<S, B> Service<Request<Incoming>> for Streamed<S>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Future: 'static,
    B: Body + 'static,
{
    type Response = Response<Pieces<B>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>>>>;
    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let flow = Rc::new(Flow::new(self.slowest, self.full.clone()));
        let answer = self.service.call(request);
        self.next.0.set(Some(flow.clone()));
        Box::pin(async move {
            let answer = answer.await?;
            Ok(answer.map(|body| Pieces { body: Box::pin(body), rest: Bytes::new(), last: 0, flow }))
        })
    }
}

/// An answer's body.
pub(crate) struct Pieces<B> {
    body: Pin<Box<B>>,
    /// Of the last frame.
    rest: Bytes,
    /// Bytes of the last piece.
    last: usize,
    flow: Rc<Flow>,
}

impl<B: Body> Body for Pieces<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        self.flow.taken(self.last as u64);
        self.last = 0;
        if self.rest.is_empty() {
            let Some(frame) = ready!(self.body.as_mut().poll_frame(cx)?) else { return Poll::Ready(None) };
            match frame.into_data() {
                Ok(mut data) => self.rest = data.copy_to_bytes(data.remaining()),
                Err(other) => return Poll::Ready(Some(Ok(other.map_data(|_| Bytes::new())))),
            }
        }
        let n = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(n);
        self.last = n;
        self.flow.waits_since.set(Some((self.flow.clock(), now())));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, inner, rest) = (SizeHint::new(), self.body.size_hint(), self.rest.len() as u64);
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

/// Follows the frames that are written.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    head: [u8; 9],
    have: usize,
    /// Of the payload.
    left: usize,
}

impl Frames {
    /// `n` bytes of the slices were written; true where some of them were an answer's.
    pub(crate) fn wrote(&mut self, slices: &[IoSlice<'_>], n: usize) -> bool {
        const DATA: u8 = 0;
        const HEADERS: u8 = 1;
        const CONTINUATION: u8 = 9;
        let (mut answers, mut n) = (false, n);
        for slice in slices {
            let mut bytes = &slice[..n.min(slice.len())];
            n -= bytes.len();
            while !bytes.is_empty() {
                if self.left > 0 {
                    let skip = self.left.min(bytes.len());
                    self.left -= skip;
                    bytes = &bytes[skip..];
                    answers |= matches!(self.head[3], DATA | HEADERS | CONTINUATION);
                    continue;
                }
                let take = (9 - self.have).min(bytes.len());
                self.head[self.have..self.have + take].copy_from_slice(&bytes[..take]);
                (self.have, bytes) = (self.have + take, &bytes[take..]);
                if self.have == 9 {
                    self.have = 0;
                    self.left =
                        usize::from(self.head[0]) << 16 | usize::from(self.head[1]) << 8 | usize::from(self.head[2]);
                    answers |= matches!(self.head[3], DATA | HEADERS | CONTINUATION);
                }
            }
        }
        answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_from_pongs_however_they_are_cut() {
        let frame = |kind: u8, len: usize| {
            let mut bytes = vec![0, (len >> 8) as u8, len as u8, kind, 0, 0, 0, 0, 1];
            bytes.resize(9 + len, kind);
            bytes
        };
        // SETTINGS, PING, DATA (600), an empty DATA, WINDOW_UPDATE.
        let all = [frame(4, 6), frame(6, 8), frame(0, 600), frame(0, 0), frame(8, 4)];
        let (first, last) = (all[0].len() + all[1].len(), all[4].len());
        let bytes = all.concat();
        for step in [1, 2, 7, 9, 10, 100, bytes.len()] {
            let (mut frames, mut at) = (Frames::default(), 0);
            while at < bytes.len() {
                let end = (at + step).min(bytes.len());
                let middle = (at + end) / 2;
                let more = &bytes[middle..(end + 5).min(bytes.len())];
                let slices = [IoSlice::new(&bytes[at..middle]), IoSlice::new(more)];
                let told = frames.wrote(&slices, end - at);
                // Heads of answers count as they are whole.
                if end <= first + 8 || at >= bytes.len() - last {
                    assert!(!told, "{step} {at}");
                } else if end - at >= 9 && end <= bytes.len() - last {
                    assert!(told, "{step} {at}");
                }
                at = end;
            }
            assert_eq!((frames.have, frames.left), (0, 0), "{step}");
        }
    }
}
