//! Gauntlet: what a peer's update is worth, and whether it is let into the aggregate.
//!
//! After Lidin et al., "Incentivizing Permissionless Distributed Learning of LLMs", arXiv 2505.21684, without the holes that
//! were found in its running. Everything here is a pure function of numbers that validators sign, computed so that every
//! machine gets the same bits: a replay needs the signed losses, and neither a model nor a clock.
//!
//! For each update validators measure the loss before and after a step by it, on batches that were assigned to the peer, on
//! others of the training data that were assigned to nobody, and on held-out ones ([`Losses`]). The step is the update's part
//! of the outer step, for what counts is what it does to the mean. [`showings`] then says at once, before anything is
//! aggregated, whether the update may enter ([`Verdict`]): what a few batches cannot tell from chance is not held against it,
//! unless the others gain so much that work would be seen, and it adds up over rounds ([`Merit`]). What a peer is paid for builds up in its [`Standing`]: a rating of its scores against
//! those of the others ([`Rating`]), times how reliably it improves its own batches more than others', which it can only by
//! training on them. [`copies`] finds updates that are too much like an earlier one.
//!
//! | exploit | closed by |
//! |---|---|
//! | negative rating times negative reliability paid a positive sum | both count as zero when negative |
//! | updates next to nothing never score below zero | a positive margin, and a little of it in every round |
//! | a well-rated peer does harm once | the gate, before aggregation: good rounds before buy nothing |
//! | a little harm in every round, within what batches differ by | it adds up over rounds, and what doubt excuses is bounded |
//! | noise in a round or two, within what batches differ by | the more the others gain, the less doubt excuses |
//! | a copy of another's update | commit-reveal of the round, and [`copies`] |
//! | a fixed limit of overlap accuses honest peers early in a run | a limit relative to the population |
//! | one loud update | norms clipped to the median, in [`crate::sparseloco::aggregate`] |

mod doubt;
mod rating;
mod score;
mod similarity;

pub use doubt::{DOUBT, Estimate, Merit};
pub use rating::{Rating, rate};
pub use score::{
    Evidence, Losses, MARGIN, MOST_DRIFT, Refusal, Showing, Standing, TOLERANCE, Verdict, WORST, harms, median,
    showings, take_round,
};
pub use similarity::copies;
