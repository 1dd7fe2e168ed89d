//! Blobs: writing one front to back, and reading any range of it with its checksums verified.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::StreamExt;
use futures_util::future::{LocalBoxFuture, join_all};
use futures_util::stream::FuturesUnordered;
use karri_engine::buf::Buf;
use karri_engine::disk::{Disk, DiskError};

use super::LocalStore;
use super::format::{CHUNK, INLINE_CHUNKS, UNIT, chunks, data_units, table_units};
use super::log::{Effect, Op};
use super::pool::Claim;
use super::record::{Crcs, Record, Seal};
use crate::{BlobId, BlobWriter, BulkError};

/// A writer takes more while at most so many bytes are on their way to the disk.
const IN_FLIGHT_MAX: u64 = 2 << 20;
/// Appends that are not whole units are gathered in buffers of this size.
const STAGE: u64 = 256 << 10;
/// A range that is not read straight into the caller's buffer goes through buffers of this size.
const WINDOW: u64 = 1 << 20;
/// How far ahead a blob of unknown length reserves.
const STEP_MIN: u64 = 256 << 10;
const STEP_MAX: u64 = 8 << 20;

/// A sealed blob. Its space goes back when the last holder drops it: the map, or a read under way.
#[derive(Debug)]
pub struct Blob {
    /// Its id.
    pub id: BlobId,
    /// Its length in bytes.
    pub len: u64,
    claim: Claim,
    crcs: Crcs,
    /// The checksum table, once read.
    table: OnceLock<Vec<u32>>,
}

impl Blob {
    /// From its record and its space.
    pub fn new(id: BlobId, len: u64, claim: Claim, crcs: Crcs) -> Self {
        Self { id, len, claim, crcs, table: OnceLock::new() }
    }

    /// Its record.
    pub fn record(&self) -> Record {
        Record::Seal(Seal { id: self.id, len: self.len, runs: self.claim.runs().to_vec(), crcs: self.crcs.clone() })
    }

    fn corrupt(&self, why: String) -> BulkError {
        BulkError::Corrupt { what: self.id.to_string(), why }
    }

    /// Checks whole chunks that begin at the blob's byte `from`.
    fn verify(&self, crcs: &[u32], from: u64, bytes: &[u8]) -> Result<(), BulkError> {
        for (n, chunk) in bytes.chunks(CHUNK as usize).enumerate() {
            let at = from + n as u64 * CHUNK;
            if checksum(chunk) != crcs[(at / CHUNK) as usize] {
                let disk = self.claim.pieces(at, 1).next().map_or(0, |(at, _)| at);
                return Err(self.corrupt(format!(
                    "bytes {at} to {} do not match their checksum (at byte {disk} of the data slots)",
                    at + chunk.len() as u64
                )));
            }
        }
        Ok(())
    }
}

