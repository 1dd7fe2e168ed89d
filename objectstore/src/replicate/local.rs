//! Replicas in a bucket of this Walrus: the bytes are copied through bounded buffers, part by part where the object has
//! parts, so that a replica has its ETag and its checksums; one commit makes it visible.

use futures_util::StreamExt;
use karri_base::aws::policy::{Context, Identity, Policy, Principal, Request, Target as Judged, decide};
use karri_base::clock::UnixMicros;
use karri_bulk::BulkStore;
use karri_meta::{Batch, MetaError};

use super::{Carried, Trouble, system};
use crate::access::acl::{Acl, Permission};
use crate::body::{self, Expected, Seal, Stored};
use crate::buckets::Known;
use crate::change::Change;
use crate::config::Doc;
use crate::config::simple::Ownership;
use crate::core::{Caller, CoreRef, RETRIES};
use crate::crypt::Secret;
use crate::error::{Error, Kind, Result};
use crate::keys;
use crate::notify::Event;
use crate::ops::condition::WriteConditions;
use crate::ops::delete;
use crate::ops::encryption::Asked;
use crate::ops::get::pieces;
use crate::ops::put::{Target, replace};
use crate::record::{Data, Holder, Manifest, Object, Part, Versioning};
use crate::usage::Amount;
use crate::versions::{Spot, Which};

/// Checks that the role of another bucket's rules may put replicas into this one: within an account, unless the bucket's
/// policy denies it; into another account's bucket where its policy allows it.
///
/// # Errors
/// `AccessDenied`.
pub fn may_replicate(
    target: &Known,
    (name, key): (&str, &str),
    role: &str,
    account: &str,
    now: UnixMicros,
) -> Result<()> {
    let refused = || {
        Error::new(
            Kind::AccessDenied,
            format!("Access Denied: {role} is not allowed s3:ReplicateObject in the bucket {name:?}."),
        )
    };
    let account = account.parse().map_err(|_| refused())?;
    let who = Principal::role_session(&account, role, "AROA", "s3-replication");
    let identity = Identity::new(who, vec![std::sync::Arc::new(Policy::administrator())]);
    let mut context = Context::default();
    context.moment("aws:CurrentTime", now).flag("aws:SecureTransport", true);
    let resource = format!("arn:aws:s3:::{name}/{key}");
    let request = Request { action: "s3:ReplicateObject", resource: &resource, context: &context };
    let to = Judged { owner: target.owner.as_ref(), policy: target.policy.as_ref(), ..Judged::default() };
    if decide(&identity, &to, &request).is_allowed() { Ok(()) } else { Err(refused()) }
}

/// Carries a change.
///
/// # Errors
/// Why not, and whether that is for this change only.
pub async fn carry<B: BulkStore>(core: &CoreRef<B>, carried: &Carried<'_>) -> Result<(), Trouble> {
    let name = &carried.rule.to.bucket;
    let target = core.known(name).await?;
    let account = &carried.source.bucket().owner;
    may_replicate(&target, (name, &carried.entry.key), carried.role, account, core.now())?;
    if carried.rule.to.account.as_ref().is_some_and(|account| *account != target.bucket().owner) {
        return Err(Trouble::Refused("the destination bucket belongs to another account than the rule names".into()));
    }
    if target.bucket().versioning != Versioning::Enabled {
        return Err(Trouble::Refused("the destination bucket does not keep versions".into()));
    }
    let (key, id) = (&carried.entry.key, carried.entry.version);
    if core.replica(target.bucket().id, key, id).await?.is_ok() {
        return Ok(follow(core, carried, &target).await?);
    }
    let caller = system(name, Some(id));
    if carried.object.marker {
        let to = Target { caller: &caller, bucket: name, key, owner: None };
        let bucket = target.seen.clone();
        delete::remove(core, &to, bucket, Which::Current, &WriteConditions::default(), false).await?;
        return Ok(());
    }
    Ok(copy(core, carried, &caller, &target).await?)
}

