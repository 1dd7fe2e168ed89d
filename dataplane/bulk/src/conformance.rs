//! What every bulk store must do. An implementation runs [`all`] on a store of its own kind.

use karri_engine::buf::Buf;

use crate::{BlobId, BlobWriter, BulkError, BulkStore, EXTENT_BYTES, ExtentId};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Runs every check, each on a fresh store that `make` gives: asked for a number of bytes, with room for at least as
/// many and at most twice as many.
pub async fn all<S: BulkStore>(make: impl AsyncFn(u64) -> S) {
    blobs_come_back_equal_at_every_range(&make(32 << 20).await).await;
    appends_of_any_size_make_one_blob(&make(32 << 20).await).await;
    foreign_shapes_and_empty_blobs(&make(32 << 20).await).await;
    unsealed_blobs_vanish(&make(32 << 20).await).await;
    lists_are_ascending_and_paged(&make(32 << 20).await).await;
    deletes_free_space_and_forgive(&make(32 << 20).await).await;
    a_full_store_refuses_before_it_writes(&make(8 << 20).await).await;
    blobs_without_a_length_run_into_the_end_cleanly(&make(8 << 20).await).await;
    extents_are_rewritten_in_place(&make(32 << 20).await).await;
    stale_extents_are_refused(&make(32 << 20).await).await;
    extents_fill_the_store_and_come_back(&make(8 << 20).await).await;
    bad_ranges_are_refused(&make(32 << 20).await).await;
    many_at_once(&make(64 << 20).await).await;
}

/// `len` bytes that depend on `seed` and on their position.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// An owned buffer of exactly these bytes.
pub fn owned(bytes: &[u8]) -> Buf {
    let mut buf = Buf::zeroed(bytes.len());
    buf.copy_from(0, bytes);
    buf
}

/// Writes `data` as one blob, `piece` bytes an append.
///
/// # Errors
/// As the store's.
pub async fn put<S: BulkStore>(store: &S, data: &[u8], piece: usize, len: Option<u64>) -> Result<BlobId, BulkError> {
    let mut writer = store.create(len).await?;
    let id = writer.id();
    for part in data.chunks(piece) {
        writer.append(owned(part)).await?;
    }
    assert_eq!(writer.seal().await?, data.len() as u64);
    Ok(id)
}

/// Reads `len` bytes from `at`.
///
/// # Errors
/// As the store's.
pub async fn get<S: BulkStore>(store: &S, id: BlobId, at: u64, len: usize) -> Result<Vec<u8>, BulkError> {
    let (result, buf) = store.read_blob(id, at, Buf::zeroed(len)).await;
    assert_eq!(buf.len(), len, "a buffer comes back as it was");
    result.map(|()| buf.bytes().to_vec())
}

async fn blobs_come_back_equal_at_every_range<S: BulkStore>(store: &S) {
    for len in [1, 511, 4096, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 200_000, MIB, 3 * MIB + 12_345] {
        let data = pattern(len as u64, len);
        let id = put(store, &data, 256 * KIB, Some(len as u64)).await.unwrap();
        assert_ne!(id.0, 0);
        assert_eq!(store.blob_len(id), Some(len as u64));
        assert!(get(store, id, 0, len).await.unwrap() == data, "all {len} bytes");
        for (at, n) in [(0, 1), (len - 1, 1), (len / 2, len / 4), (len / 3, len - len / 3), (len, 0)] {
            assert!(get(store, id, at as u64, n).await.unwrap() == data[at..at + n], "{n} bytes at {at} of {len}");
        }
        for (at, n) in [(len, 1), (0, len + 1), (len + 4096, 4096)] {
            let past = get(store, id, at as u64, n).await;
            assert!(matches!(past, Err(BulkError::NotFound { .. })), "{n} bytes at {at} of {len}: {past:?}");
        }
        assert!(matches!(get(store, id, u64::MAX, 1).await, Err(BulkError::NotFound { .. })));
    }
}

