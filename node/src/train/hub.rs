//! Nodes of a run within one process: for a run on one machine, and for tests.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consortium_protocol::wire::Message as _;
use consortium_protocol::wire::train::{RunId, StateFile, TrainMessage, TrainRequest};
use consortium_protocol::{Hash, NodeId};
use tokio::sync::mpsc;

use super::shelf::Shelf;
use super::wire::{Heard, Wire};
use crate::blobs::{BlobError, Blobs, Donors};

/// Messages that wait for a node at most; more are lost.
const INBOX: usize = 1024;

/// Joins nodes of one process. A clone is the same.
#[derive(Clone, Default)]
pub struct Hub {
    places: Arc<Mutex<BTreeMap<(RunId, NodeId), Place>>>,
}

#[derive(Clone)]
struct Place {
    inbox: mpsc::Sender<Heard>,
    blobs: Blobs,
    shelf: Shelf,
}

/// A node's way into a [`Hub`].
#[derive(Clone)]
pub struct HubWire {
    hub: Hub,
    run: RunId,
    me: NodeId,
    blobs: Blobs,
}

impl Hub {
    /// Adds a node of a run; what it has for others is on its shelf and among its files. One that is there already leaves.
    #[must_use]
    pub fn enter(&self, run: RunId, me: NodeId, blobs: Blobs, shelf: Shelf) -> (HubWire, mpsc::Receiver<Heard>) {
        let (inbox, heard) = mpsc::channel(INBOX);
        self.lock().insert((run, me), Place { inbox, blobs: blobs.clone(), shelf });
        (HubWire { hub: self.clone(), run, me, blobs }, heard)
    }

    /// Takes a node out: nobody reaches it any more.
    pub fn leave(&self, run: RunId, node: NodeId) {
        self.lock().remove(&(run, node));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(RunId, NodeId), Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, run: RunId, node: NodeId) -> Option<Place> {
        self.lock().get(&(run, node)).cloned()
    }
}

impl HubWire {
    /// What a node hears of a message: what its bytes say.
    fn deliver(&self, place: &Place, bytes: &[u8]) {
        if let Ok(message) = TrainMessage::decode(bytes) {
            let _full_or_gone = place.inbox.try_send(Heard { from: self.me, message, room: None });
        }
    }

    fn is_in(&self) -> bool {
        self.hub.lock().contains_key(&(self.run, self.me))
    }
}

impl Wire for HubWire {
    async fn gossip(&self, message: TrainMessage) {
        let bytes = message.encode();
        let places: Vec<Place> = {
            let all = self.hub.lock();
            let others = all.iter().filter(|((run, node), _)| *run == self.run && *node != self.me);
            others.map(|(_, place)| place.clone()).collect()
        };
        if self.is_in() {
            places.iter().for_each(|place| self.deliver(place, &bytes));
        }
    }

    fn send(&self, to: NodeId, message: TrainMessage) {
        if let Some(place) = self.hub.place(self.run, to).filter(|_| self.is_in()) {
            self.deliver(&place, &message.encode());
        }
    }

    fn send_entries(&self, to: NodeId, first: Vec<u8>, next: Vec<Vec<u8>>) {
        if let Some(place) = self.hub.place(self.run, to).filter(|_| self.is_in())
            && let Ok(TrainRequest::Say(message)) = TrainRequest::decode(&TrainRequest::say_entries(&first, &next))
        {
            let _full_or_gone = place.inbox.try_send(Heard { from: self.me, message: *message, room: None });
        }
    }

    async fn locate(&self, at: NodeId, state: Hash) -> Option<StateFile> {
        self.hub.place(self.run, at)?.shelf.file(state)
    }

    async fn fetch(&self, file: Hash, most: u64, donors: Donors) -> Result<PathBuf, BlobError> {
        if let Some(path) = self.blobs.path(&file) {
            return Ok(path);
        }
        let asked = donors.sure.len() + donors.others.len();
        for donor in donors.sure.into_iter().chain(donors.others).filter(|donor| *donor != self.me) {
            let Some(theirs) = self.hub.place(self.run, donor).and_then(|place| place.blobs.path(&file)) else {
                continue;
            };
            let Ok(bytes) = tokio::fs::read(&theirs).await else { continue };
            if bytes.len() as u64 > most {
                return Err(BlobError::TooLong { bytes: bytes.len() as u64, most });
            }
            if Hash::of(&bytes) == file {
                self.blobs.put(bytes).await?;
                return self.blobs.path(&file).ok_or(BlobError::Nowhere(asked));
            }
        }
        Err(BlobError::Nowhere(asked))
    }

    async fn providers(&self) -> Vec<NodeId> {
        self.hub.lock().keys().filter(|(run, _)| *run == self.run).map(|(_, node)| *node).collect()
    }
}
