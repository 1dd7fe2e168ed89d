//! `RocksStore`: the embedded store, on RocksDB.
//!
//! Commits go to one committer thread ([`commit`]), which groups them: one synced write for all that wait. Reads are
//! tried at once against memtable and block cache, a matter of microseconds, on the caller's thread; only what needs the
//! disk goes to a small reader pool. Both queues are bounded; a full one makes callers wait.
//!
//! Left to RocksDB: the log, recovery, compaction, checksums. Left to others: what keys and values mean.

mod commit;
mod format;
mod metrics;
mod queue;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures_channel::oneshot;
use futures_util::future::BoxFuture;
use prometheus_client::registry::Registry;
use rocksdb::{BlockBasedOptions, Cache, DB, DBCompressionType, ErrorKind, ReadOptions};
use serde::Deserialize;
use serde::de::{IntoDeserializer, value::Error as ValueError};

use crate::{Batch, MetaError, MetaStore, Pair, Scan};
use commit::{Job, Reserve};
use metrics::Metrics;
use queue::{Bound, Queue};

/// How a store uses the machine. The defaults suit one role on a small host.
#[derive(Debug, Clone)]
pub struct Options {
    /// Memory for cached blocks, indexes and filters, in bytes.
    pub cache_bytes: usize,
    /// Memory for writes before they become a table, in bytes; up to three such tables exist. At most a sixty-fourth of
    /// the file system's size is taken.
    pub write_buffer_bytes: usize,
    /// The log's size on disk, in bytes, that makes RocksDB write tables and drop it. Bounds recovery time.
    pub log_bytes_max: u64,
    /// Free space that puts leave on the file system, in bytes. At most a sixteenth of the file system's size is kept,
    /// at least what the write buffers and a compaction need to become tables.
    pub reserve_bytes: u64,
    /// Threads for reads that need the disk.
    pub readers: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache_bytes: 160 << 20,
            write_buffer_bytes: 32 << 20,
            log_bytes_max: 128 << 20,
            reserve_bytes: 1 << 30,
            readers: 2,
        }
    }
}

/// Whether the text of a `FORMAT` file is this version's.
pub(crate) fn is_this_version(text: &str) -> bool {
    format::check(text).is_ok()
}

/// Write buffers that may exist at once.
const WRITE_BUFFERS_MAX: u8 = 3;
/// What a compaction writes before it removes what it read, in write buffers: four young tables and as much again, twice.
const COMPACTING: u8 = 16;

impl Options {
    /// These options, made to fit the file system's size.
    fn fitted(&self, dir: &Path) -> Self {
        let size = rustix::fs::statvfs(dir).map_or(u64::MAX, |fs| fs.f_blocks.saturating_mul(fs.f_frsize));
        let write_buffer = (self.write_buffer_bytes as u64).min(size / 64).max(64 << 10);
        // What is in the log must find room as tables, beside a compaction of young tables: a flush or a compaction that
        // fails for lack of space stops all commits.
        let buffers = u64::from(WRITE_BUFFERS_MAX + 1 + COMPACTING);
        let reserve = self.reserve_bytes.min(size / 16).max(write_buffer * buffers);
        Self { write_buffer_bytes: write_buffer as usize, reserve_bytes: reserve, ..self.clone() }
    }
}

/// Commits that wait for the committer; more make callers wait.
const COMMITS_WAITING: Bound = Bound { items: 4096, weight: 64 << 20 };
/// Reads that wait for a reader thread; more make callers wait.
const READS_WAITING: Bound = Bound { items: 1024, weight: usize::MAX };
/// Reads of so many keys are tried on the caller's thread.
const INLINE_KEYS_MAX: usize = 64;
/// A scan on the caller's thread finds at most so many pairs, a page of a listing and one, and so many bytes: a third of
/// a millisecond, which is less than another thread's wake and what that does to caches.
const INLINE_PAIRS_MAX: usize = 1024;
const INLINE_BYTES_MAX: usize = 512 << 10;
/// A piece of memory that a scan's pairs share, in bytes.
const SHARED: usize = 64 << 10;
/// A scan on the caller's thread steps over at most so many dead versions.
const INLINE_SKIPS_MAX: u64 = 256;

type Read = Box<dyn FnOnce(&DB) + Send>;

