//! The handle on a node's books, and what can go wrong with them.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consortium_protocol::{DecodeError, Hash, Invalid, Msat, NodeId};
use rusqlite::{Connection, Row, Transaction, TransactionBehavior};

use crate::accounts::Owner;
use crate::api_keys::KeyId;
use crate::batches;
use crate::journal;
use crate::store::{self, OpenError};

/// The books of one node: accounts, journal, tree heads, and what is known of other nodes.
///
/// A clone is the same ledger. Calls block on the disk: an async caller runs them on a thread made for that. Every
/// call that changes something is one transaction: it happened wholly or not at all, whenever the process ends.
#[derive(Clone, Debug)]
pub struct Ledger {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    connection: Mutex<Connection>,
    owner: NodeId,
}

/// Why something about the ledger failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// The ledger could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The ledger could not be read or written.
    #[error("the ledger failed: {0}")]
    Database(#[from] rusqlite::Error),
    /// What is stored is not what was written.
    #[error("the ledger is damaged at entry {seq}: {what}")]
    Corrupt {
        /// The entry, from 0; the last one when the damage lies outside the journal.
        seq: u64,
        /// What does not fit.
        what: &'static str,
    },
    /// A stored signed statement cannot be read.
    #[error("the ledger holds a statement that cannot be read: {0}")]
    Statement(#[from] DecodeError),
    /// An amount beyond what a ledger can count: 2^63 - 1 msat.
    #[error("an amount is too large")]
    Overflow,
    /// An entry whose postings do not sum to zero.
    #[error("the postings sum to {0} msat, not to zero")]
    Unbalanced(i128),
    /// An account has less than is to be taken from it.
    #[error("{owner} has {free} msat free, {wanted} are wanted")]
    Insufficient {
        /// Whose account.
        owner: Owner,
        /// What is free on it, in msat.
        free: i64,
        /// What was to be taken.
        wanted: Msat,
    },
    /// A macaroon's budget has less left than is to be spent.
    #[error("the credential's budget has {left} left, {wanted} are wanted")]
    BudgetSpent {
        /// What is left of it.
        left: Msat,
        /// What was to be spent.
        wanted: Msat,
    },
    /// A reference that stands for something else already.
    #[error("the reference {0} was used for something else")]
    Reused(Hash),
    /// There is no bond under this reference, or it has ended.
    #[error("there is no open bond {0}")]
    NoBond(Hash),
    /// There is no such API key, or it was revoked.
    #[error("there is no valid API key {0}")]
    UnknownKey(KeyId),
    /// A job in which the node neither pays nor works.
    #[error("this node is no party to the payment")]
    NotAParty,
    /// A value that breaks a rule.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A key that is not that of the ledger's owner.
    #[error("the ledger belongs to {owner}, not to {other}")]
    NotOwner {
        /// Whose ledger it is.
        owner: NodeId,
        /// Who was to sign.
        other: NodeId,
    },
    /// Evidence by or about a node of which nothing is known.
    #[error("{0} is not known here")]
    UnknownNode(NodeId),
    /// Evidence that this node does not take, and why.
    #[error("evidence refused: {0}")]
    Refused(&'static str),
    /// As many nodes are known as the ledger keeps.
    #[error("the ledger knows {0} nodes already")]
    Full(u32),
    /// As many refunds are being paid as there may be.
    #[error("{0} refunds are being paid already")]
    Busy(u32),
}

impl Ledger {
    /// Opens the ledger at `path` for the node `owner`, creating it when there is none, and checks the end of the
    /// journal, the sum of all balances, and the newest head that was signed.
    ///
    /// # Errors
    /// [`LedgerError::Open`], [`LedgerError::Database`]; [`LedgerError::Corrupt`] when the end of the journal does not
    /// hold together, the journal is another node's, or it is not what was signed.
    pub fn open(path: &Path, owner: NodeId) -> Result<Self, LedgerError> {
        let ledger = Self { inner: Arc::new(Inner { connection: Mutex::new(store::open(path)?), owner }) };
        ledger.read(|tx| {
            journal::check_tail(tx, &owner)?;
            batches::check_heads(tx, Some(1))
        })?;
        Ok(ledger)
    }

    /// Whose books these are.
    #[must_use]
    pub fn owner(&self) -> NodeId {
        self.inner.owner
    }

    /// One consistent view.
    pub(crate) fn read<T>(&self, f: impl FnOnce(&Transaction<'_>) -> Result<T, LedgerError>) -> Result<T, LedgerError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        f(&transaction)
    }

    /// One change, made wholly or not at all. The write lock is held from the start, so nothing read in it is stale.
    pub(crate) fn write<T>(
        &self,
        f: impl FnOnce(&Transaction<'_>) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        let mut connection = self.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = f(&transaction)?;
        transaction.commit()?;
        Ok(value)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic while the lock was held rolled its transaction back: the connection is as good as before.
        self.inner.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A hash from a column.
pub(crate) fn hash_at(row: &Row<'_>, column: usize) -> rusqlite::Result<Hash> {
    row.get(column).map(Hash::from_bytes)
}

/// A node's name from a column.
pub(crate) fn node_at(row: &Row<'_>, column: usize) -> rusqlite::Result<NodeId> {
    row.get(column).map(NodeId::from_bytes)
}

/// A value parsed from a column's text.
pub(crate) fn text_at<T: std::str::FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    text.parse().map_err(|_| rusqlite::Error::InvalidColumnType(column, text, rusqlite::types::Type::Text))
}

/// An amount as SQLite counts it.
pub(crate) fn signed(amount: Msat) -> Result<i64, LedgerError> {
    i64::try_from(amount.0).map_err(|_| LedgerError::Overflow)
}

/// A time as SQLite keeps it; the end of time for what lies beyond.
pub(crate) fn time(at_ms: u64) -> i64 {
    i64::try_from(at_ms).unwrap_or(i64::MAX)
}

/// Hexadecimal digits, for those who read JSON.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
