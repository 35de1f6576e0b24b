//! `consortium-node wallet`: the node's Lightning wallet.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use consortium_ledger::lightning::channels::ChannelView;
use consortium_ledger::lightning::error::sats;
use consortium_ledger::lightning::{history, invoice};
use consortium_protocol::msat::Msat;
use serde::Deserialize as _;
use serde_json::{Value, json};

use super::client::{Asking, Client};
use super::terminal::{print, printable, remark};

pub(super) mod amount;
mod backup;
pub(super) mod confirm;
mod show;

use amount::{SatOrAll, sat_amount};
use confirm::confirmed;

/// Time for what the node does by itself.
const QUICK: Duration = Duration::from_secs(30);
/// Time to reach a peer and agree with it.
const WITH_PEER: Duration = Duration::from_secs(75);
/// Time for what is spent on-chain: those before it, a peer, and the chain.
const ONCHAIN: Duration = Duration::from_secs(180);
/// Payments of the history that are shown at most.
const MAX_HISTORY: usize = 10_000;

/// Use the node's Lightning wallet.
#[derive(Subcommand, Debug)]
#[command(
    after_help = "Amounts are in sat; three decimals are thousandths of a sat. What moves money asks first on a terminal.
The wallet takes orders from whoever can read the node's data directory, and from nobody else.

Examples:
  consortium-node wallet status
  consortium-node wallet invoice 1500 --description \"for the printer\"
  consortium-node wallet pay lnbc15u1...
  consortium-node wallet open 02abc...@node.example:9735 200000"
)]
pub(super) enum WalletCommand {
    /// Show what the wallet has and how it is doing.
    Status(Asking),
    /// Make a new on-chain address, to fund the wallet.
    Address(Asking),
    /// Send on-chain.
    Send {
        /// To this address.
        address: String,
        /// So many sat, or `all`.
        #[arg(value_name = "SAT|all")]
        amount: SatOrAll,
        /// At this fee, in sat for a virtual byte; needed on mainnet [default: what the chain source estimates].
        #[arg(long, value_name = "SAT")]
        fee_rate: Option<u64>,
        #[command(flatten)]
        order: Order,
    },
    /// Make an invoice.
    Invoice {
        /// How much, in sat; the payer chooses if absent.
        #[arg(value_parser = sat_amount)]
        sat: Option<Msat>,
        /// What for; whoever gets the invoice reads it.
        #[arg(long, default_value = "")]
        description: String,
        /// How many seconds it is good for.
        #[arg(long, default_value_t = 3600)]
        expiry: u32,
        #[command(flatten)]
        asking: Asking,
    },
    /// Pay an invoice.
    Pay {
        /// The invoice (BOLT 11).
        invoice: String,
        /// How much, in sat, where the invoice leaves it open.
        #[arg(long, value_parser = sat_amount, value_name = "SAT")]
        amount: Option<Msat>,
        /// Fees at most, in sat [default: a hundredth of the amount and 50 sat].
        #[arg(long, value_parser = sat_amount, value_name = "SAT")]
        max_fee: Option<Msat>,
        /// Seconds to wait for the outcome.
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=120))]
        wait: u32,
        #[command(flatten)]
        order: Order,
    },
    /// List the channels.
    Channels(Asking),
    /// Open a channel.
    Open {
        /// With whom: PUBKEY@HOST:PORT.
        peer: String,
        /// How much is put in, in sat.
        sat: u64,
        /// How much of it is given to the peer, in sat.
        #[arg(long, value_parser = sat_amount, value_name = "SAT")]
        push: Option<Msat>,
        /// Tell the network, so that others may route through it.
        #[arg(long)]
        announced: bool,
        #[command(flatten)]
        order: Order,
    },
    /// Close a channel.
    Close {
        /// Its id, as `channels` lists it.
        channel: String,
        /// Without the peer: dearer, and the money is locked for days.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        order: Order,
    },
    /// Show what was paid and received.
    History {
        /// The newest so many.
        #[arg(long, default_value_t = 30)]
        limit: usize,
        #[command(flatten)]
        asking: Asking,
    },
    /// Write an encrypted backup of who the peers are; with the root key (`identity.key`) it leads back to the money.
    Backup {
        /// Into this file, which must not be there.
        file: PathBuf,
        #[command(flatten)]
        asking: Asking,
    },
    /// After `restore`: look for what the peers paid out when they closed the lost channels, and send it to the on-chain
    /// wallet. Needs a bitcoind, and takes it minutes.
    Sweep(Asking),
    /// After a loss of the data directory: connect to the peers of a backup, so that they close the lost channels.
    Restore {
        /// The backup.
        file: PathBuf,
        #[command(flatten)]
        asking: Asking,
    },
}

