//! What was spent, and the limits that hold for it.

use consortium_protocol::Msat;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::error::WalletError;
use super::hash::PaymentHash;
use super::records::{Records, signed, unsigned};
use super::settings::SpendingLimits;

const DAY_MS: u64 = 24 * 3600 * 1000;

impl Records {
    /// Notes that `amount`, and at most `with_fees` with the fees, are about to be spent under the name `id`, if the limits
    /// allow it. What is pending counts as spent; what came back does not.
    pub(super) fn reserve(
        &self,
        id: &[u8; 32],
        (amount, with_fees): (Msat, Msat),
        limits: &SpendingLimits,
        now_ms: u64,
    ) -> Result<(), WalletError> {
        if let Some(limit) = limits.per_payment.filter(|limit| with_fees > *limit) {
            return Err(WalletError::AbovePaymentLimit { wanted: with_fees, limit });
        }
        self.change(|transaction| {
            let spent = spent_since(transaction, now_ms.saturating_sub(DAY_MS))?;
            if let Some(limit) = limits.per_day
                && spent.checked_add(with_fees).is_none_or(|sum| sum > limit)
            {
                return Err(WalletError::AboveDayLimit { spent, wanted: with_fees, limit });
            }
            let changed = transaction.execute(
                "INSERT INTO spending (id, at_ms, msat, amount, state) VALUES (?1, ?2, ?3, ?4, 'pending')
                 ON CONFLICT (id) DO UPDATE SET at_ms = ?2, msat = ?3, amount = ?4, state = 'pending'
                 WHERE state = 'returned'",
                params![id, signed(now_ms), signed(with_fees.0), signed(amount.0)],
            )?;
            match changed {
                0 => Err(WalletError::OnItsWay(PaymentHash::from_bytes(*id))),
                _ => Ok(()),
            }
        })
    }

    /// What was spent within 24 hours, and what is about to be.
    pub(super) fn spent_today(&self, now_ms: u64) -> Result<Msat, WalletError> {
        spent_since(&self.lock(), now_ms.saturating_sub(DAY_MS))
    }

    /// What a payee was to get of what is spent under this name.
    pub(super) fn amount(&self, id: &[u8; 32]) -> Result<Option<Msat>, WalletError> {
        let connection = self.lock();
        let mut wanted = connection.prepare_cached("SELECT amount FROM spending WHERE id = ?1")?;
        let amount: Option<Option<i64>> = wanted.query_row([id], |row| row.get(0)).optional()?;
        Ok(amount.flatten().map(|amount| Msat(unsigned(amount))))
    }

    /// What was reserved is spent: so much, under this name from now on.
    pub(super) fn spent(&self, reserved: &[u8; 32], id: &[u8; 32], amount: Msat) -> Result<(), WalletError> {
        self.change(|transaction| {
            transaction.execute(
                "UPDATE spending SET id = ?2, msat = ?3, state = 'spent' WHERE id = ?1",
                params![reserved, id, signed(amount.0)],
            )?;
            Ok(())
        })
    }

    /// What was reserved was not spent.
    pub(super) fn returned(&self, id: &[u8; 32]) -> Result<(), WalletError> {
        self.change(|transaction| Ok(release(transaction, id).map(drop)?))
    }
}

fn spent_since(connection: &Connection, since_ms: u64) -> Result<Msat, WalletError> {
    let spent: i64 = connection.query_row(
        "SELECT coalesce(sum(msat), 0) FROM spending WHERE at_ms > ?1 AND state <> 'returned'",
        [signed(since_ms)],
        |row| row.get(0),
    )?;
    Ok(Msat(unsigned(spent)))
}

/// What was reserved under this name and not spent is free again.
pub(super) fn release(transaction: &Transaction<'_>, id: &[u8; 32]) -> rusqlite::Result<usize> {
    transaction.execute("UPDATE spending SET state = 'returned' WHERE id = ?1 AND state = 'pending'", [id])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lightning::event::{FailureReason, WalletEvent};

    const HOUR_MS: u64 = 3600 * 1000;

    fn records() -> (tempfile::TempDir, Records) {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(&dir.path().join("wallet.db")).unwrap();
        (dir, records)
    }

    fn hash(byte: u8) -> PaymentHash {
        PaymentHash::from_bytes([byte; 32])
    }

    #[test]
    fn a_day_has_a_limit_that_outlives_a_restart() {
        let (dir, records) = records();
        let limits = SpendingLimits { per_payment: Some(Msat(600)), per_day: Some(Msat(1000)) };
        let start = 30 * DAY_MS;
        records.reserve(&[1; 32], (Msat(600), Msat(600)), &limits, start).unwrap();
        assert!(matches!(
            records.reserve(&[2; 32], (Msat(601), Msat(601)), &limits, start),
            Err(WalletError::AbovePaymentLimit { .. })
        ));
        drop(records);
        let records = Records::open(&dir.path().join("wallet.db")).unwrap();
        let refused = records.reserve(&[2; 32], (Msat(401), Msat(401)), &limits, start + HOUR_MS);
        assert!(matches!(refused, Err(WalletError::AboveDayLimit { spent: Msat(600), .. })), "{refused:?}");
        records.reserve(&[2; 32], (Msat(400), Msat(400)), &limits, start + HOUR_MS).unwrap();
        assert_eq!(records.spent_today(start + HOUR_MS).unwrap(), Msat(1000));
        // A day later the first no longer counts.
        records.reserve(&[3; 32], (Msat(600), Msat(600)), &limits, start + DAY_MS).unwrap();
    }

    #[test]
    fn what_came_back_may_be_spent_again_and_what_is_pending_not_twice() {
        let (_dir, records) = records();
        let limits = SpendingLimits { per_payment: None, per_day: Some(Msat(100)) };
        records.reserve(hash(1).as_bytes(), (Msat(100), Msat(100)), &limits, 1).unwrap();
        assert!(matches!(
            records.reserve(hash(1).as_bytes(), (Msat(0), Msat(0)), &limits, 1),
            Err(WalletError::OnItsWay(_))
        ));
        let failed = WalletEvent::PaymentFailed { hash: hash(1), why: FailureReason::NoRoute };
        records.take(&failed, 2).unwrap();
        assert_eq!(records.spent_today(2).unwrap(), Msat::ZERO);
        records.reserve(hash(1).as_bytes(), (Msat(100), Msat(100)), &limits, 3).unwrap();
        records.take(&WalletEvent::PaymentSent { hash: hash(1), amount: Msat(2), fee: Msat(1) }, 4).unwrap();
        // A failure told late changes nothing.
        records.take(&failed, 5).unwrap();
        assert_eq!(records.spent_today(5).unwrap(), Msat(100));
    }
}
