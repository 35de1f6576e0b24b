//! Accounts and pay, against mistakes, replays and hostile numbers.
#![allow(clippy::unwrap_used, clippy::panic)]

mod fixtures;

use consortium_ledger::LedgerError;
use consortium_ledger::accounts::{Account, Owner};
use consortium_ledger::api_keys::ApiKeys;
use consortium_ledger::claims::ClaimState;
use consortium_ledger::earnings::Source;
use consortium_ledger::journal::{Kind, Posted};
use consortium_ledger::ledger::Ledger;
use consortium_ledger::metering::{JobRecord, StageWork, Terms};
use consortium_protocol::wire::audit::{Compute, KernelFamily, NumericClass, Outcome, StageReceipt, Verdict};
use consortium_protocol::wire::heartbeat::LayerRange;
use consortium_protocol::wire::job::Sampling;
use consortium_protocol::wire::mandate::Mandate;
use consortium_protocol::wire::pipeline::{Hop, SessionOpen};
use consortium_protocol::{Hash, Msat, Signed};
use fixtures::*;

const TERMS: Terms = Terms { tail: 200, tail_ms: DAY, hold_ms: 2 * DAY };

fn exact(ledger: &Ledger) {
    let sums = ledger.reconcile().unwrap();
    assert!(sums.is_exact(), "{sums:?}");
    assert_eq!(ledger.verify().unwrap(), sums.entries);
}

#[test]
fn a_job_is_charged_and_shared_out() {
    let books = books();
    let ledger = &books.ledger;
    ledger.deposit(&api_key(1), Msat(10_000), Hash::of(b"paid in"), NOW).unwrap();
    // 4 layers by 10 positions at 5 for node 2, 2 by 10 at 7 for this node, which is drawn; 5 % fee on each.
    let stages = vec![work(0, 2, (0, 3), (0, 10), 5, false), work(1, 1, (4, 5), (0, 10), 7, true)];
    let record = record(1, 0, api_key(1), 50, stages);
    assert_eq!(ledger.record_job(&record, &TERMS, NOW).unwrap(), Posted::New(1));
    let payer = ledger.account(&api_key(1)).unwrap();
    assert_eq!((payer.balance.free, payer.spent), (10_000 - 340 - 10 - 7, 340 + 17));
    let worker = ledger.account(&peer(2)).unwrap();
    assert_eq!((worker.balance.free, worker.balance.tail, worker.earned), (160, 40, 200));
    let own_work = ledger.account(&own("earned")).unwrap();
    assert_eq!((own_work.balance.free, own_work.balance.held), (0, 140));
    assert_eq!(books.free(&own("fees")), 17);
    let work =
        |owner: Owner| ledger.statement(&owner, 0, u64::MAX, None, 9).unwrap().lines.pop().unwrap().work.unwrap();
    let charged = work(api_key(1));
    assert_eq!((charged.job, charged.tokens, charged.fee), (job(1), 10, Msat(17)));
    assert_eq!((work(peer(2)).tokens, work(peer(2)).fee), (10, Msat(0)), "the fee is the payer's");
    exact(ledger);
    assert_eq!(ledger.record_job(&record, &TERMS, NOW + 1).unwrap(), Posted::Already(1));
    assert_eq!(ledger.length().unwrap(), 2);
}

#[test]
fn each_cell_is_paid_once_whatever_the_attempts() {
    let books = books();
    let ledger = &books.ledger;
    let pay = |attempt, stages| ledger.record_job(&record(1, attempt, api_key(1), 0, stages), &TERMS, NOW).unwrap();
    pay(0, vec![work(0, 2, (0, 1), (0, 10), 1, false), work(1, 3, (2, 3), (0, 10), 1, false)]);
    // Node 3 died: node 4 takes over, in other stages, from the start to position 15.
    pay(1, vec![work(0, 2, (0, 0), (0, 15), 1, false), work(1, 4, (1, 3), (0, 15), 1, false)]);
    let earned = |n| ledger.account(&peer(n)).unwrap().earned;
    assert_eq!((earned(2), earned(3), earned(4)), (20 + 5, 20, 15));
    // The same receipts in other words: another attempt, split, overlapping in one record.
    assert_eq!(pay(7, vec![work(0, 5, (0, 3), (0, 15), 9, false)]), Posted::Nothing);
    pay(8, vec![work(0, 5, (0, 3), (0, 16), 9, false), work(1, 5, (0, 3), (0, 16), 9, false)]);
    assert_eq!(earned(5), 36, "one new position through four layers, once");
    exact(ledger);
}

