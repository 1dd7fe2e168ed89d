//! Walrus's semantics over memory twins, from signed HTTP request to answer, in this process.

mod access;
mod ageing;
mod auth;
mod buckets;
mod client;
mod crash;
mod documents;
mod encryption;
mod events;
mod hosts;
mod inventory;
mod listing;
mod logging;
mod multipart;
mod objects;
mod permissions;
mod ranges;
mod replication;
mod scrub;
mod settings;
mod slow;
mod usage;
mod versions;

/// Runs a test on the simulated executor.
pub fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce() -> F) {
    karri_engine::sim::run(1, |_| test());
}

/// Bytes that differ from place to place.
pub fn data(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}
