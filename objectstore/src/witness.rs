//! The witness of a request to a bucket with access logs: what it was, how it was answered, what was sent.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, HOST, REFERER, USER_AGENT};
use http::request::Parts;
use http::{HeaderMap, Method, Response};
use http_body::{Body, Frame, SizeHint};
use karri_base::aws::sigv4::parse_query;
use s3s::StdError;

use crate::accesslog::{self, Entry};
use crate::api::{Peer, RequestId};
use crate::buckets::Known;
use crate::core::Shared;
use crate::front::now;
use crate::note::Note;
use crate::place::Place;

/// A request that may have to be logged.
#[derive(Debug)]
pub struct Witness {
    entry: Entry,
    method: Method,
    body: Option<u64>,
    began: Duration,
}

fn text(headers: &HeaderMap, name: http::HeaderName) -> String {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
}

/// A target without what would let a reader of the logs send the request again.
fn redacted(target: &str) -> Cow<'_, str> {
    const SECRETS: [&str; 3] = ["x-amz-signature", "signature", "x-amz-security-token"];
    let Some((path, query)) = target.split_once('?') else { return target.into() };
    let hide = |pair: &str| match pair.split_once('=') {
        Some((name, _)) if SECRETS.contains(&name.to_ascii_lowercase().as_str()) => format!("{name}=-redacted-"),
        _ => pair.to_owned(),
    };
    format!("{path}?{}", query.split('&').map(hide).collect::<Vec<_>>().join("&")).into()
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

impl Witness {
    /// Of a request's head; `None` where the bucket is known to have no logs.
    pub fn of(shared: &Shared, head: &Parts, place: &Place, id: &RequestId, began: Duration) -> Option<Self> {
        let bucket = place.bucket()?.to_owned();
        let key = place.sent_key(head.uri.path());
        // A copy's source may be in a bucket that has logs.
        let quiet = || shared.buckets.get(&bucket).is_some_and(|known| known.settings.logging.is_none());
        if !head.headers.contains_key("x-amz-copy-source") && quiet() {
            return None;
        }
        let query = parse_query(head.uri.query().unwrap_or_default());
        let asks = |name: &str| query.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
        let authorization = text(&head.headers, AUTHORIZATION);
        let (signature, auth) = match authorization.as_str() {
            a if a.starts_with("AWS4-") => ("SigV4", "AuthHeader"),
            a if a.starts_with("AWS ") => ("SigV2", "AuthHeader"),
            _ if asks("X-Amz-Signature") => ("SigV4", "QueryString"),
            _ if asks("Signature") => ("SigV2", "QueryString"),
            _ => ("", ""),
        };
        let peer = head.extensions.get::<Peer>().copied().unwrap_or_default();
        let target = redacted(head.uri.path_and_query().map_or("/", |target| target.as_str()));
        let entry = Entry {
            bucket,
            time: shared.clock.now().0,
            remote: peer.source.map(|a| a.to_canonical().to_string()).unwrap_or_default(),
            request_id: id.as_str().to_owned(),
            key: key.into_owned(),
            request: format!("{} {target} {:?}", head.method, head.version),
            referer: text(&head.headers, REFERER),
            agent: text(&head.headers, USER_AGENT),
            host_id: id.as_str().to_owned(),
            signature,
            auth,
            host: text(&head.headers, HOST),
            ..Entry::default()
        };
        let body = number(&head.headers, "x-amz-decoded-content-length");
        let body = body.or_else(|| number(&head.headers, CONTENT_LENGTH.as_str()));
        Some(Self { entry, method: head.method.clone(), body, began })
    }

    /// The bucket.
    pub fn bucket(&self) -> &str {
        &self.entry.bucket
    }

    /// Sees the answer; its line is written when the answer has gone out.
    pub fn see(mut self, shared: &Arc<Shared>, known: Arc<Known>, note: &Note, response: &mut Response<s3s::Body>) {
        let beside = note.admitted().and_then(|caller| caller.leave.beside.get()).map_or(&[][..], Vec::as_slice);
        if known.settings.logging.is_none() && beside.is_empty() {
            return;
        }
        let headers = response.headers();
        let name = note.named().unwrap_or("Refused");
        let entry = &mut self.entry;
        entry.owner = known.bucket().owner.clone();
        entry.operation = accesslog::operation(name, self.method.as_str());
        if let Some(key) = note.sender() {
            entry.requester =
                if key.arn.ends_with(":root") { key.account.as_str().to_owned() } else { key.arn.clone() };
        }
        entry.by_acl = note.admitted().is_some_and(|caller| caller.leave.by_acl);
        entry.status = response.status().as_u16();
        entry.version = text(headers, http::HeaderName::from_static("x-amz-version-id"));
        entry.turn = Some(now().saturating_sub(self.began));
        let whole = headers.get(CONTENT_RANGE).and_then(|v| v.to_str().ok()?.rsplit('/').next()?.parse().ok());
        entry.size = match name {
            "GetObject" | "HeadObject" | "Website" if response.status().is_success() => {
                whole.or_else(|| number(headers, CONTENT_LENGTH.as_str()))
            }
            "PutObject" | "UploadPart" | "PostObject" => self.body,
            _ => None,
        };
        let held = response.body().bytes();
        if entry.status >= 400 {
            let document = held.as_ref().and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default();
            let code = document.split("<Code>").nth(1).and_then(|rest| rest.split("</Code>").next());
            entry.error = code.unwrap_or_default().to_owned();
        }
        for beside in beside {
            let of = if beside.bucket == self.entry.bucket {
                Some(known.clone())
            } else {
                shared.buckets.get(&beside.bucket)
            };
            // One that is not in memory any more was not used a moment ago: its line is lost.
            if let Some(of) = of {
                let entry = beside.entry(&self.entry, &of.bucket().owner);
                drop(Seen { shared: shared.clone(), known: of, entry, began: self.began });
            }
        }
        if known.settings.logging.is_none() {
            return;
        }
        let mut seen = Seen { shared: shared.clone(), known, entry: self.entry, began: self.began };
        match held {
            // All there is: it goes out in one piece.
            Some(bytes) => seen.entry.sent = if self.method == Method::HEAD { 0 } else { bytes.len() as u64 },
            None => {
                let body = std::mem::replace(response.body_mut(), s3s::Body::empty());
                *response.body_mut() = s3s::Body::http_body_unsync(Watched { body: Box::pin(body), seen });
            }
        }
    }
}

/// A line that is written when this is dropped.
struct Seen {
    shared: Arc<Shared>,
    known: Arc<Known>,
    entry: Entry,
    began: Duration,
}

impl Drop for Seen {
    fn drop(&mut self) {
        let Some(logging) = &self.known.settings.logging else { return };
        self.entry.total = now().saturating_sub(self.began);
        if !self.shared.logs.push(&self.entry, logging) {
            self.shared.metrics.log_lines_lost(1);
        }
    }
}

/// A body whose bytes are counted on their way out.
struct Watched {
    body: Pin<Box<s3s::Body>>,
    seen: Seen,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let frame = std::task::ready!(self.body.as_mut().poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            self.seen.entry.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        Poll::Ready(frame)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_not_logged() {
        let check = |target: &str, want: &str| assert_eq!(redacted(target), want);
        check("/b/k", "/b/k");
        check("/b/k?acl&x=1", "/b/k?acl&x=1");
        check("/b/k?X-Amz-Date=d&X-Amz-Signature=abc", "/b/k?X-Amz-Date=d&X-Amz-Signature=-redacted-");
        check("/b/k?Signature=a%3D&Expires=1", "/b/k?Signature=-redacted-&Expires=1");
    }
}