async fn appends_of_any_size_make_one_blob<S: BulkStore>(store: &S) {
    let data = pattern(3, 1_500_001);
    for piece in [64 * KIB, 100_000, MIB, 777, 2 * MIB] {
        for len in [Some(data.len() as u64), None, Some(10), Some(3 * MIB as u64)] {
            let id = put(store, &data, piece, len).await.unwrap();
            assert!(get(store, id, 0, data.len()).await.unwrap() == data, "pieces of {piece}, announced {len:?}");
            store.delete(vec![id]).await.unwrap();
        }
    }
    assert_eq!(store.usage().used, 0);
}

async fn foreign_shapes_and_empty_blobs<S: BulkStore>(store: &S) {
    let empty = put(store, &[], 1, Some(0)).await.unwrap();
    let unknown = put(store, &[], 1, None).await.unwrap();
    for id in [empty, unknown] {
        assert_eq!(store.blob_len(id), Some(0));
        assert!(get(store, id, 0, 0).await.unwrap().is_empty());
    }
    // A buffer whose capacity is more than what is asked for.
    let data = pattern(9, 100_000);
    let id = put(store, &data, 100_000, Some(100_000)).await.unwrap();
    let mut roomy = Buf::zeroed(MIB);
    roomy.set_len(100_000);
    let (result, roomy) = store.read_blob(id, 0, roomy).await;
    result.unwrap();
    assert!(roomy.bytes() == data);
    // An append of a short piece out of a large buffer, and of none.
    let mut writer = store.create(None).await.unwrap();
    let id = writer.id();
    writer.append(Buf::zeroed(0)).await.unwrap();
    writer.append(roomy).await.unwrap();
    assert_eq!(writer.seal().await.unwrap(), 100_000);
    assert!(get(store, id, 0, 100_000).await.unwrap() == data);
}

async fn unsealed_blobs_vanish<S: BulkStore>(store: &S) {
    let mut writer = store.create(Some(MIB as u64)).await.unwrap();
    let id = writer.id();
    assert!(store.usage().used >= MIB as u64, "space is reserved from the start");
    writer.append(owned(&pattern(1, 512 * KIB))).await.unwrap();
    assert_eq!(store.blob_len(id), None);
    assert!(store.list(BlobId(0), 10).is_empty());
    assert!(matches!(get(store, id, 0, 1).await, Err(BulkError::NotFound { .. })));
    drop(writer);
    settle(store, 0).await;
    let next = put(store, b"x", 1, None).await.unwrap();
    assert!(next > id, "ids are never used twice");
}

/// Waits until `used` bytes are in use: space of dropped writers comes back when their last write has completed.
async fn settle<S: BulkStore>(store: &S, used: u64) {
    for _ in 0..1000 {
        if store.usage().used == used {
            return;
        }
        store.flush().await.unwrap();
        let _ = get(store, BlobId(u64::MAX), 0, 0).await;
    }
    assert_eq!(store.usage().used, used);
}

async fn lists_are_ascending_and_paged<S: BulkStore>(store: &S) {
    let mut ids = Vec::new();
    for n in 0..10 {
        ids.push(put(store, &pattern(n, 1000), 1000, None).await.unwrap());
    }
    assert!(ids.windows(2).all(|w| w[0] < w[1]));
    assert_eq!(store.list(BlobId(0), 100), ids);
    assert_eq!(store.list(BlobId(0), 3), ids[..3]);
    assert_eq!(store.list(ids[2], 3), ids[3..6]);
    assert_eq!(store.list(ids[9], 3), []);
}

async fn deletes_free_space_and_forgive<S: BulkStore>(store: &S) {
    let before = store.usage().used;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(put(store, &pattern(n, 300_000), 100_000, Some(300_000)).await.unwrap());
    }
    assert!(store.usage().used >= before + 5 * 300_000);
    // Twice the same in one call, and twice at once.
    store.delete(vec![ids[0], ids[0], BlobId(1 << 60)]).await.unwrap();
    let (a, b) = futures_util::join!(store.delete(vec![ids[1], ids[2]]), store.delete(vec![ids[2], ids[1]]));
    a.unwrap();
    b.unwrap();
    assert!(matches!(get(store, ids[1], 0, 1).await, Err(BulkError::NotFound { .. })));
    assert_eq!(store.list(BlobId(0), 10), ids[3..]);
    assert!(get(store, ids[3], 0, 300_000).await.unwrap() == pattern(3, 300_000));
    store.delete(ids.clone()).await.unwrap();
    store.delete(ids).await.unwrap();
    assert_eq!(store.usage().used, before);
}

