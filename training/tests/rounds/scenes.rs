//! Runs, and what must come of them.

use consortium_protocol::wire::train::{Entry, Fate, Outcome, Refusal, Seal};
use consortium_protocol::{Msat, Signed};
use consortium_training::rounds::{BadEntry, replay};
use rand::Rng;

use crate::host::Nature;
use crate::samples::{key, spec};
use crate::world::{BAD, GOOD, Link, World};

pub(crate) const HONEST: Nature = Nature::Worth(0.01);

/// How many seeds a scene is played with.
pub(crate) fn seeds(usual: u64) -> std::ops::Range<u64> {
    let wanted = std::env::var("CONSORTIUM_SEEDS").ok().and_then(|text| text.parse().ok());
    0..wanted.unwrap_or(usual)
}

/// Plays to the end, and checks that all logs are one.
pub(crate) fn play(world: &mut World, end: u64) -> u64 {
    let ended = world.play(end);
    assert_eq!(world.split, None, "seed {}: two certain records of a round", world.seed);
    let ended = ended.unwrap_or_else(|| panic!("seed {}: no end\n{}", world.seed, world.describe()));
    let running: Vec<usize> = (0..world.hosts.len()).filter(|host| world.hosts[*host].machine.is_some()).collect();
    let logs: Vec<_> = running.iter().map(|host| world.log(*host)).collect();
    for log in &logs {
        assert!(log.iter().map(|e| e.record.id()).eq(logs[0].iter().map(|e| e.record.id())), "seed {}", world.seed);
    }
    ended
}

fn outcomes(world: &World, peer: usize) -> Vec<Outcome> {
    let of = |outcome: &&Outcome| outcome.peer == World::peer(peer);
    let log = world.log(0);
    log.iter().flat_map(|entry| entry.record.outcomes.iter().filter(of)).cloned().collect()
}

pub(crate) fn refusals(world: &World, peer: usize) -> Vec<Option<Refusal>> {
    let why = |outcome: Outcome| match outcome.fate {
        Fate::Accepted { .. } => None,
        Fate::Refused(refusal) => Some(refusal),
    };
    outcomes(world, peer).into_iter().map(why).collect()
}

#[test]
fn honest_peers_are_accepted_in_every_round_and_paid() {
    let mut world = World::honest(1, 3, 2, &[HONEST; 4], 6);
    world.encodes = true;
    play(&mut world, 60_000);
    for peer in 0..4 {
        assert_eq!(refusals(&world, peer), [None; 6]);
    }
    let log = world.log(0);
    assert_eq!(log.len(), 7, "an opening round and six of training");
    assert!(log.iter().all(|entry| entry.record.validators.iter().all(|v| v.silent == 0 && v.strayed == 0)));
}

#[test]
fn each_character_is_refused_for_what_it_does_and_comes_out_with_less_than_it_began_with() {
    let characters = [
        (HONEST, None, 1),
        (HONEST, None, 1),
        (Nature::Echo, Some(Refusal::Withheld), -1),
        (Nature::Worth(-0.01), Some(Refusal::Harm), -1),
        (Nature::Worth(1e-5), Some(Refusal::BelowMargin), -1),
        (Nature::Copycat, Some(Refusal::Copy), -1),
        (Nature::TwoFaced, Some(Refusal::Equivocated), -1),
        (Nature::Silent, Some(Refusal::Withheld), -1),
    ];
    let natures: Vec<Nature> = characters.iter().map(|(nature, ..)| *nature).collect();
    let mut world = World::honest(2, 3, 2, &natures, 12);
    play(&mut world, 90_000);
    let replayed = replay(world.spec.clone(), &world.log(0)).unwrap();
    for (peer, (nature, expected, sign)) in characters.iter().enumerate() {
        let found = refusals(&world, peer);
        assert!(found.len() >= 3, "{nature:?} took part: {found:?}");
        assert!(found.iter().all(|found| found == expected), "{nature:?}: {found:?}");
        assert_eq!(replayed.balances[&World::peer(peer)].signum(), *sign, "{nature:?}");
        assert_eq!(replayed.paid.contains_key(&World::peer(peer)), *sign > 0, "{nature:?}");
    }
    let owed: u64 = world.owed.values().sum();
    assert_eq!(owed, replayed.paid.values().map(|paid| paid.0).sum::<u64>(), "what is owed is what the log says");
    assert!(world.owed.values().all(|amount| amount % 10_000 == 0), "whole units");
}

