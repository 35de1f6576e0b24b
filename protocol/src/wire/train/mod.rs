//! Training together: what sponsors, peers and validators of a run say to each other.
//!
//! A run is named by the digest of its signed specification ([`RunSpec`]). Each of its rounds ends with a record
//! ([`Record`]) that a quorum of the validators countersigned ([`Entry`]); records form a chain from which scores and
//! pay can be found again by anyone. The rules of the machines that use these are in `consortium-training`'s `rounds`.
//!
//! | said by | what | when |
//! |---|---|---|
//! | validator | [`Pledged`] | where the run wants bonds: that it holds one, for a peer to join with |
//! | peer | [`Join`] | before it takes part, and again when it was dropped |
//! | peer | [`Commit`] | when its update is ready: fixes it and hides it |
//! | peer | [`Reveal`] | when nobody can commit any more |
//! | validator | [`EvalNonce`] | when nobody can commit any more: draws the held-out batches |
//! | validator | [`ScoreCard`] | what it measured |
//! | lead | [`Proposal`] | the record it would have |
//! | validator | [`Vote`], [`Seal`], [`NewView`] | agreement on one record |
//! | anyone | [`StateHash`] | the parameters it holds after a round |
//!
//! Numbers that validators measure are whole: one value has one encoding, there is no infinity, and a median is the same
//! on every machine. A [`Loss`] counts billionths of a nat, which is far below what machines differ by (1e-4).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Message;
use crate::envelope::{Invalid, Signed};
use crate::hash::Hash;

mod agreement;
mod beacon;
mod bond;
mod record;
mod round;
mod run;
mod talk;

pub use agreement::{Certified, Locked, NewView, Proposal, Seal, Vote};
pub use beacon::{Beacon, Nonce, Purpose, beacon, commitment, nonce_lock};
pub use bond::Pledged;
pub use record::{Ahead, Body, Candidacy, Entry, Fate, Member, Outcome, Record, Refusal, Validator};
pub use round::{
    Candidate, Commit, EvalNonce, Finding, Join, Locks, Loss, LossPair, Measure, Reveal, ScoreCard, StateHash,
};
pub use run::{Batches, DataSpec, HyperParameters, ModelSpec, PaySchedule, PayWay, Phases, RunSpec};
pub use talk::{StateFile, TrainAnswer, TrainGossip, TrainRequest, pledge_subject, run_key, run_topic};

/// Peers of one run at most.
pub const MAX_PEERS: usize = 64;
/// Peers that a record keeps accounts of at most: also of some that left.
pub const MAX_ACCOUNTS: usize = 2 * MAX_PEERS;
/// Validators of one run at most.
pub const MAX_VALIDATORS: usize = 9;
/// Nodes that wait to become validators at most.
pub const MAX_CANDIDATES: usize = 16;
/// Batches of one kind in a measurement at most.
pub const MAX_BATCHES: usize = 4;
/// Certified records that are said together with the first, as far as a message has room.
pub const MAX_NEXT: usize = 63;

/// Name of a run: the digest of its signed [`RunSpec`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub Hash);

impl RunId {
    /// The name of the run that `spec` describes.
    #[must_use]
    pub fn of(spec: &Signed<RunSpec>) -> Self {
        Self(spec.digest())
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RunId({}..)", self.0.short())
    }
}

/// A number that is neither infinite nor undefined.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Finite(f64);

// Undefined numbers, the only ones that differ from themselves, are kept out.
impl Eq for Finite {}

impl Finite {
    /// `value`, if it is finite; negative zero becomes zero.
    #[must_use]
    pub fn new(value: f64) -> Option<Self> {
        value.is_finite().then_some(Self(value + 0.0))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }

    /// Whether it is nothing: a field that may be left out is then not written.
    fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

impl TryFrom<f64> for Finite {
    type Error = Invalid;

