//! The wallet's seed, derived from the node's root key and never written down.
//!
//! 64 bytes: two halves, each `blake3::derive_key(context, root seed)` with a context of its own. ldk-node makes a BIP32
//! master key of them; the on-chain wallet is BIP84 below it, and Lightning's own keys come from the master's private
//! key. Whoever has `identity.key` therefore has the wallet's on-chain money.

use consortium_protocol::identity::RootKey;
use ldk_node::bitcoin::Network;
use ldk_node::bitcoin::bip32::{ChildNumber, Xpriv};
use ldk_node::bitcoin::secp256k1::{Secp256k1, SecretKey};
use ldk_node::lightning::sign::KeysManager;
use zeroize::Zeroizing;

const FIRST_HALF: &str = "consortium 2026-11 lightning wallet seed, first half";
const SECOND_HALF: &str = "consortium 2026-11 lightning wallet seed, second half";
/// The key of backups.
pub(super) const BACKUP: &str = "consortium 2026-11 lightning wallet backup";

/// Where LDK keeps the keys of payouts: `STATIC_PAYMENT_KEY_INDEX`, which it does not tell.
const PAYOUTS: ChildNumber = ChildNumber::Hardened { index: 8 };

/// The wallet's 64 bytes.
pub(super) fn of(key: &RootKey) -> Zeroizing<[u8; 64]> {
    let mut seed = Zeroizing::new([0; 64]);
    seed[..32].copy_from_slice(&*key.derive(FIRST_HALF));
    seed[32..].copy_from_slice(&*key.derive(SECOND_HALF));
    seed
}

/// The secret key of the Lightning node with this seed, as ldk-node derives it; none if the seed makes no key, which
/// has a chance of 2^-127.
pub(super) fn node_secret(seed: &[u8; 64], network: Network) -> Option<SecretKey> {
    let master = Xpriv::new_master(network, seed).ok()?;
    let lightning = Zeroizing::new(master.private_key.secret_bytes());
    // Time only feeds keys of channels, which are not made here; remote keys are derived as ldk-node has them.
    Some(KeysManager::new(&lightning, 0, 0, true).get_node_secret_key())
}

/// The key below which those are to which peers pay out what this wallet had in channels that they close, as LDK derives
/// it; none if the seed makes no key.
pub(super) fn payouts(seed: &[u8; 64], network: Network) -> Option<Xpriv> {
    let lightning = Zeroizing::new(Xpriv::new_master(network, seed).ok()?.private_key.secret_bytes());
    let master = Xpriv::new_master(network, &*lightning).ok()?;
    master.derive_priv(&Secp256k1::signing_only(), &PAYOUTS).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_is_always_the_same_and_its_halves_differ() {
        let key = RootKey::from_seed([9; 32]);
        let seed = of(&key);
        assert_eq!(*seed, *of(&key));
        assert_ne!(seed[..32], seed[32..]);
        assert_ne!(*seed, *of(&RootKey::from_seed([8; 32])));
        // Whoever changes this loses the money of every wallet there is.
        assert_eq!(hex::encode(&seed[..]), format!("{FIRST}{SECOND}"));
    }

    const FIRST: &str = "78c97a2c39be5d6a0185d34d6f81c58945d55d86cfedd0c08c93263da791ae0d";
    const SECOND: &str = "8474ac26e70ba27777d23907c36b0436743a3b89f2eb09a1c6be8eb61b9d890a";
}
