//! `consortium-node reputation`: how the others stand with the running node, and what from.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use consortium_ledger::reputation::{EvidenceView, NodeView};
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Asking, Client};
use super::terminal::{Align, print, printable, short_peer, table};
use super::units;
use crate::clock::wall_ms;

/// Pieces of evidence shown to people; the rest is in the JSON.
const SHOWN: usize = 20;

/// Show how the other nodes stand with this one.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Scores go from 0 to 1; a newcomer has 0.2, and who is banned 0. They follow from signed verdicts alone, and every node
has its own. TRUST is how much a node's own verdicts count here, AUDITS the part of its work that is checked.

Examples:
  consortium-node reputation
  consortium-node reputation show …aBcDeF
  consortium-node reputation --json | jq '.[] | {peer_id, score}'"
)]
pub(super) struct ReputationArgs {
    #[command(subcommand)]
    command: Option<ReputationCommand>,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Subcommand, Debug)]
enum ReputationCommand {
    /// List the nodes on record; what is done when nothing is named.
    List(Asking),
    /// Show one node, and the evidence about it.
    Show {
        /// Its PeerId, or the end of it.
        #[arg(value_name = "PEER")]
        peer: String,
        #[command(flatten)]
        asking: Asking,
    },
}

#[derive(Deserialize)]
struct One {
    #[serde(flatten)]
    node: NodeView,
}

/// Prints reputation as the node running on `data_dir` has it.
///
/// # Errors
/// When no node answers, or nothing is known of a peer.
pub(super) async fn run(args: ReputationArgs, data_dir: &Path) -> Result<()> {
    match args.command.unwrap_or(ReputationCommand::List(args.asking)) {
        ReputationCommand::List(asking) => list(asking, data_dir).await,
        ReputationCommand::Show { peer, asking } => show(&peer, asking, data_dir).await,
    }
}

async fn list(asking: Asking, data_dir: &Path) -> Result<()> {
    let client = Client::find(asking.client, data_dir)?;
    let nodes: Vec<Value> = client.pages("reputation_list", json!({"limit": 100}), "nodes", usize::MAX).await?;
    if asking.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&nodes)?))?;
        return Ok(());
    }
    let mut nodes: Vec<NodeView> = serde_json::from_value(nodes.into()).context("the node's answer makes no sense")?;
    nodes.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.peer_id.cmp(&b.peer_id)));
    print(&render(&nodes))?;
    Ok(())
}

fn render(nodes: &[NodeView]) -> String {
    if nodes.is_empty() {
        return "no other nodes are known yet\n".to_owned();
    }
    let header = [
        ("PEER", Align::Left),
        ("SCORE", Align::Right),
        ("PASSED", Align::Right),
        ("FAILED", Align::Right),
        ("TRUST", Align::Right),
        ("AUDITS", Align::Right),
        ("BANNED", Align::Left),
        ("UPTIME", Align::Right),
        ("TOKENS", Align::Right),
    ];
    let rows: Vec<_> = nodes
        .iter()
        .map(|node| {
            vec![
                short_peer(&node.peer_id.to_string()),
                format!("{:.3}", node.score),
                node.successful_audits.to_string(),
                node.failed_audits.to_string(),
                format!("{:.3}", node.trust),
                percent(node.audit_rate),
                banned(node),
                percent(node.local.uptime_ratio),
                node.local.tokens_computed.to_string(),
            ]
        })
        .collect();
    table(&header, &rows)
}

fn percent(part: f64) -> String {
    format!("{:.0} %", part * 100.0)
}

fn banned(node: &NodeView) -> String {
    match node.banned_until_ms.map(|until| until.saturating_sub(wall_ms())) {
        None => "never".to_owned(),
        Some(0) => format!("{} x, not now", node.bans),
        Some(left) => format!("{} more", units::span(left / 1000)),
    }
}

async fn show(peer: &str, asking: Asking, data_dir: &Path) -> Result<()> {
    let client = Client::find(asking.client, data_dir)?;
    let peer_id = full_name(&client, peer).await?;
    let record: Value = client.rpc("reputation_get", json!({"peer_id": peer_id})).await?;
    let about = json!({"peer_id": peer_id, "limit": 200});
    let evidence: Vec<Value> = client.pages("reputation_evidence", about, "evidence", usize::MAX).await?;
    if asking.json {
        let whole = json!({"record": record, "evidence": evidence});
        print(&format!("{}\n", serde_json::to_string_pretty(&whole)?))?;
        return Ok(());
    }
    let One { node } = serde_json::from_value(record).context("the node's answer makes no sense")?;
    let evidence: Vec<EvidenceView> = serde_json::from_value(evidence.into()).context("the evidence makes no sense")?;
    print(&describe(&node, evidence))?;
    Ok(())
}

