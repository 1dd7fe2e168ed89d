//! POST forms: browsers' uploads, with the policy that says what they may send ("Browser-based uploads using POST").
//!
//! ```text
//! --boundary  fields (bounded, held)  file's part header | file's bytes (streamed) | --boundary  rest (skipped)
//! ```
//! The fields are read, the policy's signature (version 4 or 2) and conditions are checked, and what is left is a PUT: the
//! same operation, with the file as its body. The file's length is judged as it passes; a file that is too long or too
//! short for the policy ends in an error before anything is published. Pure but for the body that it reads.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame};
use karri_base::aws::keys::{KeyRing, SignedIn};
use karri_base::aws::sigv4;
use karri_base::aws::verify::Credential;
use karri_base::clock::UnixMicros;
use s3s::StdError;
use serde_json::Value;
use sha1::Sha1;
use subtle::ConstantTimeEq;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::api::sign_in;
use crate::config::simple::Tags;
use crate::error::{Error, Kind, Result};

/// All that comes before the file's bytes: S3 allows 20 KB, some tools send more metadata than that.
pub const HEAD_MAX: usize = 64 << 10;
/// Fields of one form.
const FIELDS_MAX: usize = 200;
/// Bytes after the file that are skipped.
const REST_MAX: usize = 64 << 10;

/// In the text of the error that too long a file ends with.
pub const TOO_LARGE: &str = "the form's file is longer than its policy allows";
/// In the text of the error that too short a file ends with.
pub const TOO_SMALL: &str = "the form's file is shorter than its policy allows";
/// In the text of the error that a form without an end ends with.
pub const NO_END: &str = "the form has no end";

fn malformed(why: &'static str) -> Error {
    Error::new(Kind::MalformedPostRequest, why)
}

/// The boundary in a Content-Type.
///
/// # Errors
/// `MalformedPOSTRequest`.
pub fn boundary(content_type: &str) -> Result<String> {
    let none = || malformed("The form's Content-Type has no boundary.");
    let parameter = content_type.split(';').skip(1).find_map(|p| {
        let (name, value) = p.trim().split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"').to_owned())
    });
    let boundary = parameter.ok_or_else(none)?;
    if boundary.is_empty() || boundary.len() > 70 || !boundary.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        return Err(none());
    }
    Ok(boundary)
}

/// What comes before the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    /// Names in lower case, and values, in order.
    pub list: Vec<(String, String)>,
    /// The name that the file has on the client's machine.
    pub filename: String,
}

impl Fields {
    /// A field's value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.list.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

/// Reads the fields of a form that comes in pieces; no byte is looked at again but as many as a delimiter has.
#[derive(Debug)]
pub struct Head {
    /// With the line end before it.
    delimiter: Vec<u8>,
    fields: Fields,
    part: Part,
    /// Where the part that is being read begins.
    at: usize,
    /// There is nothing of what is looked for before this.
    looked: usize,
}

#[derive(Debug)]
enum Part {
    /// Before the first delimiter.
    Preamble,
    /// After a delimiter.
    Header,
    /// In the value of the field of this name.
    Value(String),
}

impl Head {
    /// A form of this boundary.
    pub fn new(boundary: &str) -> Self {
        let delimiter = format!("\r\n--{boundary}").into_bytes();
        Self { delimiter, fields: Fields::default(), part: Part::Preamble, at: 0, looked: 0 }
    }

