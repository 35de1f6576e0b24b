//! A node: its machines, its clock, its disk.

use std::sync::Arc;

use consortium_protocol::election::{self, Election, ElectionConfig, Persisted};
use consortium_protocol::envelope::Signed;
use consortium_protocol::membership::{self, Membership, MembershipConfig};
use consortium_protocol::wire::heartbeat::Heartbeat;
use consortium_protocol::{ClusterId, Millis, Msat, NodeId, RootKey};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::network::Packet;

/// What a host is like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traits {
    /// When it starts for the first time.
    pub starts_at: u64,
    /// Whether it would be master.
    pub willing: bool,
    /// What it offers.
    pub capacity: u64,
    /// How fast its clock runs against the world's; 1: as fast.
    pub drift: f64,
    /// How far its wall clock is ahead of the world's, in milliseconds; at most an hour.
    pub wall_skew: u64,
    /// The term it elected itself to, alone, before this world began.
    pub lone_term: Option<u64>,
}

/// What machines want done.
#[derive(Clone, Debug)]
pub enum Action {
    /// Write to disk.
    Persist(Persisted),
    /// Send to one, or to all.
    Send(Option<NodeId>, Packet),
}

struct Life {
    membership: Membership,
    election: Election,
    booted_at: u64,
    seq: u64,
    leaving: bool,
}

/// A node.
pub struct Host {
    key: Arc<RootKey>,
    id: NodeId,
    cluster: ClusterId,
    traits: Traits,
    clock_offset: u64,
    disk: Persisted,
    lives: u32,
    life: Option<Life>,
    paused_until: u64,
    doom: Option<u32>,
}

/// The wall time at which every world begins, in milliseconds since 1970.
pub const EPOCH_MS: u64 = 1_800_000_000_000;

impl Host {
    /// A host that is not running.
    pub fn new(index: usize, cluster: ClusterId, traits: Traits, rng: &mut ChaCha8Rng) -> Self {
        let mut seed = [0; 32];
        rng.fill(&mut seed[..]);
        seed[0] = u8::try_from(index).unwrap_or(u8::MAX);
        let key = Arc::new(RootKey::from_seed(seed));
        Self {
            id: key.node_id(),
            key,
            cluster,
            traits,
            clock_offset: rng.random_range(0..1_000_000),
            disk: Persisted::default(),
            lives: 0,
            life: None,
            paused_until: 0,
            doom: None,
        }
    }

    /// Its name.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Its key.
    pub fn key(&self) -> &RootKey {
        &self.key
    }

    /// What it is like.
    pub fn traits(&self) -> &Traits {
        &self.traits
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.life.is_some()
    }

    /// Whether its `life`th life goes on.
    pub fn lives(&self, life: u32) -> bool {
        self.life.is_some() && self.lives == life
    }

    /// The election machine, if it runs.
    pub fn election(&self) -> Option<&Election> {
        self.life.as_ref().map(|life| &life.election)
    }

    /// What is on its disk.
    pub fn disk(&self) -> &Persisted {
        &self.disk
    }

    /// The master it obeys.
    pub fn master(&self) -> Option<NodeId> {
        self.election().and_then(Election::master)
    }

    /// The term it obeys.
    pub fn term(&self) -> u64 {
        self.election().map_or(0, Election::term)
    }

    /// Writes to disk.
    pub fn remember(&mut self, persisted: Persisted) {
        self.disk = persisted;
    }

    /// Starts it, if it does not run; tells which life this is.
    pub fn start(&mut self, now: u64) -> Option<u32> {
        if self.life.is_some() {
            return None;
        }
        self.lives += 1;
        self.doom = None;
        self.paused_until = 0;
        let config = MembershipConfig::default();
        self.life = Some(Life {
            membership: Membership::new(self.id, self.cluster, config),
            election: Election::new(
                Arc::clone(&self.key),
                self.cluster,
                self.disk.clone(),
                ElectionConfig::default(),
                self.clock(now),
            ),
            booted_at: now,
            seq: 0,
            leaving: false,
        });
        Some(self.lives)
    }

    /// Ends it at once. What was not on disk is lost.
    pub fn crash(&mut self) {
        self.life = None;
        self.doom = None;
    }

    /// Lets it crash after as many more actions.
    pub fn doom(&mut self, actions: u32) {
        self.doom = Some(actions);
    }

    /// Whether it crashes before the next action.
    pub fn crashes_now(&mut self) -> bool {
        match &mut self.doom {
            None => false,
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
        }
    }

