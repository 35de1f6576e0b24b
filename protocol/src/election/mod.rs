//! Who is master.
//!
//! # Words
//! A **view** is the set of members a node admits at the moment, itself included. A **term** is a number that goes up;
//! each term has one master at most in the eyes of any one node. A **certificate** ([`Certificate`]) proves that a node
//! was voted master of a term. A node **obeys** one certificate at a time, says so in its heartbeats, and **knows** the
//! highest term of which it has seen a certificate. A **claim** is a node that says in its heartbeat that it obeys
//! itself, is alive and willing, and whose certificate is at hand.
//!
//! # Rules
//! *Certificates.* Votes by different members for the same cluster, term, round and candidate; the voters are a strict
//! majority of the view of each of them; the candidate is among them. Nothing else makes a master. A certificate does
//! not expire.
//!
//! *Terms.* A candidate stands for the term that is one above the highest certified term it knows, and shows that
//! certificate to voters that lack it: no vote without it. Who claims an old term is answered with the newer
//! certificate. What certificates a liar makes with its own keys binds nobody but those that choose to stand above
//! them. And their numbers are bounded by the **ceiling**, which rises with wall time, sixteen a second
//! ([`CEILING_MS`]): a liar can use up the numbers below it, and there are always more than honest elections need.
//! Numbers give no power; a huge one gives nothing at all.
//!
//! *Votes.* A node votes once in each round of a term; its terms, and its rounds within one term, go up; the vote is
//! durable before it leaves. Votes that were split heal in the next round. (So a term can have two certificates if one
//! arrives very late; the rule of obedience keeps that harmless, and the two claims are settled as after a partition.)
//!
//! *Obedience.* A node obeys a certificate only if its term is higher than any it has obeyed: so it never obeys two
//! masters of one term, and its term never goes down. And only if a strict majority of *its own* view supports it: by
//! having voted for it, or by saying in signed heartbeats that they obey that master, in that term or a later one; who
//! says it obeys another by now does not count. The node may count itself to make up the majority, but then the term
//! may not lie above the ceiling unless it voted for it. So a certificate made by one key and its puppets moves nobody
//! in a cluster of eight, and a newcomer joins at once.
//!
//! *Who leads.* Among the claims, the one that most live members of the view obey, then the higher term, then the
//! smaller id. Ranks are not used here: they are opinions, and this must come out the same everywhere. As long as there
//! is a claim, nobody but its leader stands, and nobody votes for another: the incumbent is sticky. A master that is
//! unwilling (it leaves) has no claim.
//!
//! *Standing.* Without a claim there is a vacancy: the willing stand in the order of their rank (reputation, uptime by
//! powers of two, capacity, id), each a step later than the one before, with some chance in it; and voters hold back
//! from a candidate until the better ones had their time. A node that has just started waits for a while to hear
//! others.
//!
//! *Renewal.* The leader stands again, for a higher term, if a live member keeps obeying someone else although
//! heartbeats have had time to settle: after two masters of one term, or when a loner with a higher term joins. The
//! certificate of the stranded member is what the leader stands above, so the new term lies above all. It changes the
//! number, not the master. A member that is stranded again and again, as a liar can be at will, is waited for twice as
//! long each time after a few. A leader that no majority obeys and that does not renew either is passed over for a
//! while: long enough for the next to renew, short enough that two who pass over each other do not stay apart.
//!
//! *Partitions.* Members that stay silent leave the view, so each part elects its own master and serves. On heal, the
//! smaller part obeys the greater part's master if that term is higher; else the greater part's master renews above it.
//!
//! # What a liar can do
//! It has one vote per round of its own making: double votes make two certificates only if honest majorities voted for
//! both. It can stand, as any member may. It cannot make certificates of others' votes, nor have its own obeyed by a
//! cluster it is a minority of. It can make the leader renew a few times. In a cluster of two, nobody outvotes it.
//!
//! # Limits
//! A node whose view liars are the majority of obeys whom they like, in any term up to [`MAX_TERM`]. If they take it
//! far above the ceiling, it cannot come back to an honest cluster until what it persisted is removed. Up to the
//! ceiling it comes back by itself. Clocks that are wrong by more than four seconds delay merging, and that only while
//! a liar keeps the numbers at the ceiling.

mod candidacy;
mod claims;
mod rank;
mod voting;

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::RngCore;
use serde::{Deserialize, Serialize};

use crate::cluster::ClusterId;
use crate::hash::Hash;
use crate::identity::{NodeId, RootKey};
use crate::time::Millis;
pub use crate::wire::election::{
    Ballot, Candidacy, Certificate, CertificateError, ElectionMessage, Refused, RefusedReason, Vote, VoteRequest,
    view_digest,
};
use candidacy::Attempt;
pub use rank::Standing;

