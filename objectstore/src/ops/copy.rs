//! CopyObject, and the source that UploadPartCopy shares with it.

use futures_util::StreamExt;
use karri_bulk::BulkStore;
use s3s::S3Request;
use s3s::dto::{CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopySource, MetadataDirective, TaggingDirective};

use super::input::{checksum_asked, encryption_asked, lock_asked};
use crate::access::context;
use crate::accesslog::Beside;
use crate::body::{self, Expected, Incoming, PUT_MAX, Seal, Stored};
use crate::core::{Caller, CoreRef};
use crate::digest::{Algorithm, ChecksumType};
use crate::error::{Error, Kind, Result};
use crate::ops::condition::{ReadConditions, WriteConditions};
use crate::ops::encryption::{CustomerKey, Shown};
use crate::ops::get::{ChecksumFields, Found, Selection, Wanted, etag, loop_until_whole, timestamp};
use crate::ops::put::{Target, check_key, object_headers, object_of, publish};
use crate::ops::tagging;
use crate::record::{Headers, Object};
use crate::versions::Which;

/// A copy's source, opened.
pub struct Source {
    /// The record and what is selected of it.
    pub found: Found,
    /// The bytes.
    pub body: Incoming,
}

/// Opens a copy's source.
pub async fn source<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    source: &CopySource,
    owner: Option<&str>,
    conditions: &ReadConditions,
    selection: &Selection,
    customer: Option<&CustomerKey>,
) -> Result<Source> {
    let CopySource::Bucket { bucket, key, version_id } = source else {
        return Err(Error::new(Kind::NotImplemented, "Copying from access points is not supported."));
    };
    check_key(key)?;
    let which = Which::new(version_id.as_deref())?;
    let wanted = Wanted { bucket, key, which, owner, conditions, selection, copying: true, customer };
    let opened = loop_until_whole(core, caller, &wanted).await;
    if core.known(bucket).await.is_ok_and(|known| known.settings.logging.is_some()) {
        let operation = match caller.leave.facts.operation {
            "UploadPartCopy" => "REST.COPY.PART_GET",
            _ => "REST.COPY.OBJECT_GET",
        };
        let size = opened.as_ref().ok().map(|(found, _)| found.object.size);
        let (bucket, key, version) = (bucket.to_string(), key.to_string(), which.text());
        let line = Beside { operation, bucket, key, version, status: 200, error: "", size };
        let line = opened.as_ref().err().map_or(line.clone(), |error| line.failed(error));
        // Once for a request.
        let _ = caller.leave.beside.set(vec![line]);
    }
    let (found, outgoing) = opened?;
    Ok(Source { found, body: outgoing.boxed_local() })
}

