//! What the stages of a pipeline say to each other.
//!
//! A stream begins with a signed [`SessionOpen`] and carries frames from then on. A frame is
//! `header length (u32 LE) | header (canonical CBOR) | payload`; the header holds the payload's length and its BLAKE3,
//! so a reader knows how much to read before it reads, and that it read what was sent.

use serde::{Deserialize, Serialize};

use super::audit::StageReceipt;
use super::heartbeat::LayerRange;
use super::job::{JobId, Sampling};
use super::mandate::Mandate;
use super::{MAX_TEXT, bounded_text, check_text};
use crate::cbor::{self, DecodeError};
use crate::cluster::{ClusterId, MAX_MEMBERS};
use crate::envelope::{ENVELOPE_BYTES, Invalid, Payload, Signed};
use crate::hash::Hash;
use crate::identity::NodeId;
use crate::msat::Msat;

/// The longest header, in bytes.
pub const MAX_HEADER: usize = 8 * 1024;
/// The longest payload, in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024 * 1024;
/// How many rows (positions) one step carries.
pub const MAX_ROWS: usize = 512;
/// How many stages a pipeline has.
pub const MAX_STAGES: usize = MAX_MEMBERS;
/// The longest chain of receipts, in bytes.
pub const MAX_RECEIPTS: usize = MAX_STAGES * (StageReceipt::MAX_BYTES + ENVELOPE_BYTES + 8);

/// One stage of a route: who, and which layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hop {
    /// The node.
    pub node: NodeId,
    /// Its layers.
    pub range: LayerRange,
}

/// The master's order to serve a job: the first message on a [`super::STAGE`] stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionOpen {
    /// The cluster.
    pub cluster: ClusterId,
    /// The master's term.
    pub term: u64,
    /// The job.
    pub job: JobId,
    /// Counts the pipelines tried for this job: a higher one ends those before it.
    pub attempt: u32,
    /// Digest of the model.
    pub model: Hash,
    /// Who feeds the first stage and gets the tokens.
    pub driver: NodeId,
    /// The stages in order: 1 to 64, contiguous from layer 0.
    pub route: Vec<Hop>,
    /// What one token through one layer of each stage is paid: one for each stage of the route.
    pub prices: Vec<Msat>,
    /// What the driver is paid for each position.
    pub master_fee: Msat,
    /// How to draw.
    pub sampling: Sampling,
    /// Tokens of the prompt, without those that were emitted before.
    pub prompt_len: u32,
    /// Positions to keep room for; at least `prompt_len`.
    pub max_positions: u32,
    /// Who pays.
    pub payer: NodeId,
    /// The payer's commitment to the nonce of the audit's draw ([`super::audit::Nonce`]).
    pub challenge: Hash,
    /// The payer's word for it. Whether the order keeps to it is for [`check_mandate`](super::mandate::check_mandate) to
    /// tell.
    pub mandate: Signed<Mandate>,
}

impl SessionOpen {
    /// What one position through all layers costs, the master's fee included; none on overflow.
    #[must_use]
    pub fn position_cost(&self) -> Option<Msat> {
        let stages = self.route.iter().zip(&self.prices);
        stages
            .map(|(hop, price)| price.checked_mul(hop.range.count().into()))
            .try_fold(self.master_fee, |sum, cost| sum.checked_add(cost?))
    }
}

impl Payload for SessionOpen {
    const DOMAIN: &'static str = "session";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 16 * 1024;

    fn check(&self) -> Result<(), Invalid> {
        Invalid::unless((1..=MAX_STAGES).contains(&self.route.len()), "route", "1 to 64 stages")?;
        let mut next = 0_u32;
        for hop in &self.route {
            hop.range.check()?;
            Invalid::unless(u32::from(hop.range.first) == next, "route", "layers contiguous from 0")?;
            next = u32::from(hop.range.last) + 1;
        }
        Invalid::unless(self.prices.len() == self.route.len(), "prices", "one for each stage")?;
        Invalid::unless(self.prompt_len <= self.max_positions, "max_positions", "less than the prompt")?;
        self.sampling.check()
    }
}

/// Element type of a step's payload, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
}

impl Dtype {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
        }
    }
}

/// What a step is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepHeader {
    /// Counts the frames of the session.
    pub seq: u32,
    /// Position of the first row.
    pub pos: u32,
    /// The token of each row: 1 to 512.
    pub tokens: Vec<u32>,
    /// Whether the last stage is to draw the token after the last row.
    pub sample: bool,
    /// Elements per row of the payload; 0 for the first stage, which has tokens alone.
    pub hidden: u32,
    /// Element type of the payload.
    pub dtype: Dtype,
}

impl StepHeader {
    /// Length of the payload that belongs to this header, in bytes; `None` on overflow.
    pub fn payload_len(&self) -> Option<usize> {
        usize::try_from(self.hidden).ok()?.checked_mul(self.tokens.len())?.checked_mul(self.dtype.size())
    }
}

/// Why a stage cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
#[error("stage {stage} on {node}: {code:?}: {message}")]
pub struct StageFailure {
    /// Place in the route.
    pub stage: u16,
    /// The node at that place.
    pub node: NodeId,
    /// What a program decides on.
    pub code: StageFailureCode,
    /// What a person reads, at most 512 bytes.
    pub message: String,
}

impl StageFailure {
    /// A failure at place `stage` of the route; `message` is cut to the length allowed.
    pub fn new(stage: u16, node: NodeId, code: StageFailureCode, message: impl Into<String>) -> Self {
        Self { stage, node, code, message: bounded_text(message) }
    }
}

