//! GetObjectAcl and PutObjectAcl.

use karri_bulk::BulkStore;

use crate::access::acl::{Acl, Owners, Permission};
use crate::config::Doc;
use crate::config::simple::Ownership;
use crate::core::Teller;
use crate::error::{Error, Kind, Result};
use crate::ops::configure::asked_acl;
use crate::record::{Bucket, Object};
use crate::route::{Answer, Asked};
use crate::versions::{Which, id_shown};

/// GetObjectAcl.
pub async fn get<B: BulkStore>(asked: &Asked<'_, B>) -> Result<Answer> {
    let known = asked.core.known(asked.bucket).await?;
    let which = Which::new(asked.version)?;
    let object = asked.core.version_to_read(known.bucket().id, asked.key, which).await?.seen.value;
    asked.core.again(asked.caller).await?.judge(&object)?;
    let shown = id_shown(known.bucket(), &object);
    let enforced = known.settings.ownership == Ownership::BucketOwnerEnforced;
    let (owner, acl) = match (enforced, object.acl) {
        (true, _) => (known.bucket().owner.clone(), None),
        (false, acl) => (object.owner, acl),
    };
    let acl = acl.unwrap_or_else(|| Acl::private(&owner));
    Ok(of_version(Answer::xml(acl.to_xml(&owner, asked.core.people())), shown))
}

/// PutObjectAcl: the record changes, the object's time does not.
pub async fn put<B: BulkStore>(asked: &Asked<'_, B>) -> Result<Answer> {
    let known = asked.core.known(asked.bucket).await?;
    let bucket = known.bucket();
    if known.settings.ownership == Ownership::BucketOwnerEnforced {
        return Err(Kind::AccessControlListNotSupported.into());
    }
    let which = Which::new(asked.version)?;
    let list = |object: &Object| {
        let acl = asked_acl(asked, Owners { owner: &object.owner, bucket_owner: Some(&bucket.owner) })?;
        if acl.is_public() && known.settings.public_access.block_acls {
            return Err(Error::from(Kind::AccessDenied));
        }
        Ok(acl)
    };
    let seen = asked.core.version_to_read(bucket.id, asked.key, which).await?.seen.value;
    let again = asked.core.again(asked.caller).await?;
    again.judge(&seen)?;
    // An owner who withholds something from himself: from now on the bucket's objects' lists are looked at.
    let withheld = !list(&seen)?.allows(Some(&seen.owner), Permission::FullControl, true);
    if withheld && !bucket.documents.has(Doc::Shared) {
        let share = |bucket: &mut Bucket| {
            bucket.documents.set(Doc::Shared, Some(bytes::Bytes::new()));
            Ok(())
        };
        asked.core.change_bucket(asked.caller, asked.bucket, None, share).await?;
    }
    let change = |object: &mut Object| {
        again.judge(object)?;
        let acl = list(object)?;
        object.acl = (!acl.is_private(&object.owner)).then_some(acl);
        Ok(())
    };
    let teller = Teller { caller: asked.caller, bucket: asked.bucket, name: "ObjectAcl:Put" };
    let object = asked.core.change_version(bucket.id, asked.key, which, teller, change).await?;
    Ok(of_version(Answer::done(), id_shown(bucket, &object)))
}

fn of_version(mut answer: Answer, shown: Option<String>) -> Answer {
    let id = shown.and_then(|id| http::HeaderValue::from_str(&id).ok());
    answer.headers.extend(id.map(|id| (http::HeaderName::from_static("x-amz-version-id"), id)));
    answer
}