/// The driver `driver` of an order with a fee of 3 msat, and what books say of the order's only stage on node 4.
fn driving(driver: u8, attempt: u32, positions: u32) -> StageWork {
    let hop = Hop { node: node(4), range: LayerRange { first: 0, last: 3 } };
    let mandate = Mandate {
        cluster: cluster(),
        job: job(1),
        master: node(driver),
        model: Hash::of(b"model"),
        positions: 1000,
        position_cost: Msat(7),
        challenge: Hash::of(b"challenge"),
        until_ms: NOW,
    };
    let open = SessionOpen {
        cluster: cluster(),
        term: 1,
        job: job(1),
        attempt,
        model: Hash::of(b"model"),
        driver: node(driver),
        route: vec![hop],
        prices: vec![Msat(1)],
        master_fee: Msat(3),
        sampling: Sampling::default(),
        prompt_len: 1,
        max_positions: 100,
        payer: node(1),
        challenge: Hash::of(b"challenge"),
        mandate: Signed::sign(&key(1), mandate),
    };
    let root = Hash::of(b"root");
    let receipt = StageReceipt {
        cluster: cluster(),
        term: 1,
        job: job(1),
        attempt,
        order: Signed::sign(&key(driver), open.clone()).digest(),
        model: Hash::of(b"model"),
        range: hop.range,
        stage: 0,
        class: NumericClass { compute: Compute::F32, kernels: KernelFamily::Invariant, engine: 1 },
        positions,
        inputs: root,
        outputs: root,
        grid: root,
        upstream: None,
        challenge: Hash::of(b"challenge"),
    };
    StageWork::driving(&open, &Signed::sign(&key(4), receipt))
}

#[test]
fn a_masters_fee_is_paid_once_for_a_position_whatever_the_masters() {
    let books = books();
    let ledger = &books.ledger;
    let stage = || work(0, 4, (0, 3), (0, 10), 1, false);
    let book = |record: &JobRecord| ledger.record_job(record, &TERMS, NOW).unwrap();
    let attempt = |attempt, payer, stages| JobRecord { job: job(1), attempt, payer, fee: 0, stages };
    assert!(matches!(book(&attempt(1, own("spent"), vec![stage(), driving(2, 1, 10)])), Posted::New(_)));
    let master = ledger.account(&peer(2)).unwrap();
    assert_eq!((master.balance.free, master.balance.tail), (30, 0), "it is neither held nor delayed");
    // The next master is paid for the positions that the first did not reach.
    book(&attempt(2, own("spent"), vec![driving(3, 2, 14)]));
    assert_eq!((books.free(&peer(3)), books.free(&own("spent"))), (12, -40 - 30 - 12));
    assert_eq!(book(&attempt(3, own("spent"), vec![driving(5, 3, 14)])), Posted::Nothing);
    // On the other side: this node drove for node 9.
    book(&attempt(1, peer(9), vec![driving(1, 1, 10)]));
    assert_eq!((books.free(&own("driving")), books.free(&peer(9)), books.free(&own("earned"))), (30, -30, 0));
    let earned = ledger.earnings(0, NOW + 1).unwrap();
    let fee = earned.incomes.iter().find(|income| income.source == Source::Driving).unwrap();
    assert_eq!((fee.msat, earned.layer_tokens), (30, 0));
    exact(ledger);
}

