//! One request through Walrus: id, checks, body guard, `s3s`, headers of the answer, metrics, log.
//!
//! Knows no socket: the server hands it hyper's requests, tests hand it their own.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use karri_base::aws::keys::KeyRing;
use karri_bulk::BulkStore;
use karri_engine::exec;
use s3s::service::S3Service;
use s3s::{S3Error, StdError};
use send_wrapper::SendWrapper;

use crate::api::{self, OperationName, RequestId};
use crate::core::CoreRef;
use crate::error::{Error, Kind};
use crate::guard::{self, Chunks, Framing};
use crate::metrics::Metrics;

/// A body that brings nothing for so long is given up.
pub const STALL: Duration = Duration::from_secs(60);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");
const ID_2: HeaderName = HeaderName::from_static("x-amz-id-2");

/// A core's S3 service behind its checks. Used on its core.
pub struct Front<B: BulkStore> {
    core: CoreRef<B>,
    service: S3Service,
}

impl<B: BulkStore> Front<B> {
    /// A front for this core's Walrus.
    pub fn new(core: &CoreRef<B>, keys: &KeyRing) -> Self {
        Self { core: core.clone(), service: api::service(core, keys) }
    }

    /// Answers a request. Never fails: what goes wrong is an answer too.
    pub async fn answer<R>(&self, request: Request<R>) -> Response<s3s::Body>
    where
        R: Body<Data = Bytes> + Unpin + 'static,
        R::Error: Into<StdError>,
    {
        let began = now();
        let id = RequestId::new();
        let name = OperationName::default();
        let (mut head, body) = request.into_parts();
        let head_only = head.method == Method::HEAD;
        let mut response = match guard::check(&head) {
            Err(e) => refuse(e),
            Ok(framing) => {
                head.extensions.insert(name.clone());
                head.extensions.insert(id.clone());
                let body = if body.is_end_stream() {
                    s3s::Body::empty()
                } else {
                    let metrics = self.core.shared.metrics.clone();
                    s3s::Body::http_body_unsync(OnCore(SendWrapper::new(Guarded::new(body, framing, metrics))))
                };
                match self.service.call(Request::from_parts(head, body)).await {
                    Ok(response) => response,
                    Err(e) => {
                        let e: StdError = e.into();
                        tracing::error!(request_id = id.as_str(), error = %e, "a request ended without an answer");
                        refuse(Error::from(Kind::InternalError))
                    }
                }
            }
        };
        // HeadObject of a range or part is 206 like its GET; s3s answers 200.
        if head_only
            && response.headers().contains_key(http::header::CONTENT_RANGE)
            && response.status() == StatusCode::OK
        {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        if name.0.get() == Some(&"GetObjectAttributes") {
            bare_etag(&mut response);
        }
        if !head_only && (response.status().is_client_error() || response.status().is_server_error()) {
            explain(&mut response, &id);
        }
        if let Ok(value) = HeaderValue::from_str(id.as_str()) {
            response.headers_mut().insert(ID_2, value.clone());
            response.headers_mut().insert(REQUEST_ID, value);
        }
        let operation = name.0.get().copied().unwrap_or("Refused");
        self.core.shared.metrics.answered(operation, response.status().as_u16(), now().saturating_sub(began));
        response
    }
}

/// Completes an error document: `s3s`'s own errors come without words and id, and clients print "Unknown".
fn explain(response: &mut Response<s3s::Body>, id: &RequestId) {
    const END: &str = "</Error>";
    let Some(document) = response.body().bytes() else { return };
    let Some(text) = std::str::from_utf8(&document).ok().and_then(|t| t.strip_suffix(END)) else { return };
    let mut out = text.to_owned();
    if !text.contains("<Message>") {
        let code = text.split("<Code>").nth(1).and_then(|t| t.split("</Code>").next()).unwrap_or_default();
        let words = Kind::of_code(code).map_or("The request was refused.", Kind::message);
        out += &format!("<Message>{words}</Message>");
    }
    if !text.contains("<RequestId>") {
        out += &format!("<RequestId>{}</RequestId>", id.as_str());
    }
    out += END;
    if response.headers().contains_key(http::header::CONTENT_LENGTH) {
        response.headers_mut().insert(http::header::CONTENT_LENGTH, out.len().into());
    }
    *response.body_mut() = s3s::Body::from(out);
}

/// GetObjectAttributes alone says its ETag without quotes; `s3s` knows only ETags with them.
fn bare_etag(response: &mut Response<s3s::Body>) {
    let Some(document) = response.body().bytes() else { return };
    let Ok(text) = std::str::from_utf8(&document) else { return };
    let bare = text
        .replace("<ETag>&quot;", "<ETag>")
        .replace("&quot;</ETag>", "</ETag>")
        .replace("<ETag>\"", "<ETag>")
        .replace("\"</ETag>", "</ETag>");
    if response.headers().contains_key(http::header::CONTENT_LENGTH) {
        response.headers_mut().insert(http::header::CONTENT_LENGTH, bare.len().into());
    }
    *response.body_mut() = s3s::Body::from(bare);
}

fn refuse(e: Error) -> Response<s3s::Body> {
    let status = e.kind.status();
    S3Error::from(e).to_http_response().unwrap_or_else(|_| {
        let mut response = Response::new(s3s::Body::empty());
        *response.status_mut() = status;
        response
    })
}

fn now() -> Duration {
    if exec::on_executor() { exec::now() } else { Duration::ZERO }
}

/// A request body with its framing followed and its pauses limited.
struct Guarded<R> {
    inner: R,
    framing: Framing,
    chunks: Option<Chunks>,
    out: VecDeque<Bytes>,
    stall: Option<Pin<Box<exec::Sleep>>>,
    metrics: Metrics,
}

impl<R> Guarded<R> {
    fn new(inner: R, framing: Framing, metrics: Metrics) -> Self {
        Self { inner, framing, chunks: Chunks::new(framing), out: VecDeque::new(), stall: None, metrics }
    }
}

impl<R> Guarded<R>
where
    R: Body<Data = Bytes> + Unpin,
    R::Error: Into<StdError>,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        loop {
            if let Some(bytes) = self.out.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            let frame = match Pin::new(&mut self.inner).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    if !exec::on_executor() {
                        return Poll::Pending;
                    }
                    let sleep = self.stall.get_or_insert_with(|| Box::pin(exec::sleep(STALL)));
                    std::task::ready!(sleep.as_mut().poll(cx));
                    let text = format!("{}: nothing came for {} s", guard::STALLED, STALL.as_secs());
                    return Poll::Ready(Some(Err(std::io::Error::other(text).into())));
                }
            };
            self.stall = None;
            match frame {
                None => return Poll::Ready(None),
                Some(Err(e)) => return Poll::Ready(Some(Err(e.into()))),
                Some(Ok(frame)) => {
                    let Ok(bytes) = frame.into_data() else { continue };
                    self.metrics.received(bytes.len() as u64);
                    match &mut self.chunks {
                        None => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                        Some(chunks) => {
                            if let Err(e) = chunks.feed(bytes, &mut self.out) {
                                return Poll::Ready(Some(Err(e.into())));
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A body that stays on its core, told to `s3s` as one that could move.
struct OnCore<R>(SendWrapper<Guarded<R>>);

impl<R> Body for OnCore<R>
where
    R: Body<Data = Bytes> + Unpin,
    R::Error: Into<StdError>,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        self.0.poll(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.0.out.is_empty() && self.0.inner.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        match self.0.framing {
            // Cut anew, the body has another length than it came with.
            Framing::Unsigned => SizeHint::default(),
            Framing::Plain | Framing::Signed => self.0.inner.size_hint(),
        }
    }
}
