//! Drives the pure machines of membership and election: feeds them what the swarm hears and the clock shows, and
//! carries out what they decide. Everyone else reads the outcome from a [`ClusterView`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use consortium_protocol::cluster::ClusterId;
use consortium_protocol::election::{self, Certificate, Election, ElectionConfig, Input as ElectionInput};
use consortium_protocol::envelope::Signed;
use consortium_protocol::identity::{NodeId, RootKey};
use consortium_protocol::membership::{self, MemberState, Membership, MembershipConfig};
use consortium_protocol::msat::Msat;
use consortium_protocol::time::Millis;
use consortium_protocol::wire::audit::AuditOrder;
use consortium_protocol::wire::election::ElectionMessage;
use consortium_protocol::wire::escrow::EscrowMessage;
use consortium_protocol::wire::fact::Fact;
use consortium_protocol::wire::heartbeat::{Heartbeat, Lease, ModelRef};
use consortium_protocol::wire::rpc::{Assign, Refusal, RefusalCode, Request, Response};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::audit::earning::Earning;
use crate::audit::standings::Standings;
use crate::audit::{Audits, Heard};
use crate::clock::{Skew, Timeliness, wall_ms};
#[cfg(feature = "lightning")]
use crate::escrow::EscrowDesk;
use crate::shards::Shards;
use crate::storage::{Storage, StorageError};
use crate::swarm::{Reply, SwarmEvent, SwarmHandle};
use crate::tabs::Tabs;
use crate::train::Trainings;

const TICK: Duration = Duration::from_millis(100);
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Time for the last heartbeat to leave.
const GOODBYE: Duration = Duration::from_millis(200);
/// Time for a peer to take an election message.
const ELECTION_RPC: Duration = Duration::from_secs(3);

/// The cluster as this node sees it.
#[derive(Clone, Debug, Default)]
pub struct ClusterView {
    /// The term obeyed; 0 before the first.
    pub term: u64,
    /// The master obeyed in it, while it is alive.
    pub master: Option<NodeId>,
    /// The master obeyed in it, alive or not: its orders of this term count.
    pub obeyed: Option<NodeId>,
    /// Members, this node included.
    pub members: BTreeMap<NodeId, MemberView>,
}

/// One member.
#[derive(Clone, Debug)]
pub struct MemberView {
    /// What it said last.
    pub heartbeat: Heartbeat,
    /// Its heartbeats are late.
    pub suspect: bool,
}

impl ClusterView {
    /// Is `node` the master of `term` here, and no newer term known?
    #[must_use]
    pub fn obeys(&self, node: &NodeId, term: u64) -> bool {
        self.term == term && self.obeyed.as_ref() == Some(node)
    }

    /// The model of that name, as the first of these nodes that has it says.
    #[must_use]
    pub fn model<const N: usize>(&self, name: &str, nodes: [&NodeId; N]) -> Option<&ModelRef> {
        let mut members = nodes.into_iter().filter_map(|node| self.members.get(node));
        members.find_map(|member| member.heartbeat.models.iter().find(|model| model.name == name))
    }
}

/// What a node says about itself besides its layers.
#[derive(Clone, Debug)]
pub struct LocalFacts {
    /// Complete copies of models on disk.
    pub models: Vec<ModelRef>,
    /// Memory offered, in bytes.
    pub memory_bytes: u64,
    /// Measured time of a token through a layer, in microseconds.
    pub layer_micros: u32,
    /// What it asks for one token through one layer.
    pub price: Msat,
    /// What it asks, as a master, for each position of a job.
    pub master_fee: Msat,
    /// Could serve as master: it has a model and its tokenizer.
    pub willing: bool,
}

/// What the driver of the machines needs.
pub struct ClusterTask {
    /// The node's key.
    pub key: Arc<RootKey>,
    /// The cluster.
    pub cluster: ClusterId,
    /// The swarm.
    pub swarm: SwarmHandle,
    /// Where promises are kept.
    pub storage: Storage,
    /// The layers held.
    pub shards: Shards,
    /// What this node says of itself.
    pub facts: watch::Receiver<LocalFacts>,
    /// Who is shut out.
    pub standings: Standings,
    /// Where verdicts and orders for audits go.
    pub audits: Audits,
    /// Where payers say what they owe.
    pub earning: Earning,
    /// Where it is settled.
    pub tabs: Tabs,
    /// Where runs of training that were announced go.
    pub trainings: Trainings,
    /// The escrows; none without a wallet.
    #[cfg(feature = "lightning")]
    pub escrows: Option<EscrowDesk>,
    /// Where the outcome is published.
    pub view: watch::Sender<ClusterView>,
}

