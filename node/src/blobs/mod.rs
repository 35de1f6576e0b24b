//! Files between nodes, named by the BLAKE3 hash of their content: updates and parameters of training, baselines and
//! submissions of bounties.
//!
//! ```text
//! Blobs   the directory `blobs`: whole files, their hash trees, and what has come so far of others
//! room    how much they take, and what is dropped when more is needed
//! part    1 MiB of a file with the hashes that tie it to the file's name (Bao)
//! serve   answers other nodes
//! fetch   gets a file from several nodes at once
//! donor   finds these, and speaks with them
//! picking which part to ask whom for
//! ```
//!
//! What has come of a file is given on while the rest comes: nodes that want a file at the same time, as they do updates of a
//! round, give each other what its source has sent once (`nodes_that_want_the_same_file_give_it_to_each_other`). So who is
//! asked for a file are those that have it, and a second later those that want it too. Six peers that each have a file that all
//! want, and a node with eight times their uplink, take 2.0 to 2.2 times the bound of distribution where each file takes 6 s to
//! leave its peer (`all_updates_reach_all_nodes_soon`); if each peer sent its file to all, it would be 2.3 times at best.
//!
//! Every 16 KiB that come are checked against the name before they are written, so that a donor that lies is known by its
//! first wrong group, and a file can come from many donors, and over many lives of this node: parts that have come stay, as
//! long as nothing else needs their room.
//! Whoever knows a file's name may have the file. What must not be known to all is to be encrypted first.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::wire::blob::Held;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;

mod donor;
mod fetch;
mod part;
mod picking;
mod room;
mod serve;
#[cfg(test)]
mod tests;

pub use donor::Donors;
pub use fetch::Progress;
use room::Room;

/// Streams to one node at a time, each with a part in memory: fewer than it serves to one.
const TO_ONE: usize = 2;
/// Extension of a file's hash tree.
const TREE: &str = "tree";
/// Extension of the hashes that have come of a file that is not whole.
const SAPLING: &str = "sapling";
/// Extension of what has come of a file.
const PARTIAL: &str = "partial";
/// Extension of the list of parts that have come: a byte each.
const PARTS: &str = "parts";
/// What has come of a file is forgotten at the start if nothing came for so long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);
/// Extension of a file that is being written.
const NEW: &str = "new";
/// What there is of a file that is not whole.
const UNFINISHED: [&str; 3] = [PARTS, SAPLING, PARTIAL];
/// What there may be of any.
const ALL: [&str; 5] = ["", TREE, PARTIAL, PARTS, SAPLING];

/// Why there is no such file.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The disk refuses.
    #[error("{path}: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// It would take more room than there is to be.
    #[error("a file of {bytes} bytes does not fit: {used} of {quota} bytes are used")]
    Full {
        /// Its length.
        bytes: u64,
        /// What the others take, those that are coming, too.
        used: u64,
        /// What all may take.
        quota: u64,
    },
    /// It is longer than whoever wants it allows.
    #[error("the file has {bytes} bytes, more than the {most} that it may have")]
    TooLong {
        /// Its length.
        bytes: u64,
        /// What it may have.
        most: u64,
    },
    /// Nobody who was asked has it.
    #[error("none of the {0} nodes that were asked has the file")]
    Nowhere(usize),
    /// All who had it are gone, or lied. What has come stays.
    #[error("{missing} of {parts} parts are missing, and nobody is left who gives them: {last}")]
    Incomplete {
        /// Parts that did not come.
        missing: u64,
        /// Parts that there are.
        parts: u64,
        /// What went wrong last.
        last: String,
    },
    /// The node ends.
    #[error("the node ends")]
    Stopped,
}

/// The files of this node. A clone is the same.
#[derive(Clone)]
pub struct Blobs {
    inner: Arc<Inner>,
}