/// The ceiling of terms that lack a majority's support is wall time (since 1970) in units of this many milliseconds.
pub const CEILING_MS: u64 = 64;
/// How far above its ceiling a candidate reaches, in terms, and a voter twice as far: four seconds for clocks that
/// disagree.
pub const CEILING_SLACK: u64 = 64;
/// The ceiling does not lie below that of this wall time (the year 2025), whatever the node's clock says.
const CEILING_FLOOR_MS: u64 = 1_735_689_600_000;
/// How far one request or refusal raises the highest round a node has heard of.
pub const MAX_ROUND_LEAP: u64 = 1 << 32;
/// Terms above this are refused by everyone: there is always a next term.
pub const MAX_TERM: u64 = 1 << 62;
/// The longest [`Persisted`], in bytes of its canonical encoding.
pub const MAX_PERSISTED: usize = 256 * 1024;

/// Times of the election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElectionConfig {
    /// How long a node that has just started listens before it stands.
    pub discovery_grace: Millis,
    /// How much later each next rank stands.
    pub rank_step: Millis,
    /// The last of the willing stand this long after the first, and no voter holds back for longer.
    pub max_rank_wait: Millis,
    /// The part of every wait that is left to chance.
    pub jitter: Millis,
    /// How long a candidate collects votes.
    pub attempt: Millis,
    /// How often it asks those that have not answered.
    pub resend: Millis,
    /// How long a member may obey another than the leader before the leader renews.
    pub settle: Millis,
    /// How long a leader without a majority has to renew before it is passed over.
    pub patience: Millis,
    /// How long it is passed over.
    pub pass_over: Millis,
    /// The shortest time between two questions to the same member.
    pub ask_gap: Millis,
}

impl Default for ElectionConfig {
    fn default() -> Self {
        Self {
            discovery_grace: Millis(1500),
            rank_step: Millis(150),
            max_rank_wait: Millis(750),
            jitter: Millis(150),
            attempt: Millis(900),
            resend: Millis(300),
            settle: Millis(1500),
            patience: Millis(5000),
            pass_over: Millis(4000),
            ask_gap: Millis(400),
        }
    }
}

/// What a node must remember over a restart. Canonical CBOR of at most [`MAX_PERSISTED`] bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Persisted {
    /// The certificate obeyed.
    pub obeyed: Option<Certificate>,
    /// The certificate that entitled to the term last voted in, if that is not the one obeyed.
    pub basis: Option<Certificate>,
    /// The last vote.
    pub voted: Option<Ballot>,
}

/// What happens to the machine.
#[derive(Clone, Debug)]
pub enum Input {
    /// A message of another machine; `from` is who the transport says it is.
    Message {
        /// The sender.
        from: NodeId,
        /// What it says.
        message: ElectionMessage,
    },
    /// A certificate heard by gossip, from whomever.
    Certificate(Certificate),
    /// The admitted members, this node included ([`crate::membership::Membership::standings`]); best before every tick.
    View(BTreeMap<NodeId, Standing>),
    /// Time went by; about every 100 ms.
    Tick,
    /// This node is about to leave: it will not stand any more. Its heartbeats should say so too.
    StepDown,
}

/// What the machine wants done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a message to one member; may be lost.
    Send {
        /// The member.
        to: NodeId,
        /// What to say.
        message: ElectionMessage,
    },
    /// Tell everyone; may be lost.
    Broadcast(Certificate),
    /// Make this durable before anything that follows is done.
    Persist(Persisted),
    /// This node obeys a master, maybe itself, that is alive.
    Master(Certificate),
    /// The master obeyed is gone or silent. Its term is still the one obeyed.
    NoMaster,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Election {
    key: Arc<RootKey>,
    me: NodeId,
    cluster: ClusterId,
    config: ElectionConfig,
    started: Millis,
    saved: Persisted,
    stepping_down: bool,
    view: BTreeMap<NodeId, Standing>,
    /// Digest of the members of `view`.
    digest: Hash,
    /// The newest certificate of each master in the view.
    claims: BTreeMap<NodeId, Certificate>,
    /// The certificate of the highest term seen below the ceiling.
    seen: Option<Certificate>,
    vacancy: Option<Vacancy>,
    /// No standing before this.
    not_before: Millis,
    attempt: Option<Attempt>,
    /// A term, and the highest round heard of in it.
    heard: (u64, u64),
    /// Whom this node last voted for, and when.
    granted: Option<(NodeId, Millis)>,
    /// A leader that has no majority, and since when.
    lame: Option<(NodeId, Millis)>,
    /// Leaders that did nothing about that, and until when they are passed over.
    passed_over: BTreeMap<NodeId, Millis>,
    stranded: BTreeMap<NodeId, Stranded>,
    asked: BTreeMap<NodeId, Millis>,
    announced: Option<(u64, NodeId)>,
}

