//! A run computed again, from its files alone: no network, no node, no trust in who exported it.
//!
//! ```text
//! Depth::Log      signatures, chain, quorums, beacons; the very scores, ratings and pay from the signed losses
//! Depth::Model    initial parameters, then the accepted updates of every round: the state that each record names, to the bit
//! Depth::Losses   every loss on every card, measured again: within 1e-4 of what was signed
//! ```
//! Each depth takes the ones before it. What the log alone cannot show is whether losses were measured or made up; that
//! takes the model and the data, which are both here. A validator whose card says something else is named; whether it
//! mattered is said, too: scores and pay follow from medians ([`Losses::medians_hold`]).

mod losses;

use consortium_protocol::wire::train::{Entry, Record, RunId, RunSpec};
use consortium_protocol::{Hash, NodeId, Signed};

pub use losses::{Difference, FalseRefusal, Losses};

use super::archive::Archive;
use super::submission::Submission;
use super::task::{examination_of, state_of, step};
use crate::collective::{Examination, Parameters, Task};
use crate::error::TrainError;
use crate::rounds::{BadEntry, Replay, Replaying};
use crate::sparseloco::Update;

/// How much is computed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// The log.
    Log,
    /// The parameters, too.
    Model,
    /// The losses, too.
    Losses,
}

/// Why a run does not replay.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A file is missing or damaged, or nothing can be computed from it.
    #[error(transparent)]
    Files(#[from] TrainError),
    /// An entry does not continue the log.
    #[error("round {round}: {bad}")]
    Entry {
        /// The round.
        round: u64,
        /// What is wrong with it.
        bad: BadEntry,
    },
    /// The initial parameters are not in the archive.
    #[error("the initial parameters are not in the archive: only the log can be replayed")]
    NoInitial,
    /// Other parameters come out than a record says.
    #[error("round {round} begins from parameters {said}, and the rounds before it give {found}")]
    State {
        /// The round of the record.
        round: u64,
        /// Its state hash.
        said: Hash,
        /// What came out.
        found: Hash,
    },
    /// An accepted update was not kept.
    #[error("round {round}: the accepted update {update} of {peer} is not in the archive")]
    NoUpdate {
        /// The round.
        round: u64,
        /// Whose it is.
        peer: NodeId,
        /// Its hash.
        update: Hash,
    },
    /// An accepted update is none.
    #[error("round {round}: the accepted update of {peer} is no update of this model: {reason}")]
    BadUpdate {
        /// The round.
        round: u64,
        /// Whose it is.
        peer: NodeId,
        /// What is wrong with it.
        reason: String,
    },
}

/// One round, replayed.
#[derive(Clone, Debug)]
pub struct Step<'a> {
    /// Its entry of the log.
    pub entry: &'a Entry,
    /// Rounds of the log.
    pub rounds: u64,
    /// What was found out about losses so far; none if they are not measured.
    pub losses: Option<&'a Losses>,
}

/// A whole run, replayed.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// The run.
    pub run: RunId,
    /// What its log comes to.
    pub sums: Replay,
    /// The hash of the parameters after the last record; none if only the log was replayed.
    pub state: Option<Hash>,
    /// What the cards say against what was measured; none if nothing was.
    pub losses: Option<Losses>,
}

impl Replayed {
    /// Whether all that was replayed is as it was signed.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.losses.as_ref().is_none_or(Losses::hold)
    }
}

/// Replays the run in `archive`; `watch` is told of every round.
///
/// # Errors
/// [`ReplayError`]: the first thing that does not hold. Losses that differ are no error, but part of the answer.
pub fn replay(archive: &Archive, depth: Depth, watch: &mut dyn FnMut(&Step<'_>)) -> Result<Replayed, ReplayError> {
    let spec = archive.spec()?;
    let mut log = Replaying::new(spec.clone());
    let mut world = match depth {
        Depth::Log => None,
        Depth::Model | Depth::Losses => Some(World::new(archive, &spec, log.chain().last())?),
    };
    let mut losses = (depth == Depth::Losses).then(Losses::default);
    let rounds = archive.rounds()?;
    for round in 1.. {
        let Some(entry) = archive.entry(round)? else { break };
        let before = log.chain().last().clone();
        log.append(entry.clone()).map_err(|bad| ReplayError::Entry { round, bad })?;
        if let Some(world) = &mut world {
            world.check_base(&entry.record)?;
            if let Some(losses) = &mut losses {
                losses.compare(world, &before, &entry)?;
            }
            world.apply(&entry)?;
        }
        watch(&Step { entry: &entry, rounds, losses: losses.as_ref() });
    }
    let state = world.map(|world| world.finish(log.chain().last().round)).transpose()?;
    Ok(Replayed { run: log.chain().run(), sums: log.finish(), state, losses })
}

/// The model as it goes through the rounds.
struct World<'a> {
    archive: &'a Archive,
    spec: Signed<RunSpec>,
    task: Task,
    examination: Examination,
    common: Parameters,
    /// Those that the round before began from.
    before: Parameters,
}

impl<'a> World<'a> {
    fn new(archive: &'a Archive, spec: &Signed<RunSpec>, genesis: &Record) -> Result<Self, ReplayError> {
        let task = archive.task(spec.payload())?;
        let common = archive.parameters(&task, 0)?.ok_or(ReplayError::NoInitial)?;
        let (said, found) = (genesis.base, state_of(&common));
        if said != found {
            return Err(ReplayError::State { round: 0, said, found });
        }
        let (examination, before) = (examination_of(spec.payload()), common.clone());
        Ok(Self { archive, spec: spec.clone(), task, examination, common, before })
    }

    fn check_base(&self, record: &Record) -> Result<(), ReplayError> {
        let (round, said, found) = (record.round, record.base, state_of(&self.common));
        if said == found { Ok(()) } else { Err(ReplayError::State { round, said, found }) }
    }

    /// What was handed in under a hash; none if it was not kept.
    fn submission(&self, hash: Hash) -> Result<Option<Result<Submission, TrainError>>, TrainError> {
        Ok(self
            .archive
            .blob(hash, self.spec.payload().max_update_bytes)?
            .map(|bytes| Submission::read(&self.task, &bytes)))
    }

    /// Carries a record out, as every node of the run did.
    fn apply(&mut self, entry: &Entry) -> Result<(), ReplayError> {
        let record = &entry.record;
        let began = self.common.clone();
        if record.reverts {
            self.common = self.before.clone();
        } else {
            let updates = record.accepted().map(|(peer, hash, _)| self.accepted(record.round, peer, hash));
            let updates = updates.collect::<Result<Vec<Update>, _>>()?;
            step(&self.task, &mut self.common, &updates.iter().collect::<Vec<_>>())?;
        }
        self.before = began;
        Ok(())
    }

    fn accepted(&self, round: u64, peer: NodeId, update: Hash) -> Result<Update, ReplayError> {
        match self.submission(update)? {
            None => Err(ReplayError::NoUpdate { round, peer, update }),
            Some(Err(bad)) => Err(ReplayError::BadUpdate { round, peer, reason: bad.to_string() }),
            Some(Ok(submission)) => Ok(submission.update),
        }
    }

    /// The state at the end, which the exported parameters must have if there are any.
    fn finish(self, round: u64) -> Result<Hash, ReplayError> {
        let found = state_of(&self.common);
        if let Some(exported) = self.archive.parameters(&self.task, round)?.filter(|_| round > 0) {
            let said = state_of(&exported);
            if said != found {
                return Err(ReplayError::State { round: round + 1, said, found });
            }
        }
        Ok(found)
    }
}
