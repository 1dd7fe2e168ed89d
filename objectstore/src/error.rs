//! What can go wrong in Walrus, and the one table from it to S3's error codes.

use std::borrow::Cow;

use http::{HeaderMap, StatusCode};
use karri_bulk::BulkError;
use karri_meta::MetaError;
use s3s::{S3Error, S3ErrorCode};

use crate::record::codec::Damage;

/// The outcome of an operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// To match on, and the row of the table.
    pub kind: Kind,
    /// For the client.
    pub message: Cow<'static, str>,
    /// For the log: what lies below.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
    /// Headers of the answer (a 304 has some).
    pub headers: Option<Box<HeaderMap>>,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident => $code:literal, $status:literal, $message:literal;)*) => {
        /// The situations, each named as S3 names it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// S3's code.
            pub fn code(self) -> &'static str {
                match self { $(Self::$kind => $code,)* }
            }
            /// The situation with this code.
            pub fn of_code(code: &str) -> Option<Self> {
                [$(Self::$kind),*].into_iter().find(|kind| kind.code() == code)
            }
            /// The HTTP status.
            pub fn status(self) -> StatusCode {
                let status: u16 = match self { $(Self::$kind => $status,)* };
                StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }
            /// What is said when there is nothing more to say.
            pub fn message(self) -> &'static str {
                match self { $(Self::$kind => $message,)* }
            }
        }
    };
}

