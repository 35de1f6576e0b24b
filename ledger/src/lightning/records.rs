//! `wallet.db`: what the wallet itself remembers beside ldk-node's own state: what was spent, what invoices were for,
//! what is held, and what happened.
//!
//! Every change is one transaction. ldk-node tells an event again until it has heard that it was handled, also over a
//! crash: which one was written down and not yet confirmed to it is kept here, so that it counts once.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consortium_protocol::Msat;
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};
use serde::Serialize;

use super::error::WalletError;
use super::event::WalletEvent;
use super::hash::PaymentHash;
use super::spending::release;
use crate::store::{self, Schema};

/// "CWAL".
const APPLICATION_ID: i32 = 0x4357_414c;
/// Blocks after a hold's deadline within which a claim that was made in time is known to be.
const TOO_LATE: u32 = 2;
/// Events that are kept.
const MAX_EVENTS: i64 = 100_000;

const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE event (
        seq         INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
        at_ms       INTEGER NOT NULL,
        body        TEXT    NOT NULL
    ) STRICT;
    CREATE TABLE spending (
        id          BLOB    PRIMARY KEY NOT NULL CHECK (length(id) = 32),
        at_ms       INTEGER NOT NULL,
        msat        INTEGER NOT NULL CHECK (msat >= 0),
        state       TEXT    NOT NULL CHECK (state IN ('pending', 'spent', 'returned'))
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX spending_time ON spending (at_ms);
    CREATE TABLE invoice (
        hash        BLOB    PRIMARY KEY NOT NULL CHECK (length(hash) = 32),
        created_s   INTEGER NOT NULL,
        expires_s   INTEGER NOT NULL,
        description TEXT    NOT NULL,
        hold        INTEGER NOT NULL CHECK (hold IN (0, 1))
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE hold (
        hash        BLOB    PRIMARY KEY NOT NULL CHECK (length(hash) = 32),
        msat        INTEGER NOT NULL CHECK (msat >= 0),
        deadline    INTEGER NOT NULL,
        state       TEXT    NOT NULL CHECK (state IN ('held', 'settling', 'settled', 'cancelled', 'expired'))
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX hold_open ON hold (deadline) WHERE state IN ('held', 'settling');
",
    "
    ALTER TABLE spending ADD COLUMN amount INTEGER;
    CREATE TABLE unconfirmed (
        seq         INTEGER PRIMARY KEY NOT NULL
    ) STRICT;
    CREATE TABLE identity (
        id          BLOB    NOT NULL CHECK (length(id) = 8)
    ) STRICT;
    INSERT INTO identity VALUES (randomblob(8));
",
];

/// A payment that waits for its preimage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Held {
    /// Which.
    pub hash: PaymentHash,
    /// How much.
    pub amount: Msat,
    /// It goes back by itself at this height.
    pub deadline: u32,
    /// The preimage is given; the money is on its way here.
    pub settling: bool,
}

/// An event and its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recorded {
    /// Its place: events after it have higher ones.
    pub seq: u64,
    /// When it was noted, in milliseconds since 1970.
    pub at_ms: u64,
    /// What happened.
    pub event: WalletEvent,
}

/// What an invoice of this wallet was for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InvoiceNote {
    pub(super) description: String,
    pub(super) expires_s: u64,
    pub(super) hold: bool,
}

/// The database. A clone is the same; calls block on the disk.
#[derive(Clone, Debug)]
pub(super) struct Records {
    connection: Arc<Mutex<Connection>>,
}

pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn bad_body(error: serde_json::Error) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
}

impl Records {
    pub(super) fn open(path: &Path) -> Result<Self, WalletError> {
        let schema = Schema { application_id: APPLICATION_ID, migrations: MIGRATIONS };
        Ok(Self { connection: Arc::new(Mutex::new(store::open_with(path, schema)?)) })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic in between left a transaction that was rolled back.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change<T>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> Result<T, WalletError>,
    ) -> Result<T, WalletError> {
        let mut connection = self.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = change(&transaction)?;
        transaction.commit()?;
        Ok(value)
    }

    pub(super) fn note_invoice(
        &self,
        hash: &PaymentHash,
        created_s: u64,
        note: &InvoiceNote,
    ) -> Result<(), WalletError> {
        self.change(|transaction| {
            transaction.execute(
                "INSERT OR REPLACE INTO invoice VALUES (?1, ?2, ?3, ?4, ?5)",
                params![hash.as_bytes(), signed(created_s), signed(note.expires_s), note.description, note.hold],
            )?;
            Ok(())
        })
    }