/// What kind of failure of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum StageFailureCode {
    /// The session belongs to a term that is over.
    StaleTerm,
    /// The session's master is not the one obeyed.
    NotMaster,
    /// The order pays less than the node asks.
    Underpaid,
    /// The layers are not held.
    NotLoaded,
    /// No memory for the KV cache.
    OutOfMemory,
    /// A frame that breaks the rules or comes out of order.
    BadFrame,
    /// The next stage cannot be reached.
    PeerLost,
    /// A deadline passed.
    Timeout,
    /// Superseded or cancelled.
    Cancelled,
    /// A fault of the stage.
    Internal,
    /// The payer owes the node more than it is trusted with.
    Unpaid,
    /// The payer did not sign for this, or not for so much, or not any more.
    NotMandated,
}

/// One message on a stage's stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Rows to compute.
    Step {
        /// What they are.
        header: StepHeader,
        /// Hidden states, `[rows, hidden]` row-major little-endian; empty for the first stage.
        payload: Vec<u8>,
    },
    /// A token was drawn.
    Token {
        /// The frame it answers.
        seq: u32,
        /// The position the token will take.
        pos: u32,
        /// The token.
        id: u32,
        /// Compute time of each stage so far, in microseconds; at most 64.
        micros: Vec<u32>,
    },
    /// A stage gave up.
    Error(StageFailure),
    /// Received; nothing to draw.
    Ack,
    /// The work is done: each stage adds its receipt to those before it and passes them on. The driver begins with
    /// none, and what the last stage adds its own to comes home to the driver.
    Receipts(Vec<Signed<StageReceipt>>),
}

impl Frame {
    /// The bytes on the stream: length, header, payload.
    pub fn encode(&self) -> Vec<u8> {
        let receipts;
        let (body, payload) = match self {
            Self::Receipts(chain) => {
                receipts = cbor::to_vec(chain);
                (Body::Receipts, receipts.as_slice())
            }
            Self::Step { header, payload } => (Body::Step(header.clone()), payload.as_slice()),
            Self::Token { seq, pos, id, micros } => {
                (Body::Token { seq: *seq, pos: *pos, id: *id, micros: micros.clone() }, &[][..])
            }
            Self::Error(failure) => (Body::Error(failure.clone()), &[][..]),
            Self::Ack => (Body::Ack, &[][..]),
        };
        let header = cbor::to_vec(&FrameHeader {
            body,
            len: u32::try_from(payload.len()).expect("payloads stay below 64 MiB"),
            hash: Hash::of(payload),
        });
        let mut bytes = Vec::with_capacity(4 + header.len() + payload.len());
        let length = u32::try_from(header.len()).expect("headers stay below 8 KiB");
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(payload);
        bytes
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Body {
    Step(StepHeader),
    Token { seq: u32, pos: u32, id: u32, micros: Vec<u32> },
    Error(StageFailure),
    Ack,
    Receipts,
}

/// A frame whose payload is still to be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrameHeader {
    body: Body,
    len: u32,
    hash: Hash,
}

/// Reads the header of a frame: the bytes after the length. The caller refuses a length above [`MAX_HEADER`] before it
/// reads.
///
/// # Errors
/// Oversize, not canonical, a payload above [`MAX_PAYLOAD`] or of a length that does not fit the step, too many rows or
/// times.
pub fn parse_header(bytes: &[u8]) -> Result<FrameHeader, DecodeError> {
    let header: FrameHeader = cbor::from_slice(bytes, MAX_HEADER)?;
    header.check()?;
    Ok(header)
}

impl FrameHeader {
    /// How many bytes of payload follow; at most [`MAX_PAYLOAD`].
    pub fn payload_len(&self) -> usize {
        self.len as usize
    }

    fn check(&self) -> Result<(), Invalid> {
        let len = self.payload_len();
        Invalid::unless(len <= MAX_PAYLOAD, "payload", "above 64 MiB")?;
        match &self.body {
            Body::Step(step) => {
                Invalid::unless((1..=MAX_ROWS).contains(&step.tokens.len()), "tokens", "1 to 512 rows")?;
                let rows = u32::try_from(step.tokens.len()).unwrap_or(u32::MAX);
                Invalid::unless(step.pos.checked_add(rows).is_some(), "pos", "positions end at 2^32")?;
                Invalid::unless(step.payload_len() == Some(len), "payload", "rows times hidden times element size")
            }
            Body::Token { micros, .. } => {
                Invalid::unless(micros.len() <= MAX_STAGES, "micros", "more than 64")?;
                Invalid::unless(len == 0, "payload", "steps alone have one")
            }
            Body::Error(failure) => {
                check_text(&failure.message, MAX_TEXT, "message")?;
                Invalid::unless(len == 0, "payload", "steps alone have one")
            }
            Body::Ack => Invalid::unless(len == 0, "payload", "steps alone have one"),
            Body::Receipts => Invalid::unless(len <= MAX_RECEIPTS, "payload", "above 64 receipts"),
        }
    }

    /// The frame, with the payload that was read after the header.
    ///
    /// # Errors
    /// The payload is not the one that was sent.
    pub fn into_frame(self, payload: Vec<u8>) -> Result<Frame, DecodeError> {
        if payload.len() != self.payload_len() || Hash::of(&payload) != self.hash {
            return Err(Invalid::new("payload", "not the one announced").into());
        }
        Ok(match self.body {
            Body::Step(header) => Frame::Step { header, payload },
            Body::Token { seq, pos, id, micros } => Frame::Token { seq, pos, id, micros },
            Body::Error(failure) => Frame::Error(failure),
            Body::Ack => Frame::Ack,
            Body::Receipts => {
                let chain: Vec<Signed<StageReceipt>> = cbor::from_slice(&payload, MAX_RECEIPTS)?;
                Invalid::unless(chain.len() <= MAX_STAGES, "receipts", "more than 64")?;
                Frame::Receipts(chain)
            }
        })
    }
}
