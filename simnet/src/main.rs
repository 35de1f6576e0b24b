//! `simnet`: a local swarm of real nodes. See [`cli`] for what it can be told.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod bench;
mod cli;
mod commands;
mod swarm;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    // One thread: children die with the thread that spawned them (see `swarm::parent_death`), so it must be the main one.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("simnet: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(commands::run(cli)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("simnet: {error:#}");
            ExitCode::FAILURE
        }
    }
}
