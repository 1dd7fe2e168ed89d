//! One TOML file format for every role: `karri ROLE --config FILE` reads the parts that it needs.
//!
//! `karri up` writes one such file per role under `STATE/etc`. Unknown keys are refused, so that a slip of the pen
//! is not taken for a default.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::id::AccountId;

/// The whole file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What every role has.
    pub role: Role,
    /// Certificates for the gRPC between roles.
    pub tls: Tls,
    /// Where the other roles' gRPC listens.
    #[serde(default)]
    pub peers: Peers,
    /// The cloud role.
    pub cloud: Option<Cloud>,
    /// The node role.
    pub node: Option<Node>,
    /// The storage role.
    pub storage: Option<Storage>,
    /// The walrus role.
    pub walrus: Option<Walrus>,
}

/// What every role has.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// The role's own folder; created with mode 0700.
    pub state: PathBuf,
    /// The AWS region that answers are given for.
    #[serde(default = "default_region")]
    pub region: String,
    /// The availability zone of a cluster, node and storage role.
    #[serde(default = "default_zone")]
    pub zone: String,
    /// The account made at first start.
    pub account_id: AccountId,
    /// This role's gRPC listener.
    pub grpc: SocketAddr,
    /// This role's Prometheus metrics listener (`GET /metrics`, `GET /healthz`).
    pub metrics: SocketAddr,
}

/// PEM files of this role's certificate and the authority that all roles trust.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// This role's certificate; its DNS name is the role's name (`cloud`, `node`, ...).
    pub cert: PathBuf,
    /// Its private key, mode 0600.
    pub key: PathBuf,
}

/// Where the other roles' gRPC listens; a role needs only the ones it calls.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peers {
    /// The cloud.
    pub cloud: Option<SocketAddr>,
    /// The zone's cluster.
    pub cluster: Option<SocketAddr>,
    /// This host's node.
    pub node: Option<SocketAddr>,
    /// This host's storage.
    pub storage: Option<SocketAddr>,
    /// Walrus.
    pub walrus: Option<SocketAddr>,
    /// The S3 endpoint, such as `http://127.0.0.1:9000`.
    pub s3: Option<String>,
}

/// The cloud role.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cloud {
    /// The listener of all AWS APIs but S3.
    pub api: SocketAddr,
    /// PEM file of that listener's certificate, with its chain; without it the listener speaks plain HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file of its private key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Where a cloud whose listener speaks TLS speaks plain HTTP, for the tools of this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inner: Option<SocketAddr>,
    /// TOML file with the first account, its admin user's key and the system key ([`Credentials`]), mode 0600.
    pub credentials: PathBuf,
}

/// The node role.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// `qemu` or `fake`.
    #[serde(default)]
    pub hypervisor: Hypervisor,
    /// `user` or `overlay`.
    #[serde(default)]
    pub network: Network,
    /// TOML file with the system key, for reading kernels and ramdisks from Walrus.
    pub credentials: PathBuf,
}

/// Which `Hypervisor` a node drives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hypervisor {
    /// QEMU over QMP.
    #[default]
    Qemu,
    /// The twin for tests and scale runs.
    Fake,
}

/// Which `Datapath` a node wires guests to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// QEMU's user-mode network.
    #[default]
    User,
    /// The eBPF overlay.
    Overlay,
}

/// The storage role.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Storage {
    /// The store: a file or a block device.
    pub store: PathBuf,
    /// The store's size in bytes where the file is made anew; sparse.
    pub store_bytes: u64,
    /// Folder of the vhost-user sockets.
    pub sockets: PathBuf,
    /// Engine cores.
    #[serde(default = "default_cores")]
    pub cores: usize,
    /// TOML file with the system key, for reading images from Walrus.
    pub credentials: PathBuf,
}

/// The walrus role.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Walrus {
    /// The S3 listener.
    pub listen: SocketAddr,
    /// The bulk store: a file or a block device.
    pub store: PathBuf,
    /// The store's size in bytes where the file is made anew; sparse.
    pub store_bytes: u64,
    /// Engine cores.
    #[serde(default = "default_cores")]
    pub cores: usize,
    /// PEM file of the S3 listener's certificate, with its chain; without it the listener speaks plain HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file of its private key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Where a Walrus whose listener speaks TLS speaks plain HTTP, for the roles of this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inner: Option<SocketAddr>,
    /// The operator's settings of Walrus, such as accounts' quotas: a TOML file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<PathBuf>,
}

/// `credentials.toml`: made at first start.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// The account's number.
    pub account_id: AccountId,
    /// The admin user's access key.
    pub admin: AccessKey,
    /// The key that roles use among themselves against S3.
    pub system: AccessKey,
}

/// An access key and its secret.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessKey {
    /// `AKIA` and 16 upper-case letters and digits.
    pub access_key_id: String,
    /// 40 characters.
    pub secret_access_key: String,
}

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AccessKey({}, secret hidden)", self.access_key_id)
    }
}

fn default_region() -> String {
    "us-east-1".into()
}
fn default_zone() -> String {
    "us-east-1a".into()
}
fn default_cores() -> usize {
    1
}
