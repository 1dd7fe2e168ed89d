//! One QEMU machine: its folder, its QMP connection and the task that watches over it.
//!
//! ```text
//! instances/i-0123456789abcdef0/    root's, mode 0700: what the node believes
//!   vm.json                         process, owner, spec, plugged disks, how it ended
//!   console.log  qemu.log           the guest's last words; QEMU's
//!   run/                            the machine's own uid's, mode 0700, removed when the machine ends
//!     qmp.sock  qmp-debug.sock      the node's; an operator's
//!     kernel  ramdisk  user-data    what QEMU reads at start
//! ```
//!
//! Nothing that QEMU's uid can write is ever believed: the peer of the QMP socket must be the process in `vm.json`.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine as _;
use karri_base::id::{InstanceId, VolumeId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::args::{self, QMP_SOCKET};
use super::console::{Console, tail};
use super::process::{Owner, ProcessId, unlimit};
use super::qmp::{Qmp, QmpError};
use crate::node::hypervisor::{DISKS_MAX, Ended, HypervisorError, VmDisk, VmSpec};

/// How long QEMU may take for a command.
const CALL: Duration = Duration::from_secs(10);
/// How often the console is read: at once again while there is output, rarely when there is none.
const TICK_MIN: Duration = Duration::from_millis(100);
const TICK_MAX: Duration = Duration::from_secs(1);
/// QEMU's log is emptied beyond this; a guest can make it print warnings.
const LOG_BYTES_MAX: u64 = 1 << 20;

/// `vm.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmFile {
    /// 1.
    pub version: u32,
    /// QEMU, once it was started.
    pub process: Option<ProcessId>,
    /// Whom it runs as; `None` as the node itself.
    pub owner: Option<Owner>,
    /// The folder of vhost-user sockets that QEMU holds as its standard output.
    pub sockets: Option<PathBuf>,
    /// What was asked for at start.
    pub spec: VmSpec,
    /// Disks by volume and their root ports; written before a disk is plugged and after it is unplugged.
    pub plugged: BTreeMap<VolumeId, Plugged>,
    /// How it ended.
    pub ended: Option<Ended>,
}

/// A disk in its root port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plugged {
    /// Which root port.
    pub slot: usize,
    /// The disk.
    pub disk: VmDisk,
}

/// Where a machine is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// QEMU is being started.
    Starting,
    /// QEMU runs.
    Running,
    /// QEMU is gone.
    Gone(Ended),
}

