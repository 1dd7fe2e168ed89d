//! The engine: pinned cores, each with one io_uring, one executor and nothing shared.
//!
//! | module | holds |
//! |---|---|
//! | [`buf`] | memory that an I/O operation owns until its completion |
//! | [`disk`] | the `Disk` seam and its twins: `uring`, and the seeded `sim` |

pub mod buf;
pub mod disk;
