//! The question that every request of the cloud is asked: may this caller do this to these resources?

use std::net::IpAddr;
use std::sync::Arc;

use karri_base::aws::keys::Key;
use karri_base::aws::policy::{Context, Identity, Policy, Request, Target, decide};
use karri_base::clock::UnixMicros;
use karri_base::id::AccountId;

use crate::audit::Decisions;
use crate::cloud::error::{ApiError, ApiResult, Code};
use crate::wire::Tree;

/// Who signed a request, and from where.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The key.
    pub key: Arc<Key>,
    /// Who that is and what limits them.
    pub identity: Arc<Identity>,
    /// The connection's other end, where there is one.
    pub source: Option<IpAddr>,
    /// True over TLS.
    pub secure: bool,
    /// When it came.
    pub now: UnixMicros,
    /// The region of answers.
    pub region: String,
    /// What was decided, for the audit log.
    pub decisions: Decisions,
}

/// From where a request came that nobody signed.
#[derive(Debug, Clone)]
pub struct Unsigned {
    /// The connection's other end, where there is one.
    pub source: Option<IpAddr>,
    /// True over TLS.
    pub secure: bool,
    /// When it came.
    pub now: UnixMicros,
    /// The region of answers.
    pub region: String,
    /// What was decided, for the audit log.
    pub decisions: Decisions,
}

impl Caller {
    /// The account that asks.
    pub fn account(&self) -> &AccountId {
        &self.key.account
    }

    /// The condition keys that every request has.
    pub fn context(&self) -> Context {
        let mut context = Context::default();
        context.moment("aws:CurrentTime", self.now).moment("aws:EpochTime", self.now);
        context.flag("aws:SecureTransport", self.secure).text("aws:RequestedRegion", self.region.as_str());
        if let Some(source) = self.source {
            context.address("aws:SourceIp", source);
        }
        context
    }

    /// Asks for each of the resources; the first that is refused counts.
    ///
    /// # Errors
    /// `UnauthorizedOperation` (EC2) or `AccessDenied`, with AWS's words.
    pub fn may(&self, action: &str, resources: &[String], context: &Context) -> ApiResult<()> {
        resources.iter().try_for_each(|resource| self.may_by(action, resource, context, None))
    }

    /// As [`may`](Self::may), of a resource of the caller's account that has a policy of its own.
    ///
    /// # Errors
    /// As [`may`](Self::may).
    pub fn may_by(&self, action: &str, resource: &str, context: &Context, policy: Option<&Policy>) -> ApiResult<()> {
        let target = Target { owner: Some(self.account()), policy, ..Target::default() };
        let decision = decide(&self.identity, &target, &Request { action, resource, context });
        self.decisions.note(resource, decision.is_allowed());
        if decision.is_allowed() { Ok(()) } else { Err(self.refused(action, resource, &decision.why(action))) }
    }

    /// The error of a refused request.
    pub fn refused(&self, action: &str, resource: &str, why: &str) -> ApiError {
        let arn = &self.key.arn;
        let words = format!("User: {arn} is not authorized to perform: {action} on resource: {resource} {why}");
        match action.starts_with("ec2:") {
            true => {
                let message = format!("You are not authorized to perform this operation. {words}");
                ApiError::new(Code::UnauthorizedOperation, message)
            }
            false => ApiError::new(Code::AccessDenied, words),
        }
    }
}

/// Tags of one request, over all that it tags: each is compared with all others.
const TAGS_MAX: usize = 1000;

/// A tag that a request gives to something.
#[derive(Debug)]
pub struct Given<'t> {
    /// EC2's kind of what is tagged, from `TagSpecification.N.ResourceType`; none: what the request is about.
    kind: Option<&'t str>,
    key: &'t str,
    value: &'t str,
}

/// The tags of `TagSpecification.1.Tag.2.Key`, `Tag.1.Key`, `Tags.member.1.Key` and their values.
pub fn tags_given(tree: &Tree) -> Vec<Given<'_>> {
    let mut out = Vec::new();
    for (name, key) in tree.flat() {
        let Some(stem) = name.strip_suffix(".Key").filter(|stem| stem.contains("Tag")) else { continue };
        let mut parts = stem.split('.');
        let kind = match (parts.next(), parts.next()) {
            (Some("TagSpecification"), Some(n)) => tree.at(&format!("TagSpecification.{n}.ResourceType")),
            _ => None,
        };
        out.push(Given { kind, key, value: tree.at(&format!("{stem}.Value")).unwrap_or_default() });
    }
    out
}

/// Adds the tags that go to this kind of resource (`""`: to any), and says whether there are some. Condition keys do not
/// tell case apart, so no two tags of one resource may differ in nothing else: one would be judged, the other kept.
///
/// # Errors
/// `InvalidParameterValue`.
pub fn tags_context(context: &mut Context, tags: &[Given<'_>], kind: &str) -> ApiResult<bool> {
    if tags.len() > TAGS_MAX {
        let message = format!("A request gives at most {TAGS_MAX} tags");
        return Err(ApiError::new(Code::InvalidParameterValue, message));
    }
    let mut keys: Vec<(Option<&str>, String)> = Vec::new();
    for tag in tags.iter().filter(|tag| kind.is_empty() || tag.kind.is_none_or(|k| k == kind)) {
        let place = (tag.kind.filter(|_| kind.is_empty()), tag.key.to_lowercase());
        if keys.contains(&place) {
            return Err(ApiError::new(
                Code::InvalidParameterValue,
                format!("Duplicate tag key '{}' specified: keys must differ in more than case.", tag.key),
            ));
        }
        keys.push(place);
        context.add("aws:TagKeys", tag.key);
        context.text(&format!("aws:RequestTag/{}", tag.key), tag.value);
    }
    Ok(!keys.is_empty())
}

/// The condition keys of a request's parameters that policies ask for most.
pub fn parameters_context(context: &mut Context, tree: &Tree) {
    for (parameter, key) in [("InstanceType", "ec2:InstanceType"), ("Encrypted", "ec2:Encrypted")] {
        if let Some(value) = tree.at(parameter) {
            context.text(key, value);
        }
    }
    for (parameter, key) in [("PermissionsBoundary", "iam:PermissionsBoundary"), ("PolicyArn", "iam:PolicyARN")] {
        if let Some(value) = tree.at(parameter) {
            context.text(key, value);
        }
    }
}
