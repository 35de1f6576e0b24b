//! Notices a peer that began a new life while its old connections still seem to stand.
//!
//! A process that was killed, or frozen for long, leaves connections behind that its peers take for alive until a timeout.
//! When it dials again, gossipsub says nothing on the second connection: it takes the peer to know its subscriptions
//! already, which the new process does not. Each then waits for what the other never sends. So all connections are
//! closed, and the peer is dialled anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::core::ConnectedPoint;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::ConnectionId;

/// Two peers that dial each other at the same time are done by then: a dial may take as long.
const SIMULTANEOUS: Duration = Duration::from_secs(10);

/// Time for a peer's hello to arrive.
const HELLO: Duration = Duration::from_secs(5);

/// The connections that stand.
#[derive(Debug, Default)]
pub(super) struct Connections {
    /// Since when, of those that are not relayed: a direct one beside a relayed one is no new life.
    direct: BTreeMap<PeerId, BTreeMap<ConnectionId, Instant>>,
    /// Peers that are dialled when all their connections have ended.
    to_dial: BTreeSet<PeerId>,
}

impl Connections {
    /// Notes a connection. True when the peer dialled although it has had a direct one for a while: it must not know
    /// of that.
    pub(super) fn established(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) -> bool {
        let relayed = endpoint.get_remote_address().iter().any(|part| part == Protocol::P2pCircuit);
        if relayed {
            return false;
        }
        let standing = self.direct.entry(peer).or_default();
        let old = standing.values().any(|since| since.elapsed() >= SIMULTANEOUS);
        standing.insert(id, Instant::now());
        old && endpoint.is_listener()
    }

    /// Has [`Connections::closed`] say when the last connection with a peer has ended.
    pub(super) fn dial_when_closed(&mut self, peer: PeerId) {
        self.to_dial.insert(peer);
    }

    /// Whether a direct connection with the peer stands for so long that both must have said hello on it.
    pub(super) fn stands_long(&self, peer: &PeerId) -> bool {
        self.direct.get(peer).is_some_and(|standing| standing.values().any(|since| since.elapsed() >= HELLO))
    }

    /// Notes the end of a connection, of which it says whether it was the peer's last. True when the peer is to be
    /// dialled anew.
    pub(super) fn closed(&mut self, peer: &PeerId, id: &ConnectionId, last: bool) -> bool {
        if let Some(standing) = self.direct.get_mut(peer) {
            standing.remove(id);
            if standing.is_empty() {
                self.direct.remove(peer);
            }
        }
        last && self.to_dial.remove(peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbound(address: &str) -> ConnectedPoint {
        ConnectedPoint::Listener { local_addr: "/memory/1".parse().unwrap(), send_back_addr: address.parse().unwrap() }
    }

    #[test]
    fn who_dials_again_after_a_while_is_dialled_anew_and_nobody_else() {
        let (peer, id) = (PeerId::random(), ConnectionId::new_unchecked);
        let mut connections = Connections::default();
        assert!(!connections.established(peer, id(1), &inbound("/memory/2")));
        assert!(!connections.established(peer, id(2), &inbound("/memory/3")), "both dialled at the same time");
        connections.closed(&peer, &id(2), false);
        assert!(!connections.stands_long(&peer));
        let long_ago = Instant::now().checked_sub(SIMULTANEOUS).unwrap();
        connections.direct.get_mut(&peer).unwrap().insert(id(1), long_ago);
        assert!(!connections.established(peer, id(3), &inbound("/memory/4/p2p-circuit")), "relayed");
        assert!(connections.established(peer, id(4), &inbound("/memory/5")));
        assert!(connections.stands_long(&peer));
        connections.dial_when_closed(peer);
        assert!(!connections.closed(&peer, &id(1), false), "one is left");
        assert!(connections.closed(&peer, &id(4), true));
        assert!(!connections.established(peer, id(5), &inbound("/memory/6")));
        assert!(!connections.closed(&peer, &id(5), true), "an ordinary end");
    }
}
