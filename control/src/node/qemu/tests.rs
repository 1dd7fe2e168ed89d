//! Real QEMU under TCG with karri's guest; disks are served by qemu-storage-daemon.

use std::process::{Child, Command};

use super::*;
use crate::node::conformance::{self, Bench, console_says};
use crate::node::hypervisor::Ended;

/// A served pair of disks and folders of its own.
struct Host {
    folder: tempfile::TempDir,
    guest: PathBuf,
    storage: Option<Child>,
}

/// The guest's folder, or the reason to skip.
fn guest() -> Result<PathBuf, String> {
    let folder = std::env::var_os("KARRI_GUEST")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest"), PathBuf::from);
    for program in ["qemu-system-x86_64", "qemu-storage-daemon"] {
        if Command::new(program).arg("--version").output().is_err() {
            return Err(format!("no {program} here"));
        }
    }
    match ["vmlinuz", "initrd", "root.img"].iter().find(|name| !folder.join(name).exists()) {
        Some(name) => Err(format!("no {} (run `make guest`)", folder.join(name).display())),
        None => Ok(folder),
    }
}

impl Host {
    /// A host, unless something is missing on this machine.
    fn new(test: &str) -> Option<Self> {
        match guest() {
            Ok(guest) => {
                let folder = tempfile::tempdir().unwrap();
                fs::create_dir(folder.path().join("sockets")).unwrap();
                let copied = Command::new("cp")
                    .arg("--sparse=always")
                    .arg(guest.join("root.img"))
                    .arg(folder.path().join("root.img"))
                    .status();
                assert!(copied.unwrap().success());
                fs::File::create(folder.path().join("data.img")).unwrap().set_len(8 << 20).unwrap();
                let mut host = Self { folder, guest, storage: None };
                host.serve();
                Some(host)
            }
            Err(why) => {
                println!("SKIPPED {test}: {why}");
                None
            }
        }
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join("sockets").join(format!("{name}.sock"))
    }

    /// Serves the disks, again if they were.
    fn serve(&mut self) {
        self.stop_serving();
        let mut command = Command::new("qemu-storage-daemon");
        for name in ["root", "data"] {
            let _ = fs::remove_file(self.socket(name));
            let image = self.folder.path().join(format!("{name}.img"));
            command.args(["--blockdev", &format!("file,node-name={name},filename={}", image.display())]);
            let socket = self.socket(name);
            let at = format!("addr.type=unix,addr.path={}", socket.display());
            command.args(["--export", &format!("vhost-user-blk,id=e-{name},node-name={name},{at},writable=on")]);
        }
        self.storage = Some(command.spawn().unwrap());
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !(self.socket("root").exists() && self.socket("data").exists()) {
            assert!(std::time::Instant::now() < deadline, "qemu-storage-daemon does not listen");
            std::thread::yield_now();
        }
    }

    fn stop_serving(&mut self) {
        if let Some(mut child) = self.storage.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn open(&self) -> Qemu {
        Qemu::open(QemuConfig::detect(self.folder.path().join("instances"))).unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop_serving();
        // A test that failed leaves no machine behind.
        for entry in fs::read_dir(self.folder.path().join("instances")).into_iter().flatten().flatten() {
            if let Some(process) = Vm::load(&entry.path()).ok().and_then(|file| file.process) {
                let _ = process.kill();
            }
        }
    }
}

impl Bench for Host {
    fn open(&self) -> Arc<dyn Hypervisor> {
        Arc::new(Host::open(self))
    }
    fn spec(&self) -> VmSpec {
        let mut spec = conformance::plain_spec();
        spec.boot = Boot::Kernel {
            kernel: self.guest.join("vmlinuz"),
            ramdisk: Some(self.guest.join("initrd")),
            cmdline: "console=ttyS0 quiet".into(),
        };
        spec.disks[0].socket = self.socket("root");
        spec
    }
    fn disk(&self) -> VmDisk {
        VmDisk { volume: VolumeId::from_bits(0xd), socket: self.socket("data") }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_holds_on_qemu() {
    let Some(host) = Host::new("the_suite_holds_on_qemu") else { return };
    conformance::check(&host).await;
    let left = fs::read_dir(host.folder.path().join("instances")).unwrap().count();
    assert_eq!(left, 0, "a forgotten machine leaves no folder");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_are_confined_survive_storage_and_their_accidents_are_noticed() {
    let Some(mut host) = Host::new("machines_are_confined_survive_storage_and_their_accidents_are_noticed") else {
        return;
    };
    let qemu = host.open();
    let mut spec = Bench::spec(&host);
    spec.instance = InstanceId::from_bits(0xc1);
    // The guest writes, syncs and reads its root disk for as long as it can.
    spec.user_data = b"#!/bin/sh\nn=0; while sleep 0.1; do n=$((n+1)); echo $n > /n; sync; \
        echo 3 > /proc/sys/vm/drop_caches; echo round $(cat /n) done; done\n"
        .to_vec();
    qemu.start(&spec).await.unwrap();
    let vm = qemu.running(&spec.instance).unwrap();
    let process = vm.file().process.unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "QEMU is in its sandbox: {status}");
    if process::is_root() {
        let uid = format!("Uid:\t{UID_FIRST}\t{UID_FIRST}\t{UID_FIRST}\t{UID_FIRST}");
        assert!(status.contains(&uid), "QEMU has a uid of its own: {status}");
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(vm.folder()), 0o700);
    }
    console_says(&qemu, &spec.instance, "round 2 done").await;

    host.serve();
    let before = String::from_utf8_lossy(&qemu.console(&spec.instance).await).matches("round").count();
    let next = format!("round {} done", before + 10);
    console_says(&qemu, &spec.instance, &next).await;

    let printed = String::from_utf8_lossy(&qemu.console(&spec.instance).await).len();
    qemu.reboot(&spec.instance, Duration::from_secs(30)).await.unwrap();
    let since = console_says(&qemu, &spec.instance, "guest: down").await;
    assert!(since.len() > printed && since.contains("power button"), "a reboot begins with a clean shutdown: {since}");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(120);
    while String::from_utf8_lossy(&qemu.console(&spec.instance).await).matches("karri guest ready").count() < 2 {
        assert!(tokio::time::Instant::now() < deadline, "the guest does not boot again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(vm.file().process.as_ref(), Some(&process), "in the same machine");

    process.kill().unwrap();
    assert!(qemu.wait_gone(&spec.instance, Duration::from_secs(10)).await);
    let status = qemu.status(&spec.instance).await;
    assert!(matches!(&status, VmStatus::Gone { reason: Ended::Crashed { .. } }), "{status:?}");

    // A machine that cannot start says why and leaves nothing.
    host.stop_serving();
    fs::remove_file(host.socket("root")).unwrap();
    let refused = qemu.start(&spec).await.unwrap_err().to_string();
    assert!(refused.contains("no socket at") && refused.contains("storage"), "{refused}");
    host.serve();
    spec.boot = Boot::Kernel { kernel: "/nowhere/vmlinuz".into(), ramdisk: None, cmdline: String::new() };
    assert!(qemu.start(&spec).await.is_err());
    let kernel = host.folder.path().join("not-a-kernel");
    fs::write(&kernel, "no kernel").unwrap();
    spec.boot = Boot::Kernel { kernel, ramdisk: None, cmdline: String::new() };
    let refused = qemu.start(&spec).await.unwrap_err().to_string();
    assert!(refused.contains("invalid kernel header"), "QEMU's own words reach the user: {refused}");
    assert_eq!(qemu.status(&spec.instance).await, VmStatus::Absent);
}
