//! A role's service without a cloud: `walrus serve` and `storage export`. Benches, tests and other tools attach to them.
//!
//! They have no gRPC and no certificates; the rest (records, shutdown by signal) is as in a role process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use karri_base::aws::keys::{Key, KeyRing};
use karri_base::clock::{Clock, SystemClock};
use karri_base::observe;
use karri_base::role::Running;
use karri_base::units::parse_bytes;
use karri_control::audit::Trail;
use karri_control::identity::alone::Listener;
use karri_control::identity::{Directory, Seed};
use karri_objectstore::ServeOptions;
use karri_objectstore::metrics::Metrics;
use karri_objectstore::operator::Operator;
use karri_objectstore::tls::{API_PROTOCOLS, Certificate, S3_PROTOCOLS};

use crate::ask::print;
use crate::chassis;

/// What `storage export` was asked for.
pub struct Export {
    /// `FILE[:SIZE]`.
    pub store: String,
    /// `NAME:SIZE`.
    pub volume: String,
    /// vhost-user-blk socket.
    pub vhost_user: Option<PathBuf>,
    /// Virtqueues.
    pub queues: u16,
    /// Whether guest memory is pinned.
    pub pin_memory: bool,
}

/// Exports one volume until told to stop.
pub fn export(asked: &Export) -> Result<ExitCode> {
    let Some(socket) = asked.vhost_user.clone() else {
        bail!("nothing to export the volume on: give --vhost-user SOCK");
    };
    let (store, store_bytes) = file_and_size(&asked.store)?;
    let (volume, size) = asked
        .volume
        .rsplit_once(':')
        .with_context(|| format!("--volume {:?}: want NAME:SIZE, such as disk:10G", asked.volume))?;
    let options = karri_blockstore::role::ExportOptions {
        store: store.clone(),
        store_bytes,
        volume: volume.to_owned(),
        size: size_of("--volume", size)?,
        vhost_user: socket.clone(),
        queues: asked.queues,
        read_only: false,
        pin_memory: asked.pin_memory,
    };
    let records = beside(&store, "meta");
    observe::init_logs();
    runtime()?.block_on(async {
        let mut registry = observe::registry("storage");
        let meta = chassis::records(&records, &mut registry).await?;
        // Listened for before anyone is told that it is there: a signal that came in between would be lost.
        let stop = chassis::stop_requested()?;
        let exported = karri_blockstore::role::export(options, meta, &mut registry).await?;
        print(&format!("ready: {volume} on {}\n", socket.display()));
        stop.await;
        exported.shutdown().await;
        Ok(ExitCode::SUCCESS)
    })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

/// `FILE` or `FILE:SIZE`; a colon that no size follows belongs to the name.
fn file_and_size(text: &str) -> Result<(PathBuf, Option<u64>)> {
    match text.rsplit_once(':') {
        Some((file, size)) if size.starts_with(|c: char| c.is_ascii_digit()) && !size.contains('/') => {
            Ok((file.into(), Some(size_of("--store", size)?)))
        }
        _ => Ok((text.into(), None)),
    }
}

fn size_of(flag: &str, text: &str) -> Result<u64> {
    parse_bytes(text).map_err(|why| anyhow::anyhow!("{flag}: {why}"))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// What `walrus serve` was asked for.
pub struct Serve {
    /// The folder of records and data.
    pub store: PathBuf,
    /// The S3 listener.
    pub listen: SocketAddr,
    /// A key of account 000000000000's root, and its secret.
    pub key: Option<(String, String)>,
    /// A file of users.
    pub users: Option<PathBuf>,
    /// The IAM and STS listener.
    pub iam: Option<SocketAddr>,
    /// The operator's settings.
    pub settings: Option<PathBuf>,
    /// Names of the service; those of the settings where there are none.
    pub domains: Vec<String>,
    /// The AWS region.
    pub region: String,
    /// The listener of metrics.
    pub metrics: Option<SocketAddr>,
    /// Certificate and key of all listeners.
    pub tls: Option<(PathBuf, PathBuf)>,
}

/// A file of users; `control/docs/identity.md` says what each field means.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Users {
    user: Vec<User>,
}

/// One user: who it is, and its key.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct User {
    account: String,
    name: String,
    #[serde(default)]
    email: String,
    access_key: String,
    secret_key: String,
    #[serde(default = "yes")]
    administrator: bool,
}

