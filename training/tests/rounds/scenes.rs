//! Runs, and what must come of them.

use consortium_protocol::wire::train::{Fate, Outcome, Refusal};

use crate::host::Nature;
use crate::samples::spec;
use crate::world::{BAD, GOOD, Link, World};

const HONEST: Nature = Nature::Worth(0.01);

/// How many seeds a scene is played with.
fn seeds(usual: u64) -> std::ops::Range<u64> {
    let wanted = std::env::var("CONSORTIUM_SEEDS").ok().and_then(|text| text.parse().ok());
    0..wanted.unwrap_or(usual)
}

/// Plays to the end, and checks that all logs are one.
fn play(world: &mut World, end: u64) -> u64 {
    let ended = world.play(end);
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

fn refusals(world: &World, peer: usize) -> Vec<Option<Refusal>> {
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
