//! What peers paid out when they closed channels that this wallet has lost.
//!
//! A peer that meets a node which does not know their channel closes it with its newest state. This side's part, less
//! payments on their way, goes to a key that Lightning made for the channel. The lost state knew which; but there are a
//! thousand such keys, all derived from the seed (LDK's `STATIC_PAYMENT_KEY_COUNT`), so they are all looked for, and what
//! is found is sent to an address of the on-chain wallet. That needs a bitcoind, which can look through all unspent
//! outputs.

use std::collections::BTreeMap;

use ldk_node::bitcoin::absolute::LockTime;
use ldk_node::bitcoin::bip32::{ChildNumber, Xpriv};
use ldk_node::bitcoin::ecdsa::Signature;
use ldk_node::bitcoin::key::CompressedPublicKey;
use ldk_node::bitcoin::opcodes::all::{OP_CHECKSIGVERIFY, OP_CSV};
use ldk_node::bitcoin::script::Builder;
use ldk_node::bitcoin::secp256k1::{All, Message, PublicKey, Secp256k1, SecretKey};
use ldk_node::bitcoin::sighash::{EcdsaSighashType, SighashCache};
use ldk_node::bitcoin::transaction::Version;
use ldk_node::bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness};
use ldk_node::lightning::sign::STATIC_PAYMENT_KEY_COUNT;
use serde::{Deserialize, Serialize};

use super::balance;
use super::bitcoind::Bitcoind;
use super::error::{self, WalletError};
use super::onchain::SMALLEST_SAT;
use super::wallet::{LOCAL, Wallet};

/// Outputs that are swept at once; the rest the next time.
const AT_ONCE: usize = 500;

/// What was found and is on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovered {
    /// The transaction that brings it.
    pub txid: String,
    /// What arrives, in sat.
    pub sat: u64,
    /// What the transaction costs, in sat.
    pub fee_sat: u64,
    /// How many payouts were found.
    pub payouts: usize,
}

/// The key of a script to which peers pay out.
struct Key {
    secret: SecretKey,
    public: PublicKey,
    /// That of a channel with anchors; it can be spent after one confirmation. None for a plain key.
    witness_script: Option<ScriptBuf>,
}

type Keys = BTreeMap<ScriptBuf, Key>;

impl Wallet {
    /// Looks for what peers paid out when they closed channels that this wallet does not know, and sends it to the
    /// on-chain wallet; none if nothing is found.
    ///
    /// # Errors
    /// Without a bitcoind; while channels that the wallet does know are being closed, because their payouts look the same
    /// and come by themselves; when what is found is not worth its fee, or the transaction is refused.
    pub async fn recover(&self) -> Result<Option<Recovered>, WalletError> {
        let bad = |why: &str| WalletError::Invalid(why.to_owned());
        let bitcoind = Bitcoind::of(&self.inner.settings.chain);
        let needs = "only a bitcoind can look through all outputs: start the node with --bitcoind for it";
        let bitcoind = bitcoind.ok_or_else(|| bad(needs))?;
        let keys = self.ask("deriving keys", LOCAL, |inner| {
            if balance::of(inner)?.closing_sat > 0 {
                let why = "channels that this wallet knows are being closed; try again when they are (`wallet status`)";
                return Err(WalletError::Invalid(why.to_owned()));
            }
            keys(&inner.payouts)
                .ok_or_else(|| WalletError::Invalid("this identity makes no keys of payouts".to_owned()))
        });
        let keys = keys.await?;
        let scripts: Vec<ScriptBuf> = keys.keys().cloned().collect();
        let mut found = bitcoind.unspent(&scripts).await?;
        found.truncate(AT_ONCE);
        if found.is_empty() {
            return Ok(None);
        }
        let rate = bitcoind.fee_rate().await?;
        let address = inner_address(self).await?;
        let transaction =
            sweep(&found, &keys, &address, rate).ok_or_else(|| bad("what is found is not worth its fee"))?;
        bitcoind.send(&transaction).await?;
        let sum = |outputs: &mut dyn Iterator<Item = &TxOut>| outputs.map(|output| output.value.to_sat()).sum::<u64>();
        let (sat, all) = (sum(&mut transaction.output.iter()), sum(&mut found.iter().map(|(_, output)| output)));
        let txid = transaction.compute_txid().to_string();
        Ok(Some(Recovered { txid, sat, fee_sat: all.saturating_sub(sat), payouts: found.len() }))
    }
}

async fn inner_address(wallet: &Wallet) -> Result<ScriptBuf, WalletError> {
    let making = wallet.ask("making an address", LOCAL, |inner| {
        let address = inner.node.onchain_payment().new_address();
        Ok(address.map_err(error::of("making an address"))?.script_pubkey())
    });
    making.await
}

