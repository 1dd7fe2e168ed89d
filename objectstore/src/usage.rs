//! How much is in a bucket: objects and bytes, counted by the very commits that change them, and held to quotas.
//!
//! ```text
//! N bucket slot   what the commits that had this slot added up to; a bucket's usage is the sum of its slots
//! ```
//!
//! A commit takes a slot that no other one has at the moment, checks it as it is known, and puts it anew. So commits do not
//! wait for each other, a crash loses and doubles nothing, and nothing is scanned but the slots of a bucket (as many as it
//! had commits at once) when it is first used. A slot whose commit was cut off is read again before its next use.
//!
//! Objects are versions with data, current and older; bytes are theirs and those of the parts of open uploads.

use std::collections::HashMap;
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use karri_bulk::BulkStore;
use karri_meta::{Batch, MetaError, Scan};

use crate::config::Doc;
use crate::config::simple::Quota;
use crate::core::Core;
use crate::error::{Error, Kind, Result};
use crate::keys::{self, BucketId};
use crate::record::codec::{Damage, Fields, Writer, number, unknown};
use crate::record::{Bucket, Object, Versioning};

/// Slots read in one go.
const PAGE: usize = 500;

/// What is in a bucket, or a change of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Versions with data.
    pub objects: i64,
    /// Their bytes, and those of open uploads' parts.
    pub bytes: i64,
}

impl Amount {
    /// So many bytes of no object.
    pub fn bytes(bytes: u64) -> Self {
        Self { objects: 0, bytes: bytes as i64 }
    }
    /// A version; a delete marker is nothing.
    pub fn of(object: &Object) -> Self {
        if object.marker { Self::default() } else { Self { objects: 1, bytes: object.size as i64 } }
    }
    /// As a slot's record.
    pub fn encode(self) -> Bytes {
        let mut w = Writer::new(b'N');
        w.number(1, self.objects as u64);
        w.number(2, self.bytes as u64);
        w.finish()
    }
    /// From a slot's record.
    ///
    /// # Errors
    /// Damage.
    pub fn decode(record: &[u8]) -> Result<Self, Damage> {
        let mut fields = Fields::open(b'N', record)?;
        let mut amount = Self::default();
        while let Some((tag, bytes)) = fields.pull()? {
            match tag {
                1 => amount.objects = number(tag, bytes)? as i64,
                2 => amount.bytes = number(tag, bytes)? as i64,
                _ => unknown(tag)?,
            }
        }
        Ok(amount)
    }
    fn grows(self) -> bool {
        self.objects > 0 || self.bytes > 0
    }
    /// The part of it that adds something.
    fn growth(self) -> Self {
        Self { objects: self.objects.max(0), bytes: self.bytes.max(0) }
    }
    /// True where a change that leads to this total may happen under a quota: what does not grow always may.
    fn allows(self, total: Self, quota: Quota) -> bool {
        let within = |change: i64, total: i64, max: Option<u64>| {
            change <= 0 || max.is_none_or(|max| u64::try_from(total).unwrap_or(0) <= max)
        };
        within(self.objects, total.objects, quota.objects) && within(self.bytes, total.bytes, quota.bytes)
    }
}

