//! `simnet bench`: swarms of several sizes against one node.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::json;

use super::signals::{StopSignals, exit_code};
use super::table::aligned;
use super::terminal::print;
use crate::bench::comparison::{Comparison, Contender, Load, compare};
use crate::cli;
use crate::swarm::binary;
use crate::swarm::client::Client;
use crate::swarm::directory::SwarmDir;
use crate::swarm::plan::{Plan, default_model};
use crate::swarm::steps::{Steps, Stream};
use crate::swarm::supervisor::{Swarm, count};

/// The directory of a bench, gone when the value is.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Measures and prints.
pub(crate) async fn run(arguments: cli::Bench) -> Result<ExitCode> {
    let mut signals = StopSignals::new()?;
    let scratch = Scratch(std::env::temp_dir().join(format!("consortium-simnet-bench-{}", std::process::id())));
    tokio::select! {
        done = bench(&arguments, &scratch.0) => done.map(|()| ExitCode::SUCCESS),
        // Dropping the swarms kills their nodes.
        signal = signals.next() => Ok(ExitCode::from(exit_code(signal))),
    }
}

async fn bench(arguments: &cli::Bench, scratch: &Path) -> Result<()> {
    let steps = Steps::new(Stream::Stderr);
    let client = Client::new()?;
    let binary = binary::find(arguments.parts.node_binary.as_deref(), &steps).await?;
    let model = arguments.parts.model.clone().map_or_else(default_model, Ok)?;
    let start = async |nodes: usize, name: String| {
        let dir = SwarmDir::at(&scratch.join(name))?;
        let lock = dir.lock()?;
        let plan = Plan::new(&dir, nodes, arguments.seed, &model, &binary)?;
        let mut swarm = Swarm::new(dir, plan)?;
        let access = swarm.bring_up(&steps, arguments.parts.timeout).await?;
        let contender = Contender {
            api_base: access.master,
            model: access.model,
            pids: swarm.records().iter().filter_map(|node| node.pid).collect(),
        };
        anyhow::Ok((swarm, contender, lock))
    };
    let load = Load {
        pairs: arguments.pairs,
        tokens: arguments.tokens,
        concurrency: arguments.concurrency,
        seed: arguments.seed,
    };
    let (one_swarm, one, _lock) = start(1, "one".to_owned()).await?;
    let mut comparisons = Vec::new();
    for nodes in &arguments.stages {
        let (swarm, contender, _lock) = start(*nodes, format!("of-{nodes}")).await?;
        steps.say(&format!("measuring {} against one", count(*nodes, "node")));
        comparisons.push(compare(&client, &one, &contender, *nodes, load).await?);
        swarm.stop(&steps).await;
    }
    one_swarm.stop(&steps).await;
    print(&report(&comparisons))?;
    if let Some(path) = &arguments.json {
        let document = json!({
            "model": one.model,
            "pairs": load.pairs,
            "tokens": load.tokens,
            "concurrency": load.concurrency,
            "results": comparisons,
        });
        std::fs::write(path, serde_json::to_string_pretty(&document)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn report(comparisons: &[Comparison]) -> String {
    let columns = ["nodes", "tok/s of one", "tok/s", "ratio", "p10..p90", "CPU ms/token of one", "CPU ms/token"];
    let mut rows = vec![columns.map(str::to_owned)];
    let cpu = |seconds: Option<f64>| seconds.map_or_else(|| "-".to_owned(), |s| format!("{:.1}", s * 1e3));
    rows.extend(comparisons.iter().map(|c| {
        [
            c.nodes.to_string(),
            format!("{:.1}", c.one_tokens_per_second),
            format!("{:.1}", c.swarm_tokens_per_second),
            format!("{:.3}", c.ratio),
            format!("{:.3}..{:.3}", c.ratio_p10, c.ratio_p90),
            cpu(c.one_cpu_seconds_per_token),
            cpu(c.swarm_cpu_seconds_per_token),
        ]
    }));
    aligned(&rows)
}
