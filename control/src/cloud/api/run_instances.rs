//! RunInstances: everything is checked, then instances, their disks and addresses are reserved in one commit.
//!
//! The hosts are chosen before the answer, so that a full zone is told at once; the rest is the run flow's. A call that
//! was cut off between the commit and the answer leaves instances that start: its ClientToken finds them.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use futures_util::StreamExt as _;
use karri_base::id::{ImageId, InstanceId, NetworkInterfaceId, ReservationId, VolumeId};

use crate::wire::generated::ec2;

use super::super::error::{ApiError, ApiResult, Code};
use super::super::flow::{First, InstanceFlow, InstanceFlowKind};
use super::super::instance_types;
use super::super::network;
use super::super::records::{
    Desired, DiskSpec, Image, ImageKind, ImageObject, Instance, KeyPair, Lease, Tags, Token, Volume,
};
use super::super::store::Txn;
use super::describe_instances::reservation;
use super::images::{check_holds, disk_specs, gib_for, own_of};
use super::volumes::{check_room, launched};
use super::{Call, earlier, fingerprint, specified_tags};

/// Instances in one call.
const COUNT_MAX: i32 = 1000;
/// AWS's bound, before base64.
const USER_DATA_MAX: usize = 16384;
/// How long the answer waits for hosts; the flow goes on afterwards.
const PLACE_WAIT: Duration = Duration::from_secs(3);

/// What does not depend on records.
struct Launch {
    reservation: ReservationId,
    ids: Vec<InstanceId>,
    min: usize,
    instance_type: String,
    user_data: Vec<u8>,
    instance_tags: Tags,
    volume_tags: Tags,
    client_token: Option<String>,
    print: String,
}

/// What is asked for that is not there yet is refused, not ignored.
fn refuse_unsupported(request: &ec2::RunInstancesRequest) -> ApiResult<()> {
    let none_of = [
        ("LaunchTemplate", request.launch_template.is_some()),
        ("InstanceMarketOptions", request.instance_market_options.is_some()),
        ("ElasticGpuSpecification", !request.elastic_gpu_specification.is_empty()),
        ("ElasticInferenceAccelerator", !request.elastic_inference_accelerators.is_empty()),
        ("LicenseSpecification", !request.license_specifications.is_empty()),
        ("NetworkInterface", !request.network_interfaces.is_empty()),
        ("SecondaryInterface", !request.secondary_interfaces.is_empty()),
        ("IamInstanceProfile", request.iam_instance_profile.is_some()),
        ("Ipv6Address", !request.ipv6_addresses.is_empty()),
        ("Ipv6AddressCount", request.ipv6_address_count.is_some_and(|n| n != 0)),
        ("PrivateIpAddress", request.private_ip_address.is_some()),
        ("CpuOptions", request.cpu_options.is_some()),
        ("Operator", request.operator.is_some()),
        ("EnclaveOptions", request.enclave_options.as_ref().is_some_and(|o| o.enabled == Some(true))),
        ("HibernationOptions", request.hibernation_options.as_ref().is_some_and(|o| o.configured == Some(true))),
    ];
    if let Some((name, _)) = none_of.iter().find(|(_, asked)| *asked) {
        return Err(ApiError::unsupported(format!("The parameter {name}")));
    }
    if let Some(subnet) = &request.subnet_id {
        let message = format!("The subnet ID '{subnet}' does not exist");
        return Err(ApiError::new(Code::InvalidSubnetIdNotFound, message));
    }
    let other = request.security_groups.iter().find(|g| *g != "default").or(request.security_group_ids.first());
    if let Some(group) = other {
        let message = format!("The security group '{group}' does not exist");
        return Err(ApiError::new(Code::InvalidGroupNotFound, message));
    }
    Ok(())
}

