//! What a stage keeps of its sessions until nobody can ask for it any more: in memory while they run, then on disk, so
//! that a node that starts again can still show its work. Both are bounded, and the oldest make way.
//!
//! A file holds what is sent to whoever may see it: `u32 length | opening | inputs | outputs`, little-endian.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::wire::Message as _;
use consortium_protocol::wire::audit::{Opening, StageReceipt};
use tracing::warn;

/// How long a sealed session can be opened. A payer draws as soon as it has the receipts.
pub const KEEP: Duration = Duration::from_secs(600);
/// The most memory that sessions take, bytes: those in progress, and those that could not be written.
pub const MEMORY: u64 = 512 << 20;
/// The most that sealed sessions take on disk, bytes.
pub const DISK: u64 = 4 << 30;

/// A session that was sealed by a receipt.
#[derive(Debug)]
pub struct Kept {
    /// The receipt.
    pub receipt: Signed<StageReceipt>,
    /// Its rows.
    pub opening: Opening,
    /// What came in, f32 little-endian `[rows, width]`; empty for the first stage.
    pub inputs: Vec<u8>,
    /// What came out, of the same shape. Of the last stage, the hidden states before the final norm.
    pub outputs: Vec<u8>,
    /// Holds the memory.
    pub(super) _room: Room,
}

/// Where a sealed session is.
#[derive(Clone, Debug)]
pub enum Place {
    /// In memory: it is about to be written, or cannot be.
    Memory(Arc<Kept>),
    /// In this file.
    File(PathBuf),
}

/// Cloneable handle to the kept sessions.
#[derive(Clone, Debug)]
pub struct Spool {
    folder: Arc<Path>,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Entry {
    sealed: Instant,
    /// On disk; 0 in memory.
    bytes: u64,
    place: Place,
}

#[derive(Debug)]
struct Inner {
    memory: u64,
    used: u64,
    disk: u64,
    on_disk: u64,
    kept: BTreeMap<Hash, Entry>,
}

/// Memory taken from the spool's budget until dropped.
#[derive(Debug)]
pub(super) struct Room {
    spool: Spool,
    bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut inner = self.spool.lock();
        inner.used = inner.used.saturating_sub(self.bytes);
    }
}

impl Room {
    /// Takes more; older sessions make way. False when there is not as much even without them.
    pub(super) fn grow(&mut self, bytes: u64) -> bool {
        while !self.spool.lock().take(bytes) {
            // Dropped outside of the lock: it gives its memory back.
            // One that is being written gives its memory back when that is done, and not before.
            let idle = |entry: &Entry| matches!(&entry.place, Place::Memory(kept) if Arc::strong_count(kept) == 1);
            let oldest = self.spool.lock().forget_oldest(idle);
            if oldest.is_none() {
                return false;
            }
            drop(oldest);
        }
        self.bytes += bytes;
        true
    }
}

impl Spool {
    /// The sessions kept in `<data-dir>/openings`, with those that an earlier run of the node left there.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        Self::within(data_dir, MEMORY, DISK)
    }

    /// As [`Spool::open`], with other bounds in bytes.
    ///
    /// # Errors
    /// As [`Spool::open`].
    pub fn within(data_dir: &Path, memory: u64, disk: u64) -> io::Result<Self> {
        let folder = data_dir.join("openings");
        crate::data_dir::create(&folder).map_err(io::Error::other)?;
        let mut inner = Inner { memory, used: 0, disk, on_disk: 0, kept: BTreeMap::new() };
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            match left_behind(&path) {
                Some((digest, entry)) => inner.insert(digest, entry),
                None => std::fs::remove_file(&path)?,
            }
        }
        Ok(Self { folder: folder.into(), inner: Arc::new(Mutex::new(inner)) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn room(&self) -> Room {
        Room { spool: self.clone(), bytes: 0 }
    }

    /// Keeps a session. It is written to disk on a thread for that, and can be found meanwhile.
    pub(super) fn keep(&self, kept: Kept) {
        let (digest, kept) = (kept.receipt.digest(), Arc::new(kept));
        let entry = Entry { sealed: Instant::now(), bytes: 0, place: Place::Memory(Arc::clone(&kept)) };
        self.lock().insert(digest, entry);
        let spool = self.clone();
        tokio::task::spawn_blocking(move || spool.write(digest, &kept));
    }

    fn write(&self, digest: Hash, kept: &Kept) {
        let path = self.folder.join(format!("{digest}.opening"));
        match write(&path, kept) {
            Ok(bytes) => self.lock().written(&digest, bytes, path),
            Err(error) => {
                warn!(%error, "a session cannot be written to disk, and is kept in memory while there is room");
            }
        }
        self.tidy();
    }

    /// Lets go of what nobody can ask for any more.
    pub fn tidy(&self) {
        let expired = self.lock().expire(Instant::now());
        for entry in expired {
            if let Place::File(path) = entry.place
                && let Err(error) = std::fs::remove_file(&path)
            {
                warn!(%error, path = %path.display(), "a session that is no longer kept could not be removed");
            }
        }
    }

    /// The session that a receipt sealed, while it is kept.
    #[must_use]
    pub fn find(&self, receipt: &Hash) -> Option<Place> {
        let inner = self.lock();
        inner.kept.get(receipt).filter(|entry| entry.sealed.elapsed() < KEEP).map(|entry| entry.place.clone())
    }
}

/// A file of an earlier run; none if it is too old, or half-written.
fn left_behind(path: &Path) -> Option<(Hash, Entry)> {
    let digest = path.file_name()?.to_str()?.strip_suffix(".opening")?.parse().ok()?;
    let about = std::fs::metadata(path).ok()?;
    let age = SystemTime::now().duration_since(about.modified().ok()?).unwrap_or_default();
    let sealed = Instant::now().checked_sub(age)?;
    (age < KEEP).then(|| (digest, Entry { sealed, bytes: about.len(), place: Place::File(path.to_owned()) }))
}

/// Writes a session, whole or not at all; returns its bytes.
fn write(path: &Path, kept: &Kept) -> io::Result<u64> {
    let partial = path.with_extension("partial");
    let writing = || {
        let mut options = std::fs::File::options();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&partial)?;
        let opening = kept.opening.encode();
        let length = u32::try_from(opening.len()).map_err(io::Error::other)?;
        for part in [&length.to_le_bytes()[..], &opening, &kept.inputs, &kept.outputs] {
            file.write_all(part)?;
        }
        std::fs::rename(&partial, path)?;
        Ok(4 + u64::from(length) + (kept.inputs.len() + kept.outputs.len()) as u64)
    };
    writing().inspect_err(|_| {
        let _gone = std::fs::remove_file(&partial);
    })
}