async fn a_full_store_refuses_before_it_writes<S: BulkStore>(store: &S) {
    let total = store.usage().total;
    let refused = store.create(Some(total + 1)).await.err();
    assert!(matches!(refused, Some(BulkError::NoSpace { .. })), "{refused:?}");
    let mut ids = Vec::new();
    let refused = loop {
        match put(store, &pattern(ids.len() as u64, MIB / 2), MIB / 2, Some(MIB as u64 / 2)).await {
            Ok(id) => ids.push(id),
            Err(e) => break e,
        }
        assert!(ids.len() < 64);
    };
    assert!(matches!(refused, BulkError::NoSpace { .. }), "{refused:?}");
    assert!(ids.len() as u64 * (MIB as u64 / 2) + 2 * MIB as u64 > total, "{} blobs fit in {total}", ids.len());
    assert!(matches!(store.alloc_extent(), Err(BulkError::NoSpace { .. })));
    for (n, id) in ids.iter().enumerate() {
        assert!(get(store, *id, 0, MIB / 2).await.unwrap() == pattern(n as u64, MIB / 2));
    }
    // Deletes work on a full store, and their space is usable at once.
    store.delete(ids.split_off(1)).await.unwrap();
    put(store, &pattern(7, MIB), MIB, Some(MIB as u64)).await.unwrap();
    store.delete(ids).await.unwrap();
}

async fn blobs_without_a_length_run_into_the_end_cleanly<S: BulkStore>(store: &S) {
    let total = store.usage().total;
    let mut writer = store.create(None).await.unwrap();
    let mut appended = 0;
    let refused = loop {
        match writer.append(owned(&pattern(appended, 256 * KIB))).await {
            Ok(()) => appended += 256 * KIB as u64,
            Err(e) => break e,
        }
        assert!(appended <= total);
    };
    assert!(matches!(refused, BulkError::NoSpace { .. }), "{refused:?}");
    assert!(appended + 2 * MIB as u64 > total, "{appended} of {total}");
    assert!(writer.append(owned(b"x")).await.is_err(), "the writer is done for");
    assert!(writer.seal().await.is_err());
    assert!(store.list(BlobId(0), 10).is_empty());
    settle(store, 0).await;
    put(store, &pattern(1, 2 * MIB), MIB, None).await.unwrap();
}

async fn extents_are_rewritten_in_place<S: BulkStore>(store: &S) {
    let a = store.alloc_extent().unwrap();
    let b = store.alloc_extent().unwrap();
    assert_ne!(a, b);
    for (extent, seed) in [(a, 1), (b, 2)] {
        let (result, buf) = store.write_extent(extent, 0, owned(&pattern(seed, MIB))).await;
        result.unwrap();
        assert_eq!(buf.len(), MIB, "the buffer comes back");
    }
    let (result, _) = store.write_extent(a, 8192, owned(&pattern(3, 4096))).await;
    result.unwrap();
    store.flush().await.unwrap();
    store.keep_extents(vec![b, a]).await.unwrap();
    store.keep_extents(vec![a]).await.unwrap();
    let mut want = pattern(1, MIB);
    want[8192..8192 + 4096].copy_from_slice(&pattern(3, 4096));
    let (result, buf) = store.read_extent(a, 0, Buf::zeroed(MIB)).await;
    result.unwrap();
    assert!(buf.bytes() == want);
    let (result, buf) = store.read_extent(b, 4096, Buf::zeroed(8192)).await;
    result.unwrap();
    assert!(buf.bytes() == &pattern(2, MIB)[4096..4096 + 8192]);
    let mut both = [a, b];
    both.sort_unstable();
    assert_eq!(store.kept_extents(), both);
    assert_eq!(store.usage().used, 2 * EXTENT_BYTES);
    store.free_extents(vec![a, b]).await.unwrap();
    assert_eq!(store.kept_extents(), []);
    assert_eq!(store.usage().used, 0);
}

