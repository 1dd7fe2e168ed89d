//! Clients that wait to be asked for a request's body (`Expect: 100-continue`), and are answered instead.
//!
//! What comes next on such an HTTP/1.1 connection may be that body or another request: nobody can know (RFC 9110, section
//! 10.1.1). So the answer ends the connection, and says so. SDKs of AWS keep the body to themselves then; were the
//! connection kept, the beginning of their next request would be taken for it.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONNECTION, EXPECT};
use http::request::Parts;
use http::{HeaderValue, Response, Version};
use http_body::{Body, Frame, SizeHint};

/// A client that waits to be asked, as long as nothing of its body came.
pub struct Waiting(Rc<Cell<bool>>);

impl Waiting {
    /// The client of a request that has a body; `None` where it does not wait.
    pub fn of(head: &Parts, body: &impl Body) -> Option<Self> {
        let waits = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
        let waits = head.version == Version::HTTP_11 && head.headers.get_all(EXPECT).iter().any(waits);
        (waits && !body.is_end_stream()).then(|| Self(Rc::new(Cell::new(true))))
    }

    /// Ends the connection with this answer where nothing of the body came.
    pub fn answered<B>(&self, response: &mut Response<B>) {
        if self.0.get() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

/// A body that notes that it came.
pub struct Noted<R> {
    inner: R,
    waiting: Option<Rc<Cell<bool>>>,
}

impl<R> Noted<R> {
    /// The body of this client's request.
    pub fn new(inner: R, waiting: Option<&Waiting>) -> Self {
        Self { inner, waiting: waiting.map(|waiting| waiting.0.clone()) }
    }
}

impl<R: Body<Data = Bytes> + Unpin> Body for Noted<R> {
    type Data = Bytes;
    type Error = R::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, R::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(waiting) = self.waiting.take() {
            waiting.set(false);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use http::Request;
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    #[test]
    fn an_answer_to_who_was_not_asked_ends_the_connection() {
        let ends = |version: Version, expect: Option<&str>, body: &'static str, read: bool| {
            let mut request = Request::builder().version(version);
            if let Some(expect) = expect {
                request = request.header(EXPECT, expect);
            }
            let (head, body) = request.body(Full::new(Bytes::from(body))).unwrap().into_parts();
            let waiting = Waiting::of(&head, &body);
            let body = Noted::new(body, waiting.as_ref());
            if read {
                body.collect().now_or_never().expect("it is there").unwrap();
            }
            let mut response = Response::new(());
            waiting.inspect(|waiting| waiting.answered(&mut response));
            response.headers().contains_key(CONNECTION)
        };
        let waits = Some("100-Continue");
        assert!(ends(Version::HTTP_11, waits, "body", false));
        assert!(!ends(Version::HTTP_11, waits, "body", true), "it was asked");
        assert!(!ends(Version::HTTP_11, waits, "", false), "nothing follows");
        assert!(!ends(Version::HTTP_11, None, "body", false), "the body follows in any case");
        assert!(!ends(Version::HTTP_2, waits, "body", false), "a stream has an end");
    }
}
