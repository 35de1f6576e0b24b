//! One node: a process of the real binary, with a directory of its own.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use consortium_node::data_dir::ApiFile;
use consortium_node::status::NodeStatus;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use super::chain::ChainRecord;
use super::client::Client;
use super::directory::SwarmDir;
use super::parent_death::die_with_parent;

/// How long a node is given to end by itself.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

const POLL: Duration = Duration::from_millis(50);

/// How much of the end of a log is read for its last lines.
const TAIL_BYTES: u64 = 32 * 1024;

/// Loopback addresses with ports that the system picks: no two swarms can ever pick the same.
const ANY_API: &str = "127.0.0.1:0";
const ANY_LISTEN: [&str; 2] = ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"];

/// What `consortium-node start` is told, besides the node's own addresses and directory.
#[derive(Clone, Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) binary: &'a Path,
    pub(crate) cluster: &'a str,
    pub(crate) model: &'a Path,
    pub(crate) stages: usize,
    /// Addresses of nodes that run already.
    pub(crate) bootstrap: Vec<String>,
    /// The chain of its wallet; none for no wallet.
    pub(crate) chain: Option<&'a ChainRecord>,
}

/// What has become of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Not started yet.
    Planned,
    Running,
    /// Stopped by `simnet pause`.
    Paused,
    /// Ended by `simnet kill`.
    Killed,
    /// Ended by itself.
    Exited(ExitStatus),
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Planned => f.write_str("not started"),
            Self::Running => f.write_str("running"),
            Self::Paused => f.write_str("paused"),
            Self::Killed => f.write_str("killed"),
            Self::Exited(status) => write!(f, "ended by itself ({status})"),
        }
    }
}

/// A node and its process, if it has one.
#[derive(Debug)]
pub(crate) struct NodeProcess {
    name: String,
    data_dir: PathBuf,
    log: PathBuf,
    memory_bytes: u64,
    /// How it cheats; none for an honest node.
    cheat: Option<String>,
    /// Its API asks for payment.
    sells: bool,
    /// Its wallet begins with nothing.
    newcomer: bool,
    child: Option<Child>,
    state: State,
    /// The last that the node said of itself.
    status: Option<NodeStatus>,
}

impl NodeProcess {
    /// A node that has not been started.
    pub(crate) fn new(dir: &SwarmDir, name: String, memory_bytes: u64, cheat: Option<String>, newcomer: bool) -> Self {
        Self {
            data_dir: dir.data_dir(&name),
            log: dir.node_log(&name),
            name,
            memory_bytes,
            cheat,
            sells: false,
            newcomer,
            child: None,
            state: State::Planned,
            status: None,
        }
    }

    /// The same, to be started as one that sells.
    pub(crate) fn selling(self) -> Self {
        Self { sells: true, ..self }
    }

    /// Whether its API asks for payment.
    pub(crate) fn sells(&self) -> bool {
        self.sells
    }

    /// `node-K`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Memory it offers, in bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// How it cheats; none for an honest node.
    pub(crate) fn cheat(&self) -> Option<&str> {
        self.cheat.as_deref()
    }

    /// Whether its wallet begins with nothing.
    pub(crate) fn is_newcomer(&self) -> bool {
        self.newcomer
    }

    /// Its data directory.
    pub(crate) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Its log.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// What has become of it.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// The last that it said of itself, in this life or the one before.
    pub(crate) fn status(&self) -> Option<&NodeStatus> {
        self.status.as_ref()
    }

    /// Whether this is its PeerId.
    pub(crate) fn is_called(&self, peer_id: &str) -> bool {
        self.status.as_ref().is_some_and(|status| status.peer_id == peer_id)
    }

    /// Its process, while there is one.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Starts it, on the ports of its former life where it had one and they are free.
    ///
    /// # Errors
    /// When the process cannot be started at all.
    pub(crate) fn start(&mut self, launch: &Launch<'_>) -> Result<()> {
        let (api, listen) = self.former_addresses();
        self.spawn(launch, &api, &listen)
    }

    /// Starts it on ports that the system picks.
    ///
    /// # Errors
    /// As [`NodeProcess::start`].
    pub(crate) fn start_anywhere(&mut self, launch: &Launch<'_>) -> Result<()> {
        self.spawn(launch, ANY_API, &ANY_LISTEN.map(str::to_owned))
    }

