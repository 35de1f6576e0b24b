//! The data directory: created on demand, held by one running node at a time.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another node runs on it.
    #[error("{0} is in use by a running node; stop that one first, or give this one its own --data-dir")]
    InUse(PathBuf),
    /// It cannot be made or written.
    #[error("{path}: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

/// Makes the directory, open to its owner alone.
///
/// # Errors
/// When it cannot be made.
pub fn create(path: &Path) -> Result<(), DataDirError> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(|source| DataDirError::Io { path: path.to_owned(), source })
}

/// Writes a file that its owner alone can read, in one step: after a crash there is the old one or the whole new one.
///
/// # Errors
/// When it cannot be written.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(temporary, path)?;
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// Held for as long as a node runs; the system lets go of it with the process.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Makes the directory if need be, and locks it.
    ///
    /// # Errors
    /// [`DataDirError::InUse`] when another node holds it.
    pub fn acquire(data_dir: &Path) -> Result<Self, DataDirError> {
        create(data_dir)?;
        let path = data_dir.join("lock");
        let io = |source| DataDirError::Io { path: path.clone(), source };
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(DataDirError::InUse(data_dir.to_owned())),
            Err(TryLockError::Error(source)) => Err(io(source)),
        }
    }
}

/// How CLI commands find the node that runs on a data directory: `api.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ApiFile {
    /// Base URL of the API, ending in `/v1`.
    pub api_base: String,
    /// Process id of the node.
    pub pid: u32,
    /// Its PeerId.
    pub peer_id: String,
}

impl ApiFile {
    fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("api.json")
    }

    /// Writes the file in one step.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn write(&self, data_dir: &Path) -> io::Result<()> {
        let temporary = data_dir.join("api.json.new");
        std::fs::write(&temporary, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(temporary, Self::path(data_dir))
    }

    /// Reads the file of a running (or crashed) node.
    ///
    /// # Errors
    /// `NotFound` when no node has been started, `InvalidData` when the file is damaged.
    pub fn read(data_dir: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(Self::path(data_dir))?)?)
    }

    /// Removes the file at a clean shutdown.
    pub fn remove(data_dir: &Path) {
        let _absent = std::fs::remove_file(Self::path(data_dir));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_held_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let held = Lock::acquire(dir.path()).unwrap();
        assert!(matches!(Lock::acquire(dir.path()), Err(DataDirError::InUse(_))));
        drop(held);
        Lock::acquire(dir.path()).unwrap();
    }
}
