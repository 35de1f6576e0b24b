//! `consortium-node train local`: a whole run within one process.

use std::io::IsTerminal as _;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use consortium_protocol::wire::train::{RunId, RunSpec};
use consortium_protocol::{NodeId, RootKey, Signed};
use consortium_training::collective::Task;
use consortium_training::rounds::Wish;
use consortium_training::run::archive::Archive;
use consortium_training::run::replay::{Depth, Replayed, replay};
use consortium_training::run::{Expected, Prepared, Written, examination_of, write_model};
use indicatif::ProgressBar;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::announce::Announced;
use super::plan::{PlanArgs, SwarmArgs};
use super::{show, status};
use crate::blobs::Blobs;
use crate::cli::terminal::{print, remark};
use crate::clock::wall_ms;
use crate::train::hub::Hub;
use crate::train::view::{Phase, RunStatus};
use crate::train::{Parts, Roster, RunHandle, Shelf, Store, export, files, spawn};

mod begun;

use begun::{Asked, Begun, Site};

/// Time between two looks at the run.
const LOOK: Duration = Duration::from_millis(500);
/// How long a message takes within the process, at most, on a machine that is busy.
const LATENCY_MS: u64 = 250;

/// Arguments of `train local`.
#[derive(Args, Debug)]
#[command(
    after_help = "Writes to DIR: the model as nodes serve it (`consortium-node start --model DIR`), README.md that says what it
is, loss.svg, and in DIR/run the whole log with all updates, from which `consortium-node train replay DIR/run --losses`
computes all of it again. Nobody is paid: nothing leaves this process. If it is interrupted, the same command goes on where
it was.

  consortium-node train local --out ./model --model small --rounds 20"
)]
pub(in crate::cli) struct LocalArgs {
    /// Directory to write to: empty, not there, or one in which the same command was interrupted, which then goes on.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Peers that train, each on a thread of its own.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    peers: u8,
    /// Validators besides them.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=9))]
    validators: u8,
    #[command(flatten)]
    plan: PlanArgs,
    /// Draw losses, scores and ratings of every peer, after every round.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print JSON: a line for the run, one for every round, and one at the end.
    #[arg(long)]
    json: bool,
}

/// A node of the run.
struct Node {
    blobs: Blobs,
    handle: RunHandle,
}

/// All nodes of the run.
struct Cast {
    site: Site,
    spec: Signed<RunSpec>,
    nodes: Vec<Node>,
    /// The last round that was certain when they started.
    after: u64,
    stop: CancellationToken,
}

/// Trains on this machine alone.
///
/// # Errors
/// When the wishes make no run, the directory cannot be written, or the run does not come to its end.
pub(super) async fn run(args: LocalArgs) -> Result<()> {
    let (as_json, svg) = (args.json, args.svg.clone());
    let plan = args.plan.wishes(SwarmArgs::default())?;
    let asked = Asked { peers: args.peers, validators: args.validators, plan };
    let site = Site::open(&args.out)?;
    let begun = match site.begun(&asked)? {
        Some(begun) => begun,
        None => begin(&site, asked).await?,
    };
    let cast = Cast::start(site, &begun.asked)?;
    cast.introduce(begun.expected, as_json)?;
    let followed = follow(&cast, svg.as_deref(), as_json).await;
    cast.halt().await;
    followed?;
    let (out, author) = (args.out, cast.spec.signer());
    let (written, replayed) = cast.finish().await?;
    let text = match as_json {
        true => {
            let (state, balances) = (&replayed.state, &replayed.sums.balances);
            format!("{}\n", json!({"model": written, "state": state, "balances_msat": balances, "author": author}))
        }
        false => in_words(&written, &replayed, &out),
    };
    print(&text)?;
    Ok(())
}

async fn begin(site: &Site, asked: Asked) -> Result<Begun> {
    let keys = site.make_keys(asked.nodes())?;
    let made = prepare(&asked, &keys[..usize::from(asked.validators)]).await?;
    site.begin(asked, made, &keys[0]).await
}

async fn prepare(asked: &Asked, validators: &[Arc<RootKey>]) -> Result<Prepared> {
    let (peers, mut wishes) = (u32::from(asked.peers), asked.plan.clone());
    wishes.validators = validators.iter().map(|key| key.node_id()).collect();
    wishes.reserves = Vec::new();
    // Nobody has a wallet here.
    wishes.bond_sat = None;
    (wishes.least_peers, wishes.most_peers) = (Some(peers), Some(peers));
    wishes.latency_ms = wishes.latency_ms.or(Some(LATENCY_MS));
    wishes.link_mbit = wishes.link_mbit.or(Some(1000.0));
    let mut plan = wishes.plan(validators[0].node_id(), wall_ms());
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get) as f64;
    plan.crowding = (f64::from(peers) / cores).max(1.0);
    remark(match plan.data.paths.is_empty() {
        true => "training the tokenizer and measuring a step",
        false => "reading the data, training the tokenizer and measuring a step",
    });
    let work = tokio::task::spawn_blocking(move || plan.prepare(1));
    let mut made = work.await.context("preparing broke off")??;
    // The clock starts when all is ready.
    made.spec.starts_at_ms = made.spec.starts_at_ms.max(wall_ms());
    Ok(made)
}

