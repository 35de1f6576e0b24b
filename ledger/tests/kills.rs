//! The books after kills: whatever was interrupted happened wholly or not at all, and everything adds up.
#![allow(clippy::unwrap_used, clippy::panic)]

mod fixtures;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use consortium_ledger::accounts::{AccountView, Owner};
use consortium_ledger::api_keys::ApiKeys;
use consortium_ledger::batches::BatchPolicy;
use consortium_ledger::claims::ClaimState;
use consortium_ledger::ledger::{Ledger, LedgerError};
use consortium_ledger::metering::Terms;
use consortium_protocol::wire::audit::Outcome;
use consortium_protocol::{Hash, Msat};
use fixtures::*;
use proptest::prelude::*;

const TERMS: Terms = Terms { tail: 333, tail_ms: 50, hold_ms: 100 };

/// Something that is done to the books.
#[derive(Clone, Debug)]
enum Step {
    Deposit(u8, u64, u8),
    Withdraw(u8, u64, u8),
    Bond(u8, u64, u8),
    Unbond(u8),
    Forfeit(u8),
    Reserve(u8, u64, u8),
    Reduce(u8, u64),
    EndJob(u8),
    ReleaseAll,
    Work { job: u8, attempt: u32, payer: u8, worker: u8, layers: (u16, u16), stop: u32, price: u64, drawn: bool },
    Verdict { job: u8, worker: u8, outcome: u8 },
    Release,
    Batch,
}

fn owner(n: u8) -> Owner {
    if n < 3 { api_key(n) } else { peer(n - 2) }
}

fn step() -> impl Strategy<Value = Step> {
    let amount = 0..5000_u64;
    prop_oneof![
        1 => (0..6_u8, amount.clone(), 0..8_u8).prop_map(|(who, msat, r)| Step::Deposit(who, msat, r)),
        1 => (0..6_u8, amount.clone(), 0..8_u8).prop_map(|(who, msat, r)| Step::Withdraw(who, msat, r)),
        1 => (0..6_u8, amount, 0..8_u8).prop_map(|(who, msat, r)| Step::Bond(who, msat, r)),
        1 => (0..8_u8).prop_map(Step::Unbond),
        1 => (0..8_u8).prop_map(Step::Forfeit),
        3 => (0..3_u8, 0..2000_u64, 0..3_u8).prop_map(|(who, msat, r)| Step::Reserve(who, msat, r)),
        1 => (0..3_u8, 0..2000_u64).prop_map(|(r, left)| Step::Reduce(r, left)),
        1 => (0..3_u8).prop_map(Step::EndJob),
        1 => Just(Step::ReleaseAll),
        6 => (0..3_u8, 0..2_u32, 0..4_u8, 1..4_u8, (0..6_u16, 0..6_u16), 1..30_u32, 0..50_u64, any::<bool>()).prop_map(
            |(job, attempt, payer, worker, (first, more), stop, price, drawn)| Step::Work {
                job,
                attempt,
                payer,
                worker,
                layers: (first, first + more),
                stop,
                price,
                drawn,
            }
        ),
        4 => (0..3_u8, 1..4_u8, 0..4_u8).prop_map(|(job, worker, outcome)| Step::Verdict { job, worker, outcome }),
        1 => Just(Step::Release),
        1 => Just(Step::Batch),
    ]
}