/// See the [module](self).
pub struct RocksStore {
    db: Arc<DB>,
    dir: PathBuf,
    commits: Arc<Queue<Job>>,
    reads: Arc<Queue<Read>>,
    metrics: Metrics,
    threads: Vec<JoinHandle<()>>,
    // Last, so that it goes after the database.
    _open: OpenMark,
}

/// How many stores this process has open.
static OPEN: Mutex<usize> = Mutex::new(0);
static CLOSED: Condvar = Condvar::new();

#[derive(Debug)]
struct OpenMark;

impl OpenMark {
    fn new() -> Self {
        *OPEN.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Self
    }
}

impl Drop for OpenMark {
    fn drop(&mut self) {
        *OPEN.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        CLOSED.notify_all();
    }
}

/// Waits until every store of this process is closed, at most `patience`; whether they are. A process that ends with
/// one open aborts: RocksDB's threads meet its destroyed statics. What was committed is durable either way.
pub fn wait_closed(patience: Duration) -> bool {
    let open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let (open, _) = CLOSED.wait_timeout_while(open, patience, |open| *open > 0).unwrap_or_else(PoisonError::into_inner);
    *open == 0
}

impl RocksStore {
    /// Opens the store in `dir`, making it where there is none. One process at a time may hold it.
    ///
    /// # Errors
    /// `Failed { op: "open" }` naming the folder, what is wrong and what to do: another process holds it, another
    /// version, not a store, no permission, damage.
    pub fn open(dir: impl Into<PathBuf>, options: &Options) -> Result<Self, MetaError> {
        let dir = dir.into();
        format::prepare(&dir)?;
        let options = &options.fitted(&dir);
        let db = DB::open(&db_options(options), dir.join(format::DB)).map_err(|e| format::refuse_db(&dir, &e))?;
        // What is flushed has just been written and is what is read next. The bindings have no name for it.
        let warm = [("block_based_table_factory", "{prepopulate_block_cache=kFlushOnly;}")];
        if let Err(e) = db.set_options(&warm) {
            tracing::warn!(dir = %dir.display(), error = %e, "what is flushed is not kept in memory");
        }
        let mut store = Self {
            db: Arc::new(db),
            commits: Arc::new(Queue::new(COMMITS_WAITING)),
            reads: Arc::new(Queue::new(READS_WAITING)),
            metrics: Metrics::default(),
            threads: Vec::new(),
            dir,
            _open: OpenMark::new(),
        };
        store.spawn_threads(options)?;
        Ok(store)
    }

    fn spawn_threads(&mut self, options: &Options) -> Result<(), MetaError> {
        let reserve = Reserve { bytes: options.reserve_bytes };
        let (db, dir, queue, metrics) = (self.db.clone(), self.dir.clone(), self.commits.clone(), self.metrics.clone());
        self.spawn("meta-commit", move || commit::run(&db, &dir, reserve, &queue, &metrics))?;
        for _ in 0..options.readers.max(1) {
            let (db, queue) = (self.db.clone(), self.reads.clone());
            self.spawn("meta-read", move || {
                while let Some(reads) = queue.take(Bound { items: 1, weight: usize::MAX }) {
                    reads.into_iter().for_each(|read| read(&db));
                }
            })?;
        }
        Ok(())
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), MetaError> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(run);
        self.threads.push(thread.map_err(|e| MetaError::Failed { op: "open", why: format!("thread {name}: {e}") })?);
        Ok(())
    }

    /// Adds the store's metrics (`karri_meta_*`) to a role's registry.
    pub fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }

    /// Runs `read` on a reader thread.
    async fn on_reader<T: Send + 'static>(
        &self,
        op: &'static str,
        read: impl FnOnce(&DB) -> Result<T, MetaError> + Send + 'static,
    ) -> Result<T, MetaError> {
        self.metrics.reads_from_disk.inc();
        let (answer, answered) = oneshot::channel();
        let read: Read = Box::new(move |db| {
            let _ = answer.send(read(db));
        });
        let closed = || MetaError::Failed { op, why: "the store is closed".into() };
        self.reads.push(0, read).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }
}