/// All keys to which peers may pay out, below the key that LDK keeps for them; none if one of them is no key, which
/// has a chance of 2^-117.
fn keys(payouts: &Xpriv) -> Option<Keys> {
    let secp = Secp256k1::new();
    let mut keys = Keys::new();
    for index in 0..STATIC_PAYMENT_KEY_COUNT {
        let child = ChildNumber::from_hardened_idx(index.into()).ok()?;
        let secret = payouts.derive_priv(&secp, &child).ok()?.private_key;
        let public = PublicKey::from_secret_key(&secp, &secret);
        let anchored = Builder::new().push_slice(public.serialize()).push_opcode(OP_CHECKSIGVERIFY).push_int(1);
        let anchored = anchored.push_opcode(OP_CSV).into_script();
        let plain = ScriptBuf::new_p2wpkh(&CompressedPublicKey(public).wpubkey_hash());
        keys.insert(anchored.to_p2wsh(), Key { secret, public, witness_script: Some(anchored) });
        keys.insert(plain, Key { secret, public, witness_script: None });
    }
    Some(keys)
}

/// The transaction that sends all these outputs to `to` at so many sat for a virtual byte; none if nothing would arrive.
fn sweep(found: &[(OutPoint, TxOut)], keys: &Keys, to: &ScriptBuf, rate: u64) -> Option<Transaction> {
    let secp = Secp256k1::new();
    let all = found.iter().try_fold(Amount::ZERO, |sum, (_, output)| sum.checked_add(output.value))?;
    let draft = signed(&secp, found, keys, to, all)?;
    // Signatures differ by a byte or two in length.
    let size = u64::try_from(draft.vsize() + found.len()).ok()?;
    let rest = all.checked_sub(Amount::from_sat(size.checked_mul(rate)?))?;
    if rest < Amount::from_sat(SMALLEST_SAT) {
        return None;
    }
    signed(&secp, found, keys, to, rest)
}

fn signed(
    secp: &Secp256k1<All>,
    found: &[(OutPoint, TxOut)],
    keys: &Keys,
    to: &ScriptBuf,
    value: Amount,
) -> Option<Transaction> {
    let input = |(outpoint, _): &(OutPoint, TxOut)| TxIn {
        previous_output: *outpoint,
        script_sig: ScriptBuf::new(),
        // One confirmation, which channels with anchors ask for.
        sequence: Sequence::from_height(1),
        witness: Witness::new(),
    };
    let mut transaction = Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: found.iter().map(input).collect(),
        output: vec![TxOut { value, script_pubkey: to.clone() }],
    };
    let mut witnesses = Vec::with_capacity(found.len());
    let mut cache = SighashCache::new(&transaction);
    for (index, (_, output)) in found.iter().enumerate() {
        let key = keys.get(&output.script_pubkey)?;
        let all = EcdsaSighashType::All;
        let (hash, last) = match &key.witness_script {
            Some(script) => {
                let hash = cache.p2wsh_signature_hash(index, script, output.value, all).ok()?;
                (Message::from(hash), script.to_bytes())
            }
            None => {
                let hash = cache.p2wpkh_signature_hash(index, &output.script_pubkey, output.value, all).ok()?;
                (Message::from(hash), key.public.serialize().to_vec())
            }
        };
        let signature = Signature { signature: secp.sign_ecdsa(&hash, &key.secret), sighash_type: all };
        witnesses.push(Witness::from_slice(&[signature.to_vec(), last]));
    }
    for (input, witness) in transaction.input.iter_mut().zip(witnesses) {
        input.witness = witness;
    }
    Some(transaction)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lightning::seed;
    use consortium_protocol::identity::RootKey;
    use ldk_node::bitcoin::Network;
    use ldk_node::lightning::sign::KeysManager;

    #[test]
    fn the_keys_are_those_of_lightning() {
        let seed = seed::of(&RootKey::from_seed([7; 32]));
        let ours = keys(&seed::payouts(&seed, Network::Regtest).unwrap()).unwrap();
        let master = Xpriv::new_master(Network::Regtest, &*seed).unwrap();
        let theirs = KeysManager::new(&master.private_key.secret_bytes(), 1, 2, true);
        let mut theirs = theirs.possible_v2_counterparty_closed_balance_spks(&Secp256k1::new());
        theirs.sort_unstable();
        assert_eq!(ours.into_keys().collect::<Vec<_>>(), theirs);
    }

    #[test]
    fn a_sweep_pays_its_fee_or_is_not_made() {
        let seed = seed::of(&RootKey::from_seed([7; 32]));
        let keys = keys(&seed::payouts(&seed, Network::Regtest).unwrap()).unwrap();
        let output = |script: &ScriptBuf, sat| TxOut { value: Amount::from_sat(sat), script_pubkey: script.clone() };
        let (mut anchored, mut plain) = (None, None);
        for (script, key) in &keys {
            *if key.witness_script.is_some() { &mut anchored } else { &mut plain } = Some(output(script, 40_000));
        }
        let found = [(OutPoint::null(), anchored.unwrap()), (OutPoint { vout: 1, ..OutPoint::null() }, plain.unwrap())];
        let to = keys.keys().next().unwrap();
        let transaction = sweep(&found, &keys, to, 10).unwrap();
        let fee = 80_000 - transaction.output[0].value.to_sat();
        let size = transaction.vsize() as u64;
        assert!(fee >= size * 10 && fee <= (size + 6) * 10, "{fee} for {size}");
        assert!(transaction.input.iter().all(|input| input.witness.len() == 2 && input.sequence.0 == 1));
        assert!(sweep(&found, &keys, to, 500).is_none());
        assert!(sweep(&[(OutPoint::null(), output(&ScriptBuf::new(), 9_999))], &keys, to, 1).is_none(), "another's");
    }
}
