//! Buckets, objects, versions and parts of uploads, record by record, with every byte that they name.

use std::collections::HashMap;

use bytes::Bytes;
use karri_bulk::{BlobId, BulkError, BulkStore};
use karri_engine::buf::Buf;
use karri_meta::{Batch, MetaError, Scan};

use super::report::{Fate, Place};
use super::{KEEP_EVERY, Step, Worker};
use crate::core::open_inline;
use crate::crypt;
use crate::error::Result;
use crate::keys::{self, BucketId, DataId};
use crate::record::{self, Bucket, Data, Manifest, Object, Part};

/// Records looked at in one go.
const PAGE: usize = 64;
/// Bytes read at once.
const READ: u64 = 1 << 20;
/// How often it is seen how far a large blob is.
const SHOW_EVERY: u64 = 64 << 20;

/// A piece of data as a record names it.
struct Piece {
    data: Data,
    /// As stored: sealed data is longer than what it says.
    len: u64,
    part: Option<u16>,
}

impl Piece {
    fn new(data: Data, size: u64, salt: Option<[u8; 16]>, part: Option<u16>) -> Self {
        Self { data, len: if salt.is_some() { crypt::sealed_len(size) } else { size }, part }
    }
    fn name(&self) -> String {
        match self.data {
            Data::Empty => "no data".to_owned(),
            Data::Inline(id) => format!("small data {}", id.to_hex()),
            Data::Blob(id) => id.to_string(),
            Data::Manifest(id) => format!("manifest {}", id.to_hex()),
        }
    }
}

/// What is being looked at.
struct Subject {
    /// The records that say what there is.
    guards: Vec<(Bytes, Bytes)>,
    place: Place,
}

/// An open upload.
#[derive(Clone)]
struct Open {
    place: Place,
    record: (Bytes, Bytes),
}

/// Why a piece is not as it should be.
enum Wrong {
    Bad(String),
    /// The data is there, and no record `D` protects it from the reclaimer.
    Unnamed(BlobId),
}

