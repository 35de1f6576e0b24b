//! The documents of an answer, whole and in pieces, as OpenAI's API reference describes them.

use consortium_protocol::msat::Msat;
use consortium_protocol::wire::heartbeat::ModelRef;
use consortium_protocol::wire::job::{FinishReason, JobId, Usage};
use serde_json::{Value, json};

use crate::clock::since_epoch;

/// Which API an answer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Text,
}

/// What all documents of one answer have in common.
#[derive(Debug)]
pub(super) struct Shape {
    kind: Kind,
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
}

impl Shape {
    /// For a job that was accepted for `model`.
    pub(super) fn new(kind: Kind, job: &JobId, model: &ModelRef) -> Self {
        let prefix = match kind {
            Kind::Chat => "chatcmpl",
            Kind::Text => "cmpl",
        };
        Self {
            kind,
            id: format!("{prefix}-{job}"),
            created: since_epoch().as_secs(),
            model: model.name.clone(),
            fingerprint: fingerprint(model),
        }
    }

    /// The whole answer.
    pub(super) fn whole(&self, text: &str, finish: FinishReason, usage: &Usage, cost: Option<Msat>) -> Value {
        let choice = match self.kind {
            Kind::Chat => json!({
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": null},
                "logprobs": null,
                "finish_reason": reason(finish),
            }),
            Kind::Text => text_choice(text, Some(finish)),
        };
        let object = match self.kind {
            Kind::Chat => "chat.completion",
            Kind::Text => "text_completion",
        };
        let mut document = self.document(object, &[choice]);
        document["usage"] = usage_document(usage, cost);
        document
    }

    /// The first piece of a chat, which carries the role; text completions have none.
    pub(super) fn first(&self) -> Option<Value> {
        match self.kind {
            Kind::Chat => Some(self.delta(&json!({"role": "assistant", "content": ""}), None)),
            Kind::Text => None,
        }
    }

    /// A piece of text.
    pub(super) fn piece(&self, text: &str) -> Value {
        match self.kind {
            Kind::Chat => self.delta(&json!({"content": text}), None),
            Kind::Text => self.document("text_completion", &[text_choice(text, None)]),
        }
    }

    /// The piece that says why the answer ends.
    pub(super) fn last(&self, finish: FinishReason) -> Value {
        match self.kind {
            Kind::Chat => self.delta(&json!({}), Some(finish)),
            Kind::Text => self.document("text_completion", &[text_choice("", Some(finish))]),
        }
    }

    /// The piece with the usage and nothing else.
    pub(super) fn usage(&self, usage: &Usage, cost: Option<Msat>) -> Value {
        let object = match self.kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Text => "text_completion",
        };
        let mut document = self.document(object, &[]);
        document["usage"] = usage_document(usage, cost);
        document
    }

    fn delta(&self, delta: &Value, finish: Option<FinishReason>) -> Value {
        let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish.map(reason)});
        self.document("chat.completion.chunk", &[choice])
    }

    fn document(&self, object: &str, choices: &[Value]) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }
}

/// Names what a seed's outcome depends on: the model's bytes and this software.
fn fingerprint(model: &ModelRef) -> String {
    let text = format!("{} {}", model.digest, env!("CARGO_PKG_VERSION"));
    format!("fp_{}", &blake3::hash(text.as_bytes()).to_hex()[..12])
}

fn text_choice(text: &str, finish: Option<FinishReason>) -> Value {
    json!({"text": text, "index": 0, "logprobs": null, "finish_reason": finish.map(reason)})
}

fn reason(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// The use, and as an extra field what it costs at most: the receipts that are charged for come later, and may be for
/// one token less.
fn usage_document(usage: &Usage, cost: Option<Msat>) -> Value {
    let mut document = json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens),
    });
    if let Some(cost) = cost {
        document["cost_msat"] = json!(cost.0);
    }
    document
}
