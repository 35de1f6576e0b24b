//! What a node earned over a time, by kind of work, and whether that pays for the electricity.
//!
//! Read from the journal: what the entries of the time moved on the node's own books. Work counts when it is booked; what
//! still waits for an audit or is delayed is part of it, and told apart. What is returned later counts against the time
//! in which it is returned. All is in whole millisatoshi, rounded down.

use consortium_protocol::{Msat, NodeId};
use rusqlite::{OptionalExtension as _, Transaction, params};
use serde::{Deserialize, Serialize};

use crate::accounts::{Book, Owner, Part};
use crate::journal::Kind;
use crate::ledger::{Ledger, LedgerError, text_at, time};

const HOUR_MS: u128 = 3600 * 1000;
/// A kilowatt, in milliwatts.
const KILOWATT: i128 = 1_000_000;

/// A kind of income.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Layers computed for others.
    Inference,
    /// Fees of the master.
    Driving,
    /// Fees of the gateway.
    Fees,
    /// Fees for Lightning payments passed on, less those paid for own ones.
    Routing,
    /// Rewards and tranches of escrows, for work that was judged.
    Rewards,
    /// Updates of training runs.
    Training,
    /// Bonds that were forfeited, less own ones.
    Forfeits,
    /// Credit given away to try the node out (negative).
    Trial,
}

impl Source {
    /// All, in the order in which they are told.
    pub const ALL: [Self; 8] = [
        Self::Inference,
        Self::Training,
        Self::Driving,
        Self::Rewards,
        Self::Fees,
        Self::Routing,
        Self::Forfeits,
        Self::Trial,
    ];

    const fn book(self) -> Book {
        match self {
            Self::Inference => Book::Earned,
            Self::Driving => Book::Driving,
            Self::Fees => Book::Fees,
            Self::Routing => Book::Routing,
            Self::Rewards => Book::Rewards,
            Self::Training => Book::Training,
            Self::Forfeits => Book::Forfeits,
            Self::Trial => Book::Trial,
        }
    }
}

/// What one kind of work brought in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Income {
    /// Which kind.
    pub source: Source,
    /// How much, in msat; negative if it cost more than it brought.
    pub msat: i64,
    /// The same for each hour.
    pub msat_per_hour: i64,
}

/// What a node earned over a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earnings {
    /// Whose ledger this is.
    pub ledger: NodeId,
    /// From this wall time, in milliseconds since 1970: that of the first entry, if that is later than what was asked for.
    pub from_ms: u64,
    /// Up to before this one.
    pub to_ms: u64,
    /// By kind.
    pub incomes: Vec<Income>,
    /// All together, in msat.
    pub msat: i64,
    /// The same for each hour.
    pub msat_per_hour: i64,
    /// Layer-tokens (one layer computed for one position) that were claimed and not returned. Two claims of a job that was
    /// taken over may overlap: each is paid for what was new in it.
    pub layer_tokens: u64,
    /// Of all that was ever earned by work, what waits for an audit or is delayed now, in msat.
    pub waiting_msat: i64,
    /// What the node paid for jobs and training runs of its own, and as rewards, in this time, in msat; not part of the sums.
    pub spent_msat: i64,
}

/// What electricity costs, against what was earned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakEven {
    /// What the machine takes, in milliwatts.
    pub milliwatts: u64,
    /// The price of a kilowatt-hour above which it costs more than was earned; none if nothing was.
    pub kwh: Option<Msat>,
    /// What the electricity of an hour costs, at the price given.
    pub hour: Option<Msat>,
    /// What is left of an hour's earnings, in msat; negative for a loss.
    pub profit_msat_per_hour: Option<i64>,
}

impl BreakEven {
    /// Compares what is earned an hour with a machine that takes so many milliwatts, and a price of a kilowatt-hour; none
    /// where the machine takes nothing, or a number is beyond all bitcoin.
    #[must_use]
    pub fn of(msat_per_hour: i64, milliwatts: u64, kwh: Option<Msat>) -> Option<Self> {
        let power = i128::from(milliwatts);
        let bearable = i128::from(msat_per_hour).checked_mul(KILOWATT)?.checked_div(power)?;
        let hour =
            kwh.map(|price| u64::try_from(u128::from(price.0) * u128::from(milliwatts) / KILOWATT.unsigned_abs()));
        let hour = hour.transpose().ok()?;
        let profit = |cost: u64| msat_per_hour.checked_sub(i64::try_from(cost).ok()?);
        Some(Self {
            milliwatts,
            kwh: if bearable > 0 { Some(Msat(u64::try_from(bearable).ok()?)) } else { None },
            hour: hour.map(Msat),
            profit_msat_per_hour: match hour {
                Some(cost) => Some(profit(cost)?),
                None => None,
            },
        })
    }
}

