//! What `s3s` leaves of Signature Version 2: the resource of a bucket is signed as `/bucket/` by the SDKs, also where the
//! request's path is `/bucket`. ("Signing and authenticating REST requests", S3 User Guide.) Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use http::Uri;
use http::request::Parts;
use karri_base::aws::keys::KeyRing;
use karri_base::aws::sigv4::parse_query;
use sha1::Sha1;
use subtle::ConstantTimeEq;

/// Query parameters that are part of the resource.
const SIGNED: &str = "accelerate acl analytics cors defaultObjectAcl delete inventory lifecycle location logging metrics \
    notification object-lock partNumber policy replication requestPayment response-cache-control \
    response-content-disposition response-content-encoding response-content-language response-content-type \
    response-expires restore select select-type storageClass tagging torrent uploadId uploads versionId versioning \
    versions website";

/// The URI under which a request's signature holds, where that is the bucket's with a slash; `None` leaves the request
/// as it is, for `s3s` to check.
pub fn slashed(head: &Parts, keys: &KeyRing) -> Option<Uri> {
    let path = head.uri.path();
    if path.len() < 2 || path[1..].contains('/') {
        return None;
    }
    let query = parse_query(head.uri.query().unwrap_or_default());
    let asked = |name: &str| query.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let header = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok());
    let (id, given, date) = match header("authorization").and_then(|a| a.strip_prefix("AWS ")) {
        Some(signed) => {
            let (id, given) = signed.split_once(':')?;
            (id, given, if header("x-amz-date").is_some() { "" } else { header("date").unwrap_or_default() })
        }
        None => (asked("AWSAccessKeyId")?, asked("Signature")?, asked("Expires")?),
    };
    let mut amz: Vec<(&str, String)> = Vec::new();
    for name in head.headers.keys().filter(|n| n.as_str().starts_with("x-amz-")) {
        let values: Option<Vec<&str>> =
            head.headers.get_all(name).iter().map(|v| v.to_str().ok().map(str::trim)).collect();
        amz.push((name.as_str(), values?.join(",")));
    }
    amz.sort_unstable();
    let amz: String = amz.iter().map(|(n, v)| format!("{n}:{v}\n")).collect();
    let mut resource = format!("{path}/");
    let signed = SIGNED.split_ascii_whitespace().filter_map(|name| Some((name, asked(name)?)));
    for (i, (name, value)) in signed.enumerate() {
        resource.push(if i == 0 { '?' } else { '&' });
        resource.push_str(name);
        if !value.is_empty() {
            resource.push('=');
            resource.push_str(value);
        }
    }
    let plain = |name: &str| header(name).unwrap_or_default().to_owned();
    let text = format!("{}\n{}\n{}\n{date}\n{amz}{resource}", head.method, plain("content-md5"), plain("content-type"));
    let mut mac = <Hmac<Sha1> as KeyInit>::new_from_slice(keys.secret(id)?.as_bytes()).ok()?;
    mac.update(text.as_bytes());
    let expected = STANDARD.encode(mac.finalize().into_bytes());
    if !bool::from(expected.as_bytes().ct_eq(given.as_bytes())) {
        return None;
    }
    match head.uri.query() {
        Some(query) => format!("{path}/?{query}").parse().ok(),
        None => format!("{path}/").parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use karri_base::aws::keys::Key;

    use super::*;

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
            assert_eq!(slashed(&head, &ring).map(|u| u.to_string()).as_deref(), want, "{uri}");
        };
        let text = |resource: &str| format!("PUT\n\n\nD\nx-amz-acl:public-read\n{resource}");
        check("/b", &text("/b/"), Some("/b/"));
        check("/b?acl&x=1", &text("/b/?acl"), Some("/b/?acl&x=1"));
        check("/b", &text("/b"), None);
        check("/b/k", &text("/b/k"), None);
        check("/", &text("//"), None);
    }
}
