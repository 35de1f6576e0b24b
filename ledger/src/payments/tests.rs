//! What was expected and what moved.

use consortium_protocol::identity::RootKey;

use super::*;

const PAYER: Direction = Direction::Incoming;

fn node(seed: u8) -> consortium_protocol::NodeId {
    RootKey::from_seed([seed; 32]).node_id()
}

fn ledger() -> (tempfile::TempDir, Ledger) {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&dir.path().join("ledger.db"), node(1)).unwrap();
    (dir, ledger)
}

fn moved(direction: Direction, byte: u8, amount: u64, fee: u64) -> Moved {
    Moved { direction, hash: Hash::of(&[byte]), amount: Msat(amount), fee: Msat(fee) }
}

fn free(ledger: &Ledger, owner: &Owner) -> i64 {
    ledger.account(owner).unwrap().balance.free
}

#[test]
fn what_moved_is_booked_once_and_for_whom_it_was_expected() {
    let (_dir, ledger) = ledger();
    let peer = Owner::Peer(node(2));
    let hash = Hash::of(&[1]);
    for _ in 0..2 {
        ledger.expect_payment(PAYER, hash, &peer, Msat(500), "a tab", 7).unwrap();
    }
    assert!(matches!(ledger.expect_payment(PAYER, hash, &peer, Msat(501), "a tab", 7), Err(LedgerError::Reused(_))));
    assert_eq!(ledger.payment(PAYER, &hash).unwrap().unwrap().booked, None);
    let came = moved(PAYER, 1, 500, 0);
    assert_eq!(ledger.book_payment(&came, 8).unwrap(), Posted::New(0));
    assert_eq!(ledger.book_payment(&came, 9).unwrap(), Posted::Already(0));
    assert!(matches!(ledger.book_payment(&moved(PAYER, 1, 499, 0), 9), Err(LedgerError::Reused(_))));
    let known = ledger.payment(PAYER, &hash).unwrap().unwrap();
    assert_eq!((known.note.as_str(), known.at_ms), ("a tab", 7));
    assert_eq!(known.booked, Some(Booked { seq: 0, amount: Msat(500), fee: Msat(0) }));
    // A debt may be paid back on the same hash: another direction is another payment. Nothing is refused for want
    // of money: it has moved.
    ledger.expect_payment(Direction::Outgoing, hash, &peer, Msat(900), "back", 10).unwrap();
    ledger.book_payment(&moved(Direction::Outgoing, 1, 900, 3), 11).unwrap();
    assert_eq!(free(&ledger, &peer), -400);
    assert_eq!(free(&ledger, &Owner::Own(Book::Routing)), -3);
    assert_eq!(free(&ledger, &Owner::Own(Book::Outside)), 403);
    assert!(ledger.reconcile().unwrap().is_exact());
    assert_eq!(ledger.payments_booked(None).unwrap().len(), 2);
    assert_eq!(ledger.payments_booked(Some(0)).unwrap().len(), 1);
}

fn expected(direction: Direction, byte: u8, purpose: Purpose) -> Expected {
    let (hash, owner) = (Hash::of(&[byte]), Owner::Peer(node(2)));
    Expected { direction, hash, owner, amount: Msat(500), purpose, note: "an escrow".to_owned() }
}

