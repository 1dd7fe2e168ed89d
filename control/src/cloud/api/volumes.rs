//! Volumes and their attachments.

use std::sync::Arc;

use karri_base::id::{InstanceId, VolumeId};

use crate::wire::generated::ec2;
use crate::wire::generated::ec2::{InstanceStateName, VolumeAttachmentState, VolumeState, VolumeType};
use crate::wire::{Done, Timestamp};

use super::super::error::{ApiError, ApiResult, Code};
use super::super::flow::{Subject, VolumeFlow, VolumeFlowKind};
use super::super::records::{Attachment, Instance, Token, Volume};
use super::filter::{Filters, one};
use super::page::{Ask, page};
use super::regions::zone_id;
use super::{Call, earlier, fingerprint, instance_id, no_volume, specified_tags, tag_set, volume_id};

/// Volumes of one instance; a root port each.
const ATTACHMENTS_MAX: usize = 28;

/// True for names such as `/dev/sdf`, `/dev/sda1`, `/dev/xvdba`, `sdf`.
pub fn is_device(name: &str) -> bool {
    let short = name.strip_prefix("/dev/").unwrap_or(name);
    let Some(rest) = ["sd", "xvd", "vd", "hd"].iter().find_map(|p| short.strip_prefix(p)) else { return false };
    let letters = rest.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = &rest[letters.len()..];
    (1..=2).contains(&letters.len()) && letters.bytes().all(|b| b.is_ascii_lowercase()) && digits.len() <= 2
}

/// Refuses a size that a volume of this type cannot have.
pub fn check_size(gib: i32, kind: VolumeType) -> ApiResult<()> {
    let (least, most) = match kind {
        VolumeType::Standard => (1, 1024),
        VolumeType::Io1 => (4, 16384),
        VolumeType::Io2 => (4, 65536),
        VolumeType::Gp2 => (1, 16384),
        VolumeType::Gp3 => (1, 65536),
        VolumeType::St1 | VolumeType::Sc1 => (125, 16384),
    };
    if (least..=most).contains(&gib) {
        return Ok(());
    }
    let which =
        if gib < least { format!("small; minimum is {least} GiB") } else { format!("large; maximum is {most} GiB") };
    let message = format!("Volume of {gib}GiB is too {which}.");
    Err(ApiError::new(Code::InvalidParameterValue, message))
}

/// Refuses at once a volume that storage could never hold.
pub fn check_room(call: &Call<'_>, gib: i32) -> ApiResult<()> {
    let bytes = u64::from(gib.unsigned_abs()) << 30;
    match call.cloud.watch.largest_volume() {
        Some(largest) if bytes > largest => {
            let message = format!(
                "There is not enough capacity for a volume of {gib} GiB: the storage of {} holds {} GiB in all. Ask for \
                 a smaller one, or have the operator give storage more space.",
                call.cloud.zone,
                largest >> 30
            );
            Err(ApiError::new(Code::InsufficientVolumeCapacity, message))
        }
        _ => Ok(()),
    }
}

fn check_performance(request: &ec2::CreateVolumeRequest, kind: VolumeType) -> ApiResult<()> {
    let provisioned = matches!(kind, VolumeType::Io1 | VolumeType::Io2);
    match request.iops {
        None if provisioned => return Err(ApiError::missing("iops")),
        Some(_) if !provisioned && kind != VolumeType::Gp3 => {
            let message = format!("The parameter iops is not supported for {kind} volumes.");
            return Err(ApiError::combination(message));
        }
        Some(iops) if !(100..=256_000).contains(&iops) => {
            return Err(ApiError::value("iops", iops, "Expecting a value from 100 to 256000."));
        }
        _ => {}
    }
    match request.throughput {
        Some(_) if kind != VolumeType::Gp3 => {
            Err(ApiError::combination(format!("The parameter throughput is not supported for {kind} volumes.")))
        }
        Some(t) if !(125..=2000).contains(&t) => {
            Err(ApiError::value("throughput", t, "Expecting a value from 125 to 2000."))
        }
        _ => Ok(()),
    }
}

/// The IOPS that EC2 shows for a type when none were asked for.
fn shown_iops(volume: &Volume) -> Option<i32> {
    match volume.volume_type {
        VolumeType::Gp2 => Some((volume.gib.saturating_mul(3)).clamp(100, 16000)),
        VolumeType::Gp3 => Some(volume.iops.unwrap_or(3000)),
        _ => volume.iops,
    }
}