    /// Reads on, in all that has come of the form so far; `None` where the file has not begun yet. The number is where its
    /// bytes begin.
    ///
    /// # Errors
    /// `MalformedPOSTRequest`.
    pub fn read(&mut self, data: &[u8]) -> Result<Option<(Fields, usize)>> {
        loop {
            let rest = &data[self.at..];
            match &self.part {
                Part::Preamble => {
                    // A preamble is allowed and skipped; the first delimiter needs no line end.
                    let Some(found) = look(data, &self.delimiter[2..], &mut self.looked) else { return Ok(None) };
                    self.begin(Part::Header, found + self.delimiter.len() - 2);
                }
                Part::Header => {
                    if rest.starts_with(b"--") {
                        return Err(Error::new(
                            Kind::InvalidArgument,
                            "POST requires exactly one file upload per request.",
                        ));
                    }
                    let Some(end) = look(data, b"\r\n\r\n", &mut self.looked) else { return Ok(None) };
                    if !rest.starts_with(b"\r\n") {
                        return Err(malformed("A part of the form does not begin on a line of its own."));
                    }
                    let header = &data[self.at + 2..end.max(self.at + 2)];
                    let header = std::str::from_utf8(header).map_err(|_| malformed("A part's header is not UTF-8."))?;
                    let (name, filename) = part_header(header)?;
                    let begin = end + 4;
                    if name == "file" {
                        let mut fields = std::mem::take(&mut self.fields);
                        fields.filename = filename.unwrap_or_default();
                        return Ok(Some((fields, begin)));
                    }
                    self.begin(Part::Value(name), begin);
                }
                Part::Value(name) => {
                    let Some(end) = look(data, &self.delimiter, &mut self.looked) else { return Ok(None) };
                    let value =
                        std::str::from_utf8(&data[self.at..end]).map_err(|_| malformed("A field is not UTF-8."))?;
                    if self.fields.list.len() >= FIELDS_MAX {
                        return Err(malformed("The form has too many fields."));
                    }
                    if self.fields.get(name).is_none() {
                        self.fields.list.push((name.clone(), value.to_owned()));
                    }
                    self.begin(Part::Header, end + self.delimiter.len());
                }
            }
        }
    }

