//! Subresources that Walrus reads and writes itself: what buckets are configured to do, and lists of objects.
//!
//! `s3s` checks the signature and hands the rest over ([`s3s::route::S3Route`]): these documents are stored as they are
//! answered, so typed copies of them in between would only lose something. Bodies are bounded, their digests checked.

use bytes::Bytes;
use http::{Extensions, HeaderMap, Method, StatusCode, Uri};
use karri_base::aws::keys::KeyRing;
use karri_base::aws::sigv4::parse_query;
use karri_bulk::BulkStore;
use s3s::route::S3Route;
use s3s::{Body, S3Request, S3Response, S3Result};
use send_wrapper::SendWrapper;

use crate::access::actions::{DELETE_OBJECT, GET_OBJECT};
use crate::access::{Facts, context};
use crate::api::{self, Peer, RequestId};
use crate::body::{Expected, Trailers};
use crate::core::{Caller, CoreRef};
use crate::error::{Kind, Result};
use crate::guard;
use crate::note::Note;
use crate::ops;
use crate::place::Place;
use crate::range::{Admitted, Retry};

/// The largest document: 1,000 lifecycle rules, each with some tags.
const DOCUMENT_MAX: usize = 1 << 20;

/// A subresource and the operations of its methods: GET, PUT, DELETE.
struct Row {
    name: &'static str,
    object: bool,
    operations: [Option<&'static str>; 3],
}

impl Row {
    fn operation(&self, method: &Method) -> Option<&'static str> {
        let at = match *method {
            Method::GET => 0,
            Method::PUT => 1,
            Method::DELETE => 2,
            _ => usize::MAX,
        };
        self.operations.get(at).copied().flatten()
    }
}

const fn row(name: &'static str, operations: [Option<&'static str>; 3]) -> Row {
    Row { name, object: false, operations }
}

/// Karri's own, of a bucket or, at the root, of the caller's account.
const USAGE: &str = "usage";

/// Karri's own, at the root: of the caller's account, or of the whole store.
const ROOT_ROWS: &[Row] = &[
    row(USAGE, [Some("GetAccountUsage"), None, None]),
    row("buckets", [Some("ListStoreBuckets"), None, None]),
    row("scrub", [Some("GetStoreReport"), Some("CheckStore"), None]),
    row("reclaim", [None, Some("ReclaimStore"), None]),
];

/// With an id one of a bucket's; without one, all.
const INVENTORY: &str = "inventory";
const LIST_INVENTORIES: &str = "ListBucketInventoryConfigurations";

const ROWS: &[Row] = &[
    row("acl", [Some("GetBucketAcl"), Some("PutBucketAcl"), None]),
    Row { name: "acl", object: true, operations: [Some("GetObjectAcl"), Some("PutObjectAcl"), None] },
    row("policy", [Some("GetBucketPolicy"), Some("PutBucketPolicy"), Some("DeleteBucketPolicy")]),
    row("policyStatus", [Some("GetBucketPolicyStatus"), None, None]),
    row("cors", [Some("GetBucketCors"), Some("PutBucketCors"), Some("DeleteBucketCors")]),
    row(
        "lifecycle",
        [
            Some("GetBucketLifecycleConfiguration"),
            Some("PutBucketLifecycleConfiguration"),
            Some("DeleteBucketLifecycle"),
        ],
    ),
    row("tagging", [Some("GetBucketTagging"), Some("PutBucketTagging"), Some("DeleteBucketTagging")]),
    row(
        "publicAccessBlock",
        [Some("GetPublicAccessBlock"), Some("PutPublicAccessBlock"), Some("DeletePublicAccessBlock")],
    ),
    row(
        "ownershipControls",
        [Some("GetBucketOwnershipControls"), Some("PutBucketOwnershipControls"), Some("DeleteBucketOwnershipControls")],
    ),
    row("website", [Some("GetBucketWebsite"), Some("PutBucketWebsite"), Some("DeleteBucketWebsite")]),
    row("logging", [Some("GetBucketLogging"), Some("PutBucketLogging"), None]),
    row("notification", [Some("GetBucketNotificationConfiguration"), Some("PutBucketNotificationConfiguration"), None]),
    row("replication", [Some("GetBucketReplication"), Some("PutBucketReplication"), Some("DeleteBucketReplication")]),
    row(
        INVENTORY,
        [
            Some("GetBucketInventoryConfiguration"),
            Some("PutBucketInventoryConfiguration"),
            Some("DeleteBucketInventoryConfiguration"),
        ],
    ),
    row("requestPayment", [Some("GetBucketRequestPayment"), Some("PutBucketRequestPayment"), None]),
    row("accelerate", [Some("GetBucketAccelerateConfiguration"), Some("PutBucketAccelerateConfiguration"), None]),
    row("quota", [Some("GetBucketQuota"), Some("PutBucketQuota"), None]),
    row(USAGE, [Some("GetBucketUsage"), None, None]),
];

