//! What nothing refers to: data, manifests, parts and blobs that a bug, a lost record or an interrupted life left behind.
//!
//! Names are taken in windows of bounded size, and struck off as records refer to them, in the order in which commits
//! move data on (`O` to `V`, `P` to `M`). What is left is looked at once more while nothing moves back ([`super::quiet`]).

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use karri_bulk::{BlobId, BulkStore};
use karri_meta::{Batch, MetaError, Scan};

use super::Worker;
use super::quiet::Scope;
use super::report::{Fate, Place};
use crate::core::retire_blob;
use crate::error::Result;
use crate::keys::{self, DataId};
use crate::record::{self, Data, Manifest, Object, Part};

/// Names held at once: 24 bytes each and what a set adds.
const WINDOW: usize = 1_000_000;
/// Records looked at in one go.
const PAGE: usize = 500;
/// Small data looked at in one go: up to 64 KiB each, as older stores have them.
const PAGE_INLINE: usize = 64;
/// What the reclaimer has in hand is done after so long.
const SETTLE: Duration = Duration::from_secs(3);
/// How often a look is tried again that was disturbed.
const TRIES: usize = 5;

fn data_of(kind: u8, key: &[u8]) -> Option<Data> {
    let id = || Some(DataId(key.get(1..)?.try_into().ok()?));
    match kind {
        b'D' => keys::blob_id(key).map(Data::Blob),
        b'I' => id().map(Data::Inline),
        b'M' => id().map(Data::Manifest),
        _ => None,
    }
}

