//! Peers that live in memory and fail when told to.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use karri_base::aws::policy::{Policy, Use};
use karri_base::id::{AccountId, InstanceId, VolumeId};
use karri_base::proto;
use karri_base::proto::incarnation::State;
use tonic::Status;

use super::peers::{Answer, Cluster, ObjectError, Objects, Storage};
use super::records::ImageObject;

/// Calls counted over all peers, and which of them fail. A call that fails before does nothing; one that fails after
/// does its work and loses the answer.
#[derive(Default)]
pub struct Faults {
    calls: AtomicU64,
    at: Mutex<HashMap<u64, Fault>>,
    down: Mutex<Option<Status>>,
    log: Mutex<Vec<String>>,
    /// Told when a call hangs for good.
    pub crashed: tokio::sync::Notify,
}

/// How a call fails.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Nothing happens.
    Before(Status),
    /// It happens; the answer is lost.
    After(Status),
    /// The cloud is about to be killed: the call never returns, having happened or not.
    Crash {
        /// Whether it happened.
        done: bool,
    },
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Faults {
    /// The call of this number (from 0) fails.
    pub fn fail(&self, call: u64, fault: Fault) {
        lock(&self.at).insert(call, fault);
    }
    /// All calls fail until it is taken back.
    pub fn set_down(&self, status: Option<Status>) {
        *lock(&self.down) = status;
    }
    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }
    /// What was called, in order.
    pub fn log(&self) -> Vec<String> {
        lock(&self.log).clone()
    }

    async fn call<T>(&self, name: &str, work: impl FnOnce() -> Answer<T>) -> Answer<T> {
        lock(&self.log).push(name.to_owned());
        let down = lock(&self.down).clone();
        if let Some(status) = down {
            return Err(status);
        }
        let n = self.calls.fetch_add(1, Ordering::SeqCst);
        let fault = lock(&self.at).remove(&n);
        match fault {
            Some(Fault::Before(status)) => Err(status),
            Some(Fault::After(status)) => {
                let _ = work();
                Err(status)
            }
            Some(Fault::Crash { done }) => {
                if done {
                    let _ = work();
                }
                self.crashed.notify_one();
                std::future::pending().await
            }
            None => work(),
        }
    }
}

/// One VM.
#[derive(Debug, Clone)]
pub struct Vm {
    pub spec: proto::InstanceSpec,
    pub generation: u64,
    pub state: State,
    pub reason: String,
    pub disks: Vec<proto::Disk>,
    pub reboots: u32,
}

#[derive(Default)]
pub struct ClusterState {
    pub placed: BTreeMap<String, proto::PlaceRequest>,
    pub vms: BTreeMap<String, Vm>,
    /// The highest generation seen, per instance.
    pub latest: HashMap<String, u64>,
    pub room: Option<usize>,
    pub node_down: bool,
    /// Guests let go of disks by force only.
    pub guests_keep_disks: bool,
}

/// A zone with one node.
#[derive(Clone)]
pub struct FakeCluster {
    pub faults: Arc<Faults>,
    pub state: Arc<Mutex<ClusterState>>,
}

impl FakeCluster {
    pub fn new(faults: Arc<Faults>) -> Self {
        Self { faults, state: Arc::default() }
    }
    pub fn lock(&self) -> MutexGuard<'_, ClusterState> {
        lock(&self.state)
    }
    pub fn vm(&self, id: &str) -> Option<Vm> {
        self.lock().vms.get(id).cloned()
    }
}

fn incarnation(id: &str, vm: &Vm) -> proto::Incarnation {
    proto::Incarnation {
        instance_id: id.to_owned(),
        generation: vm.generation,
        state: vm.state.into(),
        reason: vm.reason.clone(),
        volume_ids: vm.disks.iter().map(|d| d.volume_id.clone()).collect(),
        started_unix_micros: 0,
    }
}

impl ClusterState {
    fn check(&mut self, id: &str, generation: u64) -> Answer<()> {
        let latest = self.latest.entry(id.to_owned()).or_default();
        if generation < *latest {
            return Err(Status::failed_precondition(format!("generation {generation} is older than {latest}")));
        }
        *latest = generation;
        Ok(())
    }
    fn running(&mut self, id: &str) -> Answer<&mut Vm> {
        let vm = self.vms.get_mut(id).filter(|v| v.state == State::Running);
        vm.ok_or_else(|| Status::not_found(format!("{id} does not run")))
    }
}

