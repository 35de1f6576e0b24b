//! What cannot or should not be locked: more than a channel carries, dust, anything through another node.

use consortium_node::ledger::escrow::driver::{EscrowError, Received};
use consortium_node::ledger::escrow::limits::{Consent, DUST, TermsError};
use consortium_node::ledger::escrow::{Escrow, State};
use consortium_protocol::wire::escrow::{EscrowId, EscrowKind, EscrowMessage};
use consortium_protocol::{Hash, Msat};

use super::money::{conserved, holdings};
use super::party::{Party, Three, UNIT, finding, id, offer};
use super::support::{Town, order, pay, until};

/// What the payee would say to the payer.
fn invoices(escrow: &Escrow) -> EscrowMessage {
    let invoices = escrow.tranches().iter().map(|tranche| tranche.invoice.clone().unwrap()).collect();
    EscrowMessage::Invoices { terms: escrow.terms().digest(), invoices }
}

async fn invoiced(worker: &Party, escrow: EscrowId) -> EscrowMessage {
    until("the worker has its invoices", || async {
        let known = worker.escrows.escrow(escrow).await;
        known.is_ok_and(|escrow| escrow.tranches().iter().all(|tranche| tranche.invoice.is_some()))
    })
    .await;
    invoices(&worker.escrows.escrow(escrow).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_channel_takes_no_more_until_there_is_room() {
    let three = Three::new().await;
    let before = holdings(&three.wallets()).await;
    // A tenth of 900,000 sat may be on its way at once: one of these, not two.
    let unit = Msat(4_000_000);
    let first = three.offer(EscrowKind::Tranches, 4, unit).await;
    three.validator.wait_held(first).await;
    let second = three.offer(EscrowKind::Tranches, 4, unit).await;
    let message = invoiced(&three.worker, second).await;
    let refused = three.sponsor.escrows.receive(id("worker"), message).await.unwrap_err();
    let EscrowError::NoRoom { room, payments: 46, wanted: Msat(60_000_000), wanted_payments: 4 } = &refused else {
        panic!("{refused:?}")
    };
    assert!(*room < Msat(60_000_000));
    assert!(refused.to_string().contains("a tenth of its size"), "{refused}");
    assert_eq!(three.sponsor.states(second).await, [State::Created; 4], "nothing of it is locked");
    three.judge(first, 0b1111).await;
    // The worker asks again by itself.
    three.validator.wait_held(second).await;
    three.judge(second, 0).await;
    three.worker.wait(second, "the second goes back", |states| states == [State::Cancelled; 4]).await;
    three.worker.wait(first, "the first is paid", |states| states == [State::Settled; 4]).await;
    conserved(&three.wallets(), &before, &[-60_000_000, 60_000_000, 0]).await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dust_is_refused_unless_it_is_agreed_to() {
    let three = Three::new().await;
    let dust = offer(EscrowKind::Tranches, 2, DUST);
    let refused = three.validator.escrows.offer(dust.clone(), Consent::default()).await.unwrap_err();
    assert!(matches!(refused, EscrowError::Terms(TermsError::Dust(DUST))), "{refused:?}");
    let before = holdings(&three.wallets()).await;
    let terms = three.validator.escrows.offer(dust, Consent { dust: true }).await.unwrap();
    let escrow = terms.payload().id;
    three.validator.wait_held(escrow).await;
    three.judge(escrow, 0b01).await;
    three.worker.wait(escrow, "dust is paid", |states| states == [State::Settled, State::Cancelled]).await;
    let paid = i64::try_from(DUST.0).unwrap();
    conserved(&three.wallets(), &before, &[-paid, paid, 0]).await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_locked_through_the_validator() {
    let town = Town::new();
    let place = town.directory("");
    let start = async |name: &str| Party::start(town.settings(name), &place, name, None).await;
    let (sponsor, worker, validator) = (start("sponsor").await, start("worker").await, start("validator").await);
    town.fund(&[&sponsor.wallet, &worker.wallet, &validator.wallet]).await;
    town.channel(&sponsor.wallet, &validator.wallet, 500_000, Msat(100_000_000)).await;
    town.channel(&validator.wallet, &worker.wallet, 500_000, Msat(100_000_000)).await;
    // Money does go that way when it is not an escrow's.
    let usual = worker.wallet.invoice(order(1_000_000)).await.unwrap().invoice;
    until("a payment goes through the validator", || async { sponsor.wallet.pay(pay(usual.clone())).await.is_ok() })
        .await;
    let terms = validator.escrows.offer(offer(EscrowKind::Reward, 1, UNIT), Consent::default()).await.unwrap();
    let escrow = terms.payload().id;
    let message = invoiced(&worker, escrow).await;
    until("the sponsor has agreed", || async { sponsor.escrows.escrow(escrow).await.is_ok() }).await;
    let refused = sponsor.escrows.receive(id("worker"), message.clone()).await.unwrap_err();
    assert!(matches!(&refused, EscrowError::NoDirectChannel { payee } if *payee == worker.wallet.node_id()));
    assert!(refused.to_string().contains("Open a channel with the payee"), "{refused}");
    assert_eq!(sponsor.states(escrow).await, [State::Created]);
    assert_eq!(sponsor.wallet.balances().await.unwrap().held, []);
    // With one that is too small it still takes no other way.
    town.channel(&sponsor.wallet, &worker.wallet, 25_000, Msat::ZERO).await;
    let large =
        validator.escrows.offer(offer(EscrowKind::Reward, 1, Msat(9_000_000)), Consent::default()).await.unwrap();
    let large = large.payload().id;
    let message = invoiced(&worker, large).await;
    until("the sponsor has agreed", || async { sponsor.escrows.escrow(large).await.is_ok() }).await;
    let refused = sponsor.escrows.receive(id("worker"), message).await.unwrap_err();
    assert!(matches!(refused, EscrowError::NoRoom { .. }), "{refused:?}");
    // What fits goes through it, and through it alone.
    worker.wait_held(escrow).await;
    sponsor.wait_held(escrow).await;
    assert!(sponsor.escrows.is_direct(escrow).await.unwrap());
    let kind = EscrowKind::Reward;
    validator.wait_held(escrow).await;
    validator.escrows.judge(escrow, finding(kind, 1), 1, Hash::of(b"evidence")).await.unwrap();
    sponsor.wait(escrow, "it is paid", |states| states == [State::Settled]).await;
    tokio::join!(sponsor.stop(), worker.stop(), validator.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_false_invoices_are_refused() {
    let three = Three::new().await;
    let first = three.offer(EscrowKind::Reward, 1, UNIT).await;
    let second = three.validator.escrows.offer(offer(EscrowKind::Reward, 1, Msat(500_000)), Consent::default()).await;
    let second = second.unwrap().payload().id;
    three.validator.wait_held(first).await;
    let mixed = |message: EscrowMessage, other: EscrowMessage| match (message, other) {
        (EscrowMessage::Invoices { terms, .. }, EscrowMessage::Invoices { invoices, .. }) => {
            EscrowMessage::Invoices { terms, invoices }
        }
        other => panic!("{other:?}"),
    };
    three.validator.wait_held(second).await;
    let (one, two) = (invoiced(&three.worker, first).await, invoiced(&three.worker, second).await);
    // Known already: told again it changes nothing.
    let again = three.sponsor.escrows.receive(id("worker"), mixed(one.clone(), two)).await.unwrap();
    assert_eq!(again, Received::Taken(first));
    let stranger = three.sponsor.escrows.receive(id("validator"), one).await.unwrap_err();
    assert!(matches!(stranger, EscrowError::Refused(_)), "{stranger:?}");
    let heard = EscrowMessage::Heard { terms: Hash::of(b"nothing") };
    assert!(matches!(three.worker.escrows.receive(id("sponsor"), heard).await, Err(EscrowError::Unknown)));
    let early = three.worker.escrows.judge(first, finding(EscrowKind::Reward, 1), 1, Hash::of(b"")).await.unwrap_err();
    assert!(matches!(early, EscrowError::NotValidator(_)), "{early:?}");
    for escrow in [first, second] {
        three.judge(escrow, 0).await;
        three.sponsor.wait(escrow, "it is back", |states| states == [State::Cancelled]).await;
    }
    three.stop().await;
}
