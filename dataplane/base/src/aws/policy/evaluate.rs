//! How the layers meet ("Policy evaluation logic").
//!
//! ```text
//!  explicit deny anywhere ------------------------------------------------> denied
//!  identity := identity policies allow, or the caller is the account's root
//!  limits   := boundary and session policies, where there are any, allow too
//!
//!  same account:  resource policy names the caller or everyone ------------> allowed
//!                 resource policy names the session's role, or ACL is public: allowed within limits
//!                 identity and limits -------------------------------------> allowed
//!  two accounts:  identity and limits, and resource policy or ACL ---------> allowed
//!  nobody:        resource policy or a public ACL -------------------------> allowed
//!  else ------------------------------------------------------------------> denied
//! ```
//! A role's trust policy must allow whatever identity policies say ([`Target::must_allow`]).

use std::borrow::Cow;
use std::sync::Arc;

use super::condition::Values;
use super::context::Context;
use super::document::{Effect, Policy};
use super::pattern::Variables;
use super::principal::{Kind, Principal, Reach};
use crate::id::AccountId;

/// Who asks and what limits them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Who.
    pub principal: Principal,
    /// Inline, attached and group policies; what a root has counts for nothing.
    pub policies: Vec<Arc<Policy>>,
    /// The permission boundary.
    pub boundary: Option<Arc<Policy>>,
    /// What was passed when the session began; an empty list allows nothing.
    pub session: Option<Vec<Arc<Policy>>>,
}

impl Identity {
    /// A principal with these policies.
    pub fn new(principal: Principal, policies: Vec<Arc<Policy>>) -> Self {
        Self { principal, policies, boundary: None, session: None }
    }
    /// Nobody.
    pub fn anonymous() -> Self {
        Self::new(Principal::anonymous(), Vec::new())
    }
    /// An account itself.
    pub fn root(account: &AccountId) -> Self {
        Self::new(Principal::root(account), Vec::new())
    }
    /// True where one of its policies asks for a condition key that begins like this.
    pub fn asks(&self, beginning: &str) -> bool {
        let session = self.session.iter().flatten();
        self.policies.iter().chain(&self.boundary).chain(session).any(|policy| policy.asks(beginning))
    }
}

/// What the request is for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// `s3:GetObject`.
    pub action: &'a str,
    /// The resource's ARN, or `*` where the action has none.
    pub resource: &'a str,
    /// Condition keys, but those of the principal, which are known: `aws:PrincipalArn`, `aws:PrincipalAccount`,
    /// `aws:PrincipalType`, `aws:PrincipalTag/...`, `aws:userid`, `aws:username`, `aws:ResourceAccount`, ...
    pub context: &'a Context,
}

/// What an ACL grants the caller for the action.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Acl {
    /// Nothing.
    #[default]
    None,
    /// The caller's account is a grantee.
    Account,
    /// Everyone is, or everyone who signs and the caller did.
    Public,
}

/// The resource's side.
#[derive(Debug, Clone, Copy, Default)]
pub struct Target<'a> {
    /// Whose the resource is; none means the caller's own account.
    pub owner: Option<&'a AccountId>,
    /// The policy on it.
    pub policy: Option<&'a Policy>,
    /// What its ACL grants.
    pub acl: Acl,
    /// True where identity policies alone do not suffice: trust policies of roles.
    pub must_allow: bool,
}

/// Where a decision was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// Identity policies.
    Identity,
    /// The resource's policy or ACL.
    Resource,
    /// The permission boundary.
    Boundary,
    /// Session policies.
    Session,
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It may be.
    Allowed,
    /// A statement forbids it.
    ExplicitDeny(Layer),
    /// No statement allows it.
    ImplicitDeny(Layer),
}

impl Decision {
    /// True where it may be.
    pub fn is_allowed(self) -> bool {
        self == Self::Allowed
    }
    /// What AWS adds to an `AccessDenied` message: why.
    pub fn why(self, action: &str) -> String {
        let noun = |layer| match layer {
            Layer::Identity => "identity-based policy",
            Layer::Resource => "resource-based policy",
            Layer::Boundary => "permissions boundary",
            Layer::Session => "session policy",
        };
        match self {
            Self::Allowed => String::new(),
            Self::ExplicitDeny(layer @ Layer::Identity) => format!("with an explicit deny in an {}", noun(layer)),
            Self::ExplicitDeny(layer) => format!("with an explicit deny in a {}", noun(layer)),
            Self::ImplicitDeny(layer) => format!("because no {} allows the {action} action", noun(layer)),
        }
    }
}

