//! The chain as a whole: which branch counts, what waits, and how both change.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bitcoin::{Amount, Block, BlockHash, Network, OutPoint, ScriptBuf, Transaction, Txid, constants};
use thiserror::Error;

use super::assemble::{self, Template};
use super::block::{self, BlockError};
use super::branch::Branch;
use super::coins;
use super::mempool::{Mempool, MempoolError, Relay};
use super::store::{BlockStore, StoreError};
use super::transaction::Place;
use super::tree::BlockTree;

/// Why a block was not taken.
#[derive(Debug, Error)]
pub enum ChainError {
    /// It is invalid.
    #[error(transparent)]
    Invalid(#[from] BlockError),
    /// The block before it is unknown.
    #[error("prev-blk-not-found")]
    Orphan,
    /// The block before it is invalid.
    #[error("bad-prevblk")]
    InvalidParent,
    /// It is known already.
    #[error("duplicate")]
    Duplicate,
    /// It is known already, as invalid.
    #[error("duplicate-invalid")]
    DuplicateInvalid,
    /// No block has this hash.
    #[error("Block not found")]
    Unknown,
    /// The first block is as it is.
    #[error("the genesis block cannot be invalidated")]
    Genesis,
    /// It cannot be kept on disk.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What became of a block that is valid by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is on the best branch.
    Connected,
    /// It is on a branch that has no more work than the best one.
    Aside,
}

/// A regtest chain: blocks, coins, transactions that wait. It reads no clock: times are given, in Unix seconds.
#[derive(Debug)]
pub struct Chain {
    pub(super) tree: BlockTree,
    pub(super) branch: Branch,
    pub(super) mempool: Mempool,
    store: Option<BlockStore>,
}

impl Default for Chain {
    fn default() -> Self {
        Self::new()
    }
}

impl Chain {
    /// A chain of the first block alone, kept in memory.
    pub fn new() -> Self {
        let genesis = constants::genesis_block(Network::Regtest);
        let branch = Branch::new(&genesis);
        Self { tree: BlockTree::new(genesis), branch, mempool: Mempool::default(), store: None }
    }

    /// The chain whose blocks are in the file at `path`, which is made where it does not exist. Every block is checked
    /// again.
    ///
    /// # Errors
    /// When the file cannot be used, or a block in it can never have been accepted.
    pub fn open(path: &Path, now: u64) -> Result<Self, ChainError> {
        let (store, blocks) = BlockStore::open(path)?;
        let mut chain = Self::new();
        for block in blocks {
            chain.submit_block(block, now)?;
        }
        chain.store = Some(store);
        Ok(chain)
    }

    /// Takes a block.
    ///
    /// # Errors
    /// Says why not. A block whose transactions turn out to be invalid is remembered as invalid.
    pub fn submit_block(&mut self, block: Block, now: u64) -> Result<Accepted, ChainError> {
        let hash = block.block_hash();
        if self.tree.get(&hash).is_some() {
            let invalid = self.tree.is_invalid(&hash);
            return Err(if invalid { ChainError::DuplicateInvalid } else { ChainError::Duplicate });
        }
        block::check_alone(&block)?;
        let before = block.header.prev_blockhash;
        let height = self.tree.get(&before).ok_or(ChainError::Orphan)?.height + 1;
        if self.tree.is_invalid(&before) {
            return Err(ChainError::InvalidParent);
        }
        let place = Place { height, median_time_past: self.tree.median_time_past(&before) };
        block::check_place(&block, place, u32::try_from(now).unwrap_or(u32::MAX))?;
        let block = Arc::new(block);
        self.tree.insert(Arc::clone(&block)).ok_or(ChainError::Orphan)?;
        if let Some(error) = self.activate_best(now, Some(hash)) {
            return Err(error.into());
        }
        if let Some(store) = &mut self.store {
            store.append(&block)?;
        }
        Ok(if self.is_active(&hash) { Accepted::Connected } else { Accepted::Aside })
    }

    /// Moves to the branch with the most work that is valid. Returns why `asked` is invalid, if that came out.
    fn activate_best(&mut self, now: u64, asked: Option<BlockHash>) -> Option<BlockError> {
        let mut returned: Vec<Arc<Block>> = Vec::new();
        let mut verdict = None;
        while self.tree.best() != self.branch.tip() {
            let best = self.tree.best();
            while !self.leads_to(&best) {
                returned.extend(self.disconnect_tip());
            }
            let mut ahead: Vec<BlockHash> = Vec::new();
            ahead.extend(self.tree.ancestors(&best).map(|(hash, _)| hash).take_while(|hash| !self.is_active(hash)));
            for hash in ahead.into_iter().rev() {
                let Some(block) = self.tree.get(&hash).map(|node| Arc::clone(&node.block)) else { break };
                if let Err(error) = self.branch.push(&block) {
                    self.tree.invalidate(&hash);
                    verdict = Some(error).filter(|_| asked == Some(hash)).or(verdict);
                    break;
                }
                self.mempool.confirm(&block);
            }
        }
        if !returned.is_empty() {
            self.take_back(&returned, now);
        }
        verdict
    }

