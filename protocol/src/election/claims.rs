//! Whom to obey, and who leads: certificates against what the members say.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::{
    CEILING_FLOOR_MS, CEILING_MS, CEILING_SLACK, Certificate, Election, ElectionMessage, MAX_TERM, Output, Standing,
    view_digest,
};
use crate::identity::NodeId;
use crate::time::Millis;

/// How many members are asked for certificates in one tick.
const ASKS_PER_TICK: usize = 4;

impl Election {
    pub(super) fn set_view(&mut self, mut view: BTreeMap<NodeId, Standing>) {
        // This node is always there, and what it obeys it knows best.
        let mine = view.entry(self.me).or_default();
        mine.alive = true;
        mine.willing &= !self.stepping_down;
        self.digest = view_digest(view.keys());
        self.view = view;
        let Self { view, claims, stranded, asked, passed_over, .. } = self;
        claims.retain(|master, _| view.contains_key(master));
        stranded.retain(|id, _| view.contains_key(id));
        asked.retain(|id, _| view.contains_key(id));
        passed_over.retain(|id, _| view.contains_key(id));
        let held = [self.saved.obeyed.clone(), self.saved.basis.clone()];
        for certificate in held.iter().flatten() {
            self.claim(certificate);
        }
    }

    /// The highest term that a certificate without a majority's support may have: it rises with this node's wall time.
    pub(super) fn ceiling(&self) -> u64 {
        let wall_ms = self.view.get(&self.me).map_or(0, |mine| mine.wall_ms);
        wall_ms.max(CEILING_FLOOR_MS) / CEILING_MS
    }

    /// The certificate above which this node stands: that of the highest term it knows.
    pub(super) fn basis(&self) -> Option<&Certificate> {
        let limit = self.ceiling() + CEILING_SLACK;
        let others = self.claims.values().chain(&self.seen).filter(|certificate| certificate.term() <= limit);
        // What binds this node stands above any limit.
        let own = self.saved.obeyed.iter().chain(&self.saved.basis);
        own.chain(others).max_by_key(|certificate| certificate.term())
    }

    pub(super) fn basis_term(&self) -> u64 {
        self.basis().map_or(0, Certificate::term)
    }

    /// Takes note of a certificate, whether or not it is to be obeyed.
    pub(super) fn learn(&mut self, certificate: &Certificate) {
        let term = certificate.term();
        if certificate.verify(self.cluster).is_err() || term > MAX_TERM {
            return;
        }
        self.claim(certificate);
        let seen = self.seen.as_ref().map_or(0, Certificate::term);
        if term > seen && term <= self.ceiling() + CEILING_SLACK {
            self.seen = Some(certificate.clone());
        }
    }

    fn claim(&mut self, certificate: &Certificate) {
        let master = certificate.master();
        let newer = self.claims.get(&master).is_none_or(|held| held.term() < certificate.term());
        if newer && self.view.contains_key(&master) {
            self.claims.insert(master, certificate.clone());
        }
    }

    /// Obeys the highest certificate that the rules allow, if it is higher than the one obeyed.
    pub(super) fn follow(&mut self, out: &mut Vec<Output>) {
        let best = self
            .claims
            .values()
            .filter(|certificate| certificate.term() > self.term() && self.is_supported(certificate))
            .max_by_key(|certificate| certificate.term())
            .cloned();
        if let Some(certificate) = best {
            self.obey(certificate, out);
        }
    }

    /// Whether a majority of this node's view supports `certificate`.
    fn is_supported(&self, certificate: &Certificate) -> bool {
        let (term, master) = (certificate.term(), certificate.master());
        let voters: BTreeSet<NodeId> = certificate.voters().collect();
        let supporters = self
            .view
            .iter()
            .filter(|(id, standing)| {
                if **id == self.me {
                    return false;
                }
                let elsewhere = standing.master != Some(master);
                // Obeying this master in an earlier term is no support for whatever it certifies itself since.
                if standing.term >= term { !elsewhere && standing.alive } else { voters.contains(*id) }
            })
            .count();
        let members = self.view.len();
        let may_count_itself = term <= self.ceiling() + CEILING_SLACK || voters.contains(&self.me);
        2 * supporters > members || 2 * (supporters + 1) > members && may_count_itself
    }

