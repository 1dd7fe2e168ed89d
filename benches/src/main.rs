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
//! | [`object`] | `karri walrus serve` beside SeaweedFS |
//! | [`load`] | the load: S3 requests over kept-alive connections |
//! | [`server`] | processes that are started, measured and ended |
//! | [`table`] | medians and how they are printed |

#![forbid(unsafe_code)]

mod block;
mod load;
mod object;
mod server;
mod table;
mod virtio;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

/// What every measurement needs to know.
#[derive(Debug, Clone, Parser)]
#[command(about = "karri beside its peers: S3 and vhost-user-blk")]
pub struct Settings {
    /// `block`, `object`, or nothing for both.
    what: Vec<String>,
    /// The karri program.
    #[arg(long, default_value = "target/release/karri")]
    karri: PathBuf,
    /// SeaweedFS's program.
    #[arg(long, default_value = "weed")]
    weed: PathBuf,
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
    /// Only the workloads whose name contains this, such as `randwrite`.
    #[arg(long, default_value = "")]
    only: String,
    /// karri pins the guest's memory (`storage export --pin-memory`), which it does not unless it is told to.
    #[arg(long)]
    pin_memory: bool,
    /// About one minute for everything.
    #[arg(long)]
    quick: bool,
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
    let wanted = |name: &str| settings.what.is_empty() || settings.what.iter().any(|w| w == name);
    let mut failed = false;
    // Block last: it pins this process to a core.
    for (name, run) in [("object", object::run as fn(&Settings) -> Result<(), String>), ("block", block::run)] {
        if wanted(name)
            && let Err(e) = run(&settings)
        {
            eprintln!("FAILED {name}: {e}");
            failed = true;
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
