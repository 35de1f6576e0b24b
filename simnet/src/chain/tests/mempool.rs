//! Who waits, who replaces whom, who comes first.

use super::*;
use crate::chain::TransactionError;
use crate::chain::params::{MAX_FAMILY, RELAY_FEE_PER_KVB, fee_at};

fn sat(sat: u64) -> Amount {
    Amount::from_sat(sat)
}

/// A chain of `length` transactions, each spending the one before.
fn row(regtest: &Regtest, length: usize) -> Vec<Transaction> {
    let mut row: Vec<Transaction> = vec![spend(regtest, &coins(regtest)[..1], FEE, |_| {})];
    while row.len() < length {
        let coin = first_output(&row[row.len() - 1]);
        row.push(spend(regtest, &[coin], FEE, |_| {}));
    }
    row
}

#[test]
fn a_fee_below_the_relay_fee_is_refused() {
    let mut regtest = regtest();
    let coin = &coins(&regtest)[..1];
    // Signatures differ in length by a byte or two, and with them what is needed.
    let vsize = spend(&regtest, coin, FEE, |_| {}).vsize() as u64;
    let needed = fee_at(RELAY_FEE_PER_KVB, vsize);
    let low = spend(&regtest, coin, needed - sat(3), |_| {});
    let error = send(&mut regtest, &low).unwrap_err();
    let (paid, wanted) = (needed - sat(3), fee_at(RELAY_FEE_PER_KVB, low.vsize() as u64));
    assert_eq!(error, MempoolError::FeeTooLow { paid, needed: wanted });
    assert_eq!(error.to_string(), format!("min relay fee not met, {} < {}", vsize - 3, low.vsize()));
    let enough = spend(&regtest, coin, needed + sat(3), |_| {});
    send(&mut regtest, &enough).unwrap();
    // A block may hold what is not relayed.
    let other = spend(&regtest, &coins(&regtest)[1..2], Amount::ZERO, |_| {});
    regtest.chain.mine_these(regtest.faucet.script(), vec![other.clone()], NOW).unwrap();
    assert!(is_confirmed(&regtest, &other));
}

#[test]
fn what_nobody_would_spend_is_refused() {
    let mut regtest = regtest();
    let dust = spend(&regtest, &coins(&regtest)[..1], FEE, |transaction| {
        let script_pubkey = transaction.output[0].script_pubkey.clone();
        transaction.output[0].value -= sat(1_000);
        transaction.output.push(TxOut { value: sat(293), script_pubkey });
    });
    assert_eq!(send(&mut regtest, &dust).unwrap_err(), MempoolError::Dust);
    let future = spend(&regtest, &coins(&regtest)[..1], FEE, |transaction| {
        transaction.version = transaction::Version::non_standard(4);
    });
    assert_eq!(send(&mut regtest, &future).unwrap_err(), MempoolError::Version);
}

#[test]
fn a_child_waits_for_its_parent_to_be_known() {
    let mut regtest = regtest();
    let row = row(&regtest, 2);
    assert_eq!(send(&mut regtest, &row[1]).unwrap_err(), TransactionError::MissingInputs.into());
    send(&mut regtest, &row[0]).unwrap();
    send(&mut regtest, &row[1]).unwrap();
    mine(&mut regtest, 1);
    assert!(row.iter().all(|transaction| is_confirmed(&regtest, transaction)));
    assert!(regtest.chain.mempool().is_empty());
}

#[test]
fn a_row_of_those_that_wait_is_bounded() {
    let mut regtest = regtest();
    let row = row(&regtest, MAX_FAMILY + 1);
    for transaction in &row[..MAX_FAMILY] {
        send(&mut regtest, transaction).unwrap();
    }
    assert_eq!(send(&mut regtest, &row[MAX_FAMILY]).unwrap_err(), MempoolError::TooLongChain);
    mine(&mut regtest, 1);
    send(&mut regtest, &row[MAX_FAMILY]).unwrap();
}

