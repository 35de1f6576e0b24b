//! Runs whose peers train on while a round is exchanged and judged.

use consortium_protocol::wire::train::{Fate, Refusal};
use rand::Rng;

use crate::host::Nature;
use crate::samples::spec;
use crate::scenes::{HONEST, play, refusals, seeds, storm};
use crate::world::World;

/// Three validators, of which two are enough, and these peers.
fn world(seed: u64, peers: &[Nature], rounds: u64, overlap: bool) -> World {
    let mut spec = spec(3, 2, 0, rounds);
    spec.training.overlap = overlap;
    World::new(seed, spec, &[&[Nature::Honest; 3], peers].concat())
}

#[test]
fn a_round_takes_as_long_as_the_longer_of_training_and_the_rest() {
    let rounds = |overlap| {
        let mut world = world(1, &[HONEST; 4], 12, overlap);
        world.encodes = true;
        play(&mut world, 60_000);
        for peer in 0..4 {
            assert_eq!(refusals(&world, peer), [None; 12], "peer {peer}");
        }
        world.log(0)
    };
    let (waiting, overlapped) = (rounds(false), rounds(true));
    assert_eq!(overlapped.len(), 14, "two rounds before anybody can train, and twelve of training");
    for pair in overlapped.windows(2) {
        let (before, entry) = (&pair[0].record, &pair[1]);
        assert!(entry.body.commits.iter().all(|commit| commit.payload().base == before.base));
        assert!(entry.record.trained <= 1 || entry.record.base != before.base, "measured a step later");
        let ahead = entry.record.ahead.as_ref().unwrap();
        assert!(ahead.peers.iter().copied().eq(before.peers()));
        assert_eq!(entry.record.assignment, before.ahead.as_ref().unwrap().assignment, "it stays as it was drawn");
    }
    // Local steps take 200 to 400 ms here, and the rest of a round about as long: that is saved.
    let time = |log: &[consortium_protocol::wire::train::Entry]| {
        log[log.len() - 1].record.at_ms - log[log.len() - 11].record.at_ms
    };
    assert!(3 * time(&overlapped) < 2 * time(&waiting), "{} {}", time(&overlapped), time(&waiting));
}

#[test]
fn peers_that_crash_come_late_or_leave_take_part_and_never_say_two_things() {
    for seed in seeds(20) {
        let mut world = world(seed, &[HONEST; 4], 20, true);
        world.crash_at(0, 5);
        world.start_at(4_000, 5);
        for host in [3, 4] {
            let at = world.random().random_range(2_000..6_000);
            world.crash_at(at, host);
            let back = world.random().random_range(1..1_500);
            world.start_at(at + back, host);
        }
        play(&mut world, 120_000);
        for peer in 0..4 {
            let came = refusals(&world, peer);
            assert!(came.iter().filter(|why| why.is_none()).count() > 3, "seed {seed}: peer {peer}: {came:?}");
            let wrong = [Some(Refusal::Equivocated), Some(Refusal::WrongState), Some(Refusal::OutOfSync)];
            assert!(!came.iter().any(|why| wrong.contains(why)), "seed {seed}: peer {peer}: {came:?}");
        }
        assert!(refusals(&world, 3).iter().all(Option::is_none), "seed {seed}: the one that stayed");
    }
}

#[test]
fn an_aggregate_that_harms_is_taken_back_and_who_trained_from_it_is_measured_after_it() {
    let mut world = world(5, &[HONEST; 3], 8, true);
    world.harmful.insert(4);
    play(&mut world, 60_000);
    let log = world.log(0);
    let record = |round: u64| &log[usize::try_from(round).unwrap() - 1].record;
    assert!(record(5).reverts && !record(6).reverts);
    assert!(record(5).outcomes.iter().all(|o| o.fate == Fate::Refused(Refusal::Reverted) && o.fee.0 == 0));
    assert_eq!(record(6).base, record(4).base, "the parameters before the harm");
    let trained_from = |round: u64| log[usize::try_from(round).unwrap() - 1].body.commits[0].payload().base;
    assert_eq!(trained_from(6), record(5).base, "while it was not known yet");
    assert_eq!(trained_from(7), record(6).base);
    assert_eq!((record(6).accepted().count(), record(7).accepted().count()), (3, 3));
}

#[test]
fn liars_and_idlers_are_refused_as_ever() {
    let natures =
        [HONEST, HONEST, Nature::Worth(-0.01), Nature::Copycat, Nature::TwoFaced, Nature::Silent, Nature::Late];
    let mut world = world(2, &natures, 14, true);
    play(&mut world, 120_000);
    let why = [Refusal::Harm, Refusal::Copy, Refusal::Equivocated, Refusal::Withheld];
    for (peer, expected) in why.into_iter().enumerate() {
        let found = refusals(&world, peer + 2);
        // Who is let go of while it trains already is missing in the round after.
        let fits = |found: &Option<Refusal>| [Some(expected), Some(Refusal::Missing)].contains(found);
        assert!(found.contains(&Some(expected)) && found.iter().all(fits), "{expected:?}: {found:?}");
    }
    for peer in 0..2 {
        assert!(refusals(&world, peer).iter().all(Option::is_none));
    }
}

#[test]
fn crashes_delays_and_losses_never_make_two_records_of_a_round_and_the_run_ends() {
    for seed in seeds(40) {
        let mut world = world(seed, &[HONEST; 2], 3, true);
        storm(&mut world, 0..5, 15_000);
        play(&mut world, 300_000);
    }
}
