//! The public part of a macaroon: which payment pays for it, and which token it is of.

use std::fmt;

use crate::ledger::hex;

/// Length of an identifier in bytes.
pub const LEN: usize = 66;
/// The only version there is.
const VERSION: [u8; 2] = [0, 0];

/// What a macaroon of L402 identifies: version (2 bytes, big-endian, 0), payment hash, token.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identifier {
    /// The hash of the payment that opens it.
    pub payment_hash: [u8; 32],
    /// The token: the same for all macaroons of an account.
    pub token: [u8; 32],
}

impl Identifier {
    /// As bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..2].copy_from_slice(&VERSION);
        bytes[2..34].copy_from_slice(&self.payment_hash);
        bytes[34..].copy_from_slice(&self.token);
        bytes
    }

    /// From bytes; none where they are no identifier of version 0.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&VERSION)?;
        let (payment_hash, token) = rest.split_first_chunk::<32>()?;
        Some(Self { payment_hash: *payment_hash, token: token.try_into().ok()? })
    }
}

impl fmt::Debug for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identifier(payment {}, token {})", hex(&self.payment_hash), hex(&self.token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_specification() {
        let bytes = |text: &str| -> Vec<u8> {
            (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
        };
        let hash = bytes("163102a9c88fa4ec9ac9937b6f070bc3e27249a81ad7a05f398ac5d7d16f7bea");
        let token = bytes("fed74b3ef24820f440601eff5bfb42bef4d615c4948cec8aca3cb15bd23f1013");
        let identifier =
            Identifier { payment_hash: hash.clone().try_into().unwrap(), token: token.clone().try_into().unwrap() };
        let encoded = identifier.to_bytes();
        assert_eq!(encoded.to_vec(), [vec![0, 0], hash, token].concat());
        assert_eq!(Identifier::from_bytes(&encoded), Some(identifier));
        let mut newer = encoded;
        newer[1] = 1;
        for wrong in [&encoded[..65], &[&encoded[..], &[0]].concat(), &newer, &[]] {
            assert_eq!(Identifier::from_bytes(wrong), None);
        }
    }
}
