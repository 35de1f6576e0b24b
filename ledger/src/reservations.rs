//! What a job may cost, put aside before it starts, so that nobody spends the same credit twice.
//!
//! ```text
//!             reserve                  the work of the job is booked (record_job)
//! key/free ------------> key/bonded ----------------------------------------------> workers, fees
//!     ^                      |
//!     +----------------------+ reduce (the answer was shorter), release (the job has ended, or the node did)
//! ```
//!
//! Never more than what is reserved is charged: where the pipeline turned out dearer than it was when the job was
//! quoted, this node bears the difference (`own/spent`).
//!
//! An entry that reserves refers to BLAKE3 in `derive_key` mode under `consortium ledger reservation 1` over the job's
//! 16 bytes; one that gives back, to the same under `consortium ledger release 1` over the canonical CBOR of
//! `[job, msat left]`.

use consortium_protocol::wire::job::JobId;
use consortium_protocol::{Hash, Msat, cbor};
use rusqlite::{OptionalExtension as _, Row, Transaction, params};

use crate::accounts::{Account, Book, Owner, Part, take};
use crate::claims;
use crate::journal::{self, Kind, Posted, Postings};
use crate::l402::budgets;
use crate::l402::terms::Budget;
use crate::ledger::{Ledger, LedgerError, signed, text_at};

/// A reservation that stands.
struct Open {
    job: JobId,
    owner: Owner,
    held: Msat,
}

const COLUMNS: &str = "job, owner, msat";

fn read(row: &Row<'_>) -> rusqlite::Result<Open> {
    Ok(Open { job: JobId(row.get(0)?), owner: text_at(row, 1)?, held: Msat(row.get(2)?) })
}

fn find(tx: &Transaction<'_>, job: JobId) -> Result<Option<Open>, LedgerError> {
    let mut statement = tx.prepare_cached(&format!("SELECT {COLUMNS} FROM reservation WHERE job = ?1"))?;
    Ok(statement.query_row([job.0], read).optional()?)
}

fn reference_of(job: JobId) -> Hash {
    Hash::from_bytes(blake3::derive_key("consortium ledger reservation 1", &job.0))
}

/// What an entry refers to that leaves so much of a reservation.
fn release_of(job: JobId, left: Msat) -> Hash {
    Hash::from_bytes(blake3::derive_key("consortium ledger release 1", &cbor::to_vec(&(job, left))))
}

fn set(tx: &Transaction<'_>, job: JobId, left: Msat) -> Result<(), LedgerError> {
    tx.prepare_cached("UPDATE reservation SET msat = ?2 WHERE job = ?1")?.execute(params![job.0, signed(left)?])?;
    Ok(())
}

/// Charges the work of a job to what its payer reserved for it; what it costs more, to this node.
pub(crate) fn draw(
    tx: &Transaction<'_>,
    job: JobId,
    payer: &Owner,
    postings: &mut Postings,
) -> Result<(), LedgerError> {
    let Some(open) = find(tx, job)?.filter(|open| open.owner == *payer) else { return Ok(()) };
    let charged = postings.get(&Account::new(payer.clone(), Part::Free)).copied().unwrap_or_default();
    let cost = Msat(charged.min(0).unsigned_abs());
    let drawn = cost.min(open.held);
    let (drawn_msat, above) = (signed(drawn)?, signed(Msat(cost.0 - drawn.0))?);
    claims::add(postings, payer, Part::Free, signed(cost)?)?;
    claims::add(postings, payer, Part::Bonded, -drawn_msat)?;
    claims::add(postings, &Owner::Own(Book::Spent), Part::Free, -above)?;
    set(tx, job, Msat(open.held.0 - drawn.0))
}

impl Ledger {
    /// Puts aside `amount` of what is free on an account: the most that a job may cost. Once for a job; nothing happens
    /// for an amount of zero. The work of the job is charged to it, never to more than it; what is left when the job
    /// has ended is to be released.
    ///
    /// # Errors
    /// [`LedgerError::Insufficient`]; [`LedgerError::Reused`] when something else was reserved for the job, or was
    /// released again; [`LedgerError::Overflow`], [`LedgerError::Database`].
    pub fn reserve(&self, owner: &Owner, job: JobId, amount: Msat, now_ms: u64) -> Result<Posted, LedgerError> {
        self.reserve_within(owner, &[], job, amount, now_ms)
    }

