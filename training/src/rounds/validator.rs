//! A validator's part: open nonces, measure, sign a card, agree on the record.

use consortium_protocol::wire::train::{
    Body, EvalNonce, Finding, Locks, LossPair, Measure, Nonce, Proposal, Purpose, Record, Refusal, ScoreCard,
    TrainMessage, beacon, nonce_lock,
};
use consortium_protocol::{Millis, NodeId, Signed};

use super::agreement::{Act, Agreement, Ballot, Times};
use super::outcome::{aggregate_to_judge, card_fits, outcome, trained_from};
use super::{Machine, Output, Stored};

/// How far ahead of this node's clock the time of a record may be for its vote.
const AHEAD: Millis = Millis(10 * 60 * 1000);
/// How far behind it: of machines that sleep now and then clocks stay behind.
const BEHIND: Millis = Millis(7 * 24 * 3600 * 1000);

impl Machine {
    /// Begins to agree on the record of the round, if this node judges in it.
    pub(super) fn open_agreement(&mut self, ballot: Option<Ballot>) {
        let phases = self.spec().phases;
        let times = Times { settle: Millis(phases.settle_ms), delta: Millis(phases.delta_ms), resend: self.resend };
        let (quorum, due) = (self.spec().quorum as usize, self.round.cards_until(self.spec()));
        self.agreement = self
            .is_validator()
            .then(|| Agreement::new(self.key.clone(), self.chain.last(), quorum, times, ballot, due));
    }

    /// Its secret part of a draw: from the key, so that a restart changes nothing.
    fn nonce(&self, round: u64, purpose: Purpose) -> Nonce {
        let secret = self.key.derive("consortium train nonce 1");
        let mut hasher = blake3::Hasher::new_keyed(&secret);
        let kind = match purpose {
            Purpose::Assignment => 1,
            Purpose::Evaluation => 2,
        };
        hasher.update(self.run().0.as_bytes()).update(&round.to_le_bytes()).update(&[kind]);
        Nonce(*hasher.finalize().as_bytes())
    }

    fn lock(&self, round: u64, purpose: Purpose) -> consortium_protocol::Hash {
        nonce_lock(self.run(), round, purpose, self.me, &self.nonce(round, purpose))
    }

    /// Does what a validator can do now.
    pub(super) fn validate(&mut self, now: Millis, out: &mut Vec<Output>) {
        if !self.is_validator() {
            return;
        }
        self.open_nonce(now, out);
        self.measure(now, out);
        self.agree(now, out);
    }

    fn has_locks(&self, id: NodeId) -> bool {
        self.chain.last().validator(id).is_some_and(|validator| validator.locks.is_some())
    }

    fn open_nonce(&mut self, now: Millis, out: &mut Vec<Output>) {
        let due = self.round.is_closed(self.spec(), now) && self.has_locks(self.me);
        if !due || self.round.nonces.contains_key(&self.me) {
            return;
        }
        let (run, round) = (self.run(), self.chain.round());
        let nonce = self.nonce(round, Purpose::Evaluation);
        let nonce = Signed::sign(&self.key, EvalNonce { run, round, nonce });
        self.round.nonces.insert(self.me, nonce.clone());
        out.push(Output::Broadcast(TrainMessage::EvalNonce(nonce)));
    }

