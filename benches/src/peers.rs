//! The S3 servers that are measured, as processes of this machine.
//!
//! | server | durable means | as it comes |
//! |---|---|---|
//! | karri | always: a PUT is answered when it is on disk | - |
//! | SeaweedFS | `fsync` for the path of its buckets (its volume server then syncs the needle before it answers), and names in Redis with `appendfsync always`, whose CPU counts as SeaweedFS's: its default store of names, LevelDB, is written without a sync (seen with strace). Where there is no Redis, the default store is used and the server's name says so | neither |
//! | Garage | `metadata_fsync` and `data_fsync`, one node, LMDB | neither |
//! | Ceph RGW | as it was set up; named by `--rgw ADDRESS,ACCESS,SECRET,PID...`, the processes whose CPU counts | the same |
//! | raw path | a loop that copies between socket and file, with O_DSYNC; no S3, no signatures, no checks | - |

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use karri_base::config::AccessKey;

use crate::Settings;
use crate::load::Kind;
use crate::server::{Server, free_port, installed};

/// A server to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Karri,
    Weed { durable: bool },
    Garage { durable: bool },
    Rgw,
    Raw,
}

impl Peer {
    /// Whether it answers such requests at all.
    pub fn can(self, kind: Kind) -> bool {
        self != Self::Raw || matches!(kind, Kind::Put | Kind::Get | Kind::Mix)
    }

    fn program(self, settings: &Settings) -> Option<&Path> {
        match self {
            Self::Karri => Some(&settings.karri),
            Self::Weed { .. } => Some(&settings.weed),
            Self::Garage { .. } => Some(&settings.garage),
            Self::Rgw | Self::Raw => None,
        }
    }
}

/// A server that answers.
pub struct Started {
    pub server: Server,
    pub addr: SocketAddr,
    pub key: AccessKey,
}

/// Starts it in `folder`; nothing where it is not installed, which is said.
///
/// # Errors
/// A sentence, with the end of its log.
pub fn start(settings: &Settings, peer: Peer, folder: &Path, pinned: bool) -> Result<Option<Started>, String> {
    if let Some(program) = peer.program(settings)
        && !installed(program)
    {
        println!("SKIPPED {peer:?}: {} is not there", program.display());
        return Ok(None);
    }
    match peer {
        Peer::Karri => karri(settings, folder, pinned),
        Peer::Weed { durable } => weed(settings, folder, durable, pinned),
        Peer::Garage { durable } => garage(settings, folder, durable, pinned),
        Peer::Raw => raw(folder, pinned),
        Peer::Rgw => match &settings.rgw {
            Some(rgw) => foreign(rgw),
            None => {
                println!("SKIPPED Ceph RGW: --rgw names none");
                return Ok(None);
            }
        },
    }
    .map(Some)
}

fn key() -> AccessKey {
    // As Garage wants them: GK and 12 bytes, and 32 bytes.
    AccessKey { access_key_id: format!("GK{}", "be".repeat(12)), secret_access_key: "be".repeat(32) }
}

fn listens(addr: SocketAddr) -> bool {
    std::net::TcpStream::connect(addr).is_ok()
}

fn loopback() -> Result<SocketAddr, String> {
    Ok(SocketAddr::from(([127, 0, 0, 1], free_port()?)))
}

/// A program given by its path is meant from here, not from the server's folder.
fn absolute(program: &Path) -> Result<PathBuf, String> {
    match program.components().count() {
        1 => Ok(program.to_owned()),
        _ => program.canonicalize().map_err(|e| format!("{}: {e}", program.display())),
    }
}

fn words(args: &str) -> Vec<String> {
    args.split_whitespace().map(str::to_owned).collect()
}

