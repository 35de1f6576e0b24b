//! Kinds and findings by the names that people and programs use.

use consortium_protocol::wire::escrow::{EscrowFinding, EscrowKind};
use serde::{Deserialize, Serialize};

/// What an escrow is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A worker's pledge to the validator.
    Bond,
    /// Pay for work, all or nothing.
    Reward,
    /// Pay for work, by units.
    Tranches,
}

/// How what was judged turned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Finding {
    /// It is what was asked for, to some part at least.
    Accepted,
    /// It is not, and was honestly meant.
    Missed,
    /// It is malformed, replayed, or its proof failed: a bond is forfeited.
    Abuse,
}

impl Kind {
    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bond => "bond",
            Self::Reward => "reward",
            Self::Tranches => "tranches",
        }
    }
}

impl Finding {
    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Missed => "missed",
            Self::Abuse => "abuse",
        }
    }
}

impl From<Kind> for EscrowKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Bond => Self::Bond,
            Kind::Reward => Self::Reward,
            Kind::Tranches => Self::Tranches,
        }
    }
}

impl From<EscrowKind> for Kind {
    fn from(kind: EscrowKind) -> Self {
        match kind {
            EscrowKind::Bond => Self::Bond,
            EscrowKind::Reward => Self::Reward,
            EscrowKind::Tranches => Self::Tranches,
        }
    }
}

impl From<Finding> for EscrowFinding {
    fn from(finding: Finding) -> Self {
        match finding {
            Finding::Accepted => Self::Accepted,
            Finding::Missed => Self::Missed,
            Finding::Abuse => Self::Abuse,
        }
    }
}

impl From<EscrowFinding> for Finding {
    fn from(finding: EscrowFinding) -> Self {
        match finding {
            EscrowFinding::Accepted => Self::Accepted,
            EscrowFinding::Missed => Self::Missed,
            EscrowFinding::Abuse => Self::Abuse,
        }
    }
}
