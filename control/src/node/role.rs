//! The node role: commands from the cluster, worked off against records, images, datapath and hypervisor.
//!
//! One command an instance at a time; commands of different instances run side by side. A command goes on when its
//! caller hangs up, so that a caller who asks again finds it done or waits for it. Generations:
//!
//! | command's generation | answer |
//! |---|---|
//! | older than the record's | FAILED_PRECONDITION |
//! | the record's | done if it still has to be; a start of an incarnation that has ended answers how it ended |
//! | newer | done; a start ends the older incarnation's machine first |
//!
//! A start that failed for a passing reason (storage or Walrus away) answers UNAVAILABLE and may be repeated with the
//! same generation; one that cannot succeed answers an incarnation that is FAILED.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use karri_base::clock::Clock;
use karri_base::id::{InstanceId, NetworkInterfaceId, VolumeId};
use karri_base::proto::node_server::{Node, NodeServer};
use karri_base::proto::{
    AttachVolumeRequest, Console, DetachVolumeRequest, Disk, Incarnation, InstanceRequest, InstanceSpec, Nic,
    NodeReport, ReportRequest, StopAllRequest, StopInstanceRequest,
};
use karri_base::role::{Health, Running};
use karri_meta::{MetaError, MetaStore};
use karri_net::{Datapath, Eni, NetError};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::hypervisor::{Boot, DISKS_MAX, Ended, Hypervisor, HypervisorError, VmDisk, VmNic, VmSpec, VmStatus};
use super::images::{ImageError, Images};
use super::records::{self, KEEP, Phase, Record};

/// Grace of a stop that names none.
const GRACE: Duration = Duration::from_secs(60);
/// How long a guest may take to shut down for a reboot before it is reset; EC2 waits for four minutes.
const REBOOT: Duration = Duration::from_secs(60);
/// How long a guest may hold on to a disk before a detach answers ABORTED; the cloud asks again.
const UNPLUG: Duration = Duration::from_secs(10);
/// Longest user data, in bytes; EC2 takes 16 KiB before base64.
const USER_DATA_BYTES_MAX: usize = 64 << 10;
/// What a kernel is told where the image says nothing.
const CMDLINE: &str = "console=ttyS0 root=/dev/vda";

