//! What the parties of an escrow say to each other, each as a request to the other ([`Request::Escrow`]).
//!
//! The payer locks money for the payee with Lightning payments that only preimages open, and a validator who is not paid
//! by them has the preimages. It signs the [`EscrowTerms`] beforehand, which name the hashes, and the [`EscrowVerdict`]
//! afterwards. A tranche is worth twice the one before it, so that any number of units is the sum of one set of tranches:
//! bit `i` of [`EscrowVerdict::earned`] is tranche `i`.
//!
//! A preimage that was used without a verdict that gives it out is misconduct of the validator, who alone had it:
//! [`Misconduct`].
//!
//! [`Request::Escrow`]: super::rpc::Request::Escrow

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::envelope::{Invalid, Payload, Signed};
use crate::hash::{Hash, ParseHexError, hex_text, parse_hex};
use crate::identity::{NodeId, bytes32};
use crate::msat::Msat;

mod lock;
mod message;
mod misconduct;

pub use lock::{HashLock, LockSecret};
pub use message::{EscrowMessage, MAX_INVOICE};
pub use misconduct::{Charge, Misconduct};

/// Tranches of one escrow at most: 4095 units. Some escrows must fit in the 50 payments that a channel carries at once.
pub const MAX_TRANCHES: usize = 12;
/// The shortest delta of an invoice: 38 blocks are lost to Lightning, 18 to acting in time, and some must be left.
pub const MIN_DELTA: u16 = 72;
/// The longest: with it some hops still fit in the 1008 blocks that payers allow.
pub const MAX_DELTA: u16 = 900;
/// The usual delta: a day.
pub const DELTA: u16 = 144;
/// The most that one escrow may lock: ten bitcoin.
const MAX_TOTAL: Msat = Msat(1_000_000_000_000);

/// The name of an escrow, drawn at random by its validator.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EscrowId(pub [u8; 16]);

impl fmt::Display for EscrowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex_text(&self.0))
    }
}

impl fmt::Debug for EscrowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EscrowId({self})")
    }
}

impl FromStr for EscrowId {
    type Err = ParseHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_hex(text).map(Self)
    }
}

impl Serialize for EscrowId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        bytes32::serialize(&self.0, self, serializer)
    }
}

impl<'de> Deserialize<'de> for EscrowId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bytes32::deserialize(deserializer, Self, "32 hexadecimal digits")
    }
}

/// What an escrow is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum EscrowKind {
    /// A worker's pledge to the validator: it goes back unless there was abuse.
    Bond,
    /// Pay of a sponsor for a worker, all or nothing.
    Reward,
    /// Pay of a sponsor for a worker, by units.
    Tranches,
}

/// What a validator offers to judge, signed by it: the hashes bind it, for it alone knows what opens them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EscrowTerms {
    /// The name of the escrow.
    pub id: EscrowId,
    /// What it is for.
    pub kind: EscrowKind,
    /// Whose money is locked: the worker of a bond, else the sponsor.
    pub payer: NodeId,
    /// Who gets what is earned: the validator of a bond, else the worker.
    pub payee: NodeId,
    /// What is locked to: one hash for each tranche, the smallest first.
    pub locks: Vec<HashLock>,
    /// The amount of the first tranche; each further one is twice the one before.
    pub unit: Msat,
    /// Blocks from the payment to its end, in the invoices.
    pub delta: u16,
    /// Digest of what is judged, and by what rules.
    pub subject: Hash,
    /// Wall time, in milliseconds since 1970.
    pub at_ms: u64,
}

impl EscrowTerms {
    /// The amount of a tranche; none beyond the last, or on overflow.
    #[must_use]
    pub fn amount(&self, tranche: usize) -> Option<Msat> {
        (tranche < self.locks.len()).then_some(())?;
        self.unit.checked_mul(1_u64.checked_shl(u32::try_from(tranche).ok()?)?)
    }

    /// All of it together; none on overflow.
    #[must_use]
    pub fn total(&self) -> Option<Msat> {
        self.unit.checked_mul(self.units())
    }

    /// Units in all tranches.
    #[must_use]
    pub fn units(&self) -> u64 {
        (1 << self.locks.len().min(MAX_TRANCHES)) - 1
    }

