//! Evidence: signed statements about nodes, kept as received, bounded and deduplicated.

use std::collections::BTreeMap;
use std::str::FromStr;

use consortium_protocol::wire::audit::{Outcome, Verdict};
use consortium_protocol::wire::ledger::{EquivocationSeen, Rebuttal};
use consortium_protocol::{ClusterId, Hash, Invalid, NodeId, RootKey, Signed, cbor};
use rusqlite::{OptionalExtension, Transaction, params};
use serde::{Deserialize, Serialize};

use super::records;
use super::score::{KEEP_MS, SKEW_MS};
use crate::ledger::{Ledger, LedgerError, hash_at, node_at, text_at, time};

/// Statements kept of one signer about one node.
pub const MAX_PAIR: u32 = 32;
/// Statements kept of this node about one other.
pub const MAX_OWN: u32 = 512;
/// Statements kept of one signer other than this node.
pub const MAX_SIGNER: u32 = 1024;
/// Statements kept about one node, those of this node not counted.
pub const MAX_SUBJECT: u32 = 1024;
/// How long fraud and equivocation that this node verified are remembered, in milliseconds: two years. All else is kept
/// for [`KEEP_MS`].
pub const KEEP_FRAUD_MS: u64 = 2 * 365 * 24 * 3600 * 1000;

/// What a statement says of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finding {
    /// A verdict: the work was what was ordered.
    Pass,
    /// A verdict: neither proved nor disproved.
    Inconclusive,
    /// A verdict: it did not open what it committed to.
    Withheld,
    /// A verdict: it was not.
    Fraud,
    /// A rebuttal: it accused another, and its proof does not hold.
    FalseWord,
    /// It signed two journals.
    Equivocation,
}

impl Finding {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Pass, "pass"),
        (Self::Inconclusive, "inconclusive"),
        (Self::Withheld, "withheld"),
        (Self::Fraud, "fraud"),
        (Self::FalseWord, "false-word"),
        (Self::Equivocation, "equivocation"),
    ];

    /// The name, as it is stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(finding, _)| *finding == self).map_or("", |(_, name)| name)
    }
}

impl FromStr for Finding {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(finding, _)| *finding).ok_or(())
    }
}

impl From<Outcome> for Finding {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Pass => Self::Pass,
            Outcome::Inconclusive => Self::Inconclusive,
            Outcome::Withheld => Self::Withheld,
            Outcome::Fraud => Self::Fraud,
        }
    }
}

/// What the score needs to know of a signed statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Digest of the signed statement.
    pub digest: Hash,
    /// About whom it is.
    pub subject: NodeId,
    /// Who signed it.
    pub signer: NodeId,
    /// The matter. Of one signer's statements on one matter only the latest counts.
    ///
    /// BLAKE3 in `derive_key` mode under `consortium evidence topic 1` over canonical CBOR: the array
    /// `[job, attempt, stage]` for a verdict, the digest of the verdict (a byte string) for a rebuttal, the entries it
    /// takes to contain the contradiction (an integer) for an equivocation.
    pub topic: Hash,
    /// What it says.
    pub finding: Finding,
    /// When, by the signer's clock, in milliseconds since 1970.
    pub at_ms: u64,
}

fn topic<T: Serialize>(matter: &T) -> Hash {
    Hash::from_bytes(blake3::derive_key("consortium evidence topic 1", &cbor::to_vec(matter)))
}

impl From<&Signed<Verdict>> for Evidence {
    fn from(signed: &Signed<Verdict>) -> Self {
        let word = signed.payload();
        Self {
            digest: signed.digest(),
            subject: word.auditee,
            signer: signed.signer(),
            topic: topic(&(word.job, word.attempt, word.stage)),
            finding: word.outcome.into(),
            at_ms: word.at_ms,
        }
    }
}

impl From<&Signed<Rebuttal>> for Evidence {
    fn from(signed: &Signed<Rebuttal>) -> Self {
        let word = signed.payload();
        Self {
            digest: signed.digest(),
            subject: word.accuser,
            signer: signed.signer(),
            topic: topic(&word.verdict),
            finding: Finding::FalseWord,
            at_ms: word.at_ms,
        }
    }
}