#[test]
fn who_is_late_is_let_go_and_its_rows_go_to_the_others() {
    let mut world = World::honest(3, 3, 2, &[HONEST, Nature::Late], 8);
    play(&mut world, 60_000);
    let late = refusals(&world, 1);
    assert!(!late.is_empty() && late.iter().all(|why| matches!(why, Some(Refusal::Late | Refusal::Missing))));
    let log = world.log(0);
    let after = log.iter().position(|entry| entry.record.outcomes.len() == 2).unwrap() + 1;
    assert_eq!(log[after].record.outcomes.len(), 1, "alone in the next round");
    assert_eq!(log.iter().flat_map(|e| &e.record.outcomes).map(|o| o.fee.0).sum::<u64>(), 0, "no work, no fee");
    let took_part = |entry: &&Entry| entry.record.outcomes.len() == 2;
    let rounds: Vec<u64> = log.iter().filter(took_part).map(|entry| entry.record.round).collect();
    assert!(rounds.len() > 1 && rounds.windows(2).all(|pair| pair[1] - pair[0] > 3), "it sits out: {rounds:?}");
}

#[test]
fn who_holds_a_seat_and_delivers_nothing_does_not_use_up_the_run() {
    let mut world = World::honest(12, 3, 2, &[Nature::Late, HONEST], 3);
    world.crash_at(1_060, 4);
    world.start_at(20_000, 4);
    play(&mut world, 120_000);
    let log = world.log(0);
    let alone = log.iter().filter(|e| e.record.outcomes.iter().all(|o| o.peer == World::peer(0)));
    assert!(alone.filter(|e| !e.record.outcomes.is_empty()).count() > 1, "it held the only seat that was taken");
    let accepted = refusals(&world, 1).into_iter().filter(Option::is_none).count();
    assert_eq!(accepted, 3, "all rounds that count are of who trained");
}

#[test]
fn a_peer_that_crashes_comes_back_and_one_that_comes_later_catches_up() {
    for seed in seeds(20) {
        let mut world = World::honest(seed, 3, 2, &[HONEST; 4], 14);
        world.crash_at(0, 5);
        world.start_at(6_000, 5);
        let at = world.random().random_range(2_500..5_000);
        world.crash_at(at, 3);
        world.start_at(at + 2_000, 3);
        world.crash_at(at + 500, 4);
        world.start_at(at + 600, 4);
        play(&mut world, 90_000);
        assert_eq!(refusals(&world, 3).len(), 14, "seed {seed}: the one that stayed");
        for peer in [0, 1, 2] {
            let came = refusals(&world, peer);
            assert!(came.contains(&None), "seed {seed}: peer {peer} took part again: {came:?}");
            assert!(!came.contains(&Some(Refusal::Equivocated)), "seed {seed}: a restart says nothing else");
        }
    }
}

#[test]
fn one_that_fetches_for_longer_than_a_round_catches_up() {
    let mut world = World::honest(10, 3, 2, &[HONEST; 3], 12);
    world.crash_at(0, 5);
    world.hosts[5].held = None;
    // A round takes 1.1 seconds here at the most: all are in time.
    world.hosts[5].fetches_for = (1_150, 1_250);
    world.start_at(5_000, 5);
    play(&mut world, 60_000);
    let log = world.log(3);
    let lengths = log.windows(2).map(|pair| pair[1].record.at_ms - pair[0].record.at_ms);
    assert!(lengths.max().unwrap() < 1_150, "what takes longer than a round");
    assert!(refusals(&world, 2).contains(&None), "it trained: {:?}", refusals(&world, 2));
}

