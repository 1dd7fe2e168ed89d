//! The record log: group commit, and the compaction into the other area that goes along with it.
//!
//! ```text
//! commit() -> pending -> [leader: one group] write + flush -> effects, answers -> a slice of the image -> next group
//! ```
//!
//! Any core may commit; whoever finds no leader starts one, a task of its own on its core, which takes everything that
//! is pending as one group, and goes on until nothing is. A caller that goes away changes nothing.
//!
//! **One flush covers data and record.** A group is written when the data of its sealed blobs has been written but is
//! perhaps not durable (`unproven`); the flush after it makes both durable. A crash in between may leave the record
//! without its data. Group n+1 is written only after group n's flush was answered, so only the last group can be such a
//! one: recovery reads the data of its blobs and drops those whose checksums do not match. To bound that reading, a group
//! with more than [`RECHECK_MAX`] of unproven data is preceded by a flush of its own.
//!
//! **Compaction** begins when five eighths of the area are used. After each group, a slice of an image of everything
//! alive is written to the other area, five times the group's length; records that become durable meanwhile go into the
//! image's stream behind it, so its replay ends in the same state (every record may be replayed onto a state that has
//! it). What is alive takes at most half an area, so the image is done before the area in use is full. Then: flush, both
//! superblocks name the new area. Nobody waits, except for the last flush.
//!
//! **After an error** in the log nobody knows what the disk holds: the store refuses all changes until it is opened
//! again, and goes on reading. Space of blobs in the failed group stays out of use.

use std::collections::VecDeque;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::{Arc, MutexGuard};

use futures_channel::oneshot;
use karri_engine::buf::Buf;
use karri_engine::disk::{Disk, DiskError};

use super::blob::Blob;
use super::flush::flush;
use super::format::{GROUP_HEADER, Geometry, GroupHeader, SUPERBLOCK_AT, Superblock, group_len};
use super::record::{Record, extents_max};
use super::{LocalStore, Shared};
use crate::{BlobId, BulkError, ExtentId};

/// Unproven data in one group, in bytes, up to which recovery rather reads it than every commit flushes twice.
pub const RECHECK_MAX: u64 = 16 << 20;
/// Image bytes written for each byte of a group while compacting.
const PACE: u64 = 5;

/// What a record does to memory once it is durable.
#[derive(Debug)]
pub enum Effect {
    /// The blob exists.
    Seal(Arc<Blob>),
    /// The blobs do not.
    Delete(Vec<BlobId>),
    /// The extents are owned.
    Keep(Vec<ExtentId>),
    /// The extents are free.
    Free(Vec<ExtentId>),
    /// The store is closed in order.
    Close,
}

/// Records that become durable together, and their effect.
#[derive(Debug)]
pub struct Op {
    records: Vec<u8>,
    effect: Effect,
    /// The mark after the last data write, and how many bytes of data.
    data: Option<(u64, u64)>,
}

impl Op {
    /// `records` are at most one record's maximum.
    pub fn new(records: Vec<u8>, effect: Effect, data: Option<(u64, u64)>) -> Self {
        Self { records, effect, data }
    }
}

type Answer = oneshot::Sender<Result<(), BulkError>>;

/// A group between its building and its end.
#[derive(Debug)]
struct Group {
    ops: Vec<(Op, Answer)>,
    payload: Vec<u8>,
    ceiling: u32,
    at: u64,
    len: u64,
    /// Flush before the write.
    before: bool,
    /// Flush after it; otherwise the write itself is durable.
    after: bool,
    close: bool,
}

/// A copy of everything alive, on its way into the other area.
#[derive(Debug)]
struct Image {
    area: u8,
    log_id: u64,
    head: u64,
    seq: u64,
    walk: Walk,
    /// Records that became durable since the last slice.
    backlog: VecDeque<u8>,
    /// Where records of the backlog end.
    backlog_ends: VecDeque<usize>,
}

