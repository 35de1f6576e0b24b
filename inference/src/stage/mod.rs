//! A loaded shard that serves sessions, on a thread of its own.
//!
//! [`StageHandle`] is what the rest of the process holds; the thread owns the weights and the caches, takes commands in
//! the order they came from a bounded queue, and ends when the last handle is gone. Nothing that a command can hold
//! makes the thread panic for good: a panic in a computation costs the session it was for.

mod error;
mod hidden;
mod thread;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use consortium_protocol::wire::heartbeat::LayerRange;
use consortium_protocol::wire::job::Sampling;
use consortium_protocol::wire::pipeline::MAX_ROWS;
use tokio::sync::{mpsc, oneshot};

use crate::model_dir::ModelDir;

pub use error::StageError;
pub use hidden::HiddenStates;
use thread::{Stage, load};

/// Rows that one step may have.
pub const MAX_STEP_ROWS: usize = MAX_ROWS;

/// Names a session: the id of the job's attempt, chosen by whoever opens it.
pub type SessionId = [u8; 16];

/// Limits of a stage.
#[derive(Debug, Clone, Copy)]
pub struct StageOptions {
    /// Sessions that may be open at once.
    pub max_sessions: usize,
    /// Bytes of keys and values that all sessions together may reserve.
    pub kv_budget_bytes: u64,
    /// Commands that may wait.
    pub queue: usize,
    /// A session without a step for this long is closed.
    pub idle: Duration,
}

impl Default for StageOptions {
    fn default() -> Self {
        Self { max_sessions: 32, kv_budget_bytes: 4 << 30, queue: 64, idle: Duration::from_secs(120) }
    }
}

/// What a session is opened with.
#[derive(Debug, Clone)]
pub struct SessionParams {
    /// How the last stage draws tokens.
    pub sampling: Sampling,
    /// Length of the original prompt, tokens; what follows it counts as generated.
    pub prompt_len: u32,
    /// Positions that the session may fill; memory for them is reserved from the budget.
    pub max_positions: u32,
}

/// One step of a session: rows that follow those before.
#[derive(Debug, Clone)]
pub struct Step {
    /// Number of the step in its session, from 0.
    pub seq: u32,
    /// Position of the first row: the number of rows before it.
    pub pos: u32,
    /// The token of every row; at least one, at most [`MAX_STEP_ROWS`].
    pub tokens: Vec<u32>,
    /// Output of the stage before; `None` on the first stage.
    pub hidden: Option<HiddenStates>,
    /// Whether the last stage shall draw the token that follows the last row.
    pub sample: bool,
}

/// What a step gave.
#[derive(Debug, Clone)]
pub struct StepOutput {
    /// The result.
    pub kind: StepResult,
    /// Time of the computation, microseconds.
    pub micros: u32,
    /// On the last stage, when they were asked for: the hidden states of the step's rows before the final norm and the head.
    /// On other stages they are the result.
    pub hidden: Option<HiddenStates>,
}

/// The result of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepResult {
    /// Activations for the next stage.
    Hidden(HiddenStates),
    /// The token drawn by the last stage.
    Token(u32),
    /// The last stage only filled its cache.
    Nothing,
}

/// What is known of a loaded stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageInfo {
    /// The layers it holds.
    pub range: LayerRange,
    /// Hidden size of the model.
    pub width: u32,
    /// Resident bytes of its weights.
    pub weight_bytes: u64,
    /// Time it took to load, milliseconds.
    pub load_ms: u64,
}

enum Command {
    Open(SessionId, SessionParams, oneshot::Sender<Result<(), StageError>>),
    /// With whether to give the hidden states.
    Step(SessionId, Step, bool, oneshot::Sender<Result<StepOutput, StageError>>),
    Measure(oneshot::Sender<Result<u32, StageError>>),
    /// Look at what shall be closed.
    Wake,
}

/// Sessions that shall be closed. Apart from the queue, so that closing never waits and is never lost.
type Closing = Arc<Mutex<BTreeSet<SessionId>>>;

/// A loaded stage. Clones are the same stage; it ends with the last of them.
#[derive(Clone, Debug)]
pub struct StageHandle {
    commands: mpsc::Sender<Command>,
    closing: Closing,
    info: StageInfo,
}

