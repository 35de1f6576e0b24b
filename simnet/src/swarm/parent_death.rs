//! A child that does not outlive its parent, however the parent ends.

use nix::sys::signal::Signal;
use tokio::process::Command;

/// Has the kernel send `signal` to the child of `command` when the thread that spawns it dies, which is the end of the
/// process as long as that thread is the main one (all of simnet runs on it).
///
/// Linux alone offers this. Elsewhere a simnet that is killed outright leaves its nodes behind.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub(crate) fn die_with_parent(command: &mut Command, signal: Signal) {
    use nix::errno::Errno;
    use nix::sys::prctl::set_pdeathsig;
    use nix::unistd::{getpid, getppid};

    let parent = getpid();
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; these are two system calls, and the
    // errors are made from a number without allocating.
    unsafe {
        command.pre_exec(move || {
            set_pdeathsig(signal)?;
            // The parent may have died before the line above.
            if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
        });
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn die_with_parent(_command: &mut Command, _signal: Signal) {}
