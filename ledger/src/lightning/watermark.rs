//! Refuses a copy of the wallet's directory that is older than what ran last: a channel run from an old state can be
//! taken whole by its other side.
//!
//! Every event of the wallet, its starts and stops among them, has a number in `wallet.db`, and the highest is noted
//! beside the directory too, after it is in the database. A database that knows less than the note is an old copy. Not
//! noticed are copies of the whole data directory, and those taken since the last event.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The note.
#[derive(Debug)]
pub(super) struct Watermark {
    path: PathBuf,
}

impl Watermark {
    /// The note beside a wallet's directory.
    pub(super) fn beside(directory: &Path) -> Self {
        Self { path: directory.with_extension("watermark") }
    }

    /// Whether a database whose newest event is `newest` is the one that ran last, or newer than the note.
    pub(super) fn allows(&self, newest: u64) -> io::Result<bool> {
        match std::fs::read_to_string(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            text => Ok(text?.trim_end().parse::<u64>().is_ok_and(|noted| noted <= newest)),
        }
    }

    /// Notes the newest event.
    pub(super) fn note(&self, newest: u64) -> io::Result<()> {
        let temporary = self.path.with_extension("watermark.new");
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        writeln!(file, "{newest}")?;
        std::fs::rename(temporary, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_database_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let note = Watermark::beside(&dir.path().join("lightning"));
        assert!(note.allows(0).unwrap(), "nothing ran yet");
        note.note(7).unwrap();
        assert!(note.allows(7).unwrap() && note.allows(8).unwrap());
        assert!(!note.allows(6).unwrap());
        std::fs::write(dir.path().join("lightning.watermark"), "seven").unwrap();
        assert!(!note.allows(100).unwrap(), "what cannot be read is no leave");
    }
}
