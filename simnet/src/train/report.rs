//! What comes out of a run.

use consortium_node::training::gauntlet::{Evidence, Losses, Standing};
use serde::Serialize;

use super::outcome::Finding;
use super::pay::Pay;

/// A round of one peer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PeerRound {
    /// Its name.
    pub peer: String,
    /// What becomes of its update.
    pub fate: &'static str,
    /// Its score on held-out batches, if it was examined and has one.
    pub score: Option<f64>,
    /// The same on the batch where it does worst.
    pub worst: Option<f64>,
    /// Whether its own rows improved more than nobody's.
    pub own_data: Option<bool>,
    /// The rating's ordinal, after the round.
    pub rating: f64,
    /// Its reliability, after the round.
    pub reliability: f64,
    /// What it gets, in msat.
    pub reward_msat: u64,
    /// What it pays, in msat.
    pub fee_msat: u64,
    /// What it has after the round, its stake included, in msat; below zero if it owes.
    pub balance_msat: i64,
}

impl PeerRound {
    pub(super) fn new(name: &str, finding: &Finding, standing: &Standing, pay: Pay, balance_msat: i64) -> Self {
        Self {
            peer: name.to_owned(),
            fate: finding.fate.name(),
            score: finding.evidence.as_ref().map(Evidence::score).filter(|score| score.is_finite()),
            worst: finding.evidence.as_ref().map(worst).filter(|score| score.is_finite()),
            own_data: finding.evidence.as_ref().map(Evidence::own_data),
            rating: standing.rating.ordinal(),
            reliability: standing.reliability,
            reward_msat: pay.reward.0,
            fee_msat: pay.fee.0,
            balance_msat,
        }
    }

    /// Whether its update was let in.
    #[must_use]
    pub fn accepted(&self) -> bool {
        self.fate == "accepted"
    }
}

fn worst(evidence: &Evidence) -> f64 {
    evidence.held_out.iter().map(Losses::score).fold(f64::INFINITY, f64::min)
}

/// A round.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoundReport {
    /// Its number, from 0.
    pub round: u64,
    /// The loss of the common parameters after it, nats per token.
    pub held_out_loss: f64,
    /// Whether the aggregate made it worse, and was not applied.
    pub reverted: bool,
    /// How long all of it took.
    pub seconds: f64,
    /// How long training took, of all peers on this machine's cores.
    pub training_seconds: f64,
    /// How long the slowest peer trained, on a core of its own.
    pub peer_seconds: f64,
    /// How long it would take for all to send what they made to all others; see [`super::curve`].
    pub exchange_seconds: f64,
    /// The peers, in order.
    pub peers: Vec<PeerRound>,
}

/// A peer over a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PeerTotal {
    /// Its name.
    pub peer: String,
    /// The mean of its scores, where it had one.
    pub score: f64,
    /// Rounds in which its update was let in.
    pub accepted: usize,
    /// The same after the warm-up.
    pub accepted_later: usize,
    /// What became of the other updates, most frequent first.
    pub refusals: Vec<(&'static str, usize)>,
    /// The rating's ordinal at the end.
    pub rating: f64,
    /// Its reliability at the end.
    pub reliability: f64,
    /// All rewards, in msat.
    pub reward_msat: u64,
    /// All fees, in msat.
    pub fee_msat: u64,
    /// Rewards less fees, in msat.
    pub gain_msat: i64,
}

/// Adds up the rounds of every peer; the first `warmup` rounds do not count as later.
#[must_use]
pub fn totals(rounds: &[RoundReport], warmup: usize) -> Vec<PeerTotal> {
    let count = rounds.first().map_or(0, |round| round.peers.len());
    let total = |peer: usize| {
        let all: Vec<&PeerRound> = rounds.iter().map(|round| &round.peers[peer]).collect();
        let scores: Vec<f64> = all.iter().filter_map(|r| r.score).collect();
        let accepted = |rounds: &[&PeerRound]| rounds.iter().filter(|r| r.accepted()).count();
        let mut refusals: Vec<(&'static str, usize)> = Vec::new();
        for round in all.iter().filter(|r| !r.accepted()) {
            match refusals.iter_mut().find(|(fate, _)| *fate == round.fate) {
                Some((_, count)) => *count += 1,
                None => refusals.push((round.fate, 1)),
            }
        }
        refusals.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        let (reward_msat, fee_msat) =
            (all.iter().map(|r| r.reward_msat).sum::<u64>(), all.iter().map(|r| r.fee_msat).sum::<u64>());
        let signed = |msat: u64| i64::try_from(msat).unwrap_or(i64::MAX);
        PeerTotal {
            peer: all[0].peer.clone(),
            score: scores.iter().sum::<f64>() / scores.len().max(1) as f64,
            accepted: accepted(&all),
            accepted_later: accepted(&all[warmup.min(all.len())..]),
            refusals,
            rating: all.last().map_or(0.0, |r| r.rating),
            reliability: all.last().map_or(0.0, |r| r.reliability),
            reward_msat,
            fee_msat,
            gain_msat: signed(reward_msat).saturating_sub(signed(fee_msat)),
        }
    };
    (0..count).map(total).collect()
}
