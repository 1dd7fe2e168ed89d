//! Amazon Resource Names: `arn:partition:service:region:account:resource`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::AccountId;

/// A resource's name. Only the resource may hold colons.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Arn {
    /// `aws`.
    pub partition: String,
    /// `iam`, `s3`, ...
    pub service: String,
    /// Empty where the resource has none (IAM, S3).
    pub region: String,
    /// An account number; empty for S3 buckets, `aws` for AWS's own policies, `*` in patterns.
    pub account: String,
    /// `user/admin`, `bucket/key`, `instance/i-...`
    pub resource: String,
}

impl Arn {
    /// `arn:aws:iam::ACCOUNT:RESOURCE`, such as `user/admin` or `root`.
    pub fn iam(account: &AccountId, resource: impl Into<String>) -> Self {
        Self::new("iam", "", account.as_str(), resource)
    }
    /// `arn:aws:s3:::BUCKET` or `arn:aws:s3:::BUCKET/KEY`.
    pub fn s3(bucket: &str, key: Option<&str>) -> Self {
        Self::new("s3", "", "", key.map_or(bucket.to_owned(), |key| format!("{bucket}/{key}")))
    }
    /// `arn:aws:SERVICE:REGION:ACCOUNT:RESOURCE`.
    pub fn new(service: &str, region: &str, account: &str, resource: impl Into<String>) -> Self {
        Self {
            partition: "aws".into(),
            service: service.into(),
            region: region.into(),
            account: account.into(),
            resource: resource.into(),
        }
    }
    /// Kind and name of the resource: `user/a/b` is (`user`, `a/b`); without a kind, (empty, all).
    pub fn kind_and_name(&self) -> (&str, &str) {
        self.resource.split_once(['/', ':']).unwrap_or(("", &self.resource))
    }
}

/// Why a text is no ARN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an ARN: {why}; want arn:aws:SERVICE:REGION:ACCOUNT:RESOURCE")]
pub struct BadArn {
    text: String,
    why: &'static str,
}

impl FromStr for Arn {
    type Err = BadArn;
    fn from_str(text: &str) -> Result<Self, BadArn> {
        let bad = |why| BadArn { text: text.chars().take(256).collect(), why };
        if text.len() > 2048 {
            return Err(bad("longer than 2048 bytes"));
        }
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        let [arn, partition, service, region, account, resource] = parts[..] else {
            return Err(bad("too few parts"));
        };
        if arn != "arn" {
            return Err(bad("does not begin with arn:"));
        }
        if partition.is_empty() || service.is_empty() || resource.is_empty() {
            return Err(bad("an empty partition, service or resource"));
        }
        if text.chars().any(char::is_control) {
            return Err(bad("a control character"));
        }
        let [partition, service, region, account, resource] =
            [partition, service, region, account, resource].map(str::to_owned);
        Ok(Self { partition, service, region, account, resource })
    }
}

impl TryFrom<String> for Arn {
    type Error = BadArn;
    fn try_from(text: String) -> Result<Self, BadArn> {
        text.parse()
    }
}
impl From<Arn> for String {
    fn from(arn: Arn) -> String {
        arn.to_string()
    }
}
impl fmt::Display for Arn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, service, region, account, resource } = self;
        write!(f, "arn:{partition}:{service}:{region}:{account}:{resource}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arns_are_read_and_written() {
        for text in [
            "arn:aws:iam::123456789012:user/division/admin",
            "arn:aws:s3:::bucket/a:b/c",
            "arn:aws:ec2:us-east-1:123456789012:instance/i-0123456789abcdef0",
            "arn:aws:iam::aws:policy/AdministratorAccess",
        ] {
            assert_eq!(text.parse::<Arn>().expect("an ARN").to_string(), text);
        }
        let account: AccountId = "123456789012".parse().expect("an account");
        assert_eq!(Arn::iam(&account, "user/a/b").to_string(), "arn:aws:iam::123456789012:user/a/b");
        assert_eq!(Arn::iam(&account, "user/a/b").kind_and_name(), ("user", "a/b"));
        assert_eq!(Arn::iam(&account, "root").kind_and_name(), ("", "root"));
        assert_eq!(Arn::s3("b", Some("k/l")).to_string(), "arn:aws:s3:::b/k/l");
        for bad in ["", "arn", "arn:aws:s3:::", "arn::s3:::b", "ARN:aws:s3:::b", "arn:aws::::b", "arn:aws:s3:::a\nb"] {
            assert!(bad.parse::<Arn>().is_err(), "{bad:?}");
        }
    }
}
