//! Failures in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use consortium_protocol::wire::job::{JobError, JobErrorCode};
use serde_json::{Value, json};

use crate::billing::{BillingError, Offer};
use crate::till::{AdmitError, AskError, RefundError, Request, Trouble};

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
    /// How to pay, where paying helps.
    payment: Option<Box<Payment>>,
}

/// How to pay.
#[derive(Debug)]
struct Payment {
    /// For `WWW-Authenticate`.
    challenge: String,
    /// For the document.
    terms: Value,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: String) -> Self {
        Self { status, kind, message, param: None, code, retry_after: None, payment: None }
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

    /// The same with another sentence.
    pub(super) fn because(mut self, why: &str) -> Self {
        self.message = format!("{} ({why}.)", self.message);
        self
    }

    fn payable(mut self, offer: &Offer, request: &Request) -> Self {
        let terms = json!({
            "scheme": "L402",
            "invoice": request.challenge.invoice,
            "payment_hash": request.payment_hash,
            // What the invoice asks for: a bundle, credited to the account in whole.
            "amount_msat": request.amount.0,
            // What this request may cost.
            "needed_msat": offer.quote.total.0,
            "account": format!("key/{}", request.account),
            "expires_at": request.expires_s,
        });
        self.payment = Some(Box::new(Payment { challenge: request.challenge.to_string(), terms }));
        self
    }

    /// 402: nobody pays for it yet.
    pub(super) fn payment_required(offer: &Offer, request: &Request) -> Self {
        let (total, prompt, answer) = (offer.quote.total.0, offer.prompt_tokens, offer.max_tokens);
        let message = format!(
            "This request may cost up to {total} msat (a prompt of {prompt} tokens and an answer of up to {answer}). Pay the \
             Lightning invoice in 'payment' ({} msat of credit, also for further requests), and send the macaroon of the \
             WWW-Authenticate header with the preimage: Authorization: L402 <macaroon>:<preimage>.",
            request.amount.0
        );
        Self::new(StatusCode::PAYMENT_REQUIRED, "insufficient_quota", Some("payment_required"), message)
            .payable(offer, request)
    }

    /// 401: what was sent as bought does not work.
    pub(super) fn bad_credential(why: &str) -> Self {
        let message = format!("The L402 credential is not accepted: {why}.");
        Self::new(StatusCode::UNAUTHORIZED, INVALID_REQUEST, Some("invalid_credential"), message)
    }

    /// 403: the caveats of a credential do not allow it.
    pub(super) fn not_allowed(what: &str) -> Self {
        let message = format!("This L402 credential was narrowed by whoever passed it on: it may not {what}.");
        Self::forbidden("credential_not_allowed", message)
    }

    /// 404: the node takes no money.
    pub(super) fn no_wallet() -> Self {
        let message = "This node has no Lightning wallet: nothing can be paid here, in or out.".to_owned();
        Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, Some("no_wallet"), message)
    }

    /// 404: nobody takes credit out here.
    pub(super) fn no_refunds() -> Self {
        let message = "This node does not sell over Lightning (--l402), and pays no credit out.".to_owned();
        Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, Some("no_refunds"), message)
    }

    /// 429: more often than a credential may be used.
    pub(super) fn too_often(wait: Duration) -> Self {
        let message = "This L402 credential is used more often than its caveats, or this node, allow.".to_owned();
        Self::new(StatusCode::TOO_MANY_REQUESTS, "requests", Some("rate_limit_exceeded"), message)
            .retry_after(seconds(wait))
    }

    /// 402: the key has too little credit.
    pub(super) fn insufficient(offer: &Offer, free: i64, reserved: i64, request: Option<&Request>) -> Self {
        let (total, prompt, answer) = (offer.quote.total.0, offer.prompt_tokens, offer.max_tokens);
        let others = match reserved {
            0 => String::new(),
            _ => format!(" ({reserved} msat are put aside for requests in progress)"),
        };
        let how = match request {
            Some(request) => format!("pay the Lightning invoice in 'payment' ({} msat)", request.amount.0),
            None => "have the node's owner add credit with `consortium-node key credit`".to_owned(),
        };
        let message = format!(
            "This request may cost up to {total} msat (a prompt of {prompt} tokens and an answer of up to {answer}), and \
             this key has {free} msat of credit left{others}. Ask for less with 'max_tokens', or {how}."
        );
        let error = Self::new(StatusCode::PAYMENT_REQUIRED, "insufficient_quota", Some("insufficient_quota"), message);
        match request {
            Some(request) => error.payable(offer, request),
            None => error,
        }
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
        let mut document =
            json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}});
        if let Some(payment) = &self.payment {
            document["error"]["payment"] = payment.terms.clone();
        }
        document
    }
}

