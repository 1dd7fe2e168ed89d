//! QEMU's process: started in its own session under its own uid, found again by pid and start time, ended by pidfd.
//!
//! Nothing ties the process to the node's: no pipe, no controlling terminal, no parent-death signal.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// Names one process for all time: its pid, when it started (clock ticks since boot) and which boot that was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The pid.
    pub pid: u32,
    start_ticks: u64,
    boot: String,
}

impl ProcessId {
    /// The process that has `pid` now; `None` when there is none, or only a zombie.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let start_ticks = start_ticks(&stat)?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        Some(Self { pid, start_ticks, boot })
    }

    /// True while this very process runs.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// Sends SIGKILL to this very process; one that is gone is no error.
    pub fn kill(&self) -> io::Result<()> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
        // The pidfd holds on to one process, so that what is checked now is what the signal reaches.
        if !self.is_alive() {
            return Ok(());
        }
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// The start time (field 22, proc(5)) of a process that is not a zombie. The name in field 2 may hold anything but its
/// last parenthesis.
fn start_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (state != "Z" && state != "X").then_some(())?;
    fields.nth(18)?.parse().ok()
}

/// True when this process may give others other uids.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whom QEMU runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group: the user's own, or that of /dev/kvm.
    pub gid: u32,
}

/// Opens a folder so that it can only be passed through, not listed.
fn open_folder(path: &Path) -> io::Result<File> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Starts `args` in a session of its own with `run` as its working folder, `sockets` as its standard output (a handle
/// for paths, never written to) and standard error appended to `log`.
///
/// # Errors
/// Where a folder, the log or a program is missing.
pub fn spawn(
    args: &[String],
    run: &Path,
    sockets: Option<&Path>,
    log: &Path,
    owner: Option<Owner>,
) -> io::Result<tokio::process::Child> {
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(log)?;
    // env changes the folder after the uid was dropped, through a handle that the folders above cannot refuse; setsid
    // runs in the place of env, and QEMU in the place of setsid, so that the child's pid is QEMU's.
    let mut command = tokio::process::Command::new("env");
    command
        .args(["-C", "/proc/self/fd/0", "setsid"])
        .args(args)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(open_folder(run)?)
        .stderr(log)
        .kill_on_drop(false);
    match sockets {
        Some(sockets) => command.stdout(open_folder(sockets)?),
        None => command.stdout(Stdio::null()),
    };
    if let Some(owner) = owner {
        command.uid(owner.uid).gid(owner.gid);
    }
    command.spawn()
}

/// Puts a process into a cgroup of its own with limits, where cgroups can be written; says what was done, for the log.
/// cgroup v2 needs its controllers on for the root's children (systemd does that); v1 is used controller by controller.
pub fn limit(name: &str, pid: u32, vcpus: u32, memory_bytes_max: u64) -> String {
    let root = Path::new("/sys/fs/cgroup");
    let period_us = 100_000u64;
    let quota_us = (period_us * u64::from(vcpus)) + period_us / 2; // half a CPU for QEMU's own threads
    let shares = (1024 * u64::from(vcpus)).min(262_144);
    let memory = memory_bytes_max.to_string();
    let join = |folder: &Path, settings: &[(&str, String)]| -> io::Result<()> {
        fs::create_dir_all(folder)?;
        for (file, value) in settings {
            fs::write(folder.join(file), value)?;
        }
        fs::write(folder.join("cgroup.procs"), pid.to_string())
    };
    let mut done = Vec::new();
    if root.join("cgroup.controllers").exists() {
        let folder = root.join("karri").join(name);
        // Without controllers the settings' files do not exist; the group alone still names the process.
        let _ = fs::create_dir_all(root.join("karri"))
            .and_then(|()| fs::write(root.join("karri/cgroup.subtree_control"), "+cpu +memory +pids"));
        let settings =
            [("memory.max", memory), ("cpu.max", format!("{quota_us} {period_us}")), ("pids.max", "512".to_owned())];
        match join(&folder, &settings) {
            Ok(()) => done.push("cgroup v2".to_owned()),
            Err(e) => done.push(format!("no cgroup v2 limits ({e})")),
        }
    } else {
        let v1: [(&str, Vec<(&str, String)>); 3] = [
            ("memory", vec![("memory.limit_in_bytes", memory)]),
            (
                "cpu",
                vec![
                    ("cpu.cfs_period_us", period_us.to_string()),
                    ("cpu.cfs_quota_us", quota_us.to_string()),
                    ("cpu.shares", shares.to_string()),
                ],
            ),
            ("pids", vec![("pids.max", "512".to_owned())]),
        ];
        for (controller, settings) in v1 {
            match join(&root.join(controller).join("karri").join(name), &settings) {
                Ok(()) => done.push(format!("cgroup v1 {controller}")),
                Err(e) => done.push(format!("no {controller} limit ({e})")),
            }
        }
    }
    done.join(", ")
}

/// Removes a process's cgroup in the background: it empties a moment after the process has ended.
pub fn unlimit(name: String) {
    tokio::spawn(async move {
        for _ in 0..100 {
            let busy = ["", "memory", "cpu", "pids"].into_iter().any(|controller| {
                let folder = Path::new("/sys/fs/cgroup").join(controller).join("karri").join(&name);
                matches!(fs::remove_dir(folder), Err(e) if e.kind() == io::ErrorKind::ResourceBusy)
            });
            if !busy {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        tracing::warn!(instance = name, "its cgroup stays behind");
    });
}

/// Removes cgroups without processes that earlier nodes left: their machines ended while no node was there. One that was
/// made just now may be about to get its process.
pub fn sweep_limits() {
    for controller in ["", "memory", "cpu", "pids"] {
        let groups = fs::read_dir(Path::new("/sys/fs/cgroup").join(controller).join("karri"));
        for group in groups.into_iter().flatten().flatten() {
            let made = group.metadata().and_then(|meta| meta.modified()).ok();
            let old = made.and_then(|at| at.elapsed().ok()).is_some_and(|age| age.as_secs() > 60);
            if old && group.file_type().is_ok_and(|kind| kind.is_dir()) {
                let _ = fs::remove_dir(group.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_time_too() {
        let me = ProcessId::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        let earlier = ProcessId { start_ticks: me.start_ticks.wrapping_sub(1), ..me.clone() };
        assert!(!earlier.is_alive());
        earlier.kill().unwrap();
        let other_boot = ProcessId { boot: "x".into(), ..me };
        assert!(!other_boot.is_alive());
    }

    #[test]
    fn stat_is_read_past_any_name() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(start_ticks(&format!("7 (a) b) (c) {tail}")), Some(4242));
        assert_eq!(start_ticks(&format!("7 (a) {}", tail.replace('S', "Z"))), None);
        assert_eq!(start_ticks("rubbish"), None);
    }
}
