//! Training together with all kinds of peers, in one process: real training of a small Llama, real updates, real scores.
//!
//! ```text
//! Cast ──> Arena: each round   assign ─> characters submit ─> examine ─> outcome ─> pay ─> aggregate or revert ─> RoundReport
//! ```
//! - [`setting`] is the run: model shape, recipe, examination, and why these.
//! - [`cast`] says who takes part, [`characters`] what each submits, given what it can know when it must commit.
//! - [`arena`] plays the rounds, [`mod@outcome`] turns what was measured into verdicts and standings, and [`pay`] these into
//!   money: pure functions of the numbers of a round.
//! - [`baselines`] trains the same model without compression, and by one AdamW with the same tokens.
//! - [`report`] is what comes out, [`curve`] held-out loss by rounds and by time, [`svg`] the picture.
//!
//! Messages do not travel here and nothing is signed; when things are known is as in the round protocol: whoever commits in
//! time knows the updates of earlier rounds only, who copies one of this round has committed too late, and the batches of
//! the examination are drawn when all have committed.
//!
//! What it measured, and by which commands, is in `MEASURED.md` beside this file.

pub mod arena;
pub mod baselines;
pub mod cast;
pub mod characters;
mod cores;
pub mod curve;
pub mod outcome;
pub mod pay;
pub mod report;
pub mod setting;
pub mod svg;
#[cfg(test)]
mod tests;
