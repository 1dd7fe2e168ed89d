//! What a bucket is configured to do, read and changed: one function per operation over the sub-documents of
//! [`crate::config`]. Every change is one checked commit of the bucket's record.

use bytes::Bytes;
use karri_base::aws::policy::{Policy, PolicyError, Use};
use karri_bulk::BulkStore;

use crate::access::acl::{Acl, Owners};
use crate::access::public;
use crate::config::events::{self, Logging};
use crate::config::simple::{self, Ownership, PublicAccess, Quota, Tags};
use crate::config::{Doc, cors, inventory, lifecycle, website};
use crate::delivery;
use crate::error::{Error, Kind, Result};
use crate::ops::{object_acl, store};
use crate::record::Bucket;
use crate::route::{Answer, Asked};
use crate::usage::Amount;
use crate::xml::Out;

/// Tags of one bucket.
const TAGS_MAX: usize = 50;
/// A log target's longest prefix: what follows it fits into a key.
const LOG_PREFIX_MAX: usize = 800;
/// Configurations of one list (S3's own limit).
const INVENTORY_PAGE: usize = 100;
/// A CORS document's longest (S3's own limit).
const CORS_MAX: usize = 64 << 10;

/// Carries out an operation.
///
/// # Errors
/// The operation's own; `NotImplemented` for one that is not known here.
pub async fn call<B: BulkStore>(operation: &'static str, asked: &Asked<'_, B>) -> Result<Answer> {
    let text = || std::str::from_utf8(asked.document).map_err(|_| Error::from(Kind::MalformedXml));
    match operation {
        "GetBucketAcl" => get_acl(asked).await,
        "PutBucketAcl" => put_acl(asked).await,
        "GetObjectAcl" => object_acl::get(asked).await,
        "PutObjectAcl" => object_acl::put(asked).await,
        "GetBucketPolicy" => {
            let policy = stored(asked, Doc::Policy).await?.ok_or(Kind::NoSuchBucketPolicy)?;
            let text = String::from_utf8(policy.to_vec()).map_err(|_| Kind::InternalError)?;
            Ok(Answer { body: Some(("application/json", text)), ..Answer::default() })
        }
        "PutBucketPolicy" => put_policy(asked, text()?).await,
        "DeleteBucketPolicy" => {
            change(asked, |bucket| {
                bucket.documents.set(Doc::Policy, None);
                bucket.documents.set(Doc::PolicyBindsRoot, None);
                Ok(())
            })
            .await?;
            Ok(Answer::gone())
        }
        "GetBucketPolicyStatus" => policy_status(asked).await,
        "GetBucketCors" => xml(asked, Doc::Cors, Kind::NoSuchCorsConfiguration).await,
        "PutBucketCors" => {
            if asked.document.len() > CORS_MAX {
                return Err(Kind::MaxMessageLengthExceeded.into());
            }
            put(asked, Doc::Cors, cors::to_xml(&cors::parse(asked.document)?)).await
        }
        "DeleteBucketCors" => remove(asked, Doc::Cors).await,
        "GetBucketLifecycleConfiguration" => xml(asked, Doc::Lifecycle, Kind::NoSuchLifecycleConfiguration).await,
        "PutBucketLifecycleConfiguration" => {
            let rules = lifecycle::parse(asked.document)?;
            lifecycle::check_classes(&rules)?;
            put(asked, Doc::Lifecycle, lifecycle::to_xml(&rules)).await
        }
        "DeleteBucketLifecycle" => remove(asked, Doc::Lifecycle).await,
        "GetBucketTagging" => xml(asked, Doc::Tagging, Kind::NoSuchTagSet).await,
        "PutBucketTagging" => {
            let tags = Tags::parse(asked.document, TAGS_MAX)?;
            put(asked, Doc::Tagging, tags.to_xml()).await?;
            Ok(Answer::gone())
        }
        "DeleteBucketTagging" => remove(asked, Doc::Tagging).await,
        "GetPublicAccessBlock" => xml(asked, Doc::PublicAccess, Kind::NoSuchPublicAccessBlockConfiguration).await,
        "PutPublicAccessBlock" => put(asked, Doc::PublicAccess, PublicAccess::parse(asked.document)?.to_xml()).await,
        "DeletePublicAccessBlock" => remove(asked, Doc::PublicAccess).await,
        "GetBucketOwnershipControls" => xml(asked, Doc::Ownership, Kind::OwnershipControlsNotFound).await,
        "PutBucketOwnershipControls" => put_ownership(asked).await,
        "DeleteBucketOwnershipControls" => remove(asked, Doc::Ownership).await,
        "GetBucketWebsite" => xml(asked, Doc::Website, Kind::NoSuchWebsiteConfiguration).await,
        "PutBucketWebsite" => put(asked, Doc::Website, website::to_xml(&website::parse(asked.document)?)).await,
        "DeleteBucketWebsite" => remove(asked, Doc::Website).await,
        "GetBucketLogging" => or_default(asked, Doc::Logging, || Logging::to_xml(None)).await,
        "PutBucketLogging" => put_logging(asked).await,
        "GetBucketNotificationConfiguration" => or_default(asked, Doc::Notification, || events::to_xml(&[])).await,
        "PutBucketNotificationConfiguration" => put_notification(asked).await,
        "GetBucketReplication" => xml(asked, Doc::Replication, Kind::ReplicationConfigurationNotFound).await,
        "PutBucketReplication" => put(asked, Doc::Replication, super::replication::checked(asked).await?).await,
        "DeleteBucketReplication" => remove(asked, Doc::Replication).await,
        "GetBucketInventoryConfiguration" => {
            let kept = stored(asked, Doc::Inventory).await?;
            Ok(Answer::xml(inventory::get(kept.as_deref(), &inventory_id(asked)?)?))
        }
        "ListBucketInventoryConfigurations" => {
            let kept = stored(asked, Doc::Inventory).await?;
            let after = parameter(asked, "continuation-token");
            Ok(Answer::xml(inventory::list(kept.as_deref(), after, INVENTORY_PAGE)?))
        }
        "PutBucketInventoryConfiguration" => {
            let id = inventory_id(asked)?;
            change(asked, |bucket| {
                let kept = inventory::put(bucket.documents.get(Doc::Inventory).map(|d| &d[..]), &id, asked.document)?;
                bucket.documents.set(Doc::Inventory, Some(kept.into()));
                Ok(())
            })
            .await?;
            Ok(Answer::done())
        }
        "DeleteBucketInventoryConfiguration" => {
            let id = inventory_id(asked)?;
            change(asked, |bucket| {
                let kept = inventory::remove(bucket.documents.get(Doc::Inventory).map(|d| &d[..]), &id)?;
                bucket.documents.set(Doc::Inventory, kept.map(Bytes::from));
                Ok(())
            })
            .await?;
            Ok(Answer::gone())
        }
        "GetBucketRequestPayment" => or_default(asked, Doc::Payment, || simple::payment_xml(false)).await,
        "PutBucketRequestPayment" => {
            put(asked, Doc::Payment, simple::payment_xml(simple::payment(asked.document)?)).await
        }
        "GetBucketAccelerateConfiguration" => or_default(asked, Doc::Accelerate, || simple::accelerate_xml(None)).await,
        "PutBucketAccelerateConfiguration" => {
            let status = simple::accelerate(asked.document)?;
            if asked.bucket.contains('.') {
                return Err(Error::new(
                    Kind::InvalidRequest,
                    "S3 Transfer Acceleration is not supported for buckets with periods (.) in their names",
                ));
            }
            if status == "Enabled" {
                return Err(Error::new(
                    Kind::NotImplemented,
                    "S3 Transfer Acceleration cannot be enabled on this bucket: there are no edge locations to send data through.",
                ));
            }
            put(asked, Doc::Accelerate, simple::accelerate_xml(Some(&status))).await
        }
        "GetBucketQuota" => or_default(asked, Doc::Quota, || Quota::default().to_xml()).await,
        "PutBucketQuota" => {
            let quota = Quota::parse(asked.document)?;
            let text = (!quota.is_none()).then(|| quota.to_xml().into());
            set(asked, Doc::Quota, text).await
        }
        "GetBucketUsage" => {
            let known = asked.core.known(asked.bucket).await?;
            let used = asked.core.meter(known.bucket().id).await?.total();
            Ok(Answer::xml(Out::document("BucketUsage", |out| usage(out, used, known.settings.quota))))
        }
        "GetAccountUsage" => {
            let account = asked.caller.account();
            let buckets = asked.core.usage_by_bucket(account).await?;
            let total = buckets.iter().fold(Amount::default(), |sum, b| sum + b.used);
            let quota = asked.core.shared.quota_of(account).unwrap_or_default();
            Ok(Answer::xml(Out::document("AccountUsage", |out| {
                usage(out, total, quota);
                for bucket in &buckets {
                    out.element("Bucket", |out| {
                        out.text("Name", &bucket.name);
                        usage(out, bucket.used, bucket.quota);
                    });
                }
            })))
        }
        "ListStoreBuckets" | "GetStoreReport" | "CheckStore" | "ReclaimStore" => store::call(operation, asked).await,
        _ => Err(Kind::NotImplemented.into()),
    }
}