    fn begin(&mut self, part: Part, at: usize) {
        (self.part, self.at, self.looked) = (part, at, at);
    }
}

/// Finds a needle that does not begin before `looked`; where it is not there yet, moves that on.
fn look(data: &[u8], needle: &[u8], looked: &mut usize) -> Option<usize> {
    let found = find(&data[*looked..], needle).map(|at| *looked + at);
    if found.is_none() {
        *looked = (data.len() + 1).saturating_sub(needle.len()).max(*looked);
    }
    found
}

/// Name and file name in a part's header. Browsers say the file's type there too: it is no field, so policies need not cover
/// it, and no object gets it, as in S3.
fn part_header(header: &str) -> Result<(String, Option<String>)> {
    let (mut name, mut filename) = (None, None);
    for line in header.split("\r\n") {
        let Some((field, value)) = line.split_once(':') else {
            return Err(malformed("A line of a part's header has no colon."));
        };
        if field.trim().eq_ignore_ascii_case("content-disposition") {
            name = parameter(value, "name");
            filename = parameter(value, "filename");
        }
    }
    let name = name.ok_or_else(|| malformed("A part of the form has no name."))?.to_ascii_lowercase();
    Ok((name, filename))
}

/// `name="value"` among parameters; quotes may hold semicolons and `\"`.
fn parameter(value: &str, wanted: &str) -> Option<String> {
    let mut rest = value;
    loop {
        rest = rest.split_once(';')?.1.trim_start();
        let (name, tail) = rest.split_once('=')?;
        let (found, after) = match tail.strip_prefix('"') {
            None => {
                let end = tail.find(';').unwrap_or(tail.len());
                (tail[..end].trim().to_owned(), &tail[end..])
            }
            Some(quoted) => {
                let (mut out, mut chars, mut end) = (String::new(), quoted.char_indices(), quoted.len());
                while let Some((i, c)) = chars.next() {
                    match c {
                        '"' => {
                            end = i + 1;
                            break;
                        }
                        '\\' if quoted[i + 1..].starts_with('"') => out.extend(chars.next().map(|(_, c)| c)),
                        c => out.push(c),
                    }
                }
                (out, &quoted[end..])
            }
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(found);
        }
        rest = after;
    }
}

/// What a form asks for: a PUT, and how to answer.
#[derive(Debug, Default)]
pub struct Upload {
    /// The object's key.
    pub key: String,
    /// Headers of the PUT.
    pub headers: HeaderMap,
    /// Who signed the policy.
    pub signer: Option<SignedIn>,
    /// How long the file may be.
    pub length: Option<(u64, u64)>,
    /// success_action_redirect.
    pub redirect: Option<String>,
    /// success_action_status.
    pub status: u16,
}

/// Fields that are the form's own, and need no condition.
const OWN: [&str; 6] = ["awsaccesskeyid", "signature", "policy", "x-amz-signature", "file", "submit"];
/// Fields that become headers of the PUT by their own names.
const HEADERS: [&str; 6] =
    ["content-type", "cache-control", "content-disposition", "content-encoding", "content-language", "expires"];

/// Checks a form's signature and policy, and says what it asks for.
///
/// # Errors
/// S3's own for what is wrong with it.
pub fn upload(fields: &Fields, bucket: &str, keys: &KeyRing, now: UnixMicros) -> Result<Upload> {
    let key = fields.get("key").ok_or_else(|| {
        Error::new(
            Kind::InvalidArgument,
            "Bucket POST must contain a field named 'key'. If it is specified, please check the order of the fields.",
        )
    })?;
    let key = key.replace("${filename}", fields.filename.rsplit(['/', '\\']).next().unwrap_or_default());
    if key.is_empty() {
        return Err(Error::new(Kind::InvalidArgument, "User key must have a length greater than 0."));
    }
    let mut upload = Upload { status: 204, ..Upload::default() };
    if let Some(policy) = fields.get("policy") {
        upload.signer = Some(signer(fields, policy, keys, now)?);
        upload.length = policy_of(policy)?.check(fields, &key, bucket, now)?;
    } else if fields.get("signature").is_some() || fields.get("x-amz-signature").is_some() {
        return Err(Error::new(Kind::InvalidArgument, "Bucket POST must contain a field named 'policy'."));
    }
    for (name, value) in &fields.list {
        let header = match name.as_str() {
            "acl" => Some("x-amz-acl"),
            "tagging" => {
                let tags = Tags::parse(value.as_bytes(), 10)?;
                let pairs = tags.0.iter().map(|(k, v)| {
                    format!("{}={}", sigv4::uri_encode(k.as_bytes(), false), sigv4::uri_encode(v.as_bytes(), false))
                });
                let text = pairs.collect::<Vec<_>>().join("&");
                upload.headers.insert("x-amz-tagging", header_value(&text)?);
                None
            }
            "success_action_redirect" | "redirect" => {
                upload.redirect = Some(value.clone());
                None
            }
            "success_action_status" => {
                upload.status = value.parse().ok().filter(|s| [200, 201, 204].contains(s)).unwrap_or(204);
                None
            }
            "x-amz-signature" | "x-amz-credential" | "x-amz-algorithm" | "x-amz-date" => None,
            // It would make another operation of it, which nobody has been asked about.
            name if name.starts_with("x-amz-copy-source") => {
                return Err(Error::new(Kind::InvalidArgument, format!("A form uploads its file: it has no {name}.")));
            }
            name if HEADERS.contains(&name) || name.starts_with("x-amz-") => Some(name),
            _ => None,
        };
        if let Some(header) = header {
            let wrong = || malformed("A field's name is no header's.");
            let header = HeaderName::from_bytes(header.as_bytes()).map_err(|_| wrong())?;
            upload.headers.insert(header, header_value(value)?);
        }
    }
    upload.key = key;
    Ok(upload)
}

fn header_value(text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text).map_err(|_| Error::new(Kind::InvalidArgument, "A field's value is no header's."))
}

