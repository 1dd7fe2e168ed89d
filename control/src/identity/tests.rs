//! IAM and STS over an in-memory store: what clients see, and what other roles learn.

use std::sync::Arc;

use karri_base::aws::policy::{Context, Request, Target, decide};
use karri_base::clock::{Clock, ManualClock, UnixMicros};
use karri_meta::MetaStore;
use karri_meta::memory::MemoryStore;

use super::alone::act;
use super::authorize::Caller;
use super::*;
use crate::cloud::tests::{text, texts};
use crate::wire::Tree;

pub(super) const ACCOUNT: &str = "111122223333";
const OTHER: &str = "444455556666";
pub(super) const ROOT: (&str, &str) = ("AKIAROOT", "");
pub(super) const OTHER_ROOT: (&str, &str) = ("AKIAOTHERROOT", "");

pub(super) struct World {
    pub(super) directory: Directory,
    pub(super) clock: Arc<ManualClock>,
    pub(super) meta: Arc<MemoryStore>,
}

pub(super) async fn world() -> World {
    let (meta, clock) = (Arc::new(MemoryStore::new()), Arc::new(ManualClock::at(UnixMicros(1_700_000_000_000_000))));
    let directory = Directory::open(meta.clone(), [5; 32], clock.clone()).await.unwrap();
    let seed = |account: &str, name: &str, id: &str| Seed {
        account: account.parse().unwrap(),
        name: name.into(),
        email: format!("{name}@{account}"),
        access_key_id: id.into(),
        secret: format!("secret of {id}"),
        administrator: false,
    };
    directory.seed(&[seed(ACCOUNT, "root", ROOT.0), seed(OTHER, "root", OTHER_ROOT.0)]).await.unwrap();
    World { directory, clock, meta }
}

pub(super) type Key<'a> = (&'a str, &'a str);

impl World {
    pub(super) fn caller(&self, (id, token): Key<'_>) -> Result<Caller, String> {
        let token = Some(token).filter(|t| !t.is_empty());
        let now = self.clock.now();
        let who = self.directory.ring().sign_in(id, token, now).map_err(|e| e.to_string())?;
        Ok(Caller {
            key: who.key,
            identity: who.identity,
            source: None,
            secure: false,
            now,
            region: "us-east-1".into(),
            decisions: Default::default(),
        })
    }
    /// The answer's XML, or the error's code and message.
    pub(super) async fn ask(
        &self,
        key: Key<'_>,
        service: &str,
        action: &str,
        params: &[(&str, &str)],
    ) -> Result<String, String> {
        let caller = self.caller(key)?;
        let tree = Tree::new(params.iter().copied()).unwrap();
        act(&self.directory, service, action, &tree, &caller, "r-1").await.map_err(|e| e.to_string())
    }
    pub(super) async fn iam(&self, key: Key<'_>, action: &str, params: &[(&str, &str)]) -> Result<String, String> {
        self.ask(key, "iam", action, params).await
    }
    pub(super) async fn fine(&self, action: &str, params: &[(&str, &str)]) -> String {
        self.iam(ROOT, action, params).await.unwrap_or_else(|e| panic!("{action} {params:?}: {e}"))
    }
    pub(super) async fn refused(&self, key: Key<'_>, action: &str, params: &[(&str, &str)], code: &str) {
        let e = self.iam(key, action, params).await.expect_err(action);
        assert!(e.starts_with(code), "{action} {params:?}: {e}");
    }
    pub(super) async fn user(&self, name: &str) -> (String, String) {
        self.fine("CreateUser", &[("UserName", name)]).await;
        let key = self.fine("CreateAccessKey", &[("UserName", name)]).await;
        (text(&key, "AccessKeyId"), String::new())
    }
    pub(super) fn may(&self, key: Key<'_>, action: &str, resource: &str) -> bool {
        let caller = self.caller(key).unwrap();
        let context = Context::default();
        decide(&caller.identity, &Target::default(), &Request { action, resource, context: &context }).is_allowed()
    }
}

pub(super) fn allow(action: &str, resource: &str) -> String {
    format!(
        r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Action":"{action}","Resource":"{resource}"}}]}}"#
    )
}

pub(super) fn key(owned: &(String, String)) -> Key<'_> {
    (&owned.0, &owned.1)
}

