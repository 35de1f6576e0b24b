//! Bonds of runs that want one: those that this node pledges as a peer, and those that it holds as a validator.
//!
//! ```text
//! peer                                  validator
//!  | expects an escrow of kind bond        |
//!  |-- Pledge ---------------------------->|
//!  |<---------------- terms, an invoice ---| their subject is the run and the peer
//!  |== locks it ==========================>|
//!  |-- Pledge ---------------------------->|
//!  |<-------------------------- Pledged ---| its word, of the round that goes on
//!  | joins with that                       |
//! ```
//! [`consortium_training::rounds::bond`] says how nodes decide on joins, and what a liar can do. Here is the money: who pledges
//! (`pledge`), and who holds (`holder`); both act by the log of the run, read apart from the rounds as for pay.
//!
//! # When it comes back
//! The validator gives a bond back when the run has ended; or when its peer takes no part (it left, was let go, or never came)
//! and no word on the bond can be used any more, which takes three rounds, or ten seconds where that is longer. It takes a bond when a certain record proves abuse
//! by the peer for which it stands, and keeps it: a bond's payee is its validator. A validator that leaves a run, or
//! cannot take it up again when it starts, gives back all that it holds, without looking any further. Whatever anyone does or
//! does not do, a bond is back with its peer when its time is over, 18 blocks before the deadline if its validator runs.
//!
//! # For how long
//! The delta follows from the specification, and covers the run with all its deadlines at twice the usual pace of blocks; a
//! longer run can have no bond. A run in which rounds pass without training, for want of peers, may outlast it all the same:
//! its peers go on then, with nothing to lose but fees. For less than what is left of the run no word is given: who comes back
//! late pledges anew.
//!
//! # What a peer risks
//! The validators are asked in turn, from a place on that follows from the peer's name. One that does not answer while it
//! holds a bond is left after some minutes, and another bond is pledged, but never a third: so much may be locked until its
//! deadline. A dishonest validator can keep a bond, once, and is found out ([`consortium_ledger::escrow`]). A node that forfeits
//! a bond pledges no other in that run: something is wrong with it.
//!
//! # Limits
//! Who asks for a bond and never locks it holds a place at that validator for a day: there are 256 for a run. Bonds
//! share the payments that a channel carries at once, fifty, with all else.

#[cfg(not(feature = "lightning"))]
use std::path::Path;

#[cfg(not(feature = "lightning"))]
use consortium_protocol::wire::train::{RunId, RunSpec, TrainAnswer};
#[cfg(not(feature = "lightning"))]
use consortium_protocol::{NodeId, Signed};

#[cfg(not(feature = "lightning"))]
use super::{RunHandle, view::BondView};

#[cfg(feature = "lightning")]
mod desk;
#[cfg(feature = "lightning")]
mod follower;
#[cfg(feature = "lightning")]
mod holder;
#[cfg(feature = "lightning")]
mod pledge;

#[cfg(feature = "lightning")]
pub(super) use desk::Bonds;

/// Bonds of one run that a validator has open at a time, locked or not.
#[cfg(feature = "lightning")]
const MOST_OPEN: usize = 256;

/// A node without a wallet: it takes no part in runs that want bonds, and holds none.
#[cfg(not(feature = "lightning"))]
#[derive(Clone, Debug)]
pub(super) struct Bonds;

#[cfg(not(feature = "lightning"))]
impl Bonds {
    pub(super) fn follow(&self, _spec: Signed<RunSpec>, _directory: &Path, _handle: Option<RunHandle>) {}

    pub(super) fn asked(&self, _run: RunId, _by: NodeId) -> TrainAnswer {
        TrainAnswer::No
    }

    pub(super) fn view(&self, _run: RunId) -> Option<BondView> {
        None
    }
}
