//! `s3s`'s trait over the operations: who asks, on to the operation, its error into S3's.
//!
//! The futures of an operation stay on their core; `s3s` wants `Send`, so they travel in a `SendWrapper`. A service is
//! made, used and dropped on one core.

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use karri_base::aws::keys::{KeyError, KeyRing, SignedIn};
use karri_base::aws::sigv4::parse_query;
use karri_base::clock::UnixMicros;
use karri_bulk::BulkStore;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{Credentials, S3Auth, SecretKey};
use s3s::dto::*;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3, S3Error, S3Request, S3Response, S3Result};
use send_wrapper::SendWrapper;

use crate::access::{Facts, context};
use crate::core::{Caller, CoreRef};
use crate::error::{Error, Kind, Result};
use crate::guard;
use crate::note::Note;
use crate::ops;
use crate::place::{Hosts, Place};
use crate::range::Admitted;
use crate::route::Routes;

/// A core's S3 service.
pub fn service<B: BulkStore>(core: &CoreRef<B>, keys: &KeyRing) -> S3Service {
    let mut builder = S3ServiceBuilder::new(Api(SendWrapper::new(core.clone())));
    builder.set_auth(Ring(keys.clone()));
    builder.set_access(Doorman { core: SendWrapper::new(core.clone()), keys: keys.clone() });
    builder.set_route(Routes::new(core, keys));
    builder.set_host(Hosts(core.shared.clone()));
    let mut config = s3s::config::S3Config::default();
    // POST forms become PUTs before they get here; this is the second lock on that door.
    config.post_object_max_file_size = 0;
    config.form_max_fields_size = 64 << 10;
    // DeleteObjects of 1,000 keys of 1,024 bytes, each byte written as `&#xFF;`, and room to spare.
    config.xml_max_body_size = 8 << 20;
    builder.set_config(Arc::new(s3s::config::StaticConfigProvider::new(Arc::new(config))));
    builder.build()
}

struct Ring(KeyRing);

#[async_trait::async_trait]
impl S3Auth for Ring {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let secret = self.0.secret(access_key).ok_or_else(|| S3Error::from(Error::from(Kind::InvalidAccessKeyId)))?;
        Ok(SecretKey::from(secret.as_str()))
    }
}

/// What is known of a request that was read before `s3s` saw it (POST forms).
#[derive(Clone)]
pub struct Form {
    /// Who signed its policy.
    pub signer: Option<SignedIn>,
    /// Bytes of its file at most; `None` where nothing says.
    pub file_max: Option<u64>,
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy, Default)]
pub struct Peer {
    /// The client's address.
    pub source: Option<IpAddr>,
    /// True over TLS.
    pub secure: bool,
    /// The version of TLS, as policies have it; absent without.
    pub tls: Option<&'static str>,
}

/// A request's id, in the answer's headers, its error document and the log.
#[derive(Debug, Clone)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// A fresh one: 16 upper-case hexadecimal digits.
    #[allow(clippy::new_without_default, reason = "each one differs")]
    pub fn new() -> Self {
        Self(format!("{:016X}", rand::random::<u64>()).into())
    }
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Judges every request before its body is read, and leaves the [`Caller`] for the operation.
struct Doorman<B: BulkStore> {
    core: SendWrapper<CoreRef<B>>,
    keys: KeyRing,
}

#[async_trait::async_trait]
impl<B: BulkStore> S3Access for Doorman<B> {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let name = known_operation(cx.s3_op().name());
        let note = cx.extensions_mut().get::<Note>().cloned().unwrap_or_default();
        note.operation(name);
        let id = cx.extensions_mut().get::<RequestId>().cloned();
        // What is decided for one place must not be done at another.
        let place = cx.extensions_mut().get::<Place>().cloned();
        if !place.is_some_and(|place| place.is(cx.s3_path())) {
            let e = Error::new(Kind::InternalError, "The request's host and path are read in two ways.");
            return Err(refuse(e, name, id));
        }
        // Let in already, for this: the same request without a range that is to be ignored.
        let admitted = cx.extensions_mut().get::<Admitted>().filter(|admitted| admitted.operation == name).cloned();
        if let Some(Admitted { caller, .. }) = admitted {
            cx.extensions_mut().insert(caller);
            return Ok(());
        }
        let form = cx.extensions_mut().get::<Form>().cloned();
        let is_form = form.is_some();
        if is_form && name != "PutObject" {
            let e = Error::new(Kind::InvalidArgument, "A form uploads one object.");
            return Err(refuse(e, name, id));
        }
        let judged = async {
            let credentials = cx.credentials().cloned();
            let query = parse_query(cx.uri().query().unwrap_or_default());
            let headers = cx.headers().clone();
            let now = self.core.now();
            let who = signer(&self.keys, credentials.as_ref(), cx.extensions_mut(), &headers, &query, now)?;
            note.signed(who.as_ref());
            if who.is_none() && matches!(name, "GetObject" | "HeadObject") {
                guard::check_overrides(&query)?;
            }
            let peer = cx.extensions_mut().get::<Peer>().copied().unwrap_or_default();
            let version = query.iter().find(|(n, _)| n == "versionId").map(|(_, v)| v.clone());
            self.core
                .admit(Facts {
                    operation: if is_form { "PostObject" } else { name },
                    bucket: cx.s3_path().get_bucket_name().map(str::to_owned),
                    key: cx.s3_path().get_object_key().map(str::to_owned),
                    version: version.filter(|v| !v.is_empty()),
                    query,
                    body_max: form.map_or_else(|| context::length(&headers), |form| form.file_max),
                    headers: headers_that_count(&headers),
                    who,
                    source: peer.source,
                    secure: peer.secure,
                    tls: peer.tls,
                    request_id: id.as_ref().map_or(String::new(), |id| id.as_str().to_owned()),
                })
                .await
        };
        let caller = SendWrapper::new(judged).await.map_err(|e| refuse(e, name, id))?;
        note.caller(&caller);
        cx.extensions_mut().insert(caller);
        Ok(())
    }
}