/// How to give an order that moves money.
#[derive(Args, Debug)]
pub(super) struct Order {
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    asking: Asking,
}

/// Runs a `wallet` command.
///
/// # Errors
/// When no node answers, or its wallet refuses, in words that say what to do.
pub(super) async fn run(command: WalletCommand, data_dir: &Path) -> Result<()> {
    match command {
        WalletCommand::Status(asking) => status(asking, data_dir).await,
        WalletCommand::Address(asking) => simple(asking, data_dir, QUICK, "wallet_address", json!({}), "address").await,
        WalletCommand::Send { address, amount, fee_rate, order } => {
            send(&address, amount, fee_rate, order, data_dir).await
        }
        WalletCommand::Invoice { sat, description, expiry, asking } => {
            let params = json!({"msat": sat, "description": description, "expiry_s": expiry});
            make_invoice(params, asking, data_dir).await
        }
        WalletCommand::Pay { invoice, amount, max_fee, wait, order } => {
            pay(Payment { invoice, amount, max_fee, wait }, order, data_dir).await
        }
        WalletCommand::Channels(asking) => channels(asking, data_dir).await,
        WalletCommand::Open { peer, sat, push, announced, order } => {
            let channel = Channel { peer, sat, push: push.unwrap_or_default(), announced };
            open(channel, order, data_dir).await
        }
        WalletCommand::Close { channel, force, order } => close(&channel, force, order, data_dir).await,
        WalletCommand::History { limit, asking } => past(limit, asking, data_dir).await,
        WalletCommand::Backup { file, asking } => backup::write(&file, asking, data_dir).await,
        WalletCommand::Sweep(asking) => backup::sweep(asking, data_dir).await,
        WalletCommand::Restore { file, asking } => backup::restore(&file, asking, data_dir).await,
    }
}

async fn status(asking: Asking, data_dir: &Path) -> Result<()> {
    let status: Value = Client::find(asking.client, data_dir)?.rpc("wallet_status", json!({})).await?;
    shown(&status, asking.json, || {
        Ok(show::status(&serde_json::from_value(status.clone())?) + &show::hints(&status["hints"]))
    })
}

async fn channels(asking: Asking, data_dir: &Path) -> Result<()> {
    let listed: Value = Client::find(asking.client, data_dir)?.rpc("wallet_channels", json!({})).await?;
    let channels = &listed["channels"];
    shown(channels, asking.json, || {
        Ok(show::channels(&Vec::<ChannelView>::deserialize(channels)?) + &show::hints(&listed["hints"]))
    })
}

async fn past(limit: usize, asking: Asking, data_dir: &Path) -> Result<()> {
    let most = limit.min(MAX_HISTORY);
    let page = json!({"limit": most.clamp(1, 200)});
    let client = Client::find(asking.client, data_dir)?;
    let payments: Vec<Value> = client.pages("wallet_history", page, "payments", most).await?;
    let payments = Value::from(payments);
    shown(&payments, asking.json, || Ok(show::history(&Vec::<history::Payment>::deserialize(&payments)?)))
}

