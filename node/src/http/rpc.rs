//! `POST /rpc`: JSON-RPC over HTTP. The answers are those of [`crate::rpc`]; errors of JSON-RPC come with status 200,
//! and what goes wrong before, or for want of patience, with a status of its own and an error of JSON-RPC's shape.

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::AppState;
use super::body;
use super::guard::{self, Caller};
use crate::operator;
use crate::rpc::{self, Answer, MAX_REQUEST, call};

/// Answers a request or a batch.
pub(super) async fn answer(
    State(state): State<AppState>,
    Extension(Caller(caller)): Extension<Caller>,
    request: Request,
) -> Response {
    let asking = guard::asking(&request);
    // Where a proxy is likely, this machine's programs are known by the operator's token alone.
    let local = asking.is_local() && (state.selling().is_none() || asking.is_operator());
    let operator = request.headers().get(operator::HEADER).and_then(|token| token.to_str().ok()).map(str::to_owned);
    let text = match body::text(request, MAX_REQUEST).await {
        Ok(text) => text,
        Err(error) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            return document(error.status(), call::too_large());
        }
        Err(error) => return document(error.status(), call::unreadable(error.message())),
    };
    match state
        .app
        .rpc
        .answer_to(&text, rpc::Caller { address: caller.ip(), local, operator: operator.as_deref() })
        .await
    {
        Answer::Document(text) => document(StatusCode::OK, text),
        Answer::Nothing => StatusCode::NO_CONTENT.into_response(),
        Answer::Busy { document: text, wait } => {
            let mut response = document(StatusCode::TOO_MANY_REQUESTS, text);
            let seconds = wait.as_secs().saturating_add(1);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            response
        }
    }
}

fn document(status: StatusCode, text: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}
