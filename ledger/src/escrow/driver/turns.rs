//! Turns: what happened is written down, what follows is done, and what comes of that is heard.

use std::collections::BTreeSet;

use consortium_protocol::wire::escrow::EscrowId;
use tracing::warn;

use super::{EscrowError, Inner, Open, Step, now_ms};
use crate::escrow::event::Event;
use crate::escrow::machine::{Action, Input, Word};
use crate::escrow::state::{Escrow, State};

impl Inner {
    pub(super) async fn persist(&self, id: EscrowId, events: Vec<Event>) -> Result<(), EscrowError> {
        let names: Vec<String> = events.iter().map(|event| event.name().to_string()).collect();
        self.observe(id, &Step::Persist(names.clone()));
        self.on_log(move |log| log.append(id, &events, now_ms())).await?;
        self.observe(id, &Step::Persisted(names));
        Ok(())
    }

    /// Has an escrow hear something, and writes down what happened; gives what is to be done.
    pub(super) async fn hear(&self, open: &mut Open, id: EscrowId, input: &Input) -> Result<Vec<Action>, EscrowError> {
        let turn = self.escrow(open, id).await?.handle(input, self.wallet.height())?;
        if !turn.events.is_empty() {
            self.persist(id, turn.events).await?;
            open.escrows.insert(id, turn.next);
        }
        Ok(turn.actions)
    }

    /// Has an escrow hear something and does what follows, until nothing does. What is said is said only if `tells`.
    pub(super) async fn turn(
        &self,
        open: &mut Open,
        id: EscrowId,
        input: Input,
        tells: bool,
    ) -> Result<(), EscrowError> {
        let mut actions = self.hear(open, id, &input).await?;
        loop {
            if actions.is_empty() && self.escrow(open, id).await?.is_final() {
                self.on_log(move |log| log.finish(id)).await?;
                open.escrows.remove(&id);
                open.sent.retain(|(escrow, _), _| *escrow != id);
                return Ok(());
            }
            match self.perform_all(open, id, actions, tells).await? {
                Some(more) => actions = more,
                None => return Ok(()),
            }
        }
    }

    /// Does what is to be done. What comes of each is heard before the next is done: once a tranche failed, the others are
    /// not paid. Gives what is then to be done; none if nothing was heard.
    async fn perform_all(
        &self,
        open: &mut Open,
        id: EscrowId,
        actions: Vec<Action>,
        tells: bool,
    ) -> Result<Option<Vec<Action>>, EscrowError> {
        let mut more = None;
        for action in actions {
            let escrow = self.escrow(open, id).await?;
            let wanted = match &action {
                // When it is over this is said once, and never again.
                Action::Tell { word: Word::GivenUp, .. } => tells || escrow.is_final(),
                Action::Tell { .. } => tells,
                Action::Pay { tranche } => escrow.payable().any(|payable| payable == *tranche),
                _ => true,
            };
            if !wanted {
                continue;
            }
            self.observe(id, &Step::Do(action.clone()));
            let heard = self.perform(open, &escrow, &action).await;
            self.observe(id, &Step::Done(action));
            if let Some(input) = heard {
                more = Some(self.hear(open, id, &input).await?);
            }
        }
        Ok(more)
    }

    /// Looks at all that is open.
    pub(super) async fn look(&self, all: bool, tells: bool) {
        let mut open = self.open.lock().await;
        let under_way = |escrow: &Escrow| {
            escrow.states().any(|(_, state)| matches!(state, State::Settling { .. } | State::Cancelling))
        };
        let ids: BTreeSet<EscrowId> =
            open.escrows.iter().filter(|(_, escrow)| all || under_way(escrow)).map(|(id, _)| *id).collect();
        for id in ids {
            self.send_lost(&mut open, id, tells).await;
            if let Err(error) = self.go_on(&mut open, id, tells).await {
                warn!(escrow = %id, %error, "an escrow could not go on");
            }
        }
    }

    async fn go_on(&self, open: &mut Open, id: EscrowId, tells: bool) -> Result<(), EscrowError> {
        let escrow = self.escrow(open, id).await?;
        for over in self.over_unheard(&escrow).await? {
            self.turn(open, id, over, tells).await?;
        }
        let looks = tells && escrow.pays() && !escrow.given_up && escrow.verdict().is_none();
        if looks && !self.is_direct(&escrow).await? {
            self.turn(open, id, Input::Astray, tells).await?;
        }
        self.turn(open, id, Input::Tick, tells).await
    }
}