kinds! {
    /// The caller may not.
    AccessDenied => "AccessDenied", 403, "Access Denied";
    /// The authorization header or query cannot be read.
    AuthorizationHeaderMalformed => "AuthorizationHeaderMalformed", 400, "The authorization header that you provided is not valid.";
    /// A presigned URL's parameters are wrong.
    AuthorizationQueryParametersError => "AuthorizationQueryParametersError", 400, "The query parameters of the presigned URL are not valid.";
    /// A digest that came with the body does not match the body.
    BadDigest => "BadDigest", 400, "The Content-MD5 or checksum value that you specified did not match what the server received.";
    /// The name is taken by somebody else.
    BucketAlreadyExists => "BucketAlreadyExists", 409, "The requested bucket name is not available. The bucket namespace is shared by all users of the system. Specify a different name and try again.";
    /// The name is taken by the caller.
    BucketAlreadyOwnedByYou => "BucketAlreadyOwnedByYou", 409, "The bucket that you tried to create already exists, and you own it.";
    /// There are objects in it.
    BucketNotEmpty => "BucketNotEmpty", 409, "The bucket that you tried to delete is not empty.";
    /// Two conditional writes at once, again and again.
    ConditionalRequestConflict => "ConditionalRequestConflict", 409, "The conditional request cannot succeed due to a conflicting operation against this resource.";
    /// Larger than one request may be.
    EntityTooLarge => "EntityTooLarge", 400, "Your proposed upload exceeds the maximum allowed object size.";
    /// A part that is not the last is below 5 MiB.
    EntityTooSmall => "EntityTooSmall", 400, "Your proposed upload is smaller than the minimum allowed object size.";
    /// Fewer bytes came than were promised.
    IncompleteBody => "IncompleteBody", 400, "You did not provide the number of bytes specified by the Content-Length HTTP header.";
    /// Our side failed.
    InternalError => "InternalError", 500, "An internal error occurred. Try again.";
    /// The key id is unknown or no longer active.
    InvalidAccessKeyId => "InvalidAccessKeyId", 403, "The AWS access key ID that you provided does not exist in our records.";
    /// Versioning or object lock forbids it.
    InvalidBucketState => "InvalidBucketState", 409, "The request is not valid for the current state of the bucket.";
    /// Neither enabled nor suspended.
    IllegalVersioningConfiguration => "IllegalVersioningConfigurationException", 400, "The versioning configuration specified in the request is not valid.";
    /// Server-side encryption with another algorithm.
    InvalidEncryptionAlgorithm => "InvalidEncryptionAlgorithmError", 400, "The encryption request that you specified is not valid. The valid value is AES256.";
    /// The bucket has no default encryption.
    NoEncryptionConfiguration => "ServerSideEncryptionConfigurationNotFoundError", 404, "The server-side encryption configuration was not found.";
    /// A default retention that is no positive number.
    InvalidRetentionPeriod => "InvalidRetentionPeriod", 400, "The retention period must be a positive integer value.";
    /// No class at all, or an archive, which there is none of.
    InvalidStorageClass => "InvalidStorageClass", 400, "The storage class you specified is not valid.";
    /// Tags that S3 does not take.
    InvalidTag => "InvalidTag", 400, "The tag provided was not a valid tag.";
    /// A parameter's value.
    InvalidArgument => "InvalidArgument", 400, "Invalid Argument";
    /// A bucket's name breaks the rules.
    InvalidBucketName => "InvalidBucketName", 400, "The specified bucket is not valid.";
    /// A digest is not Base64 of its length.
    InvalidDigest => "InvalidDigest", 400, "The Content-MD5 or checksum value that you specified is not valid.";
    /// Another region's constraint.
    InvalidLocationConstraint => "InvalidLocationConstraint", 400, "The specified location constraint is not valid.";
    /// Complete names a part that is not there, or with another ETag.
    InvalidPart => "InvalidPart", 400, "One or more of the specified parts could not be found. The part might not have been uploaded, or the specified ETag might not have matched the uploaded part's ETag.";
    /// Complete's list is not ascending.
    InvalidPartOrder => "InvalidPartOrder", 400, "The list of parts was not in ascending order. The parts list must be specified in order by part number.";
    /// Nothing of the range is in the object.
    InvalidRange => "InvalidRange", 416, "The requested range is not satisfiable.";
    /// The request contradicts itself.
    InvalidRequest => "InvalidRequest", 400, "The request is not valid.";
    /// Above 1,024 bytes.
    KeyTooLong => "KeyTooLongError", 400, "Your key is too long.";
    /// XML that is not what the operation takes.
    MalformedXml => "MalformedXML", 400, "The XML that you provided was not well formed or did not validate against our published schema.";
    /// User metadata above 2 KiB.
    MetadataTooLarge => "MetadataTooLarge", 400, "Your metadata headers exceed the maximum allowed metadata size.";
    /// The method does not fit the resource.
    MethodNotAllowed => "MethodNotAllowed", 405, "The specified method is not allowed against this resource.";
    /// No length was given.
    MissingContentLength => "MissingContentLength", 411, "You must provide the Content-Length HTTP header.";
    /// No such bucket.
    NoSuchBucket => "NoSuchBucket", 404, "The specified bucket does not exist.";
    /// No such object.
    NoSuchKey => "NoSuchKey", 404, "The specified key does not exist.";
    /// No such upload; it may have been completed or aborted.
    NoSuchUpload => "NoSuchUpload", 404, "The specified multipart upload does not exist. The upload ID might be invalid, or the multipart upload might have been aborted or completed.";
    /// The version has no retention or legal hold.
    NoSuchObjectLockConfiguration => "NoSuchObjectLockConfiguration", 404, "The specified object does not have a ObjectLock configuration.";
    /// The bucket has no object lock.
    ObjectLockConfigurationNotFound => "ObjectLockConfigurationNotFoundError", 404, "Object Lock configuration does not exist for this bucket";
    /// No such version.
    NoSuchVersion => "NoSuchVersion", 404, "The version ID specified in the request does not match an existing version.";
    /// Something of S3 that Walrus does not have.
    NotImplemented => "NotImplemented", 501, "A header or query that you provided requests functionality that is not implemented.";
    /// If-None-Match or If-Modified-Since says so.
    NotModified => "NotModified", 304, "Not Modified";
    /// A condition does not hold.
    PreconditionFailed => "PreconditionFailed", 412, "At least one of the preconditions that you specified did not hold.";
    /// The body stopped coming.
    RequestTimeout => "RequestTimeout", 400, "Your socket connection to the server was not read from or written to within the timeout period.";
    /// The request's time is more than 15 minutes off.
    RequestTimeTooSkewed => "RequestTimeTooSkewed", 403, "The difference between the request time and the server's time is too large.";
    /// Signed with another secret, or changed on the way.
    SignatureDoesNotMatch => "SignatureDoesNotMatch", 403, "The request signature that the server calculated does not match the signature that you provided. Check your AWS secret access key and signing method.";
    /// Too much at once.
    SlowDown => "SlowDown", 503, "Reduce your request rate.";
    /// The store is full. S3 has no code for it; RGW and MinIO answer 507 with a code of their own.
    StorageFull => "XKarriStorageFull", 507, "The store has no room for this. Delete something or enlarge the store.";
    /// The body's SHA-256 is not the signed one.
    ContentSha256Mismatch => "XAmzContentSHA256Mismatch", 400, "The provided 'x-amz-content-sha256' header does not match what was computed.";
    /// Stored bytes do not match their checksum, or are not there.
    DataDamaged => "InternalError", 500, "The object's stored data is damaged.";
    /// The bucket's owner enforces ownership: lists are off.
    AccessControlListNotSupported => "AccessControlListNotSupported", 400, "The bucket does not allow ACLs";
    /// A preflight that no rule lets.
    AccessForbidden => "AccessForbidden", 403, "CORSResponse: This CORS request is not allowed.";
    /// Something of the request as a whole.
    BadRequest => "BadRequest", 400, "Bad Request";
    /// A list that shares the bucket, together with ownership that turns lists off.
    InvalidBucketAclWithObjectOwnership => "InvalidBucketAclWithObjectOwnership", 400, "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting";
    /// A temporary credential is over.
    ExpiredToken => "ExpiredToken", 400, "The provided token has expired.";
    /// A session token is not its key's.
    InvalidToken => "InvalidToken", 400, "The provided token is malformed or otherwise not valid.";
    /// A POST form's policy cannot be read.
    InvalidPolicyDocument => "InvalidPolicyDocument", 400, "The content of the form does not meet the conditions specified in the policy document.";
    /// Logs cannot go there.
    InvalidTargetBucketForLogging => "InvalidTargetBucketForLogging", 400, "The target bucket for logging does not exist, is not owned by you, or does not have the appropriate grants for the log-delivery group.";
    /// A list that is none.
    MalformedAclError => "MalformedACLError", 400, "The XML you provided was not well-formed or did not validate against our published schema.";
    /// A POST form that is none.
    MalformedPostRequest => "MalformedPOSTRequest", 400, "The body of your POST request is not well-formed multipart/form-data.";
    /// A policy that is none.
    MalformedPolicy => "MalformedPolicy", 400, "Policies must be valid JSON and the first byte must be '{'";
    /// A document above its limit.
    MaxMessageLengthExceeded => "MaxMessageLengthExceeded", 400, "Your request was too big.";
    /// A form's fields above their limit.
    MaxPostPreDataLengthExceeded => "MaxPostPreDataLengthExceeded", 400, "Your POST request fields preceding the upload file were too large.";
    /// PutBucketAcl says nothing.
    MissingSecurityHeader => "MissingSecurityHeader", 400, "Your request was missing a required header.";
    /// There is no configuration of this id.
    NoSuchConfiguration => "NoSuchConfiguration", 404, "The specified configuration does not exist.";
    /// More configurations than a bucket may have.
    TooManyConfigurations => "TooManyConfigurations", 400, "You are attempting to create a new configuration but have already reached the 1,000-configuration limit.";
    /// There is no policy.
    NoSuchBucketPolicy => "NoSuchBucketPolicy", 404, "The bucket policy does not exist";
    /// There are no rules for other origins.
    NoSuchCorsConfiguration => "NoSuchCORSConfiguration", 404, "The CORS configuration does not exist";
    /// There are no lifecycle rules.
    NoSuchLifecycleConfiguration => "NoSuchLifecycleConfiguration", 404, "The lifecycle configuration does not exist";
    /// There is no public access block.
    NoSuchPublicAccessBlockConfiguration => "NoSuchPublicAccessBlockConfiguration", 404, "The public access block configuration was not found";
    /// There are no tags.
    NoSuchTagSet => "NoSuchTagSet", 404, "The TagSet does not exist";
    /// It is no website.
    NoSuchWebsiteConfiguration => "NoSuchWebsiteConfiguration", 404, "The specified bucket does not have a website configuration";
    /// There are no ownership controls.
    OwnershipControlsNotFound => "OwnershipControlsNotFoundError", 404, "The bucket ownership controls were not found";
    /// There are no replication rules.
    ReplicationConfigurationNotFound => "ReplicationConfigurationNotFoundError", 404, "The replication configuration was not found";
    /// A policy above its limit.
    PolicyTooLarge => "PolicyTooLarge", 400, "Policy exceeds the maximum allowed document size.";
    /// The bucket's quota is used up. S3 has none; RGW answers so.
    QuotaExceeded => "QuotaExceeded", 403, "The bucket's quota would be exceeded.";
    /// There is no default encryption.
    EncryptionNotFound => "ServerSideEncryptionConfigurationNotFoundError", 404, "The server side encryption configuration was not found";
    /// A list in the headers and one in the body.
    UnexpectedContent => "UnexpectedContent", 400, "This request contains unsupported content.";
    /// No account has this address.
    UnresolvableGrantByEmailAddress => "UnresolvableGrantByEmailAddress", 400, "The email address you provided does not match any account on record.";
}

