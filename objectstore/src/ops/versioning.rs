//! PutBucketVersioning, GetBucketVersioning, PutObjectLockConfiguration, GetObjectLockConfiguration.

use karri_bulk::BulkStore;
use s3s::dto::{
    BucketVersioningStatus, DefaultRetention, GetBucketVersioningInput, GetBucketVersioningOutput,
    GetObjectLockConfigurationInput, GetObjectLockConfigurationOutput, MFADelete, ObjectLockConfiguration,
    ObjectLockEnabled, ObjectLockRetentionMode, ObjectLockRule, PutBucketVersioningInput, PutBucketVersioningOutput,
    PutObjectLockConfigurationInput, PutObjectLockConfigurationOutput,
};

use crate::config::Doc;
use crate::core::{Access, Caller, CoreRef};
use crate::error::{Error, Kind, Result};
use crate::record::{BucketLock, Mode, Period, Versioning};

/// The longest default retention that S3 takes: 100 years.
const YEARS_MAX: i32 = 100;
/// The same in days.
const DAYS_MAX: i32 = 36_500;

/// PutBucketVersioning.
pub async fn put_bucket_versioning<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: PutBucketVersioningInput,
) -> Result<PutBucketVersioningOutput> {
    let asked = &input.versioning_configuration;
    if asked.mfa_delete.as_ref().is_some_and(|m| m.as_str() != MFADelete::DISABLED) {
        return Err(Error::new(Kind::NotImplemented, "MFA delete is not supported."));
    }
    let versioning = match asked.status.as_ref().map(BucketVersioningStatus::as_str) {
        Some(BucketVersioningStatus::ENABLED) => Versioning::Enabled,
        Some(BucketVersioningStatus::SUSPENDED) => Versioning::Suspended,
        Some(_) => return Err(Kind::MalformedXml.into()),
        None => return Err(Kind::IllegalVersioningConfiguration.into()),
    };
    let owner = input.expected_bucket_owner.as_deref();
    core.change_bucket(caller, &input.bucket, owner, |bucket| {
        if versioning == Versioning::Suspended && bucket.lock.is_some() {
            return Err(Error::new(
                Kind::InvalidBucketState,
                "An Object Lock configuration is present on this bucket, so the versioning state cannot be changed.",
            ));
        }
        if versioning == Versioning::Suspended && bucket.documents.has(Doc::Replication) {
            return Err(Error::new(
                Kind::InvalidBucketState,
                "A replication configuration is present on this bucket, so the versioning state cannot be changed. To \
                 change the versioning state, first delete the replication configuration.",
            ));
        }
        bucket.versioning = versioning;
        Ok(())
    })
    .await?;
    Ok(PutBucketVersioningOutput {})
}

/// GetBucketVersioning; a bucket that never kept versions has an empty answer.
pub async fn get_bucket_versioning<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: GetBucketVersioningInput,
) -> Result<GetBucketVersioningOutput> {
    let owner = input.expected_bucket_owner.as_deref();
    let bucket = core.bucket(caller, &input.bucket, owner, Access::Read).await?;
    let status = match bucket.value.versioning {
        Versioning::Never => None,
        Versioning::Enabled => Some(BucketVersioningStatus::ENABLED),
        Versioning::Suspended => Some(BucketVersioningStatus::SUSPENDED),
    };
    Ok(GetBucketVersioningOutput { status: status.map(BucketVersioningStatus::from_static), ..Default::default() })
}

/// PutObjectLockConfiguration: enables object lock where versions are kept, and sets the default retention.
pub async fn put_object_lock_configuration<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: PutObjectLockConfigurationInput,
) -> Result<PutObjectLockConfigurationOutput> {
    let lock = bucket_lock(&input.object_lock_configuration.ok_or(Kind::MalformedXml)?)?;
    let owner = input.expected_bucket_owner.as_deref();
    core.change_bucket(caller, &input.bucket, owner, |bucket| {
        if bucket.versioning != Versioning::Enabled {
            return Err(Error::new(
                Kind::InvalidBucketState,
                "Versioning must be 'Enabled' on the bucket to apply a Object Lock configuration",
            ));
        }
        bucket.lock = Some(lock);
        Ok(())
    })
    .await?;
    Ok(PutObjectLockConfigurationOutput::default())
}

fn bucket_lock(asked: &ObjectLockConfiguration) -> Result<BucketLock> {
    let enabled = asked.object_lock_enabled.as_ref().map(ObjectLockEnabled::as_str);
    if enabled.is_some_and(|e| e != ObjectLockEnabled::ENABLED) {
        return Err(Kind::MalformedXml.into());
    }
    let Some(rule) = &asked.rule else { return Ok(BucketLock::default()) };
    let default = rule.default_retention.as_ref().ok_or(Kind::MalformedXml)?;
    let mode = default.mode.as_ref().and_then(|m| Mode::from_name(m.as_str())).ok_or(Kind::MalformedXml)?;
    let too_odd = || Error::new(Kind::InvalidRetentionPeriod, "Default retention period must be a positive integer.");
    let period = match (default.days, default.years) {
        (Some(n @ 1..=DAYS_MAX), None) => Period::Days(n.unsigned_abs()),
        (None, Some(n @ 1..=YEARS_MAX)) => Period::Years(n.unsigned_abs()),
        (Some(_), Some(_)) | (None, None) => return Err(Kind::MalformedXml.into()),
        (Some(_), None) | (None, Some(_)) => return Err(too_odd()),
    };
    Ok(BucketLock { default: Some((mode, period)) })
}

/// GetObjectLockConfiguration.
pub async fn get_object_lock_configuration<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: GetObjectLockConfigurationInput,
) -> Result<GetObjectLockConfigurationOutput> {
    let owner = input.expected_bucket_owner.as_deref();
    let bucket = core.bucket(caller, &input.bucket, owner, Access::Read).await?;
    let lock = bucket.value.lock.ok_or(Kind::ObjectLockConfigurationNotFound)?;
    let rule = lock.default.map(|(mode, period)| {
        let (days, years) = match period {
            Period::Days(n) => (Some(n as i32), None),
            Period::Years(n) => (None, Some(n as i32)),
        };
        let mode = Some(ObjectLockRetentionMode::from_static(mode.name()));
        ObjectLockRule { default_retention: Some(DefaultRetention { days, mode, years }) }
    });
    let object_lock_enabled = Some(ObjectLockEnabled::from_static(ObjectLockEnabled::ENABLED));
    Ok(GetObjectLockConfigurationOutput {
        object_lock_configuration: Some(ObjectLockConfiguration { object_lock_enabled, rule }),
    })
}
