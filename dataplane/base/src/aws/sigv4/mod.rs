//! Signature version 4: the arithmetic of it, and signing as a client does. Checking is in [`verify`](super::verify).
//!
//! Pure: no I/O, the time is a parameter. ("Signature Version 4 signing process", AWS General Reference.)
//!
//! ```text
//! canonical request = method, path, query, signed headers, their names, payload hash
//! string to sign    = algorithm, time, scope, SHA-256(canonical request)
//! signing key       = HMAC chain: secret -> date -> region -> service -> "aws4_request"   (KeyCache keeps it)
//! ```

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Mutex;

use hmac::{Hmac, KeyInit, Mac};
use http::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue};
use http::{Uri, request};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::clock::UnixMicros;

/// The only algorithm.
pub const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// Stands for the payload's hash where the payload is not signed (S3 only).
pub const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";
/// The SHA-256 of nothing.
pub const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// The longest life of a presigned request, in seconds: 7 days.
pub const PRESIGN_SECONDS_MAX: u64 = 7 * 24 * 3600;

pub(crate) const X_AMZ_DATE: HeaderName = HeaderName::from_static("x-amz-date");
pub(crate) const X_AMZ_CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");
pub(crate) const X_AMZ_SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// Who signs.
#[derive(Clone, Copy)]
pub struct Signer<'a> {
    /// `AKIA...`.
    pub access_key_id: &'a str,
    /// The secret.
    pub secret: &'a str,
    /// The token of temporary credentials.
    pub session_token: Option<&'a str>,
    /// The region in the scope.
    pub region: &'a str,
    /// The service in the scope: `s3`, `ec2`, ...
    pub service: &'a str,
}

/// What stands for the body in a signature.
#[derive(Debug, Clone, Copy)]
pub enum Payload<'a> {
    /// The body, to be hashed.
    Bytes(&'a [u8]),
    /// The body's SHA-256 in lower-case hexadecimal.
    Sha256(&'a str),
    /// Not signed: TLS or a loopback protects it.
    Unsigned,
}

impl Payload<'_> {
    pub(crate) fn hash(self) -> String {
        match self {
            Self::Bytes(bytes) => sha256_hex(bytes),
            Self::Sha256(hash) => hash.to_owned(),
            Self::Unsigned => UNSIGNED_PAYLOAD.to_owned(),
        }
    }
}

/// Signs a request by its `Authorization` header. Adds `host` (from the URI), `x-amz-date`, for S3
/// `x-amz-content-sha256`, and the session token. `host`, `content-type`, `content-md5`, `range` and all `x-amz-*`
/// headers are signed; headers added later are not.
///
/// # Errors
/// A sentence, where the URI has no host or a value is no header value.
pub fn sign(
    parts: &mut request::Parts,
    payload: Payload<'_>,
    signer: &Signer<'_>,
    now: UnixMicros,
) -> Result<(), String> {
    let time = amz_date(now);
    let hash = payload.hash();
    let value = |text: &str| HeaderValue::from_str(text).map_err(|_| format!("{text:?} is no header value"));
    if !parts.headers.contains_key(HOST) {
        let host = parts.uri.authority().ok_or_else(|| format!("{} names no host", parts.uri))?;
        parts.headers.insert(HOST, value(host.as_str())?);
    }
    parts.headers.insert(X_AMZ_DATE, value(&time)?);
    if signer.service == "s3" {
        parts.headers.insert(X_AMZ_CONTENT_SHA256, value(&hash)?);
    }
    if let Some(token) = signer.session_token {
        parts.headers.insert(X_AMZ_SECURITY_TOKEN, value(token)?);
    }
    let mut names: Vec<&str> = parts.headers.keys().map(HeaderName::as_str).filter(|name| is_signed(name)).collect();
    names.sort_unstable();
    let request = CanonicalRequest {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: &canonical_query(&parse_query(parts.uri.query().unwrap_or(""))),
        headers: &canonical_headers(&parts.headers, &names),
        signed_headers: &names.join(";"),
        payload_hash: &hash,
    };
    let scope = Scope { date: &time[..8], region: signer.region, service: signer.service };
    let key = signing_key(signer.secret, &scope);
    let signature = signature(&key, &request.string_to_sign(&time, &scope));
    let authorization = format!(
        "{ALGORITHM} Credential={}/{scope}, SignedHeaders={}, Signature={signature}",
        signer.access_key_id, request.signed_headers
    );
    parts.headers.insert(AUTHORIZATION, value(&authorization)?);
    Ok(())
}

