//! How simnet talks to its nodes: over their own HTTP API, as anybody would.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use consortium_node::operator::OperatorToken;
use consortium_node::status::NodeStatus;
use serde::Deserialize;
use serde_json::{Value, json};

/// A node on loopback that does not tell its status within this time is not well.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// Cloneable HTTP client for nodes on loopback.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
}

/// A completion, as far as simnet looks at it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Completion {
    /// The text.
    pub(crate) text: String,
    /// Tokens in it.
    pub(crate) tokens: u64,
    /// From the request to the whole answer.
    pub(crate) took: Duration,
}

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) struct Question<'a> {
    pub(crate) model: &'a str,
    pub(crate) prompt: &'a str,
    pub(crate) max_tokens: u32,
    pub(crate) temperature: f32,
    pub(crate) seed: u64,
    /// Go on after the end of the answer until `max_tokens`.
    pub(crate) ignore_eos: bool,
}

#[derive(Deserialize)]
struct Answer {
    choices: Vec<Choice>,
    usage: Usage,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: String,
}

#[derive(Deserialize)]
struct Usage {
    completion_tokens: u64,
}

impl Client {
    /// A client that goes to loopback directly, whatever proxy the environment names.
    ///
    /// # Errors
    /// When the HTTP library cannot be set up.
    pub(crate) fn new() -> Result<Self> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self { http })
    }

    /// The status of the node whose API is at `api_base` (ending in `/v1`), asked as its operator, who can read `data_dir`.
    ///
    /// # Errors
    /// When it does not answer in time, or with something else.
    pub(crate) async fn status(&self, api_base: &str, data_dir: &Path) -> Result<NodeStatus> {
        let root = api_base.strip_suffix("/v1").unwrap_or(api_base);
        let mut request = self.http.get(format!("{root}/status.json")).timeout(STATUS_TIMEOUT);
        if let Ok(token) = OperatorToken::read(data_dir) {
            request = request.header(consortium_node::operator::HEADER, token);
        }
        Ok(request.send().await?.error_for_status()?.json().await?)
    }

    /// Calls a method of a node's RPC, with the operator's token where it needs one.
    ///
    /// # Errors
    /// With what the node said, when it refused.
    pub(crate) async fn rpc(
        &self,
        api_base: &str,
        method: &str,
        params: Value,
        operator: Option<&str>,
        timeout: Duration,
    ) -> Result<Value> {
        let root = api_base.strip_suffix("/v1").unwrap_or(api_base);
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let mut request = self.http.post(format!("{root}/rpc")).timeout(timeout).json(&body);
        if let Some(token) = operator {
            request = request.header(consortium_node::operator::HEADER, token);
        }
        let mut answer: Value = request.send().await?.error_for_status()?.json().await?;
        if let Some(message) = answer["error"]["message"].as_str() {
            bail!("{message}");
        }
        Ok(answer["result"].take())
    }

    /// One completion, not streamed.
    ///
    /// # Errors
    /// With what the node said, when it refused.
    pub(crate) async fn complete(
        &self,
        api_base: &str,
        question: &Question<'_>,
        timeout: Duration,
    ) -> Result<Completion> {
        let started = Instant::now();
        let response = self
            .http
            .post(format!("{api_base}/chat/completions"))
            .timeout(timeout)
            .json(&json!({
                "model": question.model,
                "messages": [{"role": "user", "content": question.prompt}],
                "max_tokens": question.max_tokens,
                "temperature": question.temperature,
                "seed": question.seed,
                "ignore_eos": question.ignore_eos,
            }))
            .send()
            .await
            .with_context(|| format!("{api_base} does not answer"))?;
        let status = response.status();
        let body = response.text().await.context("the answer broke off")?;
        if !status.is_success() {
            bail!("{api_base} answered {status}: {}", body.trim());
        }
        let answer: Answer = serde_json::from_str(&body)
            .with_context(|| format!("{api_base} answered what is no completion: {body}"))?;
        let choice = answer.choices.into_iter().next().context("a completion without a choice")?;
        Ok(Completion { text: choice.message.content, tokens: answer.usage.completion_tokens, took: started.elapsed() })
    }
}
