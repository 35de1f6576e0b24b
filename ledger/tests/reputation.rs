//! Reputation against liars, rings, replays and time.
#![allow(clippy::unwrap_used, clippy::panic)]

mod fixtures;

use std::collections::BTreeMap;

use consortium_ledger::LedgerError;
use consortium_ledger::reputation::evidence::{KEEP_FRAUD_MS, MAX_OWN, MAX_PAIR};
use consortium_ledger::reputation::score::{KEEP_MS, NEWCOMER, SKEW_MS, decay, root};
use consortium_ledger::reputation::{AuditPolicy, Evidence, Finding, Noted, Trust, VerdictPlace, ban, score, trust};
use consortium_protocol::wire::audit::Outcome;
use consortium_protocol::wire::ledger::{Equivocation, EquivocationSeen, Rebuttal, TreeHead};
use consortium_protocol::{Hash, NodeId, Signed};
use fixtures::*;
use proptest::prelude::*;

const HOUR: u64 = 3600 * 1000;
const POLICY: AuditPolicy = AuditPolicy { base: 0.2, newcomer: 10, after_failure_ms: 7 * DAY };

fn hex<const N: usize>(text: &str) -> [u8; N] {
    let bytes: Vec<u8> = (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

#[test]
fn the_formula_in_python_gives_the_same_bits() {
    let mut about: BTreeMap<NodeId, Vec<Evidence>> = BTreeMap::new();
    let (mut now, mut me, mut scores) = (0, node(1), 0);
    for line in include_str!("score_golden.txt").lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[0] {
            "now" => now = words[1].parse().unwrap(),
            "me" => me = NodeId::from_bytes(hex(words[1])),
            "evidence" => {
                let piece = Evidence {
                    digest: Hash::from_bytes(hex(words[1])),
                    subject: NodeId::from_bytes(hex(words[2])),
                    signer: NodeId::from_bytes(hex(words[3])),
                    topic: Hash::from_bytes(hex(words[4])),
                    finding: words[5].parse().unwrap(),
                    at_ms: words[6].parse().unwrap(),
                };
                about.entry(piece.subject).or_default().push(piece);
            }
            _ => {
                let node = NodeId::from_bytes(hex(words[1]));
                let trust = trust(&about, now, &me);
                let score = score(&about[&node], now, &me, &|auditor| trust.of(auditor));
                let bits = |value: f64| format!("{:016x}", value.to_bits());
                assert_eq!((bits(score.value), bits(trust.of(&node))), (words[2].into(), words[3].into()), "{line}");
                assert_eq!(score.ban.until_ms.unwrap_or(0).to_string(), words[4], "{line}");
                scores += 1;
            }
        }
    }
    assert_eq!(scores, 8);
}

fn piece(signer: u8, subject: u8, n: u32, finding: Finding, at_ms: u64) -> Evidence {
    let digest = Hash::of(&[&[signer, subject][..], &n.to_le_bytes(), &at_ms.to_le_bytes()].concat());
    Evidence { digest, subject: node(subject), signer: node(signer), topic: Hash::of(&n.to_le_bytes()), finding, at_ms }
}

fn passes(signer: u8, subject: u8, n: std::ops::Range<u32>) -> impl Iterator<Item = Evidence> {
    n.map(move |n| piece(signer, subject, n, Finding::Pass, NOW - u64::from(n) * HOUR))
}

fn sorted(evidence: impl IntoIterator<Item = Evidence>) -> BTreeMap<NodeId, Vec<Evidence>> {
    let mut about: BTreeMap<NodeId, Vec<Evidence>> = BTreeMap::new();
    for piece in evidence {
        about.entry(piece.subject).or_default().push(piece);
    }
    about
}

/// Score and trust of every subject, in the eyes of node 1.
fn judge(evidence: impl IntoIterator<Item = Evidence>) -> BTreeMap<NodeId, (f64, f64)> {
    let about = sorted(evidence);
    let trust = trust(&about, NOW, &node(1));
    about
        .iter()
        .map(|(node_, about)| (*node_, (score(about, NOW, &node(1), &|a| trust.of(a)).value, trust.of(node_))))
        .collect()
}

/// What node 1 saw of nodes 2 to 13 itself: honest 2 to 9 pass, of the ring 10 was caught cheating, 11 withheld, 12 and
/// 13 were never audited.
fn seen() -> Vec<Evidence> {
    let mut seen: Vec<Evidence> = (2..10).flat_map(|honest| passes(1, honest, 0..12)).collect();
    // Honest nodes audited each other as well.
    seen.extend((2..10).flat_map(|a| (2..10).filter(move |b| *b != a).flat_map(move |b| passes(a, b, 20..23))));
    seen.push(piece(1, 10, 0, Finding::Fraud, NOW - 2 * HOUR));
    seen.push(piece(1, 11, 0, Finding::Withheld, NOW - HOUR));
    seen
}

#[test]
fn a_ring_of_a_third_that_praises_itself_gains_nothing() {
    let before = judge(seen());
    let ring = 10..14_u8;
    let mut praise = Vec::new();
    for a in ring.clone() {
        for b in ring.clone().filter(|b| *b != a) {
            praise.extend(passes(a, b, 100..600));
        }
        // Of oneself, too.
        praise.extend(passes(a, a, 100..600));
        // And against everybody else.
        for honest in 2..10 {
            praise.extend((600..700).map(|n| piece(a, honest, n, Finding::Fraud, NOW)));
            praise.extend((700..800).map(|n| piece(a, honest, n, Finding::FalseWord, NOW)));
        }
    }
    let after = judge(seen().into_iter().chain(praise));
    for member in [10, 11] {
        assert_eq!(after[&node(member)], before[&node(member)], "not a bit for {member}");
    }
    for member in [12, 13] {
        assert_eq!(after[&node(member)], (NEWCOMER, 0.0), "as if nothing had been said of {member}");
    }
    for honest in 2..10 {
        assert_eq!(after[&node(honest)], before[&node(honest)], "not a bit off {honest}");
    }
}

#[test]
fn a_ring_that_first_earned_trust_can_lift_nobody_this_node_has_not_seen_pass() {
    // The ring works honestly for node 1, but for 13, who never does.
    let earned: Vec<Evidence> = (2..13).flat_map(|n| passes(1, n, 0..50)).collect();
    let praise = (10..13).flat_map(|a| passes(a, 13, 100..600));
    let after = judge(earned.iter().copied().chain(praise));
    assert_eq!(after[&node(13)].0, NEWCOMER);
    // Nor hide what 13 did.
    let caught = piece(1, 13, 0, Finding::Withheld, NOW);
    let alone = judge(earned.iter().copied().chain([caught]));
    let praised = judge(earned.iter().copied().chain([caught]).chain((10..13).flat_map(|a| passes(a, 13, 100..600))));
    assert_eq!(praised[&node(13)].0, alone[&node(13)].0);
    // Its accusations hurt, within the bound, and no more for being repeated.
    let accuse =
        |times| (10..13).flat_map(move |a| (0..times).map(move |n| piece(a, 2, 900 + n, Finding::Withheld, NOW)));
    let (few, many) =
        (judge(earned.iter().copied().chain(accuse(5))), judge(earned.iter().copied().chain(accuse(500))));
    assert_eq!(few[&node(2)].0, many[&node(2)].0);
    let smear = (10..13).flat_map(|a| (0..9).map(move |n| piece(a, 20, n, Finding::Withheld, NOW)));
    let smeared = judge(earned.iter().copied().chain(smear))[&node(20)].0;
    assert_eq!(smeared, 1.0 / 6.0, "a newcomer loses no more than the alarm");
    assert!(many[&node(2)].0 > 0.6 && many[&node(2)].0 < alone[&node(2)].0, "{}", many[&node(2)].0);
}

#[test]
fn who_was_caught_vouches_for_nobody() {
    // 2 has a long record, and was caught once, a while ago: its ban is over and its score is fair.
    let caught = piece(1, 2, 500, Finding::Fraud, NOW - 30 * DAY);
    let record = || passes(1, 2, 0..200).chain(passes(2, 3, 0..50)).chain(passes(1, 4, 0..3));
    let (before, after) = (judge(record()), judge(record().chain([caught])));
    assert!(before[&node(3)].1 > 0.1, "trusted at second hand");
    assert!(after[&node(2)].0 > 0.8 && after[&node(2)].1 == 0.0, "{:?}", after[&node(2)]);
    assert_eq!(after[&node(3)].1, 0.0);
    // At second hand one counts, and less than at first.
    assert!(before[&node(3)].1 < before[&node(2)].1 / 2.0);
    assert_eq!(before[&node(4)], after[&node(4)]);
}

#[test]
fn newcomers_start_low_and_earn() {
    let nobody = |_: &NodeId| 0.0;
    let of = |evidence: &[Evidence]| score(evidence, NOW, &node(1), &nobody);
    let newcomer = of(&[]);
    assert_eq!((newcomer.value, newcomer.evidence_root), (NEWCOMER, root([])));
    assert_eq!(POLICY.rate(&newcomer), 1.0);
    let mut last = NEWCOMER;
    for n in 1..30 {
        let now: Vec<Evidence> = passes(1, 2, 0..n).collect();
        let score = of(&now);
        assert!(score.value > last);
        last = score.value;
        assert_eq!(POLICY.rate(&score), if n < 10 { 1.0 } else { 0.2 });
    }
    assert!(last > 0.85, "{last}");
    // A pass from others does not make anybody less audited.
    let praised: Vec<Evidence> = passes(2, 3, 0..30).collect();
    assert_eq!(POLICY.rate(&score(&praised, NOW, &node(1), &|_| 1.0)), 1.0);
    // Failure: audited in full for a week. Withheld lowers much, inconclusive hardly.
    let mut failed: Vec<Evidence> = passes(1, 2, 0..30).collect();
    failed.push(piece(1, 2, 99, Finding::Inconclusive, NOW));
    assert!(of(&failed).value > last - 0.01);
    failed.push(piece(1, 2, 100, Finding::Withheld, NOW));
    assert!(of(&failed).value < last - 0.08);
    assert_eq!(POLICY.rate(&of(&failed)), 1.0);
    let later = score(&failed, NOW + 7 * DAY, &node(1), &nobody);
    assert_eq!(POLICY.rate(&later), 0.2);
    assert_eq!(AuditPolicy { base: f64::NAN, ..POLICY }.rate(&later), 1.0);
}

#[test]
fn evidence_fades() {
    assert_eq!((decay(0), decay(14 * DAY), decay(28 * DAY), decay(7 * DAY)), (1.0, 0.5, 0.25, 0.75));
    assert_eq!((decay(KEEP_MS), decay(u64::MAX)), (0.0, 0.0));
    let nobody = |_: &NodeId| 0.0;
    let evidence: Vec<Evidence> = passes(1, 2, 0..20).collect();
    let at = |now| score(&evidence, now, &node(1), &nobody).value;
    assert!(at(NOW) > at(NOW + 20 * DAY) && at(NOW + 20 * DAY) > at(NOW + 60 * DAY));
    assert_eq!(at(NOW + 91 * DAY), NEWCOMER);
    assert_eq!(at(0), NEWCOMER, "from the future it counts nothing yet");
}

#[test]
fn bans_grow_and_what_is_found_during_one_is_no_repetition() {
    assert_eq!([0, 1, 2, 3, 4, 5].map(ban::period_ms), [1, 24, 168, 720, 1440, 2880].map(|hours| hours * HOUR));
    assert_eq!(ban::period_ms(u32::MAX), 720 * 4096 * HOUR);
    let fraud = |n, at| piece(1, 2, n, Finding::Fraud, at);
    let of = |evidence: &[Evidence], now| score(evidence, now, &node(1), &|_| 1.0);
    let mut evidence: Vec<Evidence> = passes(1, 2, 1000..1400).collect();
    evidence.push(fraud(1, NOW));
    let once = of(&evidence, NOW);
    assert_eq!((once.ban.times, once.ban.until_ms, once.value), (1, Some(NOW + HOUR), 0.0));
    assert!(of(&evidence, NOW + HOUR).value > 0.0);
    evidence.extend((2..9).map(|n| fraud(n, NOW + HOUR - 1)));
    assert_eq!(of(&evidence, NOW + HOUR).ban, once.ban);
    evidence.push(fraud(10, NOW + HOUR));
    assert_eq!(of(&evidence, NOW + HOUR).ban.until_ms, Some(NOW + 25 * HOUR));
    // By the word of others nobody is banned.
    assert_eq!(of(&[piece(3, 2, 1, Finding::Fraud, NOW)], NOW).ban.times, 0);
}

#[test]
fn an_auditor_who_accuses_falsely_pays_for_it() {
    let books = books();
    let ledger = &books.ledger;
    for n in 2..5 {
        ledger.observe(&node(n), true, 1000, NOW).unwrap();
        for job in 0..20 {
            ledger.note_verdict(&verdict(1, n, job, 0, Outcome::Pass, NOW), NOW).unwrap();
        }
    }
    let of = |n| ledger.reputation(&node(n), &POLICY, NOW).unwrap();
    let (accuser, accused) = (of(2), of(3));
    let lie = verdict(2, 3, 77, 0, Outcome::Fraud, NOW);
    assert_eq!(ledger.note_verdict(&lie, NOW).unwrap(), Noted::New);
    assert!(of(3).score < accused.score);
    assert_eq!((of(3).failed_audits, of(3).own_failed_audits, of(3).bans), (1, 0, 0));
    assert!(matches!(
        ledger.rebut(&key(1), cluster(), &verdict(2, 3, 78, 0, Outcome::Withheld, NOW), NOW),
        Err(LedgerError::Refused(_))
    ));
    assert!(matches!(ledger.rebut(&key(2), cluster(), &lie, NOW), Err(LedgerError::NotOwner { .. })));
    let rebuttal = ledger.rebut(&key(1), cluster(), &lie, NOW).unwrap();
    assert_eq!(of(3), accused, "as if nothing had been said");
    assert!(of(2).score < accuser.score - 0.2);
    assert_eq!((of(2).trust, accuser.trust > 0.7), (0.0, true), "not listened to any more");
    assert!(matches!(ledger.note_verdict(&lie, NOW), Err(LedgerError::Refused(_))), "nor said again");
    // Another node takes the rebuttal as far as it trusts its author: here not at all.
    let elsewhere = fixtures::books();
    let other = consortium_ledger::Ledger::open(&elsewhere.dir.path().join("other.db"), node(9)).unwrap();
    assert!(matches!(other.note_rebuttal(&rebuttal, NOW), Err(LedgerError::UnknownNode(_))));
    for n in 1..3 {
        other.observe(&node(n), true, 0, NOW).unwrap();
    }
    assert_eq!(other.note_rebuttal(&rebuttal, NOW).unwrap(), Noted::New);
    assert_eq!(other.note_rebuttal(&rebuttal, NOW).unwrap(), Noted::Known);
    assert_eq!(other.reputation(&node(2), &POLICY, NOW).unwrap().score, NEWCOMER);
    // A word about oneself is none.
    let own = Rebuttal { accuser: node(2), ..*rebuttal.payload() };
    assert!(matches!(other.note_rebuttal(&Signed::sign(&key(2), own), NOW), Err(LedgerError::Refused(_))));
}

#[test]
fn evidence_is_bounded_deduplicated_and_survives() {
    let mut books = books();
    let ledger = &books.ledger;
    let first = verdict(2, 3, 1, 0, Outcome::Pass, NOW);
    assert!(matches!(ledger.note_verdict(&first, NOW), Err(LedgerError::UnknownNode(_))));
    for n in 2..4 {
        ledger.observe(&node(n), true, 1000, NOW).unwrap();
    }
    let refused = |verdict, now| assert!(matches!(ledger.note_verdict(&verdict, now), Err(LedgerError::Refused(_))));
    refused(verdict(3, 3, 1, 0, Outcome::Pass, NOW), NOW);
    refused(verdict(2, 3, 1, 0, Outcome::Pass, NOW + SKEW_MS + 1), NOW);
    refused(verdict(2, 3, 1, 0, Outcome::Pass, u64::MAX), u64::MAX);
    refused(verdict(2, 3, 1, 0, Outcome::Pass, NOW), NOW + KEEP_MS);
    refused(verdict(2, 3, 1, 0, Outcome::Fraud, NOW), NOW + KEEP_MS);
    assert_eq!(ledger.note_verdict(&first, NOW).unwrap(), Noted::New);
    assert_eq!(ledger.note_verdict(&first, NOW).unwrap(), Noted::Known);
    // The latest word on a matter stands, in whatever order they come.
    let second = verdict(2, 3, 1, 0, Outcome::Withheld, NOW + 1);
    assert_eq!(ledger.note_verdict(&second, NOW).unwrap(), Noted::New);
    assert_eq!(ledger.note_verdict(&first, NOW).unwrap(), Noted::Known);
    let page = ledger.evidence(Some(&node(3)), None, 10).unwrap();
    assert_eq!(page.evidence.len(), 1);
    assert_eq!(page.evidence[0].evidence, Evidence::from(&second));
    let one = ledger.evidence_of(&second.digest()).unwrap().unwrap();
    let bytes: Vec<u8> = (0..one.signed.len() / 2).map(|i| hex::<1>(&one.signed[2 * i..2 * i + 2])[0]).collect();
    assert_eq!(bytes, second.as_bytes());
    assert_eq!(ledger.evidence(None, None, 10).unwrap(), page);
    assert!(ledger.evidence(Some(&node(2)), None, 10).unwrap().evidence.is_empty());
    assert_eq!(ledger.evidence_of(&first.digest()).unwrap(), None);
    // A flood displaces itself.
    for n in 0..=250_u8 {
        ledger.note_verdict(&verdict(2, 3, n, 1, Outcome::Pass, NOW + u64::from(n)), NOW).unwrap();
        for stage in 1..4 {
            ledger.note_verdict(&verdict(1, 3, n, stage, Outcome::Pass, NOW + u64::from(n)), NOW).unwrap();
        }
    }
    let view = ledger.reputation(&node(3), &POLICY, NOW).unwrap();
    assert_eq!(view.own_successful_audits, u64::from(MAX_OWN));
    assert_eq!(view.evidence, u64::from(MAX_OWN + MAX_PAIR));
    // Pages together are the whole, and its root is theirs.
    let (mut after, mut digests) = (None, Vec::new());
    loop {
        let page = ledger.evidence(Some(&node(3)), after, 100).unwrap();
        digests.extend(page.evidence.iter().map(|piece| piece.evidence.digest));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!((digests.len() as u64, root(digests)), (view.evidence, view.evidence_root));
    books.reopen();
    assert_eq!(books.ledger.reputation(&node(3), &POLICY, NOW).unwrap(), view);
}

#[test]
fn fraud_that_this_node_verified_is_remembered_longer() {
    let books = books();
    let ledger = &books.ledger;
    for n in 2..4 {
        ledger.observe(&node(n), true, 1000, NOW).unwrap();
    }
    ledger.note_verdict(&verdict(1, 2, 1, 0, Outcome::Fraud, NOW), NOW).unwrap();
    ledger.note_verdict(&verdict(1, 2, 2, 0, Outcome::Pass, NOW), NOW).unwrap();
    ledger.note_verdict(&verdict(3, 2, 3, 0, Outcome::Fraud, NOW), NOW).unwrap();
    let of = |now| ledger.reputation(&node(2), &POLICY, now).unwrap();
    assert_eq!((of(NOW).score, of(NOW).banned_until_ms, of(NOW).audit_rate), (0.0, Some(NOW + HOUR), 1.0));
    assert_eq!(of(NOW).failed_audits, 2);
    assert_eq!(ledger.expire_evidence(NOW + KEEP_MS).unwrap(), 2);
    assert_eq!((of(NOW + KEEP_MS).score, of(NOW + KEEP_MS).bans), (NEWCOMER, 1));
    // The next one is the second.
    let again = NOW + KEEP_MS;
    ledger.note_verdict(&verdict(1, 2, 4, 0, Outcome::Fraud, again), again).unwrap();
    assert_eq!(of(again).banned_until_ms, Some(again + DAY));
    assert_eq!(ledger.expire_evidence(NOW + KEEP_FRAUD_MS).unwrap(), 1);
}

/// Two heads of one size by one node.
fn two_journals(n: u8, size: u64) -> Equivocation {
    let head = |root: &[u8]| Signed::sign(&key(n), TreeHead { size, root: Hash::of(root), at_ms: 5 });
    Equivocation::Roots { a: head(b"to you"), b: head(b"to me") }
}

#[test]
fn who_signs_two_journals_is_shut_out() {
    let books = books();
    let ledger = &books.ledger;
    ledger.observe(&node(2), true, 1000, NOW).unwrap();
    for job in 0..30 {
        ledger.note_verdict(&verdict(1, 2, job, 0, Outcome::Pass, NOW), NOW).unwrap();
    }
    let of = |n, now| ledger.reputation(&node(n), &POLICY, now).unwrap();
    let before = of(2, NOW);
    assert!(matches!(ledger.note_equivocation(&key(2), &two_journals(2, 5), NOW), Err(LedgerError::NotOwner { .. })));
    // The times in the heads are the guilty's own, and long ago: what counts is when it was seen.
    assert_eq!(ledger.note_equivocation(&key(1), &two_journals(2, 5), NOW).unwrap(), node(2));
    let shut = of(2, NOW);
    assert_eq!((shut.score, shut.trust, shut.bans, shut.banned_until_ms), (0.0, 0.0, 1, Some(NOW + HOUR)));
    assert_eq!((shut.failed_audits, shut.evidence), (0, before.evidence + 1), "it failed no audit");
    assert_ne!(shut.evidence_root, before.evidence_root);
    let later = of(2, NOW + 2 * HOUR);
    assert!(later.score > 0.0 && later.score < before.score - 0.2 && later.trust == 0.0, "{}", later.score);
    // The evidence stands by itself: the two signatures are in it.
    let page = ledger.evidence(Some(&node(2)), None, 200).unwrap();
    let view = page.evidence.iter().find(|view| view.evidence.finding == Finding::Equivocation).unwrap();
    let bytes: Vec<u8> = (0..view.signed.len() / 2).map(|i| hex::<1>(&view.signed[2 * i..2 * i + 2])[0]).collect();
    let seen = Signed::<EquivocationSeen>::decode(&bytes).unwrap();
    assert_eq!((seen.signer(), seen.payload().proof.verify().unwrap()), (node(1), node(2)));
    assert_eq!(Evidence::try_from(&seen).unwrap(), view.evidence);
    // Said again, or of what came before, it is the same offence; going on is another.
    let (again, on) = (NOW + 3 * HOUR, NOW + 4 * HOUR);
    for size in [5, 4, 5] {
        ledger.note_equivocation(&key(1), &two_journals(2, size), again).unwrap();
    }
    assert_eq!(of(2, again).bans, 1);
    ledger.note_equivocation(&key(1), &two_journals(2, 6), on).unwrap();
    assert_eq!((of(2, on).bans, of(2, on).banned_until_ms), (2, Some(on + DAY)));
    // Remembered for as long as fraud, and not found anew when it is forgotten.
    ledger.expire_evidence(on + KEEP_MS).unwrap();
    assert_eq!(of(2, on + KEEP_MS).bans, 2);
    ledger.expire_evidence(on + KEEP_FRAUD_MS).unwrap();
    ledger.note_equivocation(&key(1), &two_journals(2, 6), on + KEEP_FRAUD_MS).unwrap();
    assert_eq!(of(2, on + KEEP_FRAUD_MS).bans, 0);
}

#[test]
fn a_stranger_with_two_journals_counts_once_it_is_on_record() {
    let books = books();
    let ledger = &books.ledger;
    ledger.note_equivocation(&key(1), &two_journals(3, 5), NOW).unwrap();
    assert!(ledger.evidence(None, None, 10).unwrap().evidence.is_empty(), "anybody can make up names");
    assert!(ledger.equivocation(&node(3)).unwrap().is_some());
    ledger.observe(&node(3), true, 1000, NOW).unwrap();
    let head = TreeHead { size: 90, root: Hash::of(b"root"), at_ms: NOW };
    ledger.note_head(&key(1), &Signed::sign(&key(3), head), NOW).unwrap();
    assert_eq!(ledger.reputation(&node(3), &POLICY, NOW).unwrap().bans, 1);
}

#[test]
fn pages_of_verdicts_stay_while_others_come_and_go() {
    let books = books();
    let ledger = &books.ledger;
    for n in 2..5 {
        ledger.observe(&node(n), true, 1000, NOW).unwrap();
    }
    for job in 0..20 {
        // Some at the same time.
        let about = 2 + job % 2;
        ledger.note_verdict(&verdict(1, about, job, 0, Outcome::Pass, NOW - u64::from(job / 3)), NOW).unwrap();
    }
    ledger.note_equivocation(&key(1), &two_journals(4, 5), NOW).unwrap();
    let whole = ledger.verdicts(None, None, 200).unwrap();
    assert!(whole.verdicts.len() == 20 && whole.next.is_none(), "verdicts alone");
    let places = |views: &[consortium_ledger::reputation::EvidenceView]| -> Vec<VerdictPlace> {
        let place = |e: &Evidence| VerdictPlace { at_ms: e.at_ms, digest: e.digest };
        views.iter().map(|view| place(&view.evidence)).collect()
    };
    let all = places(&whole.verdicts);
    assert!(all.is_sorted_by(|a, b| a > b));
    let (mut before, mut seen) = (None, Vec::new());
    loop {
        let page = ledger.verdicts(None, before, 3).unwrap();
        seen.extend(places(&page.verdicts));
        before = page.next;
        if before.is_none() {
            break;
        }
        // A new one comes in, and the one that the page ended with goes: it is withdrawn by a later word.
        let job = u8::try_from(100 + seen.len()).unwrap();
        ledger.note_verdict(&verdict(1, 2, job, 0, Outcome::Pass, NOW + 1), NOW).unwrap();
        books.sql(&format!("DELETE FROM evidence WHERE digest = x'{}'", before.unwrap().digest));
        let read: VerdictPlace = before.unwrap().to_string().parse().unwrap();
        assert_eq!(Some(read), before);
    }
    assert_eq!(seen, all);
    let about = ledger.verdicts(Some(&node(3)), None, 200).unwrap();
    assert!(about.verdicts.iter().all(|view| view.evidence.subject == node(3)) && !about.verdicts.is_empty());
    for nonsense in ["", "5", "5-", "-1-00", &format!("x-{}", Hash::of(b"x"))] {
        assert!(nonsense.parse::<VerdictPlace>().is_err(), "{nonsense}");
    }
}

#[test]
fn accusers_are_found_by_their_proof() {
    let books = books();
    let ledger = &books.ledger;
    for n in 2..5 {
        ledger.observe(&node(n), true, 1000, NOW).unwrap();
    }
    for (by, job) in [(4, 1), (1, 1), (1, 2)] {
        ledger.note_verdict(&verdict(by, 2, job, 0, Outcome::Fraud, NOW), NOW).unwrap();
    }
    let mut accusers = vec![node(1), node(4)];
    accusers.sort();
    assert_eq!(ledger.accusers(&Hash::of(b"a proof")).unwrap(), accusers);
    assert!(ledger.accusers(&Hash::of(b"another")).unwrap().is_empty());
}

#[test]
fn local_observations_stay_out_of_the_score() {
    let books = books();
    let ledger = &books.ledger;
    for i in 0..10 {
        ledger.observe(&node(2), i % 5 != 0, 500, NOW + i).unwrap();
    }
    ledger.observe(&node(2), true, DAY, NOW + 10).unwrap();
    ledger.observe_latency(&node(2), 200_000, NOW).unwrap();
    ledger.observe_latency(&node(2), u64::MAX, NOW).unwrap();
    ledger.observe_tokens(&node(2), u64::MAX, NOW).unwrap();
    ledger.observe_tokens(&node(2), 1, NOW).unwrap();
    let record = ledger.node_record(&node(2)).unwrap().unwrap();
    assert_eq!((record.watched_ms, record.up_ms), (5000 + 60_000, 4000 + 60_000), "a gap counts a minute");
    assert_eq!((record.first_seen_ms, record.last_seen_ms), (NOW, NOW + 10));
    let view = ledger.reputation(&node(2), &POLICY, NOW).unwrap();
    assert_eq!(view.score, NEWCOMER);
    assert!(view.local.local_score > 0.0 && view.local.local_score < 1e-2, "slow beyond use");
    let page = ledger.reputations(None, 10, &POLICY, NOW).unwrap();
    let json = serde_json::to_value(&page).unwrap();
    for field in ["peer_id", "failed_audits", "successful_audits", "score", "evidence_root", "banned_until_ms", "local"]
    {
        assert!(json["nodes"][0].get(field).is_some(), "{field}");
    }
    assert_eq!(json["nodes"][0]["score"].as_f64(), Some(0.2));
    assert_eq!(json["nodes"][0]["peer_id"], node(2).to_string());
}

#[test]
fn lists_are_paged() {
    let books = books();
    let members: Vec<(NodeId, bool)> = (2..12).map(|n| (node(n), n % 2 == 0)).collect();
    books.ledger.observe_all(&members, 1000, NOW).unwrap();
    let ratio = |n| books.ledger.node_record(&node(n)).unwrap().unwrap().uptime_ratio();
    assert_eq!((ratio(2), ratio(3)), (1.0, 0.0));
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let page = books.ledger.reputations(after, 3, &POLICY, NOW).unwrap();
        assert!(page.nodes.len() <= 3);
        seen.extend(page.nodes.iter().map(|view| view.peer_id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert!(seen.len() == 10 && seen.is_sorted());
    assert_eq!(books.ledger.reputations(None, 0, &POLICY, NOW).unwrap().nodes.len(), 1);
    assert_eq!(books.ledger.scores(NOW).unwrap().len(), 10);
}

/// SQL that makes up `count` rows.
fn rows(count: u32, insert: &str) -> String {
    // The common table goes between INSERT INTO and its SELECT.
    let (into, select) = insert.split_once(" SELECT ").unwrap();
    format!("{into} WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) SELECT {select}")
}

#[test]
fn a_crowd_of_strangers_displaces_strangers() {
    let books = books();
    let ledger = &books.ledger;
    for n in 2..5 {
        ledger.observe(&node(n), true, 1000, NOW).unwrap();
    }
    let word = verdict(2, 3, 1, 0, Outcome::Pass, NOW);
    ledger.note_verdict(&word, NOW).unwrap();
    ledger.note_verdict(&verdict(1, 3, 1, 0, Outcome::Pass, NOW), NOW).unwrap();
    // A thousand words about node 3, five by each of two hundred signers, and one more.
    books.sql(&rows(
        1023,
        &format!(
            "INSERT INTO evidence SELECT randomblob(32), x'{}', unhex(printf('%064x', i / 5)), randomblob(32), 'fraud',
             {NOW}, x'', NULL FROM n",
            node(3).as_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        ),
    ));
    assert_eq!(ledger.reputation(&node(3), &POLICY, NOW).unwrap().evidence, 1025);
    ledger.note_verdict(&verdict(4, 3, 1, 0, Outcome::Pass, NOW), NOW).unwrap();
    assert_eq!(ledger.reputation(&node(3), &POLICY, NOW).unwrap().evidence, 1025);
    assert!(ledger.evidence_of(&word.digest()).unwrap().is_some(), "who says little is not displaced");
    assert_eq!(ledger.reputation(&node(3), &POLICY, NOW).unwrap().own_successful_audits, 1);
}

#[test]
fn records_of_nodes_are_bounded() {
    let books = books();
    let ledger = &books.ledger;
    ledger.observe(&node(2), true, 1000, 5).unwrap();
    ledger.observe(&node(3), true, 1000, 6).unwrap();
    ledger.note_verdict(&verdict(1, 2, 1, 0, Outcome::Pass, 5), 5).unwrap();
    books.sql(&rows(
        4094,
        &format!("INSERT INTO node_record SELECT unhex(printf('%064x', i)), {NOW}, {NOW}, 0, 0, NULL, 0 FROM n"),
    ));
    ledger.observe(&node(4), true, 1000, NOW).unwrap();
    assert!(ledger.node_record(&node(2)).unwrap().is_some(), "there is evidence about it");
    assert!(ledger.node_record(&node(3)).unwrap().is_none(), "not seen for longest");
    assert!(ledger.node_record(&node(4)).unwrap().is_some());
}

fn any_piece() -> impl Strategy<Value = Evidence> {
    let finding = prop::sample::select(vec![
        Finding::Pass,
        Finding::Inconclusive,
        Finding::Withheld,
        Finding::Fraud,
        Finding::FalseWord,
        Finding::Equivocation,
    ]);
    (1..8_u8, 2..8_u8, 0..6_u32, finding, prop_oneof![0..200 * DAY, Just(u64::MAX)])
        .prop_map(|(signer, subject, n, finding, at)| piece(signer, subject, n, finding, at))
}

proptest! {
    #[test]
    fn scores_depend_on_the_set_of_evidence_alone(
        evidence in prop::collection::vec(any_piece(), 0..60),
        seed: u64,
        now in prop_oneof![0..220 * DAY, Just(u64::MAX)],
    ) {
        // Another order, and some of it twice.
        let mut other = evidence.clone();
        other.extend(evidence.iter().step_by(3));
        other.sort_by_key(|piece| Hash::of(&[&piece.digest.as_bytes()[..], &seed.to_le_bytes()].concat()));
        let (about, other) = (sorted(evidence), sorted(other));
        let trusts = |about: &BTreeMap<NodeId, Vec<Evidence>>| -> Trust { trust(about, now, &node(1)) };
        prop_assert_eq!(trusts(&about), trusts(&other));
        let faith = trusts(&about);
        for (subject, evidence) in &about {
            let one = score(evidence, now, &node(1), &|a| faith.of(a));
            let two = score(&other[subject], now, &node(1), &|a| faith.of(a));
            prop_assert_eq!(one.value.to_bits(), two.value.to_bits());
            prop_assert_eq!((one.evidence_root, one.ban), (two.evidence_root, two.ban));
            prop_assert!((0.0..1.0).contains(&one.value));
            prop_assert!((0.0..=1.0).contains(&faith.of(subject)));
        }
    }

    #[test]
    fn whatever_trust_is_given_scores_are_numbers(
        evidence in prop::collection::vec(any_piece(), 0..30),
        faith in prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(-1.0), any::<f64>()],
    ) {
        for (_, evidence) in sorted(evidence) {
            let value = score(&evidence, NOW, &node(1), &|_| faith).value;
            prop_assert!((0.0..1.0).contains(&value));
        }
    }
}
