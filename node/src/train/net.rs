//! A run over the swarm: gossip on a topic of its own, streams for what is larger, files from several donors.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use consortium_protocol::wire::train::{
    RunId, StateFile, TrainAnswer, TrainGossip, TrainMessage, TrainRequest, run_key, run_topic,
};
use consortium_protocol::wire::{Message as _, TRAIN};
use consortium_protocol::{Hash, NodeId};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::gate::{Gate, ROOM};
use super::post::{self, Letter, RECORDS, Said};
use super::roster::Roster;
use super::wire::{Heard, Wire};
use crate::blobs::{BlobError, Blobs, Donors};
use crate::clock::wall_ms;
use crate::pipeline::{read_message, write_bytes};
use crate::swarm::{Gossiped, SwarmError, SwarmHandle};

/// Messages that wait to be read, from gossip or for the run.
const BACKLOG: usize = 1024;
/// Letters that wait to be carried.
const LETTERS: usize = 1024;
/// Time for an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Time for the DHT to answer.
const LOOKUP: Duration = Duration::from_secs(10);
/// Nodes of the run are looked for often at first, then now and then.
const LOOKUPS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
const EARLY_LOOKUPS: u32 = 10;
/// A node's way to the others of a run.
#[derive(Clone)]
pub(super) struct SwarmWire {
    swarm: SwarmHandle,
    run: RunId,
    blobs: Blobs,
    letters: mpsc::Sender<Letter>,
    /// Letters with records that may be written yet.
    records: Arc<Semaphore>,
    again: Arc<AtomicU32>,
    providers: Arc<Mutex<Vec<NodeId>>>,
}

/// Asks a node something about runs.
pub(super) async fn ask(swarm: &SwarmHandle, node: NodeId, request: &TrainRequest) -> Option<TrainAnswer> {
    ask_in_bytes(swarm, node, &request.encode()).await
}

/// Asks what these are the bytes of.
pub(super) async fn ask_in_bytes(swarm: &SwarmHandle, node: NodeId, request: &[u8]) -> Option<TrainAnswer> {
    let asked = async {
        let mut stream = swarm.open_stream(node, TRAIN).await.ok()?;
        write_bytes(&mut stream, request).await.ok()?;
        read_message::<TrainAnswer>(&mut stream).await.ok()?
    };
    tokio::time::timeout(ANSWER, asked).await.ok().flatten()
}

/// Joins the nodes of a run, until `stop`. What they say comes out of the receiver; what comes by streams is shown
/// to the gate.
///
/// # Errors
/// [`SwarmError::Closed`] when the swarm has ended.
pub(super) async fn enter(
    swarm: &SwarmHandle,
    run: RunId,
    blobs: Blobs,
    roster: Roster,
    stop: &CancellationToken,
) -> Result<(SwarmWire, Arc<Gate>, mpsc::Receiver<Heard>), SwarmError> {
    let gossip = swarm.subscribe(run_topic(run), BACKLOG).await?;
    let (inbox, heard) = mpsc::channel(BACKLOG);
    let (letters, to_carry) = mpsc::channel(LETTERS);
    let wire = SwarmWire {
        swarm: swarm.clone(),
        run,
        blobs,
        letters,
        records: Arc::new(Semaphore::new(RECORDS)),
        // A node that starts again does not say what its neighbours take for said already.
        again: Arc::new(AtomicU32::new(wall_ms() as u32)),
        providers: Arc::default(),
    };
    tokio::spawn(post::carry(swarm.clone(), to_carry, stop.clone()));
    tokio::spawn(find(wire.clone(), stop.clone()));
    let gate = Arc::new(Gate::new(run, roster, inbox, ROOM));
    let listener = Listener { swarm: swarm.clone(), gate: Arc::clone(&gate) };
    tokio::spawn(listener.listen(gossip, stop.clone()));
    Ok((wire, gate, heard))
}

/// Keeps looking for nodes that know the run, and is found by them.
async fn find(wire: SwarmWire, stop: CancellationToken) {
    let key = run_key(wire.run);
    for lookup in 0u32.. {
        if lookup < EARLY_LOOKUPS || lookup.is_multiple_of(20) {
            let _ended = wire.swarm.provide(key, true).await;
        }
        let Ok(found) = wire.swarm.providers(key, LOOKUP).await else { return };
        if !found.is_empty() {
            *wire.providers.lock().unwrap_or_else(PoisonError::into_inner) = found;
        }
        let pause = if lookup < EARLY_LOOKUPS { LOOKUPS.0 } else { LOOKUPS.1 };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Leaves the nodes of a run: nothing is heard of it any more, and nobody finds it here.
pub(super) async fn leave(swarm: &SwarmHandle, run: RunId) {
    if swarm.unsubscribe(run_topic(run)).await.is_ok() {
        let _ended = swarm.provide(run_key(run), false).await;
    }
}

impl SwarmWire {
    fn post(&self, to: NodeId, said: Said) {
        if self.letters.try_send(Letter { to, said }).is_err() {
            debug!(%to, "a message of a run is dropped: too many wait");
        }
    }
}

impl Wire for SwarmWire {
    async fn gossip(&self, message: TrainMessage) {
        let again = self.again.fetch_add(1, Ordering::Relaxed);
        let said = TrainGossip { message, again }.encode();
        if self.swarm.say(run_topic(self.run), said).await.is_err() {
            debug!("the swarm has ended");
        }
    }

    fn send(&self, to: NodeId, message: TrainMessage) {
        self.post(to, Said::Message(Box::new(message)));
    }

    fn send_entries(&self, to: NodeId, first: Vec<u8>, next: Vec<Vec<u8>>) {
        match Arc::clone(&self.records).try_acquire_owned() {
            Ok(permit) => self.post(to, Said::Entries(first, next, permit)),
            Err(_) => debug!(%to, "records of a run are not sent: too many others ask for some"),
        }
    }

    async fn locate(&self, at: NodeId, state: Hash) -> Option<StateFile> {
        match ask(&self.swarm, at, &TrainRequest::State { run: self.run, state }).await? {
            TrainAnswer::File(file) => Some(file),
            _ => None,
        }
    }

    async fn fetch(&self, file: Hash, most: u64, donors: Donors) -> Result<PathBuf, BlobError> {
        self.blobs.fetch(&self.swarm, file, most, &donors, |_| ()).await
    }

    async fn providers(&self) -> Vec<NodeId> {
        self.providers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Reads what is gossiped about a run.
struct Listener {
    swarm: SwarmHandle,
    gate: Arc<Gate>,
}

impl Listener {
    async fn listen(self, mut gossip: mpsc::Receiver<Gossiped>, stop: CancellationToken) {
        loop {
            let gossiped = tokio::select! {
                () = stop.cancelled() => return,
                gossiped = gossip.recv() => match gossiped {
                    Some(gossiped) => gossiped,
                    None => return,
                },
            };
            let judgement = self.gate.judge(gossiped.source, &gossiped.data, Instant::now());
            if self.swarm.judge(&gossiped, judgement).await.is_err() {
                return;
            }
        }
    }
}
