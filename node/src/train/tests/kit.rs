//! A run, and nodes that take part in it over a hub.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use consortium_ledger::ledger::Ledger;
use consortium_protocol::wire::train::{
    Batches, Entry, Finite, HyperParameters, ModelSpec, PaySchedule, PayWay, Phases, RunId, RunSpec, StateFile,
};
use consortium_protocol::{Hash, Msat, NodeId, RootKey, Signed};
use consortium_training::collective::{Parameters, Task};
use consortium_training::corpus::{Split, document, stream};
use consortium_training::gauntlet::DOUBT;
use consortium_training::model::LlamaConfig;
use consortium_training::rounds::Wish;
use consortium_training::run::{ModelSize, data, examination_of, state_of, task_of};
use consortium_training::sparseloco::OUTER_RATE;
use consortium_training::tokenizer::Tokenizer;
use tokio_util::sync::CancellationToken;

use crate::blobs::Blobs;
use crate::clock::wall_ms;
use crate::train::hub::{Hub, HubWire};
use crate::train::pause::{Standing, Terms};
use crate::train::view::{Phase, RunStatus};
use crate::train::{Kept, Parts, Payouts, Roster, RunHandle, Shelf, Store, spawn};

/// Time for anything to happen: generous, for machines that do much else.
const PATIENCE: Duration = Duration::from_secs(180);

pub(super) fn key(n: u8) -> Arc<RootKey> {
    Arc::new(RootKey::from_seed([n; 32]))
}

pub(super) fn id(n: u8) -> NodeId {
    key(n).node_id()
}

/// What books for a node, in the ledger that it has in a directory.
pub(super) fn pay(n: u8, directory: &Path, stop: &CancellationToken) -> Payouts {
    let ledger = Ledger::open(&directory.join("ledger.db"), id(n)).unwrap();
    Payouts::new(
        ledger,
        #[cfg(feature = "lightning")]
        None,
        stop.clone(),
    )
}

fn number(value: f64) -> Finite {
    Finite::new(value).unwrap()
}

pub(super) fn tokenizer() -> &'static [u8] {
    static JSON: OnceLock<Vec<u8>> = OnceLock::new();
    JSON.get_or_init(|| Tokenizer::train(1, 100, 300).unwrap().to_json().unwrap().into_bytes())
}

/// Text as somebody may bring it: so many stories as JSON lines.
pub(crate) fn stories_as_lines(count: u64) -> String {
    let line = |index| {
        let texts = document(&mut stream(5, index), Split::Train).into_texts();
        serde_json::json!({"text": texts.join("\n")}).to_string()
    };
    (0..count).map(line).collect::<Vec<_>>().join("\n")
}

fn config() -> LlamaConfig {
    ModelSize::Nano.config()
}

fn draft(validators: u8, rounds: u64) -> RunSpec {
    let mut ids: Vec<NodeId> = (0..validators).map(id).collect();
    ids.sort_unstable();
    RunSpec {
        name: "a run".into(),
        model: ModelSpec {
            name: "a model".into(),
            config: serde_json::to_string(&config()).unwrap(),
            initial: Hash::of(b"not yet known"),
        },
        tokenizer: Hash::of(tokenizer()),
        data: data::stories(3, 10_000),
        training: HyperParameters {
            local_steps: 4,
            batch: 4,
            sequence: 48,
            inner_rate: number(1e-2),
            warmup_rounds: 1,
            final_part: number(0.1),
            weight_decay: number(0.05),
            outer_rate: number(f64::from(OUTER_RATE)),
            feedback: number(0.95),
            overlap: false,
        },
        max_update_bytes: 1 << 20,
        phases: Phases {
            train_ms: 1500,
            commit_ms: 500,
            reveal_ms: 1000,
            score_ms: 1500,
            settle_ms: 1500,
            delta_ms: 0,
        },
        least_peers: 1,
        most_peers: 8,
        validators: ids,
        reserves: Vec::new(),
        quorum: u32::from(validators) / 2 + 1,
        replace_after: 3,
        batches: Batches { assigned: 1, unassigned: 1, held_out: 2, doubt: number(DOUBT) },
        pay: PaySchedule {
            budget: Msat(1_000_000),
            base_rate: Msat(30_000),
            fee: Msat(2000),
            unit: Msat(10_000),
            least_units: 3,
            way: PayWay::Accounts,
            bond: Msat::ZERO,
        },
        rounds,
        starts_at_ms: wall_ms(),
    }
}

/// A run and where its nodes meet.
pub(super) struct World {
    pub(super) hub: Hub,
    pub(super) spec: Signed<RunSpec>,
    pub(super) task: Arc<Task>,
    pub(super) initial: Parameters,
    directory: tempfile::TempDir,
}

/// A node that can be stopped and started again.
pub(super) struct Node {
    pub(super) n: u8,
    pub(super) directory: PathBuf,
    pub(super) blobs: Blobs,
    pub(super) handle: RunHandle,
}

