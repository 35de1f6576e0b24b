//! Reputation: what a node may be trusted with, from signed evidence alone.
//!
//! Evidence ([`evidence`]) is verdicts of audits, rebuttals (a node's word that it checked the proof of an accusation and
//! that it does not hold), and equivocations seen: this node's word that it verified that another signed two journals, with
//! the two signatures in it, so that it stands by itself. Every node judges for itself: "me" below is the node whose ledger this is. A
//! score comes with the Merkle root of its evidence ([`score::root`]), and whoever has the evidence recomputes the
//! score bit for bit. Uptime, latency and tokens computed are seen by this node alone and proved to nobody; they make up
//! [`NodeRecord::local_score`] and enter no score.
//!
//! # The formula
//!
//! Each piece of evidence is `(digest, subject, signer, topic, finding, at_ms)`, see [`Evidence`]. Left out are: a
//! signer's word about itself; what is more than 10 minutes ahead of `now`; and of one signer's statements about one
//! subject on one topic all but the latest (largest `(at_ms, digest)`). The rest counts
//!
//! | finding | good | bad |
//! |---|---|---|
//! | pass | 1 | 0 |
//! | inconclusive | 0 | 0.125 |
//! | withheld | 0 | 4 |
//! | fraud | 0 | 20 |
//! | false-word (a rebuttal; the subject is the accuser) | 0 | 20 |
//! | equivocation (seen by me; the subject signed two journals) | 0 | 20 |
//!
//! times `decay(age)`: with `H` = 14 days, `k = age div H` and `f = (age mod H) / H` it is `(1 - f/2) / 2^k`, and 0 from
//! 90 days on. For each signer `s` the sums `good_s` and `bad_s` are taken in the order of digests. What others say is
//!
//! `good_o = sum of w_s * good_s`, `bad_o = sum of w_s * bad_s` over all `s` but me, in the order of their keys' bytes,
//! with `w_s = cap_s * trust(s)` and `cap_s = 5 / (good_s + bad_s)` where that sum is above 5, else 1. Then
//!
//! ```text
//! alpha = 1 + good_me + min(good_o, 0.5 * good_me)
//! beta  = 4 + bad_me  + min(bad_o,  0.5 * (good_me + bad_me) + 1)
//! score = alpha / (alpha + beta), and 0 during a ban
//! ```
//!
//! A newcomer has 0.2 and rises with audits that I saw it pass. Praise by others is worth at most half of what I saw
//! myself, so for a node that I never saw pass, no number of friends changes a bit of its score. Accusations by others
//! can lower it somewhat before I have looked: a fraud that they prove is to be checked, and then counts as my own
//! verdict or as their false word.
//!
//! **Trust** in an auditor is 1 for me. For others let `t(x) = max(0, (x - 0.2) / 0.8)`. First hand it is
//! `t(score from my evidence alone)`, ban included. Second hand it is half of
//! `t(a / (a + b))` with `a = 1 + good_me + good_o`, `b = 4 + bad_me + bad_o`, where `good_o` and `bad_o` are as above with
//! first-hand trust, and without the two minima. The trust is the larger of the two; it is 0 for whom I have verified
//! a fraud or an equivocation of or rebutted an accusation by, as long as that evidence is kept. Unknown nodes have no trust.
//!
//! **Bans**: the frauds (my verdicts) and equivocations that I verified, in the order of time, each begin a ban from their `at_ms` unless it
//! lies within one: 1 hour, 1 day, 7 days, 30 days, then twice as long each time. They are remembered for two years,
//! which is longer than their weight in the score. The time of an equivocation is that of my word about it. A node that
//! goes on with two journals is found again, at a larger size; what else contradicts up to the size that was proved is the
//! same offence.
//!
//! All numbers are IEEE 754 doubles, operations in the order written, so that the same bits come out anywhere:
//!
//! ```python
#![doc = include_str!("score.py")]
//! ```
//!
//! # Audit rate
//!
//! [`AuditPolicy::rate`]: 1 for whoever has passed fewer than 10 audits by my own evidence, has failed one (fraud or
//! withheld) within 7 days, or is banned; else 0.2. What others say does not lower it.

use std::collections::BTreeMap;

use consortium_protocol::{Hash, NodeId};
use serde::{Deserialize, Serialize};

pub mod ban;
pub mod evidence;
pub mod records;
pub mod score;
pub mod trust;
pub mod verdicts;

pub use ban::Ban;
pub use evidence::{Evidence, Finding, Noted};
pub use records::NodeRecord;
pub use score::{Score, score};
pub use trust::{Trust, trust};
pub use verdicts::{VerdictPage, VerdictPlace};