impl Drop for RocksStore {
    fn drop(&mut self) {
        self.commits.close();
        self.reads.close();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl MetaStore for RocksStore {
    fn get(&self, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>, MetaError>> {
        Box::pin(async move {
            if let Some(value) = get(&self.db, &key, Tier::Memory)? {
                return Ok(value);
            }
            self.on_reader("get", move |db| Ok(get(db, &key, Tier::Disk)?.flatten())).await
        })
    }

    fn multi_get(&self, keys: Vec<Bytes>) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, MetaError>> {
        Box::pin(async move {
            if keys.len() <= INLINE_KEYS_MAX
                && let Some(values) = multi_get(&self.db, &keys, Tier::Memory)?
            {
                return Ok(values);
            }
            self.on_reader("multi_get", move |db| Ok(multi_get(db, &keys, Tier::Disk)?.unwrap_or_default())).await
        })
    }

    fn scan(&self, range: Scan) -> BoxFuture<'_, Result<Vec<Pair>, MetaError>> {
        Box::pin(async move {
            if range.range.start >= range.range.end || range.limit == 0 {
                return Ok(Vec::new());
            }
            if let Some(pairs) = scan(&self.db, &range, Tier::Memory)? {
                return Ok(pairs);
            }
            self.on_reader("scan", move |db| Ok(scan(db, &range, Tier::Disk)?.unwrap_or_default())).await
        })
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<(), MetaError>> {
        Box::pin(async move {
            let closed = || MetaError::Failed { op: "commit", why: "the store is closed".into() };
            let (done, answered) = oneshot::channel();
            self.commits.push(batch.bytes(), Job { batch, done }).await.map_err(|_| closed())?;
            answered.await.map_err(|_| closed())?
        })
    }

    fn checkpoint(&self, to: PathBuf) -> BoxFuture<'_, Result<(), MetaError>> {
        Box::pin(self.on_reader("checkpoint", move |db| checkpoint(db, &to)))
    }
}

/// Where a read may look.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tier {
    Memory,
    Disk,
}

impl Tier {
    fn options(self) -> ReadOptions {
        let mut options = ReadOptions::default();
        if self == Self::Memory {
            memory_only(&mut options);
        }
        options
    }
}

/// Makes a read answer `Incomplete` where it would need the disk.
fn memory_only(options: &mut ReadOptions) {
    // rocksdb 0.20 forgot to export `ReadTier`: its name is known to serde only.
    let tier = Deserialize::deserialize(IntoDeserializer::<ValueError>::into_deserializer("BlockCache"));
    debug_assert!(tier.is_ok(), "the variant has this name");
    if let Ok(tier) = tier {
        options.set_read_tier(tier);
    }
}

/// `None` where memory cannot answer.
fn known<T>(op: &'static str, answer: Result<T, rocksdb::Error>) -> Result<Option<T>, MetaError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == ErrorKind::Incomplete => Ok(None),
        Err(e) => Err(failed(op, e)),
    }
}

fn get(db: &DB, key: &[u8], tier: Tier) -> Result<Option<Option<Bytes>>, MetaError> {
    let value = known("get", db.get_pinned_opt(key, &tier.options()))?;
    Ok(value.map(|value| value.map(|bytes| Bytes::copy_from_slice(&bytes))))
}

fn multi_get(db: &DB, keys: &[Bytes], tier: Tier) -> Result<Option<Vec<Option<Bytes>>>, MetaError> {
    let snapshot = db.snapshot();
    let mut values = Vec::with_capacity(keys.len());
    for key in keys {
        match known("multi_get", snapshot.get_pinned_opt(key, tier.options()))? {
            Some(value) => values.push(value.map(|bytes| Bytes::copy_from_slice(&bytes))),
            None => return Ok(None),
        }
    }
    Ok(Some(values))
}

