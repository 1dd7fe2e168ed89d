//! The node role over the hypervisor in memory: generations, repeats, restarts, accidents.

use std::sync::Arc;
use std::time::Duration;

use karri_base::clock::{Clock, ManualClock, UnixMicros};
use karri_base::id::InstanceId;
use karri_base::proto::incarnation::State;
use karri_base::proto::node_server::Node;
use karri_base::proto::{
    AttachVolumeRequest, DetachVolumeRequest, Disk, Incarnation, InstanceRequest, InstanceSpec, Nic, ReportRequest,
    StopAllRequest, StopInstanceRequest,
};
use karri_base::role::Running;
use karri_meta::memory::MemoryStore;
use karri_net::UserMode;
use prometheus_client::registry::Registry;
use tonic::{Code, Request, Response, Status};

use super::fake::{Fake, Faults, World};
use super::hypervisor::Ended;
use super::images::Images;
use super::role::{Capacity, NodeRole, NodeService, Parts};

/// What outlives a node.
struct Host {
    folder: tempfile::TempDir,
    world: World,
    meta: Arc<MemoryStore>,
    clock: Arc<ManualClock>,
}

impl Host {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            world: World::default(),
            meta: Arc::new(MemoryStore::new()),
            clock: Arc::new(ManualClock::at(UnixMicros(1_767_225_600_000_000))),
        }
    }

    async fn node(&self) -> NodeRole {
        let clock: Arc<dyn Clock> = self.clock.clone();
        let parts = Parts {
            name: "host-a".into(),
            hypervisor: Arc::new(Fake::over(self.world.clone())),
            datapath: Arc::new(UserMode::default()),
            meta: self.meta.clone(),
            images: Images::open(self.folder.path().join("images"), None, clock.clone()).unwrap(),
            clock,
            capacity: Capacity { vcpus: 4, memory_bytes: 1 << 30 },
        };
        NodeRole::start(parts, &mut Registry::default()).await.unwrap()
    }
}

fn id(n: u128) -> InstanceId {
    InstanceId::from_bits(n)
}

fn disk(n: u8) -> Disk {
    let volume_id = format!("vol-000000{n:02x}");
    let vhost_user_socket = format!("/none/{volume_id}.sock");
    Disk { volume_id, vhost_user_socket, ..Disk::default() }
}

fn spec(n: u128, generation: u64) -> InstanceSpec {
    InstanceSpec {
        instance_id: id(n).to_string(),
        generation,
        account_id: "123456789012".into(),
        vcpus: 1,
        memory_bytes: 256 << 20,
        disks: vec![disk(0xa0)],
        nics: vec![Nic {
            mac: "02:00:00:00:00:01".into(),
            private_ip: "172.31.0.9".into(),
            eni_id: "eni-00000001".into(),
        }],
        ..InstanceSpec::default()
    }
}

fn state(answer: Result<Response<Incarnation>, Status>) -> (State, u64, String) {
    let incarnation = answer.unwrap().into_inner();
    (incarnation.state(), incarnation.generation, incarnation.reason)
}

fn code<T: std::fmt::Debug>(answer: Result<Response<T>, Status>) -> Code {
    answer.unwrap_err().code()
}

async fn start(node: &NodeService, n: u128, generation: u64) -> Result<Response<Incarnation>, Status> {
    node.start_instance(Request::new(spec(n, generation))).await
}

async fn stop(node: &NodeService, n: u128, generation: u64, force: bool) -> Result<Response<Incarnation>, Status> {
    let request = StopInstanceRequest { instance_id: id(n).to_string(), generation, force, grace_secs: 1 };
    node.stop_instance(Request::new(request)).await
}

async fn attach(node: &NodeService, n: u128, generation: u64, d: u8) -> Result<Response<Incarnation>, Status> {
    let request = AttachVolumeRequest { instance_id: id(n).to_string(), generation, disk: Some(disk(d)) };
    node.attach_volume(Request::new(request)).await
}

async fn detach(node: &NodeService, n: u128, d: u8, force: bool) -> Result<Response<Incarnation>, Status> {
    let (instance_id, volume_id) = (id(n).to_string(), disk(d).volume_id);
    node.detach_volume(Request::new(DetachVolumeRequest { instance_id, generation: 9, volume_id, force })).await
}

async fn report(node: &NodeService) -> karri_base::proto::NodeReport {
    node.report(Request::new(ReportRequest {})).await.unwrap().into_inner()
}

