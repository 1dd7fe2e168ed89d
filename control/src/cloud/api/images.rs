//! Images: objects in Walrus that instances are made of.
//!
//! `ImageLocation` is `bucket/key` of a raw disk image. As in Eucalyptus, kernels and ramdisks are images of their own:
//! an object registered with `KernelId=true` becomes an `aki-`, with `RamdiskId=true` an `ari-`; a machine image that
//! names both boots its kernel directly, one that names none boots its root disk by firmware. The bucket must belong to
//! the caller, and the object is remembered with its ETag: what replaces it later is not booted.

use std::sync::Arc;

use karri_base::id::{ImageId, KernelId, RamdiskId};
use karri_base::units::GIB;

use crate::identity::authorize::Caller;
use crate::wire::Timestamp;
use crate::wire::generated::ec2;

use super::super::Cloud;
use super::super::error::{ApiError, ApiResult, Code};
use super::super::peers::ObjectError;
use super::super::records::{DiskSpec, Image, ImageKind, ImageName, ImageObject};
use super::super::store::Txn;
use super::filter::{Filters, one};
use super::page::{Ask, page};
use super::volumes::{check_size, is_device};
use super::{Call, specified_tags, tag_set};

/// The root device of an image that names none.
const ROOT_DEVICE: &str = "/dev/sda1";

/// `InvalidAMIID.NotFound`.
pub fn no_image(id: &str) -> ApiError {
    ApiError::new(Code::InvalidAmiIdNotFound, format!("The image id '[{id}]' does not exist"))
}

/// Checks an image id's form: `ami-`, `aki-` or `ari-`.
pub fn image_id(id: &str) -> ApiResult<()> {
    let fine = id.parse::<ImageId>().is_ok() || id.parse::<KernelId>().is_ok() || id.parse::<RamdiskId>().is_ok();
    if fine {
        return Ok(());
    }
    Err(ApiError::new(Code::InvalidAmiIdMalformed, format!("Invalid id: \"{id}\" (expecting \"ami-...\")")))
}

/// The caller's image of any kind.
pub fn own(call: &Call<'_>, txn: &mut Txn<'_>, id: &str) -> ApiResult<Arc<Image>> {
    image_id(id)?;
    txn.get::<Image>(id).filter(|i| i.account == *call.account()).ok_or_else(|| no_image(id))
}

/// The caller's image of this kind.
pub fn own_of(call: &Call<'_>, txn: &mut Txn<'_>, id: &str, kind: ImageKind) -> ApiResult<Arc<Image>> {
    own(call, txn, id).and_then(|image| if image.kind == kind { Ok(image) } else { Err(no_image(id)) })
}

fn split_location(location: &str) -> ApiResult<(&str, &str)> {
    let parts = location.trim_start_matches('/').split_once('/');
    parts.filter(|(bucket, key)| !bucket.is_empty() && !key.is_empty()).ok_or_else(|| {
        ApiError::value("imageLocation", location, "Expected 'bucket/key' of a raw image in this cloud's object store.")
    })
}

/// May the caller read the object that an image is to be made of? By his own policies and by that of the bucket, as
/// Walrus would judge it.
///
/// # Errors
/// `AccessDenied`; `Unavailable`.
pub async fn may_read(cloud: &Cloud, caller: &Caller, location: &str, request_id: &str) -> ApiResult<()> {
    let location = location.trim_start_matches('/');
    let bucket = location.split('/').next().unwrap_or_default();
    let policy = match cloud.objects.policy(caller.account(), bucket).await {
        Ok(policy) => policy,
        // What is not there, or another's, is told by who looks for the object.
        Err(ObjectError::NotFound | ObjectError::Foreign) => None,
        Err(ObjectError::Unavailable(why)) => return Err(unavailable(request_id, &why)),
    };
    caller.may_by("s3:GetObject", &format!("arn:aws:s3:::{location}"), &caller.context(), policy.as_ref())
}

