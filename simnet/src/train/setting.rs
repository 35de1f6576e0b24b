//! The run that is played.

use std::sync::Arc;

use anyhow::Result;
use consortium_node::training::collective::{Data, Examination, LocalRecipe, Task};
use consortium_node::training::optimizer::{AdamWSettings, Schedule};
use consortium_node::training::run::ModelSize;
use consortium_node::training::tokenizer::Tokenizer;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::Serialize;

/// Documents that the tokenizer is trained on.
const DOCUMENTS: u64 = 300;

/// What decides a run besides who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// Names first weights, beacons, and what characters draw.
    pub seed: u64,
    /// Rounds.
    pub rounds: u64,
    /// Local steps of a round.
    pub steps: u64,
    /// Rows of a local step.
    pub batch: usize,
    /// Peak of the rate of local steps.
    pub inner_rate: f64,
    /// What the rate of local steps falls to, as a part of its peak.
    pub final_part: f64,
    /// Whether peers train on while a round is exchanged and judged, from parameters that are a round older.
    pub overlap: bool,
    /// How updates are examined.
    #[serde(flatten)]
    pub examination: Examination,
}

impl Setting {
    /// Rounds as plans make them: 30 steps of 8 rows. An update is examined on three held-out batches of 4 rows, and on 8 rows
    /// of its own and 8 of nobody's, which is 5 % of its training. With fewer rows updates are noisier, and what they do is
    /// hard to tell on so few.
    #[must_use]
    pub fn new(seed: u64, rounds: u64) -> Self {
        let examination = Examination { held_out: 3, held_out_rows: 4, own: 2, own_rows: 4 };
        Self { seed, rounds, steps: 30, batch: 8, inner_rate: 4e-3, final_part: 0.1, overlap: false, examination }
    }

    /// The task of the run: the model `small`, two layers of width 64, on rows of 64 positions. A round of ten peers then
    /// takes a few seconds of processor time, and its matrices are whole blocks of 64 x 64.
    ///
    /// # Errors
    /// If a setting makes no sense.
    pub fn task(&self) -> Result<Arc<Task>> {
        let config = ModelSize::Small.config();
        let peak = self.inner_rate;
        let total = self.rounds * self.steps;
        let schedule =
            Schedule { peak, floor: peak * self.final_part, warmup: (total / 20).max(2 * self.steps), total };
        let recipe = LocalRecipe {
            data: Data::Stories { seed: 1, rows: 1 << 20 },
            length: 64,
            batch: self.batch,
            steps: self.steps,
            schedule,
            adam: AdamWSettings::default(),
            clip: 1.0,
            parts: 1,
        };
        let tokenizer = Tokenizer::train(1, DOCUMENTS, config.vocab_size)?;
        Ok(Arc::new(Task::new(config, recipe, tokenizer, None)?))
    }

    /// What is drawn in a round for a purpose: a beacon, as the nonces of validators would make it, or a seed.
    #[must_use]
    pub fn draw(&self, purpose: Purpose, round: u64) -> [u8; 32] {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(round * 4 + purpose as u64);
        rng.random()
    }
}

/// What is drawn in every round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Who trains on which rows.
    Assignment,
    /// The rows of the examination.
    Examination,
    /// In which order peers commit.
    Order,
    /// What characters draw.
    Characters,
}
