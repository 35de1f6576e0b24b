//! The command line.
//!
//! [`start`] runs a node. [`status`], [`peers`], [`chat`], [`reputation`], [`audit`], [`ledger`], `wallet` and `escrow` talk to a running one
//! over its HTTP API, found by [`client`] through the data directory; the others work on the data directory itself, whether a node runs or not.
//! Answers go to stdout, everything about them to stderr.
#![allow(clippy::print_stdout, reason = "output to the terminal is what a command line is for")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

mod audit;
mod chat;
mod client;
mod earnings;
#[cfg(feature = "lightning")]
mod escrow;
pub mod identity;
mod key;
mod ledger;
mod lightning;
pub mod model;
#[cfg(feature = "lightning")]
mod pay;
mod peers;
mod reputation;
mod sale;
pub mod start;
mod statement;
mod status;
mod tabs;
mod tabs_table;
mod terminal;
pub mod train;
pub(crate) mod units;
#[cfg(feature = "lightning")]
mod wallet;

/// How long work that cannot be interrupted may hold up the end of a command.
const LINGER: Duration = Duration::from_secs(2);

/// Lend a computer to a swarm that runs language models none of its members could run alone.
#[derive(Parser, Debug)]
#[command(
    name = "consortium-node",
    version,
    after_help = "Examples:
  consortium-node start --model ./my-model     run a node and serve a model
  consortium-node chat \"Why is the sky blue?\"  ask the node of this machine
  consortium-node status                       see how it is doing
  consortium-node start --help                 all settings of a node

Any OpenAI client works too: point its base URL at http://127.0.0.1:8080/v1"
)]
pub struct Cli {
    /// Where the node keeps its key, databases and models [default: ~/.consortium].
    #[arg(long, global = true, env = "CONSORTIUM_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Start(Box<start::StartArgs>),
    Status(status::StatusArgs),
    Peers(peers::PeersArgs),
    Reputation(reputation::ReputationArgs),
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    #[command(subcommand)]
    Ledger(ledger::LedgerCommand),
    Earnings(earnings::EarningsArgs),
    #[cfg(feature = "lightning")]
    #[command(subcommand)]
    Wallet(Box<wallet::WalletCommand>),
    #[cfg(feature = "lightning")]
    #[command(subcommand)]
    Escrow(Box<escrow::EscrowCommand>),
    Chat(chat::ChatArgs),
    #[command(subcommand)]
    Model(model::ModelCommand),
    Identity(identity::IdentityArgs),
    #[command(subcommand)]
    Key(key::KeyCommand),
    #[command(subcommand)]
    Train(Box<train::TrainCommand>),
}

/// Runs a command to its end; gives the exit code of one that succeeded.
///
/// # Errors
/// What went wrong, in words for whoever typed the command.
pub fn run(cli: Cli) -> Result<ExitCode> {
    let data_dir = match cli.data_dir {
        Some(dir) => dir,
        None => std::env::home_dir()
            .filter(|home| !home.as_os_str().is_empty())
            .context("there is no home directory to keep the node's files in; name one with --data-dir")?
            .join(".consortium"),
    };
    let runtime = tokio::runtime::Runtime::new().context("cannot start the asynchronous runtime")?;
    let result = runtime.block_on(async {
        match cli.command {
            Command::Start(args) => Box::pin(start::run(*args, &data_dir)).await,
            Command::Status(args) => status::run(args, &data_dir).await,
            Command::Peers(args) => peers::run(args, &data_dir).await,
            Command::Reputation(args) => reputation::run(args, &data_dir).await,
            Command::Audit(command) => return Box::pin(audit::run(command, &data_dir)).await,
            Command::Ledger(command) => ledger::run(command, &data_dir).await,
            Command::Earnings(args) => earnings::run(args, &data_dir).await,
            #[cfg(feature = "lightning")]
            Command::Wallet(command) => Box::pin(wallet::run(*command, &data_dir)).await,
            #[cfg(feature = "lightning")]
            Command::Escrow(command) => Box::pin(escrow::run(*command, &data_dir)).await,
            Command::Chat(args) => Box::pin(chat::run(args, &data_dir)).await,
            Command::Model(command) => Box::pin(model::run(command, &data_dir)).await,
            Command::Identity(args) => identity::run(args, &data_dir).await,
            Command::Key(command) => key::run(command, &data_dir).await,
            Command::Train(command) => return Box::pin(train::run(*command, &data_dir)).await,
        }
        .map(|()| ExitCode::SUCCESS)
    });
    runtime.shutdown_timeout(LINGER);
    result
}

