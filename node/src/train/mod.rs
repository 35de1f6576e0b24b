//! Runs of training that this node takes part in.

mod bench;
mod deeds;
mod driver;
mod errands;
mod history;
pub mod hub;
mod log;
mod progress;
mod roster;
mod shelf;
mod store;
#[cfg(test)]
mod tests;
pub mod view;
mod wire;
mod work;

use consortium_protocol::wire::train::RunId;
use consortium_protocol::{Msat, NodeId};
use consortium_training::TrainError;
use consortium_training::rounds::BadEntry;

pub use driver::{Parts, RunHandle, spawn};
pub use roster::Roster;
pub use shelf::Shelf;
pub use store::{Kept, Store, StoreError};
pub use wire::{Heard, Wire};

/// What the author of a run is to pay a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owed {
    /// The run.
    pub run: RunId,
    /// Who pays: this node.
    pub author: NodeId,
    /// Who is paid.
    pub peer: NodeId,
    /// By the record of this round.
    pub round: u64,
    /// How much.
    pub amount: Msat,
    /// In units of the run's smallest tranche.
    pub units: u32,
}

/// Why something could not be done with a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The disk, or what is on it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log on the disk is not one of this run.
    #[error("the log of the run is damaged: {0}")]
    Log(BadEntry),
    /// The run, or a file of it, is none that this node can compute with.
    #[error(transparent)]
    Train(#[from] TrainError),
}
