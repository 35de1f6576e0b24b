//! Each kind of escrow, ended in each way that its parties choose.

use consortium_node::ledger::escrow::State;
use consortium_protocol::Msat;
use consortium_protocol::wire::escrow::EscrowKind;

use super::money::{conserved, holdings};
use super::party::{Three, UNIT};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_ends_as_it_was_judged_and_money_is_conserved() {
    let three = Three::new().await;
    let unit = i64::try_from(UNIT.0).unwrap();
    for (kind, tranches, earned, change) in [
        (EscrowKind::Bond, 1, 0, [0, 0, 0]),
        (EscrowKind::Bond, 1, 1, [0, -unit, unit]),
        (EscrowKind::Reward, 1, 1, [-unit, unit, 0]),
        (EscrowKind::Reward, 1, 0, [0, 0, 0]),
        (EscrowKind::Tranches, 4, 0b0101, [-5 * unit, 5 * unit, 0]),
    ] {
        let before = holdings(&three.wallets()).await;
        let id = three.offer(kind, tranches, UNIT).await;
        three.validator.wait_held(id).await;
        if kind != EscrowKind::Bond {
            three.worker.wait_held(id).await;
            assert!(three.sponsor.escrows.is_direct(id).await.unwrap());
        }
        three.judge(id, earned).await;
        let ended: Vec<State> = (0..tranches)
            .map(|tranche| if earned >> tranche & 1 == 1 { State::Settled } else { State::Cancelled })
            .collect();
        for party in [&three.sponsor, &three.worker, &three.validator] {
            if kind == EscrowKind::Bond && std::ptr::eq(party, &three.sponsor) {
                continue;
            }
            party.wait(id, &format!("{kind:?} with {earned} earned ends"), |states| states == ended).await;
        }
        conserved(&three.wallets(), &before, &change).await;
        assert_eq!(three.sponsor.escrows.misconduct(id).await.unwrap_or_default(), []);
        assert_eq!(three.worker.escrows.misconduct(id).await.unwrap(), []);
    }
    assert!(three.wallets()[0].balances().await.unwrap().spendable > Msat::ZERO);
    three.stop().await;
}
