//! What is let in of what others say of a run, by gossip and by streams alike.
//!
//! Anyone may say again what others have signed, as often as it likes, so that a good signature alone lets nothing in. What
//! is said is to be about the rounds at hand, by who has it to say, not the same again and again, and no more than fits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use consortium_protocol::wire::Message as _;
use consortium_protocol::wire::train::{Entry, RunId, TrainGossip, TrainMessage};
use consortium_protocol::{Hash, NodeId, Signed};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::driver::SAID_AGAIN;
use super::roster::{Roster, speaks_for_itself};
use super::wire::Heard;
use crate::buckets::{Buckets, Pace};
use crate::swarm::Judgement;

/// Bytes of messages that wait to be read, of one run: the longest message takes about a thirtieth.
pub(super) const ROOM: usize = 32 << 20;
/// What one neighbour may pass on of a run. All of 64 peers and 9 validators say a few things every quarter of a second at
/// most, which is the shortest time after which anything is said again.
const NEIGHBOUR: Pace = Pace { burst: 2000, per_second: 1000.0 };
/// What one that the run knows may say: a dozen things in each of three rounds, each again and again.
const SPEAKER: Pace = Pace { burst: 256, per_second: 128.0 };
/// What all that no record names may say together.
const STRANGERS: Pace = Pace { burst: 128, per_second: 16.0 };
/// How often one node may ask for records.
const ASKING: Pace = Pace { burst: 32, per_second: 8.0 };
/// Nodes of a kind whose pace is remembered.
const NODES: usize = 512;
/// The same words count again after this time: honest nodes say nothing again before.
const AGAIN: Duration = Duration::from_millis(SAID_AGAIN);
/// Messages remembered for as long as they are not taken again.
const RECENT: usize = 4096;

/// The way in of one run.
pub(super) struct Gate {
    run: RunId,
    roster: Roster,
    inbox: mpsc::Sender<Heard>,
    room: Arc<Semaphore>,
    neighbours: Buckets<NodeId>,
    speakers: Buckets<NodeId>,
    strangers: Buckets<()>,
    askers: Buckets<NodeId>,
    recent: Mutex<HashMap<Hash, Instant>>,
}

/// A signed message: by whom, its digest, and how long it is.
struct Word {
    by: NodeId,
    digest: Hash,
    bytes: usize,
}

fn word(message: &TrainMessage) -> Option<Word> {
    fn of<T: consortium_protocol::envelope::Payload>(said: &Signed<T>) -> Option<Word> {
        Some(Word { by: said.signer(), digest: said.digest(), bytes: said.as_bytes().len() })
    }
    match message {
        TrainMessage::Join(said) => of(said),
        TrainMessage::Candidate(said) => of(said),
        TrainMessage::Commit(said) => of(said),
        TrainMessage::Reveal(said) => of(said),
        TrainMessage::EvalNonce(said) => of(said),
        TrainMessage::Card(said) => of(said),
        TrainMessage::Proposal(said) => of(said),
        TrainMessage::Vote(said) => of(said),
        TrainMessage::Seal(said) => of(said),
        TrainMessage::NewView(said) => of(said),
        TrainMessage::State(said) => of(said),
        TrainMessage::Entries(..) | TrainMessage::Ask { .. } => None,
    }
}

impl Gate {
    /// Into `inbox`, in which as many bytes of messages wait as there is room for.
    pub(super) fn new(run: RunId, roster: Roster, inbox: mpsc::Sender<Heard>, room: usize) -> Self {
        let nodes = || Buckets::of_at_most(NODES);
        Self {
            run,
            roster,
            inbox,
            room: Arc::new(Semaphore::new(room)),
            neighbours: nodes(),
            speakers: nodes(),
            strangers: Buckets::of_at_most(1),
            askers: nodes(),
            recent: Mutex::default(),
        }
    }

