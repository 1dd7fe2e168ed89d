//! Operations as policies and lists know them: one table from AWS's names to actions, resources and permissions.

use http::HeaderMap;

use crate::access::acl::Permission;

/// What kind of resource an action is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// No bucket in particular.
    Service,
    /// A bucket.
    Bucket,
    /// An object, of which something is put or taken: the bucket's list counts.
    Content,
    /// An object that is there: its own list counts.
    Object,
}

/// What an operation asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// IAM's name of the action.
    pub action: &'static str,
    /// Its name where the request names a version.
    pub versioned: &'static str,
    /// What it is about.
    pub level: Level,
    /// The permission by which a list allows it.
    pub permission: Option<Permission>,
}

impl Ask {
    /// An action on what is there by its own name.
    pub const fn new(action: &'static str, level: Level, permission: Option<Permission>) -> Self {
        Self { action, versioned: action, level, permission }
    }
    /// The action of a request.
    pub fn of(&self, versioned: bool) -> &'static str {
        if versioned { self.versioned } else { self.action }
    }
}

/// Reading an object: what GET, HEAD and a copy's source ask for.
pub const GET_OBJECT: Ask = Ask {
    action: "s3:GetObject",
    versioned: "s3:GetObjectVersion",
    level: Level::Object,
    permission: Some(Permission::Read),
};

/// Deleting an object or a version.
pub const DELETE_OBJECT: Ask = Ask {
    action: "s3:DeleteObject",
    versioned: "s3:DeleteObjectVersion",
    level: Level::Content,
    permission: Some(Permission::Write),
};

/// Putting a replica: what is asked besides of whoever says that an upload or a delete marker is one.
pub const REPLICATE_OBJECT: Ask = Ask::new("s3:ReplicateObject", Level::Content, None);

/// Overriding a retention in governance mode.
pub const BYPASS_GOVERNANCE: Ask = Ask::new("s3:BypassGovernanceRetention", Level::Content, None);

/// Knowing what is in a bucket: decides whether an absent object is absent or denied.
pub const LIST_BUCKET: Ask = Ask::new("s3:ListBucket", Level::Bucket, Some(Permission::Read));

/// Setting an object's list as it is put. Who may write into the bucket by its list may.
pub const SET_ACL: Ask = Ask::new("s3:PutObjectAcl", Level::Content, Some(Permission::Write));

/// Reading an object's tags: what a copy that takes them along asks of its source.
pub const GET_TAGGING: Ask = Ask {
    action: "s3:GetObjectTagging",
    versioned: "s3:GetObjectVersionTagging",
    level: Level::Object,
    permission: None,
};

/// Setting an object's tags as it is put.
pub const SET_TAGGING: Ask = Ask::new("s3:PutObjectTagging", Level::Content, Some(Permission::Write));

/// What an upload's or a new bucket's headers ask for besides: what they set has operations, and permissions, of its own.
pub fn besides(operation: &str, headers: &HeaderMap) -> Vec<Ask> {
    let value = |name: &str| headers.get(name).map(|v| v.as_bytes().trim_ascii()).filter(|v| !v.is_empty());
    let has = |name: &str| value(name).is_some();
    let grants = || headers.keys().any(|name| name.as_str().starts_with("x-amz-grant-"));
    let mut asks = Vec::new();
    match operation {
        "PutObject" | "CopyObject" | "CreateMultipartUpload" | "PostObject" => {
            let object = |action| Ask::new(action, Level::Content, Some(Permission::Write));
            if has("x-amz-acl") || grants() {
                asks.push(SET_ACL);
            }
            if has("x-amz-tagging") {
                asks.push(SET_TAGGING);
            }
            if has("x-amz-object-lock-mode") || has("x-amz-object-lock-retain-until-date") {
                asks.push(object("s3:PutObjectRetention"));
            }
            if has("x-amz-object-lock-legal-hold") {
                asks.push(object("s3:PutObjectLegalHold"));
            }
        }
        "CreateBucket" => {
            let service = |action| Ask::new(action, Level::Service, None);
            // What a bucket has without the header asks for nothing.
            let sets = |name: &str, unset: &str| value(name).is_some_and(|v| !v.eq_ignore_ascii_case(unset.as_bytes()));
            if sets("x-amz-acl", "private") || grants() {
                asks.push(service("s3:PutBucketAcl"));
            }
            if sets("x-amz-object-ownership", "ObjectWriter") {
                asks.push(service("s3:PutBucketOwnershipControls"));
            }
            if sets("x-amz-bucket-object-lock-enabled", "false") {
                asks.push(service("s3:PutBucketObjectLockConfiguration"));
                asks.push(service("s3:PutBucketVersioning"));
            }
        }
        _ => {}
    }
    asks
}

