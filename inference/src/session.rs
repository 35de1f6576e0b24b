//! The driver of one job over a pipeline, as a pure machine.
//!
//! It decides what is asked of the stages and when, keeps the tokens that were emitted, and takes the job to another
//! pipeline when a stage fails: the new one prefills prompt and emitted tokens, and the stream goes on behind them.
//! Whatever happens, every index is emitted once, and the job ends in [`Output::Finish`] or [`Output::Fail`] by its
//! deadline. No clock, no I/O: time comes in with every input, and [`Session::next_deadline`] says when to send
//! [`Input::Tick`] at the latest.

use consortium_protocol::wire::job::{FinishReason, JobError, JobErrorCode, Usage};
use consortium_protocol::wire::pipeline::Hop;
use consortium_protocol::{Millis, NodeId};
use rand::{Rng, RngCore};

use crate::PREFILL_CHUNK;

/// Pipelines that a job may be tried on.
pub const MAX_ATTEMPTS: u32 = 4;

/// What a job is, as its driver needs it.
#[derive(Debug, Clone)]
pub struct JobSpec {
    /// The prompt, tokens.
    pub prompt: Vec<u32>,
    /// Tokens that the client already has from an earlier driver; the job goes on behind them.
    pub emitted: Vec<u32>,
    /// Tokens that may be emitted, those of earlier drivers included; `None` = as many as the context holds.
    pub max_tokens: Option<u32>,
    /// Positions that the pipeline offers.
    pub context: u32,
    /// Number of layers of the model: what a route must cover.
    pub layers: u16,
    /// Size of the vocabulary.
    pub vocab_size: u32,
    /// Tokens that end the generation. They are not emitted.
    pub eos: Vec<u32>,
    /// Whether end-of-sequence tokens are emitted like any other.
    pub ignore_eos: bool,
}

/// How long the driver waits, milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct SessionTiming {
    /// For the whole job, from [`Input::Start`].
    pub job: u64,
    /// For all stages to open the session.
    pub open: u64,
    /// For the answer to one step.
    pub step: u64,
    /// More for every chunk of a prefill.
    pub chunk: u64,
    /// For the answer to [`Output::Replan`].
    pub plan: u64,
    /// For a stage to have room for the session, while it is full of others.
    pub room: u64,
    /// Before the second replanning of a job; doubles with each further one. The first comes at once.
    pub backoff: u64,
}

impl Default for SessionTiming {
    fn default() -> Self {
        Self { job: 600_000, open: 5_000, step: 10_000, chunk: 10_000, plan: 60_000, room: 60_000, backoff: 250 }
    }
}

/// What the driver is told.
#[derive(Debug, Clone)]
pub enum Input {
    /// The job begins, on this route.
    Start {
        /// The stages in order.
        plan: Vec<Hop>,
    },
    /// All stages have opened the session.
    Opened {
        /// The attempt it was opened for.
        attempt: u32,
    },
    /// The last stage drew a token.
    Token {
        /// The attempt it belongs to.
        attempt: u32,
        /// The step that asked for it.
        seq: u32,
        /// The position it will take.
        pos: u32,
        /// The token.
        id: u32,
    },
    /// A stage failed or was lost.
    StageFailed {
        /// The attempt it failed in.
        attempt: u32,
        /// Its index in the route.
        stage: u16,
        /// The node; it is left out of the next plan.
        node: NodeId,
        /// Whether another pipeline may do better. Not so if the request itself is at fault.
        retryable: bool,
    },
    /// A stage is whole, and full of other sessions: it has no room for this one yet.
    Busy {
        /// The attempt it was opened for.
        attempt: u32,
    },
    /// The answer to [`Output::Replan`]: a route, or none with the present nodes.
    Plan(Option<Vec<Hop>>),
    /// The client is gone, or wants no more.
    Cancel,
    /// A stop string was seen in the text of the tokens emitted so far.
    StopMatched,
    /// Time has passed.
    Tick,
}

