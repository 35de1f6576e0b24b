//! What others signed about their journals, and whoever contradicted himself.
//!
//! The [`MAX_HEADS`] heads of each signer that came in last are kept, and proofs of equivocation for good: one for each signer is
//! enough. What two heads of different sizes can and cannot show is said at [`Equivocation`].

use consortium_protocol::merkle::ConsistencyProof;
use consortium_protocol::wire::Message;
use consortium_protocol::wire::ledger::{Equivocation, LeafProof, TreeHead};
use consortium_protocol::{NodeId, Signed};
use rusqlite::{OptionalExtension, Transaction, params};

use crate::journal;
use crate::ledger::{Ledger, LedgerError, time};
use crate::tree;

/// Heads kept of one signer.
pub const MAX_HEADS: u32 = 64;
/// Signers of which heads are kept.
pub const MAX_SIGNERS: u32 = 4096;

/// What a head that came in is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeadSeen {
    /// The first of its size.
    New,
    /// Known, or of no more use than what is known.
    Known,
    /// It contradicts an earlier one: the proof, which is stored too.
    Equivocation(Box<Equivocation>),
    /// It bears this node's own signature, over a journal that is not this one: the key is in use elsewhere, or this
    /// ledger is an old copy. No batch must be closed before that is understood.
    NotOurs,
}

/// Whether `proof` shows that the journal under `old` grew into that under `new`. That it does not is no proof of
/// anything: ask for another.
#[must_use]
pub fn grew(old: &Signed<TreeHead>, new: &Signed<TreeHead>, proof: &ConsistencyProof) -> bool {
    old.signer() == new.signer()
        && proof.old_size == old.payload().size
        && proof.new_size == new.payload().size
        && proof.check().is_ok()
        && proof.holds(&old.payload().root, &new.payload().root)
}

/// The contradiction of two leaves that were proved for one place, if there is one.
#[must_use]
pub fn contradiction(a: &LeafProof, b: &LeafProof) -> Option<Equivocation> {
    let proof = Equivocation::Leaves { a: a.clone(), b: b.clone() };
    proof.verify().is_ok().then_some(proof)
}

fn store(tx: &Transaction<'_>, proof: &Equivocation, now_ms: u64) -> Result<NodeId, LedgerError> {
    let signer = proof.verify()?;
    tx.execute(
        "INSERT OR IGNORE INTO equivocation (signer, at_ms, proof) VALUES (?1, ?2, ?3)",
        params![signer.as_bytes(), time(now_ms), proof.encode()],
    )?;
    Ok(signer)
}

fn known(tx: &Transaction<'_>, signer: &NodeId, size: u64) -> Result<Option<Signed<TreeHead>>, LedgerError> {
    let bytes: Option<Vec<u8>> = tx
        .prepare_cached("SELECT head FROM seen_head WHERE signer = ?1 AND size = ?2")?
        .query_row(params![signer.as_bytes(), size], |row| row.get(0))
        .optional()?;
    Ok(bytes.map(|bytes| Signed::decode(&bytes)).transpose()?)
}

impl Ledger {
    /// Takes note of another node's head and compares it with what is known of the same size.
    ///
    /// # Errors
    /// [`LedgerError::Full`] when heads of too many nodes are kept, [`LedgerError::Statement`],
    /// [`LedgerError::Database`].
    pub fn note_head(&self, head: &Signed<TreeHead>, now_ms: u64) -> Result<HeadSeen, LedgerError> {
        let (signer, size) = (head.signer(), head.payload().size);
        self.write(|tx| {
            if signer == self.owner() {
                let ours = size <= journal::length(tx)? && tree::root(tx, size)? == head.payload().root;
                return Ok(if ours { HeadSeen::Known } else { HeadSeen::NotOurs });
            }
            if let Some(known) = known(tx, &signer, size)? {
                let proof = Equivocation::Roots { a: known, b: head.clone() };
                if proof.verify().is_err() {
                    return Ok(HeadSeen::Known);
                }
                store(tx, &proof, now_ms)?;
                return Ok(HeadSeen::Equivocation(Box::new(proof)));
            }
            let heads: u32 =
                tx.query_row("SELECT count(*) FROM seen_head WHERE signer = ?1", [signer.as_bytes()], |row| {
                    row.get(0)
                })?;
            let signers: u32 = tx.query_row("SELECT count(DISTINCT signer) FROM seen_head", [], |row| row.get(0))?;
            if heads == 0 && signers >= MAX_SIGNERS {
                return Err(LedgerError::Full(MAX_SIGNERS));
            }
            tx.execute(
                "INSERT INTO seen_head (signer, size, head) VALUES (?1, ?2, ?3)",
                params![signer.as_bytes(), size, head.as_bytes()],
            )?;
            tx.execute(
                "DELETE FROM seen_head WHERE signer = ?1 AND id NOT IN
                     (SELECT id FROM seen_head WHERE signer = ?1 ORDER BY id DESC LIMIT ?2)",
                params![signer.as_bytes(), MAX_HEADS],
            )?;
            Ok(HeadSeen::New)
        })
    }

    /// Keeps a proof of equivocation that came from elsewhere, once verified; returns the guilty.
    ///
    /// # Errors
    /// [`LedgerError::Invalid`] when it proves nothing, [`LedgerError::Database`].
    pub fn note_equivocation(&self, proof: &Equivocation, now_ms: u64) -> Result<NodeId, LedgerError> {
        self.write(|tx| store(tx, proof, now_ms))
    }

    /// The proof that a node contradicted itself, if there is one.
    ///
    /// # Errors
    /// [`LedgerError::Statement`], [`LedgerError::Database`].
    pub fn equivocation(&self, signer: &NodeId) -> Result<Option<Equivocation>, LedgerError> {
        self.read(|tx| {
            let bytes: Option<Vec<u8>> = tx
                .query_row("SELECT proof FROM equivocation WHERE signer = ?1", [signer.as_bytes()], |row| row.get(0))
                .optional()?;
            Ok(bytes.map(|bytes| Equivocation::decode(&bytes)).transpose()?)
        })
    }

    /// The largest head kept of a node.
    ///
    /// # Errors
    /// [`LedgerError::Statement`], [`LedgerError::Database`].
    pub fn newest_head(&self, signer: &NodeId) -> Result<Option<Signed<TreeHead>>, LedgerError> {
        self.read(|tx| {
            let bytes: Option<Vec<u8>> = tx
                .query_row(
                    "SELECT head FROM seen_head WHERE signer = ?1 ORDER BY size DESC LIMIT 1",
                    [signer.as_bytes()],
                    |row| row.get(0),
                )
                .optional()?;
            Ok(bytes.map(|bytes| Signed::decode(&bytes)).transpose()?)
        })
    }
}
