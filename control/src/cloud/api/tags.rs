//! Tags on every resource that has a record.

use std::sync::Arc;

use crate::wire::Done;
use crate::wire::generated::ec2;

use super::super::error::{ApiError, ApiResult, Code};
use super::super::records::{Image, Instance, KeyPair, Record, Tags, Volume};
use super::super::store::Txn;
use super::filter::{Filters, one};
use super::page::{Ask, page};
use super::{Call, instance_id, volume_id};

/// Tags on one resource.
const TAGS_MAX: usize = 50;

/// A tag's key and value within AWS's bounds.
pub fn checked(tag: &ec2::Tag) -> ApiResult<(String, String)> {
    let key = tag.key.clone().unwrap_or_default();
    let value = tag.value.clone().unwrap_or_default();
    if key.is_empty() {
        return Err(ApiError::new(Code::InvalidParameterValue, "Tag key cannot be empty."));
    }
    if key.chars().count() > 128 {
        return Err(ApiError::value("Tag.Key", key, "It must not be longer than 128 characters."));
    }
    if value.chars().count() > 256 {
        return Err(ApiError::value("Tag.Value", value, "It must not be longer than 256 characters."));
    }
    if key.len() >= 4 && key.is_char_boundary(4) && key[..4].eq_ignore_ascii_case("aws:") {
        let message = "Tag keys starting with 'aws:' are reserved for internal use";
        return Err(ApiError::new(Code::InvalidParameterValue, message));
    }
    Ok((key, value))
}

/// Refuses more tags than a resource may have, and keys that differ only in case: policies do not tell them apart.
pub fn count_checked(tags: &Tags) -> ApiResult<()> {
    let mut keys: Vec<String> = tags.keys().map(|key| key.to_lowercase()).collect();
    keys.sort_unstable();
    if let Some(twice) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
        let message = format!("Duplicate tag key '{}' specified: keys must differ in more than case.", twice[0]);
        return Err(ApiError::new(Code::InvalidParameterValue, message));
    }
    if tags.len() > TAGS_MAX {
        let message = format!("A resource can have at most {TAGS_MAX} tags.");
        return Err(ApiError::new(Code::TagLimitExceeded, message));
    }
    Ok(())
}

fn change_tags<R: Record>(
    txn: &mut Txn<'_>,
    record: &Arc<R>,
    tags: impl FnOnce(&mut R) -> &mut Tags,
    change: &impl Fn(&mut Tags),
) -> ApiResult<()> {
    let mut record = R::clone(record);
    let tags = tags(&mut record);
    change(tags);
    count_checked(tags)?;
    txn.put(record);
    Ok(())
}

/// Changes the tags of the resource with this id, whatever its kind.
fn on_resource(call: &Call<'_>, txn: &mut Txn<'_>, id: &str, change: &impl Fn(&mut Tags)) -> ApiResult<()> {
    match id.split('-').next().unwrap_or_default() {
        "i" => {
            let instance = call.instance(txn, &instance_id(id)?)?;
            change_tags(txn, &instance, |i| &mut i.tags, change)
        }
        "vol" => {
            let volume = call.volume(txn, &volume_id(id)?)?;
            change_tags(txn, &volume, |v| &mut v.tags, change)
        }
        "ami" | "aki" | "ari" => {
            let image = super::images::own(call, txn, id)?;
            change_tags(txn, &image, |i| &mut i.tags, change)
        }
        "key" => {
            let pairs = txn.list::<KeyPair>();
            let found = pairs.iter().find(|k| k.account == *call.account() && k.id.as_str() == id);
            let found = found.and_then(|k| txn.get::<KeyPair>(&k.id()));
            let pair = found.ok_or_else(|| {
                ApiError::new(Code::InvalidKeyPairNotFound, format!("The key pair ID '{id}' does not exist"))
            })?;
            change_tags(txn, &pair, |k| &mut k.tags, change)
        }
        _ => Err(ApiError::new(Code::InvalidId, format!("The ID '{id}' is not valid"))),
    }
}

