//! `consortium-node train`: training together, and what can be checked of it afterwards.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use consortium_protocol::Hash;
use consortium_protocol::wire::train::RunId;
use consortium_training::rounds::Wish;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::client::{Asking, Client};
use super::earnings::{kwh, milliwatts};
use super::terminal::{print, printable, remark};
use crate::train::pause::Terms;
use crate::train::view::{Coming, Exported, RunSummary};

mod announce;
mod local;
mod plan;
mod replay;
mod show;
mod status;
mod tiny;

/// Time for what the node does by itself.
const QUICK: Duration = Duration::from_secs(30);
/// Time to write a run down.
const LONG: Duration = Duration::from_secs(300);
/// Time to find a run in the swarm, and to get its files: its data may be a quarter of a GiB.
const FETCHING: Duration = Duration::from_secs(3600);
/// How often it is looked how much of them has come.
const LOOK: Duration = Duration::from_millis(300);

/// Train a model together with others, and be paid for what the work was worth.
#[derive(Subcommand, Debug)]
#[command(
    after_help = "A run is announced by whoever wants the model (and pays, if anything is paid), trained by peers and judged by
validators: each round every peer trains on rows of its own, and its update is let in if it makes held-out loss better.
Everyone can compute all of it again from the run's log: scores, pay, parameters and losses.

A node must be running (`consortium-node start`) for all but `replay`, `local` and `tiny`.

Examples:
  consortium-node train announce --model small --rounds 20 --dry-run
  consortium-node train announce --model tiny --budget 200 --validator 12D3KooW...
  consortium-node train list
  consortium-node train join 0123abcd
  consortium-node train join 0123abcd --pause-below-cost --watts 65 --price-kwh 300
  consortium-node train status --follow
  consortium-node train export 0123abcd ./run --model
  consortium-node train replay ./run --losses
  consortium-node train local --peers 4 --model small --out ./model"
)]
pub(super) enum TrainCommand {
    /// Announce a run: prints its id.
    Announce(Box<announce::AnnounceArgs>),
    /// List the runs that this node has heard of or takes part in.
    List {
        #[command(flatten)]
        asking: Asking,
    },
    /// Take part in a run: train in it, unless told otherwise. A node that restarts goes on by itself.
    Join(JoinArgs),
    /// Show how a run goes, round by round: losses, scores, sats, tokens a second.
    Status(status::StatusArgs),
    /// Leave a run at the end of the round.
    Leave {
        /// Its id, or the first digits of it.
        run: String,
        #[command(flatten)]
        asking: Asking,
    },
    /// Write a run to a directory: specification, log, tokenizer, updates, parameters. From it the run can be replayed.
    Export(ExportArgs),
    /// Check a run from its files alone: signatures, scores, pay, parameters, losses. Exits with 1 if something is not true.
    Replay(replay::ReplayArgs),
    /// Train on this machine alone: several peers and validators in one process, from nothing to a model that can be served.
    Local(Box<local::LocalArgs>),
    /// Train a model like the project's own by one optimiser alone: corpus, tokenizer, weights, model card.
    Tiny(tiny::TinyArgs),
}

/// Arguments of `train join`.
#[derive(Args, Debug)]
pub(super) struct JoinArgs {
    /// Its id; of a run that `list` shows, the first digits are enough.
    run: String,
    /// Judge, as soon as there is a place, in place of training. Whom the run names as a validator judges anyway.
    #[arg(long, conflicts_with = "watch")]
    validate: bool,
    /// Only follow it: keep its log and its parameters.
    #[arg(long)]
    watch: bool,
    /// Train only while that pays for the machine's power: pause when eight rounds together paid less (the first twenty do
    /// not count), and go on when what others are paid would cover it. Also after a restart.
    #[arg(long, requires = "price_kwh", conflicts_with_all = ["validate", "watch"])]
    pause_below_cost: bool,
    /// What the machine takes while it trains, in watts, where it cannot be measured.
    #[arg(long, value_name = "W", value_parser = milliwatts, requires = "pause_below_cost")]
    watts: Option<u64>,
    /// What a kilowatt-hour costs, in sat.
    #[arg(long, value_name = "SATS", requires = "pause_below_cost")]
    price_kwh: Option<u64>,
    #[command(flatten)]
    asking: Asking,
}

/// Arguments of `train export`.
#[derive(Args, Debug)]
pub(super) struct ExportArgs {
    /// Its id, or the first digits of it.
    run: String,
    /// Directory to write to, on the node's machine; one with the same run in it is brought up to date.
    directory: PathBuf,
    /// The newest parameters also as a model that nodes serve, in DIR/model.
    #[arg(long)]
    model: bool,
    #[command(flatten)]
    asking: Asking,
}

/// Runs a `train` command.
///
/// # Errors
/// When no node answers or it refuses, or files cannot be read or written, in words that say what to do.
pub(super) async fn run(command: TrainCommand, data_dir: &Path) -> Result<ExitCode> {
    match command {
        TrainCommand::Announce(args) => announce::run(*args, data_dir).await,
        TrainCommand::List { asking } => list(asking, data_dir).await,
        TrainCommand::Join(args) => join(args, data_dir).await,
        TrainCommand::Status(args) => Box::pin(status::run(args, data_dir)).await,
        TrainCommand::Leave { run, asking } => leave(&run, asking, data_dir).await,
        TrainCommand::Export(args) => export(args, data_dir).await,
        TrainCommand::Replay(args) => return replay::run(args).await,
        TrainCommand::Local(args) => Box::pin(local::run(*args)).await,
        TrainCommand::Tiny(args) => tiny::run(args).await,
    }
    .map(|()| ExitCode::SUCCESS)
}

