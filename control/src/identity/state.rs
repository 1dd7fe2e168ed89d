//! All identities in memory, and how they change: a change works on a copy of the maps (their records are shared), what
//! differs is committed in one batch, then everyone sees the new state. One change at a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use karri_base::id::AccountId;
use karri_meta::{Batch, MetaError, MetaStore, Scan};
use serde::{Deserialize, Serialize};

use super::records::{AccessKey, Account, Entity, Group, Managed, Profile, Provider, Role, User, named};

/// Records of one kind by key.
pub type Table<R> = BTreeMap<String, Arc<R>>;

/// Everything.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// By number.
    pub accounts: Table<Account>,
    /// By account and name.
    pub users: Table<User>,
    /// By account and name.
    pub groups: Table<Group>,
    /// By account and name.
    pub roles: Table<Role>,
    /// By account and name.
    pub profiles: Table<Profile>,
    /// By account and name.
    pub policies: Table<Managed>,
    /// By account and URL.
    pub providers: Table<Provider>,
    /// By id.
    pub keys: Table<AccessKey>,
}

/// Why identities could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StateError {
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
}

#[derive(Serialize, Deserialize)]
struct Envelope<R> {
    v: u32,
    r: R,
}
const VERSION: u32 = 1;

pub(super) fn prefix<R: Entity>() -> String {
    format!("iam/{}/", R::KIND)
}

/// The bytes of a record.
pub fn encode<R: Entity>(record: &R) -> Bytes {
    #[derive(Serialize)]
    struct Out<'a, R> {
        v: u32,
        r: &'a R,
    }
    Bytes::from(serde_json::to_vec(&Out { v: VERSION, r: record }).expect("records are plain data"))
}

pub(super) async fn load<R: Entity>(meta: &dyn MetaStore) -> Result<Table<R>, StateError> {
    let prefix = prefix::<R>();
    let to = Bytes::from(format!("{}0", prefix.trim_end_matches('/')));
    let (mut from, mut out) = (Bytes::from(prefix), Table::new());
    loop {
        let pairs = meta.scan(Scan { range: from..to.clone(), limit: 1000, reverse: false }).await?;
        let Some((last, _)) = pairs.last() else { return Ok(out) };
        from = Bytes::from([last, &b"\0"[..]].concat());
        for (key, bytes) in pairs {
            let bad = |why: String| StateError::Undecodable { key: String::from_utf8_lossy(&key).into_owned(), why };
            let read: Envelope<R> = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
            if read.v != VERSION {
                return Err(bad(format!("its format is version {}, this karri reads {VERSION}", read.v)));
            }
            out.insert(read.r.key(), Arc::new(read.r));
        }
    }
}

fn differences<R: Entity>(mut batch: Batch, old: &Table<R>, new: &Table<R>) -> Batch {
    let prefix = prefix::<R>();
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        batch = batch.del(format!("{prefix}{key}"));
    }
    for (key, record) in new {
        if old.get(key).is_none_or(|known| !Arc::ptr_eq(known, record)) {
            batch = batch.put(format!("{prefix}{key}"), encode(&**record));
        }
    }
    batch
}

impl State {
    /// Reads everything.
    ///
    /// # Errors
    /// See [`StateError`].
    pub async fn load(meta: &dyn MetaStore) -> Result<Self, StateError> {
        Ok(Self {
            accounts: load(meta).await?,
            users: load(meta).await?,
            groups: load(meta).await?,
            roles: load(meta).await?,
            profiles: load(meta).await?,
            policies: load(meta).await?,
            providers: load(meta).await?,
            keys: load(meta).await?,
        })
    }

    /// What makes `self` into `new`.
    pub fn batch_to(&self, new: &Self) -> Batch {
        let batch = differences(Batch::new(), &self.accounts, &new.accounts);
        let batch = differences(batch, &self.users, &new.users);
        let batch = differences(batch, &self.groups, &new.groups);
        let batch = differences(batch, &self.roles, &new.roles);
        let batch = differences(batch, &self.profiles, &new.profiles);
        let batch = differences(batch, &self.policies, &new.policies);
        let batch = differences(batch, &self.providers, &new.providers);
        differences(batch, &self.keys, &new.keys)
    }

    /// True where nothing differs.
    pub fn is_same(&self, other: &Self) -> bool {
        fn same<R>(a: &Table<R>, b: &Table<R>) -> bool {
            a.len() == b.len() && a.iter().zip(b).all(|((_, a), (_, b))| Arc::ptr_eq(a, b))
        }
        same(&self.accounts, &other.accounts)
            && same(&self.users, &other.users)
            && same(&self.groups, &other.groups)
            && same(&self.roles, &other.roles)
            && same(&self.profiles, &other.profiles)
            && same(&self.policies, &other.policies)
            && same(&self.providers, &other.providers)
            && same(&self.keys, &other.keys)
    }

    /// The user's keys.
    pub fn keys_of<'a>(&'a self, user: &'a User) -> impl Iterator<Item = &'a Arc<AccessKey>> {
        let key = user.key();
        self.keys.values().filter(move |k| matches!(&k.bearer, super::records::Bearer::User(u) if *u == key))
    }
    /// A customer's managed policy by its ARN.
    pub fn policy(&self, arn: &str) -> Option<&Arc<Managed>> {
        let parsed: karri_base::aws::arn::Arn = arn.parse().ok()?;
        let account: AccountId = parsed.account.parse().ok()?;
        let name = parsed.resource.strip_prefix("policy/")?.rsplit('/').next()?;
        self.policies.get(&named(&account, name)).filter(|p| p.arn() == arn)
    }
    /// The document of a managed policy that counts, AWS's own included.
    pub fn document(&self, arn: &str) -> Option<&str> {
        if let Some(known) = super::aws_managed::find(arn) {
            return Some(known.document);
        }
        let policy = self.policy(arn)?;
        Some(&policy.versions.get(&policy.default)?.document)
    }
    /// As [`State::document`], but none of another account's.
    pub fn document_for(&self, account: &AccountId, arn: &str) -> Option<&str> {
        let is_aws = super::aws_managed::find(arn).is_some();
        let is_own = || self.policy(arn).is_some_and(|policy| policy.account == *account);
        if is_aws || is_own() { self.document(arn) } else { None }
    }
    /// A user's policies: its own, then its groups'.
    pub fn documents_of_user<'a>(&'a self, user: &'a User) -> Vec<&'a str> {
        let groups = user.groups.iter().filter_map(|key| self.groups.get(key));
        let all = std::iter::once(&user.policies).chain(groups.map(|g| &g.policies));
        all.flat_map(|p| self.documents_of(p)).collect()
    }
    /// The documents of these policies.
    pub fn documents_of<'a>(&'a self, policies: &'a super::records::Policies) -> Vec<&'a str> {
        let inline = policies.inline.values().map(String::as_str);
        inline.chain(policies.attached.iter().filter_map(|arn| self.document(arn))).collect()
    }
}
