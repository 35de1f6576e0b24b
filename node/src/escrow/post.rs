//! Carries messages to their receivers. What cannot be delivered is dropped: it is said again later.

use std::collections::BTreeMap;
use std::time::Duration;

use consortium_ledger::escrow::driver::Post;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::wire::rpc::{Request, Response};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::EscrowDesk;
use crate::swarm::SwarmHandle;

/// Messages under way at a time.
const AT_A_TIME: usize = 64;
/// Messages under way to one node: whoever does not answer keeps no others waiting.
const TO_ONE: usize = 8;
/// Time for a message to be taken.
const DELIVERY: Duration = Duration::from_secs(20);
/// What went wrong in escrows that are over is forgotten this often.
const FORGET: Duration = Duration::from_secs(60);

/// What became of a message: about which terms, to whom, and why it was not taken.
type Carried = (Hash, NodeId, Option<String>);

/// Carries `posts` until `stop`.
pub(super) async fn carry(
    desk: &EscrowDesk,
    mut posts: mpsc::Receiver<Post>,
    swarm: &SwarmHandle,
    stop: CancellationToken,
) {
    let mut under_way: JoinSet<Carried> = JoinSet::new();
    let mut each: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut forget = tokio::time::interval(FORGET);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = forget.tick() => desk.forget_trouble().await,
            Some(ended) = under_way.join_next(), if !under_way.is_empty() => {
                // None breaks off but at the end of the node.
                let Ok((about, to, why)) = ended else { continue };
                if let Some(count) = each.get_mut(&to) {
                    *count = count.saturating_sub(1);
                }
                each.retain(|_, count| *count > 0);
                desk.note(about, to, why);
            }
            post = posts.recv(), if under_way.len() < AT_A_TIME => {
                let Some(Post { to, message }) = post else { return };
                let count = each.entry(to).or_default();
                if *count >= TO_ONE {
                    debug!(%to, "a message about an escrow is dropped: others before it are not taken yet");
                    continue;
                }
                *count += 1;
                under_way.spawn(deliver(swarm.clone(), Post { to, message }));
            }
        }
    }
}

async fn deliver(swarm: SwarmHandle, post: Post) -> Carried {
    let Post { to, message } = post;
    let about = message.terms();
    let why = match swarm.request(to, Request::Escrow(Box::new(message)), DELIVERY).await {
        Ok(Response::Ack) => None,
        Ok(Response::Refused(refusal)) => Some(format!("it refuses: {}", refusal.message)),
        Ok(_) => Some("its answer does not fit".to_owned()),
        Err(error) => Some(format!("it cannot be reached: {error}")),
    };
    (about, to, why)
}
