//! What was heard in the round that goes on.

use std::collections::{BTreeMap, BTreeSet};

use consortium_protocol::wire::train::{
    Body, Commit, EvalNonce, MAX_CANDIDATES, Record, Refusal, Reveal, RunSpec, ScoreCard, TrainMessage, commitment,
};
use consortium_protocol::{Hash, Millis, NodeId, Signed};

use super::chain::Chain;
use super::outcome::{card_fits, next_draw, nonce_fits, peers_ahead, peers_of_round};
use super::people::is_fresh;
use super::{FetchFailure, Machine, Output, bond};

/// What a peer committed to: its word, the update, and its length.
pub(super) type Own = (Signed<Commit>, Hash, u64);

/// The statements of a round, as far as they arrived.
pub(super) struct Round {
    /// When this node learned the record before.
    pub(super) began: Millis,
    /// Who trains, in ascending order.
    pub(super) peers: Vec<NodeId>,
    /// One of each peer; two of one that said two things.
    pub(super) commits: BTreeMap<NodeId, Vec<Signed<Commit>>>,
    /// Peers in the order in which they committed.
    pub(super) order: Vec<NodeId>,
    pub(super) late: BTreeSet<NodeId>,
    pub(super) reveals: BTreeMap<NodeId, Signed<Reveal>>,
    pub(super) fetching: BTreeSet<NodeId>,
    pub(super) fetched: BTreeMap<NodeId, Result<(), Refusal>>,
    pub(super) nonces: BTreeMap<NodeId, Signed<EvalNonce>>,
    /// With the time of their arrival.
    pub(super) cards: BTreeMap<NodeId, (Signed<ScoreCard>, Millis)>,
    /// This peer was told to train.
    pub(super) asked_to_train: bool,
    /// But it cannot.
    pub(super) cannot_train: bool,
    /// What this peer committed to.
    pub(super) own: Option<Own>,
    /// This validator was told to measure, with these nonces.
    pub(super) drawn_with: Option<Vec<NodeId>>,
}

impl Round {
    pub(super) fn new(chain: &Chain, began: Millis) -> Self {
        Self {
            began,
            peers: peers_of_round(chain.spec(), chain.last()),
            commits: BTreeMap::new(),
            order: Vec::new(),
            late: BTreeSet::new(),
            reveals: BTreeMap::new(),
            fetching: BTreeSet::new(),
            fetched: BTreeMap::new(),
            nonces: BTreeMap::new(),
            cards: BTreeMap::new(),
            asked_to_train: false,
            cannot_train: false,
            own: None,
            drawn_with: None,
        }
    }

    /// Takes up what this node said before it restarted, if that was in this round.
    pub(super) fn restore(&mut self, round: u64, me: NodeId, card: Option<Signed<ScoreCard>>, own: Option<Own>) {
        if let Some(card) = card.filter(|card| card.payload().round == round) {
            self.cards.insert(me, (card, self.began));
        }
        if let Some(own) = own.filter(|own| own.0.payload().round == round) {
            self.commit(own);
        }
    }

    /// Takes in what this peer commits to.
    pub(super) fn commit(&mut self, own: Own) {
        self.asked_to_train = true;
        self.add_commit(own.0.clone(), false);
        self.own = Some(own);
    }

    /// When commitments are late.
    pub(super) fn commits_until(&self, spec: &RunSpec) -> Millis {
        let training = Millis(spec.phases.train_ms + spec.phases.commit_ms);
        if self.peers.is_empty() { self.began } else { self.began + training }
    }

    /// When updates must be at hand. A round without training gives peers the time to join.
    pub(super) fn reveals_until(&self, spec: &RunSpec) -> Millis {
        let rest = if self.peers.is_empty() { spec.phases.settle_ms } else { spec.phases.reveal_ms };
        self.commits_until(spec) + Millis(rest)
    }

    /// When cards are due.
    pub(super) fn cards_until(&self, spec: &RunSpec) -> Millis {
        self.reveals_until(spec) + Millis(spec.phases.score_ms)
    }

