//! Runs over libp2p.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use consortium_protocol::cluster::ClusterName;
use consortium_protocol::wire::fact::Fact;
use consortium_protocol::wire::train::{RunId, TrainAnswer, TrainMessage, TrainRequest};
use consortium_protocol::wire::{BLOB, TRAIN};
use consortium_protocol::{Hash, Signed};
use consortium_training::dataset::Files;
use consortium_training::rounds::{Wish, replay};
use consortium_training::run::archive::Archive;
use consortium_training::run::data::file_of;
use consortium_training::run::replay::{Depth, replay as replay_files};
use consortium_training::run::{ModelSize, RunPlan};
use tokio_util::sync::CancellationToken;

use super::kit::{World, id, key, pay, stories_as_lines, tokenizer};
use crate::blobs::Blobs;
use crate::swarm::{self, SwarmConfig, SwarmEvent, SwarmHandle, TransportKind};
use crate::train::net::ask;
use crate::train::view::{Phase, RunStatus};
use crate::train::{RunError, Store, TrainingParts, Trainings};

struct Node {
    n: u8,
    swarm: SwarmHandle,
    runs: Trainings,
    stop: CancellationToken,
    dir: tempfile::TempDir,
}

fn open(n: u8, swarm: &SwarmHandle, dir: &tempfile::TempDir, stop: &CancellationToken) -> Trainings {
    let blobs = Blobs::open(dir.path().join("blobs"), 1 << 30).unwrap();
    let parts = TrainingParts {
        key: key(n),
        data_dir: dir.path().to_owned(),
        blobs,
        swarm: swarm.clone(),
        threads: 1,
        pay: pay(n, dir.path(), stop),
        stop: stop.clone(),
    };
    Trainings::open(parts).unwrap()
}

