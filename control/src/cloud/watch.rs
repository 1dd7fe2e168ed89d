//! The reconciler: what the zone reports against what the records say.
//!
//! | seen | done |
//! |---|---|
//! | a running instance's VM has ended by itself | stop or terminate flow, as its shutdown behaviour says |
//! | a running instance's VM is not there though its host is (two reports in a row) | stop flow, the host's loss as reason |
//! | a running instance's host does not report | nothing: its last state stays, its status is impaired |
//! | a VM of an instance that should have none (two reports in a row) | stopped by force |
//! | a VM of an instance that has no record | nothing but a warning: records may be older than it |
//! | a volume that was deleted is still in storage | deleted again |
//! | a volume that nobody holds is exported | the export ends |
//!
//! It only ever begins flows; the work is theirs. It also forgets what has been over for long enough.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use karri_base::proto;
use karri_base::proto::incarnation::State;

use crate::wire::generated::ec2::{InstanceStateName, ShutdownBehavior, VolumeState};

use super::Cloud;
use super::flow::{InstanceFlow, InstanceFlowKind, Subject};
use super::records::{Desired, Instance, Reason, Token, Volume};
use super::store::StoreError;

/// How often, and how long what is over stays visible.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Between two reports.
    pub every: Duration,
    /// Between two looks at storage.
    pub storage_every: Duration,
    /// How long terminated instances are described and deleted volumes remembered.
    pub keep: Duration,
    /// How long a ClientToken is remembered.
    pub keep_tokens: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(2),
            storage_every: Duration::from_secs(60),
            keep: Duration::from_secs(3600),
            keep_tokens: Duration::from_secs(24 * 3600),
        }
    }
}

/// What the last report said.
#[derive(Debug, Default)]
pub struct Watch {
    nodes: RwLock<Option<HashSet<String>>>,
    /// In bytes, as storage last said; 0 before it did.
    largest_volume: AtomicU64,
}

impl Watch {
    /// True when the last report lacked this host.
    pub fn is_lost(&self, node: &str) -> bool {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.as_ref().is_some_and(|n| !n.contains(node))
    }

    /// Bytes of the largest volume that storage can hold, once it has said so.
    pub fn largest_volume(&self) -> Option<u64> {
        Some(self.largest_volume.load(Ordering::Relaxed)).filter(|&bytes| bytes > 0)
    }

    fn set(&self, nodes: HashSet<String>) {
        *self.nodes.write().unwrap_or_else(PoisonError::into_inner) = Some(nodes);
    }
}

/// What the reconciler remembers between reports.
#[derive(Debug, Default)]
pub struct Memory {
    /// Instances seen running, with their generation, before the last report was asked for.
    running: HashMap<String, u64>,
    /// Instances whose VM was not there last time.
    missing: HashSet<String>,
    /// Instances whose VM should not have been there last time.
    stray: HashSet<String>,
    /// Volumes that should not have been exported last time.
    exported: HashSet<String>,
}

/// Runs until it is dropped.
pub async fn run(cloud: &Cloud, settings: Settings) {
    let mut memory = Memory::default();
    let mut tick = tokio::time::interval(settings.every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut storage_tick = tokio::time::interval(settings.storage_every);
    storage_tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        let done = tokio::select! {
            _ = tick.tick() => look_at_cluster(cloud, &mut memory).await,
            _ = storage_tick.tick() => {
                cloud.flows.resume(settings.storage_every);
                let looked = look_at_storage(cloud, &mut memory).await;
                forget(cloud, settings).await.map_err(|e| e.to_string()).and(looked)
            }
        };
        // Once per outage.
        match done {
            Ok(()) => failing = false,
            Err(why) if !failing => {
                failing = true;
                tracing::warn!(error = %why, "the zone could not be compared with the records");
            }
            Err(_) => {}
        }
    }
}

fn is_idle(instance: &Instance) -> bool {
    instance.flow.as_ref().is_none_or(|f| f.kind == InstanceFlowKind::Reboot)
}

