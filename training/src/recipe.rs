//! The settings that decide a run, and the record it leaves.

use serde::{Deserialize, Serialize};

use crate::optimizer::{AdamWSettings, Schedule};

/// Losses over a run: pairs of steps taken and nats per token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Loss of every step's batch.
    pub train: Vec<(u64, f32)>,
    /// Loss on held-out documents, now and then.
    pub held_out: Vec<(u64, f32)>,
}

/// How a model is trained. Every setting decides the result, `threads` by rounding alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Names corpus and initial weights.
    pub seed: u64,
    /// Rows per step.
    pub batch: usize,
    /// Positions per row.
    pub length: usize,
    /// Every so many steps the rows are twice as long, half as many, and hold long chats; 0 for never.
    pub long_every: u64,
    /// Learning rate and number of steps.
    pub schedule: Schedule,
    /// The optimiser's constants.
    pub adam: AdamWSettings,
    /// Largest norm of a gradient.
    pub clip: f64,
    /// Rows of held-out documents.
    pub held_out_rows: usize,
    /// Steps between measurements of the held-out loss.
    pub held_out_every: u64,
    /// Rows are shared between so many threads; gradients are added in a fixed order.
    pub threads: usize,
}
