//! The cloud's records: a cache in memory of all of them, written through to the `MetaStore` by checked commits.
//!
//! The cloud is the only writer of its store, so reads come from memory. A change is a closure over a [`Txn`]: every
//! key that it reads or writes is checked by the commit, so it happens as if alone or is run again. Listing inside a
//! change is not checked; guard it with a key. An acknowledged change is durable.
//!
//! A failed commit may have happened: its keys are read back before the error is returned, so memory never differs from
//! the store.

use std::any::Any;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use karri_meta::{Batch, MetaError, MetaStore, Scan};
use serde::{Deserialize, Serialize};
use tokio::sync::{RwLock, watch};

use super::records::{AccessKey, Image, ImageName, Instance, KeyPair, Lease, Record, Token, Volume};

/// Locks that keys share. They are held over a commit, so there are many: a thousand commits under way hardly ever meet.
const STRIPES: usize = 1 << 16;
const RUNS_MAX: usize = 1000;
const LOAD_PAGE: usize = 1000;

/// Why records could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The store's own.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// A value that this version does not read.
    #[error("record {key}: {why}; was it written by a newer karri?")]
    Undecodable {
        /// Its key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// A change found its keys changed every time.
    #[error("a change of {key} met other changes {RUNS_MAX} times")]
    Contended {
        /// One of its keys.
        key: String,
    },
}

type Value = Arc<dyn Any + Send + Sync>;

#[derive(Clone)]
struct Entry {
    bytes: Bytes,
    value: Value,
}

/// All records. Clones share them.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    meta: Arc<dyn MetaStore>,
    cache: std::sync::RwLock<BTreeMap<String, Entry>>,
    stripes: Vec<RwLock<()>>,
    hash: RandomState,
    changes: watch::Sender<u64>,
}

#[derive(Serialize, Deserialize)]
struct Envelope<R> {
    v: u32,
    r: R,
}

fn encode<R: Record>(record: &R) -> Bytes {
    let envelope = Envelope { v: R::VERSION, r: record };
    // Records are plain data: maps with text keys, numbers and text.
    Bytes::from(serde_json::to_vec(&envelope).expect("records are plain data"))
}

fn decode<R: Record>(key: &str, bytes: &[u8]) -> Result<Value, StoreError> {
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    let bad = |why: String| StoreError::Undecodable { key: key.to_owned(), why };
    let version: Version = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
    if version.v != R::VERSION {
        return Err(bad(format!("its format is version {}, this karri reads {}", version.v, R::VERSION)));
    }
    let envelope: Envelope<R> = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
    Ok(Arc::new(envelope.r))
}

type Decoder = fn(&str, &[u8]) -> Result<Value, StoreError>;
const KINDS: &[(&str, Decoder)] = &[
    (AccessKey::PREFIX, decode::<AccessKey>),
    (Image::PREFIX, decode::<Image>),
    (ImageName::PREFIX, decode::<ImageName>),
    (Instance::PREFIX, decode::<Instance>),
    (KeyPair::PREFIX, decode::<KeyPair>),
    (Lease::PREFIX, decode::<Lease>),
    (Token::PREFIX, decode::<Token>),
    (Volume::PREFIX, decode::<Volume>),
];

fn key_of<R: Record>(id: &str) -> String {
    format!("{}{id}", R::PREFIX)
}

fn typed<R: Record>(value: Value) -> Arc<R> {
    value.downcast().expect("a prefix belongs to one type")
}

/// The first key behind all keys with this prefix; prefixes end with a slash.
fn after(prefix: &str) -> String {
    format!("{}0", prefix.trim_end_matches('/'))
}

