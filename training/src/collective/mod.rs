//! Training together: what each node of a run computes in a round.
//!
//! ```text
//! beacon ── Assignment ──> rows ── Peer::train ──> message ── Update::read ──┬─> Examiner::examine ──> losses
//! common Parameters ─────────────────┘                                       └─> Parameters::step ──> state hash
//! ```
//! - [`Task`] is what all of a run share: model shape, recipe, tokenizer, layout of updates.
//! - [`Assignment`] says who trains on which rows: a pure function of beacon, round and the number of peers.
//! - [`Peer`] takes its local steps and compresses what they changed. Its AdamW moments and error feedback are its own,
//!   are kept over rounds, and survive a crash: a round taken up again gives the very same message.
//! - [`Parameters`] are the common ones, with their state hash. [`Parameters::step`] is the one way from a round's updates
//!   to the next parameters, for peers and validators alike.
//! - [`Examiner`] measures what each update does to losses. It patches the one model that it holds and takes the patch back
//!   to the bit; an update touches one element of 64, and nothing is copied for each peer.
//! - [`SyncProbe`] tells from a few numbers how far a peer's parameters are from the common ones.
//!
//! # What validation costs
//! Measured by `examples/validation_bench.rs` with `consortium-tiny`, rounds of 30 steps of 8 rows of 128 positions, one
//! thread of a Xeon of 2023, processor time. An update is examined on three held-out batches of 4 rows and on 8 rows of its
//! own and 8 of nobody's: by rows that is 5.0 % of the training that it came from.
//!
//! | | |
//! |---|---|
//! | training, a peer and round | 26.3 s |
//! | losses before, once a round | 0.56 s |
//! | an update: read, patch, examine, take back | 0.99 s |
//! | share of the round's training, 4 / 8 / 20 / 100 peers | 4.3 / 4.0 / 3.9 / 3.8 % |
//!
//! When a round happens and what is signed is for the round protocol; what the numbers mean is for [`crate::gauntlet`].
//!
//! # Randomness
//! Two beacons come from outside, fixed when nobody can steer them any more: one for the data, known when the round begins,
//! and one for the examination, known after all updates were committed to.

mod assignment;
mod examiner;
mod parameters;
mod patch;
mod peer;
mod recipe;
mod sync;
mod task;
#[cfg(test)]
mod tests;

pub use assignment::{Assignment, held_out_rows};
pub use examiner::{Examination, Examiner, Measured};
pub use parameters::{Parameters, StateHash};
pub use patch::with_update;
pub use peer::{LocalRun, Peer, local_steps};
pub use recipe::{Data, LocalRecipe};
pub use sync::SyncProbe;
pub use task::Task;
