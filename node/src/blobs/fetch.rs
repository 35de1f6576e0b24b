//! Getting a file from several nodes at once.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::wire::BLOB;
use consortium_protocol::wire::blob::{BlobAnswer, BlobRequest, parts};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::debug;

use super::part::{self, MAX_ENCODED};
use super::{BlobError, Blobs, PARTIAL, PARTS, Writing, at, lock, on_disk};
use crate::pipeline::{read_bytes, read_message, write_message};
use crate::swarm::{ByteStream, SwarmHandle};

/// Time for a donor to say whether it has the file.
const ASK: Duration = Duration::from_secs(15);
/// Time for others to say so, once one has: a donor that is gone does not hold up the rest.
const MORE: Duration = Duration::from_secs(2);
/// Time for a donor to give a part: 17 KB in a second at least.
const GIVE: Duration = Duration::from_secs(60);
/// Donors that give at a time.
const AT_A_TIME: usize = 8;
/// A donor may break off so often, and is asked again.
const PATIENCE: u32 = 2;

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

/// A donor that has the file.
struct Donor {
    node: NodeId,
    bytes: u64,
    stream: ByteStream,
    _place: OwnedSemaphorePermit,
}

/// What fetches a file.
struct Fetch {
    swarm: SwarmHandle,
    hash: Hash,
    bytes: u64,
    file: PathBuf,
    missing: Mutex<VecDeque<u64>>,
    writing: Writing,
    last_trouble: Mutex<String>,
    progress: Box<dyn Fn(Progress) + Send + Sync>,
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

impl Blobs {
    /// Gets a file of at most `most` bytes from those of `donors` that have it; gives where it is. It goes on where an
    /// earlier attempt ended, and tells `progress` of each part. Two that want the same file wait for one another.
    ///
    /// # Errors
    /// [`BlobError`]. What has come stays for the next attempt.
    pub async fn fetch(
        &self,
        swarm: &SwarmHandle,
        hash: Hash,
        most: u64,
        donors: &[NodeId],
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
        donors: &[NodeId],
        progress: Box<dyn Fn(Progress) + Send + Sync>,
        alone: OwnedMutexGuard<()>,
    ) -> Result<PathBuf, BlobError> {
        if let Some(path) = self.path(&hash) {
            return Ok(path);
        }
        let mut found = self.who_has(swarm, hash, donors).await;
        let (bytes, end) = prove_length(hash, &mut found).await.ok_or(BlobError::Nowhere(donors.len()))?;
        if bytes > most {
            return Err(BlobError::TooLong { bytes, most });
        }
        let file = self.file(&hash);
        let (blobs, target) = (self.clone(), file.clone());
        let (missing, writing) = on_disk(move || {
            let writing = blobs.begin(hash, bytes, alone)?;
            Ok((begin(&target, hash, bytes, &end)?, writing))
        })
        .await?;
        let fetch = Arc::new(Fetch {
            swarm: swarm.clone(),
            hash,
            bytes,
            file: file.clone(),
            missing: Mutex::new(missing),
            writing,
            last_trouble: Mutex::default(),
            progress,
        });
        fetch.tell();
        fetch.from(found).await?;
        on_disk(move || {
            let blobs = &fetch.writing.blobs;
            let partial = file.with_extension(PARTIAL);
            File::open(&partial).and_then(|partial| partial.sync_all()).map_err(at(&partial))?;
            let finished = blobs.finish(&hash, bytes, &partial);
            // If the disk has lost some of it, it is to begin anew.
            let parts = file.with_extension(PARTS);
            std::fs::remove_file(&parts).map_err(at(&parts))?;
            finished.map(|()| file)
        })
        .await
    }

