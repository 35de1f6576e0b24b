//! What wallets move is in the books, once.

use consortium_node::bookkeeper;
use consortium_node::ledger::Ledger;
use consortium_node::ledger::accounts::{Book, Owner};
use consortium_node::ledger::lightning::Wallet;
use consortium_node::ledger::payments::{Direction, Moved};
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::msat::Msat;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::support::{Town, key, order, pay, until};

struct Books {
    ledger: Ledger,
    alarms: watch::Receiver<Vec<String>>,
    stop: CancellationToken,
}

/// The books of `name`, kept from the wallet's events from now on.
fn keep(town: &Town, name: &str, wallet: &Wallet) -> Books {
    let ledger = Ledger::open(&town.directory(name).join("ledger.db"), id(name)).unwrap();
    let (sender, alarms) = watch::channel(Vec::new());
    let stop = CancellationToken::new();
    bookkeeper::spawn(ledger.clone(), wallet.clone(), sender, stop.clone());
    Books { ledger, alarms, stop }
}

fn id(name: &str) -> NodeId {
    key(name).node_id()
}

fn free(ledger: &Ledger, owner: Owner) -> i64 {
    ledger.account(&owner).unwrap().balance.free
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_payment_is_booked_once_also_over_a_restart() {
    let town = Town::new();
    let (alice, bob, carol) = (town.wallet("alice").await, town.wallet("bob").await, town.wallet("carol").await);
    town.fund(&[&alice, &bob]).await;
    town.channel(&alice, &bob, 300_000, Msat::ZERO).await;
    town.channel(&bob, &carol, 300_000, Msat::ZERO).await;
    let (hers, his) = (keep(&town, "alice", &alice), keep(&town, "bob", &bob));

    // Carol's books begin later: the events are there still.
    let invoice = carol.invoice(order(5_000_000)).await.unwrap();
    let hash = Hash::from_bytes(*invoice.hash.as_bytes());
    let to_carol = Owner::Peer(id("carol"));
    hers.ledger.expect_payment(Direction::Outgoing, hash, &to_carol, Msat(5_000_000), "a tab", 1).unwrap();
    until("there is a way to carol", || async { alice.pay(pay(invoice.invoice.clone())).await.is_ok() }).await;
    until("alice has booked it", || async { free(&hers.ledger, to_carol.clone()) == -5_000_000 }).await;
    let fee = hers.ledger.payment(Direction::Outgoing, &hash).unwrap().unwrap().booked.unwrap().fee;
    assert!(fee > Msat::ZERO);
    until("bob has booked his fee", || async { free(&his.ledger, Owner::Own(Book::Routing)) == fee.0.cast_signed() })
        .await;
    let carols = keep(&town, "carol", &carol);
    until("carol has booked it", || async { free(&carols.ledger, Owner::Own(Book::Wallet)) == 5_000_000 }).await;

    // Bob's books stop, and go on after more has come.
    his.stop.cancel();
    alice.pay(pay(bob.invoice(order(7_000)).await.unwrap().invoice)).await.unwrap();
    bob.stop().await.unwrap();
    drop(bob);
    let bob = town.wallet("bob").await;
    let his = keep(&town, "bob", &bob);
    until("bob has booked the rest", || async { free(&his.ledger, Owner::Own(Book::Wallet)) == 7_000 }).await;

    let mut moved = 0;
    for books in [&hers, &his, &carols] {
        moved += free(&books.ledger, Owner::Own(Book::Outside));
        assert!(books.ledger.reconcile().unwrap().is_exact());
        assert!(books.alarms.borrow().is_empty());
    }
    assert_eq!(moved, 0, "what one paid, the others got");
    for wallet in [alice, bob, carol] {
        wallet.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_says_something_else_raises_an_alarm() {
    let town = Town::new();
    let (alice, bob) = (town.wallet("alice").await, town.wallet("bob").await);
    town.fund(&[&alice, &bob]).await;
    town.channel(&alice, &bob, 300_000, Msat::ZERO).await;
    let invoice = bob.invoice(order(9_000)).await.unwrap();
    let ledger = Ledger::open(&town.directory("bob").join("ledger.db"), id("bob")).unwrap();
    let wrong = Moved {
        direction: Direction::Incoming,
        hash: Hash::from_bytes(*invoice.hash.as_bytes()),
        amount: Msat(8_000),
        fee: Msat(0),
    };
    ledger.book_payment(&wrong, 1).unwrap();
    alice.pay(pay(invoice.invoice.clone())).await.unwrap();
    let differing = || async {
        let page = bob.history(None, 10).await.unwrap();
        bookkeeper::differing(&ledger, &page.payments, u64::MAX).unwrap()
    };
    until("the payment is in the history", || async { !differing().await.is_empty() }).await;
    let alarms = differing().await;
    assert!(alarms.len() == 1 && alarms[0].contains(&invoice.hash.to_string()), "{alarms:?}");
    alice.stop().await.unwrap();
    bob.stop().await.unwrap();
}
