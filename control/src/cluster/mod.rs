//! The cluster role: one availability zone. It places instances on nodes, remembers where, and passes commands on.
//!
//! | module | holds |
//! |---|---|
//! | [`placement`] | which node an instance goes to: a pure choice |
//!
//! A placement is recorded before it is answered and stays until `Release`, whatever role is restarted in between.
//! Capacity is counted by placements, not by what runs, so that two starts never meet in one place; machines that
//! nodes report without a placement count too. Commands are passed on as they are, with the node's own answer. The
//! cluster keeps no state of instances: the node knows them, the cloud decides about them.
//!
//! | key | value (JSON) |
//! |---|---|
//! | `cluster/placement/` instance id | [`Placed`], version 1 |

pub mod placement;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use karri_base::config::Config;
use karri_base::id::InstanceId;
use karri_base::proto::cluster_server::{Cluster, ClusterServer};
use karri_base::proto::node_client::NodeClient;
use karri_base::proto::{
    AttachVolumeRequest, ClusterReport, Console, DetachVolumeRequest, Incarnation, InstanceRequest, InstanceSpec,
    NodeReport, PlaceRequest, Placement, Released, ReportRequest, StopInstanceRequest,
};
use karri_base::role::{Health, PeerChannels, Running};
use karri_meta::{Batch, MetaError, MetaStore, Scan};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use placement::{Free, choose};

const PREFIX: &str = "cluster/placement/";
/// Records that are read at a time.
const PAGE: usize = 1000;
/// How often nodes are asked for their reports.
const POLL: Duration = Duration::from_secs(5);
/// How long a node may take for its report.
const REPORT: Duration = Duration::from_secs(3);
/// How long a node may take for a command: a start fetches a kernel, a detach waits for the guest.
const COMMAND: Duration = Duration::from_secs(115);
/// Longest report of a node; 10,000 instances are some 2 MiB.
const REPORT_BYTES_MAX: usize = 64 << 20;

/// Where an instance was placed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    version: u32,
    /// The node's name.
    pub node: String,
    /// Virtual CPUs held for it.
    pub vcpus: u32,
    /// Memory held for it.
    pub memory_bytes: u64,
}

/// Why the cluster could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration names no node.
    #[error("the configuration names no node; `karri cluster` needs `node` under [peers]")]
    NoNode,
    /// Its records cannot be read.
    #[error("the cluster's records cannot be read")]
    Meta(#[from] MetaError),
}

/// A node and what it said last.
struct Peer {
    client: NodeClient<Channel>,
    /// Its last report; `None` when it did not answer the last time.
    report: Mutex<Option<NodeReport>>,
    /// Its name, once it was heard of.
    name: Mutex<Option<String>>,
}