impl Node {
    async fn start(n: u8, bootstrap: &[&Self]) -> Self {
        let key = key(n);
        let config = SwarmConfig {
            key: &key,
            cluster: "training".parse::<ClusterName>().unwrap().id(),
            listen: vec!["/memory/0".to_owned()],
            bootstrap: bootstrap.iter().map(|node| node.swarm.listening().borrow()[0].clone()).collect(),
            mdns: false,
            transport: TransportKind::Memory,
        };
        let (swarm, mut events, [files, questions]) = swarm::spawn(config, [BLOB, TRAIN]).unwrap();
        swarm.listening().wait_for(|all| !all.is_empty()).await.unwrap();
        let (dir, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let runs = open(n, &swarm, &dir, &stop);
        tokio::spawn(runs.blobs().clone().serve(files, stop.clone()));
        tokio::spawn(runs.clone().serve(questions, stop.clone()));
        let hearing = runs.clone();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if let SwarmEvent::Fact { fact: Fact::Run(spec), .. } = event {
                    hearing.heard(spec);
                }
            }
        });
        Self { n, swarm, runs, stop, dir }
    }

    async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        for _ in 0..1800 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("node {} never came to {what}: {:#?}", self.n, self.runs.list());
    }

    async fn ended(&self, run: RunId) -> RunStatus {
        let over = || self.runs.status(&run).is_some_and(|s| s.phase == Phase::Ended && s.in_sync);
        self.until("the end", over).await;
        self.runs.status(&run).unwrap()
    }

    fn state(&self, run: RunId) -> Hash {
        Store::kept(&self.runs.directory(run).unwrap()).unwrap().held().unwrap().state
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_announced_found_joined_trained_and_exported_over_libp2p() {
    let world = World::new(2, 3, |spec| {
        // Time to find each other.
        spec.least_peers = 2;
        spec.phases.settle_ms = 2000;
    });
    let run = world.run();
    let first = Node::start(0, &[]).await;
    let (second, third) = (Node::start(1, &[&first]).await, Node::start(2, &[&first]).await);
    let fourth = Node::start(3, &[&second]).await;
    let initial = world.initial.to_bytes().unwrap();
    assert!(matches!(
        second.runs.announce(world.spec.clone(), tokenizer().to_vec(), initial.clone(), None).await,
        Err(RunError::Author)
    ));
    assert_eq!(first.runs.announce(world.spec.clone(), tokenizer().to_vec(), initial, None).await.unwrap(), run);
    assert_eq!(first.runs.list().len(), 1);
    for (node, wish) in
        [(&first, Wish::Validate), (&second, Wish::Validate), (&third, Wish::Train), (&fourth, Wish::Train)]
    {
        node.runs.join(run, wish, None).await.unwrap();
    }
    for node in [&first, &second, &third, &fourth] {
        node.ended(run).await;
    }
    let states: BTreeSet<Hash> = [&first, &second, &third, &fourth].iter().map(|node| node.state(run)).collect();
    assert_eq!(states.len(), 1);

    // One that comes late finds it by its name alone, and has the whole log and the same parameters.
    let late = Node::start(4, &[&fourth]).await;
    assert!(matches!(late.runs.leave(run).await, Err(RunError::NotJoined(_))));
    late.runs.join(run, Wish::Watch, None).await.unwrap();
    late.ended(run).await;
    assert!(states.contains(&late.state(run)));
    let target = late.dir.path().join("export");
    let exported = late.runs.export(run, target.clone()).await.unwrap();
    assert!(exported.initial && exported.missing == 0 && exported.updates > 0, "what others have is had: {exported:?}");
    let archive = Archive::open(&target).unwrap();
    let log: Vec<_> = (1..=exported.rounds).map(|round| archive.entry(round).unwrap().unwrap()).collect();
    assert_eq!(replay(world.spec.clone(), &log).unwrap().last.trained, 3);

    let paid = replay(world.spec.clone(), &log).unwrap().paid.values().map(|paid| paid.0).sum::<u64>();
    let owed: u64 = first.runs.payouts(run).await.unwrap().iter().map(|owed| owed.amount.0).sum();
    assert_eq!(owed, paid);

    // What a peer exports has all that a replay of the losses needs.
    let target = third.dir.path().join("export");
    let exported = third.runs.export(run, target.clone()).await.unwrap();
    assert!(exported.initial && exported.missing == 0 && exported.updates > 0, "{exported:?}");
    assert!(Archive::open(&target).unwrap().parameters(&world.task, 0).unwrap().is_some());

    // A node that starts again takes its runs up by itself.
    fourth.runs.stop().await;
    fourth.until("a stop", || fourth.runs.status(&run).is_none()).await;
    let blobs = fourth.runs.blobs();
    let needed = Store::files(&fourth.runs.directory(run).unwrap()).unwrap();
    let here = || needed.iter().filter_map(|file| blobs.path(file)).filter(|path| path.exists()).count();
    let before = here();
    assert!(before >= 3 + 1 + 3, "updates, tokenizer, parameters: {before}");
    // Of rounds that it did not see the end of: one may still be going on.
    let [old, new] = [b"old", b"new"].map(|bytes| blobs.put(bytes.to_vec()));
    let (old, new) = (blobs.path(&old.await.unwrap()).unwrap(), blobs.path(&new.await.unwrap()).unwrap());
    let long_ago = SystemTime::now() - Duration::from_secs(8 * 24 * 3600);
    for path in needed.iter().filter_map(|file| blobs.path(file)).chain([old.clone()]) {
        std::fs::File::options().append(true).open(path).unwrap().set_modified(long_ago).unwrap();
    }
    let again = open(3, &fourth.swarm, &fourth.dir, &fourth.stop);
    tokio::spawn(again.clone().resume());
    fourth.until("its run again", || again.status(&run).is_some_and(|status| status.in_sync)).await;
    assert_eq!((here(), old.exists(), new.exists()), (before, false, true));
    for node in [&first, &second, &third, &fourth, &late] {
        node.stop.cancel();
        node.swarm.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_an_author_brings_goes_to_all_who_join() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("stories.jsonl");
    std::fs::write(&path, stories_as_lines(300)).unwrap();
    let plan = RunPlan {
        data: Files { paths: vec![path], skip_broken: false },
        rounds: 2,
        least_peers: 2,
        most_peers: 4,
        tokens_per_second: Some(1e4),
        latency_ms: 500,
        ..RunPlan::new(ModelSize::Nano, vec![id(0)])
    };
    let made = tokio::task::spawn_blocking(move || plan.prepare(1)).await.unwrap().unwrap();
    let (initial, rows) = (made.initial.to_bytes().unwrap(), made.data.unwrap());
    let (digest, bytes) = file_of(&made.spec).unwrap();
    assert_eq!((digest, bytes), (Hash::of(&rows), rows.len() as u64));
    let spec = Signed::sign(&key(0), made.spec);
    let first = Node::start(0, &[]).await;
    let (second, third) = (Node::start(1, &[&first]).await, Node::start(2, &[&first]).await);
    let announce = |rows| first.runs.announce(spec.clone(), made.tokenizer.clone(), initial.clone(), rows);
    for (other, words) in [(None, "which is not here"), (Some(b"other rows".to_vec()), "which is not that many rows")] {
        let error = announce(other.map(Arc::from)).await.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(first.runs.blobs().length(&spec.payload().tokenizer), None, "nothing is kept of what is refused");
    let run = announce(Some(rows)).await.unwrap();
    for node in [&second, &third] {
        node.runs.join(run, Wish::Train, None).await.unwrap();
        assert_eq!(node.runs.blobs().length(&digest), Some(bytes), "who joins has all of it");
        assert!(Store::files(&node.runs.directory(run).unwrap()).unwrap().contains(&digest), "and keeps it");
    }
    let mut states = BTreeSet::new();
    for node in [&first, &second, &third] {
        node.ended(run).await;
        states.insert(node.state(run));
    }
    assert_eq!(states.len(), 1);
    for damaged in [digest, spec.payload().tokenizer] {
        let path = third.runs.blobs().path(&damaged).unwrap();
        let mut content = std::fs::read(&path).unwrap();
        content[100] ^= 1;
        std::fs::write(&path, content).unwrap();
        third.runs.join(run, Wish::Watch, None).await.unwrap();
        third.runs.join(run, Wish::Train, None).await.unwrap();
        assert_eq!(Hash::of(&std::fs::read(&path).unwrap()), damaged, "what the disk damages is fetched again");
    }
    let target = third.dir.path().join("export");
    let exported = third.runs.export(run, target.clone()).await.unwrap();
    assert!(exported.initial && exported.missing == 0 && exported.updates > 0, "{exported:?}");
    let replayed = tokio::task::spawn_blocking(move || {
        replay_files(&Archive::open(&target).unwrap(), Depth::Losses, &mut |_| {}).unwrap()
    });
    let replayed = replayed.await.unwrap();
    assert!(replayed.holds() && replayed.losses.unwrap().losses > 0);
    for node in [&first, &second, &third] {
        node.stop.cancel();
        node.swarm.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_of_runs_is_answered_within_bounds() {
    let world = World::new(2, 3, |_| ());
    let (first, second) = (Node::start(0, &[]).await, Node::start(1, &[]).await);
    let third = Node::start(2, &[&first, &second]).await;
    let initial = world.initial.to_bytes().unwrap();
    let mut other = initial.clone();
    *other.last_mut().unwrap() ^= 1;
    let announce = |initial: Vec<u8>| first.runs.announce(world.spec.clone(), tokenizer().to_vec(), initial, None);
    assert!(announce(other).await.is_err(), "other parameters than the specification names");
    assert!(announce(Vec::new()).await.is_err());
    let run = announce(initial).await.unwrap();
    let asked = async |request: TrainRequest| {
        for _ in 0..100 {
            if let Some(answer) = ask(&third.swarm, id(0), &request).await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("no answer")
    };
    assert_eq!(asked(TrainRequest::Run(run)).await, TrainAnswer::Run(Box::new(world.spec.clone())));
    assert_eq!(asked(TrainRequest::Run(RunId(Hash::of(b"none")))).await, TrainAnswer::No);
    let initial = world.spec.payload().model.initial;
    let TrainAnswer::File(file) = asked(TrainRequest::State { run, state: initial }).await else { panic!() };
    assert_eq!(file.state, initial);
    assert_eq!(asked(TrainRequest::State { run, state: Hash::of(b"none") }).await, TrainAnswer::No);
    // The author takes part, and in no other run.
    for (run, answer) in [(run, TrainAnswer::Taken), (RunId(Hash::of(b"none")), TrainAnswer::No)] {
        let message = TrainRequest::Say(Box::new(TrainMessage::Ask { run, round: 1 }));
        assert_eq!(asked(message).await, answer);
    }
    // Whoever asks too much is not answered any more.
    assert!(!(0..10_000).all(|_| first.runs.may_ask(id(9))), "whoever asks too much has to wait");
    assert!(first.runs.may_ask(id(8)), "and nobody else");
    for node in [&first, &second, &third] {
        node.stop.cancel();
        node.swarm.shutdown().await;
    }
}
