//! vhost-user-blk: `karri storage export` beside qemu-storage-daemon (io_uring, O_DIRECT), and fio on the latter's file.

use std::path::Path;
use std::process::Command;

use crate::Settings;
use crate::server::{Server, installed, pin_load};
use crate::table::{Results, Sample};
use crate::virtio::{DataMemory, Device, Kind, Workload};

const OURS: &str = "karri";
const QSD: &str = "qemu-storage-daemon";
const FIO: &str = "fio io_uring";

const WORKLOADS: [(&str, Workload); 5] = [
    ("4 KiB randread QD1", Workload { kind: Kind::Read, bytes: 4096, depth: 1 }),
    ("4 KiB randread QD32", Workload { kind: Kind::Read, bytes: 4096, depth: 32 }),
    ("4 KiB randwrite QD1", Workload { kind: Kind::Write, bytes: 4096, depth: 1 }),
    ("4 KiB randwrite QD32", Workload { kind: Kind::Write, bytes: 4096, depth: 32 }),
    ("1 MiB randread QD8", Workload { kind: Kind::Read, bytes: 1 << 20, depth: 8 }),
];

/// A server and the connection to its disk.
struct Target {
    server: Server,
    device: Device,
}

pub fn run(settings: &Settings) -> Result<(), String> {
    let scratch = tempfile::tempdir_in(&settings.dir).map_err(|e| e.to_string())?;
    let folder = scratch.path().canonicalize().map_err(|e| e.to_string())?;
    let (mut targets, raw, data) = (Vec::new(), folder.join("raw.img"), DataMemory::new()?);
    for (name, program) in [(OURS, settings.karri.as_path()), (QSD, Path::new(QSD))] {
        if !installed(program) {
            println!("SKIPPED {name}: {} is not there", program.display());
            continue;
        }
        targets.push(if name == OURS {
            karri(settings, &folder, &data)?
        } else {
            qsd(settings, &folder, &raw, &data)?
        });
    }
    pin_load();
    let volume = settings.volume_mib << 20;
    for target in &mut targets {
        let capacity = target.device.capacity();
        if capacity != volume {
            return Err(format!("{} says that its disk has {capacity} bytes, not {volume}", target.server.name));
        }
        target.device.fill(volume).map_err(|e| format!("{}: filling the disk: {e}", target.server.name))?;
    }
    let fio = installed(Path::new("fio")) && raw.exists();
    if !fio {
        println!("SKIPPED {FIO}: no fio, or no file that qemu-storage-daemon has made");
    }
    let mut results = Results::default();
    for round in 0..settings.rounds {
        for (workload, work) in WORKLOADS.into_iter().filter(|(name, _)| name.contains(&settings.only)) {
            // Each server is first in some round.
            targets.rotate_left(1);
            for target in &mut targets {
                let name = target.server.name;
                let cpu = target.server.cpu_us();
                let sample = target.device.run(work, settings.time(), round as u64);
                let mut sample = sample.map_err(|e| format!("{name}, {workload}: {e}"))?;
                sample.cpu_us = (target.server.cpu_us() - cpu) as f64 / sample.operations as f64;
                results.add(workload, name, sample);
            }
            if fio {
                results.add(workload, FIO, fio_sample(settings, &raw, work)?);
            }
        }
    }
    let title = format!(
        "vhost-user-blk, {} MiB volume, one queue, medians of {} rounds of {} s (fio: its own CPU)",
        settings.volume_mib, settings.rounds, settings.seconds
    );
    results.print(&title, OURS);
    Ok(())
}

fn connect(mut server: Server, folder: &Path, socket: &Path, log: &str, data: &DataMemory) -> Result<Target, String> {
    server.wait(folder, log, || socket.exists())?;
    let mut refused = String::new();
    let mut device = None;
    // The socket's name is there a moment before the server listens.
    server.wait(folder, log, || match Device::connect(socket, data) {
        Ok(connected) => {
            device = Some(connected);
            true
        }
        Err(e) if e.contains("onnect") || e.contains("refused") => false,
        Err(e) => {
            refused = e;
            true
        }
    })?;
    match device {
        Some(device) => Ok(Target { server, device }),
        None => Err(format!("{}: {refused}", server.name)),
    }
}

fn karri(settings: &Settings, folder: &Path, data: &DataMemory) -> Result<Target, String> {
    let program = settings.karri.canonicalize().map_err(|e| format!("{}: {e}", settings.karri.display()))?;
    let socket = folder.join("karri.sock");
    let mib = settings.volume_mib;
    let args =
        ["storage", "export", "--store", &format!("{}:{}M", folder.join("karri.store").display(), mib * 2 + 512)];
    let mut args: Vec<String> = args.map(str::to_owned).into();
    args.extend(["--volume".into(), format!("bench:{mib}M")]);
    args.extend(["--vhost-user".into(), socket.display().to_string()]);
    args.extend(settings.pin_memory.then(|| "--pin-memory".into()));
    let mut server = Server::pinned(OURS);
    server.spawn(&program, &args, folder, "karri.log")?;
    connect(server, folder, &socket, "karri.log", data)
}

fn qsd(settings: &Settings, folder: &Path, raw: &Path, data: &DataMemory) -> Result<Target, String> {
    let socket = folder.join("qsd.sock");
    let file = std::fs::File::create(raw).map_err(|e| e.to_string())?;
    file.set_len(settings.volume_mib << 20).map_err(|e| e.to_string())?;
    let args = [
        "--blockdev".to_owned(),
        format!("driver=file,node-name=disk,filename={},aio=io_uring,cache.direct=on", raw.display()),
        "--export".to_owned(),
        format!(
            "type=vhost-user-blk,id=bench,node-name=disk,addr.type=unix,addr.path={},writable=on,num-queues=1",
            socket.display()
        ),
    ];
    let mut server = Server::pinned(QSD);
    server.spawn(Path::new(QSD), &args, folder, "qsd.log")?;
    connect(server, folder, &socket, "qsd.log", data)
}

fn fio_sample(settings: &Settings, raw: &Path, work: Workload) -> Result<Sample, String> {
    let (rw, side) = match work.kind {
        Kind::Read => ("randread", "read"),
        Kind::Write => ("randwrite", "write"),
    };
    let output = Command::new("fio")
        .args(["--name=bench", "--ioengine=io_uring", "--direct=1", "--time_based", "--output-format=json"])
        // From submission on: what the others' latencies are, too.
        .args(["--lat_percentiles=1", "--clat_percentiles=0"])
        .args([format!("--filename={}", raw.display()), format!("--rw={rw}"), format!("--bs={}", work.bytes)])
        .args([format!("--iodepth={}", work.depth), format!("--runtime={}ms", settings.time().as_millis())])
        .output()
        .map_err(|e| format!("fio: {e}"))?;
    let bad = || format!("fio: {}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).map_err(|_| bad())?;
    let job = &report["jobs"][0];
    let number = |value: &serde_json::Value| value.as_f64().ok_or_else(bad);
    let rate = number(&job[side]["iops"])?;
    let cpu_percent = number(&job["usr_cpu"])? + number(&job["sys_cpu"])?;
    let latency = |share: &str| number(&job[side]["lat_ns"]["percentile"][share]).map(|ns| ns / 1000.0);
    let (p50_us, p99_us) = (latency("50.000000")?, latency("99.000000")?);
    Ok(Sample { operations: 0, rate, cpu_us: cpu_percent * 1e4 / rate, p50_us, p99_us })
}