/// CreateVolume.
pub async fn create(call: &Call<'_>, mut request: ec2::CreateVolumeRequest) -> ApiResult<ec2::Volume> {
    let client_token = request.client_token.take();
    let print = fingerprint(&request);
    let zone = &call.cloud.zone;
    match (&request.availability_zone, &request.availability_zone_id) {
        (None, None) => return Err(ApiError::missing("availabilityZone")),
        (Some(_), Some(_)) => return Err(ApiError::combination("Name the zone by name or by id, not by both")),
        (Some(name), None) if name == zone => {}
        (None, Some(id)) if *id == zone_id(zone) => {}
        (name, id) => {
            let wanted = name.as_ref().or(id.as_ref()).map_or("", String::as_str);
            return Err(ApiError::new(Code::InvalidZoneNotFound, format!("The zone '{wanted}' does not exist.")));
        }
    }
    if let Some(snapshot) = &request.snapshot_id {
        let message = format!("The snapshot '{snapshot}' does not exist.");
        return Err(ApiError::new(Code::InvalidSnapshotNotFound, message));
    }
    if request.encrypted == Some(true) || request.kms_key_id.is_some() {
        return Err(ApiError::unsupported("Encryption of volumes"));
    }
    if request.multi_attach_enabled == Some(true) {
        return Err(ApiError::unsupported("Multi-Attach"));
    }
    if request.outpost_arn.is_some() || request.operator.is_some() || request.volume_initialization_rate.is_some() {
        return Err(ApiError::unsupported("OutpostArn, Operator and VolumeInitializationRate"));
    }
    let volume_type = request.volume_type.unwrap_or(VolumeType::Gp2);
    let gib = request.size.ok_or_else(|| ApiError::missing("size/snapshot"))?;
    check_size(gib, volume_type)?;
    check_room(call, gib)?;
    check_performance(&request, volume_type)?;
    let of_volumes = ec2::ResourceType::Volume;
    let tags = specified_tags(&request.tag_specifications, of_volumes, &[of_volumes])?;
    let volume = Volume {
        id: VolumeId::random(),
        account: call.account().clone(),
        zone: zone.clone(),
        gib,
        volume_type,
        iops: request.iops,
        throughput: request.throughput,
        source: None,
        state: VolumeState::Creating,
        attachment: None,
        generation: 0,
        socket: None,
        reason: None,
        client_token: client_token.clone(),
        created_us: call.now_us(),
        deleted_us: None,
        flow: Some(flow(call, VolumeFlowKind::Create)),
        tags,
    };
    let made = call
        .cloud
        .store
        .change(|txn| {
            let made = earlier(txn, call.account(), "CreateVolume", client_token.as_deref(), &print)?;
            if let Some(id) = made {
                return txn.get::<Volume>(&id).ok_or_else(|| no_volume(&id));
            }
            txn.put(volume.clone());
            if let Some(token) = &client_token {
                txn.put(Token {
                    account: call.account().clone(),
                    action: "CreateVolume".into(),
                    token: token.clone(),
                    fingerprint: print.clone(),
                    result: volume.id.to_string(),
                    used_us: call.now_us(),
                });
            }
            Ok(Arc::new(volume.clone()))
        })
        .await?;
    call.cloud.flows.kick(Subject::Volume(made.id.to_string()));
    Ok(shown(&made))
}

fn flow(call: &Call<'_>, kind: VolumeFlowKind) -> VolumeFlow {
    VolumeFlow { kind, step: 0, undo: None, begun_us: call.now_us() }
}

/// DeleteVolume.
pub async fn delete(call: &Call<'_>, request: ec2::DeleteVolumeRequest) -> ApiResult<Done> {
    let id = volume_id(&request.volume_id)?;
    call.cloud
        .store
        .change(|txn| {
            let volume = call.volume(txn, &id)?;
            match volume.state {
                VolumeState::Available | VolumeState::Error => {}
                VolumeState::Deleting => return Ok(()),
                VolumeState::InUse => {
                    let holder = volume.attachment.as_ref().map_or("", |a| a.instance.as_str());
                    let message = format!("Volume {id} is currently attached to {holder}");
                    return Err(ApiError::new(Code::VolumeInUse, message));
                }
                state => {
                    let message = format!("Volume {id} is in state {state}, expected available");
                    return Err(ApiError::new(Code::IncorrectState, message));
                }
            }
            let mut volume = Volume::clone(&volume);
            volume.state = VolumeState::Deleting;
            volume.flow = Some(flow(call, VolumeFlowKind::Delete));
            txn.put(volume);
            Ok(())
        })
        .await?;
    call.cloud.flows.kick(Subject::Volume(id.to_string()));
    Ok(Done)
}

