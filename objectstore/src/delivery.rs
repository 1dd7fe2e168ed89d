//! Writes access logs into their target buckets, as the service `logging.s3.amazonaws.com`.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Uri};
use karri_base::aws::policy::{Context, Decision, Identity, Principal, Request, Target, decide};
use karri_base::clock::UnixMicros;
use karri_bulk::BulkStore;
use s3s::S3Request;
use s3s::dto::PutObjectInput;

use crate::access::Leave;
use crate::access::acl::{Acl, Grant, Grantee, Permission};
use crate::access::people::People;
use crate::accesslog::{Batch, Place};
use crate::buckets::Known;
use crate::config::events::Logging;
use crate::config::simple::Ownership;
use crate::core::{Caller, CoreRef};
use crate::error::{Error, Kind, Result};
use crate::ops::put;
use crate::xml::{Element, Out};

/// Who writes logs.
const SERVICE: &str = "logging.s3.amazonaws.com";

/// The bucket whose logs they are.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Its name.
    pub bucket: &'a str,
    /// Its owner.
    pub account: &'a str,
}

/// Checks that logs of `source` may be written into the target: by its policy, or by the log delivery group's grants.
///
/// # Errors
/// `AccessDenied`.
pub fn may_write(target: &Known, logging: &Logging, source: Source<'_>, now: UnixMicros) -> Result<()> {
    let mut context = Context::default();
    context
        .text("aws:SourceArn", format!("arn:aws:s3:::{}", source.bucket))
        .text("aws:SourceAccount", source.account)
        .moment("aws:CurrentTime", now)
        .flag("aws:SecureTransport", true);
    let granted = |wanted: Permission| {
        let grants = target.settings.acl.iter().flat_map(|acl| &acl.0);
        let mut of_group = grants.filter(|g| g.grantee == Grantee::LogDelivery);
        of_group.any(|g| g.permission == wanted || g.permission == Permission::FullControl)
    };
    let lists = target.settings.ownership != Ownership::BucketOwnerEnforced;
    let listed = lists && granted(Permission::Write);
    // Policies name the prefix with or without `*` after it.
    let place = format!("arn:aws:s3:::{}/{}", logging.bucket, logging.prefix);
    let resources = [place.clone(), format!("{place}2026-01-01-00-00-00-0000000000000000")];
    let decisions = |service: &str| {
        let identity = Identity::new(Principal::service(service), Vec::new());
        resources.each_ref().map(|resource| {
            let request = Request { action: "s3:PutObject", resource, context: &context };
            let to = Target { owner: target.owner.as_ref(), policy: target.policy.as_ref(), ..Target::default() };
            decide(&identity, &to, &request)
        })
    };
    let ours = decisions(SERVICE);
    let denied = ours.iter().any(|d| matches!(d, Decision::ExplicitDeny(_)));
    // By its name: what is open to everybody was not opened for logs.
    let by_name = || {
        let anybody = decisions("anybody.amazonaws.com");
        ours.iter().zip(&anybody).any(|(our, any)| our.is_allowed() && !any.is_allowed())
    };
    if !denied && (listed || by_name()) {
        return Ok(());
    }
    Err(Error::new(
        Kind::AccessDenied,
        format!(
            "Access Denied: neither the policy of the bucket {:?} lets {SERVICE} put objects at {:?} nor does its list let the \
             log delivery group write.",
            logging.bucket, logging.prefix
        ),
    ))
}

/// The list of log objects that TargetGrants say; the owner has all.
///
/// # Errors
/// As [`Acl::of_xml`].
pub fn acl(grants: &Element, owner: &str, people: &dyn People) -> Result<Acl> {
    let document = Out::document("AccessControlPolicy", |out| {
        out.element("AccessControlList", |out| grants.children.iter().for_each(|grant| out.copy(grant)));
    });
    let mut acl = Acl::of_xml(document.as_bytes(), owner, people)?;
    let all = Grant { grantee: Grantee::Account(owner.to_owned()), permission: Permission::FullControl };
    if !acl.0.contains(&all) {
        acl.0.insert(0, all);
    }
    Ok(acl)
}

/// Writes the logs that are due.
pub async fn deliver<B: BulkStore>(core: &CoreRef<B>, roll: Duration) {
    for (place, batch) in core.shared.logs.due(core.now(), roll) {
        let lines = batch.count();
        let target = place.target.clone();
        match write(core, &place, &batch).await {
            Ok(()) => core.shared.metrics.log_lines_written(lines),
            Err(error) if error.kind.status().is_server_error() && core.shared.logs.give_back(place, batch) => {
                tracing::warn!(bucket = target, error = %error, "access logs could not be written; trying again");
            }
            Err(error) => {
                core.shared.metrics.log_lines_lost(lines);
                tracing::warn!(bucket = target, lines, error = %error, "access logs are lost");
            }
        }
    }
}

async fn write<B: BulkStore>(core: &CoreRef<B>, place: &Place, batch: &Batch) -> Result<()> {
    let known = core.known(&place.target).await?;
    let owner = known.bucket().owner.clone();
    let source = Source { bucket: &place.source, account: &place.account };
    if owner != place.account {
        return Err(Error::new(Kind::AccessDenied, "The target bucket belongs to another account."));
    }
    may_write(&known, &batch.logging, source, core.now())?;
    let lists = known.settings.ownership != Ownership::BucketOwnerEnforced;
    let grants = batch.logging.grants.as_ref().filter(|_| lists);
    let new_acl = grants.map(|grants| acl(grants, &owner, core.people())).transpose()?;
    let leave = Leave { buckets: vec![place.target.clone()], new_owner: Some(owner), new_acl, ..Leave::default() };
    let caller = Caller { key: None, leave: Arc::new(leave) };
    let key = place.key(&batch.logging, &core.shared.region, core.now(), rand::random());
    let body = batch.body();
    let mut headers = HeaderMap::new();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    let input = PutObjectInput {
        bucket: place.target.clone(),
        key,
        content_length: Some(body.len() as i64),
        body: Some(s3s::Body::from(body).into()),
        ..PutObjectInput::default()
    };
    let request = S3Request {
        input,
        method: Method::PUT,
        uri: Uri::default(),
        headers,
        extensions: http::Extensions::default(),
        credentials: None,
        region: None,
        service: None,
        trailing_headers: None,
    };
    put::put_object(core, &caller, request).await.map(drop)
}
