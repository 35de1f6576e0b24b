//! How the nodes of a run reach each other.
//!
//! Small messages travel by gossip, on a topic of the run ([`run_topic`]), each as a [`TrainGossip`]. All else is asked on
//! streams of the protocol [`crate::wire::TRAIN`]: the asking side writes a [`TrainRequest`] behind a `u32` little-endian
//! length, and reads a [`TrainAnswer`], framed alike. Updates and parameters are files ([`crate::wire::blob`]).

use serde::{Deserialize, Serialize};

use super::{MAX_NEXT, Pledged, RunId, RunSpec, TrainMessage};
use crate::envelope::{ENVELOPE_BYTES, Invalid, Payload as _, Signed};
use crate::hash::{Hash, hex_text};
use crate::identity::NodeId;
use crate::wire::Message;
use crate::wire::blob::MAX_BLOB_BYTES;

/// Domain of what bonds are about.
const PLEDGE: &str = "consortium training pledge 1";

/// The gossip topic that carries the small messages of a run: named by the first 16 hexadecimal digits of its id.
#[must_use]
pub fn run_topic(run: RunId) -> String {
    format!("/consortium/train/{}/1", hex_text(&run.0.as_bytes()[..8]))
}

/// The key under which Kademlia finds who knows a run.
#[must_use]
pub fn run_key(run: RunId) -> Hash {
    Hash::of(&[b"consortium/train/run/".as_slice(), run.0.as_bytes()].concat())
}

/// What an escrow with a peer's bond is about: BLAKE3 in `derive_key` mode over the run and the peer. The escrow's own name
/// tells one pledge of the peer from another.
#[must_use]
pub fn pledge_subject(run: RunId, peer: NodeId) -> Hash {
    Hash::from_bytes(blake3::derive_key(PLEDGE, &[run.0.as_bytes().as_slice(), peer.as_bytes()].concat()))
}

/// A small message of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainGossip {
    /// What is said.
    pub message: TrainMessage,
    /// How often it was said before by whoever says it again: gossip passes on nothing twice.
    pub again: u32,
}

impl Message for TrainGossip {
    // A card of 64 peers; gossip carries 48 KiB.
    const MAX_BYTES: usize = 44 * 1024;

    fn check(&self) -> Result<(), Invalid> {
        self.message.check()?;
        Invalid::unless(self.message.is_small(), "message", "not for gossip")
    }
}

/// A file that holds the parameters of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateFile {
    /// State hash of the parameters.
    pub state: Hash,
    /// Name of the file: the BLAKE3 hash of its content.
    pub file: Hash,
    /// Its length.
    pub bytes: u64,
}

/// What one node of a run asks of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrainRequest {
    /// Takes a message; answered by [`TrainAnswer::Taken`].
    Say(Box<TrainMessage>),
    /// Asks for the specification of a run; answered by [`TrainAnswer::Run`].
    Run(RunId),
    /// Asks for the file with these parameters; answered by [`TrainAnswer::File`].
    State {
        /// The run.
        run: RunId,
        /// State hash of the parameters.
        state: Hash,
    },
    /// The asking peer would have this validator hold its bond for a run, or holds one there already. It asks again until it
    /// has joined; answered by [`TrainAnswer::Pledged`], by [`TrainAnswer::Taken`] while nothing is locked yet, or by
    /// [`TrainAnswer::No`].
    Pledge(RunId),
}

impl TrainRequest {
    /// The canonical bytes of [`Self::Say`] of an entry and at most [`MAX_NEXT`] that follow it, of which those are at
    /// hand: they are not read again.
    #[must_use]
    pub fn say_entries(first: &[u8], next: &[Vec<u8>]) -> Vec<u8> {
        const { assert!(MAX_NEXT <= 0xff) };
        let count = next.len() as u8;
        let array = if count < 24 { vec![0x80 | count] } else { vec![0x98, count] };
        // Two maps of one pair each, from a text of 3 and one of 7 bytes; then an array of the entry and an array.
        [b"\xa1\x63Say\xa1\x67Entries\x82".as_slice(), first, &array, &next.concat()].concat()
    }
}

impl Message for TrainRequest {
    const MAX_BYTES: usize = TrainMessage::MAX_BYTES + 64;

    fn check(&self) -> Result<(), Invalid> {
        match self {
            Self::Say(message) => message.check(),
            Self::Run(_) | Self::State { .. } | Self::Pledge(_) => Ok(()),
        }
    }
}

/// The answer to a [`TrainRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrainAnswer {
    /// The message was taken, or what was asked for is under way.
    Taken,
    /// There is no such run here, no such file, or no room for the message.
    No,
    /// The specification, signed by the author of the run.
    Run(Box<Signed<RunSpec>>),
    /// The file.
    File(StateFile),
    /// The answering validator holds the asking peer's bond.
    Pledged(Signed<Pledged>),
}

impl Message for TrainAnswer {
    const MAX_BYTES: usize = RunSpec::MAX_BYTES + ENVELOPE_BYTES + 64;

    fn check(&self) -> Result<(), Invalid> {
        let Self::File(file) = self else { return Ok(()) };
        Invalid::unless(file.bytes <= MAX_BLOB_BYTES, "bytes", "longer than files may be")
    }
}
