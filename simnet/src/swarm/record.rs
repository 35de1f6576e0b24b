//! What is written down of a running swarm: `nodes.json` for programs and for simnet's other commands, and `env`, the
//! environment that `--exec` gives to its command.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::chain::ChainRecord;
use super::directory::{SwarmDir, replace_file};
use super::process::{NodeProcess, State};

/// Clients on loopback need no key, and most of them insist on sending one.
const API_KEY: &str = "unused-on-loopback";

/// One node as it stands in `nodes.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeRecord {
    /// `node-K`.
    pub(crate) name: String,
    /// Its PeerId; empty before its first answer.
    pub(crate) peer_id: String,
    /// Base URL of its API, ending in `/v1`; empty before its first answer.
    pub(crate) api_base: String,
    /// Its process; none while it does not run.
    pub(crate) pid: Option<u32>,
    /// `seeking`, `worker` or `master` by its own account, else what became of it.
    pub(crate) role: String,
    /// Layers it holds, such as `0-3`; none when it holds none.
    pub(crate) layers: Option<String>,
    /// Memory it offers, in bytes.
    pub(crate) memory_bytes: u64,
    /// How it cheats; none for an honest node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cheat: Option<String>,
    /// Its API asks for payment.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) sells: bool,
    /// `running`, `paused`, `killed`, or how it ended.
    pub(crate) state: String,
    /// Addresses it listens on.
    pub(crate) listen: Vec<String>,
    /// Its data directory.
    pub(crate) data_dir: PathBuf,
    /// What it wrote to stdout and stderr.
    pub(crate) log: PathBuf,
}

impl NodeRecord {
    /// The node as simnet knows it now.
    pub(crate) fn of(node: &NodeProcess) -> Self {
        let status = node.status();
        let running = *node.state() == State::Running;
        let held: Vec<&str> = status
            .filter(|_| running)
            .map(|status| status.held.iter().map(|held| held.layers.as_str()).collect())
            .unwrap_or_default();
        let role = match status {
            Some(status) if running => status.role.to_string(),
            None if running => "starting".to_owned(),
            _ => node.state().to_string(),
        };
        Self {
            name: node.name().to_owned(),
            peer_id: status.map(|status| status.peer_id.clone()).unwrap_or_default(),
            api_base: status.map(|status| status.api_base.clone()).unwrap_or_default(),
            pid: node.pid(),
            role,
            layers: (!held.is_empty()).then(|| held.join(",")),
            memory_bytes: node.memory_bytes(),
            cheat: node.cheat().map(str::to_owned),
            sells: node.sells(),
            state: node.state().to_string(),
            listen: status.map(|status| status.listen.clone()).unwrap_or_default(),
            data_dir: node.data_dir().to_owned(),
            log: node.log().to_owned(),
        }
    }
}

/// Reads `nodes.json`.
///
/// # Errors
/// When no swarm has written one.
pub(crate) fn read_nodes(dir: &SwarmDir) -> Result<Vec<NodeRecord>> {
    let path = dir.nodes_file();
    let text = std::fs::read(&path).with_context(|| format!("no swarm in {}", dir.root().display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is malformed", path.display()))
}

/// What a ready swarm offers to programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// Base URL of the master's API.
    pub(crate) master: String,
    /// Base URL of a node that is not the master; the master's where it is alone.
    pub(crate) gateway: String,
    /// Name of the model.
    pub(crate) model: String,
    /// The node's binary.
    pub(crate) binary: PathBuf,
    /// Base URL of the API of the node that sells; none where none does.
    pub(crate) paid: Option<String>,
    /// The chain of its wallets; none where it has none.
    pub(crate) chain: Option<ChainRecord>,
}

impl Access {
    /// The variables for programs, in the order in which people read them.
    pub(crate) fn variables(&self, dir: &SwarmDir) -> Vec<(&'static str, String)> {
        let path = |path: &Path| path.display().to_string();
        let mut variables = vec![
            ("SIMNET_DIR", path(dir.root())),
            ("CONSORTIUM_API_BASE", self.master.clone()),
            ("CONSORTIUM_GATEWAY_BASE", self.gateway.clone()),
            ("CONSORTIUM_API_KEY", API_KEY.to_owned()),
            ("CONSORTIUM_MODEL", self.model.clone()),
            ("CONSORTIUM_NODES", path(&dir.nodes_file())),
            ("CONSORTIUM_NODE_BINARY", path(&self.binary)),
        ];
        if let Some(paid) = &self.paid {
            variables.push(("CONSORTIUM_PAID_BASE", paid.clone()));
        }
        if let Some(chain) = &self.chain {
            variables.push(("CONSORTIUM_BITCOIND_URL", chain.url.clone()));
            variables.push(("CONSORTIUM_BITCOIND_COOKIE", path(&chain.cookie_file)));
        }
        variables
    }

    /// Writes the variables where a shell can read them (`set -a; . .simnet/env`).
    pub(crate) fn write(&self, dir: &SwarmDir) -> Result<()> {
        let lines: String =
            self.variables(dir).iter().map(|(name, value)| format!("{name}={}\n", quoted(value))).collect();
        replace_file(&dir.env_file(), &lines)
    }
}

/// A value as a POSIX shell reads it: bare where nothing in it means anything to a shell.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/:._-+,@%".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_environment_back() {
        let temp = tempfile::tempdir().unwrap();
        let dir = SwarmDir::at(temp.path()).unwrap();
        let access = Access {
            master: "http://127.0.0.1:4001/v1".into(),
            gateway: "http://127.0.0.1:4002/v1".into(),
            model: "it's a model $HOME".into(),
            binary: "/opt/consortium-node".into(),
            paid: Some("http://127.0.0.1:4005/v1".into()),
            chain: Some(ChainRecord {
                url: "http://127.0.0.1:4003".into(),
                cookie_file: "/home/a b/cookie".into(),
                embedded: true,
            }),
        };
        access.write(&dir).unwrap();
        let names: Vec<_> = access.variables(&dir).iter().map(|(name, _)| *name).collect();
        let script =
            format!("set -a; . {}/env; for n in {}; do printenv $n; done", temp.path().display(), names.join(" "));
        let output = std::process::Command::new("sh")
            .arg("-c")
            .arg(script)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .output()
            .unwrap();
        let values: Vec<_> = access.variables(&dir).into_iter().map(|(_, value)| value).collect();
        assert_eq!(String::from_utf8(output.stdout).unwrap().lines().collect::<Vec<_>>(), values);
        let text = std::fs::read_to_string(dir.env_file()).unwrap();
        assert!(text.contains("CONSORTIUM_API_BASE=http://127.0.0.1:4001/v1\n"), "{text}");
    }
}
