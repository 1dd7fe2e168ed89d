//! The node role: one host's virtual machines.
//!
//! | module | holds |
//! |---|---|
//! | [`role`] | commands, generations, adoption: the role itself |
//! | [`records`] | what it remembers of each instance |
//! | [`images`] | kernels and ramdisks from Walrus |
//! | [`hypervisor`] | the `Hypervisor` seam |
//! | [`qemu`] | QEMU over QMP behind it |
//! | [`fake`] | its twin in memory |
//!
//! Machines outlive the role, killed or shut down: the next one adopts them. `Node.StopAll` is what stops them with
//! the host. How guests are wired is `karri_net`'s; their disks are storage's, met by the path of a vhost-user socket.

pub mod fake;
pub mod hypervisor;
pub mod images;
pub mod qemu;
pub mod records;
pub mod role;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use karri_base::aws::s3::S3;
use karri_base::clock::{Clock, SystemClock};
use karri_base::config::{self, Config};
use karri_base::role::{PeerChannels, Running};
use karri_meta::MetaStore;
use karri_net::NetError;
use prometheus_client::registry::Registry;

use hypervisor::Hypervisor;
use role::{Capacity, NodeRole, Parts, StartTrouble};

/// Virtual CPUs for each of the host's, under KVM. EC2 sells no CPU twice; a private cloud's guests idle mostly.
const OVERCOMMIT_KVM: u32 = 4;
/// The same under TCG, where nobody measures speed: a laptop or CI machine of 2 CPUs runs a test's dozen of guests.
const OVERCOMMIT_TCG: u32 = 16;
/// What of the host's memory guests may have, in percent. Memory is not overcommitted.
const MEMORY_PERCENT: u64 = 85;

/// Why the node could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file lacks a section.
    #[error("the configuration has no [node] section; `karri node` needs one with `credentials`")]
    NoSection,
    /// No such network here.
    #[error("[node] network")]
    Network(#[source] NetError),
    /// The hypervisor or a folder is not to be had.
    #[error("{what}")]
    Host {
        /// What is missing.
        what: String,
        /// The system's words.
        source: io::Error,
    },
    /// The system key cannot be read.
    #[error("{0}")]
    Credentials(String),
    /// The S3 endpoint is none.
    #[error("[peers] s3: {0}")]
    Endpoint(String),
    /// What an earlier node left cannot be taken over.
    #[error(transparent)]
    Trouble(#[from] StartTrouble),
}

/// Starts the node role.
///
/// # Errors
/// See [`StartError`].
pub async fn start(
    config: &Config,
    _peers: PeerChannels,
    meta: Arc<dyn MetaStore>,
    registry: &mut Registry,
) -> Result<Arc<dyn Running>, StartError> {
    let section = config.node.as_ref().ok_or(StartError::NoSection)?;
    let datapath = karri_net::open(section.network).map_err(StartError::Network)?;
    let host = |what: String| move |source| StartError::Host { what, source };
    let hypervisor: Arc<dyn Hypervisor> = match section.hypervisor {
        config::Hypervisor::Fake => Arc::new(fake::Fake::default()),
        config::Hypervisor::Qemu => {
            let machines = qemu::QemuConfig::detect(config.role.state.join("instances"));
            Arc::new(qemu::Qemu::open(machines).map_err(host("[node] hypervisor = \"qemu\"".into()))?)
        }
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let s3 = match &config.peers.s3 {
        None => None,
        Some(endpoint) => {
            let credentials = crate::cloud::identity::read_credentials(&section.credentials)
                .map_err(|e| StartError::Credentials(e.to_string()))?;
            Some(S3::new(endpoint, credentials.system, &config.role.region).map_err(StartError::Endpoint)?)
        }
    };
    let folder: PathBuf = config.role.state.join("images");
    let images = images::Images::open(folder.clone(), s3, clock.clone()).map_err(host(folder.display().to_string()))?;
    let capacity = capacity(hypervisor.describe());
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    let name = if name.is_empty() { "localhost".to_owned() } else { name };
    let parts = Parts { name, hypervisor, datapath, meta, images, clock, capacity };
    Ok(Arc::new(NodeRole::start(parts, registry).await?))
}

/// What this host can run, by its CPUs and memory.
fn capacity(hypervisor: hypervisor::Description) -> Capacity {
    let cpus = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    let memory_bytes = kib.unwrap_or(0u64) * 1024 / 100 * MEMORY_PERCENT;
    match hypervisor.accelerator {
        // For scale runs: nothing is really taken up.
        _ if !hypervisor.real => Capacity { vcpus: 1 << 20, memory_bytes: 1 << 50 },
        "kvm" => Capacity { vcpus: cpus.saturating_mul(OVERCOMMIT_KVM), memory_bytes },
        _ => Capacity { vcpus: cpus.saturating_mul(OVERCOMMIT_TCG), memory_bytes },
    }
}
