//! Spending limits hold over restarts.

use consortium_node::ledger::lightning::WalletError;
use consortium_node::ledger::lightning::onchain::OnchainAmount;
use consortium_node::ledger::lightning::settings::SpendingLimits;
use consortium_protocol::Msat;

use super::support::{Town, order, pay};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wallet_spends_no_more_than_it_may() {
    let town = Town::new();
    let mut settings = town.settings("alice");
    settings.limits = SpendingLimits { per_payment: Some(Msat(60_000_000)), per_day: Some(Msat(100_000_000)) };
    let (alice, bob) = (town.wallet_with("alice", settings.clone()).await, town.wallet("bob").await);
    town.fund(&[&alice, &bob]).await;
    // What is put into a channel of one's own is not spent.
    town.channel(&alice, &bob, 300_000, Msat::ZERO).await;
    let to = bob.new_address().await.unwrap();
    assert!(matches!(
        alice.send_onchain(&to, OnchainAmount::Sat(60_001), None).await,
        Err(WalletError::AbovePaymentLimit { .. })
    ));
    assert!(matches!(
        alice.send_onchain(&to, OnchainAmount::All, None).await,
        Err(WalletError::AbovePaymentLimit { .. })
    ));
    alice.send_onchain(&to, OnchainAmount::Sat(60_000), None).await.unwrap();
    assert_eq!(alice.status().await.unwrap().spent_today, Msat(60_000_000));

    alice.stop().await.unwrap();
    drop(alice);
    let alice = town.wallet_with("alice", settings).await;
    let refused = alice.pay(pay(bob.invoice(order(45_000_000)).await.unwrap().invoice)).await;
    assert!(matches!(refused, Err(WalletError::AboveDayLimit { spent: Msat(60_000_000), .. })), "{refused:?}");
    assert!(
        matches!(
            alice.send_onchain("bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq", OnchainAmount::Sat(1000), None).await,
            Err(WalletError::Invalid(_))
        ),
        "an address of mainnet"
    );
    alice.stop().await.unwrap();
    bob.stop().await.unwrap();
}
