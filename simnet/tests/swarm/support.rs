//! Starting simnet, and looking at what it leaves.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Generous: the machine may be busy with other tests.
const PATIENCE: Duration = Duration::from_secs(120);

static ALONE: Mutex<()> = Mutex::new(());
static BINARY: OnceLock<PathBuf> = OnceLock::new();

/// A directory for a swarm, and the right to run swarms: one test has it at a time.
pub(crate) struct Place {
    temp: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { _alone: ALONE.lock().unwrap_or_else(PoisonError::into_inner), temp: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// `simnet --dir NAME ARGUMENTS`, with a node binary that is up to date.
    pub(crate) fn simnet(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = bare(&self.path(name), arguments);
        command.env("CONSORTIUM_NODE_BINARY", node_binary());
        command
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, name: &str, arguments: &[&str]) -> Output {
        self.simnet(name, arguments).output().unwrap()
    }

    /// Runs it to its end, which must be a good one, and returns its stdout.
    pub(crate) fn succeed(&self, name: &str, arguments: &[&str]) -> String {
        let output = self.run(name, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What `nodes.json` says.
    pub(crate) fn nodes(&self, name: &str) -> Vec<Value> {
        std::fs::read(self.path(name).join("nodes.json"))
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    /// The running nodes' processes.
    pub(crate) fn pids(&self, name: &str) -> Vec<u64> {
        self.nodes(name).iter().filter_map(|node| node["pid"].as_u64()).collect()
    }

    /// One field of every node.
    pub(crate) fn field(&self, name: &str, field: &str) -> Vec<String> {
        self.nodes(name).iter().map(|node| node[field].as_str().unwrap_or_default().to_owned()).collect()
    }
}

impl Drop for Place {
    /// A test that fails leaves no swarm behind.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for entry in std::fs::read_dir(self.temp.path()).into_iter().flatten().flatten() {
                let _ended_or_never_there = bare(&entry.path(), &["down"]).output();
            }
        }
    }
}

/// simnet itself; `up` builds the node where cargo is at hand.
pub(crate) fn bare(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_simnet"));
    command.env_remove("SIMNET_DIR").arg("--dir").arg(dir).args(arguments).stdin(Stdio::null());
    if matches!(arguments.first(), Some(&"up" | &"bench")) {
        command.args(["--timeout", "120"]);
    }
    command
}

/// The node's binary: found, and built if need be, by the first swarm of this test run.
pub(crate) fn node_binary() -> &'static Path {
    BINARY.get_or_init(|| {
        let temp = tempfile::tempdir().unwrap();
        let say = r#"printf %s "$CONSORTIUM_NODE_BINARY""#;
        let output = bare(temp.path(), &["up", "1", "--exec", say]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        PathBuf::from(String::from_utf8(output.stdout).unwrap())
    })
}

/// Everything a command said.
pub(crate) fn text(output: &Output) -> String {
    format!("{}\n{}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Waits until something holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "in vain waited for: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether a process runs (or is paused); one that only waits to be reaped does not.
pub(crate) fn runs(pid: u64) -> bool {
    let state = if cfg!(target_os = "linux") {
        // "123 (name) S ...", where the name may hold anything.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').map(|(_, rest)| rest.trim_start().to_owned())
    } else {
        let ps = Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output();
        Some(String::from_utf8_lossy(&ps.unwrap().stdout).trim().to_owned())
    };
    state.is_some_and(|state| !state.is_empty() && !state.starts_with('Z'))
}

/// A process that does not outlive its test.
pub(crate) struct Guarded(pub(crate) Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
