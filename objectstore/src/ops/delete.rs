//! DeleteObject and DeleteObjects.

use futures_util::stream::{self, StreamExt};
use karri_bulk::BulkStore;
use karri_meta::{Batch, MetaError};
use s3s::dto::{
    DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, ETagCondition,
    Error as DeleteError,
};

use crate::core::{Access, Caller, CoreRef, RETRIES};
use crate::error::{Kind, Result};
use crate::keys::{self, BucketId};
use crate::ops::condition::WriteConditions;
use crate::ops::get::check_version;
use crate::ops::put::check_key;

/// Keys in one DeleteObjects.
const KEYS_MAX: usize = 1_000;
/// Deletes under way at once for one DeleteObjects: they share the store's group commits.
const AT_ONCE: usize = 64;

/// DeleteObject. An absent object is no error.
pub async fn delete_object<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: DeleteObjectInput,
) -> Result<DeleteObjectOutput> {
    check_version(input.version_id.as_deref())?;
    let conditions = WriteConditions {
        matches: input.if_match,
        none_match: None,
        size: input.if_match_size,
        modified: input.if_match_last_modified_time,
    };
    let bucket = core.bucket(caller, &input.bucket, input.expected_bucket_owner.as_deref(), Access::Write).await?;
    remove(core, bucket.value.id, &input.key, &conditions).await?;
    Ok(DeleteObjectOutput::default())
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
    let bucket = core.bucket(caller, &input.bucket, input.expected_bucket_owner.as_deref(), Access::Write).await?;
    let id = bucket.value.id;
    let outcomes = stream::iter(objects.into_iter().map(|object| async move {
        let conditions = WriteConditions {
            matches: object.e_tag.map(ETagCondition::ETag),
            none_match: None,
            size: object.size,
            modified: object.last_modified_time,
        };
        let outcome = async {
            check_key(&object.key)?;
            check_version(object.version_id.as_deref())?;
            remove(core, id, &object.key, &conditions).await
        };
        (outcome.await, object.key, object.version_id)
    }));
    let outcomes: Vec<_> = outcomes.buffered(AT_ONCE).collect().await;
    let quiet = input.delete.quiet.unwrap_or(false);
    let (mut deleted, mut errors) = (Vec::new(), Vec::new());
    for (outcome, key, version_id) in outcomes {
        match outcome {
            Ok(()) if quiet => {}
            Ok(()) => deleted.push(DeletedObject { key: Some(key), version_id, ..Default::default() }),
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

async fn remove<B: BulkStore>(
    core: &CoreRef<B>,
    bucket: BucketId,
    key: &str,
    conditions: &WriteConditions,
) -> Result<()> {
    for _ in 0..RETRIES {
        let Some(old) = core.object(bucket, key).await? else {
            // S3 says 404 to a condition on nothing, and success to a plain DELETE.
            return conditions.check(None);
        };
        conditions.check(Some(&old.value))?;
        let object_key = keys::object(bucket, key.as_bytes());
        let mut batch = Batch::new().check(object_key.clone(), Some(old.raw.clone())).del(object_key);
        let freed = core.retire(&mut batch, &old.value.data).await?;
        match core.commit(batch).await {
            Ok(()) => {
                core.reclaim.push(freed);
                return Ok(());
            }
            Err(MetaError::Conflict { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(Kind::ConditionalRequestConflict.into())
}