#[tokio::test]
async fn users_and_their_keys_live_and_end() {
    let w = world().await;
    let made = w
        .fine(
            "CreateUser",
            &[("UserName", "Bob"), ("Path", "/a/"), ("Tags.member.1.Key", "t"), ("Tags.member.1.Value", "v")],
        )
        .await;
    assert_eq!(text(&made, "Arn"), format!("arn:aws:iam::{ACCOUNT}:user/a/Bob"));
    assert!(text(&made, "UserId").starts_with("AIDA"));
    w.refused(ROOT, "CreateUser", &[("UserName", "bob")], "EntityAlreadyExists").await;
    w.refused(ROOT, "CreateUser", &[("UserName", "a b")], "ValidationError").await;
    w.refused(ROOT, "CreateUser", &[], "ValidationError").await;
    w.refused(ROOT, "CreateUser", &[("UserName", "x"), ("Path", "a")], "ValidationError").await;
    w.refused(ROOT, "GetUser", &[("UserName", "eve")], "NoSuchEntity").await;
    w.refused(OTHER_ROOT, "GetUser", &[("UserName", "Bob")], "NoSuchEntity").await;
    w.refused(ROOT, "CreateUserr", &[], "InvalidAction").await;
    w.refused(ROOT, "CreateSAMLProvider", &[], "UnsupportedOperation").await;
    let got = w.fine("GetUser", &[("UserName", "BOB")]).await;
    assert_eq!((text(&got, "UserName"), text(&got, "Value")), ("Bob".into(), "v".into()));
    assert!(w.fine("GetUser", &[]).await.contains(":root"));

    let first = w.fine("CreateAccessKey", &[("UserName", "Bob")]).await;
    let id = text(&first, "AccessKeyId");
    let known = w.directory.ring().get(&id).expect("known before the answer");
    assert_eq!(known.secret, text(&first, "SecretAccessKey"));
    w.fine("CreateAccessKey", &[("UserName", "Bob")]).await;
    w.refused(ROOT, "CreateAccessKey", &[("UserName", "Bob")], "LimitExceeded").await;
    let list = w.fine("ListAccessKeys", &[("UserName", "Bob")]).await;
    assert_eq!(texts(&list, "AccessKeyId").len(), 2);
    assert!(!list.contains("Secret"), "a secret is shown once");
    w.fine("UpdateAccessKey", &[("UserName", "Bob"), ("AccessKeyId", &id), ("Status", "Inactive")]).await;
    assert!(w.directory.ring().get(&id).is_none());
    w.fine("UpdateAccessKey", &[("UserName", "Bob"), ("AccessKeyId", &id), ("Status", "Active")]).await;
    w.fine("UpdateUser", &[("UserName", "Bob"), ("NewUserName", "Rob"), ("NewPath", "/b/")]).await;
    assert_eq!(w.directory.ring().get(&id).unwrap().arn, format!("arn:aws:iam::{ACCOUNT}:user/b/Rob"));
    w.refused(ROOT, "DeleteUser", &[("UserName", "Rob")], "DeleteConflict").await;
    for id in texts(&list, "AccessKeyId") {
        w.fine("DeleteAccessKey", &[("UserName", "Rob"), ("AccessKeyId", &id)]).await;
    }
    w.fine("CreateLoginProfile", &[("UserName", "Rob"), ("Password", "Long enough 1")]).await;
    w.refused(ROOT, "CreateLoginProfile", &[("UserName", "Rob"), ("Password", "Long enough 1")], "EntityAlreadyExists")
        .await;
    w.refused(ROOT, "UpdateLoginProfile", &[("UserName", "Rob"), ("Password", "short")], "PasswordPolicy").await;
    w.refused(ROOT, "DeleteUser", &[("UserName", "Rob")], "DeleteConflict").await;
    w.fine("DeleteLoginProfile", &[("UserName", "Rob")]).await;
    w.fine("DeleteUser", &[("UserName", "Rob")]).await;
    w.refused(ROOT, "GetUser", &[("UserName", "Rob")], "NoSuchEntity").await;
}

