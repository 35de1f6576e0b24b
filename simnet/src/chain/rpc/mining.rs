//! Calls that make, submit and judge blocks.

use bitcoin::consensus::encode::deserialize_hex;
use bitcoin::{Block, ScriptBuf, Transaction, Txid};
use serde_json::{Value, json};

use super::error::{DESERIALIZATION, INTERNAL, INVALID_PARAMETER, NOT_FOUND, RpcError};
use super::params::{self, Params};
use crate::chain::{Accepted, ChainError, Regtest};

/// Most blocks of one call.
const MAX_BLOCKS: u32 = 10_000;

pub(super) fn generate_to_address(regtest: &mut Regtest, params: &Params, now: u64) -> Result<Value, RpcError> {
    let blocks = params.number(0)?;
    if blocks > MAX_BLOCKS {
        return Err(RpcError::new(INVALID_PARAMETER, format!("at most {MAX_BLOCKS} blocks at once")));
    }
    let payee = params.address(1)?;
    let hashes = (0..blocks).map(|_| Ok(json!(regtest.chain.mine(payee.clone(), now)?.to_string())));
    hashes.collect()
}

pub(super) fn generate_block(regtest: &mut Regtest, params: &Params, now: u64) -> Result<Value, RpcError> {
    let payee: ScriptBuf = params::address(params.text(0)?)?;
    let chosen = params.texts(1)?.into_iter().map(|text| transaction(regtest, text));
    let transactions = chosen.collect::<Result<Vec<Transaction>, RpcError>>()?;
    if !params.flag(2, true)? {
        return Err(RpcError::new(INVALID_PARAMETER, "submit=false is not offered"));
    }
    let hash = regtest.chain.mine_these(payee, transactions, now)?;
    Ok(json!({"hash": hash.to_string()}))
}

/// A transaction that waits, by its id, or any, in hexadecimal.
fn transaction(regtest: &Regtest, text: &str) -> Result<Transaction, RpcError> {
    if let Ok(txid) = text.parse::<Txid>() {
        let entry = regtest.chain.mempool().get(&txid);
        let missing = || RpcError::new(NOT_FOUND, format!("Transaction {txid} not in mempool."));
        return entry.map(|entry| Transaction::clone(&entry.transaction)).ok_or_else(missing);
    }
    let undecodable = |_| RpcError::new(DESERIALIZATION, "Transaction decode failed");
    deserialize_hex(text).map_err(undecodable)
}

pub(super) fn submit(regtest: &mut Regtest, params: &Params, now: u64) -> Result<Value, RpcError> {
    let undecodable = |_| RpcError::new(DESERIALIZATION, "Block decode failed");
    let block: Block = deserialize_hex(params.text(0)?).map_err(undecodable)?;
    match regtest.chain.submit_block(block, now) {
        Ok(Accepted::Connected) => Ok(Value::Null),
        Ok(Accepted::Aside) => Ok(json!("inconclusive")),
        Err(error @ ChainError::Store(_)) => Err(error.into()),
        Err(error) => Ok(json!(error.to_string())),
    }
}

pub(super) fn invalidate(regtest: &mut Regtest, params: &Params, now: u64) -> Result<Value, RpcError> {
    regtest.chain.invalidate(&params.hash(0)?, now)?;
    Ok(Value::Null)
}

pub(super) fn reconsider(regtest: &mut Regtest, params: &Params, now: u64) -> Result<Value, RpcError> {
    regtest.chain.reconsider(&params.hash(0)?, now)?;
    Ok(Value::Null)
}

pub(super) fn info(regtest: &mut Regtest, _: &Params, _: u64) -> Result<Value, RpcError> {
    let header = regtest.chain.tip_header().ok_or_else(|| RpcError::new(INTERNAL, "the tip is not in the tree"))?;
    Ok(json!({
        "blocks": regtest.chain.height(),
        "bits": format!("{:08x}", header.bits.to_consensus()),
        "difficulty": header.difficulty_float(),
        "pooledtx": regtest.chain.mempool().len(),
        "chain": "regtest",
        "warnings": [],
    }))
}
