//! What AWS's protocols share: request signatures and names.

pub mod arn;
pub mod keys;
pub mod policy;
pub mod s3;
pub mod session;
pub mod sigv2;
pub mod sigv4;
pub mod verify;
