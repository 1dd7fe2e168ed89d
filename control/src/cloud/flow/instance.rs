//! The steps of an instance's flows.
//!
//! | flow | steps | when done | when undone |
//! |---|---|---|---|
//! | run | place, fill, export, boot | running | terminated |
//! | start | place, export, boot | running | stopped |
//! | stop | settle, shut down, unexport, release | stopped | never |
//! | terminate | settle, shut down, unexport, delete, release | terminated | never |
//! | reboot | press | running | running |

use std::sync::Arc;
use std::time::Duration;

use karri_base::id::VolumeId;
use karri_base::proto;
use karri_base::proto::incarnation::State;
use karri_base::units::GIB;
use tokio::sync::Notify;
use tonic::Code;

use crate::wire::generated::ec2::{InstanceStateName, VolumeAttachmentState, VolumeState};

use super::super::instance_types;
use super::super::records::{Desired, Instance, Lease, Reason, Volume};
use super::super::store::{StoreError, Txn};
use super::{Flows, InstanceFlowKind, Outcome, Patch, Turn, passing, refused, taken_away};

/// The command line of a guest that boots its kernel directly: the root disk is the first virtio disk.
const KERNEL_CMDLINE: &str = "console=ttyS0 root=/dev/vda rw";
/// How soon to look again at something that only takes a moment.
const SOON: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Place,
    Fill,
    Export,
    Boot,
    Settle,
    ShutDown { force: bool },
    Unexport,
    Delete,
    Release,
    Press,
}

fn steps(kind: InstanceFlowKind) -> &'static [Step] {
    use Step::*;
    match kind {
        InstanceFlowKind::Run => &[Place, Fill, Export, Boot],
        InstanceFlowKind::Start => &[Place, Export, Boot],
        InstanceFlowKind::Stop { force: false } => &[Settle, ShutDown { force: false }, Unexport, Release],
        InstanceFlowKind::Stop { force: true } => &[Settle, ShutDown { force: true }, Unexport, Release],
        InstanceFlowKind::Terminate => &[Settle, ShutDown { force: true }, Unexport, Delete, Release],
        InstanceFlowKind::Reboot => &[Press],
    }
}

/// What takes a step back.
fn undo_of(step: Step) -> Option<Step> {
    match step {
        Step::Place => Some(Step::Release),
        Step::Fill => Some(Step::Delete),
        Step::Export => Some(Step::Unexport),
        Step::Boot => Some(Step::ShutDown { force: true }),
        _ => None,
    }
}

fn can_be_undone(kind: InstanceFlowKind) -> bool {
    matches!(kind, InstanceFlowKind::Run | InstanceFlowKind::Start | InstanceFlowKind::Reboot)
}

impl Flows {
    /// Does one step of an instance's flow and commits what it came to.
    pub(super) async fn turn_instance(&self, id: &str, awake: &Notify) -> Result<Turn, StoreError> {
        let Some(instance) = self.store.get::<Instance>(id) else { return Ok(Turn::Idle) };
        let Some(flow) = instance.flow.clone() else { return Ok(Turn::Idle) };
        let list = steps(flow.kind);
        let step = list.get(flow.step).copied();
        let Some(step) = step else {
            return self.advance(&instance, Outcome::done()).await;
        };
        let outcome = match &flow.undo {
            None => {
                let outcome = match step {
                    // A graceful stop may take long; a forced one or a termination cuts it short.
                    Step::ShutDown { force: false } => tokio::select! {
                        outcome = self.do_step(&instance, step) => outcome,
                        () = self.replaced(&instance, awake) => return Ok(Turn::Moved),
                    },
                    _ => self.do_step(&instance, step).await,
                };
                match outcome {
                    Outcome::Again(_, why) if can_be_undone(flow.kind) && self.overdue(flow.begun_us) => {
                        Outcome::Failed(Reason::new("Server.InternalError", format!("gave up after trying: {why}")))
                    }
                    outcome => outcome,
                }
            }
            Some(_) => match undo_of(step) {
                Some(undo) => self.do_step(&instance, undo).await,
                None => Outcome::done(),
            },
        };
        match outcome {
            Outcome::Again(pause, why) => Ok(Turn::Pause(pause, why)),
            Outcome::Failed(reason) if flow.undo.is_some() || !can_be_undone(flow.kind) => {
                Ok(Turn::Pause(None, reason.message))
            }
            outcome => self.advance(&instance, outcome).await,
        }
    }

