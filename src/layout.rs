//! The state folder: where everything that a karri on one machine keeps has its place.
//!
//! ```text
//! STATE/                    0700
//!   lock                    held by the `karri up` that runs here; says its pid
//!   credentials.toml        0600: account, admin user's key, system key
//!   runtime.toml            0600: what runs now and where it listens; absent after a clean stop
//!   tls/                    0700: ca.pem, ca.key, ROLE.pem, ROLE.key, admin.pem, admin.key
//!   etc/ROLE.toml           0600: written by `karri up` at every start
//!   ROLE/                   0700: the role's own; lock, meta/ (records), store (bulk data), ...
//!   run/                    0700: vhost-user sockets
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use karri_base::config::{AccessKey, Credentials};
use karri_base::id::AccountId;
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::role::Role;

/// A Unix socket's path has at most 107 bytes; what roles append needs the rest.
const STATE_PATH_BYTES_MAX: usize = 60;

/// A state folder.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The folder given, or `$KARRI_STATE`, or `/var/lib/karri` for root, or the XDG state folder. Nothing is made.
    pub fn find(given: Option<&Path>) -> Result<Self> {
        let env = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let root = match given.map(Path::to_owned).or_else(|| env("KARRI_STATE")) {
            Some(root) => root,
            None if rustix::process::geteuid().is_root() => "/var/lib/karri".into(),
            None => env("XDG_STATE_HOME")
                .or_else(|| env("HOME").map(|home| home.join(".local/state")))
                .context("no state folder: give --state, or set KARRI_STATE, XDG_STATE_HOME or HOME")?
                .join("karri"),
        };
        let root = std::path::absolute(&root).with_context(|| format!("state folder {}", root.display()))?;
        Ok(Self { root })
    }

    /// Makes the folders.
    pub fn create(&self) -> Result<()> {
        let length = self.root.as_os_str().len();
        if length > STATE_PATH_BYTES_MAX {
            bail!(
                "state folder {} has {length} bytes in its name; sockets below it leave at most {STATE_PATH_BYTES_MAX}. \
                 Give a shorter --state",
                self.root.display()
            );
        }
        for dir in [self.root.clone(), self.tls(), self.root.join("etc"), self.sockets()] {
            private_dir(&dir)?;
        }
        Ok(())
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// Certificates and keys.
    pub fn tls(&self) -> PathBuf {
        self.root.join("tls")
    }
    /// The folder of vhost-user sockets.
    pub fn sockets(&self) -> PathBuf {
        self.root.join("run")
    }
    /// The first account, its admin's key and the system key.
    pub fn credentials(&self) -> PathBuf {
        self.root.join("credentials.toml")
    }
    /// A role's configuration.
    pub fn role_config(&self, role: Role) -> PathBuf {
        self.root.join("etc").join(format!("{role}.toml"))
    }
    /// A role's own folder.
    pub fn role_state(&self, role: Role) -> PathBuf {
        self.root.join(role.name())
    }

    /// Takes the folder for one `karri up`.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.root.join("lock");
        match Lock::take(&path)? {
            Ok(lock) => Ok(lock),
            Err(holder) => bail!(
                "another `karri up`{holder} runs on {}; stop it, or give another --state and ports",
                self.root.display()
            ),
        }
    }

    /// The credentials, made where there are none yet (then `true`).
    pub fn ensure_credentials(&self, account: Option<AccountId>) -> Result<(Credentials, bool)> {
        if self.credentials().exists() {
            let found = self.read_credentials()?;
            if let Some(account) = account
                && account != found.account_id
            {
                bail!(
                    "{} is of account {}, not {account}: the account is chosen at first start",
                    self.credentials().display(),
                    found.account_id
                );
            }
            return Ok((found, false));
        }
        let made = Credentials {
            account_id: match account {
                Some(account) => account,
                None => format!("{:012}", rand::rng().random_range(1u64..1_000_000_000_000))
                    .parse()
                    .context("making an account number")?,
            },
            admin: random_key(),
            system: random_key(),
        };
        write_private(&self.credentials(), toml::to_string(&made)?.as_bytes())?;
        Ok((made, true))
    }

    /// Reads the credentials.
    pub fn read_credentials(&self) -> Result<Credentials> {
        read_toml(&self.credentials())
    }

    fn runtime_path(&self) -> PathBuf {
        self.root.join("runtime.toml")
    }
    /// Says what runs.
    pub fn write_runtime(&self, runtime: &Runtime) -> Result<()> {
        write_private(&self.runtime_path(), toml::to_string(runtime)?.as_bytes())
    }
    /// True when the last `karri up` here did not stop cleanly.
    pub fn has_runtime(&self) -> bool {
        self.runtime_path().exists()
    }
    /// After a clean stop.
    pub fn remove_runtime(&self) {
        let _ = fs::remove_file(self.runtime_path());
    }
    /// What runs here.
    pub fn read_runtime(&self) -> Result<Runtime> {
        if !self.has_runtime() {
            bail!("no karri runs on {}; start one with `karri up`, or name its --state", self.root.display());
        }
        read_toml(&self.runtime_path())
    }
}