struct Inner {
    directory: PathBuf,
    room: Mutex<Room>,
    /// Files that are being written, or fetched.
    writing: Mutex<BTreeMap<Hash, Arc<tokio::sync::Mutex<()>>>>,
    /// Places for streams to each node that gives files.
    places: Mutex<BTreeMap<NodeId, Arc<Semaphore>>>,
    /// What is here of the files that are being fetched.
    coming: Mutex<BTreeMap<Hash, Coming>>,
}

/// What is here of a file that is being fetched.
#[derive(Clone, Debug)]
struct Coming {
    bytes: u64,
    held: Held,
}

/// The right to write a file, and the room for it.
struct Writing {
    blobs: Blobs,
    hash: Hash,
    _alone: tokio::sync::OwnedMutexGuard<()>,
}

impl Drop for Writing {
    fn drop(&mut self) {
        lock(&self.blobs.inner.coming).remove(&self.hash);
        self.blobs.leave(&self.hash);
    }
}

/// What a directory holds.
#[derive(Default)]
struct Found {
    whole: BTreeMap<Hash, u64>,
    /// What has come of others: when the last of it did, and how much it will be.
    partial: BTreeMap<Hash, (SystemTime, u64)>,
    /// What belongs to a file, and is of no use without it.
    beside: Vec<(Hash, PathBuf)>,
}