    /// The rules that tell the validator, who signs, from the others.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn check_signer(&self, validator: NodeId) -> Result<(), Invalid> {
        Invalid::unless(self.payer != validator, "payer", "is the validator")?;
        let is_bond = self.kind == EscrowKind::Bond;
        Invalid::unless(is_bond == (self.payee == validator), "payee", "the validator for a bond, and only then")
    }
}

impl Payload for EscrowTerms {
    const DOMAIN: &'static str = "escrow-terms";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 1024;

    fn check(&self) -> Result<(), Invalid> {
        let tranches = self.locks.len();
        let fits = match self.kind {
            EscrowKind::Bond | EscrowKind::Reward => tranches == 1,
            EscrowKind::Tranches => (2..=MAX_TRANCHES).contains(&tranches),
        };
        Invalid::unless(fits, "locks", "one, or 2 to 12 tranches")?;
        let different: BTreeSet<&HashLock> = self.locks.iter().collect();
        Invalid::unless(different.len() == tranches, "locks", "one twice")?;
        Invalid::unless(self.payer != self.payee, "payee", "is the payer")?;
        Invalid::unless(self.unit > Msat::ZERO, "unit", "nothing")?;
        Invalid::unless(self.total().is_some_and(|total| total <= MAX_TOTAL), "unit", "above ten bitcoin in all")?;
        Invalid::unless((MIN_DELTA..=MAX_DELTA).contains(&self.delta), "delta", "72 to 900 blocks")?;
        Invalid::unless(self.at_ms <= i64::MAX as u64, "at_ms", "above 2^63 - 1")
    }
}

/// How what was judged turned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum EscrowFinding {
    /// It is what was asked for, to some part at least.
    Accepted,
    /// It is not, and was honestly meant.
    Missed,
    /// It is malformed, replayed, or its proof failed.
    Abuse,
}

/// A validator's signed word on an escrow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EscrowVerdict {
    /// The name of the escrow.
    pub escrow: EscrowId,
    /// Digest of the signed terms.
    pub terms: Hash,
    /// What was found.
    pub finding: EscrowFinding,
    /// Units the payee gets: bit `i` is tranche `i`. Of a bond: 1 exactly after abuse.
    pub earned: u32,
    /// Digest of the evidence, from which the verdict can be found again.
    pub evidence: Hash,
    /// Wall time, in milliseconds since 1970.
    pub at_ms: u64,
}

impl EscrowVerdict {
    /// Whether it gives out a tranche.
    #[must_use]
    pub fn gives(&self, tranche: usize) -> bool {
        u32::try_from(tranche).is_ok_and(|tranche| self.earned.checked_shr(tranche).unwrap_or(0) & 1 == 1)
    }

    /// The rules that bind it to the terms it is about.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn check_against(&self, terms: &Signed<EscrowTerms>) -> Result<(), Invalid> {
        let about = terms.payload();
        Invalid::unless(self.escrow == about.id && self.terms == terms.digest(), "terms", "others")?;
        Invalid::unless(u64::from(self.earned) <= about.units(), "earned", "more than there is")?;
        let gives = self.earned > 0;
        let fits = match about.kind {
            EscrowKind::Bond => gives == (self.finding == EscrowFinding::Abuse),
            EscrowKind::Reward | EscrowKind::Tranches => gives == (self.finding == EscrowFinding::Accepted),
        };
        Invalid::unless(fits, "earned", "not what the finding says")
    }
}

impl Payload for EscrowVerdict {
    const DOMAIN: &'static str = "escrow-verdict";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 256;

    fn check(&self) -> Result<(), Invalid> {
        Invalid::unless(self.earned < 1 << MAX_TRANCHES, "earned", "above 4095")?;
        Invalid::unless(self.at_ms <= i64::MAX as u64, "at_ms", "above 2^63 - 1")
    }
}

/// Checks that a verdict is by the validator of the terms, and about them.
///
/// # Errors
/// The first rule broken.
pub fn check_verdict(verdict: &Signed<EscrowVerdict>, terms: &Signed<EscrowTerms>) -> Result<(), Invalid> {
    Invalid::unless(verdict.signer() == terms.signer(), "signer", "not the validator")?;
    verdict.payload().check_against(terms)
}
