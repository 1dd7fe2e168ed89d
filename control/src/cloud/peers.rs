//! Whom the cloud calls: the zone's cluster, its storage, and Walrus. Traits, so that flows are tested against fakes
//! that fail at every step; the real ones are gRPC with mutual TLS and S3.
//!
//! Each call is bounded in time. A call that was cut off may still happen at the peer: that is why all of them are
//! idempotent and why commands carry generations.

use std::time::Duration;

use async_trait::async_trait;
use karri_base::aws::policy::Policy;
use karri_base::id::{AccountId, InstanceId, VolumeId};
use karri_base::proto;
use karri_base::proto::cluster_client::ClusterClient;
use karri_base::proto::storage_client::StorageClient;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::records::ImageObject;

/// A peer's answer.
pub type Answer<T> = Result<T, Status>;

/// One availability zone.
#[async_trait]
pub trait Cluster: Send + Sync + 'static {
    /// Picks a node; the choice is remembered.
    async fn place(&self, request: proto::PlaceRequest) -> Answer<proto::Placement>;
    /// Forgets the choice.
    async fn release(&self, instance: &InstanceId, generation: u64) -> Answer<()>;
    /// Starts a VM, or finds it running.
    async fn start(&self, spec: proto::InstanceSpec) -> Answer<proto::Incarnation>;
    /// Stops a VM; answers when it is gone.
    async fn stop(&self, request: proto::StopInstanceRequest) -> Answer<proto::Incarnation>;
    /// Resets a VM.
    async fn reboot(&self, instance: &InstanceId, generation: u64) -> Answer<proto::Incarnation>;
    /// Plugs a disk in.
    async fn attach(&self, request: proto::AttachVolumeRequest) -> Answer<proto::Incarnation>;
    /// Pulls a disk out.
    async fn detach(&self, request: proto::DetachVolumeRequest) -> Answer<proto::Incarnation>;
    /// The last of a VM's console.
    async fn console(&self, instance: &InstanceId, generation: u64) -> Answer<proto::Console>;
    /// The zone as its nodes last reported it.
    async fn report(&self) -> Answer<proto::ClusterReport>;
}

/// The zone's volumes.
#[async_trait]
pub trait Storage: Send + Sync + 'static {
    /// Makes a volume.
    async fn create(&self, request: proto::CreateVolumeRequest) -> Answer<proto::Volume>;
    /// Deletes a volume; none there is no error.
    async fn delete(&self, volume: &VolumeId) -> Answer<()>;
    /// All volumes, and how large one may be.
    async fn list(&self) -> Answer<proto::Volumes>;
    /// Opens a volume on a vhost-user socket.
    async fn export(&self, volume: &VolumeId, generation: u64) -> Answer<proto::Export>;
    /// Ends an export.
    async fn unexport(&self, volume: &VolumeId, generation: u64) -> Answer<()>;
}

/// Why an image's object cannot be registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// No such bucket or object.
    #[error("there is no such object")]
    NotFound,
    /// The bucket belongs to another account.
    #[error("the bucket belongs to another account")]
    Foreign,
    /// Walrus did not answer as it should.
    #[error("Walrus did not answer: {0}")]
    Unavailable(String),
}

/// Image objects in Walrus.
#[async_trait]
pub trait Objects: Send + Sync + 'static {
    /// The object's size and ETag, when its bucket belongs to `owner`.
    async fn head(&self, owner: &AccountId, bucket: &str, key: &str) -> Result<ImageObject, ObjectError>;
    /// The bucket's policy, if it has one, when it belongs to `owner`.
    async fn policy(&self, owner: &AccountId, bucket: &str) -> Result<Option<Policy>, ObjectError>;
}

const QUICK: Duration = Duration::from_secs(10);
/// Making a volume may copy an image from Walrus; booting may fetch a kernel.
const SLOW: Duration = Duration::from_secs(120);

fn within<T>(limit: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

/// Waits for an answer no longer than `limit`, whatever the peer makes of the deadline it was sent.
async fn bounded<T>(limit: Duration, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Answer<T> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!("no answer in {} s", limit.as_secs()))),
    }
}

/// The cluster over gRPC.
#[derive(Clone)]
pub struct GrpcCluster(ClusterClient<Channel>);

impl GrpcCluster {
    /// Over this channel.
    pub fn new(channel: Channel) -> Self {
        // A zone's report carries every node; 10,000 instances are a few MiB.
        Self(ClusterClient::new(channel).max_decoding_message_size(64 << 20))
    }
}

fn named(instance: &InstanceId, generation: u64) -> proto::InstanceRequest {
    proto::InstanceRequest { instance_id: instance.to_string(), generation }
}

