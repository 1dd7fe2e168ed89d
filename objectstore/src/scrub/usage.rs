//! What is counted in a bucket against what its records add up to.

use std::collections::HashSet;

use bytes::Bytes;
use karri_bulk::BulkStore;
use karri_meta::{Batch, MetaError, Scan};

use super::quiet::Scope;
use super::report::{Fate, Place};
use super::{Step, Worker};
use crate::error::Result;
use crate::keys::{self, BucketId, DataId};
use crate::reclaim::cleanup_bucket;
use crate::record::{Bucket, Object, Part};
use crate::usage::Amount;

/// Records looked at in one go.
const PAGE: usize = 500;
/// How often a bucket is counted again in which something changed meanwhile.
const TRIES: usize = 5;

impl<B: BulkStore> Worker<'_, B> {
    /// The next bucket.
    pub(super) async fn usage(&mut self) -> Result<Step> {
        let page = self.page(b'B', 1).await?;
        let Some((key, raw)) = page.first() else { return Ok(Step::Done) };
        self.pass.position = key.clone();
        if let Ok(bucket) = Bucket::decode(raw) {
            let name = String::from_utf8_lossy(&key[1..]).into_owned();
            self.count(name, (key, raw), bucket.id).await?;
        }
        Ok(Step::More)
    }

    async fn count(&mut self, name: String, (key, raw): (&Bytes, &Bytes), bucket: BucketId) -> Result<()> {
        for _ in 0..TRIES {
            let meter = self.core.settled_meter(bucket).await?;
            let Some(stamp) = self.core.shared.quiet.stamp(Scope::Bucket(bucket), self.core.now()) else {
                self.read(1 << 20).await;
                continue;
            };
            let counted = meter.total();
            // A record that cannot be read has been reported; nothing can be counted with it.
            let Some(there) = self.recount(bucket).await? else { break };
            if !self.core.shared.quiet.is_since(stamp) {
                continue;
            }
            if counted != there {
                // What is added now is right whatever is added or taken away beside it.
                // A bucket that changed or went meanwhile is counted again by the next pass.
                let batch = Batch::new().check(key.clone(), Some(raw.clone()));
                match self.core.adjust_usage(bucket, there - counted, batch).await? {
                    Ok(()) => {
                        let why = format!(
                            "{} objects of {} bytes were counted where {} of {} are",
                            counted.objects, counted.bytes, there.objects, there.bytes
                        );
                        let place = Place { bucket: name, ..Place::default() };
                        self.note(place, "the bucket's usage", why, Fate::Repaired);
                    }
                    Err(MetaError::Conflict { .. }) => self.pass.undecided += 1,
                    Err(e) => return Err(e.into()),
                }
            }
            return Ok(());
        }
        self.pass.undecided += 1;
        Ok(())
    }

    /// What a bucket's records add up to; `None` where one cannot be read.
    async fn recount(&mut self, bucket: BucketId) -> Result<Option<Amount>> {
        let mut sum = Amount::default();
        for range in [keys::objects_of(bucket), keys::versions_of(bucket)] {
            let mut range = range;
            loop {
                let page = self.core.meta.scan(Scan { range: range.clone(), limit: PAGE, reverse: false }).await?;
                for (_, raw) in &page {
                    let Ok(object) = Object::decode(raw) else { return Ok(None) };
                    sum += Amount::of(&object);
                }
                self.read(page.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() as u64).await;
                match page.last() {
                    Some((last, _)) if page.len() == PAGE => range.start = keys::after(last),
                    _ => break,
                }
            }
        }
        // Open uploads, and closed ones whose parts are not yet cleaned away.
        let mut uploads: HashSet<DataId> = HashSet::new();
        self.core
            .each_pair(keys::uploads_of(bucket), PAGE, |key, _| {
                uploads.extend(keys::upload_parts(key).map(|(_, id)| id));
                Ok(())
            })
            .await?;
        self.core
            .each_pair(keys::all(b'X'), PAGE, |key, raw| {
                if cleanup_bucket(raw)? == Some(bucket) {
                    uploads.extend(keys::cleanup_id(key));
                }
                Ok(())
            })
            .await?;
        let mut whole = true;
        for upload in uploads {
            self.core
                .each_pair(keys::parts_of(upload), PAGE, |_, raw| {
                    match Part::decode(raw) {
                        Ok(part) => sum += Amount::bytes(part.size),
                        Err(_) => whole = false,
                    }
                    Ok(())
                })
                .await?;
        }
        Ok(whole.then_some(sum))
    }
}