/// Does it; whether it was refused does not matter here, only that the database did not fail.
fn apply(ledger: &Ledger, step: &Step, now: u64) -> Result<(), LedgerError> {
    let reference = |r: u8| Hash::of(&[r]);
    let done = match step {
        Step::Deposit(who, msat, r) => ledger.deposit(&owner(*who), Msat(*msat), reference(*r), now).map(drop),
        Step::Withdraw(who, msat, r) => ledger.withdraw(&owner(*who), Msat(*msat), reference(*r), now).map(drop),
        Step::Bond(who, msat, r) => ledger.bond(&owner(*who), Msat(*msat), reference(*r), now).map(drop),
        Step::Unbond(r) => ledger.unbond(reference(*r), now).map(drop),
        Step::Forfeit(r) => ledger.forfeit(reference(*r), now).map(drop),
        Step::Reserve(who, msat, r) => ledger.reserve(&owner(*who), job(*r), Msat(*msat), now).map(drop),
        Step::Reduce(r, left) => ledger.reduce_reservation(job(*r), Msat(*left), now).map(drop),
        Step::EndJob(r) => ledger.release_reservation(job(*r), now).map(drop),
        Step::ReleaseAll => ledger.release_reservations(u64::from(u32::MAX), now).map(drop),
        Step::Work { job, attempt, payer, worker, layers, stop, price, drawn } => {
            let stages = vec![
                work(0, *worker, *layers, (0, *stop), *price, *drawn),
                work(1, 1, (layers.1 + 1, layers.1 + 2), (0, *stop), *price, !*drawn),
            ];
            ledger.record_job(&record(*job, *attempt, owner(*payer), 30, stages), &TERMS, now).map(drop)
        }
        Step::Verdict { job, worker, outcome } => {
            let outcome =
                [Outcome::Pass, Outcome::Inconclusive, Outcome::Withheld, Outcome::Fraud][usize::from(*outcome)];
            ledger.settle_audit(&verdict(9, *worker, *job, 0, outcome, now), &TERMS, now).map(drop)
        }
        Step::Release => ledger.release_due(&TERMS, now).map(drop),
        Step::Batch => ledger.close_batch(&key(1), &BatchPolicy { entries: 3, every_ms: 1000 }, now).map(drop),
    };
    match done {
        Err(error @ (LedgerError::Database(_) | LedgerError::Corrupt { .. } | LedgerError::Unbalanced(_))) => {
            Err(error)
        }
        _ => Ok(()),
    }
}

/// Where a write is cut off: before this change of this table, if the step comes to it.
const CUTS: [&str; 9] = [
    "INSERT ON entry",
    "INSERT ON posting WHEN NEW.part = 'free' AND NEW.msat > 0",
    "INSERT ON balance WHEN NEW.part <> 'free'",
    "INSERT ON turnover",
    "INSERT ON claim WHEN NEW.stage = 1",
    "UPDATE ON claim",
    "INSERT ON node",
    "INSERT ON reservation",
    "DELETE ON reservation",
];

fn state(ledger: &Ledger) -> (u64, Vec<AccountView>) {
    (ledger.length().unwrap(), ledger.accounts(None, 100).unwrap())
}

fn check(ledger: &Ledger) {
    let sums = ledger.reconcile().unwrap();
    assert!(sums.is_exact(), "{sums:?}");
    assert_eq!(ledger.verify().unwrap(), sums.entries);
}