#[tokio::test]
async fn a_password_s_hash_keeps_nobody_waiting() {
    let w = world().await;
    w.user("bob").await;
    let params = [("UserName", "bob"), ("Password", "Long enough 1")];
    let mut login = std::pin::pin!(w.fine("CreateLoginProfile", &params));
    assert!(futures_util::poll!(&mut login).is_pending(), "it is hashed elsewhere");
    let mut change = std::pin::pin!(w.fine("CreateGroup", &[("GroupName", "g")]));
    assert!(futures_util::poll!(&mut change).is_ready(), "changes go on meanwhile");
    login.await;
    let mut login = std::pin::pin!(w.fine("UpdateLoginProfile", &params));
    assert!(futures_util::poll!(&mut login).is_pending());
    login.await;
    let state = w.directory.state();
    let made = state.users.values().find(|u| u.name == "bob").and_then(|u| u.login.as_ref()).unwrap();
    assert!(secrets::is_password("Long enough 1", &made.hash, &made.salt));
    let reset = [("UserName", "bob"), ("PasswordResetRequired", "true")];
    w.fine("UpdateLoginProfile", &reset).await;
    let state = w.directory.state();
    let after = state.users.values().find(|u| u.name == "bob").and_then(|u| u.login.as_ref()).unwrap();
    assert!(after.reset && after.hash == made.hash, "without a password the old one stays");
}

#[tokio::test]
async fn secrets_are_sealed_at_rest_and_everything_survives_a_restart() {
    let w = world().await;
    let bob = w.user("bob").await;
    w.fine("PutUserPolicy", &[("UserName", "bob"), ("PolicyName", "p"), ("PolicyDocument", &allow("s3:*", "*"))]).await;
    let secret = w.directory.ring().get(&bob.0).unwrap().secret.clone();
    let all = karri_meta::Scan {
        range: bytes::Bytes::new()..bytes::Bytes::from_static(b"\xff"),
        limit: 1000,
        reverse: false,
    };
    for (key, value) in w.meta.scan(all).await.unwrap() {
        let value = String::from_utf8_lossy(&value).into_owned();
        assert!(!value.contains(&secret) && !value.contains(&hex::encode(&secret)), "{key:?}");
    }
    let again = Directory::open(w.meta.clone(), [5; 32], w.clock.clone()).await.unwrap();
    assert_eq!(again.ring().get(&bob.0).unwrap().secret, secret);
    assert_eq!(again.told(), w.directory.told());
    let other = Directory::open(w.meta.clone(), [6; 32], w.clock.clone()).await.unwrap();
    assert!(other.ring().get(&bob.0).is_none(), "another key opens nothing");
}

#[tokio::test]
async fn policies_decide_and_changes_count_at_once() {
    let w = world().await;
    let bob = w.user("bob").await;
    let bob = key(&bob);
    let bucket = "arn:aws:s3:::b/k";
    w.refused(bob, "ListUsers", &[], "AccessDenied").await;
    assert!(!w.may(bob, "s3:GetObject", bucket));
    let document = allow("s3:Get*", "arn:aws:s3:::b/*");
    w.fine("PutUserPolicy", &[("UserName", "bob"), ("PolicyName", "p"), ("PolicyDocument", &document)]).await;
    assert!(w.may(bob, "s3:GetObject", bucket) && !w.may(bob, "s3:PutObject", bucket));
    let got = w.fine("GetUserPolicy", &[("UserName", "bob"), ("PolicyName", "p")]).await;
    assert!(text(&got, "PolicyDocument").starts_with("%7B%22Version%22"), "{got}");
    w.fine("DeleteUserPolicy", &[("UserName", "bob"), ("PolicyName", "p")]).await;
    w.refused(ROOT, "GetUserPolicy", &[("UserName", "bob"), ("PolicyName", "p")], "NoSuchEntity").await;
    assert!(!w.may(bob, "s3:GetObject", bucket));
    let bad = [("UserName", "bob"), ("PolicyName", "p"), ("PolicyDocument", "{}")];
    w.refused(ROOT, "PutUserPolicy", &bad, "MalformedPolicyDocument").await;

    // A group's, attached and with versions.
    w.fine("CreateGroup", &[("GroupName", "g")]).await;
    w.fine("AddUserToGroup", &[("GroupName", "g"), ("UserName", "bob")]).await;
    let made = w.fine("CreatePolicy", &[("PolicyName", "m"), ("PolicyDocument", &allow("s3:GetObject", "*"))]).await;
    let arn = text(&made, "Arn");
    w.fine("AttachGroupPolicy", &[("GroupName", "g"), ("PolicyArn", &arn)]).await;
    assert!(w.may(bob, "s3:GetObject", bucket) && !w.may(bob, "s3:PutObject", bucket));
    let version =
        [("PolicyArn", arn.as_str()), ("PolicyDocument", &allow("s3:PutObject", "*")), ("SetAsDefault", "true")];
    w.fine("CreatePolicyVersion", &version).await;
    assert!(!w.may(bob, "s3:GetObject", bucket) && w.may(bob, "s3:PutObject", bucket));
    w.fine("SetDefaultPolicyVersion", &[("PolicyArn", &arn), ("VersionId", "v1")]).await;
    assert!(w.may(bob, "s3:GetObject", bucket));
    w.refused(ROOT, "DeletePolicyVersion", &[("PolicyArn", &arn), ("VersionId", "v1")], "DeleteConflict").await;
    w.refused(ROOT, "DeletePolicy", &[("PolicyArn", &arn)], "DeleteConflict").await;
    w.refused(OTHER_ROOT, "GetPolicy", &[("PolicyArn", &arn)], "NoSuchEntity").await;
    assert_eq!(texts(&w.fine("ListEntitiesForPolicy", &[("PolicyArn", &arn)]).await, "GroupName"), ["g"]);
    w.refused(ROOT, "DeleteGroup", &[("GroupName", "g")], "DeleteConflict").await;

    // A boundary limits.
    w.fine("AttachUserPolicy", &[("UserName", "bob"), ("PolicyArn", "arn:aws:iam::aws:policy/AdministratorAccess")])
        .await;
    assert!(w.may(bob, "iam:CreateUser", "*"));
    w.fine("PutUserPermissionsBoundary", &[("UserName", "bob"), ("PermissionsBoundary", &arn)]).await;
    assert!(!w.may(bob, "iam:CreateUser", "*") && w.may(bob, "s3:GetObject", bucket));
    w.refused(bob, "ListUsers", &[], "AccessDenied").await;
    w.fine("DeleteUserPermissionsBoundary", &[("UserName", "bob")]).await;
    assert_eq!(texts(&w.iam(bob, "ListUsers", &[]).await.unwrap(), "UserName"), ["bob"]);
    w.refused(ROOT, "AttachUserPolicy", &[("UserName", "bob"), ("PolicyArn", "x")], "InvalidInput").await;
}

