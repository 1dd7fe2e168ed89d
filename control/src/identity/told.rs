//! What other roles learn: keys with their secrets, principals with their policies, the key of sessions; over
//! `Identity.WatchKeys`, whole at first and again whenever something of it changed.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

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
    /// Everything that a role needs to know to sign requests in and to decide them.
    pub fn told(&self) -> proto::Keys {
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
    told: Option<proto::Keys>,
}

impl Watching {
    /// The next snapshot that differs from the last one told; none when the role stops.
    async fn next(&mut self) -> Option<proto::Keys> {
        loop {
            let now = self.directory.told();
            if self.told.as_ref() != Some(&now) {
                self.told = Some(now.clone());
                return Some(now);
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
}
