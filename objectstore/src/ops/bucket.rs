//! CreateBucket, HeadBucket, ListBuckets, GetBucketLocation, DeleteBucket.

use http::HeaderMap;
use karri_base::aws::policy::Context;
use karri_bulk::BulkStore;
use karri_meta::{Batch, MetaError, Scan};
use s3s::dto::{
    Bucket as DtoBucket, BucketLocationConstraint, CreateBucketInput, CreateBucketOutput, DeleteBucketInput,
    DeleteBucketOutput, GetBucketLocationInput, GetBucketLocationOutput, HeadBucketInput, HeadBucketOutput,
    ListBucketsInput, ListBucketsOutput, Owner,
};

use crate::access::acl::{Acl, Owners};
use crate::access::context;
use crate::config::simple::Ownership;
use crate::config::{Doc, Documents};
use crate::core::{Access, Caller, Core, CoreRef, RETRIES};
use crate::error::{Error, Kind, Result};
use crate::keys::{self, BucketId};
use crate::ops::get::timestamp;
use crate::record::{self, Bucket, BucketLock, Upload, Versioning};
use crate::{reclaim, token};

/// Region of S3's first days: its buckets have no location constraint, and making one's own bucket again succeeds.
const FIRST_REGION: &str = "us-east-1";

/// CreateBucket.
pub async fn create_bucket<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: CreateBucketInput,
) -> Result<CreateBucketOutput> {
    let name = input.bucket;
    check_name(&name)?;
    let headers = &caller.leave.facts.headers;
    let documents = documents_of_new(core, caller, headers)?;
    let acl = documents.get(Doc::Acl).cloned();
    let region = &core.shared.region;
    let wanted = input.create_bucket_configuration.and_then(|c| c.location_constraint);
    let wanted = wanted.filter(|wanted| !wanted.as_str().is_empty());
    let told = |context: &mut Context| {
        if let Some(wanted) = &wanted {
            context.text(context::LOCATION, wanted.as_str());
        }
    };
    core.confirm(caller, &name, told).await.map(drop)?;
    if let Some(wanted) = &wanted
        && wanted.as_str() != region
    {
        return Err(Error::new(
            Kind::InvalidLocationConstraint,
            format!("The location constraint {:?} is not this Walrus's region, {region}.", wanted.as_str()),
        ));
    }
    let locked = input.object_lock_enabled_for_bucket.unwrap_or(false);
    let bucket = Bucket {
        id: BucketId(rand::random()),
        owner: caller.account().to_owned(),
        created: core.now(),
        region: region.clone(),
        deleting: false,
        fence: 0,
        versioning: if locked { Versioning::Enabled } else { Versioning::Never },
        lock: locked.then(BucketLock::default),
        encryption: None,
        documents,
    };
    let batch = Batch::new()
        .check(keys::bucket(&name), None)
        .put(keys::bucket(&name), bucket.encode())
        .put(keys::account_bucket(caller.account(), &name), record::marker(b'A'));
    match core.commit(batch).await {
        Ok(()) => {}
        Err(MetaError::Conflict { .. }) => match core.bucket(caller, &name, None, Access::Write).await {
            Ok(seen) if seen.value.owner != caller.account() => return Err(Kind::BucketAlreadyExists.into()),
            Ok(_) if region != FIRST_REGION => return Err(Kind::BucketAlreadyOwnedByYou.into()),
            // Another list than the bucket has would be lost without a word.
            Ok(seen) if seen.value.documents.get(Doc::Acl) != acl.as_ref() => {
                return Err(Kind::BucketAlreadyExists.into());
            }
            Ok(_) => {}
            Err(_) => return Err(Kind::BucketAlreadyExists.into()),
        },
        Err(e) => return Err(e.into()),
    }
    Ok(CreateBucketOutput { location: Some(format!("/{name}")) })
}

/// What CreateBucket's headers configure.
fn documents_of_new<B: BulkStore>(core: &Core<B>, caller: &Caller, headers: &HeaderMap) -> Result<Documents> {
    let owner = caller.account();
    let mut documents = Documents::default();
    let acl = Acl::of_headers(headers, Owners { owner, bucket_owner: None }, core.people())?;
    let ownership = match headers.get("x-amz-object-ownership").and_then(|v| v.to_str().ok()) {
        None => None,
        Some(name) => Some(Ownership::of_name(name).ok_or_else(|| {
            Error::new(Kind::InvalidArgument, format!("Invalid x-amz-object-ownership header: {name}"))
        })?),
    };
    let shares = acl.as_ref().is_some_and(|acl| acl.is_shared(owner));
    if shares && ownership == Some(Ownership::BucketOwnerEnforced) {
        return Err(Kind::InvalidBucketAclWithObjectOwnership.into());
    }
    if let Some(ownership) = ownership {
        documents.set(Doc::Ownership, Some(ownership.to_xml().into()));
    }
    if let Some(acl) = acl.filter(|acl| !acl.is_private(owner)) {
        documents.set(Doc::Acl, Some(acl.encode().into()));
        documents.set(Doc::Shared, Some(bytes::Bytes::new()));
    }
    Ok(documents)
}

/// HeadBucket.
pub async fn head_bucket<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: HeadBucketInput,
) -> Result<HeadBucketOutput> {
    let owner = input.expected_bucket_owner.as_deref();
    let bucket = core.bucket(caller, &input.bucket, owner, Access::Read).await?;
    Ok(HeadBucketOutput { bucket_region: Some(bucket.value.region), ..Default::default() })
}