#[async_trait]
impl Cluster for FakeCluster {
    async fn place(&self, request: proto::PlaceRequest) -> Answer<proto::Placement> {
        self.faults
            .call("place", || {
                let mut s = self.lock();
                let full = s.room.is_some_and(|room| s.placed.len() >= room);
                if full && !s.placed.contains_key(&request.instance_id) {
                    return Err(Status::resource_exhausted("no node has room"));
                }
                s.placed.insert(request.instance_id.clone(), request);
                Ok(proto::Placement { node: "node-1".into() })
            })
            .await
    }
    async fn release(&self, instance: &InstanceId, _: u64) -> Answer<()> {
        self.faults
            .call("release", || {
                self.lock().placed.remove(instance.as_str());
                Ok(())
            })
            .await
    }
    async fn start(&self, spec: proto::InstanceSpec) -> Answer<proto::Incarnation> {
        self.faults
            .call("start", || {
                let mut s = self.lock();
                s.check(&spec.instance_id, spec.generation)?;
                if !s.placed.contains_key(&spec.instance_id) {
                    return Err(Status::not_found("not placed"));
                }
                let id = spec.instance_id.clone();
                if let Some(vm) = s.vms.get(&id).filter(|v| v.generation == spec.generation) {
                    return Ok(incarnation(&id, vm));
                }
                let vm = Vm {
                    generation: spec.generation,
                    disks: spec.disks.clone(),
                    spec,
                    state: State::Running,
                    reason: String::new(),
                    reboots: 0,
                };
                s.vms.insert(id.clone(), vm.clone());
                Ok(incarnation(&id, &vm))
            })
            .await
    }
    async fn stop(&self, request: proto::StopInstanceRequest) -> Answer<proto::Incarnation> {
        self.faults
            .call("stop", || {
                let mut s = self.lock();
                s.check(&request.instance_id, request.generation)?;
                let id = request.instance_id.clone();
                let Some(vm) = s.vms.get_mut(&id) else { return Err(Status::not_found("no such instance")) };
                vm.state = State::Gone;
                vm.disks.clear();
                Ok(incarnation(&id, vm))
            })
            .await
    }
    async fn reboot(&self, instance: &InstanceId, generation: u64) -> Answer<proto::Incarnation> {
        self.faults
            .call("reboot", || {
                let mut s = self.lock();
                s.check(instance.as_str(), generation)?;
                let vm = s.running(instance.as_str())?;
                vm.reboots += 1;
                Ok(incarnation(instance.as_str(), vm))
            })
            .await
    }
    async fn attach(&self, request: proto::AttachVolumeRequest) -> Answer<proto::Incarnation> {
        self.faults
            .call("attach", || {
                let mut s = self.lock();
                s.check(&request.instance_id, request.generation)?;
                let disk = request.disk.unwrap_or_default();
                let vm = s.running(&request.instance_id)?;
                if !vm.disks.contains(&disk) {
                    vm.disks.push(disk);
                }
                Ok(incarnation(&request.instance_id, vm))
            })
            .await
    }
    async fn detach(&self, request: proto::DetachVolumeRequest) -> Answer<proto::Incarnation> {
        self.faults
            .call("detach", || {
                let mut s = self.lock();
                s.check(&request.instance_id, request.generation)?;
                let keeps = s.guests_keep_disks && !request.force;
                let vm = s.running(&request.instance_id)?;
                if keeps {
                    return Err(Status::aborted("the guest holds on to it"));
                }
                vm.disks.retain(|d| d.volume_id != request.volume_id);
                Ok(incarnation(&request.instance_id, vm))
            })
            .await
    }
    async fn console(&self, instance: &InstanceId, _: u64) -> Answer<proto::Console> {
        let mut s = self.lock();
        s.running(instance.as_str())?;
        Ok(proto::Console { output: "Linux boots\n".as_bytes().to_vec(), unix_micros: 1_767_225_600_000_000 })
    }
    async fn report(&self) -> Answer<proto::ClusterReport> {
        let s = self.lock();
        let node = proto::NodeReport {
            node: "node-1".into(),
            instances: s.vms.iter().map(|(id, vm)| incarnation(id, vm)).collect(),
            ..Default::default()
        };
        Ok(proto::ClusterReport { zone: "us-east-1a".into(), nodes: if s.node_down { vec![] } else { vec![node] } })
    }
}

/// What the storage in memory says no volume can exceed.
pub const LARGEST_BYTES: u64 = 10 << 40;

/// Storage in memory.
#[derive(Clone)]
pub struct FakeStorage {
    pub faults: Arc<Faults>,
    pub volumes: Arc<Mutex<BTreeMap<String, proto::Volume>>>,
    pub full: Arc<Mutex<bool>>,
}

