//! What a node computes in a run: it has the parameters in memory, and its optimiser.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use consortium_protocol::wire::train::{Beacon, LossPair, Measure, Refusal, StateFile};
use consortium_protocol::{Hash, NodeId};
use consortium_training::TrainError;
use consortium_training::collective::{Examination, Parameters, Peer, SyncProbe, Task};
use consortium_training::rounds::Held;
use consortium_training::run::{Question, Submission, Submitted, assignment_of, measure, state_of, step};
use tokio::runtime::Handle;
use tracing::warn;

use super::shelf::Shelf;
use super::store::{Store, StoreError};
use crate::blobs::{BlobError, Blobs};

/// Why something could not be computed.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkError {
    /// It cannot be computed: trying again would not help.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The disk refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file cannot be kept.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// What is wanted is not here.
    #[error("{0}")]
    Absent(&'static str),
    /// The newest parameters are not here, or not those that they should be.
    #[error("{0}")]
    Parameters(&'static str),
    /// Those before the last aggregate are not.
    #[error("the parameters before the last aggregate: {0}")]
    Before(Box<WorkError>),
}

impl Evaluate {
    /// Which parameters it takes besides the newest: those before the last aggregate, or those that peers trained from. Where
    /// it takes both, they are the same.
    pub(super) fn older(&self) -> Option<Hash> {
        self.judge.or_else(|| (self.from != self.base).then_some(self.from))
    }
}

impl WorkError {
    /// Whether it may go another time: the disk was full, or something else was wrong with it.
    pub(super) fn passes(&self) -> bool {
        match self {
            Self::Train(TrainError::Io { .. }) | Self::Store(StoreError::Io { .. }) => true,
            Self::Blob(error) => matches!(error, BlobError::Io { .. } | BlobError::Full { .. }),
            Self::Before(error) => error.passes(),
            _ => false,
        }
    }
}

/// How far this node's local steps are; read by whoever shows it.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// Taken in the round.
    pub(super) done: AtomicU64,
    /// Whether they are wanted no more.
    pub(super) stop: AtomicBool,
}

/// An order to train.
#[derive(Clone, Debug)]
pub(super) struct Train {
    pub(super) round: u64,
    pub(super) trained: u64,
    pub(super) beacon: Beacon,
    pub(super) peers: Vec<NodeId>,
    pub(super) base: Hash,
}

/// An order to measure.
#[derive(Clone, Debug)]
pub(super) struct Evaluate {
    pub(super) round: u64,
    pub(super) assignment: Beacon,
    pub(super) peers: Vec<NodeId>,
    pub(super) evaluation: Beacon,
    pub(super) base: Hash,
    pub(super) from: Hash,
    pub(super) judge: Option<Hash>,
    /// The parameters of the round before, where they had to be fetched.
    pub(super) before: Option<PathBuf>,
    pub(super) updates: Vec<(NodeId, Hash)>,
    /// Updates of the last round.
    pub(super) earlier: Vec<Hash>,
}

/// An order to go on to other parameters.
#[derive(Clone, Debug)]
pub(super) enum Apply {
    /// By these updates, in this order.
    Aggregate { round: u64, base: Hash, updates: Vec<Hash> },
    /// Back to those of before.
    Revert { round: u64, to: Hash },
    /// To those in a file that was fetched.
    Load { round: u64, state: Hash, file: PathBuf },
}

/// What training made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    pub(super) round: u64,
    pub(super) update: Hash,
    pub(super) bytes: u64,
    /// Seconds of local steps.
    pub(super) seconds: f64,
}

/// What measuring found.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) round: u64,
    pub(super) aggregate: Vec<LossPair>,
    pub(super) findings: Vec<(NodeId, Result<Measure, Refusal>)>,
}

/// A node's part in computing a run. Its methods block. Of two benches of the same parts one may train while the other does the
/// rest: what they share is the parameters that were used last.
pub(super) struct Bench {
    parts: BenchParts,
    peer: Option<Peer>,
}

/// The parameters that were used last, by their hash.
pub(super) type Last = Arc<Mutex<Option<(Hash, Arc<Parameters>)>>>;

/// What a bench is made of.
#[derive(Clone)]
pub(super) struct BenchParts {
    pub(super) me: NodeId,
    pub(super) task: Arc<Task>,
    pub(super) examination: Examination,
    pub(super) directory: PathBuf,
    pub(super) blobs: Blobs,
    pub(super) shelf: Shelf,
    pub(super) steps: Arc<Steps>,
    pub(super) runtime: Handle,
    pub(super) last: Last,
}

