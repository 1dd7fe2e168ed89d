//! The versions of an object: finding one, putting a new one on top, taking one away.
//!
//! ```text
//! O: current version or delete marker        PUT, DELETE   O -> V, new -> O        (in a bucket with versions)
//! V: older versions, newest first            DELETE ?versionId of the current one: newest V -> O
//! ```
//!
//! The null version is what was written while versions were not, or no longer, kept; there is at most one of a key. When
//! it is not current, `O` knows its time. Every change checks `O`, or the `V` record that it changes, as it was read.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use karri_base::clock::UnixMicros;
use karri_bulk::BulkStore;
use karri_meta::Scan;

use crate::change::Change;
use crate::core::{Caller, Core, RETRIES, Seen};
use crate::error::{Error, Kind, Result};
use crate::keys::{self, BucketId, DataId};
use crate::notify::LIFECYCLE;
use crate::ops::condition::http_date;
use crate::record::{Bucket, Object, Replication, Retention, Versioning};
use crate::replicate::What;
use crate::usage::Amount;

/// Which version a request means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// It names none.
    Current,
    /// `null`.
    Null,
    /// One with an id.
    Id(DataId),
}

impl Which {
    /// From `versionId`.
    pub fn new(version: Option<&str>) -> Result<Self> {
        match version {
            None | Some("") => Ok(Self::Current),
            Some("null") => Ok(Self::Null),
            Some(text) => DataId::from_hex(text)
                .map(Self::Id)
                .ok_or_else(|| Error::new(Kind::InvalidArgument, "Invalid version id specified")),
        }
    }
    /// The version that is named, as S3 shows it.
    pub fn text(self) -> Option<String> {
        match self {
            Self::Current => None,
            Self::Null => Some("null".into()),
            Self::Id(id) => Some(id.to_hex()),
        }
    }
    /// True when the request names a version.
    pub fn is_named(self) -> bool {
        self != Self::Current
    }
}

/// Where a version is to be put.
#[derive(Debug, Clone, Copy)]
pub struct Spot<'a> {
    /// The bucket's name.
    pub name: &'a str,
    /// The bucket as it was seen.
    pub bucket: &'a Bucket,
    /// The object's key.
    pub key: &'a str,
    /// Of a replica: the id that the version has where it comes from.
    pub replica: Option<DataId>,
    /// True where a lifecycle rule does it, which is not replicated.
    pub ageing: bool,
}

impl<'a> Spot<'a> {
    /// For what this caller puts.
    pub fn of(caller: &Caller, name: &'a str, bucket: &'a Bucket, key: &'a str) -> Self {
        let leave = &caller.leave;
        Self { name, bucket, key, replica: leave.replica, ageing: leave.facts.operation == LIFECYCLE }
    }
}

/// A version and where it is.
#[derive(Debug, Clone)]
pub struct At {
    /// Its key in the store: an `O` or a `V`.
    pub key: Bytes,
    /// Its record.
    pub seen: Seen<Object>,
    /// The current one's record, when this is an older one.
    pub current: Option<Seen<Object>>,
}

/// `x-amz-version-id` of a version in this bucket.
pub fn id_shown(bucket: &Bucket, object: &Object) -> Option<String> {
    (bucket.versioning != Versioning::Never).then(|| object.version_text())
}

/// What a read of a delete marker gets: 404 when it is the current version, 405 when the request named it.
pub fn marker_refused(which: Which, marker: &Object) -> Error {
    let mut headers = HeaderMap::new();
    headers.insert("x-amz-delete-marker", HeaderValue::from_static("true"));
    if let Ok(id) = HeaderValue::try_from(marker.version_text()) {
        headers.insert("x-amz-version-id", id);
    }
    if let Some(date) = http_date(marker.modified.secs() as i64).filter(|_| which.is_named()) {
        headers.insert(http::header::LAST_MODIFIED, date);
    }
    let kind = if which.is_named() { Kind::MethodNotAllowed } else { Kind::NoSuchKey };
    Error { headers: Some(Box::new(headers)), ..Error::from(kind) }
}

/// Gives a new version the bucket's default retention, from this moment on, where it came without one.
fn retain(bucket: &Bucket, new: &mut Object, from: UnixMicros) {
    if let (Some(lock), None, false) = (&bucket.lock, new.lock.retention, new.marker) {
        new.lock.retention = lock.default.map(|(mode, period)| Retention { mode, until: period.after(from) });
    }
}