/// True for a subresource's name.
pub fn is_subresource(name: &str) -> bool {
    ROWS.iter().chain(ROOT_ROWS).any(|row| row.name == name)
}

/// All of them.
#[cfg(test)]
pub fn subresources() -> impl Iterator<Item = &'static str> {
    ROWS.iter().chain(ROOT_ROWS).map(|row| row.name)
}

/// The operations' names, for metrics and logs.
pub fn operations() -> impl Iterator<Item = &'static str> {
    ROWS.iter().chain(ROOT_ROWS).flat_map(|row| row.operations.into_iter().flatten()).chain([LIST_INVENTORIES])
}

/// A request that is for here.
#[derive(Debug, Clone)]
struct Match {
    operation: Option<&'static str>,
    bucket: String,
    key: Option<String>,
}

/// `s3s` has checked the place's names.
fn find(method: &Method, uri: &Uri, place: &Place) -> Option<Match> {
    let query = parse_query(uri.query()?);
    let key = place.key();
    let Some(bucket) = place.bucket() else {
        let row = ROOT_ROWS.iter().find(|row| query.iter().any(|(n, _)| n == row.name))?;
        return Some(Match { operation: row.operation(method), bucket: String::new(), key: None });
    };
    if key.is_some() && ops::rename::is_meant(method, uri) {
        return Some(Match { operation: Some("RenameObject"), bucket: bucket.into(), key: key.map(Into::into) });
    }
    let row = ROWS.iter().find(|row| row.object == key.is_some() && query.iter().any(|(n, _)| n == row.name))?;
    let mut operation = row.operation(method);
    if row.name == INVENTORY && *method == Method::GET && !query.iter().any(|(n, _)| n == "id") {
        operation = Some(LIST_INVENTORIES);
    }
    Some(Match { operation, bucket: bucket.into(), key: key.map(Into::into) })
}

/// The routes of one core.
pub struct Routes<B: BulkStore> {
    core: SendWrapper<CoreRef<B>>,
    keys: KeyRing,
}

impl<B: BulkStore> Routes<B> {
    /// Routes to this core's Walrus.
    pub fn new(core: &CoreRef<B>, keys: &KeyRing) -> Self {
        Self { core: SendWrapper::new(core.clone()), keys: keys.clone() }
    }
}

#[async_trait::async_trait]
impl<B: BulkStore> S3Route for Routes<B> {
    fn is_match(&self, method: &Method, uri: &Uri, _headers: &HeaderMap, extensions: &mut Extensions) -> bool {
        let place = extensions.get::<Place>();
        let retry = || {
            let (Retry(operation), place) = (extensions.get::<Retry>()?, place?);
            let (bucket, key) = (place.bucket()?.to_owned(), place.key()?.to_owned());
            Some(Match { operation: Some(operation), bucket, key: Some(key) })
        };
        let found = place.and_then(|place| find(method, uri, place)).or_else(retry);
        let Some(found) = found else { return false };
        if let Some(note) = extensions.get::<Note>() {
            note.operation(found.operation.unwrap_or("Other"));
        }
        extensions.insert(found);
        true
    }

    async fn check_access(&self, _req: &mut S3Request<Body>) -> S3Result<()> {
        // The call judges: it knows what the request is.
        Ok(())
    }

    async fn call(&self, req: S3Request<Body>) -> S3Result<S3Response<Body>> {
        let id = req.extensions.get::<RequestId>().cloned();
        let found = req.extensions.get::<Match>().cloned();
        let operation = found.as_ref().and_then(|f| f.operation).unwrap_or("Other");
        SendWrapper::new(self.answer(req, found)).await.map_err(|e| api::refuse(e, operation, id))
    }
}

