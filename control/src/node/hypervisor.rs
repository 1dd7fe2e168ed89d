//! `Hypervisor`: the seam between a node and what runs its virtual machines.
//!
//! Implementations: [`super::qemu`] (QEMU over QMP) and [`super::fake`] (in memory, with fault switches). Both pass
//! `super::conformance`. A hypervisor knows machines, disks and wires; records, generations, images and capacity are
//! the node role's.
//!
//! ```text
//!   absent --start--> running --guest powers off, kill, crash--> gone --forget--> absent
//!                        ^                                         |
//!                        +------------------start------------------+
//! ```

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use karri_base::id::{InstanceId, NetworkInterfaceId, VolumeId};
use karri_net::{MacAddr, Wiring};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Disks that a machine can have at a time: root ports of the q35 machine.
pub const DISKS_MAX: usize = 16;
/// How much of a console is kept, in bytes: what GetConsoleOutput gives.
pub const CONSOLE_BYTES: usize = 64 * 1024;

/// A machine to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Whose machine it is; one machine an instance.
    pub instance: InstanceId,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in bytes, a multiple of a MiB.
    pub memory_bytes: u64,
    /// What it boots.
    pub boot: Boot,
    /// Its disks; the first is the root disk. At most [`DISKS_MAX`].
    pub disks: Vec<VmDisk>,
    /// Its network devices.
    pub nics: Vec<VmNic>,
    /// User data, handed to the guest as it is.
    pub user_data: Vec<u8>,
    /// OpenSSH public key line, or empty.
    pub public_key: String,
}

/// What a machine boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Boot {
    /// Firmware boots the root disk.
    Firmware,
    /// Direct kernel boot from files of this host.
    Kernel {
        /// The kernel image.
        kernel: PathBuf,
        /// The initial ramdisk.
        ramdisk: Option<PathBuf>,
        /// The kernel's command line.
        cmdline: String,
    },
}

/// A disk served over vhost-user-blk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmDisk {
    /// The volume.
    pub volume: VolumeId,
    /// Its socket. The hypervisor reconnects when the server goes away and comes back.
    pub socket: PathBuf,
}

/// A virtio network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmNic {
    /// The interface that it is.
    pub eni: NetworkInterfaceId,
    /// Its MAC address.
    pub mac: MacAddr,
    /// How it is connected.
    pub wiring: Wiring,
}

/// A machine as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmStatus {
    /// No machine and nothing left of one.
    Absent,
    /// It runs.
    Running {
        /// The volumes that are plugged in.
        volumes: Vec<VolumeId>,
    },
    /// It ran; its console can still be read.
    Gone {
        /// Why it ended.
        reason: Ended,
    },
}

/// Why a machine is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// The guest shut itself down, of its own accord or because the power button was pressed.
    Guest,
    /// [`Hypervisor::kill`].
    Killed,
    /// The hypervisor's process ended or failed.
    Crashed {
        /// What is known about it.
        why: String,
    },
}

impl Ended {
    /// The reason in the form of EC2's StateReason: code, colon, message.
    pub fn state_reason(&self) -> String {
        match self {
            Self::Guest => "Client.InstanceInitiatedShutdown: Instance initiated shutdown".to_owned(),
            Self::Killed => "Client.UserInitiatedShutdown: User initiated shutdown".to_owned(),
            Self::Crashed { why } => format!("Server.InternalError: the virtual machine ended unexpectedly: {why}"),
        }
    }
}

/// What a hypervisor calls itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    /// `qemu` or `fake`.
    pub name: &'static str,
    /// `kvm`, `tcg` or `none`.
    pub accelerator: &'static str,
    /// True where machines need the kernels and sockets that their specs name.
    pub real: bool,
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HypervisorError {
    /// No such machine runs.
    #[error("instance {instance} does not run on this node")]
    NotRunning {
        /// Which.
        instance: InstanceId,
    },
    /// The machine cannot be as the spec wants it.
    #[error("instance {instance}: {why}")]
    Invalid {
        /// Which.
        instance: InstanceId,
        /// What is wrong and what to try.
        why: String,
    },
    /// Not in time. Trying again is safe.
    #[error("instance {instance}: {op} did not finish in {patience:?}; {hint}")]
    TimedOut {
        /// Which.
        instance: InstanceId,
        /// What was being done.
        op: &'static str,
        /// How long it was waited for.
        patience: Duration,
        /// What may be wrong.
        hint: &'static str,
    },
    /// The hypervisor or the system refused.
    #[error("instance {instance}: {op} failed: {why}")]
    Failed {
        /// Which.
        instance: InstanceId,
        /// What was being done.
        op: &'static str,
        /// The refusal's words.
        why: String,
    },
}

/// What runs a node's machines. Every call may be repeated, and cancelling one leaves the machine in a state that a
/// repeat gets right. The caller runs one call an instance at a time (reads excepted).
#[async_trait]
pub trait Hypervisor: Send + Sync + 'static {
    /// Name and accelerator.
    fn describe(&self) -> Description;
    /// Takes over the machines that an earlier process of the node left, and answers all that are known, gone ones too.
    async fn adopt(&self) -> Result<Vec<InstanceId>, HypervisorError>;
    /// Starts a machine and answers when its CPUs run; one that runs already is left as it is.
    async fn start(&self, spec: &VmSpec) -> Result<(), HypervisorError>;
    /// How the machine is.
    async fn status(&self, instance: &InstanceId) -> VmStatus;
    /// Presses the ACPI power button.
    async fn press_power_button(&self, instance: &InstanceId) -> Result<(), HypervisorError>;
    /// Reboots the machine: the guest shuts down and boots again, or, when it has not shut down after `grace`, the reset
    /// button is pressed. Answers when it boots; the machine stays the same one.
    async fn reboot(&self, instance: &InstanceId, grace: Duration) -> Result<(), HypervisorError>;
    /// Ends the machine at once and answers when it is gone; a machine that does not run is no error.
    async fn kill(&self, instance: &InstanceId) -> Result<(), HypervisorError>;
    /// Waits until the machine does not run; false when it still does after `at_most`.
    async fn wait_gone(&self, instance: &InstanceId, at_most: Duration) -> bool;
    /// Plugs a disk into a running machine; one that is in already is no error.
    async fn plug(&self, instance: &InstanceId, disk: &VmDisk) -> Result<(), HypervisorError>;
    /// Asks the guest to let a disk go and answers when it did; a disk that is not in is no error. `TimedOut` when the
    /// guest holds on to it for `patience`.
    async fn unplug(&self, instance: &InstanceId, volume: &VolumeId, patience: Duration)
    -> Result<(), HypervisorError>;
    /// The console's last [`CONSOLE_BYTES`]; empty when nothing is known of the machine.
    async fn console(&self, instance: &InstanceId) -> Vec<u8>;
    /// Removes what is left of a machine that does not run.
    async fn forget(&self, instance: &InstanceId) -> Result<(), HypervisorError>;
    /// Changes whenever a machine ended, so that nobody has to poll.
    fn changes(&self) -> watch::Receiver<u64>;
}
