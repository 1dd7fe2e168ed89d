//! Who may call what: the gRPC between roles, method by method.
//!
//! A caller is known by its certificate, whose DNS name is the role's ([`crate::pki`]). What is not in [`MAY`] nobody may
//! call; anyone else is answered PERMISSION_DENIED before the role sees the request.

use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};

use crate::pki::ADMIN;
use crate::role::Role;

/// Every method and the one identity that calls it.
const MAY: &[(&str, &str)] = &[
    // `karri status`, and the supervisor, which waits for roles to be ready.
    ("/karri.v1.Role/Status", ADMIN),
    ("/karri.v1.Identity/WatchKeys", "walrus"),
    ("/karri.v1.Identity/ReportUses", "walrus"),
    ("/karri.v1.Cluster/Place", "cloud"),
    ("/karri.v1.Cluster/Release", "cloud"),
    ("/karri.v1.Cluster/StartInstance", "cloud"),
    ("/karri.v1.Cluster/StopInstance", "cloud"),
    ("/karri.v1.Cluster/RebootInstance", "cloud"),
    ("/karri.v1.Cluster/AttachVolume", "cloud"),
    ("/karri.v1.Cluster/DetachVolume", "cloud"),
    ("/karri.v1.Cluster/GetConsole", "cloud"),
    ("/karri.v1.Cluster/Report", "cloud"),
    ("/karri.v1.Node/StartInstance", "cluster"),
    ("/karri.v1.Node/StopInstance", "cluster"),
    ("/karri.v1.Node/RebootInstance", "cluster"),
    ("/karri.v1.Node/AttachVolume", "cluster"),
    ("/karri.v1.Node/DetachVolume", "cluster"),
    ("/karri.v1.Node/GetConsole", "cluster"),
    ("/karri.v1.Node/Report", "cluster"),
    // The supervisor, before it ends the node at its own end.
    ("/karri.v1.Node/StopAll", ADMIN),
    ("/karri.v1.Storage/CreateVolume", "cloud"),
    ("/karri.v1.Storage/DeleteVolume", "cloud"),
    ("/karri.v1.Storage/DescribeVolumes", "cloud"),
    ("/karri.v1.Storage/ExportVolume", "cloud"),
    ("/karri.v1.Storage/UnexportVolume", "cloud"),
];

/// These routes, for those who may call them.
pub fn guarded(routes: Routes) -> Routes {
    routes.into_axum_router().layer(from_fn(check)).into()
}

async fn check(request: Request, next: Next) -> Response {
    let tls = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>();
    let caller = tls.and_then(TlsConnectInfo::peer_certs).and_then(|chain| name_of(chain.first()?));
    match admit(caller, request.uri().path()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => {
            tracing::warn!(peer = caller.unwrap_or("unknown"), error = refusal.message(), "a call was refused");
            refusal.into_http()
        }
    }
}

/// Whose certificate this is; the listener has checked that our authority signed it.
fn name_of(certificate: &CertificateDer<'_>) -> Option<&'static str> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    let is_of = |name: &str| ServerName::try_from(name).is_ok_and(|name| verify_server_name(&parsed, &name).is_ok());
    Role::ALL.iter().map(|role| role.name()).chain([ADMIN]).find(|name| is_of(name))
}

/// # Errors
/// PERMISSION_DENIED, naming caller and method.
fn admit(caller: Option<&str>, method: &str) -> Result<(), Status> {
    let Some(caller) = caller else {
        return Err(Status::permission_denied(format!(
            "a caller whose certificate is no role's may not call {method}"
        )));
    };
    match MAY.iter().find(|(known, _)| *known == method) {
        Some((_, by)) if *by == caller => Ok(()),
        Some((_, by)) => Err(Status::permission_denied(format!("{caller} may not call {method}; only {by} may"))),
        None => Err(Status::permission_denied(format!("{caller} may not call {method}; nobody may"))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A method that is added to a service must be given its caller here.
    #[test]
    fn the_table_has_every_method_of_every_service() {
        let protos = [
            include_str!("../dataplane/base/proto/cloud.proto"),
            include_str!("../dataplane/base/proto/cluster.proto"),
            include_str!("../dataplane/base/proto/node.proto"),
            include_str!("../dataplane/base/proto/role.proto"),
            include_str!("../dataplane/base/proto/storage.proto"),
        ];
        let mut methods = BTreeSet::new();
        for proto in protos {
            let mut service = "";
            for line in proto.lines().map(str::trim) {
                let name = |rest: &'static str| rest.split([' ', '(']).next().unwrap_or_default();
                if let Some(rest) = line.strip_prefix("service ") {
                    service = name(rest);
                } else if let Some(rest) = line.strip_prefix("rpc ") {
                    methods.insert(format!("/karri.v1.{service}/{}", name(rest)));
                }
            }
        }
        assert_eq!(methods, MAY.iter().map(|(method, _)| (*method).to_owned()).collect());
        assert_eq!(methods.len(), MAY.len(), "a method is in the table once");
    }

    #[test]
    fn a_refusal_names_caller_and_method() {
        let told = |caller, method| admit(caller, method).unwrap_err().message().to_owned();
        assert_eq!(
            told(Some("node"), "/karri.v1.Storage/DeleteVolume"),
            "node may not call /karri.v1.Storage/DeleteVolume; only cloud may"
        );
        assert!(told(Some("cloud"), "/karri.v1.Node/Unknown").contains("nobody may"));
        assert!(told(None, "/karri.v1.Role/Status").contains("no role's"));
        assert!(admit(Some("cloud"), "/karri.v1.Storage/DeleteVolume").is_ok());
    }
}