impl Inner {
    fn take(&mut self, bytes: u64) -> bool {
        let fits = self.used.checked_add(bytes).is_some_and(|used| used <= self.memory);
        if fits {
            self.used += bytes;
        }
        fits
    }

    fn insert(&mut self, digest: Hash, entry: Entry) {
        self.on_disk += entry.bytes;
        self.kept.insert(digest, entry);
    }

    fn written(&mut self, digest: &Hash, bytes: u64, path: PathBuf) {
        // What made way for others meanwhile goes with its file.
        let sealed = self.kept.get(digest).map_or_else(Instant::now, |entry| entry.sealed);
        self.insert(*digest, Entry { sealed, bytes, place: Place::File(path) });
    }

    fn forget_oldest(&mut self, of: impl Fn(&Entry) -> bool) -> Option<Entry> {
        let oldest = self.kept.iter().filter(|(_, entry)| of(entry)).min_by_key(|(_, entry)| entry.sealed)?;
        let digest = *oldest.0;
        let entry = self.kept.remove(&digest)?;
        self.on_disk = self.on_disk.saturating_sub(entry.bytes);
        Some(entry)
    }

    fn expire(&mut self, now: Instant) -> Vec<Entry> {
        let mut expired = Vec::new();
        loop {
            let full = self.on_disk > self.disk;
            let over = |entry: &Entry| now.duration_since(entry.sealed) >= KEEP || (full && entry.bytes > 0);
            match self.forget_oldest(over) {
                Some(entry) => expired.push(entry),
                None => return expired,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_and_never_exceeded() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::within(dir.path(), 100, 0).unwrap();
        let mut one = spool.room();
        assert!(one.grow(60));
        let mut two = spool.room();
        assert!(!two.grow(41), "nothing is sealed that could make way");
        assert!(two.grow(40));
        drop(one);
        assert!(two.grow(60));
        assert!(!two.grow(u64::MAX));
        assert_eq!(spool.lock().used, 100);
        drop(two);
        assert_eq!(spool.lock().used, 0);
    }

    #[test]
    fn what_an_earlier_run_left_is_found_until_it_is_too_old() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("openings");
        std::fs::create_dir(&folder).unwrap();
        let digest = |n: u8| Hash::of(&[n]);
        let file = |n: u8, age: u64, end: &str| {
            let path = folder.join(format!("{}.{end}", digest(n)));
            std::fs::write(&path, [n; 10]).unwrap();
            let long_ago = SystemTime::now() - Duration::from_secs(age);
            std::fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
            path
        };
        let (young, old, half) = (file(1, 100, "opening"), file(2, 700, "opening"), file(3, 1, "partial"));
        let (older, oldest) = (file(4, 200, "opening"), file(5, 300, "opening"));
        let spool = Spool::within(dir.path(), 100, 20).unwrap();
        assert!(matches!(spool.find(&digest(1)), Some(Place::File(path)) if path == young));
        assert!(spool.find(&digest(2)).is_none() && !old.exists() && !half.exists());
        // Three of ten bytes are more than twenty: the oldest makes way.
        spool.tidy();
        assert!(spool.find(&digest(5)).is_none() && !oldest.exists());
        assert!(spool.find(&digest(4)).is_some() && older.exists());
        assert_eq!(spool.lock().on_disk, 20);
    }
}
