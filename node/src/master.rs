//! What a node does while it is the master: places the model's layers over the members, has them loaded, and keeps the
//! pipeline whole as members come, go and fail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use consortium_inference::model_dir::ModelDir;
use consortium_inference::placement::{self, ModelCost, NodeOffer, PlacementRequest};
use consortium_protocol::cluster::ClusterId;
use consortium_protocol::envelope::Signed;
use consortium_protocol::identity::{NodeId, RootKey};
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::heartbeat::{LayerRange, ModelRef};
use consortium_protocol::wire::pipeline::Hop;
use consortium_protocol::wire::rpc::{Assign, Request, Response};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::audit::standings::Standings;
use crate::cluster::ClusterView;
use crate::config::MAX_PRICE;
use crate::swarm::SwarmHandle;

/// Time for a worker to load its layers.
const LOAD: Duration = Duration::from_secs(280);
/// A node that failed an assignment or a job is left out for this long, unless nothing works without it.
const PENALTY: Duration = Duration::from_secs(10);
/// Members must have been the same for so long before layers are spread for the first time, or spread wider.
const SETTLE: Duration = Duration::from_millis(1200);
/// Time for a stage to give a sign of life.
const PROBE: Duration = Duration::from_secs(1);
const CHECK: Duration = Duration::from_millis(250);
/// Sessions of full context that the caches of a placement must hold.
const SESSIONS: u32 = 1;
/// Assumed until measured: one layer's time, half a round trip, and a link's bandwidth.
const UNMEASURED_LAYER_MICROS: u32 = 1000;
const UNMEASURED_LINK_MICROS: u32 = 1000;
const LINK_BYTES_PER_S: u64 = 50_000_000;

/// A loaded pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pipeline {
    /// Rises with every change; jobs name it when they report a failure.
    pub version: u64,
    /// Term it was committed in.
    pub term: u64,
    /// What it computes.
    pub model: ModelRef,
    /// Its stages, in order.
    pub route: Vec<Hop>,
    /// What one token through one layer of each stage costs.
    pub prices: Vec<Msat>,
}

/// A job that failed on a pipeline.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The pipeline's version.
    pub version: u64,
    /// The nodes that may be at fault. A stream that broke says little about that: when a stage dies, those behind it
    /// close theirs first; then there are none, and the master asks all stages for a sign of life.
    pub nodes: Vec<NodeId>,
}

/// Cloneable handle to the master's task. On a node that is not the master no pipeline shows.
#[derive(Clone)]
pub struct MasterHandle {
    pipeline: watch::Receiver<Option<Arc<Pipeline>>>,
    trouble: watch::Receiver<Option<String>>,
    failures: mpsc::Sender<Failure>,
}

impl MasterHandle {
    /// The committed pipeline, now and as it changes.
    #[must_use]
    pub fn pipeline(&self) -> watch::Receiver<Option<Arc<Pipeline>>> {
        self.pipeline.clone()
    }

    /// Why there is no pipeline, in plain words.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble.borrow().clone()
    }

    /// Reports a job that failed on a pipeline. A new version follows.
    pub fn report_failure(&self, failure: Failure) {
        // A full queue means that the same trouble has been reported many times already.
        let _reported = self.failures.try_send(failure);
    }
}

/// What the task needs.
pub struct MasterTask {
    /// The node's key.
    pub key: Arc<RootKey>,
    /// The cluster.
    pub cluster: ClusterId,
    /// The swarm.
    pub swarm: SwarmHandle,
    /// The cluster as seen here.
    pub view: watch::Receiver<ClusterView>,
    /// The model this node would serve as master.
    pub model: Option<(ModelRef, Arc<ModelDir>)>,
    /// Stages asked for.
    pub stages: Option<usize>,
    /// What is thought of the members: who is shut out gets no layers.
    pub standings: Standings,
}

