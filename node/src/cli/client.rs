//! The running node, as the other commands reach it: its HTTP API, found through the data directory.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::Args;
#[cfg(feature = "lightning")]
use consortium_ledger::l402::Challenge;
use reqwest::header::AUTHORIZATION;
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

#[cfg(feature = "lightning")]
use super::pay::PaymentRequired;
use super::terminal::printable;
use crate::data_dir::ApiFile;
use crate::operator::{self, OperatorToken};
use crate::status::NodeStatus;

/// Time to reach the node.
const CONNECT: Duration = Duration::from_secs(5);
/// Time for a document.
const DOCUMENT: Duration = Duration::from_secs(15);
/// Largest document read.
const MAX_DOCUMENT: usize = 8 * 1024 * 1024;
/// Longest silence of an answer in progress: comments come every ten seconds, but the beginning may have to wait for
/// a long prompt.
const SILENCE: Duration = Duration::from_secs(630);
/// Longest line of an answer.
const MAX_LINE: usize = 1024 * 1024;
/// What to do when there is no node.
const HOW_TO_START: &str = "start one with `consortium-node start`";

/// Which node to talk to, and with which key.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct ClientArgs {
    /// Base URL of the API, or the URL of its RPC [default: those of the node running on the data directory].
    #[arg(long, visible_aliases = ["rpc", "url"], env = "CONSORTIUM_API_BASE", value_name = "URL")]
    api_base: Option<String>,
    /// API key, where the node asks for one; made with `consortium-node key create`.
    #[arg(long, env = "CONSORTIUM_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,
}

#[cfg(all(test, feature = "lightning"))]
impl Refused {
    pub(super) fn new(code: i32) -> Self {
        Self { code: Some(code.into()), message: "no".to_owned() }
    }
}

#[cfg(all(test, feature = "lightning"))]
impl ClientArgs {
    pub(super) fn naming(api_base: &str) -> Self {
        Self { api_base: Some(api_base.to_owned()), api_key: None }
    }
}

/// How to ask a node, and how to show the answer.
#[derive(Args, Debug)]
pub(super) struct Asking {
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

/// A node's API.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    api_base: String,
    api_key: Option<String>,
    /// What was bought: the value of an `Authorization` header.
    credential: Option<String>,
    /// The token of the operator, where this is one.
    operator: Option<String>,
    /// The process that wrote down where the API is; none where the caller said it.
    pid: Option<u32>,
}

/// An answer in progress, read as server-sent events.
#[derive(Debug)]
pub(super) struct Events {
    response: Response,
    unread: Vec<u8>,
}

#[derive(Deserialize)]
struct Failure {
    error: FailureBody,
}

#[derive(Deserialize)]
struct FailureBody {
    message: String,
    /// A number in answers of JSON-RPC.
    #[serde(default)]
    code: Value,
}

/// What a method of the RPC answered in place of a result.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Refused {
    /// JSON-RPC's code.
    #[cfg_attr(not(feature = "lightning"), expect(dead_code, reason = "only payments make a difference by it"))]
    pub(super) code: Option<i64>,
    message: String,
}

/// A credential that was bought does not work any more.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct CredentialRefused(String);

/// An answer of JSON-RPC.
#[derive(Deserialize)]
struct RpcAnswer {
    #[serde(default)]
    result: Option<Value>,
    #[serde(default)]
    error: Option<FailureBody>,
}

impl Client {
    /// Finds the node; says how to start one if none was started.
    ///
    /// # Errors
    /// When there is none, or the address given makes no sense.
    pub(super) fn find(args: ClientArgs, data_dir: &Path) -> Result<Self> {
        let (api_base, pid, operator) = match args.api_base {
            // The token is for the node of the data directory alone, and not for whoever is named.
            Some(url) => (url, None, None),
            None => {
                let file = ApiFile::read(data_dir).map_err(|error| no_api_file(&error, data_dir))?;
                (file.api_base, Some(file.pid), OperatorToken::read(data_dir).ok())
            }
        };
        ensure!(
            api_base.starts_with("http://"),
            "the API's base URL must begin with http://, as in http://127.0.0.1:8080/v1; it is '{}'",
            printable(&api_base)
        );
        let http = reqwest::Client::builder()
            // The node is on this machine or was named: no proxy has a part in it.
            .no_proxy()
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .build()
            .context("cannot set up an HTTP client")?;
        let api_base = api_base.trim_end_matches('/');
        let api_base = api_base.strip_suffix("/rpc").map_or_else(|| api_base.to_owned(), |root| format!("{root}/v1"));
        Ok(Self { http, api_base, api_key: args.api_key, credential: None, operator, pid })
    }

