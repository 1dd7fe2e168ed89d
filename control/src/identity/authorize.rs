//! The question that every request of the cloud is asked: may this caller do this to these resources?

use std::net::IpAddr;
use std::sync::Arc;

use karri_base::aws::keys::Key;
use karri_base::aws::policy::{Context, Identity, Request, Target, decide};
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
        context.flag("aws:SecureTransport", false).text("aws:RequestedRegion", self.region.as_str());
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
        for resource in resources {
            let target = Target { owner: Some(self.account()), ..Target::default() };
            let decision = decide(&self.identity, &target, &Request { action, resource, context });
            self.decisions.note(resource, decision.is_allowed());
            if !decision.is_allowed() {
                return Err(self.refused(action, resource, &decision.why(action)));
            }
        }
        Ok(())
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

/// EC2's parameters that name resources, and what kinds these are.
const EC2_PARAMETERS: &[(&str, &str)] = &[
    ("InstanceId", "instance"),
    ("VolumeId", "volume"),
    ("ImageId", "image"),
    ("KeyName", "key-pair"),
    ("KeyPairId", "key-pair"),
    ("ResourceId", ""),
];

/// The resources that an EC2 request is about, by its parameters; `*` for those that describe, as in AWS.
pub fn ec2_resources(action: &str, tree: &Tree, region: &str, account: &AccountId) -> Vec<String> {
    if action.starts_with("Describe") {
        return vec!["*".into()];
    }
    let arn = |kind: &str, id: &str| {
        let owner = if kind == "image" { "" } else { account.as_str() };
        format!("arn:aws:ec2:{region}:{owner}:{kind}/{id}")
    };
    let mut out = Vec::new();
    for (name, kind) in EC2_PARAMETERS {
        for value in tree.peek(name) {
            let kind = if kind.is_empty() { kind_of(value) } else { *kind };
            out.push(arn(kind, value));
        }
    }
    match action {
        "RunInstances" => out.extend([arn("instance", "*"), arn("volume", "*")]),
        "CreateVolume" => out.push(arn("volume", "*")),
        "RegisterImage" => out.push(arn("image", "*")),
        _ => {}
    }
    if out.is_empty() {
        out.push("*".into());
    }
    out
}

fn kind_of(id: &str) -> &'static str {
    match id.split('-').next() {
        Some("i") => "instance",
        Some("vol") => "volume",
        Some("ami" | "aki" | "ari") => "image",
        Some("key") => "key-pair",
        Some("snap") => "snapshot",
        _ => "*",
    }
}

/// The condition keys of a request's parameters: tags, and what EC2's policies ask for most.
pub fn parameters_context(context: &mut Context, tree: &Tree) {
    for (name, value) in tree.flat() {
        // TagSpecification.1.Tag.2.Key, Tag.1.Key, Tags.member.1.Key
        let Some(stem) = name.strip_suffix(".Key") else { continue };
        if stem.contains("Tag") {
            context.add("aws:TagKeys", value);
            if let Some(tag) = tree.at(&format!("{stem}.Value")) {
                context.text(&format!("aws:RequestTag/{value}"), tag);
            }
        }
    }
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
