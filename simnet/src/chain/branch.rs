//! The best branch: its blocks from the first to the tip, and the coins after the tip.

use std::collections::BTreeMap;

use bitcoin::{Amount, Block, BlockHash, OutPoint, Transaction, Txid};

use super::block::{BlockError, check_sigops, median_time};
use super::coins::{Coin, CoinSet};
use super::params::subsidy;
use super::transaction::{self, Place, TransactionError};

/// What is needed to take a block off again: what each transaction after the coinbase had spent.
type Undo = Vec<Vec<Coin>>;

#[derive(Clone, Debug)]
struct Link {
    hash: BlockHash,
    time: u32,
    undo: Undo,
}

/// The blocks that count, and what they leave to spend.
#[derive(Clone, Debug)]
pub(super) struct Branch {
    /// By height.
    links: Vec<Link>,
    coins: CoinSet,
    /// The block of each transaction.
    transactions: BTreeMap<Txid, BlockHash>,
}

impl Branch {
    /// The branch that has the first block alone, whose output was never a coin.
    pub(super) fn new(genesis: &Block) -> Self {
        let link = Link { hash: genesis.block_hash(), time: genesis.header.time, undo: Undo::new() };
        Self { links: vec![link], coins: CoinSet::default(), transactions: BTreeMap::new() }
    }

    pub(super) fn coins(&self) -> &CoinSet {
        &self.coins
    }

    pub(super) fn height(&self) -> u32 {
        // The block after the last one states its height in 32 bits, so there are never more.
        u32::try_from(self.links.len() - 1).unwrap_or(u32::MAX)
    }

    pub(super) fn tip(&self) -> BlockHash {
        self.links[self.links.len() - 1].hash
    }

    pub(super) fn hash_at(&self, height: u32) -> Option<BlockHash> {
        self.links.get(height as usize).map(|link| link.hash)
    }

    /// The block that holds a transaction.
    pub(super) fn block_of(&self, txid: &Txid) -> Option<BlockHash> {
        self.transactions.get(txid).copied()
    }

    /// Where a transaction in the next block would stand.
    pub(super) fn next_place(&self) -> Place {
        let height = self.height();
        Place { height: height + 1, median_time_past: self.median_time_past(height) }
    }

    /// Median time of the block at `height` and the ten before it, in Unix seconds.
    pub(super) fn median_time_past(&self, height: u32) -> u32 {
        let end = (height as usize + 1).min(self.links.len());
        median_time(self.links[..end].iter().rev().map(|link| link.time))
    }

    /// Checks what the block's transactions spend, and makes it the tip. Nothing changes when it is invalid.
    pub(super) fn push(&mut self, block: &Block) -> Result<(), BlockError> {
        if block.txdata.iter().any(|transaction| self.coins.has_output_of(transaction)) {
            return Err(BlockError::Overwrite);
        }
        let mut undo = Undo::new();
        if let Err(error) = self.apply(block, &mut undo) {
            self.revert(block, undo);
            return Err(error);
        }
        let hash = block.block_hash();
        self.transactions.extend(block.txdata.iter().map(|transaction| (transaction.compute_txid(), hash)));
        self.links.push(Link { hash, time: block.header.time, undo });
        Ok(())
    }

    /// Takes the tip off, which is `block`. The first block stays.
    pub(super) fn pop(&mut self, block: &Block) {
        if self.links.len() < 2 {
            return;
        }
        if let Some(link) = self.links.pop() {
            self.revert(block, link.undo);
            for transaction in &block.txdata {
                self.transactions.remove(&transaction.compute_txid());
            }
        }
    }

    fn apply(&mut self, block: &Block, undo: &mut Undo) -> Result<(), BlockError> {
        let place = self.next_place();
        let (coinbase, payments) = block.txdata.split_first().ok_or(BlockError::NoCoinbase)?;
        let mut fees = Amount::ZERO;
        let mut sigops = transaction::sigops_cost(coinbase, &[]);
        for payment in payments {
            let of = |error| BlockError::Transaction { txid: payment.compute_txid(), error };
            let spent = self.coins.spent_by(payment).ok_or(of(TransactionError::MissingInputs))?;
            let fee = self.check_spending(payment, &spent, place).map_err(of)?;
            fees = fees.checked_add(fee).ok_or(of(TransactionError::Amount))?;
            sigops += transaction::sigops_cost(payment, &spent);
            check_sigops(sigops)?;
            self.coins.apply(payment, place.height);
            undo.push(spent);
        }
        let most = fees.checked_add(subsidy(place.height)).ok_or(BlockError::CoinbaseAmount)?;
        // The outputs of every transaction were summed up without overflow when the block was checked by itself.
        if coinbase.output.iter().map(|output| output.value).sum::<Amount>() > most {
            return Err(BlockError::CoinbaseAmount);
        }
        self.coins.apply(coinbase, place.height);
        Ok(())
    }

    /// Undoes the transactions of which there is an undo, and the coinbase.
    fn revert(&mut self, block: &Block, undo: Undo) {
        let Some((coinbase, payments)) = block.txdata.split_first() else { return };
        self.coins.revert(coinbase, Vec::new());
        for (payment, spent) in payments.iter().zip(undo).rev() {
            self.coins.revert(payment, spent);
        }
    }

    /// Checks a transaction against the coins that it spends, scripts included, and returns its fee.
    pub(super) fn check_spending(
        &self,
        transaction: &Transaction,
        spent: &[Coin],
        place: Place,
    ) -> Result<Amount, TransactionError> {
        let fee = transaction::check_amounts(transaction, spent, place)?;
        transaction::check_relative_locks(transaction, spent, place, |height| self.median_time_past(height))?;
        transaction::check_scripts(transaction, spent)?;
        Ok(fee)
    }

    /// The coin behind an outpoint.
    pub(super) fn coin(&self, outpoint: &OutPoint) -> Option<&Coin> {
        self.coins.get(outpoint)
    }
}
