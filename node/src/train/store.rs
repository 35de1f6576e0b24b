//! The directory of a run: what a node must not forget of it.
//!
//! ```text
//! spec.cbor         the specification, as it was signed
//! log               certified entries (`log`)
//! ballot, card,     the newest of each kind of what the machine has stored
//! trained
//! parameters.cbor   which files hold the parameters (`Kept`); they are files like others (`blobs`)
//! peer.safetensors  optimiser and error feedback of this peer
//! wish.json         what this node would do in the run
//! pause.json        on what terms it trains (`pause`)
//! ```
//! Small files are replaced in one step. One process has the directory: that of the data directory's lock.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use consortium_protocol::cbor;
use consortium_protocol::wire::Message as _;
use consortium_protocol::wire::train::{Entry, RunSpec, StateFile};
use consortium_protocol::{Hash, Signed};
use consortium_training::rounds::{Held, Stored, Wish};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::files;
use super::log::Log;
use super::pause::Standing;
use crate::data_dir::write_private;

/// Longest file that is read whole: a ballot with its proposal.
const MAX_FILE: usize = 2 * Entry::MAX_BYTES;

/// Why the directory of a run cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk refuses.
    #[error("{path}: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl StoreError {
    pub(super) fn damaged(path: &Path, why: &dyn Display) -> Self {
        Self::Damaged { path: path.to_owned(), why: why.to_string() }
    }
}

pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError::Io { path, source }
}

/// Which files hold the parameters of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// The newest, and the round whose record they follow.
    pub newest: Option<(u64, StateFile)>,
    /// Those before the last aggregate.
    pub before: Option<StateFile>,
    /// Those that the run began with.
    pub initial: Option<StateFile>,
}

impl Kept {
    /// What the machine is told.
    #[must_use]
    pub fn held(&self) -> Option<Held> {
        self.newest.map(|(round, file)| Held { round, state: file.state })
    }

    /// The files, each once.
    pub fn files(&self) -> impl Iterator<Item = StateFile> {
        let all = [self.newest.map(|(_, file)| file), self.before, self.initial];
        let mut files: Vec<StateFile> = all.into_iter().flatten().collect();
        files.sort_unstable_by_key(|file| file.state);
        files.dedup();
        files.into_iter()
    }

    /// The file that holds a state.
    #[must_use]
    pub fn file(&self, state: Hash) -> Option<StateFile> {
        self.files().find(|file| file.state == state)
    }
}

/// What this peer committed to: in even rounds, in odd ones, and as it was kept before rounds could overlap.
const TRAINED: [&str; 3] = ["trained-even", "trained-odd", "trained"];

/// An open directory of a run.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    log: Log,
}

