//! The cloud over gRPC with the real cluster and node roles; machines are in memory.

use std::net::SocketAddr;
use std::sync::Arc;

use karri_base::clock::SystemClock;
use karri_base::id::InstanceId;
use karri_base::role::Running as _;
use karri_meta::memory::MemoryStore;
use karri_net::UserMode;
use prometheus_client::registry::Registry;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};

use crate::cluster::ClusterRole;
use crate::node::fake::{Fake, Faults, World as Machines};
use crate::node::hypervisor::Ended;
use crate::node::images::Images;
use crate::node::role::{Capacity, NodeRole, Parts};

use super::error::Code;
use super::peers::GrpcCluster;
use super::tests::{World, text, texts};
use super::watch::{Memory, look_at_cluster};

struct Zone {
    machines: Machines,
    node_meta: Arc<MemoryStore>,
    node_at: SocketAddr,
    node: Option<(NodeRole, Serving)>,
    _cluster: Option<(ClusterRole, Serving)>,
    cluster: Channel,
    folder: tempfile::TempDir,
}

/// A server and what ends it.
struct Serving {
    at: SocketAddr,
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

async fn serve(routes: tonic::service::Routes, at: SocketAddr) -> Serving {
    let listener = loop {
        // A server that was just ended may hold the port for a moment.
        match tokio::net::TcpListener::bind(at).await {
            Ok(listener) => break listener,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let at = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let task = tokio::spawn(async move {
        let until = async { drop(stopped.await) };
        let incoming = TcpListenerStream::new(listener);
        Server::builder().add_routes(routes).serve_with_incoming_shutdown(incoming, until).await.unwrap();
    });
    Serving { at, stop, task }
}

fn channel(at: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{at}")).unwrap().connect_lazy()
}

impl Zone {
    async fn new() -> Self {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut zone = Self {
            machines: Machines::default(),
            node_meta: Arc::new(MemoryStore::new()),
            node_at: any,
            node: None,
            _cluster: None,
            cluster: channel(any),
            folder: tempfile::tempdir().unwrap(),
        };
        zone.start_node().await;
        let (name, meta) = ("us-east-1a".to_owned(), Arc::new(MemoryStore::new()));
        let nodes = vec![channel(zone.node_at)];
        let role = ClusterRole::start(name, nodes, meta, &mut Registry::default()).await.unwrap();
        let serving = serve(role.routes(), any).await;
        zone.cluster = channel(serving.at);
        zone._cluster = Some((role, serving));
        zone
    }

    async fn start_node(&mut self) {
        let clock = Arc::new(SystemClock);
        let parts = Parts {
            name: "host-a".into(),
            hypervisor: Arc::new(Fake::over(self.machines.clone())),
            datapath: Arc::new(UserMode::default()),
            meta: self.node_meta.clone(),
            images: Images::open(self.folder.path().join("images"), None, clock.clone()).unwrap(),
            clock,
            capacity: Capacity { vcpus: 8, memory_bytes: 4 << 30 },
        };
        let role = NodeRole::start(parts, &mut Registry::default()).await.unwrap();
        let serving = serve(role.routes(), self.node_at).await;
        (self.node_at, self.node) = (serving.at, Some((role, serving)));
    }

    /// Ends the node's process; its machines go on.
    async fn end_node(&mut self) {
        if let Some((role, serving)) = self.node.take() {
            drop(serving.stop);
            serving.task.await.unwrap();
            drop(role);
        }
    }
}

async fn look(w: &World, memory: &mut Memory) {
    look_at_cluster(w.role.cloud(), memory).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_life_with_the_real_cluster_and_node() {
    let mut zone = Zone::new().await;
    let w = World::of(Arc::new(GrpcCluster::new(zone.cluster.clone()))).await;
    let image = w.image("first").await;
    let (a, b, v) = (w.instance_of(&image).await, w.instance_of(&image).await, w.blank_volume().await);
    let attach = |to: &str| {
        let params = [("VolumeId", v.clone()), ("InstanceId", to.to_owned()), ("Device", "/dev/sdf".to_owned())];
        let (w, v) = (&w, &v);
        async move {
            w.ask("AttachVolume", &params.each_ref().map(|(k, v)| (*k, v.as_str()))).await.unwrap();
            w.until_volume(v, "in-use").await;
        }
    };
    attach(&a).await;
    w.ask("RebootInstances", &[("InstanceId.1", &a)]).await.unwrap();
    w.until_instance(&a, "running").await;
    w.ask("DetachVolume", &[("VolumeId", &v)]).await.unwrap();
    w.until_volume(&v, "available").await;
    attach(&b).await;
    zone.machines.print(&a.parse().unwrap(), "login: ");
    let console = w.ask("GetConsoleOutput", &[("InstanceId", &a)]).await.unwrap();
    assert!(!texts(&console, "output").is_empty(), "{console}");

    let mut memory = Memory::default();
    look(&w, &mut memory).await;
    look(&w, &mut memory).await;
    assert_eq!(w.instance(&a).state.as_str(), "running");

    // A node that is gone for a while changes nothing; what was asked meanwhile happens when it is back.
    zone.end_node().await;
    look(&w, &mut memory).await;
    look(&w, &mut memory).await;
    assert!(w.ask("DescribeInstanceStatus", &[]).await.unwrap().contains("impaired"));
    w.ask("StopInstances", &[("InstanceId.1", &a), ("Force", "true")]).await.unwrap();
    zone.start_node().await;
    w.until_instance(&a, "stopped").await;
    assert_eq!(w.instance(&b).state.as_str(), "running");
    look(&w, &mut memory).await;
    look(&w, &mut memory).await;
    assert_eq!(w.instance(&b).state.as_str(), "running", "adopted");
    w.ask("StartInstances", &[("InstanceId.1", &a)]).await.unwrap();
    w.until_instance(&a, "running").await;
    look(&w, &mut memory).await;

    // Ends that nobody asked for.
    zone.machines.end(&a.parse::<InstanceId>().unwrap(), Ended::Guest);
    zone.machines.end(&b.parse::<InstanceId>().unwrap(), Ended::Crashed { why: "signal 11".into() });
    while [&a, &b].iter().any(|id| w.instance(id).state.as_str() == "running") {
        look(&w, &mut memory).await;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    w.until_instance(&a, "stopped").await;
    w.until_instance(&b, "stopped").await;
    assert_eq!(w.instance(&a).reason.as_ref().unwrap().code, "Client.InstanceInitiatedShutdown");
    assert_eq!(w.instance(&b).reason.as_ref().unwrap().code, "Server.InternalError");
    assert!(w.instance(&b).reason.as_ref().unwrap().message.contains("signal 11"));
    w.ask("TerminateInstances", &[("InstanceId.1", &a), ("InstanceId.2", &b)]).await.unwrap();
    w.until_instance(&a, "terminated").await;
    w.until_instance(&b, "terminated").await;
    w.until_volume(&v, "available").await;
    assert_eq!(w.storage.volumes().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_of_the_real_cluster_and_node_arrive() {
    let zone = Zone::new().await;
    let w = World::of(Arc::new(GrpcCluster::new(zone.cluster.clone()))).await;
    let image = w.image("first").await;
    let params = [("ImageId", image.as_str()), ("MinCount", "5"), ("MaxCount", "5"), ("InstanceType", "t3.micro")];
    assert_eq!(w.refused("RunInstances", &params).await, Code::InsufficientInstanceCapacity);
    let all = [("ImageId", image.as_str()), ("MinCount", "4"), ("MaxCount", "4")];
    let ids = texts(&w.ask("RunInstances", &all).await.unwrap(), "instanceId");
    for id in &ids {
        w.until_instance(id, "running").await;
    }
    zone.machines.set_faults(Faults { plug_fails: true, ..Faults::default() });
    let v = w.blank_volume().await;
    let attachment = [("VolumeId", v.as_str()), ("InstanceId", &ids[0]), ("Device", "/dev/sdf")];
    let answer = w.ask("AttachVolume", &attachment).await.unwrap();
    assert_eq!(text(&answer, "status"), "attaching");
    zone.machines.set_faults(Faults::default());
    w.until("settled", |c| c.store.get::<super::records::Volume>(&v).is_some_and(|v| v.flow.is_none())).await;
    w.ask("TerminateInstances", &[("InstanceId.1", &ids[0])]).await.unwrap();
    w.until_instance(&ids[0], "terminated").await;
    w.until_volume(&v, "available").await;

    zone.machines.set_faults(Faults { start_fails: true, ..Faults::default() });
    let one = [("ImageId", image.as_str()), ("MinCount", "1"), ("MaxCount", "1")];
    let id = text(&w.ask("RunInstances", &one).await.unwrap(), "instanceId");
    w.until_instance(&id, "terminated").await;
    assert_eq!(w.instance(&id).reason.as_ref().unwrap().code, "Server.InternalError");
    zone.machines.set_faults(Faults { guest_ignores_power_button: true, ..Faults::default() });
    w.ask("StopInstances", &[("InstanceId.1", &ids[1])]).await.unwrap();
    w.ask("StopInstances", &[("InstanceId.1", &ids[1]), ("Force", "true")]).await.unwrap();
    w.until_instance(&ids[1], "stopped").await;
}