/// CRC32C of a chunk: by `crc-fast`, which takes the widest carry-less multiplication that the CPU has; `crc32c` is made
/// of the `crc32` instruction.
fn checksum(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

impl<D: Disk> LocalStore<D> {
    /// Reads units of a blob, from anywhere in its runs, into one buffer.
    async fn gather(&self, blob: &Blob, at: u64, len: u64, buf: Buf) -> (Result<(), BulkError>, Buf) {
        debug_assert!(at.is_multiple_of(UNIT) && len == buf.len() as u64 && len.is_multiple_of(UNIT));
        let mut pieces = blob.claim.pieces(at, len);
        match (pieces.next(), pieces.next()) {
            (Some((disk_at, _)), None) => {
                let (result, buf) = self.disk.read(self.shared.geometry.data_at + disk_at, buf).await;
                (result.map_err(BulkError::from), buf)
            }
            _ => self.gather_pieces(blob, at, len, buf).await,
        }
    }

    async fn gather_pieces(&self, blob: &Blob, at: u64, len: u64, mut buf: Buf) -> (Result<(), BulkError>, Buf) {
        let reads = blob.claim.pieces(at, len).map(|(disk_at, n)| {
            let part = Buf::zeroed(n as usize);
            self.disk.read(self.shared.geometry.data_at + disk_at, part)
        });
        let mut done = 0;
        for (result, part) in join_all(reads).await {
            if let Err(e) = result {
                return (Err(e.into()), buf);
            }
            buf.copy_from(done, part.bytes());
            done += part.len();
        }
        (Ok(()), buf)
    }

    async fn crcs<'a>(&self, blob: &'a Blob) -> Result<&'a [u32], BulkError> {
        let crc = match &blob.crcs {
            Crcs::Inline(crcs) => return Ok(crcs),
            Crcs::Table(crc) => *crc,
        };
        if let Some(table) = blob.table.get() {
            return Ok(table);
        }
        let len = table_units(blob.len) * UNIT;
        let at = data_units(blob.len) * UNIT;
        let (result, buf) = self.gather(blob, at, len, Buf::zeroed(len as usize)).await;
        result?;
        let bytes = &buf.bytes()[..chunks(blob.len) as usize * 4];
        if checksum(bytes) != crc {
            return Err(blob.corrupt("its checksum table does not match the table's checksum".into()));
        }
        let table = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok(blob.table.get_or_init(|| table))
    }

    /// Fills `buf` from the blob's byte `at`, verified.
    pub(super) async fn read_range(&self, blob: &Blob, at: u64, buf: Buf) -> (Result<(), BulkError>, Buf) {
        let len = buf.len() as u64;
        let Some(end) = at.checked_add(len).filter(|end| *end <= blob.len) else {
            let what = format!("{} beyond its {} bytes ({len} bytes at {at})", blob.id, blob.len);
            return (Err(BulkError::NotFound { what }), buf);
        };
        if len == 0 {
            return (Ok(()), buf);
        }
        let crcs = match self.crcs(blob).await {
            Ok(crcs) => crcs,
            Err(e) => return (Err(e), buf),
        };
        let whole_chunks = at.is_multiple_of(CHUNK) && (end.is_multiple_of(CHUNK) || end == blob.len);
        let padded = len.next_multiple_of(UNIT);
        if whole_chunks && buf.is_owned() && buf.capacity() as u64 >= padded {
            self.read_direct(blob, crcs, at, buf, padded).await
        } else {
            self.read_windows(blob, crcs, at, end, buf).await
        }
    }

    async fn read_direct(
        &self,
        blob: &Blob,
        crcs: &[u32],
        at: u64,
        mut buf: Buf,
        padded: u64,
    ) -> (Result<(), BulkError>, Buf) {
        let len = buf.len();
        buf.set_len(padded as usize);
        let (result, mut buf) = self.gather(blob, at, padded, buf).await;
        buf.set_len(len);
        let result = result.and_then(|()| blob.verify(crcs, at, buf.bytes()));
        (result, buf)
    }

    async fn read_windows(
        &self,
        blob: &Blob,
        crcs: &[u32],
        at: u64,
        end: u64,
        mut buf: Buf,
    ) -> (Result<(), BulkError>, Buf) {
        let mut from = at - at % CHUNK;
        while from < end {
            let to = (from + WINDOW).min(end.next_multiple_of(CHUNK)).min(blob.len);
            let window = Buf::zeroed((to - from).next_multiple_of(UNIT) as usize);
            let n = window.len() as u64;
            let (result, window) = self.gather(blob, from, n, window).await;
            let bytes = &window.bytes()[..(to - from) as usize];
            if let Err(e) = result.and_then(|()| blob.verify(crcs, from, bytes)) {
                return (Err(e), buf);
            }
            let (a, b) = (at.max(from), end.min(to));
            buf.copy_from((a - at) as usize, &bytes[(a - from) as usize..(b - from) as usize]);
            from = to;
        }
        (Ok(()), buf)
    }

    /// Reads a whole blob and checks every byte.
    pub(super) async fn check_blob(&self, blob: &Blob) -> Result<(), BulkError> {
        let mut at = 0;
        let mut buf = Buf::zeroed(WINDOW.min(blob.len).next_multiple_of(UNIT) as usize);
        while at < blob.len {
            buf.set_len(WINDOW.min(blob.len - at) as usize);
            let (result, back) = self.read_range(blob, at, buf).await;
            result?;
            at += back.len() as u64;
            buf = back;
        }
        if at == 0 { Ok(()) } else { self.crcs(blob).await.map(|_| ()) }
    }
}

type Write = LocalBoxFuture<'static, (Result<(), DiskError>, u64)>;

/// Writes on their way, and the space that they write to.
struct Pending {
    writes: FuturesUnordered<Write>,
    claim: Option<Claim>,
}

