//! The account and keys that a cloud starts with: from the credentials file, and those that an earlier version kept in
//! plain text. From there on `crate::identity` has them.

use std::path::Path;

use karri_base::config::Credentials;

use super::StartError;
use super::records::AccessKey;
use super::store::{Store, StoreError};
use crate::identity::{Directory, SYSTEM, Seed};

/// The account's first user.
pub const ADMIN: &str = "admin";

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

/// Takes in the file's two keys, whose word counts where a kept one differs (keys that it named before no longer count),
/// and the keys that version 1 kept in plain
/// text, which are then removed.
///
/// # Errors
/// The stores'.
pub async fn import(store: &Store, directory: &Directory, credentials: &Credentials) -> Result<(), StartError> {
    let old = store.list::<AccessKey>();
    let old_seed = |key: &std::sync::Arc<AccessKey>| Seed {
        account: key.account.clone(),
        name: key.arn.rsplit(['/', ':']).next().unwrap_or(ADMIN).to_owned(),
        email: String::new(),
        access_key_id: key.access_key_id.clone(),
        secret: key.secret.clone(),
        administrator: true,
    };
    let seed = |key: &karri_base::config::AccessKey, name: &str| Seed {
        account: credentials.account_id.clone(),
        name: name.to_owned(),
        email: String::new(),
        access_key_id: key.access_key_id.clone(),
        secret: key.secret_access_key.clone(),
        administrator: true,
    };
    // What the file named before under another id no longer counts.
    let (admin, system) = (seed(&credentials.admin, ADMIN), seed(&credentials.system, SYSTEM));
    let of_file = |s: &Seed| s.account == credentials.account_id && (s.name == ADMIN || s.name == SYSTEM);
    let old_seeds: Vec<Seed> = old.iter().filter(|k| k.active).map(old_seed).filter(|s| !of_file(s)).collect();
    directory.take_over(&old_seeds).await?;
    directory.seed(&[admin, system]).await?;
    if !old.is_empty() {
        let forget = |txn: &mut super::store::Txn<'_>| -> Result<(), StoreError> {
            old.iter().for_each(|key| txn.del::<AccessKey>(&key.access_key_id));
            Ok(())
        };
        store.change(forget).await?;
        tracing::info!(keys = old.len(), "access keys of an earlier version are sealed now");
    }
    Ok(())
}
