//! Coins of every kind of script in use, and how each is spent.

use bitcoin::absolute::LockTime;
use bitcoin::hashes::{Hash, hash160, sha256};
use bitcoin::key::{Keypair, Secp256k1, TapTweak};
use bitcoin::opcodes::all::{
    OP_CHECKMULTISIG, OP_CHECKSIG, OP_CLTV, OP_CSV, OP_DROP, OP_ELSE, OP_ENDIF, OP_EQUALVERIFY, OP_IF, OP_PUSHNUM_2,
    OP_SHA256,
};
use bitcoin::script::{Builder, PushBytesBuf};
use bitcoin::secp256k1::{All, Message, SecretKey};
use bitcoin::sighash::{EcdsaSighashType, Prevouts, SighashCache};
use bitcoin::taproot::{LeafVersion, TapLeafHash, TaprootBuilder, TaprootSpendInfo};
use bitcoin::{
    Amount, CompressedPublicKey, OutPoint, PublicKey, ScriptBuf, Sequence, TapSighashType, Transaction, TxIn, TxOut,
    Witness, ecdsa, taproot, transaction,
};

/// What the hash locks of these coins open with.
const SECRET: [u8; 32] = [9; 32];
/// Blocks, and units of 512 seconds, of relative locks.
const DELAY: u16 = 2;

/// How a coin is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Pk,
    Pkh,
    /// Two keys of two, in a script by its hash, as before segregated witness.
    Multisig,
    Wpkh,
    /// The same within a script by its hash.
    NestedWpkh,
    /// Two keys of two with a witness: a channel's funding.
    WitnessMultisig,
    /// With the secret at once, as an HTLC.
    HashLock,
    /// Not before this height (BIP65).
    FromHeight(u32),
    /// Not before this time, in Unix seconds (BIP65).
    FromTime(u32),
    /// Some blocks after it was made (BIP112): what a channel's closing delays.
    AfterBlocks,
    /// Some time after it was made (BIP112).
    AfterTime,
    TaprootKey,
    TaprootScript,
    /// Anybody's: what pays for another's fee (BIP433).
    Anchor,
}

/// A coin that can be spent here.
#[derive(Clone, Debug)]
pub(crate) struct Coin {
    pub(crate) outpoint: OutPoint,
    pub(crate) output: TxOut,
    pub(crate) kind: Kind,
}

/// Two keys, and all that is locked to them.
pub(crate) struct Purse {
    secp: Secp256k1<All>,
    keys: [Keypair; 2],
}

impl Purse {
    pub(crate) fn new(seed: u8) -> Self {
        let secp = Secp256k1::new();
        let key = |byte| Keypair::from_secret_key(&secp, &SecretKey::from_slice(&[byte; 32]).unwrap());
        let keys = [key(seed + 1), key(seed + 2)];
        Self { secp, keys }
    }

    fn public(&self, index: usize) -> PublicKey {
        PublicKey::new(self.keys[index].public_key())
    }

    fn compressed(&self) -> CompressedPublicKey {
        CompressedPublicKey(self.keys[0].public_key())
    }

    /// The script that must be satisfied, where the output holds only its hash.
    fn inner(&self, kind: Kind) -> ScriptBuf {
        let key = self.public(0);
        let after = |lock, op| Builder::new().push_int(lock).push_opcode(op).push_opcode(OP_DROP);
        let hash = PushBytesBuf::from(sha256::Hash::hash(&SECRET).to_byte_array());
        match kind {
            Kind::Multisig | Kind::WitnessMultisig => Builder::new()
                .push_opcode(OP_PUSHNUM_2)
                .push_key(&key)
                .push_key(&self.public(1))
                .push_opcode(OP_PUSHNUM_2)
                .push_opcode(OP_CHECKMULTISIG)
                .into_script(),
            Kind::HashLock => Builder::new()
                .push_opcode(OP_IF)
                .push_opcode(OP_SHA256)
                .push_slice(hash)
                .push_opcode(OP_EQUALVERIFY)
                .push_key(&key)
                .push_opcode(OP_ELSE)
                .push_key(&self.public(1))
                .push_opcode(OP_ENDIF)
                .push_opcode(OP_CHECKSIG)
                .into_script(),
            Kind::FromHeight(lock) | Kind::FromTime(lock) => {
                after(i64::from(lock), OP_CLTV).push_key(&key).push_opcode(OP_CHECKSIG).into_script()
            }
            Kind::AfterBlocks | Kind::AfterTime => after(i64::from(sequence(kind).to_consensus_u32()), OP_CSV)
                .push_key(&key)
                .push_opcode(OP_CHECKSIG)
                .into_script(),
            Kind::NestedWpkh => ScriptBuf::new_p2wpkh(&self.compressed().wpubkey_hash()),
            Kind::TaprootScript => Builder::new()
                .push_x_only_key(&self.keys[1].x_only_public_key().0)
                .push_opcode(OP_CHECKSIG)
                .into_script(),
            Kind::Pk | Kind::Pkh | Kind::Wpkh | Kind::TaprootKey | Kind::Anchor => ScriptBuf::new(),
        }
    }