#[derive(Debug, Clone, Copy)]
enum Walk {
    Blobs(BlobId),
    Extents(u32),
    Done,
}

/// What all cores share of the log.
#[derive(Debug)]
pub struct LogState {
    superblock: Superblock,
    head: u64,
    seq: u64,
    pending: VecDeque<(Op, Answer)>,
    leading: bool,
    dead: Option<BulkError>,
    image: Option<Image>,
}

impl LogState {
    /// Replayed, and to be continued in the other area only: see [`LocalStore::begin_epoch`].
    pub fn reopened(superblock: Superblock) -> Self {
        Self { superblock, head: 0, seq: 0, pending: VecDeque::new(), leading: false, dead: None, image: None }
    }

    fn geometry(&self) -> &Geometry {
        &self.superblock.geometry
    }

    fn begin_image(&mut self, log_id: u64) {
        self.image = Some(Image {
            area: 1 - self.superblock.log_area,
            log_id,
            head: 0,
            seq: 0,
            walk: Walk::Blobs(BlobId(0)),
            backlog: VecDeque::new(),
            backlog_ends: VecDeque::new(),
        });
    }

    fn header(&self, log_id: u64, seq: u64, ceiling: u32, unproven: bool) -> GroupHeader {
        let uuid = self.superblock.uuid;
        GroupHeader { uuid, log_id, seq, payload_len: 0, incarnation_ceiling: ceiling, unproven, payload_crc: 0 }
    }
}

enum Next {
    Idle,
    /// The area is too full: the image must be done first.
    Compact,
    Write(Group, Buf),
}

enum Slice {
    None,
    Write(u64, Buf),
    Finish(Superblock),
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, LogState> {
        self.log.lock().expect("no panic under this lock")
    }

    /// Refuses when the log has failed or the store is closed.
    pub(super) fn alive(&self) -> Result<(), BulkError> {
        self.log().dead.clone().map_or(Ok(()), Err)
    }

    /// Queues an operation. `check` is asked under the log's lock, where the order of operations is decided.
    fn enqueue(
        &self,
        op: Op,
        check: impl FnOnce() -> Result<(), BulkError>,
    ) -> Result<oneshot::Receiver<Result<(), BulkError>>, BulkError> {
        let mut log = self.log();
        if let Some(dead) = &log.dead {
            return Err(dead.clone());
        }
        check()?;
        let (answer, receiver) = oneshot::channel();
        log.pending.push_back((op, answer));
        Ok(receiver)
    }

    fn lead(self: &Arc<Self>) -> Option<Lead> {
        let mut log = self.log();
        if log.leading || log.pending.is_empty() {
            return None;
        }
        log.leading = true;
        Some(Lead(Some(self.clone())))
    }

    fn next_group(&self) -> Next {
        let mut log = self.log();
        let max = log.geometry().group_max() - GROUP_HEADER;
        let mut payload = Vec::new();
        let mut take = 0;
        for (op, _) in &log.pending {
            if take > 0 && payload.len() + op.records.len() > max {
                break;
            }
            payload.extend_from_slice(&op.records);
            take += 1;
            if matches!(op.effect, Effect::Close) {
                break;
            }
        }
        if take == 0 {
            log.leading = false;
            return Next::Idle;
        }
        let len = group_len(payload.len()) as u64;
        if log.head + len > log.geometry().log_bytes {
            return Next::Compact;
        }
        let ops: Vec<_> = log.pending.drain(..take).collect();
        let unproven: u64 = ops
            .iter()
            .filter_map(|(op, _)| op.data)
            .filter(|(mark, _)| !self.flushes.covers(*mark))
            .map(|(_, bytes)| bytes)
            .sum();
        let before = unproven > RECHECK_MAX;
        let close = ops.iter().any(|(op, _)| matches!(op.effect, Effect::Close));
        let keeps = ops.iter().any(|(op, _)| matches!(op.effect, Effect::Keep(_)));
        let unproven = unproven > 0 && !before;
        let ceiling = self.slots.next_ceiling();
        let header = log.header(log.superblock.log_id, log.seq, ceiling, unproven);
        let buf = Buf::copy_padded(&header.encode(&payload));
        let at = log.geometry().log_at(log.superblock.log_area.into()) + log.head;
        let after = unproven || close || (keeps && !before);
        Next::Write(Group { ops, payload, ceiling, at, len, before, after, close }, buf)
    }

