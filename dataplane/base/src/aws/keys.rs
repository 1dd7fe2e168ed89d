//! Who may sign in: access keys, the principals that they stand for with their policies, and temporary credentials;
//! replaced whole when the cloud says so.
//!
//! A ring that was filled with keys alone knows no policies: each of its keys may then do everything in its account.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::policy::principal::Kind;
use super::policy::{Identity, Policy, Principal, Use};
use super::session::{self, Of, Session, SessionKey};
use crate::clock::UnixMicros;
use crate::id::AccountId;
use crate::proto;

/// Sessions whose tokens need not be opened again.
const SESSIONS_MAX: usize = 1024;

/// An access key, its secret and whom it stands for.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// `AKIA...`.
    pub access_key_id: String,
    /// The secret that signatures are made with. Never logged.
    pub secret: String,
    /// The account that owns what this key makes.
    pub account: AccountId,
    /// The principal's ARN; a session's own, where it is one's.
    pub arn: String,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({}, {}, secret hidden)", self.access_key_id, self.arn)
    }
}

/// An account, as answers and grants name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its number.
    pub id: AccountId,
    /// Its name; empty where it has none.
    pub name: String,
    /// Its address; empty where it has none.
    pub email: String,
}

/// When a key, or by temporary keys a role, was last used. Clones are the same one, and outlive a ring's filling.
#[derive(Debug, Clone, Default)]
pub struct LastUse(Arc<AtomicU64>);

impl LastUse {
    /// A use so soon after the last one is not noted.
    const EVERY_US: u64 = 10_000_000;

    /// Notes a use; most cost a comparison.
    pub fn note(&self, now: UnixMicros) {
        // Also where the clock was set back.
        if now.0.abs_diff(self.0.load(Ordering::Relaxed)) >= Self::EVERY_US {
            self.0.store(now.0, Ordering::Relaxed);
        }
    }

    /// The last one that was noted; 1970 where there was none.
    pub fn at(&self) -> UnixMicros {
        UnixMicros(self.0.load(Ordering::Relaxed))
    }
}

/// Somebody who signed in.
#[derive(Debug, Clone)]
pub struct SignedIn {
    /// With this key.
    pub key: Arc<Key>,
    /// Who it is and what limits them.
    pub identity: Arc<Identity>,
    /// For whoever finds the signature good.
    pub used: LastUse,
}

/// Why nobody signs in with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// There is no such key, or no such principal any more.
    #[error("the access key is not known here")]
    Unknown,
    /// The token is not the key's.
    #[error("the security token included in the request is invalid")]
    BadToken,
    /// The session is over.
    #[error("the security token included in the request is expired")]
    Expired,
}

/// Whom a ring knows.
#[derive(Default)]
struct Known {
    keys: HashMap<String, (Arc<Key>, Arc<Identity>, LastUse)>,
    /// By unique id.
    roles: HashMap<String, LastUse>,
    /// By unique id; roots by account number.
    principals: HashMap<String, Arc<Identity>>,
    accounts: Vec<Account>,
    /// Where an account is among them.
    places: HashMap<AccountId, usize>,
    /// Policies by their text: what did not change need not be read again.
    policies: HashMap<String, Arc<Policy>>,
    session_key: Option<SessionKey>,
    sessions: Mutex<HashMap<String, (String, u64, SignedIn)>>,
}

/// All keys that are valid now. Clones share the same ring.
#[derive(Clone, Default)]
pub struct KeyRing(Arc<RwLock<Arc<Known>>>);

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyRing({} keys)", self.len())
    }
}