    fn tree(&self) -> TaprootSpendInfo {
        let tree = TaprootBuilder::new().add_leaf(0, self.inner(Kind::TaprootScript)).unwrap();
        tree.finalize(&self.secp, self.keys[0].x_only_public_key().0).unwrap()
    }

    /// The script of an output.
    pub(crate) fn script(&self, kind: Kind) -> ScriptBuf {
        match kind {
            Kind::Pk => ScriptBuf::new_p2pk(&self.public(0)),
            Kind::Pkh => ScriptBuf::new_p2pkh(&self.public(0).pubkey_hash()),
            Kind::Wpkh => ScriptBuf::new_p2wpkh(&self.compressed().wpubkey_hash()),
            Kind::Multisig | Kind::NestedWpkh => self.inner(kind).to_p2sh(),
            Kind::TaprootKey => ScriptBuf::new_p2tr(&self.secp, self.keys[0].x_only_public_key().0, None),
            Kind::TaprootScript => ScriptBuf::new_p2tr_tweaked(self.tree().output_key()),
            Kind::Anchor => ScriptBuf::from_bytes(vec![0x51, 0x02, 0x4e, 0x73]),
            _ => self.inner(kind).to_p2wsh(),
        }
    }

    pub(crate) fn output(&self, kind: Kind, value: Amount) -> TxOut {
        TxOut { value, script_pubkey: self.script(kind) }
    }

    /// Spends coins, without their signatures yet.
    pub(crate) fn unsigned(coins: &[Coin], output: Vec<TxOut>) -> Transaction {
        let lock_time = coins.iter().fold(LockTime::ZERO, |before, coin| match coin.kind {
            Kind::FromHeight(lock) | Kind::FromTime(lock) => LockTime::from_consensus(lock),
            _ => before,
        });
        let input = |coin: &Coin| TxIn {
            previous_output: coin.outpoint,
            script_sig: ScriptBuf::new(),
            sequence: sequence(coin.kind),
            witness: Witness::new(),
        };
        let input = coins.iter().map(input).collect();
        Transaction { version: transaction::Version::TWO, lock_time, input, output }
    }

    /// Signs every input of a transaction that spends `coins`, in their order.
    pub(crate) fn sign(&self, transaction: &mut Transaction, coins: &[Coin]) {
        let unlocked: Vec<(ScriptBuf, Witness)> =
            (0..coins.len()).map(|index| self.unlock(transaction, coins, index)).collect();
        for (input, (script_sig, witness)) in transaction.input.iter_mut().zip(unlocked) {
            (input.script_sig, input.witness) = (script_sig, witness);
        }
    }

