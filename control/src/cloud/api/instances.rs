//! Starting, stopping, rebooting and terminating instances, and reading their consoles.

use karri_base::id::InstanceId;

use crate::wire::generated::ec2;
use crate::wire::generated::ec2::InstanceStateName as State;
use crate::wire::{Done, Timestamp};

use super::super::error::{ApiError, ApiResult, Code};
use super::super::flow::{InstanceFlow, InstanceFlowKind, Subject};
use super::super::records::{Desired, Instance, Reason, Volume};
use super::super::store::Txn;
use super::{Call, instance_id, no_instance};

/// EC2's number of a state.
pub fn state_code(state: State) -> i32 {
    match state {
        State::Pending => 0,
        State::Running => 16,
        State::ShuttingDown => 32,
        State::Terminated => 48,
        State::Stopping => 64,
        State::Stopped => 80,
    }
}

/// A state as answers carry it.
pub fn shown_state(state: State) -> ec2::InstanceState {
    ec2::InstanceState { code: Some(state_code(state)), name: Some(state) }
}

/// What a user's wish leaves in EC2's `reason`.
fn user_initiated(now_us: u64) -> String {
    let at = Timestamp(now_us).to_string();
    format!("User initiated ({} {} GMT)", &at[..10], &at[11..19])
}

fn wrong_state(id: &InstanceId, state: State, verb: &str) -> ApiError {
    let message = format!("The instance '{id}' is not in a state from which it can be {verb}: it is {state}.");
    ApiError::new(Code::IncorrectInstanceState, message)
}