/// What a running `karri up` listens on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    /// The supervisor's process id.
    pub pid: u32,
    /// The region.
    pub region: String,
    /// All AWS APIs but S3.
    pub api: SocketAddr,
    /// S3.
    pub s3: SocketAddr,
    /// Both speak TLS there; S3 only where `api_inner` is not said.
    #[serde(default, alias = "s3_tls")]
    pub tls: bool,
    /// The APIs in plain HTTP, for this machine; at `api` where an older `karri up` does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_inner: Option<SocketAddr>,
    /// S3 in plain HTTP, for this machine.
    pub s3_inner: SocketAddr,
    /// The web console.
    pub console: SocketAddr,
    /// Metrics of all roles.
    pub metrics: SocketAddr,
    /// The roles' gRPC listeners.
    pub grpc: std::collections::BTreeMap<String, SocketAddr>,
}

impl Runtime {
    /// The APIs in plain HTTP, for this machine.
    pub fn api_plain(&self) -> SocketAddr {
        self.api_inner.unwrap_or(self.api)
    }
    /// True where `api` speaks TLS.
    pub fn api_tls(&self) -> bool {
        self.tls && self.api_inner.is_some()
    }
}

/// A file lock, held until dropped or the process ends.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code, reason = "held, never read")] File);

impl Lock {
    /// Takes it, or says who has it (" (pid 42)", or nothing where that is unknown).
    pub fn take(path: &Path) -> Result<Result<Self, String>> {
        let what = || format!("lock file {}", path.display());
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .with_context(what)?;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0).with_context(what)?;
                writeln!(file, "{}", std::process::id()).with_context(what)?;
                Ok(Ok(Self(file)))
            }
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                let pid = pid.trim();
                Ok(Err(if pid.is_empty() { String::new() } else { format!(" (pid {pid})") }))
            }
            Err(TryLockError::Error(error)) => Err(error).with_context(what),
        }
    }
}

/// Makes a folder, and its parents, that only its owner enters.
pub fn private_dir(path: &Path) -> Result<()> {
    let what = || format!("making folder {}", path.display());
    DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(what)?;
    let mode = fs::metadata(path).with_context(what)?.permissions().mode();
    if mode & 0o1000 != 0 {
        bail!("folder {} is shared with others (sticky); name one below it", path.display());
    }
    if mode & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).with_context(what)?;
    }
    Ok(())
}

/// Writes a file whole or not at all, readable by its owner only, durable when this answers.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        let beside = path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// Reads a TOML file; the error names file, line and what was wrong, and does not quote the line: it may hold a secret.
pub fn read_toml<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    toml::from_str(&text).map_err(|e: toml::de::Error| {
        let before = text.get(..e.span().map_or(0, |s| s.start)).unwrap_or_default();
        let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
        anyhow::anyhow!("{} is not valid: line {line}: {}", path.display(), e.message())
    })
}

/// A fresh access key in AWS's form.
fn random_key() -> AccessKey {
    let pick = |set: &[u8], n| -> String {
        let mut rng = rand::rng();
        (0..n).map(|_| set[rng.random_range(0..set.len())] as char).collect()
    };
    AccessKey {
        access_key_id: format!("AKIA{}", pick(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16)),
        secret_access_key: pick(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", 40),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::find(Some(dir.path())).unwrap();
        layout.create().unwrap();
        let account: AccountId = "123456789012".parse().unwrap();
        let (made, fresh) = layout.ensure_credentials(Some(account.clone())).unwrap();
        assert!(fresh);
        assert_eq!(made.admin.access_key_id.len(), 20);
        assert_eq!(made.admin.secret_access_key.len(), 40);
        let (again, fresh) = layout.ensure_credentials(None).unwrap();
        assert!(!fresh);
        assert_eq!(again.admin.secret_access_key, made.admin.secret_access_key);
        let mode = fs::metadata(layout.credentials()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let other: AccountId = "210987654321".parse().unwrap();
        let refusal = layout.ensure_credentials(Some(other)).unwrap_err().to_string();
        assert!(refusal.contains("123456789012") && refusal.contains("210987654321"), "{refusal}");
    }

    #[test]
    fn a_second_lock_is_refused_and_names_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::find(Some(dir.path())).unwrap();
        let held = layout.lock().unwrap();
        let refusal = layout.lock().unwrap_err().to_string();
        assert!(refusal.contains(&format!("pid {}", std::process::id())), "{refusal}");
        drop(held);
        layout.lock().unwrap();
    }

    #[test]
    fn what_an_older_karri_up_says_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::find(Some(dir.path())).unwrap();
        let old = "pid = 7\nregion = \"r\"\napi = \"127.0.0.1:1\"\ns3 = \"127.0.0.1:2\"\ns3_tls = true\n\
            s3_inner = \"127.0.0.1:3\"\nconsole = \"127.0.0.1:4\"\nmetrics = \"127.0.0.1:5\"\n[grpc]\n";
        fs::write(layout.runtime_path(), old).unwrap();
        let read = layout.read_runtime().unwrap();
        assert_eq!((read.tls, read.api_tls(), read.api_plain()), (true, false, read.api));
        let inner = Some("127.0.0.1:6".parse().unwrap());
        layout.write_runtime(&Runtime { api_inner: inner, ..read }).unwrap();
        let read = layout.read_runtime().unwrap();
        assert_eq!((read.api_tls(), Some(read.api_plain())), (true, inner));
    }

    #[test]
    fn a_slip_in_a_toml_file_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials.toml");
        fs::write(&path, "account_id = \"123456789012\"\nadmln = 3\n").unwrap();
        let error = format!("{:#}", read_toml::<Credentials>(&path).unwrap_err());
        assert!(error.contains("credentials.toml") && error.contains("line 2") && error.contains("admln"), "{error}");
    }
}
