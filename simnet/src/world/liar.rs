//! A member that says whatever may hurt. It has its own key and puppets that nobody has admitted, and it hears and
//! repeats what others say; it cannot sign for others.

use std::collections::BTreeMap;

use consortium_protocol::cbor;
use consortium_protocol::election::{
    Ballot, CEILING_MS, CEILING_SLACK, Candidacy, Certificate, ElectionMessage, Refused, RefusedReason, Vote,
    VoteRequest, view_digest,
};
use consortium_protocol::envelope::Signed;
use consortium_protocol::wire::heartbeat::Heartbeat;
use consortium_protocol::{ClusterId, Msat, NodeId, RootKey};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::host::EPOCH_MS;
use super::network::Packet;

/// How many packets it keeps to repeat.
const MEMORY: usize = 64;

/// What kind of liar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traits {
    /// Says it would be master.
    pub willing: bool,
    /// Names masters at random in its heartbeats; else it always names itself.
    pub fickle: bool,
    /// Forges certificates and asks for votes.
    pub ambitious: bool,
    /// Votes for everyone, and more than once.
    pub double_votes: bool,
    /// Repeats what others said.
    pub replays: bool,
}

impl Traits {
    /// A liar at random.
    pub fn draw(rng: &mut ChaCha8Rng) -> Self {
        Self {
            willing: rng.random_bool(0.5),
            fickle: rng.random_bool(0.5),
            ambitious: rng.random_bool(0.8),
            double_votes: rng.random_bool(0.8),
            replays: rng.random_bool(0.8),
        }
    }
}

/// The liar.
pub struct Liar {
    index: usize,
    key: RootKey,
    puppets: Vec<RootKey>,
    cluster: ClusterId,
    traits: Traits,
    seq: u64,
    last_heartbeat: u64,
    /// The highest term it has heard of from others.
    term: u64,
    now: u64,
    memory: Vec<Packet>,
}

/// A certificate that `key` makes alone, as a node does that knows nobody else.
pub fn lone_certificate(key: &RootKey, cluster: ClusterId, term: u64) -> Option<Certificate> {
    certificate(&[key], cluster, term)
}

/// A certificate by `keys`, whose view is just themselves; the first is master.
fn certificate(keys: &[&RootKey], cluster: ClusterId, term: u64) -> Option<Certificate> {
    let candidate = keys.first()?.node_id();
    let mut view: Vec<NodeId> = keys.iter().map(|key| key.node_id()).collect();
    view.sort_unstable();
    let vote = Vote { cluster, term, round: 1, candidate, view: view_digest(&view) };
    let ballots: BTreeMap<NodeId, Ballot> = keys
        .iter()
        .map(|key| {
            let ballot = Ballot { vote: Signed::sign(key, vote), view: view.clone() };
            (key.node_id(), ballot)
        })
        .collect();
    Certificate::assemble(candidate, &ballots)
}

impl Liar {
    /// A liar at place `index` of the network.
    pub fn new(index: usize, cluster: ClusterId, traits: Traits) -> Self {
        Self {
            index,
            key: RootKey::from_seed([201; 32]),
            puppets: (0..6).map(|n| RootKey::from_seed([210 + n; 32])).collect(),
            cluster,
            traits,
            seq: 0,
            last_heartbeat: 0,
            term: 0,
            now: 0,
            memory: Vec::new(),
        }
    }

    /// Its place in the network.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its name.
    pub fn id(&self) -> NodeId {
        self.key.node_id()
    }

    /// Hears something, and may answer.
    pub fn receive(&mut self, packet: Packet, rng: &mut ChaCha8Rng) -> Vec<(Option<NodeId>, Packet)> {
        if self.memory.len() < MEMORY {
            self.memory.push(packet.clone());
        } else if rng.random_bool(0.05) {
            let place = rng.random_range(0..MEMORY);
            self.memory[place] = packet.clone();
        }
        match packet {
            Packet::Heartbeat(heartbeat) => self.term = self.term.max(heartbeat.payload().term),
            Packet::Certificate(certificate) => self.term = self.term.max(certificate.term()),
            Packet::Election { from, message: ElectionMessage::Request(candidacy) } if self.traits.double_votes => {
                let asked = *candidacy.request.payload();
                let candidate = candidacy.request.signer();
                return vec![self.vote(from, candidate, asked), self.vote(from, self.id(), asked)];
            }
            Packet::Election { from, message: ElectionMessage::Ask } => {
                let lie = lone_certificate(&self.key, self.cluster, self.pick_term(rng));
                return lie.map(|lie| self.to(Some(from), ElectionMessage::Certificate(lie))).into_iter().collect();
            }
            Packet::Election { .. } => {}
        }
        Vec::new()
    }

