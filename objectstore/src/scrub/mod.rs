//! Looks through the whole store, at a bounded rate in the background and at once when an operator asks.
//!
//! ```text
//! buckets -> objects -> versions -> uploads -> space -> usage -> rest (days)
//!            every stored byte against its checksum   what nothing refers to   counters against records
//! ```
//!
//! What is corrupt is reported, with bucket, key and version; what the records tell how to mend is mended: the index of
//! buckets by account, the names of blobs, space that nothing refers to, counters. A pass goes on beside all requests, so
//! nothing is believed that a commit under way could explain: whatever is to be changed is checked by the commit that
//! changes it, and a look that must not be disturbed is told by [`quiet`].
//!
//! The pass under way and its report are kept in the store every few seconds (`docs/records.md`), and a restart goes on
//! where it was. Whatever a client's GET finds corrupt is entered in the same report.

pub mod quiet;
pub mod report;

mod space;
mod usage;
mod walk;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use karri_bulk::BulkStore;
use karri_meta::Batch;

use crate::core::{Core, CoreRef};
use crate::error::Result;
use crate::keys;
use crate::metrics::Metrics;
use crate::record::codec::Damage;
use crate::xml::Out;
use report::{Fate, Finding, Pass, Phase, Place};

/// How often it looks whether there is something to do.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often the pass under way is kept.
const KEEP_EVERY: Duration = Duration::from_secs(5);
/// A pause after the store failed.
const PAUSE: Duration = Duration::from_secs(10);
/// A new store's first pass begins so long after its first start, in microseconds.
const FIRST_AFTER: u64 = 3_600 * 1_000_000;
const DAY: u64 = 86_400 * 1_000_000;

/// How the background goes about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// At most so many bytes in a second; 0: not at all.
    pub bytes_per_second: u64,
    /// From the beginning of a pass to that of the next.
    pub days: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { bytes_per_second: 16 << 20, days: 7 }
    }
}

/// What an operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// A whole pass.
    Check,
    /// Only what nothing refers to.
    Reclaim,
}

/// Passes, as all cores see them.
#[derive(Debug, Default)]
pub struct Scrub(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    last_number: u64,
    /// Asked for and not begun, with their numbers.
    check: Option<u64>,
    reclaim: Option<u64>,
    /// Under way: a whole pass, which may be at rest while another one goes first.
    running: Option<Pass>,
    /// Under way: only what nothing refers to.
    reclaiming: Option<Pass>,
    /// The last whole one.
    checked: Option<Pass>,
    /// The last one for space only.
    reclaimed: Option<Pass>,
    /// What clients came upon before the first pass.
    met: Vec<Finding>,
    /// The last whole one is not kept as it is here.
    dirty: bool,
}

impl Scrub {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a pass, unless one that was asked for waits or runs already; its number.
    pub fn ask(&self, ask: Ask) -> u64 {
        let mut inner = self.lock();
        let (running, waiting) = match ask {
            Ask::Check => (inner.running.as_ref().filter(|p| p.asked).map(|p| p.number), inner.check),
            Ask::Reclaim => (inner.reclaiming.as_ref().map(|p| p.number), inner.reclaim),
        };
        if let Some(number) = running.or(waiting) {
            return number;
        }
        inner.last_number += 1;
        let number = inner.last_number;
        match ask {
            Ask::Check => inner.check = Some(number),
            Ask::Reclaim => inner.reclaim = Some(number),
        }
        number
    }

    /// True while somebody waits.
    fn is_awaited(&self) -> bool {
        let inner = self.lock();
        inner.check.is_some() || inner.reclaim.is_some() || inner.running.as_ref().is_some_and(|p| p.asked)
    }

    /// A client came upon something corrupt. What is known already is counted, and not told again.
    pub fn met(&self, finding: Finding, metrics: &Metrics) {
        metrics.corrupt("read");
        let mut guard = self.lock();
        let inner = &mut *guard;
        let told = finding.clone();
        let report = if inner.running.is_some() { inner.running.as_mut() } else { inner.checked.as_mut() };
        let new = match report {
            Some(pass) => pass.note(finding),
            None if inner.met.len() < report::FINDINGS_MAX && !inner.met.iter().any(|f| f.place == finding.place) => {
                inner.met.push(finding);
                true
            }
            None => false,
        };
        inner.dirty |= new;
        drop(guard);
        if new {
            tracing::error!(bucket = %told.place.bucket, key = ?told.place.key, version = %told.place.version,
                what = %told.what, why = %told.why, "stored data is corrupt; the request was refused");
        }
    }

    /// The report as a document.
    pub fn document(&self, store_bytes: u64) -> String {
        let inner = self.lock();
        Out::document("StoreReport", |out| {
            out.text("StoreBytes", &store_bytes.to_string());
            let passes = [
                ("Running", &inner.running),
                ("Reclaiming", &inner.reclaiming),
                ("Checked", &inner.checked),
                ("Reclaimed", &inner.reclaimed),
            ];
            for (name, pass) in passes {
                if let Some(pass) = pass {
                    pass.write(name, out);
                }
            }
            for (name, number) in [("Waiting", inner.check), ("Waiting", inner.reclaim)] {
                if let Some(number) = number {
                    out.text(name, &number.to_string());
                }
            }
            if !inner.met.is_empty() {
                let mut pass = Pass::new(0, false, inner.met[0].at);
                for finding in &inner.met {
                    pass.note(finding.clone());
                }
                pass.write("Met", out);
            }
        })
    }

