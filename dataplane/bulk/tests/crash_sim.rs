//! Crashes of the local store, by seed: a random concurrent workload on a simulated disk, the power cut at every write
//! of it, recovery (cut as well, now and then), and a comparison with what was acknowledged.
//!
//! Checked after each recovery: every acknowledged blob is there and equal; a blob whose seal or delete was under way is
//! whole or absent; nothing else shows; kept extents hold, sector by sector, what was flushed or something newer; ids
//! are never given out twice; the space in use is that of what is alive.
//!
//! `KARRI_SIM_SEEDS=N` runs N seeds; a failure prints its seed and `make sim SEED=...` replays it alone.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use karri_bulk::conformance::{owned, pattern};
use karri_bulk::local::{LocalStore, Options};
use karri_bulk::{BlobId, BlobWriter, BulkError, BulkStore, EXTENT_BYTES, ExtentId};
use karri_engine::buf::Buf;
use karri_engine::disk::sim::{Faults, SimDisk};
use karri_engine::sim::{self, Rng, Sim};
use karri_engine::{spawn, timeout, yield_now};

const SECTOR: usize = 512;
/// Extents are written in pieces of this size at multiples of it.
const PIECE: usize = 4096;
/// Only so many pieces of an extent are written, so that they are rewritten often.
const PIECES: u64 = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// A seal or keep is under way, or was never answered.
    Begun,
    There,
    /// A delete or free is under way, or was never answered.
    Ending,
}

#[derive(Debug, Clone)]
struct Extent {
    life: Life,
    /// Version written by each submitted write, by piece: those that a read may find. Version 0: never written.
    possible: BTreeMap<u64, BTreeSet<u64>>,
}

/// What the store was asked and what it acknowledged.
#[derive(Debug, Default)]
struct Model {
    /// Blob: seed of its contents, length.
    blobs: BTreeMap<BlobId, (u64, usize, Life)>,
    extents: HashMap<ExtentId, Extent>,
    blob_ids: HashSet<BlobId>,
    extent_ids: HashSet<ExtentId>,
    next_version: u64,
}

type Shared = Rc<RefCell<Model>>;

struct Run {
    store: LocalStore<SimDisk>,
    disk: SimDisk,
    model: Shared,
    faulty: bool,
}

impl Run {
    /// Sorts errors: full stores and dead or faulty disks are allowed, everything else is a finding.
    fn allowed(&self, e: &BulkError) {
        let broken = self.disk.is_dead() || self.faulty;
        let ok = match e {
            BulkError::NoSpace { .. } => true,
            BulkError::Disk(_) => broken,
            _ => false,
        };
        assert!(ok, "unexpected error: {e:?}");
    }

    fn fresh_id(&self, id: BlobId) {
        assert!(self.model.borrow_mut().blob_ids.insert(id), "{id} was given out twice");
    }

    async fn put(&self, rng: &mut Rng) -> Option<BlobId> {
        let len = match rng.below(10) {
            0 => rng.range(1..2000),
            1 => rng.range(0..2) * 65536,
            2 => rng.range(1_000_000..1_400_000),
            _ => rng.range(1..150_000),
        } as usize;
        let seed = rng.next_u64();
        let data = pattern(seed, len);
        let announced = match rng.below(4) {
            0 => None,
            1 => Some(rng.below(2 * len as u64 + 1)),
            _ => Some(len as u64),
        };
        let mut writer = self.store.create(announced).await.map_err(|e| self.allowed(&e)).ok()?;
        let id = writer.id();
        self.fresh_id(id);
        let give_up = rng.below(12) == 0;
        let mut at = 0;
        while at < len {
            let n = match rng.below(3) {
                0 => rng.range(1..100_000) as usize,
                1 => 65536,
                _ => len,
            }
            .min(len - at);
            let mut buf = owned(&data[at..at + n]);
            if rng.below(2) == 0 {
                buf = Buf::zeroed(n.next_multiple_of(4096));
                buf.copy_from(0, &data[at..at + n]);
                buf.set_len(n);
            }
            writer.append(buf).await.map_err(|e| self.allowed(&e)).ok()?;
            at += n;
            if give_up && rng.below(2) == 0 {
                return None;
            }
        }
        self.model.borrow_mut().blobs.insert(id, (seed, len, Life::Begun));
        let sealed = writer.seal().await.map_err(|e| self.allowed(&e)).ok()?;
        assert_eq!(sealed, len as u64);
        self.model.borrow_mut().blobs.insert(id, (seed, len, Life::There));
        Some(id)
    }

