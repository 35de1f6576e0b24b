//! A client of this chain, or of a bitcoind.

use std::time::Duration;

use serde_json::{Value, json};
use thiserror::Error;

use super::credentials::Credentials;
use super::error::RpcError;

/// How long a call may take: ten thousand blocks may be mined in one.
const DEADLINE: Duration = Duration::from_secs(60);

/// Longest answer, in bytes: a block of the greatest weight, told in JSON.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Why a call failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error("{url} does not answer: {error}")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        error: reqwest::Error,
    },
    /// The credentials are wrong.
    #[error("{0} refuses the user or the password")]
    Unauthorized(String),
    /// What came is no answer of a bitcoind.
    #[error("{0} does not answer as a bitcoind does")]
    Malformed(String),
    /// The call was refused.
    #[error(transparent)]
    Rpc(#[from] RpcError),
}

/// A client with its credentials.
#[derive(Clone, Debug)]
pub struct RpcClient {
    http: reqwest::Client,
    url: String,
    credentials: Credentials,
}

impl RpcClient {
    /// A client of what answers at `url`, in which there are no credentials.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new(url: &str, credentials: Credentials) -> Result<Self, ClientError> {
        let http = reqwest::Client::builder().timeout(DEADLINE).no_proxy().build();
        let http = http.map_err(|error| ClientError::Unreachable { url: url.to_owned(), error })?;
        Ok(Self { http, url: url.to_owned(), credentials })
    }

    /// Calls a method with parameters by position.
    ///
    /// # Errors
    /// Says why there is no result.
    pub async fn call(&self, method: &str, params: Value) -> Result<Value, ClientError> {
        let unreachable = |error: reqwest::Error| ClientError::Unreachable { url: self.url.clone(), error };
        let malformed = || ClientError::Malformed(self.url.clone());
        let request = json!({"jsonrpc": "1.0", "id": "simnet", "method": method, "params": params});
        let sent = self.http.post(&self.url).basic_auth(&self.credentials.user, Some(&self.credentials.password));
        let mut response = sent.json(&request).send().await.map_err(unreachable)?;
        if response.status() == reqwest::StatusCode::UNAUTHORIZED {
            return Err(ClientError::Unauthorized(self.url.clone()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(malformed());
            }
            body.extend_from_slice(&chunk);
        }
        let mut answer: Value = serde_json::from_slice(&body).map_err(|_| malformed())?;
        let error = answer["error"].take();
        if let (Some(code), Some(message)) = (error["code"].as_i64(), error["message"].as_str()) {
            return Err(RpcError { code, message: message.to_owned() }.into());
        }
        answer.get_mut("result").map(Value::take).ok_or_else(malformed)
    }
}
