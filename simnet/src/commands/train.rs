//! `simnet train`: trains a small model with peers of all kinds, and prints who earned what.

use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result};
use consortium_simnet::train::arena::Arena;
use consortium_simnet::train::baselines::{dense, single};
use consortium_simnet::train::cast::{Cast, Role};
use consortium_simnet::train::curve::Curve;
use consortium_simnet::train::report::{PeerTotal, RoundReport, totals};
use consortium_simnet::train::setting::Setting;
use consortium_simnet::train::svg;
use serde_json::json;

use super::exec::code;
use super::table::aligned;
use super::terminal::print;
use crate::cli;
use crate::swarm::settlement::sats;

/// Rounds that do not count for the share of updates let in: ratings and the inner learning rate warm up.
const WARMUP: usize = 3;

/// Plays a run for every seed, and prints.
pub(crate) fn run(arguments: &cli::Train) -> Result<ExitCode> {
    let mut played = Vec::new();
    for seed in (arguments.seed..).take(arguments.seeds as usize) {
        let mut setting = Setting::new(seed, arguments.rounds);
        setting.steps = arguments.steps.unwrap_or(setting.steps);
        setting.batch = arguments.batch.unwrap_or(setting.batch);
        (setting.inner_rate, setting.final_part) = (arguments.inner_rate, arguments.final_part);
        setting.overlap = arguments.overlap;
        let (start, rounds) = play(arguments, &setting, &arguments.peers)?;
        let mut curves = vec![Curve::of("the run", start, &rounds, setting.overlap)];
        curves.extend(baselines(arguments, &setting)?);
        say_curves(arguments, &curves)?;
        played.push((setting, rounds, curves));
    }
    if let (Some(path), Some((setting, rounds, curves))) = (&arguments.svg, played.first()) {
        let title = format!("simnet train, seed {}: {}", setting.seed, arguments.peers.names().join(", "));
        write(path, &svg::document(&title, rounds, curves)?)?;
    }
    if played.len() > 1 && !arguments.json {
        print(&over_seeds(arguments, &played.iter().map(|(_, rounds, _)| &rounds[..]).collect::<Vec<_>>()))?;
    }
    let Some(command) = &arguments.exec else { return Ok(ExitCode::SUCCESS) };
    let runs = played.iter().map(|(setting, rounds, curves)| {
        json!({
            "setting": setting, "curves": curves, "rounds": rounds, "totals": totals(rounds, WARMUP),
            "rounds_after_warm_up": rounds.len().saturating_sub(WARMUP),
        })
    });
    let results = json!({ "peers": arguments.peers.names(), "runs": runs.collect::<Vec<_>>() });
    hand_over(command, &results.to_string())
}

/// Runs a command in a shell with this on its standard input.
fn hand_over(command: &str, results: &str) -> Result<ExitCode> {
    let mut shell = Command::new("sh");
    let mut child = shell.args(["-c", command]).stdin(Stdio::piped()).spawn().context("cannot run the command")?;
    if let Some(mut input) = child.stdin.take() {
        match input.write_all(results.as_bytes()) {
            // It need not read them.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                return Err(error).context("cannot tell the results");
            }
            _ => {}
        }
    }
    Ok(ExitCode::from(code(child.wait()?)))
}

/// Answers with the held-out loss before the first round, and all rounds.
fn play(arguments: &cli::Train, setting: &Setting, cast: &Cast) -> Result<(f64, Vec<RoundReport>)> {
    let task = setting.task()?;
    let share = setting.examination.share(task.recipe().rows_each());
    let mut arena = Arena::new(*setting, cast, task.clone())?;
    let start = arena.held_out_loss()?;
    match arguments.json {
        true => print(&json!({ "setting": setting, "peers": cast.names(), "held_out_loss": start }).to_string())?,
        false => print(&format!(
            "seed {}: {} parameters, {} peers, {} rounds of {} steps of {} rows; validation costs {:.1} % of training; \
             held-out loss {start:.4}",
            setting.seed,
            task.layout().parameters(),
            cast.roles().len(),
            setting.rounds,
            setting.steps,
            setting.batch,
            100.0 * share,
        ))?,
    }
    let mut rounds = Vec::new();
    for _ in 0..setting.rounds {
        let round = arena.play()?;
        match arguments.json {
            true => print(&serde_json::to_string(&json!({ "seed": setting.seed, "round": round }))?)?,
            false => print(&line(&round))?,
        }
        rounds.push(round);
    }
    if !arguments.json {
        print(&table(&totals(&rounds, WARMUP), rounds.len()))?;
    }
    Ok((start, rounds))
}