    pub(super) fn invoice(&self, hash: &PaymentHash) -> Result<Option<InvoiceNote>, WalletError> {
        let connection = self.lock();
        let mut wanted =
            connection.prepare_cached("SELECT description, expires_s, hold FROM invoice WHERE hash = ?1")?;
        let note = wanted.query_row([hash.as_bytes()], |row| {
            Ok(InvoiceNote { description: row.get(0)?, expires_s: unsigned(row.get(1)?), hold: row.get(2)? })
        });
        Ok(note.optional()?)
    }

    pub(super) fn forget_invoice(&self, hash: &PaymentHash) -> Result<(), WalletError> {
        self.lock().execute("DELETE FROM invoice WHERE hash = ?1", [hash.as_bytes()])?;
        Ok(())
    }

    /// Notes an event of this program's own, and what follows from it; none if nothing does.
    pub(super) fn note(&self, event: &WalletEvent, now_ms: u64) -> Result<Option<Recorded>, WalletError> {
        self.change(|transaction| record(transaction, event, now_ms))
    }

    /// Notes an event that ldk-node tells until it is [`Records::confirm`]ed, and what follows from it. Gives none if it
    /// was noted before.
    pub(super) fn take(&self, event: &WalletEvent, now_ms: u64) -> Result<Option<Recorded>, WalletError> {
        let body = serde_json::to_string(event).map_err(bad_body)?;
        self.change(|transaction| {
            let told: Option<String> = transaction
                .query_row("SELECT body FROM event JOIN unconfirmed USING (seq)", [], |row| row.get(0))
                .optional()?;
            if told.as_ref() == Some(&body) {
                return Ok(None);
            }
            let recorded = record(transaction, event, now_ms)?;
            if let Some(recorded) = &recorded {
                transaction.execute("DELETE FROM unconfirmed", [])?;
                transaction.execute("INSERT INTO unconfirmed VALUES (?1)", [signed(recorded.seq)])?;
            }
            Ok(recorded)
        })
    }

    /// Notes that ldk-node has heard that its last event was handled.
    pub(super) fn confirm(&self) -> Result<(), WalletError> {
        self.lock().execute("DELETE FROM unconfirmed", [])?;
        Ok(())
    }

    /// A name of these records, drawn when they were begun.
    pub(super) fn identity(&self) -> Result<[u8; 8], WalletError> {
        Ok(self.lock().query_row("SELECT id FROM identity", [], |row| row.get(0))?)
    }

    /// The place of the newest event; 0 if nothing happened yet.
    pub(super) fn newest(&self) -> Result<u64, WalletError> {
        let newest: Option<i64> = self.lock().query_row("SELECT max(seq) FROM event", [], |row| row.get(0))?;
        Ok(newest.map_or(0, unsigned))
    }

