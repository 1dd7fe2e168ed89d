//! What was read a short while ago. Bytes that are read once (a backup, a scan) should not push anything out of the page
//! cache, nor pay for going through it; so a read goes past the cache the first time, and through it when the same place
//! is read again before 65,536 others were.
//!
//! One word a place, by its hash, the last one there wins: 256 KiB a store, no lock, one atomic swap a read. A collision
//! costs at most a read from the disk, or one through the cache that was not worth it.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::BlobId;

const PLACES_LOG2: u32 = 16;

/// See the module.
pub struct Recent(Box<[AtomicU32]>);

impl std::fmt::Debug for Recent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recent").finish_non_exhaustive()
    }
}

impl Default for Recent {
    fn default() -> Self {
        Self((0..1 << PLACES_LOG2).map(|_| AtomicU32::new(0)).collect())
    }
}

impl Recent {
    /// Notes a read of a blob from its byte `at`; true where the last read that was noted in its place was the same.
    pub fn touch(&self, blob: BlobId, at: u64) -> bool {
        // Fibonacci hashing, twice, so that neighbours of either kind spread.
        const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
        let mixed = (blob.0.wrapping_mul(GOLDEN) ^ at).wrapping_mul(GOLDEN);
        let place = (mixed >> (64 - PLACES_LOG2)) as usize;
        // Other bits than the place's; 0 is "none yet".
        let tag = (mixed >> 8) as u32 | 1;
        self.0[place].swap(tag, Ordering::Relaxed) == tag
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_read_is_known_and_a_scan_is_not() {
        let recent = Recent::default();
        let places = || (1..100u64).flat_map(|blob| (0..40).map(move |n| (BlobId(blob << 3 | 5), n * (256 << 10))));
        let known = places().filter(|(blob, at)| recent.touch(*blob, *at)).count();
        assert_eq!(known, 0, "nothing was read before");
        let known = places().filter(|(blob, at)| recent.touch(*blob, *at)).count();
        assert!(known > 99 * 40 * 9 / 10, "{known} of {} are known again", 99 * 40);
    }
}
