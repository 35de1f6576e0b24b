//! Tabs between nodes with real wallets: paid once whatever ends in between, and what is no honest tab is not taken.

use std::time::{Duration, Instant};

use consortium_node::clock::wall_ms;
use consortium_node::ledger::accounts::Owner;
use consortium_node::ledger::lightning::PaymentHash;
use consortium_node::ledger::lightning::channels::ChannelState;
use consortium_node::ledger::lightning::history::{Direction as Way, Kind, State};
use consortium_node::ledger::lightning::lookup::Fate;
use consortium_node::ledger::payments::Direction;
use consortium_node::storage::tabs::{Settlement, Side};
use consortium_protocol::Msat;
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::wire::rpc::{RefusalCode, Response};
use consortium_protocol::wire::tab::{Tab, TabSays};

use super::partners::{Partner, id, met, pair, settled, with_newcomer, work};
use super::support::{Town, key, until};

/// The payer's word, with sums of its own choosing.
fn tab(payer: &str, worker: &str, seq: u64, accepted: u64, paid: u64) -> Signed<Tab> {
    let (accepted, paid) = (Msat(accepted), Msat(paid));
    Signed::sign(&key(payer), Tab { payer: id(payer), worker: id(worker), seq, accepted, paid, receipts: Vec::new() })
}

/// The worker's invoice over what alice owes bob.
async fn invoiced(worker: &Partner, seq: u64, accepted: u64) -> Settlement {
    let Response::Tab(answer) = worker.tabs.settle(id("alice"), tab("alice", "bob", seq, accepted, 0)).await else {
        panic!("no answer")
    };
    let TabSays::Invoice { amount, invoice, lightning, .. } = &answer.payload().says else { panic!("{answer:?}") };
    assert_eq!((answer.signer(), lightning.to_string()), (worker.id(), worker.wallet.node_id()));
    let facts = consortium_node::ledger::lightning::invoice::read(invoice).unwrap();
    assert_eq!(facts.amount, Some(*amount));
    Settlement {
        hash: Hash::from_bytes(*facts.hash.as_bytes()),
        peer: worker.id(),
        amount: *amount,
        invoice: invoice.clone(),
        expires_s: facts.expires_s,
        asked_ms: wall_ms(),
    }
}

