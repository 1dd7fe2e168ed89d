//! What only the operator of a Walrus may set, in a file: quotas of accounts, how often access logs are written.
//!
//! ```toml
//! log_seconds = 300
//!
//! [[quota]]
//! account = "000000000001"
//! max_bytes = "10G"
//! max_objects = 1000
//! ```

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use karri_base::units::parse_bytes;
use serde::Deserialize;

use crate::config::simple::Quota;
use crate::serve::StartError;

/// The operator's settings, read.
#[derive(Debug, Clone, Default)]
pub struct Operator {
    /// At most so much in all buckets of an account together.
    pub quotas: HashMap<String, Quota>,
    /// Lines of access logs wait so long for others at most.
    pub log_roll: Option<Duration>,
}

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    log_seconds: Option<u64>,
    #[serde(default)]
    quota: Vec<AccountQuota>,
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

impl TryFrom<File> for Operator {
    type Error = String;

    fn try_from(file: File) -> Result<Self, String> {
        let mut this = Self { log_roll: file.log_seconds.map(Duration::from_secs), ..Self::default() };
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