impl Earnings {
    /// Compares with what a machine takes: see [`BreakEven::of`].
    #[must_use]
    pub fn break_even(&self, milliwatts: u64, kwh: Option<Msat>) -> Option<BreakEven> {
        BreakEven::of(self.msat_per_hour, milliwatts, kwh)
    }
}

impl Ledger {
    /// What this node earned in `from_ms..to_ms`.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`], [`LedgerError::Database`].
    pub fn earnings(&self, from_ms: u64, to_ms: u64) -> Result<Earnings, LedgerError> {
        self.read(|tx| {
            let first: Option<u64> =
                tx.query_row("SELECT at_ms FROM entry ORDER BY seq LIMIT 1", [], |row| row.get(0)).optional()?;
            let from_ms = from_ms.max(first.unwrap_or(to_ms)).min(to_ms);
            let over = (from_ms, to_ms);
            let mut incomes = Vec::with_capacity(Source::ALL.len());
            let mut msat = 0_i64;
            for source in Source::ALL {
                let moved = moved(tx, source.book(), over)?;
                msat = msat.checked_add(moved).ok_or(LedgerError::Overflow)?;
                incomes.push(Income { source, msat: moved, msat_per_hour: per_hour(moved, over)? });
            }
            Ok(Earnings {
                ledger: self.owner(),
                from_ms,
                to_ms,
                incomes,
                msat,
                msat_per_hour: per_hour(msat, over)?,
                layer_tokens: layer_tokens(tx, over)?,
                waiting_msat: waiting(tx)?,
                spent_msat: moved(tx, Book::Spent, over)?.checked_neg().ok_or(LedgerError::Overflow)?,
            })
        })
    }
}

fn per_hour(msat: i64, (from_ms, to_ms): (u64, u64)) -> Result<i64, LedgerError> {
    let Some(span) = to_ms.checked_sub(from_ms).filter(|span| *span > 0) else { return Ok(0) };
    let magnitude = u128::from(msat.unsigned_abs()) * HOUR_MS / u128::from(span);
    let magnitude = i64::try_from(magnitude).map_err(|_| LedgerError::Overflow)?;
    Ok(if msat < 0 { -magnitude } else { magnitude })
}

/// What the entries of a time moved on a book, money that only changed hands with the world left out.
fn moved(tx: &Transaction<'_>, book: Book, (from_ms, to_ms): (u64, u64)) -> Result<i64, LedgerError> {
    // Fees of payments are of the kinds by which money comes and goes; elsewhere these only empty or fill a book.
    let brings = |kind: Kind| book == Book::Routing || !matches!(kind, Kind::Deposit | Kind::Withdrawal);
    let mut statement = tx.prepare_cached(
        "SELECT kind, sum(msat) FROM posting JOIN entry USING (seq)
         WHERE owner = ?1 AND at_ms >= ?2 AND at_ms < ?3 GROUP BY kind",
    )?;
    let owner = Owner::Own(book).to_string();
    let rows = statement.query_map(params![owner, time(from_ms), time(to_ms)], |row| {
        Ok((text_at::<Kind>(row, 0)?, row.get::<_, i64>(1)?))
    })?;
    let mut sum = 0_i64;
    for row in rows {
        let (kind, msat) = row?;
        if brings(kind) {
            sum = sum.checked_add(msat).ok_or(LedgerError::Overflow)?;
        }
    }
    Ok(sum)
}

fn layer_tokens(tx: &Transaction<'_>, (from_ms, to_ms): (u64, u64)) -> Result<u64, LedgerError> {
    let mut statement = tx.prepare_cached(
        "SELECT coalesce(sum((last - first + 1) * (stop - start)), 0) FROM claim JOIN entry USING (seq)
         WHERE worker = ?1 AND state <> 'returned' AND at_ms >= ?2 AND at_ms < ?3",
    )?;
    let owner = Owner::Own(Book::Earned).to_string();
    Ok(statement.query_row(params![owner, time(from_ms), time(to_ms)], |row| row.get(0))?)
}

fn waiting(tx: &Transaction<'_>) -> Result<i64, LedgerError> {
    let mut statement =
        tx.prepare_cached("SELECT coalesce(sum(msat), 0) FROM balance WHERE owner = ?1 AND part IN (?2, ?3)")?;
    let owner = Owner::Own(Book::Earned).to_string();
    Ok(statement.query_row(params![owner, Part::Held.as_str(), Part::Tail.as_str()], |row| row.get(0))?)
}
