//! DescribeInstances and DescribeInstanceStatus.

use std::sync::Arc;

use karri_base::id::{InstanceId, ReservationId};

use crate::wire::Timestamp;
use crate::wire::generated::ec2;
use crate::wire::generated::ec2::InstanceStateName as State;

use super::super::error::{ApiError, ApiResult};
use super::super::records::{Instance, Volume};
use super::filter::{Filters, one};
use super::instances::{shown_state, state_code};
use super::page::{Ask, page};
use super::regions::zone_id;
use super::volumes::instance_mappings;
use super::{Call, instance_id, no_instance, tag_set};

const FILTERS: &[&str] = &[
    "affinity",
    "architecture",
    "availability-zone",
    "availability-zone-id",
    "block-device-mapping.attach-time",
    "block-device-mapping.delete-on-termination",
    "block-device-mapping.device-name",
    "block-device-mapping.status",
    "block-device-mapping.volume-id",
    "boot-mode",
    "client-token",
    "dns-name",
    "ebs-optimized",
    "ena-support",
    "group-id",
    "group-name",
    "hypervisor",
    "iam-instance-profile.arn",
    "image-id",
    "instance-id",
    "instance-lifecycle",
    "instance-state-code",
    "instance-state-name",
    "instance-type",
    "instance.group-id",
    "instance.group-name",
    "ip-address",
    "kernel-id",
    "key-name",
    "launch-index",
    "launch-time",
    "monitoring-state",
    "owner-id",
    "placement-group-name",
    "platform",
    "platform-details",
    "private-dns-name",
    "private-ip-address",
    "product-code",
    "product-code.type",
    "ramdisk-id",
    "reason",
    "requester-id",
    "reservation-id",
    "root-device-name",
    "root-device-type",
    "source-dest-check",
    "spot-instance-request-id",
    "state-reason-code",
    "state-reason-message",
    "subnet-id",
    "tenancy",
    "usage-operation",
    "virtualization-type",
    "vpc-id",
];

fn private_dns(i: &Instance, region: &str) -> String {
    let host = format!("ip-{}", i.private_ip.replace('.', "-"));
    if region == "us-east-1" { format!("{host}.ec2.internal") } else { format!("{host}.{region}.compute.internal") }
}

fn monitoring(i: &Instance) -> ec2::MonitoringState {
    if i.monitoring { ec2::MonitoringState::Enabled } else { ec2::MonitoringState::Disabled }
}

fn filter_values(call: &Call<'_>, i: &Instance, filter: &str) -> Vec<String> {
    if let Some(of_disk) = filter.strip_prefix("block-device-mapping.") {
        let held = i.volumes.iter().filter_map(|v| call.cloud.store.get::<Volume>(v.as_str()));
        let value = |v: Arc<Volume>| {
            let a = v.attachment.as_ref()?;
            Some(match of_disk {
                "attach-time" => Timestamp(a.attached_us).to_string(),
                "delete-on-termination" => a.delete_on_termination.to_string(),
                "device-name" => a.device.clone(),
                "status" => a.state.to_string(),
                _ => v.id.to_string(),
            })
        };
        return held.filter_map(value).collect();
    }
    one(match filter {
        "architecture" => Some(i.architecture.to_string()),
        "availability-zone" => Some(i.zone.clone()),
        "availability-zone-id" => Some(zone_id(&i.zone)),
        "client-token" => i.client_token.clone(),
        "ebs-optimized" => Some(i.ebs_optimized.to_string()),
        "hypervisor" => Some("xen".into()),
        "image-id" => Some(i.image.to_string()),
        "instance-id" => Some(i.id.to_string()),
        "instance-state-code" => Some(state_code(i.state).to_string()),
        "instance-state-name" => Some(i.state.to_string()),
        "instance-type" => Some(i.instance_type.clone()),
        "kernel-id" => i.kernel.as_ref().map(|(id, _)| id.clone()),
        "key-name" => i.key_name.clone(),
        "launch-index" => Some(i.launch_index.to_string()),
        "launch-time" => Some(Timestamp(i.launched_us).to_string()),
        "monitoring-state" => Some(monitoring(i).to_string()),
        "owner-id" => Some(i.account.to_string()),
        "platform-details" => Some("Linux/UNIX".into()),
        "private-dns-name" => Some(private_dns(i, &call.cloud.region)),
        "private-ip-address" => Some(i.private_ip.clone()),
        "ramdisk-id" => i.ramdisk.as_ref().map(|(id, _)| id.clone()),
        "reason" => Some(i.transition_reason.clone()),
        "reservation-id" => Some(i.reservation.to_string()),
        "root-device-name" => Some(i.root_device.clone()),
        "root-device-type" => Some("ebs".into()),
        "state-reason-code" => i.reason.as_ref().map(|r| r.code.clone()),
        "state-reason-message" => i.reason.as_ref().map(|r| r.message.clone()),
        "tenancy" => Some("default".into()),
        "usage-operation" => Some("RunInstances".into()),
        "virtualization-type" => Some("hvm".into()),
        _ => None,
    })
}

