//! How long a newcomer takes from joining a run to holding its parameters, and what it fetches for that.
//!
//! ```text
//! cargo run --release -p consortium-node --example time_to_join -- [--model small|tiny] [--rounds R] [--donors N]
//! ```
//! A run over TCP on this machine: a validator, which announces it, and peers. When it has R rounds, newcomers come one after
//! the other, each with an empty directory and the address of one node, and train: while there are N donors, while one of
//! them leaves as soon as something of the parameters has come, and while there are two. Rounds have a single local step,
//! so that R are soon there; log and parameters are as large as ever. The run goes on all the while, and all of it shares
//! this machine's cores.
//!
//! *found*: specification and tokenizer are here. *holds*: so are all records up to the moment at which it came, and the parameters after
//! the last of them or a later one.
//!
//! Measured on two cores, which the run shares, a build for development; `small`, of whose parameters a file has 0.4 MB:
//!
//! | rounds | log | five donors | one leaves in between | two donors |
//! |---|---|---|---|---|
//! | 20 | 0.09 MB | 0.17 s | 0.10 s | 0.37 s |
//! | 200 | 0.9 MB | 0.66 s | 0.38 s | 2.3 s |
//!
//! When records came one for each question, 200 rounds took 15.9 s: so many questions are not answered at once.

#![allow(clippy::print_stdout)]

use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use consortium_node::blobs::Blobs;
use consortium_node::clock::wall_ms;
use consortium_node::ledger::ledger::Ledger;
use consortium_node::swarm::{self, SwarmConfig, SwarmEvent, SwarmHandle, TransportKind};
use consortium_node::train::view::RunStatus;
use consortium_node::train::{Payouts, TrainingParts, Trainings};
use consortium_node::training::rounds::Wish;
use consortium_node::training::run::{ModelSize, Wishes};
use consortium_protocol::cluster::ClusterName;
use consortium_protocol::wire::fact::Fact;
use consortium_protocol::wire::train::{RunId, run_key};
use consortium_protocol::wire::{BLOB, TRAIN};
use consortium_protocol::{RootKey, Signed};
use tokio_util::sync::CancellationToken;

/// Time for anything to happen.
const PATIENCE: Duration = Duration::from_secs(900);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(5);
/// Room for the files of a node, in bytes.
const ROOM: u64 = 8 << 30;
/// Rounds after those wanted in which newcomers may come.
const MORE: u64 = 10_000;

/// What is measured.
#[derive(Parser)]
struct Args {
    /// What is trained.
    #[arg(long, default_value = "small")]
    model: ModelSize,
    /// Rounds that the run has when newcomers come.
    #[arg(long, default_value_t = 20)]
    rounds: u64,
    /// Nodes that have the parameters then: a validator and peers.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(3..=32))]
    donors: u8,
}

/// A node of the run.
struct Node {
    swarm: SwarmHandle,
    runs: Trainings,
    stop: CancellationToken,
    dir: tempfile::TempDir,
}

/// What a newcomer took.
struct Joined {
    found: Duration,
    holds: Duration,
    status: RunStatus,
}

impl Node {
    async fn start(n: u8, bootstrap: &[&Self]) -> Result<Self> {
        let key = key(n);
        let config = SwarmConfig {
            key: &key,
            cluster: "joining".parse::<ClusterName>()?.id(),
            listen: vec!["/ip4/127.0.0.1/tcp/0".to_owned()],
            bootstrap: bootstrap.iter().filter_map(|node| node.swarm.listening().borrow().first().cloned()).collect(),
            mdns: false,
            transport: TransportKind::Internet,
        };
        let (swarm, mut events, [files, questions]) = swarm::spawn(config, [BLOB, TRAIN])?;
        swarm.listening().wait_for(|all| !all.is_empty()).await.context("it listens nowhere")?;
        let (dir, stop) = (tempfile::tempdir()?, CancellationToken::new());
        let blobs = Blobs::open(dir.path().join("blobs"), ROOM)?;
        tokio::spawn(blobs.clone().serve(files, stop.clone()));
        let ledger = Ledger::open(&dir.path().join("ledger.db"), key.node_id())?;
        let pay = Payouts::new(
            ledger,
            #[cfg(feature = "lightning")]
            None,
            stop.clone(),
        );
        let (data_dir, swarm_too) = (dir.path().to_owned(), swarm.clone());
        let parts = TrainingParts { key, data_dir, blobs, swarm: swarm_too, threads: 1, pay, stop: stop.clone() };
        let runs = Trainings::open(parts)?;
        tokio::spawn(runs.clone().serve(questions, stop.clone()));
        let hearing = runs.clone();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if let SwarmEvent::Fact { fact: Fact::Run(spec), .. } = event {
                    hearing.heard(spec);
                }
            }
        });
        Ok(Self { swarm, runs, stop, dir })
    }

    /// Waits for a status.
    async fn until(&self, run: RunId, holds: impl Fn(&RunStatus) -> bool) -> Result<RunStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.runs.status(&run) {
                Some(status) if holds(&status) => return Ok(status),
                status if Instant::now() > deadline => bail!("it takes too long: {status:?}"),
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Takes the node away at once.
    async fn vanish(self) {
        self.stop.cancel();
        self.swarm.shutdown().await;
        self.runs.stop().await;
    }

    /// Whether something of a file has come that is not whole.
    fn fetches(&self) -> bool {
        let parts = |path: &Path| path.extension().is_some_and(|end| end == "partial");
        files(&self.dir.path().join("blobs")).iter().any(|(path, _)| parts(path))
    }

    /// Bytes of log and whole files.
    fn fetched(&self, run: RunId) -> (u64, u64) {
        let log = self.runs.directory(run).and_then(|path| Some(path.join("log").metadata().ok()?.len()));
        let all = files(&self.dir.path().join("blobs"));
        (log.unwrap_or(0), all.iter().filter(|(path, _)| path.extension().is_none()).map(|(_, bytes)| bytes).sum())
    }
}