/// Decides a request.
///
/// ```
/// use karri_base::aws::policy::{Context, Decision, Identity, Layer, Policy, Principal, Request, Target, Use, decide};
/// let account = "123456789012".parse().unwrap();
/// let text = r#"{"Version": "2012-10-17", "Statement": {
///     "Effect": "Allow", "Action": "s3:Get*", "Resource": "arn:aws:s3:::home/${aws:username}/*"}}"#;
/// let policy = Policy::parse(text, Use::Managed).unwrap();
/// let bob = Identity::new(Principal::user(&account, "arn:aws:iam::123456789012:user/bob", "AIDABOB"), vec![policy.into()]);
/// let context = Context::default();
/// let mut request = Request { action: "s3:GetObject", resource: "arn:aws:s3:::home/bob/x", context: &context };
/// assert!(decide(&bob, &Target::default(), &request).is_allowed());
/// request.resource = "arn:aws:s3:::home/eve/x";
/// assert_eq!(decide(&bob, &Target::default(), &request), Decision::ImplicitDeny(Layer::Identity));
/// ```
pub fn decide(identity: &Identity, target: &Target<'_>, request: &Request<'_>) -> Decision {
    let who = &identity.principal;
    let asked = Asked { who, owner: target.owner, context: request.context };
    let look = |policies: &mut dyn Iterator<Item = &Policy>| look(policies, who, request, &asked);

    let by_resource = look(&mut target.policy.into_iter());
    if by_resource == Found::Deny {
        return Decision::ExplicitDeny(Layer::Resource);
    }
    if who.account.is_none() {
        // Nobody, services and providers have no policies of their own.
        let public = target.acl == Acl::Public && !target.must_allow;
        return match by_resource {
            Found::Allow(_) => Decision::Allowed,
            _ if public => Decision::Allowed,
            _ => Decision::ImplicitDeny(Layer::Resource),
        };
    }
    let is_root = who.kind == Kind::Root;
    let by_identity = match is_root {
        true => Found::Allow(Reach::Caller),
        false => look(&mut identity.policies.iter().map(|p| &**p)),
    };
    let by_boundary = match &identity.boundary {
        Some(boundary) if !is_root => look(&mut std::iter::once(&**boundary)),
        _ => Found::Allow(Reach::Caller),
    };
    let by_session = match &identity.session {
        Some(session) => look(&mut session.iter().map(|p| &**p)),
        None => Found::Allow(Reach::Caller),
    };
    let layers = [(by_identity, Layer::Identity), (by_boundary, Layer::Boundary), (by_session, Layer::Session)];
    if let Some((_, layer)) = layers.iter().find(|(found, _)| *found == Found::Deny) {
        return Decision::ExplicitDeny(*layer);
    }
    let limits = layers[1..].iter().find(|(found, _)| *found == Found::Nothing).map(|(_, layer)| *layer);
    let own = match (by_identity, limits) {
        (Found::Nothing, _) => Err(Layer::Identity),
        (_, Some(layer)) => Err(layer),
        (_, None) => Ok(()),
    };
    let reach = if let Found::Allow(reach) = by_resource { Some(reach) } else { None };
    let same_account = target.owner.is_none() || target.owner == who.account.as_ref();
    let granted = reach.is_some() || (!target.must_allow && target.acl != Acl::None);
    if same_account {
        let limited = reach == Some(Reach::Role) || (target.acl == Acl::Public && !target.must_allow);
        return match (reach, limits, own) {
            (Some(Reach::Caller), _, _) => Decision::Allowed,
            (_, None, _) if limited => Decision::Allowed,
            (None, _, _) if target.must_allow => Decision::ImplicitDeny(Layer::Resource),
            (_, _, Ok(())) => Decision::Allowed,
            (_, Some(layer), _) if limited => Decision::ImplicitDeny(layer),
            (_, _, Err(layer)) => Decision::ImplicitDeny(layer),
        };
    }
    match own {
        Err(layer) => Decision::ImplicitDeny(layer),
        Ok(()) if granted => Decision::Allowed,
        Ok(()) => Decision::ImplicitDeny(Layer::Resource),
    }
}

/// A statement that made a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matched {
    /// Of which layer.
    pub layer: Layer,
    /// Which of the layer's policies, from 0.
    pub policy: usize,
    /// Which of its statements, from 0.
    pub statement: usize,
}

