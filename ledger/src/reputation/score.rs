//! The score: a pure function of evidence, the time and whom to trust. The formula is in [`crate::reputation`].

use std::collections::{BTreeMap, BTreeSet};

use consortium_protocol::{Hash, NodeId, merkle};
use serde::{Deserialize, Serialize};

use super::ban::{self, Ban};
use super::evidence::{Evidence, Finding};

/// A day, in milliseconds.
const DAY_MS: u64 = 24 * 3600 * 1000;
/// The prior: what a node of which nothing is known counts as having passed and failed. A newcomer's score is 0.2.
pub const PRIOR: (f64, f64) = (1.0, 4.0);
/// The score of a newcomer: `PRIOR.0 / (PRIOR.0 + PRIOR.1)`.
pub const NEWCOMER: f64 = 0.2;
/// After this time evidence counts half.
pub const HALF_LIFE_MS: u64 = 14 * DAY_MS;
/// After this time evidence counts nothing and is dropped.
pub const KEEP_MS: u64 = 90 * DAY_MS;
/// Evidence from further ahead than this counts nothing yet.
pub const SKEW_MS: u64 = 10 * 60 * 1000;
/// The most that one other auditor's word on one node weighs.
pub const AUDITOR_CAP: f64 = 5.0;
/// What others say weighs at most this part of what this node saw itself.
pub const HEARSAY: f64 = 0.5;
/// What accusations by others may weigh beyond that.
pub const ALARM: f64 = 1.0;

impl Finding {
    /// What it adds to the good and to the bad side.
    #[must_use]
    pub const fn weight(self) -> (f64, f64) {
        match self {
            Self::Pass => (1.0, 0.0),
            Self::Inconclusive => (0.0, 0.125),
            Self::Withheld => (0.0, 4.0),
            Self::Fraud | Self::FalseWord | Self::Equivocation => (0.0, 20.0),
        }
    }

    /// Whether the node failed an audit.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::Fraud | Self::Withheld)
    }

    /// Whether a node is shut out for it that was found to have done it.
    #[must_use]
    pub const fn bans(self) -> bool {
        matches!(self, Self::Fraud | Self::Equivocation)
    }
}

/// A node's score, and what it came from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Above 0, below 1; 0 while the node is banned.
    pub value: f64,
    /// The good side: prior and decayed evidence.
    pub alpha: f64,
    /// The bad side.
    pub beta: f64,
    /// Audits passed, by the word of anybody else that still counts.
    pub passed: u64,
    /// Audits failed (fraud, or withheld), likewise.
    pub failed: u64,
    /// Audits passed by this node's own word.
    pub own_passed: u64,
    /// Audits failed by this node's own word.
    pub own_failed: u64,
    /// When it last failed an audit by this node's own word, in milliseconds since 1970.
    pub own_failed_ms: Option<u64>,
    /// Whether this node found it to have spread false accusations.
    pub lied: bool,
    /// How often it was shut out for fraud or equivocation that this node verified, and until when.
    pub ban: Ban,
    /// The time for which this holds, in milliseconds since 1970.
    pub at_ms: u64,
    /// How many pieces of evidence were given, whether they counted or not.
    pub evidence: u64,
    /// Root over that evidence: [`root`].
    pub evidence_root: Hash,
}

/// The Merkle root over the digests of signed evidence, sorted, each once: leaf `n` is
/// [`merkle::leaf_hash`] of the 32 bytes of the `n`th digest.
#[must_use]
pub fn root(digests: impl IntoIterator<Item = Hash>) -> Hash {
    let sorted: BTreeSet<Hash> = digests.into_iter().collect();
    let leaves: Vec<Hash> = sorted.iter().map(|digest| merkle::leaf_hash(digest.as_bytes())).collect();
    merkle::root(&leaves)
}

/// How much evidence of this age counts: 1 at once, half after each [`HALF_LIFE_MS`], on a straight line in between,
/// so that nothing but exact and correctly rounded operations are needed.
#[must_use]
pub fn decay(age_ms: u64) -> f64 {
    if age_ms >= KEEP_MS {
        return 0.0;
    }
    let within = (age_ms % HALF_LIFE_MS) as f64 / HALF_LIFE_MS as f64;
    (1.0 - within / 2.0) / (1_u64 << (age_ms / HALF_LIFE_MS)) as f64
}

