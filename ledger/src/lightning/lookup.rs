//! What became of one payment, by its hash.

use ldk_node::lightning::ln::channelmanager::PaymentId;
use ldk_node::payment::{PaymentDirection, PaymentStatus};
use serde::{Deserialize, Serialize};

use super::error::{self, WalletError};
use super::hash::{PaymentHash, Preimage};
use super::pay;
use super::wallet::{Inner, LOCAL, Wallet};

/// What became of a payment that was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It was never sent.
    Unsent,
    /// It may still arrive.
    OnItsWay,
    /// It arrived.
    Sent,
    /// It failed for good.
    Failed,
}

impl Wallet {
    /// What became of a payment of this wallet.
    ///
    /// # Errors
    /// When the wallet is stopped.
    pub async fn fate(&self, hash: PaymentHash) -> Result<Fate, WalletError> {
        self.ask("looking at a payment", LOCAL, move |inner| Ok(fate(inner, hash))).await
    }

    /// The preimage of a payment that this wallet made: its receipt. None where it was not made, or has not arrived.
    ///
    /// # Errors
    /// When the wallet is stopped.
    pub async fn receipt(&self, hash: PaymentHash) -> Result<Option<Preimage>, WalletError> {
        self.ask("looking for a receipt", LOCAL, move |inner| {
            let sent = fate(inner, hash) == Fate::Sent;
            Ok(sent.then(|| pay::preimage(inner, hash)).flatten())
        })
        .await
    }

    /// The preimage of a payment that this wallet received: its payer has, or should have, the same as a receipt. None where
    /// none was received, or the preimage was not this wallet's own.
    ///
    /// # Errors
    /// When the wallet is stopped.
    pub async fn given_receipt(&self, hash: PaymentHash) -> Result<Option<Preimage>, WalletError> {
        self.ask("looking for a receipt", LOCAL, move |inner| {
            let received = inner.node.payment(&PaymentId(*hash.as_bytes())).is_some_and(|payment| {
                (payment.direction, payment.status) == (PaymentDirection::Inbound, PaymentStatus::Succeeded)
            });
            Ok(received.then(|| pay::preimage(inner, hash)).flatten())
        })
        .await
    }

    /// Forgets an invoice that nobody paid, once it has expired: ldk-node keeps them for ever. Nothing happens where it was
    /// paid, or is none.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn forget_invoice(&self, hash: PaymentHash) -> Result<(), WalletError> {
        self.ask("forgetting an invoice", LOCAL, move |inner| {
            let id = PaymentId(*hash.as_bytes());
            let Some(payment) = inner.node.payment(&id) else { return Ok(()) };
            if payment.direction == PaymentDirection::Inbound && payment.status == PaymentStatus::Pending {
                inner.node.remove_payment(&id).map_err(error::of("forgetting an invoice"))?;
                inner.records.forget_invoice(&hash)?;
            }
            Ok(())
        })
        .await
    }
}

pub(super) fn fate(inner: &Inner, hash: PaymentHash) -> Fate {
    let payment = inner.node.payment(&PaymentId(*hash.as_bytes()));
    match payment.filter(|payment| payment.direction == PaymentDirection::Outbound).map(|payment| payment.status) {
        None => Fate::Unsent,
        Some(PaymentStatus::Pending) => Fate::OnItsWay,
        Some(PaymentStatus::Succeeded) => Fate::Sent,
        Some(PaymentStatus::Failed) => Fate::Failed,
    }
}