#[tokio::test]
async fn listings_are_paged() {
    let w = world().await;
    for n in 0..5 {
        w.fine("CreateUser", &[("UserName", &format!("u{n}")), ("Path", if n < 3 { "/a/" } else { "/b/" })]).await;
    }
    let (mut seen, mut marker) = (Vec::new(), None::<String>);
    loop {
        let mut params = vec![("MaxItems", "2")];
        params.extend(marker.as_deref().map(|m| ("Marker", m)));
        let xml = w.fine("ListUsers", &params).await;
        seen.extend(texts(&xml, "UserName"));
        if text(&xml, "IsTruncated") == "false" {
            break;
        }
        marker = Some(text(&xml, "Marker"));
    }
    assert_eq!(seen, ["u0", "u1", "u2", "u3", "u4"]);
    assert_eq!(texts(&w.fine("ListUsers", &[("PathPrefix", "/b/")]).await, "UserName"), ["u3", "u4"]);
    w.refused(ROOT, "ListUsers", &[("MaxItems", "0")], "ValidationError").await;
    w.refused(ROOT, "ListUsers", &[("Marker", "!")], "ValidationError").await;
    assert!(texts(&w.iam(OTHER_ROOT, "ListUsers", &[]).await.unwrap(), "UserName").is_empty());
    let policies = w.fine("ListPolicies", &[("Scope", "AWS")]).await;
    assert!(texts(&policies, "PolicyName").contains(&"AmazonS3ReadOnlyAccess".to_owned()));
    let summary = w.fine("GetAccountSummary", &[]).await;
    assert!(summary.contains("<entry><key>Users</key><value>5</value></entry>"), "{summary}");
    w.fine("CreateAccountAlias", &[("AccountAlias", "team-a")]).await;
    assert!(w.fine("ListAccountAliases", &[]).await.contains("team-a"));
    let e = w.iam(OTHER_ROOT, "CreateAccountAlias", &[("AccountAlias", "team-a")]).await.unwrap_err();
    assert!(e.starts_with("EntityAlreadyExists"), "{e}");
}

pub(super) async fn session(
    w: &World,
    by: Key<'_>,
    action: &str,
    params: &[(&str, &str)],
) -> Result<(String, String), String> {
    let xml = w.ask(by, "sts", action, params).await?;
    Ok((text(&xml, "AccessKeyId"), text(&xml, "SessionToken")))
}

