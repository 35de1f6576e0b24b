//! What is said within a round.

use serde::{Deserialize, Serialize};

use super::{MAX_BATCHES, MAX_PEERS, Nonce, Pledged, Refusal, RunId, rises};
use crate::envelope::{ENVELOPE_BYTES, Invalid, Payload, Signed};
use crate::hash::Hash;
use crate::identity::NodeId;

/// The highest loss there is, in billionths of a nat: a thousand nats.
const MAX_LOSS: u64 = 1_000_000_000_000;

/// A peer (the signer) comes, or goes: what it said last in the latest round counts. It takes effect with the record of
/// that round or of one of the two after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// The run.
    pub run: RunId,
    /// The round in which it says so.
    pub round: u64,
    /// Whether it stays.
    pub stays: bool,
    /// That a validator holds its bond, where the run wants one of who comes; else none, and it is not written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bond: Option<Signed<Pledged>>,
}

impl Payload for Join {
    const DOMAIN: &'static str = "train-join";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 128 + Pledged::MAX_BYTES + ENVELOPE_BYTES;

    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// The signer would be a validator in the place of one that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// The run.
    pub run: RunId,
    /// The round in which it says so; to be said again.
    pub round: u64,
}

impl Payload for Candidate {
    const DOMAIN: &'static str = "train-candidate";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 128;

    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// A peer (the signer) has trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    /// The run.
    pub run: RunId,
    /// The round.
    pub round: u64,
    /// [`commitment`](super::commitment) to its update.
    pub commitment: Hash,
    /// State hash of the parameters it began from.
    pub base: Hash,
}

impl Payload for Commit {
    const DOMAIN: &'static str = "train-commit";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 256;

    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// What a peer (the signer) committed to; from now on it gives the update to whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reveal {
    /// The run.
    pub run: RunId,
    /// The round.
    pub round: u64,
    /// BLAKE3 of the update's bytes.
    pub update: Hash,
    /// How many there are.
    pub bytes: u64,
}

impl Payload for Reveal {
    const DOMAIN: &'static str = "train-reveal";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 256;

    fn check(&self) -> Result<(), Invalid> {
        Invalid::unless(self.bytes > 0, "bytes", "none")
    }
}

/// A validator (the signer) opens its nonce for the held-out batches of a round: nobody can commit any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalNonce {
    /// The run.
    pub run: RunId,
    /// The round.
    pub round: u64,
    /// What it locked in the round before.
    pub nonce: Nonce,
}

impl Payload for EvalNonce {
    const DOMAIN: &'static str = "train-eval-nonce";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 160;

    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// The parameters that the signer holds after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateHash {
    /// The run.
    pub run: RunId,
    /// The round whose record was carried out.
    pub round: u64,
    /// Hash of the parameters.
    pub state: Hash,
}

impl Payload for StateHash {
    const DOMAIN: &'static str = "train-state";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 160;

    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// Mean loss of a batch in billionths of a nat per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Loss(pub u64);

impl Loss {
    /// A loss in nats; `None` if it is no positive number, or above a thousand.
    #[must_use]
    pub fn from_nats(nats: f64) -> Option<Self> {
        let scaled = (nats * 1e9).round();
        (scaled >= 1.0 && scaled <= MAX_LOSS as f64).then_some(Self(scaled as u64))
    }

    /// In nats.
    #[must_use]
    pub fn nats(self) -> f64 {
        self.0 as f64 / 1e9
    }
}

/// The loss of a batch before and after an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LossPair(pub Loss, pub Loss);

impl LossPair {
    fn check(&self) -> Result<(), Invalid> {
        let sound = |loss: Loss| (1..=MAX_LOSS).contains(&loss.0);
        Invalid::unless(sound(self.0) && sound(self.1), "loss", "zero, or above a thousand nats")
    }
}

/// What a validator measured of one update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measure {
    /// BLAKE3 of the update.
    pub update: Hash,
    /// On batches of the peer's own rows, as many as the run wants.
    pub assigned: Vec<LossPair>,
    /// On batches of rows that nobody was to train on.
    pub unassigned: Vec<LossPair>,
    /// On held-out batches.
    pub held_out: Vec<LossPair>,
    /// How far the peer's parameters were from the common ones, in millionths of an outer step.
    pub drift: u64,
    /// Greatest part in common with an update that was committed to earlier, in millionths.
    pub overlap: u32,
    /// Whether that makes it a copy.
    pub copy: bool,
    /// Digest of the norms of its tensors.
    pub norms: Hash,
}