impl KeyRing {
    /// A ring of these keys.
    pub fn new(keys: impl IntoIterator<Item = Key>) -> Self {
        let ring = Self::default();
        ring.replace(keys);
        ring
    }
    /// The key with this id; temporary ones need [`KeyRing::sign_in`].
    pub fn get(&self, access_key_id: &str) -> Option<Arc<Key>> {
        self.known().keys.get(access_key_id).map(|(key, ..)| key.clone())
    }
    /// Some key that is `wanted`.
    pub fn find(&self, wanted: impl Fn(&Key) -> bool) -> Option<Arc<Key>> {
        self.known().keys.values().find(|(key, ..)| wanted(key)).map(|(key, ..)| key.clone())
    }
    /// The secret of the key with this id, temporary ones' too: whether one may be used, [`KeyRing::sign_in`] says.
    pub fn secret(&self, access_key_id: &str) -> Option<String> {
        let known = self.known();
        match known.keys.get(access_key_id) {
            Some((key, ..)) => Some(key.secret.clone()),
            None if access_key_id.starts_with(session::PREFIX) => {
                known.session_key.as_ref().map(|key| key.secret(access_key_id))
            }
            None => None,
        }
    }
    /// Who signs with this key and, where it is a temporary one, this token (`x-amz-security-token`).
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn sign_in(&self, access_key_id: &str, token: Option<&str>, now: UnixMicros) -> Result<SignedIn, KeyError> {
        let known = self.known();
        if let Some((key, identity, used)) = known.keys.get(access_key_id) {
            return match token {
                None => Ok(SignedIn { key: key.clone(), identity: identity.clone(), used: used.clone() }),
                Some(_) => Err(KeyError::BadToken),
            };
        }
        let session_key = known.session_key.as_ref().filter(|_| access_key_id.starts_with(session::PREFIX));
        let session_key = session_key.ok_or(KeyError::Unknown)?;
        let token = token.ok_or(KeyError::BadToken)?;
        let mut cache = known.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((id, expires_us, signed_in)) = cache.get(token)
            && id == access_key_id
        {
            return if now.0 < *expires_us { Ok(signed_in.clone()) } else { Err(KeyError::Expired) };
        }
        let session = session_key.open(access_key_id, token).map_err(|_| KeyError::BadToken)?;
        if session.is_over(now) {
            return Err(KeyError::Expired);
        }
        let identity = known.session(&session).ok_or(KeyError::Unknown)?;
        let account = identity.principal.account.clone().ok_or(KeyError::Unknown)?;
        let key = Key {
            access_key_id: access_key_id.to_owned(),
            secret: session_key.secret(access_key_id),
            account,
            arn: identity.principal.arn.clone(),
        };
        // Temporary keys are many and soon gone: their role stands for them.
        let used = match &session.of {
            Of::Role { id, .. } => known.roles.get(id).cloned().unwrap_or_default(),
            Of::Oneself { .. } | Of::Federated { .. } => LastUse::default(),
        };
        let signed_in = SignedIn { key: Arc::new(key), identity: Arc::new(identity), used };
        if cache.len() >= SESSIONS_MAX {
            cache.clear();
        }
        cache.insert(token.to_owned(), (access_key_id.to_owned(), session.expires_us, signed_in.clone()));
        Ok(signed_in)
    }
    /// The principal with this unique id; a root by its account's number.
    pub fn principal(&self, id: &str) -> Option<Arc<Identity>> {
        self.known().principals.get(id).cloned()
    }
    /// Accounts that have a key or were told.
    pub fn accounts(&self) -> Vec<Account> {
        self.known().accounts.clone()
    }
    /// Keys and roles, by their ids, whose last use was at this time or later.
    pub fn used_since(&self, since: UnixMicros) -> Vec<(String, UnixMicros)> {
        let known = self.known();
        let keys = known.keys.iter().map(|(id, (_, _, used))| (id, used.at()));
        let all = keys.chain(known.roles.iter().map(|(id, used)| (id, used.at())));
        all.filter(|(_, at)| at.0 >= since.0.max(1)).map(|(id, at)| (id.clone(), at)).collect()
    }
    /// What seals session tokens, where there is one.
    pub fn session_key(&self) -> Option<SessionKey> {
        self.known().session_key.clone()
    }
    /// Replaces all keys at once; each may do everything in its account, and there are no temporary ones.
    pub fn replace(&self, keys: impl IntoIterator<Item = Key>) {
        let all = Arc::new(Policy::administrator());
        let mut known = Known::default();
        for key in keys {
            let identity = Arc::new(Identity::new(principal_of(&key.account, &key.arn), vec![all.clone()]));
            known.meet(&key.account);
            known.keys.insert(key.access_key_id.clone(), (Arc::new(key), identity, LastUse::default()));
        }
        self.set(known);
    }
    /// Replaces everything by what the cloud told. What this version cannot read is left out and named: a principal
    /// with a policy that is none may do nothing.
    pub fn fill(&self, told: &proto::Keys) -> Vec<String> {
        let (known, complaints) = Known::of(told, &self.known());
        self.set(known);
        complaints
    }
    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.known().keys.len()
    }
    /// True when nobody can sign in.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn known(&self) -> Arc<Known> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
    fn set(&self, known: Known) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(known);
    }
}

/// A principal from its ARN alone; its unique id is unknown.
fn principal_of(account: &AccountId, arn: &str) -> Principal {
    match arn.splitn(6, ':').nth(5).unwrap_or("") {
        "root" => Principal::root(account),
        role if role.starts_with("role/") => Principal::role_session(account, arn, "AROA", "karri"),
        _ => Principal::user(account, arn, arn),
    }
}