/// What the driver wants done, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Open the session on all stages of a route.
    Open {
        /// Number of the attempt, from 1.
        attempt: u32,
        /// The stages in order.
        route: Vec<Hop>,
        /// Positions to reserve.
        max_positions: u32,
    },
    /// Send a step to the first stage.
    Step {
        /// The attempt.
        attempt: u32,
        /// Number of the step in its attempt, from 0.
        seq: u32,
        /// Position of the first token.
        pos: u32,
        /// At most [`PREFILL_CHUNK`] tokens.
        tokens: Vec<u32>,
        /// Whether the last stage shall draw the token that follows.
        sample: bool,
    },
    /// Give a token to the client.
    Emit {
        /// Its index among all emitted tokens of the job.
        index: u32,
        /// The token.
        id: u32,
    },
    /// Find another route.
    Replan {
        /// Nodes that failed and shall not be used.
        exclude: Vec<NodeId>,
        /// The attempt that the route is for.
        attempt: u32,
    },
    /// Close the session on all stages of an attempt.
    Close {
        /// The attempt.
        attempt: u32,
    },
    /// The job is done. Nothing comes after it.
    Finish {
        /// Why it ended.
        reason: FinishReason,
        /// What it took.
        usage: Usage,
    },
    /// The job has failed. Nothing comes after it.
    Fail(JobError),
}

/// Where a job stands.
#[derive(Debug)]
enum State {
    /// Before [`Input::Start`].
    New,
    /// The stages are opening the session.
    Opening { route: Vec<Hop>, deadline: u64 },
    /// A token is awaited.
    Running { route: Vec<Hop>, seq: u32, pos: u32, deadline: u64 },
    /// Waiting before the next replanning.
    Backoff { until: u64 },
    /// A route is awaited.
    Planning { deadline: u64 },
    /// Finished or failed.
    Done,
}

/// Why an attempt ended; decides the error if it was the last.
#[derive(Debug, Clone, Copy)]
enum Loss {
    Stage,
    Timeout,
    NoRoute,
}

/// The driver of one job.
#[derive(Debug)]
pub struct Session {
    spec: JobSpec,
    timing: SessionTiming,
    state: State,
    attempt: u32,
    /// Attempts that ended because a stage was full: they are no failures.
    waits: u32,
    /// Until when the job waits for room.
    room_deadline: Option<u64>,
    /// All tokens after the prompt.
    emitted: Vec<u32>,
    /// How many tokens there may be after the prompt.
    limit: u32,
    excluded: Vec<NodeId>,
    job_deadline: u64,
}

impl Session {
    /// The driver of a job that has not begun.
    pub fn new(spec: JobSpec, timing: SessionTiming) -> Self {
        let room = spec.context.saturating_sub(length(&spec.prompt));
        Self {
            limit: spec.max_tokens.unwrap_or(room).min(room),
            emitted: spec.emitted.clone(),
            spec,
            timing,
            state: State::New,
            attempt: 0,
            waits: 0,
            room_deadline: None,
            excluded: Vec::new(),
            job_deadline: u64::MAX,
        }
    }

    /// The tokens after the prompt, those of earlier drivers included.
    pub fn emitted(&self) -> &[u32] {
        &self.emitted
    }

    /// Number of the current attempt, from 1; 0 before the start.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Whether the job has ended.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// What the job has taken so far.
    pub fn usage(&self) -> Usage {
        Usage { prompt_tokens: length(&self.spec.prompt), completion_tokens: length(&self.emitted) }
    }

    /// When [`Input::Tick`] is due at the latest; `None` if nothing is awaited.
    pub fn next_deadline(&self) -> Option<Millis> {
        let own = match self.state {
            State::New | State::Done => return None,
            State::Opening { deadline, .. } | State::Running { deadline, .. } | State::Planning { deadline } => {
                deadline
            }
            State::Backoff { until } => until,
        };
        Some(Millis(own.min(self.job_deadline)))
    }

    /// Takes an input and says what shall be done. Inputs that do not belong to the present state (of an older attempt,
    /// repeated, out of order, after the end) change nothing.
    pub fn handle(&mut self, input: Input, now: Millis, rng: &mut impl RngCore) -> Vec<Output> {
        let mut out = Vec::new();
        let now = now.0;
        if !matches!(self.state, State::New | State::Done) && now >= self.job_deadline {
            self.fail(JobErrorCode::Timeout, "the job took longer than it may", &mut out);
            return out;
        }
        match input {
            Input::Start { plan } => self.start(plan, now, rng, &mut out),
            Input::Opened { attempt } => self.opened(attempt, now, &mut out),
            Input::Token { attempt, seq, pos, id } if attempt == self.attempt => {
                self.token(seq, pos, id, now, rng, &mut out);
            }
            Input::StageFailed { attempt, node, retryable, .. } if attempt == self.attempt => {
                self.stage_failed(node, retryable, now, rng, &mut out);
            }
            Input::Busy { attempt } if attempt == self.attempt => self.busy(now, rng, &mut out),
            Input::Plan(route) => self.planned(route, now, rng, &mut out),
            Input::Cancel | Input::StopMatched => self.finish(FinishReason::Stop, &mut out),
            Input::Tick => self.tick(now, rng, &mut out),
            Input::Token { .. } | Input::StageFailed { .. } | Input::Busy { .. } => {}
        }
        out
    }

