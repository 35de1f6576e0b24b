//! A streamed answer: server-sent events, `data: {...}` each, `data: [DONE]` at the end.
//!
//! A failure on the way is an event too, `data: {"error": ...}`, after which the stream ends without `[DONE]`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde_json::Value;

use super::job::{Job, Progress};
use super::response::Shape;

/// A comment goes out after this long without an event, so that neither end takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A streamed answer in progress. hyper asks for the next event when the last went out, so a slow reader slows the
/// job; one that is gone drops this, which cancels the job.
struct Answer {
    /// None once the job has ended.
    job: Option<Job>,
    shape: Shape,
    include_usage: bool,
    /// Events that are due.
    due: VecDeque<Event>,
}

/// The response that streams a job.
pub(super) fn stream(job: Job, shape: Shape, include_usage: bool) -> Response {
    let mut answer = Answer { job: Some(job), shape, include_usage, due: VecDeque::new() };
    if let Some(first) = answer.shape.first() {
        answer.push(first);
    }
    let events = stream::unfold(answer, |mut answer| async move {
        let event = answer.next().await?;
        Some((Ok::<_, Infallible>(event), answer))
    });
    let sse = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    // Asks proxies not to hold events back.
    ([("x-accel-buffering", "no")], sse).into_response()
}

impl Answer {
    async fn next(&mut self) -> Option<Event> {
        if let Some(event) = self.due.pop_front() {
            return Some(event);
        }
        match self.job.as_mut()?.progress().await {
            Ok(Progress::Text(text)) => self.push(self.shape.piece(&text)),
            Ok(Progress::Done { tail, finish, usage, cost }) => {
                self.job = None;
                if !tail.is_empty() {
                    self.push(self.shape.piece(&tail));
                }
                self.push(self.shape.last(finish));
                if self.include_usage {
                    let usage = self.shape.usage(&usage, cost);
                    self.due.push_back(event(&usage));
                }
                self.due.push_back(Event::default().data("[DONE]"));
            }
            Err(error) => {
                self.job = None;
                self.due.push_back(event(&error.document()));
            }
        }
        self.due.pop_front()
    }

    /// Adds a piece; where usage was asked for, every piece but the one that tells it says null.
    fn push(&mut self, mut piece: Value) {
        if self.include_usage {
            piece["usage"] = Value::Null;
        }
        self.due.push_back(event(&piece));
    }
}

fn event(document: &Value) -> Event {
    Event::default().data(document.to_string())
}
