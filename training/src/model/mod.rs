//! A trainable Llama: configuration, parameters and forward pass.

mod config;
mod kernels;
mod llama;

pub use config::LlamaConfig;
pub use kernels::{RotaryTable, Targets, attention_weights, cross_entropy, rms_norm, rotate, swiglu};
pub use llama::Llama;
