//! Paying invoices.

use std::time::Duration;

use consortium_protocol::Msat;
use ldk_node::NodeError;
use ldk_node::bitcoin::hashes::Hash as _;
use ldk_node::lightning::ln::channelmanager::PaymentId;
use ldk_node::lightning::routing::router::RouteParametersConfig;
use ldk_node::lightning_invoice::Bolt11Invoice;
use ldk_node::payment::{PaymentDirection, PaymentKind, PaymentStatus};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tracing::warn;

use super::error::{self, WalletError, sats};
use super::event::{FailureReason, WalletEvent};
use super::hash::{PaymentHash, Preimage};
use super::records::Recorded;
use super::settings::Network;
use super::wallet::{Inner, LOCAL, Wallet, now_ms};
use super::{balance, invoice};

/// How long an outcome is waited for by default. ldk-node tries ways for ten seconds; then only a payee that holds the
/// payment, or a node on the way that is gone, can keep it open.
pub const OUTCOME: Duration = Duration::from_secs(60);

/// What is to be paid.
#[derive(Clone, Debug)]
pub struct PayOrder {
    /// The invoice.
    pub invoice: String,
    /// How much, where the invoice leaves it open; otherwise none, or the very amount of the invoice.
    pub amount: Option<Msat>,
    /// Fees at most; none for a hundredth of the amount and 50 sat.
    pub max_fee: Option<Msat>,
    /// How long the outcome is waited for.
    pub within: Duration,
}

/// A payment that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paid {
    /// Its name.
    pub hash: PaymentHash,
    /// What the payee got.
    pub amount: Msat,
    /// What those on the way got.
    pub fee: Msat,
    /// The receipt; none if the records do not have it.
    pub preimage: Option<Preimage>,
}

/// What a payment that arrived is shown as: without its preimage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaidView {
    /// Its name.
    pub hash: PaymentHash,
    /// What the payee got.
    pub amount: Msat,
    /// What those on the way got.
    pub fee: Msat,
}

impl From<&Paid> for PaidView {
    fn from(paid: &Paid) -> Self {
        Self { hash: paid.hash, amount: paid.amount, fee: paid.fee }
    }
}

impl Wallet {
    /// Pays an invoice and waits for the outcome.
    ///
    /// # Errors
    /// [`WalletError::OnItsWay`] when the outcome is not known in time: the payment may then still arrive. After any other
    /// error nothing was paid.
    pub async fn pay(&self, order: PayOrder) -> Result<Paid, WalletError> {
        let within = order.within;
        let wanted = invoice::read(&order.invoice)?.hash;
        // Before it is sent, so that the outcome cannot be missed.
        let mut events = self.events();
        let sending = self.ask("sending a payment", LOCAL, move |inner| send(inner, &order, Way::Any)).await;
        let (hash, amount) = sending.map_err(|error| unknown(error, wanted))?;
        let known = tokio::time::timeout(within, outcome(self, &mut events, hash)).await;
        match known.map_err(|_| WalletError::OnItsWay(hash))?? {
            Outcome::Sent(fee) => {
                let noting = self.ask("noting a payment", LOCAL, move |inner| paid(inner, hash, amount, fee)).await;
                // It arrived, whatever can be written down of it.
                noting.or_else(|error| {
                    warn!(%error, "what a payment cost could not be noted");
                    Ok(Paid { hash, amount, fee, preimage: None })
                })
            }
            Outcome::Failed(FailureReason::NoRoute) => {
                Err(self.ask("looking for room", LOCAL, move |inner| Ok(no_route(inner, amount))).await?)
            }
            Outcome::Failed(why) => Err(WalletError::Failed(why)),
        }
    }
}

/// Which ways a payment may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Any, over as many hops and in as many parts as it takes.
    Any,
    /// Through a channel with the payee alone, in one part: nobody in between sees its preimage. ldk-node cannot be told
    /// which nodes to avoid, but a way that costs nothing and takes no blocks has no room for one that routes.
    Direct,
}

impl Way {
    fn parameters(self, max_fee: Msat, invoice: &Bolt11Invoice) -> RouteParametersConfig {
        let any = RouteParametersConfig::default().with_max_total_routing_fee_msat(max_fee.0);
        let delta = u32::try_from(invoice.min_final_cltv_expiry_delta()).unwrap_or(u32::MAX);
        match self {
            Self::Any => any,
            // LDK wants a limit above the last hop's delta.
            Self::Direct => any
                .with_max_total_routing_fee_msat(0)
                .with_max_total_cltv_expiry_delta(delta.saturating_add(1))
                .with_max_path_count(1),
        }
    }
}

