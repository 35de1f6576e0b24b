//! Signed statements.
//!
//! A statement travels as the canonical CBOR map `{by, sig, body, v}`: signer, signature, payload bytes, version of the
//! payload. The signature covers `"consortium/" domain 0x00 version(u16 LE) body`, so what is said in one place is
//! never valid in another. The bytes are kept as received: what is passed on is what was signed.

use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_bytes::{ByteArray, ByteBuf};

use crate::cbor::{self, DecodeError};
use crate::hash::Hash;
use crate::identity::{NodeId, RootKey};

/// What the envelope adds to the payload at most, in bytes.
pub const ENVELOPE_BYTES: usize = 160;

/// A rule of its type that a value breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct Invalid {
    /// The field, or the type.
    pub field: &'static str,
    /// The rule, in words.
    pub rule: &'static str,
}

impl Invalid {
    /// Names the field and the rule it breaks.
    pub const fn new(field: &'static str, rule: &'static str) -> Self {
        Self { field, rule }
    }

    /// `Ok` if `holds`, else this error.
    ///
    /// # Errors
    /// `field` breaks `rule`.
    pub const fn unless(holds: bool, field: &'static str, rule: &'static str) -> Result<(), Self> {
        if holds { Ok(()) } else { Err(Self::new(field, rule)) }
    }
}

/// Something a node can sign.
pub trait Payload: Serialize + DeserializeOwned + Clone {
    /// Keeps signatures apart: no two payload types share a domain.
    const DOMAIN: &'static str;
    /// The version of this payload that is spoken.
    const VERSION: u16;
    /// The longest encoding, in bytes.
    const MAX_BYTES: usize;

    /// The bounds and rules of the type that need no knowledge of the outside.
    ///
    /// # Errors
    /// The first rule broken.
    fn check(&self) -> Result<(), Invalid>;
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    by: NodeId,
    sig: ByteArray<64>,
    body: ByteBuf,
    v: u16,
}

/// A payload whose signature has been verified: there is no other way to hold one.
pub struct Signed<T> {
    bytes: Arc<[u8]>,
    signer: NodeId,
    payload: Arc<T>,
}

impl<T: Payload> Signed<T> {
    /// Signs `payload` with `key`.
    ///
    /// The caller builds a payload that passes [`Payload::check`]; one that does not is refused by everyone who
    /// receives it.
    pub fn sign(key: &RootKey, payload: T) -> Self {
        let body = cbor::to_vec(&payload);
        let envelope = Envelope {
            by: key.node_id(),
            sig: ByteArray::new(key.sign(&preimage::<T>(&body))),
            body: ByteBuf::from(body),
            v: T::VERSION,
        };
        Self { bytes: cbor::to_vec(&envelope).into(), signer: envelope.by, payload: Arc::new(payload) }
    }

    /// Reads and verifies a signed statement.
    ///
    /// # Errors
    /// Oversize, not canonical, another version, a signature that does not verify, or a payload that breaks its rules.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let envelope: Envelope = cbor::from_slice(bytes, T::MAX_BYTES + ENVELOPE_BYTES)?;
        if envelope.v != T::VERSION {
            return Err(DecodeError::Version { domain: T::DOMAIN, found: envelope.v, spoken: T::VERSION });
        }
        if !envelope.by.verify(&preimage::<T>(&envelope.body), &envelope.sig) {
            return Err(DecodeError::Signature);
        }
        let payload: T = cbor::from_slice(&envelope.body, T::MAX_BYTES)?;
        payload.check()?;
        Ok(Self { bytes: bytes.into(), signer: envelope.by, payload: Arc::new(payload) })
    }
}

impl<T> Signed<T> {
    /// The bytes as signed or received.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Who signed.
    pub fn signer(&self) -> NodeId {
        self.signer
    }

    /// What was signed.
    pub fn payload(&self) -> &T {
        &self.payload
    }

    /// BLAKE3 of [`Self::as_bytes`].
    pub fn digest(&self) -> Hash {
        Hash::of(&self.bytes)
    }
}

fn preimage<T: Payload>(body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(body.len() + T::DOMAIN.len() + 16);
    message.extend_from_slice(b"consortium/");
    message.extend_from_slice(T::DOMAIN.as_bytes());
    message.push(0);
    message.extend_from_slice(&T::VERSION.to_le_bytes());
    message.extend_from_slice(body);
    message
}

impl<T> Clone for Signed<T> {
    fn clone(&self) -> Self {
        Self { bytes: Arc::clone(&self.bytes), signer: self.signer, payload: Arc::clone(&self.payload) }
    }
}

impl<T> PartialEq for Signed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl<T> Eq for Signed<T> {}

impl<T: fmt::Debug> fmt::Debug for Signed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signed").field("signer", &self.signer).field("payload", &self.payload).finish_non_exhaustive()
    }
}

impl<T> Serialize for Signed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.bytes)
    }
}

impl<'de, T: Payload> Deserialize<'de> for Signed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = ByteBuf::deserialize(deserializer)?;
        Self::decode(&bytes).map_err(de::Error::custom)
    }
}
