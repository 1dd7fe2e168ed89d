//! The chassis around a role that does nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use karri_base::role::Health;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tonic::service::Routes;

use super::*;
use crate::ask::role_status;

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

#[tokio::test]
async fn a_role_answers_those_with_a_certificate_and_stops_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let tls = dir.path();
    pki::ensure(tls, &["walrus", pki::ADMIN]).unwrap();
    let idle = Arc::new(Idle::default());
    let (grpc, metrics) =
        (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let (grpc_at, metrics_at) = (grpc.local_addr().unwrap(), metrics.local_addr().unwrap());
    let process = Process {
        role: Role::Walrus,
        running: idle.clone(),
        registry: observe::registry("walrus"),
        grpc,
        metrics,
        tls: peers::Credentials::read(&pki::files(tls, "walrus")).unwrap().server(),
        began: Instant::now(),
        _lock: Lock::take(&tls.join("lock")).unwrap().unwrap(),
    };
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
    pki::ensure(strange.path(), &[pki::ADMIN]).unwrap();
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
