//! The `consortium-node` binary: see [`consortium_node::cli`].

use std::process::ExitCode;

use clap::Parser as _;
use consortium_node::cli::{self, Cli};
use mimalloc::MiMalloc;

/// Training and inference take and give back megabytes thousands of times a second. The system's allocator hands such pieces
/// back to the kernel and has them zeroed anew each time, which was a third of a training step.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    consortium_node::threads::limit();
    match cli::run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", cli::in_words(&error));
            ExitCode::FAILURE
        }
    }
}