/// Compares one report of the cluster.
///
/// # Errors
/// The cluster's or the store's words.
pub async fn look_at_cluster(cloud: &Cloud, memory: &mut Memory) -> Result<(), String> {
    let instances = cloud.store.list::<Instance>();
    let ran: HashMap<String, u64> = instances
        .iter()
        .filter(|i| i.state == InstanceStateName::Running && is_idle(i))
        .map(|i| (i.id.to_string(), i.generation))
        .collect();
    let report = cloud.cluster.report().await.map_err(|s| format!("the cluster's report: {}", s.message()))?;
    cloud.watch.set(report.nodes.iter().map(|n| n.node.clone()).collect());
    let mut seen: HashMap<&str, (&str, &proto::Incarnation)> = HashMap::new();
    for node in &report.nodes {
        for incarnation in &node.instances {
            let entry = seen.entry(&incarnation.instance_id).or_insert((&node.node, incarnation));
            if incarnation.generation > entry.1.generation {
                *entry = (&node.node, incarnation);
            }
        }
    }
    let mut missing = HashSet::new();
    for (id, generation) in &ran {
        let Some(instance) = cloud.store.get::<Instance>(id) else { continue };
        let still = instance.state == InstanceStateName::Running && instance.generation == *generation;
        // Only what ran before the report was asked for can be missing from it.
        if !still || !is_idle(&instance) || memory.running.get(id) != Some(generation) {
            continue;
        }
        match seen.get(id.as_str()).filter(|(_, i)| i.generation >= *generation) {
            Some((node, incarnation)) => match incarnation.state() {
                State::Gone | State::Failed => {
                    ended(cloud, &instance, Some(incarnation)).await.map_err(|e| e.to_string())?;
                }
                _ if instance.node.as_deref() != Some(node) => {
                    moved(cloud, &instance, node).await.map_err(|e| e.to_string())?;
                }
                _ => {}
            },
            None if instance.node.as_ref().is_some_and(|n| cloud.watch.is_lost(n)) => {}
            None if memory.missing.contains(id) => {
                ended(cloud, &instance, None).await.map_err(|e| e.to_string())?;
            }
            None => {
                missing.insert(id.clone());
            }
        }
    }
    let mut stray = HashSet::new();
    for (id, (node, incarnation)) in &seen {
        if !matches!(incarnation.state(), State::Running | State::Starting) {
            continue;
        }
        let Some(instance) = cloud.store.get::<Instance>(id) else {
            tracing::debug!(instance = id, node, "a VM runs that has no record");
            continue;
        };
        let over = matches!(instance.state, InstanceStateName::Stopped | InstanceStateName::Terminated);
        if !over || instance.flow.is_some() {
            continue;
        }
        if !memory.stray.contains(*id) {
            stray.insert((*id).to_owned());
            continue;
        }
        tracing::warn!(instance = id, node, state = %instance.state, "a VM runs that should not: it is stopped");
        let request = proto::StopInstanceRequest {
            instance_id: (*id).to_owned(),
            generation: instance.generation.max(incarnation.generation),
            force: true,
            grace_secs: 0,
        };
        cloud.cluster.stop(request).await.map_err(|s| format!("stopping a stray VM: {}", s.message()))?;
    }
    memory.missing = missing;
    memory.stray = stray;
    memory.running = ran;
    Ok(())
}

/// Begins what follows when a VM has ended.
async fn ended(cloud: &Cloud, before: &Instance, incarnation: Option<&proto::Incarnation>) -> Result<(), StoreError> {
    let told = incarnation.map(|i| i.reason.clone()).filter(|r| !r.is_empty());
    let by_guest = incarnation.is_some_and(|i| i.state() == State::Gone)
        && !told.as_deref().is_some_and(|r| r.starts_with("Server."));
    let reason = match (&told, by_guest) {
        (_, true) => Reason::new("Client.InstanceInitiatedShutdown", "Instance initiated shutdown"),
        (Some(told), false) => match told.split_once(": ") {
            Some((code, what)) if code.starts_with("Server.") => Reason::new(code, what),
            _ => Reason::new("Server.InternalError", told),
        },
        (None, false) => Reason::new("Server.InternalError", "the instance's host lost it"),
    };
    let terminate = by_guest && before.shutdown_behavior == ShutdownBehavior::Terminate;
    let now_us = cloud.clock.now().0;
    let begun = cloud
        .store
        .change::<_, StoreError>(|txn| {
            let Some(current) = txn.get::<Instance>(before.id.as_str()) else { return Ok(false) };
            let same = current.generation == before.generation
                && current.state == InstanceStateName::Running
                && is_idle(&current);
            if !same {
                return Ok(false);
            }
            let mut instance = Instance::clone(&current);
            let kind = if terminate {
                instance.generation += 1;
                instance.state = InstanceStateName::ShuttingDown;
                instance.desired = Desired::Terminated;
                InstanceFlowKind::Terminate
            } else {
                instance.state = InstanceStateName::Stopping;
                instance.desired = Desired::Stopped;
                InstanceFlowKind::Stop { force: true }
            };
            instance.transition_reason = reason.message.clone();
            instance.reason = Some(reason.clone());
            instance.flow = Some(InstanceFlow { kind, step: 0, undo: None, begun_us: now_us });
            txn.put(instance);
            Ok(true)
        })
        .await?;
    if begun {
        tracing::info!(instance = %before.id, account = %before.account, error = %reason.message, "an instance ended");
        cloud.flows.kick(Subject::Instance(before.id.to_string()));
    }
    Ok(())
}

