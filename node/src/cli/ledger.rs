//! `consortium-node ledger`: the node's books.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use consortium_ledger::accounts::AccountView;
use consortium_ledger::ledger::Ledger;
use consortium_ledger::reconcile::Reconciliation;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Asking, Client};
use super::statement::{self, StatementArgs};
use super::terminal::{Align, print, printable, table};
use super::units;
use crate::keyfile;

/// Show and check the node's books.
#[derive(Subcommand, Debug)]
#[command(
    after_help = "All amounts are millisatoshi. A positive balance is what this node owes to the account's owner.

Examples:
  consortium-node ledger accounts
  consortium-node ledger tabs
  consortium-node ledger statement own/earned --days 7
  consortium-node ledger statement key/3f2a9c01b7de --from 2026-11-01 --to 2026-12-01 --csv
  consortium-node ledger verify"
)]
pub(super) enum LedgerCommand {
    /// Show the newest signed head of the journal.
    Head(Asking),
    /// List the accounts.
    Accounts(Asking),
    Statement(StatementArgs),
    /// Show what this node and others owe each other for work, and how it is settled.
    Tabs(Asking),
    /// Check every entry of the journal in the data directory, its chain, its tree and all sums; needs no node.
    Verify {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Deserialize)]
struct HeadView {
    entries: u64,
    head: Option<Head>,
}

#[derive(Debug, Deserialize)]
struct Head {
    size: u64,
    root: String,
    at_ms: u64,
    signer: String,
}

/// Runs a `ledger` command.
///
/// # Errors
/// When no node answers, or the journal is damaged.
pub(super) async fn run(command: LedgerCommand, data_dir: &Path) -> Result<()> {
    match command {
        LedgerCommand::Head(asking) => head(asking, data_dir).await,
        LedgerCommand::Accounts(asking) => accounts(asking, data_dir).await,
        LedgerCommand::Tabs(asking) => tabs(asking, data_dir).await,
        LedgerCommand::Statement(args) => statement::run(args, data_dir).await,
        LedgerCommand::Verify { json } => verify(json, data_dir),
    }
}

/// Prints `value` as it is, or as `render` shows it.
fn show<T: for<'de> Deserialize<'de>>(value: Value, as_json: bool, render: impl FnOnce(&T) -> String) -> Result<()> {
    let text = match as_json {
        true => format!("{}\n", serde_json::to_string_pretty(&value)?),
        false => render(&serde_json::from_value(value).context("the node's answer makes no sense")?),
    };
    print(&text)?;
    Ok(())
}

async fn head(asking: Asking, data_dir: &Path) -> Result<()> {
    let head: Value = Client::find(asking.client, data_dir)?.rpc("ledger_head", json!({})).await?;
    show(head, asking.json, render_head)
}

fn render_head(view: &HeadView) -> String {
    let Some(head) = &view.head else {
        return format!("entries    {}\nno head is signed yet\n", view.entries);
    };
    let lines = [
        ("entries", format!("{}, {} of them under the head", view.entries, head.size)),
        ("root", printable(&head.root)),
        ("signed", format!("{} by {}", units::ago(head.at_ms / 1000), printable(&head.signer))),
    ];
    lines.iter().map(|(name, value)| format!("{name:<10} {value}\n")).collect()
}

async fn accounts(asking: Asking, data_dir: &Path) -> Result<()> {
    let client = Client::find(asking.client, data_dir)?;
    let accounts: Vec<Value> = client.pages("ledger_accounts", json!({"limit": 200}), "accounts", usize::MAX).await?;
    show(accounts.into(), asking.json, |accounts: &Vec<AccountView>| render_accounts(accounts))
}

async fn tabs(asking: Asking, data_dir: &Path) -> Result<()> {
    let tabs: Value = Client::find(asking.client, data_dir)?.rpc("tabs", json!({})).await?;
    show(tabs, asking.json, super::tabs_table::render)
}

