//! Replication: a change that a rule means is queued in the very commit that makes it, and carried in the background.
//!
//! ```text
//! PUT, DELETE, tags, ... -> commit: O, ... and R destination time random -> run -> local | remote -> O and R settled
//! ```
//!
//! One entry is one destination's; it names the version, whose record is read when it is carried, so what is sent is always
//! the latest, and one entry does for many changes. It goes in the commit that settles the version's status: a crash in between carries it again, and a replica
//! that is there already stays as it is. A destination that does not answer rests, longer each time, and holds up nobody
//! else; an entry that does not get through is put back for later, and one that is refused given up after [`ATTEMPTS`].
//!
//! Replicas keep id and time of their version, in this Walrus and in remotes that are Walruses: so they may come in any
//! order, and come twice. Replicas are not replicated again, so two buckets may replicate each other.
//!
//! | module | holds |
//! |---|---|
//! | [`queue`] | what waits: entries, counts |
//! | [`slots`] | whose turn it is |
//! | [`local`] | into a bucket of this Walrus |
//! | [`remote`] | to another S3 server |

pub mod local;
pub mod queue;
pub mod remote;
mod slots;

pub use queue::{Entry, Queue, Queued, What};

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::stream::{self, FuturesUnordered, StreamExt};
use karri_base::clock::UnixMicros;
use karri_bulk::BulkStore;
use karri_meta::{Batch, MetaError, Scan};

use crate::access::{Facts, Leave};
use crate::buckets::Known;
use crate::change::Change;
use crate::config::replication::Rule;
use crate::core::{Caller, CoreRef, RETRIES};
use crate::error::{Error, Kind, Result};
use crate::keys::{self, BucketId, DataId};
use crate::notify::{Event, REPLICATION};
use crate::record::Object;
use crate::scrub::report::Place;
use crate::versions::Which;

use slots::Slots;

/// Says that an upload or a delete marker is a replica of the version with this id; a karri's own header, which takes the
/// permission `s3:ReplicateObject`.
pub const REPLICA: &str = "x-amz-karri-replica";
/// A change that a destination refuses has failed when it was tried so often.
pub const ATTEMPTS: u32 = 6;

/// Entries read in one go.
const PAGE: usize = 64;
/// Changes on their way to one destination at once.
const AT_ONCE: usize = 4;
/// Pauses of a destination that does not answer: from, to.
const REST: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// The pause after an entry's first refusal, four times as long after each; the longest.
const PUT_BACK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// How often the queue is looked at without being told: for entries that are due again, and those of cut-off commits.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// An entry due later than this from now was put back before the clock was set back.
const LATER_MAX: u64 = 2 * 3600 * 1_000_000;

/// True for an id that some Walrus may have given to a version: not from before 2001, nor from after tomorrow.
pub fn is_plausible(id: DataId, now: UnixMicros) -> bool {
    (1_000_000_000_000_000..now.0.saturating_add(86_400_000_000)).contains(&id.time().0)
}

/// Why a change was not carried.
#[derive(Debug)]
pub enum Trouble {
    /// The destination does not answer, fails, or takes nothing at all: all that is for it waits.
    Away(String),
    /// This change did not get through, others may.
    Later(String),
    /// It does not take this change.
    Refused(String),
}

impl From<Error> for Trouble {
    fn from(e: Error) -> Self {
        let text = format!("{}: {}", e.kind.code(), e.message);
        match e.kind {
            Kind::SlowDown | Kind::StorageFull => Self::Away(text),
            // What cannot be read of one version says nothing of others.
            _ => Self::Refused(text),
        }
    }
}

/// A change on its way: what it is about, read anew.
pub struct Carried<'a> {
    /// The entry.
    pub entry: &'a Entry,
    /// The rule that it goes by.
    pub rule: &'a Rule,
    /// The bucket that it comes from.
    pub source: &'a Known,
    /// Whom destinations let in.
    pub role: &'a str,
    /// The version.
    pub object: &'a Object,
    /// True where it is the current version.
    pub current: bool,
    /// True where it may have been carried before.
    pub again: bool,
}

impl Carried<'_> {
    /// Whose data it is, for the report of what is corrupt.
    fn place(&self) -> Place {
        let Entry { name, key, version, .. } = self.entry;
        Place { bucket: name.clone(), key: key.clone(), version: version.to_hex() }
    }
}

/// What entries that go one after another are of: a bucket's key.
type Of = (BucketId, String);

/// How an entry ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The destination has it.
    Done,
    /// It will never have it.
    Failed,
}

