//! The benefit of the doubt: what a few batches cannot tell from chance is not held against a peer, but it adds up.
//!
//! Late in a run an honest update gains less than the batches of one round differ by: of 200 honest updates in such rounds half
//! seemed to do harm, by a tenth of what the batches were apart. A gate that asks each of them for the margin keeps out one
//! honest update in two, and one that asks for nothing lets in whoever does a little harm in every round. So a score counts as
//! what it may be at best, [`Estimate::at_best`], and what a peer's updates were worth over many rounds must be possible for one
//! that does no harm, [`Merit::is_sound`]: what chance hides in one round it cannot hide in twenty.
//!
//! Early in a run there is nothing to excuse: an honest update gains many times what batches differ by, and one that may have
//! gained nothing has not. So who does not show the margin must at best be worth a part of the median of its round. Without
//! that, in six runs of ten some noise was let in before the twelfth round. Whoever makes updates of great worth thereby
//! raises what others need who show nothing; who shows the margin is not held against others at all.

use serde::{Deserialize, Serialize};

use super::score::{RECENT, TOLERANCE, WORST};

/// How many standard errors runs doubt a score by, if their plan says nothing else. Of five batches whose mean is as likely
/// above zero as below, one in fifty seems further below than that.
pub const DOUBT: f64 = 3.0;

/// A mean over batches, and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean; minus infinity if there are no batches, or one of them has no score.
    pub mean: f64,
    /// Its standard error; zero for a single batch.
    pub error: f64,
}

impl Estimate {
    /// Of scores, in the order given.
    #[must_use]
    pub fn of(scores: &[f64]) -> Self {
        let count = scores.len() as f64;
        let mean = scores.iter().sum::<f64>() / count;
        if !mean.is_finite() {
            return Self { mean: f64::NEG_INFINITY, error: 0.0 };
        }
        let squares: f64 = scores.iter().map(|score| (score - mean) * (score - mean)).sum();
        let error = if scores.len() < 2 { 0.0 } else { (squares / (count - 1.0) / count).sqrt() };
        Self { mean, error }
    }

    /// What it may be if chance was against it.
    #[must_use]
    pub fn at_best(&self, doubt: f64) -> f64 {
        self.mean + doubt * self.error
    }
}

/// What a peer's updates did over rounds, of which the newest count most, as far as that was harm: good rounds do not make up
/// for harm that comes after them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Merit {
    /// The sum of their scores, each less [`TOLERANCE`], and never above zero. No round counts for more than [`WORST`], or a single one would take
    /// hundreds to be forgotten.
    pub sum: f64,
    /// The variance of that sum, if each score is as sure as its batches say. No score is taken to be less sure than [`WORST`],
    /// or one that is not would hide the harm of many.
    pub variance: f64,
}

impl Merit {
    /// With one more update.
    #[must_use]
    pub fn with(self, score: Estimate) -> Self {
        let (left, mean, error) = (1.0 - RECENT, score.mean.clamp(-WORST, WORST), score.error.min(WORST));
        Self {
            sum: (left * self.sum + mean - TOLERANCE).min(0.0),
            variance: left * left * self.variance + error * error,
        }
    }

    /// Whether the peer may be one that does no harm.
    #[must_use]
    pub fn is_sound(&self, doubt: f64) -> bool {
        self.sum + doubt * self.variance.sqrt() >= 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_is_mean_and_standard_error() {
        let three = Estimate::of(&[1.0, 2.0, 6.0]);
        assert!((three.mean - 3.0).abs() < 1e-12 && (three.error - (7.0f64 / 3.0).sqrt()).abs() < 1e-12, "{three:?}");
        assert_eq!(Estimate::of(&[0.25]), Estimate { mean: 0.25, error: 0.0 });
        for none in [&[][..], &[f64::NEG_INFINITY, 1.0], &[f64::NAN]] {
            assert!(Estimate::of(none).at_best(DOUBT) < -1e300, "{none:?}");
        }
    }

    #[test]
    fn a_little_harm_in_every_round_is_found_out_and_chance_is_not() {
        let rounds = |mean: f64| {
            let mut merit = Merit::default();
            // As far apart as batches are, and half of the time worse than the mean.
            let noise = |round: u32| if round.is_multiple_of(2) { 0.002 } else { -0.002 };
            (0..60).position(|round| {
                merit = merit.with(Estimate { mean: mean + noise(round), error: 0.001 });
                !merit.is_sound(DOUBT)
            })
        };
        assert_eq!(rounds(0.0), None);
        assert_eq!(rounds(0.001), None);
        assert!(rounds(-0.001).is_some_and(|round| (5..20).contains(&round)), "{:?}", rounds(-0.001));
    }

    #[test]
    fn what_is_worth_nothing_in_every_round_is_found_out() {
        let noise = |round: u32| if round.is_multiple_of(2) { 1e-4 } else { -1e-4 };
        let whisper = |merit: Merit, round| merit.with(Estimate { mean: noise(round), error: 8e-5 });
        assert!(!(0..40).fold(Merit::default(), whisper).is_sound(DOUBT));
    }

    #[test]
    fn neither_good_rounds_nor_wild_ones_make_up_for_harm() {
        let after = |first: Estimate| {
            (0..30).fold(Merit::default().with(first), |merit, _| merit.with(Estimate { mean: -0.002, error: 0.001 }))
        };
        for first in [Estimate { mean: 0.9, error: 0.001 }, Estimate { mean: 0.0, error: 1e6 }] {
            assert!(!after(first).is_sound(DOUBT), "{first:?}");
        }
        let wrecked = Merit::default().with(Estimate { mean: -1e9, error: 0.001 });
        let better = (0..20).fold(wrecked, |merit, _| merit.with(Estimate { mean: 0.002, error: 0.001 }));
        assert!(!wrecked.is_sound(DOUBT) && better.is_sound(DOUBT), "{better:?}");
    }
}
