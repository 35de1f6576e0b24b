//! `consortium-node train local`: a whole run within one process.

use std::io::IsTerminal as _;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use consortium_protocol::wire::train::{RunId, RunSpec, StateFile};
use consortium_protocol::{NodeId, RootKey, Signed};
use consortium_training::collective::Task;
use consortium_training::rounds::Wish;
use consortium_training::run::archive::Archive;
use consortium_training::run::replay::{Depth, Replayed, replay};
use consortium_training::run::{Expected, Prepared, Written, examination_of, state_of, write_model};
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
use crate::train::{Kept, Parts, Roster, RunHandle, Shelf, Store, export, spawn};

/// Time between two looks at the run.
const LOOK: Duration = Duration::from_millis(500);
/// Room for the files of a node, in bytes.
const ROOM: u64 = 64 << 30;
/// How long a message takes within the process, at most, on a machine that is busy.
const LATENCY_MS: u64 = 250;

/// Arguments of `train local`.
#[derive(Args, Debug)]
#[command(
    after_help = "Writes to DIR: the model as nodes serve it (`consortium-node start --model DIR`), README.md that says what it
is, loss.svg, and in DIR/run the whole log with all updates, from which `consortium-node train replay DIR/run --losses`
computes all of it again. Nobody is paid: nothing leaves this process.

  consortium-node train local --out ./model --model small --rounds 20"
)]
pub(in crate::cli) struct LocalArgs {
    /// Directory to write to: empty, or not there.
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
    directory: PathBuf,
    blobs: Blobs,
    handle: RunHandle,
}

/// All nodes of the run, and where they meet.
struct Cast {
    spec: Signed<RunSpec>,
    nodes: Vec<Node>,
    stop: CancellationToken,
}

/// Trains on this machine alone.
///
/// # Errors
/// When the wishes make no run, the directory cannot be written, or the run does not come to its end.
pub(super) async fn run(args: LocalArgs) -> Result<()> {
    ensure_empty(&args.out)?;
    let keys: Vec<Arc<RootKey>> = (0..args.validators + args.peers).map(|_| fresh_key()).collect::<Result<_>>()?;
    let (as_json, svg, out) = (args.json, args.svg.clone(), args.out.clone());
    let validators = usize::from(args.validators);
    let made = prepare(args, &keys[..validators]).await?;
    let author = Arc::clone(&keys[0]);
    let expected = made.expected;
    let cast = Cast::start(made, &keys, validators, &out).await?;
    introduce(&cast.spec, expected, as_json)?;
    let followed = follow(&cast, svg.as_deref(), as_json).await;
    cast.halt().await;
    followed?;
    let (written, replayed) = cast.finish(&out).await?;
    let text = match as_json {
        true => {
            let (state, balances) = (&replayed.state, &replayed.sums.balances);
            format!(
                "{}\n",
                json!({"model": written, "state": state, "balances_msat": balances, "author": author.node_id()})
            )
        }
        false => in_words(&written, &replayed, &out),
    };
    print(&text)?;
    Ok(())
}

fn ensure_empty(directory: &Path) -> Result<()> {
    let taken = std::fs::read_dir(directory).is_ok_and(|mut files| files.next().is_some());
    ensure!(!taken, "{} is not empty: choose a directory that is, or one that is not there", directory.display());
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))
}

fn fresh_key() -> Result<Arc<RootKey>> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("this machine gives no random numbers")?;
    Ok(Arc::new(RootKey::from_seed(seed)))
}

async fn prepare(args: LocalArgs, validators: &[Arc<RootKey>]) -> Result<Prepared> {
    let peers = u32::from(args.peers);
    let mut wishes = args.plan.wishes(SwarmArgs::default())?;
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
    remark("training the tokenizer and measuring a step");
    let work = tokio::task::spawn_blocking(move || plan.prepare(1));
    let mut made = work.await.context("preparing broke off")??;
    // The clock starts when all is ready.
    made.spec.starts_at_ms = made.spec.starts_at_ms.max(wall_ms());
    Ok(made)
}

impl Cast {
    async fn start(made: Prepared, keys: &[Arc<RootKey>], validators: usize, out: &Path) -> Result<Self> {
        let Prepared { spec, initial, task, tokenizer, .. } = made;
        let spec = Signed::sign(&keys[0], spec);
        let (hub, task, stop) = (Hub::default(), Arc::new(task), CancellationToken::new());
        let content = initial.to_bytes()?;
        let mut nodes = Vec::new();
        for (n, key) in keys.iter().enumerate() {
            let root = out.join("nodes").join(n.to_string());
            let directory = root.join("run");
            Store::create(&directory, &spec)?;
            let blobs = Blobs::open(root.join("blobs"), ROOM)?;
            blobs.put(tokenizer.clone()).await?;
            let file = blobs.put(content.clone()).await?;
            let file = StateFile { state: state_of(&initial), file, bytes: content.len() as u64 };
            let kept = Kept { newest: Some((0, file)), before: None, initial: Some(file) };
            Store::keep(&directory, &kept)?;
            let shelf = Shelf::new(kept);
            let (wire, inbox) = hub.enter(RunId::of(&spec), key.node_id(), blobs.clone(), shelf.clone());
            let handle = spawn(Parts {
                key: Arc::clone(key),
                wish: if n < validators { Wish::Validate } else { Wish::Train },
                spec: spec.clone(),
                task: Arc::<Task>::clone(&task),
                examination: examination_of(spec.payload()),
                directory: directory.clone(),
                blobs: blobs.clone(),
                shelf,
                roster: Roster::default(),
                wire,
                inbox,
                stop: stop.child_token(),
            })?;
            nodes.push(Node { directory, blobs, handle });
        }
        Ok(Self { spec, nodes, stop })
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
    async fn finish(self, out: &Path) -> Result<(Written, Replayed)> {
        let judge = &self.nodes[0];
        let (spec, kept, out) = (self.spec.clone(), judge.handle.shelf().kept(), out.to_owned());
        let (directory, blobs) = (judge.directory.clone(), judge.blobs.clone());
        let work = tokio::task::spawn_blocking(move || -> Result<(Written, Replayed)> {
            export::write(&spec, &directory, kept, &blobs, &out.join("run"))?;
            let archive = Archive::open(&out.join("run"))?;
            let replayed = replay(&archive, Depth::Model, &mut |_| {}).context("the run does not replay")?;
            let written = write_model(&archive, &out, "run")?;
            let nodes = out.join("nodes");
            std::fs::remove_dir_all(&nodes).with_context(|| format!("cannot remove {}", nodes.display()))?;
            Ok((written, replayed))
        });
        work.await.context("writing the model broke off")?
    }
}

fn introduce(spec: &Signed<RunSpec>, expected: Expected, as_json: bool) -> Result<()> {
    let announced = Announced { run: Some(RunId::of(spec)), spec: spec.payload().clone(), expected };
    let text = match as_json {
        true => format!("{}\n", serde_json::to_string(&announced)?),
        false => format!("run {}\n", show::announced(&announced)),
    };
    print(&text)?;
    Ok(())
}

/// Tells how it goes until the end.
async fn follow(cast: &Cast, svg: Option<&Path>, as_json: bool) -> Result<()> {
    let bar = (!as_json && std::io::stderr().is_terminal()).then(status::bar);
    let (began, patience, mut told) = (Instant::now(), cast.patience(), 0);
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
            _ = tokio::signal::ctrl_c() => bail!("interrupted in round {}", now.summary.round),
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