/// Replicates for ever.
pub async fn run<B: BulkStore>(core: &CoreRef<B>) {
    let started = core.now();
    if let Err(error) = count(core).await {
        tracing::warn!(error = %error, "what waits to be replicated could not be counted");
    }
    let mut resting: HashMap<String, (UnixMicros, Duration)> = HashMap::new();
    let mut slots = Slots::default();
    let mut working = FuturesUnordered::new();
    loop {
        let now = core.now();
        let rests = |to: &str| resting.get(to).is_some_and(|(until, _)| *until > now);
        match waiting(core, &mut slots, rests).await {
            Ok(found) => {
                for to in found {
                    working.push(async move {
                        let outcome = page(core, &to, started).await;
                        (to, outcome)
                    });
                }
            }
            Err(error) => tracing::warn!(error = %error, "what waits to be replicated could not be read"),
        }
        let now = core.now();
        let soonest = resting.values().map(|(until, _)| until.0.saturating_sub(now.0)).filter(|rest| *rest > 0).min();
        let pause = soonest.map_or(LOOK_EVERY, Duration::from_micros).min(LOOK_EVERY);
        let rung = std::pin::pin!(karri_engine::timeout(pause, core.shared.replication.bell.notified()));
        let ended = if working.is_empty() {
            let _ = rung.await;
            None
        } else {
            match select(working.next(), rung).await {
                Either::Left((ended, _)) => ended,
                Either::Right(_) => None,
            }
        };
        let Some((to, outcome)) = ended else { continue };
        slots.free(&to);
        match outcome {
            Ok(()) => drop(resting.remove(&to)),
            Err(error) => {
                let pause = resting.get(&to).map_or(REST.0, |(_, pause)| (*pause * 2).min(REST.1));
                if pause == REST.0 {
                    // Once per outage.
                    tracing::warn!(destination = to, error, "replication does not get through; trying again");
                }
                let until = UnixMicros(core.now().0 + pause.as_micros() as u64);
                resting.insert(to, (until, pause));
            }
        }
    }
}

/// Replicates what is due now, destination by destination, until nothing is or a destination does not answer; answers
/// the destinations' errors.
///
/// # Errors
/// The store's.
pub async fn round<B: BulkStore>(core: &CoreRef<B>) -> Result<Vec<(String, String)>> {
    let mut away: Vec<(String, String)> = Vec::new();
    let started = core.now();
    let mut slots = Slots::default();
    loop {
        let found = waiting(core, &mut slots, |to| away.iter().any(|(name, _)| name == to)).await?;
        if found.is_empty() {
            return Ok(away);
        }
        for to in found {
            let outcome = page(core, &to, started).await;
            slots.free(&to);
            away.extend(outcome.err().map(|error| (to, error)));
        }
    }
}

fn is_due(at: UnixMicros, now: UnixMicros) -> bool {
    at <= now || at.0 > now.0.saturating_add(LATER_MAX)
}

/// Gives slots to destinations that something is due for, as far as there are: found by seek, one read each.
async fn waiting<B: BulkStore>(
    core: &CoreRef<B>,
    slots: &mut Slots,
    rests: impl Fn(&str) -> bool,
) -> Result<Vec<String>> {
    let now = core.now();
    let mut found = Vec::new();
    for mut range in slots.ranges() {
        while !slots.are_taken() {
            let Some((key, raw)) = core.meta.scan(Scan::new(range.clone(), 1)).await?.pop() else { break };
            let Some((to, at)) = keys::event_parts(&key) else {
                range.start = keys::after(&key);
                continue;
            };
            range.start = keys::replications_of(&to).end;
            if !is_due(at, now) || slots.has(&to) || rests(&to) {
                continue;
            }
            // Of a bucket that is gone, or a damaged entry: nobody's.
            let account = match Entry::decode(&raw) {
                Ok(entry) => core.known(&entry.name).await.map_or(String::new(), |known| known.bucket().owner.clone()),
                Err(_) => String::new(),
            };
            if slots.take(&to, &account) {
                found.push(to);
            }
        }
    }
    Ok(found)
}

/// Counts what waited when the last life ended.
async fn count<B: BulkStore>(core: &CoreRef<B>) -> Result<()> {
    let mut sums: HashMap<String, (i64, i64)> = HashMap::new();
    core.each_pair(keys::all(b'R'), 1_000, |key, raw| {
        if let (Some((to, _)), Ok(entry)) = (keys::event_parts(key), Entry::decode(raw)) {
            let (entries, bytes) = sums.entry(to).or_default();
            (*entries, *bytes) = (*entries + 1, *bytes + entry.size as i64);
        }
        Ok(())
    })
    .await?;
    for (to, sum) in sums {
        core.shared.metrics.replication_waiting(&to, sum, None);
        core.shared.replication.lock().insert(to, sum);
    }
    Ok(())
}

