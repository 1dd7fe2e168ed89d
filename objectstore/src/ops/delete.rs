//! DeleteObject and DeleteObjects.
//!
//! Without a version id a DELETE makes a delete marker where the bucket keeps versions, and takes the object away where it
//! does not. With one it takes that version away for good, unless object lock forbids it.

use futures_util::stream::{self, StreamExt};
use karri_bulk::BulkStore;
use karri_meta::{Batch, MetaError};
use s3s::dto::{
    DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, ETagCondition,
    Error as DeleteError,
};

use crate::access::actions::{BYPASS_GOVERNANCE, DELETE_OBJECT};
use crate::accesslog::Beside;
use crate::change::Change;
use crate::core::{Access, Caller, CoreRef, RETRIES, Seen};
use crate::error::{Error, Kind, Result};
use crate::keys;
use crate::notify::{Event, LIFECYCLE};
use crate::ops::condition::WriteConditions;
use crate::ops::put::{Target, check_key, replace};
use crate::record::{Bucket, Object, Versioning};
use crate::versions::{Spot, Which, check_takes_replicas};

/// Keys in one DeleteObjects.
const KEYS_MAX: usize = 1_000;
/// Deletes under way at once for one DeleteObjects: they share the store's group commits.
const AT_ONCE: usize = 64;

/// What a DELETE did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Done {
    /// A delete marker was made, or taken away.
    marker: bool,
    /// The version made or taken away.
    version_id: Option<String>,
}

/// DeleteObject. An absent object is no error.
pub async fn delete_object<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: DeleteObjectInput,
) -> Result<DeleteObjectOutput> {
    let which = Which::new(input.version_id.as_deref())?;
    let conditions = WriteConditions {
        matches: input.if_match,
        none_match: None,
        size: input.if_match_size,
        modified: input.if_match_last_modified_time,
    };
    let owner = input.expected_bucket_owner.as_deref();
    let bucket = core.bucket(caller, &input.bucket, owner, Access::Write).await?;
    let target = Target { caller, bucket: &input.bucket, key: &input.key, owner };
    let bypass = input.bypass_governance_retention.unwrap_or(false);
    if bypass {
        core.may(caller, BYPASS_GOVERNANCE, &input.bucket, &input.key, None).await?;
    }
    let done = remove(core, &target, bucket, which, &conditions, bypass).await?;
    Ok(DeleteObjectOutput {
        delete_marker: done.marker.then_some(true),
        version_id: done.version_id,
        ..Default::default()
    })
}

/// DeleteObjects: each key for itself.
pub async fn delete_objects<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: DeleteObjectsInput,
) -> Result<DeleteObjectsOutput> {
    let objects = input.delete.objects;
    if objects.is_empty() || objects.len() > KEYS_MAX {
        return Err(Kind::MalformedXml.into());
    }
    let owner = input.expected_bucket_owner.as_deref();
    let bucket = &core.bucket(caller, &input.bucket, owner, Access::Write).await?;
    let bypass = input.bypass_governance_retention.unwrap_or(false);
    let name = input.bucket.as_str();
    let outcomes = stream::iter(objects.into_iter().map(|object| async move {
        let conditions = WriteConditions {
            matches: object.e_tag.map(ETagCondition::ETag),
            none_match: None,
            size: object.size,
            modified: object.last_modified_time,
        };
        let outcome = async {
            check_key(&object.key)?;
            let which = Which::new(object.version_id.as_deref())?;
            core.may(caller, DELETE_OBJECT, name, &object.key, object.version_id.as_deref()).await?;
            if bypass {
                core.may(caller, BYPASS_GOVERNANCE, name, &object.key, None).await?;
            }
            let target = Target { caller, bucket: name, key: &object.key, owner };
            remove(core, &target, bucket.clone(), which, &conditions, bypass).await
        };
        (outcome.await, object.key, object.version_id)
    }));
    let outcomes: Vec<_> = outcomes.buffered(AT_ONCE).collect().await;
    // Nobody known fills a log with keys that he made up: what he was refused is in the request's own line.
    let idle = caller.key.is_none() && outcomes.iter().all(|(outcome, ..)| outcome.is_err());
    if !idle && core.known(name).await.is_ok_and(|known| known.settings.logging.is_some()) {
        let lines = outcomes.iter().map(|(outcome, key, version)| {
            let line = Beside {
                operation: "BATCH.DELETE.OBJECT",
                bucket: name.to_owned(),
                key: key.clone(),
                version: Which::new(version.as_deref()).ok().and_then(Which::text),
                status: 204,
                error: "",
                size: None,
            };
            outcome.as_ref().err().map_or(line.clone(), |error| line.failed(error))
        });
        // Once for a request.
        let _ = caller.leave.beside.set(lines.collect());
    }
    let quiet = input.delete.quiet.unwrap_or(false);
    let (mut deleted, mut errors) = (Vec::new(), Vec::new());
    for (outcome, key, version_id) in outcomes {
        match outcome {
            Ok(_) if quiet => {}
            Ok(done) => deleted.push(DeletedObject {
                key: Some(key),
                delete_marker: done.marker.then_some(true),
                delete_marker_version_id: done.version_id.filter(|_| done.marker),
                version_id,
            }),
            Err(e) => errors.push(DeleteError {
                code: Some(e.kind.code().into()),
                key: Some(key),
                message: Some(e.message.into_owned()),
                version_id,
            }),
        }
    }
    Ok(DeleteObjectsOutput {
        deleted: (!deleted.is_empty()).then_some(deleted),
        errors: (!errors.is_empty()).then_some(errors),
        ..Default::default()
    })
}