impl<B: BulkStore> Worker<'_, B> {
    /// All of it.
    pub(super) async fn space(&mut self) -> Result<()> {
        self.parts().await?;
        // Manifests first: what an unowned one names is unowned once it is gone.
        for kind in [b'M', b'D', b'I'] {
            self.unowned(kind).await?;
        }
        self.blobs().await
    }

    /// What waits to be deleted is begun with now.
    pub(super) async fn waiting(&mut self) -> Result<()> {
        let mut waiting = Vec::new();
        self.core
            .each_pair(keys::all(b'G'), PAGE, |key, _| {
                waiting.extend(keys::blob_id(key));
                Ok(())
            })
            .await?;
        for id in &waiting {
            self.freed(self.core.bulk.blob_len(*id).unwrap_or(0));
        }
        self.core.queue_leftovers().await
    }

    fn freed(&mut self, bytes: u64) {
        self.pass.freed += 1;
        self.pass.freed_bytes += bytes;
    }

    async fn unowned(&mut self, kind: u8) -> Result<()> {
        let mut range = keys::all(kind);
        loop {
            let mut window = HashSet::new();
            let limit = if kind == b'I' { PAGE_INLINE } else { PAGE };
            let mut more = true;
            while more && window.len() < WINDOW {
                let page = self.core.meta.scan(Scan { range: range.clone(), limit, reverse: false }).await?;
                more = page.len() == limit;
                window.extend(page.iter().filter_map(|(key, _)| data_of(kind, key)));
                self.read(page.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() as u64).await;
                if let Some((last, _)) = page.last() {
                    range.start = keys::after(last);
                }
            }
            if !window.is_empty() {
                self.strike(&mut window).await?;
                if !window.is_empty() && self.is_certain(&mut window).await? {
                    for data in window {
                        self.free(data).await?;
                    }
                }
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// Looks again, until nothing moved back meanwhile; false where that never was.
    async fn is_certain(&mut self, left: &mut HashSet<Data>) -> Result<bool> {
        for _ in 0..TRIES {
            let stamp = self.core.shared.quiet.stamp(Scope::Back, self.core.now());
            self.strike(left).await?;
            if left.is_empty() {
                return Ok(false);
            }
            if stamp.is_some_and(|stamp| self.core.shared.quiet.is_since(stamp)) {
                return Ok(true);
            }
            self.read(1 << 20).await;
        }
        self.pass.undecided += left.len() as u64;
        Ok(false)
    }

    /// Takes out of the set what records refer to.
    async fn strike(&mut self, names: &mut HashSet<Data>) -> Result<()> {
        for kind in [b'O', b'V', b'P', b'M'] {
            let mut range = keys::all(kind);
            loop {
                let page = self.core.meta.scan(Scan { range: range.clone(), limit: PAGE, reverse: false }).await?;
                for (_, raw) in &page {
                    match kind {
                        b'O' | b'V' => match Object::decode(raw) {
                            Ok(object) => {
                                names.remove(&object.data);
                            }
                            // Nobody knows what it names.
                            Err(_) => return self.doubt(names),
                        },
                        b'P' => match Part::decode(raw) {
                            Ok(part) => {
                                names.remove(&part.data);
                            }
                            Err(_) => return self.doubt(names),
                        },
                        _ => match Manifest::decode(raw) {
                            Ok(manifest) => {
                                for part in &manifest.parts {
                                    names.remove(&part.data);
                                }
                            }
                            Err(_) => return self.doubt(names),
                        },
                    }
                }
                if names.is_empty() {
                    return Ok(());
                }
                self.read(page.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() as u64).await;
                match page.last() {
                    Some((last, _)) if page.len() == PAGE => range.start = keys::after(last),
                    _ => break,
                }
            }
        }
        Ok(())
    }

    /// With a record that cannot be read, nothing is certain: all is kept.
    fn doubt(&mut self, names: &mut HashSet<Data>) -> Result<()> {
        names.clear();
        self.pass.undecided += 1;
        Ok(())
    }

    /// Gives up what nothing refers to.
    async fn free(&mut self, data: Data) -> Result<()> {
        let (key, name) = match data {
            Data::Blob(id) => (keys::blob(id), id.to_string()),
            Data::Inline(id) => (keys::inline(id), format!("small data {}", id.to_hex())),
            Data::Manifest(id) => (keys::manifest(id), format!("manifest {}", id.to_hex())),
            Data::Empty => return Ok(()),
        };
        let Some(raw) = self.core.meta.get(key.clone()).await? else { return Ok(()) };
        let mut batch = Batch::new().check(key.clone(), Some(raw.clone()));
        let bytes = match data {
            Data::Blob(id) => {
                retire_blob(&mut batch, id);
                self.core.bulk.blob_len(id).unwrap_or(0)
            }
            _ => {
                batch.dels.push(key);
                raw.len() as u64
            }
        };
        match self.core.commit(batch).await {
            Ok(()) => {}
            Err(MetaError::Conflict { .. }) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
        if let Data::Blob(id) = data {
            self.core.reclaim.push([id]);
        }
        self.freed(bytes);
        self.note(Place::default(), name, "nothing refers to it", Fate::Repaired);
        Ok(())
    }

    /// Parts of uploads that are neither open nor being cleaned away are cleaned away.
    async fn parts(&mut self) -> Result<()> {
        let mut range = keys::all(b'P');
        loop {
            let mut window: HashSet<DataId> = HashSet::new();
            let mut more = true;
            while more && window.len() < WINDOW {
                let page = self.core.meta.scan(Scan { range: range.clone(), limit: 1, reverse: false }).await?;
                let upload = page.first().and_then(|(key, _)| Some(DataId(key.get(1..17)?.try_into().ok()?)));
                match upload {
                    Some(upload) => {
                        window.insert(upload);
                        range.start = keys::parts_of(upload).end;
                    }
                    None => more = false,
                }
            }
            // An upload goes from `U` to `X`, never back.
            for kind in [b'U', b'X'] {
                self.core
                    .each_pair(keys::all(kind), PAGE, |key, _| {
                        let id = if kind == b'U' {
                            keys::upload_parts(key).map(|(_, id)| id)
                        } else {
                            keys::cleanup_id(key)
                        };
                        if let Some(id) = id {
                            window.remove(&id);
                        }
                        Ok(())
                    })
                    .await?;
            }
            for upload in window {
                self.clean(upload).await?;
            }
            if !more {
                return Ok(());
            }
        }
    }

    async fn clean(&mut self, upload: DataId) -> Result<()> {
        let scan = Scan { range: keys::parts_of(upload), limit: 1, reverse: false };
        // Cleaned away meanwhile.
        let Some((key, raw)) = self.core.meta.scan(scan).await?.pop() else { return Ok(()) };
        let cleanup = keys::cleanup(upload);
        let batch = Batch::new().check(key, Some(raw)).check(cleanup.clone(), None).put(cleanup, record::marker(b'X'));
        let what = format!("parts of upload {}", upload.to_hex());
        self.mend(batch, Place::default(), &what, "no upload has them".into()).await?;
        self.core.reclaim.push_cleanup(upload);
        Ok(())
    }

    /// Blobs that no record knows: of uploads whose end nobody saw.
    async fn blobs(&mut self) -> Result<()> {
        let mut after = BlobId(0);
        loop {
            let page = self.core.bulk.list(after, PAGE);
            let Some(last) = page.last() else { return Ok(()) };
            after = *last;
            let strays = self.strays(page).await?;
            if !strays.is_empty() {
                // Those of requests that have just failed are being deleted already.
                karri_engine::sleep(SETTLE).await;
                for id in self.strays(strays).await? {
                    self.freed(self.core.bulk.blob_len(id).unwrap_or(0));
                    self.note(Place::default(), id.to_string(), "no record knows it", Fate::Repaired);
                    self.core.reclaim.push([id]);
                }
            }
            self.read(PAGE as u64 * 16).await;
        }
    }

    /// Those that are there, that no record knows and that no request holds.
    async fn strays(&self, blobs: Vec<BlobId>) -> Result<Vec<BlobId>> {
        // Asked before the records are read: whoever is done by then has named it, or never will.
        let idle: Vec<BlobId> = blobs.into_iter().filter(|id| !self.core.shared.unnamed.is_pinned(*id)).collect();
        let names: Vec<Bytes> = idle.iter().flat_map(|id| [keys::blob(*id), keys::garbage(*id)]).collect();
        let found = self.core.meta.multi_get(names).await?;
        let strays = idle
            .into_iter()
            .zip(found.chunks(2))
            .filter(|(id, named)| named.iter().all(Option::is_none) && self.core.bulk.blob_len(*id).is_some());
        Ok(strays.map(|(id, _)| id).collect())
    }
}