/// Whose signature, checked before, a request carries; `None` for none. Notes the use.
///
/// # Errors
/// `InvalidAccessKeyId`, `InvalidToken`, `ExpiredToken`.
pub fn signer(
    keys: &KeyRing,
    credentials: Option<&Credentials>,
    extensions: &http::Extensions,
    headers: &HeaderMap,
    query: &[(String, String)],
    now: UnixMicros,
) -> Result<Option<SignedIn>> {
    let Some(credentials) = credentials else {
        let signer = extensions.get::<Form>().and_then(|form| form.signer.clone());
        return Ok(signer.inspect(|who| who.used.note(now)));
    };
    let in_query = query.iter().find(|(n, _)| n.eq_ignore_ascii_case("x-amz-security-token")).map(|(_, v)| v.as_str());
    let token = headers.get("x-amz-security-token").and_then(|v| v.to_str().ok()).or(in_query);
    sign_in(keys, &credentials.access_key, token, now).map(|who| Some(who).inspect(|who| who.used.note(now)))
}

/// Who has this key and token.
///
/// # Errors
/// As [`signer`].
pub fn sign_in(keys: &KeyRing, key: &str, token: Option<&str>, now: UnixMicros) -> Result<SignedIn> {
    keys.sign_in(key, token.filter(|t| !t.is_empty()), now).map_err(|e| {
        Error::from(match e {
            KeyError::Unknown => Kind::InvalidAccessKeyId,
            KeyError::BadToken => Kind::InvalidToken,
            KeyError::Expired => Kind::ExpiredToken,
        })
    })
}

/// The headers that decisions may depend on.
pub fn headers_that_count(headers: &HeaderMap) -> HeaderMap {
    let counts = |name: &str| {
        name.starts_with("x-amz-")
            || matches!(name, "authorization" | "user-agent" | "referer" | "if-match" | "if-none-match")
    };
    headers.iter().filter(|(name, _)| counts(name.as_str())).map(|(n, v)| (n.clone(), v.clone())).collect()
}

fn known_operation(name: &str) -> &'static str {
    OPERATIONS.iter().find(|n| **n == name).copied().unwrap_or("Other")
}

fn caller<T>(req: &S3Request<T>) -> Result<Caller> {
    req.extensions.get::<Caller>().cloned().ok_or_else(|| Kind::AccessDenied.into())
}

/// An operation's error as the client sees it; logged here, once, when it is ours.
pub fn refuse(e: Error, operation: &'static str, id: Option<RequestId>) -> S3Error {
    let id = id.as_ref().map_or("", RequestId::as_str);
    if e.kind.status().is_server_error() && e.kind != Kind::NotImplemented {
        let source = e.source.as_deref().map(|s| s as &dyn std::error::Error);
        tracing::error!(request_id = id, operation, code = e.kind.code(), error = %e, source, "a request failed");
    }
    let mut out = S3Error::from(e);
    out.set_request_id(id);
    out
}

struct Api<B: BulkStore>(SendWrapper<CoreRef<B>>);

