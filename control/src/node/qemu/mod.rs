//! QEMU without libvirt: one process a machine, driven over QMP.
//!
//! | module | holds |
//! |---|---|
//! | [`args`] | the command line |
//! | [`qmp`] | the protocol client |
//! | [`process`] | starting, finding and ending processes; uids and cgroups |
//! | [`vm`] | one machine and its watch |
//! | [`console`] | the guest's last words |
//!
//! A machine outlives the node that started it: it runs in its own session, and everything needed to take it over is
//! in its folder. Confinement: QEMU's seccomp sandbox always; where the node is root also a uid of the machine's own
//! (from [`UID_FIRST`] up) and a cgroup. A machine's uid can open its own run folder, the kernel handed to it and the
//! sockets of its own volumes, nothing else. KVM is used where the CPU has it and /dev/kvm opens, else TCG.
//!
//! While the node is down, machines run and storage may be restarted, but a machine under its own uid reaches the
//! sockets of a restarted storage only once a node is there to open them to it.

pub mod args;
pub mod console;
pub mod process;
pub mod qmp;
pub mod vm;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use karri_base::id::{InstanceId, VolumeId};
use serde_json::json;
use tokio::sync::watch;

use super::hypervisor::{Boot, DISKS_MAX, Description, Hypervisor, HypervisorError, VmDisk, VmSpec, VmStatus};
use args::Accelerator;
use process::{Owner, ProcessId};
use vm::{Plugged, State, Vm, VmFile};

/// First uid (and gid) that machines run as; Debian gives none up there to anybody.
pub const UID_FIRST: u32 = 200_000;
/// How many such uids there are.
pub const UID_COUNT: u32 = 50_000;
/// How long QEMU may take to start: it connects to its disks meanwhile.
const START: Duration = Duration::from_secs(30);
/// Memory beyond the guest's that the cgroup allows QEMU: its own code, queues and, under TCG, translated code.
const OVERHEAD_BYTES: u64 = 1 << 30;

/// What a [`Qemu`] is made with.
#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// Folder of the machines' folders; made with mode 0700.
    pub folder: PathBuf,
    /// QEMU's program.
    pub program: String,
    /// KVM or TCG.
    pub accelerator: Accelerator,
    /// Give every machine a uid and cgroup of its own; needs root.
    pub confine: bool,
}

impl QemuConfig {
    /// What this machine can do, with the machines' folders under `folder`.
    pub fn detect(folder: PathBuf) -> Self {
        let accelerator = accelerator();
        Self { folder, program: "qemu-system-x86_64".into(), accelerator, confine: process::is_root() }
    }
}

/// KVM only where the CPU says that it can and the device opens: a /dev/kvm without vmx or svm hangs guests.
fn accelerator() -> Accelerator {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|l| l.starts_with("flags")).unwrap_or_default();
    let capable = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    let opens = || fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    if capable && opens() { Accelerator::Kvm } else { Accelerator::Tcg }
}

/// QEMU as a node's hypervisor.
pub struct Qemu {
    config: QemuConfig,
    vms: Mutex<HashMap<InstanceId, Arc<Vm>>>,
    choosing: Mutex<()>,
    changes: Arc<watch::Sender<u64>>,
}

