//! virtio in a guest's memory: the memory, split virtqueues, and block requests. No sockets, no threads.
//!
//! Everything read here was written by a guest and may change while it is read: each field is read once, checked, and used
//! from the copy. The only `unsafe` of the crate is in [`memory`].

pub mod block;
pub mod fuzz;
pub mod inflight;
pub mod memory;
pub mod ring;
