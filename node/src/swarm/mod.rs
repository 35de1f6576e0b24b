//! The libp2p side of a node. Nothing outside this folder knows about libp2p.
//!
//! One actor ([`actor`]) owns the swarm; everyone else holds a cloneable [`SwarmHandle`]: bounded commands in, typed
//! [`SwarmEvent`]s out, byte streams for bulk data. Addresses cross this boundary as text, peers as
//! [`NodeId`](consortium_protocol::identity::NodeId).
//!
//! - `transport`: how bytes move (TCP and QUIC, or memory for tests); the seam that tests replace.
//! - `behaviour`: which libp2p protocols run, with their limits.
//! - `codec`: request-response in canonical CBOR, bounded before it is read.
//! - `peer_id`: the one conversion between `NodeId` and libp2p's `PeerId`.
//! - `topics`: gossip besides the cluster's own; `lookups`: who provides something, by Kademlia.
//! - `streams`: opening and accepting streams, to this node itself too; `turns`: how many of them one node may have.

mod actor;
mod behaviour;
mod codec;
mod connections;
mod handle;
mod lookups;
mod peer_id;
mod streams;
mod topics;
mod transport;
mod turns;

pub use actor::{SwarmConfig, spawn};
pub use handle::{PeerInfo, Reply, RpcError, SwarmError, SwarmEvent, SwarmHandle};
pub use streams::{ByteStream, Incoming, StreamError};
pub use topics::{Gossiped, Judgement};
pub use transport::TransportKind;
