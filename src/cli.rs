//! The command line. Its shape is a contract that tests and tools rely on (README.md).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use karri_base::config::{Hypervisor, Network};
use karri_base::id::AccountId;

use crate::layout::Layout;
use crate::role::Role;
use crate::{ask, chassis, image, standalone, supervisor, walrus};

#[derive(Parser)]
#[command(
    name = "karri",
    version,
    about = "A private, AWS-compatible cloud: EC2, EBS and S3 on your own Linux servers"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the whole cloud on this machine, in the foreground
    Up(Box<Up>),
    /// Print export lines for AWS's and Eucalyptus's tools
    Env(State),
    /// Show the roles' health, versions and capacity; success only when all are healthy
    Status(State),
    /// Machine images
    #[command(subcommand)]
    Image(Image),
    /// Run the cloud role: all AWS APIs but S3, identity, scheduling
    Cloud(RoleArgs),
    /// Run the cluster role: one availability zone
    Cluster(RoleArgs),
    /// Run the node role: this host's virtual machines
    Node(RoleArgs),
    /// Run the storage role: this host's volumes
    Storage(StorageArgs),
    /// Run the walrus role: S3
    Walrus(WalrusArgs),
}

#[derive(Args)]
struct State {
    /// State folder [default: $KARRI_STATE, /var/lib/karri as root, else the XDG state folder]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Image {
    /// Upload an image to Walrus, register it, print its ami id
    Add {
        /// The image's name, unique in the account
        name: String,
        /// Raw disk image
        #[arg(long, value_name = "FILE")]
        root: PathBuf,
        /// Kernel, for booting it directly; without one the root disk boots by firmware
        #[arg(long, value_name = "FILE")]
        kernel: Option<PathBuf>,
        /// The kernel's ramdisk
        #[arg(long, value_name = "FILE", requires = "kernel")]
        ramdisk: Option<PathBuf>,
        #[command(flatten)]
        state: State,
    },
}

