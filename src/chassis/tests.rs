//! The chassis around a role that does nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use karri_base::clock::{Clock as _, SystemClock};
use karri_base::proto::cluster_client::ClusterClient;
use karri_base::proto::identity_client::IdentityClient;
use karri_base::proto::node_client::NodeClient;
use karri_base::proto::storage_client::StorageClient;
use karri_base::proto::{DescribeVolumesRequest, ReportRequest, StopAllRequest, WatchKeysRequest};
use karri_base::role::Health;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tonic::service::Routes;

use super::*;
use crate::ask::role_status;
use karri_base::proto::role_client::RoleClient;

/// A role with a health that the test sets.
#[derive(Default)]
struct Idle {
    ill: AtomicBool,
    stopped: AtomicBool,
}

#[tonic::async_trait]
impl Running for Idle {
    fn routes(&self) -> Routes {
        Routes::default()
    }
    fn health(&self) -> Health {
        let trouble = self.ill.load(Ordering::Relaxed).then(|| "the store is full".to_owned());
        Health { trouble, capacity: [("widgets".to_owned(), 3)].into() }
    }
    async fn shutdown(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

async fn http(addr: std::net::SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// A walrus around this role, about to listen at the two addresses.
async fn process(tls: &Path, running: Arc<Idle>) -> (Process, std::net::SocketAddr, std::net::SocketAddr) {
    let (grpc, metrics) =
        (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let (grpc_at, metrics_at) = (grpc.local_addr().unwrap(), metrics.local_addr().unwrap());
    let process = Process {
        role: Role::Walrus,
        running,
        registry: observe::registry("walrus"),
        grpc,
        metrics,
        tls: peers::Credentials::read(&pki::files(tls, "walrus")).unwrap().server(),
        began: Instant::now(),
        _lock: Lock::take(&tls.join("lock")).unwrap().unwrap(),
    };
    (process, grpc_at, metrics_at)
}

#[tokio::test]
async fn a_role_does_what_its_own_callers_say() {
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<&str> = Role::ALL.iter().map(|role| role.name()).chain([pki::ADMIN, "stranger"]).collect();
    pki::ensure(dir.path(), &names, SystemClock.now()).unwrap();
    let (process, at, _) = process(dir.path(), Arc::default()).await;
    let (stop, stopped) = oneshot::channel::<()>();
    let served = tokio::spawn(process.serve(async { drop(stopped.await) }));
    for name in names {
        let own = peers::Credentials::read(&pki::files(dir.path(), name)).unwrap();
        let channel = || own.channel(Role::Walrus, at).unwrap();
        let calls = [
            ("Role/Status", pki::ADMIN, RoleClient::new(channel()).status(StatusRequest {}).await.err()),
            (
                "Identity/WatchKeys",
                "walrus",
                IdentityClient::new(channel()).watch_keys(WatchKeysRequest {}).await.err(),
            ),
            ("Cluster/Report", "cloud", ClusterClient::new(channel()).report(ReportRequest {}).await.err()),
            ("Node/Report", "cluster", NodeClient::new(channel()).report(ReportRequest {}).await.err()),
            ("Node/StopAll", pki::ADMIN, NodeClient::new(channel()).stop_all(StopAllRequest::default()).await.err()),
            (
                "Storage/DescribeVolumes",
                "cloud",
                StorageClient::new(channel()).describe_volumes(DescribeVolumesRequest::default()).await.err(),
            ),
        ];
        for (method, by, refusal) in calls {
            let code = refusal.as_ref().map(tonic::Status::code);
            let told = refusal.as_ref().map_or("", tonic::Status::message);
            if name != by {
                assert_eq!(code, Some(tonic::Code::PermissionDenied), "{name} called {method}: {told}");
                let caller = if name == "stranger" { "no role's" } else { name };
                assert!(told.contains(caller) && told.contains(method), "{told}");
            } else if method == "Role/Status" {
                assert_eq!(code, None, "{told}");
            } else {
                // Let through; this role has no such service.
                assert_eq!(code, Some(tonic::Code::Unimplemented), "{name} called {method}: {told}");
            }
        }
    }
    stop.send(()).unwrap();
    assert_eq!(served.await.unwrap().unwrap(), ExitCode::SUCCESS);
}

#[tokio::test]
async fn a_role_answers_those_with_a_certificate_and_stops_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let tls = dir.path();
    pki::ensure(tls, &["walrus", pki::ADMIN], SystemClock.now()).unwrap();
    let idle = Arc::new(Idle::default());
    let (process, grpc_at, metrics_at) = process(tls, idle.clone()).await;
    let (stop, stopped) = oneshot::channel::<()>();
    let served = tokio::spawn(process.serve(async { drop(stopped.await) }));
    let patience = Duration::from_secs(10);

    let admin = peers::Credentials::read(&pki::files(tls, pki::ADMIN)).unwrap();
    let channel = admin.channel(Role::Walrus, grpc_at).unwrap();
    let reply = role_status(Role::Walrus, channel.clone(), patience).await.unwrap();
    assert!(reply.healthy && reply.role == "walrus" && reply.capacity["widgets"] == 3, "{reply:?}");
    assert!(http(metrics_at, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(http(metrics_at, "/metrics").await.contains("# EOF"));

    idle.ill.store(true, Ordering::Relaxed);
    let reply = role_status(Role::Walrus, channel, patience).await.unwrap();
    assert!(!reply.healthy && reply.message == "the store is full", "{reply:?}");
    let health = http(metrics_at, "/healthz").await;
    assert!(health.starts_with("HTTP/1.1 503") && health.contains("the store is full"), "{health}");

    // Another authority's certificate is refused, and so is the right one where it expects another role.
    let strange = tempfile::tempdir().unwrap();
    pki::ensure(strange.path(), &[pki::ADMIN], SystemClock.now()).unwrap();
    std::fs::copy(tls.join("ca.pem"), strange.path().join("ca.pem")).unwrap();
    let stranger = peers::Credentials::read(&pki::files(strange.path(), pki::ADMIN)).unwrap();
    let channel = stranger.channel(Role::Walrus, grpc_at).unwrap();
    assert!(role_status(Role::Walrus, channel, patience).await.is_err());
    let channel = admin.channel(Role::Cloud, grpc_at).unwrap();
    assert!(role_status(Role::Cloud, channel, patience).await.is_err());

    stop.send(()).unwrap();
    assert_eq!(served.await.unwrap().unwrap(), ExitCode::SUCCESS);
    assert!(idle.stopped.load(Ordering::Relaxed));
}

#[tokio::test]
async fn a_file_without_the_roles_section_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    let text = "[role]\nstate = \"/nonexistent\"\naccount_id = \"123456789012\"\ngrpc = \"127.0.0.1:0\"\n\
                metrics = \"127.0.0.1:0\"\n[tls]\nca = \"a\"\ncert = \"b\"\nkey = \"c\"\n";
    std::fs::write(&path, text).unwrap();
    let error = match Process::start(Role::Node, &path).await {
        Ok(_) => panic!("it started"),
        Err(error) => format!("{error:#}"),
    };
    assert!(error.contains("node.toml") && error.contains("no [node] section"), "{error}");
}
