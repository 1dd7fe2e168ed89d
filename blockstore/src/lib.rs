//! EBS: thin volumes of one host, clones of images, and their export to virtual machines over vhost-user-blk.
//!
//! | module | holds |
//! |---|---|
//! | [`map`] | where each 4 KiB block of a volume is; the stored record (`docs/volume-map.md`) |
//! | [`volume`] | the `Volume` seam, the engine `ExtentVolume`, the twin, the conformance suite |
//! | [`virtio`] | guest memory, virtqueues and block requests, without a socket |
//! | [`error`] | what goes wrong, and its gRPC code |

#![deny(unsafe_code)]

pub mod error;
pub mod map;
pub mod virtio;
pub mod volume;