impl Add for Amount {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { objects: self.objects.saturating_add(other.objects), bytes: self.bytes.saturating_add(other.bytes) }
    }
}
impl Neg for Amount {
    type Output = Self;
    fn neg(self) -> Self {
        Self { objects: self.objects.saturating_neg(), bytes: self.bytes.saturating_neg() }
    }
}
impl Sub for Amount {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self + -other
    }
}
impl AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}
impl SubAssign for Amount {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

/// A bucket and what is in it.
#[derive(Debug, Clone)]
pub struct Used {
    /// The bucket's name.
    pub name: String,
    /// What is in it.
    pub used: Amount,
    /// What may be in it.
    pub quota: Quota,
}

/// The usage of all buckets that were used since the start. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Usages(Arc<Mutex<Books>>);

#[derive(Debug, Default)]
struct Books {
    meters: HashMap<BucketId, Arc<Meter>>,
    /// Which buckets an account with a quota has.
    accounts: HashMap<String, Arc<[BucketId]>>,
    /// Counts the commits that made or deleted buckets.
    changes: u64,
}

impl Usages {
    fn lock(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// A commit ended that may have made or deleted buckets.
    pub fn bucket_changed(&self) {
        let mut books = self.lock();
        books.changes += 1;
        books.accounts.clear();
    }
    /// A bucket is gone.
    pub fn forget(&self, bucket: BucketId) {
        self.lock().meters.remove(&bucket);
    }
}

/// One bucket's usage.
#[derive(Debug, Default)]
pub struct Meter(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    slots: Vec<Slot>,
    free: Vec<u32>,
    total: Amount,
    /// What commits under way may add.
    pending: Amount,
}

#[derive(Debug, Clone, Default)]
struct Slot {
    value: Amount,
    raw: Option<Bytes>,
    /// True where the record may be another one than is known here.
    stale: bool,
}

impl Meter {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// What is in the bucket.
    pub fn total(&self) -> Amount {
        self.lock().total
    }
    /// What may be in it when all that is under way has happened.
    pub fn expected(&self) -> Amount {
        let inner = self.lock();
        inner.total + inner.pending
    }
    /// A slot that nobody has and that may be another than is known here.
    fn doubted(self: &Arc<Self>) -> Option<Turn> {
        let mut inner = self.lock();
        let at = inner.free.iter().position(|index| inner.slots[*index as usize].stale)?;
        let index = inner.free.swap_remove(at);
        let slot = inner.slots[index as usize].clone();
        Some(Turn { meter: self.clone(), index, slot, change: Amount::default(), begun: false })
    }
    /// Begins a commit that changes so much.
    fn begin(self: &Arc<Self>, change: Amount) -> Turn {
        let mut inner = self.lock();
        let index = inner.free.pop().unwrap_or_else(|| {
            inner.slots.push(Slot::default());
            inner.slots.len() as u32 - 1
        });
        inner.pending += change.growth();
        let slot = inner.slots[index as usize].clone();
        Turn { meter: self.clone(), index, slot, change, begun: false }
    }
}

/// A commit under way, with a slot of its own.
struct Turn {
    meter: Arc<Meter>,
    index: u32,
    slot: Slot,
    change: Amount,
    /// The commit may have happened.
    begun: bool,
}

impl Turn {
    /// The slot's record is this one.
    fn refresh(&mut self, raw: Option<Bytes>) -> Result<(), Damage> {
        let value = raw.as_ref().map(|raw| Amount::decode(raw)).transpose()?.unwrap_or_default();
        let mut inner = self.meter.lock();
        inner.total += value - self.slot.value;
        self.slot = Slot { value, raw, stale: false };
        inner.slots[self.index as usize] = self.slot.clone();
        Ok(())
    }
    /// Adds to a batch what counts it.
    fn count(&mut self, bucket: BucketId, batch: &mut Batch) -> Slot {
        let key = keys::usage(bucket, self.index);
        let value = self.slot.value + self.change;
        let raw = value.encode();
        batch.checks.push((key.clone(), self.slot.raw.clone()));
        batch.puts.push((key, raw.clone()));
        self.begun = true;
        Slot { value, raw: Some(raw), stale: false }
    }
    /// The commit ended so.
    fn end(mut self, outcome: &Result<(), MetaError>, bucket: BucketId, next: Slot) {
        match outcome {
            Ok(()) => self.slot = next,
            Err(MetaError::Conflict { key }) => self.slot.stale = *key == keys::usage(bucket, self.index),
            Err(MetaError::NoSpace { .. }) => {}
            // The drop below doubts it.
            Err(MetaError::Failed { .. }) => return,
        }
        self.begun = false;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.begun {
            // Nobody knows whether it happened.
            self.slot.stale = true;
        }
        let mut inner = self.meter.lock();
        inner.pending -= self.change.growth();
        let before = std::mem::replace(&mut inner.slots[self.index as usize], self.slot.clone());
        inner.total += self.slot.value - before.value;
        inner.free.push(self.index);
    }
}

impl<B: BulkStore> Core<B> {
    /// A bucket's meter, read from its slots at first use.
    pub async fn meter(&self, bucket: BucketId) -> Result<Arc<Meter>> {
        if let Some(meter) = self.shared.usages.lock().meters.get(&bucket) {
            return Ok(meter.clone());
        }
        let mut inner = Inner::default();
        self.each_pair(keys::usage_of(bucket), PAGE, |key, raw| {
            let value = Amount::decode(raw)?;
            let Some(index) = keys::usage_slot(key) else { return Ok(()) };
            // Slots are taken in order, so there are no gaps but those of commits that were cut off.
            while inner.slots.len() <= index as usize {
                inner.slots.push(Slot::default());
            }
            inner.slots[index as usize] = Slot { value, raw: Some(raw.clone()), stale: false };
            inner.total += value;
            Ok(())
        })
        .await?;
        inner.free = (0..inner.slots.len() as u32).rev().collect();
        // Whoever was first: nothing is counted without a meter, so what both read was the same.
        Ok(self.shared.usages.lock().meters.entry(bucket).or_insert_with(|| Arc::new(Meter(Mutex::new(inner)))).clone())
    }

