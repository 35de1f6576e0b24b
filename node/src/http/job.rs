//! One completion, from the accepted request to its answer.

use std::time::Duration;

use axum::Json;
use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::Message;
use consortium_protocol::wire::job::{FinishReason, JobEvent, JobRequest, Usage};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use super::error::ApiError;
use super::guard::Asking;
use super::params::Delivery;
use super::response::{Kind, Shape};
use super::{AppState, payment, sse};
use crate::billing::Bill;

/// Longest silence between two events of a job. The swarm has tighter deadlines of its own; this one is for a fault
/// in them, and leaves room for the prefill of a long prompt on a slow machine.
const SILENCE: Duration = Duration::from_secs(600);
/// Longest answer, in bytes: far above any context, so that a faulty peer cannot fill the memory.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// The events of a job in progress. Dropping it cancels the job.
pub(super) struct Job {
    events: mpsc::Receiver<JobEvent>,
    bill: Bill,
    closing: CancellationToken,
    received: usize,
    _place: OwnedSemaphorePermit,
}

/// What happens to a job once it was accepted.
pub(super) enum Progress {
    /// More text; never empty.
    Text(String),
    /// The end.
    Done {
        /// Text not yet given; may be empty.
        tail: String,
        finish: FinishReason,
        usage: Usage,
        /// What it costs at most, where that is known.
        cost: Option<Msat>,
    },
}

/// Submits a request and answers it.
///
/// # Errors
/// What the job failed with before its first token, or at any time when the answer is not streamed.
pub(super) async fn answer(
    state: &AppState,
    kind: Kind,
    asking: &Asking,
    request: JobRequest,
    delivery: Delivery,
) -> Result<Response, ApiError> {
    let id = request.job.to_string();
    let (job, shape) = start(state, kind, asking, request).await?;
    let mut response = if delivery.stream {
        sse::stream(job, shape, delivery.include_usage).into_response()
    } else {
        Json(collect(job, &shape).await?).into_response()
    };
    // OpenAI's clients keep this id beside the answer; the node's log names the job by it.
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", id);
    }
    Ok(response)
}

async fn start(state: &AppState, kind: Kind, asking: &Asking, request: JobRequest) -> Result<(Job, Shape), ApiError> {
    let place = state.jobs.clone().try_acquire_owned().map_err(|_| ApiError::busy())?;
    // What is left to check after parsing, such as the length of the model's name.
    request.check().map_err(|error| {
        ApiError::field(error.field, "invalid_value", format!("'{}' is not valid: {}.", error.field, error.rule))
    })?;
    let id = request.job;
    let (account, bill) = payment::open(state, asking, &request).await?;
    let events = state.app.gateway.submit(request, account)?;
    let mut job = Job { events, bill, closing: state.closing.clone(), received: 0, _place: place };
    match job.event().await? {
        JobEvent::Accepted { model, .. } => Ok((job, Shape::new(kind, &id, &model))),
        JobEvent::Failed { error } => Err(error.into()),
        JobEvent::Token { .. } | JobEvent::Done { .. } | JobEvent::Receipts(_) => {
            Err(ApiError::internal("The job's events came out of order."))
        }
    }
}

async fn collect(mut job: Job, shape: &Shape) -> Result<serde_json::Value, ApiError> {
    let mut text = String::new();
    loop {
        match job.progress().await? {
            Progress::Text(more) => text.push_str(&more),
            Progress::Done { tail, finish, usage, cost } => {
                text.push_str(&tail);
                return Ok(shape.whole(&text, finish, &usage, cost));
            }
        }
    }
}

impl Job {
    /// The next thing worth telling the client.
    ///
    /// # Errors
    /// What the job failed with; nothing comes after it.
    pub(super) async fn progress(&mut self) -> Result<Progress, ApiError> {
        loop {
            match self.event().await? {
                // Sent again by a gateway that took the job to a new master; the client need not know.
                JobEvent::Accepted { .. } | JobEvent::Receipts(_) => {}
                JobEvent::Token { text, .. } if text.is_empty() => {}
                JobEvent::Token { text, .. } => {
                    self.count(&text)?;
                    return Ok(Progress::Text(text));
                }
                JobEvent::Done { finish, usage, text } => {
                    self.count(&text)?;
                    let cost = self.bill.close(&usage);
                    return Ok(Progress::Done { tail: text, finish, usage, cost });
                }
                JobEvent::Failed { error } => return Err(error.into()),
            }
        }
    }

    async fn event(&mut self) -> Result<JobEvent, ApiError> {
        tokio::select! {
            biased;
            event = self.events.recv() => {
                event.ok_or_else(|| ApiError::internal("The job ended without a word."))
            }
            () = self.closing.cancelled() => Err(ApiError::shutting_down()),
            () = tokio::time::sleep(SILENCE) => Err(ApiError::silent()),
        }
    }

    fn count(&mut self, text: &str) -> Result<(), ApiError> {
        self.received = self.received.saturating_add(text.len());
        if self.received > MAX_ANSWER {
            return Err(ApiError::internal("The answer is longer than any model's context."));
        }
        Ok(())
    }
}
