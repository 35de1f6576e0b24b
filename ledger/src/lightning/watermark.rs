//! Refuses a copy of the wallet's directory that is older than what ran last: a channel run from an old state can be
//! taken whole by its other side.
//!
//! Every event of the wallet, its starts and stops among them, has a number in `wallet.db`, and the highest is noted
//! beside the directory too, after it is in the database. A database that knows less than the note is an old copy, and so
//! is one that knows of events where there is no note: it was put there. Not noticed are copies of the whole data
//! directory, and those taken since the last event.

use std::fs::{File, OpenOptions};
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
    ///
    /// # Errors
    /// When the note cannot be read, or is none.
    pub(super) fn allows(&self, newest: u64) -> io::Result<bool> {
        let text = match std::fs::read_to_string(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(newest == 0),
            text => text?,
        };
        let noted = text.trim_end().parse::<u64>().map_err(|_| {
            let path = self.path.display();
            let why = format!(
                "{path} is damaged: it tells old copies of the wallet's directory from the one that ran last. If no copy \
                 was put back since it ran, write 0 into it"
            );
            io::Error::new(io::ErrorKind::InvalidData, why)
        })?;
        Ok(noted <= newest)
    }

    /// Forgets what was noted: the wallet is begun anew.
    pub(super) fn forget(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Notes the newest event.
    pub(super) fn note(&self, newest: u64) -> io::Result<()> {
        let temporary = self.path.with_extension("watermark.new");
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        writeln!(file, "{newest}")?;
        // Whatever ends the machine leaves the old note or the new one.
        file.sync_all()?;
        std::fs::rename(temporary, &self.path)?;
        self.path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
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
        assert!(!note.allows(1).unwrap(), "what ran was noted, elsewhere");
        note.note(7).unwrap();
        assert!(note.allows(7).unwrap() && note.allows(8).unwrap());
        assert!(!note.allows(6).unwrap());
        std::fs::write(dir.path().join("lightning.watermark"), "seven").unwrap();
        assert!(note.allows(100).is_err(), "what cannot be read is no leave");
        note.forget().unwrap();
        note.forget().unwrap();
        assert!(note.allows(0).unwrap());
    }
}