#[test]
fn held_pay_follows_the_verdict() {
    let books = books();
    let ledger = &books.ledger;
    for n in 1..=4 {
        let stages = vec![work(0, 2, (0, 9), (0, 10), 10, true)];
        ledger.record_job(&record(n, 0, api_key(1), 10, stages), &TERMS, NOW).unwrap();
    }
    let balance = || ledger.account(&peer(2)).unwrap().balance;
    assert_eq!((balance().held, balance().free), (4000, 0));
    let settle = |n, outcome| ledger.settle_audit(&verdict(9, 2, n, 0, outcome, NOW), &TERMS, NOW).unwrap();
    assert!(matches!(settle(1, Outcome::Pass), Posted::New(_)));
    assert_eq!((balance().held, balance().free, balance().tail), (3000, 800, 200));
    assert!(matches!(settle(1, Outcome::Pass), Posted::Already(_)));
    assert_eq!(settle(1, Outcome::Withheld), Posted::Nothing, "paid is paid");
    settle(2, Outcome::Inconclusive);
    assert_eq!((balance().held, balance().free, balance().tail), (2000, 1600, 400));
    settle(3, Outcome::Withheld);
    assert_eq!((balance().held, balance().free, balance().tail), (1000, 1600, 400));
    // Fraud returns the job's pay with its fee, and every tail that is still out.
    settle(4, Outcome::Fraud);
    assert_eq!((balance().held, balance().free, balance().tail), (0, 1600, 0));
    let worker = ledger.account(&peer(2)).unwrap();
    assert_eq!(worker.earned, 1600);
    assert_eq!(ledger.account(&api_key(1)).unwrap().spent, 1600 + 20, "two jobs less their tails, and their fees");
    assert_eq!(ledger.claims(job(1)).unwrap()[0].state, ClaimState::Forfeited);
    assert_eq!(ledger.claims(job(4)).unwrap()[0].state, ClaimState::Returned);
    assert_eq!(ledger.release_due(&TERMS, NOW + 10 * DAY).unwrap(), 0);
    exact(ledger);
}

#[test]
fn returned_pay_is_for_others_to_earn_and_not_for_the_one_who_lost_it() {
    let books = books();
    let ledger = &books.ledger;
    let pay = |attempt, worker, drawn| {
        let stages = vec![work(0, worker, (0, 0), (0, 10), 1, drawn)];
        ledger.record_job(&record(1, attempt, api_key(1), 0, stages), &TERMS, NOW).unwrap()
    };
    pay(0, 2, true);
    ledger.settle_audit(&verdict(9, 2, 1, 0, Outcome::Fraud, NOW), &TERMS, NOW).unwrap();
    assert_eq!(pay(1, 2, false), Posted::Nothing);
    assert!(matches!(pay(2, 3, false), Posted::New(_)));
    assert_eq!(pay(3, 4, false), Posted::Nothing);
    exact(ledger);
}

#[test]
fn waits_end() {
    let books = books();
    let ledger = &books.ledger;
    let stages = vec![work(0, 2, (0, 0), (0, 10), 10, false), work(1, 3, (1, 1), (0, 10), 10, true)];
    ledger.record_job(&record(1, 0, api_key(1), 0, stages), &TERMS, NOW).unwrap();
    assert_eq!(ledger.release_due(&TERMS, NOW + DAY - 1).unwrap(), 0);
    assert_eq!(ledger.release_due(&TERMS, NOW + DAY).unwrap(), 1);
    assert_eq!(books.free(&peer(2)), 100);
    assert_eq!(ledger.release_due(&TERMS, NOW + 2 * DAY).unwrap(), 1, "no verdict came");
    assert_eq!((books.free(&peer(3)), ledger.account(&peer(3)).unwrap().balance.tail), (80, 20));
    assert_eq!(ledger.release_due(&TERMS, NOW + 3 * DAY).unwrap(), 1);
    assert_eq!(ledger.release_due(&TERMS, u64::MAX).unwrap(), 0);
    assert_eq!(books.free(&peer(3)), 100);
    exact(ledger);
}

