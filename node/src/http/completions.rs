//! `POST /v1/completions`.

use axum::extract::{Request, State};
use axum::response::Response;
use consortium_protocol::wire::job::{JobRequest, Prompt};
use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, Harmless, wrong_type};
use super::params::{self, Delivery, is_empty, is_false, is_one};
use super::response::Kind;
use super::{AppState, body, guard, job};

/// Tokens made when the caller does not say how many, as with OpenAI.
const MAX_TOKENS: u32 = 16;

/// Fields that pass only while they ask for nothing this API does not do anyway.
const HARMLESS: &[Harmless] = &[
    Harmless { name: "best_of", passes: is_one, allowed: "1" },
    Harmless { name: "echo", passes: is_false, allowed: "false" },
    Harmless { name: "suffix", passes: is_empty, allowed: "empty" },
    Harmless { name: "logprobs", passes: is_false, allowed: "null" },
];

/// Handles the call.
pub(super) async fn create(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let asking = guard::asking(&request);
    let (request, delivery) = parse(body::read(request).await?)?;
    job::answer(&state, Kind::Text, &asking, request, delivery).await
}

/// Reads the fields of a request.
///
/// # Errors
/// 400 naming the field.
pub(super) fn parse(mut fields: Fields) -> Result<(JobRequest, Delivery), ApiError> {
    fields.harmless(HARMLESS)?;
    let prompt = match fields.take("prompt") {
        None => return Err(ApiError::missing("prompt")),
        Some(Value::String(text)) => Prompt::Text(text),
        Some(Value::Array(list)) => prompt_list(list)?,
        Some(other) => return Err(wrong_type("prompt", "a string or an array", &other)),
    };
    params::read(fields, prompt, Some(MAX_TOKENS))
}

/// One text in a list, the ids of its tokens, or a list of one list of ids.
fn prompt_list(mut list: Vec<Value>) -> Result<Prompt, ApiError> {
    let batch = list.len() > 1 && !list.iter().all(Value::is_number);
    if batch {
        let message = "A batch of several prompts in 'prompt' is not supported by this API; send one at a time.";
        return Err(ApiError::field("prompt", "unsupported_value", message));
    }
    match list.pop() {
        None => Err(ApiError::field("prompt", "empty_array", "'prompt' must not be empty.")),
        Some(Value::String(text)) => Ok(Prompt::Text(text)),
        Some(Value::Array(ids)) if !ids.is_empty() => tokens(&ids),
        Some(last) => {
            list.push(last);
            tokens(&list)
        }
    }
}

fn tokens(ids: &[Value]) -> Result<Prompt, ApiError> {
    let token = |value: &Value| {
        value
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| wrong_type("prompt", "a string or an array of token ids", value))
    };
    ids.iter().map(token).collect::<Result<_, _>>().map(Prompt::Tokens)
}
