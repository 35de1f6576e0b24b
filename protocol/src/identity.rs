//! The root key of a node and the name it gives it.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

/// Multihash and protobuf head that libp2p puts before an Ed25519 key in a PeerId: identity hash (`00`), 36 bytes
/// (`24`), key type Ed25519 (`08 01`), 32 bytes of key (`12 20`).
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// The Ed25519 root key: it is the node's PeerId, signs everything the node says, and derives its other secrets.
#[derive(Clone)]
pub struct RootKey(SigningKey);

impl RootKey {
    /// The key made from a 32-byte seed (RFC 8032 private key).
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let seed = Zeroizing::new(seed);
        Self(SigningKey::from_bytes(&seed))
    }

    /// The 32-byte seed, wiped from memory when dropped.
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half, which names this node.
    pub fn node_id(&self) -> NodeId {
        NodeId(self.0.verifying_key().to_bytes())
    }

    /// Signs `message` as it stands. Use [`crate::envelope::Signed`] for anything that another protocol could mistake
    /// for its own.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    /// A 32-byte secret of its own for `context` (BLAKE3 `derive_key`); `context` must be a constant of the program.
    pub fn derive(&self, context: &str) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(blake3::derive_key(context, self.0.as_bytes()))
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RootKey").field(&self.node_id()).finish()
    }
}

/// An Ed25519 public key: the name of a node. Its text is the libp2p PeerId (`12D3KooW...`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 32]);

impl NodeId {
    /// A name from its 32 bytes. Bytes that are no curve point are a name nobody can sign for.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the public key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether `signature` is this node's over `message`. Strict: weak keys and malleable encodings are refused.
    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        VerifyingKey::from_bytes(&self.0)
            .is_ok_and(|key| key.verify_strict(message, &Signature::from_bytes(signature)).is_ok())
    }

    /// The last six characters of the text form, for tables and logs.
    pub fn short(&self) -> String {
        let text = self.to_string();
        text[text.len().saturating_sub(6)..].to_owned()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0_u8; 38];
        bytes[..6].copy_from_slice(&PEER_ID_PREFIX);
        bytes[6..].copy_from_slice(&self.0);
        f.pad(&bs58::encode(bytes).into_string())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId(..{})", self.short())
    }
}

/// A text that is not the PeerId of an Ed25519 key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the PeerId of an Ed25519 key")]
pub struct ParseNodeIdError;

impl FromStr for NodeId {
    type Err = ParseNodeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0_u8; 38];
        let written = bs58::decode(text).onto(&mut bytes).map_err(|_| ParseNodeIdError)?;
        if written != bytes.len() || bytes[..6] != PEER_ID_PREFIX {
            return Err(ParseNodeIdError);
        }
        let mut key = [0_u8; 32];
        key.copy_from_slice(&bytes[6..]);
        Ok(Self(key))
    }
}

impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        bytes32::serialize(&self.0, self, serializer)
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bytes32::deserialize(deserializer, Self, "a PeerId")
    }
}

/// Serde for fixed byte strings: text for people, a CBOR byte string for machines.
pub(crate) mod bytes32 {
    use super::{Deserializer, FromStr, Serializer, de, fmt};

    pub(crate) fn serialize<const N: usize, S: Serializer>(
        bytes: &[u8; N],
        text: &impl fmt::Display,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(text) } else { serializer.serialize_bytes(bytes) }
    }

    pub(crate) fn deserialize<'de, const N: usize, T: FromStr, D: Deserializer<'de>>(
        deserializer: D,
        make: fn([u8; N]) -> T,
        expecting: &'static str,
    ) -> Result<T, D::Error> {
        let readable = deserializer.is_human_readable();
        let visitor = Visitor { make, expecting, readable };
        if readable { deserializer.deserialize_str(visitor) } else { deserializer.deserialize_bytes(visitor) }
    }

    struct Visitor<const N: usize, T> {
        make: fn([u8; N]) -> T,
        expecting: &'static str,
        readable: bool,
    }

    impl<const N: usize, T: FromStr> de::Visitor<'_> for Visitor<N, T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            if self.readable { f.write_str(self.expecting) } else { write!(f, "{N} bytes") }
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            if !self.readable {
                return Err(E::invalid_type(de::Unexpected::Str(text), &self));
            }
            text.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
        }

        fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<T, E> {
            let bytes: [u8; N] = bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &self))?;
            Ok((self.make)(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_the_libp2p_peer_id() {
        // The public key of the libp2p peer id specification's test vector; its text as rust-libp2p's identity crate
        // writes it.
        let key = hex::decode("1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e").unwrap();
        let id = NodeId::from_bytes(key.try_into().unwrap());
        let text = id.to_string();
        assert_eq!(text, "12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq");
        assert_eq!(text.parse::<NodeId>().unwrap(), id);
        assert_eq!(id.short(), text[text.len() - 6..]);
        assert!("12D3KooW".parse::<NodeId>().is_err());
        assert!("".parse::<NodeId>().is_err());
        assert!("0OIl".parse::<NodeId>().is_err());
        assert!("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N".parse::<NodeId>().is_err());
    }

    #[test]
    fn signs_verifies_and_hides_its_seed() {
        let key = RootKey::from_seed([7; 32]);
        let signature = key.sign(b"hello");
        assert!(key.node_id().verify(b"hello", &signature));
        assert!(!key.node_id().verify(b"hellO", &signature));
        assert_eq!(*key.seed(), [7; 32]);
        assert!(!format!("{key:?}").contains("07"));
        assert_ne!(*key.derive("consortium a"), *key.derive("consortium b"));
    }

    #[test]
    fn weak_keys_sign_for_nobody() {
        // The identity point: under lax verification anything verifies against it.
        let mut weak = [0; 32];
        weak[0] = 1;
        let mut signature = [0; 64];
        signature[0] = 1;
        assert!(!NodeId::from_bytes(weak).verify(b"anything", &signature));
    }
}
