//! A loaded shard that serves sessions, on a thread of its own.
//!
//! [`StageHandle`] is what the rest of the process holds; the thread owns the weights and the caches, takes commands in
//! the order they came from a bounded queue, and ends when the last handle is gone. Nothing that a command can hold
//! makes the thread panic for good: a panic in a computation costs the session it was for.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use tokio::sync::{mpsc, oneshot};

use consortium_protocol::wire::heartbeat::LayerRange;
use consortium_protocol::wire::job::Sampling;

use crate::error::ModelError;
use crate::kv_cache::KvCache;
use crate::llama::{HeadRows, Shard, StageInput, StageOutput};
use crate::measure::layer_micros;
use crate::model_dir::ModelDir;
use crate::sampling::{SampleError, Sampler};

/// Rows that one step may have.
pub const MAX_STEP_ROWS: usize = 512;

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
        Self {
            max_sessions: 32,
            kv_budget_bytes: 4 << 30,
            queue: 64,
            idle: Duration::from_secs(120),
        }
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

/// Activations between two stages.
#[derive(Clone, PartialEq, Eq)]
pub struct HiddenStates {
    /// Number of rows.
    pub rows: u32,
    /// Width of a row: the hidden size of the model.
    pub width: u32,
    /// Row-major f32, little-endian: rows x width x 4 bytes.
    pub data: Vec<u8>,
}

impl std::fmt::Debug for HiddenStates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HiddenStates({} x {})", self.rows, self.width)
    }
}

impl HiddenStates {
    /// The bytes of a tensor `[rows, width]`.
    ///
    /// # Errors
    /// When it is not a matrix of f32 that can be read.
    pub fn from_tensor(tensor: &Tensor) -> candle_core::Result<Self> {
        let (rows, width) = tensor.dims2()?;
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        let mut data = Vec::with_capacity(values.len() * 4);
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        Ok(Self {
            rows: rows as u32,
            width: width as u32,
            data,
        })
    }

    /// The tensor `[rows, width]` on a device.
    ///
    /// # Errors
    /// When rows, width and data do not fit together, or the device refuses.
    pub fn to_tensor(&self, device: &Device) -> candle_core::Result<Tensor> {
        let shape = (self.rows as usize, self.width as usize);
        if Some(self.data.len()) != shape.0.checked_mul(shape.1).and_then(|n| n.checked_mul(4)) {
            candle_core::bail!("{} bytes for {} x {} values", self.data.len(), shape.0, shape.1);
        }
        let values: Vec<f32> = self.data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Tensor::from_vec(values, shape, device)
    }
}

/// What a step gave.
#[derive(Debug, Clone)]
pub struct StepOutput {
    /// The result.
    pub kind: StepResult,
    /// Time of the computation, microseconds.
    pub micros: u32,
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

/// Why a stage does not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StageError {
    /// The shard could not be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The thread could not be started.
    #[error("cannot start the thread of a stage: {0}")]
    Thread(std::io::Error),
    /// The stage has ended.
    #[error("the stage has ended")]
    Ended,
    /// No session of this id is open: never opened, closed, failed, or idle for too long.
    #[error("the session is not open on this stage")]
    UnknownSession,
    /// A session of this id is open already.
    #[error("the session is already open on this stage")]
    DuplicateSession,
    /// As many sessions as the stage may have are open.
    #[error("{limit} sessions are open, the limit of this stage")]
    TooManySessions {
        /// The limit.
        limit: usize,
    },
    /// The caches of the session would exceed the budget.
    #[error("the session needs {needs} bytes of cache and {left} are left of the budget")]
    KvBudget {
        /// Bytes the session needs.
        needs: u64,
        /// Bytes that are left.
        left: u64,
    },
    /// The session asks for more positions than the model was made for.
    #[error("{asked} positions, the model has {limit}")]
    TooManyPositions {
        /// Positions asked for.
        asked: u32,
        /// Positions of the model.
        limit: u32,
    },
    /// A step was skipped or comes again.
    #[error("step {got} came where step {expected} was expected")]
    Sequence {
        /// The step that comes next.
        expected: u32,
        /// The step that came.
        got: u32,
    },
    /// The rows do not follow those in the cache.
    #[error("rows for position {got} came where position {expected} comes next")]
    Position {
        /// The position that comes next.
        expected: u32,
        /// The position that came.
        got: u32,
    },
    /// The step goes beyond the positions the session was opened for.
    #[error("the session was opened for {limit} positions and the step needs {needs}")]
    BeyondLimit {
        /// Positions of the session.
        limit: u32,
        /// Positions with this step.
        needs: u32,
    },
    /// The step is not well-formed for this stage.
    #[error("malformed step: {0}")]
    Malformed(&'static str),
    /// The activations do not have the width of the model.
    #[error("activations of {rows} x {width} in {bytes} bytes, expected {expected_rows} x {expected_width} in f32")]
    Width {
        /// Rows that came.
        rows: u32,
        /// Width that came.
        width: u32,
        /// Bytes that came.
        bytes: usize,
        /// Rows expected: as many as tokens.
        expected_rows: u32,
        /// The hidden size of the model.
        expected_width: u32,
    },
    /// A token is outside the vocabulary.
    #[error("token {0} is outside the vocabulary")]
    Token(u32),
    /// The computation failed; the session is closed.
    #[error("the computation failed: {0}")]
    Compute(#[from] candle_core::Error),
    /// The logits are broken; the session is closed.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// The computation panicked; the session is closed.
    #[error("the computation panicked: {0}")]
    Panicked(String),
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
    Step(SessionId, Step, oneshot::Sender<Result<StepOutput, StageError>>),
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
    pub async fn spawn(
        dir: Arc<ModelDir>,
        range: LayerRange,
        options: StageOptions,
    ) -> Result<Self, StageError> {
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
        Ok(Self {
            commands,
            closing,
            info,
        })
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
    pub async fn open_guarded(
        &self,
        session: SessionId,
        params: SessionParams,
    ) -> Result<SessionGuard, StageError> {
        self.open(session, params).await?;
        Ok(self.guard(session))
    }

    /// Closes an open session when the guard is dropped.
    pub fn guard(&self, session: SessionId) -> SessionGuard {
        SessionGuard {
            stage: self.clone(),
            session,
        }
    }

    /// Computes one step of a session. Steps of all sessions are computed in the order they came.
    ///
    /// # Errors
    /// An error about the step itself leaves the session as it was; a failed computation closes it.
    pub async fn step(&self, session: SessionId, step: Step) -> Result<StepOutput, StageError> {
        self.ask(|reply| Command::Step(session, step, reply)).await
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
        self.closing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(session);
        // A full queue means that the thread is about to look anyway.
        let _ = self.commands.try_send(Command::Wake);
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, StageError>>) -> Command,
    ) -> Result<T, StageError> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| StageError::Ended)?;
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
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.stage.close(self.session);
    }
}