impl Store {
    /// Reads all records.
    ///
    /// # Errors
    /// The store's, or a record of another version.
    pub async fn open(meta: Arc<dyn MetaStore>) -> Result<Self, StoreError> {
        let mut cache = BTreeMap::new();
        for (prefix, decode) in KINDS {
            let (mut from, to) = (Bytes::from_static(prefix.as_bytes()), Bytes::from(after(prefix)));
            loop {
                let page = Scan { range: from..to.clone(), limit: LOAD_PAGE, reverse: false };
                let pairs = meta.scan(page).await?;
                let Some((last, _)) = pairs.last() else { break };
                from = Bytes::from([last, &b"\0"[..]].concat());
                for (key, bytes) in pairs {
                    let key = String::from_utf8_lossy(&key).into_owned();
                    let value = decode(&key, &bytes)?;
                    cache.insert(key, Entry { bytes, value });
                }
            }
        }
        Ok(Self(Arc::new(Inner {
            meta,
            cache: std::sync::RwLock::new(cache),
            stripes: (0..STRIPES).map(|_| RwLock::default()).collect(),
            hash: RandomState::new(),
            changes: watch::Sender::new(0),
        })))
    }

    /// A record.
    pub fn get<R: Record>(&self, id: &str) -> Option<Arc<R>> {
        self.0.entry(&key_of::<R>(id)).map(|e| typed(e.value))
    }

    /// All records of a kind, in the order of their ids.
    pub fn list<R: Record>(&self) -> Vec<Arc<R>> {
        self.list_under("")
    }

    /// The records of a kind whose id begins so.
    pub fn list_under<R: Record>(&self, id_prefix: &str) -> Vec<Arc<R>> {
        let from = key_of::<R>(id_prefix);
        let cache = self.0.cache.read().unwrap_or_else(PoisonError::into_inner);
        let range = cache.range(from.clone()..).take_while(|(k, _)| k.starts_with(&from));
        range.map(|(_, e)| typed(e.value.clone())).collect()
    }

    /// A counter of changes; wait on it for a condition over records.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Runs `change` and commits what it did, as if nothing else happened meanwhile. It may run several times.
    ///
    /// # Errors
    /// What `change` returned (then nothing happened), or the store's.
    pub async fn change<T, E: From<StoreError>>(
        &self,
        mut change: impl FnMut(&mut Txn<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut contended = String::new();
        for _ in 0..RUNS_MAX {
            let mut txn = Txn { store: self, seen: BTreeMap::new(), writes: BTreeMap::new() };
            let answer = change(&mut txn)?;
            let Txn { seen, writes, .. } = txn;
            if writes.is_empty() {
                return Ok(answer);
            }
            // In a task of its own: a caller that goes away must not leave memory behind the store.
            let inner = self.0.clone();
            let commit = tokio::spawn(async move { inner.commit(seen, writes).await });
            match commit.await {
                Ok(Ok(None)) => return Ok(answer),
                Ok(Ok(Some(key))) => contended = key,
                Ok(Err(e)) => return Err(e.into()),
                Err(e) => return Err(StoreError::Meta(MetaError::Failed { op: "commit", why: e.to_string() }).into()),
            }
        }
        Err(StoreError::Contended { key: contended }.into())
    }
}

impl Inner {
    /// Commits; a key that is not as it was seen comes back.
    async fn commit(
        &self,
        seen: BTreeMap<String, Option<Bytes>>,
        writes: BTreeMap<String, Option<Entry>>,
    ) -> Result<Option<String>, StoreError> {
        // Stripes keep memory in the order of commits. Taken in ascending order, so nobody waits in a circle; shared where
        // a key is only read, so that launches of one image go into one sync.
        let mut stripes = BTreeMap::new();
        for key in seen.keys() {
            *stripes.entry(self.stripe(key)).or_insert(false) |= writes.contains_key(key);
        }
        let (mut reading, mut writing) = (Vec::new(), Vec::new());
        for (stripe, written) in stripes {
            match written {
                true => writing.push(self.stripes[stripe].write().await),
                false => reading.push(self.stripes[stripe].read().await),
            }
        }
        for (key, bytes) in &seen {
            if self.entry(key).map(|e| e.bytes) != *bytes {
                return Ok(Some(key.clone()));
            }
        }
        let mut batch = Batch::new();
        for (key, bytes) in &seen {
            batch = batch.check(key.clone(), bytes.clone());
        }
        for (key, entry) in &writes {
            batch = match entry {
                Some(entry) => batch.put(key.clone(), entry.bytes.clone()),
                None => batch.del(key.clone()),
            };
        }
        match self.meta.commit(batch).await {
            Ok(()) => {
                self.apply(writes);
                Ok(None)
            }
            Err(MetaError::Conflict { key }) => {
                self.reload(&seen).await?;
                Ok(Some(String::from_utf8_lossy(&key).into_owned()))
            }
            Err(e) => {
                self.reload(&seen).await?;
                Err(e.into())
            }
        }
    }