use crate::ledger::{Ledger, LedgerError, hex};

/// Most nodes on one page.
pub const MAX_PAGE: u32 = 100;
/// Most pieces of evidence on one page.
pub const MAX_EVIDENCE_PAGE: u32 = 200;

/// How often the work of a node is audited.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditPolicy {
    /// The rate for whoever has earned it, 0 to 1.
    pub base: f64,
    /// Whoever has passed fewer audits than this by this node's own evidence is a newcomer.
    pub newcomer: u64,
    /// For as long after a failure every job is audited, in milliseconds.
    pub after_failure_ms: u64,
}

impl Default for AuditPolicy {
    fn default() -> Self {
        Self { base: 0.2, newcomer: 10, after_failure_ms: 7 * 24 * 3600 * 1000 }
    }
}

impl AuditPolicy {
    /// The part of a node's work to audit, 0 to 1; 1 for newcomers, the recently failed and the banned.
    #[must_use]
    pub fn rate(&self, score: &Score) -> f64 {
        let failed = score.own_failed_ms.is_some_and(|at| score.at_ms.saturating_sub(at) < self.after_failure_ms);
        if score.own_passed < self.newcomer || failed || score.ban.holds(score.at_ms) {
            return 1.0;
        }
        // NaN audits everything.
        if self.base >= 0.0 { self.base.min(1.0) } else { 1.0 }
    }
}

/// A node as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its name, which is its key.
    pub peer_id: NodeId,
    /// Audits it failed by anybody else's word on record: fraud, or withheld.
    pub failed_audits: u64,
    /// Audits it passed by anybody else's word on record.
    pub successful_audits: u64,
    /// 0 to 1; 0 while banned.
    pub score: f64,
    /// The good side of it.
    pub alpha: f64,
    /// The bad side of it.
    pub beta: f64,
    /// Audits it failed by this node's word.
    pub own_failed_audits: u64,
    /// Audits it passed by this node's word.
    pub own_successful_audits: u64,
    /// How much its word counts, 0 to 1.
    pub trust: f64,
    /// The part of its work that is audited by default.
    pub audit_rate: f64,
    /// Root over the evidence about it.
    pub evidence_root: Hash,
    /// How many pieces of it.
    pub evidence: u64,
    /// How often it was banned.
    pub bans: u32,
    /// Until when, the last time, in milliseconds since 1970.
    pub banned_until_ms: Option<u64>,
    /// What this node saw and cannot prove.
    pub local: LocalView,
}

/// What a node saw of another and cannot prove.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LocalView {
    /// When it was last seen alive, in milliseconds since 1970; none if never.
    pub last_seen_ms: Option<u64>,
    /// The part of the time watched that it was alive.
    pub uptime_ratio: f64,
    /// Average latency in milliseconds.
    pub latency_ms: Option<f64>,
    /// Tokens it computed for this node.
    pub tokens_computed: u64,
    /// [`NodeRecord::local_score`].
    pub local_score: f64,
}

impl From<&NodeRecord> for LocalView {
    fn from(record: &NodeRecord) -> Self {
        Self {
            last_seen_ms: Some(record.last_seen_ms),
            uptime_ratio: record.uptime_ratio(),
            latency_ms: record.latency_us.map(|micros| micros as f64 / 1000.0),
            tokens_computed: record.tokens,
            local_score: record.local_score(),
        }
    }
}

/// A page of nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReputationPage {
    /// In whose eyes.
    pub judge: NodeId,
    /// The time for which the scores hold, in milliseconds since 1970: give it to the formula.
    pub at_ms: u64,
    /// Root over all evidence about all nodes, on which the trust in auditors rests.
    pub all_evidence_root: Hash,
    /// The nodes, in the order of their keys' bytes.
    pub nodes: Vec<NodeView>,
    /// Ask for the nodes after this one, if there are more.
    pub next: Option<NodeId>,
}

/// A piece of evidence with the statement it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceView {
    /// What the score needs to know.
    #[serde(flatten)]
    pub evidence: Evidence,
    /// The signed statement as received, in hexadecimal digits: a `Verdict`, a `Rebuttal` if the finding is
    /// `false-word`, an `EquivocationSeen` if it is `equivocation`.
    pub signed: String,
}

impl From<(Evidence, Vec<u8>)> for EvidenceView {
    fn from((evidence, bytes): (Evidence, Vec<u8>)) -> Self {
        Self { evidence, signed: hex(&bytes) }
    }
}

/// A page of evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidencePage {
    /// The pieces, in the order of their digests.
    pub evidence: Vec<EvidenceView>,
    /// Ask for those after this digest, if there are more.
    pub next: Option<Hash>,
}

