//! Finding a run in the swarm: who knows it, its specification, its files.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use consortium_protocol::wire::blob::PART_BYTES;
use consortium_protocol::wire::train::{RunId, RunSpec, TrainAnswer, TrainRequest, run_key};
use consortium_protocol::{Hash, NodeId, Signed};
use consortium_training::run::data::file_of;
use consortium_training::run::{MAX_TOKENIZER, check_run};
use tracing::{info, warn};

use super::RunError;
use super::net::ask;
use super::trainings::lock;
use super::view::Coming;
use crate::blobs::{BlobError, Blobs, Donors, Progress};
use crate::swarm::SwarmHandle;

/// Time to find a run, and then again each of its files; from then on when something came.
const FIND: Duration = Duration::from_secs(45);
/// Pause between two attempts at that.
const PAUSE: Duration = Duration::from_secs(1);

/// The files that are on their way, by run. A clone is the same.
#[derive(Clone, Default)]
pub(super) struct OnTheWay(Arc<Mutex<BTreeMap<RunId, Weak<Slot>>>>);

/// What comes for one that joins.
type Slot = Mutex<Option<Coming>>;

impl OnTheWay {
    /// What comes for a run.
    pub(super) fn get(&self, run: &RunId) -> Option<Coming> {
        let slot = lock(&self.0).get(run)?.upgrade()?;
        lock(&slot).clone()
    }

    /// Where to tell what comes for a run, for as long as this is held.
    fn begin(&self, run: RunId) -> Arc<Slot> {
        let slot = Arc::default();
        let mut all = lock(&self.0);
        all.retain(|_, slot| slot.strong_count() > 0);
        all.insert(run, Arc::downgrade(&slot));
        slot
    }
}

/// Nodes that may know a run, but for this one.
async fn who_knows(swarm: &SwarmHandle, run: RunId, spec: Option<&RunSpec>) -> Vec<NodeId> {
    let mut nodes: BTreeSet<NodeId> =
        swarm.providers(run_key(run), FIND).await.unwrap_or_default().into_iter().collect();
    if let Some(spec) = spec {
        nodes.extend(spec.validators.iter().copied());
    }
    nodes.remove(&swarm.me());
    nodes.into_iter().collect()
}

/// The specification of a run, from whoever knows it.
///
/// # Errors
/// [`RunError::NotFound`].
pub(super) async fn find_spec(swarm: &SwarmHandle, run: RunId) -> Result<Signed<RunSpec>, RunError> {
    let deadline = Instant::now() + FIND;
    while Instant::now() < deadline {
        for node in who_knows(swarm, run, None).await {
            if let Some(TrainAnswer::Run(spec)) = ask(swarm, node, &TrainRequest::Run(run)).await
                && RunId::of(&spec) == run
            {
                return Ok(*spec);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(RunError::NotFound(run))
}

/// Sees to it that the files are here that a run computes with: its tokenizer, and its data, if these are a file. One that the
/// disk has damaged since it came is fetched again. Gives whether any came now.
///
/// # Errors
/// When the run is none that this node can take part in, nobody gives a file, or the disk refuses.
pub(super) async fn find_files(
    swarm: &SwarmHandle,
    blobs: &Blobs,
    spec: &Signed<RunSpec>,
    on_the_way: &OnTheWay,
) -> Result<bool, RunError> {
    let said = spec.payload();
    // Nobody fetches anything for a run that it can take no part in.
    check_run(said)?;
    let slot = on_the_way.begin(RunId::of(spec));
    let mut is_new = find_file(swarm, blobs, spec, ("tokenizer", said.tokenizer, MAX_TOKENIZER as u64), &slot).await?;
    if let Some((hash, bytes)) = file_of(said) {
        is_new |= find_file(swarm, blobs, spec, ("data", hash, bytes), &slot).await?;
    }
    Ok(is_new)
}

async fn find_file(
    swarm: &SwarmHandle,
    blobs: &Blobs,
    spec: &Signed<RunSpec>,
    (what, hash, most): (&'static str, Hash, u64),
    slot: &Arc<Slot>,
) -> Result<bool, RunError> {
    let run = RunId::of(spec);
    if blobs.forget_damaged(hash).await.map_err(|error| RunError::File { what, error })? {
        warn!(%run, what, "a file of a training run is damaged, and is fetched again");
    }
    let (mut deadline, mut here, most_parts) = (Instant::now() + FIND, 0, Arc::new(AtomicU64::new(0)));
    let mut is_new = false;
    while blobs.path(&hash).is_none() {
        is_new = true;
        let mut donors = who_knows(swarm, run, Some(spec.payload())).await;
        donors.push(spec.signer());
        let (parts, slot) = (Arc::clone(&most_parts), Arc::clone(slot));
        let note = move |progress: Progress| {
            parts.fetch_max(progress.done, Ordering::Relaxed);
            let here = progress.done.saturating_mul(PART_BYTES).min(progress.bytes);
            *lock(&slot) = Some(Coming { what: what.to_owned(), here, bytes: progress.bytes });
        };
        let fetched = blobs.fetch(swarm, hash, most, &Donors::from(donors), note).await;
        let now_here = most_parts.load(Ordering::Relaxed);
        if now_here > here {
            (here, deadline) = (now_here, Instant::now() + FIND);
        }
        match fetched {
            Ok(_) => info!(%run, what, bytes = blobs.length(&hash), "a file of a training run has come"),
            Err(BlobError::Stopped) => return Err(RunError::Stopped),
            Err(error @ (BlobError::Io { .. } | BlobError::Full { .. } | BlobError::TooLong { .. })) => {
                return Err(RunError::File { what, error });
            }
            Err(error) if Instant::now() >= deadline => return Err(RunError::File { what, error }),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
    Ok(is_new)
}