    pub(super) fn obey(&mut self, certificate: Certificate, out: &mut Vec<Output>) {
        let term = certificate.term();
        debug_assert!(term > self.term(), "terms go up");
        self.claim(&certificate);
        if self.saved.basis.as_ref().is_some_and(|basis| basis.term() <= term) {
            self.saved.basis = None;
        }
        if self.seen.as_ref().is_some_and(|seen| seen.term() <= term) {
            self.seen = None;
        }
        if self.attempt.as_ref().is_some_and(|attempt| attempt.term <= term) {
            self.attempt = None;
        }
        self.saved.obeyed = Some(certificate);
        out.push(Output::Persist(self.saved.clone()));
    }

    /// Tells the owner whom to serve, when that changes.
    pub(super) fn announce(&mut self, out: &mut Vec<Output>) {
        let present = self
            .current()
            .filter(|certificate| self.view.get(&certificate.master()).is_some_and(|standing| standing.alive));
        let now = present.map(|certificate| (certificate.term(), certificate.master()));
        if now == self.announced {
            return;
        }
        out.push(match present {
            Some(certificate) => Output::Master(certificate.clone()),
            None => Output::NoMaster,
        });
        self.announced = now;
    }

    /// What `id` says it obeys; this node speaks for itself.
    pub(super) fn obeyed_by(&self, id: &NodeId) -> (u64, Option<NodeId>) {
        if *id == self.me {
            return (self.term(), self.master());
        }
        self.view.get(id).map_or((0, None), |standing| (standing.term, standing.master))
    }

    /// How many live members obey `master`.
    fn support(&self, master: NodeId) -> usize {
        self.view.iter().filter(|(id, standing)| standing.alive && self.obeyed_by(id).1 == Some(master)).count()
    }

    /// The claim that goes before all others, if there is one.
    pub(super) fn leader(&self) -> Option<NodeId> {
        let limit = self.ceiling() + CEILING_SLACK;
        self.view
            .iter()
            .filter(|(_, standing)| standing.alive && standing.willing)
            .filter(|(id, _)| !self.passed_over.contains_key(id))
            .filter_map(|(id, _)| {
                let claim = self.claims.get(id)?;
                let (term, obeyed) = self.obeyed_by(id);
                // A master just voted in may not have sent a heartbeat since.
                let just_made = self.master() == Some(*id) && term < self.term();
                let reachable = claim.term() <= self.term().max(limit);
                ((obeyed == Some(*id) || just_made) && reachable)
                    .then(|| (self.support(*id), claim.term(), Reverse(*id)))
            })
            .max()
            .map(|(_, _, Reverse(id))| id)
    }

    /// Passes over a leader that has no majority for too long: it is stuck, or it wants to be.
    pub(super) fn judge_leader(&mut self, now: Millis) {
        self.passed_over.retain(|_, until| now < *until);
        let live = self.view.values().filter(|standing| standing.alive).count();
        let lame = self.leader().filter(|leader| *leader != self.me && 2 * self.support(*leader) <= live);
        self.lame = lame.map(|leader| match self.lame {
            Some((before, since)) if before == leader => (leader, since),
            _ => (leader, now),
        });
        if let Some((leader, since)) = self.lame
            && now.since(since) > self.config.patience
        {
            self.passed_over.insert(leader, now + self.config.pass_over);
            self.lame = None;
        }
    }

    /// Asks members for certificates that they speak of and this node lacks.
    pub(super) fn ask(&mut self, now: Millis, out: &mut Vec<Output>) {
        let gap = self.config.ask_gap;
        let wanted: Vec<NodeId> = self
            .view
            .iter()
            .filter(|(id, standing)| **id != self.me && standing.alive)
            .filter(|(_, standing)| self.lacks(standing))
            .map(|(id, _)| *id)
            .filter(|id| self.asked.get(id).is_none_or(|last| now.since(*last) >= gap))
            .take(ASKS_PER_TICK)
            .collect();
        for id in wanted {
            self.asked.insert(id, now);
            out.push(Output::Send { to: id, message: ElectionMessage::Ask });
        }
    }

    fn lacks(&self, standing: &Standing) -> bool {
        let Some(master) = standing.master else {
            return false;
        };
        if self.view.contains_key(&master) {
            let held = self.claims.get(&master).map_or(0, Certificate::term);
            held < standing.term
        } else {
            self.basis_term() < standing.term
        }
    }
}
