//! What a transaction may not do.

use bitcoin::key::{Keypair, Secp256k1, TapTweak};
use bitcoin::secp256k1::{Message, SecretKey};
use bitcoin::sighash::{Prevouts, SighashCache};
use bitcoin::{Address, Network, TapSighashType, taproot};

use super::*;
use crate::chain::TransactionError;

#[test]
fn a_bad_signature_is_refused() {
    let mut regtest = regtest();
    let mut transaction = spend(&regtest, &coins(&regtest)[..1], FEE, |_| {});
    // What was signed is changed afterwards.
    transaction.output[0].value -= Amount::from_sat(1);
    let error = send(&mut regtest, &transaction).unwrap_err();
    assert_eq!(error, MempoolError::Invalid(TransactionError::Script { input: 0 }));
    transaction.output[0].value += Amount::from_sat(1);
    send(&mut regtest, &transaction).unwrap();
}

#[test]
fn only_its_owner_spends_a_coin() {
    let (mut regtest, other) = (regtest(), regtest());
    let coin = coins(&regtest).swap_remove(0);
    let mut transaction = spend(&regtest, std::slice::from_ref(&coin), FEE, |_| {});
    other.faucet.sign(&mut transaction, &[coin.output]).unwrap();
    let error = send(&mut regtest, &transaction).unwrap_err();
    assert_eq!(error, MempoolError::Invalid(TransactionError::Script { input: 0 }));
}

/// Spends a taproot output by its key, signing over `signed_over` as what is spent.
fn spend_by_key(regtest: &Regtest, keys: &Keypair, outpoint: OutPoint, signed_over: &TxOut) -> Transaction {
    let secp = Secp256k1::new();
    let output = TxOut { value: Amount::from_sat(90_000), script_pubkey: regtest.faucet.script() };
    let mut transaction = Transaction {
        version: transaction::Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn { previous_output: outpoint, sequence: Sequence::MAX, ..TxIn::default() }],
        output: vec![output],
    };
    let spent = [signed_over.clone()];
    let sighash_type = TapSighashType::Default;
    let hash = SighashCache::new(&transaction)
        .taproot_key_spend_signature_hash(0, &Prevouts::All(&spent), sighash_type)
        .unwrap();
    let tweaked = keys.tap_tweak(&secp, None).to_keypair();
    let signature =
        taproot::Signature { signature: secp.sign_schnorr_no_aux_rand(&Message::from(hash), &tweaked), sighash_type };
    transaction.input[0].witness = Witness::p2tr_key_spend(&signature);
    transaction
}

#[test]
fn taproot_signs_what_is_spent() {
    let mut regtest = regtest();
    let secp = Secp256k1::new();
    let keys = Keypair::from_secret_key(&secp, &SecretKey::from_slice(&[7; 32]).unwrap());
    let address = Address::p2tr(&secp, keys.x_only_public_key().0, None, Network::Regtest);
    let coin = TxOut { value: Amount::from_sat(100_000), script_pubkey: address.script_pubkey() };
    let funding = regtest.faucet.pay(&regtest.chain, vec![coin.clone()]).unwrap();
    send(&mut regtest, &funding).unwrap();
    let outpoint = OutPoint::new(funding.compute_txid(), 0);

    let misled = TxOut { value: coin.value + Amount::ONE_SAT, ..coin.clone() };
    let wrong = spend_by_key(&regtest, &keys, outpoint, &misled);
    let error = send(&mut regtest, &wrong).unwrap_err();
    assert_eq!(error, MempoolError::Invalid(TransactionError::Script { input: 0 }));
    let right = spend_by_key(&regtest, &keys, outpoint, &coin);
    send(&mut regtest, &right).unwrap();
    mine(&mut regtest, 1);
    assert!(is_confirmed(&regtest, &right));
}

#[test]
fn a_coin_is_spent_once() {
    let mut regtest = regtest();
    let coin = &coins(&regtest)[..1];
    let first = spend(&regtest, coin, FEE, |_| {});
    let second = spend(&regtest, coin, FEE, |transaction| transaction.output[0].value -= Amount::from_sat(7));
    send(&mut regtest, &first).unwrap();
    assert!(matches!(send(&mut regtest, &second).unwrap_err(), MempoolError::ReplacementFee { .. }));
    assert_eq!(send(&mut regtest, &first).unwrap_err(), MempoolError::Known);
    mine(&mut regtest, 1);
    assert_eq!(send(&mut regtest, &first).unwrap_err(), MempoolError::Confirmed);
    assert_eq!(send(&mut regtest, &second).unwrap_err(), TransactionError::MissingInputs.into());
    let twice = spend(&regtest, &coins(&regtest)[..1], FEE, |transaction| {
        transaction.input.push(transaction.input[0].clone());
    });
    assert_eq!(send(&mut regtest, &twice).unwrap_err(), TransactionError::DuplicateInput.into());
}

#[test]
fn a_coinbase_ripens_for_a_hundred_blocks() {
    let mut regtest = regtest();
    let height = regtest.chain.height();
    let of_height = |wanted: u32| coins(&regtest).into_iter().find(|coin| coin.height == Some(wanted)).unwrap();
    // In the next block, at height + 1, it would be 99 and 100 blocks deep.
    let (green, ripe) = (of_height(height + 1 - 99), of_height(height + 1 - 100));
    let early = spend(&regtest, &[green], FEE, |_| {});
    let error = send(&mut regtest, &early).unwrap_err();
    assert_eq!(error, TransactionError::ImmatureCoinbase { depth: 99 }.into());
    let in_time = spend(&regtest, &[ripe], FEE, |_| {});
    send(&mut regtest, &in_time).unwrap();
    mine(&mut regtest, 1);
    assert!(is_confirmed(&regtest, &in_time));
    send(&mut regtest, &early).unwrap();
}

#[test]
fn money_is_not_made() {
    let mut regtest = regtest();
    let coin = &coins(&regtest)[..1];
    let more = spend(&regtest, coin, Amount::ZERO, |transaction| transaction.output[0].value += Amount::ONE_SAT);
    assert_eq!(send(&mut regtest, &more).unwrap_err(), TransactionError::SpendsMoreThanItHas.into());
    let overflowing = spend(&regtest, coin, FEE, |transaction| {
        let script_pubkey = transaction.output[0].script_pubkey.clone();
        let most = TxOut { value: Amount::from_sat(u64::MAX), script_pubkey };
        transaction.output.extend([most.clone(), most]);
    });
    assert_eq!(send(&mut regtest, &overflowing).unwrap_err(), TransactionError::Amount.into());
    let empty = spend(&regtest, coin, FEE, |transaction| transaction.output.clear());
    assert_eq!(send(&mut regtest, &empty).unwrap_err(), TransactionError::NoOutputs.into());
}
