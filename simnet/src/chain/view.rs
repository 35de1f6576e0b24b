//! What can be asked of a chain.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bitcoin::block::Header;
use bitcoin::{Block, BlockHash, OutPoint, Script, ScriptBuf, Transaction, TxOut, Txid, Work};

use super::assemble;
use super::mempool::Entry;
use super::params::{MAX_BLOCK_WEIGHT, RELAY_FEE_PER_KVB, RESERVED_WEIGHT};
use super::state::Chain;

/// A block, and where it stands.
#[derive(Clone, Debug)]
pub struct BlockInfo {
    /// The block.
    pub block: Arc<Block>,
    /// Blocks before it.
    pub height: u32,
    /// Work of it and all before it.
    pub work: Work,
    /// Median of its time and those of the ten before it, in Unix seconds.
    pub median_time_past: u32,
    /// One more than the blocks after it; none off the best branch.
    pub confirmations: Option<u32>,
    /// The block after it on the best branch.
    pub next: Option<BlockHash>,
}

/// An output that nobody has spent.
#[derive(Clone, Debug)]
pub struct Unspent {
    /// Where it is.
    pub outpoint: OutPoint,
    /// What it holds, and for whom.
    pub output: TxOut,
    /// Height of its block; none while it waits for one.
    pub height: Option<u32>,
    /// Whether a coinbase made it.
    pub coinbase: bool,
}

/// The end of a branch.
#[derive(Clone, Debug)]
pub struct Tip {
    /// Its hash.
    pub hash: BlockHash,
    /// Its height.
    pub height: u32,
    /// Blocks since it left the best branch; 0 for the best one.
    pub length: u32,
    /// Whether it was found or declared invalid.
    pub invalid: bool,
}

impl Chain {
    /// Hash of the last block.
    pub fn tip(&self) -> BlockHash {
        self.branch.tip()
    }

    /// Height of the last block.
    pub fn height(&self) -> u32 {
        self.branch.height()
    }

    /// Hash of the block at `height` of the best branch.
    pub fn hash_at(&self, height: u32) -> Option<BlockHash> {
        self.branch.hash_at(height)
    }

    /// Header of the last block.
    pub fn tip_header(&self) -> Option<Header> {
        self.tree.get(&self.tip()).map(|node| node.block.header)
    }

    /// A block of any branch.
    pub fn block(&self, hash: &BlockHash) -> Option<BlockInfo> {
        let node = self.tree.get(hash)?;
        let active = self.is_active(hash);
        Some(BlockInfo {
            block: Arc::clone(&node.block),
            height: node.height,
            work: node.work,
            median_time_past: self.tree.median_time_past(hash),
            confirmations: active.then(|| self.height() - node.height + 1),
            next: self.hash_at(node.height + 1).filter(|_| active),
        })
    }

    /// Whether a block is on the best branch.
    pub fn is_active(&self, hash: &BlockHash) -> bool {
        self.tree.get(hash).is_some_and(|node| self.hash_at(node.height) == Some(*hash))
    }

    /// A transaction of the best branch or of those that wait, and the block that holds it.
    pub fn transaction(&self, txid: &Txid) -> Option<(Transaction, Option<BlockHash>)> {
        if let Some(entry) = self.mempool.get(txid) {
            return Some((Transaction::clone(&entry.transaction), None));
        }
        let hash = self.branch.block_of(txid)?;
        let block = &self.tree.get(&hash)?.block;
        let transaction = block.txdata.iter().find(|transaction| transaction.compute_txid() == *txid)?;
        Some((transaction.clone(), Some(hash)))
    }

    /// An output that nobody has spent; with `mempool`, also as far as the transactions that wait go.
    pub fn unspent(&self, outpoint: &OutPoint, mempool: bool) -> Option<Unspent> {
        if mempool && self.mempool.spender(outpoint).is_some() {
            return None;
        }
        let confirmed = self.branch.coin(outpoint).cloned();
        let height = confirmed.as_ref().map(|coin| coin.height);
        let coin = confirmed.or_else(|| self.mempool.coin(outpoint, &self.branch).filter(|_| mempool))?;
        Some(Unspent { outpoint: *outpoint, output: coin.output, height, coinbase: coin.coinbase })
    }

