//! One request through Walrus: id, checks, body guard, `s3s`, headers of the answer, metrics, log.
//!
//! Knows no socket: the server hands it hyper's requests, tests hand it their own.

use std::cell::Cell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ACCESS_CONTROL_REQUEST_METHOD, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HOST, LOCATION, ORIGIN};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use karri_base::aws::keys::{Key, KeyRing};
use karri_base::aws::sigv4::uri_encode;
use karri_base::clock::UnixMicros;
use karri_bulk::BulkStore;
use karri_engine::exec;
use karri_engine::pace::{Pace, Rate};
use s3s::service::S3Service;
use s3s::{S3Error, StdError};
use send_wrapper::SendWrapper;

use crate::access::context;
use crate::api::{self, Form, Peer, RequestId};
use crate::config::cors;
use crate::core::CoreRef;
use crate::document::Promised;
use crate::error::{Error, Kind, Result};
use crate::expect::{Noted, Waiting};
use crate::form;
use crate::guard::{self, Chunks, Framing, Trailers};
use crate::metrics::Metrics;
use crate::note::Note;
use crate::ops::list_objects::Rendered;
use crate::place::{Domains, Place};
use crate::range::{self, Admitted};
use crate::sig_v2;
use crate::signed_at;
use crate::witness::Witness;
use crate::xml::Out;
use crate::{audit, slow};

/// A body that brings nothing for so long is given up.
pub const STALL: Duration = Duration::from_secs(60);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");
const ID_2: HeaderName = HeaderName::from_static("x-amz-id-2");
const CHARGED: HeaderName = HeaderName::from_static("x-amz-request-charged");

/// A core's S3 service behind its checks. Used on its core.
pub struct Front<B: BulkStore> {
    core: CoreRef<B>,
    keys: KeyRing,
    service: S3Service,
}

impl<B: BulkStore> Front<B> {
    /// A front for this core's Walrus.
    pub fn new(core: &CoreRef<B>, keys: &KeyRing) -> Self {
        // All fronts of a process share one ring.
        core.shared.people.get_or_init(|| keys.clone());
        Self { core: core.clone(), keys: keys.clone(), service: api::service(core, keys) }
    }

