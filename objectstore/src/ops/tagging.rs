//! GetObjectTagging, PutObjectTagging, DeleteObjectTagging, and tags that come with an upload.

use std::collections::HashSet;

use karri_bulk::BulkStore;
use percent_encoding::percent_decode_str;
use s3s::dto::{
    DeleteObjectTaggingInput, DeleteObjectTaggingOutput, GetObjectTaggingInput, GetObjectTaggingOutput,
    PutObjectTaggingInput, PutObjectTaggingOutput, Tag,
};

use crate::access::context;
use crate::core::{Access, Caller, CoreRef, Teller};
use crate::error::{Error, Kind, Result};
use crate::record::Tags;
use crate::versions::{Which, id_shown};

/// Tags of one object.
const TAGS_MAX: usize = 10;
/// Characters of a name.
const NAME_MAX: usize = 128;
/// Characters of a value.
const VALUE_MAX: usize = 256;

/// Tags, if S3 takes them; sorted.
pub fn checked(mut pairs: Vec<(String, String)>) -> Result<Tags> {
    pairs.sort();
    let wrong = |message: &'static str| Err(Error::new(Kind::InvalidTag, message));
    if pairs.len() > TAGS_MAX {
        return wrong("Object tags cannot be greater than 10");
    }
    let mut names = HashSet::new();
    for (name, value) in &pairs {
        if name.is_empty() || name.chars().count() > NAME_MAX || name.contains('\0') {
            return wrong("The TagKey you have provided is invalid");
        }
        if value.chars().count() > VALUE_MAX || value.contains('\0') {
            return wrong("The TagValue you have provided is invalid");
        }
        if !names.insert(name) {
            return wrong("Cannot provide multiple Tags with the same key");
        }
    }
    Ok(Tags(pairs))
}

/// The tags of `x-amz-tagging`: URL query parameters.
pub fn of_header(header: Option<&str>) -> Result<Tags> {
    let decode = |text: &str| {
        let spaced = text.replace('+', " ");
        percent_decode_str(&spaced).decode_utf8().map(|t| t.into_owned()).map_err(|_| {
            Error::new(Kind::InvalidArgument, "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query parameters without tag name duplicates.")
        })
    };
    let mut pairs = Vec::new();
    for pair in header.unwrap_or_default().split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        pairs.push((decode(name)?, decode(value)?));
    }
    checked(pairs)
}

/// GetObjectTagging.
pub async fn get_object_tagging<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: GetObjectTaggingInput,
) -> Result<GetObjectTaggingOutput> {
    let owner = input.expected_bucket_owner.as_deref();
    let bucket = core.bucket(caller, &input.bucket, owner, Access::Read).await?;
    let at = core.version_to_read(bucket.value.id, &input.key, Which::new(input.version_id.as_deref())?).await?;
    core.again(caller).await?.judge(&at.seen.value)?;
    let version_id = id_shown(&bucket.value, &at.seen.value);
    let tags = at.seen.value.tags.0.into_iter();
    let tag_set = tags.map(|(key, value)| Tag { key: Some(key), value: Some(value) }).collect();
    Ok(GetObjectTaggingOutput { tag_set, version_id })
}

/// PutObjectTagging: replaces all.
pub async fn put_object_tagging<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: PutObjectTaggingInput,
) -> Result<PutObjectTaggingOutput> {
    let pairs = input.tagging.tag_set.into_iter().map(|t| (t.key.unwrap_or_default(), t.value.unwrap_or_default()));
    let tags = checked(pairs.collect())?;
    let told = |context: &mut _| context::request_tags(context, tags.0.iter().cloned());
    let again = core.confirm(caller, &input.bucket, told).await?;
    let owner = input.expected_bucket_owner.as_deref();
    let bucket = core.bucket(caller, &input.bucket, owner, Access::Write).await?;
    let which = Which::new(input.version_id.as_deref())?;
    let teller = Teller { caller, bucket: &input.bucket, name: "ObjectTagging:Put" };
    let object = core
        .change_version(bucket.value.id, &input.key, which, teller, |object| {
            again.judge(object)?;
            object.tags = tags.clone();
            Ok(())
        })
        .await?;
    Ok(PutObjectTaggingOutput { version_id: id_shown(&bucket.value, &object) })
}

/// DeleteObjectTagging.
pub async fn delete_object_tagging<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: DeleteObjectTaggingInput,
) -> Result<DeleteObjectTaggingOutput> {
    let owner = input.expected_bucket_owner.as_deref();
    let bucket = core.bucket(caller, &input.bucket, owner, Access::Write).await?;
    let which = Which::new(input.version_id.as_deref())?;
    let teller = Teller { caller, bucket: &input.bucket, name: "ObjectTagging:Delete" };
    let again = core.again(caller).await?;
    let object = core
        .change_version(bucket.value.id, &input.key, which, teller, |object| {
            again.judge(object)?;
            object.tags = Tags::default();
            Ok(())
        })
        .await?;
    Ok(DeleteObjectTaggingOutput { version_id: id_shown(&bucket.value, &object) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let check = |text: &str, want: Option<&[(&str, &str)]>| {
            let want = want.map(|w| w.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<Vec<_>>());
            assert_eq!(of_header(Some(text)).ok().map(|t| t.0), want, "{text}");
        };
        check("", Some(&[]));
        check("Hello=World&foo=bar", Some(&[("Hello", "World"), ("foo", "bar")]));
        check("a%20b=c%3Dd+e&f", Some(&[("a b", "c=d e"), ("f", "")]));
        check("a=1&a=2", None);
        check("=1", None);
        check(&format!("{}=1", "n".repeat(129)), None);
        check(&format!("n={}", "v".repeat(257)), None);
        check(&(0..11).map(|i| format!("k{i}=v")).collect::<Vec<_>>().join("&"), None);
        check("a=%FF", None);
    }
}