fn yes() -> bool {
    true
}

impl User {
    /// The user named `root` is its account's root; others may do everything in theirs where they are administrators.
    fn seed(self) -> Result<Seed> {
        let account = self.account.parse().map_err(|e| anyhow::anyhow!("user {:?}: {e}", self.name))?;
        Ok(Seed {
            account,
            name: self.name,
            email: self.email,
            access_key_id: self.access_key,
            secret: self.secret_key,
            administrator: self.administrator,
        })
    }
}

fn read_users(text: &str) -> Result<Vec<Seed>> {
    // The whole error would show the line, and with it a secret.
    let users: Users = toml::from_str(text).map_err(|e| {
        let line = e.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        anyhow::anyhow!("line {line}: {}", e.message())
    })?;
    users.user.into_iter().map(User::seed).collect()
}

/// Refuses an access key that two have: only one of them could sign in.
fn check_distinct(seeds: &[Seed]) -> Result<()> {
    for (at, seed) in seeds.iter().enumerate() {
        if let Some(other) = seeds[..at].iter().find(|other| other.access_key_id == seed.access_key_id) {
            let (id, name, other) = (&seed.access_key_id, &seed.name, &other.name);
            bail!("the access key {id} is there twice, of {other:?} and {name:?}; give each a key of its own");
        }
    }
    Ok(())
}

/// Whom an S3 without IAM knows.
fn key(seed: Seed) -> Result<Key> {
    if !seed.administrator {
        let name = &seed.name;
        bail!("user {name:?}: administrator = false needs --iam, without which nobody could give it a permission");
    }
    let principal = if seed.name == "root" { "root".into() } else { format!("user/{}", seed.name) };
    let arn = format!("arn:aws:iam::{}:{principal}", seed.account);
    Ok(Key { access_key_id: seed.access_key_id, secret: seed.secret, account: seed.account, arn })
}

