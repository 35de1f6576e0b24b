//! What the till does by itself.

use std::time::Duration;

use consortium_protocol::hash::Hash;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Till, Trouble};
use crate::clock;

/// How often it looks.
const EVERY: Duration = Duration::from_secs(30);
/// Invoices that are forgotten at a time.
const AT_A_TIME: u32 = 500;

impl Till {
    /// Forgets what was never paid and goes on with what was interrupted, until `stop`.
    pub(super) async fn tend(self, stop: CancellationToken) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = every.tick() => {}
            }
            for (what, done) in
                [("unpaid invoices", self.forget_unpaid().await), ("refunds", self.go_on_with_refunds().await)]
            {
                if let Err(error) = done {
                    warn!(%error, "the till could not look after {what}");
                }
            }
        }
    }

    async fn forget_unpaid(&self) -> Result<(), Trouble> {
        let now_s = clock::since_epoch().as_secs();
        let swept = self.books(move |ledger| ledger.l402_sweep(now_s, AT_A_TIME)).await.ok_or(Trouble::Closed)??;
        for hash in swept {
            if let Err(error) = self.inner.cashier.forget(Hash::from_bytes(hash)).await {
                debug!(%error, "the wallet keeps an invoice that nobody paid");
            }
        }
        Ok(())
    }
}
