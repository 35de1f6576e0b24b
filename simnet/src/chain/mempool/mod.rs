//! Transactions that wait for a block.
//!
//! [`admit`] decides who comes in, [`replace`] who may push others out. The pool holds no links between transactions:
//! who spends whose output is looked up.

mod admit;
mod replace;

pub(super) use admit::Relay;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bitcoin::{Amount, Block, OutPoint, Transaction, Txid};
use thiserror::Error;

use super::branch::Branch;
use super::coins::Coin;
use super::transaction::{self, TransactionError};

/// A transaction that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The transaction.
    pub transaction: Arc<Transaction>,
    /// What it pays to the miner.
    pub fee: Amount,
    /// Virtual bytes.
    pub vsize: u64,
    /// Signature operations, in units of cost.
    pub sigops_cost: u64,
    /// When it came, in Unix seconds; later than all that came before. Wallets that remember the newest one they have
    /// seen (ldk-node does) would miss a second one of the same second.
    pub time: u64,
    /// Height of the chain when it came.
    pub height: u32,
}

/// Why a transaction was not taken. The text begins with Bitcoin Core's own word for it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MempoolError {
    /// A block holds it.
    #[error("Transaction outputs already in utxo set")]
    Confirmed,
    /// It is there already.
    #[error("txn-already-in-mempool")]
    Known,
    /// It is invalid.
    #[error(transparent)]
    Invalid(#[from] TransactionError),
    /// It is a coinbase, which belongs in a block.
    #[error("coinbase")]
    Coinbase,
    /// Its absolute lock has not passed.
    #[error("non-final")]
    NonFinal,
    /// Its version is unknown.
    #[error("version")]
    Version,
    /// It weighs more than is relayed.
    #[error("tx-size")]
    TooLarge,
    /// It is so short that it could be taken for a node of a Merkle tree.
    #[error("tx-size-small")]
    TooSmall,
    /// It makes an output that would cost more to spend than it is worth.
    #[error("dust")]
    Dust,
    /// It holds too many signature operations.
    #[error("bad-txns-too-many-sigops")]
    Sigops,
    /// It pays less than is relayed.
    #[error("min relay fee not met, {} < {}", paid.to_sat(), needed.to_sat())]
    FeeTooLow {
        /// What it pays.
        paid: Amount,
        /// The least that it must pay.
        needed: Amount,
    },
    /// It has too many unconfirmed ancestors, or one of these too many descendants.
    #[error("too-long-mempool-chain")]
    TooLongChain,
    /// There is no room.
    #[error("mempool full")]
    Full,
    /// It spends what another one spends, and pays too little to replace it.
    #[error("insufficient fee, rejecting replacement: {} < {}", paid.to_sat(), needed.to_sat())]
    ReplacementFee {
        /// What it pays.
        paid: Amount,
        /// The least that it must pay.
        needed: Amount,
    },
    /// It would push out too many.
    #[error("too many potential replacements")]
    TooManyReplaced,
    /// It spends an output of one that it would push out.
    #[error("bad-txns-spends-conflicting-tx")]
    SpendsReplaced,
    /// It replaces another one and depends on unconfirmed ones that this one did not depend on.
    #[error("replacement-adds-unconfirmed")]
    AddsUnconfirmed,
}

/// The transactions that wait, none of which conflicts with another.
#[derive(Clone, Debug, Default)]
pub(super) struct Mempool {
    entries: BTreeMap<Txid, Entry>,
    /// Who spends an outpoint.
    spenders: BTreeMap<OutPoint, Txid>,
    vsize: u64,
    /// The time of the newest entry there ever was.
    newest: u64,
}

impl Mempool {
    pub(super) fn entries(&self) -> &BTreeMap<Txid, Entry> {
        &self.entries
    }

    pub(super) fn get(&self, txid: &Txid) -> Option<&Entry> {
        self.entries.get(txid)
    }

    /// Virtual bytes of all entries.
    pub(super) fn vsize(&self) -> u64 {
        self.vsize
    }

    /// Who spends an outpoint.
    pub(super) fn spender(&self, outpoint: &OutPoint) -> Option<Txid> {
        self.spenders.get(outpoint).copied()
    }

