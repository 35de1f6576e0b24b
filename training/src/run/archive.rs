//! A run as files: all that a replay needs, and nothing that anyone could not publish.
//!
//! ```text
//! spec.cbor              the signed specification, as its author signed it
//! tokenizer.json         the file whose hash it names
//! data.rows              the rows whose hash it names, if they are not generated
//! log/000001.cbor ...    the certified entry of every round, in order, without a gap
//! blobs/<BLAKE3>         what peers handed in, as far as it was kept: without these the model cannot be replayed
//! parameters/000000      the initial parameters, as [`Parameters::to_bytes`] writes them
//! parameters/<round>     those after the record of that round, if it was exported with its newest
//! ```
//! Every file is checked against what the signed ones say of it; a name proves nothing. Files are read whole, and never more
//! of one than its kind may be long.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use consortium_protocol::envelope::ENVELOPE_BYTES;
use consortium_protocol::wire::Message;
use consortium_protocol::wire::train::{Entry, RunSpec};
use consortium_protocol::{Hash, Payload, Signed};

use super::data::file_of;
use super::task::{MAX_TOKENIZER, task_of};
use crate::collective::{Parameters, Task};
use crate::dataset::Location;
use crate::error::TrainError;
use crate::tensor_file::write_atomically;

/// The specification.
pub const SPEC: &str = "spec.cbor";
/// The tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";
/// The rows.
pub const ROWS: &str = "data.rows";
/// Directory of the log.
pub const LOG: &str = "log";
/// Directory of what peers handed in.
pub const BLOBS: &str = "blobs";
/// Directory of parameters.
pub const PARAMETERS: &str = "parameters";
/// What a file of parameters has besides these, in bytes, at most: a megabyte for the names of its tensors.
const MAX_HEADER: usize = 1 << 20;

/// A directory with a run in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    directory: PathBuf,
}

impl Archive {
    /// Begins an archive, in a directory that is made if it is not there. One of the same run is added to.
    ///
    /// # Errors
    /// [`TrainError::Io`] if it cannot be written, [`TrainError::Archive`] if another run is in it.
    pub fn create(directory: &Path, spec: &Signed<RunSpec>) -> Result<Self, TrainError> {
        let archive = Self { directory: directory.to_path_buf() };
        for part in [LOG, BLOBS, PARAMETERS] {
            let part = directory.join(part);
            std::fs::create_dir_all(&part).map_err(TrainError::io(&part))?;
        }
        let path = directory.join(SPEC);
        if path.exists() && archive.spec()?.as_bytes() != spec.as_bytes() {
            return Err(refuse(&path, "another run is in this directory: choose one that is empty or not there"));
        }
        write_atomically(&path, spec.as_bytes())?;
        Ok(archive)
    }

    /// An archive that is there.
    ///
    /// # Errors
    /// [`TrainError::Archive`] if it has no specification that can be read.
    pub fn open(directory: &Path) -> Result<Self, TrainError> {
        let archive = Self { directory: directory.to_path_buf() };
        archive.spec()?;
        Ok(archive)
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes the tokenizer's file.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn put_tokenizer(&self, json: &[u8]) -> Result<(), TrainError> {
        write_atomically(&self.directory.join(TOKENIZER), json)
    }

