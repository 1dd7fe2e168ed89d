//! CompleteMultipartUpload: the parts become an object in one commit; no byte is moved.

use http::HeaderValue;
use karri_bulk::BulkStore;
use karri_meta::{Batch, MetaError};
use s3s::S3Response;
use s3s::dto::{CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CompletedPart};

use super::input::customer_key;
use crate::change::Change;
use crate::core::{Access, Caller, CoreRef, RETRIES};
use crate::digest::{self, Algorithm, Checksum, ChecksumType};
use crate::error::{Error, Kind, Result};
use crate::keys::{self, DataId};
use crate::notify::Event;
use crate::ops::condition::WriteConditions;
use crate::ops::encryption::Shown;
use crate::ops::get::{ChecksumFields, etag};
use crate::ops::multipart::{Open, find_in};
use crate::ops::put::{Target, replace};
use crate::reclaim::close_upload;
use crate::record::{Data, Manifest, Object, Part};
use crate::usage::Amount;
use crate::versions::Spot;

/// A part that is not the last has at least so many bytes.
pub const PART_MIN: u64 = 5 << 20;
/// An object's largest size.
const OBJECT_MAX: u64 = 5 << 40;

/// CompleteMultipartUpload.
pub async fn complete_multipart_upload<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: CompleteMultipartUploadInput,
) -> Result<S3Response<CompleteMultipartUploadOutput>> {
    let owner = input.expected_bucket_owner.as_deref();
    let conditions = WriteConditions::new(input.if_match.clone(), input.if_none_match.clone());
    let listed = input.multipart_upload.as_ref().and_then(|u| u.parts.as_deref()).unwrap_or_default();
    if listed.is_empty() {
        return Err(Error::new(Kind::MalformedXml, "You must specify at least one part"));
    }
    if listed.len() > 10_000 {
        return Err(Kind::MalformedXml.into());
    }
    let id = DataId::from_hex(&input.upload_id).ok_or(Kind::NoSuchUpload)?;
    let target = Target { caller, bucket: &input.bucket, key: &input.key, owner };
    for _ in 0..RETRIES {
        let bucket = core.bucket(caller, &input.bucket, owner, Access::Write).await?;
        let Some(upload) = find_in(core, &bucket.value, &input.key, id).await? else {
            // Completed already, and the answer was lost? Then the object is this upload's.
            let there = core.object(bucket.value.id, &input.key).await?;
            return match there {
                Some(o) if o.value.data == Data::Manifest(id) => Ok(output(&input, &o.value)),
                _ => Err(Kind::NoSuchUpload.into()),
            };
        };
        let bucket = core.bucket_to_fill(caller, &input.bucket, owner).await?;
        let customer = customer_key!(input)?;
        core.object_key(&bucket.value, upload.seen.value.sealed.as_ref(), customer.as_ref()).await?;
        let found =
            core.meta.multi_get(listed.iter().map(|p| keys::part(id, number(p).unwrap_or(0))).collect()).await?;
        let (mut checks, mut taken) = (Vec::with_capacity(found.len()), Vec::with_capacity(found.len()));
        let mut parts = Vec::with_capacity(found.len());
        for (wanted, raw) in listed.iter().zip(found) {
            let number = number(wanted)?;
            let raw = raw.ok_or(Kind::InvalidPart)?;
            let part = Part::decode(&raw)?;
            check_part(wanted, &part)?;
            checks.push((keys::part(id, number), Some(raw)));
            taken.push(keys::part(id, number));
            parts.push(part);
        }
        let mut object = assemble(core.now(), &upload, id, &input, &parts)?;
        let replica = upload.seen.value.replica;
        // Sent again, by another upload: the version is there.
        if let Some(version) = replica
            && let Ok(there) = core.replica(bucket.value.id, &input.key, version).await?
        {
            let batch = close_upload(Batch::new(), bucket.value.id, upload.key, upload.seen.raw, id);
            match core.commit(batch).await {
                Ok(()) => {
                    core.reclaim.push_cleanup(id);
                    return Ok(output(&input, &there.seen.value));
                }
                Err(MetaError::Conflict { .. }) => continue,
                Err(e) => return Err(e.into()),
            }
        }
        let old = core.object(bucket.value.id, &input.key).await?;
        conditions.check(old.as_ref().map(|o| &o.value).filter(|o| !o.marker))?;
        let mut change = Change::from(replace(&target, &bucket, old.as_ref()));
        // Counted as the object's from here on, and no more as parts.
        change.batch.checks.extend(checks);
        change.batch.dels.extend(taken);
        change.amount -= Amount::bytes(object.size);
        change.batch.puts.push((keys::manifest(id), Manifest { parts }.encode()));
        let spot = Spot { replica, ..Spot::of(caller, &input.bucket, &bucket.value, &input.key) };
        core.supersede(&mut change, spot, old.as_ref(), &mut object).await?;
        change.batch = close_upload(change.batch, bucket.value.id, upload.key, upload.seen.raw, id);
        let event = Event { name: "ObjectCreated:CompleteMultipartUpload", key: &input.key, object: &object };
        core.tell(&mut change, caller, &input.bucket, event).await?;
        match core.apply(&bucket.value, change).await? {
            Ok(()) => {
                core.reclaim.push_cleanup(id);
                return Ok(output(&input, &object));
            }
            Err(MetaError::Conflict { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(Kind::ConditionalRequestConflict.into())
}

/// The number of a listed part; one that cannot be is not there.
fn number(part: &CompletedPart) -> Result<u16> {
    match part.part_number.and_then(|n| u16::try_from(n).ok()) {
        Some(n @ 1..=10_000) => Ok(n),
        _ => Err(Kind::InvalidPart.into()),
    }
}

/// Compares a listed part with the one that was uploaded.
fn check_part(listed: &CompletedPart, part: &Part) -> Result<()> {
    if listed.e_tag.as_ref().is_none_or(|e| e.value() != hex::encode(part.md5)) {
        return Err(Kind::InvalidPart.into());
    }
    let sent = [
        (Algorithm::Crc32, &listed.checksum_crc32),
        (Algorithm::Crc32c, &listed.checksum_crc32c),
        (Algorithm::Crc64Nvme, &listed.checksum_crc64nvme),
        (Algorithm::Sha1, &listed.checksum_sha1),
        (Algorithm::Sha256, &listed.checksum_sha256),
    ];
    for (algorithm, value) in sent {
        let Some(value) = value else { continue };
        // A checksum in another algorithm than the upload's was checked when the part came and was not kept.
        let Some(kept) = part.checksum.as_ref().filter(|c| c.algorithm == algorithm) else { continue };
        if digest::parse_value(algorithm, value).as_deref() != Some(&kept.value) {
            return Err(Kind::InvalidPart.into());
        }
    }
    Ok(())
}

/// The object that the parts make.
fn assemble(
    now: karri_base::clock::UnixMicros,
    upload: &Open,
    id: DataId,
    input: &CompleteMultipartUploadInput,
    parts: &[Part],
) -> Result<Object> {
    if !parts.is_sorted_by(|a, b| a.number < b.number) {
        return Err(Kind::InvalidPartOrder.into());
    }
    if let Some((_, all_but_last)) = parts.split_last()
        && all_but_last.iter().any(|p| p.size < PART_MIN)
    {
        return Err(Kind::EntityTooSmall.into());
    }
    let size: u64 = parts.iter().map(|p| p.size).sum();
    if size > OBJECT_MAX {
        return Err(Kind::EntityTooLarge.into());
    }
    if input.mpu_object_size.is_some_and(|s| u64::try_from(s) != Ok(size)) {
        return Err(Error::new(
            Kind::InvalidRequest,
            "The provided 'x-amz-mp-object-size' header value does not match what was computed.",
        ));
    }
    let record = &upload.seen.value;
    if let Some(kind) = &input.checksum_type
        && kind.as_str() != record.checksum_type.name()
    {
        return Err(Error::new(
            Kind::InvalidRequest,
            format!(
                "The upload was created using the {} checksum mode. The complete request must use the same checksum mode.",
                record.checksum_type.name()
            ),
        ));
    }
    let checksum = checksum_of(record.algorithm, record.checksum_type, parts);
    check_whole(input, checksum.as_ref())?;
    Ok(Object {
        size,
        modified: now,
        md5: digest::md5_of_md5s(parts.iter().map(|p| &p.md5)),
        parts: Some(parts.len() as u32),
        data: Data::Manifest(id),
        checksum,
        headers: record.headers.clone(),
        owner: record.owner.clone(),
        tags: record.tags.clone(),
        lock: record.lock,
        sealed: record.sealed.clone(),
        acl: record.acl.clone(),
        ..Object::default()
    })
}

fn checksum_of(algorithm: Algorithm, kind: ChecksumType, parts: &[Part]) -> Option<Checksum> {
    let values: Option<Vec<(&[u8], u64)>> =
        parts.iter().map(|p| p.checksum.as_ref().map(|c| (c.value.as_slice(), p.size))).collect();
    match kind {
        ChecksumType::FullObject => digest::combine(algorithm, values?),
        ChecksumType::Composite => Some(digest::composite(algorithm, values?.into_iter().map(|(v, _)| v))),
    }
}

/// Compares the whole object's checksum, if the request has one.
fn check_whole(input: &CompleteMultipartUploadInput, ours: Option<&Checksum>) -> Result<()> {
    let sent = [
        (Algorithm::Crc32, &input.checksum_crc32),
        (Algorithm::Crc32c, &input.checksum_crc32c),
        (Algorithm::Crc64Nvme, &input.checksum_crc64nvme),
        (Algorithm::Sha1, &input.checksum_sha1),
        (Algorithm::Sha256, &input.checksum_sha256),
    ];
    for (algorithm, value) in sent {
        let (Some(value), Some(ours)) = (value, ours.filter(|c| c.algorithm == algorithm)) else { continue };
        // Composite values may come with or without their `-N`.
        let bare = value.split_once('-').map_or(value.as_str(), |(v, _)| v);
        if *value != ours.text() && bare != digest::base64(&ours.value) {
            return Err(Error::new(
                Kind::BadDigest,
                format!("The {} you specified did not match the calculated checksum.", algorithm.name()),
            ));
        }
    }
    Ok(())
}

fn output(input: &CompleteMultipartUploadInput, object: &Object) -> S3Response<CompleteMultipartUploadOutput> {
    let sums = ChecksumFields::of(object.checksum.as_ref());
    let encryption = Shown::of(object.sealed.as_ref(), None);
    let mut response = S3Response::new(CompleteMultipartUploadOutput {
        server_side_encryption: encryption.kind,
        ssekms_key_id: encryption.key_id,
        bucket: Some(input.bucket.clone()),
        key: Some(input.key.clone()),
        location: Some(format!("/{}/{}", input.bucket, input.key)),
        e_tag: Some(etag(object)),
        checksum_crc32: sums.crc32,
        checksum_crc32c: sums.crc32c,
        checksum_crc64nvme: sums.crc64nvme,
        checksum_sha1: sums.sha1,
        checksum_sha256: sums.sha256,
        checksum_type: sums.kind,
        version_id: object.version.map(DataId::to_hex),
        ..Default::default()
    });
    // As every other answer about such an object; AWS's model of this one lacks them.
    if encryption.customer_algorithm.is_some() {
        let said = [("algorithm", &input.sse_customer_algorithm), ("key-md5", &input.sse_customer_key_md5)];
        for (name, value) in said {
            let name = format!("x-amz-server-side-encryption-customer-{name}");
            let value = value.as_deref().and_then(|v| HeaderValue::from_str(v).ok());
            response.headers.extend(http::HeaderName::try_from(name).ok().zip(value));
        }
    }
    response
}
