//! Retention and legal hold: PutObjectRetention, GetObjectRetention, PutObjectLegalHold, GetObjectLegalHold, and the
//! headers that give a new version its own.

use karri_base::aws::policy::Context;
use karri_base::clock::UnixMicros;
use karri_bulk::BulkStore;
use s3s::dto::{
    GetObjectLegalHoldInput, GetObjectLegalHoldOutput, GetObjectRetentionInput, GetObjectRetentionOutput,
    ObjectLockLegalHold, ObjectLockLegalHoldStatus, ObjectLockMode, ObjectLockRetention, ObjectLockRetentionMode,
    PutObjectLegalHoldInput, PutObjectLegalHoldOutput, PutObjectRetentionInput, PutObjectRetentionOutput, Timestamp,
};
use time::OffsetDateTime;

use crate::access::actions::BYPASS_GOVERNANCE;
use crate::access::context;
use crate::core::{Access, Caller, CoreRef, Teller};
use crate::error::{Error, Kind, Result};
use crate::ops::get::timestamp;
use crate::record::{Bucket, Mode, Object, ObjectLock, Retention};
use crate::versions::Which;

const NO_LOCK: &str = "Bucket is missing Object Lock Configuration";

/// The object lock that a PUT, COPY or CreateMultipartUpload asks for in its headers.
pub fn asked(
    bucket: &Bucket,
    now: UnixMicros,
    mode: Option<&ObjectLockMode>,
    until: Option<&Timestamp>,
    hold: Option<&ObjectLockLegalHoldStatus>,
) -> Result<ObjectLock> {
    let retention = match (mode, until) {
        (None, None) => None,
        (Some(mode), Some(until)) => {
            let mode = Mode::from_name(mode.as_str())
                .ok_or_else(|| Error::new(Kind::InvalidArgument, "Unknown wormMode directive."))?;
            Some(Retention { mode, until: future(now, until)? })
        }
        _ => {
            return Err(Error::new(
                Kind::InvalidArgument,
                "x-amz-object-lock-retain-until-date and x-amz-object-lock-mode must both be supplied",
            ));
        }
    };
    let hold = hold
        .map(|h| {
            on_or_off(h.as_str())
                .ok_or_else(|| Error::new(Kind::InvalidArgument, "Legal Hold must be either of 'ON' or 'OFF'"))
        })
        .transpose()?;
    if bucket.lock.is_none() && (retention.is_some() || hold.is_some()) {
        return Err(Error::new(Kind::InvalidRequest, NO_LOCK));
    }
    Ok(ObjectLock { retention, hold })
}

fn on_or_off(text: &str) -> Option<bool> {
    match text {
        ObjectLockLegalHoldStatus::ON => Some(true),
        ObjectLockLegalHoldStatus::OFF => Some(false),
        _ => None,
    }
}

fn future(now: UnixMicros, until: &Timestamp) -> Result<UnixMicros> {
    let micros = OffsetDateTime::from(until.clone()).unix_timestamp_nanos() / 1_000;
    match u64::try_from(micros) {
        Ok(micros) if micros > now.0 => Ok(UnixMicros(micros)),
        _ => Err(Error::new(Kind::InvalidArgument, "The retain until date must be in the future!")),
    }
}

/// x-amz-object-lock-mode, -retain-until-date and -legal-hold of a version.
pub fn fields(object: &Object) -> (Option<ObjectLockMode>, Option<Timestamp>, Option<ObjectLockLegalHoldStatus>) {
    let mode = object.lock.retention.map(|r| ObjectLockMode::from_static(r.mode.name()));
    let until = object.lock.retention.and_then(|r| timestamp(r.until));
    (mode, until, object.lock.hold.map(hold_status))
}

fn hold_status(on: bool) -> ObjectLockLegalHoldStatus {
    ObjectLockLegalHoldStatus::from_static(if on {
        ObjectLockLegalHoldStatus::ON
    } else {
        ObjectLockLegalHoldStatus::OFF
    })
}

/// Judges a change of retention: longer is always allowed, anything else needs a bypass of governance, and compliance
/// can only be made longer.
fn check_change(old: Option<Retention>, new: Option<Retention>, now: UnixMicros, bypass: bool) -> Result<()> {
    let Some(old) = old.filter(|r| r.until > now) else { return Ok(()) };
    let longer = new.is_some_and(|n| n.mode == old.mode && n.until >= old.until);
    if longer || (old.mode == Mode::Governance && bypass) {
        return Ok(());
    }
    Err(Error::new(Kind::AccessDenied, "Access Denied because object protected by object lock."))
}

