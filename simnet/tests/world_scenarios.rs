//! Single stories, each over a number of seeds.

#![allow(clippy::unwrap_used, clippy::panic)]

use consortium_simnet::world::World;
use consortium_simnet::world::host::Host;
use consortium_simnet::world::plan::{Fault, Plan};

const SEEDS: u64 = 40;

/// Plays until all agree, and a while longer; tells how long it took.
fn settle(world: &mut World, within: u64) -> u64 {
    let start = world.now();
    let agreed = world.play_until_agreed(start + within).unwrap();
    let took = agreed.unwrap_or_else(|| panic!("no master within {within} ms: {}", world.describe())) - start;
    world.play_until(world.now() + 2000).unwrap();
    assert!(world.agreed(true).is_some(), "{}", world.describe());
    took
}

fn inject(world: &mut World, fault: Fault) {
    world.inject(fault);
    world.play_until(world.now() + 1).unwrap();
}

fn master(world: &World) -> usize {
    world.index_of(world.agreed(true).unwrap()).unwrap()
}

#[test]
fn eight_that_start_together_crown_one() {
    for seed in 0..SEEDS {
        let mut world = World::new(Plan::calm(seed, 8));
        settle(&mut world, 6000);
        assert!(world.hosts().iter().all(|host| host.term() == 1), "seed {seed}: {}", world.describe());
    }
}

#[test]
fn a_cluster_grows_under_its_founder() {
    for seed in 0..SEEDS {
        let mut plan = Plan::calm(seed, 8);
        for (place, host) in plan.hosts.iter_mut().enumerate() {
            host.starts_at = 3000 * place as u64;
        }
        let mut world = World::new(plan);
        world.play_until(25_000).unwrap();
        assert_eq!(master(&world), 0, "seed {seed}: the incumbent is sticky: {}", world.describe());
    }
}

#[test]
fn a_loner_with_a_higher_term_comes_into_the_cluster() {
    for seed in 0..SEEDS {
        let mut plan = Plan::calm(seed, 8);
        plan.hosts[7].starts_at = 6000;
        plan.hosts[7].lone_term = Some(5 + seed);
        let mut world = World::new(plan);
        world.play_until(5000).unwrap();
        let before = world.hosts()[0].master().unwrap();
        world.play_until(6000).unwrap();
        settle(&mut world, 8000);
        assert_eq!(world.agreed(true), Some(before), "seed {seed}: the master stays: {}", world.describe());
        assert!(world.hosts().iter().all(|host| host.term() > 5 + seed), "no term goes down");
    }
}

#[test]
fn both_parts_of_a_partition_serve_and_become_one_again() {
    for seed in 0..SEEDS {
        let mut world = World::new(Plan::calm(seed, 8));
        settle(&mut world, 8000);
        let old = master(&world);
        // The master goes with two others.
        let sides: Vec<u8> = (0..8).map(|host| u8::from((host + 8 - old) % 8 < 3)).collect();
        inject(&mut world, Fault::Partition(sides.clone()));
        world.play_until(world.now() + 12_000).unwrap();
        let obeyed = |side: u8| {
            let mut masters: Vec<_> = world
                .hosts()
                .iter()
                .zip(&sides)
                .filter(|(_, on)| **on == side)
                .map(|(host, _)| (host.term(), host.master()))
                .collect();
            masters.dedup();
            masters
        };
        assert_eq!(obeyed(0).len(), 1, "seed {seed}: {}", world.describe());
        assert_eq!(obeyed(1).len(), 1, "seed {seed}: {}", world.describe());
        assert_ne!(obeyed(0), obeyed(1));
        inject(&mut world, Fault::Heal);
        settle(&mut world, 6000);
    }
}

#[test]
fn a_minority_without_the_master_goes_on_alone() {
    for seed in 0..SEEDS {
        let mut world = World::new(Plan::calm(seed, 5));
        settle(&mut world, 8000);
        let old = master(&world);
        let alone = (old + 1) % 5;
        let sides = (0..5).map(|host| u8::from(host == alone)).collect();
        inject(&mut world, Fault::Partition(sides));
        world.play_until(world.now() + 10_000).unwrap();
        let host: &Host = &world.hosts()[alone];
        assert_eq!(host.master(), Some(host.id()), "seed {seed}: {}", world.describe());
        inject(&mut world, Fault::Heal);
        settle(&mut world, 6000);
        assert_eq!(master(&world), old, "seed {seed}: the greater part's master stays: {}", world.describe());
    }
}

#[test]
fn everyone_alone_and_then_together_again() {
    for seed in 0..SEEDS {
        let mut world = World::new(Plan::calm(seed, 8));
        settle(&mut world, 8000);
        inject(&mut world, Fault::Partition((0..8).collect()));
        world.play_until(world.now() + 12_000).unwrap();
        assert!(world.hosts().iter().all(|host| host.master() == Some(host.id())));
        inject(&mut world, Fault::Heal);
        settle(&mut world, 8000);
    }
}

#[test]
fn a_master_that_leaves_is_replaced_while_it_still_runs() {
    for seed in 0..SEEDS {
        let mut world = World::new(Plan::calm(seed, 4));
        settle(&mut world, 8000);
        let old = master(&world);
        let left = world.now();
        inject(&mut world, Fault::StepDown(old));
        while world.agreed(true).is_none_or(|now| world.index_of(now) == Some(old)) {
            world.play_until(world.now() + 50).unwrap();
            assert!(world.now() < left + 3000, "seed {seed}: {}", world.describe());
        }
    }
}

#[test]
fn a_cluster_that_restarts_as_a_whole_keeps_its_term_and_its_master() {
    for seed in 0..SEEDS {
        let mut world = World::new(Plan::calm(seed, 5));
        settle(&mut world, 8000);
        let (old, term) = (master(&world), world.hosts()[0].term());
        for host in 0..5 {
            inject(&mut world, Fault::Crash(host));
        }
        for host in 0..5 {
            inject(&mut world, Fault::Start(host));
        }
        settle(&mut world, 3000);
        assert_eq!((master(&world), world.hosts()[0].term()), (old, term), "seed {seed}");
    }
}

#[test]
fn the_last_of_two_goes_on_alone() {
    for seed in 0..SEEDS {
        let mut world = World::new(Plan::calm(seed, 2));
        settle(&mut world, 8000);
        let crashed = master(&world);
        inject(&mut world, Fault::Crash(crashed));
        // Half of two is no majority: the other has to leave the view first.
        let took = settle(&mut world, 9000);
        assert!(took > 4000, "seed {seed}: {took} ms");
    }
}
