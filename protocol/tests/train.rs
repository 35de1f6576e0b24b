//! Bounds and rules of what is said in a training run.

#![allow(clippy::unwrap_used, clippy::panic)]

mod samples;

use consortium_protocol::envelope::{ENVELOPE_BYTES, Payload, Signed};
use consortium_protocol::wire::Message;
use consortium_protocol::wire::train::{
    Ahead, Candidacy, Entry, Finding, Finite, Loss, LossPair, MAX_ACCOUNTS, MAX_CANDIDATES, MAX_NEXT, MAX_PEERS,
    MAX_VALIDATORS, Measure, PayWay, Proposal, Record, RunId, RunSpec, ScoreCard, TrainMessage, TrainRequest,
    Validator, pledge_subject,
};
use consortium_protocol::{Hash, Invalid, Msat, NodeId, RootKey};
use samples::{key, train};

fn node(n: usize) -> NodeId {
    let mut bytes = [0xee; 32];
    bytes[..8].copy_from_slice(&(n as u64).to_be_bytes());
    NodeId::from_bytes(bytes)
}

/// Keys in ascending order of their names.
fn keys(count: usize) -> Vec<RootKey> {
    let mut keys: Vec<RootKey> = (0..count).map(|n| RootKey::from_seed([u8::try_from(n + 1).unwrap(); 32])).collect();
    keys.sort_by_key(RootKey::node_id);
    keys
}

fn largest_card() -> ScoreCard {
    let pair = LossPair(Loss(999_999_999_999), Loss(999_999_999_998));
    let hash = Hash::of(b"");
    let kind = vec![pair; 4];
    let measure = Measure {
        update: hash,
        assigned: kind.clone(),
        unassigned: kind.clone(),
        held_out: kind.clone(),
        drift: 1_000_000_000_000,
        overlap: 1_000_000,
        copy: true,
        norms: hash,
    };
    ScoreCard {
        round: u64::MAX,
        aggregate: kind,
        drawn_with: (0..MAX_VALIDATORS).map(node).collect(),
        findings: (0..MAX_PEERS).map(|n| (node(n), Finding::Measured(measure.clone()))).collect(),
        ..train::card()
    }
}

fn largest_record() -> Record {
    let mut record = train::record();
    let pair = LossPair(Loss(999_999_999_999), Loss(999_999_999_998));
    let (outcome, member) = (record.outcomes[0].clone(), record.members[0].clone());
    let odd = Finite::new(0.1).unwrap();
    record.outcomes = (0..MAX_PEERS)
        .map(|n| {
            let mut outcome = outcome.clone();
            outcome.peer = node(n);
            outcome.score = Some(odd);
            [&mut outcome.assigned, &mut outcome.unassigned, &mut outcome.held_out]
                .into_iter()
                .for_each(|kind| *kind = vec![pair; 4]);
            (outcome.pay, outcome.fee) = (Msat(u64::MAX), Msat(u64::MAX));
            outcome
        })
        .collect();
    record.members = (0..MAX_ACCOUNTS)
        .map(|n| {
            let mut member = member.clone();
            (member.peer, member.active, member.since) = (node(n), n < MAX_PEERS, u64::MAX);
            (member.mu, member.sigma, member.reliability) = (odd, odd, odd);
            (member.merit, member.merit_variance) = (odd, odd);
            (member.earned, member.fees, member.paid) = (Msat(u64::MAX), Msat(u64::MAX), Msat(u64::MAX));
            member
        })
        .collect();
    record.ahead = record.ahead.map(|ahead| Ahead { peers: (0..MAX_PEERS).map(node).collect(), ..ahead });
    record.payouts = (0..MAX_ACCOUNTS).map(|n| (node(n), 4095)).collect();
    let locks = Some(train::card().locks);
    record.validators =
        (0..MAX_VALIDATORS).map(|n| Validator { id: node(n), silent: u32::MAX, strayed: u32::MAX, locks }).collect();
    record.candidates =
        (0..MAX_CANDIDATES).map(|n| Candidacy { id: node(n), since: u64::MAX, heard: u64::MAX }).collect();
    record
}

