//! `consortium-node train status`.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use consortium_ledger::earnings::BreakEven;
use consortium_protocol::NodeId;
use consortium_protocol::wire::train::RunId;
use consortium_training::curve::{Panel, panels};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{named, runs, show};
use crate::cli::client::{Asking, Client};
use crate::cli::earnings::{kwh, milliwatts};
use crate::cli::terminal::print;
use crate::cli::units::sats;
use crate::power;
use crate::train::view::{Phase, RoundLine, RunStatus};

/// Time between two questions to the node.
const POLL: Duration = Duration::from_secs(1);
/// A node that trains is worth its while from this on, in millisatoshi an hour.
const WORTH_MSAT: i64 = 300_000;

/// Arguments of `train status`.
#[derive(Args, Debug)]
pub(in crate::cli) struct StatusArgs {
    /// Its id, or the first digits of it [default: the run that this node takes part in, if it is one].
    run: Option<String>,
    /// Go on until the run ends: a bar on a terminal, and a line for every round.
    #[arg(long)]
    follow: bool,
    /// Draw held-out loss, scores, ratings and pay by round.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// What the machine takes, in watts, where it cannot be measured.
    #[arg(long, value_name = "W", value_parser = milliwatts)]
    watts: Option<u64>,
    /// What a kilowatt-hour costs, in sat.
    #[arg(long, value_name = "SATS")]
    price_kwh: Option<u64>,
    #[command(flatten)]
    asking: Asking,
}

/// What the node answers.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    me: NodeId,
    status: RunStatus,
}

/// What a peer's part in a run is worth.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Worth {
    /// What it came out with, a round, over the rounds shown.
    msat_per_round: i64,
    /// And an hour.
    msat_per_hour: i64,
    /// `measured`, `measured in training` or `given`.
    power: Option<&'static str>,
    /// Against its electricity.
    break_even: Option<BreakEven>,
}

/// Shows how a run goes.
///
/// # Errors
/// When no node answers, or the run is not known to it.
pub(super) async fn run(args: StatusArgs, data_dir: &Path) -> Result<()> {
    let client = Client::find(args.asking.client.clone(), data_dir)?;
    let run = chosen(&client, args.run.as_deref()).await?;
    let told = ask(&client, run).await?;
    if args.follow {
        return Box::pin(follow(&args, &client, told)).await;
    }
    draw(args.svg.as_deref(), &told.status)?;
    let worth = worth(&args, &told).await?;
    let text = match args.asking.json {
        true => {
            let all = json!({"me": told.me, "status": told.status, "worth": worth});
            format!("{}\n", serde_json::to_string_pretty(&all)?)
        }
        false => format!("{}\n{}", show::status(&told.status, told.me), worth_in_words(&told.status, worth)),
    };
    print(&text)?;
    Ok(())
}

/// The run that is meant, or the only one that the node takes part in.
async fn chosen(client: &Client, text: Option<&str>) -> Result<RunId> {
    if let Some(text) = text {
        return named(client, text).await;
    }
    let mine: Vec<RunId> =
        runs(client).await?.into_iter().filter(|run| run.wish.is_some()).map(|run| run.run).collect();
    match mine.as_slice() {
        [run] => Ok(*run),
        [] => bail!("this node takes part in no run: see `consortium-node train list`, then `train join ID`"),
        _ => bail!("this node takes part in several runs: name one, as `train list` has them"),
    }
}

async fn ask(client: &Client, run: RunId) -> Result<Told> {
    client.rpc("train_status", json!({"run": run})).await
}

/// Tells every round, and what goes on, until the run ends.
async fn follow(args: &StatusArgs, client: &Client, mut told: Told) -> Result<()> {
    let run = told.status.summary.run;
    let bar = (!args.asking.json && std::io::stderr().is_terminal()).then(bar);
    let (mut last_round, mut last_phase) = (0, None);
    loop {
        let status = &told.status;
        for line in status.rounds.iter().filter(|line| line.round > last_round) {
            let text = match args.asking.json {
                true => json!({"round": line}).to_string(),
                false => show::line(line, Some(told.me)),
            };
            let said = |text: &str| print(&format!("{text}\n"));
            if !bar.as_ref().map_or_else(|| said(&text), |bar| bar.suspend(|| said(&text)))? {
                return Ok(());
            }
        }
        last_round = status.rounds.last().map_or(last_round, |line| line.round);
        draw(args.svg.as_deref(), status)?;
        if args.asking.json && last_phase != Some(status.phase) {
            last_phase = Some(status.phase);
            let now = json!({"phase": status.phase, "in_sync": status.in_sync, "round": status.summary.round,
                "trained": status.summary.trained, "rounds": status.summary.rounds,
                "tokens_per_second": status.tokens_per_second, "trouble": status.last_error});
            if !print(&format!("{now}\n"))? {
                return Ok(());
            }
        }
        if let Some(bar) = &bar {
            progress(bar, status);
        }
        if status.phase == Phase::Ended {
            break;
        }
        tokio::time::sleep(POLL).await;
        told = ask(client, run).await?;
    }
    bar.inspect(ProgressBar::finish_and_clear);
    let worth = worth(args, &told).await?;
    match args.asking.json {
        true => print(&format!("{}\n", json!({"ended": run, "worth": worth})))?,
        false => print(&format!("the run has ended\n{}", worth_in_words(&told.status, worth)))?,
    };
    Ok(())
}

