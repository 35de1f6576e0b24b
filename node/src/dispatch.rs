//! Sends jobs to whoever is the master: this node's own driver, or another node over the swarm. What was already
//! emitted is kept here, so that a job outlives the master that began it: the next one goes on behind it.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use consortium_protocol::identity::NodeId;
use consortium_protocol::wire;
use consortium_protocol::wire::job::{JobError, JobErrorCode, JobEvent, JobRequest, JobSubmission, Receipts};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::audit::{Audits, Settlement};
use crate::billing::JobAccount;
use crate::cluster::ClusterView;
use crate::gateway::Submission;
use crate::mandating::Mandating;
use crate::pipeline::{Driver, feeding, read_message, write_message};
use crate::swarm::{ByteStream, Incoming, SwarmHandle};
use crate::tabs::Tabs;

/// Time in which a master must be found, again after each loss.
const FIND_MASTER: Duration = Duration::from_secs(15);
/// Longest silence of a master within a job: it sends something for every token.
const SILENCE: Duration = Duration::from_secs(120);
/// Times that a job is handed in again after its master was lost.
const MAX_RESUBMISSIONS: u32 = 4;
/// Jobs that this node forwards or drives at a time.
const MAX_JOBS: usize = 256;
/// Time for the receipts to follow the answer, once there is nothing to be computed any more.
const RECEIPTS: Duration = Duration::from_secs(15);
const OPENING: Duration = Duration::from_secs(10);
/// Least pause before a job is handed in again.
const PAUSE: Duration = Duration::from_millis(200);

/// Sends submissions on their way.
#[derive(Clone)]
pub struct Dispatch {
    /// The swarm.
    pub swarm: SwarmHandle,
    /// Who is the master.
    pub view: watch::Receiver<ClusterView>,
    /// This node's own driver, for when it is.
    pub driver: Arc<Driver>,
    /// Signs for this node's own jobs.
    pub mandating: Mandating,
    /// Where receipts of this node's own jobs go.
    pub audits: Audits,
    /// Where workers are paid, before a job that they refuse is tried again.
    pub tabs: Tabs,
}

/// How one try at a job ended.
enum Outcome {
    /// It failed.
    Over,
    /// The answer ended, with the model's last word or because the client has gone; with what the stages signed for it.
    Done(Option<Box<Receipts>>),
    /// The master was lost or is none any more; what follows is why.
    Lost(String),
}

