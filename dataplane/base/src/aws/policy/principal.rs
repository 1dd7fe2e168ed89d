//! Who asks, as policies see it, and the `Principal` element that says who is meant.

use std::collections::BTreeMap;

use crate::aws::arn::Arn;
use crate::id::AccountId;

/// What kind of caller it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Nobody signed the request.
    Anonymous,
    /// One of the cloud's own services, by its name (`ec2.amazonaws.com`).
    Service,
    /// An account itself.
    Root,
    /// A user, by its name without the path.
    User {
        /// `aws:username`.
        name: String,
    },
    /// Somebody who assumed a role.
    Role {
        /// The role's ARN.
        role: String,
    },
    /// Somebody whom a user let in (GetFederationToken).
    Federated,
    /// Somebody whom a provider vouches for, about to assume a role.
    Provider,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// What it is.
    pub kind: Kind,
    /// Its account; none for anonymous callers and services.
    pub account: Option<AccountId>,
    /// A root's, user's or session's ARN; a service's name, a provider's ARN; empty for nobody.
    pub arn: String,
    /// `aws:userid`: an account number, `AIDA...`, `AROA...:session`, `ACCOUNT:name`.
    pub id: String,
    /// `aws:PrincipalTag/...`.
    pub tags: BTreeMap<String, String>,
    /// What else every request of its session has (`aws:TokenIssueTime`, `aws:MultiFactorAuthPresent`, ...).
    pub keys: super::Context,
}

impl Principal {
    fn new(kind: Kind, account: Option<AccountId>, arn: String, id: String) -> Self {
        Self { kind, account, arn, id, tags: BTreeMap::new(), keys: super::Context::default() }
    }
    /// Nobody.
    pub fn anonymous() -> Self {
        Self::new(Kind::Anonymous, None, String::new(), "anonymous".into())
    }
    /// A service by its name.
    pub fn service(name: &str) -> Self {
        Self::new(Kind::Service, None, name.to_owned(), name.to_owned())
    }
    /// An account.
    pub fn root(account: &AccountId) -> Self {
        Self::new(Kind::Root, Some(account.clone()), format!("arn:aws:iam::{account}:root"), account.to_string())
    }
    /// A user with this ARN (`arn:aws:iam::ACCOUNT:user/PATH/NAME`) and id (`AIDA...`).
    pub fn user(account: &AccountId, arn: &str, id: &str) -> Self {
        let name = arn.rsplit('/').next().unwrap_or("").to_owned();
        Self::new(Kind::User { name }, Some(account.clone()), arn.to_owned(), id.to_owned())
    }
    /// A session of the role with this ARN and id (`AROA...`).
    pub fn role_session(account: &AccountId, role_arn: &str, role_id: &str, session: &str) -> Self {
        let name = role_arn.rsplit('/').next().unwrap_or("");
        let arn = format!("arn:aws:sts::{account}:assumed-role/{name}/{session}");
        Self::new(Kind::Role { role: role_arn.to_owned() }, Some(account.clone()), arn, format!("{role_id}:{session}"))
    }
    /// A federated user.
    pub fn federated_user(account: &AccountId, name: &str) -> Self {
        let arn = format!("arn:aws:sts::{account}:federated-user/{name}");
        Self::new(Kind::Federated, Some(account.clone()), arn, format!("{account}:{name}"))
    }
    /// Somebody with a provider's token; `arn` is the provider's ARN or well-known name.
    pub fn provider(arn: &str, subject: &str) -> Self {
        Self::new(Kind::Provider, None, arn.to_owned(), subject.to_owned())
    }

