//! The operations, one file per verb family, named as AWS names them. [`crate::api`] maps `s3s`'s types onto them.

pub mod attributes;
pub mod bucket;
pub mod complete;
pub mod condition;
pub mod configure;
pub mod copy;
pub mod delete;
pub mod encryption;
pub mod get;
mod input;
pub mod list_objects;
pub mod list_versions;
pub mod lock;
pub mod multipart;
pub mod object_acl;
pub mod put;
pub mod rename;
pub mod replication;
pub mod store;
pub mod tagging;
pub mod versioning;
