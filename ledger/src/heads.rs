//! What others signed about their journals, and whoever contradicted himself.
//!
//! The [`MAX_HEADS`] heads of each of at most [`MAX_SIGNERS`] signers that came in last are kept, and proofs of equivocation for good: of each of at
//! most [`MAX_SIGNERS`] signers the one at the largest size. A proof about a node on record is evidence too
//! ([`crate::reputation`]); about strangers, who could have any number of names, it becomes evidence when they are on
//! record and heard of again. What two heads of different sizes can and cannot show is said at [`Equivocation`].

use consortium_protocol::merkle::ConsistencyProof;
use consortium_protocol::wire::Message;
use consortium_protocol::wire::ledger::{Equivocation, EquivocationSeen, LeafProof, TreeHead};
use consortium_protocol::{NodeId, RootKey, Signed};
use rusqlite::{OptionalExtension, Transaction, params};

use crate::journal;
use crate::ledger::{Ledger, LedgerError, time};
use crate::reputation::evidence;
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

/// The proof kept of a signer, and when it was first kept.
fn kept(tx: &Transaction<'_>, signer: &NodeId) -> Result<Option<(Equivocation, u64)>, LedgerError> {
    let row: Option<(Vec<u8>, u64)> = tx
        .prepare_cached("SELECT proof, at_ms FROM equivocation WHERE signer = ?1")?
        .query_row([signer.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    Ok(row.map(|(proof, at_ms)| Equivocation::decode(&proof).map(|proof| (proof, at_ms))).transpose()?)
}

/// Makes room for one more signer: strangers, who could have any number of names, make way.
fn make_room(tx: &Transaction<'_>, count: &str, forget_a_stranger: &str) -> Result<(), LedgerError> {
    let signers: u32 = tx.query_row(count, [], |row| row.get(0))?;
    if signers >= MAX_SIGNERS && tx.execute(forget_a_stranger, [])? == 0 {
        return Err(LedgerError::Full(MAX_SIGNERS));
    }
    Ok(())
}

/// Keeps a proof, in the place of one at a smaller size: its signer went on.
fn store(tx: &Transaction<'_>, proof: &Equivocation, now_ms: u64) -> Result<NodeId, LedgerError> {
    let signer = proof.verify()?;
    match kept(tx, &signer)? {
        Some((known, _)) if known.size() >= proof.size() => return Ok(signer),
        Some(_) => {}
        None => make_room(
            tx,
            "SELECT count(*) FROM equivocation",
            "DELETE FROM equivocation WHERE signer = (SELECT signer FROM equivocation
                 WHERE signer NOT IN (SELECT node FROM node_record) ORDER BY at_ms, signer LIMIT 1)",
        )?,
    }
    tx.execute(
        "INSERT OR REPLACE INTO equivocation (signer, at_ms, proof) VALUES (?1, ?2, ?3)",
        params![signer.as_bytes(), time(now_ms), proof.encode()],
    )?;
    Ok(signer)
}

/// Gives this node's word on the proof kept of a signer, unless it was given or there is none.
fn witness(tx: &Transaction<'_>, key: &RootKey, signer: &NodeId, now_ms: u64) -> Result<(), LedgerError> {
    let Some((proof, kept_ms)) = kept(tx, signer)? else { return Ok(()) };
    let seen = Signed::sign(key, EquivocationSeen { proof, at_ms: now_ms });
    // After that time a word that was given is forgotten, and is not to be given again.
    if now_ms.saturating_sub(kept_ms) >= evidence::KEEP_FRAUD_MS {
        return Ok(());
    }
    evidence::note_first(tx, &key.node_id(), &(&seen).try_into()?, seen.as_bytes(), now_ms)
}

fn known(tx: &Transaction<'_>, signer: &NodeId, size: u64) -> Result<Option<Signed<TreeHead>>, LedgerError> {
    let bytes: Option<Vec<u8>> = tx
        .prepare_cached("SELECT head FROM seen_head WHERE signer = ?1 AND size = ?2")?
        .query_row(params![signer.as_bytes(), size], |row| row.get(0))
        .optional()?;
    Ok(bytes.map(|bytes| Signed::decode(&bytes)).transpose()?)
}

impl Ledger {
    /// Takes note of another node's head and compares it with what is known of the same size. `key` is that of the
    /// ledger's owner.
    ///
    /// # Errors
    /// [`LedgerError::Full`] when heads of too many nodes are kept, [`LedgerError::NotOwner`],
    /// [`LedgerError::Statement`], [`LedgerError::Database`].
    pub fn note_head(&self, key: &RootKey, head: &Signed<TreeHead>, now_ms: u64) -> Result<HeadSeen, LedgerError> {
        self.check_key(key)?;
        let (signer, size) = (head.signer(), head.payload().size);
        self.write(|tx| {
            if signer == self.owner() {
                let ours = size <= journal::length(tx)? && tree::root(tx, size)? == head.payload().root;
                return Ok(if ours { HeadSeen::Known } else { HeadSeen::NotOurs });
            }
            witness(tx, key, &signer, now_ms)?;
            if let Some(known) = known(tx, &signer, size)? {
                let proof = Equivocation::Roots { a: known, b: head.clone() };
                if proof.verify().is_err() {
                    return Ok(HeadSeen::Known);
                }
                store(tx, &proof, now_ms)?;
                witness(tx, key, &signer, now_ms)?;
                return Ok(HeadSeen::Equivocation(Box::new(proof)));
            }
            let heads: u32 =
                tx.query_row("SELECT count(*) FROM seen_head WHERE signer = ?1", [signer.as_bytes()], |row| {
                    row.get(0)
                })?;
            if heads == 0 {
                make_room(
                    tx,
                    "SELECT count(DISTINCT signer) FROM seen_head",
                    "DELETE FROM seen_head WHERE signer = (SELECT signer FROM seen_head
                         WHERE signer NOT IN (SELECT node FROM node_record) ORDER BY id LIMIT 1)",
                )?;
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

    /// Keeps a proof of equivocation that came from elsewhere, once verified; returns the guilty. `key` is that of the
    /// ledger's owner.
    ///
    /// # Errors
    /// [`LedgerError::Invalid`] when it proves nothing, [`LedgerError::Full`] when proofs about too many nodes are kept,
    /// [`LedgerError::NotOwner`], [`LedgerError::Database`].
    pub fn note_equivocation(&self, key: &RootKey, proof: &Equivocation, now_ms: u64) -> Result<NodeId, LedgerError> {
        self.check_key(key)?;
        self.write(|tx| {
            let signer = store(tx, proof, now_ms)?;
            if signer != self.owner() {
                witness(tx, key, &signer, now_ms)?;
            }
            Ok(signer)
        })
    }

    fn check_key(&self, key: &RootKey) -> Result<(), LedgerError> {
        match key.node_id() {
            owner if owner == self.owner() => Ok(()),
            other => Err(LedgerError::NotOwner { owner: self.owner(), other }),
        }
    }

    /// The proof that a node contradicted itself, if there is one.
    ///
    /// # Errors
    /// [`LedgerError::Statement`], [`LedgerError::Database`].
    pub fn equivocation(&self, signer: &NodeId) -> Result<Option<Equivocation>, LedgerError> {
        self.read(|tx| Ok(kept(tx, signer)?.map(|(proof, _)| proof)))
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
