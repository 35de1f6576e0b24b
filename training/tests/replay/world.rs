//! All nodes of a run in one place: real training, and a network that delivers at once.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use consortium_protocol::wire::train::{Entry, Loss, MAX_NEXT, RunSpec, TrainMessage};
use consortium_protocol::{Hash, Millis, NodeId, RootKey, Signed};
use consortium_training::collective::{Examination, Parameters, Peer, Task};
use consortium_training::rounds::{Config, FetchFailure, Held, Input, Machine, Output, Stored, Wish};
use consortium_training::run::archive::Archive;
use consortium_training::run::{
    ModelSize, Question, RunPlan, Submission, Submitted, examination_of, measure, state_of, step, task_of, train,
};

/// How a validator lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// It makes updates look better than they are.
    Losses,
    /// It says of the updates of the first peer that they are none.
    Malformed,
}

/// A node of the run.
struct Node {
    id: NodeId,
    machine: Machine,
    peer: Peer,
    lie: Option<Lie>,
}

/// What all nodes share: files, and parameters by their hash.
pub(crate) struct World {
    pub(crate) spec: Signed<RunSpec>,
    pub(crate) initial: Parameters,
    task: Arc<Task>,
    examination: Examination,
    tokenizer: Vec<u8>,
    nodes: Vec<Node>,
    files: BTreeMap<Hash, Vec<u8>>,
    states: BTreeMap<Hash, Parameters>,
    log: BTreeMap<u64, Entry>,
    queue: VecDeque<(usize, Input)>,
    now: u64,
}

fn key(n: usize) -> RootKey {
    RootKey::from_seed([u8::try_from(n).unwrap() + 1; 32])
}

impl World {
    /// Plays a whole run of so many rounds with training; `liar` is the number of a validator, and how it lies.
    pub(crate) fn play(validators: usize, peers: usize, rounds: u64, liar: Option<(usize, Lie)>) -> Self {
        Self::play_as((validators, peers), rounds, false, liar)
    }

    /// The same; `overlap` is whether peers train while a round is judged.
    pub(crate) fn play_as(
        (validators, peers): (usize, usize),
        rounds: u64,
        overlap: bool,
        liar: Option<(usize, Lie)>,
    ) -> Self {
        let ids = (0..validators).map(|n| key(n).node_id()).collect();
        let plan = RunPlan { rounds, overlap, tokens_per_second: Some(1e5), ..RunPlan::new(ModelSize::Nano, ids) };
        let made = plan.prepare(1).unwrap();
        let spec = Signed::sign(&key(99), made.spec);
        let task = Arc::new(task_of(spec.payload(), &made.tokenizer, None, 1).unwrap());
        let state = state_of(&made.initial);
        let node = |n: usize| {
            let wish = if n < validators { Wish::Validate } else { Wish::Train };
            let held = Some(Held { round: 0, state });
            let config = Config { key: Arc::new(key(n)), wish, resend: Millis(200), held };
            let machine = Machine::new(config, spec.clone(), [], Millis(0)).unwrap();
            Node {
                id: key(n).node_id(),
                machine,
                peer: Peer::join(task.clone()),
                lie: liar.filter(|liar| liar.0 == n).map(|liar| liar.1),
            }
        };
        let mut world = Self {
            nodes: (0..validators + peers).map(node).collect(),
            examination: examination_of(spec.payload()),
            spec,
            states: BTreeMap::from([(state, made.initial.clone())]),
            initial: made.initial,
            task,
            tokenizer: made.tokenizer,
            files: BTreeMap::new(),
            log: BTreeMap::new(),
            queue: VecDeque::new(),
            now: 0,
        };
        while !world.nodes.iter().all(|node| node.machine.chain().last().ended) {
            world.now += 50;
            assert!(world.now < 3_600_000, "the run does not end");
            (0..world.nodes.len()).for_each(|n| world.queue.push_back((n, Input::Tick)));
            while let Some((n, input)) = world.queue.pop_front() {
                let outputs = world.nodes[n].machine.handle(input, Millis(world.now));
                outputs.into_iter().for_each(|output| world.carry_out(n, output));
            }
        }
        world
    }

    pub(crate) fn validator(&self, n: usize) -> NodeId {
        self.nodes[n].id
    }

    /// The peer after the validators.
    pub(crate) fn first_peer(&self) -> NodeId {
        self.nodes[self.spec.payload().validators.len()].id
    }

    pub(crate) fn log(&self) -> Vec<Entry> {
        self.log.values().cloned().collect()
    }

    /// What all nodes hold at the end.
    pub(crate) fn state(&self) -> Hash {
        let held: Vec<Held> = self.nodes.iter().map(|node| node.machine.held().unwrap()).collect();
        assert!(held.iter().all(|other| *other == held[0]), "{held:?}");
        held[0].state
    }

