//! The bonds of all runs of this node.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consortium_protocol::wire::train::{Pledged, RunId, RunSpec, TrainAnswer};
use consortium_protocol::{NodeId, RootKey, Signed};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::MOST_OPEN;
use super::follower::{Follower, Parts};
use crate::escrow::EscrowDesk;
use crate::swarm::SwarmHandle;
use crate::train::RunHandle;
use crate::train::view::BondView;

/// Bonds of a node's runs. A clone is the same.
#[derive(Clone)]
pub(in crate::train) struct Bonds {
    inner: Arc<Inner>,
}

struct Inner {
    /// None without a wallet.
    desk: Option<EscrowDesk>,
    key: Arc<RootKey>,
    swarm: SwarmHandle,
    followed: Mutex<BTreeMap<RunId, Followed>>,
    stop: CancellationToken,
}

struct Followed {
    shared: Shared,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// What the task of a run shares with whoever asks about it. A clone is the same.
#[derive(Clone, Default)]
pub(super) struct Shared(Arc<(Mutex<Told>, Notify)>);

/// What is shared.
#[derive(Default)]
pub(super) struct Told {
    /// Whether this node holds bonds now.
    pub(super) holds: bool,
    /// Peers that asked since this was looked at last.
    pub(super) asked: BTreeSet<NodeId>,
    /// This node's word on bonds that it holds.
    pub(super) words: BTreeMap<NodeId, Signed<Pledged>>,
    /// This node's own bond.
    pub(super) view: Option<BondView>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is changed in one step: a panic leaves it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn told(&self) -> MutexGuard<'_, Told> {
        lock(&self.0.0)
    }

    /// Waits until somebody asks.
    pub(super) async fn is_asked(&self) {
        self.0.1.notified().await;
    }

    fn ask(&self, by: NodeId) -> TrainAnswer {
        let mut told = self.told();
        if !told.holds || (told.asked.len() >= MOST_OPEN && !told.asked.contains(&by)) {
            return TrainAnswer::No;
        }
        told.asked.insert(by);
        self.0.1.notify_one();
        told.words.get(&by).map_or(TrainAnswer::Taken, |word| TrainAnswer::Pledged(word.clone()))
    }
}

impl Bonds {
    /// With the escrows of this node, if it has a wallet; until `stop`.
    pub(in crate::train) fn new(
        desk: Option<EscrowDesk>,
        key: Arc<RootKey>,
        swarm: SwarmHandle,
        stop: CancellationToken,
    ) -> Self {
        Self { inner: Arc::new(Inner { desk, key, swarm, followed: Mutex::default(), stop }) }
    }

    /// Looks after the bonds of a run, which is in `directory`, until all is done; with `handle` as long as this node takes part
    /// in it. Whoever did so before is stopped first.
    pub(in crate::train) fn follow(&self, spec: Signed<RunSpec>, directory: &Path, handle: Option<RunHandle>) {
        let Some(desk) = self.inner.desk.clone().filter(|_| spec.payload().has_bond()) else { return };
        let run = RunId::of(&spec);
        let mut followed = lock(&self.inner.followed);
        let before = followed.remove(&run);
        let (stop, shared) = (self.inner.stop.child_token(), Shared::default());
        let parts = Parts {
            desk,
            key: Arc::clone(&self.inner.key),
            swarm: self.inner.swarm.clone(),
            spec,
            directory: directory.to_owned(),
            handle,
            shared: shared.clone(),
        };
        let follower = Follower::new(parts, stop.clone());
        let task = tokio::spawn(async move {
            if let Some(Followed { stop, task, .. }) = before {
                stop.cancel();
                let _ended_or_broken_off = task.await;
            }
            follower.work().await;
        });
        followed.insert(run, Followed { shared, stop, task });
    }

    /// A peer would have this node hold its bond.
    pub(in crate::train) fn asked(&self, run: RunId, by: NodeId) -> TrainAnswer {
        let shared = lock(&self.inner.followed).get(&run).map(|followed| followed.shared.clone());
        shared.map_or(TrainAnswer::No, |shared| shared.ask(by))
    }

    /// This node's own bond for a run.
    pub(in crate::train) fn view(&self, run: RunId) -> Option<BondView> {
        lock(&self.inner.followed).get(&run)?.shared.told().view.clone()
    }
}