fn render_accounts(accounts: &[AccountView]) -> String {
    if accounts.is_empty() {
        return "no account was used yet\n".to_owned();
    }
    let header = [
        ("ACCOUNT", Align::Left),
        ("FREE", Align::Right),
        ("HELD", Align::Right),
        ("TAIL", Align::Right),
        ("BONDED", Align::Right),
        ("EARNED", Align::Right),
        ("SPENT", Align::Right),
    ];
    let rows: Vec<_> = accounts
        .iter()
        .map(|account| {
            let balance = account.balance;
            let amounts = [balance.free, balance.held, balance.tail, balance.bonded, account.earned, account.spent];
            let mut row = vec![account.owner.to_string()];
            row.extend(amounts.iter().map(ToString::to_string));
            row
        })
        .collect();
    table(&header, &rows)
}

fn verify(as_json: bool, data_dir: &Path) -> Result<()> {
    let file = data_dir.join("ledger.db");
    ensure!(file.exists(), "there is no ledger in {}", data_dir.display());
    ensure!(data_dir.join(keyfile::FILE).exists(), "there is no key in {}", data_dir.display());
    let owner = keyfile::load_or_create(data_dir)?.node_id();
    let ledger = Ledger::open(&file, owner)?;
    let entries = ledger.verify()?;
    let head = ledger.head()?;
    if let Some(head) = &head {
        let size = head.payload().size;
        let last = ledger.prove_entry(size.saturating_sub(1))?.context("the last signed head covers no entry")?;
        last.check().context("the journal is not the one that was signed")?;
    }
    let sums = ledger.reconcile()?;
    let text = match as_json {
        true => {
            let signed = head.map(|head| head.payload().size);
            let whole = json!({"owner": owner, "entries": entries, "signed": signed, "sums": sums});
            format!("{}\n", serde_json::to_string_pretty(&whole)?)
        }
        false => render_sums(entries, head.map_or(0, |head| head.payload().size), &sums),
    };
    print(&text)?;
    ensure!(sums.is_exact(), "the books do not add up");
    Ok(())
}

fn render_sums(entries: u64, signed: u64, sums: &Reconciliation) -> String {
    let mut text = format!(
        "entries    {entries}: hashes, chain and tree hold\n\
         signed     {signed} of them, under a head that they lead to\n\
         owed       {} msat to peers and keys\n\
         own        {} msat on the node's own books\n\
         sums       postings {} msat, balances {} msat\n",
        sums.owed, sums.own, sums.postings, sums.balances
    );
    for difference in &sums.differences {
        text.push_str(&format!(
            "DIFFERS    {}: {} msat by the journal, {} msat kept\n",
            printable(&difference.what),
            difference.journal,
            difference.kept
        ));
    }
    if sums.is_exact() {
        text.push_str("everything adds up, to the millisatoshi\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use consortium_ledger::accounts::Owner;
    use consortium_protocol::{Hash, Msat};

    use crate::clock::wall_ms;

    #[test]
    fn books_are_shown_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        assert!(verify(false, dir.path()).unwrap_err().to_string().contains("no ledger"));
        let key = keyfile::load_or_create(dir.path()).unwrap();
        let ledger = Ledger::open(&dir.path().join("ledger.db"), key.node_id()).unwrap();
        let owner = Owner::Peer(key.node_id());
        for n in 0..3_u64 {
            ledger.deposit(&owner, Msat(100), Hash::of(&n.to_le_bytes()), wall_ms() - 1000).unwrap();
        }
        ledger
            .close_batch(&key, &consortium_ledger::batches::BatchPolicy { entries: 1, every_ms: 0 }, wall_ms())
            .unwrap();
        verify(false, dir.path()).unwrap();

        let text = render_sums(3, 3, &ledger.reconcile().unwrap());
        assert!(text.contains("owed       300 msat"), "{text}");
        assert!(text.ends_with("to the millisatoshi\n"), "{text}");
        let text = render_accounts(&ledger.accounts(None, 10).unwrap());
        assert!(text.contains("own/outside"), "{text}");
        assert!(text.lines().nth(2).unwrap().contains(" 300     0     0       0       0      0"), "{text}");
        let head = HeadView { entries: 4, head: None };
        assert_eq!(render_head(&head), "entries    4\nno head is signed yet\n");
    }
}