fn key(n: u8) -> Arc<RootKey> {
    Arc::new(RootKey::from_seed([n; 32]))
}

fn files(directory: &Path) -> Vec<(std::path::PathBuf, u64)> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?.len()))).collect()
}

/// Announces the run: the first node judges it.
async fn announce(node: &Node, args: &Args) -> Result<RunId> {
    let author = key(0);
    let wishes = Wishes {
        model: Some(args.model),
        rounds: Some(args.rounds + MORE),
        local_steps: Some(1),
        batch: Some(4),
        sequence: Some(16),
        least_peers: Some(1),
        most_peers: Some(u32::from(args.donors) + 3),
        link_mbit: Some(1000.0),
        ..Wishes::default()
    };
    let mut plan = wishes.plan(author.node_id(), wall_ms());
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    plan.crowding = f64::from(args.donors) / cores as f64;
    let made = tokio::task::spawn_blocking(move || plan.prepare(1)).await??;
    let initial = made.initial.to_bytes()?;
    Ok(node.runs.announce(Signed::sign(&author, made.spec), made.tokenizer, initial, None).await?)
}

/// Has a newcomer join by way of `by`, and `leaves` vanish as soon as something of the parameters has come.
async fn join(n: u8, run: RunId, by: &Node, leaves: Option<Node>) -> Result<(Node, Joined)> {
    let node = Node::start(n, &[by]).await?;
    // What is known before is no part of the run.
    while node.swarm.providers(run_key(run), Duration::from_secs(5)).await?.is_empty() {
        tokio::time::sleep(LOOK).await;
    }
    // It has to come up with the others: on the way there it holds the parameters of rounds long past.
    let there = by.runs.status(&run).context("the run is gone")?.summary.round;
    let began = Instant::now();
    node.runs.join(run, Wish::Train, None).await?;
    let found = began.elapsed();
    if let Some(leaves) = leaves {
        while !node.fetches() && !node.runs.status(&run).is_some_and(|status| status.in_sync) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        leaves.vanish().await;
    }
    let status = node.until(run, |status| status.in_sync && status.summary.round >= there).await?;
    Ok((node, Joined { found, holds: began.elapsed(), status }))
}

fn tell(what: &str, donors: usize, node: &Node, run: RunId, joined: &Joined) {
    let (log, files) = node.fetched(run);
    let (found, holds) = (joined.found.as_secs_f64(), joined.holds.as_secs_f64());
    println!(
        "{what:<28} {:>6} {donors:>6} {found:>8.2} s {holds:>8.2} s {log:>10} {files:>10}",
        joined.status.summary.round
    );
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let mut nodes = vec![Node::start(0, &[]).await?];
    let run = announce(&nodes[0], &args).await?;
    for n in 1..args.donors {
        let node = Node::start(n, &[&nodes[0]]).await?;
        node.runs.join(run, Wish::Train, None).await?;
        nodes.push(node);
    }
    let began = Instant::now();
    for node in &nodes {
        node.until(run, |status| status.in_sync && status.summary.round >= args.rounds).await?;
    }
    let status = nodes[0].runs.status(&run).context("the run is gone")?;
    println!(
        "{}: {} parameters; {} rounds in {:.0} s\n",
        status.summary.model,
        status.summary.parameters,
        status.summary.round,
        began.elapsed().as_secs_f64()
    );
    println!("newcomer                      round donors      found      holds  log bytes file bytes");
    let (newcomer, joined) = join(100, run, &nodes[0], None).await?;
    tell("all stay", nodes.len(), &newcomer, run, &joined);
    newcomer.vanish().await;

    let leaves = nodes.pop();
    ensure!(leaves.is_some(), "there is a peer to leave");
    let (newcomer, joined) = join(101, run, &nodes[0], leaves).await?;
    tell("a donor leaves in between", nodes.len() + 1, &newcomer, run, &joined);
    newcomer.vanish().await;

    while nodes.len() > 2 {
        if let Some(node) = nodes.pop() {
            node.vanish().await;
        }
    }
    let (newcomer, joined) = join(102, run, &nodes[0], None).await?;
    tell("the others are gone", nodes.len(), &newcomer, run, &joined);
    for node in nodes.into_iter().chain([newcomer]) {
        node.vanish().await;
    }
    Ok(())
}
