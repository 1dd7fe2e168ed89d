//! GetObject and HeadObject: conditions, ranges, parts, checksums.

use std::ops::Range as Span;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use karri_base::clock::UnixMicros;
use karri_bulk::BulkStore;
use s3s::dto::{
    ChecksumMode, ChecksumType as DtoChecksumType, ETag, GetObjectInput, GetObjectOutput, HeadObjectInput,
    HeadObjectOutput, Metadata, Range, ReplicationStatus, StorageClass, Timestamp,
};
use s3s::{S3Request, S3Response};
use time::OffsetDateTime;

use super::input::customer_key;
use crate::body::{self, Outgoing, Piece, SealedPiece};
use crate::core::{Access, Caller, CoreRef, Seen};
use crate::crypt::Secret;
use crate::digest::{Algorithm, Checksum};
use crate::error::{Error, Kind, Result};
use crate::ops::condition::{IfRange, ReadConditions};
use crate::ops::encryption::{CustomerKey, Shown};
use crate::ops::lock;
use crate::record::{Data, Headers, Manifest, Object, Part};
use crate::scrub::report::Place;
use crate::versions::{Which, id_shown};

/// Times that a record is read again because its data went away under a reader.
const RETRIES: usize = 20;

/// GetObject.
pub async fn get_object<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    request: S3Request<GetObjectInput>,
) -> Result<GetObjectOutput> {
    let if_range = IfRange::of(&request.headers);
    let input = request.input;
    let which = Which::new(input.version_id.as_deref())?;
    let customer = customer_key!(input)?;
    let conditions = ReadConditions {
        matches: input.if_match,
        none_match: input.if_none_match,
        modified_since: input.if_modified_since,
        unmodified_since: input.if_unmodified_since,
    };
    let selection = Selection::new(input.range, input.part_number)?.with(if_range);
    let (found, outgoing) = loop_until_whole(
        core,
        caller,
        &Wanted {
            bucket: &input.bucket,
            key: &input.key,
            which,
            owner: input.expected_bucket_owner.as_deref(),
            conditions: &conditions,
            selection: &selection,
            copying: false,
            customer: customer.as_ref(),
        },
    )
    .await?;
    let object = found.object;
    // The checksum is the whole object's (or the part's), so a range goes without.
    let mut sums = ChecksumFields::asked(input.checksum_mode.as_ref(), found.checksum.as_ref());
    // A part's value goes with the type of the whole.
    sums.kind = sums.kind.and(object.checksum.as_ref()).map(|c| DtoChecksumType::from_static(c.kind.name()));
    core.shared.metrics.sent(found.span.end - found.span.start);
    let h = object.headers.clone();
    let (object_lock_mode, object_lock_retain_until_date, object_lock_legal_hold_status) = lock::fields(&object);
    let encryption = Shown::of(object.sealed.as_ref(), customer.as_ref());
    let expiration = match which {
        Which::Current => core.expiration(&input.bucket, &input.key, &object).await,
        Which::Null | Which::Id(_) => None,
    };
    Ok(GetObjectOutput {
        accept_ranges: Some("bytes".into()),
        body: Some(outgoing.into_blob()),
        cache_control: h.cache_control,
        checksum_crc32: sums.crc32,
        checksum_crc32c: sums.crc32c,
        checksum_crc64nvme: sums.crc64nvme,
        checksum_sha1: sums.sha1,
        checksum_sha256: sums.sha256,
        checksum_type: sums.kind,
        content_disposition: h.content_disposition,
        content_encoding: h.content_encoding,
        content_language: h.content_language,
        content_length: Some((found.span.end - found.span.start) as i64),
        content_range: found.content_range,
        content_type: Some(h.content_type.unwrap_or_else(|| DEFAULT_TYPE.into())),
        e_tag: Some(etag(&object)),
        expiration,
        expires: h.expires.and_then(seconds),
        last_modified: timestamp(object.modified),
        metadata: metadata(&object.headers),
        parts_count: found.parts_count,
        replication_status: object.replication.map(|r| ReplicationStatus::from_static(r.name())),
        object_lock_mode,
        object_lock_retain_until_date,
        object_lock_legal_hold_status,
        server_side_encryption: encryption.kind,
        ssekms_key_id: encryption.key_id,
        sse_customer_algorithm: encryption.customer_algorithm,
        sse_customer_key_md5: encryption.customer_md5,
        storage_class: h.storage_class.map(StorageClass::from),
        tag_count: tag_count(&object),
        version_id: found.version_id,
        website_redirect_location: h.website_redirect,
        ..Default::default()
    })
}

