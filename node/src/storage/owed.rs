//! What this node owes for work, until the worker has booked it and its audit is settled: what a crash must not forget.

use consortium_ledger::accounts::Owner;
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::wire::Message as _;
use consortium_protocol::wire::audit::{AuditOrder, Verdict};
use consortium_protocol::wire::job::JobId;
use rusqlite::{Row, params};

use super::{Storage, StorageError};

/// Rows that one read returns: the oldest.
const MAX_OWED: u32 = 1024;

/// The work of one stage that this node pays for.
#[derive(Clone, Debug, PartialEq)]
pub struct Owed {
    /// Order, receipts up to the stage's, and nonce: all that an audit of it needs.
    pub audit: AuditOrder,
    /// Who is charged.
    pub account: Owner,
    /// Whether it was drawn for an audit.
    pub drawn: bool,
    /// When its receipt was accepted, in milliseconds since 1970.
    pub at_ms: u64,
}

/// Which of what is owed is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// What is not booked, or waits for its verdict.
    Undone,
    /// What its worker is still to be told.
    Untold,
}

/// How far the paying of [`Owed`] work has come.
#[derive(Clone, Debug, PartialEq)]
pub struct OwedState {
    /// The work.
    pub owed: Owed,
    /// Whether it is in the ledger.
    pub booked: bool,
    /// Whether the worker has booked it.
    pub told: bool,
    /// The verdict that its pay goes by, once there is one.
    pub verdict: Option<Signed<Verdict>>,
}

type Stored = (Vec<u8>, String, bool, u64, bool, bool, Option<Vec<u8>>);

fn read(row: &Row<'_>) -> rusqlite::Result<Stored> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?))
}

fn decode((audit, account, drawn, at_ms, booked, told, verdict): Stored) -> Option<OwedState> {
    let owed = Owed { audit: AuditOrder::decode(&audit).ok()?, account: account.parse().ok()?, drawn, at_ms };
    let verdict = match verdict {
        Some(bytes) => Some(Signed::decode(&bytes).ok()?),
        None => None,
    };
    Some(OwedState { owed, booked, told, verdict })
}

impl Storage {
    /// Notes what is owed for the stages of a job, before it is booked.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn owe(&self, stages: Vec<Owed>) -> Result<(), StorageError> {
        self.run(move |db| {
            let transaction = db.transaction()?;
            for owed in &stages {
                let Some(receipt) = owed.audit.receipt() else { continue };
                let at_ms = i64::try_from(owed.at_ms).unwrap_or(i64::MAX);
                transaction.execute(
                    "INSERT OR IGNORE INTO owed VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, 0, NULL)",
                    params![
                        receipt.digest().as_bytes(),
                        receipt.payload().job.0,
                        owed.audit.encode(),
                        owed.account.to_string(),
                        owed.drawn,
                        at_ms,
                    ],
                )?;
            }
            transaction.commit()
        })
        .await
    }

    /// Notes that a job's work is in the ledger.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn owe_booked(&self, job: JobId) -> Result<(), StorageError> {
        self.run(move |db| db.execute("UPDATE owed SET booked = 1 WHERE job = ?1", [job.0]).map(drop)).await
    }

    /// Notes that the worker has booked what is owed for a receipt; forgets it, if it waits for no verdict.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn owe_told(&self, receipt: Hash) -> Result<(), StorageError> {
        self.run(move |db| {
            let transaction = db.transaction()?;
            transaction.execute("UPDATE owed SET told = 1 WHERE receipt = ?1", [receipt.as_bytes()])?;
            transaction.execute("DELETE FROM owed WHERE receipt = ?1 AND drawn = 0", [receipt.as_bytes()])?;
            transaction.commit()
        })
        .await
    }

    /// Notes the verdict that pay goes by.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn owe_judged(&self, verdict: &Signed<Verdict>) -> Result<(), StorageError> {
        let (receipt, bytes) = (verdict.payload().receipt, verdict.as_bytes().to_vec());
        self.run(move |db| {
            let change = "UPDATE owed SET verdict = ?2, drawn = 1 WHERE receipt = ?1 AND verdict IS NULL";
            db.execute(change, params![receipt.as_bytes(), bytes]).map(drop)
        })
        .await
    }

    /// Forgets what was owed for a receipt: all is said.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn owe_settled(&self, receipt: Hash) -> Result<(), StorageError> {
        self.run(move |db| db.execute("DELETE FROM owed WHERE receipt = ?1", [receipt.as_bytes()]).map(drop)).await
    }

    /// What is owed and not settled, of one kind: the oldest 1024. Rows older than `since_ms` are forgotten
    /// first.
    ///
    /// # Errors
    /// When the database fails or holds what does not decode.
    pub async fn owed(&self, pending: Pending, since_ms: u64) -> Result<Vec<OwedState>, StorageError> {
        let since = i64::try_from(since_ms).unwrap_or(i64::MAX);
        let condition = match pending {
            Pending::Undone => "booked = 0 OR (drawn = 1 AND verdict IS NULL)",
            Pending::Untold => "booked = 1 AND (told = 0 OR verdict IS NOT NULL)",
        };
        let stored: Vec<Stored> = self
            .run(move |db| {
                db.execute("DELETE FROM owed WHERE at_ms < ?1", [since])?;
                let mut query = db.prepare_cached(&format!(
                    "SELECT audit, account, drawn, at_ms, booked, told, verdict FROM owed WHERE {condition}
                     ORDER BY at_ms, receipt LIMIT ?1"
                ))?;
                query.query_map([MAX_OWED], read)?.collect()
            })
            .await?;
        let damaged = || StorageError::DamagedOwed { file: self.file.to_string() };
        stored.into_iter().map(|row| decode(row).ok_or_else(damaged)).collect()
    }

    /// Keeps a payer's signed word that it owes this node: of those beyond 10,000 the oldest are let go.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn keep_acceptance(&self, receipt: Hash, at_ms: u64, signed: Vec<u8>) -> Result<(), StorageError> {
        let at_ms = i64::try_from(at_ms).unwrap_or(i64::MAX);
        self.run(move |db| {
            let transaction = db.transaction()?;
            transaction.execute(
                "INSERT OR IGNORE INTO acceptances VALUES (?1, ?2, ?3)",
                params![receipt.as_bytes(), at_ms, signed],
            )?;
            transaction.execute(
                "DELETE FROM acceptances WHERE receipt IN
                     (SELECT receipt FROM acceptances ORDER BY at_ms DESC, receipt DESC LIMIT -1 OFFSET ?1)",
                [super::MAX_RECEIPTS],
            )?;
            transaction.commit()
        })
        .await
    }
}
