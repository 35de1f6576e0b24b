//! Rounds of a run: a pure machine for peers and validators, and a signed log that anyone can replay.
//!
//! # A round
//! ```text
//! record r-1 ─> train ─> commit ─> reveal, fetch ─> measure ─> cards ─> record r ─> aggregate
//! peers         K steps  hash      update                                           all nodes
//! validators                       nonces           losses     sign     agree
//! ```
//! A round begins for a node when it learns the record before, and its phases are counted from there: no clocks have to
//! agree. *Commit*: a hash over peer and update, so that nobody learns an update, or can claim another's, before all are
//! fixed. *Reveal*: when all peers committed, or the time is over; then validators open their nonces, which draw the
//! held-out batches. *Measure*: every validator measures every update it could fetch, on the same batches, and signs a
//! [`ScoreCard`]. *Record*: the validators agree on one ([`agreement`](self), `agreement.rs`), and its
//! outcome is a pure function of the cards: [`outcome()`]. *Aggregate*: all nodes apply the accepted updates in the order of
//! the record and say which parameters they hold; the next record names those that most validators hold, and who
//! differs fetches them ([`Output::Resync`]).
//!
//! An aggregate that made held-out loss worse is seen when the next round measures, and taken back by its record
//! ([`Output::Revert`]); updates that were trained from it are dropped, without fee and without pay.
//!
//! # Draws
//! A validator's card of round r-1 locks two nonces. One is opened when the commitments of round r are in, and draws its
//! held-out batches; the other in its card of round r, and draws the assignment of round r+1, which is fixed by record r: all
//! agree on it. Held-out draws need no agreement: each card says whose nonces it was drawn with. Before the first
//! nonces are open the assignment of round 2 can be foreseen, which is worth nothing. What withholding a nonce gains
//! is said in [`beacon`](consortium_protocol::wire::train::beacon).
//!
//! # What a liar can do
//! *A peer*: be refused, and pay for it. Two commitments in one round void both, and prove it. *A validator*: its losses
//! count as one of several, and the record says how often they were off from the medians. It can hold back its card,
//! and is replaced after a while. *A lead* can leave out joins, for one view; cards and updates that a validator
//! knows it left out are refused by that validator until all have been lead once, and after that not, for the run to go on.
//! That two records of a round become certain takes more liars than `agreement` bears.
//!
//! # Limits
//! The run stands while no quorum of its validators is there, and goes on when they come back: replacing needs a quorum,
//! too, so at most a minority may go at a time. If cards of the honest are not the majority of those in a record,
//! its medians are not theirs. A bond, and any trial of newcomers, is for the node: it hands on only the joins it admits.

mod agreement;
mod chain;
mod collect;
mod evidence;
mod outcome;
mod pay;
mod peer;
mod people;
mod state;
mod validator;

use std::collections::BTreeMap;
use std::sync::Arc;

use consortium_protocol::wire::train::{
    Beacon, Candidate, Commit, Entry, Join, LossPair, Measure, Refusal, RunId, RunSpec, ScoreCard, StateHash,
    TrainMessage,
};
use consortium_protocol::{Hash, Millis, Msat, NodeId, RootKey, Signed};
use serde::{Deserialize, Serialize};

use agreement::Agreement;
pub use agreement::Ballot;
pub use chain::{BadEntry, Chain, Replay, replay};
use collect::Round;
pub use outcome::{Unfit, aggregate_to_judge, card_fits, genesis, outcome, peers_of_round};

/// What a node would do in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Follow it.
    Watch,
    /// Train.
    Train,
    /// Judge, as soon as there is a place. Validators of the run judge whatever they wish.
    Validate,
}

/// Parameters on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// The round whose record was carried out; 0 for the initial ones.
    pub round: u64,
    /// Their hash.
    pub state: Hash,
}

/// What a machine begins with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's key.
    pub key: Arc<RootKey>,
    /// What it would do.
    pub wish: Wish,
    /// How often to say again what may have been lost.
    pub resend: Millis,
    /// The parameters it has.
    pub held: Option<Held>,
}

/// What a node must remember of a run, in the order in which it was said to. Of all but entries, which are the log, only
/// the newest of its kind counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stored {
    /// A certain record.
    Entry(Box<Entry>),
    /// How far this validator bound itself.
    Ballot(Ballot),
    /// What this validator measured: it must not say another thing in this round.
    Card(Signed<ScoreCard>),
    /// What this peer committed to: it must not commit to another thing in this round.
    Trained {
        /// The commitment.
        commit: Signed<Commit>,
        /// The update.
        update: Hash,
        /// Its length.
        bytes: u64,
    },
}