impl Pending {
    fn poll_done(&mut self, cx: &mut Context<'_>) -> bool {
        while let Poll::Ready(next) = self.writes.poll_next_unpin(cx) {
            if next.is_none() {
                return true;
            }
        }
        false
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // The disk may still write there: the space stays out of use until the store is opened again.
        if !self.writes.is_empty() {
            std::mem::forget(self.claim.take());
        }
    }
}

/// Blobs that were given up while writes of theirs were under way. Their space goes back when the last has completed;
/// whoever uses the store next looks after them.
#[derive(Clone, Default)]
pub struct Yard {
    list: Rc<RefCell<Vec<Pending>>>,
    /// Every poll of the list is made with this, so that no poll takes another's wake.
    waiters: Arc<Waiters>,
}

#[derive(Default)]
struct Waiters(Mutex<Vec<Waker>>);

impl Wake for Waiters {
    fn wake(self: Arc<Self>) {
        let waiters = std::mem::take(&mut *self.0.lock().expect("no panic under this lock"));
        waiters.into_iter().for_each(Waker::wake);
    }
}

impl Yard {
    fn leave(&self, pending: Pending) {
        self.list.borrow_mut().push(pending);
        self.sweep();
    }

    /// Frees what is done. True when nothing is left.
    pub fn sweep(&self) -> bool {
        if self.list.borrow().is_empty() {
            return true;
        }
        let waker = Waker::from(self.waiters.clone());
        // Taken out meanwhile: dropping a future may come back here.
        let mut list = std::mem::take(&mut *self.list.borrow_mut());
        list.retain_mut(|p| !p.poll_done(&mut Context::from_waker(&waker)));
        let mut left = self.list.borrow_mut();
        left.append(&mut list);
        left.is_empty()
    }