/// CreateTags.
pub async fn create(call: &Call<'_>, request: ec2::CreateTagsRequest) -> ApiResult<Done> {
    let tags: Vec<(String, String)> = request.tags.iter().map(checked).collect::<ApiResult<_>>()?;
    let add = |has: &mut Tags| has.extend(tags.iter().cloned());
    call.cloud.store.change(|txn| request.resources.iter().try_for_each(|id| on_resource(call, txn, id, &add))).await?;
    Ok(Done)
}

/// DeleteTags: by key; a given value must be the tag's; without tags all go.
pub async fn delete(call: &Call<'_>, request: ec2::DeleteTagsRequest) -> ApiResult<Done> {
    let remove = |has: &mut Tags| {
        if request.tags.is_empty() {
            has.clear();
        }
        for tag in &request.tags {
            let key = tag.key.as_deref().unwrap_or_default();
            if tag.value.is_none() || has.get(key) == tag.value.as_ref() {
                has.remove(key);
            }
        }
    };
    call.cloud
        .store
        .change(|txn| request.resources.iter().try_for_each(|id| on_resource(call, txn, id, &remove)))
        .await?;
    Ok(Done)
}

/// DescribeTags.
pub fn describe(call: &Call<'_>, request: ec2::DescribeTagsRequest) -> ApiResult<ec2::DescribeTagsResult> {
    let known = ["key", "resource-id", "resource-type", "value"];
    let mut named = request.filters;
    // `tag:KEY` is a key and a value at once here; the others are plain names.
    let by_tag: Vec<ec2::Filter> =
        named.extract_if(.., |f| f.name.as_deref().is_some_and(|n| n.starts_with("tag:"))).collect();
    let filters = Filters::new(named, &known, false)?;
    let by_tag = Filters::new(by_tag, &[], true)?;
    let store = &call.cloud.store;
    let mine = call.account();
    let mut all: Vec<(String, ec2::ResourceType, String, String)> = Vec::new();
    let mut add = |id: &str, kind: ec2::ResourceType, tags: &Tags| {
        for (k, v) in tags {
            all.push((id.to_owned(), kind, k.clone(), v.clone()));
        }
    };
    for i in store.list::<Instance>().iter().filter(|i| i.account == *mine) {
        add(i.id.as_str(), ec2::ResourceType::Instance, &i.tags);
    }
    for v in store.list::<Volume>().iter().filter(|v| v.account == *mine && v.state != ec2::VolumeState::Deleted) {
        add(v.id.as_str(), ec2::ResourceType::Volume, &v.tags);
    }
    for i in store.list::<Image>().iter().filter(|i| i.account == *mine) {
        add(&i.id, ec2::ResourceType::Image, &i.tags);
    }
    for k in store.list::<KeyPair>().iter().filter(|k| k.account == *mine) {
        add(k.id.as_str(), ec2::ResourceType::KeyPair, &k.tags);
    }
    all.retain(|(id, kind, key, value)| {
        let alone = Tags::from([(key.clone(), value.clone())]);
        by_tag.keep(&alone, |_| Vec::new())
            && filters.keep(&alone, |f| {
                one(match f {
                    "key" => Some(key.as_str()),
                    "resource-id" => Some(id.as_str()),
                    "resource-type" => Some(kind.as_str()),
                    "value" => Some(value.as_str()),
                    _ => None,
                })
            })
    });
    let sort_key = |t: &(String, ec2::ResourceType, String, String)| format!("{}\u{1}{}", t.0, t.2);
    all.sort_by_key(sort_key);
    let ask = Ask {
        listing: call.listing("DescribeTags"),
        max: request.max_results,
        range: 5..=1000,
        default: 1000,
        token: request.next_token.as_deref(),
    };
    let (shown, next_token) = page(all, &ask, sort_key)?;
    let tags = shown.into_iter().map(|(id, kind, key, value)| ec2::TagDescription {
        resource_id: Some(id),
        resource_type: Some(kind),
        key: Some(key),
        value: Some(value),
    });
    Ok(ec2::DescribeTagsResult { tags: tags.collect(), next_token })
}