    /// Asks who has a file, and waits a little longer for others when one has said so.
    async fn who_has(&self, swarm: &SwarmHandle, hash: Hash, donors: &[NodeId]) -> Vec<Donor> {
        let mut asking = JoinSet::new();
        for node in donors.iter().copied().filter(|node| *node != swarm.me()).collect::<BTreeSet<_>>() {
            let (swarm, blobs) = (swarm.clone(), self.clone());
            asking.spawn(async move {
                let asked = tokio::time::timeout(ASK, async {
                    let place = blobs.place(node).await?;
                    let mut stream = swarm.open_stream(node, BLOB).await.ok()?;
                    write_message(&mut stream, &BlobRequest { hash, part: None }).await.ok()?;
                    match read_message(&mut stream).await.ok()?? {
                        BlobAnswer::Here { bytes } => Some(Donor { node, bytes, stream, _place: place }),
                        BlobAnswer::Unknown => None,
                    }
                });
                asked.await.ok().flatten()
            });
        }
        let (mut found, mut until) = (Vec::new(), Instant::now() + 2 * ASK);
        // None breaks off; those that are not waited for end with the set.
        while let Ok(Some(answer)) = tokio::time::timeout_at(until, asking.join_next()).await {
            if let Ok(Some(donor)) = answer {
                until = if found.is_empty() { Instant::now() + MORE } else { until };
                found.push(donor);
            }
        }
        found
    }
}

/// Finds out how long the file is: only its last part, which it gives too, proves that. Keeps the donors that have told the
/// truth.
async fn prove_length(hash: Hash, donors: &mut Vec<Donor>) -> Option<(u64, Vec<u8>)> {
    for at in 0..donors.len() {
        let Donor { node, bytes, ref mut stream, .. } = donors[at];
        let last = parts(bytes) - 1;
        let given = ask(stream, hash, bytes, last).await;
        match given.and_then(|encoded| part::check(&encoded, hash, bytes, last).map(|()| encoded)) {
            Ok(encoded) => {
                donors.retain(|donor| donor.bytes == bytes);
                return Some((bytes, encoded));
            }
            Err(error) => debug!(%node, %error, "a donor does not give the end of a file"),
        }
    }
    None
}

/// Asks for a part on an open stream.
async fn ask(stream: &mut ByteStream, hash: Hash, bytes: u64, part: u64) -> io::Result<Vec<u8>> {
    let asked = tokio::time::timeout(GIVE, async {
        write_message(stream, &BlobRequest { hash, part: Some(part) }).await?;
        match read_message(stream).await?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))? {
            BlobAnswer::Here { bytes: now } if now == bytes => {}
            BlobAnswer::Here { .. } => return Err(invalid("another length than before")),
            BlobAnswer::Unknown => return Err(invalid("it does not have the file any more")),
        }
        read_bytes(stream, MAX_ENCODED).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    });
    asked.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Makes room for a file whose last part is `end`, or finds what has come of it; gives the parts that are missing.
fn begin(file: &Path, hash: Hash, bytes: u64, end: &[u8]) -> Result<VecDeque<u64>, BlobError> {
    let (partial_path, parts_path) = (file.with_extension(PARTIAL), file.with_extension(PARTS));
    let open =
        |path: &Path| File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(at(path));
    let (partial, mut noted) = (open(&partial_path)?, open(&parts_path)?);
    let mut have = Vec::new();
    noted.read_to_end(&mut have).map_err(at(&parts_path))?;
    let as_before = partial.metadata().map_err(at(&partial_path))?.len() == bytes && have.len() as u64 == parts(bytes);
    if !as_before {
        partial.set_len(bytes).map_err(at(&partial_path))?;
        have = vec![0; usize::try_from(parts(bytes)).map_err(|_| BlobError::Stopped)?];
        let written =
            noted.set_len(0).and_then(|()| noted.seek(SeekFrom::Start(0))).and_then(|_| noted.write_all(&have));
        written.map_err(at(&parts_path))?;
    }
    let mut missing: VecDeque<u64> = (0..).zip(have).filter(|(_, here)| *here == 0).map(|(part, _)| part).collect();
    let last = parts(bytes) - 1;
    if missing.back() == Some(&last) {
        missing.pop_back();
        keep(file, end, hash, bytes, last).map_err(|trouble| match trouble {
            Trouble::Disk(error) => error,
            Trouble::Donor(error) => at(file)(error),
        })?;
    }
    Ok(missing)
}

