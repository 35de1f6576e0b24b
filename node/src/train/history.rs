//! What the log of a run says, in short; and for how long updates are kept.

use std::collections::VecDeque;

use consortium_protocol::Hash;
use consortium_protocol::wire::train::Entry;

use super::view::RoundLine;

/// Rounds that are shown at most: the newest.
const LINES: usize = 256;
/// Rounds whose updates are kept in any case, for those that apply them late.
const KEPT_ROUNDS: u64 = 4;
/// All updates of a run that are kept besides, in bytes: with them a run can be replayed.
const KEPT_BYTES: u64 = 8 << 30;

/// The rounds of a run so far.
#[derive(Debug, Default)]
pub(super) struct History {
    lines: VecDeque<RoundLine>,
    /// Round, name and length of each update that may be here, the oldest first.
    updates: VecDeque<(u64, Hash, u64)>,
    bytes: u64,
    newest: u64,
}

impl History {
    /// Adds the next entry.
    pub(super) fn add(&mut self, entry: &Entry) {
        let before = self.lines.back().map(|line| line.at_ms);
        self.lines.push_back(RoundLine::of(entry, before));
        if self.lines.len() > LINES {
            self.lines.pop_front();
        }
        self.newest = entry.record.round;
        for reveal in &entry.body.reveals {
            let said = reveal.payload();
            self.updates.push_back((said.round, said.update, said.bytes));
            self.bytes = self.bytes.saturating_add(said.bytes);
        }
    }

    /// The newest rounds, the oldest first.
    pub(super) fn lines(&self) -> Vec<RoundLine> {
        self.lines.iter().cloned().collect()
    }

    /// The mean over what is shown, in seconds; 0 before there are two rounds.
    pub(super) fn seconds_per_round(&self) -> f64 {
        let (Some(first), Some(last)) = (self.lines.front(), self.lines.back()) else { return 0.0 };
        let rounds = self.lines.len().saturating_sub(1);
        if rounds == 0 { 0.0 } else { last.at_ms.saturating_sub(first.at_ms) as f64 / 1e3 / rounds as f64 }
    }

    /// Updates that are not kept any longer: the oldest, if all take too much room.
    pub(super) fn forget_updates(&mut self) -> Vec<Hash> {
        let mut gone = Vec::new();
        while let Some((round, update, bytes)) = self.updates.front().copied() {
            if self.bytes <= KEPT_BYTES || round + KEPT_ROUNDS > self.newest {
                break;
            }
            self.updates.pop_front();
            self.bytes = self.bytes.saturating_sub(bytes);
            gone.push(update);
        }
        gone
    }
}