/// AttachVolume.
pub async fn attach(call: &Call<'_>, request: ec2::AttachVolumeRequest) -> ApiResult<ec2::VolumeAttachment> {
    let (id, to) = (volume_id(&request.volume_id)?, instance_id(&request.instance_id)?);
    if !is_device(&request.device) {
        let why = format!("{} is not a valid EBS device name.", request.device);
        return Err(ApiError::value("device", &request.device, why));
    }
    if request.ebs_card_index.is_some_and(|i| i != 0) {
        return Err(ApiError::unsupported("An EBS card index other than 0"));
    }
    let attached = call
        .cloud
        .store
        .change(|txn| {
            let volume = call.volume(txn, &id)?;
            let instance = call.instance(txn, &to)?;
            match volume.state {
                VolumeState::Available if volume.flow.is_none() => {}
                VolumeState::InUse => {
                    let message = format!("{id} is already attached to an instance");
                    return Err(ApiError::new(Code::VolumeInUse, message));
                }
                state => {
                    let message = format!("The volume '{id}' is not 'available' but '{state}'.");
                    return Err(ApiError::new(Code::IncorrectState, message));
                }
            }
            let running = match instance.state {
                InstanceStateName::Running => true,
                InstanceStateName::Stopped => false,
                state => {
                    let message = format!("Instance '{to}' is not 'running' or 'stopped' but '{state}'.");
                    return Err(ApiError::new(Code::IncorrectState, message));
                }
            };
            let mut taken = Vec::new();
            for held in &instance.volumes {
                taken.extend(txn.get::<Volume>(held.as_str()).and_then(|v| v.attachment.clone()).map(|a| a.device));
            }
            let bare = |d: &str| d.trim_start_matches("/dev/").to_owned();
            if taken.iter().any(|d| bare(d) == bare(&request.device)) {
                let why = format!("Attachment point {} is already in use", request.device);
                return Err(ApiError::value("device", &request.device, why));
            }
            if taken.len() >= ATTACHMENTS_MAX {
                let message = format!("Instance '{to}' has {ATTACHMENTS_MAX} volumes attached, which is the limit");
                return Err(ApiError::new(Code::AttachmentLimitExceeded, message));
            }
            let mut volume = Volume::clone(&volume);
            let attachment = Attachment {
                instance: to.clone(),
                device: request.device.clone(),
                state: if running { VolumeAttachmentState::Attaching } else { VolumeAttachmentState::Attached },
                attached_us: call.now_us(),
                delete_on_termination: false,
            };
            volume.state = VolumeState::InUse;
            volume.attachment = Some(attachment.clone());
            if running {
                volume.generation += 1;
                volume.flow = Some(flow(call, VolumeFlowKind::Attach));
            }
            let mut instance = Instance::clone(&instance);
            instance.volumes.push(id.clone());
            txn.put(volume);
            txn.put(instance);
            Ok(attachment)
        })
        .await?;
    call.cloud.flows.kick(Subject::Volume(id.to_string()));
    Ok(shown_attachment(&id, &attached))
}

