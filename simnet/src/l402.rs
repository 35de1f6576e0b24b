//! Somebody who buys completions of a node that sells them, with HTTP and nothing else of this project but the header.

use std::time::Duration;

use anyhow::{Context as _, Result};
use consortium_node::ledger::l402::Challenge;
use serde_json::{Value, json};

/// A customer of one gateway.
#[derive(Debug)]
pub struct Customer {
    http: reqwest::Client,
    api_base: String,
    /// The value of the `Authorization` header.
    pub credential: Option<String>,
    /// What is asked, without the model.
    pub question: Value,
}

/// What a gateway answered.
#[derive(Clone, Debug)]
pub struct Answered {
    /// HTTP's status.
    pub status: u16,
    /// The `WWW-Authenticate` header.
    pub header: Option<String>,
    /// The document.
    pub body: Value,
}

impl Answered {
    /// How to pay, where that is asked for.
    #[must_use]
    pub fn challenge(&self) -> Option<Challenge> {
        Challenge::parse(self.header.as_deref()?).ok().filter(|_| self.status == 402)
    }
}

impl Customer {
    /// A new one, of the gateway whose API is at `api_base`, who waits for each answer no longer than `patience`.
    ///
    /// # Errors
    /// When the HTTP library cannot be set up.
    pub fn new(api_base: &str, patience: Duration) -> Result<Self> {
        let http = reqwest::Client::builder().no_proxy().timeout(patience).build()?;
        let question = json!({
            "messages": [{"role": "user", "content": "Tell me a story."}],
            "max_tokens": 8,
            "temperature": 0,
        });
        Ok(Self { http, api_base: api_base.to_owned(), credential: None, question })
    }

    /// Asks for a completion.
    ///
    /// # Errors
    /// When there is no answer, or one that is not JSON.
    pub async fn ask(&self) -> Result<Answered> {
        let models = self.call("GET", "/models", None).await?;
        let mut question = self.question.clone();
        question["model"] = models.body["data"][0]["id"].clone();
        self.call("POST", "/chat/completions", Some(&question)).await
    }

    /// Calls a path of the API.
    ///
    /// # Errors
    /// As [`Customer::ask`].
    pub async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answered> {
        let url = format!("{}{path}", self.api_base);
        let mut call = self.http.request(method.parse()?, &url);
        if let Some(credential) = &self.credential {
            call = call.header("authorization", credential);
        }
        if let Some(body) = body {
            call = call.json(body);
        }
        let response = call.send().await.with_context(|| format!("{url} does not answer"))?;
        let status = response.status().as_u16();
        let header = response.headers().get("www-authenticate").and_then(|value| value.to_str().ok());
        let header = header.map(str::to_owned);
        let body = response.json().await.with_context(|| format!("{url} answered what is no JSON"))?;
        Ok(Answered { status, header, body })
    }
}
