//! The gRPC messages and services between roles, generated from `proto/*.proto` (package `karri.v1`).

#![allow(missing_docs, clippy::all)]

tonic::include_proto!("karri.v1");