async fn make_invoice(params: Value, asking: Asking, data_dir: &Path) -> Result<()> {
    let made: Value = Client::find(asking.client, data_dir)?.order("wallet_invoice", params, WITH_PEER).await?;
    if let Some(warning) = made["warning"].as_str() {
        remark(&printable(warning));
    }
    shown(&made, asking.json, || Ok(line(&made["invoice"])))
}

/// What `open` was told.
struct Channel {
    peer: String,
    sat: u64,
    push: Msat,
    announced: bool,
}

async fn open(channel: Channel, order: Order, data_dir: &Path) -> Result<()> {
    let Channel { peer, sat, push, announced } = channel;
    let given = if push == Msat::ZERO { String::new() } else { format!(", {} of it as a gift", sats(push)) };
    if !confirmed(&format!("Put {sat} sat into a channel with {}{given}?", printable(&peer)), order.yes)? {
        return Ok(());
    }
    let params = json!({"peer": peer, "sat": sat, "push_msat": push, "announced": announced});
    let client = Client::find(order.asking.client, data_dir)?;
    let opened: Value = client.order("wallet_open", params, ONCHAIN).await?;
    shown(&opened, order.asking.json, || Ok(line(&opened["channel"])))
}

async fn close(channel: &str, force: bool, order: Order, data_dir: &Path) -> Result<()> {
    let how = if force { "by force: its money is locked for days" } else { "together with its peer" };
    if !confirmed(&format!("Close the channel {} {how}?", printable(channel)), order.yes)? {
        return Ok(());
    }
    simple(order.asking, data_dir, QUICK, "wallet_close", json!({"channel": channel, "force": force}), "closing").await
}

/// An order whose answer is one field.
async fn simple(
    asking: Asking,
    data_dir: &Path,
    within: Duration,
    method: &str,
    params: Value,
    field: &str,
) -> Result<()> {
    let answer: Value = Client::find(asking.client, data_dir)?.order(method, params, within).await?;
    shown(&answer, asking.json, || Ok(line(&answer[field])))
}

fn line(value: &Value) -> String {
    format!("{}\n", printable(value.as_str().unwrap_or_default()))
}

fn shown(value: &Value, as_json: bool, render: impl FnOnce() -> Result<String>) -> Result<()> {
    let text = if as_json { format!("{}\n", serde_json::to_string_pretty(value)?) } else { render()? };
    print(&text)?;
    Ok(())
}

async fn send(address: &str, amount: SatOrAll, fee_rate: Option<u64>, order: Order, data_dir: &Path) -> Result<()> {
    if !confirmed(&format!("Send {amount} on-chain to {}?", printable(address)), order.yes)? {
        return Ok(());
    }
    let params = match amount {
        SatOrAll::Sat(sat) => json!({"address": address, "sat": sat, "fee_rate": fee_rate}),
        SatOrAll::All => json!({"address": address, "all": true, "fee_rate": fee_rate}),
    };
    simple(order.asking, data_dir, ONCHAIN, "wallet_send", params, "txid").await
}

/// What `pay` was told.
struct Payment {
    invoice: String,
    amount: Option<Msat>,
    max_fee: Option<Msat>,
    wait: u32,
}

async fn pay(payment: Payment, order: Order, data_dir: &Path) -> Result<()> {
    let Payment { invoice, amount, max_fee, wait } = payment;
    let says = invoice::read(&invoice)?;
    let what = says.amount.or(amount).map_or_else(|| "an open amount".to_owned(), sats);
    let words = match says.description.is_empty() {
        true => String::new(),
        false => format!(" for \"{}\"", printable(&says.description)),
    };
    if !confirmed(&format!("Pay {what}{words} to {}?", says.payee), order.yes)? {
        return Ok(());
    }
    let params = json!({"invoice": invoice, "msat": amount, "max_fee_msat": max_fee, "wait_s": wait});
    let client = Client::find(order.asking.client, data_dir)?;
    let within = QUICK + Duration::from_secs(wait.into());
    let paid: Value = client.order("wallet_pay", params, within).await?;
    shown(&paid, order.asking.json, || Ok(show::paid(&serde_json::from_value(paid.clone())?)))
}
