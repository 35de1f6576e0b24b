//! How much a payer may owe this node before it stops working for it.

use consortium_ledger::ledger::{Ledger, LedgerError};
use consortium_ledger::tabs::Tab;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::msat::Msat;
use tracing::warn;

use super::sats;
use super::unaccepted::{Running, Unaccepted, Work};
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
    unaccepted: Unaccepted,
    /// Only who can be paid insists on it.
    insists: bool,
}

/// How far a payer may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What it owes.
    pub tab: Tab,
    /// What it would owe for work that runs, or that it has not accepted.
    pub unaccepted: Msat,
    /// What it may owe.
    pub limit: Msat,
}

impl Standing {
    /// Why it gets no work, if it gets none.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        let all = Msat(self.limit.0.saturating_mul(WAITING_TIMES));
        let with_unaccepted = |amount: Msat| Msat(amount.0.saturating_add(self.unaccepted.0));
        match self.tab {
            tab if tab.owed() > self.limit => Some(format!(
                "its payer owes this node {}, which is above its limit of {}: it works again once it is paid",
                sats(tab.owed()),
                sats(self.limit)
            )),
            tab if with_unaccepted(tab.owed()) > self.limit => Some(format!(
                "its payer owes this node {}, and {} more for work that runs or that it has not accepted: together that \
                 is above its limit of {}",
                sats(tab.owed()),
                sats(self.unaccepted),
                sats(self.limit)
            )),
            tab if with_unaccepted(tab.exposure()) > all => Some(format!(
                "its payer owes this node {}, what waits for audits included, which is above {}: it works again later",
                sats(with_unaccepted(tab.exposure())),
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
        Self { ledger, storage, rules, unaccepted: Unaccepted::default(), insists: wallet }
    }

    /// Begins work, if its payer gets any: it does until what it owes and what it has not accepted are above its limit,
    /// all that sessions in progress can cost included. So it can pass the limit by one session.
    ///
    /// # Errors
    /// Why not, in words for the payer.
    pub async fn begin(&self, work: Work) -> Result<Running, String> {
        if !self.insists || work.payer == self.ledger.owner() {
            return Ok(Running::uncounted());
        }
        // Counted before the books are read: what is accepted in between counts twice rather than never.
        let (running, before) = self.unaccepted.begin(work);
        match self.standing_beside(work.payer, before).await {
            Ok(standing) => standing.refusal().map_or(Ok(running), Err),
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
        self.standing_beside(payer, self.unaccepted.of(&payer)).await
    }

    /// Takes off what `payer` has not accepted what it now has: `pay` for what `stage` did of an order.
    pub fn accepted(&self, payer: &NodeId, order: &Hash, stage: u16, pay: Msat) {
        self.unaccepted.accepted(payer, order, stage, pay);
    }

    async fn standing_beside(&self, payer: NodeId, unaccepted: Msat) -> anyhow::Result<Standing> {
        let ledger = self.ledger.clone();
        let tab = tokio::task::spawn_blocking(move || -> Result<Tab, LedgerError> { ledger.tab(&payer) }).await??;
        let paid = self.storage.settlement_history(Side::Worker, payer).await?.total;
        Ok(Standing { tab, unaccepted, limit: self.rules.limit(paid) })
    }
}

#[cfg(test)]
mod tests {
    use consortium_protocol::identity::RootKey;

    use super::*;

    #[tokio::test]
    async fn who_never_accepts_stops_at_the_limit_and_so_do_sessions_side_by_side() {
        let node = |n: u8| RootKey::from_seed([n; 32]).node_id();
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("ledger.db"), node(1)).unwrap();
        let storage = Storage::open(&dir.path().join("node.db")).unwrap();
        let rules = TabRules { credit_limit: Msat(10_000), ..TabRules::default() };
        let credit = |wallet| Credit::new(ledger.clone(), storage.clone(), rules, wallet);
        let work = |payer: u8, order: u8| Work {
            payer: node(payer),
            order: Hash::of(&[order]),
            stage: 0,
            position: Msat(10),
            positions: 60,
        };

        // A newcomer may owe a tenth: the third session would begin above it.
        let insisting = credit(true);
        let mut first = insisting.begin(work(2, 1)).await.unwrap();
        let second = insisting.begin(work(2, 2)).await.unwrap();
        assert!(insisting.begin(work(2, 3)).await.is_err());
        assert!(insisting.begin(work(3, 3)).await.is_ok(), "another payer has its own limit");
        drop(second);
        first.computed(60);
        drop(first);
        assert_eq!(insisting.standing(node(2)).await.unwrap().unaccepted, Msat(600));

        // Ended sessions count until they are accepted.
        let mut second = insisting.begin(work(2, 2)).await.unwrap();
        second.computed(60);
        drop(second);
        assert!(insisting.begin(work(2, 3)).await.is_err());
        insisting.accepted(&node(2), &Hash::of(&[1]), 0, Msat(600));
        assert!(insisting.begin(work(2, 3)).await.is_ok());

        // Who cannot be paid does not insist, nor does anyone towards itself.
        let relaxed = credit(false);
        let mut kept = Vec::new();
        for order in 0..9 {
            kept.push(relaxed.begin(work(2, order)).await.unwrap());
            kept.push(insisting.begin(work(1, order)).await.unwrap());
        }
    }
}
