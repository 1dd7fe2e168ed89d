//! The cloud as a whole against fake peers: semantics of the actions, and what its records say afterwards.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use karri_base::aws::keys::Key;
use karri_base::clock::{Clock, ManualClock, UnixMicros};
use karri_base::config::{AccessKey, Credentials};
use karri_base::role::Running as _;
use karri_meta::MetaStore;
use karri_meta::memory::MemoryStore;
use prometheus_client::registry::Registry;

use crate::wire::Tree;

use super::api::{Call, ec2_action};
use super::error::{ApiError, ApiResult, Code};
use super::fakes::{FakeCluster, FakeObjects, FakeStorage, Faults};
use super::peers::Cluster;
use super::records::{Instance, Volume};
use super::{CloudRole, Parts, flow, watch};

pub(crate) const NOW: u64 = 1_767_225_600_000_000;

/// A started cloud and everything it talks to.
pub(crate) struct World {
    pub faults: Arc<Faults>,
    /// Not asked where the world was made with another.
    pub cluster: FakeCluster,
    peer: Arc<dyn Cluster>,
    pub storage: FakeStorage,
    pub meta: Arc<dyn MetaStore>,
    pub memory: Option<Arc<MemoryStore>>,
    pub clock: Arc<dyn Clock>,
    pub role: CloudRole,
    pub watch_settings: watch::Settings,
    pub restarts: usize,
}

fn credentials() -> Credentials {
    let key = |id: &str, secret: &str| AccessKey { access_key_id: id.into(), secret_access_key: secret.into() };
    Credentials {
        account_id: "123456789012".parse().unwrap(),
        admin: key("AKIAADMINADMINADMIN1", "adminsecretadminsecretadminsecretadminse"),
        system: key("AKIASYSTEMSYSTEMSYS1", "systemsecretsystemsecretsystemsecretsyst"),
    }
}

/// The reconciler looks only when a test calls it.
const NEVER: Duration = Duration::from_secs(1_000_000);