    /// Whether nobody can commit any more.
    pub(super) fn is_closed(&self, spec: &RunSpec, now: Millis) -> bool {
        now >= self.commits_until(spec) || self.commits.len() == self.peers.len()
    }

    /// Takes a commitment; tells whether it shows that its peer says two things.
    pub(super) fn add_commit(&mut self, commit: Signed<Commit>, late: bool) -> bool {
        let peer = commit.signer();
        let heard = self.commits.entry(peer).or_default();
        if heard.len() > 1 || heard.contains(&commit) {
            return false;
        }
        if heard.is_empty() {
            self.order.push(peer);
            if late {
                self.late.insert(peer);
            }
        }
        heard.push(commit);
        heard.len() > 1
    }

    /// Why the update of a peer needs no measuring; none while it may come yet, or is here.
    pub(super) fn refusal(&self, peer: NodeId, base: Hash) -> Option<Refusal> {
        let Some(commits) = self.commits.get(&peer) else { return Some(Refusal::Missing) };
        match commits.as_slice() {
            [_, _, ..] => Some(Refusal::Equivocated),
            _ if self.late.contains(&peer) => Some(Refusal::Late),
            [commit] if commit.payload().base != base => Some(Refusal::WrongState),
            _ => self.fetched.get(&peer).and_then(|result| result.err()),
        }
    }

    /// Says again what this node said in this round.
    pub(super) fn say_again(&self, me: NodeId, out: &mut Vec<Output>) {
        let mut say = |message| out.push(Output::Broadcast(message));
        if let Some((commit, ..)) = &self.own {
            say(TrainMessage::Commit(commit.clone()));
        }
        self.reveals.get(&me).into_iter().for_each(|reveal| say(TrainMessage::Reveal(reveal.clone())));
        self.nonces.get(&me).into_iter().for_each(|nonce| say(TrainMessage::EvalNonce(nonce.clone())));
        self.cards.get(&me).into_iter().for_each(|(card, _)| say(TrainMessage::Card(card.clone())));
    }
}

impl Machine {
    /// Takes a message in, if it is about the round that goes on and by whom it should be.
    pub(super) fn receive(&mut self, from: NodeId, message: TrainMessage, now: Millis, out: &mut Vec<Output>) {
        if message.run() != self.run() {
            return;
        }
        match message {
            TrainMessage::Join(join) => {
                if bond::is_backed(self.spec(), self.chain.last(), &join) {
                    let opened = !self.round.cards.is_empty();
                    self.newcomers.hear(join, self.chain.last(), opened);
                }
            }
            TrainMessage::Candidate(candidate) => {
                let known = self.candidates.get(&candidate.signer()).map(|old| old.payload().round);
                if self.is_timely(candidate.payload().round, known, self.candidates.len(), 2 * MAX_CANDIDATES) {
                    self.candidates.insert(candidate.signer(), candidate);
                }
            }
            TrainMessage::Commit(commit) => self.take_commit(commit, now, out),
            TrainMessage::Reveal(reveal) => self.take_reveal(reveal),
            TrainMessage::EvalNonce(nonce) => {
                if nonce_fits(self.chain.last(), nonce.signer(), nonce.payload()) {
                    self.round.nonces.entry(nonce.signer()).or_insert(nonce);
                }
            }
            TrainMessage::Card(card) => {
                if card_fits(self.spec(), self.chain.last(), &card) {
                    self.round.cards.entry(card.signer()).or_insert((card, now));
                }
            }
            TrainMessage::State(state) => self.take_state(from, &state, now, out),
            TrainMessage::Ask { round, .. } => self.answer(from, round, out),
            TrainMessage::Entries(first, next) => self.take_entries(from, *first, next, now, out),
            agreed @ (TrainMessage::Proposal(_)
            | TrainMessage::Vote(_)
            | TrainMessage::Seal(_)
            | TrainMessage::NewView(_)) => self.take_agreement(agreed, now, out),
        }
    }

