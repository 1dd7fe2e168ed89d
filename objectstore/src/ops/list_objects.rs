//! ListObjects and ListObjectsV2 over [`crate::list::Walk`].

use karri_bulk::BulkStore;
use karri_meta::Scan;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::dto::{
    ChecksumAlgorithm, ChecksumType, CommonPrefix, EncodingType, ListObjectsInput, ListObjectsOutput,
    ListObjectsV2Input, ListObjectsV2Output, Object as DtoObject, ObjectStorageClass,
};

use crate::core::{Access, Caller, Core, CoreRef};
use crate::error::{Error, Kind, Result};
use crate::keys::{self, BucketId};
use crate::list::{Entry, Start, Walk, absolute};
use crate::ops::bucket::owner;
use crate::ops::get::{etag, timestamp};
use crate::record::Object;
use crate::token;

/// Entries of one page.
pub const PAGE_MAX: i32 = 1_000;

/// ListObjects (version 1).
pub async fn list_objects<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: ListObjectsInput,
) -> Result<ListObjectsOutput> {
    let encode = Encode::new(input.encoding_type.as_ref())?;
    let max = page(input.max_keys)?;
    let bucket = core.bucket(caller, &input.bucket, input.expected_bucket_owner.as_deref(), Access::Read).await?;
    let prefix = input.prefix.clone().unwrap_or_default();
    let delimiter = input.delimiter.clone().unwrap_or_default();
    let marker = input.marker.clone().unwrap_or_default();
    let start = if marker.is_empty() { Start::First } else { Start::After(marker.clone().into_bytes()) };
    let (entries, more) = walk(core, bucket.value.id, &prefix, &delimiter, &start, max).await?;
    // S3 tells where to go on only with a delimiter; without one the last key does.
    let next_marker = entries.last().filter(|_| more && !delimiter.is_empty()).map(|e| encode.bytes(e.name()));
    let (contents, prefixes) = lines(entries, &encode, true);
    Ok(ListObjectsOutput {
        name: Some(input.bucket),
        prefix: Some(encode.text(&prefix)),
        marker: Some(encode.text(&marker)),
        max_keys: Some(max as i32),
        is_truncated: Some(more),
        contents: Some(contents),
        common_prefixes: Some(prefixes),
        delimiter: (!delimiter.is_empty()).then(|| encode.text(&delimiter)),
        next_marker,
        encoding_type: input.encoding_type,
        ..Default::default()
    })
}

/// ListObjectsV2.
pub async fn list_objects_v2<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: ListObjectsV2Input,
) -> Result<ListObjectsV2Output> {
    let encode = Encode::new(input.encoding_type.as_ref())?;
    let max = page(input.max_keys)?;
    let bucket = core.bucket(caller, &input.bucket, input.expected_bucket_owner.as_deref(), Access::Read).await?;
    let id = bucket.value.id;
    let prefix = input.prefix.clone().unwrap_or_default();
    let delimiter = input.delimiter.clone().unwrap_or_default();
    let scope = [&b"objects"[..], &id.0.to_be_bytes()].concat();
    let token = input.continuation_token.as_ref().filter(|t| !t.is_empty());
    let start = match (token, &input.start_after) {
        (Some(text), _) => Start::After(
            token::open(&core.shared.token_key, &scope, text)
                .ok_or_else(|| Error::new(Kind::InvalidArgument, "The continuation token provided is incorrect"))?,
        ),
        (None, Some(after)) if !after.is_empty() => Start::After(after.clone().into_bytes()),
        (None, _) => Start::First,
    };
    let (entries, more) = walk(core, id, &prefix, &delimiter, &start, max).await?;
    let next = entries.last().filter(|_| more).map(|e| token::seal(&core.shared.token_key, &scope, e.name()));
    let count = entries.len() as i32;
    let (contents, prefixes) = lines(entries, &encode, input.fetch_owner.unwrap_or(false));
    Ok(ListObjectsV2Output {
        name: Some(input.bucket),
        prefix: Some(encode.text(&prefix)),
        max_keys: Some(max as i32),
        key_count: Some(count),
        continuation_token: input.continuation_token,
        is_truncated: Some(more),
        next_continuation_token: next,
        contents: Some(contents),
        common_prefixes: Some(prefixes),
        delimiter: (!delimiter.is_empty()).then(|| encode.text(&delimiter)),
        encoding_type: input.encoding_type,
        start_after: input.start_after.map(|s| encode.text(&s)),
        ..Default::default()
    })
}

