//! The directory of a swarm: what lies where, who may use it, and how an old swarm is cleared away.
//!
//! ```text
//! .simnet/
//!   lock          held by the supervisor for as long as it lives
//!   simnet.json   the plan; also the mark by which simnet knows a directory as its own
//!   nodes.json    every node as it is now (CONSORTIUM_NODES)
//!   chain.json    where the chain is, and who may use it
//!   env           what --exec gives to its command, one NAME=value a line
//!   control.sock  where the supervisor takes orders
//!   simnet.log    what a detached supervisor says after `up` has returned
//!   chain/        blocks, the key of their miner, and the cookie of the RPC
//!   node-1/data   data directory of a node
//!   node-1/log    what it wrote to stdout and stderr
//! ```

use std::fs::{DirBuilder, File, TryLockError};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Longest path of a Unix socket that every system takes (104 bytes with the final zero on macOS, 108 on Linux).
const MAX_SOCKET_PATH: usize = 100;

/// How often, and how long in between, a directory in use is tried again: a `status` probes the lock for an instant.
const LOCK_TRIES: u32 = 5;
const LOCK_PAUSE: Duration = Duration::from_millis(40);

/// What a live supervisor has in its directory whatever the swarm.
const LIVE_FILES: [&str; 2] = ["lock", "control.sock"];

/// Other names that simnet writes at the top of a directory, besides `node-K` and `chain`.
const OWN_FILES: [&str; 6] = ["simnet.json", "nodes.json", "chain.json", "env", "simnet.log", ".gitignore"];

/// The directory of the chain.
const CHAIN: &str = "chain";

/// Where a swarm lives on disk.
#[derive(Clone, Debug)]
pub(crate) struct SwarmDir {
    root: PathBuf,
}

/// Proof that this process alone uses the directory. The lock goes when the value or the process does.
#[derive(Debug)]
pub(crate) struct DirLock {
    _file: File,
}

impl SwarmDir {
    /// The directory at `path`, made absolute; nothing is created yet.
    pub(crate) fn at(path: &Path) -> Result<Self> {
        let root = std::path::absolute(path).with_context(|| format!("cannot make {} absolute", path.display()))?;
        Ok(Self { root })
    }

    /// The directory itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The plan, which is also the mark of a simnet directory.
    pub(crate) fn plan_file(&self) -> PathBuf {
        self.root.join("simnet.json")
    }

    /// The list of nodes.
    pub(crate) fn nodes_file(&self) -> PathBuf {
        self.root.join("nodes.json")
    }

    /// Where the chain is.
    pub(crate) fn chain_file(&self) -> PathBuf {
        self.root.join("chain.json")
    }

    /// What the chain keeps.
    pub(crate) fn chain_dir(&self) -> PathBuf {
        self.root.join(CHAIN)
    }

    /// The environment of `--exec`.
    pub(crate) fn env_file(&self) -> PathBuf {
        self.root.join("env")
    }

    /// What a detached supervisor says.
    pub(crate) fn log_file(&self) -> PathBuf {
        self.root.join("simnet.log")
    }

    /// Data directory of one node.
    pub(crate) fn data_dir(&self, name: &str) -> PathBuf {
        self.root.join(name).join("data")
    }

    /// Log of one node.
    pub(crate) fn node_log(&self, name: &str) -> PathBuf {
        self.root.join(name).join("log")
    }

    /// The control socket: in the directory itself, or, where that path is too long for a socket, in a private
    /// directory under the system's temporary one whose name follows from this directory's.
    pub(crate) fn socket(&self) -> PathBuf {
        let inside = self.root.join("control.sock");
        if inside.as_os_str().len() <= MAX_SOCKET_PATH {
            return inside;
        }
        let mut hasher = DefaultHasher::new();
        self.root.as_os_str().as_bytes().hash(&mut hasher);
        std::env::temp_dir().join(format!("consortium-simnet-{:016x}", hasher.finish())).join("control.sock")
    }

    /// Makes the directory that the socket stands in, closed to other users.
    ///
    /// # Errors
    /// When it exists and belongs to somebody else.
    pub(crate) fn prepare_socket_dir(&self) -> Result<PathBuf> {
        let socket = self.socket();
        let parent = socket.parent().unwrap_or(&self.root);
        create_private(parent)?;
        let owner = |path: &Path| std::fs::symlink_metadata(path).map(|meta| meta.uid());
        if owner(parent)? != owner(&self.root)? {
            bail!("{} belongs to another user", parent.display());
        }
        Ok(socket)
    }

