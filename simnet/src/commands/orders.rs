//! `simnet kill`, `restart`, `pause`, `unpause` and `down`: orders to the supervisor.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::terminal::print;
use crate::swarm::control::{Order, order};
use crate::swarm::directory::SwarmDir;

/// How long the supervisor may take to be gone after its nodes are.
const GONE: Duration = Duration::from_secs(10);

/// Gives one order and prints the reply.
pub(crate) async fn run(dir: &SwarmDir, given: Order) -> Result<ExitCode> {
    print(&order(dir, &given).await?)?;
    Ok(ExitCode::SUCCESS)
}

/// Ends the swarm, if there is one, and returns when nothing of it runs any more.
pub(crate) async fn down(dir: &SwarmDir) -> Result<ExitCode> {
    if !dir.is_live() {
        print(&format!("no swarm is running in {}", dir.root().display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&order(dir, &Order::Down).await?)?;
    let deadline = Instant::now() + GONE;
    while dir.is_live() {
        if Instant::now() >= deadline {
            bail!("the nodes have ended, and simnet itself has not");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(ExitCode::SUCCESS)
}