impl Error {
    /// With this message.
    pub fn new(kind: Kind, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, message: message.into(), source: None, headers: None }
    }
    /// With what lies below.
    pub fn caused(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Self {
        Self::new(kind, kind.message())
    }
}

impl From<MetaError> for Error {
    fn from(e: MetaError) -> Self {
        let kind = match &e {
            // Operations that retry look at the MetaError itself; one that gives up has lost too many races.
            MetaError::Conflict { .. } => Kind::SlowDown,
            MetaError::NoSpace { .. } => Kind::StorageFull,
            MetaError::Failed { .. } => Kind::InternalError,
        };
        Self::from(kind).caused(e)
    }
}

impl From<BulkError> for Error {
    fn from(e: BulkError) -> Self {
        let kind = match &e {
            BulkError::NoSpace { .. } | BulkError::Disk(karri_engine::disk::DiskError::NoSpace { .. }) => {
                Kind::StorageFull
            }
            BulkError::Corrupt { .. } => Kind::DataDamaged,
            _ => Kind::InternalError,
        };
        Self::from(kind).caused(e)
    }
}

impl From<Damage> for Error {
    fn from(e: Damage) -> Self {
        Self::new(Kind::InternalError, "A record of this bucket or object is damaged.").caused(e)
    }
}

impl From<Error> for S3Error {
    fn from(e: Error) -> Self {
        let code = S3ErrorCode::from_bytes(e.kind.code().as_bytes())
            .unwrap_or_else(|| S3ErrorCode::Custom(e.kind.code().into()));
        let mut out = S3Error::with_message(code, e.message);
        out.set_status_code(e.kind.status());
        if let Some(source) = e.source {
            out.set_source(source);
        }
        if let Some(headers) = e.headers {
            out.set_headers(*headers);
        }
        out
    }
}

