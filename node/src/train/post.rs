//! Carries what is too large for gossip, or for one node alone. What cannot be delivered is dropped: it is said again, or
//! asked for.

use std::collections::{BTreeMap, BTreeSet};

use consortium_protocol::NodeId;
use consortium_protocol::wire::Message as _;
use consortium_protocol::wire::train::{TrainAnswer, TrainMessage, TrainRequest};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::net::ask_in_bytes;
use crate::swarm::SwarmHandle;

/// Letters under way at a time.
const AT_A_TIME: usize = 64;
/// Letters under way to one node: whoever does not answer keeps no others waiting.
const TO_ONE: usize = 4;
/// Letters with records that wait or are under way, of which one is for a node: who asks again has them coming.
pub(super) const RECORDS: usize = 16;

/// A message to one node.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) to: NodeId,
    pub(super) said: Said,
}

/// What a letter says.
#[derive(Debug)]
pub(super) enum Said {
    Message(Box<TrainMessage>),
    /// An entry and those that follow it, in their canonical encoding; with a permit of [`RECORDS`].
    Entries(Vec<u8>, Vec<Vec<u8>>, OwnedSemaphorePermit),
}

impl Said {
    /// With the permit, which is given back when the letter is there.
    fn request(self) -> (Vec<u8>, Option<OwnedSemaphorePermit>) {
        match self {
            Self::Message(message) => (TrainRequest::Say(message).encode(), None),
            Self::Entries(first, next, permit) => (TrainRequest::say_entries(&first, &next), Some(permit)),
        }
    }
}

/// Carries `letters` until `stop`, or until nobody writes any more.
pub(super) async fn carry(swarm: SwarmHandle, mut letters: mpsc::Receiver<Letter>, stop: CancellationToken) {
    let mut under_way: JoinSet<(NodeId, bool)> = JoinSet::new();
    let mut each: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut sent_records: BTreeSet<NodeId> = BTreeSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(carried) = under_way.join_next() => {
                // None breaks off but at the end of the node.
                let Ok((to, has_records)) = carried else { continue };
                if has_records {
                    sent_records.remove(&to);
                }
                if let Some(count) = each.get_mut(&to) {
                    *count = count.saturating_sub(1);
                }
                each.retain(|_, count| *count > 0);
            }
            letter = letters.recv(), if under_way.len() < AT_A_TIME => {
                let Some(Letter { to, said }) = letter else { return };
                let has_records = matches!(said, Said::Entries(..));
                let count = each.entry(to).or_default();
                if *count >= TO_ONE || has_records && !sent_records.insert(to) {
                    debug!(%to, "a message of a run is dropped: others before it are not taken yet");
                    continue;
                }
                *count += 1;
                let swarm = swarm.clone();
                under_way.spawn(async move {
                    let (request, _until_it_is_there) = said.request();
                    let taken = ask_in_bytes(&swarm, to, &request).await;
                    if taken != Some(TrainAnswer::Taken) {
                        debug!(%to, "a message of a run was not taken");
                    }
                    (to, has_records)
                });
            }
        }
    }
}