/// How a payment ended.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Sent(Msat),
    Failed(FailureReason),
}

/// Waits for the end of a payment.
async fn outcome(
    wallet: &Wallet,
    events: &mut broadcast::Receiver<Recorded>,
    wanted: PaymentHash,
) -> Result<Outcome, WalletError> {
    loop {
        match events.recv().await.map(|recorded| recorded.event) {
            Ok(WalletEvent::PaymentSent { hash, fee, .. }) if hash == wanted => return Ok(Outcome::Sent(fee)),
            Ok(WalletEvent::PaymentFailed { hash, why }) if hash == wanted => return Ok(Outcome::Failed(why)),
            Ok(_) => {}
            // Among the events that were missed may be the one.
            Err(RecvError::Lagged(_)) => {
                let looking = wallet.ask("looking at a payment", LOCAL, move |inner| Ok(stored(inner, wanted))).await;
                let stored = looking.map_err(|error| unknown(error, wanted))?;
                if let Some(outcome) = stored {
                    return Ok(outcome);
                }
            }
            Err(RecvError::Closed) => return Err(WalletError::OnItsWay(wanted)),
        }
    }
}

fn stored(inner: &Inner, hash: PaymentHash) -> Option<Outcome> {
    let payment = inner.node.payment(&PaymentId(*hash.as_bytes()))?;
    match payment.status {
        PaymentStatus::Pending => None,
        PaymentStatus::Succeeded => Some(Outcome::Sent(Msat(payment.fee_paid_msat.unwrap_or(0)))),
        PaymentStatus::Failed => Some(Outcome::Failed(FailureReason::Other)),
    }
}

/// What an error means for a payment that may have been sent: a thread that is late goes on.
pub(super) fn unknown(error: WalletError, hash: PaymentHash) -> WalletError {
    match error {
        WalletError::Late { .. } | WalletError::Stopped => WalletError::OnItsWay(hash),
        error => error,
    }
}

/// Checks an order and hands it to ldk-node; gives the payment's name and its amount.
pub(super) fn send(inner: &Inner, order: &PayOrder, way: Way) -> Result<(PaymentHash, Msat), WalletError> {
    let invoice = invoice::parse(&order.invoice)?;
    let hash = PaymentHash::from_bytes(invoice.payment_hash().to_byte_array());
    let amount = check(inner, &invoice, order.amount)?;
    let too_much = || WalletError::Invalid("the amount is beyond all bitcoin there is".to_owned());
    let usual = || Msat(50_000).checked_add(Msat(amount.0 / 100));
    let max_fee = match way {
        Way::Any => order.max_fee.or_else(usual).ok_or_else(too_much)?,
        Way::Direct => Msat::ZERO,
    };
    let at_most = amount.checked_add(max_fee).ok_or_else(too_much)?;
    check_new(inner, hash)?;
    inner.records.reserve(hash.as_bytes(), (amount, at_most), &inner.settings.limits, now_ms())?;
    let route = way.parameters(max_fee, &invoice);
    let payment = inner.node.bolt11_payment();
    let sent = match invoice.amount_milli_satoshis() {
        Some(_) => payment.send(&invoice, Some(route)),
        None => payment.send_using_amount(&invoice, amount.0, Some(route)),
    };
    match sent {
        Ok(_) => Ok((hash, amount)),
        // ldk-node sent it before, or now, and could not write that down.
        Err(NodeError::DuplicatePayment | NodeError::PersistenceFailed) => Err(WalletError::OnItsWay(hash)),
        Err(error) => {
            inner.records.returned(hash.as_bytes())?;
            Err(match error {
                NodeError::PaymentSendingFailed => no_route(inner, amount),
                error => error::of("sending the payment")(error),
            })
        }
    }
}

/// Refuses an invoice of another network, or one that has expired.
pub(super) fn check_current(invoice: &Bolt11Invoice, network: Network) -> Result<(), WalletError> {
    invoice::check_network(invoice, network)?;
    match invoice.is_expired() {
        false => Ok(()),
        true => Err(WalletError::Invalid("the invoice has expired; ask for a new one".to_owned())),
    }
}