    /// The last whole pass.
    pub fn checked(&self) -> Option<Pass> {
        self.lock().checked.clone()
    }
}

/// One core's worker.
struct Worker<'a, B: BulkStore> {
    core: &'a CoreRef<B>,
    /// Bytes that may be read in a second; `None`: all there are.
    rate: Option<u64>,
    pass: Pass,
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    More,
    Done,
}

/// Passes for ever. One task of one core.
pub async fn run<B: BulkStore>(core: &CoreRef<B>, pace: Pace) {
    while let Err(error) = load(core).await {
        tracing::warn!(error = %error, "the last scrub's report could not be read; trying again");
        karri_engine::sleep(PAUSE).await;
    }
    loop {
        match turn(core, pace).await {
            Ok(true) => {}
            Ok(false) => karri_engine::sleep(LOOK_EVERY).await,
            Err(error) => {
                tracing::warn!(error = %error, source = ?error.source, "the scrub could not go on; trying again");
                karri_engine::sleep(PAUSE).await;
            }
        }
    }
}

/// Does what is asked for to its end: for tests and tools without a server.
///
/// # Errors
/// What the stores fail with.
pub async fn now<B: BulkStore>(core: &CoreRef<B>, ask: Ask) -> Result<Pass> {
    load(core).await?;
    let number = core.shared.scrub.ask(ask);
    loop {
        turn(core, Pace::default()).await?;
        let inner = core.shared.scrub.lock();
        let over = if ask == Ask::Check { &inner.checked } else { &inner.reclaimed };
        if let Some(pass) = over.as_ref().filter(|p| p.number == number) {
            return Ok(pass.clone());
        }
    }
}

/// Works for a while on the most urgent thing; false when there is nothing to do.
async fn turn<B: BulkStore>(core: &CoreRef<B>, pace: Pace) -> Result<bool> {
    let scrub = &core.shared.scrub;
    let reclaim = scrub.lock().reclaim.take();
    if let Some(number) = reclaim {
        let mut pass = Pass::new(number, true, core.now());
        pass.phase = Phase::Space;
        scrub.lock().reclaiming = Some(pass.clone());
        let mut worker = Worker { core, rate: None, pass };
        let outcome = worker.reclaim().await;
        let mut inner = scrub.lock();
        inner.reclaiming = None;
        match outcome {
            Ok(()) => inner.reclaimed = Some(Pass { ended: Some(core.now()), ..worker.pass }),
            // Asked for it still is.
            Err(e) => {
                inner.reclaim = inner.reclaim.or(Some(number));
                return Err(e);
            }
        }
        return Ok(true);
    }
    if std::mem::take(&mut scrub.lock().dirty) {
        keep(core).await?;
    }
    let due = next_due(scrub, core, pace);
    let pass = {
        let mut inner = scrub.lock();
        if let Some(number) = inner.check.take() {
            // From the beginning: whoever asks wants to know of all there is now.
            inner.running = Some(Pass::new(number, true, core.now()));
        } else if inner.running.is_none() && due {
            inner.last_number += 1;
            inner.running = Some(Pass::new(inner.last_number, false, core.now()));
        }
        match &inner.running {
            Some(pass) if pass.asked || pace.bytes_per_second > 0 => pass.clone(),
            _ => return Ok(false),
        }
    };
    let rate = (!pass.asked).then_some(pace.bytes_per_second);
    let mut worker = Worker { core, rate, pass };
    let kept_at = crate::front::now();
    let mut over = false;
    while !over && crate::front::now() - kept_at < KEEP_EVERY {
        over = worker.step().await? == Step::Done;
        worker.show();
        let inner = scrub.lock();
        if inner.check.is_some() || inner.reclaim.is_some() {
            break;
        }
    }
    if over {
        finish(core, worker.pass);
    }
    keep(core).await?;
    // Others come first.
    karri_engine::exec::yield_now().await;
    Ok(true)
}

fn next_due<B: BulkStore>(scrub: &Scrub, core: &Core<B>, pace: Pace) -> bool {
    let began = scrub.lock().checked.as_ref().map(|p| p.began.0);
    let next = began.map_or(core.shared.opened.0 + FIRST_AFTER, |began| began + pace.days.max(1) * DAY);
    pace.bytes_per_second > 0 && core.now().0 >= next
}

