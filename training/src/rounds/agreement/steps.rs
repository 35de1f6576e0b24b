//! From a proposal to a certain record: vote, lock, seal, certify.

use consortium_protocol::wire::train::{Certified, Entry, Locked, Proposal, Seal, TrainMessage};
use consortium_protocol::{Millis, Signed};

use super::{Act, Agreement};

impl Agreement {
    /// Votes, locks, seals and certifies as far as that goes; `follows` tells whether a proposal follows from its body.
    pub(in crate::rounds) fn advance(&mut self, follows: impl Fn(&Proposal) -> bool, now: Millis, out: &mut Vec<Act>) {
        self.try_vote(follows, now, out);
        self.try_lock();
        self.try_seal(now, out);
        self.try_certify(out);
    }

    fn try_vote(&mut self, follows: impl Fn(&Proposal) -> bool, now: Millis, out: &mut Vec<Act>) {
        let view = self.view;
        let early = view > 0 && now.since(self.entered).0 < 2 * self.times.delta.0;
        let voted = self.voted.is_some_and(|(voted, _)| voted >= view);
        let done = voted || self.has_given_up(view) || self.refused == Some(view);
        let Some(proposal) = self.proposals.get(&view).filter(|_| !early && !done && !self.is_split(view)) else {
            return;
        };
        let said = proposal.payload();
        let id = said.record.id();
        let free = match &self.lock {
            None => true,
            Some((own, lock)) => *own == id || said.locked.as_ref().is_some_and(|locked| locked.view >= lock.view),
        };
        if !free {
            return;
        }
        if !follows(said) {
            self.refused = Some(view);
            return;
        }
        let (proposal, lead_vote) = (proposal.clone(), said.vote.clone());
        self.voted = Some((view, Some(now)));
        let vote = self.vote_for(view, id);
        self.take_vote(vote.clone());
        out.push(Act::Persist(self.ballot()));
        if proposal.signer() == self.me {
            self.say("proposal", TrainMessage::Proposal(proposal), out);
        } else {
            self.say("lead", TrainMessage::Vote(lead_vote), out);
            out.push(Act::Tell(TrainMessage::Proposal(proposal)));
        }
        self.say("vote", TrainMessage::Vote(vote), out);
    }

    fn try_lock(&mut self) {
        let quorums = self.votes.iter().filter(|(_, by)| by.len() >= self.quorum);
        let Some(((view, record), by)) = quorums.max_by_key(|((view, _), _)| *view) else { return };
        let locked = Locked { view: *view, votes: by.values().cloned().collect() };
        self.learn_lock(*record, &locked);
    }

    fn try_seal(&mut self, now: Millis, out: &mut Vec<Act>) {
        let Some((record, locked)) = self.lock.clone() else { return };
        let view = self.view;
        let ripe = self
            .voted
            .is_some_and(|(voted, at)| voted == view && at.is_some_and(|at| now.since(at).0 >= 2 * self.times.delta.0));
        let voted_so = self.votes.get(&(view, record)).is_some_and(|by| by.contains_key(&self.me));
        let stays = !self.is_split(view) && !self.has_given_up(view) && self.sealed != Some(view);
        if !(locked.view == view && ripe && voted_so && stays) {
            return;
        }
        self.sealed = Some(view);
        out.push(Act::Persist(self.ballot()));
        out.extend(locked.votes.into_iter().map(|vote| Act::Tell(TrainMessage::Vote(vote))));
        let seal = Signed::sign(&self.key, Seal { run: self.run(), round: self.round(), view, record });
        self.take_seal(seal.clone());
        self.say("seal", TrainMessage::Seal(seal), out);
    }

    fn try_certify(&self, out: &mut Vec<Act>) {
        for ((view, record), by) in self.seals.iter().filter(|(_, by)| by.len() >= self.quorum) {
            let Some(proposal) = self.known.get(record) else { continue };
            let said = proposal.payload();
            let seals = Certified {
                run: self.run(),
                round: self.round(),
                view: *view,
                record: *record,
                seals: by.values().cloned().collect(),
            };
            let entry = Entry { record: said.record.clone(), body: said.body.clone(), seals };
            out.push(Act::Certain(Box::new(entry)));
            return;
        }
    }
}
