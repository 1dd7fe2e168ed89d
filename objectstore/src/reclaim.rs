//! Gives space back: blobs that nothing names any more, parts of closed uploads, orphans of a crash.
//!
//! Work is durable as `G` and `X` records, put by the commit that made it; the queue here only says that there is some.
//! Doing any of it twice is harmless: blob ids are never used again, and absent keys and blobs are no error.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::task::{Poll, Waker};

use bytes::Bytes;
use karri_bulk::{BlobId, BulkStore};
use karri_meta::{Batch, MetaError, Scan};

use crate::core::{Core, CoreRef, retire_blob};
use crate::error::Result;
use crate::keys::{self, BucketId, DataId};
use crate::record::codec::{Damage, Fields, Writer, number, unknown};
use crate::record::{Data, Part};
use crate::usage::Amount;

/// Records looked at in one go.
const PAGE: usize = 500;

/// What one core's reclaimer is to do.
#[derive(Default)]
pub struct Queue {
    blobs: RefCell<Vec<BlobId>>,
    cleanups: RefCell<Vec<DataId>>,
    /// Set when a commit was cut off: what it may have put into `G` and `X` is looked for.
    rescan: Cell<bool>,
    closed: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Queue {
    /// Blobs to delete.
    pub fn push(&self, blobs: impl IntoIterator<Item = BlobId>) {
        self.blobs.borrow_mut().extend(blobs);
        self.wake();
    }
    /// A closed upload to clean away.
    pub fn push_cleanup(&self, upload: DataId) {
        self.cleanups.borrow_mut().push(upload);
        self.wake();
    }
    /// Watches a commit: when its client leaves in its middle, or nobody knows how it ended, the work that it may have
    /// put into `G` and `X` is looked for there.
    pub async fn watch<T>(&self, commit: impl Future<Output = Result<T, MetaError>>) -> Result<T, MetaError> {
        struct Rescan<'q>(Option<&'q Queue>);
        impl Drop for Rescan<'_> {
            fn drop(&mut self) {
                if let Some(queue) = self.0 {
                    queue.rescan.set(true);
                    queue.wake();
                }
            }
        }
        let mut rescan = Rescan(Some(self));
        let outcome = commit.await;
        if !matches!(outcome, Err(MetaError::Failed { .. })) {
            rescan.0 = None;
        }
        outcome
    }
    /// Ends [`run`] once it has done what was queued.
    pub fn close(&self) {
        self.closed.set(true);
        self.wake();
    }
    fn is_empty(&self) -> bool {
        self.blobs.borrow().is_empty() && self.cleanups.borrow().is_empty() && !self.rescan.get()
    }
    fn wake(&self) {
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
    /// True when there is work, false when closed.
    async fn wait(&self) -> bool {
        std::future::poll_fn(|cx| {
            if !self.is_empty() {
                return Poll::Ready(true);
            }
            if self.closed.get() {
                return Poll::Ready(false);
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// Works off the queue until it is closed. `rest` is a short pause, before trying again what could not be done yet.
pub async fn run<B: BulkStore, F: Future<Output = ()>>(core: CoreRef<B>, rest: impl Fn() -> F) {
    while core.reclaim.wait().await {
        let closing = core.reclaim.closed.get();
        match core.reclaim_queued().await {
            Ok(()) => {}
            Err(error) => tracing::warn!(error = %error, "space could not be reclaimed; trying again"),
        }
        if closing {
            // What is left now is durable and done at the next start.
            return;
        }
        if !core.reclaim.is_empty() && !core.reclaim.closed.get() {
            rest().await;
        }
    }
}

/// The sealed blobs of a store, listed before anything is served: the candidates of [`Core::sweep_orphans`].
pub fn sealed_blobs<B: BulkStore>(bulk: &B) -> Vec<BlobId> {
    let (mut all, mut after) = (Vec::new(), BlobId(0));
    loop {
        let page = bulk.list(after, 10_000);
        let Some(last) = page.last() else { return all };
        after = *last;
        all.extend(page);
    }
}

impl<B: BulkStore> Core<B> {
    /// Does what is queued. What cannot be done yet (a blob being read, a store that fails) stays queued.
    pub async fn reclaim_queued(&self) -> Result<()> {
        if self.reclaim.rescan.replace(false)
            && let Err(e) = self.queue_leftovers().await
        {
            self.reclaim.rescan.set(true);
            return Err(e);
        }
        let uploads = self.reclaim.cleanups.take();
        for (i, upload) in uploads.iter().enumerate() {
            if let Err(e) = self.clean_upload(*upload).await {
                self.reclaim.cleanups.borrow_mut().extend(&uploads[i..]);
                return Err(e);
            }
        }
        let blobs = self.reclaim.blobs.take();
        let (later, now): (Vec<_>, Vec<_>) = blobs.into_iter().partition(|id| self.shared.pins.is_pinned(*id));
        let outcome = self.delete_blobs(&now).await;
        let mut queue = self.reclaim.blobs.borrow_mut();
        queue.extend(later);
        if outcome.is_err() {
            queue.extend(now);
        }
        outcome
    }

    /// Queues what a stopped process left behind: all of `G` and `X`.
    pub async fn queue_leftovers(&self) -> Result<()> {
        self.each_pair(keys::all(b'G'), PAGE, |key, _| {
            self.reclaim.push(keys::blob_id(key));
            Ok(())
        })
        .await?;
        self.each_pair(keys::all(b'X'), PAGE, |key, _| {
            if let Some(id) = keys::cleanup_id(key) {
                self.reclaim.push_cleanup(id);
            }
            Ok(())
        })
        .await
    }

    /// Queues those of `candidates` that no record names for deletion. They must have been listed before anything was served.
    pub async fn sweep_orphans(&self, candidates: &[BlobId]) -> Result<u64> {
        let mut swept = 0;
        for page in candidates.chunks(PAGE) {
            let named = self.meta.multi_get(page.iter().map(|id| keys::blob(*id)).collect()).await?;
            let orphans: Vec<_> =
                page.iter().zip(named).filter(|(_, named)| named.is_none()).map(|(id, _)| *id).collect();
            swept += orphans.len() as u64;
            // Not deleted here: one that has lost its name since the start may be being read.
            self.reclaim.push(orphans);
        }
        Ok(swept)
    }

    async fn delete_blobs(&self, blobs: &[BlobId]) -> Result<()> {
        for page in blobs.chunks(PAGE) {
            // The last look before data is gone: what a record names again stays.
            let named = self.meta.multi_get(page.iter().map(|id| keys::blob(*id)).collect()).await?;
            let free = page.iter().zip(named).filter(|(_, named)| named.is_none()).map(|(id, _)| *id).collect();
            self.bulk.delete(free).await?;
            let batch = Batch { dels: page.iter().map(|id| keys::garbage(*id)).collect(), ..Batch::new() };
            self.meta.commit(batch).await?;
            self.shared.metrics.reclaimed(page.len() as u64);
        }
        Ok(())
    }

    /// Removes the part records of a closed upload and retires the data that its manifest, if any, does not name.
    pub async fn clean_upload(&self, upload: DataId) -> Result<()> {
        let cleanup = self.meta.get(keys::cleanup(upload)).await?;
        let bucket = cleanup.map(|raw| cleanup_bucket(&raw)).transpose()?.flatten();
        loop {
            let scan = Scan { range: keys::parts_of(upload), limit: PAGE, reverse: false };
            let parts = self.meta.scan(scan).await?;
            // Read after the parts: an upload that became an object has had its manifest since before it was closed.
            let manifest_key = keys::manifest(upload);
            let manifest_raw = self.meta.get(manifest_key.clone()).await?;
            let manifest = manifest_raw.as_ref().map(|raw| crate::record::Manifest::decode(raw)).transpose()?;
            let kept: HashSet<Data> = manifest.iter().flat_map(|m| m.parts.iter().map(|p| p.data)).collect();
            let mut batch = Batch::new();
            let mut blobs = Vec::new();
            let mut amount = Amount::default();
            for (key, raw) in &parts {
                // Checked, so that two at once count it once.
                batch.checks.push((key.clone(), Some(raw.clone())));
                batch.dels.push(key.clone());
                let part = Part::decode(raw)?;
                amount -= Amount::bytes(part.size);
                if kept.contains(&part.data) {
                    continue;
                }
                match part.data {
                    Data::Inline(id) => batch.dels.push(keys::inline(id)),
                    Data::Blob(id) => {
                        retire_blob(&mut batch, id);
                        blobs.push(id);
                    }
                    Data::Empty | Data::Manifest(_) => {}
                }
            }
            let last = parts.len() < PAGE;
            if last {
                batch.dels.push(keys::cleanup(upload));
            }
            let outcome = match bucket {
                Some(bucket) => self.commit_returned(bucket, amount, batch).await?,
                None => self.commit(batch).await,
            };
            match outcome {
                Ok(()) => self.reclaim.push(blobs),
                Err(MetaError::Conflict { .. }) => continue,
                Err(e) => return Err(e.into()),
            }
            if last {
                return Ok(());
            }
        }
    }

    /// How many blobs wait to be deleted, for tests and health.
    pub fn reclaim_backlog(&self) -> usize {
        self.reclaim.blobs.borrow().len()
    }
}

/// A batch that closes an upload: its record gone, its cleaning queued.
pub fn close_upload(batch: Batch, bucket: BucketId, upload_key: Bytes, raw: Bytes, upload: DataId) -> Batch {
    let mut cleanup = Writer::new(b'X');
    cleanup.number(1, bucket.0);
    batch.check(upload_key.clone(), Some(raw)).del(upload_key).put(keys::cleanup(upload), cleanup.finish())
}

/// The bucket that an `X` record's parts are counted in.
pub(crate) fn cleanup_bucket(record: &[u8]) -> Result<Option<BucketId>, Damage> {
    let mut fields = Fields::open(b'X', record)?;
    let mut bucket = None;
    while let Some((tag, bytes)) = fields.pull()? {
        match tag {
            1 => bucket = Some(BucketId(number(tag, bytes)?)),
            _ => unknown(tag)?,
        }
    }
    Ok(bucket)
}
