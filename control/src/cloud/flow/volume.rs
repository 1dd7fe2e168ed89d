//! The steps of a volume's flows.
//!
//! | flow | steps | when done | when undone |
//! |---|---|---|---|
//! | create | make | available | error |
//! | delete | remove | deleted | never |
//! | attach | export, plug | in-use, attached | available |
//! | detach | unplug, unexport | available | in-use, busy (the guest kept it and it was not forced) |
//!
//! A guest that keeps its disk makes the attachment `busy` at once. It is asked again with growing pauses until
//! [`Settings::give_up`](super::Settings::give_up); then the flow is over and the attachment stays `busy` with the reason.
//! What ends that is another detach (forced or not), or the instance's stop or termination.
//!
//! Attaching to a stopped instance needs no flow: its next start exports and plugs all its volumes.

use karri_base::proto;
use tonic::Code;

use crate::wire::generated::ec2::{InstanceStateName, VolumeAttachmentState, VolumeState};

use super::super::records::{Instance, Reason, Volume};
use super::super::store::{StoreError, Txn};
use super::instance::{creation, not_created};
use super::{Flows, Outcome, Patch, Subject, Turn, VolumeFlowKind, passing, refused, taken_away};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Make,
    Remove,
    Export,
    Plug,
    Unplug { force: bool },
    Unexport,
}

fn steps(kind: VolumeFlowKind) -> &'static [Step] {
    use Step::*;
    match kind {
        VolumeFlowKind::Create => &[Make],
        VolumeFlowKind::Delete => &[Remove],
        VolumeFlowKind::Attach => &[Export, Plug],
        VolumeFlowKind::Detach { force: false } => &[Unplug { force: false }, Unexport],
        VolumeFlowKind::Detach { force: true } => &[Unplug { force: true }, Unexport],
    }
}

fn undo_of(step: Step) -> Option<Step> {
    match step {
        Step::Make => Some(Step::Remove),
        Step::Export => Some(Step::Unexport),
        Step::Plug => Some(Step::Unplug { force: true }),
        _ => None,
    }
}

impl Flows {
    /// Does one step of a volume's flow and commits what it came to.
    pub(super) async fn turn_volume(&self, id: &str) -> Result<Turn, StoreError> {
        let Some(volume) = self.store.get::<Volume>(id) else { return Ok(Turn::Idle) };
        let Some(flow) = volume.flow.clone() else { return Ok(Turn::Idle) };
        let gives_up = matches!(flow.kind, VolumeFlowKind::Create | VolumeFlowKind::Attach);
        let Some(step) = steps(flow.kind).get(flow.step).copied() else {
            return self.advance_volume(&volume, Outcome::done()).await;
        };
        let gives_up = gives_up || step == Step::Unplug { force: false };
        let outcome = match &flow.undo {
            None => match self.do_volume_step(&volume, step, false).await {
                Outcome::Again(_, why) if gives_up && self.overdue(flow.begun_us) => {
                    Outcome::Failed(Reason::new("Server.InternalError", format!("gave up after trying: {why}")))
                }
                outcome => outcome,
            },
            Some(_) => match undo_of(step) {
                Some(undo) => self.do_volume_step(&volume, undo, true).await,
                None => Outcome::done(),
            },
        };
        match outcome {
            Outcome::Again(pause, why) => Ok(Turn::Pause(pause, why)),
            Outcome::Failed(reason) if flow.undo.is_some() => Ok(Turn::Pause(None, reason.message)),
            outcome => self.advance_volume(&volume, outcome).await,
        }
    }