impl StageHandle {
    /// Loads a range of layers on a thread of its own, which then serves it.
    ///
    /// # Errors
    /// [`StageError::Model`] if the shard cannot be loaded, [`StageError::Thread`] if there is no thread for it.
    pub async fn spawn(dir: Arc<ModelDir>, range: LayerRange, options: StageOptions) -> Result<Self, StageError> {
        let (commands, queue) = mpsc::channel(options.queue.max(1));
        let (loaded, loading) = oneshot::channel();
        let closing = Closing::default();
        let thread_closing = Arc::clone(&closing);
        std::thread::Builder::new()
            .name(format!("stage {range}"))
            .spawn(move || match load(&dir, range) {
                Ok((shard, info)) => {
                    if loaded.send(Ok(info)).is_ok() {
                        Stage::new(&dir, shard, options, thread_closing).run(queue);
                    }
                }
                Err(error) => drop(loaded.send(Err(error))),
            })
            .map_err(StageError::Thread)?;
        let info = loading.await.map_err(|_| StageError::Ended)??;
        Ok(Self { commands, closing, info })
    }

    /// What is known of this stage.
    pub fn info(&self) -> StageInfo {
        self.info
    }

    /// Opens a session, and reserves the memory of its caches.
    ///
    /// # Errors
    /// [`StageError::DuplicateSession`], [`StageError::TooManySessions`], [`StageError::KvBudget`],
    /// [`StageError::TooManyPositions`].
    pub async fn open(&self, session: SessionId, params: SessionParams) -> Result<(), StageError> {
        self.ask(|reply| Command::Open(session, params, reply)).await
    }

    /// Opens a session that is closed when the guard is dropped.
    ///
    /// # Errors
    /// As [`StageHandle::open`].
    pub async fn open_guarded(&self, session: SessionId, params: SessionParams) -> Result<SessionGuard, StageError> {
        self.open(session, params).await?;
        Ok(self.guard(session))
    }

    /// Closes an open session when the guard is dropped.
    pub fn guard(&self, session: SessionId) -> SessionGuard {
        SessionGuard { stage: self.clone(), session }
    }

    /// Computes one step of a session. Steps of all sessions are computed in the order they came.
    ///
    /// # Errors
    /// An error about the step itself leaves the session as it was; a failed computation closes it.
    pub async fn step(&self, session: SessionId, step: Step) -> Result<StepOutput, StageError> {
        self.ask(|reply| Command::Step(session, step, false, reply)).await
    }

    /// As [`StageHandle::step`]; the last stage also gives the hidden states that it does not send, which it commits to.
    ///
    /// # Errors
    /// As [`StageHandle::step`].
    pub async fn step_keeping(&self, session: SessionId, step: Step) -> Result<StepOutput, StageError> {
        self.ask(|reply| Command::Step(session, step, true, reply)).await
    }

    /// Time of one decode token through one layer of this stage, microseconds.
    ///
    /// # Errors
    /// [`StageError::Ended`], or the failure of the computation.
    pub async fn measure(&self) -> Result<u32, StageError> {
        self.ask(Command::Measure).await
    }

    /// Closes a session; unknown ones are ignored. Never waits.
    pub fn close(&self, session: SessionId) {
        self.closing.lock().unwrap_or_else(PoisonError::into_inner).insert(session);
        // A full queue means that the thread is about to look anyway.
        let _ = self.commands.try_send(Command::Wake);
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, StageError>>) -> Command,
    ) -> Result<T, StageError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| StageError::Ended)?;
        answer.await.map_err(|_| StageError::Ended)?
    }
}

/// Closes its session when dropped.
#[derive(Debug)]
pub struct SessionGuard {
    stage: StageHandle,
    session: SessionId,
}

impl SessionGuard {
    /// The session it guards.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Computes one step of the session.
    ///
    /// # Errors
    /// As [`StageHandle::step`].
    pub async fn step(&self, step: Step) -> Result<StepOutput, StageError> {
        self.stage.step(self.session, step).await
    }

    /// Computes one step of the session; the last stage gives its hidden states too.
    ///
    /// # Errors
    /// As [`StageHandle::step`].
    pub async fn step_keeping(&self, step: Step) -> Result<StepOutput, StageError> {
        self.stage.step_keeping(self.session, step).await
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.stage.close(self.session);
    }
}
