//! CreateMultipartUpload, UploadPart, UploadPartCopy, ListParts, ListMultipartUploads, AbortMultipartUpload.
//!
//! ```text
//! Create: put U     UploadPart: check U, put P + I|D, retire the part it replaces     Abort: check U, del U, put X
//! Complete (complete.rs): check U and each listed P, put O + M, del U, put X          X: clean away P and what is unnamed
//! ```

use bytes::Bytes;
use karri_bulk::BulkStore;
use karri_meta::{Batch, MetaError, Scan};
use s3s::S3Request;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, ChecksumAlgorithm, ChecksumType as DtoChecksumType,
    CommonPrefix, CopyPartResult, CreateMultipartUploadInput, CreateMultipartUploadOutput, ETag, Initiator,
    ListMultipartUploadsInput, ListMultipartUploadsOutput, ListPartsInput, ListPartsOutput, MultipartUpload,
    Part as DtoPart, Range, StorageClass, UploadPartCopyInput, UploadPartCopyOutput, UploadPartInput, UploadPartOutput,
};

use super::input::{checksum_asked, customer_key, encryption_asked, lock_asked};
use crate::body::{self, Expected, PUT_MAX, Received, Seal, Trailers};
use crate::change::Change;
use crate::core::{Access, Caller, CoreRef, RETRIES, Seen, retire_blob};
use crate::digest::{Algorithm, ChecksumType};
use crate::error::{Error, Kind, Result};
use crate::keys::{self, DataId};
use crate::list::common_prefix;
use crate::ops::bucket::owner;
use crate::ops::condition::ReadConditions;
use crate::ops::encryption::{CustomerKey, Shown};
use crate::ops::get::{ChecksumFields, Selection, timestamp};
use crate::ops::list_objects::{Encode, page};
use crate::ops::put::{check_key, object_headers};
use crate::ops::{copy, tagging};
use crate::reclaim::close_upload;
use crate::record::{Bucket, Data, Part, Upload};
use crate::usage::Amount;
use crate::versions::check_takes_replicas;

