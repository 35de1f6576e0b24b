//! The chain against its rules.

mod blocks;
mod locks;
mod mempool;
mod properties;
mod reorg;
mod rest;
mod rpc;
mod rules;

use bitcoin::absolute::LockTime;
use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness, transaction};

use super::view::Unspent;
use super::{MempoolError, Regtest};

/// A time, in Unix seconds.
const NOW: u64 = 1_700_000_000;

/// A fee that is always enough.
const FEE: Amount = Amount::from_sat(2_000);

fn regtest() -> Regtest {
    Regtest::in_memory(NOW).unwrap()
}

/// Coins of the faucet, the oldest first.
fn coins(regtest: &Regtest) -> Vec<Unspent> {
    let mut coins = regtest.chain.unspent_of(&regtest.faucet.script());
    coins.sort_by_key(|coin| coin.height);
    coins
}

/// Spends the faucet's coins back to the faucet, less a fee; `change` may alter everything before it is signed.
fn spend(regtest: &Regtest, coins: &[Unspent], fee: Amount, change: impl FnOnce(&mut Transaction)) -> Transaction {
    let value: Amount = coins.iter().map(|coin| coin.output.value).sum();
    let input = |coin: &Unspent| TxIn {
        previous_output: coin.outpoint,
        script_sig: ScriptBuf::new(),
        sequence: Sequence::MAX,
        witness: Witness::new(),
    };
    let mut transaction = Transaction {
        version: transaction::Version::TWO,
        lock_time: LockTime::ZERO,
        input: coins.iter().map(input).collect(),
        output: vec![TxOut { value: value - fee, script_pubkey: regtest.faucet.script() }],
    };
    change(&mut transaction);
    let spent: Vec<TxOut> = coins.iter().map(|coin| coin.output.clone()).collect();
    regtest.faucet.sign(&mut transaction, &spent).unwrap();
    transaction
}

/// The first output of a transaction, as a coin.
fn first_output(transaction: &Transaction) -> Unspent {
    let outpoint = OutPoint::new(transaction.compute_txid(), 0);
    Unspent { outpoint, output: transaction.output[0].clone(), height: None, coinbase: false }
}

fn send(regtest: &mut Regtest, transaction: &Transaction) -> Result<Txid, MempoolError> {
    regtest.chain.submit_transaction(transaction.clone(), NOW)
}

fn mine(regtest: &mut Regtest, blocks: u32) {
    for _ in 0..blocks {
        regtest.chain.mine(regtest.faucet.script(), NOW).unwrap();
    }
}

/// Whether a block holds the transaction.
fn is_confirmed(regtest: &Regtest, transaction: &Transaction) -> bool {
    regtest.chain.transaction(&transaction.compute_txid()).is_some_and(|(_, block)| block.is_some())
}

fn waits(regtest: &Regtest, transaction: &Transaction) -> bool {
    regtest.chain.mempool().contains_key(&transaction.compute_txid())
}
