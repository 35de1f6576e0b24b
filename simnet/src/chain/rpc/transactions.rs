//! Calls about transactions, those in blocks and those that wait.

use bitcoin::consensus::encode::{deserialize_hex, serialize_hex};
use std::collections::BTreeSet;

use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, Txid};
use serde_json::{Map, Value, json};

use super::error::{DESERIALIZATION, INVALID_PARAMETER, NOT_FOUND, RpcError, VERIFY};
use super::params::{self, Params};
use super::{blocks, json};
use crate::chain::params::{MAX_MEMPOOL_VSIZE, RELAY_FEE_PER_KVB, fee_at};
use crate::chain::{Chain, Entry, MempoolError, Regtest, Unspent};

/// Most that a transaction may pay unless the call says otherwise: satoshis a thousand virtual bytes.
const MAX_FEE_RATE: Amount = Amount::from_sat(10_000_000);

/// Most transactions of one `testmempoolaccept`.
const MAX_TESTED: usize = 25;

/// Most scripts of one `scantxoutset`.
const MAX_SCANNED: usize = 10_000;

pub(super) fn raw(regtest: &mut Regtest, params: &Params, _: u64) -> Result<Value, RpcError> {
    let chain = &regtest.chain;
    let txid: Txid = params.hash(0)?;
    let not_found = || {
        RpcError::new(
            NOT_FOUND,
            "No such mempool or blockchain transaction. Use gettransaction for wallet transactions.",
        )
    };
    let (transaction, block) = match params.get(2) {
        Some(_) => {
            let info = blocks::find(chain, params.hash(2)?)?;
            let found = info.block.txdata.iter().find(|transaction| transaction.compute_txid() == txid);
            (found.cloned().ok_or_else(not_found)?, Some(info))
        }
        None => {
            let (transaction, hash) = chain.transaction(&txid).ok_or_else(not_found)?;
            (transaction, hash.and_then(|hash| chain.block(&hash)))
        }
    };
    if params.verbosity(1, 0)? == 0 {
        return Ok(json!(serialize_hex(&transaction)));
    }
    let mut told = json::transaction(&transaction);
    if let (Some(fields), Some(info)) = (told.as_object_mut(), block) {
        json::confirmation(chain, fields, &info);
    }
    Ok(told)
}

pub(super) fn decode(_: &mut Regtest, params: &Params, _: u64) -> Result<Value, RpcError> {
    Ok(json::transaction(&deserialize_hex(params.text(0)?)?))
}

pub(super) fn output(regtest: &mut Regtest, params: &Params, _: u64) -> Result<Value, RpcError> {
    let chain = &regtest.chain;
    let outpoint = OutPoint::new(params.hash(0)?, params.number(1)?);
    let Some(unspent) = chain.unspent(&outpoint, params.flag(2, true)?) else { return Ok(Value::Null) };
    Ok(json!({
        "bestblock": chain.tip().to_string(),
        "confirmations": unspent.height.map_or(0, |height| chain.height() - height + 1),
        "value": json::btc(unspent.output.value),
        "scriptPubKey": json::script(&unspent.output.script_pubkey),
        "coinbase": unspent.coinbase,
    }))
}