impl Store {
    /// Begins the directory of a run, or finds it begun.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(directory: &Path, spec: &Signed<RunSpec>) -> Result<(), StoreError> {
        crate::data_dir::create(directory).map_err(|error| StoreError::damaged(directory, &error))?;
        let path = directory.join("spec.cbor");
        if path.exists() { Ok(()) } else { write_private(&path, spec.as_bytes()).map_err(at(&path)) }
    }

    /// The specification in a directory.
    ///
    /// # Errors
    /// When it cannot be read, or is none.
    pub fn spec(directory: &Path) -> Result<Signed<RunSpec>, StoreError> {
        let path = directory.join("spec.cbor");
        let bytes = std::fs::read(&path).map_err(at(&path))?;
        Signed::decode(&bytes).map_err(|error| StoreError::damaged(&path, &error))
    }

    /// Opens the directory of a run. Gives, in its order, what the machine has stored, after showing every entry to `see`.
    ///
    /// # Errors
    /// When something in it cannot be read, or does not hold what it should.
    pub fn open(directory: &Path, mut see: impl FnMut(&Entry)) -> Result<(Self, Vec<Stored>), StoreError> {
        let mut entries = Vec::new();
        let log = Log::open(&directory.join("log"), |entry| {
            see(&entry);
            entries.push(entry);
        })?;
        let mut stored = vec![Stored::Entries(entries)];
        let store = Self { directory: directory.to_owned(), log };
        for name in ["ballot", "card"].into_iter().chain(TRAINED) {
            stored.extend(store.read::<Stored>(name)?);
        }
        Ok((store, stored))
    }

    /// Shows the entries of a log that another may be writing; what it is just writing is left out.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn look(directory: &Path, see: impl FnMut(&Entry)) -> Result<(), StoreError> {
        super::log::look(&directory.join("log"), see).map(drop)
    }

    /// Makes something durable.
    ///
    /// # Errors
    /// When the disk refuses; what was there before stays.
    pub fn persist(&mut self, stored: &Stored) -> Result<(), StoreError> {
        match stored {
            Stored::Entries(entries) => self.log.append(entries),
            Stored::Ballot(_) => self.write("ballot", stored),
            Stored::Card(_) => self.write("card", stored),
            Stored::Trained { commit, .. } => {
                // A peer may have committed for the next round, too.
                self.write(TRAINED[usize::from(commit.payload().round % 2 == 1)], stored)
            }
        }
    }

    /// The certified entries from a round on in their canonical encoding: as many of them as one message takes, none if that
    /// of the round is not here.
    ///
    /// # Errors
    /// When that of the round cannot be read any more.
    pub fn entries(&mut self, round: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        self.log.entries(round)
    }

    /// How many entries the log has.
    #[must_use]
    pub fn rounds(&self) -> u64 {
        self.log.len()
    }

    /// The files that a run is for: its tokenizer and data, parameters, the updates that its log names, and the one that this peer
    /// committed to. Some may not be here. What others handed in for the round that goes on is not among them.
    ///
    /// # Errors
    /// When something that says so cannot be read, or the log ends within an entry: then more may have been named.
    pub(super) fn files(directory: &Path) -> Result<BTreeSet<Hash>, StoreError> {
        let spec = Self::spec(directory)?;
        let mut files: BTreeSet<Hash> = files::names(spec.payload()).collect();
        files.extend(Self::kept(directory)?.files().map(|file| file.file));
        let log = directory.join("log");
        let named = |entry: &Entry| files.extend(entry.body.reveals.iter().map(|reveal| reveal.payload().update));
        if super::log::look(&log, named)? < std::fs::metadata(&log).map_or(0, |file| file.len()) {
            return Err(StoreError::damaged(&log, &"it ends within an entry"));
        }
        for name in TRAINED {
            if let Some(Stored::Trained { update, .. }) = read(&directory.join(format!("{name}.cbor")))? {
                files.insert(update);
            }
        }
        Ok(files)
    }

    /// Which files hold the parameters.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn kept(directory: &Path) -> Result<Kept, StoreError> {
        Ok(read(&directory.join("parameters.cbor"))?.unwrap_or_default())
    }

    /// Notes which files hold the parameters.
    ///
    /// # Errors
    /// When the disk refuses; what was noted before stays.
    pub fn keep(directory: &Path, kept: &Kept) -> Result<(), StoreError> {
        let path = directory.join("parameters.cbor");
        write_private(&path, &cbor::to_vec(kept)).map_err(at(&path))
    }

    /// Where optimiser and error feedback are.
    #[must_use]
    pub fn peer(directory: &Path) -> PathBuf {
        directory.join("peer.safetensors")
    }

    /// What this node would do in the run; none if it has left it.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn wish(directory: &Path) -> Result<Option<Wish>, StoreError> {
        read_json(&directory.join("wish.json"))
    }

    /// Notes what this node would do in the run.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn set_wish(directory: &Path, wish: Option<Wish>) -> Result<(), StoreError> {
        write_json(&directory.join("wish.json"), &wish)
    }

    /// How this node stands with the terms on which it trains; none if it trains on none.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn standing(directory: &Path) -> Result<Option<Standing>, StoreError> {
        read_json(&directory.join("pause.json"))
    }

    /// Notes how this node stands with the terms on which it trains.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn set_standing(directory: &Path, standing: Option<&Standing>) -> Result<(), StoreError> {
        let path = directory.join("pause.json");
        if standing.is_none() && !path.exists() { Ok(()) } else { write_json(&path, &standing) }
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn read<T: Serialize + DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        read(&self.directory.join(format!("{name}.cbor")))
    }

    fn write(&self, name: &str, value: &impl Serialize) -> Result<(), StoreError> {
        let path = self.directory.join(format!("{name}.cbor"));
        write_private(&path, &cbor::to_vec(value)).map_err(at(&path))
    }
}

fn read<T: Serialize + DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(path)(error)),
    };
    cbor::from_slice(&bytes, MAX_FILE).map(Some).map_err(|error| StoreError::damaged(path, &error))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| StoreError::damaged(path, &error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(path)(error)),
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(value).map_err(|error| StoreError::damaged(path, &error))?;
    write_private(path, &bytes).map_err(at(path))
}