fn check_placement(call: &Call<'_>, placement: Option<&ec2::Placement>) -> ApiResult<()> {
    let Some(p) = placement else { return Ok(()) };
    if let Some(zone) = p.availability_zone.as_ref().filter(|z| **z != call.cloud.zone && !z.is_empty()) {
        let message = format!("Invalid availability zone: [{zone}]");
        return Err(ApiError::new(Code::InvalidParameterValue, message));
    }
    if p.tenancy.is_some_and(|t| t != ec2::Tenancy::Default) {
        return Err(ApiError::unsupported("A tenancy other than default"));
    }
    let grouped = p.group_name.as_ref().is_some_and(|g| !g.is_empty()) || p.group_id.is_some();
    if grouped || p.host_id.is_some() || p.host_resource_group_arn.is_some() || p.partition_number.is_some() {
        return Err(ApiError::unsupported("Placement in groups and on dedicated hosts"));
    }
    Ok(())
}

fn launch(call: &Call<'_>, request: &mut ec2::RunInstancesRequest) -> ApiResult<Launch> {
    let client_token = request.client_token.take().filter(|t| !t.is_empty());
    let print = fingerprint(request);
    let (min, max) = (request.min_count, request.max_count);
    if min < 1 {
        return Err(ApiError::value("minCount", min, "Expecting a value of at least 1."));
    }
    if max < min || max > COUNT_MAX {
        let why = format!("Expecting a value from minCount ({min}) to {COUNT_MAX}.");
        return Err(ApiError::value("maxCount", max, why));
    }
    refuse_unsupported(request)?;
    check_placement(call, request.placement.as_ref())?;
    let instance_type = request.instance_type.clone().unwrap_or_else(|| instance_types::DEFAULT.into());
    if instance_types::find(&instance_type).is_none() {
        let message = format!("Invalid value '{instance_type}' for InstanceType.");
        return Err(ApiError::new(Code::InvalidParameterValue, message));
    }
    let user_data: String = request.user_data.iter().flat_map(|d| d.chars()).filter(|c| !c.is_whitespace()).collect();
    let user_data = base64::engine::general_purpose::STANDARD
        .decode(user_data)
        .map_err(|_| ApiError::new(Code::InvalidUserDataMalformed, "Invalid BASE64 encoding of user data."))?;
    if user_data.len() > USER_DATA_MAX {
        let message = format!("User data is limited to {USER_DATA_MAX} bytes");
        return Err(ApiError::new(Code::InvalidParameterValue, message));
    }
    let allowed = [ec2::ResourceType::Instance, ec2::ResourceType::Volume];
    Ok(Launch {
        reservation: ReservationId::random(),
        ids: (0..max).map(|_| InstanceId::random()).collect(),
        min: min as usize,
        instance_type,
        user_data,
        instance_tags: specified_tags(&request.tag_specifications, allowed[0], &allowed)?,
        volume_tags: specified_tags(&request.tag_specifications, allowed[1], &allowed)?,
        client_token,
        print,
    })
}

/// The image's disks with the caller's changes, the root first and sized.
fn disks(image: &Image, mappings: &[ec2::BlockDeviceMapping]) -> ApiResult<Vec<DiskSpec>> {
    let mut disks = image.disks.clone();
    let dropped =
        |device: &str| mappings.iter().any(|m| m.no_device.is_some() && m.device_name.as_deref() == Some(device));
    if dropped(&image.root_device) {
        let message = format!("The root device {} cannot be left out", image.root_device);
        return Err(ApiError::new(Code::InvalidBlockDeviceMapping, message));
    }
    disks.retain(|d| !dropped(&d.device));
    for asked in disk_specs(mappings)? {
        match disks.iter_mut().find(|d| d.device == asked.device) {
            Some(disk) => *disk = DiskSpec { gib: asked.gib.or(disk.gib), ..asked },
            None => disks.push(asked),
        }
    }
    let least = gib_for(image.object.bytes);
    check_holds(&disks[0], least)?;
    disks[0].gib.get_or_insert(least);
    if let Some(sizeless) = disks.iter().find(|d| d.gib.is_none()) {
        let message = format!("The mapping of {} must have a volume size", sizeless.device);
        return Err(ApiError::new(Code::InvalidBlockDeviceMapping, message));
    }
    Ok(disks)
}

