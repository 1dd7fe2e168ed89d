//! A zone of nodes over real gRPC; the nodes run machines in memory.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use karri_base::clock::SystemClock;
use karri_base::proto::incarnation::State;
use karri_base::proto::{Disk, InstanceSpec};
use karri_meta::memory::MemoryStore;
use karri_net::UserMode;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Endpoint, Server};

use super::*;
use crate::node::fake::Fake;
use crate::node::images::Images;
use crate::node::role::{Capacity, NodeRole, Parts};

/// A node that listens.
struct Listening {
    at: SocketAddr,
    stop: tokio::sync::oneshot::Sender<()>,
    server: tokio::task::JoinHandle<()>,
    _role: NodeRole,
    _folder: tempfile::TempDir,
}

impl Listening {
    /// Ends the server and its connections.
    async fn end(self) {
        drop(self.stop);
        self.server.await.unwrap();
    }
}

async fn node(name: &str, memory_bytes: u64) -> Listening {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(SystemClock);
    let parts = Parts {
        name: name.into(),
        hypervisor: Arc::new(Fake::default()),
        datapath: Arc::new(UserMode::default()),
        meta: Arc::new(MemoryStore::new()),
        images: Images::open(folder.path().to_owned(), None, clock.clone()).unwrap(),
        clock,
        capacity: Capacity { vcpus: 64, memory_bytes },
    };
    let role = NodeRole::start(parts, &mut Registry::default()).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let routes = role.routes();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let server = tokio::spawn(async move {
        let until = async { drop(stopped.await) };
        let incoming = TcpListenerStream::new(listener);
        Server::builder().add_routes(routes).serve_with_incoming_shutdown(incoming, until).await.unwrap();
    });
    Listening { at, stop, server, _role: role, _folder: folder }
}

async fn zone(nodes: &[&Listening], meta: &Arc<MemoryStore>) -> ClusterRole {
    let channel = |node: &&Listening| Endpoint::from_shared(format!("http://{}", node.at)).unwrap().connect_lazy();
    let channels = nodes.iter().map(channel).collect();
    ClusterRole::start("us-east-1a".into(), channels, meta.clone(), &mut Registry::default()).await.unwrap()
}

const MIB: u64 = 1 << 20;

async fn place(cluster: &ClusterService, n: u128) -> Result<String, Status> {
    let instance_id = InstanceId::from_bits(n).to_string();
    let request = PlaceRequest { instance_id, vcpus: 1, memory_bytes: 100 * MIB };
    cluster.place(Request::new(request)).await.map(|p| p.into_inner().node)
}

fn named(n: u128) -> Request<InstanceRequest> {
    Request::new(InstanceRequest { instance_id: InstanceId::from_bits(n).to_string(), generation: 1 })
}

fn spec(n: u128) -> Request<InstanceSpec> {
    let disk = Disk { volume_id: "vol-00000001".into(), vhost_user_socket: "/none".into(), ..Disk::default() };
    Request::new(InstanceSpec {
        instance_id: InstanceId::from_bits(n).to_string(),
        generation: 1,
        vcpus: 1,
        memory_bytes: 100 * MIB,
        disks: vec![disk],
        ..InstanceSpec::default()
    })
}

#[tokio::test]
async fn places_are_kept_spread_and_given_back() {
    let (a, b) = (node("a", 250 * MIB).await, node("b", 250 * MIB).await);
    let meta = Arc::new(MemoryStore::new());
    let role = zone(&[&a, &b], &meta).await;
    let cluster = role.service();
    let mut places = Vec::new();
    for n in 1..=4 {
        places.push(place(&cluster, n).await.unwrap());
    }
    assert_eq!(places, ["a", "b", "a", "b"]);
    assert_eq!(place(&cluster, 1).await.unwrap(), "a", "a repeat answers the same");
    let full = place(&cluster, 5).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted, "{full}");
    drop(role);

    let role = zone(&[&a, &b], &meta).await;
    let cluster = role.service();
    assert_eq!(place(&cluster, 4).await.unwrap(), "b", "a restart keeps places");
    assert_eq!(place(&cluster, 5).await.unwrap_err().code(), Code::ResourceExhausted);
    cluster.release(named(2)).await.unwrap();
    cluster.release(named(2)).await.expect("releasing twice is no error");
    assert_eq!(place(&cluster, 5).await.unwrap(), "b");
    let bad = PlaceRequest { instance_id: "x".into(), vcpus: 1, memory_bytes: 1 };
    assert_eq!(cluster.place(Request::new(bad)).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn commands_reach_the_node_and_its_answers_come_back() {
    let (a, b) = (node("a", 250 * MIB).await, node("b", 250 * MIB).await);
    let meta = Arc::new(MemoryStore::new());
    let role = zone(&[&a, &b], &meta).await;
    let cluster = role.service();
    assert_eq!(cluster.start_instance(spec(1)).await.unwrap_err().code(), Code::FailedPrecondition, "no place yet");
    for n in 1..=2 {
        place(&cluster, n).await.unwrap();
        assert_eq!(cluster.start_instance(spec(n)).await.unwrap().into_inner().state(), State::Running);
    }
    let report = cluster.report(Request::new(ReportRequest {})).await.unwrap().into_inner();
    let running: BTreeSet<_> =
        report.nodes.iter().flat_map(|n| n.instances.iter().map(|i| (n.node.clone(), i.instance_id.clone()))).collect();
    let want = [("a", 1), ("b", 2)].map(|(node, n)| (node.to_owned(), InstanceId::from_bits(n).to_string()));
    assert_eq!(running, want.into());
    let console = cluster.get_console(named(2)).await.unwrap().into_inner();
    assert!(String::from_utf8_lossy(&console.output).contains("karri guest ready"));
    cluster.reboot_instance(named(2)).await.unwrap();
    // The node's own refusals come through.
    let mut old = named(2).into_inner();
    old.generation = 0;
    assert_eq!(cluster.reboot_instance(Request::new(old)).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(cluster.reboot_instance(named(9)).await.unwrap_err().code(), Code::NotFound);

    b.end().await;
    let away = cluster.reboot_instance(named(2)).await.unwrap_err();
    assert_eq!(away.code(), Code::Unavailable, "{away}");
    assert!(away.message().contains("node b"), "{away}");
    let report = cluster.report(Request::new(ReportRequest {})).await.unwrap().into_inner();
    assert_eq!(report.nodes.iter().map(|n| n.node.as_str()).collect::<Vec<_>>(), ["a"]);
    assert!(role.health().trouble.is_none());
    a.end().await;
    cluster.report(Request::new(ReportRequest {})).await.unwrap();
    assert!(role.health().trouble.is_some_and(|t| t.contains("no node of zone us-east-1a")));
    assert_eq!(place(&cluster, 7).await.unwrap_err().code(), Code::Unavailable);
}
