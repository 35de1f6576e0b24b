//! Getting files for a run: updates of peers, and parameters of others.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use consortium_protocol::wire::train::StateFile;
use consortium_protocol::{Hash, NodeId};
use consortium_training::TrainError;
use consortium_training::collective::Task;
use consortium_training::rounds::FetchFailure;
use futures::StreamExt as _;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::bench::{read_parameters, read_submission};
use super::roster::Roster;
use super::wire::Wire;
use crate::blobs::{BlobError, Blobs, Donors};

/// Time for a node to say which file holds a state.
const LOCATE: Duration = Duration::from_secs(5);
/// Nodes that are asked for it.
const ASKED: usize = 16;
/// How often an update is looked for, and the time between.
const ATTEMPTS: u32 = 3;
const AGAIN: Duration = Duration::from_secs(1);
/// Files remembered that do not hold the parameters that they were said to.
const SHUNNED: usize = 256;
/// Time for a file of parameters: so much, and more for every byte. A donor that is slower is left for others.
const FILE: Duration = Duration::from_secs(30);
const SLOWEST: u64 = 100_000;
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

/// A file that was wanted, and is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Got {
    pub(super) name: Hash,
    pub(super) path: PathBuf,
    /// Whether it came just now. Only then it is this errand's to remove: a peer may name a file that is here for another use.
    pub(super) is_new: bool,
}

/// Gets files for one run.
#[derive(Clone)]
pub(super) struct Errands<W> {
    pub(super) wire: W,
    pub(super) blobs: Blobs,
    pub(super) task: Arc<Task>,
    pub(super) roster: Roster,
    /// What this node's own disk refused last.
    complaint: Arc<Mutex<Option<String>>>,
    /// Files that do not hold the parameters that they were said to, the latest last.
    shunned: Arc<Mutex<VecDeque<Hash>>>,
}

impl<W: Wire> Errands<W> {
    pub(super) fn new(wire: W, blobs: Blobs, task: Arc<Task>, roster: Roster) -> Self {
        Self { wire, blobs, task, roster, complaint: Arc::default(), shunned: Arc::default() }
    }

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

    /// Gets an update within `time`: from its peer, and from whoever else has some of it by then.
    pub(super) async fn update(&self, wanted: Wanted, time: Duration) -> Result<Got, FetchFailure> {
        let Wanted { peer, update, bytes } = wanted;
        let most = bytes.min(super::bench::longest_submission(&self.task));
        let is_new = self.blobs.length(&update).is_none();
        let donors = Donors { sure: vec![peer], others: self.others(&[peer]).await };
        match timeout(time, self.patiently(update, most, donors)).await {
            Ok(Ok(path)) => self.check(Got { name: update, path, is_new }, wanted).await,
            Ok(Err(error)) => {
                self.failed(&error);
                Err(FetchFailure::Missing)
            }
            Err(_) => Err(FetchFailure::Missing),
        }
    }

    /// Fetches a file, a few times if nobody has it, or not all of it.
    async fn patiently(&self, file: Hash, most: u64, donors: Donors) -> Result<PathBuf, BlobError> {
        for _ in 1..ATTEMPTS {
            match self.wire.fetch(file, most, donors.clone()).await {
                Err(BlobError::Nowhere(_) | BlobError::Incomplete { .. }) => sleep(AGAIN).await,
                fetched => return fetched,
            }
        }
        self.wire.fetch(file, most, donors).await
    }

    async fn check(&self, got: Got, wanted: Wanted) -> Result<Got, FetchFailure> {
        // What has another length is not what its peer described, whatever it is: a replay cannot find fault with either.
        let found = if self.blobs.length(&wanted.update) == Some(wanted.bytes) {
            let (task, path) = (Arc::clone(&self.task), got.path.clone());
            match tokio::task::spawn_blocking(move || read_submission(&task, &path).map(drop)).await {
                Ok(Ok(())) => return Ok(got),
                Ok(Err(TrainError::Io { path, source })) => {
                    // That is this node's trouble, and no fault of the peer.
                    self.failed(&BlobError::Io { path, source });
                    return Err(FetchFailure::Missing);
                }
                Ok(Err(_)) => FetchFailure::Malformed,
                Err(_) => return Err(FetchFailure::Missing),
            }
        } else {
            FetchFailure::Missing
        };
        debug!(peer = %wanted.peer, ?found, "an update is not what its peer said");
        self.drop_new(&got).await;
        Err(found)
    }

