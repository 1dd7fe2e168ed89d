//! What one core serves with: the two stores, the shared settings, and the few steps that all operations are made of:
//! find a bucket and who may use it, read an object's record, publish a change in one checked commit, retire old data.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use karri_base::aws::keys::{Key, KeyRing};
use karri_base::clock::{Clock, UnixMicros};
use karri_bulk::{BlobId, BulkError, BulkStore};
use karri_meta::{Batch, MetaError, MetaStore, Scan};

use crate::access::Leave;
use crate::access::acl::Acl;
use crate::accesslog::Logs;
use crate::audit::Audit;
use crate::buckets::{Buckets, Known};
use crate::change::Change;
use crate::config::lifecycle;
use crate::config::simple::Quota;
use crate::crypt::Secret;
use crate::error::{Error, Kind, Result};
use crate::hot::Hot;
use crate::keys::{self, BucketId, DataId};
use crate::notify::Event;
use crate::operator::Operator;
use crate::record::{self, Bucket, Manifest, Object};
use crate::replicate::{Queue as ReplicationQueue, What};
use crate::scrub::Scrub;
use crate::scrub::quiet::Quiet;
use crate::slow::Slow;
use crate::usage::Usages;
use crate::vault::Vault;
use crate::versions::Spot;

/// Lost races after which an operation gives up. Each means that somebody else got something done.
pub const RETRIES: usize = 200;

/// What all cores of a Walrus share.
pub struct Shared {
    /// Wall-clock time.
    pub clock: Arc<dyn Clock>,
    /// The region that answers are given for.
    pub region: String,
    /// Continuation tokens are signed with it.
    pub token_key: [u8; 32],
    /// Data that is read again and again.
    pub hot: Hot,
    /// Blobs that are being read.
    pub pins: Pins,
    /// Blobs that are sealed, or are about to be, and that a commit may still name.
    pub unnamed: Pins,
    /// Commits under way, for those who look through the store meanwhile.
    pub quiet: Quiet,
    /// Passes over the store.
    pub scrub: Scrub,
    /// Slow requests.
    pub slow: Slow,
    /// Where each request is told, if the operator says so.
    pub audit: OnceLock<Audit>,
    /// When this process opened the store.
    pub opened: UnixMicros,
    /// Counters.
    pub metrics: crate::metrics::Metrics,
    /// The key service.
    pub vault: Vault,
    /// Bucket records in memory.
    pub buckets: Buckets,
    /// What is in the buckets.
    pub usages: Usages,
    /// Lines of access logs.
    pub logs: Logs,
    /// What waits to be replicated.
    pub replication: ReplicationQueue,
    /// Sends requests to other servers; nothing where there are none.
    pub outbound: OnceLock<crate::outbound::Outbound>,
    /// What the operator set; nothing where nobody set it at the start.
    pub operator: OnceLock<Operator>,
    /// Who exists; set by the first front.
    pub people: OnceLock<KeyRing>,
}

