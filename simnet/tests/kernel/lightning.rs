//! The blocks of channels from their opening to the last sweep, in each way that a channel can end.

use std::time::Duration;

use bitcoin::{Block, Sequence, TxIn};
use consortium_node::ledger::lightning::channels::Closing;
use consortium_node::ledger::lightning::event::WalletEvent;
use consortium_node::ledger::lightning::{Preimage, Wallet};
use consortium_protocol::Msat;
use serde_json::json;

use super::oracle;
use super::support::{Town, event, find, order, pay, until};

const CHANNEL: u64 = 500_000;
const AMOUNT: u64 = 20_000_000;
/// Wallets ask for new blocks every two seconds.
const POLL: Duration = Duration::from_millis(2_200);
/// Times that a dozen blocks is mined, at most: many times what delays and deadlines take together.
const ROUNDS: u32 = 100;

struct Pair {
    town: Town,
    alice: Wallet,
    bob: Wallet,
    channel: String,
}

impl Pair {
    async fn new() -> Self {
        let town = Town::new();
        let (alice, bob) = (town.wallet("alice").await, town.wallet("bob").await);
        town.fund(&[&alice, &bob]).await;
        let channel = town.channel(&alice, &bob, CHANNEL, Msat(100_000_000)).await;
        Self { town, alice, bob, channel }
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

/// Mines until all that a wallet had in channels is in its hands.
async fn swept(town: &Town, wallet: &Wallet) {
    for _ in 0..ROUNDS {
        town.mine(12).await;
        tokio::time::sleep(POLL).await;
        let balances = wallet.balances().await.unwrap();
        let channels = wallet.channels().await.unwrap();
        if channels.is_empty() && (balances.closing_sat, balances.unconfirmed_sat) == (0, 0) {
            return;
        }
    }
    panic!("something is left: {:?}", wallet.balances().await);
}

fn inputs(blocks: &[Block]) -> impl Iterator<Item = &TxIn> {
    let payments = blocks.iter().flat_map(|block| &block.txdata).filter(|transaction| !transaction.is_coinbase());
    payments.flat_map(|transaction| &transaction.input)
}

/// Whether something was spent only after a long relative lock: one's own part of a closing that was not agreed.
fn spent_after_a_delay(blocks: &[Block]) -> bool {
    let long = |lock: Sequence| lock.is_height_locked() && lock.to_consensus_u32() >= 100;
    inputs(blocks).any(|input| long(input.sequence))
}

fn blocks(town: &Town) -> Vec<Block> {
    oracle::read(&town.directory("chain").join("blocks.dat"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_closed_in_agreement() {
    let Pair { town, alice, bob, channel } = Pair::new().await;
    let invoice = bob.invoice(order(AMOUNT)).await.unwrap();
    alice.pay(pay(invoice.invoice)).await.unwrap();
    // The last two blocks are replaced by three others.
    let height = town.call("getblockcount", json!([])).await.as_u64().unwrap();
    let hash = town.call("getblockhash", json!([height - 1])).await;
    town.call("invalidateblock", json!([hash])).await;
    town.mine(3).await;
    let funding = find(&alice, &channel).await.funding.unwrap();
    alice.close_channel(&channel, Closing::Cooperative).await.unwrap();
    for wallet in [&alice, &bob] {
        swept(&town, wallet).await;
        wallet.stop().await.unwrap();
    }
    let blocks = blocks(&town);
    assert!(inputs(&blocks).any(|input| input.previous_output.to_string() == funding));
    assert!(!spent_after_a_delay(&blocks));
    oracle::accepted("a channel closed in agreement", &town.directory("chain"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_closed_by_force_and_a_payment_claimed_on_chain() {
    let pair = Pair::new().await;
    let preimage = Preimage::random().unwrap();
    pair.hold(&preimage, 500).await;
    let Pair { town, alice, bob, .. } = pair;
    alice.stop().await.unwrap();
    drop(alice);
    // The payer does not answer: only the chain can settle it.
    bob.settle(preimage.clone()).await.unwrap();
    let channel = bob.channels().await.unwrap().remove(0).id;
    bob.close_channel(&channel, Closing::Forced).await.unwrap();
    swept(&town, &bob).await;
    let alice = town.wallet("alice").await;
    swept(&town, &alice).await;
    for wallet in [alice, bob] {
        wallet.stop().await.unwrap();
    }
    let blocks = blocks(&town);
    let shows = |input: &TxIn| input.witness.iter().any(|item| item == preimage.reveal());
    assert!(inputs(&blocks).any(shows), "no block shows the preimage");
    assert!(spent_after_a_delay(&blocks));
    oracle::accepted("closed by force, a payment claimed", &town.directory("chain"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_taken_back_on_chain() {
    let pair = Pair::new().await;
    pair.hold(&Preimage::random().unwrap(), 42).await;
    let Pair { town, alice, bob, .. } = pair;
    bob.stop().await.unwrap();
    drop(bob);
    // Its time runs out, the peer is gone: Alice closes, takes it back, and sweeps after her delay.
    swept(&town, &alice).await;
    alice.stop().await.unwrap();
    let blocks = blocks(&town);
    // BOLT 3: two signatures, then nothing in place of the preimage, then the script.
    let takes_back = |input: &TxIn| input.witness.len() == 5 && input.witness.nth(3).is_some_and(<[u8]>::is_empty);
    assert!(inputs(&blocks).any(takes_back), "no block takes it back");
    assert!(spent_after_a_delay(&blocks));
    oracle::accepted("a payment taken back", &town.directory("chain"));
}