/// A time without a leader.
#[derive(Clone, Copy, Debug)]
struct Vacancy {
    since: Millis,
    /// What this node waits beyond its rank.
    chance: Millis,
}

/// A member that obeys another than the leader, which is this node.
#[derive(Clone, Copy, Debug, Default)]
struct Stranded {
    /// Since when, if it is at the moment.
    since: Option<Millis>,
    /// How often this node has renewed because of it.
    renewals: u32,
    /// Not again before this.
    not_before: Millis,
}

impl Election {
    /// A machine that goes on from what was persisted. Certificates and votes of another cluster are dropped.
    pub fn new(
        key: Arc<RootKey>,
        cluster: ClusterId,
        persisted: Persisted,
        config: ElectionConfig,
        now: Millis,
    ) -> Self {
        let me = key.node_id();
        let ours = |certificate: &Certificate| certificate.verify(cluster).is_ok();
        let saved = Persisted {
            obeyed: persisted.obeyed.filter(ours),
            basis: persisted.basis.filter(ours),
            voted: persisted.voted.filter(|ballot| ballot.vote.payload().cluster == cluster),
        };
        let mut election = Self {
            key,
            me,
            cluster,
            config,
            started: now,
            saved,
            stepping_down: false,
            view: BTreeMap::new(),
            digest: Hash::of(&[]),
            claims: BTreeMap::new(),
            seen: None,
            vacancy: None,
            not_before: now,
            attempt: None,
            heard: (0, 0),
            granted: None,
            lame: None,
            passed_over: BTreeMap::new(),
            stranded: BTreeMap::new(),
            asked: BTreeMap::new(),
            announced: None,
        };
        election.set_view(BTreeMap::new());
        election
    }

    /// The certificate obeyed; its master may be gone.
    pub fn current(&self) -> Option<&Certificate> {
        self.saved.obeyed.as_ref()
    }

    /// The term obeyed; 0 if none.
    pub fn term(&self) -> u64 {
        self.current().map_or(0, Certificate::term)
    }

    /// The master obeyed.
    pub fn master(&self) -> Option<NodeId> {
        self.current().map(Certificate::master)
    }

    /// Whether orders of `node` in `term` are to be carried out: fencing.
    pub fn obeys(&self, node: NodeId, term: u64) -> bool {
        self.current().is_some_and(|certificate| certificate.master() == node && certificate.term() == term)
    }

    /// What a restart would begin from.
    pub fn persisted(&self) -> &Persisted {
        &self.saved
    }

    /// Takes one input at `now`, on this node's own monotonic clock.
    pub fn handle(&mut self, input: Input, now: Millis, rng: &mut impl RngCore) -> Vec<Output> {
        let mut out = Vec::new();
        let tick = matches!(input, Input::Tick);
        match input {
            Input::Message { from, message } => self.receive(from, message, now, &mut out),
            Input::Certificate(certificate) => self.learn(&certificate),
            Input::View(view) => self.set_view(view),
            Input::Tick => {}
            Input::StepDown => {
                self.stepping_down = true;
                self.attempt = None;
            }
        }
        self.follow(&mut out);
        self.announce(&mut out);
        if tick {
            self.act(now, rng, &mut out);
            self.announce(&mut out);
        }
        out
    }

    fn receive(&mut self, from: NodeId, message: ElectionMessage, now: Millis, out: &mut Vec<Output>) {
        match message {
            ElectionMessage::Request(candidacy) => self.consider(from, &candidacy, now, out),
            ElectionMessage::Vote(ballot) => self.count(from, ballot, now, out),
            ElectionMessage::Refused(refused) => self.refused(from, refused, out),
            ElectionMessage::Certificate(certificate) => {
                self.learn(&certificate);
                if certificate.term() < self.term() {
                    self.send_obeyed(from, out);
                }
            }
            ElectionMessage::Ask => self.send_obeyed(from, out),
        }
    }

    fn send_obeyed(&self, to: NodeId, out: &mut Vec<Output>) {
        if let Some(certificate) = self.current() {
            out.push(send(to, ElectionMessage::Certificate(certificate.clone())));
        }
    }
}

fn send(to: NodeId, message: ElectionMessage) -> Output {
    Output::Send { to, message }
}