fn boot_object(
    call: &Call<'_>,
    txn: &mut Txn<'_>,
    id: Option<&String>,
    kind: ImageKind,
) -> ApiResult<Option<(String, ImageObject)>> {
    let Some(id) = id else { return Ok(None) };
    let image = own_of(call, txn, id, kind)?;
    Ok(Some((id.clone(), image.object.clone())))
}

/// RunInstances.
pub async fn run(call: &Call<'_>, mut request: ec2::RunInstancesRequest) -> ApiResult<ec2::Reservation> {
    let launch = launch(call, &mut request)?;
    let image_id = request.image_id.clone().ok_or_else(|| ApiError::missing("ImageId"))?;
    let (made, fresh) = call.cloud.store.change(|txn| reserve(call, txn, &request, &image_id, &launch)).await?;
    if !fresh {
        return reservation(call, &made, None);
    }
    let placed = place(call, &launch).await?;
    // As it is reserved: the flows may be faster than the answer.
    let answer = reservation(call, &made, Some(&launch.ids));
    placed.into_iter().for_each(|first| call.cloud.flows.begin(first));
    answer
}

/// Reserves all that was asked for, or finds what the same token reserved before.
fn reserve(
    call: &Call<'_>,
    txn: &mut Txn<'_>,
    request: &ec2::RunInstancesRequest,
    image_id: &str,
    launch: &Launch,
) -> ApiResult<(ReservationId, bool)> {
    let before = earlier(txn, call.account(), "RunInstances", launch.client_token.as_deref(), &launch.print)?;
    if let Some(made) = before.and_then(|id| id.parse().ok()) {
        return Ok((made, false));
    }
    let image = own_of(call, txn, image_id, ImageKind::Machine)?;
    let image_id: ImageId = image.id.parse().map_err(|_| super::images::no_image(image_id))?;
    let kernel = boot_object(call, txn, request.kernel_id.as_ref().or(image.kernel.as_ref()), ImageKind::Kernel)?;
    let ramdisk = boot_object(call, txn, request.ramdisk_id.as_ref().or(image.ramdisk.as_ref()), ImageKind::Ramdisk)?;
    let key = match &request.key_name {
        None => None,
        Some(name) => Some(txn.get::<KeyPair>(&KeyPair::key(call.account(), name)).ok_or_else(|| {
            ApiError::new(Code::InvalidKeyPairNotFound, format!("The key pair '{name}' does not exist"))
        })?),
    };
    let disks = disks(&image, &request.block_device_mappings)?;
    for disk in &disks {
        check_room(call, disk.gib.unwrap_or(1))?;
    }
    let addresses = network::allocate(call.cloud, txn, call.account(), launch.ids.len())?;
    let now_us = call.now_us();
    for (index, (id, address)) in launch.ids.iter().zip(addresses).enumerate() {
        let mut volumes = Vec::with_capacity(disks.len());
        for (at, disk) in disks.iter().enumerate() {
            let volume = Volume {
                id: VolumeId::random(),
                account: call.account().clone(),
                zone: call.cloud.zone.clone(),
                gib: disk.gib.unwrap_or(1),
                volume_type: disk.volume_type,
                iops: disk.iops,
                throughput: disk.throughput,
                source: (at == 0).then(|| image.object.clone()),
                state: ec2::VolumeState::Creating,
                attachment: Some(launched(id, &disk.device, disk.delete_on_termination, now_us)),
                generation: 1,
                socket: None,
                reason: None,
                client_token: None,
                created_us: now_us,
                deleted_us: None,
                flow: None,
                tags: launch.volume_tags.clone(),
            };
            volumes.push(volume.id.clone());
            txn.put(volume);
        }
        txn.put(Lease { account: call.account().clone(), address: address.clone(), instance: id.clone() });
        txn.put(Instance {
            id: id.clone(),
            account: call.account().clone(),
            reservation: launch.reservation.clone(),
            launch_index: index as i32,
            client_token: launch.client_token.clone(),
            image: image_id.clone(),
            architecture: image.architecture,
            root: image.object.clone(),
            kernel: kernel.clone(),
            ramdisk: ramdisk.clone(),
            instance_type: launch.instance_type.clone(),
            key_name: key.as_ref().map(|k| k.name.clone()),
            public_key: key.as_ref().map(|k| k.public_key.clone()),
            user_data: launch.user_data.clone(),
            zone: call.cloud.zone.clone(),
            root_device: image.root_device.clone(),
            shutdown_behavior: request.instance_initiated_shutdown_behavior.unwrap_or(ec2::ShutdownBehavior::Stop),
            api_termination_disabled: request.disable_api_termination == Some(true),
            api_stop_disabled: request.disable_api_stop == Some(true),
            ebs_optimized: request.ebs_optimized == Some(true),
            monitoring: request.monitoring.as_ref().is_some_and(|m| m.enabled),
            mac: network::mac(),
            private_ip: address,
            eni: NetworkInterfaceId::random(),
            volumes,
            desired: Desired::Running,
            state: ec2::InstanceStateName::Pending,
            generation: 1,
            node: None,
            reason: None,
            transition_reason: String::new(),
            launched_us: now_us,
            created_us: now_us,
            terminated_us: None,
            flow: Some(InstanceFlow { kind: InstanceFlowKind::Run, step: 0, undo: None, begun_us: now_us }),
            tags: launch.instance_tags.clone(),
        });
    }
    if let Some(token) = &launch.client_token {
        txn.put(Token {
            account: call.account().clone(),
            action: "RunInstances".into(),
            token: token.clone(),
            fingerprint: launch.print.clone(),
            result: launch.reservation.to_string(),
            used_us: now_us,
        });
    }
    Ok((launch.reservation.clone(), true))
}