/// Walks a bucket's objects.
async fn walk<B: BulkStore>(
    core: &Core<B>,
    bucket: BucketId,
    prefix: &str,
    delimiter: &str,
    start: &Start,
    max: usize,
) -> Result<(Vec<Entry<Object>>, bool)> {
    let before = keys::object(bucket, b"");
    let whole = keys::objects_of(bucket);
    let mut walk = Walk::new(prefix.as_bytes(), delimiter.as_bytes(), start, max);
    while let Some((from, to, limit)) = walk.next() {
        let range = absolute(&before, &whole, &from, to.as_deref());
        // A start at or past the end: nothing.
        let found =
            if range.start < range.end { core.meta.scan(Scan { range, limit, reverse: false }).await? } else { vec![] };
        let mut objects = Vec::with_capacity(found.len());
        for (key, raw) in found {
            objects.push((key.slice(before.len()..), Object::decode(&raw)?));
        }
        walk.feed_shown(objects, |object| !object.marker);
    }
    Ok(walk.finish())
}

fn lines(entries: Vec<Entry<Object>>, encode: &Encode, with_owner: bool) -> (Vec<DtoObject>, Vec<CommonPrefix>) {
    let (mut contents, mut prefixes) = (Vec::with_capacity(entries.len()), Vec::new());
    for entry in entries {
        match entry {
            Entry::Prefix(prefix) => prefixes.push(CommonPrefix { prefix: Some(encode.bytes(&prefix)) }),
            Entry::Key(key, object) => {
                let checksum = object.checksum.as_ref();
                contents.push(DtoObject {
                    key: Some(encode.bytes(&key)),
                    e_tag: Some(etag(&object)),
                    last_modified: timestamp(object.modified),
                    size: Some(object.size as i64),
                    owner: with_owner.then(|| owner(&object.owner)),
                    checksum_algorithm: checksum.map(|c| vec![ChecksumAlgorithm::from_static(c.algorithm.name())]),
                    checksum_type: checksum.map(|c| ChecksumType::from_static(c.kind.name())),
                    storage_class: Some(match object.headers.storage_class {
                        Some(class) => ObjectStorageClass::from(class),
                        None => ObjectStorageClass::from_static(ObjectStorageClass::STANDARD),
                    }),
                    ..Default::default()
                });
            }
        }
    }
    (contents, prefixes)
}

/// max-keys: 0 to 1,000; above is 1,000.
pub fn page(max: Option<i32>) -> Result<usize> {
    match max {
        None => Ok(PAGE_MAX as usize),
        Some(n @ 0..) => Ok(n.min(PAGE_MAX) as usize),
        Some(_) => {
            Err(Error::new(Kind::InvalidArgument, "Argument max-keys must be an integer between 0 and 2147483647"))
        }
    }
}

/// encoding-type.
pub struct Encode(bool);

/// All but unreserved characters and `/`.
pub const URL: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

impl Encode {
    /// `url` or nothing.
    pub fn new(kind: Option<&EncodingType>) -> Result<Self> {
        match kind.map(EncodingType::as_str) {
            None | Some("") => Ok(Self(false)),
            Some(EncodingType::URL) => Ok(Self(true)),
            Some(_) => Err(Error::new(Kind::InvalidArgument, "Invalid Encoding Method specified in Request")),
        }
    }
    /// A name in the answer.
    pub fn text(&self, name: &str) -> String {
        if self.0 { utf8_percent_encode(name, URL).to_string() } else { name.to_owned() }
    }
    /// A stored name in the answer; names came in as UTF-8.
    pub fn bytes(&self, name: &[u8]) -> String {
        self.text(&String::from_utf8_lossy(name))
    }
}
