//! The journal: entries that are appended and never changed, each bound to the one before.
//!
//! An entry's hash is BLAKE3 in `derive_key` mode under `consortium ledger entry 1` over the canonical CBOR of the map
//! `{seq, at_ms, kind, reference, postings, prev}`: numbers, the kind's name as text, 32 bytes, a map from the text of
//! an account to msat, 32 bytes. The first entry's `prev` is the public key of the ledger's owner, so that a journal
//! cannot be passed off as another node's. Postings of zero are left out; those of an entry sum to zero.

use std::collections::BTreeMap;
use std::str::FromStr;

use consortium_protocol::{Hash, NodeId, cbor, merkle};
use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use crate::accounts::{Account, ParseAccountError};
use crate::batches;
use crate::ledger::{Ledger, LedgerError, hash_at, text_at, time};
use crate::tree;

/// How many entries from the end are checked when a ledger is opened.
pub const TAIL: u64 = 64;

/// Domain of an entry's hash.
const CONTEXT: &str = "consortium ledger entry 1";

/// What is taken from and given to accounts, in msat.
pub type Postings = BTreeMap<Account, i64>;

/// What an entry is about. With its reference it is unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Trial credit; reference: BLAKE3 of the key's id.
    Trial,
    /// Money came in; reference: the hash of the Lightning payment, or given by the caller.
    Deposit,
    /// Money went out; reference: the hash of the Lightning payment, or given by the caller.
    Withdrawal,
    /// A payment of others was passed on; reference: see [`crate::payments`].
    Routed,
    /// Work was done; reference: the digest of the record.
    Work,
    /// What was held is paid; reference: the verdict, or the list of claims whose wait was over.
    Paid,
    /// Pay went back to who paid; reference: the verdict.
    Returned,
    /// Tails became free; reference: the list of claims.
    Matured,
    /// Something was put aside; reference given by the caller.
    Bonded,
    /// A bond was given back; reference: that of the bond.
    Unbonded,
    /// A bond was forfeited; reference: that of the bond, or the hash of the Lightning payment that it was.
    Forfeited,
    /// What an escrow paid for work that was judged; reference: the hash of the Lightning payment.
    Reward,
    /// What a training run pays out; reference: see [`crate::payouts`].
    Training,
    /// The most that a job can cost was put aside; reference: see [`crate::reservations`].
    Reserved,
    /// Some or all of it was given back; reference: see [`crate::reservations`].
    Released,
    /// The cost of a channel was taken off a tab; reference: digest of the signed offer, on both sides.
    Channel,
}

impl Kind {
    const ALL: [(Self, &'static str); 16] = [
        (Self::Trial, "trial"),
        (Self::Deposit, "deposit"),
        (Self::Withdrawal, "withdrawal"),
        (Self::Routed, "routed"),
        (Self::Work, "work"),
        (Self::Paid, "paid"),
        (Self::Returned, "returned"),
        (Self::Matured, "matured"),
        (Self::Bonded, "bonded"),
        (Self::Unbonded, "unbonded"),
        (Self::Forfeited, "forfeited"),
        (Self::Reward, "reward"),
        (Self::Training, "training"),
        (Self::Reserved, "reserved"),
        (Self::Released, "released"),
        (Self::Channel, "channel"),
    ];

    /// The name, as it is hashed.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }

    /// What a posting of this kind adds to what its owner earned and spent, in msat.
    pub(crate) fn turnover(self, msat: i64) -> (i128, i128) {
        let msat = i128::from(msat);
        match self {
            Self::Work | Self::Reward | Self::Training => (msat.max(0), (-msat).max(0)),
            Self::Returned => (msat.min(0), (-msat).min(0)),
            _ => (0, 0),
        }
    }
}

impl FromStr for Kind {
    type Err = ParseAccountError;

    fn from_str(text: &str) -> Result<Self, ParseAccountError> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(kind, _)| *kind).ok_or(ParseAccountError)
    }
}

/// An entry of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its place, from 0.
    pub seq: u64,
    /// Wall time of writing, in milliseconds since 1970, as the node's clock had it.
    pub at_ms: u64,
    /// What it is about.
    pub kind: Kind,
    /// What it stands for; unique for the kind.
    pub reference: Hash,
    /// What moved, in msat; sums to zero.
    pub postings: Postings,
    /// The hash of the entry before; the owner's public key for the first.
    pub prev: Hash,
}

impl Entry {
    /// The hash: see the module's documentation.
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash::from_bytes(blake3::derive_key(CONTEXT, &cbor::to_vec(self)))
    }

    fn sum(&self) -> i128 {
        self.postings.values().copied().map(i128::from).sum()
    }
}

/// What became of a posting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Posted {
    /// It was written, as this entry.
    New(u64),
    /// It had been written before, as this entry; nothing changed.
    Already(u64),
    /// There was nothing to write.
    Nothing,
}

/// The hash that the first entry names as the one before it.
fn genesis(owner: &NodeId) -> Hash {
    Hash::from_bytes(*owner.as_bytes())
}