impl Known {
    fn of(told: &proto::Keys, before: &Self) -> (Self, Vec<String>) {
        let (mut known, mut complaints) = (Self::default(), Vec::new());
        known.session_key = SessionKey::from_slice(&told.session_key);
        let policies: Vec<Option<Arc<Policy>>> = told
            .policies
            .iter()
            .map(|text| {
                let policy = match before.policies.get(text) {
                    Some(policy) => policy.clone(),
                    None => match Policy::parse(text, Use::Simulated) {
                        Ok(policy) => Arc::new(policy),
                        Err(error) => {
                            complaints.push(format!("a policy: {error}"));
                            return None;
                        }
                    },
                };
                known.policies.insert(text.clone(), policy.clone());
                Some(policy)
            })
            .collect();
        for told in &told.principals {
            let Ok(account) = told.account_id.parse::<AccountId>() else {
                complaints.push(format!("principal {} is of no account", told.id));
                continue;
            };
            let mut who = match told.arn.splitn(6, ':').nth(5).unwrap_or("") {
                "root" => Principal::root(&account),
                role if role.starts_with("role/") => Principal::role_session(&account, &told.arn, &told.id, "karri"),
                _ => Principal::user(&account, &told.arn, &told.id),
            };
            who.tags = told.tags.clone().into_iter().collect();
            let policy = |at: &u32| policies.get(*at as usize).cloned().flatten();
            let own: Option<Vec<_>> = told.policies.iter().map(policy).collect();
            let boundary = told.boundary.as_ref().map(policy);
            // A policy that cannot be read might have denied.
            let mut identity = Identity::new(who, own.unwrap_or_default());
            identity.boundary = boundary.flatten();
            if boundary_is_lost(told.boundary, &identity) {
                identity.policies.clear();
            }
            known.meet(&account);
            if matches!(identity.principal.kind, Kind::Role { .. }) {
                known.roles.insert(told.id.clone(), before.roles.get(&told.id).cloned().unwrap_or_default());
            }
            known.principals.insert(told.id.clone(), Arc::new(identity));
        }
        for told in told.keys.iter().filter(|k| k.active) {
            let Ok(account) = told.account_id.parse::<AccountId>() else {
                complaints.push(format!("key {} is of no account", told.access_key_id));
                continue;
            };
            let identity = match told.principal_id.as_str() {
                // A cloud that tells no principals has users that may do everything.
                "" => {
                    Arc::new(Identity::new(principal_of(&account, &told.arn), vec![Arc::new(Policy::administrator())]))
                }
                id => match known.principals.get(id) {
                    Some(identity) => identity.clone(),
                    None => {
                        complaints.push(format!("key {} is of nobody", told.access_key_id));
                        continue;
                    }
                },
            };
            let key = Key {
                access_key_id: told.access_key_id.clone(),
                secret: told.secret_access_key.clone(),
                account: account.clone(),
                arn: told.arn.clone(),
            };
            known.meet(&account);
            let used = before.keys.get(&key.access_key_id).map(|(_, _, used)| used.clone());
            known.keys.insert(key.access_key_id.clone(), (Arc::new(key), identity, used.unwrap_or_default()));
        }
        for told in &told.accounts {
            let Ok(id) = told.id.parse::<AccountId>() else { continue };
            known.meet(&id);
            if let Some(account) = known.places.get(&id).and_then(|at| known.accounts.get_mut(*at)) {
                (account.name, account.email) = (told.name.clone(), told.email.clone());
            }
        }
        (known, complaints)
    }

    fn meet(&mut self, account: &AccountId) {
        if !self.places.contains_key(account) {
            self.places.insert(account.clone(), self.accounts.len());
            self.accounts.push(Account { id: account.clone(), name: String::new(), email: String::new() });
        }
    }