    /// Has the updates measured when all that can come have come, or the time for that is over.
    fn measure(&mut self, now: Millis, out: &mut Vec<Output>) {
        let held = self.held.filter(|held| held.round == self.chain.last().round);
        let Some(held) = held.filter(|_| self.round.drawn_with.is_none() && !self.round.cards.contains_key(&self.me))
        else {
            return;
        };
        let heard = &self.round;
        let closed = heard.is_closed(self.spec(), now);
        let last = self.chain.last();
        let from = trained_from(last, held.state);
        let settled = |peer: &NodeId| heard.refusal(*peer, from).is_some() || heard.fetched.contains_key(peer);
        let opened = last.validators.iter().all(|v| v.locks.is_none() || heard.nonces.contains_key(&v.id));
        // In a round without training the card, which draws who comes first, waits until all could say that they join.
        let complete = opened && !heard.peers.is_empty() && heard.peers.iter().all(settled);
        if !closed || !(complete || now >= heard.reveals_until(self.spec())) {
            return;
        }
        let here = |peer: &&NodeId| heard.refusal(**peer, from).is_none() && heard.fetched.contains_key(*peer);
        let updates: Vec<_> = heard
            .order
            .iter()
            .filter(here)
            .filter_map(|peer| Some((*peer, heard.reveals.get(peer)?.payload().update)))
            .collect();
        let drawn_with: Vec<NodeId> = heard.nonces.keys().copied().collect();
        let judge = aggregate_to_judge(last);
        let nonces = heard.nonces.iter().map(|(id, nonce)| (*id, &nonce.payload().nonce));
        let evaluate = Output::Evaluate {
            round: self.chain.round(),
            assignment: last.assignment,
            peers: heard.peers.clone(),
            evaluation: beacon(self.run(), self.chain.round(), Purpose::Evaluation, last.id(), nonces),
            base: held.state,
            from,
            judge,
            updates: updates.clone(),
        };
        self.round.drawn_with = Some(drawn_with);
        if updates.is_empty() && judge.is_none() {
            self.evaluated(self.chain.round(), Vec::new(), Vec::new(), now, out);
        } else {
            out.push(evaluate);
        }
    }

    /// Signs the card of the round.
    pub(super) fn evaluated(
        &mut self,
        round: u64,
        aggregate: Vec<LossPair>,
        findings: Vec<(NodeId, Result<Measure, Refusal>)>,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let held = self.held.filter(|held| held.round + 1 == round && round == self.chain.round());
        let (Some(held), Some(drawn_with)) = (held, self.round.drawn_with.clone()) else { return };
        if self.round.cards.contains_key(&self.me) {
            return;
        }
        let from = trained_from(self.chain.last(), held.state);
        let finding = |peer: &NodeId| {
            let found = findings.iter().find(|(found, _)| found == peer).map(|(_, found)| found.clone());
            match (self.round.refusal(*peer, from), found) {
                (Some(refusal), _) | (None, Some(Err(refusal))) => Finding::Refused(refusal),
                (None, Some(Ok(measure))) => Finding::Measured(measure),
                (None, None) => Finding::Refused(Refusal::Withheld),
            }
        };
        let card = ScoreCard {
            run: self.run(),
            round,
            base: held.state,
            aggregate,
            drawn_with,
            findings: self.round.peers.iter().map(|peer| (*peer, finding(peer))).collect(),
            opened: self.has_locks(self.me).then(|| self.nonce(round, Purpose::Assignment)),
            locks: Locks {
                assignment: self.lock(round + 1, Purpose::Assignment),
                evaluation: self.lock(round + 1, Purpose::Evaluation),
            },
        };
        let card = Signed::sign(&self.key, card);
        // Numbers that do not fit the run would make a card that everyone refuses.
        if !card_fits(self.spec(), self.chain.last(), &card) {
            return;
        }
        self.round.cards.insert(self.me, (card.clone(), now));
        out.push(Output::Persist(Stored::Card(card.clone())));
        out.push(Output::Broadcast(TrainMessage::Card(card)));
    }

    /// Whether this node may propose a record: all cards are in, or they are due.
    fn is_ready(&self, now: Millis) -> bool {
        let last = self.chain.last();
        let complete = last.validators.iter().all(|v| self.round.cards.contains_key(&v.id));
        let paused = self.round.peers.is_empty() && now < self.round.reveals_until(self.spec());
        self.round.cards.len() >= self.spec().quorum as usize
            && !paused
            && (complete || now >= self.round.cards_until(self.spec()))
    }

