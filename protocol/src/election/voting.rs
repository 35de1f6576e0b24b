//! Standing, asking for votes, and voting.

use std::collections::BTreeMap;

use rand::{Rng, RngCore};

use super::{
    Ballot, Certificate, Election, ElectionMessage, MAX_ROUND_LEAP, MAX_TERM, Output, Refused,
    RefusedReason, Vacancy, Vote, VoteRequest,
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
    ballots: BTreeMap<NodeId, Ballot>,
    until: Millis,
    last_sent: Millis,
}

impl Election {
    pub(super) fn receive(
        &mut self,
        from: NodeId,
        message: ElectionMessage,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        match message {
            ElectionMessage::Request(request) => self.consider(from, &request, now, out),
            ElectionMessage::Vote(ballot) => self.count(from, ballot, now, out),
            ElectionMessage::Refused(refused) => self.refused(from, refused, out),
            ElectionMessage::Certificate(certificate) => {
                self.learn(&certificate, out);
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

    /// Answers a request for a vote.
    fn consider(
        &mut self,
        from: NodeId,
        request: &Signed<VoteRequest>,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let asked = *request.payload();
        if request.signer() != from || from == self.me || asked.cluster != self.cluster {
            return;
        }
        if asked.term <= self.known_term() {
            // Both: the one it may have to obey, and the one that its next request must lie above.
            if self.term() >= asked.term {
                self.send_obeyed(from, out);
            }
            if let Some(known) = &self.saved.known {
                out.push(send(from, ElectionMessage::Certificate(known.clone())));
            }
            return;
        }
        let refusal = self.objection(from, &asked, now);
        self.hear_round(asked.term, asked.round);
        match refusal {
            None => self.vote(from, &asked, now, out),
            Some(RefusedReason::Voted) if self.has_voted(from, &asked) => {
                // The vote was lost on its way: say the same again.
                let ballot = self.saved.voted.clone();
                out.extend(ballot.map(|ballot| send(from, ElectionMessage::Vote(ballot))));
            }
            Some(reason) => {
                let refused = Refused {
                    term: asked.term,
                    known: self.known_term(),
                    round: self.voted_round(asked.term),
                    reason,
                };
                out.push(send(from, ElectionMessage::Refused(refused)));
            }
        }
    }

    /// Why this node does not vote for `candidate`.
    fn objection(
        &self,
        candidate: NodeId,
        asked: &VoteRequest,
        now: Millis,
    ) -> Option<RefusedReason> {
        let fit = self
            .view
            .get(&candidate)
            .is_some_and(|standing| standing.alive && standing.willing);
        if !fit {
            return Some(RefusedReason::Unfit);
        }
        match self.leader() {
            Some(leader) if leader != candidate => return Some(RefusedReason::Preferred),
            Some(_) => {}
            None => {
                let vacant = self
                    .vacancy
                    .map_or(Millis::ZERO, |vacancy| now.since(vacancy.since));
                if vacant < self.rank_wait(candidate) {
                    return Some(RefusedReason::Preferred);
                }
            }
        }
        if asked.term != self.known_term() + 1 {
            return Some(RefusedReason::Behind);
        }
        let heard = self.heard_round(asked.term);
        let leaps = asked.round > heard.saturating_add(MAX_ROUND_LEAP);
        let again_so_soon = self.granted.is_some_and(|(last, when)| {
            last == candidate && now.since(when).0 < self.config.attempt.0 / 2
        });
        let voted = self.voted_round(asked.term);
        if asked.round <= voted || leaps || voted > 0 && again_so_soon {
            return Some(RefusedReason::Voted);
        }
        None
    }

    /// The last round this node voted in at `term`; 0 if none.
    fn voted_round(&self, term: u64) -> u64 {
        self.saved
            .voted
            .as_ref()
            .map(|ballot| ballot.vote.payload())
            .filter(|vote| vote.term == term)
            .map_or(0, |vote| vote.round)
    }

    /// Whether the last vote was the one asked for.
    fn has_voted(&self, candidate: NodeId, asked: &VoteRequest) -> bool {
        self.saved.voted.as_ref().is_some_and(|ballot| {
            let vote = ballot.vote.payload();
            (vote.term, vote.round, vote.candidate) == (asked.term, asked.round, candidate)
        })
    }

    fn heard_round(&self, term: u64) -> u64 {
        let heard = if self.heard.0 == term {
            self.heard.1
        } else {
            0
        };
        heard.max(self.voted_round(term))
    }

    /// Rounds heard of raise the next one of this node, but no single message by much: they never run out.
    fn hear_round(&mut self, term: u64, round: u64) {
        if term != self.known_term() + 1 {
            return;
        }
        let heard = self.heard_round(term);
        let limit = heard.saturating_add(MAX_ROUND_LEAP).min(MAX_TERM);
        self.heard = (term, heard.max(round.min(limit)));
    }

    fn vote(&mut self, candidate: NodeId, asked: &VoteRequest, now: Millis, out: &mut Vec<Output>) {
        let ballot = self.mark_ballot(candidate, asked, out);
        self.attempt = None;
        self.granted = Some((candidate, now));
        out.push(send(candidate, ElectionMessage::Vote(ballot)));
    }

    /// Signs a vote and makes it durable.
    fn mark_ballot(
        &mut self,
        candidate: NodeId,
        asked: &VoteRequest,
        out: &mut Vec<Output>,
    ) -> Ballot {
        let vote = Vote {
            cluster: self.cluster,
            term: asked.term,
            round: asked.round,
            candidate,
            view: self.digest,
        };
        let ballot = Ballot {
            vote: Signed::sign(&self.key, vote),
            view: self.view.keys().copied().collect(),
        };
        self.saved.voted = Some(ballot.clone());
        out.push(Output::Persist(self.saved.clone()));
        ballot
    }

    fn count(&mut self, from: NodeId, ballot: Ballot, now: Millis, out: &mut Vec<Output>) {
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

    fn refused(&mut self, from: NodeId, refused: Refused, out: &mut Vec<Output>) {
        let Some(attempt) = &self.attempt else {
            return;
        };
        if refused.term != attempt.term {
            return;
        }
        let request = attempt.request.clone();
        self.hear_round(refused.term, refused.round);
        // Only to who lacks it, and once for each refusal.
        if refused.reason == RefusedReason::Behind
            && refused.known.saturating_add(1) < refused.term
            && let Some(known) = self.known()
        {
            let known = ElectionMessage::Certificate(known.clone());
            out.push(send(from, known));
            out.push(send(from, ElectionMessage::Request(request)));
        }
    }

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
        let willing = self
            .view
            .get(&self.me)
            .is_some_and(|standing| standing.willing && !self.stepping_down);
        if wanted && willing && self.attempt.is_none() && now >= self.not_before {
            self.stand(now, out);
        }
    }

    fn note_vacancy(&mut self, leader: Option<NodeId>, now: Millis, rng: &mut impl RngCore) {
        if leader.is_some() {
            self.vacancy = None;
        } else if self.vacancy.is_none() {
            self.vacancy = Some(Vacancy {
                since: now,
                chance: self.chance(rng),
            });
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
    fn rank_wait(&self, candidate: NodeId) -> Millis {
        let Some(its) = self.view.get(&candidate) else {
            return self.config.max_rank_wait;
        };
        let better = self
            .view
            .iter()
            .filter(|(id, standing)| {
                standing.alive && standing.willing && standing.rank(**id) < its.rank(candidate)
            })
            .count() as u64;
        let wait = Millis(self.config.rank_step.0.saturating_mul(better));
        wait.min(self.config.max_rank_wait)
    }

    /// Repeats requests, and gives up a candidacy that came to nothing.
    fn tend_attempt(&mut self, now: Millis, rng: &mut impl RngCore, out: &mut Vec<Output>) {
        let known = self.known_term();
        let resend = self.config.resend;
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        if attempt.term <= known {
            // The number is taken: stand again above it.
            self.attempt = None;
            self.not_before = now + self.chance(rng);
        } else if now >= attempt.until {
            self.attempt = None;
            let wait = self.rank_wait(self.me) + self.config.jitter;
            self.not_before = now + wait + self.chance(rng) + self.chance(rng);
        } else if now.since(attempt.last_sent) >= resend {
            attempt.last_sent = now;
            self.request_votes(false, out);
        }
    }

    fn stand(&mut self, now: Millis, out: &mut Vec<Output>) {
        let term = self.known_term() + 1;
        let asked = VoteRequest {
            cluster: self.cluster,
            term,
            round: self.heard_round(term) + 1,
        };
        if term > MAX_TERM || asked.round > MAX_TERM {
            return;
        }
        let ballot = self.mark_ballot(self.me, &asked, out);
        self.hear_round(term, asked.round);
        self.attempt = Some(Attempt {
            term,
            round: asked.round,
            request: Signed::sign(&self.key, asked),
            ballots: BTreeMap::from([(self.me, ballot)]),
            until: now + self.config.attempt,
            last_sent: now,
        });
        self.request_votes(true, out);
        self.try_to_win(now, out);
    }

    /// Asks everyone who has not voted; the `first` time, those that seem to lack the certificate before are given it.
    fn request_votes(&self, first: bool, out: &mut Vec<Output>) {
        let Some(attempt) = &self.attempt else {
            return;
        };
        let silent = self
            .view
            .iter()
            .filter(|(id, _)| !attempt.ballots.contains_key(id));
        for (id, standing) in silent {
            if let Some(known) = self.known()
                && first
                && standing.term < known.term()
            {
                out.push(send(*id, ElectionMessage::Certificate(known.clone())));
            }
            let request = ElectionMessage::Request(attempt.request.clone());
            out.push(send(*id, request));
        }
    }

    /// Whether a live member has obeyed another for so long that this node, the leader, should renew.
    fn is_someone_stranded(&mut self, now: Millis) -> bool {
        let (me, settle, known) = (self.me, self.config.settle, self.known_term());
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

fn send(to: NodeId, message: ElectionMessage) -> Output {
    Output::Send { to, message }
}
