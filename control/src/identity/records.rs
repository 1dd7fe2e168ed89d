//! What is kept of identities: one record per entity, JSON under `iam/KIND/ID` with a version. Page: `docs/identity.md`.

use std::collections::{BTreeMap, BTreeSet};

use karri_base::aws::arn::Arn;
use karri_base::id::AccountId;
use serde::{Deserialize, Serialize};

/// Tags.
pub type Tags = BTreeMap<String, String>;

/// A kind of record.
pub trait Entity: Serialize + for<'de> Deserialize<'de> + Send + Sync + 'static {
    /// `user`, ...
    const KIND: &'static str;
    /// Unique among its kind; names compare without regard to case.
    fn key(&self) -> String;
}

/// The key of what has a name in an account.
pub fn named(account: &AccountId, name: &str) -> String {
    format!("{account}/{}", name.to_lowercase())
}

/// An account.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Account {
    /// Its number.
    pub id: AccountId,
    /// What S3 shows; empty where it has none.
    pub name: String,
    /// Its address; empty where it has none.
    pub email: String,
    /// Its alias.
    pub alias: Option<String>,
    /// What it asks of passwords; AWS's default where it says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passwords: Option<PasswordPolicy>,
}

/// What an account asks of its users' passwords.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PasswordPolicy {
    /// The fewest characters.
    pub length_min: i32,
    /// One of `!@#$%^&*()_+-=[]{}|'` at least.
    pub symbols: bool,
    /// One digit at least.
    pub numbers: bool,
    /// One of A-Z at least.
    pub uppercase: bool,
    /// One of a-z at least.
    pub lowercase: bool,
    /// Whether users may change their own, whatever their policies do not say.
    pub users_change: bool,
    /// How old one may become, in days.
    pub age_days_max: Option<i32>,
    /// How many of a user's last ones, the one that counts included, may not come again.
    pub reuse: Option<i32>,
    /// Whether one that is too old is for an administrator to change; kept and shown.
    pub hard_expiry: Option<bool>,
}

/// Policies of a user, group or role.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Policies {
    /// Inline ones by name.
    pub inline: BTreeMap<String, String>,
    /// ARNs of managed ones.
    pub attached: BTreeSet<String>,
}

/// What a person signs in to a console with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Login {
    /// PBKDF2-HMAC-SHA256 of the password, in hexadecimal.
    pub hash: String,
    /// 16 random bytes, in hexadecimal.
    pub salt: String,
    /// Whether the password must be changed.
    pub reset: bool,
    /// Microseconds since 1970.
    pub created_us: u64,
    /// When the password was last changed, in microseconds since 1970; 0 where it never was.
    #[serde(default)]
    pub changed_us: u64,
    /// Hashes and salts of passwords before this one, the youngest first, as many as the account wants compared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<(String, String)>,
}

/// A user.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct User {
    /// Whose.
    pub account: AccountId,
    /// Unique in the account.
    pub name: String,
    /// `/` or `/a/b/`.
    pub path: String,
    /// `AIDA...`.
    pub id: String,
    /// Microseconds since 1970.
    pub created_us: u64,
    /// Tags.
    pub tags: Tags,
    /// The boundary's ARN.
    pub boundary: Option<String>,
    /// Its policies.
    pub policies: Policies,
    /// Keys of the groups that it is in.
    pub groups: BTreeSet<String>,
    /// Its password.
    pub login: Option<Login>,
}

/// A group.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Group {
    /// Whose.
    pub account: AccountId,
    /// Unique in the account.
    pub name: String,
    /// `/` or `/a/b/`.
    pub path: String,
    /// `AGPA...`.
    pub id: String,
    /// Microseconds since 1970.
    pub created_us: u64,
    /// Its policies.
    pub policies: Policies,
}

/// A role.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Role {
    /// Whose.
    pub account: AccountId,
    /// Unique in the account.
    pub name: String,
    /// `/` or `/a/b/`.
    pub path: String,
    /// `AROA...`.
    pub id: String,
    /// Microseconds since 1970.
    pub created_us: u64,
    /// Who may assume it.
    pub trust: String,
    /// A sentence.
    pub description: Option<String>,
    /// The longest session, in seconds.
    pub session_seconds_max: i32,
    /// Tags.
    pub tags: Tags,
    /// The boundary's ARN.
    pub boundary: Option<String>,
    /// Its policies.
    pub policies: Policies,
}