impl Qemu {
    /// Makes the machines' folder. [`Hypervisor::adopt`] is to be called next.
    ///
    /// # Errors
    /// Where the folder cannot be made, or QEMU is not installed.
    pub fn open(config: QemuConfig) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.folder)?;
        let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .any(|folder| folder.join(&config.program).is_file());
        if !found {
            let why = format!("no {} on the PATH; on Debian: apt-get install qemu-system-x86", config.program);
            return Err(io::Error::new(io::ErrorKind::NotFound, why));
        }
        Ok(Self { config, vms: Mutex::default(), choosing: Mutex::default(), changes: Arc::new(watch::channel(0).0) })
    }

    fn vms(&self) -> MutexGuard<'_, HashMap<InstanceId, Arc<Vm>>> {
        self.vms.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn known(&self, instance: &InstanceId) -> Option<Arc<Vm>> {
        self.vms().get(instance).cloned()
    }

    /// The machine, if it runs.
    fn running(&self, instance: &InstanceId) -> Result<Arc<Vm>, HypervisorError> {
        self.known(instance)
            .filter(|vm| *vm.state().borrow() == State::Running)
            .ok_or_else(|| HypervisorError::NotRunning { instance: instance.clone() })
    }

    fn owner(&self) -> Option<Owner> {
        if !self.config.confine {
            return None;
        }
        let taken: BTreeSet<u32> = self.vms().values().filter_map(|vm| vm.owner()).map(|o| o.uid).collect();
        let uid = (UID_FIRST..UID_FIRST + UID_COUNT).find(|uid| !taken.contains(uid))?;
        // /dev/kvm opens to its group.
        let gid = match self.config.accelerator {
            Accelerator::Kvm => fs::metadata("/dev/kvm").map(|m| m.gid()).unwrap_or(uid),
            Accelerator::Tcg => uid,
        };
        Some(Owner { uid, gid })
    }

    /// Makes a machine's folder with all that QEMU reads at start.
    fn prepare(&self, folder: &Path, spec: &VmSpec, owner: Option<Owner>) -> io::Result<()> {
        match fs::remove_dir_all(folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let run = folder.join("run");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&run)?;
        if let Boot::Kernel { kernel, ramdisk, .. } = &spec.boot {
            link(kernel, &run.join(args::KERNEL))?;
            if let Some(ramdisk) = ramdisk {
                link(ramdisk, &run.join(args::RAMDISK))?;
            }
        }
        let write = |name: &str, bytes: &[u8]| -> io::Result<()> {
            let path = run.join(name);
            let mut file = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path)?;
            io::Write::write_all(&mut file, bytes)?;
            owner.map_or(Ok(()), |o| chown(&path, Some(o.uid), Some(o.gid)))
        };
        if !spec.user_data.is_empty() {
            write(args::USER_DATA, &spec.user_data)?;
        }
        if !spec.public_key.is_empty() {
            write(args::PUBLIC_KEY, spec.public_key.as_bytes())?;
        }
        owner.map_or(Ok(()), |o| chown(&run, Some(o.uid), Some(o.gid)))
    }

    /// Starts QEMU and waits until the guest's CPUs run.
    async fn boot(&self, vm: &Arc<Vm>, spec: &VmSpec, file: &VmFile) -> Result<(), HypervisorError> {
        let disks: Vec<(usize, VmDisk)> = {
            let mut disks: Vec<_> = file.plugged.values().map(|p| (p.slot, p.disk.clone())).collect();
            disks.sort_by_key(|(slot, _)| *slot);
            disks
        };
        for (_, disk) in &disks {
            vm.grant(disk).map_err(|e| vm.failed("opening the volume's socket to QEMU", e))?;
        }
        let sockets = file.sockets.as_deref();
        let line = args::command_line(&self.config.program, spec, &disks, sockets, self.config.accelerator);
        let log = vm.folder().join("qemu.log");
        let mut child = process::spawn(&line, &vm.folder().join("run"), sockets, &log, file.owner)
            .map_err(|e| vm.failed("starting QEMU", e))?;
        let pid = child.id().ok_or_else(|| vm.failed("starting QEMU", "it ended at once"))?;
        let process = ProcessId::of(pid);
        // Reaps it while this node lives.
        tokio::spawn(async move { child.wait().await });
        vm.update(|file| file.process = process.clone())?;
        if self.config.confine {
            let limits = process::limit(spec.instance.as_str(), pid, spec.vcpus, spec.memory_bytes + OVERHEAD_BYTES);
            tracing::info!(instance = %spec.instance, pid, uid = file.owner.map(|o| o.uid), limits, "started QEMU");
        }
        let deadline = tokio::time::Instant::now() + START;
        loop {
            if !process.as_ref().is_some_and(ProcessId::is_alive) {
                return Err(vm.failed("starting QEMU", format!("it ended: {}", vm.log_tail())));
            }
            if let Ok(qmp) = vm.connect().await
                && let Ok(status) = qmp.call("query-status", json!({}), Duration::from_secs(2)).await
                && status["status"] != "prelaunch"
            {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(HypervisorError::TimedOut {
                    instance: spec.instance.clone(),
                    op: "starting QEMU",
                    patience: START,
                    hint: "it waits for its volumes: does storage serve their sockets?",
                });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Takes one machine over, as its folder describes it.
    async fn adopt_one(&self, folder: PathBuf, file: VmFile) -> Arc<Vm> {
        let process = file.process.clone();
        let state = file.ended.clone().map_or(State::Starting, State::Gone);
        let ended = state != State::Starting;
        let vm = Vm::new(folder, file, state, self.changes.clone());
        if ended {
            return vm;
        }
        // Without a noted process the node died just after starting QEMU; the socket knows it.
        let patience = tokio::time::Instant::now() + Duration::from_secs(2);
        let alive = |process: &Option<ProcessId>| process.as_ref().is_none_or(ProcessId::is_alive);
        while alive(&process) {
            match vm.connect().await {
                Ok(_) => {
                    if let Err(error) = vm.reconcile().await {
                        tracing::warn!(instance = %vm.instance(), %error, "cannot compare the machine's disks");
                    }
                    break;
                }
                Err(error) if tokio::time::Instant::now() >= patience => {
                    tracing::warn!(instance = %vm.instance(), %error, "adopted a machine that does not answer yet");
                    break;
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        // The watch finds out whether the process is there, and why not.
        vm.run();
        vm
    }
}

/// A second name for a file of the node's cache, or a copy where that is on another file system. QEMU can read it and,
/// not owning it, not change it.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(|_| ()))
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.vms().values().for_each(|vm| vm.abandon());
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn describe(&self) -> Description {
        let accelerator = match self.config.accelerator {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        };
        Description { name: "qemu", accelerator, real: true }
    }

    async fn adopt(&self) -> Result<Vec<InstanceId>, HypervisorError> {
        if self.config.confine {
            process::sweep_limits();
        }
        let mut adopting = Vec::new();
        for entry in fs::read_dir(&self.config.folder).into_iter().flatten().flatten() {
            let folder = entry.path();
            match Vm::load(&folder) {
                Ok(file) => adopting.push(self.adopt_one(folder, file)),
                Err(error) => tracing::warn!(folder = %folder.display(), %error, "not a machine's folder"),
            }
        }
        let adopted = futures_util::future::join_all(adopting).await;
        let mut vms = self.vms();
        for vm in adopted {
            vms.insert(vm.instance().clone(), vm);
        }
        Ok(vms.keys().cloned().collect())
    }

    async fn start(&self, spec: &VmSpec) -> Result<(), HypervisorError> {
        let instance = &spec.instance;
        if self.running(instance).is_ok() {
            return Ok(());
        }
        let invalid = |why: String| HypervisorError::Invalid { instance: instance.clone(), why };
        if spec.disks.len() > DISKS_MAX {
            return Err(invalid(format!("{} disks are more than the {DISKS_MAX} that fit", spec.disks.len())));
        }
        if spec.vcpus == 0 || spec.vcpus > 255 || spec.memory_bytes == 0 || !spec.memory_bytes.is_multiple_of(1 << 20) {
            return Err(invalid(format!("no machine has {} CPUs and {} bytes", spec.vcpus, spec.memory_bytes)));
        }
        let failed = |op, why: String| HypervisorError::Failed { instance: instance.clone(), op, why };
        if let Some(missing) = spec.disks.iter().find(|disk| !disk.socket.exists()) {
            return Err(failed("starting QEMU", vm::no_socket(missing)));
        }
        let folder = self.config.folder.join(instance.as_str());
        let vm = {
            // Two machines that start at a time must not choose the same uid.
            let _one_at_a_time = self.choosing.lock().unwrap_or_else(|e| e.into_inner());
            let owner = self.owner();
            self.prepare(&folder, spec, owner).map_err(|e| failed("making the machine's folder", e.to_string()))?;
            let numbered = spec.disks.iter().cloned().enumerate();
            let plugged: BTreeMap<VolumeId, Plugged> =
                numbered.map(|(slot, disk)| (disk.volume.clone(), Plugged { slot, disk })).collect();
            if plugged.len() != spec.disks.len() {
                return Err(invalid("a volume is named twice".into()));
            }
            let sockets = spec.disks.first().and_then(|d| d.socket.parent()).map(Path::to_owned);
            let file = VmFile { version: 1, process: None, owner, sockets, spec: spec.clone(), plugged, ended: None };
            let vm = Vm::new(folder.clone(), file, State::Starting, self.changes.clone());
            self.vms().insert(instance.clone(), vm.clone());
            vm
        };
        vm.update(|_| {})?;
        match self.boot(&vm, spec, &vm.file()).await {
            Ok(()) => {
                vm.run();
                Ok(())
            }
            Err(error) => {
                if let Some(process) = vm.file().process {
                    let _ = process.kill();
                }
                process::unlimit(instance.to_string());
                self.vms().remove(instance);
                let _ = fs::remove_dir_all(&folder);
                Err(error)
            }
        }
    }

    async fn status(&self, instance: &InstanceId) -> VmStatus {
        let Some(vm) = self.known(instance) else { return VmStatus::Absent };
        let state = vm.state().borrow().clone();
        match state {
            State::Starting => VmStatus::Absent,
            State::Running => VmStatus::Running { volumes: vm.volumes() },
            State::Gone(reason) => VmStatus::Gone { reason },
        }
    }

    async fn press_power_button(&self, instance: &InstanceId) -> Result<(), HypervisorError> {
        let vm = self.running(instance)?;
        vm.call("system_powerdown", json!({})).await.map_err(|e| vm.failed("pressing the power button", e))?;
        Ok(())
    }

    async fn reboot(&self, instance: &InstanceId, grace: Duration) -> Result<(), HypervisorError> {
        self.running(instance)?.reboot(grace).await
    }

    async fn kill(&self, instance: &InstanceId) -> Result<(), HypervisorError> {
        match self.running(instance) {
            Ok(vm) => vm.kill().await,
            Err(_) => Ok(()),
        }
    }

    async fn wait_gone(&self, instance: &InstanceId, at_most: Duration) -> bool {
        let Ok(vm) = self.running(instance) else { return true };
        let mut state = vm.state();
        tokio::time::timeout(at_most, state.wait_for(|s| matches!(s, State::Gone(_)))).await.is_ok()
    }

    async fn plug(&self, instance: &InstanceId, disk: &VmDisk) -> Result<(), HypervisorError> {
        self.running(instance)?.plug(disk).await
    }

    async fn unplug(
        &self,
        instance: &InstanceId,
        volume: &VolumeId,
        patience: Duration,
    ) -> Result<(), HypervisorError> {
        self.running(instance)?.unplug(volume, patience).await
    }

    async fn console(&self, instance: &InstanceId) -> Vec<u8> {
        let Some(vm) = self.known(instance) else { return Vec::new() };
        if *vm.state().borrow() == State::Running {
            vm.drain_console().await;
        }
        vm.console_tail()
    }

    async fn forget(&self, instance: &InstanceId) -> Result<(), HypervisorError> {
        if self.running(instance).is_ok() {
            return Err(HypervisorError::Invalid { instance: instance.clone(), why: "it still runs".into() });
        }
        self.vms().remove(instance);
        match fs::remove_dir_all(self.config.folder.join(instance.as_str())) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(HypervisorError::Failed { instance: instance.clone(), op: "forgetting", why: e.to_string() })
            }
            _ => Ok(()),
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests;
