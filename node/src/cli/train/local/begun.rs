//! A run on this machine alone, as it is on the disk until it has ended: the same command goes on with it.
//!
//! ```text
//! DIR/nodes/lock           held by the process that trains
//! DIR/nodes/local.json     what was begun (`Begun`): written last, so that without it nothing was
//! DIR/nodes/N/seed         the key of a node, validators first
//! DIR/nodes/N/run, blobs   as every node has them
//! ```

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use consortium_protocol::wire::train::StateFile;
use consortium_protocol::{RootKey, Signed};
use consortium_training::run::{Expected, Prepared, Wishes, state_of};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::blobs::Blobs;
use crate::data_dir::{self, DataDirError, Lock, write_private};
use crate::train::{Kept, Store};

/// Room for the files of a node, in bytes.
const ROOM: u64 = 64 << 30;
/// Length of a key's seed, in bytes.
const SEED: usize = 32;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    pub(super) peers: u8,
    pub(super) validators: u8,
    pub(super) plan: Wishes,
}

/// A run that was begun.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Begun {
    pub(super) asked: Asked,
    pub(super) expected: Expected,
}

/// The directory of a run; nobody else trains in it meanwhile.
pub(super) struct Site {
    out: PathBuf,
    _lock: Lock,
}

impl Asked {
    pub(super) fn nodes(&self) -> u8 {
        self.validators + self.peers
    }

    /// What another asked for differently, in words.
    fn differences(&self, other: &Self) -> Vec<String> {
        let (mine, theirs) = (self.options(), other.options());
        let names: std::collections::BTreeSet<&String> = mine.keys().chain(theirs.keys()).collect();
        let told = |options: &Map<String, Value>, name: &String| {
            options.get(name).map_or_else(|| "not given".to_owned(), ToString::to_string)
        };
        let differs = names.into_iter().filter(|name| mine.get(*name) != theirs.get(*name));
        differs.map(|name| format!("{name} is {} there, {} here", told(&mine, name), told(&theirs, name))).collect()
    }

    fn options(&self) -> Map<String, Value> {
        // What is asked for has names for all of it, so that it is always an object.
        let Ok(Value::Object(mut options)) = serde_json::to_value(&self.plan) else { return Map::new() };
        options.insert("peers".to_owned(), self.peers.into());
        options.insert("validators".to_owned(), self.validators.into());
        options
    }
}

impl Site {
    /// Opens a directory that is empty, not there, or has a run that was begun.
    ///
    /// # Errors
    /// When there is something else in it, another process trains in it, or it cannot be made.
    pub(super) fn open(out: &Path) -> Result<Self> {
        let nodes = out.join("nodes");
        let others = match std::fs::read_dir(out) {
            Ok(mut files) => files.any(|file| file.is_ok_and(|file| file.file_name() != "nodes")),
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", out.display())),
        };
        let begun = nodes.join("local.json").is_file();
        ensure!(
            begun || !others,
            "{} is not empty: choose a directory that is, or one that is not there",
            out.display()
        );
        std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
        let lock = match Lock::acquire(&nodes) {
            Ok(lock) => lock,
            Err(DataDirError::InUse(_)) => bail!("another process trains in {}", out.display()),
            Err(error) => return Err(error.into()),
        };
        Ok(Self { out: out.to_owned(), _lock: lock })
    }

    pub(super) fn out(&self) -> &Path {
        &self.out
    }

    fn nodes(&self) -> PathBuf {
        self.out.join("nodes")
    }

    /// Where a node has its files.
    pub(super) fn node(&self, n: u8) -> PathBuf {
        self.nodes().join(n.to_string())
    }

    /// The files of a node.
    pub(super) fn blobs(&self, n: u8) -> Result<Blobs> {
        Ok(Blobs::open(self.node(n).join("blobs"), ROOM)?)
    }

    /// The key of a node.
    pub(super) fn key(&self, n: u8) -> Result<Arc<RootKey>> {
        let path = self.node(n).join("seed");
        let seed = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let seed = <[u8; SEED]>::try_from(seed).ok().with_context(|| format!("{} is no key", path.display()))?;
        Ok(Arc::new(RootKey::from_seed(seed)))
    }

    /// The run that was begun here, if it is the one asked for; none if none was.
    ///
    /// # Errors
    /// When it is another, or cannot be read.
    pub(super) fn begun(&self, asked: &Asked) -> Result<Option<Begun>> {
        let path = self.nodes().join("local.json");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let begun: Begun = serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
        let differences = begun.asked.differences(asked);
        ensure!(
            differences.is_empty(),
            "{} has a run of another plan that has not ended: {}. Give the same options to go on with it, or another directory",
            self.out.display(),
            differences.join(", ")
        );
        Ok(Some(begun))
    }

