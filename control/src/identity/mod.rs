//! Identity: accounts, users, groups, roles, policies and keys; the IAM and STS APIs over them.
//!
//! ```text
//!  IAM, STS requests -> api -> state (all records in memory) -- one batch --> MetaStore
//!                               |
//!                               +-> told: who may sign in, with which policies --> KeyRing here, WatchKeys elsewhere
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`records`], [`state`] | what is kept, and how it changes |
//! | [`api`] | the IAM actions, one file per family |
//! | [`sts`], [`oidc`] | temporary credentials; tokens of OpenID Connect providers |
//! | [`authorize`] | the question that every request of the cloud is asked |
//! | [`told`] | what other roles learn |
//! | [`validate`] | Access Analyzer's ValidatePolicy |
//! | [`uses`] | when keys and roles were last used |
//! | [`secrets`] | sealing of secrets, hashing of passwords |
//! | [`alone`] | IAM and STS on an address of their own, beside Walrus |
//!
//! Promises: a change that was answered is durable, and known to this process's [`KeyRing`] before the answer. Leaves
//! the listener and signatures to the cloud's HTTP front, decisions to `karri_base::aws::policy`.

pub mod alone;
pub mod api;
pub mod authorize;
pub mod aws_managed;
pub mod oidc;
pub mod records;
pub mod secrets;
pub mod state;
pub mod sts;
pub mod told;
pub mod uses;
pub mod validate;

#[cfg(test)]
mod account_tests;
#[cfg(test)]
mod escalation_tests;
#[cfg(test)]
mod oidc_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use karri_base::aws::keys::KeyRing;
use karri_base::clock::{Clock, UnixMicros};
use karri_base::id::AccountId;
use karri_base::proto;
use karri_meta::MetaStore;
use tokio::sync::watch;

use crate::cloud::error::{ApiError, Code};
use records::{AccessKey, Account, Bearer, Entity, User};
use secrets::Sealer;
use state::{State, StateError};
use uses::Uses;

impl From<StateError> for ApiError {
    fn from(e: StateError) -> Self {
        tracing::error!(error = %e, "the records of identities failed");
        Self::new(Code::InternalError, "An internal error has occurred")
    }
}

/// All identities.
pub struct Directory {
    meta: Arc<dyn MetaStore>,
    state: RwLock<Arc<State>>,
    writing: tokio::sync::Mutex<()>,
    changes: watch::Sender<u64>,
    told: RwLock<Arc<proto::Keys>>,
    ring: KeyRing,
    sealer: Sealer,
    clock: Arc<dyn Clock>,
    oidc: Option<PathBuf>,
    uses: Uses,
    reports: Reports,
}

/// The last credential report of each account, by its number: when it was made, in microseconds since 1970, and its text.
type Reports = Mutex<BTreeMap<String, (u64, Arc<str>)>>;

/// Whether there is a key or a role with an id.
fn has_uses(state: &State) -> impl Fn(&str) -> bool {
    let roles: BTreeSet<&str> = state.roles.values().map(|r| r.id.as_str()).collect();
    move |id| state.keys.contains_key(id) || roles.contains(id)
}

/// A key to have from the start.
#[derive(Clone)]
pub struct Seed {
    /// Whose.
    pub account: AccountId,
    /// A user's name, `root`, or `karri-system`.
    pub name: String,
    /// The account's address; empty where it has none.
    pub email: String,
    /// `AKIA...`.
    pub access_key_id: String,
    /// Its secret.
    pub secret: String,
    /// Whether a user that is made for it may do everything in its account.
    pub administrator: bool,
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seed({}, {} of {}, secret hidden)", self.access_key_id, self.name, self.account)
    }
}

/// The seed that stands for the roles among themselves.
pub const SYSTEM: &str = "karri-system";

impl Directory {
    /// Reads all records; `key` (32 bytes) seals secrets and sessions.
    ///
    /// # Errors
    /// See [`StateError`].
    pub async fn open(meta: Arc<dyn MetaStore>, key: [u8; 32], clock: Arc<dyn Clock>) -> Result<Self, StateError> {
        let state = State::load(&*meta).await?;
        let uses = Uses::load(&*meta).await?;
        let directory = Self {
            meta,
            state: RwLock::new(Arc::new(state)),
            writing: tokio::sync::Mutex::default(),
            changes: watch::Sender::new(0),
            told: RwLock::default(),
            ring: KeyRing::default(),
            sealer: Sealer::new(key),
            clock,
            oidc: None,
            uses,
            reports: Reports::default(),
        };
        directory.refill();
        Ok(directory)
    }

