//! One file for each thing that simnet can be told.

mod audit_bench;
mod bench;
mod books;
mod callers;
mod chain;
mod chaos;
mod chat;
pub(crate) mod cheating_node;
mod coins;
mod detach;
mod escrow;
mod exec;
mod l402;
mod logs;
mod memory;
mod next;
mod orders;
mod run_command;
mod signals;
mod status;
mod table;
mod terminal;
mod train;
mod up;

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::{Cli, Command};
use crate::swarm::control::Order;
use crate::swarm::directory::SwarmDir;

/// Does what the command line says.
pub(crate) async fn run(cli: Cli) -> Result<ExitCode> {
    let dir = SwarmDir::at(&cli.dir)?;
    match cli.command {
        Command::Up(arguments) if arguments.detach && !arguments.in_background => detach::run(&dir).await,
        Command::Up(arguments) => up::run(dir, arguments).await,
        Command::Status { json } => status::run(&dir, json).await,
        Command::Logs { node, follow, lines } => logs::run(&dir, node.as_deref(), follow, lines).await,
        Command::Chat { message } => chat::run(&dir, message.as_deref()),
        Command::Kill(node) => orders::run(&dir, Order::Kill { node: node.node }).await,
        Command::Restart(node) => orders::run(&dir, Order::Restart { node: node.node }).await,
        Command::Pause(node) => orders::run(&dir, Order::Pause { node: node.node }).await,
        Command::Unpause(node) => orders::run(&dir, Order::Unpause { node: node.node }).await,
        Command::Books { wait, json } => books::run(&dir, wait, json).await,
        Command::Coins { wait, json } => coins::run(&dir, wait, json).await,
        Command::Chaos(arguments) => chaos::run(&dir, &arguments).await,
        Command::Mine { blocks } => chain::mine(&dir, blocks).await,
        Command::Reorg { blocks, empty } => chain::reorg(&dir, blocks, empty).await,
        Command::Escrow { json } => escrow::run(&dir, json).await,
        Command::L402 { rounds, json } => l402::run(&dir, rounds, json).await,
        Command::Down => orders::down(&dir).await,
        Command::Bench(arguments) => bench::run(arguments).await,
        Command::AuditBench(arguments) => audit_bench::run(&arguments),
        Command::Train(arguments) => train::run(&arguments),
        Command::CheatingNode(arguments) => cheating_node::run(*arguments).await,
        Command::Run { command } => run_command::run(&command).await,
    }
}
