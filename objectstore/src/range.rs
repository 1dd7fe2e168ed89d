//! Range as RFC 9110 has it (section 14.2), where `s3s` answers 400: a range that is malformed, of another unit, or one of
//! many is not there, and the answer is the whole object. If-Range (section 13.1.5) is judged with the object's record, in
//! [`crate::ops::get`].
//!
//! A header that is signed cannot be taken off a request before its signature is checked, so such a request, which is rare,
//! goes through `s3s` twice: as it came, to be let in ([`Retry`] marks it for [`crate::route`]), and then without the
//! range, by who was let in ([`Admitted`]).

use http::header::{AUTHORIZATION, HOST, RANGE};
use http::{HeaderMap, HeaderValue, Method, Request};
use karri_base::aws::sigv4::{parse_query, uri_encode};

use crate::api::{Peer, RequestId};
use crate::core::Caller;
use crate::note::Note;
use crate::place::Place;

/// Marks a request that is only to be let in: the operation that it is.
#[derive(Debug, Clone, Copy)]
pub struct Retry(pub &'static str);

/// Who was let in, for which operation.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// Who.
    pub caller: Caller,
    /// AWS's name of it.
    pub operation: &'static str,
}

/// A range as `s3s` reads it; `None` for what is to be ignored.
pub fn canonical(text: &str) -> Option<String> {
    let (unit, range) = text.split_once('=')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = range.split_once('-')?;
    // Beyond every object is beyond every object.
    let number = |digits: &str| {
        let fits = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        fits.then(|| digits.parse().unwrap_or(u64::MAX).min(i64::MAX as u64))
    };
    match (first, last) {
        ("", last) => Some(format!("bytes=-{}", number(last)?)),
        (first, "") => Some(format!("bytes={}-", number(first)?)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            // Numbers that were cut to the same one may have been in any order; the first is out of all bounds anyway.
            (first <= last).then(|| format!("bytes={first}-{last}"))
        }
    }
}

/// The range of these headers, if `s3s` must see another: that one, or none.
fn other(headers: &HeaderMap) -> Option<Option<HeaderValue>> {
    let mut sent = headers.get_all(RANGE).iter();
    let first = sent.next()?;
    let text = first.to_str().ok().filter(|_| sent.next().is_none());
    let canonical = text.and_then(canonical);
    if canonical.as_deref() == text && text.is_some() {
        return None;
    }
    Some(canonical.and_then(|text| HeaderValue::try_from(text).ok()))
}

/// What selects another operation than GetObject.
const OTHERS: [&str; 7] = ["attributes", "acl", "legal-hold", "retention", "tagging", "torrent", "uploadId"];

/// What of a query is of its signature.
fn is_signature(name: &str) -> bool {
    matches!(name, "Signature" | "AWSAccessKeyId" | "Expires") || name.to_ascii_lowercase().starts_with("x-amz-")
}