/// One round in one line: what became of each update, and what it was paid.
fn line(round: &RoundReport) -> String {
    let peers = round.peers.iter().map(|peer| {
        let score = peer.score.map_or_else(String::new, |score| format!(" {:+.2}%", 100.0 * score));
        match peer.accepted() {
            true => format!("{}{score} {} sat", peer.peer, sats(peer.reward_msat)),
            false => format!("{}{score} {}", peer.peer, peer.fate),
        }
    });
    let peers: Vec<String> = peers.collect();
    let reverted = if round.reverted { "REVERTED; " } else { "" };
    format!(
        "round {:>3}  loss {:.4}  {:.1} s  {reverted}{}",
        round.round + 1,
        round.held_out_loss,
        round.seconds,
        peers.join(", ")
    )
}

fn table(totals: &[PeerTotal], rounds: usize) -> String {
    let head = [
        "peer",
        "score",
        "accepted",
        "after warm-up",
        "rating",
        "reliability",
        "reward",
        "fees",
        "gain",
        "refused for",
    ];
    let mut lines = vec![head.map(str::to_owned)];
    lines.extend(totals.iter().map(|t| {
        let refusals: Vec<String> = t.refusals.iter().map(|(fate, count)| format!("{fate} {count}")).collect();
        [
            t.peer.clone(),
            format!("{:+.2} %", 100.0 * t.score),
            format!("{} of {rounds}", t.accepted),
            format!("{} of {}", t.accepted_later, rounds.saturating_sub(WARMUP)),
            format!("{:.1}", t.rating),
            format!("{:+.2}", t.reliability),
            sats(t.reward_msat),
            sats(t.fee_msat),
            format!("{:+.1}", t.gain_msat as f64 / 1000.0),
            refusals.join(", "),
        ]
    }));
    aligned(&lines)
}

/// What the run is held against.
fn baselines(arguments: &cli::Train, setting: &Setting) -> Result<Vec<Curve>> {
    let honest = arguments.peers.honest_alone();
    let (peers, task) = (honest.roles().len(), setting.task()?);
    let mut curves = Vec::new();
    if arguments.alone && arguments.peers.roles().iter().any(|role| *role != Role::Honest) {
        let (start, rounds) = play(arguments, setting, &honest)?;
        curves.push(Curve::of("the honest alone", start, &rounds, setting.overlap));
    }
    if arguments.dense {
        curves.push(dense(setting, &task, peers)?);
    }
    if arguments.single {
        curves.push(single(setting, &task, peers)?);
    }
    Ok(curves)
}

fn say_curves(arguments: &cli::Train, curves: &[Curve]) -> Result<()> {
    let Some(run) = curves.first().map(Curve::end) else { return Ok(()) };
    if arguments.json {
        return print(&json!({ "curves": curves }).to_string());
    }
    for curve in curves {
        let end = curve.end();
        print(&format!(
            "{:<24} held-out loss {end:.4} ({:+.2} % of the run's), {:.0} s with a core and a link for each peer",
            curve.name,
            100.0 * (end / run - 1.0),
            curve.seconds(),
        ))?;
    }
    print("")
}

/// Every peer over all seeds.
fn over_seeds(arguments: &cli::Train, runs: &[&[RoundReport]]) -> String {
    let all: Vec<Vec<PeerTotal>> = runs.iter().map(|rounds| totals(rounds, WARMUP)).collect();
    let head = ["over all seeds", "accepted after warm-up", "mean gain", "least", "most", "seeds with a loss"];
    let mut lines = vec![head.map(str::to_owned)];
    for (index, name) in arguments.peers.names().into_iter().enumerate() {
        let of = |value: fn(&PeerTotal) -> f64| all.iter().map(|run| value(&run[index])).collect::<Vec<f64>>();
        let gains = of(|t| t.gain_msat as f64 / 1000.0);
        let rounds = runs.iter().map(|r| r.len().saturating_sub(WARMUP)).sum::<usize>().max(1);
        lines.push([
            name,
            format!("{:.1} %", 100.0 * of(|t| t.accepted_later as f64).iter().sum::<f64>() / rounds as f64),
            format!("{:+.1}", gains.iter().sum::<f64>() / gains.len() as f64),
            format!("{:+.1}", gains.iter().copied().fold(f64::INFINITY, f64::min)),
            format!("{:+.1}", gains.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
            format!("{} of {}", gains.iter().filter(|gain| **gain < 0.0).count(), gains.len()),
        ]);
    }
    aligned(&lines)
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