fn karri(settings: &Settings, folder: &Path, pinned: bool) -> Result<Started, String> {
    let (addr, key) = (loopback()?, key());
    let args = format!(
        "walrus serve --store {} --listen {addr} --access-key {} --secret-key {}",
        folder.join("karri").display(),
        key.access_key_id,
        key.secret_access_key
    );
    let mut server = Server::on("karri", pinned);
    server.spawn(&absolute(&settings.karri)?, &words(&args), folder, "karri.log")?;
    server.wait(folder, "karri.log", || listens(addr))?;
    Ok(Started { server, addr, key })
}

/// Redis's server. Debian's redis-tools carries it under another name (the package redis-server would start a service).
fn redis(folder: &Path) -> Option<PathBuf> {
    let tool = Path::new("/usr/bin/redis-check-rdb");
    if tool.exists() {
        let link = folder.join("redis-server");
        let _ = std::fs::remove_file(&link);
        return std::os::unix::fs::symlink(tool, &link).ok().map(|()| link);
    }
    installed(Path::new("redis-server")).then(|| "redis-server".into())
}

fn weed(settings: &Settings, folder: &Path, durable: bool, pinned: bool) -> Result<Started, String> {
    let io = |e: std::io::Error| e.to_string();
    let (program, key, addr) = (absolute(&settings.weed)?, key(), loopback()?);
    let folder = &folder.join(if durable { "weed-durable" } else { "weed" });
    std::fs::create_dir_all(folder.join("data")).map_err(io)?;
    let keys = format!(
        r#"{{"identities":[{{"name":"bench","credentials":[{{"accessKey":"{}","secretKey":"{}"}}],"actions":["Admin","Read","Write","List","Tagging"]}}]}}"#,
        key.access_key_id, key.secret_access_key
    );
    std::fs::write(folder.join("s3.json"), keys).map_err(io)?;
    let redis = redis(folder).filter(|_| durable);
    let name = match (durable, &redis) {
        (false, _) => "SeaweedFS",
        (true, Some(_)) => "SeaweedFS durable",
        (true, None) => "SeaweedFS names unsynced",
    };
    let mut server = Server::on(name, pinned);
    if let Some(redis) = redis {
        let port = free_port()?;
        let args =
            format!("--port {port} --bind 127.0.0.1 --appendonly yes --appendfsync always --dir {}", folder.display());
        let mut args = words(&args);
        args.extend(["--save".to_owned(), String::new()]);
        server.spawn(&redis, &args, folder, "redis.log")?;
        server.wait(folder, "redis.log", || listens(([127, 0, 0, 1], port).into()))?;
        let filer = format!(
            "[leveldb2]\nenabled = false\n[redis2]\nenabled = true\naddress = \"127.0.0.1:{port}\"\ndatabase = 0\n"
        );
        std::fs::write(folder.join("filer.toml"), filer).map_err(io)?;
    }
    // gRPC ports would be these plus 10,000, which may be taken or too large: each gets its own.
    let ports: Vec<u16> = (0..7).map(|_| free_port()).collect::<Result<_, _>>()?;
    let args = format!(
        "-logdir={0} server -dir={0}/data -ip=127.0.0.1 -ip.bind=127.0.0.1 -s3 -s3.port={1} -s3.config={0}/s3.json \
         -filer -master.port={2} -master.port.grpc={3} -volume.port={4} -volume.port.grpc={5} -filer.port={6} \
         -filer.port.grpc={7} -s3.port.grpc={8} -s3.port.iceberg=0 -s3.port.lance=0 -master.volumeSizeLimitMB=1024 -volume.max=50",
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
    server.spawn(&program, &words(&args), folder, "weed.log")?;
    server.wait(folder, "weed.log", || listens(addr))?;
    if durable {
        // Sync what is written below /buckets/ before answering; repeated until the filer is up.
        server.wait(folder, "weed.log", || {
            // It waits for ever for a server that has gone.
            let mut shell = Command::new("timeout");
            shell
                .arg("20")
                .arg(&program)
                .arg("shell")
                .arg(format!("-master=127.0.0.1:{}.{}", ports[0], ports[1]))
                .stdin(Stdio::piped());
            let spawned = shell.current_dir(folder).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
            let Ok(mut child) = spawned else { return false };
            if let Some(mut input) = child.stdin.take() {
                let _ =
                    std::io::Write::write_all(&mut input, b"fs.configure -locationPrefix=/buckets/ -fsync -apply\n");
            }
            child
                .wait_with_output()
                .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("\"fsync\":  true"))
        })?;
    }
    Ok(Started { server, addr, key })
}