fn unavailable(request_id: &str, why: &str) -> ApiError {
    tracing::error!(request_id, error = why, "Walrus could not be asked about an image");
    ApiError::new(Code::Unavailable, "The object store did not answer; try again")
}

async fn find_object(call: &Call<'_>, location: &str) -> ApiResult<ImageObject> {
    let (bucket, key) = split_location(location)?;
    call.cloud.objects.head(call.account(), bucket, key).await.map_err(|e| match e {
        ObjectError::NotFound => {
            ApiError::new(Code::InvalidManifest, format!("The object '{location}' does not exist"))
        }
        ObjectError::Foreign => {
            ApiError::new(Code::AuthFailure, format!("Not authorized for image location '{location}'"))
        }
        ObjectError::Unavailable(why) => unavailable(&call.request_id, &why),
    })
}

/// Disks out of block device mappings.
///
/// # Errors
/// A device that is none or comes twice, a snapshot, encryption, a size that no volume can have.
pub fn disk_specs(mappings: &[ec2::BlockDeviceMapping]) -> ApiResult<Vec<DiskSpec>> {
    let mut disks: Vec<DiskSpec> = Vec::new();
    for mapping in mappings.iter().filter(|m| m.no_device.is_none()) {
        let device = mapping.device_name.clone().ok_or_else(|| ApiError::missing("BlockDeviceMapping.DeviceName"))?;
        if !is_device(&device) {
            let message = format!("Invalid device name {device}");
            return Err(ApiError::new(Code::InvalidBlockDeviceMapping, message));
        }
        if disks.iter().any(|d| d.device == device) {
            let message = format!("The device '{device}' is used in more than one block-device mapping");
            return Err(ApiError::new(Code::InvalidBlockDeviceMapping, message));
        }
        if mapping.virtual_name.is_some() {
            return Err(ApiError::unsupported("Instance store (BlockDeviceMapping.VirtualName)"));
        }
        let ebs = mapping.ebs.clone().unwrap_or_default();
        if let Some(snapshot) = ebs.snapshot_id {
            let message = format!("The snapshot '{snapshot}' does not exist.");
            return Err(ApiError::new(Code::InvalidSnapshotNotFound, message));
        }
        if ebs.encrypted == Some(true) || ebs.kms_key_id.is_some() {
            return Err(ApiError::unsupported("Encryption of volumes"));
        }
        let volume_type = ebs.volume_type.unwrap_or(ec2::VolumeType::Gp2);
        if let Some(gib) = ebs.volume_size {
            check_size(gib, volume_type)?;
        }
        disks.push(DiskSpec {
            device,
            gib: ebs.volume_size,
            volume_type,
            delete_on_termination: ebs.delete_on_termination.unwrap_or(true),
            iops: ebs.iops,
            throughput: ebs.throughput,
        });
    }
    Ok(disks)
}

/// GiB that hold so many bytes; at least one.
pub fn gib_for(bytes: u64) -> i32 {
    i32::try_from(bytes.div_ceil(GIB).max(1)).unwrap_or(i32::MAX)
}