    /// The coin behind an outpoint, made by a transaction here or in a block of `branch`.
    pub(super) fn coin(&self, outpoint: &OutPoint, branch: &Branch) -> Option<Coin> {
        let Some(entry) = self.entries.get(&outpoint.txid) else {
            return branch.coin(outpoint).cloned();
        };
        let output = entry.transaction.output.get(outpoint.vout as usize)?.clone();
        Some(Coin { output, height: branch.next_place().height, coinbase: false })
    }

    /// The coins that `transaction` spends.
    fn spent_by(&self, transaction: &Transaction, branch: &Branch) -> Result<Vec<Coin>, TransactionError> {
        let coins = transaction.input.iter().map(|input| self.coin(&input.previous_output, branch));
        coins.collect::<Option<_>>().ok_or(TransactionError::MissingInputs)
    }

    /// Those here that `transaction` spends directly.
    pub(super) fn parents(&self, transaction: &Transaction) -> BTreeSet<Txid> {
        let parents = transaction.input.iter().map(|input| input.previous_output.txid);
        parents.filter(|parent| self.entries.contains_key(parent)).collect()
    }

    /// Those here that spend `txid` directly.
    pub(super) fn children(&self, txid: &Txid) -> BTreeSet<Txid> {
        self.spenders.range(OutPoint::new(*txid, 0)..=OutPoint::new(*txid, u32::MAX)).map(|(_, child)| *child).collect()
    }

    /// Those here that `transaction` depends on, without itself.
    pub(super) fn ancestors(&self, transaction: &Transaction) -> BTreeSet<Txid> {
        closure(self.parents(transaction), |txid| {
            self.entries.get(txid).map(|entry| self.parents(&entry.transaction)).unwrap_or_default()
        })
    }

    /// `txid` and those here that depend on it.
    pub(super) fn and_descendants(&self, txid: &Txid) -> BTreeSet<Txid> {
        closure(BTreeSet::from([*txid]), |txid| self.children(txid))
    }

    fn insert(&mut self, txid: Txid, entry: Entry) {
        self.spenders.extend(entry.transaction.input.iter().map(|input| (input.previous_output, txid)));
        self.vsize += entry.vsize;
        self.newest = self.newest.max(entry.time);
        self.entries.insert(txid, entry);
    }

    /// Removes one transaction alone.
    fn remove(&mut self, txid: &Txid) {
        let Some(entry) = self.entries.remove(txid) else { return };
        self.vsize -= entry.vsize;
        for input in &entry.transaction.input {
            self.spenders.remove(&input.previous_output);
        }
    }

    fn remove_with_descendants(&mut self, txid: &Txid) {
        for txid in self.and_descendants(txid) {
            self.remove(&txid);
        }
    }

    /// Removes what a block confirmed, and what can no longer be confirmed because of it.
    pub(super) fn confirm(&mut self, block: &Block) {
        for transaction in &block.txdata {
            self.remove(&transaction.compute_txid());
            for input in &transaction.input {
                if let Some(conflict) = self.spender(&input.previous_output) {
                    self.remove_with_descendants(&conflict);
                }
            }
        }
    }

    /// Removes what is not valid any more on top of `branch`: after blocks were taken off, inputs may be gone, and locks
    /// may be closed again.
    pub(super) fn prune(&mut self, branch: &Branch) {
        let place = branch.next_place();
        let still_valid = |entry: &Entry| {
            let transaction = &entry.transaction;
            let spent = self.spent_by(transaction, branch)?;
            transaction::check_final(transaction, place)?;
            transaction::check_amounts(transaction, &spent, place)?;
            transaction::check_relative_locks(transaction, &spent, place, |height| branch.median_time_past(height))
        };
        let gone: Vec<Txid> =
            self.entries.iter().filter(|(_, entry)| still_valid(entry).is_err()).map(|(txid, _)| *txid).collect();
        for txid in gone {
            self.remove_with_descendants(&txid);
        }
    }
}

/// `start` and all that `next` leads to from there.
fn closure(start: BTreeSet<Txid>, next: impl Fn(&Txid) -> BTreeSet<Txid>) -> BTreeSet<Txid> {
    let mut found = start.clone();
    let mut open: Vec<Txid> = start.into_iter().collect();
    while let Some(txid) = open.pop() {
        open.extend(next(&txid).into_iter().filter(|txid| found.insert(*txid)));
    }
    found
}
