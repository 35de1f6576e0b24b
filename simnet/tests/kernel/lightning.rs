//! The blocks of channels from their opening to the last sweep, in each way that a channel can end.

use std::collections::BTreeSet;
use std::time::Duration;

use bitcoin::{Amount, Block, OutPoint, Sequence, Transaction, TxIn};
use consortium_node::ledger::lightning::channels::Closing;
use consortium_node::ledger::lightning::event::WalletEvent;
use consortium_node::ledger::lightning::{Preimage, Wallet};
use consortium_protocol::Msat;
use serde_json::json;

use super::oracle;
use super::support::{Town, event, find, order, pay, until};

const CHANNEL: u64 = 500_000;
const AMOUNT: u64 = 20_000_000;
/// Value of an anchor output.
const ANCHOR: Amount = Amount::from_sat(330);
/// Wallets ask for new blocks every two seconds.
const POLL: Duration = Duration::from_millis(2_200);
/// Times that six blocks are mined, at most: many times what delays and deadlines take together.
const ROUNDS: u32 = 100;

struct Pair {
    town: Town,
    alice: Wallet,
    bob: Wallet,
    channel: String,
    /// The channel's output, as `txid:vout`.
    funding: String,
}

impl Pair {
    async fn new() -> Self {
        let town = Town::new();
        let (alice, bob) = (town.wallet("alice").await, town.wallet("bob").await);
        town.fund(&[&alice, &bob]).await;
        let channel = town.channel(&alice, &bob, CHANNEL, Msat(100_000_000)).await;
        let funding = find(&alice, &channel).await.funding.unwrap();
        Self { town, alice, bob, channel, funding }
    }

    /// Has Alice pay what Bob then holds.
    async fn hold(&self, preimage: &Preimage, delta: u16) {
        let mut events = self.bob.events();
        let invoice = self.bob.hold_invoice(order(AMOUNT), preimage.hash(), delta).await.unwrap();
        let alice = self.alice.clone();
        // It ends with the wallet, at the latest.
        tokio::spawn(async move { drop(alice.pay(pay(invoice.invoice)).await) });
        event(&mut events, |event| matches!(event, WalletEvent::PaymentHeld { .. })).await;
        until("alice sees that it is under way", || async { !self.alice.balances().await.unwrap().held.is_empty() })
            .await;
    }
}

/// Mines until the blocks, which are returned, show something.
async fn mine_until(town: &Town, what: &str, is_so: impl Fn(&[Block]) -> bool) -> Vec<Block> {
    for _ in 0..ROUNDS {
        let blocks = oracle::read(&town.directory("chain").join("blocks.dat"));
        if is_so(&blocks) {
            return blocks;
        }
        town.mine(6).await;
        tokio::time::sleep(POLL).await;
    }
    panic!("no block shows {what}");
}

fn payments(blocks: &[Block]) -> impl Iterator<Item = &Transaction> {
    blocks.iter().flat_map(|block| &block.txdata).filter(|transaction| !transaction.is_coinbase())
}

fn inputs(blocks: &[Block]) -> impl Iterator<Item = &TxIn> {
    payments(blocks).flat_map(|transaction| &transaction.input)
}

/// How many outputs were spent only after a long relative lock: one's own parts of a closing that was not agreed.
fn delayed(blocks: &[Block]) -> usize {
    let long = |lock: Sequence| lock.is_height_locked() && lock.to_consensus_u32() >= 100;
    inputs(blocks).filter(|input| long(input.sequence)).count()
}

/// The transaction that closed a channel.
fn closing(blocks: &[Block], funding: &str) -> Option<Transaction> {
    let closes =
        |transaction: &&Transaction| transaction.input.iter().any(|input| input.previous_output.to_string() == funding);
    payments(blocks).find(closes).cloned()
}

/// Whether nothing of a closed channel is left but anchors.
fn is_swept(blocks: &[Block], funding: &str) -> bool {
    let Some(closing) = closing(blocks, funding) else { return false };
    let txid = closing.compute_txid();
    let spent: BTreeSet<OutPoint> = inputs(blocks).map(|input| input.previous_output).collect();
    let mut outputs = (0..).zip(&closing.output);
    outputs.all(|(vout, output)| output.value <= ANCHOR || spent.contains(&OutPoint::new(txid, vout)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_closed_in_agreement() {
    let Pair { town, alice, bob, channel, funding } = Pair::new().await;
    let invoice = bob.invoice(order(AMOUNT)).await.unwrap();
    alice.pay(pay(invoice.invoice)).await.unwrap();
    // The last two blocks are replaced by three others.
    let height = town.call("getblockcount", json!([])).await.as_u64().unwrap();
    let hash = town.call("getblockhash", json!([height - 1])).await;
    town.call("invalidateblock", json!([hash])).await;
    town.mine(3).await;
    alice.close_channel(&channel, Closing::Cooperative).await.unwrap();
    let blocks = mine_until(&town, "the closing", |blocks| closing(blocks, &funding).is_some()).await;
    assert_eq!((closing(&blocks, &funding).unwrap().output.len(), delayed(&blocks)), (2, 0));
    for wallet in [alice, bob] {
        wallet.stop().await.unwrap();
    }
    oracle::accepted("a channel closed in agreement", &town.directory("chain"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_closed_by_force_and_a_payment_claimed_on_chain() {
    let pair = Pair::new().await;
    let preimage = Preimage::random().unwrap();
    pair.hold(&preimage, 500).await;
    let Pair { town, alice, bob, funding, .. } = pair;
    alice.stop().await.unwrap();
    drop(alice);
    // The payer does not answer: only the chain can settle it.
    bob.settle(preimage.clone()).await.unwrap();
    let channel = bob.channels().await.unwrap().remove(0).id;
    bob.close_channel(&channel, Closing::Forced).await.unwrap();
    let shows = |input: &TxIn| input.witness.iter().any(|item| item == preimage.reveal());
    mine_until(&town, "the preimage", |blocks| inputs(blocks).any(shows)).await;
    let alice = town.wallet("alice").await;
    // Bob's part, and the payment, after his delay; Alice's part at once.
    mine_until(&town, "the sweeps", |blocks| delayed(blocks) == 2 && is_swept(blocks, &funding)).await;
    for wallet in [alice, bob] {
        wallet.stop().await.unwrap();
    }
    oracle::accepted("closed by force, a payment claimed", &town.directory("chain"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_taken_back_on_chain() {
    let pair = Pair::new().await;
    pair.hold(&Preimage::random().unwrap(), 42).await;
    let Pair { town, alice, bob, funding, .. } = pair;
    bob.stop().await.unwrap();
    drop(bob);
    // The payment's time runs out and the payee is gone. BOLT 3: two signatures, nothing in place of the preimage, the
    // script.
    let takes_back = |input: &TxIn| input.witness.len() == 5 && input.witness.nth(3).is_some_and(<[u8]>::is_empty);
    mine_until(&town, "that it is taken back", |blocks| inputs(blocks).any(takes_back)).await;
    let bob = town.wallet("bob").await;
    mine_until(&town, "the sweeps", |blocks| delayed(blocks) == 2 && is_swept(blocks, &funding)).await;
    for wallet in [alice, bob] {
        wallet.stop().await.unwrap();
    }
    oracle::accepted("a payment taken back", &town.directory("chain"));
}
