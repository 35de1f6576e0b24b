//! Who is in the cluster, and who of them is alive.
//!
//! A node is a member from its first heartbeat on. The time between two heartbeats is remembered; a silence that is out
//! of proportion to what was seen makes a member *suspect*, and a silence of [`MembershipConfig::removal`] takes it out
//! of the view. So a cluster whose heartbeats come late because its machines are busy waits longer before it calls
//! anyone dead, and a node that was stopped itself does not blame the others for the time it slept.
//!
//! The measure of silence is that of phi accrual (Hayashibara et al., "The φ accrual failure detector", 2004) with
//! normally distributed intervals: φ above 8 is a silence of more than the mean and 5.6 standard deviations, and that
//! is what is computed here.
//!
//! A heartbeat counts if it is newer than the last one of its signer, by incarnation and then by number: replayed and
//! reordered ones are refused, also those of members that have left. A heartbeat of an older incarnation that was sent
//! *after* the newer incarnation began means that two hosts hold one key; three of them and
//! [`Output::DuplicateIdentity`] is reported.
//!
//! The machine has no clock: whoever drives it should drop heartbeats whose wall time lies far from its own, so that a
//! recording of a node that is gone cannot play it back to newcomers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::RngCore;

use crate::cluster::{ClusterId, MAX_MEMBERS};
use crate::election::Standing;
use crate::envelope::Signed;
use crate::identity::NodeId;
use crate::time::Millis;
use crate::wire::heartbeat::Heartbeat;

/// How many intervals between heartbeats are remembered.
const WINDOW: usize = 32;
/// Standard deviations of silence beyond the mean that make a member suspect: φ = 8 for a normal distribution.
const DEVIATIONS: f64 = 5.6;
/// Heartbeats of an older incarnation, sent during the newer one, that show a second holder of the key.
const DUPLICATE_AFTER: u32 = 3;
/// How many departed members are remembered, so that their old heartbeats do not bring them back.
const MAX_DEPARTED: usize = 4 * MAX_MEMBERS;

/// Times of the failure detector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MembershipConfig {
    /// How often members send heartbeats.
    pub heartbeat_interval: Millis,
    /// Silence below this is never suspect.
    pub min_suspicion: Millis,
    /// Silence above this is always suspect.
    pub max_suspicion: Millis,
    /// Silence after which a member leaves the view.
    pub removal: Millis,
}

impl Default for MembershipConfig {
    fn default() -> Self {
        Self {
            heartbeat_interval: Millis(500),
            min_suspicion: Millis(1500),
            max_suspicion: Millis(4000),
            removal: Millis(6000),
        }
    }
}

/// What happens to the machine.
#[derive(Clone, Debug)]
pub enum Input {
    /// A heartbeat arrived.
    Heartbeat(Signed<Heartbeat>),
    /// This node sent a heartbeat of its own.
    Sent(Signed<Heartbeat>),
    /// The connection to a member broke: a hint that shortens the silence needed to suspect it.
    Disconnected(NodeId),
    /// Time went by; a few times per heartbeat interval.
    Tick,
}

/// What the machine found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// A new member.
    Joined(NodeId),
    /// A member is silent for too long.
    Suspected(NodeId),
    /// A suspect is heard again.
    Recovered(NodeId),
    /// A member left the view.
    Left(NodeId, LeaveReason),
    /// A heartbeat was not accepted.
    Rejected {
        /// Who signed it.
        from: NodeId,
        /// Why.
        why: RejectReason,
    },
    /// Two hosts hold this node's key. Reported again and again as long as it lasts.
    DuplicateIdentity(NodeId),
}

/// Why a member left the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaveReason {
    /// Not heard for [`MembershipConfig::removal`].
    Silent,
    /// It said it would leave, and fell silent.
    Announced,
}

/// Why a heartbeat was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectReason {
    /// It belongs to another cluster.
    Cluster,
    /// Not newer than what is known of its signer.
    Stale,
    /// The cluster has as many members as it may.
    Full,
    /// It bears this node's own signature.
    Own,
}

/// Whether a member is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// Heard of late.
    Alive,
    /// Silent for too long.
    Suspect,
}

/// A member other than this node.
#[derive(Clone, Debug)]
pub struct Member {
    id: NodeId,
    heartbeat: Signed<Heartbeat>,
    state: MemberState,
    last_seen: Millis,
    intervals: VecDeque<u64>,
    disconnected: bool,
    rival: Rival,
}