/// Carries the next page of what is due for a destination: changes of one key one after another, others beside them.
async fn page<B: BulkStore>(core: &CoreRef<B>, to: &str, started: UnixMicros) -> Result<(), String> {
    let found = core.meta.scan(Scan::new(keys::replications_of(to), PAGE)).await.map_err(|e| e.to_string())?;
    let now = core.now();
    let all_seen = found.len() < PAGE;
    let (mut sum, mut oldest) = ((0, 0), now);
    let mut order: Vec<Of> = Vec::new();
    let mut groups: HashMap<Of, Vec<(Bytes, Bytes, Entry)>> = HashMap::new();
    for (key, raw) in found {
        let entry = Entry::decode(&raw);
        sum = (sum.0 + 1, sum.1 + entry.as_ref().map_or(0, |entry| entry.size as i64));
        oldest = oldest.min(entry.as_ref().map_or(now, |entry| entry.since));
        if !keys::event_parts(&key).is_some_and(|(_, at)| is_due(at, now)) {
            continue;
        }
        match entry {
            Ok(entry) => {
                let group = (entry.bucket, entry.key.clone());
                let waiting = groups.entry(group.clone()).or_default();
                if waiting.is_empty() {
                    order.push(group);
                }
                waiting.push((key, raw, entry));
            }
            Err(error) => {
                // What is damaged nobody will ever carry.
                tracing::error!(destination = to, error = %error, "the record of a change to replicate is damaged");
                core.shared.metrics.replication_failed(to);
                core.commit(Batch::new().del(key)).await.map_err(|e| e.to_string())?;
            }
        }
    }
    if all_seen {
        // What was counted may be off by commits that were cut off.
        let mut waiting = core.shared.replication.lock();
        if sum.0 == 0 {
            waiting.remove(to);
        } else {
            waiting.insert(to.to_owned(), sum);
        }
    }
    let lag = Duration::from_micros(now.0.saturating_sub(oldest.0)).as_secs();
    let left = core.shared.replication.lock().get(to).copied().unwrap_or_default();
    core.shared.metrics.replication_waiting(to, left, Some(lag));
    let work = order.into_iter().filter_map(|group| groups.remove(&group)).map(|entries| async move {
        for (key, raw, entry) in entries {
            one(core, to, (key, raw), entry, started).await?;
        }
        Ok::<(), String>(())
    });
    let mut outcomes = stream::iter(work).buffer_unordered(AT_ONCE);
    // Once the destination is found to be away the others are cut off: they are carried again.
    while let Some(outcome) = outcomes.next().await {
        outcome?;
    }
    Ok(())
}

/// Carries one change and settles it; an error where the destination is away.
async fn one<B: BulkStore>(
    core: &CoreRef<B>,
    to: &str,
    stored: (Bytes, Bytes),
    entry: Entry,
    started: UnixMicros,
) -> Result<(), String> {
    let carried = carry(core, to, &entry, started).await;
    let metrics = &core.shared.metrics;
    let end = match carried {
        Ok(()) => {
            metrics.replicated(to, entry.size);
            End::Done
        }
        Err(Trouble::Away(error)) => return Err(error),
        Err(trouble @ (Trouble::Later(_) | Trouble::Refused(_))) => {
            let attempts = entry.attempts.saturating_add(1);
            let Entry { name: bucket, key, .. } = &entry;
            let (error, for_good) = match trouble {
                Trouble::Refused(error) => (error, attempts >= ATTEMPTS),
                Trouble::Away(error) | Trouble::Later(error) => (error, false),
            };
            if !for_good {
                tracing::debug!(destination = to, bucket, key, error, "a change did not get through; it is put back");
                return put_back(core, to, stored, Entry { attempts, ..entry }).await.map_err(|e| e.to_string());
            }
            tracing::warn!(destination = to, bucket, key, error, "a version is not replicated: it was refused");
            metrics.replication_failed(to);
            End::Failed
        }
    };
    // Another one in its place is carried again.
    if settle(core, stored, &entry, end).await.map_err(|e| e.to_string())? {
        let left = core.shared.replication.gone(to, entry.size);
        metrics.replication_waiting(to, left, (left.0 == 0).then_some(0));
    }
    Ok(())
}

