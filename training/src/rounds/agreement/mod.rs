//! How the validators of a round agree on one record.
//!
//! # Rules
//! Views are numbered from 0; the lead of a view follows from round and view. The lead proposes; a validator *votes* once
//! in a view, after it found the record to follow from its body; who sees a quorum of votes for a record in a view is
//! *locked* on it; who voted for it in the view it is in, and is locked on it, *seals*. A quorum of seals of one view makes
//! the record certain. A view that takes too long is given up: with a quorum of validators that say so
//! ([`NewView`], with the lock of each) the next begins, and its lead proposes what the latest lock it hears of names, and
//! something of its own only when nobody is locked. Who is locked votes for another record only if that comes with a
//! quorum of votes of a view not before its own lock. (Of the same view: then nobody honest sealed in it.)
//!
//! # Why there is never a second certain record
//! Let `n` validators have a quorum `q`, and `b` of them lie. If `2q - n > b` then every two quorums share an honest
//! validator, and that is enough, whatever the network does: let X be sealed by a quorum in view v, and let w >= v be the
//! first view in which another record Y has a quorum of votes. The two share an honest validator. In v itself it voted
//! once. After v it was locked on X, and would vote for Y only with a quorum of votes for Y between v and w: there is none.
//! So 3 of 4 bear one liar, 5 of 7 two; 2 of 3 bear none, but one that is gone.
//!
//! A bare majority of honest validators cannot do this on a network that delays at will: no protocol can. With
//! `delta_ms`, the longest that a message between two honest validators takes, it can: a validator passes on the lead's vote
//! and the proposal when it votes, then waits for twice that long before it seals, and does not seal if the lead turns out
//! to have voted for two records, or if it has given up the view meanwhile; when it seals it passes on the votes, when it
//! enters a view what entitled it, and then waits as long before it votes. So if an honest validator seals X then no honest
//! one voted for anything else in that view, and all are locked on X before they vote in the next.
//!
//! Seals of different views do not add up to a certificate, even for one record: an unlocked minority could then have
//! sealed another between.

mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use consortium_protocol::wire::train::{
    Body, Entry, Locked, NewView, Proposal, Record, RunId, Seal, TrainMessage, Vote,
};
use consortium_protocol::{Hash, Millis, NodeId, RootKey, Signed};
use serde::{Deserialize, Serialize};

/// Views further away than this are not heard of.
const WINDOW: u64 = 16;
/// The time for a view is doubled this often at most.
const MOST_DOUBLINGS: u64 = 6;

/// What a validator must remember of a round over a restart: it must be durable before a vote or a seal leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ballot {
    /// The round.
    pub round: u64,
    /// The view it is in.
    pub view: u64,
    /// The latest view it voted in.
    pub voted: Option<u64>,
    /// The record it is locked on, and its votes.
    pub lock: Option<(Hash, Locked)>,
    /// The proposal of that record, if it has it.
    pub proposal: Option<Signed<Proposal>>,
}

/// What an agreement wants done, in this order.
pub(super) enum Act {
    Persist(Ballot),
    Tell(TrainMessage),
    Certain(Box<Entry>),
}

/// Times of an agreement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) settle: Millis,
    pub(super) delta: Millis,
    pub(super) resend: Millis,
}

/// One validator's part in agreeing on the record of a round.
pub(super) struct Agreement {
    key: Arc<RootKey>,
    me: NodeId,
    before: Record,
    quorum: usize,
    times: Times,
    view: u64,
    entered: Millis,
    /// The latest view voted in, and when; a vote of before a restart has no time, and is not followed by a seal.
    voted: Option<(u64, Option<Millis>)>,
    sealed: Option<u64>,
    /// The latest view whose proposal it will not vote for.
    refused: Option<u64>,
    lock: Option<(Hash, Locked)>,
    /// By view, the lead's first.
    proposals: BTreeMap<u64, Signed<Proposal>>,
    /// Bodies of records, for certificates and locks.
    known: BTreeMap<Hash, Signed<Proposal>>,
    votes: BTreeMap<(u64, Hash), BTreeMap<NodeId, Signed<Vote>>>,
    seals: BTreeMap<(u64, Hash), BTreeMap<NodeId, Signed<Seal>>>,
    views: BTreeMap<NodeId, Signed<NewView>>,
    resent: Millis,
    mine: BTreeMap<&'static str, TrainMessage>,
}