fn shown(call: &Call<'_>, i: &Instance) -> ec2::Instance {
    let gone = i.state == State::Terminated;
    ec2::Instance {
        instance_id: Some(i.id.to_string()),
        image_id: Some(i.image.to_string()),
        state: Some(shown_state(i.state)),
        private_dns_name: Some(if gone { String::new() } else { private_dns(i, &call.cloud.region) }),
        public_dns_name: Some(String::new()),
        private_ip_address: (!gone).then(|| i.private_ip.clone()),
        state_transition_reason: Some(i.transition_reason.clone()),
        state_reason: i
            .reason
            .as_ref()
            .map(|r| ec2::StateReason { code: Some(r.code.clone()), message: Some(r.message.clone()) }),
        key_name: i.key_name.clone(),
        ami_launch_index: Some(i.launch_index),
        product_codes: Some(Vec::new()),
        instance_type: Some(i.instance_type.clone()),
        launch_time: Some(Timestamp(i.launched_us)),
        placement: Some(ec2::Placement {
            availability_zone: Some(i.zone.clone()),
            availability_zone_id: Some(zone_id(&i.zone)),
            group_name: Some(String::new()),
            tenancy: Some(ec2::Tenancy::Default),
            ..Default::default()
        }),
        kernel_id: i.kernel.as_ref().map(|(id, _)| id.clone()),
        ramdisk_id: i.ramdisk.as_ref().map(|(id, _)| id.clone()),
        monitoring: Some(ec2::Monitoring { state: Some(monitoring(i)), ..Default::default() }),
        security_groups: Some(Vec::new()),
        network_interfaces: Some(Vec::new()),
        architecture: Some(i.architecture),
        root_device_type: Some(ec2::DeviceType::Ebs),
        root_device_name: Some(i.root_device.clone()),
        block_device_mappings: Some(instance_mappings(call, i)),
        virtualization_type: Some(ec2::VirtualizationType::Hvm),
        hypervisor: Some(ec2::HypervisorType::Xen),
        client_token: Some(i.client_token.clone().unwrap_or_default()),
        ebs_optimized: Some(i.ebs_optimized),
        platform_details: Some("Linux/UNIX".into()),
        usage_operation: Some("RunInstances".into()),
        usage_operation_update_time: Some(Timestamp(i.created_us)),
        tags: tag_set(&i.tags),
        ..Default::default()
    }
}

/// Instances grouped by the call that made them; `instances` come in the order of that.
fn reservations(call: &Call<'_>, instances: &[Arc<Instance>]) -> Vec<ec2::Reservation> {
    let same_call = |a: &Arc<Instance>, b: &Arc<Instance>| a.reservation == b.reservation;
    let group = |of: &[Arc<Instance>]| ec2::Reservation {
        reservation_id: Some(of[0].reservation.to_string()),
        owner_id: Some(of[0].account.to_string()),
        groups: Vec::new(),
        instances: of.iter().map(|i| shown(call, i)).collect(),
        ..Default::default()
    };
    instances.chunk_by(same_call).map(group).collect()
}

/// The order of descriptions, as text for page tokens.
fn order(i: &Instance) -> String {
    format!("{:020}{}{:06}", i.created_us, i.reservation, i.launch_index)
}

/// The same order.
fn sort(instances: &mut [Arc<Instance>]) {
    fn key(i: &Instance) -> (u64, &str, i32) {
        (i.created_us, i.reservation.as_str(), i.launch_index)
    }
    instances.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
}

/// One call's instances, as RunInstances answers them; `ids` says which they are where that is known.
pub fn reservation(call: &Call<'_>, id: &ReservationId, ids: Option<&[InstanceId]>) -> ApiResult<ec2::Reservation> {
    let store = &call.cloud.store;
    let mut instances = match ids {
        Some(ids) => ids.iter().filter_map(|id| store.get::<Instance>(id.as_str())).collect(),
        None => store.list::<Instance>(),
    };
    instances.retain(|i| i.reservation == *id);
    sort(&mut instances);
    let empty = || ec2::Reservation {
        reservation_id: Some(id.to_string()),
        owner_id: Some(call.account().to_string()),
        ..Default::default()
    };
    Ok(reservations(call, &instances).pop().unwrap_or_else(empty))
}

/// The caller's instances that are named, or all.
fn wanted(call: &Call<'_>, ids: &[String]) -> ApiResult<Vec<Arc<Instance>>> {
    let mine = |i: &Arc<Instance>| i.account == *call.account();
    let mut instances = if ids.is_empty() {
        call.cloud.store.list::<Instance>().into_iter().filter(mine).collect()
    } else {
        let mut named = Vec::with_capacity(ids.len());
        for text in ids {
            let id = instance_id(text)?;
            let found = call.cloud.store.get::<Instance>(id.as_str()).filter(mine);
            named.push(found.ok_or_else(|| no_instance(&id))?);
        }
        named
    };
    sort(&mut instances);
    instances.dedup_by(|a, b| a.id == b.id);
    Ok(instances)
}

