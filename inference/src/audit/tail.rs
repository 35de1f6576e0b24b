//! How far the tail of a measured statistic reaches.
//!
//! Peaks over a threshold (Pickands 1975): what exceeds a high quantile follows a generalised Pareto distribution, whose
//! scale and shape are estimated from probability-weighted moments (Hosking and Wallis 1987, Technometrics 29(3)). A
//! shape below zero, which would put an end to the tail, is taken as zero (an exponential tail): that errs towards
//! wider limits.

use serde::{Deserialize, Serialize};

/// Quantile above which the tail is fitted.
const QUANTILE: f64 = 0.9;
/// Values beyond the threshold that it takes to estimate a shape; of fewer an exponential tail is taken.
const ENOUGH: f64 = 100.0;
/// Largest shape that is believed: beyond it there is no mean, and the sample is no sample.
const MAX_SHAPE: f64 = 0.5;

/// A fitted tail.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tail {
    /// Values measured.
    pub samples: usize,
    /// Their median.
    pub median: f64,
    /// The largest.
    pub max: f64,
    /// Where the tail begins.
    pub start: f64,
    /// Share of the values beyond `start`.
    pub share: f64,
    /// Scale of the generalised Pareto distribution.
    pub scale: f64,
    /// Its shape: zero or more.
    pub shape: f64,
}

impl Tail {
    /// Fits the tail of some values; all zero for none. Values that are not finite count as the largest finite one.
    pub(crate) fn fit(values: &[f64]) -> Self {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let at = |q: f64| sorted.get(((sorted.len().max(1) - 1) as f64 * q) as usize).copied().unwrap_or_default();
        let start = at(QUANTILE);
        let excesses: Vec<f64> = sorted.iter().filter(|v| **v > start).map(|v| v - start).collect();
        let count = excesses.len() as f64;
        let (mut scale, mut shape) = (0.0, 0.0);
        if !excesses.is_empty() {
            let first = excesses.iter().sum::<f64>() / count;
            let weighted = |(i, x): (usize, &f64)| x * (1.0 - (i as f64 + 0.65) / count);
            let second = excesses.iter().enumerate().map(weighted).sum::<f64>() / count;
            shape = 2.0 - first / (first - 2.0 * second);
            (scale, shape) = match shape {
                s if s > 0.0 && count >= ENOUGH => (2.0 * first * second / (first - 2.0 * second), s.min(MAX_SHAPE)),
                _ => (first, 0.0),
            };
        }
        let share = count / sorted.len().max(1) as f64;
        let [median, max] = [at(0.5), at(1.0)].map(rounded);
        let [start, share, scale, shape] = [start, share, scale, shape].map(rounded);
        Self { samples: values.len(), median, max, start, share, scale, shape }
    }

    /// The level that a value exceeds with this probability.
    pub(crate) fn level(&self, probability: f64) -> f64 {
        if probability >= self.share {
            return self.start;
        }
        let ratio = self.share / probability;
        match self.shape {
            0.0 => self.start + self.scale * ratio.ln(),
            shape => self.start + self.scale / shape * (ratio.powf(shape) - 1.0),
        }
    }
}

/// Five digits: more say nothing, and fill files.
pub(super) fn rounded(value: f64) -> f64 {
    format!("{value:.4e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;

    fn sample(count: usize, of: impl Fn(f64) -> f64) -> Vec<f64> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        (0..count).map(|_| of(rng.random_range(1e-12..1.0))).collect()
    }

    #[test]
    fn exponential_and_heavy_tails_are_found() {
        let tail = Tail::fit(&sample(20_000, |u| 5.0 - 2.0 * u.ln()));
        assert!((tail.scale - 2.0).abs() < 0.2 && tail.shape < 0.08, "{tail:?}");
        assert!((tail.median - (5.0 + 2.0 * 2.0_f64.ln())).abs() < 0.1);
        // A Pareto distribution with exponent 4 has shape 1/4; beyond 1e-6 lies 1e1.5.
        let tail = Tail::fit(&sample(20_000, |u| u.powf(-0.25)));
        assert!((tail.shape - 0.25).abs() < 0.08, "{tail:?}");
        assert!((20.0..50.0).contains(&tail.level(1e-6)), "{}", tail.level(1e-6));
    }

    #[test]
    fn a_bounded_tail_is_given_room() {
        let tail = Tail::fit(&sample(5000, |u| u));
        assert_eq!(tail.shape, 0.0);
        assert!(tail.level(1e-9) > 1.5 && tail.level(1e-9) > tail.level(1e-5));
        assert_eq!(tail.level(0.5), tail.start);
    }

    #[test]
    fn little_data_makes_no_trouble() {
        for values in [&[][..], &[1.0], &[0.0; 50], &[f64::NAN, 2.0, f64::INFINITY]] {
            let tail = Tail::fit(values);
            assert!(tail.level(1e-9).is_finite(), "{values:?}");
            assert_eq!(tail.samples, values.len());
        }
    }
}
