//! Getting a file from several nodes at once, and from those that are getting it too.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use consortium_protocol::hash::Hash;
use consortium_protocol::wire::blob::parts;
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;

use super::donor::{AGAIN, Donor, Donors, Given, Search, invalid};
use super::picking::{Picking, Stock};
use super::{BlobError, Blobs, PARTIAL, PARTS, SAPLING, Writing, at, lock, on_disk, part};
use crate::swarm::SwarmHandle;

/// A fetch ends when nothing has come for so long, whoever is still there.
const STALLED: Duration = Duration::from_secs(150);
/// Donors that give at a time: with more, parts would be too long in coming over slow links.
const AT_A_TIME: usize = 8;
/// After so many parts in a row, and after so long, a donor's place is left to other files.
const TURN: (u32, Duration) = (16, Duration::from_secs(20));
/// A donor that failed too often is asked so often whether it is well again.
const RETURNS: u32 = 2;
/// A donor to which more comes is asked so often for what it has.
const REFRESH: Duration = Duration::from_secs(2);

/// How much of a file has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Parts of 1 MiB that are here.
    pub done: u64,
    /// Parts that there are.
    pub parts: u64,
    /// Length of the file, in bytes.
    pub bytes: u64,
}

/// What fetches a file.
struct Fetch {
    swarm: SwarmHandle,
    hash: Hash,
    bytes: u64,
    file: PathBuf,
    picking: Mutex<Picking>,
    writing: Writing,
    /// A part is free to be asked for again, or donors have begun to wait.
    changed: Notify,
    /// Donors wait for a place among those that give.
    is_crowded: AtomicBool,
    came_last: Mutex<Instant>,
    last_trouble: Mutex<String>,
    progress: Box<dyn Fn(Progress) + Send + Sync>,
}