/// The request that is to be answered instead of this one, once it was let in; this one is marked then.
pub fn instead<B>(request: &mut Request<B>) -> Option<Request<s3s::Body>> {
    let operation = match *request.method() {
        Method::GET => "GetObject",
        Method::HEAD => "HeadObject",
        _ => return None,
    };
    let range = other(request.headers())?;
    let query = parse_query(request.uri().query().unwrap_or_default());
    if operation == "GetObject" && query.iter().any(|(name, _)| OTHERS.contains(&name.as_str())) {
        return None;
    }
    let place = request.extensions().get::<Place>()?;
    let (bucket, key) = (place.bucket()?.to_owned(), place.key()?.to_owned());
    let encode = |text: &str| uri_encode(text.as_bytes(), false);
    let kept = query.iter().filter(|(name, _)| !is_signature(name));
    let kept: Vec<String> = kept.map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    let mark = if kept.is_empty() { "" } else { "?" };
    let uri = format!("/{bucket}/{}{mark}{}", uri_encode(key.as_bytes(), true), kept.join("&"));
    let again = Request::builder().method(request.method().clone()).uri(uri).body(s3s::Body::empty());
    let mut again = again.ok()?;
    *again.headers_mut() = request.headers().clone();
    let gone = [RANGE, HOST, AUTHORIZATION];
    for name in gone.iter().map(http::HeaderName::as_str).chain(["x-amz-content-sha256", "x-amz-security-token"]) {
        again.headers_mut().remove(name);
    }
    again.headers_mut().extend(range.map(|range| (RANGE, range)));
    let (from, to) = (request.extensions(), again.extensions_mut());
    to.insert(Place::object(&bucket, &key));
    from.get::<Peer>().map(|peer| to.insert(*peer));
    from.get::<Note>().map(|note| to.insert(note.clone()));
    from.get::<RequestId>().map(|id| to.insert(id.clone()));
    request.extensions_mut().insert(Retry(operation));
    Some(again)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use s3s::dto::Range;

    use super::*;

    #[test]
    fn ranges() {
        let check = |text: &str, want: Option<&str>| assert_eq!(canonical(text).as_deref(), want, "{text}");
        for good in ["bytes=0-0", "bytes=5-", "bytes=-5", "bytes=-0", "bytes=10-20"] {
            check(good, Some(good));
        }
        check("Bytes=007-9", Some("bytes=7-9"));
        check("bytes=0-99999999999999999999", Some("bytes=0-9223372036854775807"));
        check("bytes=99999999999999999999-", Some("bytes=9223372036854775807-"));
        for bad in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=9-3",
            "bytes=0-1,5-6",
            "bytes=0-1,",
            "bytes=a-b",
            "bytes=1-2-3",
            "bytes= 1-2",
            "bytes=+1-2",
            "chars=0-1",
            "bytes:0-1",
            "bytes=--5",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn a_request_without_its_range_is_the_same_otherwise() {
        let ask = |method: &str, query: &str, range: &str| {
            let uri = format!("/a%20b/c?{query}");
            let request = Request::builder().method(method).uri(uri).header("host", "bkt.localhost");
            let request = request.header("range", range).header("authorization", "AWS4-...").header("x-amz-a", "1");
            let mut head = request.body(()).unwrap();
            let (parts, ()) = head.clone().into_parts();
            head.extensions_mut().insert(Place::of(&crate::place::Domains::default(), &parts));
            let again = instead(&mut head)?;
            assert!(head.extensions().get::<Retry>().is_some());
            assert_eq!(again.headers().len(), 1 + usize::from(again.headers().contains_key("range")));
            Some(again.uri().to_string())
        };
        let query = "versionId=a%2Bb&X-Amz-Signature=0&response-expires=x";
        let want = "/bkt/a%20b/c?versionId=a%2Bb&response-expires=x";
        assert_eq!(ask("GET", query, "bytes=0-1,3-4").as_deref(), Some(want));
        assert_eq!(ask("HEAD", "x", "no").as_deref(), Some("/bkt/a%20b/c?x="));
        assert_eq!(ask("GET", "", "BYTES=0-1").as_deref(), Some("/bkt/a%20b/c"));
        assert_eq!(ask("GET", query, "bytes=0-1"), None);
        assert_eq!(ask("PUT", query, "no"), None);
        assert_eq!(ask("GET", "a=b&%74agging", "no"), None);
    }

    proptest! {
        #[test]
        fn what_is_left_s3s_reads(text in "(bytes|BYTES|x)=?[0-9]{0,22}-?[0-9]{0,22}(,[0-9]-)?|\\PC{0,20}") {
            match canonical(&text) {
                Some(range) => prop_assert!(Range::parse(&range).is_ok(), "{range}"),
                // s3s takes a range without numbers, which is none.
                None => prop_assert!(text == "bytes=-" || Range::parse(&text).is_err(), "{text}"),
            }
        }
    }
}