#[test]
fn a_replacement_pays_for_all_that_it_pushes_out() {
    let mut regtest = regtest();
    let row = row(&regtest, 3);
    for transaction in &row {
        send(&mut regtest, transaction).unwrap();
    }
    let vsize = row[0].vsize() as u64;
    let needed = FEE + FEE + FEE + fee_at(RELAY_FEE_PER_KVB, vsize);
    let coin = Unspent {
        output: spent_by(&regtest, &row[0]),
        outpoint: row[0].input[0].previous_output,
        ..first_output(&row[0])
    };
    let coin = std::slice::from_ref(&coin);
    let cheap = spend(&regtest, coin, needed - Amount::ONE_SAT, |_| {});
    let error = send(&mut regtest, &cheap).unwrap_err();
    assert_eq!(error, MempoolError::ReplacementFee { paid: needed - Amount::ONE_SAT, needed });
    assert!(row.iter().all(|transaction| waits(&regtest, transaction)));
    let dear = spend(&regtest, coin, needed, |_| {});
    send(&mut regtest, &dear).unwrap();
    assert!(!row.iter().any(|transaction| waits(&regtest, transaction)));
    mine(&mut regtest, 1);
    assert!(is_confirmed(&regtest, &dear));
}

/// The output that the first input of a waiting transaction spends.
fn spent_by(regtest: &Regtest, transaction: &Transaction) -> TxOut {
    regtest.chain.unspent(&transaction.input[0].previous_output, false).unwrap().output
}

#[test]
fn a_replacement_depends_on_nothing_new() {
    let mut regtest = regtest();
    let mut coins = coins(&regtest);
    coins.truncate(2);
    let first = spend(&regtest, &coins[..1], FEE, |_| {});
    let other = spend(&regtest, &coins[1..], FEE, |_| {});
    send(&mut regtest, &first).unwrap();
    send(&mut regtest, &other).unwrap();
    let joined = spend(&regtest, &[coins[0].clone(), first_output(&other)], sat(100_000), |_| {});
    assert_eq!(send(&mut regtest, &joined).unwrap_err(), MempoolError::AddsUnconfirmed);
    let cannibal = spend(&regtest, &[coins[0].clone(), first_output(&first)], sat(100_000), |_| {});
    assert_eq!(send(&mut regtest, &cannibal).unwrap_err(), MempoolError::SpendsReplaced);
}

#[test]
fn a_block_takes_packages_by_their_rate() {
    let mut regtest = regtest();
    let coins = coins(&regtest);
    // A parent that pays little, whose child pays for both, goes before one that pays something in between.
    let poor = spend(&regtest, &coins[..1], sat(200), |_| {});
    let child = spend(&regtest, &[first_output(&poor)], sat(20_000), |_| {});
    let middle = spend(&regtest, &coins[1..2], sat(1_000), |_| {});
    for transaction in [&poor, &middle, &child] {
        send(&mut regtest, transaction).unwrap();
    }
    let order: Vec<Txid> = crate::chain::assemble::choose(&regtest.chain.mempool)
        .iter()
        .map(|entry| entry.transaction.compute_txid())
        .collect();
    assert_eq!(order, [&poor, &child, &middle].map(Transaction::compute_txid));
    let tip = regtest.chain.mine(regtest.faucet.script(), NOW).unwrap();
    let block = regtest.chain.block(&tip).unwrap().block;
    assert_eq!(block.txdata[0].output[0].value, sat(50 * 100_000_000 + 200 + 20_000 + 1_000));
}

#[test]
fn a_full_block_leaves_the_rest_waiting() {
    let mut regtest = regtest();
    // Each carries 95,000 bytes of data; ten fit in a block of a million virtual bytes.
    let big: Vec<Transaction> = (0..)
        .zip(coins(&regtest).iter().take(11))
        .map(|(index, coin): (u64, _)| {
            let fee = sat(200_000 + 1_000 * index);
            spend(&regtest, std::slice::from_ref(coin), fee, |transaction| {
                let mut script = vec![0x6a];
                script.resize(95_000, 0x51);
                transaction.output.push(TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::from_bytes(script) });
            })
        })
        .collect();
    for transaction in &big {
        send(&mut regtest, transaction).unwrap();
    }
    assert_eq!(regtest.chain.next_block_fee_rate(), {
        let second_lowest = &regtest.chain.mempool()[&big[1].compute_txid()];
        second_lowest.fee.to_sat() * 1_000 / second_lowest.vsize + 1
    });
    mine(&mut regtest, 1);
    assert!(waits(&regtest, &big[0]), "the one that pays least");
    assert!(big[1..].iter().all(|transaction| is_confirmed(&regtest, transaction)));
    mine(&mut regtest, 1);
    assert!(is_confirmed(&regtest, &big[0]));
}
