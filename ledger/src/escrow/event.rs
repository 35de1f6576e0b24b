//! What happened in an escrow, as it is written down.

use std::fmt;

use consortium_protocol::wire::escrow::{EscrowTerms, EscrowVerdict};
use consortium_protocol::{NodeId, Signed};
use serde::{Deserialize, Serialize};

/// The longest event, in bytes: the longest holds the terms, or an invoice.
pub const MAX_EVENT: usize = 4 * 1024;

/// A thing that happened to this party's side of an escrow. Each happens once: [`Event::name`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// This party takes part.
    Opened {
        /// The terms.
        terms: Signed<EscrowTerms>,
        /// The height of the chain.
        height: u32,
    },
    /// The invoice of a tranche is made, or has come.
    Invoiced {
        /// Which tranche.
        tranche: u8,
        /// The invoice.
        invoice: String,
    },
    /// The payer has sent a tranche's payment.
    Sent {
        /// Which tranche.
        tranche: u8,
        /// The height from which on the payee's node sends it back by itself.
        deadline: u32,
    },
    /// The payee has a tranche's payment, and cannot take it yet.
    Held {
        /// Which tranche.
        tranche: u8,
        /// The height at which it goes back.
        deadline: u32,
    },
    /// The payee told the validator that all of it is held.
    Ready {
        /// The first height at which some of it goes back.
        deadline: u32,
    },
    /// The verdict.
    Judged(Signed<EscrowVerdict>),
    /// The preimage of a tranche has come; it is kept sealed with this node's key.
    Unlocked {
        /// Which tranche.
        tranche: u8,
        /// The sealed preimage.
        #[serde(with = "serde_bytes_array")]
        sealed: [u8; 32],
    },
    /// A tranche is about to be taken, or its preimage given to the payee.
    Settling {
        /// Which tranche.
        tranche: u8,
    },
    /// A tranche is paid for good; for the validator of others' money: the payee has its preimage.
    Settled {
        /// Which tranche.
        tranche: u8,
    },
    /// A tranche is about to be sent back.
    Cancelling {
        /// Which tranche.
        tranche: u8,
    },
    /// A tranche is back with its payer, or was never sent.
    Cancelled {
        /// Which tranche.
        tranche: u8,
    },
    /// A tranche went back because its time was over.
    Expired {
        /// Which tranche.
        tranche: u8,
    },
    /// A party has kept the verdict.
    Heard {
        /// Who.
        by: NodeId,
    },
    /// The payer could not lock all of it.
    GivenUp,
}

impl Event {
    /// Its name within its escrow. A second event of a name is the same thing told again.
    #[must_use]
    pub fn name(&self) -> EventName {
        let (kind, tranche) = match self {
            Self::Opened { .. } => ("opened", None),
            Self::Invoiced { tranche, .. } => ("invoiced", Some(*tranche)),
            Self::Sent { tranche, .. } => ("sent", Some(*tranche)),
            Self::Held { tranche, .. } => ("held", Some(*tranche)),
            Self::Ready { .. } => ("ready", None),
            Self::Judged(_) => ("judged", None),
            Self::Unlocked { tranche, .. } => ("unlocked", Some(*tranche)),
            Self::Settling { tranche } => ("settling", Some(*tranche)),
            Self::Settled { tranche } => ("settled", Some(*tranche)),
            Self::Cancelling { tranche } => ("cancelling", Some(*tranche)),
            Self::Cancelled { tranche } => ("cancelled", Some(*tranche)),
            Self::Expired { tranche } => ("expired", Some(*tranche)),
            Self::Heard { by } => return EventName(format!("heard {by}")),
            Self::GivenUp => ("given-up", None),
        };
        EventName(tranche.map_or_else(|| kind.to_owned(), |tranche| format!("{kind} {tranche}")))
    }
}

/// The name of an event within its escrow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventName(String);

impl EventName {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EventName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// 32 bytes as a byte string.
mod serde_bytes_array {
    use consortium_protocol::Hash;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        Hash::from_bytes(*bytes).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        Hash::deserialize(deserializer).map(|hash| *hash.as_bytes())
    }
}
