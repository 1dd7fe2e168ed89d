//! What every [`MetaStore`] passes: `conformance::check(|| open a fresh, empty store)`.
//!
//! Runs on no runtime in particular: futures are polled by [`block_on`], a parked thread.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use crate::{Batch, MetaError, MetaStore, Pair, Scan, prefix_end};

/// Polls `future` on this thread, parked in between.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Runs the suite; `fresh` makes an empty store each time it is called.
///
/// # Panics
/// Where the store breaks the contract.
pub fn check(fresh: impl Fn() -> Arc<dyn MetaStore>) {
    point_reads_and_writes(&*fresh());
    exclusive_create(&fresh());
    contended_increments(&fresh());
    checks_are_all_or_nothing(&*fresh());
    order_within_a_batch(&*fresh());
    scans(&*fresh());
    multi_key_commits_are_atomic(&fresh());
    strange_keys(&*fresh());
    wide_range_delete(&*fresh());
    for seed in 0..4 {
        against_model(&*fresh(), seed, 150);
    }
}

fn b(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn commit(store: &dyn MetaStore, batch: Batch) {
    block_on(store.commit(batch)).expect("commits");
}

fn get(store: &dyn MetaStore, key: &str) -> Option<Bytes> {
    block_on(store.get(b(key))).expect("reads")
}

fn keys(store: &dyn MetaStore, scan: Scan) -> Vec<String> {
    let pairs = block_on(store.scan(scan)).expect("scans");
    pairs.iter().map(|(key, _)| String::from_utf8_lossy(key).into_owned()).collect()
}

fn point_reads_and_writes(store: &dyn MetaStore) {
    assert_eq!(get(store, "a"), None);
    commit(store, Batch::new().put("a", "1").put("b", ""));
    assert_eq!(get(store, "a"), Some(b("1")));
    assert_eq!(get(store, "b"), Some(b("")), "an empty value is a value");
    let values = block_on(store.multi_get(vec![b("b"), b("x"), b("a"), b("a")])).expect("reads");
    assert_eq!(values, [Some(b("")), None, Some(b("1")), Some(b("1"))]);
    assert_eq!(block_on(store.multi_get(Vec::new())), Ok(Vec::new()));
    commit(store, Batch::new().del("a").del("never there"));
    assert_eq!(get(store, "a"), None);
    commit(store, Batch::new());
}

fn exclusive_create(store: &Arc<dyn MetaStore>) {
    let create = |who: usize| Batch::new().check("name", None).put("name", who.to_string());
    let answers = on_threads(8, |who| block_on(store.commit(create(who))));
    let winners: Vec<usize> = (0..8).filter(|&who| answers[who].is_ok()).collect();
    assert_eq!(winners.len(), 1, "one creates, the others conflict: {answers:?}");
    for answer in answers.iter().filter(|a| a.is_err()) {
        assert_eq!(*answer, Err(MetaError::Conflict { key: b("name") }));
    }
    assert_eq!(get(&**store, "name"), Some(winners[0].to_string().into()));
}

fn contended_increments(store: &Arc<dyn MetaStore>) {
    let increment = || {
        loop {
            let old = block_on(store.get(b("n"))).expect("reads");
            let n: u64 = old.as_deref().map_or(0, |v| String::from_utf8_lossy(v).parse().expect("a number"));
            match block_on(store.commit(Batch::new().check("n", old).put("n", (n + 1).to_string()))) {
                Ok(()) => return,
                Err(MetaError::Conflict { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
    };
    on_threads(8, |_| (0..25).for_each(|_| increment()));
    assert_eq!(get(&**store, "n"), Some(b("200")), "no increment is lost");
}

fn checks_are_all_or_nothing(store: &dyn MetaStore) {
    commit(store, Batch::new().put("a", "1").put("b", "2"));
    let conflict = |key: &str| Err(MetaError::Conflict { key: b(key) });
    let both = |a: Option<&str>, x: Option<&str>| {
        block_on(
            store.commit(Batch::new().check("a", a.map(b)).check("x", x.map(b)).put("a", "9").put("y", "9").del("b")),
        )
    };
    assert_eq!(both(Some("1"), Some("")), conflict("x"), "absent is not empty");
    assert_eq!(both(None, None), conflict("a"));
    assert_eq!(both(Some("2"), None), conflict("a"));
    assert_eq!((get(store, "a"), get(store, "b"), get(store, "y")), (Some(b("1")), Some(b("2")), None));
    assert_eq!(both(Some("1"), None), Ok(()));
    assert_eq!((get(store, "a"), get(store, "b"), get(store, "y")), (Some(b("9")), None, Some(b("9"))));
    // A check alone.
    assert_eq!(block_on(store.commit(Batch::new().check("a", Some(b("9"))))), Ok(()));
    assert_eq!(block_on(store.commit(Batch::new().check("a", None))), conflict("a"));
}

fn order_within_a_batch(store: &dyn MetaStore) {
    commit(store, Batch::new().put("k1", "old").put("k2", "old").put("k3", "old").put("l", "old"));
    commit(store, Batch::new().put("k2", "new").del_range(b("k")..b("l")).del("k2").put("k4", "new"));
    assert_eq!(keys(store, Scan::new(b("a")..b("z"), 10)), ["k2", "k4", "l"], "puts come after deletes");
    assert_eq!(get(store, "k2"), Some(b("new")));
    // Checks look at the state before the batch.
    commit(store, Batch::new().check("k2", Some(b("new"))).del("k2").put("k1", "1"));
    // The last put of a key wins.
    commit(store, Batch::new().put("twice", "1").put("twice", "2"));
    assert_eq!(get(store, "twice"), Some(b("2")));
    // Empty and reversed ranges remove nothing.
    commit(store, Batch::new().del_range(b("l")..b("l")).del_range(b("z")..b("a")));
    assert_eq!(get(store, "l"), Some(b("old")));
}

fn scans(store: &dyn MetaStore) {
    let all: Vec<String> = (0..300).map(|i| format!("k{i:03}")).collect();
    commit(store, all.iter().fold(Batch::new().put("j", "").put("l", ""), |batch, k| batch.put(k.clone(), k.clone())));
    let range = || b("k")..b("l");
    assert_eq!(keys(store, Scan::new(range(), 1000)), all);
    assert_eq!(keys(store, Scan::prefix("k", 1000)), all);
    assert_eq!(keys(store, Scan::new(range(), 300)), all);
    assert_eq!(keys(store, Scan::new(range(), 3)), all[..3]);
    assert_eq!(keys(store, Scan::new(range(), 0)), [""; 0]);
    let backwards: Vec<String> = all.iter().rev().cloned().collect();
    assert_eq!(keys(store, Scan::backwards(range(), 1000)), backwards);
    assert_eq!(keys(store, Scan::backwards(range(), 2)), backwards[..2]);
    assert_eq!(keys(store, Scan::new(b("k010")..b("k012"), 9)), ["k010", "k011"], "the end is excluded");
    assert_eq!(keys(store, Scan::backwards(b("k010")..b("k012"), 9)), ["k011", "k010"]);
    assert_eq!(keys(store, Scan::new(b("k0105")..b("k011"), 9)), [""; 0]);
    for empty in [b("k5")..b("k5"), b("l")..b("k"), b("x")..b("z"), b("")..b("")] {
        assert_eq!(keys(store, Scan::new(empty.clone(), 9)), [""; 0]);
        assert_eq!(keys(store, Scan::backwards(empty, 9)), [""; 0]);
    }
    assert_eq!(keys(store, Scan::new(b("")..b("k001"), 9)), ["j", "k000"]);
}

fn multi_key_commits_are_atomic(store: &Arc<dyn MetaStore>) {
    // Two keys always hold the same number; readers must never see them differ.
    let write = |who: usize| {
        for i in 0..40 {
            let n = (who * 1000 + i).to_string();
            commit(&**store, Batch::new().put("left", n.clone()).put("right", n));
        }
    };
    let read = || {
        for _ in 0..200 {
            let both = block_on(store.multi_get(vec![b("left"), b("right")])).expect("reads");
            assert_eq!(both[0], both[1], "multi_get is of one moment");
            let pairs = block_on(store.scan(Scan::new(b("left")..b("s"), 9))).expect("scans");
            assert!(pairs.windows(2).all(|w| w[0].1 == w[1].1), "scan is of one moment: {pairs:?}");
        }
    };
    on_threads(4, |who| if who < 2 { write(who) } else { read() });
}

fn strange_keys(store: &dyn MetaStore) {
    let strange: [&[u8]; 6] = [b"\0", b"\0\0", b"\x7f/\xc3\xa9", b"\xff", b"\xff\xff", b"a\0b"];
    for key in strange {
        commit(store, Batch::new().check(key, None).put(key, key));
        assert_eq!(block_on(store.get(key.into())), Ok(Some(key.into())));
    }
    let everything = Bytes::new()..prefix_end(b"");
    let pairs = block_on(store.scan(Scan::new(everything.clone(), 99))).expect("scans");
    assert!(pairs.is_sorted() && pairs.len() == 6, "{pairs:?}");
    let big = Bytes::from(vec![7; 1 << 20]);
    commit(store, Batch::new().put("big", big.clone()));
    assert_eq!(get(store, "big"), Some(big));
    commit(store, Batch::new().del_range(everything.clone()));
    assert_eq!(block_on(store.scan(Scan::new(everything, 99))), Ok(Vec::new()));
}

fn wide_range_delete(store: &dyn MetaStore) {
    let fill = |n: usize| (0..n).fold(Batch::new(), |batch, i| batch.put(format!("w{i:05}"), "x"));
    commit(store, fill(3000));
    commit(store, Batch::new().del_range(b("w00010")..b("w02990")));
    assert_eq!(keys(store, Scan::prefix("w", 9999)).len(), 20);
    commit(store, fill(500));
    assert_eq!(keys(store, Scan::prefix("w", 9999)).len(), 510);
}

/// A seeded random workload of `steps` commits, each followed by reads, compared with a `BTreeMap`.
///
/// # Panics
/// Where the two differ, naming the seed.
pub fn against_model(store: &dyn MetaStore, seed: u64, steps: usize) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut model: BTreeMap<Bytes, Bytes> = BTreeMap::new();
    for step in 0..steps {
        let at = format!("seed {seed} step {step}");
        // Several at once, so that they may share a group. They run in any order: so they touch keys of their own.
        let mut batches: Vec<Batch> = (0..rng.random_range(1..4u8)).map(|who| batch(&mut rng, who, &model)).collect();
        let expected: Vec<Result<(), MetaError>> = batches.iter().map(|batch| apply(&mut model, batch)).collect();
        let calls = batches.drain(..).map(|batch| store.commit(batch));
        assert_eq!(block_on(futures_util::future::join_all(calls)), expected, "{at}");
        let (start, end) = (key(&mut rng), key(&mut rng));
        let limit = rng.random_range(0..20);
        let forward: Vec<Pair> = match start < end {
            true => model.range(start.clone()..end.clone()).map(|(k, v)| (k.clone(), v.clone())).collect(),
            false => Vec::new(),
        };
        let mut backward = forward.clone();
        backward.reverse();
        let first = |pairs: Vec<Pair>| pairs.into_iter().take(limit).collect::<Vec<_>>();
        let range = start.clone()..end;
        assert_eq!(block_on(store.scan(Scan::new(range.clone(), limit))), Ok(first(forward)), "{at}");
        assert_eq!(block_on(store.scan(Scan::backwards(range, limit))), Ok(first(backward)), "{at}");
        assert_eq!(block_on(store.get(start.clone())), Ok(model.get(&start).cloned()), "{at}");
    }
}

fn key(rng: &mut impl Rng) -> Bytes {
    key_of(rng.random_range(0..4), rng)
}

fn key_of(who: u8, rng: &mut impl Rng) -> Bytes {
    let mut key = vec![b'a' + who];
    (0..rng.random_range(0..3)).for_each(|_| key.push([0, b'a', b'b', 0xFF][rng.random_range(0..4)]));
    key.into()
}

fn batch(rng: &mut StdRng, who: u8, model: &BTreeMap<Bytes, Bytes>) -> Batch {
    let mut batch = Batch::new();
    for _ in 0..rng.random_range(0..3) {
        let key = key_of(who, rng);
        let right = model.get(&key).cloned();
        let expected = if rng.random_ratio(9, 10) { right } else { Some(b("wrong")) };
        batch = batch.check(key, expected);
    }
    for _ in 0..rng.random_range(0..4) {
        batch = batch.put(key_of(who, rng), rng.random::<u64>().to_string());
    }
    for _ in 0..rng.random_range(0..2) {
        batch = batch.del(key_of(who, rng));
    }
    if rng.random_ratio(1, 4) {
        batch = batch.del_range(key_of(who, rng)..key_of(who, rng));
    }
    batch
}

fn apply(model: &mut BTreeMap<Bytes, Bytes>, batch: &Batch) -> Result<(), MetaError> {
    if let Some((key, _)) = batch.checks.iter().find(|(key, expected)| model.get(key) != expected.as_ref()) {
        return Err(MetaError::Conflict { key: key.clone() });
    }
    model.retain(|key, _| !batch.del_ranges.iter().any(|range| range.contains(key)));
    for key in &batch.dels {
        model.remove(key);
    }
    model.extend(batch.puts.iter().cloned());
    Ok(())
}

/// Runs `work` on `n` threads; the answers in their order.
fn on_threads<T: Send>(n: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..n).map(|who| scope.spawn(move || work(who))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    })
}
