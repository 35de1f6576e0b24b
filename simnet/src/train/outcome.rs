//! What became of the updates of a round.

use consortium_node::training::gauntlet::{Evidence, Refusal, Showing, Verdict};
use serde::Serialize;

/// What becomes of a peer's update.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It was examined, and judged.
    Judged(Verdict),
    /// It was committed to after the deadline.
    Late,
    /// It is no update of this run.
    Malformed,
    /// What it was measured against was taken back.
    Reverted,
}

impl Fate {
    /// Whether it enters the aggregate.
    #[must_use]
    pub fn accepted(self) -> bool {
        matches!(self, Self::Judged(Verdict::Accepted(_)))
    }

    /// In a word or two.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Judged(Verdict::Accepted(_)) => "accepted",
            Self::Judged(Verdict::Refused(Refusal::NoScore)) => "no score",
            Self::Judged(Verdict::Refused(Refusal::Copy)) => "copy",
            Self::Judged(Verdict::Refused(Refusal::OutOfSync)) => "out of sync",
            Self::Judged(Verdict::Refused(Refusal::Harm)) => "harm",
            Self::Judged(Verdict::Refused(Refusal::BelowMargin)) => "below margin",
            Self::Late => "late",
            Self::Malformed => "malformed",
            Self::Reverted => "reverted",
        }
    }
}

/// What a round found out about a peer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// What was measured, if its update was examined.
    pub evidence: Option<Evidence>,
    /// What that says about the peer.
    #[serde(skip)]
    pub showing: Showing,
    /// What becomes of the update.
    pub fate: Fate,
}

impl Finding {
    /// Whether the update was examined in vain, and by its own fault. One that came too late was not looked at.
    #[must_use]
    pub fn costs_fee(&self) -> bool {
        !self.fate.accepted() && !matches!(self.fate, Fate::Late | Fate::Reverted)
    }
}