    /// The outputs for `script` that nobody has spent, nor is about to: first those in blocks, then those that wait.
    pub fn unspent_of(&self, script: &Script) -> Vec<Unspent> {
        let confirmed = self.branch.coins().iter().filter(|(_, coin)| *coin.output.script_pubkey == *script);
        let waiting = self.mempool.entries().iter().flat_map(|(txid, entry)| {
            let outputs = (0..).zip(&entry.transaction.output);
            let of_script = outputs.filter(|(_, output)| *output.script_pubkey == *script);
            of_script.map(|(vout, _)| OutPoint::new(*txid, vout))
        });
        let outpoints = confirmed.map(|(outpoint, _)| *outpoint).chain(waiting);
        outpoints.filter_map(|outpoint| self.unspent(&outpoint, true)).collect()
    }

    /// The outputs in blocks for these scripts that no block spends.
    pub fn confirmed_of(&self, scripts: &BTreeSet<ScriptBuf>) -> Vec<Unspent> {
        let coins = self.branch.coins().iter().filter(|(_, coin)| scripts.contains(&coin.output.script_pubkey));
        coins.filter_map(|(outpoint, _)| self.unspent(outpoint, false)).collect()
    }

    /// The transactions that wait.
    pub fn mempool(&self) -> &BTreeMap<Txid, Entry> {
        self.mempool.entries()
    }

    /// Virtual bytes of the transactions that wait.
    pub fn mempool_vsize(&self) -> u64 {
        self.mempool.vsize()
    }

    /// A transaction that waits, with those that it depends on (without itself) and those that depend on it (with
    /// itself).
    pub fn mempool_family(&self, txid: &Txid) -> Option<(Vec<&Entry>, Vec<&Entry>)> {
        let entry = self.mempool.get(txid)?;
        let ancestors = self.mempool.ancestors(&entry.transaction);
        let descendants = self.mempool.and_descendants(txid);
        let entries =
            |txids: std::collections::BTreeSet<Txid>| txids.iter().filter_map(|txid| self.mempool.get(txid)).collect();
        Some((entries(ancestors), entries(descendants)))
    }

    /// Those that a waiting transaction spends directly, and those that spend it.
    pub fn mempool_neighbours(&self, txid: &Txid) -> Option<(Vec<Txid>, Vec<Txid>)> {
        let entry = self.mempool.get(txid)?;
        let parents = self.mempool.parents(&entry.transaction);
        Some((parents.into_iter().collect(), self.mempool.children(txid).into_iter().collect()))
    }

    /// Satoshis a thousand virtual bytes that get a transaction into the next block: the least that is relayed while
    /// everything that waits fits in, else one more than what the last one that fits in pays.
    pub fn next_block_fee_rate(&self) -> u64 {
        let room = (MAX_BLOCK_WEIGHT - RESERVED_WEIGHT).to_wu() / 4;
        if self.mempool.vsize() <= room {
            return RELAY_FEE_PER_KVB;
        }
        let rate = |entry: &&Entry| entry.fee.to_sat().saturating_mul(1_000) / entry.vsize.max(1);
        let lowest = assemble::choose(&self.mempool).iter().map(rate).min().unwrap_or(0);
        RELAY_FEE_PER_KVB.max(lowest + 1)
    }

    /// Median of the times of the last eleven blocks, in Unix seconds: what locks by time are compared with.
    pub fn median_time_past(&self) -> u32 {
        self.branch.median_time_past(self.height())
    }

    /// The ends of all branches.
    pub fn tips(&self) -> Vec<Tip> {
        let length = |hash: &BlockHash| self.tree.ancestors(hash).take_while(|(hash, _)| !self.is_active(hash)).count();
        let tip = |hash: BlockHash, height: u32| Tip {
            length: u32::try_from(length(&hash)).unwrap_or(u32::MAX),
            invalid: self.tree.is_invalid(&hash),
            hash,
            height,
        };
        let mut tips: Vec<Tip> = self.tree.tips().into_iter().map(|(hash, node)| tip(hash, node.height)).collect();
        if !tips.iter().any(|known| known.hash == self.tip()) {
            tips.push(tip(self.tip(), self.height()));
        }
        tips.sort_by_key(|tip| std::cmp::Reverse(tip.height));
        tips
    }
}
