//! PutBucketReplication: what is checked beyond the document itself.

use karri_base::aws::arn::Arn;
use karri_bulk::BulkStore;

use crate::access::actions::{GET_OBJECT, REPLICATE_OBJECT};
use crate::config::replication::{self, Rule};
use crate::error::{Error, Kind, Result};
use crate::record::{Bucket, Versioning};
use crate::replicate::local::may_replicate;
use crate::route::Asked;

/// The document to keep, if both sides are as replication needs them and the caller may send objects there.
///
/// # Errors
/// What is wrong with the document; `InvalidRequest`, `InvalidArgument`, `AccessDenied`.
pub async fn checked<B: BulkStore>(asked: &Asked<'_, B>) -> Result<String> {
    let text = replication::canonical(asked.document)?;
    let rules = replication::parse(text.as_bytes())?;
    let source = asked.core.known(asked.bucket).await?;
    let bucket = source.bucket();
    if bucket.versioning != Versioning::Enabled {
        return Err(invalid("Versioning must be 'Enabled' on the bucket to apply a replication configuration"));
    }
    let role: Option<Arn> = rules.role.parse().ok();
    let is_role = role.is_some_and(|arn| {
        arn.service == "iam"
            && arn.account == bucket.owner
            && arn.resource.strip_prefix("role/").is_some_and(|n| !n.is_empty())
    });
    if !is_role {
        return Err(Error::new(
            Kind::InvalidArgument,
            format!("{:?} is no ARN of a role of the bucket's account.", rules.role),
        ));
    }
    // What is replicated leaves the bucket without its policy being asked again: only its own account may arrange that, and
    // only somebody who may read it.
    if asked.caller.account() != bucket.owner {
        return Err(Error::new(Kind::AccessDenied, "Only the bucket's own account may have it replicated."));
    }
    for rule in &rules.rules {
        asked.core.may(asked.caller, GET_OBJECT, asked.bucket, &rule.prefix, None).await?;
        check(asked, bucket, &rules.role, rule).await?;
    }
    Ok(text)
}

async fn check<B: BulkStore>(asked: &Asked<'_, B>, source: &Bucket, role: &str, rule: &Rule) -> Result<()> {
    let absent = || invalid("Destination bucket must exist.");
    if let Some(name) = &rule.to.remote {
        let remotes = asked.core.shared.operator.get().map(|operator| &operator.remotes);
        let remote = remotes.and_then(|all| all.get(name)).ok_or_else(absent)?;
        // As if it were not there: nobody learns of others' remotes.
        return if remote.serves(&source.owner) { Ok(()) } else { Err(absent()) };
    }
    if rule.to.bucket == asked.bucket {
        return Err(invalid("Destination bucket cannot be the same as the source bucket."));
    }
    let target = match asked.core.known(&rule.to.bucket).await {
        Err(e) if e.kind == Kind::NoSuchBucket => return Err(absent()),
        other => other?,
    };
    if target.bucket().versioning != Versioning::Enabled {
        return Err(invalid("Destination bucket must have versioning enabled."));
    }
    if source.lock.is_some() && target.bucket().lock.is_none() {
        return Err(invalid("Destination bucket must have Object Lock enabled, as the source bucket has."));
    }
    if rule.to.account.as_ref().is_some_and(|account| *account != target.bucket().owner) {
        return Err(invalid("The destination bucket does not belong to the account that the rule names."));
    }
    may_replicate(&target, (&rule.to.bucket, &rule.prefix), role, &source.owner, asked.core.now())?;
    if target.bucket().owner == source.owner {
        // The role may all that the account may, so whoever hands it out must be allowed to do the same.
        asked.core.may(asked.caller, REPLICATE_OBJECT, &rule.to.bucket, &rule.prefix, None).await?;
    }
    Ok(())
}

fn invalid(what: &'static str) -> Error {
    Error::new(Kind::InvalidRequest, what)
}