    /// Makes the keys of all nodes, validators first; what was left of a beginning that was broken off goes.
    pub(super) fn make_keys(&self, nodes: u8) -> Result<Vec<Arc<RootKey>>> {
        let make = |n| {
            let root = self.node(n);
            if root.exists() {
                std::fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
            }
            let mut seed = [0; SEED];
            getrandom::fill(&mut seed).context("this machine gives no random numbers")?;
            data_dir::create(&root)?;
            let path = root.join("seed");
            write_private(&path, &seed).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(Arc::new(RootKey::from_seed(seed)))
        };
        (0..nodes).map(make).collect()
    }

    /// Gives every node what it begins with.
    pub(super) async fn begin(&self, asked: Asked, made: Prepared, author: &RootKey) -> Result<Begun> {
        let Prepared { spec, initial, tokenizer, data, expected, .. } = made;
        let (spec, content) = (Signed::sign(author, spec), initial.to_bytes()?);
        for n in 0..asked.nodes() {
            let (directory, blobs) = (self.node(n).join("run"), self.blobs(n)?);
            Store::create(&directory, &spec)?;
            for file in [Some(tokenizer.clone()), data.as_ref().map(|bytes| bytes.to_vec())].into_iter().flatten() {
                blobs.put(file).await?;
            }
            let file = blobs.put(content.clone()).await?;
            let file = StateFile { state: state_of(&initial), file, bytes: content.len() as u64 };
            Store::keep(&directory, &Kept { newest: Some((0, file)), before: None, initial: Some(file) })?;
        }
        let begun = Begun { asked, expected };
        let path = self.nodes().join("local.json");
        write_private(&path, &serde_json::to_vec(&begun)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(begun)
    }

    /// Takes the nodes away, as the run has ended and its files are written.
    pub(super) fn clear(&self) -> Result<()> {
        let nodes = self.nodes();
        let context = || format!("cannot remove {}", nodes.display());
        // Half of the nodes are no run to go on with.
        std::fs::remove_file(nodes.join("local.json")).with_context(context)?;
        std::fs::remove_dir_all(&nodes).with_context(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(rounds: u64) -> Asked {
        let plan = Wishes { rounds: Some(rounds), seed: (rounds > 3).then_some(7), ..Wishes::default() };
        Asked { peers: 2, validators: 1, plan }
    }

    fn begun(out: &Path, rounds: u64) {
        let expected = Expected {
            read: None,
            parameters: 1,
            update_bytes: 1,
            tokens_per_second: 0.1,
            round_seconds: 1e-3,
            validation_share: 0.3,
            most_cost: consortium_protocol::Msat(0),
        };
        let bytes = serde_json::to_vec(&Begun { asked: asked(rounds), expected }).unwrap();
        std::fs::create_dir_all(out.join("nodes")).unwrap();
        std::fs::write(out.join("nodes/local.json"), bytes).unwrap();
    }

    #[test]
    fn the_same_plan_goes_on_and_another_is_refused_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let site = Site::open(dir.path()).unwrap();
        assert_eq!(site.begun(&asked(3)).unwrap(), None);
        begun(dir.path(), 3);
        assert_eq!(site.begun(&asked(3)).unwrap().unwrap().asked, asked(3));
        let error = site.begun(&Asked { peers: 5, ..asked(4) }).unwrap_err().to_string();
        for words in ["peers is 2 there, 5 here", "rounds is 3 there, 4 here", "seed is not given there, 7 here"] {
            assert!(error.contains(words), "{words}: {error}");
        }
        assert!(!error.contains("validators"), "{error}");
        std::fs::write(dir.path().join("nodes/local.json"), b"{}").unwrap();
        assert!(format!("{:#}", site.begun(&asked(3)).unwrap_err()).contains("local.json is damaged"));
    }

    #[test]
    fn a_directory_is_for_one_run_and_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let refused = || Site::open(dir.path()).map(drop).unwrap_err().to_string();
        let site = Site::open(dir.path()).unwrap();
        assert!(refused().contains("another process trains in"));
        drop(site);
        // What a beginning left that was broken off goes.
        let left = dir.path().join("nodes/0/run/spec.cbor");
        std::fs::create_dir_all(left.parent().unwrap()).unwrap();
        std::fs::write(&left, b"of another run").unwrap();
        let site = Site::open(dir.path()).unwrap();
        let keys = site.make_keys(2).unwrap();
        assert!(!left.exists());
        assert_eq!(site.key(1).unwrap().node_id(), keys[1].node_id());
        drop(site);
        std::fs::write(dir.path().join("README.md"), b"something").unwrap();
        assert!(refused().contains("is not empty"));
        begun(dir.path(), 3);
        Site::open(dir.path()).unwrap().clear().unwrap();
        assert!(!dir.path().join("nodes").exists());
    }
}