    async fn read(&self, id: BlobId, rng: &mut Rng) {
        let Some((seed, len, Life::There)) = self.model.borrow().blobs.get(&id).copied() else { return };
        let at = rng.below(len as u64 + 1);
        let n = rng.below(len as u64 - at + 1) as usize;
        let (result, buf) = self.store.read_blob(id, at, Buf::zeroed(n)).await;
        match result {
            Ok(()) => assert!(buf.bytes() == &pattern(seed, len)[at as usize..at as usize + n], "{id}: wrong bytes"),
            // Someone else may have deleted it meanwhile.
            Err(BulkError::NotFound { .. }) => {
                assert_ne!(self.model.borrow().blobs.get(&id).map(|b| b.2), Some(Life::There), "{id} is gone");
            }
            Err(e) => self.allowed(&e),
        }
    }

    async fn delete(&self, ids: Vec<BlobId>) {
        for id in &ids {
            if let Some(blob) = self.model.borrow_mut().blobs.get_mut(id) {
                blob.2 = Life::Ending;
            }
        }
        match self.store.delete(ids.clone()).await {
            Ok(()) => self.model.borrow_mut().blobs.retain(|id, _| !ids.contains(id)),
            Err(e) => self.allowed(&e),
        }
    }

    fn alloc(&self) -> Option<ExtentId> {
        let id = self.store.alloc_extent().map_err(|e| self.allowed(&e)).ok()?;
        assert!(self.model.borrow_mut().extent_ids.insert(id), "{id} was given out twice");
        let extent = Extent { life: Life::Begun, possible: BTreeMap::new() };
        self.model.borrow_mut().extents.insert(id, extent);
        Some(id)
    }

    async fn write(&self, id: ExtentId, rng: &mut Rng) {
        let piece = rng.below(PIECES);
        let version = {
            let mut model = self.model.borrow_mut();
            model.next_version += 1;
            let version = model.next_version;
            let Some(extent) = model.extents.get_mut(&id) else { return };
            extent.possible.entry(piece).or_insert_with(|| [0].into()).insert(version);
            version
        };
        let (result, _) = self.store.write_extent(id, piece * PIECE as u64, stamped(id, piece, version)).await;
        result.unwrap_or_else(|e| self.allowed(&e));
    }

    /// Runs `durable` and, when it succeeds, forgets the versions that writes completed before it have replaced.
    async fn settle(&self, ids: &[ExtentId], durable: impl Future<Output = Result<(), BulkError>>) -> bool {
        // This task's writes to these extents have completed; the newest version of each piece is the one.
        let newest: Vec<(ExtentId, Vec<(u64, u64)>)> = {
            let model = self.model.borrow();
            let of = |id: &ExtentId| {
                let pieces = model.extents.get(id).into_iter().flat_map(|e| &e.possible);
                (*id, pieces.filter_map(|(p, v)| v.last().map(|v| (*p, *v))).collect())
            };
            ids.iter().map(of).collect()
        };
        match durable.await {
            Err(e) => {
                self.allowed(&e);
                false
            }
            // After a failed write nobody knows which version it is.
            Ok(()) if self.faulty => true,
            Ok(()) => {
                let mut model = self.model.borrow_mut();
                for (id, pieces) in newest {
                    for (piece, version) in pieces {
                        let possible = model.extents.get_mut(&id).and_then(|e| e.possible.get_mut(&piece));
                        possible.into_iter().for_each(|p| p.retain(|v| *v >= version));
                    }
                }
                true
            }
        }
    }

    async fn keep(&self, id: ExtentId) {
        if self.settle(&[id], self.store.keep_extents(vec![id])).await
            && let Some(e) = self.model.borrow_mut().extents.get_mut(&id)
        {
            e.life = Life::There;
        }
    }

    async fn free(&self, id: ExtentId) {
        if let Some(e) = self.model.borrow_mut().extents.get_mut(&id) {
            e.life = Life::Ending;
        }
        match self.store.free_extents(vec![id]).await {
            Ok(()) => drop(self.model.borrow_mut().extents.remove(&id)),
            Err(e) => self.allowed(&e),
        }
    }

    /// One client: its own blobs and extents, one call after the other, some of them given up half way.
    async fn client(self: Rc<Self>, mut rng: Rng, calls: u64) {
        let mut blobs: Vec<BlobId> = Vec::new();
        let mut extents: Vec<ExtentId> = Vec::new();
        for _ in 0..calls {
            if self.disk.is_dead() {
                return;
            }
            let pick = rng.next_u64() as usize;
            match rng.below(20) {
                0..=5 => {
                    let mut own = rng.fork();
                    if rng.below(8) == 0 {
                        let patience = Duration::from_micros(rng.range(1..4000));
                        if let Ok(Some(id)) = timeout(patience, self.put(&mut own)).await {
                            blobs.push(id);
                        }
                    } else {
                        blobs.extend(self.put(&mut own).await);
                    }
                }
                6..=8 if !blobs.is_empty() => self.read(blobs[pick % blobs.len()], &mut rng).await,
                9..=11 if !blobs.is_empty() => {
                    let keep = pick % blobs.len();
                    let several = rng.below(4) == 0;
                    let gone = if several { blobs.split_off(keep) } else { vec![blobs.swap_remove(keep)] };
                    self.delete(gone).await;
                }
                12..=13 => extents.extend(self.alloc()),
                14..=16 if !extents.is_empty() => self.write(extents[pick % extents.len()], &mut rng).await,
                17 if !extents.is_empty() => self.keep(extents[pick % extents.len()]).await,
                18 if !extents.is_empty() => {
                    self.settle(&extents, self.store.flush()).await;
                }
                19 if !extents.is_empty() => self.free(extents.swap_remove(pick % extents.len())).await,
                _ => yield_now().await,
            }
        }
    }
}

