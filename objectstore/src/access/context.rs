//! A request's condition keys ("Actions, resources, and condition keys for Amazon S3").

use http::HeaderMap;
use karri_base::aws::policy::Context;
use karri_base::clock::UnixMicros;
use time::OffsetDateTime;
use time::format_description::well_known::{Iso8601, Rfc3339};

use crate::access::{Facts, actions};
use crate::record::Object;
use crate::signed_at;
use crate::usage::Amount;

/// Query parameters that are condition keys by their own names.
const PARAMETERS: [&str; 3] = ["prefix", "delimiter", "max-keys"];

/// Where a new bucket is to be.
pub const LOCATION: &str = "s3:LocationConstraint";
/// `ON` or `OFF`.
pub const LEGAL_HOLD: &str = "s3:object-lock-legal-hold";
/// Tags of an object that is there.
pub const EXISTING_TAG: &str = "s3:ExistingObjectTag/";
/// Tags that a request gives.
pub const REQUEST_TAG: &str = "s3:RequestObjectTag";
/// What is in an upload's bucket, and in its account, with it.
pub const USAGE: &str = "karri:";
const LOCK_MODE: &str = "s3:object-lock-mode";
const LOCK_UNTIL: &str = "s3:object-lock-retain-until-date";
const LOCK_DAYS: &str = "s3:object-lock-remaining-retention-days";
const DAY_US: u64 = 24 * 3600 * 1_000_000;

/// The condition keys of a request.
pub fn of(facts: &Facts, now: UnixMicros) -> Context {
    let mut context = Context::default();
    let text = |name: &str| facts.headers.get(name).and_then(|v| v.to_str().ok());
    context.moment("aws:CurrentTime", now).moment("aws:EpochTime", now).flag("aws:SecureTransport", facts.secure);
    if let Some(source) = facts.source {
        context.address("aws:SourceIp", source);
    }
    if let Some(version) = facts.tls {
        context.text("s3:TlsVersion", version);
    }
    for (key, header) in [("aws:UserAgent", "user-agent"), ("aws:Referer", "referer")] {
        if let Some(value) = text(header) {
            context.text(key, value);
        }
    }
    for (name, value) in &facts.query {
        if PARAMETERS.contains(&name.as_str()) {
            context.text(&format!("s3:{name}"), value.clone());
        }
    }
    if let Some(version) = &facts.version {
        context.text("s3:VersionId", version.clone());
    }
    // Only what the operation will read: a header that it ignores says nothing of what it does.
    let (tags, lock) = actions::said_by_headers(facts.operation, &facts.headers);
    for (name, value) in &facts.headers {
        let name = name.as_str();
        let Ok(value) = value.to_str() else { continue };
        match name.strip_prefix("x-amz-") {
            None if matches!(name, "if-match" | "if-none-match") => context.text(&format!("s3:{name}"), value),
            Some("tagging") if !tags => continue,
            Some("object-lock-mode" | "object-lock-legal-hold" | "object-lock-retain-until-date") if !lock => continue,
            Some("tagging") => {
                request_tags(&mut context, karri_base::aws::sigv4::parse_query(value));
                continue;
            }
            Some("object-lock-mode") => context.text(LOCK_MODE, value),
            Some("object-lock-legal-hold") => context.text(LEGAL_HOLD, value),
            Some("object-lock-retain-until-date") => {
                if let Some(until) = moment(value) {
                    remaining(&mut context, until, now);
                }
                context.text(LOCK_UNTIL, value)
            }
            Some("copy-source") => {
                let decoded = percent_encoding::percent_decode_str(value).decode_utf8_lossy();
                context.text("s3:x-amz-copy-source", decoded.trim_start_matches('/'))
            }
            Some("security-token") | None => continue,
            Some(_) => context.text(&format!("s3:{name}"), value),
        };
    }
    context.text("s3:authType", auth_type(facts)).flag("aws:ViaAWSService", false);
    let signed = facts.who.as_ref().and_then(|_| signed_at::moment_of(&facts.headers, &facts.query));
    if let Some(age) = signed.map(|at| now.0.saturating_sub(at.0) / 1000) {
        context.number("s3:signatureAge", i64::try_from(age).unwrap_or(i64::MAX));
    }
    context.text(
        "s3:signatureversion",
        if text("authorization").is_some_and(|a| a.starts_with("AWS ")) { "AWS" } else { "AWS4-HMAC-SHA256" },
    );
    context
}

fn auth_type(facts: &Facts) -> &'static str {
    if facts.headers.contains_key("authorization") {
        "REST-HEADER"
    } else if facts.operation == "PostObject" {
        "POST"
    } else {
        "REST-QUERY-STRING"
    }
}

/// `s3:RequestObjectTag/...` of the tags that a request gives.
pub fn request_tags(context: &mut Context, tags: impl IntoIterator<Item = (String, String)>) {
    for (key, value) in tags {
        context.add("s3:RequestObjectTagKeys", key.clone());
        context.text(&format!("s3:RequestObjectTag/{key}"), value);
    }
}

/// `karri:BucketBytes`, `karri:BucketObjects`, `karri:AccountBytes` and `karri:AccountObjects`: how much there would be.
pub fn usage(context: &mut Context, bucket: Amount, account: Amount) {
    for (name, amount) in [("Bucket", bucket), ("Account", account)] {
        context.number(&format!("{USAGE}{name}Bytes"), amount.bytes);
        context.number(&format!("{USAGE}{name}Objects"), amount.objects);
    }
}

