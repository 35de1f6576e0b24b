//! Running the binary as it is typed.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) fn command(data_dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consortium-node"));
    command.env_clear().arg("--data-dir").arg(data_dir).args(arguments);
    command
}

pub(crate) fn run(data_dir: &Path, arguments: &[&str]) -> Output {
    command(data_dir, arguments).output().unwrap()
}

/// The exit code, and what is said, of a command that must fail.
pub(crate) fn failure(data_dir: &Path, arguments: &[&str]) -> (i32, String) {
    let output = run(data_dir, arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{arguments:?} succeeded");
    assert!(!text.contains("panicked"), "{text}");
    (output.status.code().unwrap(), text)
}

/// What a command that must fail says.
pub(crate) fn complaint(data_dir: &Path, arguments: &[&str]) -> String {
    failure(data_dir, arguments).1
}

pub(crate) fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../training/models/consortium-tiny")
}

pub(crate) const START: [&str; 6] =
    ["start", "--no-mdns", "--listen", "/ip4/127.0.0.1/tcp/0", "--api-addr", "127.0.0.1:0"];

/// A running node; killed when dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) ready: String,
}

impl Running {
    pub(crate) fn start(data_dir: &Path, more: &[&str]) -> Self {
        let mut child =
            command(data_dir, &[&START, more].concat()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        Self { child, ready }
    }

    pub(crate) fn stop(mut self, signal: Signal) -> std::process::ExitStatus {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the node did not end");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}
