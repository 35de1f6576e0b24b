//! Calls on the faucet: the chain's own key, which owns what is mined to it.

use bitcoin::{Amount, ScriptBuf, TxOut};
use serde_json::{Value, json};

use super::error::{INVALID_PARAMETER, RpcError, TYPE};
use super::json;
use super::params::{self, Params};
use crate::chain::Regtest;

/// Most payees of one payment.
const MAX_PAYEES: usize = 1_000;

pub(super) fn balance(regtest: &mut Regtest, _: &Params, _: u64) -> Result<Value, RpcError> {
    Ok(json::btc(regtest.faucet.balance(&regtest.chain).0))
}

pub(super) fn new_address(regtest: &mut Regtest, _: &Params, _: u64) -> Result<Value, RpcError> {
    Ok(json!(regtest.faucet.address().to_string()))
}

pub(super) fn address_info(regtest: &mut Regtest, params: &Params, _: u64) -> Result<Value, RpcError> {
    let script = params.address(0)?;
    Ok(json!({
        "address": params.text(0)?,
        "scriptPubKey": script.to_hex_string(),
        "ismine": script == regtest.faucet.script(),
        "iswatchonly": false,
        "iswitness": script.is_witness_program(),
    }))
}

pub(super) fn info(regtest: &mut Regtest, _: &Params, _: u64) -> Result<Value, RpcError> {
    let (spendable, immature) = regtest.faucet.balance(&regtest.chain);
    Ok(json!({
        "walletname": "faucet",
        "balance": json::btc(spendable),
        "immature_balance": json::btc(immature),
        "private_keys_enabled": true,
    }))
}

pub(super) fn unspent(regtest: &mut Regtest, params: &Params, _: u64) -> Result<Value, RpcError> {
    let least = params.optional_number(0)?.unwrap_or(1);
    let chain = &regtest.chain;
    let coins = chain.unspent_of(&regtest.faucet.script()).into_iter().filter_map(|coin| {
        let confirmations = coin.height.map_or(0, |height| chain.height() - height + 1);
        (confirmations >= least).then(|| {
            json!({
                "txid": coin.outpoint.txid.to_string(),
                "vout": coin.outpoint.vout,
                "address": regtest.faucet.address().to_string(),
                "scriptPubKey": coin.output.script_pubkey.to_hex_string(),
                "amount": json::btc(coin.output.value),
                "confirmations": confirmations,
            })
        })
    });
    Ok(coins.collect())
}

pub(super) fn send(regtest: &mut Regtest, params: &Params, now: u64) -> Result<Value, RpcError> {
    let payee = TxOut { script_pubkey: params.address(0)?, value: params.amount(1)? };
    pay(regtest, vec![payee], now)
}

pub(super) fn send_many(regtest: &mut Regtest, params: &Params, now: u64) -> Result<Value, RpcError> {
    let amounts = params.get(1).and_then(Value::as_object);
    let amounts = amounts.ok_or_else(|| RpcError::new(TYPE, "amounts: JSON value is not of expected type object"))?;
    if amounts.len() > MAX_PAYEES {
        return Err(RpcError::new(INVALID_PARAMETER, format!("at most {MAX_PAYEES} payees at once")));
    }
    let payee = |(address, amount): (&String, &Value)| {
        let script_pubkey: ScriptBuf = params::address(address)?;
        Ok(TxOut { script_pubkey, value: params::amount(amount)? })
    };
    let payees = amounts.iter().map(payee).collect::<Result<Vec<TxOut>, RpcError>>()?;
    pay(regtest, payees, now)
}

fn pay(regtest: &mut Regtest, payees: Vec<TxOut>, now: u64) -> Result<Value, RpcError> {
    if payees.iter().any(|payee| payee.value == Amount::ZERO) {
        return Err(RpcError::new(TYPE, "Invalid amount for send"));
    }
    let transaction = regtest.faucet.pay(&regtest.chain, payees)?;
    Ok(json!(regtest.chain.submit_transaction(transaction, now)?.to_string()))
}
