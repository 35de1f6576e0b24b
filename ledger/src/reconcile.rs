//! Whether everything adds up, to the millisatoshi.

use std::collections::BTreeMap;

use rusqlite::Transaction;
use serde::{Deserialize, Serialize};

use crate::accounts::{Account, Owner, Part};
use crate::journal::{self, Kind};
use crate::ledger::{Ledger, LedgerError, text_at};

/// A sum that is kept in two ways, which differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Which sum.
    pub what: String,
    /// As the journal has it, in msat.
    pub journal: i128,
    /// As it is kept beside the journal, in msat.
    pub kept: i128,
}

/// What adding up everything found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconciliation {
    /// Entries of the journal.
    pub entries: u64,
    /// All postings together, in msat: zero.
    pub postings: i128,
    /// All balances together, in msat: zero.
    pub balances: i128,
    /// What peers and keys have with this node, all parts, in msat.
    pub owed: i128,
    /// The node's own books together, in msat: the same with the other sign.
    pub own: i128,
    /// Balances, turnover, open claims and reservations that are not what the journal makes them: none.
    pub differences: Vec<Difference>,
}

impl Reconciliation {
    /// Whether everything adds up.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.postings == 0 && self.balances == 0 && self.owed + self.own == 0 && self.differences.is_empty()
    }
}

type Sums = BTreeMap<String, i128>;

fn compare(differences: &mut Vec<Difference>, journal: &Sums, kept: &Sums) {
    let names: std::collections::BTreeSet<&String> = journal.keys().chain(kept.keys()).collect();
    for name in names {
        let of = |sums: &Sums| sums.get(name).copied().unwrap_or_default();
        if of(journal) != of(kept) {
            differences.push(Difference { what: name.clone(), journal: of(journal), kept: of(kept) });
        }
    }
}

/// The sums that a query of `(name, msat)` rows gives.
fn sums(tx: &Transaction<'_>, query: &str) -> Result<Sums, LedgerError> {
    let mut sums = Sums::new();
    let mut statement = tx.prepare(query)?;
    for row in statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))? {
        let (name, msat) = row?;
        *sums.entry(name).or_default() += i128::from(msat);
    }
    Ok(sums)
}

impl Ledger {
    /// Adds up the whole journal and compares: balances, what was earned and spent, claims that are still held or have
    /// a tail, and open reservations. Reads everything.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn reconcile(&self) -> Result<Reconciliation, LedgerError> {
        self.read(|tx| {
            let (mut by_account, mut turnover, mut reserved) = (Sums::new(), Sums::new(), Sums::new());
            let (mut owed, mut own) = (0, 0);
            let mut statement =
                tx.prepare("SELECT owner, part, kind, msat FROM posting JOIN entry USING (seq) ORDER BY seq")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let account = Account::new(text_at::<Owner>(row, 0)?, text_at::<Part>(row, 1)?);
                let (kind, msat): (Kind, i64) = (text_at(row, 2)?, row.get(3)?);
                *by_account.entry(account.to_string()).or_default() += i128::from(msat);
                let (earned, spent) = kind.turnover(msat);
                *turnover.entry(format!("earned by {}", account.owner)).or_default() += earned;
                *turnover.entry(format!("spent by {}", account.owner)).or_default() += spent;
                // Work is charged to what is reserved for it; everything else that is put aside is a bond.
                let of_jobs = matches!(kind, Kind::Reserved | Kind::Released | Kind::Work);
                if of_jobs && account.part == Part::Bonded {
                    *reserved.entry(format!("reserved by {}", account.owner)).or_default() += i128::from(msat);
                }
                match account.owner {
                    Owner::Own(_) => own += i128::from(msat),
                    Owner::Peer(_) | Owner::Key(_) => owed += i128::from(msat),
                }
            }
            let kept = sums(tx, "SELECT owner || '/' || part, msat FROM balance")?;
            let mut differences = Vec::new();
            compare(&mut differences, &by_account, &kept);
            compare(
                &mut differences,
                &turnover,
                &sums(
                    tx,
                    "SELECT 'earned by ' || owner, earned FROM turnover
                     UNION ALL SELECT 'spent by ' || owner, spent FROM turnover",
                )?,
            );
            by_account.retain(|name, _| name.ends_with("/held") || name.ends_with("/tail"));
            compare(
                &mut differences,
                &by_account,
                &sums(
                    tx,
                    "SELECT worker || '/held', pay FROM claim WHERE state = 'held'
                     UNION ALL SELECT worker || '/tail', tail FROM claim WHERE state = 'tail'",
                )?,
            );
            let open = sums(tx, "SELECT 'reserved by ' || owner, msat FROM reservation")?;
            compare(&mut differences, &reserved, &open);
            let entries = journal::length(tx)?;
            let balances = kept.values().sum();
            Ok(Reconciliation { entries, postings: owed + own, balances, owed, own, differences })
        })
    }
}
