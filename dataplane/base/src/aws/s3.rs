//! Signed S3 requests as roles send them to Walrus: path-style, built here, sent by whoever has an HTTP client.

use http::{Method, Request, Uri};

use super::sigv4::{self, Payload, Signer, uri_encode};
use crate::clock::UnixMicros;
use crate::config::AccessKey;

/// An S3 endpoint and who speaks to it.
#[derive(Debug, Clone)]
pub struct S3 {
    endpoint: Uri,
    key: AccessKey,
    region: String,
}

impl S3 {
    /// Requests to `endpoint` (`http://127.0.0.1:9000`), signed with `key`.
    ///
    /// # Errors
    /// A sentence, where the endpoint is no such URI.
    pub fn new(endpoint: &str, key: AccessKey, region: &str) -> Result<Self, String> {
        let bad = |why: &str| format!("S3 endpoint {endpoint:?}: {why}; want such as http://127.0.0.1:9000");
        let uri: Uri = endpoint.parse().map_err(|_| bad("no URI"))?;
        if uri.scheme().is_none() || uri.authority().is_none() {
            return Err(bad("no scheme or no host"));
        }
        if uri.path() != "/" || uri.query().is_some() {
            return Err(bad("has a path"));
        }
        Ok(Self { endpoint: uri, key, region: region.to_owned() })
    }

    /// Reads an object, or bytes `from..=to` of it.
    ///
    /// # Errors
    /// See [`S3::request`].
    pub fn get(
        &self,
        bucket: &str,
        key: &str,
        range: Option<(u64, u64)>,
        now: UnixMicros,
    ) -> Result<http::request::Parts, String> {
        let range = range.map(|(from, to)| format!("bytes={from}-{to}"));
        let headers = range.as_deref().map(|range| ("range", range));
        self.request(Method::GET, bucket, Some(key), &[], headers.as_slice(), Payload::Bytes(b""), now)
    }

    /// Asks for an object's size and headers.
    ///
    /// # Errors
    /// See [`S3::request`].
    pub fn head(&self, bucket: &str, key: &str, now: UnixMicros) -> Result<http::request::Parts, String> {
        self.request(Method::HEAD, bucket, Some(key), &[], &[], Payload::Bytes(b""), now)
    }

    /// Writes an object; the caller adds `content-length` where its client does not.
    ///
    /// # Errors
    /// See [`S3::request`].
    pub fn put(
        &self,
        bucket: &str,
        key: &str,
        payload: Payload<'_>,
        now: UnixMicros,
    ) -> Result<http::request::Parts, String> {
        self.request(Method::PUT, bucket, Some(key), &[], &[], payload, now)
    }

    /// Any request: `query` holds decoded names and values (an empty value for a bare name such as `uploads`).
    ///
    /// # Errors
    /// A sentence, where the bucket's or a header's name or value cannot be sent.
    #[allow(clippy::too_many_arguments, reason = "an HTTP request has so many parts")]
    pub fn request(
        &self,
        method: Method,
        bucket: &str,
        key: Option<&str>,
        query: &[(&str, &str)],
        headers: &[(&str, &str)],
        payload: Payload<'_>,
        now: UnixMicros,
    ) -> Result<http::request::Parts, String> {
        let mut target = format!("/{}", uri_encode(bucket.as_bytes(), false));
        if let Some(key) = key {
            target.push('/');
            target.push_str(&uri_encode(key.as_bytes(), true));
        }
        for (i, (name, value)) in query.iter().enumerate() {
            target.push(if i == 0 { '?' } else { '&' });
            let encode = |text: &str| uri_encode(text.as_bytes(), false);
            target.push_str(&format!("{}={}", encode(name), encode(value)));
        }
        let mut uri = self.endpoint.clone().into_parts();
        uri.path_and_query = Some(target.parse().map_err(|e| format!("{target}: {e}"))?);
        let uri = Uri::from_parts(uri).map_err(|e| format!("{target}: {e}"))?;
        let request = Request::builder().method(method).uri(uri);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let (mut parts, ()) = request.body(()).map_err(|e| format!("{target}: {e}"))?.into_parts();
        let signer = Signer {
            access_key_id: &self.key.access_key_id,
            secret: &self.key.secret_access_key,
            session_token: None,
            region: &self.region,
            service: "s3",
        };
        sigv4::sign(&mut parts, payload, &signer, now)?;
        Ok(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::keys::{Key, KeyRing};
    use crate::aws::verify::Verifier;

    fn s3() -> S3 {
        let key = AccessKey { access_key_id: "AKIAIOSFODNN7EXAMPLE".into(), secret_access_key: "secret".into() };
        S3::new("http://127.0.0.1:9000", key, "us-east-1").expect("an endpoint")
    }

    #[test]
    fn keys_are_encoded_for_the_path_and_the_signature_holds() {
        let ring = KeyRing::new([Key {
            access_key_id: "AKIAIOSFODNN7EXAMPLE".into(),
            secret: "secret".into(),
            account: "123456789012".parse().expect("an account"),
            arn: "arn:aws:iam::123456789012:role/karri-system".into(),
        }]);
        let (verifier, now) = (Verifier::new(ring), UnixMicros(1_700_000_000_000_000));
        for (key, path) in [
            ("plain", "/b/plain"),
            ("a/b c+d?e#f%20", "/b/a/b%20c%2Bd%3Fe%23f%2520"),
            ("//a/../\u{e9}", "/b///a/../%C3%A9"),
        ] {
            let parts = s3().get("b", key, Some((0, 9)), now).expect("builds");
            assert_eq!(parts.uri.path(), path);
            assert_eq!(parts.headers["range"], "bytes=0-9");
            verifier.verify(&parts, b"", now).expect("believed");
        }
        let put = s3().put("b", "k", Payload::Unsigned, now).expect("builds");
        verifier.verify(&put, b"anything", now).expect("believed");
        let put = s3().put("b", "k", Payload::Bytes(b"this"), now).expect("builds");
        verifier.verify(&put, b"that", now).expect_err("another body");
        let query = [("uploads", ""), ("prefix", "a b")];
        let list = s3().request(Method::GET, "b", None, &query, &[], Payload::Bytes(b""), now).expect("builds");
        assert_eq!(list.uri.path_and_query().expect("a path").as_str(), "/b?uploads=&prefix=a%20b");
        verifier.verify(&list, b"", now).expect("believed");
    }

    #[test]
    fn endpoints_are_checked() {
        let key = || AccessKey { access_key_id: "A".into(), secret_access_key: "s".into() };
        for bad in ["", "127.0.0.1:9000", "/x", "http://h/path", "http://h/?q"] {
            assert!(S3::new(bad, key(), "us-east-1").is_err(), "{bad}");
        }
    }
}