/// Serves S3 to one key and to the users of a file, and IAM and STS where asked, until told to stop.
pub fn serve(asked: Serve) -> Result<ExitCode> {
    observe::init_logs();
    let mut seeds = Vec::new();
    if let Some((access, secret)) = &asked.key {
        let key = karri_objectstore::serve::root_key(access, secret)?;
        let (account, access_key_id, secret) = (key.account, key.access_key_id, key.secret);
        let name = "root".to_owned();
        seeds.push(Seed { account, name, email: String::new(), access_key_id, secret, administrator: true });
    }
    if let Some(path) = &asked.users {
        let text = std::fs::read_to_string(path).with_context(|| format!("--users {}", path.display()))?;
        seeds.extend(read_users(&text).with_context(|| format!("--users {}", path.display()))?);
        check_distinct(&seeds).with_context(|| format!("--users {}", path.display()))?;
    }
    let mut operator = asked.settings.as_deref().map(Operator::read).transpose()?.unwrap_or_default();
    if !asked.domains.is_empty() {
        operator.set_domains(&asked.domains).context("--domain")?;
    }
    let certificate = asked.tls.as_ref().map(|(cert, key)| Certificate::open(cert, key)).transpose()?;
    let scheme = if certificate.is_some() { "https" } else { "http" };
    let tls = |protocols| certificate.as_ref().map(|c| c.server(protocols)).transpose();
    let s3_tls = tls(S3_PROTOCOLS)?;
    let iam_tls = tls(API_PROTOCOLS)?;
    runtime()?.block_on(async {
        if let Some(certificate) = certificate.clone() {
            tokio::spawn(certificate.watch());
        }
        let (ring, iam) = match asked.iam {
            None => (KeyRing::new(seeds.into_iter().map(key).collect::<Result<Vec<_>>>()?), None),
            Some(addr) => {
                let (ring, listener) = identity(&asked.store, addr, &asked.region, &seeds, iam_tls).await?;
                print(&format!("IAM and STS at {scheme}://{}\n", listener.addr()));
                (ring, Some(listener))
            }
        };
        let Serve { store, listen, region, metrics, .. } = asked;
        std::fs::create_dir_all(&store).with_context(|| format!("--store {}", store.display()))?;
        let mut registry = observe::registry("walrus");
        let meta = chassis::records(&store.join("meta"), &mut registry).await?;
        let counters = Metrics::register(&mut registry);
        let start = move || {
            let options = karri_objectstore::serve::alone_options(&store, listen, ring, meta)?;
            karri_objectstore::serve(ServeOptions { region, operator, tls: s3_tls, metrics: counters, ..options })
        };
        let listener =
            match metrics {
                None => None,
                Some(addr) => Some(tokio::net::TcpListener::bind(addr).await.with_context(|| {
                    format!("cannot listen on {addr} (--metrics): is another server running there?")
                })?),
            };
        let walrus = Arc::new(tokio::task::spawn_blocking(start).await??);
        if let Some(listener) = listener {
            print(&format!("metrics at http://{}/metrics\n", listener.local_addr()?));
            let walrus = Arc::downgrade(&walrus);
            let trouble = move || walrus.upgrade().and_then(|walrus| walrus.trouble());
            tokio::spawn(chassis::http::serve(listener, trouble, Arc::new(registry)));
        }
        // Listened for before anyone is told that it is there: a signal that came in between would be lost.
        let stop = chassis::stop_requested()?;
        print(&format!("ready: S3 at {scheme}://{}\n", walrus.local_addr()));
        stop.await;
        if let Some(iam) = iam {
            iam.shutdown().await;
        }
        tokio::task::spawn_blocking(move || walrus.shutdown()).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// IAM and STS over records of their own in the folder.
async fn identity(
    store: &Path,
    addr: SocketAddr,
    region: &str,
    seeds: &[Seed],
    tls: Option<Arc<rustls::ServerConfig>>,
) -> Result<(KeyRing, Listener)> {
    let folder = store.join("identity");
    crate::layout::private_dir(&folder)?;
    let key = karri_control::identity::secrets::key_file(&folder.join("identity.key"))
        .map_err(|(path, why)| anyhow::anyhow!("identity key {}: {why}", path.display()))?;
    let mut registry = observe::registry("identity");
    let meta = chassis::records(&folder.join("meta"), &mut registry).await?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let directory = Arc::new(Directory::open(meta, key, clock.clone()).await?.with_oidc(folder.join("oidc")));
    directory.seed(seeds).await?;
    let ring = directory.ring().clone();
    let audit = folder.join("audit.log");
    let trail = Trail::open(&audit).with_context(|| audit.display().to_string())?;
    let listener = Listener::start(directory, clock, region, addr, trail, tls).await;
    Ok((ring, listener.with_context(|| format!("cannot listen on {addr} (--iam): is another karri running there?"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_read() {
        let user =
            "account = \"000000000001\"\nname = \"NAME\"\nemail = \"e\"\naccess_key = \"a\"\nsecret_key = \"s\"\n";
        let text = format!("[[user]]\n{user}[[user]]\n{}", user.replace("NAME", "root"));
        let arns: Vec<String> = read_users(&text).unwrap().into_iter().map(|seed| key(seed).unwrap().arn).collect();
        assert_eq!(arns, ["arn:aws:iam::000000000001:user/NAME", "arn:aws:iam::000000000001:root"]);
        assert!(read_users(&text.replace("000000000001", "1")).is_err());
        assert!(read_users("[[user]]\nname = \"x\"\n").is_err());
        let said = check_distinct(&read_users(&text).unwrap()).unwrap_err().to_string();
        assert!(said.contains("\"NAME\" and \"root\""), "{said}");
        check_distinct(&read_users(&text.replacen("\"a\"", "\"b\"", 1)).unwrap()).unwrap();
        let limited = read_users(&format!("[[user]]\n{user}administrator = false\n")).unwrap().remove(0);
        assert!(!format!("{limited:?}").contains("\"s\""));
        assert!(key(limited).unwrap_err().to_string().contains("--iam"));
        let slip = format!("[[user]]\n{}", user.replace("\"s\"", "\"hush"));
        let said = format!("{:#}", read_users(&slip).unwrap_err());
        assert!(said.contains("line 6") && !said.contains("hush"), "{said}");
    }

    #[test]
    fn a_store_may_have_a_size() {
        assert_eq!(file_and_size("/a/b").unwrap(), ("/a/b".into(), None));
        assert_eq!(file_and_size("/a/b:2G").unwrap(), ("/a/b".into(), Some(2 << 30)));
        assert_eq!(file_and_size("/dev/disk/by-id/x:0/y").unwrap().1, None);
        assert!(file_and_size("/a/b:2Q").unwrap_err().to_string().contains("--store"));
    }
}