    /// Forgets a file that the disk has lost, or some of it: then others may give it.
    pub(super) async fn forget_if_damaged(&self, name: Hash) {
        let Some(path) = self.blobs.path(&name) else { return };
        let read = tokio::task::spawn_blocking(move || std::fs::read(path).map(|bytes| Hash::of(&bytes) == name)).await;
        let is_gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
        if matches!(&read, Ok(Ok(false))) || matches!(&read, Ok(Err(error)) if is_gone(error)) {
            let _stays_until_later = self.blobs.remove(name).await;
        }
    }

    /// Removes what came just now, and is of no use.
    pub(super) async fn drop_new(&self, got: &Got) {
        if got.is_new {
            let _stays_until_later = self.blobs.remove(got.name).await;
        }
    }

    async fn others(&self, but: &[NodeId]) -> Vec<NodeId> {
        let mut others = self.roster.all();
        others.extend(self.wire.providers().await);
        let mut seen: BTreeSet<NodeId> = but.iter().copied().collect();
        others.retain(|node| seen.insert(*node));
        others
    }

    /// Gets the file with the parameters of a state, and checks that it holds them: from `donors`, who say that they have it,
    /// or else from anyone.
    pub(super) async fn state(&self, state: Hash, donors: &[NodeId]) -> Option<Got> {
        let mut asked: Vec<NodeId> = donors.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        asked.extend(self.others(donors).await);
        for (file, sure) in self.files(state, &asked).await {
            // Who comes at the same time may be getting it.
            let others = asked.iter().copied().filter(|node| !sure.contains(node)).collect();
            let donors = Donors { sure, others };
            let time = FILE + Duration::from_secs(file.bytes / SLOWEST);
            let is_new = self.blobs.length(&file.file).is_none();
            match timeout(time, self.wire.fetch(file.file, self.longest_state(), donors)).await {
                Ok(Ok(path)) => {
                    let got = Got { name: file.file, path, is_new };
                    match self.holds(&got, state).await {
                        true => return Some(got),
                        false => self.drop_new(&got).await,
                    }
                }
                Ok(Err(error)) => self.failed(&error),
                Err(_) => debug!(file = %file.file, "a file of parameters comes too slowly"),
            }
        }
        None
    }

    /// Whether a file holds the parameters of a state; one that does not is not asked for again.
    async fn holds(&self, got: &Got, state: Hash) -> bool {
        let (task, path) = (Arc::clone(&self.task), got.path.clone());
        let read = tokio::task::spawn_blocking(move || read_parameters(&task, &path, state).map(drop)).await;
        match read {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                debug!(%error, file = %got.name, "a file does not hold the parameters that it was said to");
                if !error.passes() {
                    self.shun(got.name);
                }
                false
            }
            Err(_) => false,
        }
    }

    fn shun(&self, file: Hash) {
        let mut shunned = self.shunned.lock().unwrap_or_else(PoisonError::into_inner);
        if shunned.len() >= SHUNNED {
            shunned.pop_front();
        }
        shunned.push_back(file);
    }

    /// Which files are said to hold a state, and by whom: first what most validators say, for anyone may say anything.
    async fn files(&self, state: Hash, asked: &[NodeId]) -> Vec<(StateFile, Vec<NodeId>)> {
        let asking = futures::stream::iter(asked.iter().copied())
            .map(|node| async move { Some((node, timeout(LOCATE, self.wire.locate(node, state)).await.ok()??)) })
            .buffer_unordered(ASKED);
        let answers: Vec<Option<(NodeId, StateFile)>> = asking.collect().await;
        let shunned = self.shunned.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut files: BTreeMap<Hash, (StateFile, Vec<NodeId>)> = BTreeMap::new();
        for (node, file) in answers.into_iter().flatten() {
            let sound = file.state == state && file.bytes <= self.longest_state() && !shunned.contains(&file.file);
            if sound {
                let (said, donors) = files.entry(file.file).or_insert_with(|| (file, Vec::new()));
                // It has the time that its length takes: who says less does not shorten it.
                said.bytes = said.bytes.max(file.bytes);
                donors.push(node);
            }
        }
        let mut files: Vec<_> = files.into_values().collect();
        let judges = |donors: &[NodeId]| donors.iter().filter(|node| self.roster.judges(**node)).count();
        files.sort_by_key(|(_, donors)| std::cmp::Reverse((judges(donors), donors.len())));
        files
    }

    fn longest_state(&self) -> u64 {
        let tensors = self.task.config().parameters().len() as u64;
        4 * self.task.layout().parameters() + HEADER + HEADER_OF_EACH * tensors
    }
}
