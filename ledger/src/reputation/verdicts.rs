//! Verdicts on record, the newest first, and whoever accuses by a fraud proof.

use std::fmt;
use std::str::FromStr;

use consortium_protocol::{Hash, NodeId};
use rusqlite::{Transaction, params};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{EvidenceView, MAX_EVIDENCE_PAGE, evidence};
use crate::ledger::{Ledger, LedgerError, node_at, time};

/// Accusers listed of one proof.
pub const MAX_ACCUSERS: u32 = 256;

/// The place of a verdict in the list: what comes in or goes later changes nothing about those behind it. Written as
/// time and digest with a hyphen between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VerdictPlace {
    /// When it was given, in milliseconds since 1970.
    pub at_ms: u64,
    /// Digest of the signed verdict.
    pub digest: Hash,
}

impl fmt::Display for VerdictPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.at_ms, self.digest)
    }
}

/// A text that is no [`VerdictPlace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a place in the list of verdicts: it is made of a time, a hyphen, and a digest of 64 hexadecimal digits")]
pub struct ParseVerdictPlaceError;

impl FromStr for VerdictPlace {
    type Err = ParseVerdictPlaceError;

    fn from_str(text: &str) -> Result<Self, ParseVerdictPlaceError> {
        let (at_ms, digest) = text.split_once('-').ok_or(ParseVerdictPlaceError)?;
        let at_ms = at_ms.parse().map_err(|_| ParseVerdictPlaceError)?;
        Ok(Self { at_ms, digest: digest.parse().map_err(|_| ParseVerdictPlaceError)? })
    }
}

impl Serialize for VerdictPlace {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VerdictPlace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A page of verdicts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictPage {
    /// The verdicts, the newest first; of the same time, the largest digest first.
    pub verdicts: Vec<EvidenceView>,
    /// Ask for those before this place, if there are more.
    pub next: Option<VerdictPlace>,
}

fn page(
    tx: &Transaction<'_>,
    about: Option<&NodeId>,
    before: Option<VerdictPlace>,
    limit: u32,
) -> Result<Vec<EvidenceView>, LedgerError> {
    // Longer than any digest, and behind all of them.
    let (at_ms, digest) = match before {
        Some(place) => (time(place.at_ms), place.digest.as_bytes().to_vec()),
        None => (i64::MAX, vec![0xff; 33]),
    };
    let about_whom = if about.is_some() { "subject = ?4 AND" } else { "?4 IS NULL AND" };
    let mut statement = tx.prepare_cached(&format!(
        "SELECT {}, bytes FROM evidence WHERE {about_whom} (at_ms, digest) < (?1, ?2)
             AND finding IN ('pass', 'inconclusive', 'withheld', 'fraud')
             ORDER BY at_ms DESC, digest DESC LIMIT ?3",
        evidence::COLUMNS
    ))?;
    let rows = statement
        .query_map(params![at_ms, digest, limit, about.map(NodeId::as_bytes)], |row| {
            Ok((evidence::read(row)?, row.get(6)?))
        })?
        .map(|row| row.map(EvidenceView::from));
    Ok(rows.collect::<Result<_, _>>()?)
}

impl Ledger {
    /// The verdicts about one node, or about all, the newest first: those before `before`, at most `limit` and
    /// [`MAX_EVIDENCE_PAGE`].
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn verdicts(
        &self,
        about: Option<&NodeId>,
        before: Option<VerdictPlace>,
        limit: u32,
    ) -> Result<VerdictPage, LedgerError> {
        let limit = limit.clamp(1, MAX_EVIDENCE_PAGE);
        self.read(|tx| {
            let mut verdicts = page(tx, about, before, limit + 1)?;
            let more = verdicts.len() > limit as usize;
            verdicts.truncate(limit as usize);
            let last = verdicts.last().map(|view| &view.evidence).filter(|_| more);
            let next = last.map(|piece| VerdictPlace { at_ms: piece.at_ms, digest: piece.digest });
            Ok(VerdictPage { verdicts, next })
        })
    }

    /// Whose verdicts on record name this fraud proof, in the order of their keys' bytes: [`MAX_ACCUSERS`] at most.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn accusers(&self, proof: &Hash) -> Result<Vec<NodeId>, LedgerError> {
        self.read(|tx| {
            let mut statement =
                tx.prepare_cached("SELECT DISTINCT signer FROM evidence WHERE proof = ?1 ORDER BY signer LIMIT ?2")?;
            let rows = statement.query_map(params![proof.as_bytes(), MAX_ACCUSERS], |row| node_at(row, 0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}
