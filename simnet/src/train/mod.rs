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
//! - [`report`] is what comes out, [`svg`] its picture.
//!
//! Messages do not travel here and nothing is signed; when things are known is as in the round protocol: whoever commits in
//! time knows the updates of earlier rounds only, who copies one of this round has committed too late, and the batches of
//! the examination are drawn when all have committed.
//!
//! # Measured
//! `simnet train --seeds 10 --rounds 24 --alone`: seeds 1 to 10, rounds of 30 steps of 8 rows, of which examining an update
//! costs 5 %; the first three rounds not counted in the second column; gains in sat, of at most 100 a round:
//!
//! | | accepted after warm-up | mean gain | least | most |
//! |---|---|---|---|---|
//! | honest (four) | 100 % | +202 | +19 | +494 |
//! | mediocre | 99.5 % | +80 | 0 | +155 |
//! | free-rider | 0.5 % | -48 | -48 | -46 |
//! | plagiarist | 0 % | -48 | -48 | -48 |
//! | poisoner | 0 % | -48 | -48 | -48 |
//! | stale | 0 % | -46 | -46 | -45 |
//!
//! What peers earn differs because whether one's own rows improved more than others is a sign seen through noise, on 8 rows
//! of 240: true in two rounds of three for the honest. In one seed of ten the mediocre one, which trains on a quarter of its
//! rows, earned more than the mean of the honest, in two nothing.
//!
//! Attackers do nothing to the parameters when they are all kept out: with the four honest ones and free-rider, plagiarist,
//! poisoner and stale peer the held-out losses are to the last digit those of the honest alone. The mediocre one is let in, and
//! its noise is a fifth of the mean: after 24 rounds, in which the loss still falls by 3 % a round, it was between 0.3 %
//! better and 11.8 % worse, in the mean 5.7 %, with it than without.

pub mod arena;
pub mod baselines;
pub mod cast;
pub mod characters;
mod cores;
pub mod outcome;
pub mod pay;
pub mod report;
pub mod setting;
pub mod svg;
#[cfg(test)]
mod tests;
