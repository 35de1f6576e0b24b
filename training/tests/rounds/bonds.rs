//! Runs that want a bond: who comes, who forfeits, and what everyone finds in the log.

use consortium_protocol::wire::escrow::EscrowId;
use consortium_protocol::wire::train::{
    Entry, Finding, Join, PaySchedule, PayWay, Pledged, Refusal, RunId, RunSpec, Seal,
};
use consortium_protocol::{Hash, Msat, NodeId, Signed};
use consortium_training::rounds::bond::{Abuse, Pledges, abuse};
use consortium_training::rounds::{BadEntry, Unfit, outcome, replay};

use crate::host::Nature;
use crate::samples::{key, spec};
use crate::scenes::{HONEST, play};
use crate::world::World;

fn bonded(rounds: u64) -> RunSpec {
    let spec = spec(3, 2, 0, rounds);
    let pay = PaySchedule { way: PayWay::Escrow, unit: Msat(355_000), bond: Msat(5_000_000), ..spec.pay };
    RunSpec { pay, ..spec }
}

/// Three validators and these peers, of whom each has the word of the first validator for an escrow of its own.
fn world(seed: u64, peers: &[Nature], rounds: u64) -> World {
    let natures: Vec<Nature> = [Nature::Honest].repeat(3).into_iter().chain(peers.iter().copied()).collect();
    let mut world = World::new(seed, bonded(rounds), &natures);
    world.words = (0..peers.len()).map(|peer| (3 + peer, (0, u8::try_from(peer).unwrap()))).collect();
    world
}

fn took_part(log: &[Entry], peer: NodeId) -> usize {
    log.iter().filter(|entry| entry.record.outcomes.iter().any(|outcome| outcome.peer == peer)).count()
}

#[test]
fn only_who_has_a_validators_word_for_its_bond_comes() {
    let mut world = world(1, &[HONEST; 4], 5);
    world.encodes = true;
    world.words.remove(&4);
    // An outsider's word is none.
    world.words.insert(5, (50, 2));
    play(&mut world, 60_000);
    let log = world.log(0);
    let rounds = [0, 1, 2, 3].map(|peer| took_part(&log, World::peer(peer)));
    assert_eq!(rounds, [5, 0, 0, 5]);
    let mut pledges = Pledges::default();
    assert!(log.iter().all(|entry| pledges.add(entry).is_empty()), "nothing is forfeited");
    let escrow = |peer| pledges.of(World::peer(peer)).map(|bond| (bond.signer(), bond.payload().escrow));
    let by = key(0).node_id();
    let held = |n| Some((by, EscrowId([n; 16])));
    assert_eq!([0, 1, 2, 3].map(escrow), [held(0), None, None, held(3)]);
}

#[test]
fn two_commitments_forfeit_the_bond_and_put_out_who_made_them() {
    let mut world = world(2, &[HONEST, Nature::TwoFaced, Nature::Silent, Nature::Worth(-0.01)], 6);
    play(&mut world, 90_000);
    let mut pledges = Pledges::default();
    let mut count = 0;
    for entry in world.log(0) {
        for forfeit in pledges.add(&entry) {
            count += 1;
            let word = forfeit.bond.payload();
            assert_eq!((forfeit.abuse, word.peer), (Abuse::Equivocated, World::peer(1)));
            assert_eq!(word.escrow, EscrowId([1; 16]));
            let account = entry.record.member(World::peer(1)).unwrap();
            assert!(!account.active && pledges.of(World::peer(1)).is_none());
        }
    }
    assert!(count > 0, "silence and harm cost no bond, but this does");
    // What it showed before it was put out does not bring it back: each time it takes a word of later.
    let log = world.log(0);
    let joins = log.iter().flat_map(|entry| &entry.body.joins).filter(|join| join.signer() == World::peer(1));
    let words: Vec<u64> = joins.map(|join| join.payload().bond.as_ref().unwrap().payload().round).collect();
    assert!(words.len() >= count && words.windows(2).all(|pair| pair[0] < pair[1]), "{words:?}");
}

/// The body of the second entry, with a join in place of all that are there.
fn with_join(log: &[Entry], join: Signed<Join>) -> Entry {
    let mut entry = log[1].clone();
    entry.body.joins = vec![join];
    entry
}