struct Zone {
    name: String,
    peers: Vec<Peer>,
    meta: Arc<dyn MetaStore>,
    placed: Mutex<BTreeMap<InstanceId, Placed>>,
    placing: tokio::sync::Mutex<()>,
    metrics: Metrics,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Command {
    command: &'static str,
    code: String,
}

#[derive(Default)]
struct Metrics {
    commands: Family<Command, Counter>,
    placements: Gauge,
    nodes: Gauge,
}

/// A started cluster.
pub struct ClusterRole {
    zone: Arc<Zone>,
    poll: tokio::task::JoinHandle<()>,
}

/// Starts the cluster role.
///
/// # Errors
/// See [`StartError`].
pub async fn start(
    config: &Config,
    peers: PeerChannels,
    meta: Arc<dyn MetaStore>,
    registry: &mut Registry,
) -> Result<Arc<dyn Running>, StartError> {
    let node = peers.node.ok_or(StartError::NoNode)?;
    Ok(Arc::new(ClusterRole::start(config.role.zone.clone(), vec![node], meta, registry).await?))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

fn store_failed(error: MetaError) -> Status {
    match error {
        MetaError::NoSpace { .. } => Status::resource_exhausted(format!("the cluster's records: {error}")),
        _ => Status::unavailable(format!("the cluster's records: {error}")),
    }
}

fn key(instance: &InstanceId) -> Bytes {
    format!("{PREFIX}{instance}").into()
}

fn parse(id: &str) -> Result<InstanceId, Status> {
    id.parse().map_err(|e: karri_base::id::BadId| Status::invalid_argument(e.to_string()))
}

async fn load(meta: &dyn MetaStore) -> Result<BTreeMap<InstanceId, Placed>, MetaError> {
    let mut placed = BTreeMap::new();
    let mut scan = Scan::prefix(PREFIX, PAGE);
    loop {
        let page = meta.scan(scan.clone()).await?;
        for (key, value) in &page {
            let bad = |why: String| MetaError::Failed {
                op: "reading a placement",
                why: format!("key {}: {why}", key.escape_ascii()),
            };
            let id = String::from_utf8_lossy(&key[PREFIX.len()..]).parse();
            let id: InstanceId = id.map_err(|e: karri_base::id::BadId| bad(e.to_string()))?;
            let record: Placed = serde_json::from_slice(value).map_err(|e| bad(e.to_string()))?;
            if record.version != 1 {
                return Err(bad(format!("version {} is not one that this cluster reads", record.version)));
            }
            placed.insert(id, record);
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE => scan.range.start = Bytes::from([last.as_ref(), b"\0"].concat()),
            _ => return Ok(placed),
        }
    }
}

impl Peer {
    /// Asks for a report and keeps it.
    async fn ask(&self) -> Option<NodeReport> {
        let mut client = self.client.clone();
        let answer = tokio::time::timeout(REPORT, client.report(ReportRequest {})).await;
        let report = match answer {
            Ok(Ok(report)) => Some(report.into_inner()),
            Ok(Err(_)) | Err(_) => None,
        };
        let was_there = locked(&self.report).is_some();
        let name = locked(&self.name).clone().unwrap_or_default();
        match &report {
            Some(report) => {
                if !was_there {
                    tracing::info!(node = report.node, instances = report.instances.len(), "node answers");
                }
                *locked(&self.name) = Some(report.node.clone());
            }
            None if was_there => tracing::warn!(node = name, "node does not answer"),
            None => {}
        }
        locked(&self.report).clone_from(&report);
        report
    }
}

impl Zone {
    /// All nodes' reports, asked for now; nodes that do not answer are left out.
    async fn reports(&self) -> Vec<NodeReport> {
        let asked = futures_util::future::join_all(self.peers.iter().map(Peer::ask)).await;
        let reports: Vec<_> = asked.into_iter().flatten().collect();
        self.metrics.nodes.set(reports.len() as i64);
        reports
    }

    async fn place(&self, request: PlaceRequest) -> Result<Placement, Status> {
        let instance = parse(&request.instance_id)?;
        if request.vcpus == 0 || request.memory_bytes == 0 {
            return Err(Status::invalid_argument(format!("instance {instance} wants no CPU or no memory")));
        }
        let _one_at_a_time = self.placing.lock().await;
        if let Some(placed) = locked(&self.placed).get(&instance) {
            return Ok(Placement { node: placed.node.clone() });
        }
        let known: Vec<NodeReport> = self.peers.iter().filter_map(|p| locked(&p.report).clone()).collect();
        let reports = if known.len() == self.peers.len() { known } else { self.reports().await };
        if reports.is_empty() {
            return Err(Status::unavailable(format!("no node of zone {} answers", self.name)));
        }
        let free: Vec<Free> = {
            let placed = locked(&self.placed);
            reports.iter().map(|report| Free::of(report, &placed)).collect()
        };
        let Some(node) = choose(&free, request.vcpus, request.memory_bytes) else {
            return Err(Status::resource_exhausted(format!(
                "no node of zone {} has {} virtual CPUs and {} MiB left for {instance}: {}",
                self.name,
                request.vcpus,
                request.memory_bytes >> 20,
                free.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            )));
        };
        let node = node.to_owned();
        let (vcpus, memory_bytes) = (request.vcpus, request.memory_bytes);
        let record = Placed { version: 1, node: node.clone(), vcpus, memory_bytes };
        let value = serde_json::to_vec(&record).map_err(|e| Status::internal(e.to_string()))?;
        let batch = Batch::new().check(key(&instance), None).put(key(&instance), value);
        self.meta.commit(batch).await.map_err(store_failed)?;
        tracing::info!(instance = %instance, node, "placed");
        self.remember(|placed| {
            placed.insert(instance, record);
        });
        Ok(Placement { node })
    }

    async fn release(&self, request: InstanceRequest) -> Result<Released, Status> {
        let instance = parse(&request.instance_id)?;
        let _one_at_a_time = self.placing.lock().await;
        self.meta.commit(Batch::new().del(key(&instance))).await.map_err(store_failed)?;
        self.remember(|placed| {
            placed.remove(&instance);
        });
        Ok(Released {})
    }

    fn remember(&self, change: impl FnOnce(&mut BTreeMap<InstanceId, Placed>)) {
        let mut placed = locked(&self.placed);
        change(&mut placed);
        self.metrics.placements.set(placed.len() as i64);
    }

    /// The node that has an instance: where it was placed, else where it is reported.
    fn find(&self, instance: &str) -> Result<&Peer, Status> {
        let placed = locked(&self.placed).get(&parse(instance)?).map(|p| p.node.clone());
        let reports = |peer: &&Peer| {
            let report = locked(&peer.report);
            report.as_ref().is_some_and(|r| r.instances.iter().any(|i| i.instance_id == instance))
        };
        let found = match &placed {
            Some(node) => self.peers.iter().find(|peer| locked(&peer.name).as_ref() == Some(node)),
            None => self.peers.iter().find(reports),
        };
        // A zone of one node needs no search; a node that was never heard of cannot be told from others.
        match (found, self.peers.as_slice(), placed) {
            (Some(peer), ..) | (None, [peer], _) => Ok(peer),
            (None, _, Some(node)) => {
                Err(Status::unavailable(format!("node {node}, where instance {instance} is, does not answer")))
            }
            (None, _, None) => Err(Status::not_found(format!("instance {instance} is on no node of this zone"))),
        }
    }

    /// Sends a command to the node that has the instance. What the node answers is passed on; where it could not be
    /// asked, the answer is UNAVAILABLE and names it.
    async fn pass<T, F>(
        &self,
        instance: &str,
        patience: Duration,
        send: impl FnOnce(NodeClient<Channel>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let peer = self.find(instance)?;
        let name = locked(&peer.name).clone().unwrap_or_else(|| "(not heard of yet)".into());
        let away = |why: &str| Status::unavailable(format!("node {name} of instance {instance}: {why}"));
        match tokio::time::timeout(patience, send(peer.client.clone())).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) if status.code() == Code::Unavailable => Err(away(status.message())),
            // The connection's own failures.
            Ok(Err(status)) if matches!(status.code(), Code::Unknown | Code::Cancelled) => Err(away(status.message())),
            Ok(Err(status)) => Err(status),
            Err(_) => Err(Status::deadline_exceeded(format!("node {name} does not answer in {patience:?}"))),
        }
    }
}

impl ClusterRole {
    /// Starts a zone of these nodes.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(
        zone: String,
        nodes: Vec<Channel>,
        meta: Arc<dyn MetaStore>,
        registry: &mut Registry,
    ) -> Result<Self, StartError> {
        let metrics = Metrics::default();
        registry.register("cluster_commands", "Commands by outcome", metrics.commands.clone());
        registry.register("cluster_placements", "Instances that have a place", metrics.placements.clone());
        registry.register("cluster_nodes", "Nodes that answer", metrics.nodes.clone());
        let placed = load(&*meta).await?;
        metrics.placements.set(placed.len() as i64);
        let peer = |channel| Peer {
            client: NodeClient::new(channel).max_decoding_message_size(REPORT_BYTES_MAX),
            report: Mutex::new(None),
            name: Mutex::new(None),
        };
        let zone = Arc::new(Zone {
            name: zone,
            peers: nodes.into_iter().map(peer).collect(),
            meta,
            placed: Mutex::new(placed),
            placing: tokio::sync::Mutex::new(()),
            metrics,
        });
        let polled = zone.clone();
        let poll = tokio::spawn(async move {
            let mut every = tokio::time::interval(POLL);
            every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                every.tick().await;
                polled.reports().await;
            }
        });
        Ok(Self { zone, poll })
    }

    /// The gRPC service.
    pub fn service(&self) -> ClusterService {
        ClusterService(self.zone.clone())
    }
}