    fn to(&self, to: Option<NodeId>, message: ElectionMessage) -> (Option<NodeId>, Packet) {
        let from = self.id();
        (to, Packet::Election { from, message })
    }

    fn vote(&self, to: NodeId, candidate: NodeId, asked: VoteRequest) -> (Option<NodeId>, Packet) {
        let mut view = vec![self.id(), to, candidate];
        view.sort_unstable();
        view.dedup();
        let vote =
            Vote { cluster: asked.cluster, term: asked.term, round: asked.round, candidate, view: view_digest(&view) };
        let vote = Signed::sign(&self.key, vote);
        self.to(Some(to), ElectionMessage::Vote(Ballot { vote, view }))
    }

    /// A term that may do harm.
    fn pick_term(&self, rng: &mut ChaCha8Rng) -> u64 {
        let ceiling = (EPOCH_MS + self.now) / CEILING_MS;
        match rng.random_range(0..9) {
            0..=2 => self.term.saturating_add(1),
            3 => self.term.saturating_add(2),
            4 => self.term.saturating_add(1000),
            5 => ceiling,
            6 => ceiling + rng.random_range(0..=2 * CEILING_SLACK),
            7 => 1 << 61,
            _ => u64::MAX,
        }
    }

    /// Does some harm.
    pub fn act(&mut self, hosts: &[NodeId], now: u64, rng: &mut ChaCha8Rng) -> Vec<(Option<NodeId>, Packet)> {
        let mut out = Vec::new();
        self.now = now;
        if now >= self.last_heartbeat + 400 {
            self.last_heartbeat = now;
            out.push((None, Packet::Heartbeat(self.heartbeat(hosts, now, rng))));
        }
        let victim = hosts.choose(rng).copied();
        match rng.random_range(0..6) {
            0 | 1 if self.traits.ambitious => {
                let term = self.pick_term(rng);
                let helpers = rng.random_range(0..=self.puppets.len());
                let keys: Vec<&RootKey> = [&self.key].into_iter().chain(&self.puppets[..helpers]).collect();
                if let Some(lie) = certificate(&keys, self.cluster, term) {
                    out.push((None, Packet::Certificate(lie.clone())));
                    out.push(self.to(victim, ElectionMessage::Certificate(lie)));
                }
            }
            2 if self.traits.ambitious => {
                let term = self.pick_term(rng);
                let round = *[1, 2, 1 << 31, u64::MAX].choose(rng).unwrap_or(&1);
                let request = Signed::sign(&self.key, VoteRequest { cluster: self.cluster, term, round });
                let basis = lone_certificate(&self.key, self.cluster, term - 1);
                let candidacy = Candidacy { request, basis };
                for host in hosts {
                    let message = ElectionMessage::Request(candidacy.clone());
                    out.push(self.to(Some(*host), message));
                }
            }
            3 => {
                let refused = Refused {
                    term: self.term.saturating_add(rng.random_range(0..3)),

                    round: self.pick_term(rng),
                    reason: RefusedReason::Behind,
                };
                out.push(self.to(victim, ElectionMessage::Refused(refused)));
            }
            4 if self.traits.replays => {
                if let Some(packet) = self.memory.choose(rng) {
                    out.push((victim, self.as_mine(packet.clone())));
                }
            }
            _ => {}
        }
        out
    }

    /// A packet of another, sent again: the transport says who sends it.
    fn as_mine(&self, packet: Packet) -> Packet {
        match packet {
            Packet::Election { message, .. } => Packet::Election { from: self.id(), message },
            gossip => gossip,
        }
    }

    fn heartbeat(&mut self, hosts: &[NodeId], now: u64, rng: &mut ChaCha8Rng) -> Signed<Heartbeat> {
        self.seq += 1;
        let master = if self.traits.fickle { hosts.choose(rng).copied().unwrap_or(self.id()) } else { self.id() };
        let heartbeat = Heartbeat {
            cluster: self.cluster,
            incarnation: EPOCH_MS,
            seq: self.seq,
            term: self.pick_term(rng),
            master: Some(master),
            willing: self.traits.willing,
            memory_bytes: u64::MAX,
            layer_micros: 0,
            models: Vec::new(),
            held: Vec::new(),
            active_jobs: 0,
            price_per_layer_token: Msat::ZERO,
            master_fee: Msat(0),
            uptime_s: u64::MAX,
            leaving: false,
            sent_at_ms: EPOCH_MS + now,
        };
        debug_assert!(cbor::to_vec(&heartbeat).len() < 1024);
        Signed::sign(&self.key, heartbeat)
    }
}
