//! The root key on disk: 32 bytes of seed as hex, readable by its owner alone.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use consortium_protocol::identity::RootKey;

use crate::data_dir::write_private;

/// File name within the data directory.
pub const FILE: &str = "identity.key";
const HEX: usize = 64;

/// Why the key could not be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// The key file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The file is no key.
    #[error(
        "{0} is damaged: it must hold 64 hexadecimal digits. Restore it from a backup; if there is none, move it away \
         and a new identity will be made at the next start"
    )]
    Damaged(PathBuf),
    /// Others can read the key.
    #[error("{path} can be read by others (mode {mode:o}); run: chmod 600 {path}")]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// Loads the key of `data_dir`, or makes one at the first start.
///
/// # Errors
/// When the file cannot be read or written, is damaged, or is readable by others.
pub fn load_or_create(data_dir: &Path) -> Result<RootKey, KeyError> {
    let path = data_dir.join(FILE);
    match load(&path) {
        Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => create(&path),
        other => other,
    }
}

fn load(path: &Path) -> Result<RootKey, KeyError> {
    let io = |source| KeyError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    check_mode(path, &file)?;
    let mut text = String::new();
    file.take(HEX as u64 + 2).read_to_string(&mut text).map_err(io)?;
    let mut seed = [0; 32];
    hex::decode_to_slice(text.trim_end(), &mut seed).map_err(|_| KeyError::Damaged(path.to_owned()))?;
    Ok(RootKey::from_seed(seed))
}

#[cfg(unix)]
fn check_mode(path: &Path, file: &File) -> Result<(), KeyError> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = file.metadata().map_err(|source| KeyError::Io { path: path.to_owned(), source })?.permissions().mode();
    if mode & 0o077 == 0 { Ok(()) } else { Err(KeyError::Exposed { path: path.to_owned(), mode: mode & 0o777 }) }
}

#[cfg(not(unix))]
fn check_mode(_: &Path, _: &File) -> Result<(), KeyError> {
    Ok(())
}

/// Makes a fresh key; a crash leaves a whole one or none.
fn create(path: &Path) -> Result<RootKey, KeyError> {
    let io = |source| KeyError::Io { path: path.to_owned(), source };
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| io(io::Error::other(error)))?;
    write_private(path, format!("{}\n", hex::encode(seed)).as_bytes()).map_err(io)?;
    Ok(RootKey::from_seed(seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_made_once_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let first = load_or_create(dir.path()).unwrap().node_id();
        assert_eq!(load_or_create(dir.path()).unwrap().node_id(), first);
    }

    #[cfg(unix)]
    #[test]
    fn is_private_and_refused_when_it_is_not() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        load_or_create(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(load_or_create(dir.path()), Err(KeyError::Exposed { mode: 0o644, .. })));
    }

    #[test]
    fn a_damaged_file_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        load_or_create(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        std::fs::write(&path, "abc").unwrap();
        assert!(matches!(load_or_create(dir.path()), Err(KeyError::Damaged(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"abc");
    }
}