impl Agreement {
    pub(super) fn new(
        key: Arc<RootKey>,
        before: &Record,
        quorum: usize,
        times: Times,
        ballot: Option<Ballot>,
        now: Millis,
    ) -> Self {
        let ballot = ballot.filter(|ballot| ballot.round == before.round + 1);
        let mut agreement = Self {
            me: key.node_id(),
            key,
            before: before.clone(),
            quorum,
            times,
            view: 0,
            entered: now,
            voted: None,
            sealed: None,
            refused: None,
            lock: None,
            proposals: BTreeMap::new(),
            known: BTreeMap::new(),
            votes: BTreeMap::new(),
            seals: BTreeMap::new(),
            views: BTreeMap::new(),
            resent: now,
            mine: BTreeMap::new(),
        };
        if let Some(ballot) = ballot {
            agreement.view = ballot.view;
            agreement.voted = ballot.voted.map(|view| (view, None));
            agreement.lock = ballot.lock;
            agreement.known.extend(ballot.proposal.map(|proposal| (proposal.payload().record.id(), proposal)));
        }
        agreement
    }

    fn run(&self) -> RunId {
        self.before.run
    }

    fn round(&self) -> u64 {
        self.before.round + 1
    }

    fn is_validator(&self, node: NodeId) -> bool {
        self.before.validator(node).is_some()
    }

    fn is_near(&self, view: u64) -> bool {
        view.abs_diff(self.view) <= WINDOW
    }

    /// Whether this node is to propose a record of its own now, if it can.
    pub(super) fn wants_proposal(&self, now: Millis) -> bool {
        let leads = self.before.lead(self.view) == Some(self.me) && !self.proposals.contains_key(&self.view);
        let listened = self.view == 0 || now.since(self.entered) >= self.listening() || self.heard_all();
        let voted_later = self.voted.is_some_and(|(view, _)| view >= self.view);
        leads && listened && !voted_later
    }

    fn listening(&self) -> Millis {
        Millis((2 * self.times.delta.0).max(self.times.settle.0 / 8))
    }

    fn heard_all(&self) -> bool {
        let heard = self.views.values().filter(|said| said.payload().view >= self.view).count();
        self.times.delta == Millis::ZERO && heard == self.before.validators.len()
    }

    /// Proposes what it is locked on, or else what `fresh` makes for this view.
    pub(super) fn propose(
        &mut self,
        fresh: impl FnOnce(u64) -> Option<(Record, Body)>,
        now: Millis,
        out: &mut Vec<Act>,
    ) {
        let locked = match &self.lock {
            None => None,
            Some((id, locked)) => match self.known.get(id) {
                Some(known) => Some((known.payload().record.clone(), known.payload().body.clone(), locked.clone())),
                // Another lead has the body: this view passes.
                None => return,
            },
        };
        let (record, body, locked) = match locked {
            Some((record, body, locked)) => (record, body, Some(locked)),
            None => match fresh(self.view) {
                Some((record, body)) => (record, body, None),
                None => return,
            },
        };
        let vote = self.vote_for(self.view, record.id());
        let proposal = Signed::sign(&self.key, Proposal { view: self.view, record, body, vote, locked });
        self.take_proposal(proposal);
        self.advance(|_| true, now, out);
    }

    fn vote_for(&self, view: u64, record: Hash) -> Signed<Vote> {
        Signed::sign(&self.key, Vote { run: self.run(), round: self.round(), view, record })
    }

    /// Takes a message of this round in.
    pub(super) fn receive(&mut self, message: TrainMessage, now: Millis, out: &mut Vec<Act>) {
        match message {
            TrainMessage::Proposal(proposal) => self.take_proposal(proposal),
            TrainMessage::Vote(vote) => self.take_vote(vote),
            TrainMessage::Seal(seal) => self.take_seal(seal),
            TrainMessage::NewView(said) => self.take_view(said, now, out),
            _ => {}
        }
    }

    fn take_proposal(&mut self, proposal: Signed<Proposal>) {
        let said = proposal.payload();
        let by_lead = self.before.lead(said.view) == Some(proposal.signer()) && said.vote.signer() == proposal.signer();
        let here = (said.record.run, said.record.round) == (self.run(), self.round());
        let backed = match &said.locked {
            Some(locked) => self.is_quorum(locked.signers()),
            None => said.record.view == said.view,
        };
        if !(by_lead && here && backed && self.is_near(said.view)) {
            return;
        }
        let id = said.record.id();
        self.take_vote(said.vote.clone());
        let counts = self.votes.get(&(said.view, id)).is_some_and(|by| by.contains_key(&proposal.signer()));
        if !counts {
            return;
        }
        if let Some(locked) = &said.locked {
            self.learn_lock(id, locked);
        }
        self.known.entry(id).or_insert_with(|| proposal.clone());
        self.proposals.entry(said.view).or_insert(proposal);
    }

    fn is_quorum(&self, signers: impl Iterator<Item = NodeId>) -> bool {
        let signers: BTreeSet<NodeId> = signers.collect();
        signers.len() >= self.quorum && signers.iter().all(|signer| self.is_validator(*signer))
    }

