//! Tokens, what they may do, what was spent with them, and credit that goes back.
#![allow(clippy::unwrap_used, clippy::panic)]

mod fixtures;

use consortium_ledger::api_keys::{ApiKeys, KeyId};
use consortium_ledger::l402::refunds::{Refund, RefundState};
use consortium_ledger::l402::terms::Budget;
use consortium_ledger::l402::tokens::{
    Admission, KEPT_S, MAX_OPEN, MAX_OPEN_OF_ACCOUNT, MAX_OPEN_OF_CALLER, MintError, Offer, Refusal, Verdict,
};
use consortium_ledger::l402::{Credential, Identifier, Macaroon};
use consortium_ledger::metering::Terms as PayTerms;
use consortium_ledger::payments::{Direction, Moved};
use consortium_ledger::{Ledger, LedgerError};
use consortium_protocol::{Hash, Msat};
use fixtures::*;

const NOW_S: u64 = NOW / 1000;
const UNTIL_S: u64 = NOW_S + 86_400;

fn preimage(n: u8) -> [u8; 32] {
    [n; 32]
}

fn hash(n: u8) -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::digest(preimage(n)).into()
}

fn offer(n: u8, caller: &str) -> Offer {
    Offer {
        payment_hash: hash(n),
        amount: Msat(10_000),
        caller: caller.to_owned(),
        invoice_until_s: NOW_S + 600,
        token_until_s: UNTIL_S,
    }
}

fn pay(ledger: &Ledger, n: u8) {
    let moved =
        Moved { direction: Direction::Incoming, hash: Hash::from_bytes(hash(n)), amount: Msat(10_000), fee: Msat(0) };
    ledger.book_payment(&moved, NOW).unwrap();
}

fn credential(macaroon: &Macaroon, n: u8) -> Credential {
    Credential::new(macaroon.clone(), preimage(n)).unwrap()
}

fn admitted(ledger: &Ledger, credential: &Credential) -> Admission {
    match ledger.l402_admit(credential, NOW_S).unwrap() {
        Verdict::Admitted(admission) => admission,
        other => panic!("{other:?}"),
    }
}

