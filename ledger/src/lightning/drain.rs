//! Takes ldk-node's events, writes them down, and passes them on; watches the deadlines of what is held.
//!
//! ldk-node repeats an event until it hears that it was handled, so none is lost: it is written down first. That the
//! deadline of a held payment has come is not told by Lightning; the height of the chain is watched for it.

use std::sync::Arc;
use std::time::Duration;

use consortium_protocol::Msat;
use ldk_node::lightning::ln::channelmanager::PaymentId;
use ldk_node::{Event, NodeError};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tracing::{error, info, warn};

use super::error::{WalletError, of};
use super::event::{self, WalletEvent};
use super::hash::PaymentHash;
use super::records::Recorded;
use super::wallet::{Inner, now_ms};

/// How often deadlines are looked at.
const DEADLINES: Duration = Duration::from_secs(2);
/// Pause after an event that could not be written down.
const TROUBLE: Duration = Duration::from_secs(1);

/// Runs until the wallet stops.
pub(super) async fn run(inner: Arc<Inner>, mut stop: watch::Receiver<bool>) {
    let mut deadlines = tokio::time::interval(DEADLINES);
    deadlines.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            // Also when the wallet is gone.
            _ = stop.wait_for(|stop| *stop) => return,
            _ = deadlines.tick() => None,
            event = inner.node.next_event_async() => Some(event),
        };
        let working = Arc::clone(&inner);
        let worked = tokio::task::spawn_blocking(move || match event {
            Some(event) => handle(&working, event),
            None => expire(&working),
        });
        match worked.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!(%error, "an event of the wallet could not be written down");
                tokio::time::sleep(TROUBLE).await;
            }
            Err(error) => {
                // ldk-node gives up by a panic, on a full disk for example. Otherwise the runtime is ending.
                if error.is_panic() {
                    error!(%error, "the Lightning node broke off");
                    inner.broken.send_replace(true);
                }
                return;
            }
        }
    }
}

fn handle(inner: &Inner, event: Event) -> Result<(), WalletError> {
    let event = event::from_ldk(event, |hash| amount(inner, hash))?;
    if let Some(WalletEvent::PaymentHeld { hash, .. }) = &event
        && inner.records.is_cancelled(hash)?
    {
        // It came after its invoice was cancelled.
        match inner.node.bolt11_payment().fail_for_hash((*hash).into()) {
            // ldk-node forgot its invoice; the payment goes back when its time is over.
            Ok(()) | Err(NodeError::InvalidPaymentHash) => {}
            Err(failing) => return Err(of("refusing a payment")(failing)),
        }
    } else if let Some(event) = event
        && let Some(recorded) = inner.records.take(&event, now_ms())?
    {
        inner.watermark.note(recorded.seq)?;
        tell(inner, recorded);
    }
    inner.node.event_handled().map_err(of("marking an event as handled"))?;
    inner.records.confirm()
}

/// What the payee of a payment from here got: as it was noted before it was sent.
fn amount(inner: &Inner, hash: PaymentHash) -> Result<Msat, WalletError> {
    if let Some(amount) = inner.records.amount(hash.as_bytes())? {
        return Ok(amount);
    }
    let known = inner.node.payment(&PaymentId(*hash.as_bytes())).and_then(|payment| payment.amount_msat);
    Ok(known.map_or(Msat::ZERO, Msat))
}

fn expire(inner: &Inner) -> Result<(), WalletError> {
    for recorded in inner.records.expire_holds(inner.height(), now_ms())? {
        inner.watermark.note(recorded.seq)?;
        tell(inner, recorded);
    }
    Ok(())
}

fn tell(inner: &Inner, recorded: Recorded) {
    info!(event = ?recorded.event, "wallet");
    // Nobody needs to listen.
    let _nobody = inner.events.send(recorded);
}
