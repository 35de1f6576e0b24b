//! Who is in a run, as far as this node knows.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consortium_protocol::NodeId;
use consortium_protocol::wire::train::{Record, RunSpec, TrainMessage};

/// Nodes remembered that no record names: watchers, and whoever would come.
const MOST_HEARD: usize = 128;

/// The nodes of a run. A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct Roster(Arc<Mutex<Names>>);

#[derive(Debug, Default)]
struct Names {
    /// By the last record and the specification.
    named: BTreeSet<NodeId>,
    /// Who judges, of these.
    judges: BTreeSet<NodeId>,
    /// The round that goes on; none before a record is known.
    round: Option<u64>,
    /// Those that said something lately, the latest last.
    heard: VecDeque<NodeId>,
}

/// Who says something for itself in a message of a run that anyone may say; none for what only its people say.
#[must_use]
pub(super) fn speaks_for_itself(message: &TrainMessage) -> Option<NodeId> {
    match message {
        TrainMessage::Join(said) => Some(said.signer()),
        TrainMessage::Candidate(said) => Some(said.signer()),
        TrainMessage::State(said) => Some(said.signer()),
        _ => None,
    }
}

impl Roster {
    /// Names those of the last record.
    pub fn name(&self, spec: &RunSpec, last: &Record) {
        let members = last.members.iter().filter(|member| member.active).map(|member| member.peer);
        let validators = last.validators.iter().map(|validator| validator.id);
        let judges = validators.clone().collect();
        let candidates = last.candidates.iter().map(|candidacy| candidacy.id);
        // Who trains ahead speaks in the next round, even if it leaves by this record.
        let members = members.chain(last.ahead.iter().flat_map(|ahead| ahead.peers.iter().copied()));
        let named = members.chain(validators).chain(candidates).chain(spec.reserves.iter().copied());
        let named = named.collect();
        let mut names = self.lock();
        (names.named, names.judges, names.round) = (named, judges, Some(last.round.saturating_add(1)));
    }

    /// Notes that a node said something.
    pub fn hear(&self, node: NodeId) {
        let mut names = self.lock();
        if names.named.contains(&node) || names.heard.back() == Some(&node) {
            return;
        }
        names.heard.retain(|known| *known != node);
        names.heard.push_back(node);
        if names.heard.len() > MOST_HEARD {
            names.heard.pop_front();
        }
    }

    /// Whether a record or the specification names a node.
    #[must_use]
    pub fn names(&self, node: NodeId) -> bool {
        self.lock().named.contains(&node)
    }

    /// Whether a node is a validator by the last record.
    #[must_use]
    pub fn judges(&self, node: NodeId) -> bool {
        self.lock().judges.contains(&node)
    }

    /// The round that goes on here; none before a record was named.
    #[must_use]
    pub fn round(&self) -> Option<u64> {
        self.lock().round
    }

    /// Everyone.
    #[must_use]
    pub fn all(&self) -> Vec<NodeId> {
        let names = self.lock();
        names.named.iter().copied().chain(names.heard.iter().rev().copied()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