/// The amount to pay, if the invoice can be paid from here.
fn check(inner: &Inner, invoice: &Bolt11Invoice, given: Option<Msat>) -> Result<Msat, WalletError> {
    check_current(invoice, inner.settings.network)?;
    let bad = |why: &str| Err(WalletError::Invalid(why.to_owned()));
    if invoice.recover_payee_pub_key() == inner.node.node_id() {
        return bad("the invoice is this wallet's own");
    }
    match (invoice.amount_milli_satoshis().map(Msat), given) {
        (Some(asked), None) => Ok(asked),
        (Some(asked), Some(given)) if asked == given => Ok(asked),
        (Some(asked), Some(given)) => {
            bad(&format!("the invoice asks for {}, not {}; leave the amount out", sats(asked), sats(given)))
        }
        (None, None | Some(Msat::ZERO)) => bad("the invoice leaves the amount open: say how much"),
        (None, Some(given)) => Ok(given),
    }
}

/// Refuses to pay twice, and what is to be received here: ldk-node names payments both ways by their hash, and who passes
/// on what it holds could pay and come too late to be paid.
fn check_new(inner: &Inner, hash: PaymentHash) -> Result<(), WalletError> {
    match inner.node.payment(&PaymentId(*hash.as_bytes())) {
        // What was noted and never sent: this program ended in between. LDK itself refuses what it knows.
        None => inner.records.returned(hash.as_bytes()),
        Some(payment) => match (payment.direction, payment.status) {
            (PaymentDirection::Outbound, PaymentStatus::Succeeded) => Err(WalletError::AlreadyPaid(hash)),
            (PaymentDirection::Outbound, PaymentStatus::Pending) => Err(WalletError::OnItsWay(hash)),
            (PaymentDirection::Outbound, PaymentStatus::Failed) => Ok(()),
            (PaymentDirection::Inbound, _) => Err(WalletError::Invalid(
                "this wallet has made an invoice for the same hash: who asks it to pay too would have it pay twice"
                    .to_owned(),
            )),
        },
    }
}

fn paid(inner: &Inner, hash: PaymentHash, amount: Msat, fee: Msat) -> Result<Paid, WalletError> {
    let total = amount.checked_add(fee).unwrap_or(amount);
    inner.records.spent(hash.as_bytes(), hash.as_bytes(), total)?;
    Ok(Paid { hash, amount, fee, preimage: preimage(inner, hash) })
}

pub(super) fn preimage(inner: &Inner, hash: PaymentHash) -> Option<Preimage> {
    let payment = inner.node.payment(&PaymentId(*hash.as_bytes()))?;
    match payment.kind {
        PaymentKind::Bolt11 { preimage, .. } | PaymentKind::Bolt11Jit { preimage, .. } => {
            preimage.map(|preimage| Preimage::from_bytes(preimage.0))
        }
        _ => None,
    }
}

/// Why there is no way, as far as this side can tell, and what to do.
fn no_route(inner: &Inner, amount: Msat) -> WalletError {
    let channels = inner.node.list_channels();
    let usable = channels.iter().filter(|channel| channel.is_usable).count();
    let advice = match balance::of(inner) {
        _ if channels.is_empty() => "this wallet has no channel. Send bitcoin to it (`wallet address`), then open a \
                                     channel to a well-connected node (`wallet open`)"
            .to_owned(),
        _ if usable == 0 => format!(
            "none of its {} channels can be used now: their peers are away, or their funding is not confirmed. Look at \
             `wallet channels`, and try again",
            channels.len()
        ),
        Ok(balances) if balances.spendable < amount => format!(
            "at most {} can be sent over Lightning now. Open another channel (`wallet open`), or receive some first",
            sats(balances.spendable)
        ),
        Ok(balances) if balances.largest < amount => format!(
            "{} can be sent from here, but {} at most through one channel, and no way to the payee was found that splits \
             it well. Try a smaller amount, or open a larger channel (`wallet open`)",
            sats(balances.spendable),
            sats(balances.largest)
        ),
        Ok(balances) => format!(
            "{} can be sent from here, but no way to the payee with enough room was found: it may be away, may lack room \
             to receive, or its channels may not be known here yet. Try a smaller amount or again in a minute, or open a \
             channel towards it (`wallet open`)",
            sats(balances.spendable)
        ),
        Err(error) => format!("no way to the payee was found, and what can be sent is not known: {error}"),
    };
    WalletError::NoRoute { amount, advice }
}