fn load(dir: &ModelDir, range: LayerRange) -> Result<(Shard, StageInfo), StageError> {
    let started = Instant::now();
    let shard = guarded(|| Ok(Shard::load(dir, range, &Device::Cpu)?))?;
    let info = StageInfo {
        range,
        width: dir.config().hidden_size as u32,
        weight_bytes: dir.shard_bytes(range),
        load_ms: started.elapsed().as_millis() as u64,
    };
    Ok((shard, info))
}

/// Turns a panic into an error.
fn guarded<T>(compute: impl FnOnce() -> Result<T, StageError>) -> Result<T, StageError> {
    catch_unwind(AssertUnwindSafe(compute)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned());
        Err(StageError::Panicked(text.unwrap_or_else(|| "without a message".into())))
    })
}

/// One session as the thread has it.
struct Session {
    cache: KvCache,
    reserved: u64,
    next_seq: u32,
    limit: u32,
    /// Every token so far, which the penalties of the last stage look at.
    context: Vec<u32>,
    sampler: Sampler,
    used: Instant,
}

/// What the thread owns.
struct Stage {
    shard: Shard,
    options: StageOptions,
    kv_bytes_per_position: u64,
    reserved: u64,
    sessions: BTreeMap<SessionId, Session>,
    closing: Closing,
}

impl Stage {
    fn new(dir: &ModelDir, shard: Shard, options: StageOptions, closing: Closing) -> Self {
        Self {
            kv_bytes_per_position: dir.kv_bytes(shard.range(), 1),
            shard,
            options,
            reserved: 0,
            sessions: BTreeMap::new(),
            closing,
        }
    }