/// HeadObject.
pub async fn head_object<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    request: S3Request<HeadObjectInput>,
) -> Result<S3Response<HeadObjectOutput>> {
    let if_range = IfRange::of(&request.headers);
    let input = request.input;
    let which = Which::new(input.version_id.as_deref())?;
    let customer = customer_key!(input)?;
    let conditions = ReadConditions {
        matches: input.if_match,
        none_match: input.if_none_match,
        modified_since: input.if_modified_since,
        unmodified_since: input.if_unmodified_since,
    };
    let selection = Selection::new(input.range, input.part_number)?.with(if_range);
    let wanted = Wanted {
        bucket: &input.bucket,
        key: &input.key,
        which,
        owner: input.expected_bucket_owner.as_deref(),
        conditions: &conditions,
        selection: &selection,
        copying: false,
        customer: customer.as_ref(),
    };
    let Readable { seen, version_id, key } = find(core, caller, &wanted).await.map_err(absent)?;
    let found = locate(core, seen.value, key.as_ref(), &selection, false).await?.ok_or(Kind::NoSuchKey)?;
    let object = found.object;
    let mut sums = ChecksumFields::asked(input.checksum_mode.as_ref(), found.checksum.as_ref());
    // A part's value goes with the type of the whole.
    sums.kind = sums.kind.and(object.checksum.as_ref()).map(|c| DtoChecksumType::from_static(c.kind.name()));
    let h = object.headers.clone();
    let (object_lock_mode, object_lock_retain_until_date, object_lock_legal_hold_status) = lock::fields(&object);
    let encryption = Shown::of(object.sealed.as_ref(), customer.as_ref());
    let expiration = match which {
        Which::Current => core.expiration(&input.bucket, &input.key, &object).await,
        Which::Null | Which::Id(_) => None,
    };
    let tags = tag_count(&object);
    let mut response = S3Response::new(HeadObjectOutput {
        accept_ranges: Some("bytes".into()),
        cache_control: h.cache_control,
        checksum_crc32: sums.crc32,
        checksum_crc32c: sums.crc32c,
        checksum_crc64nvme: sums.crc64nvme,
        checksum_sha1: sums.sha1,
        checksum_sha256: sums.sha256,
        checksum_type: sums.kind,
        content_disposition: h.content_disposition,
        content_encoding: h.content_encoding,
        content_language: h.content_language,
        content_length: Some((found.span.end - found.span.start) as i64),
        content_range: found.content_range,
        content_type: Some(h.content_type.unwrap_or_else(|| DEFAULT_TYPE.into())),
        e_tag: Some(etag(&object)),
        expiration,
        expires: h.expires.and_then(seconds),
        last_modified: timestamp(object.modified),
        metadata: metadata(&object.headers),
        parts_count: found.parts_count,
        replication_status: object.replication.map(|r| ReplicationStatus::from_static(r.name())),
        object_lock_mode,
        object_lock_retain_until_date,
        object_lock_legal_hold_status,
        server_side_encryption: encryption.kind,
        ssekms_key_id: encryption.key_id,
        sse_customer_algorithm: encryption.customer_algorithm,
        sse_customer_key_md5: encryption.customer_md5,
        storage_class: h.storage_class.map(StorageClass::from),
        version_id,
        website_redirect_location: h.website_redirect,
        ..Default::default()
    });
    if let Some(count) = tags {
        response.headers.insert("x-amz-tagging-count", count.into());
    }
    Ok(response)
}

/// What S3 says of an object that came without a Content-Type.
const DEFAULT_TYPE: &str = "binary/octet-stream";

