//! Credit on its way back to who paid it.
//!
//! ```text
//!             begin                  the payment is booked          end
//! key/free ----------> key/bonded   key/free -----> own/outside    key/bonded -> key/free
//!                                                                  key/free -> own/routing: the fees of the way
//! ```
//!
//! Amount and fees at most are put aside before anything is paid, so that they are not spent meanwhile; the payment itself
//! is booked as every other ([`crate::payments`]), and only then is what was put aside free again. One refund of an account
//! is open at a time. The payment's hash names it: to ask for it again changes nothing. Whoever takes the money out bears
//! the fees of its way, or else a payee with dear channels could earn them over and over.
//!
//! Trial credit is not paid out: it is spent first, and what is left of it stays.

use consortium_protocol::{Hash, Msat};
use rusqlite::{OptionalExtension as _, Row, Transaction, params};

use crate::accounts::{self, Account, Book, Owner, Part, take};
use crate::api_keys::KeyId;
use crate::journal::{self, Kind};
use crate::ledger::{Ledger, LedgerError, hash_at, signed, text_at, time};
use crate::payments::{self, Direction};

/// Most refunds that are kept open at a time.
pub const MAX_OPEN: u32 = 64;

/// How a refund is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefundState {
    /// It is being paid.
    Open,
    /// It was paid.
    Paid,
    /// It could not be paid; the credit is back.
    Failed,
}

/// A refund.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refund {
    /// The payment.
    pub hash: Hash,
    /// Whose credit.
    pub account: KeyId,
    /// The invoice that is paid.
    pub invoice: String,
    /// How much is paid out.
    pub amount: Msat,
    /// Fees of the way at most; once it is paid, those there were.
    pub fee: Msat,
    /// How it is doing.
    pub state: RefundState,
    attempt: u32,
}

const COLUMNS: &str = "hash, account, invoice, msat, fee, state, attempt";

fn read(row: &Row<'_>) -> rusqlite::Result<Refund> {
    let state: String = row.get(5)?;
    Ok(Refund {
        hash: hash_at(row, 0)?,
        account: text_at(row, 1)?,
        invoice: row.get(2)?,
        amount: Msat(row.get(3)?),
        fee: Msat(row.get(4)?),
        state: match state.as_str() {
            "open" => RefundState::Open,
            "paid" => RefundState::Paid,
            _ => RefundState::Failed,
        },
        attempt: row.get(6)?,
    })
}

fn find(tx: &Transaction<'_>, hash: &Hash) -> Result<Option<Refund>, LedgerError> {
    let mut statement = tx.prepare_cached(&format!("SELECT {COLUMNS} FROM l402_refund WHERE hash = ?1"))?;
    Ok(statement.query_row([hash.as_bytes()], read).optional()?)
}

/// What the entries of a refund refer to.
fn reference(hash: &Hash, attempt: u32) -> Hash {
    let named = [&hash.as_bytes()[..], &attempt.to_be_bytes()].concat();
    Hash::from_bytes(blake3::derive_key("consortium ledger refund 1", &named))
}

/// What is free on an account and was not given to try it.
fn refundable(tx: &Transaction<'_>, owner: &Owner) -> Result<Msat, LedgerError> {
    let view = accounts::view(tx, owner)?;
    let trial: i64 = tx
        .prepare_cached(
            "SELECT coalesce(sum(msat), 0) FROM posting JOIN entry USING (seq) WHERE owner = ?1 AND kind = 'trial'",
        )?
        .query_row([owner.to_string()], |row| row.get(0))?;
    let unspent = (trial - view.spent).max(0);
    Ok(Msat(u64::try_from(view.balance.free - unspent).unwrap_or(0)))
}

fn transfer(from: Part, to: Part, owner: &Owner, msat: i64) -> journal::Postings {
    journal::transfer(Account::new(owner.clone(), from), Account::new(owner.clone(), to), msat)
}

