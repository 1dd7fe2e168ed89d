//! The digests that documents (XML bodies) come with: `s3s` reads these bodies and compares nothing.
//!
//! A document is hashed as it passes to `s3s`. One that is not what its Content-MD5 or x-amz-checksum- header says ends in
//! an error before its last byte, so no operation ever sees it, and is answered `BadDigest`. With Signature Version 2 the
//! MD5 is all that protects a body on its way; a DeleteObjects whose signature leaves its body out needs one of the two.
//! Leaves to others: objects' data (`body`), documents that `route` reads, and aws-chunked documents, which SDKs do not
//! send: their chunks have signatures. Without those nothing protects them (nobody compares a document's trailer), so a
//! DeleteObjects is refused.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method};
use http_body::{Body, Frame, SizeHint};
use karri_base::aws::sigv4::parse_query;
use s3s::StdError;

use crate::digest::{self, Algorithm, Digests, Hasher};
use crate::error::{Error, Kind, Result};
use crate::guard::Framing;
use crate::place::Place;

/// Subresources of an object that are written as documents.
const OF_OBJECTS: [&str; 3] = ["legal-hold", "retention", "tagging"];

/// What a document must be like.
#[derive(Debug, Clone, Default)]
pub struct Promised {
    md5: Option<[u8; 16]>,
    value: Option<(Algorithm, Vec<u8>)>,
    broken: Arc<AtomicBool>,
}

impl Promised {
    /// From a request's head; `None` where nothing is to be compared.
    ///
    /// # Errors
    /// `InvalidDigest`; `InvalidRequest` for a DeleteObjects whose body nothing protects.
    pub fn of(head: &Parts, place: &Place, framing: Framing) -> Result<Option<Self>> {
        if !matches!(head.method, Method::PUT | Method::POST) {
            return Ok(None);
        }
        let query = parse_query(head.uri.query().unwrap_or_default());
        let has = |name: &str| query.iter().any(|(n, _)| n == name);
        let deletes = head.method == Method::POST && has("delete");
        match framing {
            Framing::Plain | Framing::Bare => {}
            Framing::Signed if !deletes || is_version_4(&head.headers) => return Ok(None),
            Framing::Unsigned if !deletes => return Ok(None),
            Framing::Signed | Framing::Unsigned => return Err(unprotected()),
        }
        let of_object = place.key().is_some_and(|key| !key.is_empty());
        if head.method == Method::PUT && of_object && !OF_OBJECTS.iter().any(|name| has(name)) {
            return Ok(None);
        }
        let md5 = text(&head.headers, "content-md5");
        let md5 = md5.map(|text| digest::parse_md5(text).ok_or(Kind::InvalidDigest)).transpose()?;
        // CompleteMultipartUpload's checksum is the object's.
        let all = if has("uploadId") { &[][..] } else { &Algorithm::ALL[..] };
        let mut value = None;
        for &algorithm in all {
            let Some(text) = text(&head.headers, algorithm.header()) else { continue };
            if value.is_some() {
                return Err(Error::new(
                    Kind::InvalidRequest,
                    "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
                ));
            }
            let bytes = digest::parse_value(algorithm, text).ok_or_else(|| {
                Error::new(Kind::InvalidRequest, format!("Value for {} header is invalid.", algorithm.header()))
            })?;
            value = Some((algorithm, bytes));
        }
        if md5.is_none() && value.is_none() {
            if deletes && !signs_body(&head.headers) {
                return Err(unprotected());
            }
            return Ok(None);
        }
        Ok(Some(Self { md5, value, broken: Arc::default() }))
    }

    /// True where the document was another.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    fn is_kept(&self, found: &Digests) -> bool {
        self.md5.is_none_or(|md5| md5 == found.md5)
            && self.value.as_ref().is_none_or(|(algorithm, value)| found.get(*algorithm) == Some(value))
    }

    /// The body with its end held back unless it is as promised.
    pub fn watch<B>(&self, inner: B) -> Watched<B> {
        let algorithms: Vec<Algorithm> = self.value.iter().map(|(algorithm, _)| *algorithm).collect();
        Watched { inner, hasher: Some(Hasher::new(&algorithms)), promised: self.clone() }
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).map(|value| value.to_str().unwrap_or("?"))
}

fn unprotected() -> Error {
    Error::new(Kind::InvalidRequest, "Missing required header for this request: Content-MD5 OR x-amz-checksum-*")
}

/// True for a signature of version 4 in the header: version 2 has nothing to do with the body.
fn is_version_4(headers: &HeaderMap) -> bool {
    text(headers, "authorization").is_some_and(|authorization| authorization.starts_with("AWS4-"))
}

/// True where a request's signature is over its body's SHA-256.
fn signs_body(headers: &HeaderMap) -> bool {
    let hash = text(headers, "x-amz-content-sha256").unwrap_or_default();
    is_version_4(headers) && hash.len() == 64 && !hash.starts_with("UNSIGNED")
}

/// A body that is compared with what was promised.
pub struct Watched<B> {
    inner: B,
    /// `None` when it has been compared.
    hasher: Option<Hasher>,
    promised: Promised,
}

