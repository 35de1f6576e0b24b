//! `simnet run-command CMD`: the parent of the command of `up --exec`, there so that nothing the command started
//! outlives the swarm, whether the command ends, simnet ends it, or simnet itself is killed.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::process::Command;

use super::exec::code;
use super::signals::{StopSignals, exit_code};

/// How long what the command leaves may take to end by itself, and then at most to die.
const GRACE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(5);

const POLL: Duration = Duration::from_millis(10);

/// Runs the command in a shell and returns its exit code.
pub(crate) async fn run(command: &str) -> Result<ExitCode> {
    adopt_orphans()?;
    let mut signals = StopSignals::new()?;
    let mut shell = Command::new("sh").arg("-c").arg(command).spawn().context("cannot run sh")?;
    let code = loop {
        tokio::select! {
            status = shell.wait() => break code(status?),
            // A Ctrl-C reaches the command by itself, and simnet, which knows what is to be done.
            signal = signals.next() => if signal != Signal::SIGINT as i32 {
                break exit_code(signal);
            },
        }
    };
    end_children(shell.id());
    Ok(ExitCode::from(code))
}

/// Makes this process the parent of every descendant whose own parent ends.
#[cfg(target_os = "linux")]
fn adopt_orphans() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true).context("cannot adopt what the command leaves behind")
}

#[cfg(not(target_os = "linux"))]
fn adopt_orphans() -> Result<()> {
    Ok(())
}

/// Asks every child to end and kills those that do not. Grandchildren become children as their parents go, so the end
/// of all children is the end of all that the command started. Only children are signalled: their numbers cannot be
/// anybody else's before they are waited for here.
fn end_children(shell: Option<u32>) {
    let started = Instant::now();
    let mut asked = BTreeSet::new();
    while reap() && started.elapsed() < PATIENCE {
        for child in children(shell) {
            if started.elapsed() >= GRACE {
                let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
            } else if asked.insert(child) {
                let _ = kill(Pid::from_raw(child), Signal::SIGTERM);
                let _ = kill(Pid::from_raw(child), Signal::SIGCONT);
            }
        }
        std::thread::sleep(POLL);
    }
}

/// Takes leave of every child that has ended; false when none is left.
fn reap() -> bool {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return true,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

/// The processes whose parent is this one.
#[cfg(target_os = "linux")]
fn children(_shell: Option<u32>) -> Vec<i32> {
    let own = std::process::id().to_string();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            // "123 (name, which may hold anything) S 1 ...": the parent is the second field after the name.
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
            parent == Some(own.as_str())
        })
        .collect()
}

#[cfg(not(target_os = "linux"))]
fn children(shell: Option<u32>) -> Vec<i32> {
    shell.and_then(|pid| i32::try_from(pid).ok()).into_iter().collect()
}
