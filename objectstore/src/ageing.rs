//! Carries out lifecycle rules: objects, older versions, delete markers and uploads that are due go; objects change their
//! storage class.
//!
//! One core makes a round over all buckets with rules, then rests. Every deletion is the operation that a client would ask
//! for, conditional on the very version that was found due, so whoever replaces an object meanwhile wins. A round does the
//! same again after a crash; what object lock protects stays.

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
use crate::keys;
use crate::notify::LIFECYCLE;
use crate::ops::condition::WriteConditions;
use crate::ops::delete;
use crate::ops::put::Target;
use crate::reclaim;
use crate::record::{Bucket, Object, Upload, Versioning};
use crate::versions::Which;

/// Records looked at in one go.
const PAGE: usize = 500;
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

/// Looks once at everything that has rules.
///
/// # Errors
/// What the store fails with; the next round goes on.
pub async fn round<B: BulkStore>(core: &CoreRef<B>, calendar: Calendar) -> Result<Aged> {
    let mut names = Vec::new();
    core.each_pair(keys::all(b'B'), PAGE, |key, raw| {
        if Bucket::decode(raw)?.documents.has(Doc::Lifecycle) {
            names.push(String::from_utf8_lossy(&key[1..]).into_owned());
        }
        Ok(())
    })
    .await?;
    let mut aged = Aged::default();
    for name in names {
        match core.known(&name).await {
            Ok(known) => bucket(core, &name, &known, calendar, &mut aged).await?,
            Err(e) if e.kind == Kind::NoSuchBucket => {}
            Err(e) => return Err(e),
        }
    }
    Ok(aged)
}

struct Round<'a, B: BulkStore> {
    core: &'a CoreRef<B>,
    caller: Caller,
    name: &'a str,
    known: &'a Known,
    calendar: Calendar,
    now: u64,
}

async fn bucket<B: BulkStore>(
    core: &CoreRef<B>,
    name: &str,
    known: &Known,
    calendar: Calendar,
    aged: &mut Aged,
) -> Result<()> {
    let leave = Leave {
        buckets: vec![name.to_owned()],
        new_owner: Some(known.bucket().owner.clone()),
        may_list: true,
        facts: Facts { operation: LIFECYCLE, ..Facts::default() },
        ..Leave::default()
    };
    let caller = Caller { key: None, leave: Arc::new(leave) };
    let round = Round { core, caller, name, known, calendar, now: core.now().secs() };
    let rules: Vec<&Rule> = known.settings.lifecycle.iter().filter(|r| r.enabled).collect();
    let id = known.bucket().id;
    let looks = |r: &&Rule| {
        let moves = !r.transitions.is_empty() || !r.noncurrent_transitions.is_empty();
        moves || r.expiration.is_some() || r.noncurrent.is_some()
    };
    if rules.iter().any(looks) {
        let mut range = keys::objects_of(id);
        loop {
            let found = core.meta.scan(Scan { range: range.clone(), limit: PAGE, reverse: false }).await?;
            for (store_key, raw) in &found {
                let key = String::from_utf8_lossy(&store_key[keys::OBJECT_PREFIX..]).into_owned();
                round.key(&rules, &key, &Object::decode(raw)?, aged).await?;
            }
            match found.last() {
                Some((last, _)) if found.len() == PAGE => range.start = keys::after(last),
                _ => break,
            }
        }
    }
    if rules.iter().any(|r| r.abort_days.is_some()) {
        aged.uploads += round.uploads(&rules).await?;
    }
    Ok(())
}

impl<B: BulkStore> Round<'_, B> {
    /// A key's current version and what is behind it.
    async fn key(&self, rules: &[&Rule], key: &str, current: &Object, aged: &mut Aged) -> Result<()> {
        let versioned = self.known.bucket().versioning != Versioning::Never;
        let mut left = 0;
        let of_older = |r: &&Rule| r.noncurrent.is_some() || !r.noncurrent_transitions.is_empty();
        if versioned && (current.marker || rules.iter().any(of_older)) {
            let range = keys::versions_of_key(self.known.bucket().id, key.as_bytes());
            let (mut since, mut newer) = (current.modified, 0);
            let mut older: Vec<Object> = Vec::new();
            self.core
                .each_pair(range, PAGE, |_, raw| {
                    older.push(Object::decode(raw)?);
                    Ok(())
                })
                .await?;
            for version in older {
                let subject = Subject { key, size: version.size, tags: &version.tags.0 };
                let meant = || rules.iter().filter(|r| r.filter.matches(subject));
                let is_due = |n: Noncurrent| newer >= n.newer && self.calendar.due(since, n.days) <= self.now;
                let which = version.version.map_or(Which::Null, Which::Id);
                if meant().filter_map(|r| r.noncurrent).any(is_due) && self.remove(key, which, &version).await? {
                    aged.versions += 1;
                } else {
                    left += 1;
                    let due = meant().flat_map(|r| &r.noncurrent_transitions).filter(|(n, _)| is_due(*n));
                    let class = next_class(version.headers.storage_class.as_deref(), due.map(|(_, class)| &**class));
                    aged.moved += self.relabel(key, which, &version, class).await?;
                }
                since = version.modified;
                newer += 1;
            }
        }
        let subject = Subject { key, size: current.size, tags: &current.tags.0 };
        let mut meant = rules.iter().filter(|r| r.filter.matches(subject));
        let expires = |r: &&Rule| r.expires(current.modified, self.calendar).is_some_and(|due| due <= self.now);
        if current.marker {
            // A delete marker with nothing behind it; an age rule takes it away like an object.
            let due = meant.any(|r| r.expiration.as_ref().is_some_and(|e| e.delete_marker) || expires(r));
            let which = current.version.map_or(Which::Null, Which::Id);
            if left == 0 && due && self.remove(key, which, current).await? {
                aged.versions += 1;
            }
        } else if meant.clone().any(expires) && self.remove(key, Which::Current, current).await? {
            aged.versions += 1;
        } else {
            let is_due = |when: &When| when.due(current.modified, self.calendar) <= self.now;
            let due = meant.flat_map(|r| &r.transitions).filter(|(when, _)| is_due(when));
            let class = next_class(current.headers.storage_class.as_deref(), due.map(|(_, class)| &**class));
            aged.moved += self.relabel(key, Which::Current, current, class).await?;
        }
        Ok(())
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
        match self.core.change_version(self.known.bucket().id, key, which, teller, change).await {
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

    async fn uploads(&self, rules: &[&Rule]) -> Result<u64> {
        let mut due: Vec<(Bytes, Bytes)> = Vec::new();
        self.core
            .each_pair(keys::uploads_of(self.known.bucket().id), PAGE, |store_key, raw| {
                let Some((key, _)) = keys::upload_parts(store_key) else { return Ok(()) };
                let begun: UnixMicros = Upload::decode(raw)?.initiated;
                let is_due = rules.iter().any(|r| {
                    let days = r.abort_days.filter(|_| key.starts_with(r.filter.prefix.as_bytes()));
                    days.is_some_and(|days| self.calendar.due(begun, days) <= self.now)
                });
                if is_due {
                    due.push((store_key.clone(), raw.clone()));
                }
                Ok(())
            })
            .await?;
        let mut gone = 0;
        for (key, raw) in due {
            let Some((_, id)) = keys::upload_parts(&key) else { continue };
            match self.core.commit(reclaim::close_upload(Batch::new(), self.known.bucket().id, key, raw, id)).await {
                Ok(()) => {
                    self.core.reclaim.push_cleanup(id);
                    gone += 1;
                }
                Err(MetaError::Conflict { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(gone)
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