/// An instance profile.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Profile {
    /// Whose.
    pub account: AccountId,
    /// Unique in the account.
    pub name: String,
    /// `/` or `/a/b/`.
    pub path: String,
    /// `AIPA...`.
    pub id: String,
    /// Microseconds since 1970.
    pub created_us: u64,
    /// Its role's key.
    pub role: Option<String>,
    /// Tags.
    pub tags: Tags,
}

/// One version of a managed policy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Version {
    /// The document.
    pub document: String,
    /// Microseconds since 1970.
    pub created_us: u64,
}

/// A managed policy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Managed {
    /// Whose.
    pub account: AccountId,
    /// Unique in the account.
    pub name: String,
    /// `/` or `/a/b/`.
    pub path: String,
    /// `ANPA...`.
    pub id: String,
    /// Microseconds since 1970.
    pub created_us: u64,
    /// Microseconds since 1970.
    pub updated_us: u64,
    /// A sentence.
    pub description: Option<String>,
    /// By number.
    pub versions: BTreeMap<u32, Version>,
    /// The one that counts.
    pub default: u32,
    /// The number of the next one.
    pub next: u32,
    /// Tags.
    pub tags: Tags,
}

/// An OpenID Connect provider.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Provider {
    /// Whose.
    pub account: AccountId,
    /// With its scheme, without a slash behind; `iss` of its tokens.
    pub url: String,
    /// For whom its tokens may be.
    pub client_ids: Vec<String>,
    /// Of its certificates; kept and shown.
    pub thumbprints: Vec<String>,
    /// Microseconds since 1970.
    pub created_us: u64,
    /// Tags.
    pub tags: Tags,
}

impl Provider {
    /// Its URL without the scheme, as ARNs and condition keys have it.
    pub fn name(&self) -> &str {
        self.url.split_once("://").map_or(&self.url, |(_, name)| name)
    }
    /// Its ARN.
    pub fn arn(&self) -> String {
        Arn::iam(&self.account, format!("oidc-provider/{}", self.name())).to_string()
    }
}

impl Entity for Provider {
    const KIND: &'static str = "provider";
    fn key(&self) -> String {
        named(&self.account, self.name())
    }
}

/// Whom a key stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bearer {
    /// The account's root.
    Root,
    /// The user with this key.
    User(String),
    /// The roles among themselves.
    System,
}

/// An access key; its secret is sealed with the state folder's identity key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AccessKey {
    /// `AKIA...`.
    pub id: String,
    /// Whose.
    pub account: AccountId,
    /// Whom it stands for.
    pub bearer: Bearer,
    /// Sealed, in hexadecimal.
    pub secret: String,
    /// Whether it may be used.
    pub active: bool,
    /// Whether the credentials or users file named it.
    #[serde(default)]
    pub seeded: bool,
    /// Microseconds since 1970.
    pub created_us: u64,
}

/// The last use of an access key, by its id, or of a role, by its unique id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// `AKIA...` or `AROA...`.
    pub id: String,
    /// Microseconds since 1970.
    pub at_us: u64,
    /// `ec2`, `iam`, `sts`, ...
    pub service: String,
    /// The cloud's.
    pub region: String,
}
impl Entity for Used {
    const KIND: &'static str = "used";
    fn key(&self) -> String {
        self.id.clone()
    }
}

macro_rules! entities {
    ($($ty:ident $kind:literal $prefix:literal;)*) => {$(
        impl Entity for $ty {
            const KIND: &'static str = $kind;
            fn key(&self) -> String { named(&self.account, &self.name) }
        }
        impl $ty {
            /// Its ARN.
            pub fn arn(&self) -> String {
                Arn::iam(&self.account, format!(concat!($prefix, "{}{}"), self.path, self.name)).to_string()
            }
        }
    )*};
}
entities! {
    User "user" "user";
    Group "group" "group";
    Role "role" "role";
    Profile "profile" "instance-profile";
    Managed "policy" "policy";
}

impl Entity for Account {
    const KIND: &'static str = "account";
    fn key(&self) -> String {
        self.id.to_string()
    }
}
impl Entity for AccessKey {
    const KIND: &'static str = "key";
    fn key(&self) -> String {
        self.id.clone()
    }
}