fn refused(ledger: &Ledger, credential: &Credential, now_s: u64) -> Refusal {
    match ledger.l402_admit(credential, now_s).unwrap() {
        Verdict::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

/// A token whose invoice is paid: 10 000 msat.
fn bought(books: &Books, n: u8) -> (KeyId, Macaroon) {
    let made = books.ledger.l402_mint(None, &offer(n, "a"), NOW_S).unwrap();
    pay(&books.ledger, n);
    made
}

fn free(ledger: &Ledger, account: &KeyId) -> (i64, i64) {
    let balance = ledger.account(&owner(account)).unwrap().balance;
    (balance.free, balance.bonded)
}

fn owner(account: &KeyId) -> consortium_ledger::accounts::Owner {
    consortium_ledger::accounts::Owner::Key(account.clone())
}

#[test]
fn a_credential_works_once_it_is_paid_and_until_it_ends() {
    let mut books = books();
    let (account, macaroon) = books.ledger.l402_mint(None, &offer(1, "a"), NOW_S).unwrap();
    let paid = credential(&macaroon, 1);
    assert_eq!(refused(&books.ledger, &credential(&macaroon, 2), NOW_S), Refusal::Unpaid);
    assert_eq!(books.ledger.l402_admit(&paid, NOW_S).unwrap(), Verdict::Arriving, "paid, and not booked yet");
    pay(&books.ledger, 1);
    books.reopen();
    let ledger = &books.ledger;
    let admission = admitted(ledger, &paid);
    assert!(admission.whole && admission.account == account);
    assert_eq!((free(ledger, &account), admitted(ledger, &paid)), ((10_000, 0), admission));
    assert_eq!(refused(ledger, &paid, UNTIL_S), Refusal::Expired);
    // Another token of the same node, and one of another node, open nothing here.
    let stolen = Identifier { payment_hash: hash(3), ..*paid.identifier() };
    let other = consortium_ledger::l402::TokenSecret::from_bytes([9; 32]);
    let forged = Credential::new(Macaroon::mint(&other, &stolen.to_bytes()), preimage(3)).unwrap();
    assert_eq!(refused(ledger, &forged, NOW_S), Refusal::Unknown);
    let unknown = Identifier { token: [7; 32], ..stolen };
    let foreign = Credential::new(Macaroon::mint(&other, &unknown.to_bytes()), preimage(3)).unwrap();
    assert_eq!(refused(ledger, &foreign, NOW_S), Refusal::Unknown);
    ledger.l402_revoke(&account, NOW_S).unwrap();
    assert_eq!(refused(ledger, &paid, NOW_S), Refusal::Revoked);
    let unknown: KeyId = "000000000000".parse().unwrap();
    assert!(matches!(ledger.l402_revoke(&unknown, NOW_S), Err(LedgerError::UnknownKey(_))));
}

#[test]
fn who_narrowed_a_credential_is_held_to_it() {
    let books = books();
    let (_, macaroon) = bought(&books, 1);
    let narrow = |caveats: &[&str]| {
        let narrow = caveats.iter().try_fold(macaroon.clone(), |m, caveat| m.with_caveat(caveat)).unwrap();
        credential(&narrow, 1)
    };
    let admission = admitted(&books.ledger, &narrow(&["consortium_models=a", "not_known_here=1"]));
    assert!(!admission.whole && admission.terms.allows_model("a") && !admission.terms.allows_model("b"));
    let soon = format!("consortium_valid_until={}", NOW_S + 5);
    assert_eq!(refused(&books.ledger, &narrow(&[&soon]), NOW_S + 5), Refusal::Expired);
    let late = format!("consortium_valid_until={}", UNTIL_S + 1);
    for wide in ["services=consortium:0,loop:0", "services=loop:0", &late, "consortium_valid_until=soon"] {
        assert!(matches!(refused(&books.ledger, &narrow(&[wide]), NOW_S), Refusal::Terms(_)), "{wide}");
    }
}

#[test]
fn a_top_up_goes_to_the_same_account() {
    let books = books();
    let ledger = &books.ledger;
    let (account, first) = bought(&books, 1);
    assert_eq!(ledger.l402_custody(Some(&account), NOW_S).unwrap(), (Msat(10_000), Msat(10_000)));
    let later = Offer { token_until_s: UNTIL_S + 500, ..offer(2, "a") };
    let (same, second) = ledger.l402_mint(Some(&account), &later, NOW_S).unwrap();
    assert_eq!(same, account);
    bought(&books, 7);
    assert_eq!(
        ledger.l402_custody(Some(&account), NOW_S).unwrap(),
        (Msat(20_000), Msat(20_000)),
        "its own invoice, and of all what is paid"
    );
    assert_eq!(ledger.l402_custody(None, NOW_S + 600).unwrap(), (Msat(0), Msat(20_000)), "that invoice is over");
    assert_eq!(ledger.l402_admit(&credential(&second, 2), NOW_S).unwrap(), Verdict::Arriving);
    admitted(ledger, &credential(&first, 1));
    pay(ledger, 2);
    assert_eq!(admitted(ledger, &credential(&second, 2)).account, account);
    assert_eq!(free(ledger, &account), (20_000, 0));
    assert_eq!(refused(ledger, &credential(&second, 1), NOW_S), Refusal::Unpaid, "each has its own preimage");
    assert_eq!(ledger.l402_tokens(None, 9).unwrap()[0].expires_s, UNTIL_S + 500);
    ledger.l402_revoke(&account, NOW_S).unwrap();
    let again = ledger.l402_mint(Some(&account), &offer(3, "a"), NOW_S);
    assert!(matches!(again, Err(MintError::Ledger(LedgerError::UnknownKey(_)))), "{again:?}");
}

#[test]
fn the_credit_of_an_api_key_can_be_bought_too() {
    let books = books();
    let keys = ApiKeys::open(&books.path()).unwrap();
    let (id, _) = keys.create("").unwrap();
    let (account, macaroon) = books.ledger.l402_mint(Some(&id), &offer(1, "a"), NOW_S).unwrap();
    assert_eq!(account, id);
    pay(&books.ledger, 1);
    assert_eq!(admitted(&books.ledger, &credential(&macaroon, 1)).account, id);
    keys.revoke(&id).unwrap();
    assert_eq!(refused(&books.ledger, &credential(&macaroon, 1), NOW_S), Refusal::Revoked);
    assert!(books.ledger.l402_mint(Some(&id), &offer(2, "a"), NOW_S).is_err());
}

#[test]
fn what_is_never_paid_is_bounded_and_goes_away() {
    let books = books();
    let ledger = &books.ledger;
    let numbered = |n: u32, caller: &str| {
        let payment_hash = *Hash::of(&n.to_be_bytes()).as_bytes();
        ledger.l402_mint(None, &Offer { payment_hash, ..offer(0, caller) }, NOW_S)
    };
    for n in 0..MAX_OPEN_OF_CALLER {
        numbered(n, "a").unwrap();
    }
    assert!(matches!(numbered(MAX_OPEN, "a"), Err(MintError::ManyOfCaller)));
    assert!(matches!(ledger.l402_room("a", NOW_S), Err(MintError::ManyOfCaller)));
    ledger.l402_room("", NOW_S).unwrap();
    for n in MAX_OPEN_OF_CALLER..MAX_OPEN {
        numbered(n, &format!("caller {}", n / 8)).unwrap();
    }
    // Who comes then is not turned away for those who do not pay: the oldest is given up.
    numbered(MAX_OPEN, "b").unwrap();
    // They make room when they can no longer be paid, and are forgotten when that is certain.
    ledger.l402_room("a", NOW_S + 600).unwrap();
    let end = NOW_S + 600 + KEPT_S;
    assert_eq!(ledger.l402_sweep(end - 1, 5000).unwrap().len(), 1, "what was given up has ended before");
    assert_eq!(ledger.l402_sweep(end, 1000).unwrap().len(), 1000);
    assert_eq!(ledger.l402_sweep(end, 1000).unwrap().len(), 24);
    let left: i64 = rusqlite::Connection::open(books.path())
        .unwrap()
        .query_row("SELECT (SELECT count(*) FROM l402_token) + (SELECT count(*) FROM l402_invoice) + (SELECT count(*) FROM payment WHERE seq IS NULL)", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(left, 0);
}

#[test]
fn an_invoice_that_was_given_up_is_credit_when_it_is_paid_all_the_same() {
    let books = books();
    let ledger = &books.ledger;
    let (account, first) = ledger.l402_mint(None, &offer(1, ""), NOW_S).unwrap();
    let most = u8::try_from(MAX_OPEN_OF_ACCOUNT).unwrap();
    for n in 0..most {
        let later = Offer { invoice_until_s: NOW_S + 601, ..offer(10 + n, "") };
        ledger.l402_mint(Some(&account), &later, NOW_S).unwrap();
    }
    // Eight invoices count, the first of nine does not any more.
    let open = u64::from(MAX_OPEN_OF_ACCOUNT) * 10_000;
    assert_eq!(ledger.l402_custody(Some(&account), NOW_S).unwrap(), (Msat(open), Msat(0)));
    assert!(ledger.l402_sweep(NOW_S + KEPT_S - 1, 9).unwrap().is_empty());
    pay(ledger, 1);
    assert_eq!(admitted(ledger, &credential(&first, 1)).account, account);
    assert_eq!(free(ledger, &account), (10_000, 0));
}

#[test]
fn a_sweep_leaves_what_was_paid() {
    let books = books();
    let ledger = &books.ledger;
    let (account, macaroon) = bought(&books, 1);
    // Its payer has not come back, and does so a day later.
    assert_eq!(ledger.l402_sweep(NOW_S + 600 + KEPT_S, 9).unwrap(), [[0; 32]; 0]);
    assert_eq!(admitted(ledger, &credential(&macaroon, 1)).account, account);
    ledger.l402_sweep(UNTIL_S + 1, 9).unwrap();
    assert_eq!(ledger.l402_tokens(None, 9).unwrap().len(), 1, "there is credit on it");
    ledger.withdraw(&owner(&account), Msat(10_000), Hash::of(b"x"), NOW).unwrap();
    ledger.l402_sweep(UNTIL_S + 1, 9).unwrap();
    assert!(ledger.l402_tokens(None, 9).unwrap().is_empty());
}

#[test]
fn a_budget_counts_what_was_charged_and_what_may_be_yet() {
    let books = books();
    let ledger = &books.ledger;
    let (account, macaroon) = bought(&books, 1);
    let with = |caveats: &[&str]| -> Vec<Budget> {
        let narrow = caveats.iter().try_fold(macaroon.clone(), |m, caveat| m.with_caveat(caveat)).unwrap();
        admitted(ledger, &credential(&narrow, 1)).terms.budgets().to_vec()
    };
    let wide = with(&["consortium_budget_msat=500"]);
    let narrow = with(&["consortium_budget_msat=500", "consortium_budget_msat=200"]);
    let reserve =
        |budgets: &[Budget], n: u8, msat| ledger.reserve_within(&owner(&account), budgets, job(n), Msat(msat), NOW);
    let left = |budgets: &[Budget]| ledger.l402_budget_left(budgets).unwrap();
    assert_eq!((left(&wide), left(&narrow), left(&[])), (Some(Msat(500)), Some(Msat(200)), None));
    reserve(&wide, 1, 400).unwrap();
    let refusal = reserve(&narrow, 2, 101).unwrap_err();
    assert!(matches!(refusal, LedgerError::BudgetSpent { left: Msat(100), wanted: Msat(101) }), "{refusal}");
    reserve(&narrow, 2, 100).unwrap();
    assert_eq!((left(&wide), left(&narrow)), (Some(Msat(0)), Some(Msat(0))));
    assert!(reserve(&[], 3, 9000).is_ok(), "whoever holds the whole one is not bound by it");
    // 20 positions of 11 msat were charged to the first, and the second ended without work.
    ledger.reduce_reservation(job(1), Msat(230), NOW).unwrap();
    let worked = record(1, 1, owner(&account), 100, vec![work(0, 2, (0, 1), (0, 20), 5, false)]);
    ledger.record_job(&worked, &PayTerms { tail: 200, tail_ms: DAY, hold_ms: 2 * DAY }, NOW).unwrap();
    ledger.release_reservation(job(1), NOW).unwrap();
    ledger.release_reservation(job(2), NOW).unwrap();
    assert_eq!((left(&wide), left(&narrow)), (Some(Msat(280)), Some(Msat(200))));
    assert!(ledger.reconcile().unwrap().is_exact());
    let kept =
        rusqlite::Connection::open(books.path())
            .unwrap()
            .query_row("SELECT count(*) FROM l402_budget", [], |row| row.get::<_, i64>(0));
    assert_eq!(kept.unwrap(), 1, "under the narrow one nothing was spent");
}

fn wanted(account: &KeyId, n: u8, msat: u64, fee: u64) -> Refund {
    Refund::wanted(account.clone(), Hash::of(&[n]), format!("lnbcrt{n}"), Msat(msat), Msat(fee))
}

fn sent(ledger: &Ledger, n: u8, msat: u64, fee: u64) {
    let moved = Moved { direction: Direction::Outgoing, hash: Hash::of(&[n]), amount: Msat(msat), fee: Msat(fee) };
    ledger.book_payment(&moved, NOW).unwrap();
}

#[test]
fn credit_goes_back_once_and_its_way_is_paid_from_it() {
    let mut books = books();
    let (account, _) = bought(&books, 1);
    let refund = books.ledger.begin_refund(&wanted(&account, 1, 6000, 100), NOW).unwrap();
    assert_eq!(refund.state, RefundState::Open);
    assert_eq!(free(&books.ledger, &account), (3900, 6100));
    assert_eq!(books.ledger.begin_refund(&wanted(&account, 1, 6000, 100), NOW).unwrap(), refund, "it has begun");
    let second = books.ledger.begin_refund(&wanted(&account, 2, 100, 1), NOW);
    assert!(matches!(second, Err(LedgerError::Reused(_))), "one at a time: {second:?}");
    // The process ends while it is on its way.
    books.reopen();
    let ledger = &books.ledger;
    assert_eq!(ledger.open_refunds().unwrap(), [refund]);
    assert_eq!(ledger.finish_refund(&Hash::of(&[1]), NOW).unwrap(), None);
    sent(ledger, 1, 6000, 30);
    assert_eq!(free(ledger, &account), (-2100, 6100), "put aside until the end");
    for _ in 0..2 {
        let done = ledger.finish_refund(&Hash::of(&[1]), NOW).unwrap().unwrap();
        assert_eq!((done.state, done.fee), (RefundState::Paid, Msat(30)));
        assert_eq!(free(ledger, &account), (3970, 0));
    }
    assert_eq!(books.free(&own("routing")), 0, "the node bears nothing");
    let again = ledger.begin_refund(&wanted(&account, 1, 6000, 100), NOW).unwrap();
    assert_eq!((again.state, free(ledger, &account)), (RefundState::Paid, (3970, 0)));
    assert!(ledger.open_refunds().unwrap().is_empty() && ledger.reconcile().unwrap().is_exact());
}

#[test]
fn a_refund_that_fails_costs_nothing_and_may_be_tried_again() {
    let books = books();
    let ledger = &books.ledger;
    let (account, _) = bought(&books, 1);
    let (other, _) = bought(&books, 2);
    let too_much = ledger.begin_refund(&wanted(&account, 1, 9990, 11), NOW);
    assert!(matches!(too_much, Err(LedgerError::Insufficient { free: 10_000, .. })), "{too_much:?}");
    for _ in 0..2 {
        ledger.begin_refund(&wanted(&account, 1, 9000, 100), NOW).unwrap();
        ledger.fail_refund(&Hash::of(&[1]), NOW).unwrap();
        ledger.fail_refund(&Hash::of(&[1]), NOW).unwrap();
        assert_eq!(free(ledger, &account), (10_000, 0));
    }
    let anothers = ledger.begin_refund(&wanted(&other, 1, 9000, 100), NOW);
    assert!(matches!(anothers, Err(LedgerError::Reused(_))), "{anothers:?}");
    assert!(ledger.reconcile().unwrap().is_exact());
}

#[test]
fn trial_credit_is_spent_first_and_never_paid_out() {
    let books = books();
    let ledger = &books.ledger;
    let (id, _) = ApiKeys::open(&books.path()).unwrap().create("").unwrap();
    ledger.grant_trial(&id, Msat(300), NOW).unwrap();
    assert_eq!(ledger.refundable(&id).unwrap(), Msat(0));
    ledger.deposit(&owner(&id), Msat(1000), Hash::of(b"paid"), NOW).unwrap();
    assert_eq!(ledger.refundable(&id).unwrap(), Msat(1000));
    let pay = PayTerms { tail: 200, tail_ms: DAY, hold_ms: 2 * DAY };
    // 220 msat: of the trial.
    let worked = |n, positions| record(n, 1, owner(&id), 100, vec![work(0, 2, (0, 1), (0, positions), 5, false)]);
    ledger.record_job(&worked(1, 20), &pay, NOW).unwrap();
    assert_eq!(ledger.refundable(&id).unwrap(), Msat(1000));
    ledger.record_job(&worked(2, 20), &pay, NOW).unwrap();
    assert_eq!(ledger.refundable(&id).unwrap(), Msat(1300 - 440));
}

#[test]
fn secrets_are_not_shown() {
    let books = books();
    let (_, macaroon) = bought(&books, 1);
    let narrow = credential(&macaroon.with_caveat("consortium_valid_until=x").unwrap(), 1);
    let bytes = narrow.macaroon().to_bytes();
    let signature: String = bytes[bytes.len() - 32..].iter().map(|byte| format!("{byte:02x}")).collect();
    let refusal = refused(&books.ledger, &narrow, NOW_S);
    let shown = format!("{narrow:?} {:?} {refusal:?} {refusal} {:?}", narrow.macaroon(), books.ledger);
    let secret: [u8; 32] = rusqlite::Connection::open(books.path())
        .unwrap()
        .query_row("SELECT secret FROM l402_token", [], |row| row.get(0))
        .unwrap();
    let secret: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    for hidden in [signature, secret, "01".repeat(32), narrow.macaroon().to_text()] {
        assert!(!shown.contains(&hidden[..16]), "{hidden} in {shown}");
    }
}