/// What happens to the machine.
#[derive(Clone, Debug)]
pub enum Input {
    /// A message arrived; `from` passed it on.
    Message {
        /// Who to ask back.
        from: NodeId,
        /// The message.
        message: TrainMessage,
    },
    /// Time went by; several times in the shortest phase.
    Tick,
    /// [`Output::Train`] is done.
    Trained {
        /// The round.
        round: u64,
        /// BLAKE3 of the update.
        update: Hash,
        /// Its length.
        bytes: u64,
    },
    /// [`Output::Fetch`] is done.
    Fetched {
        /// The round.
        round: u64,
        /// Whose update.
        peer: NodeId,
        /// Whether it is here, well formed, and of the right length.
        result: Result<(), FetchFailure>,
    },
    /// [`Output::Evaluate`] is done.
    Evaluated {
        /// The round.
        round: u64,
        /// What the last aggregate did, if that was to be judged.
        aggregate: Vec<LossPair>,
        /// Of each update of the order.
        findings: Vec<(NodeId, Result<Measure, Refusal>)>,
    },
    /// [`Output::Aggregate`], [`Output::Revert`] or [`Output::Resync`] is done, and durable.
    Applied(Held),
    /// It could not be done; the parameters are to be fetched.
    NotApplied,
    /// This node would leave at the end of the round.
    Leave,
}

/// Why an update is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchFailure {
    /// Nobody gave it, or it was longer than said.
    Missing,
    /// It is no update of this model.
    Malformed,
}

/// What the machine wants done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Tell everyone in the run; may be lost. [`TrainMessage::is_small`] tells what gossip carries; of the rest, a
    /// proposal or a new view goes to the validators, an entry to everyone.
    Broadcast(TrainMessage),
    /// Tell one node; may be lost.
    Send {
        /// The node.
        to: NodeId,
        /// The message.
        message: TrainMessage,
    },
    /// Send the entry of this round from the log.
    SendEntry {
        /// To whom.
        to: NodeId,
        /// The round.
        round: u64,
    },
    /// Make this durable before anything that follows is done.
    Persist(Stored),
    /// Train on this node's part of the assignment.
    Train {
        /// The round.
        round: u64,
        /// Rounds with training before this one: the place in the schedule of the learning rate.
        trained: u64,
        /// Draws the rows.
        beacon: Beacon,
        /// Among whom, in this order.
        peers: Vec<NodeId>,
        /// State hash of the parameters to begin from.
        base: Hash,
    },
    /// From now on give the update to whoever asks.
    Publish {
        /// The round.
        round: u64,
        /// BLAKE3 of the update.
        update: Hash,
    },
    /// Fetch an update.
    Fetch {
        /// The round.
        round: u64,
        /// Whose.
        peer: NodeId,
        /// BLAKE3 of it.
        update: Hash,
        /// Its length.
        bytes: u64,
    },
    /// Measure updates.
    Evaluate {
        /// The round.
        round: u64,
        /// Draws the peers' own rows and those that are nobody's.
        assignment: Beacon,
        /// Among whom, in this order.
        peers: Vec<NodeId>,
        /// Draws the held-out rows.
        evaluation: Beacon,
        /// State hash of the common parameters.
        base: Hash,
        /// The parameters before the last aggregate, if that is to be judged: their loss is `before`.
        judge: Option<Hash>,
        /// The updates, in the order in which they were committed to here.
        updates: Vec<(NodeId, Hash)>,
    },
    /// Apply these updates in this order, and keep the parameters of before for a round.
    Aggregate {
        /// The round.
        round: u64,
        /// State hash of the parameters to apply them to.
        base: Hash,
        /// Peer, BLAKE3 and length of each.
        updates: Vec<(NodeId, Hash, u64)>,
    },
    /// Take back the last aggregate.
    Revert {
        /// The round whose record says so.
        round: u64,
        /// State hash of the parameters of before.
        to: Hash,
    },
    /// Fetch the common parameters.
    Resync {
        /// The round whose record they follow from.
        round: u64,
        /// Their hash.
        state: Hash,
        /// Who says it has them; more may.
        donors: Vec<NodeId>,
    },
    /// The sponsor is to pay this: whole units of the run's smallest tranche.
    Owe {
        /// Whom.
        peer: NodeId,
        /// By the record of this round.
        round: u64,
        /// How much.
        amount: Msat,
        /// In units.
        units: u32,
    },
    /// The run has ended; the log is complete.
    Ended,
}