#[tokio::test]
async fn roles_are_assumed_by_whom_they_trust() {
    let w = world().await;
    let bob = w.user("bob").await;
    let eve = w.user("eve").await;
    let trust = |who: &str| {
        format!(
            r#"{{"Version":"2012-10-17","Statement":{{"Effect":"Allow","Action":"sts:AssumeRole","Principal":{{"AWS":"{who}"}}}}}}"#
        )
    };
    let bob_arn = format!("arn:aws:iam::{ACCOUNT}:user/bob");
    let unknown =
        [("RoleName", "r"), ("AssumeRolePolicyDocument", &trust(&format!("arn:aws:iam::{ACCOUNT}:user/none")))];
    w.refused(ROOT, "CreateRole", &unknown, "MalformedPolicyDocument").await;
    w.fine("CreateRole", &[("RoleName", "r"), ("Path", "/p/"), ("AssumeRolePolicyDocument", &trust(&bob_arn))]).await;
    w.fine("PutRolePolicy", &[("RoleName", "r"), ("PolicyName", "p"), ("PolicyDocument", &allow("s3:*", "*"))]).await;
    let role = format!("arn:aws:iam::{ACCOUNT}:role/p/r");
    let ask = [("RoleArn", role.as_str()), ("RoleSessionName", "me")];
    let e = session(&w, key(&eve), "AssumeRole", &ask).await.unwrap_err();
    assert!(e.starts_with("AccessDenied"), "{e}");
    assert!(session(&w, ROOT, "AssumeRole", &ask).await.unwrap_err().contains("root accounts"));
    let got = session(&w, key(&bob), "AssumeRole", &ask).await.unwrap();
    assert!(w.may(key(&got), "s3:GetObject", "*") && !w.may(key(&got), "ec2:RunInstances", "*"));
    let who = w.ask(key(&got), "sts", "GetCallerIdentity", &[]).await.unwrap();
    assert_eq!(text(&who, "Arn"), format!("arn:aws:sts::{ACCOUNT}:assumed-role/r/me"));
    // Its policies count as they are now; a session policy limits from the start.
    w.fine("PutRolePolicy", &[("RoleName", "r"), ("PolicyName", "p"), ("PolicyDocument", &allow("ec2:*", "*"))]).await;
    assert!(!w.may(key(&got), "s3:GetObject", "*") && w.may(key(&got), "ec2:RunInstances", "*"));
    let less = allow("ec2:Describe*", "*");
    let limited = [ask[0], ask[1], ("Policy", less.as_str()), ("DurationSeconds", "900")];
    let limited = session(&w, key(&bob), "AssumeRole", &limited).await.unwrap();
    assert!(w.may(key(&limited), "ec2:DescribeInstances", "*") && !w.may(key(&limited), "ec2:RunInstances", "*"));
    assert!(w.caller((&got.0, &limited.1)).is_err(), "another session's token");
    w.clock.advance(std::time::Duration::from_secs(900));
    assert!(w.caller(key(&limited)).unwrap_err().contains("expired"));
    assert!(w.caller(key(&got)).is_ok());
    w.fine("UpdateAssumeRolePolicy", &[("RoleName", "r"), ("PolicyDocument", &trust(OTHER))]).await;
    assert!(session(&w, key(&bob), "AssumeRole", &ask).await.unwrap_err().starts_with("AccessDenied"));
    w.fine("DeleteRolePolicy", &[("RoleName", "r"), ("PolicyName", "p")]).await;
    w.fine("DeleteRole", &[("RoleName", "r")]).await;
    assert!(w.caller(key(&got)).is_err(), "the role is gone");

    // Another account's user needs both sides.
    w.iam(OTHER_ROOT, "CreateUser", &[("UserName", "zoe")]).await.unwrap();
    let made = w.iam(OTHER_ROOT, "CreateAccessKey", &[("UserName", "zoe")]).await.unwrap();
    let zoe = (text(&made, "AccessKeyId"), String::new());
    w.fine("CreateRole", &[("RoleName", "x"), ("AssumeRolePolicyDocument", &trust(OTHER))]).await;
    let role = format!("arn:aws:iam::{ACCOUNT}:role/x");
    let ask = [("RoleArn", role.as_str()), ("RoleSessionName", "me")];
    assert!(session(&w, key(&zoe), "AssumeRole", &ask).await.is_err());
    let document = allow("sts:AssumeRole", &role);
    let put = [("UserName", "zoe"), ("PolicyName", "p"), ("PolicyDocument", document.as_str())];
    w.iam(OTHER_ROOT, "PutUserPolicy", &put).await.unwrap();
    session(&w, key(&zoe), "AssumeRole", &ask).await.unwrap();
}