impl Drop for ClusterRole {
    fn drop(&mut self) {
        self.poll.abort();
    }
}

#[tonic::async_trait]
impl Running for ClusterRole {
    fn routes(&self) -> tonic::service::Routes {
        tonic::service::Routes::new(ClusterServer::new(self.service()))
    }

    fn health(&self) -> Health {
        let reports: Vec<NodeReport> = self.zone.peers.iter().filter_map(|p| locked(&p.report).clone()).collect();
        let none = reports.is_empty().then(|| format!("no node of zone {} answers", self.zone.name));
        let sum = |of: fn(&NodeReport) -> u64| reports.iter().map(of).sum::<u64>();
        let capacity = [
            ("nodes", reports.len() as u64),
            ("vcpus_total", sum(|r| r.vcpus_total.into())),
            ("vcpus_used", sum(|r| r.vcpus_used.into())),
            ("memory_bytes_total", sum(|r| r.memory_total)),
            ("memory_bytes_used", sum(|r| r.memory_used)),
            ("placements", locked(&self.zone.placed).len() as u64),
        ];
        Health { trouble: none, capacity: capacity.into_iter().map(|(name, n)| (name.to_owned(), n)).collect() }
    }

    async fn shutdown(&self) {
        self.poll.abort();
    }
}

/// The cluster's gRPC service.
#[derive(Clone)]
pub struct ClusterService(Arc<Zone>);