/// One node's part in a run.
pub struct Machine {
    key: Arc<RootKey>,
    me: NodeId,
    wish: Wish,
    resend: Millis,
    chain: Chain,
    /// Base of the record before the last.
    base_before: Hash,
    round: Round,
    agreement: Option<Agreement>,
    held: Option<Held>,
    /// What is being applied, by round and, for a resync, its hash.
    applying: Option<(u64, Option<Hash>)>,
    joins: BTreeMap<NodeId, Signed<Join>>,
    candidates: BTreeMap<NodeId, Signed<Candidate>>,
    states: BTreeMap<NodeId, StateHash>,
    leaving: bool,
    resent: Option<Millis>,
    asked: Option<Millis>,
}

impl Machine {
    /// A machine that goes on from what was stored.
    ///
    /// # Errors
    /// A stored entry does not fit the run: the log was damaged.
    pub fn new(
        config: Config,
        spec: Signed<RunSpec>,
        stored: impl IntoIterator<Item = Stored>,
        now: Millis,
    ) -> Result<Self, BadEntry> {
        let mut chain = Chain::new(spec);
        let mut base_before = chain.last().base;
        let (mut ballot, mut card, mut trained) = (None, None, None);
        for item in stored {
            match item {
                Stored::Entry(entry) => {
                    base_before = chain.last().base;
                    chain.append(*entry)?;
                }
                Stored::Ballot(newest) => ballot = Some(newest),
                Stored::Card(newest) => card = Some(newest),
                Stored::Trained { commit, update, bytes } => trained = Some((commit, update, bytes)),
            }
        }
        let began = if chain.entry().is_some() { now.min(Millis(chain.last().at_ms)) } else { now };
        let mut machine = Self {
            me: config.key.node_id(),
            key: config.key,
            wish: config.wish,
            resend: config.resend,
            base_before,
            round: Round::new(&chain, began),
            chain,
            agreement: None,
            held: config.held,
            applying: None,
            joins: BTreeMap::new(),
            candidates: BTreeMap::new(),
            states: BTreeMap::new(),
            leaving: false,
            resent: None,
            asked: None,
        };
        machine.open_agreement(ballot);
        machine.round.restore(machine.chain.round(), machine.me, card, trained);
        Ok(machine)
    }

    /// The run so far.
    #[must_use]
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The parameters this node has.
    #[must_use]
    pub fn held(&self) -> Option<Held> {
        self.held
    }

    /// Whether this node judges in the round that goes on.
    #[must_use]
    pub fn is_validator(&self) -> bool {
        self.chain.last().validator(self.me).is_some()
    }

    /// Takes one input at `now`: wall time in milliseconds since 1970, as far as this node knows it.
    pub fn handle(&mut self, input: Input, now: Millis) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Message { from, message } => self.receive(from, message, now, &mut out),
            Input::Tick => self.tick(now, &mut out),
            Input::Trained { round, update, bytes } => self.trained(round, update, bytes, now, &mut out),
            Input::Fetched { round, peer, result } => self.fetched(round, peer, result),
            Input::Evaluated { round, aggregate, findings } => {
                self.evaluated(round, aggregate, findings, now, &mut out)
            }
            Input::Applied(held) => self.applied(held, now, &mut out),
            Input::NotApplied => {
                self.applying = None;
                self.held = None;
            }
            Input::Leave => self.leaving = true,
        }
        self.progress(now, &mut out);
        out
    }

    fn run(&self) -> RunId {
        self.chain.run()
    }

    fn spec(&self) -> &RunSpec {
        self.chain.spec()
    }

    /// Does whatever can be done now.
    fn progress(&mut self, now: Millis, out: &mut Vec<Output>) {
        self.reconcile(now, out);
        if self.chain.last().ended {
            return;
        }
        self.train(now, out);
        self.fetch(out);
        self.validate(now, out);
    }

    fn tick(&mut self, now: Millis, out: &mut Vec<Output>) {
        if self.resent.is_some_and(|at| now.since(at) < self.resend) {
            return;
        }
        self.resent = Some(now);
        self.say_state(out);
        if !self.chain.last().ended {
            self.say_wish(out);
            self.round.say_again(self.me, out);
        }
    }

    /// Says, once in a while, what this node would do in the run.
    fn say_wish(&mut self, out: &mut Vec<Output>) {
        let (run, round) = (self.run(), self.chain.round());
        let active = self.chain.last().member(self.me).is_some_and(|member| member.active);
        let would = self.wish == Wish::Train && !self.leaving;
        if self.is_validator() {
            return;
        }
        if would != active && (would || self.leaving) {
            let join = Signed::sign(&self.key, Join { run, round, stays: would });
            self.joins.insert(self.me, join.clone());
            out.push(Output::Broadcast(TrainMessage::Join(join)));
        }
        if self.wish == Wish::Validate && !self.leaving {
            let candidate = Signed::sign(&self.key, Candidate { run, round });
            out.push(Output::Broadcast(TrainMessage::Candidate(candidate)));
        }
    }
}
