//! What every [`Volume`] must do, checked. `make` gives an empty volume of the size asked for.

use std::future::poll_fn;

use futures_util::future::{join, join_all};
use karri_engine::buf::Buf;
use karri_engine::disk::Dir;
use karri_engine::landing::{Landed, Landings};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Done, SECTOR_BYTES, Volume};
use crate::error::Error;

const MIB: u64 = 1 << 20;

/// Runs the whole suite.
///
/// # Panics
/// Where the volume does not do what [`Volume`] says.
pub async fn run<V: Volume>(make: impl AsyncFn(u64) -> V) {
    reads_zeros_until_written(&make(4 * MIB).await).await;
    sectors_are_their_own(&make(4 * MIB).await).await;
    discard_and_zeroes_read_as_zeros(&make(8 * MIB).await).await;
    bounds_are_refused(&make(3 * MIB + 512).await).await;
    the_last_odd_sector_works(&make(MIB + 512).await).await;
    overlapping_writes_keep_each_others_sectors(&make(MIB).await).await;
    for seed in 0..6 {
        agrees_with_a_flat_file(&make(5 * MIB + 1536).await, seed, 150).await;
    }
}

/// A transfer as a queue makes it: begun without a future where the volume takes it so, else by `read` or `write`.
pub async fn transfer<V: Volume>(v: &V, dir: Dir, at: u64, buf: Buf) -> Done {
    let (landings, mut landed) = (Landings::new(), Vec::new());
    let buf = match v.begin(dir, at, buf, &landings, 7) {
        Err(buf) => buf,
        Ok(begun) => {
            poll_fn(|cx| landings.poll_any(cx)).await;
            landings.take(&mut landed);
            let Landed { token, result, buf } = landed.pop().expect("what landed");
            assert!(token == 7 && landed.is_empty());
            let done = result == Ok(buf.len() as u32);
            v.end(begun, done);
            if done {
                return (Ok(()), buf);
            }
            buf
        }
    };
    match dir {
        Dir::Read => v.read(at, buf).await,
        Dir::Write => v.write(at, buf, false).await,
    }
}

async fn write<V: Volume>(v: &V, at: u64, bytes: &[u8]) {
    let mut buf = Buf::zeroed(bytes.len());
    buf.copy_from(0, bytes);
    let (outcome, buf) = transfer(v, Dir::Write, at, buf).await;
    outcome.unwrap_or_else(|e| panic!("write at {at}: {e}"));
    assert_eq!(buf.bytes(), bytes, "a write must not change its buffer");
}

async fn read<V: Volume>(v: &V, at: u64, len: usize) -> Vec<u8> {
    let mut buf = Buf::zeroed(len);
    buf.bytes_mut().fill(0xEE);
    let (outcome, buf) = transfer(v, Dir::Read, at, buf).await;
    outcome.unwrap_or_else(|e| panic!("read at {at}: {e}"));
    buf.bytes().to_vec()
}

async fn reads_zeros_until_written<V: Volume>(v: &V) {
    assert_eq!(read(v, 0, 2 << 20).await, vec![0; 2 << 20]);
    write(v, 8192, &[7; 4096]).await;
    assert_eq!(read(v, 4096, 12288).await, [vec![0; 4096], vec![7; 4096], vec![0; 4096]].concat());
    // Across an extent's border.
    write(v, MIB - 4096, &[9; 8192]).await;
    assert_eq!(read(v, MIB - 8192, 16384).await, [vec![0; 4096], vec![9; 8192], vec![0; 4096]].concat());
    v.flush().await.expect("flush");
    assert_eq!(read(v, 8192, 4096).await, [7; 4096]);
    let (outcome, _) = v.write(0, Buf::copy_padded(&[1; 4096]), true).await;
    outcome.expect("a durable write");
    assert_eq!(read(v, 0, 4096).await, [1; 4096]);
}

async fn sectors_are_their_own<V: Volume>(v: &V) {
    write(v, 512, &[1; 512]).await;
    assert_eq!(read(v, 0, 2048).await, [vec![0; 512], vec![1; 512], vec![0; 1024]].concat());
    write(v, 3584, &[2; 1024]).await;
    assert_eq!(read(v, 3072, 2048).await, [vec![0; 512], vec![2; 1024], vec![0; 512]].concat());
    write(v, MIB - 512, &[3; 1024]).await;
    assert_eq!(read(v, MIB - 1024, 2048).await, [vec![0; 512], vec![3; 1024], vec![0; 512]].concat());
    assert_eq!(read(v, 512, 512).await, [1; 512]);
}

async fn discard_and_zeroes_read_as_zeros<V: Volume>(v: &V) {
    write(v, 0, &vec![5; 8 << 20]).await;
    v.flush().await.expect("flush");
    v.discard(MIB, 2 * MIB).await.expect("discard");
    v.write_zeroes(4 * MIB + 512, 2 * MIB).await.expect("write zeroes");
    let all = read(v, 0, 8 << 20).await;
    for (at, byte) in all.iter().enumerate() {
        let at = at as u64;
        let zero = (MIB..3 * MIB).contains(&at) || (4 * MIB + 512..6 * MIB + 512).contains(&at);
        assert_eq!(*byte, if zero { 0 } else { 5 }, "byte {at}");
    }
    write(v, 2 * MIB, &[6; 4096]).await;
    assert_eq!(read(v, 2 * MIB - 4096, 12288).await, [vec![0; 4096], vec![6; 4096], vec![0; 4096]].concat());
    v.flush().await.expect("flush");
    v.write_zeroes(2 * MIB + 512, 1024).await.expect("write zeroes");
    assert_eq!(read(v, 2 * MIB, 2048).await, [vec![6; 512], vec![0; 1024], vec![6; 512]].concat());
    v.discard(0, 0).await.expect("nothing");
    v.discard(0, 8 * MIB).await.expect("everything");
    v.flush().await.expect("flush");
    assert_eq!(read(v, 0, 8 << 20).await, vec![0; 8 << 20]);
}

