//! What a round pays.

use consortium_protocol::Msat;
use serde::Serialize;

/// What quality earns, and what a rejected update costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Payroll {
    /// Most that a round pays, over all peers.
    pub budget: Msat,
    /// What one unit of quality earns while the budget lasts. What is not earned stays with the sponsor: in the first rounds
    /// nobody has shown much yet, and were the budget divided up all the same, one lucky round would be paid like ten good
    /// ones.
    pub base: Msat,
    /// What a peer pays whose update is refused: examining it costs as much as any other.
    pub fee: Msat,
    /// What each peer has at the beginning.
    pub stake: Msat,
}

impl Default for Payroll {
    /// 100 sat a round at most, 5 sat for a unit of quality, 2 sat for a refusal, of 100 sat at the beginning. Four peers
    /// that have been honest for thirty rounds have a quality of about 10 each.
    fn default() -> Self {
        Self { budget: Msat(100_000), base: Msat(5_000), fee: Msat(2_000), stake: Msat(100_000) }
    }
}

/// What a peer gets, or pays, for a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pay {
    /// Its share of the budget.
    pub reward: Msat,
    /// What a refusal costs it.
    pub fee: Msat,
}

impl Payroll {
    /// `base x quality` for each, all scaled down alike where the sum would exceed the budget, and rounded down. The refused
    /// pay the fee.
    #[must_use]
    pub fn round(&self, peers: &[(f64, bool)]) -> Vec<Pay> {
        let earned: Vec<u128> = peers.iter().map(|(quality, _)| self.earned(*quality)).collect();
        let sum = earned.iter().sum::<u128>().max(1);
        let budget = u128::from(self.budget.0);
        let pay = |(earned, (_, refused)): (&u128, &(f64, bool))| {
            let reward = if sum > budget { earned * budget / sum } else { *earned };
            Pay { reward: Msat(u64::try_from(reward).unwrap_or(0)), fee: if *refused { self.fee } else { Msat(0) } }
        };
        earned.iter().zip(peers).map(pay).collect()
    }

    /// What a quality earns before the budget is looked at, in msat. It is counted in millionths, and no more than a
    /// million.
    fn earned(&self, quality: f64) -> u128 {
        let sound = if quality.is_finite() { quality.clamp(0.0, 1e6) } else { 0.0 };
        u128::from(self.base.0) * (sound * 1e6) as u128 / 1_000_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quality_is_paid_at_the_base_rate_within_the_budget() {
        let pay = Payroll::default().round(&[(1.0, false), (2.5, false), (0.0, true), (f64::NAN, true)]);
        assert_eq!(pay.iter().map(|p| p.reward.0).collect::<Vec<_>>(), [5_000, 12_500, 0, 0]);
        assert_eq!(pay.iter().map(|p| p.fee.0).collect::<Vec<_>>(), [0, 0, 2_000, 2_000]);
        let rewards = |qualities: &[f64]| {
            let peers: Vec<(f64, bool)> = qualities.iter().map(|q| (*q, false)).collect();
            Payroll::default().round(&peers).iter().map(|p| p.reward.0).collect::<Vec<_>>()
        };
        assert_eq!(rewards(&[10.0, 20.0, 0.0]), [33_333, 66_666, 0], "scaled down to the budget");
        assert!(rewards(&[f64::INFINITY, -1.0, 1e300, 1e300, 1.0]).iter().sum::<u64>() <= 100_000);
    }
}