    /// Serves commands until the last handle is gone.
    fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let timer = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let Ok(timer) = timer else {
            tracing::error!("a stage has no timer and ends");
            return;
        };
        let pause = (self.options.idle / 4).max(Duration::from_millis(10));
        loop {
            let received = timer.block_on(async { tokio::time::timeout(pause, queue.recv()).await });
            self.close_sessions();
            match received {
                Ok(None) => return,
                Ok(Some(command)) => self.handle(command),
                Err(_) => self.evict_idle(),
            }
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Open(session, params, reply) => {
                self.evict_idle();
                let opened = guarded(|| self.open(session, params));
                let succeeded = opened.is_ok();
                if reply.send(opened).is_err() && succeeded {
                    // Whoever asked is gone and will not close it.
                    self.remove(&session);
                }
            }
            Command::Step(session, step, reply) => {
                // Nobody waits for the result: do not compute it. The session's next step will be refused as a gap.
                if !reply.is_closed() {
                    drop(reply.send(self.step(&session, step)));
                }
            }
            Command::Measure(reply) => {
                let measured = guarded(|| Ok(layer_micros(&self.shard)?));
                drop(reply.send(measured));
            }
            Command::Wake => {}
        }
    }

    fn close_sessions(&mut self) {
        let closing = std::mem::take(&mut *self.closing.lock().unwrap_or_else(PoisonError::into_inner));
        for session in closing {
            self.remove(&session);
        }
    }

    fn evict_idle(&mut self) {
        let idle: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.used.elapsed() >= self.options.idle)
            .map(|(id, _)| *id)
            .collect();
        for session in idle {
            tracing::debug!(range = %self.shard.range(), "closing an idle session");
            self.remove(&session);
        }
    }

    fn remove(&mut self, session: &SessionId) {
        if let Some(session) = self.sessions.remove(session) {
            self.reserved -= session.reserved;
        }
    }

    fn open(&mut self, id: SessionId, params: SessionParams) -> Result<(), StageError> {
        let limit = self.shard.config().max_positions;
        if self.sessions.contains_key(&id) {
            return Err(StageError::DuplicateSession);
        }
        if self.sessions.len() >= self.options.max_sessions {
            return Err(StageError::TooManySessions {
                limit: self.options.max_sessions,
            });
        }
        if params.max_positions > limit {
            return Err(StageError::TooManyPositions {
                asked: params.max_positions,
                limit,
            });
        }
        let needs = self.kv_bytes_per_position * u64::from(params.max_positions);
        let left = self.options.kv_budget_bytes.saturating_sub(self.reserved);
        if needs > left {
            return Err(StageError::KvBudget { needs, left });
        }
        let session = Session {
            cache: self.shard.cache(params.max_positions)?,
            reserved: needs,
            next_seq: 0,
            limit: params.max_positions,
            context: Vec::new(),
            sampler: Sampler::new(params.sampling, params.prompt_len),
            used: Instant::now(),
        };
        self.sessions.insert(id, session);
        self.reserved += needs;
        Ok(())
    }

    fn step(&mut self, id: &SessionId, step: Step) -> Result<StepOutput, StageError> {
        let Some(session) = self.sessions.get_mut(id) else {
            return Err(StageError::UnknownSession);
        };
        session.used = Instant::now();
        check_step(&self.shard, session, &step)?;
        let started = Instant::now();
        let shard = &self.shard;
        let computed = guarded(|| compute(shard, session, step));
        session.used = Instant::now();
        match computed {
            Ok(kind) => Ok(StepOutput {
                kind,
                micros: u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX),
            }),
            Err(error) => {
                self.remove(id);
                Err(error)
            }
        }
    }
}

/// Checks everything about a step that a peer could get wrong, so that an error in [`compute`] is a failure of ours.
fn check_step(shard: &Shard, session: &Session, step: &Step) -> Result<(), StageError> {
    if step.seq != session.next_seq {
        return Err(StageError::Sequence {
            expected: session.next_seq,
            got: step.seq,
        });
    }
    let expected = session.cache.length() as u32;
    if step.pos != expected {
        return Err(StageError::Position {
            expected,
            got: step.pos,
        });
    }
    if step.tokens.is_empty() || step.tokens.len() > MAX_STEP_ROWS {
        return Err(StageError::Malformed("a step has 1 to 512 rows"));
    }
    let rows = step.tokens.len() as u32;
    let needs = expected.saturating_add(rows);
    if needs > session.limit {
        return Err(StageError::BeyondLimit {
            limit: session.limit,
            needs,
        });
    }
    if let Some(token) = step.tokens.iter().find(|t| **t as usize >= shard.config().vocab_size) {
        return Err(StageError::Token(*token));
    }
    let width = shard.config().hidden_size as u32;
    match (&step.hidden, shard.is_first()) {
        (None, true) => Ok(()),
        (None, false) => Err(StageError::Malformed("a later stage needs activations")),
        (Some(_), true) => Err(StageError::Malformed("the first stage takes tokens, not activations")),
        (Some(hidden), false) => {
            let bytes = rows as usize * width as usize * 4;
            if (hidden.rows, hidden.width, hidden.data.len()) == (rows, width, bytes) {
                return Ok(());
            }
            Err(StageError::Width {
                rows: hidden.rows,
                width: hidden.width,
                bytes: hidden.data.len(),
                expected_rows: rows,
                expected_width: width,
            })
        }
    }
}

fn compute(shard: &Shard, session: &mut Session, step: Step) -> Result<StepResult, StageError> {
    let input = match &step.hidden {
        None => StageInput::Tokens(&step.tokens),
        Some(hidden) => StageInput::Hidden(hidden.to_tensor(shard.device())?),
    };
    let head = if step.sample { HeadRows::Last } else { HeadRows::None };
    let output = shard.forward_rows(&mut session.cache, input, step.pos as usize, head)?;
    session.next_seq += 1;
    match output {
        StageOutput::Hidden(hidden) => Ok(StepResult::Hidden(HiddenStates::from_tensor(&hidden)?)),
        StageOutput::Nothing => {
            session.context.extend_from_slice(&step.tokens);
            Ok(StepResult::Nothing)
        }
        StageOutput::Logits(logits) => {
            session.context.extend_from_slice(&step.tokens);
            let mut logits = logits.flatten_all()?.to_vec1::<f32>()?;
            let position = step.pos + step.tokens.len() as u32;
            let token = session.sampler.sample(&mut logits, &session.context, position)?;
            Ok(StepResult::Token(token))
        }
    }
}