    /// Takes the directory for this process, creating it where it does not exist.
    ///
    /// # Errors
    /// When a live swarm holds it.
    pub(crate) fn lock(&self) -> Result<DirLock> {
        create_private(&self.root)?;
        let path = self.root.join("lock");
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        for attempt in 1.. {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if attempt < LOCK_TRIES => {
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(TryLockError::WouldBlock) => {
                    let holder = std::fs::read_to_string(&path).unwrap_or_default();
                    bail!(
                        "a swarm is running in {} (simnet process {}): stop it with `simnet down --dir {0}`, \
                         or start this one elsewhere with --dir",
                        self.root.display(),
                        holder.trim()
                    );
                }
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
        }
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(DirLock { _file: file })
    }

    /// Whether a supervisor lives in this directory.
    pub(crate) fn is_live(&self) -> bool {
        File::open(self.root.join("lock"))
            .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// Removes what an earlier swarm left, and nothing else.
    ///
    /// # Errors
    /// When the directory holds something and does not carry simnet's mark.
    pub(crate) fn clear(&self, _lock: &DirLock) -> Result<()> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.root)? {
            names.push(entry?.file_name());
        }
        names.retain(|name| !LIVE_FILES.iter().any(|live| name == live));
        if !names.is_empty() && !self.plan_file().is_file() {
            bail!("{} is not empty and not a directory of simnet: choose another with --dir", self.root.display());
        }
        for name in names {
            let path = self.root.join(&name);
            let text = name.to_string_lossy();
            if is_node_name(&text) || text == CHAIN {
                std::fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            } else if OWN_FILES.contains(&text.as_ref()) && text != "simnet.json" {
                std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        // The mark goes last: a clearing that was cut short can be done again.
        match std::fs::remove_file(self.plan_file()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("cannot remove simnet.json"),
            _ => Ok(()),
        }
    }

    /// Names of the nodes that have a directory here, in order of their number.
    pub(crate) fn node_names(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(&self.root) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| is_node_name(name))
            .collect();
        names.sort_by_key(|name| (name.len(), name.clone()));
        names
    }
}

/// Writes a file so that a reader sees the old text or the new one, and never half of it.
pub(crate) fn replace_file(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text)
        .and_then(|()| std::fs::rename(&beside, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn is_node_name(name: &str) -> bool {
    name.strip_prefix("node-").is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

fn create_private(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot create {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_serves_one_swarm_at_a_time() {
        let temp = tempfile::tempdir().unwrap();
        let dir = SwarmDir::at(&temp.path().join("a")).unwrap();
        assert!(!dir.is_live());
        let lock = dir.lock().unwrap();
        assert!(dir.is_live());
        let refusal = dir.lock().unwrap_err().to_string();
        assert!(refusal.contains("a swarm is running in"), "{refusal}");
        assert!(refusal.contains(&std::process::id().to_string()), "{refusal}");
        drop(lock);
        assert!(!dir.is_live());
        dir.lock().unwrap();
    }

    #[test]
    fn only_what_simnet_made_is_cleared() {
        let temp = tempfile::tempdir().unwrap();
        let dir = SwarmDir::at(temp.path()).unwrap();
        let lock = dir.lock().unwrap();
        dir.clear(&lock).unwrap();

        std::fs::write(temp.path().join("notes.txt"), "mine").unwrap();
        assert!(dir.clear(&lock).unwrap_err().to_string().contains("not a directory of simnet"));

        std::fs::write(dir.plan_file(), "{}").unwrap();
        std::fs::create_dir_all(dir.data_dir("node-3")).unwrap();
        std::fs::create_dir_all(dir.chain_dir()).unwrap();
        std::fs::write(dir.env_file(), "").unwrap();
        std::fs::create_dir_all(temp.path().join("node-x")).unwrap();
        dir.clear(&lock).unwrap();
        assert!(temp.path().join("notes.txt").is_file());
        assert!(temp.path().join("node-x").is_dir());
        assert!(!temp.path().join("node-3").exists() && !dir.chain_dir().exists());
        assert!(!dir.env_file().exists() && !dir.plan_file().exists());
    }

    #[test]
    fn a_deep_directory_has_its_socket_elsewhere() {
        let near = SwarmDir::at(Path::new("/tmp/x")).unwrap();
        assert_eq!(near.socket(), Path::new("/tmp/x/control.sock"));
        let deep = SwarmDir::at(&Path::new("/tmp").join("d".repeat(120))).unwrap();
        let other = SwarmDir::at(&Path::new("/tmp").join("e".repeat(120))).unwrap();
        assert!(deep.socket().as_os_str().len() <= MAX_SOCKET_PATH);
        assert_eq!(deep.socket(), deep.socket());
        assert_ne!(deep.socket(), other.socket());
    }

    #[test]
    fn nodes_are_listed_by_number() {
        let temp = tempfile::tempdir().unwrap();
        for name in ["node-10", "node-2", "node-", "nodes.json", "node-1"] {
            std::fs::create_dir(temp.path().join(name)).unwrap();
        }
        let dir = SwarmDir::at(temp.path()).unwrap();
        assert_eq!(dir.node_names(), ["node-1", "node-2", "node-10"]);
    }
}