    async fn replaced(&self, instance: &Instance, awake: &Notify) {
        loop {
            awake.notified().await;
            let now = self.store.get::<Instance>(instance.id.as_str());
            if now.is_none_or(|now| now.flow != instance.flow) {
                return;
            }
        }
    }

    /// Commits a finished or failed step, unless the flow has been replaced meanwhile.
    pub(super) async fn advance(&self, before: &Instance, outcome: Outcome) -> Result<Turn, StoreError> {
        let now_us = self.clock.now().0;
        let ended = self
            .store
            .change::<_, StoreError>(|txn| {
                let Some(current) = txn.get::<Instance>(before.id.as_str()) else { return Ok(None) };
                let mut instance = Instance::clone(&current);
                let Some(flow) = instance.flow.clone().filter(|f| Some(f) == before.flow.as_ref()) else {
                    return Ok(None);
                };
                let mut next = flow.clone();
                let mut over = false;
                match &outcome {
                    Outcome::Done(patches) => {
                        patches.iter().for_each(|p| patch(txn, &mut instance, p));
                        if flow.undo.is_none() {
                            next.step += 1;
                            over = next.step >= steps(flow.kind).len();
                        } else if flow.step == 0 {
                            over = true;
                        } else {
                            next.step -= 1;
                        }
                    }
                    Outcome::Failed(reason) => next.undo = Some(reason.clone()),
                    Outcome::Again(..) => {}
                }
                instance.flow = (!over).then_some(next);
                if over {
                    finish(txn, &mut instance, flow.kind, flow.undo.clone(), now_us);
                }
                txn.put(instance);
                Ok(over.then_some((flow.kind, flow.undo)))
            })
            .await?;
        let id = before.id.as_str();
        match ended {
            Some((kind, None)) => tracing::info!(instance = id, account = %before.account, flow = ?kind, "flow done"),
            Some((kind, Some(why))) => {
                tracing::error!(instance = id, account = %before.account, flow = ?kind, error = %why.message, "flow undone");
            }
            None => {}
        }
        Ok(Turn::Moved)
    }

    async fn do_step(&self, instance: &Instance, step: Step) -> Outcome {
        match step {
            Step::Place => self.place(instance).await,
            Step::Fill => self.fill(instance).await,
            Step::Export => self.export(instance).await,
            Step::Boot => self.boot(instance).await,
            Step::Settle => self.settle(instance),
            Step::ShutDown { force } => self.shut_down(instance, force).await,
            Step::Unexport => self.unexport(instance).await,
            Step::Delete => self.delete(instance).await,
            Step::Release => {
                let answer = self.cluster.release(&instance.id, instance.generation).await;
                match taken_away("the cluster could not release the instance's place", answer) {
                    Outcome::Done(_) => Outcome::Done(vec![Patch::Node(None)]),
                    other => other,
                }
            }
            Step::Press => match self.cluster.reboot(&instance.id, instance.generation).await {
                Ok(_) => Outcome::done(),
                Err(status) => refused("the cluster could not reboot the instance", &status),
            },
        }
    }

