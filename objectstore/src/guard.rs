//! What is looked at before `s3s` sees a request: the checks that it leaves out, and the framing of chunked bodies.
//!
//! `s3s` 0.14.1 does not refuse a signed header that the request lacks, does not cap a presigned URL's life, holds a
//! whole aws-chunk in memory whatever its size, and buffers POST forms. Pure; the server calls it.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, Bytes};
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::{HeaderMap, Method};

use crate::error::{Error, Kind, Result};
use crate::route::is_subresource;
use crate::sig_v2;

/// In the text of the error that a stalled body ends with.
pub const STALLED: &str = "the body stalled";
/// In the text of the error that too large a signed chunk ends with.
pub const CHUNK_TOO_LARGE: &str = "the aws-chunk is too large";

/// A signed chunk is held until its signature is checked; SDKs send 64 KiB to 1 MiB.
pub const SIGNED_CHUNK_MAX: u64 = 8 << 20;
/// A presigned URL's longest life in seconds: 7 days.
const PRESIGNED_MAX: u64 = 604_800;
/// A chunk's header line.
const LINE_MAX: usize = 1024;
/// The trailers of a [`Framing::Bare`] body.
const TRAILERS_MAX: usize = 4 << 10;

/// How a body is framed inside HTTP's own framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Not at all.
    Plain,
    /// aws-chunked, each chunk signed.
    Signed,
    /// aws-chunked, unsigned, with a trailer.
    Unsigned,
    /// aws-chunked by a sender whose signature, if there is one, knows nothing of chunks: SDKs without credentials send so
    /// over TLS. `s3s` takes the framing of such a body for data, so it is taken off here.
    Bare,
}

/// Checks a request's head.
pub fn check(head: &Parts) -> Result<Framing> {
    let query = Query::of(head.uri.query().unwrap_or_default());
    for name in [http::header::HOST, http::header::AUTHORIZATION] {
        // Which of them counts is nobody's guess.
        if head.headers.get_all(&name).iter().nth(1).is_some() {
            return Err(Error::new(Kind::InvalidRequest, format!("The request has more than one header {name}.")));
        }
    }
    check_subresource(&query)?;
    check_headers(&head.method, &head.headers)?;
    check_version_2(&query, &head.headers)?;
    if query.has("X-Amz-Algorithm") || query.has("X-Amz-Signature") || query.has("X-Amz-Credential") {
        check_presigned(&query, &head.headers)?;
    } else if let Some(authorization) = header(&head.headers, "authorization") {
        check_authorization(authorization, &head.headers)?;
    }
    let payload = header(&head.headers, "x-amz-content-sha256");
    let streams = payload.is_some_and(|value| value.starts_with("STREAMING-"));
    let carries = matches!(head.method, Method::PUT | Method::POST) && head.headers.contains_key(DECODED);
    let in_chunks = streams || payload.is_none() && carries && is_in_chunks(&head.headers);
    let of_version_4 = query.has("X-Amz-Signature")
        || header(&head.headers, "authorization").is_some_and(|a| a.starts_with("AWS4-HMAC-SHA256"));
    Ok(match payload {
        _ if in_chunks && !(streams && of_version_4) => {
            let decoded = header(&head.headers, DECODED).and_then(|length| length.parse::<u64>().ok());
            decoded.map(|_| Framing::Bare).ok_or(Kind::MissingContentLength)?
        }
        Some("STREAMING-UNSIGNED-PAYLOAD-TRAILER") => Framing::Unsigned,
        Some(_) if streams => Framing::Signed,
        _ => Framing::Plain,
    })
}

/// The length of what an aws-chunked body carries.
const DECODED: &str = "x-amz-decoded-content-length";