#[test]
fn parameters_that_differ_in_a_bit_are_fetched_again() {
    let mut world = World::honest(4, 3, 2, &[HONEST; 3], 5);
    world.hosts[4].slips_at = Some(3);
    world.hosts[1].slips_at = Some(4);
    play(&mut world, 60_000);
    assert!(world.hosts[4].resyncs > 0 && world.hosts[1].resyncs > 0);
    assert!(world.hosts[3].resyncs == 0 && world.hosts[0].resyncs == 0);
    assert_eq!(*refusals(&world, 1).last().unwrap(), None, "and it went on");
}

#[test]
fn an_aggregate_that_harms_is_taken_back_and_costs_nobody() {
    let mut world = World::honest(5, 3, 2, &[HONEST; 3], 6);
    world.harmful.insert(3);
    play(&mut world, 60_000);
    let log = world.log(0);
    let record = |round: u64| &log[usize::try_from(round).unwrap() - 1].record;
    assert!(record(4).reverts && !record(5).reverts);
    assert!(record(4).outcomes.iter().all(|o| o.fate == Fate::Refused(Refusal::Reverted)));
    assert!(record(4).outcomes.iter().all(|o| (o.pay.0, o.fee.0) == (0, 0)));
    assert_eq!(record(5).base, record(3).base, "the parameters before the harm");
    assert!(record(5).accepted().count() == 3);
}

#[test]
fn validators_that_vanish_are_replaced_and_the_run_goes_on() {
    for seed in seeds(10) {
        let natures = [[Nature::Honest; 3].as_slice(), &[HONEST; 2], &[Nature::Candidate; 2]].concat();
        let mut world = World::new(seed, spec(3, 2, 0, 14), &natures);
        world.crash_at(4_000, 1);
        // The second goes when the first has been replaced: a third of what judged at the start is left.
        world.crash_at(22_000, 2);
        play(&mut world, 200_000);
        let log = world.log(0);
        let last = &log.last().unwrap().record;
        let ids: Vec<_> = last.validators.iter().map(|v| v.id).collect();
        assert!(!ids.contains(&world.hosts[1].id()), "seed {seed}: {}", world.describe());
        assert!(ids.contains(&World::peer(2)) || ids.contains(&World::peer(3)), "seed {seed}");
        assert!(ids.contains(&world.hosts[0].id()));
    }
}

#[test]
fn withheld_nonces_are_seen_and_cost_the_place() {
    let natures = [[Nature::Honest; 2].as_slice(), &[Nature::Withholder], &[HONEST; 2], &[Nature::Candidate]].concat();
    let mut spec = spec(3, 2, 0, 8);
    spec.replace_after = 2;
    let mut world = World::new(6, spec, &natures);
    play(&mut world, 60_000);
    let log = world.log(0);
    let withholder = world.hosts[2].id();
    let gone = log.iter().position(|entry| entry.record.validator(withholder).is_none()).unwrap();
    let before = &log[gone - 1].record;
    assert_eq!(before.validator(withholder).unwrap().silent, 1, "and once more makes two");
    let others = log[gone].body.cards.iter().filter(|card| card.signer() != withholder);
    assert!(others.into_iter().all(|card| !card.payload().drawn_with.contains(&withholder)));
    assert!(log.last().unwrap().record.validator(World::peer(2)).is_some(), "the candidate has its place");
}

#[test]
fn a_validator_that_lies_about_losses_does_not_move_the_medians_and_is_seen() {
    for seed in seeds(10) {
        let natures = [[Nature::Honest; 3].as_slice(), &[Nature::Liar], &[HONEST, Nature::Worth(-0.01)]].concat();
        let mut world = World::new(seed, spec(4, 3, 0, 4), &natures);
        play(&mut world, 120_000);
        assert!(refusals(&world, 0).iter().all(Option::is_none), "seed {seed}");
        assert!(refusals(&world, 1).iter().all(|why| *why == Some(Refusal::Harm)), "seed {seed}");
        let replayed = replay(world.spec.clone(), &world.log(0)).unwrap();
        for (place, host) in world.hosts[..4].iter().enumerate() {
            assert_eq!(replayed.strayed[&host.id()] > 0, place == 3, "seed {seed}: the liar and nobody else");
        }
    }
}

