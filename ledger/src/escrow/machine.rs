//! What a party does: a pure machine. Given what it knows, what it hears and the height of the chain, it says what is to
//! be written down and what is to be done.
//!
//! [`Escrow::handle`] changes nothing. Its events are written down first, then its actions are carried out, in their
//! order. Actions follow from the state alone: after a crash, or when nothing was heard for a while, [`Input::Tick`] gives
//! all that is still to be done, and to do a thing twice does no harm.

use consortium_protocol::wire::escrow::{EscrowVerdict, check_verdict};
use consortium_protocol::{NodeId, Signed};

use super::event::Event;
use super::state::{Escrow, Role, State};
pub use super::turn::{Action, Input, Refused, Turn, Word};

/// Blocks before a deadline at which nothing is waited for any longer.
pub const GUARD: u32 = 18;
/// Blocks before a deadline at which no verdict is given any longer: a few more than [`GUARD`], so that what is earned
/// still comes to its payee, and heights that differ do no harm.
pub const JUDGE_GUARD: u32 = GUARD + 6;
/// Blocks by which a payment may come with less time than was agreed on: they may pass while it is on its way.
pub const SLACK: u32 = 6;
/// Blocks after its beginning during which a verdict is told again to who has not confirmed it.
pub const LAST_WORD: u32 = 1008;

impl Escrow {
    /// What follows from an input at a height of the chain.
    ///
    /// # Errors
    /// [`Refused`] when the input is not taken; then nothing follows.
    pub fn handle(&self, input: &Input, height: u32) -> Result<Turn, Refused> {
        let mut events = self.taken(input, height)?;
        let mut next = self.clone();
        events.iter().for_each(|event| next.apply(event));
        loop {
            let more = next.consequences(height);
            if more.is_empty() {
                break;
            }
            more.iter().for_each(|event| next.apply(event));
            events.extend(more);
        }
        let mut actions = next.wanted(height);
        // Said once even if nothing of it was locked; then nobody needs to hear it.
        if next.is_final() && events.contains(&Event::GivenUp) {
            actions.extend(next.withdrawal());
        }
        if let Input::Verdict { .. } = input
            && self.role != Role::Validator
            && next.has_heard()
        {
            actions.push(Action::Tell { to: self.terms.signer(), word: Word::Heard });
        }
        Ok(Turn { events, actions, next })
    }

    /// What is new in an input.
    fn taken(&self, input: &Input, height: u32) -> Result<Vec<Event>, Refused> {
        let state = |tranche: u8| self.tranches.get(usize::from(tranche)).map(|tranche| tranche.state);
        let once = |new: bool, event: Event| Ok(if new { vec![event] } else { Vec::new() });
        match input {
            Input::Tick => Ok(Vec::new()),
            Input::Invoice { tranche, invoice } => {
                let known = self.tranches.get(usize::from(*tranche)).is_none_or(|tranche| tranche.invoice.is_some());
                once(self.is_paid() && !known, Event::Invoiced { tranche: *tranche, invoice: invoice.clone() })
            }
            Input::Invoices { from, invoices } => self.take_invoices(*from, invoices),
            Input::Sent { tranche, deadline } => {
                let new = self.pays() && state(*tranche) == Some(State::Created);
                once(new, Event::Sent { tranche: *tranche, deadline: *deadline })
            }
            Input::Held { tranche, deadline } => {
                let new = self.is_paid() && state(*tranche) == Some(State::Created);
                once(
                    new,
                    match self.is_short(*deadline, height) {
                        true => Event::Cancelling { tranche: *tranche },
                        false => Event::Held { tranche: *tranche, deadline: *deadline },
                    },
                )
            }
            Input::Arrived { tranche } => {
                let new = state(*tranche).is_some_and(|state| state != State::Settled);
                once(new && (self.pays() || self.is_paid()), Event::Settled { tranche: *tranche })
            }
            Input::Failed { tranche } => self.take_failure(*tranche, height),
            Input::Gone { tranche } => {
                let new = self.is_paid() && state(*tranche) == Some(State::Cancelling);
                once(new, Event::Cancelled { tranche: *tranche })
            }
            Input::Over { tranche } => {
                let new = state(*tranche).is_some_and(|state| !state.is_final());
                once(self.is_paid() && new, Event::Expired { tranche: *tranche })
            }
            Input::Ready { from, deadline } => {
                self.check_payee(*from)?;
                let new = self.tranches.iter().all(|tranche| tranche.state == State::Created) && !self.given_up;
                // No more than was agreed on, whatever the payee says.
                let most = height.saturating_add(u32::from(self.terms.payload().delta));
                once(new, Event::Ready { deadline: *deadline.min(&most) })
            }
            Input::Verdict { verdict, sealed } => self.take_verdict(verdict, sealed, height),
            Input::Heard { from } => {
                let theirs = *from == self.terms.payload().payer || *from == self.terms.payload().payee;
                let mine = self.role == Role::Validator && theirs && self.verdict.is_some();
                once(mine && !self.heard.contains(from), Event::Heard { by: *from })
            }
            Input::GivenUp { from } => {
                let guard = if self.is_paid() { GUARD } else { JUDGE_GUARD };
                let waits = |deadline: u32| height.saturating_add(guard) < deadline;
                let held = |state| matches!(state, State::Held { deadline } if waits(deadline));
                let locked = self.states().all(|(_, state)| held(state));
                // The payee hears it from the payer. The validator of others' money believes the payee alone, who then
                // has sent back what came: on the payer's word it would refuse to judge what the payee still holds.
                let theirs = match (self.pays(), self.is_paid()) {
                    (true, _) => false,
                    (_, true) => *from == self.terms.payload().payer,
                    _ => *from == self.terms.payload().payee,
                };
                let new = !self.given_up && self.verdict.is_none() && !locked;
                if theirs { once(new, Event::GivenUp) } else { Err(Refused::NotTheirs) }
            }
            Input::Astray => once(self.pays() && !self.given_up && self.verdict.is_none(), Event::GivenUp),
        }
    }

