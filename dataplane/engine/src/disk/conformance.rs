//! What every [`Disk`] must do, as one suite. Run [`all`] on an executor with an empty disk of at least [`SIZE`] bytes.

use std::sync::Arc;

use super::{Disk, DiskError};
use crate::buf::{ALIGN, Buf, Segment};
use crate::sim::Rng;
use crate::{spawn, timeout};

/// The size of disk that the suite wants, in bytes.
pub const SIZE: u64 = 8 << 20;

const PAGE: u64 = ALIGN as u64;

/// Every check. It panics at the first that fails.
pub async fn all<D: Disk>(disk: &D) {
    assert!(disk.size() >= SIZE, "the suite wants a disk of {SIZE} bytes");
    begins_with_zeros(disk).await;
    gives_back_what_was_written(disk).await;
    later_writes_win(disk).await;
    refuses_what_is_outside(disk).await;
    takes_nothing(disk).await;
    concurrent_writes_stay_apart(disk).await;
    zeroes(disk).await;
    discards(disk).await;
    foreign_segments(disk).await;
    half_aligned(disk).await;
    dropped_futures_harm_nobody(disk).await;
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Rng::new(seed).fill(&mut bytes);
    bytes
}

async fn put<D: Disk>(disk: &D, at: u64, bytes: &[u8], fua: bool) {
    let buf = Buf::copy_padded(bytes);
    let address = buf.segments().as_slice()[0].ptr;
    let (result, back) = disk.write(at, buf, fua).await;
    result.expect("a write inside the disk");
    assert_eq!(back.segments().as_slice()[0].ptr, address, "the same buffer comes back");
    assert_eq!(&back.bytes()[..bytes.len()], bytes, "a write leaves its buffer alone");
}

async fn get<D: Disk>(disk: &D, at: u64, len: usize) -> Vec<u8> {
    let mut buf = Buf::zeroed(len);
    buf.bytes_mut().fill(0xEE);
    let (result, buf) = disk.read(at, buf).await;
    result.expect("a read inside the disk");
    assert_eq!(buf.len(), len);
    buf.bytes().to_vec()
}

async fn begins_with_zeros<D: Disk>(disk: &D) {
    assert!(get(disk, 0, 1 << 20).await.iter().all(|b| *b == 0));
    assert!(get(disk, SIZE - PAGE, ALIGN).await.iter().all(|b| *b == 0));
}

async fn gives_back_what_was_written<D: Disk>(disk: &D) {
    for (n, len) in [ALIGN, 3 * ALIGN, 64 << 10, 1 << 20, 3 << 20].into_iter().enumerate() {
        let bytes = pattern(n as u64, len);
        let at = 5 * PAGE * n as u64;
        put(disk, at, &bytes, n % 2 == 0).await;
        assert!(get(disk, at, len).await == bytes, "{len} bytes at {at} read back");
        disk.flush().await.expect("a flush");
        assert!(get(disk, at, len).await == bytes, "{len} bytes at {at} read back after a flush");
    }
    let last = pattern(99, ALIGN);
    put(disk, disk.size() - PAGE, &last, false).await;
    assert!(get(disk, disk.size() - PAGE, ALIGN).await == last, "the last page");
}

async fn later_writes_win<D: Disk>(disk: &D) {
    for n in 0..10u8 {
        put(disk, PAGE, &[n; 2 * ALIGN], n % 3 == 0).await;
        put(disk, 2 * PAGE, &[n + 100; ALIGN], n % 2 == 0).await;
        let read = get(disk, PAGE, 2 * ALIGN).await;
        assert!(read[..ALIGN].iter().all(|b| *b == n) && read[ALIGN..].iter().all(|b| *b == n + 100));
    }
}

async fn refuses_what_is_outside<D: Disk>(disk: &D) {
    let size = disk.size();
    for at in [size, size - PAGE, u64::MAX - PAGE + 1, size + (1 << 40)] {
        let len = 2 * ALIGN;
        let (result, buf) = disk.read(at, Buf::zeroed(len)).await;
        assert!(matches!(result, Err(DiskError::Bounds { .. })), "read at {at}: {result:?}");
        assert_eq!(buf.len(), len, "the buffer comes back");
        let (result, buf) = disk.write(at, Buf::zeroed(len), true).await;
        assert!(matches!(result, Err(DiskError::Bounds { .. })), "write at {at}: {result:?}");
        assert_eq!(buf.len(), len, "the buffer comes back");
        assert!(matches!(disk.discard(at, len as u64).await, Err(DiskError::Bounds { .. })));
        assert!(matches!(disk.write_zeroes(at, len as u64, false).await, Err(DiskError::Bounds { .. })));
    }
    let (result, _) = disk.read(100, Buf::zeroed(ALIGN)).await;
    assert!(matches!(result, Err(DiskError::Bounds { .. })), "misaligned: {result:?}");
    let mut odd = Buf::zeroed(ALIGN);
    odd.set_len(100);
    let (result, _) = disk.write(0, odd, false).await;
    assert!(matches!(result, Err(DiskError::Bounds { .. })), "an odd length: {result:?}");
}

async fn takes_nothing<D: Disk>(disk: &D) {
    disk.read(0, Buf::zeroed(0)).await.0.expect("an empty read");
    disk.write(0, Buf::zeroed(0), true).await.0.expect("an empty write");
    disk.discard(0, 0).await.expect("an empty discard");
    disk.write_zeroes(0, 0, true).await.expect("an empty zeroing");
}

