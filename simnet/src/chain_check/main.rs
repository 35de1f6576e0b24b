//! `chain-check`: has Bitcoin Core judge the blocks of simnet's chain.
//!
//! The judge is libbitcoinkernel, Bitcoin Core's own validation. It shares no code with the chain: this program uses
//! nothing of simnet's library, which holds another version of Bitcoin Core's interpreter under the same names, and the
//! linker would mix the two. Building it takes the feature `bitcoinkernel`, cmake and the headers of Boost.

mod blocks;
mod judge;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use judge::Report;

/// Where a swarm keeps its blocks.
const BLOCKS: &str = "chain/blocks.dat";

/// Replays a regtest chain through Bitcoin Core's own validation, block by block.
#[derive(Debug, Parser)]
#[command(name = "chain-check", version, max_term_width = 110)]
struct Cli {
    /// The directory of a swarm, which may be running, or a file of blocks as `blk*.dat` of Bitcoin Core.
    #[arg(env = "SIMNET_DIR", default_value = ".simnet", value_name = "DIR")]
    path: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(report) if report.is_clean() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chain-check: {error:#}");
            ExitCode::from(2)
        }
    }
}

#[allow(clippy::print_stdout)]
fn run(cli: &Cli) -> Result<Report> {
    let path = if cli.path.is_dir() { cli.path.join(BLOCKS) } else { cli.path.clone() };
    let report = judge::judge(&blocks::read(&path)?)?;
    if cli.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(report);
    }
    for rejected in &report.rejected {
        println!("block {} of the file, {}: {}", rejected.number, rejected.hash, rejected.reason);
    }
    let Report { blocks, connected, height, tip, .. } = &report;
    let rejected = report.rejected.len();
    println!(
        "{blocks} blocks: Bitcoin Core connected {connected} and rejected {rejected}; its tip is {tip} at {height}"
    );
    Ok(report)
}