/// CopyObject.
pub async fn copy_object<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    req: S3Request<CopyObjectInput>,
) -> Result<CopyObjectOutput> {
    let S3Request { input, headers, .. } = req;
    check_key(&input.key)?;
    let owner = input.expected_bucket_owner.as_deref();
    let bucket = core.bucket_to_fill(caller, &input.bucket, owner).await?;
    let conditions = ReadConditions {
        matches: input.copy_source_if_match,
        none_match: input.copy_source_if_none_match,
        modified_since: input.copy_source_if_modified_since,
        unmodified_since: input.copy_source_if_unmodified_since,
    };
    let replace = match input.metadata_directive.as_ref().map(MetadataDirective::as_str) {
        None | Some(MetadataDirective::COPY) => false,
        Some(MetadataDirective::REPLACE) => true,
        Some(_) => return Err(Error::new(Kind::InvalidArgument, "Unknown metadata directive.")),
    };
    let attributes = object_headers(&headers, input.metadata.as_ref(), input.expires.as_ref())?;
    let same = matches!(&input.copy_source, CopySource::Bucket { bucket, key, version_id: None }
        if **bucket == *input.bucket && **key == *input.key);
    let replace_tags = match input.tagging_directive.as_ref().map(TaggingDirective::as_str) {
        None | Some(TaggingDirective::COPY) => false,
        Some(TaggingDirective::REPLACE) => true,
        Some(_) => return Err(Error::new(Kind::InvalidArgument, "Unknown tagging directive.")),
    };
    let tags = tagging::of_header(input.tagging.as_deref())?;
    let lock = lock_asked!(input, &bucket.value, core.now())?;
    let encrypts = input.server_side_encryption.is_some() || input.sse_customer_key.is_some();
    if same && !replace && !encrypts && attributes.storage_class.is_none() && attributes.website_redirect.is_none() {
        return Err(Error::new(
            Kind::InvalidRequest,
            "This copy request is illegal because it is trying to copy an object to itself without changing the object's \
             metadata, storage class, website redirect location or encryption attributes.",
        ));
    }
    let asked = checksum_asked(input.checksum_algorithm.as_ref())?;
    let encrypt = encryption_asked!(input)?;
    let keyed = core.fresh_key(&bucket.value, &encrypt).await?;
    let from_customer = CustomerKey::new(
        input.copy_source_sse_customer_algorithm.as_deref(),
        input.copy_source_sse_customer_key.as_deref(),
        input.copy_source_sse_customer_key_md5.as_deref(),
    )?;
    let source_owner = input.expected_source_bucket_owner.as_deref();
    let source =
        source(core, caller, &input.copy_source, source_owner, &conditions, &Selection::Whole, from_customer.as_ref())
            .await?;
    let from = &source.found.object;
    if from.size > PUT_MAX {
        return Err(Error::new(
            Kind::InvalidRequest,
            "The specified copy source is larger than the maximum allowable size for a copy source: 5368709120",
        ));
    }
    if !replace_tags && let CopySource::Bucket { bucket, key, version_id } = &input.copy_source {
        let (bucket, key) = (bucket.to_string(), key.to_string());
        let place = context::Source { bucket, key, version: version_id.as_deref().map(str::to_owned) };
        core.may_take_tags(caller, place, from).await?;
    }
    let kept = copied_headers(from, attributes, replace);
    // The checksum that the source has, unless another one is asked for; a composite one becomes the whole object's.
    let of_source = from.checksum.as_ref().map(|c| match c.kind {
        ChecksumType::FullObject | ChecksumType::Composite => c.algorithm,
    });
    let keep = asked.or(of_source).unwrap_or(Algorithm::Crc64Nvme);
    let seal = keyed.as_ref().map(|k| Seal::new(&k.secret));
    let expected = Expected { len: Some(from.size), keep: Some(keep), seal, ..Expected::default() };
    let received = body::receive(core, source.body, &expected).await?;
    let mut object = object_of(core, caller, &received, &expected, kept);
    (object.lock, object.sealed) = (lock, keyed.map(|k| k.sealed));
    object.tags = if replace_tags { tags } else { from.tags.clone() };
    if let (Some(before), Some(after)) = (&from.checksum, &object.checksum)
        && (before.algorithm, before.kind) == (after.algorithm, after.kind)
        && before.value != after.value
    {
        return Err(Error::new(Kind::InternalError, "The source's data does not match its checksum."));
    }
    let target = Target { caller, bucket: &input.bucket, key: &input.key, owner };
    let conditions = WriteConditions::of_copy(&headers)?;
    let version_id = publish(core, &target, bucket, &conditions, &mut object, &received.stored).await?;
    drop::<Stored<B>>(received.stored);
    let sums = ChecksumFields::of(object.checksum.as_ref());
    let encryption = Shown::of(object.sealed.as_ref(), encrypt.customer());
    Ok(CopyObjectOutput {
        server_side_encryption: encryption.kind,
        ssekms_key_id: encryption.key_id,
        sse_customer_algorithm: encryption.customer_algorithm,
        sse_customer_key_md5: encryption.customer_md5,

        copy_object_result: Some(CopyObjectResult {
            e_tag: Some(etag(&object)),
            last_modified: timestamp(object.modified),
            checksum_crc32: sums.crc32,
            checksum_crc32c: sums.crc32c,
            checksum_crc64nvme: sums.crc64nvme,
            checksum_sha1: sums.sha1,
            checksum_sha256: sums.sha256,
            checksum_type: sums.kind,
        }),
        version_id,
        copy_source_version_id: source.found.version_id,
        ..Default::default()
    })
}

/// The copy's headers: the source's, or the request's. Storage class and redirect are always the request's.
fn copied_headers(from: &Object, request: Headers, replace: bool) -> Headers {
    if replace {
        return request;
    }
    Headers { storage_class: request.storage_class, website_redirect: request.website_redirect, ..from.headers.clone() }
}