#[async_trait]
impl Cluster for GrpcCluster {
    async fn place(&self, request: proto::PlaceRequest) -> Answer<proto::Placement> {
        bounded(QUICK, self.0.clone().place(within(QUICK, request))).await
    }
    async fn release(&self, instance: &InstanceId, generation: u64) -> Answer<()> {
        bounded(QUICK, self.0.clone().release(within(QUICK, named(instance, generation)))).await.map(|_| ())
    }
    async fn start(&self, spec: proto::InstanceSpec) -> Answer<proto::Incarnation> {
        bounded(SLOW, self.0.clone().start_instance(within(SLOW, spec))).await
    }
    async fn stop(&self, request: proto::StopInstanceRequest) -> Answer<proto::Incarnation> {
        let limit = SLOW + Duration::from_secs(request.grace_secs.into());
        bounded(limit, self.0.clone().stop_instance(within(limit, request))).await
    }
    async fn reboot(&self, instance: &InstanceId, generation: u64) -> Answer<proto::Incarnation> {
        bounded(SLOW, self.0.clone().reboot_instance(within(SLOW, named(instance, generation)))).await
    }
    async fn attach(&self, request: proto::AttachVolumeRequest) -> Answer<proto::Incarnation> {
        bounded(SLOW, self.0.clone().attach_volume(within(SLOW, request))).await
    }
    async fn detach(&self, request: proto::DetachVolumeRequest) -> Answer<proto::Incarnation> {
        bounded(SLOW, self.0.clone().detach_volume(within(SLOW, request))).await
    }
    async fn console(&self, instance: &InstanceId, generation: u64) -> Answer<proto::Console> {
        bounded(QUICK, self.0.clone().get_console(within(QUICK, named(instance, generation)))).await
    }
    async fn report(&self) -> Answer<proto::ClusterReport> {
        bounded(QUICK, self.0.clone().report(within(QUICK, proto::ReportRequest {}))).await
    }
}

/// Storage over gRPC.
#[derive(Clone)]
pub struct GrpcStorage(StorageClient<Channel>);

impl GrpcStorage {
    /// Over this channel.
    pub fn new(channel: Channel) -> Self {
        Self(StorageClient::new(channel).max_decoding_message_size(64 << 20))
    }
}

#[async_trait]
impl Storage for GrpcStorage {
    async fn create(&self, request: proto::CreateVolumeRequest) -> Answer<proto::Volume> {
        bounded(SLOW, self.0.clone().create_volume(within(SLOW, request))).await
    }
    async fn delete(&self, volume: &VolumeId) -> Answer<()> {
        let request = proto::VolumeRequest { volume_id: volume.to_string() };
        bounded(SLOW, self.0.clone().delete_volume(within(SLOW, request))).await.map(|_| ())
    }
    async fn list(&self) -> Answer<proto::Volumes> {
        let request = proto::DescribeVolumesRequest { volume_ids: Vec::new() };
        bounded(QUICK, self.0.clone().describe_volumes(within(QUICK, request))).await
    }
    async fn export(&self, volume: &VolumeId, generation: u64) -> Answer<proto::Export> {
        let request = proto::ExportVolumeRequest { volume_id: volume.to_string(), generation, read_only: false };
        bounded(QUICK, self.0.clone().export_volume(within(QUICK, request))).await
    }
    async fn unexport(&self, volume: &VolumeId, generation: u64) -> Answer<()> {
        let request = proto::UnexportVolumeRequest { volume_id: volume.to_string(), generation };
        bounded(QUICK, self.0.clone().unexport_volume(within(QUICK, request))).await.map(|_| ())
    }
}

/// What stands in for a peer that the configuration does not name: every call says so.
#[derive(Debug, Clone, Copy)]
pub struct Absent(
    /// Its role.
    pub &'static str,
);

impl Absent {
    fn say<T>(self) -> Answer<T> {
        Err(Status::unavailable(format!("no {} is configured under [peers]", self.0)))
    }
}

#[async_trait]
impl Cluster for Absent {
    async fn place(&self, _: proto::PlaceRequest) -> Answer<proto::Placement> {
        self.say()
    }
    async fn release(&self, _: &InstanceId, _: u64) -> Answer<()> {
        self.say()
    }
    async fn start(&self, _: proto::InstanceSpec) -> Answer<proto::Incarnation> {
        self.say()
    }
    async fn stop(&self, _: proto::StopInstanceRequest) -> Answer<proto::Incarnation> {
        self.say()
    }
    async fn reboot(&self, _: &InstanceId, _: u64) -> Answer<proto::Incarnation> {
        self.say()
    }
    async fn attach(&self, _: proto::AttachVolumeRequest) -> Answer<proto::Incarnation> {
        self.say()
    }
    async fn detach(&self, _: proto::DetachVolumeRequest) -> Answer<proto::Incarnation> {
        self.say()
    }
    async fn console(&self, _: &InstanceId, _: u64) -> Answer<proto::Console> {
        self.say()
    }
    async fn report(&self) -> Answer<proto::ClusterReport> {
        self.say()
    }
}

#[async_trait]
impl Storage for Absent {
    async fn create(&self, _: proto::CreateVolumeRequest) -> Answer<proto::Volume> {
        self.say()
    }
    async fn delete(&self, _: &VolumeId) -> Answer<()> {
        self.say()
    }
    async fn list(&self) -> Answer<proto::Volumes> {
        self.say()
    }
    async fn export(&self, _: &VolumeId, _: u64) -> Answer<proto::Export> {
        self.say()
    }
    async fn unexport(&self, _: &VolumeId, _: u64) -> Answer<()> {
        self.say()
    }
}
