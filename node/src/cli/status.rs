//! `consortium-node status`: how the node and its cluster are doing.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use clap::Args;

use super::client::{Client, ClientArgs};
use super::terminal::{print, printable, short_peer};
use super::units;
use crate::status::NodeStatus;

/// Show how the running node and its cluster are doing.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  consortium-node status
  consortium-node status --json | jq .ready")]
pub(super) struct StatusArgs {
    /// Print the whole document as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// Prints the status of the node running on `data_dir`.
///
/// # Errors
/// When no node answers.
pub(super) async fn run(args: StatusArgs, data_dir: &Path) -> Result<()> {
    let status: NodeStatus = Client::find(args.client, data_dir)?.document("/status.json").await?;
    let text = if args.json { format!("{}\n", serde_json::to_string_pretty(&status)?) } else { render(&status) };
    print(&text)?;
    Ok(())
}

fn render(status: &NodeStatus) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // A `String` takes all that is written to it.
        let _infallible = writeln!(text, "{name:<10} {}", printable(value));
    };
    let ready = match (&status.waiting_for, status.ready) {
        (_, true) => "yes".to_owned(),
        (Some(what), false) => format!("no: {what}"),
        (None, false) => "no".to_owned(),
    };
    line("ready", &ready);
    line("peer id", &status.peer_id);
    line("cluster", &format!("{}, term {}", status.cluster, status.term));
    let master = match &status.master {
        Some(master) if *master != status.peer_id => format!(" of master {}", short_peer(master)),
        _ => String::new(),
    };
    line("role", &format!("{}{master}", status.role));
    list(
        &mut line,
        "serving",
        status
            .models
            .iter()
            .map(|model| format!("{} ({} layers, context {})", model.name, model.layers, model.context)),
    );
    let stages: Vec<_> =
        status.stages.iter().map(|stage| format!("{} {}", short_peer(&stage.peer_id), stage.layers)).collect();
    line("pipeline", if stages.is_empty() { "none".to_owned() } else { stages.join(" → ") }.as_str());
    list(&mut line, "holding", status.held.iter().map(|held| format!("{} layers {}", held.model, held.layers)));
    let suspects = status.members.iter().filter(|member| member.state != "alive").count();
    let doubt = if suspects == 0 { String::new() } else { format!(", {suspects} of them in doubt") };
    line("members", &format!("{}{doubt}", status.members.len()));
    line("memory", &format!("{} offered", units::bytes(status.memory_bytes)));
    line("jobs", &format!("{} in progress here", status.active_jobs));
    line("api", &status.api_base);
    list(&mut line, "listening", status.listen.iter().cloned());
    line("software", &format!("{}, process {}, up {}", status.version, status.pid, units::span(status.uptime_s)));
    text
}

/// One line per value, named in the first; `none` without values.
fn list(line: &mut impl FnMut(&str, &str), name: &str, values: impl Iterator<Item = String>) {
    let mut name = Some(name);
    for value in values {
        line(name.take().unwrap_or_default(), &value);
    }
    if let Some(name) = name {
        line(name, "none");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{ModelStatus, Role, StageStatus};

    #[test]
    fn a_worker_is_described() {
        let stage = |peer: &str, layers: &str| StageStatus { peer_id: peer.to_owned(), layers: layers.to_owned() };
        let status = NodeStatus {
            cluster: "home".to_owned(),
            term: 4,
            role: Role::Worker,
            peer_id: "12D3KooWaaaaaa".to_owned(),
            master: Some("12D3KooWbbbbbb".to_owned()),
            ready: false,
            waiting_for: Some("layers to load\x1b[2J".to_owned()),
            models: vec![ModelStatus { name: "tiny".to_owned(), digest: String::new(), layers: 8, context: 512 }],
            stages: vec![stage("12D3KooWbbbbbb", "0-3"), stage("12D3KooWaaaaaa", "4-7")],
            listen: vec!["/ip4/127.0.0.1/tcp/1".to_owned(), "/ip4/127.0.0.1/udp/1/quic-v1".to_owned()],
            memory_bytes: 4 << 20,
            ..NodeStatus::default()
        };
        let text = render(&status);
        for line in [
            "ready      no: layers to load[2J\n",
            "cluster    home, term 4\n",
            "role       worker of master …bbbbbb\n",
            "serving    tiny (8 layers, context 512)\n",
            "pipeline   …bbbbbb 0-3 → …aaaaaa 4-7\n",
            "holding    none\n",
            "memory     4.0 MiB offered\n",
            "listening  /ip4/127.0.0.1/tcp/1\n           /ip4/127.0.0.1/udp/1/quic-v1\n",
        ] {
            assert!(text.contains(line), "{line:?} in {text}");
        }
    }
}
