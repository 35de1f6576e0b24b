//! What a job may cost, put aside before it starts, so that nobody spends the same credit twice.
//!
//! ```text
//!             reserve                  settle: all of it is released and the work is charged, in one change
//! key/free ------------> key/bonded -------------------------------------------------------> workers, fees, key/free
//!     ^                      |
//!     +----------------------+ reduce (the answer was shorter), release (there was none), release_all (after a crash)
//! ```
//!
//! Never more than what is reserved is charged: where the pipeline turned out dearer than it was when the job was
//! quoted, this node bears the difference (`own/spent`).
//!
//! An entry that releases refers to BLAKE3 in `derive_key` mode under `consortium ledger release 1` over the canonical
//! CBOR of `[reference of the reservation, msat left]`.

use consortium_protocol::{Hash, Msat, cbor};
use rusqlite::{OptionalExtension as _, Transaction, params};

use crate::accounts::{Account, Book, Owner, Part, take};
use crate::journal::{self, Kind, Posted};
use crate::ledger::{Ledger, LedgerError, hash_at, signed, text_at};
use crate::metering::{JobRecord, Terms};

/// What an entry refers to that leaves so much of a reservation.
fn release_of(reference: Hash, left: Msat) -> Hash {
    Hash::from_bytes(blake3::derive_key("consortium ledger release 1", &cbor::to_vec(&(reference, left))))
}

/// Owner and amount of an open reservation.
fn find(tx: &Transaction<'_>, reference: &Hash) -> Result<Option<(Owner, Msat)>, LedgerError> {
    Ok(tx
        .prepare_cached("SELECT owner, msat FROM reservation WHERE reference = ?1")?
        .query_row([reference.as_bytes()], |row| Ok((text_at(row, 0)?, Msat(row.get(1)?))))
        .optional()?)
}

impl Ledger {
    /// Puts aside `amount` of what is free on an account: the most that a job may cost. Once per `reference`; nothing
    /// happens for an amount of zero.
    ///
    /// # Errors
    /// [`LedgerError::Insufficient`]; [`LedgerError::Reused`] when the reference stood for another reservation, or for
    /// one that has ended; [`LedgerError::Overflow`], [`LedgerError::Database`].
    pub fn reserve(&self, owner: &Owner, amount: Msat, reference: Hash, now_ms: u64) -> Result<Posted, LedgerError> {
        if amount == Msat::ZERO {
            return Ok(Posted::Nothing);
        }
        let msat = signed(amount)?;
        self.write(|tx| {
            let free = Account::new(owner.clone(), Part::Free);
            let postings = journal::transfer(free, Account::new(owner.clone(), Part::Bonded), msat);
            if let Some(posted) = journal::posted(tx, Kind::Reserved, &reference, &postings)? {
                return find(tx, &reference)?.map(|_| posted).ok_or(LedgerError::Reused(reference));
            }
            take(tx, owner, amount)?;
            tx.prepare_cached("INSERT INTO reservation (reference, owner, msat) VALUES (?1, ?2, ?3)")?.execute(
                params![reference.as_bytes(), owner.to_string(), msat],
            )?;
            journal::append(tx, &self.owner(), Kind::Reserved, reference, now_ms, postings).map(Posted::New)
        })
    }

    /// Gives back what a reservation holds above `left`. Nothing happens to one that holds no more, or has ended.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`], [`LedgerError::Database`].
    pub fn reduce_reservation(&self, reference: Hash, left: Msat, now_ms: u64) -> Result<Posted, LedgerError> {
        self.write(|tx| match find(tx, &reference)? {
            Some((owner, held)) if held > left => self.let_go(tx, reference, &owner, held, left, now_ms),
            _ => Ok(Posted::Nothing),
        })
    }

    /// Ends a reservation: all of it is given back. Nothing happens to one that has ended.
    ///
    /// # Errors
    /// As [`Ledger::reduce_reservation`].
    pub fn release_reservation(&self, reference: Hash, now_ms: u64) -> Result<Posted, LedgerError> {
        self.reduce_reservation(reference, Msat::ZERO, now_ms)
    }

    /// Ends all reservations: those that a node finds when it starts are of jobs that ended with its last life.
    /// Returns how many there were.
    ///
    /// # Errors
    /// As [`Ledger::reduce_reservation`].
    pub fn release_all(&self, now_ms: u64) -> Result<usize, LedgerError> {
        self.write(|tx| {
            let open: Vec<(Hash, Owner, Msat)> = tx
                .prepare_cached("SELECT reference, owner, msat FROM reservation ORDER BY reference")?
                .query_map([], |row| Ok((hash_at(row, 0)?, text_at(row, 1)?, Msat(row.get(2)?))))?
                .collect::<Result<_, _>>()?;
            for (reference, owner, held) in &open {
                self.let_go(tx, *reference, owner, *held, Msat::ZERO, now_ms)?;
            }
            Ok(open.len())
        })
    }

    /// Ends a reservation and books the work that it was for, in one change: at no moment are both free. What the
    /// work costs above what is reserved is borne by this node.
    ///
    /// # Errors
    /// [`LedgerError::NoReservation`], [`LedgerError::NotAParty`] when the reservation is not the payer's, and those
    /// of [`Ledger::record_job`].
    pub fn settle_reservation(
        &self,
        reference: Hash,
        record: &JobRecord,
        terms: &Terms,
        now_ms: u64,
    ) -> Result<Posted, LedgerError> {
        self.write(|tx| {
            let (owner, held) = find(tx, &reference)?.ok_or(LedgerError::NoReservation(reference))?;
            if owner != record.payer {
                return Err(LedgerError::NotAParty);
            }
            self.let_go(tx, reference, &owner, held, Msat::ZERO, now_ms)?;
            let (posted, charged) = self.book(tx, record, terms, now_ms)?;
            if let Some(above) = charged.checked_sub(held).filter(|above| *above != Msat::ZERO) {
                let bearer = Account::new(Owner::Own(Book::Spent), Part::Free);
                let postings = journal::transfer(bearer, Account::new(owner, Part::Free), signed(above)?);
                journal::append(tx, &self.owner(), Kind::Covered, reference, now_ms, postings)?;
            }
            Ok(posted)
        })
    }

    /// Moves what is `held` above `left` back, and forgets a reservation of which nothing is left.
    fn let_go(
        &self,
        tx: &Transaction<'_>,
        reference: Hash,
        owner: &Owner,
        held: Msat,
        left: Msat,
        now_ms: u64,
    ) -> Result<Posted, LedgerError> {
        let back = signed(held.checked_sub(left).ok_or(LedgerError::Overflow)?)?;
        match left {
            Msat::ZERO => tx
                .prepare_cached("DELETE FROM reservation WHERE reference = ?1")?
                .execute(params![reference.as_bytes()])?,
            _ => tx
                .prepare_cached("UPDATE reservation SET msat = ?2 WHERE reference = ?1")?
                .execute(params![reference.as_bytes(), signed(left)?])?,
        };
        let (from, to) = (Account::new(owner.clone(), Part::Bonded), Account::new(owner.clone(), Part::Free));
        let kind = Kind::Released;
        let postings = journal::transfer(from, to, back);
        journal::append(tx, &self.owner(), kind, release_of(reference, left), now_ms, postings).map(Posted::New)
    }
}
