//! Making a block: which transactions go in, the coinbase, and the proof of work.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::absolute::LockTime;
use bitcoin::block::{Header, Version};
use bitcoin::hashes::Hash;
use bitcoin::script::Builder;
use bitcoin::{
    Amount, Block, BlockHash, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxMerkleNode, TxOut, Txid, Witness,
    transaction,
};

use super::block::{commitment_script, height_push};
use super::mempool::{Entry, Mempool};
use super::params::{MAX_BLOCK_SIGOPS_COST, MAX_BLOCK_WEIGHT, RESERVED_SIGOPS_COST, RESERVED_WEIGHT, bits, subsidy};

/// Version of a block that signals nothing (BIP9).
const VERSION: i32 = 0x2000_0000;

/// What a witness commitment is salted with.
const RESERVED_VALUE: [u8; 32] = [0; 32];

/// A transaction with those that it depends on and that are not chosen yet.
#[derive(Clone, Copy, Debug, Default)]
struct Package {
    fee: u64,
    vsize: u64,
    sigops_cost: u64,
}

impl Package {
    fn add(self, entry: &Entry) -> Self {
        Self {
            fee: self.fee + entry.fee.to_sat(),
            vsize: self.vsize + entry.vsize,
            sigops_cost: self.sigops_cost + entry.sigops_cost,
        }
    }

    fn subtract(self, entry: &Entry) -> Self {
        Self {
            fee: self.fee - entry.fee.to_sat(),
            vsize: self.vsize - entry.vsize,
            sigops_cost: self.sigops_cost - entry.sigops_cost,
        }
    }

    /// Fee for each virtual byte, in units of 2^-32 satoshis.
    fn rate(self) -> u128 {
        (u128::from(self.fee) << 32) / u128::from(self.vsize.max(1))
    }
}

/// Chooses transactions for the next block, an ancestor always before its descendants: the package that pays most for
/// each byte first, until nothing more fits.
pub(super) fn choose(mempool: &Mempool) -> Vec<&Entry> {
    let mut packages = packages(mempool);
    let mut queue: BTreeSet<(u128, Txid)> = packages.iter().map(|(txid, package)| (package.rate(), *txid)).collect();
    let mut block = Package::default();
    let mut chosen = BTreeSet::new();
    let mut order = Vec::new();
    while let Some((_, txid)) = queue.pop_last() {
        if !fits(block, packages[&txid]) {
            continue;
        }
        for (member, entry) in members(mempool, &txid, &chosen) {
            queue.remove(&(packages[&member].rate(), member));
            chosen.insert(member);
            block = block.add(entry);
            order.push(entry);
            for descendant in mempool.and_descendants(&member) {
                let Some(package) = packages.get_mut(&descendant) else { continue };
                let waits = queue.remove(&(package.rate(), descendant));
                *package = package.subtract(entry);
                if waits {
                    queue.insert((package.rate(), descendant));
                }
            }
        }
    }
    order
}

fn packages(mempool: &Mempool) -> BTreeMap<Txid, Package> {
    let package = |entry: &Entry| {
        let ancestors = mempool.ancestors(&entry.transaction);
        let ancestors = ancestors.iter().filter_map(|txid| mempool.get(txid));
        ancestors.fold(Package::default().add(entry), Package::add)
    };
    mempool.entries().iter().map(|(txid, entry)| (*txid, package(entry))).collect()
}

/// A transaction and what it depends on, as far as it is not chosen yet, in an order in which a block can hold them.
fn members<'a>(mempool: &'a Mempool, txid: &Txid, chosen: &BTreeSet<Txid>) -> Vec<(Txid, &'a Entry)> {
    let Some(entry) = mempool.get(txid) else { return Vec::new() };
    let ancestors = mempool.ancestors(&entry.transaction);
    let mut members: Vec<(Txid, &Entry)> = ancestors
        .into_iter()
        .chain([*txid])
        .filter(|member| !chosen.contains(member))
        .filter_map(|member| Some((member, mempool.get(&member)?)))
        .collect();
    // Whoever depends on another has more ancestors than that one.
    members.sort_by_key(|(_, entry)| mempool.ancestors(&entry.transaction).len());
    members
}

fn fits(block: Package, package: Package) -> bool {
    let weight = (block.vsize + package.vsize).saturating_mul(4);
    weight <= (MAX_BLOCK_WEIGHT - RESERVED_WEIGHT).to_wu()
        && block.sigops_cost + package.sigops_cost <= MAX_BLOCK_SIGOPS_COST - RESERVED_SIGOPS_COST
}

/// What a block is made of.
#[derive(Clone, Debug)]
pub(super) struct Template {
    pub(super) previous: BlockHash,
    pub(super) height: u32,
    /// Unix seconds.
    pub(super) time: u32,
    /// Tells apart blocks that are otherwise alike.
    pub(super) extra_nonce: u64,
    /// Who is paid.
    pub(super) payee: ScriptBuf,
    /// What the transactions pay, beyond the subsidy.
    pub(super) fees: Amount,
    pub(super) transactions: Vec<Transaction>,
}

impl Template {
    /// The block, with its proof of work.
    pub(super) fn solve(self) -> Block {
        let header = Header {
            version: Version::from_consensus(VERSION),
            prev_blockhash: self.previous,
            merkle_root: TxMerkleNode::all_zeros(),
            time: self.time,
            bits: bits(),
            nonce: 0,
        };
        let mut block = Block { header, txdata: vec![self.coinbase()] };
        block.txdata.extend(self.transactions);
        // The coinbase counts as zero in the root of the witnesses, so it can still be changed.
        if let Some(root) = block.witness_root() {
            let commitment = Block::compute_witness_commitment(&root, &RESERVED_VALUE);
            let script_pubkey = commitment_script(&commitment);
            block.txdata[0].output.push(TxOut { value: Amount::ZERO, script_pubkey });
        }
        if let Some(root) = block.compute_merkle_root() {
            block.header.merkle_root = root;
        }
        // Every second nonce will do.
        while block.header.validate_pow(block.header.target()).is_err() && block.header.nonce < u32::MAX {
            block.header.nonce += 1;
        }
        block
    }

    fn coinbase(&self) -> Transaction {
        let height = height_push(self.height).into_bytes();
        let script_sig = Builder::from(height).push_slice(self.extra_nonce.to_le_bytes()).into_script();
        let input = TxIn {
            previous_output: OutPoint::null(),
            script_sig,
            sequence: Sequence::MAX,
            witness: Witness::from_slice(&[RESERVED_VALUE]),
        };
        let value = subsidy(self.height).checked_add(self.fees).unwrap_or(Amount::MAX_MONEY);
        Transaction {
            version: transaction::Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![input],
            output: vec![TxOut { value, script_pubkey: self.payee.clone() }],
        }
    }
}