#[test]
fn both_sides_of_a_tab_agree() {
    let (payer, dir) = (books(), tempfile::tempdir().unwrap());
    let worker = Ledger::open(&dir.path().join("ledger.db"), node(2)).unwrap();
    // Node 1 pays for itself, node 2 works: each books the same record with its own eyes.
    let stages = vec![work(0, 2, (0, 3), (0, 10), 5, true)];
    let record = record(1, 0, peer(1), 0, stages);
    let verdict = verdict(9, 2, 1, 0, Outcome::Pass, NOW);
    for ledger in [&payer.ledger, &worker] {
        ledger.record_job(&record, &TERMS, NOW).unwrap();
        ledger.settle_audit(&verdict, &TERMS, NOW).unwrap();
        ledger.release_due(&TERMS, NOW + DAY).unwrap();
        exact(ledger);
    }
    assert_eq!(payer.free(&own("spent")), -200);
    assert_eq!(payer.free(&peer(2)), 200);
    assert_eq!(worker.account(&own("earned")).unwrap().balance.free, 200);
    assert_eq!(worker.account(&peer(1)).unwrap().balance.free, -200);
}

#[test]
fn a_verdict_moves_what_its_payer_owes_and_no_more() {
    let (books, dir) = (books(), tempfile::tempdir().unwrap());
    let first = &books.ledger;
    let third = Ledger::open(&dir.path().join("third.db"), node(3)).unwrap();
    let worker = Ledger::open(&dir.path().join("worker.db"), node(2)).unwrap();
    // Node 2 works for nodes 1 and 3: two jobs each, the second of each drawn.
    for (payer, ledger, jobs) in [(1, first, [1, 2]), (3, &third, [3, 4])] {
        for (n, drawn) in jobs.into_iter().zip([false, true]) {
            let record = record(n, 0, peer(payer), 0, vec![work(0, 2, (0, 3), (0, 10), 5, drawn)]);
            ledger.record_job(&record, &TERMS, NOW).unwrap();
            worker.record_job(&record, &TERMS, NOW).unwrap();
        }
    }
    let fraud = verdict(1, 2, 2, 0, Outcome::Fraud, NOW);
    first.settle_audit(&fraud, &TERMS, NOW).unwrap();
    let of_another = verdict(3, 4, 3, 0, Outcome::Pass, NOW);
    assert!(matches!(worker.settle_with(&node(3), &of_another, &TERMS, NOW), Err(LedgerError::NotAParty)));
    // Of another receipt it says nothing about pay that is held.
    let elsewhere = Signed::sign(
        &key(1),
        Verdict { receipt: Hash::of(b"x"), outcome: Outcome::Pass, proof: None, ..fraud.payload().clone() },
    );
    assert_eq!(worker.settle_with(&node(1), &elsewhere, &TERMS, NOW).unwrap(), Posted::Nothing);
    assert!(matches!(worker.settle_with(&node(1), &fraud, &TERMS, NOW).unwrap(), Posted::New(_)));
    assert!(matches!(worker.settle_with(&node(1), &fraud, &TERMS, NOW).unwrap(), Posted::Already(_)));
    let total = |ledger: &Ledger, owner| ledger.account(&owner).unwrap().balance.total();
    assert_eq!((total(first, peer(2)), total(&worker, peer(1))), (160, -160), "the tail is gone");
    assert_eq!((total(&third, peer(2)), total(&worker, peer(3))), (400, -400), "held and tail are as before");
    exact(&worker);
}

#[test]
fn who_names_anothers_job_covers_nothing_of_it() {
    let books = books();
    let stages = || vec![work(0, 1, (0, 3), (0, 10), 5, true)];
    // Node 3 pays for the same cells of a job that node 2 pays for, and takes it back.
    books.ledger.record_job(&record(1, 0, peer(3), 0, stages()), &TERMS, NOW).unwrap();
    books.ledger.settle_with(&node(3), &verdict(3, 1, 1, 0, Outcome::Withheld, NOW), &TERMS, NOW).unwrap();
    let posted = books.ledger.record_job(&record(1, 0, peer(2), 0, stages()), &TERMS, NOW).unwrap();
    assert!(matches!(posted, Posted::New(_)), "{posted:?}");
    assert_eq!(books.ledger.account(&own("earned")).unwrap().balance.held, 200);
    exact(&books.ledger);
}

