//! `consortium-node train announce`.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use consortium_protocol::wire::train::{RunId, RunSpec};
use consortium_training::run::Expected;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::plan::{PlanArgs, SwarmArgs};
use super::{show, shown};
use crate::cli::client::{Asking, Client};
use crate::clock::wall_ms;

/// Time to read the data, to train a tokenizer, to draw parameters and to measure a step.
const PREPARING: Duration = Duration::from_secs(3600);

/// Arguments of `train announce`.
#[derive(Args, Debug)]
#[command(
    after_help = "The node trains a tokenizer, draws initial parameters, measures how long a step takes, and from that makes a
specification; it signs it, keeps its files, and tells the swarm. This node judges the run unless validators are
named; then it only gives out the files. Whoever announces a run that pays owes what its log says.

With --dry-run nothing is signed or told: it shows the specification, what the run costs at most, how large an update is, and
how long a round takes."
)]
pub(in crate::cli) struct AnnounceArgs {
    #[command(flatten)]
    plan: PlanArgs,
    #[command(flatten)]
    swarm: SwarmArgs,
    /// Begin so many seconds from now [default: at once].
    #[arg(long, value_name = "SECONDS")]
    starts_in: Option<u64>,
    /// Only show what would be announced.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    asking: Asking,
}

/// What the node answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Announced {
    /// None of a dry run.
    pub(super) run: Option<RunId>,
    pub(super) spec: RunSpec,
    pub(super) expected: Expected,
}

/// Announces a run.
///
/// # Errors
/// When no node answers, or the wishes make no run.
pub(super) async fn run(args: AnnounceArgs, data_dir: &Path) -> Result<()> {
    let mut wishes = args.plan.wishes(args.swarm)?;
    if let Some(seconds) = args.starts_in {
        wishes.starts_at_ms = Some(wall_ms().saturating_add(seconds.saturating_mul(1000)));
    }
    let client = Client::find(args.asking.client, data_dir)?;
    let params = json!({"wishes": wishes, "dry_run": args.dry_run});
    let announced: Announced = client.order("train_announce", params, PREPARING).await?;
    shown(&announced, args.asking.json, || show::announced(&announced))
}
