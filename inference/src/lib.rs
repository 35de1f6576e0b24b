//! Models, shards, sampling, and the pure machines that place and drive a pipeline.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod chat_template;
pub mod config;
mod error;
pub mod generate;
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

/// Rows of a prompt that go through a pipeline at once. Part of what makes two runs bit-equal: kernels may round
/// differently for another number of rows.
pub const PREFILL_CHUNK: usize = 256;
