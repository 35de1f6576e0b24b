//! The handle to the swarm actor, and what it tells.

use std::collections::BTreeMap;
use std::time::Duration;

use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::wire::fact::Fact;
use consortium_protocol::wire::rpc::{Request, Response};
use tokio::sync::{mpsc, oneshot, watch};

use super::streams::{ByteStream, StreamError, Streams};
use super::topics::{Gossiped, Judgement, Spoken};

/// What the swarm tells its owner.
#[derive(Debug)]
pub enum SwarmEvent {
    /// A first connection to a peer was established.
    Connected(NodeId),
    /// The last connection to a peer closed.
    Disconnected(NodeId),
    /// A fact arrived by gossip; its signature holds and it is about this cluster.
    Fact {
        /// The peer that passed it on, not its author.
        source: NodeId,
        /// What it says.
        fact: Fact,
    },
    /// A peer (or this node itself) asks for something.
    Request {
        /// Who asks, as authenticated by the connection.
        from: NodeId,
        /// What it asks.
        request: Request,
        /// Where the answer goes; dropping it lets the asker time out.
        reply: Reply,
    },
}

/// The way back for one answer.
#[derive(Debug)]
pub struct Reply(pub(super) oneshot::Sender<Response>);

impl Reply {
    /// Answers. Nothing happens when the asker has gone.
    pub fn send(self, response: Response) {
        let _gone = self.0.send(response);
    }
}

/// A connected peer.
#[derive(Clone, Debug, Default)]
pub struct PeerInfo {
    /// Addresses it was reached at or says it listens on, as multiaddr text.
    pub addresses: Vec<String>,
    /// Latest round-trip time.
    pub rtt: Option<Duration>,
}

/// Why the swarm refused something.
#[derive(Debug, thiserror::Error)]
pub enum SwarmError {
    /// An address that cannot be used.
    #[error("{address}: {reason}")]
    Address {
        /// The address as given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Something in the way of starting.
    #[error("cannot start networking: {0}")]
    Start(String),
    /// The actor has ended.
    #[error("the node is shutting down")]
    Closed,
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// The peer cannot be reached, or broke the exchange off.
    #[error("{0}: {1}")]
    Failed(NodeId, String),
    /// No answer in time.
    #[error("{0} did not answer within {1:?}")]
    Timeout(NodeId, Duration),
    /// The actor has ended.
    #[error("the node is shutting down")]
    Closed,
}

#[derive(Debug)]
pub(super) enum Command {
    Publish(Fact),
    Subscribe { topic: String, listener: mpsc::Sender<Gossiped> },
    Unsubscribe(String),
    Say { topic: String, data: Vec<u8> },
    Judge(Spoken, Judgement),
    Provide { key: Hash, provides: bool },
    Providers { key: Hash, reply: oneshot::Sender<Vec<NodeId>> },
    Request { to: NodeId, request: Request, reply: oneshot::Sender<Result<Response, String>> },
    Dial(Vec<String>),
    Peers(oneshot::Sender<Vec<(NodeId, PeerInfo)>>),
    Regard(BTreeMap<NodeId, f64>),
    Shutdown(oneshot::Sender<()>),
}

/// Cloneable handle to the swarm.
#[derive(Clone)]
pub struct SwarmHandle {
    pub(super) me: NodeId,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) streams: Streams,
    pub(super) listening: watch::Receiver<Vec<String>>,
}

impl SwarmHandle {
    /// This node.
    #[must_use]
    pub fn me(&self) -> NodeId {
        self.me
    }

    /// Gossips a fact to the cluster.
    ///
    /// # Errors
    /// [`SwarmError::Closed`] when the actor has ended. That no peer listens yet is no error.
    pub async fn publish(&self, fact: Fact) -> Result<(), SwarmError> {
        self.command(Command::Publish(fact)).await
    }

    /// Listens to a gossip topic besides the cluster's; `backlog` is how much may wait to be read: more is lost. Everything
    /// heard is to be judged ([`Self::judge`]). Whoever listened before hears no more.
    ///
    /// # Errors
    /// [`SwarmError::Closed`] when the actor has ended.
    pub async fn subscribe(&self, topic: String, backlog: usize) -> Result<mpsc::Receiver<Gossiped>, SwarmError> {
        let (listener, heard) = mpsc::channel(backlog);
        self.command(Command::Subscribe { topic, listener }).await?;
        Ok(heard)
    }

