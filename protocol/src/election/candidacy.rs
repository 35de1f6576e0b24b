//! Standing: when, for which term, and what becomes of it.

use std::collections::BTreeMap;

use rand::{Rng, RngCore};

use super::{
    Ballot, Candidacy, Certificate, Election, ElectionMessage, MAX_TERM, Output, Refused, RefusedReason, Vacancy,
    VoteRequest, send,
};
use crate::envelope::Signed;
use crate::identity::NodeId;
use crate::time::Millis;

/// Renewals for one member that cost no extra waiting.
const FREE_RENEWALS: u32 = 6;
/// The longest wait between renewals for one member is `settle` times two to this.
const MAX_RENEWAL_DOUBLINGS: u32 = 9;

/// This node's candidacy for one round.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) term: u64,
    round: u64,
    request: Signed<VoteRequest>,
    basis: Option<Certificate>,
    ballots: BTreeMap<NodeId, Ballot>,
    until: Millis,
    last_sent: Millis,
}

impl Attempt {
    fn candidacy(&self, with_basis: bool) -> Candidacy {
        Candidacy { request: self.request.clone(), basis: self.basis.clone().filter(|_| with_basis) }
    }
}

impl Election {
    /// What time brings: candidacies, questions, renewals.
    pub(super) fn act(&mut self, now: Millis, rng: &mut impl RngCore, out: &mut Vec<Output>) {
        self.judge_leader(now);
        let leader = self.leader();
        self.note_vacancy(leader, now, rng);
        self.tend_attempt(now, rng, out);
        self.ask(now, out);
        let wanted = match self.vacancy {
            Some(vacancy) => self.is_my_turn(vacancy, now),
            None => leader == Some(self.me) && self.is_someone_stranded(now),
        };
        let willing = self.view.get(&self.me).is_some_and(|standing| standing.willing && !self.stepping_down);
        if wanted && willing && self.attempt.is_none() && now >= self.not_before {
            self.stand(now, out);
        }
    }

    fn note_vacancy(&mut self, leader: Option<NodeId>, now: Millis, rng: &mut impl RngCore) {
        if leader.is_some() {
            self.vacancy = None;
        } else if self.vacancy.is_none() {
            self.vacancy = Some(Vacancy { since: now, chance: self.chance(rng) });
        }
    }

    /// Whether those better than this node have had their time, and the node has listened long enough after its start.
    fn is_my_turn(&self, vacancy: Vacancy, now: Millis) -> bool {
        let listened = self.started + self.config.discovery_grace;
        now >= vacancy.since.max(listened) + self.rank_wait(self.me) + vacancy.chance
    }

    fn chance(&self, rng: &mut impl RngCore) -> Millis {
        Millis(rng.random_range(0..=self.config.jitter.0))
    }

    /// How long those better than `candidate` have the first word.
    pub(super) fn rank_wait(&self, candidate: NodeId) -> Millis {
        let Some(its) = self.view.get(&candidate) else {
            return self.config.max_rank_wait;
        };
        let better = self
            .view
            .iter()
            .filter(|(id, standing)| standing.alive && standing.willing && standing.rank(**id) < its.rank(candidate))
            .count() as u64;
        let wait = Millis(self.config.rank_step.0.saturating_mul(better));
        wait.min(self.config.max_rank_wait)
    }

    /// Repeats requests, and gives up a candidacy that came to nothing.
    fn tend_attempt(&mut self, now: Millis, rng: &mut impl RngCore, out: &mut Vec<Output>) {
        let resend = self.config.resend;
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        if now >= attempt.until {
            self.attempt = None;
            let wait = self.rank_wait(self.me) + self.config.jitter;
            self.not_before = now + wait + self.chance(rng) + self.chance(rng);
        } else if now.since(attempt.last_sent) >= resend {
            attempt.last_sent = now;
            self.request_votes(out);
        }
    }

