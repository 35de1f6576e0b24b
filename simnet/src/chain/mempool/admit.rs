//! Who may wait for a block: the rules of consensus for the next block, and those of relay.

use std::collections::BTreeSet;
use std::sync::Arc;

use bitcoin::{Transaction, Txid};

use super::{Entry, Mempool, MempoolError};
use crate::chain::branch::Branch;
use crate::chain::coins::Coin;
use crate::chain::params::{
    MAX_FAMILY, MAX_MEMPOOL_VSIZE, MAX_STANDARD_SIGOPS_COST, MAX_STANDARD_WEIGHT, RELAY_FEE_PER_KVB, fee_at,
};
use crate::chain::transaction;

/// Versions of a transaction that have a meaning.
const VERSIONS: std::ops::RangeInclusive<i32> = 1..=3;

/// Least length of a transaction without witnesses, in bytes.
const MIN_SIZE: usize = 65;

/// Whether the rules of relay apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::chain) enum Relay {
    /// It was sent here.
    New,
    /// A block that was taken off had held it.
    Returned,
}

impl Mempool {
    /// Takes a transaction that is valid on top of `branch`. `now` is in Unix seconds.
    ///
    /// # Errors
    /// Says why not; then nothing has changed.
    pub(in crate::chain) fn admit(
        &mut self,
        transaction: Transaction,
        branch: &Branch,
        relay: Relay,
        now: u64,
    ) -> Result<Txid, MempoolError> {
        let txid = transaction.compute_txid();
        self.check_new(txid, &transaction, branch)?;
        let place = branch.next_place();
        transaction::check_alone(&transaction)?;
        transaction::check_final(&transaction, place).map_err(|_| MempoolError::NonFinal)?;
        let spent = self.spent_by(&transaction, branch)?;
        let entry = Entry {
            fee: transaction::check_amounts(&transaction, &spent, place)?,
            vsize: transaction.vsize() as u64,
            sigops_cost: transaction::sigops_cost(&transaction, &spent),
            time: now.max(self.newest.saturating_add(1)),
            height: branch.height(),
            transaction: Arc::new(transaction),
        };
        let mut evicted = BTreeSet::new();
        if relay == Relay::New {
            check_standard(&entry)?;
            evicted = self.evicted_by(&entry)?;
            self.check_room(&entry, &evicted)?;
        } else if self.conflicts(&entry.transaction).next().is_some() {
            return Err(MempoolError::Known);
        }
        check_spending(&entry, &spent, branch)?;
        for txid in &evicted {
            self.remove(txid);
        }
        self.insert(txid, entry);
        Ok(txid)
    }

    fn check_new(&self, txid: Txid, transaction: &Transaction, branch: &Branch) -> Result<(), MempoolError> {
        if transaction.is_coinbase() {
            return Err(MempoolError::Coinbase);
        }
        if self.entries.contains_key(&txid) {
            return Err(MempoolError::Known);
        }
        if branch.coins().has_output_of(transaction) {
            return Err(MempoolError::Confirmed);
        }
        Ok(())
    }

    /// Bounds what one transaction can make others depend on, and the whole.
    fn check_room(&self, entry: &Entry, evicted: &BTreeSet<Txid>) -> Result<(), MempoolError> {
        let freed: u64 = evicted.iter().filter_map(|txid| self.entries.get(txid)).map(|entry| entry.vsize).sum();
        if self.vsize - freed + entry.vsize > MAX_MEMPOOL_VSIZE {
            return Err(MempoolError::Full);
        }
        let ancestors = self.ancestors(&entry.transaction);
        let crowded = |ancestor: &Txid| self.and_descendants(ancestor).difference(evicted).count() >= MAX_FAMILY;
        if ancestors.len() >= MAX_FAMILY || ancestors.iter().any(crowded) {
            return Err(MempoolError::TooLongChain);
        }
        Ok(())
    }
}

fn check_standard(entry: &Entry) -> Result<(), MempoolError> {
    let transaction = &entry.transaction;
    if !VERSIONS.contains(&transaction.version.0) {
        return Err(MempoolError::Version);
    }
    if transaction.weight() > MAX_STANDARD_WEIGHT {
        return Err(MempoolError::TooLarge);
    }
    if transaction.base_size() < MIN_SIZE {
        return Err(MempoolError::TooSmall);
    }
    if entry.sigops_cost > MAX_STANDARD_SIGOPS_COST {
        return Err(MempoolError::Sigops);
    }
    if transaction.output.iter().any(|output| output.value < output.script_pubkey.minimal_non_dust()) {
        return Err(MempoolError::Dust);
    }
    let needed = fee_at(RELAY_FEE_PER_KVB, entry.vsize);
    if entry.fee < needed { Err(MempoolError::FeeTooLow { paid: entry.fee, needed }) } else { Ok(()) }
}

fn check_spending(entry: &Entry, spent: &[Coin], branch: &Branch) -> Result<(), MempoolError> {
    branch.check_spending(&entry.transaction, spent, branch.next_place())?;
    Ok(())
}
