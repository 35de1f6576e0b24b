//! What is asked of a bitcoind beside what ldk-node asks: whether it knows a transaction.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ldk_node::bitcoin::Txid;
use lightning_block_sync::http::{HttpEndpoint, JsonResponse};
use lightning_block_sync::rpc::{RpcClient, RpcError};
use serde_json::{Value, json};

use super::chain_source::BitcoindAuth;
use super::error::WalletError;

/// Time for an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// bitcoind's code for what it does not know.
const UNKNOWN: i64 = -5;

/// A bitcoind's JSON-RPC.
pub(super) struct Bitcoind<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) auth: &'a BitcoindAuth,
}

impl Bitcoind<'_> {
    /// Whether a transaction waits there for a block.
    ///
    /// # Errors
    /// When there is no answer, or none that makes sense.
    pub(super) async fn is_waiting(&self, txid: &Txid) -> Result<bool, WalletError> {
        match self.call("getmempoolentry", &[json!(txid.to_string())]).await {
            Ok(()) => Ok(true),
            Err(error) if code(&error) == Some(UNKNOWN) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn call(&self, method: &str, params: &[Value]) -> std::io::Result<()> {
        let (user, password) = self.auth.credentials().map_err(std::io::Error::other)?;
        let endpoint = HttpEndpoint::for_host(self.host.to_owned()).with_port(self.port);
        let client = RpcClient::new(&STANDARD.encode(format!("{user}:{password}")), endpoint);
        let answer = tokio::time::timeout(ANSWER, client.call_method::<Answered>(method, params)).await;
        answer.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?.map(drop)
    }
}

/// An answer, whatever it says.
struct Answered;

impl TryFrom<JsonResponse> for Answered {
    type Error = std::io::Error;

    fn try_from(_: JsonResponse) -> std::io::Result<Self> {
        Ok(Self)
    }
}

fn code(error: &std::io::Error) -> Option<i64> {
    error.get_ref().and_then(|inner| inner.downcast_ref::<RpcError>()).map(|error| error.code)
}
