//! A peer that trains on terms: weighs every round, and tells the machine when it pauses or comes back.

use std::sync::PoisonError;
use std::time::Duration;

use consortium_protocol::wire::train::RunSpec;
use consortium_training::rounds::Input;
use tracing::{info, warn};

use super::driver::{Driver, Event};
use super::pause::{Balance, Rounds, Standing, Turn};
use super::store::Store;
use super::trainings::aside;
use super::wire::Wire;
use crate::power;

/// Views in which a record may come about, for the time that a round takes at most.
const VIEWS: u64 = 4;

/// As long as a round may take by its deadlines.
fn longest(spec: &RunSpec) -> Duration {
    let p = &spec.phases;
    let before = [p.train_ms, p.commit_ms, p.reveal_ms, p.score_ms].into_iter().fold(0, u64::saturating_add);
    Duration::from_millis(before.saturating_add(p.settle_ms.saturating_mul(VIEWS)))
}

impl<W: Wire> Driver<W> {
    /// A peer that paused before a restart goes on pausing.
    pub(super) async fn take_up_pause(&mut self) {
        if self.standing.is_some_and(|standing| standing.paused) {
            self.input(Input::Leave).await;
        }
    }

    /// Weighs pay and cost, once for every round that is certain.
    pub(super) async fn weigh(&mut self) {
        let round = self.machine.chain().last().round;
        let Some(mut standing) = self.standing.filter(|_| self.weighed < round && !self.leaves()) else { return };
        self.weighed = round;
        let lines = self.history.lock().unwrap_or_else(PoisonError::into_inner).lines();
        let said = self.spec.payload();
        let rounds = Rounds { lines: &lines, me: self.me, budget: said.pay.budget, longest: longest(said) };
        let turn = standing.weigh(&rounds);
        self.standing = Some(standing);
        self.keep_standing(standing).await;
        let Some(turn) = turn else { return };
        self.tell(turn, standing.reason.unwrap_or_default());
        self.input(if turn == Turn::Pause { Input::Leave } else { Input::Return }).await;
        // The word is said with the next tick.
        self.input(Input::Tick).await;
    }

    fn tell(&self, turn: Turn, by: Balance) {
        let (run, rounds, (pay, cost)) = (self.run, by.rounds, by.per_hour());
        match turn {
            Turn::Pause => warn!(
                %run, rounds, pay_msat_per_hour = pay, power_msat_per_hour = cost,
                "pauses in a training run: its last rounds paid less than their power cost"
            ),
            Turn::Return if rounds == 0 => {
                info!(%run, "trains again in a run: nobody else does, so it tries what that pays");
            }
            Turn::Return => info!(
                %run, rounds, pay_msat_per_hour = pay, power_msat_per_hour = cost,
                "trains again in a run: what others are paid would cover the cost of its power"
            ),
        }
    }

    async fn keep_standing(&mut self, standing: Standing) {
        let directory = self.directory.clone();
        let kept = aside(move || Ok(Store::set_standing(&directory, Some(&standing))?)).await;
        if let Err(error) = kept {
            self.trouble(&error);
        }
    }

    /// Measures what the machine takes while it trains, if that was not given.
    pub(super) fn measure_power(&mut self) {
        if self.standing.is_some_and(|standing| standing.terms.milliwatts.is_none()) {
            self.under_way.spawn(async { Event::Power(power::measured().await) });
        }
    }

    pub(super) fn measured(&mut self, milliwatts: u64) {
        // What was measured after the local steps is not what they take.
        if let Some(standing) = self.standing.as_mut().filter(|_| self.works.trains()) {
            standing.measure(milliwatts);
        }
    }
}