    /// Answers a request. Never fails: what goes wrong is an answer too.
    pub async fn answer<R>(&self, request: Request<R>) -> Response<s3s::Body>
    where
        R: Body<Data = Bytes> + Unpin + 'static,
        R::Error: Into<StdError>,
    {
        let began = now();
        let id = RequestId::new();
        let note = Note::default();
        let (mut head, body) = request.into_parts();
        let waiting = Waiting::of(&head, &body);
        let body = Noted::new(body, waiting.as_ref());
        settle(&mut head);
        let place = Place::of(Domains::of(&self.core.shared), &head);
        head.extensions.insert(place.clone());
        let head_only = head.method == Method::HEAD;
        let (uri, waited) = (head.uri.clone(), Rc::new(Cell::new(Duration::ZERO)));
        let source = head.extensions.get::<Peer>().and_then(|peer| peer.source);
        let origin = Origin::of(&head, &place);
        let witness = Witness::of(&self.core.shared, &head, &place, &id, began);
        if let Some(signed) = sig_v2::as_signed(&head, &place, &self.keys) {
            head.uri = signed.uri;
            head.headers.extend(signed.headers);
        }
        let checked = guard::check(&head);
        let checked = checked.and_then(|framing| signed_at::check(&head.headers, self.core.now()).map(|()| framing));
        let checked = checked.and_then(|framing| Ok((framing, Promised::of(&head, &place, framing)?)));
        let mut response = match checked {
            _ if head.method == Method::OPTIONS => {
                // Asked without what the request itself will be signed with.
                note.operation("Preflight");
                self.preflight(&head, &place).await.unwrap_or_else(refuse)
            }
            _ if place.website().is_some() => {
                note.operation("Website");
                self.visit(&head, &place, &id).await
            }
            Err(e) => refuse(e),
            Ok(_) if guard::is_form_upload(&head) => {
                note.operation("PostObject");
                head.extensions.insert(note.clone());
                self.form(&head, &place, body, &id).await.unwrap_or_else(refuse)
            }
            Ok((framing, promised)) => {
                signed_at::complete(&mut head.headers);
                guard::tell_length(&mut head.headers, framing);
                head.extensions.insert(note.clone());
                head.extensions.insert(id.clone());
                let is_empty = body.is_end_stream();
                let metrics = self.core.shared.metrics.clone();
                let trailers = Trailers::default();
                if framing == Framing::Bare {
                    head.extensions.insert(trailers.clone());
                }
                let body = Guarded::new(body, framing, &trailers, metrics, waited.clone());
                let body = OnCore(SendWrapper::new(body));
                let body = match &promised {
                    Some(promised) => s3s::Body::http_body_unsync(promised.watch(body)),
                    None if is_empty => s3s::Body::empty(),
                    None => s3s::Body::http_body_unsync(body),
                };
                let response = self.serve(Request::from_parts(head, body), &id).await;
                match promised.is_some_and(|promised| promised.is_broken()) {
                    true => refuse(Error::from(Kind::BadDigest)),
                    false => response,
                }
            }
        };
        if let Some(waiting) = waiting {
            waiting.answered(&mut response);
        }
        // HeadObject of a range or part is 206 like its GET; s3s answers 200.
        if head_only
            && response.headers().contains_key(http::header::CONTENT_RANGE)
            && response.status() == StatusCode::OK
        {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        if note.named() == Some("GetObjectAttributes") {
            bare_etag(&mut response);
        }
        if !head_only && (response.status().is_client_error() || response.status().is_server_error()) {
            explain(&mut response, &id);
        }
        if let Some(origin) = origin {
            self.tell_origin(&origin, &mut response).await;
        }
        if let Ok(value) = HeaderValue::from_str(id.as_str()) {
            response.headers_mut().insert(ID_2, value.clone());
            response.headers_mut().insert(REQUEST_ID, value);
        }
        if note.is_charged() && response.status().is_success() {
            response.headers_mut().insert(CHARGED, HeaderValue::from_static("requester"));
        }
        let operation = note.named().unwrap_or("Refused");
        let took = now().saturating_sub(began);
        self.core.shared.metrics.answered(operation, response.status().as_u16(), took);
        if let Some(audit) = self.core.shared.audit.get() {
            audit.record(&call(&self.core, &id, &note, &place, source, took, &response));
        }
        let threshold = self.core.shared.operator.get().and_then(|o| o.slow).unwrap_or(slow::THRESHOLD);
        if took >= threshold {
            let slow = slow::Request {
                id: id.as_str(),
                operation,
                status: response.status().as_u16(),
                account: note.sender().map_or("", |key| key.account.as_str()),
                bucket: place.bucket().unwrap_or_default(),
                key: &place.sent_key(uri.path()),
                source: source.map_or_else(String::new, |ip| ip.to_string()),
                took,
                waited: waited.get(),
            };
            self.core.shared.slow.see(threshold, now(), &slow);
        }
        if let Some(witness) = witness
            && let Ok(known) = self.core.known(witness.bucket()).await
        {
            witness.see(&self.core.shared, known, &note, &mut response);
        }
        response
    }
}

impl<B: BulkStore> Front<B> {
    pub(crate) fn core(&self) -> &CoreRef<B> {
        &self.core
    }

    /// Hands a request to the S3 service; twice where its range is to be ignored.
    pub(crate) async fn serve(&self, mut request: Request<s3s::Body>, id: &RequestId) -> Response<s3s::Body> {
        let Some(mut again) = range::instead(&mut request) else { return self.hand(request, id).await };
        let mut response = self.hand(request, id).await;
        match response.extensions_mut().remove::<Admitted>() {
            None => response,
            Some(admitted) => {
                again.extensions_mut().insert(admitted);
                self.hand(again, id).await
            }
        }
    }

    async fn hand(&self, request: Request<s3s::Body>, id: &RequestId) -> Response<s3s::Body> {
        match self.service.call(request).await {
            Ok(mut response) => {
                if let Some(Rendered(text)) = response.extensions_mut().remove() {
                    *response.body_mut() = s3s::Body::from(text);
                }
                response
            }
            Err(e) => {
                let e: StdError = e.into();
                tracing::error!(request_id = id.as_str(), error = %e, "a request ended without an answer");
                refuse(Error::from(Kind::InternalError))
            }
        }
    }