    fn stripe(&self, key: &str) -> usize {
        self.hash.hash_one(key) as usize % STRIPES
    }

    async fn reload(&self, seen: &BTreeMap<String, Option<Bytes>>) -> Result<(), StoreError> {
        let keys: Vec<Bytes> = seen.keys().map(|k| Bytes::from(k.clone())).collect();
        let values = self.meta.multi_get(keys).await?;
        let mut fresh = BTreeMap::new();
        for (key, bytes) in seen.keys().zip(values) {
            let entry = match bytes {
                None => None,
                Some(bytes) => {
                    let kind = KINDS.iter().find(|(prefix, _)| key.starts_with(prefix));
                    let (_, decode) = kind.expect("keys are made from kinds");
                    Some(Entry { value: decode(key, &bytes)?, bytes })
                }
            };
            fresh.insert(key.clone(), entry);
        }
        self.apply(fresh);
        Ok(())
    }

    fn apply(&self, writes: BTreeMap<String, Option<Entry>>) {
        {
            let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
            for (key, entry) in writes {
                match entry {
                    Some(entry) => cache.insert(key, entry),
                    None => cache.remove(&key),
                };
            }
        }
        self.changes.send_modify(|n| *n += 1);
    }

    fn entry(&self, key: &str) -> Option<Entry> {
        self.cache.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }
}

/// A change being put together.
pub struct Txn<'a> {
    store: &'a Store,
    seen: BTreeMap<String, Option<Bytes>>,
    writes: BTreeMap<String, Option<Entry>>,
}

impl Txn<'_> {
    fn see(&mut self, key: &str) -> Option<Entry> {
        let entry = self.store.0.entry(key);
        if !self.seen.contains_key(key) {
            self.seen.insert(key.to_owned(), entry.as_ref().map(|e| e.bytes.clone()));
        }
        entry
    }

    /// A record as this change sees it.
    pub fn get<R: Record>(&mut self, id: &str) -> Option<Arc<R>> {
        let key = key_of::<R>(id);
        let entry = match self.writes.get(&key) {
            Some(written) => written.clone(),
            None => self.see(&key),
        };
        entry.map(|e| typed(e.value))
    }

    /// All records of a kind, unchecked and without this change's own writes.
    pub fn list<R: Record>(&self) -> Vec<Arc<R>> {
        self.store.list()
    }

    /// Sets a record.
    pub fn put<R: Record>(&mut self, record: R) {
        let key = key_of::<R>(&record.id());
        self.see(&key);
        let entry = Entry { bytes: encode(&record), value: Arc::new(record) };
        self.writes.insert(key, Some(entry));
    }

    /// Removes a record.
    pub fn del<R: Record>(&mut self, id: &str) {
        let key = key_of::<R>(id);
        self.see(&key);
        self.writes.insert(key, None);
    }
}

#[cfg(test)]
mod tests {
    use karri_meta::memory::MemoryStore;

    use super::super::records::Attachment;
    use super::*;

    /// One `key<TAB>value` a line, as the first version wrote them.
    const V1: &str = include_str!("../../tests/fixtures/records-v1.tsv");

    async fn filled(lines: &str) -> Arc<MemoryStore> {
        let meta = Arc::new(MemoryStore::new());
        let mut batch = Batch::new();
        for (key, value) in lines.lines().filter_map(|l| l.split_once('\t')) {
            batch = batch.put(key.to_owned(), value.to_owned());
        }
        meta.commit(batch).await.unwrap();
        meta
    }

