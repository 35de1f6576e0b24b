//! What happens to a wallet, told in types of its own.

use consortium_protocol::Msat;
use ldk_node::Event;
use ldk_node::bitcoin::secp256k1::PublicKey;
use ldk_node::lightning::events::PaymentFailureReason;
use serde::{Deserialize, Serialize};

use super::error::WalletError;
use super::hash::PaymentHash;

/// Longest text taken from a peer, in characters.
const MAX_REASON: usize = 200;

/// Something that happened. No preimage is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum WalletEvent {
    /// The wallet was started.
    Started,
    /// The wallet was stopped in order.
    Stopped,
    /// A payment arrived at its payee.
    PaymentSent {
        /// Which.
        hash: PaymentHash,
        /// What the payee got.
        amount: Msat,
        /// Fees of those on the way.
        fee: Msat,
    },
    /// A payment failed for good; its money is back.
    PaymentFailed {
        /// Which.
        hash: PaymentHash,
        /// Why.
        why: FailureReason,
    },
    /// A payment was received and is settled: the only event that says so.
    PaymentReceived {
        /// Which.
        hash: PaymentHash,
        /// How much.
        amount: Msat,
    },
    /// A payment to a hold invoice has come and waits for its preimage.
    PaymentHeld {
        /// Which.
        hash: PaymentHash,
        /// How much.
        amount: Msat,
        /// It goes back by itself at this height.
        deadline: u32,
    },
    /// A held payment went back because its deadline came: Lightning itself is silent about it.
    HoldExpired {
        /// Which.
        hash: PaymentHash,
        /// How much.
        amount: Msat,
        /// The height at which it went back.
        deadline: u32,
    },
    /// A payment between others went through here.
    PaymentForwarded {
        /// What was passed on.
        amount: Option<Msat>,
        /// What was earned, where it is known.
        fee: Option<Msat>,
    },
    /// A channel waits for its funding to be confirmed.
    ChannelPending {
        /// Which, as [`super::channels::ChannelView::id`].
        channel: String,
        /// With whom.
        peer: String,
    },
    /// A channel can be used.
    ChannelReady {
        /// Which.
        channel: String,
    },
    /// A channel is closed; what it held goes on-chain.
    ChannelClosed {
        /// Which.
        channel: String,
        /// Why, partly in the peer's words.
        reason: String,
    },
}

/// Why a payment failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FailureReason {
    /// There is no way to the payee with enough room.
    NoRoute,
    /// All ways that were tried failed.
    RetriesExhausted,
    /// The payee does not take it: the invoice is unknown, was cancelled, or a hold ran out.
    Rejected,
    /// The invoice expired meanwhile.
    Expired,
    /// It was given up here.
    Abandoned,
    /// The payee asks for something this software does not know, or the reason is not known.
    Other,
}

impl FailureReason {
    /// In words that say what to do.
    #[must_use]
    pub const fn advice(self) -> &'static str {
        match self {
            Self::NoRoute => "no way to the payee with enough room was found",
            Self::RetriesExhausted => {
                "every way that was tried failed: a node on it was short of room or away; try again, or a smaller amount"
            }
            Self::Rejected => {
                "the payee did not take it: the invoice was cancelled, has run out, or is paid; ask for a new one"
            }
            Self::Expired => "the invoice expired before a way was found; ask for a new one",
            Self::Abandoned => "it was given up",
            Self::Other => "the payee asks for something this software does not know",
        }
    }
}

impl From<PaymentFailureReason> for FailureReason {
    fn from(reason: PaymentFailureReason) -> Self {
        match reason {
            PaymentFailureReason::RouteNotFound => Self::NoRoute,
            PaymentFailureReason::RetriesExhausted => Self::RetriesExhausted,
            PaymentFailureReason::RecipientRejected => Self::Rejected,
            PaymentFailureReason::PaymentExpired => Self::Expired,
            PaymentFailureReason::UserAbandoned => Self::Abandoned,
            _ => Self::Other,
        }
    }
}

/// How a channel is named: the number that ldk-node gave it, in hexadecimal digits.
pub(super) fn channel_name(id: ldk_node::UserChannelId) -> String {
    format!("{:032x}", id.0)
}

fn peer_name(peer: PublicKey) -> String {
    peer.to_string()
}

/// What an event of ldk-node says; none of what this program never asks for. `sent` tells the amount of a payment that
/// was sent, which the event leaves out.
pub(super) fn from_ldk(
    event: Event,
    sent: impl FnOnce(PaymentHash) -> Result<Msat, WalletError>,
) -> Result<Option<WalletEvent>, WalletError> {
    Ok(Some(match event {
        Event::PaymentSuccessful { payment_hash, fee_paid_msat, .. } => WalletEvent::PaymentSent {
            hash: payment_hash.into(),
            amount: sent(payment_hash.into())?,
            fee: Msat(fee_paid_msat.unwrap_or(0)),
        },
        Event::PaymentFailed { payment_hash: None, .. } => return Ok(None),
        Event::PaymentFailed { payment_hash: Some(hash), reason, .. } => WalletEvent::PaymentFailed {
            hash: hash.into(),
            why: reason.map_or(FailureReason::Other, FailureReason::from),
        },
        Event::PaymentReceived { payment_hash, amount_msat, .. } => {
            WalletEvent::PaymentReceived { hash: payment_hash.into(), amount: Msat(amount_msat) }
        }
        Event::PaymentClaimable { payment_hash, claimable_amount_msat, claim_deadline, .. } => {
            WalletEvent::PaymentHeld {
                hash: payment_hash.into(),
                amount: Msat(claimable_amount_msat),
                // Without a deadline (only in what old versions stored) it counts as past.
                deadline: claim_deadline.unwrap_or(0),
            }
        }
        Event::PaymentForwarded { outbound_amount_forwarded_msat, total_fee_earned_msat, .. } => {
            WalletEvent::PaymentForwarded {
                amount: outbound_amount_forwarded_msat.map(Msat),
                fee: total_fee_earned_msat.map(Msat),
            }
        }
        Event::ChannelPending { user_channel_id, counterparty_node_id, .. } => WalletEvent::ChannelPending {
            channel: channel_name(user_channel_id),
            peer: peer_name(counterparty_node_id),
        },
        Event::ChannelReady { user_channel_id, .. } => {
            WalletEvent::ChannelReady { channel: channel_name(user_channel_id) }
        }
        Event::ChannelClosed { user_channel_id, reason, .. } => WalletEvent::ChannelClosed {
            channel: channel_name(user_channel_id),
            reason: reason.map_or_else(String::new, |reason| reason.to_string().chars().take(MAX_REASON).collect()),
        },
        Event::SplicePending { .. } | Event::SpliceFailed { .. } => return Ok(None),
    }))
}
