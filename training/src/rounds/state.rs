//! Going on from a record: parameters that follow it, entries that were missed, and what is owed.

use consortium_protocol::wire::train::{Entry, MAX_ACCOUNTS, MAX_VALIDATORS, StateHash, TrainMessage};
use consortium_protocol::{Hash, Millis, NodeId, Signed};

use super::collect::Round;
use super::people::is_fresh;
use super::{Held, Machine, Output, Stored};

impl Machine {
    /// Takes entries into the log, as far as each is the next; tells whether any was.
    pub(super) fn append(
        &mut self,
        entries: impl IntoIterator<Item = Entry>,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> bool {
        let (mut taken, mut owed) = (Vec::new(), Vec::new());
        for entry in entries {
            let base_before = self.chain.last().base;
            if self.chain.append(entry.clone()).is_err() {
                break;
            }
            self.base_before = base_before;
            for (peer, units) in &entry.record.payouts {
                if let Some(amount) = self.spec().pay.unit.checked_mul(u64::from(*units)) {
                    owed.push(Output::Owe { peer: *peer, round: entry.record.round, amount, units: *units });
                }
            }
            taken.push(entry);
        }
        if taken.is_empty() {
            return false;
        }
        out.push(Output::Persist(Stored::Entries(taken)));
        out.extend(owed);
        if self.chain.last().ended {
            out.push(Output::Ended);
        }
        let next = self.chain.round();
        self.newcomers.go_on(next);
        self.candidates.retain(|_, c| is_fresh(c.payload().round, next) || c.payload().round > next);
        self.round = Round::new(&self.chain, now);
        self.catch_up_with_early(out);
        for commit in std::mem::take(&mut self.next_commits).into_values() {
            self.take_commit(commit, now, out);
        }
        self.agreement = None;
        self.resent = None;
        if !self.chain.last().ended {
            self.open_agreement(None);
        }
        true
    }

    /// Entries arrived: asked for, or told. Some may be here.
    pub(super) fn take_entries(
        &mut self,
        from: NodeId,
        first: Entry,
        next: Vec<Entry>,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let (round, wanted) = (first.record.round, self.chain.round());
        let mut entries = std::iter::once(first).chain(next).skip_while(|entry| entry.record.round < wanted).peekable();
        let mut any = false;
        // What follows from the parameters at hand is begun with before the next record says what they should be by then.
        while let Some(entry) = entries.next_if(|entry| self.can_apply(entry)) {
            any |= self.append([entry], now, out);
            self.reconcile(now, out);
        }
        any |= self.append(entries, now, out);
        if any {
            // There may be more where it came from.
            self.asked = None;
            let ahead = self.states.values().any(|state| state.round > self.chain.last().round);
            if ahead {
                self.ask(from, now, out);
            }
        } else if round > wanted {
            self.ask(from, now, out);
        }
    }

    /// Whether a record is about the parameters that this node holds, and nothing else is being made of these.
    fn can_apply(&self, entry: &Entry) -> bool {
        let is_before = |held: &Held| (held.round + 1, held.state) == (entry.record.round, entry.record.base);
        self.applying.is_none() && self.held.as_ref().is_some_and(is_before)
    }

    fn ask(&mut self, whom: NodeId, now: Millis, out: &mut Vec<Output>) {
        if self.asked.is_none_or(|at| now.since(at) >= self.resend) {
            self.asked = Some(now);
            let message = TrainMessage::Ask { run: self.run(), round: self.chain.round() };
            out.push(Output::Send { to: whom, message });
        }
    }

    pub(super) fn answer(&self, to: NodeId, round: u64, out: &mut Vec<Output>) {
        let last = self.chain.last().round;
        match self.chain.entry().filter(|_| round == last) {
            Some(entry) => {
                let message = TrainMessage::Entries(Box::new(entry.clone()), Vec::new());
                out.push(Output::Send { to, message });
            }
            None if (1..last).contains(&round) => out.push(Output::SendEntries { to, round }),
            None => {}
        }
    }

    /// Takes note of what someone holds, and of records that this node has missed.
    pub(super) fn take_state(&mut self, from: NodeId, state: &Signed<StateHash>, now: Millis, out: &mut Vec<Output>) {
        let said = *state.payload();
        if said.round > self.chain.last().round {
            self.ask(from, now, out);
        }
        let known = self.states.get(&state.signer());
        let counts = self.chain.last().validator(state.signer()).is_some();
        let room = known.is_some() || counts || self.states.len() < MAX_ACCOUNTS;
        if room && known.is_none_or(|known| known.round <= said.round) {
            self.states.insert(state.signer(), said);
        }
        while self.states.len() > MAX_ACCOUNTS + MAX_VALIDATORS {
            let last = self.chain.last();
            let Some(other) = self.states.keys().find(|id| last.validator(**id).is_none()).copied() else { return };
            self.states.remove(&other);
        }
    }

    /// Parameters are here.
    pub(super) fn applied(&mut self, held: Held, now: Millis, out: &mut Vec<Output>) {
        if self.applying.is_none_or(|(round, state)| round != held.round || state.is_some_and(|s| s != held.state)) {
            return;
        }
        self.applying = None;
        self.held = Some(held);
        self.reconcile(now, out);
        self.say_state(out);
    }

    /// Tells which parameters this node holds, if they are those after the last record.
    pub(super) fn say_state(&self, out: &mut Vec<Output>) {
        if let Some(held) = self.held.filter(|held| held.round == self.chain.last().round) {
            let said = StateHash { run: self.run(), round: held.round, state: held.state };
            out.push(Output::Broadcast(TrainMessage::State(Signed::sign(&self.key, said))));
        }
    }

    /// Brings the parameters to where the log is: by applying the last record, or by fetching them. It is the hash that
    /// tells which parameters a node has; a round may change nothing about them.
    pub(super) fn reconcile(&mut self, now: Millis, out: &mut Vec<Output>) {
        if self.applying.is_some_and(|(_, resync)| resync.is_none()) {
            return;
        }
        let record = self.chain.last();
        match self.held {
            Some(held) if held.round < record.round && held.state == record.base => {
                self.apply(held, out);
            }
            Some(held) if held.round == record.round => {
                if self.agreed_state(None).is_some_and(|agreed| agreed != held.state) {
                    self.held = None;
                    self.resync(now, out);
                }
            }
            _ => self.resync(now, out),
        }
    }

    fn apply(&mut self, held: Held, out: &mut Vec<Output>) {
        let record = self.chain.last();
        let round = record.round;
        let updates: Vec<_> = record.accepted().collect();
        if record.reverts {
            out.push(Output::Revert { round, to: self.base_before });
        } else if updates.is_empty() {
            self.held = Some(Held { round, ..held });
            self.say_state(out);
            return;
        } else {
            out.push(Output::Aggregate { round, base: held.state, updates });
        }
        self.applying = Some((round, None));
    }

    /// The parameters after the last record, as most validators say; the initial ones need no saying. If `waited` for long
    /// enough, as most of those say that say anything: the others may be gone, and who is misled by that is refused for
    /// its state, and hears the truth with the next record.
    fn agreed_state(&self, waited: Option<Millis>) -> Option<Hash> {
        let record = self.chain.last();
        if record.round == 0 {
            return Some(record.base);
        }
        let said = record.validators.iter().filter_map(|v| self.states.get(&v.id)).filter(|s| s.round == record.round);
        let (state, count) = super::evidence::most_frequent(said.map(|state| state.state))?;
        let long = waited.is_some_and(|now| now >= self.round.cards_until(self.spec()));
        (long || 2 * count > record.validators.len()).then_some(state)
    }

    fn resync(&mut self, now: Millis, out: &mut Vec<Output>) {
        let (round, base) = (self.chain.last().round, self.chain.last().base);
        // What is on its way is what the last record began from, and goes on from there. Otherwise who fetches for longer than
        // a round takes would never have what it fetches.
        if self.applying.is_some_and(|(fetching, state)| fetching + 1 == round && state == Some(base)) {
            return;
        }
        let Some(state) = self.agreed_state(Some(now)) else { return };
        if self.applying == Some((round, Some(state))) {
            return;
        }
        self.applying = Some((round, Some(state)));
        let has = |(_, said): &(&NodeId, &StateHash)| said.round == round && said.state == state;
        let donors = self.states.iter().filter(has).map(|(id, _)| *id).collect();
        out.push(Output::Resync { round, state, donors });
    }
}