async fn stale_extents_are_refused<S: BulkStore>(store: &S) {
    let total = store.usage().total;
    let mut seen = std::collections::HashSet::new();
    let old = store.alloc_extent().unwrap();
    store.keep_extents(vec![old]).await.unwrap();
    store.free_extents(vec![old, old]).await.unwrap();
    store.free_extents(vec![old]).await.unwrap();
    seen.insert(old);
    // Every slot goes round: no id shows twice.
    for _ in 0..3 {
        let mut held = Vec::new();
        while let Ok(e) = store.alloc_extent() {
            assert!(seen.insert(e), "{e} was given out twice");
            held.push(e);
        }
        assert_eq!(held.len() as u64, total / EXTENT_BYTES);
        store.free_extents(held).await.unwrap();
    }
    let unknown = ExtentId { slot: u32::MAX, incarnation: 1 };
    for stale in [old, unknown] {
        let (result, buf) = store.read_extent(stale, 0, Buf::zeroed(4096)).await;
        assert!(matches!(result, Err(BulkError::NotFound { .. })), "{result:?}");
        let (result, _) = store.write_extent(stale, 0, buf).await;
        assert!(matches!(result, Err(BulkError::NotFound { .. })), "{result:?}");
        let kept = store.keep_extents(vec![stale]).await;
        assert!(matches!(kept, Err(BulkError::NotFound { .. })), "{kept:?}");
        store.free_extents(vec![stale]).await.unwrap();
    }
}

async fn extents_fill_the_store_and_come_back<S: BulkStore>(store: &S) {
    let total = store.usage().total;
    let mut held = Vec::new();
    let refused = loop {
        match store.alloc_extent() {
            Ok(e) => held.push(e),
            Err(e) => break e,
        }
    };
    assert!(matches!(refused, BulkError::NoSpace { .. }), "{refused:?}");
    assert_eq!(held.len() as u64, total / EXTENT_BYTES);
    assert!(store.create(Some(1)).await.is_err());
    store.keep_extents(held.clone()).await.unwrap();
    let one = held.pop().unwrap();
    store.free_extents(vec![one]).await.unwrap();
    let again = store.alloc_extent().unwrap();
    assert_ne!(again, one);
    held.push(again);
    store.free_extents(held).await.unwrap();
    assert_eq!(store.usage().used, 0);
}

async fn bad_ranges_are_refused<S: BulkStore>(store: &S) {
    let e = store.alloc_extent().unwrap();
    for (at, len) in [(1, 4096), (0, 100), (EXTENT_BYTES - 4096, 8192), (EXTENT_BYTES, 4096), (u64::MAX - 511, 4096)] {
        let (result, _) = store.write_extent(e, at, Buf::zeroed(len)).await;
        assert!(matches!(result, Err(BulkError::Disk(_))), "{len} at {at}: {result:?}");
        let (result, _) = store.read_extent(e, at, Buf::zeroed(len)).await;
        assert!(matches!(result, Err(BulkError::Disk(_))), "{len} at {at}: {result:?}");
    }
}

async fn many_at_once<S: BulkStore>(store: &S) {
    let ids = futures_util::future::join_all((0..40u64).map(|n| async move {
        let data = pattern(n, 10_000 * (n as usize % 7 + 1));
        let id = put(store, &data, 30_000, (n % 2 == 0).then_some(data.len() as u64)).await.unwrap();
        if n % 5 == 4 {
            store.delete(vec![id]).await.unwrap();
        }
        assert!(n % 5 == 4 || get(store, id, 0, data.len()).await.unwrap() == data);
        id
    }))
    .await;
    let listed = store.list(BlobId(0), 100);
    let mut want: Vec<_> = ids.iter().enumerate().filter(|(n, _)| n % 5 != 4).map(|(_, id)| *id).collect();
    want.sort_unstable();
    assert_eq!(listed, want);
    store.delete(want).await.unwrap();
    assert_eq!(store.usage().used, 0);
}
