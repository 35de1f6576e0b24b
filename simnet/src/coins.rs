//! The coins of a chain: what its miner gave to others, what these paid for transactions, and what is left of it.

use std::collections::BTreeMap;

use bitcoin::{Amount, Block, OutPoint, Script, TxOut};

/// The output of a closed channel with which either side, and after 16 blocks anybody, can raise the fee of the closing
/// (BOLT 3).
pub const ANCHOR: Amount = Amount::from_sat(330);

/// What became of the coins of a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coins {
    /// What the miner gave to others.
    pub given: Amount,
    /// What others paid for their transactions.
    pub fees: Amount,
    /// What others have: outputs that are not spent.
    pub left: Amount,
    /// Those of them that are anchors.
    pub anchors: u64,
}

/// Counts the coins of a chain, from the block after the first one, whose coins nobody can spend, to its last. All that is
/// paid to `miner` is its own.
#[must_use]
pub fn count<'a>(blocks: impl IntoIterator<Item = &'a Block>, miner: &Script) -> Coins {
    let mut unspent: BTreeMap<OutPoint, TxOut> = BTreeMap::new();
    let mut coins = Coins::default();
    let others = |output: &&TxOut| output.script_pubkey.as_script() != miner;
    for transaction in blocks.into_iter().flat_map(|block| &block.txdata) {
        let inputs = transaction.input.iter().filter_map(|input| unspent.remove(&input.previous_output));
        let inputs: Vec<TxOut> = inputs.collect();
        if inputs.iter().any(|input| input.script_pubkey.as_script() == miner) {
            coins.given += transaction.output.iter().filter(others).map(|output| output.value).sum();
        } else if !transaction.is_coinbase() {
            let paid_in: Amount = inputs.iter().map(|input| input.value).sum();
            let paid_out: Amount = transaction.output.iter().map(|output| output.value).sum();
            coins.fees += paid_in.checked_sub(paid_out).unwrap_or_default();
        }
        let id = transaction.compute_txid();
        let outputs = transaction.output.iter().zip(0..).map(|(output, n)| (OutPoint::new(id, n), output.clone()));
        unspent.extend(outputs);
    }
    for output in unspent.values().filter(others) {
        coins.left += output.value;
        coins.anchors += u64::from(output.value == ANCHOR);
    }
    coins
}

#[cfg(test)]
mod tests {
    use bitcoin::secp256k1::SecretKey;

    use super::*;
    use crate::chain::{Faucet, Regtest};

    const NOW: u64 = 1_700_000_000;

    fn counted(regtest: &Regtest) -> Coins {
        let chain = &regtest.chain;
        let hashes = (1..=chain.height()).filter_map(|height| chain.hash_at(height));
        let blocks: Vec<Block> = hashes.map(|hash| (*chain.block(&hash).unwrap().block).clone()).collect();
        count(&blocks, &regtest.faucet.script())
    }

    #[test]
    fn what_was_given_is_left_or_was_paid_for_transactions() {
        let mut regtest = Regtest::in_memory(NOW).unwrap();
        assert_eq!(counted(&regtest), Coins::default());
        let [alice, bob] = [7, 8].map(|n| Faucet::new(SecretKey::from_slice(&[n; 32]).unwrap()));
        let to = |who: &Faucet, sat| TxOut { value: Amount::from_sat(sat), script_pubkey: who.script() };
        let gift = regtest.faucet.pay(&regtest.chain, vec![to(&alice, 90_000), to(&bob, 10_000)]).unwrap();
        regtest.chain.submit_transaction(gift, NOW).unwrap();
        regtest.chain.mine(regtest.faucet.script(), NOW).unwrap();
        let (given, fees) = (Amount::from_sat(100_000), Amount::ZERO);
        assert_eq!(counted(&regtest), Coins { given, fees, left: given, anchors: 0 });

        let paid = alice.pay(&regtest.chain, vec![to(&bob, 5_000), to(&bob, ANCHOR.to_sat())]).unwrap();
        regtest.chain.submit_transaction(paid, NOW).unwrap();
        regtest.chain.mine(regtest.faucet.script(), NOW).unwrap();
        let coins = counted(&regtest);
        assert!(coins.fees > Amount::ZERO);
        assert_eq!((coins.given, coins.left + coins.fees, coins.anchors), (given, given, 1));
    }
}
