//! GetObjectAttributes.

use karri_bulk::BulkStore;
use s3s::dto::{
    Checksum as DtoChecksum, GetObjectAttributesInput, GetObjectAttributesOutput, GetObjectAttributesParts,
    ObjectAttributes, ObjectPart, StorageClass,
};

use super::input::customer_key;
use crate::core::{Access, Caller, CoreRef};
use crate::error::{Error, Kind, Result};
use crate::ops::get::{ChecksumFields, etag, timestamp};
use crate::record::{Data, Manifest};
use crate::versions::{Which, id_shown};

/// Parts of one page.
const PARTS_MAX: i32 = 1_000;

/// GetObjectAttributes.
pub async fn get_object_attributes<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: GetObjectAttributesInput,
) -> Result<GetObjectAttributesOutput> {
    let owner = input.expected_bucket_owner.as_deref();
    let bucket = core.bucket(caller, &input.bucket, owner, Access::Read).await?;
    let at = core.version_to_read(bucket.value.id, &input.key, Which::new(input.version_id.as_deref())?).await?;
    let object = at.seen.value;
    core.may_read(caller, &input.bucket, &input.key, Which::new(input.version_id.as_deref())?, &object).await?;
    let customer = customer_key!(input)?;
    core.object_key(&bucket.value, object.sealed.as_ref(), customer.as_ref()).await?;
    // `s3s` gives each header as one value, whatever commas it has.
    let listed = || input.object_attributes.iter().flat_map(|a| a.as_str().split(',')).map(str::trim);
    let asked = |name: &str| listed().any(|a| a == name);
    let known = [
        ObjectAttributes::CHECKSUM,
        ObjectAttributes::ETAG,
        ObjectAttributes::OBJECT_PARTS,
        ObjectAttributes::OBJECT_SIZE,
        ObjectAttributes::STORAGE_CLASS,
    ];
    if listed().next().is_none() || listed().any(|a| !known.contains(&a)) {
        return Err(Error::new(Kind::InvalidArgument, "Invalid attribute name specified."));
    }
    let parts = match object.data {
        Data::Manifest(id) if asked(ObjectAttributes::OBJECT_PARTS) => {
            let manifest = core.manifest(id).await?.ok_or(Kind::SlowDown)?;
            let shown = object.checksum.is_some();
            Some(page(&manifest, input.part_number_marker, input.max_parts, shown)?)
        }
        _ => None,
    };
    let checksum = asked(ObjectAttributes::CHECKSUM).then(|| ChecksumFields::of(object.checksum.as_ref()));
    Ok(GetObjectAttributesOutput {
        checksum: checksum.filter(|s| s.kind.is_some()).map(|s| DtoChecksum {
            checksum_crc32: s.crc32,
            checksum_crc32c: s.crc32c,
            checksum_crc64nvme: s.crc64nvme,
            checksum_sha1: s.sha1,
            checksum_sha256: s.sha256,
            checksum_type: s.kind,
        }),
        e_tag: asked(ObjectAttributes::ETAG).then(|| etag(&object)),
        last_modified: timestamp(object.modified),
        object_parts: parts,
        object_size: asked(ObjectAttributes::OBJECT_SIZE).then_some(object.size as i64),
        storage_class: asked(ObjectAttributes::STORAGE_CLASS).then(|| match &object.headers.storage_class {
            Some(class) => StorageClass::from(class.clone()),
            None => StorageClass::from_static(StorageClass::STANDARD),
        }),
        version_id: id_shown(&bucket.value, &object),
        ..Default::default()
    })
}

/// One page of a manifest's parts, numbered as clients count them: by position.
fn page(
    manifest: &Manifest,
    marker: Option<i32>,
    max: Option<i32>,
    with_checksums: bool,
) -> Result<GetObjectAttributesParts> {
    let wrong = |message: &'static str| Error::new(Kind::InvalidArgument, message);
    let marker = marker.unwrap_or(0);
    let from = usize::try_from(marker).map_err(|_| wrong("part-number-marker must not be negative."))?;
    let max = max.unwrap_or(PARTS_MAX).min(PARTS_MAX);
    let count = usize::try_from(max).map_err(|_| wrong("max-parts must not be negative."))?;
    let left = manifest.parts.get(from..).unwrap_or_default();
    let shown = &left[..count.min(left.len())];
    let parts = shown.iter().enumerate().map(|(i, part)| {
        let sums = ChecksumFields::of(part.checksum.as_ref().filter(|_| with_checksums));
        ObjectPart {
            checksum_crc32: sums.crc32,
            checksum_crc32c: sums.crc32c,
            checksum_crc64nvme: sums.crc64nvme,
            checksum_sha1: sums.sha1,
            checksum_sha256: sums.sha256,
            part_number: i32::try_from(from + i + 1).ok(),
            size: Some(part.size as i64),
        }
    });
    Ok(GetObjectAttributesParts {
        is_truncated: Some(shown.len() < left.len()),
        max_parts: Some(max),
        next_part_number_marker: i32::try_from(from + shown.len()).ok(),
        part_number_marker: Some(marker),
        parts: Some(parts.collect()),
        total_parts_count: i32::try_from(manifest.parts.len()).ok(),
    })
}