impl Blobs {
    /// Gets a file of at most `most` bytes from those of `donors` that have it, or some of it; gives where it is. What has come
    /// is given on at once. It goes on where an earlier attempt ended, and tells `progress` of each part. Two that want the same
    /// file wait for one another.
    ///
    /// # Errors
    /// [`BlobError`]. What has come stays for the next attempt.
    pub async fn fetch(
        &self,
        swarm: &SwarmHandle,
        hash: Hash,
        most: u64,
        donors: &Donors,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<PathBuf, BlobError> {
        let alone = self.turn(hash).await;
        self.fetch_alone(swarm, hash, most, donors, Box::new(progress), alone).await
    }

    async fn fetch_alone(
        &self,
        swarm: &SwarmHandle,
        hash: Hash,
        most: u64,
        donors: &Donors,
        progress: Box<dyn Fn(Progress) + Send + Sync>,
        alone: OwnedMutexGuard<()>,
    ) -> Result<PathBuf, BlobError> {
        if let Some(path) = self.path(&hash) {
            return Ok(path);
        }
        let mut search = Search::begin(self, swarm, hash, donors);
        let nowhere = || BlobError::Nowhere(donors.sure.len() + donors.others.len());
        let (first, end) = search.prove_length().await.ok_or_else(nowhere)?;
        let bytes = first.bytes;
        if bytes > most {
            return Err(BlobError::TooLong { bytes, most });
        }
        let file = self.file(&hash);
        let (blobs, target) = (self.clone(), file.clone());
        let (here, writing) = on_disk(move || {
            let writing = blobs.begin(hash, bytes, alone)?;
            let here = begin(&target, hash, bytes, &end)?;
            blobs.coming(hash, bytes, &here);
            Ok((here, writing))
        })
        .await?;
        let fetch = Arc::new(Fetch {
            swarm: swarm.clone(),
            hash,
            bytes,
            file: file.clone(),
            picking: Mutex::new(Picking::new(&here)),
            writing,
            changed: Notify::new(),
            is_crowded: AtomicBool::new(false),
            came_last: Mutex::new(Instant::now()),
            last_trouble: Mutex::default(),
            progress,
        });
        fetch.tell();
        fetch.from(search, first).await?;
        on_disk(move || {
            let blobs = &fetch.writing.blobs;
            let partial = file.with_extension(PARTIAL);
            File::open(&partial).and_then(|partial| partial.sync_all()).map_err(at(&partial))?;
            let finished = blobs.finish(&hash, bytes, &partial);
            // If the disk has lost some of it, it is to begin anew.
            blobs.delete(&hash, &[PARTS, SAPLING])?;
            finished.map(|()| file)
        })
        .await
    }
}

/// Makes room for a file whose last part is `end`, or finds what has come of it; gives for each part whether it is here.
fn begin(file: &Path, hash: Hash, bytes: u64, end: &[u8]) -> Result<Vec<bool>, BlobError> {
    let [partial_path, parts_path, tree_path] = [PARTIAL, PARTS, SAPLING].map(|name| file.with_extension(name));
    let open =
        |path: &Path| File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(at(path));
    // Parts that came before their hashes were kept cannot be given on.
    let had_tree = tree_path.exists();
    let (partial, mut noted, _) = (open(&partial_path)?, open(&parts_path)?, open(&tree_path)?);
    let mut have = Vec::new();
    noted.read_to_end(&mut have).map_err(at(&parts_path))?;
    let is_whole = partial.metadata().map_err(at(&partial_path))?.len() == bytes;
    if !had_tree || !is_whole || have.len() as u64 != parts(bytes) {
        partial.set_len(bytes).map_err(at(&partial_path))?;
        have = vec![0; usize::try_from(parts(bytes)).map_err(|_| BlobError::Stopped)?];
        let written =
            noted.set_len(0).and_then(|()| noted.seek(SeekFrom::Start(0))).and_then(|_| noted.write_all(&have));
        written.map_err(at(&parts_path))?;
    }
    let mut here: Vec<bool> = have.into_iter().map(|here| here != 0).collect();
    if let Some(last) = here.last_mut().filter(|last| !**last) {
        keep(file, end, hash, bytes, parts(bytes) - 1).map_err(|trouble| match trouble {
            Trouble::Disk(error) => error,
            Trouble::Donor(error) => at(file)(error),
        })?;
        *last = true;
    }
    Ok(here)
}

/// Why a donor gives no more.
#[derive(Clone, Copy, Debug)]
enum Ended {
    /// All parts are here.
    Done,
    /// It is for others to give; it may again.
    Rests,
    /// It failed too often.
    Fails,
    /// It lies, or has nothing of the file any more.
    Useless,
}

impl Fetch {
    /// Has donors give what is missing, and others as they are found.
    async fn from(self: &Arc<Self>, mut search: Search, first: Donor) -> Result<(), BlobError> {
        let (mut waiting, mut giving, mut returned) = (VecDeque::from([first]), JoinSet::new(), BTreeMap::new());
        loop {
            while giving.len() < AT_A_TIME
                && let Some(donor) = waiting.pop_front()
            {
                giving.spawn(Arc::clone(self).drain(donor));
            }
            let is_crowded = !waiting.is_empty();
            if !self.is_crowded.swap(is_crowded, Ordering::Relaxed) && is_crowded {
                // Those that have nothing to give are to rest.
                self.changed.notify_waiters();
            }
            let missing = lock(&self.picking).left();
            if missing == 0 {
                return Ok(());
            }
            let stalled_at = *lock(&self.came_last) + STALLED;
            let is_over = giving.is_empty() && !search.ask_others() && search.is_over();
            if is_over || Instant::now() >= stalled_at {
                let last = lock(&self.last_trouble).clone();
                return Err(BlobError::Incomplete { missing, parts: parts(self.bytes), last });
            }
            tokio::select! {
                found = search.next() => {
                    let found = found.filter(|donor| donor.bytes == self.bytes);
                    // Who has to wait does not keep others from its place.
                    let is_one_too_many = giving.len() >= AT_A_TIME;
                    waiting.extend(found.map(|donor| if is_one_too_many { Donor { line: None, ..donor } } else { donor }));
                }
                Some(ended) = giving.join_next(), if !giving.is_empty() => {
                    match ended.map_err(|_| BlobError::Stopped)?? {
                        (Ended::Done | Ended::Useless, _) => {}
                        (Ended::Rests, donor) => waiting.push_back(Donor { line: None, ..donor }),
                        (Ended::Fails, donor) => {
                            let returned = returned.entry(donor.node).or_insert(0);
                            *returned += 1;
                            if *returned <= RETURNS {
                                search.ask(donor.node);
                            }
                        }
                    }
                }
                () = sleep_until(stalled_at) => {}
            }
        }
    }

    /// Gets parts from a donor, one after the other.
    ///
    /// # Errors
    /// The disk's.
    async fn drain(self: Arc<Self>, mut donor: Donor) -> Result<(Ended, Donor), BlobError> {
        lock(&self.picking).learn(None, Some(&donor.stock));
        let (mut taken, mut pause) = (0, AGAIN.0);
        let (mut told, mut turn) = (Instant::now(), Instant::now());
        let ended = loop {
            let changed = self.changed.notified();
            if lock(&self.picking).left() == 0 {
                break Ended::Done;
            }
            let wants = lock(&self.picking).wants(&donor.stock, donor.is_stranger, Instant::now());
            let got = match wants {
                true => self.get(&mut donor).await,
                false => {
                    donor.line = None;
                    tokio::select! {
                        () = sleep(pause) => pause = (2 * pause).min(AGAIN.1),
                        () = changed => {}
                    }
                    Ok(())
                }
            };
            let is_old = !wants || told.elapsed() > REFRESH;
            let got = match got {
                Ok(()) if is_old && donor.stock != Stock::Whole && lock(&self.picking).left() > 0 => {
                    told = Instant::now();
                    self.refresh(&mut donor).await
                }
                got => got,
            };
            let has_failed = got.is_err();
            match got {
                Ok(()) if wants => (taken, pause) = (taken + 1, AGAIN.0),
                Ok(()) => {}
                Err(Trouble::Disk(error)) => return Err(error),
                Err(Trouble::Donor(error)) => {
                    debug!(node = %donor.node, %error, "a donor gave no part of a file");
                    *lock(&self.last_trouble) = format!("{}: {error}", donor.node);
                    if donor.fails(&error) {
                        let lies = error.kind() == io::ErrorKind::InvalidData;
                        break if lies { Ended::Useless } else { Ended::Fails };
                    }
                    // What it did not give is for others first.
                    sleep(donor.pause()).await;
                }
            }
            // One that has all, and is known to give, is kept for what others are slow to give.
            let is_idle = !wants && (donor.stock != Stock::Whole || donor.is_stranger);
            if (is_idle || has_failed) && self.is_crowded.load(Ordering::Relaxed) {
                break Ended::Rests;
            }
            if taken >= TURN.0 || turn.elapsed() > TURN.1 {
                (donor.line, taken, turn) = (None, 0, Instant::now());
            }
        };
        lock(&self.picking).learn(Some(&donor.stock), None);
        Ok((ended, donor))
    }

