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
use crate::accesslog::{Batch, Logs, Place};
use crate::buckets::Known;
use crate::config::events::Logging;
use crate::config::simple::Ownership;
use crate::core::{Caller, CoreRef};
use crate::error::{Error, Kind, Result};
use crate::metrics::Metrics;
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
    let granted = |wanted: Permission| {
        let grants = target.settings.acl.iter().flat_map(|acl| &acl.0);
        let mut of_group = grants.filter(|g| g.grantee == Grantee::LogDelivery);
        of_group.any(|g| g.permission == wanted || g.permission == Permission::FullControl)
    };
    let lists = target.settings.ownership != Ownership::BucketOwnerEnforced;
    let listed = lists && granted(Permission::Write);
    let (allowed, denied) = says(target, SERVICE, (&logging.bucket, &logging.prefix), source, now);
    if !denied && (listed || allowed) {
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

/// True where the target's policy lets a service put objects of `source` at a place (bucket, prefix).
pub fn service_may_put(
    target: &Known,
    service: &str,
    place: (&str, &str),
    source: Source<'_>,
    now: UnixMicros,
) -> bool {
    let (allowed, denied) = says(target, service, place, source, now);
    allowed && !denied
}

/// What the target's policy says of a service that puts objects at a place: whether it lets it by its name, since what is
/// open to everybody was not opened for it; whether it denies it.
fn says(
    target: &Known,
    service: &str,
    (bucket, prefix): (&str, &str),
    source: Source<'_>,
    now: UnixMicros,
) -> (bool, bool) {
    let mut context = Context::default();
    context
        .text("aws:SourceArn", format!("arn:aws:s3:::{}", source.bucket))
        .text("aws:SourceAccount", source.account)
        .moment("aws:CurrentTime", now)
        .flag("aws:SecureTransport", true);
    // Policies name the prefix with or without `*` after it.
    let place = format!("arn:aws:s3:::{bucket}/{prefix}");
    let resources = [place.clone(), format!("{place}2026-01-01-00-00-00-0000000000000000")];
    let decisions = |service: &str| {
        let identity = Identity::new(Principal::service(service), Vec::new());
        resources.each_ref().map(|resource| {
            let request = Request { action: "s3:PutObject", resource, context: &context };
            let to = Target { owner: target.owner.as_ref(), policy: target.policy.as_ref(), ..Target::default() };
            decide(&identity, &to, &request)
        })
    };
    let ours = decisions(service);
    let denied = ours.iter().any(|d| matches!(d, Decision::ExplicitDeny(_)));
    let anybody = decisions("anybody.amazonaws.com");
    (ours.iter().zip(&anybody).any(|(our, any)| our.is_allowed() && !any.is_allowed()), denied)
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
    let (logs, metrics) = (&core.shared.logs, &core.shared.metrics);
    let mut taken = Taken { logs, metrics, left: logs.due(core.now(), roll) };
    while let Some((place, batch)) = taken.left.last() {
        let outcome = write(core, place, batch).await;
        let Some((place, batch)) = taken.left.pop() else { return };
        let (target, lines) = (place.target.clone(), batch.count());
        match outcome {
            Ok(()) => metrics.log_lines_written(lines),
            Err(error) if error.kind.status().is_server_error() && logs.give_back(place, batch) => {
                tracing::warn!(bucket = target, error = %error, "access logs could not be written; trying again");
            }
            Err(error) => {
                metrics.log_lines_lost(lines);
                tracing::warn!(bucket = target, lines, error = %error, "access logs are lost");
            }
        }
    }
}

/// Batches on their way out. What has not arrived when this is dropped, as by a stop, is back among the others.
struct Taken<'a> {
    logs: &'a Logs,
    metrics: &'a Metrics,
    left: Vec<(Place, Batch)>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        for (place, batch) in self.left.drain(..) {
            let lines = batch.count();
            if !self.logs.give_back(place, batch) {
                self.metrics.log_lines_lost(lines);
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
    // Put before the bucket blocked such lists.
    let blocks = known.settings.public_access.block_acls;
    let new_acl = new_acl.filter(|acl| !(blocks && acl.is_public()));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accesslog::Entry;

    #[test]
    fn what_was_taken_and_not_written_is_back() {
        let (logs, metrics) = (Logs::default(), Metrics::default());
        let logging = Logging { bucket: "t".into(), ..Logging::default() };
        let entry = |bucket: &str| Entry { bucket: bucket.into(), ..Entry::default() };
        assert!(logs.push(&entry("a"), &logging) && logs.push(&entry("b"), &logging));
        let mut taken = Taken { logs: &logs, metrics: &metrics, left: logs.due(UnixMicros(1), Duration::ZERO) };
        assert_eq!((taken.left.len(), logs.due(UnixMicros(1), Duration::ZERO).len()), (2, 0));
        let written = taken.left.pop().unwrap().0.source;
        drop(taken);
        let back = logs.due(UnixMicros(1), Duration::ZERO);
        assert!(back.len() == 1 && back[0].0.source != written && back[0].1.count() == 1, "{back:?}");
    }
}