    /// Whether the tip is `hash` or one before it.
    fn leads_to(&self, hash: &BlockHash) -> bool {
        let height = self.branch.height();
        let ancestor = self.tree.ancestors(hash).find(|(_, node)| node.height <= height);
        ancestor.is_some_and(|(hash, _)| hash == self.branch.tip())
    }

    fn disconnect_tip(&mut self) -> Option<Arc<Block>> {
        let block = Arc::clone(&self.tree.get(&self.branch.tip())?.block);
        self.branch.pop(&block);
        Some(block)
    }

    /// Lets the transactions of blocks that were taken off, the last one first, wait again.
    fn take_back(&mut self, blocks: &[Arc<Block>], now: u64) {
        let transactions = blocks.iter().rev().flat_map(|block| &block.txdata).filter(|t| !t.is_coinbase());
        for transaction in transactions {
            // The new branch may hold it, or another one that spends the same: then it is settled.
            let _ = self.mempool.admit(transaction.clone(), &self.branch, Relay::Returned, now);
        }
        self.mempool.prune(&self.branch);
    }

    /// Counts a block, and all after it, as invalid, and moves to the best other branch.
    ///
    /// # Errors
    /// When it is unknown, or the first block.
    pub fn invalidate(&mut self, hash: &BlockHash, now: u64) -> Result<(), ChainError> {
        if self.tree.get(hash).ok_or(ChainError::Unknown)?.height == 0 {
            return Err(ChainError::Genesis);
        }
        self.tree.invalidate(hash);
        self.activate_best(now, None);
        Ok(())
    }

    /// Takes back [`Chain::invalidate`].
    ///
    /// # Errors
    /// When the block is unknown.
    pub fn reconsider(&mut self, hash: &BlockHash, now: u64) -> Result<(), ChainError> {
        self.tree.get(hash).ok_or(ChainError::Unknown)?;
        self.tree.reconsider(hash);
        self.activate_best(now, None);
        Ok(())
    }

    /// Takes a transaction, to wait for a block.
    ///
    /// # Errors
    /// Says why not.
    pub fn submit_transaction(&mut self, transaction: Transaction, now: u64) -> Result<Txid, MempoolError> {
        self.mempool.admit(transaction, &self.branch, Relay::New, now)
    }

    /// What [`Chain::submit_transaction`] would say, without taking it.
    ///
    /// # Errors
    /// Says why not.
    pub fn test_transaction(&self, transaction: Transaction, now: u64) -> Result<Txid, MempoolError> {
        self.mempool.clone().admit(transaction, &self.branch, Relay::New, now)
    }

    /// Mines one block of the transactions that wait, paying subsidy and fees to `payee`.
    ///
    /// # Errors
    /// When the block cannot be kept.
    pub fn mine(&mut self, payee: ScriptBuf, now: u64) -> Result<BlockHash, ChainError> {
        let chosen = assemble::choose(&self.mempool);
        let transactions = chosen.iter().map(|entry| Transaction::clone(&entry.transaction)).collect();
        self.mine_these(payee, transactions, now)
    }

    /// Mines one block of exactly these transactions.
    ///
    /// # Errors
    /// When one is invalid, or the block cannot be kept.
    pub fn mine_these(
        &mut self,
        payee: ScriptBuf,
        transactions: Vec<Transaction>,
        now: u64,
    ) -> Result<BlockHash, ChainError> {
        let place = self.branch.next_place();
        let template = Template {
            previous: self.branch.tip(),
            height: place.height,
            time: u32::try_from(now).unwrap_or(u32::MAX).max(place.median_time_past.saturating_add(1)),
            extra_nonce: self.tree.len(),
            payee,
            fees: self.fees_of(&transactions),
            transactions,
        };
        let block = template.solve();
        let hash = block.block_hash();
        self.submit_block(block, now)?;
        Ok(hash)
    }

    /// What transactions would pay; those that spend what is not there count as paying nothing.
    fn fees_of(&self, transactions: &[Transaction]) -> Amount {
        let made: BTreeMap<OutPoint, Amount> =
            transactions.iter().flat_map(coins::spendable_outputs).map(|(at, output)| (at, output.value)).collect();
        let value =
            |at: &OutPoint| made.get(at).copied().or_else(|| self.branch.coin(at).map(|coin| coin.output.value));
        let fee = |transaction: &Transaction| {
            let mut inputs = transaction.input.iter().map(|input| value(&input.previous_output));
            let paid_in = inputs.try_fold(Amount::ZERO, |sum, value| sum.checked_add(value?))?;
            let mut outputs = transaction.output.iter().map(|output| output.value);
            let paid_out = outputs.try_fold(Amount::ZERO, Amount::checked_add)?;
            paid_in.checked_sub(paid_out)
        };
        transactions.iter().filter_map(fee).fold(Amount::ZERO, |sum, fee| sum.checked_add(fee).unwrap_or(sum))
    }
}