/// What a replica has of its own: owner, list, class.
fn settings_of(carried: &Carried<'_>, target: &Known, object: &mut Object) {
    let from = carried.object;
    // The destination's own retention stays, and where it is another account's, that one's holds.
    let mut lock = object.lock.strengthened(from.lock);
    if target.bucket().owner == carried.source.bucket().owner && from.lock.hold.is_some() {
        lock.hold = from.lock.hold;
    }
    (object.tags, object.lock) = (from.tags.clone(), lock);
    let enforced = target.settings.ownership == Ownership::BucketOwnerEnforced;
    if enforced || carried.rule.to.owner_changes {
        (object.owner, object.acl) = (target.bucket().owner.clone(), None);
    } else {
        let blocked = target.settings.public_access.block_acls;
        let acl = from.acl.clone().filter(|acl| !(blocked && acl.is_public()));
        (object.owner, object.acl) = (from.owner.clone(), acl);
    }
}

/// Brings the settings of a replica that is there to those of its version.
async fn follow<B: BulkStore>(core: &CoreRef<B>, carried: &Carried<'_>, target: &Known) -> Result<()> {
    for _ in 0..RETRIES {
        let found = core.replica(target.bucket().id, &carried.entry.key, carried.entry.version).await?;
        let Ok(at) = found else { return Ok(()) };
        let mut object = at.seen.value;
        settings_of(carried, target, &mut object);
        let record = object.encode();
        if object.marker || record == at.seen.raw {
            return Ok(());
        }
        share(core, target, &carried.rule.to.bucket, &object).await?;
        match core.commit(Batch::new().check(at.key.clone(), Some(at.seen.raw)).put(at.key, record)).await {
            Ok(()) => return Ok(()),
            Err(MetaError::Conflict { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(Kind::SlowDown.into())
}

/// Notes in the bucket's record that its objects may be others', before the first one is.
async fn share<B: BulkStore>(core: &CoreRef<B>, target: &Known, name: &str, object: &Object) -> Result<()> {
    let owner = &target.bucket().owner;
    let withheld = object.acl.as_ref().is_some_and(|acl: &Acl| !acl.allows(Some(owner), Permission::FullControl, true));
    if target.bucket().documents.has(Doc::Shared) || (object.owner == *owner && !withheld) {
        return Ok(());
    }
    let note = |bucket: &mut crate::record::Bucket| {
        bucket.documents.set(Doc::Shared, Some(bytes::Bytes::new()));
        Ok(())
    };
    core.change_bucket(&system(name, None), name, None, note).await.map(drop)
}

/// Copies a version.
async fn copy<B: BulkStore>(core: &CoreRef<B>, carried: &Carried<'_>, caller: &Caller, target: &Known) -> Result<()> {
    let from = carried.object;
    let name = &carried.rule.to.bucket;
    let amount = Amount { objects: 1, bytes: from.size as i64 };
    core.check_room(target.bucket(), amount, || async { Ok(Amount::default()) }).await?;
    let opener = core.object_key(carried.source.bucket(), from.sealed.as_ref(), None).await?;
    let asked = match from.sealed.as_ref().map(|sealed| &sealed.holder) {
        None | Some(Holder::Customer) => Asked::Default,
        Some(Holder::Walrus) => Asked::Kept(Holder::Walrus),
        Some(Holder::Service(id)) => {
            Asked::Kept(Holder::Service(carried.rule.kms_key.clone().unwrap_or_else(|| id.clone())))
        }
    };
    let keyed = core.fresh_key(target.bucket(), &asked).await?;
    let secret = keyed.as_ref().map(|keyed| &keyed.secret);
    let mut object = Object {
        size: from.size,
        md5: from.md5,
        parts: from.parts,
        checksum: from.checksum.clone(),
        headers: from.headers.clone(),
        sealed: keyed.as_ref().map(|keyed| keyed.sealed.clone()),
        ..Object::default()
    };
    if let Some(class) = &carried.rule.to.storage_class {
        object.headers.storage_class = Some(class.clone()).filter(|class| class != "STANDARD");
    }
    settings_of(carried, target, &mut object);
    share(core, target, name, &object).await?;
    let mut stored: Vec<Stored<B>> = Vec::new();
    let mut manifest = None;
    if let Data::Manifest(id) = from.data {
        // Gone with its version: the entry is looked at again.
        let whole = core.manifest(id).await?.ok_or(Kind::SlowDown)?;
        let (mut start, mut parts) = (0, Vec::with_capacity(whole.parts.len()));
        for part in &whole.parts {
            let span = start..start + part.size;
            let taken = take(core, carried, opener.as_ref(), Some(&whole), span, part.md5, secret).await?;
            start += part.size;
            parts.push(Part { data: taken.0.data(), salt: taken.1, modified: core.now(), ..part.clone() });
            stored.push(taken.0);
        }
        let fresh = core.fresh_id();
        object.data = Data::Manifest(fresh);
        manifest = Some((fresh, Manifest { parts }));
    } else {
        let (data, salt) = take(core, carried, opener.as_ref(), None, 0..from.size, from.md5, secret).await?;
        (object.data, object.salt) = (data.data(), salt);
        stored.push(data);
    }
    publish(core, caller, carried, &mut object, &stored, manifest).await
}

/// Copies a run of a version's bytes, which have this MD5.
async fn take<B: BulkStore>(
    core: &CoreRef<B>,
    carried: &Carried<'_>,
    opener: Option<&Secret>,
    manifest: Option<&Manifest>,
    span: std::ops::Range<u64>,
    md5: [u8; 16],
    secret: Option<&Secret>,
) -> Result<(Stored<B>, Option<[u8; 16]>)> {
    let from = carried.object;
    let seal = secret.map(Seal::new);
    let salt = seal.as_ref().map(|seal| seal.salt);
    let expected = Expected { len: Some(span.end - span.start), md5: Some(md5), seal, ..Expected::default() };
    let opened = body::open(core, pieces(from, opener, manifest, &span), carried.place()).await?;
    // Deleted meanwhile: the entry is looked at again.
    let outgoing = opened.map_err(|body::Gone| Error::from(Kind::SlowDown))?;
    let received = body::receive(core, outgoing.boxed_local(), &expected).await.map_err(|e| match e.kind {
        Kind::BadDigest => Error::new(Kind::InternalError, "The version's data does not match its digest."),
        _ => e,
    })?;
    Ok((received.stored, salt))
}

/// Makes a replica visible.
async fn publish<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    carried: &Carried<'_>,
    object: &mut Object,
    stored: &[Stored<B>],
    manifest: Option<(keys::DataId, Manifest)>,
) -> Result<()> {
    let (name, key) = (carried.rule.to.bucket.as_str(), carried.entry.key.as_str());
    let to = Target { caller, bucket: name, key, owner: None };
    for _ in 0..RETRIES {
        let bucket = core.bucket_to_fill(caller, name, None).await?;
        if bucket.value.versioning != Versioning::Enabled {
            return Err(Error::new(Kind::InvalidRequest, "The destination bucket does not keep versions."));
        }
        if core.replica(bucket.value.id, key, carried.entry.version).await?.is_ok() {
            return Ok(());
        }
        let old = core.object(bucket.value.id, key).await?;
        let mut change = Change::from(replace(&to, &bucket, old.as_ref()));
        stored.iter().for_each(|stored| stored.name(&mut change.batch));
        if let Some((id, manifest)) = &manifest {
            change.batch.puts.push((keys::manifest(*id), manifest.encode()));
        }
        core.supersede(&mut change, Spot::of(caller, name, &bucket.value, key), old.as_ref(), object).await?;
        let event = Event { name: "ObjectCreated:Put", key, object };
        core.tell(&mut change, caller, name, event).await?;
        // As in `Stored::commit`, for all of them.
        let taken: Vec<_> = stored.iter().map(Stored::take).collect();
        let outcome = core.apply(&bucket.value, change).await;
        stored.iter().zip(taken).for_each(|(stored, taken)| stored.settle(taken, &outcome));
        match outcome? {
            Ok(()) => return Ok(()),
            Err(MetaError::Conflict { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(Kind::SlowDown.into())
}
