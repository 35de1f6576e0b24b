//! `simnet chat`: the node's own chat, against a node that is not the master.

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::swarm::directory::SwarmDir;
use crate::swarm::plan::Plan;
use crate::swarm::record::read_nodes;

/// Becomes `consortium-node chat`.
pub(crate) fn run(dir: &SwarmDir, message: Option<&str>) -> Result<ExitCode> {
    if !dir.is_live() {
        bail!("no swarm is running in {}: start one with `simnet up`", dir.root().display());
    }
    let nodes = read_nodes(dir)?;
    let mut running: Vec<_> = nodes.iter().filter(|node| node.state == "running").collect();
    running.sort_by_key(|node| node.role == "master");
    let gateway = running.first().context("no node is running")?;
    let error = std::process::Command::new(Plan::read(dir)?.binary)
        .args(["chat", "--api-base", &gateway.api_base])
        .args(message)
        .exec();
    Err(error).context("cannot run consortium-node")
}
