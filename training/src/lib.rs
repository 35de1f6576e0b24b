//! Training: a small Llama from nothing, on the CPU.
//!
//! # Architecture
//! ```text
//! corpus ──> tokenizer ──> packing ──┐
//!                                    ├─> trainer ──> checkpoint
//! model (kernels, llama) ─ optimizer ┘      │
//!                                           └─> tiny ──> export, curve, card
//! ```
//! [`corpus`] is a seeded grammar; row `n` of the data is a pure function of seed and `n`, so the position of a run in its
//! data is one number. [`dataset`] is what people bring in its place: their text, as a file of rows. [`model`] computes on
//! candle tensors with its own differentiable kernels. [`trainer`] shares the rows of a step between threads, adds their
//! gradients in a fixed order, and saves checkpoints from which a run goes on with the very same losses. [`sparseloco`] turns
//! what many peers have learnt apart into small messages, and these into
//! the next common parameters; [`gauntlet`] judges what each is worth, [`collective`] is what a node of such a run computes,
//! and [`rounds`] is how peers and validators that do not trust each other agree on all that, round by round, in a log that
//! anyone can replay. [`run`] says what a run's signed specification means in terms of these. Whoever watches implements [`observer::Observer`]; [`progress`] is the one for terminals.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod card;
pub mod checkpoint;
pub mod collective;
pub mod corpus;
pub mod curve;
pub mod dataset;
pub mod error;
pub mod export;
pub mod gauntlet;
pub mod generate;
pub mod model;
pub mod observer;
pub mod optimizer;
pub mod packing;
pub mod progress;
pub mod recipe;
pub mod rounds;
pub mod run;
pub mod sparseloco;
mod tensor_file;
pub mod tiny;
pub mod tokenizer;
pub mod trainer;

pub use error::TrainError;
pub use tiny::{TinyOptions, TinyReport, train_tiny};
