//! What a bucket is configured to do: sub-documents kept in its record, each under a tag of its own, and read into types
//! once, when the record is cached.
//!
//! | module | sub-documents |
//! |---|---|
//! | [`simple`] | public access block, ownership controls, tags, request payment, acceleration, quota |
//! | [`cors`] | cross-origin rules |
//! | [`lifecycle`] | lifecycle rules |
//! | [`website`] | website hosting |
//! | [`replication`] | replication rules |
//! | [`inventory`] | inventory reports |
//! | [`events`] | event notifications, server access logs |
//!
//! XML sub-documents are stored as they are answered: read, checked, written anew. A policy is stored as it came.

pub mod cors;
pub mod events;
pub mod inventory;
pub mod lifecycle;
pub mod replication;
pub mod simple;
pub mod website;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::access::acl::Acl;
use crate::record::codec::{Damage, Writer};

/// The sub-documents, by their tags in the bucket's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Doc {
    Acl = 32,
    Policy = 33,
    Cors = 34,
    Lifecycle = 35,
    Tagging = 36,
    PublicAccess = 37,
    Ownership = 38,
    Website = 40,
    Logging = 41,
    Notification = 42,
    Payment = 43,
    Accelerate = 44,
    Quota = 45,
    /// Empty: objects of the bucket may belong to others than its owner, or be withheld from him.
    Shared = 46,
    /// Empty: the policy was put with x-amz-confirm-remove-self-bucket-access, and binds the account's root too.
    PolicyBindsRoot = 47,
    Replication = 48,
    Inventory = 49,
    /// Empty: the bucket's default encryption says BucketKeyEnabled.
    BucketKey = 50,
}

/// The first and the last tag.
const TAGS: std::ops::RangeInclusive<u8> = 32..=50;

/// A bucket's sub-documents as stored. Clones share them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Documents(Arc<BTreeMap<u8, Bytes>>);

impl Documents {
    /// A sub-document.
    pub fn get(&self, doc: Doc) -> Option<&Bytes> {
        self.0.get(&(doc as u8))
    }
    /// True when it is there.
    pub fn has(&self, doc: Doc) -> bool {
        self.0.contains_key(&(doc as u8))
    }
    /// Sets or removes one.
    pub fn set(&mut self, doc: Doc, value: Option<Bytes>) {
        let map = Arc::make_mut(&mut self.0);
        match value {
            Some(value) => map.insert(doc as u8, value),
            None => map.remove(&(doc as u8)),
        };
    }
    /// Into a record.
    pub fn write(&self, w: &mut Writer) {
        for (tag, bytes) in self.0.iter() {
            w.field(*tag, bytes);
        }
    }
    /// Takes a field that belongs here.
    pub fn read(&mut self, tag: u8, bytes: &[u8]) -> bool {
        if TAGS.contains(&tag) {
            Arc::make_mut(&mut self.0).insert(tag, Bytes::copy_from_slice(bytes));
        }
        TAGS.contains(&tag)
    }
}

/// The sub-documents that requests are judged and answered by, read.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The bucket's list; `None` is private.
    pub acl: Option<Acl>,
    /// Rules for other origins.
    pub cors: Vec<cors::Rule>,
    /// Rules of ageing.
    pub lifecycle: Vec<lifecycle::Rule>,
    /// What of the public is refused.
    pub public_access: simple::PublicAccess,
    /// Whose objects are.
    pub ownership: simple::Ownership,
    /// Website hosting.
    pub website: Option<website::Website>,
    /// Where access logs go.
    pub logging: Option<events::Logging>,
    /// Who is told of events.
    pub notifications: Vec<events::Notification>,
    /// What is sent on to other buckets.
    pub replication: Option<replication::Replication>,
    /// Reports of what is in it.
    pub inventories: Vec<inventory::Inventory>,
    /// Bytes and objects at most.
    pub quota: simple::Quota,
    /// True when requesters pay, and must say so.
    pub requester_pays: bool,
}

impl Settings {
    /// Reads what is stored.
    ///
    /// # Errors
    /// Damage: what is stored was checked before.
    pub fn of(documents: &Documents) -> Result<Self, Damage> {
        fn read<T>(
            documents: &Documents,
            doc: Doc,
            read: impl Fn(&[u8]) -> crate::error::Result<T>,
        ) -> Result<Option<T>, Damage> {
            let damage = |_| Damage::Field { tag: doc as u8, why: "is no document of its kind" };
            documents.get(doc).map(|bytes| read(bytes).map_err(damage)).transpose()
        }
        Ok(Self {
            acl: documents.get(Doc::Acl).map(|bytes| Acl::decode(Doc::Acl as u8, bytes)).transpose()?,
            cors: read(documents, Doc::Cors, cors::parse)?.unwrap_or_default(),
            lifecycle: read(documents, Doc::Lifecycle, lifecycle::parse)?.unwrap_or_default(),
            public_access: read(documents, Doc::PublicAccess, simple::PublicAccess::parse)?.unwrap_or_default(),
            ownership: read(documents, Doc::Ownership, simple::Ownership::parse)?.unwrap_or_default(),
            website: read(documents, Doc::Website, website::parse)?,
            logging: read(documents, Doc::Logging, events::Logging::parse)?.flatten(),
            notifications: read(documents, Doc::Notification, events::parse)?.unwrap_or_default(),
            replication: read(documents, Doc::Replication, replication::parse)?,
            inventories: read(documents, Doc::Inventory, inventory::parse)?.unwrap_or_default(),
            quota: read(documents, Doc::Quota, simple::Quota::parse)?.unwrap_or_default(),
            requester_pays: read(documents, Doc::Payment, simple::payment)?.unwrap_or(false),
        })
    }
}
