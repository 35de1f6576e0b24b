//! Funding, channels, payments over one and two hops, what cannot be paid, restarts, closing.

use consortium_node::ledger::lightning::channels::{ChannelState, Closing, OpenOrder};
use consortium_node::ledger::lightning::event::WalletEvent;
use consortium_node::ledger::lightning::history::{Direction, State};
use consortium_node::ledger::lightning::onchain::OnchainAmount;
use consortium_node::ledger::lightning::{Wallet, WalletError};
use consortium_protocol::Msat;

use super::support::{Town, event, find, order, pay, place, until};

const CHANNEL: u64 = 400_000;
const PUSH: Msat = Msat(150_000_000);

async fn stop(wallets: &[&Wallet]) {
    for wallet in wallets {
        wallet.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn money_goes_through_a_channel_and_comes_out_of_it() {
    let town = Town::new();
    let (alice, bob) = (town.wallet("alice").await, town.wallet("bob").await);
    town.fund(&[&alice, &bob]).await;
    let channel = town.channel(&alice, &bob, CHANNEL, PUSH).await;

    let mut received = bob.events();
    let invoice = bob.invoice(order(21_000_500)).await.unwrap();
    let paid = alice.pay(pay(invoice.invoice.clone())).await.unwrap();
    assert_eq!((paid.hash, paid.amount, paid.fee), (invoice.hash, Msat(21_000_500), Msat::ZERO));
    assert_eq!(paid.preimage.unwrap().hash(), invoice.hash, "the preimage is the receipt");
    let told = event(&mut received, |event| matches!(event, WalletEvent::PaymentReceived { .. })).await;
    assert_eq!(told, WalletEvent::PaymentReceived { hash: invoice.hash, amount: Msat(21_000_500) });
    assert!(matches!(alice.pay(pay(invoice.invoice)).await, Err(WalletError::AlreadyPaid(_))));

    // Bob's side of the channel, less what he must keep in it: a hundredth.
    let now_his = Msat(PUSH.0 + 21_000_500 - CHANNEL * 10);
    until("bob can spend it", || async { bob.balances().await.unwrap().spendable == now_his }).await;
    until("alice has heard so", || async { alice.balances().await.unwrap().receivable == now_his }).await;
    let history = alice.history(None, 50).await.unwrap().payments;
    let payment = history.iter().find(|payment| payment.id == invoice.hash.to_string()).unwrap();
    assert_eq!((payment.direction, payment.state, payment.fee), (Direction::Out, State::Done, Some(Msat::ZERO)));
    let history = bob.history(None, 50).await.unwrap().payments;
    let payment = history.iter().find(|payment| payment.id == invoice.hash.to_string()).unwrap();
    assert_eq!((payment.direction, payment.description.as_deref()), (Direction::In, Some("a test")));

    // Restarted, the wallet has what it had, and its peer is back at once.
    let before = alice.balances().await.unwrap();
    let node_id = alice.node_id();
    alice.stop().await.unwrap();
    assert!(matches!(alice.new_address().await, Ok(_) | Err(WalletError::Stopped)));
    drop(alice);
    let alice = town.wallet("alice").await;
    assert_eq!(alice.node_id(), node_id);
    until("the channel is back", || async {
        alice.channels().await.unwrap().iter().any(|channel| channel.state == ChannelState::Usable)
    })
    .await;
    assert_eq!(alice.balances().await.unwrap(), before);
    let invoice = alice.invoice(order(5_000_000)).await.unwrap();
    bob.pay(pay(invoice.invoice)).await.unwrap();

    let before = bob.balances().await.unwrap().spendable_sat;
    let mut closed = bob.events();
    alice.close_channel(&channel, Closing::Cooperative).await.unwrap();
    event(&mut closed, |event| matches!(event, WalletEvent::ChannelClosed { .. })).await;
    town.mine(7).await;
    until("bob has his share on-chain", || async { bob.balances().await.unwrap().spendable_sat > before + 165_000 })
        .await;
    assert_eq!(bob.balances().await.unwrap().spendable, Msat::ZERO);
    let back = alice.new_address().await.unwrap();
    let txid = bob.send_onchain(&back, OnchainAmount::All, None).await.unwrap();
    town.call("getmempoolentry", serde_json::json!([txid])).await;
    stop(&[&alice, &bob]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_finds_its_way_over_two_hops_and_says_why_not() {
    let town = Town::new();
    let (alice, bob, carol) = (town.wallet("alice").await, town.wallet("bob").await, town.wallet("carol").await);
    let nothing = carol.invoice(order(1_000_000)).await.unwrap();
    assert!(nothing.warning.unwrap().contains("can receive nothing"));
    let Err(WalletError::NoRoute { advice, .. }) = alice.pay(pay(nothing.invoice)).await else { panic!() };
    assert!(advice.contains("no channel"), "{advice}");

    town.fund(&[&alice, &bob, &carol]).await;
    town.channel(&alice, &bob, CHANNEL, PUSH).await;
    town.channel(&bob, &carol, CHANNEL, PUSH).await;
    let invoice = carol.invoice(order(9_000_000)).await.unwrap().invoice;
    // The way is known once the announcement of the far channel has come.
    until("the payment goes through", || async {
        match alice.pay(pay(invoice.clone())).await {
            Ok(paid) => {
                assert!(paid.fee > Msat::ZERO, "bob is paid for passing it on");
                true
            }
            Err(WalletError::NoRoute { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    })
    .await;

    let too_much = carol.invoice(order(CHANNEL * 1000)).await.unwrap();
    assert!(too_much.warning.is_some());
    let Err(WalletError::NoRoute { advice, .. }) = alice.pay(pay(too_much.invoice)).await else { panic!() };
    assert!(advice.starts_with("at most"), "{advice}");
    // What failed is not spent.
    let spent = alice.status().await.unwrap().spent_today;
    assert!(spent > PUSH && spent < Msat(PUSH.0 + 9_200_000), "{spent}");
    stop(&[&alice, &bob, &carol]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_spent_at_once_spends_no_coin_twice() {
    let town = Town::new();
    let (alice, bob, carol) = (town.wallet("alice").await, town.wallet("bob").await, town.wallet("carol").await);
    // One coin, so that two transactions made blindly would take the same.
    town.fund(&[&alice]).await;
    let open =
        |to: String| alice.open_channel(OpenOrder { peer: to, size_sat: 200_000, push: Msat::ZERO, announced: false });
    let address = bob.new_address().await.unwrap();
    let (to_bob, to_carol, sent) = tokio::join!(
        open(place(&bob).await),
        open(place(&carol).await),
        alice.send_onchain(&address, OnchainAmount::Sat(100_000), None)
    );
    let sent = sent.unwrap();
    let mut made = vec![sent.clone()];
    for channel in [to_bob.unwrap(), to_carol.unwrap()] {
        let funding = find(&alice, &channel).await.funding.unwrap();
        made.push(funding.split(':').next().unwrap().to_owned());
    }
    for txid in &made {
        town.call("getmempoolentry", serde_json::json!([txid])).await;
    }
    town.mine(6).await;
    until("both channels can be used", || async {
        alice.channels().await.unwrap().iter().filter(|channel| channel.state == ChannelState::Usable).count() == 2
    })
    .await;
    until("bob has the money", || async { bob.balances().await.unwrap().spendable_sat == 100_000 }).await;
    let history = alice.history(None, 50).await.unwrap().payments;
    assert!(made.iter().all(|txid| history.iter().any(|payment| payment.id == *txid)), "{history:?}");
    stop(&[&alice, &bob, &carol]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wallet_that_is_dropped_stops() {
    let town = Town::new();
    let (alice, bob) = (town.wallet("alice").await, town.wallet("bob").await);
    town.fund(&[&alice]).await;
    let before = alice.balances().await.unwrap();
    drop((alice, bob));
    // Neither its port nor its database is held any more.
    let alice = town.wallet("alice").await;
    assert_eq!(alice.balances().await.unwrap(), before);
    stop(&[&alice]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[should_panic(expected = "as asked")]
async fn a_test_that_fails_with_wallets_running_ends() {
    let town = Town::new();
    let (alice, bob) = (town.wallet("alice").await, town.wallet("bob").await);
    let waiting = alice.clone();
    tokio::spawn(async move { waiting.events().recv().await });
    let kept = bob.clone();
    tokio::spawn(async move {
        std::future::pending::<Wallet>().await;
        drop(kept);
    });
    panic!("as asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_opened_is_refused_in_words() {
    let town = Town::new();
    let (alice, bob) = (town.wallet("alice").await, town.wallet("bob").await);
    let order = OpenOrder { peer: place(&bob).await, size_sat: 50_000, push: Msat::ZERO, announced: false };
    let away = OpenOrder { peer: format!("{}@127.0.0.1:1", bob.node_id()), ..order.clone() };
    let nobody = alice.open_channel(away).await.unwrap_err();
    assert!(matches!(nobody, WalletError::Unreachable(_)), "{nobody}");
    let poor = alice.open_channel(order.clone()).await.unwrap_err();
    assert!(matches!(poor, WalletError::Insufficient { spendable: 0, needed: 75_000, .. }), "{poor}");
    let own = OpenOrder { peer: place(&alice).await, ..order.clone() };
    assert!(alice.open_channel(own).await.unwrap_err().to_string().contains("own key"));
    for bad in [
        OpenOrder { peer: "bob".to_owned(), ..order.clone() },
        OpenOrder { size_sat: 19_999, ..order.clone() },
        OpenOrder { push: Msat(50_000_000), ..order },
    ] {
        assert!(matches!(alice.open_channel(bad).await, Err(WalletError::Invalid(_))));
    }
    assert!(matches!(alice.close_channel("12", Closing::Forced).await, Err(WalletError::NoChannel(_))));
    stop(&[&alice, &bob]).await;
}