impl World {
    pub async fn new() -> Self {
        Self::at(Arc::new(ManualClock::at(UnixMicros(NOW))), "127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn at(clock: Arc<dyn Clock>, api: SocketAddr) -> Self {
        let memory = Arc::new(MemoryStore::new());
        Self::on(memory.clone(), Some(memory), clock, api, None).await
    }

    /// On records whose commits may be cut in two by a crash.
    pub async fn seeded(seed: u64) -> Self {
        let clock = Arc::new(ManualClock::at(UnixMicros(NOW)));
        let memory = Arc::new(MemoryStore::seeded(seed));
        Self::on(memory.clone(), Some(memory), clock, "127.0.0.1:0".parse().unwrap(), None).await
    }

    /// With this cluster.
    pub async fn of(peer: Arc<dyn Cluster>) -> Self {
        let memory = Arc::new(MemoryStore::new());
        let clock = Arc::new(karri_base::clock::SystemClock);
        Self::on(memory.clone(), Some(memory), clock, "127.0.0.1:0".parse().unwrap(), Some(peer)).await
    }

    async fn on(
        meta: Arc<dyn MetaStore>,
        memory: Option<Arc<MemoryStore>>,
        clock: Arc<dyn Clock>,
        api: SocketAddr,
        peer: Option<Arc<dyn Cluster>>,
    ) -> Self {
        let faults = Arc::new(Faults::default());
        let (cluster, storage) = (FakeCluster::new(faults.clone()), FakeStorage::new(faults.clone()));
        let peer = peer.unwrap_or_else(|| Arc::new(cluster.clone()));
        let watch_settings = watch::Settings { every: NEVER, storage_every: NEVER, ..Default::default() };
        let role = boot(&peer, &storage, &meta, &clock, watch_settings, api).await;
        Self { faults, cluster, peer, storage, meta, memory, clock, role, watch_settings, restarts: 0 }
    }

    /// Cuts the cloud off where it stands and starts another on the records that it left.
    pub async fn restart(&mut self) {
        self.restarts += 1;
        if let Some(memory) = &mut self.memory {
            *memory = Arc::new(memory.crash());
            self.meta = memory.clone();
        }
        self.role.shutdown().await;
        let api = "127.0.0.1:0".parse().unwrap();
        self.role = boot(&self.peer, &self.storage, &self.meta, &self.clock, self.watch_settings, api).await;
    }

    /// Asks as the admin of this account.
    pub async fn ask_as(&self, account: &str, action: &str, params: &[(&str, &str)]) -> ApiResult<String> {
        let key = Key {
            access_key_id: "AKIA".into(),
            secret: String::new(),
            account: account.parse().unwrap(),
            arn: format!("arn:aws:iam::{account}:user/admin"),
        };
        let cloud = self.role.cloud().clone();
        let call = Call {
            cloud: &cloud,
            key: Arc::new(key),
            request_id: "r-1".into(),
            version: None,
            host: "cloud:8773".into(),
        };
        let tree = Tree::new(params.iter().copied())?;
        ec2_action(&call, action, &tree).await
    }

    pub async fn ask(&self, action: &str, params: &[(&str, &str)]) -> ApiResult<String> {
        self.ask_as("123456789012", action, params).await
    }

    pub async fn refused(&self, action: &str, params: &[(&str, &str)]) -> Code {
        match self.ask(action, params).await {
            Ok(xml) => panic!("{action} {params:?} was answered: {xml}"),
            Err(ApiError { code, .. }) => code,
        }
    }

    /// Waits until the records are so.
    pub async fn until(&self, what: &str, so: impl Fn(&super::Cloud) -> bool) {
        let mut changes = self.role.cloud().store.changes();
        let waiting = async {
            while !so(self.role.cloud()) {
                changes.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(Duration::from_secs(20), waiting).await.is_err() {
            let instances = self.role.cloud().store.list::<Instance>();
            let volumes = self.role.cloud().store.list::<Volume>();
            panic!("not in time: {what}\n{instances:#?}\n{volumes:#?}\n{:?}", self.faults.log());
        }
    }

    pub fn instance(&self, id: &str) -> Arc<Instance> {
        self.role.cloud().store.get(id).unwrap()
    }

    pub fn volume(&self, id: &str) -> Arc<Volume> {
        self.role.cloud().store.get(id).unwrap()
    }

    pub async fn until_instance(&self, id: &str, state: &str) {
        self.until(&format!("{id} {state}"), |c| {
            c.store.get::<Instance>(id).is_some_and(|i| i.state.as_str() == state && i.flow.is_none())
        })
        .await;
    }

    pub async fn until_volume(&self, id: &str, state: &str) {
        self.until(&format!("{id} {state}"), |c| {
            c.store.get::<Volume>(id).is_some_and(|v| v.state.as_str() == state && v.flow.is_none())
        })
        .await;
    }

    /// Registers `mine/root` under this name.
    pub async fn image(&self, name: &str) -> String {
        let xml = self.ask("RegisterImage", &[("Name", name), ("ImageLocation", "mine/root")]).await.unwrap();
        text(&xml, "imageId")
    }

    /// Runs one instance to `running`.
    pub async fn instance_of(&self, image: &str) -> String {
        let params = [("ImageId", image), ("MinCount", "1"), ("MaxCount", "1")];
        let id = text(&self.ask("RunInstances", &params).await.unwrap(), "instanceId");
        self.until_instance(&id, "running").await;
        id
    }

    /// Makes one volume to `available`.
    pub async fn blank_volume(&self) -> String {
        let params = [("AvailabilityZone", "us-east-1a"), ("Size", "2")];
        let id = text(&self.ask("CreateVolume", &params).await.unwrap(), "volumeId");
        self.until_volume(&id, "available").await;
        id
    }
}

async fn boot(
    cluster: &Arc<dyn Cluster>,
    storage: &FakeStorage,
    meta: &Arc<dyn MetaStore>,
    clock: &Arc<dyn Clock>,
    watch_settings: watch::Settings,
    api: SocketAddr,
) -> CloudRole {
    let parts = Parts {
        region: "us-east-1".into(),
        zone: "us-east-1a".into(),
        credentials: credentials(),
        identity_key: [7; 32],
        oidc: "/nonexistent".into(),
        trail: None,
        meta: meta.clone(),
        cluster: cluster.clone(),
        storage: Arc::new(storage.clone()),
        objects: Arc::new(FakeObjects),
        clock: clock.clone(),
        flow_settings: flow::Settings {
            retry_min: Duration::from_millis(1),
            retry_max: Duration::from_millis(5),
            ..Default::default()
        },
        watch_settings,
    };
    CloudRole::start(parts, api, &mut Registry::default()).await.unwrap()
}

/// The texts of all elements of this name.
pub(crate) fn texts(xml: &str, name: &str) -> Vec<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    xml.split(&open).skip(1).map(|rest| rest.split(&close).next().unwrap().to_owned()).collect()
}

/// The text of the first element of this name.
pub(crate) fn text(xml: &str, name: &str) -> String {
    texts(xml, name).into_iter().next().unwrap_or_else(|| panic!("no {name} in {xml}"))
}

#[tokio::test]
async fn an_instance_lives_from_launch_to_termination() {
    let w = World::new().await;
    let image = w.image("first").await;
    let params = [
        ("ImageId", image.as_str()),
        ("MinCount", "2"),
        ("MaxCount", "2"),
        ("UserData", "aGk="),
        ("TagSpecification.1.ResourceType", "instance"),
        ("TagSpecification.1.Tag.1.Key", "Name"),
        ("TagSpecification.1.Tag.1.Value", "web"),
        ("BlockDeviceMapping.1.DeviceName", "/dev/sdb"),
        ("BlockDeviceMapping.1.Ebs.VolumeSize", "3"),
        ("BlockDeviceMapping.1.Ebs.DeleteOnTermination", "false"),
    ];
    let xml = w.ask("RunInstances", &params).await.unwrap();
    let ids = texts(&xml, "instanceId");
    assert_eq!((ids.len(), text(&xml, "name")), (2, "pending".into()));
    for id in &ids {
        w.until_instance(id, "running").await;
        let vm = w.cluster.vm(id).unwrap();
        assert_eq!((vm.spec.vcpus, vm.spec.memory_bytes, &vm.spec.user_data[..]), (2, 512 << 20, &b"hi"[..]));
        assert_eq!(vm.spec.disks.iter().map(|d| d.device.as_str()).collect::<Vec<_>>(), ["/dev/sda1", "/dev/sdb"]);
        assert!(vm.spec.disks.iter().all(|d| d.vhost_user_socket.ends_with(".1")));
    }
    let id = &ids[0];
    let [root, data] = &w.instance(id).volumes[..] else { panic!("two disks") };
    let (root, data) = (root.to_string(), data.to_string());
    assert_eq!(w.volume(&root).gib, 2, "1.5 GiB round up");
    let described = w.ask("DescribeInstances", &[("Filter.1.Name", "tag:Name"), ("Filter.1.Value.1", "w?b")]).await;
    let described = described.unwrap();
    assert_eq!(texts(&described, "instanceId").len(), 2);
    assert!(described.contains(&format!("<volumeId>{root}</volumeId>")), "{described}");

    w.ask("RebootInstances", &[("InstanceId.1", id)]).await.unwrap();
    w.until("rebooted", |_| w.cluster.vm(id).is_some_and(|v| v.reboots == 1)).await;
    w.until_instance(id, "running").await;

    let xml = w.ask("StopInstances", &[("InstanceId.1", id)]).await.unwrap();
    assert_eq!(texts(&xml, "name"), ["stopping", "running"]);
    w.until_instance(id, "stopped").await;
    assert_eq!(w.volume(&root).state.as_str(), "in-use");
    assert!(w.storage.volumes()[&root].export.is_none());
    assert!(!w.cluster.lock().placed.contains_key(id));
    let described = w.ask("DescribeInstances", &[("InstanceId.1", id)]).await.unwrap();
    assert!(described.contains("Client.UserInitiatedShutdown"));
    w.ask("StartInstances", &[("InstanceId.1", id)]).await.unwrap();
    w.until_instance(id, "running").await;
    assert_eq!((w.cluster.vm(id).unwrap().generation, w.volume(&root).generation), (2, 2));

    let xml = w.ask("TerminateInstances", &[("InstanceId.1", id)]).await.unwrap();
    assert_eq!(texts(&xml, "name"), ["shutting-down", "running"]);
    w.until_instance(id, "terminated").await;
    assert!(!w.storage.volumes().contains_key(&root));
    assert_eq!(w.volume(&data).state.as_str(), "available");
    assert_eq!(w.refused("StartInstances", &[("InstanceId.1", id)]).await, Code::IncorrectInstanceState);
    assert_eq!(w.refused("DescribeVolumes", &[("VolumeId.1", &root)]).await, Code::InvalidVolumeNotFound);
    w.ask("TerminateInstances", &[("InstanceId.1", id)]).await.unwrap();
}

#[tokio::test]
async fn a_volume_moves_from_one_instance_to_another() {
    let w = World::new().await;
    let image = w.image("first").await;
    let (a, b, v) = (w.instance_of(&image).await, w.instance_of(&image).await, w.blank_volume().await);
    let attach = |to: &str, device: &str| {
        let params = [("VolumeId", v.clone()), ("InstanceId", to.to_owned()), ("Device", device.to_owned())];
        let w = &w;
        async move { w.ask("AttachVolume", &params.each_ref().map(|(k, v)| (*k, v.as_str()))).await }
    };
    assert_eq!(text(&attach(&a, "/dev/sdf").await.unwrap(), "status"), "attaching");
    w.until_volume(&v, "in-use").await;
    assert!(w.cluster.vm(&a).unwrap().disks.iter().any(|d| d.volume_id == v));
    assert_eq!(attach(&b, "/dev/sdf").await.unwrap_err().code, Code::VolumeInUse);
    assert_eq!(w.refused("DeleteVolume", &[("VolumeId", &v)]).await, Code::VolumeInUse);
    let xml = w.ask("DetachVolume", &[("VolumeId", &v)]).await.unwrap();
    assert_eq!(text(&xml, "status"), "detaching");
    w.until_volume(&v, "available").await;
    assert!(w.storage.volumes()[&v].export.is_none());
    assert_eq!(attach(&b, "/dev/sda1").await.unwrap_err().code, Code::InvalidParameterValue);
    attach(&b, "/dev/sdf").await.unwrap();
    w.until_volume(&v, "in-use").await;
    assert_eq!(w.volume(&v).generation, 2);

    // It stays with a stopped instance, and goes its own way when that is terminated.
    w.ask("StopInstances", &[("InstanceId.1", &b), ("Force", "true")]).await.unwrap();
    w.until_instance(&b, "stopped").await;
    assert_eq!(w.volume(&v).state.as_str(), "in-use");
    w.ask("TerminateInstances", &[("InstanceId.1", &b)]).await.unwrap();
    w.until_instance(&b, "terminated").await;
    w.until_volume(&v, "available").await;
    w.ask("DeleteVolume", &[("VolumeId", &v)]).await.unwrap();
    w.until("deleted", |_| !w.storage.volumes().contains_key(&v)).await;
    let root = w.instance(&a).volumes[0].to_string();
    assert_eq!(w.refused("DetachVolume", &[("VolumeId", &root)]).await, Code::OperationNotPermitted);
}

#[tokio::test]
async fn a_full_zone_is_told_at_once_and_leaves_nothing() {
    let w = World::new().await;
    let image = w.image("first").await;
    w.cluster.lock().room = Some(3);
    let run = |min: &'static str, max: &'static str| {
        let (w, image) = (&w, image.clone());
        async move {
            let token = format!("{min}-{max}");
            let params = [("ImageId", image.as_str()), ("MinCount", min), ("MaxCount", max), ("ClientToken", &token)];
            w.ask("RunInstances", &params).await
        }
    };
    assert_eq!(run("4", "4").await.unwrap_err().code, Code::InsufficientInstanceCapacity);
    assert_eq!(w.role.cloud().store.list::<Instance>().len(), 0);
    assert_eq!(w.role.cloud().store.list::<Volume>().len(), 0);
    assert!(w.cluster.lock().placed.is_empty());
    let xml = run("2", "5").await.unwrap();
    assert_eq!(texts(&xml, "instanceId").len(), 3);
    assert_eq!(texts(&run("2", "5").await.unwrap(), "instanceId").len(), 3, "the token finds them");
    w.cluster.lock().room = None;
    assert_eq!(texts(&run("4", "4").await.unwrap(), "instanceId").len(), 4, "a failed call's token is free");
}

#[tokio::test]
async fn client_tokens_make_calls_idempotent() {
    let w = World::new().await;
    let image = w.image("first").await;
    let params = |max| [("ImageId", image.as_str()), ("MinCount", "1"), ("MaxCount", max), ("ClientToken", "t")];
    let first = texts(&w.ask("RunInstances", &params("2")).await.unwrap(), "instanceId");
    let again = texts(&w.ask("RunInstances", &params("2")).await.unwrap(), "instanceId");
    assert_eq!(first, again);
    assert_eq!(w.refused("RunInstances", &params("1")).await, Code::IdempotentParameterMismatch);
    let params = |size| [("AvailabilityZone", "us-east-1a"), ("Size", size), ("ClientToken", "t")];
    let first = text(&w.ask("CreateVolume", &params("1")).await.unwrap(), "volumeId");
    assert_eq!(text(&w.ask("CreateVolume", &params("1")).await.unwrap(), "volumeId"), first);
    assert_eq!(w.refused("CreateVolume", &params("2")).await, Code::IdempotentParameterMismatch);
    // Another account's token is another token.
    assert!(w.ask_as("210987654321", "CreateVolume", &params("2")).await.is_ok());
}

#[tokio::test]
async fn what_is_wrong_has_awss_code() {
    let w = World::new().await;
    let image = w.image("first").await;
    let id = w.instance_of(&image).await;
    let v = w.blank_volume().await;
    let run = |extra: &[(&'static str, &'static str)]| {
        let mut params = vec![("MinCount", "1"), ("MaxCount", "1")];
        params.extend_from_slice(extra);
        params
    };
    let with_image = |extra: (&'static str, &'static str)| {
        let mut params: Vec<(&str, &str)> = vec![("ImageId", image.as_str()), ("MinCount", "1"), ("MaxCount", "1")];
        params.push(extra);
        params
    };
    for (action, params, code) in [
        ("RunInstances", run(&[]), Code::MissingParameter),
        ("RunInstances", run(&[("ImageId", "ami-00000000")]), Code::InvalidAmiIdNotFound),
        ("RunInstances", run(&[("ImageId", "ami-xyz")]), Code::InvalidAmiIdMalformed),
        ("RunInstances", with_image(("KeyName", "none")), Code::InvalidKeyPairNotFound),
        ("RunInstances", with_image(("InstanceType", "z9.huge")), Code::InvalidParameterValue),
        ("RunInstances", with_image(("UserData", "***")), Code::InvalidUserDataMalformed),
        ("RunInstances", with_image(("SubnetId", "subnet-1")), Code::InvalidSubnetIdNotFound),
        ("RunInstances", with_image(("SecurityGroupId.1", "sg-1")), Code::InvalidGroupNotFound),
        ("RunInstances", with_image(("LaunchTemplate.LaunchTemplateName", "x")), Code::UnsupportedOperation),
        ("RunInstances", with_image(("Placement.AvailabilityZone", "mars-1a")), Code::InvalidParameterValue),
        ("RunInstances", with_image(("DryRun", "true")), Code::DryRunOperation),
        ("RunInstances", with_image(("Typo", "x")), Code::UnknownParameter),
        ("DescribeInstances", vec![("InstanceId.1", "i-00000000")], Code::InvalidInstanceIdNotFound),
        ("DescribeInstances", vec![("InstanceId.1", "x")], Code::InvalidInstanceIdMalformed),
        ("DescribeInstances", vec![("Filter.1.Name", "x"), ("Filter.1.Value.1", "y")], Code::InvalidParameterValue),
        ("DescribeInstances", vec![("MaxResults", "1")], Code::InvalidParameterValue),
        ("DescribeInstances", vec![("NextToken", "x")], Code::InvalidNextToken),
        ("StopInstances", vec![], Code::MissingParameter),
        ("StartInstances", vec![("InstanceId.1", "vol-00000000")], Code::InvalidInstanceIdMalformed),
        ("CreateVolume", vec![("AvailabilityZone", "us-east-1a")], Code::MissingParameter),
        ("CreateVolume", vec![("Size", "1")], Code::MissingParameter),
        ("CreateVolume", vec![("AvailabilityZone", "mars"), ("Size", "1")], Code::InvalidZoneNotFound),
        ("CreateVolume", vec![("AvailabilityZone", "us-east-1a"), ("Size", "0")], Code::InvalidParameterValue),
        (
            "CreateVolume",
            vec![("AvailabilityZone", "us-east-1a"), ("SnapshotId", "snap-1")],
            Code::InvalidSnapshotNotFound,
        ),
        ("DeleteVolume", vec![("VolumeId", "vol-00000000")], Code::InvalidVolumeNotFound),
        ("DeleteVolume", vec![("VolumeId", "nope")], Code::InvalidVolumeIdMalformed),
        ("DetachVolume", vec![("VolumeId", v.as_str())], Code::IncorrectState),
        ("AttachVolume", vec![("VolumeId", &v), ("InstanceId", &id), ("Device", "nvme")], Code::InvalidParameterValue),
        ("RegisterImage", vec![("Name", "first"), ("ImageLocation", "mine/root")], Code::InvalidAmiNameDuplicate),
        ("RegisterImage", vec![("Name", "x"), ("ImageLocation", "mine/root")], Code::InvalidAmiNameMalformed),
        ("RegisterImage", vec![("Name", "other"), ("ImageLocation", "mine/missing")], Code::InvalidManifest),
        ("RegisterImage", vec![("Name", "other"), ("ImageLocation", "mine/empty")], Code::InvalidManifest),
        ("RegisterImage", vec![("Name", "other"), ("ImageLocation", "theirs/root")], Code::AuthFailure),
        ("RegisterImage", vec![("Name", "other"), ("ImageLocation", "down/root")], Code::Unavailable),
        ("RegisterImage", vec![("Name", "other"), ("ImageLocation", "x")], Code::InvalidParameterValue),
        ("DeregisterImage", vec![("ImageId", "ami-00000000")], Code::InvalidAmiIdNotFound),
        ("DescribeKeyPairs", vec![("KeyName.1", "none")], Code::InvalidKeyPairNotFound),
        ("ImportKeyPair", vec![("KeyName", "k"), ("PublicKeyMaterial", "aGVsbG8=")], Code::InvalidKeyFormat),
        ("CreateTags", vec![("ResourceId.1", &id), ("Tag.1.Key", "aws:x")], Code::InvalidParameterValue),
        ("CreateTags", vec![("ResourceId.1", "zz-1"), ("Tag.1.Key", "x")], Code::InvalidId),
        ("DescribeInstanceTypes", vec![("InstanceType.1", "z9.huge")], Code::InvalidInstanceType),
        ("DescribeRegions", vec![("RegionName.1", "mars-1")], Code::InvalidParameterValue),
        ("RunInstance", vec![], Code::InvalidAction),
        ("CreateVpc", vec![], Code::UnsupportedOperation),
    ] {
        assert_eq!(w.refused(action, &params).await, code, "{action} {params:?}");
    }
    // Someone else's is not there.
    let other = "210987654321";
    let theirs = |e: ApiResult<String>| e.unwrap_err().code;
    let e = w.ask_as(other, "TerminateInstances", &[("InstanceId.1", &id)]).await;
    assert_eq!(theirs(e), Code::InvalidInstanceIdNotFound);
    assert_eq!(theirs(w.ask_as(other, "DeleteVolume", &[("VolumeId", &v)]).await), Code::InvalidVolumeNotFound);
    assert_eq!(theirs(w.ask_as(other, "DeregisterImage", &[("ImageId", &image)]).await), Code::InvalidAmiIdNotFound);
    assert!(texts(&w.ask_as(other, "DescribeInstances", &[]).await.unwrap(), "instanceId").is_empty());
}

#[tokio::test]
async fn kernels_and_ramdisks_are_images_and_reach_the_node() {
    let w = World::new().await;
    let register = |name: &'static str, extra: Vec<(&'static str, String)>| {
        let w = &w;
        async move {
            let mut params = vec![("Name", name), ("ImageLocation", "mine/object")];
            params.extend(extra.iter().map(|(k, v)| (*k, v.as_str())));
            text(&w.ask("RegisterImage", &params).await.unwrap(), "imageId")
        }
    };
    let kernel = register("kernel", vec![("KernelId", "true".into())]).await;
    let ramdisk = register("ramdisk", vec![("RamdiskId", "true".into())]).await;
    assert!(kernel.starts_with("aki-") && ramdisk.starts_with("ari-"));
    let image = register("machine", vec![("KernelId", kernel.clone()), ("RamdiskId", ramdisk.clone())]).await;
    let id = w.instance_of(&image).await;
    let spec = w.cluster.vm(&id).unwrap().spec;
    assert_eq!(spec.kernel.unwrap().key, "object");
    assert!(spec.ramdisk.is_some() && spec.kernel_cmdline.contains("root=/dev/vda"));
    let xml = w.ask("DescribeImages", &[("Filter.1.Name", "image-type"), ("Filter.1.Value.1", "kernel")]).await;
    assert_eq!(texts(&xml.unwrap(), "imageId"), [kernel.as_str()]);
    let params = [("ImageId", kernel.as_str()), ("MinCount", "1"), ("MaxCount", "1")];
    assert_eq!(w.refused("RunInstances", &params).await, Code::InvalidAmiIdNotFound);
    // An instance outlives its image.
    for gone in [&image, &kernel, &ramdisk] {
        w.ask("DeregisterImage", &[("ImageId", gone)]).await.unwrap();
    }
    w.ask("StopInstances", &[("InstanceId.1", &id)]).await.unwrap();
    w.until_instance(&id, "stopped").await;
    w.ask("StartInstances", &[("InstanceId.1", &id)]).await.unwrap();
    w.until_instance(&id, "running").await;
}

#[tokio::test]
async fn tags_are_kept_shown_and_removed() {
    let w = World::new().await;
    let image = w.image("first").await;
    let v = w.blank_volume().await;
    let params = [
        ("ResourceId.1", image.as_str()),
        ("ResourceId.2", &v),
        ("Tag.1.Key", "a"),
        ("Tag.1.Value", "1"),
        ("Tag.2.Key", "b"),
        ("Tag.2.Value", ""),
    ];
    w.ask("CreateTags", &params).await.unwrap();
    assert_eq!(texts(&w.ask("DescribeTags", &[]).await.unwrap(), "key"), ["a", "b", "a", "b"]);
    let only = [
        ("Filter.1.Name", "resource-type"),
        ("Filter.1.Value.1", "volume"),
        ("Filter.2.Name", "tag:a"),
        ("Filter.2.Value.1", "*"),
    ];
    assert_eq!(texts(&w.ask("DescribeTags", &only).await.unwrap(), "resourceId"), [v.as_str()]);
    let other_value = [("ResourceId.1", v.as_str()), ("Tag.1.Key", "a"), ("Tag.1.Value", "2")];
    w.ask("DeleteTags", &other_value).await.unwrap();
    assert_eq!(w.volume(&v).tags.len(), 2);
    w.ask("DeleteTags", &[("ResourceId.1", &v), ("Tag.1.Key", "a")]).await.unwrap();
    w.ask("DeleteTags", &[("ResourceId.1", &image)]).await.unwrap();
    assert_eq!(texts(&w.ask("DescribeTags", &[]).await.unwrap(), "key"), ["b"]);
}

#[tokio::test]
async fn listings_come_in_pages() {
    let w = World::new().await;
    let image = w.image("first").await;
    let params = [("ImageId", image.as_str()), ("MinCount", "12"), ("MaxCount", "12")];
    let all = texts(&w.ask("RunInstances", &params).await.unwrap(), "instanceId");
    let (mut got, mut token) = (Vec::new(), String::new());
    loop {
        let mut params = vec![("MaxResults", "5")];
        if !token.is_empty() {
            params.push(("NextToken", token.as_str()));
        }
        let xml = w.ask("DescribeInstances", &params).await.unwrap();
        got.extend(texts(&xml, "instanceId"));
        match texts(&xml, "nextToken").pop() {
            Some(next) => token = next,
            None => break,
        }
    }
    assert_eq!(got, all);
}

#[tokio::test]
async fn a_console_is_base64() {
    let w = World::new().await;
    let image = w.image("first").await;
    let id = w.instance_of(&image).await;
    let xml = w.ask("GetConsoleOutput", &[("InstanceId", &id)]).await.unwrap();
    assert_eq!(text(&xml, "output"), "TGludXggYm9vdHMK");
    w.ask("StopInstances", &[("InstanceId.1", &id)]).await.unwrap();
    w.until_instance(&id, "stopped").await;
    assert!(texts(&w.ask("GetConsoleOutput", &[("InstanceId", &id)]).await.unwrap(), "output").is_empty());
}

/// Launch and describe rates on the memory peers and RocksDB; run with `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures, takes a minute"]
async fn figures() {
    use std::time::Instant;
    let dir = tempfile::tempdir().unwrap();
    let meta = Arc::new(karri_meta::rocks::RocksStore::open(dir.path().join("meta"), &Default::default()).unwrap());
    let w = World::on(meta, None, Arc::new(karri_base::clock::SystemClock), "127.0.0.1:0".parse().unwrap(), None).await;
    let image = w.image("first").await;
    let total: usize = std::env::var("KARRI_INSTANCES").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000);
    let (w, image) = (Arc::new(w), Arc::new(image));
    let began = Instant::now();
    let mut acks = Vec::new();
    let mut tasks = tokio::task::JoinSet::new();
    for lane in 0..8 {
        let (w, image) = (w.clone(), image.clone());
        tasks.spawn(async move {
            let mut took = Vec::new();
            for _ in (lane..total).step_by(8) {
                let asked = Instant::now();
                w.ask("RunInstances", &[("ImageId", &image), ("MinCount", "1"), ("MaxCount", "1")]).await.unwrap();
                took.push(asked.elapsed());
            }
            took
        });
    }
    while let Some(took) = tasks.join_next().await {
        acks.extend(took.unwrap());
    }
    let acked = began.elapsed();
    while w.cluster.lock().vms.len() < total || w.role.cloud().flows.busy() > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ran = began.elapsed();
    acks.sort_unstable();
    let at = |p: usize| acks[(acks.len() - 1) * p / 100];
    println!(
        "{total} launches, 8 at a time: acknowledged in {acked:.2?} (p50 {:.2?}, p99 {:.2?}), all running after {ran:.2?}: {:.0}/s",
        at(50),
        at(99),
        total as f64 / ran.as_secs_f64()
    );
    let mut took = Vec::new();
    for _ in 0..20 {
        let asked = Instant::now();
        let xml = w.ask("DescribeInstances", &[("MaxResults", "1000")]).await.unwrap();
        took.push(asked.elapsed());
        assert_eq!(texts(&xml, "instanceId").len(), total.min(1000));
    }
    took.sort_unstable();
    println!("DescribeInstances of 1,000 among {total}: p50 {:.2?}, max {:.2?}", took[10], took[19]);
}

