//! Carries out lifecycle rules: objects, older versions, delete markers and uploads that are due go; objects change their
//! storage class.
//!
//! One core makes a round over all buckets with rules, then rests. It goes page by page and asks for each what the rules
//! are, so rules that were taken back do no more, and memory does not grow with what is in a bucket. Every deletion is the operation that a client would ask
//! for, conditional on the very version that was found due, so whoever replaces an object meanwhile wins. A round does the
//! same again after a crash; what object lock protects stays.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use karri_base::clock::UnixMicros;
use karri_bulk::BulkStore;
use karri_meta::{Batch, MetaError, Scan};
use s3s::dto::{ETag, ETagCondition, Timestamp};
use time::OffsetDateTime;

use crate::access::{Facts, Leave};
use crate::buckets::Known;
use crate::config::Doc;
use crate::config::lifecycle::{Calendar, Noncurrent, Rule, Subject, When, next_class};
use crate::core::{Caller, CoreRef, Teller};
use crate::error::{Error, Kind, Result};
use crate::keys::{self, BucketId, DataId};
use crate::notify::LIFECYCLE;
use crate::ops::condition::WriteConditions;
use crate::ops::delete;
use crate::ops::put::Target;
use crate::reclaim;
use crate::record::{Bucket, Object, Upload, Versioning};
use crate::versions::Which;

/// Records looked at in one go.
const PAGE: usize = 500;
/// Failures in a row after which a round lets a bucket be, and how many of a bucket are told in the log.
const FAILURES_MAX: u32 = 100;
const TOLD_MAX: u32 = 10;
/// The longest rest between rounds.
const REST_MAX: Duration = Duration::from_secs(3600);

/// What a round did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Aged {
    /// Objects, versions and delete markers that went.
    pub versions: u64,
    /// Uploads aborted.
    pub uploads: u64,
    /// Versions that changed their storage class.
    pub moved: u64,
}

/// How long to rest between rounds: an hour, or a fifth of a shortened day.
pub fn rest(calendar: Calendar) -> Duration {
    Duration::from_secs((calendar.day_seconds / 5).max(1)).min(REST_MAX)
}

/// Looks once at everything that has rules. What cannot be read or done is logged and left for the next round: it keeps no
/// other key, and no other bucket, from ageing.
///
/// # Errors
/// The store's, when buckets cannot be listed.
pub async fn round<B: BulkStore>(core: &CoreRef<B>, calendar: Calendar) -> Result<Aged> {
    let mut names = Vec::new();
    core.each_pair(keys::all(b'B'), PAGE, |key, raw| {
        let name = String::from_utf8_lossy(&key[1..]).into_owned();
        match Bucket::decode(raw) {
            Ok(bucket) if bucket.documents.has(Doc::Lifecycle) => names.push(name),
            Ok(_) => {}
            Err(error) => tracing::warn!(bucket = name, error = %error, "a bucket's record is damaged"),
        }
        Ok(())
    })
    .await?;
    let mut aged = Aged::default();
    for name in names {
        if let Err(error) = bucket(core, &name, calendar, &mut aged).await {
            tracing::warn!(bucket = name, error = %error, "a bucket's lifecycle rules could not be carried out");
        }
    }
    Ok(aged)
}

/// A round through one bucket.
struct Round<'a, B: BulkStore> {
    core: &'a CoreRef<B>,
    caller: Caller,
    name: &'a str,
    id: BucketId,
    calendar: Calendar,
    now: u64,
    failures: Cell<Failures>,
}

/// Keys that could not be looked after.
#[derive(Debug, Clone, Copy, Default)]
struct Failures {
    all: u32,
    in_a_row: u32,
}

async fn bucket<B: BulkStore>(core: &CoreRef<B>, name: &str, calendar: Calendar, aged: &mut Aged) -> Result<()> {
    let first = match core.known(name).await {
        Err(e) if e.kind == Kind::NoSuchBucket => return Ok(()),
        known => known?,
    };
    let leave = Leave {
        buckets: vec![name.to_owned()],
        new_owner: Some(first.bucket().owner.clone()),
        may_list: true,
        facts: Facts { operation: LIFECYCLE, ..Facts::default() },
        ..Leave::default()
    };
    let caller = Caller { key: None, leave: Arc::new(leave) };
    let (id, now) = (first.bucket().id, core.now().secs());
    let round = Round { core, caller, name, id, calendar, now, failures: Cell::default() };
    let looks = |r: &&Rule| {
        let moves = !r.transitions.is_empty() || !r.noncurrent_transitions.is_empty();
        moves || r.expiration.is_some() || r.noncurrent.is_some()
    };
    let mut pages = Pages::new(keys::objects_of(id));
    while let Some((known, rules)) = round.rules(looks).await?
        && let Some(page) = pages.next(core).await?
    {
        for (store_key, raw) in &page {
            let key = String::from_utf8_lossy(&store_key[keys::OBJECT_PREFIX..]).into_owned();
            let done = match Object::decode(raw) {
                Ok(object) => round.key(&known, &rules, &key, &object, aged).await,
                Err(damage) => Err(damage.into()),
            };
            round.note(&key, done)?;
        }
    }
    let mut pages = Pages::new(keys::uploads_of(id));
    while let Some((_, rules)) = round.rules(|r| r.abort_days.is_some()).await?
        && let Some(page) = pages.next(core).await?
    {
        for (store_key, raw) in page {
            let Some((key, upload)) = keys::upload_parts(&store_key) else { continue };
            let done = round.upload(&rules, store_key, raw, (&key, upload), aged).await;
            round.note(&String::from_utf8_lossy(&key), done)?;
        }
    }
    Ok(())
}

