//! When a transaction is valid: by itself, at a place in the chain, and against the coins that it spends.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::locktime::absolute::LOCK_TIME_THRESHOLD;
use bitcoin::{Amount, OutPoint, Sequence, Transaction, TxOut};
use thiserror::Error;

use super::coins::Coin;
use super::params::{COINBASE_MATURITY, MAX_BLOCK_WEIGHT};
use super::script;

/// Bits of an input's sequence that speak of a relative lock (BIP68).
const LOCK_DISABLED: u32 = 1 << 31;
const LOCK_BY_TIME: u32 = 1 << 22;
const LOCK_MASK: u32 = 0xffff;
/// A relative lock by time counts in units of 2^9 seconds.
const LOCK_GRANULARITY: u32 = 9;

/// Why a transaction is invalid. The text begins with Bitcoin Core's own word for it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TransactionError {
    /// It spends nothing.
    #[error("bad-txns-vin-empty")]
    NoInputs,
    /// It pays nobody.
    #[error("bad-txns-vout-empty")]
    NoOutputs,
    /// It fits in no block.
    #[error("bad-txns-oversize")]
    Oversize,
    /// An amount, or their sum, is more than there can be.
    #[error("bad-txns-vout-toolarge")]
    Amount,
    /// It spends an output twice.
    #[error("bad-txns-inputs-duplicate")]
    DuplicateInput,
    /// The script of a coinbase is too short or too long.
    #[error("bad-cb-length")]
    CoinbaseLength,
    /// An input other than a coinbase's names no output.
    #[error("bad-txns-prevout-null")]
    NullInput,
    /// Its absolute lock has not passed.
    #[error("bad-txns-nonfinal")]
    NonFinal,
    /// A relative lock of one of its inputs has not passed.
    #[error("non-BIP68-final")]
    RelativeLock,
    /// What it spends is unknown or spent.
    #[error("bad-txns-inputs-missingorspent")]
    MissingInputs,
    /// It spends a coinbase too early.
    #[error("bad-txns-premature-spend-of-coinbase, tried to spend coinbase at depth {depth}")]
    ImmatureCoinbase {
        /// Blocks since the coinbase.
        depth: u32,
    },
    /// It pays out more than it spends.
    #[error("bad-txns-in-belowout")]
    SpendsMoreThanItHas,
    /// A script failed.
    #[error("mandatory-script-verify-flag-failed (input {input})")]
    Script {
        /// Index of the input.
        input: usize,
    },
}

/// A place in the chain: where a transaction would stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Height of the block that would hold it.
    pub(super) height: u32,
    /// Median time past of the block before.
    pub(super) median_time_past: u32,
}

/// Checks what can be seen in the transaction alone.
pub(super) fn check_alone(transaction: &Transaction) -> Result<(), TransactionError> {
    if transaction.input.is_empty() {
        return Err(TransactionError::NoInputs);
    }
    if transaction.output.is_empty() {
        return Err(TransactionError::NoOutputs);
    }
    if (transaction.base_size() as u64).saturating_mul(4) > MAX_BLOCK_WEIGHT.to_wu() {
        return Err(TransactionError::Oversize);
    }
    sum(&transaction.output).ok_or(TransactionError::Amount)?;
    let inputs: BTreeSet<_> = transaction.input.iter().map(|input| input.previous_output).collect();
    if inputs.len() != transaction.input.len() {
        return Err(TransactionError::DuplicateInput);
    }
    if transaction.is_coinbase() {
        return match transaction.input[0].script_sig.len() {
            2..=100 => Ok(()),
            _ => Err(TransactionError::CoinbaseLength),
        };
    }
    if inputs.iter().any(OutPoint::is_null) {
        return Err(TransactionError::NullInput);
    }
    Ok(())
}

/// Checks the absolute lock (BIP113: against the median time past).
pub(super) fn check_final(transaction: &Transaction, place: Place) -> Result<(), TransactionError> {
    let lock = transaction.lock_time.to_consensus_u32();
    let now = if lock < LOCK_TIME_THRESHOLD { place.height } else { place.median_time_past };
    let switched_off = || transaction.input.iter().all(|input| input.sequence == Sequence::MAX);
    if lock < now || lock == 0 || switched_off() { Ok(()) } else { Err(TransactionError::NonFinal) }
}

/// Checks the relative locks (BIP68). `median_time_past` tells that of the block at a height of this branch.
pub(super) fn check_relative_locks(
    transaction: &Transaction,
    spent: &[Coin],
    place: Place,
    median_time_past: impl Fn(u32) -> u32,
) -> Result<(), TransactionError> {
    // A version is a signed number on the wire and compared unsigned, as Bitcoin Core does.
    if transaction.is_coinbase() || transaction.version.0.cast_unsigned() < 2 {
        return Ok(());
    }
    for (input, coin) in transaction.input.iter().zip(spent) {
        let sequence = input.sequence.to_consensus_u32();
        let delay = sequence & LOCK_MASK;
        let open = if sequence & LOCK_DISABLED != 0 {
            true
        } else if sequence & LOCK_BY_TIME != 0 {
            let since = u64::from(median_time_past(coin.height.saturating_sub(1)));
            u64::from(place.median_time_past) >= since + (u64::from(delay) << LOCK_GRANULARITY)
        } else {
            place.height >= coin.height.saturating_add(delay)
        };
        if !open {
            return Err(TransactionError::RelativeLock);
        }
    }
    Ok(())
}

/// Checks maturity and amounts against the coins that are spent, and returns the fee.
pub(super) fn check_amounts(
    transaction: &Transaction,
    spent: &[Coin],
    place: Place,
) -> Result<Amount, TransactionError> {
    for coin in spent.iter().filter(|coin| coin.coinbase) {
        let depth = place.height.saturating_sub(coin.height);
        if depth < COINBASE_MATURITY {
            return Err(TransactionError::ImmatureCoinbase { depth });
        }
    }
    let paid_in = sum(spent.iter().map(|coin| &coin.output)).ok_or(TransactionError::Amount)?;
    let paid_out = sum(&transaction.output).ok_or(TransactionError::Amount)?;
    paid_in.checked_sub(paid_out).ok_or(TransactionError::SpendsMoreThanItHas)
}

/// Runs the scripts of all inputs.
pub(super) fn check_scripts(transaction: &Transaction, spent: &[Coin]) -> Result<(), TransactionError> {
    let outputs: Vec<&TxOut> = spent.iter().map(|coin| &coin.output).collect();
    script::verify(transaction, &outputs)
}

/// Signature operations in units of cost.
pub(super) fn sigops_cost(transaction: &Transaction, spent: &[Coin]) -> u64 {
    let outputs: BTreeMap<&OutPoint, &TxOut> = transaction
        .input
        .iter()
        .map(|input| &input.previous_output)
        .zip(spent.iter().map(|coin| &coin.output))
        .collect();
    transaction.total_sigop_cost(|outpoint| outputs.get(outpoint).map(|output| (*output).clone())) as u64
}

/// The sum of outputs; none when it, or one of them, is more than all money.
fn sum<'a>(outputs: impl IntoIterator<Item = &'a TxOut>) -> Option<Amount> {
    let within = |amount: &Amount| *amount <= Amount::MAX_MONEY;
    outputs
        .into_iter()
        .try_fold(Amount::ZERO, |sum, output| sum.checked_add(Some(output.value).filter(within)?).filter(within))
}