/// CreateMultipartUpload.
pub async fn create_multipart_upload<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    req: S3Request<CreateMultipartUploadInput>,
) -> Result<CreateMultipartUploadOutput> {
    let S3Request { input, headers, .. } = req;
    check_key(&input.key)?;
    let attributes = object_headers(&headers, input.metadata.as_ref(), input.expires.as_ref())?;
    let asked = checksum_asked(input.checksum_algorithm.as_ref())?;
    let algorithm = asked.unwrap_or(Algorithm::Crc64Nvme);
    let checksum_type = checksum_type(algorithm, input.checksum_type.as_ref())?;
    if asked.is_none() && input.checksum_type.is_some() {
        return Err(Error::new(
            Kind::InvalidRequest,
            "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.",
        ));
    }
    let encrypt = encryption_asked!(input)?;
    let tags = tagging::of_header(input.tagging.as_deref())?;
    let expected_owner = input.expected_bucket_owner.as_deref();
    let bucket = core.bucket(caller, &input.bucket, expected_owner, Access::Write).await?;
    let lock = lock_asked!(input, &bucket.value, core.now())?;
    let sealed = core.fresh_key(&bucket.value, &encrypt).await?.map(|k| k.sealed);
    let encryption = Shown::of(sealed.as_ref(), encrypt.customer());
    let upload = Upload {
        initiated: core.now(),
        owner: caller.new_owner().to_owned(),
        initiator: caller.arn().to_owned(),
        algorithm,
        checksum_type,
        implicit: asked.is_none(),
        headers: attributes,
        tags,
        lock,
        sealed,
        acl: caller.new_acl(),
        replica: caller.leave.replica,
    };
    let record = upload.encode();
    for _ in 0..RETRIES {
        let bucket = core.bucket_to_fill(caller, &input.bucket, input.expected_bucket_owner.as_deref()).await?;
        if upload.replica.is_some() {
            check_takes_replicas(bucket.value.versioning)?;
        }
        let id = core.fresh_id();
        let batch = Batch::new()
            .check(keys::bucket(&input.bucket), Some(bucket.raw.clone()))
            .put(keys::upload(bucket.value.id, input.key.as_bytes(), id), record.clone());
        match core.commit(batch).await {
            Ok(()) => {
                return Ok(CreateMultipartUploadOutput {
                    server_side_encryption: encryption.kind,
                    ssekms_key_id: encryption.key_id,
                    sse_customer_algorithm: encryption.customer_algorithm,
                    sse_customer_key_md5: encryption.customer_md5,

                    bucket: Some(input.bucket),
                    key: Some(input.key),
                    upload_id: Some(id.to_hex()),
                    checksum_algorithm: asked.map(|a| ChecksumAlgorithm::from_static(a.name())),
                    checksum_type: asked.map(|_| DtoChecksumType::from_static(checksum_type.name())),
                    ..Default::default()
                });
            }
            Err(MetaError::Conflict { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(Kind::SlowDown.into())
}

/// S3's table of which algorithm goes with which type, and its defaults.
fn checksum_type(algorithm: Algorithm, asked: Option<&DtoChecksumType>) -> Result<ChecksumType> {
    use Algorithm::{Crc32, Crc32c, Crc64Nvme, Sha1, Sha256};
    let kind = match asked.map(DtoChecksumType::as_str) {
        None => return Ok(if algorithm == Crc64Nvme { ChecksumType::FullObject } else { ChecksumType::Composite }),
        Some(DtoChecksumType::FULL_OBJECT) => ChecksumType::FullObject,
        Some(DtoChecksumType::COMPOSITE) => ChecksumType::Composite,
        Some(_) => return Err(Error::new(Kind::InvalidRequest, "Value for x-amz-checksum-type header is invalid.")),
    };
    match (algorithm, kind) {
        (Crc64Nvme, ChecksumType::Composite) | (Sha1 | Sha256, ChecksumType::FullObject) => Err(Error::new(
            Kind::InvalidRequest,
            format!(
                "The {} checksum type cannot be used with the {} checksum algorithm.",
                kind.name(),
                algorithm.name()
            ),
        )),
        (Crc32 | Crc32c, _) | (Crc64Nvme, ChecksumType::FullObject) | (Sha1 | Sha256, ChecksumType::Composite) => {
            Ok(kind)
        }
    }
}

/// An open upload.
pub struct Open {
    /// Its key in the store.
    pub key: Bytes,
    /// Its id.
    pub id: DataId,
    /// Its bucket.
    pub bucket: Bucket,
    /// Its record.
    pub seen: Seen<Upload>,
}

/// Finds an open upload.
pub async fn find<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    bucket: &str,
    owner: Option<&str>,
    key: &str,
    upload_id: &str,
    access: Access,
) -> Result<Open> {
    let bucket = core.bucket(caller, bucket, owner, access).await?;
    let id = DataId::from_hex(upload_id).ok_or(Kind::NoSuchUpload)?;
    find_in(core, &bucket.value, key, id).await?.ok_or_else(|| Kind::NoSuchUpload.into())
}

/// Finds an open upload of a bucket.
pub async fn find_in<B: BulkStore>(core: &CoreRef<B>, bucket: &Bucket, key: &str, id: DataId) -> Result<Option<Open>> {
    let store_key = keys::upload(bucket.id, key.as_bytes(), id);
    let Some(raw) = core.meta.get(store_key.clone()).await? else { return Ok(None) };
    let bucket = bucket.clone();
    Ok(Some(Open { key: store_key, id, bucket, seen: Seen { value: Upload::decode(&raw)?, raw } }))
}

/// UploadPart.
pub async fn upload_part<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    mut req: S3Request<UploadPartInput>,
) -> Result<UploadPartOutput> {
    let trailers = Trailers::of(&mut req);
    let S3Request { input, headers, .. } = req;
    let number = part_number(input.part_number)?;
    let owner = input.expected_bucket_owner.as_deref();
    let upload = find(core, caller, &input.bucket, owner, &input.key, &input.upload_id, Access::Write).await?;
    let mut expected = Expected::of(&headers, input.content_length, trailers)?;
    let (algorithm, implicit) = (upload.seen.value.algorithm, upload.seen.value.implicit);
    if let Some(sent) = expected.sent()
        && sent != algorithm
        && !implicit
    {
        return Err(Error::new(
            Kind::InvalidRequest,
            format!(
                "Checksum Type mismatch occurred, expected checksum Type: {}, actual checksum Type: {}",
                algorithm.name().to_lowercase(),
                sent.name().to_lowercase()
            ),
        ));
    }
    let answer = expected.sent().or((!implicit).then_some(algorithm));
    expected.keep = Some(algorithm);
    let customer = customer_key!(input)?;
    let key = core.object_key(&upload.bucket, upload.seen.value.sealed.as_ref(), customer.as_ref()).await?;
    expected.seal = key.as_ref().map(Seal::new);
    let encryption = Shown::of(upload.seen.value.sealed.as_ref(), customer.as_ref());
    check_room(core, &upload, number, expected.len).await?;
    let received = body::receive(core, body::incoming(input.body), &expected).await?;
    let part = put_part(core, &upload, number, &received, &expected).await?;
    let sum = answer.and_then(|a| received.digests.checksum(a));
    let sums = ChecksumFields::of(sum.as_ref());
    Ok(UploadPartOutput {
        server_side_encryption: encryption.kind,
        ssekms_key_id: encryption.key_id,
        sse_customer_algorithm: encryption.customer_algorithm,
        sse_customer_key_md5: encryption.customer_md5,

        e_tag: Some(part_etag(&part)),
        checksum_crc32: sums.crc32,
        checksum_crc32c: sums.crc32c,
        checksum_crc64nvme: sums.crc64nvme,
        checksum_sha1: sums.sha1,
        checksum_sha256: sums.sha256,
        ..Default::default()
    })
}

/// UploadPartCopy.
pub async fn upload_part_copy<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: UploadPartCopyInput,
) -> Result<UploadPartCopyOutput> {
    let number = part_number(input.part_number)?;
    let owner = input.expected_bucket_owner.as_deref();
    let upload = find(core, caller, &input.bucket, owner, &input.key, &input.upload_id, Access::Write).await?;
    let conditions = ReadConditions {
        matches: input.copy_source_if_match,
        none_match: input.copy_source_if_none_match,
        modified_since: input.copy_source_if_modified_since,
        unmodified_since: input.copy_source_if_unmodified_since,
    };
    let selection = match input.copy_source_range.as_deref() {
        None => Selection::Whole,
        Some(text) => Selection::Range(copy_range(text)?),
    };
    let source_owner = input.expected_source_bucket_owner.as_deref();
    let from_customer = CustomerKey::new(
        input.copy_source_sse_customer_algorithm.as_deref(),
        input.copy_source_sse_customer_key.as_deref(),
        input.copy_source_sse_customer_key_md5.as_deref(),
    )?;
    let customer = customer_key!(input)?;
    let key = core.object_key(&upload.bucket, upload.seen.value.sealed.as_ref(), customer.as_ref()).await?;
    let encryption = Shown::of(upload.seen.value.sealed.as_ref(), customer.as_ref());
    let source =
        copy::source(core, caller, &input.copy_source, source_owner, &conditions, &selection, from_customer.as_ref())
            .await?;
    let copy_source_version_id = source.found.version_id.clone();
    let span = source.found.span.clone();
    // Where a GET cuts a range at the object's end, a copy refuses it.
    if let Selection::Range(Range::Int { last: Some(last), .. }) = selection
        && last >= source.found.object.size
    {
        return Err(Error::new(
            Kind::InvalidRange,
            format!("Range specified is not valid for source object of size: {}", source.found.object.size),
        ));
    }
    if span.end - span.start > PUT_MAX {
        return Err(Kind::EntityTooLarge.into());
    }
    let algorithm = upload.seen.value.algorithm;
    let seal = key.as_ref().map(Seal::new);
    let expected = Expected { len: Some(span.end - span.start), keep: Some(algorithm), seal, ..Expected::default() };
    check_room(core, &upload, number, expected.len).await?;
    let received = body::receive(core, source.body, &expected).await?;
    let part = put_part(core, &upload, number, &received, &expected).await?;
    let sums = ChecksumFields::of(part.checksum.as_ref().filter(|_| !upload.seen.value.implicit));
    Ok(UploadPartCopyOutput {
        server_side_encryption: encryption.kind,
        ssekms_key_id: encryption.key_id,
        sse_customer_algorithm: encryption.customer_algorithm,
        sse_customer_key_md5: encryption.customer_md5,

        copy_part_result: Some(CopyPartResult {
            e_tag: Some(part_etag(&part)),
            last_modified: timestamp(part.modified),
            checksum_crc32: sums.crc32,
            checksum_crc32c: sums.crc32c,
            checksum_crc64nvme: sums.crc64nvme,
            checksum_sha1: sums.sha1,
            checksum_sha256: sums.sha256,
        }),
        copy_source_version_id,
        ..Default::default()
    })
}

/// `bytes=first-last` and nothing else.
fn copy_range(text: &str) -> Result<Range> {
    let range = Range::parse(text).ok().filter(|r| matches!(r, Range::Int { last: Some(_), .. }));
    range.ok_or_else(|| {
        Error::new(
            Kind::InvalidArgument,
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the \
             zero-based offsets of the first and last bytes to copy",
        )
    })
}

/// Refuses a part that its bucket has no room for, before a byte is read.
async fn check_room<B: BulkStore>(core: &CoreRef<B>, upload: &Open, number: u16, len: Option<u64>) -> Result<()> {
    let replaced = || async {
        let old = core.meta.get(keys::part(upload.id, number)).await?;
        Ok(Amount::bytes(old.map(|raw| Part::decode(&raw)).transpose()?.map_or(0, |part| part.size)))
    };
    core.check_room(&upload.bucket, Amount::bytes(len.unwrap_or(0)), replaced).await
}

/// Puts a part's record, replacing and retiring an earlier one of its number.
async fn put_part<B: BulkStore>(
    core: &CoreRef<B>,
    upload: &Open,
    number: u16,
    received: &Received<B>,
    expected: &Expected,
) -> Result<Part> {
    let part = Part {
        number,
        size: received.digests.len,
        modified: core.now(),
        md5: received.digests.md5,
        data: received.stored.data(),
        checksum: expected.keep.and_then(|a| received.digests.checksum(a)),
        salt: expected.seal.as_ref().map(|s| s.salt),
    };
    let key = keys::part(upload.id, number);
    let record = part.encode();
    for _ in 0..RETRIES {
        let old = core.meta.get(key.clone()).await?;
        let mut batch = Batch::new()
            .check(upload.key.clone(), Some(upload.seen.raw.clone()))
            .check(key.clone(), old.clone())
            .put(key.clone(), record.clone());
        received.stored.name(&mut batch);
        let mut change = Change::from(batch);
        change.amount += Amount::bytes(part.size);
        if let Some(old) = old {
            let old = Part::decode(&old)?;
            change.amount -= Amount::bytes(old.size);
            match old.data {
                Data::Inline(id) => change.batch.dels.push(keys::inline(id)),
                Data::Blob(id) => {
                    retire_blob(&mut change.batch, id);
                    change.freed.push(id);
                }
                Data::Empty | Data::Manifest(_) => {}
            }
        }
        match received.stored.commit(core, &upload.bucket, change).await? {
            Ok(()) => return Ok(part),
            Err(MetaError::Conflict { key: at }) if at == upload.key => return Err(Kind::NoSuchUpload.into()),
            Err(MetaError::Conflict { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(Kind::SlowDown.into())
}

/// AbortMultipartUpload.
pub async fn abort_multipart_upload<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: AbortMultipartUploadInput,
) -> Result<AbortMultipartUploadOutput> {
    let owner = input.expected_bucket_owner.as_deref();
    let upload = find(core, caller, &input.bucket, owner, &input.key, &input.upload_id, Access::Write).await?;
    match core.commit(close_upload(Batch::new(), upload.bucket.id, upload.key, upload.seen.raw, upload.id)).await {
        Ok(()) => {
            core.reclaim.push_cleanup(upload.id);
            Ok(AbortMultipartUploadOutput::default())
        }
        // Closed by somebody else meanwhile.
        Err(MetaError::Conflict { .. }) => Err(Kind::NoSuchUpload.into()),
        Err(e) => Err(e.into()),
    }
}

/// ListParts.
pub async fn list_parts<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: ListPartsInput,
) -> Result<ListPartsOutput> {
    let expected = input.expected_bucket_owner.as_deref();
    let upload = find(core, caller, &input.bucket, expected, &input.key, &input.upload_id, Access::Read).await?;
    let max = page(input.max_parts)?;
    let marker = match input.part_number_marker {
        None => 0,
        Some(n @ 0..) => u16::try_from(n).unwrap_or(u16::MAX),
        Some(_) => return Err(Error::new(Kind::InvalidArgument, "part-number-marker must not be negative.")),
    };
    let mut range = keys::parts_of(upload.id);
    range.start = keys::after(&keys::part(upload.id, marker));
    let mut parts = Vec::new();
    if max > 0 && range.start < range.end {
        for (_, raw) in core.meta.scan(Scan { range, limit: max + 1, reverse: false }).await? {
            parts.push(Part::decode(&raw)?);
        }
    }
    let more = parts.len() > max;
    parts.truncate(max);
    let record = upload.seen.value;
    let next = parts.last().map_or(i32::from(marker), |p| i32::from(p.number));
    let lines = parts.iter().map(|part| {
        let sums = ChecksumFields::of(part.checksum.as_ref().filter(|_| !record.implicit));
        DtoPart {
            part_number: Some(part.number.into()),
            size: Some(part.size as i64),
            e_tag: Some(part_etag(part)),
            last_modified: timestamp(part.modified),
            checksum_crc32: sums.crc32,
            checksum_crc32c: sums.crc32c,
            checksum_crc64nvme: sums.crc64nvme,
            checksum_sha1: sums.sha1,
            checksum_sha256: sums.sha256,
        }
    });
    Ok(ListPartsOutput {
        parts: Some(lines.collect()),
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(input.upload_id),
        part_number_marker: Some(marker.into()),
        next_part_number_marker: Some(next),
        max_parts: Some(max as i32),
        is_truncated: Some(more),
        initiator: Some(Initiator { id: Some(record.initiator.clone()), display_name: Some(record.initiator.clone()) }),
        owner: Some(owner(&record.owner)),
        storage_class: Some(storage_class(&record)),
        checksum_algorithm: (!record.implicit).then(|| ChecksumAlgorithm::from_static(record.algorithm.name())),
        checksum_type: (!record.implicit).then(|| DtoChecksumType::from_static(record.checksum_type.name())),
        ..Default::default()
    })
}

/// ListMultipartUploads: by key, then by age.
pub async fn list_multipart_uploads<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: ListMultipartUploadsInput,
) -> Result<ListMultipartUploadsOutput> {
    let encode = Encode::new(input.encoding_type.as_ref())?;
    let max = page(input.max_uploads)?;
    let bucket = core.bucket(caller, &input.bucket, input.expected_bucket_owner.as_deref(), Access::Read).await?;
    let id = bucket.value.id;
    let prefix = input.prefix.clone().unwrap_or_default();
    let delimiter = input.delimiter.clone().unwrap_or_default();
    let key_marker = input.key_marker.clone().unwrap_or_default();
    // An upload id marker without a key marker is ignored, as S3 does.
    let upload_marker = input.upload_id_marker.clone().filter(|_| !key_marker.is_empty()).unwrap_or_default();

    let (before, end_of_bucket) = {
        let r = keys::uploads_of(id);
        (r.start, r.end)
    };
    // Everything whose object key begins with `text`, as a lower bound; its successor is the end.
    let from = |text: &[u8]| {
        let escaped = keys::escape(text);
        Bytes::from([&before[..], &escaped[..escaped.len() - 2]].concat())
    };
    let end = keys::successor(&from(prefix.as_bytes())).unwrap_or(end_of_bucket);
    let start = match (key_marker.as_bytes(), DataId::from_hex(&upload_marker)) {
        ([], _) => None,
        (key, Some(upload)) => Some(keys::after(&keys::upload(id, key, upload))),
        (key, None) => match common_prefix(key, prefix.as_bytes(), delimiter.as_bytes()) {
            Some(p) if p.len() == key.len() => keys::successor(&from(key)),
            _ => keys::successor(&Bytes::from([&before[..], &keys::escape(key)].concat())),
        },
    };
    let mut start = start.unwrap_or_default().max(from(prefix.as_bytes()));
    let (mut uploads, mut prefixes, mut more, mut last) = (Vec::new(), Vec::new(), false, None);
    'pages: while max > 0 && start < end {
        let scan = Scan { range: start.clone()..end.clone(), limit: 100, reverse: false };
        let found = core.meta.scan(scan).await?;
        let whole_page = found.len() == 100;
        for (store_key, raw) in found {
            start = keys::after(&store_key);
            let Some((key, upload)) = keys::upload_parts(&store_key) else {
                return Err(Error::new(Kind::InternalError, "An upload's key is damaged."));
            };
            if uploads.len() + prefixes.len() == max {
                more = true;
                break 'pages;
            }
            if let Some(common) = common_prefix(&key, prefix.as_bytes(), delimiter.as_bytes()) {
                prefixes.push(CommonPrefix { prefix: Some(encode.bytes(common).into_owned()) });
                last = Some((common.to_vec(), None));
                start = keys::successor(&from(common)).unwrap_or_else(|| end.clone());
                continue 'pages;
            }
            uploads.push(line(&encode, &key, upload, &Upload::decode(&raw)?));
            last = Some((key, Some(upload)));
        }
        if !whole_page {
            break;
        }
    }
    let last = last.filter(|_| more);
    Ok(ListMultipartUploadsOutput {
        bucket: Some(input.bucket),
        prefix: Some(encode.text(&prefix).into_owned()),
        delimiter: (!delimiter.is_empty()).then(|| encode.text(&delimiter).into_owned()),
        key_marker: Some(encode.text(&key_marker).into_owned()),
        upload_id_marker: Some(upload_marker),
        next_key_marker: last.as_ref().map(|(key, _)| encode.bytes(key).into_owned()),
        next_upload_id_marker: last.and_then(|(_, id)| id).map(DataId::to_hex),
        max_uploads: Some(max as i32),
        is_truncated: Some(more),
        uploads: Some(uploads),
        common_prefixes: Some(prefixes),
        encoding_type: input.encoding_type,
        ..Default::default()
    })
}

fn line(encode: &Encode, key: &[u8], upload: DataId, record: &Upload) -> MultipartUpload {
    MultipartUpload {
        key: Some(encode.bytes(key).into_owned()),
        upload_id: Some(upload.to_hex()),
        initiated: timestamp(record.initiated),
        initiator: Some(Initiator { id: Some(record.initiator.clone()), display_name: Some(record.initiator.clone()) }),
        owner: Some(owner(&record.owner)),
        storage_class: Some(storage_class(record)),
        checksum_algorithm: (!record.implicit).then(|| ChecksumAlgorithm::from_static(record.algorithm.name())),
        checksum_type: (!record.implicit).then(|| DtoChecksumType::from_static(record.checksum_type.name())),
    }
}

fn storage_class(upload: &Upload) -> StorageClass {
    match &upload.headers.storage_class {
        Some(class) => StorageClass::from(class.clone()),
        None => StorageClass::from_static(StorageClass::STANDARD),
    }
}

fn part_etag(part: &Part) -> ETag {
    ETag::Strong(hex::encode(part.md5))
}

fn part_number(number: i32) -> Result<u16> {
    match u16::try_from(number) {
        Ok(n @ 1..=10_000) => Ok(n),
        _ => Err(Error::new(Kind::InvalidArgument, "Part number must be an integer between 1 and 10000, inclusive")),
    }
}