fn check_jobs(ledger: &Ledger) {
    check(ledger);
    for n in 0..3 {
        // However often it was claimed, no payer pays more than all its cells at the highest price.
        let claims = ledger.claims(job(n)).unwrap();
        let mut paid: BTreeMap<Owner, u64> = BTreeMap::new();
        for claim in claims.into_iter().filter(|claim| claim.state != ClaimState::Returned) {
            *paid.entry(claim.payer).or_default() += claim.pay.0;
        }
        assert!(paid.values().all(|paid| *paid <= 13 * 29 * 49), "{n}: {paid:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn books_are_exact_whatever_is_done_and_cut_off(
        steps in prop::collection::vec((step(), prop::option::weighted(0.3, 0..CUTS.len())), 1..40),
    ) {
        let mut books = books();
        for (i, (step, cut)) in steps.iter().enumerate() {
            let now = NOW + 10 * i as u64;
            if let Some(cut) = cut {
                let before = state(&books.ledger);
                books.sql(&format!(
                    "CREATE TRIGGER cut BEFORE {} BEGIN SELECT raise(FAIL, 'killed'); END",
                    CUTS[*cut]
                ));
                let done = apply(&books.ledger, step, now);
                if done.is_err() {
                    prop_assert_eq!(&state(&books.ledger), &before);
                }
                books.sql("DROP TRIGGER cut");
                books.reopen();
                if done.is_err() {
                    prop_assert_eq!(state(&books.ledger), before);
                }
            }
            // What was cut off is done again, and what was done is repeated: replays change nothing.
            prop_assert!(apply(&books.ledger, step, now).is_ok());
            let once = state(&books.ledger);
            prop_assert!(apply(&books.ledger, step, now).is_ok());
            if !matches!(step, Step::Verdict { .. } | Step::Release | Step::Batch) {
                prop_assert_eq!(state(&books.ledger), once);
            }
        }
        check_jobs(&books.ledger);
    }

    #[test]
    fn a_torn_log_loses_the_end_and_nothing_else(
        steps in prop::collection::vec(step(), 5..25),
        keep in 0.0..1.0_f64,
    ) {
        let books = books();
        let mut lengths = vec![0];
        for (i, step) in steps.iter().enumerate() {
            prop_assert!(apply(&books.ledger, step, NOW + 10 * i as u64).is_ok());
            lengths.push(books.ledger.length().unwrap());
        }
        // The machine stops: what lies on the disk is the file and some part of the write-ahead log.
        let dir = tempfile::tempdir().unwrap();
        let (copy, log) = (dir.path().join("ledger.db"), dir.path().join("ledger.db-wal"));
        std::fs::copy(books.path(), &copy).unwrap();
        let written = std::fs::read(books.path().with_extension("db-wal")).unwrap();
        std::fs::write(&log, &written[..(written.len() as f64 * keep) as usize]).unwrap();
        let ledger = Ledger::open(&copy, node(1)).unwrap();
        check(&ledger);
        prop_assert!(lengths.contains(&ledger.length().unwrap()));
        for (i, step) in steps.iter().enumerate() {
            prop_assert!(apply(&ledger, step, NOW + 10 * i as u64).is_ok());
        }
        check(&ledger);
    }
}

/// Set for the process that is to be killed: the ledger's path.
const VICTIM: &str = "CONSORTIUM_TEST_KILLED_LEDGER";

/// Works on the books until it is killed. Without the variable there is nothing to do: this is the other half of the
/// test below.
#[test]
fn victim() {
    let Some(path) = std::env::var_os(VICTIM) else { return };
    let ledger = Ledger::open(Path::new(&path), node(1)).unwrap();
    for i in ledger.length().unwrap() + 1.. {
        let n = u8::try_from(i % 251).unwrap();
        let stages = vec![work(0, 2, (0, 3), (0, 10 + u32::try_from(i).unwrap()), 3, i % 2 == 0)];
        ledger.record_job(&record(n, 0, api_key(n % 5), 10, stages), &TERMS, NOW + i).unwrap();
        ledger.settle_audit(&verdict(9, 2, n, 0, Outcome::Pass, NOW + i), &TERMS, NOW + i).unwrap();
        ledger.release_due(&TERMS, NOW + i).unwrap();
        ledger.close_batch(&key(1), &BatchPolicy { entries: 5, every_ms: 1000 }, NOW + i).unwrap();
    }
}

#[test]
fn books_survive_processes_that_are_killed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let mut length = 0;
    for round in 0..12_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--quiet"])
            .env(VICTIM, &path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(60 + 37 * (round * 7 % 11)));
        child.kill().unwrap();
        child.wait().unwrap();
        if !path.exists() {
            continue;
        }
        let ledger = Ledger::open(&path, node(1)).unwrap();
        check(&ledger);
        assert!(ledger.length().unwrap() >= length, "what was written is still there");
        length = ledger.length().unwrap();
        if let Some(head) = ledger.head().unwrap() {
            let size = head.payload().size;
            assert!(size <= length);
            assert!(ledger.prove_entry(size - 1).unwrap().unwrap().check().is_ok());
        }
    }
    assert!(length > 0, "the victims got nothing done");
}

/// Set for the process that looks in: the ledger's path.
const VISITOR: &str = "CONSORTIUM_TEST_VISITED_LEDGER";

/// Opens the books and closes them again. Without the variable there is nothing to do: this is the other half of the
/// test below.
#[test]
fn visitor() {
    let Some(path) = std::env::var_os(VISITOR) else { return };
    Ledger::open(Path::new(&path), node(1)).unwrap();
}

#[test]
fn who_looks_in_and_leaves_takes_nothing_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    // A node holds its ledger twice.
    let (keys, ledger) = (ApiKeys::open(&path).unwrap(), Ledger::open(&path, node(1)).unwrap());
    for n in 0..3 {
        let visit = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "visitor", "--quiet"])
            .env(VISITOR, &path)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(visit.success());
        ledger.deposit(&api_key(1), Msat(100), Hash::of(&[n]), NOW).unwrap();
    }
    // What a kill would leave: the files, without a farewell of the connections.
    let copy = tempfile::tempdir().unwrap();
    for file in ["ledger.db", "ledger.db-wal"] {
        std::fs::copy(dir.path().join(file), copy.path().join(file)).unwrap();
    }
    assert_eq!(Ledger::open(&copy.path().join("ledger.db"), node(1)).unwrap().length().unwrap(), 3);
    drop((keys, ledger));
}