    async fn do_volume_step(&self, volume: &Volume, step: Step, undoing: bool) -> Outcome {
        match step {
            Step::Make => match self.storage.create(creation(volume)).await {
                Ok(_) => Outcome::done(),
                Err(status) => not_created(volume, &status),
            },
            Step::Remove => taken_away("storage could not delete the volume", self.storage.delete(&volume.id).await),
            Step::Export => {
                if let Some(reason) = self.unpluggable(volume) {
                    return Outcome::Failed(reason);
                }
                match self.storage.export(&volume.id, volume.generation).await {
                    Ok(export) => Outcome::Done(vec![Patch::Socket(volume.id.clone(), Some(export.vhost_user_socket))]),
                    Err(status) => refused("storage could not export the volume", &status),
                }
            }
            Step::Plug => self.plug(volume).await,
            Step::Unplug { force } => self.unplug(volume, force, undoing).await,
            Step::Unexport => match self.storage.unexport(&volume.id, volume.generation).await {
                Err(status) if !matches!(status.code(), Code::NotFound | Code::FailedPrecondition) => {
                    Outcome::Again(None, format!("storage kept the volume exported: {}", status.message()))
                }
                _ => Outcome::Done(vec![Patch::Socket(volume.id.clone(), None)]),
            },
        }
    }

    /// Why a volume cannot be plugged in now: its instance has gone another way since.
    fn unpluggable(&self, volume: &Volume) -> Option<Reason> {
        let id = &volume.attachment.as_ref()?.instance;
        match self.store.get::<Instance>(id.as_str()).map(|i| i.state) {
            Some(InstanceStateName::Running) => None,
            state => {
                let state = state.map_or("gone", InstanceStateName::as_str);
                Some(Reason::new("Client.IncorrectState", format!("instance {id} is {state}")))
            }
        }
    }

    async fn plug(&self, volume: &Volume) -> Outcome {
        if let Some(reason) = self.unpluggable(volume) {
            return Outcome::Failed(reason);
        }
        let (Some(attachment), Some(socket)) = (&volume.attachment, &volume.socket) else {
            return Outcome::Failed(Reason::new("Server.InternalError", "the volume has no export"));
        };
        let Some(instance) = self.store.get::<Instance>(attachment.instance.as_str()) else {
            return Outcome::Failed(Reason::new("Client.IncorrectState", "the instance is gone"));
        };
        let disk = proto::Disk {
            volume_id: volume.id.to_string(),
            device: attachment.device.clone(),
            vhost_user_socket: socket.clone(),
            read_only: false,
        };
        let request = proto::AttachVolumeRequest {
            instance_id: attachment.instance.to_string(),
            generation: instance.generation,
            disk: Some(disk),
        };
        match self.cluster.attach(request).await {
            Ok(_) => Outcome::done(),
            Err(status) => refused("the cluster could not plug the volume in", &status),
        }
    }

    async fn unplug(&self, volume: &Volume, force: bool, undoing: bool) -> Outcome {
        let Some(attachment) = &volume.attachment else { return Outcome::done() };
        let Some(instance) = self.store.get::<Instance>(attachment.instance.as_str()) else { return Outcome::done() };
        // A VM that ended has let go of its disks.
        if matches!(instance.state, InstanceStateName::Stopped | InstanceStateName::Terminated) {
            return Outcome::done();
        }
        // Its stop waits for this flow to be over, and lets go of what is busy.
        if matches!(instance.state, InstanceStateName::Stopping | InstanceStateName::ShuttingDown) && !undoing {
            let id = &instance.id;
            return Outcome::Failed(Reason::new(
                "Client.IncorrectState",
                format!("instance {id} is {}", instance.state),
            ));
        }
        let request = proto::DetachVolumeRequest {
            instance_id: attachment.instance.to_string(),
            generation: instance.generation,
            volume_id: volume.id.to_string(),
            force,
        };
        match self.cluster.detach(request).await {
            Ok(_) => Outcome::done(),
            Err(status) if status.code() == Code::NotFound => Outcome::done(),
            Err(status) if status.code() == Code::Aborted && !undoing => {
                self.guest_keeps(volume, status.message()).await
            }
            Err(status) if passing(&status) || undoing => {
                Outcome::Again(None, format!("the cluster could not unplug the volume: {}", status.message()))
            }
            Err(status) => refused("the cluster could not unplug the volume", &status),
        }
    }

