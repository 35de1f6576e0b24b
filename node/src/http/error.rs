//! Failures in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use consortium_protocol::wire::job::{JobError, JobErrorCode};
use serde_json::{Value, json};

use crate::billing::{BillingError, Offer};

/// `type` of everything the caller did wrong.
const INVALID_REQUEST: &str = "invalid_request_error";
/// `type` of everything that went wrong here.
const SERVER: &str = "server_error";
/// Longest piece of the caller's own text repeated in a message, in characters.
const MAX_ECHO: usize = 80;

/// A refused or failed call.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    /// Seconds after which trying again may help.
    retry_after: Option<u32>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: String) -> Self {
        Self { status, kind, message, param: None, code, retry_after: None }
    }

    fn about(mut self, param: &str) -> Self {
        self.param = Some(echo(param));
        self
    }

    fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The status it is sent with.
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// What went wrong, in words.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// 400 about one field.
    pub(super) fn field(param: &str, code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, Some(code), message.into()).about(param)
    }

    /// 400: a field nobody knows.
    pub(super) fn unknown_field(param: &str) -> Self {
        Self::field(param, "unknown_parameter", format!("Unknown field '{}'.", echo(param)))
    }

    /// 400: a field that must be there is not.
    pub(super) fn missing(param: &str) -> Self {
        Self::field(param, "missing_required_parameter", format!("Missing required parameter: '{}'.", echo(param)))
    }

    /// 400 about the body as a whole.
    pub(super) fn body(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, Some("invalid_body"), message.into())
    }

    /// 413.
    pub(super) fn too_large(limit: usize) -> Self {
        let message = format!("The request body is larger than {limit} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID_REQUEST, Some("request_too_large"), message)
    }

    /// 415.
    pub(super) fn content_type(found: &str) -> Self {
        let message = format!("Content-Type must be application/json, not '{}'.", echo(found));
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID_REQUEST, Some("unsupported_content_type"), message)
    }

    /// 408.
    pub(super) fn body_timeout() -> Self {
        let message = "The request body did not arrive in time.".to_owned();
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID_REQUEST, Some("request_timeout"), message)
    }

    /// 401 without a key.
    pub(super) fn no_key() -> Self {
        let message = "You didn't provide an API key. Send it in an Authorization header (Authorization: Bearer ck-...). \
                       The node's owner makes one with `consortium-node key create`.";
        Self::new(StatusCode::UNAUTHORIZED, INVALID_REQUEST, Some("missing_api_key"), message.to_owned())
    }

    /// 401 with a wrong key.
    pub(super) fn bad_key() -> Self {
        let message = "Incorrect API key provided: it is unknown or was revoked. \
                       The node's owner makes one with `consortium-node key create`.";
        Self::new(StatusCode::UNAUTHORIZED, INVALID_REQUEST, Some("invalid_api_key"), message.to_owned())
    }

    /// 402: the key has too little credit.
    fn insufficient(offer: &Offer, free: i64, reserved: i64) -> Self {
        let (total, prompt, answer) = (offer.quote.total.0, offer.prompt_tokens, offer.max_tokens);
        let others = match reserved {
            0 => String::new(),
            _ => format!(" ({reserved} msat are put aside for requests in progress)"),
        };
        let message = format!(
            "This request may cost up to {total} msat (a prompt of {prompt} tokens and an answer of up to {answer}), and \
             this key has {free} msat of credit left{others}. Ask for less with 'max_tokens', or have the node's owner \
             add credit with `consortium-node key credit`."
        );
        Self::new(StatusCode::PAYMENT_REQUIRED, "insufficient_quota", Some("insufficient_quota"), message)
    }

    /// 403.
    pub(super) fn forbidden(code: &'static str, message: String) -> Self {
        Self::new(StatusCode::FORBIDDEN, INVALID_REQUEST, Some(code), message)
    }

    /// 404 for a path.
    pub(super) fn unknown_path(method: &Method, path: &str) -> Self {
        let message = format!("Unknown path: {} {}. The API is under /v1.", echo(method.as_str()), echo(path));
        Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, Some("unknown_url"), message)
    }

    /// 405.
    pub(super) fn wrong_method(method: &Method, path: &str) -> Self {
        let message = format!("{} is not allowed on {}.", echo(method.as_str()), echo(path));
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID_REQUEST, Some("method_not_allowed"), message)
    }

    /// 404 for a model.
    pub(super) fn unknown_model(model: &str) -> Self {
        let message = format!("The model '{}' is not served here. See /v1/models.", echo(model));
        Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, Some("model_not_found"), message).about("model")
    }

    /// 429: this API has as many completions in progress as it allows.
    pub(super) fn busy() -> Self {
        let message = "This node has too many requests in progress; try again in a moment.".to_owned();
        Self::new(StatusCode::TOO_MANY_REQUESTS, "requests", Some("rate_limit_exceeded"), message).retry_after(2)
    }

    /// 503 while the node ends.
    pub(super) fn shutting_down() -> Self {
        let message = "The node is shutting down.".to_owned();
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("shutting_down"), message).retry_after(10)
    }

    /// 504: nothing came from the swarm for too long.
    pub(super) fn silent() -> Self {
        let message = "The swarm has not answered for too long; the request was given up.".to_owned();
        Self::new(StatusCode::GATEWAY_TIMEOUT, SERVER, Some("timeout"), message)
    }

    /// 500.
    pub(super) fn internal(message: &str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, Some("internal_error"), message.to_owned())
    }

    /// The document that tells of this failure, as a body or as an event.
    pub(super) fn document(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

impl From<BillingError> for ApiError {
    fn from(error: BillingError) -> Self {
        match error {
            BillingError::Insufficient { offer, free, reserved } => Self::insufficient(&offer, free, reserved),
            BillingError::Job(error) => error.into(),
            BillingError::Ledger(error) => {
                tracing::error!(%error, "the ledger cannot be used");
                Self::internal("The node's ledger cannot be used.")
            }
            BillingError::Closed => Self::shutting_down(),
        }
    }
}

impl From<JobError> for ApiError {
    fn from(error: JobError) -> Self {
        use JobErrorCode as Code;
        let (status, kind, code, retry_after) = match error.code {
            Code::ModelNotFound => (StatusCode::NOT_FOUND, INVALID_REQUEST, "model_not_found", None),
            Code::InvalidRequest => (StatusCode::BAD_REQUEST, INVALID_REQUEST, "invalid_value", None),
            Code::ContextLength => (StatusCode::BAD_REQUEST, INVALID_REQUEST, "context_length_exceeded", None),
            Code::NoMaster => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "no_master", Some(2)),
            Code::NoCapacity => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "no_capacity", Some(5)),
            Code::Overloaded => (StatusCode::TOO_MANY_REQUESTS, "requests", "rate_limit_exceeded", Some(2)),
            Code::Timeout => (StatusCode::GATEWAY_TIMEOUT, SERVER, "timeout", None),
            Code::WorkerLost => (StatusCode::BAD_GATEWAY, SERVER, "worker_lost", None),
            Code::Unpaid => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "tab_unpaid", Some(3)),
            Code::Internal => (StatusCode::INTERNAL_SERVER_ERROR, SERVER, "internal_error", None),
        };
        Self { status, kind, message: error.message, param: error.param, code: Some(code), retry_after }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.document())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// The caller's text, short enough to repeat.
fn echo(text: &str) -> String {
    match text.char_indices().nth(MAX_ECHO) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
