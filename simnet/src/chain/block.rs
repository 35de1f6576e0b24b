//! When a block is valid: by itself, and as the child of the block before. What its transactions spend is checked when
//! it is connected (see `branch`).

use std::collections::BTreeSet;

use bitcoin::block::Header;
use bitcoin::hashes::Hash;
use bitcoin::script::Builder;
use bitcoin::{Block, ScriptBuf, Transaction, Txid};
use thiserror::Error;

use super::params::{MAX_BLOCK_SIGOPS_COST, MAX_BLOCK_WEIGHT, MAX_FUTURE, MIN_BLOCK_VERSION, bits};
use super::transaction::{self, Place, TransactionError};

/// What a witness commitment begins with (BIP141): OP_RETURN, a push of 36 bytes, the mark.
const COMMITMENT_PREFIX: [u8; 6] = [0x6a, 0x24, 0xaa, 0x21, 0xa9, 0xed];
const COMMITMENT_LENGTH: usize = 38;

/// Blocks whose median is the time that locks look at.
const MEDIAN_SPAN: usize = 11;

/// Why a block is invalid. The text begins with Bitcoin Core's own word for it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BlockError {
    /// Its difficulty is not regtest's.
    #[error("bad-diffbits")]
    Difficulty,
    /// Its hash does not meet the difficulty.
    #[error("high-hash")]
    ProofOfWork,
    /// Its time is not after the median of the eleven blocks before.
    #[error("time-too-old")]
    TimeTooOld,
    /// Its time is too far ahead.
    #[error("time-too-new")]
    TimeTooNew,
    /// Its version lacks soft forks that are active.
    #[error("bad-version(0x{0:08x})")]
    Version(i32),
    /// It does not hold the transactions that its header commits to.
    #[error("bad-txnmrklroot")]
    MerkleRoot,
    /// It holds a transaction twice.
    #[error("bad-txns-duplicate")]
    DuplicateTransaction,
    /// Its first transaction is no coinbase.
    #[error("bad-cb-missing")]
    NoCoinbase,
    /// It has more than one coinbase.
    #[error("bad-cb-multiple")]
    SecondCoinbase,
    /// The coinbase does not begin with the height (BIP34).
    #[error("bad-cb-height")]
    CoinbaseHeight,
    /// The coinbase takes more than subsidy and fees.
    #[error("bad-cb-amount")]
    CoinbaseAmount,
    /// It weighs too much.
    #[error("bad-blk-weight")]
    Weight,
    /// It holds too many signature operations.
    #[error("bad-blk-sigops")]
    Sigops,
    /// The witnesses are not those that the coinbase commits to (BIP141).
    #[error("bad-witness-merkle-match")]
    WitnessCommitment,
    /// The coinbase commits to witnesses and lacks the reserved value.
    #[error("bad-witness-nonce-size")]
    WitnessReservedValue,
    /// It has witnesses and no commitment to them.
    #[error("unexpected-witness")]
    UnexpectedWitness,
    /// It makes a coin that is there already (BIP30).
    #[error("bad-txns-BIP30")]
    Overwrite,
    /// One of its transactions is invalid.
    #[error("{} (transaction {txid})", in_block(error))]
    Transaction {
        /// Which.
        txid: Txid,
        /// Why.
        error: TransactionError,
    },
}

/// What Bitcoin Core calls it in a block: to the mempool alone relative locks have a word of their own.
fn in_block(error: &TransactionError) -> String {
    match error {
        TransactionError::RelativeLock => TransactionError::NonFinal.to_string(),
        error => error.to_string(),
    }
}

/// Checks what can be seen in the block alone.
pub(super) fn check_alone(block: &Block) -> Result<(), BlockError> {
    check_proof_of_work(&block.header)?;
    if !block.check_merkle_root() {
        return Err(BlockError::MerkleRoot);
    }
    let mut coinbases = block.txdata.iter().map(Transaction::is_coinbase);
    if coinbases.next() != Some(true) {
        return Err(BlockError::NoCoinbase);
    }
    if coinbases.any(|coinbase| coinbase) {
        return Err(BlockError::SecondCoinbase);
    }
    // Repeated transactions can leave the Merkle root as it is (CVE-2012-2459).
    let txids: BTreeSet<Txid> = block.txdata.iter().map(Transaction::compute_txid).collect();
    if txids.len() != block.txdata.len() {
        return Err(BlockError::DuplicateTransaction);
    }
    if block.weight() > MAX_BLOCK_WEIGHT {
        return Err(BlockError::Weight);
    }
    for transaction in &block.txdata {
        let of = |error| BlockError::Transaction { txid: transaction.compute_txid(), error };
        transaction::check_alone(transaction).map_err(of)?;
    }
    check_witness_commitment(block)
}