impl FakeStorage {
    pub fn new(faults: Arc<Faults>) -> Self {
        Self { faults, volumes: Arc::default(), full: Arc::default() }
    }
    pub fn volumes(&self) -> BTreeMap<String, proto::Volume> {
        lock(&self.volumes).clone()
    }
    pub fn set_full(&self, full: bool) {
        *lock(&self.full) = full;
    }
}

#[async_trait]
impl Storage for FakeStorage {
    async fn create(&self, request: proto::CreateVolumeRequest) -> Answer<proto::Volume> {
        self.faults
            .call("create", || {
                if *lock(&self.full) {
                    return Err(Status::resource_exhausted("the store is full"));
                }
                let mut volumes = lock(&self.volumes);
                let made = volumes.entry(request.volume_id.clone()).or_insert_with(|| proto::Volume {
                    volume_id: request.volume_id.clone(),
                    size_bytes: request.size_bytes,
                    allocated_bytes: 0,
                    export: None,
                    account_id: request.account_id.clone(),
                });
                Ok(made.clone())
            })
            .await
    }
    async fn delete(&self, volume: &VolumeId) -> Answer<()> {
        self.faults
            .call("delete", || {
                let mut volumes = lock(&self.volumes);
                if volumes.get(volume.as_str()).is_some_and(|v| v.export.is_some()) {
                    return Err(Status::failed_precondition("it is exported"));
                }
                volumes.remove(volume.as_str());
                Ok(())
            })
            .await
    }
    async fn list(&self) -> Answer<proto::Volumes> {
        Ok(proto::Volumes { volumes: lock(&self.volumes).values().cloned().collect(), largest_bytes: LARGEST_BYTES })
    }
    async fn export(&self, volume: &VolumeId, generation: u64) -> Answer<proto::Export> {
        self.faults
            .call("export", || {
                let mut volumes = lock(&self.volumes);
                let held = volumes.get_mut(volume.as_str()).ok_or_else(|| Status::not_found("no such volume"))?;
                if held.export.as_ref().is_some_and(|e| e.generation > generation) {
                    return Err(Status::failed_precondition("a newer export is there"));
                }
                let export = proto::Export { vhost_user_socket: format!("/run/{volume}.{generation}"), generation };
                held.export = Some(export.clone());
                Ok(export)
            })
            .await
    }
    async fn unexport(&self, volume: &VolumeId, generation: u64) -> Answer<()> {
        self.faults
            .call("unexport", || {
                let mut volumes = lock(&self.volumes);
                let held = volumes.get_mut(volume.as_str()).ok_or_else(|| Status::not_found("no such volume"))?;
                if held.export.as_ref().is_some_and(|e| e.generation > generation) {
                    return Err(Status::failed_precondition("a newer export is there"));
                }
                held.export = None;
                Ok(())
            })
            .await
    }
}

/// Walrus in memory: one bucket per account, `mine` and `theirs`.
#[derive(Clone, Default)]
pub struct FakeObjects;

#[async_trait]
impl Objects for FakeObjects {
    async fn head(&self, _: &AccountId, bucket: &str, key: &str) -> Result<ImageObject, ObjectError> {
        match (bucket, key) {
            ("theirs", _) => Err(ObjectError::Foreign),
            ("mine", "missing") => Err(ObjectError::NotFound),
            ("mine", "empty") => Ok(object(bucket, key, 0)),
            ("mine", _) => Ok(object(bucket, key, 3 << 29)),
            ("down", _) => Err(ObjectError::Unavailable("status 503".into())),
            _ => Err(ObjectError::NotFound),
        }
    }
    async fn policy(&self, _: &AccountId, bucket: &str) -> Result<Option<Policy>, ObjectError> {
        // Nobody may read `mine/secret`, and Bob by the bucket's word all else of it.
        let statements = r#"{"Statement":[
            {"Effect":"Deny","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::mine/secret"},
            {"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::123456789012:user/bob"},"Action":"s3:GetObject",
             "Resource":"arn:aws:s3:::mine/*"}]}"#;
        match bucket {
            "mine" => Ok(Some(Policy::parse(statements, Use::Bucket).expect("a policy"))),
            "theirs" => Err(ObjectError::Foreign),
            "down" => Err(ObjectError::Unavailable("status 503".into())),
            _ => Ok(None),
        }
    }
}

fn object(bucket: &str, key: &str, bytes: u64) -> ImageObject {
    ImageObject { bucket: bucket.into(), key: key.into(), etag: "\"e\"".into(), bytes }
}