impl Shared {
    /// Reads, and at first start makes, the store's own settings.
    pub async fn open(
        meta: &Arc<dyn MetaStore>,
        clock: Arc<dyn Clock>,
        region: String,
        metrics: crate::metrics::Metrics,
        master: Secret,
    ) -> Result<Arc<Self>, MetaError> {
        let key = keys::setting("token-key");
        loop {
            if let Some(value) = meta.get(key.clone()).await?
                && let Ok(token_key) = value[..].try_into()
            {
                return Ok(Arc::new(Self {
                    opened: clock.now(),
                    clock,
                    region,
                    token_key,
                    hot: Hot::default(),
                    pins: Pins::default(),
                    unnamed: Pins::default(),
                    quiet: Quiet::default(),
                    scrub: Scrub::default(),
                    slow: Slow::default(),
                    audit: OnceLock::new(),
                    usages: metrics.usages.clone(),
                    logs: Logs::default(),
                    replication: ReplicationQueue::default(),
                    outbound: OnceLock::new(),
                    operator: OnceLock::new(),
                    metrics,
                    vault: Vault::new(master),
                    buckets: Buckets::default(),
                    people: OnceLock::new(),
                }));
            }
            let fresh: [u8; 32] = rand::random();
            match meta.commit(Batch::new().check(key.clone(), None).put(key.clone(), fresh.to_vec())).await {
                Ok(()) | Err(MetaError::Conflict { .. }) => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl Shared {
    /// What the operator allows an account.
    pub fn quota_of(&self, account: &str) -> Option<Quota> {
        self.operator.get()?.quotas.get(account).copied()
    }
}

/// One core's Walrus.
pub struct Core<B: BulkStore> {
    /// Records.
    pub meta: Arc<dyn MetaStore>,
    /// Large data.
    pub bulk: B,
    /// What all cores share.
    pub shared: Arc<Shared>,
    /// What the reclaimer is to do.
    pub reclaim: crate::reclaim::Queue,
    /// What is to be hashed.
    pub hashing: crate::hashing::Hashing,
    /// Large bodies that come in.
    pub intake: crate::body::Intake,
}

/// A core's Walrus as operations hold it.
pub type CoreRef<B> = Rc<Core<B>>;

/// Who asks, and what the request was let in for (see [`crate::access`]).
#[derive(Debug, Clone)]
pub struct Caller {
    /// The key that signed the request; `None` for nobody known.
    pub key: Option<Arc<Key>>,
    /// The request as it was judged.
    pub leave: Arc<Leave>,
}

impl Caller {
    /// The caller's account; empty for nobody known.
    pub fn account(&self) -> &str {
        self.key.as_ref().map_or("", |key| key.account.as_str())
    }
    /// The caller's ARN, or S3's word for nobody.
    pub fn arn(&self) -> &str {
        self.key.as_ref().map_or("anonymous", |key| &key.arn)
    }
    /// Whose an object is that this request puts, by the bucket's ownership controls.
    pub fn new_owner(&self) -> &str {
        self.leave.new_owner.as_deref().unwrap_or_else(|| self.account())
    }
    /// Whose a delete marker is that this request makes: nobody's are the bucket owner's.
    pub fn maker<'a>(&'a self, bucket: &'a Bucket) -> &'a str {
        self.key.as_ref().map_or(&bucket.owner, |key| key.account.as_str())
    }
    /// The list of an object that this request puts.
    pub fn new_acl(&self) -> Option<Acl> {
        self.leave.new_acl.clone()
    }
    /// True for karri's own roles, which may read any bucket (images).
    pub fn is_system(&self) -> bool {
        self.key.as_ref().is_some_and(|key| is_system(key))
    }
}

/// True for the key of whoever runs this Walrus: karri's own roles, and the root of `walrus serve`'s own account.
pub fn is_operator(key: &Key) -> bool {
    is_system(key) || key.arn == "arn:aws:iam::000000000000:root"
}

/// True for the key of karri's own roles.
pub fn is_system(key: &Key) -> bool {
    key.arn == format!("arn:aws:iam::{}:role/karri-system", key.account)
}

/// What a caller wants of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To look.
    Read,
    /// To change.
    Write,
}

/// Who changes a version, and how that is told.
#[derive(Debug, Clone, Copy)]
pub struct Teller<'a> {
    /// Who.
    pub caller: &'a Caller,
    /// The bucket's name.
    pub bucket: &'a str,
    /// The event's; empty where S3 has none for it.
    pub name: &'a str,
}

/// A record with the bytes it was read from, which a commit checks.
#[derive(Debug, Clone)]
pub struct Seen<T> {
    /// What it says.
    pub value: T,
    /// As stored.
    pub raw: Bytes,
}

impl<B: BulkStore> Core<B> {
    /// A core's Walrus.
    pub fn new(meta: Arc<dyn MetaStore>, bulk: B, shared: Arc<Shared>) -> CoreRef<B> {
        Rc::new(Self {
            meta,
            bulk,
            shared,
            reclaim: Default::default(),
            hashing: Default::default(),
            intake: Default::default(),
        })
    }

    /// Now.
    pub fn now(&self) -> UnixMicros {
        self.shared.clock.now()
    }

    /// A fresh id.
    pub fn fresh_id(&self) -> DataId {
        DataId::new(self.now(), rand::random())
    }

    /// The bucket, for a request that was let in for it.
    pub async fn bucket(
        &self,
        caller: &Caller,
        name: &str,
        expected_owner: Option<&str>,
        access: Access,
    ) -> Result<Seen<Bucket>> {
        let known = self.known(name).await?;
        let bucket = &known.seen;
        // The second lock on the door: whoever asks for a bucket that nobody judged gets nothing.
        let judged = caller.leave.buckets.iter().any(|b| b == name);
        let strange = access == Access::Write && caller.is_system() && caller.account() != bucket.value.owner;
        if !judged || strange || expected_owner.is_some_and(|e| e != bucket.value.owner) {
            return Err(Kind::AccessDenied.into());
        }
        Ok(bucket.clone())
    }

    /// A bucket's record and settings, from memory where they are there.
    pub async fn known(&self, name: &str) -> Result<Arc<Known>> {
        if let Some(known) = self.shared.buckets.get(name) {
            return Ok(known);
        }
        let ticket = self.shared.buckets.ticket();
        let raw = self.meta.get(keys::bucket(name)).await?.ok_or(Kind::NoSuchBucket)?;
        let known = Arc::new(Known::of(Seen { value: Bucket::decode(&raw)?, raw })?);
        self.shared.buckets.put(ticket, name, &known);
        Ok(known)
    }

    /// The bucket for a commit that puts something into it: as [`bucket`](Self::bucket), with a DeleteBucket's mark
    /// taken off first.
    pub async fn bucket_to_fill(&self, caller: &Caller, name: &str, owner: Option<&str>) -> Result<Seen<Bucket>> {
        for _ in 0..RETRIES {
            let seen = self.bucket(caller, name, owner, Access::Write).await?;
            if !seen.value.deleting {
                return Ok(seen);
            }
            self.mark_bucket(name, &seen, false).await?;
        }
        Err(Kind::SlowDown.into())
    }

    /// Sets or clears a bucket's mark; `None` when somebody else changed the bucket meanwhile.
    pub async fn mark_bucket(&self, name: &str, seen: &Seen<Bucket>, deleting: bool) -> Result<Option<Seen<Bucket>>> {
        let value = Bucket { deleting, fence: seen.value.fence + 1, ..seen.value.clone() };
        let raw = value.encode();
        let key = keys::bucket(name);
        let batch = Batch::new().check(key.clone(), Some(seen.raw.clone())).put(key, raw.clone());
        match self.commit(batch).await {
            Ok(()) => Ok(Some(Seen { value, raw })),
            Err(MetaError::Conflict { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// `x-amz-expiration` of a current version: when a lifecycle rule will delete it.
    pub async fn expiration(&self, bucket: &str, key: &str, object: &Object) -> Option<String> {
        let known = self.known(bucket).await.ok()?;
        let subject = lifecycle::Subject { key, size: object.size, tags: &object.tags.0 };
        lifecycle::expiry(&known.settings.lifecycle, subject, object.modified)
    }

    /// Changes a bucket's record in one commit; answers it as it is then.
    pub async fn change_bucket(
        &self,
        caller: &Caller,
        name: &str,
        owner: Option<&str>,
        change: impl Fn(&mut Bucket) -> Result<()>,
    ) -> Result<Bucket> {
        for _ in 0..RETRIES {
            let seen = self.bucket(caller, name, owner, Access::Write).await?;
            let mut value = Bucket { fence: seen.value.fence + 1, ..seen.value };
            change(&mut value)?;
            let key = keys::bucket(name);
            let batch = Batch::new().check(key.clone(), Some(seen.raw)).put(key, value.encode());
            match self.commit(batch).await {
                Ok(()) => return Ok(value),
                Err(MetaError::Conflict { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(Kind::SlowDown.into())
    }

    /// Changes a version's record, not its data, in one commit; answers it as it is then.
    pub async fn change_version(
        &self,
        bucket: BucketId,
        key: &str,
        which: crate::versions::Which,
        teller: Teller<'_>,
        change: impl Fn(&mut Object) -> Result<()>,
    ) -> Result<Object> {
        for _ in 0..RETRIES {
            let at = self.version_to_read(bucket, key, which).await?;
            let mut object = at.seen.value;
            change(&mut object)?;
            let mut all = Change::from(Batch::new().check(at.key.clone(), Some(at.seen.raw)));
            let Teller { caller, bucket: bucket_name, name } = teller;
            if object.replication.is_some() {
                let known = self.known(bucket_name).await?;
                let spot = Spot::of(caller, bucket_name, known.bucket(), key);
                self.queue_replication(&mut all, spot, &mut object, What::Settings).await?;
            }
            all.batch.puts.push((at.key, object.encode()));
            self.tell(&mut all, caller, bucket_name, Event { name, key, object: &object }).await?;
            match self.commit(all.batch).await {
                Ok(()) => {
                    all.telling.happened();
                    self.replication_queued(all.queued);
                    return Ok(object);
                }
                Err(MetaError::Conflict { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(Kind::SlowDown.into())
    }

    /// An object's record: its current version, which may be a delete marker.
    pub async fn object(&self, bucket: BucketId, key: &str) -> Result<Option<Seen<Object>>> {
        let Some(raw) = self.meta.get(keys::object(bucket, key.as_bytes())).await? else { return Ok(None) };
        Ok(Some(Seen { value: Object::decode(&raw)?, raw }))
    }

    /// The bytes under `I`, checked; `None` when they are gone (the object was replaced).
    pub async fn inline(&self, id: DataId) -> Result<Option<Bytes>> {
        let Some(stored) = self.meta.get(keys::inline(id)).await? else { return Ok(None) };
        let opened = open_inline(&stored);
        opened.map(Some).map_err(|e| {
            let (what, why) = (format!("small data {}", id.to_hex()), "it does not match its checksum".to_owned());
            e.caused(BulkError::Corrupt { what, why })
        })
    }

    /// A manifest; `None` when it is gone.
    pub async fn manifest(&self, id: DataId) -> Result<Option<Manifest>> {
        let Some(raw) = self.meta.get(keys::manifest(id)).await? else { return Ok(None) };
        Ok(Some(Manifest::decode(&raw)?))
    }

    /// Commits a batch that may queue work for the reclaimer.
    pub async fn commit(&self, batch: Batch) -> Result<(), MetaError> {
        self.commit_and(batch, |_| {}).await
    }

    /// As [`commit`](Self::commit); what it came to is `noted` before the commit is over for those who look for quiet:
    /// on another core they would find what it did in the store, and not in the notes.
    pub async fn commit_and(&self, batch: Batch, noted: impl FnOnce(&Result<(), MetaError>)) -> Result<(), MetaError> {
        let change = self.shared.buckets.change(&batch);
        let turn = self.shared.quiet.begin(&batch, self.now());
        let outcome = self.reclaim.watch(self.meta.commit(batch)).await;
        noted(&outcome);
        turn.end(&outcome);
        if change.done(&outcome) {
            self.shared.usages.bucket_changed();
        }
        outcome
    }

    /// All pairs of a range, in pages, as long as `each` says so.
    pub async fn each_pair(
        &self,
        range: std::ops::Range<Bytes>,
        page: usize,
        mut each: impl FnMut(&Bytes, &Bytes) -> Result<()>,
    ) -> Result<()> {
        let mut range = range;
        loop {
            let found = self.meta.scan(Scan { range: range.clone(), limit: page, reverse: false }).await?;
            for (key, value) in &found {
                each(key, value)?;
            }
            match found.last() {
                Some((last, _)) if found.len() == page => range.start = keys::after(last),
                _ => return Ok(()),
            }
        }
    }
}

/// Moves a blob from `D` to `G`.
pub fn retire_blob(batch: &mut Batch, id: BlobId) {
    batch.dels.push(keys::blob(id));
    batch.puts.push((keys::garbage(id), record::marker(b'G')));
}

/// `I`'s value for these bytes: CRC32C, then the bytes.
pub fn seal_inline(pieces: &[Bytes]) -> Bytes {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    let mut out = BytesMut::with_capacity(4 + pieces.iter().map(Bytes::len).sum::<usize>());
    out.put_u32_le(0);
    for piece in pieces {
        digest.update(piece);
        out.put_slice(piece);
    }
    out[..4].copy_from_slice(&(digest.finalize() as u32).to_le_bytes());
    out.freeze()
}

/// The bytes in `I`'s value.
pub fn open_inline(stored: &Bytes) -> Result<Bytes> {
    let damaged = || Error::from(Kind::DataDamaged);
    if stored.len() < 4 {
        return Err(damaged());
    }
    let bytes = stored.slice(4..);
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes) as u32;
    if crc.to_le_bytes() == stored[..4] { Ok(bytes) } else { Err(damaged()) }
}

/// Blobs that GETs of this process are reading: the reclaimer lets them be until the last reader is done.
#[derive(Default, Clone)]
pub struct Pins(Arc<Mutex<HashMap<BlobId, usize>>>);

impl Pins {
    /// Pins a blob until the pin is dropped.
    pub fn pin(&self, id: BlobId) -> Pin {
        *self.lock().entry(id).or_default() += 1;
        Pin { pins: self.clone(), id }
    }
    /// True while somebody reads it.
    pub fn is_pinned(&self, id: BlobId) -> bool {
        self.lock().contains_key(&id)
    }
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<BlobId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a blob from being reclaimed.
pub struct Pin {
    pins: Pins,
    id: BlobId,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.lock();
        if let Some(count) = pins.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.id);
            }
        }
    }
}

/// A sealed blob that no record names yet. Dropped, it is handed to the reclaimer, unless a commit that names it is, or
/// may be, under way: then the sweep at the next start decides.
pub struct Unnamed<B: BulkStore> {
    core: CoreRef<B>,
    id: RefCell<Option<BlobId>>,
    /// Keeps those off who look for blobs that no record knows.
    pin: RefCell<Option<Pin>>,
}

impl<B: BulkStore> Unnamed<B> {
    /// A blob just sealed, with its pin among those that have no name, taken before.
    pub fn new(core: &CoreRef<B>, id: BlobId, pin: Pin) -> Self {
        Self { core: core.clone(), id: RefCell::new(Some(id)), pin: RefCell::new(Some(pin)) }
    }
    /// The blob.
    pub fn id(&self) -> Option<BlobId> {
        *self.id.borrow()
    }
    /// A commit that names it begins, or has happened.
    pub fn take(&self) -> Option<BlobId> {
        self.id.borrow_mut().take()
    }
    /// The commit did certainly not happen.
    pub fn give_back(&self, id: Option<BlobId>) {
        *self.id.borrow_mut() = id;
    }
    /// The commit did certainly happen.
    pub fn named(&self) {
        self.pin.borrow_mut().take();
    }
}

impl<B: BulkStore> Drop for Unnamed<B> {
    fn drop(&mut self) {
        if let Some(id) = self.take() {
            self.core.reclaim.push([id]);
        } else {
            // Named, or nobody knows: then only the next start may say that it has no name.
            std::mem::forget(self.pin.borrow_mut().take());
        }
    }
}
