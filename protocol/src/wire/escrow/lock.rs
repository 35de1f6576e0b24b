//! What Lightning payments are locked to, and what opens them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::hash::{ParseHexError, hex_text, parse_hex};
use crate::identity::bytes32;

/// The SHA-256 of a preimage, to which a payment is locked: BOLT 11's payment hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HashLock([u8; 32]);

impl HashLock {
    /// From its 32 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for HashLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex_text(&self.0))
    }
}

impl fmt::Debug for HashLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HashLock({self:.8}..)")
    }
}

impl FromStr for HashLock {
    type Err = ParseHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_hex(text).map(Self)
    }
}

impl Serialize for HashLock {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        bytes32::serialize(&self.0, self, serializer)
    }
}

impl<'de> Deserialize<'de> for HashLock {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bytes32::deserialize(deserializer, Self, "64 hexadecimal digits")
    }
}

/// What opens a [`HashLock`]: whoever knows it can take what is locked. Wiped from memory when dropped, and never shown;
/// it is only written in binary messages.
#[derive(Clone)]
pub struct LockSecret(Zeroizing<[u8; 32]>);

impl LockSecret {
    /// From its 32 bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The 32 bytes. Whoever gets them can take what is locked.
    #[must_use]
    pub fn reveal(&self) -> &[u8; 32] {
        &self.0
    }

    /// What it opens.
    #[must_use]
    pub fn lock(&self) -> HashLock {
        HashLock(Sha256::digest(self.reveal()).into())
    }
}

impl PartialEq for LockSecret {
    fn eq(&self, other: &Self) -> bool {
        // Equal digests tell no more than that; no early end tells where secrets differ.
        self.lock() == other.lock()
    }
}

impl Eq for LockSecret {}

impl fmt::Debug for LockSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LockSecret(..)")
    }
}

impl Serialize for LockSecret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return Err(serde::ser::Error::custom("a preimage is not written as text"));
        }
        serializer.serialize_bytes(self.reveal())
    }
}

impl<'de> Deserialize<'de> for LockSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The bytes of a hash are read the same way, and no text is ever written that could be read.
        HashLock::deserialize(deserializer).map(|bytes| Self::from_bytes(bytes.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_its_lock_and_is_not_shown() {
        // BOLT 11's examples are paid with the hash 0001020304..; this one is of NIST: SHA-256 of 32 zero bytes.
        let secret = LockSecret::from_bytes([0; 32]);
        let lock = "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925";
        assert_eq!(secret.lock().to_string(), lock);
        assert_eq!(lock.parse(), Ok(secret.lock()));
        assert_eq!(format!("{secret:?}"), "LockSecret(..)");
        assert_ne!(secret, LockSecret::from_bytes([1; 32]));
    }
}
