//! Those who give a file: finding them, and what is said to them.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::time::Duration;

use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::wire::BLOB;
use consortium_protocol::wire::blob::{BlobAnswer, BlobRequest, parts};
use rand::seq::SliceRandom as _;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::debug;

use super::Blobs;
use super::part::{self, MAX_ENCODED};
use super::picking::Stock;
use crate::pipeline::{read_bytes, read_message, write_message};
use crate::swarm::{ByteStream, SwarmHandle};

/// Time for a donor to say whether it has a file.
const ASK: Duration = Duration::from_secs(15);
/// Time for a donor to give a part, to many at once over a slow link; and until one of its places is free.
const GIVE: Duration = Duration::from_secs(120);
/// When a file has not come for so long from those that have it, others are asked too.
const HEAD_START: Duration = Duration::from_secs(1);
/// When a donor has not proved its length for so long, another is to.
const PROVE: Duration = Duration::from_secs(1);
/// Who has nothing of a file is asked again after so long, and then less and less often.
pub(super) const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));
/// A node that could not be asked is asked again after so long, about: of many streams that come to a node at one moment
/// `libp2p-stream` drops some, and those are not to come at one moment again.
const HICCUP: Duration = Duration::from_millis(250);
/// Most of those that may have a file who are asked for it.
const MOST_OTHERS: usize = 24;
/// Most of those that have it, of whom the first are taken.
const MOST_SURE: usize = 64;
/// A donor may fail so often in a row, and is asked again.
const PATIENCE: u32 = 2;

/// Who may give a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Donors {
    /// Those that have it, as far as one knows.
    pub sure: Vec<NodeId>,
    /// Those that want it too, or had it once. They are asked for what they have of it when it is long in coming.
    pub others: Vec<NodeId>,
}

impl From<Vec<NodeId>> for Donors {
    fn from(sure: Vec<NodeId>) -> Self {
        Self { sure, others: Vec::new() }
    }
}

/// A stream to a donor, and the right to it.
pub(super) struct Line {
    stream: ByteStream,
    _place: OwnedSemaphorePermit,
}

/// A donor that has something of a file.
pub(super) struct Donor {
    pub(super) node: NodeId,
    /// The length that it says the file has.
    pub(super) bytes: u64,
    pub(super) stock: Stock,
    pub(super) line: Option<Line>,
    /// Whether it has given nothing yet.
    pub(super) is_stranger: bool,
    /// How often it has failed in a row.
    pub(super) failed: u32,
}

/// What comes when a part is asked for.
pub(super) enum Given {
    /// It, encoded. It is not checked.
    Part(Vec<u8>),
    /// It is not there, but others are.
    NotYet(Stock),
    /// Nothing of the file is.
    Nothing,
}

/// A pause that is not the same for all.
fn about(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..1.5))
}

pub(super) fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

impl Line {
    /// Opens one, when that donor has a place free.
    pub(super) async fn open(blobs: &Blobs, swarm: &SwarmHandle, to: NodeId) -> io::Result<Self> {
        let place = timeout(GIVE, blobs.place(to)).await.map_err(|_| io::ErrorKind::TimedOut)?;
        let place = place.ok_or(io::ErrorKind::BrokenPipe)?;
        let stream = timeout(ASK, swarm.open_stream(to, BLOB)).await.map_err(|_| io::ErrorKind::TimedOut)?;
        Ok(Self { stream: stream.map_err(io::Error::other)?, _place: place })
    }