/// Changes all named instances in one commit, then sets their flows going.
async fn change_all(
    call: &Call<'_>,
    ids: &[String],
    change: impl Fn(&mut Txn<'_>, &mut Instance) -> ApiResult<bool>,
) -> ApiResult<Vec<ec2::InstanceStateChange>> {
    let mut ids: Vec<InstanceId> = ids.iter().map(|id| instance_id(id)).collect::<ApiResult<_>>()?;
    let mut seen = std::collections::HashSet::new();
    ids.retain(|id| seen.insert(id.clone()));
    let changes = call
        .cloud
        .store
        .change(|txn| {
            let mut changes = Vec::with_capacity(ids.len());
            for id in &ids {
                let before = call.instance(txn, id)?;
                let mut instance = Instance::clone(&before);
                if change(txn, &mut instance)? {
                    txn.put(instance.clone());
                }
                changes.push(ec2::InstanceStateChange {
                    instance_id: Some(id.to_string()),
                    previous_state: Some(shown_state(before.state)),
                    current_state: Some(shown_state(instance.state)),
                });
            }
            Ok::<_, ApiError>(changes)
        })
        .await?;
    for id in ids {
        call.cloud.flows.kick(Subject::Instance(id.to_string()));
    }
    Ok(changes)
}

fn begin(instance: &mut Instance, kind: InstanceFlowKind, now_us: u64) {
    instance.flow = Some(InstanceFlow { kind, step: 0, undo: None, begun_us: now_us });
}

/// StartInstances.
pub async fn start(call: &Call<'_>, request: ec2::StartInstancesRequest) -> ApiResult<ec2::StartInstancesResult> {
    let now_us = call.now_us();
    let changes = change_all(call, &request.instance_ids, |txn, instance| {
        match instance.state {
            State::Pending | State::Running => return Ok(false),
            State::Stopped => {}
            state => return Err(wrong_state(&instance.id, state, "started")),
        }
        if instance.flow.is_some() {
            return Err(wrong_state(&instance.id, instance.state, "started"));
        }
        instance.generation += 1;
        instance.state = State::Pending;
        instance.desired = Desired::Running;
        instance.reason = None;
        instance.transition_reason = String::new();
        instance.launched_us = now_us;
        // Every export of this start is a new one.
        for id in &instance.volumes {
            if let Some(volume) = txn.get::<Volume>(id.as_str()) {
                let mut volume = Volume::clone(&volume);
                volume.generation += 1;
                txn.put(volume);
            }
        }
        begin(instance, InstanceFlowKind::Start, now_us);
        Ok(true)
    });
    Ok(ec2::StartInstancesResult { starting_instances: changes.await? })
}

/// StopInstances. Forcing a stop that is already under way cuts its patience short.
pub async fn stop(call: &Call<'_>, request: ec2::StopInstancesRequest) -> ApiResult<ec2::StopInstancesResult> {
    if request.hibernate == Some(true) {
        return Err(ApiError::unsupported("Hibernation"));
    }
    let now_us = call.now_us();
    let force = request.force == Some(true) || request.skip_os_shutdown == Some(true);
    let changes = change_all(call, &request.instance_ids, |_, instance| {
        match instance.state {
            State::Stopped => return Ok(false),
            State::Stopping => {
                let gentle = InstanceFlowKind::Stop { force: false };
                if force && instance.flow.as_ref().is_some_and(|f| f.kind == gentle) {
                    begin(instance, InstanceFlowKind::Stop { force: true }, now_us);
                    return Ok(true);
                }
                return Ok(false);
            }
            State::Running => {}
            state => return Err(wrong_state(&instance.id, state, "stopped")),
        }
        if instance.api_stop_disabled {
            let message = format!("The instance '{}' may not be stopped: its disableApiStop is set.", instance.id);
            return Err(ApiError::new(Code::OperationNotPermitted, message));
        }
        instance.state = State::Stopping;
        instance.desired = Desired::Stopped;
        let what = "User initiated shutdown";
        instance.reason = Some(Reason::new("Client.UserInitiatedShutdown", what));
        instance.transition_reason = user_initiated(now_us);
        begin(instance, InstanceFlowKind::Stop { force }, now_us);
        Ok(true)
    });
    Ok(ec2::StopInstancesResult { stopping_instances: changes.await? })
}

/// TerminateInstances.
pub async fn terminate(
    call: &Call<'_>,
    request: ec2::TerminateInstancesRequest,
) -> ApiResult<ec2::TerminateInstancesResult> {
    let now_us = call.now_us();
    let changes = change_all(call, &request.instance_ids, |_, instance| {
        if matches!(instance.state, State::ShuttingDown | State::Terminated) {
            return Ok(false);
        }
        if instance.api_termination_disabled {
            let message = format!(
                "The instance '{}' may not be terminated. Modify its 'disableApiTermination' instance attribute and try \
                 again.",
                instance.id
            );
            return Err(ApiError::new(Code::OperationNotPermitted, message));
        }
        instance.state = State::ShuttingDown;
        instance.desired = Desired::Terminated;
        // A start that is still under way somewhere carries an older number and is refused from now on.
        instance.generation += 1;
        instance.reason = Some(Reason::new("Client.UserInitiatedShutdown", "User initiated shutdown"));
        instance.transition_reason = user_initiated(now_us);
        begin(instance, InstanceFlowKind::Terminate, now_us);
        Ok(true)
    });
    Ok(ec2::TerminateInstancesResult { terminating_instances: changes.await? })
}

/// RebootInstances.
pub async fn reboot(call: &Call<'_>, request: ec2::RebootInstancesRequest) -> ApiResult<Done> {
    let now_us = call.now_us();
    change_all(call, &request.instance_ids, |_, instance| {
        if instance.state != State::Running {
            return Err(wrong_state(&instance.id, instance.state, "rebooted"));
        }
        begin(instance, InstanceFlowKind::Reboot, now_us);
        Ok(true)
    })
    .await?;
    Ok(Done)
}

/// GetConsoleOutput: the last of what the guest wrote to its serial port.
pub async fn console_output(
    call: &Call<'_>,
    request: ec2::GetConsoleOutputRequest,
) -> ApiResult<ec2::GetConsoleOutputResult> {
    use base64::Engine as _;
    let id = instance_id(&request.instance_id)?;
    let instance = call.cloud.store.get::<Instance>(id.as_str()).filter(|i| i.account == *call.account());
    let instance = instance.ok_or_else(|| no_instance(&id))?;
    let (output, at) = match call.cloud.cluster.console(&id, instance.generation).await {
        Ok(console) => (Some(console.output), console.unix_micros),
        // Nothing has run yet, or not any more.
        Err(status) if matches!(status.code(), tonic::Code::NotFound | tonic::Code::FailedPrecondition) => (None, 0),
        Err(status) => {
            tracing::error!(request_id = %call.request_id, instance = %id, error = %status.message(), "no console");
            return Err(ApiError::new(Code::Unavailable, "The instance's host did not answer; try again"));
        }
    };
    let encoded = output.map(|o| base64::engine::general_purpose::STANDARD.encode(o));
    Ok(ec2::GetConsoleOutputResult {
        instance_id: Some(id.to_string()),
        timestamp: Some(Timestamp(if at == 0 { call.now_us() } else { at })),
        output: encoded,
    })
}