/// Who signed the policy.
fn signer(fields: &Fields, policy: &str, keys: &KeyRing, now: UnixMicros) -> Result<SignedIn> {
    let need = |name: &'static str| {
        let missing = || {
            Error::new(
                Kind::InvalidArgument,
                format!(
                    "Bucket POST must contain a field named '{name}'. If it is specified, please check the order of the fields."
                ),
            )
        };
        fields.get(name).filter(|v| !v.is_empty()).ok_or_else(missing)
    };
    let key_of = |id: &str| sign_in(keys, id, fields.get("x-amz-security-token"), now);
    let (key, expected, given) = if fields.get("x-amz-algorithm").is_some() {
        if need("x-amz-algorithm")? != sigv4::ALGORITHM {
            return Err(Error::new(Kind::InvalidArgument, "x-amz-algorithm must be AWS4-HMAC-SHA256."));
        }
        need("x-amz-date")?;
        let wrong = |_| Error::new(Kind::InvalidArgument, "The form's x-amz-credential is not valid.");
        let Credential { access_key_id, scope } = Credential::parse(need("x-amz-credential")?).map_err(wrong)?;
        let key = key_of(access_key_id)?;
        let expected = sigv4::signature(&sigv4::signing_key(&key.key.secret, &scope), policy);
        (key, expected, need("x-amz-signature")?)
    } else {
        let id = need("awsaccesskeyid")?;
        let given = need("signature")?;
        let key = key_of(id)?;
        let mut mac = <Hmac<Sha1> as KeyInit>::new_from_slice(key.key.secret.as_bytes())
            .unwrap_or_else(|_| unreachable!("any length"));
        mac.update(policy.as_bytes());
        let expected = STANDARD.encode(mac.finalize().into_bytes());
        (key, expected, given)
    };
    if bool::from(expected.as_bytes().ct_eq(given.as_bytes())) {
        Ok(key)
    } else {
        Err(Kind::SignatureDoesNotMatch.into())
    }
}

/// A policy: until when, and what must be true of the fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    expiration: i64,
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Condition {
    Is(String, String),
    Begins(String, String),
    Length(u64, u64),
}

/// Reads a policy in Base64.
///
/// # Errors
/// `InvalidPolicyDocument`.
pub fn policy_of(text: &str) -> Result<Policy> {
    let invalid = |why: &str| Error::new(Kind::InvalidPolicyDocument, format!("Invalid Policy: {why}"));
    let packed: String = text.split_ascii_whitespace().collect();
    let bytes = STANDARD.decode(packed).map_err(|_| invalid("Invalid Base64 encoding."))?;
    let json: Value = serde_json::from_slice(&bytes).map_err(|_| invalid("Invalid JSON."))?;
    let object = json.as_object().ok_or_else(|| invalid("Invalid JSON."))?;
    let expiration =
        object.get("expiration").and_then(Value::as_str).ok_or_else(|| invalid("Policy missing expiration."))?;
    let expiration = OffsetDateTime::parse(expiration, &Rfc3339)
        .ok()
        .filter(|_| expiration.ends_with('Z'))
        .ok_or_else(|| invalid("Invalid 'expiration' value"))?
        .unix_timestamp();
    let list =
        object.get("conditions").and_then(Value::as_array).ok_or_else(|| invalid("Policy missing conditions."))?;
    let text = |v: &Value| v.as_str().map(str::to_owned);
    let number = |v: &Value| v.as_u64().or_else(|| v.as_str()?.parse().ok());
    let mut conditions = Vec::new();
    for condition in list {
        let read: Option<Vec<Condition>> = match condition {
            Value::Object(pairs) if !pairs.is_empty() => {
                pairs.iter().map(|(k, v)| Some(Condition::Is(k.to_ascii_lowercase(), text(v)?))).collect()
            }
            Value::Array(items) => match &items[..] {
                [Value::String(operator), field, value] => {
                    let field = text(field).and_then(|f| Some(f.strip_prefix('$')?.to_ascii_lowercase()));
                    match operator.to_ascii_lowercase().as_str() {
                        "eq" => field.zip(text(value)).map(|(f, v)| vec![Condition::Is(f, v)]),
                        "starts-with" => field.zip(text(value)).map(|(f, v)| vec![Condition::Begins(f, v)]),
                        "content-length-range" => {
                            number(&items[1]).zip(number(value)).map(|(min, max)| vec![Condition::Length(min, max)])
                        }
                        _ => None,
                    }
                }
                _ => None,
            },
            _ => None,
        };
        conditions.extend(read.ok_or_else(|| invalid("Invalid Simple-Condition"))?);
    }
    if conditions.is_empty() {
        return Err(invalid("Policy has no conditions."));
    }
    Ok(Policy { expiration, conditions })
}