impl Fetch {
    /// Has the donors give what is missing, each one part after the other.
    async fn from(self: &Arc<Self>, donors: Vec<Donor>) -> Result<(), BlobError> {
        let (mut waiting, mut giving) = (VecDeque::from(donors), JoinSet::new());
        let mut able = VecDeque::new();
        loop {
            while giving.len() < AT_A_TIME
                && let Some(donor) = waiting.pop_front()
            {
                giving.spawn(Arc::clone(self).drain(donor));
            }
            match giving.join_next().await {
                Some(Ok(Ok(donor))) => able.extend(donor),
                Some(Ok(Err(error))) => return Err(error),
                Some(Err(_)) => return Err(BlobError::Stopped),
                None => {}
            }
            let missing = lock(&self.missing).len() as u64;
            if giving.is_empty() && waiting.is_empty() {
                if missing == 0 {
                    return Ok(());
                }
                // What one took and did not give is for those that had nothing left to do.
                if able.is_empty() {
                    let last = lock(&self.last_trouble).clone();
                    return Err(BlobError::Incomplete { missing, parts: parts(self.bytes), last });
                }
                waiting = std::mem::take(&mut able);
            }
        }
    }

    /// Gets parts from a donor until none is missing, or the donor gives no more; gives it back if it would go on.
    async fn drain(self: Arc<Self>, mut donor: Donor) -> Result<Option<Donor>, BlobError> {
        let mut broken = 0;
        loop {
            let Some(part) = lock(&self.missing).pop_front() else { return Ok(Some(donor)) };
            let Err(error) = self.take(&mut donor.stream, part).await else { continue };
            lock(&self.missing).push_front(part);
            let error = match error {
                Trouble::Disk(error) => return Err(error),
                Trouble::Donor(error) => error,
            };
            debug!(node = %donor.node, %error, part, "a donor gave no part of a file");
            *lock(&self.last_trouble) = format!("{}: {error}", donor.node);
            broken += 1;
            if error.kind() == io::ErrorKind::InvalidData || broken > PATIENCE {
                return Ok(None);
            }
            match self.swarm.open_stream(donor.node, BLOB).await {
                Ok(stream) => donor.stream = stream,
                Err(_) => return Ok(None),
            }
        }
    }

    async fn take(self: &Arc<Self>, stream: &mut ByteStream, part: u64) -> Result<(), Trouble> {
        let (hash, bytes) = (self.hash, self.bytes);
        let encoded = ask(stream, hash, bytes, part).await.map_err(Trouble::Donor)?;
        // It is this fetch that writes, for as long as that takes.
        let fetch = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || keep(&fetch.file, &encoded, hash, bytes, part)).await;
        written.map_err(|_| Trouble::Disk(BlobError::Stopped))??;
        self.tell();
        Ok(())
    }

    /// Tells how much has come, or is coming.
    fn tell(&self) {
        let parts = parts(self.bytes);
        let done = parts - lock(&self.missing).len() as u64;
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

/// Writes a part, and then that it is here.
fn keep(file: &Path, encoded: &[u8], hash: Hash, bytes: u64, part: u64) -> Result<(), Trouble> {
    part::check(encoded, hash, bytes, part).map_err(Trouble::Donor)?;
    let write = |path: &Path| File::options().write(true).open(path).map_err(at(path)).map_err(Trouble::Disk);
    let (partial, parts) = (file.with_extension(PARTIAL), file.with_extension(PARTS));
    part::decode(encoded, hash, bytes, part, &mut write(&partial)?).map_err(at(&partial)).map_err(Trouble::Disk)?;
    let mut noted = write(&parts)?;
    let written = noted.seek(SeekFrom::Start(part)).and_then(|_| noted.write_all(&[1]));
    written.map_err(at(&parts)).map_err(Trouble::Disk)
}