    /// Asks the cluster for a host.
    pub(in super::super) async fn place(&self, instance: &Instance) -> Outcome {
        let Some(kind) = instance_types::find(&instance.instance_type) else {
            let what = format!("instance type {} is not offered any more", instance.instance_type);
            return Outcome::Failed(Reason::new("Server.InternalError", what));
        };
        let request = proto::PlaceRequest {
            instance_id: instance.id.to_string(),
            vcpus: kind.vcpus,
            memory_bytes: kind.memory_bytes(),
        };
        match self.cluster.place(request).await {
            Ok(placement) => Outcome::Done(vec![Patch::Node(Some(placement.node))]),
            Err(status) if status.code() == Code::ResourceExhausted => {
                Outcome::Failed(Reason::new("Server.InsufficientInstanceCapacity", status.message()))
            }
            Err(status) => refused("the cluster could not place the instance", &status),
        }
    }

    fn volumes(&self, instance: &Instance) -> Vec<Arc<Volume>> {
        let held = instance.volumes.iter().filter_map(|v| self.store.get::<Volume>(v.as_str()));
        held.filter(|v| v.state != VolumeState::Deleted).collect()
    }

    /// Makes the disks that do not exist yet.
    async fn fill(&self, instance: &Instance) -> Outcome {
        let mut made = Vec::new();
        for volume in self.volumes(instance).iter().filter(|v| v.state == VolumeState::Creating) {
            if let Err(status) = self.storage.create(creation(volume)).await {
                return not_created(volume, &status);
            }
            made.push(Patch::Made(volume.id.clone(), true));
        }
        Outcome::Done(made)
    }

    async fn export(&self, instance: &Instance) -> Outcome {
        let mut exported = Vec::new();
        for volume in self.volumes(instance) {
            match self.storage.export(&volume.id, volume.generation).await {
                Ok(export) => exported.push(Patch::Socket(volume.id.clone(), Some(export.vhost_user_socket))),
                Err(status) => return refused(&format!("storage could not export {}", volume.id), &status),
            }
        }
        Outcome::Done(exported)
    }

    async fn boot(&self, instance: &Instance) -> Outcome {
        let spec = match self.spec(instance) {
            Ok(spec) => spec,
            Err(why) => return Outcome::Failed(Reason::new("Server.InternalError", why)),
        };
        match self.cluster.start(spec).await {
            Ok(incarnation) => match incarnation.state() {
                State::Running => Outcome::done(),
                State::Starting | State::Unknown => Outcome::Again(Some(SOON), "the instance is starting".into()),
                State::Failed | State::Gone | State::Stopping => Outcome::Failed(Reason::new(
                    "Server.InternalError",
                    format!("it did not start: {}", incarnation.reason),
                )),
            },
            Err(status) if status.code() == Code::ResourceExhausted => {
                Outcome::Failed(Reason::new("Server.InsufficientInstanceCapacity", status.message()))
            }
            Err(status) => refused("the cluster could not start the instance", &status),
        }
    }

    fn spec(&self, instance: &Instance) -> Result<proto::InstanceSpec, String> {
        let kind = instance_types::find(&instance.instance_type).ok_or("its instance type is not offered any more")?;
        let object = |o: &(String, super::super::records::ImageObject)| s3_object(&o.1);
        let mut disks = Vec::new();
        for volume in self.volumes(instance) {
            let socket = volume.socket.clone().ok_or_else(|| format!("volume {} has no export", volume.id))?;
            let device = volume.attachment.as_ref().map(|a| a.device.clone()).unwrap_or_default();
            let volume_id = volume.id.to_string();
            disks.push(proto::Disk { volume_id, device, vhost_user_socket: socket, read_only: false });
        }
        Ok(proto::InstanceSpec {
            instance_id: instance.id.to_string(),
            generation: instance.generation,
            account_id: instance.account.to_string(),
            vcpus: kind.vcpus,
            memory_bytes: kind.memory_bytes(),
            kernel: instance.kernel.as_ref().map(object),
            ramdisk: instance.ramdisk.as_ref().map(object),
            kernel_cmdline: if instance.kernel.is_some() { KERNEL_CMDLINE.into() } else { String::new() },
            disks,
            nics: vec![proto::Nic {
                mac: instance.mac.clone(),
                private_ip: instance.private_ip.clone(),
                eni_id: instance.eni.to_string(),
            }],
            user_data: instance.user_data.clone(),
            public_key: instance.public_key.clone().unwrap_or_default(),
        })
    }