impl Cast {
    /// Starts all nodes, from where they stand.
    fn start(site: Site, asked: &Asked) -> Result<Self> {
        let spec = Store::spec(&site.node(0).join("run"))?;
        let (hub, task, stop) = (Hub::default(), task(&site, spec.payload())?, CancellationToken::new());
        let (mut after, mut now_ms) = (0, spec.payload().starts_at_ms);
        for n in 0..asked.nodes() {
            Store::look(&site.node(n).join("run"), |entry| {
                (after, now_ms) = (after.max(entry.record.round), now_ms.max(entry.record.at_ms));
            })?;
        }
        if after == 0 {
            now_ms = wall_ms();
        }
        let mut nodes = Vec::new();
        for n in 0..asked.nodes() {
            let (key, directory, blobs) = (site.key(n)?, site.node(n).join("run"), site.blobs(n)?);
            let shelf = Shelf::new(Store::kept(&directory)?);
            let (wire, inbox) = hub.enter(RunId::of(&spec), key.node_id(), blobs.clone(), shelf.clone());
            let handle = spawn(Parts {
                key,
                wish: if n < asked.validators { Wish::Validate } else { Wish::Train },
                spec: spec.clone(),
                task: Arc::clone(&task),
                examination: examination_of(spec.payload()),
                directory,
                blobs: blobs.clone(),
                shelf,
                roster: Roster::default(),
                wire,
                inbox,
                // Their clock stood still while nobody trained, so that no deadline has passed.
                now_ms,
                stop: stop.child_token(),
            })?;
            nodes.push(Node { blobs, handle });
        }
        Ok(Self { site, spec, nodes, after, stop })
    }

    /// Tells what the run is, and from where it goes on.
    fn introduce(&self, expected: Expected, as_json: bool) -> Result<()> {
        let announced = Announced { run: Some(RunId::of(&self.spec)), spec: self.spec.payload().clone(), expected };
        let text = match as_json {
            true => format!("{}\n", serde_json::to_string(&announced)?),
            false => format!("run {}\n", show::announced(&announced)),
        };
        print(&text)?;
        if self.after > 0 {
            remark(&format!("it goes on after round {}", self.after));
        }
        Ok(())
    }

    /// How the run goes, as its first validator sees it.
    fn status(&self) -> RunStatus {
        self.nodes[0].handle.status()
    }

    /// Whether all have the last parameters.
    fn is_over(&self) -> bool {
        self.nodes.iter().all(|node| {
            let status = node.handle.status();
            status.phase == Phase::Ended && status.in_sync
        })
    }

    /// As long as all rounds may take, if every one of them uses up its time.
    fn patience(&self) -> Duration {
        let p = &self.spec.payload().phases;
        let round = p.train_ms + p.commit_ms + p.reveal_ms + p.score_ms + 4 * p.settle_ms;
        Duration::from_millis(round.saturating_mul(self.spec.payload().rounds + 3)) + Duration::from_secs(60)
    }

    async fn halt(&self) {
        self.stop.cancel();
        for node in &self.nodes {
            node.handle.stop().await;
        }
    }

    /// Writes log and model, and replays what was written.
    async fn finish(self) -> Result<(Written, Replayed)> {
        let (judge, site, spec) = (&self.nodes[0], self.site, self.spec);
        let (kept, blobs) = (judge.handle.shelf().kept(), judge.blobs.clone());
        let work = tokio::task::spawn_blocking(move || -> Result<(Written, Replayed)> {
            let out = site.out();
            export::write(&spec, &site.node(0).join("run"), kept, None, &blobs, &out.join("run"))?;
            let archive = Archive::open(&out.join("run"))?;
            let replayed = replay(&archive, Depth::Model, &mut |_| {}).context("the run does not replay")?;
            let written = write_model(&archive, out, "run")?;
            site.clear()?;
            Ok((written, replayed))
        });
        work.await.context("writing the model broke off")?
    }
}

/// What is computed in the run.
fn task(site: &Site, spec: &RunSpec) -> Result<Arc<Task>> {
    Ok(Arc::new(files::task(spec, &site.blobs(0)?, 1)?))
}

/// Tells how it goes until the end.
async fn follow(cast: &Cast, svg: Option<&Path>, as_json: bool) -> Result<()> {
    let bar = (!as_json && std::io::stderr().is_terminal()).then(status::bar);
    let (began, patience, mut told) = (Instant::now(), cast.patience(), cast.after);
    while !cast.is_over() || cast.status().summary.round > told {
        let now = cast.status();
        for line in now.rounds.iter().filter(|line| line.round > told) {
            let text = match as_json {
                true => format!("{}\n", json!({"round": line})),
                false => format!("{}\n", show::line(line, None::<NodeId>)),
            };
            bar.as_ref().map_or_else(|| print(&text), |bar| bar.suspend(|| print(&text)))?;
            status::draw(svg, &now)?;
        }
        told = now.rounds.last().map_or(told, |line| line.round);
        bar.iter().for_each(|bar| status::progress(bar, &now));
        if began.elapsed() > patience {
            bail!(
                "the run came to round {} and no further{}",
                now.summary.round,
                now.last_error.map(|error| format!(": {error}")).unwrap_or_default()
            );
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = tokio::signal::ctrl_c() => bail!(
                "interrupted after round {}: the same command goes on from there", now.summary.round
            ),
        }
    }
    bar.iter().for_each(ProgressBar::finish_and_clear);
    Ok(())
}

fn in_words(written: &Written, replayed: &Replayed, out: &Path) -> String {
    let out = out.display();
    let loss = match written.held_out.first() {
        Some(first) => format!("held-out loss from {:.4} to {:.4} nats per token", first.1, written.loss),
        None => format!("held-out loss {:.4} nats per token; no update was let in", written.loss),
    };
    let state = replayed.state.map(|state| state.to_string()).unwrap_or_default();
    format!(
        "\n{loss}; {} parameters, state {state}\nthe log replays: its signatures, scores and parameters are as they must \
         be\n\nserve it     consortium-node start --model {out}\ncheck it     consortium-node train replay {out}/run --losses\n",
        written.parameters
    )
}

#[cfg(test)]
mod tests;