    fn stand(&mut self, now: Millis, out: &mut Vec<Output>) {
        let basis = self.basis().cloned();
        let term = basis.as_ref().map_or(0, Certificate::term) + 1;
        let asked = VoteRequest { cluster: self.cluster, term, round: self.heard_round(term) + 1 };
        if term > MAX_TERM || asked.round > MAX_TERM {
            return;
        }
        let shown = basis.clone().filter(|basis| basis.term() > self.term());
        let ballot = self.mark_ballot(self.me, &asked, shown, out);
        self.hear_round(term, asked.round);
        self.attempt = Some(Attempt {
            term,
            round: asked.round,
            request: Signed::sign(&self.key, asked),
            basis,
            ballots: BTreeMap::from([(self.me, ballot)]),
            until: now + self.config.attempt,
            last_sent: now,
        });
        self.request_votes(out);
        self.try_to_win(now, out);
    }

    /// Asks everyone who has not voted.
    fn request_votes(&self, out: &mut Vec<Output>) {
        let Some(attempt) = &self.attempt else {
            return;
        };
        for (id, standing) in self.view.iter().filter(|(id, _)| !attempt.ballots.contains_key(id)) {
            let is_next = standing.term.checked_add(1) == Some(attempt.term);
            let candidacy = attempt.candidacy(!is_next);
            out.push(send(*id, ElectionMessage::Request(candidacy)));
        }
    }

    /// Counts a vote.
    pub(super) fn count(&mut self, from: NodeId, ballot: Ballot, now: Millis, out: &mut Vec<Output>) {
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        let vote = ballot.vote.payload();
        let mine = (vote.cluster, vote.term, vote.round, vote.candidate)
            == (self.cluster, attempt.term, attempt.round, self.me);
        if !mine || ballot.vote.signer() != from || ballot.check().is_err() {
            return;
        }
        attempt.ballots.insert(from, ballot);
        self.try_to_win(now, out);
    }

    fn try_to_win(&mut self, now: Millis, out: &mut Vec<Output>) {
        let Some(attempt) = &self.attempt else {
            return;
        };
        if attempt.term <= self.term() {
            return;
        }
        if let Some(certificate) = Certificate::assemble(self.me, &attempt.ballots) {
            self.obey(certificate.clone(), out);
            out.push(Output::Broadcast(certificate));
            self.attempt = None;
            self.after_renewal(now);
        }
    }

    /// Learns from a refusal what the next request must be like.
    pub(super) fn refused(&mut self, from: NodeId, refused: Refused, out: &mut Vec<Output>) {
        let Some(attempt) = &self.attempt else {
            return;
        };
        if refused.term != attempt.term {
            return;
        }
        if refused.reason == RefusedReason::Behind {
            let candidacy = attempt.candidacy(true);
            out.push(send(from, ElectionMessage::Request(candidacy)));
        }
        self.hear_round(refused.term, refused.round);
    }

    /// Whether a live member has obeyed another for so long that this node, the leader, should renew.
    fn is_someone_stranded(&mut self, now: Millis) -> bool {
        let (me, settle, known) = (self.me, self.config.settle, self.basis_term());
        let mut found = false;
        for (id, standing) in &self.view {
            let entry = self.stranded.entry(*id).or_default();
            // A term without a certificate is talk.
            let proven = standing.term <= known;
            if *id == me || !standing.alive || standing.master == Some(me) || !proven {
                entry.since = None;
                continue;
            }
            let since = *entry.since.get_or_insert(now);
            found |= now.since(since) >= settle && now >= entry.not_before;
        }
        found
    }

    /// Starts the clocks again for those that are stranded, slower for those that often are.
    fn after_renewal(&mut self, now: Millis) {
        for stranded in self.stranded.values_mut().filter(|s| s.since.is_some()) {
            stranded.since = None;
            stranded.renewals = stranded.renewals.saturating_add(1);
            let doublings = stranded.renewals.saturating_sub(FREE_RENEWALS);
            let factor = 1_u64 << doublings.min(MAX_RENEWAL_DOUBLINGS);
            stranded.not_before = now + Millis(self.config.settle.0.saturating_mul(factor));
        }
    }
}