    /// Waits until no volume of the instance is being attached or detached.
    fn settle(&self, instance: &Instance) -> Outcome {
        match self.volumes(instance).iter().find(|v| v.flow.is_some()) {
            Some(busy) => Outcome::Again(Some(SOON), format!("volume {} is being worked on", busy.id)),
            None => Outcome::done(),
        }
    }

    async fn shut_down(&self, instance: &Instance, force: bool) -> Outcome {
        let request = proto::StopInstanceRequest {
            instance_id: instance.id.to_string(),
            generation: instance.generation,
            force,
            grace_secs: if force { 0 } else { self.settings.grace.as_secs() as u32 },
        };
        match self.cluster.stop(request).await {
            Ok(incarnation) => match incarnation.state() {
                State::Gone | State::Failed | State::Unknown => Outcome::done(),
                _ => Outcome::Again(Some(SOON), "the instance is still there".into()),
            },
            Err(status) => taken_away::<()>("the cluster could not stop the instance", Err(status)),
        }
    }

    async fn unexport(&self, instance: &Instance) -> Outcome {
        let mut ended = Vec::new();
        for volume in self.volumes(instance).iter().filter(|v| v.state != VolumeState::Creating) {
            match self.storage.unexport(&volume.id, volume.generation).await {
                Ok(()) => {}
                // A newer export is there, so this one is not.
                Err(status) if matches!(status.code(), Code::NotFound | Code::FailedPrecondition) => {}
                Err(status) => {
                    return Outcome::Again(None, format!("storage kept {} exported: {}", volume.id, status.message()));
                }
            }
            ended.push(Patch::Socket(volume.id.clone(), None));
        }
        Outcome::Done(ended)
    }

    /// Deletes the volumes that go with the instance; those that were never made, too: the attempt may have got through.
    async fn delete(&self, instance: &Instance) -> Outcome {
        let mut deleted = Vec::new();
        for volume in self.volumes(instance) {
            if !goes_with_instance(&volume) {
                continue;
            }
            match taken_away(&format!("storage could not delete {}", volume.id), self.storage.delete(&volume.id).await)
            {
                Outcome::Done(_) => deleted.push(Patch::Made(volume.id.clone(), false)),
                other => return other,
            }
        }
        Outcome::Done(deleted)
    }
}

fn goes_with_instance(volume: &Volume) -> bool {
    volume.state == VolumeState::Creating || volume.attachment.as_ref().is_some_and(|a| a.delete_on_termination)
}

pub(super) fn s3_object(object: &super::super::records::ImageObject) -> proto::S3Object {
    proto::S3Object { bucket: object.bucket.clone(), key: object.key.clone(), etag: object.etag.clone() }
}

pub(super) fn creation(volume: &Volume) -> proto::CreateVolumeRequest {
    proto::CreateVolumeRequest {
        volume_id: volume.id.to_string(),
        size_bytes: volume.gib as u64 * GIB,
        from_s3: volume.source.as_ref().map(s3_object),
        account_id: volume.account.to_string(),
    }
}

pub(super) fn not_created(volume: &Volume, status: &tonic::Status) -> Outcome {
    let what = format!("storage could not make {}: {}", volume.id, status.message());
    match status.code() {
        Code::ResourceExhausted => Outcome::Failed(Reason::new("Server.InsufficientVolumeCapacity", what)),
        Code::NotFound => Outcome::Failed(Reason::new("Client.InvalidManifest", what)),
        _ if passing(status) => Outcome::Again(None, what),
        _ => Outcome::Failed(Reason::new("Server.InternalError", what)),
    }
}

