//! Hold invoices: settled, cancelled, over; over a restart.

use consortium_node::ledger::lightning::balance::HeldDirection;
use consortium_node::ledger::lightning::event::{FailureReason, WalletEvent};
use consortium_node::ledger::lightning::hash::PaymentHash;
use consortium_node::ledger::lightning::{Preimage, Wallet, WalletError};
use consortium_protocol::Msat;

use super::support::{Town, event, order, pay, until};

const AMOUNT: u64 = 10_000_000;

/// Alice with room towards Bob.
async fn two(town: &Town) -> (Wallet, Wallet) {
    let (alice, bob) = (town.wallet("alice").await, town.wallet("bob").await);
    town.fund(&[&alice, &bob]).await;
    town.channel(&alice, &bob, 500_000, Msat::ZERO).await;
    (alice, bob)
}

/// Has Alice pay, and gives the task that waits for the outcome once Bob holds it, and until when he can.
async fn held(
    alice: &Wallet,
    bob: &Wallet,
    hash: PaymentHash,
    delta: u16,
) -> (tokio::task::JoinHandle<Result<Msat, WalletError>>, u32) {
    let mut events = bob.events();
    let invoice = bob.hold_invoice(order(AMOUNT), hash, delta).await.unwrap();
    let payer = alice.clone();
    let paying = tokio::spawn(async move { payer.pay(pay(invoice.invoice)).await.map(|paid| paid.amount) });
    match event(&mut events, |event| matches!(event, WalletEvent::PaymentHeld { .. })).await {
        WalletEvent::PaymentHeld { hash: found, amount: Msat(AMOUNT), deadline } if found == hash => (paying, deadline),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_is_settled_after_a_restart_or_sent_back() {
    let town = Town::new();
    let (alice, bob) = two(&town).await;
    let preimage = Preimage::random().unwrap();
    let (paying, deadline) = held(&alice, &bob, preimage.hash(), 500).await;
    // A delta of 500 leaves 461 blocks at least; LDK alone would leave about four.
    assert!(deadline >= bob.height() + 455, "{deadline} at {}", bob.height());
    let shown = bob.balances().await.unwrap().held;
    assert_eq!(
        shown.iter().map(|held| (held.direction, held.amount, held.deadline)).collect::<Vec<_>>(),
        [(HeldDirection::Incoming, Msat(AMOUNT), deadline)]
    );
    until("alice sees that it is under way", || async {
        alice.balances().await.unwrap().held.iter().any(|held| held.direction == HeldDirection::Outgoing)
    })
    .await;
    assert!(matches!(bob.settle(Preimage::random().unwrap()).await, Err(WalletError::NotHeld(_))));

    bob.stop().await.unwrap();
    drop(bob);
    let bob = town.wallet("bob").await;
    assert_eq!(bob.holds().await.unwrap().len(), 1, "a hold outlives a restart");
    let mut events = bob.events();
    bob.settle(preimage.clone()).await.unwrap();
    assert!(matches!(bob.cancel(preimage.hash()).await, Err(WalletError::NotHeld(_))), "it is being settled");
    event(&mut events, |event| matches!(event, WalletEvent::PaymentReceived { .. })).await;
    assert_eq!(paying.await.unwrap().unwrap(), Msat(AMOUNT));
    assert!(bob.holds().await.unwrap().is_empty());

    let before = alice.balances().await.unwrap().spendable;
    let hash = Preimage::random().unwrap().hash();
    let (paying, _) = held(&alice, &bob, hash, 144).await;
    bob.cancel(hash).await.unwrap();
    assert!(matches!(paying.await.unwrap(), Err(WalletError::Failed(FailureReason::Rejected))));
    bob.cancel(hash).await.unwrap();
    let early = Preimage::random().unwrap().hash();
    let invoice = bob.hold_invoice(order(AMOUNT), early, 144).await.unwrap();
    bob.cancel(early).await.unwrap();
    let late = alice.pay(pay(invoice.invoice)).await;
    assert!(matches!(late, Err(WalletError::Failed(FailureReason::Rejected))), "cancelled before it came: {late:?}");
    assert!(bob.holds().await.unwrap().is_empty());
    assert_eq!(alice.balances().await.unwrap().spendable, before, "to the millisatoshi");
    alice.stop().await.unwrap();
    bob.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_that_is_over_is_told_and_cannot_be_settled() {
    let town = Town::new();
    let (alice, bob) = two(&town).await;
    let preimage = Preimage::random().unwrap();
    let (paying, deadline) = held(&alice, &bob, preimage.hash(), 42).await;
    let mut events = bob.events();
    town.mine(deadline - bob.height()).await;
    let over = event(&mut events, |event| matches!(event, WalletEvent::HoldExpired { .. })).await;
    assert_eq!(over, WalletEvent::HoldExpired { hash: preimage.hash(), amount: Msat(AMOUNT), deadline });
    assert!(matches!(bob.settle(preimage).await, Err(WalletError::NotHeld(_) | WalletError::HoldOver { .. })));
    assert!(matches!(paying.await.unwrap(), Err(WalletError::Failed(_))));
    assert_eq!(bob.balances().await.unwrap().held, []);
    alice.stop().await.unwrap();
    bob.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hash_is_used_once_and_in_one_direction() {
    let town = Town::new();
    let (alice, bob) = two(&town).await;
    let preimage = Preimage::random().unwrap();
    let (paying, _) = held(&alice, &bob, preimage.hash(), 500).await;
    // Bob would pay Alice's invoice on the hash, and then be too late for what he holds.
    let refused = |result| matches!(result, Err(WalletError::Invalid(_)));
    assert!(
        alice.hold_invoice(order(AMOUNT), preimage.hash(), 144).await.is_err_and(|error| refused(Err::<(), _>(error)))
    );
    let carol = town.wallet("carol").await;
    let same = carol.hold_invoice(order(AMOUNT), preimage.hash(), 144).await.unwrap();
    assert!(refused(bob.pay(pay(same.invoice)).await.map(drop)));
    bob.settle(preimage.clone()).await.unwrap();
    assert_eq!(paying.await.unwrap().unwrap(), Msat(AMOUNT));
    // Its preimage is known along the way.
    assert!(refused(bob.hold_invoice(order(AMOUNT), preimage.hash(), 144).await.map(drop)));
    for wallet in [alice, bob, carol] {
        wallet.stop().await.unwrap();
    }
}
