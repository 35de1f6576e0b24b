//! What peers say to each other, byte for byte.
//!
//! Every type here has bounds ([`Message::MAX_BYTES`], [`Payload::MAX_BYTES`](crate::envelope::Payload::MAX_BYTES))
//! that a reader applies before it reads, rules that it applies before it believes, and golden bytes in
//! `tests/golden.rs`. A change of bytes is a change of the version in the protocol id.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cbor::{self, DecodeError};
use crate::cluster::ClusterId;
use crate::envelope::Invalid;
use crate::hash::hex_text;

pub mod audit;
pub mod blob;
pub mod election;
pub mod escrow;
pub mod fact;
pub mod heartbeat;
pub mod job;
pub mod ledger;
pub mod mandate;
pub mod pay;
pub mod pipeline;
pub mod rpc;
pub mod tab;
pub mod train;

/// Requests and replies ([`rpc`]).
pub const RPC: &str = "/consortium/rpc/1";
/// A job and its events, client to master ([`job`]).
pub const JOB: &str = "/consortium/job/1";
/// Frames from one stage to the next ([`pipeline`]).
pub const STAGE: &str = "/consortium/stage/1";
/// Frames from the last stage back to the driver ([`pipeline`]).
pub const TOKENS: &str = "/consortium/tokens/1";

/// A stage's opening of what it committed to ([`audit`]).
pub const OPENING: &str = "/consortium/opening/1";
/// Fraud proofs, by their digest ([`audit`]).
pub const EVIDENCE: &str = "/consortium/evidence/1";

/// Files, by the hash of their content ([`blob`]).
pub const BLOB: &str = "/consortium/blob/1";
/// What the nodes of a training run ask each other ([`train`]).
pub const TRAIN: &str = "/consortium/train/1";

/// The gossip topic that carries the facts of a cluster ([`fact::Fact`]): named by the first 16 hexadecimal digits of
/// its id.
pub fn gossip_topic(cluster: ClusterId) -> String {
    format!("/consortium/{}/facts/1", hex_text(&cluster.0.as_bytes()[..8]))
}

/// An unsigned message: bounded, canonical, checked.
pub trait Message: Serialize + DeserializeOwned {
    /// The longest encoding, in bytes.
    const MAX_BYTES: usize;

    /// The bounds and rules of the type.
    ///
    /// # Errors
    /// The first rule broken.
    fn check(&self) -> Result<(), Invalid>;

    /// The canonical bytes.
    fn encode(&self) -> Vec<u8> {
        cbor::to_vec(self)
    }

    /// Reads what [`Message::encode`] wrote.
    ///
    /// # Errors
    /// Oversize, not canonical, another type, or a rule broken.
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let message: Self = cbor::from_slice(bytes, Self::MAX_BYTES)?;
        message.check()?;
        Ok(message)
    }
}

/// Longest name of a model, in bytes.
pub const MAX_MODEL_NAME: usize = 96;
/// Longest text meant for a person in a refusal or an error, in bytes.
pub const MAX_TEXT: usize = 512;

/// `text`, cut to [`MAX_TEXT`] bytes.
pub fn bounded_text(text: impl Into<String>) -> String {
    let mut text = text.into();
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
    }
    text
}

/// Checks the length of a text.
fn check_text(text: &str, max: usize, field: &'static str) -> Result<(), Invalid> {
    Invalid::unless(text.len() <= max, field, "too long")
}
