//! What is still to be replicated: `R` records, one for each version, destination and kind of change.
//!
//! They are in the store, which is on disk; memory holds two numbers for each destination. A version has at most one entry
//! of each kind in its place, however often it changes meanwhile, and takes it along when it is deleted: so while a destination
//! is away its queue grows with the versions that are there, and not with the requests. (One that was put back is beside
//! that until it is due.)

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use karri_base::clock::UnixMicros;
use karri_bulk::BulkStore;

use crate::change::Change;
use crate::core::Core;
use crate::error::Result;
use crate::keys::{self, BucketId, DataId};
use crate::record::codec::{Damage, Fields, Writer, array, number, text, unknown, wanted};
use crate::record::{Object, Replication};
use crate::versions::Spot;

/// What of a version changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It is new.
    Version,
    /// Its tags, list, retention or hold.
    Settings,
}

/// `R`: a change that a destination is to get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The bucket's number.
    pub bucket: BucketId,
    /// Its name.
    pub name: String,
    /// The object's key.
    pub key: String,
    /// The version.
    pub version: DataId,
    /// What changed.
    pub what: What,
    /// The rule's name.
    pub rule: String,
    /// When it changed.
    pub since: UnixMicros,
    /// Bytes to send.
    pub size: u64,
    /// How often it did not get through.
    pub attempts: u32,
}

/// Where a version's entry is first put: each has one place, so that those that wait are found. Due at once, a version
/// before its settings.
fn place(to: &str, version: DataId, what: What, now: UnixMicros) -> Bytes {
    let late = u64::from(what == What::Settings);
    // Times of versions run ahead of a clock that was set back.
    let due = UnixMicros(version.time().0.min(now.0) + late);
    keys::replication(to, due, version.random())
}

impl Entry {
    fn place(&self, to: &str) -> Bytes {
        place(to, self.version, self.what, self.since)
    }
    /// True where both tell the same of the same version.
    fn is_same(&self, other: &Self) -> bool {
        (self.bucket, &self.key, self.version, self.what) == (other.bucket, &other.key, other.version, other.what)
    }
    /// As stored.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::new(b'R');
        w.number(1, self.bucket.0);
        w.field(2, self.name.as_bytes());
        w.field(3, self.key.as_bytes());
        w.field(4, &self.version.0);
        w.field(5, &[if self.what == What::Version { 1 } else { 2 }]);
        w.field(6, self.rule.as_bytes());
        w.number(7, self.since.0);
        w.number(8, self.size);
        if self.attempts > 0 {
            w.number(9, self.attempts.into());
        }
        w.finish()
    }
    /// From what is stored.
    ///
    /// # Errors
    /// Damage.
    pub fn decode(record: &[u8]) -> Result<Self, Damage> {
        let mut fields = Fields::open(b'R', record)?;
        let (mut bucket, mut name, mut key, mut version, mut what) = (None, None, None, None, None);
        let (mut rule, mut since, mut size, mut attempts) = (None, None, None, 0);
        while let Some((tag, bytes)) = fields.pull()? {
            match tag {
                1 => bucket = Some(BucketId(number(tag, bytes)?)),
                2 => name = Some(text(tag, bytes)?),
                3 => key = Some(text(tag, bytes)?),
                4 => version = Some(DataId(array(tag, bytes)?)),
                5 => {
                    what = Some(match bytes {
                        [1] => What::Version,
                        [2] => What::Settings,
                        _ => return Err(Damage::Field { tag, why: "names no known change" }),
                    });
                }
                6 => rule = Some(text(tag, bytes)?),
                7 => since = Some(UnixMicros(number(tag, bytes)?)),
                8 => size = Some(number(tag, bytes)?),
                9 => attempts = u32::try_from(number(tag, bytes)?).unwrap_or(u32::MAX),
                _ => unknown(tag)?,
            }
        }
        Ok(Self {
            bucket: wanted(1, bucket)?,
            name: wanted(2, name)?,
            key: wanted(3, key)?,
            version: wanted(4, version)?,
            what: wanted(5, what)?,
            rule: wanted(6, rule)?,
            since: wanted(7, since)?,
            size: wanted(8, size)?,
            attempts,
        })
    }
}

/// What a commit queues: destinations, entries and bytes; less than none where it takes some off.
#[derive(Debug, Default)]
pub struct Queued(Vec<(String, i64, i64)>);

/// What waits, in memory: numbers for metrics, and a bell.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: Mutex<HashMap<String, (i64, i64)>>,
    pub(super) bell: tokio::sync::Notify,
}

impl Queue {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<String, (i64, i64)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// The commit happened; answers what waits then.
    fn queued(&self, queued: Queued) -> Vec<(String, (i64, i64))> {
        let mut waiting = self.lock();
        let mut sums = Vec::with_capacity(queued.0.len());
        for (to, entries, bytes) in queued.0 {
            let sum = waiting.entry(to.clone()).or_default();
            *sum = ((sum.0 + entries).max(0), sum.1.saturating_add(bytes).max(0));
            let sum = *sum;
            if sum.0 == 0 {
                waiting.remove(&to);
            }
            sums.push((to, sum));
        }
        drop(waiting);
        if !sums.is_empty() {
            self.bell.notify_one();
        }
        sums
    }
    /// An entry is gone; answers what waits still.
    pub(super) fn gone(&self, to: &str, bytes: u64) -> (i64, i64) {
        let mut waiting = self.lock();
        let Some((entries, sum)) = waiting.get_mut(to) else { return (0, 0) };
        (*entries, *sum) = ((*entries - 1).max(0), (*sum - bytes as i64).max(0));
        let left = (*entries, *sum);
        if left.0 == 0 {
            waiting.remove(to);
        }
        left
    }
}

