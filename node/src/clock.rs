//! Wall-clock time, which is for signed facts and for people; everything inside the node runs on a clock that never
//! jumps. And whose wall clock is too far off to be believed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use consortium_protocol::identity::NodeId;

/// How far the wall clocks of two nodes may lie apart. It bounds how old a recorded heartbeat can be played back to
/// newcomers; machines that keep time over the network agree within a second.
pub const TOLERANCE: Duration = Duration::from_secs(120);
/// How often one node's clock is complained of.
const REMIND: Duration = Duration::from_secs(600);
/// How many nodes' clocks are complained of at a time.
const MAX_REMEMBERED: usize = 256;

/// Time since 1970.
#[must_use]
pub fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Milliseconds since 1970.
#[must_use]
pub fn wall_ms() -> u64 {
    u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX)
}

/// What to do with a fact, by the wall time its signer put on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeliness {
    /// Within [`TOLERANCE`].
    Timely,
    /// To be dropped, and its signer was named of late.
    Off,
    /// To be dropped, and worth telling: how far, and whether it lies ahead of this node's time.
    Tell {
        /// The distance.
        by: Duration,
        /// Ahead, or behind.
        ahead: bool,
    },
}

/// Judges wall times of other nodes, and says no more than once in ten minutes that one is off.
#[derive(Debug, Default)]
pub struct Skew {
    told: BTreeMap<NodeId, Instant>,
}

impl Skew {
    /// Judges what `node` says was sent at `sent_ms`, when it is `here_ms` (both since 1970) and `now` on this node.
    pub fn judge(&mut self, node: NodeId, sent_ms: u64, here_ms: u64, now: Instant) -> Timeliness {
        let by = Duration::from_millis(sent_ms.abs_diff(here_ms));
        if by <= TOLERANCE {
            return Timeliness::Timely;
        }
        self.told.retain(|_, told| now.duration_since(*told) < REMIND);
        if self.told.contains_key(&node) || self.told.len() >= MAX_REMEMBERED {
            return Timeliness::Off;
        }
        self.told.insert(node, now);
        Timeliness::Tell { by, ahead: sent_ms > here_ms }
    }
}

#[cfg(test)]
mod tests {
    use consortium_protocol::identity::RootKey;

    use super::*;

    const HERE: u64 = 1_800_000_000_000;

    #[test]
    fn only_times_within_the_tolerance_are_timely() {
        let (node, now, edge) = (RootKey::from_seed([1; 32]).node_id(), Instant::now(), 120_000);
        let judge = |sent| Skew::default().judge(node, sent, HERE, now);
        assert_eq!(judge(HERE - edge), Timeliness::Timely);
        assert_eq!(judge(HERE + edge), Timeliness::Timely);
        assert_eq!(judge(HERE + edge + 1), Timeliness::Tell { by: TOLERANCE + Duration::from_millis(1), ahead: true });
        assert!(matches!(judge(0), Timeliness::Tell { ahead: false, .. }));
        assert!(matches!(judge(u64::MAX), Timeliness::Tell { ahead: true, .. }));
    }

    #[test]
    fn one_node_is_named_once_in_a_while_and_a_crowd_does_not_fill_the_memory() {
        let (mut skew, start) = (Skew::default(), Instant::now());
        let node = |seed: u16| {
            let mut bytes = [7; 32];
            bytes[..2].copy_from_slice(&seed.to_le_bytes());
            RootKey::from_seed(bytes).node_id()
        };
        assert!(matches!(skew.judge(node(0), 0, HERE, start), Timeliness::Tell { .. }));
        assert_eq!(skew.judge(node(0), 0, HERE, start), Timeliness::Off);
        assert!(matches!(skew.judge(node(0), 0, HERE, start + REMIND), Timeliness::Tell { .. }));
        for other in 1..400 {
            skew.judge(node(other), 0, HERE, start + REMIND);
        }
        assert_eq!(skew.told.len(), MAX_REMEMBERED);
    }
}
