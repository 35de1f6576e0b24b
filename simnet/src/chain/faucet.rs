//! The owner of what the chain mines: one key, whose coins anybody who may use the RPC can give away.

use bitcoin::absolute::LockTime;
use bitcoin::key::{CompressedPublicKey, Secp256k1};
use bitcoin::secp256k1::{All, Message, SecretKey};
use bitcoin::sighash::{EcdsaSighashType, P2wpkhError, SighashCache};
use bitcoin::{Address, Amount, Network, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness, ecdsa, transaction};
use thiserror::Error;

use super::params::{COINBASE_MATURITY, MAX_STANDARD_WEIGHT, fee_at};
use super::state::Chain;
use super::view::Unspent;

/// What the faucet pays for its transactions: satoshis a thousand virtual bytes.
const FEE_RATE: u64 = 2_000;

/// Bytes of a signature and a key in a witness, at most, with their lengths.
const WITNESS_LENGTH: [usize; 2] = [73, 33];

/// Why the faucet does not pay.
#[derive(Debug, Error)]
pub enum FaucetError {
    /// There is nobody to pay.
    #[error("nobody to pay")]
    NoPayee,
    /// An amount is so small that it could not be spent.
    #[error("the amount is dust")]
    Dust,
    /// It has too little that it may spend now.
    #[error("Insufficient funds")]
    InsufficientFunds,
    /// So many coins or payees would be needed that no node relays the transaction.
    #[error("Transaction too large")]
    TooLarge,
    /// It could not be signed.
    #[error("signing: {0}")]
    Sign(#[from] P2wpkhError),
}

/// A key, its one address, and how its coins are spent.
#[derive(Clone)]
pub struct Faucet {
    secp: Secp256k1<All>,
    key: SecretKey,
    public: CompressedPublicKey,
    address: Address,
}

impl std::fmt::Debug for Faucet {
    /// The address; never the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Faucet").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Faucet {
    /// The faucet that owns what is paid to `key`.
    pub fn new(key: SecretKey) -> Self {
        let secp = Secp256k1::new();
        let public = CompressedPublicKey(key.public_key(&secp));
        let address = Address::p2wpkh(&public, Network::Regtest);
        Self { secp, key, public, address }
    }

    /// Where it is paid.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Its script.
    pub fn script(&self) -> ScriptBuf {
        self.address.script_pubkey()
    }

    /// What it may spend now, and what it may not spend yet because it was mined lately.
    pub fn balance(&self, chain: &Chain) -> (Amount, Amount) {
        let coins = chain.unspent_of(&self.script());
        let sum = |mature| {
            let coins = coins.iter().filter(|coin| is_mature(coin, chain) == mature);
            coins.map(|coin| coin.output.value).sum()
        };
        (sum(true), sum(false))
    }

    /// A signed transaction that pays `payees`, for the mempool of `chain`.
    ///
    /// # Errors
    /// Says why there is none.
    pub fn pay(&self, chain: &Chain, payees: Vec<TxOut>) -> Result<Transaction, FaucetError> {
        if payees.is_empty() {
            return Err(FaucetError::NoPayee);
        }
        if payees.iter().any(|payee| payee.value < payee.script_pubkey.minimal_non_dust()) {
            return Err(FaucetError::Dust);
        }
        let mut coins: Vec<Unspent> = chain.unspent_of(&self.script());
        coins.retain(|coin| is_mature(coin, chain));
        // Coins in blocks first: chains of transactions that wait may not grow long.
        coins.sort_by_key(|coin| (coin.height.is_none(), std::cmp::Reverse(coin.output.value)));
        let (mut transaction, spent) = self.fund(payees, coins)?;
        self.sign(&mut transaction, &spent)?;
        Ok(transaction)
    }

    /// Adds inputs until they cover outputs and fee; what is left over comes back.
    fn fund(&self, payees: Vec<TxOut>, coins: Vec<Unspent>) -> Result<(Transaction, Vec<TxOut>), FaucetError> {
        let total = payees.iter().try_fold(Amount::ZERO, |sum, payee| sum.checked_add(payee.value));
        let total = total.ok_or(FaucetError::InsufficientFunds)?;
        let change = TxOut { value: Amount::ZERO, script_pubkey: self.script() };
        let mut transaction = Transaction {
            version: transaction::Version::TWO,
            lock_time: LockTime::ZERO,
            input: Vec::new(),
            output: payees.into_iter().chain([change]).collect(),
        };
        let mut spent: Vec<TxOut> = Vec::new();
        let mut paid_in = Amount::ZERO;
        for coin in coins {
            transaction.input.push(TxIn {
                previous_output: coin.outpoint,
                script_sig: ScriptBuf::new(),
                sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
                witness: Witness::from_slice(&WITNESS_LENGTH.map(|length| vec![0; length])),
            });
            paid_in += coin.output.value;
            spent.push(coin.output);
            if transaction.weight() > MAX_STANDARD_WEIGHT {
                return Err(FaucetError::TooLarge);
            }
            let needed = total.checked_add(fee_at(FEE_RATE, transaction.vsize() as u64));
            let Some(left) = needed.and_then(|needed| paid_in.checked_sub(needed)) else { continue };
            if left < self.script().minimal_non_dust() {
                transaction.output.pop();
            } else if let Some(change) = transaction.output.last_mut() {
                change.value = left;
            }
            return Ok((transaction, spent));
        }
        Err(FaucetError::InsufficientFunds)
    }

    /// Signs every input; `spent` holds the outputs that they spend, in order.
    pub(super) fn sign(&self, transaction: &mut Transaction, spent: &[TxOut]) -> Result<(), FaucetError> {
        let mut cache = SighashCache::new(transaction);
        for (index, output) in spent.iter().enumerate() {
            let sighash_type = EcdsaSighashType::All;
            let hash = cache.p2wpkh_signature_hash(index, &output.script_pubkey, output.value, sighash_type)?;
            let signature = self.secp.sign_ecdsa(&Message::from(hash), &self.key);
            let signature = ecdsa::Signature { signature, sighash_type };
            if let Some(witness) = cache.witness_mut(index) {
                *witness = Witness::p2wpkh(&signature, &self.public.0);
            }
        }
        Ok(())
    }
}

fn is_mature(coin: &Unspent, chain: &Chain) -> bool {
    !coin.coinbase || coin.height.is_some_and(|height| chain.height() + 1 >= height + COINBASE_MATURITY)
}
