//! What a run's specification means: from signed words to something that can be computed, and its files on disk.
//!
//! ```text
//! RunPlan ── prepare ──> RunSpec + initial Parameters + tokenizer.json (+ rows)   what an author announces
//! RunSpec + tokenizer.json (+ rows) ── task_of ──> Task                    what peers and validators compute with
//!                          └─ examination_of ──> Examination
//! Task, Peer ── train ──> Submission ── measure ──> findings of a card ── step ──> next Parameters
//! Archive                                                                  a run as files, from which it can be replayed
//! ```
//! Whoever takes part in a run and whoever replays it later call the very same functions, so that a replay cannot differ in
//! what it asks.
//!
//! # What a specification must be
//! A node takes part only in what it fully understands; everything else is refused in words ([`task_of`]):
//! - `config.json` is a Llama as [`crate::model`] computes it, with no field besides, and of bounded size;
//! - the tokenizer is the file whose hash is signed;
//! - the data are the stories that this program generates, with the digest that its generator gives, or a file of rows with the
//!   hash that is signed ([`data`]);
//! - outer learning rate and error feedback are those of [`crate::sparseloco`];
//! - assigned and unassigned batches are as many, and there are rows enough for all.
//!
//! # Rows of a batch
//! The specification says how many batches a validator measures, not how large they are. [`examination_of`] makes them as
//! large as they can be for the examination of an update to cost at most 5 % of the training that it came from, but no larger
//! than 64 rows, and no smaller than 4 rows or 256 positions: of too little training (K x batch rows: 240 short ones are enough)
//! it costs more, for a smaller batch would only measure noise.
//!
//! # A plan
//! [`RunPlan`] has a default for everything, by the size of the model. What is computed rather than chosen: the lengths of the
//! phases, from how fast a local step is on this machine (or said to be), with room for peers three times slower; the quorum
//! ([`quorum_of`]), which is the least that bears a liar among four validators and two among seven; the longest update.
//! Phases are deadlines: a round is over as soon as all have done their part.

pub mod archive;
mod config;
pub mod data;
mod measure;
mod model;
mod plan;
pub mod replay;
mod size;
mod submission;
mod task;
mod wishes;

pub use config::{MAX_PARAMETERS, config_of};
pub use measure::{Answer, Question, Submitted, measure};
pub use model::{Written, held_out_loss, loss_svg, write_model};
pub use plan::{Expected, PayPlan, Prepared, RunPlan, quorum_of};
pub use size::ModelSize;
pub use submission::Submission;
pub use task::{MAX_TOKENIZER, assignment_of, check_run, examination_of, state_of, step, task_of, train};
pub use wishes::Wishes;