impl<B: BulkStore> Routes<B> {
    async fn answer(&self, mut req: S3Request<Body>, found: Option<Match>) -> Result<S3Response<Body>> {
        let found = found.ok_or(Kind::InternalError)?;
        let operation = found.operation.ok_or(Kind::MethodNotAllowed)?;
        let query = parse_query(req.uri.query().unwrap_or_default());
        let version = query.iter().find(|(n, _)| n == "versionId").map(|(_, v)| v.clone()).filter(|v| !v.is_empty());
        let peer = req.extensions.get::<Peer>().copied().unwrap_or_default();
        let now = self.core.now();
        let who = api::signer(&self.keys, req.credentials.as_ref(), &req.extensions, &req.headers, &query, now)?;
        if let Some(note) = req.extensions.get::<Note>() {
            note.signed(who.as_ref());
        }
        if who.is_none() && req.extensions.get::<Retry>().is_some() {
            guard::check_overrides(&query)?;
        }
        let caller = self
            .core
            .admit(Facts {
                operation,
                bucket: Some(found.bucket.clone()).filter(|b| !b.is_empty()),
                key: found.key.clone(),
                version: version.clone(),
                query,
                body_max: context::length(&req.headers),
                headers: api::headers_that_count(&req.headers),
                who,
                source: peer.source,
                secure: peer.secure,
                tls: peer.tls,
                request_id: req.extensions.get::<RequestId>().map_or(String::new(), |id| id.as_str().to_owned()),
            })
            .await?;
        if let Some(note) = req.extensions.get::<Note>() {
            note.caller(&caller);
        }
        if req.extensions.get::<Retry>().is_some_and(|retry| retry.0 == operation) {
            let mut response = S3Response::new(Body::empty());
            response.extensions.insert(Admitted { caller, operation });
            return Ok(response);
        }
        let expected = req.headers.get("x-amz-expected-bucket-owner").and_then(|v| v.to_str().ok());
        if let Some(expected) = expected.filter(|_| !found.bucket.is_empty())
            && expected != self.core.known(&found.bucket).await?.bucket().owner
        {
            return Err(Kind::AccessDenied.into());
        }
        if operation == "RenameObject" {
            // s3s does not know it.
            let to = found.key.as_deref().unwrap_or_default();
            let asked = ops::rename::Rename::parse(&found.bucket, to, &req.headers)?;
            for ask in [GET_OBJECT, DELETE_OBJECT] {
                self.core.may(&caller, ask, &found.bucket, asked.from(), None).await?;
            }
            ops::rename::rename_object(&self.core, &caller, &asked).await?;
            return Ok(S3Response::new(Body::empty()));
        }
        let document = document(&mut req).await?;
        let asked = Asked {
            core: &self.core,
            caller: &caller,
            bucket: &found.bucket,
            key: found.key.as_deref().unwrap_or_default(),
            version: version.as_deref(),
            headers: &req.headers,
            document: &document,
        };
        let answer = ops::configure::call(operation, &asked).await?;
        let mut response = S3Response::with_status(Body::empty(), answer.status);
        if let Some((kind, text)) = answer.body {
            response.headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
            response.headers.insert(http::header::CONTENT_LENGTH, text.len().into());
            response.output = Body::from(text);
        }
        response.headers.extend(answer.headers);
        Ok(response)
    }
}

/// A request for a subresource, let in and read.
pub struct Asked<'a, B: BulkStore> {
    /// The core.
    pub core: &'a CoreRef<B>,
    /// Who asks.
    pub caller: &'a Caller,
    /// The bucket's name; empty for an account's subresource.
    pub bucket: &'a str,
    /// The object's key; empty for a bucket's subresource.
    pub key: &'a str,
    /// The object's version.
    pub version: Option<&'a str>,
    /// The request's headers.
    pub headers: &'a HeaderMap,
    /// The request's body.
    pub document: &'a Bytes,
}

/// What is answered.
#[derive(Debug, Default)]
pub struct Answer {
    /// 200 or 204.
    pub status: StatusCode,
    /// Content type and text.
    pub body: Option<(&'static str, String)>,
    /// Headers.
    pub headers: HeaderMap,
}

impl Answer {
    /// A document.
    pub fn xml(text: String) -> Self {
        Self { body: Some(("application/xml", text)), ..Self::default() }
    }
    /// Nothing more than that it is done.
    pub fn done() -> Self {
        Self::default()
    }
    /// 204.
    pub fn gone() -> Self {
        Self { status: StatusCode::NO_CONTENT, ..Self::default() }
    }
}

/// The body, at most [`DOCUMENT_MAX`], with its digests checked.
async fn document(req: &mut S3Request<Body>) -> Result<Bytes> {
    let stored = req.input.store_all_limited(DOCUMENT_MAX).await;
    let bytes = stored.map_err(|e| match e.to_string() {
        text if text.contains("limit") => Kind::MaxMessageLengthExceeded.into(),
        _ => crate::error::body(&*e),
    })?;
    let trailers = Trailers::of(req);
    let expected = Expected::of(&req.headers, Some(bytes.len() as i64), trailers)?;
    expected.check_whole(&bytes)?;
    Ok(bytes)
}