impl Dispatch {
    /// Serves the gateway's queue until it closes.
    pub async fn serve_gateway(self, mut queue: mpsc::Receiver<Submission>) {
        let room = Arc::new(Semaphore::new(MAX_JOBS));
        while let Some(submission) = queue.recv().await {
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                let _gone = submission.events.try_send(failed(JobErrorCode::Overloaded, "too many jobs in progress"));
                continue;
            };
            let dispatch = self.clone();
            tokio::spawn(async move {
                let _held_for_the_job = permit;
                dispatch.see_through(submission).await;
            });
        }
    }

    /// Serves jobs that other nodes forward, until the swarm ends.
    pub async fn serve_peers(self, mut incoming: Incoming) {
        let room = Arc::new(Semaphore::new(MAX_JOBS));
        while let Some((from, stream)) = incoming.recv().await {
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
            let dispatch = self.clone();
            tokio::spawn(async move {
                let _held_for_the_job = permit;
                if let Err(error) = dispatch.serve_peer(from, stream).await {
                    debug!(%from, %error, "a forwarded job ended");
                }
            });
        }
    }

    async fn serve_peer(&self, from: NodeId, stream: ByteStream) -> std::io::Result<()> {
        let (mut read, mut write) = tokio::io::split(stream);
        let submission = tokio::time::timeout(OPENING, read_message::<JobSubmission>(&mut read)).await;
        let submission = match submission {
            Ok(Ok(Some(submission))) => submission,
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(error)) => {
                let refused = failed(JobErrorCode::InvalidRequest, &error.to_string());
                return write_message(&mut write, &refused).await;
            }
            Err(_) => return Err(std::io::ErrorKind::TimedOut.into()),
        };
        if self.master() != Some(self.swarm.me()) {
            write_message(&mut write, &failed(JobErrorCode::NoMaster, "this node is not the master")).await?;
            return write.shutdown().await;
        }
        let (events, mut queue) = mpsc::channel(64);
        let (driver, leave) = (Arc::clone(&self.driver), CancellationToken::new());
        let leaving = leave.clone();
        let job = tokio::spawn(async move { driver.run(from, submission, events, leaving).await });
        let writing = async {
            while let Some(event) = queue.recv().await {
                write_message(&mut write, &event).await?;
            }
            write.shutdown().await
        };
        // The gateway has nothing more to say: when its side ends, its client has gone. It still takes receipts.
        let listening = async {
            let _ended = read.read_u8().await;
            leave.cancel();
            std::future::pending().await
        };
        let result = tokio::select! {
            result = writing => result,
            never = listening => never,
        };
        drop(queue);
        let _driver_ended = job.await;
        result
    }

    fn master(&self) -> Option<NodeId> {
        self.view.borrow().master
    }

    async fn see_through(&self, submission: Submission) {
        let Submission { mut request, nonce, account, events } = submission;
        let mut accepted = false;
        let mut reason = String::new();
        for attempt in 0..=MAX_RESUBMISSIONS {
            if attempt > 0 {
                tokio::time::sleep(PAUSE).await;
                if events.is_closed() {
                    return;
                }
                info!(job = %request.job, emitted = request.emitted.len(), reason, "handing a job in again");
            }
            let master = tokio::select! {
                master = self.wait_for_master() => master,
                () = events.closed() => return,
            };
            let Some(master) = master else {
                let message = format!(
                    "no master stands in the cluster (waited {} s){}",
                    FIND_MASTER.as_secs(),
                    if reason.is_empty() { String::new() } else { format!("; before that: {reason}") }
                );
                let _gone = events.send(failed(JobErrorCode::NoMaster, &message)).await;
                return;
            };
            let given = request.emitted.len();
            match self.attempt(master, &mut request, &account, &mut accepted, &events).await {
                Outcome::Over => return,
                Outcome::Done(None) if request.emitted.is_empty() => {
                    return debug!(job = %request.job, "the client left before the first token");
                }
                Outcome::Done(None) => {
                    return warn!(job = %request.job, "an answer came without receipts: nobody is paid for the job");
                }
                Outcome::Done(Some(receipts)) => {
                    return self.audits.settle(Settlement { request, nonce, account, receipts, master, given });
                }
                Outcome::Lost(why) => reason = why,
            }
        }
        let message = format!("the job was handed in {} times and lost each time: {reason}", MAX_RESUBMISSIONS + 1);
        let _gone = events.send(failed(JobErrorCode::WorkerLost, &message)).await;
    }

    async fn wait_for_master(&self) -> Option<NodeId> {
        let mut view = self.view.clone();
        let found = tokio::time::timeout(FIND_MASTER, view.wait_for(|view| view.master.is_some())).await;
        found.ok()?.ok()?.master
    }

    async fn attempt(
        &self,
        master: NodeId,
        request: &mut JobRequest,
        account: &JobAccount,
        accepted: &mut bool,
        events: &mpsc::Sender<JobEvent>,
    ) -> Outcome {
        let mandate = match self.mandating.sign(master, request, account) {
            Ok(mandate) => mandate,
            Err(error) => {
                let _gone = events.send(JobEvent::Failed { error }).await;
                return Outcome::Over;
            }
        };
        let submission = JobSubmission { mandate, request: request.clone() };
        let (forward, mut queue) = mpsc::channel(64);
        let leave = CancellationToken::new();
        // Ends the forwarding (and with it the job on every stage) however this function is left.
        let _aborted_on_return = AbortOnDrop(self.start(master, submission, forward, leave.clone()));
        let mut lost_master = self.view.clone();
        let mut given_up = pin!(tokio::time::sleep(Duration::MAX));
        loop {
            let event = tokio::select! {
                event = queue.recv() => event,
                () = events.closed(), if !leave.is_cancelled() => {
                    leave.cancel();
                    given_up.as_mut().reset(Instant::now() + RECEIPTS);
                    continue;
                }
                () = &mut given_up => return Outcome::Over,
                _ = lost_master.wait_for(|view| view.master.is_some_and(|now| now != master)) => {
                    return Outcome::Lost("another master took over".to_owned());
                }
            };
            let event = match event {
                None => return Outcome::Lost("the master went away".to_owned()),
                Some(JobEvent::Accepted { .. }) if *accepted => continue,
                Some(JobEvent::Failed { error }) if error.code == JobErrorCode::NoMaster => {
                    return Outcome::Lost(error.message);
                }
                Some(event) => event,
            };
            if let JobEvent::Failed { error } = &event
                && error.code == JobErrorCode::Unpaid
            {
                self.tabs.hurry();
            }
            match &event {
                JobEvent::Accepted { .. } => *accepted = true,
                JobEvent::Token { index, id, .. } => {
                    if *index as usize != request.emitted.len() {
                        return Outcome::Lost(format!("the master sent token {index} out of order"));
                    }
                    request.emitted.push(*id);
                }
                JobEvent::Receipts(_) => return Outcome::Lost("the master sent receipts before the answer".to_owned()),
                JobEvent::Done { .. } | JobEvent::Failed { .. } => {}
            }
            let failed = matches!(event, JobEvent::Failed { .. });
            let done = match &event {
                JobEvent::Done { usage, .. } => Some(*usage),
                _ => None,
            };
            // A client that has gone is noticed above.
            let _gone = events.send(event).await;
            if failed {
                return Outcome::Over;
            }
            if let Some(usage) = done {
                // Whose client has left may still have a prompt to be computed, and that is paid for too.
                let left = leave.is_cancelled() || events.is_closed();
                let patience = if left { RECEIPTS + feeding(usage.prompt_tokens) } else { RECEIPTS };
                let following = tokio::time::timeout(patience, queue.recv()).await;
                return Outcome::Done(match following {
                    Ok(Some(JobEvent::Receipts(receipts))) => Some(receipts),
                    _ => None,
                });
            }
        }
    }

    /// Hands a job to the master: this node's own driver, or another node.
    fn start(
        &self,
        master: NodeId,
        submission: JobSubmission,
        forward: mpsc::Sender<JobEvent>,
        leave: CancellationToken,
    ) -> JoinHandle<()> {
        let me = self.swarm.me();
        if master == me {
            let driver = Arc::clone(&self.driver);
            return tokio::spawn(async move { driver.run(me, submission, forward, leave).await });
        }
        let swarm = self.swarm.clone();
        tokio::spawn(async move {
            if let Err(error) = forward_job(&swarm, master, &submission, &forward, &leave).await {
                let _gone = forward.send(failed(JobErrorCode::NoMaster, &error)).await;
            }
        })
    }
}