    /// Stops it until `until`; what arrives meanwhile waits.
    pub fn pause(&mut self, until: u64) {
        self.paused_until = until;
    }

    /// Until when it is stopped, if it is.
    pub fn paused_until(&self, now: u64) -> Option<u64> {
        (self.life.is_some() && now < self.paused_until).then_some(self.paused_until)
    }

    /// Has it announce that it leaves.
    pub fn step_down(&mut self) {
        if let Some(life) = &mut self.life {
            life.leaving = true;
        }
    }

    /// How long `span` milliseconds of its clock take in the world.
    pub fn global_span(&self, span: u64) -> u64 {
        ((span as f64 / self.traits.drift) as u64).max(1)
    }

    fn clock(&self, now: u64) -> Millis {
        Millis(self.clock_offset + (now as f64 * self.traits.drift) as u64)
    }

    /// Takes a packet.
    pub fn receive(&mut self, packet: Packet, now: u64, rng: &mut ChaCha8Rng) -> Vec<Action> {
        let clock = self.clock(now);
        let Some(life) = &mut self.life else {
            return Vec::new();
        };
        let input = match packet {
            Packet::Heartbeat(heartbeat) => {
                let input = membership::Input::Heartbeat(heartbeat);
                life.membership.handle(input, clock, rng);
                return Vec::new();
            }
            Packet::Certificate(certificate) => election::Input::Certificate(certificate),
            Packet::Election { from, message } => election::Input::Message { from, message },
        };
        let outputs = life.election.handle(input, clock, rng);
        self.actions(outputs)
    }

    /// Lets time go by for the machines.
    pub fn tick(&mut self, now: u64, rng: &mut ChaCha8Rng) -> Vec<Action> {
        let clock = self.clock(now);
        let Some(life) = &mut self.life else {
            return Vec::new();
        };
        life.membership.handle(membership::Input::Tick, clock, rng);
        let mut outputs = Vec::new();
        if life.leaving {
            let input = election::Input::StepDown;
            outputs.extend(life.election.handle(input, clock, rng));
        }
        let view = election::Input::View(life.membership.standings(|_| 1));
        outputs.extend(life.election.handle(view, clock, rng));
        outputs.extend(life.election.handle(election::Input::Tick, clock, rng));
        self.actions(outputs)
    }

    /// Sends a heartbeat.
    pub fn heartbeat(&mut self, now: u64, rng: &mut ChaCha8Rng) -> Vec<Action> {
        let clock = self.clock(now);
        let Some(life) = &mut self.life else {
            return Vec::new();
        };
        life.seq += 1;
        let heartbeat = Heartbeat {
            cluster: self.cluster,
            incarnation: EPOCH_MS + self.traits.wall_skew + life.booted_at,
            seq: life.seq,
            term: life.election.term(),
            master: life.election.master(),
            willing: self.traits.willing,
            memory_bytes: self.traits.capacity,
            layer_micros: 0,
            models: Vec::new(),
            held: Vec::new(),
            active_jobs: 0,
            price_per_layer_token: Msat::ZERO,
            master_fee: Msat(0),
            uptime_s: (now - life.booted_at) / 1000,
            leaving: life.leaving,
            sent_at_ms: EPOCH_MS + self.traits.wall_skew + now,
        };
        let heartbeat = Signed::sign(&self.key, heartbeat);
        let sent = membership::Input::Sent(heartbeat.clone());
        life.membership.handle(sent, clock, rng);
        vec![Action::Send(None, Packet::Heartbeat(heartbeat))]
    }

    fn actions(&self, outputs: Vec<election::Output>) -> Vec<Action> {
        outputs
            .into_iter()
            .filter_map(|output| match output {
                election::Output::Send { to, message } => {
                    let from = self.id;
                    Some(Action::Send(Some(to), Packet::Election { from, message }))
                }
                election::Output::Broadcast(certificate) => Some(Action::Send(None, Packet::Certificate(certificate))),
                election::Output::Persist(persisted) => Some(Action::Persist(persisted)),
                election::Output::Master(_) | election::Output::NoMaster => None,
            })
            .collect()
    }

    /// Whom it obeys, for reports.
    pub fn describe(&self) -> String {
        let Some(life) = &self.life else {
            return format!("{} is down", self.id.short());
        };
        format!(
            "{} ({} members) obeys {} in term {}",
            self.id.short(),
            life.membership.view().len(),
            life.election.master().map_or_else(|| "nobody".to_owned(), |id| id.short()),
            life.election.term(),
        )
    }
}