impl MasterTask {
    /// Spawns the task; it ends with `stop`.
    #[must_use]
    pub fn spawn(self, stop: CancellationToken) -> MasterHandle {
        let (pipeline, pipeline_rx) = watch::channel(None);
        let (trouble, trouble_rx) = watch::channel(None);
        let (failures, failure_queue) = mpsc::channel(64);
        let running = Running {
            task: self,
            pipeline,
            trouble,
            version: 0,
            penalties: BTreeMap::new(),
            broken: false,
            eligible: BTreeSet::new(),
            settled_since: Instant::now(),
        };
        tokio::spawn(running.run(failure_queue, stop));
        MasterHandle { pipeline: pipeline_rx, trouble: trouble_rx, failures }
    }
}

struct Running {
    task: MasterTask,
    pipeline: watch::Sender<Option<Arc<Pipeline>>>,
    trouble: watch::Sender<Option<String>>,
    version: u64,
    penalties: BTreeMap<NodeId, Instant>,
    /// A job failed on the committed pipeline.
    broken: bool,
    eligible: BTreeSet<NodeId>,
    settled_since: Instant,
}

impl Running {
    async fn run(mut self, mut failures: mpsc::Receiver<Failure>, stop: CancellationToken) {
        let mut check = tokio::time::interval(CHECK);
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.task.view.changed() => if changed.is_err() { return },
                failed = failures.recv() => match failed {
                    Some(failure) => self.failed(failure).await,
                    None => return,
                },
                _ = check.tick() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.consider() => {}
            }
        }
    }

    async fn failed(&mut self, failure: Failure) {
        let current = self.pipeline.borrow().clone();
        let Some(pipeline) = current.filter(|pipeline| pipeline.version == failure.version) else { return };
        self.broken = true;
        if failure.nodes.is_empty() {
            self.probe(&pipeline.route).await;
        }
        failure.nodes.into_iter().for_each(|node| self.penalise(node));
    }

    fn penalise(&mut self, node: NodeId) {
        // This node cannot do without itself; its own failure is retried.
        if node != self.task.swarm.me() {
            self.penalties.insert(node, Instant::now());
        }
    }

    /// Asks all stages for a sign of life, and leaves out those that give none.
    async fn probe(&mut self, route: &[Hop]) {
        let asking = route.iter().map(|hop| {
            let (swarm, node) = (self.task.swarm.clone(), hop.node);
            async move { (node, swarm.request(node, Request::Certificate, PROBE).await.is_ok()) }
        });
        for (node, alive) in futures::future::join_all(asking).await {
            if !alive {
                self.penalise(node);
            }
        }
    }

    async fn consider(&mut self) {
        let view = self.task.view.borrow_and_update().clone();
        let Some((model, dir)) = self.task.model.clone() else { return };
        if !view.obeys(&self.task.swarm.me(), view.term) {
            self.pipeline.send_if_modified(|pipeline| pipeline.take().is_some());
            self.trouble.send_replace(None);
            return;
        }
        self.penalties.retain(|_, since| since.elapsed() < PENALTY);
        let eligible = self.eligible_in(&view, &model);
        if eligible != self.eligible {
            self.eligible = eligible;
            self.settled_since = Instant::now();
        }
        if !self.wanted(&view, &dir) {
            return self.reprice(&view);
        }
        match self.commit(&view, &model, &dir).await {
            Ok(route) => {
                self.version += 1;
                self.broken = false;
                let stages: Vec<String> =
                    route.iter().map(|hop| format!("{}:{}", hop.node.short(), hop.range)).collect();
                info!(term = view.term, model = model.name, stages = stages.join(" "), "pipeline committed");
                self.pipeline.send_replace(Some(Arc::new(Pipeline {
                    version: self.version,
                    term: view.term,
                    model,
                    prices: route.iter().map(|hop| price(&view, &hop.node)).collect(),
                    route,
                })));
                self.trouble.send_replace(None);
            }
            Err(reason) => {
                if self.trouble.borrow().as_deref() != Some(&reason) {
                    warn!(reason, "no pipeline yet");
                }
                self.trouble.send_replace(Some(reason));
                if self.broken {
                    self.pipeline.send_replace(None);
                }
            }
        }
    }

    /// Jobs are ordered at what the nodes of the pipeline ask now; it stays the same pipeline.
    fn reprice(&self, view: &ClusterView) {
        self.pipeline.send_if_modified(|pipeline| {
            let Some(current) = pipeline.as_ref() else { return false };
            // Who asks for too much is replaced, and until then works at the price of before.
            let asked = |(hop, before): (&Hop, &Msat)| match view.members.contains_key(&hop.node) {
                true => Some(price(view, &hop.node)).filter(|price| *price <= MAX_PRICE).unwrap_or(*before),
                false => *before,
            };
            let prices: Vec<Msat> = current.route.iter().zip(&current.prices).map(asked).collect();
            if prices == current.prices {
                return false;
            }
            *pipeline = Some(Arc::new(Pipeline { prices, ..Pipeline::clone(current) }));
            true
        });
    }

    /// Is there something to (re)place?
    fn wanted(&mut self, view: &ClusterView, dir: &ModelDir) -> bool {
        let current = self.pipeline.borrow().clone();
        let settled = self.settled_since.elapsed() >= SETTLE;
        let Some(pipeline) = current else {
            // A cluster that held layers before is adopted at once; a fresh one is given time to gather.
            let held = view.members.values().any(|member| !member.heartbeat.held.is_empty());
            return settled || held;
        };
        let lost = pipeline.route.iter().find(|hop| !self.eligible.contains(&hop.node));
        if lost.is_some() || pipeline.term != view.term {
            self.broken = true;
        }
        if self.broken {
            return true;
        }
        // Wider when members came that the operator's number of stages has use for, and nothing is running.
        let layers = usize::from(dir.config().layers);
        let reachable = self.task.stages.unwrap_or(0).min(self.available().len()).min(layers);
        let idle = view.members.values().all(|member| member.heartbeat.active_jobs == 0);
        pipeline.route.len() < reachable && settled && idle
    }

    fn eligible_in(&self, view: &ClusterView, model: &ModelRef) -> BTreeSet<NodeId> {
        let mut able = eligible(view, model);
        able.retain(|node| !self.task.standings.is_banned(node));
        able
    }

    fn available(&self) -> Vec<NodeId> {
        self.eligible.iter().filter(|node| !self.penalties.contains_key(node)).copied().collect()
    }

    async fn commit(&mut self, view: &ClusterView, model: &ModelRef, dir: &ModelDir) -> Result<Vec<Hop>, String> {
        let links = self.links().await;
        let plan = |nodes: &[NodeId]| {
            placement::place(&self.request(view, model, dir, nodes, &links)).map_err(|error| error.to_string())
        };
        let available = self.available();
        let everyone: Vec<NodeId> = self.eligible.iter().copied().collect();
        let route = match plan(&available) {
            Ok(placement) => placement.stages,
            // Nodes that failed a moment ago are better than none.
            Err(reason) if available.len() < everyone.len() => plan(&everyone).map_err(|_| reason)?.stages,
            Err(reason) => return Err(reason),
        };
        self.assign(view.term, model, &route).await?;
        Ok(route)
    }

    async fn assign(&mut self, term: u64, model: &ModelRef, route: &[Hop]) -> Result<(), String> {
        let mut loading: FuturesUnordered<_> = route
            .iter()
            .map(|hop| {
                let assign = Assign { cluster: self.task.cluster, term, model: model.clone(), range: hop.range };
                let request = Request::Assign(Signed::sign(&self.task.key, assign));
                let (swarm, node, range) = (self.task.swarm.clone(), hop.node, hop.range);
                async move { (node, range, swarm.request(node, request, LOAD).await) }
            })
            .collect();
        let mut problems = Vec::new();
        let mut pending: BTreeSet<NodeId> = route.iter().map(|hop| hop.node).collect();
        let mut view = self.task.view.clone();
        while !pending.is_empty() {
            let (node, range, answer) = tokio::select! {
                Some(answered) = loading.next() => answered,
                // Loading may take minutes; a worker that falls silent meanwhile is not waited for.
                changed = view.changed() => {
                    let eligible = self.eligible_in(&view.borrow_and_update(), model);
                    if changed.is_err() || view.borrow().term != term {
                        return Err("the term ended while layers were being loaded".to_owned());
                    }
                    let Some(lost) = pending.iter().find(|node| !eligible.contains(node)).copied() else { continue };
                    pending.remove(&lost);
                    problems.push(format!("{} fell silent while it was loading layers", lost.short()));
                    continue;
                }
            };
            pending.remove(&node);
            let problem = match answer {
                Ok(Response::Loaded { lease, .. }) if lease.range == range && lease.model == model.digest => continue,
                Ok(Response::Refused(refusal)) => refusal.message,
                Ok(_) => "an answer that does not fit the question".to_owned(),
                Err(error) => error.to_string(),
            };
            self.penalise(node);
            problems.push(format!("{} could not take layers {range}: {problem}", node.short()));
        }
        if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
    }

    async fn links(&self) -> BTreeMap<NodeId, u32> {
        let peers = self.task.swarm.peers().await.unwrap_or_default();
        let micros = |rtt: Duration| u32::try_from(rtt.as_micros() / 2).unwrap_or(u32::MAX);
        peers.into_iter().filter_map(|(node, info)| Some((node, micros(info.rtt?)))).collect()
    }

    fn request(
        &self,
        view: &ClusterView,
        model: &ModelRef,
        dir: &ModelDir,
        nodes: &[NodeId],
        links: &BTreeMap<NodeId, u32>,
    ) -> PlacementRequest {
        let offers = nodes.iter().filter_map(|node| {
            let heartbeat = &view.members.get(node)?.heartbeat;
            Some(NodeOffer {
                id: *node,
                memory_bytes: heartbeat.memory_bytes,
                layer_micros: if heartbeat.layer_micros == 0 {
                    UNMEASURED_LAYER_MICROS
                } else {
                    heartbeat.layer_micros
                },
                link_micros: links.get(node).copied().unwrap_or(UNMEASURED_LINK_MICROS),
                bytes_per_s: LINK_BYTES_PER_S,
                price: heartbeat.price_per_layer_token,
                reputation: (self.task.standings.score(node) * 1000.0) as u32,
                held: heartbeat.held.iter().find(|lease| lease.model == model.digest).map(|lease| lease.range),
                pinned: None,
            })
        });
        let config = dir.config();
        PlacementRequest {
            model: ModelCost {
                layer_bytes: (0..model.layers).map(|i| dir.layer_bytes(LayerRange { first: i, last: i })).collect(),
                embed_bytes: dir.embed_bytes(),
                head_bytes: dir.head_bytes(),
                kv_bytes_per_position: dir.kv_bytes(LayerRange { first: 0, last: 0 }, 1),
                hidden: u32::try_from(config.hidden_size).unwrap_or(u32::MAX),
            },
            context: model.context,
            sessions: SESSIONS,
            stages: self.task.stages,
            nodes: offers.collect(),
        }
    }
}

/// What a member asks.
fn price(view: &ClusterView, node: &NodeId) -> Msat {
    view.members.get(node).map_or(Msat(0), |member| member.heartbeat.price_per_layer_token)
}

/// Members that can hold layers of `model` now.
fn eligible(view: &ClusterView, model: &ModelRef) -> BTreeSet<NodeId> {
    let able = view.members.iter().filter(|(_, member)| {
        !member.suspect
            && !member.heartbeat.leaving
            && member.heartbeat.price_per_layer_token <= MAX_PRICE
            && member.heartbeat.models.iter().any(|held| held.digest == model.digest)
    });
    able.map(|(node, _)| *node).collect()
}