fn is_in_chunks(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(http::header::CONTENT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    codings.flat_map(|v| v.split(',')).any(|coding| coding.trim().eq_ignore_ascii_case("aws-chunked"))
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}

/// Gives an aws-chunked body whose outer length nobody said (SDKs over TLS), or that comes to `s3s` without its framing, the
/// length that it says it has decoded: `s3s` replaces an outer length by that, and uploads are held to it. For a request
/// whose signed headers were checked.
pub fn tell_length(headers: &mut HeaderMap, framing: Framing) {
    if framing != Framing::Plain
        && (framing == Framing::Bare || !headers.contains_key(CONTENT_LENGTH))
        && let Some(decoded) = headers.get(DECODED).cloned()
    {
        headers.insert(CONTENT_LENGTH, decoded);
    }
}

/// True for a browser's form.
pub fn is_form_upload(head: &Parts) -> bool {
    head.method == Method::POST && header(&head.headers, "content-type").is_some_and(is_form)
}

fn is_form(content_type: &str) -> bool {
    content_type.trim_start().get(..19).is_some_and(|t| t.eq_ignore_ascii_case("multipart/form-data"))
}

/// A query's names and values, decoded: `s3s` knows them so, and a name in disguise must not pass by.
struct Query<'q>(Vec<(Cow<'q, str>, Option<Cow<'q, str>>)>);

impl<'q> Query<'q> {
    fn of(query: &'q str) -> Self {
        let pairs = query.split('&').filter(|p| !p.is_empty());
        let pairs = pairs.map(|p| p.split_once('=').map_or((p, None), |(n, v)| (n, Some(v))));
        Self(pairs.map(|(n, v)| (decoded(n), v.map(decoded))).collect())
    }
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(n, _)| *n == name)
    }
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| *n == name).and_then(|(_, v)| v.as_deref())
    }
}

/// A form's name or value.
fn decoded(raw: &str) -> Cow<'_, str> {
    if !raw.contains(['%', '+']) {
        return raw.into();
    }
    percent_encoding::percent_decode_str(&raw.replace('+', " ")).decode_utf8_lossy().into_owned().into()
}

/// Refuses subresources that Walrus does not have. `s3s` takes those that it does not know for the plain operation of the
/// same method: `PUT /bucket?fancy` must not be CreateBucket.
fn check_subresource(query: &Query<'_>) -> Result<()> {
    for (name, value) in &query.0 {
        // A name without a value is a subresource; parameters have values.
        let (name, bare) = (&**name, value.as_ref().is_none_or(|v| v.is_empty()));
        let known = SUBRESOURCES.contains(&name) || EMPTY_PARAMETERS.contains(&name) || is_subresource(name);
        if bare && !name.starts_with("X-Amz-") && !known {
            return Err(Error::new(Kind::NotImplemented, format!("The subresource {name:?} is not supported.")));
        }
    }
    Ok(())
}

/// Refuses what somebody on the way may have added to a request signed with Version 2.
fn check_version_2(query: &Query<'_>, headers: &HeaderMap) -> Result<()> {
    // As `s3s` tells Version 2 from Version 4.
    if !query.has("Signature") && !header(headers, "authorization").is_some_and(|a| a.starts_with("AWS ")) {
        return Ok(());
    }
    let names = query.0.iter().map(|(name, _)| &**name);
    match sig_v2::unsigned(names, |name| SUBRESOURCES.contains(&name) || is_subresource(name)) {
        None => Ok(()),
        Some(name) => Err(Error::new(
            Kind::AccessDenied,
            format!(
                "There were parameters present in the query which Signature Version 2 does not sign: {name}. Sign the \
                 request with Version 4."
            ),
        )),
    }
}

/// What Walrus has, or has for reading; the others are refused before their bodies are read.
const SUBRESOURCES: &[&str] = &[
    "attributes",
    "delete",
    "encryption",
    "legal-hold",
    "location",
    "object-lock",
    "renameObject",
    "retention",
    "tagging",
    "uploads",
    "versioning",
    "versions",
];

/// Parameters that clients send empty.
const EMPTY_PARAMETERS: &[&str] = &[
    "prefix",
    "delimiter",
    "marker",
    "max-keys",
    "encoding-type",
    "start-after",
    "continuation-token",
    "fetch-owner",
    "key-marker",
    "upload-id-marker",
    "version-id-marker",
    "versionId",
    "uploadId",
    "part-number-marker",
    "max-parts",
    "max-uploads",
    "x-id",
    "list-type",
    "partNumber",
];

