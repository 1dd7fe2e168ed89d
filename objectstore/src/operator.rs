//! What only the operator of a Walrus may set, in a file: quotas of accounts, how often access logs are
//! written, where events may go.
//!
//! ```toml
//! domains = ["s3.example.org"]           # BUCKET.s3.example.org is a bucket; localhost where it is not said
//! website_domains = ["www.example.org"]  # a host that is, or is under, one of these is the website of the bucket of its name
//! log_seconds = 300
//! audit_log = "/var/log/karri-s3.log"     # a line for each request; "" for none
//! slow_request_ms = 5000                 # a request that takes the server longer is logged; 0: none
//! cache = "256M"                         # memory for data that is read again and again; "0": none
//! scrub_bytes_per_second = "16M"         # what the background scrub may read; "0": it does not run
//! scrub_days = 7                         # from the beginning of a pass to that of the next
//!
//! [[webhook]]
//! name = "hook"                        # arn:aws:sns:REGION:ACCOUNT:hook
//! url = "https://hooks.example.com/events"
//! ca = "/etc/karri/hooks.pem"          # what its certificate must come from; the system's where it is not said
//! token = "secret"                     # Authorization: Bearer; optional
//! accounts = ["000000000001"]          # who may name it; all where it is not said
//!
//! [[remote]]
//! name = "backup"                      # arn:karri:s3:backup::BUCKET
//! url = "https://s3.example.com"
//! ca = "/etc/karri/backup.pem"         # as above
//! region = "us-east-1"
//! access_key = "AKIAEXAMPLE"
//! secret_key = "example-secret"
//! accounts = ["000000000001"]          # who may name it, and so write to any bucket that this key may write to
//!
//! [[queue]]
//! name = "jobs"                        # arn:aws:sqs:REGION:ACCOUNT:jobs
//! folder = "/srv/jobs"
//!
//! [[quota]]
//! account = "000000000001"
//! max_bytes = "10G"
//! max_objects = 1000
//! ```

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use karri_base::aws::s3::S3;
use karri_base::config::AccessKey;
use karri_base::units::parse_bytes;
use serde::Deserialize;

use crate::config::simple::Quota;
use crate::notify::{Destination, Destinations, Place};
use crate::outbound::Endpoint;
use crate::place::Domains;
use crate::replicate::remote::Remote;
use crate::scrub::Pace;
use crate::serve::StartError;

/// The operator's settings, read.
#[derive(Debug, Clone, Default)]
pub struct Operator {
    /// Whose hosts are buckets.
    pub domains: Domains,
    /// At most so much in all buckets of an account together.
    pub quotas: HashMap<String, Quota>,
    /// Lines of access logs wait so long for others at most.
    pub log_roll: Option<Duration>,
    /// Where events may go.
    pub destinations: Destinations,
    /// A line of JSON for each request goes here; empty: nowhere, which is where it goes unless a role has a place for it.
    pub audit_log: Option<PathBuf>,
    /// From when on a request is slow; zero: never.
    pub slow: Option<Duration>,
    /// Bytes of memory for data that is read again and again.
    pub cache: Option<u64>,
    /// How the background scrub goes about it.
    pub scrub: Pace,
    /// Where objects may be replicated to, by name.
    pub remotes: BTreeMap<String, Arc<Remote>>,
}

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    #[serde(default)]
    domains: Vec<String>,
    #[serde(default)]
    website_domains: Vec<String>,
    log_seconds: Option<u64>,
    audit_log: Option<PathBuf>,
    slow_request_ms: Option<u64>,
    cache: Option<String>,
    scrub_bytes_per_second: Option<String>,
    scrub_days: Option<u64>,
    #[serde(default)]
    webhook: Vec<Webhook>,
    #[serde(default)]
    remote: Vec<RemoteServer>,
    #[serde(default)]
    queue: Vec<Queue>,
    #[serde(default)]
    quota: Vec<AccountQuota>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Webhook {
    name: String,
    url: String,
    ca: Option<PathBuf>,
    token: Option<String>,
    #[serde(default)]
    accounts: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoteServer {
    name: String,
    url: String,
    ca: Option<PathBuf>,
    region: Option<String>,
    access_key: String,
    secret_key: String,
    #[serde(default)]
    accounts: Vec<String>,
}

impl std::fmt::Debug for RemoteServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RemoteServer({}, {}, key hidden)", self.name, self.url)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Queue {
    name: String,
    folder: PathBuf,
    #[serde(default)]
    accounts: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AccountQuota {
    account: String,
    max_bytes: Option<String>,
    max_objects: Option<u64>,
}

impl Operator {
    /// Reads the file.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn read(path: &Path) -> Result<Self, StartError> {
        let wrong = |why: String| StartError::Config { what: format!("Walrus's settings {}: {why}", path.display()) };
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        let file: File = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        Self::try_from(file).map_err(wrong)
    }
}