/// A range of records, page by page.
struct Pages(Option<Range<Bytes>>);

impl Pages {
    fn new(range: Range<Bytes>) -> Self {
        Self(Some(range))
    }

    /// The next page; none at the end.
    async fn next<B: BulkStore>(&mut self, core: &CoreRef<B>) -> Result<Option<Vec<(Bytes, Bytes)>>> {
        let Some(range) = self.0.take() else { return Ok(None) };
        let end = range.end.clone();
        let found = core.meta.scan(Scan { range, limit: PAGE, reverse: false }).await?;
        if let Some((last, _)) = found.last()
            && found.len() == PAGE
        {
            self.0 = Some(keys::after(last)..end);
        }
        Ok(Some(found))
    }
}

impl<B: BulkStore> Round<'_, B> {
    /// The bucket as it is now with its rules that count; none where nothing is left to do by any that is `wanted`.
    async fn rules(&self, wanted: impl Fn(&&Rule) -> bool) -> Result<Option<(Arc<Known>, Vec<Rule>)>> {
        let known = match self.core.known(self.name).await {
            Err(e) if e.kind == Kind::NoSuchBucket => return Ok(None),
            known => known?,
        };
        let rules: Vec<Rule> = known.settings.lifecycle.iter().filter(|r| r.enabled).cloned().collect();
        let goes_on = known.bucket().id == self.id && rules.iter().any(|rule| wanted(&rule));
        Ok(goes_on.then_some((known, rules)))
    }

    /// Says, of a few, that a key could not be looked after.
    ///
    /// # Errors
    /// The key's, when there were too many in a row.
    fn note(&self, key: &str, done: Result<()>) -> Result<()> {
        let mut failures = self.failures.get();
        let Err(error) = done else {
            self.failures.set(Failures { in_a_row: 0, ..failures });
            return Ok(());
        };
        failures.all += 1;
        failures.in_a_row += 1;
        self.failures.set(failures);
        if failures.in_a_row >= FAILURES_MAX {
            return Err(error);
        }
        if failures.all <= TOLD_MAX {
            tracing::warn!(bucket = self.name, key, error = %error, "lifecycle rules could not be carried out on an object");
        }
        Ok(())
    }

    /// A key's current version and what is behind it.
    async fn key(&self, known: &Known, rules: &[Rule], key: &str, current: &Object, aged: &mut Aged) -> Result<()> {
        let versioned = known.bucket().versioning != Versioning::Never;
        let mut left = 0;
        let of_older = |r: &Rule| r.noncurrent.is_some() || !r.noncurrent_transitions.is_empty();
        if versioned && (current.marker || rules.iter().any(of_older)) {
            let (mut since, mut newer) = (current.modified, 0);
            let mut pages = Pages::new(keys::versions_of_key(self.id, key.as_bytes()));
            while let Some(page) = pages.next(self.core).await? {
                for (store_key, raw) in &page {
                    match Object::decode(raw) {
                        Ok(version) => left += self.older(rules, key, &version, (since, newer), aged).await?,
                        Err(damage) => {
                            left += 1;
                            self.note(key, Err(damage.into()))?;
                        }
                    }
                    since = keys::version_parts(store_key).map_or(since, |(_, time)| time);
                    newer += 1;
                }
                // Rules that were taken back meanwhile do no more.
                if page.len() == PAGE && self.core.known(self.name).await?.seen.raw != known.seen.raw {
                    return Ok(());
                }
            }
        }
        let subject = Subject { key, size: current.size, tags: &current.tags.0 };
        let mut meant = rules.iter().filter(|r| r.filter.matches(subject));
        let expires = |r: &&Rule| r.expires(current.modified, self.calendar).is_some_and(|due| due <= self.now);
        if current.marker {
            // A delete marker with nothing behind it; an age rule takes it away like an object.
            let due = meant.any(|r| r.expiration.as_ref().is_some_and(|e| e.delete_marker) || expires(&r));
            let which = current.version.map_or(Which::Null, Which::Id);
            if left == 0 && due && self.remove(key, which, current).await? {
                aged.versions += 1;
            }
        } else if meant.clone().any(|r| expires(&r)) && self.remove(key, Which::Current, current).await? {
            aged.versions += 1;
        } else {
            let is_due = |when: &When| when.due(current.modified, self.calendar) <= self.now;
            let due = meant.flat_map(|r| &r.transitions).filter(|(when, _)| is_due(when));
            let class = next_class(current.headers.storage_class.as_deref(), due.map(|(_, class)| &**class));
            aged.moved += self.relabel(key, Which::Current, current, class).await?;
        }
        Ok(())
    }

    /// An older version, noncurrent `since` then, with so many `newer` noncurrent ones; 1 where it stays.
    async fn older(
        &self,
        rules: &[Rule],
        key: &str,
        version: &Object,
        (since, newer): (UnixMicros, u32),
        aged: &mut Aged,
    ) -> Result<u64> {
        let subject = Subject { key, size: version.size, tags: &version.tags.0 };
        let meant = || rules.iter().filter(|r| r.filter.matches(subject));
        let is_due = |n: Noncurrent| newer >= n.newer && self.calendar.due(since, n.days) <= self.now;
        let which = version.version.map_or(Which::Null, Which::Id);
        if meant().filter_map(|r| r.noncurrent).any(is_due) && self.remove(key, which, version).await? {
            aged.versions += 1;
            return Ok(0);
        }
        let due = meant().flat_map(|r| &r.noncurrent_transitions).filter(|(n, _)| is_due(*n));
        let class = next_class(version.headers.storage_class.as_deref(), due.map(|(_, class)| &**class));
        aged.moved += self.relabel(key, which, version, class).await?;
        Ok(1)
    }

    /// Gives a version that was found due its new storage class; 0 where there is none, or it changed meanwhile.
    async fn relabel(&self, key: &str, which: Which, found: &Object, class: Option<&str>) -> Result<u64> {
        let Some(class) = class.filter(|_| !found.marker) else { return Ok(0) };
        let teller = Teller { caller: &self.caller, bucket: self.name, name: "LifecycleTransition" };
        let change = |object: &mut Object| {
            if (object.modified, object.version, object.md5) != (found.modified, found.version, found.md5) {
                return Err(Kind::PreconditionFailed.into());
            }
            object.headers.storage_class = Some(class.to_owned());
            Ok(())
        };
        match self.core.change_version(self.id, key, which, teller, change).await {
            Ok(_) => Ok(1),
            Err(Error { kind, .. }) if LEFT_ALONE.contains(&kind) => Ok(0),
            Err(e) => Err(e),
        }
    }

    /// Deletes what was found due; false where it changed meanwhile or may not go.
    async fn remove(&self, key: &str, which: Which, found: &Object) -> Result<bool> {
        let conditions = WriteConditions {
            matches: (!found.marker).then(|| ETagCondition::ETag(ETag::Strong(found.etag()))),
            modified: Some(Timestamp::from(OffsetDateTime::from(found.modified.system()))),
            ..WriteConditions::default()
        };
        let target = Target { caller: &self.caller, bucket: self.name, key, owner: None };
        let bucket = self.core.known(self.name).await?.seen.clone();
        match delete::remove(self.core, &target, bucket, which, &conditions, false).await {
            Ok(_) => Ok(true),
            Err(Error { kind, .. }) if LEFT_ALONE.contains(&kind) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Aborts an upload that is due.
    async fn upload(
        &self,
        rules: &[Rule],
        store_key: Bytes,
        raw: Bytes,
        (key, id): (&[u8], DataId),
        aged: &mut Aged,
    ) -> Result<()> {
        let begun: UnixMicros = Upload::decode(&raw)?.initiated;
        let is_due = rules.iter().any(|r| {
            let days = r.abort_days.filter(|_| key.starts_with(r.filter.prefix.as_bytes()));
            days.is_some_and(|days| self.calendar.due(begun, days) <= self.now)
        });
        if !is_due {
            return Ok(());
        }
        match self.core.commit(reclaim::close_upload(Batch::new(), self.id, store_key, raw, id)).await {
            Ok(()) => {
                self.core.reclaim.push_cleanup(id);
                aged.uploads += 1;
            }
            Err(MetaError::Conflict { .. }) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }
}

/// What stays for now: it changed meanwhile, is locked, or went with its bucket.
const LEFT_ALONE: [Kind; 8] = [
    Kind::PreconditionFailed,
    Kind::AccessDenied,
    Kind::NoSuchKey,
    Kind::NoSuchVersion,
    Kind::MethodNotAllowed,
    Kind::NoSuchBucket,
    Kind::ConditionalRequestConflict,
    Kind::SlowDown,
];
