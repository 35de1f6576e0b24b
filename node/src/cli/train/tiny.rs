//! `consortium-node train tiny`: one optimiser on this machine.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use consortium_training::progress::Progress;
use consortium_training::tiny::{TinyOptions, train_tiny};

/// Arguments of `train tiny`.
#[derive(Args, Debug)]
pub(in crate::cli) struct TinyArgs {
    /// Directory to write the model to.
    #[arg(long)]
    out: PathBuf,
    /// Go on from the newest checkpoint of an interrupted run.
    #[arg(long)]
    resume: bool,
    /// Names corpus and first weights.
    #[arg(long)]
    seed: Option<u64>,
    /// Optimiser steps.
    #[arg(long)]
    steps: Option<u64>,
    /// Rows of 256 tokens per step.
    #[arg(long)]
    batch: Option<usize>,
    /// Threads to compute on.
    #[arg(long)]
    threads: Option<usize>,
}

/// Trains the model.
///
/// # Errors
/// When the directory cannot be written, or a checkpoint is damaged.
pub(super) async fn run(args: TinyArgs) -> Result<()> {
    let defaults = TinyOptions::new(args.out);
    let options = TinyOptions {
        resume: args.resume,
        seed: args.seed.unwrap_or(defaults.seed),
        steps: args.steps.unwrap_or(defaults.steps),
        batch: args.batch.unwrap_or(defaults.batch),
        threads: args.threads.unwrap_or(defaults.threads),
        ..defaults
    };
    let out = options.out.clone();
    let training = tokio::task::spawn_blocking(move || train_tiny(&options, &mut Progress::stderr()));
    let report = training.await.context("training broke off")??;
    println!(
        "{}: {} parameters, {:.1} MiB; loss {:.3}, held out {:.3}; {:.0} s",
        out.display(),
        report.parameters,
        report.bytes as f64 / 1048576.0,
        report.train_loss,
        report.held_out_loss,
        report.seconds
    );
    Ok(())
}
