//! Getting files for a run: updates of peers, and parameters of others.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use consortium_protocol::wire::train::StateFile;
use consortium_protocol::{Hash, NodeId};
use consortium_training::TrainError;
use consortium_training::collective::Task;
use consortium_training::rounds::FetchFailure;
use futures::StreamExt as _;
use tokio::time::timeout;
use tracing::debug;

use super::bench::read_submission;
use super::roster::Roster;
use super::wire::Wire;
use crate::blobs::{BlobError, Blobs};

/// Time for a node to say which file holds a state.
const LOCATE: Duration = Duration::from_secs(5);
/// Nodes that are asked for it.
const ASKED: usize = 16;
/// What the header of a file of parameters takes at most, besides so much for each tensor.
const HEADER: u64 = 64 << 10;
const HEADER_OF_EACH: u64 = 256;

/// An update that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) peer: NodeId,
    pub(super) update: Hash,
    pub(super) bytes: u64,
}

/// Gets files for one run.
#[derive(Clone)]
pub(super) struct Errands<W> {
    pub(super) wire: W,
    pub(super) blobs: Blobs,
    pub(super) task: Arc<Task>,
    pub(super) roster: Roster,
    /// What this node's own disk refused last.
    pub(super) complaint: Arc<Mutex<Option<String>>>,
}

impl<W: Wire> Errands<W> {
    /// What this node's own disk refused since this was asked last.
    pub(super) fn complaint(&self) -> Option<String> {
        self.complaint.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Notes why a file is not here, if that is for this node to put right.
    fn failed(&self, error: &BlobError) {
        debug!(%error, "a file of a run could not be had");
        if matches!(error, BlobError::Full { .. } | BlobError::Io { .. }) {
            *self.complaint.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
        }
    }

    /// Gets an update within `time`: from its peer, and if that does not give it, from whoever else may have it.
    pub(super) async fn update(&self, wanted: Wanted, time: Duration) -> Result<(), FetchFailure> {
        let Wanted { peer, update, bytes } = wanted;
        let most = bytes.min(super::bench::longest_submission(&self.task));
        let fetched = timeout(time, async {
            // Whoever is asked and does not answer holds up the others: so first the one that must have it.
            match timeout(time / 2, self.wire.fetch(update, most, vec![peer])).await {
                Ok(Ok(path)) => Ok(path),
                _ => self.wire.fetch(update, most, self.others(peer).await).await,
            }
        });
        match fetched.await {
            Ok(Ok(path)) => self.check(path, wanted).await,
            Ok(Err(error)) => {
                self.failed(&error);
                Err(FetchFailure::Missing)
            }
            Err(_) => Err(FetchFailure::Missing),
        }
    }

    async fn check(&self, path: PathBuf, wanted: Wanted) -> Result<(), FetchFailure> {
        let task = Arc::clone(&self.task);
        let read = tokio::task::spawn_blocking(move || read_submission(&task, &path).map(drop)).await;
        let found = match read {
            Ok(Ok(())) if self.blobs.length(&wanted.update) == Some(wanted.bytes) => return Ok(()),
            // It is an update, but not the one that its peer described: a replay cannot find fault with either.
            Ok(Ok(())) => FetchFailure::Missing,
            // That this node's disk fails is not its peer's doing.
            Ok(Err(TrainError::Io { .. })) | Err(_) => FetchFailure::Missing,
            Ok(Err(_)) => FetchFailure::Malformed,
        };
        debug!(peer = %wanted.peer, ?found, "an update is not what its peer said");
        let _of_no_use = self.blobs.remove(wanted.update).await;
        Err(found)
    }

    async fn others(&self, but: NodeId) -> Vec<NodeId> {
        let mut others = self.roster.all();
        others.extend(self.wire.providers().await);
        others.retain(|node| *node != but);
        others.sort_unstable();
        others.dedup();
        others
    }

    /// Gets the file with the parameters of a state: from `donors`, who say that they have it, or else from anyone. Files in
    /// `bad` were found to hold something else.
    pub(super) async fn state(&self, state: Hash, donors: &[NodeId], bad: &[Hash]) -> Option<PathBuf> {
        let mut asked = donors.to_vec();
        asked.extend(self.roster.all());
        asked.extend(self.wire.providers().await);
        let mut seen = std::collections::BTreeSet::new();
        asked.retain(|node| seen.insert(*node));
        for (file, donors) in self.files(state, &asked, bad).await {
            match self.wire.fetch(file.file, self.longest_state(), donors).await {
                Ok(path) => return Some(path),
                Err(error) => self.failed(&error),
            }
        }
        None
    }

    /// Which files are said to hold a state, and by whom: the one that most say so of first.
    async fn files(&self, state: Hash, asked: &[NodeId], bad: &[Hash]) -> Vec<(StateFile, Vec<NodeId>)> {
        let asking = futures::stream::iter(asked.iter().copied())
            .map(|node| async move { Some((node, timeout(LOCATE, self.wire.locate(node, state)).await.ok()??)) })
            .buffer_unordered(ASKED);
        let answers: Vec<Option<(NodeId, StateFile)>> = asking.collect().await;
        let mut files: BTreeMap<Hash, (StateFile, Vec<NodeId>)> = BTreeMap::new();
        for (node, file) in answers.into_iter().flatten() {
            let sound = file.state == state && file.bytes <= self.longest_state() && !bad.contains(&file.file);
            if sound {
                files.entry(file.file).or_insert_with(|| (file, Vec::new())).1.push(node);
            }
        }
        let mut files: Vec<_> = files.into_values().collect();
        files.sort_by_key(|(_, donors)| std::cmp::Reverse(donors.len()));
        files
    }

    fn longest_state(&self) -> u64 {
        let tensors = self.task.config().parameters().len() as u64;
        4 * self.task.layout().parameters() + HEADER + HEADER_OF_EACH * tensors
    }
}