    fn is_timely(&self, said_in: u64, known: Option<u64>, heard: usize, most: usize) -> bool {
        let room = known.is_some() || heard < most;
        // Who is a round ahead of this node has no news for it yet, but will have.
        room && said_in <= self.chain.round() + 1 && known.is_none_or(|known| known < said_in)
    }

    pub(super) fn take_commit(&mut self, commit: Signed<Commit>, now: Millis, out: &mut Vec<Output>) {
        let round = commit.payload().round;
        if self.chain.last().ahead.is_some() && round == self.chain.round() + 1 {
            // Who had trained before it knew the last record commits as soon as it does.
            if peers_ahead(self.spec(), self.chain.last()).binary_search(&commit.signer()).is_ok() {
                self.next_commits.entry(commit.signer()).or_insert(commit);
            }
            return;
        }
        let here = round == self.chain.round();
        if !here || self.round.peers.binary_search(&commit.signer()).is_err() {
            return;
        }
        let late = now >= self.round.commits_until(self.chain.spec());
        let peer = commit.signer();
        if self.round.add_commit(commit, late) {
            // Everyone must see both.
            let both = self.round.commits.get(&peer).into_iter().flatten().cloned();
            out.extend(both.map(|commit| Output::Broadcast(TrainMessage::Commit(commit))));
        }
    }

    fn take_reveal(&mut self, reveal: Signed<Reveal>) {
        let said = reveal.payload();
        if said.round != self.chain.round() || said.bytes > self.spec().max_update_bytes {
            return;
        }
        let committed = commitment(self.run(), said.round, reveal.signer(), said.update);
        let commits = self.round.commits.get(&reveal.signer());
        if commits.is_some_and(|all| all.iter().any(|commit| commit.payload().commitment == committed)) {
            self.round.reveals.entry(reveal.signer()).or_insert(reveal);
        }
    }

    /// Has every update fetched that was revealed: validators measure them, and all apply those that are accepted.
    pub(super) fn fetch(&mut self, out: &mut Vec<Output>) {
        let round = self.chain.round();
        for (peer, reveal) in &self.round.reveals {
            let alone = self.round.commits.get(peer).is_some_and(|commits| commits.len() == 1);
            if alone && *peer != self.me && self.round.fetching.insert(*peer) {
                let said = reveal.payload();
                out.push(Output::Fetch { round, peer: *peer, update: said.update, bytes: said.bytes });
            }
        }
    }

    pub(super) fn fetched(&mut self, round: u64, peer: NodeId, result: Result<(), FetchFailure>) {
        if round == self.chain.round() && self.round.fetching.contains(&peer) {
            let result = result.map_err(|failure| match failure {
                FetchFailure::Missing => Refusal::Withheld,
                FetchFailure::Malformed => Refusal::Malformed,
            });
            self.round.fetched.insert(peer, result);
        }
    }

    /// All that was heard and belongs in the record, as a lead puts it together.
    pub(super) fn body(&self) -> Body {
        let (last, round) = (self.chain.last(), self.chain.round());
        let heard = &self.round;
        let drawn = |card: &ScoreCard| card.drawn_with.iter().all(|id| heard.nonces.contains_key(id));
        let mut commits: Vec<_> = heard.commits.values().flatten().cloned().collect();
        commits.sort_by_key(|commit| (commit.signer(), commit.digest()));
        let candidates = self
            .candidates
            .values()
            .filter(|candidate| is_fresh(candidate.payload().round, round) && self.may_come(last, candidate.signer()));
        let mut body = Body {
            cards: heard.cards.values().map(|(card, _)| card.clone()).filter(|card| drawn(card.payload())).collect(),
            nonces: heard.nonces.values().cloned().collect(),
            commits,
            reveals: heard.reveals.values().cloned().collect(),
            joins: Vec::new(),
            candidates: candidates.take(MAX_CANDIDATES).cloned().collect(),
        };
        body.joins = self.newcomers.joins(last, next_draw(last, &body), |join| bond::fits(self.spec(), last, join));
        body
    }

    fn may_come(&self, last: &Record, node: NodeId) -> bool {
        last.validator(node).is_none()
    }
}