impl<B> Watched<B> {
    /// The end: an error where the body is another.
    fn compare(&mut self) -> Option<StdError> {
        let found = self.hasher.take()?.finish();
        if self.promised.is_kept(&found) {
            return None;
        }
        self.promised.broken.store(true, Ordering::Relaxed);
        Some(std::io::Error::other("a document is not what its digest says").into())
    }
}

impl<B> Body for Watched<B>
where
    B: Body<Data = Bytes, Error = StdError> + Unpin,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = &mut *self;
        let frame = match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
            None => return Poll::Ready(this.compare().map(Err)),
            Some(Err(e)) => return Poll::Ready(Some(Err(e))),
            Some(Ok(frame)) => frame,
        };
        if let (Some(hasher), Some(data)) = (&mut this.hasher, frame.data_ref()) {
            hasher.update(data);
        }
        // Nobody need ask for more than the last frame.
        let broken = if this.inner.is_end_stream() { this.compare() } else { None };
        Poll::Ready(Some(broken.map_or(Ok(frame), Err)))
    }

    fn is_end_stream(&self) -> bool {
        self.hasher.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};

    use super::*;
    use crate::place::Domains;

    fn head(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let request = http::Request::builder().method(method).uri(uri);
        headers.iter().fold(request, |r, (name, value)| r.header(*name, *value)).body(()).unwrap().into_parts().0
    }

    fn of(head: &Parts, framing: Framing) -> Result<Option<Promised>> {
        Promised::of(head, &Place::of(&Domains::default(), head), framing)
    }

    #[test]
    fn which_requests_are_compared() {
        let check = |method: &str, uri: &str, headers: &[(&str, &str)], want: std::result::Result<bool, Kind>| {
            let got = of(&head(method, uri, headers), Framing::Plain);
            assert_eq!(got.map(|p| p.is_some()).map_err(|e| e.kind), want, "{method} {uri} {headers:?}");
        };
        let md5 = ("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg==");
        let crc = ("x-amz-checksum-crc32", "AAAAAA==");
        let hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let signed = [("authorization", "AWS4-HMAC-SHA256 x"), ("x-amz-content-sha256", hash)];
        check("PUT", "/b", &[md5], Ok(true));
        check("PUT", "/b/?versioning", &[crc], Ok(true));
        check("PUT", "/b/k?tagging", &[md5, crc], Ok(true));
        check("PUT", "/b/k?%74agging", &[md5], Ok(true));
        check("PUT", "/b/k", &[md5], Ok(false));
        check("PUT", "/k", &[("host", "b.localhost"), md5], Ok(false));
        check("PUT", "/b%2Fk", &[md5], Ok(false));
        check("PUT", "/b/k?partNumber=1&uploadId=u", &[md5], Ok(false));
        check("GET", "/b?delete", &[md5], Ok(false));
        check("POST", "/b/k?uploadId=u", &[crc], Ok(false));
        check("POST", "/b/k?uploadId=u", &[md5, crc], Ok(true));
        check("PUT", "/b?tagging", &[("content-md5", "x")], Err(Kind::InvalidDigest));
        check("PUT", "/b?tagging", &[("x-amz-checksum-crc32", "x")], Err(Kind::InvalidRequest));
        check("POST", "/b?delete", &signed, Ok(false));
        check("POST", "/b?delete", &signed[1..], Err(Kind::InvalidRequest));
        check("POST", "/b?delete", &[("authorization", "AWS k:s")], Err(Kind::InvalidRequest));
        check("POST", "/b?delete", &[("authorization", "AWS k:s"), md5], Ok(true));
        check("POST", "/b?delete", &[("authorization", "AWS k:s"), signed[1]], Err(Kind::InvalidRequest));
        check("POST", "/b?delete", &[crc, ("x-amz-checksum-crc32c", "AAAAAA==")], Err(Kind::InvalidRequest));
        for (framing, headers, want) in [
            (Framing::Signed, &signed[..], Ok(false)),
            (Framing::Signed, &[("authorization", "AWS k:s"), md5][..], Err(Kind::InvalidRequest)),
            (Framing::Unsigned, &signed[..], Err(Kind::InvalidRequest)),
        ] {
            let got = of(&head("POST", "/b?delete", headers), framing);
            assert_eq!(got.map(|p| p.is_some()).map_err(|e| e.kind), want, "{framing:?} {headers:?}");
            assert!(of(&head("PUT", "/b/k", headers), framing).unwrap().is_none());
        }
    }

    #[test]
    fn only_what_was_promised_arrives_whole() {
        let document = Bytes::from_static(b"<Delete/>");
        for (text, kept) in [(&b"<Delete/>"[..], true), (b"<Delete>>", false), (b"", false), (b"<Delete/", false)] {
            let md5 = digest::base64(&digest::md5(text));
            let promised = of(&head("PUT", "/b?tagging", &[("content-md5", &md5)]), Framing::Plain);
            let promised = promised.unwrap().unwrap();
            let body = promised.watch(Full::new(document.clone()).map_err(|never| match never {}));
            assert!(!body.is_end_stream());
            let read = futures_util::FutureExt::now_or_never(body.collect()).unwrap();
            assert_eq!((read.is_ok(), promised.is_broken()), (kept, !kept), "{text:?}");
        }
    }
}
