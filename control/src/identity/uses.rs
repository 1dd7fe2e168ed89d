//! When access keys and roles were last used.
//!
//! Noted in memory with each call of EC2, IAM and STS whose signature is good; written down once an hour and at the end, so
//! that a call costs no write, and kill -9 loses an hour at most. Walrus tells of S3's once a minute
//! ([`Directory::heard_of_uses`](super::Directory::heard_of_uses)).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use karri_base::aws::policy::Principal;
use karri_base::aws::policy::principal::Kind;
use karri_base::clock::UnixMicros;
use karri_meta::{Batch, MetaStore};

use super::records::{Entity as _, Used};
use super::state::{StateError, encode, load, prefix};

/// How often what is new is written down.
pub const KEPT_EVERY: Duration = Duration::from_secs(3600);

struct Noted {
    used: Used,
    /// What is on disk.
    kept_us: u64,
}

/// Last uses by access key's or role's id.
pub struct Uses(Mutex<HashMap<String, Noted>>);

impl Uses {
    /// Reads what was written down.
    ///
    /// # Errors
    /// See [`StateError`].
    pub(super) async fn load(meta: &dyn MetaStore) -> Result<Self, StateError> {
        let all = load::<Used>(meta).await?.into_values();
        let noted = all.map(|used| (used.id.clone(), Noted { kept_us: used.at_us, used: Used::clone(&used) }));
        Ok(Self(Mutex::new(noted.collect())))
    }

    /// Notes a call that was signed with this key by this principal.
    pub fn note(&self, access_key_id: &str, who: &Principal, service: &str, region: &str, now: UnixMicros) {
        // Temporary keys are many and soon gone: their role stands for them.
        let id = match access_key_id.starts_with(karri_base::aws::session::PREFIX) {
            false => access_key_id,
            true if matches!(who.kind, Kind::Role { .. }) => who.id.split(':').next().unwrap_or_default(),
            true => return,
        };
        self.used(id, service, region, now);
    }

    /// Notes a use of a key or a role, unless a later one is known.
    pub(super) fn used(&self, id: &str, service: &str, region: &str, now: UnixMicros) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get_mut(id) {
            Some(Noted { used, .. }) if used.at_us > now.0 => {}
            Some(Noted { used, .. }) => {
                used.at_us = now.0;
                if used.service != service {
                    service.clone_into(&mut used.service);
                }
                if used.region != region {
                    region.clone_into(&mut used.region);
                }
            }
            None => {
                let used = Used { id: id.into(), at_us: now.0, service: service.into(), region: region.into() };
                all.insert(id.into(), Noted { used, kept_us: 0 });
            }
        }
    }

    /// The last use of a key or a role.
    pub fn last(&self, id: &str) -> Option<Used> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).map(|noted| noted.used.clone())
    }

    /// Writes down what is new and forgets what `is_there` no more.
    pub(super) async fn keep(&self, meta: &dyn MetaStore, is_there: impl Fn(&str) -> bool) -> Result<(), StateError> {
        let prefix = prefix::<Used>();
        let (mut batch, mut written) = (Batch::new(), Vec::new());
        let (mut is_new, mut gone) = (false, Vec::new());
        {
            let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            for (id, Noted { used, kept_us }) in all.iter() {
                if !is_there(id) {
                    batch = batch.del(format!("{prefix}{id}"));
                    gone.push(id.clone());
                } else if used.at_us > *kept_us {
                    batch = batch.put(format!("{prefix}{}", used.key()), encode(used));
                    written.push((id.clone(), used.at_us));
                } else {
                    continue;
                }
                is_new = true;
            }
        }
        if !is_new {
            return Ok(());
        }
        meta.commit(batch).await?;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gone.iter().for_each(|id| drop(all.remove(id)));
        for (id, at_us) in written {
            if let Some(noted) = all.get_mut(&id) {
                noted.kept_us = at_us;
            }
        }
        Ok(())
    }
}
