//! The log of a run on disk: certified entries, one behind the other.
//!
//! ```text
//! length (u32, little-endian)  first 8 bytes of the BLAKE3 hash of the entry  the entry (canonical CBOR)
//! ```
//! An entry is on the disk before it counts; those that come together are made durable together. One that was being written
//! when the power went is cut off at the next start, with those behind it: others have them.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use consortium_protocol::wire::Message as _;
use consortium_protocol::wire::train::{Entry, MAX_NEXT};
use tracing::warn;

use super::store::{StoreError, at};

/// Length and checksum.
const HEAD: usize = 12;
/// Entries that are told together take no more bytes, unless the first takes more: they are to come through by slow links.
const TOGETHER: u64 = 128 << 10;

/// An open log.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    /// Where each entry begins: that of round 1 first.
    starts: Vec<u64>,
    end: u64,
}

fn checksum(bytes: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    sum.copy_from_slice(&blake3::hash(bytes).as_bytes()[..8]);
    sum
}

/// Reads the next entry; none at the end, or where what follows is no whole entry.
fn next(file: &mut impl io::Read) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::with_capacity(HEAD);
    file.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    let Some((length, sum)) = head.split_first_chunk::<4>().filter(|_| head.len() == HEAD) else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > Entry::MAX_BYTES {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(length);
    file.by_ref().take(length as u64).read_to_end(&mut bytes)?;
    Ok((bytes.len() == length && checksum(&bytes) == sum).then_some(bytes))
}

/// Shows the entries of the log at `path` as far as they are whole; none if there is no log. Answers with how many bytes these
/// take.
///
/// # Errors
/// As [`Log::open`].
pub(super) fn look(path: &Path, mut see: impl FnMut(&Entry)) -> Result<u64, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(at(path)(error)),
    };
    let (mut reader, mut whole) = (BufReader::new(file), 0);
    while let Some(bytes) = next(&mut reader).map_err(at(path))? {
        see(&Entry::decode(&bytes).map_err(|error| StoreError::damaged(path, &error))?);
        whole += (HEAD + bytes.len()) as u64;
    }
    Ok(whole)
}

/// Reads a log while it grows.
#[derive(Debug)]
pub(super) struct Tail {
    path: PathBuf,
    /// Where the next entry begins.
    start: u64,
}

impl Tail {
    /// From the beginning of the log in the directory of a run.
    pub(super) fn of(directory: &Path) -> Self {
        Self { path: directory.join("log"), start: 0 }
    }

    /// Shows every entry that has come since to `take`, in order. One that is not taken, and those after it, are shown again
    /// the next time.
    ///
    /// # Errors
    /// When the log cannot be read, or an entry is not taken.
    pub(super) fn read<E: From<StoreError>>(&mut self, mut take: impl FnMut(&Entry) -> Result<(), E>) -> Result<(), E> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(at(&self.path)(error).into()),
        };
        file.seek(SeekFrom::Start(self.start)).map_err(at(&self.path))?;
        let mut reader = BufReader::new(file);
        while let Some(bytes) = next(&mut reader).map_err(at(&self.path))? {
            take(&Entry::decode(&bytes).map_err(|error| StoreError::damaged(&self.path, &error))?)?;
            self.start += (HEAD + bytes.len()) as u64;
        }
        Ok(())
    }
}

impl Log {
    /// Opens the log at `path`, an empty one if there is none; shows every entry to `see`.
    ///
    /// # Errors
    /// When it cannot be read, or an entry that is whole is none of this version.
    pub(super) fn open(path: &Path, mut see: impl FnMut(Entry)) -> Result<Self, StoreError> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(at(path))?;
        let (mut starts, mut end) = (Vec::new(), 0);
        let mut reader = BufReader::new(&file);
        while let Some(bytes) = next(&mut reader).map_err(at(path))? {
            let entry = Entry::decode(&bytes).map_err(|error| StoreError::damaged(path, &error))?;
            starts.push(end);
            end += (HEAD + bytes.len()) as u64;
            see(entry);
        }
        let length = file.metadata().map_err(at(path))?.len();
        if length > end {
            warn!(log = %path.display(), bytes = length - end, "the log of a run ends in the middle of an entry, which is cut off");
            file.set_len(end).and_then(|()| file.sync_all()).map_err(at(path))?;
        }
        Ok(Self { path: path.to_owned(), file, starts, end })
    }

    /// Writes the next entries down. If that fails the log is as it was.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn append(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        let (mut frames, mut starts) = (Vec::new(), Vec::new());
        for entry in entries {
            let bytes = entry.encode();
            let length = u32::try_from(bytes.len()).map_err(|_| at(&self.path)(io::ErrorKind::FileTooLarge.into()))?;
            starts.push(self.end + frames.len() as u64);
            frames.extend([&length.to_le_bytes()[..], &checksum(&bytes), &bytes].concat());
        }
        let file = &mut self.file;
        let written =
            file.seek(SeekFrom::Start(self.end)).and_then(|_| file.write_all(&frames)).and_then(|()| file.sync_data());
        if let Err(error) = written {
            // Half an entry is of no use, and takes room.
            let _ = file.set_len(self.end);
            return Err(at(&self.path)(error));
        }
        self.starts.extend(starts);
        self.end += frames.len() as u64;
        Ok(())
    }

    /// The entries from a round on in their canonical encoding, which were checked when they were written: as many as are told
    /// together, none if that of the round is not here.
    ///
    /// # Errors
    /// When that of the round cannot be read any more.
    pub(super) fn entries(&mut self, round: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        let place = round.checked_sub(1).and_then(|place| usize::try_from(place).ok());
        let starts = place.and_then(|place| self.starts.get(place..)).unwrap_or_default();
        let Some(first) = starts.first() else { return Ok(Vec::new()) };
        let ends = starts[1..].iter().chain([&self.end]).take(1 + MAX_NEXT);
        let count = ends.take_while(|end| **end - first <= TOGETHER).count().max(1);
        self.file.seek(SeekFrom::Start(*first)).map_err(at(&self.path))?;
        let mut reader = BufReader::new(&self.file);
        let mut entries = Vec::with_capacity(count);
        while entries.len() < count {
            match next(&mut reader) {
                Ok(Some(entry)) => entries.push(entry),
                // Those before it are of use.
                Ok(None) | Err(_) if !entries.is_empty() => break,
                Ok(None) => return Err(at(&self.path)(io::ErrorKind::InvalidData.into())),
                Err(error) => return Err(at(&self.path)(error)),
            }
        }
        Ok(entries)
    }

    /// How many entries there are.
    pub(super) fn len(&self) -> u64 {
        self.starts.len() as u64
    }
}
