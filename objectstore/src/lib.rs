//! Walrus: karri's object storage, S3 over `s3s` on the engine.
//!
//! An object up to 32 KiB lives with its record in the metadata store, so a small PUT is one durable commit; a larger
//! one streams into the bulk store and its record follows. What is stored and what a crash leaves: `docs/records.md`.
//!
//! | module | holds |
//! |---|---|
//! | [`api`] | `s3s`'s trait over the operations |
//! | [`route`] | subresources that Walrus reads itself: configuration of buckets, lists |
//! | [`form`] | browsers' POST forms |
//! | [`site`] | buckets shown as websites |
//! | [`front`] | one request, from its head to its answer |
//! | [`range`] | ranges that are to be ignored |
//! | [`place`] | which bucket and key a request is about, by its host and path |
//! | [`sig_v2`] | what `s3s` leaves of Signature Version 2 |
//! | [`note`] | what becomes known of a request on its way |
//! | [`guard`] | what is checked before `s3s` sees a request |
//! | [`access`] | who may: requests into actions, ACLs, bucket and identity policies |
//! | [`config`], [`buckets`] | what a bucket is configured to do; bucket records in memory |
//! | [`ops`] | the operations, one file per verb family |
//! | [`core`] | what one core serves with; the steps that operations share |
//! | [`audit`] | a line of JSON for each request |
//! | [`slow`] | the log of slow requests |
//! | [`tls`] | the certificate, and its renewal |
//! | [`scrub`] | looks through the whole store for what is corrupt, and for what nothing refers to |
//! | [`body`] | bodies in and out with bounded memory |
//! | [`hot`] | data that is read again and again, in memory |
//! | [`hashing`], [`md5_lanes`] | checksums of many bodies at once |
//! | [`change`], [`usage`] | one change of a bucket; objects and bytes counted, quotas |
//! | [`operator`] | what only the operator may set |
//! | [`versions`] | finding, superseding and removing versions |
//! | [`list`] | the walk behind LIST, pure |
//! | [`record`], [`keys`] | the records and where they live |
//! | [`crypt`], [`vault`] | encryption of stored data, and the keys that it takes |
//! | [`digest`], [`document`] | checksums; those of XML bodies |
//! | [`token`], [`xml`] | continuation tokens, documents |
//! | [`accesslog`], [`witness`], [`delivery`] | server access logs: lines, where they come from, where they go |
//! | [`notify`], [`courier`] | events: told in the commits that make them happen, delivered |
//! | [`replicate`] | replication: queued in the commits that change objects, carried to buckets here and elsewhere |
//! | [`outbound`] | requests to other servers, over TLS or not |
//! | [`inventory`] | inventory reports |
//! | [`ageing`] | lifecycle rules carried out |
//! | [`reclaim`] | giving space back |
//! | [`mod@serve`] | engine cores, listeners, the store: a running Walrus |
//! | [`role`] | the walrus role in a cloud: keys from its identity service |
//! | [`error`] | what can go wrong, and the table to S3's codes |
//!
//! Invariants: an answer of success comes after the commit; a commit checks every record that its decision read; data is
//! sealed before a record names it, and deleted only after no record does; nothing is `Send` but the stores' handles.

#![forbid(unsafe_code)]

pub mod access;
pub mod accesslog;
pub mod ageing;
pub mod api;
pub mod audit;
pub mod body;
pub mod buckets;
pub mod change;
pub mod config;
pub mod core;
pub mod courier;
pub mod crypt;
pub mod delivery;
pub mod digest;
pub mod document;
pub mod error;
pub mod expect;
pub mod form;
pub mod front;
pub mod fuzz;
pub mod guard;
pub mod hashing;
pub mod hot;
pub mod inventory;
pub mod keys;
pub mod list;
pub mod md5_lanes;
pub mod metrics;
pub mod note;
pub mod notify;
pub mod operator;
pub mod ops;
pub mod outbound;
pub mod place;
pub mod range;
pub mod reclaim;
pub mod record;
pub mod replicate;
pub mod role;
pub mod route;
pub mod scrub;
pub mod serve;
pub mod sig_v2;
pub mod signed_at;
pub mod site;
pub mod slow;
pub mod tls;
pub mod token;
pub mod usage;
pub mod vault;
pub mod versions;
pub mod witness;
pub mod xml;

pub use role::start;
pub use serve::{Handle, ServeOptions, StartError, serve, standalone};
