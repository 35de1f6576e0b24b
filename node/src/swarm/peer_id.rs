//! `NodeId` is the Ed25519 key itself, libp2p's `PeerId` its multihash: the two convert without loss.

use consortium_protocol::identity::{NodeId, RootKey};
use libp2p::PeerId;
use libp2p::identity::{DecodingError, Keypair, PublicKey, ed25519};

/// The libp2p key pair of a root key.
pub(super) fn keypair(key: &RootKey) -> Result<Keypair, DecodingError> {
    let mut seed = key.seed();
    let secret = ed25519::SecretKey::try_from_bytes(&mut seed[..])?;
    Ok(ed25519::Keypair::from(secret).into())
}

/// The node behind a peer id; none for keys that are not Ed25519.
pub(super) fn to_node(peer: &PeerId) -> Option<NodeId> {
    let bytes = peer.to_bytes();
    // Identity multihash of the protobuf-encoded key: 00 24 08 01 12 20, then the 32 bytes of the key.
    let key: [u8; 32] = bytes.strip_prefix(&[0x00, 0x24, 0x08, 0x01, 0x12, 0x20])?.try_into().ok()?;
    Some(NodeId::from_bytes(key))
}

/// The peer id of a node; none when the 32 bytes are no point of the curve.
pub(super) fn to_peer(node: &NodeId) -> Option<PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(node.as_bytes()).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converts_both_ways_and_prints_alike() {
        let key = RootKey::from_seed([7; 32]);
        let peer = keypair(&key).unwrap().public().to_peer_id();
        assert_eq!(to_node(&peer), Some(key.node_id()));
        assert_eq!(to_peer(&key.node_id()), Some(peer));
        assert_eq!(peer.to_string(), key.node_id().to_string());
    }
}
