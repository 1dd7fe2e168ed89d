//! PutObject, and the publishing commit that Copy and Complete share.

use http::HeaderMap;
use karri_bulk::BulkStore;
use karri_meta::{Batch, MetaError};
use s3s::S3Request;
use s3s::dto::{Metadata, PutObjectInput, PutObjectOutput, Timestamp};
use time::OffsetDateTime;

use super::input::{encryption_asked, lock_asked};
use crate::body::{self, Expected, Received, Seal, Stored, Trailers};
use crate::change::Change;
use crate::core::{Caller, Core, CoreRef, RETRIES, Seen};
use crate::digest::Algorithm;
use crate::error::{Error, Kind, Result};
use crate::keys;
use crate::notify::Event;
use crate::ops::condition::WriteConditions;
use crate::ops::encryption::Shown;
use crate::ops::get::{ChecksumFields, etag};
use crate::ops::tagging;
use crate::record::{Bucket, Headers, Object};
use crate::usage::Amount;
use crate::versions::{Spot, check_takes_replicas};

/// User metadata's limit, names and values together.
const METADATA_MAX: usize = 2 << 10;
/// A key's limit.
const KEY_MAX: usize = 1024;

/// PutObject.
pub async fn put_object<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    mut req: S3Request<PutObjectInput>,
) -> Result<PutObjectOutput> {
    let trailers = Trailers::of(&mut req);
    let S3Request { input, headers, .. } = req;
    check_key(&input.key)?;
    // Before a byte is read: who may, and is there a bucket.
    let bucket = core.bucket_to_fill(caller, &input.bucket, input.expected_bucket_owner.as_deref()).await?;
    if caller.leave.replica.is_some() {
        check_takes_replicas(bucket.value.versioning)?;
    }
    let attributes = object_headers(&headers, input.metadata.as_ref(), input.expires.as_ref())?;
    let tags = tagging::of_header(input.tagging.as_deref())?;
    let lock = lock_asked!(input, &bucket.value, core.now())?;
    let encrypt = encryption_asked!(input)?;
    let keyed = core.fresh_key(&bucket.value, &encrypt).await?;
    let conditions = WriteConditions::new(input.if_match, input.if_none_match);
    let mut expected = Expected::of(&headers, input.content_length, trailers)?;
    expected.keep.get_or_insert(Algorithm::Crc64Nvme);
    expected.seal = keyed.as_ref().map(|k| Seal::new(&k.secret));
    let amount = Amount { objects: 1, bytes: expected.len.unwrap_or(0) as i64 };
    core.check_room(&bucket.value, amount, || core.replaced(&bucket.value, &input.key)).await?;
    let received = body::receive(core, body::incoming(input.body), &expected).await?;
    let mut object = object_of(core, caller, &received, &expected, attributes);
    (object.tags, object.lock, object.sealed) = (tags, lock, keyed.map(|k| k.sealed));
    let target =
        Target { caller, bucket: &input.bucket, key: &input.key, owner: input.expected_bucket_owner.as_deref() };
    let version_id = publish(core, &target, bucket, &conditions, &mut object, &received.stored).await?;
    let sums = ChecksumFields::of(object.checksum.as_ref());
    let encryption = Shown::of(object.sealed.as_ref(), encrypt.customer());
    Ok(PutObjectOutput {
        version_id,
        server_side_encryption: encryption.kind,
        ssekms_key_id: encryption.key_id,
        sse_customer_algorithm: encryption.customer_algorithm,
        sse_customer_key_md5: encryption.customer_md5,

        expiration: core.expiration(&input.bucket, &input.key, &object).await,
        e_tag: Some(etag(&object)),
        checksum_crc32: sums.crc32,
        checksum_crc32c: sums.crc32c,
        checksum_crc64nvme: sums.crc64nvme,
        checksum_sha1: sums.sha1,
        checksum_sha256: sums.sha256,
        checksum_type: sums.kind,
        ..Default::default()
    })
}

/// The record of a body that has arrived.
pub fn object_of<B: BulkStore>(
    core: &Core<B>,
    caller: &Caller,
    received: &Received<B>,
    expected: &Expected,
    headers: Headers,
) -> Object {
    Object {
        size: received.digests.len,
        modified: core.now(),
        md5: received.digests.md5,
        parts: None,
        data: received.stored.data(),
        checksum: expected.keep.and_then(|a| received.digests.checksum(a)),
        headers,
        owner: caller.new_owner().to_owned(),
        salt: expected.seal.as_ref().map(|s| s.salt),
        acl: caller.new_acl(),
        ..Object::default()
    }
}

/// Where an object is to be put, and for whom.
pub struct Target<'a> {
    /// Who puts it.
    pub caller: &'a Caller,
    /// The bucket's name.
    pub bucket: &'a str,
    /// The object's key.
    pub key: &'a str,
    /// x-amz-expected-bucket-owner.
    pub owner: Option<&'a str>,
}

