//! `POST /v1/chat/completions`.

use axum::extract::{Request, State};
use axum::response::Response;
use consortium_protocol::wire::job::{ChatMessage, JobRequest, Prompt};
use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, Harmless, wrong_type};
use super::params::{self, Delivery, is_empty, is_false, never};
use super::response::Kind;
use super::{AppState, body, guard, job};

/// Fields of the request that pass only while they ask for nothing this API does not do anyway.
const HARMLESS: &[Harmless] = &[
    Harmless { name: "tools", passes: is_empty, allowed: "empty" },
    Harmless { name: "tool_choice", passes: no_tool, allowed: "\"none\" or \"auto\"" },
    Harmless { name: "parallel_tool_calls", passes: Value::is_boolean, allowed: "a boolean" },
    Harmless { name: "functions", passes: is_empty, allowed: "empty" },
    Harmless { name: "function_call", passes: no_tool, allowed: "\"none\" or \"auto\"" },
    Harmless { name: "response_format", passes: is_text_format, allowed: "{\"type\": \"text\"}" },
    Harmless { name: "modalities", passes: is_text_only, allowed: "[\"text\"]" },
    Harmless { name: "audio", passes: never, allowed: "" },
    Harmless { name: "prediction", passes: never, allowed: "" },
    Harmless { name: "web_search_options", passes: never, allowed: "" },
    Harmless { name: "logprobs", passes: is_false, allowed: "false" },
    Harmless { name: "top_logprobs", passes: is_zero, allowed: "0" },
    Harmless { name: "reasoning_effort", passes: is_none, allowed: "\"none\"" },
    Harmless { name: "verbosity", passes: is_medium, allowed: "\"medium\"" },
    Harmless { name: "service_tier", passes: is_usual_tier, allowed: "\"auto\" or \"default\"" },
    Harmless { name: "store", passes: is_false, allowed: "false" },
    Harmless { name: "metadata", passes: Value::is_object, allowed: "an object" },
    Harmless { name: "prompt_cache_key", passes: Value::is_string, allowed: "a string" },
    Harmless { name: "prompt_cache_retention", passes: is_in_memory, allowed: "\"in_memory\"" },
    Harmless { name: "safety_identifier", passes: Value::is_string, allowed: "a string" },
];

/// The same for one message: what clients send back of an answer they got.
const MESSAGE_HARMLESS: &[Harmless] = &[
    Harmless { name: "name", passes: never, allowed: "" },
    Harmless { name: "tool_calls", passes: is_empty, allowed: "empty" },
    Harmless { name: "tool_call_id", passes: never, allowed: "" },
    Harmless { name: "function_call", passes: never, allowed: "" },
    Harmless { name: "refusal", passes: is_empty, allowed: "empty" },
    Harmless { name: "annotations", passes: is_empty, allowed: "empty" },
    Harmless { name: "audio", passes: never, allowed: "" },
];

/// Handles the call.
pub(super) async fn create(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let asking = guard::asking(&request);
    let (request, delivery) = parse(body::read(request).await?)?;
    job::answer(&state, Kind::Chat, &asking, request, delivery).await
}

/// Reads the fields of a request.
///
/// # Errors
/// 400 naming the field.
pub(super) fn parse(mut fields: Fields) -> Result<(JobRequest, Delivery), ApiError> {
    fields.harmless(HARMLESS)?;
    let messages = fields.list("messages")?.ok_or_else(|| ApiError::missing("messages"))?;
    if messages.is_empty() {
        return Err(ApiError::field("messages", "empty_array", "'messages' must hold at least one message."));
    }
    let messages: Vec<_> =
        messages.into_iter().enumerate().map(|(index, value)| message(index, value)).collect::<Result<_, _>>()?;
    params::read(fields, Prompt::Chat(messages), None)
}

fn message(index: usize, value: Value) -> Result<ChatMessage, ApiError> {
    let mut fields = Fields::nested(value, &format!("messages[{index}]"))?;
    let role_path = fields.path("role");
    let role = fields.string("role")?.ok_or_else(|| ApiError::missing(&role_path))?;
    let role = match role.as_str() {
        // The name OpenAI gives to system messages by now; the templates of open models know the old one.
        "developer" => "system".to_owned(),
        "system" | "user" | "assistant" => role,
        "tool" | "function" => {
            let message = format!("'{role_path}' is '{role}', and tools are not supported by this API.");
            return Err(ApiError::field(&role_path, "unsupported_value", message));
        }
        _ => {
            let message = format!("'{role_path}' must be one of system, developer, user and assistant.");
            return Err(ApiError::field(&role_path, "invalid_value", message));
        }
    };
    let content_path = fields.path("content");
    let content = match fields.take("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => join(parts, &content_path)?,
        Some(other) => {
            return Err(wrong_type(&content_path, "a string or an array of parts", &other));
        }
        None => return Err(ApiError::missing(&content_path)),
    };
    fields.harmless(MESSAGE_HARMLESS)?;
    fields.finish()?;
    Ok(ChatMessage { role, content })
}

/// Text parts become one text, a line break between them (as vLLM and llama.cpp do).
fn join(parts: Vec<Value>, path: &str) -> Result<String, ApiError> {
    let mut texts = Vec::with_capacity(parts.len());
    for (index, part) in parts.into_iter().enumerate() {
        let mut fields = Fields::nested(part, &format!("{path}[{index}]"))?;
        let kind_path = fields.path("type");
        let kind = fields.string("type")?.ok_or_else(|| ApiError::missing(&kind_path))?;
        if kind != "text" {
            let message = format!("'{kind_path}' must be 'text': this API takes no other content.");
            return Err(ApiError::field(&kind_path, "unsupported_value", message));
        }
        let text_path = fields.path("text");
        texts.push(fields.string("text")?.ok_or_else(|| ApiError::missing(&text_path))?);
        fields.finish()?;
    }
    Ok(texts.join("\n"))
}

fn no_tool(value: &Value) -> bool {
    matches!(value.as_str(), Some("none" | "auto"))
}

fn is_text_format(value: &Value) -> bool {
    value.as_object().is_some_and(|format| format.len() == 1 && format.get("type").is_some_and(|kind| kind == "text"))
}

fn is_text_only(value: &Value) -> bool {
    value.as_array().is_some_and(|list| list.iter().all(|kind| kind == "text"))
}

fn is_zero(value: &Value) -> bool {
    value.as_u64() == Some(0)
}

fn is_none(value: &Value) -> bool {
    value == "none"
}

fn is_medium(value: &Value) -> bool {
    value == "medium"
}

fn is_usual_tier(value: &Value) -> bool {
    matches!(value.as_str(), Some("auto" | "default"))
}

fn is_in_memory(value: &Value) -> bool {
    matches!(value.as_str(), Some("in_memory" | "in-memory"))
}
