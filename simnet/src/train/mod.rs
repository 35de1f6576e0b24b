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
//! `simnet train --seeds 10 --rounds 24`: seeds 1 to 10, rounds of 30 steps of 8 rows, of which examining an update costs 5 %;
//! the first three rounds not counted in the second column; gains in sat, of at most 100 a round:
//!
//! | | accepted after warm-up | mean gain | least | most |
//! |---|---|---|---|---|
//! | honest (four) | 100 % | +204 | +3 | +580 |
//! | mediocre | 100 % | +94 | +0.5 | +166 |
//! | free-rider | 3.8 % | -46 | -48 | -42 |
//! | plagiarist | 0 % | -48 | -48 | -48 |
//! | poisoner | 0 % | -48 | -48 | -48 |
//! | stale | 0 % | -46 | -46 | -45 |
//!
//! What peers earn differs because whether one's own rows improved more than others is a sign seen through noise, on 8 rows
//! of 240: true in two rounds of three for the honest. Over hundreds of rounds it evens out. In one seed of ten the mediocre
//! one, which trains on a quarter of its rows, earned more than the mean of the honest.
//!
//! Held-out loss after the 24 rounds (`--alone --peers honest:4,free-rider,plagiarist,poisoner,stale`), in which it still falls
//! by 3 % a round, against that of the four honest ones alone: +0.1 % in the mean of ten seeds (-4.9 to +4.1 %, standard error
//! 1.0 %: runs part by chance over what the first round lets in). With the mediocre one besides, which is let in and whose noise
//! is a fifth of the mean, it was +5.7 % (-0.3 to +11.8 %) before scores were given the benefit of the doubt.
//!
//! What compression costs: `simnet train --peers honest:4 --rounds 400 --steps 10 --batch 8 --dense --single`, seed 1, the same
//! tokens each, held-out loss:
//!
//! | after rounds | this run | dense, 4 peers | one AdamW |
//! |---|---|---|---|
//! | 24 | 2.19 | 0.81 | 0.60 |
//! | 50 | 0.79 | 0.349 | 0.281 |
//! | 100 | 0.307 | 0.208 | 0.218 |
//! | 200 | 0.187 | 0.196 | 0.191 |
//! | 400 | 0.1789 | 0.1775 | 0.1749 |
//!
//! So at the end it is 0.8 % above dense averaging, and it is slower the shorter the run: an element is sent once in 64 rounds or
//! so by each peer. 1511 of 1600 updates were let in, all of the first hundred rounds; of 400 aggregates 12 were taken back. When
//! every update had to show the margin by itself it was 3.2 %, for once the loss hardly falls any more a round gains a tenth of
//! what the batches differ by; with everything let in, 1.0 %, and with `--overlap` besides -0.3 %, though behind for the first
//! hundred rounds (0.391 after 100).
//!
//! With 8 peers and 300 rounds (`--peers honest:8 --rounds 300`) it is 0.1834 against 0.1749, or 4.9 % above dense averaging,
//! where 97 % of the updates were let in: what is left there is the price of compression in so few rounds. By the time that they
//! take, where each peer has a core and 110 Mb/s up, even of this model of 0.4 MB (88 s for the run, 151 s dense), the two
//! curves lie on each other. Longer runs of 8 peers, not beside dense averaging: 400 rounds whose rate falls to a fiftieth
//! (`--final-part 0.02`) end at 0.1801, and were at 0.183 after 240; 200 rounds of 30 steps end at 0.1831, and were at 0.186
//! after 140. So neither what noise a high rate leaves nor more local steps is what is missing, but rounds: what is small and
//! lasting is sent seldom, and fades (error feedback of 0.95) before it is.

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