    async fn say(&mut self, hash: Hash, part: Option<u64>) -> io::Result<BlobAnswer> {
        write_message(&mut self.stream, &BlobRequest { hash, part }).await?;
        read_message(&mut self.stream).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Asks how long a file is, and what is there of it; none if nothing is. Whoever has something has its end, too.
    pub(super) async fn stock(&mut self, hash: Hash) -> io::Result<Option<(u64, Stock)>> {
        let answer = timeout(ASK, self.say(hash, None)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        Ok(match answer {
            BlobAnswer::Here { bytes } => Some((bytes, Stock::Whole)),
            BlobAnswer::Coming { bytes, held } if held.has(parts(bytes) - 1) => Some((bytes, Stock::Some(held))),
            BlobAnswer::Coming { .. } | BlobAnswer::Unknown => None,
        })
    }

    /// Asks for a part of a file.
    pub(super) async fn part(&mut self, hash: Hash, bytes: u64, part: u64) -> io::Result<Given> {
        let asked = timeout(GIVE, async {
            let now = match self.say(hash, Some(part)).await? {
                BlobAnswer::Coming { bytes: now, held } if now == bytes => return Ok(Given::NotYet(Stock::Some(held))),
                BlobAnswer::Coming { bytes, .. } | BlobAnswer::Here { bytes } => bytes,
                BlobAnswer::Unknown => return Ok(Given::Nothing),
            };
            if now != bytes {
                return Err(invalid("another length than before"));
            }
            let encoded = read_bytes(&mut self.stream, MAX_ENCODED).await?;
            encoded.map(Given::Part).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        });
        asked.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Donor {
    /// The line to it, opened if need be.
    pub(super) async fn line(&mut self, blobs: &Blobs, swarm: &SwarmHandle) -> io::Result<&mut Line> {
        let open = match self.line.take() {
            Some(open) => open,
            None => Line::open(blobs, swarm, self.node).await?,
        };
        Ok(self.line.insert(open))
    }

    /// Notes that it failed; whether it is to be left.
    pub(super) fn fails(&mut self, error: &io::Error) -> bool {
        (self.line, self.failed) = (None, self.failed + 1);
        error.kind() == io::ErrorKind::InvalidData || self.failed > PATIENCE
    }

    /// How long it is left alone after it failed.
    pub(super) fn pause(&self) -> Duration {
        about(HICCUP * self.failed)
    }

    /// Has it give the last part of a file, which alone proves how long that is.
    async fn end(&mut self, blobs: &Blobs, swarm: &SwarmHandle, hash: Hash) -> io::Result<Vec<u8>> {
        let (bytes, last) = (self.bytes, parts(self.bytes) - 1);
        match self.line(blobs, swarm).await?.part(hash, bytes, last).await? {
            Given::Part(encoded) => part::check(&encoded, hash, bytes, last).map(|()| encoded),
            // It may be just becoming whole, or between two attempts.
            Given::NotYet(_) | Given::Nothing => Err(io::Error::other("it has not the end that it said it had")),
        }
    }
}

/// What became of asking a node.
struct Heard {
    /// Whether it is the first time that this one says anything.
    is_first: bool,
    /// The node, if it has something.
    donor: Option<Donor>,
}

/// Looks for nodes that have something of a file, as long as it is there.
pub(super) struct Search {
    blobs: Blobs,
    swarm: SwarmHandle,
    hash: Hash,
    asking: JoinSet<()>,
    say: mpsc::Sender<Heard>,
    heard: mpsc::Receiver<Heard>,
    /// Nodes that have not said anything yet.
    unanswered: usize,
    /// Nodes to be asked later, and when.
    others: (Vec<NodeId>, Instant),
    /// Donors that are known, and of no use yet.
    found: VecDeque<Donor>,
}

impl Search {
    pub(super) fn begin(blobs: &Blobs, swarm: &SwarmHandle, hash: Hash, donors: &Donors) -> Self {
        let (me, sure) = (swarm.me(), donors.sure.iter().copied().take(MOST_SURE).collect::<BTreeSet<_>>());
        let others = donors.others.iter().copied().collect::<BTreeSet<_>>();
        let mut others: Vec<NodeId> = others.into_iter().filter(|node| *node != me && !sure.contains(node)).collect();
        others.shuffle(&mut rand::rng());
        others.truncate(MOST_OTHERS);
        let (say, heard) = mpsc::channel(MOST_OTHERS);
        let mut search = Self {
            blobs: blobs.clone(),
            swarm: swarm.clone(),
            hash,
            asking: JoinSet::new(),
            say,
            heard,
            unanswered: 0,
            others: (others, Instant::now() + HEAD_START),
            found: VecDeque::new(),
        };
        sure.into_iter().filter(|node| *node != me).for_each(|node| search.ask(node));
        search
    }

    /// Asks a node until it has something.
    pub(super) fn ask(&mut self, node: NodeId) {
        self.unanswered += 1;
        let (blobs, swarm, hash, say) = (self.blobs.clone(), self.swarm.clone(), self.hash, self.say.clone());
        self.asking.spawn(async move {
            let (mut is_first, mut pause, mut failed) = (true, HICCUP, 0);
            loop {
                let asked = async {
                    let mut line = Line::open(&blobs, &swarm, node).await?;
                    let stock = line.stock(hash).await?;
                    Ok::<_, io::Error>(stock.map(|stock| (line, stock)))
                };
                let donor = match asked.await {
                    Ok(Some((line, (bytes, stock)))) => {
                        Some(Donor { node, bytes, stock, line: Some(line), is_stranger: true, failed: 0 })
                    }
                    Ok(None) => {
                        (failed, pause) = (PATIENCE + 1, pause.max(AGAIN.0));
                        None
                    }
                    Err(error) => {
                        debug!(%node, %error, "a node cannot be asked for a file");
                        failed += 1;
                        None
                    }
                };
                let is_found = donor.is_some();
                // A connection that just breaks says nothing about the file.
                if is_found || is_first && failed > PATIENCE {
                    let _nobody_waits_any_more = say.send(Heard { is_first, donor }).await;
                    is_first = false;
                }
                if is_found {
                    return;
                }
                sleep(about(pause)).await;
                pause = (2 * pause).min(AGAIN.1);
            }
        });
    }

    /// Asks those that may have it, too; whether there were any.
    pub(super) fn ask_others(&mut self) -> bool {
        let others = std::mem::take(&mut self.others.0);
        others.iter().for_each(|node| self.ask(*node));
        !others.is_empty()
    }

    /// Whether all have said whether they have something, and none is left that could be asked.
    pub(super) fn is_over(&self) -> bool {
        self.unanswered == 0 && self.others.0.is_empty() && self.found.is_empty()
    }

    /// The next donor; none for one that has nothing yet.
    pub(super) async fn next(&mut self) -> Option<Donor> {
        if let Some(donor) = self.found.pop_front() {
            return Some(donor);
        }
        loop {
            tokio::select! {
                // It does not end: this holds a sender.
                Some(Heard { is_first, donor }) = self.heard.recv() => {
                    self.unanswered -= usize::from(is_first);
                    return donor;
                }
                () = sleep_until(self.others.1), if !self.others.0.is_empty() => {
                    self.ask_others();
                }
            }
        }
    }

    /// Finds a donor that proves how long the file is, by its last part, which it gives too.
    pub(super) async fn prove_length(&mut self) -> Option<(Donor, Vec<u8>)> {
        let (mut waiting, mut proving) = (VecDeque::new(), JoinSet::new());
        let (mut asked, mut next_at) = (BTreeSet::new(), Instant::now());
        loop {
            if Instant::now() >= next_at
                && let Some(donor) = waiting.pop_front()
            {
                let mut donor: Donor = donor;
                asked.insert(donor.node);
                let (blobs, swarm, hash) = (self.blobs.clone(), self.swarm.clone(), self.hash);
                proving.spawn(async move {
                    let end = donor.end(&blobs, &swarm, hash).await;
                    (donor, end)
                });
                next_at = Instant::now() + PROVE;
            }
            if proving.is_empty() && waiting.is_empty() && self.unanswered == 0 && !self.ask_others() {
                return None;
            }
            tokio::select! {
                // Who has to wait does not keep others from its place.
                donor = self.next() => waiting.extend(donor.map(|donor| match proving.is_empty() {
                    true => donor,
                    false => Donor { line: None, ..donor },
                })),
                Some(Ok((mut donor, end))) = proving.join_next(), if !proving.is_empty() => {
                    asked.remove(&donor.node);
                    match end {
                        Ok(end) => {
                            donor.is_stranger = false;
                            waiting.retain(|other| other.bytes == donor.bytes);
                            self.found = waiting;
                            // Those that were too slow may be of use yet.
                            asked.into_iter().for_each(|node| self.ask(node));
                            return Some((donor, end));
                        }
                        Err(error) => {
                            debug!(node = %donor.node, %error, "a donor does not give the end of a file");
                            next_at = Instant::now();
                            if !donor.fails(&error) {
                                next_at += donor.pause();
                                waiting.push_back(donor);
                            }
                        }
                    }
                }
                () = sleep_until(next_at), if !waiting.is_empty() => {}
            }
        }
    }
}
