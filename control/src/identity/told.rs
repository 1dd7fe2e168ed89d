//! What other roles learn: keys with their secrets, principals with their policies, the key of sessions; over
//! `Identity.WatchKeys`, whole at first and again whenever something of it changed.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};

use futures_util::Stream;
use karri_base::aws::arn::Arn;
use karri_base::id::AccountId;
use karri_base::proto;
use karri_base::proto::identity_server::Identity;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::Directory;
use super::records::{Bearer, Tags};
use crate::cloud::stopped;

/// Documents, each once.
#[derive(Default)]
struct Documents<'a> {
    texts: Vec<String>,
    places: HashMap<&'a str, u32>,
}

impl<'a> Documents<'a> {
    fn place(&mut self, text: &'a str) -> u32 {
        *self.places.entry(text).or_insert_with(|| {
            self.texts.push(text.to_owned());
            self.texts.len() as u32 - 1
        })
    }
}

/// A principal by id, ARN and account.
fn principal<'a>(
    documents: &mut Documents<'a>,
    (id, arn, account): (&str, String, &AccountId),
    texts: Vec<&'a str>,
    boundary: Option<&'a str>,
    tags: &Tags,
) -> proto::Principal {
    proto::Principal {
        id: id.to_owned(),
        arn,
        account_id: account.to_string(),
        policies: texts.into_iter().map(|text| documents.place(text)).collect(),
        boundary: boundary.map(|text| documents.place(text)),
        tags: tags.clone().into_iter().collect(),
    }
}

impl Directory {
    /// Everything that a role needs to know to sign requests in and to decide them, as of the last change.
    pub fn told(&self) -> Arc<proto::Keys> {
        self.told.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn tell(&self) -> proto::Keys {
        let state = self.state();
        let mut documents = Documents::default();
        let mut principals = Vec::new();
        // What names a boundary that is gone may do nothing at all.
        const NOTHING: &str = r#"{"Statement":{"Effect":"Deny","Action":"*","Resource":"*"}}"#;
        let boundary = |arn: &Option<String>| arn.as_ref().map(|arn| state.document(arn).unwrap_or(NOTHING));
        for account in state.accounts.values() {
            let arn = Arn::iam(&account.id, "root").to_string();
            principals.push(principal(
                &mut documents,
                (account.id.as_str(), arn, &account.id),
                Vec::new(),
                None,
                &Tags::new(),
            ));
        }
        for user in state.users.values() {
            let texts = state.documents_of_user(user);
            let who = (user.id.as_str(), user.arn(), &user.account);
            principals.push(principal(&mut documents, who, texts, boundary(&user.boundary), &user.tags));
        }
        for role in state.roles.values() {
            let texts = state.documents_of(&role.policies);
            let who = (role.id.as_str(), role.arn(), &role.account);
            principals.push(principal(&mut documents, who, texts, boundary(&role.boundary), &role.tags));
        }
        let key = |key: &Arc<super::records::AccessKey>| {
            let (arn, principal_id) = match &key.bearer {
                Bearer::Root => (Arn::iam(&key.account, "root").to_string(), key.account.to_string()),
                // Roles among themselves may do everything.
                Bearer::System => (Arn::iam(&key.account, "role/karri-system").to_string(), String::new()),
                Bearer::User(user) => {
                    let user = state.users.get(user)?;
                    (user.arn(), user.id.clone())
                }
            };
            Some(proto::Key {
                access_key_id: key.id.clone(),
                secret_access_key: self.sealer().open(&key.id, &key.secret)?,
                account_id: key.account.to_string(),
                arn,
                active: true,
                principal_id,
            })
        };
        let keys = state.keys.values().filter(|k| k.active).filter_map(key).collect();
        let account = |a: &Arc<super::records::Account>| proto::Account {
            id: a.id.to_string(),
            name: a.name.clone(),
            email: a.email.clone(),
        };
        proto::Keys {
            keys,
            policies: documents.texts,
            principals,
            session_key: self.sealer().sessions().as_bytes().to_vec(),
            accounts: state.accounts.values().map(account).collect(),
        }
    }
}

/// The gRPC service.
pub struct IdentityService {
    directory: Arc<Directory>,
    stop: watch::Receiver<bool>,
}

impl IdentityService {
    /// Over these identities, until `stop` turns true.
    pub fn new(directory: Arc<Directory>, stop: watch::Receiver<bool>) -> Self {
        Self { directory, stop }
    }
}

struct Watching {
    directory: Arc<Directory>,
    changes: watch::Receiver<u64>,
    stop: watch::Receiver<bool>,
    told: Option<Arc<proto::Keys>>,
}

impl Watching {
    /// The next snapshot that differs from the last one told; none when the role stops.
    async fn next(&mut self) -> Option<proto::Keys> {
        loop {
            // Changes that come faster than they can be sent are sent together.
            let now = self.directory.told();
            if self.told.as_ref().is_none_or(|told| !Arc::ptr_eq(told, &now)) {
                self.told = Some(now.clone());
                return Some(proto::Keys::clone(&now));
            }
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                () = stopped(&mut self.stop) => return None,
            }
        }
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    type WatchKeysStream = Pin<Box<dyn Stream<Item = Result<proto::Keys, Status>> + Send>>;

