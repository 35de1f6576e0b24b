//! What is let in of what others say.

use std::time::{Duration, Instant};

use consortium_protocol::wire::Message as _;
use consortium_protocol::wire::train::{
    Body, Certified, Commit, Entry, Join, NewView, RunId, RunSpec, Seal, StateHash, TrainGossip, TrainMessage, Vote,
};
use consortium_protocol::{Hash, Signed};
use consortium_training::rounds::genesis;
use tokio::sync::mpsc;

use super::kit::{World, id, key};
use crate::swarm::Judgement;
use crate::train::gate::Gate;
use crate::train::{Heard, Roster};

/// Nodes 0 to 2 judge; 3 waits to; 7 is not in the run. The round that goes on is the tenth.
struct Scene {
    run: RunId,
    spec: Signed<RunSpec>,
    gate: Gate,
    heard: mpsc::Receiver<Heard>,
    now: Instant,
}

const ROUND: u64 = 10;

impl Scene {
    fn new(room: usize) -> Self {
        let world = World::new(3, 1, |spec| spec.reserves = vec![id(3)]);
        let mut last = genesis(&world.spec);
        last.round = ROUND - 1;
        let (roster, (inbox, heard)) = (Roster::default(), mpsc::channel(1024));
        roster.name(world.spec.payload(), &last);
        let gate = Gate::new(world.run(), roster, inbox, room);
        Self { run: world.run(), spec: world.spec.clone(), gate, heard, now: Instant::now() }
    }

    fn takes(&self, message: TrainMessage) -> bool {
        self.gate.take(id(9), message, self.now)
    }

    fn state(&self, by: u8, round: u64, what: u64) -> TrainMessage {
        let state = Hash::of(&what.to_le_bytes());
        TrainMessage::State(Signed::sign(&key(by), StateHash { run: self.run, round, state }))
    }

    fn vote(&self, by: u8, round: u64, view: u64) -> TrainMessage {
        let vote = Vote { run: self.run, round, view, record: Hash::of(b"record") };
        TrainMessage::Vote(Signed::sign(&key(by), vote))
    }

    fn entries(&self, round: u64, sealers: &[&[u8]]) -> TrainMessage {
        let mut entries = (round..).zip(sealers).map(|(round, sealers)| self.entry(round, sealers));
        TrainMessage::Entries(Box::new(entries.next().unwrap()), entries.collect())
    }

    fn entry(&self, round: u64, sealers: &[u8]) -> Entry {
        let mut record = genesis(&self.spec);
        record.round = round;
        let seal = Seal { run: self.run, round, view: 0, record: record.id() };
        let seals = sealers.iter().map(|by| Signed::sign(&key(*by), seal)).collect();
        let seals = Certified { run: self.run, round, view: 0, record: record.id(), seals };
        Entry { record, body: Body::default(), seals }
    }
}

#[test]
fn what_is_said_is_about_the_rounds_at_hand() {
    let scene = Scene::new(1 << 20);
    let takes: Vec<u64> = (0..20).filter(|round| scene.takes(scene.vote(0, *round, 0))).collect();
    assert_eq!(takes, [ROUND - 1, ROUND, ROUND + 1]);
    let commit = |round| Commit { run: scene.run, round, commitment: Hash::of(b"it"), base: Hash::of(b"base") };
    let commit = |round| TrainMessage::Commit(Signed::sign(&key(3), commit(round)));
    assert!(scene.takes(commit(ROUND)) && !scene.takes(commit(ROUND + 2)) && !scene.takes(commit(ROUND - 2)));
    // Whoever is behind learns that from what others hold.
    assert!(scene.takes(scene.state(0, 500, 1)) && scene.takes(scene.state(0, ROUND - 1, 1)));
    assert!(!scene.takes(scene.state(0, ROUND - 3, 1)));
}

#[test]
fn the_same_again_counts_when_it_may_have_been_lost() {
    let mut scene = Scene::new(1 << 20);
    let vote = scene.vote(0, ROUND, 0);
    assert!(scene.takes(vote.clone()) && !scene.takes(vote.clone()));
    scene.now += Duration::from_millis(249);
    assert!(!scene.takes(vote.clone()) && scene.takes(scene.vote(0, ROUND, 1)));
    scene.now += Duration::from_millis(1);
    assert!(scene.takes(vote));
}

