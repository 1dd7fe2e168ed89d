//! The engine: pinned cores, each with one io_uring, one executor and nothing shared.
//!
//! | module | holds |
//! |---|---|
//! | [`cores`] | `Cores`: threads with an executor and a ring each; handles to give them work; `block_on` |
//! | [`exec`] | the executor's tasks, wakers and timers; its free functions are at the crate's root |
//! | [`sync`] | what tasks of one core share: semaphore, mutex, notify, bounded queues |
//! | [`sim`] | the seeded simulation of the executor: virtual time, drawn order |
//! | [`ring`] | the ring's options, descriptors, poll and eventfd operations, registered memory |
//! | [`net`] | listeners with SO_REUSEPORT and streams |
//! | [`http`] | HTTP: hyper on streams, with limits and draining |
//! | [`tls`] | rustls on streams |
//! | [`mod@offload`] | the bounded pool for work that blocks |
//! | [`limit`], [`drain`] | token buckets; graceful ends |
//! | [`buf`] | memory that an I/O operation owns until its completion |
//! | [`landing`] | ends of transfers that no future waits for |
//! | [`disk`] | the `Disk` seam and its twins: `uring`, and the seeded `sim`; its conformance suite |
//!
//! A store written against [`Disk`](disk::Disk) and the free functions runs unchanged on a core and in the simulation.

pub mod buf;
pub mod cores;
#[cfg(test)]
mod cores_tests;
pub mod disk;
pub mod drain;
pub mod error;
pub mod exec;
pub mod http;
mod http2;
pub mod landing;
pub mod limit;
pub mod net;
pub mod offload;
pub mod pace;
pub mod ring;
pub mod sim;
pub mod sync;
pub mod tls;

#[cfg(test)]
mod http2_tests;
#[cfg(test)]
mod http_tests;
#[cfg(test)]
mod tls_tests;

pub use error::EngineError;
pub use exec::{
    Elapsed, JoinError, JoinHandle, Sleep, detach, foreign, now, on_executor, sleep, sleep_until, spawn, timeout,
    yield_now,
};
pub use offload::offload;
