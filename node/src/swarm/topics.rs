//! Gossip topics besides the cluster's. What is said on them goes to whoever subscribed, unread; who reads it judges it, and
//! until then it is not passed on.

use std::collections::BTreeMap;

use consortium_protocol::identity::NodeId;
use libp2p::PeerId;
use libp2p::gossipsub::{self, IdentTopic, MessageAcceptance, MessageId, PublishError, TopicHash};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::behaviour;
use super::peer_id;

/// Topics at a time.
const MOST: usize = 64;

/// Something that was said on a topic.
#[derive(Debug)]
pub struct Gossiped {
    /// The peer that passed it on, not its author.
    pub source: NodeId,
    /// What was said.
    pub data: Vec<u8>,
    pub(super) id: Spoken,
}

/// What is judged.
#[derive(Clone, Debug)]
pub(super) struct Spoken {
    peer: PeerId,
    message: MessageId,
}

/// What becomes of something that was gossiped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It is passed on.
    PassOn,
    /// It is not, and nobody is to blame.
    Ignore,
    /// It is not, and speaks against whoever passed it on.
    Reject,
}

/// The topics that are open.
#[derive(Debug, Default)]
pub(super) struct Topics {
    open: BTreeMap<TopicHash, mpsc::Sender<Gossiped>>,
}

impl Topics {
    pub(super) fn subscribe(
        &mut self,
        gossip: &mut gossipsub::Behaviour,
        topic: String,
        listener: mpsc::Sender<Gossiped>,
    ) {
        let topic = IdentTopic::new(topic);
        let known = self.open.contains_key(&topic.hash());
        if !known && self.open.len() >= MOST {
            return warn!(%topic, "too many gossip topics are open");
        }
        // Twice is no error.
        if let Err(error) = gossip.subscribe(&topic) {
            return warn!(%topic, %error, "cannot subscribe");
        }
        if let Err(error) = gossip.set_topic_params(topic.clone(), behaviour::topic_score()) {
            debug!(%topic, error, "a topic goes without scores");
        }
        self.open.insert(topic.hash(), listener);
    }

    pub(super) fn unsubscribe(&mut self, gossip: &mut gossipsub::Behaviour, topic: String) {
        let topic = IdentTopic::new(topic);
        if self.open.remove(&topic.hash()).is_some() {
            gossip.unsubscribe(&topic);
        }
    }

    /// Says something on a topic that is open.
    pub(super) fn publish(&self, gossip: &mut gossipsub::Behaviour, topic: String, data: Vec<u8>) {
        match gossip.publish(IdentTopic::new(topic), data) {
            Ok(_) | Err(PublishError::NoPeersSubscribedToTopic | PublishError::Duplicate) => {}
            Err(error) => warn!(%error, "something could not be gossiped"),
        }
    }

    /// Hands something on to whoever listens to its topic; false if that is none of these.
    pub(super) fn hear(
        &self,
        gossip: &mut gossipsub::Behaviour,
        peer: PeerId,
        id: &MessageId,
        message: &mut gossipsub::Message,
    ) -> bool {
        let Some(listener) = self.open.get(&message.topic) else { return false };
        let heard = peer_id::to_node(&peer).map(|source| Gossiped {
            source,
            data: std::mem::take(&mut message.data),
            id: Spoken { peer, message: id.clone() },
        });
        // Who cannot keep up misses something, and does not pass it on.
        if heard.is_none_or(|heard| listener.try_send(heard).is_err()) {
            gossip.report_message_validation_result(id, &peer, MessageAcceptance::Ignore);
        }
        true
    }

    pub(super) fn judge(gossip: &mut gossipsub::Behaviour, spoken: &Spoken, judgement: Judgement) {
        let acceptance = match judgement {
            Judgement::PassOn => MessageAcceptance::Accept,
            Judgement::Ignore => MessageAcceptance::Ignore,
            Judgement::Reject => MessageAcceptance::Reject,
        };
        gossip.report_message_validation_result(&spoken.message, &spoken.peer, acceptance);
    }
}