fn change_volume(txn: &mut Txn<'_>, id: &VolumeId, change: impl FnOnce(&mut Volume)) {
    if let Some(volume) = txn.get::<Volume>(id.as_str()) {
        let mut volume = Volume::clone(&volume);
        change(&mut volume);
        txn.put(volume);
    }
}

fn patch(txn: &mut Txn<'_>, instance: &mut Instance, patch: &Patch) {
    match patch {
        Patch::Node(node) => instance.node.clone_from(node),
        Patch::Made(id, true) => change_volume(txn, id, |v| v.state = VolumeState::InUse),
        // What is deleted keeps its attachment until the instance's flow ends.
        Patch::Made(id, false) => change_volume(txn, id, |v| v.state = VolumeState::Deleting),
        Patch::Socket(id, socket) => change_volume(txn, id, |v| v.socket.clone_from(socket)),
    }
}

/// Sets the state that a flow was for.
fn finish(txn: &mut Txn<'_>, instance: &mut Instance, kind: InstanceFlowKind, undone: Option<Reason>, now_us: u64) {
    match (kind, undone) {
        (InstanceFlowKind::Run | InstanceFlowKind::Start, None) => {
            instance.state = InstanceStateName::Running;
            instance.reason = None;
            for id in &instance.volumes {
                change_volume(txn, id, |v| {
                    if let Some(a) = v.attachment.as_mut().filter(|a| a.state == VolumeAttachmentState::Attaching) {
                        a.state = VolumeAttachmentState::Attached;
                        a.attached_us = now_us;
                    }
                });
            }
        }
        (InstanceFlowKind::Reboot, _) => {}
        (InstanceFlowKind::Stop { .. }, _) => {
            instance.state = InstanceStateName::Stopped;
            detach_busy(txn, instance);
        }
        (InstanceFlowKind::Start, Some(reason)) => {
            instance.state = InstanceStateName::Stopped;
            instance.desired = Desired::Stopped;
            instance.transition_reason = reason.message.clone();
            instance.reason = Some(reason);
        }
        (InstanceFlowKind::Run, Some(reason)) => {
            instance.transition_reason = reason.message.clone();
            instance.reason = Some(reason);
            terminated(txn, instance, now_us);
        }
        (InstanceFlowKind::Terminate, _) => terminated(txn, instance, now_us),
    }
}

/// Detaches the volumes that the guest kept when it was asked for them: nothing runs that could hold them now.
fn detach_busy(txn: &mut Txn<'_>, instance: &mut Instance) {
    let is_busy = |v: &Volume| v.attachment.as_ref().is_some_and(|a| a.state == VolumeAttachmentState::Busy);
    instance.volumes.retain(|id| {
        let Some(volume) = txn.get::<Volume>(id.as_str()).filter(|v| is_busy(v)) else { return true };
        let free = Volume {
            state: VolumeState::Available,
            attachment: None,
            socket: None,
            reason: None,
            ..Volume::clone(&volume)
        };
        txn.put(free);
        false
    });
}

fn terminated(txn: &mut Txn<'_>, instance: &mut Instance, now_us: u64) {
    instance.state = InstanceStateName::Terminated;
    instance.desired = Desired::Terminated;
    instance.terminated_us = Some(now_us);
    for id in std::mem::take(&mut instance.volumes) {
        change_volume(txn, &id, |v| {
            let gone = matches!(v.state, VolumeState::Deleting | VolumeState::Creating | VolumeState::Deleted);
            v.attachment = None;
            v.socket = None;
            if gone {
                v.state = VolumeState::Deleted;
                v.deleted_us = Some(now_us);
            } else {
                v.state = VolumeState::Available;
            }
        });
    }
    txn.del::<Lease>(&Lease::key(&instance.account, &instance.private_ip));
}