    /// A browser's form: what it asks for is carried out as a PUT.
    async fn form<R>(&self, head: &Parts, place: &Place, body: R, id: &RequestId) -> Result<Response<s3s::Body>>
    where
        R: Body<Data = Bytes> + Unpin + 'static,
        R::Error: Into<StdError>,
    {
        let bucket = place.bucket().filter(|_| place.key().is_none()).ok_or(Kind::MethodNotAllowed)?;
        let kind = head.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let boundary = form::boundary(kind)?;
        let metrics = self.core.shared.metrics.clone();
        let body = Guarded::new(body, Framing::Plain, &Trailers::default(), metrics, Rc::default());
        let mut body = OnCore(SendWrapper::new(body));
        let (mut held, mut fields_of) = (BytesMut::new(), form::Head::new(&boundary));
        let (fields, at) = loop {
            if let Some(found) = fields_of.read(&held)? {
                break found;
            }
            if held.len() > form::HEAD_MAX {
                return Err(Kind::MaxPostPreDataLengthExceeded.into());
            }
            match body.frame().await {
                None => return Err(Kind::MalformedPostRequest.into()),
                Some(Err(e)) => return Err(crate::error::body(&*e)),
                Some(Ok(frame)) => held.extend_from_slice(&frame.into_data().unwrap_or_default()),
            }
        };
        let upload = form::upload(&fields, bucket, &self.keys, self.core.now())?;
        // All that is still to come, and what the policy allows: the file is held to both.
        let announced = context::length(&head.headers).map(|all| all.saturating_sub(at as u64));
        let file_max = announced.into_iter().chain(upload.length.map(|(_, max)| max)).min();
        let file = form::File::new(body, held.split_off(at).freeze(), &boundary, upload.length);
        let key = uri_encode(upload.key.as_bytes(), true);
        let put = Request::builder().method(Method::PUT).uri(format!("/{bucket}/{key}"));
        let put = put.body(s3s::Body::http_body_unsync(file));
        let mut put = put.map_err(|_| Error::new(Kind::InvalidArgument, "The form's key makes no URI."))?;
        // In path style: the host, which may be the bucket's, does not come along.
        *put.headers_mut() = upload.headers;
        put.headers_mut().remove(HOST);
        put.extensions_mut().insert(Place::object(bucket, &upload.key));
        if let Some(peer) = head.extensions.get::<Peer>() {
            put.extensions_mut().insert(*peer);
        }
        put.extensions_mut().insert(Form { signer: upload.signer, file_max });
        put.extensions_mut().insert(id.clone());
        if let Some(note) = head.extensions.get::<Note>() {
            put.extensions_mut().insert(note.clone());
        }
        let (put_head, body) = put.into_parts();
        guard::check(&put_head)?;
        let mut done = self.serve(Request::from_parts(put_head, body), id).await;
        if !done.status().is_success() {
            return Ok(done);
        }
        let etag = done.headers_mut().remove(ETAG);
        let tag = etag.as_ref().and_then(|v| v.to_str().ok()).unwrap_or_default();
        let host = head.headers.get(HOST).and_then(|v| v.to_str().ok()).unwrap_or("localhost");
        let scheme = if head.extensions.get::<Peer>().is_some_and(|peer| peer.secure) { "https" } else { "http" };
        let location = match place.bucket_of_host() {
            Some(_) => format!("{scheme}://{host}/{key}"),
            None => format!("{scheme}://{host}/{bucket}/{key}"),
        };
        let mut response = Response::new(s3s::Body::empty());
        *response.headers_mut() = std::mem::take(done.headers_mut());
        response.headers_mut().remove(CONTENT_LENGTH);
        *response.status_mut() = StatusCode::from_u16(upload.status).unwrap_or(StatusCode::NO_CONTENT);
        let redirect = upload.redirect.and_then(|to| {
            let encode = |text: &str| uri_encode(text.as_bytes(), false);
            let mark = if to.contains('?') { '&' } else { '?' };
            let query = format!("bucket={}&key={}&etag={}", encode(bucket), encode(&upload.key), encode(tag));
            HeaderValue::from_str(&format!("{to}{mark}{query}")).ok()
        });
        if let Some(to) = redirect {
            *response.status_mut() = StatusCode::SEE_OTHER;
            response.headers_mut().insert(LOCATION, to);
        } else {
            response.headers_mut().extend(HeaderValue::from_str(&location).ok().map(|v| (LOCATION, v)));
            if upload.status == 201 {
                let text = Out::bare("PostResponse", |out| {
                    out.text("Location", &location);
                    out.text("Bucket", bucket);
                    out.text("Key", &upload.key);
                    out.text("ETag", tag);
                });
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
                *response.body_mut() = s3s::Body::from(text);
            }
        }
        response.headers_mut().extend(etag.map(|v| (ETAG, v)));
        Ok(response)
    }
}

/// An ordinary request that names an origin: what the answer's CORS headers depend on.
struct Origin {
    method: Method,
    bucket: String,
    headers: HeaderMap,
}

impl Origin {
    fn of(head: &Parts, place: &Place) -> Option<Self> {
        if head.method == Method::OPTIONS || !head.headers.contains_key(ORIGIN) {
            return None;
        }
        let names = [ORIGIN, ACCESS_CONTROL_REQUEST_METHOD];
        let headers = names.into_iter().filter_map(|n| Some((n.clone(), head.headers.get(n)?.clone()))).collect();
        Some(Self { method: head.method.clone(), bucket: place.bucket()?.to_owned(), headers })
    }
}

impl<B: BulkStore> Front<B> {
    /// Answers a browser that asks before it sends.
    async fn preflight(&self, head: &Parts, place: &Place) -> Result<Response<s3s::Body>> {
        // What is wrong with the request itself comes first: no bucket is looked for.
        let known = match place.bucket() {
            Some(bucket) => self.core.known(bucket).await.ok(),
            None => None,
        };
        let headers = cors::preflight(known.as_ref().map(|k| &k.settings.cors[..]), &head.headers)?;
        let mut response = Response::new(s3s::Body::empty());
        *response.headers_mut() = headers;
        Ok(response)
    }