/// Refuses a replica where versions are not kept: it would take the place of what is there, and a delete marker delete it.
///
/// # Errors
/// `InvalidRequest`.
pub fn check_takes_replicas(versioning: Versioning) -> Result<()> {
    match versioning {
        Versioning::Enabled => Ok(()),
        Versioning::Never | Versioning::Suspended => {
            Err(Error::new(Kind::InvalidRequest, "Versioning must be enabled on a bucket that is to take replicas."))
        }
    }
}

impl<B: BulkStore> Core<B> {
    /// A version of an object; a delete marker counts.
    ///
    /// # Errors
    /// The store's; `SlowDown` where the object's versions change all the time.
    pub async fn version(&self, bucket: BucketId, key: &str, which: Which) -> Result<Option<At>> {
        let mut current = self.object(bucket, key).await?;
        for _ in 0..RETRIES {
            let Some(seen) = current else { return Ok(None) };
            let raw = seen.raw.clone();
            if let Some(at) = self.version_beside(bucket, key, which, seen).await? {
                return Ok(Some(at));
            }
            // It may have become the current one since that was read: then that is another now.
            current = self.object(bucket, key).await?;
            if current.as_ref().is_some_and(|again| again.raw == raw) {
                return Ok(None);
            }
        }
        Err(Kind::SlowDown.into())
    }

    /// A version that is, or is older than, this current one.
    async fn version_beside(
        &self,
        bucket: BucketId,
        key: &str,
        which: Which,
        current: Seen<Object>,
    ) -> Result<Option<At>> {
        let is_it = match which {
            Which::Current => true,
            Which::Null => current.value.version.is_none(),
            Which::Id(id) => current.value.version == Some(id),
        };
        if is_it {
            return Ok(Some(At { key: keys::object(bucket, key.as_bytes()), seen: current, current: None }));
        }
        let time = match which {
            Which::Current => None,
            Which::Null => current.value.null_at,
            Which::Id(id) => Some(id.time()),
        };
        let Some(time) = time else { return Ok(None) };
        let store_key = keys::version(bucket, key.as_bytes(), time);
        let Some(raw) = self.meta.get(store_key.clone()).await? else { return Ok(None) };
        let value = Object::decode(&raw)?;
        let matches = match which {
            Which::Current | Which::Null => value.version.is_none(),
            Which::Id(id) => value.version == Some(id),
        };
        Ok(matches.then(|| At { key: store_key, seen: Seen { value, raw }, current: Some(current) }))
    }

    /// A version to read: no such key or version, and a delete marker, are errors.
    pub async fn version_to_read(&self, bucket: BucketId, key: &str, which: Which) -> Result<At> {
        let absent = if which.is_named() { Kind::NoSuchVersion } else { Kind::NoSuchKey };
        let at = self.version(bucket, key, which).await?.ok_or(absent)?;
        if at.seen.value.marker { Err(marker_refused(which, &at.seen.value)) } else { Ok(at) }
    }

    /// Adds to a change, which checks the bucket's and the object's records, what makes `new` the current version: sets
    /// its id, its default retention and, where versions are kept, its time; moves or retires what it replaces; queues it
    /// for replication.
    ///
    /// A replica keeps id and time of the version that it replicates, so it goes below newer ones.
    pub async fn supersede(
        &self,
        change: &mut Change,
        spot: Spot<'_>,
        old: Option<&Seen<Object>>,
        new: &mut Object,
    ) -> Result<()> {
        let Spot { bucket, key, .. } = spot;
        (new.version, new.null_at) = (None, None);
        new.replication = spot.replica.map(|_| Replication::Replica);
        let kept_id = match spot.replica {
            None => None,
            // Whoever asked has looked whether it is there; it may have come since.
            Some(id) => {
                check_takes_replicas(bucket.versioning)?;
                Some(self.replica(bucket.id, key, id).await?.err().ok_or(Kind::ConditionalRequestConflict)?)
            }
        };
        if let Some(id) = kept_id {
            new.modified = id.time();
            if old.is_some_and(|old| old.value.modified >= id.time()) {
                return self.slip_under(change, spot, id, new);
            }
        }
        if bucket.versioning == Versioning::Never {
            if let Some(old) = old {
                self.retire(change, &old.value).await?;
            }
        } else if let Some(Seen { value: old, .. }) = old {
            new.modified = new.modified.max(UnixMicros(old.modified.0 + 1));
            new.null_at = old.null_at;
            let suspended = bucket.versioning == Versioning::Suspended;
            if suspended && old.version.is_none() {
                self.retire(change, old).await?;
            } else {
                let kept = Object { null_at: None, ..old.clone() };
                let store_key = keys::version(bucket.id, key.as_bytes(), old.modified);
                change.batch.puts.push((store_key, kept.encode()));
                if old.version.is_none() {
                    new.null_at = Some(old.modified);
                }
            }
            // The null version is replaced wherever it is.
            if suspended && let Some(time) = new.null_at.take() {
                let store_key = keys::version(bucket.id, key.as_bytes(), time);
                // Gone already: the commit will conflict on the object's record.
                if let Some(raw) = self.meta.get(store_key.clone()).await? {
                    self.retire(change, &Object::decode(&raw)?).await?;
                    change.batch.checks.push((store_key.clone(), Some(raw)));
                    change.batch.dels.push(store_key);
                }
            }
        }
        // A replica's time is its version's, which may be long ago.
        retain(bucket, new, if kept_id.is_some() { self.now() } else { new.modified });
        if bucket.versioning == Versioning::Enabled {
            new.version = Some(kept_id.unwrap_or_else(|| DataId::new(new.modified, rand::random())));
        }
        change.amount += Amount::of(new);
        self.queue_replication(change, spot, new, What::Version).await?;
        change.batch.puts.push((keys::object(bucket.id, key.as_bytes()), new.encode()));
        Ok(())
    }

