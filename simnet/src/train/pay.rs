//! What a round pays.

use consortium_protocol::Msat;
use serde::Serialize;

/// How a round's budget is divided, and what a rejected update costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Payroll {
    /// Most that a round pays, over all peers.
    pub budget: Msat,
    /// What a peer pays whose update is refused: examining it costs as much as any other.
    pub fee: Msat,
    /// What each peer has at the beginning.
    pub stake: Msat,
}

impl Default for Payroll {
    /// 100 sat a round, 2 sat for a refusal, of 100 sat at the beginning.
    fn default() -> Self {
        Self { budget: Msat(100_000), fee: Msat(2_000), stake: Msat(100_000) }
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
    /// Shares the budget in proportion to quality, rounded down; the sum never exceeds the budget. `refused` pay the fee.
    #[must_use]
    pub fn round(&self, peers: &[(f64, bool)]) -> Vec<Pay> {
        let sound = |quality: f64| if quality.is_finite() { quality.max(0.0) } else { 0.0 };
        let sum: f64 = peers.iter().map(|(quality, _)| sound(*quality)).sum();
        let pay = |(quality, refused): &(f64, bool)| {
            let share = if sum > 0.0 { sound(*quality) / sum } else { 0.0 };
            // A share of the budget in parts of a million million, so that rounding is that of integers.
            let parts = (share * 1e12).floor() as u128;
            let reward = u128::from(self.budget.0) * parts / 1_000_000_000_000;
            Pay {
                reward: Msat(u64::try_from(reward).unwrap_or(0).min(self.budget.0)),
                fee: if *refused { self.fee } else { Msat(0) },
            }
        };
        peers.iter().map(pay).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_shared_by_quality_and_never_exceeded() {
        let pay = Payroll::default().round(&[(1.0, false), (2.0, false), (0.0, true), (f64::NAN, true)]);
        assert_eq!(pay.iter().map(|p| p.reward.0).collect::<Vec<_>>(), [33_333, 66_666, 0, 0]);
        assert_eq!(pay.iter().map(|p| p.fee.0).collect::<Vec<_>>(), [0, 0, 2_000, 2_000]);
        let many = Payroll::default().round(&[(1e-300, false); 7]);
        assert!(many.iter().map(|p| p.reward.0).sum::<u64>() <= 100_000);
        assert!(Payroll::default().round(&[(0.0, false)]).iter().all(|p| p.reward.0 == 0));
    }
}
