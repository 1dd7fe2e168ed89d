//! karri's vocabulary: what every other crate may name, and nothing that does I/O.
//!
//! | module | holds |
//! |---|---|
//! | [`id`] | resource ids as newtypes (`i-`, `vol-`, `ami-`, ...) |
//! | [`units`] | bytes and sectors |
//! | [`clock`] | wall and monotonic time as a parameter |
//! | [`config`] | the TOML configuration of every role |
//! | [`fuzz`] | hostile bytes against parsers: the harness and this crate's targets |
//! | [`observe`] | log set-up, fixed field names, metric registry |
//! | [`aws`] | SigV4, SigV2, ARNs, access keys, IAM policies and their evaluator |
//! | [`proto`] | the gRPC messages between roles (`proto/*.proto`) |
//! | [`role`] | what a started role is to the binary |

#![forbid(unsafe_code)]

pub mod aws;
pub mod clock;
pub mod config;
pub mod fuzz;
pub mod id;
pub mod observe;
pub mod proto;
pub mod role;
pub mod units;