    /// Adds to a change what puts a replica below the current version.
    fn slip_under(&self, change: &mut Change, spot: Spot<'_>, id: DataId, new: &mut Object) -> Result<()> {
        let store_key = keys::version(spot.bucket.id, spot.key.as_bytes(), id.time());
        new.version = Some(id);
        retain(spot.bucket, new, self.now());
        change.amount += Amount::of(new);
        change.batch.checks.push((store_key.clone(), None));
        change.batch.puts.push((store_key, new.encode()));
        Ok(())
    }

    /// The replica of the version with this id, or else the id that one gets: the same, or where another version has its
    /// time, which is its place, right below that.
    pub async fn replica(&self, bucket: BucketId, key: &str, mut id: DataId) -> Result<Result<At, DataId>> {
        loop {
            if let Some(at) = self.version(bucket, key, Which::Id(id)).await? {
                return Ok(Ok(at));
            }
            let is_current = self.object(bucket, key).await?.is_some_and(|current| current.value.modified == id.time());
            let store_key = keys::version(bucket, key.as_bytes(), id.time());
            if !is_current && self.meta.get(store_key).await?.is_none() {
                return Ok(Err(id));
            }
            id = id.earlier();
        }
    }

    /// Adds to a change what takes a version away for good.
    pub async fn take_away(&self, change: &mut Change, bucket: BucketId, key: &str, at: &At) -> Result<()> {
        let batch = &mut change.batch;
        batch.checks.push((at.key.clone(), Some(at.seen.raw.clone())));
        let object = &at.seen.value;
        if let Some(current) = &at.current {
            batch.dels.push(at.key.clone());
            if object.version.is_none() {
                let object_key = keys::object(bucket, key.as_bytes());
                batch.checks.push((object_key.clone(), Some(current.raw.clone())));
                batch.puts.push((object_key, Object { null_at: None, ..current.value.clone() }.encode()));
            }
        } else {
            let scan = Scan { range: keys::versions_of_key(bucket, key.as_bytes()), limit: 1, reverse: false };
            match self.meta.scan(scan).await?.pop() {
                None => batch.dels.push(at.key.clone()),
                Some((store_key, raw)) => {
                    let mut next = Object::decode(&raw)?;
                    next.null_at = object.null_at.filter(|_| next.version.is_some());
                    batch.checks.push((store_key.clone(), Some(raw)));
                    batch.dels.push(store_key);
                    batch.puts.push((at.key.clone(), next.encode()));
                }
            }
        }
        self.retire(change, object).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_version() {
        let id = DataId([9; 16]);
        let check = |text: Option<&str>, want: Option<Which>| assert_eq!(Which::new(text).ok(), want, "{text:?}");
        check(None, Some(Which::Current));
        check(Some("null"), Some(Which::Null));
        check(Some(&id.to_hex()), Some(Which::Id(id)));
        check(Some("L4kqtJlcpXroDTDmpUMLUo"), None);
        assert_eq!(DataId::new(UnixMicros(77), 5).time(), UnixMicros(77));
    }
}
