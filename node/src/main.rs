//! The `consortium-node` binary: see [`consortium_node::cli`].

use std::process::ExitCode;

use clap::Parser as _;
use consortium_node::cli::{self, Cli};

fn main() -> ExitCode {
    match cli::run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
