//! What was spent under the budgets of macaroons.
//!
//! A budget is charged with what a job may cost when that is reserved, and credited with what the reservation gives back
//! ([`crate::reservations`]): so it counts what was charged, to the millisatoshi, and what jobs in progress may cost yet.

use consortium_protocol::Msat;
use consortium_protocol::wire::job::JobId;
use rusqlite::{OptionalExtension as _, Transaction, params};

use super::terms::Budget;
use crate::api_keys::KeyId;
use crate::ledger::{Ledger, LedgerError, signed};

/// What was spent under a budget.
fn spent(tx: &Transaction<'_>, budget: &Budget) -> Result<u64, LedgerError> {
    let mut statement = tx.prepare_cached("SELECT msat FROM l402_budget WHERE name = ?1")?;
    Ok(statement.query_row([budget.name.as_bytes()], |row| row.get(0)).optional()?.unwrap_or(0))
}

fn left(tx: &Transaction<'_>, budgets: &[Budget]) -> Result<Option<Msat>, LedgerError> {
    let mut least: Option<u64> = None;
    for budget in budgets {
        let left = budget.limit.0.saturating_sub(spent(tx, budget)?);
        least = Some(least.map_or(left, |least| least.min(left)));
    }
    Ok(least.map(Msat))
}

/// Charges budgets of an account with what is reserved for a job.
pub(crate) fn charge(
    tx: &Transaction<'_>,
    account: &KeyId,
    budgets: &[Budget],
    job: JobId,
    amount: Msat,
) -> Result<(), LedgerError> {
    if let Some(left) = left(tx, budgets)?.filter(|left| *left < amount) {
        return Err(LedgerError::BudgetSpent { left, wanted: amount });
    }
    for budget in budgets {
        tx.prepare_cached(
            "INSERT INTO l402_budget (name, account, msat) VALUES (?1, ?2, ?3)
             ON CONFLICT (name) DO UPDATE SET msat = msat + ?3",
        )?
        .execute(params![budget.name.as_bytes(), account.as_str(), signed(amount)?])?;
        tx.prepare_cached("INSERT INTO l402_budget_of_job (job, name) VALUES (?1, ?2)")?
            .execute(params![job.0, budget.name.as_bytes()])?;
    }
    Ok(())
}

/// Gives back to the budgets of a job what is not spent on it.
pub(crate) fn give_back(tx: &Transaction<'_>, job: JobId, amount: Msat) -> Result<(), LedgerError> {
    tx.prepare_cached(
        "UPDATE l402_budget SET msat = max(0, msat - ?2)
         WHERE name IN (SELECT name FROM l402_budget_of_job WHERE job = ?1)",
    )?
    .execute(params![job.0, signed(amount)?])?;
    Ok(())
}

/// The job has ended: nothing more will be given back. Budgets under which nothing was spent are forgotten: whoever holds a
/// macaroon can think of as many as they like, and spending nothing costs nothing.
pub(crate) fn close(tx: &Transaction<'_>, job: JobId) -> Result<(), LedgerError> {
    tx.prepare_cached(
        "DELETE FROM l402_budget WHERE msat = 0
             AND name IN (SELECT name FROM l402_budget_of_job WHERE job = ?1)
             AND name NOT IN (SELECT name FROM l402_budget_of_job WHERE job <> ?1 AND name = l402_budget.name)",
    )?
    .execute([job.0])?;
    tx.prepare_cached("DELETE FROM l402_budget_of_job WHERE job = ?1")?.execute([job.0])?;
    Ok(())
}

impl Ledger {
    /// What may be spent yet under all of these budgets; none where there is no budget.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn l402_budget_left(&self, budgets: &[Budget]) -> Result<Option<Msat>, LedgerError> {
        self.read(|tx| left(tx, budgets))
    }
}