/// The postings that move `msat` from one account to another.
pub(crate) fn transfer(from: Account, to: Account, msat: i64) -> Postings {
    Postings::from([(from, -msat), (to, msat)])
}

/// The entry of this kind and reference.
pub(crate) fn find(tx: &Transaction<'_>, kind: Kind, reference: &Hash) -> Result<Option<u64>, LedgerError> {
    Ok(tx
        .prepare_cached("SELECT seq FROM entry WHERE kind = ?1 AND reference = ?2")?
        .query_row(params![kind.as_str(), reference.as_bytes()], |row| row.get(0))
        .optional()?)
}

/// Whether exactly this was posted before.
///
/// # Errors
/// [`LedgerError::Reused`] when something else was, under the same kind and reference.
pub(crate) fn posted(
    tx: &Transaction<'_>,
    kind: Kind,
    reference: &Hash,
    wanted: &Postings,
) -> Result<Option<Posted>, LedgerError> {
    let Some(seq) = find(tx, kind, reference)? else { return Ok(None) };
    let same = postings(tx, seq)?.iter().eq(wanted.iter().filter(|(_, msat)| **msat != 0));
    if same { Ok(Some(Posted::Already(seq))) } else { Err(LedgerError::Reused(*reference)) }
}

/// Appends an entry, unless the same was posted before.
pub(crate) fn append_once(
    tx: &Transaction<'_>,
    owner: &NodeId,
    kind: Kind,
    reference: Hash,
    at_ms: u64,
    postings: Postings,
) -> Result<Posted, LedgerError> {
    match posted(tx, kind, &reference, &postings)? {
        Some(posted) => Ok(posted),
        None => append(tx, owner, kind, reference, at_ms, postings).map(Posted::New),
    }
}