/// A piece whose every sector says whose it is.
fn stamped(id: ExtentId, piece: u64, version: u64) -> Buf {
    let mut buf = Buf::zeroed(PIECE);
    for (n, sector) in buf.bytes_mut().chunks_mut(SECTOR).enumerate() {
        sector.copy_from_slice(&pattern(mix(id, piece, version, n as u64), SECTOR));
    }
    buf
}

fn mix(id: ExtentId, piece: u64, version: u64, sector: u64) -> u64 {
    let words = [u64::from(id.slot), u64::from(id.incarnation), piece, version, sector];
    words.iter().fold(17, |h: u64, w| (h ^ w).wrapping_mul(0x0100_0000_01b3).rotate_left(23))
}

fn space_of(len: usize) -> u64 {
    let chunks = (len as u64).div_ceil(65536);
    let table = if chunks > 16 { (chunks * 4).div_ceil(4096) } else { 0 };
    ((len as u64).div_ceil(4096) + table) * 4096
}

/// Compares an opened store with the model, and brings the model in line where both outcomes are allowed.
async fn check(store: &LocalStore<SimDisk>, model: &Shared) {
    let listed: BTreeSet<_> = store.list(BlobId(0), usize::MAX).into_iter().collect();
    let blobs = std::mem::take(&mut model.borrow_mut().blobs);
    let unknown: Vec<_> = listed.iter().filter(|id| !blobs.contains_key(id)).collect();
    assert!(unknown.is_empty(), "{unknown:?} show up from nowhere");
    let mut used = 0;
    for (id, (seed, len, life)) in blobs {
        if !listed.contains(&id) {
            assert_ne!(life, Life::There, "{id} of {len} bytes was acknowledged and is lost");
            continue;
        }
        assert_eq!(store.blob_len(id), Some(len as u64), "{id} ({life:?})");
        let (result, buf) = store.read_blob(id, 0, Buf::zeroed(len)).await;
        assert_eq!(result, Ok(()), "{id} of {len} bytes ({life:?})");
        assert!(buf.bytes() == pattern(seed, len), "{id}: wrong bytes");
        used += space_of(len);
        model.borrow_mut().blobs.insert(id, (seed, len, Life::There));
    }
    let kept: BTreeSet<_> = store.kept_extents().into_iter().collect();
    let extents = std::mem::take(&mut model.borrow_mut().extents);
    let unknown: Vec<_> = kept.iter().filter(|id| !extents.contains_key(id)).collect();
    assert!(unknown.is_empty(), "{unknown:?} show up from nowhere");
    for (id, mut extent) in extents {
        if !kept.contains(&id) {
            assert_ne!(extent.life, Life::There, "{id} was acknowledged and is lost");
            continue;
        }
        used += EXTENT_BYTES;
        for (piece, possible) in &mut extent.possible {
            let (result, buf) = store.read_extent(id, piece * PIECE as u64, Buf::zeroed(PIECE)).await;
            result.unwrap();
            for (n, sector) in buf.bytes().chunks(SECTOR).enumerate() {
                let is = |v: &u64| sector == pattern(mix(id, *piece, *v, n as u64), SECTOR);
                let ok = possible.contains(&0) || possible.iter().any(is);
                assert!(ok, "{id}: sector {n} of piece {piece} holds none of the versions {possible:?}");
            }
        }
        extent.life = Life::There;
        model.borrow_mut().extents.insert(id, extent);
    }
    assert_eq!(store.usage().used, used, "space in use is not that of what is alive");
}

/// How one simulated life goes.
#[derive(Debug, Clone, Copy)]
struct Plan {
    clients: u64,
    calls: u64,
    /// The operation at which power is cut; 0: never.
    cut: u64,
    /// How many lives.
    lives: u64,
    faults: bool,
}

const OPTIONS: Options = Options { log_bytes: Some(128 << 10), uuid: Some([1; 16]) };

fn disk(sim: &Sim, rng: &mut Rng) -> SimDisk {
    let slots = 3 + rng.below(8);
    SimDisk::new((2 + slots) << 20, sim.rng(), Faults::reordering())
}

