//! Processes that are started, measured and ended.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where servers run; the load runs on the other core.
const SERVER_CORE: &str = "0";
const LOAD_CORE: &str = "1";

/// The kernel's tick of `/proc/PID/stat`, which is 100 a second on every Linux.
const TICK_US: u64 = 10_000;

/// One or more processes that serve together. Killed when dropped.
pub struct Server {
    /// As the tables call it.
    pub name: &'static str,
    pinned: bool,
    children: Vec<Child>,
    /// Processes that somebody else started.
    foreign: Vec<u32>,
}

impl Server {
    /// A server of no process yet, free to use every core.
    pub fn new(name: &'static str) -> Self {
        Self { name, pinned: false, children: Vec::new(), foreign: Vec::new() }
    }

    /// A server of no process yet, kept to one core where there are two.
    pub fn pinned(name: &'static str) -> Self {
        let mut server = Self::new(name);
        server.pinned = true;
        server
    }

    /// Kept to one core, or not.
    pub fn on(name: &'static str, pinned: bool) -> Self {
        if pinned { Self::pinned(name) } else { Self::new(name) }
    }

    /// Counts a process that runs already as one of it.
    pub fn count(&mut self, pid: u32) {
        self.foreign.push(pid);
    }

    fn pids(&self) -> impl Iterator<Item = u32> {
        self.children.iter().map(Child::id).chain(self.foreign.iter().copied())
    }

    /// The most memory that its processes had resident, in bytes.
    pub fn peak_bytes(&self) -> u64 {
        self.pids().map(peak_bytes).sum()
    }

    /// Starts a process of it, output to `log`.
    ///
    /// # Errors
    /// A sentence naming the program.
    pub fn spawn(&mut self, program: &Path, args: &[String], folder: &Path, log: &str) -> Result<(), String> {
        let io = |e: std::io::Error| format!("{}: {e}", program.display());
        let log = File::create(folder.join(log)).map_err(io)?;
        let mut command = if self.pinned { on_core(program, SERVER_CORE) } else { Command::new(program) };
        command.args(args).current_dir(folder).stdin(Stdio::null()).stderr(log.try_clone().map_err(io)?).stdout(log);
        self.children.push(command.spawn().map_err(io)?);
        Ok(())
    }

    /// CPU time so far of all its processes, in microseconds.
    pub fn cpu_us(&self) -> u64 {
        self.pids().map(cpu_us).sum()
    }

    /// Waits until its processes do next to nothing: what they had put off is done. At most two minutes.
    pub fn rest(&self) {
        let began = Instant::now();
        loop {
            let before = self.cpu_us();
            pause(Duration::from_secs(1));
            if self.cpu_us() - before <= 2 * TICK_US || began.elapsed() > Duration::from_secs(120) {
                return;
            }
        }
    }

    /// Waits until `ready` says so.
    ///
    /// # Errors
    /// A sentence with the log's end, where a process ends or 30 seconds pass.
    pub fn wait(&mut self, folder: &Path, log: &str, mut ready: impl FnMut() -> bool) -> Result<(), String> {
        let began = Instant::now();
        while !ready() {
            let ended = self.children.iter_mut().find_map(|child| child.try_wait().ok().flatten());
            if ended.is_some() || began.elapsed() > Duration::from_secs(30) {
                let text = std::fs::read_to_string(folder.join(log)).unwrap_or_default();
                let end: Vec<&str> = text.lines().rev().take(5).collect();
                let what = ended.map_or("is not ready after 30 s".into(), |status| format!("ended: {status}"));
                return Err(format!("{} {what}; {}", self.name, end.join(" | ")));
            }
            pause(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Nothing tells when a foreign server is ready: look again after this long.
pub fn pause(time: Duration) {
    let time = rustix::event::Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
    let _ = rustix::event::poll(&mut [], Some(&time));
}

/// Keeps this process, the load, to its core.
pub fn pin_load() {
    if two_cores() {
        let me = std::process::id().to_string();
        let _ = Command::new("taskset").args(["-a", "-p", "-c", LOAD_CORE, &me]).stdout(Stdio::null()).status();
    }
}

fn two_cores() -> bool {
    Path::new("/sys/devices/system/cpu/cpu1").exists() && installed(Path::new("taskset"))
}

fn on_core(program: &Path, core: &str) -> Command {
    if !two_cores() {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["-c", core]).arg(program);
    command
}

/// Whether a program is there, by path or by name.
pub fn installed(program: &Path) -> bool {
    if program.components().count() > 1 {
        return program.exists();
    }
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).exists()))
}

fn cpu_us(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name in parentheses: state is field 3, utime 14, stime 15 (proc(5)).
    let fields = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    fields.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() * TICK_US
}

fn peak_bytes(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) << 10
}

/// A port that is free now.
///
/// # Errors
/// The system's words.
pub fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    listener.local_addr().map(|addr| addr.port()).map_err(|e| e.to_string())
}