/// Headers that ask for what Walrus does not have: refused, since ignoring them would be a lie.
fn check_headers(method: &Method, headers: &HeaderMap) -> Result<()> {
    let reading = *method == Method::GET || *method == Method::HEAD;
    if header(headers, "content-md5").is_some_and(|value| value.trim().is_empty()) {
        return Err(Kind::InvalidDigest.into());
    }
    for name in headers.keys() {
        let name = name.as_str();
        let Some(rest) = name.strip_prefix("x-amz-") else { continue };
        if reading && rest.starts_with("server-side-encryption") && !rest.contains("customer") {
            return Err(Error::new(
                Kind::InvalidArgument,
                format!("{name} header is not supported for this operation."),
            ));
        }
        let refused = matches!(rest, "write-offset-bytes" | "server-side-encryption-context");
        if refused && header(headers, name).is_none_or(|v| !v.is_empty() && !v.eq_ignore_ascii_case("false")) {
            return Err(Error::new(Kind::NotImplemented, format!("The header {name} is not supported.")));
        }
    }
    Ok(())
}

/// Refuses what only a signed read may ask for: to choose headers of its answer. For anybody else's it would make links to
/// a bucket's objects that show them as what they are not.
pub fn check_overrides(query: &[(String, String)]) -> Result<()> {
    const OVERRIDES: [&str; 6] = [
        "response-cache-control",
        "response-content-disposition",
        "response-content-encoding",
        "response-content-language",
        "response-content-type",
        "response-expires",
    ];
    if query.iter().any(|(name, _)| OVERRIDES.contains(&name.as_str())) {
        return Err(Error::new(
            Kind::InvalidRequest,
            "Request specific response headers cannot be used for anonymous GET requests.",
        ));
    }
    Ok(())
}

fn check_presigned(query: &Query<'_>, headers: &HeaderMap) -> Result<()> {
    let wrong = |message: &'static str| Err(Error::new(Kind::AuthorizationQueryParametersError, message));
    let expired = |message: &'static str| Err(Error::new(Kind::AccessDenied, message));
    let all = [
        "X-Amz-Algorithm",
        "X-Amz-Credential",
        "X-Amz-Signature",
        "X-Amz-Date",
        "X-Amz-SignedHeaders",
        "X-Amz-Expires",
    ];
    if all.iter().any(|name| query.get(name).is_none_or(str::is_empty)) {
        return wrong(
            "Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, X-Amz-Signature, \
             X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters.",
        );
    }
    match query.get("X-Amz-Expires").and_then(|e| e.parse::<i64>().ok()) {
        None => return wrong("X-Amz-Expires should be a number"),
        Some(..0) => return expired("X-Amz-Expires must be non-negative"),
        Some(0) => return expired("Request has expired"),
        Some(e) if e as u64 > PRESIGNED_MAX => {
            return expired(
                "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be less than 604800 seconds",
            );
        }
        Some(_) => {}
    }
    let signed = query.get("X-Amz-SignedHeaders").unwrap_or_default();
    check_signed_headers(signed, headers)
}

fn check_authorization(authorization: &str, headers: &HeaderMap) -> Result<()> {
    // Version 2 signs all such headers; what it does not sign has been refused.
    if authorization.starts_with("AWS ") {
        return Ok(());
    }
    let Some(fields) = authorization.strip_prefix("AWS4-HMAC-SHA256") else {
        return Err(Error::new(Kind::InvalidArgument, "Unsupported Authorization Type"));
    };
    let field = |name: &str| fields.split(',').find_map(|f| f.trim().strip_prefix(name)?.strip_prefix('='));
    let (Some(credential), Some(signed), Some(_)) = (field("Credential"), field("SignedHeaders"), field("Signature"))
    else {
        return Err(Error::new(
            Kind::AuthorizationHeaderMalformed,
            "The authorization header is malformed; it needs Credential, SignedHeaders and Signature.",
        ));
    };
    if credential.rsplit('/').next() != Some("aws4_request") || credential.split('/').count() < 5 {
        return Err(Error::new(
            Kind::AuthorizationHeaderMalformed,
            "The authorization header is malformed; the Credential is mal-formed; expecting \
             \"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request\".",
        ));
    }
    check_signed_headers(signed, headers)
}

/// Every signed header is there, and host and all x-amz- headers are signed.
fn check_signed_headers(signed: &str, headers: &HeaderMap) -> Result<()> {
    for name in signed.split(';') {
        if !headers.contains_key(name) {
            return Err(Error::new(
                Kind::SignatureDoesNotMatch,
                format!("The header {name:?} is among the signed headers but not in the request."),
            ));
        }
    }
    let is_signed = |name: &str| signed.split(';').any(|s| s == name);
    let unsigned = headers
        .keys()
        .map(http::HeaderName::as_str)
        .find(|name| (*name == "host" || name.starts_with("x-amz-")) && !is_signed(name));
    match unsigned {
        None => Ok(()),
        Some(name) => Err(Error::new(
            Kind::AccessDenied,
            format!("There were headers present in the request which were not signed: {name}"),
        )),
    }
}

