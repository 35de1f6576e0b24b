//! Statements: what an account was charged and credited over a time. One that a node gives to who uses it is an invoice.

use consortium_protocol::wire::job::JobId;
use consortium_protocol::{Hash, Msat, NodeId};
use rusqlite::{OptionalExtension as _, Transaction, params};
use serde::{Deserialize, Serialize};

use crate::accounts::{Balances, Owner, Part};
use crate::journal::Kind;
use crate::ledger::{Ledger, LedgerError, hash_at, text_at, time};

/// Most lines on one page of a statement.
pub const MAX_LINES: u32 = 1000;

/// One entry, as far as it concerns the account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The entry's place in the journal.
    pub seq: u64,
    /// Its wall time, in milliseconds since 1970.
    pub at_ms: u64,
    /// What it was about.
    pub kind: Kind,
    /// What it stands for.
    pub reference: Hash,
    /// What it moved, in msat.
    pub moved: Balances,
    /// The work that it was about, if it was work.
    #[serde(default)]
    pub work: Option<Work>,
}

/// The work that an account paid, or was paid for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// The job.
    pub job: JobId,
    /// Tokens that were computed: prompt and answer.
    pub tokens: u32,
    /// What the account paid on top as the gateway's fee.
    pub fee: Msat,
}

/// An account over a time, or one page of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// Whose ledger this is.
    pub issuer: NodeId,
    /// Whose account.
    pub owner: Owner,
    /// From this wall time, in milliseconds since 1970.
    pub from_ms: u64,
    /// Up to before this one.
    pub to_ms: u64,
    /// What stood on it before the first line, in msat.
    pub opening: Balances,
    /// The entries in the order of the journal.
    pub lines: Vec<Line>,
    /// What stood on it after the last line: `opening` and what the lines moved.
    pub closing: Balances,
    /// Ask for the lines after this entry, if there are more.
    pub next: Option<u64>,
}

/// Adds what was moved on one part.
fn add(balances: &mut Balances, part: Part, msat: i64) -> Result<(), LedgerError> {
    let sum = balances.part(part);
    *sum = sum.checked_add(msat).ok_or(LedgerError::Overflow)?;
    Ok(())
}

/// What stood on the account before `from_ms`, and what the entries up to `after` moved from then on.
fn opening(tx: &Transaction<'_>, name: &str, from_ms: u64, to_ms: u64, after: i64) -> Result<Balances, LedgerError> {
    let mut balances = Balances::default();
    let mut statement = tx.prepare_cached(
        "SELECT part, sum(msat) FROM posting JOIN entry USING (seq)
         WHERE owner = ?1 AND (at_ms < ?2 OR (at_ms < ?3 AND seq <= ?4)) GROUP BY part",
    )?;
    let rows = statement.query_map(params![name, time(from_ms), time(to_ms), after], |row| {
        Ok((text_at::<Part>(row, 0)?, row.get(1)?))
    })?;
    for row in rows {
        let (part, msat) = row?;
        add(&mut balances, part, msat)?;
    }
    Ok(balances)
}

/// The work that an entry is about, as far as it concerns an account.
fn work(tx: &Transaction<'_>, name: &str, seq: u64) -> Result<Option<Work>, LedgerError> {
    let mut statement = tx.prepare_cached(
        "SELECT job, max(stop), sum(CASE WHEN payer = ?1 THEN fee ELSE 0 END) FROM claim
         WHERE seq = ?2 AND (payer = ?1 OR worker = ?1 OR ?1 = 'own/fees') GROUP BY job",
    )?;
    let read =
        |row: &rusqlite::Row<'_>| Ok(Work { job: JobId(row.get(0)?), tokens: row.get(1)?, fee: Msat(row.get(2)?) });
    Ok(statement.query_row(params![name, seq], read).optional()?)
}

impl Ledger {
    /// The statement of an account over `from_ms..to_ms`: the lines after entry `after`, at most `limit` and
    /// [`MAX_LINES`] of them. Entries belong to the time that the clock showed when they were written.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`], [`LedgerError::Database`].
    pub fn statement(
        &self,
        owner: &Owner,
        from_ms: u64,
        to_ms: u64,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Statement, LedgerError> {
        let name = owner.to_string();
        let after = after.map_or(-1, time);
        let limit = limit.clamp(1, MAX_LINES) as usize;
        self.read(|tx| {
            let opening = opening(tx, &name, from_ms, to_ms, after)?;
            let mut closing = opening;
            let mut lines: Vec<Line> = Vec::new();
            let mut next = None;
            let mut statement = tx.prepare_cached(
                "SELECT seq, at_ms, kind, reference, part, msat FROM posting JOIN entry USING (seq)
                 WHERE owner = ?1 AND at_ms >= ?2 AND at_ms < ?3 AND seq > ?4 ORDER BY seq, part",
            )?;
            let mut rows = statement.query(params![name, time(from_ms), time(to_ms), after])?;
            while let Some(row) = rows.next()? {
                let seq = row.get(0)?;
                if lines.last().is_none_or(|line| line.seq != seq) {
                    if lines.len() == limit {
                        next = lines.last().map(|line| line.seq);
                        break;
                    }
                    let (at_ms, kind, reference) = (row.get(1)?, text_at(row, 2)?, hash_at(row, 3)?);
                    let work = if kind == Kind::Work { work(tx, &name, seq)? } else { None };
                    lines.push(Line { seq, at_ms, kind, reference, moved: Balances::default(), work });
                }
                let (part, msat) = (text_at(row, 4)?, row.get(5)?);
                if let Some(line) = lines.last_mut() {
                    add(&mut line.moved, part, msat)?;
                }
                add(&mut closing, part, msat)?;
            }
            let owner = owner.clone();
            Ok(Statement { issuer: self.owner(), owner, from_ms, to_ms, opening, lines, closing, next })
        })
    }
}
