//! What a request is answered with when it fails: AWS's codes, one table from code to HTTP status.

use std::fmt;

use crate::wire::Invalid;

use super::store::StoreError;

/// A refused or failed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// AWS's code.
    pub code: Code,
    /// A sentence for the caller.
    pub message: String,
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.name(), self.message)
    }
}
impl std::error::Error for ApiError {}

/// A request's outcome.
pub type ApiResult<T> = Result<T, ApiError>;

macro_rules! codes {
    ($($variant:ident $name:literal $status:literal,)*) => {
        /// AWS's error codes that are in use.
        #[allow(missing_docs)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code { $($variant,)* }
        impl Code {
            /// As AWS spells it.
            pub fn name(self) -> &'static str { match self { $(Self::$variant => $name,)* } }
            /// The HTTP status.
            pub fn status(self) -> u16 { match self { $(Self::$variant => $status,)* } }
        }
    };
}

codes! {
    AccessDenied "AccessDenied" 403,
    AttachmentLimitExceeded "AttachmentLimitExceeded" 400,
    AuthFailure "AuthFailure" 401,
    DeleteConflict "DeleteConflict" 409,
    DependencyViolation "DependencyViolation" 400,
    DryRunOperation "DryRunOperation" 412,
    EntityAlreadyExists "EntityAlreadyExists" 409,
    EntityTemporarilyUnmodifiable "EntityTemporarilyUnmodifiable" 409,
    ExpiredToken "ExpiredToken" 403,
    ExpiredTokenException "ExpiredTokenException" 400,
    IdempotentParameterMismatch "IdempotentParameterMismatch" 400,
    IdpCommunicationError "IDPCommunicationError" 400,
    IncompleteSignature "IncompleteSignature" 400,
    IncorrectInstanceState "IncorrectInstanceState" 400,
    IncorrectState "IncorrectState" 400,
    InsufficientFreeAddresses "InsufficientFreeAddressesInSubnet" 400,
    InsufficientInstanceCapacity "InsufficientInstanceCapacity" 500,
    InsufficientVolumeCapacity "InsufficientVolumeCapacity" 500,
    InternalError "InternalError" 500,
    InvalidAction "InvalidAction" 400,
    InvalidAmiIdMalformed "InvalidAMIID.Malformed" 400,
    InvalidAmiIdNotFound "InvalidAMIID.NotFound" 400,
    InvalidAmiIdUnavailable "InvalidAMIID.Unavailable" 400,
    InvalidAmiNameDuplicate "InvalidAMIName.Duplicate" 400,
    InvalidAmiNameMalformed "InvalidAMIName.Malformed" 400,
    InvalidAttachmentNotFound "InvalidAttachment.NotFound" 400,
    InvalidBlockDeviceMapping "InvalidBlockDeviceMapping" 400,
    InvalidClientTokenId "InvalidClientTokenId" 403,
    InvalidFilter "InvalidFilter" 400,
    InvalidGroupNotFound "InvalidGroup.NotFound" 400,
    InvalidId "InvalidID" 400,
    InvalidIdentityToken "InvalidIdentityToken" 400,
    InvalidInput "InvalidInput" 400,
    InvalidInstanceIdMalformed "InvalidInstanceID.Malformed" 400,
    InvalidInstanceIdNotFound "InvalidInstanceID.NotFound" 400,
    InvalidInstanceType "InvalidInstanceType" 400,
    InvalidKeyFormat "InvalidKey.Format" 400,
    InvalidKeyPairDuplicate "InvalidKeyPair.Duplicate" 400,
    InvalidKeyPairNotFound "InvalidKeyPair.NotFound" 400,
    InvalidManifest "InvalidManifest" 400,
    InvalidNextToken "InvalidNextToken" 400,
    InvalidParameter "InvalidParameter" 400,
    InvalidParameterCombination "InvalidParameterCombination" 400,
    InvalidParameterValue "InvalidParameterValue" 400,
    InvalidSnapshotNotFound "InvalidSnapshot.NotFound" 400,
    InvalidSubnetIdNotFound "InvalidSubnetID.NotFound" 400,
    InvalidUserDataMalformed "InvalidUserData.Malformed" 400,
    InvalidUserType "InvalidUserType" 400,
    InvalidVolumeIdMalformed "InvalidVolumeID.Malformed" 400,
    InvalidVolumeNotFound "InvalidVolume.NotFound" 400,
    InvalidZoneNotFound "InvalidZone.NotFound" 400,
    LimitExceeded "LimitExceeded" 409,
    MalformedPolicyDocument "MalformedPolicyDocument" 400,
    MalformedQueryString "MalformedQueryString" 400,
    MaxIopsLimitExceeded "MaxIOPSLimitExceeded" 400,
    MissingAction "MissingAction" 400,
    MissingAuthenticationToken "MissingAuthenticationToken" 403,
    MissingParameter "MissingParameter" 400,
    NoSuchEntity "NoSuchEntity" 404,
    OperationNotPermitted "OperationNotPermitted" 400,
    PackedPolicyTooLarge "PackedPolicyTooLarge" 400,
    PasswordPolicyViolation "PasswordPolicyViolation" 400,
    ReportExpired "ReportExpired" 410,
    ReportNotPresent "ReportNotPresent" 410,
    RequestEntityTooLarge "RequestEntityTooLarge" 413,
    RequestExpired "RequestExpired" 400,
    RequestTimeout "RequestTimeout" 408,
    SignatureDoesNotMatch "SignatureDoesNotMatch" 403,
    TagLimitExceeded "TagLimitExceeded" 400,
    UnauthorizedOperation "UnauthorizedOperation" 403,
    Unavailable "Unavailable" 503,
    UnknownParameter "UnknownParameter" 400,
    Unsupported "Unsupported" 400,
    UnsupportedOperation "UnsupportedOperation" 400,
    UnsupportedProtocol "UnsupportedProtocol" 400,
    ValidationError "ValidationError" 400,
    VolumeInUse "VolumeInUse" 400,
}

impl ApiError {
    /// An error with this code and message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
    /// `InvalidParameterValue` in AWS's words.
    pub fn value(name: &str, value: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::new(Code::InvalidParameterValue, format!("Value ({value}) for parameter {name} is invalid. {why}"))
    }
    /// `MissingParameter` in AWS's words.
    pub fn missing(name: &str) -> Self {
        Self::new(Code::MissingParameter, format!("The request must contain the parameter {name}"))
    }
    /// `InvalidParameterCombination`.
    pub fn combination(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidParameterCombination, message)
    }
    /// A parameter whose feature is not there yet: said, not ignored.
    pub fn unsupported(what: impl fmt::Display) -> Self {
        Self::new(Code::UnsupportedOperation, format!("{what} is not supported by this cloud."))
    }
}

impl From<Invalid> for ApiError {
    fn from(e: Invalid) -> Self {
        let code = match &e {
            Invalid::Malformed(_) => Code::MalformedQueryString,
            Invalid::Missing(_) => Code::MissingParameter,
            Invalid::Value { .. } => Code::InvalidParameterValue,
            Invalid::Unknown(_) => Code::UnknownParameter,
        };
        Self::new(code, e.to_string())
    }
}

impl From<StoreError> for ApiError {
    fn from(e: StoreError) -> Self {
        tracing::error!(error = %e, "the cloud's records failed");
        Self::new(Code::InternalError, "An internal error has occurred")
    }
}
