//! EBS: thin volumes of one host, clones of images, and their export to virtual machines over vhost-user-blk.
//!
//! | module | holds |
//! |---|---|
//! | [`map`] | where each 4 KiB block of a volume is; the stored record (`docs/volume-map.md`) |
//! | [`volume`] | the `Volume` seam, the engine `ExtentVolume`, the twin, the conformance suite |
//! | [`store`] | which volumes, images and exports there are, durably (`docs/records.md`) |
//! | [`vhost`] | a volume on a vhost-user-blk socket |
//! | [`virtio`] | guest memory, virtqueues and block requests, without a socket |
//! | [`role`] | the storage role: `start`, gRPC, images; `export` without a cloud |
//! | [`driver`] | the other side, for tests and benches: a front end with a block driver and a load in it |
//! | [`error`] | what goes wrong, and its gRPC code |

#![deny(unsafe_code)]

pub mod driver;
pub mod error;
pub mod map;
pub mod role;
pub mod store;
pub mod vhost;
pub mod virtio;
pub mod volume;

pub use role::{ExportOptions, Exported, export, start};