impl Bench {
    pub(super) fn new(parts: BenchParts) -> Self {
        Self { parts, peer: None }
    }

    /// Takes this node's local steps, and keeps what they made.
    pub(super) fn train(&mut self, order: &Train) -> Result<Made, WorkError> {
        let place =
            order.peers.binary_search(&self.parts.me).map_err(|_| WorkError::Absent("this node does not train"))?;
        let mut peer = match self.peer.take() {
            Some(peer) => peer,
            None => self.resume()?,
        };
        let made = self.train_as(&mut peer, place, order);
        self.peer = Some(peer);
        made
    }

    /// This node's optimiser and error feedback, as they were left.
    fn resume(&self) -> Result<Peer, WorkError> {
        let (path, task) = (Store::peer(&self.parts.directory), Arc::clone(&self.parts.task));
        if !path.exists() {
            return Ok(Peer::join(task));
        }
        match Peer::resume(Arc::clone(&task), &path) {
            Ok(peer) => Ok(peer),
            // A peer without moments is one that joins: it warms up. What it committed to is kept apart from them.
            Err(error @ TrainError::Checkpoint { .. }) => {
                warn!(%error, "the state of the optimiser is of no use, and is begun anew");
                Ok(Peer::join(task))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn train_as(&self, peer: &mut Peer, place: usize, order: &Train) -> Result<Made, WorkError> {
        let (task, steps) = (&self.parts.task, &self.parts.steps);
        let is_newest = self.parts.shelf.kept().newest.is_some_and(|(_, newest)| newest.state == order.base);
        let older = |error| if is_newest { error } else { WorkError::Before(Box::new(error)) };
        let common = &*self.common(order.base).map_err(older)?;
        let dealt = assignment_of(task, order.round, order.beacon, order.peers.len())?;
        let sample = SyncProbe::new(order.beacon.0.as_bytes(), order.round, common).sample(common);
        let began = Instant::now();
        let mut go_on = |done| {
            steps.done.store(done, Ordering::Relaxed);
            !steps.stop.load(Ordering::Relaxed)
        };
        let (message, _) = peer.train_while((order.round, order.trained), common, &dealt.rows(place), &mut go_on)?;
        steps.done.store(task.recipe().steps, Ordering::Relaxed);
        let seconds = began.elapsed().as_secs_f64();
        let submission = Submission::encode(&sample, message);
        peer.save(&Store::peer(&self.parts.directory))?;
        let bytes = submission.len() as u64;
        let update = self.parts.runtime.block_on(self.parts.blobs.put(submission))?;
        Ok(Made { round: order.round, update, bytes, seconds })
    }

    /// Measures what others made.
    pub(super) fn evaluate(&self, order: &Evaluate) -> Result<Found, WorkError> {
        let older = match (order.older(), &order.before) {
            (None, _) => Ok(None),
            (Some(state), Some(path)) => read_parameters(&self.parts.task, path, state).map(Some),
            (Some(state), None) => self.file(state).and_then(|file| self.load(file)).map(Some),
        };
        let older = older.map_err(|error| WorkError::Before(Box::new(error)))?;
        let submitted = |(peer, hash): &(NodeId, Hash)| -> Result<Submitted, WorkError> {
            Ok(Submitted { peer: *peer, hash: *hash, submission: self.submission(*hash)? })
        };
        let updates = order.updates.iter().map(submitted).collect::<Result<Vec<_>, _>>()?;
        let earlier: Vec<_> =
            order.earlier.iter().filter_map(|name| Some(self.submission(*name).ok()?.update)).collect();
        let common = &*self.common(order.base)?;
        let question = Question {
            round: order.round,
            assignment: order.assignment,
            peers: &order.peers,
            evaluation: order.evaluation,
            common,
            from: older.as_ref().filter(|_| order.from != order.base).unwrap_or(common),
            before: older.as_ref().filter(|_| order.judge.is_some()),
        };
        let answer = measure(&self.parts.task, self.parts.examination, &question, &updates, &earlier)?;
        Ok(Found { round: order.round, aggregate: answer.aggregate, findings: answer.findings })
    }

    /// Goes on to other parameters; they are durable when this is done, and those of before are kept.
    pub(super) fn apply(&self, order: &Apply) -> Result<Held, WorkError> {
        match order {
            Apply::Aggregate { round, base, updates } => {
                let submissions = updates.iter().map(|name| self.submission(*name)).collect::<Result<Vec<_>, _>>()?;
                let updates: Vec<_> = submissions.iter().map(|submission| &submission.update).collect();
                let mut next = (*self.common(*base)?).clone();
                let state = step(&self.parts.task, &mut next, &updates)?;
                self.go_on_to(*round, state, next, Some(*base))
            }
            Apply::Revert { round, to } => {
                let before = self.load(self.file(*to)?)?;
                // Where peers do not wait they trained from what is taken back, and are measured against that.
                let from = self.parts.shelf.kept().newest.map(|(_, newest)| newest.state);
                self.go_on_to(*round, *to, before, from)
            }
            Apply::Load { round, state, file } => {
                let parameters = read_parameters(&self.parts.task, file, *state)?;
                // If these only follow from what is here, that is what came before.
                let from = self.parts.shelf.kept().newest.map(|(_, newest)| newest.state).filter(|from| from != state);
                self.go_on_to(*round, *state, parameters, from)
            }
        }
    }

    fn go_on_to(&self, round: u64, state: Hash, parameters: Parameters, from: Option<Hash>) -> Result<Held, WorkError> {
        let content = parameters.to_bytes()?;
        let bytes = content.len() as u64;
        let file = self.parts.runtime.block_on(self.parts.blobs.put(content))?;
        let mut kept = self.parts.shelf.kept();
        kept.before = from.and_then(|state| kept.file(state));
        let newest = StateFile { state, file, bytes };
        kept.newest = Some((round, newest));
        if round == 0 {
            kept.initial = Some(newest);
        }
        Store::keep(&self.parts.directory, &kept)?;
        let gone = self.parts.shelf.replace(kept);
        for file in gone {
            // Whoever still fetches it hears of newer ones.
            let _ = self.parts.runtime.block_on(self.parts.blobs.remove(file.file));
        }
        *self.parts.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((state, Arc::new(parameters)));
        Ok(Held { round, state })
    }

    /// The parameters with this hash, if they are the newest or those before.
    fn common(&self, state: Hash) -> Result<Arc<Parameters>, WorkError> {
        let known = self.parts.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match known.filter(|(known, _)| *known == state) {
            Some((_, parameters)) => Ok(parameters),
            None => {
                let loaded = Arc::new(self.load(self.file(state)?)?);
                *self.parts.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((state, Arc::clone(&loaded)));
                Ok(loaded)
            }
        }
    }

    fn file(&self, state: Hash) -> Result<StateFile, WorkError> {
        self.parts.shelf.kept().file(state).ok_or(WorkError::Parameters("these parameters are not here"))
    }

    fn load(&self, file: StateFile) -> Result<Parameters, WorkError> {
        let path =
            self.parts.blobs.path(&file.file).ok_or(WorkError::Parameters("the file of the parameters is gone"))?;
        read_parameters(&self.parts.task, &path, file.state)
    }

    fn submission(&self, name: Hash) -> Result<Submission, WorkError> {
        let path = self.parts.blobs.path(&name).ok_or(WorkError::Absent("an update is not here"))?;
        Ok(read_submission(&self.parts.task, &path)?)
    }
}

/// Reads parameters that must have this hash.
///
/// # Errors
/// [`WorkError::Parameters`] if the file holds anything else, [`WorkError::Store`] if it cannot be read.
pub(super) fn read_parameters(task: &Task, path: &Path, state: Hash) -> Result<Parameters, WorkError> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(WorkError::Parameters("the file of the parameters is gone"));
        }
        read => read.map_err(super::store::at(path))?,
    };
    match Parameters::from_bytes(task, &bytes) {
        Ok(parameters) if state_of(&parameters) == state => Ok(parameters),
        Ok(_) => Err(WorkError::Parameters("the file holds other parameters than it should")),
        Err(_) => Err(WorkError::Parameters("the file does not hold parameters of this model")),
    }
}

/// Reads and checks a submission.
pub(super) fn read_submission(task: &Task, path: &Path) -> Result<Submission, TrainError> {
    let bytes = std::fs::read(path).map_err(|source| TrainError::Io { path: path.to_owned(), source })?;
    Submission::read(task, &bytes)
}

/// Longest submission of a task, in bytes.
pub(super) fn longest_submission(task: &Task) -> u64 {
    Submission::longest(task) as u64
}