/// What alice's wallet has paid.
async fn payments(payer: &Partner) -> Vec<Msat> {
    let page = payer.wallet.history(None, 200).await.unwrap();
    let out = (Kind::Lightning, Way::Out, State::Done);
    let paid = page.payments.iter().filter(|payment| (payment.kind, payment.direction, payment.state) == out);
    paid.filter_map(|payment| payment.amount).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_is_paid_for_and_both_sides_agree() {
    let town = Town::new();
    let (alice, bob) = pair(&town).await;
    alice.pays(&[bob.id()]);
    bob.pays(&[alice.id()]);
    work(&alice, &bob, 1, 5_000_001);
    settled(&alice, &bob).await;
    // Bob owes more than alice: the difference is paid.
    work(&alice, &bob, 2, 1_000);
    work(&bob, &alice, 3, 3_000_000);
    settled(&bob, &alice).await;
    until("the invoices are ticked off", || async { alice.with(bob.id()).await.paid_by.count == 1 }).await;
    let (hers, his) = (alice.with(bob.id()).await, bob.with(alice.id()).await);
    assert_eq!((hers.paid_to.total, his.paid_by.total), (Msat(5_000_001), Msat(5_000_001)));
    assert_eq!(hers.paid_by.total, his.paid_to.total);
    assert_eq!(hers.trouble, None);
    for partner in [alice, bob] {
        assert!(partner.ledger.reconcile().unwrap().is_exact());
        partner.ends().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_honest_tab_is_refused() {
    let town = Town::new();
    let (alice, bob) = pair(&town).await;
    work(&alice, &bob, 1, 9_000_000);
    let refused = async |said: Signed<Tab>| match bob.tabs.settle(id("alice"), said).await {
        Response::Refused(refusal) => refusal.code,
        answer => panic!("{answer:?}"),
    };
    let disputed = async |said: Signed<Tab>| match bob.tabs.settle(id("alice"), said).await {
        Response::Tab(answer) => matches!(answer.payload().says, TabSays::Disputed { owed: Msat(9_000_000) }),
        _ => false,
    };
    // Too little, by any amount.
    assert!(disputed(tab("alice", "bob", 5, 9_000_000, 1)).await);
    assert!(bob.with(alice.id()).await.trouble.unwrap().contains("9000 sat"));
    // A number or sums that do not rise.
    for said in [
        tab("alice", "bob", 5, 9_000_000, 1),
        tab("alice", "bob", 4, 9_000_001, 1),
        tab("alice", "bob", 6, 9_000_000, 0),
    ] {
        assert_eq!(refused(said).await, RefusalCode::Disputed);
    }
    // Somebody else's.
    assert_eq!(refused(tab("carol", "bob", 9, 9_000_000, 0)).await, RefusalCode::Disputed);
    assert_eq!(refused(tab("alice", "carol", 9, 9_000_000, 0)).await, RefusalCode::Disputed);
    // Too much is not taken: what both have in their books is.
    let Response::Tab(answer) = bob.tabs.settle(id("alice"), tab("alice", "bob", 7, 9_900_001, 1)).await else {
        panic!("no answer")
    };
    assert!(matches!(answer.payload().says, TabSays::Invoice { amount: Msat(9_000_000), .. }), "{answer:?}");
    assert_eq!(bob.with(alice.id()).await.trouble, None);
    alice.ends().await;
    bob.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payer_that_ended_between_intent_and_payment_pays_once() {
    let town = Town::new();
    let (alice, bob) = pair(&town).await;
    bob.pays(&[]);
    work(&alice, &bob, 1, 7_000_000);
    // All that is on disk when it ends there.
    let intent = invoiced(&bob, 1, 7_000_000).await;
    assert!(alice.storage.settlement_begin(Side::Payer, intent.clone()).await.unwrap());
    alice.ends().await;
    let alice = Partner::new(&town, "alice", town.wallet("alice").await, bob.address()).await;
    met(&alice, &bob).await;
    alice.pays(&[bob.id()]);
    settled(&alice, &bob).await;
    until("it is noted", || async { alice.with(bob.id()).await.paid_to.count == 1 }).await;
    assert_eq!(payments(&alice).await, [intent.amount]);

    // And once more, ending when the payment was sent, and before that was noted.
    work(&alice, &bob, 2, 6_000_000);
    alice.ends().await;
    let alice = Partner::new(&town, "alice", town.wallet("alice").await, bob.address()).await;
    met(&alice, &bob).await;
    let intent = invoiced(&bob, 100, 13_000_000).await;
    assert_eq!(intent.amount, Msat(6_000_000));
    assert!(alice.storage.settlement_begin(Side::Payer, intent.clone()).await.unwrap());
    let (hash, owner) = (intent.hash, Owner::Peer(bob.id()));
    alice.ledger.expect_payment(Direction::Outgoing, hash, &owner, intent.amount, "tab", 1).unwrap();
    until("it is paid", || async { alice.wallet.pay(super::support::pay(intent.invoice.clone())).await.is_ok() }).await;
    alice.ends().await;
    let alice = Partner::new(&town, "alice", town.wallet("alice").await, bob.address()).await;
    met(&alice, &bob).await;
    alice.pays(&[bob.id()]);
    settled(&alice, &bob).await;
    until("it is noted", || async { alice.with(bob.id()).await.paid_to.count == 2 }).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(payments(&alice).await.len(), 2, "nothing was paid twice");
    let paid = payments(&alice).await.iter().map(|amount| amount.0).sum::<u64>();
    assert_eq!(bob.with(alice.id()).await.paid_by.total, Msat(paid));
    alice.ends().await;
    bob.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_ended_between_invoice_and_receipt_is_paid_once() {
    let town = Town::new();
    let (alice, bob) = pair(&town).await;
    work(&alice, &bob, 1, 8_000_000);
    let intent = invoiced(&bob, 1, 8_000_000).await;
    assert!(alice.storage.settlement_begin(Side::Payer, intent.clone()).await.unwrap());
    bob.ends().await;
    alice.pays(&[id("bob")]);
    until("alice has tried in vain", || async { alice.with(id("bob")).await.trouble.is_some() }).await;
    let bob = Partner::new(&town, "bob", town.wallet("bob").await, alice.address()).await;
    met(&alice, &bob).await;
    bob.pays(&[]);
    settled(&alice, &bob).await;
    until("it is noted", || async { bob.with(alice.id()).await.paid_by.count >= 1 }).await;
    assert_eq!(payments(&alice).await, [intent.amount]);
    assert_eq!(bob.with(alice.id()).await.paid_by.total, intent.amount);
    alice.ends().await;
    bob.ends().await;
}

/// As when a channel of the payer is closed while a small payment goes through it: it has failed for the payer, whose money
/// went with the closing, and its worker has received it. Here carol sees to that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_arrived_though_it_failed_for_its_payer_is_shown_by_a_receipt_and_not_paid_again() {
    let town = Town::new();
    let (alice, bob) = pair(&town).await;
    work(&alice, &bob, 1, 7_000_000);
    let intent = invoiced(&bob, 1, 7_000_000).await;
    let (hash, owner) = (intent.hash, Owner::Peer(bob.id()));
    bob.ends().await;
    assert!(alice.storage.settlement_begin(Side::Payer, intent.clone()).await.unwrap());
    alice.ledger.expect_payment(Direction::Outgoing, hash, &owner, intent.amount, "tab", 1).unwrap();
    alice.wallet.pay(super::support::pay(intent.invoice.clone())).await.unwrap_err();
    assert_eq!(alice.wallet.fate(PaymentHash::from_bytes(*hash.as_bytes())).await.unwrap(), Fate::Failed);
    alice.storage.settlement_end(Side::Payer, hash, false, 2).await.unwrap();

    let (bob, carol) = (town.wallet("bob").await, town.wallet("carol").await);
    town.fund(&[&carol]).await;
    town.channel(&carol, &bob, 300_000, Msat::ZERO).await;
    let bob = Partner::new(&town, "bob", bob, alice.address()).await;
    met(&alice, &bob).await;
    bob.pays(&[]);
    until("it has come", || async { carol.pay(super::support::pay(intent.invoice.clone())).await.is_ok() }).await;
    until("bob has it", || async { bob.with(alice.id()).await.paid_by.count == 1 }).await;

    work(&alice, &bob, 2, 4_000_000);
    alice.pays(&[bob.id()]);
    settled(&alice, &bob).await;
    until("both are noted", || async { alice.with(bob.id()).await.paid_to.count == 2 }).await;
    assert_eq!(payments(&alice).await, [Msat(4_000_000)]);
    assert_eq!(alice.with(bob.id()).await.paid_to.total, Msat(11_000_000));
    assert!(alice.ledger.payment(Direction::Outgoing, &hash).unwrap().unwrap().booked.is_some());
    for partner in [alice, bob] {
        assert!(partner.ledger.reconcile().unwrap().is_exact());
        partner.ends().await;
    }
    carol.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_without_coins_or_address_is_given_a_channel_and_bears_its_cost() {
    let town = Town::new();
    let (payer, newcomer) = with_newcomer(&town).await;
    payer.pays(&[newcomer.id()]);
    newcomer.pays(&[payer.id()]);
    // Too little to be worth a channel: it waits, and says so.
    work(&payer, &newcomer, 1, 3_999_999);
    until("the payer says why", || async {
        payer.with(newcomer.id()).await.trouble.is_some_and(|why| why.contains("twice as much"))
    })
    .await;
    work(&payer, &newcomer, 2, 26_000_001);
    until("the channel is usable", || async {
        town.mine(1).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        newcomer.wallet.channels().await.unwrap().iter().any(|channel| channel.state == ChannelState::Usable)
    })
    .await;
    settled(&payer, &newcomer).await;
    // Both took the cost of the channel off.
    until("it is noted", || async { newcomer.with(payer.id()).await.paid_by.total == Msat(30_000_000 - 2_000_000) })
        .await;
    assert!(newcomer.wallet.balances().await.unwrap().spendable > Msat::ZERO);
    assert_eq!(newcomer.wallet.channels().await.unwrap().len(), 1);
    assert_eq!(payer.tabs.view().await.unwrap().channels_opened_sat, 300_000);
    for partner in [payer, newcomer] {
        assert!(partner.ledger.reconcile().unwrap().is_exact());
        partner.ends().await;
    }
}

/// How long settling a tab takes, from the question until both sides have booked it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn settling_a_tab_takes() {
    const TIMES: usize = 60;
    let town = Town::new();
    let (alice, bob) = pair(&town).await;
    alice.pays(&[bob.id()]);
    bob.pays(&[]);
    let mut took = Vec::new();
    for n in 0..=TIMES {
        work(&alice, &bob, u16::try_from(n).unwrap(), 1_000_000);
        alice.tabs.hurry();
        let asked = Instant::now();
        let free = |ledger: &consortium_node::ledger::Ledger, peer| ledger.tab(&peer).unwrap().free;
        while free(&alice.ledger, bob.id()) != 0 || free(&bob.ledger, alice.id()) != 0 {
            assert!(asked.elapsed() < super::support::PATIENCE);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        took.push(asked.elapsed().as_millis());
        until("it is noted", || async { alice.with(bob.id()).await.paid_to.count == n as u64 + 1 }).await;
    }
    // The first one warms up.
    took.remove(0);
    took.sort_unstable();
    let (median, p95) = (took[took.len() / 2], took[took.len() * 95 / 100]);
    eprintln!(
        "settling a tab, n = {}: median {median} ms, 95 % within {p95} ms, at most {} ms",
        took.len(),
        took[TIMES - 1]
    );
    alice.ends().await;
    bob.ends().await;
}
