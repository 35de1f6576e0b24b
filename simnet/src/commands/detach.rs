//! `simnet up --detach`: a supervisor in the background, and a command that returns once the swarm is ready.

use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use super::signals::StopSignals;
use crate::swarm::control::{Order, order};
use crate::swarm::directory::SwarmDir;

/// How long a supervisor that has closed its output may take to be found ready or gone.
const VERDICT: Duration = Duration::from_secs(5);

/// Starts this very command line again in the background, and shows what it says until the swarm is ready. From then
/// on it writes to `simnet.log` in the swarm's directory.
pub(crate) async fn run(dir: &SwarmDir) -> Result<ExitCode> {
    let mut signals = StopSignals::new()?;
    let mut supervisor = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .arg("--in-background")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Out of the reach of this terminal's Ctrl-C and of its end.
        .process_group(0)
        .spawn()
        .context("cannot start the supervisor")?;
    let stdout = supervisor.stdout.take().context("the supervisor has no stdout")?;
    let stderr = supervisor.stderr.take().context("the supervisor has no stderr")?;
    let shown = async { tokio::join!(show(stdout, std::io::stdout()), show(stderr, std::io::stderr())) };
    tokio::select! {
        _ = shown => verdict(dir, &mut supervisor).await,
        _ = signals.next() => {
            stop(&supervisor)?;
            Ok(code(supervisor.wait().await?))
        }
    }
}

/// Waits until the supervisor, whose output has ended, is ready or has ended too.
async fn verdict(dir: &SwarmDir, supervisor: &mut Child) -> Result<ExitCode> {
    let deadline = Instant::now() + VERDICT;
    while Instant::now() < deadline {
        if let Some(status) = supervisor.try_wait()? {
            return Ok(code(status));
        }
        if order(dir, &Order::Ping).await.is_ok() {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop(supervisor)?;
    bail!("the supervisor fell silent, and was stopped; see {}", dir.log_file().display())
}

fn stop(supervisor: &Child) -> Result<()> {
    if let Some(pid) = supervisor.id() {
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM)?;
    }
    Ok(())
}

fn code(status: ExitStatus) -> ExitCode {
    ExitCode::from(super::exec::code(status))
}

/// Copies what comes until it ends. A reader that went away is no reason to stop.
async fn show(mut from: impl AsyncRead + Unpin, mut to: impl std::io::Write) {
    let mut buffer = vec![0; 8192];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let _ = to.write_all(&buffer[..length]).and_then(|()| to.flush());
    }
}