    pub(crate) fn export(&self, directory: &Path) -> Archive {
        let archive = Archive::create(directory, &self.spec).unwrap();
        archive.put_tokenizer(&self.tokenizer).unwrap();
        archive.put_parameters(0, &self.initial).unwrap();
        archive.put_parameters(self.log.len() as u64, &self.states[&self.state()]).unwrap();
        self.log.values().for_each(|entry| archive.put_entry(entry).unwrap());
        self.files.values().for_each(|file| assert!(archive.put_blob(file).is_ok()));
        archive
    }

    fn tell(&mut self, from: usize, to: Option<NodeId>, message: &TrainMessage) {
        let sender = self.nodes[from].id;
        for (n, node) in self.nodes.iter().enumerate() {
            if n != from && to.is_none_or(|to| to == node.id) {
                self.queue.push_back((n, Input::Message { from: sender, message: message.clone() }));
            }
        }
    }

    fn submission(&self, hash: Hash) -> Submission {
        Submission::read(&self.task, &self.files[&hash]).unwrap()
    }

    fn hold(&mut self, n: usize, round: u64, parameters: Parameters) {
        let state = state_of(&parameters);
        self.states.insert(state, parameters);
        self.queue.push_back((n, Input::Applied(Held { round, state })));
    }

    fn carry_out(&mut self, n: usize, output: Output) {
        match output {
            Output::Broadcast(message) => self.tell(n, None, &message),
            Output::Send { to, message } => self.tell(n, Some(to), &message),
            Output::SendEntries { to, round } => {
                let entry = Box::new(self.log[&round].clone());
                let next = self.log.range(round + 1..).take(MAX_NEXT).map(|(_, entry)| entry.clone()).collect();
                self.tell(n, Some(to), &TrainMessage::Entries(entry, next));
            }
            Output::Persist(Stored::Entries(entries)) => {
                for entry in entries {
                    let first = self.log.entry(entry.record.round).or_insert_with(|| entry.clone());
                    assert_eq!(first.record, entry.record);
                }
            }
            Output::Train { round, trained, beacon, peers, base } => {
                let (task, common) = (self.task.clone(), &self.states[&base]);
                let node = &mut self.nodes[n];
                let bytes = train(&task, &mut node.peer, node.id, (round, trained), beacon, &peers, common).unwrap();
                let (update, length) = (Hash::of(&bytes), bytes.len() as u64);
                self.files.insert(update, bytes);
                self.queue.push_back((n, Input::Trained { round, update, bytes: length }));
            }
            Output::Fetch { round, peer, .. } => {
                let accused = self.nodes[n].lie == Some(Lie::Malformed) && peer == self.first_peer();
                let result = if accused { Err(FetchFailure::Malformed) } else { Ok(()) };
                self.queue.push_back((n, Input::Fetched { round, peer, result }));
            }
            Output::Evaluate { .. } => self.evaluate(n, output),
            Output::Aggregate { round, base, updates } => {
                let mut parameters = self.states[&base].clone();
                let updates: Vec<_> = updates.iter().map(|(_, hash, _)| self.submission(*hash).update).collect();
                step(&self.task, &mut parameters, &updates.iter().collect::<Vec<_>>()).unwrap();
                self.hold(n, round, parameters);
            }
            Output::Revert { round, to: state } | Output::Resync { round, state, .. } => {
                self.hold(n, round, self.states[&state].clone());
            }
            Output::Persist(_) | Output::Publish { .. } | Output::Owe { .. } | Output::Ended => {}
        }
    }

    fn evaluate(&mut self, n: usize, order: Output) {
        let Output::Evaluate { round, assignment, peers, evaluation, base, from, judge, updates } = order else {
            return;
        };
        let (common, before) = (&self.states[&base], judge.map(|state| &self.states[&state]));
        let from = &self.states[&from];
        let question = Question { round, assignment, peers: &peers, evaluation, common, from, before };
        let submitted =
            |(peer, hash): &(NodeId, Hash)| Submitted { peer: *peer, hash: *hash, submission: self.submission(*hash) };
        let updates: Vec<Submitted> = updates.iter().map(submitted).collect();
        let mut answer = measure(&self.task, self.examination, &question, &updates, &[]).unwrap();
        if self.nodes[n].lie == Some(Lie::Losses) {
            for pair in answer.findings.iter_mut().filter_map(|f| f.1.as_mut().ok()).flat_map(|m| &mut m.held_out) {
                pair.1 = Loss(pair.1.0 / 10 * 9);
            }
        }
        let (aggregate, findings) = (answer.aggregate, answer.findings);
        self.queue.push_back((n, Input::Evaluated { round, aggregate, findings }));
    }
}
