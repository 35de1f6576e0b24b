//! Calls that a bitcoind answers about itself.

use serde_json::{Value, json};

use super::error::{METHOD_NOT_FOUND, RpcError};
use super::json;
use super::params::{self, Params};
use super::{METHODS, Method};
use crate::chain::Regtest;
use crate::chain::params::RELAY_FEE_PER_KVB;

/// The version of Bitcoin Core whose behaviour is followed.
const VERSION: u32 = 290_000;

pub(super) fn info(_: &mut Regtest, _: &Params, _: u64) -> Result<Value, RpcError> {
    Ok(json!({
        "version": VERSION,
        "subversion": concat!("/consortium-simnet:", env!("CARGO_PKG_VERSION"), "/"),
        "protocolversion": 70_016,
        "localservices": "0000000000000000",
        "localservicesnames": [],
        "localrelay": true,
        "timeoffset": 0,
        "networkactive": false,
        "connections": 0,
        "connections_in": 0,
        "connections_out": 0,
        "networks": [],
        "relayfee": json::rate(RELAY_FEE_PER_KVB),
        "incrementalfee": json::rate(RELAY_FEE_PER_KVB),
        "localaddresses": [],
        "warnings": [],
    }))
}

pub(super) fn connection_count(_: &mut Regtest, _: &Params, _: u64) -> Result<Value, RpcError> {
    Ok(json!(0))
}

pub(super) fn ping(_: &mut Regtest, _: &Params, _: u64) -> Result<Value, RpcError> {
    Ok(Value::Null)
}

pub(super) fn validate_address(_: &mut Regtest, params: &Params, _: u64) -> Result<Value, RpcError> {
    let text = params.text(0)?;
    Ok(match params::address(text) {
        Ok(script) => json!({
            "isvalid": true,
            "address": text,
            "scriptPubKey": script.to_hex_string(),
            "isscript": script.is_p2sh() || script.is_p2wsh() || script.is_p2tr(),
            "iswitness": script.is_witness_program(),
        }),
        Err(error) => json!({"isvalid": false, "error_locations": [], "error": error.message}),
    })
}

pub(super) fn help(_: &mut Regtest, params: &Params, _: u64) -> Result<Value, RpcError> {
    let line = |method: &Method| [&[method.name], method.params].concat().join(" ");
    if params.get(0).is_none() {
        return Ok(json!(METHODS.iter().map(line).collect::<Vec<_>>().join("\n")));
    }
    let name = params.text(0)?;
    let found = METHODS.iter().find(|method| method.name == name).map(|method| json!(line(method)));
    found.ok_or_else(|| RpcError::new(METHOD_NOT_FOUND, format!("help: unknown command: {name}")))
}
