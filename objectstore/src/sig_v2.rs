//! What `s3s` leaves of Signature Version 2: the resource of a bucket is signed as `/bucket/` by the SDKs, also where the
//! request's path is `/bucket`; and the headers that a presigned URL was signed with stand in its query. ("Signing and
//! authenticating REST requests", S3 User Guide.) Pure.
//!
//! Version 2 signs a closed list of query parameters ([`SIGNED`]), older than many of S3's operations: whoever sits on the
//! wire could make a signed `PUT /bucket/key` a PutObjectRetention. So [`unsigned`] names what a query may not have.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use karri_base::aws::keys::KeyRing;
use karri_base::aws::sigv4::parse_query;
use sha1::Sha1;
use subtle::ConstantTimeEq;

use crate::place::Place;

/// Query parameters that are part of the resource, in `s3s` as here: boto's list.
const SIGNED: &str = "accelerate acl analytics cors defaultObjectAcl delete inventory lifecycle location logging metrics \
    notification object-lock partNumber policy replication requestPayment response-cache-control \
    response-content-disposition response-content-encoding response-content-language response-content-type \
    response-expires restore select select-type storageClass tagging torrent uploadId uploads versionId versioning \
    versions website";

/// Query parameters that select an operation, or what it is about, and that Version 2 does not sign: those of S3 that are
/// not in the tables of [`crate::route`] and [`crate::guard`].
const UNSIGNED: &str = "append id intelligent-tiering metadataConfiguration metadataTable session";

/// The parameter of a query that must not stand in a request signed with Version 2: one that selects something and is
/// not signed, a header that the signature is not over, or a signed one twice, of which `s3s` signs none.
pub fn unsigned<'q>(names: impl Iterator<Item = &'q str>, is_subresource: impl Fn(&str) -> bool) -> Option<&'q str> {
    let mut seen: Vec<&str> = Vec::new();
    for name in names {
        if is_signed(name) {
            if seen.contains(&name) {
                return Some(name);
            }
            seen.push(name);
        } else if is_subresource(name) || listed(UNSIGNED, name) || name.to_ascii_lowercase().starts_with("x-amz-") {
            return Some(name);
        }
    }
    None
}

/// True for a parameter that Version 2 signs.
pub fn is_signed(name: &str) -> bool {
    listed(SIGNED, name)
}

fn listed(list: &str, name: &str) -> bool {
    list.split_ascii_whitespace().any(|n| n == name)
}

/// A request as it was signed.
#[derive(Debug, PartialEq, Eq)]
pub struct Signed {
    /// The URI under which its signature holds, for `s3s` to check.
    pub uri: Uri,
    /// Headers that it lacks, from its query.
    pub headers: HeaderMap,
}

/// How a request was signed, where that is not how it came; `None` leaves it as it is, for `s3s` to check.
pub fn as_signed(head: &Parts, place: &Place, keys: &KeyRing) -> Option<Signed> {
    let path = head.uri.path();
    // In a virtual host the path is `/`, and the bucket stands before it in the resource.
    let before = place.bucket_of_host().map_or(String::new(), |bucket| format!("/{bucket}"));
    let is_bucket = before.is_empty() && place.bucket().is_some_and(|bucket| path.strip_prefix('/') == Some(bucket));
    let raw = head.uri.query().unwrap_or_default();
    let authorization = head.headers.get("authorization").and_then(|v| v.to_str().ok());
    let of_header = authorization.and_then(|a| a.strip_prefix("AWS "));
    // Most requests end here.
    if of_header.map_or(!raw.contains("AWSAccessKeyId"), |_| !is_bucket) {
        return None;
    }
    let query = parse_query(raw);
    let asked = |name: &str| query.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let (id, given) = match of_header {
        Some(signed) => signed.split_once(':')?,
        None => (asked("AWSAccessKeyId")?, asked("Signature")?),
    };
    let mut moved = HeaderMap::new();
    for (name, value) in query.iter().filter(|_| of_header.is_none()).filter(|(name, _)| is_header(name)) {
        let name = HeaderName::try_from(name.as_str()).ok()?;
        if !head.headers.contains_key(&name) {
            moved.append(name, HeaderValue::try_from(value.as_str()).ok()?);
        }
    }
    if !is_bucket && moved.is_empty() {
        return None;
    }
    let mut headers = head.headers.clone();
    headers.extend(moved.clone());
    let text = |resource: &str| string_to_sign(head, &headers, of_header.is_none(), &query, resource);
    let slashed = format!("{path}/");
    let resources = [(is_bucket, slashed.as_str()), (!moved.is_empty(), path)];
    let secret = keys.secret(id)?;
    let resource = resources.into_iter().filter(|(fits, _)| *fits).map(|(_, resource)| resource).find(|resource| {
        let Some(text) = text(&format!("{before}{resource}")) else { return false };
        let Ok(mut mac) = <Hmac<Sha1> as KeyInit>::new_from_slice(secret.as_bytes()) else { return false };
        mac.update(text.as_bytes());
        let expected = STANDARD.encode(mac.finalize().into_bytes());
        bool::from(expected.as_bytes().ct_eq(given.as_bytes()))
    })?;
    let left: Vec<&str> = raw.split('&').filter(|pair| of_header.is_some() || !is_header(name_of(pair))).collect();
    let uri =
        if left.is_empty() || raw.is_empty() { resource.to_owned() } else { format!("{resource}?{}", left.join("&")) };
    Some(Signed { uri: uri.parse().ok()?, headers: moved })
}