#[test]
fn what_is_none_of_ours_is_not_booked() {
    let books = books();
    let refuse = |payer: Owner| {
        let record = record(1, 0, payer, 0, vec![work(0, 3, (0, 0), (0, 10), 1, false)]);
        assert!(matches!(books.ledger.record_job(&record, &TERMS, NOW), Err(LedgerError::NotAParty)));
    };
    refuse(peer(2));
    refuse(own("fees"));
    refuse(own("outside"));
    assert_eq!(books.ledger.length().unwrap(), 0);
}

#[test]
fn hostile_numbers_are_refused_and_leave_nothing() {
    let books = books();
    let ledger = &books.ledger;
    let book = |stages| ledger.record_job(&record(1, 0, api_key(1), 1000, stages), &TERMS, NOW);
    let huge = work(0, 2, (0, u16::MAX), (0, u32::MAX), u64::MAX, false);
    assert!(matches!(book(vec![huge]), Err(LedgerError::Overflow)));
    // Each fits, the sum does not.
    let half = |stage, layer| work(stage, 2, (layer, layer), (0, 1), i64::MAX as u64 / 2, false);
    assert!(matches!(book(vec![half(0, 0), half(1, 1), half(2, 2)]), Err(LedgerError::Overflow)));
    assert!(matches!(book(vec![]), Err(LedgerError::Invalid(_))));
    assert!(matches!(book(vec![work(0, 2, (3, 2), (0, 1), 1, false)]), Err(LedgerError::Invalid(_))));
    assert!(matches!(book(vec![work(0, 2, (0, 0), (5, 5), 1, false)]), Err(LedgerError::Invalid(_))));
    assert!(matches!(ledger.deposit(&peer(2), Msat(u64::MAX), Hash::of(b""), NOW), Err(LedgerError::Overflow)));
    ledger.deposit(&peer(2), Msat(i64::MAX as u64), Hash::of(b"all"), NOW).unwrap();
    assert!(matches!(ledger.deposit(&peer(2), Msat(1), Hash::of(b"more"), NOW), Err(LedgerError::Overflow)));
    assert_eq!(ledger.length().unwrap(), 1);
    assert_eq!(ledger.claims(job(1)).unwrap(), []);
    exact(ledger);
}

#[test]
fn money_in_and_out_is_booked_once() {
    let books = books();
    let ledger = &books.ledger;
    let (one, two) = (Hash::of(b"1"), Hash::of(b"2"));
    assert_eq!(ledger.deposit(&peer(2), Msat(100), one, NOW).unwrap(), Posted::New(0));
    assert_eq!(ledger.deposit(&peer(2), Msat(100), one, NOW + 5).unwrap(), Posted::Already(0));
    assert!(matches!(ledger.deposit(&peer(2), Msat(101), one, NOW), Err(LedgerError::Reused(_))));
    assert!(matches!(ledger.deposit(&peer(3), Msat(100), one, NOW), Err(LedgerError::Reused(_))));
    assert_eq!(ledger.withdraw(&peer(2), Msat(100), one, NOW).unwrap(), Posted::New(1), "its own kind");
    assert_eq!(ledger.withdraw(&peer(2), Msat(100), one, NOW).unwrap(), Posted::Already(1), "though nothing is left");
    assert!(matches!(
        ledger.withdraw(&peer(2), Msat(1), two, NOW),
        Err(LedgerError::Insufficient { free: 0, wanted: Msat(1), .. })
    ));
    exact(ledger);
}

