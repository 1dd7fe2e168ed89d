//! The local key service: keys that objects' keys are wrapped with, kept wrapped themselves.
//!
//! ```text
//! master key (a file, 0600) --wraps--> K records: one for SSE-S3, one per account and SSE-KMS key id --wrap--> objects' keys
//! ```
//!
//! A key is made when it is first named. The master key is never in the metadata store: whoever has only the store, or
//! only the disks, reads nothing.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use karri_bulk::BulkStore;
use karri_meta::{Batch, MetaError, MetaStore, Scan};

use crate::core::Core;
use crate::crypt::{Secret, WRAPPED};
use crate::error::{Error, Kind, Result};
use crate::keys;
use crate::record::codec::{Damage, Fields, Writer, array, number, unknown, wanted};
use crate::record::{Bucket, Holder};

/// What `K` records are authenticated with.
const ABOUT: &[u8] = b"karri vault";

/// The master key, and the service's keys that were used already.
pub struct Vault {
    master: Secret,
    known: Mutex<HashMap<String, Secret>>,
}

impl Vault {
    /// A vault under this master key.
    pub fn new(master: Secret) -> Self {
        Self { master, known: Mutex::default() }
    }

    /// The master key in a file of 64 hexadecimal digits; made, for its owner only, when it is not there.
    pub fn master_in(path: &Path) -> std::io::Result<Secret> {
        match std::fs::File::open(path) {
            Ok(mut file) => {
                let mut text = String::new();
                file.read_to_string(&mut text)?;
                let mut key = [0; 32];
                let bad = || std::io::Error::other(format!("{} holds no 64 hexadecimal digits", path.display()));
                hex::decode_to_slice(text.trim(), &mut key).map_err(|_| bad())?;
                Ok(Secret(key))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                // Whole or not at all, whatever the moment of a crash.
                let fresh = Secret::new();
                let part = path.with_extension("part");
                let mut options = std::fs::OpenOptions::new();
                let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&part)?;
                file.write_all(format!("{}\n", hex::encode(fresh.0)).as_bytes())?;
                file.sync_all()?;
                std::fs::rename(&part, path)?;
                if let Some(dir) = path.parent() {
                    std::fs::File::open(dir)?.sync_all()?;
                }
                Ok(fresh)
            }
            Err(e) => Err(e),
        }
    }

    /// Whether the keys that a store has open with this master key; one is tried, all are wrapped by the same.
    ///
    /// # Errors
    /// The store's; `InternalError` for a record that is damaged.
    pub async fn fits(&self, meta: &dyn MetaStore) -> Result<bool> {
        let mut some = meta.scan(Scan::prefix(keys::vault(""), 1)).await?;
        let Some((_, record)) = some.pop() else { return Ok(true) };
        Ok(self.master.unwrap(&read(&record)?, ABOUT).is_ok())
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, Secret>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: BulkStore> Core<B> {
    /// The key that this holder wraps objects' keys of a bucket with; `None` for a customer's, which is not kept.
    pub async fn holders_key(&self, bucket: &Bucket, holder: &Holder) -> Result<Option<Secret>> {
        let name = match holder {
            Holder::Walrus => "s3".to_owned(),
            Holder::Service(id) => format!("kms/{}/{id}", bucket.owner),
            Holder::Customer => return Ok(None),
        };
        let vault = &self.shared.vault;
        if let Some(secret) = vault.known().get(&name) {
            return Ok(Some(secret.clone()));
        }
        let key = keys::vault(&name);
        let secret = loop {
            if let Some(raw) = self.meta.get(key.clone()).await? {
                break vault.master.unwrap(&read(&raw)?, ABOUT).map_err(|e| {
                    Error::new(Kind::InternalError, "A key of the key service does not open with the master key.")
                        .caused(e)
                })?;
            }
            let fresh = Secret::new();
            let mut record = Writer::new(b'K');
            record.field(1, &vault.master.wrap(&fresh, ABOUT));
            record.number(2, self.now().0);
            match self.meta.commit(Batch::new().check(key.clone(), None).put(key.clone(), record.finish())).await {
                Ok(()) => break fresh,
                Err(MetaError::Conflict { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        };
        vault.known().insert(name, secret.clone());
        Ok(Some(secret))
    }
}

fn read(record: &[u8]) -> Result<[u8; WRAPPED], Damage> {
    let mut fields = Fields::open(b'K', record)?;
    let mut wrapped = None;
    while let Some((tag, bytes)) = fields.pull()? {
        match tag {
            1 => wrapped = Some(array(tag, bytes)?),
            2 => {
                number(tag, bytes)?;
            }
            _ => unknown(tag)?,
        }
    }
    wanted(1, wrapped)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_the_store_s_own_master_key_fits() {
        karri_engine::sim::run(1, |_| async {
            let (meta, own) = (karri_meta::memory::MemoryStore::new(), Secret::new());
            let (vault, other) = (Vault::new(own.clone()), Vault::new(Secret::new()));
            assert!(vault.fits(&meta).await.unwrap() && other.fits(&meta).await.unwrap(), "there is no key yet");
            let mut record = Writer::new(b'K');
            record.field(1, &own.wrap(&Secret::new(), ABOUT));
            meta.commit(Batch::new().put(keys::vault("s3"), record.finish())).await.unwrap();
            assert!(vault.fits(&meta).await.unwrap() && !other.fits(&meta).await.unwrap());
            meta.commit(Batch::new().put(keys::vault("s3"), "x")).await.unwrap();
            assert!(vault.fits(&meta).await.is_err());
        });
    }

    #[test]
    fn the_master_key_is_made_once_and_for_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        let first = Vault::master_in(&path).unwrap();
        assert_eq!(Vault::master_in(&path).unwrap(), first);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing half-written is left");
        std::fs::write(&path, "x").unwrap();
        assert!(Vault::master_in(&path).is_err());
    }
}