impl World {
    /// A run judged by the first keys, which the first announces.
    pub(super) fn new(validators: u8, rounds: u64, change: impl FnOnce(&mut RunSpec)) -> Self {
        let mut spec = draft(validators, rounds);
        change(&mut spec);
        let task = Arc::new(task_of(&spec, tokenizer(), None, 1).unwrap());
        let initial = Parameters::fresh(&task, 1).unwrap();
        spec.model.initial = state_of(&initial);
        Self {
            hub: Hub::default(),
            spec: Signed::sign(&key(0), spec),
            task,
            initial,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub(super) fn run(&self) -> RunId {
        RunId::of(&self.spec)
    }

    /// Where a node has its files.
    pub(super) fn path(&self, n: u8) -> PathBuf {
        self.directory.path().join(n.to_string())
    }

    /// Starts a node, from nothing or from where it was stopped. The first one has the initial parameters.
    pub(super) async fn start(&self, n: u8, wish: Wish) -> Node {
        self.start_within(n, wish, 1 << 30).await
    }

    /// As [`Self::start`], with room for so many bytes of files.
    pub(super) async fn start_within(&self, n: u8, wish: Wish, quota: u64) -> Node {
        self.start_with(n, wish, quota, &self.task).await
    }

    /// Starts a peer on terms, whose updates are of no use.
    pub(super) async fn start_useless(&self, n: u8, terms: Terms) -> Node {
        let directory = self.path(n).join("run");
        Store::create(&directory, &self.spec).unwrap();
        if Store::standing(&directory).unwrap().is_none() {
            Store::set_standing(&directory, Some(&Standing::new(terms))).unwrap();
        }
        let mut spec = self.spec.payload().clone();
        spec.training.inner_rate = number(1.0);
        let task = Arc::new(task_of(&spec, tokenizer(), None, 1).unwrap());
        self.start_with(n, Wish::Train, 1 << 30, &task).await
    }

    async fn start_with(&self, n: u8, wish: Wish, quota: u64, task: &Arc<Task>) -> Node {
        let parts = Parts { task: Arc::clone(task), ..self.parts(n, wish, quota).await };
        let (directory, blobs) = (parts.directory.clone(), parts.blobs.clone());
        let handle = spawn(parts).unwrap();
        pay(n, &self.path(n), &CancellationToken::new()).follow(self.spec.clone(), &directory, Some(handle.watch()));
        Node { n, directory, blobs, handle }
    }

    /// What a node starts from.
    pub(super) async fn parts(&self, n: u8, wish: Wish, quota: u64) -> Parts<HubWire> {
        let root = self.path(n);
        let directory = root.join("run");
        Store::create(&directory, &self.spec).unwrap();
        let blobs = Blobs::open(root.join("blobs"), quota).unwrap();
        let mut kept = Store::kept(&directory).unwrap();
        if n == 0 && kept == Kept::default() {
            let content = self.initial.to_bytes().unwrap();
            let bytes = content.len() as u64;
            let file = StateFile { state: state_of(&self.initial), file: blobs.put(content).await.unwrap(), bytes };
            kept = Kept { newest: Some((0, file)), before: None, initial: Some(file) };
            Store::keep(&directory, &kept).unwrap();
        }
        let shelf = Shelf::new(kept);
        let (wire, inbox) = self.hub.enter(self.run(), id(n), blobs.clone(), shelf.clone());
        Parts {
            key: key(n),
            wish,
            spec: self.spec.clone(),
            task: Arc::clone(&self.task),
            examination: examination_of(self.spec.payload()),
            directory,
            blobs,
            shelf,
            roster: Roster::default(),
            wire,
            inbox,
            now_ms: wall_ms(),
            stop: CancellationToken::new(),
        }
    }

    /// Kills a node, and takes it away from the others.
    pub(super) async fn kill(&self, node: Node) {
        node.handle.kill().await;
        self.hub.leave(self.run(), id(node.n));
        // What a thread computes ends with a process, but not with a task.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

impl Node {
    /// Waits until the node's status is as wanted.
    pub(super) async fn until(&self, what: &str, holds: impl Fn(&RunStatus) -> bool) -> RunStatus {
        let mut watch = self.handle.watch();
        // What is found is let go of at once: whoever looks again while somebody waits to write would wait for itself.
        let found =
            tokio::time::timeout(PATIENCE, async { watch.wait_for(|status| holds(status)).await.map(drop) }).await;
        match found {
            Ok(Ok(())) => self.handle.status(),
            _ => panic!("node {} never came to {what}: {:#?}", self.n, self.handle.status()),
        }
    }

    pub(super) async fn ended(&self) -> RunStatus {
        self.until("the end", |status| status.phase == Phase::Ended && status.in_sync).await
    }

    pub(super) async fn round(&self, round: u64) -> RunStatus {
        self.until(&format!("round {round}"), |status| status.summary.round >= round).await
    }

    /// The state that it has on its disk.
    pub(super) fn state(&self) -> Hash {
        Store::kept(&self.directory).unwrap().held().unwrap().state
    }

    /// Its log.
    pub(super) fn log(&self) -> Vec<Entry> {
        let mut log = Vec::new();
        Store::look(&self.directory, |entry| log.push(entry.clone())).unwrap();
        log
    }
}