#[tokio::test]
async fn sessions_of_oneself_and_of_guests() {
    let w = world().await;
    let bob = w.user("bob").await;
    w.fine("PutUserPolicy", &[("UserName", "bob"), ("PolicyName", "p"), ("PolicyDocument", &allow("*", "*"))]).await;
    let own = session(&w, key(&bob), "GetSessionToken", &[]).await.unwrap();
    assert!(w.may(key(&own), "s3:GetObject", "*"));
    w.refused(key(&own), "ListUsers", &[], "InvalidClientTokenId").await;
    assert!(session(&w, key(&own), "GetSessionToken", &[]).await.unwrap_err().starts_with("AccessDenied"));
    let short = [("DurationSeconds", "10")];
    assert!(session(&w, key(&bob), "GetSessionToken", &short).await.unwrap_err().starts_with("ValidationError"));
    let none = session(&w, key(&bob), "GetFederationToken", &[("Name", "guest")]).await.unwrap();
    assert!(!w.may(key(&none), "s3:GetObject", "*"), "nothing was passed");
    let document = allow("s3:Get*", "*");
    let guest =
        session(&w, key(&bob), "GetFederationToken", &[("Name", "guest"), ("Policy", &document)]).await.unwrap();
    assert!(w.may(key(&guest), "s3:GetObject", "*") && !w.may(key(&guest), "s3:PutObject", "*"));
    let who = w.ask(key(&guest), "sts", "GetCallerIdentity", &[]).await.unwrap();
    assert_eq!(text(&who, "Arn"), format!("arn:aws:sts::{ACCOUNT}:federated-user/guest"));
    assert_eq!(text(&who, "UserId"), format!("{ACCOUNT}:guest"));
}

#[tokio::test]
async fn the_simulator_answers_as_the_evaluator_would() {
    let w = world().await;
    w.user("bob").await;
    let document = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*",
        "Condition":{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}},
        {"Effect":"Deny","Action":"s3:DeleteObject","Resource":"*"}]}"#;
    w.fine("PutUserPolicy", &[("UserName", "bob"), ("PolicyName", "p"), ("PolicyDocument", document)]).await;
    let arn = format!("arn:aws:iam::{ACCOUNT}:user/bob");
    let ask = [
        ("PolicySourceArn", arn.as_str()),
        ("ActionNames.member.1", "s3:GetObject"),
        ("ActionNames.member.2", "s3:DeleteObject"),
        ("ActionNames.member.3", "ec2:RunInstances"),
        ("ContextEntries.member.1.ContextKeyName", "aws:SourceIp"),
        ("ContextEntries.member.1.ContextKeyValues.member.1", "10.1.1.1"),
        ("ContextEntries.member.1.ContextKeyType", "ip"),
    ];
    let xml = w.fine("SimulatePrincipalPolicy", &ask).await;
    assert_eq!(texts(&xml, "EvalDecision"), ["allowed", "explicitDeny", "implicitDeny"]);
    let xml = w.fine("SimulatePrincipalPolicy", &ask[..4]).await;
    assert_eq!(texts(&xml, "EvalDecision"), ["implicitDeny", "explicitDeny", "implicitDeny"]);
    assert!(xml.contains("<MissingContextValues><member>aws:sourceip</member>"), "{xml}");
    let custom = [("PolicyInputList.member.1", document), ("ActionNames.member.1", "s3:DeleteObject")];
    assert_eq!(texts(&w.fine("SimulateCustomPolicy", &custom).await, "EvalDecision"), ["explicitDeny"]);
    // Which statements decided, and where they are.
    let statements = |xml: &str| (texts(xml, "SourcePolicyId"), texts(xml, "SourcePolicyType"), texts(xml, "Line"));
    let xml = w.fine("SimulatePrincipalPolicy", &ask).await;
    let owned = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    assert_eq!(statements(&xml), (owned(&["p", "p"]), owned(&["user", "user"]), owned(&["2", "1", "3", "3"])));
    let xml = w.fine("SimulateCustomPolicy", &custom).await;
    assert_eq!(statements(&xml), (owned(&["PolicyInputList.1"]), owned(&["none"]), owned(&["3", "3"])));
    let place = |name: &str| -> usize { texts(&xml, name)[0].parse().unwrap() };
    assert_eq!(place("Column"), document.lines().nth(2).unwrap().rfind('}').unwrap(), "{xml}");
    let keys = w.fine("GetContextKeysForPrincipalPolicy", &[("PolicySourceArn", &arn)]).await;
    assert!(keys.contains("<member>aws:sourceip</member>"));
}