impl Policy {
    /// Checks a form; answers how long its file may be.
    ///
    /// # Errors
    /// `AccessDenied`.
    fn check(&self, fields: &Fields, key: &str, bucket: &str, now: UnixMicros) -> Result<Option<(u64, u64)>> {
        let denied = |why: String| Err(Error::new(Kind::AccessDenied, format!("Invalid according to Policy: {why}")));
        if self.expiration <= now.secs() as i64 {
            return denied("Policy expired.".into());
        }
        let value = |name: &str| match name {
            "key" => key,
            "bucket" => bucket,
            name => fields.get(name).unwrap_or_default(),
        };
        let (mut length, mut covered) = (None, BTreeSet::new());
        for condition in &self.conditions {
            match condition {
                Condition::Length(min, max) => length = Some((*min, *max)),
                Condition::Is(name, wanted) => {
                    if value(name) != wanted {
                        return denied(format!("Policy Condition failed: [\"eq\", \"${name}\", \"{wanted}\"]"));
                    }
                    covered.insert(name.as_str());
                }
                Condition::Begins(name, wanted) => {
                    let begins =
                        |v: &str| v.trim_start().starts_with(wanted.as_str()) || v.starts_with(wanted.as_str());
                    let all = match name.as_str() {
                        "content-type" => value(name).split(',').all(begins),
                        name => begins(value(name)),
                    };
                    if !all {
                        return denied(format!(
                            "Policy Condition failed: [\"starts-with\", \"${name}\", \"{wanted}\"]"
                        ));
                    }
                    covered.insert(name.as_str());
                }
            }
        }
        let sent = fields.list.iter().map(|(name, _)| name.as_str()).chain(["bucket"]);
        let exempt =
            |name: &str| OWN.contains(&name) || name.starts_with("x-ignore-") || name.starts_with("x-amz-checksum-");
        let extra: Vec<&str> = sent.filter(|n| !covered.contains(n) && !exempt(n)).collect();
        if extra.is_empty() { Ok(length) } else { denied(format!("Extra input fields: {}", extra.join(", "))) }
    }
}

/// The file's bytes out of a form's body.
pub struct File<R> {
    inner: R,
    held: BytesMut,
    delimiter: Vec<u8>,
    length: Option<(u64, u64)>,
    passed: u64,
    /// The file is over; how much came after it.
    over: Option<usize>,
}

impl<R> File<R> {
    /// `begun`: what was read beyond the file's beginning.
    pub fn new(inner: R, begun: Bytes, boundary: &str, length: Option<(u64, u64)>) -> Self {
        Self {
            inner,
            held: BytesMut::from(&begun[..]),
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            length,
            passed: 0,
            over: None,
        }
    }

    fn pass(&mut self, n: usize) -> Result<Option<Bytes>, StdError> {
        let piece = self.held.split_to(n).freeze();
        self.passed += piece.len() as u64;
        if self.length.is_some_and(|(_, max)| self.passed > max) {
            return Err(TOO_LARGE.into());
        }
        Ok((!piece.is_empty()).then_some(piece))
    }

    /// What of the held bytes is the file's for certain.
    fn next(&mut self) -> Result<Option<Bytes>, StdError> {
        if let Some(at) = find(&self.held, &self.delimiter) {
            let piece = self.pass(at)?;
            self.over = Some(self.held.len());
            self.held.clear();
            if self.length.is_some_and(|(min, _)| self.passed < min) {
                return Err(TOO_SMALL.into());
            }
            return Ok(piece);
        }
        self.pass(self.held.len().saturating_sub(self.delimiter.len() - 1))
    }
}