    fn start(&mut self, plan: Vec<Hop>, now: u64, rng: &mut impl RngCore, out: &mut Vec<Output>) {
        if !matches!(self.state, State::New) {
            return;
        }
        self.job_deadline = now.saturating_add(self.timing.job);
        if let Some(error) = self.refusal() {
            self.state = State::Done;
            out.push(Output::Fail(error));
        } else if length(&self.emitted) >= self.limit {
            self.finish(FinishReason::Length, out);
        } else {
            self.attempt = 1;
            self.open(plan, now, rng, out);
        }
    }

    /// What is wrong with the job itself.
    fn refusal(&self) -> Option<JobError> {
        let prompt = length(&self.spec.prompt);
        let known = |id: &u32| *id < self.spec.vocab_size;
        let error = |code, message: String, param: &str| Some(JobError { code, message, param: Some(param.into()) });
        if prompt == 0 {
            return error(JobErrorCode::InvalidRequest, "the prompt is empty".into(), "prompt");
        }
        if prompt >= self.spec.context {
            let message = format!(
                "the prompt has {prompt} tokens and the context {} positions, of which at least one must stay free",
                self.spec.context
            );
            return error(JobErrorCode::ContextLength, message, "prompt");
        }
        if !self.spec.prompt.iter().all(known) || !self.emitted.iter().all(known) {
            let message = format!("a token is outside the vocabulary of {}", self.spec.vocab_size);
            return error(JobErrorCode::InvalidRequest, message, "prompt");
        }
        None
    }

    fn open(&mut self, route: Vec<Hop>, now: u64, rng: &mut impl RngCore, out: &mut Vec<Output>) {
        if !covers(&route, self.spec.layers) {
            // Nothing was opened: the planner gave no usable route.
            self.lost(Loss::NoRoute, now, rng, out);
            return;
        }
        out.push(Output::Open {
            attempt: self.attempt,
            route: route.clone(),
            max_positions: length(&self.spec.prompt).saturating_add(self.limit),
        });
        self.state = State::Opening { route, deadline: now.saturating_add(self.timing.open) };
    }

    fn opened(&mut self, attempt: u32, now: u64, out: &mut Vec<Output>) {
        let State::Opening { route, .. } = &mut self.state else {
            return;
        };
        if attempt != self.attempt {
            return;
        }
        let route = std::mem::take(route);
        self.room_deadline = None;
        let history: Vec<u32> = [self.spec.prompt.as_slice(), &self.emitted].concat();
        let chunks = history.len().div_ceil(PREFILL_CHUNK);
        let mut pos = 0;
        for (seq, tokens) in history.chunks(PREFILL_CHUNK).enumerate() {
            out.push(Output::Step {
                attempt,
                seq: seq as u32,
                pos,
                tokens: tokens.to_vec(),
                sample: seq + 1 == chunks,
            });
            pos += length(tokens);
        }
        let wait = self.timing.chunk.saturating_mul(chunks as u64);
        self.state = State::Running {
            route,
            seq: (chunks - 1) as u32,
            pos,
            deadline: now.saturating_add(self.timing.step).saturating_add(wait),
        };
    }

    fn token(&mut self, seq: u32, pos: u32, id: u32, now: u64, rng: &mut impl RngCore, out: &mut Vec<Output>) {
        let State::Running { route, seq: awaited, pos: position, deadline } = &mut self.state else {
            return;
        };
        if (seq, pos) != (*awaited, *position) {
            return;
        }
        if id >= self.spec.vocab_size {
            if let Some(last) = route.last() {
                self.excluded.push(last.node);
            }
            self.lost(Loss::Stage, now, rng, out);
            return;
        }
        if !self.spec.ignore_eos && self.spec.eos.contains(&id) {
            self.finish(FinishReason::Stop, out);
            return;
        }
        out.push(Output::Emit { index: length(&self.emitted), id });
        self.emitted.push(id);
        if length(&self.emitted) >= self.limit {
            self.finish(FinishReason::Length, out);
            return;
        }
        *awaited += 1;
        *position += 1;
        *deadline = now.saturating_add(self.timing.step);
        out.push(Output::Step { attempt: self.attempt, seq: *awaited, pos, tokens: vec![id], sample: true });
    }