/// Checks the block as the child of the one before; `now` is in Unix seconds.
pub(super) fn check_place(block: &Block, place: Place, now: u32) -> Result<(), BlockError> {
    let header = &block.header;
    if header.time <= place.median_time_past {
        return Err(BlockError::TimeTooOld);
    }
    if header.time > now.saturating_add(MAX_FUTURE) {
        return Err(BlockError::TimeTooNew);
    }
    if header.version.to_consensus() < MIN_BLOCK_VERSION {
        return Err(BlockError::Version(header.version.to_consensus()));
    }
    for transaction in &block.txdata {
        let of = |error| BlockError::Transaction { txid: transaction.compute_txid(), error };
        transaction::check_final(transaction, place).map_err(of)?;
    }
    let coinbase = block.coinbase().and_then(|coinbase| coinbase.input.first()).ok_or(BlockError::NoCoinbase)?;
    if !coinbase.script_sig.as_bytes().starts_with(height_push(place.height).as_bytes()) {
        return Err(BlockError::CoinbaseHeight);
    }
    Ok(())
}

/// Whether signature operations stay within the limit.
pub(super) fn check_sigops(cost: u64) -> Result<(), BlockError> {
    if cost > MAX_BLOCK_SIGOPS_COST { Err(BlockError::Sigops) } else { Ok(()) }
}

/// The time that locks look at after some blocks, given their times from the last one back: the median of eleven.
pub(super) fn median_time(times: impl Iterator<Item = u32>) -> u32 {
    let mut times: Vec<u32> = times.take(MEDIAN_SPAN).collect();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// The height as the coinbase must state it (BIP34).
pub(super) fn height_push(height: u32) -> ScriptBuf {
    Builder::new().push_int(i64::from(height)).into_script()
}

/// The script of the output that commits to a block's witnesses.
pub(super) fn commitment_script(commitment: &bitcoin::WitnessCommitment) -> ScriptBuf {
    let mut bytes = COMMITMENT_PREFIX.to_vec();
    bytes.extend_from_slice(commitment.as_byte_array());
    ScriptBuf::from_bytes(bytes)
}

fn check_proof_of_work(header: &Header) -> Result<(), BlockError> {
    if header.bits != bits() {
        return Err(BlockError::Difficulty);
    }
    header.validate_pow(header.target()).map(|_| ()).map_err(|_| BlockError::ProofOfWork)
}

fn check_witness_commitment(block: &Block) -> Result<(), BlockError> {
    let coinbase = block.coinbase().ok_or(BlockError::NoCoinbase)?;
    let commits = |script: &[u8]| script.len() >= COMMITMENT_LENGTH && script.starts_with(&COMMITMENT_PREFIX);
    let scripts = coinbase.output.iter().map(|output| output.script_pubkey.as_bytes());
    let Some(committed) = scripts.rev().find(|script| commits(script)) else {
        let has_witness = |transaction: &Transaction| transaction.input.iter().any(|input| !input.witness.is_empty());
        return if block.txdata.iter().any(has_witness) { Err(BlockError::UnexpectedWitness) } else { Ok(()) };
    };
    let witness = &coinbase.input.first().ok_or(BlockError::NoCoinbase)?.witness;
    let reserved = match (witness.len(), witness.nth(0)) {
        (1, Some(value)) if value.len() == 32 => value,
        _ => return Err(BlockError::WitnessReservedValue),
    };
    let root = block.witness_root().ok_or(BlockError::NoCoinbase)?;
    let commitment = Block::compute_witness_commitment(&root, reserved);
    if committed[COMMITMENT_PREFIX.len()..COMMITMENT_LENGTH] == commitment.as_byte_array()[..] {
        Ok(())
    } else {
        Err(BlockError::WitnessCommitment)
    }
}