    /// The group is durable: memory follows, then the answers.
    fn group_done(&self, group: Group) {
        self.slots.raise_ceiling(group.ceiling);
        let mut answers = Vec::with_capacity(group.ops.len());
        let mut ends = Vec::with_capacity(group.ops.len());
        for (op, answer) in group.ops {
            ends.push(op.records.len());
            self.apply(op.effect);
            answers.push(answer);
        }
        let mut log = self.log();
        log.head += group.len;
        log.seq += 1;
        if let Some(image) = &mut log.image {
            image.backlog.extend(group.payload);
            image.backlog_ends.extend(ends);
        }
        drop(log);
        // A caller that went away is told nothing.
        answers.into_iter().for_each(|a| drop(a.send(Ok(()))));
    }

    fn apply(&self, effect: Effect) {
        match effect {
            Effect::Seal(blob) => {
                self.blobs_mut().insert(blob.id, blob);
            }
            Effect::Delete(ids) => {
                let mut blobs = self.blobs_mut();
                let gone: Vec<_> = ids.iter().filter_map(|id| blobs.remove(id)).collect();
                drop(blobs);
                drop(gone);
            }
            Effect::Keep(ids) => ids.iter().for_each(|id| self.slots.keep(*id)),
            Effect::Free(ids) => {
                for id in ids {
                    if self.slots.freed(id) {
                        self.pool.free_slot(id.slot);
                    }
                }
            }
            Effect::Close => {}
        }
    }

    /// The store has failed, or is closed: nothing changes any more.
    pub(super) fn die(&self, why: &BulkError) {
        self.die_with(why, None);
    }

    fn die_with(&self, why: &BulkError, group: Option<Group>) {
        let mut log = self.log();
        let first = log.dead.is_none();
        log.dead.get_or_insert_with(|| why.clone());
        log.leading = false;
        let pending = std::mem::take(&mut log.pending);
        drop(log);
        if first && !matches!(why, BulkError::Disk(DiskError::Closed)) {
            tracing::error!(store = %self.name, error = %why, "the record log failed; the store refuses changes until it is opened again");
        }
        for (op, answer) in group.into_iter().flat_map(|g| g.ops) {
            // Perhaps its record is durable: the space must not be used again.
            std::mem::forget(op.effect);
            drop(answer.send(Err(why.clone())));
        }
        for (_, answer) in pending {
            drop(answer.send(Err(why.clone())));
        }
    }

    /// The next part of the image; begins one when the area in use is full enough, or `now`.
    fn next_slice(&self, now: bool) -> Slice {
        let mut log = self.log();
        let log = &mut *log;
        if log.image.is_none() {
            if !now && log.head <= log.geometry().log_bytes / 8 * 5 {
                return Slice::None;
            }
            log.begin_image(log.superblock.log_id + 1);
        }
        let ceiling = self.slots.next_ceiling();
        let geometry = log.superblock.geometry;
        let Some(mut image) = log.image.take() else { return Slice::None };
        let payload = self.image_payload(&mut image, geometry.group_max() - GROUP_HEADER, geometry.record_max());
        if payload.is_empty() {
            let superblock = Superblock {
                generation: log.superblock.generation + 1,
                log_id: image.log_id,
                log_durable: image.head,
                log_area: image.area,
                incarnation_ceiling: ceiling,
                ..log.superblock
            };
            log.image = Some(image);
            return Slice::Finish(superblock);
        }
        let buf = Buf::copy_padded(&log.header(image.log_id, image.seq, ceiling, false).encode(&payload));
        let at = geometry.log_at(image.area.into()) + image.head;
        image.head += buf.len() as u64;
        image.seq += 1;
        log.image = Some(image);
        Slice::Write(at, buf)
    }

