//! Where in a round a node is, for those who watch it.

use consortium_protocol::wire::train::{Record, RunSpec, TrainMessage};
use consortium_training::rounds::Held;

use super::view::Phase;

/// What happened in the round, and what went wrong.
#[derive(Debug, Default)]
pub(super) struct Progress {
    phase: Phase,
    tokens_per_second: f64,
    trouble: Option<String>,
}

impl Progress {
    pub(super) fn next_round(&mut self) {
        self.phase = Phase::Training;
    }

    /// This node says something.
    pub(super) fn say(&mut self, message: &TrainMessage) {
        let phase = match message {
            TrainMessage::Commit(_) => Phase::Committed,
            other => phase_of(other),
        };
        self.phase = self.phase.max(phase);
    }

    /// Another node says something.
    pub(super) fn hear(&mut self, message: &TrainMessage) {
        self.phase = self.phase.max(phase_of(message));
    }

    /// This node took its local steps.
    pub(super) fn trained(&mut self, spec: &RunSpec, seconds: f64) {
        let t = &spec.training;
        let tokens = f64::from(t.local_steps) * f64::from(t.batch) * f64::from(t.sequence);
        if seconds > 0.0 {
            self.tokens_per_second = tokens / seconds;
        }
    }

    pub(super) fn tokens_per_second(&self) -> f64 {
        self.tokens_per_second
    }

    pub(super) fn trouble(&mut self, what: String) {
        self.trouble = Some(what);
    }

    /// Parameters are where they should be.
    pub(super) fn well(&mut self) {
        self.trouble = None;
    }

    pub(super) fn last_trouble(&self) -> Option<String> {
        self.trouble.clone()
    }

    pub(super) fn phase(&self, last: &Record, held: Option<Held>, early: bool) -> Phase {
        match held {
            _ if early => Phase::Waiting,
            _ if last.ended => Phase::Ended,
            // One behind is on its way.
            Some(held) if held.round + 1 >= last.round => self.phase.max(Phase::Training),
            _ => Phase::CatchingUp,
        }
    }
}

fn phase_of(message: &TrainMessage) -> Phase {
    match message {
        TrainMessage::Reveal(_) | TrainMessage::EvalNonce(_) => Phase::Scoring,
        TrainMessage::Proposal(_) | TrainMessage::Vote(_) | TrainMessage::Seal(_) => Phase::Settling,
        _ => Phase::Waiting,
    }
}