/// DetachVolume.
pub async fn detach(call: &Call<'_>, request: ec2::DetachVolumeRequest) -> ApiResult<ec2::VolumeAttachment> {
    let id = volume_id(&request.volume_id)?;
    let from = request.instance_id.as_deref().map(instance_id).transpose()?;
    let force = request.force == Some(true);
    let attachment = call
        .cloud
        .store
        .change(|txn| {
            let volume = call.volume(txn, &id)?;
            let Some(attachment) = volume.attachment.clone() else {
                let message = format!("Volume '{id}' is in the '{}' state.", volume.state);
                return Err(ApiError::new(Code::IncorrectState, message));
            };
            let elsewhere = from.as_ref().is_some_and(|i| *i != attachment.instance)
                || request.device.as_ref().is_some_and(|d| *d != attachment.device);
            if elsewhere {
                let message = format!("The volume '{id}' is not attached to that instance as that device.");
                return Err(ApiError::new(Code::InvalidAttachmentNotFound, message));
            }
            let instance = call.instance(txn, &attachment.instance)?;
            let stopped = match instance.state {
                InstanceStateName::Running => false,
                InstanceStateName::Stopped => true,
                state => {
                    let message = format!("Instance '{}' is '{state}'; try again when it is not.", attachment.instance);
                    return Err(ApiError::new(Code::IncorrectState, message));
                }
            };
            if attachment.device == instance.root_device && !stopped {
                let message = format!("Unable to detach root volume '{id}' from instance '{}'", attachment.instance);
                return Err(ApiError::new(Code::OperationNotPermitted, message));
            }
            match attachment.state {
                VolumeAttachmentState::Attaching => {
                    let message = format!("Volume '{id}' is being attached");
                    return Err(ApiError::new(Code::IncorrectState, message));
                }
                VolumeAttachmentState::Detaching if !force => return Ok(attachment),
                _ => {}
            }
            let mut volume = Volume::clone(&volume);
            if stopped {
                // Nothing runs that could hold it.
                let mut instance = Instance::clone(&instance);
                instance.volumes.retain(|v| *v != id);
                txn.put(instance);
                volume.state = VolumeState::Available;
                volume.attachment = None;
                volume.flow = None;
            } else {
                let kind = VolumeFlowKind::Detach { force };
                let going = volume.flow.as_ref().is_some_and(|f| f.kind == kind);
                if !going {
                    volume.flow = Some(flow(call, kind));
                }
                if let Some(a) = volume.attachment.as_mut() {
                    a.state = VolumeAttachmentState::Detaching;
                }
            }
            txn.put(volume);
            Ok(Attachment { state: VolumeAttachmentState::Detaching, ..attachment })
        })
        .await?;
    call.cloud.flows.kick(Subject::Volume(id.to_string()));
    Ok(shown_attachment(&id, &attachment))
}

const FILTERS: &[&str] = &[
    "attachment.attach-time",
    "attachment.delete-on-termination",
    "attachment.device",
    "attachment.instance-id",
    "attachment.status",
    "availability-zone",
    "availability-zone-id",
    "create-time",
    "encrypted",
    "fast-restored",
    "multi-attach-enabled",
    "operator.managed",
    "operator.principal",
    "size",
    "snapshot-id",
    "source-volume-id",
    "status",
    "volume-id",
    "volume-type",
];

fn filter_values(v: &Volume, filter: &str) -> Vec<String> {
    let attachment = v.attachment.as_ref();
    one(match filter {
        "attachment.attach-time" => attachment.map(|a| Timestamp(a.attached_us).to_string()),
        "attachment.delete-on-termination" => attachment.map(|a| a.delete_on_termination.to_string()),
        "attachment.device" => attachment.map(|a| a.device.clone()),
        "attachment.instance-id" => attachment.map(|a| a.instance.to_string()),
        "attachment.status" => attachment.map(|a| a.state.to_string()),
        "availability-zone" => Some(v.zone.clone()),
        "availability-zone-id" => Some(zone_id(&v.zone)),
        "create-time" => Some(Timestamp(v.created_us).to_string()),
        "encrypted" | "fast-restored" | "multi-attach-enabled" | "operator.managed" => Some("false".to_owned()),
        "size" => Some(v.gib.to_string()),
        "status" => Some(v.state.to_string()),
        "volume-id" => Some(v.id.to_string()),
        "volume-type" => Some(v.volume_type.to_string()),
        _ => None,
    })
}

fn shown_attachment(volume: &VolumeId, a: &Attachment) -> ec2::VolumeAttachment {
    ec2::VolumeAttachment {
        volume_id: Some(volume.to_string()),
        instance_id: Some(a.instance.to_string()),
        device: Some(a.device.clone()),
        state: Some(a.state),
        attach_time: Some(Timestamp(a.attached_us)),
        delete_on_termination: Some(a.delete_on_termination),
        ..Default::default()
    }
}