    /// `aws:PrincipalArn`: a session's is its role's.
    pub fn policy_arn(&self) -> &str {
        match &self.kind {
            Kind::Role { role } => role,
            _ => &self.arn,
        }
    }
    /// The user's name.
    pub fn username(&self) -> Option<&str> {
        match &self.kind {
            Kind::User { name } => Some(name),
            _ => None,
        }
    }
    /// `aws:PrincipalType`.
    pub fn type_name(&self) -> &'static str {
        match self.kind {
            Kind::Anonymous => "Anonymous",
            Kind::Service => "Service",
            Kind::Root => "Account",
            Kind::User { .. } => "User",
            Kind::Role { .. } => "AssumedRole",
            Kind::Federated => "FederatedUser",
            Kind::Provider => "WebIdentityUser",
        }
    }
}

/// One name in a `Principal` or `NotPrincipal` element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// `*`.
    Everyone,
    /// An account: its number or `arn:aws:iam::ACCOUNT:root`.
    Account(AccountId),
    /// The ARN of a user, role, role session or federated user.
    Arn(String),
    /// A unique id (`AIDA...`, `AROA...`), as policies keep it after its bearer is gone.
    Id(String),
    /// S3's name for an account.
    Canonical(String),
    /// A service.
    Service(String),
    /// An identity provider.
    Provider(String),
}

/// How far an `Allow` that names a caller goes ("Policy evaluation logic": resource-based policies).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// The caller's account is named: what the account lets its own do counts.
    Account,
    /// The session's role is named: boundary and session policies still limit it.
    Role,
    /// The caller itself, or everyone.
    Caller,
}

impl Name {
    /// Reads a value of `AWS`.
    pub fn aws(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::Everyone);
        }
        if let Ok(account) = text.parse() {
            return Some(Self::Account(account));
        }
        if let Ok(arn) = text.parse::<Arn>() {
            let account: AccountId = arn.account.parse().ok()?;
            if text.contains(['*', '?']) {
                return None;
            }
            return match (arn.service.as_str(), arn.kind_and_name().0) {
                ("iam", "") if arn.resource == "root" => Some(Self::Account(account)),
                ("iam", "user" | "role") | ("sts", "assumed-role" | "federated-user") => Some(Self::Arn(text.into())),
                _ => None,
            };
        }
        let is_id = text.len() >= 16 && text.len() <= 128 && text.bytes().all(|b| b.is_ascii_alphanumeric());
        (is_id && (text.starts_with("AIDA") || text.starts_with("AROA"))).then(|| Self::Id(text.to_owned()))
    }

    /// How far an `Allow` with this name goes for the caller; none where it does not name them.
    pub fn reach(&self, who: &Principal) -> Option<Reach> {
        match self {
            Self::Everyone => Some(Reach::Caller),
            Self::Account(account) if who.account.as_ref() == Some(account) => {
                // The root is its account.
                Some(if who.kind == Kind::Root { Reach::Caller } else { Reach::Account })
            }
            Self::Canonical(id) if who.account.as_ref().is_some_and(|a| canonical_id(a) == *id) => Some(Reach::Account),
            Self::Arn(arn) if *arn == who.arn && who.kind != Kind::Provider => Some(Reach::Caller),
            Self::Arn(arn) if matches!(&who.kind, Kind::Role { role } if role == arn) => Some(Reach::Role),
            Self::Id(id) if *id == who.id => Some(Reach::Caller),
            Self::Id(id) => {
                let role = matches!(who.kind, Kind::Role { .. }) && who.id.split(':').next() == Some(id);
                role.then_some(Reach::Role)
            }
            Self::Service(name) if who.kind == Kind::Service && *name == who.arn => Some(Reach::Caller),
            Self::Provider(arn) if who.kind == Kind::Provider && *arn == who.arn => Some(Reach::Caller),
            _ => None,
        }
    }

    /// True where `NotPrincipal` leaves the caller out by this name. An account there means its root alone: what names
    /// a user or role is its own ARN.
    pub fn excepts(&self, who: &Principal) -> bool {
        self.reach(who).is_some_and(|reach| reach != Reach::Account)
    }
}

/// S3's name for an account: its number.
pub fn canonical_id(account: &AccountId) -> &str {
    account.as_str()
}