    fn stage_failed(&mut self, node: NodeId, retryable: bool, now: u64, rng: &mut impl RngCore, out: &mut Vec<Output>) {
        if !matches!(self.state, State::Opening { .. } | State::Running { .. }) {
            return;
        }
        if !retryable {
            self.fail(JobErrorCode::Internal, "a stage failed in a way that no other would avoid", out);
            return;
        }
        if !self.excluded.contains(&node) {
            self.excluded.push(node);
        }
        self.lost(Loss::Stage, now, rng, out);
    }

    /// Waits a little, and tries again: on the same pipeline, if it is up to the stage.
    fn busy(&mut self, now: u64, rng: &mut impl RngCore, out: &mut Vec<Output>) {
        if !matches!(self.state, State::Opening { .. }) {
            return;
        }
        let deadline = *self.room_deadline.get_or_insert(now.saturating_add(self.timing.room));
        if now >= deadline {
            self.fail(JobErrorCode::Overloaded, "the stages are full of other sessions; try again in a moment", out);
            return;
        }
        self.close(out);
        self.attempt += 1;
        self.waits += 1;
        let wait = rng.random_range(self.timing.backoff / 2..=self.timing.backoff);
        self.state = State::Backoff { until: now.saturating_add(wait) };
    }

    fn planned(&mut self, route: Option<Vec<Hop>>, now: u64, rng: &mut impl RngCore, out: &mut Vec<Output>) {
        if !matches!(self.state, State::Planning { .. }) {
            return;
        }
        match route {
            Some(route) => self.open(route, now, rng, out),
            None => {
                // Perhaps a node that failed once is the only one that can do it.
                self.excluded.clear();
                self.lost(Loss::NoRoute, now, rng, out);
            }
        }
    }

    fn tick(&mut self, now: u64, rng: &mut impl RngCore, out: &mut Vec<Output>) {
        match self.state {
            State::Opening { deadline, .. } | State::Running { deadline, .. } if now >= deadline => {
                self.lost(Loss::Timeout, now, rng, out);
            }
            State::Planning { deadline } if now >= deadline => self.lost(Loss::NoRoute, now, rng, out),
            State::Backoff { until } if now >= until => self.replan(now, out),
            _ => {}
        }
    }

    /// The present attempt is over without success.
    fn lost(&mut self, loss: Loss, now: u64, rng: &mut impl RngCore, out: &mut Vec<Output>) {
        if self.attempt - self.waits >= MAX_ATTEMPTS {
            let (code, message) = match loss {
                Loss::Stage => (JobErrorCode::WorkerLost, "every pipeline that was tried lost a stage"),
                Loss::Timeout => (JobErrorCode::Timeout, "the stages did not answer in time"),
                Loss::NoRoute => (JobErrorCode::NoCapacity, "the present nodes cannot serve the model"),
            };
            self.fail(code, message, out);
            return;
        }
        self.close(out);
        self.attempt += 1;
        let tried = self.attempt - self.waits;
        let doublings = tried.saturating_sub(3);
        let full = match (tried, loss) {
            (2, Loss::Stage | Loss::Timeout) => 0,
            _ => self.timing.backoff << doublings.min(16),
        };
        if full == 0 {
            self.replan(now, out);
            return;
        }
        let wait = rng.random_range(full / 2..=full);
        self.state = State::Backoff { until: now.saturating_add(wait) };
    }

    fn replan(&mut self, now: u64, out: &mut Vec<Output>) {
        out.push(Output::Replan { exclude: self.excluded.clone(), attempt: self.attempt });
        self.state = State::Planning { deadline: now.saturating_add(self.timing.plan) };
    }

    /// Closes what the present attempt has opened.
    fn close(&self, out: &mut Vec<Output>) {
        if matches!(self.state, State::Opening { .. } | State::Running { .. }) {
            out.push(Output::Close { attempt: self.attempt });
        }
    }

    fn finish(&mut self, reason: FinishReason, out: &mut Vec<Output>) {
        if self.is_done() {
            return;
        }
        self.close(out);
        self.state = State::Done;
        out.push(Output::Finish { reason, usage: self.usage() });
    }

    fn fail(&mut self, code: JobErrorCode, message: &str, out: &mut Vec<Output>) {
        self.close(out);
        self.state = State::Done;
        out.push(Output::Fail(JobError { code, message: message.into(), param: None }));
    }
}

/// Whether a route covers all layers in order.
fn covers(route: &[Hop], layers: u16) -> bool {
    let mut next = 0;
    for hop in route {
        if hop.range.first != next || hop.range.last < hop.range.first || hop.range.last >= layers {
            return false;
        }
        next = hop.range.last + 1;
    }
    next == layers
}

fn length(tokens: &[u32]) -> u32 {
    u32::try_from(tokens.len()).unwrap_or(u32::MAX)
}
