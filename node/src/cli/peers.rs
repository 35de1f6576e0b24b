//! `consortium-node peers`: the members of the cluster.

use std::path::Path;

use anyhow::Result;
use clap::Args;

use super::client::{Client, ClientArgs};
use super::terminal::{Align, print, printable, short_peer, table};
use super::units;
use crate::status::{MemberStatus, NodeStatus};

/// List the members of the cluster as the running node sees them.
#[derive(Args, Debug)]
#[command(
    after_help = "SPEED is the time of one token through one layer, PRICE what that costs. The node itself is marked with *.
Full PeerIds and addresses are in the JSON.

Examples:
  consortium-node peers
  consortium-node peers --json | jq -r '.[].peer_id'"
)]
pub(super) struct PeersArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// Prints the members that the node running on `data_dir` sees.
///
/// # Errors
/// When no node answers.
pub(super) async fn run(args: PeersArgs, data_dir: &Path) -> Result<()> {
    let status: NodeStatus = Client::find(args.client, data_dir)?.status().await?;
    let text =
        if args.json { format!("{}\n", serde_json::to_string_pretty(&status.members)?) } else { render(&status) };
    print(&text)?;
    Ok(())
}

fn render(status: &NodeStatus) -> String {
    if status.members.is_empty() {
        return "no members are known yet\n".to_owned();
    }
    let header = [
        ("PEER", Align::Left),
        ("STATE", Align::Left),
        ("ROLE", Align::Left),
        ("LAYERS", Align::Left),
        ("MEMORY", Align::Right),
        ("SPEED", Align::Right),
        ("JOBS", Align::Right),
        ("RTT", Align::Right),
        ("UPTIME", Align::Right),
        ("PRICE", Align::Right),
        ("AS MASTER", Align::Right),
        ("ADDRESS", Align::Left),
    ];
    let rows: Vec<_> = status.members.iter().map(|member| row(member, member.peer_id == status.peer_id)).collect();
    table(&header, &rows)
}

fn row(member: &MemberStatus, here: bool) -> Vec<String> {
    let unknown = || "-".to_owned();
    let mark = if here { "*" } else { "" };
    vec![
        format!("{}{mark}", short_peer(&member.peer_id)),
        printable(&member.state),
        member.role.to_string(),
        if member.layers.is_empty() { unknown() } else { printable(&member.layers) },
        units::bytes(member.memory_bytes),
        if member.layer_micros == 0 { unknown() } else { units::micros(member.layer_micros) },
        member.active_jobs.to_string(),
        member.rtt_ms.map_or_else(unknown, |rtt| format!("{rtt} ms")),
        units::span(member.uptime_s),
        format!("{} msat", member.price_msat),
        format!("{} msat", member.master_fee_msat),
        member.addresses.first().map_or_else(unknown, |address| printable(address)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Role;

    #[test]
    fn members_make_a_table() {
        let member = |peer: &str, rtt_ms, layers: &str| MemberStatus {
            peer_id: peer.to_owned(),
            state: "alive".to_owned(),
            role: Role::Worker,
            layers: layers.to_owned(),
            memory_bytes: 4 << 20,
            layer_micros: 1500,
            active_jobs: 0,
            rtt_ms,
            uptime_s: 75,
            price_msat: 2,
            master_fee_msat: 3,
            addresses: Vec::new(),
        };
        let status = NodeStatus {
            peer_id: "12D3KooWaaaaaa".to_owned(),
            members: vec![member("12D3KooWaaaaaa", None, "0-3"), member("12D3KooWbbbbbb", Some(12), "")],
            ..NodeStatus::default()
        };
        let text = render(&status);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("PEER      STATE  ROLE    LAYERS   MEMORY   SPEED  JOBS    RTT"), "{text}");
        assert!(
            lines[1].starts_with("…aaaaaa*  alive  worker  0-3     4.0 MiB  1.5 ms     0      -   1 min"),
            "{text}"
        );
        assert!(
            lines[2].starts_with("…bbbbbb   alive  worker  -       4.0 MiB  1.5 ms     0  12 ms   1 min"),
            "{text}"
        );
        assert_eq!(render(&NodeStatus::default()), "no members are known yet\n");
    }
}