/// Finds hosts and answers who is to be started and how far that is. Instances that found none are forgotten, all of them when fewer than the least number found one.
async fn place(call: &Call<'_>, launch: &Launch) -> ApiResult<Vec<First>> {
    let flows = &call.cloud.flows;
    let tries = futures_util::stream::iter(launch.ids.clone()).map(|id| async move {
        match tokio::time::timeout(PLACE_WAIT, flows.place_first(&id)).await {
            Ok(Ok(first)) => Ok(first),
            Ok(Err(reason)) => Err((id, reason)),
            Err(_) => Ok(First::of(id)),
        }
    });
    let (mut placed, mut refused) = (Vec::new(), Vec::new());
    let mut why = String::new();
    for tried in tries.buffer_unordered(64).collect::<Vec<_>>().await {
        match tried {
            Ok(first) => placed.push(first),
            Err((id, reason)) => {
                why = reason.message;
                refused.push(id);
            }
        }
    }
    let enough = placed.len() >= launch.min;
    let mut forget = refused;
    if !enough {
        for First { id, .. } in std::mem::take(&mut placed) {
            match call.cloud.cluster.release(&id, 1).await {
                Ok(()) => forget.push(id),
                // It keeps its place, so it must be kept too: its flow is undone in its own time.
                Err(_) => flows.undo(&id, "Server.InsufficientInstanceCapacity", &why).await?,
            }
        }
    }
    if !forget.is_empty() {
        forget_instances(call, &forget, (!enough).then_some(launch)).await?;
    }
    if enough {
        return Ok(placed);
    }
    tracing::warn!(request_id = %call.request_id, account = %call.account(), error = %why, "no room for instances");
    Err(ApiError::new(
        Code::InsufficientInstanceCapacity,
        format!(
            "There is no room in zone {} for {} instances of type {}: {why}",
            call.cloud.zone, launch.min, launch.instance_type
        ),
    ))
}

async fn forget_instances(call: &Call<'_>, ids: &[InstanceId], whole: Option<&Launch>) -> ApiResult<()> {
    call.cloud
        .store
        .change(|txn| {
            for id in ids {
                let Some(instance): Option<Arc<Instance>> = txn.get(id.as_str()) else { continue };
                for volume in &instance.volumes {
                    txn.del::<Volume>(volume.as_str());
                }
                txn.del::<Lease>(&Lease::key(&instance.account, &instance.private_ip));
                txn.del::<Instance>(id.as_str());
            }
            if let Some(token) = whole.and_then(|l| l.client_token.as_ref()) {
                txn.del::<Token>(&Token::key(call.account(), "RunInstances", token));
            }
            Ok(())
        })
        .await
}
