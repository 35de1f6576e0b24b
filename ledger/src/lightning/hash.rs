//! Hashes of payments and what opens them.

use std::fmt;
use std::str::FromStr;

use ldk_node::bitcoin::hashes::{Hash as _, sha256};
use ldk_node::lightning_types::payment as ldk;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// The SHA-256 of a preimage: the name of a Lightning payment. Its text is 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PaymentHash([u8; 32]);

impl PaymentHash {
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

impl fmt::Display for PaymentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(self.0))
    }
}

impl fmt::Debug for PaymentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PaymentHash({self})")
    }
}

/// A text that is no payment hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a payment hash has 64 hexadecimal digits")]
pub struct ParsePaymentHashError;

impl FromStr for PaymentHash {
    type Err = ParsePaymentHashError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| ParsePaymentHashError)?;
        Ok(Self(bytes))
    }
}

impl Serialize for PaymentHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PaymentHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl From<ldk::PaymentHash> for PaymentHash {
    fn from(hash: ldk::PaymentHash) -> Self {
        Self(hash.0)
    }
}

impl From<PaymentHash> for ldk::PaymentHash {
    fn from(hash: PaymentHash) -> Self {
        Self(hash.0)
    }
}

/// What opens a payment: whoever knows it can claim what is locked to its hash, and it is the payer's receipt. Wiped
/// from memory when dropped, compared in constant time, and never shown.
#[derive(Clone)]
pub struct Preimage(Zeroizing<[u8; 32]>);

impl Preimage {
    /// From its 32 bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// A new one, drawn at random.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *bytes)?;
        Ok(Self(bytes))
    }

    /// The 32 bytes. Whoever gets them can claim the payment.
    #[must_use]
    pub fn reveal(&self) -> &[u8; 32] {
        &self.0
    }

    /// The hash that it opens.
    #[must_use]
    pub fn hash(&self) -> PaymentHash {
        PaymentHash(sha256::Hash::hash(self.reveal()).to_byte_array())
    }
}

impl PartialEq for Preimage {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(other.reveal()).into()
    }
}

impl Eq for Preimage {}

impl fmt::Debug for Preimage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Preimage(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preimage_opens_its_hash_and_is_not_shown() {
        let preimage = Preimage::from_bytes([7; 32]);
        assert_eq!(preimage.hash().to_string(), hex::encode(sha256::Hash::hash(&[7; 32]).to_byte_array()),);
        assert_eq!(format!("{preimage:?}"), "Preimage(..)");
        assert_ne!(Preimage::random().unwrap(), Preimage::random().unwrap());
    }

    #[test]
    fn hashes_are_read_back() {
        let hash = Preimage::from_bytes([1; 32]).hash();
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!("12".parse::<PaymentHash>(), Err(ParsePaymentHashError));
        let text = serde_json::to_string(&hash).unwrap();
        assert_eq!(serde_json::from_str::<PaymentHash>(&text).unwrap(), hash);
    }
}