    /// Who a session is, by what is known of whom it is of.
    fn session(&self, session: &Session) -> Option<Identity> {
        let (of, federated) = match &session.of {
            Of::Oneself { id } | Of::Role { id, .. } => (id, None),
            Of::Federated { by, name } => (by, Some(name)),
        };
        let known = match self.principals.get(of) {
            Some(known) => Identity::clone(known),
            // Roots need not be told.
            None => Identity::root(&of.parse().ok().filter(|a| self.places.contains_key(a))?),
        };
        let account = known.principal.account.clone()?;
        let mut identity = known;
        if let Of::Role { id, name } = &session.of {
            let (role, tags) = (identity.principal.policy_arn().to_owned(), identity.principal.tags.clone());
            identity.principal = Principal::role_session(&account, &role, id, name);
            identity.principal.tags = tags;
        }
        if let Some(name) = federated {
            // A root that lets somebody in has everything; what the session was passed limits them.
            if identity.principal.kind == Kind::Root {
                identity.policies = vec![Arc::new(Policy::administrator())];
            }
            let tags = identity.principal.tags.clone();
            identity.principal = Principal::federated_user(&account, name);
            identity.principal.tags = tags;
        }
        // A session's tags replace the role's, whatever their case.
        let is_given = |key: &String| session.tags.keys().any(|given| given.eq_ignore_ascii_case(key));
        identity.principal.tags.retain(|key, _| !is_given(key));
        identity.principal.tags.extend(session.tags.clone());
        identity.principal.keys.moment("aws:TokenIssueTime", UnixMicros(session.issued_us));
        for (key, value) in &session.keys {
            identity.principal.keys.text(key, value.as_str());
        }
        if let Some(texts) = &session.policies {
            let parse = |text: &String| Policy::parse(text, Use::Simulated).ok().map(Arc::new);
            identity.session = Some(texts.iter().map(parse).collect::<Option<_>>()?);
        }
        Some(identity)
    }
}

fn boundary_is_lost(told: Option<u32>, identity: &Identity) -> bool {
    told.is_some() && identity.boundary.is_none()
}

#[cfg(test)]
mod tests {
    use super::super::policy::{Context, Request, Target, decide};
    use super::*;

    const ACCOUNT: &str = "111122223333";
    const NOW: UnixMicros = UnixMicros(1_000_000);