/// A read of an object or of a copy's source.
pub struct Wanted<'a> {
    /// The bucket's name.
    pub bucket: &'a str,
    /// The object's key.
    pub key: &'a str,
    /// Which version of it.
    pub which: Which,
    /// x-amz-expected-bucket-owner.
    pub owner: Option<&'a str>,
    /// Judged on the record that is read.
    pub conditions: &'a ReadConditions,
    /// Which bytes.
    pub selection: &'a Selection,
    /// True for a copy's source.
    pub copying: bool,
    /// The customer's key, if the request has one.
    pub customer: Option<&'a CustomerKey>,
}

/// An object that may be read.
pub struct Readable {
    /// Its record.
    pub seen: Seen<Object>,
    /// `x-amz-version-id`, where the bucket has versions.
    pub version_id: Option<String>,
    /// Its key, if it is encrypted.
    pub key: Option<Secret>,
}

/// The object's record, if the caller may read it and the conditions hold.
pub async fn find<B: BulkStore>(core: &CoreRef<B>, caller: &Caller, wanted: &Wanted<'_>) -> Result<Readable> {
    let bucket = core.bucket(caller, wanted.bucket, wanted.owner, Access::Read).await?;
    let seen = core.version_to_read(bucket.value.id, wanted.key, wanted.which).await?.seen;
    core.may_read(caller, wanted.bucket, wanted.key, wanted.which, &seen.value).await?;
    wanted.conditions.check(&seen.value, wanted.copying)?;
    let key = core.object_key(&bucket.value, seen.value.sealed.as_ref(), wanted.customer).await;
    if key.is_err()
        && let Selection::Part(n) = wanted.selection
    {
        // A part that is not there is told before the key that is missing.
        part_there(core, &seen.value, *n).await?;
    }
    let key = key?;
    let version_id = id_shown(&bucket.value, &seen.value);
    Ok(Readable { seen, version_id, key })
}

/// `InvalidPart` where the object has no part of this number.
async fn part_there<B: BulkStore>(core: &CoreRef<B>, object: &Object, n: u16) -> Result<()> {
    let parts = match object.data {
        // Without its manifest it is being replaced: no time to be exact.
        Data::Manifest(id) => core.manifest(id).await?.map_or(usize::MAX, |manifest| manifest.parts.len()),
        _ => 1,
    };
    if usize::from(n) > parts { Err(Kind::InvalidPart.into()) } else { Ok(()) }
}

/// Finds an object and opens its data; reads the record again when the data went away in between.
pub async fn loop_until_whole<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    wanted: &Wanted<'_>,
) -> Result<(Found, Outgoing)> {
    for _ in 0..RETRIES {
        let Readable { seen, version_id, key } = find(core, caller, wanted).await?;
        let raw = seen.raw.clone();
        let place =
            Place { bucket: wanted.bucket.to_owned(), key: wanted.key.to_owned(), version: seen.value.version_text() };
        let found = locate(core, seen.value, key.as_ref(), wanted.selection, true).await?;
        let Some(found) = found else { continue };
        let found = Found { version_id, ..found };
        match body::open(core, found.pieces.clone(), place.clone()).await? {
            Ok(outgoing) => return Ok((found, outgoing)),
            Err(body::Gone) => {
                // Still named by the same record: then it is not a race but a loss, and must not look like one.
                let again = find(core, caller, wanted).await?;
                if again.seen.raw == raw {
                    let lost = Error::new(Kind::DataDamaged, "The object's data is missing from the store.");
                    body::tell_damage(&core.shared, &place, &lost);
                    return Err(lost);
                }
            }
        }
    }
    Err(Kind::SlowDown.into())
}

/// Which bytes a request wants.
#[derive(Debug, Clone)]
pub enum Selection {
    /// All.
    Whole,
    /// A range.
    Range(Range),
    /// A range, if the object is still this one; all of any other.
    RangeIf(Range, IfRange),
    /// A part of a multipart object.
    Part(u16),
}

impl Selection {
    /// With If-Range, which is for ranges only.
    fn with(self, condition: Option<IfRange>) -> Self {
        match (self, condition) {
            (Self::Range(range), Some(condition)) => Self::RangeIf(range, condition),
            (selection, _) => selection,
        }
    }

