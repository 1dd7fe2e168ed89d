//! End to end: the real binary, real clients (aws cli, s3cmd, boto3), a booted guest. Every test has its own state
//! folder and ports, waits on conditions, and ends what it started.
//!
//! | module | shows |
//! |---|---|
//! | [`alone`] | a volume or Walrus without a cloud starts and ends in order |
//! | [`identity`] | IAM and STS with boto3: S3 and EC2 obey |
//! | [`operate`] | lists, checks, exports; TLS |
//! | [`replication`] | two Walruses: boto3 puts rules and objects, both have them |
//! | [`s3`] | the quick start's S3 part, with aws cli and s3cmd |
//! | [`tools`] | Walrus's features by aws cli, boto3 and s3cmd; rclone, restic, s3fs, SigV2 by curl, minio-py |
//! | [`vm`] | image, instance, console, volume written by one guest and read by another |
//! | [`faults`] | kill -9 of each role: nothing acknowledged is lost, instances go on |
//! | [`refusals`] | bad input gets its protocol's error, or a message that says what to change |

#![forbid(unsafe_code)]

mod alone;
mod cloud;
mod faults;
mod identity;
mod operate;
mod refusals;
mod replication;
mod s3;
mod tools;
mod vm;