#[tokio::test]
#[ignore = "prints records for tests/fixtures when their format changes"]
async fn print_records() {
    let w = World::new().await;
    w.ask("CreateKeyPair", &[("KeyName", "k"), ("KeyType", "ed25519")]).await.unwrap();
    let image = w.image("first").await;
    let params = [
        ("ImageId", image.as_str()),
        ("MinCount", "1"),
        ("MaxCount", "1"),
        ("KeyName", "k"),
        ("ClientToken", "t"),
        ("UserData", "aGk="),
    ];
    let id = text(&w.ask("RunInstances", &params).await.unwrap(), "instanceId");
    w.until_instance(&id, "running").await;
    for (key, value) in w.memory.as_ref().unwrap().dump() {
        println!("{}\t{}", String::from_utf8_lossy(&key), String::from_utf8_lossy(&value));
    }
}

#[tokio::test]
async fn the_region_is_reached_where_it_was_asked() {
    let w = World::new().await;
    let regions = w.ask("DescribeRegions", &[]).await.unwrap();
    assert_eq!(texts(&regions, "regionEndpoint"), ["cloud:8773"]);
    let filter = |value| [("Filter.1.Name", "endpoint"), ("Filter.1.Value.1", value)];
    assert_eq!(texts(&w.ask("DescribeRegions", &filter("cloud:8773")).await.unwrap(), "regionName").len(), 1);
    assert!(texts(&w.ask("DescribeRegions", &filter("elsewhere")).await.unwrap(), "regionName").is_empty());
}
