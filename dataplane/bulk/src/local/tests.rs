//! The local store on a simulated disk: the suite, errors at open, damage.

use karri_engine::disk::sim::{Faults, SimDisk};
use karri_engine::sim;

use super::*;
use crate::conformance;

fn options() -> Options {
    Options { log_bytes: Some(128 << 10), uuid: Some([7; 16]) }
}

/// A disk for a store with so many bytes of room.
fn disk_bytes(room: u64) -> u64 {
    room + (2 << 20)
}

#[test]
fn local_conforms_on_a_memory_disk() {
    sim::run(1, |_| {
        conformance::all(async |room| {
            LocalStore::open_or_format(SimDisk::memory(disk_bytes(room)), "disk", options()).await.unwrap()
        })
    });
}

#[test]
fn local_conforms_on_a_reordering_disk() {
    for seed in sim::seeds(5) {
        sim::run(seed, |sim| async move {
            let rng = std::cell::RefCell::new(sim.rng());
            conformance::all(async |room| {
                let disk = SimDisk::new(disk_bytes(room), rng.borrow_mut().fork(), Faults::reordering());
                LocalStore::open_or_format(disk, "disk", options()).await.unwrap()
            })
            .await;
        });
    }
}