    #[tokio::test]
    async fn records_of_the_first_version_are_read_and_written_as_they_were() {
        let store = Store::open(filled(V1).await).await.unwrap();
        let instance = store.list::<Instance>().pop().unwrap();
        let volume = store.get::<Volume>(instance.volumes[0].as_str()).unwrap();
        let held: Option<&Attachment> = volume.attachment.as_ref();
        assert_eq!((held.unwrap().instance.clone(), volume.gib), (instance.id.clone(), 2));
        let kinds: std::collections::BTreeSet<&str> = V1.lines().filter_map(|l| Some(l.split_once('/')?.0)).collect();
        assert_eq!(kinds.len(), KINDS.len(), "the fixture has every kind");
        for line in V1.lines() {
            let (key, value) = line.split_once('\t').unwrap();
            let (_, decode) = KINDS.iter().find(|(prefix, _)| key.starts_with(prefix)).unwrap();
            decode(key, value.as_bytes()).unwrap();
        }
        assert_eq!(
            encode(&*instance),
            V1.lines().find(|l| l.starts_with("instance/")).unwrap().split_once('\t').unwrap().1
        );
        assert_eq!(
            encode(&*volume),
            V1.lines().find(|l| l.starts_with("volume/")).unwrap().split_once('\t').unwrap().1
        );
    }

    #[tokio::test]
    async fn a_record_of_another_version_is_named() {
        let meta = filled("volume/vol-1\t{\"v\":9,\"r\":{}}").await;
        let e = Store::open(meta).await.map(|_| ()).unwrap_err().to_string();
        assert!(e.contains("volume/vol-1") && e.contains("version 9"), "{e}");
    }

    #[tokio::test]
    async fn changes_that_read_the_same_do_not_wait_for_each_other() {
        let store = Store::open(filled(V1).await).await.unwrap();
        let (read, written) = (store.list::<Image>().pop().unwrap(), store.list::<Volume>().pop().unwrap());
        let change = || {
            store.change::<_, StoreError>(|txn| {
                txn.get::<Image>(&read.id);
                txn.put(Volume::clone(&written));
                Ok(())
            })
        };
        let stripe = |key: String| &store.0.stripes[store.0.stripe(&key)];
        // As if a commit that read the image, or one that changes it, were under way.
        let held = stripe(key_of::<Image>(&read.id)).read().await;
        change().await.unwrap();
        drop(held);
        let held = stripe(key_of::<Image>(&read.id)).write().await;
        tokio::time::timeout(std::time::Duration::from_millis(50), change()).await.unwrap_err();
        drop(held);
        change().await.unwrap();
    }

    #[tokio::test]
    async fn changes_happen_as_if_alone() {
        let meta = Arc::new(MemoryStore::new());
        let store = Store::open(meta.clone()).await.unwrap();
        let lease = |n: u64| Lease {
            account: "123456789012".parse().unwrap(),
            address: "count".into(),
            instance: karri_base::id::InstanceId::from_bits(n.into()),
        };
        let key = Lease::key(&lease(0).account, "count");
        let count = |store: &Store| {
            store.get::<Lease>(&key).map_or(0, |l| u64::from_str_radix(&l.instance.as_str()[2..], 16).unwrap())
        };
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let (store, key) = (store.clone(), key.clone());
            tasks.spawn(async move {
                store
                    .change::<_, StoreError>(|txn| {
                        let n = txn
                            .get::<Lease>(&key)
                            .map_or(0, |l| u64::from_str_radix(&l.instance.as_str()[2..], 16).unwrap());
                        txn.put(lease(n + 1));
                        Ok(())
                    })
                    .await
                    .unwrap();
            });
        }
        while tasks.join_next().await.is_some() {}
        assert_eq!(count(&store), 100);
        // Somebody else's commit in between, and a commit that fails: memory is what the store is.
        meta.conflict_next(1);
        store
            .change::<_, StoreError>(|txn| {
                txn.put(lease(101));
                Ok(())
            })
            .await
            .unwrap();
        meta.fail_next(1);
        let failed = store
            .change::<_, StoreError>(|txn| {
                txn.put(lease(102));
                Ok(())
            })
            .await;
        assert!(failed.is_err());
        assert_eq!(count(&store), 101);
        assert_eq!(count(&Store::open(meta).await.unwrap()), 101);
    }
}