    /// Events after a place, the oldest first.
    pub(super) fn events(&self, after: u64, limit: u32) -> Result<Vec<Recorded>, WalletError> {
        let connection = self.lock();
        let mut wanted =
            connection.prepare_cached("SELECT seq, at_ms, body FROM event WHERE seq > ?1 ORDER BY seq LIMIT ?2")?;
        let rows = wanted.query_map(params![signed(after), limit], |row| {
            let body: String = row.get(2)?;
            let event = serde_json::from_str(&body).map_err(bad_body)?;
            Ok(Recorded { seq: unsigned(row.get(0)?), at_ms: unsigned(row.get(1)?), event })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// What is held, the most urgent first.
    pub(super) fn holds(&self) -> Result<Vec<Held>, WalletError> {
        let connection = self.lock();
        let mut wanted = connection.prepare_cached(
            "SELECT hash, msat, deadline, state = 'settling' FROM hold
             WHERE state IN ('held', 'settling') ORDER BY deadline, hash",
        )?;
        let rows = wanted.query_map([], |row| {
            Ok(Held {
                hash: PaymentHash::from_bytes(row.get(0)?),
                amount: Msat(unsigned(row.get(1)?)),
                deadline: row.get(2)?,
                settling: row.get(3)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Moves a hold from `held` (or `from`) on; tells whether it was there.
    pub(super) fn move_hold(&self, hash: &PaymentHash, from: &str, to: &str) -> Result<bool, WalletError> {
        self.change(|transaction| {
            let moved = transaction.execute(
                "UPDATE hold SET state = ?3 WHERE hash = ?1 AND state = ?2",
                params![hash.as_bytes(), from, to],
            )?;
            Ok(moved > 0)
        })
    }

    /// Notes that nothing is to be held for a hash any more, whether something is or not.
    pub(super) fn cancel_hold(&self, hash: &PaymentHash) -> Result<(), WalletError> {
        self.change(|transaction| {
            transaction.execute(
                "INSERT INTO hold VALUES (?1, 0, 0, 'cancelled')
                 ON CONFLICT (hash) DO UPDATE SET state = 'cancelled' WHERE state IN ('held', 'expired')",
                [hash.as_bytes()],
            )?;
            Ok(())
        })
    }

    /// Whether nothing is to be held for a hash any more.
    pub(super) fn is_cancelled(&self, hash: &PaymentHash) -> Result<bool, WalletError> {
        let connection = self.lock();
        let mut wanted = connection.prepare_cached("SELECT 1 FROM hold WHERE hash = ?1 AND state = 'cancelled'")?;
        Ok(wanted.exists([hash.as_bytes()])?)
    }

    /// Whether what was held for a hash is settled.
    pub(super) fn is_settled(&self, hash: &PaymentHash) -> Result<bool, WalletError> {
        let connection = self.lock();
        let mut wanted = connection.prepare_cached("SELECT 1 FROM hold WHERE hash = ?1 AND state = 'settled'")?;
        Ok(wanted.exists([hash.as_bytes()])?)
    }

    /// Ends the holds whose deadline is at or below `height`: they went back. So did those being settled of which nobody
    /// said within [`TOO_LATE`] blocks more that they were received: the preimage came too late.
    pub(super) fn expire_holds(&self, height: u32, now_ms: u64) -> Result<Vec<Recorded>, WalletError> {
        let over = |held: &Held| match held.settling {
            true => held.deadline.saturating_add(TOO_LATE) <= height,
            false => held.deadline <= height,
        };
        let mut told = Vec::new();
        for Held { hash, amount, deadline, .. } in self.holds()?.into_iter().filter(over) {
            told.extend(self.note(&WalletEvent::HoldExpired { hash, amount, deadline }, now_ms)?);
        }
        Ok(told)
    }

    /// Whether a hash was used: a payment to it was sent, has come or is refused, or an invoice is out for it that is none
    /// to hold.
    pub(super) fn is_used(&self, hash: &PaymentHash) -> Result<bool, WalletError> {
        let connection = self.lock();
        let mut wanted = connection.prepare_cached(
            "SELECT 1 FROM invoice WHERE hash = ?1 AND hold = 0 UNION ALL SELECT 1 FROM hold WHERE hash = ?1
             UNION ALL SELECT 1 FROM spending WHERE id = ?1",
        )?;
        Ok(wanted.exists([hash.as_bytes()])?)
    }
}

/// Applies and appends an event, unless it is one that nothing follows from and that is not so.
fn record(transaction: &Transaction<'_>, event: &WalletEvent, now_ms: u64) -> Result<Option<Recorded>, WalletError> {
    let changed = apply(transaction, event)?;
    if matches!(event, WalletEvent::HoldExpired { .. }) && changed == 0 {
        // It was settled or cancelled meanwhile.
        return Ok(None);
    }
    let body = serde_json::to_string(event).map_err(bad_body)?;
    let seq = append(transaction, &body, now_ms)?;
    Ok(Some(Recorded { seq, at_ms: now_ms, event: event.clone() }))
}

/// What follows from an event for spending and holds; tells how many of them changed.
fn apply(transaction: &Transaction<'_>, event: &WalletEvent) -> rusqlite::Result<usize> {
    Ok(match event {
        WalletEvent::PaymentSent { hash, .. } => {
            // What was reserved, with the highest fee there could be, stays as what was spent: that errs on the safe side.
            transaction.execute("UPDATE spending SET state = 'spent' WHERE id = ?1", [hash.as_bytes()])?
        }
        WalletEvent::PaymentFailed { hash, .. } => release(transaction, hash.as_bytes())?,
        WalletEvent::PaymentHeld { hash, amount, deadline } => transaction.execute(
            "INSERT INTO hold VALUES (?1, ?2, ?3, 'held')
                 ON CONFLICT (hash) DO UPDATE SET msat = ?2, deadline = ?3, state = 'held'
                 WHERE state IN ('held', 'expired')",
            params![hash.as_bytes(), signed(amount.0), deadline],
        )?,
        WalletEvent::PaymentReceived { hash, .. } => {
            transaction.execute("UPDATE hold SET state = 'settled' WHERE hash = ?1", [hash.as_bytes()])?
        }
        WalletEvent::HoldExpired { hash, .. } => transaction.execute(
            "UPDATE hold SET state = 'expired' WHERE hash = ?1 AND state IN ('held', 'settling')",
            [hash.as_bytes()],
        )?,
        _ => 0,
    })
}

fn append(transaction: &Transaction<'_>, body: &str, now_ms: u64) -> rusqlite::Result<u64> {
    transaction.execute("INSERT INTO event (at_ms, body) VALUES (?1, ?2)", params![signed(now_ms), body])?;
    let seq = transaction.last_insert_rowid();
    transaction.execute("DELETE FROM event WHERE seq <= ?1", [seq.saturating_sub(MAX_EVENTS)])?;
    Ok(unsigned(seq))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lightning::event::FailureReason;

    fn records() -> (tempfile::TempDir, Records) {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(&dir.path().join("wallet.db")).unwrap();
        (dir, records)
    }

    fn hash(byte: u8) -> PaymentHash {
        PaymentHash::from_bytes([byte; 32])
    }

    #[test]
    fn an_event_told_again_after_a_restart_counts_once() {
        let (_dir, records) = records();
        let event = WalletEvent::PaymentFailed { hash: hash(1), why: FailureReason::NoRoute };
        let first = records.take(&event, 1).unwrap().unwrap();
        assert_eq!(records.events(0, 10).unwrap(), std::slice::from_ref(&first));
        records.note(&WalletEvent::Stopped, 1).unwrap();
        let last = records.note(&WalletEvent::Started, 2).unwrap().unwrap();
        assert_eq!(records.take(&event, 2).unwrap(), None);
        assert_eq!(records.newest().unwrap(), last.seq);
        records.confirm().unwrap();
        // Tried again, it failed in the same way: that is another event.
        let again = records.take(&event, 3).unwrap().unwrap();
        let other = records.take(&WalletEvent::ChannelReady { channel: "c".to_owned() }, 3).unwrap().unwrap();
        assert_eq!(records.events(last.seq, 10).unwrap(), [again, other]);
    }

    #[test]
    fn holds_end_in_one_way() {
        let (_dir, records) = records();
        for (byte, deadline) in [(1, 50), (2, 40), (3, 60)] {
            let held = WalletEvent::PaymentHeld { hash: hash(byte), amount: Msat(9), deadline };
            records.take(&held, 1).unwrap();
        }
        let order: Vec<u32> = records.holds().unwrap().iter().map(|held| held.deadline).collect();
        assert_eq!(order, [40, 50, 60]);
        assert!(records.move_hold(&hash(1), "held", "settling").unwrap());
        assert!(!records.move_hold(&hash(1), "held", "cancelled").unwrap(), "it is being settled");
        let expired = records.expire_holds(50, 2).unwrap();
        assert_eq!(
            expired.iter().map(|told| told.event.clone()).collect::<Vec<_>>(),
            [WalletEvent::HoldExpired { hash: hash(2), amount: Msat(9), deadline: 40 }]
        );
        assert_eq!(records.expire_holds(50, 3).unwrap(), []);
        let late = WalletEvent::HoldExpired { hash: hash(2), amount: Msat(9), deadline: 40 };
        assert_eq!(records.note(&late, 3).unwrap(), None, "it is over already");
        records.take(&WalletEvent::PaymentReceived { hash: hash(1), amount: Msat(9) }, 4).unwrap();
        assert_eq!(records.holds().unwrap().len(), 1);
        assert!(records.is_settled(&hash(1)).unwrap() && !records.is_settled(&hash(3)).unwrap());
        for byte in [3, 4] {
            assert!(!records.is_cancelled(&hash(byte)).unwrap());
            records.cancel_hold(&hash(byte)).unwrap();
            assert!(records.is_cancelled(&hash(byte)).unwrap());
        }
        assert_eq!(records.holds().unwrap(), []);

        // A preimage that was given too late brings nothing.
        let (late, deadline) = (hash(5), 70);
        records.take(&WalletEvent::PaymentHeld { hash: late, amount: Msat(9), deadline }, 5).unwrap();
        assert!(records.move_hold(&late, "held", "settling").unwrap());
        assert_eq!(records.expire_holds(deadline + 1, 6).unwrap(), []);
        assert_eq!(records.expire_holds(deadline + 2, 6).unwrap().len(), 1);
        assert_eq!(records.holds().unwrap(), []);
    }

    #[test]
    fn an_invoice_is_remembered() {
        let (_dir, records) = records();
        let note = InvoiceNote { description: "bread".to_owned(), expires_s: 7, hold: true };
        records.note_invoice(&hash(1), 1, &note).unwrap();
        assert_eq!(records.invoice(&hash(1)).unwrap(), Some(note));
        assert_eq!(records.invoice(&hash(2)).unwrap(), None);
    }
}
