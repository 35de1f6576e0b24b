//! Preimages that are used without a verdict, or twice.

use consortium_node::ledger::escrow::State;
use consortium_node::ledger::escrow::driver::EscrowError;
use consortium_node::ledger::escrow::limits::Consent;
use consortium_node::ledger::escrow::secrets::Secrets;
use consortium_node::ledger::lightning::lookup::Fate;
use consortium_node::ledger::lightning::pay::Way;
use consortium_node::ledger::lightning::{PaymentHash, Preimage, WalletError};
use consortium_protocol::Signed;
use consortium_protocol::wire::Message as _;
use consortium_protocol::wire::escrow::{Charge, EscrowId, EscrowKind, EscrowMessage, EscrowTerms, Misconduct};

use super::money::{conserved, holdings};
use super::party::{Three, UNIT, id};
use super::support::{key, pay, until};

/// What only the validator knows.
fn preimage(escrow: EscrowId, tranche: u8) -> Preimage {
    Preimage::from_bytes(*Secrets::of(&key("validator")).preimage(escrow, tranche).reveal())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preimage_used_without_a_verdict_is_found_and_proven() {
    let three = Three::new().await;
    let before = holdings(&three.wallets()).await;
    let escrow = three.offer(EscrowKind::Tranches, 2, UNIT).await;
    three.validator.wait_held(escrow).await;
    three.worker.wait_held(escrow).await;
    // The validator slips it to the worker.
    three.worker.wallet.settle(preimage(escrow, 1)).await.unwrap();
    three.sponsor.wait(escrow, "it was taken", |states| states[1] == State::Settled).await;
    let found = three.sponsor.escrows.misconduct(escrow).await.unwrap();
    assert_eq!(
        found.iter().map(|proof| (proof.tranche, proof.charge())).collect::<Vec<_>>(),
        [(1, Charge::Unexplained)]
    );
    // The validator says that nothing was earned, which makes it worse.
    three.judge(escrow, 0).await;
    until("the sponsor knows the verdict", || async {
        three.sponsor.escrows.escrow(escrow).await.unwrap().verdict().is_some()
    })
    .await;
    let found = three.sponsor.escrows.misconduct(escrow).await.unwrap();
    let proof = Misconduct::decode(&found[0].encode()).unwrap();
    assert_eq!((proof.charge(), proof.terms.signer()), (Charge::Contradicted, id("validator")));
    three.sponsor.wait(escrow, "the rest is back", |states| states == [State::Cancelled, State::Settled]).await;
    let taken = i64::try_from(UNIT.0 * 2).unwrap();
    conserved(&three.wallets(), &before, &[-taken, taken, 0]).await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_settled_twice_is_paid_once() {
    let three = Three::new().await;
    let before = holdings(&three.wallets()).await;
    let escrow = three.offer(EscrowKind::Reward, 1, UNIT).await;
    three.validator.wait_held(escrow).await;
    three.worker.wait_held(escrow).await;
    three.judge(escrow, 1).await;
    let paid = |states: &[State]| states == [State::Settled];
    three.worker.wait(escrow, "the worker is paid", paid).await;
    three.sponsor.wait(escrow, "the sponsor has paid", paid).await;
    let secret = Secrets::of(&key("validator")).preimage(escrow, 0);
    let verdict = three.validator.escrows.escrow(escrow).await.unwrap().verdict().unwrap().clone();
    let terms = three.validator.escrows.escrow(escrow).await.unwrap().terms().clone();
    let release = EscrowMessage::Release { terms: terms.clone(), verdict, secrets: vec![secret] };
    for _ in 0..2 {
        three.worker.escrows.receive(id("validator"), release.clone()).await.unwrap();
        three.judge(escrow, 1).await;
    }
    let again = three.worker.wallet.settle(preimage(escrow, 0)).await;
    assert!(matches!(again, Err(WalletError::NotHeld(_))), "{again:?}");
    let invoice = three.sponsor.escrows.escrow(escrow).await.unwrap().tranches()[0].invoice.clone().unwrap();
    let hash = PaymentHash::from_bytes(*terms.payload().locks[0].as_bytes());
    // For a moment after it arrived, the channel has not let go of it.
    until("nothing is on its way any more", || async {
        let wallet = &three.sponsor.wallet;
        let again = [
            wallet.send(pay(invoice.clone()), Way::Direct).await,
            wallet.resend(pay(invoice.clone()), Way::Direct).await,
        ];
        let refused = |error: &WalletError| matches!(error, WalletError::AlreadyPaid(_) | WalletError::OnItsWay(_));
        assert!(again.iter().all(|again| again.as_ref().is_err_and(refused)), "{again:?}");
        again.iter().all(|again| matches!(again, Err(WalletError::AlreadyPaid(_))))
    })
    .await;
    assert_eq!(three.sponsor.wallet.fate(hash).await.unwrap(), Fate::Sent);
    // What is settled cannot be cancelled, and its hash is good for no other escrow.
    let cancelled = three.worker.wallet.cancel(hash).await;
    assert!(matches!(cancelled, Err(WalletError::NotHeld(_))), "{cancelled:?}");
    let other = EscrowTerms { id: EscrowId([7; 16]), ..terms.payload().clone() };
    let other = Signed::sign(&key("validator"), other);
    let used = three.sponsor.escrows.agree(other, Consent::default()).await;
    assert!(matches!(used, Err(EscrowError::UsedHash { tranche: 0 })), "{used:?}");
    let paid = i64::try_from(UNIT.0).unwrap();
    conserved(&three.wallets(), &before, &[-paid, paid, 0]).await;
    three.stop().await;
}