/// The PeerId that ends like this, among those on record.
async fn full_name(client: &Client, peer: &str) -> Result<String> {
    let end = peer.trim_start_matches('…');
    if end.starts_with("12D3KooW") {
        return Ok(end.to_owned());
    }
    let nodes: Vec<NodeView> = client.pages("reputation_list", json!({"limit": 100}), "nodes", usize::MAX).await?;
    let mut matching = nodes.iter().map(|node| node.peer_id.to_string()).filter(|name| name.ends_with(end));
    match (matching.next(), matching.next()) {
        (Some(name), None) => Ok(name),
        (None, _) => bail!("no node on record has a PeerId that ends in '{}'", printable(end)),
        (Some(_), Some(_)) => bail!("several PeerIds end in '{}'; give more of it", printable(end)),
    }
}

fn describe(node: &NodeView, mut evidence: Vec<EvidenceView>) -> String {
    let lines = [
        ("peer id", node.peer_id.to_string()),
        ("score", format!("{:.6} = {:.3} / ({:.3} + {:.3})", node.score, node.alpha, node.alpha, node.beta)),
        ("audits", format!("{} passed, {} failed", node.successful_audits, node.failed_audits)),
        ("by me", format!("{} passed, {} failed", node.own_successful_audits, node.own_failed_audits)),
        ("trust", format!("{:.6}", node.trust)),
        ("audited", percent(node.audit_rate)),
        ("banned", banned(node)),
        ("evidence", format!("{} statements, root {}", node.evidence, node.evidence_root)),
        ("uptime", format!("{} of the time watched", percent(node.local.uptime_ratio))),
        ("tokens", format!("{} computed for this node", node.local.tokens_computed)),
    ];
    let mut text: String = lines.iter().map(|(name, value)| format!("{name:<10} {value}\n")).collect();
    if evidence.is_empty() {
        return text;
    }
    evidence.sort_by_key(|piece| std::cmp::Reverse((piece.evidence.at_ms, piece.evidence.digest)));
    let header = [("WHEN", Align::Left), ("FINDING", Align::Left), ("BY", Align::Left), ("DIGEST", Align::Left)];
    let rows: Vec<_> = evidence
        .iter()
        .take(SHOWN)
        .map(|EvidenceView { evidence, .. }| {
            vec![
                units::ago(evidence.at_ms / 1000),
                evidence.finding.as_str().to_owned(),
                short_peer(&evidence.signer.to_string()),
                evidence.digest.to_string(),
            ]
        })
        .collect();
    text.push('\n');
    text.push_str(&table(&header, &rows));
    if evidence.len() > SHOWN {
        text.push_str(&format!("and {} more: see --json\n", evidence.len() - SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use consortium_ledger::reputation::{Evidence, Finding, LocalView};
    use consortium_protocol::hash::Hash;
    use consortium_protocol::identity::RootKey;

    fn node(seed: u8, score: f64, banned_until_ms: Option<u64>) -> NodeView {
        NodeView {
            peer_id: RootKey::from_seed([seed; 32]).node_id(),
            failed_audits: u64::from(banned_until_ms.is_some()),
            successful_audits: 3,
            score,
            alpha: 4.0,
            beta: 4.0,
            own_failed_audits: 0,
            own_successful_audits: 3,
            trust: 0.375,
            audit_rate: 1.0,
            evidence_root: Hash::of(b""),
            evidence: 3,
            bans: u32::from(banned_until_ms.is_some()),
            banned_until_ms,
            local: LocalView { uptime_ratio: 0.995, tokens_computed: 17, ..LocalView::default() },
        }
    }

    #[test]
    fn nodes_make_a_table() {
        let nodes = [node(1, 0.5, None), node(2, 0.0, Some(wall_ms() + 5_430_000)), node(3, 0.25, Some(5))];
        let text = render(&nodes);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("PEER     SCORE  PASSED  FAILED  TRUST  AUDITS  BANNED"), "{text}");
        let peer = short_peer(&nodes[0].peer_id.to_string());
        let cells: Vec<_> = lines[1].split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        assert_eq!(cells, [&peer, "0.500", "3", "0", "0.375", "100 %", "never", "100 %", "17"]);
        assert!(lines[2].contains("1 h 30 min more"), "{text}");
        assert!(lines[3].contains("1 x, not now"), "{text}");
        assert_eq!(render(&[]), "no other nodes are known yet\n");
    }

    #[test]
    fn a_node_is_described_with_its_newest_evidence() {
        let piece = |n: u64| EvidenceView {
            evidence: Evidence {
                digest: Hash::of(&n.to_le_bytes()),
                subject: RootKey::from_seed([1; 32]).node_id(),
                signer: RootKey::from_seed([2; 32]).node_id(),
                topic: Hash::of(b"topic"),
                finding: if n == 24 { Finding::Fraud } else { Finding::Pass },
                at_ms: n,
            },
            signed: String::new(),
        };
        let text = describe(&node(1, 0.5, None), (0..25).map(piece).collect());
        assert!(text.contains("score      0.500000 = 4.000 / (4.000 + 4.000)\n"), "{text}");
        let first = text.lines().find(|line| line.contains(" ago ")).unwrap();
        assert!(first.contains("fraud"), "{text}");
        assert!(text.ends_with("and 5 more: see --json\n"), "{text}");
    }
}