impl Operator {
    /// Other names of the service than those of the file.
    ///
    /// # Errors
    /// A name that is no domain.
    pub fn set_domains(&mut self, names: &[String]) -> Result<(), StartError> {
        self.domains = self.domains.with_service(names).map_err(|what| StartError::Config { what })?;
        Ok(())
    }

    fn add(&mut self, name: &str, place: Place, accounts: Vec<String>) -> Result<(), String> {
        check_name(name)?;
        let destination = Destination::new(name, place, accounts);
        match self.destinations.insert(destination.id(), Arc::new(destination)) {
            None => Ok(()),
            Some(_) => Err(format!("there are two destinations {name:?} of one kind")),
        }
    }
}

impl Operator {
    /// Gives the audit log a place in a role's folder, where the operator said nothing of it.
    pub fn audit_in(&mut self, folder: &Path) {
        self.audit_log.get_or_insert_with(|| folder.join("audit.log"));
    }
    /// Where the audit log is; `None` where there is none.
    pub fn audit_file(&self) -> Option<&Path> {
        self.audit_log.as_deref().filter(|path| !path.as_os_str().is_empty())
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if name.is_empty() || name.len() > 80 || !name.bytes().all(fits) {
        return Err(format!("{name:?} is no name: want 1 to 80 letters, digits, hyphens and underscores"));
    }
    Ok(())
}

impl TryFrom<File> for Operator {
    type Error = String;

