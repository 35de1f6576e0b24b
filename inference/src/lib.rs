//! Models, shards, sampling, and the pure machines that place and drive a pipeline.
//!
//! # Architecture
//!
//! Four layers, each of which knows only those above it in this list:
//!
//! - **The model.** [`config`] and [`model_dir`] read a directory in the layout of the Hugging Face hub and refuse, by file
//!   and tensor, what cannot be served; `weights` finds and reads single tensors. [`llama`] is the decoder, cut into
//!   [`llama::Shard`]s of contiguous layers with their own [`kv_cache`]; its arithmetic is in `kernels`, whose results do
//!   not depend on the number of rows, threads or the width of vectors, so that any cut into stages and any batching of
//!   a prefill gives the same bits. [`sampling`] draws tokens without state. [`tokenizer`], [`chat_template`] and
//!   [`stops`] are the way from text to tokens and back. [`measure`] says how fast a shard is.
//! - **A model in one process.** [`local`] runs stages behind each other; [`generate`] and [`logits`] are the references
//!   that every pipeline must agree with. [`stage`] puts a shard on a thread of its own and serves sessions over a
//!   bounded queue: what a worker runs.
//! - **Checking others.** [`audit`] hashes what a stage took and gave, recomputes a stage of another from its inputs, and
//!   tells honest rounding from dishonest work.
//! - **A pipeline over many.** [`placement`] is a pure function from what nodes offer to who holds what. [`session`] is the pure
//!   machine that drives one job over a pipeline and takes it to another when a stage fails. Neither has a clock, a
//!   socket or a model: the node drives them, and tests drive them through thousands of faults.
//!
//! No tensor is sent from here, and nothing here knows libp2p: the node moves [`stage::HiddenStates`] between stages.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod audit;
pub mod chat_template;
pub mod config;
mod error;
pub mod generate;
mod kernels;
pub mod kv_cache;
pub mod llama;
pub mod local;
pub mod logits;
pub mod measure;
pub mod model_dir;
pub mod placement;
mod placement_order;
mod placement_program;
pub mod sampling;
pub mod session;
pub mod stage;
pub mod stops;
pub mod tokenizer;
mod weights;

pub use error::ModelError;

/// Rows of a prompt that go through a pipeline at once. With the kernels of this crate it makes no difference to the
/// result; with candle's (see the features `accelerate`, `cuda`, `metal`, `mkl`) it is part of what makes two runs bit-equal.
pub const PREFILL_CHUNK: usize = 256;