/// A parameter of the request.
fn parameter<'a, B: BulkStore>(asked: &'a Asked<'_, B>, name: &str) -> Option<&'a str> {
    let query = &asked.caller.leave.facts.query;
    query.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
}

fn inventory_id<B: BulkStore>(asked: &Asked<'_, B>) -> Result<String> {
    let id = parameter(asked, "id").map(str::to_owned);
    id.ok_or_else(|| Error::new(Kind::InvalidArgument, "The request names no configuration: id is missing."))
}

/// What is used, and what may be.
pub(crate) fn usage(out: &mut Out, used: Amount, quota: Quota) {
    out.text("Objects", &used.objects.max(0).to_string());
    out.text("Bytes", &used.bytes.max(0).to_string());
    quota.write(out);
}

async fn stored<B: BulkStore>(asked: &Asked<'_, B>, doc: Doc) -> Result<Option<Bytes>> {
    Ok(asked.core.known(asked.bucket).await?.bucket().documents.get(doc).cloned())
}

async fn xml<B: BulkStore>(asked: &Asked<'_, B>, doc: Doc, absent: Kind) -> Result<Answer> {
    let document = stored(asked, doc).await?.ok_or(absent)?;
    Ok(Answer::xml(String::from_utf8(document.to_vec()).map_err(|_| Kind::InternalError)?))
}