    /// Shows that the guest keeps the disk; it is asked again.
    async fn guest_keeps(&self, volume: &Volume, told: &str) -> Outcome {
        let why = format!("the guest keeps the volume: {told}");
        let shown = self.store.change::<_, StoreError>(|txn| {
            let Some(current) = txn.get::<Volume>(volume.id.as_str()) else { return Ok(()) };
            let mut now = Volume::clone(&current);
            if let Some(attachment) = now.attachment.as_mut().filter(|a| a.state != VolumeAttachmentState::Busy)
                && now.flow == volume.flow
            {
                attachment.state = VolumeAttachmentState::Busy;
                now.reason = Some(Reason::new("Client.VolumeInUse", &why));
                txn.put(now);
            }
            Ok(())
        });
        if let Err(e) = shown.await {
            tracing::error!(volume = %volume.id, error = %e, "a busy volume could not be recorded");
        }
        Outcome::Again(None, why)
    }

    async fn advance_volume(&self, before: &Volume, outcome: Outcome) -> Result<Turn, StoreError> {
        let now_us = self.clock.now().0;
        let ended = self
            .store
            .change::<_, StoreError>(|txn| {
                let Some(current) = txn.get::<Volume>(before.id.as_str()) else { return Ok(None) };
                let mut volume = Volume::clone(&current);
                let Some(flow) = volume.flow.clone().filter(|f| Some(f) == before.flow.as_ref()) else {
                    return Ok(None);
                };
                let mut next = flow.clone();
                let mut over = false;
                match &outcome {
                    Outcome::Done(patches) => {
                        for patch in patches {
                            if let Patch::Socket(_, socket) = patch {
                                volume.socket.clone_from(socket);
                            }
                        }
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
                volume.flow = (!over).then_some(next);
                let instance = volume.attachment.as_ref().map(|a| a.instance.to_string());
                if over {
                    finish(txn, &mut volume, flow.kind, flow.undo.clone(), now_us);
                }
                txn.put(volume);
                Ok(over.then_some((flow.kind, flow.undo, instance)))
            })
            .await?;
        let id = before.id.as_str();
        let Some((kind, undone, instance)) = ended else { return Ok(Turn::Moved) };
        match undone {
            None => tracing::info!(volume = id, account = %before.account, flow = ?kind, "flow done"),
            Some(why) => {
                tracing::error!(volume = id, account = %before.account, flow = ?kind, error = %why.message, "flow undone");
            }
        }
        // An instance that waits for its volumes to settle goes on at once.
        if let Some(waiting) = instance.filter(|i| self.has_flow(&Subject::Instance(i.clone()))) {
            self.kick(Subject::Instance(waiting));
        }
        Ok(Turn::Moved)
    }
}

/// Sets the state that a flow was for.
fn finish(txn: &mut Txn<'_>, volume: &mut Volume, kind: VolumeFlowKind, undone: Option<Reason>, now_us: u64) {
    match (kind, undone) {
        (VolumeFlowKind::Create, None) => volume.state = VolumeState::Available,
        (VolumeFlowKind::Create, Some(reason)) => {
            volume.state = VolumeState::Error;
            volume.reason = Some(reason);
        }
        (VolumeFlowKind::Delete, _) => {
            volume.state = VolumeState::Deleted;
            volume.deleted_us = Some(now_us);
        }
        (VolumeFlowKind::Attach, None) => {
            if let Some(attachment) = volume.attachment.as_mut() {
                attachment.state = VolumeAttachmentState::Attached;
                attachment.attached_us = now_us;
            }
            volume.reason = None;
        }
        (VolumeFlowKind::Attach, Some(reason)) => {
            volume.reason = Some(reason);
            let_go(txn, volume);
        }
        (VolumeFlowKind::Detach { .. }, None) => let_go(txn, volume),
        (VolumeFlowKind::Detach { .. }, Some(reason)) => {
            volume.reason = Some(reason);
            if let Some(attachment) = volume.attachment.as_mut() {
                attachment.state = VolumeAttachmentState::Busy;
            }
        }
    }
}

/// Ends the attachment on both sides.
fn let_go(txn: &mut Txn<'_>, volume: &mut Volume) {
    let Some(attachment) = volume.attachment.take() else { return };
    volume.state = VolumeState::Available;
    volume.socket = None;
    if let Some(instance) = txn.get::<Instance>(attachment.instance.as_str()) {
        let mut instance = Instance::clone(&instance);
        instance.volumes.retain(|v| *v != volume.id);
        txn.put(instance);
    }
}