async fn runs(client: &Client) -> Result<Vec<RunSummary>> {
    let mut told: Value = client.rpc("train_list", json!({})).await?;
    serde_json::from_value(told["runs"].take()).context("the answer of train_list makes no sense")
}

/// The run that is meant: by its whole id, or by the first digits of one that the node knows.
async fn named(client: &Client, text: &str) -> Result<RunId> {
    if let Ok(hash) = text.parse::<Hash>() {
        return Ok(RunId(hash));
    }
    let known: Vec<RunId> = runs(client).await?.into_iter().map(|summary| summary.run).collect();
    by_digits(&known, text)
}

fn by_digits(known: &[RunId], text: &str) -> Result<RunId> {
    if text.is_empty() || !text.chars().all(|digit| digit.is_ascii_hexdigit()) {
        bail!("'{text}' is no id of a run: 64 hexadecimal digits, or the first of them; `train list` shows ids");
    }
    let mut fitting = known.iter().filter(|run| run.to_string().starts_with(&text.to_ascii_lowercase()));
    match (fitting.next(), fitting.next()) {
        (Some(run), None) => Ok(*run),
        (Some(_), Some(_)) => bail!("several runs begin with '{text}': give more digits of the id"),
        (None, _) => bail!("this node knows no run that begins with '{text}': see `train list`, or give all 64 digits"),
    }
}

fn shown(value: &impl serde::Serialize, as_json: bool, render: impl FnOnce() -> String) -> Result<()> {
    let text = if as_json { format!("{}\n", serde_json::to_string_pretty(value)?) } else { render() };
    print(&text)?;
    Ok(())
}

async fn list(asking: Asking, data_dir: &Path) -> Result<()> {
    let client = Client::find(asking.client, data_dir)?;
    let all = runs(&client).await?;
    shown(&all, asking.json, || show::list(&all))
}

async fn join(args: JoinArgs, data_dir: &Path) -> Result<()> {
    let wish = match (args.validate, args.watch) {
        (true, _) => Wish::Validate,
        (_, true) => Wish::Watch,
        _ => Wish::Train,
    };
    let pause = kwh(args.price_kwh)?.map(|kwh_msat| Terms { kwh_msat, milliwatts: args.watts });
    let client = Client::find(args.asking.client, data_dir)?;
    let run = named(&client, &args.run).await?;
    let order = client.order("train_join", json!({"run": run, "wish": wish, "pause": pause}), FETCHING);
    let told: Value = with_files_shown(&client, run, order).await?;
    shown(&told, args.asking.json, || {
        let while_paid = if pause.is_some() { ", to train while that pays for its power" } else { "" };
        let short = run.0.short();
        format!("joined {run}{while_paid}; follow it with `consortium-node train status {short} --follow`\n")
    })
}

/// Waits until a run is joined, with a bar that shows how much of its files has come.
async fn with_files_shown<T>(client: &Client, run: RunId, order: impl Future<Output = Result<T>>) -> Result<T> {
    let style = ProgressStyle::with_template("{msg} {bar:40} {bytes}/{total_bytes} {bytes_per_sec}")?;
    let bar = ProgressBar::new(0).with_style(style);
    let mut order = pin!(order);
    loop {
        tokio::select! {
            done = &mut order => {
                bar.finish_and_clear();
                return done;
            }
            () = tokio::time::sleep(LOOK), if !bar.is_hidden() => {}
        }
        let found = runs(client).await.ok().and_then(|all| all.into_iter().find(|summary| summary.run == run));
        if let Some(Coming { what, here, bytes }) = found.and_then(|summary| summary.coming) {
            bar.set_message(format!("fetching the {}", printable(&what)));
            bar.set_length(bytes);
            bar.set_position(here);
        }
    }
}

async fn leave(text: &str, asking: Asking, data_dir: &Path) -> Result<()> {
    let client = Client::find(asking.client, data_dir)?;
    let run = named(&client, text).await?;
    let told: Value = client.order("train_leave", json!({"run": run}), QUICK).await?;
    shown(&told, asking.json, || format!("leaving {run} at the end of the round\n"))
}

async fn export(args: ExportArgs, data_dir: &Path) -> Result<()> {
    let client = Client::find(args.asking.client, data_dir)?;
    let run = named(&client, &args.run).await?;
    let directory = std::path::absolute(&args.directory).context("there is no current directory")?;
    let params = json!({"run": run, "directory": directory});
    let exported: Exported = client.order("train_export", params, LONG).await?;
    if args.model {
        replay::model(&directory, &directory.join("model")).await?;
    }
    if exported.missing > 0 {
        remark(&format!(
            "{} updates were not kept by this node: the losses of their rounds cannot be computed again",
            exported.missing
        ));
    }
    shown(&exported, args.asking.json, || show::exported(&exported, &args.directory, args.model))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_by_their_first_digits() {
        let run = |text: &str| RunId(format!("{text:0<64}").parse().unwrap());
        let known = [run("abc1"), run("abc2"), run("0f")];
        assert_eq!(by_digits(&known, "ABC1").unwrap(), known[0]);
        assert_eq!(by_digits(&known, "0").unwrap(), known[2]);
        for (text, words) in
            [("abc", "several runs"), ("77", "knows no run"), ("", "is no id"), ("xyz", "is no id"), ("-1", "is no id")]
        {
            let error = by_digits(&known, text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
