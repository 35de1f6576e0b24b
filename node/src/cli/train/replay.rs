//! `consortium-node train replay`.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use consortium_training::run::archive::Archive;
use consortium_training::run::replay::{Depth, Difference, Losses, Replayed, Step, replay};
use consortium_training::run::{Written, write_model};
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::show::astray;
use super::status::{bar, picture};
use crate::cli::terminal::{print, short_peer};
use crate::cli::units::sats;
use crate::train::view::RoundLine;

/// Differences that are shown at most.
const MOST_SHOWN: usize = 20;

/// Arguments of `train replay`.
#[derive(Args, Debug)]
#[command(
    after_help = "Needs no node and no network. From DIR, as `train export` wrote it, it checks every signature, the chain of
records, quorums and draws, and that the very same scores, ratings and pay follow from the signed losses. Where the parameters
are in DIR it applies every round's updates, which must give the state that each record names, to the bit. With --losses
it measures everything that the validators measured: what they signed must be within 1e-4 of that, or it names who
signed otherwise, and exits with 1."
)]
pub(in crate::cli) struct ReplayArgs {
    /// An exported run.
    directory: PathBuf,
    /// Measure all losses again. Takes about as long as the validators took.
    #[arg(long, conflicts_with = "log_only")]
    losses: bool,
    /// Only the log: no parameters are computed.
    #[arg(long)]
    log_only: bool,
    /// Draw held-out loss, scores, ratings and pay by round.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print JSON: a line for every round, and one for the whole.
    #[arg(long)]
    json: bool,
}

