//! Channels that could not be opened: whom to leave alone, and for how long.

use std::collections::BTreeMap;

/// Pause after the first failure, in milliseconds; each further one doubles it.
const FIRST_MS: u64 = 5 * 60 * 1000;
/// The longest pause, in milliseconds; as long after its pause a failure is forgotten.
const LONGEST_MS: u64 = 24 * 3600 * 1000;

/// Peers with which no channel could be opened lately, so that one that is away does not keep the others waiting. It is
/// kept in memory alone.
#[derive(Clone, Debug, Default)]
pub struct Failures(BTreeMap<String, Failure>);

#[derive(Clone, Copy, Debug)]
struct Failure {
    times: u32,
    until_ms: u64,
}

impl Failures {
    /// Notes that a channel with a peer could not be opened at a time, in milliseconds.
    pub fn note(&mut self, peer: &str, now_ms: u64) {
        self.0.retain(|_, failure| failure.until_ms.saturating_add(LONGEST_MS) > now_ms);
        let times = self.0.get(peer).map_or(0, |failure| failure.times).saturating_add(1);
        let pause_ms = 1_u64.checked_shl(times - 1).map_or(LONGEST_MS, |factor| FIRST_MS.saturating_mul(factor));
        let until_ms = now_ms.saturating_add(pause_ms.min(LONGEST_MS));
        self.0.insert(peer.to_owned(), Failure { times, until_ms });
    }

    /// Forgets the failures of a peer with which a channel was opened.
    pub fn forget(&mut self, peer: &str) {
        self.0.remove(peer);
    }

    /// At which of its addresses a peer is to be tried, each in its turn; none while it is left alone, or if it has none.
    #[must_use]
    pub fn address(&self, peer: &str, addresses: &[String], now_ms: u64) -> Option<String> {
        let failure = self.0.get(peer);
        if failure.is_some_and(|failure| now_ms < failure.until_ms) {
            return None;
        }
        let turn = usize::try_from(failure.map_or(0, |failure| failure.times)).unwrap_or(0);
        addresses.get(turn.checked_rem(addresses.len())?).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_fails_is_left_alone_for_longer_and_longer() {
        let mut failures = Failures::default();
        let addresses = ["h:1", "h:2"].map(str::to_owned);
        let at = |failures: &Failures, peer: &str, now_ms| failures.address(peer, &addresses, now_ms);
        assert_eq!(at(&failures, "a", 0).as_deref(), Some("h:1"));
        failures.note("a", 0);
        assert_eq!(at(&failures, "a", FIRST_MS - 1), None);
        assert_eq!(at(&failures, "b", 0).as_deref(), Some("h:1"), "others are not kept waiting");
        assert_eq!(at(&failures, "a", FIRST_MS).as_deref(), Some("h:2"), "its next address");
        failures.note("a", FIRST_MS);
        assert_eq!(at(&failures, "a", 3 * FIRST_MS - 1), None);
        assert_eq!(at(&failures, "a", 3 * FIRST_MS).as_deref(), Some("h:1"));
        for _ in 0..80 {
            failures.note("a", 0);
        }
        assert_eq!(at(&failures, "a", LONGEST_MS - 1), None);
        assert!(at(&failures, "a", LONGEST_MS).is_some());
        failures.forget("a");
        assert_eq!(at(&failures, "a", 0).as_deref(), Some("h:1"));
        assert_eq!(failures.address("a", &[], 0), None);
        failures.note("a", 0);
        failures.note("b", 3 * LONGEST_MS);
        assert_eq!(failures.0.len(), 1, "what is long ago is forgotten");
    }
}