impl Member {
    /// Its name.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The newest heartbeat.
    pub fn heartbeat(&self) -> &Signed<Heartbeat> {
        &self.heartbeat
    }

    /// Alive or suspect.
    pub fn state(&self) -> MemberState {
        self.state
    }

    /// When the newest heartbeat arrived, on this node's clock.
    pub fn last_seen(&self) -> Millis {
        self.last_seen
    }

    /// How long it may be silent before it is suspect.
    pub fn patience(&self, config: &MembershipConfig) -> Millis {
        if self.disconnected {
            return Millis(config.min_suspicion.0 / 2);
        }
        // Before there is anything to learn from, the agreed interval stands in for what was seen.
        let expected = config.heartbeat_interval.0 as f64;
        let count = self.intervals.len().max(1) as f64;
        let mean = if self.intervals.is_empty() {
            expected
        } else {
            self.intervals.iter().map(|i| *i as f64).sum::<f64>() / count
        };
        let variance = self.intervals.iter().map(|interval| (*interval as f64 - mean).powi(2)).sum::<f64>() / count;
        let silence = mean + DEVIATIONS * variance.sqrt().max(expected / 5.0);
        Millis(silence as u64).clamp(config.min_suspicion, config.max_suspicion)
    }

    fn order(&self) -> (u64, u64) {
        order(self.heartbeat.payload())
    }
}

fn order(heartbeat: &Heartbeat) -> (u64, u64) {
    (heartbeat.incarnation, heartbeat.seq)
}

/// Heartbeats of an older incarnation that should be over.
#[derive(Clone, Copy, Debug, Default)]
struct Rival {
    newest: (u64, u64),
    seen: u32,
}

impl Rival {
    /// Notes `other`, refused because the life that began at `current` is newer; whether it shows two holders of one
    /// key.
    fn note(&mut self, current: u64, other: &Heartbeat) -> bool {
        let lives_on = other.incarnation != current && other.sent_at_ms > current.max(other.incarnation);
        if !lives_on || order(other) <= self.newest {
            return false;
        }
        self.newest = order(other);
        self.seen += 1;
        if self.seen < DUPLICATE_AFTER {
            return false;
        }
        self.seen = 0;
        true
    }
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Membership {
    me: NodeId,
    cluster: ClusterId,
    config: MembershipConfig,
    own: Option<Signed<Heartbeat>>,
    own_rival: Rival,
    members: BTreeMap<NodeId, Member>,
    departed: BTreeMap<NodeId, ((u64, u64), Millis)>,
    last_input: Option<Millis>,
    judge_from: Millis,
}

impl Membership {
    /// A machine that knows nobody but itself.
    pub fn new(me: NodeId, cluster: ClusterId, config: MembershipConfig) -> Self {
        Self {
            me,
            cluster,
            config,
            own: None,
            own_rival: Rival::default(),
            members: BTreeMap::new(),
            departed: BTreeMap::new(),
            last_input: None,
            judge_from: Millis::ZERO,
        }
    }

    /// Takes one input at `now`. Uses no randomness; the parameter is that of all machines.
    pub fn handle(&mut self, input: Input, now: Millis, _rng: &mut impl RngCore) -> Vec<Output> {
        self.excuse_own_sleep(now);
        let mut out = Vec::new();
        match input {
            Input::Heartbeat(heartbeat) => self.receive(heartbeat, now, &mut out),
            Input::Sent(heartbeat) => self.own = Some(heartbeat),
            Input::Disconnected(id) => {
                if let Some(member) = self.members.get_mut(&id) {
                    member.disconnected = true;
                }
            }
            Input::Tick => self.judge(now, &mut out),
        }
        out
    }

    /// The members other than this node, in ascending order.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// One of them.
    pub fn member(&self, id: &NodeId) -> Option<&Member> {
        self.members.get(id)
    }

    /// This node's newest heartbeat.
    pub fn own(&self) -> Option<&Signed<Heartbeat>> {
        self.own.as_ref()
    }

    /// The admitted members, this node included.
    pub fn view(&self) -> BTreeSet<NodeId> {
        self.members.keys().copied().chain([self.me]).collect()
    }

    /// The view with what the election needs to know of each; `reputation` is this node's opinion. This node is
    /// unwilling until it has sent a heartbeat.
    pub fn standings(&self, reputation: impl Fn(&NodeId) -> u32) -> BTreeMap<NodeId, Standing> {
        let others = self.members.values().map(|member| {
            let alive = member.state == MemberState::Alive;
            let standing = Standing::of(member.heartbeat.payload(), alive, reputation(&member.id));
            (member.id, standing)
        });
        let mine = match &self.own {
            Some(own) => Standing::of(own.payload(), true, reputation(&self.me)),
            None => Standing { alive: true, ..Standing::default() },
        };
        others.chain([(self.me, mine)]).collect()
    }

