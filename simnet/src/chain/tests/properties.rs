//! Whatever branches come and go, the coins are those of the blocks.

use std::collections::BTreeMap;

use bitcoin::BlockHash;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Mine(u32),
    MineEmpty,
    /// Sends from the faucet so many satoshis.
    Pay(u64),
    /// Declares the block so many below the tip invalid.
    Invalidate(u32),
    /// Takes back one of those declarations.
    Reconsider(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..4u32).prop_map(Step::Mine),
        Just(Step::MineEmpty),
        (1_000..9_000_000_000u64).prop_map(Step::Pay),
        (1_000..9_000_000_000u64).prop_map(Step::Pay),
        (0..5u32).prop_map(Step::Invalidate),
        (0..8usize).prop_map(Step::Reconsider),
    ]
}

fn take(regtest: &mut Regtest, step: &Step, invalidated: &mut Vec<BlockHash>) {
    match step {
        Step::Mine(blocks) => mine(regtest, *blocks),
        Step::MineEmpty => {
            regtest.chain.mine_these(regtest.faucet.script(), Vec::new(), NOW).unwrap();
        }
        Step::Pay(amount) => {
            let payee = TxOut { value: Amount::from_sat(*amount), script_pubkey: regtest.faucet.script() };
            // What cannot be paid at this moment is not.
            if let Ok(transaction) = regtest.faucet.pay(&regtest.chain, vec![payee]) {
                let _ = send(regtest, &transaction);
            }
        }
        Step::Invalidate(depth) => {
            let hash = regtest.chain.hash_at(regtest.chain.height() - depth).unwrap();
            regtest.chain.invalidate(&hash, NOW).unwrap();
            invalidated.push(hash);
        }
        Step::Reconsider(index) => {
            if let Some(hash) = invalidated.get(*index) {
                regtest.chain.reconsider(hash, NOW).unwrap();
            }
        }
    }
}

/// The coins of the best branch, made from its blocks in the simplest way.
fn from_scratch(regtest: &Regtest) -> BTreeMap<OutPoint, TxOut> {
    let mut coins = BTreeMap::new();
    for height in 1..=regtest.chain.height() {
        let hash = regtest.chain.hash_at(height).unwrap();
        for transaction in &regtest.chain.block(&hash).unwrap().block.txdata {
            for input in &transaction.input {
                assert!(coins.remove(&input.previous_output).is_some() || transaction.is_coinbase());
            }
            let txid = transaction.compute_txid();
            let outputs = (0..).zip(&transaction.output).filter(|(_, output)| !output.script_pubkey.is_op_return());
            coins.extend(outputs.map(|(vout, output)| (OutPoint::new(txid, vout), output.clone())));
        }
    }
    coins
}

fn check(regtest: &Regtest) {
    let kept = regtest.chain.branch.coins().iter().map(|(outpoint, coin)| (*outpoint, coin.output.clone()));
    assert_eq!(kept.collect::<BTreeMap<_, _>>(), from_scratch(regtest));
    let mut spent = std::collections::BTreeSet::new();
    for entry in regtest.chain.mempool().values() {
        for input in &entry.transaction.input {
            let outpoint = input.previous_output;
            assert!(spent.insert(outpoint), "two that wait spend {outpoint}");
            let made_here = regtest.chain.mempool().contains_key(&outpoint.txid);
            assert!(made_here || regtest.chain.unspent(&outpoint, false).is_some(), "{outpoint} is not there");
        }
    }
    let vsize: u64 = regtest.chain.mempool().values().map(|entry| entry.vsize).sum();
    assert_eq!(regtest.chain.mempool_vsize(), vsize);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn coins_are_those_of_the_blocks(steps in vec(step(), 1..24)) {
        let mut regtest = regtest();
        let mut invalidated = Vec::new();
        for step in &steps {
            take(&mut regtest, step, &mut invalidated);
            check(&regtest);
        }
        // What waits is all valid: a few blocks hold it.
        mine(&mut regtest, 2);
        prop_assert!(regtest.chain.mempool().is_empty());
        check(&regtest);
    }
}