    /// Adds the CORS headers of a bucket's rules, to errors too.
    async fn tell_origin(&self, origin: &Origin, response: &mut Response<s3s::Body>) {
        let Ok(known) = self.core.known(&origin.bucket).await else { return };
        if let Some(headers) = cors::response(&known.settings.cors, origin.method.as_str(), &origin.headers) {
            response.headers_mut().extend(headers);
        }
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

/// A request's line in the audit log.
fn call<B: BulkStore>(
    core: &CoreRef<B>,
    id: &RequestId,
    note: &Note,
    place: &Place,
    source: Option<std::net::IpAddr>,
    took: Duration,
    response: &Response<s3s::Body>,
) -> audit::Call {
    let status = response.status();
    let document = (status.as_u16() >= 400).then(|| response.body().bytes()).flatten();
    let code = document.as_deref().and_then(|d| std::str::from_utf8(d).ok()?.split("<Code>").nth(1)?.split('<').next());
    let error = match code {
        Some(code) => Some(code.to_owned()),
        None if status.as_u16() >= 400 => Some(status.as_str().to_owned()),
        None => None,
    };
    let decision = match note.admitted() {
        Some(_) if status == StatusCode::FORBIDDEN => "deny",
        Some(_) => "allow",
        None if note.sender().is_some() && status == StatusCode::FORBIDDEN => "deny",
        None => "none",
    };
    let resource = place.resource();
    let sender = note.sender();
    let text = |of: fn(&Key) -> &str| sender.map_or(String::new(), |key| of(key).to_owned());
    let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    audit::Call {
        time: UnixMicros(core.now().0.saturating_sub(ms * 1000)),
        request_id: id.as_str().to_owned(),
        source,
        account: text(|key| key.account.as_str()),
        principal: text(|key| &key.arn),
        key: text(|key| &key.access_key_id),
        action: note.named().unwrap_or("Refused"),
        resources: if resource.is_empty() { vec![] } else { vec![format!("arn:aws:s3:::{resource}")] },
        decision,
        error,
        ms,
    }
}

/// A head of HTTP/2, or of a proxy's HTTP/1.1, as signatures are over it: the authority is its host. Where both are there
/// and mean the same, whether they name the scheme's own port or not, the header stays as it was sent. A head that names two
/// hosts has two from here on, which is refused ([`guard::check`]).
fn settle(head: &mut Parts) {
    let Some(authority) = head.uri.authority() else { return };
    let default = if head.extensions.get::<Peer>().is_some_and(|peer| peer.secure) { ":443" } else { ":80" };
    let meant = authority.as_str();
    let meant = meant.strip_suffix(default).unwrap_or(meant);
    let is_meant = |host: &str| host.strip_suffix(default).unwrap_or(host).eq_ignore_ascii_case(meant);
    let is_same = |host: &HeaderValue| host.to_str().is_ok_and(is_meant);
    if !head.headers.get(HOST).is_some_and(is_same)
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        head.headers.append(HOST, host);
    }
    if let Some(path) = head.uri.path_and_query().cloned() {
        head.uri = Uri::from(path);
    }
}

/// The core's monotonic time.
pub(crate) fn now() -> Duration {
    if exec::on_executor() { exec::now() } else { Duration::ZERO }
}

const TOO_SLOW: &str = "less came than 1 KiB a second";

fn stalled(why: &str) -> StdError {
    std::io::Error::other(format!("{}: {why}", guard::STALLED)).into()
}

/// A wait for the client to send.
struct Wait {
    since: Duration,
    /// Up to when its pace has been judged.
    judged: Duration,
    sleep: Pin<Box<exec::Sleep>>,
}

impl Wait {
    fn begin(pace: &Pace) -> Self {
        Self { since: now(), judged: now(), sleep: Box::pin(exec::sleep(STALL.min(pace.left()))) }
    }