/// The length of the body that a request announces, as uploads hold it to: of an aws-chunked one the decoded length is in
/// Content-Length by now ([`tell_length`](crate::guard::tell_length), and `s3s`). `x-amz-decoded-content-length` itself may be
/// anything on other requests.
pub fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(http::header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// `s3:object-lock-...` of the retention that a request gives.
pub fn retention(context: &mut Context, given: Option<(&str, UnixMicros)>, now: UnixMicros) {
    let Some((mode, until)) = given else { return };
    context.text(LOCK_MODE, mode);
    let text = OffsetDateTime::from_unix_timestamp(i64::try_from(until.secs()).unwrap_or(i64::MAX));
    if let Some(text) = text.ok().and_then(|at| at.format(&Rfc3339).ok()) {
        context.text(LOCK_UNTIL, text);
    }
    remaining(context, until, now);
}

/// Days that are left, a day begun counting whole: what asks for ten days has ten when it arrives.
fn remaining(context: &mut Context, until: UnixMicros, now: UnixMicros) {
    let days = until.0.saturating_sub(now.0).div_ceil(DAY_US);
    context.number(LOCK_DAYS, i64::try_from(days).unwrap_or(i64::MAX));
}

fn moment(text: &str) -> Option<UnixMicros> {
    let at = OffsetDateTime::parse(text.trim(), &Iso8601::DEFAULT).ok()?;
    u64::try_from(at.unix_timestamp_nanos() / 1000).ok().map(UnixMicros)
}

/// `s3:ExistingObjectTag/...` of an object that is there.
pub fn existing_tags(context: &mut Context, object: &Object) {
    for (key, value) in &object.tags.0 {
        context.text(&format!("{EXISTING_TAG}{key}"), value.clone());
    }
}

/// A copy's source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The bucket.
    pub bucket: String,
    /// The key.
    pub key: String,
    /// The version.
    pub version: Option<String>,
}

/// What `x-amz-copy-source` names, as far as it names an object: read by `s3s`, as the operation will read it.
pub fn copy_source(headers: &HeaderMap) -> Option<Source> {
    match s3s::dto::CopySource::parse(headers.get("x-amz-copy-source")?.to_str().ok()?).ok()? {
        s3s::dto::CopySource::Bucket { bucket, key, version_id } => {
            Some(Source { bucket: bucket.into(), key: key.into(), version: version_id.map(Into::into) })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_of_copies() {
        let check = |text: &str, want: Option<(&str, &str, Option<&str>)>| {
            let headers =
                HeaderMap::from_iter([(http::HeaderName::from_static("x-amz-copy-source"), text.parse().unwrap())]);
            let got = copy_source(&headers);
            assert_eq!(got.as_ref().map(|s| (s.bucket.as_str(), s.key.as_str(), s.version.as_deref())), want, "{text}");
        };
        check("bkt/k", Some(("bkt", "k", None)));
        check("/bkt/a%2Fk%20x?versionId=v", Some(("bkt", "a/k x", Some("v"))));
        check("bkt%2Fk", Some(("bkt", "k", None)));
        check("b", None);
    }

    #[test]
    fn keys_of_a_request() {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-acl", "public-read".parse().unwrap());
        headers.insert("x-amz-tagging", "a=1&b=2".parse().unwrap());
        headers.insert("x-amz-copy-source", "/b/k%20x".parse().unwrap());
        headers.insert("x-amz-server-side-encryption", "AES256".parse().unwrap());
        headers.insert("x-amz-object-lock-retain-until-date", "1970-01-03T00:00:01.000Z".parse().unwrap());
        let facts =
            Facts { operation: "PutObject", headers, query: vec![("prefix".into(), "p/".into())], ..Facts::default() };
        let context = of(&facts, UnixMicros(1_000_000));
        for (key, want) in [
            ("s3:x-amz-acl", "public-read"),
            ("s3:RequestObjectTag/a", "1"),
            ("s3:x-amz-copy-source", "b/k x"),
            ("s3:x-amz-server-side-encryption", "AES256"),
            ("s3:prefix", "p/"),
            ("aws:SecureTransport", "false"),
            ("s3:object-lock-remaining-retention-days", "2"),
        ] {
            assert_eq!(context.get(key), Some(&[want.to_owned()][..]), "{key}");
        }
        assert_eq!(context.get("s3:RequestObjectTagKeys").unwrap().len(), 2);
        for operation in ["PutObjectTagging", "PutObjectRetention", "UploadPart", "CopyObject"] {
            let context = of(&Facts { operation, ..facts.clone() }, UnixMicros(1_000_000));
            assert_eq!(context.get("s3:RequestObjectTag/a"), None, "{operation}");
            assert_eq!(context.get(LOCK_DAYS).is_some(), operation == "CopyObject", "{operation}");
        }
        let mut facts = Facts { operation: "CopyObject", ..facts };
        facts.headers.insert("x-amz-tagging-directive", "REPLACE".parse().unwrap());
        assert!(of(&facts, UnixMicros(1_000_000)).get("s3:RequestObjectTag/a").is_some());
    }
}
