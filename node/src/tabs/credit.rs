//! How much a payer may owe this node before it stops working for it.

use consortium_ledger::ledger::{Ledger, LedgerError};
use consortium_ledger::tabs::Tab;
use consortium_protocol::identity::NodeId;
use consortium_protocol::msat::Msat;
use tracing::warn;

use super::sats;
use crate::config::TabRules;
use crate::storage::Storage;
use crate::storage::tabs::Side;

/// What waits for verdicts and delays cannot be paid yet. It counts, with the rest, against so many times the limit.
pub const WAITING_TIMES: u64 = 10;

/// Whether a payer gets work. Cloneable.
#[derive(Clone)]
pub struct Credit {
    ledger: Ledger,
    storage: Storage,
    rules: TabRules,
    /// Only who can be paid insists on it.
    insists: bool,
}

/// How far a payer may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What it owes.
    pub tab: Tab,
    /// What it may owe.
    pub limit: Msat,
}

impl Standing {
    /// Why it gets no work, if it gets none.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        let all = Msat(self.limit.0.saturating_mul(WAITING_TIMES));
        match self.tab {
            tab if tab.owed() > self.limit => Some(format!(
                "its payer owes this node {}, which is above its limit of {}: it works again once it is paid",
                sats(tab.owed()),
                sats(self.limit)
            )),
            tab if tab.exposure() > all => Some(format!(
                "its payer owes this node {}, what waits for audits included, which is above {}: it works again later",
                sats(tab.exposure()),
                sats(all)
            )),
            _ => None,
        }
    }
}

impl Credit {
    /// The credit that a node gives by these rules; without end, unless it has a `wallet` to be paid with.
    #[must_use]
    pub fn new(ledger: Ledger, storage: Storage, rules: TabRules, wallet: bool) -> Self {
        Self { ledger, storage, rules, insists: wallet }
    }

    /// Whether `payer` gets work.
    ///
    /// # Errors
    /// Why not, in words for it.
    pub async fn check(&self, payer: NodeId) -> Result<(), String> {
        if !self.insists || payer == self.ledger.owner() {
            return Ok(());
        }
        match self.standing(payer).await {
            Ok(standing) => standing.refusal().map_or(Ok(()), Err),
            Err(error) => {
                warn!(%error, "what a payer owes cannot be read");
                Err("its books cannot be read just now".to_owned())
            }
        }
    }

    /// What `payer` owes and may owe.
    ///
    /// # Errors
    /// When books or storage cannot be read.
    pub async fn standing(&self, payer: NodeId) -> anyhow::Result<Standing> {
        let ledger = self.ledger.clone();
        let tab = tokio::task::spawn_blocking(move || -> Result<Tab, LedgerError> { ledger.tab(&payer) }).await??;
        let paid = self.storage.settlement_history(Side::Worker, payer).await?.total;
        Ok(Standing { tab, limit: self.rules.limit(paid) })
    }
}