/// Crashes and restarts `hosts` while the network misbehaves; then all is quiet.
pub(crate) fn storm(world: &mut World, hosts: std::ops::Range<usize>, until: u64) {
    for (at, link) in [(1_500, BAD), (until, GOOD)] {
        world.weather_at(at, link);
    }
    let count = world.random().random_range(0..8);
    for _ in 0..count {
        let host = world.random().random_range(hosts.clone());
        let at = world.random().random_range(1_500..until - 100);
        let back = world.random().random_range(at + 1..until);
        world.crash_at(at, host);
        world.start_at(back, host);
    }
    for host in hosts {
        world.start_at(until, host);
    }
}

#[test]
fn crashes_delays_and_losses_never_make_two_records_of_a_round_and_the_run_ends() {
    for seed in seeds(60) {
        let mut world = World::honest(seed, 3, 2, &[HONEST; 2], 3);
        storm(&mut world, 0..5, 15_000);
        play(&mut world, 300_000);
    }
}

#[test]
fn three_of_four_bear_a_lying_lead_on_any_network() {
    for seed in seeds(60) {
        let natures = [[Nature::Honest; 3].as_slice(), &[Nature::Liar], &[HONEST; 2]].concat();
        let mut world = World::new(seed, spec(4, 3, 0, 3), &natures);
        // One of the honest may crash at a time, but then the quorum needs the liar.
        storm(&mut world, 0..3, 15_000);
        play(&mut world, 300_000);
    }
}

#[test]
fn five_of_seven_bear_two_liars_and_three_of_five_that_two_are_gone() {
    for seed in seeds(8) {
        let natures = [[Nature::Honest; 5].as_slice(), &[Nature::Liar; 2], &[HONEST; 2]].concat();
        let mut world = World::new(seed, spec(7, 5, 0, 2), &natures);
        storm(&mut world, 0..5, 12_000);
        play(&mut world, 300_000);
        let mut world = World::honest(seed, 5, 3, &[HONEST; 2], 3);
        let at = world.random().random_range(1_000..6_000);
        world.crash_at(at, 0);
        world.crash_at(at + 700, 1);
        assert!(world.play(100_000).is_some(), "seed {seed}: {}", world.describe());
        assert_eq!(world.split, None);
    }
}

#[test]
fn there_are_no_more_peers_than_seats_and_too_few_do_not_train() {
    let mut crowded = spec(3, 2, 0, 3);
    crowded.most_peers = 2;
    let natures = [[Nature::Honest; 3].as_slice(), &[HONEST; 5]].concat();
    let mut world = World::new(8, crowded, &natures);
    play(&mut world, 60_000);
    assert!(world.log(0)[1..].iter().all(|entry| entry.record.outcomes.len() == 2));

    let mut lonely = spec(3, 2, 0, 3);
    lonely.least_peers = 2;
    let mut world = World::new(9, lonely, &[[Nature::Honest; 3].as_slice(), &[HONEST]].concat());
    assert_eq!(world.play(20_000), None, "it waits for a second one");
    let log = world.log(0);
    assert!(log.len() > 3 && log.iter().all(|e| e.record.trained == 0 && e.record.outcomes.is_empty()));
    assert!(log.iter().all(|e| e.record.base == log[0].record.base));
}

#[test]
fn a_bare_majority_bears_a_lying_lead_while_messages_keep_to_delta() {
    for seed in seeds(60) {
        let natures = [[Nature::Honest; 2].as_slice(), &[Nature::Liar], &[HONEST; 2]].concat();
        let mut world = World::new(seed, spec(3, 2, 100, 4), &natures);
        // A tick is 40 ms, which is a part of what a message takes.
        world.weather_at(0, Link { delay: (1, 60), loss: 0.0, duplication: 0.1 });
        play(&mut world, 300_000);
    }
}