#[derive(Args)]
struct RoleArgs {
    /// The role's TOML file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
struct StorageArgs {
    /// The role's TOML file
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    alone: Option<StorageAlone>,
}

#[derive(Subcommand)]
enum StorageAlone {
    /// Export one volume without a cloud, until told to stop
    Export {
        /// The store: a file (made with SIZE where it is not there) or a block device
        #[arg(long, value_name = "FILE[:SIZE]")]
        store: String,
        /// The volume; made where it is not there
        #[arg(long, value_name = "NAME:SIZE")]
        volume: String,
        /// Listen on this vhost-user-blk socket
        #[arg(long, value_name = "SOCK")]
        vhost_user: Option<PathBuf>,
        /// Pin the guest's memory and register it for I/O: faster; not for guests with a balloon or free page reporting
        #[arg(long)]
        pin_memory: bool,
        /// iSCSI listener (not in this version)
        #[arg(long, value_name = "ADDR")]
        iscsi: Option<SocketAddr>,
        /// AoE (not in this version)
        #[arg(long, value_name = "IFACE:SHELF.SLOT")]
        aoe: Option<String>,
        /// Virtqueues
        #[arg(long, value_name = "N", default_value_t = 1)]
        queues: u16,
    },
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
struct WalrusArgs {
    /// The role's TOML file
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    alone: Option<WalrusAlone>,
}

#[derive(Subcommand)]
enum WalrusAlone {
    /// Serve S3 without a cloud, to one key or to the users of a file, until told to stop
    #[command(group = clap::ArgGroup::new("keys").required(true).multiple(true).args(["access_key", "users"]))]
    Serve {
        /// Folder of records and data; made where it is not there
        #[arg(long, value_name = "DIR")]
        store: PathBuf,
        /// S3 listener; port 0 picks a free one
        #[arg(long, value_name = "ADDR")]
        listen: SocketAddr,
        /// The key's id
        #[arg(long, value_name = "K", requires = "secret_key")]
        access_key: Option<String>,
        /// Its secret
        #[arg(long, value_name = "S", requires = "access_key")]
        secret_key: Option<String>,
        /// TOML file of more users: `[[user]]` tables of account, name, email, access_key, secret_key, administrator
        #[arg(long, value_name = "FILE")]
        users: Option<PathBuf>,
        /// IAM and STS listener; port 0 picks a free one. Users, roles and policies are then kept in the folder
        #[arg(long, value_name = "ADDR")]
        iam: Option<SocketAddr>,
        /// TOML file of what only the operator may set, such as accounts' quotas
        #[arg(long, value_name = "FILE")]
        settings: Option<PathBuf>,
        /// A name of this S3, again for more: BUCKET.NAME is a bucket's host [default: the settings', else localhost]
        #[arg(long = "domain", value_name = "NAME")]
        domains: Vec<String>,
        /// The AWS region that answers are given for
        #[arg(long, value_name = "NAME", default_value = "us-east-1")]
        region: String,
        /// Prometheus metrics; port 0 picks a free one
        #[arg(long, value_name = "ADDR")]
        metrics: Option<SocketAddr>,
        /// TLS on all listeners: PEM file of the certificate with its chain; renewed when the files change, or on SIGHUP
        #[arg(long, value_name = "FILE", requires = "tls_key")]
        tls_cert: Option<PathBuf>,
        /// PEM file of its private key
        #[arg(long, value_name = "FILE", requires = "tls_cert")]
        tls_key: Option<PathBuf>,
    },
    /// Show what is in the buckets of an account, or in one
    Usage {
        /// One bucket only
        bucket: Option<String>,
        #[command(flatten)]
        which: walrus::Which,
    },
    /// List all buckets of a store with their owners, or the keys of one
    List {
        /// One bucket's keys
        bucket: Option<String>,
        /// Only keys that begin so
        #[arg(long, value_name = "PREFIX", requires = "bucket")]
        prefix: Option<String>,
        #[command(flatten)]
        which: walrus::Which,
    },
    /// Verify every stored byte, repair what can be, report what is corrupt; success only where nothing is
    Check {
        /// Show what the last pass found instead
        #[arg(long)]
        last: bool,
        #[command(flatten)]
        which: walrus::Which,
    },
    /// Free the space that nothing refers to
    Reclaim {
        #[command(flatten)]
        which: walrus::Which,
    },
    /// Write every current object of a bucket into a folder, verified, with a manifest
    Export {
        /// The bucket
        bucket: String,
        /// The folder: made, or empty
        dir: PathBuf,
        /// Go on with an export that was cut off
        #[arg(long)]
        resume: bool,
        #[command(flatten)]
        which: walrus::Which,
    },
    /// Limit what may be in a bucket; without limits, take them off
    Quota {
        /// The bucket
        bucket: String,
        /// Bytes of all versions and open uploads, such as 10G
        #[arg(long, value_name = "SIZE")]
        max_bytes: Option<String>,
        /// Versions
        #[arg(long, value_name = "N")]
        max_objects: Option<u64>,
        #[command(flatten)]
        which: walrus::Which,
    },
}

/// `karri up`'s flags; each wins over the same key of `--config`.
#[derive(Args, Default)]
pub struct Up {
    /// State folder [default: $KARRI_STATE, /var/lib/karri as root, else the XDG state folder]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// TOML file with any of these settings, and the stores' sizes
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// All AWS APIs but S3; port 0 picks a free one [default: 127.0.0.1:8773]
    #[arg(long, value_name = "ADDR")]
    pub api: Option<SocketAddr>,
    /// S3 [default: 127.0.0.1:9000]
    #[arg(long, value_name = "ADDR")]
    pub s3: Option<SocketAddr>,
    /// S3 and the other APIs over TLS: PEM file of the certificate with its chain; renewed without a restart when the files change
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file of its private key
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Web console [default: 127.0.0.1:8888]
    #[arg(long, value_name = "ADDR")]
    pub console: Option<SocketAddr>,
    /// iSCSI targets [default: 127.0.0.1:3260]
    #[arg(long, value_name = "ADDR")]
    pub iscsi: Option<SocketAddr>,
    /// Prometheus metrics of all roles [default: 127.0.0.1:9773]
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<SocketAddr>,
    /// The AWS region that answers are given for [default: us-east-1]
    #[arg(long, value_name = "NAME")]
    pub region: Option<String>,
    /// The account made at first start [default: random]
    #[arg(long, value_name = "12DIGITS")]
    pub account_id: Option<AccountId>,
    /// What runs instances: qemu, or fake for tests [default: qemu]
    #[arg(long, value_name = "qemu|fake", value_parser = hypervisor)]
    pub hypervisor: Option<Hypervisor>,
    /// How guests are wired: user (overlay comes with a later version) [default: user]
    #[arg(long, value_name = "user", value_parser = network)]
    pub network: Option<Network>,
    /// Leave instances running when stopping; the next start adopts them
    #[arg(long)]
    pub keep_instances: bool,
}

fn hypervisor(text: &str) -> Result<Hypervisor, String> {
    match text {
        "qemu" => Ok(Hypervisor::Qemu),
        "fake" => Ok(Hypervisor::Fake),
        _ => Err("want qemu or fake".into()),
    }
}

fn network(text: &str) -> Result<Network, String> {
    match text {
        "user" => Ok(Network::User),
        "overlay" => Err("the overlay network is not in this version; want user".into()),
        _ => Err("want user".into()),
    }
}

/// Reads the command line and does what it says.
pub fn run() -> Result<ExitCode> {
    let layout = |state: &State| Layout::find(state.state.as_deref());
    match Cli::parse().command {
        Command::Up(up) => supervisor::up(&up),
        Command::Env(state) => ask::env(&layout(&state)?),
        Command::Status(state) => ask::status(&layout(&state)?),
        Command::Image(Image::Add { name, root, kernel, ramdisk, state }) => {
            image::add(&layout(&state)?, &image::Files { name, root, kernel, ramdisk })
        }
        Command::Cloud(args) => chassis::run(Role::Cloud, &args.config),
        Command::Cluster(args) => chassis::run(Role::Cluster, &args.config),
        Command::Node(args) => chassis::run(Role::Node, &args.config),
        Command::Storage(StorageArgs { alone: None, config }) => role(Role::Storage, config),
        Command::Storage(StorageArgs { alone: Some(alone), .. }) => export(alone),
        Command::Walrus(WalrusArgs { alone: None, config }) => role(Role::Walrus, config),
        Command::Walrus(WalrusArgs { alone: Some(alone), .. }) => walrus_alone(alone),
    }
}

fn walrus_alone(alone: WalrusAlone) -> Result<ExitCode> {
    match alone {
        WalrusAlone::Serve {
            store,
            listen,
            access_key,
            secret_key,
            users,
            iam,
            settings,
            domains,
            region,
            metrics,
            tls_cert,
            tls_key,
        } => {
            let (key, tls) = (access_key.zip(secret_key), tls_cert.zip(tls_key));
            let asked = standalone::Serve { store, listen, key, users, iam, settings, domains, region, metrics, tls };
            standalone::serve(asked)
        }
        WalrusAlone::Usage { bucket, which } => walrus::usage(&which, bucket.as_deref()),
        WalrusAlone::List { bucket, prefix, which } => {
            walrus::store::list(&which, bucket.as_deref(), prefix.as_deref())
        }
        WalrusAlone::Check { last, which } => walrus::store::check(&which, last),
        WalrusAlone::Reclaim { which } => walrus::store::reclaim(&which),
        WalrusAlone::Export { bucket, dir, resume, which } => walrus::export::export(&which, &bucket, &dir, resume),
        WalrusAlone::Quota { bucket, max_bytes, max_objects, which } => {
            walrus::quota(&which, &bucket, max_bytes.as_deref(), max_objects)
        }
    }
}

fn role(role: Role, config: Option<PathBuf>) -> Result<ExitCode> {
    chassis::run(role, &config.context("--config FILE is missing")?)
}

fn export(alone: StorageAlone) -> Result<ExitCode> {
    let StorageAlone::Export { store, volume, vhost_user, iscsi, aoe, queues, pin_memory } = alone;
    if iscsi.is_some() || aoe.is_some() {
        bail!("iSCSI and AoE are not in this version; export the volume with --vhost-user SOCK");
    }
    standalone::export(&standalone::Export { store, volume, vhost_user, queues, pin_memory })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_contracts_forms_are_understood() {
        Cli::command().debug_assert();
        let fine = [
            "up --state /s --config f --api 127.0.0.1:0 --s3 [::1]:0 --console 127.0.0.1:1 --iscsi 127.0.0.1:2 \
             --metrics 127.0.0.1:3 --region r --account-id 123456789012 --hypervisor fake --network user --keep-instances",
            "env --state /s",
            "status",
            "cloud --config f",
            "cluster --config f",
            "node --config f",
            "storage --config f",
            "walrus --config f",
            "storage export --store f:1G --volume v:1G --vhost-user s --iscsi 127.0.0.1:0 --aoe eth0:1.2 --queues 2 \
             --pin-memory",
            "image add n --root f --kernel k --ramdisk r --state /s",
            "walrus serve --store d --listen 127.0.0.1:0 --access-key k --secret-key s",
            "walrus serve --store d --listen 127.0.0.1:0 --users f",
            "walrus serve --store d --listen 127.0.0.1:0 --users f --tls-cert c --tls-key k",
            "up --tls-cert c --tls-key k",
            "walrus serve --store d --listen 127.0.0.1:0 --users f --iam 127.0.0.1:0",
            "walrus serve --store d --listen 127.0.0.1:0 --users f --settings g",
            "walrus serve --store d --listen 127.0.0.1:0 --users f --domain s3.a.org --domain b.org --region eu-central-1 \
             --metrics 127.0.0.1:0",
            "walrus usage b --state /s",
            "walrus usage --endpoint http://127.0.0.1:9000",
            "walrus list --state /s",
            "walrus list b --prefix p --endpoint https://127.0.0.1:9000 --ca f",
            "walrus check --last",
            "walrus reclaim",
            "walrus export b d --resume",
            "walrus quota b --max-bytes 10G --max-objects 5 --endpoint http://127.0.0.1:9000",
        ];
        for line in fine {
            let parsed = Cli::try_parse_from(["karri"].into_iter().chain(line.split_whitespace()));
            assert!(parsed.is_ok(), "{line}: {}", parsed.err().map(|e| e.to_string()).unwrap_or_default());
        }
        for line in [
            "storage",
            "walrus",
            "cloud",
            "up --network tunnel",
            "image add n",
            "up --account-id 1",
            "walrus serve --store d --listen 127.0.0.1:0",
            "walrus list --prefix p",
            "walrus serve --store d --listen 127.0.0.1:0 --users f --tls-cert c",
            "walrus export b",
        ] {
            let parsed = Cli::try_parse_from(["karri"].into_iter().chain(line.split_whitespace()));
            assert!(parsed.is_err(), "{line} was taken");
        }
    }
}