impl Ledger {
    /// What of an account's credit can be paid out: what is free, but for what is left of trial credit.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn refundable(&self, account: &KeyId) -> Result<Msat, LedgerError> {
        self.read(|tx| refundable(tx, &Owner::Key(account.clone())))
    }

    /// Begins a refund: puts aside amount and fees, and says whose the payment is. Where it has begun or was paid, that
    /// is told; one that failed begins anew.
    ///
    /// # Errors
    /// [`LedgerError::Insufficient`]; [`LedgerError::Reused`] when the payment is another account's or amount's, or the
    /// account has another refund open; [`LedgerError::Busy`], [`LedgerError::Overflow`], [`LedgerError::Database`].
    pub fn begin_refund(&self, wanted: &Refund, now_ms: u64) -> Result<Refund, LedgerError> {
        let (msat, fee) = (signed(wanted.amount)?, signed(wanted.fee)?);
        let total = wanted.amount.checked_add(wanted.fee).ok_or(LedgerError::Overflow)?;
        let owner = Owner::Key(wanted.account.clone());
        self.write(|tx| {
            let known = find(tx, &wanted.hash)?;
            if let Some(known) = &known {
                if (&known.account, known.amount) != (&wanted.account, wanted.amount) {
                    return Err(LedgerError::Reused(wanted.hash));
                }
                if known.state != RefundState::Failed {
                    return Ok(known.clone());
                }
            }
            check_open(tx, wanted)?;
            if refundable(tx, &owner)? < total {
                let free = i64::try_from(refundable(tx, &owner)?.0).map_err(|_| LedgerError::Overflow)?;
                return Err(LedgerError::Insufficient { owner: owner.clone(), free, wanted: total });
            }
            let attempt = known.map_or(0, |known| known.attempt) + 1;
            let aside = transfer(Part::Free, Part::Bonded, &owner, take(tx, &owner, total)?);
            journal::append(tx, &self.owner(), Kind::Bonded, reference(&wanted.hash, attempt), now_ms, aside)?;
            tx.prepare_cached(
                "INSERT OR REPLACE INTO l402_refund (hash, account, invoice, msat, fee, attempt, state, at_s)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'open', ?7)",
            )?
            .execute(params![
                wanted.hash.as_bytes(),
                wanted.account.as_str(),
                wanted.invoice,
                msat,
                fee,
                attempt,
                time(now_ms / 1000)
            ])?;
            payments::expect(tx, Direction::Outgoing, wanted.hash, &owner, wanted.amount, "refund", now_ms)?;
            Ok(Refund { attempt, state: RefundState::Open, ..wanted.clone() })
        })
    }

    /// Ends a refund whose payment is booked: what was put aside is free again, less the fees of the way. None where it
    /// is not booked yet.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn finish_refund(&self, hash: &Hash, now_ms: u64) -> Result<Option<Refund>, LedgerError> {
        let booked = self.payment(Direction::Outgoing, hash)?.and_then(|payment| payment.booked);
        let Some(booked) = booked else { return Ok(None) };
        self.write(|tx| {
            let Some(refund) = find(tx, hash)? else { return Ok(None) };
            if refund.state != RefundState::Open {
                return Ok(Some(refund));
            }
            let (owner, named) = (self.free_again(tx, &refund, now_ms)?, reference(hash, refund.attempt));
            let routing = Account::new(Owner::Own(Book::Routing), Part::Free);
            let fee = journal::transfer(Account::new(owner, Part::Free), routing, signed(booked.fee)?);
            if booked.fee > Msat::ZERO {
                journal::append_once(tx, &self.owner(), Kind::Withdrawal, named, now_ms, fee)?;
            }
            tx.prepare_cached("UPDATE l402_refund SET state = 'paid', fee = ?2 WHERE hash = ?1")?
                .execute(params![hash.as_bytes(), signed(booked.fee)?])?;
            Ok(Some(Refund { state: RefundState::Paid, fee: booked.fee, ..refund }))
        })
    }

    /// Ends a refund of which nothing was paid, and never will be: the credit is free again.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn fail_refund(&self, hash: &Hash, now_ms: u64) -> Result<(), LedgerError> {
        self.write(|tx| {
            let Some(refund) = find(tx, hash)?.filter(|refund| refund.state == RefundState::Open) else {
                return Ok(());
            };
            self.free_again(tx, &refund, now_ms)?;
            tx.prepare_cached("UPDATE l402_refund SET state = 'failed' WHERE hash = ?1")?.execute([hash.as_bytes()])?;
            Ok(())
        })
    }

    /// Refunds that have not ended: what a node that was interrupted goes on with.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn open_refunds(&self) -> Result<Vec<Refund>, LedgerError> {
        self.read(|tx| {
            let query = format!("SELECT {COLUMNS} FROM l402_refund WHERE state = 'open' ORDER BY at_s LIMIT ?1");
            let mut statement = tx.prepare_cached(&query)?;
            let rows = statement.query_map([MAX_OPEN], read)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    fn free_again(&self, tx: &Transaction<'_>, refund: &Refund, now_ms: u64) -> Result<Owner, LedgerError> {
        let owner = Owner::Key(refund.account.clone());
        let total = refund.amount.checked_add(refund.fee).ok_or(LedgerError::Overflow)?;
        let back = transfer(Part::Bonded, Part::Free, &owner, signed(total)?);
        let named = reference(&refund.hash, refund.attempt);
        journal::append_once(tx, &self.owner(), Kind::Unbonded, named, now_ms, back)?;
        Ok(owner)
    }
}

impl Refund {
    /// One that is wanted: so much to this invoice's payment, and fees at most.
    #[must_use]
    pub fn wanted(account: KeyId, hash: Hash, invoice: String, amount: Msat, fee: Msat) -> Self {
        Self { hash, account, invoice, amount, fee, state: RefundState::Open, attempt: 0 }
    }
}

fn check_open(tx: &Transaction<'_>, wanted: &Refund) -> Result<(), LedgerError> {
    let mut of_account = tx.prepare_cached("SELECT 1 FROM l402_refund WHERE account = ?1 AND state = 'open'")?;
    if of_account.exists([wanted.account.as_str()])? {
        return Err(LedgerError::Reused(wanted.hash));
    }
    let mut all = tx.prepare_cached("SELECT count(*) FROM l402_refund WHERE state = 'open'")?;
    let open: u32 = all.query_row([], |row| row.get(0))?;
    if open >= MAX_OPEN { Err(LedgerError::Busy(MAX_OPEN)) } else { Ok(()) }
}