    /// Commits a batch that changes so much of what is in a bucket.
    ///
    /// # Errors
    /// `QuotaExceeded`; the inner error is the commit's.
    pub async fn commit_counted(
        &self,
        bucket: &Bucket,
        change: Amount,
        mut batch: Batch,
    ) -> Result<Result<(), MetaError>> {
        if change == Amount::default() {
            return Ok(self.commit(batch).await);
        }
        let meter = self.meter(bucket.id).await?;
        let turn = meter.begin(change);
        // The turn is pending already: of two at once that do not both fit, at most one passes.
        self.within_quotas(bucket, &meter, change, Amount::default()).await?;
        self.commit_in(turn, bucket.id, &mut batch).await
    }

    /// Commits a batch that gives back so much of a bucket that may be gone.
    pub async fn commit_returned(
        &self,
        bucket: BucketId,
        change: Amount,
        mut batch: Batch,
    ) -> Result<Result<(), MetaError>> {
        if change == Amount::default() {
            return Ok(self.commit(batch).await);
        }
        // A deleted bucket has no slots.
        if self.meta.scan(Scan::new(keys::usage_of(bucket), 1)).await?.is_empty() {
            return Ok(self.commit(batch).await);
        }
        let turn = self.meter(bucket).await?.begin(change);
        self.commit_in(turn, bucket, &mut batch).await
    }

    /// Commits a batch that puts right by so much what is counted.
    pub async fn adjust_usage(
        &self,
        bucket: BucketId,
        change: Amount,
        mut batch: Batch,
    ) -> Result<Result<(), MetaError>> {
        let turn = self.meter(bucket).await?.begin(change);
        self.commit_in(turn, bucket, &mut batch).await
    }

    /// A bucket's meter, with the slots read again whose commits were cut off.
    pub async fn settled_meter(&self, bucket: BucketId) -> Result<Arc<Meter>> {
        let meter = self.meter(bucket).await?;
        while let Some(mut turn) = meter.doubted() {
            turn.refresh(self.meta.get(keys::usage(bucket, turn.index)).await?)?;
        }
        Ok(meter)
    }

    async fn commit_in(&self, mut turn: Turn, bucket: BucketId, batch: &mut Batch) -> Result<Result<(), MetaError>> {
        if turn.slot.stale {
            turn.refresh(self.meta.get(keys::usage(bucket, turn.index)).await?)?;
        }
        let next = turn.count(bucket, batch);
        Ok(self.commit_and(std::mem::take(batch), |outcome| turn.end(outcome, bucket, next)).await)
    }

    /// Refuses, before a body is read, what will not fit. `replaced` is told what it replaces, and asked only if that counts.
    ///
    /// # Errors
    /// `QuotaExceeded`.
    pub async fn check_room<F>(&self, bucket: &Bucket, change: Amount, replaced: impl FnOnce() -> F) -> Result<()>
    where
        F: Future<Output = Result<Amount>>,
    {
        if !bucket.documents.has(Doc::Quota) && self.shared.quota_of(&bucket.owner).is_none() {
            return Ok(());
        }
        let meter = self.meter(bucket.id).await?;
        if self.within_quotas(bucket, &meter, change, change).await.is_ok() {
            return Ok(());
        }
        let change = change - replaced().await?;
        self.within_quotas(bucket, &meter, change, change).await
    }

    /// What a PUT of this key would take away.
    pub async fn replaced(&self, bucket: &Bucket, key: &str) -> Result<Amount> {
        if bucket.versioning != Versioning::Never {
            return Ok(Amount::default());
        }
        Ok(self.object(bucket.id, key).await?.map_or(Amount::default(), |old| Amount::of(&old.value)))
    }

    /// Compares a change with the bucket's and its owner's quotas; `more` is what no meter knows of.
    async fn within_quotas(&self, bucket: &Bucket, meter: &Meter, change: Amount, more: Amount) -> Result<()> {
        if !change.grows() {
            return Ok(());
        }
        if let Some(document) = bucket.documents.get(Doc::Quota)
            && !change.allows(meter.expected() + more, Quota::parse(document)?)
        {
            return Err(Kind::QuotaExceeded.into());
        }
        if let Some(quota) = self.shared.quota_of(&bucket.owner)
            && !change.allows(self.account_usage(&bucket.owner, Meter::expected).await? + more, quota)
        {
            return Err(Error::new(Kind::QuotaExceeded, "The quota of the bucket's account would be exceeded."));
        }
        Ok(())
    }