    fn try_from(file: File) -> Result<Self, String> {
        let mut this = Self {
            domains: Domains::new(&file.domains, &file.website_domains)?,
            log_roll: file.log_seconds.map(Duration::from_secs),
            audit_log: file.audit_log,
            slow: file.slow_request_ms.map(Duration::from_millis),
            ..Self::default()
        };
        if let Some(text) = &file.cache {
            this.cache = Some(parse_bytes(text).map_err(|e| format!("cache: {e}"))?);
        }
        if let Some(text) = &file.scrub_bytes_per_second {
            this.scrub.bytes_per_second = parse_bytes(text).map_err(|e| format!("scrub_bytes_per_second: {e}"))?;
        }
        if let Some(days) = file.scrub_days {
            if !(1..=3_650).contains(&days) {
                return Err(format!("scrub_days is {days}; want 1 to 3650"));
            }
            this.scrub.days = days;
        }
        for Webhook { name, url, ca, token, accounts } in file.webhook {
            let uri: http::Uri = url.parse().map_err(|e| format!("webhook {name:?}: {url:?}: {e}"))?;
            let endpoint = Endpoint::new(&uri, ca.as_deref()).map_err(|e| format!("webhook {name:?}: {url:?}: {e}"))?;
            if token.as_ref().is_some_and(|t| http::HeaderValue::from_str(t).is_err()) {
                return Err(format!("webhook {name:?}: the token cannot be sent in a header"));
            }
            this.add(&name, Place::Webhook { url: uri, token, endpoint: Arc::new(endpoint) }, accounts)?;
        }
        for RemoteServer { name, url, ca, region, access_key, secret_key, accounts } in file.remote {
            let wrong = |why: String| format!("remote {name:?}: {why}");
            check_name(&name)?;
            let key = AccessKey { access_key_id: access_key, secret_access_key: secret_key };
            let s3 = S3::new(&url, key, region.as_deref().unwrap_or("us-east-1")).map_err(wrong)?;
            let uri: http::Uri = url.parse().map_err(|e| wrong(format!("{url:?}: {e}")))?;
            let endpoint = Endpoint::new(&uri, ca.as_deref()).map_err(|e| wrong(format!("{url:?}: {e}")))?;
            if accounts.is_empty() {
                return Err(wrong(
                    "accounts is missing: whoever it names may write to every bucket of this key".into(),
                ));
            }
            let remote = Remote::new(s3, endpoint, accounts);
            if this.remotes.insert(name.clone(), Arc::new(remote)).is_some() {
                return Err(format!("there are two remotes {name:?}"));
            }
        }
        for Queue { name, folder, accounts } in file.queue {
            if !folder.is_dir() {
                return Err(format!("queue {name:?}: {} is no folder", folder.display()));
            }
            this.add(&name, Place::Queue(folder), accounts)?;
        }
        for AccountQuota { account, max_bytes, max_objects } in file.quota {
            account.parse::<karri_base::id::AccountId>().map_err(|e| format!("quota of {account:?}: {e}"))?;
            let bytes = max_bytes.map(|text| parse_bytes(&text)).transpose();
            let bytes = bytes.map_err(|e| format!("quota of account {account}: max_bytes: {e}"))?;
            if this.quotas.insert(account.clone(), Quota { bytes, objects: max_objects }).is_some() {
                return Err(format!("account {account} has two quotas"));
            }
        }
        Ok(this)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Operator, String> {
        let file: File = toml::from_str(text).map_err(|e| e.to_string())?;
        Operator::try_from(file)
    }

    #[test]
    fn files() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().display();
        let text = format!(
            "domains = [\"s3.x.org\"]\nlog_seconds = 5\ncache = \"1G\"\nscrub_bytes_per_second = \"1M\"\n[[webhook]]\nname = \"h\"\nurl = \"http://127.0.0.1:1/x\"\n[[queue]]\nname = \"h\"\nfolder = \"{folder}\"\n\
             [[quota]]\naccount = \"000000000001\"\nmax_bytes = \"10G\"\n"
        );
        let operator = read(&text).unwrap();
        assert_eq!(operator.domains, Domains::new(&["s3.x.org".into()], &[]).unwrap());
        assert_eq!(operator.destinations.keys().collect::<Vec<_>>(), ["sns:h", "sqs:h"]);
        assert_eq!(operator.quotas["000000000001"], Quota { bytes: Some(10 << 30), objects: None });
        assert_eq!((operator.log_roll, operator.cache), (Some(Duration::from_secs(5)), Some(1 << 30)));
        for (text, alone, in_a_role) in [
            ("", None, Some("/s/audit.log")),
            ("audit_log = \"\"", None, None),
            ("audit_log = \"/l\"", Some("/l"), Some("/l")),
        ] {
            let mut operator = read(text).unwrap();
            assert_eq!(operator.audit_file(), alone.map(Path::new));
            operator.audit_in(Path::new("/s"));
            assert_eq!(operator.audit_file(), in_a_role.map(Path::new));
        }
        assert_eq!(operator.scrub, Pace { bytes_per_second: 1 << 20, ..Pace::default() });
        for (text, why) in [
            ("[[quota]]\naccount = \"1\"", "quota"),
            ("[[webhook]]\nname = \"h\"\nurl = \"ftp://x/\"", "want http://"),
            ("[[webhook]]\nname = \"h\"\nurl = \"https://x/\"\nca = \"/absent/ca\"", "/absent/ca"),
            ("[[remote]]\nname = \"r\"\nurl = \"http://x\"", "access_key"),
            ("[[remote]]\nname = \"r\"\nurl = \"http://x/path\"\naccess_key = \"a\"\nsecret_key = \"s\"", "has a path"),
            ("[[webhook]]\nname = \"a b\"\nurl = \"http://x/\"", "no name"),
            ("[[queue]]\nname = \"q\"\nfolder = \"/absent/folder\"", "no folder"),
            ("scrub_days = 0", "scrub_days"),
            ("domains = [\"s3.x.org:80\"]", "no domain"),
            ("website_domains = [\"a.localhost\"]", "is S3's"),
            ("cache = \"much\"", "cache"),
            ("scrub_bytes_per_second = \"fast\"", "scrub_bytes_per_second"),
            ("colour = 1", "colour"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
