//! Absolute and relative locks.

use super::*;
use crate::chain::TransactionError;

/// A version 2 transaction with this sequence and lock time.
fn locked(regtest: &Regtest, coin: &Unspent, sequence: Sequence, lock_time: u32) -> Transaction {
    spend(regtest, std::slice::from_ref(coin), FEE, |transaction| {
        transaction.input[0].sequence = sequence;
        transaction.lock_time = LockTime::from_consensus(lock_time);
    })
}

/// A coin of the faucet that was made by the last block.
fn fresh_coin(regtest: &mut Regtest) -> Unspent {
    let transaction = spend(regtest, &coins(regtest)[..1], FEE, |_| {});
    send(regtest, &transaction).unwrap();
    mine(regtest, 1);
    regtest.chain.unspent(&first_output(&transaction).outpoint, false).unwrap()
}

#[test]
fn a_lock_by_height_opens_at_its_height() {
    let mut regtest = regtest();
    let coin = coins(&regtest).swap_remove(0);
    let height = regtest.chain.height();
    let transaction = locked(&regtest, &coin, Sequence::ENABLE_LOCKTIME_NO_RBF, height + 1);
    assert_eq!(send(&mut regtest, &transaction).unwrap_err(), MempoolError::NonFinal);
    // A block that holds it early is invalid.
    let error = regtest.chain.mine_these(regtest.faucet.script(), vec![transaction.clone()], NOW).unwrap_err();
    assert!(error.to_string().starts_with("bad-txns-nonfinal"), "{error}");
    mine(&mut regtest, 1);
    send(&mut regtest, &transaction).unwrap();
    mine(&mut regtest, 1);
    assert!(is_confirmed(&regtest, &transaction));
}

#[test]
fn final_sequences_switch_the_lock_off() {
    let mut regtest = regtest();
    let coin = coins(&regtest).swap_remove(0);
    let transaction = locked(&regtest, &coin, Sequence::MAX, 400_000_000);
    send(&mut regtest, &transaction).unwrap();
}

#[test]
fn a_lock_by_time_looks_at_the_median() {
    let mut regtest = regtest();
    let coin = coins(&regtest).swap_remove(0);
    let opens = regtest.chain.median_time_past() + 1000;
    let transaction = locked(&regtest, &coin, Sequence::ENABLE_LOCKTIME_NO_RBF, opens);
    // Five blocks of a later time do not move the median of eleven beyond it; one more does.
    for _ in 0..5 {
        regtest.chain.mine(regtest.faucet.script(), u64::from(opens) + 1).unwrap();
        assert_eq!(send(&mut regtest, &transaction).unwrap_err(), MempoolError::NonFinal);
    }
    regtest.chain.mine(regtest.faucet.script(), u64::from(opens) + 1).unwrap();
    send(&mut regtest, &transaction).unwrap();
}

#[test]
fn a_relative_lock_counts_blocks() {
    let mut regtest = regtest();
    let coin = fresh_coin(&mut regtest);
    let transaction = locked(&regtest, &coin, Sequence::from_height(3), 0);
    for _ in 0..2 {
        assert_eq!(send(&mut regtest, &transaction).unwrap_err(), TransactionError::RelativeLock.into());
        mine(&mut regtest, 1);
    }
    send(&mut regtest, &transaction).unwrap();
    mine(&mut regtest, 1);
    assert!(is_confirmed(&regtest, &transaction));
}

#[test]
fn a_relative_lock_counts_time() {
    let mut regtest = regtest();
    let coin = fresh_coin(&mut regtest);
    let before = regtest.chain.median_time_past();
    let transaction = locked(&regtest, &coin, Sequence::from_512_second_intervals(2), 0);
    let early = u64::from(before) + 500;
    for time in [early, early + 700] {
        assert_eq!(send(&mut regtest, &transaction).unwrap_err(), TransactionError::RelativeLock.into());
        for _ in 0..11 {
            regtest.chain.mine(regtest.faucet.script(), time).unwrap();
        }
    }
    send(&mut regtest, &transaction).unwrap();
}

#[test]
fn version_1_has_no_relative_locks() {
    let mut regtest = regtest();
    let coin = fresh_coin(&mut regtest);
    let transaction = spend(&regtest, std::slice::from_ref(&coin), FEE, |transaction| {
        transaction.version = transaction::Version::ONE;
        transaction.input[0].sequence = Sequence::from_height(60);
    });
    send(&mut regtest, &transaction).unwrap();
}