    fn unlock(&self, transaction: &Transaction, coins: &[Coin], index: usize) -> (ScriptBuf, Witness) {
        let Coin { output, kind, .. } = &coins[index];
        let legacy = |key: usize, code: &ScriptBuf| {
            let sighash = SighashCache::new(transaction).legacy_signature_hash(index, code, 1).unwrap();
            PushBytesBuf::try_from(self.ecdsa(key, Message::from(sighash))).unwrap()
        };
        let segwit = |key: usize, code: &ScriptBuf| {
            let mut cache = SighashCache::new(transaction);
            let all = EcdsaSighashType::All;
            let sighash = cache.p2wsh_signature_hash(index, code, output.value, all).unwrap();
            self.ecdsa(key, Message::from(sighash))
        };
        let witness = |items: &[&[u8]]| (ScriptBuf::new(), Witness::from_slice(items));
        let key = self.public(0).to_bytes();
        let inner = self.inner(*kind);
        match kind {
            Kind::Pk => (Builder::new().push_slice(legacy(0, &output.script_pubkey)).into_script(), Witness::new()),
            Kind::Pkh => {
                let signed = Builder::new().push_slice(legacy(0, &output.script_pubkey));
                (signed.push_key(&self.public(0)).into_script(), Witness::new())
            }
            Kind::Multisig => {
                let signed = Builder::new().push_int(0).push_slice(legacy(0, &inner)).push_slice(legacy(1, &inner));
                (signed.push_slice(PushBytesBuf::try_from(inner.to_bytes()).unwrap()).into_script(), Witness::new())
            }
            Kind::Wpkh | Kind::NestedWpkh => {
                let code = ScriptBuf::new_p2pkh(&bitcoin::PubkeyHash::from(hash160::Hash::hash(&key)));
                let script_sig = match kind {
                    Kind::Wpkh => ScriptBuf::new(),
                    _ => Builder::new().push_slice(PushBytesBuf::try_from(inner.to_bytes()).unwrap()).into_script(),
                };
                (script_sig, Witness::from_slice(&[segwit(0, &code), key]))
            }
            Kind::WitnessMultisig => witness(&[&[], &segwit(0, &inner), &segwit(1, &inner), inner.as_bytes()]),
            Kind::HashLock => witness(&[&segwit(0, &inner), &SECRET, &[1], inner.as_bytes()]),
            Kind::FromHeight(_) | Kind::FromTime(_) | Kind::AfterBlocks | Kind::AfterTime => {
                witness(&[&segwit(0, &inner), inner.as_bytes()])
            }
            Kind::TaprootKey => {
                let tweaked = self.keys[0].tap_tweak(&self.secp, None).to_keypair();
                witness(&[&self.schnorr(transaction, coins, index, &tweaked, None)])
            }
            Kind::TaprootScript => {
                let leaf = TapLeafHash::from_script(&inner, LeafVersion::TapScript);
                let signature = self.schnorr(transaction, coins, index, &self.keys[1], Some(leaf));
                let control = self.tree().control_block(&(inner.clone(), LeafVersion::TapScript)).unwrap();
                witness(&[&signature, inner.as_bytes(), &control.serialize()])
            }
            Kind::Anchor => (ScriptBuf::new(), Witness::new()),
        }
    }

    fn ecdsa(&self, key: usize, message: Message) -> Vec<u8> {
        let signature = self.secp.sign_ecdsa(&message, &self.keys[key].secret_key());
        ecdsa::Signature::sighash_all(signature).to_vec()
    }

    fn schnorr(
        &self,
        transaction: &Transaction,
        coins: &[Coin],
        index: usize,
        key: &Keypair,
        leaf: Option<TapLeafHash>,
    ) -> Vec<u8> {
        let spent: Vec<&TxOut> = coins.iter().map(|coin| &coin.output).collect();
        let mut cache = SighashCache::new(transaction);
        let (prevouts, sighash_type) = (Prevouts::All(&spent), TapSighashType::Default);
        let leaf = leaf.map(|leaf| (leaf, u32::MAX));
        let sighash = cache.taproot_signature_hash(index, &prevouts, None, leaf, sighash_type).unwrap();
        let signature = self.secp.sign_schnorr_no_aux_rand(&Message::from(sighash), key);
        taproot::Signature { signature, sighash_type }.to_vec()
    }
}

/// The sequence of an input that spends such a coin.
fn sequence(kind: Kind) -> Sequence {
    match kind {
        Kind::AfterBlocks => Sequence::from_height(DELAY),
        Kind::AfterTime => Sequence::from_512_second_intervals(DELAY),
        _ => Sequence::ENABLE_RBF_NO_LOCKTIME,
    }
}
