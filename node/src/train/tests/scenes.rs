//! What must come of runs.

use std::collections::BTreeSet;
use std::time::Duration;

use consortium_protocol::Msat;
use consortium_protocol::wire::train::{Entry, Fate, Outcome, Refusal};
use consortium_training::rounds::{Wish, replay};
use consortium_training::run::Submission;
use consortium_training::run::archive::Archive;
use tokio_util::sync::CancellationToken;

use super::kit::{Node, World, id, tokenizer};
use super::liar::{Liar, Lie};
use crate::blobs::Blobs;
use crate::train::pause::{self, Terms};
use crate::train::view::{Phase, RoundLine, RunStatus};
use crate::train::{Store, export};

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
    // Whether a round pays anybody hangs on how its few rows fall; of twelve some do.
    let world = World::new(2, 12, super::pay::well_paid);
    let mut nodes = Vec::new();
    for n in 0..4 {
        nodes.push(world.start(n, if n < 2 { Wish::Validate } else { Wish::Train }).await);
    }
    all_end(&nodes.iter().collect::<Vec<_>>()).await;
    let log = nodes[3].log();
    let replayed = replay(world.spec.clone(), &log).unwrap();
    assert_eq!(replayed.last.trained, 12);
    assert!(accepted(&nodes[0]) >= 8, "{:#?}", nodes[0].handle.status());
    let status = nodes[2].handle.status();
    assert!(status.tokens_per_second > 0.0 && status.rounds.len() == log.len());
    let losses: Vec<f64> = status.rounds.iter().filter_map(|line| line.held_out_loss).collect();
    assert!(losses.last() < losses.first(), "{losses:?}");
    let told = serde_json::to_string(&status).unwrap();
    let read: RunStatus = serde_json::from_str(&told).unwrap();
    assert_eq!((read.summary, read.rounds.len()), (status.summary.clone(), log.len()));
    super::pay::all_is_booked(&world, &nodes, &replayed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_do_not_wait_train_a_model_and_go_on_after_a_kill() {
    let world = World::new(1, 16, |spec| spec.training.overlap = true);
    let judge = world.start(0, Wish::Validate).await;
    let stays = world.start(1, Wish::Train).await;
    let mut back = world.start(2, Wish::Train).await;
    back.round(5).await;
    for pause in [20, 150] {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let log = back.log().len() as u64;
        world.kill(back).await;
        back = world.start(2, Wish::Train).await;
        back.round(log + 2).await;
    }
    all_end(&[&judge, &stays, &back]).await;
    let log = stays.log();
    let fates = |n: u8| {
        let of = move |outcome: &&Outcome| outcome.peer == id(n);
        log.iter()
            .flat_map(|entry| entry.record.outcomes.iter())
            .filter(of)
            .map(|outcome| outcome.fate)
            .collect::<Vec<_>>()
    };
    let trained = |n: u8| fates(n).into_iter().filter(|fate| matches!(fate, Fate::Accepted { .. })).count();
    assert!(trained(1) >= 10 && trained(2) >= 1, "{:?}\n{:?}", fates(1), fates(2));
    let lied = [Refusal::Equivocated, Refusal::WrongState, Refusal::OutOfSync].map(Fate::Refused);
    assert!(!fates(2).iter().any(|fate| lied.contains(fate)), "{:?}", fates(2));
    let from_older = log.windows(2).filter(|pair| pair[1].record.base != pair[0].record.base);
    assert!(
        from_older
            .flat_map(|pair| pair[1].body.commits.iter().map(|c| c.payload().base == pair[0].record.base))
            .all(|older| older)
    );
    assert!(replay(world.spec.clone(), &log).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_killed_goes_on_from_its_disk() {
    let world = World::new(2, 14, |_| ());
    let mut judge = world.start(0, Wish::Validate).await;
    let other = world.start(1, Wish::Validate).await;
    let stays = world.start(2, Wish::Train).await;
    let mut back = world.start(3, Wish::Train).await;
    back.round(2).await;
    let mut log = 0;
    for pause in [0, 60, 170] {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        log = back.log().len();
        world.kill(back).await;
        back = world.start(3, Wish::Train).await;
        assert!(back.log().len() >= log, "the log is still there");
        world.kill(judge).await;
        judge = world.start(0, Wish::Validate).await;
        back.round(log as u64 + 1).await;
    }
    all_end(&[&judge, &other, &stays, &back]).await;
    let came = |entry: &Entry| entry.record.outcomes.iter().any(|outcome| outcome.peer == id(3));
    assert!(stays.log()[log + 1..].iter().any(came), "it took part again");
    let equivocated = |entry: &Entry| {
        let refused = |outcome: &Outcome| outcome.fate == Fate::Refused(Refusal::Equivocated);
        entry.record.outcomes.iter().any(refused)
    };
    assert!(!stays.log().iter().any(equivocated), "and said nothing else than before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_catches_up_although_its_donor_leaves() {
    let world = World::new(2, 8, |_| ());
    let judges = [world.start(0, Wish::Validate).await, world.start(1, Wish::Validate).await];
    let (first, second) = (world.start(2, Wish::Train).await, world.start(3, Wish::Train).await);
    second.round(3).await;
    let newcomer = world.start(4, Wish::Train).await;
    newcomer.round(1).await;
    world.kill(second).await;
    all_end(&[&judges[0], &judges[1], &first, &newcomer]).await;
    let kept = Store::kept(&newcomer.directory).unwrap();
    assert!(kept.newest.is_some());
    let trained = |entry: &Entry| entry.record.accepted().any(|(peer, ..)| peer == id(4));
    assert!(first.log().iter().any(trained), "and it trained");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_run_goes_on_without_one_of_its_validators_and_one_that_volunteers_takes_the_place() {
    let world = World::new(3, 9, |spec| spec.replace_after = 2);
    let judges = [world.start(0, Wish::Validate).await, world.start(1, Wish::Validate).await];
    let gone = world.start(2, Wish::Validate).await;
    let peer = world.start(3, Wish::Train).await;
    let volunteer = world.start(4, Wish::Validate).await;
    gone.round(2).await;
    world.kill(gone).await;
    all_end(&[&judges[0], &judges[1], &peer, &volunteer]).await;
    let last = peer.log().pop().unwrap().record;
    assert!(last.validator(id(2)).is_none() && last.validator(id(4)).is_some(), "{:?}", last.validators);
    assert_eq!(last.trained, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_leaves_is_let_go_at_the_end_of_the_round_and_does_not_come_back() {
    let world = World::new(2, 5, |_| ());
    let judges = [world.start(0, Wish::Validate).await, world.start(1, Wish::Validate).await];
    let (stays, leaves) = (world.start(2, Wish::Train).await, world.start(3, Wish::Train).await);
    leaves.round(2).await;
    leaves.handle.leave().await;
    let mut watch = leaves.handle.watch();
    while watch.changed().await.is_ok() {}
    assert_eq!(Store::wish(&leaves.directory).unwrap(), None);
    all_end(&[&judges[0], &judges[1], &stays]).await;
    let last = stays.log().pop().unwrap().record;
    assert!(!last.peers().any(|peer| peer == id(3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_not_paid_for_its_power_pauses_and_comes_back() {
    let world = World::new(2, 80, super::pay::well_paid);
    let judges = [world.start(0, Wish::Validate).await, world.start(1, Wish::Validate).await];
    let (stays, other) = (world.start(2, Wish::Train).await, world.start(3, Wish::Train).await);
    let terms = Terms { kwh_msat: Msat(1_000_000), milliwatts: Some(1000) };
    let mut thrifty = world.start_useless(4, terms).await;
    thrifty.round((pause::WARM_UP / 2) as u64).await;
    thrifty.round(pause::WARM_UP as u64).await;
    let pauses = |status: &RunStatus| status.pause.is_some_and(|standing| standing.paused);
    let standing = thrifty.until("a pause", pauses).await.pause.unwrap();
    let reason = standing.reason.unwrap();
    assert!(reason.rounds == pause::WINDOW as u64 && reason.pay_msat <= 0 && reason.cost_msat > 0, "{reason:?}");
    // So it does after a restart.
    world.kill(thrifty).await;
    thrifty = world.start_useless(4, terms).await;
    thrifty.round(standing.since + 3).await;
    let now = thrifty.handle.status().pause.unwrap();
    assert_eq!((now.paused, now.since, now.reason), (true, standing.since, standing.reason));
    let back = thrifty.until("its return", |status| !pauses(status)).await.pause.unwrap();
    assert!(back.since >= standing.since + standing.stay && back.reason.unwrap().pay_msat > 0, "{back:?}");
    let took_part = |entry: &Entry| entry.record.outcomes.iter().any(|outcome| outcome.peer == id(4));
    let again = |status: &RunStatus| status.rounds.iter().any(|line| line.round > back.since && has(line, 4));
    let log = {
        let mut round = back.since;
        while !again(&stays.handle.status()) {
            round += 1;
            stays.round(round).await;
        }
        stays.log()
    };
    let between = |entry: &&Entry| (standing.since + 2..=back.since).contains(&entry.record.round);
    let paused: Vec<&Entry> = log.iter().filter(between).collect();
    assert!(paused.len() > 4 && !paused.iter().any(|entry| took_part(entry)), "it takes no part while it pauses");
    assert!(paused.iter().all(|entry| entry.record.accepted().count() > 0), "and the run goes on");
    for node in [&judges[0], &judges[1], &stays, &other, &thrifty] {
        node.handle.stop().await;
    }
}

fn has(line: &RoundLine, peer: u8) -> bool {
    line.peers.iter().any(|line| line.node == id(peer))
}

fn refusals(node: &Node, peer: u8) -> Vec<Refusal> {
    let outcomes = node.log().into_iter().flat_map(|entry| entry.record.outcomes);
    let refused = outcomes.filter(|outcome| outcome.peer == id(peer)).map(|outcome| match outcome.fate {
        Fate::Refused(refusal) => refusal,
        Fate::Accepted { .. } => panic!("a lie was accepted"),
    });
    refused.collect()
}

/// Plays a run with a liar, whose lies it gives as they were refused.
async fn lied(lies: &[Lie]) -> Vec<Refusal> {
    let world = World::new(2, lies.len() as u64 + 2, |_| ());
    let judges = [world.start(0, Wish::Validate).await, world.start(1, Wish::Validate).await];
    let honest = world.start(2, Wish::Train).await;
    let stop = CancellationToken::new();
    let liar = tokio::spawn(Liar::enter(&world, 3, lies.to_vec()).run(stop.clone()));
    all_end(&[&judges[0], &judges[1], &honest]).await;
    stop.cancel();
    liar.await.unwrap();
    let accepted = |entry: &Entry| entry.record.accepted().any(|(peer, ..)| peer == id(2));
    assert!(honest.log().iter().filter(|entry| accepted(entry)).count() >= lies.len(), "the honest one is not held up");
    only_updates_are_exported(&world, &honest, lies).await;
    refusals(&honest, 3)
}

/// Even where a node has every file that was revealed it exports what is an update alone, and as long as was said.
async fn only_updates_are_exported(world: &World, node: &Node, lies: &[Lie]) {
    let theirs = Blobs::open(world.path(3).join("blobs"), 1 << 30).unwrap();
    let reveals: Vec<_> = node.log().into_iter().flat_map(|entry| entry.body.reveals).collect();
    for path in reveals.iter().filter_map(|reveal| theirs.path(&reveal.payload().update)) {
        node.blobs.put(std::fs::read(path).unwrap()).await.unwrap();
    }
    node.blobs.put(tokenizer().to_vec()).await.unwrap();
    let (target, kept) = (world.path(3).join("export"), Store::kept(&node.directory).unwrap());
    let exported = export::write(&world.spec, &node.directory, kept, None, &node.blobs, &target).unwrap();
    let archive = Archive::open(&target).unwrap();
    for reveal in &reveals {
        let said = reveal.payload();
        if let Some(bytes) = archive.blob(said.update, 1 << 30).unwrap() {
            assert_eq!(bytes.len() as u64, said.bytes);
            assert!(Submission::read(&world.task, &bytes).is_ok());
        }
    }
    assert!(exported.updates > 0 && (exported.missing > 0 || !lies.contains(&Lie::Garbage)), "{exported:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_update_of_the_model_is_refused_and_the_run_goes_on() {
    let refused = lied(&[Lie::Garbage, Lie::OtherModel, Lie::Cut, Lie::LongerThanSaid]).await;
    assert!(refused.iter().filter(|why| **why == Refusal::Malformed).count() >= 3, "{refused:?}");
    assert!(refused.contains(&Refusal::Withheld), "what is longer than said is as good as none: {refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_names_a_file_of_others_as_its_update_takes_it_from_nobody() {
    let refused = lied(&[Lie::Parameters; 3]).await;
    assert!(refused.iter().filter(|why| **why == Refusal::Malformed).count() >= 2, "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validator_whose_parameters_the_disk_has_lost_gets_them_from_others_and_judges_on() {
    let world = World::new(2, 6, |_| ());
    let judges = [world.start(0, Wish::Validate).await, world.start(1, Wish::Validate).await];
    let peers = [world.start(2, Wish::Train).await, world.start(3, Wish::Train).await];
    assert_eq!(world.spec.payload().quorum, 2, "no round ends without it");
    let mut damaged = BTreeSet::new();
    while judges[1].handle.status().phase != Phase::Ended {
        let before = Store::kept(&judges[1].directory).unwrap().before.map(|before| before.file);
        let path = before.filter(|file| !damaged.contains(file)).and_then(|file| judges[1].blobs.path(&file));
        // It may be let go of in this moment.
        let done = path.map(|path| match damaged.len() % 2 {
            0 => std::fs::remove_file(path),
            _ => std::fs::write(path, b"what was there is lost"),
        });
        damaged.extend(before.filter(|_| done.is_some_and(|done| done.is_ok())));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(damaged.len() >= 2, "{damaged:?}");
    all_end(&[&judges[0], &judges[1], &peers[0], &peers[1]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_of_no_numbers_and_two_commitments_are_refused() {
    let refused = lied(&[Lie::Undefined, Lie::Both]).await;
    assert!(refused.contains(&Refusal::OutOfSync) && refused.contains(&Refusal::Equivocated), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_long_or_not_there_is_withheld() {
    for lie in [Lie::TooLong, Lie::Nothing] {
        assert!(lied(&[lie]).await.contains(&Refusal::Withheld), "{lie:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_the_node_goes_on_when_there_is_room() {
    let world = World::new(2, 6, |_| ());
    let judges = [world.start(0, Wish::Validate).await, world.start(1, Wish::Validate).await];
    let stays = world.start(2, Wish::Train).await;
    let length = 1 << 20;
    let blobs = Blobs::open(world.path(3).join("blobs"), 2 * length).unwrap();
    let filler = blobs.put(vec![7; length as usize]).await.unwrap();
    drop(blobs);
    let full = world.start_within(3, Wish::Train, length + 10_000).await;
    let said = full.until("a complaint", |status| status.last_error.is_some()).await;
    assert!(said.last_error.unwrap().contains("does not fit"));
    stays.round(3).await;
    full.blobs.remove(filler).await.unwrap();
    all_end(&[&judges[0], &judges[1], &stays, &full]).await;
}
