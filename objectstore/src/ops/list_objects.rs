//! ListObjects and ListObjectsV2 over [`crate::list::Walk`].
//!
//! A page is written as XML straight from the records ([`Listed`]), in a text of its size: per key nothing is allocated.
//! `s3s`'s typed answer, a dozen allocations a key, would be most of what a page costs; it goes back empty, with the text
//! beside it ([`Rendered`]).

use std::borrow::Cow;
use std::fmt::{self, Display, Formatter};

use karri_base::clock::UnixMicros;
use karri_bulk::BulkStore;
use karri_meta::Scan;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::S3Response;
use s3s::dto::{EncodingType, ListObjectsInput, ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output};
use time::OffsetDateTime;

use crate::core::{Access, Caller, Core, CoreRef};
use crate::error::{Error, Kind, Result};
use crate::keys::{self, BucketId};
use crate::list::{Entry, Start, Walk, absolute};
use crate::record::listed::Listed;
use crate::token;
use crate::xml::Out;

/// Entries of one page.
pub const PAGE_MAX: i32 = 1_000;

/// About what a line takes, in bytes, with a key of some length.
const LINE: usize = 320;

/// An answer's document: [`crate::front`] puts it in the place of the one that `s3s` writes.
#[derive(Debug, Clone)]
pub struct Rendered(pub String);

fn rendered<T: Default>(text: String) -> S3Response<T> {
    let mut response = S3Response::new(T::default());
    response.extensions.insert(Rendered(text));
    response
}

/// ListObjects (version 1).
pub async fn list_objects<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: ListObjectsInput,
) -> Result<S3Response<ListObjectsOutput>> {
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
    Ok(rendered(Out::document("ListBucketResult", |out| {
        out.text("Name", &input.bucket);
        out.text("Prefix", &encode.text(&prefix));
        out.text("Marker", &encode.text(&marker));
        out.plain("MaxKeys", max);
        out.plain("IsTruncated", more);
        lines(out, &entries, &encode, true);
        if !delimiter.is_empty() {
            out.text("Delimiter", &encode.text(&delimiter));
        }
        out.maybe("NextMarker", next_marker.as_deref());
        out.maybe("EncodingType", input.encoding_type.as_ref().map(EncodingType::as_str));
    })))
}

/// ListObjectsV2.
pub async fn list_objects_v2<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: ListObjectsV2Input,
) -> Result<S3Response<ListObjectsV2Output>> {
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
    Ok(rendered(Out::document("ListBucketResult", |out| {
        out.text("Name", &input.bucket);
        out.text("Prefix", &encode.text(&prefix));
        out.plain("MaxKeys", max);
        out.plain("KeyCount", entries.len());
        out.maybe("ContinuationToken", input.continuation_token.as_deref());
        out.plain("IsTruncated", more);
        out.maybe("NextContinuationToken", next.as_deref());
        lines(out, &entries, &encode, input.fetch_owner.unwrap_or(false));
        if !delimiter.is_empty() {
            out.text("Delimiter", &encode.text(&delimiter));
        }
        out.maybe("EncodingType", input.encoding_type.as_ref().map(EncodingType::as_str));
        out.maybe("StartAfter", input.start_after.as_deref().map(|after| encode.text(after)).as_deref());
    })))
}

/// Walks a bucket's objects.
async fn walk<B: BulkStore>(
    core: &Core<B>,
    bucket: BucketId,
    prefix: &str,
    delimiter: &str,
    start: &Start,
    max: usize,
) -> Result<(Vec<Entry<Listed>>, bool)> {
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
            objects.push((key.slice(before.len()..), Listed::decode(raw)?));
        }
        walk.feed_shown(objects, |object| !object.marker);
    }
    Ok(walk.finish())
}

/// The objects, then the common prefixes.
fn lines(out: &mut Out, entries: &[Entry<Listed>], encode: &Encode, with_owner: bool) {
    out.reserve(entries.len() * LINE);
    for entry in entries {
        let Entry::Key(key, object) = entry else { continue };
        out.element("Contents", |out| {
            out.text("Key", &encode.bytes(key));
            out.plain("LastModified", Moment(object.modified));
            out.plain("ETag", Quoted(object.md5, object.parts));
            if let Some((algorithm, kind)) = object.checksum {
                out.plain("ChecksumAlgorithm", algorithm.name());
                out.plain("ChecksumType", kind.name());
            }
            out.plain("Size", object.size);
            if with_owner {
                out.element("Owner", |out| {
                    out.text("DisplayName", object.owner());
                    out.text("ID", object.owner());
                });
            }
            out.text("StorageClass", object.class());
        });
    }
    for entry in entries {
        let Entry::Prefix(prefix) = entry else { continue };
        out.element("CommonPrefixes", |out| out.text("Prefix", &encode.bytes(prefix)));
    }
}

/// An ETag in its quotes, escaped.
struct Quoted([u8; 16], Option<u32>);

impl Display for Quoted {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut hex = [0; 32];
        // Twice as long as what it encodes.
        let _ = hex::encode_to_slice(self.0, &mut hex);
        f.write_str("&quot;")?;
        f.write_str(std::str::from_utf8(&hex).unwrap_or_default())?;
        if let Some(parts) = self.1 {
            write!(f, "-{parts}")?;
        }
        f.write_str("&quot;")
    }
}

/// A moment as S3 lists it (ISO 8601, UTC): `2026-01-02T03:04:05.678Z`.
struct Moment(UnixMicros);

impl Display for Moment {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (seconds, micros) = (self.0.0 / 1_000_000, self.0.0 % 1_000_000);
        let at = OffsetDateTime::from_unix_timestamp(seconds as i64).map_err(|_| fmt::Error)?;
        let ((year, month, day), (hour, minute, second)) = (at.to_calendar_date(), at.to_hms());
        let mut text = *b"0000-00-00T00:00:00.000Z";
        let fields = [
            (0, 4, u32::try_from(year).unwrap_or(0)),
            (5, 2, u8::from(month).into()),
            (8, 2, day.into()),
            (11, 2, hour.into()),
            (14, 2, minute.into()),
            (17, 2, second.into()),
            (20, 3, (micros / 1000) as u32),
        ];
        for (from, digits, mut value) in fields {
            for digit in text[from..from + digits].iter_mut().rev() {
                *digit = b'0' + (value % 10) as u8;
                value /= 10;
            }
        }
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
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
    pub fn text<'n>(&self, name: &'n str) -> Cow<'n, str> {
        if self.0 { utf8_percent_encode(name, URL).into() } else { name.into() }
    }
    /// A stored name in the answer; names came in as UTF-8.
    pub fn bytes<'n>(&self, name: &'n [u8]) -> Cow<'n, str> {
        match std::str::from_utf8(name) {
            Ok(name) => self.text(name),
            Err(_) => self.text(&String::from_utf8_lossy(name)).into_owned().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_etags_are_written_as_s3_does() {
        let written = |micros| Moment(UnixMicros(micros)).to_string();
        assert_eq!(written(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(written(1_767_323_045_678_901), "2026-01-02T03:04:05.678Z");
        assert_eq!(written(951_827_696_000_000), "2000-02-29T12:34:56.000Z");
        assert_eq!(Quoted([0xAB; 16], None).to_string(), format!("&quot;{}&quot;", "ab".repeat(16)));
        assert_eq!(Quoted([0; 16], Some(12)).to_string(), format!("&quot;{}-12&quot;", "00".repeat(16)));
    }
}
