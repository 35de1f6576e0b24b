//! Tabs: what one node owes another for work, and how it is settled over Lightning.
//!
//! The payer signs where it stands with a worker ([`Tab`]): two sums that only rise. The worker compares them with its
//! own books and answers, signed ([`TabAnswer`]), with an invoice and the public key of its Lightning node, which binds
//! that key to its PeerId. Where no payment can reach the worker, the payer offers a channel towards it
//! ([`ChannelOffer`]): its cost is told beforehand, agreed to by the worker's signature ([`ChannelAgreed`]), and taken
//! from the tab by both once the channel is confirmed ([`ChannelBegun`]), or by neither if it ends before that
//! ([`ChannelGone`]).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

use super::check_text;
use super::escrow::LockSecret;
use crate::envelope::{Invalid, Payload};
use crate::hash::{Hash, hex_text};
use crate::identity::NodeId;
use crate::msat::Msat;

/// Longest invoice taken, in bytes; those of nodes have a few hundred.
pub const MAX_INVOICE: usize = 2048;
/// Receipts at a time at most.
pub const MAX_RECEIPTS: usize = 16;
/// Addresses of a Lightning node in an offer.
pub const MAX_ADDRESSES: usize = 4;
/// Longest address, `HOST:PORT`, in bytes.
pub const MAX_ADDRESS: usize = 128;

/// Public key of a Lightning node: a compressed point of secp256k1, as text 66 hexadecimal digits. Whether the point is
/// on the curve is for Lightning to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LightningId(ByteArray<33>);

/// A text that is no public key of a Lightning node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the public key of a Lightning node: 66 hexadecimal digits")]
pub struct ParseLightningIdError;

impl FromStr for LightningId {
    type Err = ParseLightningIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 33];
        if text.len() != 66 || !text.is_ascii() {
            return Err(ParseLightningIdError);
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| ParseLightningIdError)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| ParseLightningIdError)?;
        }
        let id = Self(ByteArray::new(bytes));
        id.check().map(|()| id).map_err(|_| ParseLightningIdError)
    }
}

impl fmt::Display for LightningId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex_text(&*self.0))
    }
}

impl LightningId {
    fn check(&self) -> Result<(), Invalid> {
        Invalid::unless(matches!(self.0[0], 2 | 3), "lightning", "not a compressed point")
    }
}

/// The payer's word on where it stands with a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tab {
    /// Who owes.
    pub payer: NodeId,
    /// Whom.
    pub worker: NodeId,
    /// Counts the payer's words to this worker, from 1.
    pub seq: u64,
    /// All that the payer ever credited to the worker: pay that is held or delayed is not in it.
    pub accepted: Msat,
    /// All that it ever took off again: by paying, and by work of its own for the worker.
    pub paid: Msat,
    /// Preimages of what the payer has itself received from the worker last. A payment that its payer's channel closed upon
    /// can have failed for that one and arrived all the same; who holds its preimage has paid (BOLT 11).
    pub receipts: Vec<LockSecret>,
}

impl Tab {
    /// What is owed; none on words that break the rules.
    #[must_use]
    pub fn due(&self) -> Option<Msat> {
        self.accepted.checked_sub(self.paid)
    }
}

impl Payload for Tab {
    const DOMAIN: &'static str = "tab";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 272 + MAX_RECEIPTS * 34;

    fn check(&self) -> Result<(), Invalid> {
        Invalid::unless(self.receipts.len() <= MAX_RECEIPTS, "receipts", "too many")?;
        Invalid::unless(self.payer != self.worker, "worker", "the payer itself")?;
        Invalid::unless(self.seq > 0, "seq", "counts from 1")?;
        Invalid::unless(self.due().is_some(), "paid", "more than was accepted")
    }
}

/// The worker's answer to a [`Tab`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TabAnswer {
    /// Digest of the signed tab.
    pub tab: Hash,
    /// What the worker makes of it.
    pub says: TabSays,
    /// Where the payer says that it owes more than the worker does: preimages of what the worker received from it last, as
    /// [`Tab::receipts`].
    pub receipts: Vec<LockSecret>,
}

/// What a worker makes of a [`Tab`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TabSays {
    /// Pay this.
    Invoice {
        /// The worker's Lightning node: it is the payee of the invoice.
        lightning: LightningId,
        /// The amount of the invoice: what is due, as far as the worker has it in its books, too, and can receive it at a
        /// time.
        amount: Msat,
        /// The invoice (BOLT 11).
        invoice: String,
        /// The largest payment that the worker can receive now; zero while it has no channel.
        receivable: Msat,
    },
    /// It is not so.
    Disputed {
        /// What is owed by the worker's books.
        owed: Msat,
    },
}

impl Payload for TabAnswer {
    const DOMAIN: &'static str = "tab-answer";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = MAX_INVOICE + 512 + MAX_RECEIPTS * 34;

    fn check(&self) -> Result<(), Invalid> {
        Invalid::unless(self.receipts.len() <= MAX_RECEIPTS, "receipts", "too many")?;
        let TabSays::Invoice { lightning, amount, invoice, .. } = &self.says else { return Ok(()) };
        lightning.check()?;
        Invalid::unless(*amount > Msat::ZERO, "amount", "nothing to pay")?;
        check_text(invoice, MAX_INVOICE, "invoice")
    }
}

/// The payer would open a channel towards a worker that no payment can reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelOffer {
    /// Who opens it.
    pub payer: NodeId,
    /// Towards whom.
    pub worker: NodeId,
    /// When it was offered, in milliseconds since 1970: keeps offers apart.
    pub at_ms: u64,
    /// What the payer puts in, in sat.
    pub size_sat: u64,
    /// What the worker pays for it, by taking it off the tab.
    pub cost: Msat,
    /// The payer's Lightning node.
    pub lightning: LightningId,
    /// Where the worker can reach it, 1 to 4: it is the worker that connects, so that it may be behind a router.
    pub addresses: Vec<String>,
}

impl Payload for ChannelOffer {
    const DOMAIN: &'static str = "channel-offer";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 512 + MAX_ADDRESSES * (MAX_ADDRESS + 8);

    fn check(&self) -> Result<(), Invalid> {
        Invalid::unless(self.payer != self.worker, "worker", "the payer itself")?;
        Invalid::unless((1..=MAX_ADDRESSES).contains(&self.addresses.len()), "addresses", "1 to 4")?;
        self.addresses.iter().try_for_each(|address| check_text(address, MAX_ADDRESS, "addresses"))?;
        self.lightning.check()
    }
}

/// The worker agrees to an offer, to its cost too, and is connected to the payer's Lightning node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelAgreed {
    /// Digest of the signed offer.
    pub offer: Hash,
    /// The worker's Lightning node.
    pub lightning: LightningId,
}

impl Payload for ChannelAgreed {
    const DOMAIN: &'static str = "channel-agreed";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 256;

    fn check(&self) -> Result<(), Invalid> {
        self.lightning.check()
    }
}

/// The channel is confirmed: its cost is to be taken off the tab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelBegun {
    /// Digest of the signed offer.
    pub offer: Hash,
}

impl Payload for ChannelBegun {
    const DOMAIN: &'static str = "channel-begun";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 128;

    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// The channel is no more, or never was: if its cost was not taken off the tab, it never will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelGone {
    /// Digest of the signed offer.
    pub offer: Hash,
}

impl Payload for ChannelGone {
    const DOMAIN: &'static str = "channel-gone";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 128;

    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}