/// RegisterImage.
pub async fn register(call: &Call<'_>, request: ec2::RegisterImageRequest) -> ApiResult<ec2::RegisterImageResult> {
    let name_fits = (3..=128).contains(&request.name.chars().count())
        && request.name.chars().all(|c| c.is_ascii_alphanumeric() || " ()[]./-'@_".contains(c));
    if !name_fits {
        let message = "AMI names must be between 3 and 128 characters long, and may contain letters, numbers, '(', ')', \
                       '.', '-', '/', '_', '[', ']', '@', single quotes and spaces";
        return Err(ApiError::new(Code::InvalidAmiNameMalformed, message));
    }
    if request.description.as_deref().is_some_and(|d| d.chars().count() > 255) {
        return Err(ApiError::value("description", "...", "It must not be longer than 255 characters."));
    }
    if request.virtualization_type.as_deref().is_some_and(|v| v != "hvm") {
        return Err(ApiError::value(
            "virtualizationType",
            request.virtualization_type.unwrap_or_default(),
            "Expected 'hvm'.",
        ));
    }
    let architecture = request.architecture.unwrap_or(ec2::ArchitectureValues::X8664);
    if architecture != ec2::ArchitectureValues::X8664 {
        return Err(ApiError::unsupported(format!("Architecture {architecture}")));
    }
    if !request.billing_products.is_empty() || request.uefi_data.is_some() || request.tpm_support.is_some() {
        return Err(ApiError::unsupported("BillingProduct, UefiData and TpmSupport"));
    }
    let location = request.image_location.as_deref().ok_or_else(|| ApiError::missing("imageLocation"))?;
    let (kind, kernel, ramdisk) = match (request.kernel_id.as_deref(), request.ramdisk_id.as_deref()) {
        (Some("true"), None) => (ImageKind::Kernel, None, None),
        (None, Some("true")) => (ImageKind::Ramdisk, None, None),
        (None, Some(_)) => return Err(ApiError::combination("A ramdisk needs a kernel")),
        (kernel, ramdisk) => (ImageKind::Machine, kernel, ramdisk),
    };
    let mut disks = disk_specs(&request.block_device_mappings)?;
    if kind != ImageKind::Machine && !disks.is_empty() {
        return Err(ApiError::combination("Kernels and ramdisks have no block device mappings"));
    }
    let root_device = request.root_device_name.clone().unwrap_or_else(|| ROOT_DEVICE.into());
    if !is_device(&root_device) {
        return Err(ApiError::value("rootDeviceName", root_device, "It is not a device name such as /dev/sda1."));
    }
    let tags = specified_tags(&request.tag_specifications, ec2::ResourceType::Image, &[ec2::ResourceType::Image])?;
    let object = find_object(call, location).await?;
    if object.bytes == 0 {
        return Err(ApiError::new(Code::InvalidManifest, format!("The object '{location}' is empty")));
    }
    if kind == ImageKind::Machine {
        let least = gib_for(object.bytes);
        match disks.iter().position(|d| d.device == root_device) {
            Some(at) => {
                check_holds(&disks[at], least)?;
                disks[..=at].rotate_right(1);
            }
            None => disks.insert(0, root_spec(&root_device)),
        }
        if let Some(sizeless) = disks[1..].iter().find(|d| d.gib.is_none()) {
            let message = format!("The mapping of {} must have a volume size", sizeless.device);
            return Err(ApiError::new(Code::InvalidBlockDeviceMapping, message));
        }
    }
    let bits = rand::random();
    let id = match kind {
        ImageKind::Machine => ImageId::from_bits(bits).to_string(),
        ImageKind::Kernel => KernelId::from_bits(bits).to_string(),
        ImageKind::Ramdisk => RamdiskId::from_bits(bits).to_string(),
    };
    let image = Image {
        id: id.clone(),
        account: call.account().clone(),
        name: request.name.clone(),
        description: request.description.clone(),
        kind,
        object,
        architecture,
        kernel: kernel.map(String::from),
        ramdisk: ramdisk.map(String::from),
        root_device,
        disks,
        ena_support: request.ena_support,
        created_us: call.now_us(),
        tags,
    };
    let name = ImageName { account: image.account.clone(), name: image.name.clone(), image: id.clone() };
    call.cloud
        .store
        .change(|txn| {
            if let Some(kernel) = &image.kernel {
                own_of(call, txn, kernel, ImageKind::Kernel)?;
            }
            if let Some(ramdisk) = &image.ramdisk {
                own_of(call, txn, ramdisk, ImageKind::Ramdisk)?;
            }
            if let Some(taken) = txn.get::<ImageName>(&ImageName::key(&image.account, &image.name)) {
                let message = format!("AMI name {} is already in use by AMI {}", image.name, taken.image);
                return Err(ApiError::new(Code::InvalidAmiNameDuplicate, message));
            }
            txn.put(name.clone());
            txn.put(image.clone());
            Ok(())
        })
        .await?;
    Ok(ec2::RegisterImageResult { image_id: Some(id) })
}

