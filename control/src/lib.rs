//! karri-control: the roles that decide, not the ones that move data.
//!
//! | module | holds |
//! |---|---|
//! | [`identity`] | accounts, users, roles, policies, keys: the IAM and STS APIs |
//! | [`audit`] | a line for each call of these |
//! | [`cluster`] | one zone: placement on nodes, commands passed on |
//! | [`node`] | one host: the `Hypervisor` seam, QEMU and the node role |
//! | [`fuzz`] | hostile bytes against what the APIs read |
//! | [`wire`] | AWS's Query/XML protocols: parsing, answers, types generated from the service models |
//!
//! Control runs on tokio, keeps its records in a `MetaStore` and meets storage, cluster and node over gRPC only. It
//! promises that an acknowledged request survives kill -9 of any role: what was asked for is recorded first, then
//! worked off in idempotent steps. It leaves data to Walrus and storage.

#![forbid(unsafe_code)]

pub mod audit;
pub mod cloud;
pub mod cluster;
pub mod fuzz;
pub mod identity;
pub mod node;
pub mod wire;