async fn moved(cloud: &Cloud, before: &Instance, node: &str) -> Result<(), StoreError> {
    cloud
        .store
        .change::<_, StoreError>(|txn| {
            if let Some(current) = txn.get::<Instance>(before.id.as_str())
                && current.generation == before.generation
                && current.state == InstanceStateName::Running
            {
                txn.put(Instance { node: Some(node.to_owned()), ..Instance::clone(&current) });
            }
            Ok(())
        })
        .await
}

/// Compares storage's volumes.
///
/// # Errors
/// Storage's words.
pub async fn look_at_storage(cloud: &Cloud, memory: &mut Memory) -> Result<(), String> {
    let held = cloud.storage.list().await.map_err(|s| format!("storage's volumes: {}", s.message()))?;
    cloud.watch.largest_volume.store(held.largest_bytes, Ordering::Relaxed);
    let mut exported = HashSet::new();
    for held in held.volumes {
        let Some(record) = cloud.store.get::<Volume>(&held.volume_id) else { continue };
        if record.flow.is_some() {
            continue;
        }
        let says = |s: tonic::Status| format!("storage on {}: {}", record.id, s.message());
        if record.state == VolumeState::Deleted {
            if held.export.is_some() {
                cloud.storage.unexport(&record.id, record.generation).await.map_err(says)?;
            }
            cloud.storage.delete(&record.id).await.map_err(says)?;
        } else if record.state == VolumeState::Available && held.export.is_some() {
            if memory.exported.contains(&held.volume_id) {
                cloud.storage.unexport(&record.id, record.generation).await.map_err(says)?;
            } else {
                exported.insert(held.volume_id.clone());
            }
        }
    }
    memory.exported = exported;
    Ok(())
}

/// Forgets what has been over for long enough.
///
/// # Errors
/// The store's.
pub async fn forget(cloud: &Cloud, settings: Settings) -> Result<(), StoreError> {
    let now_us = cloud.clock.now().0;
    let before = |keep: Duration| now_us.saturating_sub(keep.as_micros() as u64);
    let (over, used) = (before(settings.keep), before(settings.keep_tokens));
    let instances = cloud.store.list::<Instance>();
    let instances: Vec<_> = instances.iter().filter(|i| i.terminated_us.is_some_and(|t| t < over)).collect();
    let volumes = cloud.store.list::<Volume>();
    let volumes: Vec<_> = volumes.iter().filter(|v| v.deleted_us.is_some_and(|t| t < over)).collect();
    let tokens = cloud.store.list::<Token>();
    let tokens: Vec<_> = tokens.iter().filter(|t| t.used_us < used).collect();
    if instances.is_empty() && volumes.is_empty() && tokens.is_empty() {
        return Ok(());
    }
    cloud
        .store
        .change::<_, StoreError>(|txn| {
            instances.iter().for_each(|i| txn.del::<Instance>(i.id.as_str()));
            volumes.iter().for_each(|v| txn.del::<Volume>(v.id.as_str()));
            for token in &tokens {
                txn.del::<Token>(&Token::key(&token.account, &token.action, &token.token));
            }
            Ok(())
        })
        .await
}
