//! The fuzzer's way in: bytes become a guest's memory with a ring in it, and everything on the ring is served.
//!
//! ```text
//! bytes 0..8     flags: event index, indirect, read-only, queue size
//! the rest       the guest's memory from address 0: descriptors at 0, avail at 0x1000, used at 0x2000
//! ```

use std::sync::Arc;

use futures_util::FutureExt;

use super::block::{Device, serve};
use super::memory::{GuestMemory, Region};
use super::ring::{Addresses, Ring};
use crate::volume::{MemoryVolume, Volume};

/// Guest memory of a run, in bytes.
pub const MEMORY_BYTES: u64 = 1 << 18;
/// The volume of a run, in bytes.
pub const VOLUME_BYTES: u64 = 1 << 16;

/// Serves what `bytes` put on a ring, on a volume in memory. Answers how many requests there were.
///
/// # Panics
/// Never, or there is a bug.
pub fn ring(bytes: &[u8]) -> usize {
    let Some((flags, image)) = bytes.split_first_chunk::<8>() else { return 0 };
    let Ok(region) = Region::anonymous(0, MEMORY_BYTES) else { return 0 };
    let memory = GuestMemory::new(vec![Arc::new(region)]).expect("one region");
    memory.write(0, &image[..image.len().min(MEMORY_BYTES as usize)]).expect("it fits");
    let volume = MemoryVolume::new("vol-fuzz", VOLUME_BYTES);
    let device = Device::new(volume.size(), 1, flags[2] & 1 == 1);
    device.acknowledge(device.features());
    let size = 1 << (flags[3] % 9);
    let at = Addresses { desc: 0, avail: 0x1000, used: 0x2000 };
    let ring = Ring::new(&memory, size, at, 0, flags[0] & 1 == 1, flags[1] & 1 == 1);
    let Ok(mut ring) = ring else { return 0 };
    let mut served = 0;
    // A guest that serves itself more by DMA into the ring is stopped here; a real one pays for each with a kick.
    while served < 512 {
        let Ok(Some(head)) = ring.pop() else { break };
        let written = match ring.chain(&memory, head) {
            Ok(chain) => serve(&volume, &device, chain).now_or_never().expect("a memory volume is always ready"),
            Err(_) => 0,
        };
        ring.push_used(head, written);
        ring.publish();
        ring.wants_call();
        ring.enable_kicks();
        served += 1;
    }
    served
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, RngExt, SeedableRng};

    use super::*;

    /// Random rings, biased to what passes the first checks. `KARRI_FUZZ_RUNS` says how many.
    #[test]
    fn random_rings_never_break_it() {
        let runs = std::env::var("KARRI_FUZZ_RUNS").ok().and_then(|v| v.parse().ok()).unwrap_or(3000);
        let mut served = 0;
        for seed in 0..runs {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut bytes = vec![0; 8 + 0x8000];
            rng.fill_bytes(&mut bytes[..8]);
            let n = 1u64 << (bytes[3] % 9);
            let addresses = [0u64, 0x10, 0x1000, 0x4000, 0x4200, 0x5001, 0x7000, 0x3fff0, 0x40000, u64::MAX - 8];
            let lens = [0u32, 1, 15, 16, 17, 32, 512, 513, 4096, 65536, u32::MAX];
            // Descriptors of the ring, and of an indirect table at 0x4000.
            for (base, count) in [(0u64, n), (0x4000, 32)] {
                for i in 0..count {
                    let at = 8 + (base + 16 * i) as usize;
                    let addr = addresses[rng.random_range(0..addresses.len())];
                    let len = lens[rng.random_range(0..lens.len())];
                    let flags: u16 = rng.random_range(0..8);
                    let next: u16 = rng.random_range(0..(n as u16 + 2));
                    bytes[at..at + 8].copy_from_slice(&addr.to_le_bytes());
                    bytes[at + 8..at + 12].copy_from_slice(&len.to_le_bytes());
                    bytes[at + 12..at + 14].copy_from_slice(&flags.to_le_bytes());
                    bytes[at + 14..at + 16].copy_from_slice(&next.to_le_bytes());
                }
            }
            for i in 0..n {
                let past = u16::from(rng.random_bool(0.05));
                let head: u16 = rng.random_range(0..n as u16 + past);
                let at = 8 + 0x1004 + 2 * i as usize;
                bytes[at..at + 2].copy_from_slice(&head.to_le_bytes());
            }
            let avail: u16 = if rng.random_bool(0.1) { rng.random() } else { n as u16 };
            bytes[8 + 0x1002..8 + 0x1004].copy_from_slice(&avail.to_le_bytes());
            // Headers where the addresses point.
            for at in [0x4200usize, 0x5001, 0x7000] {
                let kind = [0u32, 1, 4, 8, 11, 13, 77][rng.random_range(0..7)];
                bytes[8 + at..8 + at + 4].copy_from_slice(&kind.to_le_bytes());
                let sector = if rng.random_bool(0.8) { rng.random_range(0..130) } else { rng.random::<u64>() };
                bytes[8 + at + 8..8 + at + 16].copy_from_slice(&sector.to_le_bytes());
            }
            served += ring(&bytes);
        }
        assert!(served > runs as usize, "the inputs got through: {served}");
    }
}
