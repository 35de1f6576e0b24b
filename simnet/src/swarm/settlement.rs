//! What the nodes of a swarm owe each other, and what they have paid: as their RPC tells it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use consortium_node::operator::OperatorToken;
use consortium_node::tabs::view::TabsView;
use serde_json::json;

use super::client::Client;

const CALL: Duration = Duration::from_secs(6);

/// What a node has paid, by the PeerId of the worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Paid {
    count: BTreeMap<String, u64>,
    last: BTreeMap<String, Last>,
    trouble: BTreeMap<String, String>,
}

/// A payment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Last {
    /// How much.
    pub(crate) amount_msat: u64,
    /// From asking for the invoice until it was booked.
    pub(crate) took_ms: u64,
}

/// The tabs of the node at `api_base`, asked as its operator, who can read `data_dir`; none where it does not tell.
pub(crate) async fn tabs(client: &Client, api_base: &str, data_dir: &Path) -> Option<TabsView> {
    let operator = OperatorToken::read(data_dir).ok();
    serde_json::from_value(client.rpc(api_base, "tabs", json!({}), operator.as_deref(), CALL).await.ok()?).ok()
}

/// What the node at `api_base` has paid.
pub(crate) async fn paid(client: &Client, api_base: &str, data_dir: &Path) -> Paid {
    let mut paid = Paid::default();
    for tab in tabs(client, api_base, data_dir).await.into_iter().flat_map(|view| view.tabs) {
        let worker = tab.peer.to_string();
        paid.count.insert(worker.clone(), tab.paid_to.count);
        if let Some(last) = tab.paid_to.last {
            paid.last.insert(worker.clone(), Last { amount_msat: last.amount.0, took_ms: last.took_ms });
        }
        if let Some(why) = tab.trouble {
            paid.trouble.insert(worker, why);
        }
    }
    paid
}

impl Paid {
    /// A worker that was paid since, and how.
    pub(crate) fn since(&self, before: &Self) -> Option<(&str, Last)> {
        let newly = |worker: &&String| self.count.get(*worker) > before.count.get(*worker).or(Some(&0));
        let worker = self.last.keys().find(newly)?;
        Some((worker, *self.last.get(worker)?))
    }

    /// Why somebody is not paid, in words to be put behind others.
    pub(crate) fn trouble(&self) -> String {
        self.trouble.iter().map(|(worker, why)| format!("\n  {worker}: {why}")).collect()
    }
}

/// Sats with up to three digits after the point.
pub(crate) fn sats(msat: u64) -> String {
    let text = format!("{}.{:03}", msat / 1000, msat % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_short() {
        assert_eq!([0, 5, 1200, 30_000].map(sats), ["0", "0.005", "1.2", "30"]);
    }

    #[test]
    fn only_what_is_new_counts() {
        let paid = |count: u64| Paid {
            count: BTreeMap::from([("a".to_owned(), count)]),
            last: BTreeMap::from([("a".to_owned(), Last { amount_msat: 5, took_ms: 1 })]),
            trouble: BTreeMap::new(),
        };
        assert!(paid(2).since(&paid(2)).is_none());
        assert_eq!(paid(2).since(&paid(1)).map(|(worker, last)| (worker, last.amount_msat)), Some(("a", 5)));
        assert!(paid(1).since(&Paid::default()).is_some() && paid(0).since(&Paid::default()).is_none());
    }
}
