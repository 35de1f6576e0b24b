//! `simnet books`: whether all nodes agree on what they owe each other.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use consortium_simnet::books::{Books, Findings, compare};

use super::table;
use super::terminal::print;
use crate::swarm::directory::SwarmDir;
use crate::swarm::record::{NodeRecord, read_nodes};

/// Between two looks at books that do not agree yet.
const AGAIN: Duration = Duration::from_millis(500);

/// Prints what adding up found; fails when something does not add up.
pub(crate) async fn run(dir: &SwarmDir, wait: Duration, json: bool) -> Result<ExitCode> {
    let findings = settle(dir, wait).await?;
    match json {
        true => print(&serde_json::to_string_pretty(&findings)?)?,
        false => print(&render(&findings))?,
    }
    Ok(if findings.is_exact() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Waits until all books agree, and for `wait` at most.
///
/// # Errors
/// When books cannot be read.
pub(crate) async fn settle(dir: &SwarmDir, wait: Duration) -> Result<Findings> {
    let nodes = read_nodes(dir)?;
    let deadline = Instant::now() + wait;
    loop {
        let nodes = nodes.clone();
        let findings = tokio::task::spawn_blocking(move || look(&nodes)).await??;
        if findings.is_exact() || Instant::now() >= deadline {
            return Ok(findings);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn look(nodes: &[NodeRecord]) -> Result<Findings> {
    let read = |node: &NodeRecord| {
        let owner = node.peer_id.parse().with_context(|| format!("{} has not said who it is", node.name))?;
        Books::read(&node.name, owner, &node.data_dir)
    };
    let books: Vec<Books> = nodes.iter().map(read).collect::<Result<_>>()?;
    if books.is_empty() {
        bail!("there are no nodes");
    }
    Ok(compare(&books))
}

/// The findings in words.
pub(crate) fn render(findings: &Findings) -> String {
    let mut lines = vec![format!(
        "{} entries in all journals; {} pairs of nodes owe each other {} msat, and have paid each other {} msat",
        findings.entries, findings.pairs, findings.owed, findings.settled
    )];
    lines.extend(findings.unsettled.iter().map(|mismatch| {
        let consortium_simnet::books::Mismatch { payer, worker, paid, got } = mismatch;
        format!("{payer} says that it paid {paid} msat to {worker}, which says that it got {got} msat")
    }));
    lines.extend(findings.inexact.iter().map(|name| format!("{name}: its own books do not add up")));
    if !findings.disagreements.is_empty() {
        let header = ["", "", "says that it owes, msat", "is owed, it says, msat"].map(str::to_owned);
        let row = |d: &consortium_simnet::books::Disagreement| {
            [d.a.clone(), d.b.clone(), d.a_owes.to_string(), d.b_is_owed.to_string()]
        };
        let rows: Vec<_> = std::iter::once(header).chain(findings.disagreements.iter().map(row)).collect();
        lines.push(table::aligned(&rows));
    }
    if findings.is_exact() {
        lines.push("all of them add up, and both sides of every debt agree".to_owned());
    }
    lines.join("\n")
}
