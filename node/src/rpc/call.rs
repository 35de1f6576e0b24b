//! Requests and answers as JSON-RPC 2.0 has them: one, or a batch.

use std::time::Duration;

use axum::http::Extensions;
use jsonrpsee::types::error::{
    INVALID_REQUEST_CODE, METHOD_NOT_FOUND_CODE, OVERSIZED_REQUEST_CODE, OVERSIZED_RESPONSE_CODE, PARSE_ERROR_CODE,
    SERVER_IS_BUSY_CODE, TOO_BIG_BATCH_REQUEST_CODE,
};
use jsonrpsee::types::{ErrorObjectOwned, Id, InvalidRequest, Notification, Request};
use jsonrpsee::{ConnectionId, MethodCallback, MethodResponse, RpcModule};
use serde_json::value::RawValue;

use super::methods::Asked;
use super::{Context, MAX_ANSWER, MAX_REQUEST};

/// Calls of a batch at most.
pub const MAX_BATCH: usize = 32;

/// A request that was read.
#[derive(Debug)]
pub(super) enum Calls<'a> {
    One(&'a str),
    Batch(Vec<&'a RawValue>),
}

fn refusal(code: i32, message: impl Into<String>) -> String {
    failure(Id::Null, code, message).into_json().get().to_owned()
}

fn failure(id: Id<'_>, code: i32, message: impl Into<String>) -> MethodResponse {
    MethodResponse::error(id, ErrorObjectOwned::owned(code, message, None::<()>))
}

/// The answer to a request that is no JSON in the first place.
#[must_use]
pub fn unreadable(why: &str) -> String {
    refusal(PARSE_ERROR_CODE, why)
}

/// The answer to a request beyond [`MAX_REQUEST`].
#[must_use]
pub fn too_large() -> String {
    refusal(OVERSIZED_REQUEST_CODE, format!("the request is larger than {MAX_REQUEST} bytes"))
}

/// The answer to a caller who asks too much.
pub(super) fn too_many(wait: Duration) -> String {
    let message = format!("too many calls from this address; go on in {:.1} seconds", wait.as_secs_f64());
    refusal(SERVER_IS_BUSY_CODE, message)
}

/// Reads a request as far as is needed to see how many calls there are.
///
/// # Errors
/// The answer to what is no request.
pub(super) fn read(text: &str) -> Result<Calls<'_>, String> {
    if !text.trim_start().starts_with('[') {
        return Ok(Calls::One(text));
    }
    let batch: Vec<&RawValue> =
        serde_json::from_str(text).map_err(|error| unreadable(&format!("the request is not JSON: {error}")))?;
    match batch.len() {
        0 => Err(refusal(INVALID_REQUEST_CODE, "the batch is empty")),
        1..=MAX_BATCH => Ok(Calls::Batch(batch)),
        calls => Err(refusal(
            TOO_BIG_BATCH_REQUEST_CODE,
            format!("the batch has {calls} calls, and {MAX_BATCH} are allowed"),
        )),
    }
}

impl Calls<'_> {
    /// How many.
    pub(super) fn count(&self) -> u32 {
        match self {
            Self::One(_) => 1,
            Self::Batch(batch) => u32::try_from(batch.len()).unwrap_or(u32::MAX),
        }
    }

    /// Answers them, one after the other; none when nothing is to be answered.
    pub(super) async fn run(self, module: &RpcModule<Context>, asked: Asked) -> Option<String> {
        let batch = match self {
            Self::One(text) => return Some(one(module, asked, text).await?.into_json().get().to_owned()),
            Self::Batch(batch) => batch,
        };
        let mut answers = String::new();
        for call in batch {
            let Some(answer) = one(module, asked, call.get()).await else { continue };
            let mut answer = answer.into_json();
            if answers.len() + answer.get().len() + 2 > MAX_ANSWER {
                let id = serde_json::from_str::<InvalidRequest<'_>>(call.get()).map_or(Id::Null, |call| call.id);
                let message = "the answers of this batch are too large together; make this call again";
                answer = failure(id, OVERSIZED_RESPONSE_CODE, message).into_json();
            }
            answers.push(if answers.is_empty() { '[' } else { ',' });
            answers.push_str(answer.get());
        }
        (!answers.is_empty()).then(|| answers + "]")
    }
}

/// Answers one call; none for a notification, which is not done either: nobody would hear what became of it.
async fn one(module: &RpcModule<Context>, asked: Asked, text: &str) -> Option<MethodResponse> {
    let request = match serde_json::from_str::<Request<'_>>(text) {
        Ok(request) => request,
        Err(error) => return refuse(text, &error),
    };
    let Request { id, method, params, .. } = request;
    let params = jsonrpsee::types::Params::new(params.as_ref().map(|params| params.get())).into_owned();
    let mut extensions = Extensions::new();
    extensions.insert(asked);
    match module.method(&method) {
        Some(MethodCallback::Async(run)) => {
            Some(run(id.into_owned(), params, ConnectionId(0), MAX_ANSWER, extensions).await)
        }
        Some(MethodCallback::Sync(run)) => Some(run(id, params, MAX_ANSWER, extensions)),
        _ => {
            let message = format!("there is no method '{method:.80}'; rpc.discover lists what there is");
            Some(failure(id, METHOD_NOT_FOUND_CODE, message))
        }
    }
}

fn refuse(text: &str, error: &serde_json::Error) -> Option<MethodResponse> {
    if serde_json::from_str::<&RawValue>(text).is_err() {
        return Some(failure(Id::Null, PARSE_ERROR_CODE, format!("the request is not JSON: {error}")));
    }
    let invalid = |id| Some(failure(id, INVALID_REQUEST_CODE, format!("not a request of JSON-RPC 2.0: {error}")));
    match serde_json::from_str::<InvalidRequest<'_>>(text) {
        Ok(InvalidRequest { id }) => invalid(id),
        Err(_) if serde_json::from_str::<Notification<'_, Option<&RawValue>>>(text).is_ok() => None,
        Err(_) => invalid(Id::Null),
    }
}