    fn agree(&mut self, now: Millis, out: &mut Vec<Output>) {
        let Some(mut agreement) = self.agreement.take() else { return };
        let mut acts = Vec::new();
        if self.is_ready(now) && agreement.wants_proposal(now) {
            agreement.propose(|view| self.fresh(view, now), now, &mut acts);
        }
        agreement.advance(|proposal| self.follows(proposal, now), now, &mut acts);
        agreement.tick(now, &mut acts);
        self.agreement = Some(agreement);
        self.act(acts, now, out);
    }

    /// A message of the agreement on this round's record.
    pub(super) fn take_agreement(&mut self, message: TrainMessage, now: Millis, out: &mut Vec<Output>) {
        let Some(mut agreement) = self.agreement.take() else { return };
        let mut acts = Vec::new();
        agreement.receive(message, now, &mut acts);
        self.agreement = Some(agreement);
        self.act(acts, now, out);
    }

    fn act(&mut self, acts: Vec<Act>, now: Millis, out: &mut Vec<Output>) {
        for act in acts {
            match act {
                Act::Persist(ballot) => out.push(Output::Persist(Stored::Ballot(ballot))),
                Act::Tell(message) => out.push(Output::Broadcast(message)),
                Act::Certain(entry) => {
                    let message = TrainMessage::Entries(entry.clone(), Vec::new());
                    if self.append([*entry], now, out) {
                        out.push(Output::Broadcast(message));
                    }
                    return;
                }
            }
        }
    }

    /// The record that follows from what this node heard.
    fn fresh(&self, view: u64, now: Millis) -> Option<(Record, Body)> {
        let body = self.body();
        let last = self.chain.last();
        let at_ms = now.0.min(i64::MAX as u64).max(last.at_ms);
        let record = outcome(self.spec(), last, &body, view, at_ms).ok()?;
        Some((record, body))
    }

    /// Whether this node would vote for a proposal: its record follows from its body and is of now, and, until every
    /// validator was lead once, nothing is left out that this node had in time.
    fn follows(&self, proposal: &Proposal, now: Millis) -> bool {
        let said = &proposal.record;
        if !self.is_of_now(proposal, now) {
            return false;
        }
        let follows = outcome(self.spec(), self.chain.last(), &proposal.body, said.view, said.at_ms);
        if follows.as_ref() != Ok(said) {
            return false;
        }
        let all_led = proposal.view >= self.chain.last().validators.len() as u64;
        all_led || proposal.locked.is_some() || !self.is_left_out(&proposal.body)
    }

    /// Whether the time of a proposed record may be true, by this node's clock. That of the record before always may, for
    /// the run to go on where clocks differ; what was first proposed in an earlier view may be of long ago.
    fn is_of_now(&self, proposal: &Proposal, now: Millis) -> bool {
        let (at, last) = (Millis(proposal.record.at_ms), Millis(self.chain.last().at_ms));
        let is_recent = proposal.record.view < proposal.view || at + BEHIND >= now;
        last <= at && at <= last.max(now + AHEAD) && is_recent
    }

    fn is_left_out(&self, body: &Body) -> bool {
        let margin = self.spec().phases.settle_ms / 8;
        let in_time = |at: &Millis| at.0.saturating_add(margin) <= self.round.cards_until(self.spec()).0;
        let card_missing = self
            .round
            .cards
            .iter()
            .any(|(id, (_, at))| in_time(at) && !body.cards.iter().any(|card| card.signer() == *id));
        let measured = |peer: &NodeId| {
            let count =
                body.cards.iter().filter(|card| matches!(card.payload().finding(*peer), Some(Finding::Measured(_))));
            2 * count.count() > body.cards.len()
        };
        let has = |peer: &NodeId| body.reveals.iter().any(|reveal| reveal.signer() == *peer);
        card_missing || self.round.reveals.keys().any(|peer| measured(peer) && !has(peer))
    }
}