    fn image_payload(&self, image: &mut Image, max: usize, record_max: usize) -> Vec<u8> {
        let mut payload = Vec::new();
        while let Some(len) = image.backlog_ends.front() {
            if payload.len() + len > max {
                return payload;
            }
            payload.extend(image.backlog.drain(..*len));
            image.backlog_ends.pop_front();
        }
        let mut one = Vec::new();
        if let Walk::Blobs(after) = image.walk {
            for (id, blob) in self.blobs().range((Excluded(after), Unbounded)) {
                one.clear();
                blob.record().encode(&mut one);
                if payload.len() + one.len() > max {
                    return payload;
                }
                payload.append(&mut one);
                image.walk = Walk::Blobs(*id);
            }
            image.walk = Walk::Extents(0);
        }
        if let Walk::Extents(from) = image.walk {
            let kept: Vec<_> = self.slots.kept(from).take(extents_max(record_max)).collect();
            let Some(last) = kept.last() else {
                image.walk = Walk::Done;
                return payload;
            };
            let next = Walk::Extents(last.slot + 1);
            Record::Keep(kept).encode(&mut one);
            if payload.len() + one.len() <= max {
                payload.append(&mut one);
                image.walk = next;
            }
        }
        payload
    }

    fn image_finished(&self, superblock: Superblock) {
        let mut log = self.log();
        let Some(image) = log.image.take() else { return };
        log.superblock = superblock;
        log.head = image.head;
        log.seq = image.seq;
    }
}

/// Leadership. Dropped before its time (the core ended): the log is closed, so that nobody waits for ever.
struct Lead(Option<Arc<Shared>>);

impl Drop for Lead {
    fn drop(&mut self) {
        if let Some(shared) = self.0.take() {
            shared.die(&DiskError::Closed.into());
        }
    }
}

impl<D: Disk> LocalStore<D> {
    /// Makes an operation durable and applies it.
    pub(super) async fn commit(&self, op: Op) -> Result<(), BulkError> {
        self.commit_checked(op, || Ok(())).await
    }

    /// [`commit`](Self::commit), if `check` agrees when the operation takes its place in the order.
    pub(super) async fn commit_checked(
        &self,
        op: Op,
        check: impl FnOnce() -> Result<(), BulkError>,
    ) -> Result<(), BulkError> {
        let answer = self.shared.enqueue(op, check)?;
        self.start_leading();
        answer.await.unwrap_or_else(|_| Err(DiskError::Closed.into()))
    }

    fn start_leading(&self) {
        if let Some(lead) = self.shared.lead() {
            karri_engine::detach(self.clone().drive(lead));
        }
    }

    async fn drive(self, mut lead: Lead) {
        let result = self.write_groups().await;
        lead.0 = None;
        if let Err((why, group)) = result {
            self.shared.die_with(&why, group);
        }
    }

    /// Writes groups until nothing is pending.
    async fn write_groups(&self) -> Result<(), (BulkError, Option<Group>)> {
        loop {
            match self.shared.next_group() {
                Next::Idle => return Ok(()),
                Next::Compact => self.compact(u64::MAX, true).await.map_err(|e| (e, None))?,
                Next::Write(group, buf) => {
                    let (len, close) = (group.len, group.close);
                    // A task that is dropped while the group is on its way must not free its space either.
                    let unknown = Unknown { shared: &self.shared, group: Some(group) };
                    let mut result = self.write_group(unknown.group(), buf).await;
                    if close && result.is_ok() {
                        result = self.write_clean(unknown.group()).await;
                    }
                    let group = unknown.known();
                    if let Err(e) = result {
                        return Err((e.into(), Some(group)));
                    }
                    self.shared.group_done(group);
                    if close {
                        return Err((DiskError::Closed.into(), None));
                    }
                    self.compact(PACE * len, false).await.map_err(|e| (e, None))?;
                }
            }
        }
    }

