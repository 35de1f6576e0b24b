//! Requests and replies between members.

use serde::{Deserialize, Serialize};

use super::audit::{AuditOrder, Verdict};
use super::election::{Certificate, ElectionMessage};
use super::escrow::EscrowMessage;
use super::heartbeat::{LayerRange, Lease, ModelRef};
use super::pay::Acceptance;
use super::tab::{ChannelAgreed, ChannelBegun, ChannelGone, ChannelOffer, Tab, TabAnswer};
use super::{MAX_TEXT, Message, bounded_text, check_text};
use crate::cluster::ClusterId;
use crate::envelope::{Invalid, Payload, Signed};
use crate::hash::Hash;

/// The longest request, in bytes.
pub const MAX_REQUEST: usize = 256 * 1024;
/// The longest response, in bytes.
pub const MAX_RESPONSE: usize = 256 * 1024;

/// What one member asks of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// A message of the election machine; answered by [`Response::Ack`].
    Election(ElectionMessage),
    /// The master has the receiver load layers; answered by [`Response::Loaded`].
    Assign(Signed<Assign>),
    /// The master has the receiver drop a model; answered by [`Response::Ack`].
    Release(Signed<Release>),
    /// Asks for the newest certificate; answered by [`Response::Certificate`].
    Certificate,
    /// A payer has the receiver audit a stage; answered by [`Response::Ack`] at once, and by a verdict when it is done.
    Audit(Box<AuditOrder>),
    /// A payer owes for work of the receiver; answered by [`Response::Ack`] once it is booked.
    Accepted(Box<Signed<Acceptance>>),
    /// A payer goes by this verdict on work of the receiver; answered by [`Response::Ack`] once it is booked.
    Judged(Box<Signed<Verdict>>),
    /// A payer would settle; answered by [`Response::Tab`].
    Settle(Box<Signed<Tab>>),
    /// A payer would open a channel; answered by [`Response::Channel`].
    Channel(Box<Signed<ChannelOffer>>),
    /// A payer opens the channel that was agreed on; answered by [`Response::Ack`] once its cost is booked.
    ChannelBegun(Box<Signed<ChannelBegun>>),
    /// What a party of an escrow says to another; answered by [`Response::Ack`] once it is taken, or waits for the
    /// receiver's consent. It may hold preimages, and goes to its receiver alone.
    Escrow(Box<EscrowMessage>),
    /// A channel that was agreed on is no more; answered by [`Response::Ack`], or refused as disputed if its cost is booked.
    ChannelGone(Box<Signed<ChannelGone>>),
}

impl Message for Request {
    const MAX_BYTES: usize = MAX_REQUEST;

    fn check(&self) -> Result<(), Invalid> {
        match self {
            Self::Election(message) => message.check(),
            Self::Audit(order) => order.check(),
            Self::Escrow(message) => message.check(),
            // Checked with their signatures.
            Self::Assign(_)
            | Self::Release(_)
            | Self::Certificate
            | Self::Accepted(_)
            | Self::Judged(_)
            | Self::Settle(_)
            | Self::Channel(_)
            | Self::ChannelBegun(_)
            | Self::ChannelGone(_) => Ok(()),
        }
    }
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// Received.
    Ack,
    /// The layers are in memory.
    Loaded {
        /// What is held now.
        lease: Lease,
        /// How long loading took, in milliseconds; 0 if they were held already.
        load_ms: u64,
    },
    /// The certificate the receiver obeys, if it has one.
    Certificate(Option<Certificate>),
    /// The request was not carried out.
    Refused(Refusal),
    /// What the worker makes of a tab.
    Tab(Box<Signed<TabAnswer>>),
    /// The worker agrees to a channel.
    Channel(Box<Signed<ChannelAgreed>>),
}

impl Message for Response {
    const MAX_BYTES: usize = MAX_RESPONSE;

    fn check(&self) -> Result<(), Invalid> {
        match self {
            Self::Refused(refusal) => check_text(&refusal.message, MAX_TEXT, "message"),
            Self::Loaded { lease, .. } => lease.range.check(),
            // Those with signatures are checked with them.
            Self::Ack | Self::Certificate(_) | Self::Tab(_) | Self::Channel(_) => Ok(()),
        }
    }
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
#[error("{code:?}: {message}")]
pub struct Refusal {
    /// What a program decides on.
    pub code: RefusalCode,
    /// What a person reads, at most 512 bytes.
    pub message: String,
}

impl Refusal {
    /// A refusal; `message` is cut to the length allowed.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self { code, message: bounded_text(message) }
    }
}

/// What kind of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RefusalCode {
    /// The request belongs to a term that is over.
    StaleTerm,
    /// The sender is not the master the receiver obeys.
    NotMaster,
    /// The receiver has no such model.
    UnknownModel,
    /// The layers do not fit the memory that is left.
    OutOfMemory,
    /// The model's files are damaged or not what they claim to be.
    BadModel,
    /// Not now; try again later.
    Busy,
    /// What was said does not fit what the receiver knows.
    Disputed,
    /// A fault of the receiver.
    Internal,
    /// The receiver has no Lightning wallet.
    NoLightning,
    /// The receiver has not agreed to what this is about.
    NotAgreed,
}

/// The master's order to load layers of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assign {
    /// The cluster.
    pub cluster: ClusterId,
    /// The master's term.
    pub term: u64,
    /// The model.
    pub model: ModelRef,
    /// The layers, within the model.
    pub range: LayerRange,
}

impl Payload for Assign {
    const DOMAIN: &'static str = "assign";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 1024;

    fn check(&self) -> Result<(), Invalid> {
        self.model.check()?;
        self.range.check()?;
        Invalid::unless(self.range.last < self.model.layers, "range", "beyond the model's last layer")
    }
}

/// The master's order to drop a model from memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The cluster.
    pub cluster: ClusterId,
    /// The master's term.
    pub term: u64,
    /// Digest of the model.
    pub model: Hash,
}

impl Payload for Release {
    const DOMAIN: &'static str = "release";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 512;

    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}