#[test]
fn rewards_and_bonds_are_income_and_expense_and_leave_the_peers_account_as_it_was() {
    let (_dir, ledger) = ledger();
    let (out, purposes) = (Direction::Outgoing, [Purpose::Reward, Purpose::Bond]);
    for (byte, (direction, purpose)) in (1..).zip([PAYER, out].into_iter().flat_map(|d| purposes.map(|p| (d, p)))) {
        let new = expected(direction, byte, purpose);
        for _ in 0..2 {
            ledger.expect(&new, 1).unwrap();
        }
        let other = Expected { purpose: Purpose::Account, ..new };
        assert!(matches!(ledger.expect(&other, 1), Err(LedgerError::Reused(_))), "{other:?}");
        assert_eq!(ledger.forget_unpaid(9).unwrap(), 0, "it may be held for long");
        let (amount, fee) = (500 + u64::from(byte), u64::from(direction == out));
        for _ in 0..2 {
            ledger.book_payment(&moved(direction, byte, amount, fee), 10).unwrap();
        }
    }
    let own = |book| free(&ledger, &Owner::Own(book));
    assert_eq!([own(Book::Rewards), own(Book::Spent), own(Book::Forfeits)], [501, -503, 502 - 504]);
    assert_eq!([own(Book::Outside), own(Book::Routing)], [-501 - 502 + 503 + 504 + 2, -2]);
    let peer = ledger.account(&Owner::Peer(node(2))).unwrap();
    assert_eq!((peer.balance.total(), peer.earned, peer.spent), (0, 503, 501));
    assert_eq!(ledger.tab(&node(2)).unwrap(), crate::tabs::Tab::default());
    let earned = ledger.earnings(0, 100).unwrap();
    assert_eq!((earned.msat, earned.spent_msat), (501 + 502 - 504 - 2, 503));
    assert!(ledger.reconcile().unwrap().is_exact());
    assert_eq!(ledger.verify().unwrap(), 8);
}

#[test]
fn what_nobody_expected_is_the_operators_own() {
    let (_dir, ledger) = ledger();
    ledger.book_payment(&moved(PAYER, 1, 70, 0), 1).unwrap();
    ledger.book_payment(&moved(Direction::Outgoing, 2, 20, 1), 2).unwrap();
    assert_eq!(ledger.book_forwarded(Msat(5), 4, 3).unwrap(), Posted::New(2));
    assert_eq!(ledger.book_forwarded(Msat(5), 4, 3).unwrap(), Posted::Already(2));
    assert_eq!(ledger.book_forwarded(Msat(0), 5, 3).unwrap(), Posted::Nothing);
    let own = |book| free(&ledger, &Owner::Own(book));
    assert_eq!((own(Book::Wallet), own(Book::Routing), own(Book::Outside)), (50, 4, -54));
    assert!(ledger.reconcile().unwrap().is_exact());
    assert_eq!(ledger.verify().unwrap(), 3);
}

#[test]
fn invoices_that_nobody_paid_are_forgotten() {
    let (_dir, ledger) = ledger();
    let key = Owner::Key("0123456789ab".parse().unwrap());
    let long = "ü".repeat(MAX_NOTE + 1);
    for (byte, at_ms) in [(1, 10), (2, 10), (3, 30)] {
        ledger.expect_payment(PAYER, Hash::of(&[byte]), &key, Msat(5), &long, at_ms).unwrap();
    }
    ledger.book_payment(&moved(PAYER, 2, 5, 0), 11).unwrap();
    assert_eq!(ledger.forget_unpaid(30).unwrap(), 1);
    assert!(ledger.payment(PAYER, &Hash::of(&[1])).unwrap().is_none());
    assert_eq!(ledger.payment(PAYER, &Hash::of(&[2])).unwrap().unwrap().note.chars().count(), MAX_NOTE);
    assert!(ledger.payment(PAYER, &Hash::of(&[3])).unwrap().is_some());
    for byte in [2, 3] {
        ledger.forget_payment(PAYER, &Hash::of(&[byte])).unwrap();
    }
    assert!(ledger.payment(PAYER, &Hash::of(&[2])).unwrap().is_some(), "it was booked");
    assert!(ledger.payment(PAYER, &Hash::of(&[3])).unwrap().is_none());
}

#[test]
fn events_are_followed_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Ledger::open(&dir.path().join("ledger.db"), node(1)).unwrap();
    assert_eq!(open().followed("wallet").unwrap(), 0);
    open().follow("wallet", 9).unwrap();
    assert_eq!(open().followed("wallet").unwrap(), 9);
}