/// Follows aws-chunked framing as a body passes.
///
/// Signed chunks pass as they are, up to [`SIGNED_CHUNK_MAX`]. Unsigned ones are cut into chunks of what has arrived, so
/// that a client which sends 5 GiB as one chunk costs no memory. Of bare ones the data passes, and the trailers are kept.
#[derive(Debug)]
pub struct Chunks {
    passing: Passing,
    state: State,
}

/// What `s3s` sees of a chunked body.
#[derive(Debug)]
enum Passing {
    Whole,
    CutAnew,
    Data(Trailers),
}

/// The trailers of a [`Framing::Bare`] body: what has come of them.
#[derive(Debug, Clone, Default)]
pub struct Trailers(Arc<Mutex<Vec<u8>>>);

impl Trailers {
    /// The value of a trailer.
    pub fn get(&self, name: &str) -> Option<String> {
        let text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fields = text.split(|b| *b == b'\n').filter_map(|line| std::str::from_utf8(line).ok()?.split_once(':'));
        let mut values = fields.filter(|(n, _)| n.trim().eq_ignore_ascii_case(name)).map(|(_, v)| v.trim().to_owned());
        values.next()
    }

    fn add(&self, bytes: &[u8]) -> Result<(), BadChunk> {
        let mut text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if text.len() + bytes.len() > TRAILERS_MAX {
            return Err(BadChunk::Format("the trailers are too long"));
        }
        text.extend_from_slice(bytes);
        Ok(())
    }
}

#[derive(Debug)]
enum State {
    /// In a chunk's header line; what has come of it.
    Line(Vec<u8>),
    /// In its data; how much is left.
    Data(u64),
    /// In the line end after the data; how much of it is left.
    End(usize),
    /// After the last chunk: trailers, for `s3s`.
    Rest,
}

/// Why a chunked body is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadChunk {
    /// Above [`SIGNED_CHUNK_MAX`].
    #[error("{CHUNK_TOO_LARGE}: {0} bytes, at most {SIGNED_CHUNK_MAX}")]
    TooLarge(u64),
    /// It ended too early.
    #[error("the aws-chunked body ends before its last chunk")]
    CutOff,
    /// Not a chunk.
    #[error("aws-chunked FormatError: {0}")]
    Format(&'static str),
}

impl Chunks {
    /// For a body of this framing; `None` where there is nothing to follow. Trailers of a bare one go to `trailers`.
    pub fn new(framing: Framing, trailers: &Trailers) -> Option<Self> {
        let passing = match framing {
            Framing::Plain => return None,
            Framing::Signed => Passing::Whole,
            Framing::Unsigned => Passing::CutAnew,
            Framing::Bare => Passing::Data(trailers.clone()),
        };
        Some(Self { passing, state: State::Line(Vec::new()) })
    }

    /// True where the last chunk has come.
    pub fn is_at_end(&self) -> bool {
        matches!(self.state, State::Rest)
    }