fn finish<B: BulkStore>(core: &Core<B>, pass: Pass) {
    let now = core.now();
    let metrics = &core.shared.metrics;
    metrics.scrubbed(now, pass.left);
    let (took_s, left, repaired) = (now.secs().saturating_sub(pass.began.secs()), pass.left, pass.repaired);
    let Pass { objects, bytes, freed, undecided, .. } = pass;
    if left > 0 {
        tracing::error!(
            objects,
            bytes,
            left,
            repaired,
            took_s,
            "the scrub found corruption; karri walrus check lists it"
        );
    } else {
        tracing::info!(objects, bytes, repaired, freed, undecided, took_s, "the scrub found nothing corrupt");
    }
    let mut inner = core.shared.scrub.lock();
    inner.running = None;
    inner.met.clear();
    inner.checked = Some(Pass { ended: Some(now), ..pass });
}

/// The pass under way and the last ones, as `C` records.
const RECORDS: [&str; 2] = ["scrub-running", "scrub-checked"];

async fn load<B: BulkStore>(core: &Core<B>) -> Result<()> {
    let raw = core.meta.multi_get(RECORDS.map(keys::setting).to_vec()).await?;
    // A report that does not open is none: it is made anew.
    let read =
        |raw: &Option<Bytes>| raw.as_ref().map(|r| Pass::decode(r)).and_then(|pass: Result<_, Damage>| pass.ok());
    let mut inner = core.shared.scrub.lock();
    let (running, checked) = (read(&raw[0]), read(&raw[1]));
    let numbers = [&running, &checked].map(|p| p.as_ref().map_or(0, |p| p.number));
    inner.last_number = inner.last_number.max(numbers[0]).max(numbers[1]);
    if let Some(checked) = &checked
        && inner.checked.is_none()
    {
        core.shared.metrics.scrubbed(checked.ended.unwrap_or(checked.began), checked.left);
    }
    // Whoever asked for it has gone with the last process.
    inner.running = inner.running.take().or(running.map(|p| Pass { asked: false, ..p }));
    inner.checked = inner.checked.take().or(checked);
    Ok(())
}

async fn keep<B: BulkStore>(core: &Core<B>) -> Result<()> {
    let (running, checked) = {
        let inner = core.shared.scrub.lock();
        (inner.running.as_ref().map(Pass::encode), inner.checked.as_ref().map(Pass::encode))
    };
    let mut batch = Batch::new();
    for (name, value) in RECORDS.into_iter().zip([running, checked]) {
        match value {
            Some(value) => batch.puts.push((keys::setting(name), value)),
            None => batch.dels.push(keys::setting(name)),
        }
    }
    Ok(core.meta.commit(batch).await?)
}

impl<B: BulkStore> Worker<'_, B> {
    /// Puts the pass where all see it, with what clients noted meanwhile.
    fn show(&mut self) {
        let mut inner = self.core.shared.scrub.lock();
        if let Some(seen) = inner.running.as_ref().filter(|p| p.number == self.pass.number) {
            for finding in seen.findings.iter().filter(|f| f.by_read) {
                self.pass.note(finding.clone());
            }
            inner.running = Some(self.pass.clone());
        }
    }

    /// One page of the phase that the pass is at.
    async fn step(&mut self) -> Result<Step> {
        let done = match self.pass.phase {
            Phase::Buckets => self.buckets().await?,
            Phase::Objects => self.records(b'O').await?,
            Phase::Versions => self.records(b'V').await?,
            Phase::Uploads => self.records(b'P').await?,
            Phase::Space => {
                self.space().await?;
                Step::Done
            }
            Phase::Usage => self.usage().await?,
        };
        if done == Step::More {
            return Ok(Step::More);
        }
        self.pass.position = Bytes::new();
        match self.pass.phase.next() {
            Some(next) => {
                self.pass.phase = next;
                Ok(Step::More)
            }
            None => Ok(Step::Done),
        }
    }

    /// What nothing refers to, and what waits to be deleted.
    async fn reclaim(&mut self) -> Result<()> {
        self.waiting().await?;
        self.space().await
    }

    fn note(&mut self, place: Place, what: impl Into<String>, why: impl Into<String>, fate: Fate) {
        let at = self.core.now();
        let finding = Finding { place, what: what.into(), why: why.into(), fate, at, by_read: false };
        if fate == Fate::Left {
            self.core.shared.metrics.corrupt("scrub");
            tracing::error!(bucket = %finding.place.bucket, key = ?finding.place.key, version = %finding.place.version,
                what = %finding.what, why = %finding.why, "the scrub found something wrong");
        } else {
            self.core.shared.metrics.repaired();
            tracing::warn!(bucket = %finding.place.bucket, key = ?finding.place.key, version = %finding.place.version,
                what = %finding.what, why = %finding.why, "the scrub mended something");
        }
        self.pass.note(finding);
    }

    /// So many bytes were read: waits until more may be.
    async fn read(&self, bytes: u64) {
        self.core.shared.metrics.checked(bytes);
        match self.rate {
            Some(rate) if rate > 0 && !self.core.shared.scrub.is_awaited() => {
                karri_engine::sleep(Duration::from_secs_f64(bytes as f64 / rate as f64)).await;
            }
            _ => karri_engine::exec::yield_now().await,
        }
    }
}