fn shown(v: &Volume) -> ec2::Volume {
    ec2::Volume {
        volume_id: Some(v.id.to_string()),
        size: Some(v.gib),
        snapshot_id: Some(String::new()),
        availability_zone: Some(v.zone.clone()),
        availability_zone_id: Some(zone_id(&v.zone)),
        state: Some(v.state),
        create_time: Some(Timestamp(v.created_us)),
        attachments: v.attachment.iter().map(|a| shown_attachment(&v.id, a)).collect(),
        volume_type: Some(v.volume_type),
        iops: shown_iops(v),
        throughput: if v.volume_type == VolumeType::Gp3 { Some(v.throughput.unwrap_or(125)) } else { None },
        encrypted: Some(false),
        multi_attach_enabled: Some(false),
        tags: tag_set(&v.tags).unwrap_or_default(),
        ..Default::default()
    }
}

/// DescribeVolumes.
pub fn describe(call: &Call<'_>, request: ec2::DescribeVolumesRequest) -> ApiResult<ec2::DescribeVolumesResult> {
    let filters = Filters::new(request.filters, FILTERS, true)?;
    if !request.volume_ids.is_empty() && request.max_results.is_some() {
        let message = "The parameter volumeSet cannot be used with the parameter maxResults";
        return Err(ApiError::combination(message));
    }
    let there = |v: &Volume| v.account == *call.account() && v.state != VolumeState::Deleted;
    let mut volumes = if request.volume_ids.is_empty() {
        call.cloud.store.list::<Volume>()
    } else {
        let mut named = Vec::with_capacity(request.volume_ids.len());
        for text in &request.volume_ids {
            let id = volume_id(text)?;
            let volume = call.cloud.store.get::<Volume>(id.as_str()).filter(|v| there(v));
            named.push(volume.ok_or_else(|| no_volume(&id))?);
        }
        named
    };
    volumes.retain(|v| there(v) && filters.keep(&v.tags, |f| filter_values(v, f)));
    let key = |v: &Arc<Volume>| format!("{:020}{}", v.created_us, v.id);
    volumes.sort_by_cached_key(key);
    volumes.dedup_by(|a, b| a.id == b.id);
    let ask = Ask {
        listing: call.listing("DescribeVolumes"),
        max: request.max_results,
        range: 5..=1000,
        default: if request.volume_ids.is_empty() { 1000 } else { usize::MAX },
        token: request.next_token.as_deref(),
    };
    let (volumes, next_token) = page(volumes, &ask, key)?;
    Ok(ec2::DescribeVolumesResult { volumes: volumes.iter().map(|v| shown(v)).collect(), next_token })
}

/// The disks of an instance as DescribeInstances shows them.
pub fn instance_mappings(call: &Call<'_>, instance: &Instance) -> Vec<ec2::InstanceBlockDeviceMapping> {
    let held = instance.volumes.iter().filter_map(|v| call.cloud.store.get::<Volume>(v.as_str()));
    let mapping = |v: Arc<Volume>| {
        let a = v.attachment.as_ref().filter(|a| a.instance == instance.id)?;
        Some(ec2::InstanceBlockDeviceMapping {
            device_name: Some(a.device.clone()),
            ebs: Some(ec2::EbsInstanceBlockDevice {
                volume_id: Some(v.id.to_string()),
                // `busy` is known to volumes only.
                status: ec2::AttachmentStatus::parse(a.state.as_str()).or(Some(ec2::AttachmentStatus::Detaching)),
                attach_time: Some(Timestamp(a.attached_us)),
                delete_on_termination: Some(a.delete_on_termination),
                ..Default::default()
            }),
        })
    };
    held.filter_map(mapping).collect()
}

/// An attachment that a launch makes.
pub fn launched(instance: &InstanceId, device: &str, delete_on_termination: bool, now_us: u64) -> Attachment {
    Attachment {
        instance: instance.clone(),
        device: device.to_owned(),
        state: VolumeAttachmentState::Attaching,
        attached_us: now_us,
        delete_on_termination,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_are_those_of_ec2() {
        for good in ["/dev/sda1", "/dev/sdf", "sdf", "/dev/xvdba", "xvdf", "/dev/vdb"] {
            assert!(is_device(good), "{good}");
        }
        for bad in ["", "/dev/", "/dev/sd", "/dev/nvme0n1", "/dev/sdF", "/dev/sd1", "../sda", "/dev/sdabc", "/dev/sda/"]
        {
            assert!(!is_device(bad), "{bad}");
        }
    }
}