impl TryFrom<&Signed<EquivocationSeen>> for Evidence {
    type Error = Invalid;

    fn try_from(signed: &Signed<EquivocationSeen>) -> Result<Self, Invalid> {
        let word = signed.payload();
        Ok(Self {
            digest: signed.digest(),
            subject: word.proof.verify()?,
            signer: signed.signer(),
            topic: topic(&word.proof.size()),
            finding: Finding::Equivocation,
            at_ms: word.at_ms,
        })
    }
}

/// What became of evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noted {
    /// It is kept.
    New,
    /// It was known, or its signer has said something later on the same matter.
    Known,
}

/// Columns of [`Evidence`].
pub(super) const COLUMNS: &str = "digest, subject, signer, topic, finding, at_ms";

pub(super) fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Evidence> {
    Ok(Evidence {
        digest: hash_at(row, 0)?,
        subject: node_at(row, 1)?,
        signer: node_at(row, 2)?,
        topic: hash_at(row, 3)?,
        finding: text_at(row, 4)?,
        at_ms: row.get(5)?,
    })
}

/// All evidence, by whom it is about.
pub(crate) fn all(tx: &Transaction<'_>) -> Result<BTreeMap<NodeId, Vec<Evidence>>, LedgerError> {
    let mut evidence: BTreeMap<NodeId, Vec<Evidence>> = BTreeMap::new();
    let mut statement = tx.prepare_cached(&format!("SELECT {COLUMNS} FROM evidence ORDER BY subject, digest"))?;
    for piece in statement.query_map([], read)? {
        let piece = piece?;
        evidence.entry(piece.subject).or_default().push(piece);
    }
    Ok(evidence)
}

