//! The coins of a branch: every output that can be spent.

use std::collections::BTreeMap;

use bitcoin::{OutPoint, Script, Transaction, TxOut};

use super::params::MAX_SCRIPT_LENGTH;

/// An output that can be spent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Coin {
    pub(super) output: TxOut,
    /// Height of the block that made it; the next block's for an output in the mempool.
    pub(super) height: u32,
    /// Whether a coinbase made it.
    pub(super) coinbase: bool,
}

/// All coins of a branch. Applying a transaction and reverting it leaves the set as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CoinSet(BTreeMap<OutPoint, Coin>);

impl CoinSet {
    pub(super) fn get(&self, outpoint: &OutPoint) -> Option<&Coin> {
        self.0.get(outpoint)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&OutPoint, &Coin)> {
        self.0.iter()
    }

    /// The coins that `transaction` spends, in the order of its inputs; none when one is missing.
    pub(super) fn spent_by(&self, transaction: &Transaction) -> Option<Vec<Coin>> {
        transaction.input.iter().map(|input| self.get(&input.previous_output).cloned()).collect()
    }

    /// Whether an output of `transaction` is a coin already.
    pub(super) fn has_output_of(&self, transaction: &Transaction) -> bool {
        let txid = transaction.compute_txid();
        self.0.range(OutPoint::new(txid, 0)..=OutPoint::new(txid, u32::MAX)).next().is_some()
    }

    /// Spends the inputs of a transaction that was checked, and adds its outputs.
    pub(super) fn apply(&mut self, transaction: &Transaction, height: u32) {
        let coinbase = transaction.is_coinbase();
        if !coinbase {
            for input in &transaction.input {
                self.0.remove(&input.previous_output);
            }
        }
        for (outpoint, output) in spendable_outputs(transaction) {
            self.0.insert(outpoint, Coin { output: output.clone(), height, coinbase });
        }
    }

    /// Undoes [`CoinSet::apply`]: `spent` is what the transaction had spent, in the order of its inputs.
    pub(super) fn revert(&mut self, transaction: &Transaction, spent: Vec<Coin>) {
        for (outpoint, _) in spendable_outputs(transaction) {
            self.0.remove(&outpoint);
        }
        for (input, coin) in transaction.input.iter().zip(spent) {
            self.0.insert(input.previous_output, coin);
        }
    }
}

/// The outputs of a transaction that somebody could spend.
pub(super) fn spendable_outputs(transaction: &Transaction) -> impl Iterator<Item = (OutPoint, &TxOut)> {
    let txid = transaction.compute_txid();
    let outputs = (0_u32..).zip(&transaction.output);
    outputs
        .filter(|(_, output)| !is_unspendable(&output.script_pubkey))
        .map(move |(vout, output)| (OutPoint::new(txid, vout), output))
}

fn is_unspendable(script: &Script) -> bool {
    script.is_op_return() || script.len() > MAX_SCRIPT_LENGTH
}
