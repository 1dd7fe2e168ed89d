//! Website hosting: buckets shown to browsers, by host name.
//!
//! A request whose host is `BUCKET.s3-website.REST` or `BUCKET.s3-website-REGION.REST`, or the name of a bucket under a
//! website domain of the operator's ([`crate::place`]), is a visitor's: a GET or HEAD by nobody, carried out as the S3 request of the same name, with folders' index documents, redirects, and error documents
//! instead of XML. Who may read what is decided as always: a website's objects are public by policy or list.

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use karri_base::aws::sigv4::uri_encode;
use karri_bulk::BulkStore;

use crate::api::{Peer, RequestId};
use crate::config::website::{Elsewhere, Website};
use crate::error::{Error, Kind};
use crate::front::Front;
use crate::place::Place;

/// Request headers that a visitor may send on.
const PASSED: [&str; 7] =
    ["range", "if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "user-agent"];

impl<B: BulkStore> Front<B> {
    /// Answers a visitor.
    pub(crate) async fn visit(&self, head: &Parts, place: &Place, id: &RequestId) -> Response<s3s::Body> {
        let bucket = place.website().unwrap_or_default();
        if head.method != Method::GET && head.method != Method::HEAD {
            return page(&Kind::MethodNotAllowed.into());
        }
        let site = match self.core().known(bucket).await {
            Err(e) => return page(&e),
            Ok(known) => match &known.settings.website {
                None => return page(&Kind::NoSuchWebsiteConfiguration.into()),
                Some(site) => site.clone(),
            },
        };
        let key = place.key().unwrap_or_default();
        if let Some(to) = site.redirect(key, None) {
            return moved(&to);
        }
        let shown = self.fetch(head, bucket, &site.shown(key), id).await;
        if shown.status().is_success() || shown.status() == StatusCode::NOT_MODIFIED {
            if let Some(to) = shown.headers().get("x-amz-website-redirect-location").and_then(|v| v.to_str().ok()) {
                return moved(&Elsewhere { code: 301, location: to.to_owned() });
            }
            return shown;
        }
        self.failed(head, bucket, &site, key, shown, id).await
    }

    /// What a visitor sees where the object cannot be shown.
    async fn failed(
        &self,
        head: &Parts,
        bucket: &str,
        site: &Website,
        key: &str,
        shown: Response<s3s::Body>,
        id: &RequestId,
    ) -> Response<s3s::Body> {
        let status = shown.status();
        if let Some(to) = site.redirect(key, Some(status.as_u16())) {
            return moved(&to);
        }
        if !status.is_client_error() {
            return shown;
        }
        // A folder without its slash.
        if !key.is_empty() && !key.ends_with('/') && site.index.is_some() {
            let look = parts_of(head, Method::HEAD, head.headers.clone());
            if self.fetch(&look, bucket, &site.shown(&format!("{key}/")), id).await.status().is_success() {
                let location = format!("/{}/", uri_encode(key.as_bytes(), true));
                return moved(&Elsewhere { code: 302, location });
            }
        }
        if let Some(error) = &site.error {
            let plain = parts_of(head, head.method.clone(), HeaderMap::new());
            let mut instead = self.fetch(&plain, bucket, error, id).await;
            if instead.status().is_success() {
                *instead.status_mut() = status;
                return instead;
            }
        }
        let kind = if status == StatusCode::NOT_FOUND { Kind::NoSuchKey } else { Kind::AccessDenied };
        page(&kind.into())
    }

    async fn fetch(&self, head: &Parts, bucket: &str, key: &str, id: &RequestId) -> Response<s3s::Body> {
        let uri = format!("/{bucket}/{}", uri_encode(key.as_bytes(), true));
        let request = Request::builder().method(head.method.clone()).uri(uri).body(s3s::Body::empty());
        let Ok(mut request) = request else { return page(&Kind::NoSuchKey.into()) };
        for name in PASSED {
            if let Some(value) = head.headers.get(name) {
                request.headers_mut().insert(name, value.clone());
            }
        }
        if let Some(peer) = head.extensions.get::<Peer>() {
            request.extensions_mut().insert(*peer);
        }
        request.extensions_mut().insert(id.clone());
        request.extensions_mut().insert(Place::object(bucket, key));
        self.serve(request, id).await
    }
}

fn parts_of(head: &Parts, method: Method, headers: HeaderMap) -> Parts {
    let mut parts = Request::new(()).into_parts().0;
    (parts.method, parts.headers, parts.extensions) = (method, headers, head.extensions.clone());
    parts
}

fn moved(to: &Elsewhere) -> Response<s3s::Body> {
    let mut response = Response::new(s3s::Body::empty());
    *response.status_mut() = StatusCode::from_u16(to.code).unwrap_or(StatusCode::MOVED_PERMANENTLY);
    match HeaderValue::from_str(&to.location) {
        Ok(value) => response.headers_mut().insert(LOCATION, value),
        Err(_) => return page(&Kind::InvalidRequest.into()),
    };
    response.headers_mut().insert(CONTENT_LENGTH, 0.into());
    response
}

/// An error as browsers are shown it.
fn page(e: &Error) -> Response<s3s::Body> {
    let status = e.kind.status();
    let words = status.canonical_reason().unwrap_or_default();
    let text = format!(
        "<html>\n<head><title>{0} {words}</title></head>\n<body>\n<h1>{0} {words}</h1>\n<ul>\n<li>Code: {1}</li>\n<li>Message: {2}</li>\n</ul>\n</body>\n</html>\n",
        status.as_u16(),
        e.kind.code(),
        quick_xml::escape::partial_escape(&*e.message),
    );
    let mut response = Response::new(s3s::Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response
}
