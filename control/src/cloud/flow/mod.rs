//! Flows: what turns a desired state into an observed one, in small steps that can be repeated and undone.
//!
//! ```text
//!            step 0       step 1       ...      step n
//! begun ---> do --------> do --------> ... ---> do -------> finished
//!             | failed     | failed              | failed
//!             v            v                     v
//!          undo <------- undo <------- ... <--- undo
//!             |
//!             v  undone (the reason stays in the record)
//! ```
//! A flow lives in the record that it works on ([`Instance::flow`], [`Volume::flow`]); the request that begins it commits
//! it together with the state it reserves. Each finished step is committed before the next one is tried, so a restart goes
//! on where it stood; a step whose commit was lost is simply done again, and all steps may be. There is one worker per
//! record, so steps of one record never overlap. A later request may replace a flow (terminate while starting): the
//! worker notices at its next commit.
//!
//! A peer that does not answer is asked again with growing pauses. What can be undone, and asking a guest for its disk,
//! gives up after [`Settings::give_up`]; what tears down never does.

pub mod instance;
pub mod volume;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use karri_base::clock::Clock;
use karri_base::id::{InstanceId, VolumeId};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore, watch};
use tonic::{Code, Status};

use super::peers::{Cluster, Storage};
use super::records::{Instance, Reason, Volume};
use super::stopped;
use super::store::{Store, StoreError};

/// A flow on an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceFlow {
    /// Which.
    pub kind: InstanceFlowKind,
    /// The step to do next, or to undo next.
    pub step: usize,
    /// Why it is being undone.
    pub undo: Option<Reason>,
    /// Microseconds since 1970.
    pub begun_us: u64,
}

/// What an instance goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceFlowKind {
    /// First start: disks are made.
    Run,
    /// Start after a stop.
    Start,
    /// Stop; forced without the power button.
    Stop {
        /// Without the power button.
        force: bool,
    },
    /// End it and what goes with it.
    Terminate,
    /// Reset it.
    Reboot,
}

/// A flow on a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeFlow {
    /// Which.
    pub kind: VolumeFlowKind,
    /// The step to do next, or to undo next.
    pub step: usize,
    /// Why it is being undone.
    pub undo: Option<Reason>,
    /// Microseconds since 1970.
    pub begun_us: u64,
}

/// What a volume goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeFlowKind {
    /// Make it.
    Create,
    /// Delete it.
    Delete,
    /// Plug it into a running instance.
    Attach,
    /// Pull it out.
    Detach {
        /// Without the guest's consent.
        force: bool,
    },
}

/// How patient flows are.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Pause after the first failed try; doubles.
    pub retry_min: Duration,
    /// Longest pause.
    pub retry_max: Duration,
    /// How long a flow that can be undone is tried.
    pub give_up: Duration,
    /// How long a guest may take to shut down after the power button.
    pub grace: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(5),
            give_up: Duration::from_secs(300),
            grace: Duration::from_secs(30),
        }
    }
}

/// What a step came to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It happened; this is to be recorded with it.
    Done(Vec<Patch>),
    /// Not yet: ask again, after this pause or after the growing one.
    Again(Option<Duration>, String),
    /// It cannot happen.
    Failed(Reason),
}

impl Outcome {
    fn done() -> Self {
        Self::Done(Vec::new())
    }
}

/// A fact that a step found out.
#[derive(Debug, Clone)]
pub(super) enum Patch {
    /// The instance's host.
    Node(Option<String>),
    /// A volume exists (or not any more).
    Made(VolumeId, bool),
    /// A volume's export.
    Socket(VolumeId, Option<String>),
}

/// True where asking again may help.
fn passing(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Aborted | Code::Cancelled | Code::Internal
    )
}

/// What a peer's refusal means for a step that does something.
fn refused(what: &str, status: &Status) -> Outcome {
    let told = format!("{what}: {}", status.message());
    if passing(status) {
        return Outcome::Again(None, told);
    }
    Outcome::Failed(Reason::new("Server.InternalError", told))
}

