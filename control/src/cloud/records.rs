//! What the cloud keeps: one record per resource, its desired and observed state, and the flow that is at work on it.
//!
//! A record's key is its kind's prefix and its id; its value is JSON `{"v": VERSION, "r": {...}}`. Fields may be added
//! with `#[serde(default)]`; anything else takes a new version, which readers of this version refuse by name.
//!
//! An attachment belongs to the volume's record; the instance lists its volumes' ids. Each running VM of an instance is
//! an incarnation, numbered by the instance's `generation`; each export of a volume is numbered by the volume's.

use std::collections::BTreeMap;

use karri_base::id::{AccountId, ImageId, InstanceId, KeyPairId, NetworkInterfaceId, ReservationId, VolumeId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::wire::generated::ec2::{
    ArchitectureValues, InstanceStateName, ShutdownBehavior, VolumeAttachmentState, VolumeState, VolumeType,
};

use super::flow::{InstanceFlow, VolumeFlow};

/// A stored kind.
pub trait Record: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// First part of the key, with its slash.
    const PREFIX: &'static str;
    /// Of the encoding.
    const VERSION: u32 = 1;
    /// The rest of the key.
    fn id(&self) -> String;
}

/// A user's tags.
pub type Tags = BTreeMap<String, String>;

/// Why something is in the state that it is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Such as `Client.UserInitiatedShutdown`.
    pub code: String,
    /// A sentence.
    pub message: String,
}

impl Reason {
    /// A reason in EC2's form, the message led by the code.
    pub fn new(code: &str, what: impl std::fmt::Display) -> Self {
        Self { code: code.to_owned(), message: format!("{code}: {what}") }
    }
}

/// An access key as version 1 kept it, in plain text; taken over by `crate::identity` at the next start.
#[derive(Clone, Serialize, Deserialize)]
pub struct AccessKey {
    /// `AKIA...`.
    pub access_key_id: String,
    /// Never logged.
    pub secret: String,
    /// Whose.
    pub account: AccountId,
    /// The principal.
    pub arn: String,
    /// False when it is switched off.
    pub active: bool,
}

impl Record for AccessKey {
    const PREFIX: &'static str = "access-key/";
    fn id(&self) -> String {
        self.access_key_id.clone()
    }
}

/// A key pair; the private half is never kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyPair {
    /// Whose.
    pub account: AccountId,
    /// Unique in the account.
    pub name: String,
    /// `key-...`.
    pub id: KeyPairId,
    /// EC2's fingerprint, which depends on how the pair came to be.
    pub fingerprint: String,
    /// `rsa` or `ed25519`.
    pub key_type: String,
    /// One OpenSSH line.
    pub public_key: String,
    /// Microseconds since 1970.
    pub created_us: u64,
    /// Tags.
    pub tags: Tags,
}

impl Record for KeyPair {
    const PREFIX: &'static str = "key-pair/";
    fn id(&self) -> String {
        Self::key(&self.account, &self.name)
    }
}

impl KeyPair {
    /// The id under which a name is found.
    pub fn key(account: &AccountId, name: &str) -> String {
        format!("{account}/{name}")
    }
}

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageKind {
    /// A root disk (`ami-`).
    Machine,
    /// A kernel (`aki-`).
    Kernel,
    /// A ramdisk (`ari-`).
    Ramdisk,
}

/// An object in Walrus, as it was when it was registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageObject {
    /// Bucket.
    pub bucket: String,
    /// Key.
    pub key: String,
    /// The object must still have it when it is read.
    pub etag: String,
    /// Its size.
    pub bytes: u64,
}

/// A disk that an image or a launch asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// Such as `/dev/sdb`.
    pub device: String,
    /// GiB; the root disk may leave it to the image.
    pub gib: Option<i32>,
    /// Volume type.
    pub volume_type: VolumeType,
    /// Goes with the instance.
    pub delete_on_termination: bool,
    /// Provisioned IOPS, kept and shown.
    pub iops: Option<i32>,
    /// MiB/s, kept and shown.
    pub throughput: Option<i32>,
}

/// A machine image, kernel or ramdisk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// `ami-`, `aki-` or `ari-`.
    pub id: String,
    /// Whose.
    pub account: AccountId,
    /// Unique in the account.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// What it is.
    pub kind: ImageKind,
    /// Where it is.
    pub object: ImageObject,
    /// Of its programs.
    pub architecture: ArchitectureValues,
    /// `aki-...`: direct kernel boot.
    pub kernel: Option<String>,
    /// `ari-...`.
    pub ramdisk: Option<String>,
    /// Such as `/dev/sda1`.
    pub root_device: String,
    /// Disks of an instance of it; the root among them.
    pub disks: Vec<DiskSpec>,
    /// Kept and shown.
    pub ena_support: Option<bool>,
    /// Microseconds since 1970.
    pub created_us: u64,
    /// Tags.
    pub tags: Tags,
}

impl Record for Image {
    const PREFIX: &'static str = "image/";
    fn id(&self) -> String {
        self.id.clone()
    }
}

/// Holds an image's name for its account.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageName {
    /// Whose.
    pub account: AccountId,
    /// The name.
    pub name: String,
    /// Who has it.
    pub image: String,
}

impl Record for ImageName {
    const PREFIX: &'static str = "image-name/";
    fn id(&self) -> String {
        Self::key(&self.account, &self.name)
    }
}

impl ImageName {
    /// The id under which a name is found.
    pub fn key(account: &AccountId, name: &str) -> String {
        format!("{account}/{name}")
    }
}

/// What an instance is meant to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Desired {
    /// Running.
    Running,
    /// Stopped.
    Stopped,
    /// Gone.
    Terminated,
}