/// Carries one change.
async fn carry<B: BulkStore>(core: &CoreRef<B>, to: &str, entry: &Entry, started: UnixMicros) -> Result<(), Trouble> {
    let source = match core.known(&entry.name).await {
        Ok(known) if known.bucket().id == entry.bucket => known,
        // The bucket is gone, and with it the version.
        Ok(_) => return Ok(()),
        Err(e) if e.kind == Kind::NoSuchBucket => return Ok(()),
        // Ours, not the destination's; it waits all the same.
        Err(e) => return Err(Trouble::Away(e.to_string())),
    };
    let at = core.version(entry.bucket, &entry.key, Which::Id(entry.version)).await;
    let Some(at) = at.map_err(|e| Trouble::Away(e.to_string()))? else { return Ok(()) };
    let rules = source.settings.replication.as_ref();
    let named = |rule: &&Rule| rule.id == entry.rule && rule.to.id() == to && rule.enabled;
    let Some((replication, rule)) = rules.and_then(|r| Some((r, r.rules.iter().find(named)?))) else {
        return Err(Trouble::Refused("the rule is gone".into()));
    };
    let carried = Carried {
        entry,
        rule,
        source: &source,
        role: &replication.role,
        object: &at.seen.value,
        current: at.current.is_none(),
        again: entry.attempts > 0 || entry.since < started,
    };
    match &rule.to.remote {
        None => local::carry(core, &carried).await,
        Some(name) => remote::carry(core, name, &carried).await,
    }
}

/// Puts an entry back for later.
async fn put_back<B: BulkStore>(core: &CoreRef<B>, to: &str, stored: (Bytes, Bytes), entry: Entry) -> Result<()> {
    let pause = PUT_BACK.0.saturating_mul(4u32.saturating_pow(entry.attempts - 1)).min(PUT_BACK.1);
    let due = UnixMicros(core.now().0 + pause.as_micros() as u64);
    let (key, raw) = stored;
    let later = keys::replication(to, due, rand::random());
    let batch = Batch::new().check(key.clone(), Some(raw)).del(key).put(later, entry.encode());
    match core.commit(batch).await {
        // Somebody else has settled it.
        Ok(()) | Err(MetaError::Conflict { .. }) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Takes an entry off, and says in the version's record what became of it; false where it is another one by now, or gone.
async fn settle<B: BulkStore>(core: &CoreRef<B>, (key, raw): (Bytes, Bytes), entry: &Entry, end: End) -> Result<bool> {
    for _ in 0..RETRIES {
        let mut change = Change::from(Batch::new().check(key.clone(), Some(raw.clone())).del(key.clone()));
        let known = match core.known(&entry.name).await {
            Ok(known) => Some(known).filter(|known| known.bucket().id == entry.bucket),
            Err(e) if e.kind == Kind::NoSuchBucket => None,
            Err(e) => return Err(e),
        };
        if known.is_some()
            && let Some(at) = core.version(entry.bucket, &entry.key, Which::Id(entry.version)).await?
        {
            let mut object = at.seen.value;
            object.replication = object.replication.map(|r| r.less(end == End::Failed));
            change.batch.checks.push((at.key.clone(), Some(at.seen.raw)));
            change.batch.puts.push((at.key, object.encode()));
            if end == End::Failed {
                let name = "Replication:OperationFailedReplication";
                let event = Event { name, key: &entry.key, object: &object };
                core.tell(&mut change, &system(&entry.name, None), &entry.name, event).await?;
            }
        }
        match core.commit(change.batch).await {
            Ok(()) => {
                change.telling.happened();
                return Ok(true);
            }
            Err(MetaError::Conflict { key: at }) if at == key => return Ok(false),
            Err(MetaError::Conflict { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(Kind::SlowDown.into())
}

/// Replication itself, as the caller of operations on a bucket; `replica`: the id of the version that it puts.
fn system(bucket: &str, replica: Option<DataId>) -> Caller {
    let leave = Leave {
        buckets: vec![bucket.to_owned()],
        may_list: true,
        facts: Facts { operation: REPLICATION, ..Facts::default() },
        replica,
        ..Leave::default()
    };
    Caller { key: None, leave: std::sync::Arc::new(leave) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Replication;

    #[test]
    fn states_of_a_version() {
        let pending = Replication::more(None, 2);
        assert_eq!(pending.less(false), Replication::Pending { left: 1, failed: false });
        assert_eq!(pending.less(false).less(false), Replication::Completed);
        assert_eq!(pending.less(true).less(false), Replication::Failed);
        assert_eq!(pending.less(false).less(true), Replication::Failed);
        let more = Replication::more(Some(pending.less(true)), 1);
        assert_eq!(more.less(false).less(false), Replication::Failed);
        assert_eq!(Replication::more(Some(Replication::Completed), 1).name(), "PENDING");
        assert_eq!(Replication::more(Some(Replication::Replica), 1), Replication::Replica);
    }

    #[test]
    fn which_ids_are_taken_from_elsewhere() {
        let now = UnixMicros(1_700_000_000_000_000);
        let check = |at: u64, want| assert_eq!(is_plausible(DataId::new(UnixMicros(at), 1), now), want, "{at}");
        check(now.0, true);
        check(now.0 + 3_600_000_000, true);
        check(now.0 + 2 * 86_400_000_000, false);
        check(u64::MAX, false);
        check(0, false);
    }
}