/// What a peer's answer means for a step that takes something away: what is not there is away.
fn taken_away<T>(what: &str, answer: Result<T, Status>) -> Outcome {
    match answer {
        Ok(_) => Outcome::done(),
        Err(status) if status.code() == Code::NotFound => Outcome::done(),
        Err(status) => Outcome::Again(None, format!("{what}: {}", status.message())),
    }
}

/// A record that has a worker.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// By id.
    Instance(String),
    /// By id.
    Volume(String),
}

/// What one look at a record came to.
enum Turn {
    /// There is no flow: the worker may go.
    Idle,
    /// A step was committed.
    Moved,
    /// Wait.
    Pause(Option<Duration>, String),
}

/// A launched instance, and its first step where that is done and not recorded yet.
pub struct First {
    /// Which.
    pub id: InstanceId,
    done: Option<(Arc<Instance>, Outcome)>,
}

impl First {
    /// Nothing is done yet.
    pub fn of(id: InstanceId) -> Self {
        Self { id, done: None }
    }
}

/// Runs flows. Clones share the same workers.
#[derive(Clone)]
pub struct Flows {
    pub(super) store: Store,
    pub(super) cluster: Arc<dyn Cluster>,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) settings: Settings,
    workers: Arc<Mutex<HashMap<Subject, Arc<Notify>>>>,
    permits: Arc<Semaphore>,
    stop: watch::Sender<bool>,
}

/// Steps under way at once.
const STEPS_MAX: usize = 1024;

impl Flows {
    /// Flows over these records and peers; nothing runs yet.
    pub fn new(
        store: Store,
        cluster: Arc<dyn Cluster>,
        storage: Arc<dyn Storage>,
        clock: Arc<dyn Clock>,
        settings: Settings,
    ) -> Self {
        Self {
            store,
            cluster,
            storage,
            clock,
            settings,
            workers: Arc::default(),
            permits: Arc::new(Semaphore::new(STEPS_MAX)),
            stop: watch::Sender::new(false),
        }
    }

    /// Gives a worker to every flow that is older than `age` and has none: what a former process left, or a request
    /// that failed between its commit and its kick.
    pub fn resume(&self, age: Duration) {
        let before = self.clock.now().0.saturating_sub(age.as_micros() as u64);
        let instances = self.store.list::<Instance>();
        let instances = instances.iter().filter(|i| i.flow.as_ref().is_some_and(|f| f.begun_us <= before));
        let volumes = self.store.list::<Volume>();
        let volumes = volumes.iter().filter(|v| v.flow.as_ref().is_some_and(|f| f.begun_us <= before));
        let left: Vec<Subject> = instances
            .map(|i| Subject::Instance(i.id.to_string()))
            .chain(volumes.map(|v| Subject::Volume(v.id.to_string())))
            .collect();
        let idle =
            |subject: &Subject| !self.workers.lock().unwrap_or_else(PoisonError::into_inner).contains_key(subject);
        left.into_iter().filter(idle).for_each(|subject| self.kick(subject));
    }