/// PutObjectRetention.
pub async fn put_object_retention<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: PutObjectRetentionInput,
) -> Result<PutObjectRetentionOutput> {
    let owner = input.expected_bucket_owner.as_deref();
    let bucket = core.bucket(caller, &input.bucket, owner, Access::Write).await?;
    let now = core.now();
    let asked = input.retention.ok_or(Kind::MalformedXml)?;
    let new = match (asked.mode, asked.retain_until_date) {
        (None, None) => None,
        (Some(mode), Some(until)) => {
            let mode = Mode::from_name(mode.as_str()).ok_or(Kind::MalformedXml)?;
            Some(Retention { mode, until: future(now, &until)? })
        }
        _ => return Err(Kind::MalformedXml.into()),
    };
    let bypass = input.bypass_governance_retention.unwrap_or(false);
    let version = input.version_id.as_deref();
    if bypass {
        core.may(caller, BYPASS_GOVERNANCE, &input.bucket, &input.key, version).await?;
    }
    let told = |context: &mut Context| context::retention(context, new.as_ref().map(|r| (r.mode.name(), r.until)), now);
    let again = core.confirm(caller, &input.bucket, told).await?;
    if bucket.value.lock.is_none() {
        return Err(Error::new(Kind::InvalidRequest, NO_LOCK));
    }
    let which = Which::new(version)?;
    let teller = Teller { caller, bucket: &input.bucket, name: "" };
    core.change_version(bucket.value.id, &input.key, which, teller, |object| {
        again.judge(object)?;
        check_change(object.lock.retention, new, now, bypass)?;
        object.lock.retention = new;
        Ok(())
    })
    .await?;
    Ok(PutObjectRetentionOutput::default())
}

/// GetObjectRetention.
pub async fn get_object_retention<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: GetObjectRetentionInput,
) -> Result<GetObjectRetentionOutput> {
    let owner = input.expected_bucket_owner.as_deref();
    let bucket = core.bucket(caller, &input.bucket, owner, Access::Read).await?;
    if bucket.value.lock.is_none() {
        return Err(Error::new(Kind::InvalidRequest, NO_LOCK));
    }
    let at = core.version_to_read(bucket.value.id, &input.key, Which::new(input.version_id.as_deref())?).await?;
    core.again(caller).await?.judge(&at.seen.value)?;
    let retention = at.seen.value.lock.retention.ok_or(Kind::NoSuchObjectLockConfiguration)?;
    Ok(GetObjectRetentionOutput {
        retention: Some(ObjectLockRetention {
            mode: Some(ObjectLockRetentionMode::from_static(retention.mode.name())),
            retain_until_date: timestamp(retention.until),
        }),
    })
}

/// PutObjectLegalHold.
pub async fn put_object_legal_hold<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: PutObjectLegalHoldInput,
) -> Result<PutObjectLegalHoldOutput> {
    let owner = input.expected_bucket_owner.as_deref();
    let bucket = core.bucket(caller, &input.bucket, owner, Access::Write).await?;
    let status = input.legal_hold.and_then(|h| h.status).ok_or(Kind::MalformedXml)?;
    let hold = on_or_off(status.as_str()).ok_or(Kind::MalformedXml)?;
    let told = |context: &mut Context| {
        context.text(context::LEGAL_HOLD, status.as_str());
    };
    let again = core.confirm(caller, &input.bucket, told).await?;
    if bucket.value.lock.is_none() {
        return Err(Error::new(Kind::InvalidRequest, NO_LOCK));
    }
    let which = Which::new(input.version_id.as_deref())?;
    let teller = Teller { caller, bucket: &input.bucket, name: "" };
    core.change_version(bucket.value.id, &input.key, which, teller, |object| {
        again.judge(object)?;
        object.lock.hold = Some(hold);
        Ok(())
    })
    .await?;
    Ok(PutObjectLegalHoldOutput::default())
}

/// GetObjectLegalHold.
pub async fn get_object_legal_hold<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: GetObjectLegalHoldInput,
) -> Result<GetObjectLegalHoldOutput> {
    let owner = input.expected_bucket_owner.as_deref();
    let bucket = core.bucket(caller, &input.bucket, owner, Access::Read).await?;
    if bucket.value.lock.is_none() {
        return Err(Error::new(Kind::InvalidRequest, NO_LOCK));
    }
    let at = core.version_to_read(bucket.value.id, &input.key, Which::new(input.version_id.as_deref())?).await?;
    core.again(caller).await?.judge(&at.seen.value)?;
    let hold = at.seen.value.lock.hold.ok_or(Kind::NoSuchObjectLockConfiguration)?;
    Ok(GetObjectLegalHoldOutput { legal_hold: Some(ObjectLockLegalHold { status: Some(hold_status(hold)) }) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_changes() {
        let r = |mode, until| Some(Retention { mode, until: UnixMicros(until) });
        use Mode::{Compliance, Governance};
        let check = |old, new, bypass, allowed| {
            let now = UnixMicros(10);
            assert_eq!(check_change(old, new, now, bypass).is_ok(), allowed, "{old:?} {new:?} {bypass}");
        };
        check(None, r(Governance, 20), false, true);
        check(r(Governance, 20), r(Governance, 30), false, true);
        check(r(Governance, 20), r(Governance, 15), false, false);
        check(r(Governance, 20), r(Governance, 15), true, true);
        check(r(Governance, 20), None, true, true);
        check(r(Governance, 20), r(Compliance, 20), false, false);
        check(r(Governance, 20), r(Compliance, 20), true, true);
        check(r(Compliance, 20), r(Compliance, 30), false, true);
        check(r(Compliance, 20), r(Compliance, 19), true, false);
        check(r(Compliance, 20), r(Governance, 30), true, false);
        check(r(Compliance, 9), r(Governance, 15), false, true);
    }
}
