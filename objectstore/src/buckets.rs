//! Bucket records in memory, read into settings, so that a request costs no read of its bucket's record.
//!
//! All cores of a process share them, and a store belongs to one process, so what this process commits is all that
//! changes. A record is taken in only where no commit on any bucket ended since before it was read; a commit takes out what
//! it changes, before it is answered. A bucket whose commit was cut off, so that nobody knows when it happens, is read from
//! the store from then on.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use karri_base::aws::policy::{Policy, Use};
use karri_base::id::AccountId;
use karri_meta::{Batch, MetaError};

use crate::access::public;
use crate::config::{Doc, Settings};
use crate::core::Seen;
use crate::record::Bucket;
use crate::record::codec::Damage;

/// Buckets in memory; a record is some hundred bytes, at most a few ten thousand.
const KNOWN_MAX: usize = 10_000;

/// A bucket's record and what it says.
#[derive(Debug)]
pub struct Known {
    /// The record.
    pub seen: Seen<Bucket>,
    /// Its sub-documents.
    pub settings: Settings,
    /// Its owner.
    pub owner: Option<AccountId>,
    /// Its policy.
    pub policy: Option<Policy>,
    /// True where the policy lets in the public.
    pub policy_is_public: bool,
    /// True where objects may belong to others than the bucket's owner.
    pub shared: bool,
}

impl Known {
    /// Reads a record's sub-documents.
    ///
    /// # Errors
    /// Damage.
    pub fn of(seen: Seen<Bucket>) -> Result<Self, Damage> {
        let documents = &seen.value.documents;
        let damage = || Damage::Field { tag: Doc::Policy as u8, why: "is no policy" };
        let policy = match documents.get(Doc::Policy) {
            None => None,
            Some(text) => {
                let text = std::str::from_utf8(text).map_err(|_| damage())?;
                Some(Policy::parse(text, Use::Bucket).map_err(|_| damage())?)
            }
        };
        Ok(Self {
            settings: Settings::of(documents)?,
            owner: seen.value.owner.parse().ok(),
            policy_is_public: policy.as_ref().is_some_and(public::is_public),
            policy,
            shared: documents.has(Doc::Shared),
            seen,
        })
    }
    /// The record.
    pub fn bucket(&self) -> &Bucket {
        &self.seen.value
    }
}

/// The buckets in memory.
#[derive(Debug, Default)]
pub struct Buckets(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    known: HashMap<String, Arc<Known>>,
    /// Counts the commits that touched buckets.
    changes: u64,
    /// Never kept again.
    doubted: HashSet<String>,
}

/// When a record was read.
#[derive(Debug, Clone, Copy)]
pub struct Ticket(u64);

impl Buckets {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A bucket that is in memory.
    pub fn get(&self, name: &str) -> Option<Arc<Known>> {
        self.lock().known.get(name).cloned()
    }

    /// To be taken before a record is read.
    pub fn ticket(&self) -> Ticket {
        Ticket(self.lock().changes)
    }

    /// Takes in a record that was read since the ticket.
    pub fn put(&self, ticket: Ticket, name: &str, known: &Arc<Known>) {
        let mut inner = self.lock();
        if inner.changes != ticket.0 || inner.doubted.contains(name) {
            return;
        }
        if inner.known.len() >= KNOWN_MAX {
            inner.known.clear();
        }
        inner.known.insert(name.to_owned(), known.clone());
    }

    /// Watches a commit that may change buckets' records.
    pub fn change(&self, batch: &Batch) -> Change<'_> {
        let keys = batch.puts.iter().map(|(key, _)| key).chain(&batch.dels);
        let names = keys.filter(|k| k.first() == Some(&b'B')).filter_map(|k| std::str::from_utf8(&k[1..]).ok());
        Change { buckets: self, names: names.map(str::to_owned).collect() }
    }
}

