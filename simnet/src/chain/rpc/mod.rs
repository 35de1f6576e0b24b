//! bitcoind's JSON-RPC over the chain, and its REST.
//!
//! [`server`] takes connections, [`envelope`] reads and writes JSON-RPC, the table here says which method is which
//! function, and one file holds each family of them: [`blocks`], [`transactions`], [`mining`], [`wallet`], [`network`].
//! [`rest`] answers what may be read without credentials. [`client`] is the other end of JSON-RPC.

mod blocks;
mod client;
mod credentials;
mod envelope;
mod error;
mod json;
mod mining;
mod network;
mod params;
mod rest;
mod server;
mod transactions;
mod wallet;

use serde_json::Value;

use super::Regtest;
use params::Params;

pub use client::{ClientError, RpcClient};
pub use credentials::Credentials;
pub use error::RpcError;
pub use server::RpcServer;

/// A method: its name, its parameters and how many of them must be given, and what it does at a time in Unix seconds.
struct Method {
    name: &'static str,
    params: &'static [&'static str],
    required: usize,
    call: fn(&mut Regtest, &Params, u64) -> Result<Value, RpcError>,
}

const fn method(
    name: &'static str,
    params: &'static [&'static str],
    required: usize,
    call: fn(&mut Regtest, &Params, u64) -> Result<Value, RpcError>,
) -> Method {
    Method { name, params, required, call }
}

/// Everything that can be called.
const METHODS: &[Method] = &[
    method("decoderawtransaction", &["hexstring", "iswitness"], 1, transactions::decode),
    method("estimatesmartfee", &["conf_target", "estimate_mode"], 1, transactions::estimate_fee),
    method("generateblock", &["output", "transactions", "submit"], 2, mining::generate_block),
    method("generatetoaddress", &["nblocks", "address", "maxtries"], 2, mining::generate_to_address),
    method("getaddressinfo", &["address"], 1, wallet::address_info),
    method("getbalance", &["dummy", "minconf", "include_watchonly", "avoid_reuse"], 0, wallet::balance),
    method("getbestblockhash", &[], 0, blocks::best_hash),
    method("getblock", &["blockhash", "verbosity"], 1, blocks::block),
    method("getblockchaininfo", &[], 0, blocks::chain_info),
    method("getblockcount", &[], 0, blocks::count),
    method("getblockhash", &["height"], 1, blocks::hash),
    method("getblockheader", &["blockhash", "verbose"], 1, blocks::header),
    method("getchaintips", &[], 0, blocks::tips),
    method("getconnectioncount", &[], 0, network::connection_count),
    method("getmempoolentry", &["txid"], 1, transactions::mempool_entry),
    method("getmempoolinfo", &[], 0, transactions::mempool_info),
    method("getmininginfo", &[], 0, mining::info),
    method("getnetworkinfo", &[], 0, network::info),
    method("getnewaddress", &["label", "address_type"], 0, wallet::new_address),
    method("getrawmempool", &["verbose", "mempool_sequence"], 0, transactions::raw_mempool),
    method("getrawtransaction", &["txid", "verbosity", "blockhash"], 1, transactions::raw),
    method("gettxout", &["txid", "n", "include_mempool"], 2, transactions::output),
    method("getwalletinfo", &[], 0, wallet::info),
    method("help", &["command"], 0, network::help),
    method("invalidateblock", &["blockhash"], 1, mining::invalidate),
    method("listunspent", &["minconf"], 0, wallet::unspent),
    method("ping", &[], 0, network::ping),
    method("reconsiderblock", &["blockhash"], 1, mining::reconsider),
    method("scantxoutset", &["action", "scanobjects"], 1, transactions::scan),
    method("sendmany", &["dummy", "amounts"], 2, wallet::send_many),
    method("sendrawtransaction", &["hexstring", "maxfeerate", "maxburnamount"], 1, transactions::send),
    method("sendtoaddress", &["address", "amount"], 2, wallet::send),
    method("submitblock", &["hexdata", "dummy"], 1, mining::submit),
    method("testmempoolaccept", &["rawtxs", "maxfeerate"], 1, transactions::test),
    method("validateaddress", &["address"], 1, network::validate_address),
];

/// Does what a call says.
fn call(regtest: &mut Regtest, name: &str, given: Value, now: u64) -> Result<Value, RpcError> {
    let method = METHODS.iter().find(|method| method.name == name);
    let method = method.ok_or_else(|| RpcError::new(error::METHOD_NOT_FOUND, "Method not found"))?;
    let params = Params::read(given, method.name, method.params, method.required)?;
    (method.call)(regtest, &params, now)
}