/// Makes an object current: one commit that checks the bucket (as it was seen last), the conditions and what it replaces.
/// Answers its `x-amz-version-id`; the null version's is not told, as in S3.
pub async fn publish<B: BulkStore>(
    core: &CoreRef<B>,
    target: &Target<'_>,
    mut bucket: Seen<Bucket>,
    conditions: &WriteConditions,
    object: &mut Object,
    stored: &Stored<B>,
) -> Result<Option<String>> {
    for _ in 0..RETRIES {
        let old = core.object(bucket.value.id, target.key).await?;
        conditions.check(old.as_ref().map(|o| &o.value).filter(|o| !o.marker))?;
        // Sent again, because the answer was lost.
        if let Some(id) = target.caller.leave.replica
            && let Ok(there) = core.replica(bucket.value.id, target.key, id).await?
        {
            return Ok(there.seen.value.version.map(keys::DataId::to_hex));
        }
        let mut change = Change::from(replace(target, &bucket, old.as_ref()));
        stored.name(&mut change.batch);
        let spot = Spot::of(target.caller, target.bucket, &bucket.value, target.key);
        core.supersede(&mut change, spot, old.as_ref(), object).await?;
        let name = match target.caller.leave.facts.operation {
            "CopyObject" => "ObjectCreated:Copy",
            "PostObject" => "ObjectCreated:Post",
            _ => "ObjectCreated:Put",
        };
        let event = Event { name, key: target.key, object };
        core.tell(&mut change, target.caller, target.bucket, event).await?;
        match stored.commit(core, &bucket.value, change).await? {
            Ok(()) => return Ok(object.version.map(keys::DataId::to_hex)),
            Err(MetaError::Conflict { .. }) => {
                bucket = core.bucket_to_fill(target.caller, target.bucket, target.owner).await?;
            }
            Err(e) => return Err(e.into()),
        }
    }
    Err(Kind::ConditionalRequestConflict.into())
}

/// A batch that holds only while the bucket and the object are as they were read.
pub fn replace(target: &Target<'_>, bucket: &Seen<Bucket>, old: Option<&Seen<Object>>) -> Batch {
    Batch::new()
        .check(keys::bucket(target.bucket), Some(bucket.raw.clone()))
        .check(keys::object(bucket.value.id, target.key.as_bytes()), old.map(|o| o.raw.clone()))
}

/// 1 to 1,024 bytes.
pub fn check_key(key: &str) -> Result<()> {
    match key.len() {
        0 => Err(Error::new(Kind::InvalidArgument, "The object key is empty.")),
        n if n > KEY_MAX => Err(Kind::KeyTooLong.into()),
        _ => Ok(()),
    }
}

/// The headers that are kept with an object. `s3s` has decoded the metadata's RFC 2047 and the date.
pub fn object_headers(raw: &HeaderMap, metadata: Option<&Metadata>, expires: Option<&Timestamp>) -> Result<Headers> {
    let text = |name: &str| -> Result<Option<String>> {
        let Some(value) = raw.get(name).filter(|v| !v.is_empty()) else { return Ok(None) };
        let value = value.to_str();
        let value =
            value.map_err(|_| Error::new(Kind::InvalidArgument, format!("Header {name} is not plain text.")))?;
        Ok(Some(value.to_owned()))
    };
    let mut user: Vec<(String, String)> =
        metadata.into_iter().flatten().map(|(k, v)| (k.to_lowercase(), v.clone())).collect();
    user.sort();
    if user.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() > METADATA_MAX {
        return Err(Kind::MetadataTooLarge.into());
    }
    if user.iter().any(|(k, v)| k.contains('\0') || v.contains('\0')) {
        return Err(Error::new(Kind::InvalidArgument, "User metadata contains a zero byte."));
    }
    let storage_class = text("x-amz-storage-class")?;
    if storage_class.as_deref().is_some_and(|c| !STORAGE_CLASSES.contains(&c)) {
        return Err(Kind::InvalidStorageClass.into());
    }
    let content_encoding = text("content-encoding")?.and_then(|value| {
        // aws-chunked is how the body travelled, not what the object is.
        let kept: Vec<&str> =
            value.split(',').map(str::trim).filter(|e| !e.eq_ignore_ascii_case("aws-chunked")).collect();
        (!kept.is_empty()).then(|| kept.join(", "))
    });
    Ok(Headers {
        content_type: text("content-type")?,
        cache_control: text("cache-control")?,
        content_disposition: text("content-disposition")?,
        content_encoding,
        content_language: text("content-language")?,
        expires: expires.map(|t| OffsetDateTime::from(t.clone()).unix_timestamp()),
        website_redirect: text("x-amz-website-redirect-location")?,
        storage_class: storage_class.filter(|c| c != "STANDARD"),
        user,
    })
}

/// The classes whose objects can be read at once, in the order in which lifecycle rules may move them. They are kept as
/// said, and all are stored alike. Archives, which must be restored before they are read, there are none.
pub const STORAGE_CLASSES: [&str; 6] =
    ["STANDARD", "REDUCED_REDUNDANCY", "STANDARD_IA", "INTELLIGENT_TIERING", "ONEZONE_IA", "GLACIER_IR"];
