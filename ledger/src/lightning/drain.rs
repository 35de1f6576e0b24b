//! Takes ldk-node's events, writes them down, and passes them on; watches the deadlines of what is held.
//!
//! ldk-node repeats an event until it hears that it was handled, so none is lost: it is written down first. That the
//! deadline of a held payment has come is not told by Lightning; the height of the chain is watched for it.

use std::sync::Arc;
use std::time::Duration;

use consortium_protocol::Msat;
use ldk_node::Event;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use super::error::{self, WalletError};
use super::event::{self, WalletEvent};
use super::records::Recorded;
use super::wallet::{Inner, now_ms};

/// How often deadlines are looked at.
const DEADLINES: Duration = Duration::from_secs(2);
/// Pause after an event that could not be written down.
const TROUBLE: Duration = Duration::from_secs(1);

/// Runs until the wallet stops.
pub(super) async fn run(inner: Arc<Inner>, mut stop: watch::Receiver<bool>) {
    // The first event may be one that was written down before a crash.
    let mut maybe_again = true;
    let mut deadlines = tokio::time::interval(DEADLINES);
    deadlines.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            // Also when the wallet is gone.
            _ = stop.wait_for(|stop| *stop) => return,
            _ = deadlines.tick() => None,
            event = inner.node.next_event_async() => Some(event),
        };
        let is_event = event.is_some();
        let working = Arc::clone(&inner);
        let worked = tokio::task::spawn_blocking(move || match event {
            Some(event) => handle(&working, event, maybe_again),
            None => expire(&working),
        });
        match worked.await {
            Ok(Ok(())) => maybe_again &= !is_event,
            Ok(Err(error)) => {
                warn!(%error, "an event of the wallet could not be written down");
                maybe_again |= is_event;
                tokio::time::sleep(TROUBLE).await;
            }
            // The runtime is ending.
            Err(_) => return,
        }
    }
}

fn handle(inner: &Inner, event: Event, maybe_again: bool) -> Result<(), WalletError> {
    let sent = |id| inner.node.payment(&id).and_then(|payment| payment.amount_msat).map(Msat);
    let event = event::from_ldk(event, sent);
    if let Some(WalletEvent::PaymentHeld { hash, .. }) = &event
        && inner.records.is_cancelled(hash)?
    {
        // It came after its invoice was cancelled.
        let failing = inner.node.bolt11_payment().fail_for_hash((*hash).into());
        failing.map_err(error::of("refusing a payment"))?;
    } else if let Some(event) = event
        && let Some(recorded) = inner.records.take(&event, maybe_again, now_ms())?
    {
        inner.watermark.note(recorded.seq)?;
        tell(inner, recorded);
    }
    inner.node.event_handled().map_err(error::of("marking an event as handled"))
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
