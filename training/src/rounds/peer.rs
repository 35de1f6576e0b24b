//! A peer's part: train, commit, reveal.

use consortium_protocol::wire::train::{Commit, Reveal, TrainMessage, commitment};
use consortium_protocol::{Hash, Millis, Signed};

use super::{Machine, Output, Stored};

impl Machine {
    /// Has this peer train, if it is its turn and it has the common parameters; reveals when nobody can commit any more.
    pub(super) fn train(&mut self, now: Millis, out: &mut Vec<Output>) {
        let in_time = now < self.round.commits_until(self.spec());
        let is_peer = self.round.peers.binary_search(&self.me).is_ok();
        let held = self.held.filter(|held| held.round == self.chain.last().round);
        if let Some(held) = held.filter(|_| is_peer && in_time && !self.round.asked_to_train) {
            self.round.asked_to_train = true;
            let last = self.chain.last();
            out.push(Output::Train {
                round: self.chain.round(),
                trained: last.trained,
                beacon: last.assignment,
                peers: self.round.peers.clone(),
                base: held.state,
            });
        }
        self.reveal(now, out);
    }

    /// Commits to what was trained.
    pub(super) fn trained(&mut self, round: u64, update: Hash, bytes: u64, now: Millis, out: &mut Vec<Output>) {
        let wanted = self.round.asked_to_train && self.round.own.is_none() && round == self.chain.round();
        let in_time = now < self.round.commits_until(self.spec());
        let held = self.held.filter(|held| held.round + 1 == round);
        let Some(held) = held.filter(|_| wanted && in_time && bytes > 0) else { return };
        let run = self.run();
        let commitment = commitment(run, round, self.me, update);
        let commit = Signed::sign(&self.key, Commit { run, round, commitment, base: held.state });
        self.round.own = Some((commit.clone(), update, bytes));
        self.round.add_commit(commit.clone(), false);
        out.push(Output::Persist(Stored::Trained { commit: commit.clone(), update, bytes }));
        out.push(Output::Broadcast(TrainMessage::Commit(commit)));
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
