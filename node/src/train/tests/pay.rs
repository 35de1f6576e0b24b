//! What a run pays, in the books of all who took part in it.

use std::path::Path;
use std::time::Duration;

use consortium_ledger::earnings::Source;
use consortium_ledger::journal::Kind;
use consortium_ledger::ledger::Ledger;
use consortium_protocol::Msat;
use consortium_protocol::wire::train::{PaySchedule, PayWay, RunSpec};
use consortium_training::rounds::{Replay, Wish};
use tokio_util::sync::CancellationToken;

use super::kit::{Node, World, id, key, pay};
use crate::train::{Owed, RunError};

fn books(directory: &Path, n: u8) -> Ledger {
    Ledger::open(&directory.join("ledger.db"), id(n)).unwrap()
}

/// Waits until a ledger has so many entries.
async fn has_entries(ledger: &Ledger, count: u64) {
    for _ in 0..600 {
        if ledger.length().unwrap() >= count {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(ledger.length().unwrap(), count);
}

fn trained(ledger: &Ledger) -> i64 {
    let earnings = ledger.earnings(0, u64::MAX >> 1).unwrap();
    earnings.incomes.iter().find(|income| income.source == Source::Training).unwrap().msat
}

/// Pays much: what the first rounds are worth is little, as nobody has a rating yet.
pub(super) fn well_paid(spec: &mut RunSpec) {
    let much = Msat(1_000_000_000);
    spec.pay = PaySchedule { budget: much, base_rate: much, unit: Msat(100_000), ..spec.pay };
}

/// Every payout of the log, which the first node announced, is in the books of who pays and who is paid, and nowhere else;
/// so it is, too, after a crash between a record and its bookings.
pub(super) async fn all_is_booked(world: &World, nodes: &[Node], replayed: &Replay) {
    let owed: Vec<Owed> = nodes[0].log().iter().flat_map(|entry| Owed::by(&world.spec, entry)).collect();
    let sum = |of: u8| owed.iter().filter(|owed| owed.peer == id(of)).map(|owed| owed.amount.0).sum::<u64>();
    let author = books(&world.path(0), 0);
    has_entries(&author, owed.len() as u64).await;
    let mut all = 0;
    for node in &nodes[1..] {
        let (n, ledger) = (node.n, books(&world.path(node.n), node.n));
        has_entries(&ledger, owed.iter().filter(|owed| owed.peer == id(n)).count() as u64).await;
        let paid = replayed.paid.get(&id(n)).copied().unwrap_or(Msat::ZERO);
        assert_eq!(paid.0, sum(n));
        assert_eq!((author.tab(&id(n)).unwrap().due(), ledger.tab(&id(0)).unwrap().owed()), (paid, paid));
        assert_eq!(trained(&ledger), i64::try_from(paid.0).unwrap());
        assert!(ledger.reconcile().unwrap().is_exact());
        all += paid.0;
    }
    assert!(all > 0, "somebody is paid");
    assert_eq!(author.earnings(0, u64::MAX >> 1).unwrap().spent_msat, i64::try_from(all).unwrap());
    assert!(author.reconcile().unwrap().is_exact());
    author.verify().unwrap();
    a_crash_leaves_nothing_out(world, &nodes[0], &owed).await;
}

/// A ledger that has some of it already is brought up to the log, and stays so however often that is read.
async fn a_crash_leaves_nothing_out(world: &World, author: &Node, owed: &[Owed]) {
    let (directory, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let before = books(&world.path(0), 0).entry(0).unwrap().unwrap();
    let after = books(directory.path(), 0);
    let first = consortium_ledger::payouts::Payout {
        reference: before.reference,
        direction: consortium_ledger::payments::Direction::Outgoing,
        peer: owed[0].peer,
        amount: owed[0].amount,
        escrowed: Msat::ZERO,
    };
    after.book_payout(&first, 1).unwrap();
    for _ in 0..2 {
        pay(0, directory.path(), &stop).follow(world.spec.clone(), &author.directory, None);
        has_entries(&after, owed.len() as u64).await;
    }
    let last = after.entry(after.length().unwrap() - 1).unwrap().unwrap();
    assert_eq!(last.kind, Kind::Training);
    assert!(after.reconcile().unwrap().is_exact());
}

#[tokio::test]
async fn who_has_no_wallet_is_told_that_a_run_pays_by_escrow() {
    let (directory, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let world = World::new(2, 1, |spec| (spec.pay.way, spec.pay.unit) = (PayWay::Escrow, Msat(355_000)));
    let refused = |n: u8, wish: Wish| {
        let dir = directory.path().join(n.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        matches!(pay(n, &dir, &stop).check(&world.spec, wish), Err(RunError::NoWallet(run)) if run == world.run())
    };
    assert_eq!(key(0).node_id(), world.spec.signer());
    assert!(refused(0, Wish::Watch) && refused(0, Wish::Validate), "the author pays");
    assert!(refused(3, Wish::Train));
    assert!(!refused(1, Wish::Validate) && !refused(4, Wish::Watch));
    let usual = World::new(2, 1, |_| ());
    assert!(pay(5, directory.path(), &stop).check(&usual.spec, Wish::Train).is_ok());
}