/// One machine.
#[derive(Debug)]
pub struct Vm {
    instance: InstanceId,
    folder: PathBuf,
    file: Mutex<VmFile>,
    state: watch::Sender<State>,
    qmp: watch::Sender<Option<Qmp>>,
    task: Mutex<Option<AbortHandle>>,
    console: Console,
    draining: tokio::sync::Mutex<()>,
    killed: AtomicBool,
    /// True while the guest's next shutdown is the first half of a reboot.
    rebooting: watch::Sender<bool>,
    changes: Arc<watch::Sender<u64>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Vm {
    /// A machine whose file is `file`, in `state`.
    pub fn new(folder: PathBuf, file: VmFile, state: State, changes: Arc<watch::Sender<u64>>) -> Arc<Self> {
        Arc::new(Self {
            instance: file.spec.instance.clone(),
            console: Console::at(folder.join("console.log")),
            folder,
            file: Mutex::new(file),
            state: watch::channel(state).0,
            qmp: watch::channel(None).0,
            task: Mutex::new(None),
            draining: tokio::sync::Mutex::new(()),
            killed: AtomicBool::new(false),
            rebooting: watch::channel(false).0,
            changes,
        })
    }

    /// Reads a machine's file.
    pub fn load(folder: &Path) -> io::Result<VmFile> {
        let file: VmFile = serde_json::from_slice(&fs::read(folder.join("vm.json"))?)?;
        if file.version != 1 {
            return Err(io::Error::other(format!("version {} is not one that this node reads", file.version)));
        }
        Ok(file)
    }

    /// Whose machine it is.
    pub fn instance(&self) -> &InstanceId {
        &self.instance
    }
    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
    /// Its life.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }
    /// Whom it runs as.
    pub fn owner(&self) -> Option<Owner> {
        locked(&self.file).owner
    }
    /// The volumes that are plugged in.
    pub fn volumes(&self) -> Vec<VolumeId> {
        locked(&self.file).plugged.keys().cloned().collect()
    }
    /// The console's last bytes.
    pub fn console_tail(&self) -> Vec<u8> {
        self.console.tail()
    }
    /// What is noted about it.
    pub fn file(&self) -> VmFile {
        locked(&self.file).clone()
    }
    fn process(&self) -> Option<ProcessId> {
        locked(&self.file).process.clone()
    }

    /// Changes the file, in memory and on disk; the disk need not survive power loss, which no machine does.
    pub fn update(&self, change: impl FnOnce(&mut VmFile)) -> Result<(), HypervisorError> {
        let mut file = locked(&self.file);
        change(&mut file);
        let write = || -> io::Result<()> {
            let new = self.folder.join("vm.json.new");
            let mut out = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
            io::Write::write_all(&mut out, &serde_json::to_vec_pretty(&*file)?)?;
            fs::rename(&new, self.folder.join("vm.json"))
        };
        write().map_err(|e| self.failed("writing vm.json", e))
    }

    /// An error of this machine.
    pub fn failed(&self, op: &'static str, why: impl ToString) -> HypervisorError {
        HypervisorError::Failed { instance: self.instance.clone(), op, why: why.to_string() }
    }

    /// The last lines of QEMU's log, for messages.
    pub fn log_tail(&self) -> String {
        let text = String::from_utf8_lossy(&tail(&self.folder.join("qemu.log"), 1024)).into_owned();
        let lines: Vec<&str> = text.lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("; ")
    }

    // --- QMP ---------------------------------------------------------------------------------------------------------

    /// Connects to QEMU. The path goes through a handle of the folder: UNIX addresses hold 108 bytes only.
    pub async fn connect(&self) -> Result<Qmp, QmpError> {
        let closed = |e: io::Error| QmpError::Closed { why: e.to_string() };
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let run = OpenOptions::new().read(true).custom_flags(flags).open(self.folder.join("run")).map_err(closed)?;
        let path = format!("/proc/self/fd/{}/{QMP_SOCKET}", run.as_raw_fd());
        let stream = UnixStream::connect(path).await.map_err(closed)?;
        let peer = stream.peer_cred().map_err(closed)?.pid().and_then(|pid| u32::try_from(pid).ok());
        let known = self.process();
        match (peer, known) {
            (Some(peer), Some(known)) if known.pid != peer => {
                return Err(QmpError::Closed {
                    why: format!("process {peer} serves the socket of process {}", known.pid),
                });
            }
            // The node died between starting QEMU and noting its pid.
            (Some(peer), None) => {
                let process = ProcessId::of(peer);
                self.update(|file| file.process = process).map_err(|e| QmpError::Closed { why: e.to_string() })?;
            }
            _ => {}
        }
        let qmp = Qmp::connect(stream, Duration::from_secs(2)).await?;
        self.qmp.send_replace(Some(qmp.clone()));
        Ok(qmp)
    }

    /// Runs a command; waits for the connection where it is being made anew.
    pub async fn call(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let mut qmp = self.qmp.subscribe();
        let connected = tokio::time::timeout(CALL, qmp.wait_for(Option::is_some)).await;
        let qmp = connected.ok().and_then(Result::ok).and_then(|qmp| qmp.clone());
        qmp.ok_or(QmpError::Closed { why: "not connected".into() })?.call(command, arguments, CALL).await
    }

    /// The ids of the machine's devices.
    async fn devices(&self) -> Result<Vec<String>, QmpError> {
        let list = self.call("qom-list", json!({"path": "/machine/peripheral"})).await?;
        let names = list.as_array().into_iter().flatten();
        Ok(names.filter_map(|d| d["name"].as_str().map(str::to_owned)).collect())
    }

    /// Moves the console's ring into its file; true when there was something.
    pub async fn drain_console(&self) -> bool {
        let _one_at_a_time = self.draining.lock().await;
        let mut any = false;
        // Bounded: a guest that prints faster than this is read does not hold the caller.
        for _ in 0..8 {
            let size = 64 * 1024;
            let read = json!({"device": "console", "size": size, "format": "base64"});
            let Ok(answer) = self.call("ringbuf-read", read).await else { return any };
            let text = answer.as_str().unwrap_or_default();
            let Ok(bytes) = base64::engine::general_purpose::STANDARD.decode(text) else { return any };
            if bytes.is_empty() {
                return any;
            }
            any = true;
            if let Err(error) = self.console.append(&bytes) {
                tracing::warn!(instance = %self.instance, %error, "cannot keep the console");
                return any;
            }
            if bytes.len() < size {
                return any;
            }
        }
        any
    }

    // --- disks -------------------------------------------------------------------------------------------------------

    /// Lets QEMU's uid, and no other, connect to a disk's socket. Storage makes a new socket when it is restarted, so
    /// this is repeated for as long as the machine runs.
    pub fn grant(&self, disk: &VmDisk) -> io::Result<()> {
        let Some(owner) = self.owner() else { return Ok(()) };
        grant(&disk.socket, owner)
    }

    /// Plugs a disk in.
    pub async fn plug(&self, disk: &VmDisk) -> Result<(), HypervisorError> {
        let devices = self.devices().await.map_err(|e| self.failed("listing devices", e))?;
        if devices.contains(&args::device_id(disk)) {
            return Ok(());
        }
        if !disk.socket.exists() {
            return Err(self.failed("plugging a disk", no_socket(disk)));
        }
        let (slot, sockets) = {
            let file = locked(&self.file);
            let taken: Vec<usize> = file.plugged.values().map(|p| p.slot).collect();
            let known = file.plugged.get(&disk.volume).map(|p| p.slot);
            (known.or((0..DISKS_MAX).find(|slot| !taken.contains(slot))), file.sockets.clone())
        };
        let Some(slot) = slot else {
            let why = format!("volume {} does not fit: all {DISKS_MAX} disk slots are taken; detach one", disk.volume);
            return Err(HypervisorError::Invalid { instance: self.instance.clone(), why });
        };
        self.update(|file| {
            file.plugged.insert(disk.volume.clone(), Plugged { slot, disk: disk.clone() });
        })?;
        self.grant(disk).map_err(|e| self.failed("opening the volume's socket to QEMU", e))?;
        // A leftover of a plug that was cut short.
        let _ = self.call("chardev-remove", json!({"id": args::chardev_id(disk)})).await;
        let added = async {
            self.call("chardev-add", args::disk_chardev(disk, sockets.as_deref())).await?;
            self.call("device_add", args::disk_device(disk, slot, false)).await
        };
        if let Err(e) = added.await {
            let _ = self.call("chardev-remove", json!({"id": args::chardev_id(disk)})).await;
            self.update(|file| {
                file.plugged.remove(&disk.volume);
            })?;
            return Err(self.failed("plugging a disk", e));
        }
        Ok(())
    }

    /// Asks the guest for a disk back.
    pub async fn unplug(&self, volume: &VolumeId, patience: Duration) -> Result<(), HypervisorError> {
        let Some(plugged) = locked(&self.file).plugged.get(volume).cloned() else { return Ok(()) };
        let device = args::device_id(&plugged.disk);
        let deadline = tokio::time::Instant::now() + patience;
        let mut asked: Option<tokio::time::Instant> = None;
        while self.devices().await.map_err(|e| self.failed("listing devices", e))?.contains(&device) {
            let now = tokio::time::Instant::now();
            if now >= deadline {
                return Err(HypervisorError::TimedOut {
                    instance: self.instance.clone(),
                    op: "unplugging a disk",
                    patience,
                    hint: "the guest holds on to it: is it still booting, or is the disk mounted?",
                });
            }
            // A guest that is booting hears nothing; ask again.
            if asked.is_none_or(|at| now - at > Duration::from_secs(3)) {
                asked = Some(now);
                match self.call("device_del", json!({"id": device})).await {
                    Ok(_) => {}
                    Err(e) if e.is_device_not_found() => break,
                    Err(QmpError::Refused { .. }) => {} // already asked
                    Err(e) => return Err(self.failed("unplugging a disk", e)),
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // The device lets go of its connection a moment after it is gone.
        for _ in 0..40 {
            match self.call("chardev-remove", json!({"id": args::chardev_id(&plugged.disk)})).await {
                Err(QmpError::Refused { desc, .. }) if desc.contains("busy") => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                _ => break,
            }
        }
        self.update(|file| {
            file.plugged.remove(volume);
        })
    }

    /// Forgets plug records that QEMU knows nothing of, after a node died in the middle of one.
    pub async fn reconcile(&self) -> Result<(), HypervisorError> {
        let devices = self.devices().await.map_err(|e| self.failed("listing devices", e))?;
        let lost = |p: &Plugged| !devices.contains(&args::device_id(&p.disk));
        let stale: Vec<Plugged> = locked(&self.file).plugged.values().filter(|p| lost(p)).cloned().collect();
        for plugged in &stale {
            let _ = self.call("chardev-remove", json!({"id": args::chardev_id(&plugged.disk)})).await;
        }
        if stale.is_empty() {
            return Ok(());
        }
        self.update(|file| file.plugged.retain(|_, p| !lost(p)))
    }

    /// Lets the guest shut down, then boots it again; after `grace`, or where it does not listen, resets it.
    pub async fn reboot(&self, grace: Duration) -> Result<(), HypervisorError> {
        if !grace.is_zero() {
            let mut rebooting = self.rebooting.subscribe();
            self.rebooting.send_replace(true);
            if self.call("system_powerdown", json!({})).await.is_ok() {
                let done = rebooting.wait_for(|rebooting| !rebooting);
                if tokio::time::timeout(grace, done).await.is_ok() {
                    return Ok(());
                }
            }
            // False already where the guest shut down at this very moment.
            if !self.rebooting.send_replace(false) {
                return Ok(());
            }
        }
        self.call("system_reset", json!({})).await.map_err(|e| self.failed("resetting", e))?;
        Ok(())
    }

    /// Boots the guest again that has shut down, when that was asked for.
    async fn boot_again(&self) -> bool {
        if !*self.rebooting.borrow() {
            return false;
        }
        let booted = async {
            self.call("system_reset", json!({})).await?;
            self.call("cont", json!({})).await
        };
        let booted = booted.await;
        self.rebooting.send_replace(false);
        if let Err(error) = &booted {
            tracing::error!(instance = %self.instance, %error, "the guest does not boot again");
        }
        booted.is_ok()
    }

    // --- the end -----------------------------------------------------------------------------------------------------

    /// Ends QEMU and answers when it is gone and the watch has seen it.
    pub async fn kill(&self) -> Result<(), HypervisorError> {
        self.killed.store(true, Ordering::Relaxed);
        let mut state = self.state();
        let gone = |state: &State| matches!(state, State::Gone(_));
        if gone(&state.borrow()) {
            return Ok(());
        }
        self.drain_console().await;
        let quit = tokio::time::timeout(Duration::from_secs(2), self.call("quit", json!({}))).await;
        let mut patience = if matches!(quit, Ok(Ok(_))) { Duration::from_secs(5) } else { Duration::ZERO };
        for _ in 0..2 {
            if tokio::time::timeout(patience, state.wait_for(gone)).await.is_ok() {
                return Ok(());
            }
            if let Some(process) = self.process() {
                process.kill().map_err(|e| self.failed("killing QEMU", e))?;
            }
            patience = Duration::from_secs(10);
        }
        Err(self.failed("killing QEMU", "the process does not end"))
    }

    /// Marks the machine as gone.
    pub fn finish(&self, ended: Ended) {
        let ended = if self.killed.load(Ordering::Relaxed) && ended != Ended::Guest { Ended::Killed } else { ended };
        let noted = self.update(|file| {
            file.ended = Some(ended.clone());
            file.process = None;
            file.plugged.clear();
        });
        if let Err(error) = noted {
            tracing::error!(instance = %self.instance, %error, "cannot note that the machine ended");
        }
        let _ = fs::remove_dir_all(self.folder.join("run"));
        unlimit(self.instance.to_string());
        self.qmp.send_replace(None);
        tracing::info!(instance = %self.instance, reason = %ended.state_reason(), "machine ended");
        self.state.send_replace(State::Gone(ended));
        self.changes.send_modify(|n| *n += 1);
    }

    /// Says that the machine runs and watches over it until it is gone.
    pub fn run(self: &Arc<Self>) {
        self.state.send_replace(State::Running);
        let vm = self.clone();
        let task = tokio::spawn(async move { vm.watch().await });
        *locked(&self.task) = Some(task.abort_handle());
    }

    /// Lets go of the machine, which runs on: ends the watch and the connection.
    pub fn abandon(&self) {
        if let Some(task) = locked(&self.task).take() {
            task.abort();
        }
        self.qmp.send_replace(None);
    }

    fn is_alive(&self) -> bool {
        self.process().is_some_and(|p| p.is_alive())
    }

    async fn watch(&self) {
        while self.is_alive() {
            let qmp = self.qmp.borrow().clone();
            let qmp = match qmp {
                Some(qmp) => qmp,
                None => match self.connect().await {
                    Ok(qmp) => qmp,
                    Err(error) => {
                        tracing::debug!(instance = %self.instance, %error, "QMP is not there");
                        tokio::time::sleep(TICK_MAX / 4).await;
                        continue;
                    }
                },
            };
            if self.attend(&qmp).await {
                // The guest shut down and QEMU waits, paused, for exactly this.
                self.drain_console().await;
                let _ = self.call("quit", json!({})).await;
                if !self.ends_within(Duration::from_secs(5)).await {
                    let _ = self.process().map(|p| p.kill());
                    self.ends_within(Duration::from_secs(5)).await;
                }
                return self.finish(Ended::Guest);
            }
            self.qmp.send_replace(None);
        }
        let log = self.log_tail();
        let why = if log.is_empty() { "QEMU's process is gone".to_owned() } else { format!("QEMU said: {log}") };
        self.finish(Ended::Crashed { why });
    }

    async fn ends_within(&self, patience: Duration) -> bool {
        let poll = async {
            while self.is_alive() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(patience, poll).await.is_ok()
    }

    /// Serves one connection: true when the guest shut down, false when the connection ended.
    async fn attend(&self, qmp: &Qmp) -> bool {
        let mut shutdown = qmp.shutdown();
        // The event may have come while nobody was connected.
        if let Ok(status) = qmp.call("query-status", json!({}), CALL).await
            && matches!(status["status"].as_str(), Some("shutdown" | "guest-panicked"))
        {
            return true;
        }
        let mut tick = TICK_MIN;
        let mut chores = tokio::time::Instant::now();
        loop {
            tokio::select! {
                () = qmp.closed() => return false,
                changed = shutdown.changed() => {
                    let guest = shutdown.borrow_and_update().as_deref().is_some_and(|why| why.starts_with("guest"));
                    if changed.is_err() { return false }
                    if guest && !self.boot_again().await { return true }
                }
                () = tokio::time::sleep(tick) => {}
            }
            tick = if self.drain_console().await { TICK_MIN } else { (tick * 2).min(TICK_MAX) };
            if chores.elapsed() >= TICK_MAX {
                chores = tokio::time::Instant::now();
                self.chores();
            }
        }
    }

    /// What is looked after every second.
    fn chores(&self) {
        let disks: Vec<VmDisk> = locked(&self.file).plugged.values().map(|p| p.disk.clone()).collect();
        for disk in disks {
            // Without storage there is no socket; QEMU keeps trying, and so does this.
            let _ = self.grant(&disk);
        }
        let log = self.folder.join("qemu.log");
        if fs::metadata(&log).is_ok_and(|m| m.len() > LOG_BYTES_MAX) {
            let _ = File::options().write(true).open(&log).and_then(|f| f.set_len(0));
        }
    }
}

/// What is said of a volume whose server is not there.
pub fn no_socket(disk: &VmDisk) -> String {
    format!("volume {}: no socket at {}; does the storage role run and export it?", disk.volume, disk.socket.display())
}

/// Gives a socket to `owner` and lets everybody pass through (not list) its folder.
pub fn grant(socket: &Path, owner: Owner) -> io::Result<()> {
    let meta = fs::symlink_metadata(socket)?;
    if meta.uid() != owner.uid {
        chown(socket, Some(owner.uid), None)?;
    }
    if meta.mode() & 0o600 != 0o600 {
        fs::set_permissions(socket, fs::Permissions::from_mode(meta.mode() & 0o777 | 0o600))?;
    }
    if let Some(folder) = socket.parent() {
        let mode = fs::metadata(folder)?.mode();
        if mode & 0o001 == 0 {
            fs::set_permissions(folder, fs::Permissions::from_mode(mode & 0o7777 | 0o001))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What version 1 of karri wrote must stay readable: a machine may outlive the karri that started it.
    #[test]
    fn a_file_of_version_1_is_read() {
        let text = r#"{"version":1,"process":{"pid":4711,"start_ticks":99,"boot":"b"},"owner":{"uid":200000,"gid":200000},
            "sockets":"/s","spec":{"instance":"i-00000001","vcpus":1,"memory_bytes":268435456,
            "boot":{"Kernel":{"kernel":"/k","ramdisk":null,"cmdline":"c"}},
            "disks":[{"volume":"vol-00000001","socket":"/s/a.sock"}],
            "nics":[{"eni":"eni-00000001","mac":[2,0,0,0,0,1],"wiring":{"kind":"user","network":"172.31.0.0",
            "prefix":20,"gateway":"172.31.0.1","dns":"172.31.0.2","guest":"172.31.0.9"}}],
            "user_data":[35,33],"public_key":""},
            "plugged":{"vol-00000001":{"slot":0,"disk":{"volume":"vol-00000001","socket":"/s/a.sock"}}},
            "ended":{"Crashed":{"why":"w"}}}"#;
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("vm.json"), text).unwrap();
        let file = Vm::load(folder.path()).unwrap();
        assert_eq!((file.plugged.len(), file.spec.disks[0].volume.as_str()), (1, "vol-00000001"));
        assert_eq!(file.ended, Some(Ended::Crashed { why: "w".into() }));
        fs::write(folder.path().join("vm.json"), text.replace("\"version\":1", "\"version\":2")).unwrap();
        assert!(Vm::load(folder.path()).unwrap_err().to_string().contains("version 2"));
    }
}