#[tokio::test]
async fn instance_profiles_hold_a_role() {
    let w = world().await;
    let trust =
        r#"{"Statement":{"Effect":"Allow","Action":"sts:AssumeRole","Principal":{"Service":"ec2.amazonaws.com"}}}"#;
    w.fine("CreateRole", &[("RoleName", "r"), ("AssumeRolePolicyDocument", trust)]).await;
    w.fine("CreateInstanceProfile", &[("InstanceProfileName", "p")]).await;
    let both = [("InstanceProfileName", "p"), ("RoleName", "r")];
    w.fine("AddRoleToInstanceProfile", &both).await;
    w.refused(ROOT, "AddRoleToInstanceProfile", &both, "LimitExceeded").await;
    assert_eq!(text(&w.fine("GetInstanceProfile", &both[..1]).await, "RoleName"), "r");
    assert!(w.fine("ListInstanceProfilesForRole", &both[1..]).await.contains("instance-profile/p"));
    w.refused(ROOT, "DeleteRole", &both[1..], "DeleteConflict").await;
    w.refused(ROOT, "DeleteInstanceProfile", &both[..1], "DeleteConflict").await;
    w.fine("RemoveRoleFromInstanceProfile", &both).await;
    w.fine("DeleteInstanceProfile", &both[..1]).await;
    w.fine("DeleteRole", &both[1..]).await;
}

#[tokio::test]
async fn accounts_share_no_policies() {
    let w = world().await;
    let bob = w.user("bob").await;
    let made = w
        .iam(OTHER_ROOT, "CreatePolicy", &[("PolicyName", "m"), ("PolicyDocument", &allow("s3:*", "*"))])
        .await
        .unwrap();
    let foreign = text(&made, "Arn");
    let with = |name: &'static str| [("UserName", "bob"), (name, foreign.as_str())];
    w.refused(ROOT, "AttachUserPolicy", &with("PolicyArn"), "NoSuchEntity").await;
    w.refused(ROOT, "PutUserPermissionsBoundary", &with("PermissionsBoundary"), "NoSuchEntity").await;
    w.refused(ROOT, "CreateUser", &[("UserName", "x"), ("PermissionsBoundary", &foreign)], "NoSuchEntity").await;
    w.fine("AttachUserPolicy", &[("UserName", "bob"), ("PolicyArn", "arn:aws:iam::aws:policy/AdministratorAccess")])
        .await;
    let ask = [("Name", "guest"), ("PolicyArns.member.1.arn", foreign.as_str())];
    let e = session(&w, key(&bob), "GetFederationToken", &ask).await.unwrap_err();
    assert!(e.starts_with("ValidationError"), "{e}");
    // Nor do they see who else uses AWS's.
    let aws = [("PolicyArn", "arn:aws:iam::aws:policy/AdministratorAccess")];
    assert_eq!(text(&w.fine("GetPolicy", &aws).await, "AttachmentCount"), "1");
    assert_eq!(text(&w.iam(OTHER_ROOT, "GetPolicy", &aws).await.unwrap(), "AttachmentCount"), "0");
}

