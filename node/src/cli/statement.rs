//! `consortium-node ledger statement`: an account over a time, as an invoice, a table for spreadsheets, or JSON.

use std::path::Path;

use anyhow::{Result, ensure};
use clap::Args;
use consortium_ledger::accounts::Owner;
use consortium_ledger::statement::{Line, MAX_LINES, Statement};
use serde_json::json;

use super::client::{Asking, Client};
use super::terminal::{Align, print, table};
use super::units;
use crate::clock::wall_ms;
use crate::{calendar, invoice};

const DAY_MS: u64 = 24 * 3600 * 1000;

/// Show what moved on an account, as an invoice.
///
/// What moved within the account alone (credit that was reserved and given back, pay that became free) is left out,
/// unless --all asks for it.
#[derive(Args, Debug)]
pub(super) struct StatementArgs {
    /// The account: peer/PEER_ID, key/ID or own/BOOK, as `accounts` lists them.
    owner: Owner,
    /// Of as many days up to now.
    #[arg(long, default_value_t = 30, conflicts_with = "from")]
    days: u64,
    /// From the beginning of this day (UTC), such as 2026-11-01.
    #[arg(long, value_name = "DAY", value_parser = day)]
    from: Option<u64>,
    /// Up to the beginning of this day (UTC) [default: now].
    #[arg(long, value_name = "DAY", value_parser = day)]
    to: Option<u64>,
    /// Show what moved within the account too.
    #[arg(long)]
    all: bool,
    /// Print a table for spreadsheets.
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    #[command(flatten)]
    asking: Asking,
}

fn day(text: &str) -> Result<u64, &'static str> {
    calendar::day(text).ok_or("a day is written like 2026-11-20")
}

/// Prints a statement of the node running on `data_dir`.
///
/// # Errors
/// When no node answers, or the period is none.
pub(super) async fn run(args: StatementArgs, data_dir: &Path) -> Result<()> {
    let to = args.to.unwrap_or_else(wall_ms);
    let from = args.from.unwrap_or_else(|| to.saturating_sub(args.days.saturating_mul(DAY_MS)));
    ensure!(from < to, "the statement would end before it begins");
    let as_json = args.asking.json;
    let statement = fetch(&Client::find(args.asking.client, data_dir)?, &args.owner, from, to).await?;
    let text = match (as_json, args.csv) {
        (true, _) => format!("{}\n", serde_json::to_string_pretty(&statement)?),
        (_, true) => invoice::csv(&statement),
        _ => render(&statement, args.all),
    };
    print(&text)?;
    Ok(())
}

/// All pages of a statement.
async fn fetch(client: &Client, owner: &Owner, from: u64, to: u64) -> Result<Statement> {
    let mut wanted = json!({"owner": owner, "from_ms": from, "to_ms": to, "limit": MAX_LINES});
    let mut whole: Statement = client.rpc("ledger_statement", wanted.clone()).await?;
    while let Some(next) = whole.next {
        wanted["after"] = json!(next);
        let more: Statement = client.rpc("ledger_statement", wanted.clone()).await?;
        ensure!(more.next.is_none_or(|after| after > next), "the node's pages make no sense");
        whole.lines.extend(more.lines);
        (whole.closing, whole.next) = (more.closing, more.next);
    }
    Ok(whole)
}

const HEADER: [(&str, Align); 7] = [
    ("TIME", Align::Left),
    ("WHAT", Align::Left),
    ("JOB", Align::Left),
    ("TOKENS", Align::Right),
    ("FEE", Align::Right),
    ("AMOUNT", Align::Right),
    ("BALANCE", Align::Right),
];