    /// From Range and partNumber, of which S3 allows one.
    pub fn new(range: Option<Range>, part: Option<i32>) -> Result<Self> {
        match (range, part) {
            (Some(_), Some(_)) => {
                Err(Error::new(Kind::InvalidRequest, "Cannot specify both Range header and partNumber query parameter"))
            }
            (Some(range), None) => Ok(Self::Range(range)),
            (None, Some(part)) => match u16::try_from(part) {
                Ok(n @ 1..=10_000) => Ok(Self::Part(n)),
                _ => Err(Error::new(
                    Kind::InvalidArgument,
                    "Part number must be an integer between 1 and 10000, inclusive",
                )),
            },
            (None, None) => Ok(Self::Whole),
        }
    }
}

/// An object and the bytes of it that were asked for.
#[derive(Debug)]
pub struct Found {
    /// The record.
    pub object: Object,
    /// From, to.
    pub span: Span<u64>,
    /// Content-Range, if the answer is partial.
    pub content_range: Option<String>,
    /// Of what is sent, if it is known.
    pub checksum: Option<Checksum>,
    /// x-amz-mp-parts-count.
    pub parts_count: Option<i32>,
    /// Where the bytes are.
    pub pieces: Vec<Piece>,
    /// x-amz-version-id, where the bucket has versions.
    pub version_id: Option<String>,
}

/// Finds the bytes; `None` when the manifest is gone.
///
/// `data`: false for HEAD, which needs a manifest only to know a part's place.
pub async fn locate<B: BulkStore>(
    core: &CoreRef<B>,
    object: Object,
    key: Option<&Secret>,
    selection: &Selection,
    data: bool,
) -> Result<Option<Found>> {
    let manifest = match object.data {
        Data::Manifest(id) if data || matches!(selection, Selection::Part(_)) => match core.manifest(id).await? {
            Some(manifest) => Some(manifest),
            None => return Ok(None),
        },
        _ => None,
    };
    let size = object.size;
    let judged = match selection {
        Selection::RangeIf(range, condition) if condition.holds(&object) => Some(Selection::Range(*range)),
        Selection::RangeIf(..) => Some(Selection::Whole),
        _ => None,
    };
    let selection = judged.as_ref().unwrap_or(selection);
    let (span, checksum, parts_count) = match selection {
        Selection::Whole | Selection::RangeIf(..) => (0..size, object.checksum.clone(), None),
        Selection::Range(range) => {
            let span = range.check(size).map_err(|_| not_satisfiable(size))?;
            // All of it, asked for as a range, is still a partial answer, with the checksum of all of it.
            let sum = (span == (0..size)).then(|| object.checksum.clone()).flatten();
            (span, sum, None)
        }
        Selection::Part(n) => match &manifest {
            Some(manifest) => {
                let (span, part) = part_of(manifest, *n).ok_or(Kind::InvalidPart)?;
                (span, part.checksum.clone(), i32::try_from(manifest.parts.len()).ok())
            }
            None if *n == 1 => (0..size, object.checksum.clone(), None),
            None => return Err(Kind::InvalidPart.into()),
        },
    };
    let partial = !matches!(selection, Selection::Whole) && size > 0;
    let content_range = partial.then(|| format!("bytes {}-{}/{size}", span.start, span.end - 1));
    let pieces = if data { pieces(&object, key, manifest.as_ref(), &span) } else { vec![] };
    Ok(Some(Found { object, span, content_range, checksum, parts_count, pieces, version_id: None }))
}

fn not_satisfiable(size: u64) -> Error {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::try_from(format!("bytes */{size}")) {
        headers.insert(http::header::CONTENT_RANGE, value);
    }
    Error { headers: Some(Box::new(headers)), ..Error::from(Kind::InvalidRange) }
}

/// The `n`th part as clients count them: by position, as S3 does after Complete.
fn part_of(manifest: &Manifest, n: u16) -> Option<(Span<u64>, &Part)> {
    let part = manifest.parts.get(usize::from(n) - 1)?;
    let start: u64 = manifest.parts[..usize::from(n) - 1].iter().map(|p| p.size).sum();
    Some((start..start + part.size, part))
}

