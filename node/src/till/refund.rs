//! Giving credit back.

use std::time::{Duration, Instant};

use consortium_ledger::api_keys::KeyId;
use consortium_ledger::l402::refunds::{Refund, RefundState};
use consortium_ledger::{Ledger, LedgerError};
use consortium_protocol::hash::Hash;
use consortium_protocol::msat::Msat;
use tracing::warn;

use super::{Outcome, Till, Trouble};
use crate::buckets::Pace;
use crate::clock::{since_epoch, wall_ms};

/// How long a refund that was paid may take to be in the books.
const BOOKING: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(50);
/// Attempts of an account: each may keep the wallet busy for a while, and leaves its entries in the journal.
const ATTEMPTS: Pace = Pace { burst: 3, per_second: 1.0 / 60.0 };

/// How a refund went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refunded {
    /// What was paid out.
    pub amount: Msat,
    /// What its way cost, where it is paid; at most, where it is not yet.
    pub fee: Msat,
    /// Whether it has arrived; otherwise it may still, or come back.
    pub paid: bool,
    /// The payment.
    pub hash: Hash,
}

/// Why nothing was paid out.
#[derive(Debug, thiserror::Error)]
pub enum RefundError {
    /// The invoice is none, or does not say how much.
    #[error("{0}")]
    Invoice(String),
    /// There is less to be paid out.
    #[error("at most {} msat can be paid out now: trial credit stays, and the way may cost up to {} msat", most.0, fee.0)]
    Insufficient {
        /// So much can be.
        most: Msat,
        /// What is kept for the fees of the way.
        fee: Msat,
    },
    /// Another refund of the account is on its way, or the invoice was for something else.
    #[error("another refund of this account is on its way, or this invoice was used for something else")]
    Taken,
    /// Too many of them.
    #[error("too many refunds; try again in {} s", .0.as_secs() + 1)]
    Often(Duration),
    /// The payment failed; the credit is back.
    #[error("the refund could not be paid, and the credit is still there: {0}")]
    Failed(String),
    /// Something else is in the way.
    #[error(transparent)]
    Trouble(#[from] Trouble),
}

/// What the way of a refund may cost: a hundredth, and 5 sat.
fn max_fee(amount: Msat) -> Msat {
    Msat((amount.0 / 100).saturating_add(5000))
}

/// The largest invoice that so much credit pays, with the fees at most.
#[must_use]
pub fn largest(credit: Msat) -> Msat {
    let amount = credit.0.saturating_sub(5000) / 101 * 100;
    Msat(amount / 1000 * 1000)
}

impl Till {
    /// Pays credit of an account out to an invoice. The same invoice again is not paid again. Goes on when nobody waits
    /// for it any more.
    ///
    /// # Errors
    /// [`RefundError`]; nothing was paid then.
    pub async fn refund(&self, account: KeyId, invoice: String) -> Result<Refunded, RefundError> {
        let whose = Hash::of(account.as_str().as_bytes());
        self.inner.rates.take(whose, 1, ATTEMPTS, Instant::now()).map_err(RefundError::Often)?;
        let till = self.clone();
        let paying = tokio::spawn(async move { till.pay_out(account, invoice).await });
        paying.await.map_err(|_| Trouble::Closed)?
    }