async fn forward_job(
    swarm: &SwarmHandle,
    master: NodeId,
    submission: &JobSubmission,
    events: &mpsc::Sender<JobEvent>,
    leave: &CancellationToken,
) -> Result<(), String> {
    let stream = swarm.open_stream(master, wire::JOB).await.map_err(|error| error.to_string())?;
    let (mut read, mut write) = tokio::io::split(stream);
    write_message(&mut write, submission).await.map_err(|error| error.to_string())?;
    let reading = async {
        let mut patience = SILENCE;
        loop {
            let next = tokio::time::timeout(patience, read_message::<JobEvent>(&mut read)).await;
            let event = match next {
                Err(_) => return Err(format!("the master was silent for {} s", patience.as_secs())),
                Ok(Err(error)) => return Err(error.to_string()),
                Ok(Ok(None)) => return Err("the master closed the stream".to_owned()),
                Ok(Ok(Some(event))) => event,
            };
            // The stream ends with `Receipts`; an answer without them is known to its reader by silence.
            let last = matches!(event, JobEvent::Receipts(_) | JobEvent::Failed { .. });
            if matches!(event, JobEvent::Done { .. }) {
                // Its reader knows how long the receipts may take, and ends this when they took longer.
                patience = feeding(u32::MAX) + RECEIPTS;
            }
            if events.send(event).await.is_err() || last {
                return Ok(());
            }
        }
    };
    // The end of this side of the stream says that nobody wants more.
    let leaving = async {
        leave.cancelled().await;
        let _gone = write.shutdown().await;
        std::future::pending().await
    };
    tokio::select! {
        ended = reading => ended,
        never = leaving => never,
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn failed(code: JobErrorCode, message: &str) -> JobEvent {
    JobEvent::Failed { error: JobError::new(code, message) }
}