/// Where the bytes of a span are.
///
/// `key`: the object's, if it is encrypted.
pub fn pieces(object: &Object, key: Option<&Secret>, manifest: Option<&Manifest>, span: &Span<u64>) -> Vec<Piece> {
    let len = span.end - span.start;
    if len == 0 {
        return vec![];
    }
    let piece = |data: Data, salt: Option<[u8; 16]>, size: u64, from: u64, len: u64| match (data, key.zip(salt)) {
        (Data::Inline(_) | Data::Blob(_), Some((key, salt))) => {
            let cipher = Arc::new(key.body(&salt));
            Some(Piece::Sealed(SealedPiece { data, cipher, size, from, len }))
        }
        (Data::Inline(id), None) => Some(Piece::Inline(id, from, len)),
        (Data::Blob(id), None) => Some(Piece::Blob(id, from, len)),
        (Data::Empty | Data::Manifest(_), _) => None,
    };
    let Some(manifest) = manifest else {
        return piece(object.data, object.salt, object.size, span.start, len).into_iter().collect();
    };
    let mut start = 0;
    let mut out = Vec::new();
    for part in &manifest.parts {
        let end = start + part.size;
        let (from, to) = (span.start.max(start), span.end.min(end));
        if from < to {
            out.extend(piece(part.data, part.salt, part.size, from - start, to - from));
        }
        start = end;
        if start >= span.end {
            break;
        }
    }
    out
}

/// What HEAD says of an object that is not there: it has no body to say it in. S3 says the header for markers only; RGW
/// and its clients know it for absence, too.
fn absent(e: Error) -> Error {
    if e.kind != Kind::NoSuchKey || e.headers.is_some() {
        return e;
    }
    let mut headers = HeaderMap::new();
    headers.insert("x-amz-delete-marker", HeaderValue::from_static("false"));
    Error { headers: Some(Box::new(headers)), ..e }
}

fn tag_count(object: &Object) -> Option<i32> {
    i32::try_from(object.tags.0.len()).ok().filter(|n| *n > 0)
}

/// An object's ETag.
pub fn etag(object: &Object) -> ETag {
    ETag::Strong(object.etag())
}

/// A moment as `s3s` wants it.
pub fn timestamp(at: UnixMicros) -> Option<Timestamp> {
    Some(OffsetDateTime::from(at.system()).into())
}

fn seconds(secs: i64) -> Option<Timestamp> {
    OffsetDateTime::from_unix_timestamp(secs).ok().map(Timestamp::from)
}

fn metadata(headers: &Headers) -> Option<Metadata> {
    (!headers.user.is_empty()).then(|| headers.user.iter().cloned().collect())
}

/// A checksum in the five fields of `s3s`'s types.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct ChecksumFields {
    pub crc32: Option<String>,
    pub crc32c: Option<String>,
    pub crc64nvme: Option<String>,
    pub sha1: Option<String>,
    pub sha256: Option<String>,
    pub kind: Option<DtoChecksumType>,
}

impl ChecksumFields {
    /// Of a checksum.
    pub fn of(checksum: Option<&Checksum>) -> Self {
        let mut out = Self::default();
        let Some(checksum) = checksum else { return out };
        let text = Some(checksum.text());
        match checksum.algorithm {
            Algorithm::Crc32 => out.crc32 = text,
            Algorithm::Crc32c => out.crc32c = text,
            Algorithm::Crc64Nvme => out.crc64nvme = text,
            Algorithm::Sha1 => out.sha1 = text,
            Algorithm::Sha256 => out.sha256 = text,
        }
        out.kind = Some(DtoChecksumType::from_static(checksum.kind.name()));
        out
    }
    /// Of a checksum, if `x-amz-checksum-mode: ENABLED` asks for it.
    pub fn asked(mode: Option<&ChecksumMode>, checksum: Option<&Checksum>) -> Self {
        let asked = mode.is_some_and(|m| m.as_str() == ChecksumMode::ENABLED);
        Self::of(checksum.filter(|_| asked))
    }
}