impl<B: BulkStore> Worker<'_, B> {
    /// A page after the pass's position, of keys that begin with `kind`.
    pub(super) async fn page(&self, kind: u8, limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        let mut range = keys::all(kind);
        if self.pass.position.first() == Some(&kind) {
            range.start = keys::after(&self.pass.position);
        }
        Ok(self.core.meta.scan(Scan { range, limit, reverse: false }).await?)
    }

    /// Buckets, and the index of them by account.
    pub(super) async fn buckets(&mut self) -> Result<Step> {
        if self.pass.position.first() != Some(&b'B') {
            let page = self.page(b'A', PAGE).await?;
            for (key, raw) in &page {
                self.indexed(key, raw).await?;
            }
            match page.last() {
                Some((last, _)) if page.len() == PAGE => self.pass.position = last.clone(),
                _ => self.pass.position = Bytes::from_static(b"B"),
            }
            return Ok(Step::More);
        }
        let page = self.page(b'B', PAGE).await?;
        for (key, raw) in &page {
            let name = String::from_utf8_lossy(&key[1..]).into_owned();
            match Bucket::decode(raw) {
                Ok(bucket) => self.index(key, raw, &name, &bucket).await?,
                Err(e) => {
                    let place = Place { bucket: name, ..Place::default() };
                    self.note(place, "the bucket's record", e.to_string(), Fate::Left);
                }
            }
        }
        Ok(self.turn_page(&page, PAGE))
    }

    fn turn_page(&mut self, page: &[(Bytes, Bytes)], limit: usize) -> Step {
        match page.last() {
            Some((last, _)) if page.len() == limit => {
                self.pass.position = last.clone();
                Step::More
            }
            _ => Step::Done,
        }
    }

    /// An `A` record without its bucket goes.
    async fn indexed(&mut self, key: &Bytes, raw: &Bytes) -> Result<()> {
        let Some((account, name)) = key.get(1..).and_then(|k| k.split_at_checked(12)) else { return Ok(()) };
        let (account, name) = (String::from_utf8_lossy(account), String::from_utf8_lossy(name).into_owned());
        let bucket_key = keys::bucket(&name);
        let bucket_raw = self.core.meta.get(bucket_key.clone()).await?;
        let fits = match bucket_raw.as_ref().map(|raw| Bucket::decode(raw)) {
            None => false,
            Some(Ok(bucket)) => bucket.owner == account,
            // Nobody knows whose it is.
            Some(Err(_)) => true,
        };
        if fits {
            return Ok(());
        }
        let batch = Batch::new().check(key.clone(), Some(raw.clone())).check(bucket_key, bucket_raw).del(key.clone());
        let place = Place { bucket: name, ..Place::default() };
        self.mend(batch, place, "the index of buckets", format!("account {account} has no such bucket")).await
    }

    /// A bucket without its `A` record gets one.
    async fn index(&mut self, key: &Bytes, raw: &Bytes, name: &str, bucket: &Bucket) -> Result<()> {
        let index = keys::account_bucket(&bucket.owner, name);
        if self.core.meta.get(index.clone()).await?.is_some() {
            return Ok(());
        }
        let batch = Batch::new()
            .check(key.clone(), Some(raw.clone()))
            .check(index.clone(), None)
            .put(index, record::marker(b'A'));
        let place = Place { bucket: name.to_owned(), ..Place::default() };
        let why = format!("it was not among the buckets of account {}", bucket.owner);
        self.mend(batch, place, "the index of buckets", why).await
    }

    /// Commits what mends something, if it still is as it was seen.
    pub(super) async fn mend(&mut self, batch: Batch, place: Place, what: &str, why: String) -> Result<()> {
        match self.core.commit(batch).await {
            Ok(()) => self.note(place, what, why, Fate::Repaired),
            Err(MetaError::Conflict { .. }) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    /// Records of objects (`O`), older versions (`V`) or parts (`P`).
    pub(super) async fn records(&mut self, kind: u8) -> Result<Step> {
        let page = self.page(kind, PAGE).await?;
        let mut names = Names::default();
        let began = crate::front::now();
        for (key, raw) in &page {
            self.record(kind, key, raw, &mut names).await?;
            self.pass.position = key.clone();
            if crate::front::now() - began >= KEEP_EVERY {
                // Large ones: the place is kept before the page is through.
                return Ok(Step::More);
            }
        }
        Ok(self.turn_page(&page, PAGE))
    }

    async fn record(&mut self, kind: u8, key: &Bytes, raw: &Bytes, names: &mut Names) -> Result<()> {
        let mut subject = Subject { guards: vec![(key.clone(), raw.clone())], place: Place::default() };
        let pieces = if kind == b'P' {
            // Parts of closed uploads are about to go, and what they name may have gone.
            let Some(open) = self.upload_of(key, names).await? else { return Ok(()) };
            subject.place = open.place;
            subject.guards.push(open.record);
            match Part::decode(raw) {
                Ok(part) => vec![Piece::new(part.data, part.size, part.salt, Some(part.number))],
                Err(e) => return self.wrong(&subject, "the part's record", e.to_string()).await,
            }
        } else {
            subject.place = self.place_of(kind, key, names).await?;
            let object = match Object::decode(raw) {
                Ok(object) => object,
                Err(e) => return self.wrong(&subject, "the object's record", e.to_string()).await,
            };
            subject.place.version = object.version_text();
            match object.data {
                Data::Manifest(id) => {
                    let what = format!("manifest {}", id.to_hex());
                    let stored = self.core.meta.get(keys::manifest(id)).await?;
                    let Some(stored) = stored else { return self.wrong(&subject, &what, "it is missing".into()).await };
                    match Manifest::decode(&stored) {
                        Ok(manifest) => {
                            manifest.parts.iter().map(|p| Piece::new(p.data, p.size, p.salt, Some(p.number))).collect()
                        }
                        Err(e) => return self.wrong(&subject, &what, e.to_string()).await,
                    }
                }
                data => vec![Piece::new(data, object.size, object.salt, None)],
            }
        };
        self.pass.objects += 1;
        if subject.place.bucket.is_empty() {
            self.wrong(&subject, "the record", "no bucket has its number".into()).await?;
        }
        for piece in &pieces {
            match self.piece(piece).await? {
                Ok(()) => {}
                Err(Wrong::Bad(why)) => {
                    let why = piece.part.map_or(why.clone(), |n| format!("part {n}: {why}"));
                    self.wrong(&subject, &piece.name(), why).await?;
                }
                Err(Wrong::Unnamed(id)) => {
                    let mut batch = Batch::new().put(keys::blob(id), record::marker(b'D')).del(keys::garbage(id));
                    batch.checks.extend(subject.guards.iter().map(|(key, raw)| (key.clone(), Some(raw.clone()))));
                    let why = "it was not marked as used: the next start would have deleted it";
                    self.mend(batch, subject.place.clone(), &piece.name(), why.into()).await?;
                }
            }
        }
        Ok(())
    }

    /// Notes what is wrong with records that are still the same: what was replaced meanwhile is not wrong.
    async fn wrong(&mut self, subject: &Subject, what: &str, why: String) -> Result<()> {
        let now = self.core.meta.multi_get(subject.guards.iter().map(|(key, _)| key.clone()).collect()).await?;
        if subject.guards.iter().zip(now).all(|((_, raw), now)| now.as_ref() == Some(raw)) {
            self.note(subject.place.clone(), what, why, Fate::Left);
        }
        Ok(())
    }

    async fn piece(&mut self, piece: &Piece) -> Result<Result<(), Wrong>> {
        let length = |found: u64| format!("it has {found} bytes where its record says {}", piece.len);
        match piece.data {
            Data::Empty if piece.len == 0 => Ok(Ok(())),
            Data::Empty => Ok(Err(Wrong::Bad(length(0)))),
            Data::Manifest(_) => Ok(Err(Wrong::Bad("a part is no manifest".into()))),
            Data::Inline(id) => {
                let Some(stored) = self.core.meta.get(keys::inline(id)).await? else {
                    return Ok(Err(Wrong::Bad("it is missing".into())));
                };
                self.pass.bytes += stored.len() as u64;
                self.read(stored.len() as u64).await;
                Ok(match open_inline(&stored) {
                    Err(_) => Err(Wrong::Bad("it does not match its checksum".into())),
                    Ok(bytes) if bytes.len() as u64 != piece.len => Err(Wrong::Bad(length(bytes.len() as u64))),
                    Ok(_) => Ok(()),
                })
            }
            Data::Blob(id) => {
                let _pin = self.core.shared.pins.pin(id);
                let named = self.core.meta.multi_get(vec![keys::blob(id), keys::garbage(id)]).await?;
                match self.core.bulk.blob_len(id) {
                    None => return Ok(Err(Wrong::Bad("it is missing".into()))),
                    Some(len) if len != piece.len => return Ok(Err(Wrong::Bad(length(len)))),
                    Some(_) => {}
                }
                if let Err(why) = self.blob(id, piece.len).await {
                    return Ok(Err(Wrong::Bad(why)));
                }
                Ok(if named[0].is_none() || named[1].is_some() { Err(Wrong::Unnamed(id)) } else { Ok(()) })
            }
        }
    }

    /// Reads all of a blob; all that is wrong with it.
    async fn blob(&mut self, id: BlobId, len: u64) -> Result<(), String> {
        let (mut at, mut wrong, mut count) = (0, Vec::new(), 0u64);
        while at < len {
            let n = READ.min(len - at);
            let (outcome, _) = self.core.bulk.read_blob(id, at, Buf::for_read(n as usize)).await;
            match outcome {
                Ok(()) => {}
                Err(BulkError::NotFound { .. }) => return Err("it is missing".into()),
                Err(e) => {
                    count += 1;
                    if wrong.len() < 4 {
                        wrong.push(match e {
                            BulkError::Corrupt { why, .. } => why,
                            other => format!("bytes {at} to {}: {}", at + n, with_sources(&other)),
                        });
                    }
                }
            }
            at += n;
            self.pass.bytes += n;
            if at.is_multiple_of(SHOW_EVERY) {
                self.show();
            }
            self.read(n).await;
        }
        match count {
            0 => Ok(()),
            n if n > wrong.len() as u64 => Err(format!("{}; and {} more", wrong.join("; "), n - wrong.len() as u64)),
            _ => Err(wrong.join("; ")),
        }
    }

    async fn place_of(&self, kind: u8, key: &Bytes, names: &mut Names) -> Result<Place> {
        let Some(id) = key.get(1..9).and_then(|id| id.try_into().ok()).map(u64::from_be_bytes) else {
            return Ok(Place::default());
        };
        let name = match kind {
            b'O' => key.slice(keys::OBJECT_PREFIX..).to_vec(),
            _ => keys::version_parts(key).map(|(name, _)| name).unwrap_or_default(),
        };
        let bucket = names.bucket(self, BucketId(id)).await?;
        Ok(Place { bucket, key: String::from_utf8_lossy(&name).into_owned(), version: String::new() })
    }

    /// The open upload that a part belongs to; `None` for one that is closed.
    async fn upload_of(&self, key: &Bytes, names: &mut Names) -> Result<Option<Open>> {
        let Some(upload) = key.get(1..17).and_then(|id| id.try_into().ok()).map(DataId) else { return Ok(None) };
        if !names.uploads.contains_key(&upload) && !std::mem::replace(&mut names.uploads_read, true) {
            let mut found = Vec::new();
            self.core
                .each_pair(keys::all(b'U'), 500, |key, raw| {
                    found.extend(keys::upload_parts(key).map(|(name, id)| (id, name, key.clone(), raw.clone())));
                    Ok(())
                })
                .await?;
            for (id, name, key, raw) in found {
                let number = key.get(1..9).and_then(|n| n.try_into().ok()).map_or(0, u64::from_be_bytes);
                let bucket = names.bucket(self, BucketId(number)).await?;
                let key_text = String::from_utf8_lossy(&name).into_owned();
                let place = Place { bucket, key: key_text, version: format!("upload {}", id.to_hex()) };
                names.uploads.insert(id, Open { place, record: (key, raw) });
            }
        }
        Ok(names.uploads.get(&upload).cloned())
    }
}

/// An error and what lies below it.
fn with_sources(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut below = e.source();
    while let Some(e) = below {
        text += &format!(": {e}");
        below = e.source();
    }
    text
}

/// Names by numbers, for a page.
#[derive(Default)]
struct Names {
    buckets: HashMap<u64, String>,
    uploads: HashMap<DataId, Open>,
    uploads_read: bool,
}

impl Names {
    /// A bucket's name; empty where no bucket has this number.
    async fn bucket<B: BulkStore>(&mut self, worker: &Worker<'_, B>, id: BucketId) -> Result<String> {
        if !self.buckets.contains_key(&id.0) {
            worker
                .core
                .each_pair(keys::all(b'B'), 500, |key, raw| {
                    if let Ok(bucket) = Bucket::decode(raw) {
                        self.buckets.insert(bucket.id.0, String::from_utf8_lossy(&key[1..]).into_owned());
                    }
                    Ok(())
                })
                .await?;
            self.buckets.entry(id.0).or_default();
        }
        Ok(self.buckets[&id.0].clone())
    }
}
