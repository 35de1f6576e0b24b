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
//! Held-out loss after the 24 rounds, in which it still falls by 3 % a round, against the four honest ones alone: with
//! free-rider, plagiarist, poisoner and stale peer, all kept out, +0.3 % in the mean of ten seeds (-4.9 to +5.9 %: runs part by
//! chance over what the first round lets in); with the mediocre one besides, which is let in and whose noise is a fifth of the mean, +5.7 % (-0.3 to +11.8 %).
//!
//! What compression costs: `simnet train --peers honest:4 --rounds 400 --steps 10 --batch 8 --dense --single`, seed 1, the same
//! tokens each, held-out loss:
//!
//! | after rounds | this run | dense, 4 peers | one AdamW |
//! |---|---|---|---|
//! | 24 | 2.17 | 0.81 | 0.60 |
//! | 50 | 0.79 | 0.349 | 0.281 |
//! | 100 | 0.347 | 0.208 | 0.218 |
//! | 200 | 0.206 | 0.196 | 0.191 |
//! | 400 | 0.183 | 0.178 | 0.175 |
//!
//! So at the end it was 3.2 % above dense averaging, and it is slower the shorter the run: an element is sent once in 64 rounds
//! or so by each peer. Once the loss hardly falls any more, half of the honest updates are refused: what a round gains is below
//! what 20 rows can tell.

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
