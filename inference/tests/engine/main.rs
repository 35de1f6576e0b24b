//! The crate from outside, in one binary so that it is linked once.
#![allow(clippy::unwrap_used, clippy::panic)]

mod chat_template;
mod committed_model;
mod llama;
mod model_dir;
mod placement;
mod session;
mod stage;
mod stops;
mod support;
mod tokenizer;
