//! Wallets that read the chain by REST.

use consortium_node::ledger::lightning::settings::WalletSettings;
use consortium_node::ledger::lightning::{Wallet, WalletError};
use consortium_protocol::Msat;
use serde_json::json;

use super::support::{Town, find, key, order, pay, until};

fn by_rest(town: &Town, name: &str) -> WalletSettings {
    let mut settings = town.settings(name);
    settings.chain = settings.chain.with_rest(None, 18443).unwrap();
    settings
}

/// Replaces the last blocks by one more.
async fn reorganise(town: &Town, replaced: u32) {
    let height = town.call("getblockcount", json!([])).await.as_u64().unwrap();
    let hash = town.call("getblockhash", json!([height + 1 - u64::from(replaced)])).await;
    town.call("invalidateblock", json!([hash])).await;
    town.mine(replaced + 1).await;
}

/// Waits until the wallets are at the height of the chain.
async fn up_to_date(town: &Town, wallets: &[&Wallet]) {
    let height = town.call("getblockcount", json!([])).await;
    for wallet in wallets {
        until("the wallet is at the tip", || async { json!(wallet.height()) == height }).await;
    }
}

async fn pays(from: &Wallet, to: &Wallet, amount: u64) {
    let invoice = to.invoice(order(amount)).await.unwrap();
    let paid = from.pay(pay(invoice.invoice)).await.unwrap();
    assert_eq!((paid.hash, paid.amount), (invoice.hash, Msat(amount)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wallet_on_rest_opens_a_channel_pays_and_follows_a_reorganisation() {
    let town = Town::new();
    let alice = town.wallet_with("alice", by_rest(&town, "alice")).await;
    let bob = town.wallet("bob").await;
    assert!(alice.status().await.unwrap().chain.ends_with(", read by REST"));
    town.fund(&[&alice]).await;
    let channel = town.channel(&alice, &bob, 300_000, Msat(100_000_000)).await;
    pays(&alice, &bob, 10_000_000).await;

    // The blocks that confirmed the channel are replaced, and its funding is in others.
    reorganise(&town, 4).await;
    up_to_date(&town, &[&alice, &bob]).await;
    pays(&bob, &alice, 5_000_000).await;
    let funding = find(&alice, &channel).await.funding.unwrap();

    // A branch changes while the wallet is off, and it stood on what is gone.
    alice.stop().await.unwrap();
    drop(alice);
    reorganise(&town, 3).await;
    let alice = town.wallet_with("alice", by_rest(&town, "alice")).await;
    up_to_date(&town, &[&alice, &bob]).await;
    assert_eq!(find(&alice, &channel).await.funding.unwrap(), funding);
    pays(&alice, &bob, 2_000_000).await;
    for wallet in [alice, bob] {
        wallet.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wallet_of_another_network_is_not_begun() {
    let town = Town::new();
    let mut settings = by_rest(&town, "alice");
    settings.network = consortium_node::ledger::lightning::settings::Network::Signet;
    let directory = town.directory("alice");
    let refused = Wallet::start(settings, &directory, &key("alice")).await.unwrap_err();
    assert!(matches!(&refused, WalletError::Rest { reason, .. } if reason.contains("regtest")), "{refused}");
    assert!(!directory.exists(), "nothing was written");
}
