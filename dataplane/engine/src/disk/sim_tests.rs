use std::time::Duration;

use super::conformance;
use super::sim::{Fault, Faults, SimDisk, Stats};
use super::{Disk, DiskError};
use crate::buf::{ALIGN, Buf};
use crate::sim::{self, Rng};
use crate::spawn;

const PAGE: u64 = ALIGN as u64;

fn page(byte: u8) -> Buf {
    Buf::copy_padded(&[byte; ALIGN])
}

#[test]
fn conforms_at_once() {
    sim::run(1, |_| async { conformance::all(&SimDisk::memory(conformance::SIZE)).await });
}

#[test]
fn conforms_with_reordering() {
    for seed in sim::seeds(5) {
        sim::run(seed, |sim| async move {
            let faults = Faults { split_ppm: 300_000, ..Faults::reordering() };
            conformance::all(&SimDisk::new(conformance::SIZE, sim.rng(), faults)).await;
        });
    }
}

/// Writes numbered pages with random flushes, cuts the power somewhere, and checks the promise of the seam.
#[test]
fn what_was_flushed_survives_every_crash() {
    for seed in sim::seeds(60) {
        sim::run(seed, |sim| async move {
            let mut rng = sim.rng();
            let disk =
                SimDisk::new(64 * PAGE, sim.rng(), if seed % 2 == 0 { Faults::none() } else { Faults::reordering() });
            disk.crash_after(rng.range(1..80));
            let mut sure = [0u8; 64];
            let mut maybe: Vec<Vec<u8>> = vec![vec![0]; 64];
            for step in 1..=100u8 {
                let at = rng.below(64) as usize;
                let fua = rng.below(4) == 0;
                maybe[at].push(step);
                match disk.write(at as u64 * PAGE, page(step), fua).await.0 {
                    Ok(()) if fua => {
                        sure[at] = step;
                        maybe[at] = vec![step];
                    }
                    Ok(()) => {}
                    Err(e) => {
                        assert!(disk.is_dead(), "{e}");
                        break;
                    }
                }
                if rng.below(8) == 0 && disk.flush().await.is_ok() {
                    for (s, m) in sure.iter_mut().zip(&mut maybe) {
                        *s = *m.last().unwrap();
                        *m = vec![*s];
                    }
                }
            }
            let disk = disk.crash();
            for (at, maybe) in maybe.iter().enumerate() {
                let read = disk.peek(at as u64 * PAGE, ALIGN);
                for sector in read.chunks(512) {
                    let value = sector[0];
                    assert!(sector.iter().all(|b| *b == value), "sectors do not tear");
                    assert!(maybe.contains(&value), "page {at} holds {value}, not one of {maybe:?}");
                }
            }
        });
    }
}

#[test]
fn crashes_lose_tear_and_keep() {
    let (mut kept, mut lost, mut torn) = (0, 0, 0);
    for seed in 0..100 {
        let disk = SimDisk::new(16 * PAGE, Rng::new(seed), Faults::none());
        sim::run(seed, move |_| async move {
            disk.write(0, page(1), false).await.0.unwrap();
            let after = disk.crash();
            assert!(matches!(disk.read(0, page(0)).await.0, Err(DiskError::Io { .. })), "the old handle is dead");
            let read = after.peek(0, ALIGN);
            match read.iter().filter(|b| **b == 1).count() {
                0 => 0,
                ALIGN => 1,
                _ => 2,
            }
        })
        .pipe(|n| match n {
            0 => lost += 1,
            1 => kept += 1,
            _ => torn += 1,
        });
    }
    assert!(kept > 10 && lost > 10 && torn > 10, "{kept} kept, {lost} lost, {torn} torn");
}

trait Pipe: Sized {
    fn pipe<R>(self, f: impl FnOnce(Self) -> R) -> R {
        f(self)
    }
}
impl Pipe for i32 {}

#[test]
fn the_countdown_ends_at_its_operation() {
    sim::run(1, |_| async {
        let disk = SimDisk::memory(16 * PAGE);
        disk.crash_after(3);
        disk.write(0, page(1), false).await.0.unwrap();
        disk.flush().await.unwrap();
        assert!(disk.write(PAGE, page(2), true).await.0.is_err(), "the third is not acknowledged");
        assert!(disk.flush().await.is_err());
        assert!(disk.is_dead());
        let disk = disk.crash();
        assert_eq!(disk.peek(0, ALIGN), vec![1; ALIGN]);
        disk.write(PAGE, page(2), true).await.0.unwrap();
    });
}

#[test]
fn injected_faults_strike_and_heal() {
    sim::run(1, |_| async {
        let disk = SimDisk::memory(16 * PAGE);
        disk.fail(0..PAGE, Fault::NoSpace, Some(1));
        disk.fail(PAGE..2 * PAGE, Fault::WriteEio, None);
        disk.fail(2 * PAGE..3 * PAGE, Fault::ReadEio, None);
        let (result, buf) = disk.write(0, page(1), false).await;
        assert_eq!(result, Err(DiskError::NoSpace { at: 0, len: PAGE }));
        assert_eq!(buf.len(), ALIGN);
        disk.write(0, page(1), false).await.0.unwrap();
        assert!(disk.write(0, Buf::zeroed(2 * ALIGN), false).await.0.is_err());
        assert!(disk.read(2 * PAGE, page(0)).await.0.is_err());
        disk.heal();
        disk.write(PAGE, page(1), false).await.0.unwrap();
        disk.rot(PAGE..2 * PAGE, 1);
        let changed = disk.peek(PAGE, ALIGN).iter().filter(|b| **b != 1).count();
        assert_eq!(changed, 1);
        let expected = Stats { reads: 1, writes: 4, written_bytes: 5 * PAGE, read_bytes: PAGE, ..Stats::default() };
        assert_eq!(disk.stats(), expected);
    });
}

#[test]
fn a_failed_flush_may_lose_for_good() {
    let mut lost = 0;
    for seed in 0..40 {
        sim::run(seed, |sim| async move {
            let disk = SimDisk::new(16 * PAGE, sim.rng(), Faults::none());
            disk.write(0, page(1), false).await.0.unwrap();
            disk.fail_flushes(1);
            assert!(disk.flush().await.is_err());
            disk.flush().await.unwrap();
            assert_eq!(disk.peek(0, ALIGN), vec![1; ALIGN], "reads go on showing it");
            i32::from(disk.crash().peek(0, ALIGN) != vec![1; ALIGN])
        })
        .pipe(|n| lost += n);
    }
    assert!((5..35).contains(&lost), "{lost} of 40 lost");
}

#[test]
fn a_forgotten_write_still_lands() {
    sim::run(1, |sim| async move {
        let disk = SimDisk::new(16 * PAGE, sim.rng(), Faults::reordering());
        let task = {
            let disk = disk.clone();
            spawn(async move { disk.write(0, page(1), false).await.0 })
        };
        crate::yield_now().await;
        while disk.unsynced() == 0 {
            crate::yield_now().await;
        }
        task.abort();
        crate::sleep(Duration::from_millis(10)).await;
        assert_eq!(disk.peek(0, ALIGN), vec![1; ALIGN]);
    });
}