/// What a host can run.
#[derive(Debug, Clone, Copy)]
pub struct Capacity {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

/// What a node is made of.
pub struct Parts {
    /// The host's name.
    pub name: String,
    /// What runs machines.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// What wires them.
    pub datapath: Arc<dyn Datapath>,
    /// Its records.
    pub meta: Arc<dyn MetaStore>,
    /// Kernels and ramdisks.
    pub images: Images,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What the host can run.
    pub capacity: Capacity,
}

/// A started node.
pub struct NodeRole {
    host: Arc<Host>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

struct Host {
    parts: Parts,
    slots: Mutex<HashMap<InstanceId, Arc<Slot>>>,
    metrics: Metrics,
}

/// One instance's command line-up and its record as last written.
struct Slot {
    instance: InstanceId,
    command: tokio::sync::Mutex<()>,
    record: Mutex<Option<Record>>,
    /// Counts forced stops, which cut the grace of the one that holds `command` short.
    hurry: watch::Sender<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Command {
    command: &'static str,
    code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InPhase {
    phase: &'static str,
}

struct Metrics {
    commands: Family<Command, Counter>,
    instances: Family<InPhase, Gauge>,
    vcpus_used: Gauge,
    memory_used: Gauge,
}

impl Metrics {
    fn new(registry: &mut Registry, capacity: Capacity) -> Self {
        let metrics = Self {
            commands: Family::default(),
            instances: Family::default(),
            vcpus_used: Gauge::default(),
            memory_used: Gauge::default(),
        };
        registry.register("node_commands", "Commands by outcome", metrics.commands.clone());
        registry.register("node_instances", "Instances by phase", metrics.instances.clone());
        registry.register("node_vcpus_used", "Virtual CPUs given to instances", metrics.vcpus_used.clone());
        registry.register("node_memory_used_bytes", "Memory given to instances", metrics.memory_used.clone());
        let total: Gauge = Gauge::default();
        total.set(i64::from(capacity.vcpus));
        registry.register("node_vcpus", "Virtual CPUs that instances may have", total);
        let total: Gauge = Gauge::default();
        total.set(i64::try_from(capacity.memory_bytes).unwrap_or(i64::MAX));
        registry.register("node_memory_bytes", "Memory that instances may have", total);
        metrics
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

fn store_failed(error: MetaError) -> Status {
    match error {
        MetaError::NoSpace { .. } => Status::resource_exhausted(format!("the node's records: {error}")),
        _ => Status::unavailable(format!("the node's records: {error}")),
    }
}

/// The protocol's code for a hypervisor's refusal.
fn refused(error: &HypervisorError) -> Status {
    match error {
        HypervisorError::NotRunning { .. } => Status::failed_precondition(error.to_string()),
        HypervisorError::Invalid { .. } => Status::failed_precondition(error.to_string()),
        HypervisorError::TimedOut { .. } => Status::deadline_exceeded(error.to_string()),
        HypervisorError::Failed { .. } => Status::internal(error.to_string()),
    }
}

// --- what comes over the wire, parsed once --------------------------------------------------------------------------

fn parse_instance(id: &str) -> Result<InstanceId, Status> {
    id.parse().map_err(|e: karri_base::id::BadId| Status::invalid_argument(e.to_string()))
}

fn parse_volume(id: &str) -> Result<VolumeId, Status> {
    id.parse().map_err(|e: karri_base::id::BadId| Status::invalid_argument(e.to_string()))
}

fn parse_disk(disk: &Disk) -> Result<VmDisk, Status> {
    let volume = parse_volume(&disk.volume_id)?;
    let socket = Path::new(&disk.vhost_user_socket).to_owned();
    if !socket.is_absolute() || disk.vhost_user_socket.contains('\0') {
        let what = format!("volume {volume}: {:?} is no absolute path of a socket", disk.vhost_user_socket);
        return Err(Status::invalid_argument(what));
    }
    Ok(VmDisk { volume, socket })
}

fn parse_nic(nic: &Nic) -> Result<Eni, Status> {
    let id: NetworkInterfaceId =
        nic.eni_id.parse().map_err(|e: karri_base::id::BadId| Status::invalid_argument(e.to_string()))?;
    let mac = nic.mac.parse().map_err(|e: NetError| Status::invalid_argument(e.to_string()))?;
    let private_ip = match nic.private_ip.as_str() {
        "" => None,
        text => {
            let bad = |_| Status::invalid_argument(format!("{id}: {text:?} is no IPv4 address"));
            Some(text.parse().map_err(bad)?)
        }
    };
    Ok(Eni { id, mac, private_ip })
}

/// A spec whose parts are all valid; kernel and ramdisk are still in Walrus.
struct Wanted {
    instance: InstanceId,
    disks: Vec<VmDisk>,
    nics: Vec<Eni>,
}

fn parse_spec(spec: &InstanceSpec) -> Result<Wanted, Status> {
    let instance = parse_instance(&spec.instance_id)?;
    let invalid = |why: String| Err(Status::invalid_argument(format!("instance {instance}: {why}")));
    if spec.vcpus == 0 || spec.vcpus > 255 {
        return invalid(format!("{} virtual CPUs; 1 to 255 are possible", spec.vcpus));
    }
    if spec.memory_bytes < 32 << 20 || !spec.memory_bytes.is_multiple_of(1 << 20) {
        return invalid(format!("{} bytes of memory; want whole MiB, at least 32", spec.memory_bytes));
    }
    if spec.disks.is_empty() || spec.disks.len() > DISKS_MAX {
        return invalid(format!("{} disks; 1 to {DISKS_MAX} are possible", spec.disks.len()));
    }
    if spec.user_data.len() > USER_DATA_BYTES_MAX {
        return invalid(format!("{} bytes of user data are more than {USER_DATA_BYTES_MAX}", spec.user_data.len()));
    }
    if spec.kernel.is_none() && (spec.ramdisk.is_some() || !spec.kernel_cmdline.is_empty()) {
        return invalid("a ramdisk or kernel command line without a kernel".into());
    }
    if spec.kernel_cmdline.len() > 2048 || spec.kernel_cmdline.contains('\0') {
        return invalid("a kernel command line of more than 2,048 bytes or with a NUL".into());
    }
    let disks = spec.disks.iter().map(parse_disk).collect::<Result<Vec<_>, _>>()?;
    let nics = spec.nics.iter().map(parse_nic).collect::<Result<Vec<_>, _>>()?;
    Ok(Wanted { instance, disks, nics })
}

fn cmdline(wanted: &str) -> String {
    match wanted {
        "" => CMDLINE.to_owned(),
        text if text.split_whitespace().any(|word| word.starts_with("console=")) => text.to_owned(),
        text => format!("{text} console=ttyS0"),
    }
}

/// Why a start did not succeed.
enum NotStarted {
    /// Asking again may help.
    Passing(Status),
    /// It will not.
    For(String),
}

impl From<Status> for NotStarted {
    fn from(status: Status) -> Self {
        Self::Passing(status)
    }
}

// --- commands -------------------------------------------------------------------------------------------------------

impl Host {
    fn slot(&self, instance: &InstanceId) -> Arc<Slot> {
        let mut slots = locked(&self.slots);
        let new = || {
            Arc::new(Slot {
                instance: instance.clone(),
                command: tokio::sync::Mutex::new(()),
                record: Mutex::new(None),
                hurry: watch::channel(0).0,
            })
        };
        slots.entry(instance.clone()).or_insert_with(new).clone()
    }

    fn slots(&self) -> Vec<Arc<Slot>> {
        locked(&self.slots).values().cloned().collect()
    }

    /// CPUs and memory that are taken, `except` left out.
    fn used(&self, except: Option<&InstanceId>) -> (u32, u64) {
        let slots = self.slots();
        let taking = slots.iter().filter(|slot| Some(&slot.instance) != except).filter_map(|slot| {
            let record = locked(&slot.record);
            record.as_ref().filter(|r| r.phase.holds_capacity()).map(|r| (r.spec.vcpus, r.spec.memory_bytes))
        });
        taking.fold((0, 0), |(cpus, memory), (c, m)| (cpus.saturating_add(c), memory.saturating_add(m)))
    }

    /// Writes a record, durably, then shows it.
    async fn save(&self, slot: &Slot, mut record: Record) -> Result<Record, Status> {
        record.changed_unix_micros = self.parts.clock.now().0;
        records::save(&*self.parts.meta, &slot.instance, &record).await.map_err(store_failed)?;
        *locked(&slot.record) = Some(record.clone());
        self.count();
        Ok(record)
    }

    fn count(&self) {
        let mut phases: BTreeMap<&'static str, i64> = BTreeMap::new();
        for phase in [Phase::Starting, Phase::Running, Phase::Stopping, Phase::Gone, Phase::Failed] {
            phases.insert(phase.as_str(), 0);
        }
        for slot in self.slots() {
            if let Some(record) = locked(&slot.record).as_ref() {
                *phases.entry(record.phase.as_str()).or_default() += 1;
            }
        }
        for (phase, n) in phases {
            self.metrics.instances.get_or_create(&InPhase { phase }).set(n);
        }
        let (vcpus, memory) = self.used(None);
        self.metrics.vcpus_used.set(i64::from(vcpus));
        self.metrics.memory_used.set(i64::try_from(memory).unwrap_or(i64::MAX));
    }

    /// The record, when `generation` may command it.
    fn commanded(slot: &Slot, generation: u64) -> Result<Option<Record>, Status> {
        let record = locked(&slot.record).clone();
        match &record {
            Some(r) if generation < r.generation => Err(Status::failed_precondition(format!(
                "instance {}: generation {generation} is older than {}, which commands it now",
                slot.instance, r.generation
            ))),
            _ => Ok(record),
        }
    }

    fn existing(slot: &Slot, generation: u64) -> Result<Record, Status> {
        let unknown = || Status::not_found(format!("instance {} is not on this node", slot.instance));
        Self::commanded(slot, generation)?.ok_or_else(unknown)
    }

    async fn start(&self, spec: InstanceSpec) -> Result<Incarnation, Status> {
        let wanted = parse_spec(&spec)?;
        let slot = self.slot(&wanted.instance);
        let _command = slot.command.lock().await;
        let record = Self::commanded(&slot, spec.generation)?;
        if let Some(record) = record {
            let same = record.generation == spec.generation;
            match record.phase {
                Phase::Running | Phase::Stopping | Phase::Gone if same => return Ok(record.incarnation()),
                Phase::Running | Phase::Stopping => {
                    // Its volumes' older exports are fenced off: this machine is of no use any more.
                    tracing::warn!(instance = %slot.instance, "a newer generation starts: the older machine is ended");
                    self.parts.hypervisor.kill(&slot.instance).await.map_err(|e| refused(&e))?;
                }
                Phase::Starting | Phase::Gone | Phase::Failed => {}
            }
        }
        let (vcpus, memory) = self.used(Some(&slot.instance));
        let capacity = self.parts.capacity;
        if vcpus.saturating_add(spec.vcpus) > capacity.vcpus
            || memory.saturating_add(spec.memory_bytes) > capacity.memory_bytes
        {
            return Err(Status::resource_exhausted(format!(
                "node {} has {} of {} virtual CPUs and {} of {} MiB left; instance {} wants {} and {}",
                self.parts.name,
                capacity.vcpus.saturating_sub(vcpus),
                capacity.vcpus,
                capacity.memory_bytes.saturating_sub(memory) >> 20,
                capacity.memory_bytes >> 20,
                slot.instance,
                spec.vcpus,
                spec.memory_bytes >> 20,
            )));
        }
        let record = self.save(&slot, Record::new(spec, Phase::Starting)).await?;
        match self.bring_up(&wanted, &record.spec).await {
            Ok(()) => {
                let started_unix_micros = self.parts.clock.now().0;
                let record = self.save(&slot, Record { phase: Phase::Running, started_unix_micros, ..record }).await?;
                tracing::info!(instance = %slot.instance, account = record.spec.account_id, "instance runs");
                Ok(record.incarnation())
            }
            Err(why) => {
                self.detach_nics(&record.spec);
                let (reason, answer) = match why {
                    NotStarted::Passing(status) => (status.message().to_owned(), Some(status)),
                    NotStarted::For(reason) => (reason, None),
                };
                tracing::error!(instance = %slot.instance, account = record.spec.account_id, error = reason, "no start");
                let reason = format!("Server.InternalError: {reason}");
                let record = self.save(&slot, Record { phase: Phase::Failed, reason, ..record }).await?;
                answer.map_or_else(|| Ok(record.incarnation()), Err)
            }
        }
    }

    async fn bring_up(&self, wanted: &Wanted, spec: &InstanceSpec) -> Result<(), NotStarted> {
        if let VmStatus::Running { .. } = self.parts.hypervisor.status(&wanted.instance).await {
            // The node died after it had started the machine.
            return Ok(());
        }
        let real = self.parts.hypervisor.describe().real;
        if let Some(disk) = wanted.disks.iter().find(|d| real && !d.socket.exists()) {
            return Err(NotStarted::Passing(Status::unavailable(no_socket(disk))));
        }
        let fetch = async |object: &karri_base::proto::S3Object| {
            self.parts.images.file(object).await.map_err(|e| match e {
                ImageError::Missing { .. } => NotStarted::For(e.to_string()),
                ImageError::Unavailable { .. } => NotStarted::Passing(Status::unavailable(e.to_string())),
            })
        };
        let boot = match &spec.kernel {
            Some(_) if !real => Boot::Firmware,
            None => Boot::Firmware,
            Some(kernel) => Boot::Kernel {
                kernel: fetch(kernel).await?,
                ramdisk: match &spec.ramdisk {
                    Some(ramdisk) => Some(fetch(ramdisk).await?),
                    None => None,
                },
                cmdline: cmdline(&spec.kernel_cmdline),
            },
        };
        let mut nics = Vec::new();
        for eni in &wanted.nics {
            let wiring = self.parts.datapath.attach(eni).map_err(|e| match e {
                NetError::Failed { .. } => NotStarted::Passing(Status::unavailable(e.to_string())),
                _ => NotStarted::For(e.to_string()),
            })?;
            nics.push(VmNic { eni: eni.id.clone(), mac: eni.mac, wiring });
        }
        let vm = VmSpec {
            instance: wanted.instance.clone(),
            vcpus: spec.vcpus,
            memory_bytes: spec.memory_bytes,
            boot,
            disks: wanted.disks.clone(),
            nics,
            user_data: spec.user_data.to_vec(),
            public_key: spec.public_key.clone(),
        };
        self.parts.hypervisor.start(&vm).await.map_err(|e| match e {
            HypervisorError::TimedOut { .. } => NotStarted::Passing(Status::unavailable(e.to_string())),
            _ => NotStarted::For(e.to_string()),
        })
    }

    fn detach_nics(&self, spec: &InstanceSpec) {
        for nic in &spec.nics {
            let Ok(eni) = nic.eni_id.parse() else { continue };
            if let Err(error) = self.parts.datapath.detach(&eni) {
                tracing::warn!(instance = spec.instance_id, %error, "an interface stays behind");
            }
        }
    }

    /// Stops one instance: power button, grace, kill. `reason` is noted unless it ended before.
    async fn stop(&self, request: StopInstanceRequest, reason: &str) -> Result<Incarnation, Status> {
        let instance = parse_instance(&request.instance_id)?;
        let slot = self.slot(&instance);
        let mut hurry = slot.hurry.subscribe();
        if request.force {
            slot.hurry.send_modify(|n| *n += 1);
        }
        let _command = slot.command.lock().await;
        let Some(record) = Self::commanded(&slot, request.generation)? else {
            // Remembered, so that a start that was sent earlier and comes later is refused.
            let generation = request.generation;
            let spec = InstanceSpec { instance_id: request.instance_id, generation, ..InstanceSpec::default() };
            return Ok(self.save(&slot, Record::new(spec, Phase::Gone)).await?.incarnation());
        };
        let mut record = Record { generation: request.generation, ..record };
        let hypervisor = &self.parts.hypervisor;
        let was_up = record.phase.holds_capacity();
        if was_up {
            record = self.save(&slot, Record { phase: Phase::Stopping, ..record }).await?;
        }
        let secs = u64::from(request.grace_secs);
        let grace = if secs == 0 { GRACE } else { Duration::from_secs(secs) };
        if !request.force && hypervisor.press_power_button(&instance).await.is_ok() {
            tokio::select! {
                gone = hypervisor.wait_gone(&instance, grace) => {
                    if !gone {
                        tracing::warn!(instance = %instance, ?grace, "the guest does not hear the power button");
                    }
                }
                _ = hurry.changed() => {}
            }
        }
        hypervisor.kill(&instance).await.map_err(|e| refused(&e))?;
        self.detach_nics(&record.spec);
        let reason = if was_up || record.reason.is_empty() { reason.to_owned() } else { record.reason.clone() };
        let phase = if record.phase == Phase::Failed { Phase::Failed } else { Phase::Gone };
        Ok(self.save(&slot, Record { phase, reason, ..record }).await?.incarnation())
    }

    async fn reboot(&self, request: InstanceRequest) -> Result<Incarnation, Status> {
        let instance = parse_instance(&request.instance_id)?;
        let slot = self.slot(&instance);
        let _command = slot.command.lock().await;
        let record = Self::existing(&slot, request.generation)?;
        self.parts.hypervisor.reboot(&instance, REBOOT).await.map_err(|e| refused(&e))?;
        Ok(self.save(&slot, Record { generation: request.generation, ..record }).await?.incarnation())
    }

    async fn attach(&self, request: AttachVolumeRequest) -> Result<Incarnation, Status> {
        let instance = parse_instance(&request.instance_id)?;
        let disk = request.disk.ok_or_else(|| Status::invalid_argument("AttachVolume without a disk"))?;
        let parsed = parse_disk(&disk)?;
        let slot = self.slot(&instance);
        let _command = slot.command.lock().await;
        let mut record = Self::existing(&slot, request.generation)?;
        record.generation = request.generation;
        if record.phase == Phase::Running {
            if self.parts.hypervisor.describe().real && !parsed.socket.exists() {
                return Err(Status::unavailable(no_socket(&parsed)));
            }
            self.parts.hypervisor.plug(&instance, &parsed).await.map_err(|e| refused(&e))?;
        }
        record.spec.disks.retain(|d| d.volume_id != disk.volume_id);
        record.spec.disks.push(disk);
        Ok(self.save(&slot, record).await?.incarnation())
    }

    async fn detach(&self, request: DetachVolumeRequest) -> Result<Incarnation, Status> {
        let instance = parse_instance(&request.instance_id)?;
        let volume = parse_volume(&request.volume_id)?;
        let slot = self.slot(&instance);
        let _command = slot.command.lock().await;
        let mut record = Self::existing(&slot, request.generation)?;
        record.generation = request.generation;
        if record.phase == Phase::Running {
            if record.spec.disks.first().is_some_and(|d| d.volume_id == request.volume_id) {
                let what = format!("volume {volume} is the root disk of {instance}; stop the instance to detach it");
                return Err(Status::failed_precondition(what));
            }
            match self.parts.hypervisor.unplug(&instance, &volume, UNPLUG).await {
                Ok(()) => {}
                // Storage ends the export; the guest is left with a disk that does not answer.
                Err(HypervisorError::TimedOut { .. }) if request.force => {
                    tracing::warn!(instance = %instance, volume = %volume, "detached by force: the guest holds on to it");
                }
                // Its own code: another try may help, and so may force.
                Err(e @ HypervisorError::TimedOut { .. }) => return Err(Status::aborted(e.to_string())),
                // It ended just now and holds nothing.
                Err(HypervisorError::NotRunning { .. }) => {}
                Err(e) => return Err(refused(&e)),
            }
        }
        record.spec.disks.retain(|d| d.volume_id != request.volume_id);
        Ok(self.save(&slot, record).await?.incarnation())
    }

    async fn console(&self, request: InstanceRequest) -> Result<Console, Status> {
        let instance = parse_instance(&request.instance_id)?;
        let known = locked(&self.slots).get(&instance).is_some_and(|slot| locked(&slot.record).is_some());
        if !known {
            return Err(Status::not_found(format!("instance {instance} is not on this node")));
        }
        let output = self.parts.hypervisor.console(&instance).await;
        Ok(Console { output, unix_micros: self.parts.clock.now().0 })
    }

    fn report(&self) -> NodeReport {
        let (vcpus_used, memory_used) = self.used(None);
        let mut instances: Vec<Incarnation> =
            self.slots().iter().filter_map(|slot| locked(&slot.record).as_ref().map(Record::incarnation)).collect();
        instances.sort_by(|a, b| a.instance_id.cmp(&b.instance_id));
        let described = self.parts.hypervisor.describe();
        NodeReport {
            node: self.parts.name.clone(),
            hypervisor: described.name.into(),
            accelerator: described.accelerator.into(),
            vcpus_total: self.parts.capacity.vcpus,
            vcpus_used,
            memory_total: self.parts.capacity.memory_bytes,
            memory_used,
            instances,
        }
    }

    async fn stop_all(&self, request: StopAllRequest) -> NodeReport {
        let reason = match request.reason.as_str() {
            "" => "Server.ScheduledStop: host shutdown".to_owned(),
            given => given.to_owned(),
        };
        let stops = self.slots().into_iter().filter_map(|slot| {
            let generation = locked(&slot.record).as_ref().filter(|r| r.phase.holds_capacity())?.generation;
            let (instance_id, grace_secs) = (slot.instance.to_string(), request.grace_secs);
            let request = StopInstanceRequest { instance_id, generation, force: false, grace_secs };
            Some(self.stop(request, &reason))
        });
        for answer in futures_util::future::join_all(stops).await {
            if let Err(error) = answer {
                tracing::error!(error = error.message(), "an instance does not stop with its host");
            }
        }
        self.report()
    }

    // --- what happens by itself ---------------------------------------------------------------------------------------

    /// Compares the records with what runs, after a start of the node.
    async fn reconcile(&self) -> Result<(), StartTrouble> {
        for (instance, record) in records::load(&*self.parts.meta).await? {
            *locked(&self.slot(&instance).record) = Some(record);
        }
        let known = self.parts.hypervisor.adopt().await?;
        for instance in &known {
            if locked(&self.slot(instance).record).is_none() {
                tracing::warn!(instance = %instance, "a machine without a record is removed");
                self.parts.hypervisor.kill(instance).await?;
                self.parts.hypervisor.forget(instance).await?;
                locked(&self.slots).remove(instance);
            }
        }
        let mut wired = Vec::new();
        for slot in self.slots() {
            let Some(record) = locked(&slot.record).clone() else { continue };
            let status = self.parts.hypervisor.status(&slot.instance).await;
            let runs = matches!(status, VmStatus::Running { .. });
            let phase = match record.phase {
                Phase::Starting | Phase::Running if runs => Phase::Running,
                // The stop is asked for again by whoever wanted it.
                Phase::Stopping if runs => Phase::Stopping,
                Phase::Starting => Phase::Failed,
                Phase::Running | Phase::Stopping => Phase::Gone,
                over => over,
            };
            if runs {
                tracing::info!(instance = %slot.instance, "adopted a running machine");
                wired.extend(record.spec.nics.iter().filter_map(|nic| parse_nic(nic).ok()));
                if !phase.holds_capacity() {
                    tracing::warn!(instance = %slot.instance, "a machine that should not run is ended");
                    self.parts.hypervisor.kill(&slot.instance).await?;
                }
            }
            if phase != record.phase {
                let reason = match (&status, phase) {
                    (_, Phase::Running) => String::new(),
                    (VmStatus::Gone { reason }, _) => reason.state_reason(),
                    (_, Phase::Failed) => "Server.InternalError: the node was restarted during the start".into(),
                    _ => Ended::Crashed { why: "it was gone when the node came back".into() }.state_reason(),
                };
                let started_unix_micros = match record.started_unix_micros {
                    0 if runs => self.parts.clock.now().0,
                    known => known,
                };
                let record = Record { phase, reason, started_unix_micros, ..record };
                self.save(&slot, record).await.map_err(StartTrouble::Status)?;
            }
        }
        self.parts.datapath.reconcile(&wired).map_err(StartTrouble::Net)?;
        self.count();
        Ok(())
    }

    /// Notes that a machine ended by itself.
    async fn note_end(&self, slot: &Slot) -> Result<(), Status> {
        let _command = slot.command.lock().await;
        let Some(record) = locked(&slot.record).clone().filter(|r| r.phase == Phase::Running) else { return Ok(()) };
        let VmStatus::Gone { reason } = self.parts.hypervisor.status(&slot.instance).await else { return Ok(()) };
        self.detach_nics(&record.spec);
        let reason = reason.state_reason();
        tracing::info!(instance = %slot.instance, account = record.spec.account_id, reason, "instance ended");
        self.save(slot, Record { phase: Phase::Gone, reason, ..record }).await.map(|_| ())
    }

    /// Follows machines that end, and forgets what ended long ago.
    async fn follow(self: Arc<Self>, mut changes: watch::Receiver<u64>) {
        let mut every = tokio::time::interval(Duration::from_secs(30));
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                _ = every.tick() => self.forget_old().await,
            }
            for slot in self.slots() {
                let running = locked(&slot.record).as_ref().is_some_and(|r| r.phase == Phase::Running);
                if !running || !matches!(self.parts.hypervisor.status(&slot.instance).await, VmStatus::Gone { .. }) {
                    continue;
                }
                let host = self.clone();
                tokio::spawn(async move {
                    if let Err(error) = host.note_end(&slot).await {
                        tracing::error!(instance = %slot.instance, error = error.message(), "cannot note its end");
                    }
                });
            }
        }
    }

    async fn forget_old(&self) {
        let before = self.parts.clock.now().0.saturating_sub(KEEP.as_micros() as u64);
        for slot in self.slots() {
            let Ok(_command) = slot.command.try_lock() else { continue };
            let old = locked(&slot.record)
                .as_ref()
                .is_none_or(|r| !r.phase.holds_capacity() && r.changed_unix_micros < before);
            if !old {
                continue;
            }
            let gone = async {
                self.parts.hypervisor.forget(&slot.instance).await.map_err(|e| e.to_string())?;
                records::forget(&*self.parts.meta, &slot.instance).await.map_err(|e| e.to_string())
            };
            match gone.await {
                Ok(()) => {
                    *locked(&slot.record) = None;
                    locked(&self.slots).remove(&slot.instance);
                }
                Err(error) => tracing::warn!(instance = %slot.instance, error, "cannot forget an ended instance"),
            }
        }
    }
}

fn no_socket(disk: &VmDisk) -> String {
    super::qemu::vm::no_socket(disk)
}

/// Why a node could not take up its work.
#[derive(Debug, thiserror::Error)]
pub enum StartTrouble {
    /// Its records cannot be read.
    #[error("the node's records cannot be read")]
    Meta(#[from] MetaError),
    /// Its machines cannot be taken over.
    #[error("the machines of this host cannot be taken over")]
    Hypervisor(#[from] HypervisorError),
    /// Its network cannot.
    #[error("the network of this host cannot be taken over")]
    Net(#[source] NetError),
    /// A record cannot be written.
    #[error("the node's records cannot be written")]
    Status(#[source] Status),
}

impl NodeRole {
    /// Takes over what an earlier node left and begins to work.
    ///
    /// # Errors
    /// See [`StartTrouble`].
    pub async fn start(parts: Parts, registry: &mut Registry) -> Result<Self, StartTrouble> {
        let metrics = Metrics::new(registry, parts.capacity);
        let host = Arc::new(Host { parts, slots: Mutex::default(), metrics });
        let changes = host.parts.hypervisor.changes();
        host.reconcile().await?;
        let tasks = vec![tokio::spawn(host.clone().follow(changes))];
        Ok(Self { host, tasks })
    }

    /// The gRPC service, for tests and for [`Running::routes`].
    pub fn service(&self) -> NodeService {
        NodeService(self.host.clone())
    }
}

impl Drop for NodeRole {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|task| task.abort());
    }
}

#[tonic::async_trait]
impl Running for NodeRole {
    fn routes(&self) -> tonic::service::Routes {
        tonic::service::Routes::new(NodeServer::new(self.service()))
    }

    fn health(&self) -> Health {
        let report = self.host.report();
        let running = report.instances.iter().filter(|i| i.state() == karri_base::proto::incarnation::State::Running);
        let capacity = [
            ("vcpus_total", u64::from(report.vcpus_total)),
            ("vcpus_used", u64::from(report.vcpus_used)),
            ("memory_bytes_total", report.memory_total),
            ("memory_bytes_used", report.memory_used),
            ("instances_running", running.count() as u64),
        ];
        Health { trouble: None, capacity: capacity.into_iter().map(|(name, n)| (name.to_owned(), n)).collect() }
    }

    /// Machines run on; the next node adopts them.
    async fn shutdown(&self) {
        self.tasks.iter().for_each(|task| task.abort());
    }
}

/// The node's gRPC service.
#[derive(Clone)]
pub struct NodeService(Arc<Host>);

impl NodeService {
    /// Runs a command to its end, even when the caller hangs up, and counts it.
    async fn run<T, F>(&self, command: &'static str, work: impl FnOnce(Arc<Host>) -> F) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let done = tokio::spawn(work(self.0.clone())).await;
        let answer = done.unwrap_or_else(|e| Err(Status::internal(format!("the node's {command} ended early: {e}"))));
        let code = answer.as_ref().map_or_else(|s| format!("{:?}", s.code()), |_| "Ok".to_owned());
        self.0.metrics.commands.get_or_create(&Command { command, code }).inc();
        answer.map(Response::new)
    }
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn start_instance(&self, request: Request<InstanceSpec>) -> Result<Response<Incarnation>, Status> {
        let spec = request.into_inner();
        self.run("start", |host| async move { host.start(spec).await }).await
    }
    async fn stop_instance(&self, request: Request<StopInstanceRequest>) -> Result<Response<Incarnation>, Status> {
        let request = request.into_inner();
        self.run("stop", |host| async move { host.stop(request, &Ended::Killed.state_reason()).await }).await
    }
    async fn reboot_instance(&self, request: Request<InstanceRequest>) -> Result<Response<Incarnation>, Status> {
        let request = request.into_inner();
        self.run("reboot", |host| async move { host.reboot(request).await }).await
    }
    async fn attach_volume(&self, request: Request<AttachVolumeRequest>) -> Result<Response<Incarnation>, Status> {
        let request = request.into_inner();
        self.run("attach", |host| async move { host.attach(request).await }).await
    }
    async fn detach_volume(&self, request: Request<DetachVolumeRequest>) -> Result<Response<Incarnation>, Status> {
        let request = request.into_inner();
        self.run("detach", |host| async move { host.detach(request).await }).await
    }
    async fn get_console(&self, request: Request<InstanceRequest>) -> Result<Response<Console>, Status> {
        let request = request.into_inner();
        self.run("console", |host| async move { host.console(request).await }).await
    }
    async fn stop_all(&self, request: Request<StopAllRequest>) -> Result<Response<NodeReport>, Status> {
        let request = request.into_inner();
        self.run("stop_all", |host| async move { Ok(host.stop_all(request).await) }).await
    }
    async fn report(&self, _: Request<ReportRequest>) -> Result<Response<NodeReport>, Status> {
        self.run("report", |host| async move { Ok(host.report()) }).await
    }
}
