//! Replacement of transactions that wait by one that spends the same and pays more (BIP125, without its opt-in, as
//! Bitcoin Core has had it since version 28).

use std::collections::BTreeSet;

use bitcoin::{Amount, Transaction, Txid};

use super::{Entry, Mempool, MempoolError};
use crate::chain::params::{MAX_REPLACED, RELAY_FEE_PER_KVB, fee_at};

impl Mempool {
    /// Those that spend what `transaction` spends.
    pub(super) fn conflicts(&self, transaction: &Transaction) -> impl Iterator<Item = Txid> {
        transaction.input.iter().filter_map(|input| self.spender(&input.previous_output))
    }

    /// Those that `entry` would push out, if it may.
    pub(super) fn evicted_by(&self, entry: &Entry) -> Result<BTreeSet<Txid>, MempoolError> {
        let conflicts: BTreeSet<Txid> = self.conflicts(&entry.transaction).collect();
        if conflicts.is_empty() {
            return Ok(conflicts);
        }
        let mut evicted = BTreeSet::new();
        for conflict in &conflicts {
            evicted.extend(self.and_descendants(conflict));
            if evicted.len() > MAX_REPLACED {
                return Err(MempoolError::TooManyReplaced);
            }
        }
        if !self.ancestors(&entry.transaction).is_disjoint(&evicted) {
            return Err(MempoolError::SpendsReplaced);
        }
        self.check_no_new_parents(entry, &conflicts)?;
        self.check_fee(entry, &conflicts, &evicted)?;
        Ok(evicted)
    }

    fn check_no_new_parents(&self, entry: &Entry, conflicts: &BTreeSet<Txid>) -> Result<(), MempoolError> {
        let replaced = conflicts.iter().filter_map(|txid| self.get(txid));
        let before: BTreeSet<Txid> = replaced.flat_map(|entry| self.parents(&entry.transaction)).collect();
        if self.parents(&entry.transaction).is_subset(&before) { Ok(()) } else { Err(MempoolError::AddsUnconfirmed) }
    }

    /// More for each byte than any that it conflicts with, and on top of what all those pay the relay of itself.
    fn check_fee(
        &self,
        entry: &Entry,
        conflicts: &BTreeSet<Txid>,
        evicted: &BTreeSet<Txid>,
    ) -> Result<(), MempoolError> {
        let fee = |txid: &Txid| self.get(txid).map_or(Amount::ZERO, |entry| entry.fee);
        let lost: Amount = evicted.iter().map(fee).sum();
        let for_rate = conflicts.iter().filter_map(|txid| self.get(txid)).map(|other| {
            let scaled = u128::from(other.fee.to_sat()) * u128::from(entry.vsize) / u128::from(other.vsize.max(1));
            Amount::from_sat(u64::try_from(scaled).unwrap_or(u64::MAX).saturating_add(1))
        });
        let for_relay = lost + fee_at(RELAY_FEE_PER_KVB, entry.vsize);
        let needed = for_rate.fold(for_relay, Amount::max);
        if entry.fee < needed { Err(MempoolError::ReplacementFee { paid: entry.fee, needed }) } else { Ok(()) }
    }
}