    /// A gap in this node's own time is no silence of the others: they get an interval to be heard before they are
    /// judged.
    fn excuse_own_sleep(&mut self, now: Millis) {
        let gap = now.since(self.last_input.unwrap_or(now));
        if gap > self.config.heartbeat_interval {
            self.judge_from = now + self.config.heartbeat_interval + self.config.heartbeat_interval;
        }
        self.last_input = Some(now);
    }

    fn receive(&mut self, heartbeat: Signed<Heartbeat>, now: Millis, out: &mut Vec<Output>) {
        let from = heartbeat.signer();
        let said = heartbeat.payload();
        if said.cluster != self.cluster {
            out.push(Output::Rejected { from, why: RejectReason::Cluster });
            return;
        }
        if from == self.me {
            self.receive_own(said, out);
            return;
        }
        if let Some(member) = self.members.get_mut(&from) {
            if order(said) <= member.order() {
                out.push(Output::Rejected { from, why: RejectReason::Stale });
                let current = member.heartbeat.payload().incarnation;
                if member.rival.note(current, said) {
                    out.push(Output::DuplicateIdentity(from));
                }
                return;
            }
            if said.incarnation == member.heartbeat.payload().incarnation {
                member.intervals.push_back(now.since(member.last_seen).0);
                if member.intervals.len() > WINDOW {
                    member.intervals.pop_front();
                }
            }
            member.heartbeat = heartbeat;
            member.last_seen = now;
            member.disconnected = false;
            if member.state == MemberState::Suspect {
                member.state = MemberState::Alive;
                out.push(Output::Recovered(from));
            }
            return;
        }
        self.admit(from, heartbeat, now, out);
    }

    /// A heartbeat with this node's own signature: its echo, or another holder of the key.
    fn receive_own(&mut self, said: &Heartbeat, out: &mut Vec<Output>) {
        out.push(Output::Rejected { from: self.me, why: RejectReason::Own });
        let Some(own) = &self.own else { return };
        if self.own_rival.note(own.payload().incarnation, said) {
            out.push(Output::DuplicateIdentity(self.me));
        }
    }

    fn admit(&mut self, from: NodeId, heartbeat: Signed<Heartbeat>, now: Millis, out: &mut Vec<Output>) {
        let old = self.departed.get(&from);
        let why = if old.is_some_and(|(newest, _)| order(heartbeat.payload()) <= *newest) {
            Some(RejectReason::Stale)
        } else if self.members.len() + 1 >= MAX_MEMBERS {
            Some(RejectReason::Full)
        } else {
            None
        };
        if let Some(why) = why {
            out.push(Output::Rejected { from, why });
            return;
        }
        self.departed.remove(&from);
        let member = Member {
            id: from,
            heartbeat,
            state: MemberState::Alive,
            last_seen: now,
            intervals: VecDeque::new(),
            disconnected: false,
            rival: Rival::default(),
        };
        self.members.insert(from, member);
        out.push(Output::Joined(from));
    }

    fn judge(&mut self, now: Millis, out: &mut Vec<Output>) {
        if now < self.judge_from {
            return;
        }
        let config = self.config;
        let mut gone = Vec::new();
        for member in self.members.values_mut() {
            let silence = now.since(member.last_seen);
            let silent = silence > member.patience(&config);
            if silent && member.state == MemberState::Alive {
                member.state = MemberState::Suspect;
                out.push(Output::Suspected(member.id));
            }
            if silence > config.removal {
                gone.push((member.id, LeaveReason::Silent));
            } else if silent && member.heartbeat.payload().leaving {
                gone.push((member.id, LeaveReason::Announced));
            }
        }
        for (id, reason) in gone {
            if let Some(member) = self.members.remove(&id) {
                self.remember(id, member.order(), now);
                out.push(Output::Left(id, reason));
            }
        }
    }

    fn remember(&mut self, id: NodeId, newest: (u64, u64), now: Millis) {
        if self.departed.len() >= MAX_DEPARTED {
            let oldest = self.departed.iter().min_by_key(|(_, (_, when))| *when);
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                self.departed.remove(&oldest);
            }
        }
        self.departed.insert(id, (newest, now));
    }
}
