//! One branch gives way to another.

use super::*;
use crate::chain::ChainError;

/// Replaces the last `blocks` blocks by one more, none of which holds a transaction.
fn replace_last(regtest: &mut Regtest, blocks: u32) {
    let first = regtest.chain.hash_at(regtest.chain.height() + 1 - blocks).unwrap();
    regtest.chain.invalidate(&first, NOW).unwrap();
    for _ in 0..=blocks {
        regtest.chain.mine_these(regtest.faucet.script(), Vec::new(), NOW).unwrap();
    }
}

#[test]
fn transactions_of_a_lost_branch_wait_again() {
    let mut regtest = regtest();
    let coins_before = coins(&regtest);
    let parent = spend(&regtest, &coins_before[..1], FEE, |_| {});
    let child = spend(&regtest, &[first_output(&parent)], FEE, |_| {});
    send(&mut regtest, &parent).unwrap();
    mine(&mut regtest, 1);
    send(&mut regtest, &child).unwrap();
    mine(&mut regtest, 1);
    let grandchild = spend(&regtest, &[first_output(&child)], FEE, |_| {});
    send(&mut regtest, &grandchild).unwrap();
    let height = regtest.chain.height();

    replace_last(&mut regtest, 2);
    assert_eq!(regtest.chain.height(), height + 1);
    for transaction in [&parent, &child, &grandchild] {
        assert!(waits(&regtest, transaction) && !is_confirmed(&regtest, transaction));
    }
    // What the lost blocks spent is there again, for the blocks if not for the mempool.
    let spent = coins_before[0].outpoint;
    assert!(regtest.chain.unspent(&spent, false).is_some());
    assert!(regtest.chain.unspent(&spent, true).is_none());
    mine(&mut regtest, 1);
    assert!([&parent, &child, &grandchild].into_iter().all(|transaction| is_confirmed(&regtest, transaction)));
}

#[test]
fn what_the_new_branch_spends_otherwise_is_gone() {
    let mut regtest = regtest();
    let coin = &coins(&regtest)[..1];
    let first = spend(&regtest, coin, FEE, |_| {});
    let rival = spend(&regtest, coin, FEE, |transaction| transaction.output[0].value -= Amount::from_sat(9));
    let heir = spend(&regtest, &[first_output(&first)], FEE, |_| {});
    send(&mut regtest, &first).unwrap();
    mine(&mut regtest, 1);
    send(&mut regtest, &heir).unwrap();

    let tip = regtest.chain.tip();
    regtest.chain.invalidate(&tip, NOW).unwrap();
    assert!(waits(&regtest, &first) && waits(&regtest, &heir));
    regtest.chain.mine_these(regtest.faucet.script(), vec![rival.clone()], NOW).unwrap();
    assert!(is_confirmed(&regtest, &rival));
    assert!(!waits(&regtest, &first) && !waits(&regtest, &heir));
}

#[test]
fn coins_of_lost_coinbases_are_gone() {
    let mut regtest = regtest();
    // A coinbase that is just ripe is not ripe two blocks earlier.
    let ripe = coins(&regtest).into_iter().find(|coin| coin.height == Some(regtest.chain.height() - 99)).unwrap();
    let transaction = spend(&regtest, &[ripe], FEE, |_| {});
    send(&mut regtest, &transaction).unwrap();
    let below = regtest.chain.hash_at(regtest.chain.height() - 1).unwrap();
    regtest.chain.invalidate(&below, NOW).unwrap();
    assert!(!waits(&regtest, &transaction));
    regtest.chain.reconsider(&below, NOW).unwrap();
    send(&mut regtest, &transaction).unwrap();
}

#[test]
fn the_most_work_counts_and_the_first_of_equals() {
    let mut regtest = regtest();
    mine(&mut regtest, 2);
    let old = regtest.chain.tip();
    let fork = regtest.chain.hash_at(regtest.chain.height() - 1).unwrap();
    regtest.chain.invalidate(&fork, NOW).unwrap();
    mine(&mut regtest, 2);
    let new = regtest.chain.tip();
    assert_ne!(old, new);
    // The old branch has as much work and came first.
    regtest.chain.reconsider(&fork, NOW).unwrap();
    assert_eq!(regtest.chain.tip(), old);
    assert_eq!(regtest.chain.block(&new).unwrap().confirmations, None);
    regtest.chain.invalidate(&fork, NOW).unwrap();
    assert_eq!(regtest.chain.tip(), new);
    mine(&mut regtest, 1);
    let longer = regtest.chain.tip();
    regtest.chain.reconsider(&fork, NOW).unwrap();
    assert_eq!(regtest.chain.tip(), longer);
}

#[test]
fn the_first_block_stays() {
    let mut regtest = regtest();
    let genesis = regtest.chain.hash_at(0).unwrap();
    assert!(matches!(regtest.chain.invalidate(&genesis, NOW), Err(ChainError::Genesis)));
    let second = regtest.chain.hash_at(1).unwrap();
    regtest.chain.invalidate(&second, NOW).unwrap();
    assert_eq!(regtest.chain.tip(), genesis);
    assert_eq!(regtest.chain.branch.coins().iter().count(), 0);
    regtest.chain.reconsider(&second, NOW).unwrap();
    assert_eq!(regtest.chain.height(), 110);
}