impl<B: BulkStore> Core<B> {
    /// The commit of a change that queues these happened.
    pub fn replication_queued(&self, queued: Queued) {
        for (to, sum) in self.shared.replication.queued(queued) {
            self.shared.metrics.replication_waiting(&to, sum, (sum.0 == 0).then_some(0));
        }
    }

    /// Adds to a change the entries that a version's rules want, and to the version that they are on their way.
    ///
    /// # Errors
    /// The store's.
    pub async fn queue_replication(
        &self,
        change: &mut Change,
        spot: Spot<'_>,
        object: &mut Object,
        what: What,
    ) -> Result<()> {
        let id = match object.version {
            Some(id) if object.replication != Some(Replication::Replica) => id,
            _ => return Ok(()),
        };
        let known = self.known(spot.name).await?;
        let Some(replication) = &known.settings.replication else { return Ok(()) };
        if spot.ageing {
            return Ok(());
        }
        let mut more = 0;
        for rule in replication.meaning(spot.key, object) {
            let to = rule.to.id();
            let size = if what == What::Version { object.size } else { 0 };
            let mut entry = Entry {
                bucket: spot.bucket.id,
                name: spot.name.to_owned(),
                key: spot.key.to_owned(),
                version: id,
                what,
                rule: rule.id.clone(),
                since: self.now(),
                size,
                attempts: 0,
            };
            let mut key = entry.place(&to);
            // A version is new but once.
            let there = if what == What::Settings { self.meta.get(key.clone()).await? } else { None };
            match there.as_ref().map(|raw| Entry::decode(raw)) {
                // What is carried is the latest: one entry does for all changes that wait. Whoever carries it now finds
                // another one in its place, which is carried again.
                Some(Ok(waiting)) if waiting.is_same(&entry) => {
                    // As old as that one, and yet another record.
                    entry.since = UnixMicros(waiting.since.0 + 1);
                    change.batch.checks.push((key.clone(), there));
                }
                other => {
                    if other.is_some() {
                        key = keys::replication(&to, entry.since, rand::random());
                    }
                    change.batch.checks.push((key.clone(), None));
                    change.queued.0.push((to, 1, size as i64));
                    more += 1;
                }
            }
            change.batch.puts.push((key, entry.encode()));
        }
        if more > 0 {
            object.replication = Some(Replication::more(object.replication, more));
        }
        Ok(())
    }

    /// Adds to a change that takes a version away for good what takes its entries off: nothing of it will be sent. Those that
    /// were put back, or by rules that are gone, are found to be void when they are due.
    ///
    /// # Errors
    /// The store's.
    pub async fn unqueue_replication(
        &self,
        change: &mut Change,
        (bucket, key): (&str, &str),
        object: &Object,
    ) -> Result<()> {
        let (Some(id), Some(Replication::Pending { .. })) = (object.version, object.replication) else { return Ok(()) };
        let known = self.known(bucket).await?;
        let Some(replication) = &known.settings.replication else { return Ok(()) };
        let mut seen = HashSet::new();
        for to in replication.rules.iter().map(|rule| rule.to.id()).filter(|to| seen.insert(to.clone())) {
            for what in [What::Version, What::Settings] {
                let place = place(&to, id, what, self.now());
                let Some(raw) = self.meta.get(place.clone()).await? else { continue };
                let Ok(entry) = Entry::decode(&raw) else { continue };
                if (entry.bucket, entry.key.as_str(), entry.version) == (known.bucket().id, key, id) {
                    change.batch.checks.push((place.clone(), Some(raw)));
                    change.batch.dels.push(place);
                    change.queued.0.push((to.clone(), -1, -(entry.size as i64)));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_s_example_is_what_the_code_writes() {
        let page = include_str!("../../docs/records.md").split("A change to replicate").nth(1).expect("the example");
        let block = page.split("```hex\n").nth(1).and_then(|b| b.split("```").next()).expect("a hex block");
        let digits: String =
            block.lines().flat_map(|l| l.split('|').next()).collect::<String>().split_whitespace().collect();
        let entry = Entry {
            bucket: BucketId(7),
            name: "bucket".into(),
            key: "k".into(),
            version: DataId([0x22; 16]),
            what: What::Version,
            rule: "r".into(),
            since: UnixMicros(1_700_000_000_000_000),
            size: 5,
            attempts: 1,
        };
        assert_eq!(hex::encode(entry.encode()), digits);
        assert_eq!(Entry::decode(&entry.encode()).unwrap(), entry);
        let first = Entry { attempts: 0, what: What::Settings, ..entry };
        assert_eq!(Entry::decode(&first.encode()).unwrap(), first);
    }

    #[test]
    fn a_version_goes_before_its_settings_and_each_has_one_place() {
        let now = UnixMicros(1_700_000_000_000_000);
        let (old, new) = (DataId::new(UnixMicros(now.0 - 5), 9), DataId::new(UnixMicros(now.0 + 5), 9));
        assert!(place("a:b", old, What::Version, now) < place("a:b", old, What::Settings, now));
        let later = UnixMicros(now.0 + 1_000);
        assert_eq!(place("a:b", old, What::Settings, now), place("a:b", old, What::Settings, later));
        // Ahead of the clock: due all the same.
        let (_, due) = keys::event_parts(&place("a:b", new, What::Version, now)).unwrap();
        assert_eq!(due, now);
    }
}