fn scan(db: &DB, scan: &Scan, tier: Tier) -> Result<Option<Vec<Pair>>, MetaError> {
    let mut options = tier.options();
    options.set_iterate_lower_bound(&scan.range.start[..]);
    options.set_iterate_upper_bound(&scan.range.end[..]);
    let (pairs_max, bytes_max) = if tier == Tier::Memory {
        options.set_max_skippable_internal_keys(INLINE_SKIPS_MAX);
        (INLINE_PAIRS_MAX, INLINE_BYTES_MAX)
    } else {
        options.set_readahead_size(256 << 10);
        (usize::MAX, usize::MAX)
    };
    // An iterator is a view of one moment by itself.
    let mut at = db.raw_iterator_opt(options);
    if scan.reverse {
        at.seek_to_last()
    } else {
        at.seek_to_first()
    };
    let mut found = Found::default();
    let mut bytes = 0;
    while let Some((key, value)) = at.item() {
        bytes += key.len() + value.len();
        if found.len() == pairs_max || bytes > bytes_max {
            return Ok(None);
        }
        found.push(key, value, scan.limit);
        if found.len() == scan.limit {
            return Ok(Some(found.pairs()));
        }
        if scan.reverse {
            at.prev()
        } else {
            at.next()
        };
    }
    Ok(known("scan", at.status())?.map(|()| found.pairs()))
}

/// A scan's pairs, copied one after the other into pieces of memory that they share: whoever keeps one keeps a piece.
#[derive(Default)]
struct Found {
    pairs: Vec<Pair>,
    piece: Vec<u8>,
    /// Where the keys and values of `piece` end.
    ends: Vec<(usize, usize)>,
}

impl Found {
    fn len(&self) -> usize {
        self.pairs.len() + self.ends.len()
    }

    fn push(&mut self, key: &[u8], value: &[u8], limit: usize) {
        let len = key.len() + value.len();
        if self.piece.capacity() - self.piece.len() < len {
            self.share();
            // The first is small: many scans find little. The others have room for what is wanted still.
            let wanted = if self.pairs.is_empty() { limit.min(4) } else { limit - self.pairs.len() };
            self.piece = Vec::with_capacity(wanted.saturating_mul(len).min(SHARED).max(len));
        }
        self.piece.extend_from_slice(key);
        let key_end = self.piece.len();
        self.piece.extend_from_slice(value);
        self.ends.push((key_end, self.piece.len()));
    }

    /// Makes pairs of what is in the piece.
    fn share(&mut self) {
        let piece = Bytes::from(std::mem::take(&mut self.piece));
        let mut from = 0;
        for (key_end, end) in self.ends.drain(..) {
            self.pairs.push((piece.slice(from..key_end), piece.slice(key_end..end)));
            from = end;
        }
    }

    fn pairs(mut self) -> Vec<Pair> {
        self.share();
        self.pairs
    }
}

fn checkpoint(db: &DB, to: &Path) -> Result<(), MetaError> {
    let io = |e: std::io::Error| MetaError::Failed { op: "checkpoint", why: format!("{}: {e}", to.display()) };
    std::fs::create_dir(to).map_err(io)?;
    let copy = rocksdb::checkpoint::Checkpoint::new(db).and_then(|c| c.create_checkpoint(to.join(format::DB)));
    copy.map_err(|e| failed("checkpoint", e))?;
    // Last: without it the folder is not a store.
    format::write(to).map_err(io)
}

fn failed(op: &'static str, error: rocksdb::Error) -> MetaError {
    MetaError::Failed { op, why: error.into_string() }
}

fn db_options(options: &Options) -> rocksdb::Options {
    let mut table = BlockBasedOptions::default();
    if let Ok(cache) = Cache::new_lru_cache(options.cache_bytes) {
        table.set_block_cache(&cache);
    }
    table.set_bloom_filter(10.0, false);
    table.set_format_version(5);
    table.set_block_size(8 << 10);
    // Counted in the cache, so that memory stays bounded whatever the store's size.
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);

    let mut db = rocksdb::Options::default();
    db.create_if_missing(true);
    db.set_block_based_table_factory(&table);
    db.set_compression_type(DBCompressionType::Lz4);
    db.set_bottommost_compression_type(DBCompressionType::Zstd);
    db.set_level_compaction_dynamic_level_bytes(true);
    db.set_write_buffer_size(options.write_buffer_bytes);
    db.set_max_write_buffer_number(WRITE_BUFFERS_MAX.into());
    db.set_memtable_whole_key_filtering(true);
    db.set_memtable_prefix_bloom_ratio(0.02);
    db.set_max_total_wal_size(options.log_bytes_max);
    db.set_max_background_jobs(2);
    // Descriptors are scarce where the limit is 1,024.
    db.set_max_open_files(256);
    db.set_bytes_per_sync(1 << 20);
    db.set_keep_log_file_num(2);
    db.set_max_log_file_size(4 << 20);
    db
}
