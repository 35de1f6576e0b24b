//! `simnet`: a local swarm of real nodes. See [`cli`] for what it can be told.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod bench;
mod cli;
mod commands;
mod swarm;

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;

/// As `consortium-node` has it: `simnet train` computes the same.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    consortium_node::threads::limit();
    let cli = cli::Cli::parse();
    let runtime = match cli.command {
        cli::Command::CheatingNode(_) => tokio::runtime::Builder::new_multi_thread().enable_all().build(),
        // One thread: children die with the thread that spawned them (see `swarm::parent_death`), so it must be the main one.
        _ => tokio::runtime::Builder::new_current_thread().enable_all().build(),
    };
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("simnet: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(commands::run(cli)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("simnet: {}", consortium_node::cli::in_words(&error));
            ExitCode::FAILURE
        }
    }
}