/// All that this node judges by, at one time.
struct Court {
    evidence: BTreeMap<NodeId, Vec<Evidence>>,
    trust: Trust,
    me: NodeId,
    now_ms: u64,
}

impl Court {
    fn score(&self, node: &NodeId) -> Score {
        let about = self.evidence.get(node).map_or(&[][..], Vec::as_slice);
        score(about, self.now_ms, &self.me, &|auditor| self.trust.of(auditor))
    }

    fn view(&self, node: &NodeId, record: Option<&NodeRecord>, policy: &AuditPolicy) -> NodeView {
        let score = self.score(node);
        NodeView {
            peer_id: *node,
            failed_audits: score.failed,
            successful_audits: score.passed,
            score: score.value,
            alpha: score.alpha,
            beta: score.beta,
            own_failed_audits: score.own_failed,
            own_successful_audits: score.own_passed,
            trust: if *node == self.me { 1.0 } else { self.trust.of(node) },
            audit_rate: policy.rate(&score),
            evidence_root: score.evidence_root,
            evidence: score.evidence,
            bans: score.ban.times,
            banned_until_ms: score.ban.until_ms,
            local: record.map(LocalView::from).unwrap_or_default(),
        }
    }
}

impl Ledger {
    fn court(&self, tx: &rusqlite::Transaction<'_>, now_ms: u64) -> Result<Court, LedgerError> {
        let (evidence, me) = (evidence::all(tx)?, self.owner());
        let trust = trust(&evidence, now_ms, &me);
        Ok(Court { evidence, trust, me, now_ms })
    }

    /// The scores of all nodes on record, and of whoever there is evidence about: what matching, gossip and the draw of
    /// audits go by. Reads all evidence: call it every few seconds and keep the result, not for every decision.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn scores(&self, now_ms: u64) -> Result<BTreeMap<NodeId, Score>, LedgerError> {
        self.read(|tx| {
            let court = self.court(tx, now_ms)?;
            let records = records::page(tx, None, records::MAX_NODES)?;
            let nodes = records.iter().map(|record| record.node).chain(court.evidence.keys().copied());
            Ok(nodes.map(|node| (node, court.score(&node))).collect())
        })
    }

    /// How a node stands with this one.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn reputation(&self, node: &NodeId, policy: &AuditPolicy, now_ms: u64) -> Result<NodeView, LedgerError> {
        self.read(|tx| {
            let record = records::find(tx, node)?;
            Ok(self.court(tx, now_ms)?.view(node, record.as_ref(), policy))
        })
    }

    /// How the nodes on record stand with this one: those after `after`, at most `limit` and [`MAX_PAGE`].
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn reputations(
        &self,
        after: Option<NodeId>,
        limit: u32,
        policy: &AuditPolicy,
        now_ms: u64,
    ) -> Result<ReputationPage, LedgerError> {
        let limit = limit.clamp(1, MAX_PAGE);
        self.read(|tx| {
            let court = self.court(tx, now_ms)?;
            let mut records = records::page(tx, after, limit + 1)?;
            let more = records.len() > limit as usize;
            records.truncate(limit as usize);
            Ok(ReputationPage {
                judge: self.owner(),
                at_ms: now_ms,
                all_evidence_root: score::root(court.evidence.values().flatten().map(|piece| piece.digest)),
                next: records.last().map(|record| record.node).filter(|_| more),
                nodes: records.iter().map(|record| court.view(&record.node, Some(record), policy)).collect(),
            })
        })
    }

    /// The evidence about one node, or about all: the pieces after digest `after`, at most `limit` and
    /// [`MAX_EVIDENCE_PAGE`].
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn evidence(
        &self,
        about: Option<&NodeId>,
        after: Option<Hash>,
        limit: u32,
    ) -> Result<EvidencePage, LedgerError> {
        let limit = limit.clamp(1, MAX_EVIDENCE_PAGE);
        self.read(|tx| {
            let mut found = evidence::page(tx, about, after, limit + 1)?;
            let more = found.len() > limit as usize;
            found.truncate(limit as usize);
            let next = found.last().map(|(piece, _)| piece.digest).filter(|_| more);
            Ok(EvidencePage { evidence: found.into_iter().map(EvidenceView::from).collect(), next })
        })
    }

    /// A piece of evidence, by the digest of the signed statement.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn evidence_of(&self, digest: &Hash) -> Result<Option<EvidenceView>, LedgerError> {
        self.read(|tx| Ok(evidence::one(tx, digest)?.map(EvidenceView::from)))
    }
}