    /// Ready when the client has been waited for long enough; says why.
    fn poll(&mut self, cx: &mut Context<'_>, pace: &mut Pace) -> Poll<String> {
        loop {
            std::task::ready!(self.sleep.as_mut().poll(cx));
            let now = now();
            if now >= self.since + STALL {
                return Poll::Ready(format!("nothing came for {} s", STALL.as_secs()));
            }
            if !pace.moved(0, now.saturating_sub(self.judged)) {
                return Poll::Ready(TOO_SLOW.to_owned());
            }
            self.judged = now;
            self.sleep.reset((self.since + STALL).min(now + pace.left()));
        }
    }
}

/// A request body with its framing followed, its pauses limited, and a least rate ([`Rate`]'s default) while it is waited for.
struct Guarded<R> {
    inner: R,
    framing: Framing,
    chunks: Option<Chunks>,
    out: VecDeque<Bytes>,
    wait: Option<Wait>,
    pace: Pace,
    metrics: Metrics,
    /// For the client to send.
    waited: Rc<Cell<Duration>>,
}

impl<R> Guarded<R> {
    fn new(inner: R, framing: Framing, trailers: &Trailers, metrics: Metrics, waited: Rc<Cell<Duration>>) -> Self {
        let pace = Pace::new(Rate::default());
        Self {
            inner,
            framing,
            chunks: Chunks::new(framing, trailers),
            out: VecDeque::new(),
            wait: None,
            pace,
            metrics,
            waited,
        }
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
                    let pace = &mut self.pace;
                    let wait = self.wait.get_or_insert_with(|| Wait::begin(pace));
                    let why = std::task::ready!(wait.poll(cx, pace));
                    return Poll::Ready(Some(Err(stalled(&why))));
                }
            };
            let wait = self.wait.take();
            let waited = wait.as_ref().map_or(Duration::ZERO, |wait| now().saturating_sub(wait.since));
            self.waited.set(self.waited.get() + waited);
            let bytes = match &frame {
                Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
                // The end, whatever it is, is not late.
                None | Some(Err(_)) => usize::MAX,
            };
            let unjudged = wait.map_or(Duration::ZERO, |wait| now().saturating_sub(wait.judged));
            if !self.pace.moved(bytes as u64, unjudged) {
                return Poll::Ready(Some(Err(stalled(TOO_SLOW))));
            }
            match frame {
                None if self.framing == Framing::Bare && !self.chunks.as_ref().is_some_and(Chunks::is_at_end) => {
                    return Poll::Ready(Some(Err(guard::BadChunk::CutOff.into())));
                }
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
            Framing::Unsigned | Framing::Bare => SizeHint::default(),
            Framing::Plain | Framing::Signed => self.0.inner.size_hint(),
        }
    }
}
