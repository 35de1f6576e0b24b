//! Whose word counts, and how much. The formula is in [`crate::reputation`].

use std::collections::BTreeMap;

use consortium_protocol::NodeId;

use super::evidence::Evidence;
use super::score::{NEWCOMER, PRIOR, Score, counted, hearsay, score, sums};

/// How much the word of those counts of whom this node knows by others alone.
pub const SECOND_HAND: f64 = 0.5;

/// The trust in auditors, 0 to 1; 0 for all that are not listed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trust(BTreeMap<NodeId, f64>);

impl Trust {
    /// The trust in one node.
    #[must_use]
    pub fn of(&self, node: &NodeId) -> f64 {
        self.0.get(node).copied().unwrap_or_default()
    }
}

/// A score as trust: how far it lies above a newcomer's.
fn above_newcomer(value: f64) -> f64 {
    ((value - NEWCOMER) / (1.0 - NEWCOMER)).max(0.0)
}

/// Whether this node has proof of its own that the word of this one is worth nothing.
fn disgraced(score: &Score) -> bool {
    score.lied || score.ban.until_ms.is_some()
}

/// The trust that `me` has in the subjects of all this evidence.
#[must_use]
pub fn trust(evidence: &BTreeMap<NodeId, Vec<Evidence>>, now_ms: u64, me: &NodeId) -> Trust {
    let nobody = |_: &NodeId| 0.0;
    let alone: BTreeMap<NodeId, Score> =
        evidence.iter().map(|(node, about)| (*node, score(about, now_ms, me, &nobody))).collect();
    let first: BTreeMap<NodeId, f64> = alone
        .iter()
        .map(|(node, score)| (*node, if disgraced(score) { 0.0 } else { above_newcomer(score.value) }))
        .collect();
    let first_hand = |node: &NodeId| first.get(node).copied().unwrap_or_default();
    let both = evidence.iter().filter(|(node, _)| *node != me && !alone.get(node).is_some_and(disgraced)).map(
        |(node, about)| {
            let sums = sums(&counted(about, now_ms), now_ms);
            let own = sums.get(me).copied().unwrap_or_default();
            let others = hearsay(&sums, me, &first_hand);
            let good = PRIOR.0 + own.0 + others.0;
            let bad = PRIOR.1 + own.1 + others.1;
            let second = SECOND_HAND * above_newcomer(good / (good + bad));
            (*node, first_hand(node).max(second))
        },
    );
    Trust(both.filter(|(_, trust)| *trust > 0.0).collect())
}