async fn or_default<B: BulkStore>(asked: &Asked<'_, B>, doc: Doc, default: impl Fn() -> String) -> Result<Answer> {
    match stored(asked, doc).await? {
        None => Ok(Answer::xml(default())),
        Some(_) => xml(asked, doc, Kind::InternalError).await,
    }
}

async fn change<B: BulkStore>(asked: &Asked<'_, B>, change: impl Fn(&mut Bucket) -> Result<()>) -> Result<()> {
    asked.core.change_bucket(asked.caller, asked.bucket, None, change).await.map(drop)
}

async fn set<B: BulkStore>(asked: &Asked<'_, B>, doc: Doc, value: Option<Bytes>) -> Result<Answer> {
    change(asked, |bucket| {
        bucket.documents.set(doc, value.clone());
        Ok(())
    })
    .await?;
    Ok(Answer::done())
}

async fn put<B: BulkStore>(asked: &Asked<'_, B>, doc: Doc, text: String) -> Result<Answer> {
    set(asked, doc, Some(text.into())).await
}

async fn remove<B: BulkStore>(asked: &Asked<'_, B>, doc: Doc) -> Result<Answer> {
    if stored(asked, doc).await?.is_some() {
        set(asked, doc, None).await?;
    }
    Ok(Answer::gone())
}