    fn check_payee(&self, from: NodeId) -> Result<(), Refused> {
        let fits = self.role == Role::Validator && !self.is_bond() && from == self.terms.payload().payee;
        if fits { Ok(()) } else { Err(Refused::NotTheirs) }
    }

    fn take_invoices(&self, from: NodeId, invoices: &[String]) -> Result<Vec<Event>, Refused> {
        if !self.pays() || from != self.terms.payload().payee {
            return Err(Refused::NotTheirs);
        }
        if invoices.len() != self.tranches.len() {
            return Err(Refused::Count);
        }
        let new = (0..=u8::MAX).zip(&self.tranches).zip(invoices);
        let new = new.filter(|((_, tranche), _)| tranche.invoice.is_none());
        Ok(new.map(|((tranche, _), invoice)| Event::Invoiced { tranche, invoice: invoice.clone() }).collect())
    }

    fn take_failure(&self, tranche: u8, height: u32) -> Result<Vec<Event>, Refused> {
        let state = self.tranches.get(usize::from(tranche)).map(|tranche| tranche.state);
        Ok(match state {
            Some(State::Held { deadline }) if self.pays() && height >= deadline => vec![Event::Expired { tranche }],
            Some(State::Held { .. } | State::Created) if self.pays() => vec![Event::Cancelled { tranche }],
            _ => Vec::new(),
        })
    }

    fn take_verdict(
        &self,
        verdict: &Signed<EscrowVerdict>,
        sealed: &[(u8, [u8; 32])],
        height: u32,
    ) -> Result<Vec<Event>, Refused> {
        check_verdict(verdict, &self.terms)?;
        let mut events = Vec::new();
        match &self.verdict {
            Some(known) if known != verdict => return Err(Refused::SecondVerdict),
            Some(_) => {}
            None => {
                if self.role == Role::Validator {
                    self.can_judge(height)?;
                }
                events.push(Event::Judged(verdict.clone()));
            }
        }
        for (tranche, sealed) in sealed {
            let new = self.tranches.get(usize::from(*tranche)).is_some_and(|tranche| tranche.sealed.is_none());
            if new && self.is_paid() && verdict.payload().gives(usize::from(*tranche)) {
                events.push(Event::Unlocked { tranche: *tranche, sealed: *sealed });
            }
        }
        Ok(events)
    }

    /// Whether a verdict can still be given and carried out.
    fn can_judge(&self, height: u32) -> Result<(), Refused> {
        for tranche in &self.tranches {
            let State::Held { deadline } = tranche.state else { return Err(Refused::NotHeld) };
            let last = deadline.saturating_sub(JUDGE_GUARD + 1);
            if height > last {
                return Err(Refused::TooLate { last, height });
            }
        }
        Ok(())
    }

    /// What follows from the state and the height alone.
    fn consequences(&self, height: u32) -> Vec<Event> {
        let mut events = Vec::new();
        if self.pays() && !self.given_up && self.must_give_up(height) {
            events.push(Event::GivenUp);
        }
        for (tranche, state) in self.states() {
            events.extend(match (self.pays(), self.is_paid()) {
                (true, _) => (state == State::Created && self.given_up).then_some(Event::Cancelled { tranche }),
                (_, true) => self.payee_follows(tranche, state, height),
                _ => self.judge_follows(tranche, state, height),
            });
        }
        events
    }

    /// Whether the payer stops: a tranche failed before there was a verdict, or nothing came of it in time.
    fn must_give_up(&self, height: u32) -> bool {
        let failed = |state: State| matches!(state, State::Cancelled | State::Expired);
        let unsent = self.tranches.iter().any(|tranche| tranche.state == State::Created);
        let failed = self.verdict.is_none() && self.states().any(|(_, state)| failed(state));
        failed || (unsent && (self.is_over(height) || self.verdict.is_some()))
    }

    /// Whether nothing that is not locked by now will be.
    fn is_over(&self, height: u32) -> bool {
        height >= self.opened.saturating_add(u32::from(self.terms.payload().delta))
    }

