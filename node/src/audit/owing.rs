//! What this node owes to workers: written down before it is booked, booked, told to them until they have booked it
//! too, and followed by the verdict if the work was drawn for an audit. A crash in between forgets nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use consortium_protocol::envelope::Signed;
use consortium_protocol::identity::{NodeId, RootKey};
use consortium_protocol::wire::audit::Verdict;
use consortium_protocol::wire::job::JobId;
use consortium_protocol::wire::pay::Acceptance;
use consortium_protocol::wire::rpc::{RefusalCode, Request, Response};
use futures::StreamExt as _;
use futures::stream;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::standings::Standings;
use crate::clock::wall_ms;
use crate::cluster::ClusterView;
use crate::storage::{Owed, OwedState, Storage, StorageError};
use crate::swarm::SwarmHandle;

/// Who could not be told is told again after this time.
const AGAIN: Duration = Duration::from_secs(10);
/// Time for a worker to book.
const BOOKING: Duration = Duration::from_secs(10);
/// Workers told at a time.
const AT_A_TIME: usize = 8;
/// Time for one worker in one round, so that the slow do not keep the others waiting.
const EACH: Duration = Duration::from_secs(20);
/// After this time nobody can be audited any more, in milliseconds.
const AUDITABLE: u64 = 24 * 3600 * 1000;

/// Cloneable handle.
#[derive(Clone)]
pub(super) struct Owing {
    storage: Storage,
    standings: Standings,
    wake: Arc<Notify>,
}

impl Owing {
    pub(super) fn new(storage: Storage, standings: Standings) -> Self {
        Self { storage, standings, wake: Arc::default() }
    }

    /// Takes on the debt for one attempt of a job.
    pub(super) async fn accept(&self, stages: Vec<Owed>) {
        if let Err(error) = self.storage.owe(stages.clone()).await {
            // Booked all the same: it is owed, though a crash could now forget to say so.
            warn!(%error, "what is owed could not be written down");
        }
        self.book(&stages).await;
        self.wake.notify_one();
    }

    /// Takes the verdict that the pay of drawn work goes by.
    pub(super) async fn judged(&self, verdict: &Signed<Verdict>) {
        if let Err(error) = self.storage.owe_judged(verdict).await {
            warn!(%error, "a verdict could not be written down for its worker");
        }
        self.wake.notify_one();
    }

    /// Books what a crash left unbooked. Returns drawn work that has no verdict yet.
    ///
    /// # Errors
    /// When what was written down cannot be read.
    pub(super) async fn recover(&self) -> Result<Vec<Owed>, StorageError> {
        self.book_left().await?;
        let due = self.storage.owed_unjudged(wall_ms().saturating_sub(AUDITABLE)).await?;
        Ok(due.into_iter().map(|state| state.owed).collect())
    }

    /// Books what could not be booked when it was accepted.
    async fn book_left(&self) -> Result<(), StorageError> {
        let mut unbooked: BTreeMap<JobId, Vec<Owed>> = BTreeMap::new();
        for state in self.storage.owed_unbooked().await? {
            unbooked.entry(state.owed.audit.order.payload().job).or_default().push(state.owed);
        }
        for stages in unbooked.values() {
            self.book(stages).await;
        }
        Ok(())
    }

    async fn book(&self, stages: &[Owed]) {
        let Some(first) = stages.first() else { return };
        let job = first.audit.order.payload().job;
        if self.standings.worked(stages.to_vec()).await
            && let Err(error) = self.storage.owe_booked(job).await
        {
            warn!(%error, "that a job is booked could not be written down");
        }
    }

    /// Tells workers what they are owed, until `stop`.
    pub(super) async fn tell(
        self,
        swarm: SwarmHandle,
        key: Arc<RootKey>,
        view: watch::Receiver<ClusterView>,
        stop: CancellationToken,
    ) {
        let teller = Teller { owing: self, swarm, key, view };
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = teller.owing.wake.notified() => {}
                () = tokio::time::sleep(AGAIN) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = teller.round() => {}
            }
        }
    }
}

struct Teller {
    owing: Owing,
    swarm: SwarmHandle,
    key: Arc<RootKey>,
    view: watch::Receiver<ClusterView>,
}

impl Teller {
    async fn round(&self) {
        let booked = self.owing.book_left().await;
        let workers = match booked.and(self.owing.storage.owed_workers().await) {
            Ok(workers) => workers,
            Err(error) => return warn!(%error, "workers cannot be told what they are owed"),
        };
        let present: Vec<NodeId> = {
            let view = self.view.borrow();
            workers.into_iter().filter(|worker| view.members.contains_key(worker)).collect()
        };
        let each = |worker| async move {
            if tokio::time::timeout(EACH, self.tell(worker)).await.is_err() {
                debug!(%worker, "a worker is slow to hear what it is owed");
            }
        };
        stream::iter(present).for_each_concurrent(AT_A_TIME, each).await;
    }

    /// Tells one worker, one thing after the other, until it does not answer.
    async fn tell(&self, worker: NodeId) {
        let states = match self.owing.storage.owed_to(worker).await {
            Ok(states) => states,
            Err(error) => return warn!(%error, "what a worker is owed cannot be read"),
        };
        for state in states {
            if let Err(reason) = self.tell_one(worker, state).await {
                return debug!(%worker, reason, "a worker could not be told what it is owed");
            }
        }
    }

    async fn tell_one(&self, worker: NodeId, state: OwedState) -> Result<(), String> {
        let Some((receipt, key)) = state.owed.audit.receipt().cloned().zip(state.owed.key()) else { return Ok(()) };
        let (storage, part) = (&self.owing.storage, state.owed.part);
        // What an API key owes this node for its own work is booked on both sides already.
        if worker == self.swarm.me() {
            return storage.owe_settled(key).await.map_err(|error| error.to_string());
        }
        if !state.told {
            let order = state.owed.audit.order.clone();
            let Some(pay) = Acceptance::pay_of(order.payload(), receipt.payload(), part) else { return Ok(()) };
            let acceptance = Acceptance { order, receipt, part, drawn: state.owed.drawn, pay };
            let request = Request::Accepted(Box::new(Signed::sign(&self.key, acceptance)));
            if self.is_booked(worker, request).await? {
                storage.owe_told(key).await.map_err(|error| error.to_string())?;
            } else {
                return storage.owe_settled(key).await.map_err(|error| error.to_string());
            }
        }
        if let Some(verdict) = state.verdict {
            self.is_booked(worker, Request::Judged(Box::new(verdict))).await?;
            storage.owe_settled(key).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// False when the worker will never book it.
    async fn is_booked(&self, worker: NodeId, request: Request) -> Result<bool, String> {
        match self.swarm.request(worker, request, BOOKING).await {
            Ok(Response::Ack) => Ok(true),
            Ok(Response::Refused(refusal)) if refusal.code == RefusalCode::Disputed => {
                warn!(%worker, reason = refusal.message, "a worker disputes what it is owed");
                Ok(false)
            }
            Ok(Response::Refused(refusal)) => Err(refusal.to_string()),
            Ok(_) => Err("an answer that does not fit the question".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}