#[test]
fn bonds_end_once() {
    let books = books();
    let ledger = &books.ledger;
    let (one, two, three) = (Hash::of(b"1"), Hash::of(b"2"), Hash::of(b"3"));
    ledger.deposit(&peer(2), Msat(100), one, NOW).unwrap();
    ledger.bond(&peer(2), Msat(60), one, NOW).unwrap();
    ledger.bond(&peer(2), Msat(40), two, NOW).unwrap();
    assert!(matches!(ledger.bond(&peer(2), Msat(1), three, NOW), Err(LedgerError::Insufficient { .. })));
    assert_eq!(ledger.account(&peer(2)).unwrap().balance.bonded, 100);
    assert_eq!(ledger.open_bonds().unwrap(), [one, two]);
    assert!(matches!(ledger.unbond(one, NOW).unwrap(), Posted::New(_)));
    assert!(matches!(ledger.unbond(one, NOW).unwrap(), Posted::Already(_)));
    assert!(matches!(ledger.forfeit(one, NOW), Err(LedgerError::NoBond(_))));
    ledger.forfeit(two, NOW).unwrap();
    assert!(matches!(ledger.unbond(two, NOW), Err(LedgerError::NoBond(_))));
    assert!(matches!(ledger.unbond(three, NOW), Err(LedgerError::NoBond(_))));
    assert_eq!((books.free(&peer(2)), books.free(&own("forfeits"))), (60, 40));
    assert!(ledger.open_bonds().unwrap().is_empty());
    exact(ledger);
}

#[test]
fn trial_credit_is_given_once_to_keys_that_work() {
    let books = books();
    let keys = ApiKeys::open(&books.path()).unwrap();
    let (id, _) = keys.create("new").unwrap();
    let (revoked, _) = keys.create("old").unwrap();
    keys.revoke(&revoked).unwrap();
    let grant = |id, msat| books.ledger.grant_trial(id, Msat(msat), NOW);
    assert_eq!(grant(&id, 500).unwrap(), Posted::New(0));
    assert_eq!(grant(&id, 700).unwrap(), Posted::Already(0), "once, though the amount was changed since");
    assert!(matches!(grant(&revoked, 500), Err(LedgerError::UnknownKey(_))));
    assert!(matches!(grant(&"0123456789ab".parse().unwrap(), 500), Err(LedgerError::UnknownKey(_))));
    assert_eq!((books.free(&Owner::Key(id)), books.free(&own("trial"))), (500, -500));
    exact(&books.ledger);
}

#[test]
fn damage_is_noticed() {
    let tampering = [
        "UPDATE posting SET msat = msat * 2",
        "UPDATE entry SET at_ms = at_ms + 1 WHERE seq = 3",
        "UPDATE entry SET hash = zeroblob(32) WHERE seq = 2",
        "DELETE FROM posting WHERE seq = 1",
        "PRAGMA foreign_keys = OFF; DELETE FROM entry WHERE seq = 1",
    ];
    for sql in tampering {
        let books = books();
        for n in 0..5 {
            books.ledger.deposit(&peer(2), Msat(100), Hash::of(&[n]), NOW).unwrap();
        }
        let refused = rusqlite::Connection::open(books.path()).unwrap().execute_batch(sql);
        assert!(refused.unwrap_err().to_string().contains("only grows"), "{sql}");
        books.sql(
            "DROP TRIGGER entry_stays; DROP TRIGGER entry_kept; DROP TRIGGER posting_stays; DROP TRIGGER posting_kept",
        );
        books.sql(sql);
        assert!(matches!(books.ledger.verify(), Err(LedgerError::Corrupt { .. })), "{sql}");
        assert!(matches!(Ledger::open(&books.path(), node(1)), Err(LedgerError::Corrupt { .. })), "{sql}");
    }
    let books = books();
    books.ledger.deposit(&peer(2), Msat(100), Hash::of(b""), NOW).unwrap();
    assert!(matches!(Ledger::open(&books.path(), node(2)), Err(LedgerError::Corrupt { seq: 0, .. })), "another's");
    books.sql("UPDATE balance SET msat = msat + 1 WHERE owner LIKE 'peer/%'");
    let sums = books.ledger.reconcile().unwrap();
    assert_eq!((sums.balances, sums.differences.len()), (1, 1));
    assert!(matches!(Ledger::open(&books.path(), node(1)), Err(LedgerError::Corrupt { .. })));
}