/// Replays a run.
///
/// # Errors
/// The first thing in it that does not hold, or a file that cannot be read.
pub(super) async fn run(args: ReplayArgs) -> Result<ExitCode> {
    let archive = Archive::open(&args.directory)?;
    let has_model = args.directory.join("parameters").join("000000").exists();
    let depth = match (args.losses, args.log_only || !has_model) {
        (true, _) => Depth::Losses,
        (false, true) => Depth::Log,
        (false, false) => Depth::Model,
    };
    let work = tokio::task::spawn_blocking(move || replayed(&archive, depth, args.json));
    let (done, lines) = work.await.context("replaying broke off")??;
    if let Some(path) = &args.svg {
        let svg = picture(&format!("run {}", done.run.0.short()), &lines)?;
        std::fs::write(path, svg).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let text = if args.json { format!("{}\n", whole(&done)) } else { words(&done) };
    print(&text)?;
    Ok(if done.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn replayed(archive: &Archive, depth: Depth, as_json: bool) -> Result<(Replayed, Vec<RoundLine>)> {
    let bar = (!as_json && std::io::stderr().is_terminal()).then(bar);
    let mut lines: Vec<RoundLine> = Vec::new();
    let done = replay(archive, depth, &mut |step| {
        lines.push(RoundLine::of(step.entry, lines.last().map(|line| line.at_ms)));
        if as_json {
            // Nobody reads on if this fails; the exit status is still for someone.
            let _gone = print(&format!("{}\n", round(step)));
        }
        if let Some(bar) = &bar {
            show(bar, step);
        }
    });
    bar.inspect(ProgressBar::finish_and_clear);
    Ok((done.with_context(|| format!("{} does not replay", archive.directory().display()))?, lines))
}

fn show(bar: &ProgressBar, step: &Step<'_>) {
    bar.set_length(step.rounds);
    bar.set_position(step.entry.record.round);
    if let Some(largest) = step.losses.and_then(|losses| losses.largest.as_ref()) {
        bar.set_message(format!("largest difference {:.1e}", largest.part()));
    }
}

fn round(step: &Step<'_>) -> Value {
    let record = &step.entry.record;
    json!({
        "round": record.round, "of": step.rounds, "record": record.id(), "base": record.base,
        "accepted": record.accepted().count(), "peers": record.outcomes.len(), "reverts": record.reverts,
        "losses": step.losses.map(|losses| losses.losses),
        "largest_difference": step.losses.and_then(|l| l.largest.as_ref()).map(Difference::part),
    })
}

fn whole(done: &Replayed) -> Value {
    json!({
        "run": done.run, "holds": done.holds(), "rounds": done.sums.last.round, "ended": done.sums.last.ended,
        "record": done.sums.last.id(), "state": done.state, "losses": done.losses,
        "balances_msat": done.sums.balances, "paid_msat": done.sums.paid, "strayed_rounds": done.sums.strayed,
    })
}

fn words(done: &Replayed) -> String {
    let last = &done.sums.last;
    let ended = if last.ended { "" } else { ", and goes on" };
    let mut text = format!(
        "run {}\nlog         {} rounds{ended}: signatures, chain, quorums, draws, scores and pay are as they must be\n",
        done.run, last.round
    );
    for (peer, msat) in &done.sums.balances {
        text.push_str(&format!("            {} came out with {}\n", short_peer(&peer.to_string()), sats(*msat)));
    }
    for (validator, rounds) in done.sums.strayed.iter().filter(|(_, rounds)| **rounds > 0) {
        text.push_str(&format!("            {}", astray(*validator, *rounds)));
    }
    match &done.state {
        Some(state) => {
            text.push_str(&format!(
                "parameters  every round gives the state that its record names; the last {state}\n"
            ));
        }
        None => text.push_str("parameters  not replayed: the archive has none, or only the log was asked for\n"),
    }
    match &done.losses {
        Some(losses) => text.push_str(&losses_in_words(losses)),
        None => text.push_str("losses      not measured again: --losses does that\n"),
    }
    text
}

fn losses_in_words(losses: &Losses) -> String {
    let mut text = format!("losses      {} on {} cards were measured again", losses.losses, losses.cards);
    if let Some(largest) = &losses.largest {
        text.push_str(&format!("; the largest difference is {:.2e} of the loss", largest.part()));
    }
    text.push('\n');
    if losses.unchecked_cards > 0 {
        let count = losses.unchecked_cards;
        text.push_str(&format!("            {count} cards could not be: an update that they measured was not kept\n"));
    }
    for difference in losses.beyond.iter().take(MOST_SHOWN) {
        text.push_str(&format!("NOT TRUE    {}\n", difference_in_words(difference)));
    }
    if losses.beyond_count > 0 {
        text.push_str(&format!("            {} losses differ by more than 1e-4\n", losses.beyond_count));
    }
    for refused in losses.false_refusals.iter().take(MOST_SHOWN) {
        text.push_str(&format!(
            "NOT TRUE    validator {} in round {}: refused the update of {} as {:?}, which it is not\n",
            refused.validator, refused.round, refused.peer, refused.refusal
        ));
    }
    match (losses.medians_hold(), losses.hold()) {
        (true, true) => {}
        (true, false) => text.push_str("            scores and pay are right all the same: they follow from medians\n"),
        (false, _) => text.push_str(&format!(
            "NOT TRUE    {} losses in the records, from which scores and pay follow, are none that anyone could measure\n",
            losses.false_medians
        )),
    }
    text
}

fn difference_in_words(d: &Difference) -> String {
    let about = d.peer.map_or("the last aggregate".to_owned(), |peer| format!("the update of {peer}"));
    format!(
        "validator {} in round {}, {about}, {} batch: signed {:.6}, is {:.6} ({:.1e} of it)",
        d.validator,
        d.round,
        d.batch,
        d.said,
        d.found,
        d.part()
    )
}

/// Writes the newest parameters of an exported run as a model.
///
/// # Errors
/// When there are none, or they cannot be written.
pub(super) async fn model(archive: &Path, directory: &Path) -> Result<Written> {
    let (archive, directory) = (Archive::open(archive)?, directory.to_owned());
    let log = log_from(archive.directory(), &directory);
    let work = tokio::task::spawn_blocking(move || write_model(&archive, &directory, &log));
    Ok(work.await.context("writing the model broke off")??)
}

/// Where a model's card says the archive is: seen from the model.
fn log_from(archive: &Path, model: &Path) -> String {
    match (archive.strip_prefix(model), model.strip_prefix(archive)) {
        (Ok(below), _) => below.display().to_string(),
        (_, Ok(below)) => vec![".."; below.components().count()].join("/"),
        _ => archive.file_name().map_or_else(|| "run".to_owned(), |name| name.to_string_lossy().into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use consortium_protocol::RootKey;
    use consortium_protocol::wire::train::Refusal;
    use consortium_training::run::replay::FalseRefusal;

    use super::*;

    #[test]
    fn what_is_not_true_is_said_with_who_signed_it() {
        let id = |n| RootKey::from_seed([n; 32]).node_id();
        let (validator, peer) = (id(1), id(2));
        let batch = "held-out 2".to_owned();
        let off = Difference { round: 7, validator, peer: Some(peer), batch, said: 2.0, found: 2.5 };
        let refused = FalseRefusal { round: 8, validator, peer, refusal: Refusal::Malformed };
        let losses = Losses {
            cards: 3,
            losses: 42,
            largest: Some(off.clone()),
            beyond: vec![off],
            beyond_count: 1,
            false_refusals: vec![refused],
            ..Losses::default()
        };
        let words = losses_in_words(&losses);
        for said in [
            "42 on 3 cards were measured again; the largest difference is 2.00e-1 of the loss\n".to_owned(),
            format!(
                "validator {validator} in round 7, the update of {peer}, held-out 2 batch: signed 2.000000, is 2.500000"
            ),
            format!("validator {validator} in round 8: refused the update of {peer} as Malformed"),
            "right all the same: they follow from medians".to_owned(),
        ] {
            assert!(words.contains(&said), "{said:?} in {words}");
        }
        let wrong = losses_in_words(&Losses { false_medians: 2, ..losses });
        assert!(wrong.contains("2 losses in the records, from which scores and pay follow"), "{wrong}");
    }

    #[test]
    fn a_card_says_where_the_log_is_from_where_it_stands() {
        let of = |archive: &str, model: &str| log_from(Path::new(archive), Path::new(model));
        assert_eq!(of("/a/m/run", "/a/m"), "run");
        assert_eq!(of("/a/r", "/a/r/model"), "..");
        assert_eq!(of("/a/r", "/b/m"), "r");
    }
}
