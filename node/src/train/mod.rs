//! Runs of training that this node takes part in.
//!
//! ```text
//!                 gossip, streams (net, post)          or, in one process: hub
//! others  <────────────────────────────────────────────────────> Wire
//!                                                                  │ Heard
//! trainings ── join ──> driver ── Input ──> rounds::Machine ── Output ──> deeds
//!    announce, list,       │                                       ├─ store   durable before anything that follows
//!    status, export        │                                       ├─ errands files of others
//!                          └────────── what is done <── work ──────┴─ bench   one thing computed at a time
//! ```
//! [`consortium_training::rounds`] has the rules, and says how a machine is driven; [`consortium_training::run`] what a
//! specification means, and what is computed. Here are the disk, the network, and time.
//!
//! # Files
//! Updates and parameters are files of this node ([`crate::blobs`]), named by hash and given to whoever asks. An update's name
//! is a secret until its peer reveals it, and so is the update. Parameters have one encoding: all nodes that hold a state hold
//! the same file, and a newcomer fetches it from several at once, checks its state hash, and needs no update of before.
//! Those after the last record, those before the last aggregate, and the first are kept. Updates are kept for as long as all of
//! a run take no more than 8 GiB, and for four rounds in any case: with all of them a run can be replayed
//! ([`Trainings::export`]).
//!
//! # What is said where
//! Small messages by gossip, on a topic of the run, which only its nodes hear. Proposals, new views, entries and what is for
//! one node alone go by streams ([`consortium_protocol::wire::TRAIN`]). Gossip passes on nothing twice, so that what is said
//! again has a number; that is not signed. So nobody takes, or passes on, what does not read well, is of other rounds than
//! those at hand, is not for its signer to say, or is the same again too soon (`gate`); but for a few words of strangers in a
//! second.
//!
//! # When things go wrong
//! - *A crash*: log, ballot, card, commitment, optimiser and error feedback are on the disk before anyone hears of them. The
//!   node goes on from there, and what it trains is the same to the bit.
//! - *A full disk*: what was there stays, the trouble is told ([`view::RunStatus::last_error`]), and the same is tried again
//!   every five seconds; until then nothing leaves that is not on the disk.
//! - *An update that cannot be had*: in a round its peer is refused for it; when it was accepted, the parameters are
//!   fetched instead.
//! - *A node that lies about a file*: its bytes do not match their name, or the state hash; that file is not taken again.
//! - *Too much to read*: messages are lost, and said again.
//!
//! # Limits
//! Whoever comes must fetch the parameters within two rounds: those before that are given by nobody. While parameters change
//! they are in memory three times, and once more as the bytes of their file. What is measured is measured to the end: a node
//! that stops waits for it. A run's log is read whole at the start.
//!
//! # Whom it pays
//! A peer can be told to train only while that pays for its power ([`pause`]): it then leaves as a member, goes on following
//! the run, and joins again by itself.
//!
//! # Who pays
//! What certain records pay out is read from the log, apart from the rounds: `pay`, and [`Trainings::payouts`]. An author takes
//! part in its run from the announcement on, if only by watching: otherwise it would not hear what it owes. Where peers pledge
//! bonds, these are looked after alike, apart from the rounds: `bonds`.

mod announcements;
mod bench;
mod bonds;
mod deeds;
mod driver;
mod errands;
pub(crate) mod export;
pub(crate) mod files;
mod finding;
mod gate;
mod history;
pub mod hub;
mod log;
mod net;
mod owed;
pub mod pause;
mod pausing;
mod pay;
mod post;
mod progress;
mod roster;
mod serve;
mod shelf;
mod store;
#[cfg(test)]
pub(crate) mod tests;
mod trainings;
pub mod view;
mod wire;
mod work;

use consortium_protocol::wire::train::RunId;
use consortium_training::TrainError;
use consortium_training::rounds::BadEntry;

use crate::blobs::BlobError;

pub use driver::{Parts, RunHandle, spawn};
pub use owed::Owed;
pub use pay::Payouts;
pub use roster::Roster;
pub use shelf::Shelf;
pub use store::{Kept, Store, StoreError};
pub use trainings::{DIRECTORY, TrainingParts, Trainings};
pub use wire::{Heard, Wire};

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
    /// A file cannot be kept.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The directory of runs cannot be made.
    #[error("{0}")]
    Directory(String),
    /// A run is announced by its author alone.
    #[error("a run is announced by the node that signed its specification")]
    Author,
    /// Nobody who was reached knows the run.
    #[error("nobody who can be reached knows run {0}")]
    NotFound(RunId),
    /// Nobody gives a file that the run computes with.
    #[error("the run's {what} cannot be had: {error}")]
    File {
        /// Which.
        what: &'static str,
        /// Why.
        error: BlobError,
    },
    /// This node takes no part in it.
    #[error("this node takes no part in run {0}")]
    NotJoined(RunId),
    /// The run pays by escrows, which takes a wallet.
    #[error(
        "run {0} pays over Lightning alone, by escrows, and this node has no wallet: give it one (see \
         `consortium-node start --help`), take part by --watch, or take another run"
    )]
    NoWallet(RunId),
    /// Escrows are to pay, and nobody but the payer would judge them.
    #[error(
        "escrows need a validator that does not pay itself: name another node by --validator, or leave out --escrow to pay \
         on tabs"
    )]
    NoJudge,
    /// It takes part in too many.
    #[error("this node takes part in {0} runs already; leave one first")]
    TooMany(usize),
    /// A file that should be here is not.
    #[error("{0} of the run is not here")]
    Gone(&'static str),
    /// The node ends.
    #[error("the node ends")]
    Stopped,
}
