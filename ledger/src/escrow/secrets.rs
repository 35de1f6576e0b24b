//! Preimages: made from the root key, never stored in clear.
//!
//! The validator's are `blake3::derive_key(context, root secret || escrow || tranche)` and need no storing. Those that a
//! payee is given are stored sealed until they are used: each with a pad of its own, derived in the same way, that no two
//! of them share. Whether a sealed one is what it should be is told by the hash it must open.

use consortium_protocol::RootKey;
use consortium_protocol::wire::escrow::{EscrowId, EscrowTerms, HashLock, LockSecret};
use zeroize::Zeroizing;

const ROOT: &str = "consortium 2026-11 escrow secrets";
const PREIMAGE: &str = "consortium 2026-11 escrow preimage";
const PAD: &str = "consortium 2026-11 escrow pad of a received preimage";

/// What derives a node's preimages and pads. Wiped from memory when dropped, never shown.
#[derive(Clone)]
pub struct Secrets(Zeroizing<[u8; 32]>);

impl Secrets {
    /// Those of a root key.
    #[must_use]
    pub fn of(key: &RootKey) -> Self {
        Self(key.derive(ROOT))
    }

    /// The preimage of a tranche of an escrow that this node judges.
    #[must_use]
    pub fn preimage(&self, escrow: EscrowId, tranche: u8) -> LockSecret {
        LockSecret::from_bytes(*self.derive(PREIMAGE, escrow, tranche))
    }

    /// The hashes of an escrow that this node judges.
    #[must_use]
    pub fn locks(&self, escrow: EscrowId, tranches: u8) -> Vec<HashLock> {
        (0..tranches).map(|tranche| self.preimage(escrow, tranche).lock()).collect()
    }

    /// A preimage that was received, as it may be stored.
    #[must_use]
    pub fn seal(&self, escrow: EscrowId, tranche: u8, secret: &LockSecret) -> [u8; 32] {
        let mut sealed = *secret.reveal();
        let pad = self.derive(PAD, escrow, tranche);
        sealed.iter_mut().zip(pad.iter()).for_each(|(byte, pad)| *byte ^= pad);
        sealed
    }

    /// What was sealed, if it opens the tranche.
    #[must_use]
    pub fn unseal(&self, terms: &EscrowTerms, tranche: u8, sealed: &[u8; 32]) -> Option<LockSecret> {
        let mut bytes = Zeroizing::new(*sealed);
        let pad = self.derive(PAD, terms.id, tranche);
        bytes.iter_mut().zip(pad.iter()).for_each(|(byte, pad)| *byte ^= pad);
        let secret = LockSecret::from_bytes(*bytes);
        (terms.locks.get(usize::from(tranche)) == Some(&secret.lock())).then_some(secret)
    }

    fn derive(&self, context: &str, escrow: EscrowId, tranche: u8) -> Zeroizing<[u8; 32]> {
        let mut material = Zeroizing::new([0; 49]);
        material[..32].copy_from_slice(&*self.0);
        material[32..48].copy_from_slice(&escrow.0);
        material[48] = tranche;
        Zeroizing::new(blake3::derive_key(context, &*material))
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::escrow::samples;

    #[test]
    fn preimages_differ_in_all_that_names_them_and_do_not_show() {
        let secrets = Secrets::of(&RootKey::from_seed([1; 32]));
        let (here, there) = (EscrowId([1; 16]), EscrowId([2; 16]));
        let all = [
            secrets.preimage(here, 0),
            secrets.preimage(here, 1),
            secrets.preimage(there, 0),
            Secrets::of(&RootKey::from_seed([2; 32])).preimage(here, 0),
        ];
        for (n, secret) in all.iter().enumerate() {
            assert!(all[..n].iter().all(|other| other != secret));
        }
        assert_eq!(secrets.locks(here, 2), [all[0].lock(), all[1].lock()]);
        assert_eq!(format!("{secrets:?}{:?}", all[0]), "Secrets(..)LockSecret(..)");
    }

    #[test]
    fn what_is_sealed_is_not_the_preimage_and_opens_with_the_same_key_alone() {
        let terms = samples::tranches(2);
        let secret = samples::secrets().preimage(terms.payload().id, 1);
        let (own, other) = (Secrets::of(&samples::key(7)), Secrets::of(&samples::key(8)));
        let sealed = own.seal(terms.payload().id, 1, &secret);
        assert_ne!(&sealed, secret.reveal());
        assert_eq!(own.unseal(terms.payload(), 1, &sealed), Some(secret));
        assert_eq!(own.unseal(terms.payload(), 0, &sealed), None);
        assert_eq!(other.unseal(terms.payload(), 1, &sealed), None);
    }
}