/// Whether an operation takes an object's tags from its headers, and whether its lock.
pub fn said_by_headers(operation: &str, headers: &HeaderMap) -> (bool, bool) {
    let puts = matches!(operation, "PutObject" | "CopyObject" | "CreateMultipartUpload" | "PostObject");
    // A copy has its source's tags unless it says otherwise.
    let replaces = || headers.get("x-amz-tagging-directive").is_some_and(|directive| directive == "REPLACE");
    (puts && (operation != "CopyObject" || replaces()), puts)
}

/// The condition keys that only the body of a request says, by their beginnings: where a policy asks for one, the
/// request is judged when its body is read ([`confirm`](crate::core::Core::confirm)).
pub fn said_by_body(operation: &str) -> &'static [&'static str] {
    match operation {
        "CreateBucket" => &["s3:LocationConstraint"],
        "PutObjectTagging" => &["s3:RequestObjectTag"],
        "PutObjectRetention" => &["s3:object-lock-"],
        "PutObjectLegalHold" => &["s3:object-lock-legal-hold"],
        _ => &[],
    }
}

/// What an operation asks for; `None` for those that are not known here, which are refused.
pub fn ask(operation: &str) -> Option<Ask> {
    use Level::{Bucket, Content, Object, Service};
    use Permission::{Read, ReadAcp, Write, WriteAcp};
    let plain = |action, level| Some(Ask::new(action, level, None));
    let with = |action, level, permission| Some(Ask::new(action, level, Some(permission)));
    let versions = |action, versioned, permission| Some(Ask { action, versioned, level: Object, permission });
    match operation {
        "ListBuckets" => plain("s3:ListAllMyBuckets", Service),
        "CreateBucket" => plain("s3:CreateBucket", Service),
        "HeadBucket" | "ListObjects" | "ListObjectsV2" => Some(LIST_BUCKET),
        "ListObjectVersions" => with("s3:ListBucketVersions", Bucket, Read),
        "ListMultipartUploads" => with("s3:ListBucketMultipartUploads", Bucket, Read),
        "GetBucketLocation" => plain("s3:GetBucketLocation", Bucket),
        "DeleteBucket" => plain("s3:DeleteBucket", Bucket),
        "GetBucketVersioning" => plain("s3:GetBucketVersioning", Bucket),
        "PutBucketVersioning" => plain("s3:PutBucketVersioning", Bucket),
        "GetObjectLockConfiguration" => plain("s3:GetBucketObjectLockConfiguration", Bucket),
        "PutObjectLockConfiguration" => plain("s3:PutBucketObjectLockConfiguration", Bucket),
        "PutObject"
        | "CopyObject"
        | "CreateMultipartUpload"
        | "UploadPart"
        | "UploadPartCopy"
        | "CompleteMultipartUpload"
        | "PostObject"
        | "RenameObject" => with("s3:PutObject", Content, Write),
        "AbortMultipartUpload" => with("s3:AbortMultipartUpload", Content, Write),
        "ListParts" => with("s3:ListMultipartUploadParts", Content, Read),
        "DeleteObject" => Some(DELETE_OBJECT),
        // Each key is judged for itself.
        "DeleteObjects" => None,
        "GetObject" | "HeadObject" | "GetObjectTorrent" | "SelectObjectContent" => Some(GET_OBJECT),
        "GetObjectAttributes" => versions("s3:GetObject", "s3:GetObjectVersion", Some(Read)),
        "GetObjectAcl" => versions("s3:GetObjectAcl", "s3:GetObjectVersionAcl", Some(ReadAcp)),
        "PutObjectAcl" => versions("s3:PutObjectAcl", "s3:PutObjectVersionAcl", Some(WriteAcp)),
        "GetObjectTagging" => Some(GET_TAGGING),
        "PutObjectTagging" => versions("s3:PutObjectTagging", "s3:PutObjectVersionTagging", None),
        "DeleteObjectTagging" => versions("s3:DeleteObjectTagging", "s3:DeleteObjectVersionTagging", None),
        "GetObjectRetention" => plain("s3:GetObjectRetention", Object),
        "PutObjectRetention" => plain("s3:PutObjectRetention", Object),
        "GetObjectLegalHold" => plain("s3:GetObjectLegalHold", Object),
        "PutObjectLegalHold" => plain("s3:PutObjectLegalHold", Object),
        "RestoreObject" => plain("s3:RestoreObject", Object),
        "GetBucketAcl" => with("s3:GetBucketAcl", Bucket, ReadAcp),
        "PutBucketAcl" => with("s3:PutBucketAcl", Bucket, WriteAcp),
        "GetBucketPolicy" => plain("s3:GetBucketPolicy", Bucket),
        "PutBucketPolicy" => plain("s3:PutBucketPolicy", Bucket),
        "DeleteBucketPolicy" => plain("s3:DeleteBucketPolicy", Bucket),
        "GetBucketPolicyStatus" => plain("s3:GetBucketPolicyStatus", Bucket),
        "GetBucketCors" => plain("s3:GetBucketCORS", Bucket),
        "PutBucketCors" | "DeleteBucketCors" => plain("s3:PutBucketCORS", Bucket),
        "GetBucketLifecycleConfiguration" => plain("s3:GetLifecycleConfiguration", Bucket),
        "PutBucketLifecycleConfiguration" | "DeleteBucketLifecycle" => plain("s3:PutLifecycleConfiguration", Bucket),
        "GetBucketTagging" => plain("s3:GetBucketTagging", Bucket),
        "PutBucketTagging" | "DeleteBucketTagging" => plain("s3:PutBucketTagging", Bucket),
        "GetPublicAccessBlock" => plain("s3:GetBucketPublicAccessBlock", Bucket),
        "PutPublicAccessBlock" | "DeletePublicAccessBlock" => plain("s3:PutBucketPublicAccessBlock", Bucket),
        "GetBucketOwnershipControls" => plain("s3:GetBucketOwnershipControls", Bucket),
        "PutBucketOwnershipControls" | "DeleteBucketOwnershipControls" => {
            plain("s3:PutBucketOwnershipControls", Bucket)
        }
        "GetBucketEncryption" => plain("s3:GetEncryptionConfiguration", Bucket),
        "PutBucketEncryption" | "DeleteBucketEncryption" => plain("s3:PutEncryptionConfiguration", Bucket),
        "GetBucketWebsite" => plain("s3:GetBucketWebsite", Bucket),
        "PutBucketWebsite" => plain("s3:PutBucketWebsite", Bucket),
        "DeleteBucketWebsite" => plain("s3:DeleteBucketWebsite", Bucket),
        "GetBucketLogging" => plain("s3:GetBucketLogging", Bucket),
        "PutBucketLogging" => plain("s3:PutBucketLogging", Bucket),
        "GetBucketNotificationConfiguration" => plain("s3:GetBucketNotification", Bucket),
        "PutBucketNotificationConfiguration" => plain("s3:PutBucketNotification", Bucket),
        "GetBucketReplication" => plain("s3:GetReplicationConfiguration", Bucket),
        "PutBucketReplication" | "DeleteBucketReplication" => plain("s3:PutReplicationConfiguration", Bucket),
        "GetBucketInventoryConfiguration" | "ListBucketInventoryConfigurations" => {
            plain("s3:GetInventoryConfiguration", Bucket)
        }
        "PutBucketInventoryConfiguration" | "DeleteBucketInventoryConfiguration" => {
            plain("s3:PutInventoryConfiguration", Bucket)
        }
        "GetBucketRequestPayment" => plain("s3:GetBucketRequestPayment", Bucket),
        "PutBucketRequestPayment" => plain("s3:PutBucketRequestPayment", Bucket),
        "GetBucketAccelerateConfiguration" => plain("s3:GetAccelerateConfiguration", Bucket),
        "PutBucketAccelerateConfiguration" => plain("s3:PutAccelerateConfiguration", Bucket),
        "GetBucketUsage" => plain("karri:GetBucketUsage", Bucket),
        "GetAccountUsage" => plain("karri:GetAccountUsage", Service),
        "ListStoreBuckets" => plain("karri:ListStoreBuckets", Service),
        "GetStoreReport" => plain("karri:GetStoreReport", Service),
        "CheckStore" => plain("karri:CheckStore", Service),
        "ReclaimStore" => plain("karri:ReclaimStore", Service),
        "GetBucketQuota" => plain("karri:GetBucketQuota", Bucket),
        "PutBucketQuota" => plain("karri:PutBucketQuota", Bucket),
        _ => None,
    }
}