/// Appends an entry and brings balances, turnover and tree up to it; returns its place.
pub(crate) fn append(
    tx: &Transaction<'_>,
    owner: &NodeId,
    kind: Kind,
    reference: Hash,
    at_ms: u64,
    mut postings: Postings,
) -> Result<u64, LedgerError> {
    postings.retain(|_, msat| *msat != 0);
    let (seq, prev) = match last(tx)? {
        Some((seq, hash)) => (seq + 1, hash),
        None => (0, genesis(owner)),
    };
    let at_ms = time(at_ms).unsigned_abs();
    let entry = Entry { seq, at_ms, kind, reference, postings, prev };
    if entry.sum() != 0 {
        return Err(LedgerError::Unbalanced(entry.sum()));
    }
    let hash = entry.hash();
    tx.prepare_cached("INSERT INTO entry (seq, at_ms, kind, reference, hash) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![seq, at_ms, kind.as_str(), reference.as_bytes(), hash.as_bytes()])?;
    for (account, msat) in &entry.postings {
        post(tx, &entry, account, *msat)?;
    }
    tree::grow(tx, seq, merkle::leaf_hash(hash.as_bytes()))?;
    Ok(seq)
}

fn post(tx: &Transaction<'_>, entry: &Entry, account: &Account, msat: i64) -> Result<(), LedgerError> {
    let (name, part) = (account.owner.to_string(), account.part.as_str());
    tx.prepare_cached("INSERT INTO posting (seq, owner, part, msat) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![entry.seq, name, part, msat])?;
    let before: i64 = tx
        .prepare_cached("SELECT msat FROM balance WHERE owner = ?1 AND part = ?2")?
        .query_row(params![name, part], |row| row.get(0))
        .optional()?
        .unwrap_or_default();
    let after = before.checked_add(msat).ok_or(LedgerError::Overflow)?;
    tx.prepare_cached("INSERT OR REPLACE INTO balance (owner, part, msat) VALUES (?1, ?2, ?3)")?
        .execute(params![name, part, after])?;
    let (earned, spent) = entry.kind.turnover(msat);
    if (earned, spent) == (0, 0) {
        return Ok(());
    }
    let before: Option<(i64, i64)> = tx
        .prepare_cached("SELECT earned, spent FROM turnover WHERE owner = ?1")?
        .query_row([&name], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (earned_before, spent_before) = before.unwrap_or_default();
    let add = |before: i64, more: i128| i64::try_from(i128::from(before) + more).map_err(|_| LedgerError::Overflow);
    tx.prepare_cached("INSERT OR REPLACE INTO turnover (owner, earned, spent) VALUES (?1, ?2, ?3)")?
        .execute(params![name, add(earned_before, earned)?, add(spent_before, spent)?])?;
    Ok(())
}

/// Place and hash of the last entry.
pub(crate) fn last(tx: &Transaction<'_>) -> Result<Option<(u64, Hash)>, LedgerError> {
    Ok(tx
        .prepare_cached("SELECT seq, hash FROM entry ORDER BY seq DESC LIMIT 1")?
        .query_row([], |row| Ok((row.get(0)?, hash_at(row, 1)?)))
        .optional()?)
}

/// How many entries there are.
pub(crate) fn length(tx: &Transaction<'_>) -> Result<u64, LedgerError> {
    Ok(last(tx)?.map_or(0, |(seq, _)| seq + 1))
}

pub(crate) fn postings(tx: &Transaction<'_>, seq: u64) -> Result<Postings, LedgerError> {
    let mut statement = tx.prepare_cached("SELECT owner, part, msat FROM posting WHERE seq = ?1")?;
    let rows = statement
        .query_map([seq], |row| Ok((Account { owner: text_at(row, 0)?, part: text_at(row, 1)? }, row.get(2)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn read(row: &Row<'_>) -> rusqlite::Result<(u64, u64, Kind, Hash, Hash)> {
    Ok((row.get(0)?, row.get(1)?, text_at(row, 2)?, hash_at(row, 3)?, hash_at(row, 4)?))
}

/// The entry at `seq`, if there is one, with its stored hash.
pub(crate) fn entry(tx: &Transaction<'_>, owner: &NodeId, seq: u64) -> Result<Option<(Entry, Hash)>, LedgerError> {
    let prev = match seq.checked_sub(1) {
        None => Some(genesis(owner)),
        Some(before) => tx
            .prepare_cached("SELECT hash FROM entry WHERE seq = ?1")?
            .query_row([before], |row| hash_at(row, 0))
            .optional()?,
    };
    let found = tx
        .prepare_cached("SELECT seq, at_ms, kind, reference, hash FROM entry WHERE seq = ?1")?
        .query_row([seq], read)
        .optional()?;
    let Some((seq, at_ms, kind, reference, hash)) = found else { return Ok(None) };
    let prev = prev.ok_or(LedgerError::Corrupt { seq, what: "the entry before it is missing" })?;
    Ok(Some((Entry { seq, at_ms, kind, reference, postings: postings(tx, seq)?, prev }, hash)))
}

/// The entry at `seq`, verified: it is there, has the hash that is stored, and balances.
pub(crate) fn sound_entry(tx: &Transaction<'_>, owner: &NodeId, seq: u64) -> Result<Entry, LedgerError> {
    let corrupt = |what| LedgerError::Corrupt { seq, what };
    let (entry, hash) = entry(tx, owner, seq)?.ok_or(corrupt("it is missing"))?;
    if entry.hash() != hash {
        return Err(corrupt("its hash is another"));
    }
    if entry.sum() != 0 {
        return Err(corrupt("it does not balance"));
    }
    Ok(entry)
}

/// Checks the last [`TAIL`] entries, their number and the sum of all balances.
pub(crate) fn check_tail(tx: &Transaction<'_>, owner: &NodeId) -> Result<(), LedgerError> {
    let length = length(tx)?;
    for seq in length.saturating_sub(TAIL)..length {
        sound_entry(tx, owner, seq)?;
    }
    // The first entry names the owner; in a long journal it lies outside the tail.
    if length > TAIL {
        sound_entry(tx, owner, 0)?;
    }
    let damaged = |what| LedgerError::Corrupt { seq: length.saturating_sub(1), what };
    let mut statement = tx.prepare_cached("SELECT msat FROM balance")?;
    let mut sum = 0_i128;
    for msat in statement.query_map([], |row| row.get::<_, i64>(0))? {
        sum += i128::from(msat?);
    }
    if sum == 0 { Ok(()) } else { Err(damaged("the balances do not sum to zero")) }
}

impl Ledger {
    /// The entry at a place, if there is one.
    ///
    /// # Errors
    /// [`LedgerError::Corrupt`], [`LedgerError::Database`].
    pub fn entry(&self, seq: u64) -> Result<Option<Entry>, LedgerError> {
        self.read(|tx| if seq < length(tx)? { sound_entry(tx, &self.owner(), seq).map(Some) } else { Ok(None) })
    }

    /// How many entries the journal has.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn length(&self) -> Result<u64, LedgerError> {
        self.read(length)
    }

    /// Checks every entry from the first on: hashes, chain, sums, the tree over them and
    /// the heads that were signed. Returns how many there are.
    ///
    /// # Errors
    /// [`LedgerError::Corrupt`] at the first that does not hold, [`LedgerError::Database`].
    pub fn verify(&self) -> Result<u64, LedgerError> {
        self.read(|tx| {
            let length = length(tx)?;
            // Roots of complete subtrees, largest first: what a binary counter of leaves holds.
            let mut peaks: Vec<Hash> = Vec::new();
            for seq in 0..length {
                let entry = sound_entry(tx, &self.owner(), seq)?;
                let mut hash = merkle::leaf_hash(entry.hash().as_bytes());
                for level in 1..=seq.trailing_ones() {
                    hash = peaks.pop().map_or(hash, |left| tree::join(left, hash));
                    if tree::complete(tx, level, seq >> level)? != hash {
                        return Err(LedgerError::Corrupt { seq, what: "the tree over the entries is another" });
                    }
                }
                peaks.push(hash);
            }
            batches::check_heads(tx, None)?;
            Ok(length)
        })
    }
}