/// Looks for unspent outputs of scripts, each given as `raw(HEX)` or `{"desc": "raw(HEX)"}`.
pub(super) fn scan(regtest: &mut Regtest, params: &Params, _: u64) -> Result<Value, RpcError> {
    if params.text(0)? != "start" {
        return Err(RpcError::new(INVALID_PARAMETER, "Invalid action: only \"start\" is known here"));
    }
    let wanted = params.get(1).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if wanted.is_empty() || wanted.len() > MAX_SCANNED {
        return Err(RpcError::new(INVALID_PARAMETER, "scanobjects argument is required for the start action"));
    }
    let script = |wanted: &Value| {
        let text = wanted.as_str().or_else(|| wanted["desc"].as_str())?;
        ScriptBuf::from_hex(text.strip_prefix("raw(")?.strip_suffix(')')?).ok()
    };
    let scripts: Option<BTreeSet<ScriptBuf>> = wanted.iter().map(script).collect();
    let scripts = scripts.ok_or_else(|| RpcError::new(NOT_FOUND, "Only raw(HEX) descriptors are known here"))?;
    let chain = &regtest.chain;
    let found = chain.confirmed_of(&scripts);
    let total = found.iter().map(|unspent| unspent.output.value).sum::<Amount>();
    let shown = |unspent: &Unspent| {
        json!({
            "txid": unspent.outpoint.txid.to_string(),
            "vout": unspent.outpoint.vout,
            "scriptPubKey": unspent.output.script_pubkey.to_hex_string(),
            "amount": json::btc(unspent.output.value),
            "coinbase": unspent.coinbase,
            "height": unspent.height,
        })
    };
    Ok(json!({
        "success": true,
        "height": chain.height(),
        "bestblock": chain.tip().to_string(),
        "unspents": found.iter().map(shown).collect::<Vec<_>>(),
        "total_amount": json::btc(total),
    }))
}

pub(super) fn send(regtest: &mut Regtest, params: &Params, now: u64) -> Result<Value, RpcError> {
    let transaction: Transaction = deserialize_hex(params.text(0)?)?;
    let txid = transaction.compute_txid();
    if regtest.chain.mempool().contains_key(&txid) {
        return Ok(json!(txid.to_string()));
    }
    check_max_fee(&regtest.chain, &transaction, params)?;
    Ok(json!(regtest.chain.submit_transaction(transaction, now)?.to_string()))
}

/// Refuses what pays so much that it must be a mistake. What it spends and cannot be found is told later.
fn check_max_fee(chain: &Chain, transaction: &Transaction, params: &Params) -> Result<(), RpcError> {
    let most = params.get(1).map(params::amount).transpose()?.unwrap_or(MAX_FEE_RATE);
    let spent = transaction.input.iter().map(|input| chain.unspent(&input.previous_output, true));
    let paid_in =
        spent.map(|unspent| Some(unspent?.output.value)).try_fold(Amount::ZERO, |sum, value| sum.checked_add(value?));
    let paid_out = transaction.output.iter().try_fold(Amount::ZERO, |sum, output| sum.checked_add(output.value));
    let fee = paid_in.zip(paid_out).and_then(|(paid_in, paid_out)| paid_in.checked_sub(paid_out));
    let limit = fee_at(most.to_sat(), transaction.vsize() as u64);
    if most > Amount::ZERO && fee.is_some_and(|fee| fee > limit) {
        let message = "Fee exceeds maximum configured by user (e.g. -maxtxfee, maxfeerate)";
        return Err(RpcError::new(VERIFY, message));
    }
    Ok(())
}

pub(super) fn test(regtest: &mut Regtest, params: &Params, now: u64) -> Result<Value, RpcError> {
    let texts = params.texts(0)?;
    if texts.is_empty() || texts.len() > MAX_TESTED {
        return Err(RpcError::new(INVALID_PARAMETER, "Array must contain between 1 and 25 transactions."));
    }
    let verdict = |text: &&str| {
        let transaction: Transaction =
            deserialize_hex(text).map_err(|_| RpcError::new(DESERIALIZATION, "TX decode failed"))?;
        let (txid, wtxid) = (transaction.compute_txid(), transaction.compute_wtxid());
        let mut fields = Map::new();
        fields.insert("txid".to_owned(), json!(txid.to_string()));
        fields.insert("wtxid".to_owned(), json!(wtxid.to_string()));
        match regtest.chain.test_transaction(transaction, now) {
            Ok(_) => fields.insert("allowed".to_owned(), json!(true)),
            Err(error) => {
                fields.insert("allowed".to_owned(), json!(false));
                fields.insert("reject-reason".to_owned(), json!(reason(&error)))
            }
        };
        Ok(Value::Object(fields))
    };
    texts.iter().map(verdict).collect()
}