#[test]
fn without_waiting_a_bare_majority_can_be_split_by_a_lying_lead() {
    // What the wait is for: and that these worlds would find it out.
    let split = |seed: &u64| {
        let natures = [[Nature::Honest; 2].as_slice(), &[Nature::Liar], &[HONEST; 2]].concat();
        let mut world = World::new(*seed, spec(3, 2, 0, 4), &natures);
        world.weather_at(0, Link { delay: (1, 60), loss: 0.0, duplication: 0.1 });
        world.play(30_000);
        world.split.is_some()
    };
    assert!((0..20).any(|seed| split(&seed)));
}

#[test]
fn an_outsider_that_repeats_and_signs_what_it_hears_changes_nothing() {
    for seed in seeds(5) {
        let natures = [[Nature::Honest; 3].as_slice(), &[HONEST; 2], &[Nature::Meddler]].concat();
        let mut world = World::new(seed, spec(3, 2, 0, 5), &natures);
        play(&mut world, 60_000);
        for peer in [0, 1] {
            assert_eq!(refusals(&world, peer), [None; 5], "seed {seed}");
        }
        let log = world.log(0);
        let outsider = World::peer(2);
        assert!(log.iter().all(|e| e.record.member(outsider).is_none_or(|member| member.earned == Msat::ZERO)));
        assert!(log.iter().all(|e| e.record.validator(outsider).is_none()));
    }
}

#[test]
fn a_lead_cannot_say_that_a_record_is_of_another_time() {
    let day = 24 * 3600 * 1000;
    // Of three, that one is a day ahead, and that all but one are ten days ahead.
    for ahead in [[day, 0, 0], [0, 10 * day, 10 * day]] {
        let mut world = World::honest(11, 3, 2, &[HONEST; 2], 6);
        for (host, ahead) in ahead.into_iter().enumerate() {
            world.hosts[host].clock_ahead = ahead;
        }
        let ended = play(&mut world, 120_000);
        let log = world.log(1);
        let true_for_most = ahead[1]..=ahead[1] + ended;
        assert!(log.iter().all(|entry| true_for_most.contains(&entry.record.at_ms)));
        assert!(log.iter().any(|entry| entry.record.view > 0), "the others do without it");
    }
}

#[test]
fn a_log_that_was_changed_does_not_replay() {
    let mut world = World::honest(7, 3, 2, &[HONEST; 2], 3);
    play(&mut world, 60_000);
    let log = world.log(0);
    let bad = |change: &dyn Fn(&mut Vec<Entry>)| {
        let mut log = log.clone();
        change(&mut log);
        replay(world.spec.clone(), &log).unwrap_err()
    };
    assert_eq!(bad(&|log| drop(log.remove(1))), (2, BadEntry::Order));
    assert!(matches!(bad(&|log| log[2].record.outcomes[0].pay = Msat(1)), (3, BadEntry::Invalid(_))));
    assert!(matches!(bad(&|log| drop(log[2].body.cards.pop())), (3, BadEntry::Invalid(_))));
    assert_eq!(bad(&|log| drop(log[1].seals.seals.drain(1..))), (2, BadEntry::Quorum));
    // Even if the signers agreed to it: pay must follow from the cards, and time goes on.
    let forged = |change: fn(&mut Entry)| {
        bad(&move |log: &mut Vec<Entry>| {
            let entry = &mut log[2];
            change(entry);
            entry.seals.record = entry.record.id();
            let (run, round, view) = (entry.seals.run, entry.seals.round, entry.seals.view);
            let seal = Seal { run, round, view, record: entry.seals.record };
            let mut seals: Vec<_> = (0..3).map(|n| Signed::sign(&key(n), seal)).collect();
            seals.sort_by_key(Signed::signer);
            entry.seals.seals = seals;
        })
    };
    assert_eq!(forged(|entry| entry.record.outcomes[0].pay.0 += 1), (3, BadEntry::Outcome));
    assert_eq!(forged(|entry| entry.record.at_ms = 1_500), (3, BadEntry::Time));
}
