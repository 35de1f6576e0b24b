//! The election in simulated worlds, thousands of seeds. `CONSORTIUM_WORLD_SEEDS=N` plays N seeds of each kind instead.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::atomic::{AtomicU64, Ordering};

use consortium_simnet::world::plan::{Fault, Plan};
use consortium_simnet::world::{Outcome, World};

fn seeds(default: u64) -> u64 {
    std::env::var("CONSORTIUM_WORLD_SEEDS")
        .ok()
        .map_or(default, |text| text.parse().expect("CONSORTIUM_WORLD_SEEDS is a number"))
}

/// Plays the worlds of all seeds on all cores; reports every seed that fails, and returns the longest time to settle.
fn play_all(count: u64, plan: impl Fn(u64) -> Plan + Sync) -> u64 {
    let next = AtomicU64::new(0);
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let work = || {
        let mut slowest = 0;
        let mut failures = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= count {
                return (slowest, failures);
            }
            match World::new(plan(seed)).play() {
                Ok(Outcome { settled_after, .. }) => slowest = slowest.max(settled_after),
                Err(violation) => failures.push(violation.to_string()),
            }
        }
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let failures: Vec<String> = results.iter().flat_map(|(_, failures)| failures.clone()).collect();
    assert!(
        failures.is_empty(),
        "{} of {count} worlds failed:\n{}",
        failures.len(),
        failures.iter().take(10).cloned().collect::<Vec<_>>().join("\n")
    );
    results.iter().map(|(slowest, _)| *slowest).max().unwrap_or(0)
}

#[test]
fn honest_worlds_settle_on_one_master() {
    let slowest = play_all(seeds(1500), Plan::stormy);
    eprintln!("slowest: {slowest} ms");
}

#[test]
fn worlds_with_a_liar_settle_on_one_master() {
    let slowest = play_all(seeds(700), Plan::lying);
    eprintln!("slowest: {slowest} ms");
}

#[test]
fn a_dead_master_is_replaced_within_five_seconds() {
    for seed in 0..200 {
        let hosts = 3 + (seed as usize % 6);
        let mut world = World::new(Plan::calm(seed, hosts));
        world.play_until_agreed(10_000).unwrap().unwrap();
        world.play_until(world.now() + 3000).unwrap();
        let master = world.agreed(true).unwrap();
        world.inject(Fault::Crash(world.index_of(master).unwrap()));
        let crashed = world.now();
        world.play_until(crashed + 1).unwrap();
        let agreed = world.play_until_agreed(crashed + 20_000).unwrap();
        let took = agreed.unwrap_or_else(|| panic!("seed {seed}: {}", world.describe())) - crashed;
        assert!(took < 5000, "seed {seed}: {took} ms");
    }
}

#[test]
fn same_seed_same_world() {
    for seed in 0..20 {
        let first = World::new(Plan::lying(seed)).play().unwrap();
        let second = World::new(Plan::lying(seed)).play().unwrap();
        assert_eq!(first, second);
    }
}
