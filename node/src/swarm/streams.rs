//! Byte streams between nodes, with this node itself as a peer like any other.

use std::time::Duration;

use consortium_protocol::identity::NodeId;
use futures::StreamExt as _;
use libp2p::StreamProtocol;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::compat::FuturesAsyncReadCompatExt as _;

use super::peer_id;
use super::turns::{Bound, Turns};

/// Time to connect (if need be) and negotiate a stream.
const OPEN: Duration = Duration::from_secs(10);
/// Streams accepted and not yet taken by their handler.
const BACKLOG: usize = 64;
/// Bytes in flight within a stream from this node to itself.
const LOOPBACK_BUFFER: usize = 256 * 1024;

/// What can be read from and written to.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A stream to a peer, whatever carries it.
pub type ByteStream = Box<dyn Duplex>;

/// Streams that peers opened, with who they are: no more at a time than the protocol's turns. Dropping it refuses the
/// protocol.
pub type Incoming = mpsc::Receiver<(NodeId, ByteStream)>;

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The peer does not speak the protocol.
    #[error("{0} does not speak {1}")]
    Unsupported(NodeId, &'static str),
    /// No connection, or it broke.
    #[error("cannot reach {0}: {1}")]
    Unreachable(NodeId, String),
    /// Not within the deadline.
    #[error("{0} did not answer within {1:?}")]
    Timeout(NodeId, Duration),
}

/// Opens streams to peers and, by way of `local`, to this node.
#[derive(Clone)]
pub(super) struct Streams {
    me: NodeId,
    control: libp2p_stream::Control,
    local: std::sync::Arc<std::collections::BTreeMap<&'static str, mpsc::Sender<(NodeId, ByteStream)>>>,
}

impl Streams {
    /// Registers `protocols` and returns an [`Incoming`] for each, in the same order.
    pub(super) fn register<const N: usize>(
        me: NodeId,
        control: &libp2p_stream::Control,
        protocols: [&'static str; N],
    ) -> Result<(Self, [Incoming; N]), libp2p_stream::AlreadyRegistered> {
        let mut local = std::collections::BTreeMap::new();
        let mut accepting = Vec::with_capacity(N);
        for protocol in protocols {
            let (sender, receiver) = mpsc::channel(BACKLOG);
            let incoming = control.clone().accept(StreamProtocol::new(protocol))?;
            tokio::spawn(accept(incoming, Turns::new(Bound::of(protocol)), sender.clone()));
            local.insert(protocol, sender);
            accepting.push(receiver);
        }
        let streams = Self { me, control: control.clone(), local: std::sync::Arc::new(local) };
        let accepting = accepting.try_into().unwrap_or_else(|_| unreachable!("one receiver was pushed per protocol"));
        Ok((streams, accepting))
    }

    /// Opens a stream to `to`.
    pub(super) async fn open(&self, to: NodeId, protocol: &'static str) -> Result<ByteStream, StreamError> {
        if to == self.me {
            let (ours, theirs) = tokio::io::duplex(LOOPBACK_BUFFER);
            let sender = self.local.get(protocol).ok_or(StreamError::Unsupported(to, protocol))?;
            return match sender.try_send((self.me, Box::new(theirs))) {
                Ok(()) => Ok(Box::new(ours)),
                Err(error) => Err(StreamError::Unreachable(to, error.to_string())),
            };
        }
        let peer = peer_id::to_peer(&to).ok_or_else(|| StreamError::Unreachable(to, "not a valid key".to_owned()))?;
        let mut control = self.control.clone();
        match tokio::time::timeout(OPEN, control.open_stream(peer, StreamProtocol::new(protocol))).await {
            Err(_) => Err(StreamError::Timeout(to, OPEN)),
            Ok(Err(libp2p_stream::OpenStreamError::UnsupportedProtocol(_))) => {
                Err(StreamError::Unsupported(to, protocol))
            }
            Ok(Err(error)) => Err(StreamError::Unreachable(to, error.to_string())),
            Ok(Ok(stream)) => Ok(Box::new(stream.compat())),
        }
    }
}

async fn accept(
    mut incoming: libp2p_stream::IncomingStreams,
    turns: Turns,
    sender: mpsc::Sender<(NodeId, ByteStream)>,
) {
    while let Some((peer, stream)) = incoming.next().await {
        let Some(node) = peer_id::to_node(&peer) else { continue };
        // A full backlog drops the stream: the peer sees it close and may try again.
        let stream = Box::new(turns.give(node, stream.compat()));
        if let Err(mpsc::error::TrySendError::Closed(_)) = sender.try_send((node, stream)) {
            return;
        }
    }
}