/// A page of evidence with the signed bytes, about one node or about all, in the order of digests.
pub(crate) fn page(
    tx: &Transaction<'_>,
    subject: Option<&NodeId>,
    after: Option<Hash>,
    limit: u32,
) -> Result<Vec<(Evidence, Vec<u8>)>, LedgerError> {
    // The empty string sorts before every digest.
    let after = after.map(|digest| digest.as_bytes().to_vec()).unwrap_or_default();
    let about = if subject.is_some() { "subject = ?3 AND" } else { "?3 IS NULL AND" };
    let mut statement = tx.prepare_cached(&format!(
        "SELECT {COLUMNS}, bytes FROM evidence WHERE {about} digest > ?1 ORDER BY digest LIMIT ?2"
    ))?;
    let rows = statement
        .query_map(params![after, limit, subject.map(NodeId::as_bytes)], |row| Ok((read(row)?, row.get(6)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// One piece of evidence with the signed bytes.
pub(crate) fn one(tx: &Transaction<'_>, digest: &Hash) -> Result<Option<(Evidence, Vec<u8>)>, LedgerError> {
    Ok(tx
        .prepare_cached(&format!("SELECT {COLUMNS}, bytes FROM evidence WHERE digest = ?1"))?
        .query_row([digest.as_bytes()], |row| Ok((read(row)?, row.get(6)?)))
        .optional()?)
}

/// `proof` is the digest of the fraud proof that a verdict names.
fn note(
    tx: &Transaction<'_>,
    me: &NodeId,
    piece: &Evidence,
    (bytes, proof): (&[u8], Option<Hash>),
    now_ms: u64,
) -> Result<Noted, LedgerError> {
    let own = piece.signer == *me;
    let keep_ms = if own && piece.finding.bans() { KEEP_FRAUD_MS } else { KEEP_MS };
    if piece.signer == piece.subject {
        return Err(LedgerError::Refused("a word about oneself"));
    }
    if piece.at_ms > now_ms.saturating_add(SKEW_MS) || piece.at_ms > i64::MAX as u64 {
        return Err(LedgerError::Refused("from the future"));
    }
    if now_ms.saturating_sub(piece.at_ms) >= keep_ms {
        return Err(LedgerError::Refused("too old"));
    }
    for node in [&piece.signer, &piece.subject] {
        if node != me && records::find(tx, node)?.is_none() {
            return Err(LedgerError::UnknownNode(*node));
        }
    }
    let rebutted: bool = tx
        .prepare_cached("SELECT count(*) FROM rebutted WHERE verdict = ?1")?
        .query_row([piece.digest.as_bytes()], |row| row.get(0))?;
    if rebutted {
        return Err(LedgerError::Refused("its proof was found not to hold"));
    }
    let matter = params![piece.signer.as_bytes(), piece.subject.as_bytes(), piece.topic.as_bytes()];
    let said = tx
        .prepare_cached("SELECT at_ms, digest FROM evidence WHERE signer = ?1 AND subject = ?2 AND topic = ?3")?
        .query_row(matter, |row| Ok((row.get::<_, u64>(0)?, hash_at(row, 1)?)))
        .optional()?;
    if said.is_some_and(|said| said >= (piece.at_ms, piece.digest)) {
        return Ok(Noted::Known);
    }
    tx.prepare_cached("DELETE FROM evidence WHERE signer = ?1 AND subject = ?2 AND topic = ?3")?.execute(matter)?;
    tx.prepare_cached(&format!(
        "INSERT INTO evidence ({COLUMNS}, bytes, proof) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"
    ))?
    .execute(params![
        piece.digest.as_bytes(),
        piece.subject.as_bytes(),
        piece.signer.as_bytes(),
        piece.topic.as_bytes(),
        piece.finding.as_str(),
        time(piece.at_ms),
        bytes,
        proof.as_ref().map(Hash::as_bytes),
    ])?;
    bound(tx, me, piece)?;
    Ok(Noted::New)
}

/// Keeps a word of this node about one on record, unless it has said something on the matter before.
pub(crate) fn note_first(
    tx: &Transaction<'_>,
    me: &NodeId,
    piece: &Evidence,
    bytes: &[u8],
    now_ms: u64,
) -> Result<(), LedgerError> {
    if records::find(tx, &piece.subject)?.is_none() {
        return Ok(());
    }
    let said: bool = tx
        .prepare_cached("SELECT count(*) FROM evidence WHERE signer = ?1 AND subject = ?2 AND topic = ?3")?
        .query_row(params![me.as_bytes(), piece.subject.as_bytes(), piece.topic.as_bytes()], |row| row.get(0))?;
    if said { Ok(()) } else { note(tx, me, piece, (bytes, None), now_ms).map(drop) }
}

/// Drops what is beyond the bounds: of a pair and of a signer the oldest, fraud last; about a node the oldest word of
/// whoever has said most about it, so that a crowd of talkers displaces itself first.
fn bound(tx: &Transaction<'_>, me: &NodeId, piece: &Evidence) -> Result<(), LedgerError> {
    let own = piece.signer == *me;
    let (signer, subject) = (piece.signer.as_bytes(), piece.subject.as_bytes());
    tx.prepare_cached(
        "DELETE FROM evidence WHERE digest IN (SELECT digest FROM evidence WHERE signer = ?1 AND subject = ?2
             ORDER BY finding IN ('fraud', 'equivocation') DESC, at_ms DESC, digest DESC LIMIT -1 OFFSET ?3)",
    )?
    .execute(params![signer, subject, if own { MAX_OWN } else { MAX_PAIR }])?;
    if own {
        return Ok(());
    }
    tx.prepare_cached(
        "DELETE FROM evidence WHERE digest IN (SELECT digest FROM evidence WHERE signer = ?1
             ORDER BY finding IN ('fraud', 'equivocation') DESC, at_ms DESC, digest DESC LIMIT -1 OFFSET ?2)",
    )?
    .execute(params![signer, MAX_SIGNER])?;
    let about: u32 = tx
        .prepare_cached("SELECT count(*) FROM evidence WHERE subject = ?1 AND signer <> ?2")?
        .query_row(params![subject, me.as_bytes()], |row| row.get(0))?;
    if about > MAX_SUBJECT {
        tx.prepare_cached(
            "DELETE FROM evidence WHERE digest = (SELECT digest FROM evidence WHERE subject = ?1 AND signer =
                 (SELECT signer FROM evidence WHERE subject = ?1 AND signer <> ?2
                  GROUP BY signer ORDER BY count(*) DESC, signer LIMIT 1)
                 ORDER BY at_ms, digest LIMIT 1)",
        )?
        .execute(params![subject, me.as_bytes()])?;
    }
    Ok(())
}

impl Ledger {
    /// Keeps an auditor's verdict, this node's own included. A fraud that this node has verified is a verdict of its
    /// own: only that bans. Which clusters' verdicts are taken is the caller's to decide.
    ///
    /// # Errors
    /// [`LedgerError::Refused`] for a word about oneself, from the future, too old, or known to be false;
    /// [`LedgerError::UnknownNode`] when signer or auditee has no record here; [`LedgerError::Database`].
    pub fn note_verdict(&self, verdict: &Signed<Verdict>, now_ms: u64) -> Result<Noted, LedgerError> {
        let signed = (verdict.as_bytes(), verdict.payload().proof);
        self.write(|tx| note(tx, &self.owner(), &verdict.into(), signed, now_ms))
    }

    /// Keeps another node's rebuttal: it counts against the accuser as far as its signer is trusted.
    ///
    /// # Errors
    /// As [`Ledger::note_verdict`].
    pub fn note_rebuttal(&self, rebuttal: &Signed<Rebuttal>, now_ms: u64) -> Result<Noted, LedgerError> {
        self.write(|tx| self.keep_rebuttal(tx, rebuttal, now_ms))
    }

    /// Says, signed, that the proof of an accusation was checked and does not hold. The accusation counts no more, and
    /// costs its author. For use by a caller who has checked the proof.
    ///
    /// # Errors
    /// [`LedgerError::NotOwner`] when the key is not that of the ledger's owner, [`LedgerError::Refused`] when the
    /// verdict accuses nobody of fraud, and as [`Ledger::note_verdict`].
    pub fn rebut(
        &self,
        key: &RootKey,
        cluster: ClusterId,
        verdict: &Signed<Verdict>,
        now_ms: u64,
    ) -> Result<Signed<Rebuttal>, LedgerError> {
        if key.node_id() != self.owner() {
            return Err(LedgerError::NotOwner { owner: self.owner(), other: key.node_id() });
        }
        let proof = verdict.payload().proof.ok_or(LedgerError::Refused("no accusation of fraud"))?;
        let word = Rebuttal { cluster, accuser: verdict.signer(), verdict: verdict.digest(), proof, at_ms: now_ms };
        let rebuttal = Signed::sign(key, word);
        self.write(|tx| self.keep_rebuttal(tx, &rebuttal, now_ms))?;
        Ok(rebuttal)
    }

    fn keep_rebuttal(
        &self,
        tx: &Transaction<'_>,
        rebuttal: &Signed<Rebuttal>,
        now_ms: u64,
    ) -> Result<Noted, LedgerError> {
        let noted = note(tx, &self.owner(), &rebuttal.into(), (rebuttal.as_bytes(), None), now_ms)?;
        if rebuttal.signer() == self.owner() {
            let word = rebuttal.payload();
            tx.execute(
                "INSERT OR IGNORE INTO rebutted (verdict, at_ms) VALUES (?1, ?2)",
                params![word.verdict.as_bytes(), time(now_ms)],
            )?;
            tx.execute(
                "DELETE FROM evidence WHERE digest = ?1 AND signer = ?2",
                params![word.verdict.as_bytes(), word.accuser.as_bytes()],
            )?;
        }
        Ok(noted)
    }

    /// Drops evidence whose time is over; returns how much.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn expire_evidence(&self, now_ms: u64) -> Result<usize, LedgerError> {
        let (short, long) = (now_ms.saturating_sub(KEEP_MS), now_ms.saturating_sub(KEEP_FRAUD_MS));
        self.write(|tx| {
            tx.execute("DELETE FROM rebutted WHERE at_ms <= ?1", [time(long)])?;
            Ok(tx.execute(
                "DELETE FROM evidence WHERE at_ms <= ?1 AND NOT (finding IN ('fraud', 'equivocation') AND signer = ?2 AND at_ms > ?3)",
                params![time(short), self.owner().as_bytes(), time(long)],
            )?)
        })
    }
}