/// An error with its causes, on one line. What an error has said of its cause already is not said again.
#[must_use]
pub fn in_words(error: &anyhow::Error) -> String {
    let mut words = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if words.is_empty() {
            words = cause;
        } else if !words.ends_with(&cause) {
            words.push_str(": ");
            words.push_str(&cause);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn a_cause_is_told_once() {
        let gone = std::io::Error::from(std::io::ErrorKind::NotFound);
        let words = gone.to_string();
        let path = std::path::PathBuf::from("a.jsonl");
        let error = anyhow::Error::from(consortium_training::TrainError::Io { path, source: gone });
        assert_eq!(in_words(&error), format!("a.jsonl: {words}"));
        assert_eq!(in_words(&error.context("no data")), format!("no data: a.jsonl: {words}"));
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_data_directory_may_stand_anywhere() {
        for line in [
            &["consortium-node", "--data-dir", "/x", "status"][..],
            &["consortium-node", "status", "--data-dir", "/x", "--json"],
            &["consortium-node", "key", "revoke", "0123456789ab", "--data-dir", "/x"],
        ] {
            let cli = Cli::try_parse_from(line).unwrap();
            assert_eq!(cli.data_dir.unwrap(), PathBuf::from("/x"));
        }
    }

    #[test]
    fn what_is_checked_takes_its_options() {
        for line in [
            "consortium-node reputation",
            "consortium-node reputation --json --api-base http://x/v1",
            "consortium-node reputation list --json --api-base http://x/v1",
            "consortium-node reputation show 12D3KooW --api-key k",
            "consortium-node audit list --limit 5 --json",
            "consortium-node audit show 0123abcd",
            "consortium-node audit verify x.proof --model m --thresholds t.json --json",
            "consortium-node audit calibrate m --out t.json",
            "consortium-node audit order 000102030405060708090a0b0c0d0e0f --stage 1 --wait 5 --json",
            "consortium-node audit run 000102030405060708090a0b0c0d0e0f --rpc http://x/rpc --model m --submit --key k",
            "consortium-node ledger head --json",
            "consortium-node ledger statement own/earned --days 3",
            "consortium-node ledger statement key/0123456789ab --from 2026-11-01 --to 2026-12-01 --csv",
            "consortium-node key create --label x --credit 500",
            "consortium-node key credit 0123456789ab 500",
            "consortium-node ledger verify --json",
            "consortium-node train announce --model small --rounds 5 --budget 100 --validator \
             12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5 --dry-run --json",
            "consortium-node train announce --plan run.toml --starts-in 60",
            "consortium-node train list --json",
            "consortium-node train join 0123 --watch",
            "consortium-node train status 0123 --follow --json --svg x.svg --watts 65 --price-kwh 300",
            "consortium-node train leave 0123",
            "consortium-node train export 0123 dir --model --json",
            "consortium-node train replay dir --losses --json --svg x.svg",
            "consortium-node train local --out m --peers 4 --validators 3 --model nano --rounds 2 --json",
            "consortium-node train tiny --out m --steps 1",
            "consortium-node earnings --json --watts 62.5 --price-kwh 300 --hours 48",
            #[cfg(feature = "lightning")]
            "consortium-node wallet pay lnbcrt1 --amount 5 --max-fee 2 --wait 9 --yes --json",
            #[cfg(feature = "lightning")]
            "consortium-node wallet open 02ab@h:1 50000 --push 10 --announced --yes",
            #[cfg(feature = "lightning")]
            "consortium-node wallet send bcrt1 all --yes",
            #[cfg(feature = "lightning")]
            "consortium-node wallet close 00ff --force --yes",
            #[cfg(feature = "lightning")]
            "consortium-node escrow list --limit 3 --json",
            #[cfg(feature = "lightning")]
            "consortium-node escrow agree 000102030405060708090a0b0c0d0e0f --dust --yes",
            #[cfg(feature = "lightning")]
            "consortium-node escrow judge 000102030405060708090a0b0c0d0e0f accepted --earned 5 --evidence x -y --json",
        ] {
            Cli::try_parse_from(line.split_whitespace()).unwrap();
        }
        for line in [
            "somebody",
            "own/earned --csv --json",
            "own/earned --from 2026-02-30",
            "own/earned --days 3 --from 2026-01-01",
        ] {
            let line = format!("consortium-node ledger statement {line}");
            assert!(Cli::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        }
    }

    #[test]
    fn chat_takes_its_options() {
        let line = "consortium-node chat Hello --model m --system s --temperature 0 --max-tokens 5 --seed 1 --api-base \
                    http://x/v1 --api-key k";
        assert!(Cli::try_parse_from(line.split_whitespace()).is_ok());
        #[cfg(feature = "lightning")]
        {
            let line = "consortium-node chat --pay --max-sats 3 --max-per-message 1 --url http://x/v1 Hello";
            assert!(Cli::try_parse_from(line.split_whitespace()).is_ok());
            let line = "consortium-node chat --max-sats 3 Hello";
            assert!(Cli::try_parse_from(line.split_whitespace()).is_err(), "nothing is paid without --pay");
        }
    }
}
