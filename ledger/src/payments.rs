//! Lightning payments in the books: whose account each is for, and what moved.
//!
//! Whoever hands out an invoice or pays one says first for whose account ([`Ledger::expect_payment`]). When the wallet
//! tells that the money has moved, it is booked ([`Ledger::book_payment`]) under the payment's hash, once:
//!
//! ```text
//! received    own/outside -> the account
//! sent        the account -> own/outside, and the fees of those on the way own/routing -> own/outside
//! reward      received: the peer's account -> own/rewards; sent: own/spent -> the peer's account
//! bond        forfeited to this node: the peer's account -> own/forfeits; by this node: own/forfeits -> the peer's
//! passed on   own/outside -> own/routing, under BLAKE3 of "consortium forwarded payment 1", time and place of the event
//! ```
//!
//! Rewards and bonds ([`Purpose`]) pass through the account of the other party, which says from or to whom they went, and
//! leave it as it was: they are no part of what the two owe each other.
//!
//! A payment that nobody expected is the operator's own: `own/wallet`. What has moved is booked whatever the account
//! holds. So `own/outside` over these entries is, with the other sign, what Lightning brought to this node less what it
//! took, and [`Ledger::payments_booked`] lets the wallet's own history be held against the journal.

use std::str::FromStr;

use consortium_protocol::{Hash, Msat};
use rusqlite::{OptionalExtension as _, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use crate::accounts::{Account, Book, Owner, ParseAccountError, Part, outside};
use crate::journal::{self, Kind, Posted, Postings};
use crate::ledger::{Ledger, LedgerError, hash_at, signed, text_at, time};

/// Longest note on a payment, in characters; what is longer is cut.
pub const MAX_NOTE: usize = 200;
/// Most payments in one answer.
pub const MAX_PAGE: u32 = 500;

const FORWARDED: &str = "consortium forwarded payment 1";

/// Which way money went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To this node.
    Incoming,
    /// From it.
    Outgoing,
}

impl Direction {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Incoming => "in",
            Self::Outgoing => "out",
        }
    }

    const fn kind(self) -> Kind {
        match self {
            Self::Incoming => Kind::Deposit,
            Self::Outgoing => Kind::Withdrawal,
        }
    }
}

impl FromStr for Direction {
    type Err = ParseAccountError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "in" => Ok(Self::Incoming),
            "out" => Ok(Self::Outgoing),
            _ => Err(ParseAccountError),
        }
    }
}

/// What becomes of a payment once it has moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// It stays on the account that it is for.
    #[default]
    Account,
    /// It is pay for work that was judged: income of the payee from the payer.
    Reward,
    /// It is a bond, and moves only if that is forfeited.
    Bond,
}

impl Purpose {
    const ALL: [(Self, &'static str); 3] = [(Self::Account, "account"), (Self::Reward, "reward"), (Self::Bond, "bond")];

    fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(purpose, _)| *purpose == self).map_or("account", |(_, name)| name)
    }

    /// As what it is booked besides, and on which of the node's own books.
    const fn book(self, direction: Direction) -> Option<(Kind, Book)> {
        match (self, direction) {
            (Self::Account, _) => None,
            (Self::Reward, Direction::Incoming) => Some((Kind::Reward, Book::Rewards)),
            (Self::Reward, Direction::Outgoing) => Some((Kind::Reward, Book::Spent)),
            (Self::Bond, _) => Some((Kind::Forfeited, Book::Forfeits)),
        }
    }
}

impl FromStr for Purpose {
    type Err = ParseAccountError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.iter().find(|(_, name)| *name == text);
        known.map(|(purpose, _)| *purpose).ok_or(ParseAccountError)
    }
}

/// A payment that is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Which way it will go.
    pub direction: Direction,
    /// Its hash.
    pub hash: Hash,
    /// For whose account it is.
    pub owner: Owner,
    /// How much it is.
    pub amount: Msat,
    /// What becomes of it.
    pub purpose: Purpose,
    /// What it is for.
    pub note: String,
}

/// What moved, as the wallet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Which way.
    pub direction: Direction,
    /// The payment's hash.
    pub hash: Hash,
    /// What its payee got.
    pub amount: Msat,
    /// What those on the way took of this node, on top; zero for what came in.
    pub fee: Msat,
}

/// A Lightning payment as the books know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payment {
    /// Which way.
    pub direction: Direction,
    /// The payment's hash.
    pub hash: Hash,
    /// Whose account it is for.
    pub owner: Owner,
    /// What was to be paid.
    pub amount: Msat,
    /// What becomes of it.
    pub purpose: Purpose,
    /// What it is for.
    pub note: String,
    /// When it was first heard of, in milliseconds since 1970.
    pub at_ms: u64,
    /// What moved, once it has.
    pub booked: Option<Booked>,
}

/// How a payment was booked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Booked {
    /// The journal's entry.
    pub seq: u64,
    /// What the payee got.
    pub amount: Msat,
    /// Fees of those on the way.
    pub fee: Msat,
}

const COLUMNS: &str = "direction, hash, owner, msat, note, at_ms, seq, moved, fee, purpose";

