//! What must come of runs.

use std::collections::BTreeSet;

use consortium_protocol::Msat;
use consortium_training::rounds::{Wish, replay};

use super::kit::{Node, World, id};

async fn all_end(nodes: &[&Node]) {
    for node in nodes {
        node.ended().await;
    }
    let states: BTreeSet<_> = nodes.iter().map(|node| node.state()).collect();
    assert_eq!(states.len(), 1, "all hold the same parameters to the bit");
}

fn accepted(node: &Node) -> usize {
    node.log().iter().map(|entry| entry.record.accepted().count()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn four_nodes_train_a_model_and_all_hold_the_same_bits() {
    let mut world = World::new(2, 4, |_| ());
    let mut nodes = Vec::new();
    for n in 0..4 {
        nodes.push(world.start(n, if n < 2 { Wish::Validate } else { Wish::Train }).await);
    }
    all_end(&nodes.iter().collect::<Vec<_>>()).await;
    let log = nodes[3].log();
    let replayed = replay(world.spec.clone(), &log).unwrap();
    assert_eq!(replayed.last.trained, 4);
    assert!(accepted(&nodes[0]) >= 4, "{:#?}", nodes[0].handle.status());
    let status = nodes[2].handle.status();
    assert!(status.tokens_per_second > 0.0 && status.rounds.len() == log.len());
    let losses: Vec<f64> = status.rounds.iter().filter_map(|line| line.held_out_loss).collect();
    assert!(losses.last() < losses.first(), "{losses:?}");
    // What the author was told to pay is what the log says.
    let mut told = Msat::ZERO;
    while let Ok(owed) = world.owed.try_recv() {
        assert_eq!(owed.author, id(0));
        told = told.checked_add(owed.amount).unwrap();
    }
    let paid = replayed.paid.values().fold(Msat::ZERO, |sum, paid| sum.checked_add(*paid).unwrap());
    assert_eq!(told, paid);
}
