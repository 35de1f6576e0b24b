//! Channels within a budget, hints, and channels just in time by a provider of liquidity.

use std::net::TcpListener;

use consortium_node::ledger::lightning::channels::{ChannelState, OpenOrder};
use consortium_node::ledger::lightning::liquidity::{Budget, OverBudget};
use consortium_node::ledger::lightning::settings::LiquidityProvider;
use consortium_node::ledger::lightning::{Wallet, WalletError};
use consortium_protocol::Msat;
use ldk_node::bitcoin::Network;
use ldk_node::liquidity::LSPS2ServiceConfig;

use super::support::{Town, order, pay, place, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_holds_for_what_is_opened_at_once() {
    let town = Town::new();
    let (alice, bob, carol) = (town.wallet("alice").await, town.wallet("bob").await, town.wallet("carol").await);
    town.fund(&[&alice]).await;
    let budget = Budget(150_000);
    let open = |to: String| {
        let order = OpenOrder { peer: to, size_sat: 100_000, push: Msat::ZERO, announced: false };
        alice.open_channel_within(budget, order)
    };
    let (one, other) = tokio::join!(open(place(&bob).await), open(place(&carol).await));
    let refused = match (one, other) {
        (Ok(_), Err(error)) | (Err(error), Ok(_)) => error,
        both => panic!("{both:?}"),
    };
    let over = OverBudget { wanted: 100_000, used: 100_000, budget: 150_000 };
    assert!(matches!(&refused, WalletError::OverBudget(found) if *found == over), "{refused}");
    town.mine(6).await;
    until("the channel can be used", || async {
        alice.channels().await.unwrap().iter().any(|channel| channel.state == ChannelState::Usable)
    })
    .await;
    let hints = alice.hints().await.unwrap();
    assert!(hints.iter().any(|hint| hint.contains("almost all its money is on this side")), "{hints:?}");
    for wallet in [alice, bob, carol] {
        wallet.stop().await.unwrap();
    }
}

/// A Lightning node that opens channels just in time.
fn provider(town: &Town) -> (ldk_node::Node, LiquidityProvider) {
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut builder = ldk_node::Builder::new();
    let (host, port, user, password) = town.bitcoind();
    builder
        .set_network(Network::Regtest)
        .set_runtime(tokio::runtime::Handle::current())
        .set_entropy_seed_bytes([42; 64])
        .set_storage_dir_path(town.directory("provider").to_str().unwrap().to_owned())
        .set_chain_source_bitcoind_rpc(host, port, user, password)
        .set_liquidity_provider_lsps2(LSPS2ServiceConfig {
            require_token: Some("a word".to_owned()),
            advertise_service: false,
            channel_opening_fee_ppm: 10_000,
            channel_over_provisioning_ppm: 1_000_000,
            min_channel_opening_fee_msat: 1_000_000,
            min_channel_lifetime: 100,
            max_client_to_self_delay: 1024,
            min_payment_size_msat: 0,
            max_payment_size_msat: 1_000_000_000,
            client_trusts_lsp: false,
        });
    builder.set_listening_addresses(vec![listen.into()]).unwrap();
    builder.set_node_alias("provider".to_owned()).unwrap();
    let node = builder.build().unwrap();
    node.start().unwrap();
    let peer = format!("{}@{listen}", node.node_id());
    (node, LiquidityProvider { peer, token: Some("a word".to_owned()), max_fee: Msat(2_000_000) })
}

/// Pays the provider's node in and opens a channel to it.
async fn payer(town: &Town, provider: &ldk_node::Node, peer: &str) -> Wallet {
    let alice = town.wallet("alice").await;
    let address = provider.onchain_payment().new_address().unwrap().to_string();
    town.call("sendtoaddress", serde_json::json!([address, "0.01"])).await;
    town.fund(&[&alice]).await;
    let order = OpenOrder { peer: peer.to_owned(), size_sat: 500_000, push: Msat::ZERO, announced: false };
    alice.open_channel(order).await.unwrap();
    town.mine(6).await;
    until("the payer's channel can be used", || async {
        alice.channels().await.unwrap().iter().any(|channel| channel.state == ChannelState::Usable)
    })
    .await;
    alice
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_opens_a_channel_just_in_time() {
    let town = Town::new();
    let (node, lsp) = provider(&town);
    let alice = payer(&town, &node, &lsp.peer).await;
    let mut settings = town.settings("bob");
    settings.lsp = Some(LiquidityProvider { max_fee: Msat(900_000), ..lsp.clone() });
    let bob = town.wallet_with("bob", settings.clone()).await;
    let dear = bob.invoice(order(100_000_000)).await.unwrap().warning.unwrap();
    assert!(dear.contains("asks for more than 900 sat"), "{dear}");
    bob.stop().await.unwrap();
    drop(bob);

    settings.lsp = Some(lsp);
    let bob = town.wallet_with("bob", settings).await;
    let invoice = bob.invoice(order(100_000_000)).await.unwrap();
    assert!(invoice.warning.unwrap().contains("opens a channel when it is paid"));
    assert!(bob.channels().await.unwrap().is_empty());
    let paid = alice.pay(pay(invoice.invoice)).await.unwrap();
    assert_eq!(paid.amount, Msat(100_000_000));
    // The provider keeps a hundredth, which is 1,000 sat, and some of the rest stays as the channel's reserve.
    until("bob has what is left of it", || async {
        let balances = bob.balances().await.unwrap();
        (90_000_000..=99_000_000).contains(&balances.spendable.0)
    })
    .await;
    let enough = bob.invoice(order(1_000_000)).await.unwrap();
    assert_eq!(enough.warning, None, "the channel has room for it");
    for wallet in [alice, bob] {
        wallet.stop().await.unwrap();
    }
    tokio::task::spawn_blocking(move || node.stop().unwrap()).await.unwrap();
}
