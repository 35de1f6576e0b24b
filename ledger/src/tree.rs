//! The Merkle tree over the journal, kept so that roots and proofs cost a logarithm of its length.
//!
//! Leaf `n` is [`merkle::leaf_hash`] of entry `n`'s hash. Of the nodes above the leaves those are stored whose subtree
//! is complete (`2^level` leaves, from `place * 2^level`): they never change. Roots and proofs are put together from
//! them, and are those that [`merkle`] makes from all leaves.

use consortium_protocol::merkle::{self, ConsistencyProof, InclusionProof};
use consortium_protocol::{Hash, Invalid};
use rusqlite::{OptionalExtension, Transaction, params};

use crate::ledger::{LedgerError, hash_at};

/// The hash of a node over two others.
pub(crate) fn join(left: Hash, right: Hash) -> Hash {
    merkle::root(&[left, right])
}

/// Stores the nodes that become complete with leaf `seq`.
pub(crate) fn grow(tx: &Transaction<'_>, seq: u64, leaf: Hash) -> Result<(), LedgerError> {
    let (mut level, mut place, mut hash) = (0_u32, seq, leaf);
    while place & 1 == 1 {
        hash = join(complete(tx, level, place - 1)?, hash);
        level += 1;
        place >>= 1;
        tx.prepare_cached("INSERT INTO node (level, place, hash) VALUES (?1, ?2, ?3)")?.execute(params![
            level,
            place,
            hash.as_bytes()
        ])?;
    }
    Ok(())
}

/// The hash over the complete subtree `place` of a level.
pub(crate) fn complete(tx: &Transaction<'_>, level: u32, place: u64) -> Result<Hash, LedgerError> {
    let found = if level == 0 {
        tx.prepare_cached("SELECT hash FROM entry WHERE seq = ?1")?
            .query_row([place], |row| hash_at(row, 0))
            .optional()?
            .map(|hash| merkle::leaf_hash(hash.as_bytes()))
    } else {
        tx.prepare_cached("SELECT hash FROM node WHERE level = ?1 AND place = ?2")?
            .query_row(params![level, place], |row| hash_at(row, 0))
            .optional()?
    };
    found.ok_or(LedgerError::Corrupt { seq: place << level, what: "a node of the tree is missing" })
}

/// Where the tree over `start..end` (two leaves or more) is split.
fn split(start: u64, end: u64) -> u64 {
    start + (1 << (end - start - 1).ilog2())
}

/// The root over the leaves `start..end`. `start` is where a split of a larger tree lies, or 0.
fn range(tx: &Transaction<'_>, start: u64, end: u64) -> Result<Hash, LedgerError> {
    let size = end - start;
    if size == 0 {
        return Ok(merkle::root(&[]));
    }
    if size.is_power_of_two() {
        return complete(tx, size.ilog2(), start >> size.ilog2());
    }
    let at = split(start, end);
    Ok(join(range(tx, start, at)?, range(tx, at, end)?))
}

/// The root over the first `size` leaves.
pub(crate) fn root(tx: &Transaction<'_>, size: u64) -> Result<Hash, LedgerError> {
    range(tx, 0, size)
}

/// Proves leaf `index` in the tree of the first `size`.
pub(crate) fn inclusion(tx: &Transaction<'_>, index: u64, size: u64) -> Result<InclusionProof, LedgerError> {
    Invalid::unless(index < size, "index", "outside the tree")?;
    let mut path = Vec::new();
    let (mut start, mut end) = (0, size);
    while end - start > 1 {
        let at = split(start, end);
        if index < at {
            path.push(range(tx, at, end)?);
            end = at;
        } else {
            path.push(range(tx, start, at)?);
            start = at;
        }
    }
    path.reverse();
    Ok(InclusionProof { index, size, path })
}

/// Proves that the tree of the first `old_size` leaves grew into that of the first `new_size`.
pub(crate) fn consistency(tx: &Transaction<'_>, old_size: u64, new_size: u64) -> Result<ConsistencyProof, LedgerError> {
    Invalid::unless((1..=new_size).contains(&old_size), "old_size", "1 to new_size")?;
    let mut path = Vec::new();
    let (mut start, mut end, mut whole) = (0, new_size, true);
    // RFC 6962, section 2.1.2: down to where the old tree ends a subtree, then that subtree unless it is all of the
    // old tree, whose root the verifier has.
    while old_size < end {
        let at = split(start, end);
        if old_size <= at {
            path.push(range(tx, at, end)?);
            end = at;
        } else {
            path.push(range(tx, start, at)?);
            start = at;
            whole = false;
        }
    }
    if !whole {
        path.push(range(tx, start, end)?);
    }
    path.reverse();
    Ok(ConsistencyProof { old_size, new_size, path })
}
