//! What a node earned, on journals whose entries are known.
#![allow(clippy::unwrap_used, clippy::panic)]

mod fixtures;

use consortium_ledger::earnings::Source;
use consortium_ledger::metering::Terms;
use consortium_ledger::payments::{Direction, Moved};
use consortium_protocol::wire::audit::Outcome;
use consortium_protocol::{Hash, Msat};
use fixtures::*;

const TERMS: Terms = Terms { tail: 200, tail_ms: DAY, hold_ms: 2 * DAY };
const HOUR: u64 = 3600 * 1000;

#[test]
fn nothing_was_earned_on_an_empty_ledger() {
    let books = books();
    let earned = books.ledger.earnings(NOW, NOW + HOUR).unwrap();
    assert_eq!((earned.msat, earned.msat_per_hour, earned.layer_tokens, earned.waiting_msat), (0, 0, 0, 0));
    assert_eq!((earned.from_ms, earned.to_ms), (NOW + HOUR, NOW + HOUR), "there is no time to speak of");
    assert_eq!(earned.break_even(100_000, Some(Msat(5000))).unwrap().kwh, None);
}

#[test]
fn what_was_earned_is_told_by_kind_and_hour() {
    let books = books();
    let ledger = &books.ledger;
    ledger.deposit(&api_key(1), Msat(10_000), Hash::of(b"paid in"), NOW).unwrap();
    // This node computes 2 layers by 10 positions at 7, another one 4 by 10 at 5; the gateway takes 5 % of each.
    let stages = vec![work(0, 2, (0, 3), (0, 10), 5, false), work(1, 1, (4, 5), (0, 10), 7, true)];
    ledger.record_job(&record(1, 0, api_key(1), 50, stages), &TERMS, NOW + HOUR).unwrap();
    // For another node, undrawn: 3 by 10 at 10, a fifth of it delayed.
    let stages = vec![work(0, 1, (0, 2), (0, 10), 10, false)];
    ledger.record_job(&record(2, 0, peer(3), 0, stages), &TERMS, NOW + HOUR).unwrap();
    // A payment of its own costs 40 on the way, one that is passed on brings 100.
    let sent = Moved { direction: Direction::Outgoing, hash: Hash::of(b"own"), amount: Msat(9000), fee: Msat(40) };
    ledger.book_payment(&sent, NOW + HOUR).unwrap();
    ledger.book_forwarded(Msat(100), 1, NOW + HOUR).unwrap();

    let earned = ledger.earnings(0, NOW + 2 * HOUR).unwrap();
    assert_eq!(earned.from_ms, NOW, "since the first entry");
    let by_kind: Vec<(Source, i64)> = earned.incomes.iter().map(|income| (income.source, income.msat)).collect();
    let expected = [
        (Source::Inference, 140 + 300),
        (Source::Training, 0),
        (Source::Driving, 0),
        (Source::Rewards, 0),
        (Source::Fees, 10 + 7),
        (Source::Routing, 60),
        (Source::Forfeits, 0),
        (Source::Trial, 0),
    ];
    assert_eq!(by_kind, expected);
    assert_eq!((earned.msat, earned.msat_per_hour), (517, 258));
    assert_eq!(earned.layer_tokens, 20 + 30);
    assert_eq!(earned.waiting_msat, 140 + 60, "held, and the tail");
    assert_eq!(ledger.earnings(0, NOW + HOUR).unwrap().msat, 0, "up to before");
    assert_eq!(ledger.earnings(NOW + HOUR, NOW + 2 * HOUR).unwrap().msat_per_hour, 517);

    // What is returned counts against the time in which it is.
    ledger.settle_audit(&verdict(9, 1, 1, 1, Outcome::Withheld, NOW), &TERMS, NOW + 3 * HOUR).unwrap();
    let later = ledger.earnings(NOW + 2 * HOUR, NOW + 4 * HOUR).unwrap();
    assert_eq!((later.msat, later.msat_per_hour, later.waiting_msat), (-147, -73, 60));
    assert_eq!(ledger.earnings(0, NOW + 4 * HOUR).unwrap().layer_tokens, 30);
}

#[test]
fn electricity_is_paid_for_or_not() {
    let books = books();
    let ledger = &books.ledger;
    let stages = vec![work(0, 1, (0, 9), (0, 100), 250, false)];
    ledger.record_job(&record(1, 0, peer(3), 0, stages), &TERMS, NOW).unwrap();
    let earned = ledger.earnings(NOW, NOW + HOUR).unwrap();
    assert_eq!(earned.msat_per_hour, 250_000);
    // 250 sat an hour on 500 W: up to 500 sat for a kilowatt-hour.
    let even = earned.break_even(500_000, Some(Msat(300_000))).unwrap();
    assert_eq!(
        (even.kwh, even.hour, even.profit_msat_per_hour),
        (Some(Msat(500_000)), Some(Msat(150_000)), Some(100_000))
    );
    let loss = earned.break_even(500_000, Some(Msat(700_000))).unwrap();
    assert_eq!(loss.profit_msat_per_hour, Some(-100_000));
    let unpriced = earned.break_even(500_000, None).unwrap();
    assert_eq!((unpriced.kwh, unpriced.hour, unpriced.profit_msat_per_hour), (Some(Msat(500_000)), None, None));
    assert_eq!(earned.break_even(0, None), None);
    assert_eq!(earned.break_even(u64::MAX, Some(Msat(u64::MAX))), None);
}