    fn spawn(&mut self, launch: &Launch<'_>, api: &str, listen: &[String]) -> Result<()> {
        std::fs::create_dir_all(&self.data_dir)
            .with_context(|| format!("cannot create {}", self.data_dir.display()))?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("cannot open {}", self.log.display()))?;
        // `consortium-node` cannot cheat: a dishonest node is simnet itself, on the node's library.
        let simnet;
        let (binary, first_arguments) = match &self.cheat {
            None => (launch.binary, vec!["start"]),
            Some(cheat) => {
                simnet = std::env::current_exe().context("cannot tell where simnet itself is")?;
                (simnet.as_path(), vec!["cheating-node", "--cheat", cheat])
            }
        };
        let mut command = node_command(binary);
        command
            .args(first_arguments)
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(["--cluster", launch.cluster])
            .args(["--api-addr", api])
            .arg("--model")
            .arg(launch.model)
            .args(["--memory", &format!("{}KiB", self.memory_bytes / 1024)])
            .args(["--stages", &launch.stages.to_string()])
            // So that a swarm of a minute has signed heads to look at.
            .args(["--batch-seconds", "5"])
            .arg("--no-mdns")
            .args(listen.iter().flat_map(|address| ["--listen", address]))
            .args(launch.bootstrap.iter().flat_map(|address| ["--bootstrap", address]))
            .args(launch.chain.iter().flat_map(|chain| wallet_arguments(chain, (!self.newcomer).then_some(&self.name))))
            .args(self.sells.then_some("--l402"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A Ctrl-C is for simnet, which stops its nodes in order.
            .process_group(0);
        die_with_parent(&mut command, Signal::SIGKILL);
        let child = command.spawn().with_context(|| format!("cannot run {}", binary.display()))?;
        self.child = Some(child);
        self.state = State::Running;
        Ok(())
    }

    /// Waits until it answers with the addresses it listens on.
    ///
    /// # Errors
    /// When it ends before that or the time is up; the end of its log is in the message.
    pub(crate) async fn answers(&mut self, client: &Client, deadline: Instant) -> Result<NodeStatus> {
        loop {
            self.reap()?;
            if self.child.is_none() {
                bail!("{} {}\n{}", self.name, self.state, self.tail(10));
            }
            if let Some(status) = self.ask(client).await
                && !status.listen.is_empty()
            {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} does not answer\n{}", self.name, self.tail(10));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Asks it for its status, and remembers the answer. None while it does not answer.
    pub(crate) async fn ask(&mut self, client: &Client) -> Option<NodeStatus> {
        let api_base = self.api_base()?;
        let status = client.status(&api_base, &self.data_dir).await.ok()?;
        self.status = Some(status.clone());
        Some(status)
    }

    /// Where its API listens, according to the file that this very process wrote.
    pub(crate) fn api_base(&self) -> Option<String> {
        let file = ApiFile::read(&self.data_dir).ok()?;
        (Some(file.pid) == self.pid()).then_some(file.api_base)
    }

    /// Takes in what a status poll brought.
    pub(crate) fn remember(&mut self, status: NodeStatus) {
        self.status = Some(status);
    }

    /// Notices whether the process has ended by itself; true when it did so just now.
    ///
    /// # Errors
    /// When the system refuses to tell.
    pub(crate) fn reap(&mut self) -> Result<bool> {
        let Some(child) = &mut self.child else {
            return Ok(false);
        };
        let Some(status) = child.try_wait()? else {
            return Ok(false);
        };
        self.child = None;
        self.state = State::Exited(status);
        Ok(true)
    }

    /// Sends a signal to its process. A process that is gone is left alone: the number may be another's by now.
    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().with_context(|| format!("{} is not running", self.name))?;
        let pid = Pid::from_raw(i32::try_from(pid)?);
        kill(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Stops it from running without ending it.
    ///
    /// # Errors
    /// When it is not running.
    pub(crate) fn pause(&mut self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        self.state = State::Paused;
        Ok(())
    }

    /// Lets it run again.
    ///
    /// # Errors
    /// When it is not paused.
    pub(crate) fn unpause(&mut self) -> Result<()> {
        if self.state != State::Paused {
            bail!("{} is not paused: {}", self.name, self.state);
        }
        self.signal(Signal::SIGCONT)?;
        self.state = State::Running;
        Ok(())
    }

    /// Ends it without warning, as a power cut would.
    ///
    /// # Errors
    /// When it is not running.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        let Some(child) = &mut self.child else {
            bail!("{} is not running: {}", self.name, self.state);
        };
        child.kill().await.with_context(|| format!("cannot kill {}", self.name))?;
        self.child = None;
        self.state = State::Killed;
        Ok(())
    }

    /// Asks it to end. It is not waited for.
    pub(crate) fn ask_to_end(&self) {
        if self.child.is_some() {
            // A signal can only fail on a process that has ended already.
            let _ = self.signal(Signal::SIGTERM);
            let _ = self.signal(Signal::SIGCONT);
        }
    }

    /// Waits until it has ended, and kills it when `deadline` comes first; true when it had to.
    ///
    /// # Errors
    /// When the system refuses to wait.
    pub(crate) async fn ended(&mut self, deadline: Instant) -> Result<bool> {
        let Some(child) = &mut self.child else {
            return Ok(false);
        };
        let late = tokio::time::timeout_at(deadline.into(), child.wait()).await.is_err();
        if late {
            child.kill().await?;
        }
        self.child = None;
        self.state = State::Killed;
        Ok(late)
    }

    /// The last lines of its log, indented.
    pub(crate) fn tail(&self, lines: usize) -> String {
        let text = last_lines(&self.log, lines);
        if text.is_empty() {
            return format!("      {} is empty", self.log.display());
        }
        text.iter().map(|line| format!("      {line}")).collect::<Vec<_>>().join("\n")
    }

    /// The addresses of the former life whose ports are free, else any.
    fn former_addresses(&self) -> (String, Vec<String>) {
        let Some(status) = &self.status else {
            return (ANY_API.to_owned(), ANY_LISTEN.map(str::to_owned).to_vec());
        };
        let api = status
            .api_base
            .strip_prefix("http://")
            .and_then(|rest| rest.strip_suffix("/v1"))
            .filter(|address| TcpListener::bind(address).is_ok())
            .unwrap_or(ANY_API)
            .to_owned();
        let reuse = |transport: &str, any: &str| {
            status
                .listen
                .iter()
                .find(|address| address.contains(transport) && !address.contains("/p2p-circuit"))
                .and_then(|address| free_address(address))
                .unwrap_or_else(|| any.to_owned())
        };
        (api, vec![reuse("/tcp/", ANY_LISTEN[0]), reuse("/quic-v1", ANY_LISTEN[1])])
    }
}

/// Prices and tabs such that a short answer is worth whole sats, and is paid for while somebody looks.
const SMALL_CHANGE: [&str; 16] = [
    "--price",
    "100",
    "--master-fee",
    "40",
    "--settle-at",
    "20",
    "--settle-after",
    "1",
    "--settle-min",
    "1",
    "--credit-limit",
    "100000",
    "--channel-budget",
    "1000000",
    "--channel-cost",
    "5",
];

/// What gives a node a wallet on the swarm's chain. One with a name can be reached by others, and port 0 is one that it
/// picks, and keeps for its next life; one without has nothing, and so nothing to keep in reserve.
fn wallet_arguments(chain: &ChainRecord, name: Option<&String>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = ["--lightning", "regtest", "--bitcoind"].map(OsString::from).into();
    arguments.extend([chain.url.clone().into(), "--bitcoind-cookie".into(), chain.cookie_file.clone().into()]);
    match name {
        Some(name) => arguments
            .extend(["--lightning-listen", "127.0.0.1:0", "--lightning-alias", name.as_str()].map(OsString::from)),
        None => arguments.extend(["--lightning-reserve", "0"].map(OsString::from)),
    }
    arguments.extend(SMALL_CHANGE.map(OsString::from));
    arguments
}

/// A command of the node's binary, which hears nothing of the variables that configure nodes of its own user.
pub(crate) fn node_command(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CONSORTIUM_") {
            command.env_remove(name);
        }
    }
    command.kill_on_drop(true);
    command
}