impl ClusterService {
    fn count<T>(&self, command: &'static str, answer: Result<T, Status>) -> Result<Response<T>, Status> {
        let code = answer.as_ref().map_or_else(|s| format!("{:?}", s.code()), |_| "Ok".to_owned());
        self.0.metrics.commands.get_or_create(&Command { command, code }).inc();
        answer.map(Response::new)
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn place(&self, request: Request<PlaceRequest>) -> Result<Response<Placement>, Status> {
        // A caller that hangs up must not leave a placement on disk that memory does not know.
        let zone = self.0.clone();
        let done = tokio::spawn(async move { zone.place(request.into_inner()).await }).await;
        self.count("place", done.unwrap_or_else(|e| Err(Status::internal(e.to_string()))))
    }
    async fn release(&self, request: Request<InstanceRequest>) -> Result<Response<Released>, Status> {
        let zone = self.0.clone();
        let done = tokio::spawn(async move { zone.release(request.into_inner()).await }).await;
        self.count("release", done.unwrap_or_else(|e| Err(Status::internal(e.to_string()))))
    }
    async fn start_instance(&self, request: Request<InstanceSpec>) -> Result<Response<Incarnation>, Status> {
        let spec = request.into_inner();
        let instance = spec.instance_id.clone();
        if !locked(&self.0.placed).contains_key(&parse(&instance)?) {
            let what = format!("instance {instance} has no place in zone {}; Place comes first", self.0.name);
            return self.count("start", Err(Status::failed_precondition(what)));
        }
        let send = |mut node: NodeClient<Channel>| async move { node.start_instance(spec).await };
        self.count("start", self.0.pass(&instance, COMMAND, send).await)
    }
    async fn stop_instance(&self, request: Request<StopInstanceRequest>) -> Result<Response<Incarnation>, Status> {
        let request = request.into_inner();
        let instance = request.instance_id.clone();
        let patience = COMMAND + Duration::from_secs(request.grace_secs.into());
        let send = |mut node: NodeClient<Channel>| async move { node.stop_instance(request).await };
        self.count("stop", self.0.pass(&instance, patience, send).await)
    }
    async fn reboot_instance(&self, request: Request<InstanceRequest>) -> Result<Response<Incarnation>, Status> {
        let request = request.into_inner();
        let instance = request.instance_id.clone();
        let send = |mut node: NodeClient<Channel>| async move { node.reboot_instance(request).await };
        self.count("reboot", self.0.pass(&instance, COMMAND, send).await)
    }
    async fn attach_volume(&self, request: Request<AttachVolumeRequest>) -> Result<Response<Incarnation>, Status> {
        let request = request.into_inner();
        let instance = request.instance_id.clone();
        let send = |mut node: NodeClient<Channel>| async move { node.attach_volume(request).await };
        self.count("attach", self.0.pass(&instance, COMMAND, send).await)
    }
    async fn detach_volume(&self, request: Request<DetachVolumeRequest>) -> Result<Response<Incarnation>, Status> {
        let request = request.into_inner();
        let instance = request.instance_id.clone();
        let send = |mut node: NodeClient<Channel>| async move { node.detach_volume(request).await };
        self.count("detach", self.0.pass(&instance, COMMAND, send).await)
    }
    async fn get_console(&self, request: Request<InstanceRequest>) -> Result<Response<Console>, Status> {
        let request = request.into_inner();
        let instance = request.instance_id.clone();
        let send = |mut node: NodeClient<Channel>| async move { node.get_console(request).await };
        self.count("console", self.0.pass(&instance, REPORT * 3, send).await)
    }
    async fn report(&self, _: Request<ReportRequest>) -> Result<Response<ClusterReport>, Status> {
        let nodes = self.0.reports().await;
        self.count("report", Ok(ClusterReport { zone: self.0.name.clone(), nodes }))
    }
}
