//! What the machine wants done.

use std::sync::PoisonError;
use std::time::Duration;

use consortium_protocol::wire::train::TrainMessage;
use consortium_protocol::{Hash, NodeId};
use consortium_training::rounds::{Output, Stored};
use tracing::info;

use super::bench::{Apply, Evaluate, Train};
use super::driver::{ASK_AGAIN, Driver, Event, receivers};
use super::errands::Wanted;
use super::wire::Wire;
use super::work::Order;

/// Least time in which the updates of a record must come, before the parameters are fetched instead.
const UPDATES: Duration = Duration::from_secs(30);

impl<W: Wire> Driver<W> {
    /// Has one thing done; false if nothing more is to be done, as the node stops.
    pub(super) async fn perform(&mut self, output: Output) -> bool {
        match output {
            Output::Persist(stored) => {
                self.remember(&stored);
                return self.persist(stored).await;
            }
            Output::Broadcast(message) => self.broadcast(message).await,
            Output::Send { to, message } => self.errands.wire.send(to, message),
            Output::SendEntries { to, round } => self.send_entries(to, round),
            Output::Train { round, trained, beacon, peers, base } => {
                self.works.order(Order::Train(Train { round, trained, beacon, peers, base }));
                self.measure_power();
            }
            Output::Publish { update, .. } => {
                // It is among the files of this node since it was made; its name is a secret no more.
                if self.errands.blobs.length(&update).is_none() {
                    self.trouble(&"this node's update is gone");
                }
            }
            Output::Fetch { round, peer, update, bytes } => self.fetch(round, Wanted { peer, update, bytes }),
            Output::Evaluate { round, assignment, peers, evaluation, base, from, judge, updates } => {
                let (before, earlier) = (None, self.earlier());
                let order =
                    Evaluate { round, assignment, peers, evaluation, base, from, judge, before, updates, earlier };
                self.evaluate(order);
            }
            Output::Aggregate { round, base, updates } => self.aggregate(round, base, updates),
            Output::Revert { round, to } => self.works.order(Order::Apply(Apply::Revert { round, to })),
            Output::Resync { round, state, donors } => self.resync(round, state, donors),
            // It is paid from the log, which has it, too: `pay`.
            Output::Owe { .. } => {}
            Output::Ended => info!(run = %self.run, "the training run has ended"),
        }
        true
    }

    fn remember(&mut self, stored: &Stored) {
        if let Stored::Trained { commit, update, .. } = stored {
            self.fetched.insert(*update, commit.payload().round);
        }
    }

    async fn broadcast(&mut self, message: TrainMessage) {
        self.progress.say(&message);
        if message.is_small() {
            return self.errands.wire.gossip(message).await;
        }
        for to in receivers(self, &message) {
            self.errands.wire.send(to, message.clone());
        }
    }

    /// Sends entries from the disk, aside. Whoever asks while others are sent asks again.
    fn send_entries(&mut self, to: NodeId, round: u64) {
        if self.sending.as_ref().is_some_and(|earlier| !earlier.is_finished()) {
            return;
        }
        let (store, wire) = (self.store.clone(), self.errands.wire.clone());
        self.sending = Some(self.under_way.spawn(async move {
            let read = tokio::task::spawn_blocking(move || {
                store.lock().unwrap_or_else(PoisonError::into_inner).entries(round)
            });
            match read.await {
                Ok(Ok(entries)) => {
                    let mut entries = entries.into_iter();
                    if let Some(first) = entries.next() {
                        wire.send_entries(to, first, entries.collect());
                    }
                }
                Err(_) => {}
                Ok(Err(error)) => return Event::Sent(Err(error)),
            }
            Event::Sent(Ok(()))
        }));
    }

    fn fetch(&mut self, round: u64, wanted: Wanted) {
        let time = Duration::from_millis(self.spec.payload().phases.reveal_ms);
        let errands = self.errands.clone();
        self.under_way.spawn(async move {
            let result = errands.update(wanted, time).await;
            Event::Fetched { round, peer: wanted.peer, result }
        });
    }

    /// Updates of the last round that are here.
    fn earlier(&self) -> Vec<Hash> {
        let Some(entry) = self.machine.chain().entry() else { return Vec::new() };
        let updates = entry.body.reveals.iter().map(|reveal| reveal.payload().update);
        updates.filter(|update| self.errands.blobs.length(update).is_some()).collect()
    }

    /// Measures, once the parameters before the last aggregate are here, if they are needed: without them the aggregate
    /// cannot be judged, and there is no card.
    pub(super) fn evaluate(&mut self, order: Evaluate) {
        self.asked = Some(order.clone());
        let is_here = |state: &Hash| {
            let file = self.shelf.file(*state);
            file.is_some_and(|file| self.errands.blobs.length(&file.file).is_some())
        };
        let Some(state) = order.older().filter(|state| !is_here(state)) else {
            return self.works.order(Order::Evaluate(order));
        };
        let errands = self.errands.clone();
        self.measure_after(async move {
            loop {
                if let Some(before) = errands.state(state, &[]).await {
                    return Event::Evaluate(Box::new(order), before);
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
        });
    }

    /// Applies updates, once all are here.
    fn aggregate(&mut self, round: u64, base: Hash, updates: Vec<(NodeId, Hash, u64)>) {
        let errands = self.errands.clone();
        let time = UPDATES.max(Duration::from_millis(self.spec.payload().phases.settle_ms));
        self.apply_after(async move {
            for (peer, update, bytes) in &updates {
                let wanted = Wanted { peer: *peer, update: *update, bytes: *bytes };
                if errands.blobs.length(update).is_none() && errands.update(wanted, time).await.is_err() {
                    return Event::NotApplied("an accepted update could not be had; the parameters are fetched");
                }
            }
            Event::Apply(Apply::Aggregate { round, base, updates: updates.into_iter().map(|u| u.1).collect() })
        });
    }

    /// Fetches parameters, for as long as nothing newer is wanted.
    fn resync(&mut self, round: u64, state: Hash, donors: Vec<NodeId>) {
        let errands = self.errands.clone();
        let own = self.shelf.file(state).and_then(|file| errands.blobs.path(&file.file));
        info!(run = %self.run, round, donors = donors.len(), "fetching the parameters of a run");
        self.apply_after(async move {
            let mut found = own;
            loop {
                if let Some(file) = found {
                    return Event::Apply(Apply::Load { round, state, file });
                }
                found = errands.state(state, &donors).await.map(|got| got.path);
                if found.is_none() {
                    tokio::time::sleep(ASK_AGAIN).await;
                }
            }
        });
    }

    pub(super) fn measure_after(&mut self, errand: impl Future<Output = Event> + Send + 'static) {
        if let Some(earlier) = self.measuring.take() {
            earlier.abort();
        }
        self.measuring = Some(self.under_way.spawn(errand));
    }

    fn apply_after(&mut self, errand: impl Future<Output = Event> + Send + 'static) {
        if let Some(earlier) = self.applying.take() {
            earlier.abort();
        }
        self.applying = Some(self.under_way.spawn(errand));
    }
}
