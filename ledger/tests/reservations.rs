//! What is put aside for a job is spent once, whatever becomes of the job.
#![allow(clippy::unwrap_used, clippy::panic)]

mod fixtures;

use consortium_ledger::LedgerError;
use consortium_ledger::journal::{Kind, Posted};
use consortium_ledger::ledger::Ledger;
use consortium_ledger::metering::{JobRecord, Terms};
use consortium_protocol::wire::audit::Outcome;
use consortium_protocol::{Hash, Msat};
use fixtures::*;

const TERMS: Terms = Terms { tail: 200, tail_ms: DAY, hold_ms: 2 * DAY };

/// A ledger whose key 1 has 1000 msat.
fn with_credit() -> Books {
    let books = books();
    books.ledger.deposit(&api_key(1), Msat(1000), Hash::of(b"credit"), NOW).unwrap();
    books
}

fn exact(ledger: &Ledger) {
    let sums = ledger.reconcile().unwrap();
    assert!(sums.is_exact(), "{sums:?}");
    assert_eq!(ledger.verify().unwrap(), sums.entries);
}

/// Work of `positions` through two layers, at 5 msat and 10 % fee: 11 msat a position.
fn worked(n: u8, positions: u32) -> JobRecord {
    record(n, 1, api_key(1), 100, vec![work(0, 2, (0, 1), (0, positions), 5, false)])
}

fn balance(books: &Books) -> (i64, i64) {
    let balance = books.ledger.account(&api_key(1)).unwrap().balance;
    (balance.free, balance.bonded)
}

#[test]
fn the_actual_use_is_charged_and_the_rest_is_free_again() {
    let books = with_credit();
    let ledger = &books.ledger;
    assert_eq!(ledger.reserve(&api_key(1), job(1), Msat(600), NOW).unwrap(), Posted::New(1));
    assert_eq!(ledger.reserve(&api_key(1), job(1), Msat(600), NOW).unwrap(), Posted::Already(1));
    assert_eq!(balance(&books), (400, 600));
    let second = ledger.reserve(&api_key(1), job(2), Msat(401), NOW).unwrap_err();
    assert!(matches!(second, LedgerError::Insufficient { free: 400, wanted: Msat(401), .. }), "{second}");
    ledger.reserve(&api_key(1), job(2), Msat(400), NOW).unwrap();
    // The answer was short: what it can cost at most stays.
    ledger.reduce_reservation(job(1), Msat(230), NOW).unwrap();
    assert_eq!(ledger.reduce_reservation(job(1), Msat(300), NOW).unwrap(), Posted::Nothing, "never more again");
    assert_eq!(balance(&books), (370, 630));
    exact(ledger);
    assert!(matches!(ledger.record_job(&worked(1, 20), &TERMS, NOW).unwrap(), Posted::New(_)));
    assert_eq!(balance(&books), (370, 410), "220 were charged, 10 wait for the end of the job");
    exact(ledger);
    assert!(matches!(ledger.record_job(&worked(1, 20), &TERMS, NOW).unwrap(), Posted::Already(_)));
    ledger.release_reservation(job(1), NOW).unwrap();
    assert_eq!(balance(&books), (1000 - 400 - 220, 400));
    assert_eq!((books.free(&own("fees")), books.free(&own("spent"))), (20, 0));
    exact(ledger);
}

#[test]
fn never_more_than_what_is_reserved_is_charged() {
    let books = with_credit();
    let ledger = &books.ledger;
    ledger.reserve(&api_key(1), job(1), Msat(100), NOW).unwrap();
    ledger.record_job(&worked(1, 20), &TERMS, NOW).unwrap();
    // Another attempt, with one position more.
    ledger.record_job(&JobRecord { attempt: 2, ..worked(1, 21) }, &TERMS, NOW).unwrap();
    ledger.release_reservation(job(1), NOW).unwrap();
    assert_eq!(balance(&books), (900, 0));
    assert_eq!(ledger.account(&api_key(1)).unwrap().spent, 100);
    let bearer = ledger.account(&own("spent")).unwrap();
    assert_eq!((bearer.balance.free, bearer.spent), (-131, 131), "of 231");
    assert_eq!(ledger.account(&peer(2)).unwrap().earned, 210, "the worker gets what it asked");
    exact(ledger);
}