fn read(row: &Row<'_>) -> rusqlite::Result<Payment> {
    let amount = |msat: i64| Msat(msat.unsigned_abs());
    let booked = match (row.get(6)?, row.get::<_, Option<i64>>(7)?, row.get::<_, Option<i64>>(8)?) {
        (Some(seq), Some(moved), Some(fee)) => Some(Booked { seq, amount: amount(moved), fee: amount(fee) }),
        _ => None,
    };
    Ok(Payment {
        direction: text_at(row, 0)?,
        hash: hash_at(row, 1)?,
        owner: text_at(row, 2)?,
        amount: amount(row.get(3)?),
        purpose: text_at(row, 9)?,
        note: row.get(4)?,
        at_ms: row.get::<_, i64>(5)?.unsigned_abs(),
        booked,
    })
}

fn find(tx: &Transaction<'_>, direction: Direction, hash: &Hash) -> Result<Option<Payment>, LedgerError> {
    let query = format!("SELECT {COLUMNS} FROM payment WHERE direction = ?1 AND hash = ?2");
    let mut statement = tx.prepare_cached(&query)?;
    Ok(statement.query_row(params![direction.as_str(), hash.as_bytes()], read).optional()?)
}

fn insert(tx: &Transaction<'_>, new: &Expected, now_ms: u64) -> Result<(), LedgerError> {
    let note: String = new.note.chars().take(MAX_NOTE).collect();
    let (direction, purpose, msat) = (new.direction.as_str(), new.purpose.as_str(), signed(new.amount)?);
    tx.prepare_cached(
        "INSERT INTO payment (direction, hash, owner, msat, note, at_ms, purpose) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![direction, new.hash.as_bytes(), new.owner.to_string(), msat, note, time(now_ms), purpose])?;
    Ok(())
}

/// As what a payment is booked besides, where it does not stay on the account that it is for.
fn passing(moved: &Moved, owner: &Owner, purpose: Purpose) -> Result<Option<(Kind, Postings)>, LedgerError> {
    let Some((kind, book)) = purpose.book(moved.direction) else { return Ok(None) };
    let own = Account::new(Owner::Own(book), Part::Free);
    let theirs = Account::new(owner.clone(), Part::Free);
    let (from, to) = match moved.direction {
        Direction::Incoming => (theirs, own),
        Direction::Outgoing => (own, theirs),
    };
    Ok(Some((kind, journal::transfer(from, to, signed(moved.amount)?))))
}

fn postings(moved: &Moved, owner: &Owner) -> Result<Postings, LedgerError> {
    let (amount, fee) = (signed(moved.amount)?, signed(moved.fee)?);
    let account = Account::new(owner.clone(), Part::Free);
    if moved.direction == Direction::Incoming {
        return Ok(journal::transfer(outside(), account, amount));
    }
    let routing = Account::new(Owner::Own(Book::Routing), Part::Free);
    let out = amount.checked_add(fee).ok_or(LedgerError::Overflow)?;
    Ok(Postings::from([(account, -amount), (routing, -fee), (outside(), out)]))
}

/// As [`Ledger::expect_payment`], as a part of a larger change.
pub(crate) fn expect(
    tx: &Transaction<'_>,
    direction: Direction,
    hash: Hash,
    owner: &Owner,
    amount: Msat,
    note: &str,
    now_ms: u64,
) -> Result<(), LedgerError> {
    let (owner, note, purpose) = (owner.clone(), note.to_owned(), Purpose::Account);
    expect_one(tx, &Expected { direction, hash, owner, amount, purpose, note }, now_ms)
}

fn expect_one(tx: &Transaction<'_>, new: &Expected, now_ms: u64) -> Result<(), LedgerError> {
    match find(tx, new.direction, &new.hash)? {
        None => insert(tx, new, now_ms),
        Some(known) if (&known.owner, known.amount, known.purpose) == (&new.owner, new.amount, new.purpose) => Ok(()),
        Some(_) => Err(LedgerError::Reused(new.hash)),
    }
}

/// Forgets a payment that was expected and will not come.
pub(crate) fn forget(tx: &Transaction<'_>, direction: Direction, hash: &Hash) -> Result<(), LedgerError> {
    tx.prepare_cached("DELETE FROM payment WHERE direction = ?1 AND hash = ?2 AND seq IS NULL")?
        .execute(params![direction.as_str(), hash.as_bytes()])?;
    Ok(())
}

impl Ledger {
    /// Says for whose account a payment will be. To be called before its invoice is handed out, or it is paid; may be
    /// called again.
    ///
    /// # Errors
    /// [`LedgerError::Reused`] when it is for another account or another amount, [`LedgerError::Overflow`],
    /// [`LedgerError::Database`].
    pub fn expect_payment(
        &self,
        direction: Direction,
        hash: Hash,
        owner: &Owner,
        amount: Msat,
        note: &str,
        now_ms: u64,
    ) -> Result<(), LedgerError> {
        self.write(|tx| expect(tx, direction, hash, owner, amount, note, now_ms))
    }

    /// As [`Ledger::expect_payment`], for a payment that does not stay on the account. Such a one is expected for good:
    /// [`Ledger::forget_unpaid`] leaves it, for it may be held for long, and come late.
    ///
    /// # Errors
    /// As [`Ledger::expect_payment`].
    pub fn expect(&self, payment: &Expected, now_ms: u64) -> Result<(), LedgerError> {
        self.write(|tx| expect_one(tx, payment, now_ms))
    }

    /// Books a payment that has moved, once.
    ///
    /// # Errors
    /// [`LedgerError::Reused`] when other amounts were booked for it, [`LedgerError::Overflow`],
    /// [`LedgerError::Database`].
    pub fn book_payment(&self, moved: &Moved, now_ms: u64) -> Result<Posted, LedgerError> {
        self.write(|tx| {
            let (owner, purpose) = match find(tx, moved.direction, &moved.hash)? {
                Some(known) => (known.owner, known.purpose),
                None => {
                    let (owner, note, purpose) = (Owner::Own(Book::Wallet), String::new(), Purpose::Account);
                    let Moved { direction, hash, amount, .. } = *moved;
                    insert(tx, &Expected { direction, hash, owner: owner.clone(), amount, purpose, note }, now_ms)?;
                    (owner, purpose)
                }
            };
            let postings = postings(moved, &owner)?;
            let posted = journal::append_once(tx, &self.owner(), moved.direction.kind(), moved.hash, now_ms, postings)?;
            if let Posted::New(seq) = posted {
                tx.prepare_cached(
                    "UPDATE payment SET seq = ?3, moved = ?4, fee = ?5 WHERE direction = ?1 AND hash = ?2",
                )?
                .execute(params![
                    moved.direction.as_str(),
                    moved.hash.as_bytes(),
                    seq,
                    signed(moved.amount)?,
                    signed(moved.fee)?
                ])?;
                if let Some((kind, postings)) = passing(moved, &owner, purpose)? {
                    journal::append_once(tx, &self.owner(), kind, moved.hash, now_ms, postings)?;
                }
            }
            Ok(posted)
        })
    }

    /// Books what passing on a payment of others brought in: the wallet's event at `place`, noted at `at_ms`. Once.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`], [`LedgerError::Database`].
    pub fn book_forwarded(&self, fee: Msat, place: u64, at_ms: u64) -> Result<Posted, LedgerError> {
        if fee == Msat::ZERO {
            return Ok(Posted::Nothing);
        }
        let named: Vec<u8> = [place, at_ms].into_iter().flat_map(u64::to_be_bytes).collect();
        let reference = Hash::from_bytes(blake3::derive_key(FORWARDED, &named));
        let routing = Account::new(Owner::Own(Book::Routing), Part::Free);
        let postings = journal::transfer(outside(), routing, signed(fee)?);
        self.write(|tx| journal::append_once(tx, &self.owner(), Kind::Routed, reference, at_ms, postings))
    }

    /// What the books know of a payment.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn payment(&self, direction: Direction, hash: &Hash) -> Result<Option<Payment>, LedgerError> {
        self.read(|tx| find(tx, direction, hash))
    }

    /// Payments that were booked, in the order of the journal, from the entry after `after` on; at most [`MAX_PAGE`].
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn payments_booked(&self, after: Option<u64>) -> Result<Vec<Payment>, LedgerError> {
        self.read(|tx| {
            let query = format!("SELECT {COLUMNS} FROM payment WHERE seq >= ?1 ORDER BY seq LIMIT ?2");
            let from = after.map_or(0, |seq| time(seq).saturating_add(1));
            let mut statement = tx.prepare_cached(&query)?;
            let rows = statement.query_map(params![from, MAX_PAGE], read)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Forgets payments that were expected before `before_ms` and have not come: their invoices are long expired. Tells
    /// how many.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn forget_unpaid(&self, before_ms: u64) -> Result<usize, LedgerError> {
        self.write(|tx| {
            let forgotten = tx
                .prepare_cached(
                    "DELETE FROM payment WHERE seq IS NULL AND direction = 'in' AND purpose = 'account' AND at_ms < ?1",
                )?
                .execute([time(before_ms)])?;
            Ok(forgotten)
        })
    }

    /// Forgets a payment that was expected and will not come; nothing happens where it was booked.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn forget_payment(&self, direction: Direction, hash: &Hash) -> Result<(), LedgerError> {
        self.write(|tx| forget(tx, direction, hash))
    }

    /// How far the events of a source have been booked; 0 at the beginning.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn followed(&self, source: &str) -> Result<u64, LedgerError> {
        self.read(|tx| {
            let mut statement = tx.prepare_cached("SELECT seq FROM followed WHERE source = ?1")?;
            Ok(statement.query_row([source], |row| row.get(0)).optional()?.unwrap_or(0))
        })
    }

    /// Notes that the events of a source have been booked up to `seq`.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn follow(&self, source: &str, seq: u64) -> Result<(), LedgerError> {
        self.write(|tx| {
            tx.prepare_cached("INSERT OR REPLACE INTO followed (source, seq) VALUES (?1, ?2)")?
                .execute(params![source, time(seq)])?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
