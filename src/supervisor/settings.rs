//! What `karri up` was told: flags, then `--config`'s file, then defaults.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use karri_base::config::{Hypervisor, Network};
use karri_base::id::AccountId;
use karri_base::units::{GIB, parse_bytes};
use serde::Deserialize;

use crate::cli::Up;
use crate::layout;

/// The file of `karri up --config`; every key is optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    state: Option<PathBuf>,
    api: Option<SocketAddr>,
    s3: Option<SocketAddr>,
    console: Option<SocketAddr>,
    iscsi: Option<SocketAddr>,
    metrics: Option<SocketAddr>,
    region: Option<String>,
    zone: Option<String>,
    account_id: Option<AccountId>,
    hypervisor: Option<Hypervisor>,
    network: Option<Network>,
    walrus_settings: Option<PathBuf>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    #[serde(default)]
    walrus: Store,
    #[serde(default)]
    storage: Store,
}

/// A bulk store of a role.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// A file or block device instead of the role's own `store` file.
    pub path: Option<PathBuf>,
    /// The size of a file made anew, such as `"64G"`.
    #[serde(default, deserialize_with = "size")]
    pub size: Option<u64>,
    /// Engine cores.
    pub cores: Option<usize>,
}

fn size<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(from)?;
    parse_bytes(&text).map(Some).map_err(serde::de::Error::custom)
}

/// All settings.
#[derive(Debug)]
pub struct Settings {
    pub state: Option<PathBuf>,
    pub api: SocketAddr,
    pub s3: SocketAddr,
    pub console: SocketAddr,
    pub iscsi: SocketAddr,
    pub metrics: SocketAddr,
    pub region: String,
    pub zone: String,
    pub account_id: Option<AccountId>,
    pub hypervisor: Hypervisor,
    pub network: Network,
    pub keep_instances: bool,
    pub walrus_settings: Option<PathBuf>,
    /// Certificate and key of the listeners of S3 and of the other APIs.
    pub tls: Option<(PathBuf, PathBuf)>,
    pub walrus: Store,
    pub storage: Store,
}

impl Settings {
    /// Puts flags and file together.
    pub fn resolve(flags: &Up) -> Result<Self> {
        let file: File = flags.config.as_deref().map(layout::read_toml).transpose()?.unwrap_or_default();
        let listen = |flag: Option<SocketAddr>, file: Option<SocketAddr>, port| {
            flag.or(file).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], port)))
        };
        let tls = match (flags.tls_cert.clone().or(file.tls_cert), flags.tls_key.clone().or(file.tls_key)) {
            // Roles have working folders of their own.
            (Some(cert), Some(key)) => Some((std::path::absolute(cert)?, std::path::absolute(key)?)),
            (None, None) => None,
            _ => bail!("--tls-cert and --tls-key go together"),
        };
        let region = flags.region.clone().or(file.region).unwrap_or_else(|| "us-east-1".into());
        Ok(Self {
            state: flags.state.clone().or(file.state),
            api: listen(flags.api, file.api, 8773),
            s3: listen(flags.s3, file.s3, 9000),
            console: listen(flags.console, file.console, 8888),
            iscsi: listen(flags.iscsi, file.iscsi, 3260),
            metrics: listen(flags.metrics, file.metrics, 9773),
            zone: file.zone.unwrap_or_else(|| format!("{region}a")),
            region,
            account_id: flags.account_id.clone().or(file.account_id),
            hypervisor: flags.hypervisor.or(file.hypervisor).unwrap_or_default(),
            network: flags.network.or(file.network).unwrap_or_default(),
            keep_instances: flags.keep_instances,
            walrus_settings: file.walrus_settings,
            tls,
            walrus: file.walrus,
            storage: file.storage,
        })
    }
}

/// The size of a store file made anew where none was given: 45 % of the file system's free space (two stores share
/// it), in whole GiB, at least 1 GiB. The file is sparse, so that is a limit and not an expense. A store that is there
/// keeps its size: free space is another at every start.
pub fn store_bytes(given: Option<u64>, store: &Path, folder: &Path) -> Result<u64> {
    let there = std::fs::metadata(store).ok().filter(|meta| meta.is_file()).map_or(0, |meta| meta.len());
    if there > 0 || given.is_some() {
        return Ok(there.max(given.unwrap_or(0)));
    }
    let fs = rustix::fs::statvfs(folder).with_context(|| format!("asking {}'s free space", folder.display()))?;
    Ok((fs.f_bavail * fs.f_frsize / 100 * 45 / GIB * GIB).max(GIB))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_there_keeps_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        assert_eq!(store_bytes(Some(3 << 30), &store, dir.path()).unwrap(), 3 << 30);
        assert!(store_bytes(None, &store, dir.path()).unwrap() >= 1 << 30);
        std::fs::File::create(&store).unwrap().set_len(5 << 20).unwrap();
        assert_eq!(store_bytes(None, &store, dir.path()).unwrap(), 5 << 20);
        assert_eq!(store_bytes(Some(1 << 20), &store, dir.path()).unwrap(), 5 << 20);
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("up.toml");
        std::fs::write(
            &path,
            "s3 = \"127.0.0.1:1\"\napi = \"127.0.0.1:2\"\nregion = \"x-1\"\n[walrus]\nsize = \"3G\"\n",
        )
        .unwrap();
        let flags =
            Up { config: Some(path.clone()), s3: Some(SocketAddr::from(([127, 0, 0, 1], 0))), ..Default::default() };
        let settings = Settings::resolve(&flags).unwrap();
        assert_eq!((settings.s3.port(), settings.api.port(), settings.metrics.port()), (0, 2, 9773));
        assert_eq!((settings.zone.as_str(), settings.walrus.size), ("x-1a", Some(3 * GIB)));

        std::fs::write(&path, "[walrus]\nsize = \"3 barrels\"\n").unwrap();
        let error = format!("{:#}", Settings::resolve(&flags).unwrap_err());
        assert!(error.contains("up.toml") && error.contains("3 barrels"), "{error}");
    }
}
