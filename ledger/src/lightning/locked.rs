//! What is locked in channels right now, and paying without waiting for the outcome: what an escrow needs.
//!
//! A hold that is cancelled here is only back with its payer when the channel no longer has it: until then a crash or an
//! absent peer can still bring it back. [`Wallet::lock_of`] tells. Payments of dust are not told by ldk-node, since no
//! channel closed by force would pay them out.

use consortium_protocol::Msat;
use ldk_node::LightningBalance;
use ldk_node::lightning::ln::channelmanager::PaymentId;

use super::error::{self, WalletError};
use super::hash::PaymentHash;
use super::lookup::Fate;
use super::pay::{self, PayOrder, Way};
use super::wallet::{Inner, LOCAL, Wallet};
use super::{invoice, lookup};

/// Payments that a channel carries at once, each way, as LDK accepts them.
pub const MAX_IN_CHANNEL: usize = 50;

/// A payment that a channel carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Where it goes: to this wallet, or away from it.
    pub incoming: bool,
    /// The other side of the channel.
    pub peer: String,
    /// From this height on it can be taken back on-chain.
    pub deadline: u32,
}

/// Room in the best channel with a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// What can be sent through it now, in any number of parts.
    pub msat: Msat,
    /// How many payments it can take now.
    pub payments: usize,
}

impl Wallet {
    /// Sends a payment and does not wait for its outcome, which [`Wallet::events`] tell.
    ///
    /// # Errors
    /// [`WalletError::OnItsWay`] or [`WalletError::AlreadyPaid`] when it was sent before; the former also when it is not
    /// known whether it was, because the wallet is slow or stops meanwhile. After any other error nothing was paid.
    pub async fn send(&self, order: PayOrder, way: Way) -> Result<PaymentHash, WalletError> {
        let hash = invoice::read(&order.invoice)?.hash;
        let sending = self.ask("sending a payment", LOCAL, move |inner| Ok(pay::send(inner, &order, way)?.0)).await;
        sending.map_err(|error| pay::unknown(error, hash))
    }

    /// Sends again what a crash may have cut off: noted as sent, but in no channel. To be asked once the channels with
    /// its peers are back. It is not paid twice, for LDK refuses what it knows to be on its way.
    ///
    /// # Errors
    /// As [`Wallet::send`].
    pub async fn resend(&self, order: PayOrder, way: Way) -> Result<PaymentHash, WalletError> {
        let hash = invoice::read(&order.invoice)?.hash;
        let sending = self.ask("sending a payment again", LOCAL, move |inner| resend(inner, &order, way)).await;
        sending.map_err(|error| pay::unknown(error, hash))
    }

    /// Whether an invoice is of this wallet's network and has not expired.
    ///
    /// # Errors
    /// [`WalletError::Invalid`] when it is not so.
    pub fn check_current(&self, text: &str) -> Result<(), WalletError> {
        pay::check_current(&invoice::parse(text)?, self.inner.settings.network)
    }

    /// The channel's payment with a hash, if there is one now that is not dust.
    ///
    /// # Errors
    /// When the wallet is stopping.
    pub async fn lock_of(&self, hash: PaymentHash) -> Result<Option<Lock>, WalletError> {
        self.ask("looking at channels", LOCAL, move |inner| Ok(lock_of(inner, hash))).await
    }

    /// Room in the best channel with a peer that can be used now; none if there is none.
    ///
    /// # Errors
    /// When the wallet is stopping.
    pub async fn room_towards(&self, peer: &str) -> Result<Option<Room>, WalletError> {
        let peer = peer.to_owned();
        self.ask("looking at channels", LOCAL, move |inner| Ok(room_towards(inner, &peer))).await
    }
}

fn resend(inner: &Inner, order: &PayOrder, way: Way) -> Result<PaymentHash, WalletError> {
    let hash = invoice::read(&order.invoice)?.hash;
    if lock_of(inner, hash).is_some_and(|lock| !lock.incoming) {
        return Err(WalletError::OnItsWay(hash));
    }
    if matches!(lookup::fate(inner, hash), Fate::Unsent | Fate::OnItsWay) {
        let forgotten = inner.node.remove_payment(&PaymentId(*hash.as_bytes()));
        forgotten.map_err(error::of("sending a payment again"))?;
        inner.records.returned(hash.as_bytes())?;
    }
    Ok(pay::send(inner, order, way)?.0)
}

fn lock_of(inner: &Inner, wanted: PaymentHash) -> Option<Lock> {
    inner
        .node
        .list_balances()
        .lightning_balances
        .iter()
        .filter_map(as_lock)
        .find_map(|(hash, lock)| (hash == wanted).then_some(lock))
}

fn as_lock(balance: &LightningBalance) -> Option<(PaymentHash, Lock)> {
    match balance {
        LightningBalance::MaybeTimeoutClaimableHTLC {
            counterparty_node_id, payment_hash, claimable_height, ..
        } => {
            let peer = counterparty_node_id.to_string();
            Some(((*payment_hash).into(), Lock { incoming: false, peer, deadline: *claimable_height }))
        }
        LightningBalance::MaybePreimageClaimableHTLC { counterparty_node_id, payment_hash, expiry_height, .. } => {
            let peer = counterparty_node_id.to_string();
            Some(((*payment_hash).into(), Lock { incoming: true, peer, deadline: *expiry_height }))
        }
        _ => None,
    }
}

fn room_towards(inner: &Inner, peer: &str) -> Option<Room> {
    let channels = inner.node.list_channels();
    let locks = inner.node.list_balances().lightning_balances;
    let sent = |peer: &str| {
        let to_peer = |lock: &Lock| !lock.incoming && lock.peer == peer;
        locks.iter().filter_map(as_lock).filter(|(_, lock)| to_peer(lock)).count()
    };
    let with_peer = channels.iter().filter(|channel| channel.is_usable);
    let best = with_peer.filter(|channel| channel.counterparty_node_id.to_string() == peer);
    best.map(|channel| channel.next_outbound_htlc_limit_msat)
        .max()
        .map(|msat| Room { msat: Msat(msat), payments: MAX_IN_CHANNEL.saturating_sub(sent(peer)) })
}

/// The delta that an invoice asks for, in blocks.
///
/// # Errors
/// [`WalletError::Invalid`] when it is no invoice.
pub fn delta_of(text: &str) -> Result<u64, WalletError> {
    Ok(invoice::parse(text)?.min_final_cltv_expiry_delta())
}
