//! S3: `karri walrus serve` beside SeaweedFS, both made to answer a PUT only when it is on disk.
//!
//! What SeaweedFS needs for that: `fsync` for the path of its buckets (its volume server then syncs the needle before it
//! answers), and a store for names that syncs. Its default store, LevelDB, is written without a sync (seen with strace),
//! so names go to Redis with `appendfsync always`, whose CPU counts as SeaweedFS's. Where there is no Redis, the
//! default store is used and the server's name says so: karri then promises more than its peer.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Settings;
use crate::load::{ACCESS_KEY, Bucket, SECRET_KEY, Workload};
use crate::server::{Server, free_port, installed};
use crate::table::Results;

const OURS: &str = "karri";
const WEED: &str = "SeaweedFS";
const WEED_UNSYNCED: &str = "SeaweedFS names unsynced";

const fn work(put: bool, bytes: usize, connections: usize) -> Workload {
    Workload { put, bytes, connections }
}

const WORKLOADS: [(&str, Workload); 8] = [
    ("PUT 4 KiB c1", work(true, 4 << 10, 1)),
    ("PUT 4 KiB c32", work(true, 4 << 10, 32)),
    ("PUT 1 MiB c1", work(true, 1 << 20, 1)),
    ("PUT 1 MiB c32", work(true, 1 << 20, 32)),
    ("GET 4 KiB c1", work(false, 4 << 10, 1)),
    ("GET 4 KiB c32", work(false, 4 << 10, 32)),
    ("GET 1 MiB c1", work(false, 1 << 20, 1)),
    ("GET 1 MiB c32", work(false, 1 << 20, 32)),
];

pub fn run(settings: &Settings) -> Result<(), String> {
    let scratch = tempfile::tempdir_in(&settings.dir).map_err(|e| e.to_string())?;
    let folder = scratch.path().canonicalize().map_err(|e| e.to_string())?;
    let mut targets = Vec::new();
    for (name, program) in [(OURS, &settings.karri), (WEED, &settings.weed)] {
        if !installed(program) {
            println!("SKIPPED {name}: {} is not there", program.display());
            continue;
        }
        let (server, addr) = if name == OURS { karri(settings, &folder)? } else { weed(settings, &folder)? };
        let bucket = Bucket::make(addr).map_err(|e| format!("{}: {e}", server.name))?;
        targets.push((server, bucket));
    }
    let (small, large) = if settings.quick { (200, 20) } else { (1000, 100) };
    for (server, bucket) in &targets {
        let filled = bucket.fill(4 << 10, small).and_then(|()| bucket.fill(1 << 20, large));
        filled.map_err(|e| format!("{}: {e}", server.name))?;
    }
    let mut results = Results::default();
    for round in 0..settings.rounds {
        for (workload, work) in WORKLOADS.into_iter().filter(|(name, _)| name.contains(&settings.only)) {
            // Each server is first in some round.
            targets.rotate_left(1);
            for (server, bucket) in &targets {
                let cpu = server.cpu_us();
                let sample = bucket.run(work, settings.time(), round as u64);
                let mut sample = sample.map_err(|e| format!("{}, {workload}: {e}", server.name))?;
                sample.cpu_us = (server.cpu_us() - cpu) as f64 / sample.operations as f64;
                results.add(workload, server.name, sample);
            }
        }
    }
    let title = format!("S3, durable, medians of {} rounds of {} s", settings.rounds, settings.seconds);
    results.print(&title, &[OURS, WEED, WEED_UNSYNCED], OURS);
    Ok(())
}

fn listens(addr: SocketAddr) -> bool {
    std::net::TcpStream::connect(addr).is_ok()
}