    async fn pay_out(&self, account: KeyId, invoice: String) -> Result<Refunded, RefundError> {
        let said = self.inner.cashier.read(&invoice).map_err(|error| RefundError::Invoice(error.to_string()))?;
        let amount = said.amount.filter(|amount| *amount > Msat::ZERO);
        let amount =
            amount.ok_or_else(|| RefundError::Invoice("the invoice must say how much it asks for".to_owned()))?;
        if said.expires_s <= since_epoch().as_secs() {
            return Err(RefundError::Invoice("the invoice has expired".to_owned()));
        }
        let Some(_busy) = Busy::begin(self, said.hash) else { return Err(RefundError::Taken) };
        let wanted = Refund::wanted(account.clone(), said.hash, invoice, amount, max_fee(amount));
        let begun = self.books(move |ledger| match ledger.begin_refund(&wanted, wall_ms()) {
            Err(LedgerError::Insufficient { .. }) => Err(ledger.refundable(&account).map(largest)),
            other => other.map_err(Err),
        });
        let refund = match begun.await.ok_or(Trouble::Closed)? {
            Ok(refund) => refund,
            Err(Ok(most)) => return Err(RefundError::Insufficient { most, fee: max_fee(most) }),
            Err(Err(LedgerError::Reused(_))) => return Err(RefundError::Taken),
            Err(Err(LedgerError::Busy(_))) => return Err(RefundError::Often(BOOKING)),
            Err(Err(error)) => return Err(Trouble::from(error).into()),
        };
        if refund.state == RefundState::Paid {
            return Ok(refunded(&refund));
        }
        let outcome = self.inner.cashier.pay(refund.invoice.clone(), refund.fee).await;
        self.conclude(refund, outcome).await
    }

    /// Brings a refund to an end by what became of its payment.
    async fn conclude(&self, refund: Refund, outcome: Outcome) -> Result<Refunded, RefundError> {
        let hash = refund.hash;
        match outcome {
            Outcome::Sent => Ok(refunded(&self.booked(hash).await?.unwrap_or(refund))),
            Outcome::OnItsWay => Ok(refunded(&refund)),
            Outcome::Failed(why) => {
                let failed = self.books(move |ledger| ledger.fail_refund(&hash, wall_ms())).await;
                failed.ok_or(Trouble::Closed)?.map_err(Trouble::from)?;
                Err(RefundError::Failed(why))
            }
        }
    }

    /// Waits until a payment is in the books, and ends its refund.
    async fn booked(&self, hash: Hash) -> Result<Option<Refund>, Trouble> {
        let give_up = Instant::now() + BOOKING;
        loop {
            let done =
                self.books(move |ledger| ledger.finish_refund(&hash, wall_ms())).await.ok_or(Trouble::Closed)??;
            if done.is_some() || Instant::now() >= give_up {
                return Ok(done);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Goes on with refunds that no task is busy with: those that were on their way when the node ended, or for too long.
    pub(super) async fn go_on_with_refunds(&self) -> Result<(), Trouble> {
        for refund in self.books(Ledger::open_refunds).await.ok_or(Trouble::Closed)?? {
            let Some(_busy) = Busy::begin(self, refund.hash) else { continue };
            let outcome = self.inner.cashier.fate(refund.hash).await?;
            if let Err(error) = self.conclude(refund, outcome).await {
                warn!(%error, "a refund");
            }
        }
        Ok(())
    }
}

fn refunded(refund: &Refund) -> Refunded {
    let Refund { amount, fee, state, hash, .. } = *refund;
    Refunded { amount, fee, paid: state == RefundState::Paid, hash }
}

/// A refund that somebody is busy with, until this is dropped.
struct Busy<'a> {
    till: &'a Till,
    hash: Hash,
}

impl<'a> Busy<'a> {
    fn begin(till: &'a Till, hash: Hash) -> Option<Self> {
        let mut refunding = till.inner.refunding.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        refunding.insert(hash).then_some(Self { till, hash })
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let refunding = self.till.inner.refunding.lock();
        refunding.unwrap_or_else(std::sync::PoisonError::into_inner).remove(&self.hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_refund_can_be_paid() {
        for credit in [0, 5000, 6009, 6010, 7000, 10_000, 1_000_000, 123_456_789] {
            let most = largest(Msat(credit));
            assert!(most == Msat(0) || most.0 + max_fee(most).0 <= credit, "{credit}");
            let more = Msat(most.0 + 2000);
            assert!(more.0 + max_fee(more).0 > credit, "{credit}");
        }
    }
}