/// The only instance's state once it is `wanted`.
async fn becomes(node: &NodeService, wanted: State) -> Incarnation {
    for _ in 0..500 {
        let found = report(node).await.instances.remove(0);
        if found.state() == wanted {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never is {wanted:?}: {:?}", report(node).await);
}

const BY_USER: &str = "Client.UserInitiatedShutdown: User initiated shutdown";

#[tokio::test]
async fn generations_order_commands_and_repeats_answer_alike() {
    let host = Host::new();
    let role = host.node().await;
    let node = role.service();
    let running = |generation| (State::Running, generation, String::new());
    assert_eq!(state(start(&node, 1, 5).await), running(5));
    assert_eq!(state(start(&node, 1, 5).await), running(5));
    assert_eq!(code(start(&node, 1, 4).await), Code::FailedPrecondition);
    assert_eq!(code(stop(&node, 1, 4, true).await), Code::FailedPrecondition);
    assert_eq!(code(attach(&node, 1, 4, 1).await), Code::FailedPrecondition);
    let reboot = InstanceRequest { instance_id: id(1).to_string(), generation: 5 };
    assert_eq!(state(node.reboot_instance(Request::new(reboot)).await), running(5));
    assert_eq!(state(stop(&node, 1, 5, false).await), (State::Gone, 5, BY_USER.into()));
    assert_eq!(state(stop(&node, 1, 6, true).await), (State::Gone, 6, BY_USER.into()));
    assert_eq!(code(start(&node, 1, 5).await), Code::FailedPrecondition, "a late start of what was stopped");
    assert_eq!(state(start(&node, 1, 6).await).0, State::Gone, "a start of an incarnation that has ended");
    assert_eq!(state(start(&node, 1, 7).await), running(7));

    // A stop that overtakes its start.
    assert_eq!(state(stop(&node, 2, 3, true).await).0, State::Gone);
    assert_eq!(code(start(&node, 2, 2).await), Code::FailedPrecondition);
    let console = InstanceRequest { instance_id: id(1).to_string(), generation: 7 };
    let console = node.get_console(Request::new(console)).await.unwrap().into_inner();
    assert!(String::from_utf8_lossy(&console.output).contains("karri guest ready"));
}

#[tokio::test]
async fn bad_specs_full_hosts_and_unknown_instances_are_refused() {
    let host = Host::new();
    let role = host.node().await;
    let node = role.service();
    let refuse = async |change: fn(&mut InstanceSpec)| {
        let mut bad = spec(1, 1);
        change(&mut bad);
        code(node.start_instance(Request::new(bad)).await)
    };
    assert_eq!(refuse(|s| s.instance_id = "../x".into()).await, Code::InvalidArgument);
    assert_eq!(refuse(|s| s.vcpus = 0).await, Code::InvalidArgument);
    assert_eq!(refuse(|s| s.memory_bytes = 12345).await, Code::InvalidArgument);
    assert_eq!(refuse(|s| s.disks.clear()).await, Code::InvalidArgument);
    assert_eq!(refuse(|s| s.disks[0].vhost_user_socket = "relative".into()).await, Code::InvalidArgument);
    assert_eq!(refuse(|s| s.nics[0].mac = "x".into()).await, Code::InvalidArgument);
    assert_eq!(refuse(|s| s.kernel_cmdline = "x".into()).await, Code::InvalidArgument);
    assert_eq!(refuse(|s| s.vcpus = 5).await, Code::ResourceExhausted);
    assert!(report(&node).await.instances.is_empty(), "what was refused leaves nothing");
    for n in 1..=4 {
        start(&node, n, 1).await.unwrap();
    }
    assert_eq!(code(start(&node, 5, 1).await), Code::ResourceExhausted);
    stop(&node, 1, 1, true).await.unwrap();
    start(&node, 5, 1).await.expect("what was stopped makes room");
    assert_eq!(code(attach(&node, 77, 1, 1).await), Code::NotFound);
    assert_eq!(code(detach(&node, 77, 1, false).await), Code::NotFound);
    let taken = report(&node).await;
    assert_eq!((taken.vcpus_used, taken.memory_used), (4, 1 << 30));
}

#[tokio::test]
async fn disks_come_and_go_and_the_root_disk_stays() {
    let host = Host::new();
    let role = host.node().await;
    let node = role.service();
    start(&node, 1, 9).await.unwrap();
    for _ in 0..2 {
        let plugged = attach(&node, 1, 9, 1).await.unwrap().into_inner();
        assert_eq!(plugged.volume_ids, [disk(0xa0).volume_id, disk(1).volume_id]);
    }
    assert_eq!(code(detach(&node, 1, 0xa0, false).await), Code::FailedPrecondition);
    host.world.set_faults(Faults { guest_holds_disks: true, ..Faults::default() });
    assert_eq!(code(detach(&node, 1, 1, false).await), Code::Aborted);
    assert_eq!(report(&node).await.instances[0].volume_ids.len(), 2);
    detach(&node, 1, 1, true).await.expect("by force");
    host.world.set_faults(Faults::default());
    for _ in 0..2 {
        assert_eq!(detach(&node, 1, 1, false).await.unwrap().into_inner().volume_ids, [disk(0xa0).volume_id]);
    }
}

#[tokio::test]
async fn machines_outlive_the_node_and_ends_are_noticed() {
    let host = Host::new();
    let role = host.node().await;
    start(&role.service(), 1, 1).await.unwrap();
    attach(&role.service(), 1, 1, 1).await.unwrap();
    role.shutdown().await;
    drop(role);

    let role = host.node().await;
    let node = role.service();
    let adopted = becomes(&node, State::Running).await;
    assert_eq!(adopted.volume_ids.len(), 2);
    host.world.end(&id(1), Ended::Guest);
    let ended = becomes(&node, State::Gone).await;
    assert_eq!(ended.reason, "Client.InstanceInitiatedShutdown: Instance initiated shutdown");
    start(&node, 1, 2).await.unwrap();
    drop(role);
    host.world.end(&id(1), Ended::Crashed { why: "a test".into() });
    let role = host.node().await;
    let ended = becomes(&role.service(), State::Gone).await;
    assert!(ended.reason.starts_with("Server.InternalError: ") && ended.reason.contains("a test"), "{ended:?}");

    // Long after, it is forgotten; the node's own clock says when.
    drop(role);
    host.clock.advance(Duration::from_secs(25 * 3600));
    let role = host.node().await;
    for _ in 0..500 {
        if report(&role.service()).await.instances.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("an old record is never forgotten");
}

#[tokio::test]
async fn a_failed_start_says_why_and_can_be_repeated() {
    let host = Host::new();
    let role = host.node().await;
    let node = role.service();
    host.world.set_faults(Faults { start_fails: true, ..Faults::default() });
    let (failed, generation, reason) = state(start(&node, 1, 1).await);
    assert_eq!((failed, generation), (State::Failed, 1));
    assert!(reason.contains("asked to fail"), "{reason}");
    assert_eq!(report(&node).await.vcpus_used, 0, "a failed start takes no room");
    host.world.set_faults(Faults::default());
    assert_eq!(state(start(&node, 1, 1).await).0, State::Running);
}

#[tokio::test]
async fn a_stop_by_force_cuts_the_grace_of_another_short() {
    let host = Host::new();
    let role = host.node().await;
    let node = role.service();
    host.world.set_faults(Faults { guest_ignores_power_button: true, ..Faults::default() });
    start(&node, 1, 1).await.unwrap();
    let patient = StopInstanceRequest { instance_id: id(1).to_string(), generation: 1, force: false, grace_secs: 600 };
    let (slow, service) = (node.clone(), node.clone());
    let waiting = tokio::spawn(async move { slow.stop_instance(Request::new(patient)).await });
    becomes(&service, State::Stopping).await;
    let both = async { (stop(&node, 1, 1, true).await, waiting.await.unwrap()) };
    let (forced, waited) = tokio::time::timeout(Duration::from_secs(10), both).await.expect("in time");
    assert_eq!(state(forced).0, State::Gone);
    assert_eq!(state(waited).0, State::Gone);
}

#[tokio::test]
async fn the_host_takes_its_instances_down_when_asked() {
    let host = Host::new();
    let role = host.node().await;
    let node = role.service();
    for n in 1..=3 {
        start(&node, n, 1).await.unwrap();
    }
    let request = StopAllRequest { grace_secs: 1, reason: "Server.ScheduledStop: host shutdown".into() };
    let report = node.stop_all(Request::new(request)).await.unwrap().into_inner();
    assert_eq!(report.instances.len(), 3);
    for instance in report.instances {
        assert_eq!(instance.state(), State::Gone);
        assert_eq!(instance.reason, "Server.ScheduledStop: host shutdown");
    }
}

#[tokio::test]
async fn the_store_failing_fails_the_command_and_nothing_runs_unrecorded() {
    let host = Host::new();
    let role = host.node().await;
    let node = role.service();
    host.meta.fail_next(1);
    assert_eq!(code(start(&node, 1, 1).await), Code::Unavailable);
    assert!(report(&node).await.instances.is_empty());
    assert_eq!(state(start(&node, 1, 1).await).0, State::Running);
}