/// Opens, cutting the power in recovery as well now and then.
async fn reopen(mut disk: SimDisk, rng: &mut Rng) -> (SimDisk, LocalStore<SimDisk>) {
    for _ in 0..3 {
        if rng.below(4) != 0 {
            break;
        }
        disk.crash_after(1 + rng.below(12));
        match LocalStore::open_or_format(disk.clone(), "disk", OPTIONS).await {
            Err(e) => assert!(disk.is_dead() && matches!(e, BulkError::Disk(_)), "{e:?}"),
            Ok(store) => drop(store),
        }
        disk = disk.crash();
    }
    let store = LocalStore::open_or_format(disk.clone(), "disk", OPTIONS).await.expect("it opens after a crash");
    (disk, store)
}

/// Runs the plan; answers how many writes, flushes, discards and zeroings the last life's workload made.
async fn live(sim: Sim, plan: Plan) -> u64 {
    let mut rng = sim.rng();
    let model = Shared::default();
    let mut disk = disk(&sim, &mut rng);
    let mut made = 0;
    for life in 0..plan.lives {
        let (opened, store) = reopen(disk, &mut rng).await;
        disk = opened;
        check(&store, &model).await;
        let before = disk.stats();
        let cut = if life + 1 == plan.lives { plan.cut } else { 1 + rng.below(400) };
        disk.crash_after(cut);
        if plan.faults {
            disk.set_faults(Faults { write_error_ppm: 2_000, ..Faults::reordering() });
            if rng.below(2) == 0 {
                let failing = disk.clone();
                let wait = Duration::from_micros(rng.below(60_000));
                karri_engine::detach(async move {
                    karri_engine::sleep(wait).await;
                    failing.fail_flushes(1);
                });
            }
        }
        let run = Rc::new(Run { store, disk: disk.clone(), model: model.clone(), faulty: plan.faults });
        let clients: Vec<_> = (0..plan.clients).map(|_| spawn(run.clone().client(rng.fork(), plan.calls))).collect();
        for client in clients {
            client.await.expect("clients do not panic");
        }
        let after = disk.stats();
        made = after.writes + after.flushes - before.writes - before.flushes;
        if disk.is_dead() || plan.faults || rng.below(3) == 0 {
            sim.kill_tasks();
            drop(run);
            disk = disk.crash();
            disk.set_faults(Faults::reordering());
        } else {
            disk.crash_after(0);
            let closed = run.store.close().await;
            closed.expect("a healthy store closes");
            assert!(run.store.create(None).await.is_err(), "a closed store refuses");
        }
    }
    let (_, store) = reopen(disk, &mut rng).await;
    check(&store, &model).await;
    // What was recovered can all be taken away again.
    let ids = store.list(BlobId(0), usize::MAX);
    store.delete(ids).await.expect("deletes always succeed");
    store.free_extents(store.kept_extents()).await.expect("frees always succeed");
    assert_eq!(store.usage().used, 0);
    made
}

fn run(seed: u64, plan: Plan) -> u64 {
    // A failure inside prints the seed as well; the plan tells which cut it was.
    let failing = Failing(seed, plan);
    let made = sim::run(seed, move |sim| live(sim, plan));
    std::mem::forget(failing);
    made
}

struct Failing(u64, Plan);

impl Drop for Failing {
    fn drop(&mut self) {
        eprintln!("failed with {:?}; replay it with\n    make sim SEED={}", self.1, self.0);
    }
}

/// The workload of a seed is first run whole, then cut at every write, flush, discard and zeroing that it made.
#[test]
fn sim_power_is_cut_at_every_write() {
    // A seed is some hundred lives here: where thousands are asked for, an eighth of them does.
    let asked: Vec<_> = sim::seeds(8).collect();
    let few = asked.len().min((asked.len() / 8).max(8));
    for seed in asked.into_iter().take(few) {
        let mut plan = Plan { clients: 1 + seed % 4, calls: 20, cut: 0, lives: 1, faults: false };
        let made = run(seed, plan);
        for cut in 1..=made {
            plan.cut = cut;
            run(seed, plan);
        }
    }
}

/// Longer lives, several one after the other on the same disk: the log's areas change places many times.
#[test]
fn sim_many_lives_on_one_disk() {
    for seed in sim::seeds(20) {
        run(seed, Plan { clients: 2 + seed % 5, calls: 60, cut: 1 + seed * 37 % 500, lives: 5, faults: false });
    }
}

/// Writes and flushes that fail: the store may refuse, and loses nothing that it acknowledged.
#[test]
fn sim_failing_disks_lose_nothing() {
    for seed in sim::seeds(20) {
        run(seed, Plan { clients: 3, calls: 60, cut: 0, lives: 3, faults: true });
    }
}