#[test]
fn bounds_leave_room_for_the_largest_honest_messages() {
    let fits = |bytes: usize, most: usize, what: &str| assert!(bytes <= most, "{what}: {bytes} of {most}");
    let card = Signed::sign(&key(1), largest_card());
    fits(card.as_bytes().len(), ScoreCard::MAX_BYTES + ENVELOPE_BYTES, "card");
    let read = Signed::<ScoreCard>::decode(card.as_bytes()).unwrap();
    fits(TrainMessage::Card(read).encode().len(), 48 * 1024, "what gossip carries");

    let mut entry = train::entry();
    let (peers, validators) = (keys(MAX_PEERS), keys(MAX_VALIDATORS));
    entry.body.cards = validators.iter().map(|key| Signed::sign(key, largest_card())).collect();
    entry.body.nonces = validators.iter().map(|key| Signed::sign(key, train::eval_nonce())).collect();
    entry.body.reveals = peers.iter().map(|key| Signed::sign(key, train::reveal())).collect();
    entry.body.joins = peers.iter().map(|key| Signed::sign(key, train::join_with_bond())).collect();
    entry.body.candidates = peers[..MAX_CANDIDATES].iter().map(|key| Signed::sign(key, train::candidate())).collect();
    entry.body.commits = peers
        .iter()
        .flat_map(|key| {
            let mut two = [train::commit(), train::commit()];
            two[1].base = Hash::of(b"other");
            let mut two = two.map(|commit| Signed::sign(key, commit));
            two.sort_by_key(Signed::digest);
            two
        })
        .collect();
    entry.record = Record { body: entry.body.digest(), ..largest_record() };
    entry.seals.record = entry.record.id();
    let mut seal = train::seal();
    seal.record = entry.record.id();
    entry.seals.seals = validators.iter().map(|key| Signed::sign(key, seal)).collect();
    entry.seals.view = seal.view;
    let bytes = entry.encode();
    fits(bytes.len(), Entry::MAX_BYTES, "entry");
    assert_eq!(Entry::decode(&bytes).unwrap(), entry);
    let mut proposal = train::proposal();
    (proposal.record, proposal.body, proposal.locked) = (entry.record, entry.body, None);
    let mut vote = train::vote();
    (vote.record, vote.view) = (proposal.record.id(), proposal.view);
    proposal.vote = Signed::sign(&key(2), vote);
    let proposal = Signed::sign(&key(2), proposal);
    fits(proposal.as_bytes().len(), Proposal::MAX_BYTES + ENVELOPE_BYTES, "proposal");
    Signed::<Proposal>::decode(proposal.as_bytes()).unwrap();
}

#[test]
fn a_run_that_makes_no_sense_is_refused() {
    type Change = fn(&mut RunSpec);
    let refused: &[(&str, Change)] = &[
        ("name", |s| s.name.clear()),
        ("validators", |s| s.validators.clear()),
        ("validators", |s| s.validators.swap(0, 1)),
        ("quorum", |s| s.quorum = 1),
        ("quorum", |s| s.quorum = 4),
        ("reserves", |s| s.reserves = vec![s.validators[0]]),
        ("peers", |s| s.least_peers = 0),
        ("peers", |s| s.most_peers = 65),
        ("phases", |s| s.phases.train_ms = 0),
        ("delta_ms", |s| s.phases.delta_ms = s.phases.settle_ms),
        ("batches", |s| s.batches.held_out = 0),
        ("batches", |s| s.batches.assigned = 5),
        ("pay", |s| s.pay.budget = Msat(u64::MAX)),
        ("unit", |s| s.pay.unit = Msat::ZERO),
        ("unit", |s| (s.pay.unit, s.pay.way) = (Msat(354_999), PayWay::Escrow)),
        ("data", |s| s.data.training_rows = u64::MAX),
        ("rounds", |s| s.rounds = 0),
    ];
    assert!(train::spec().check().is_ok());
    for (field, change) in refused {
        let mut spec = train::spec();
        change(&mut spec);
        assert!(matches!(spec.check(), Err(Invalid { field: f, .. }) if f == *field), "{field}: {:?}", spec.check());
    }
}