    /// Listens no longer.
    ///
    /// # Errors
    /// [`SwarmError::Closed`] when the actor has ended.
    pub async fn unsubscribe(&self, topic: String) -> Result<(), SwarmError> {
        self.command(Command::Unsubscribe(topic)).await
    }

    /// Gossips something on a topic that it listens to; the same bytes are not said twice within two minutes.
    ///
    /// # Errors
    /// [`SwarmError::Closed`] when the actor has ended. That no peer listens yet is no error.
    pub async fn say(&self, topic: String, data: Vec<u8>) -> Result<(), SwarmError> {
        self.command(Command::Say { topic, data }).await
    }

    /// Says what becomes of something that was heard.
    ///
    /// # Errors
    /// [`SwarmError::Closed`] when the actor has ended.
    pub async fn judge(&self, heard: &Gossiped, judgement: Judgement) -> Result<(), SwarmError> {
        self.command(Command::Judge(heard.id.clone(), judgement)).await
    }

    /// Says in the DHT that this node provides what `key` names, or does no longer.
    ///
    /// # Errors
    /// [`SwarmError::Closed`] when the actor has ended.
    pub async fn provide(&self, key: Hash, provides: bool) -> Result<(), SwarmError> {
        self.command(Command::Provide { key, provides }).await
    }

    /// Looks up who provides what `key` names, and connects to them; at most 64 are told of, none after `deadline`.
    ///
    /// # Errors
    /// [`SwarmError::Closed`] when the actor has ended.
    pub async fn providers(&self, key: Hash, deadline: Duration) -> Result<Vec<NodeId>, SwarmError> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Providers { key, reply }).await?;
        Ok(tokio::time::timeout(deadline, answer).await.ok().and_then(Result::ok).unwrap_or_default())
    }

    async fn command(&self, command: Command) -> Result<(), SwarmError> {
        self.commands.send(command).await.map_err(|_| SwarmError::Closed)
    }

    /// Asks a peer (or this node itself) and waits at most `deadline` for its answer.
    ///
    /// # Errors
    /// When the peer cannot be reached, does not answer in time, or answers with what cannot be decoded.
    pub async fn request(&self, to: NodeId, request: Request, deadline: Duration) -> Result<Response, RpcError> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.commands.send(Command::Request { to, request, reply }).await.map_err(|_| RpcError::Closed)?;
            answer.await.map_err(|_| RpcError::Closed)?.map_err(|reason| RpcError::Failed(to, reason))
        };
        tokio::time::timeout(deadline, asked).await.unwrap_or(Err(RpcError::Timeout(to, deadline)))
    }

    /// Tries addresses (multiaddr text, with or without `/p2p/`), as they may have been remembered from an earlier run.
    ///
    /// # Errors
    /// [`SwarmError::Closed`] when the actor has ended.
    pub async fn dial(&self, addresses: Vec<String>) -> Result<(), SwarmError> {
        self.command(Command::Dial(addresses)).await
    }

    /// Says how much gossip is to make of peers, above and below 0 for who is not named: below 0 a peer is no one's
    /// neighbour in the mesh that facts are passed along. It still hears what this node itself has to say.
    ///
    /// # Errors
    /// [`SwarmError::Closed`] when the actor has ended.
    pub async fn regard(&self, peers: BTreeMap<NodeId, f64>) -> Result<(), SwarmError> {
        self.command(Command::Regard(peers)).await
    }

    /// Opens a stream; `protocol` is one of [`consortium_protocol::wire`]'s ids.
    ///
    /// # Errors
    /// When the peer cannot be reached, does not speak the protocol or does not answer in time.
    pub async fn open_stream(&self, to: NodeId, protocol: &'static str) -> Result<ByteStream, StreamError> {
        self.streams.open(to, protocol).await
    }

    /// Connected peers.
    ///
    /// # Errors
    /// [`SwarmError::Closed`] when the actor has ended.
    pub async fn peers(&self) -> Result<Vec<(NodeId, PeerInfo)>, SwarmError> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Peers(reply)).await?;
        answer.await.map_err(|_| SwarmError::Closed)
    }

    /// Addresses listened on, each with `/p2p/<peer id>`.
    #[must_use]
    pub fn listening(&self) -> watch::Receiver<Vec<String>> {
        self.listening.clone()
    }

    /// Closes all connections and ends the actor; later calls fail with `Closed`.
    pub async fn shutdown(&self) {
        let (done, ended) = oneshot::channel();
        if self.commands.send(Command::Shutdown(done)).await.is_ok() {
            let _ended = ended.await;
        }
    }
}