fn karri(settings: &Settings, folder: &Path) -> Result<(Server, SocketAddr), String> {
    let program = settings.karri.canonicalize().map_err(|e| format!("{}: {e}", settings.karri.display()))?;
    let addr = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    let args =
        ["walrus", "serve", "--store", &folder.join("karri").display().to_string(), "--listen", &addr.to_string()];
    let mut args: Vec<String> = args.map(str::to_owned).into();
    args.extend(["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY].map(str::to_owned));
    let mut server = Server::new(OURS);
    server.spawn(&program, &args, folder, "karri.log")?;
    server.wait(folder, "karri.log", || listens(addr))?;
    Ok((server, addr))
}

/// Redis's server. Debian's redis-tools carries it under another name (the package redis-server would start a service).
fn redis(folder: &Path) -> Option<PathBuf> {
    let tool = Path::new("/usr/bin/redis-check-rdb");
    if tool.exists() {
        let link = folder.join("redis-server");
        return std::os::unix::fs::symlink(tool, &link).ok().map(|()| link);
    }
    installed(Path::new("redis-server")).then(|| "redis-server".into())
}

fn weed(settings: &Settings, folder: &Path) -> Result<(Server, SocketAddr), String> {
    let io = |e: std::io::Error| e.to_string();
    let program = match settings.weed.components().count() {
        1 => settings.weed.clone(),
        _ => settings.weed.canonicalize().map_err(io)?,
    };
    std::fs::create_dir_all(folder.join("weed")).map_err(io)?;
    let keys = format!(
        r#"{{"identities":[{{"name":"bench","credentials":[{{"accessKey":"{ACCESS_KEY}","secretKey":"{SECRET_KEY}"}}],"actions":["Admin","Read","Write","List","Tagging"]}}]}}"#
    );
    std::fs::write(folder.join("s3.json"), keys).map_err(io)?;
    let redis = redis(folder);
    let mut server = Server::new(if redis.is_some() { WEED } else { WEED_UNSYNCED });
    if let Some(redis) = redis {
        let port = free_port()?;
        let args =
            format!("--port {port} --bind 127.0.0.1 --appendonly yes --appendfsync always --dir {}", folder.display());
        let mut args: Vec<String> = args.split(' ').map(str::to_owned).collect();
        args.extend(["--save".to_owned(), String::new()]);
        server.spawn(&redis, &args, folder, "redis.log")?;
        server.wait(folder, "redis.log", || listens(([127, 0, 0, 1], port).into()))?;
        let filer = format!(
            "[leveldb2]\nenabled = false\n[redis2]\nenabled = true\naddress = \"127.0.0.1:{port}\"\ndatabase = 0\n"
        );
        std::fs::write(folder.join("filer.toml"), filer).map_err(io)?;
    }
    let addr = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    // gRPC ports would be these plus 10,000, which may be taken or too large: each gets its own.
    let ports: Vec<u16> = (0..7).map(|_| free_port()).collect::<Result<_, _>>()?;
    let args = format!(
        "server -dir={0}/weed -ip=127.0.0.1 -ip.bind=127.0.0.1 -s3 -s3.port={1} -s3.config={0}/s3.json -filer \
         -master.port={2} -master.port.grpc={3} -volume.port={4} -volume.port.grpc={5} -filer.port={6} \
         -filer.port.grpc={7} -s3.port.grpc={8} -master.volumeSizeLimitMB=1024 -volume.max=50",
        folder.display(),
        addr.port(),
        ports[0],
        ports[1],
        ports[2],
        ports[3],
        ports[4],
        ports[5],
        ports[6],
    );
    let mut all = vec![format!("-logdir={}", folder.display())];
    all.extend(args.split_whitespace().map(str::to_owned));
    server.spawn(&program, &all, folder, "weed.log")?;
    server.wait(folder, "weed.log", || listens(addr))?;
    // Sync what is written below /buckets/ before answering; repeated until the filer is up.
    server.wait(folder, "weed.log", || {
        let mut shell = Command::new(&program);
        shell.arg("shell").arg(format!("-master=127.0.0.1:{}.{}", ports[0], ports[1])).stdin(Stdio::piped());
        let spawned = shell.current_dir(folder).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let Ok(mut child) = spawned else { return false };
        if let Some(mut input) = child.stdin.take() {
            let _ = std::io::Write::write_all(&mut input, b"fs.configure -locationPrefix=/buckets/ -fsync -apply\n");
        }
        child
            .wait_with_output()
            .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("\"fsync\":  true"))
    })?;
    Ok((server, addr))
}