#[test]
fn one_that_says_much_holds_up_nobody_else() {
    let scene = Scene::new(1 << 20);
    let taken = (0..600).filter(|n| scene.takes(scene.state(0, ROUND, *n))).count();
    assert_eq!(taken, 256);
    assert!(scene.takes(scene.state(1, ROUND, 0)));
    let strangers = (0..200).filter(|n| scene.takes(scene.state(50 + (*n % 100) as u8, ROUND, *n))).count();
    assert_eq!(strangers, 128, "all together");
    assert!(scene.takes(scene.state(2, ROUND, 0)));
    let ask = || TrainMessage::Ask { run: scene.run, round: 3 };
    assert_eq!((0..100).filter(|_| scene.takes(ask())).count(), 32);
    assert!(scene.gate.take(id(8), ask(), scene.now));
}

#[test]
fn gossip_that_counts_is_passed_on_and_a_question_is_none() {
    let scene = Scene::new(1 << 20);
    let judge =
        |message: TrainMessage, again| scene.gate.judge(id(9), &TrainGossip { message, again }.encode(), scene.now);
    assert_eq!(judge(scene.vote(0, ROUND, 0), 0), Judgement::PassOn);
    assert_eq!(judge(scene.vote(0, ROUND, 0), 1), Judgement::Ignore, "its number is not signed");
    assert_eq!(judge(TrainMessage::Ask { run: scene.run, round: 1 }, 0), Judgement::Ignore);
    let other = Vote { run: RunId(Hash::of(b"another")), round: ROUND, view: 0, record: Hash::of(b"record") };
    assert_eq!(judge(TrainMessage::Vote(Signed::sign(&key(0), other)), 0), Judgement::Reject);
    assert_eq!(scene.gate.judge(id(9), b"no message", scene.now), Judgement::Reject);
}

#[test]
fn who_judges_alone_says_what_validators_say() {
    let scene = Scene::new(1 << 20);
    let view = |by| NewView { run: scene.run, round: ROUND, view: by, locked: None };
    let view = |by: u8| TrainMessage::NewView(Signed::sign(&key(by), view(u64::from(by) + 1)));
    for (by, judges) in [(0, true), (3, false), (7, false)] {
        assert_eq!(scene.takes(view(by)), judges, "{by}");
        assert_eq!(scene.takes(scene.vote(by, ROUND, 9)), judges, "{by}");
    }
    let join = Join { run: scene.run, round: ROUND, stays: true, bond: None };
    assert!(scene.takes(TrainMessage::Join(Signed::sign(&key(7), join))), "anyone may come");
    let takes = |round, sealers: &[&[u8]]| scene.takes(scene.entries(round, sealers));
    assert!(takes(ROUND, &[&[0, 1]]));
    assert!(!takes(ROUND, &[&[0, 7]]) && !takes(ROUND, &[&[0, 3]]));
    assert!(!takes(ROUND + 1, &[&[0, 1]]) && !takes(ROUND - 1, &[&[0, 1]]));
    // Of several the one that goes on counts: those before it are here, those after it may be of other validators.
    assert!(takes(ROUND - 1, &[&[0, 1], &[0, 1], &[7]]) && takes(ROUND - 1, &[&[7], &[0, 1]]));
    assert!(!takes(ROUND - 1, &[&[0, 1], &[0, 7]]) && !takes(ROUND + 1, &[&[0, 1], &[0, 1]]));
}

#[test]
fn no_more_bytes_wait_than_there_is_room_for() {
    let one = |scene: &Scene| match scene.state(0, ROUND, 0) {
        TrainMessage::State(said) => said.as_bytes().len(),
        _ => 0,
    };
    let length = one(&Scene::new(0));
    let mut scene = Scene::new(3 * length);
    let taken: Vec<u64> = (0..9).filter(|n| scene.takes(scene.state(0, ROUND, *n))).collect();
    assert_eq!(taken, [0, 1, 2]);
    let read = scene.heard.try_recv().unwrap();
    assert!(!scene.takes(scene.state(0, ROUND, 9)), "it is being dealt with");
    drop(read);
    assert!(scene.takes(scene.state(0, ROUND, 9)) && !scene.takes(scene.state(0, ROUND, 10)));
}
