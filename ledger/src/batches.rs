//! Batches: with a signed tree head, a node fixes all that its journal holds.
//!
//! A batch is closed when it has waited long enough or has grown large enough ([`BatchPolicy`]). Of one size only one
//! head is ever signed, and it is stored in the same transaction: a second one that differs would be proof against the
//! node itself. A ledger that is brought back from an old copy can do just that, without ill will: a copy older than
//! the last head that was published must not be put to work again.

use consortium_protocol::merkle::{ConsistencyProof, InclusionProof};
use consortium_protocol::wire::ledger::{LeafProof, TreeHead};
use consortium_protocol::{Hash, Invalid, NodeId, RootKey, Signed, merkle};
use rusqlite::{OptionalExtension, Transaction, params};
use serde::{Deserialize, Serialize};

use crate::journal::{self, Entry};
use crate::ledger::{Ledger, LedgerError, hex, time};
use crate::tree;

/// When a batch is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchPolicy {
    /// After as many new entries.
    pub entries: u64,
    /// After as long, in milliseconds, if there are new entries.
    pub every_ms: u64,
}

impl Default for BatchPolicy {
    /// 256 entries or five minutes.
    fn default() -> Self {
        Self { entries: 256, every_ms: 5 * 60 * 1000 }
    }
}

impl BatchPolicy {
    /// Whether to close a batch of `new` entries, the oldest of which was written at `since_ms`. When the clock went
    /// back the batch is closed as well: waiting for it to catch up could take for ever.
    #[must_use]
    pub fn is_due(&self, new: u64, since_ms: u64, now_ms: u64) -> bool {
        new > 0 && (new >= self.entries || now_ms < since_ms || now_ms - since_ms >= self.every_ms)
    }
}

/// An entry with the proof that it stands under a signed head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryProof {
    /// The entry.
    pub entry: Entry,
    /// That it is in the journal.
    pub proof: LeafProof,
}

impl EntryProof {
    /// Checks that the entry, as it is here, is the leaf that is proved, at the place that it names.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self) -> Result<(), Invalid> {
        self.proof.check()?;
        Invalid::unless(self.proof.proof.index == self.entry.seq, "index", "not that of the entry")?;
        let leaf = merkle::leaf_hash(self.entry.hash().as_bytes());
        Invalid::unless(self.proof.leaf == leaf, "leaf", "not that of the entry")
    }
}

/// A head as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadView {
    /// Whose journal it is.
    pub signer: NodeId,
    /// Entries covered.
    pub size: u64,
    /// Root over them.
    pub root: Hash,
    /// Wall time of signing, in milliseconds since 1970.
    pub at_ms: u64,
    /// The signed statement, in hexadecimal digits.
    pub signed: String,
}

impl From<&Signed<TreeHead>> for HeadView {
    fn from(head: &Signed<TreeHead>) -> Self {
        let TreeHead { size, root, at_ms } = *head.payload();
        Self { signer: head.signer(), size, root, at_ms, signed: hex(head.as_bytes()) }
    }
}

/// A proved entry as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryProofView {
    /// The entry, whose hash and place give the leaf.
    pub entry: Entry,
    /// Its hash.
    pub hash: Hash,
    /// The way from the leaf to the head's root.
    pub proof: InclusionProof,
    /// The head.
    pub head: HeadView,
}

impl From<&EntryProof> for EntryProofView {
    fn from(proved: &EntryProof) -> Self {
        let EntryProof { entry, proof } = proved;
        Self { entry: entry.clone(), hash: entry.hash(), proof: proof.proof.clone(), head: (&proof.head).into() }
    }
}

fn last_head(tx: &Transaction<'_>) -> Result<Option<Signed<TreeHead>>, LedgerError> {
    decode(
        tx.prepare_cached("SELECT head FROM batch ORDER BY size DESC LIMIT 1")?
            .query_row([], |row| row.get::<_, Vec<u8>>(0))
            .optional()?,
    )
}