async fn concurrent_writes_stay_apart<D: Disk>(disk: &D) {
    let tasks: Vec<_> = (0..200u64)
        .map(|n| {
            let disk = disk.clone();
            spawn(async move {
                let bytes = pattern(1_000 + n, ALIGN);
                put(&disk, n * PAGE, &bytes, n % 7 == 0).await;
                assert!(get(&disk, n * PAGE, ALIGN).await == bytes);
                if n % 20 == 0 {
                    disk.flush().await.expect("a flush among writes");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a writer ends well");
    }
    let all = get(disk, 0, 200 * ALIGN).await;
    for (n, page) in all.chunks(ALIGN).enumerate() {
        assert!(page == pattern(1_000 + n as u64, ALIGN), "page {n}");
    }
}

async fn zeroes<D: Disk>(disk: &D) {
    for unmap in [false, true] {
        put(disk, 0, &[7; 8 * ALIGN], false).await;
        disk.write_zeroes(2 * PAGE, 3 * PAGE, unmap).await.expect("zeroing");
        let read = get(disk, 0, 8 * ALIGN).await;
        for (n, page) in read.chunks(ALIGN).enumerate() {
            let expected = if (2..5).contains(&n) { 0 } else { 7 };
            assert!(page.iter().all(|b| *b == expected), "page {n}, unmap {unmap}");
        }
        disk.flush().await.expect("a flush");
    }
}

async fn discards<D: Disk>(disk: &D) {
    put(disk, 0, &[9; 4 * ALIGN], false).await;
    disk.discard(PAGE, 2 * PAGE).await.expect("a discard");
    let read = get(disk, 0, 4 * ALIGN).await;
    for (n, page) in read.chunks(ALIGN).enumerate() {
        let gone = (1..3).contains(&n) && page.iter().all(|b| *b == 0);
        assert!(gone || page.iter().all(|b| *b == 9), "page {n} is neither zero nor as before");
    }
    put(disk, PAGE, &[3; ALIGN], true).await;
    assert!(get(disk, PAGE, ALIGN).await.iter().all(|b| *b == 3), "writable after a discard");
}

/// Aligned memory in an Arc, standing for a guest's.
struct Memory(Buf);

// SAFETY: the suite touches it only through one foreign buffer at a time.
unsafe impl Sync for Memory {}

fn foreign(pieces: &[(usize, usize)]) -> Buf {
    let total = pieces.iter().map(|(at, len)| at + len).max().unwrap_or(0);
    let memory = Memory(Buf::zeroed(total.next_multiple_of(ALIGN)));
    let base = memory.0.segments().as_slice()[0].ptr;
    // SAFETY: every piece lies inside the memory.
    let segments = pieces.iter().map(|(at, len)| Segment { ptr: unsafe { base.add(*at) }, len: *len }).collect();
    // SAFETY: the memory lives in the keeper.
    unsafe { Buf::foreign(segments, Arc::new(memory)) }
}

async fn foreign_segments<D: Disk>(disk: &D) {
    // Descriptor chains as guests make them: page pieces out of order, and 512-byte ones.
    for pieces in [
        &[(0, 4096)][..],
        &[(8192, 4096), (0, 8192)],
        &[(512, 512), (4096, 3584), (1024, 512), (9216, 3584)],
        &[(100, 5000), (6000, 3192)],
    ] {
        let bytes = pattern(4_000, pieces.iter().map(|(_, len)| len).sum());
        let mut buf = foreign(pieces);
        buf.copy_from(0, &bytes);
        let (result, buf) = disk.write(16 * PAGE, buf, false).await;
        result.expect("a write from segments");
        assert_eq!(buf.segments().as_slice().len(), pieces.len(), "the same segments come back");
        assert!(get(disk, 16 * PAGE, bytes.len()).await == bytes, "written from {pieces:?}");
        let (result, buf) = disk.read(16 * PAGE, foreign(pieces)).await;
        result.expect("a read into segments");
        let mut read = vec![0; bytes.len()];
        buf.copy_to(0, &mut read);
        assert!(read == bytes, "read into {pieces:?}");
    }
}

/// 512-byte requests of guests: offsets and lengths that O_DIRECT may refuse.
async fn half_aligned<D: Disk>(disk: &D) {
    put(disk, 32 * PAGE, &[1; 2 * ALIGN], false).await;
    let mut buf = foreign(&[(0, 1024)]);
    buf.copy_from(0, &[2; 1024]);
    disk.write(32 * PAGE + 3584, buf, true).await.0.expect("a write of two sectors over a page's edge");
    let read = get(disk, 32 * PAGE, 2 * ALIGN).await;
    for (n, sector) in read.chunks(512).enumerate() {
        let expected = if n == 7 || n == 8 { 2 } else { 1 };
        assert!(sector.iter().all(|b| *b == expected), "sector {n}");
    }
    let (result, buf) = disk.read(32 * PAGE + 3584, foreign(&[(512, 512)])).await;
    result.expect("a read of one sector");
    let mut sector = [0; 512];
    buf.copy_to(0, &mut sector);
    assert_eq!(sector, [2; 512]);
}

async fn dropped_futures_harm_nobody<D: Disk>(disk: &D) {
    put(disk, 64 * PAGE, &[5; ALIGN], true).await;
    put(disk, 66 * PAGE, &[5; ALIGN], true).await;
    for n in 0..50u8 {
        // Polled once at most: submitted, then forgotten.
        let write = disk.write(65 * PAGE, Buf::copy_padded(&[n; ALIGN]), false);
        let _ = timeout(std::time::Duration::ZERO, write).await;
        let read = disk.read(64 * PAGE, Buf::zeroed(ALIGN));
        let _ = timeout(std::time::Duration::ZERO, read).await;
    }
    let read = get(disk, 64 * PAGE, 3 * ALIGN).await;
    assert!(read[..ALIGN].iter().all(|b| *b == 5), "the page before");
    assert!(read[2 * ALIGN..].iter().all(|b| *b == 5), "the page after");
}