    /// Sees to it that a record's flow is worked on. Call it after the commit that set the flow.
    pub fn kick(&self, subject: Subject) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(awake) = workers.get(&subject) {
            awake.notify_one();
            return;
        }
        if *self.stop.borrow() {
            return;
        }
        let awake = Arc::new(Notify::new());
        workers.insert(subject.clone(), awake.clone());
        drop(workers);
        let flows = self.clone();
        tokio::spawn(async move { flows.work(subject, awake).await });
    }

    /// Does the first step of a run flow that no worker has yet: finds a host. What goes wrong is left to the worker.
    ///
    /// # Errors
    /// There is no room, and why.
    pub async fn place_first(&self, id: &InstanceId) -> Result<First, Reason> {
        let Some(instance) = self.store.get::<Instance>(id.as_str()) else { return Ok(First::of(id.clone())) };
        match self.place(&instance).await {
            Outcome::Failed(reason) if reason.code == "Server.InsufficientInstanceCapacity" => Err(reason),
            found @ Outcome::Done(_) => Ok(First { id: id.clone(), done: Some((instance, found)) }),
            _ => Ok(First::of(id.clone())),
        }
    }

    /// Sets a launched instance's flow going. The step that was done is recorded first; not recorded means that the
    /// worker does it again, which is harmless, so that nobody has to wait for it.
    pub fn begin(&self, first: First) {
        let flows = self.clone();
        tokio::spawn(async move {
            if let Some((instance, outcome)) = first.done {
                let _ = flows.advance(&instance, outcome).await;
            }
            flows.kick(Subject::Instance(first.id.to_string()));
        });
    }

    /// Turns an instance's flow round: what it did is undone.
    ///
    /// # Errors
    /// The store's.
    pub async fn undo(&self, id: &InstanceId, code: &str, why: &str) -> Result<(), StoreError> {
        self.store
            .change::<_, StoreError>(|txn| {
                let Some(instance) = txn.get::<Instance>(id.as_str()) else { return Ok(()) };
                let mut instance = Instance::clone(&instance);
                if let Some(flow) = instance.flow.as_mut() {
                    flow.undo.get_or_insert_with(|| Reason::new(code, why));
                    txn.put(instance);
                }
                Ok(())
            })
            .await?;
        self.kick(Subject::Instance(id.to_string()));
        Ok(())
    }

    /// Ends all workers; the steps under way are cut off and will be repeated.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        let idle = || self.workers.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        for _ in 0..500 {
            if idle() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// How many records are being worked on.
    pub fn busy(&self) -> usize {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    async fn work(self, subject: Subject, awake: Arc<Notify>) {
        let mut stop = self.stop.subscribe();
        tokio::select! {
            () = self.work_until_idle(&subject, &awake) => {}
            () = stopped(&mut stop) => {
                self.workers.lock().unwrap_or_else(PoisonError::into_inner).remove(&subject);
            }
        }
    }

    async fn work_until_idle(&self, subject: &Subject, awake: &Notify) {
        let mut pause = self.settings.retry_min;
        loop {
            match self.turn(subject, awake).await {
                Ok(Turn::Idle) => {
                    // Under the lock, so that a kick either finds this worker or starts another.
                    let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
                    if !self.has_flow(subject) {
                        workers.remove(subject);
                        return;
                    }
                }
                Ok(Turn::Moved) => pause = self.settings.retry_min,
                Ok(Turn::Pause(wanted, why)) => {
                    if wanted.is_none() && pause >= self.settings.retry_max {
                        tracing::warn!(subject = ?subject, error = %why, "a flow waits");
                    } else {
                        tracing::debug!(subject = ?subject, error = %why, "a flow waits");
                    }
                    let _ = tokio::time::timeout(wanted.unwrap_or(pause), awake.notified()).await;
                    if wanted.is_none() {
                        pause = (pause * 2).min(self.settings.retry_max);
                    }
                }
                Err(e) => {
                    tracing::error!(subject = ?subject, error = %e, "a flow could not be recorded");
                    tokio::time::sleep(self.settings.retry_max).await;
                }
            }
        }
    }

    fn has_flow(&self, subject: &Subject) -> bool {
        match subject {
            Subject::Instance(id) => self.store.get::<Instance>(id).is_some_and(|i| i.flow.is_some()),
            Subject::Volume(id) => self.store.get::<Volume>(id).is_some_and(|v| v.flow.is_some()),
        }
    }

    async fn turn(&self, subject: &Subject, awake: &Notify) -> Result<Turn, StoreError> {
        let Ok(_permit) = self.permits.acquire().await else { return Ok(Turn::Idle) };
        match subject {
            Subject::Instance(id) => self.turn_instance(id, awake).await,
            Subject::Volume(id) => self.turn_volume(id).await,
        }
    }

    fn overdue(&self, begun_us: u64) -> bool {
        let age = self.clock.now().0.saturating_sub(begun_us);
        u128::from(age) > self.settings.give_up.as_micros()
    }
}