/// An instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Instance {
    /// `i-...`.
    pub id: InstanceId,
    /// Whose.
    pub account: AccountId,
    /// The call that made it.
    pub reservation: ReservationId,
    /// Its place in that call.
    pub launch_index: i32,
    /// Of that call.
    pub client_token: Option<String>,
    /// Its image, which may be deregistered since.
    pub image: ImageId,
    /// The image's architecture.
    pub architecture: ArchitectureValues,
    /// The root disk's source.
    pub root: ImageObject,
    /// Kernel id and object.
    pub kernel: Option<(String, ImageObject)>,
    /// Ramdisk id and object.
    pub ramdisk: Option<(String, ImageObject)>,
    /// Such as `t3.nano`.
    pub instance_type: String,
    /// Name of the key pair.
    pub key_name: Option<String>,
    /// Its OpenSSH line.
    pub public_key: Option<String>,
    /// Decoded.
    pub user_data: Vec<u8>,
    /// Availability zone.
    pub zone: String,
    /// Such as `/dev/sda1`.
    pub root_device: String,
    /// What a shutdown from inside does.
    pub shutdown_behavior: ShutdownBehavior,
    /// TerminateInstances is refused.
    pub api_termination_disabled: bool,
    /// StopInstances is refused.
    pub api_stop_disabled: bool,
    /// Kept and shown.
    pub ebs_optimized: bool,
    /// Kept and shown.
    pub monitoring: bool,
    /// `10.0.x.y`.
    pub private_ip: String,
    /// Of its interface.
    pub mac: String,
    /// Its interface.
    pub eni: NetworkInterfaceId,
    /// Its volumes, the root first.
    pub volumes: Vec<VolumeId>,
    /// What the user asked for.
    pub desired: Desired,
    /// What EC2 shows.
    pub state: InstanceStateName,
    /// Number of the incarnation; rises with every start and on termination.
    pub generation: u64,
    /// The host that has it.
    pub node: Option<String>,
    /// EC2's StateReason.
    pub reason: Option<Reason>,
    /// EC2's `reason`, such as `User initiated (2026-01-31 12:00:00 GMT)`.
    pub transition_reason: String,
    /// Microseconds since 1970, of the first launch or the last start.
    pub launched_us: u64,
    /// When it was made; orders descriptions.
    pub created_us: u64,
    /// When it became terminated.
    pub terminated_us: Option<u64>,
    /// The work in hand.
    pub flow: Option<InstanceFlow>,
    /// Tags.
    pub tags: Tags,
}

impl Record for Instance {
    const PREFIX: &'static str = "instance/";
    fn id(&self) -> String {
        self.id.to_string()
    }
}

/// A volume's bond with an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// To whom.
    pub instance: InstanceId,
    /// As the user named it.
    pub device: String,
    /// What EC2 shows.
    pub state: VolumeAttachmentState,
    /// Microseconds since 1970.
    pub attached_us: u64,
    /// Goes with the instance.
    pub delete_on_termination: bool,
}

/// A volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Volume {
    /// `vol-...`.
    pub id: VolumeId,
    /// Whose.
    pub account: AccountId,
    /// Availability zone.
    pub zone: String,
    /// Size.
    pub gib: i32,
    /// Kept and shown.
    pub volume_type: VolumeType,
    /// Kept and shown.
    pub iops: Option<i32>,
    /// Kept and shown.
    pub throughput: Option<i32>,
    /// What it is filled from.
    pub source: Option<ImageObject>,
    /// What EC2 shows; `deleted` ones are hidden and kept for a while, so that late arrivals are recognised.
    pub state: VolumeState,
    /// To whom it is attached.
    pub attachment: Option<Attachment>,
    /// Number of the export; rises with every one.
    pub generation: u64,
    /// The vhost-user socket of the current export.
    pub socket: Option<String>,
    /// Why it is in error, or why the last flow failed.
    pub reason: Option<Reason>,
    /// Of the call that made it.
    pub client_token: Option<String>,
    /// Microseconds since 1970.
    pub created_us: u64,
    /// When it was deleted.
    pub deleted_us: Option<u64>,
    /// The work in hand.
    pub flow: Option<VolumeFlow>,
    /// Tags.
    pub tags: Tags,
}

impl Record for Volume {
    const PREFIX: &'static str = "volume/";
    fn id(&self) -> String {
        self.id.to_string()
    }
}

/// A ClientToken that was used.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Token {
    /// Whose.
    pub account: AccountId,
    /// Of which action.
    pub action: String,
    /// The token.
    pub token: String,
    /// Hash of the request's parameters.
    pub fingerprint: String,
    /// What was made: a reservation or a volume.
    pub result: String,
    /// Microseconds since 1970.
    pub used_us: u64,
}

impl Record for Token {
    const PREFIX: &'static str = "token/";
    fn id(&self) -> String {
        Self::key(&self.account, &self.action, &self.token)
    }
}

impl Token {
    /// The id under which a token is found.
    pub fn key(account: &AccountId, action: &str, token: &str) -> String {
        format!("{account}/{action}/{token}")
    }
}

/// A private address in use.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lease {
    /// Whose network.
    pub account: AccountId,
    /// `10.0.x.y`.
    pub address: String,
    /// Who has it.
    pub instance: InstanceId,
}

impl Record for Lease {
    const PREFIX: &'static str = "lease/";
    fn id(&self) -> String {
        Self::key(&self.account, &self.address)
    }
}

impl Lease {
    /// The id under which an address is found.
    pub fn key(account: &AccountId, address: &str) -> String {
        format!("{account}/{address}")
    }
}