/// Signs a request by its query, valid for `seconds`: whoever has the URI may send it. Only `host` is signed; the
/// payload is not, for S3, and is empty otherwise.
///
/// # Errors
/// A sentence, where the URI names no host or `seconds` is not in 1..=604800.
pub fn presign(
    method: &http::Method,
    uri: &Uri,
    seconds: u64,
    signer: &Signer<'_>,
    now: UnixMicros,
) -> Result<Uri, String> {
    if !(1..=PRESIGN_SECONDS_MAX).contains(&seconds) {
        return Err(format!("a presigned request lives 1 to {PRESIGN_SECONDS_MAX} seconds, not {seconds}"));
    }
    let host = uri.authority().ok_or_else(|| format!("{uri} names no host"))?.as_str();
    let time = amz_date(now);
    let scope = Scope { date: &time[..8], region: signer.region, service: signer.service };
    let mut pairs = parse_query(uri.query().unwrap_or(""));
    let mut add = |name: &str, value: String| pairs.push((name.to_owned(), value));
    add("X-Amz-Algorithm", ALGORITHM.to_owned());
    add("X-Amz-Credential", format!("{}/{scope}", signer.access_key_id));
    add("X-Amz-Date", time.clone());
    add("X-Amz-Expires", seconds.to_string());
    add("X-Amz-SignedHeaders", "host".to_owned());
    if let Some(token) = signer.session_token {
        add("X-Amz-Security-Token", token.to_owned());
    }
    let query = canonical_query(&pairs);
    let request = CanonicalRequest {
        method: method.as_str(),
        path: uri.path(),
        query: &query,
        headers: &format!("host:{host}\n"),
        signed_headers: "host",
        payload_hash: if signer.service == "s3" { UNSIGNED_PAYLOAD } else { EMPTY_SHA256 },
    };
    let signature = signature(&signing_key(signer.secret, &scope), &request.string_to_sign(&time, &scope));
    let scheme = uri.scheme_str().unwrap_or("http");
    let text = format!("{scheme}://{host}{}?{query}&X-Amz-Signature={signature}", uri.path());
    text.parse().map_err(|e| format!("{text}: {e}"))
}

/// Signed headers of a client's request: what changes its meaning and proxies leave alone.
fn is_signed(name: &str) -> bool {
    matches!(name, "host" | "content-type" | "content-md5" | "range") || name.starts_with("x-amz-")
}

/// Where and when a signing key is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope<'a> {
    /// `YYYYMMDD`.
    pub date: &'a str,
    /// Any word.
    pub region: &'a str,
    /// `s3`, `ec2`, ...
    pub service: &'a str,
}

impl std::fmt::Display for Scope<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}/aws4_request", self.date, self.region, self.service)
    }
}

/// A request's parts in canonical form, but for the path.
#[derive(Debug, Clone, Copy)]
pub struct CanonicalRequest<'a> {
    /// `GET`, ...
    pub method: &'a str,
    /// The path as it is sent.
    pub path: &'a str,
    /// From [`canonical_query`].
    pub query: &'a str,
    /// From [`canonical_headers`].
    pub headers: &'a str,
    /// Lower-case names joined with `;`.
    pub signed_headers: &'a str,
    /// Lower-case hexadecimal, or `UNSIGNED-PAYLOAD`.
    pub payload_hash: &'a str,
}

impl CanonicalRequest<'_> {
    /// The canonical request. S3 encodes the decoded path once; other services normalise the path and encode it again.
    pub fn text(&self, service: &str) -> String {
        let path = match service {
            "s3" => uri_encode(&percent_decode(self.path), true),
            _ => uri_encode(normal_path(self.path).as_bytes(), true),
        };
        let Self { method, query, headers, signed_headers, payload_hash, .. } = self;
        format!("{method}\n{path}\n{query}\n{headers}\n{signed_headers}\n{payload_hash}")
    }

    /// The string to sign. `time` is `YYYYMMDDTHHMMSSZ`.
    pub fn string_to_sign(&self, time: &str, scope: &Scope<'_>) -> String {
        format!("{ALGORITHM}\n{time}\n{scope}\n{}", sha256_hex(self.text(scope.service).as_bytes()))
    }
}