    /// The base URL of its API.
    #[cfg(feature = "lightning")]
    pub(super) fn base(&self) -> &str {
        &self.api_base
    }

    /// Uses a credential that was bought from now on, or none.
    #[cfg(feature = "lightning")]
    pub(super) fn use_credential(&mut self, credential: Option<String>) {
        self.credential = credential;
    }

    /// Posts to a path of the API, such as `/quote`.
    ///
    /// # Errors
    /// As [`Client::document`].
    #[cfg(feature = "lightning")]
    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T> {
        let url = format!("{}{path}", self.api_base);
        let mut response = self.send(self.http.post(&url).timeout(DOCUMENT).json(body)).await?;
        let bytes = read_bounded(&mut response).await?;
        serde_json::from_slice(&bytes).with_context(|| format!("the answer from {url} makes no sense"))
    }

    /// What the paths of documents begin with.
    fn root(&self) -> &str {
        self.api_base.strip_suffix("/v1").unwrap_or(&self.api_base)
    }

    /// How the node is: its `/status.json`.
    ///
    /// # Errors
    /// As [`Client::document`].
    pub(super) async fn status(&self) -> Result<NodeStatus> {
        let url = format!("{}/status.json", self.root());
        self.fetch(&url, self.as_operator(self.http.get(&url).timeout(DOCUMENT))).await
    }

