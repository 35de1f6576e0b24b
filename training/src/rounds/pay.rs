//! From quality to money: whole millisatoshi, and to the last of them the same everywhere.

use consortium_protocol::Msat;
use consortium_protocol::wire::train::PaySchedule;

/// Quality is counted in millionths.
const PARTS: f64 = 1e6;
/// Highest quality counted: a million.
const MOST: f64 = 1e12;

/// What each peer gets: the base rate times its quality, and where that is more than the budget, its share of the budget;
/// then the sum is the budget exactly, and what rounding leaves over goes to the largest remainders, of equal ones to the
/// first. Quality that is negative, or no number, is zero.
#[must_use]
pub fn shares(pay: &PaySchedule, qualities: &[f64]) -> Vec<Msat> {
    let parts = |quality: &f64| if *quality > 0.0 { (quality * PARTS).min(MOST) as u128 } else { 0 };
    let wants: Vec<u128> = qualities.iter().map(|q| u128::from(pay.base_rate.0) * parts(q) / PARTS as u128).collect();
    let (sum, budget) = (wants.iter().sum::<u128>(), u128::from(pay.budget.0));
    if sum <= budget {
        return wants.into_iter().map(msat).collect();
    }
    // The schedule is bounded to ten bitcoin, 10^12 msat: 10^12 * 10^12 * 10^6 * 64 stays far below 2^128.
    let mut given: Vec<u128> = wants.iter().map(|want| want * budget / sum).collect();
    let left = budget - given.iter().sum::<u128>();
    let mut order: Vec<usize> = (0..wants.len()).collect();
    order.sort_by_key(|place| (std::cmp::Reverse(wants[*place] * budget % sum), *place));
    for place in order.into_iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
        given[place] += 1;
    }
    given.into_iter().map(msat).collect()
}

fn msat(amount: u128) -> Msat {
    Msat(u64::try_from(amount).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use consortium_protocol::wire::train::PayWay;
    use proptest::prelude::*;

    use super::*;

    fn schedule(budget: u64, base_rate: u64) -> PaySchedule {
        let (fee, unit) = (Msat(10), Msat(1000));
        PaySchedule {
            budget: Msat(budget),
            base_rate: Msat(base_rate),
            fee,
            unit,
            least_units: 1,
            way: PayWay::Accounts,
            bond: Msat::ZERO,
        }
    }

    #[test]
    fn the_base_rate_is_paid_while_the_budget_lasts_and_shares_of_it_after() {
        assert_eq!(shares(&schedule(1000, 100), &[1.0, 2.5, 0.0, -3.0]), [100, 250, 0, 0].map(Msat));
        assert_eq!(shares(&schedule(1000, 1000), &[1.0, 3.0]), [250, 750].map(Msat));
        assert_eq!(shares(&schedule(100, 1000), &[1.0; 3]), [34, 33, 33].map(Msat), "the sum is exact");
        assert_eq!(shares(&schedule(100, 0), &[1.0]), [Msat::ZERO]);
        assert_eq!(shares(&schedule(7, 7), &[f64::NAN, f64::INFINITY]), [0, 7].map(Msat));
        assert!(shares(&schedule(7, 7), &[]).is_empty());
    }

    proptest! {
        #[test]
        fn the_sum_never_exceeds_the_budget_and_meets_it_when_more_is_wanted(
            budget in 0_u64..=1_000_000_000_000,
            base in 0_u64..=1_000_000_000_000,
            qualities in prop::collection::vec(-10.0..1e9_f64, 0..64),
        ) {
            let given = shares(&schedule(budget, base), &qualities);
            let sum = Msat::sum(given.iter().copied()).unwrap();
            prop_assert!(sum.0 <= budget);
            let wanted: u128 = qualities.iter().map(|q| u128::from(base) * ((q.max(0.0) * 1e6) as u128) / 1_000_000).sum();
            prop_assert_eq!(u128::from(sum.0), wanted.min(u128::from(budget)));
            for (a, b) in (0..given.len()).flat_map(|a| (0..given.len()).map(move |b| (a, b))) {
                prop_assert!(qualities[a] < qualities[b] || given[a].0 + 1 >= given[b].0, "more quality, not less pay");
            }
        }
    }
}
