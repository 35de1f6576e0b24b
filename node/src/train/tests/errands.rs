//! Getting files from who may lie.

use std::time::Duration;

use consortium_protocol::Hash;
use consortium_protocol::wire::train::StateFile;
use consortium_training::rounds::{FetchFailure, genesis};

use super::kit::{World, id};
use crate::blobs::Blobs;
use crate::train::errands::{Errands, Wanted};
use crate::train::hub::HubWire;
use crate::train::{Kept, Roster, Shelf};

/// A node that says of these bytes that they are the initial parameters.
async fn says(world: &World, n: u8, content: Vec<u8>) -> (Blobs, Hash) {
    let blobs = Blobs::open(world.path(n).join("blobs"), 1 << 30).unwrap();
    let bytes = content.len() as u64;
    let file = StateFile { state: state(world), file: blobs.put(content).await.unwrap(), bytes };
    let kept = Kept { newest: Some((0, file)), before: None, initial: Some(file) };
    drop(world.hub.enter(world.run(), id(n), blobs.clone(), Shelf::new(kept)).0);
    (blobs, file.file)
}

fn state(world: &World) -> Hash {
    world.spec.payload().model.initial
}

fn errands(world: &World, n: u8) -> Errands<HubWire> {
    let blobs = Blobs::open(world.path(n).join("blobs"), 1 << 30).unwrap();
    let (wire, _inbox) = world.hub.enter(world.run(), id(n), blobs.clone(), Shelf::default());
    let roster = Roster::default();
    roster.name(world.spec.payload(), &genesis(&world.spec));
    Errands::new(wire, blobs, world.task.clone(), roster)
}

#[tokio::test]
async fn parameters_are_had_although_more_strangers_lie_about_their_file_than_validators_tell() {
    let world = World::new(1, 2, |_| ());
    let honest = world.initial.to_bytes().unwrap();
    let mut other = honest.clone();
    *other.last_mut().unwrap() ^= 1;
    let (_judge, name) = says(&world, 0, honest).await;
    let mut liars = Vec::new();
    for n in 10..20 {
        liars.push(says(&world, n, other.clone()).await);
    }
    let errands = errands(&world, 5);
    let got = errands.state(state(&world), &[id(10)]).await.unwrap();
    assert_eq!((got.name, got.is_new), (name, true));

    // Where nobody else has them, the lie is found out, nothing of it stays, and it is not asked for again.
    world.hub.leave(world.run(), id(0));
    errands.drop_new(&got).await;
    for _ in 0..2 {
        assert_eq!(errands.state(state(&world), &[]).await, None);
        assert!(errands.blobs.path(&liars[0].1).is_none());
    }
}

#[tokio::test]
async fn what_is_here_for_another_use_is_not_removed_when_a_peer_calls_it_its_update() {
    let world = World::new(1, 2, |_| ());
    let errands = errands(&world, 5);
    let content = world.initial.to_bytes().unwrap();
    let bytes = content.len() as u64;
    let update = errands.blobs.put(content).await.unwrap();
    for (said, why) in [(bytes, FetchFailure::Malformed), (bytes - 1, FetchFailure::Missing)] {
        let wanted = Wanted { peer: id(9), update, bytes: said };
        assert_eq!(errands.update(wanted, Duration::from_secs(5)).await, Err(why));
        assert!(errands.blobs.path(&update).is_some(), "it stays");
    }
}