    /// Fetches a document at a path of the node, such as `/v1/models`.
    ///
    /// # Errors
    /// When there is no answer, or not the one expected.
    pub(super) async fn document<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let url = format!("{}{path}", self.root());
        self.fetch(&url, self.http.get(&url).timeout(DOCUMENT)).await
    }

    async fn fetch<T: DeserializeOwned>(&self, url: &str, call: reqwest::RequestBuilder) -> Result<T> {
        let mut response = self.send(call).await?;
        let bytes = read_bounded(&mut response).await?;
        serde_json::from_slice(&bytes).with_context(|| format!("the answer from {url} makes no sense"))
    }

    /// Calls a method of the node's RPC.
    ///
    /// # Errors
    /// When there is no answer, a refusal, or an answer of another shape.
    pub(super) async fn rpc<T: DeserializeOwned>(&self, method: &str, params: Value) -> Result<T> {
        self.rpc_within(method, params, DOCUMENT).await
    }

    /// As [`Client::rpc`], for what takes longer.
    ///
    /// # Errors
    /// As [`Client::rpc`].
    pub(super) async fn rpc_within<T: DeserializeOwned>(
        &self,
        method: &str,
        params: Value,
        patience: Duration,
    ) -> Result<T> {
        let call = self.http.post(format!("{}/rpc", self.root())).timeout(patience);
        self.answer(self.as_operator(call), method, params).await
    }

    /// As [`Client::rpc_within`], for what takes the operator of the node.
    ///
    /// # Errors
    /// As [`Client::rpc`].
    pub(super) async fn order<T: DeserializeOwned>(&self, method: &str, params: Value, within: Duration) -> Result<T> {
        let call = self.http.post(format!("{}/rpc", self.root())).timeout(within);
        self.answer(self.as_operator(call), method, params).await
    }

    /// With the operator's token, where this is one: the operator of a node that sells is not asked to pay.
    fn as_operator(&self, call: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.operator {
            Some(token) => call.header(operator::HEADER, token),
            None => call,
        }
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        call: reqwest::RequestBuilder,
        method: &str,
        params: Value,
    ) -> Result<T> {
        let root = self.root();
        let body = serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let call = call.json(&body);
        let mut response = self.send(call).await?;
        let bytes = read_bounded(&mut response).await?;
        let nonsense = || format!("the answer from {root}/rpc makes no sense");
        let answer: RpcAnswer = serde_json::from_slice(&bytes).with_context(nonsense)?;
        match answer {
            RpcAnswer { error: Some(error), .. } => {
                Err(Refused { code: error.code.as_i64(), message: printable(&error.message) }.into())
            }
            RpcAnswer { result, .. } => serde_json::from_value(result.unwrap_or_default()).with_context(nonsense),
        }
    }

    /// What is in `field` of the pages of a method, up to `most`.
    ///
    /// # Errors
    /// As [`Client::rpc`].
    pub(super) async fn pages<T: DeserializeOwned>(
        &self,
        method: &str,
        mut params: Value,
        field: &str,
        most: usize,
    ) -> Result<Vec<T>> {
        let mut all = Vec::new();
        loop {
            let mut page: Value = self.rpc(method, params.clone()).await?;
            let items: Vec<T> = serde_json::from_value(page[field].take())
                .with_context(|| format!("the answer of {method} makes no sense"))?;
            all.extend(items);
            if page["next"].is_null() || all.len() >= most {
                all.truncate(most);
                return Ok(all);
            }
            params["after"] = page["next"].take();
        }
    }

    /// Asks for a completion of a chat, as a stream.
    ///
    /// # Errors
    /// When there is no answer, or a refusal.
    pub(super) async fn chat(&self, body: &Value) -> Result<Events> {
        let call = self.http.post(format!("{}/chat/completions", self.api_base)).json(body);
        // Who brings a key or a credential pays with it.
        let call = match (&self.credential, &self.api_key) {
            (None, None) => self.as_operator(call),
            _ => call,
        };
        let response = self.send(call).await?;
        Ok(Events { response, unread: Vec::new() })
    }

    async fn send(&self, call: reqwest::RequestBuilder) -> Result<Response> {
        let call = match (&self.credential, &self.api_key) {
            (Some(credential), _) => call.header(AUTHORIZATION, credential),
            (None, Some(key)) => call.bearer_auth(key),
            (None, None) => call,
        };
        let mut response = call.send().await.map_err(|error| self.no_answer(error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        if status == StatusCode::UNAUTHORIZED && self.credential.is_none() {
            let trouble = if self.api_key.is_some() { "does not accept this API key" } else { "asks for an API key" };
            bail!(
                "the node at {} {trouble}; make one on its machine with `consortium-node key create` and pass it with \
                 --api-key or CONSORTIUM_API_KEY",
                self.api_base
            );
        }
        #[cfg(feature = "lightning")]
        let challenge = response.headers().get(reqwest::header::WWW_AUTHENTICATE).cloned();
        let bytes = read_bounded(&mut response).await?;
        let message = match serde_json::from_slice::<Failure>(&bytes) {
            Ok(failure) => printable(&failure.error.message),
            Err(_) => format!("the node at {} answered {status}", self.api_base),
        };
        if status == StatusCode::UNAUTHORIZED {
            return Err(CredentialRefused(message).into());
        }
        #[cfg(feature = "lightning")]
        if status == StatusCode::PAYMENT_REQUIRED
            && let Some(challenge) = challenge.and_then(|text| Challenge::parse(text.to_str().ok()?).ok())
        {
            return Err(PaymentRequired { message, challenge }.into());
        }
        Err(anyhow!(message))
    }

    fn no_answer(&self, error: reqwest::Error) -> anyhow::Error {
        if !error.is_connect() {
            return anyhow::Error::new(error.without_url())
                .context(format!("the node at {} did not answer", self.api_base));
        }
        match self.pid {
            Some(pid) => anyhow!(
                "no node answers at {} (process {pid} served there, and seems to have ended); {HOW_TO_START}",
                self.api_base
            ),
            None => anyhow!("no node answers at {}; {HOW_TO_START}, or correct the base URL", self.api_base),
        }
    }
}

impl Events {
    /// The payload of the next event; none at the end of the stream.
    ///
    /// # Errors
    /// When the connection breaks, or a line is too long or no text.
    pub(super) async fn next(&mut self) -> Result<Option<String>> {
        loop {
            while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                let line = std::str::from_utf8(&line).context("the answer is not UTF-8")?;
                // Events of this API are a single line each; comments and blank lines are passed over.
                if let Some(payload) = line.trim_end().strip_prefix("data:") {
                    return Ok(Some(payload.trim_start().to_owned()));
                }
            }
            ensure!(self.unread.len() <= MAX_LINE, "the answer has a line that is too long");
            let chunk = self.response.chunk().await.map_err(reqwest::Error::without_url);
            match chunk.context("the connection to the node broke")? {
                Some(chunk) => self.unread.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }
}

fn no_api_file(error: &std::io::Error, data_dir: &Path) -> anyhow::Error {
    let data_dir = data_dir.display();
    match error.kind() {
        ErrorKind::NotFound => {
            anyhow!("no node runs on {data_dir}; {HOW_TO_START}, or name another with --data-dir or --api-base")
        }
        _ => anyhow!("cannot read where the node of {data_dir} serves its API: {error}"),
    }
}

async fn read_bounded(response: &mut Response) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(reqwest::Error::without_url)? {
        ensure!(bytes.len() + chunk.len() <= MAX_DOCUMENT, "the node's answer is too long");
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}