#[test]
fn a_bond_is_of_a_run_that_escrows_pay_and_that_ends_before_it_goes_back() {
    let spec = train::spec_with_bond();
    assert!(spec.check().is_ok());
    let refused: &[fn(&mut RunSpec)] = &[
        |s| s.pay.way = PayWay::Accounts,
        |s| s.pay.bond = Msat(354_999),
        |s| s.rounds = 1000,
        |s| (s.rounds, s.phases.train_ms) = (1 << 20, 7 * 24 * 3600 * 1000),
    ];
    for change in refused {
        let mut spec = spec.clone();
        change(&mut spec);
        assert!(matches!(spec.check(), Err(Invalid { field: "bond", .. })), "{:?}", spec.check());
    }
    // Without a bond nothing of this matters.
    let long = RunSpec { rounds: 1 << 20, ..train::spec_by_escrow() };
    assert!(long.check().is_ok() && !long.has_bond());
    // A short run takes the usual delta, a longer one more: twice the blocks that are usual in its time, and what is apart.
    let of = |rounds: u64| RunSpec { rounds, ..spec.clone() }.bond_delta();
    let hours = |rounds: u64| spec.bond_blocks(rounds) / 12;
    assert_eq!((of(1), hours(1)), (Some(144), 1));
    let most = (1..1000).rev().find(|rounds| of(*rounds).is_some()).unwrap();
    assert_eq!((hours(most), u64::from(of(most).unwrap())), (67, spec.bond_blocks(most) + 96));
}

#[test]
fn what_bonds_are_about_differs_by_run_and_peer() {
    let other = RunId(Hash::of(b"another"));
    let (one, two) = (key(1).node_id(), key(2).node_id());
    let subjects =
        [(train::run(), one), (train::run(), two), (other, one)].map(|(run, peer)| pledge_subject(run, peer));
    assert!(subjects[0] != subjects[1] && subjects[0] != subjects[2] && subjects[1] != subjects[2]);
}

#[test]
fn an_entry_hangs_together() {
    let refused: &[fn(&mut Entry)] = &[
        |e| e.record.view += 1,
        |e| e.body.cards.clear(),
        |e| e.seals.view += 1,
        |e| e.seals.seals.reverse(),
        |e| e.record.validators.reverse(),
    ];
    assert!(train::entry().check().is_ok());
    for change in refused {
        let mut entry = train::entry();
        change(&mut entry);
        assert!(entry.check().is_err());
    }
}

#[test]
fn losses_are_positive_numbers() {
    for bad in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e-10, 1001.0] {
        assert_eq!(Loss::from_nats(bad), None, "{bad}");
    }
    assert_eq!(Loss::from_nats(2.5), Some(Loss(2_500_000_000)));
    assert_eq!(Finite::new(f64::NAN), None);
    let mut card = train::card();
    card.aggregate[0].0 = Loss(0);
    assert!(card.check().is_err());
}

#[test]
fn entries_are_said_in_the_bytes_that_are_at_hand() {
    for count in [0, 1, 23, 24, MAX_NEXT] {
        let (entry, next) = (train::entry(), vec![train::entry(); count]);
        let bytes: Vec<Vec<u8>> = next.iter().map(Entry::encode).collect();
        let said = TrainRequest::Say(Box::new(TrainMessage::Entries(Box::new(entry.clone()), next)));
        assert_eq!(TrainRequest::say_entries(&entry.encode(), &bytes), said.encode(), "{count}");
    }
}

#[test]
fn entries_that_are_said_together_follow_each_other() {
    let of = |round| {
        let mut entry = train::entry();
        entry.record.round = round;
        entry.seals.round = round;
        entry.seals.record = entry.record.id();
        entry.seals.seals.clear();
        entry
    };
    let said = |rounds: &[u64]| {
        let (first, next) = rounds.split_first().unwrap();
        TrainMessage::Entries(Box::new(of(*first)), next.iter().map(|round| of(*round)).collect()).check()
    };
    let order = Err(Invalid::new("entries", "not one after the other"));
    assert_eq!(said(&[5]), Ok(()));
    assert_eq!(said(&[5, 6, 7]), Ok(()));
    assert_eq!(said(&[5, 6, 8]), order);
    assert_eq!(said(&[5, 5]), order);
    assert_eq!(said(&[5, 4]), order);
    let most: Vec<u64> = (5..=5 + MAX_NEXT as u64 + 1).collect();
    assert_eq!(said(&most[..most.len() - 1]), Ok(()));
    assert_eq!(said(&most), Err(Invalid::new("entries", "too many")));
}