/// Checks the newest `limit` heads that this node signed against the tree.
pub(crate) fn check_heads(tx: &Transaction<'_>, limit: Option<u32>) -> Result<(), LedgerError> {
    let length = journal::length(tx)?;
    let mut statement = tx.prepare_cached("SELECT size, head FROM batch ORDER BY size DESC LIMIT ?1")?;
    let rows = statement
        .query_map([limit.map_or(-1, i64::from)], |row| Ok((row.get::<_, u64>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
    for row in rows {
        let (signed_size, bytes) = row?;
        let head = Signed::<TreeHead>::decode(&bytes)?;
        let TreeHead { size, root, .. } = *head.payload();
        if size != signed_size || size > length || tree::root(tx, size)? != root {
            return Err(LedgerError::Corrupt { seq: length.saturating_sub(1), what: "it is not what was signed" });
        }
    }
    Ok(())
}

fn decode(bytes: Option<Vec<u8>>) -> Result<Option<Signed<TreeHead>>, LedgerError> {
    Ok(bytes.map(|bytes| Signed::decode(&bytes)).transpose()?)
}

impl Ledger {
    /// Signs a head over all entries if the policy says that it is time; returns it then.
    ///
    /// # Errors
    /// [`LedgerError::NotOwner`] when the key is not that of the ledger's owner, [`LedgerError::Corrupt`] when the
    /// journal is shorter than what was signed before, [`LedgerError::Database`].
    pub fn close_batch(
        &self,
        key: &RootKey,
        policy: &BatchPolicy,
        now_ms: u64,
    ) -> Result<Option<Signed<TreeHead>>, LedgerError> {
        if key.node_id() != self.owner() {
            return Err(LedgerError::NotOwner { owner: self.owner(), other: key.node_id() });
        }
        self.write(|tx| {
            let size = journal::length(tx)?;
            let closed = last_head(tx)?.map_or(0, |head| head.payload().size);
            let new = size
                .checked_sub(closed)
                .ok_or(LedgerError::Corrupt { seq: size, what: "the journal is shorter than what was signed" })?;
            if new == 0 {
                return Ok(None);
            }
            let since: u64 = tx.query_row("SELECT at_ms FROM entry WHERE seq = ?1", [closed], |row| row.get(0))?;
            if !policy.is_due(new, since, now_ms) {
                return Ok(None);
            }
            let at_ms = time(now_ms).unsigned_abs();
            let head = Signed::sign(key, TreeHead { size, root: tree::root(tx, size)?, at_ms });
            tx.execute(
                "INSERT INTO batch (size, at_ms, head) VALUES (?1, ?2, ?3)",
                params![size, at_ms, head.as_bytes()],
            )?;
            Ok(Some(head))
        })
    }

    /// The newest head that this node signed.
    ///
    /// # Errors
    /// [`LedgerError::Statement`], [`LedgerError::Database`].
    pub fn head(&self) -> Result<Option<Signed<TreeHead>>, LedgerError> {
        self.read(last_head)
    }

    /// The head that this node signed over exactly `size` entries.
    ///
    /// # Errors
    /// [`LedgerError::Statement`], [`LedgerError::Database`].
    pub fn head_of(&self, size: u64) -> Result<Option<Signed<TreeHead>>, LedgerError> {
        self.read(|tx| {
            decode(
                tx.prepare_cached("SELECT head FROM batch WHERE size = ?1")?
                    .query_row([time(size)], |row| row.get(0))
                    .optional()?,
            )
        })
    }

    /// Proves an entry under the newest head; `None` while no head covers it.
    ///
    /// # Errors
    /// [`LedgerError::Corrupt`], [`LedgerError::Statement`], [`LedgerError::Database`].
    pub fn prove_entry(&self, seq: u64) -> Result<Option<EntryProof>, LedgerError> {
        self.read(|tx| {
            let Some(head) = last_head(tx)?.filter(|head| seq < head.payload().size) else { return Ok(None) };
            let entry = journal::sound_entry(tx, &self.owner(), seq)?;
            let leaf = merkle::leaf_hash(entry.hash().as_bytes());
            let proof = tree::inclusion(tx, seq, head.payload().size)?;
            Ok(Some(EntryProof { entry, proof: LeafProof { head, leaf, proof } }))
        })
    }

    /// The way from leaf `index` to the root over the first `size` entries.
    ///
    /// # Errors
    /// [`LedgerError::Invalid`] when there are not as many, [`LedgerError::Corrupt`], [`LedgerError::Database`].
    pub fn prove_inclusion(&self, index: u64, size: u64) -> Result<InclusionProof, LedgerError> {
        self.read(|tx| {
            Invalid::unless(size <= journal::length(tx)?, "size", "more than there are entries")?;
            tree::inclusion(tx, index, size)
        })
    }

    /// That the journal of `old_size` entries grew into that of `new_size`.
    ///
    /// # Errors
    /// [`LedgerError::Invalid`] when there are not as many, or `old_size` is 0; [`LedgerError::Corrupt`],
    /// [`LedgerError::Database`].
    pub fn prove_growth(&self, old_size: u64, new_size: u64) -> Result<ConsistencyProof, LedgerError> {
        self.read(|tx| {
            Invalid::unless(new_size <= journal::length(tx)?, "new_size", "more than there are entries")?;
            tree::consistency(tx, old_size, new_size)
        })
    }
}