#[test]
fn what_ends_without_work_is_given_back_whole() {
    let mut books = with_credit();
    for n in 1..=3 {
        books.ledger.reserve(&api_key(1), job(n), Msat(300), NOW).unwrap();
    }
    assert!(matches!(books.ledger.release_reservation(job(1), NOW).unwrap(), Posted::New(_)));
    assert_eq!(books.ledger.release_reservation(job(1), NOW).unwrap(), Posted::Nothing);
    let again = books.ledger.reserve(&api_key(1), job(1), Msat(300), NOW);
    assert!(matches!(again, Err(LedgerError::Reused(_))), "a job that has ended does not begin again");
    // The process ends here; the next one finds what was left, and begins jobs of its own.
    books.reopen();
    assert_eq!(balance(&books), (400, 600));
    let start = books.ledger.length().unwrap();
    books.ledger.reserve(&api_key(1), job(4), Msat(50), NOW).unwrap();
    assert_eq!(books.ledger.release_reservations(start, NOW).unwrap(), 2);
    assert_eq!((books.ledger.release_reservations(start, NOW).unwrap(), balance(&books)), (0, (950, 50)));
    assert!(books.ledger.open_bonds().unwrap().is_empty());
    let lines = books.ledger.statement(&api_key(1), NOW, NOW + 1, None, 100).unwrap().lines;
    let kinds: Vec<Kind> = lines.iter().map(|line| line.kind).collect();
    assert_eq!(kinds[1..5], [Kind::Reserved, Kind::Reserved, Kind::Reserved, Kind::Released]);
    exact(&books.ledger);
}

#[test]
fn nobody_spends_the_credit_of_another() {
    let books = with_credit();
    let ledger = &books.ledger;
    ledger.reserve(&api_key(1), job(1), Msat(300), NOW).unwrap();
    let others = record(1, 1, api_key(2), 0, vec![work(0, 2, (0, 1), (0, 9), 5, false)]);
    ledger.record_job(&others, &TERMS, NOW).unwrap();
    assert_eq!((balance(&books), books.free(&api_key(2))), ((700, 300), -90));
    assert_eq!(ledger.reserve(&api_key(3), job(3), Msat(0), NOW).unwrap(), Posted::Nothing);
    assert!(matches!(ledger.reserve(&api_key(3), job(3), Msat(1), NOW), Err(LedgerError::Insufficient { .. })));
    exact(ledger);
}

#[test]
fn pay_that_comes_back_is_free_to_spend() {
    let books = with_credit();
    let ledger = &books.ledger;
    ledger.reserve(&api_key(1), job(1), Msat(300), NOW).unwrap();
    let stages = vec![work(0, 2, (0, 1), (0, 20), 5, true)];
    ledger.record_job(&record(1, 0, api_key(1), 100, stages), &TERMS, NOW).unwrap();
    ledger.settle_audit(&verdict(9, 2, 1, 0, Outcome::Fraud, NOW), &TERMS, NOW).unwrap();
    ledger.release_reservation(job(1), NOW).unwrap();
    assert_eq!((balance(&books), ledger.account(&api_key(1)).unwrap().spent), ((1000, 0), 0));
    exact(ledger);
}

#[test]
fn a_credit_is_spent_once_however_many_ask_at_a_time() {
    let books = with_credit();
    let path = books.path();
    let taken: usize = std::thread::scope(|scope| {
        let ask = |writer: u8| {
            let path = &path;
            scope.spawn(move || {
                let ledger = Ledger::open(path, node(1)).unwrap();
                let reserve = |n: u8| ledger.reserve(&api_key(1), job(8 * writer + n), Msat(90), NOW).is_ok();
                (0..8).filter(|n| reserve(*n)).count()
            })
        };
        let asking: Vec<_> = (0..4).map(ask).collect();
        asking.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!((taken, balance(&books)), (11, (10, 990)));
    exact(&books.ledger);
}
