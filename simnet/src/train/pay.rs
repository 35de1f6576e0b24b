//! What a round pays: by the rule of runs ([`shares`]).

use consortium_node::training::rounds::shares;
use consortium_protocol::Msat;
use consortium_protocol::wire::train::{PaySchedule, PayWay};

/// What each peer has at the beginning.
pub const STAKE: Msat = Msat(100_000);
/// 100 sat a round at most, 5 sat for a unit of quality, 2 sat for a refusal. Four peers that have been honest for thirty
/// rounds have a quality of about 10 each. What is not earned stays with the sponsor: in the first rounds nobody has shown
/// much yet, and were the budget divided up all the same, one lucky round would be paid like ten good ones.
pub const SCHEDULE: PaySchedule = PaySchedule {
    budget: Msat(100_000),
    base_rate: Msat(5_000),
    fee: Msat(2_000),
    unit: Msat(1),
    least_units: 1,
    way: PayWay::Accounts,
    bond: Msat::ZERO,
};

/// What a peer gets, or pays, for a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pay {
    /// Its share of the budget.
    pub reward: Msat,
    /// What a refusal costs it.
    pub fee: Msat,
}

/// What a round pays to each, by its quality and whether its update was examined in vain.
#[must_use]
pub fn pay(peers: &[(f64, bool)]) -> Vec<Pay> {
    let qualities: Vec<f64> = peers.iter().map(|(quality, _)| *quality).collect();
    let fee = |in_vain: bool| if in_vain { SCHEDULE.fee } else { Msat::ZERO };
    let rewards = shares(&SCHEDULE, &qualities).into_iter();
    rewards.zip(peers).map(|(reward, (_, in_vain))| Pay { reward, fee: fee(*in_vain) }).collect()
}