impl<R> Body for File<R>
where
    R: Body<Data = Bytes, Error = StdError> + Unpin,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        loop {
            if self.over.is_none()
                && let Some(piece) = self.next()?
            {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            let Some(frame) = ready!(Pin::new(&mut self.inner).poll_frame(cx)?) else {
                return Poll::Ready(if self.over.is_some() { None } else { Some(Err(NO_END.into())) });
            };
            let Ok(data) = frame.into_data() else { continue };
            match &mut self.over {
                Some(rest) if *rest + data.len() > REST_MAX => return Poll::Ready(Some(Err(NO_END.into()))),
                Some(rest) => *rest += data.len(),
                None => self.held.extend_from_slice(&data),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body_util::{BodyExt, StreamBody};
    use proptest::prelude::*;

    use karri_base::aws::keys::Key;

    use super::*;

    const NOW: UnixMicros = UnixMicros(1_700_000_000_000_000);

    fn form(fields: &[(&str, &str)]) -> Fields {
        let list = fields.iter().map(|(n, v)| (n.to_ascii_lowercase(), (*v).to_owned())).collect();
        Fields { list, filename: "foo.txt".into() }
    }

    fn ring() -> KeyRing {
        KeyRing::new([Key {
            access_key_id: "AK".into(),
            secret: "secret".into(),
            account: "000000000001".parse().unwrap(),
            arn: "arn:aws:iam::000000000001:root".into(),
        }])
    }

    fn signed(policy: &str, more: &[(&str, &str)]) -> Fields {
        let policy = STANDARD.encode(policy);
        let mut mac = <Hmac<Sha1> as KeyInit>::new_from_slice(b"secret").unwrap();
        mac.update(policy.as_bytes());
        let signature = STANDARD.encode(mac.finalize().into_bytes());
        let mut all = vec![("AWSAccessKeyId", "AK"), ("policy", &policy), ("signature", &signature)];
        all.extend(more);
        form(&all)
    }

    #[test]
    fn policies_are_kept() {
        let check = |policy: &str, fields: &[(&str, &str)], want: Result<(), Kind>| {
            let got = upload(&signed(policy, fields), "b", &ring(), NOW).map(drop).map_err(|e| e.kind);
            assert_eq!(got, want, "{policy} {fields:?}");
        };
        let policy =
            |conditions: &str| format!(r#"{{"expiration":"2030-01-01T00:00:00Z","conditions":[{conditions}]}}"#);
        let usual = policy(r#"{"bUcKeT":"b"},["StArTs-WiTh","$KeY","foo"],["content-length-range",0,10]"#);
        let key = ("key", "foo.txt");
        check(&usual, &[key], Ok(()));
        check(&usual, &[("key", "${filename}")], Ok(()));
        check(&usual, &[("key", "bar")], Err(Kind::AccessDenied));
        check(&usual, &[], Err(Kind::InvalidArgument));
        check(&usual, &[key, ("acl", "private")], Err(Kind::AccessDenied));
        check(&usual, &[key, ("x-ignore-it", "x")], Ok(()));
        check(&policy(r#"["starts-with","$key","foo"]"#), &[key], Err(Kind::AccessDenied));
        check(&policy(r#"{"bucket":"other"},["starts-with","$key",""]"#), &[key], Err(Kind::AccessDenied));
        check(
            &policy(r#"{"bucket":"b"},["starts-with","$key",""],["starts-with","$x-amz-meta-a","v"]"#),
            &[key],
            Err(Kind::AccessDenied),
        );
        for bad in [
            "",
            "{}",
            r#"{"expiration":"2030-01-01T00:00:00Z"}"#,
            r#"{"EXPIRATION":"2030-01-01T00:00:00Z","conditions":[{"bucket":"b"}]}"#,
            r#"{"expiration":"2030-01-01 00:00:00","conditions":[{"bucket":"b"}]}"#,
        ] {
            check(bad, &[key], Err(Kind::InvalidPolicyDocument));
        }
        for bad in
            ["{}", "", r#"["content-length-range",0]"#, r#"["content-length-range",-1,0]"#, r#"["like","$key","x"]"#]
        {
            check(&policy(bad), &[key], Err(Kind::InvalidPolicyDocument));
        }
        check(
            r#"{"expiration":"2020-01-01T00:00:00Z","conditions":[{"bucket":"b"}]}"#,
            &[key],
            Err(Kind::AccessDenied),
        );
    }

    #[test]
    fn signatures_are_checked() {
        let policy = r#"{"expiration":"2030-01-01T00:00:00Z","conditions":[{"bucket":"b"},["starts-with","$key",""]]}"#;
        let with = |name: &str, value: &str| {
            let mut fields = signed(policy, &[("key", "k")]);
            fields.list.retain(|(n, _)| n != name);
            if !value.is_empty() {
                fields.list.push((name.into(), value.into()));
            }
            upload(&fields, "b", &ring(), NOW).map_err(|e| e.kind).err()
        };
        assert_eq!(with("x-ignore-a", "1"), None);
        assert_eq!(with("signature", ""), Some(Kind::InvalidArgument));
        assert_eq!(with("signature", "AAAA"), Some(Kind::SignatureDoesNotMatch));
        assert_eq!(with("awsaccesskeyid", "AK9"), Some(Kind::InvalidAccessKeyId));
        assert!(upload(&form(&[("key", "k")]), "b", &ring(), NOW).unwrap().signer.is_none(), "nobody needs no policy");
    }

    #[test]
    fn headers_of_the_put() {
        let fields = form(&[
            ("key", "a/${filename}"),
            ("acl", "public-read"),
            ("Content-Type", "text/plain"),
            ("x-amz-meta-a", "1"),
            ("tagging", "<Tagging><TagSet><Tag><Key>k &amp;</Key><Value>v</Value></Tag></TagSet></Tagging>"),
            ("success_action_status", "201"),
        ]);
        let up = upload(&fields, "b", &ring(), NOW).unwrap();
        assert_eq!((up.key.as_str(), up.status), ("a/foo.txt", 201));
        let header = |name: &str| up.headers.get(name).unwrap().to_str().unwrap();
        assert_eq!((header("x-amz-acl"), header("x-amz-tagging")), ("public-read", "k%20%26=v"));
        assert_eq!((header("content-type"), header("x-amz-meta-a")), ("text/plain", "1"));
        assert!(upload(&form(&[("key", "k"), ("x-amz-meta-a", "\n")]), "b", &ring(), NOW).is_err());
        for copy in ["x-amz-copy-source", "x-amz-copy-source-range"] {
            assert!(upload(&form(&[("key", "k"), (copy, "/b/secret")]), "b", &ring(), NOW).is_err(), "{copy}");
        }
        let e = upload(&form(&[("key", "")]), "b", &ring(), NOW).map(|_| ()).unwrap_err();
        assert_eq!(e.kind, Kind::InvalidArgument);
    }

    fn body(file: &[u8]) -> Vec<u8> {
        let part = |name: &str, value: &str| {
            format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{name}\"\r\n\r\n{value}\r\n")
        };
        let mut out = (part("Key", "k;\"1\"") + &part("acl", "private")).into_bytes();
        out.extend(b"--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a;b\\\".txt\"\r\nContent-Type: x/y\r\n\r\n");
        out.extend(file);
        out.extend(b"\r\n--B--\r\n");
        out
    }

    fn read(data: &[u8], cut: usize, length: Option<(u64, u64)>) -> Result<(Fields, Vec<u8>), String> {
        let (fields, at) = Head::new("B").read(data).map_err(|e| e.to_string())?.ok_or("incomplete")?;
        let pieces: Vec<_> =
            data[at..].chunks(cut).map(|c| Ok::<_, StdError>(Frame::data(Bytes::copy_from_slice(c)))).collect();
        let file = File::new(StreamBody::new(futures_util::stream::iter(pieces)), Bytes::new(), "B", length);
        let bytes = file.collect().now_or_never().unwrap().map_err(|e| e.to_string())?.to_bytes();
        Ok((fields, bytes.to_vec()))
    }

    #[test]
    fn files_come_out_whole() {
        for file in [&b""[..], b"bar", b"\r\n--", b"\r\n--\r\n--B-", &[7; 5000]] {
            for cut in [1, 2, 7, 10_000] {
                // What looks like the boundary is one.
                let want = find(file, b"\r\n--B").map_or(file, |at| &file[..at]);
                let (fields, got) = read(&body(file), cut, None).unwrap();
                assert_eq!(got, want, "{cut}");
                assert_eq!(fields.get("key"), Some("k;\"1\""));
                assert_eq!((fields.filename.as_str(), fields.get("content-type")), ("a;b\".txt", None));
            }
        }
        assert_eq!(read(&body(b"12345"), 2, Some((0, 4))).unwrap_err(), TOO_LARGE);
        assert_eq!(read(&body(b"12345"), 2, Some((6, 9))).unwrap_err(), TOO_SMALL);
        let cut_off = body(b"12345");
        assert_eq!(read(&cut_off[..cut_off.len() - 8], 3, None).unwrap_err(), NO_END);
    }

    /// What is read of a form that comes byte by byte, and how many bytes were looked at for it.
    fn byte_by_byte(data: &[u8], boundary: &str) -> (Result<Option<(Fields, usize)>, Kind>, usize) {
        let (mut head, mut looks) = (Head::new(boundary), 0);
        for end in 0..=data.len() {
            looks += end - head.looked;
            match head.read(&data[..end]) {
                Ok(None) => {}
                done => return (done.map_err(|e| e.kind), looks),
            }
        }
        (Ok(None), looks)
    }

    #[test]
    fn a_head_in_pieces_is_not_read_again_and_again() {
        let boundary = "b".repeat(70);
        let field = |name: &str, value: &str| {
            format!("\r\n--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}")
        };
        let dashes = "\r\n--bbbb".repeat(2000);
        for head in [
            "x".repeat(HEAD_MAX),
            field("key", &"v".repeat(40_000)),
            (0..100).map(|n| field(&format!("n{n}"), &"v".repeat(300))).collect(),
            field("key", &dashes),
            format!("\r\n--{boundary}\r\n{}", "a:b\r\n".repeat(5000)),
        ] {
            let (_, looks) = byte_by_byte(head.as_bytes(), &boundary);
            assert!(looks <= head.len() * (boundary.len() + 5), "{looks} of {}", head.len());
        }
        let whole = body(b"bar");
        let (fields, at) = byte_by_byte(&whole, "B").0.unwrap().unwrap();
        assert_eq!(Head::new("B").read(&whole).unwrap().unwrap(), (fields, at));
        assert_eq!(&whole[at..at + 3], b"bar");
    }

    #[test]
    fn boundaries() {
        assert_eq!(boundary("multipart/form-data; boundary=\"a b\"").unwrap(), "a b");
        assert_eq!(boundary("multipart/form-data; charset=x; Boundary=ab").unwrap(), "ab");
        for bad in ["multipart/form-data", "multipart/form-data; boundary=", &format!("m; boundary={}", "b".repeat(71))]
        {
            assert!(boundary(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn hostile_forms_do_no_harm(pieces in proptest::collection::vec(
            prop_oneof![
                Just("--B".to_owned()), Just("\r\n".to_owned()), Just("\r\n\r\n".to_owned()), Just("--".to_owned()),
                Just("Content-Disposition: form-data; name=\"file\"".to_owned()),
                Just("Content-Disposition: form-data; name=\"k\\\"".to_owned()), "[ -~]{0,9}",
            ], 0..20), cut in 1usize..50) {
            let text = pieces.concat();
            let whole = Head::new("B").read(text.as_bytes()).map_err(|e| e.kind);
            prop_assert_eq!(byte_by_byte(text.as_bytes(), "B").0, whole);
            let _ = read(text.as_bytes(), cut, Some((0, 5)));
            let _ = policy_of(&STANDARD.encode(&text));
        }
    }
}