    /// Waits for all. False when there was none.
    pub async fn settle(&self) -> bool {
        if self.list.borrow().is_empty() {
            return false;
        }
        poll_fn(|cx| {
            self.waiters.0.lock().expect("no panic under this lock").push(cx.waker().clone());
            if self.sweep() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        true
    }
}

/// A blob being written to a [`LocalStore`].
pub struct LocalWriter<D: Disk> {
    store: LocalStore<D>,
    id: BlobId,
    announced: Option<u64>,
    /// Bytes appended.
    len: u64,
    /// Bytes handed to the disk: whole units.
    issued: u64,
    claim: Option<Claim>,
    writes: FuturesUnordered<Write>,
    in_flight: u64,
    /// What was appended and not handed to the disk, less than a buffer full.
    stage: Option<Buf>,
    staged: usize,
    /// The last unit's bytes when it was written padded, as the announced end.
    padded: Option<Vec<u8>>,
    crcs: Vec<u32>,
    /// Checksum and length of the chunk under way.
    chunk: (u32, u64),
    failed: Option<BulkError>,
}

impl<D: Disk> LocalStore<D> {
    pub(super) async fn begin_blob(&self, announced: Option<u64>) -> Result<LocalWriter<D>, BulkError> {
        self.yard.sweep();
        self.shared.alive()?;
        let units = announced.map_or(0, units_of);
        let claim = match self.shared.pool.claim(units) {
            Err(BulkError::NoSpace { .. }) if self.yard.settle().await => self.shared.pool.claim(units)?,
            other => other?,
        };
        Ok(LocalWriter {
            store: self.clone(),
            id: self.shared.next_id(),
            announced,
            len: 0,
            issued: 0,
            claim: Some(claim),
            writes: FuturesUnordered::new(),
            in_flight: 0,
            stage: None,
            staged: 0,
            padded: None,
            crcs: Vec::new(),
            chunk: (0, 0),
            failed: None,
        })
    }
}

fn units_of(len: u64) -> u64 {
    data_units(len) + table_units(len)
}

impl<D: Disk> BlobWriter for LocalWriter<D> {
    fn id(&self) -> BlobId {
        self.id
    }

    async fn append(&mut self, buf: Buf) -> Result<(), BulkError> {
        if let Some(e) = &self.failed {
            return Err(e.clone());
        }
        // Should the caller drop this future before the bytes are taken, the blob has a hole and must not be sealed.
        self.failed = Some(DiskError::Closed.into());
        let taken = self.take(buf).await;
        self.settle(taken)?;
        let room = poll_fn(|cx| self.poll_room(cx, IN_FLIGHT_MAX)).await;
        self.settle(room)
    }

    async fn seal(mut self) -> Result<u64, BulkError> {
        if let Some(e) = self.failed.take() {
            return Err(e);
        }
        let finished = self.finish().await;
        self.settle(finished)?;
        let claim = self.claim.take().expect("a writer that did not fail has space");
        let crcs = std::mem::take(&mut self.crcs);
        let crcs = if chunks(self.len) <= INLINE_CHUNKS {
            Crcs::Inline(crcs)
        } else {
            Crcs::Table(checksum(&table_bytes(&crcs)))
        };
        let blob = Blob::new(self.id, self.len, claim, crcs);
        let mut records = Vec::new();
        blob.record().encode(&mut records);
        let data = (self.len > 0).then(|| (self.store.shared.flushes.mark(), self.len));
        self.store.commit(Op::new(records, Effect::Seal(Arc::new(blob)), data)).await?;
        Ok(self.len)
    }
}

impl<D: Disk> LocalWriter<D> {
    /// A failed writer holds no space; a sound one is sound again.
    fn settle<T>(&mut self, result: Result<T, BulkError>) -> Result<T, BulkError> {
        let result = result.map_err(|e| self.store.shared.no_space_below(e, self.len));
        self.failed = result.as_ref().err().cloned();
        if self.failed.is_some() {
            self.abandon();
        }
        result
    }

    fn abandon(&mut self) {
        self.stage = None;
        let writes = std::mem::take(&mut self.writes);
        let claim = self.claim.take();
        if !writes.is_empty() {
            self.store.yard.leave(Pending { writes, claim });
        }
    }

    /// Makes sure of space for `more` bytes and of the table that they need.
    async fn reserve(&mut self, more: u64) -> Result<(), BulkError> {
        let claim = self.claim.as_mut().expect("a writer that did not fail has space");
        let wanted = |ahead: u64| units_of(self.len + more + ahead).saturating_sub(claim.units());
        if wanted(0) == 0 {
            return Ok(());
        }
        let (exact, ahead) = (wanted(0), wanted(self.len.clamp(STEP_MIN, STEP_MAX)));
        if claim.grow(ahead).is_ok() || claim.grow(exact).is_ok() {
            return Ok(());
        }
        self.store.yard.settle().await;
        claim.grow(exact)
    }

    async fn take(&mut self, mut buf: Buf) -> Result<(), BulkError> {
        self.reserve(buf.len() as u64).await?;
        if let Some(tail) = self.padded.take() {
            // More comes after the announced end: its padded unit is written again, once the first write is done.
            self.drain().await?;
            self.issued -= UNIT;
            self.stage(&tail);
        }
        let n = buf.len() as u64;
        let padded = n.next_multiple_of(UNIT);
        if n == 0 {
            return Ok(());
        }
        if self.staged == 0 && buf.is_owned() && n == padded {
            self.checksum(buf.bytes());
            self.len += n;
            self.issue(buf);
        } else if self.staged == 0
            && buf.is_owned()
            && buf.capacity() as u64 >= padded
            && self.announced == Some(self.len + n)
        {
            self.checksum(buf.bytes());
            self.len += n;
            self.padded = Some(buf.bytes()[(padded - UNIT) as usize..].to_vec());
            buf.set_len(padded as usize);
            buf.zero(n as usize, (padded - n) as usize);
            self.issue(buf);
        } else {
            self.take_copy(&buf);
        }
        Ok(())
    }

    fn take_copy(&mut self, buf: &Buf) {
        let mut piece = vec![0; buf.len().min(64 << 10)];
        let mut at = 0;
        while at < buf.len() {
            let n = piece.len().min(buf.len() - at);
            // Through a copy of our own: foreign memory may change between checksum and write.
            buf.copy_to(at, &mut piece[..n]);
            self.checksum(&piece[..n]);
            self.len += n as u64;
            self.stage(&piece[..n]);
            at += n;
        }
    }

    /// Gathers bytes; full buffers go to the disk.
    fn stage(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let mut stage = self.stage.take().unwrap_or_else(|| self.new_stage());
            let n = bytes.len().min(stage.len() - self.staged);
            stage.copy_from(self.staged, &bytes[..n]);
            self.staged += n;
            bytes = &bytes[n..];
            if self.staged < stage.len() {
                self.stage = Some(stage);
            } else {
                self.staged = 0;
                self.issue(stage);
            }
        }
    }

    /// As large as what is still announced, within bounds.
    fn new_stage(&self) -> Buf {
        let left = self.announced.map_or(STAGE, |all| all.saturating_sub(self.issued).next_multiple_of(UNIT));
        Buf::zeroed(left.clamp(UNIT, STAGE) as usize)
    }

    fn checksum(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (crc, done) = self.chunk;
            let n = bytes.len().min((CHUNK - done) as usize);
            let crc = if done == 0 { checksum(&bytes[..n]) } else { crc32c::crc32c_append(crc, &bytes[..n]) };
            self.chunk = (crc, done + n as u64);
            bytes = &bytes[n..];
            if self.chunk.1 == CHUNK {
                self.crcs.push(self.chunk.0);
                self.chunk = (0, 0);
            }
        }
    }