fn render(statement: &Statement, all: bool) -> String {
    let mut balance = statement.opening.total();
    let sum = |what: &str, balance: i128| {
        let mut row = vec![String::new(); HEADER.len()];
        (row[1], row[6]) = (what.to_owned(), balance.to_string());
        row
    };
    let mut rows = vec![sum("opening balance", balance)];
    let mut hidden = 0_usize;
    for line in &statement.lines {
        balance += line.moved.total();
        if line.moved.total() == 0 && !all {
            hidden += 1;
        } else {
            rows.push(row(line, balance));
        }
    }
    rows.push(sum("closing balance", statement.closing.total()));
    let closing = &statement.closing;
    let mut text = format!(
        "Statement of {}\nissued by  {}\nperiod     {} to {}\namounts    millisatoshi\n\n{}\n\
         closing    {}: {} free, {} held for audits, {} delayed, {} put aside\n",
        statement.owner,
        statement.issuer,
        calendar::timestamp(statement.from_ms),
        calendar::timestamp(statement.to_ms),
        table(&HEADER, &rows),
        units::sats(closing.total()),
        closing.free,
        closing.held,
        closing.tail,
        closing.bonded,
    );
    if hidden > 0 {
        text.push_str(&format!("hidden     {hidden} entries that moved nothing in or out; --all shows them\n"));
    }
    text
}

fn row(line: &Line, balance: i128) -> Vec<String> {
    let work = line.work;
    vec![
        calendar::timestamp(line.at_ms),
        invoice::describe(line.kind).to_owned(),
        work.map(|work| work.job.to_string()).unwrap_or_default(),
        work.map(|work| work.tokens.to_string()).unwrap_or_default(),
        work.map(|work| work.fee.0.to_string()).unwrap_or_default(),
        line.moved.total().to_string(),
        balance.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use consortium_ledger::cells::Cells;
    use consortium_ledger::ledger::Ledger;
    use consortium_ledger::metering::{JobRecord, StageWork, Terms};
    use consortium_protocol::hash::Hash;
    use consortium_protocol::identity::RootKey;
    use consortium_protocol::msat::Msat;
    use consortium_protocol::wire::heartbeat::LayerRange;
    use consortium_protocol::wire::job::JobId;

    use super::*;

    #[test]
    fn an_invoice_says_what_was_bought_and_adds_up() {
        let dir = tempfile::tempdir().unwrap();
        let node = |n| RootKey::from_seed([n; 32]).node_id();
        let ledger = Ledger::open(&dir.path().join("ledger.db"), node(1)).unwrap();
        let owner = Owner::Key("0123456789ab".parse().unwrap());
        let at = 1_790_000_000_000;
        ledger.deposit(&owner, Msat(5000), Hash::of(b"paid"), at).unwrap();
        ledger.reserve(&owner, JobId([7; 16]), Msat(900), at).unwrap();
        let work = StageWork {
            stage: 0,
            worker: node(2),
            cells: Cells { layers: LayerRange { first: 0, last: 3 }, start: 0, stop: 20 },
            price: Msat(10),
            receipt: Hash::of(b"receipt"),
            drawn: false,
        };
        let record = JobRecord { job: JobId([7; 16]), attempt: 1, payer: owner.clone(), fee: 50, stages: vec![work] };
        ledger.record_job(&record, &Terms::default(), at).unwrap();
        ledger.release_reservation(JobId([7; 16]), at).unwrap();
        let statement = ledger.statement(&owner, at - DAY_MS, at + DAY_MS, None, 100).unwrap();
        let text = render(&statement, false);
        assert!(text.starts_with("Statement of key/0123456789ab\nissued by  12D3KooW"), "{text}");
        assert!(text.contains("period     2026-09-20T14:13:20Z to 2026-09-22T14:13:20Z\n"), "{text}");
        let row = text.lines().find(|line| line.contains(" work ")).unwrap();
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(cells[2..], ["07".repeat(16).as_str(), "20", "40", "-840", "4160"], "{text}");
        assert!(text.contains("closing    4.16 sat: 4160 free, 0 held for audits, 0 delayed, 0 put aside\n"), "{text}");
        assert!(text.contains("hidden     2 entries"), "{text}");
        assert!(render(&statement, true).contains("reserved for a request"));
    }
}