/// A bar over the rounds of a run.
pub(super) fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} rounds  {elapsed_precise}  {msg}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Puts the bar where the run is.
pub(super) fn progress(bar: &ProgressBar, status: &RunStatus) {
    bar.set_length(status.summary.rounds);
    bar.set_position(status.summary.trained);
    let steps = match (status.phase, status.progress) {
        (Phase::Training, (done, all)) if all > 0 => format!(" {done}/{all} steps"),
        _ => String::new(),
    };
    let speed = match status.tokens_per_second {
        speed if speed > 0.0 => format!("  {speed:.0} tokens/s"),
        _ => String::new(),
    };
    bar.set_message(format!("{}{steps}{speed}", show::phase(status.phase)));
}

/// What this node came out with, a round and an hour.
fn earned(lines: &[RoundLine], me: NodeId) -> Option<(i64, i64)> {
    let mine: Vec<(i128, f64)> = lines
        .iter()
        .filter_map(|line| Some((show::net(line.peers.iter().find(|peer| peer.node == me)?), line.seconds)))
        .collect();
    let rounds = i128::try_from(mine.len()).ok().filter(|rounds| *rounds > 0)?;
    let sum: i128 = mine.iter().map(|(msat, _)| msat).sum();
    let seconds: f64 = mine.iter().map(|(_, seconds)| seconds).sum();
    let hour = if seconds > 0.0 { sum as f64 / seconds * 3600.0 } else { 0.0 };
    Some((i64::try_from(sum / rounds).ok()?, hour as i64))
}

async fn worth(args: &StatusArgs, told: &Told) -> Result<Option<Worth>> {
    let Some((msat_per_round, msat_per_hour)) = earned(&told.status.rounds, told.me) else { return Ok(None) };
    // What is not said here may have been said when it joined.
    let (standing, terms) = (told.status.pause, told.status.pause.map(|standing| standing.terms));
    let kwh = kwh(args.price_kwh)?.or(terms.map(|terms| terms.kwh_msat));
    let given = args.watts.or(terms.and_then(|terms| terms.milliwatts));
    let taken = match (given, standing.and_then(|standing| standing.measured)) {
        (Some(given), _) => Some((given, "given")),
        (None, Some(measured)) => Some((measured, "measured in training")),
        (None, None) => power::measured().await.map(|power| (power, "measured")),
    };
    let break_even = taken.and_then(|(power, _)| BreakEven::of(msat_per_hour, power, kwh));
    Ok(Some(Worth { msat_per_round, msat_per_hour, power: taken.map(|(_, how)| how), break_even }))
}

fn worth_in_words(status: &RunStatus, worth: Option<Worth>) -> String {
    let mut text = String::new();
    let mut line = |name: &str, words: String| text.push_str(&format!("{name:<11} {words}\n"));
    if status.tokens_per_second > 0.0 {
        line("trains", format!("{:.0} tokens/s", status.tokens_per_second));
    }
    if status.seconds_per_round > 0.0 {
        line("a round", format!("{:.1} s", status.seconds_per_round));
    }
    let Some(worth) = worth else { return text };
    let enough = if worth.msat_per_hour >= WORTH_MSAT { "" } else { "; worth the while from 300 sat an hour on" };
    let (round, hour) = (sats(worth.msat_per_round.into()), sats(worth.msat_per_hour.into()));
    line("earns", format!("{round} a round, {hour} an hour{enough}"));
    let (all, fees, paid) = (status.earned_msat, status.fees_msat, status.paid_msat);
    line(
        "in all",
        format!(
            "{} earned, {} in fees, {} to be paid out so far",
            sats(all.into()),
            sats(fees.into()),
            sats(paid.into())
        ),
    );
    match worth.break_even {
        Some(even) => {
            let how = match worth.power {
                Some("measured") => "measured now, the processor alone",
                Some("measured in training") => "measured while it trained, the processor alone",
                _ => "as given",
            };
            line("power", format!("{:.1} W, {how}", even.milliwatts as f64 / 1000.0));
            match even.kwh {
                Some(kwh) => line("break-even", format!("at {} for a kilowatt-hour", sats(kwh.0.into()))),
                None => line("break-even", "at no price: nothing was earned".to_owned()),
            }
            if let Some(profit) = even.profit_msat_per_hour {
                let word = if profit < 0 { "loss: a pause costs less" } else { "profit" };
                line("electricity", format!("{} an hour, {word}", sats(profit.unsigned_abs().into())));
            }
        }
        None => line("power", "not known: this machine does not tell it; give it with --watts".to_owned()),
    }
    text
}

