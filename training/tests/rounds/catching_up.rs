//! What a machine makes of records that it missed.

use std::sync::Arc;

use consortium_protocol::Millis;
use consortium_protocol::wire::train::{Entry, TrainMessage};
use consortium_training::rounds::{Config, Held, Input, Machine, Output, Stored, Wish};

use crate::samples::{id, key};
use crate::scenes::{HONEST, play};
use crate::world::World;

const NOW: Millis = Millis(100_000);

/// The log of a run of one round without training, and six with it.
fn played() -> (World, Vec<Entry>) {
    let mut world = World::honest(1, 3, 2, &[HONEST; 4], 6);
    play(&mut world, 60_000);
    let log = world.log(0);
    (world, log)
}

/// One that was away since the beginning.
fn watcher(world: &World, held: Option<Held>) -> Machine {
    let config = Config { key: Arc::new(key(500)), wish: Wish::Watch, resend: Millis(300), held };
    Machine::new(config, world.spec.clone(), [], NOW).unwrap()
}

fn told(entries: &[Entry]) -> Input {
    let (first, next) = entries.split_first().unwrap();
    let message = TrainMessage::Entries(Box::new(first.clone()), next.to_vec());
    Input::Message { from: id(0), message }
}

/// The rounds that are made durable together, each time.
fn durable(outputs: &[Output]) -> Vec<Vec<u64>> {
    let of = |output: &Output| match output {
        Output::Persist(Stored::Entries(entries)) => Some(entries.iter().map(|entry| entry.record.round).collect()),
        _ => None,
    };
    outputs.iter().filter_map(of).collect()
}

#[test]
fn records_that_come_together_are_made_durable_together_and_owed_for_once() {
    let (world, log) = played();
    let mut machine = watcher(&world, None);
    let mut outputs = machine.handle(told(&log[..3]), NOW);
    assert_eq!(durable(&outputs), [vec![1, 2, 3]]);
    // Some of them are here.
    outputs.extend(machine.handle(told(&log[1..5]), NOW));
    assert_eq!(durable(&outputs), [vec![1, 2, 3], vec![4, 5]]);
    assert!(durable(&machine.handle(told(&log[..5]), NOW)).is_empty());
    // One does not follow.
    let mut bad = log[6].clone();
    bad.record.at_ms += 1;
    outputs.extend(machine.handle(told(&[log[5].clone(), bad]), NOW));
    assert_eq!(durable(&outputs)[2..], [vec![6]]);
    outputs.extend(machine.handle(told(&log[6..]), NOW));
    assert_eq!(durable(&outputs)[3..], [vec![7]]);

    let mut known = 0;
    let mut owed = Vec::new();
    for output in &outputs {
        match output {
            Output::Persist(Stored::Entries(entries)) => known = entries.last().unwrap().record.round,
            Output::Owe { peer, round, units, .. } => {
                assert!(*round <= known, "what is owed by a record that is not durable");
                owed.push((*peer, *round, *units));
            }
            _ => {}
        }
    }
    let payouts =
        |entry: &Entry| entry.record.payouts.iter().map(|(peer, units)| (*peer, entry.record.round, *units)).collect();
    assert_eq!(owed, log.iter().flat_map(|entry| -> Vec<_> { payouts(entry) }).collect::<Vec<_>>());
    assert!(!owed.is_empty());
}

#[test]
fn who_missed_two_records_applies_both_and_fetches_nothing() {
    let (world, log) = played();
    let initial = Held { round: 0, state: log[0].record.base };
    let mut machine = watcher(&world, Some(initial));
    let mut outputs = machine.handle(told(&log[..3]), NOW);
    assert_eq!(durable(&outputs), [vec![1], vec![2], vec![3]]);
    let mut applied = Vec::new();
    while !outputs.is_empty() {
        let inputs: Vec<Input> = outputs
            .iter()
            .filter_map(|output| match output {
                Output::Aggregate { round, .. } => {
                    applied.push(*round);
                    let state = log[usize::try_from(*round).unwrap()].record.base;
                    Some(Input::Applied(Held { round: *round, state }))
                }
                Output::Resync { round, .. } => panic!("fetches the parameters after record {round}"),
                _ => None,
            })
            .collect();
        outputs = inputs.into_iter().flat_map(|input| machine.handle(input, NOW)).collect();
    }
    assert_eq!(applied, [2, 3]);
    assert_eq!(machine.held(), Some(Held { round: 3, state: log[3].record.base }));
}
