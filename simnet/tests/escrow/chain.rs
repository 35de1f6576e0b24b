//! Time, which is the height of the chain: deadlines, reorganisations, peers that vanish.

use consortium_node::ledger::escrow::driver::EscrowError;
use consortium_node::ledger::escrow::machine::{GUARD, JUDGE_GUARD};
use consortium_node::ledger::escrow::secrets::Secrets;
use consortium_node::ledger::escrow::{Refused, State};
use consortium_node::ledger::lightning::{Preimage, WalletError};
use consortium_protocol::wire::escrow::{EscrowFinding, EscrowId, EscrowKind, EscrowMessage, EscrowVerdict};
use consortium_protocol::{Hash, Msat, Signed};
use serde_json::json;

use super::money::{conserved, holdings};
use super::party::{Party, Three, UNIT, id};
use super::support::{key, until};

/// Mines up to a height and waits until the wallets have seen it.
async fn mine_to(three: &Three, height: u32) {
    three.town.mine(height - three.sponsor.wallet.height()).await;
    for wallet in three.wallets() {
        until("the wallets see the blocks", || async { wallet.height() >= height }).await;
    }
}

/// The validator's word that all of it is earned, without the preimages.
async fn bare_verdict(validator: &Party, escrow: EscrowId) -> EscrowMessage {
    let terms = validator.escrows.escrow(escrow).await.unwrap().terms().clone();
    let (finding, evidence) = (EscrowFinding::Accepted, Hash::of(b"evidence"));
    let verdict = EscrowVerdict { escrow, terms: terms.digest(), finding, earned: 1, evidence, at_ms: 1 };
    EscrowMessage::Verdict { terms, verdict: Signed::sign(&key("validator"), verdict) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_validator_that_says_nothing_loses_nobodys_money() {
    let three = Three::new().await;
    let before = holdings(&three.wallets()).await;
    let escrow = three.offer(EscrowKind::Tranches, 2, UNIT).await;
    let bond = three.offer(EscrowKind::Bond, 1, UNIT).await;
    three.validator.wait_held(escrow).await;
    three.validator.wait_held(bond).await;
    let deadline = three.worker.wait_held(escrow).await;
    mine_to(&three, deadline - GUARD - 1).await;
    assert!(three.worker.states(escrow).await.iter().all(|state| matches!(state, State::Held { .. })));
    // In the last blocks nothing is waited for: what is held goes back before its time is over.
    mine_to(&three, deadline - GUARD).await;
    three.worker.wait(escrow, "the worker gives it back", |states| states == [State::Cancelled; 2]).await;
    three.sponsor.wait(escrow, "the sponsor has it back", |states| states == [State::Cancelled; 2]).await;
    three.validator.wait(escrow, "it is too late to judge", |states| states == [State::Expired; 2]).await;
    let late = three.validator.escrows.judge(escrow, EscrowFinding::Accepted, 1, Hash::of(b"")).await.unwrap_err();
    assert!(matches!(late, EscrowError::Refused(Refused::NotHeld)), "{late:?}");
    // Its payer added blocks of its own to the bond's.
    let bond_deadline = match three.validator.states(bond).await[0] {
        State::Held { deadline } => deadline,
        other => panic!("{other:?}"),
    };
    mine_to(&three, bond_deadline - GUARD).await;
    three.validator.wait(bond, "the bond goes back", |states| states == [State::Cancelled]).await;
    three.worker.wait(bond, "the worker has its bond", |states| states[0].is_final()).await;
    conserved(&three.wallets(), &before, &[0, 0, 0]).await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expired_is_not_cancelled_and_a_late_claim_gets_nothing() {
    let three = Three::new().await;
    let before = holdings(&three.wallets()).await;
    let escrow = three.offer(EscrowKind::Reward, 1, UNIT).await;
    three.validator.wait_held(escrow).await;
    let deadline = three.worker.wait_held(escrow).await;
    // The worker is told that it earned, and the preimage does not come: it waits to the end.
    let verdict = bare_verdict(&three.validator, escrow).await;
    let forwarded = three.worker.escrows.receive(id("sponsor"), verdict.clone()).await;
    assert!(matches!(forwarded, Err(EscrowError::Refused(Refused::NotTheirs))), "{forwarded:?}");
    three.worker.escrows.receive(id("validator"), verdict.clone()).await.unwrap();
    mine_to(&three, deadline - 1).await;
    assert_eq!(three.worker.states(escrow).await, [State::Held { deadline }]);
    mine_to(&three, deadline).await;
    three.worker.wait(escrow, "the worker's time is over", |states| states == [State::Expired]).await;
    three.sponsor.wait(escrow, "the sponsor has it back", |states| states == [State::Expired]).await;
    let secret = Secrets::of(&key("validator")).preimage(escrow, 0);
    let EscrowMessage::Verdict { terms, verdict } = verdict else { panic!() };
    let release = EscrowMessage::Release { terms, verdict, secrets: vec![secret.clone()] };
    three.worker.escrows.receive(id("validator"), release).await.unwrap();
    let late = three.worker.wallet.settle(Preimage::from_bytes(*secret.reveal())).await;
    assert!(matches!(late, Err(WalletError::NotHeld(_) | WalletError::HoldOver { .. })), "{late:?}");
    assert_eq!(three.worker.states(escrow).await, [State::Expired]);
    conserved(&three.wallets(), &before, &[0, 0, 0]).await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reorganisation_changes_nothing_that_was_agreed() {
    let three = Three::new().await;
    let before = holdings(&three.wallets()).await;
    let escrow = three.offer(EscrowKind::Tranches, 2, UNIT).await;
    three.validator.wait_held(escrow).await;
    let deadline = three.worker.wait_held(escrow).await;
    mine_to(&three, deadline - JUDGE_GUARD - 5).await;
    let height = three.sponsor.wallet.height();
    // The last four blocks are replaced by five others.
    let hash = three.town.call("getblockhash", json!([height - 3])).await;
    three.town.call("invalidateblock", json!([hash])).await;
    three.town.mine(5).await;
    for wallet in three.wallets() {
        until("the wallets see the other branch", || async { wallet.height() == height + 1 }).await;
    }
    assert_eq!(three.worker.wait_held(escrow).await, deadline, "deadlines are heights, and stay");
    three.judge(escrow, 0b10).await;
    let ended = [State::Cancelled, State::Settled];
    three.worker.wait(escrow, "it is paid", |states| states == ended).await;
    three.sponsor.wait(escrow, "the sponsor has paid", |states| states == ended).await;
    let paid = i64::try_from(UNIT.0 * 2).unwrap();
    conserved(&three.wallets(), &before, &[-paid, paid, 0]).await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_vanishes_and_returns_is_paid() {
    let three = Three::new().await;
    let before = holdings(&three.wallets()).await;
    let escrow = three.offer(EscrowKind::Tranches, 2, UNIT).await;
    three.validator.wait_held(escrow).await;
    let Three { town, sponsor, worker, validator } = three;
    worker.stop().await;
    let evidence = Hash::of(b"evidence");
    validator.escrows.judge(escrow, EscrowFinding::Accepted, 0b11, evidence).await.unwrap();
    town.mine(3).await;
    sponsor.wait_held(escrow).await;
    let worker = Party::start(town.settings("worker"), &town.directory(""), "worker", None).await;
    let three = Three { town, sponsor, worker, validator };
    three.worker.wait(escrow, "the worker is paid", |states| states == [State::Settled; 2]).await;
    three.sponsor.wait(escrow, "the sponsor has paid", |states| states == [State::Settled; 2]).await;
    let paid = i64::try_from(UNIT.0 * 3).unwrap();
    conserved(&three.wallets(), &before, &[-paid, paid, 0]).await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "hundreds of blocks"]
async fn from_a_worker_that_is_gone_for_good_the_money_comes_back_on_chain() {
    let three = Three::new().await;
    let before = holdings(&three.wallets()).await;
    let unit = Msat(20_000_000);
    let escrow = three.offer(EscrowKind::Reward, 1, unit).await;
    three.validator.wait_held(escrow).await;
    let Three { town, sponsor, worker, validator } = three;
    sponsor.wait_held(escrow).await;
    worker.stop().await;
    // The sponsor's node closes the channel once the payment's blocks are over, and takes it back by a transaction of
    // its own. Then its delay passes, and all of it is swept into the wallet.
    until("the sponsor has it back", || async {
        town.mine(12).await;
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        sponsor.states(escrow).await == [State::Expired]
    })
    .await;
    until("the sponsor's money is swept", || async {
        town.mine(20).await;
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        let balances = sponsor.wallet.balances().await.unwrap();
        balances.closing_sat == 0
            && balances.unconfirmed_sat == 0
            && sponsor.wallet.channels().await.unwrap().is_empty()
    })
    .await;
    // All but the fees of the closing, of taking back and of sweeping.
    let now = super::money::holding(&sponsor.wallet).await;
    let fees = before[0].0 - now.0;
    assert!(fees < 25_000_000, "{before:?} {now}: {fees} msat are missing");
    println!("closing, taking back and sweeping cost {} sat", fees / 1000);
    tokio::join!(sponsor.stop(), validator.stop());
}