fn garage(settings: &Settings, folder: &Path, durable: bool, pinned: bool) -> Result<Started, String> {
    let (program, key, addr, rpc) = (absolute(&settings.garage)?, key(), loopback()?, loopback()?);
    let folder = &folder.join(if durable { "garage-durable" } else { "garage" });
    std::fs::create_dir_all(folder).map_err(|e| e.to_string())?;
    let config = format!(
        "metadata_dir = \"{0}/meta\"\ndata_dir = \"{0}/data\"\ndb_engine = \"lmdb\"\nreplication_factor = 1\n\
         metadata_fsync = {durable}\ndata_fsync = {durable}\nrpc_bind_addr = \"{rpc}\"\nrpc_public_addr = \"{rpc}\"\n\
         rpc_secret = \"{1}\"\n[s3_api]\ns3_region = \"us-east-1\"\napi_bind_addr = \"{addr}\"\n",
        folder.display(),
        "be".repeat(32),
    );
    let file = folder.join("garage.toml");
    std::fs::write(&file, config).map_err(|e| e.to_string())?;
    let mut server = Server::on(if durable { "Garage durable" } else { "Garage" }, pinned);
    let config = format!("-c {} ", file.display());
    server.spawn(&program, &words(&format!("{config} server")), folder, "garage.log")?;
    let ask = |args: &str| -> Result<String, String> {
        let output = Command::new(&program).args(words(&format!("{config}{args}"))).stdin(Stdio::null()).output();
        let output = output.map_err(|e| e.to_string())?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
            false => Err(format!("garage {args}: {}", String::from_utf8_lossy(&output.stderr))),
        }
    };
    let mut node = String::new();
    server.wait(folder, "garage.log", || {
        node = ask("node id -q").unwrap_or_default();
        !node.is_empty() && ask("status").is_ok()
    })?;
    let id = node.split('@').next().unwrap_or_default();
    ask(&format!("layout assign -z here -c 100G {id}"))?;
    ask("layout apply --version 1")?;
    ask(&format!("key import --yes -n bench {} {}", key.access_key_id, key.secret_access_key))?;
    ask(&format!("key allow --create-bucket {}", key.access_key_id))?;
    server.wait(folder, "garage.log", || listens(addr))?;
    Ok(Started { server, addr, key })
}

fn foreign(rgw: &str) -> Result<Started, String> {
    let bad = || format!("--rgw {rgw:?}: want ADDRESS,ACCESS,SECRET,PID...");
    let mut parts = rgw.split(',');
    let mut next = || parts.next().ok_or_else(bad);
    let addr = next()?.parse().map_err(|_| bad())?;
    let key = AccessKey { access_key_id: next()?.to_owned(), secret_access_key: next()?.to_owned() };
    let mut server = Server::new("Ceph RGW");
    for pid in parts {
        server.count(pid.parse().map_err(|_| bad())?);
    }
    Ok(Started { server, addr, key })
}

fn raw(folder: &Path, pinned: bool) -> Result<Started, String> {
    let addr = loopback()?;
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut server = Server::on("raw path", pinned);
    server.spawn(&program, &words(&format!("raw --listen {addr} --dir {}", folder.display())), folder, "raw.log")?;
    server.wait(folder, "raw.log", || listens(addr))?;
    Ok(Started { server, addr, key: key() })
}