async fn get_acl<B: BulkStore>(asked: &Asked<'_, B>) -> Result<Answer> {
    let known = asked.core.known(asked.bucket).await?;
    let owner = &known.bucket().owner;
    let acl = known.settings.acl.clone().unwrap_or_else(|| Acl::private(owner));
    Ok(Answer::xml(acl.to_xml(owner, asked.core.people())))
}

/// The list that a PutBucketAcl or PutObjectAcl says, in headers or in its body.
pub fn asked_acl<B: BulkStore>(asked: &Asked<'_, B>, owners: Owners<'_>) -> Result<Acl> {
    let people = asked.core.people();
    match (Acl::of_headers(asked.headers, owners, people)?, asked.document.is_empty()) {
        (Some(_), false) => Err(Kind::UnexpectedContent.into()),
        (Some(acl), true) => Ok(acl),
        (None, false) => Acl::of_xml(asked.document, owners.owner, people),
        (None, true) => Err(Kind::MissingSecurityHeader.into()),
    }
}

async fn put_acl<B: BulkStore>(asked: &Asked<'_, B>) -> Result<Answer> {
    let known = asked.core.known(asked.bucket).await?;
    let owner = known.bucket().owner.clone();
    let acl = asked_acl(asked, Owners { owner: &owner, bucket_owner: None })?;
    if known.settings.ownership == Ownership::BucketOwnerEnforced {
        return Err(Kind::AccessControlListNotSupported.into());
    }
    if acl.is_public() && known.settings.public_access.block_acls {
        return Err(Kind::AccessDenied.into());
    }
    change(asked, |bucket| {
        set_acl(bucket, &acl);
        Ok(())
    })
    .await?;
    Ok(Answer::done())
}

/// Sets a bucket's list.
pub fn set_acl(bucket: &mut Bucket, acl: &Acl) {
    let value = (!acl.is_private(&bucket.owner)).then(|| Bytes::from(acl.encode()));
    if acl.is_shared(&bucket.owner) {
        bucket.documents.set(Doc::Shared, Some(Bytes::new()));
    }
    bucket.documents.set(Doc::Acl, value);
}

async fn put_policy<B: BulkStore>(asked: &Asked<'_, B>, text: &str) -> Result<Answer> {
    let policy = Policy::parse(text, Use::Bucket).map_err(|e| match e {
        PolicyError::Malformed(why) => Error::new(Kind::MalformedPolicy, why),
        PolicyError::TooLarge { .. } => Kind::PolicyTooLarge.into(),
    })?;
    check_policy(&policy, asked.bucket)?;
    let known = asked.core.known(asked.bucket).await?;
    if known.settings.public_access.block_policy && public::is_public(&policy) {
        return Err(Kind::AccessDenied.into());
    }
    let confirmed = asked.headers.get("x-amz-confirm-remove-self-bucket-access");
    let confirmed = confirmed.and_then(|v| v.to_str().ok()).is_some_and(|v| v.eq_ignore_ascii_case("true"));
    change(asked, |bucket| {
        bucket.documents.set(Doc::Policy, Some(Bytes::copy_from_slice(text.as_bytes())));
        bucket.documents.set(Doc::Shared, Some(Bytes::new()));
        bucket.documents.set(Doc::PolicyBindsRoot, confirmed.then(Bytes::new));
        Ok(())
    })
    .await?;
    Ok(Answer::gone())
}