/// Draws what there is to draw.
pub(super) fn draw(path: Option<&Path>, status: &RunStatus) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    if status.rounds.iter().all(|line| line.held_out_loss.is_none()) {
        return Ok(());
    }
    let svg = picture(&status.summary.name, &status.rounds)?;
    std::fs::write(path, svg).with_context(|| format!("cannot write {}", path.display()))
}

/// A run's rounds: held-out loss, and of every peer score, rating, and what it came out with.
pub(super) fn picture(name: &str, rounds: &[RoundLine]) -> Result<String> {
    let at = |line: &RoundLine| line.round as f64;
    let losses = rounds.iter().filter_map(|line| Some((at(line), line.held_out_loss?))).collect();
    let mut nodes: Vec<NodeId> = rounds.iter().flat_map(|line| &line.peers).map(|peer| peer.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let by_peer = |value: &dyn Fn(NodeId) -> Vec<(f64, f64)>| {
        nodes.iter().map(|node| (node.short(), value(*node))).collect::<Vec<_>>()
    };
    let of = |node: NodeId| {
        rounds.iter().filter_map(move |line| Some((line, line.peers.iter().find(|peer| peer.node == node)?)))
    };
    // What does harm goes far below zero; how far does not matter.
    let score = |node| of(node).filter_map(|(l, p)| Some((at(l), p.score?.max(-0.05) * 100.0))).collect();
    let rating = |node| of(node).map(|(l, p)| (at(l), p.rating)).collect();
    let balance = |node| {
        let sums = of(node).scan(0, |sum, (line, peer)| {
            *sum += show::net(peer);
            Some((at(line), *sum as f64 / 1000.0))
        });
        sums.collect()
    };
    let panel = |title: &str, series| Panel { title: title.into(), x: "round", is_log: false, series };
    let all = [
        panel("held-out loss, nats per token", vec![("the run".into(), losses)]),
        panel("score: held-out loss improved by, %", by_peer(&score)),
        panel("rating", by_peer(&rating)),
        panel("earned less fees, sat", by_peer(&balance)),
    ];
    Ok(panels(name, &all)?)
}

#[cfg(test)]
mod tests {
    use consortium_protocol::Msat;

    use super::super::show::tests::sample;
    use super::*;

    #[test]
    fn what_a_part_is_worth_is_told_by_round_and_hour() {
        let status = sample();
        let me = status.rounds[0].peers[0].node;
        // 5 sat earned and 2 lost in two rounds of 30 seconds.
        assert_eq!(earned(&status.rounds, me), Some((1_500, 180_000)));
        assert_eq!(earned(&status.rounds, status.summary.author), None, "it has no part in it");
        let even = BreakEven::of(180_000, 60_000, Some(Msat(4_000_000)));
        let worth = Worth { msat_per_round: 1_500, msat_per_hour: 180_000, power: Some("given"), break_even: even };
        let words = worth_in_words(&status, Some(worth));
        for line in [
            "earns       1.5 sat a round, 180 sat an hour; worth the while from 300 sat an hour on\n",
            "power       60.0 W, as given\n",
            "break-even  at 3000 sat for a kilowatt-hour\n",
            "electricity 60 sat an hour, loss: a pause costs less\n",
        ] {
            assert!(words.contains(line), "{line:?} in {words}");
        }
        let unknown = worth_in_words(&status, Some(Worth { break_even: None, power: None, ..worth }));
        assert!(unknown.contains("--watts"));
    }

    #[test]
    fn a_picture_has_a_line_for_every_peer() {
        let status = sample();
        let svg = picture("x", &status.rounds).unwrap();
        assert!(svg.starts_with("<svg") && status.rounds[0].peers.iter().all(|peer| svg.contains(&peer.node.short())));
        assert!(draw(Some(Path::new("/no/such/dir/x.svg")), &status).is_err());
    }
}