    fn payee_follows(&self, tranche: u8, state: State, height: u32) -> Option<Event> {
        let unlocked = |tranche: u8| self.tranches.get(usize::from(tranche)).is_some_and(|t| t.sealed.is_some());
        let invoiced = |tranche: u8| self.tranches.get(usize::from(tranche)).is_some_and(|t| t.invoice.is_some());
        let stopped = self.verdict.is_some() || self.given_up;
        match state {
            State::Held { deadline } if self.gives(tranche) => {
                let can = self.role == Role::Validator || unlocked(tranche);
                (can && height < deadline).then_some(Event::Settling { tranche })
            }
            State::Held { deadline } if stopped || height.saturating_add(GUARD) >= deadline => {
                Some(Event::Cancelling { tranche })
            }
            State::Created if stopped || self.is_over(height) => match invoiced(tranche) {
                true => Some(Event::Cancelling { tranche }),
                false => Some(Event::Cancelled { tranche }),
            },
            _ => None,
        }
    }

    /// For the validator of others' money, who sees nothing of it: what it is told, and the height.
    fn judge_follows(&self, tranche: u8, state: State, height: u32) -> Option<Event> {
        let told = self.heard.contains(&self.terms.payload().payee);
        match state {
            State::Created if self.given_up || self.is_over(height) => Some(Event::Cancelled { tranche }),
            State::Held { .. } if self.gives(tranche) => Some(Event::Settling { tranche }),
            State::Held { .. } if self.verdict.is_some() => Some(Event::Cancelling { tranche }),
            State::Held { deadline } if height.saturating_add(JUDGE_GUARD) >= deadline => {
                Some(Event::Expired { tranche })
            }
            State::Settling { .. } if told => Some(Event::Settled { tranche }),
            State::Settling { deadline } if height >= deadline => Some(Event::Expired { tranche }),
            State::Cancelling if told || self.is_over(height) => Some(Event::Cancelled { tranche }),
            _ => None,
        }
    }

    /// What is to be done in this state.
    fn wanted(&self, height: u32) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.role == Role::Validator {
            self.validator_wants(height, &mut actions);
        }
        if self.pays() {
            self.payer_wants(&mut actions);
        }
        if self.is_paid() {
            self.payee_wants(&mut actions);
        }
        actions
    }

    fn validator_wants(&self, height: u32, actions: &mut Vec<Action>) {
        let about = self.terms.payload();
        let others = [about.payer, about.payee].into_iter().filter(|node| *node != self.terms.signer());
        let Some(verdict) = &self.verdict else {
            if self.states().any(|(_, state)| state == State::Created) {
                actions.extend(others.map(|to| Action::Tell { to, word: Word::Terms }));
            }
            return;
        };
        if height >= self.opened.saturating_add(LAST_WORD) {
            return;
        }
        for to in others.filter(|node| !self.heard.contains(node)) {
            let releases = to == about.payee && verdict.payload().earned > 0;
            actions.push(Action::Tell { to, word: if releases { Word::Release } else { Word::Verdict } });
        }
    }

    fn payer_wants(&self, actions: &mut Vec<Action>) {
        actions.extend(self.payable().map(|tranche| Action::Pay { tranche }));
        if self.given_up && !self.is_final() {
            actions.extend(self.withdrawal());
        }
    }

    /// Telling who believes it that the payer has given up: the payer tells the payee, and the payee the validator.
    fn withdrawal(&self) -> Option<Action> {
        let to = match (self.pays(), self.role) {
            (true, _) => self.terms.payload().payee,
            (_, Role::Worker) => self.terms.signer(),
            _ => return None,
        };
        Some(Action::Tell { to, word: Word::GivenUp })
    }

    fn payee_wants(&self, actions: &mut Vec<Action>) {
        for ((tranche, state), about) in self.states().zip(&self.tranches) {
            match state {
                State::Created if about.invoice.is_none() => actions.push(Action::MakeInvoice { tranche }),
                State::Settling { .. } => actions.push(Action::Settle { tranche }),
                State::Cancelling => actions.push(Action::Cancel { tranche }),
                _ => {}
            }
        }
        if self.given_up && !self.is_final() {
            actions.extend(self.withdrawal());
        }
        let invoiced = self.tranches.iter().all(|tranche| tranche.invoice.is_some());
        if invoiced && self.states().any(|(_, state)| state == State::Created) {
            actions.push(Action::Tell { to: self.terms.payload().payer, word: Word::Invoices });
        }
        let deadlines = self.states().map(|(_, state)| match state {
            State::Held { deadline } => Some(deadline),
            _ => None,
        });
        let first = deadlines.collect::<Option<Vec<_>>>().and_then(|deadlines| deadlines.into_iter().min());
        if let Some(deadline) = first
            && self.role == Role::Worker
            && self.verdict.is_none()
        {
            actions.push(Action::Tell { to: self.terms.signer(), word: Word::Held { deadline } });
        }
    }
}