fn root_spec(device: &str) -> DiskSpec {
    DiskSpec {
        device: device.to_owned(),
        gib: None,
        volume_type: ec2::VolumeType::Gp2,
        delete_on_termination: true,
        iops: None,
        throughput: None,
    }
}

/// Refuses a root disk that is smaller than its image.
pub fn check_holds(root: &DiskSpec, least: i32) -> ApiResult<()> {
    match root.gib.filter(|gib| *gib < least) {
        None => Ok(()),
        Some(gib) => Err(ApiError::new(
            Code::InvalidBlockDeviceMapping,
            format!("Volume of size {gib}GB is smaller than the image, expect size >= {least}GB"),
        )),
    }
}

/// DeregisterImage. Instances of it go on, and start again after a stop: their disks are their own.
pub async fn deregister(
    call: &Call<'_>,
    request: ec2::DeregisterImageRequest,
) -> ApiResult<ec2::DeregisterImageResult> {
    call.cloud
        .store
        .change(|txn| {
            let image = own(call, txn, &request.image_id)?;
            txn.del::<ImageName>(&ImageName::key(&image.account, &image.name));
            txn.del::<Image>(&image.id);
            Ok::<_, ApiError>(())
        })
        .await?;
    Ok(ec2::DeregisterImageResult { r#return: Some(true), ..Default::default() })
}

const FILTERS: &[&str] = &[
    "architecture",
    "block-device-mapping.delete-on-termination",
    "block-device-mapping.device-name",
    "block-device-mapping.encrypted",
    "block-device-mapping.snapshot-id",
    "block-device-mapping.volume-size",
    "block-device-mapping.volume-type",
    "creation-date",
    "description",
    "ena-support",
    "hypervisor",
    "image-allowed",
    "image-id",
    "image-type",
    "is-public",
    "kernel-id",
    "manifest-location",
    "name",
    "owner-alias",
    "owner-id",
    "platform",
    "product-code",
    "product-code.type",
    "ramdisk-id",
    "root-device-name",
    "root-device-type",
    "source-image-id",
    "source-image-region",
    "source-instance-id",
    "state",
    "state-reason-code",
    "state-reason-message",
    "sriov-net-support",
    "virtualization-type",
];

fn filter_values(image: &Image, filter: &str) -> Vec<String> {
    let disks = |f: fn(&DiskSpec) -> String| image.disks.iter().map(f).collect::<Vec<_>>();
    one(match filter {
        "block-device-mapping.delete-on-termination" => return disks(|d| d.delete_on_termination.to_string()),
        "block-device-mapping.device-name" => return disks(|d| d.device.clone()),
        "block-device-mapping.encrypted" => return disks(|_| "false".to_owned()),
        "block-device-mapping.volume-size" => {
            return image.disks.iter().map(|d| size_of(image, d).to_string()).collect();
        }
        "block-device-mapping.volume-type" => return disks(|d| d.volume_type.to_string()),
        "architecture" => Some(image.architecture.to_string()),
        "creation-date" => Some(Timestamp(image.created_us).to_string()),
        "description" => image.description.clone(),
        "ena-support" => Some(image.ena_support.unwrap_or(false).to_string()),
        "hypervisor" => Some("xen".to_owned()),
        "image-allowed" => Some("true".to_owned()),
        "image-id" => Some(image.id.clone()),
        "image-type" => Some(image_type(image.kind).to_string()),
        "is-public" => Some("false".to_owned()),
        "kernel-id" => image.kernel.clone(),
        "manifest-location" => Some(location(image)),
        "name" => Some(image.name.clone()),
        "owner-id" => Some(image.account.to_string()),
        "ramdisk-id" => image.ramdisk.clone(),
        "root-device-name" => Some(image.root_device.clone()),
        "root-device-type" => Some("ebs".to_owned()),
        "state" => Some("available".to_owned()),
        "virtualization-type" => Some("hvm".to_owned()),
        _ => None,
    })
}

fn location(image: &Image) -> String {
    format!("{}/{}", image.object.bucket, image.object.key)
}

fn image_type(kind: ImageKind) -> ec2::ImageTypeValues {
    match kind {
        ImageKind::Machine => ec2::ImageTypeValues::Machine,
        ImageKind::Kernel => ec2::ImageTypeValues::Kernel,
        ImageKind::Ramdisk => ec2::ImageTypeValues::Ramdisk,
    }
}

fn size_of(image: &Image, disk: &DiskSpec) -> i32 {
    disk.gib.unwrap_or_else(|| gib_for(image.object.bytes))
}

fn shown(image: &Image) -> ec2::Image {
    let machine = image.kind == ImageKind::Machine;
    let mapping = |d: &DiskSpec| ec2::BlockDeviceMapping {
        device_name: Some(d.device.clone()),
        ebs: Some(ec2::EbsBlockDevice {
            delete_on_termination: Some(d.delete_on_termination),
            volume_size: Some(size_of(image, d)),
            volume_type: Some(d.volume_type),
            iops: d.iops,
            throughput: d.throughput,
            encrypted: Some(false),
            ..Default::default()
        }),
        ..Default::default()
    };
    ec2::Image {
        image_id: Some(image.id.clone()),
        image_location: Some(location(image)),
        state: Some(ec2::ImageState::Available),
        owner_id: Some(image.account.to_string()),
        public: Some(false),
        architecture: Some(image.architecture),
        image_type: Some(image_type(image.kind)),
        kernel_id: image.kernel.clone(),
        ramdisk_id: image.ramdisk.clone(),
        name: Some(image.name.clone()),
        description: image.description.clone(),
        root_device_type: machine.then_some(ec2::DeviceType::Ebs),
        root_device_name: machine.then(|| image.root_device.clone()),
        block_device_mappings: Some(image.disks.iter().map(mapping).collect()),
        virtualization_type: Some(ec2::VirtualizationType::Hvm),
        hypervisor: Some(ec2::HypervisorType::Xen),
        ena_support: image.ena_support,
        creation_date: Some(Timestamp(image.created_us).to_string()),
        platform_details: Some("Linux/UNIX".into()),
        usage_operation: Some("RunInstances".into()),
        tags: tag_set(&image.tags),
        ..Default::default()
    }
}

/// DescribeImages. Images are seen by their account.
pub fn describe(call: &Call<'_>, request: ec2::DescribeImagesRequest) -> ApiResult<ec2::DescribeImagesResult> {
    let filters = Filters::new(request.filters, FILTERS, true)?;
    let mine = call.account();
    for id in &request.image_ids {
        image_id(id)?;
        let found = call.cloud.store.get::<Image>(id).filter(|i| i.account == *mine);
        found.ok_or_else(|| no_image(id))?;
    }
    let owner = |o: &String| o == "self" || o == mine.as_str();
    let wanted = |i: &Image| {
        i.account == *mine
            && (request.image_ids.is_empty() || request.image_ids.contains(&i.id))
            && (request.owners.is_empty() || request.owners.iter().any(owner))
            && (request.executable_users.is_empty() || request.executable_users.iter().any(owner))
            && filters.keep(&i.tags, |f| filter_values(i, f))
    };
    let mut images = call.cloud.store.list::<Image>();
    images.retain(|i| wanted(i));
    let key = |i: &Arc<Image>| format!("{:020}{}", i.created_us, i.id);
    images.sort_by_key(key);
    let ask = Ask {
        listing: call.listing("DescribeImages"),
        max: request.max_results,
        range: 1..=1000,
        default: usize::MAX,
        token: request.next_token.as_deref(),
    };
    let (images, next_token) = page(images, &ask, key)?;
    Ok(ec2::DescribeImagesResult { images: images.iter().map(|i| shown(i)).collect(), next_token })
}
