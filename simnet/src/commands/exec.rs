//! The command of `up --exec`.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use super::signals::exit_code;
use crate::swarm::directory::SwarmDir;
use crate::swarm::parent_death::die_with_parent;
use crate::swarm::record::Access;

/// How long the command may take to end when asked; its own parent is stricter (see `run_command`).
const GRACE: Duration = Duration::from_secs(10);

/// A command that runs, with a parent that ends whatever it leaves behind.
#[derive(Debug)]
pub(crate) struct ExecCommand {
    parent: Child,
}

impl ExecCommand {
    /// Starts `sh -c command` with the variables of the swarm. The node's binary and simnet itself come first on its
    /// PATH.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(command: &str, access: &Access, dir: &SwarmDir) -> Result<Self> {
        let simnet = std::env::current_exe()?;
        let mut parent = Command::new(&simnet);
        parent
            .args(["run-command", "--", command])
            .envs(access.variables(dir))
            .env("PATH", search_path([&simnet, &access.binary])?)
            .kill_on_drop(true);
        die_with_parent(&mut parent, Signal::SIGTERM);
        Ok(Self { parent: parent.spawn().context("cannot run the command")? })
    }

    /// Waits for its end and returns its exit code, 128 + n where signal n ended it.
    ///
    /// # Errors
    /// When the system refuses to wait.
    pub(crate) async fn ended(&mut self) -> Result<u8> {
        Ok(code(self.parent.wait().await?))
    }

    /// Ends it with everything that it started.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        if let Some(pid) = self.parent.id() {
            kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM)?;
        }
        if tokio::time::timeout(GRACE, self.parent.wait()).await.is_err() {
            self.parent.kill().await?;
        }
        Ok(())
    }
}

/// What a shell would report as `$?`.
pub(crate) fn code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, signal) => exit_code(signal.unwrap_or_default()),
    }
}

fn search_path(binaries: [&Path; 2]) -> Result<OsString> {
    let before = std::env::var_os("PATH").unwrap_or_default();
    let own = binaries.into_iter().filter_map(Path::parent).map(Path::to_owned);
    Ok(std::env::join_paths(own.chain(std::env::split_paths(&before)))?)
}