impl ClusterTask {
    /// Runs until `stop`, then says goodbye. Ends the node through `stop` when it cannot go on safely.
    ///
    /// # Errors
    /// When promises of earlier elections cannot be read: without them the node might break them.
    pub async fn run(
        self,
        mut events: mpsc::Receiver<SwarmEvent>,
        stop: CancellationToken,
    ) -> Result<(), StorageError> {
        let started = Instant::now();
        let incarnation = self.storage.next_incarnation(wall_ms()).await?;
        let persisted = self.storage.election(self.cluster).await?.unwrap_or_default();
        let me = self.key.node_id();
        let mut state = Running {
            membership: Membership::new(me, self.cluster, MembershipConfig::default()),
            election: Election::new(
                Arc::clone(&self.key),
                self.cluster,
                persisted,
                ElectionConfig::default(),
                Millis(0),
            ),
            rng: StdRng::from_os_rng(),
            master: None,
            started,
            incarnation,
            seq: 0,
            skew: Skew::default(),
            task: self,
            stop: stop.clone(),
        };
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = heartbeat.tick() => state.beat(false).await,
                _ = tick.tick() => state.tick().await,
                event = events.recv() => match event {
                    Some(event) => state.hear(event).await,
                    None => break,
                },
            }
        }
        state.election_input(ElectionInput::StepDown).await;
        state.beat(true).await;
        // The swarm lives as long as its events are taken: long enough for the goodbye to leave.
        let _done = tokio::time::timeout(GOODBYE, async { while events.recv().await.is_some() {} }).await;
        Ok(())
    }
}

struct Running {
    membership: Membership,
    election: Election,
    rng: StdRng,
    /// The master obeyed, while it is alive.
    master: Option<NodeId>,
    started: Instant,
    incarnation: u64,
    seq: u64,
    skew: Skew,
    task: ClusterTask,
    stop: CancellationToken,
}