/// One method: the operation's function takes the typed input, or the whole request where it needs the headers; it
/// answers with the typed output, or the whole response where that lacks a header (`both`: both).
macro_rules! operations {
    (@call $core:expr, $caller:expr, $req:expr, $f:path, input) => {
        S3Response::new($f($core, $caller, $req.input).await?)
    };
    (@call $core:expr, $caller:expr, $req:expr, $f:path, request) => {
        S3Response::new($f($core, $caller, $req).await?)
    };
    (@call $core:expr, $caller:expr, $req:expr, $f:path, response) => { $f($core, $caller, $req.input).await? };
    (@call $core:expr, $caller:expr, $req:expr, $f:path, both) => { $f($core, $caller, $req).await? };
    ($($method:ident $aws:ident $input:ident $output:ident $file:ident $how:ident;)*) => {
        /// The operations' names.
        const OPERATIONS: &[&str] = &[$(stringify!($aws)),*];

        #[async_trait::async_trait]
        impl<B: BulkStore> S3 for Api<B> {
            $(async fn $method(&self, req: S3Request<$input>) -> S3Result<S3Response<$output>> {
                let core = &self.0;
                let id = req.extensions.get::<RequestId>().cloned();
                SendWrapper::new(async move {
                    let caller = caller(&req)?;
                    let outcome: Result<_> =
                        async { Ok(operations!(@call core, &caller, req, ops::$file::$method, $how)) }.await;
                    match outcome {
                        // Whoever may not list learns nothing of what is not there.
                        Err(e) if e.kind == Kind::NoSuchKey && !caller.leave.may_list => Err(Kind::AccessDenied.into()),
                        other => other,
                    }
                })
                .await
                .map_err(|e: Error| refuse(e, stringify!($aws), id))
            })*
        }
    };
}

operations! {
    create_bucket CreateBucket CreateBucketInput CreateBucketOutput bucket input;
    head_bucket HeadBucket HeadBucketInput HeadBucketOutput bucket input;
    list_buckets ListBuckets ListBucketsInput ListBucketsOutput bucket input;
    get_bucket_location GetBucketLocation GetBucketLocationInput GetBucketLocationOutput bucket input;
    get_bucket_versioning GetBucketVersioning GetBucketVersioningInput GetBucketVersioningOutput versioning input;
    put_bucket_versioning PutBucketVersioning PutBucketVersioningInput PutBucketVersioningOutput versioning input;
    get_bucket_encryption GetBucketEncryption GetBucketEncryptionInput GetBucketEncryptionOutput encryption input;
    put_bucket_encryption PutBucketEncryption PutBucketEncryptionInput PutBucketEncryptionOutput encryption input;
    delete_bucket_encryption DeleteBucketEncryption DeleteBucketEncryptionInput DeleteBucketEncryptionOutput encryption input;
    get_object_lock_configuration GetObjectLockConfiguration GetObjectLockConfigurationInput GetObjectLockConfigurationOutput versioning input;
    put_object_lock_configuration PutObjectLockConfiguration PutObjectLockConfigurationInput PutObjectLockConfigurationOutput versioning input;
    delete_bucket DeleteBucket DeleteBucketInput DeleteBucketOutput bucket input;
    put_object PutObject PutObjectInput PutObjectOutput put request;
    get_object GetObject GetObjectInput GetObjectOutput get request;
    get_object_attributes GetObjectAttributes GetObjectAttributesInput GetObjectAttributesOutput attributes input;
    get_object_tagging GetObjectTagging GetObjectTaggingInput GetObjectTaggingOutput tagging input;
    put_object_tagging PutObjectTagging PutObjectTaggingInput PutObjectTaggingOutput tagging input;
    delete_object_tagging DeleteObjectTagging DeleteObjectTaggingInput DeleteObjectTaggingOutput tagging input;
    get_object_retention GetObjectRetention GetObjectRetentionInput GetObjectRetentionOutput lock input;
    put_object_retention PutObjectRetention PutObjectRetentionInput PutObjectRetentionOutput lock input;
    get_object_legal_hold GetObjectLegalHold GetObjectLegalHoldInput GetObjectLegalHoldOutput lock input;
    put_object_legal_hold PutObjectLegalHold PutObjectLegalHoldInput PutObjectLegalHoldOutput lock input;
    head_object HeadObject HeadObjectInput HeadObjectOutput get both;
    copy_object CopyObject CopyObjectInput CopyObjectOutput copy request;
    delete_object DeleteObject DeleteObjectInput DeleteObjectOutput delete input;
    delete_objects DeleteObjects DeleteObjectsInput DeleteObjectsOutput delete input;
    list_objects ListObjects ListObjectsInput ListObjectsOutput list_objects response;
    list_objects_v2 ListObjectsV2 ListObjectsV2Input ListObjectsV2Output list_objects response;
    list_object_versions ListObjectVersions ListObjectVersionsInput ListObjectVersionsOutput list_versions input;
    create_multipart_upload CreateMultipartUpload CreateMultipartUploadInput CreateMultipartUploadOutput multipart request;
    upload_part UploadPart UploadPartInput UploadPartOutput multipart request;
    upload_part_copy UploadPartCopy UploadPartCopyInput UploadPartCopyOutput multipart input;
    list_parts ListParts ListPartsInput ListPartsOutput multipart input;
    list_multipart_uploads ListMultipartUploads ListMultipartUploadsInput ListMultipartUploadsOutput multipart input;
    abort_multipart_upload AbortMultipartUpload AbortMultipartUploadInput AbortMultipartUploadOutput multipart input;
    complete_multipart_upload CompleteMultipartUpload CompleteMultipartUploadInput CompleteMultipartUploadOutput complete response;
}
