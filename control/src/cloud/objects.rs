//! Image objects in Walrus, looked at over S3 with the system key.
//!
//! The system key may read every bucket, so the request says whose bucket it must be (`x-amz-expected-bucket-owner`):
//! Walrus refuses with 403 when it is another account's.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use karri_base::aws::policy::{Policy, Use};
use karri_base::aws::s3::S3;
use karri_base::aws::sigv4::Payload;
use karri_base::clock::Clock;
use karri_base::config::AccessKey;
use karri_base::id::AccountId;
use std::sync::Arc;

use super::peers::{ObjectError, Objects};
use super::records::ImageObject;

const PATIENCE: Duration = Duration::from_secs(10);

/// Walrus's S3.
pub struct WalrusObjects {
    s3: S3,
    client: Client<HttpConnector, Full<Bytes>>,
    clock: Arc<dyn Clock>,
}

impl WalrusObjects {
    /// At this endpoint, with the system key.
    ///
    /// # Errors
    /// The endpoint is none.
    pub fn new(endpoint: &str, key: AccessKey, region: &str, clock: Arc<dyn Clock>) -> Result<Self, String> {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Ok(Self { s3: S3::new(endpoint, key, region)?, client, clock })
    }
}

/// A bucket policy's longest text is 20 KiB; an error's is shorter.
const DOCUMENT_MAX: usize = 64 << 10;

impl WalrusObjects {
    async fn ask(
        &self,
        method: http::Method,
        owner: &AccountId,
        (bucket, key): (&str, Option<&str>),
        query: &[(&str, &str)],
    ) -> Result<http::Response<Incoming>, ObjectError> {
        let unavailable = |why: String| ObjectError::Unavailable(why);
        let whose = [("x-amz-expected-bucket-owner", owner.as_str())];
        let now = self.clock.now();
        let parts = self
            .s3
            .request(method, bucket, key, query, &whose, Payload::Bytes(b""), now)
            .map_err(|_| ObjectError::NotFound)?;
        let request = http::Request::from_parts(parts, Full::new(Bytes::new()));
        let answer = tokio::time::timeout(PATIENCE, self.client.request(request)).await;
        let answer = answer.map_err(|_| unavailable(format!("no answer in {} s", PATIENCE.as_secs())))?;
        let answer = answer.map_err(|e| unavailable(e.to_string()))?;
        match answer.status().as_u16() {
            200 => Ok(answer),
            404 | 400 => Err(ObjectError::NotFound),
            403 => Err(ObjectError::Foreign),
            status => Err(unavailable(format!("status {status}"))),
        }
    }
}

#[async_trait]
impl Objects for WalrusObjects {
    async fn head(&self, owner: &AccountId, bucket: &str, key: &str) -> Result<ImageObject, ObjectError> {
        let answer = self.ask(http::Method::HEAD, owner, (bucket, Some(key)), &[]).await?;
        let header = |name: http::HeaderName| answer.headers().get(name).and_then(|v| v.to_str().ok());
        let bytes = header(http::header::CONTENT_LENGTH).and_then(|l| l.parse().ok());
        let bytes = bytes.ok_or_else(|| ObjectError::Unavailable("an object without Content-Length".into()))?;
        let etag = header(http::header::ETAG).unwrap_or_default().to_owned();
        Ok(ImageObject { bucket: bucket.to_owned(), key: key.to_owned(), etag, bytes })
    }

    async fn policy(&self, owner: &AccountId, bucket: &str) -> Result<Option<Policy>, ObjectError> {
        let answer = match self.ask(http::Method::GET, owner, (bucket, None), &[("policy", "")]).await {
            // No bucket, or no policy.
            Err(ObjectError::NotFound) => return Ok(None),
            other => other?,
        };
        let unreadable = |why: String| ObjectError::Unavailable(format!("the policy of {bucket:?}: {why}"));
        let body = tokio::time::timeout(PATIENCE, Limited::new(answer.into_body(), DOCUMENT_MAX).collect()).await;
        let body = body.map_err(|_| unreadable("it stopped coming".into()))?;
        let text = body.map_err(|e| unreadable(e.to_string()))?.to_bytes();
        let policy = Policy::parse(&String::from_utf8_lossy(&text), Use::Bucket);
        policy.map(Some).map_err(|e| unreadable(e.to_string()))
    }
}

/// What stands for Walrus where no S3 endpoint is configured.
pub struct NoObjects;

#[async_trait]
impl Objects for NoObjects {
    async fn head(&self, _: &AccountId, _: &str, _: &str) -> Result<ImageObject, ObjectError> {
        Err(ObjectError::Unavailable("no S3 endpoint is configured under [peers]".into()))
    }
    async fn policy(&self, _: &AccountId, _: &str) -> Result<Option<Policy>, ObjectError> {
        Err(ObjectError::Unavailable("no S3 endpoint is configured under [peers]".into()))
    }
}