impl Running {
    fn now(&self) -> Millis {
        Millis(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    async fn beat(&mut self, leaving: bool) {
        self.seq += 1;
        let facts = self.task.facts.borrow().clone();
        let held: Vec<Lease> = self.task.shards.held().borrow().iter().map(|shard| shard.lease).collect();
        let active_jobs = self.task.shards.sessions();
        let heartbeat = Heartbeat {
            cluster: self.task.cluster,
            incarnation: self.incarnation,
            seq: self.seq,
            term: self.election.term(),
            master: self.election.master(),
            willing: facts.willing && !leaving,
            memory_bytes: facts.memory_bytes,
            layer_micros: facts.layer_micros,
            models: facts.models,
            held,
            active_jobs,
            price_per_layer_token: facts.price,
            master_fee: facts.master_fee,
            uptime_s: self.started.elapsed().as_secs(),
            leaving,
            sent_at_ms: wall_ms(),
        };
        let signed = Signed::sign(&self.task.key, heartbeat);
        self.member_input(membership::Input::Sent(signed.clone())).await;
        if self.task.swarm.publish(Fact::Heartbeat(signed)).await.is_err() {
            debug!("the swarm has ended");
        }
    }

    async fn tick(&mut self) {
        self.member_input(membership::Input::Tick).await;
        let standings = self.standings();
        self.election_input(ElectionInput::View(standings)).await;
        self.election_input(ElectionInput::Tick).await;
    }

    async fn hear(&mut self, event: SwarmEvent) {
        match event {
            SwarmEvent::Connected(node) => debug!(%node, "connected"),
            SwarmEvent::Disconnected(node) => self.member_input(membership::Input::Disconnected(node)).await,
            SwarmEvent::Fact { fact: Fact::Heartbeat(heartbeat), .. } => {
                if self.timely(&heartbeat) {
                    self.member_input(membership::Input::Heartbeat(heartbeat)).await;
                }
            }
            SwarmEvent::Fact { fact: Fact::Certificate(certificate), .. } => {
                self.election_input(ElectionInput::Certificate(certificate)).await;
            }
            SwarmEvent::Fact { fact: Fact::Verdict(verdict), .. } => self.heard(Heard::Verdict(verdict)),
            SwarmEvent::Fact { fact: Fact::Rebuttal(word), .. } => self.heard(Heard::Rebuttal(word)),
            SwarmEvent::Fact { fact: Fact::TreeHead(head), .. } => self.heard(Heard::Head(head)),
            SwarmEvent::Fact { fact: Fact::Equivocation(proof), .. } => self.heard(Heard::Equivocation(proof)),
            SwarmEvent::Fact { fact: Fact::Run(spec), .. } => self.task.trainings.heard(spec),
            SwarmEvent::Request { from, request, reply } => self.answer(from, request, reply).await,
        }
    }

    fn heard(&self, heard: Heard) {
        let _dropped_when_there_is_no_room = self.task.audits.heard(heard);
    }

    /// Whether a heartbeat was sent about now, by this node's wall clock.
    fn timely(&mut self, heartbeat: &Signed<Heartbeat>) -> bool {
        let node = heartbeat.signer();
        match self.skew.judge(node, heartbeat.payload().sent_at_ms, wall_ms(), Instant::now()) {
            Timeliness::Timely => return true,
            Timeliness::Off => {}
            Timeliness::Tell { by, ahead } => warn!(
                %node,
                "its clock is {} s {} of this machine's: one of the two is wrong; until it is set right, this node \
                 does not count that one as a member",
                by.as_secs(),
                if ahead { "ahead" } else { "behind" },
            ),
        }
        false
    }

    async fn answer(&mut self, from: NodeId, request: Request, reply: Reply) {
        match request {
            Request::Election(message) => {
                reply.send(Response::Ack);
                self.election_input(ElectionInput::Message { from, message }).await;
            }
            Request::Audit(order) if !self.may_order(from, &order) => reply.send(Response::Refused(Refusal::new(
                RefusalCode::NotMaster,
                "audits are ordered by the member that pays, of members' work",
            ))),
            Request::Audit(order) => reply.send(match self.task.audits.order(*order) {
                true => Response::Ack,
                false => Response::Refused(Refusal::new(
                    RefusalCode::Busy,
                    "too many audits are waiting here, or it has not the model",
                )),
            }),
            Request::Accepted(acceptance) => {
                let earning = self.task.earning.clone();
                tokio::spawn(async move { reply.send(booked(earning.accepted(from, *acceptance).await)) });
            }
            Request::Judged(verdict) => {
                let earning = self.task.earning.clone();
                tokio::spawn(async move { reply.send(booked(earning.judged(from, *verdict).await)) });
            }
            Request::Settle(tab) => {
                let tabs = self.task.tabs.clone();
                tokio::spawn(async move { reply.send(tabs.settle(from, *tab).await) });
            }
            Request::Channel(offer) => {
                let tabs = self.task.tabs.clone();
                tokio::spawn(async move { reply.send(tabs.agree(from, *offer).await) });
            }
            Request::ChannelBegun(begun) => {
                let tabs = self.task.tabs.clone();
                tokio::spawn(async move { reply.send(tabs.begun(from, *begun).await) });
            }
            Request::Escrow(message) => self.answer_escrow(from, *message, reply),
            Request::ChannelGone(gone) => {
                let tabs = self.task.tabs.clone();
                tokio::spawn(async move { reply.send(tabs.gone(from, *gone).await) });
            }
            Request::Certificate => reply.send(Response::Certificate(self.election.current().cloned())),
            Request::Assign(assign) => {
                if let Err(refusal) = self.check_order(from, assign.signer(), assign.payload()) {
                    return reply.send(Response::Refused(refusal));
                }
                let shards = self.task.shards.clone();
                tokio::spawn(async move { reply.send(shards.assign(assign.payload()).await) });
            }
            Request::Release(release) => {
                let order = release.payload();
                if order.cluster != self.task.cluster || !self.election.obeys(release.signer(), order.term) {
                    return reply.send(Response::Refused(stale(order.term, &release.signer())));
                }
                let (shards, model) = (self.task.shards.clone(), order.model);
                tokio::spawn(async move {
                    shards.release(&model).await;
                    reply.send(Response::Ack);
                });
            }
        }
    }

    fn answer_escrow(&self, from: NodeId, message: EscrowMessage, reply: Reply) {
        #[cfg(feature = "lightning")]
        if let Some(escrows) = self.task.escrows.clone() {
            tokio::spawn(async move { reply.send(escrows.receive(from, message).await) });
            return;
        }
        let _unanswered = (from, message);
        reply.send(Response::Refused(Refusal::new(
            RefusalCode::NoLightning,
            "this node has no Lightning wallet: it takes part in no escrow",
        )));
    }

    /// Whether this node audits for `from`: a member's own job, done by members.
    fn may_order(&self, from: NodeId, order: &AuditOrder) -> bool {
        let member = |node: &NodeId| self.membership.member(node).is_some();
        order.order.payload().payer == from
            && member(&from)
            && order.receipt().is_some_and(|receipt| receipt.signer() != from && member(&receipt.signer()))
    }

    fn check_order(&self, from: NodeId, signer: NodeId, assign: &Assign) -> Result<(), Refusal> {
        if from == signer && assign.cluster == self.task.cluster && self.election.obeys(signer, assign.term) {
            Ok(())
        } else {
            Err(stale(assign.term, &signer))
        }
    }

    async fn member_input(&mut self, input: membership::Input) {
        let now = self.now();
        let mut changed = matches!(input, membership::Input::Heartbeat(_) | membership::Input::Sent(_));
        for output in self.membership.handle(input, now, &mut self.rng) {
            use membership::Output;
            match output {
                Output::Joined(node) => info!(%node, "joined"),
                Output::Suspected(node) => warn!(%node, "heartbeats are late"),
                Output::Recovered(node) => info!(%node, "is back"),
                Output::Left(node, reason) => info!(%node, ?reason, "left"),
                Output::Rejected { from, why } => {
                    debug!(%from, ?why, "ignored a heartbeat");
                    continue;
                }
                Output::DuplicateIdentity(node) if node == self.task.key.node_id() => {
                    error!(
                        "another running node uses this node's identity key; stopping, so that one key serves one host"
                    );
                    self.stop.cancel();
                }
                Output::DuplicateIdentity(node) => warn!(%node, "two running nodes share this identity"),
            }
            changed = true;
        }
        if changed {
            self.publish();
        }
    }

    fn standings(&self) -> BTreeMap<NodeId, election::Standing> {
        // Finer opinions than what is proved would only divide the voters.
        let mut standings = self.membership.standings(|_| 1);
        for (node, standing) in &mut standings {
            // As if it were silent: nobody obeys it, and nobody elects it.
            if self.task.standings.is_banned(node) {
                *standing = election::Standing { alive: false, reputation: 0, willing: false, ..*standing };
            }
        }
        standings
    }

    async fn election_input(&mut self, input: ElectionInput) {
        let now = self.now();
        let outputs = self.election.handle(input, now, &mut self.rng);
        if outputs.is_empty() {
            return;
        }
        for output in outputs {
            use election::Output;
            match output {
                Output::Persist(promises) => {
                    if let Err(error) = self.task.storage.save_election(self.task.cluster, &promises).await {
                        error!(%error, "an election promise cannot be kept on disk; stopping rather than risking to break it");
                        self.stop.cancel();
                        return;
                    }
                }
                Output::Send { to, message } => self.send(to, message),
                Output::Broadcast(certificate) => self.broadcast(certificate).await,
                Output::Master(certificate) => {
                    if self.master != Some(certificate.master()) {
                        info!(term = certificate.term(), master = %certificate.master(), "obeying the master of this term");
                    }
                    self.master = Some(certificate.master());
                }
                Output::NoMaster => {
                    info!(term = self.election.term(), "the master is gone or silent");
                    self.master = None;
                }
            }
        }
        self.publish();
    }

    fn send(&self, to: NodeId, message: ElectionMessage) {
        let swarm = self.task.swarm.clone();
        tokio::spawn(async move {
            if let Err(error) = swarm.request(to, Request::Election(message), ELECTION_RPC).await {
                debug!(%error, "an election message was not delivered");
            }
        });
    }

    async fn broadcast(&self, certificate: Certificate) {
        if self.task.swarm.publish(Fact::Certificate(certificate)).await.is_err() {
            debug!("the swarm has ended");
        }
    }

    fn publish(&self) {
        let own = self.membership.own().map(|own| (own.signer(), own.payload(), false));
        let others = self
            .membership
            .members()
            .map(|member| (member.id(), member.heartbeat().payload(), member.state() == MemberState::Suspect));
        let view = ClusterView {
            term: self.election.term(),
            master: self.master,
            obeyed: self.election.master(),
            members: others
                .chain(own)
                .map(|(id, heartbeat, suspect)| (id, MemberView { heartbeat: heartbeat.clone(), suspect }))
                .collect(),
        };
        self.task.view.send_replace(view);
    }
}

fn booked(result: Result<(), Refusal>) -> Response {
    result.map_or_else(Response::Refused, |()| Response::Ack)
}

fn stale(term: u64, node: &NodeId) -> Refusal {
    Refusal::new(RefusalCode::StaleTerm, format!("{node} is not the master of term {term} here"))
}