    /// Copies the rows from a file.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn put_rows(&self, from: &Path) -> Result<(), TrainError> {
        let (path, new) = (self.directory.join(ROWS), self.directory.join(format!("{ROWS}.new")));
        let copied = std::fs::copy(from, &new).and_then(|_| File::open(&new)?.sync_all());
        copied.and_then(|()| std::fs::rename(&new, &path)).map_err(TrainError::io(&path))
    }

    /// Writes the entry of a round.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn put_entry(&self, entry: &Entry) -> Result<(), TrainError> {
        write_atomically(&self.entry_path(entry.record.round), &entry.encode())
    }

    /// Writes what a peer handed in; its name is its hash.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Hash, TrainError> {
        let hash = Hash::of(bytes);
        let path = self.blob_path(hash);
        if !path.exists() {
            write_atomically(&path, bytes)?;
        }
        Ok(hash)
    }

    /// Writes parameters as they are after the record of a round; of round 0 are the initial ones.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn put_parameters(&self, round: u64, parameters: &Parameters) -> Result<(), TrainError> {
        write_atomically(&self.parameters_path(round), &parameters.to_bytes()?)
    }

    /// The specification, with its signature checked.
    ///
    /// # Errors
    /// [`TrainError::Archive`] if it is missing, damaged or not signed.
    pub fn spec(&self) -> Result<Signed<RunSpec>, TrainError> {
        let path = self.directory.join(SPEC);
        let bytes = read(&path, RunSpec::MAX_BYTES + ENVELOPE_BYTES)?
            .ok_or_else(|| refuse(&path, "is missing: this directory holds no run"))?;
        Signed::decode(&bytes).map_err(|e| refuse(&path, format!("is no signed specification: {e}")))
    }

    /// The tokenizer's file. Whether it is the run's, [`task_of`] tells.
    ///
    /// # Errors
    /// [`TrainError::Archive`] if it is missing, empty or too long.
    pub fn tokenizer(&self) -> Result<Vec<u8>, TrainError> {
        let path = self.directory.join(TOKENIZER);
        read(&path, MAX_TOKENIZER)?.ok_or_else(|| refuse(&path, "is missing"))
    }

    /// What the run computes, from its specification and files.
    ///
    /// # Errors
    /// [`TrainError::Archive`] if a file is missing, and as [`task_of`].
    pub fn task(&self, spec: &RunSpec) -> Result<Task, TrainError> {
        let rows = file_of(spec).map(|_| self.directory.join(ROWS));
        if let Some(rows) = rows.as_deref().filter(|rows| !rows.exists()) {
            return Err(refuse(rows, "is missing: the run's data are a file"));
        }
        task_of(spec, &self.tokenizer()?, rows.map(Location::File), 1)
    }

    /// The entry of a round, with the signatures in it checked; none behind the last. Whether it continues the log, a
    /// [`Chain`](crate::rounds::Chain) tells.
    ///
    /// # Errors
    /// [`TrainError::Archive`] if it is damaged, of another round, or missing where later ones are not.
    pub fn entry(&self, round: u64) -> Result<Option<Entry>, TrainError> {
        let path = self.entry_path(round);
        let Some(bytes) = read(&path, Entry::MAX_BYTES)? else {
            return match self.has_later(round)? {
                true => Err(refuse(&path, "is missing, and later entries are not")),
                false => Ok(None),
            };
        };
        let entry = Entry::decode(&bytes).map_err(|e| refuse(&path, format!("is no entry of a log: {e}")))?;
        if entry.record.round != round {
            return Err(refuse(&path, format!("is the entry of round {}", entry.record.round)));
        }
        Ok(Some(entry))
    }

    /// How many entries the log has, by the names of its files.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the directory cannot be read.
    pub fn rounds(&self) -> Result<u64, TrainError> {
        Ok(self.log_names()?.into_iter().max().unwrap_or(0))
    }

    /// What was handed in under this hash, which is checked; none if it was not kept.
    ///
    /// # Errors
    /// [`TrainError::Archive`] if it is damaged.
    pub fn blob(&self, hash: Hash, most: u64) -> Result<Option<Vec<u8>>, TrainError> {
        let path = self.blob_path(hash);
        let Some(bytes) = read(&path, usize::try_from(most).unwrap_or(usize::MAX))? else { return Ok(None) };
        match Hash::of(&bytes) == hash {
            true => Ok(Some(bytes)),
            false => Err(refuse(&path, "is damaged: its contents have another hash than its name")),
        }
    }

    /// Parameters after a round's record, if they are here. Whether they are the right ones, their hash tells.
    ///
    /// # Errors
    /// [`TrainError::Archive`] if they are damaged, or of another model.
    pub fn parameters(&self, task: &Task, round: u64) -> Result<Option<Parameters>, TrainError> {
        let path = self.parameters_path(round);
        let numbers = usize::try_from(4 * task.layout().parameters()).unwrap_or(usize::MAX);
        let Some(bytes) = read(&path, numbers.saturating_add(MAX_HEADER))? else { return Ok(None) };
        Parameters::from_bytes(task, &bytes).map(Some).map_err(|e| refuse(&path, e.to_string()))
    }

    /// The newest parameters that are here, and the round whose record they follow; none if there are none.
    ///
    /// # Errors
    /// As [`Self::parameters`].
    pub fn newest_parameters(&self, task: &Task) -> Result<Option<(u64, Parameters)>, TrainError> {
        let newest = names(&self.directory.join(PARAMETERS))?.iter().filter_map(|name| name.parse().ok()).max();
        match newest {
            Some(round) => Ok(self.parameters(task, round)?.map(|parameters| (round, parameters))),
            None => Ok(None),
        }
    }

    fn entry_path(&self, round: u64) -> PathBuf {
        self.directory.join(LOG).join(format!("{round:06}.cbor"))
    }

    fn blob_path(&self, hash: Hash) -> PathBuf {
        self.directory.join(BLOBS).join(hash.to_string())
    }

    fn parameters_path(&self, round: u64) -> PathBuf {
        self.directory.join(PARAMETERS).join(format!("{round:06}"))
    }

    fn has_later(&self, round: u64) -> Result<bool, TrainError> {
        Ok(self.log_names()?.into_iter().any(|later| later > round))
    }

    fn log_names(&self) -> Result<Vec<u64>, TrainError> {
        let names = names(&self.directory.join(LOG))?;
        Ok(names.iter().filter_map(|name| name.strip_suffix(".cbor")?.parse().ok()).collect())
    }
}

/// The names of files in a directory; none if it is not there.
fn names(directory: &Path) -> Result<Vec<String>, TrainError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(TrainError::io(directory)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(TrainError::io(directory))?.file_name().into_string());
    }
    Ok(names)
}

fn refuse(path: &Path, reason: impl Into<String>) -> TrainError {
    TrainError::Archive { path: path.to_path_buf(), reason: reason.into() }
}

/// A file of at most `most` bytes; none if it is not there.
fn read(path: &Path, most: usize) -> Result<Option<Vec<u8>>, TrainError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(TrainError::io(path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes).map_err(TrainError::io(path))?;
    if bytes.is_empty() {
        return Err(refuse(path, "is empty"));
    }
    if bytes.len() > most {
        return Err(refuse(path, format!("is longer than the {most} bytes that it may have")));
    }
    Ok(Some(bytes))
}