    /// With this folder of OpenID Connect providers' keys (see [`oidc::file`]).
    #[must_use]
    pub fn with_oidc(self, folder: impl Into<PathBuf>) -> Self {
        Self { oidc: Some(folder.into()), ..self }
    }
    /// Where providers' keys lie.
    pub fn oidc(&self) -> Option<&Path> {
        self.oidc.as_deref()
    }
    /// Everything, as it is now.
    pub fn state(&self) -> Arc<State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
    /// Who may sign in here; clones stay current.
    pub fn ring(&self) -> &KeyRing {
        &self.ring
    }
    /// A counter of changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
    /// Seals secrets.
    pub fn sealer(&self) -> &Sealer {
        &self.sealer
    }
    /// Last uses of keys and roles.
    pub fn uses(&self) -> &Uses {
        &self.uses
    }
    /// Writes down last uses that are not on disk yet, and forgets those of what is gone.
    ///
    /// # Errors
    /// The store's.
    pub async fn keep_uses(&self) -> Result<(), StateError> {
        let state = self.state();
        self.uses.keep(&*self.meta, has_uses(&state)).await
    }
    /// Notes what another role tells of uses: of keys and roles that are here, and not of the future.
    pub fn heard_of_uses(&self, told: &proto::ReportUsesRequest) {
        let state = self.state();
        let (is_there, now) = (has_uses(&state), self.now_us());
        for proto::Use { id, at_us } in told.uses.iter().filter(|used| is_there(&used.id)) {
            self.uses.used(id, &told.service, &told.region, UnixMicros(now.min(*at_us)));
        }
    }
    /// As [`Directory::keep_uses`], every hour until `stop` turns true, and then once more.
    pub async fn keep_uses_hourly(&self, mut stop: watch::Receiver<bool>) {
        let mut goes_on = true;
        while goes_on {
            goes_on = tokio::select! {
                () = tokio::time::sleep(uses::KEPT_EVERY) => true,
                () = crate::cloud::stopped(&mut stop) => false,
            };
            if let Err(error) = self.keep_uses().await {
                tracing::warn!(%error, "last uses of access keys could not be written down");
            }
        }
    }
    /// Microseconds since 1970.
    pub fn now_us(&self) -> u64 {
        self.clock.now().0
    }

    /// Changes what `change` changes; all of it or, where that returns an error, nothing.
    ///
    /// # Errors
    /// What `change` returned, or the store's.
    pub async fn change<T, E: From<StateError>>(
        &self,
        change: impl FnOnce(&mut State) -> Result<T, E>,
    ) -> Result<T, E> {
        let _one = self.writing.lock().await;
        let before = self.state();
        let mut after = State::clone(&before);
        let answer = change(&mut after)?;
        if before.is_same(&after) {
            return Ok(answer);
        }
        if let Err(e) = self.meta.commit(before.batch_to(&after)).await {
            // It may have happened: what is there is the truth.
            if let Ok(there) = State::load(&*self.meta).await {
                self.publish(there);
            }
            return Err(StateError::from(e).into());
        }
        self.publish(after);
        Ok(answer)
    }

    fn publish(&self, state: State) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
        self.refill();
        self.changes.send_modify(|n| *n += 1);
    }

    /// Tells the ring here and whoever watches; a change of nothing that they need to know is not told.
    fn refill(&self) {
        let told = self.tell();
        if *self.told() == told {
            return;
        }
        for what in self.ring.fill(&told) {
            tracing::warn!(error = %what, "an identity cannot be used");
        }
        *self.told.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(told);
    }

    /// Makes what the seeds name where it is not there; a seed's secret counts over the one kept. Keys that an earlier
    /// call named and this one does not are removed.
    ///
    /// # Errors
    /// The store's.
    pub async fn seed(&self, seeds: &[Seed]) -> Result<(), StateError> {
        let now_us = self.now_us();
        self.change(|state| {
            state.keys.retain(|id, key| !key.seeded || seeds.iter().any(|seed| seed.access_key_id == *id));
            seeds.iter().for_each(|seed| self.plant(state, seed, true, now_us));
            Ok(())
        })
        .await
    }

    /// As [`Directory::seed`], but what is made is like what IAM made: later seeds do not remove it.
    ///
    /// # Errors
    /// The store's.
    pub async fn take_over(&self, seeds: &[Seed]) -> Result<(), StateError> {
        let now_us = self.now_us();
        self.change(|state| {
            seeds.iter().for_each(|seed| self.plant(state, seed, false, now_us));
            Ok(())
        })
        .await
    }

    fn plant(&self, state: &mut State, seed: &Seed, seeded: bool, now_us: u64) {
        let account = state.accounts.entry(seed.account.to_string());
        let account = account.or_insert_with(|| {
            let (name, email) = (String::new(), String::new());
            Arc::new(Account { id: seed.account.clone(), name, email, alias: None, passwords: None })
        });
        let name = if seed.name == SYSTEM { "" } else { seed.name.as_str() };
        let lacks = |has: &str, is: &str| has.is_empty() && !is.is_empty();
        if lacks(&account.name, name) || lacks(&account.email, &seed.email) {
            let account = Arc::make_mut(account);
            (account.name, account.email) = (name.to_owned(), seed.email.clone());
        }
        let bearer = match seed.name.as_str() {
            "root" => Bearer::Root,
            SYSTEM => Bearer::System,
            name => {
                let key = records::named(&seed.account, name);
                state.users.entry(key.clone()).or_insert_with(|| {
                    let mut policies = records::Policies::default();
                    if seed.administrator {
                        policies.attached.insert("arn:aws:iam::aws:policy/AdministratorAccess".into());
                    }
                    Arc::new(User {
                        account: seed.account.clone(),
                        name: name.to_owned(),
                        path: "/".into(),
                        id: secrets::unique_id("AIDA"),
                        created_us: now_us,
                        tags: Default::default(),
                        boundary: None,
                        policies,
                        groups: Default::default(),
                        login: None,
                    })
                });
                Bearer::User(key)
            }
        };
        let known = state.keys.get(&seed.access_key_id);
        let is_same = known.is_some_and(|k| {
            k.bearer == bearer
                && (k.seeded || !seeded)
                && k.account == seed.account
                && self.sealer.open(&k.id, &k.secret).as_deref() == Some(seed.secret.as_str())
        });
        if !is_same {
            let key = AccessKey {
                id: seed.access_key_id.clone(),
                account: seed.account.clone(),
                bearer,
                secret: self.sealer.seal(&seed.access_key_id, &seed.secret),
                active: true,
                seeded,
                created_us: now_us,
            };
            state.keys.insert(key.key(), Arc::new(key));
        }
    }
}