/// One DELETE. `bucket` is as it was seen last.
pub async fn remove<B: BulkStore>(
    core: &CoreRef<B>,
    target: &Target<'_>,
    mut bucket: Seen<Bucket>,
    which: Which,
    conditions: &WriteConditions,
    bypass: bool,
) -> Result<Done> {
    for _ in 0..RETRIES {
        if target.caller.leave.replica.is_some() {
            check_takes_replicas(bucket.value.versioning)?;
        }
        let (mut change, done, object) = match (which, bucket.value.versioning) {
            (Which::Current, Versioning::Enabled | Versioning::Suspended) => {
                let old = core.object(bucket.value.id, target.key).await?;
                match &old {
                    // Nothing is there that the condition could be about: a repeat of a DELETE that succeeded.
                    None if !conditions.is_empty() => return Ok(Done::default()),
                    old => conditions.check(old.as_ref().map(|o| &o.value))?,
                }
                // A DeleteBucket that looks whether the bucket is empty must notice.
                if bucket.value.deleting {
                    bucket = core.bucket_to_fill(target.caller, target.bucket, target.owner).await?;
                    continue;
                }
                if let Some(id) = target.caller.leave.replica
                    && let Ok(there) = core.replica(bucket.value.id, target.key, id).await?
                {
                    return Ok(Done { marker: true, version_id: Some(there.seen.value.version_text()) });
                }
                let mut marker = Object {
                    modified: core.now(),
                    owner: target.caller.maker(&bucket.value).to_owned(),
                    marker: true,
                    ..Object::default()
                };
                let mut change = Change::from(replace(target, &bucket, old.as_ref()));
                let spot = Spot::of(target.caller, target.bucket, &bucket.value, target.key);
                core.supersede(&mut change, spot, old.as_ref(), &mut marker).await?;
                (change, Done { marker: true, version_id: Some(marker.version_text()) }, marker)
            }
            (Which::Current, Versioning::Never) => {
                let Some(old) = core.object(bucket.value.id, target.key).await? else { return Ok(Done::default()) };
                conditions.check(Some(&old.value))?;
                let object_key = keys::object(bucket.value.id, target.key.as_bytes());
                let mut change = Change::from(Batch::new().check(object_key.clone(), Some(old.raw)).del(object_key));
                core.retire(&mut change, &old.value).await?;
                (change, Done::default(), old.value)
            }
            (Which::Null | Which::Id(_), _) => {
                let version_id = Some(if let Which::Id(id) = which { id.to_hex() } else { "null".into() });
                let Some(at) = core.version(bucket.value.id, target.key, which).await? else {
                    return Ok(Done { marker: false, version_id });
                };
                conditions.check(Some(&at.seen.value))?;
                if at.seen.value.lock.forbids_deletion(core.now(), bypass) {
                    return Err(Error::new(
                        Kind::AccessDenied,
                        "Access Denied because object protected by object lock.",
                    ));
                }
                let mut change = Change::default();
                core.take_away(&mut change, bucket.value.id, target.key, &at).await?;
                core.unqueue_replication(&mut change, (target.bucket, target.key), &at.seen.value).await?;
                (change, Done { marker: at.seen.value.marker, version_id }, at.seen.value)
            }
        };
        // Whether versions are kept must not change in between.
        let checks = &mut change.batch.checks;
        if checks.iter().all(|(key, _)| *key != keys::bucket(target.bucket)) && which == Which::Current {
            checks.push((keys::bucket(target.bucket), Some(bucket.raw.clone())));
        }
        let made = object.marker && which == Which::Current;
        let name = match (target.caller.leave.facts.operation == LIFECYCLE, made) {
            (false, false) => "ObjectRemoved:Delete",
            (false, true) => "ObjectRemoved:DeleteMarkerCreated",
            (true, false) => "LifecycleExpiration:Delete",
            (true, true) => "LifecycleExpiration:DeleteMarkerCreated",
        };
        let event = Event { name, key: target.key, object: &object };
        core.tell(&mut change, target.caller, target.bucket, event).await?;
        match core.apply(&bucket.value, change).await? {
            Ok(()) => return Ok(done),
            Err(MetaError::Conflict { .. }) => {
                bucket = core.bucket(target.caller, target.bucket, target.owner, Access::Write).await?;
            }
            Err(e) => return Err(e.into()),
        }
    }
    Err(Kind::ConditionalRequestConflict.into())
}