#[tokio::test]
async fn what_a_request_names_besides_is_asked_for_too() {
    let w = world().await;
    let bob = w.user("bob").await;
    let bob = key(&bob);
    w.user("eve").await;
    let put = |document: &str| {
        let document = document.to_owned();
        let w = &w;
        async move {
            w.fine("PutUserPolicy", &[("UserName", "bob"), ("PolicyName", "p"), ("PolicyDocument", &document)]).await
        }
    };
    put(&allow("iam:UpdateUser", &format!("arn:aws:iam::{ACCOUNT}:user/e*"))).await;
    w.refused(bob, "UpdateUser", &[("UserName", "eve"), ("NewUserName", "boss")], "AccessDenied").await;
    w.iam(bob, "UpdateUser", &[("UserName", "eve"), ("NewUserName", "eva")]).await.unwrap();

    let trust =
        r#"{"Statement":{"Effect":"Allow","Action":"sts:AssumeRole","Principal":{"Service":"ec2.amazonaws.com"}}}"#;
    w.fine("CreateRole", &[("RoleName", "r"), ("AssumeRolePolicyDocument", trust)]).await;
    w.fine("CreateInstanceProfile", &[("InstanceProfileName", "p")]).await;
    let both = [("InstanceProfileName", "p"), ("RoleName", "r")];
    put(&allow("iam:AddRoleToInstanceProfile", "*")).await;
    let e = w.iam(bob, "AddRoleToInstanceProfile", &both).await.unwrap_err();
    assert!(e.contains("iam:PassRole"), "{e}");
    put(&allow("iam:*", "*")).await;
    w.iam(bob, "AddRoleToInstanceProfile", &both).await.unwrap();
}

#[tokio::test]
async fn a_change_that_fails_changes_nothing() {
    let w = world().await;
    w.user("bob").await;
    let before = w.directory.told();
    w.refused(ROOT, "UpdateUser", &[("UserName", "bob"), ("NewPath", "/x/"), ("NewUserName", "a b")], "Validation")
        .await;
    let long = allow("s3:*", &format!("arn:aws:s3:::{}", "x".repeat(2000)));
    w.refused(ROOT, "PutUserPolicy", &[("UserName", "bob"), ("PolicyName", "p"), ("PolicyDocument", &long)], "Limit")
        .await;
    assert_eq!(w.directory.told(), before);
}

#[tokio::test]
async fn the_documented_record_is_what_is_kept() {
    let page = include_str!("../../docs/identity.md");
    let account = records::Account {
        id: ACCOUNT.parse().unwrap(),
        name: "team".into(),
        email: "team@example.org".into(),
        alias: None,
        passwords: None,
    };
    let bytes = state::encode(&account);
    let example = format!("iam/account/{}\n{}", account.key(), String::from_utf8_lossy(&bytes));
    assert!(page.contains(&example), "{example}");
}

#[tokio::test]
async fn keys_of_the_first_version_are_sealed_and_removed() {
    use crate::cloud::records::AccessKey as Old;
    use crate::cloud::store::{Store, StoreError};
    let w = world().await;
    let store = Store::open(w.meta.clone()).await.unwrap();
    let old = |id: &str, active| Old {
        access_key_id: id.into(),
        secret: format!("secret of {id}"),
        account: OTHER.parse().unwrap(),
        arn: format!("arn:aws:iam::{OTHER}:user/zoe"),
        active,
    };
    let put = store.change::<_, StoreError>(|txn| {
        txn.put(old("AKIAOLD", true));
        txn.put(old("AKIAOFF", false));
        Ok(())
    });
    put.await.unwrap();
    let key = |id: &str| karri_base::config::AccessKey { access_key_id: id.into(), secret_access_key: "s".into() };
    let credentials = karri_base::config::Credentials {
        account_id: ACCOUNT.parse().unwrap(),
        admin: key("AKIAADMIN"),
        system: key("AKIASYSTEM"),
    };
    for _ in 0..2 {
        crate::cloud::identity::import(&store, &w.directory, &credentials).await.unwrap();
        assert!(store.list::<Old>().is_empty());
        assert_eq!(w.directory.ring().get("AKIAOLD").unwrap().secret, "secret of AKIAOLD");
        assert!(w.directory.ring().get("AKIAOFF").is_none());
        assert!(w.may(("AKIAADMIN", ""), "ec2:RunInstances", "*") && w.may(("AKIAOLD", ""), "s3:PutObject", "*"));
        assert_eq!(w.caller(("AKIASYSTEM", "")).unwrap().key.arn, format!("arn:aws:iam::{ACCOUNT}:role/karri-system"));
    }
    // The file's keys are replaced; what came otherwise stays.
    let credentials = karri_base::config::Credentials { admin: key("AKIANEW"), ..credentials };
    crate::cloud::identity::import(&store, &w.directory, &credentials).await.unwrap();
    assert!(w.caller(("AKIAADMIN", "")).is_err() && w.caller(("AKIANEW", "")).is_ok());
    assert!(w.caller(("AKIAOLD", "")).is_ok());
}