    async fn watch_keys(&self, _: Request<proto::WatchKeysRequest>) -> Result<Response<Self::WatchKeysStream>, Status> {
        let mut changes = self.directory.changes();
        changes.mark_unchanged();
        let watching = Watching { directory: self.directory.clone(), changes, stop: self.stop.clone(), told: None };
        let stream = futures_util::stream::unfold(watching, |mut w| async move { w.next().await.map(|k| (Ok(k), w)) });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn report_uses(
        &self,
        told: Request<proto::ReportUsesRequest>,
    ) -> Result<Response<proto::ReportUsesResponse>, Status> {
        self.directory.heard_of_uses(told.get_ref());
        Ok(Response::new(proto::ReportUsesResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use futures_util::StreamExt as _;
    use karri_base::aws::keys::KeyRing;

    use super::super::records::{AccessKey, Bearer, Entity as _, User};
    use super::super::state::StateError;
    use super::super::tests::{allow, world};
    use super::*;

    /// The shortest time from a change to a ring that obeys it, among so many users with a key and a policy each.
    async fn time_among(users: usize) -> Duration {
        let w = world().await;
        w.user("bob").await;
        let directory = Arc::new(w.directory);
        let fill = |state: &mut super::super::state::State| {
            let bob = state.users.values().next().expect("bob").clone();
            let key = state.keys.values().find(|k| k.bearer == Bearer::User(bob.key())).expect("his key").clone();
            for n in 0..users {
                let mut user = User { name: format!("u{n}"), id: format!("AIDA{n}"), ..User::clone(&bob) };
                user.policies.inline.insert("p".into(), allow("s3:*", &format!("arn:aws:s3:::b{n}/*")));
                let id = format!("AKIA{n}");
                let (secret, bearer) = (directory.sealer().seal(&id, "secret"), Bearer::User(user.key()));
                let key = AccessKey { id: id.clone(), secret, bearer, ..AccessKey::clone(&key) };
                state.keys.insert(id, Arc::new(key));
                state.users.insert(user.key(), Arc::new(user));
            }
            Ok::<_, StateError>(())
        };
        directory.change(fill).await.unwrap();
        let stop = watch::Sender::new(false);
        let service = IdentityService::new(directory.clone(), stop.subscribe());
        let mut stream = service.watch_keys(Request::new(proto::WatchKeysRequest {})).await.unwrap().into_inner();
        let ring = KeyRing::default();
        assert!(ring.fill(&stream.next().await.unwrap().unwrap()).is_empty());
        assert!(ring.len() > users);
        let mut best = Duration::MAX;
        for n in 0..5 {
            let tag = |state: &mut super::super::state::State| {
                let user = state.users.values_mut().next().expect("bob");
                Arc::make_mut(user).tags.insert("n".into(), n.to_string());
                Ok::<_, StateError>(user.id.clone())
            };
            let began = Instant::now();
            let id = directory.change(tag).await.unwrap();
            let news = tokio::time::timeout(Duration::from_secs(20), stream.next()).await.expect("it arrives");
            ring.fill(&news.unwrap().unwrap());
            assert_eq!(ring.principal(&id).unwrap().principal.tags["n"], n.to_string());
            best = best.min(began.elapsed());
        }
        best
    }

    #[tokio::test]
    async fn a_change_among_thousands_of_users_arrives() {
        let (few, many) = (time_among(1000).await, time_among(8000).await);
        println!("a change counts elsewhere after {few:?} among 1,000 users, {many:?} among 8,000");
        // Eight times as many; were each compared with all others, it would be 64 times as long.
        assert!(many < few.max(Duration::from_millis(1)) * 30, "{few:?}, then {many:?}");
    }

    #[tokio::test]
    async fn what_nobody_needs_to_know_is_not_told() {
        let w = world().await;
        let (before, mut changes) = (w.directory.told(), w.directory.changes());
        w.fine("CreateInstanceProfile", &[("InstanceProfileName", "i")]).await;
        assert!(changes.has_changed().unwrap() && Arc::ptr_eq(&before, &w.directory.told()));
        changes.mark_unchanged();
        w.user("bob").await;
        assert!(!Arc::ptr_eq(&before, &w.directory.told()));
    }
}
