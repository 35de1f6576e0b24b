//! `simnet status`: every node as it is at this moment.

use std::process::ExitCode;

use anyhow::{Result, bail};
use consortium_node::tabs::view::TabsView;
use serde_json::json;
use tokio::task::JoinSet;

use super::terminal::print;
use super::{memory, table};
use crate::swarm::chain::ChainRecord;
use crate::swarm::client::Client;
use crate::swarm::directory::SwarmDir;
use crate::swarm::record::{NodeRecord, read_nodes};
use crate::swarm::settlement;
use crate::swarm::wallets::WalletRecord;

/// Prints the nodes; fails when no swarm runs.
pub(crate) async fn run(dir: &SwarmDir, json: bool) -> Result<ExitCode> {
    if !dir.is_live() {
        bail!("no swarm is running in {}", dir.root().display());
    }
    let mut nodes = read_nodes(dir)?;
    let statuses = ask(&nodes).await?;
    let wallets = wallets(&nodes).await?;
    let tabs = tabs(&nodes).await?;
    for (node, status) in nodes.iter_mut().zip(&statuses) {
        match status {
            Some(status) => {
                node.role = status.role.to_string();
                let held: Vec<_> = status.held.iter().map(|held| held.layers.as_str()).collect();
                node.layers = (!held.is_empty()).then(|| held.join(","));
            }
            None if node.state == "running" => node.role = "does not answer".to_owned(),
            None => {}
        }
    }
    if json {
        let rows: Vec<_> = nodes
            .iter()
            .zip(&statuses)
            .zip(wallets.iter().zip(&tabs))
            .map(|((node, status), (wallet, tabs))| {
                let resident = node.pid.and_then(memory::resident);
                json!({"node": node, "status": status, "wallet": wallet, "tabs": tabs, "resident_bytes": resident})
            })
            .collect();
        print(&serde_json::to_string_pretty(&rows)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&format!("{}\n", table::nodes(&nodes)))?;
    let term = statuses.iter().flatten().map(|status| status.term).max().unwrap_or_default();
    let ready = statuses.iter().flatten().filter(|status| status.ready).count();
    print(&format!("term {term}, {ready} of {} ready", nodes.len()))?;
    if let Some(line) = resident(&nodes) {
        print(&line)?;
    }
    if let Ok(chain) = ChainRecord::read(dir) {
        let height =
            chain.height().await.map_or_else(|error| format!("{error:#}"), |height| format!("height {height}"));
        print(&format!("chain {}, {height}, credentials in {}", chain.url, chain.cookie_file.display()))?;
    }
    if wallets.iter().any(Option::is_some) {
        print(&format!("{}\n", table::wallets(&nodes, &wallets)))?;
    }
    if tabs.iter().flatten().any(|view| !view.tabs.is_empty()) {
        print(&format!("{}\n", table::tabs(&nodes, &tabs)))?;
    }
    for (node, status) in nodes.iter().zip(&statuses) {
        if let Some(why) = status.as_ref().filter(|status| !status.ready).and_then(|s| s.waiting_for.as_ref()) {
            print(&format!("{}: {why}", node.name))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What the nodes keep in memory, where the system tells it.
fn resident(nodes: &[NodeRecord]) -> Option<String> {
    let known = nodes.iter().filter_map(|node| Some((&node.name, memory::resident(node.pid?)?)));
    let known: Vec<(&String, u64)> = known.collect();
    let each: Vec<String> = known.iter().map(|(name, bytes)| format!("{name} {}", table::mebibytes(*bytes))).collect();
    let all = known.iter().map(|(_, bytes)| bytes).sum();
    (!each.is_empty()).then(|| format!("resident memory {}: {}", table::mebibytes(all), each.join(", ")))
}

/// What every wallet has, all asked at once.
async fn wallets(nodes: &[NodeRecord]) -> Result<Vec<Option<WalletRecord>>> {
    let client = Client::new()?;
    let mut questions = JoinSet::new();
    for (index, node) in nodes.iter().enumerate().filter(|(_, node)| node.state == "running") {
        let (client, api_base, data_dir) = (client.clone(), node.api_base.clone(), node.data_dir.clone());
        questions.spawn(async move { (index, WalletRecord::ask(&client, &api_base, &data_dir).await) });
    }
    let mut wallets = vec![None; nodes.len()];
    while let Some(answer) = questions.join_next().await {
        let (index, wallet) = answer?;
        wallets[index] = wallet;
    }
    Ok(wallets)
}

/// What every node owes and is owed, all asked at once.
async fn tabs(nodes: &[NodeRecord]) -> Result<Vec<Option<TabsView>>> {
    let client = Client::new()?;
    let mut questions = JoinSet::new();
    for (index, node) in nodes.iter().enumerate().filter(|(_, node)| node.state == "running") {
        let (client, api_base, data_dir) = (client.clone(), node.api_base.clone(), node.data_dir.clone());
        questions.spawn(async move { (index, settlement::tabs(&client, &api_base, &data_dir).await) });
    }
    let mut tabs = vec![None; nodes.len()];
    while let Some(answer) = questions.join_next().await {
        let (index, view) = answer?;
        tabs[index] = view;
    }
    Ok(tabs)
}

/// The status of every node that runs, all asked at once.
async fn ask(nodes: &[NodeRecord]) -> Result<Vec<Option<consortium_node::status::NodeStatus>>> {
    let client = Client::new()?;
    let mut questions = JoinSet::new();
    for (index, node) in nodes.iter().enumerate().filter(|(_, node)| node.state == "running") {
        let (client, api_base, data_dir) = (client.clone(), node.api_base.clone(), node.data_dir.clone());
        questions.spawn(async move { (index, client.status(&api_base, &data_dir).await.ok()) });
    }
    let mut statuses = vec![None; nodes.len()];
    while let Some(answer) = questions.join_next().await {
        let (index, status) = answer?;
        statuses[index] = status;
    }
    Ok(statuses)
}