impl Measure {
    /// All loss pairs.
    pub fn pairs(&self) -> impl Iterator<Item = &LossPair> {
        self.assigned.iter().chain(&self.unassigned).chain(&self.held_out)
    }

    fn check(&self) -> Result<(), Invalid> {
        let kinds = [&self.assigned, &self.unassigned, &self.held_out];
        Invalid::unless(kinds.iter().all(|kind| kind.len() <= MAX_BATCHES), "batches", "more than 4")?;
        Invalid::unless(self.overlap <= 1_000_000, "overlap", "above 1")?;
        Invalid::unless(self.drift <= 1_000_000_000_000, "drift", "above a million steps")?;
        self.pairs().try_for_each(LossPair::check)
    }
}

/// What a validator found out about one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finding {
    /// It has an update.
    Measured(Measure),
    /// It has none that could be measured.
    Refused(Refusal),
}

/// Hashes of the nonces that a validator will open in the next round; see [`nonce_lock`](super::nonce_lock).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locks {
    /// For the assignment of the round after the next; its card of the next round opens it.
    pub assignment: Hash,
    /// For the held-out batches of the next round; an [`EvalNonce`] opens it.
    pub evaluation: Hash,
}

/// A validator's (the signer's) account of a round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoreCard {
    /// The run.
    pub run: RunId,
    /// The round.
    pub round: u64,
    /// State hash of the parameters that it measured with.
    pub base: Hash,
    /// Loss on the held-out batches before and after the last aggregate; none if there was no aggregate to judge.
    pub aggregate: Vec<LossPair>,
    /// Whose evaluation nonces it drew the held-out batches with: in ascending order.
    pub drawn_with: Vec<NodeId>,
    /// For every peer of the round, in ascending order.
    pub findings: Vec<(NodeId, Finding)>,
    /// Its nonce for the assignment of the next round; none if it locked none.
    pub opened: Option<Nonce>,
    /// What it will open in the next round.
    pub locks: Locks,
}

impl ScoreCard {
    /// What it says of a peer.
    #[must_use]
    pub fn finding(&self, peer: NodeId) -> Option<&Finding> {
        let place = self.findings.binary_search_by_key(&peer, |(peer, _)| *peer).ok()?;
        Some(&self.findings[place].1)
    }
}

impl Payload for ScoreCard {
    const DOMAIN: &'static str = "train-card";
    const VERSION: u16 = 1;
    // 64 findings with 12 pairs of at most 19 bytes, two hashes and names; within what gossip carries.
    const MAX_BYTES: usize = 40 * 1024;

    fn check(&self) -> Result<(), Invalid> {
        Invalid::unless(self.findings.len() <= MAX_PEERS, "findings", "more than 64")?;
        Invalid::unless(rises(self.findings.iter().map(|(peer, _)| peer)), "findings", "not in ascending order")?;
        Invalid::unless(self.aggregate.len() <= MAX_BATCHES, "aggregate", "more than 4")?;
        Invalid::unless(self.drawn_with.len() <= super::MAX_VALIDATORS, "drawn_with", "more than 9")?;
        Invalid::unless(rises(&self.drawn_with), "drawn_with", "not in ascending order")?;
        self.aggregate.iter().try_for_each(LossPair::check)?;
        self.findings.iter().try_for_each(|(_, finding)| match finding {
            Finding::Measured(measure) => measure.check(),
            Finding::Refused(refusal) => Invalid::unless(refusal.is_observed(), "finding", "not for a card to say"),
        })
    }
}
