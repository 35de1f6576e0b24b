//! Claims: pay for work on its way from payer to worker. The way is drawn in [`crate::metering`].

use consortium_protocol::wire::heartbeat::LayerRange;
use consortium_protocol::wire::job::JobId;
use consortium_protocol::{Hash, Msat};
use rusqlite::{Row, Transaction, params};
use serde::{Deserialize, Serialize};

use crate::accounts::{Account, Book, Owner, Part};
use crate::cells::Cells;
use crate::journal::Postings;
use crate::ledger::{LedgerError, hash_at, signed, text_at, time};

/// Pay for work, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Its entry in the journal.
    pub seq: u64,
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// Place in the route.
    pub stage: u16,
    /// Digest of the receipt.
    pub receipt: Hash,
    /// What was computed; some of it may have been paid by earlier claims.
    pub cells: Cells,
    /// Who is paid.
    pub worker: Owner,
    /// Who pays.
    pub payer: Owner,
    /// How much, without fee.
    pub pay: Msat,
    /// The fee on it.
    pub fee: Msat,
    /// How much of the pay is delayed.
    pub tail: Msat,
    /// Where the pay is.
    pub state: ClaimState,
    /// When the wait ends, in milliseconds since 1970.
    pub due_ms: u64,
}

/// Where the pay of a claim is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClaimState {
    /// Waits for a verdict.
    Held,
    /// Paid but for the tail.
    Tail,
    /// Paid.
    Paid,
    /// Went back to the payer, with the fee.
    Returned,
    /// Paid, and the tail went back to the payer.
    Forfeited,
}

impl ClaimState {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Held, "held"),
        (Self::Tail, "tail"),
        (Self::Paid, "paid"),
        (Self::Returned, "returned"),
        (Self::Forfeited, "forfeited"),
    ];

    fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(state, _)| *state == self).map_or("", |(_, name)| name)
    }
}

impl std::str::FromStr for ClaimState {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(state, _)| *state).ok_or(())
    }
}

const COLUMNS: &str =
    "id, seq, job, attempt, stage, receipt, first, last, start, stop, worker, payer, pay, fee, tail, state, due_ms";

fn read(row: &Row<'_>) -> rusqlite::Result<(i64, Claim)> {
    let claim = Claim {
        seq: row.get(1)?,
        job: JobId(row.get(2)?),
        attempt: row.get(3)?,
        stage: row.get(4)?,
        receipt: hash_at(row, 5)?,
        cells: Cells {
            layers: LayerRange { first: row.get(6)?, last: row.get(7)? },
            start: row.get(8)?,
            stop: row.get(9)?,
        },
        worker: text_at(row, 10)?,
        payer: text_at(row, 11)?,
        pay: Msat(row.get(12)?),
        fee: Msat(row.get(13)?),
        tail: Msat(row.get(14)?),
        state: text_at(row, 15)?,
        due_ms: row.get(16)?,
    };
    Ok((row.get(0)?, claim))
}

pub(crate) fn find(
    tx: &Transaction<'_>,
    condition: &str,
    values: impl rusqlite::Params,
) -> Result<Vec<(i64, Claim)>, LedgerError> {
    let mut statement = tx.prepare_cached(&format!("SELECT {COLUMNS} FROM claim WHERE {condition} ORDER BY id"))?;
    let rows = statement.query_map(values, read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(crate) fn insert(tx: &Transaction<'_>, claim: &Claim) -> Result<(), LedgerError> {
    tx.prepare_cached(&format!(
        "INSERT INTO claim ({COLUMNS})
         VALUES (NULL, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)"
    ))?
    .execute(params![
        claim.seq,
        claim.job.0,
        claim.attempt,
        claim.stage,
        claim.receipt.as_bytes(),
        claim.cells.layers.first,
        claim.cells.layers.last,
        claim.cells.start,
        claim.cells.stop,
        claim.worker.to_string(),
        claim.payer.to_string(),
        claim.pay.0,
        claim.fee.0,
        claim.tail.0,
        claim.state.as_str(),
        time(claim.due_ms),
    ])?;
    Ok(())
}

pub(crate) fn turn(tx: &Transaction<'_>, id: i64, state: ClaimState, due_ms: u64) -> Result<(), LedgerError> {
    tx.prepare_cached("UPDATE claim SET state = ?2, due_ms = ?3 WHERE id = ?1")?.execute(params![
        id,
        state.as_str(),
        time(due_ms)
    ])?;
    Ok(())
}

/// Adds to what an entry moves.
pub(crate) fn add(postings: &mut Postings, owner: &Owner, part: Part, msat: i64) -> Result<(), LedgerError> {
    let sum = postings.entry(Account::new(owner.clone(), part)).or_default();
    *sum = sum.checked_add(msat).ok_or(LedgerError::Overflow)?;
    Ok(())
}

const FEES: Owner = Owner::Own(Book::Fees);

impl Claim {
    /// The pay of this work leaves its payer.
    pub(crate) fn begin(&self, postings: &mut Postings) -> Result<(), LedgerError> {
        let (pay, fee, tail) = (signed(self.pay)?, signed(self.fee)?, signed(self.tail)?);
        add(postings, &self.payer, Part::Free, -pay.checked_add(fee).ok_or(LedgerError::Overflow)?)?;
        add(postings, &FEES, Part::Free, fee)?;
        if self.state == ClaimState::Held {
            return add(postings, &self.worker, Part::Held, pay);
        }
        add(postings, &self.worker, Part::Free, pay - tail)?;
        add(postings, &self.worker, Part::Tail, tail)
    }

    /// What was held becomes pay.
    pub(crate) fn pay_out(&self, postings: &mut Postings) -> Result<(), LedgerError> {
        let (pay, tail) = (signed(self.pay)?, signed(self.tail)?);
        add(postings, &self.worker, Part::Held, -pay)?;
        add(postings, &self.worker, Part::Free, pay - tail)?;
        add(postings, &self.worker, Part::Tail, tail)
    }

    /// The tail becomes free.
    pub(crate) fn mature(&self, postings: &mut Postings) -> Result<(), LedgerError> {
        let tail = signed(self.tail)?;
        add(postings, &self.worker, Part::Tail, -tail)?;
        add(postings, &self.worker, Part::Free, tail)
    }

    /// What was held, with its fee, or the tail goes back to the payer.
    pub(crate) fn give_back(&self, postings: &mut Postings) -> Result<ClaimState, LedgerError> {
        let (pay, fee, tail) = (signed(self.pay)?, signed(self.fee)?, signed(self.tail)?);
        if self.state != ClaimState::Held {
            add(postings, &self.worker, Part::Tail, -tail)?;
            add(postings, &self.payer, Part::Free, tail)?;
            return Ok(ClaimState::Forfeited);
        }
        add(postings, &self.worker, Part::Held, -pay)?;
        add(postings, &FEES, Part::Free, -fee)?;
        add(postings, &self.payer, Part::Free, pay.checked_add(fee).ok_or(LedgerError::Overflow)?)?;
        Ok(ClaimState::Returned)
    }
}