/// What broke a request body. `s3s` hides its stream errors' types, so their names are read.
pub fn body(e: &(dyn std::error::Error + Send + Sync + 'static)) -> Error {
    let text = e.to_string();
    let kind = BODY_ERRORS.iter().find(|(name, _)| text.contains(name)).map_or(Kind::IncompleteBody, |(_, kind)| *kind);
    Error::new(kind, kind.message()).caused(std::io::Error::other(text))
}

/// Names in the texts of `s3s`'s and our own body errors.
const BODY_ERRORS: [(&str, Kind); 12] = [
    (crate::form::TOO_LARGE, Kind::EntityTooLarge),
    (crate::form::TOO_SMALL, Kind::EntityTooSmall),
    (crate::form::NO_END, Kind::MalformedPostRequest),
    (crate::guard::STALLED, Kind::RequestTimeout),
    (crate::guard::CHUNK_TOO_LARGE, Kind::InvalidRequest),
    ("Sha256Mismatch", Kind::ContentSha256Mismatch),
    ("SignatureMismatch", Kind::SignatureDoesNotMatch),
    ("FormatError", Kind::InvalidRequest),
    ("ChunkMetaTooLarge", Kind::InvalidRequest),
    ("TrailersTooLarge", Kind::InvalidRequest),
    ("TooManyTrailerHeaders", Kind::InvalidRequest),
    ("InvalidChecksum", Kind::InvalidDigest),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_s3_s_own_codes() {
        for kind in [Kind::NoSuchKey, Kind::InvalidPart, Kind::KeyTooLong, Kind::MalformedXml, Kind::InvalidRange] {
            let e: S3Error = kind.into_s3();
            assert!(!matches!(e.code(), S3ErrorCode::Custom(_)), "{kind:?}");
            assert_eq!(e.status_code(), Some(kind.status()));
        }
    }

    impl Kind {
        fn into_s3(self) -> S3Error {
            Error::from(self).into()
        }
    }

    #[test]
    fn body_errors_are_told_apart() {
        let check = |text: &str, want| assert_eq!(body(&std::io::Error::other(text.to_owned())).kind, want, "{text}");
        check("UploadStreamError: Sha256Mismatch", Kind::ContentSha256Mismatch);
        check("AwsChunkedStreamError: SignatureMismatch", Kind::SignatureDoesNotMatch);
        check("AwsChunkedStreamError: Underlying: the body stalled", Kind::RequestTimeout);
        check("connection reset", Kind::IncompleteBody);
    }
}
