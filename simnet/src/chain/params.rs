//! The numbers of regtest, and those of Bitcoin that hold everywhere. Sources: Bitcoin Core's `chainparams.cpp`,
//! `consensus/consensus.h`, `policy/policy.h`.

use bitcoin::{Amount, CompactTarget, Weight};

/// The only difficulty of regtest: two hashes a block, on average.
const BITS: u32 = 0x207f_ffff;

/// Blocks after which a coinbase may be spent.
pub(super) const COINBASE_MATURITY: u32 = 100;

/// Blocks between halvings of the subsidy.
const HALVING_INTERVAL: u32 = 150;

/// Subsidy of the first blocks.
const FIRST_SUBSIDY: Amount = Amount::from_sat(50 * 100_000_000);

/// Most that a block may weigh.
pub(super) const MAX_BLOCK_WEIGHT: Weight = Weight::from_wu(4_000_000);

/// What is left for the header and the coinbase when a block is assembled.
pub(super) const RESERVED_WEIGHT: Weight = Weight::from_wu(8_000);

/// Most signature operations of a block, in units of cost (a legacy operation costs 4).
pub(super) const MAX_BLOCK_SIGOPS_COST: u64 = 80_000;

/// What the coinbase may cost in signature operations when a block is assembled.
pub(super) const RESERVED_SIGOPS_COST: u64 = 400;

/// Most that a transaction may weigh to be relayed.
pub(super) const MAX_STANDARD_WEIGHT: Weight = Weight::from_wu(400_000);

/// Most signature operations of a transaction to be relayed, in units of cost.
pub(super) const MAX_STANDARD_SIGOPS_COST: u64 = MAX_BLOCK_SIGOPS_COST / 5;

/// Longest script that can ever be spent; outputs with longer ones are no coins.
pub(super) const MAX_SCRIPT_LENGTH: usize = 10_000;

/// Seconds by which the clock of a block may be ahead.
pub(super) const MAX_FUTURE: u32 = 2 * 60 * 60;

/// Lowest version of a block since the soft forks that regtest has had from the start.
pub(super) const MIN_BLOCK_VERSION: i32 = 4;

/// Least that a transaction must pay to be relayed, and by which a replacement must beat what it replaces: satoshis a
/// thousand virtual bytes.
pub(super) const RELAY_FEE_PER_KVB: u64 = 1_000;

/// Most unconfirmed ancestors, or descendants, of a transaction, itself included.
pub(super) const MAX_FAMILY: usize = 25;

/// Most transactions that one replacement may evict.
pub(super) const MAX_REPLACED: usize = 100;

/// Most virtual bytes of the mempool.
pub(super) const MAX_MEMPOOL_VSIZE: u64 = 20_000_000;

/// The difficulty that every block states.
pub(super) fn bits() -> CompactTarget {
    CompactTarget::from_consensus(BITS)
}

/// The subsidy of the block at `height`.
pub(super) fn subsidy(height: u32) -> Amount {
    let halvings = height / HALVING_INTERVAL;
    Amount::from_sat(FIRST_SUBSIDY.to_sat().checked_shr(halvings).unwrap_or(0))
}

/// The fee that `vsize` virtual bytes must pay at `rate` satoshis a thousand of them, rounded up.
pub(super) fn fee_at(rate: u64, vsize: u64) -> Amount {
    Amount::from_sat(rate.saturating_mul(vsize).div_ceil(1_000))
}