/// `/ip4/127.0.0.1/tcp/4001` of `/ip4/127.0.0.1/tcp/4001/p2p/12D3…`, if nobody has that port now.
fn free_address(address: &str) -> Option<String> {
    let address = address.split("/p2p/").next()?;
    let mut parts = address.strip_prefix("/ip4/127.0.0.1/")?.split('/');
    let transport = parts.next()?;
    let port: u16 = parts.next()?.parse().ok()?;
    let free = match transport {
        "tcp" => TcpListener::bind(("127.0.0.1", port)).is_ok(),
        "udp" => UdpSocket::bind(("127.0.0.1", port)).is_ok(),
        _ => false,
    };
    free.then(|| address.to_owned())
}

/// The last lines of a text file; none where it cannot be read.
pub(crate) fn last_lines(path: &Path, lines: usize) -> Vec<String> {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_used_again_only_while_it_is_free() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = held.local_addr().unwrap().port();
        let address = format!("/ip4/127.0.0.1/tcp/{port}/p2p/12D3KooW");
        assert_eq!(free_address(&address), None);
        drop(held);
        assert_eq!(free_address(&address), Some(format!("/ip4/127.0.0.1/tcp/{port}")));
        let quic = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        assert_eq!(
            free_address(&format!("/ip4/127.0.0.1/udp/{quic}/quic-v1/p2p/12D3KooW")),
            Some(format!("/ip4/127.0.0.1/udp/{quic}/quic-v1"))
        );
        assert_eq!(free_address("/ip4/10.0.0.1/tcp/1/p2p/12D3KooW"), None);
    }

    #[test]
    fn the_end_of_a_log_is_read() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("log");
        assert!(last_lines(&path, 3).is_empty());
        let text: String = (0..10_000).map(|n| format!("line {n}\n")).collect();
        std::fs::write(&path, text).unwrap();
        assert_eq!(last_lines(&path, 2), ["line 9998", "line 9999"]);
    }
}
