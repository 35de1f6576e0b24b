//! Ratings of peers from the order of their scores.
//!
//! The Plackett-Luce model of Weng and Lin, "A Bayesian Approximation Method for Online Ranking", JMLR 12 (2011), algorithm
//! 4, with ties and the drift `tau` of OpenSkill. The crates there are do not serve: `skillratings` has the Bradley-Terry
//! variant only, and all of them take the exponential from the machine's own library, whose last digits differ.

use serde::{Deserialize, Serialize};

/// Spread of performance around skill.
const BETA: f64 = 7.0;
/// How much less sure a rating becomes by a round.
const TAU: f64 = 0.1;
/// Least part of the variance that a round leaves.
const KAPPA: f64 = 1e-4;

/// A belief about a peer's skill.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rating {
    /// Its mean.
    pub mu: f64,
    /// Its standard deviation.
    pub sigma: f64,
}

impl Default for Rating {
    fn default() -> Self {
        Self { mu: 25.0, sigma: 25.0 / 3.0 }
    }
}

impl Rating {
    /// A skill that the peer has all but certainly: the mean less three deviations; zero for a newcomer, and may be negative.
    #[must_use]
    pub fn ordinal(&self) -> f64 {
        self.mu - 3.0 * self.sigma
    }
}

/// Updates `ratings` after a round in which the peers had the given scores; the higher the better, equal ones tie. A score
/// that is no number is below all others. Fewer than two peers change nothing; surplus entries of either are left alone.
pub fn rate(ratings: &mut [Rating], scores: &[f64]) {
    rate_with(ratings, scores, BETA, TAU);
}

fn rate_with(ratings: &mut [Rating], scores: &[f64], beta: f64, tau: f64) {
    let count = ratings.len().min(scores.len());
    if count < 2 {
        return;
    }
    let scores: Vec<f64> = scores[..count].iter().map(|s| if s.is_nan() { f64::NEG_INFINITY } else { *s }).collect();
    let variances: Vec<f64> = ratings[..count].iter().map(|r| r.sigma * r.sigma + tau * tau).collect();
    let c = variances.iter().map(|v| v + beta * beta).sum::<f64>().sqrt();
    let strengths: Vec<f64> = ratings[..count].iter().map(|r| libm::exp(r.mu / c)).collect();
    // For each peer: the strengths of all that did not do better than it, and how many did as well.
    let below = |q: usize| (0..count).filter(|i| scores[*i] <= scores[q]).map(|i| strengths[i]).sum::<f64>();
    let equals = |q: usize| scores.iter().filter(|s| **s == scores[q]).count() as f64;
    let stages: Vec<(f64, f64)> = (0..count).map(|q| (below(q), equals(q))).collect();
    for i in 0..count {
        let (mut omega, mut delta) = (0.0, 0.0);
        for q in (0..count).filter(|q| scores[*q] >= scores[i]) {
            let (sum, ties) = stages[q];
            let share = strengths[i] / sum;
            omega += (f64::from(u8::from(i == q)) - share) / ties;
            delta += share * (1.0 - share) / ties;
        }
        let (variance, sigma) = (variances[i], variances[i].sqrt());
        let shrink = 1.0 - sigma / c * delta * variance / (c * c);
        ratings[i] = Rating { mu: ratings[i].mu + omega * variance / c, sigma: sigma * shrink.max(KAPPA).sqrt() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(rating: Rating, mu: f64, sigma: f64) {
        assert!((rating.mu - mu).abs() < 1e-9 && (rating.sigma - sigma).abs() < 1e-9, "{rating:?}");
    }

    #[test]
    fn two_and_three_players_agree_with_openskill() {
        let mut two = [Rating::default(); 2];
        rate_with(&mut two, &[1.0, 0.0], 25.0 / 6.0, 0.0);
        near(two[0], 27.635_231_383_473_65, 8.065_506_316_323_548);
        near(two[1], 22.364_768_616_526_35, 8.065_506_316_323_548);
        let mut three = [Rating::default(); 3];
        rate_with(&mut three, &[3.0, 2.0, 1.0], 25.0 / 6.0, 0.0);
        near(three[0], 27.868_876_552_746_237, 8.204_837_030_780_652);
        near(three[1], 25.717_219_138_186_557, 8.057_829_747_583_874);
        near(three[2], 21.413_904_309_067_206, 8.057_829_747_583_874);
    }

    #[test]
    fn equals_stay_equal_and_the_order_of_peers_does_not_matter() {
        let mut ratings = [Rating::default(); 4];
        rate(&mut ratings, &[0.5, 0.1, 0.5, f64::NAN]);
        assert_eq!(ratings[0], ratings[2]);
        // The law shares a place among those that tie for it: here they get no more than the one after them.
        assert!(ratings[0].mu >= ratings[1].mu && ratings[1].mu > ratings[3].mu);
        let mut turned = [Rating::default(); 4];
        rate(&mut turned, &[f64::NAN, 0.5, 0.1, 0.5]);
        near(turned[1], ratings[0].mu, ratings[0].sigma);
    }

    #[test]
    fn alone_nobody_gains() {
        let mut alone = [Rating::default()];
        rate(&mut alone, &[1.0]);
        assert_eq!(alone, [Rating::default()]);
    }

    #[test]
    fn ratings_have_the_same_bits_everywhere() {
        let mut ratings = [Rating::default(); 3];
        (0..20).for_each(|round| rate(&mut ratings, &[1.0, f64::from(round % 3), 0.5]));
        let bits = ratings.map(|r| (r.mu.to_bits(), r.sigma.to_bits()));
        let expected = [
            (4_630_142_607_207_512_440, 4_619_120_071_538_364_684),
            (4_627_240_107_353_512_730, 4_619_210_793_618_984_338),
            (4_625_351_906_767_997_578, 4_619_067_728_692_814_926),
        ];
        assert_eq!(bits, expected);
    }
}