fn name_of(pair: &str) -> &str {
    pair.split_once('=').map_or(pair, |(name, _)| name)
}

/// True for what is signed as a header and stands in a presigned URL's query.
fn is_header(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.starts_with("x-amz-") || name == "content-md5" || name == "content-type"
}

fn string_to_sign(
    head: &Parts,
    headers: &HeaderMap,
    presigned: bool,
    query: &[(String, String)],
    path: &str,
) -> Option<String> {
    let asked = |name: &str| query.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let plain = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let date = match presigned {
        true => asked("Expires")?,
        false if headers.contains_key("x-amz-date") => "",
        false => plain("date"),
    };
    let mut amz: Vec<(&str, String)> = Vec::new();
    for name in headers.keys().filter(|n| n.as_str().starts_with("x-amz-")) {
        let values: Option<Vec<&str>> = headers.get_all(name).iter().map(|v| v.to_str().ok().map(str::trim)).collect();
        amz.push((name.as_str(), values?.join(",")));
    }
    amz.sort_unstable();
    let amz: String = amz.iter().map(|(n, v)| format!("{n}:{v}\n")).collect();
    let mut resource = path.to_owned();
    let signed = SIGNED.split_ascii_whitespace().filter_map(|name| Some((name, asked(name)?)));
    for (i, (name, value)) in signed.enumerate() {
        resource.push(if i == 0 { '?' } else { '&' });
        resource.push_str(name);
        if !value.is_empty() {
            resource.push('=');
            resource.push_str(value);
        }
    }
    Some(format!("{}\n{}\n{}\n{date}\n{amz}{resource}", head.method, plain("content-md5"), plain("content-type")))
}

#[cfg(test)]
mod tests {
    use karri_base::aws::keys::Key;

    use super::*;
    use crate::place::Domains;

    #[test]
    fn buckets_with_a_slash() {
        let ring = KeyRing::new([Key {
            access_key_id: "AK".into(),
            secret: "secret".into(),
            account: "000000000001".parse().unwrap(),
            arn: "arn:aws:iam::000000000001:root".into(),
        }]);
        let sign = |text: &str| {
            let mut mac = <Hmac<Sha1> as KeyInit>::new_from_slice(b"secret").unwrap();
            mac.update(text.as_bytes());
            STANDARD.encode(mac.finalize().into_bytes())
        };
        let check = |uri: &str, text: &str, want: Option<&str>| {
            let request = http::Request::builder()
                .method("PUT")
                .uri(uri)
                .header("date", "D")
                .header("x-amz-acl", " public-read")
                .header("authorization", format!("AWS AK:{}", sign(text)));
            let head = request.body(()).unwrap().into_parts().0;
            let signed = as_signed(&head, &Place::of(&Domains::default(), &head), &ring);
            assert_eq!(signed.map(|s| s.uri.to_string()).as_deref(), want, "{uri}");
        };
        let text = |resource: &str| format!("PUT\n\n\nD\nx-amz-acl:public-read\n{resource}");
        check("/b", &text("/b/"), Some("/b/"));
        check("/b?acl&x=1", &text("/b/?acl"), Some("/b/?acl&x=1"));
        check("/b", &text("/b"), None);
        check("/b/k", &text("/b/k"), None);
        check("/", &text("//"), None);

        // A presigned URL: headers that were signed stand in its query.
        let check_at = |host: &str, path: &str, query: &str, text: &str, want: Option<&str>| {
            let signature = sign(text).replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
            let uri = format!("{path}?AWSAccessKeyId=AK&Expires=9&{query}Signature={signature}");
            let head = http::Request::builder().uri(uri).header("host", host).body(()).unwrap().into_parts().0;
            let payer = |signed: &Signed| signed.headers["x-amz-request-payer"].to_str().unwrap().to_owned();
            let signed = as_signed(&head, &Place::of(&Domains::default(), &head), &ring);
            assert_eq!(signed.as_ref().map(payer).as_deref(), want, "{query}");
            if let Some(signed) = signed {
                assert_eq!(signed.uri.path(), path);
                assert!(!signed.uri.query().unwrap().contains("payer"), "{}", signed.uri);
            }
        };
        let check = |query: &str, text: &str, want: Option<&str>| {
            for (host, path) in [("localhost:9000", "/b/k"), ("b.localhost:9000", "/k")] {
                check_at(host, path, query, text, want);
            }
        };
        let text = "GET\n\n\n9\nx-amz-request-payer:requester\n/b/k";
        check("x-amz-request-payer=requester&", text, Some("requester"));
        check("x-amz-request-payer=others&", text, None);
        check("", "GET\n\n\n9\n/b/k", None);
    }
}
