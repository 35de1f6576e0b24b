//! What was paid and received, on-chain and over Lightning.

use consortium_protocol::Msat;
use ldk_node::payment::{ConfirmationStatus, PaymentDetails, PaymentDirection, PaymentKind, PaymentStatus};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;

use super::error::WalletError;
use super::hash::PaymentHash;
use super::wallet::{Inner, LOCAL, Wallet, now_ms};

/// Payments on a page at most.
pub const MAX_PAGE: u32 = 200;

/// A payment of the past, or one that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payment {
    /// Its name: the payment hash, or the id of the transaction.
    pub id: String,
    /// Over Lightning or on-chain.
    pub kind: Kind,
    /// To this wallet or from it.
    pub direction: Direction,
    /// How it is doing.
    pub state: State,
    /// How much, without fee; none for an open invoice whose amount the payer chooses.
    pub amount: Option<Msat>,
    /// The fee that was paid, where it is known.
    pub fee: Option<Msat>,
    /// What the invoice of this wallet said.
    pub description: Option<String>,
    /// When something last changed about it, in seconds since 1970.
    pub at_s: u64,
}

/// Over Lightning or on-chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Over Lightning.
    Lightning,
    /// In a transaction.
    Onchain,
}

/// To this wallet or from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// To it.
    In,
    /// From it.
    Out,
}

/// How a payment is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// An invoice that nobody paid yet, a payment on its way, or a transaction without six confirmations.
    Pending,
    /// It has come, and waits for its preimage.
    Held,
    /// Done.
    Done,
    /// It came back, or was refused.
    Failed,
    /// An invoice that nobody paid in time, or a hold that went back at its deadline.
    Expired,
}

/// A page of the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// The payments, what changed last first.
    pub payments: Vec<Payment>,
    /// Where the next page begins; none after the last.
    pub next: Option<String>,
}

impl Wallet {
    /// A page of the history after a payment, which the page before names; from the beginning if none.
    ///
    /// # Errors
    /// When there is no such payment, or `limit` is not 1 to [`MAX_PAGE`].
    pub async fn history(&self, after: Option<String>, limit: u32) -> Result<Page, WalletError> {
        if !(1..=MAX_PAGE).contains(&limit) {
            return Err(WalletError::Invalid(format!("a page has 1 to {MAX_PAGE} payments")));
        }
        self.ask("reading the history", LOCAL, move |inner| page(inner, after.as_deref(), limit as usize)).await
    }

    /// Lightning payments that were made, of those that changed at `since_s`, in seconds since 1970, or later.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn made_since(&self, since_s: u64) -> Result<Vec<Payment>, WalletError> {
        self.ask("reading the history", LOCAL, move |inner| made_since(inner, since_s)).await
    }
}

/// Lightning payments that were made, of those that changed at `since_s` or later.
fn made_since(inner: &Inner, since_s: u64) -> Result<Vec<Payment>, WalletError> {
    let made = |payment: &&PaymentDetails| {
        payment.latest_update_timestamp >= since_s
            && payment.status == PaymentStatus::Succeeded
            && !matches!(payment.kind, PaymentKind::Onchain { .. })
    };
    inner.node.list_payments().iter().filter(made).map(|payment| view(inner, payment)).collect()
}

fn page(inner: &Inner, after: Option<&str>, limit: usize) -> Result<Page, WalletError> {
    let mut all = inner.node.list_payments();
    all.sort_by_key(|payment| Reverse((payment.latest_update_timestamp, payment.id.0)));
    let names = |after: &str| all.iter().position(|payment| id(payment) == after);
    let from = match after {
        None => 0,
        Some(after) => {
            let found = names(after);
            found.ok_or_else(|| WalletError::Invalid(format!("there is no payment {after:.64}; begin again")))? + 1
        }
    };
    let until = all.len().min(from.saturating_add(limit));
    let wanted = all.get(from..until).unwrap_or_default();
    let next = wanted.last().filter(|_| until < all.len()).map(id);
    let payments = wanted.iter().map(|payment| view(inner, payment)).collect::<Result<_, _>>()?;
    Ok(Page { payments, next })
}

fn hash(payment: &PaymentDetails) -> Option<PaymentHash> {
    match payment.kind {
        PaymentKind::Bolt11 { hash, .. }
        | PaymentKind::Bolt11Jit { hash, .. }
        | PaymentKind::Spontaneous { hash, .. } => Some(hash.into()),
        PaymentKind::Bolt12Offer { hash, .. } | PaymentKind::Bolt12Refund { hash, .. } => hash.map(PaymentHash::from),
        PaymentKind::Onchain { .. } => None,
    }
}

fn id(payment: &PaymentDetails) -> String {
    match (&payment.kind, hash(payment)) {
        (PaymentKind::Onchain { txid, .. }, _) => txid.to_string(),
        (_, Some(hash)) => hash.to_string(),
        (_, None) => payment.id.to_string(),
    }
}

fn view(inner: &Inner, payment: &PaymentDetails) -> Result<Payment, WalletError> {
    let direction = match payment.direction {
        PaymentDirection::Inbound => Direction::In,
        PaymentDirection::Outbound => Direction::Out,
    };
    let kind = match payment.kind {
        PaymentKind::Onchain { .. } => Kind::Onchain,
        _ => Kind::Lightning,
    };
    let note = match (direction, hash(payment)) {
        (Direction::In, Some(hash)) => inner.records.invoice(&hash)?,
        _ => None,
    };
    let state = match (&payment.kind, payment.status) {
        // ldk-node says nothing of a transaction's end but this.
        (PaymentKind::Onchain { status: ConfirmationStatus::Unconfirmed, .. }, _) => State::Pending,
        (_, PaymentStatus::Succeeded) => State::Done,
        (_, PaymentStatus::Failed) => State::Failed,
        (_, PaymentStatus::Pending) => match (&note, hash(payment)) {
            (Some(note), Some(hash)) => open_invoice(inner, hash, note.expires_s)?,
            _ => State::Pending,
        },
    };
    Ok(Payment {
        id: id(payment),
        kind,
        direction,
        state,
        amount: payment.amount_msat.map(Msat),
        fee: payment.fee_paid_msat.filter(|_| direction == Direction::Out).map(Msat),
        description: note.map(|note| note.description),
        at_s: payment.latest_update_timestamp,
    })
}

/// ldk-node keeps an invoice pending for ever, also when a hold on it went back.
fn open_invoice(inner: &Inner, hash: PaymentHash, expires_s: u64) -> Result<State, WalletError> {
    let held = inner.records.holds()?.iter().any(|held| held.hash == hash);
    Ok(match held {
        true => State::Held,
        false if expires_s <= now_ms() / 1000 => State::Expired,
        false => State::Pending,
    })
}