/// GetBucketLocation.
pub async fn get_bucket_location<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: GetBucketLocationInput,
) -> Result<GetBucketLocationOutput> {
    let owner = input.expected_bucket_owner.as_deref();
    let bucket = core.bucket(caller, &input.bucket, owner, Access::Read).await?;
    let region = Some(bucket.value.region).filter(|r| r != FIRST_REGION);
    Ok(GetBucketLocationOutput { location_constraint: region.map(BucketLocationConstraint::from) })
}

/// ListBuckets: the caller's.
pub async fn list_buckets<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: ListBucketsInput,
) -> Result<ListBucketsOutput> {
    if caller.key.is_none() {
        return Ok(ListBucketsOutput { buckets: Some(vec![]), owner: Some(owner("anonymous")), ..Default::default() });
    }
    let prefix = input.prefix.clone().unwrap_or_default();
    let max = match input.max_buckets {
        None => 10_000,
        Some(n @ 1..=10_000) => n as usize,
        Some(_) => return Err(Error::new(Kind::InvalidArgument, "MaxBuckets must be between 1 and 10000.")),
    };
    let mut range = keys::prefixed(keys::account_bucket(caller.account(), &prefix));
    if let Some(text) = &input.continuation_token {
        let after = token::open(&core.shared.token_key, b"buckets", text)
            .ok_or_else(|| Error::new(Kind::InvalidArgument, "The continuation token provided is incorrect"))?;
        range.start =
            range.start.max(keys::after(&keys::account_bucket(caller.account(), &String::from_utf8_lossy(&after))));
    }
    let skip = keys::account_bucket(caller.account(), "").len();
    let mut names: Vec<String> = Vec::new();
    if range.start < range.end {
        let found = core.meta.scan(Scan { range, limit: max + 1, reverse: false }).await?;
        names.extend(found.iter().filter_map(|(key, _)| Some(std::str::from_utf8(key.get(skip..)?).ok()?.to_owned())));
    }
    let more = names.len() > max;
    names.truncate(max);
    let continuation_token =
        names.last().filter(|_| more).map(|last| token::seal(&core.shared.token_key, b"buckets", last.as_bytes()));
    let records = core.meta.multi_get(names.iter().map(|n| keys::bucket(n)).collect()).await?;
    let mut buckets = Vec::with_capacity(names.len());
    for (name, raw) in names.into_iter().zip(records) {
        let Some(raw) = raw else { continue };
        let bucket = Bucket::decode(&raw)?;
        buckets.push(DtoBucket {
            name: Some(name),
            creation_date: timestamp(bucket.created),
            bucket_region: Some(bucket.region),
        });
    }
    Ok(ListBucketsOutput {
        buckets: Some(buckets),
        owner: Some(owner(caller.account())),
        continuation_token,
        prefix: input.prefix,
    })
}

/// DeleteBucket: an empty one; its open uploads are aborted.
pub async fn delete_bucket<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: DeleteBucketInput,
) -> Result<DeleteBucketOutput> {
    let name = input.bucket.as_str();
    let expected = input.expected_bucket_owner.as_deref();
    for _ in 0..RETRIES {
        let seen = core.bucket(caller, name, expected, Access::Write).await?;
        // The mark: from here on whoever puts something into the bucket must first change its record.
        let Some(marked) = core.mark_bucket(name, &seen, true).await? else { continue };
        let id = marked.value.id;
        let found = core.meta.scan(Scan { range: keys::objects_of(id), limit: 1, reverse: false }).await?;
        if !found.is_empty() {
            core.mark_bucket(name, &marked, false).await?;
            return Err(Kind::BucketNotEmpty.into());
        }
        abort_all(core, id).await?;
        let batch = Batch::new()
            .check(keys::bucket(name), Some(marked.raw.clone()))
            .del(keys::bucket(name))
            .del(keys::account_bucket(&marked.value.owner, name))
            .del_range(keys::usage_of(id));
        match core.commit(batch).await {
            Ok(()) => {
                core.shared.usages.forget(id);
                return Ok(DeleteBucketOutput {});
            }
            Err(MetaError::Conflict { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(Error::new(Kind::ConditionalRequestConflict, "The bucket is being written to while it is deleted."))
}

/// Aborts every open upload of a bucket.
async fn abort_all<B: BulkStore>(core: &Core<B>, bucket: BucketId) -> Result<()> {
    loop {
        let found = core.meta.scan(Scan { range: keys::uploads_of(bucket), limit: 100, reverse: false }).await?;
        if found.is_empty() {
            return Ok(());
        }
        for (key, raw) in found {
            Upload::decode(&raw)?;
            let Some((_, id)) = keys::upload_parts(&key) else {
                return Err(Error::new(Kind::InternalError, "An upload's key is damaged."));
            };
            match core.commit(reclaim::close_upload(Batch::new(), bucket, key, raw, id)).await {
                Ok(()) => core.reclaim.push_cleanup(id),
                Err(MetaError::Conflict { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// An account as an owner. Canonical ids are hexadecimal in AWS; here the account number serves.
pub fn owner(account: &str) -> Owner {
    Owner { id: Some(account.to_owned()), display_name: Some(account.to_owned()) }
}

/// S3's rules for new buckets' names, the parts that `s3s` does not check included.
fn check_name(name: &str) -> Result<()> {
    let reserved = name.starts_with("sthree-")
        || name.starts_with("amzn-s3-demo-")
        || name.ends_with("-s3alias")
        || name.ends_with("--ol-s3")
        || name.ends_with(".mrap")
        || name.ends_with("--x-s3")
        || name.ends_with("--table-s3");
    let odd = name.contains(".-") || name.contains("-.");
    if reserved || odd || !s3s::path::check_bucket_name(name) {
        return Err(Kind::InvalidBucketName.into());
    }
    Ok(())
}