async fn bounds_are_refused<V: Volume>(v: &V) {
    let size = v.size();
    for (at, len) in [(size, 512), (size - 512, 1024), (u64::MAX - 511, 512), (1, 512), (0, 513), (256, 256)] {
        let (outcome, buf) = v.read(at, Buf::zeroed(len)).await;
        assert!(matches!(outcome, Err(Error::Bounds { .. })), "read {at} {len}");
        assert_eq!(buf.len(), len);
        let (outcome, _) = v.write(at, buf, false).await;
        assert!(matches!(outcome, Err(Error::Bounds { .. })), "write {at} {len}");
        for dir in [Dir::Read, Dir::Write] {
            assert!(v.begin(dir, at, Buf::zeroed(len), &Landings::new(), 0).is_err(), "{dir:?} {at} {len}");
        }
        assert!(matches!(v.discard(at, len as u64).await, Err(Error::Bounds { .. })));
        assert!(matches!(v.write_zeroes(at, len as u64).await, Err(Error::Bounds { .. })));
    }
    assert!(matches!(v.discard(512, u64::MAX - 511).await, Err(Error::Bounds { .. })));
    let (outcome, _) = v.read(size, Buf::zeroed(0)).await;
    outcome.expect("nothing at the end");
}

async fn the_last_odd_sector_works<V: Volume>(v: &V) {
    write(v, MIB, &[8; 512]).await;
    assert_eq!(read(v, MIB - 512, 1024).await, [vec![0; 512], vec![8; 512]].concat());
    v.write_zeroes(MIB, 512).await.expect("write zeroes");
    assert_eq!(read(v, MIB, 512).await, [0; 512]);
    write(v, MIB - 512, &[4; 1024]).await;
    v.discard(0, MIB + 512).await.expect("discard");
    assert_eq!(read(v, MIB - 512, 1024).await, [0; 1024]);
}

async fn overlapping_writes_keep_each_others_sectors<V: Volume>(v: &V) {
    for round in 0..8u64 {
        let at = round * 16384;
        // Eight writers of a sector each, and two of whole blocks beside them, all at once.
        let sectors = join_all((0..8).map(|i| write_owned(v, at + i * SECTOR_BYTES, vec![i as u8 + 1; 512])));
        let blocks = join_all((1..3).map(|i| write_owned(v, at + i * 4096, vec![0x40 + i as u8; 4096])));
        join(sectors, blocks).await;
        let got = read(v, at, 12288).await;
        for i in 0..8 {
            assert_eq!(got[i * 512..][..512], vec![i as u8 + 1; 512], "sector {i}");
        }
        assert_eq!(got[4096..], [vec![0x41; 4096], vec![0x42; 4096]].concat());
        // A block and a sector of it: the block's other sectors are the block's.
        let at = at + 12288;
        join(write_owned(v, at, vec![0x50; 4096]), write_owned(v, at + 512, vec![0x51; 512])).await;
        let got = read(v, at, 4096).await;
        assert!(got[..512] == [0x50; 512] && got[1024..] == [0x50; 3072]);
        assert!(got[512..1024] == [0x50; 512] || got[512..1024] == [0x51; 512]);
    }
}

async fn write_owned<V: Volume>(v: &V, at: u64, bytes: Vec<u8>) {
    write(v, at, &bytes).await;
}

async fn agrees_with_a_flat_file<V: Volume>(v: &V, seed: u64, steps: usize) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut model = vec![0u8; v.size() as usize];
    for step in 0..steps {
        let unit = if rng.random_bool(0.5) { SECTOR_BYTES } else { 4096 };
        let at = rng.random_range(0..v.size() / unit) * unit;
        let longest = [unit, 16 * unit, 2 * MIB][rng.random_range(0..3)];
        let len = (rng.random_range(1..=longest / unit) * unit).min((v.size() - at) / SECTOR_BYTES * SECTOR_BYTES);
        let here = at as usize..(at + len) as usize;
        match rng.random_range(0..10) {
            0 => {
                v.discard(at, len).await.expect("discard");
                // Whole blocks are gone; of the ends either may show.
                let got = read(v, at, len as usize).await;
                let whole =
                    at.next_multiple_of(4096)..if at + len == v.size() { at + len } else { (at + len) / 4096 * 4096 };
                for (i, byte) in got.iter().enumerate() {
                    let zero = whole.contains(&(at + i as u64));
                    assert!(*byte == 0 || (!zero && *byte == model[here.start + i]), "seed {seed} step {step}");
                }
                model[here].copy_from_slice(&got);
            }
            1 => {
                v.write_zeroes(at, len).await.expect("write zeroes");
                model[here].fill(0);
            }
            2 => v.flush().await.expect("flush"),
            3..=6 => {
                let bytes: Vec<u8> = (0..len / SECTOR_BYTES).flat_map(|_| [rng.random::<u8>(); 512]).collect();
                write(v, at, &bytes).await;
                model[here].copy_from_slice(&bytes);
            }
            _ => assert!(read(v, at, len as usize).await == model[here], "seed {seed} step {step} at {at} len {len}"),
        }
    }
    assert!(read(v, 0, model.len()).await == model, "seed {seed}");
}