/// `name:value\n` for each of `names`; values trimmed, runs of spaces made one, several values joined with commas.
pub fn canonical_headers(headers: &HeaderMap, names: &[&str]) -> String {
    let mut text = String::new();
    for name in names {
        text.push_str(name);
        for (i, value) in headers.get_all(*name).iter().enumerate() {
            text.push(if i == 0 { ':' } else { ',' });
            let value = String::from_utf8_lossy(value.as_bytes());
            let mut words = value.split([' ', '\t']).filter(|word| !word.is_empty());
            text.extend(words.next());
            words.for_each(|word| {
                text.push(' ');
                text.push_str(word);
            });
        }
        text.push('\n');
    }
    text
}

/// Name and value of each parameter, decoded. `+` means a space.
pub fn parse_query(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let spaced = text.replace('+', " ");
        String::from_utf8_lossy(&percent_decode(&spaced)).into_owned()
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(n, v)| (decode(n), decode(v))).collect()
}

/// The parameters encoded, sorted by name, then value, and joined.
pub fn canonical_query(pairs: &[(String, String)]) -> String {
    let encode = |text: &str| uri_encode(text.as_bytes(), false);
    let mut encoded: Vec<(String, String)> = pairs.iter().map(|(n, v)| (encode(n), encode(v))).collect();
    encoded.sort_unstable();
    encoded.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join("&")
}

/// AWS's UriEncode: all but unreserved characters as `%XX`.
pub fn uri_encode(bytes: &[u8], keep_slash: bool) -> String {
    let mut text = String::with_capacity(bytes.len() + 16);
    for &byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(byte.into()),
            b'/' if keep_slash => text.push('/'),
            _ => _ = write!(text, "%{byte:02X}"),
        }
    }
    text
}

pub(crate) fn percent_decode(text: &str) -> Vec<u8> {
    percent_encoding::percent_decode_str(text).collect()
}

/// The path without empty, `.` and `..` segments (RFC 3986, 5.2.4).
fn normal_path(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => _ = kept.pop(),
            _ => kept.push(segment),
        }
    }
    let folder = path.ends_with('/') && !kept.is_empty();
    format!("/{}{}", kept.join("/"), if folder { "/" } else { "" })
}

/// Time as `YYYYMMDDTHHMMSSZ`.
pub fn amz_date(at: UnixMicros) -> String {
    let time = OffsetDateTime::from_unix_timestamp(at.secs() as i64).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    time.format(format_description!("[year][month][day]T[hour][minute][second]Z")).unwrap_or_default()
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn hmac(key: &[u8], data: &[u8]) -> [u8; 32] {
    // HMAC takes keys of any length.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|_| unreachable!("any length"));
    mac.update(data);
    mac.finalize().into_bytes().into()
}

/// The key that signs everything within `scope`.
pub fn signing_key(secret: &str, scope: &Scope<'_>) -> [u8; 32] {
    let date = hmac(format!("AWS4{secret}").as_bytes(), scope.date.as_bytes());
    let region = hmac(&date, scope.region.as_bytes());
    let service = hmac(&region, scope.service.as_bytes());
    hmac(&service, b"aws4_request")
}

/// The signature in lower-case hexadecimal.
pub fn signature(key: &[u8; 32], string_to_sign: &str) -> String {
    hex::encode(hmac(key, string_to_sign.as_bytes()))
}

/// Signing keys of late, so that a check costs one HMAC instead of five. Bounded; forgets all when full.
#[derive(Default)]
pub struct KeyCache(Mutex<HashMap<[u8; 32], [u8; 32]>>);

const KEYS_MAX: usize = 1024;

impl KeyCache {
    /// The signing key of `secret` within `scope`.
    pub fn get(&self, secret: &str, scope: &Scope<'_>) -> [u8; 32] {
        // The name is a hash, so that secrets do not lie about in memory, and a replaced secret is another entry.
        let name: [u8; 32] = Sha256::digest(format!("{secret}\n{scope}")).into();
        let mut keys = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(key) = keys.get(&name) {
            return *key;
        }
        if keys.len() >= KEYS_MAX {
            keys.clear();
        }
        *keys.entry(name).or_insert_with(|| signing_key(secret, scope))
    }
}

#[cfg(test)]
mod tests;