    /// As [`Ledger::reserve`], for a key whose credential has budgets: what is reserved counts against all of them, and
    /// what is given back does not any more.
    ///
    /// # Errors
    /// Those of [`Ledger::reserve`], and [`LedgerError::BudgetSpent`].
    pub fn reserve_within(
        &self,
        owner: &Owner,
        limits: &[Budget],
        job: JobId,
        amount: Msat,
        now_ms: u64,
    ) -> Result<Posted, LedgerError> {
        if amount == Msat::ZERO {
            return Ok(Posted::Nothing);
        }
        let (msat, reference) = (signed(amount)?, reference_of(job));
        self.write(|tx| {
            let free = Account::new(owner.clone(), Part::Free);
            let postings = journal::transfer(free, Account::new(owner.clone(), Part::Bonded), msat);
            if let Some(posted) = journal::posted(tx, Kind::Reserved, &reference, &postings)? {
                return find(tx, job)?.map(|_| posted).ok_or(LedgerError::Reused(reference));
            }
            if let Owner::Key(account) = owner {
                budgets::charge(tx, account, limits, job, amount)?;
            }
            take(tx, owner, amount)?;
            let seq = journal::append(tx, &self.owner(), Kind::Reserved, reference, now_ms, postings)?;
            tx.prepare_cached("INSERT INTO reservation (job, seq, owner, msat) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![job.0, seq, owner.to_string(), msat])?;
            Ok(Posted::New(seq))
        })
    }

    /// Gives back what is reserved for a job above `left`. Nothing happens where it is no more than that, or released.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`], [`LedgerError::Database`].
    pub fn reduce_reservation(&self, job: JobId, left: Msat, now_ms: u64) -> Result<Posted, LedgerError> {
        self.write(|tx| match find(tx, job)? {
            Some(open) if open.held > left => {
                set(tx, job, left)?;
                self.give_back(tx, &open, left, now_ms)
            }
            _ => Ok(Posted::Nothing),
        })
    }

    /// Gives back what is left of what is reserved for a job, which has ended. Nothing happens where it is released.
    ///
    /// # Errors
    /// As [`Ledger::reduce_reservation`].
    pub fn release_reservation(&self, job: JobId, now_ms: u64) -> Result<Posted, LedgerError> {
        self.write(|tx| match find(tx, job)? {
            Some(open) => self.release(tx, &open, now_ms),
            None => Ok(Posted::Nothing),
        })
    }

    /// Gives back what is left of all reservations made before entry `seq`: those that a node finds when it starts are
    /// for jobs that ended with its last life. Returns how many there were.
    ///
    /// # Errors
    /// As [`Ledger::reduce_reservation`].
    pub fn release_reservations(&self, seq: u64, now_ms: u64) -> Result<usize, LedgerError> {
        self.write(|tx| {
            let old: Vec<Open> = tx
                .prepare_cached(&format!("SELECT {COLUMNS} FROM reservation WHERE seq < ?1 ORDER BY seq"))?
                .query_map([seq], read)?
                .collect::<Result<_, _>>()?;
            for open in &old {
                self.release(tx, open, now_ms)?;
            }
            Ok(old.len())
        })
    }

    fn release(&self, tx: &Transaction<'_>, open: &Open, now_ms: u64) -> Result<Posted, LedgerError> {
        tx.prepare_cached("DELETE FROM reservation WHERE job = ?1")?.execute([open.job.0])?;
        let posted = self.give_back(tx, open, Msat::ZERO, now_ms)?;
        budgets::close(tx, open.job)?;
        Ok(posted)
    }

    fn give_back(&self, tx: &Transaction<'_>, open: &Open, left: Msat, now_ms: u64) -> Result<Posted, LedgerError> {
        let back = open.held.checked_sub(left).ok_or(LedgerError::Overflow)?;
        if back == Msat::ZERO {
            return Ok(Posted::Nothing);
        }
        budgets::give_back(tx, open.job, back)?;
        let account = |part| Account::new(open.owner.clone(), part);
        let postings = journal::transfer(account(Part::Bonded), account(Part::Free), signed(back)?);
        let reference = release_of(open.job, left);
        journal::append_once(tx, &self.owner(), Kind::Released, reference, now_ms, postings)
    }
}