/// A commit under way.
pub struct Change<'b> {
    buckets: &'b Buckets,
    names: Vec<String>,
}

impl Change<'_> {
    /// It ended so. True where buckets' records may be others now.
    pub fn done(mut self, outcome: &Result<(), MetaError>) -> bool {
        if matches!(outcome, Err(MetaError::Failed { .. })) {
            // It may still happen: the drop below doubts it.
            return !self.names.is_empty();
        }
        let mut names = std::mem::take(&mut self.names);
        // Lost to somebody else's change of the record: ours is not the latest.
        if let Err(MetaError::Conflict { key }) = outcome
            && let [b'B', name @ ..] = &key[..]
        {
            names.extend(std::str::from_utf8(name).map(str::to_owned));
        }
        if names.is_empty() {
            return false;
        }
        let mut inner = self.buckets.lock();
        inner.changes += 1;
        for name in names {
            inner.known.remove(&name);
        }
        true
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if self.names.is_empty() {
            return;
        }
        let mut inner = self.buckets.lock();
        inner.changes += 1;
        for name in std::mem::take(&mut self.names) {
            inner.known.remove(&name);
            inner.doubted.insert(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use karri_base::clock::UnixMicros;

    use super::*;
    use crate::config::Documents;
    use crate::keys::{self, BucketId};
    use crate::record::Versioning;

    fn known() -> Arc<Known> {
        let value = Bucket {
            id: BucketId(7),
            owner: "000000000001".into(),
            created: UnixMicros(9),
            region: "r".into(),
            deleting: false,
            fence: 0,
            versioning: Versioning::Never,
            lock: None,
            encryption: None,
            documents: Documents::default(),
        };
        let raw = value.encode();
        Arc::new(Known::of(Seen { value, raw }).unwrap())
    }

    fn take_in(buckets: &Buckets, name: &str) -> bool {
        buckets.put(buckets.ticket(), name, &known());
        buckets.get(name).is_some()
    }

    fn batch(name: &str) -> Batch {
        Batch::new().put(keys::bucket(name), "x").put("Oother", "y")
    }

    #[test]
    fn a_commit_takes_out_what_it_changes() {
        let buckets = Buckets::default();
        assert!(take_in(&buckets, "a") && take_in(&buckets, "b"));
        let before = buckets.ticket();
        assert!(buckets.change(&batch("a")).done(&Ok(())));
        assert!(buckets.get("a").is_none() && buckets.get("b").is_some());
        buckets.put(before, "a", &known());
        assert!(buckets.get("a").is_none(), "read before the change, taken in after it");
        assert!(take_in(&buckets, "a"));
        let lost = Err(MetaError::Conflict { key: keys::bucket("b") });
        assert!(buckets.change(&Batch::new().check(keys::bucket("b"), None)).done(&lost));
        assert!(buckets.get("b").is_none(), "somebody else changed it");
        assert!(!buckets.change(&Batch::new().put("Ok", "v")).done(&Ok(())), "no bucket's record");
    }

    #[test]
    fn a_cut_off_commit_is_doubted_for_ever() {
        let cut_off: [fn(&Buckets); 2] = [
            |buckets| drop(buckets.change(&batch("a"))),
            |buckets| {
                let failed = Err(MetaError::Failed { op: "commit", why: "the disk".into() });
                buckets.change(&batch("a")).done(&failed);
            },
        ];
        for cut_off in cut_off {
            let buckets = Buckets::default();
            assert!(take_in(&buckets, "a") && take_in(&buckets, "b"));
            let before = buckets.ticket();
            cut_off(&buckets);
            // It may happen at any later time: whatever is read now may be stale then.
            assert!(buckets.get("a").is_none() && !take_in(&buckets, "a"));
            buckets.put(before, "a", &known());
            assert!(buckets.get("a").is_none());
            assert!(buckets.get("b").is_some() && take_in(&buckets, "c"), "others are not touched");
        }
    }
}
