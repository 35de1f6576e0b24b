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
//! | honest (four) | 100 % | +192 | 0 | +570 |
//! | mediocre | 100 % | +69 | 0 | +188 |
//! | free-rider | 6.2 % | -45 | -48 | -42 |
//! | plagiarist | 0 % | -48 | -48 | -48 |
//! | poisoner | 0 % | -48 | -48 | -48 |
//! | stale | 0 % | -46 | -46 | -45.5 |
//!
//! What peers earn differs because whether one's own rows improved more than others is a sign seen through noise, on 8 rows
//! of 240: true in two rounds of three for the honest. Over hundreds of rounds it evens out. In one seed of ten the mediocre
//! one, which trains on a quarter of its rows, earned more than the mean of the honest.
//!
//! Held-out loss with attackers (`--alone --peers honest:4,free-rider,plagiarist,poisoner,stale`) against that of the four
//! honest ones alone: after 24 rounds, in which it still falls by 3 % a round, +2.0 % in the mean of ten seeds (+0.6 to
//! +4.1 %); after 60 rounds -0.6 % in the mean of four (-5.9 to +3.0 %), for by then runs part by chance more than by what
//! attackers do. The difference comes early: in six seeds of ten a free-rider's noise was let in once or twice before the
//! twelfth round, because what it did (-0.4 to +0.02 %, where the honest gained 0.6 to 2.4 %) could have been chance.
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
//! With 8 peers: `simnet train --peers honest:8 --rounds 800 --steps 10 --batch 8 --inner-rate 8e-3 --final-part 0.02 --dense
//! --single`, seed 1; and the same with `--overlap`, which does not change the other two. The last line is the mean of the
//! last 20 rounds, and the seconds are those that the run takes where each peer has a core and 110 Mb/s up.
//!
//! | after rounds | this run | with `--overlap` | dense, 8 peers | one AdamW |
//! |---|---|---|---|---|
//! | 24 | 2.14 | 2.34 | 0.74 | 0.46 |
//! | 100 | 0.246 | 0.264 | 0.189 | 0.191 |
//! | 200 | 0.190 | 0.191 | 0.180 | 0.183 |
//! | 400 | 0.1837 | 0.1795 | 0.1831 | 0.1823 |
//! | 600 | 0.1755 | 0.1748 | 0.1737 | 0.1689 |
//! | 800 | 0.1732 | 0.1715 | 0.1681 | 0.1685 |
//! | mean | 0.1736 (+2.8 %) | 0.1718 (+1.8 %) | 0.1688 | 0.1692 |
//! | seconds | 150 | 113 | 272 | 750 |
//!
//! It takes rounds: after 300 in all, with the usual rate, it is 0.1834 against 0.1749, or 4.9 % above dense averaging. What is
//! small and lasting is sent seldom, and fades (error feedback of 0.95) before it is; so a rate that is twice as high is
//! faster for the first 200 rounds, and has to fall further in the end (400 rounds: 0.1774, at the usual rate 0.1801). More
//! local steps help little (200 rounds of 30: 0.1831). A tenth of the updates is refused, most of them while the rate is so
//! low that a round gains nothing, and of 800 aggregates 33 are taken back (43 with `--overlap`).

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