impl Found {
    fn add(&mut self, entry: &std::fs::DirEntry) -> io::Result<()> {
        let path = entry.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<Hash>().ok());
        let Some(hash) = stem else { return Ok(()) };
        match path.extension().and_then(|extension| extension.to_str()) {
            // The hash of a file tells that it is whole: it gets that name last.
            None => _ = self.whole.insert(hash, entry.metadata()?.len()),
            // Half written when an earlier life ended.
            Some(NEW) => std::fs::remove_file(&path)?,
            Some(PARTIAL) => {
                let (metadata, now) = (entry.metadata()?, SystemTime::now());
                let written = metadata.modified().unwrap_or(now);
                match now.duration_since(written).is_ok_and(|age| age > FORGOTTEN_AFTER) {
                    // Of no use to anyone any more, it seems.
                    true => std::fs::remove_file(&path)?,
                    false => _ = self.partial.insert(hash, (written, metadata.len())),
                }
            }
            Some(TREE | PARTS | SAPLING) => self.beside.push((hash, path)),
            Some(_) => {}
        }
        Ok(())
    }

    /// Removes what belongs to nothing.
    fn tidy(&self) -> Result<(), BlobError> {
        let is_needed = |hash: &Hash, path: &Path| match path.extension().is_some_and(|extension| extension == TREE) {
            true => self.whole.contains_key(hash),
            false => self.partial.contains_key(hash),
        };
        let mut useless = self.beside.iter().filter(|(hash, path)| !is_needed(hash, path));
        useless.try_for_each(|(_, path)| std::fs::remove_file(path).map_err(at(path)))
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> BlobError + use<> {
    let path = path.to_owned();
    move |source| BlobError::Io { path, source }
}

impl Blobs {
    /// The files in `directory`, which is made if need be. All together take at most `quota` bytes.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub fn open(directory: PathBuf, quota: u64) -> Result<Self, BlobError> {
        std::fs::create_dir_all(&directory).map_err(at(&directory))?;
        let mut found = Found::default();
        for entry in std::fs::read_dir(&directory).map_err(at(&directory))? {
            let entry = entry.map_err(at(&directory))?;
            found.add(&entry).map_err(at(&entry.path()))?;
        }
        found.tidy()?;
        let mut left: Vec<_> = found.partial.into_iter().collect();
        left.sort_unstable_by_key(|(_, (written, _))| *written);
        let left = left.into_iter().map(|(hash, (_, bytes))| (hash, bytes)).collect();
        let room = Mutex::new(Room::new(quota, found.whole, left));
        let inner =
            Inner { directory, room, writing: Mutex::default(), places: Mutex::default(), coming: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Where a file is, if it is here and whole. It is not to be written to.
    #[must_use]
    pub fn path(&self, hash: &Hash) -> Option<PathBuf> {
        self.length(hash).map(|_| self.file(hash))
    }

    /// The length of a file, in bytes, if it is here and whole.
    #[must_use]
    pub fn length(&self, hash: &Hash) -> Option<u64> {
        lock(&self.inner.room).length(hash)
    }

    /// Keeps a copy of these bytes; gives their name.
    ///
    /// # Errors
    /// When there is no room for them.
    pub async fn put(&self, bytes: Vec<u8>) -> Result<Hash, BlobError> {
        let hash = Hash::of(&bytes);
        let alone = self.turn(hash).await;
        if self.length(&hash).is_some() {
            return Ok(hash);
        }
        let blobs = self.clone();
        on_disk(move || {
            let length = bytes.len() as u64;
            let _writing = blobs.begin(hash, length, alone)?;
            // All of it comes at once.
            blobs.delete(&hash, &UNFINISHED)?;
            let path = blobs.file(&hash).with_extension(NEW);
            let written = create(&path)
                .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(at(&path)))
                .and_then(|()| blobs.finish(&hash, length, &path));
            if written.is_err() {
                drop(std::fs::remove_file(&path));
            }
            written
        })
        .await?;
        Ok(hash)
    }

    /// Forgets a file, also what has come of it.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub async fn remove(&self, hash: Hash) -> Result<(), BlobError> {
        let blobs = self.clone();
        on_disk(move || {
            lock(&blobs.inner.room).forget(&hash);
            blobs.delete(&hash, &ALL)
        })
        .await
    }

    /// Forgets a file that is not what its name says any more, because the disk has damaged or lost it; gives whether that was
    /// so. Where it cannot be opened for another reason, nothing is forgotten.
    ///
    /// # Errors
    /// When it cannot be opened, or not be removed.
    pub async fn forget_damaged(&self, hash: Hash) -> Result<bool, BlobError> {
        let alone = self.turn(hash).await;
        let Some(path) = self.path(&hash) else { return Ok(false) };
        let blobs = self.clone();
        on_disk(move || {
            // Until it is gone, nobody else looks at it, or writes it.
            let _alone = alone;
            let is_whole = match File::open(&path) {
                Ok(file) => {
                    let mut hasher = blake3::Hasher::new();
                    hasher.update_reader(file).is_ok() && hasher.finalize().as_bytes() == hash.as_bytes()
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                Err(error) => return Err(at(&path)(error)),
            };
            if !is_whole {
                lock(&blobs.inner.room).forget(&hash);
                blobs.delete(&hash, &ALL)?;
            }
            Ok(!is_whole)
        })
        .await
    }

    /// Removes whole files that came more than a week ago, but for those to `keep`; gives how many. Blocks.
    ///
    /// # Errors
    /// When one cannot be removed; others may be gone.
    pub fn forget_old(&self, keep: impl Fn(&Hash) -> bool) -> Result<usize, BlobError> {
        let (useless, now) = (lock(&self.inner.room).names(), SystemTime::now());
        let mut count = 0;
        for hash in useless.into_iter().filter(|hash| !keep(hash)) {
            let path = self.file(&hash);
            let written = std::fs::metadata(&path).and_then(|metadata| metadata.modified()).map_err(at(&path))?;
            if now.duration_since(written).is_ok_and(|age| age > FORGOTTEN_AFTER) {
                lock(&self.inner.room).forget(&hash);
                self.delete(&hash, &ALL)?;
                count += 1;
            }
        }
        Ok(count)
    }

    /// Removes what there is of a file.
    fn delete(&self, hash: &Hash, extensions: &[&str]) -> Result<(), BlobError> {
        let file = self.file(hash);
        for path in extensions.iter().map(|extension| file.with_extension(extension)) {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&path)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// One writer at a time for each file.
    async fn turn(&self, hash: Hash) -> tokio::sync::OwnedMutexGuard<()> {
        let alone = {
            let mut writing = lock(&self.inner.writing);
            writing.retain(|_, alone| Arc::strong_count(alone) > 1);
            Arc::clone(writing.entry(hash).or_default())
        };
        alone.lock_owned().await
    }

    /// The right to open a stream to a node; none when the node ends.
    async fn place(&self, at: NodeId) -> Option<OwnedSemaphorePermit> {
        let places = {
            let mut all = lock(&self.inner.places);
            all.retain(|_, places| Arc::strong_count(places) > 1);
            Arc::clone(all.entry(at).or_insert_with(|| Arc::new(Semaphore::new(TO_ONE))))
        };
        places.acquire_owned().await.ok()
    }

    /// Notes what is here of a file that is being fetched.
    fn coming(&self, hash: Hash, bytes: u64, here: &[bool]) {
        let mut held = Held::none(bytes);
        (0..).zip(here).for_each(|(part, here)| held.set(part, *here));
        lock(&self.inner.coming).insert(hash, Coming { bytes, held });
    }

    /// Notes that a part of such a file has come, or that the disk has lost it.
    fn note(&self, hash: &Hash, part: u64, is_here: bool) {
        if let Some(coming) = lock(&self.inner.coming).get_mut(hash) {
            coming.held.set(part, is_here);
        }
    }

    fn what_came(&self, hash: &Hash) -> Option<Coming> {
        lock(&self.inner.coming).get(hash).cloned()
    }

    fn file(&self, hash: &Hash) -> PathBuf {
        self.inner.directory.join(hash.to_string())
    }

    /// Takes room for a file. Blocks: what was left of others may have to go.
    ///
    /// # Errors
    /// [`BlobError::Full`].
    fn begin(&self, hash: Hash, bytes: u64, alone: tokio::sync::OwnedMutexGuard<()>) -> Result<Writing, BlobError> {
        let mut room = lock(&self.inner.room);
        let dropped = room.take(hash, bytes)?;
        self.drop_left(&dropped);
        Ok(Writing { blobs: self.clone(), hash, _alone: alone })
    }

    /// Nobody writes a file any more.
    fn leave(&self, hash: &Hash) {
        let mut room = lock(&self.inner.room);
        match self.file(hash).with_extension(PARTIAL).exists() {
            true => {
                let dropped = room.leave(hash);
                self.drop_left(&dropped);
            }
            false => room.give_up(hash),
        }
    }

    /// Drops what was left of files. Nobody takes room meanwhile: none of them can be begun anew.
    fn drop_left(&self, dropped: &[Hash]) {
        for hash in dropped {
            if let Err(error) = self.delete(hash, &UNFINISHED) {
                warn!(%hash, %error, "what was left of a file cannot be removed");
            }
        }
    }

    /// Makes a written file one of the whole ones, if it has this name. Its tree is there before it is.
    fn finish(&self, hash: &Hash, bytes: u64, written: &Path) -> Result<(), BlobError> {
        let file = self.file(hash);
        let tree_path = file.with_extension(TREE);
        let data = File::open(written).map_err(at(written))?;
        let mut tree = create(&tree_path)?;
        let found = part::grow(&data, bytes, &mut tree).map_err(at(written))?;
        if found != *hash {
            return Err(at(written)(io::Error::new(io::ErrorKind::InvalidData, "the file is not what its name says")));
        }
        tree.sync_all().map_err(at(&tree_path))?;
        std::fs::rename(written, &file).map_err(at(&file))?;
        let directory = &self.inner.directory;
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(at(directory))?;
        lock(&self.inner.room).keep(*hash, bytes);
        Ok(())
    }
}

fn create(path: &Path) -> Result<File, BlobError> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).map_err(at(path))
}

/// Does what waits for the disk on a thread made for waiting.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
) -> Result<T, BlobError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| BlobError::Stopped)?
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What is guarded is changed in one step: a panic leaves it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