    fn take_vote(&mut self, vote: Signed<Vote>) {
        let said = *vote.payload();
        let here = (said.run, said.round) == (self.run(), self.round());
        // Two different votes of one validator in a view show that it lies; a third shows nothing more.
        let others =
            self.votes.range((said.view, Hash::from_bytes([0; 32]))..=(said.view, Hash::from_bytes([255; 32])));
        let spoken = others.filter(|((_, id), by)| *id != said.record && by.contains_key(&vote.signer())).count();
        if here && self.is_validator(vote.signer()) && self.is_near(said.view) && spoken < 2 {
            self.votes.entry((said.view, said.record)).or_default().entry(vote.signer()).or_insert(vote);
        }
    }

    fn take_seal(&mut self, seal: Signed<Seal>) {
        let said = *seal.payload();
        let here = (said.run, said.round) == (self.run(), self.round());
        let spoken =
            self.seals.iter().filter(|((view, _), by)| *view == said.view && by.contains_key(&seal.signer())).count();
        if here && self.is_validator(seal.signer()) && self.is_near(said.view) && spoken < 2 {
            self.seals.entry((said.view, said.record)).or_default().entry(seal.signer()).or_insert(seal);
        }
    }

    fn take_view(&mut self, said: Signed<NewView>, now: Millis, out: &mut Vec<Act>) {
        let told = said.payload();
        let here = (told.run, told.round) == (self.run(), self.round());
        if !here || !self.is_validator(said.signer()) {
            return;
        }
        if let Some((proposal, locked)) = &told.locked
            && self.is_quorum(locked.signers())
        {
            let id = proposal.payload().record.id();
            self.known.entry(id).or_insert_with(|| proposal.clone());
            self.learn_lock(id, locked);
        }
        let newer = self.views.get(&said.signer()).is_none_or(|old| old.payload().view < told.view);
        if newer {
            self.views.insert(said.signer(), said);
            self.follow_views(now, out);
        }
    }

    fn learn_lock(&mut self, record: Hash, locked: &Locked) {
        if self.lock.as_ref().is_none_or(|(_, own)| own.view < locked.view) {
            self.lock = Some((record, locked.clone()));
        }
    }

    /// Enters the highest view that a quorum wants.
    fn follow_views(&mut self, now: Millis, out: &mut Vec<Act>) {
        let mut wanted: Vec<u64> = self.views.values().map(|said| said.payload().view).collect();
        wanted.sort_unstable_by(|a, b| b.cmp(a));
        let Some(view) = wanted.get(self.quorum - 1).copied().filter(|view| *view > self.view) else { return };
        self.view = view;
        self.entered = now;
        self.want(view, out);
        for said in self.views.values().filter(|said| said.payload().view >= view) {
            out.push(Act::Tell(TrainMessage::NewView(said.clone())));
        }
        let near = |other: u64| other.abs_diff(view) <= WINDOW;
        self.proposals.retain(|other, _| near(*other));
        self.votes.retain(|(other, _), _| near(*other));
    }

    /// Says that it gives up the views before `view`, if it has not yet.
    fn want(&mut self, view: u64, out: &mut Vec<Act>) {
        if self.views.get(&self.me).is_some_and(|said| said.payload().view >= view) {
            return;
        }
        let locked = self.lock.as_ref().and_then(|(id, locked)| Some((self.known.get(id)?.clone(), locked.clone())));
        let locked = locked.filter(|(_, locked)| locked.view < view);
        let said = NewView { run: self.run(), round: self.round(), view, locked };
        let said = Signed::sign(&self.key, said);
        self.views.insert(self.me, said.clone());
        out.push(Act::Persist(self.ballot()));
        self.say("view", TrainMessage::NewView(said), out);
    }

    fn say(&mut self, kind: &'static str, message: TrainMessage, out: &mut Vec<Act>) {
        self.mine.insert(kind, message.clone());
        out.push(Act::Tell(message));
    }

    fn ballot(&self) -> Ballot {
        Ballot {
            round: self.round(),
            view: self.view,
            voted: self.voted.map(|(view, _)| view),
            lock: self.lock.clone(),
            proposal: self.lock.as_ref().and_then(|(id, _)| self.known.get(id).cloned()),
        }
    }

    /// Lets time go by: gives up a view that takes too long, says again what may have been lost.
    pub(super) fn tick(&mut self, now: Millis, out: &mut Vec<Act>) {
        let patience = Millis(self.times.settle.0.saturating_mul(1 << self.view.min(MOST_DOUBLINGS)));
        if now.since(self.entered) >= patience {
            self.want(self.view + 1, out);
            self.follow_views(now, out);
        }
        if now.since(self.resent) >= self.times.resend {
            self.resent = now;
            out.extend(self.mine.values().map(|message| Act::Tell(message.clone())));
        }
    }

    /// Whether the lead of a view voted for two records.
    fn is_split(&self, view: u64) -> bool {
        let Some(lead) = self.before.lead(view) else { return false };
        self.votes.iter().filter(|((other, _), by)| *other == view && by.contains_key(&lead)).count() > 1
    }

    fn has_given_up(&self, view: u64) -> bool {
        self.views.get(&self.me).is_some_and(|said| said.payload().view > view)
    }
}