/// What counts: not a node's word about itself, of each signer on each matter the latest (of the same time, the one
/// with the largest digest), nothing from the future. In the order of signers, then of digests.
pub(crate) fn counted(evidence: &[Evidence], now_ms: u64) -> Vec<&Evidence> {
    let mut latest: BTreeMap<(NodeId, NodeId, Hash), &Evidence> = BTreeMap::new();
    for piece in evidence {
        if piece.signer == piece.subject || piece.at_ms > now_ms.saturating_add(SKEW_MS) {
            continue;
        }
        let kept = latest.entry((piece.signer, piece.subject, piece.topic)).or_insert(piece);
        if (kept.at_ms, kept.digest) < (piece.at_ms, piece.digest) {
            *kept = piece;
        }
    }
    let mut counted: Vec<&Evidence> = latest.into_values().collect();
    counted.sort_unstable_by_key(|piece| (piece.signer, piece.digest));
    counted
}

/// The good and the bad that each signer says, decayed; summed in the order of [`counted`].
pub(crate) fn sums(counted: &[&Evidence], now_ms: u64) -> BTreeMap<NodeId, (f64, f64)> {
    let mut sums: BTreeMap<NodeId, (f64, f64)> = BTreeMap::new();
    for piece in counted {
        let (good, bad) = piece.finding.weight();
        let decay = decay(now_ms.saturating_sub(piece.at_ms));
        let sum = sums.entry(piece.signer).or_default();
        sum.0 += decay * good;
        sum.1 += decay * bad;
    }
    sums
}

/// What others say together: each one's word capped at [`AUDITOR_CAP`] and times the trust in him, in the order of
/// their names.
pub(crate) fn hearsay(sums: &BTreeMap<NodeId, (f64, f64)>, me: &NodeId, trust: &dyn Fn(&NodeId) -> f64) -> (f64, f64) {
    let (mut good, mut bad) = (0.0, 0.0);
    for (signer, said) in sums.iter().filter(|(signer, _)| *signer != me) {
        let all = said.0 + said.1;
        let cap = if all > AUDITOR_CAP { AUDITOR_CAP / all } else { 1.0 };
        // NaN is no trust.
        let faith = trust(signer);
        let weight = if faith > 0.0 { cap * faith.min(1.0) } else { 0.0 };
        good += weight * said.0;
        bad += weight * said.1;
    }
    (good, bad)
}

/// The score of the one node that `evidence` is about, in the eyes of `me`. The formula is in [`crate::reputation`];
/// the result depends neither on the order of the evidence nor on repetitions in it.
#[must_use]
pub fn score(evidence: &[Evidence], now_ms: u64, me: &NodeId, trust: &dyn Fn(&NodeId) -> f64) -> Score {
    let counted = counted(evidence, now_ms);
    let sums = sums(&counted, now_ms);
    let own = sums.get(me).copied().unwrap_or_default();
    let others = hearsay(&sums, me, trust);
    let alpha = PRIOR.0 + own.0 + others.0.min(HEARSAY * own.0);
    let beta = PRIOR.1 + own.1 + others.1.min(HEARSAY * (own.0 + own.1) + ALARM);
    let ban = ban::ban(&counted, me);
    let fresh = |piece: &&&Evidence| now_ms.saturating_sub(piece.at_ms) < KEEP_MS;
    let count =
        |holds: &dyn Fn(&Evidence) -> bool| counted.iter().filter(fresh).filter(|piece| holds(piece)).count() as u64;
    Score {
        value: if ban.holds(now_ms) { 0.0 } else { alpha / (alpha + beta) },
        alpha,
        beta,
        passed: count(&|piece| piece.finding == Finding::Pass),
        failed: count(&|piece| piece.finding.is_failure()),
        own_passed: count(&|piece| piece.finding == Finding::Pass && piece.signer == *me),
        own_failed: count(&|piece| piece.finding.is_failure() && piece.signer == *me),
        own_failed_ms: counted
            .iter()
            .filter(|piece| piece.finding.is_failure() && piece.signer == *me)
            .map(|piece| piece.at_ms)
            .max(),
        lied: count(&|piece| piece.finding == Finding::FalseWord && piece.signer == *me) > 0,
        ban,
        at_ms: now_ms,
        evidence: evidence.iter().map(|piece| piece.digest).collect::<BTreeSet<_>>().len() as u64,
        evidence_root: root(evidence.iter().map(|piece| piece.digest)),
    }
}
