//! Access keys that a role authenticates requests with, replaced whole when the cloud says so.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, RwLock};

use crate::id::AccountId;

/// An access key, its secret and whom it stands for.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// `AKIA...`.
    pub access_key_id: String,
    /// The secret that signatures are made with. Never logged.
    pub secret: String,
    /// The account that owns what this key makes.
    pub account: AccountId,
    /// The principal's ARN.
    pub arn: String,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({}, {}, secret hidden)", self.access_key_id, self.arn)
    }
}

/// All keys that are valid now. Clones share the same ring.
#[derive(Clone, Default, Debug)]
pub struct KeyRing(Arc<RwLock<HashMap<String, Arc<Key>>>>);

impl KeyRing {
    /// A ring of these keys.
    pub fn new(keys: impl IntoIterator<Item = Key>) -> Self {
        let ring = Self::default();
        ring.replace(keys);
        ring
    }
    /// The key with this id.
    pub fn get(&self, access_key_id: &str) -> Option<Arc<Key>> {
        self.0.read().unwrap_or_else(|e| e.into_inner()).get(access_key_id).cloned()
    }
    /// Replaces all keys at once.
    pub fn replace(&self, keys: impl IntoIterator<Item = Key>) {
        let map = keys.into_iter().map(|k| (k.access_key_id.clone(), Arc::new(k))).collect();
        *self.0.write().unwrap_or_else(|e| e.into_inner()) = map;
    }
    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.0.read().unwrap_or_else(|e| e.into_inner()).len()
    }
    /// True when nobody can sign in.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
