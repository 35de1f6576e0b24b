//! Calls about blocks.

use bitcoin::BlockHash;
use bitcoin::consensus::encode::serialize_hex;
use serde_json::{Value, json};

use super::error::{INTERNAL, INVALID_PARAMETER, NOT_FOUND, RpcError};
use super::json;
use super::params::Params;
use crate::chain::{BlockInfo, Chain, Regtest};

pub(super) fn best_hash(regtest: &mut Regtest, _: &Params, _: u64) -> Result<Value, RpcError> {
    Ok(json!(regtest.chain.tip().to_string()))
}

pub(super) fn count(regtest: &mut Regtest, _: &Params, _: u64) -> Result<Value, RpcError> {
    Ok(json!(regtest.chain.height()))
}

pub(super) fn hash(regtest: &mut Regtest, params: &Params, _: u64) -> Result<Value, RpcError> {
    let out_of_range = || RpcError::new(INVALID_PARAMETER, "Block height out of range");
    let height =
        params.number(0).map_err(|error| if error.code == INVALID_PARAMETER { out_of_range() } else { error })?;
    regtest.chain.hash_at(height).map(|hash| json!(hash.to_string())).ok_or_else(out_of_range)
}

pub(super) fn header(regtest: &mut Regtest, params: &Params, _: u64) -> Result<Value, RpcError> {
    let info = find(&regtest.chain, params.hash(0)?)?;
    if params.flag(1, true)? {
        return Ok(Value::Object(json::header(&info)));
    }
    Ok(json!(serialize_hex(&info.block.header)))
}

pub(super) fn block(regtest: &mut Regtest, params: &Params, _: u64) -> Result<Value, RpcError> {
    let info = find(&regtest.chain, params.hash(0)?)?;
    Ok(match params.verbosity(1, 1)? {
        0 => json!(serialize_hex(&*info.block)),
        1 => json::block(&info, false),
        _ => json::block(&info, true),
    })
}

pub(super) fn chain_info(regtest: &mut Regtest, _: &Params, _: u64) -> Result<Value, RpcError> {
    let chain = &regtest.chain;
    let tip = chain.block(&chain.tip()).ok_or_else(|| RpcError::new(INTERNAL, "the tip is not in the tree"))?;
    let mut fields = json::header(&tip);
    let mut take = |name: &str| fields.remove(name).unwrap_or_default();
    Ok(json!({
        "chain": "regtest",
        "blocks": tip.height,
        "headers": tip.height,
        "bestblockhash": take("hash"),
        "bits": take("bits"),
        "target": take("target"),
        "difficulty": take("difficulty"),
        "time": take("time"),
        "mediantime": take("mediantime"),
        "verificationprogress": 1,
        "initialblockdownload": false,
        "chainwork": take("chainwork"),
        "size_on_disk": 0,
        "pruned": false,
        "warnings": [],
    }))
}

pub(super) fn tips(regtest: &mut Regtest, _: &Params, _: u64) -> Result<Value, RpcError> {
    let status = |length: u32, invalid: bool| match (length, invalid) {
        (0, _) => "active",
        (_, true) => "invalid",
        _ => "valid-headers",
    };
    let tips = regtest.chain.tips().into_iter().map(|tip| {
        json!({
            "height": tip.height,
            "hash": tip.hash.to_string(),
            "branchlen": tip.length,
            "status": status(tip.length, tip.invalid),
        })
    });
    Ok(tips.collect())
}

/// A block by its hash.
pub(super) fn find(chain: &Chain, hash: BlockHash) -> Result<BlockInfo, RpcError> {
    chain.block(&hash).ok_or_else(|| RpcError::new(NOT_FOUND, "Block not found"))
}