    /// At open: writes a superblock of the new epoch, then everything alive as a new log in the other area. A torn tail is
    /// never continued, and no group of an earlier opening can pass for one of this.
    pub(super) async fn begin_epoch(&self) -> Result<(), BulkError> {
        let superblock = {
            let mut log = self.shared.log();
            log.superblock.generation += 1;
            let first_log = u64::from(log.superblock.epoch) << 32;
            log.begin_image(first_log);
            log.superblock
        };
        write_superblock(&self.disk, &superblock).await?;
        self.compact(u64::MAX, true).await
    }

    async fn write_group(&self, group: &Group, buf: Buf) -> Result<(), DiskError> {
        if group.before {
            flush(&self.shared, &self.disk).await?;
        }
        self.disk.write(group.at, buf, !group.after).await.0?;
        if group.after {
            flush(&self.shared, &self.disk).await?;
        }
        Ok(())
    }

    /// Both superblocks say that nothing follows this group.
    async fn write_clean(&self, group: &Group) -> Result<(), DiskError> {
        let superblock = {
            let mut log = self.shared.log();
            log.superblock.generation += 1;
            log.superblock.clean = true;
            log.superblock.log_durable = log.head + group.len;
            log.superblock.incarnation_ceiling = self.shared.slots.issued();
            log.superblock
        };
        write_superblock(&self.disk, &superblock).await
    }

    /// Writes about `budget` bytes of the image, if one is due (or `now`), and ends it when all is written.
    pub(super) async fn compact(&self, budget: u64, now: bool) -> Result<(), BulkError> {
        let mut written = 0;
        loop {
            match self.shared.next_slice(now) {
                Slice::None => return Ok(()),
                Slice::Write(at, buf) => {
                    let geometry = &self.shared.geometry;
                    let len = buf.len() as u64;
                    let area_end = if at < geometry.log_at(1) { geometry.log_at(1) } else { geometry.log_at(2) };
                    if at + len > area_end {
                        let why = "the records of what is alive do not fit the log area".to_owned();
                        return Err(BulkError::Corrupt { what: self.shared.name.clone(), why });
                    }
                    self.disk.write(at, buf, false).await.0?;
                    written += len;
                }
                Slice::Finish(superblock) => {
                    flush(&self.shared, &self.disk).await?;
                    write_superblock(&self.disk, &superblock).await?;
                    self.shared.image_finished(superblock);
                    return Ok(());
                }
            }
            if written >= budget {
                return Ok(());
            }
        }
    }
}

/// A group whose fate on the disk is not known: dropped like this, its space stays out of use.
struct Unknown<'a> {
    shared: &'a Arc<Shared>,
    group: Option<Group>,
}

impl Unknown<'_> {
    fn group(&self) -> &Group {
        self.group.as_ref().expect("taken only by `known`")
    }

    fn known(mut self) -> Group {
        self.group.take().expect("taken once")
    }
}

impl Drop for Unknown<'_> {
    fn drop(&mut self) {
        if let Some(group) = self.group.take() {
            self.shared.die_with(&DiskError::Closed.into(), Some(group));
        }
    }
}

/// Writes both copies, one after the other, durably: at any moment one of them is whole.
pub(super) async fn write_superblock<D: Disk>(disk: &D, superblock: &Superblock) -> Result<(), DiskError> {
    let bytes = superblock.encode();
    for at in SUPERBLOCK_AT {
        disk.write(at, Buf::copy_padded(&bytes), true).await.0?;
    }
    Ok(())
}