#[test]
fn statements_add_up_page_by_page() {
    let books = books();
    let ledger = &books.ledger;
    ledger.deposit(&api_key(1), Msat(1000), Hash::of(b"before"), NOW - 1).unwrap();
    for n in 0..7_u8 {
        ledger.deposit(&api_key(1), Msat(10), Hash::of(&[n]), NOW + u64::from(n)).unwrap();
        ledger.deposit(&api_key(2), Msat(10), Hash::of(&[n, n]), NOW).unwrap();
    }
    ledger.bond(&api_key(1), Msat(300), Hash::of(b"bond"), NOW + 3).unwrap();
    ledger.deposit(&api_key(1), Msat(1), Hash::of(b"after"), NOW + 7).unwrap();
    let (mut after, mut lines, mut balance) = (None, Vec::new(), 1000_i128);
    loop {
        let page = ledger.statement(&api_key(1), NOW, NOW + 7, after, 3).unwrap();
        assert!(page.lines.len() <= 3);
        assert_eq!(page.opening.total(), balance);
        balance += page.lines.iter().map(|line| line.moved.total()).sum::<i128>();
        assert_eq!(page.closing.total(), balance);
        lines.extend(page.lines);
        after = page.next;
        if after.is_none() {
            assert_eq!((page.closing.free, page.closing.bonded), (770, 300));
            break;
        }
    }
    assert_eq!(lines.len(), 8);
    assert_eq!(lines[7].kind, Kind::Bonded);
    assert_eq!((lines[7].moved.free, lines[7].moved.bonded), (-300, 300));
    let json = serde_json::to_value(ledger.statement(&api_key(1), NOW, NOW + 1, None, 10).unwrap()).unwrap();
    assert_eq!(json["owner"], "key/000000000001");
    assert_eq!(json["lines"][0]["kind"], "deposit");
    assert_eq!(json["lines"][0]["moved"]["free"], 10);
}

#[test]
fn accounts_are_listed_in_pages_and_named_in_one_way() {
    let books = books();
    for n in 1..=5 {
        books.ledger.deposit(&api_key(n), Msat(u64::from(n)), Hash::of(&[n]), NOW).unwrap();
    }
    let first = books.ledger.accounts(None, 2).unwrap();
    assert_eq!(first.iter().map(|view| view.balance.free).collect::<Vec<_>>(), [1, 2]);
    let rest = books.ledger.accounts(Some(&first[1].owner), u32::MAX).unwrap();
    assert_eq!(rest.len(), 4, "three keys and the book of the outside");
    for text in
        ["peer/x/free", "own/earned", "own/other/free", "key/0123456789ab/taken", "peer", "", "own/earned/free "]
    {
        assert!(text.parse::<Account>().is_err(), "{text}");
    }
    let text = format!("peer/{}/tail", node(2));
    assert_eq!(text.parse::<Account>().unwrap().to_string(), text);
}

#[test]
fn several_writers_make_one_chain() {
    let books = books();
    let path = books.path();
    std::thread::scope(|scope| {
        for writer in 0..4_u8 {
            let path = &path;
            scope.spawn(move || {
                let ledger = Ledger::open(path, node(1)).unwrap();
                for n in 0..20_u8 {
                    // One of a kind, and one that all of them post.
                    ledger.deposit(&api_key(writer), Msat(3), Hash::of(&[writer, n]), NOW).unwrap();
                    ledger.deposit(&api_key(9), Msat(7), Hash::of(&[n]), NOW).unwrap();
                }
            });
        }
    });
    assert_eq!(books.ledger.length().unwrap(), 4 * 20 + 20);
    assert_eq!((books.free(&api_key(0)), books.free(&api_key(9))), (60, 140));
    exact(&books.ledger);
}