/// What S3 asks of a bucket's policy beyond the language's grammar.
fn check_policy(policy: &Policy, bucket: &str) -> Result<()> {
    use karri_base::aws::policy::Effect;
    use karri_base::aws::policy::document::These;
    let wrong = |why: &'static str| Err(Error::new(Kind::MalformedPolicy, why));
    for statement in &policy.statements {
        if statement.effect == Effect::Allow && matches!(statement.principals, Some(These::AllBut(_))) {
            return wrong("Allow with NotPrincipal is not allowed.");
        }
        for resource in statement.resources.iter().flat_map(These::listed) {
            let named = resource.text.strip_prefix("arn:aws:s3:::").and_then(|r| r.split('/').next());
            let is_ours = resource.text == "*" || named.is_some_and(|n| n == bucket || n.contains(['*', '?', '$']));
            if !is_ours {
                return wrong("Policy has invalid resource");
            }
        }
    }
    Ok(())
}

async fn policy_status<B: BulkStore>(asked: &Asked<'_, B>) -> Result<Answer> {
    let known = asked.core.known(asked.bucket).await?;
    let blocked = known.settings.public_access;
    let by_acl = known.settings.acl.as_ref().is_some_and(Acl::is_public) && !blocked.ignore_acls;
    let by_policy = known.policy_is_public && !blocked.restrict;
    Ok(Answer::xml(Out::document("PolicyStatus", |out| {
        out.text("IsPublic", if by_acl || by_policy { "true" } else { "false" });
    })))
}

async fn put_ownership<B: BulkStore>(asked: &Asked<'_, B>) -> Result<Answer> {
    let ownership = Ownership::parse(asked.document)?;
    let known = asked.core.known(asked.bucket).await?;
    let owner = &known.bucket().owner;
    let shares = known.settings.acl.as_ref().is_some_and(|acl| acl.is_shared(owner));
    if ownership == Ownership::BucketOwnerEnforced && shares {
        return Err(Kind::InvalidBucketAclWithObjectOwnership.into());
    }
    put(asked, Doc::Ownership, ownership.to_xml()).await
}

async fn put_notification<B: BulkStore>(asked: &Asked<'_, B>) -> Result<Answer> {
    let notifications = events::parse(asked.document)?;
    events::check(asked.document, &notifications)?;
    let owner = asked.core.known(asked.bucket).await?.bucket().owner.clone();
    asked.core.check_notifications(&notifications, &owner)?;
    put(asked, Doc::Notification, events::to_xml(&notifications)).await?;
    let id = &asked.caller.leave.facts.request_id;
    asked.core.tell_test(&notifications, &owner, asked.bucket, id).await?;
    Ok(Answer::done())
}

async fn put_logging<B: BulkStore>(asked: &Asked<'_, B>) -> Result<Answer> {
    let logging = Logging::parse(asked.document)?;
    let Some(logging) = logging else { return set(asked, Doc::Logging, None).await };
    let source = asked.core.known(asked.bucket).await?;
    let wrong = |why: String| Error::new(Kind::InvalidTargetBucketForLogging, why);
    let target = match asked.core.known(&logging.bucket).await {
        Err(e) if e.kind == Kind::NoSuchBucket => {
            return Err(wrong("The target bucket for logging does not exist".into()));
        }
        other => other?,
    };
    if target.bucket().owner != source.bucket().owner {
        return Err(wrong("The owner for the bucket to be logged and the target bucket must be the same".into()));
    }
    if logging.prefix.len() > LOG_PREFIX_MAX {
        return Err(Error::new(Kind::InvalidArgument, "The target prefix is too long."));
    }
    let owner = &source.bucket().owner;
    if let Some(grants) = &logging.grants {
        if target.settings.ownership == Ownership::BucketOwnerEnforced {
            return Err(Kind::InvalidBucketAclWithObjectOwnership.into());
        }
        let acl = delivery::acl(grants, owner, asked.core.people())?;
        if acl.is_public() && target.settings.public_access.block_acls {
            return Err(Error::new(Kind::AccessDenied, "The target bucket blocks public access control lists."));
        }
    }
    let from = delivery::Source { bucket: asked.bucket, account: owner };
    delivery::may_write(&target, &logging, from, asked.core.now())?;
    put(asked, Doc::Logging, Logging::to_xml(Some(&logging))).await
}
