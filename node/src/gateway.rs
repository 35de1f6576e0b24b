//! The way into the swarm for whoever has a prompt: HTTP handlers and the CLI hand in a [`JobRequest`] and read
//! [`JobEvent`]s. Who answers (this node as master, or another over the swarm) is decided behind the channel, by
//! [`crate::dispatch`].

use consortium_protocol::wire::audit::Nonce;
use consortium_protocol::wire::job::{JobError, JobErrorCode, JobEvent, JobRequest};
use tokio::sync::mpsc;

use crate::billing::JobAccount;

/// Events buffered between the swarm and a slow reader before the job waits for it.
const EVENTS: usize = 64;

/// A job on its way in, with the channel its events go back on.
///
/// The first event is `Accepted` or `Failed`, the last `Done` or `Failed`; the receipts stay with the node. The reader's end being dropped
/// (`events.closed()`) cancels the job on every stage.
#[derive(Debug)]
pub struct Submission {
    /// What to compute, bound to the nonce.
    pub request: JobRequest,
    /// What will decide which stages are audited: told to nobody before they have signed.
    pub nonce: Nonce,
    /// Who pays for it.
    pub account: JobAccount,
    /// Where the events go.
    pub events: mpsc::Sender<JobEvent>,
}

/// Cloneable handle that submits jobs.
#[derive(Clone, Debug)]
pub struct Gateway {
    submissions: mpsc::Sender<Submission>,
}

impl Gateway {
    /// A gateway and the queue that [`crate::dispatch`] serves; `capacity` jobs may wait in it.
    #[must_use]
    pub fn channel(capacity: usize) -> (Self, mpsc::Receiver<Submission>) {
        let (submissions, queue) = mpsc::channel(capacity);
        (Self { submissions }, queue)
    }

    /// Submits a job, under a fresh challenge, and returns its events. Dropping the receiver cancels the job.
    ///
    /// # Errors
    /// `Overloaded` when the queue is full, `Internal` when the node is shutting down.
    pub fn submit(&self, mut request: JobRequest, account: JobAccount) -> Result<mpsc::Receiver<JobEvent>, JobError> {
        let (events, receiver) = mpsc::channel(EVENTS);
        let nonce = Nonce(rand::random());
        request.challenge = nonce.commitment();
        self.submissions.try_send(Submission { request, nonce, account, events }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => JobError::new(
                JobErrorCode::Overloaded,
                "this node has too many requests waiting; try again in a moment",
            ),
            mpsc::error::TrySendError::Closed(_) => JobError::new(JobErrorCode::Internal, "the node is shutting down"),
        })?;
        Ok(receiver)
    }
}