impl From<BillingError> for ApiError {
    fn from(error: BillingError) -> Self {
        match error {
            BillingError::Insufficient { offer, free, reserved } => Self::insufficient(&offer, free, reserved, None),
            BillingError::BudgetSpent { offer, left } => {
                let (total, left) = (offer.quote.total.0, left.0);
                let message =
                    format!("This request may cost up to {total} msat, and this L402 credential may spend {left} yet.");
                Self::forbidden("budget_exhausted", message)
            }
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
        Self { status, kind, message: error.message, param: error.param, code: Some(code), retry_after, payment: None }
    }
}

impl From<Trouble> for ApiError {
    fn from(error: Trouble) -> Self {
        if matches!(error, Trouble::Closed) {
            return Self::shutting_down();
        }
        tracing::error!(%error, "the till cannot be used");
        Self::internal("The node cannot take or give money now.")
    }
}

impl From<AdmitError> for ApiError {
    fn from(error: AdmitError) -> Self {
        match error {
            AdmitError::Header(_) | AdmitError::Refused(_) => Self::bad_credential(&error.to_string()),
            AdmitError::NotArrived => {
                let message = "The payment of this credential has not arrived yet; try again in a moment.".to_owned();
                Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("payment_pending"), message).retry_after(2)
            }
            AdmitError::Trouble(trouble) => trouble.into(),
        }
    }
}

impl From<AskError> for ApiError {
    fn from(error: AskError) -> Self {
        let message = format!("{}.", upper(&error.to_string()));
        match error {
            AskError::AboveLimit { .. } => Self::field("sats", "above_limit", message),
            AskError::AboveCustody => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("sold_out"), message).retry_after(600)
            }
            AskError::Many(_) => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "requests", Some("too_many_invoices"), message).retry_after(60)
            }
            AskError::NoAccount => Self::bad_credential("its account was closed"),
            AskError::Trouble(trouble) => trouble.into(),
        }
    }
}

impl From<RefundError> for ApiError {
    fn from(error: RefundError) -> Self {
        let message = format!("{}.", upper(&error.to_string()));
        match error {
            RefundError::Invoice(_) => Self::field("invoice", "invalid_value", message),
            RefundError::Insufficient { .. } => Self::field("invoice", "insufficient_credit", message),
            RefundError::Taken => Self::new(StatusCode::CONFLICT, INVALID_REQUEST, Some("refund_in_progress"), message),
            RefundError::Often(wait) => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "requests", Some("rate_limit_exceeded"), message)
                    .retry_after(seconds(wait))
            }
            RefundError::Failed(_) => Self::new(StatusCode::BAD_GATEWAY, SERVER, Some("refund_failed"), message),
            RefundError::Trouble(trouble) => trouble.into(),
        }
    }
}

/// Whole seconds, and no less.
fn seconds(wait: Duration) -> u32 {
    u32::try_from(wait.as_secs().saturating_add(1)).unwrap_or(u32::MAX)
}

/// A sentence's beginning.
fn upper(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
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
        if let Some(payment) = self.payment
            && let Ok(challenge) = HeaderValue::from_str(&payment.challenge)
        {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
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
