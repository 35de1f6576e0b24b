//! A peer's part: train, commit, reveal.

use consortium_protocol::wire::train::{Commit, Reveal, TrainMessage, commitment};
use consortium_protocol::{Hash, Millis, Signed};

use super::collect::Own;
use super::outcome::{peers_ahead, trained_from};
use super::{Machine, Output, Stored};

/// What a peer does for the round after the one that goes on.
pub(super) struct Early {
    round: u64,
    /// State hash of the parameters that it trains from.
    base: Hash,
    own: Option<Own>,
}

impl Early {
    /// What was committed to, before a restart.
    pub(super) fn of(own: Own) -> Self {
        let said = own.0.payload();
        Self { round: said.round, base: said.base, own: Some(own) }
    }
}

impl Machine {
    /// Has this peer train, if it is its turn and it has the common parameters; reveals when nobody can commit any more.
    pub(super) fn train(&mut self, now: Millis, out: &mut Vec<Output>) {
        let in_time = now < self.round.commits_until(self.spec());
        let can = in_time && !self.round.cannot_train;
        let is_due = can && self.round.own.is_none() && self.round.peers.binary_search(&self.me).is_ok();
        let last = self.chain.last();
        if let Some(held) = self.held.filter(|held| held.round == last.round) {
            if is_due && !self.round.asked_to_train {
                self.round.asked_to_train = true;
                out.push(Output::Train {
                    round: self.chain.round(),
                    trained: last.trained,
                    beacon: last.assignment,
                    peers: self.round.peers.clone(),
                    base: trained_from(last, held.state),
                });
            } else if !is_due && self.early.is_none() {
                self.train_early(held.state, out);
            }
        }
        self.reveal(now, out);
    }

    /// Has this peer train for the round after the one that goes on, where peers do not wait.
    fn train_early(&mut self, base: Hash, out: &mut Vec<Output>) {
        let (last, round) = (self.chain.last(), self.chain.round() + 1);
        let trained = last.trained + u64::from(!self.round.peers.is_empty());
        let peers = peers_ahead(self.spec(), last);
        let Some(ahead) = last.ahead.as_ref().filter(|_| peers.binary_search(&self.me).is_ok()) else { return };
        if trained < self.spec().rounds {
            out.push(Output::Train { round, trained, beacon: ahead.assignment, peers, base });
            self.early = Some(Early { round, base, own: None });
        }
    }

    /// Goes on to the round that this peer trains for already. If the record before it names other parameters than it trained
    /// from, that is of no use.
    pub(super) fn catch_up_with_early(&mut self, out: &mut Vec<Output>) {
        let (round, base) = (self.chain.round(), self.chain.last().base);
        let Some(early) = self.early.take().filter(|early| (early.round, early.base) == (round, base)) else { return };
        self.round.asked_to_train = true;
        if let Some(own) = early.own {
            out.push(Output::Broadcast(TrainMessage::Commit(own.0.clone())));
            self.round.commit(own);
        }
    }

    /// What this peer was told to train it cannot, as for want of the parameters; for another round it may.
    pub(super) fn not_trained(&mut self, round: u64) {
        self.round.cannot_train |= round == self.chain.round();
    }

    /// Commits to what was trained.
    pub(super) fn trained(&mut self, round: u64, update: Hash, bytes: u64, now: Millis, out: &mut Vec<Output>) {
        if bytes == 0 {
            return;
        }
        if let Some(base) = self.early.as_ref().filter(|e| e.round == round && e.own.is_none()).map(|e| e.base) {
            let own = (self.commitment_to(round, update, base), update, bytes);
            out.push(Output::Persist(Stored::Trained { commit: own.0.clone(), update, bytes }));
            // It is said when the round is there.
            self.early = Some(Early { round, base, own: Some(own) });
            return;
        }
        let wanted = self.round.asked_to_train && self.round.own.is_none() && round == self.chain.round();
        let in_time = now < self.round.commits_until(self.spec());
        let last = self.chain.last();
        // Where peers do not wait, the parameters that follow the last record may still be on their way.
        let base = match &last.ahead {
            Some(_) => Some(last.base),
            None => self.held.filter(|held| held.round + 1 == round).map(|held| held.state),
        };
        let Some(base) = base.filter(|_| wanted && in_time) else { return };
        let commit = self.commitment_to(round, update, base);
        self.round.commit((commit.clone(), update, bytes));
        out.push(Output::Persist(Stored::Trained { commit: commit.clone(), update, bytes }));
        out.push(Output::Broadcast(TrainMessage::Commit(commit)));
    }

    fn commitment_to(&self, round: u64, update: Hash, base: Hash) -> Signed<Commit> {
        let run = self.run();
        let commitment = commitment(run, round, self.me, update);
        Signed::sign(&self.key, Commit { run, round, commitment, base })
    }

    fn reveal(&mut self, now: Millis, out: &mut Vec<Output>) {
        let Some((_, update, bytes)) = self.round.own else { return };
        if self.round.reveals.contains_key(&self.me) || !self.round.is_closed(self.spec(), now) {
            return;
        }
        let (run, round) = (self.run(), self.chain.round());
        let reveal = Signed::sign(&self.key, Reveal { run, round, update, bytes });
        self.round.reveals.insert(self.me, reveal.clone());
        out.push(Output::Publish { round, update });
        out.push(Output::Broadcast(TrainMessage::Reveal(reveal)));
    }
}