    fn told() -> proto::Keys {
        let principal = |id: &str, what: &str, policies: Vec<u32>| proto::Principal {
            id: id.into(),
            arn: format!("arn:aws:iam::{ACCOUNT}:{what}"),
            account_id: ACCOUNT.into(),
            policies,
            ..Default::default()
        };
        let allow = |action: &str| {
            format!(r#"{{"Version":"2012-10-17","Statement":{{"Effect":"Allow","Action":"{action}","Resource":"*"}}}}"#)
        };
        proto::Keys {
            keys: vec![proto::Key {
                access_key_id: "AKIAUSER".into(),
                secret_access_key: "s".into(),
                account_id: ACCOUNT.into(),
                arn: format!("arn:aws:iam::{ACCOUNT}:user/bob"),
                active: true,
                principal_id: "AIDABOB".into(),
            }],
            policies: vec![allow("s3:*"), allow("ec2:*"), "broken".into()],
            principals: vec![
                principal("AIDABOB", "user/bob", vec![0]),
                principal("AROAROLE", "role/r", vec![1]),
                principal("AIDABROKEN", "user/broken", vec![0, 2]),
            ],
            session_key: vec![9; 32],
            accounts: vec![proto::Account { id: ACCOUNT.into(), name: "team".into(), email: "t@example.org".into() }],
        }
    }

    fn may(signed_in: &SignedIn, action: &str) -> bool {
        let context = Context::default();
        let request = Request { action, resource: "*", context: &context };
        decide(&signed_in.identity, &Target::default(), &request).is_allowed()
    }

    #[test]
    fn what_the_cloud_tells_is_understood() {
        let ring = KeyRing::default();
        let complaints = ring.fill(&told());
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        let bob = ring.sign_in("AKIAUSER", None, NOW).expect("signs in");
        assert!(may(&bob, "s3:GetObject") && !may(&bob, "ec2:RunInstances"));
        assert_eq!(ring.sign_in("AKIAUSER", Some("token"), NOW).err(), Some(KeyError::BadToken));
        assert_eq!(ring.sign_in("AKIAOTHER", None, NOW).err(), Some(KeyError::Unknown));
        assert!(ring.principal("AIDABROKEN").expect("known").policies.is_empty(), "one of two might have denied");
        assert_eq!(ring.accounts()[0].name, "team");
        assert_eq!((ring.secret("AKIAUSER").as_deref(), ring.secret("AKIAX")), (Some("s"), None));
    }

    #[test]
    fn last_uses_are_to_ten_seconds_and_outlive_news() {
        let ring = KeyRing::default();
        ring.fill(&told());
        let issued = Session {
            of: Of::Role { id: "AROAROLE".into(), name: "s".into() },
            policies: None,
            tags: Default::default(),
            keys: Default::default(),
            issued_us: 0,
            expires_us: u64::MAX,
        };
        let token = ring.session_key().expect("told").seal("ASIA0", &issued, [1; 12]);
        assert!(ring.used_since(UnixMicros(0)).is_empty());
        let at = |seconds: u64| UnixMicros(seconds * 1_000_000);
        let bob = ring.sign_in("AKIAUSER", None, NOW).expect("signs in");
        let role = ring.sign_in("ASIA0", Some(&token), NOW).expect("signs in");
        bob.used.note(at(100));
        role.used.note(at(200));
        bob.used.note(at(109));
        let sorted = |since| {
            let mut all = ring.used_since(since);
            all.sort();
            all
        };
        assert_eq!(sorted(at(0)), [("AKIAUSER".to_owned(), at(100)), ("AROAROLE".to_owned(), at(200))]);
        bob.used.note(at(9_000));
        bob.used.note(at(110));
        ring.fill(&told());
        bob.used.note(at(300));
        assert_eq!(sorted(at(201)), [("AKIAUSER".to_owned(), at(300))]);
        let mut gone = told();
        gone.keys.clear();
        ring.fill(&gone);
        assert_eq!(sorted(at(0)), [("AROAROLE".to_owned(), at(200))]);
    }

    #[test]
    fn sessions_are_believed_until_they_end() {
        let ring = KeyRing::default();
        ring.fill(&told());
        let key = ring.session_key().expect("told");
        let session = |of: Of, policies: Option<Vec<String>>| {
            let session = Session {
                of,
                issued_us: 0,
                expires_us: NOW.0 + 1,
                policies,
                tags: [("team".to_owned(), "blue".to_owned())].into(),
                keys: Default::default(),
            };
            key.seal("ASIA1", &session, [1; 12])
        };
        let role = session(Of::Role { id: "AROAROLE".into(), name: "me".into() }, None);
        let who = ring.sign_in("ASIA1", Some(&role), NOW).expect("signs in");
        assert_eq!(who.key.arn, format!("arn:aws:sts::{ACCOUNT}:assumed-role/r/me"));
        assert_eq!(Some(&who.key.secret), ring.secret("ASIA1").as_ref());
        assert_eq!(who.identity.principal.id, "AROAROLE:me");
        assert_eq!(who.identity.principal.tags["team"], "blue");
        assert!(may(&who, "ec2:RunInstances") && !may(&who, "s3:GetObject"));
        for at in [NOW.0 + 1, NOW.0 + 2] {
            assert_eq!(ring.sign_in("ASIA1", Some(&role), UnixMicros(at)).err(), Some(KeyError::Expired));
        }
        assert_eq!(ring.sign_in("ASIA2", Some(&role), NOW).err(), Some(KeyError::BadToken));
        assert_eq!(ring.sign_in("ASIA1", None, NOW).err(), Some(KeyError::BadToken));
        let gone = session(Of::Role { id: "AROAGONE".into(), name: "me".into() }, None);
        assert_eq!(ring.sign_in("ASIA1", Some(&gone), NOW).err(), Some(KeyError::Unknown));

        let federated = session(Of::Federated { by: ACCOUNT.into(), name: "f".into() }, Some(Vec::new()));
        let who = ring.sign_in("ASIA1", Some(&federated), NOW).expect("signs in");
        assert!(who.key.arn.ends_with("federated-user/f") && !may(&who, "s3:GetObject"), "nothing was passed");
        let root = session(Of::Oneself { id: ACCOUNT.into() }, None);
        assert!(may(&ring.sign_in("ASIA1", Some(&root), NOW).expect("signs in"), "iam:CreateUser"));
        // A role that is gone at the next news is gone for its sessions.
        let mut less = told();
        less.principals.retain(|p| p.id != "AROAROLE");
        ring.fill(&less);
        assert_eq!(ring.sign_in("ASIA1", Some(&role), NOW).err(), Some(KeyError::Unknown));
    }

    #[test]
    fn keys_alone_may_do_everything_in_their_account() {
        let account: AccountId = ACCOUNT.parse().expect("an account");
        let key = |id: &str, what: &str| Key {
            access_key_id: id.into(),
            secret: "s".into(),
            account: account.clone(),
            arn: format!("arn:aws:iam::{ACCOUNT}:{what}"),
        };
        let ring = KeyRing::new([key("A", "root"), key("B", "user/x"), key("C", "role/karri-system")]);
        for id in ["A", "B", "C"] {
            assert!(may(&ring.sign_in(id, None, NOW).expect("signs in"), "s3:GetObject"), "{id}");
        }
        assert_eq!(ring.sign_in("ASIA1", Some("x"), NOW).err(), Some(KeyError::Unknown));
    }
}
