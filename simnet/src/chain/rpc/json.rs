//! Blocks and transactions as Bitcoin Core tells them in JSON.

use bitcoin::consensus::encode::serialize_hex;
use bitcoin::hex::DisplayHex;
use bitcoin::{Address, Amount, Network, Script, Transaction};
use serde_json::{Map, Value, json};

use crate::chain::{BlockInfo, Chain};

/// An amount in BTC.
pub(super) fn btc(amount: Amount) -> Value {
    json!(amount.to_btc())
}

/// A fee rate in BTC a thousand virtual bytes, from satoshis.
pub(super) fn rate(per_kvb: u64) -> Value {
    btc(Amount::from_sat(per_kvb))
}

/// The header of a block, with what the chain knows of it.
pub(super) fn header(info: &BlockInfo) -> Map<String, Value> {
    let header = &info.block.header;
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    set("hash", json!(header.block_hash().to_string()));
    set("confirmations", json!(info.confirmations.map_or(-1, i64::from)));
    set("height", json!(info.height));
    set("version", json!(header.version.to_consensus()));
    set("versionHex", json!(format!("{:08x}", header.version.to_consensus())));
    set("merkleroot", json!(header.merkle_root.to_string()));
    set("time", json!(header.time));
    set("mediantime", json!(info.median_time_past));
    set("nonce", json!(header.nonce));
    set("bits", json!(format!("{:08x}", header.bits.to_consensus())));
    set("target", json!(header.target().to_be_bytes().to_lower_hex_string()));
    set("difficulty", json!(header.difficulty_float()));
    set("chainwork", json!(info.work.to_be_bytes().to_lower_hex_string()));
    set("nTx", json!(info.block.txdata.len()));
    if info.height > 0 {
        set("previousblockhash", json!(header.prev_blockhash.to_string()));
    }
    if let Some(next) = info.next {
        set("nextblockhash", json!(next.to_string()));
    }
    fields
}

/// A block; its transactions in full, or by their ids.
pub(super) fn block(info: &BlockInfo, in_full: bool) -> Value {
    let mut fields = header(info);
    let block = &info.block;
    let size = block.total_size() as u64;
    // The weight counts what is no witness four times, and witnesses once.
    let stripped = block.weight().to_wu().saturating_sub(size) / 3;
    fields.insert("strippedsize".to_owned(), json!(stripped));
    fields.insert("size".to_owned(), json!(size));
    fields.insert("weight".to_owned(), json!(block.weight().to_wu()));
    let transactions = block.txdata.iter().map(|transaction_of_it| {
        if in_full { transaction(transaction_of_it) } else { json!(transaction_of_it.compute_txid().to_string()) }
    });
    fields.insert("tx".to_owned(), transactions.collect());
    Value::Object(fields)
}

/// A transaction by itself.
pub(super) fn transaction(transaction: &Transaction) -> Value {
    let inputs = transaction.input.iter().map(|input| {
        let mut fields = Map::new();
        if input.previous_output.is_null() {
            fields.insert("coinbase".to_owned(), json!(input.script_sig.to_hex_string()));
        } else {
            fields.insert("txid".to_owned(), json!(input.previous_output.txid.to_string()));
            fields.insert("vout".to_owned(), json!(input.previous_output.vout));
            let script = json!({"asm": input.script_sig.to_asm_string(), "hex": input.script_sig.to_hex_string()});
            fields.insert("scriptSig".to_owned(), script);
        }
        if !input.witness.is_empty() {
            let items = input.witness.iter().map(|item| json!(item.to_lower_hex_string()));
            fields.insert("txinwitness".to_owned(), items.collect());
        }
        fields.insert("sequence".to_owned(), json!(input.sequence.to_consensus_u32()));
        Value::Object(fields)
    });
    let outputs = (0..).zip(&transaction.output).map(|(n, output): (u32, _)| {
        json!({"value": btc(output.value), "n": n, "scriptPubKey": script(&output.script_pubkey)})
    });
    json!({
        "txid": transaction.compute_txid().to_string(),
        "hash": transaction.compute_wtxid().to_string(),
        "version": transaction.version.0,
        "size": transaction.total_size(),
        "vsize": transaction.vsize(),
        "weight": transaction.weight().to_wu(),
        "locktime": transaction.lock_time.to_consensus_u32(),
        "vin": inputs.collect::<Vec<_>>(),
        "vout": outputs.collect::<Vec<_>>(),
        "hex": serialize_hex(transaction),
    })
}

/// An output's script, with its address where it has one.
pub(super) fn script(script: &Script) -> Value {
    let mut fields = Map::new();
    fields.insert("asm".to_owned(), json!(script.to_asm_string()));
    fields.insert("hex".to_owned(), json!(script.to_hex_string()));
    if let Ok(address) = Address::from_script(script, Network::Regtest) {
        fields.insert("address".to_owned(), json!(address.to_string()));
    }
    fields.insert("type".to_owned(), json!(script_type(script)));
    Value::Object(fields)
}

fn script_type(script: &Script) -> &'static str {
    match script {
        script if script.is_p2pkh() => "pubkeyhash",
        script if script.is_p2sh() => "scripthash",
        script if script.is_p2wpkh() => "witness_v0_keyhash",
        script if script.is_p2wsh() => "witness_v0_scripthash",
        script if script.is_p2tr() => "witness_v1_taproot",
        script if script.is_witness_program() => "witness_unknown",
        script if script.is_op_return() => "nulldata",
        script if script.is_p2pk() => "pubkey",
        _ => "nonstandard",
    }
}

/// What the chain adds to a transaction that a block holds.
pub(super) fn confirmation(chain: &Chain, fields: &mut Map<String, Value>, info: &BlockInfo) {
    let active = chain.is_active(&info.block.block_hash());
    fields.insert("blockhash".to_owned(), json!(info.block.block_hash().to_string()));
    fields.insert("confirmations".to_owned(), json!(info.confirmations.unwrap_or(0)));
    fields.insert("in_active_chain".to_owned(), json!(active));
    fields.insert("time".to_owned(), json!(info.block.header.time));
    fields.insert("blocktime".to_owned(), json!(info.block.header.time));
}
