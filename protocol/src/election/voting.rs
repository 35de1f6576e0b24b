//! Voting: what a node says to those that stand.

use super::{
    Ballot, CEILING_SLACK, Candidacy, Certificate, Election, ElectionMessage, MAX_ROUND_LEAP, MAX_TERM, Output,
    Refused, RefusedReason, Vote, VoteRequest, send,
};
use crate::envelope::Signed;
use crate::identity::NodeId;
use crate::time::Millis;

impl Election {
    /// Answers a request for a vote.
    pub(super) fn consider(&mut self, from: NodeId, candidacy: &Candidacy, now: Millis, out: &mut Vec<Output>) {
        let asked = *candidacy.request.payload();
        let foreign = candidacy.request.signer() != from || asked.cluster != self.cluster;
        if foreign || from == self.me || asked.term > MAX_TERM {
            return;
        }
        if asked.term <= self.term() {
            self.send_obeyed(from, out);
            return;
        }
        let basis = self.basis_for(asked.term, candidacy.basis.as_ref());
        match (self.objection(from, &asked, basis.is_some(), now), basis) {
            (None, Some(basis)) => self.vote(from, &asked, basis, now, out),
            (Some(RefusedReason::Voted), _) if self.has_voted(from, &asked) => {
                // The vote was lost on its way: say the same again.
                let ballot = self.saved.voted.clone();
                out.extend(ballot.map(|ballot| send(from, ElectionMessage::Vote(ballot))));
            }
            (reason, _) => self.refuse(from, &asked, reason.unwrap_or(RefusedReason::Behind), out),
        }
    }

    fn refuse(&self, from: NodeId, asked: &VoteRequest, reason: RefusedReason, out: &mut Vec<Output>) {
        if reason == RefusedReason::Voted
            && let Some(basis) = &self.saved.basis
            && basis.term() >= asked.term
        {
            // What the candidate has to stand above.
            out.push(send(from, ElectionMessage::Certificate(basis.clone())));
        }
        let refused = Refused { term: asked.term, round: self.voted_round(asked.term), reason };
        out.push(send(from, ElectionMessage::Refused(refused)));
    }

    /// What entitles a candidate to `term`, which lies above the one obeyed: `None` if nothing does, `Some(None)` if it
    /// is the next one, else the certificate of the term before.
    fn basis_for(&self, term: u64, shown: Option<&Certificate>) -> Option<Option<Certificate>> {
        if term == self.term() + 1 {
            return Some(None);
        }
        let limit = self.ceiling() + 2 * CEILING_SLACK;
        shown
            .filter(|certificate| certificate.verify(self.cluster).is_ok() && certificate.term() <= limit)
            .into_iter()
            .chain(&self.saved.basis)
            .chain(self.claims.values())
            .chain(&self.seen)
            .find(|certificate| certificate.term() == term - 1)
            .map(|certificate| Some(certificate.clone()))
    }

    /// Why this node does not vote for `candidate`.
    fn objection(
        &mut self,
        candidate: NodeId,
        asked: &VoteRequest,
        is_entitled: bool,
        now: Millis,
    ) -> Option<RefusedReason> {
        let fit = self.view.get(&candidate).is_some_and(|standing| standing.alive && standing.willing);
        if !fit {
            return Some(RefusedReason::Unfit);
        }
        match self.leader() {
            Some(leader) if leader != candidate => return Some(RefusedReason::Preferred),
            Some(_) => {}
            None => {
                let vacant = self.vacancy.map_or(Millis::ZERO, |vacancy| now.since(vacancy.since));
                if vacant < self.rank_wait(candidate) {
                    return Some(RefusedReason::Preferred);
                }
            }
        }
        let heard = self.hear_round(asked.term, asked.round);
        let again_so_soon = self
            .granted
            .is_some_and(|(granted, when)| granted == candidate && now.since(when).0 < self.config.attempt.0 / 2);
        let last = self.last_vote().unwrap_or((0, 0));
        if (asked.term, asked.round) <= last || asked.round > heard || again_so_soon {
            return Some(RefusedReason::Voted);
        }
        (!is_entitled).then_some(RefusedReason::Behind)
    }

    /// Term and round of the last vote.
    fn last_vote(&self) -> Option<(u64, u64)> {
        let vote = self.saved.voted.as_ref()?.vote.payload();
        Some((vote.term, vote.round))
    }

    /// The last round this node voted in at `term`; 0 if none.
    fn voted_round(&self, term: u64) -> u64 {
        self.last_vote().filter(|(voted, _)| *voted == term).map_or(0, |(_, round)| round)
    }

    /// Whether the last vote was the one asked for.
    fn has_voted(&self, candidate: NodeId, asked: &VoteRequest) -> bool {
        self.saved.voted.as_ref().is_some_and(|ballot| {
            let vote = ballot.vote.payload();
            (vote.term, vote.round, vote.candidate) == (asked.term, asked.round, candidate)
        })
    }

    /// The highest round heard of in `term`; 0 if none.
    pub(super) fn heard_round(&self, term: u64) -> u64 {
        let heard = if self.heard.0 == term { self.heard.1 } else { 0 };
        heard.max(self.voted_round(term))
    }

    /// Takes note of a round and returns the highest heard of by now. No single message raises it by much: rounds never
    /// run out.
    pub(super) fn hear_round(&mut self, term: u64, round: u64) -> u64 {
        let before = self.heard_round(term);
        let limit = before.saturating_add(MAX_ROUND_LEAP).min(MAX_TERM);
        let heard = before.max(round.min(limit));
        self.heard = (term, heard);
        heard
    }

    fn vote(
        &mut self,
        candidate: NodeId,
        asked: &VoteRequest,
        basis: Option<Certificate>,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let ballot = self.mark_ballot(candidate, asked, basis, out);
        self.attempt = None;
        self.granted = Some((candidate, now));
        out.push(send(candidate, ElectionMessage::Vote(ballot)));
    }

    /// Signs a vote and makes it durable, with what entitled to it.
    pub(super) fn mark_ballot(
        &mut self,
        candidate: NodeId,
        asked: &VoteRequest,
        basis: Option<Certificate>,
        out: &mut Vec<Output>,
    ) -> Ballot {
        let vote = Vote { cluster: self.cluster, term: asked.term, round: asked.round, candidate, view: self.digest };
        let ballot = Ballot { vote: Signed::sign(&self.key, vote), view: self.view.keys().copied().collect() };
        self.saved.voted = Some(ballot.clone());
        self.saved.basis = basis;
        out.push(Output::Persist(self.saved.clone()));
        ballot
    }
}
