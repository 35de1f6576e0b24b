//! Carries what is too large for gossip, or for one node alone. What cannot be delivered is dropped: it is said again, or
//! asked for.

use std::collections::BTreeMap;

use consortium_protocol::NodeId;
use consortium_protocol::wire::Message as _;
use consortium_protocol::wire::train::{TrainAnswer, TrainMessage, TrainRequest};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::net::ask_in_bytes;
use crate::swarm::SwarmHandle;

/// Letters under way at a time.
const AT_A_TIME: usize = 64;
/// Letters under way to one node: whoever does not answer keeps no others waiting.
const TO_ONE: usize = 4;

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
    /// An entry and those that follow it, in their canonical encoding.
    Entries(Vec<u8>, Vec<Vec<u8>>),
}

impl Said {
    fn request(self) -> Vec<u8> {
        match self {
            Self::Message(message) => TrainRequest::Say(message).encode(),
            Self::Entries(first, next) => TrainRequest::say_entries(&first, &next),
        }
    }
}

/// Carries `letters` until `stop`, or until nobody writes any more.
pub(super) async fn carry(swarm: SwarmHandle, mut letters: mpsc::Receiver<Letter>, stop: CancellationToken) {
    let mut under_way: JoinSet<NodeId> = JoinSet::new();
    let mut each: BTreeMap<NodeId, usize> = BTreeMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(carried) = under_way.join_next() => {
                // None breaks off but at the end of the node.
                let Ok(to) = carried else { continue };
                if let Some(count) = each.get_mut(&to) {
                    *count = count.saturating_sub(1);
                }
                each.retain(|_, count| *count > 0);
            }
            letter = letters.recv(), if under_way.len() < AT_A_TIME => {
                let Some(Letter { to, said }) = letter else { return };
                let count = each.entry(to).or_default();
                if *count >= TO_ONE {
                    debug!(%to, "a message of a run is dropped: others before it are not taken yet");
                    continue;
                }
                *count += 1;
                let swarm = swarm.clone();
                under_way.spawn(async move {
                    let taken = ask_in_bytes(&swarm, to, &said.request()).await;
                    if taken != Some(TrainAnswer::Taken) {
                        debug!(%to, "a message of a run was not taken");
                    }
                    to
                });
            }
        }
    }
}