/// DescribeInstances.
pub fn describe(call: &Call<'_>, request: ec2::DescribeInstancesRequest) -> ApiResult<ec2::DescribeInstancesResult> {
    let filters = Filters::new(request.filters, FILTERS, true)?;
    if !request.instance_ids.is_empty() && request.max_results.is_some() {
        let message = "The parameter instancesSet cannot be used with the parameter maxResults";
        return Err(ApiError::combination(message));
    }
    let mut instances = wanted(call, &request.instance_ids)?;
    instances.retain(|i| filters.keep(&i.tags, |f| filter_values(call, i, f)));
    let ask = Ask {
        listing: call.listing("DescribeInstances"),
        max: request.max_results,
        range: 5..=1000,
        default: if request.instance_ids.is_empty() { 1000 } else { usize::MAX },
        token: request.next_token.as_deref(),
    };
    let (instances, next_token) = page(instances, &ask, |i| order(i))?;
    Ok(ec2::DescribeInstancesResult { reservations: reservations(call, &instances), next_token })
}

const STATUS_FILTERS: &[&str] = &[
    "availability-zone",
    "availability-zone-id",
    "event.code",
    "event.description",
    "event.instance-event-id",
    "event.not-after",
    "event.not-before",
    "event.not-before-deadline",
    "instance-state-code",
    "instance-state-name",
    "instance-status.reachability",
    "instance-status.status",
    "system-status.reachability",
    "system-status.status",
    "attached-ebs-status.status",
];

fn summary(status: ec2::SummaryStatus) -> ec2::InstanceStatusSummary {
    let reachability = match status {
        ec2::SummaryStatus::Ok => Some(ec2::StatusType::Passed),
        ec2::SummaryStatus::Initializing => Some(ec2::StatusType::Initializing),
        ec2::SummaryStatus::Impaired => Some(ec2::StatusType::Failed),
        ec2::SummaryStatus::InsufficientData => Some(ec2::StatusType::InsufficientData),
        ec2::SummaryStatus::NotApplicable => None,
    };
    let detail = |status| ec2::InstanceStatusDetails {
        name: Some(ec2::StatusName::Reachability),
        status: Some(status),
        impaired_since: None,
    };
    ec2::InstanceStatusSummary { status: Some(status), details: Some(reachability.into_iter().map(detail).collect()) }
}

/// The host's state for an instance, and the instance's own.
fn health(call: &Call<'_>, i: &Instance) -> (ec2::SummaryStatus, ec2::SummaryStatus) {
    use ec2::SummaryStatus::{Impaired, Initializing, NotApplicable, Ok};
    match i.state {
        State::Pending => (Initializing, Initializing),
        State::Running if i.node.as_ref().is_some_and(|n| call.cloud.watch.is_lost(n)) => (Impaired, Ok),
        State::Running => (Ok, Ok),
        _ => (NotApplicable, NotApplicable),
    }
}

/// DescribeInstanceStatus: of running instances, unless all are asked for.
pub fn status(
    call: &Call<'_>,
    request: ec2::DescribeInstanceStatusRequest,
) -> ApiResult<ec2::DescribeInstanceStatusResult> {
    let filters = Filters::new(request.filters, STATUS_FILTERS, false)?;
    if !request.instance_ids.is_empty() && request.max_results.is_some() {
        return Err(ApiError::combination("The parameter instancesSet cannot be used with the parameter maxResults"));
    }
    let mut instances = wanted(call, &request.instance_ids)?;
    instances.retain(|i| {
        let (system, own) = health(call, i);
        (request.include_all_instances == Some(true) || i.state == State::Running)
            && filters.keep(&i.tags, |f| {
                one(match f {
                    "availability-zone" => Some(i.zone.clone()),
                    "availability-zone-id" => Some(zone_id(&i.zone)),
                    "instance-state-code" => Some(state_code(i.state).to_string()),
                    "instance-state-name" => Some(i.state.to_string()),
                    "instance-status.status" => Some(own.to_string()),
                    "system-status.status" => Some(system.to_string()),
                    "attached-ebs-status.status" => Some("ok".to_owned()),
                    "instance-status.reachability" | "system-status.reachability" => {
                        let which = if f.starts_with("system") { system } else { own };
                        let details = summary(which).details.unwrap_or_default();
                        details.first().and_then(|d| d.status).map(|s| s.to_string())
                    }
                    _ => None,
                })
            })
    });
    let ask = Ask {
        listing: call.listing("DescribeInstanceStatus"),
        max: request.max_results,
        range: 5..=1000,
        default: if request.instance_ids.is_empty() { 1000 } else { usize::MAX },
        token: request.next_token.as_deref(),
    };
    let (instances, next_token) = page(instances, &ask, |i| order(i))?;
    let shown = instances.iter().map(|i| {
        let (system, own) = health(call, i);
        ec2::InstanceStatus {
            instance_id: Some(i.id.to_string()),
            availability_zone: Some(i.zone.clone()),
            availability_zone_id: Some(zone_id(&i.zone)),
            instance_state: Some(shown_state(i.state)),
            instance_status: Some(summary(own)),
            system_status: Some(summary(system)),
            events: Some(Vec::new()),
            ..Default::default()
        }
    });
    Ok(ec2::DescribeInstanceStatusResult { instance_statuses: shown.collect(), next_token })
}
