//! How long the steps of a hold invoice take.

use std::time::{Duration, Instant};

use consortium_node::ledger::lightning::event::WalletEvent;
use consortium_node::ledger::lightning::pay::Way;
use consortium_node::ledger::lightning::{Preimage, Wallet};
use consortium_protocol::Msat;

use super::support::{Town, event, order, pay};

const RUNS: usize = 60;

/// Pays and waits until it is held; gives how long that took.
async fn hold(from: &Wallet, to: &Wallet, preimage: &Preimage) -> Duration {
    let invoice = to.hold_invoice(order(1_000_000), preimage.hash(), 144).await.unwrap().invoice;
    let mut events = to.events();
    let begun = Instant::now();
    from.send(pay(invoice), Way::Direct).await.unwrap();
    event(&mut events, |event| matches!(event, WalletEvent::PaymentHeld { .. })).await;
    begun.elapsed()
}

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1].as_secs_f64() * 1000.0;
    println!("{what:20} n = {}  median {:6.1} ms  p95 {:6.1} ms  most {:6.1} ms", times.len(), at(50), at(95), at(100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn latency() {
    let town = Town::new();
    let (alice, bob) = (town.wallet("alice").await, town.wallet("bob").await);
    town.fund(&[&alice, &bob]).await;
    town.channel(&alice, &bob, 900_000, Msat(100_000_000)).await;
    let (mut held, mut settled, mut refunded) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..=2 * RUNS {
        let preimage = Preimage::random().unwrap();
        let took = hold(&alice, &bob, &preimage).await;
        let mut events = alice.events();
        let begun = Instant::now();
        let ended = if run % 2 == 0 {
            bob.settle(preimage).await.unwrap();
            event(&mut events, |event| matches!(event, WalletEvent::PaymentSent { .. })).await;
            &mut settled
        } else {
            bob.cancel(preimage.hash()).await.unwrap();
            event(&mut events, |event| matches!(event, WalletEvent::PaymentFailed { .. })).await;
            &mut refunded
        };
        // The first payment after a start waits for what others do not.
        if run > 0 {
            ended.push(begun.elapsed());
            held.push(took);
        }
    }
    show("pay -> claimable", held);
    show("claim -> settled", settled);
    show("fail -> refunded", refunded);
    alice.stop().await.unwrap();
    bob.stop().await.unwrap();
}