#[test]
fn validators_together_cannot_let_in_who_has_no_bond_without_everyone_seeing_it() {
    let mut world = world(3, &[HONEST; 2], 3);
    play(&mut world, 60_000);
    let log = world.log(0);
    let (run, before) = (log[0].record.run, &log[0].record);
    let (peer, escrow) = (key(107).node_id(), EscrowId([9; 16]));
    let word = Pledged { run, round: 2, peer, escrow };
    let join = |stays, bond| Signed::sign(&key(107), Join { run, round: 2, stays, bond });
    let by = |n: usize, word| Some(Signed::sign(&key(n), word));
    let follows = |join| {
        let entry = with_join(&log, join);
        outcome(world.spec.payload(), before, &entry.body, 0, 0).map(|record| record.member(peer).is_some())
    };
    assert_eq!(follows(join(true, by(1, word))), Ok(true));
    assert_eq!(follows(join(false, None)), Ok(false), "who goes needs none");
    let refused = [
        join(true, None),
        join(false, by(1, word)),
        join(true, by(5, word)),
        join(true, by(1, Pledged { round: 3, ..word })),
        join(true, by(1, Pledged { peer: World::peer(0), ..word })),
        join(true, by(1, Pledged { run: RunId(Hash::of(b"another")), ..word })),
    ];
    for join in refused {
        assert_eq!(follows(join), Err(Unfit::Join));
    }

    let mut forged = log.clone();
    forged[1] = with_join(&log, join(true, None));
    let entry = &mut forged[1];
    entry.record.body = entry.body.digest();
    let (round, view, record) = (entry.seals.round, entry.seals.view, entry.record.id());
    entry.seals.record = record;
    let mut seals: Vec<_> = (0..3).map(|n| Signed::sign(&key(n), Seal { run, round, view, record })).collect();
    seals.sort_by_key(Signed::signer);
    entry.seals.seals = seals;
    assert_eq!(replay(world.spec.clone(), &forged), Err((2, BadEntry::Unfit(Unfit::Join))));
}

#[test]
fn a_word_is_soon_void_and_one_of_before_a_peer_was_gone_at_once() {
    let mut world = world(4, &[HONEST, Nature::TwoFaced], 6);
    play(&mut world, 90_000);
    let log = world.log(0);
    let run = log[0].record.run;
    // In round `round` the peer of a key joins, with a word of round `told`.
    let follows = |round: usize, n: usize, told: usize| {
        let (told, peer) = (told as u64, key(n).node_id());
        let bond = Signed::sign(&key(0), Pledged { run, round: told, peer, escrow: EscrowId([1; 16]) });
        let join = Join { run, round: round as u64, stays: true, bond: Some(bond) };
        let mut body = log[round - 1].body.clone();
        body.joins = vec![Signed::sign(&key(n), join)];
        outcome(world.spec.payload(), &log[round - 2].record, &body, 0, 0).map(drop)
    };
    assert_eq!([6, 5, 4, 3, 2].map(|told| follows(5, 107, told).is_ok()), [false, true, true, true, false]);
    let is_gone = |entry: &Entry| entry.record.member(World::peer(1)).is_some_and(|member| !member.active);
    let gone = 1 + log.iter().position(is_gone).unwrap();
    // Who is let go sits out two rounds, and comes back by a word of after that.
    let back = gone + 3;
    assert_eq!([0, 1].map(|less| follows(back, 101, back - less).is_ok()), [true, false], "its bond was forfeited");
}

#[test]
fn what_most_cards_call_no_update_is_abuse_and_nothing_less_is() {
    let mut world = world(5, &[HONEST; 2], 2);
    play(&mut world, 60_000);
    let entry = world.log(0).pop().unwrap();
    let peer = World::peer(0);
    let judged = |refusals: &[Refusal]| {
        let mut body = entry.body.clone();
        for (card, refusal) in body.cards.iter_mut().zip(refusals) {
            let mut said = card.payload().clone();
            let place = said.findings.iter().position(|(of, _)| *of == peer).unwrap();
            said.findings[place].1 = Finding::Refused(*refusal);
            *card = Signed::sign(&key(0), said);
        }
        body
    };
    assert_eq!(entry.body.cards.len(), 3);
    let (malformed, withheld) = (Refusal::Malformed, Refusal::Withheld);
    assert_eq!(abuse(&judged(&[malformed; 2]), peer), Some(Abuse::Malformed));
    assert_eq!(abuse(&judged(&[malformed; 2]), World::peer(1)), None);
    for less in [&[malformed][..], &[malformed, withheld, withheld], &[withheld; 3], &[Refusal::NoLoss; 3]] {
        assert_eq!(abuse(&judged(less), peer), None, "{less:?}");
    }
    let mut hidden = judged(&[malformed; 3]);
    hidden.reveals.retain(|reveal| reveal.signer() != peer);
    assert_eq!(abuse(&hidden, peer), None, "it never signed a file");
}
