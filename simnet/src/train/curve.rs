//! Held-out loss over a run, by rounds and by the time that they would take.

use serde::Serialize;

use super::report::RoundReport;

/// What a peer sends and receives in a second, in bits: the links of Covenant-72B (arXiv 2603.08163).
const UP: f64 = 110e6;
const DOWN: f64 = 500e6;

/// Held-out loss over a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Curve {
    /// What was run.
    pub name: String,
    /// The loss after each round.
    pub points: Vec<Point>,
}

/// Where a run stands after a round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Rounds done.
    pub round: u64,
    /// What they take if each peer has a core and a link of its own: local steps as they were measured, and the exchange as it
    /// is computed, after them or beside those of the next round. Who judges does so meanwhile or after, and is not counted.
    pub seconds: f64,
    /// Loss on the rows that the run is followed on, nats per token.
    pub loss: f64,
}

impl Curve {
    /// A run at its beginning.
    pub(super) fn begin(name: &str, loss: f64) -> Self {
        Self { name: name.to_owned(), points: vec![Point { round: 0, seconds: 0.0, loss }] }
    }

    /// Adds a round: the seconds of a peer's local steps and of the exchange, and the loss after it.
    pub(super) fn push(&mut self, seconds: f64, loss: f64) {
        let (round, before) = self.points.last().map_or((0, 0.0), |point| (point.round, point.seconds));
        self.points.push(Point { round: round + 1, seconds: before + seconds, loss });
    }

    /// Of a run that was played, from the loss before it; `overlap` tells whether peers train while updates travel.
    #[must_use]
    pub fn of(name: &str, before: f64, rounds: &[RoundReport], overlap: bool) -> Self {
        let mut curve = Self::begin(name, before);
        for round in rounds {
            let (steps, exchange) = (round.peer_seconds, round.exchange_seconds);
            curve.push(if overlap { steps.max(exchange) } else { steps + exchange }, round.held_out_loss);
        }
        curve
    }

    /// The loss at the end.
    #[must_use]
    pub fn end(&self) -> f64 {
        self.points.last().map_or(f64::NAN, |point| point.loss)
    }

    /// The seconds at the end.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.points.last().map_or(0.0, |point| point.seconds)
    }
}

/// Seconds in which each of `peers` sends an update of so many bytes to every other one.
#[must_use]
pub fn exchange_seconds(peers: usize, bytes: usize) -> f64 {
    peers.saturating_sub(1) as f64 * bytes as f64 * 8.0 / UP.min(DOWN)
}
