//! Tables for people.

use consortium_node::tabs::view::{TabView, TabsView};

use crate::swarm::record::NodeRecord;
use crate::swarm::settlement::sats;
use crate::swarm::wallets::WalletRecord;

/// Columns of a table of nodes.
const COLUMNS: [&str; 6] = ["node", "role", "layers", "memory", "address", "pid"];

/// The nodes of a swarm as a table, one line each.
pub(crate) fn nodes(records: &[NodeRecord]) -> String {
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(records.iter().map(|node| {
        [
            node.name.clone(),
            node.cheat.as_ref().map_or_else(|| node.role.clone(), |cheat| format!("{}, cheats: {cheat}", node.role)),
            node.layers.clone().unwrap_or_else(|| "-".to_owned()),
            mebibytes(node.memory_bytes),
            node.api_base.strip_suffix("/v1").unwrap_or("-").to_owned(),
            node.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
        ]
    }));
    aligned(&rows)
}

/// The wallets of a swarm as a table, one line each, amounts in sat.
pub(crate) fn wallets(records: &[NodeRecord], wallets: &[Option<WalletRecord>]) -> String {
    let mut rows =
        vec![["wallet", "spendable", "receivable", "on-chain", "channels", "lightning node"].map(str::to_owned)];
    rows.extend(records.iter().zip(wallets).filter_map(|(node, wallet)| {
        let wallet = wallet.as_ref()?;
        Some([
            node.name.clone(),
            (wallet.spendable_msat / 1000).to_string(),
            (wallet.receivable_msat / 1000).to_string(),
            wallet.onchain_sat.to_string(),
            format!("{} of {} usable", wallet.usable_channels, wallet.channels),
            wallet.node_id.clone(),
        ])
    }));
    aligned(&rows)
}

/// The tabs of a swarm as a table, one line for each node, amounts in sat; then why something is not settled.
pub(crate) fn tabs(records: &[NodeRecord], tabs: &[Option<TabsView>]) -> String {
    let header = ["tabs", "owes", "is owed", "later", "paid", "got", "last payment", "at its cap"];
    let mut rows = vec![header.map(str::to_owned)];
    let mut troubles = String::new();
    for (node, view) in records.iter().zip(tabs) {
        let Some(view) = view else { continue };
        let sum = |of: fn(&TabView) -> u64| sats(view.tabs.iter().map(of).sum());
        let last = view.tabs.iter().filter_map(|tab| tab.paid_to.last).max_by_key(|last| last.at_ms);
        rows.push([
            node.name.clone(),
            sum(|tab| tab.owed_to.0),
            sum(|tab| tab.owed_by.0),
            sum(|tab| u64::try_from(tab.waits_by).unwrap_or(0)),
            sum(|tab| tab.paid_to.total.0),
            sum(|tab| tab.paid_by.total.0),
            last.map_or_else(|| "-".to_owned(), |last| format!("{} in {} ms", sats(last.amount.0), last.took_ms)),
            view.tabs.iter().filter(|tab| tab.stopped).count().to_string(),
        ]);
        for (tab, why) in view.tabs.iter().filter_map(|tab| Some((tab, tab.trouble.as_ref()?))) {
            let peer = tab.peer.to_string();
            let named = records.iter().find(|record| record.peer_id == peer).map_or(&peer, |record| &record.name);
            troubles += &format!("\n{} and {named}: {why}", node.name);
        }
    }
    aligned(&rows) + &troubles
}

/// Rows with every column as wide as its widest cell, two blanks between, none at the end of a line.
pub(crate) fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// `12.5 MiB`.
pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let row = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        assert_eq!(
            aligned(&[row("node", "role"), row("node-10", "worker"), row("é", "")]),
            "node     role\nnode-10  worker\né"
        );
    }
}
