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
//! [card](consortium_protocol::wire::train::ScoreCard). *Record*: the validators agree on one (`agreement`), and its
//! outcome is a pure function of the cards: [`outcome()`]. *Aggregate*: all nodes apply the accepted updates in the order of
//! the record and say which parameters they hold; the next record names those that most validators hold, and who
//! differs fetches them ([`Output::Resync`]).
//!
//! Gossip is trusted to flood: what a peer tells one validator all hear. If it does not, the record's own lists decide,
//! and validators that heard otherwise say so in their cards.
//!
//! An aggregate that made held-out loss worse is seen when the next round measures, and taken back by its record
//! ([`Output::Revert`]); updates that were measured against it are dropped, without fee and without pay.
//!
//! # Draws
//! A validator's card of round r-1 locks two nonces. One is opened when the commitments of round r are in, and draws its
//! held-out batches; the other in its card of round r, and draws the assignment of round r+1, which is fixed by record r: all
//! agree on it. Held-out draws need no agreement: each card says whose nonces it was drawn with. Before the first
//! nonces are open the assignment of round 2 can be foreseen, which is worth nothing. What withholding a nonce gains
//! is said in [`beacon`](consortium_protocol::wire::train::beacon).
//!
//! # Without waiting
//! Where the specification says [`overlap`](consortium_protocol::wire::train::HyperParameters::overlap), peers train on while a
//! round is exchanged and judged: who has committed for round r, and applied record r-1, trains for round r+1, and commits to
//! that as soon as record r is there. So its local steps begin from the parameters that round r began from, one outer step
//! older than those that its update is measured on and applied to; peers and rows of round r+1 are fixed by record r-1
//! ([`Ahead`](consortium_protocol::wire::train::Ahead)). A round then takes as long as the longer of training and all the
//! rest. It begins with two rounds without training, and who joins trains a round later.
//!
//! # Driving it
//! Carry out outputs in their order; nothing that follows a [`Output::Persist`] is done before it is durable. Work is done
//! aside and answered by its input; a later order of the same kind replaces an earlier one. An update is fetched from its
//! peer, or from whoever has it, and must be answered within `reveal_ms`, also when it could not be had; nodes keep accepted
//! updates for a few rounds, for those that apply them late. Parameters are durable before [`Input::Applied`] is said, and
//! those of the round before are kept. Every node says what it hears to others, as gossip does. Two processes with one key
//! would say two things: that is for the node to prevent.
//!
//! # Seats
//! Names cost nothing. So a draw says which of those that would join get the seats: the one that the cards of the round
//! make, for those alone that were heard of before the first card. Who did not deliver sits out two rounds. A round in which
//! no update was measured does not count for the run's length, but after a hundred thousand of them the run ends. No
//! account is dropped while a unit is owed on it: then nobody new comes.
//!
//! # What a liar can do
//! *A peer*: be refused, and pay for it. Two commitments in one round void both, and prove it. *A validator*: its losses
//! count as one of several, and the record says how often they were off from the medians. It can hold back its card,
//! and is replaced after a while. *A lead* can leave out joins, for one view; cards and updates that a validator
//! knows it left out are refused by that validator until all have been lead once, and after that not, for the run to go on.
//! Its clock is believed as far as ten minutes ahead and a week behind, and never before the last record.
//! That two records of a round become certain takes more liars than `agreement` bears.
//!
//! # Limits
//! The run stands while no quorum of its validators is there, and goes on when they come back: replacing needs a quorum,
//! too, so at most a minority may go at a time. If cards of the honest are not the majority of those in a record,
//! its medians are not theirs. Where a run wants bonds ([`bond`]), that one is held is the word of one validator; to hold them
//! is for the node, and so is any trial of newcomers.

mod agreement;
pub mod bond;
mod chain;
mod collect;
mod evidence;
mod io;
mod newcomers;
mod outcome;
mod pay;
mod peer;
mod people;
mod state;
mod validator;

use std::collections::BTreeMap;
use std::sync::Arc;

use consortium_protocol::wire::train::{Candidate, Commit, Join, Pledged, RunId, RunSpec, StateHash, TrainMessage};
use consortium_protocol::{Hash, Millis, NodeId, RootKey, Signed};

