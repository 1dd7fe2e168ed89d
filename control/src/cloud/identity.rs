//! Accounts and access keys: imported from the credentials file at the first start, kept as records, told to the roles
//! that check signatures themselves (`Identity.WatchKeys`).

use std::path::Path;
use std::pin::Pin;

use futures_util::Stream;
use karri_base::aws::keys::{Key, KeyRing};
use karri_base::config::Credentials;
use karri_base::proto;
use karri_base::proto::identity_server::Identity;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::records::AccessKey;
use super::store::{Store, StoreError};
use super::{StartError, stopped};

/// The account's first user.
pub const ADMIN: &str = "user/admin";
/// What roles sign as among themselves.
pub const SYSTEM: &str = "role/karri-system";

/// Reads a credentials file.
///
/// # Errors
/// What is wrong with it, by its path.
pub fn read_credentials(path: &Path) -> Result<Credentials, StartError> {
    let bad = |why: String| StartError::Credentials { path: path.to_owned(), why };
    let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
    // The parser's message may quote the line, which may be a secret.
    let parsed: Result<Credentials, _> = toml::from_str(&text);
    parsed.map_err(|e| bad(e.message().to_owned()))
}

/// Records the file's two keys; the file's word counts where they differ. Keys that it named before no longer count.
pub async fn import(store: &Store, credentials: &Credentials) -> Result<(), StoreError> {
    let account = &credentials.account_id;
    let record = |key: &karri_base::config::AccessKey, who: &str| AccessKey {
        access_key_id: key.access_key_id.clone(),
        secret: key.secret_access_key.clone(),
        account: account.clone(),
        arn: format!("arn:aws:iam::{account}:{who}"),
        active: true,
    };
    let wanted = [record(&credentials.admin, ADMIN), record(&credentials.system, SYSTEM)];
    store
        .change(|txn| {
            for key in &wanted {
                let has = txn.get::<AccessKey>(&key.access_key_id);
                if has.is_none_or(|h| h.secret != key.secret || h.arn != key.arn || h.account != key.account) {
                    txn.put(key.clone());
                }
            }
            for old in txn.list::<AccessKey>() {
                let replaced = wanted.iter().any(|k| k.arn == old.arn && k.access_key_id != old.access_key_id);
                if replaced && old.active {
                    txn.put(AccessKey { active: false, ..(*old).clone() });
                }
            }
            Ok(())
        })
        .await
}

/// The active keys.
pub fn keys(store: &Store) -> Vec<Key> {
    let active = store.list::<AccessKey>().into_iter().filter(|k| k.active);
    let key = |k: std::sync::Arc<AccessKey>| Key {
        access_key_id: k.access_key_id.clone(),
        secret: k.secret.clone(),
        account: k.account.clone(),
        arn: k.arn.clone(),
    };
    active.map(key).collect()
}

/// Refills the ring from the records.
pub fn refill(store: &Store, ring: &KeyRing) {
    ring.replace(keys(store));
}

fn snapshot(store: &Store) -> proto::Keys {
    let key = |k: Key| proto::Key {
        access_key_id: k.access_key_id,
        secret_access_key: k.secret,
        account_id: k.account.to_string(),
        arn: k.arn,
        active: true,
        principal_id: String::new(),
    };
    proto::Keys { keys: keys(store).into_iter().map(key).collect(), ..Default::default() }
}

/// The gRPC service.
pub struct IdentityService {
    store: Store,
    stop: watch::Receiver<bool>,
}

impl IdentityService {
    /// Over these records, until `stop` turns true.
    pub fn new(store: Store, stop: watch::Receiver<bool>) -> Self {
        Self { store, stop }
    }
}

struct Watching {
    store: Store,
    changes: watch::Receiver<u64>,
    stop: watch::Receiver<bool>,
    told: Option<proto::Keys>,
}

impl Watching {
    /// The next snapshot that differs from the last one told; none when the role stops.
    async fn next(&mut self) -> Option<proto::Keys> {
        loop {
            let now = snapshot(&self.store);
            if self.told.as_ref() != Some(&now) {
                self.told = Some(now.clone());
                return Some(now);
            }
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                () = stopped(&mut self.stop) => return None,
            }
        }
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    type WatchKeysStream = Pin<Box<dyn Stream<Item = Result<proto::Keys, Status>> + Send>>;

    async fn watch_keys(&self, _: Request<proto::WatchKeysRequest>) -> Result<Response<Self::WatchKeysStream>, Status> {
        let mut changes = self.store.changes();
        changes.mark_unchanged();
        let watching = Watching { store: self.store.clone(), changes, stop: self.stop.clone(), told: None };
        let stream = futures_util::stream::unfold(watching, |mut w| async move { w.next().await.map(|k| (Ok(k), w)) });
        Ok(Response::new(Box::pin(stream)))
    }
}