/// The statements that made a decision: all that deny where one does, all that allow where it is allowed, else none.
pub fn deciding(identity: &Identity, target: &Target<'_>, request: &Request<'_>, decision: Decision) -> Vec<Matched> {
    let effect = match decision {
        Decision::Allowed => Effect::Allow,
        Decision::ExplicitDeny(_) => Effect::Deny,
        Decision::ImplicitDeny(_) => return Vec::new(),
    };
    let who = &identity.principal;
    let asked = Asked { who, owner: target.owner, context: request.context };
    let own: &[Arc<Policy>] = if who.kind == Kind::Root { &[] } else { &identity.policies };
    let boundary = identity.boundary.iter().filter(|_| who.kind != Kind::Root);
    let identity_layer = own.iter().enumerate().map(|(at, p)| (Layer::Identity, at, &**p));
    let resource_layer = target.policy.into_iter().map(|p| (Layer::Resource, 0, p));
    let boundary_layer = boundary.map(|p| (Layer::Boundary, 0, &**p));
    let session_layer = identity.session.iter().flatten().enumerate().map(|(at, p)| (Layer::Session, at, &**p));
    let mut out = Vec::new();
    for (layer, policy, document) in identity_layer.chain(resource_layer).chain(boundary_layer).chain(session_layer) {
        for (statement, read) in document.statements.iter().enumerate() {
            let applies = || read.applies(who, request.action, request.resource, &asked).is_some();
            if read.effect == effect && applies() {
                out.push(Matched { layer, policy, statement });
            }
        }
    }
    out
}

/// What policies of one layer say together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Deny,
    Allow(Reach),
    Nothing,
}

fn look(
    policies: &mut dyn Iterator<Item = &Policy>,
    who: &Principal,
    request: &Request<'_>,
    asked: &Asked<'_>,
) -> Found {
    let mut allowed: Option<Reach> = None;
    for statement in policies.flat_map(|policy| &policy.statements) {
        // An Allow that cannot go further than what is allowed already need not be looked at.
        if statement.effect == Effect::Allow && allowed == Some(Reach::Caller) {
            continue;
        }
        let Some(reach) = statement.applies(who, request.action, request.resource, asked) else { continue };
        match statement.effect {
            Effect::Deny => return Found::Deny,
            Effect::Allow => allowed = allowed.max(Some(reach)),
        }
    }
    allowed.map_or(Found::Nothing, Found::Allow)
}

/// A request's condition keys: those of the principal, then those that the service set.
struct Asked<'a> {
    who: &'a Principal,
    owner: Option<&'a AccountId>,
    context: &'a Context,
}

impl Asked<'_> {
    /// A key that follows from who asks: `Some(None)` where such a key has no value for this caller.
    fn of_principal(&self, key: &str) -> Option<Option<Cow<'_, str>>> {
        let name = key.get(..4).filter(|p| p.eq_ignore_ascii_case("aws:")).map(|_| &key[4..])?;
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
        let account = || self.who.account.as_ref().map(|a| Cow::Borrowed(a.as_str()));
        let flag = |flag: bool| Some(Cow::Borrowed(if flag { "true" } else { "false" }));
        let is_service = self.who.kind == Kind::Service;
        if name.get(..13).is_some_and(|p| p.eq_ignore_ascii_case("principaltag/")) {
            let tag = &name[13..];
            let found = self.who.tags.iter().find(|(k, _)| k.eq_ignore_ascii_case(tag));
            return Some(found.map(|(_, v)| Cow::Borrowed(v.as_str())));
        }
        Some(match () {
            () if is("PrincipalArn") => self.who.account.as_ref().map(|_| Cow::Borrowed(self.who.policy_arn())),
            () if is("PrincipalAccount") => account(),
            () if is("PrincipalType") => Some(Cow::Borrowed(self.who.type_name())),
            () if is("PrincipalIsAWSService") => flag(is_service),
            () if is("PrincipalServiceName") => is_service.then_some(Cow::Borrowed(self.who.arn.as_str())),
            () if is("userid") => Some(Cow::Borrowed(self.who.id.as_str())),
            () if is("username") => self.who.username().map(Cow::Borrowed),
            () if is("ResourceAccount") => self.owner.map(|a| Cow::Borrowed(a.as_str())).or_else(account),
            () => return None,
        })
    }
}

impl Variables for Asked<'_> {
    fn variable(&self, key: &str) -> Option<Cow<'_, str>> {
        match self.of_principal(key) {
            Some(value) => value,
            None => match self.who.keys.get(key).or_else(|| self.context.get(key)) {
                Some([one]) => Some(Cow::Borrowed(one)),
                _ => None,
            },
        }
    }
}

impl Values for Asked<'_> {
    fn values(&self, key: &str) -> Option<Cow<'_, [String]>> {
        match self.of_principal(key) {
            Some(value) => value.map(|v| Cow::Owned(vec![v.into_owned()])),
            None => self.who.keys.get(key).or_else(|| self.context.get(key)).map(Cow::Borrowed),
        }
    }
}