use agreement::Agreement;
pub use agreement::Ballot;
pub use chain::{BadEntry, Chain, Replay, Replaying, replay};
use collect::Round;
pub use io::{Config, FetchFailure, Held, Input, Output, Stored, Wish};
use newcomers::Newcomers;
use outcome::join_counts;
pub use outcome::{Unfit, aggregate_to_judge, card_fits, genesis, outcome, peers_of_round, trained_from};
pub use pay::shares;
use peer::Early;

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
    /// What this peer does for the round after the one that goes on.
    early: Option<Early>,
    /// What others committed to for it, who know the record before already.
    next_commits: BTreeMap<NodeId, Signed<Commit>>,
    agreement: Option<Agreement>,
    held: Option<Held>,
    /// What is being applied, by round and, for a resync, its hash.
    applying: Option<(u64, Option<Hash>)>,
    newcomers: Newcomers,
    /// The newest word that a validator holds this node's bond.
    pledged: Option<Signed<Pledged>>,
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
        let (mut ballot, mut card, mut trained) = (None, None, Vec::new());
        for item in stored {
            match item {
                Stored::Entries(entries) => {
                    for entry in entries {
                        base_before = chain.last().base;
                        chain.append(entry)?;
                    }
                }
                Stored::Ballot(newest) => ballot = Some(newest),
                Stored::Card(newest) => card = Some(newest),
                Stored::Trained { commit, update, bytes } => trained.push((commit, update, bytes)),
            }
        }
        let began = if chain.entry().is_some() { now.min(Millis(chain.last().at_ms)) } else { now };
        let newcomers = Newcomers::new(*config.key.derive("consortium train newcomers 1"));
        let mut machine = Self {
            me: config.key.node_id(),
            key: config.key,
            wish: config.wish,
            resend: config.resend,
            base_before,
            round: Round::new(&chain, began),
            early: None,
            next_commits: BTreeMap::new(),
            chain,
            agreement: None,
            held: config.held,
            applying: None,
            newcomers,
            pledged: None,
            candidates: BTreeMap::new(),
            states: BTreeMap::new(),
            leaving: false,
            resent: None,
            asked: None,
        };
        machine.open_agreement(ballot);
        let round = machine.chain.round();
        let newest = |of: u64| trained.iter().rev().find(|(commit, ..)| commit.payload().round == of).cloned();
        machine.round.restore(round, machine.me, card, newest(round));
        machine.early = newest(round + 1).map(Early::of);
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
            Input::NotTrained { round } => self.not_trained(round),
            Input::Fetched { round, peer, result } => self.fetched(round, peer, result),
            Input::Evaluated { round, aggregate, findings } => {
                self.evaluated(round, aggregate, findings, now, &mut out);
            }
            Input::Applied(held) => self.applied(held, now, &mut out),
            Input::NotApplied => {
                self.applying = None;
                self.held = None;
            }
            Input::Pledged(bond) => {
                self.pledged = Some(bond);
                if !self.chain.last().ended {
                    self.say_wish(&mut out);
                }
            }
            Input::Leave => self.leaving = true,
            Input::Return => self.leaving = false,
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
        let account = self.chain.last().member(self.me);
        let would = self.wish == Wish::Train && !self.leaving;
        if self.is_validator() {
            return;
        }
        let bond = self.pledged.clone().filter(|_| would && self.spec().has_bond());
        let said = Join { run, round, stays: would, bond };
        let news = would != account.is_some_and(|account| account.active) && join_counts(&said, account);
        if news && (would || self.leaving) {
            let join = Signed::sign(&self.key, said);
            // Without the bond that the run wants nobody would hear it.
            if bond::fits(self.spec(), self.chain.last(), &join) {
                out.push(Output::Broadcast(TrainMessage::Join(join)));
            }
        }
        if self.wish == Wish::Validate && !self.leaving {
            let candidate = Signed::sign(&self.key, Candidate { run, round });
            out.push(Output::Broadcast(TrainMessage::Candidate(candidate)));
        }
    }
}
