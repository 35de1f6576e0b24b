//! Bans: how long a node is shut out whose fraud or equivocation this node has verified.

use consortium_protocol::NodeId;
use serde::{Deserialize, Serialize};

use super::evidence::Evidence;

const HOUR_MS: u64 = 3600 * 1000;
/// Doublings after which a ban grows no more: 30 days times 4096, longer than any node lives.
const MAX_DOUBLINGS: u32 = 12;

/// How often a node was shut out, and until when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ban {
    /// How often.
    pub times: u32,
    /// Until when, the last time, in milliseconds since 1970.
    pub until_ms: Option<u64>,
}

impl Ban {
    /// Whether the node is shut out at this time.
    #[must_use]
    pub fn holds(&self, now_ms: u64) -> bool {
        self.until_ms.is_some_and(|until| now_ms < until)
    }
}

/// The length of the ban that follows `before` earlier ones, in milliseconds: an hour, a day, 7 days, 30 days, and from
/// then on twice as long each time.
#[must_use]
pub fn period_ms(before: u32) -> u64 {
    match before {
        0 => HOUR_MS,
        1 => 24 * HOUR_MS,
        2 => 7 * 24 * HOUR_MS,
        _ => (30 * 24 * HOUR_MS) << (before - 3).min(MAX_DOUBLINGS),
    }
}

/// The bans that follow from the frauds and equivocations which `me` has verified, in the order of their times: each begins one, unless
/// it was found during one. What is found then is of the time before, and no repetition.
pub(crate) fn ban(counted: &[&Evidence], me: &NodeId) -> Ban {
    let mut offences: Vec<u64> =
        counted.iter().filter(|piece| piece.signer == *me && piece.finding.bans()).map(|piece| piece.at_ms).collect();
    offences.sort_unstable();
    offences.into_iter().fold(Ban::default(), |ban, at_ms| match ban.holds(at_ms) {
        true => ban,
        false => Ban { times: ban.times + 1, until_ms: Some(at_ms.saturating_add(period_ms(ban.times))) },
    })
}