    /// Takes what has arrived; puts what `s3s` is to see onto `out`.
    pub fn feed(&mut self, mut bytes: Bytes, out: &mut VecDeque<Bytes>) -> Result<(), BadChunk> {
        if matches!(self.passing, Passing::Whole) {
            out.push_back(bytes.clone());
        }
        while !bytes.is_empty() {
            match &mut self.state {
                State::Line(line) => {
                    let end = bytes.iter().position(|b| *b == b'\n');
                    line.extend_from_slice(&bytes[..end.map_or(bytes.len(), |e| e + 1)]);
                    bytes.advance(end.map_or(bytes.len(), |e| e + 1));
                    if line.len() > LINE_MAX {
                        return Err(BadChunk::Format("a chunk's header line is too long"));
                    }
                    if end.is_none() {
                        continue;
                    }
                    let size = chunk_size(line).ok_or(BadChunk::Format("a chunk's header line has no size"))?;
                    if size == 0 {
                        if matches!(self.passing, Passing::CutAnew) {
                            out.push_back(std::mem::take(line).into());
                        }
                        self.state = State::Rest;
                    } else if matches!(self.passing, Passing::Whole) && size > SIGNED_CHUNK_MAX {
                        return Err(BadChunk::TooLarge(size));
                    } else {
                        self.state = State::Data(size);
                    }
                }
                State::Data(left) => {
                    let n = (*left).min(bytes.len() as u64);
                    let piece = bytes.split_to(n as usize);
                    match self.passing {
                        Passing::Whole => {}
                        Passing::Data(_) => out.push_back(piece),
                        Passing::CutAnew => {
                            out.push_back(format!("{:x}\r\n", piece.len()).into());
                            out.push_back(piece);
                            out.push_back(Bytes::from_static(b"\r\n"));
                        }
                    }
                    *left -= n;
                    if *left == 0 {
                        self.state = State::End(2);
                    }
                }
                State::End(left) => {
                    if bytes[0] != b"\r\n"[2 - *left] {
                        return Err(BadChunk::Format("a chunk is longer than its header line says"));
                    }
                    bytes.advance(1);
                    *left -= 1;
                    if *left == 0 {
                        self.state = State::Line(Vec::new());
                    }
                }
                State::Rest => {
                    match &self.passing {
                        Passing::Whole => {}
                        Passing::CutAnew => out.push_back(bytes),
                        Passing::Data(trailers) => trailers.add(&bytes)?,
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// The size in `1f4;chunk-signature=...\r\n`.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|b| matches!(b, b';' | b'\r' | b'\n')).next()?;
    let digits = std::str::from_utf8(digits).ok()?.trim();
    // The radix's reader takes signs.
    let is_size = (1..=16).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if is_size { u64::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn refused(method: &str, uri: &str, headers: &[(&str, &str)], want: Option<Kind>) {
        let got = check(&head(method, uri, headers)).err().map(|e| e.kind);
        assert_eq!(got, want, "{method} {uri} {headers:?}");
    }

    #[test]
    fn heads() {
        let auth = |signed: &str| {
            format!(
                "AWS4-HMAC-SHA256 Credential=AK/20260101/us-east-1/s3/aws4_request, SignedHeaders={signed}, Signature=0"
            )
        };
        let good = auth("host;x-amz-date");
        refused("GET", "/b", &[("host", "h"), ("x-amz-date", "d"), ("authorization", &good)], None);
        refused("GET", "/b", &[("host", "h"), ("authorization", &good)], Some(Kind::SignatureDoesNotMatch));
        let more = [("host", "h"), ("x-amz-date", "d"), ("x-amz-meta-a", "1"), ("authorization", good.as_str())];
        refused("GET", "/b", &more, Some(Kind::AccessDenied));
        let no_host = auth("x-amz-date");
        refused(
            "GET",
            "/b",
            &[("host", "h"), ("x-amz-date", "d"), ("authorization", &no_host)],
            Some(Kind::AccessDenied),
        );
        refused("GET", "/b", &[("authorization", "AWS AK:sig")], None);
        refused("GET", "/b", &[("authorization", "Basic xyz")], Some(Kind::InvalidArgument));
        refused("GET", "/b", &[("authorization", "AWS AK:sig"), ("authorization", "x")], Some(Kind::InvalidRequest));
        refused("GET", "/b", &[("host", "h"), ("host", "g")], Some(Kind::InvalidRequest));
        refused("GET", "/b", &[("authorization", "AWS4-HMAC-SHA256 x")], Some(Kind::AuthorizationHeaderMalformed));
        refused("PUT", "/b?fancy", &[], Some(Kind::NotImplemented));
        refused("GET", "/b?prefix=&delimiter=/&location", &[], None);
        refused("PUT", "/b/k", &[("x-amz-tagging", "a=b")], None);
        refused("PUT", "/b/k", &[("x-amz-server-side-encryption", "AES256")], None);
        refused("GET", "/b/k", &[("x-amz-server-side-encryption", "AES256")], Some(Kind::InvalidArgument));
        refused("GET", "/b/k", &[("x-amz-server-side-encryption-customer-algorithm", "AES256")], None);
        refused("PUT", "/b/k", &[("x-amz-acl", "public-read")], None);
        refused("PUT", "/b/k", &[("x-amz-acl", "private")], None);
    }

    #[test]
    fn presigned_urls() {
        let url = |expires: &str, signed: &str| {
            format!(
                "/b/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=c&X-Amz-Date=d&X-Amz-Expires={expires}&X-Amz-SignedHeaders={signed}&X-Amz-Signature=0"
            )
        };
        let host = [("host", "h")];
        refused("GET", &url("604800", "host"), &host, None);
        for bad in ["x", ""] {
            refused("GET", &url(bad, "host"), &host, Some(Kind::AuthorizationQueryParametersError));
        }
        for bad in ["604801", "-1", "0"] {
            refused("GET", &url(bad, "host"), &host, Some(Kind::AccessDenied));
        }
        refused("GET", &url("60", "host%3Bx-amz-meta-a"), &host, Some(Kind::SignatureDoesNotMatch));
        refused("GET", "/b/k?X-Amz-Signature=0", &host, Some(Kind::AuthorizationQueryParametersError));
        refused("GET", "/b/k?AWSAccessKeyId=a&Signature=b&Expires=1", &host, None);
    }

    #[test]
    fn version_2_is_for_what_it_signs() {
        let signed = [("authorization", "AWS AK:c2ln"), ("date", "d")];
        let check = |query: &str, passes: bool| {
            let want = (!passes).then_some(Kind::AccessDenied);
            refused("PUT", &format!("/b/k?{query}"), &signed, want);
            let presigned = format!("/b/k?AWSAccessKeyId=a&Expires=1&{query}&Signature=b");
            refused("PUT", &presigned, &[], want);
            refused("PUT", &format!("/b/k?{query}"), &[], None);
        };
        // What clients send, signed or harmless.
        for query in [
            "acl",
            "versionId=null&tagging",
            "partNumber=1&uploadId=x",
            "uploads",
            "delete",
            "versioning",
            "object-lock",
            "response-content-type=text/plain&response-expires=0",
            "prefix=a&prefix=b&delimiter=/&marker=&max-keys=9&list-type=2&encoding-type=url&fetch-owner=true",
            "key-marker=a&version-id-marker=b&upload-id-marker=c&part-number-marker=1&x-id=PutObject&v=7",
        ] {
            check(query, true);
        }
        // Every subresource that Walrus knows, of s3s and its own.
        let all = SUBRESOURCES.iter().copied().chain(crate::route::subresources());
        let not_signed: Vec<&str> = all.filter(|name| !sig_v2::is_signed(name)).collect();
        for name in [
            "attributes",
            "buckets",
            "encryption",
            "legal-hold",
            "ownershipControls",
            "policyStatus",
            "publicAccessBlock",
            "quota",
            "reclaim",
            "renameObject",
            "retention",
            "scrub",
            "usage",
        ] {
            assert!(not_signed.contains(&name), "{name}");
        }
        for name in not_signed {
            check(name, false);
            check(&format!("{name}=x"), false);
            check(&format!("acl&%{:02x}{}", name.as_bytes()[0], &name[1..]), false);
        }
        for query in ["inventory&id=x", "session=1", "append=1", "x-amz-request-payer=requester", "x-Amz-acl=private"] {
            check(query, false);
        }
        // s3s signs none of two.
        check("acl&acl", false);
        check("versionId=a&%76ersionId=b", false);
    }

    #[test]
    fn framings() {
        let check = |query: &str, headers: &[(&str, &str)], want: Result<Framing, Kind>| {
            let mut all = vec![("host", "h"), (DECODED, "5")];
            all.extend(headers);
            let got = super::check(&head("PUT", &format!("/b/k{query}"), &all)).map_err(|e| e.kind);
            assert_eq!(got, want, "{query} {headers:?}");
        };
        let names = "host;x-amz-content-sha256;x-amz-decoded-content-length";
        let v4 = format!(
            "AWS4-HMAC-SHA256 Credential=AK/20260101/us-east-1/s3/aws4_request, SignedHeaders={names}, Signature=0"
        );
        let (coded, v4) = (("content-encoding", "gzip, AWS-chunked"), ("authorization", v4.as_str()));
        let v2 = ("authorization", "AWS AK:c2ln");
        let unsigned = ("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER");
        let signed = ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD");
        check("", &[], Ok(Framing::Plain));
        check("", &[("content-encoding", "gzip")], Ok(Framing::Plain));
        check("", &[v4, unsigned, coded], Ok(Framing::Unsigned));
        check("", &[v4, signed], Ok(Framing::Signed));
        check("", &[v4, ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"), coded], Ok(Framing::Plain));
        // Nobody's, and of who signs with Version 2.
        for headers in [&[coded][..], &[unsigned], &[signed], &[v2, coded]] {
            check("", headers, Ok(Framing::Bare));
        }
        // Without a body in chunks it is only a header.
        let copied = head("PUT", "/b/k", &[coded]);
        assert_eq!(super::check(&copied).map_err(|e| e.kind), Ok(Framing::Plain));
        for length in ["", "x", "-1"] {
            let bare = head("PUT", "/b/k", &[coded, (DECODED, length)]);
            assert_eq!(super::check(&bare).map_err(|e| e.kind), Err(Kind::MissingContentLength), "{length:?}");
        }
    }

    #[test]
    fn sizes_of_chunks() {
        for (line, want) in [
            ("0\r\n", Some(0)),
            ("1f4;chunk-signature=0\r\n", Some(0x1f4)),
            ("140000000\r\n", Some(5 << 30)),
            ("ffffffffffffffff\r\n", Some(u64::MAX)),
            ("10000000000000000\r\n", None),
            ("+5\r\n", None),
            ("\r\n", None),
            ("g\r\n", None),
        ] {
            assert_eq!(chunk_size(line.as_bytes()), want, "{line}");
        }
    }

    /// A framing that has chunks.
    fn of_chunks() -> impl Strategy<Value = Framing> {
        proptest::sample::select(vec![Framing::Signed, Framing::Unsigned, Framing::Bare])
    }

    /// Undoes unsigned chunking.
    fn unchunk(mut body: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let mut data = Vec::new();
        loop {
            let end = body.iter().position(|b| *b == b'\n').unwrap();
            let size = chunk_size(&body[..=end]).unwrap() as usize;
            body = &body[end + 1..];
            if size == 0 {
                return (data, body.to_vec());
            }
            data.extend_from_slice(&body[..size]);
            assert_eq!(&body[size..size + 2], b"\r\n");
            body = &body[size + 2..];
        }
    }

    proptest! {
        #[test]
        fn chunks_survive_any_cutting(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..6),
            cuts in proptest::collection::vec(1usize..97, 1..40),
            framing in of_chunks(),
        ) {
            let mut body = Vec::new();
            for chunk in &chunks {
                let signature = if framing == Framing::Signed { ";chunk-signature=00" } else { "" };
                body.extend(format!("{:x}{signature}\r\n", chunk.len()).into_bytes());
                body.extend(chunk);
                body.extend(b"\r\n");
            }
            body.extend(b"0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n");
            let trailers = Trailers::default();
            let mut follower = Chunks::new(framing, &trailers).unwrap();
            let (mut out, mut rest, mut cuts) = (VecDeque::new(), &body[..], cuts.into_iter().cycle());
            while !rest.is_empty() {
                let n = cuts.next().unwrap().min(rest.len());
                follower.feed(Bytes::copy_from_slice(&rest[..n]), &mut out).unwrap();
                rest = &rest[n..];
            }
            let out: Vec<u8> = out.into_iter().flatten().collect();
            match framing {
                Framing::Unsigned => prop_assert_eq!(unchunk(&out), unchunk(&body)),
                Framing::Bare => {
                    prop_assert_eq!(out, chunks.concat());
                    prop_assert!(trailers.get("X-Amz-Checksum-CRC32").is_some_and(|value| value == "AAAAAA=="));
                    prop_assert_eq!(trailers.get("x-amz-checksum-sha1"), None);
                }
                Framing::Plain | Framing::Signed => prop_assert_eq!(out, body),
            }
        }

        #[test]
        fn hostile_chunks_do_no_harm(body: Vec<u8>, framing in of_chunks()) {
            let mut follower = Chunks::new(framing, &Trailers::default()).unwrap();
            let _ = follower.feed(body.into(), &mut VecDeque::new());
        }
    }

    #[test]
    fn a_signed_chunk_has_a_largest_size() {
        let mut follower = Chunks::new(Framing::Signed, &Trailers::default()).unwrap();
        let line = Bytes::from_static(b"ffffffff;chunk-signature=0\r\n");
        assert_eq!(follower.feed(line, &mut VecDeque::new()), Err(BadChunk::TooLarge(0xffff_ffff)));
    }
}
