//! `simnet cheating-node`: a real node whose worker is dishonest, in a process of its own.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use consortium_node::cli::start;
use consortium_node::library;
use consortium_simnet::cheat::CheatingWorker;

use crate::cli;

/// Where in its data directory a dishonest node keeps the weights it computes with.
const SCRATCH: &str = "cheat";

/// Runs the node until it is told to stop.
pub(crate) async fn run(arguments: cli::CheatingNode) -> Result<ExitCode> {
    let cli::CheatingNode { cheat, data_dir, start } = arguments;
    let scratch = data_dir.join(SCRATCH);
    let node = start::run_tampered(start, &data_dir, |config| {
        let name = config.model.as_ref().context("a dishonest node needs a --model to be dishonest with")?;
        let model = library::find(&config.data_dir, name)?;
        Ok(Some(Arc::new(CheatingWorker::new(cheat, model, scratch))))
    });
    Box::pin(node).await?;
    Ok(ExitCode::SUCCESS)
}