    /// Gets a part that is wanted, if one still is when there is a line to the donor, and keeps it.
    async fn get(self: &Arc<Self>, donor: &mut Donor) -> Result<(), Trouble> {
        donor.line(&self.writing.blobs, &self.swarm).await.map_err(Trouble::Donor)?;
        let asked = Instant::now();
        let part = lock(&self.picking).take(&donor.stock, donor.is_stranger, rand::random(), asked);
        let Some(part) = part else { return Ok(()) };
        let got = self.get_part(donor, part, asked).await;
        match got {
            Ok(()) => {
                (donor.is_stranger, donor.failed) = (false, 0);
                self.tell();
            }
            Err(_) => {
                lock(&self.picking).give_back(part);
                self.changed.notify_waiters();
            }
        }
        got
    }

    async fn get_part(self: &Arc<Self>, donor: &mut Donor, part: u64, asked: Instant) -> Result<(), Trouble> {
        let (hash, bytes) = (self.hash, self.bytes);
        let line = donor.line(&self.writing.blobs, &self.swarm).await.map_err(Trouble::Donor)?;
        let encoded = match line.part(hash, bytes, part).await.map_err(Trouble::Donor)? {
            Given::Part(encoded) => encoded,
            Given::NotYet(now) => {
                self.learn(&mut donor.stock, now);
                return Err(Trouble::Donor(io::Error::other("it has not the part that it said it had")));
            }
            Given::Nothing if donor.stock == Stock::Whole => {
                return Err(Trouble::Donor(invalid("it does not have the file any more")));
            }
            // It may be between two attempts to get the rest.
            Given::Nothing => return Err(Trouble::Donor(io::Error::other("it has nothing of the file now"))),
        };
        // It is this fetch that writes, for as long as that takes.
        let fetch = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || {
            keep(&fetch.file, &encoded, hash, bytes, part)?;
            lock(&fetch.picking).came(part, asked.elapsed());
            *lock(&fetch.came_last) = Instant::now();
            fetch.writing.blobs.note(&hash, part, true);
            Ok(())
        });
        written.await.map_err(|_| Trouble::Disk(BlobError::Stopped))?
    }

    /// Asks a donor what it has now.
    async fn refresh(&self, donor: &mut Donor) -> Result<(), Trouble> {
        let line = donor.line(&self.writing.blobs, &self.swarm).await.map_err(Trouble::Donor)?;
        match line.stock(self.hash).await.map_err(Trouble::Donor)? {
            Some((bytes, now)) if bytes == self.bytes => self.learn(&mut donor.stock, now),
            _ => {
                return Err(Trouble::Donor(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "it has nothing of it any more",
                )));
            }
        }
        Ok(())
    }

    fn learn(&self, stock: &mut Stock, now: Stock) {
        lock(&self.picking).learn(Some(stock), Some(&now));
        *stock = now;
    }

    /// Tells how much has come.
    fn tell(&self) {
        let parts = parts(self.bytes);
        let done = parts - lock(&self.picking).left();
        (self.progress)(Progress { done, parts, bytes: self.bytes });
    }
}

/// Why a part did not come.
enum Trouble {
    /// Its donor's fault, or the way's.
    Donor(io::Error),
    /// This node's.
    Disk(BlobError),
}

/// Writes a part and its hashes, and then that it is here.
fn keep(file: &Path, encoded: &[u8], hash: Hash, bytes: u64, part: u64) -> Result<(), Trouble> {
    part::check(encoded, hash, bytes, part).map_err(Trouble::Donor)?;
    let [partial, parts, tree] = [PARTIAL, PARTS, SAPLING].map(|name| file.with_extension(name));
    let write = |path: &Path| File::options().write(true).open(path).map_err(at(path)).map_err(Trouble::Disk);
    let (mut target, mut hashes) = (write(&partial)?, write(&tree)?);
    part::decode(encoded, hash, bytes, part, &mut target, &mut hashes).map_err(at(&partial)).map_err(Trouble::Disk)?;
    let mut noted = write(&parts)?;
    let written = noted.seek(SeekFrom::Start(part)).and_then(|_| noted.write_all(&[1]));
    written.map_err(at(&parts)).map_err(Trouble::Disk)
}