fn reason(error: &MempoolError) -> String {
    match error {
        MempoolError::Confirmed => "txn-already-known".to_owned(),
        MempoolError::Invalid(crate::chain::TransactionError::MissingInputs) => "missing-inputs".to_owned(),
        other => other.to_string(),
    }
}

pub(super) fn raw_mempool(regtest: &mut Regtest, params: &Params, _: u64) -> Result<Value, RpcError> {
    let chain = &regtest.chain;
    if !params.flag(0, false)? {
        return Ok(chain.mempool().keys().map(|txid| json!(txid.to_string())).collect());
    }
    let entries = chain.mempool().iter().map(|(txid, entry)| (txid.to_string(), told(chain, txid, entry)));
    Ok(Value::Object(entries.collect()))
}

pub(super) fn mempool_entry(regtest: &mut Regtest, params: &Params, _: u64) -> Result<Value, RpcError> {
    let txid: Txid = params.hash(0)?;
    let entry = regtest.chain.mempool().get(&txid);
    let entry = entry.ok_or_else(|| RpcError::new(NOT_FOUND, "Transaction not in mempool"))?;
    Ok(told(&regtest.chain, &txid, entry))
}

fn told(chain: &Chain, txid: &Txid, entry: &Entry) -> Value {
    let (mut ancestors, descendants) = chain.mempool_family(txid).unwrap_or_default();
    ancestors.push(entry);
    let (parents, children) = chain.mempool_neighbours(txid).unwrap_or_default();
    let vsize = |family: &[&Entry]| family.iter().map(|member| member.vsize).sum::<u64>();
    let fees = |family: &[&Entry]| json::btc(family.iter().map(|member| member.fee).sum());
    let ids = |txids: Vec<Txid>| txids.iter().map(|txid| json!(txid.to_string())).collect::<Value>();
    json!({
        "vsize": entry.vsize,
        "weight": entry.transaction.weight().to_wu(),
        "time": entry.time,
        "height": entry.height,
        "descendantcount": descendants.len(),
        "descendantsize": vsize(&descendants),
        "ancestorcount": ancestors.len(),
        "ancestorsize": vsize(&ancestors),
        "wtxid": entry.transaction.compute_wtxid().to_string(),
        "fees": {
            "base": json::btc(entry.fee),
            "modified": json::btc(entry.fee),
            "ancestor": fees(&ancestors),
            "descendant": fees(&descendants),
        },
        "depends": ids(parents),
        "spentby": ids(children),
        "bip125-replaceable": true,
        "unbroadcast": false,
    })
}

pub(super) fn mempool_info(regtest: &mut Regtest, _: &Params, _: u64) -> Result<Value, RpcError> {
    let chain = &regtest.chain;
    let fees: Amount = chain.mempool().values().map(|entry| entry.fee).sum();
    Ok(json!({
        "loaded": true,
        "size": chain.mempool().len(),
        "bytes": chain.mempool_vsize(),
        "usage": chain.mempool_vsize(),
        "total_fee": json::btc(fees),
        "maxmempool": MAX_MEMPOOL_VSIZE,
        "mempoolminfee": json::rate(RELAY_FEE_PER_KVB),
        "minrelaytxfee": json::rate(RELAY_FEE_PER_KVB),
        "incrementalrelayfee": json::rate(RELAY_FEE_PER_KVB),
        "unbroadcastcount": 0,
        "fullrbf": true,
    }))
}

pub(super) fn estimate_fee(regtest: &mut Regtest, params: &Params, _: u64) -> Result<Value, RpcError> {
    let target = params.number(0)?;
    if !(1..=1008).contains(&target) {
        return Err(RpcError::new(INVALID_PARAMETER, "Invalid conf_target, must be between 1 and 1008"));
    }
    Ok(json!({"feerate": json::rate(regtest.chain.next_block_fee_rate()), "blocks": target}))
}
