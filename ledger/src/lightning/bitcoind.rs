//! What is asked of a bitcoind beside what ldk-node asks: whether it knows a transaction, and what is paid to scripts.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ldk_node::bitcoin::consensus::encode::serialize_hex;
use ldk_node::bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxOut, Txid};
use lightning_block_sync::http::{HttpEndpoint, JsonResponse};
use lightning_block_sync::rpc::{RpcClient, RpcError};
use serde::Deserialize;
use serde_json::{Value, json};

use super::chain_source::{BitcoindAuth, ChainSource};
use super::error::WalletError;

/// Time for an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Time to look through all unspent outputs.
const SCAN: Duration = Duration::from_secs(300);
/// bitcoind's code for what it does not know.
const UNKNOWN: i64 = -5;
/// Blocks within which a sweep should be confirmed.
const BLOCKS: u32 = 6;
/// The fee rates that are paid, in sat for a virtual byte.
const RATES: (u64, u64) = (1, 500);
/// Satoshis for a thousand virtual bytes, of a satoshi for one.
const KILO: u64 = 1000;

/// A bitcoind's JSON-RPC.
pub(super) struct Bitcoind<'a> {
    host: &'a str,
    port: u16,
    auth: &'a BitcoindAuth,
}

/// What `scantxoutset` finds.
#[derive(Deserialize)]
struct Scanned {
    unspents: Vec<Unspent>,
}

/// An unspent output, in bitcoind's words.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Unspent {
    txid: Txid,
    vout: u32,
    script_pub_key: ScriptBuf,
    #[serde(with = "ldk_node::bitcoin::amount::serde::as_btc")]
    amount: Amount,
}

impl<'a> Bitcoind<'a> {
    /// That of the settings, if it is one.
    pub(super) const fn of(chain: &'a ChainSource) -> Option<Self> {
        match chain {
            ChainSource::Bitcoind { host, port, auth, .. } => Some(Self { host: host.as_str(), port: *port, auth }),
            _ => None,
        }
    }

    /// Whether a transaction waits there for a block.
    ///
    /// # Errors
    /// When there is no answer, or none that makes sense.
    pub(super) async fn is_waiting(&self, txid: &Txid) -> Result<bool, WalletError> {
        match self.call("getmempoolentry", &[json!(txid)], ANSWER).await {
            Ok(_) => Ok(true),
            Err(error) if code(&error) == Some(UNKNOWN) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The confirmed outputs for these scripts that nobody spends, nor is about to.
    ///
    /// # Errors
    /// As [`Self::is_waiting`].
    pub(super) async fn unspent(&self, scripts: &[ScriptBuf]) -> Result<Vec<(OutPoint, TxOut)>, WalletError> {
        let wanted: Vec<Value> = scripts.iter().map(|script| json!({"desc": format!("raw({script:x})")})).collect();
        let answer = self.call("scantxoutset", &[json!("start"), json!(wanted)], SCAN).await?;
        let scanned: Scanned = serde_json::from_value(answer).map_err(std::io::Error::other)?;
        let mut found = Vec::new();
        for Unspent { txid, vout, script_pub_key, amount } in scanned.unspents {
            let asked = [json!(txid), json!(vout), json!(true)];
            if !self.call("gettxout", &asked, ANSWER).await?.is_null() {
                found.push((OutPoint { txid, vout }, TxOut { value: amount, script_pubkey: script_pub_key }));
            }
        }
        Ok(found)
    }

    /// What to pay for a virtual byte, in sat.
    ///
    /// # Errors
    /// As [`Self::is_waiting`].
    pub(super) async fn fee_rate(&self) -> Result<u64, WalletError> {
        let estimated = self.call("estimatesmartfee", &[json!(BLOCKS)], ANSWER).await?["feerate"].as_f64();
        let least = self.call("getmempoolinfo", &[], ANSWER).await?["mempoolminfee"].as_f64();
        let rate = [estimated, least].into_iter().flatten().filter_map(|btc| Amount::from_btc(btc).ok()).max();
        Ok(rate.map_or(0, |rate| rate.to_sat().div_ceil(KILO)).clamp(RATES.0, RATES.1))
    }

    /// Broadcasts a transaction.
    ///
    /// # Errors
    /// When it is refused, in bitcoind's words, or there is no answer.
    pub(super) async fn send(&self, transaction: &Transaction) -> Result<(), WalletError> {
        self.call("sendrawtransaction", &[json!(serialize_hex(transaction))], ANSWER).await?;
        Ok(())
    }

    async fn call(&self, method: &str, params: &[Value], within: Duration) -> std::io::Result<Value> {
        let (user, password) = self.auth.credentials().map_err(std::io::Error::other)?;
        let endpoint = HttpEndpoint::for_host(self.host.to_owned()).with_port(self.port);
        let client = RpcClient::new(&STANDARD.encode(format!("{user}:{password}")), endpoint);
        let answer = tokio::time::timeout(within, client.call_method::<Answered>(method, params)).await;
        Ok(answer.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??.0)
    }
}

/// The result of a call.
struct Answered(Value);

impl TryFrom<JsonResponse> for Answered {
    type Error = std::io::Error;

    fn try_from(answer: JsonResponse) -> std::io::Result<Self> {
        Ok(Self(answer.0))
    }
}

fn code(error: &std::io::Error) -> Option<i64> {
    error.get_ref().and_then(|inner| inner.downcast_ref::<RpcError>()).map(|error| error.code)
}
