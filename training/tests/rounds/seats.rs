//! Who gets a seat, whose account is kept, and when a run ends.

use std::collections::BTreeSet;

use consortium_protocol::wire::train::{Body, Finite, Join, Locks, MAX_ACCOUNTS, Member, Record, RunSpec, ScoreCard};
use consortium_protocol::{Hash, Msat, NodeId, RootKey, Signed};
use consortium_training::rounds::{genesis, outcome};

use crate::samples::{key, signed, spec};

/// The record that follows from `before` when one validator says that nobody trained, and these say that they join.
fn next(spec: &RunSpec, before: &Record, joining: &[RootKey]) -> Record {
    next_without(spec, before, joining, &[])
}

/// The same; these say that they leave.
fn next_without(spec: &RunSpec, before: &Record, joining: &[RootKey], leaving: &[RootKey]) -> Record {
    let (run, round) = (before.run, before.round + 1);
    let card = ScoreCard {
        run,
        round,
        base: before.base,
        aggregate: Vec::new(),
        drawn_with: Vec::new(),
        findings: Vec::new(),
        opened: None,
        locks: Locks { assignment: Hash::of(b"one"), evaluation: Hash::of(b"other") },
    };
    let say = |stays| move |key: &RootKey| Signed::sign(key, Join { run, round, stays, bond: None });
    let mut joins: Vec<_> = joining.iter().map(say(true)).chain(leaving.iter().map(say(false))).collect();
    joins.sort_by_key(Signed::signer);
    let body = Body { cards: vec![Signed::sign(&key(0), card)], joins, ..Body::default() };
    outcome(spec, before, &body, 0, before.at_ms).unwrap()
}

fn one_judge() -> (RunSpec, Record) {
    let spec = spec(1, 1, 0, 5);
    let before = genesis(&signed(spec.clone()));
    (spec, before)
}

#[test]
fn seats_are_drawn_and_not_taken_by_the_lowest_names() {
    let (mut spec, before) = one_judge();
    spec.most_peers = 2;
    let joining: Vec<RootKey> = (200..220).map(key).collect();
    let mut seated: BTreeSet<Vec<NodeId>> = BTreeSet::new();
    for at_ms in 0..8 {
        // Another record before makes another draw.
        let before = Record { at_ms, ..before.clone() };
        let record = next(&spec, &before, &joining);
        assert_eq!(record, next(&spec, &before, &joining));
        seated.insert(record.peers().collect());
    }
    assert!(seated.iter().all(|peers| peers.len() == 2));
    assert!(seated.len() > 4, "{seated:?}");
}

#[test]
fn a_run_in_which_nobody_trains_ends() {
    let (spec, before) = one_judge();
    let at = |round: u64| next(&spec, &Record { round, ..before.clone() }, &[]).ended;
    assert!(!at(50_000) && at(99_999));
}

/// An account of someone who is not there any more.
fn gone(spec: &RunSpec, n: usize, units: u64) -> Member {
    Member {
        peer: key(n).node_id(),
        active: false,
        since: 0,
        mu: Finite::default(),
        sigma: Finite::default(),
        reliability: Finite::default(),
        merit: Finite::default(),
        merit_variance: Finite::default(),
        earned: Msat(spec.pay.unit.0 * units),
        fees: Msat::ZERO,
        paid: Msat::ZERO,
    }
}

#[test]
fn who_trains_ahead_keeps_its_account_although_it_leaves() {
    let (mut spec, _) = one_judge();
    spec.training.overlap = true;
    let mut before = genesis(&signed(spec.clone()));
    let leaves = key(200).node_id();
    before.members = (301..300 + MAX_ACCOUNTS).map(|n| gone(&spec, n, 5000)).collect();
    before.members.push(Member { active: true, ..gone(&spec, 200, 0) });
    before.members.sort_by_key(|member| member.peer);
    let record = next_without(&spec, &before, &[key(201)], &[key(200)]);
    assert!(record.ahead.iter().all(|ahead| ahead.peers == [leaves]), "it trains for the next round already");
    assert_eq!(record.member(leaves).map(|member| member.active), Some(false));
    assert_eq!((record.members.len(), record.member(key(201).node_id())), (MAX_ACCOUNTS, None));
    let (ahead, validators) = (before.ahead, before.validators);
    let record = next(&spec, &Record { ahead, validators, ..record }, &[key(201)]);
    assert_eq!((record.member(leaves), record.peers().count()), (None, 1), "then it makes room");
}

#[test]
fn an_account_with_something_on_it_is_kept_and_nobody_comes_instead() {
    let (spec, mut before) = one_judge();
    let unit = spec.pay.unit;
    // More than a record pays out at once, which is 4095 units.
    before.members = (300..300 + MAX_ACCOUNTS).map(|n| gone(&spec, n, 5000)).collect();
    before.members.sort_by_key(|member| member.peer);
    let record = next(&spec, &before, &[key(200)]);
    assert!(record.members.iter().map(|m| m.peer).eq(before.members.iter().map(|m| m.peer)));
    // One that is owed nothing makes room.
    let empty = before.members[7].peer;
    before.members[7].earned = Msat(unit.0 - 1);
    let record = next(&spec, &before, &[key(200), key(201)]);
    assert_eq!((record.members.len(), record.member(empty)), (MAX_ACCOUNTS, None));
    assert_eq!(record.peers().count(), 1);
}