    /// Judges what a neighbour passed on, and has the run hear what counts.
    pub(super) fn judge(&self, neighbour: NodeId, gossiped: &[u8], now: Instant) -> Judgement {
        if self.neighbours.take(neighbour, 1, NEIGHBOUR, now).is_err() {
            return Judgement::Ignore;
        }
        let message = match TrainGossip::decode(gossiped) {
            Ok(said) if said.message.run() == self.run => said.message,
            _ => return Judgement::Reject,
        };
        // What nobody signed is for one node alone.
        match word(&message).is_some() && self.take(neighbour, message, now) {
            true => Judgement::PassOn,
            false => Judgement::Ignore,
        }
    }

    /// Has the run hear a message, if it counts and there is room for it; tells whether it does.
    pub(super) fn take(&self, from: NodeId, message: TrainMessage, now: Instant) -> bool {
        let word = word(&message);
        let bytes = match (&message, &word) {
            (_, Some(word)) => self.counts(&message, word, now).then_some(word.bytes),
            (TrainMessage::Entries(first, next), None) => self.has_next(first, next).then(|| message.encode().len()),
            (_, None) => self.askers.take(from, 1, ASKING, now).is_ok().then_some(0),
        };
        let Some(room) = bytes.and_then(|bytes| self.make_room(bytes)) else { return false };
        if self.inbox.try_send(Heard { from, message, room: Some(room) }).is_err() {
            return false;
        }
        if let Some(word) = word {
            self.note(word.digest, now);
        }
        true
    }

    /// Whether something signed is of now, new, and for its signer to say.
    fn counts(&self, message: &TrainMessage, word: &Word, now: Instant) -> bool {
        self.is_at_hand(message) && !self.is_recent(&word.digest, now) && self.may_say(message, word.by, now)
    }

    /// Whether one of these entries may be the next: sealed by nobody but validators. Who judges those after it is not
    /// known before.
    fn has_next(&self, first: &Entry, next: &[Entry]) -> bool {
        let is_next = |entry: &&Entry| Some(entry.record.round) == self.roster.round();
        let entry = std::iter::once(first).chain(next).find(is_next);
        entry.is_some_and(|entry| entry.seals.signers().all(|sealer| self.roster.judges(sealer)))
    }

    /// Whether a message is about the rounds at hand. What is held after a later one tells who is behind that it is.
    fn is_at_hand(&self, message: &TrainMessage) -> bool {
        let (Some(round), said_in) = (self.roster.round(), message.round()) else { return true };
        match message {
            TrainMessage::State(_) => said_in.saturating_add(2) >= round,
            _ => said_in.abs_diff(round) <= 1,
        }
    }

    /// Whether it is for `by` to say, and not too much.
    fn may_say(&self, message: &TrainMessage, by: NodeId, now: Instant) -> bool {
        let is_known = match message {
            TrainMessage::Proposal(_) | TrainMessage::NewView(_) | TrainMessage::Vote(_) | TrainMessage::Seal(_) => {
                self.roster.judges(by)
            }
            _ => self.roster.names(by),
        };
        if is_known {
            return self.speakers.take(by, 1, SPEAKER, now).is_ok();
        }
        // Anyone may come, and say what it holds; nobody may say so all the time. Who is behind does not know everyone; and
        // whoever is no part of the run has nothing else to say.
        speaks_for_itself(message).is_some() && self.strangers.take((), 1, STRANGERS, now).is_ok()
    }

    fn is_recent(&self, digest: &Hash, now: Instant) -> bool {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.get(digest).is_some_and(|at| now.saturating_duration_since(*at) < AGAIN)
    }

    fn note(&self, digest: Hash, now: Instant) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() >= RECENT {
            recent.retain(|_, at| now.saturating_duration_since(*at) < AGAIN);
        }
        // More in so short a time than all may say: then some are heard twice.
        if recent.len() < RECENT {
            recent.insert(digest, now);
        }
    }

    fn make_room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.room).try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
    }
}
