//! How the peers of a run train between two rounds.

use consortium_protocol::Hash;
use serde::{Deserialize, Serialize};

use crate::corpus::Split;
use crate::error::TrainError;
use crate::optimizer::{AdamWSettings, Schedule};

/// What is trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Data {
    /// Stories that every node generates.
    Stories {
        /// Names the corpus.
        #[serde(rename = "corpus")]
        seed: u64,
        /// Rows of the training split, and of the held-out one.
        rows: u64,
    },
    /// A file of rows.
    Rows {
        /// Its BLAKE3.
        digest: Hash,
        /// Rows of the training split.
        training: u64,
        /// Rows of the held-out one, which follow.
        held_out: u64,
    },
}

impl Data {
    /// Rows of a split.
    #[must_use]
    pub fn rows(&self, split: Split) -> u64 {
        match (*self, split) {
            (Self::Stories { rows, .. }, _) => rows,
            (Self::Rows { training, .. }, Split::Train) => training,
            (Self::Rows { held_out, .. }, Split::HeldOut) => held_out,
        }
    }
}

/// The local steps of a run; part of its specification. Every setting decides the result, `parts` by rounding alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LocalRecipe {
    /// What is trained on.
    #[serde(flatten)]
    pub data: Data,
    /// Positions in a row.
    pub length: usize,
    /// Rows of a local step.
    pub batch: usize,
    /// Local steps in a round.
    pub steps: u64,
    /// Inner learning rate over the local steps of all rounds.
    pub schedule: Schedule,
    /// The inner optimiser's constants.
    pub adam: AdamWSettings,
    /// Largest norm of a gradient.
    pub clip: f64,
    /// The rows of a step are shared between so many threads; gradients are added in a fixed order.
    pub parts: usize,
}

impl LocalRecipe {
    /// Refuses settings that make no sense.
    ///
    /// # Errors
    /// [`TrainError::Setting`].
    pub fn check(&self) -> Result<(), TrainError> {
        let rows = self.data.rows(Split::Train).min(self.data.rows(Split::HeldOut));
        if rows == 0 || self.length == 0 || self.batch == 0 || self.steps == 0 || self.parts == 0 {
            let reason = "rows, length, batch, steps and parts must not be zero".into();
            return Err(TrainError::Setting { name: "recipe", reason });
        }
        Ok(())
    }

    /// Rows that a peer trains on in a round.
    #[must_use]
    pub fn rows_each(&self) -> usize {
        usize::try_from(self.steps).unwrap_or(usize::MAX).saturating_mul(self.batch)
    }

    /// The inner learning rate of a local step of a round, for a peer that has taken `taken` steps before. It follows the
    /// run's schedule, but a peer whose optimiser is new warms up, whenever it joins: the first steps of fresh moments have
    /// the full size in every direction.
    #[must_use]
    pub fn rate(&self, round: u64, step: u64, taken: u64) -> f64 {
        let scheduled = self.schedule.rate(round.saturating_mul(self.steps).saturating_add(step));
        let warming = self.schedule.peak * taken.saturating_add(1) as f64 / self.schedule.warmup.max(1) as f64;
        scheduled.min(warming)
    }
}
