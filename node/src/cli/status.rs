//! `consortium-node status`: how the node and its cluster are doing.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use clap::Args;
use consortium_ledger::accounts::{AccountView, Book, Owner};
use serde_json::json;

use super::client::{Client, ClientArgs};
use super::terminal::{print, printable, short_peer};
use super::{tabs_table, units};
use crate::status::NodeStatus;
use crate::tabs::view::TabsView;

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
    let client = Client::find(args.client, data_dir)?;
    let status: NodeStatus = client.status().await?;
    if args.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&status)?))?;
        return Ok(());
    }
    let mut text = render(&status);
    // The books are shown on the node's own machine alone.
    if let Ok(accounts) = client.pages("ledger_accounts", json!({"limit": 200}), "accounts", usize::MAX).await {
        text.push_str(&render_money(&accounts));
    }
    if let Ok(tabs) = client.rpc::<TabsView>("tabs", json!({})).await {
        text.push_str(&tabs_table::summary(&tabs));
    }
    print(&text)?;
    Ok(())
}

/// What the node earned and spent, in words.
fn render_money(accounts: &[AccountView]) -> String {
    let own = |book| accounts.iter().find(|account| account.owner == Owner::Own(book));
    let mut lines = Vec::new();
    if let Some(earned) = own(Book::Earned) {
        let (held, tail) = (earned.balance.held, earned.balance.tail);
        let mut waits = Vec::new();
        if held != 0 {
            waits.push(format!("{} held until audits are done", units::sats(held.into())));
        }
        if tail != 0 {
            waits.push(format!("{} delayed", units::sats(tail.into())));
        }
        let waits = if waits.is_empty() { String::new() } else { format!(", of it {}", waits.join(" and ")) };
        lines.push(format!("{:<10} {}{waits}", "earned", units::sats(earned.earned.into())));
    }
    if let Some(spent) = own(Book::Spent) {
        lines.push(format!("{:<10} {} on the work of others", "spent", units::sats(spent.spent.into())));
    }
    if let Some(driving) = own(Book::Driving).filter(|driving| driving.balance.free != 0) {
        lines.push(format!(
            "{:<10} {} for jobs of others that it drove",
            "as master",
            units::sats(driving.balance.total())
        ));
    }
    if let Some(fees) = own(Book::Fees).filter(|fees| fees.balance.free != 0) {
        lines.push(format!("{:<10} {} from API keys", "fees", units::sats(fees.balance.total())));
    }
    let keys = || accounts.iter().filter(|account| matches!(account.owner, Owner::Key(_)));
    if keys().next().is_some() {
        let free: i128 = keys().map(|key| i128::from(key.balance.free)).sum();
        let reserved: i128 = keys().map(|key| i128::from(key.balance.bonded)).sum();
        let (free, reserved) = (units::sats(free), units::sats(reserved));
        lines.push(format!("{:<10} {} with {free} of credit, and {reserved} reserved", "api keys", keys().count()));
    }
    if lines.is_empty() {
        lines.push(format!("{:<10} nothing was earned or spent yet", "money"));
    }
    lines.join("\n") + "\n"
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
    status.alarms.iter().for_each(|alarm| line("ALARM", alarm));
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
    fn money_is_told_in_words() {
        use consortium_ledger::accounts::Balances;
        assert_eq!(render_money(&[]), "money      nothing was earned or spent yet\n");
        let account =
            |owner: &str, balance, earned, spent| AccountView { owner: owner.parse().unwrap(), balance, earned, spent };
        let text = render_money(&[
            account("key/0123456789ab", Balances { free: 900, bonded: 100, ..Balances::default() }, 0, 500),
            account("own/earned", Balances { free: 7000, held: 1500, tail: 20, bonded: 0 }, 8520, 0),
            account("own/driving", Balances { free: 5, ..Balances::default() }, 5, 0),
            account("own/fees", Balances { free: 30, ..Balances::default() }, 30, 0),
            account("own/spent", Balances { free: -2000, ..Balances::default() }, 0, 2000),
        ]);
        assert_eq!(
            text,
            "earned     8.52 sat, of it 1.5 sat held until audits are done and 0.02 sat delayed\n\
             spent      2 sat on the work of others\n\
             as master  0.005 sat for jobs of others that it drove\n\
             fees       0.03 sat from API keys\n\
             api keys   1 with 0.9 sat of credit, and 0.1 sat reserved\n"
        );
    }

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