    fn try_from(value: f64) -> Result<Self, Invalid> {
        Self::new(value).ok_or(Invalid::new("number", "not finite"))
    }
}

impl From<Finite> for f64 {
    fn from(value: Finite) -> Self {
        value.0
    }
}

/// What the machines of one run say to each other.
///
/// All but [`Proposal`], [`NewView`] and entries are small enough for gossip; these three travel by request or stream
/// to those who need them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrainMessage {
    /// A peer comes or goes.
    Join(Signed<Join>),
    /// A node would be a validator.
    Candidate(Signed<Candidate>),
    /// A peer's update is fixed.
    Commit(Signed<Commit>),
    /// And this is it.
    Reveal(Signed<Reveal>),
    /// A part of the beacon of held-out batches.
    EvalNonce(Signed<EvalNonce>),
    /// What a validator measured.
    Card(Signed<ScoreCard>),
    /// The record a lead would have.
    Proposal(Signed<Proposal>),
    /// The first word on a record.
    Vote(Signed<Vote>),
    /// The last.
    Seal(Signed<Seal>),
    /// The lead is to change.
    NewView(Signed<NewView>),
    /// A certified record, and at most [`MAX_NEXT`] of those that follow it, one after the other.
    Entries(Box<Entry>, Vec<Entry>),
    /// The parameters a node holds.
    State(Signed<StateHash>),
    /// Please send the certified record of this round, and what there is of those after it.
    Ask {
        /// The run.
        run: RunId,
        /// The round.
        round: u64,
    },
}

impl TrainMessage {
    /// The run it is about.
    #[must_use]
    pub fn run(&self) -> RunId {
        match self {
            Self::Join(s) => s.payload().run,
            Self::Candidate(s) => s.payload().run,
            Self::Commit(s) => s.payload().run,
            Self::Reveal(s) => s.payload().run,
            Self::EvalNonce(s) => s.payload().run,
            Self::Card(s) => s.payload().run,
            Self::Proposal(s) => s.payload().record.run,
            Self::Vote(s) => s.payload().run,
            Self::Seal(s) => s.payload().run,
            Self::NewView(s) => s.payload().run,
            Self::Entries(entry, _) => entry.record.run,
            Self::State(s) => s.payload().run,
            Self::Ask { run, .. } => *run,
        }
    }

    /// The round it is about, or the first of them.
    #[must_use]
    pub fn round(&self) -> u64 {
        match self {
            Self::Join(s) => s.payload().round,
            Self::Candidate(s) => s.payload().round,
            Self::Commit(s) => s.payload().round,
            Self::Reveal(s) => s.payload().round,
            Self::EvalNonce(s) => s.payload().round,
            Self::Card(s) => s.payload().round,
            Self::Proposal(s) => s.payload().record.round,
            Self::Vote(s) => s.payload().round,
            Self::Seal(s) => s.payload().round,
            Self::NewView(s) => s.payload().round,
            Self::Entries(entry, _) => entry.record.round,
            Self::State(s) => s.payload().round,
            Self::Ask { round, .. } => *round,
        }
    }

    /// Whether gossip can carry it.
    #[must_use]
    pub fn is_small(&self) -> bool {
        !matches!(self, Self::Proposal(_) | Self::NewView(_) | Self::Entries(..))
    }
}

impl Message for TrainMessage {
    const MAX_BYTES: usize = <NewView as crate::envelope::Payload>::MAX_BYTES + 1024;

    fn check(&self) -> Result<(), Invalid> {
        match self {
            Self::Entries(entry, next) => check_entries(entry, next),
            // Signatures and payload rules were checked while reading.
            _ => Ok(()),
        }
    }
}

const _: () = assert!(Entry::MAX_BYTES + 64 <= TrainMessage::MAX_BYTES);

/// Bounds and order of entries that are said together.
fn check_entries(first: &Entry, next: &[Entry]) -> Result<(), Invalid> {
    Invalid::unless(next.len() <= MAX_NEXT, "entries", "too many")?;
    first.check()?;
    for (place, entry) in (1..).zip(next) {
        entry.check()?;
        let follows =
            entry.record.run == first.record.run && entry.record.round.checked_sub(place) == Some(first.record.round);
        Invalid::unless(follows, "entries", "not one after the other")?;
    }
    Ok(())
}

/// Whether `items` rise strictly.
fn rises<T: Ord>(items: impl IntoIterator<Item = T>) -> bool {
    let mut last = None;
    items.into_iter().all(|item| {
        let rises = last.as_ref().is_none_or(|last| *last < item);
        last = Some(item);
        rises
    })
}

/// The bound on wall times.
fn check_time(at_ms: u64, field: &'static str) -> Result<(), Invalid> {
    Invalid::unless(at_ms <= i64::MAX as u64, field, "above 2^63 - 1")
}
