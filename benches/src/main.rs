//! karri beside its peers, in one run: `make bench`, `make bench QUICK=1`.
//!
//! Rounds alternate between the servers, each workload is measured in every round, and medians are printed with the ratio
//! to the peer. Block servers and their load run on a core each where there are two; S3 servers and their load share all
//! cores, because servers with pools of threads would otherwise be held back, or escape. CPU is the server processes'
//! own time (`/proc/PID/stat`) over the operations of the measurement. A peer that is not installed is named as SKIPPED.
//!
//! | module | holds |
//! |---|---|
//! | [`block`] | `karri storage export` beside qemu-storage-daemon and fio |
//! | [`virtio`] | the load: a vhost-user front end that drives one virtqueue |
//! | [`object`] | S3: `karri walrus serve` beside its peers |
//! | [`peers`] | those, and how each is made durable |
//! | [`raw`] | the bound: a plain copy between socket and disk |
//! | [`load`] | the load: S3 requests over kept-alive connections |
//! | [`server`] | processes that are started, measured and ended |
//! | [`table`] | medians and how they are printed |

#![forbid(unsafe_code)]

mod block;
mod load;
mod object;
mod peers;
mod raw;
mod server;
mod table;
mod virtio;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

/// What every measurement needs to know.
#[derive(Debug, Clone, Parser)]
#[command(about = "karri beside its peers: S3 and vhost-user-blk")]
pub struct Settings {
    /// `block`, `object` (both, where nothing is said), `s3`, `list`.
    what: Vec<String>,
    /// The karri program.
    #[arg(long, default_value = "target/release/karri")]
    karri: PathBuf,
    /// SeaweedFS's program.
    #[arg(long, default_value = "weed")]
    weed: PathBuf,
    /// Garage's program.
    #[arg(long, default_value = "garage")]
    garage: PathBuf,
    /// A Ceph RGW that runs: ADDRESS,ACCESS,SECRET,PID... (the processes whose CPU time counts).
    #[arg(long)]
    rgw: Option<String>,
    /// Scratch folder: on the disk that is to be measured.
    #[arg(long, default_value = "target/bench")]
    dir: PathBuf,
    /// Rounds; medians are taken over them.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of one measurement.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// The volume's size in MiB.
    #[arg(long, default_value_t = 2048)]
    volume_mib: u64,
    /// How many keys `list` makes.
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Only the workloads whose name contains this, such as `randwrite`.
    #[arg(long, default_value = "")]
    only: String,
    /// karri pins the guest's memory (`storage export --pin-memory`), which it does not unless it is told to.
    #[arg(long)]
    pin_memory: bool,
    /// About one minute for everything.
    #[arg(long)]
    quick: bool,
    /// With `raw`: where to listen. The suite `s3` starts that by itself.
    #[arg(long, hide = true)]
    listen: Option<SocketAddr>,
}

impl Settings {
    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

fn main() -> ExitCode {
    let mut settings = Settings::parse();
    if settings.quick {
        (settings.rounds, settings.seconds, settings.volume_mib) = (2, 0.6, 512);
    }
    if let Err(e) = std::fs::create_dir_all(&settings.dir) {
        eprintln!("{}: {e}", settings.dir.display());
        return ExitCode::FAILURE;
    }
    if let (Some("raw"), Some(listen)) = (settings.what.first().map(String::as_str), settings.listen) {
        let served = raw::serve(listen, &settings.dir);
        return served.map_or_else(|e| failed("raw", &e.to_string()), |()| ExitCode::SUCCESS);
    }
    let asked = |name: &str| settings.what.iter().any(|w| w == name);
    let mut outcome = ExitCode::SUCCESS;
    // Block after object: it pins this process to a core.
    for (name, run, by_itself) in [
        ("object", object::run as fn(&Settings) -> Result<(), String>, true),
        ("s3", object::everything, false),
        ("list", object::listing, false),
        ("block", block::run, true),
    ] {
        if (asked(name) || by_itself && settings.what.is_empty())
            && let Err(e) = run(&settings)
        {
            outcome = failed(name, &e);
        }
    }
    outcome
}

fn failed(name: &str, why: &str) -> ExitCode {
    eprintln!("FAILED {name}: {why}");
    ExitCode::FAILURE
}