    /// What is in each of an account's buckets.
    pub async fn usage_by_bucket(&self, account: &str) -> Result<Vec<Used>> {
        let skip = keys::account_bucket(account, "").len();
        let mut names = Vec::new();
        self.each_pair(keys::prefixed(keys::account_bucket(account, "")), PAGE, |key, _| {
            names.extend(std::str::from_utf8(&key[skip..]).ok().map(str::to_owned));
            Ok(())
        })
        .await?;
        let mut all = Vec::with_capacity(names.len());
        for name in names {
            match self.known(&name).await {
                Ok(known) => {
                    let used = self.meter(known.bucket().id).await?.total();
                    all.push(Used { name, used, quota: known.settings.quota });
                }
                Err(e) if e.kind == Kind::NoSuchBucket => {}
                Err(e) => return Err(e),
            }
        }
        Ok(all)
    }

    /// Sets the gauges of all buckets' usage.
    pub async fn show_usage(&self) -> Result<()> {
        let mut buckets = Vec::new();
        self.each_pair(keys::all(b'B'), PAGE, |key, raw| {
            buckets.push((String::from_utf8_lossy(&key[1..]).into_owned(), Bucket::decode(raw)?));
            Ok(())
        })
        .await?;
        let mut shown = Vec::with_capacity(buckets.len());
        for (name, bucket) in buckets {
            let used = self.meter(bucket.id).await?.total();
            shown.push((name, bucket.owner, used));
        }
        self.shared.metrics.usage(shown);
        Ok(())
    }

    /// What is in all of an account's buckets together.
    pub async fn account_usage(&self, account: &str, what: fn(&Meter) -> Amount) -> Result<Amount> {
        let (known, ticket) = {
            let books = self.shared.usages.lock();
            (books.accounts.get(account).cloned(), books.changes)
        };
        let buckets = match known {
            Some(buckets) => buckets,
            None => {
                let skip = keys::account_bucket(account, "").len();
                let mut records = Vec::new();
                self.each_pair(keys::prefixed(keys::account_bucket(account, "")), PAGE, |key, _| {
                    records.extend(std::str::from_utf8(&key[skip..]).ok().map(keys::bucket));
                    Ok(())
                })
                .await?;
                let mut ids = Vec::new();
                for raw in self.meta.multi_get(records).await?.into_iter().flatten() {
                    ids.push(Bucket::decode(&raw)?.id);
                }
                let buckets: Arc<[BucketId]> = ids.into();
                let mut books = self.shared.usages.lock();
                if books.changes == ticket {
                    books.accounts.insert(account.to_owned(), buckets.clone());
                }
                buckets
            }
        };
        let mut sum = Amount::default();
        for id in buckets.iter() {
            sum += what(&*self.meter(*id).await?);
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_come_back() {
        for amount in
            [Amount::default(), Amount { objects: -3, bytes: i64::MIN }, Amount { objects: 7, bytes: 1 << 60 }]
        {
            assert_eq!(Amount::decode(&amount.encode()).unwrap(), amount);
        }
    }

    #[test]
    fn the_page_s_example_is_what_the_code_writes() {
        let page = include_str!("../docs/records.md").split("A usage record").nth(1).expect("the example");
        let block = page.split("```hex\n").nth(1).and_then(|b| b.split("```").next()).expect("a hex block");
        let digits: String =
            block.lines().flat_map(|l| l.split('|').next()).collect::<String>().split_whitespace().collect();
        assert_eq!(hex::encode(Amount { objects: 2, bytes: -100 }.encode()), digits);
    }

    #[test]
    fn quotas_hold_growth_only() {
        let quota = Quota { bytes: Some(10), objects: Some(2) };
        let check = |change: (i64, i64), total: (i64, i64), want: bool| {
            let amount = |(objects, bytes)| Amount { objects, bytes };
            assert_eq!(amount(change).allows(amount(total), quota), want, "{change:?} {total:?}");
        };
        check((1, 5), (2, 10), true);
        check((1, 5), (3, 10), false);
        check((1, 5), (2, 11), false);
        check((0, 1), (9, 10), true);
        check((0, -1), (9, 99), true);
        check((-1, 0), (9, 99), true);
    }

    #[test]
    fn a_cut_off_turn_is_doubted() {
        let meter = Arc::new(Meter::default());
        let bucket = BucketId(1);
        let one = Amount { objects: 1, bytes: 5 };
        let mut turn = meter.begin(one);
        assert_eq!((meter.total(), meter.expected()), (Amount::default(), one));
        let mut batch = Batch::new();
        let next = turn.count(bucket, &mut batch);
        turn.end(&Ok(()), bucket, next);
        assert_eq!((meter.total(), meter.expected()), (one, one));
        let mut turn = meter.begin(one);
        turn.count(bucket, &mut batch);
        drop(turn);
        let mut turn = meter.begin(-one);
        assert!(turn.slot.stale);
        turn.refresh(Some((one + one).encode())).unwrap();
        assert_eq!(meter.total(), one + one);
        drop(turn);
    }
}
