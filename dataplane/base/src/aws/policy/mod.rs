//! IAM policies: documents read strictly, and the one evaluator that every service asks.
//!
//! ```text
//!  text --Policy::parse--> Policy --+
//!  Identity (who, its policies, boundary, session policies) --+--> decide --> Decision
//!  Target (owner, resource policy, ACL) ----------------------+
//!  Request (action, resource ARN, Context) -------------------+
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`document`] | the language: statements, elements, size limits, what is malformed |
//! | [`condition`] | condition operators |
//! | [`pattern`] | `*`, `?`, `${variables}`, ARNs by component |
//! | [`principal`] | who asks, and who is meant by `Principal` |
//! | [`context`] | a request's condition keys |
//! | [`place`] | where in its text a part of a document is |
//! | [`evaluate`] | how the layers meet |
//!
//! Pure: no clock, no I/O. A service says which keys it sets, which policies apply and who owns the resource; the rules
//! are AWS's ("Policy evaluation logic", IAM User Guide). Leaves to services: which action an operation is, what root
//! may always do (such as mending a bucket policy), public access blocks.

pub mod condition;
pub mod context;
pub mod document;
pub mod evaluate;
mod json;
pub mod pattern;
pub mod place;
pub mod principal;

#[cfg(test)]
mod documented_tests;
#[cfg(test)]
mod table_tests;

pub use context::Context;
pub use document::{Effect, Fault, Policy, PolicyError, Use};
pub use evaluate::{Acl, Decision, Identity, Layer, Matched, Request, Target, decide, deciding};
pub use principal::Principal;
