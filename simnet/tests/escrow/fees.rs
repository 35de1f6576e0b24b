//! Where all the money is once channels were closed: in wallets and channels, or in the fees of transactions.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::consensus::encode::deserialize_hex;
use bitcoin::{Amount, Block};
use consortium_node::ledger::lightning::Wallet;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::support::Town;

/// An output that lets a side raise the fee of a closing, in sat; worth less than what it costs to spend.
const ANCHOR: Amount = Amount::from_sat(330);
/// Regtest's subsidy, and how many blocks later it is halved.
const SUBSIDY: u64 = 50 * 100_000_000;
const HALVING: u32 = 150;

/// What a wallet has, in sat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Purse {
    on_chain: u64,
    /// Coming, from channels that are closed.
    coming: u64,
    /// By the output that funds it: all that is in a channel.
    channels: BTreeMap<String, u64>,
}

impl Purse {
    pub(crate) async fn of(wallet: &Wallet) -> Self {
        let balances = wallet.balances().await.unwrap();
        let channels = wallet.channels().await.unwrap();
        Self {
            on_chain: balances.spendable_sat + balances.reserved_sat,
            coming: balances.closing_sat + balances.unconfirmed_sat,
            channels: channels.into_iter().map(|channel| (channel.funding.unwrap(), channel.size_sat)).collect(),
        }
    }
}

/// What all have together, in sat; none while something is coming, or one side has yet to see that a channel is closed.
pub(crate) fn together(purses: &[Purse]) -> Option<u64> {
    let fundings: BTreeSet<&String> = purses.iter().flat_map(|purse| purse.channels.keys()).collect();
    let sides = |funding: &String| purses.iter().filter(|purse| purse.channels.contains_key(funding)).count();
    let settled = purses.iter().all(|purse| purse.coming == 0) && fundings.iter().all(|funding| sides(funding) == 2);
    let in_channels =
        fundings.iter().map(|funding| purses.iter().find_map(|purse| purse.channels.get(*funding)).unwrap());
    settled.then(|| purses.iter().map(|purse| purse.on_chain).sum::<u64>() + in_channels.sum::<u64>())
}

/// What the transactions of the blocks above a height cost, and left behind in anchors that nobody has spent, in sat.
pub(crate) async fn lost_above(town: &Town, height: u32) -> u64 {
    let last = town.call("getblockcount", json!([])).await.as_u64().unwrap();
    let mut lost = 0;
    for height in height + 1..=u32::try_from(last).unwrap() {
        let hash = town.call("getblockhash", json!([height])).await;
        let block: Block = deserialize_hex(town.call("getblock", json!([hash, 0])).await.as_str().unwrap()).unwrap();
        let (coinbase, others) = block.txdata.split_first().unwrap();
        let reward: Amount = coinbase.output.iter().map(|output| output.value).sum();
        lost += reward.to_sat() - (SUBSIDY >> (height / HALVING));
        for transaction in others {
            let txid = transaction.compute_txid();
            for (place, _) in transaction.output.iter().enumerate().filter(|(_, output)| output.value == ANCHOR) {
                let unspent = town.call("gettxout", json!([txid, place, false])).await;
                lost += if unspent.is_null() { 0 } else { ANCHOR.to_sat() };
            }
        }
    }
    lost
}
