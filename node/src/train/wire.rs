//! How the nodes of a run reach each other: by the swarm ([`super::net`]), or within one process ([`super::hub`]).

use std::path::PathBuf;

use consortium_protocol::wire::train::{StateFile, TrainMessage};
use consortium_protocol::{Hash, NodeId};
use tokio::sync::OwnedSemaphorePermit;

use crate::blobs::{BlobError, Donors};

/// A message of a run that arrived; its signatures were verified.
#[derive(Debug)]
pub struct Heard {
    /// Who passed it on.
    pub from: NodeId,
    /// What it says.
    pub message: TrainMessage,
    /// What it takes of the room for messages of the run, if that is counted.
    pub room: Option<OwnedSemaphorePermit>,
}

/// The way from one node of a run to the others. Nothing here waits for long, and what is lost is said again.
pub trait Wire: Clone + Send + Sync + 'static {
    /// Tells all nodes of the run something small.
    fn gossip(&self, message: TrainMessage) -> impl Future<Output = ()> + Send;

    /// Tells one node something, without waiting for it.
    fn send(&self, to: NodeId, message: TrainMessage);

    /// Tells one node an entry and those that follow it, of which these are the canonical encodings, without waiting for it.
    fn send_entries(&self, to: NodeId, first: Vec<u8>, next: Vec<Vec<u8>>);

    /// Asks a node which file holds the parameters of a state.
    fn locate(&self, at: NodeId, state: Hash) -> impl Future<Output = Option<StateFile>> + Send;

    /// Gets a file of at most `most` bytes from those of `donors` that have it, or some of it.
    ///
    /// # Errors
    /// Nobody has it, all who had it are gone, or the disk refuses. What has come stays for the next attempt.
    fn fetch(&self, file: Hash, most: u64, donors: Donors) -> impl Future<Output = Result<PathBuf, BlobError>> + Send;

    /// Nodes that say they know the run, besides those that its records name.
    fn providers(&self) -> impl Future<Output = Vec<NodeId>> + Send;
}
