//! One change of what is in a bucket, as operations put it together: what is committed, what it frees, how much it adds.

use karri_bulk::{BlobId, BulkStore};
use karri_meta::{Batch, MetaError};

use crate::core::{Core, retire_blob};
use crate::error::Result;
use crate::keys;
use crate::notify::Telling;
use crate::record::{Bucket, Data, Object};
use crate::replicate::Queued;
use crate::usage::Amount;

/// A change that is to be committed.
#[derive(Debug, Default)]
pub struct Change {
    /// Records.
    pub batch: Batch,
    /// Blobs to reclaim after the commit.
    pub freed: Vec<BlobId>,
    /// How much more is in the bucket then.
    pub amount: Amount,
    /// The events that are told with it.
    pub telling: Telling,
    /// What is queued for replication with it.
    pub queued: Queued,
}

impl From<Batch> for Change {
    fn from(batch: Batch) -> Self {
        Self { batch, ..Self::default() }
    }
}

impl<B: BulkStore> Core<B> {
    /// Commits a change of a bucket, and hands what it frees to the reclaimer.
    ///
    /// # Errors
    /// `QuotaExceeded`; the inner error is the commit's.
    pub async fn apply(&self, bucket: &Bucket, change: Change) -> Result<Result<(), MetaError>> {
        let outcome = self.commit_counted(bucket, change.amount, change.batch).await?;
        if outcome.is_ok() {
            change.telling.happened();
            self.replication_queued(change.queued);
            self.reclaim.push(change.freed);
        }
        Ok(outcome)
    }

    /// Adds to a change what it takes to give up a version's data.
    pub async fn retire(&self, change: &mut Change, object: &Object) -> Result<()> {
        change.amount -= Amount::of(object);
        let batch = &mut change.batch;
        match &object.data {
            Data::Empty => {}
            Data::Inline(id) => batch.dels.push(keys::inline(*id)),
            Data::Blob(id) => {
                retire_blob(batch, *id);
                change.freed.push(*id);
            }
            Data::Manifest(id) => {
                // Gone already: the commit will conflict on the object's record.
                let Some(manifest) = self.manifest(*id).await? else { return Ok(()) };
                batch.dels.push(keys::manifest(*id));
                for part in &manifest.parts {
                    match part.data {
                        Data::Inline(id) => batch.dels.push(keys::inline(id)),
                        Data::Blob(id) => retire_blob(batch, id),
                        Data::Empty | Data::Manifest(_) => {}
                    }
                }
                change.freed.extend(manifest.blobs());
            }
        }
        Ok(())
    }
}