    /// Hands whole units to the disk, each run's part as one write.
    fn issue(&mut self, buf: Buf) {
        let len = buf.len() as u64;
        debug_assert!(len.is_multiple_of(UNIT) && self.issued.is_multiple_of(UNIT));
        let claim = self.claim.as_ref().expect("a writer that did not fail has space");
        let data_at = self.store.shared.geometry.data_at;
        let pieces: Vec<_> = claim.pieces(self.issued, len).collect();
        debug_assert_eq!(pieces.iter().map(|(_, n)| n).sum::<u64>(), len, "space was reserved");
        if let [(at, _)] = pieces[..] {
            self.push(data_at + at, buf);
        } else {
            let mut done = 0;
            for (at, n) in pieces {
                let mut part = Buf::zeroed(n as usize);
                part.copy_from(0, &buf.bytes()[done..done + n as usize]);
                done += n as usize;
                self.push(data_at + at, part);
            }
        }
        self.issued += len;
    }

    fn push(&mut self, at: u64, buf: Buf) {
        let disk = self.store.disk.clone();
        let len = buf.len() as u64;
        self.in_flight += len;
        self.writes.push(Box::pin(async move { (disk.write(at, buf, false).await.0, len) }));
    }

    fn poll_room(&mut self, cx: &mut Context<'_>, limit: u64) -> Poll<Result<(), BulkError>> {
        while let Poll::Ready(next) = self.writes.poll_next_unpin(cx) {
            let Some((result, len)) = next else { return Poll::Ready(Ok(())) };
            self.in_flight -= len;
            if let Err(e) = result {
                return Poll::Ready(Err(e.into()));
            }
        }
        if limit > 0 && self.in_flight <= limit { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    async fn drain(&mut self) -> Result<(), BulkError> {
        poll_fn(|cx| self.poll_room(cx, 0)).await
    }

    /// Writes what is left, and the table; gives surplus space back. All is on the disk afterwards, not yet durable.
    async fn finish(&mut self) -> Result<(), BulkError> {
        if self.staged > 0 {
            let mut stage = self.stage.take().expect("staged bytes have a buffer");
            let padded = self.staged.next_multiple_of(UNIT as usize);
            stage.zero(self.staged, padded - self.staged);
            stage.set_len(padded);
            self.staged = 0;
            self.issue(stage);
        }
        if self.chunk.1 > 0 {
            self.crcs.push(self.chunk.0);
            self.chunk = (0, 0);
        }
        if table_units(self.len) > 0 {
            self.issue(Buf::copy_padded(&table_bytes(&self.crcs)));
        }
        self.drain().await?;
        debug_assert_eq!(self.issued, units_of(self.len) * UNIT);
        self.claim.as_mut().expect("a writer that did not fail has space").trim(units_of(self.len));
        Ok(())
    }
}

impl<D: Disk> Drop for LocalWriter<D> {
    fn drop(&mut self) {
        self.abandon();
    }
}

fn table_bytes(crcs: &[u32]) -> Vec<u8> {
    crcs.iter().flat_map(|crc| crc.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn both_crates_compute_the_same_crc32c() {
        let data: Vec<u8> = (0..super::CHUNK as u32 + 9).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for len in (0..300).chain([4095, 4096, 65_535, data.len() - 9, data.len()]) {
            assert_eq!(super::checksum(&data[..len]), crc32c::crc32c(&data[..len]), "{len} bytes");
        }
    }
}
