//! Tabs as they are shown.

use std::collections::BTreeSet;

use consortium_ledger::ledger::Ledger;
use consortium_protocol::identity::NodeId;
use consortium_protocol::msat::Msat;
use serde::{Deserialize, Serialize};

use super::{Tabs, lock};
use crate::storage::tabs::{History, Side};

/// All tabs of a node. Amounts are msat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TabsView {
    /// Whether there is a wallet to settle with; without one, accounts alone go on.
    pub lightning: bool,
    /// See [`crate::config::TabRules::settle_at`].
    pub settle_at: Msat,
    /// In seconds; see [`crate::config::TabRules::settle_after`].
    pub settle_after_s: u64,
    /// See [`crate::config::TabRules::settle_min`].
    pub settle_min: Msat,
    /// See [`crate::config::TabRules::credit_limit`].
    pub credit_limit: Msat,
    /// See [`crate::config::TabRules::channel_budget_sat`].
    pub channel_budget_sat: u64,
    /// What is in channels that were opened to settle tabs, in sat.
    pub channels_opened_sat: u64,
    /// One for each node with whom there is anything to settle, or was.
    pub tabs: Vec<TabView>,
}

/// A tab. Amounts are msat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TabView {
    /// With whom.
    pub peer: NodeId,
    /// What this node owes and can pay now.
    pub owed_to: Msat,
    /// What the peer owes and can pay now.
    pub owed_by: Msat,
    /// What this node will owe besides, unless audits find fault.
    pub waits_to: i64,
    /// What the peer will owe besides, unless audits find fault.
    pub waits_by: i64,
    /// What the peer may owe before this node stops working for it; none where it may owe anything.
    pub cap: Option<Msat>,
    /// Whether it has reached that.
    pub stopped: bool,
    /// All that this node paid to the peer.
    pub paid_to: SettledView,
    /// All that the peer paid to this node.
    pub paid_by: SettledView,
    /// Why nothing is settled though it is due.
    pub trouble: Option<String>,
}

/// Payments in one direction. Amounts are msat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettledView {
    /// All together.
    pub total: Msat,
    /// How many.
    pub count: u64,
    /// The last one.
    pub last: Option<LastView>,
}

/// A payment that settled a tab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastView {
    /// How much, in msat.
    pub amount: Msat,
    /// When it was booked, in milliseconds since 1970.
    pub at_ms: u64,
    /// From asking for it, or handing out its invoice, until it was booked, in milliseconds.
    pub took_ms: u64,
}

impl From<History> for SettledView {
    fn from(history: History) -> Self {
        let last = history.last.map(|last| LastView {
            amount: last.amount,
            at_ms: last.ended_ms,
            took_ms: last.ended_ms.saturating_sub(last.asked_ms),
        });
        Self { total: history.total, count: history.count, last }
    }
}

impl Tabs {
    /// All tabs as they are now.
    ///
    /// # Errors
    /// When books or storage cannot be read.
    pub async fn view(&self) -> anyhow::Result<TabsView> {
        let rules = *self.rules();
        let known = self.books(Ledger::tabs).await?;
        let mut peers: BTreeSet<NodeId> = known.into_iter().map(|(peer, _)| peer).collect();
        peers.extend(self.storage().settlement_peers().await?);
        let mut tabs = Vec::new();
        for peer in peers {
            tabs.push(self.view_of(peer).await?);
        }
        Ok(TabsView {
            lightning: self.has_wallet(),
            settle_at: rules.settle_at,
            settle_after_s: rules.settle_after.as_secs(),
            settle_min: rules.settle_min,
            credit_limit: rules.credit_limit,
            channel_budget_sat: rules.channel_budget_sat,
            channels_opened_sat: self.channels_opened_sat().await?,
            tabs,
        })
    }

    async fn view_of(&self, peer: NodeId) -> anyhow::Result<TabView> {
        let standing = self.credit().standing(peer).await?;
        let tab = standing.tab;
        let trouble = lock(&self.inner.trouble).get(&peer).cloned();
        Ok(TabView {
            peer,
            owed_to: tab.due(),
            owed_by: tab.owed(),
            waits_to: tab.peer_waits,
            waits_by: tab.own_waits,
            cap: self.has_wallet().then_some(standing.limit),
            stopped: self.has_wallet() && standing.refusal().is_some(),
            paid_to: self.storage().settlement_history(Side::Payer, peer).await?.into(),
            paid_by: self.storage().settlement_history(Side::Worker, peer).await?.into(),
            trouble,
        })
    }

    async fn channels_opened_sat(&self) -> anyhow::Result<u64> {
        #[cfg(feature = "lightning")]
        if let Some(wallet) = &self.inner.parts.wallet {
            return self.in_channels_sat(wallet).await;
        }
        let opened = self.storage().channels_opened().await?;
        Ok(opened.iter().fold(0, |sum: u64, known| sum.saturating_add(known.offer.payload().size_sat)))
    }

    fn has_wallet(&self) -> bool {
        #[cfg(feature = "lightning")]
        return self.inner.parts.wallet.is_some();
        #[cfg(not(feature = "lightning"))]
        return false;
    }
}
