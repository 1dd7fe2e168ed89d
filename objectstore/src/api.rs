//! `s3s`'s trait over the operations: who asks, on to the operation, its error into S3's.
//!
//! The futures of an operation stay on their core; `s3s` wants `Send`, so they travel in a `SendWrapper`. A service is
//! made, used and dropped on one core.

use std::sync::Arc;

use http::{Extensions, HeaderMap, Method, Uri};
use karri_base::aws::keys::{Key, KeyRing};
use karri_bulk::BulkStore;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::dto::*;
use s3s::route::S3Route;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3, S3Error, S3Request, S3Response, S3Result};
use send_wrapper::SendWrapper;

use crate::core::{Caller, CoreRef};
use crate::error::{Error, Kind, Result};
use crate::ops;

/// A core's S3 service.
pub fn service<B: BulkStore>(core: &CoreRef<B>, keys: &KeyRing) -> S3Service {
    let mut builder = S3ServiceBuilder::new(Api(SendWrapper::new(core.clone())));
    builder.set_auth(Ring(keys.clone()));
    builder.set_access(Signed(keys.clone()));
    builder.set_route(Renames { core: SendWrapper::new(core.clone()), keys: keys.clone() });
    let mut config = s3s::config::S3Config::default();
    // POST forms are answered before they get here; this is the second lock on that door.
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
        let key = self.0.get(access_key).ok_or_else(|| S3Error::from(Error::from(Kind::InvalidAccessKeyId)))?;
        Ok(SecretKey::from(key.secret.as_str()))
    }
}

/// What [`Signed`] leaves for the operation and the log.
#[derive(Clone)]
pub struct Known(pub Arc<Key>);

/// A cell that a caller of the service may put among a request's extensions to learn the operation's name.
#[derive(Clone, Default)]
pub struct OperationName(pub Arc<std::sync::OnceLock<&'static str>>);

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

struct Signed(KeyRing);

#[async_trait::async_trait]
impl S3Access for Signed {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let name = known_operation(cx.s3_op().name());
        if let Some(cell) = cx.extensions_mut().get::<OperationName>() {
            let _ = cell.0.set(name);
        }
        let denied = || S3Error::from(Error::from(Kind::AccessDenied));
        let id = cx.credentials().ok_or_else(denied)?.access_key.clone();
        // Revoked between the signature's check and now.
        let key = self.0.get(&id).ok_or_else(denied)?;
        cx.extensions_mut().insert(Known(key));
        Ok(())
    }
}

/// RenameObject, which `s3s` does not know.
struct Renames<B: BulkStore> {
    core: SendWrapper<CoreRef<B>>,
    keys: KeyRing,
}

#[async_trait::async_trait]
impl<B: BulkStore> S3Route for Renames<B> {
    fn is_match(&self, method: &Method, uri: &Uri, _: &HeaderMap, _: &mut Extensions) -> bool {
        ops::rename::is_meant(method, uri)
    }
    async fn call(&self, req: S3Request<s3s::Body>) -> S3Result<S3Response<s3s::Body>> {
        if let Some(cell) = req.extensions.get::<OperationName>() {
            let _ = cell.0.set(RENAME);
        }
        let id = req.extensions.get::<RequestId>().cloned();
        let key = req.credentials.as_ref().and_then(|c| self.keys.get(&c.access_key));
        let core = &self.core;
        SendWrapper::new(async move {
            let caller = Caller(key.ok_or(Kind::AccessDenied)?);
            let asked = ops::rename::Rename::parse(&req.uri, &req.headers)?;
            ops::rename::rename_object(core, &caller, &asked).await?;
            Ok::<_, Error>(S3Response::new(s3s::Body::empty()))
        })
        .await
        .map_err(|e| refuse(e, RENAME, id))
    }
}

const RENAME: &str = "RenameObject";

fn known_operation(name: &str) -> &'static str {
    OPERATIONS.iter().find(|n| **n == name).copied().unwrap_or("Other")
}

fn caller<T>(req: &S3Request<T>) -> Result<Caller> {
    req.extensions.get::<Known>().map(|k| Caller(k.0.clone())).ok_or_else(|| Kind::AccessDenied.into())
}

/// An operation's error as the client sees it; logged here, once, when it is ours.
fn refuse(e: Error, operation: &'static str, id: Option<RequestId>) -> S3Error {
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
/// answers with the typed output, or the whole response where that lacks a header.
macro_rules! operations {
    (@call $core:expr, $caller:expr, $req:expr, $f:path, input) => {
        S3Response::new($f($core, $caller, $req.input).await?)
    };
    (@call $core:expr, $caller:expr, $req:expr, $f:path, request) => {
        S3Response::new($f($core, $caller, $req).await?)
    };
    (@call $core:expr, $caller:expr, $req:expr, $f:path, response) => { $f($core, $caller, $req.input).await? };
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
                    Ok::<_, Error>(operations!(@call core, &caller, req, ops::$file::$method, $how))
                })
                .await
                .map_err(|e| refuse(e, stringify!($aws), id))
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
    get_object GetObject GetObjectInput GetObjectOutput get input;
    get_object_attributes GetObjectAttributes GetObjectAttributesInput GetObjectAttributesOutput attributes input;
    get_object_tagging GetObjectTagging GetObjectTaggingInput GetObjectTaggingOutput tagging input;
    put_object_tagging PutObjectTagging PutObjectTaggingInput PutObjectTaggingOutput tagging input;
    delete_object_tagging DeleteObjectTagging DeleteObjectTaggingInput DeleteObjectTaggingOutput tagging input;
    get_object_retention GetObjectRetention GetObjectRetentionInput GetObjectRetentionOutput lock input;
    put_object_retention PutObjectRetention PutObjectRetentionInput PutObjectRetentionOutput lock input;
    get_object_legal_hold GetObjectLegalHold GetObjectLegalHoldInput GetObjectLegalHoldOutput lock input;
    put_object_legal_hold PutObjectLegalHold PutObjectLegalHoldInput PutObjectLegalHoldOutput lock input;
    head_object HeadObject HeadObjectInput HeadObjectOutput get response;
    copy_object CopyObject CopyObjectInput CopyObjectOutput copy request;
    delete_object DeleteObject DeleteObjectInput DeleteObjectOutput delete input;
    delete_objects DeleteObjects DeleteObjectsInput DeleteObjectsOutput delete input;
    list_objects ListObjects ListObjectsInput ListObjectsOutput list_objects input;
    list_objects_v2 ListObjectsV2 ListObjectsV2Input ListObjectsV2Output list_objects input;
    list_object_versions ListObjectVersions ListObjectVersionsInput ListObjectVersionsOutput list_versions input;
    create_multipart_upload CreateMultipartUpload CreateMultipartUploadInput CreateMultipartUploadOutput multipart request;
    upload_part UploadPart UploadPartInput UploadPartOutput multipart request;
    upload_part_copy UploadPartCopy UploadPartCopyInput UploadPartCopyOutput multipart input;
    list_parts ListParts ListPartsInput ListPartsOutput multipart input;
    list_multipart_uploads ListMultipartUploads ListMultipartUploadsInput ListMultipartUploadsOutput multipart input;
    abort_multipart_upload AbortMultipartUpload AbortMultipartUploadInput AbortMultipartUploadOutput multipart input;
    complete_multipart_upload CompleteMultipartUpload CompleteMultipartUploadInput CompleteMultipartUploadOutput complete input;
}
